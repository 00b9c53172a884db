"""Untrained denoisers as run folders of `qhw train denoising`, for the tests of what runs them on devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qhw_diffusion.denoising import LatentQDM, ReverseConfig, save_pretrained
from qhw_diffusion.denoising.command import KIND, TRAIN, DenoiserTraining
from qhw_diffusion.denoising.training import TrainConfig
from qhw_diffusion.runs import RunFolder


def folder_of(path: Path, train: TrainConfig = TRAIN, **changes: Any) -> Path:
    """A denoiser of two qubits and two steps for digits: four qubits as one circuit."""
    settings = {"n_qubits": 2, "n_steps": 2, "depth": 1, "conditioning": "angles", "n_labels": 10, "init_scale": 0.6}
    model = LatentQDM(ReverseConfig(**{**settings, **changes}))
    training = DenoiserTraining(model=model.kind, reverse=model.reverse.config, train=train)
    with RunFolder.create(path, kind=KIND, config=training.to_dict()) as made:
        save_pretrained(model, made.path / "model")
    return path
