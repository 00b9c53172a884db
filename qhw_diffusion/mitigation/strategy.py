"""What a mitigation strategy is: it makes other circuits of one circuit, and one estimate of their estimates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from qiskit import QuantumCircuit
from qiskit.transpiler import generate_preset_pass_manager
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment


@dataclass(frozen=True)
class Cost:
    """What a strategy multiplies the cost of one evaluation by.

    Attributes:
        circuits_factor: circuits executed for each one without mitigation.
        shots_factor: shots for each one without mitigation, at the engine's shots per circuit.
        calibration_circuits: circuits executed once per engine and qubits, whatever the number of evaluations.
    """

    circuits_factor: float = 1
    shots_factor: float = 1
    calibration_circuits: int = 0

    def __mul__(self, other: Cost) -> Cost:
        return Cost(
            self.circuits_factor * other.circuits_factor,
            self.shots_factor * other.shots_factor,
            self.calibration_circuits + other.calibration_circuits,
        )


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

    @abstractmethod
    def cost(self, compiled: CompiledCircuit) -> Cost:
        """What it costs for this circuit."""

    def check(self, compiled: CompiledCircuit) -> None:  # noqa: B027 (most strategies take every circuit)
        """Raise if this strategy cannot treat the circuit; called once, when a layer is made."""


def number_text(number: float) -> str:
    """The shortest text that gives this very number again, without the ``+`` that separates strategies."""
    short = f"{number:g}"
    return (short if float(short) == number else repr(float(number))).replace("e+", "e")


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
