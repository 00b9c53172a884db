"""Noise schedules against their formulas."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from qhw_diffusion.denoising.forward import NoiseSchedule, cosine_alpha_bar, noise_schedule
from qhw_diffusion.errors import InvalidInputError, UnknownNameError

NAMES = ["linear", "cosine", "cosine_square", "constant", "msquddpm"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_steps", [1, 2, 6, 50])
def test_every_schedule_stays_in_bounds_and_forgets(name: str, n_steps: int) -> None:
    schedule = noise_schedule(name, n_steps)
    assert schedule.name == name
    assert schedule.n_steps == n_steps == len(schedule.p)
    alphas = schedule.alphas
    assert alphas.dtype == torch.float64
    assert alphas[0] == 1
    assert (alphas.diff() < 0).all()
    for t in range(n_steps + 1):
        assert schedule.alpha(t) == pytest.approx(float(alphas[t]), abs=1e-15)


def test_linear_and_constant_by_hand() -> None:
    assert noise_schedule("linear", 3, start=0.1, end=0.5).p == pytest.approx((0.1, 0.3, 0.5))
    assert noise_schedule("linear", 3, start=0.1, end=0.5).alpha(2) == pytest.approx(0.9 * 0.7)
    assert noise_schedule("constant", 4, p=0.25).alpha(4) == pytest.approx(0.75**4)
    assert noise_schedule("linear", 1000, start=1e-4, end=0.02).alpha(1000) == pytest.approx(4.04e-5, rel=0.01), "DDPM"


def test_cosine_is_nichol_and_dhariwals() -> None:
    """α_t = f(t)/f(0) with f(t) = cos²((t/T + s)/(1 + s)·π/2), s = 0.008, until the cap at 0.999."""
    schedule, n_steps = noise_schedule("cosine", 20), 20

    def f(t: int) -> float:
        return math.cos((t / n_steps + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in range(n_steps):
        assert schedule.alpha(t) == pytest.approx(f(t) / f(0), abs=1e-12)
    assert schedule.p[-1] == 0.999
    assert cosine_alpha_bar(1.0, 0.008) < 1e-30
    squared = noise_schedule("cosine_square", 20)
    assert squared.p == pytest.approx([p * p for p in schedule.p])


@pytest.mark.parametrize("k", [1.0, 2.0, 0.5])
def test_msquddpm_is_the_power_form(k: float) -> None:
    """q_t = (1 − ᾱ_t/ᾱ_{t−1})^k, s = 0.001; q_T = 1. The k = 1 values by hand from the cosine."""
    schedule = noise_schedule("msquddpm", 6, k=k)
    bars = [math.cos((t / 6 + 0.001) / 1.001 * math.pi / 2) ** 2 for t in range(7)]
    assert schedule.p == pytest.approx([(1 - bars[t] / bars[t - 1]) ** k for t in range(1, 7)])
    assert schedule.p[-1] == 1.0
    assert schedule.alpha(6) == 0.0


def test_leaving_the_interval_is_refused_with_the_step() -> None:
    with pytest.raises(InvalidInputError, match=r"'linear' leaves \[0, 1\] at step 4 of 4: p_4 = 1\.3"):
        noise_schedule("linear", 4, start=0.1, end=1.3)
    with pytest.raises(InvalidInputError, match="step 1 of 3"):
        noise_schedule("constant", 3, p=-0.1)
    with pytest.raises(InvalidInputError, match="step 2 of 2: p_2 = nan"):
        NoiseSchedule((0.5, float("nan")))
    with pytest.raises(InvalidInputError, match="at least one step"):
        NoiseSchedule(())
    assert NoiseSchedule((0.0, 1.0)).alpha(1) == 1.0


def test_bad_names_settings_and_steps_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean cosine"):
        noise_schedule("cosin", 5)
    with pytest.raises(InvalidInputError, match="'cosine' has no setting k; it has offset, largest"):
        noise_schedule("cosine", 5, k=2)
    for steps in (0, -1, 2.5, True):
        with pytest.raises(InvalidInputError, match="steps ≥ 1"):
            noise_schedule("cosine", steps)  # type: ignore[arg-type]
    for k in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidInputError, match="exponent k"):
            noise_schedule("msquddpm", 5, k=k)
    with pytest.raises(InvalidInputError, match="offset"):
        noise_schedule("cosine", 5, offset=-0.1)
    with pytest.raises(InvalidInputError, match="from 0"):
        noise_schedule("cosine", 5).alpha(6)


def test_a_schedule_is_frozen_and_compares_by_value() -> None:
    schedule = NoiseSchedule((0.1, 0.2), "mine")
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.p = (0.3,)  # type: ignore[misc]
    assert schedule == NoiseSchedule((0.1, 0.2), "mine")
    assert hash(schedule) == hash(NoiseSchedule((0.1, 0.2), "mine"))
    assert NoiseSchedule([0.1, 0.2], "mine") == schedule, "lists become tuples"  # type: ignore[arg-type]
