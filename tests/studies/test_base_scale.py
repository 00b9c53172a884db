"""Where the actors' base scale comes from: the best constant of the sweep, or the middle of the sensible ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from qhw_diffusion.errors import UnknownNameError
from qhw_diffusion.runs import atomic_write_json
from qhw_diffusion.studies import study_work as work
from qhw_diffusion.studies.guidance_study import base_scale
from qhw_diffusion.studies.settings import StudyConfig

DISTANCES = {0.5: 0.9, 1.0: 0.25, 1.25: 0.1, 1.5: 0.12, 2.0: 0.29, 3.0: 0.31, 5.0: 0.2}


def sweep(root: Path) -> Path:
    for g, distance in DISTANCES.items():
        side = {"distance": distance, "fd": 1.0, "kd": 0.0, "accuracy": 1.0}
        schedule = {"name": "constant", "mean": g, "shape": {}}
        atomic_write_json(work.sweep_file(root, f"constant-{g:g}"), {"schedule": schedule, "reward_side": side})
    return root


def test_best_is_the_constant_with_the_lowest_distance(tmp_path: Path) -> None:
    assert base_scale(sweep(tmp_path), StudyConfig(constants=tuple(DISTANCES))) == 1.25


def test_middle_is_that_of_the_constants_near_the_best(tmp_path: Path) -> None:
    """1.0 to 2.0 lie within 3 × 0.1; 5.0 does too, but 3.0 between them does not."""
    assert base_scale(sweep(tmp_path), StudyConfig(constants=tuple(DISTANCES), base="middle")) == 1.5


def test_another_base_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="middle"):
        StudyConfig(base="midle")
