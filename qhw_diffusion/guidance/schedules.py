"""Open-loop schedules of the guidance scale: the baselines. Each returns g [n_steps], the noisiest step first.

Every schedule is given by its **mean** over the steps, so that baselines can be compared at the same average guidance;
the shape parameter says how the mean is spread over the steps. Time runs from u = 0 (noise) to u = 1 (image).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError, UnknownNameError


def constant(g: float, n_steps: int) -> Tensor:
    """The same g at every step (classifier-free guidance as published, arXiv 2207.12598)."""
    _check(g, n_steps)
    return torch.full((n_steps,), float(g))


def linear_up(mean: float, n_steps: int, *, slope: float = 1.0) -> Tensor:
    """From mean·(1 − slope) up to mean·(1 + slope) (2404.13040: linear). slope in [0, 1]."""
    _check(mean, n_steps)
    _unit("slope", slope)
    return mean * (1.0 + slope * (2.0 * _time(n_steps) - 1.0))


def linear_down(mean: float, n_steps: int, *, slope: float = 1.0) -> Tensor:
    """The reverse of `linear_up`."""
    return linear_up(mean, n_steps, slope=slope).flip(0)


def cosine_up(mean: float, n_steps: int, *, slope: float = 1.0) -> Tensor:
    """Half a cosine from mean·(1 − slope) up to mean·(1 + slope), flat at both ends (2404.13040: cosine)."""
    _check(mean, n_steps)
    _unit("slope", slope)
    return mean * (1.0 - slope * torch.cos(math.pi * _time(n_steps)))


def limited_interval(mean: float, n_steps: int, *, lo: float = 0.2, hi: float = 0.8, outside: float = 1.0) -> Tensor:
    """Guidance on an interval of time only (arXiv 2404.07724); outside it, g = `outside` (1: plain conditional).

    lo, hi in [0, 1] as shares of the sampling time. The scale inside is set so that the mean comes out.
    """
    _check(mean, n_steps)
    if not 0 <= lo < hi <= 1:
        raise InvalidInputError(f"the interval needs 0 ≤ lo < hi ≤ 1, got lo={lo}, hi={hi}")
    centres = (torch.arange(n_steps) + 0.5) / n_steps
    inside = (centres >= lo) & (centres <= hi)
    count = int(inside.sum())
    if count == 0:
        raise InvalidInputError(f"no step of {n_steps} falls between {lo} and {hi}: widen the interval")
    scale = (mean * n_steps - outside * (n_steps - count)) / count
    if scale < 0:
        raise InvalidInputError(f"mean {mean} is out of reach with g = {outside} outside the interval")
    return torch.where(inside, torch.tensor(float(scale)), torch.tensor(float(outside)))


def clamped_linear(mean: float, n_steps: int, *, floor: float = 0.5) -> Tensor:
    """Linear rise from 0, never below `floor` × mean (arXiv 2404.13040's clamp-linear), rescaled to the mean."""
    _check(mean, n_steps)
    _unit("floor", floor)
    shape = torch.clamp(2.0 * _time(n_steps), min=floor)
    return mean * shape / shape.mean()


def exponential(mean: float, n_steps: int, *, rate: float = 1.0) -> Tensor:
    """ω₀ e^{−λt} (arXiv 2603.08155), t the remaining time from 1 to 0, so λ > 0 rises towards the image."""
    _check(mean, n_steps)
    if not math.isfinite(rate):
        raise InvalidInputError(f"rate must be finite, got {rate}")
    shape = torch.exp(-rate * (1.0 - _time(n_steps)))
    return mean * shape / shape.mean()


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "constant": constant,
    "linear_up": linear_up,
    "linear_down": linear_down,
    "cosine_up": cosine_up,
    "limited_interval": limited_interval,
    "clamped_linear": clamped_linear,
    "exponential": exponential,
}


def resampled(g: Tensor, n_steps: int) -> Tensor:
    """A schedule's scales at another number of steps: linear in t/T, the share of the steps still to do.

    t/T runs from 1 at the first step to 1/T at the last one; a smaller share than the schedule knows has the scale of
    its last step. With trailing timesteps t/T is the diffusion's own time.

    Args:
        g: scales, [T] or [T, B], noisiest step first.
        n_steps: the other number of steps, T'.

    Returns:
        Scales [T'] or [T', B].

    Raises:
        InvalidInputError: no steps.
    """
    if n_steps < 1 or len(g) < 1:
        raise InvalidInputError(f"a schedule needs one step or more, got {len(g)}, asked for at {n_steps}")
    own = len(g)
    # where step i of the new ones, t/T = 1 − i/T', lies among the own ones
    place = (torch.arange(n_steps, dtype=torch.float64) * own / n_steps).clamp(max=own - 1)
    before = place.floor().long()
    after = (before + 1).clamp(max=own - 1)
    share = (place - before).to(g.dtype).reshape(-1, *[1] * (g.ndim - 1))
    return g[before] * (1 - share) + g[after] * share


def schedule(name: str, mean: float, n_steps: int, **shape: float) -> Tensor:
    """A schedule by name at a mean guidance scale.

    Args:
        name: one of `SCHEDULES`.
        mean: mean of g over the steps.
        n_steps: number of steps.
        shape: the schedule's own parameters.

    Returns:
        The scales g, [n_steps].

    Raises:
        UnknownNameError: no such schedule.
    """
    if name not in SCHEDULES:
        raise UnknownNameError.of("schedule", name, SCHEDULES)
    return SCHEDULES[name](mean, n_steps, **shape)


def _time(n_steps: int) -> Tensor:
    return torch.full((1,), 0.5) if n_steps == 1 else torch.linspace(0.0, 1.0, n_steps)


def _check(g: float, n_steps: int) -> None:
    if n_steps < 1:
        raise InvalidInputError(f"n_steps must be at least 1, got {n_steps}")
    if not (math.isfinite(g) and g >= 0):
        raise InvalidInputError(f"a guidance scale must be finite and not negative, got {g}")


def _unit(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InvalidInputError(f"{name} must lie in [0, 1], got {value}")
