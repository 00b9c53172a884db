from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.guidance import schedules
from qhw_diffusion.guidance.schedules import SCHEDULES, schedule


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n_steps", [1, 2, 6, 10, 50])
def test_every_schedule_has_its_mean(name: str, n_steps: int) -> None:
    g = schedule(name, 1.7, n_steps)
    assert g.shape == (n_steps,)
    assert float(g.mean()) == pytest.approx(1.7, rel=1e-5)
    assert torch.isfinite(g).all()


def test_shapes_by_hand() -> None:
    torch.testing.assert_close(schedules.linear_up(2.0, 5), torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(schedules.linear_down(2.0, 3, slope=0.5), torch.tensor([3.0, 2.0, 1.0]))
    torch.testing.assert_close(schedules.cosine_up(1.0, 3), torch.tensor([0.0, 1.0, 2.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(schedules.limited_interval(2.0, 4, lo=0.25, hi=0.75), torch.tensor([1.0, 3.0, 3.0, 1.0]))
    rising = schedules.exponential(1.0, 4, rate=2.0)
    torch.testing.assert_close(rising[1:] / rising[:-1], torch.full((3,), math.exp(2 / 3)))
    clamped = schedules.clamped_linear(1.0, 5, floor=0.8)
    torch.testing.assert_close(clamped / clamped[0], torch.tensor([1.0, 1.0, 1.25, 1.875, 2.5]))


def test_zero_slope_is_the_constant() -> None:
    for name in ("linear_up", "linear_down", "cosine_up"):
        assert torch.equal(schedule(name, 1.3, 6, slope=0.0), schedules.constant(1.3, 6))
    torch.testing.assert_close(schedule("exponential", 1.3, 6, rate=0.0), schedules.constant(1.3, 6))


def test_scales_at_another_number_of_steps_are_linear_in_the_share_to_do() -> None:
    g = torch.tensor([5.0, 2.0, 3.0, 1.0])
    assert torch.equal(schedules.resampled(g, 4), g)
    for steps in (1, 2, 7, 8, 50):
        to_do = [(steps - i) / steps for i in range(steps)]
        wanted = np.interp(to_do, [0.25, 0.5, 0.75, 1.0], g.flip(0).tolist())  # below 1/4: the last scale
        torch.testing.assert_close(schedules.resampled(g, steps), torch.tensor(wanted, dtype=torch.float32))
    of_images = torch.stack([g, -g], 1)
    torch.testing.assert_close(schedules.resampled(of_images, 7)[:, 1], -schedules.resampled(g, 7))
    with pytest.raises(InvalidInputError, match="one step or more"):
        schedules.resampled(g, 0)


def test_bad_input() -> None:
    with pytest.raises(UnknownNameError, match="cosine_up"):
        schedule("cosine", 1.0, 5)
    for call in (
        lambda: schedules.constant(-1.0, 5),
        lambda: schedules.constant(float("nan"), 5),
        lambda: schedules.constant(1.0, 0),
        lambda: schedules.linear_up(1.0, 5, slope=2.0),
        lambda: schedules.limited_interval(1.0, 5, lo=0.8, hi=0.2),
        lambda: schedules.limited_interval(1.0, 2, lo=0.4, hi=0.6),
        lambda: schedules.limited_interval(0.1, 10, lo=0.4, hi=0.6),
        lambda: schedules.exponential(1.0, 5, rate=float("inf")),
    ):
        with pytest.raises(InvalidInputError):
            call()
