"""Weights to start from: uniform, and within the range of angles that the device takes for some gates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.compile import CompiledCircuit

_SWEEPS = 20


def initial_weights(compiled: CompiledCircuit, generator: torch.Generator) -> Tensor:
    """[weights] float64, uniform in [−π, π).

    Where the device takes only a range of angles for a gate (fractional rzz), weights in such angles are uniform among
    those that keep all of them in range: drawn one after the other given the others (Gibbs sampling). Where inputs are
    in such an angle too, they are taken as 0, if that leaves any weights.

    Raises:
        InvalidInputError: no weights keep all angles in range.
    """
    weights = (torch.rand(compiled.n_weights, generator=generator, dtype=torch.float64) * 2 - 1) * torch.pi
    names = {instruction.operation.name for instruction in compiled.isa.data}
    if not any(compiled.device.angle_limits(name) for name in names):
        return weights
    program = compiled.program
    limits = [limit for limit in program.limits if program.weight_coefficients[limit[0]].any()]
    strict = [limit for limit in limits if not program.input_coefficients[limit[0]].any()]
    start = None
    for kept in (limits, strict) if len(strict) < len(limits) else (limits,):
        rows = [index for index, *_ in kept]
        slopes = program.weight_coefficients[rows]
        lower = np.array([low for _, _, low, _ in kept]) - program.offsets[rows]
        upper = np.array([high for *_, high in kept]) - program.offsets[rows]
        start = next((s for box in (np.pi, np.inf) if (s := _centre(slopes, lower, upper, box)) is not None), None)
        if start is not None:
            break
    if start is None:
        raise InvalidInputError(
            f"no weights keep all angles of {limits[0][1]} in the range that {compiled.device.name} takes; change the "
            "angles, or compile for the device without fractional gates"
        )
    return _gibbs(weights, start, slopes, lower, upper, generator)


def _centre(slopes: np.ndarray, lower: np.ndarray, upper: np.ndarray, box: float) -> np.ndarray | None:
    """Weights in [−box, box] with lower ≤ slopes·w ≤ upper, far from all bounds; None if there are none."""
    from scipy.optimize import linprog

    n = slopes.shape[1]
    if not len(slopes):
        return np.zeros(n)
    margins = np.linalg.norm(slopes, axis=1)[:, None]
    found = linprog(
        np.array([0.0] * n + [-1.0]),
        A_ub=np.block([[slopes, margins], [-slopes, margins]]),
        b_ub=np.concatenate([upper, -lower]),
        bounds=[(-box, box)] * n + [(0, None)],
    )
    return np.asarray(found.x[:-1]) if found.success else None


def _gibbs(
    drawn: Tensor,
    start: np.ndarray,
    slopes: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    generator: torch.Generator,
) -> Tensor:
    """Uniform weights with lower ≤ slopes·w ≤ upper, from `start`, which has it; others than those as `drawn`."""
    weights, bound = drawn.numpy().copy(), np.flatnonzero(slopes.any(axis=0))
    weights[bound] = start[bound]
    for _ in range(_SWEEPS):
        for at, chance in zip(bound, torch.rand(len(bound), generator=generator, dtype=torch.float64), strict=True):
            slope = slopes[:, at]
            in_it = slope != 0
            rest = slopes[in_it] @ weights - slope[in_it] * weights[at]
            ends = np.sort([(lower[in_it] - rest) / slope[in_it], (upper[in_it] - rest) / slope[in_it]], axis=0)
            low, high = ends[0].max(), ends[1].min()
            if low < np.pi and high > -np.pi:
                low, high = max(low, -np.pi), min(high, np.pi)
            weights[at] = low + float(chance) * max(high - low, 0.0)
    return torch.from_numpy(weights)
