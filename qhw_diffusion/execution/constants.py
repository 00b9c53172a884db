"""Observables that are constants (multiples of the identity): their values are known, and nothing is run for them.

Primitives and devices refuse an empty observable, and no mitigation has anything to correct; so only what varies is
handed on, and the constants are put in their places afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import Estimate, Experiment, check_parameters


@dataclass(frozen=True, eq=False)
class Parts:
    """A compiled circuit taken apart.

    Attributes:
        varying: the circuit with those observables only that are no constants: itself if there is no constant, None if
            there is nothing else.
        places: which observables these are.
        constants: [M] the constants; 0 for the others.
    """

    varying: CompiledCircuit | None
    places: tuple[int, ...]
    constants: np.ndarray


# None for a circuit without constants: its parts would hold the circuit, which could never be forgotten
_made: WeakKeyDictionary[CompiledCircuit, Parts | None] = WeakKeyDictionary()


def parts_of(compiled: CompiledCircuit) -> Parts:
    """The circuit's varying observables and its constants; made once, since simulators are kept with circuits."""
    if compiled not in _made:
        _made[compiled] = _take_apart(compiled)
    return _made[compiled] or Parts(compiled, tuple(range(compiled.n_observables)), np.zeros(compiled.n_observables))


def _take_apart(compiled: CompiledCircuit) -> Parts | None:
    constant = [not (o.paulis.x | o.paulis.z).any() for o in compiled.observables]
    if not any(constant):
        return None
    places = tuple(m for m, known in enumerate(constant) if not known)
    kept = tuple(compiled.observables[m] for m in places)
    values = [float(o.coeffs.sum().real) if c else 0.0 for o, c in zip(compiled.observables, constant, strict=True)]
    return Parts(replace(compiled, observables=kept) if kept else None, places, np.array(values))


def evaluate_varying(
    experiments: Sequence[Experiment], evaluate: Callable[[list[Experiment]], list[Estimate]]
) -> list[Estimate]:
    """Estimates of all experiments; `evaluate` is asked for what is not constant, and not at all if nothing is left.

    Constants have standard errors and gradients of zero.

    Raises:
        InvalidInputError: parameters of another shape or not finite, where nothing is evaluated.
    """
    parts = [parts_of(compiled) for compiled, _ in experiments]
    asked = [(p.varying, rows) for p, (_, rows) in zip(parts, experiments, strict=True) if p.varying is not None]
    estimates = iter(evaluate(asked) if asked else ())
    result = []
    for part, (compiled, rows) in zip(parts, experiments, strict=True):
        if part.varying is None:
            rows = check_parameters(compiled, rows)
            values = torch.from_numpy(part.constants).to(rows) + 0 * rows.sum(1, keepdim=True)
            result.append(Estimate(values, torch.zeros_like(values.detach())))
        elif part.varying is compiled:
            result.append(next(estimates))
        else:
            estimate = next(estimates)
            values = _put(estimate.values, part, torch.from_numpy(part.constants))
            errors = _put(estimate.std_errors, part, torch.zeros(len(part.constants)))
            result.append(Estimate(values, errors, estimate.usage))
    return result


def _put(varying: Tensor, part: Parts, constants: Tensor) -> Tensor:
    """[B, M'] in their places among the constants [M]: [B, M]."""
    order = [part.places.index(m) if m in part.places else varying.shape[1] + m for m in range(len(constants))]
    return torch.cat([varying, constants.to(varying).expand(len(varying), -1)], dim=1)[:, order]
