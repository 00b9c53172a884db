"""What a mitigation strategy is: it makes other circuits of one circuit, and one estimate of their estimates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from qiskit import QuantumCircuit
from qiskit.transpiler import generate_preset_pass_manager
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment, Usage
from qhw_diffusion.execution.constants import parts_of
from qhw_diffusion.execution.engine import circuits_with_shots

# A strategy makes no more circuits than this of one
MOST_CIRCUITS = 10_000


@dataclass(frozen=True)
class Cost:
    """What evaluations of one circuit at so many rows take, counted on the circuits that are made for it.

    Attributes:
        circuits: executed in every evaluation: rows of parameters times groups of observables measured together, of
            all circuits of the strategies. Each gets the engine's full number of shots.
        calibration_circuits: executed besides in the first evaluation on these qubits.
    """

    circuits: int
    calibration_circuits: int = 0

    def usage(self, shots: int, *, first: bool = True) -> Usage:
        """Of one evaluation at so many shots of each circuit; `first`: with the calibration."""
        circuits = self.circuits + (self.calibration_circuits if first else 0)
        return Usage(circuits, circuits * shots)


@dataclass(frozen=True)
class Calibration:
    """Circuits a strategy needs once, before it can correct anything.

    Attributes:
        key: evaluations with equal keys share the calibration.
        experiments: circuits with observables of their own, and their rows of parameters.
    """

    key: tuple[Any, ...]
    experiments: tuple[Experiment, ...]


class Strategy(ABC):
    """One way to lessen errors. Strategies are configuration: `Mitigated` runs them.

    `construct` and `combine` are functions of their arguments alone: nothing is remembered in between.

    Attributes:
        name: what tables and texts call it.
        differentiable: whether `construct` passes the rows on as they are and `combine` is torch all the way, so that a
            gradient goes through.
    """

    name: ClassVar[str]
    differentiable: ClassVar[bool] = True

    @property
    def spec(self) -> str:
        """Text from which `strategy_of` makes an equal strategy."""
        return self.name

    @abstractmethod
    def construct(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        """The circuits to evaluate in place of this one.

        Args:
            compiled: the circuit with its M observables.
            rows: [B, P] radians.

        Raises:
            UnsupportedCircuitError: a circuit the strategy has no way to treat.
        """

    @abstractmethod
    def combine(
        self,
        estimates: Sequence[Estimate],
        compiled: CompiledCircuit,
        rows: Tensor,
        calibration: Sequence[Estimate] = (),
    ) -> Estimate:
        """The corrected estimate [B, M] of `compiled` at `rows`, with propagated standard errors.

        Args:
            estimates: of what `construct(compiled, rows)` returned, in that order.
            compiled, rows: as given to `construct`.
            calibration: of what `calibration(compiled)` asked for, in that order.
        """

    def calibration(self, compiled: CompiledCircuit) -> Calibration | None:
        """What to evaluate once before; None (as here) for strategies that need nothing."""
        return None

    def plan(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        """What `construct` makes for rows of this number, whatever their values; theirs may be any (to count)."""
        return self.construct(compiled, rows)

    def cost(self, compiled: CompiledCircuit, rows: int = 1) -> Cost:
        """What an evaluation at so many rows takes with this strategy alone (see `counted`)."""
        return counted([self], compiled, rows)

    def check(self, compiled: CompiledCircuit) -> None:  # noqa: B027 (most strategies take every circuit)
        """Raise if this strategy cannot treat the circuit; called once, when a layer is made."""


def number_text(number: float) -> str:
    """The shortest text that gives this very number again, without the ``+`` that separates strategies."""
    short = f"{number:g}"
    return (short if float(short) == number else repr(float(number))).replace("e+", "e")


@dataclass(frozen=True)
class Expansion:
    """What a list of strategies makes of experiments, the last strategy first.

    Attributes:
        levels: experiments before the first expansion, and after each.
        sizes: for each expansion into how many every experiment was expanded.
        keys: for each expansion the key of the calibration that every experiment needs, None for none.
        wanted: calibrations that are not there yet, by their keys: each is made once, whoever needs it.
    """

    levels: list[list[Experiment]]
    sizes: list[list[int]]
    keys: list[list[Any]]
    wanted: dict[Any, tuple[Experiment, ...]]

    @property
    def leaves(self) -> list[Experiment]:
        """What the engine evaluates besides calibrations."""
        return self.levels[-1]

    @property
    def calibrations(self) -> list[Experiment]:
        """Experiments of the calibrations that are wanted, in order."""
        return [experiment for calibration in self.wanted.values() for experiment in calibration]


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
    for strategy in reversed(strategies):
        make = strategy.plan if dry else strategy.construct
        expanded = [make(*experiment) for experiment in expansion.leaves]
        keys = []
        for compiled, _ in expansion.leaves:
            calibration = strategy.calibration(compiled)
            key = None if calibration is None else (strategy.spec, *calibration.key)
            if calibration is not None and key not in known:
                expansion.wanted[key] = calibration.experiments
            keys.append(key)
        expansion.keys.append(keys)
        expansion.sizes.append([len(children) for children in expanded])
        expansion.levels.append([child for children in expanded for child in children])
    return expansion


def planned(strategies: Sequence[Strategy], compiled: CompiledCircuit, rows: int) -> Expansion:
    """What the first evaluation at so many rows would send, with zeros for parameters; nothing is evaluated.

    Observables that are constants send nothing.

    Raises:
        InvalidInputError: rows below 1; what the strategies raise for a circuit they cannot treat.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise InvalidInputError(f"rows is {rows!r}; allowed: whole numbers from 1")
    varying = parts_of(compiled).varying
    if varying is None:
        return expand(strategies, [], dry=True)
    zeros = torch.zeros(rows, compiled.n_inputs + compiled.n_weights, dtype=torch.float64)
    return expand(strategies, [(varying, zeros)], dry=True)


