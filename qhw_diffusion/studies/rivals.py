"""The open-loop rivals: which schedules take part, and the small grids their parameters are tuned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.schedules import schedule

LABELS = {
    "constant": "best constant",
    "linear_up": "linear, rising",
    "linear_down": "linear, falling",
    "cosine_up": "cosine, rising",
    "limited_interval": "limited interval",
    "clamped_linear": "clamped linear",
    "exponential": "exponential",
}

_SHAPES: dict[str, list[dict[str, float]]] = {
    "linear_up": [{"slope": 0.3}, {"slope": 0.7}],
    "linear_down": [{"slope": 0.3}, {"slope": 0.7}],
    "cosine_up": [{"slope": 0.3}, {"slope": 0.7}],
    "limited_interval": [{"lo": 0.0, "hi": 0.7}, {"lo": 0.2, "hi": 0.8}, {"lo": 0.3, "hi": 1.0}],
    "clamped_linear": [{"floor": 0.3}, {"floor": 0.7}],
    "exponential": [{"rate": -0.5}, {"rate": 0.5}, {"rate": 1.0}],
}


@dataclass(frozen=True)
class Schedule:
    """One schedule with its parameters: `mean` scale over the steps and the shape."""

    name: str
    mean: float
    shape: dict[str, float] = field(default_factory=dict)

    def scales(self, n_steps: int) -> Tensor:
        """g [n_steps], noisiest step first."""
        return schedule(self.name, self.mean, n_steps, **self.shape)

    def describe(self) -> str:
        """`limited interval, mean 1.5, lo 0.2, hi 0.8`."""
        if self.name == "constant":
            return f"{LABELS['constant']}, g = {self.mean:g}"
        shape = ", ".join(f"{name} {value:g}" for name, value in self.shape.items())
        return f"{LABELS[self.name]}, mean {self.mean:.3g}, {shape}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def candidates(best_constant: float, means: Sequence[float], n_steps: int) -> dict[str, list[Schedule]]:
    """Every schedule's grid: `means` (in units of the best constant) × shapes.

    A limited interval is plain conditional sampling (g = 1) outside, so its mean is taken above 1, in units of the
    best constant's distance from 1. Combinations that do not exist at this number of steps are left out.
    """
    grid: dict[str, list[Schedule]] = {}
    for name, shapes in _SHAPES.items():
        found = []
        for factor in means:
            mean = best_constant * factor
            if name == "limited_interval":
                mean = 1.0 + (best_constant - 1.0) * factor
            for shape in shapes:
                candidate = Schedule(name, mean, shape)
                try:
                    candidate.scales(n_steps)
                except InvalidInputError:
                    continue
                found.append(candidate)
        if found:
            grid[name] = found
    return grid
