"""Noise schedules: how much each step of a forward process adds.

Step t = 1 … T replaces the share p_t of what it finds by noise; α_t = Π_{s≤t} (1 − p_s) of the data is left after it
(α₀ = 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError, UnknownNameError


@dataclass(frozen=True)
class NoiseSchedule:
    """p_1 … p_T, each in [0, 1].

    Attributes:
        p: share replaced by noise at each step, p[0] at step 1.
        name: what it is called in reports.

    Raises:
        InvalidInputError: no steps, or a p_t outside [0, 1] (the message names the step).
    """

    p: tuple[float, ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", tuple(float(value) for value in self.p))
        if not self.p:
            raise InvalidInputError("a noise schedule needs at least one step")
        for t, value in enumerate(self.p, start=1):
            if not 0 <= value <= 1:
                raise InvalidInputError(
                    f"schedule {self.name!r} leaves [0, 1] at step {t} of {len(self.p)}: p_{t} = {value:.6g}. "
                    "Choose settings that keep every p_t a probability"
                )

    @property
    def n_steps(self) -> int:
        """T."""
        return len(self.p)

    def alpha(self, t: int) -> float:
        """α_t, the share of the data left after step t; t from 0 to T."""
        if not 0 <= t <= self.n_steps:
            raise InvalidInputError(f"steps go from 0 (data) to {self.n_steps}, not {t}")
        return math.prod(1 - value for value in self.p[:t])

    @property
    def alphas(self) -> Tensor:
        """α_0 … α_T, float64 [T + 1]."""
        shares = accumulate(self.p, lambda left, value: left * (1 - value), initial=1.0)
        return torch.tensor(list(shares), dtype=torch.float64)


def linear(n_steps: int, *, start: float = 0.02, end: float = 0.5) -> NoiseSchedule:
    """p_t evenly spaced from `start` to `end` (Ho et al. 2020, arXiv 2006.11239).

    The published 1e-4 … 0.02 is meant for T = 1000. The values here are for the ten or twenty steps of a quantum
    model: T = 10 leaves α_T = 0.04, T = 20 leaves 0.002.
    """
    _check_steps(n_steps)
    step = (end - start) / max(n_steps - 1, 1)
    return NoiseSchedule(tuple(start + t * step for t in range(n_steps)), "linear")


def constant(n_steps: int, *, p: float = 0.2) -> NoiseSchedule:
    """The same p at every step: α_t = (1 − p)^t."""
    _check_steps(n_steps)
    return NoiseSchedule((p,) * n_steps, "constant")


def cosine(n_steps: int, *, offset: float = 0.008, largest: float = 0.999) -> NoiseSchedule:
    """p_t = 1 − ᾱ_t/ᾱ_{t−1}, at most `largest`, with ᾱ of `cosine_alpha_bar` (Nichol & Dhariwal 2021, 2102.09672)."""
    return NoiseSchedule(tuple(min(p, largest) for p in _cosine_shares(n_steps, offset)), "cosine")


def cosine_square(n_steps: int, *, offset: float = 0.008, largest: float = 0.999) -> NoiseSchedule:
    """The square of `cosine`'s p_t: gentler at the start, so most of the noise comes in the last steps."""
    return NoiseSchedule(tuple(p * p for p in cosine(n_steps, offset=offset, largest=largest).p), "cosine_square")


def msquddpm(n_steps: int, *, k: float = 1.0, offset: float = 0.001) -> NoiseSchedule:
    """q_t = (1 − ᾱ_t/ᾱ_{t−1})^k with the cosine ᾱ, not capped: q_T = 1, all noise (MSQuDDPM, arXiv 2411.17608).

    k = 1 was published for the cluster, k = 2 for the circle. `offset` is the one in the authors' public code. That
    code applies q_t once per qubit, each time to the whole register; for one qubit this is the same.
    """
    if not (math.isfinite(k) and k > 0):
        raise InvalidInputError(f"the exponent k must be positive, not {k}")
    return NoiseSchedule(tuple(p**k for p in _cosine_shares(n_steps, offset)), "msquddpm")


def cosine_alpha_bar(u: float, offset: float) -> float:
    """ᾱ(u) = cos²(π/2 · (u + offset)/(1 + offset)), u = t/T; not divided by ᾱ(0), as only ratios are used."""
    return math.cos(math.pi / 2 * (u + offset) / (1 + offset)) ** 2


_SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "linear": linear,
    "cosine": cosine,
    "cosine_square": cosine_square,
    "constant": constant,
    "msquddpm": msquddpm,
}


def noise_schedule(name: str, n_steps: int, **settings: Any) -> NoiseSchedule:
    """A schedule by name: linear, cosine, cosine_square, constant or msquddpm; `settings` are that function's.

    Raises:
        UnknownNameError: no such schedule.
        InvalidInputError: a setting the schedule does not have, fewer than one step, or a p_t outside [0, 1].
    """
    if name not in _SCHEDULES:
        raise UnknownNameError.of("noise schedule", str(name), _SCHEDULES)
    make = _SCHEDULES[name]
    allowed = dict(make.__kwdefaults__ or {})
    foreign = sorted(set(settings) - set(allowed))
    if foreign:
        raise InvalidInputError(f"schedule {name!r} has no setting {', '.join(foreign)}; it has {', '.join(allowed)}")
    return make(n_steps, **settings)


def _cosine_shares(n_steps: int, offset: float) -> list[float]:
    _check_steps(n_steps)
    if not (math.isfinite(offset) and offset >= 0):
        raise InvalidInputError(f"the offset of a cosine schedule must be ≥ 0, not {offset}")
    bars = [cosine_alpha_bar(t / n_steps, offset) for t in range(n_steps + 1)]
    return [1 - after / before for before, after in pairwise(bars)]


def _check_steps(n_steps: int) -> None:
    if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
        raise InvalidInputError(f"a noise schedule needs a whole number of steps ≥ 1, not {n_steps!r}")
