"""The fine-tuning study: its cells, what it refuses, and a small one from end to end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from qhw_diffusion.denoising.command import DenoiserTraining
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.experiment import open_study, run_study
from qhw_diffusion.studies.tuning.experiment import QUICK, STUDY, TuningStudyConfig


def test_cells_and_settings() -> None:
    config = TuningStudyConfig(worse=(1.0, 3.0), seeds=2)
    cells = STUDY.cells_of(config)
    assert list(cells) == ["model-seed0", "day1-seed0", "day3-seed0", "model-seed1", "day1-seed1", "day3-seed1"]
    assert cells["day3-seed1"].needs == ("model-seed1",)
    for wrong in ({"worse": ()}, {"worse": (-1.0,)}, {"updates": 0}, {"spread": -1.0}, {"learning_rate": 0.0}):
        with pytest.raises(InvalidInputError):
            TuningStudyConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_small_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant has its row, and circuits are counted. (The autoencoder has a tenth of its steps.)"""
    training = partial(DenoiserTraining, autoencoder_steps=150)
    monkeypatch.setattr("qhw_diffusion.studies.tuning.experiment.DenoiserTraining", training)
    small = {"n_steps": 1, "depth": 2, "iterations": 10, "updates": 1, "many": 2, "images": 20, "shots": 512}
    config = QUICK.replace(seeds=2, by_aer=1, **small)
    run = open_study(STUDY, tmp_path / "study", config)
    results = run_study(STUDY, run)
    day = {"part": "day", "worse": 3.0}
    assert results.values("circuits", **day, variant="surrogate") == [120, 120]
    assert results.values("circuits", **day, variant="spsa") == [360, 360]
    assert len(results.values("energy", **day, variant="surrogate by Aer")) == 1
    assert len(results.values("energy", **day, variant="oracle many")) == 2
    page = STUDY.page(results)
    assert len(page.findings) == 3
    text = page.save_markdown(tmp_path / "page.md").read_text()
    assert "by runner, ledger and Aer: energy distance" in text
