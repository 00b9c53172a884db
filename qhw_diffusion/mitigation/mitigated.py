"""`Mitigated`, an engine behind a list of strategies; what the strategies make of a circuit, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Engine, Estimate, Experiment, Plan, Usage
from qhw_diffusion.execution.engine import Record, check_parameters, evaluate_varying, parts_of, rows_of
from qhw_diffusion.execution.engines import engine_of
from qhw_diffusion.mitigation.checks import calibrated, check_strategies, combined, constructed, labels_of
from qhw_diffusion.mitigation.strategy import Calibration, Need, Strategy, numbered, zero_rows

# A standard error that stands for an infinite one, to see which values depend on it
_SMALL = 1e-3
# Estimates of the leaves, then of the calibrations
_Evaluate = Callable[["Expansion"], list[Estimate]]


@dataclass(frozen=True)
class Mitigated(Engine):
    """Expectation values of an engine, corrected by strategies.

    The last strategy of the list expands first, the first one stands next to the engine: with
    ``[Readout(), ZNE()]`` ZNE makes scaled circuits, every one of them is corrected for readout, then ZNE extrapolates.
    Whatever the strategies make, the engine gets all circuits of one evaluation, calibration included, in one call of
    `estimate_many`: on a device, one job. Observables that are constants have nothing to correct and are left out.

    Calibrations are kept in this object, for each set of qubits; a new object calibrates again.

    Args:
        engine: ``"noisy"``, ``"shots:4096"``, … or any `Engine`; the strategies of one that is mitigated come first.
        strategies: at least one.

    Raises:
        InvalidInputError: no strategy, or something else in the list.
        UnknownNameError: no such engine.
    """

    engine: str | Engine
    strategies: Sequence[Strategy]
    differentiable: bool = field(init=False, compare=False)  # type: ignore[misc]  # a property of these two
    name: ClassVar[str] = "mitigated"
    mitigated: ClassVar[bool] = True
    _calibrations: dict[Any, list[Estimate]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        engine = engine_of(self.engine)
        given = [self.strategies] if isinstance(self.strategies, Strategy) else list(self.strategies)
        wrong = [s for s in given if not isinstance(s, Strategy)]
        if wrong or not given:
            raise InvalidInputError(
                f"strategies must be a list of at least one mitigation strategy, for example [Readout(), ZNE()]; given "
                f"{wrong[0] if wrong else 'an empty list'!r}"
            )
        if type(engine) is Mitigated:  # strategies on strategies are one list, and one text
            given = [*engine.strategies, *given]
            engine = engine.base
        object.__setattr__(self, "engine", engine)
        object.__setattr__(self, "strategies", tuple(given))
        object.__setattr__(
            self, "differentiable", engine.differentiable and all(strategy.differentiable for strategy in given)
        )

    @property
    def base(self) -> Engine:
        """The engine that evaluates the circuits."""
        assert isinstance(self.engine, Engine)
        return self.engine

    @property
    def spec(self) -> str | None:
        """Text that makes an equal engine; None if the engine or one of the strategies has none."""
        known = self.base.spec is not None and all(strategy.spec is not None for strategy in self.strategies)
        return self.label if known else None

    @property
    def label(self) -> str:
        """The text, as far as there is one."""
        return "+".join([self.base.label, *(strategy.spec or strategy.label for strategy in self.strategies)])

    def plan(self, compiled: CompiledCircuit, rows: int) -> Plan:
        """What the strategies make of an evaluation at so many rows, and their calibrations; nothing is evaluated.

        Raises:
            InvalidInputError: rows below 1; what the strategies raise for a circuit they cannot treat.
        """
        self._check_strategies(compiled)
        expansion = planned(self.strategies, compiled, rows)
        sent = (expansion.leaves, expansion.calibrations)
        return Plan(*(tuple((circuit, len(values)) for circuit, values in made) for made in sent))

    def circuits_of(self, compiled: CompiledCircuit, rows: int) -> int:
        """As the engine counts them that evaluates the circuits."""
        return self.base.circuits_of(compiled, rows)

    def check(self, compiled: CompiledCircuit) -> None:
        """Raise if the engine or a strategy cannot treat the circuit; strategies of a user's own are tried out."""
        self.base.check(compiled)
        self._check_strategies(compiled)

    def _check_strategies(self, compiled: CompiledCircuit) -> None:
        varying = parts_of(compiled).varying
        if varying is not None:
            check_strategies(self.strategies, varying, self.base)

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        """Corrected values and standard errors [B, M] of rows [B, P]; see `Engine.estimate`."""
        return self.estimate_many([(compiled, parameters)])[0]

    def estimate_many(self, experiments: Sequence[Experiment]) -> list[Estimate]:
        """The same of several circuits, all of them and their calibrations in one call of the engine."""
        checked = [(compiled, check_parameters(compiled, parameters)) for compiled, parameters in experiments]
        with torch.no_grad():
            return evaluate_varying(checked, lambda varying: self._run(varying, self._evaluate))

    def _evaluate(self, expansion: Expansion) -> list[Estimate]:
        packages = ["mitiq"] if any(Need.MITIQ in strategy.needs for strategy in self.strategies) else []
        engine = self.base.labelled(expansion.all_labels, packages)
        return engine.estimate_many([*expansion.leaves, *expansion.calibrations])

    def expectation(
        self, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record = lambda usage: None
    ) -> Tensor:
        """[B, inputs], [weights] → [B, M], differentiable where the engine and all strategies are."""
        if not self.differentiable:
            return super().expectation(compiled, inputs, weights, record)

        def evaluate(expansion: Expansion) -> list[Estimate]:
            leaves, asked = expansion.leaves, expansion.calibrations
            results = []
            for circuit, rows in leaves:
                # The rows have been passed on as they are, so they share the weights: those of the first stand for all
                x, w = rows[:, : circuit.n_inputs], rows[0, circuit.n_inputs :]
                values = self.base.expectation(circuit, x, w, record)
                results.append(Estimate(values, torch.zeros_like(values)))
            with torch.no_grad():
                calibration = self.base.estimate_many(asked)
            for estimate in calibration:
                record(estimate.usage)
            return [*results, *calibration]

        rows = rows_of(inputs, weights)
        return evaluate_varying([(compiled, rows)], lambda varying: self._run(varying, evaluate))[0].values

    def _run(self, experiments: list[Experiment], evaluate: _Evaluate) -> list[Estimate]:
        for compiled, _ in experiments:
            check_strategies(self.strategies, compiled, self.base, own_only=True)
        expansion = expand(self.strategies, experiments, self._calibrations)
        levels, sizes, keys, wanted = expansion.levels, expansion.sizes, expansion.keys, expansion.wanted
        asked = expansion.calibrations
        results = evaluate(expansion)
        estimates, answers = results[: len(levels[-1])], results[len(levels[-1]) :]
        for key, calibration in wanted.items():
            self._calibrations[key] = answers[: len(calibration.experiments)]
            answers = answers[len(calibration.experiments) :]
        for strategy in self.strategies:
            levels.pop()
            parents, groups, calibrated = levels[-1], sizes.pop(), keys.pop()
            combined, at = [], 0
            for (compiled, rows), size, key in zip(parents, groups, calibrated, strict=True):
                children = estimates[at : at + size]
                estimate = _combined(strategy, children, compiled, rows, self._calibrations.get(key, ()))
                combined.append(replace(estimate, usage=reduce(add, (child.usage for child in children), Usage())))
                at += size
            estimates = combined
        # The first evaluation pays for the calibration
        paid = reduce(add, (result.usage for result in results[len(results) - len(asked) :]), Usage())
        estimates[0] = replace(estimates[0], usage=estimates[0].usage + paid)
        return estimates


