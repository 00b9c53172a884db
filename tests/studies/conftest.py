"""A denoising study, as small as it can be, shared by several tests."""

from __future__ import annotations

from typing import Any

import pytest

from qhw_diffusion.denoising import AutoencoderConfig
from qhw_diffusion.denoising.command import REVERSE, TRAIN
from qhw_diffusion.experiment import Results, load_study, open_study, run_study
from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies.denoising.experiment import DenoisingConfig

TINY = DenoisingConfig(
    classes=(1, 0, 7),
    variants=("postselected", "feedforward", "noise", "contraction", "classical"),
    autoencoder=AutoencoderConfig(steps=50),
    reverse=REVERSE.replace(n_steps=2, depth=2),
    train=TRAIN.replace(iterations=5, batch_size=4, targets=8),
    noise_iterations=2,
    device="fake_manila",
    eval_images=40,
    seeds=2,
)


@pytest.fixture(scope="session")
def tiny_denoising(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    study = load_study("denoising")
    run = open_study(study, tmp_path_factory.mktemp("denoising") / "run", TINY, command="qhw study denoising --seeds 2")
    run_study(study, run)
    return run


def without_energy(results: Results[Any]) -> Results[Any]:
    """The results as an earlier version kept them, without energy distances."""

    def strip(kept: Any) -> Any:
        if isinstance(kept, dict):
            return {key: strip(value) for key, value in kept.items() if not key.startswith("energy")}
        return [strip(one) for one in kept] if isinstance(kept, list) else kept

    return Results(results.study, results.folder, results.config, results.manifest, strip(results.cells))
