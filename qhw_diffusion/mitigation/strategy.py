"""The base class of mitigation strategies: other circuits in place of one, and one estimate from their estimates.

A strategy states everything about itself: the circuits it takes (`plan`, `cost`), what it needs (`needs`), what tables
call it (`label`) and the text that makes it again (`spec`). Nothing else in the package names single strategies but
the registry of the built-in ones.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError, MissingDependencyError
from qhw_diffusion.execution import CompiledCircuit, Cost, Engine, Estimate, Experiment, Ideal
from qhw_diffusion.execution.engine import circuits_with_shots, parts_of
from qhw_diffusion.mitigation.strategy_text import grammar_of, made_from_text, reference_of, settings_of

# A strategy makes no more circuits than this of one
MOST_CIRCUITS = 10_000


@dataclass(frozen=True)
class Calibration:
    """Circuits a strategy needs once, before it can correct anything.

    Attributes:
        key: hashable; evaluations with equal keys share the calibration.
        experiments: circuits with observables of their own, and their rows of parameters.
        labels: what each of them is, in a few words, for the record of a job; empty: numbered.
    """

    key: tuple[Any, ...]
    experiments: tuple[Experiment, ...]
    labels: tuple[str, ...] = ()


class Need(Enum):
    """What a strategy needs besides circuits; `check` refuses what lacks it."""

    SHOTS = "an engine that samples"
    MITIQ = "the package Mitiq"
    SCHEDULE = "a scheduled circuit"
    NOISELESS_SIMULATOR = "a circuit that can be simulated without noise"
    READOUT_DATA = "the readout errors of the device's calibration"
    GATE_DATA = "the gate errors of the device's calibration"

    def check(self, compiled: CompiledCircuit, engine: Engine | None = None) -> None:
        """Raise where it is missing.

        Args:
            compiled: the circuit on its device.
            engine: that evaluates the strategy's circuits; None: not known yet.

        Raises:
            MissingDependencyError: Mitiq is not installed.
            InvalidInputError, MemoryBudgetError: the circuit, its device or the engine is not of that kind.
        """
        if self is Need.SHOTS and isinstance(engine, Ideal):
            raise InvalidInputError(f"engine {engine.label!r} is exact, {self.value} is needed: use shots:4096")
        if self is Need.MITIQ:
            require_mitiq()
        if self is Need.SCHEDULE and not compiled.scheduled:
            raise InvalidInputError(
                f"{self.value} is needed: compile the circuit with scheduled=True, or train the policy with --scheduled"
            )
        if self is Need.NOISELESS_SIMULATOR:
            Ideal().check(compiled)
        if self is Need.READOUT_DATA:
            for qubit in compiled.physical_qubits:
                compiled.device.readout_error(qubit)


# They know the noise of a simulation exactly, as no calibration of a device knows the device
NOISE_DATA = frozenset({Need.READOUT_DATA, Need.GATE_DATA})


def require_mitiq() -> None:
    """Raise MissingDependencyError unless Mitiq is installed."""
    if find_spec("mitiq") is None:
        raise MissingDependencyError(
            "this strategy needs Mitiq (GPLv3, therefore optional), which is there for Python 3.11 and 3.12 (this is "
            f"{platform.python_version()}): pip install 'mitiq>=1.1,<1.2' 'ply==3.11'. "
            "Not mitiq[qiskit], which replaces Aer and the runtime client by old ones. Without Mitiq there are the "
            "strategies zne, readout, twirling and decoupling"
        )


class Strategy(ABC):
    """One mitigation strategy. Strategies are configuration: `Mitigated` runs them.

    A strategy of your own is a subclass, best a frozen dataclass: its fields are then the settings of its text
    (``module:Class:setting:…`` or ``file.py:Class:setting:…``), in their order. `construct` and `combine` are functions
    of their arguments alone: nothing is remembered in between.

    Attributes:
        name: what texts call a built-in strategy; others are called by the place of their class.
        differentiable: whether `construct` passes the rows on as they are and `combine` is torch all the way, so that a
            gradient goes through.
        needs: what it needs besides circuits.
        new_observables: whether the circuits of `construct` measure other observables than the given one.
        text_order: fields that are settings of the text, in the text's order; empty: all fields in theirs.
        text_least: how many settings `spec` states even where they are the defaults.
        text_words: words for False and True of a field, "no" and "yes" if it has none.
    """

    name: ClassVar[str] = ""
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    new_observables: ClassVar[bool] = False
    text_order: ClassVar[tuple[str, ...]] = ()
    text_least: ClassVar[int] = 0
    text_words: ClassVar[Mapping[str, tuple[str, str]]] = {}

    @property
    def label(self) -> str:
        """What tables and messages call it, in a few words; as here the text, or the name of the class."""
        return self.spec or type(self).__name__

    @property
    def spec(self) -> str | None:
        """Text from which `strategy_of` makes an equal strategy; None if no text can."""
        reference, settings = reference_of(type(self)), settings_of(self)
        return None if reference is None or settings is None else ":".join([reference, *settings])

    @classmethod
    def from_settings(cls, settings: Sequence[str]) -> Self:
        """The strategy of a text, from what follows its name there, colon by colon.

        Raises:
            InvalidInputError: too many settings, or one that is no number where one is needed.
            UnknownNameError: a setting that is none of the words allowed.
        """
        strategy: Self = made_from_text(cls, settings, cls.name or cls.__name__)
        return strategy

    @classmethod
    def grammar(cls) -> str:
        """The settings of its text: ``zne[:EXTRAPOLATION[:SCALE_FACTOR,SCALE_FACTOR,…[:local|global]]]``."""
        return grammar_of(cls, cls.name or cls.__name__)

    @abstractmethod
    def construct(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        """The circuits to evaluate in place of this one.

        Args:
            compiled: the circuit with its M observables.
            rows: [B, P] radians.

        Returns:
            At least one circuit, each with its rows of parameters [B', P'].

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
            estimates: of what `construct(compiled, rows)` returned, in that order, each [B', M'].
            compiled: as given to `construct`.
            rows: as given to `construct`, [B, P] radians.
            calibration: of what `calibration(compiled)` asked for, in that order.
        """

    def labels(self, compiled: CompiledCircuit, made: Sequence[Experiment]) -> list[str]:
        """What each circuit is that `construct` made, for the record of a job; as here the strategy's label, numbered.

        Args:
            compiled: as given to `construct`.
            made: what that returned.

        Returns:
            A few words for each, such as ``"folded, scale 3"``; empty for the circuit as it was given.
        """
        return numbered(self.label, len(made))

    def calibration(self, compiled: CompiledCircuit) -> Calibration | None:
        """What to evaluate once before; None (as here) for strategies that need nothing."""
        return None

    def plan(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        """What `construct` makes for rows of this number, whatever their values; theirs may be any (to count)."""
        return self.construct(compiled, rows)

    def cost(self, compiled: CompiledCircuit, rows: int = 1) -> Cost:
        """What an evaluation at so many rows takes with this strategy alone, counted on what `plan` makes.

        A strategy that overrides it must state what its circuits take: that is compared before anything is sent.

        Raises:
            InvalidInputError: rows below 1; what the strategy raises for a circuit it cannot treat.
        """
        varying = parts_of(compiled).varying
        if varying is None:
            return Cost(0)
        calibration = self.calibration(varying)
        made = [self.plan(varying, zero_rows(varying, rows)), () if calibration is None else calibration.experiments]
        return Cost(*(sum(circuits_with_shots(circuit, len(values)) for circuit, values in each) for each in made))

    def check(self, compiled: CompiledCircuit) -> None:  # noqa: B027 (most strategies take every circuit)
        """Raise if this strategy cannot treat the circuit; called once, when a layer is made."""

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is type(self) and self.spec is not None and self.spec == other.spec)

    def __hash__(self) -> int:
        return hash((type(self), self.spec))


def numbered(what: str, count: int) -> list[str]:
    """``["twirled, 1 of 2", "twirled, 2 of 2"]``; one alone without a number."""
    return [what] if count == 1 else [f"{what}, {number} of {count}" for number in range(1, count + 1)]


def built_in(strategy: Strategy) -> bool:
    """Whether it is a class of this package."""
    return type(strategy).__module__.split(".")[0] == __name__.split(".")[0]


def zero_rows(compiled: CompiledCircuit, rows: int) -> Tensor:
    """[rows, P] zeros in place of parameters, to count circuits.

    Raises:
        InvalidInputError: rows below 1.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise InvalidInputError(f"rows is {rows!r}; allowed: whole numbers from 1")
    return torch.zeros(rows, compiled.n_inputs + compiled.n_weights, dtype=torch.float64)


def mixed_covariance(estimates: Sequence[Estimate], slopes: Tensor) -> Tensor | None:
    """Covariance [B, M, M] of Σ_k slopes_k · values_k of independent estimates; None where one states none.

    Args:
        estimates: K of them, values [B, M].
        slopes: [K, B, M].
    """
    total = None
    for slope, estimate in zip(slopes, estimates, strict=True):
        if estimate.covariance is None:
            return None
        part = slope[:, :, None] * slope[:, None, :] * estimate.covariance
        total = part if total is None else total + part
    return total