def _combined(
    strategy: Strategy, children: Sequence[Estimate], compiled: CompiledCircuit, rows: Tensor, calibration: Any
) -> Estimate:
    """What the strategy makes of estimates whose standard errors may be infinite.

    A value that depends on such a one has an infinite standard error itself, and the others have none of it: strategies
    are asked with small errors in place of the infinite ones, so that 0 · ∞ does not become NaN in any of them.
    """
    given, count = [*children, *calibration], len(children)
    if all(bool(estimate.std_errors.isfinite().all()) for estimate in given):
        return combined(strategy, children, compiled, rows, calibration)

    def combine(errors: Callable[[Tensor], Tensor]) -> Estimate:
        changed = [replace(estimate, std_errors=errors(estimate.std_errors)) for estimate in given]
        return combined(strategy, changed[:count], compiled, rows, changed[count:])

    known = combine(lambda errors: errors.masked_fill(errors.isinf(), 0.0))
    without = combine(torch.zeros_like).std_errors
    touched = combine(lambda errors: _SMALL * errors.isinf().to(errors)).std_errors != without
    return replace(known, std_errors=known.std_errors.masked_fill(touched, torch.inf), covariance=None)


@dataclass(frozen=True)
class Expansion:
    """What a list of strategies makes of experiments, the last strategy first.

    Attributes:
        levels: experiments before the first expansion, and after each.
        sizes: for each expansion into how many every experiment was expanded.
        keys: for each expansion the key of the calibration that every experiment needs, None for none.
        wanted: calibrations that are not there yet, by their keys: each is made once, whoever needs it.
        labels: what each of the leaves is.
    """

    levels: list[list[Experiment]]
    sizes: list[list[int]]
    keys: list[list[Any]]
    wanted: dict[Any, Calibration]
    labels: list[str] = field(default_factory=list)

    @property
    def leaves(self) -> list[Experiment]:
        """What the engine evaluates besides calibrations."""
        return self.levels[-1]

    @property
    def calibrations(self) -> list[Experiment]:
        """Experiments of the calibrations that are wanted, in order."""
        return [experiment for calibration in self.wanted.values() for experiment in calibration.experiments]

    @property
    def all_labels(self) -> list[str]:
        """Of the leaves, then of the calibrations."""
        return [*self.labels, *(label for calibration in self.wanted.values() for label in calibration.labels)]