def counted(
    strategies: Sequence[Strategy],
    compiled: CompiledCircuit,
    rows: int = 1,
    circuits_of: Callable[[CompiledCircuit, int], int] = circuits_with_shots,
) -> Cost:
    """The circuits of what is `planned`, each as the engine counts it (`Engine.circuits_of`)."""
    expansion = planned(strategies, compiled, rows)
    each, once = (
        sum(circuits_of(circuit, len(values)) for circuit, values in made)
        for made in (expansion.leaves, expansion.calibrations)
    )
    return Cost(each, once)


_derived: WeakKeyDictionary[CompiledCircuit, dict[Any, Any]] = WeakKeyDictionary()


def kept(compiled: CompiledCircuit) -> dict[Any, Any]:
    """What strategies have made of a compiled circuit so far; forgotten with it. Simulators are kept with circuits, so
    a strategy must hand out the same circuit every time.
    """
    return _derived.setdefault(compiled, {})


DECOUPLED = "qhw_decoupled"


def with_isa(compiled: CompiledCircuit, isa: QuantumCircuit) -> CompiledCircuit:
    """`compiled` with another ISA circuit (without delays); a scheduled one is scheduled again, since times change."""
    if compiled.scheduled:
        manager = generate_preset_pass_manager(
            optimization_level=0,
            target=compiled.device.target,
            seed_transpiler=compiled.seed,
            scheduling_method="alap",
        )
        isa = manager.scheduling.run(isa)
    return replace(compiled, isa=isa)


def without_delays(compiled: CompiledCircuit) -> QuantumCircuit:
    """The ISA circuit without the delays of its schedule, to be changed and given to `with_isa`.

    Raises:
        InvalidInputError: delays that are no schedule's (written by hand, or a decoupling sequence's).
    """
    isa = compiled.isa
    if "delay" not in isa.count_ops():
        return isa
    if DECOUPLED in (isa.metadata or {}):
        raise InvalidInputError(
            "a circuit with a decoupling sequence cannot be changed any more; list DynamicalDecoupling before the "
            "other strategies: the last listed expands first"
        )
    if not compiled.scheduled or "delay" in compiled.logical.count_ops():
        raise InvalidInputError(
            "the circuit has delays written by hand, whose meaning folding or twirling would change; remove them, or "
            "compile with scheduled=True instead"
        )
    bare = isa.copy_empty_like()
    for instruction in isa.data:
        if instruction.operation.name != "delay":
            bare.append(instruction, copy=False)
    return bare
