"""A base schedule: policies correct it; the loop, the gradient, the settings and the study that takes a tuned one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qhw_diffusion import guidance
from qhw_diffusion.cli.guidance import _training
from qhw_diffusion.diffusion import Backbone, Classifier
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.guidance import GuidanceConfig, MLPPolicy, Reward, rollout
from qhw_diffusion.guidance.pathwise import FreeSchedule, play
from qhw_diffusion.guidance.schedules import limited_interval
from qhw_diffusion.runs.place import Place
from qhw_diffusion.studies.guidance.experiment import GuidanceStudyConfig, base_schedule, cells

SCALES = (0.5, 2.5, 2.0, 1.0)


@pytest.fixture(scope="module")
def start(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    return guidance.draw_episode(backbone, 12, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def scheduled(config: GuidanceConfig) -> GuidanceConfig:
    return config.replace(base_schedule=SCALES)


class Still(MLPPolicy):
    """No correction at all."""

    def forward(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = super().forward(state)
        return torch.zeros_like(mean), log_std


def test_without_a_correction_the_schedule_is_played(
    backbone: Backbone,
    reward_classifier: Classifier,
    scheduled: GuidanceConfig,
    start: tuple[torch.Tensor, torch.Tensor],
) -> None:
    wanted = rollout(backbone, scheduled, *start, torch.tensor(SCALES))
    for player in (None, Still()):
        played = rollout(backbone, scheduled, *start, player, scorer=reward_classifier)
        assert torch.equal(played.images, wanted.images)
        assert torch.equal(played.g, wanted.g)
        assert not played.actions.any()


def test_a_policy_corrects_it_in_the_loop_and_in_training(
    backbone: Backbone,
    reward_classifier: Classifier,
    reward: Reward,
    scheduled: GuidanceConfig,
    start: tuple[torch.Tensor, torch.Tensor],
) -> None:
    policy = MLPPolicy(gain=3.0, seed=2)
    labels = torch.arange(20) % 10
    noise = torch.randn(20, *start[1].shape[1:], generator=torch.Generator().manual_seed(1))
    out = rollout(backbone, scheduled, labels, noise, policy, scorer=reward_classifier)
    base = torch.tensor(SCALES)[:, None]
    torch.testing.assert_close(out.g, (base + out.actions).clamp(scheduled.g_min, scheduled.g_max))
    assert out.actions.abs().max() > 0.1
    trained = play(backbone, scheduled, reward, policy, labels, noise)
    torch.testing.assert_close(trained.images, out.images, rtol=0, atol=1e-4)
    free = FreeSchedule(4, scheduled.base_scales(4))
    assert not play(backbone, scheduled, reward, free, labels, noise).actions.any()


def test_equal_scales_are_a_constant_bit_for_bit(
    backbone: Backbone, reward_classifier: Classifier, config: GuidanceConfig, start: tuple[torch.Tensor, torch.Tensor]
) -> None:
    policy = MLPPolicy(gain=1.0, seed=1)
    alike = config.replace(base_schedule=(config.g0,) * 4)
    one, other = (rollout(backbone, c, *start, policy, scorer=reward_classifier).images for c in (config, alike))
    assert torch.equal(one, other)


def test_at_other_numbers_of_steps_it_is_interpolated() -> None:
    config = GuidanceConfig(n_steps=4, base_schedule=(1.0, 2.0, 3.0, 4.0), g0=2.0)
    assert config.base_scales(4).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert config.base_scales(2).tolist() == [1.0, 3.0]
    assert config.base_scales(8).tolist() == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.0]
    assert GuidanceConfig(g0=2.0).base_scales(3).tolist() == [2.0, 2.0, 2.0]
    assert (config.base_name, GuidanceConfig(g0=2.0).base_name) == ("base schedule", "constant g = 2")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"base_schedule holds \[9\.0\].*widen"):
        GuidanceConfig(base_schedule=(1.0, 9.0))
    with pytest.raises(UnknownNameError, match=r"best, limited_interval, middle"):
        GuidanceStudyConfig(base="cosine_up", schedules=("limited_interval",))


@pytest.mark.parametrize("pipeline", [False, True])
def test_on_the_command_line_the_range_lies_around_it_and_no_sweep_is_made(tmp_path: Path, pipeline: bool) -> None:
    given = {"guidance": {"base_schedule": (1.0, 7.0, 1.0), "action_limit": 1.5}}
    if pipeline:
        given |= {"models": {"pipeline": "coloured-digits"}}
    made = _training(given, Place(tmp_path / "run"))
    assert (made.guidance.g0, made.guidance.g_min, made.guidance.g_max) == (3.0, 0.0, 8.5)
    assert made.guidance.base_schedule == (1.0, 7.0, 1.0)
    assert pipeline or made.sweep_images == 0


def test_a_study_takes_the_tuned_schedule(tmp_path: Path) -> None:
    config = GuidanceStudyConfig(
        base="limited_interval", schedules=("limited_interval",), constants=(2.0, 4.0), tune_means=(1.0,), n_steps=10
    )
    needs = {cell.name: cell.needs for cell in cells(config)}["calibration"]
    tuned = [f"limited_interval-1-{k}" for k in range(3)]
    assert {*tuned, "constant-2", "constant-4"} <= set(needs)
    (tmp_path / "cells").mkdir()
    for g in (2, 4):
        (tmp_path / "cells" / f"constant-{g}.json").write_text(json.dumps({"reward_distance": 1 / g}))
    for k, name in enumerate(tuned):
        shape = ({"lo": 0.0, "hi": 0.7}, {"lo": 0.2, "hi": 0.8}, {"lo": 0.3, "hi": 1.0})[k]
        tried = {"name": "limited_interval", "mean": 4.0, "shape": shape}
        result = {"tried": tried, "reward_distance": (3.0, 1.0, 2.0)[k]}
        (tmp_path / "cells" / f"{name}.json").write_text(json.dumps(result))
    found = base_schedule(config, tmp_path)
    assert found == pytest.approx(limited_interval(4.0, 10, lo=0.2, hi=0.8).tolist(), abs=1e-6)
    assert max(found) > 4.0 > min(found)
    assert base_schedule(config.replace(base="best"), tmp_path) == ()
