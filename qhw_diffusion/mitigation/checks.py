"""Checks of what strategies of a user's own make; each is tried out on the circuit before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from qhw_diffusion.errors import EngineError, InvalidInputError, QhwError
from qhw_diffusion.execution import CompiledCircuit, Engine, Estimate, Experiment, Ideal, Noisy
from qhw_diffusion.execution.conditions import refuse_conditions
from qhw_diffusion.execution.engine import circuits_with_shots
from qhw_diffusion.execution.program import reduced_terms
from qhw_diffusion.extensions import raised_text
from qhw_diffusion.mitigation.rewriting import kept
from qhw_diffusion.mitigation.strategy import Calibration, Cost, Strategy, built_in

# A strategy is tried out with so many rows, on simulated values if its circuits are as small as this
_ROWS, _MOST_QUBITS, _MOST_CIRCUITS = 2, 6, 200
_STD_ERROR = 0.01

T = TypeVar("T")


def check_strategies(
    strategies: Sequence[Strategy], compiled: CompiledCircuit, engine: Engine | None = None, *, own_only: bool = False
) -> None:
    """Raise if a strategy cannot treat the circuit, lacks what it needs, or is a user's own and does something wrong.

    Args:
        strategies: of one list.
        compiled: without observables that are constants.
        engine: that evaluates their circuits; None: not known yet.
        own_only: leave the built-in ones out.

    Raises:
        InvalidInputError, EngineError: the message names the strategy and what is wrong.
        MissingDependencyError, UnsupportedCircuitError, …: what `Strategy.check` and `Need.check` raise.
    """
    for strategy in strategies:
        if built_in(strategy) and own_only:
            continue
        if not strategy.new_observables:  # it rewrites the circuit
            refuse_conditions(compiled.isa, f"mitigation strategy {strategy.label}")
        strategy.check(compiled)
        for need in sorted(strategy.needs, key=lambda need: need.name):
            try:
                need.check(compiled, engine)
            except InvalidInputError as error:
                raise InvalidInputError(f"mitigation strategy {strategy.label}: {error}") from error
        done, key = kept(compiled).setdefault("tried out", {}), strategy.spec or id(strategy)
        if not built_in(strategy) and key not in done:
            with torch.inference_mode(False), torch.enable_grad():  # whatever is asked for in between
                try_out(strategy, compiled)
            done[key] = strategy  # it lives as long, so that its id stays its own


def try_out(strategy: Strategy, compiled: CompiledCircuit) -> None:
    """Construct, count and combine once with two rows of random parameters; nothing is sent anywhere.

    The values to combine are simulated where the circuits are small; else they are made up, and only shapes are looked
    at.

    Raises:
        InvalidInputError: no circuits, other observables, a stated cost that is not that of the circuits, an estimate
            of another shape, NaN, or a gradient that is cut though `differentiable` says otherwise.
        EngineError: the strategy fails with an error that is not the package's.
    """
    generator = torch.Generator().manual_seed(0)
    wide = compiled.n_inputs + compiled.n_weights
    rows = 2 * torch.rand(_ROWS, wide, generator=generator, dtype=torch.float64) - 1
    rows[1:, compiled.n_inputs :] = rows[0, compiled.n_inputs :]
    made, calibration = constructed(strategy, compiled, rows), calibrated(strategy, compiled)
    asked = () if calibration is None else calibration.experiments
    labels_of(strategy, compiled, made)
    _check_cost(strategy, compiled, made, asked)
    if strategy.differentiable:
        _check_rows(strategy, made)
    simulated = _simulated([*made, *asked])
    answers = _made_up([*made, *asked]) if simulated is None else simulated
    estimates = [Estimate(e.values.clone().requires_grad_(), e.std_errors, e.usage) for e in answers[: len(made)]]
    try:
        estimate = combined(strategy, estimates, compiled, rows, answers[len(made) :], finite=simulated is not None)
    except InvalidInputError:
        raise
    except EngineError:
        if simulated is not None:
            raise
        return  # it may be the values, which are not those of any circuit
    except QhwError:
        return  # a refusal of these values
    if strategy.differentiable and not estimate.values.requires_grad:
        raise InvalidInputError(
            f"mitigation strategy {strategy.label} says that it is differentiable, but combine cuts the gradient: "
            "compute with torch operations, or set differentiable = False"
        )


def constructed(strategy: Strategy, compiled: CompiledCircuit, rows: Tensor, *, dry: bool = False) -> list[Experiment]:
    """What the strategy's `construct` (or, dry, `plan`) makes, checked if it is a user's own.

    Raises:
        InvalidInputError: it is no list of at least one circuit with its rows of parameters, or measures other
            observables than the circuit given.
        EngineError: it fails with an error that is not the package's.
    """
    what = "plan" if dry else "construct"
    make = strategy.plan if dry else strategy.construct
    if built_in(strategy):
        return make(compiled, rows)
    made = _called(strategy, what, lambda: make(compiled, rows))
    if not isinstance(made, (list, tuple)) or not made:
        given = "no circuits" if isinstance(made, (list, tuple)) else f"a {type(made).__name__}"
        raise InvalidInputError(
            f"mitigation strategy {strategy.label}: {what} returned {given}; wanted: a list of at least one "
            "(compiled circuit, rows of parameters)"
        )
    for number, experiment in enumerate(made):
        _check_experiment(strategy, f"{what} returned as circuit {number}", experiment)
        if not strategy.new_observables and not _same_observables(experiment[0], compiled):
            raise InvalidInputError(
                f"mitigation strategy {strategy.label}: circuit {number} of {what} measures other observables than the "
                "circuit given; keep them (replace(compiled, isa=…) does), or say new_observables = True"
            )
    return list(made)


def labels_of(strategy: Strategy, compiled: CompiledCircuit, made: Sequence[Experiment]) -> list[str]:
    """What the strategy's `labels` says of the circuits it made, checked if it is a user's own.

    Raises:
        InvalidInputError: no list of a text for each circuit.
        EngineError: it fails with an error that is not the package's.
    """
    if built_in(strategy):
        return strategy.labels(compiled, made)
    labels = _called(strategy, "labels", lambda: strategy.labels(compiled, made))
    if not isinstance(labels, (list, tuple)) or len(labels) != len(made) or not all(isinstance(x, str) for x in labels):
        raise InvalidInputError(
            f"mitigation strategy {strategy.label}: labels returned {labels!r}; wanted: a text for each of the "
            f"{len(made)} circuits that construct made"
        )
    return list(labels)


def calibrated(strategy: Strategy, compiled: CompiledCircuit) -> Calibration | None:
    """What the strategy's `calibration` asks for, checked if it is a user's own.

    Raises:
        InvalidInputError, EngineError: as `constructed`.
    """
    if built_in(strategy):
        return strategy.calibration(compiled)
    calibration = _called(strategy, "calibration", lambda: strategy.calibration(compiled))
    if calibration is None:
        return None
    if not isinstance(calibration, Calibration):
        raise InvalidInputError(
            f"mitigation strategy {strategy.label}: calibration returned a {type(calibration).__name__}; wanted: a "
            "Calibration, or None"
        )
    if calibration.labels and len(calibration.labels) != len(calibration.experiments):
        raise InvalidInputError(
            f"mitigation strategy {strategy.label}: calibration has {len(calibration.labels)} labels for "
            f"{len(calibration.experiments)} circuits; give one for each, or none"
        )
    for number, experiment in enumerate(calibration.experiments):
        _check_experiment(strategy, f"calibration asks as circuit {number} for", experiment)
    return calibration


def combined(
    strategy: Strategy,
    estimates: Sequence[Estimate],
    compiled: CompiledCircuit,
    rows: Tensor,
    calibration: Sequence[Estimate],
    *,
    finite: bool = True,
) -> Estimate:
    """What the strategy's `combine` makes, checked if it is a user's own.

    Args:
        strategy: of a list.
        estimates: as for `Strategy.combine`.
        compiled: as for `Strategy.combine`.
        rows: as for `Strategy.combine`.
        calibration: as for `Strategy.combine`.
        finite: refuse NaN and infinite values.

    Raises:
        InvalidInputError: no Estimate, another shape, or not finite.
        EngineError: it fails with an error that is not the package's.
    """
    if built_in(strategy):
        return strategy.combine(estimates, compiled, rows, calibration)
    estimate = _called(strategy, "combine", lambda: strategy.combine(estimates, compiled, rows, calibration))
    if not isinstance(estimate, Estimate):
        raise InvalidInputError(
            f"mitigation strategy {strategy.label}: combine returned a {type(estimate).__name__}; wanted: an Estimate"
        )
    wanted = (len(rows), compiled.n_observables)
    known = all(bool(e.values.isfinite().all()) and bool(e.std_errors.isfinite().all()) for e in estimates)
    for name, tensor in (("values", estimate.values), ("std_errors", estimate.std_errors)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tuple(tensor.shape) != wanted:
            shape = f"of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            kind = f", {tensor.dtype}" if isinstance(tensor, Tensor) else ""
            raise InvalidInputError(
                f"mitigation strategy {strategy.label}: combine returned {name} {shape}{kind}; wanted: real numbers of "
                f"shape {wanted}, [rows, observables]"
            )
        if finite and known and not bool(tensor.isfinite().all()):
            raise InvalidInputError(
                f"mitigation strategy {strategy.label}: combine returned {name} with NaN or infinity, of estimates "
                "without"
            )
    return estimate


def _called(strategy: Strategy, what: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except QhwError:
        raise
    except Exception as error:
        raise EngineError(f"mitigation strategy {strategy.label}: {what} fails: {raised_text(error)}") from error


def _check_experiment(strategy: Strategy, what: str, experiment: Any) -> None:
    if not isinstance(experiment, (tuple, list)) or len(experiment) != 2 or not isinstance(
        experiment[0], CompiledCircuit
    ):  # fmt: skip
        raise InvalidInputError(
            f"mitigation strategy {strategy.label}: {what} {type(experiment).__name__}; wanted: (compiled circuit, "
            "rows of parameters)"
        )
    circuit, rows = experiment
    wide = circuit.n_inputs + circuit.n_weights
    if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != wide or not len(rows):
        given = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise InvalidInputError(
            f"mitigation strategy {strategy.label}: {what} one with rows {given}; wanted: [rows, {wide}], one column "
            "for each of its inputs and weights"
        )
    if not circuit.observables:
        raise InvalidInputError(f"mitigation strategy {strategy.label}: {what} one without observables")


def _same_observables(one: CompiledCircuit, other: CompiledCircuit) -> bool:
    """On the qubits in use, in their order: a circuit may be placed elsewhere."""
    if one.observables is other.observables:
        return True
    terms = [[sorted(reduced_terms(o, each.physical_qubits)) for o in each.observables] for each in (one, other)]
    return terms[0] == terms[1]


def _check_cost(
    strategy: Strategy, compiled: CompiledCircuit, made: Sequence[Experiment], asked: Sequence[Experiment]
) -> None:
    taken = Cost(*(sum(circuits_with_shots(c, len(v)) for c, v in each) for each in (made, asked)))
    zeros = torch.zeros(_ROWS, compiled.n_inputs + compiled.n_weights, dtype=torch.float64)
    planned = constructed(strategy, compiled, zeros, dry=True)
    stated = _called(strategy, "cost", lambda: strategy.cost(compiled, _ROWS))
    counts = [[(circuits_with_shots(c, len(v)), len(v)) for c, v in each] for each in (planned, made)]
    if stated != taken or counts[0] != counts[1]:
        raise InvalidInputError(
            f"mitigation strategy {strategy.label} states for {_ROWS} rows {stated}, with {len(planned)} circuits in "
            f"plan, but construct and calibration make {taken}, with {len(made)}; leave cost and plan out, which then "
            "follow from construct"
        )


def _check_rows(strategy: Strategy, made: Sequence[Experiment]) -> None:
    for circuit, rows in made:
        weights = rows[:, circuit.n_inputs :]
        if not bool((weights == weights[:1]).all()):
            raise InvalidInputError(
                f"mitigation strategy {strategy.label} says that it is differentiable, but its rows have different "
                "weights: pass rows on as they are, or set differentiable = False"
            )


def _simulated(experiments: Sequence[Experiment]) -> list[Estimate] | None:
    """Exact values with the device's noise; None for circuits that are too large or that the simulator refuses."""
    if sum(circuits_with_shots(c, len(v)) for c, v in experiments) > _MOST_CIRCUITS or any(
        len(circuit.physical_qubits) > _MOST_QUBITS for circuit, _ in experiments
    ):
        return None
    try:
        engine = Noisy() if experiments[0][0].device.has_noise else Ideal()
        values = [engine.estimate(circuit, rows).values for circuit, rows in experiments]
    except QhwError:
        return None
    return [Estimate(each, torch.full_like(each, _STD_ERROR)) for each in values]


def _made_up(experiments: Sequence[Experiment]) -> list[Estimate]:
    """Different values, none of them near 0 or 1."""
    result = []
    for number, (circuit, rows) in enumerate(experiments):
        values = torch.linspace(0.2, 0.8, len(rows) * circuit.n_observables, dtype=torch.float64)
        values = values.reshape(len(rows), circuit.n_observables) / (1 + 0.1 * number)
        result.append(Estimate(values, torch.full_like(values, _STD_ERROR)))
    return result