def expand(
    strategies: Sequence[Strategy], experiments: Sequence[Experiment], known: Container[Any] = (), *, dry: bool = False
) -> Expansion:
    """Expand experiments by all strategies.

    Args:
        strategies: the one next to the engine first.
        experiments: circuits and their rows.
        known: keys of calibrations that are there.
        dry: with `Strategy.plan` in place of `Strategy.construct`, to count.
    """
    expansion = Expansion([list(experiments)], [], [], {})
    labels = [""] * len(experiments)
    for strategy in reversed(strategies):
        expanded = [constructed(strategy, *experiment, dry=dry) for experiment in expansion.leaves]
        if not dry:
            labels = [
                "; ".join(filter(None, (before, label)))
                for before, (compiled, _), made in zip(labels, expansion.leaves, expanded, strict=True)
                for label in labels_of(strategy, compiled, made)
            ]
        keys = []
        for compiled, _ in expansion.leaves:
            calibration = calibrated(strategy, compiled)
            key = None if calibration is None else (strategy.spec or id(strategy), *calibration.key)
            if calibration is not None and key not in known:
                numbers = numbered(f"{strategy.label}, calibration", len(calibration.experiments))
                expansion.wanted[key] = replace(calibration, labels=calibration.labels or tuple(numbers))
            keys.append(key)
        expansion.keys.append(keys)
        expansion.sizes.append([len(children) for children in expanded])
        expansion.levels.append([child for children in expanded for child in children])
    expansion.labels.extend(label or "circuit" for label in labels)
    return expansion


def planned(strategies: Sequence[Strategy], compiled: CompiledCircuit, rows: int) -> Expansion:
    """What the first evaluation at so many rows would send, with zeros for parameters; nothing is evaluated.

    Observables that are constants send nothing.

    Raises:
        InvalidInputError: rows below 1; what the strategies raise for a circuit they cannot treat.
    """
    zeros, varying = zero_rows(compiled, rows), parts_of(compiled).varying
    if varying is None:
        return expand(strategies, [], dry=True)
    check_strategies(strategies, varying)
    return expand(strategies, [(varying, zeros)], dry=True)
