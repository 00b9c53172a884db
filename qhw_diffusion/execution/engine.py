"""What every engine answers: expectation values and standard errors of one compiled circuit for rows of parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.program import reduced_terms
from qhw_diffusion.execution.readoff import measurement_groups
from qhw_diffusion.execution.tape import refuse_transforms


@dataclass(frozen=True)
class Usage:
    """What an evaluation cost. Exact simulation costs neither circuits nor shots.

    Attributes:
        circuits: circuits executed: rows of parameters times groups of observables measured together.
        shots: repetitions of these, all together.
    """

    circuits: int = 0
    shots: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.circuits + other.circuits, self.shots + other.shots)


Record = Callable[[Usage], None]
# One compiled circuit and its rows of parameters [B, inputs + weights]
Experiment = tuple[CompiledCircuit, Tensor]


@dataclass(frozen=True)
class Estimate:
    """Result of one evaluation.

    Attributes:
        values: [B, M] expectation values.
        std_errors: [B, M] their standard errors; zeros from an exact engine, infinity where the service knows none.
        usage: what it cost.
    """

    values: Tensor
    std_errors: Tensor
    usage: Usage = field(default_factory=Usage)


class Engine(ABC):
    """Evaluates a compiled circuit. Engines are configuration: they hold no circuit and no weights.

    Attributes:
        name: what tables, folders and configuration files call it.
        differentiable: whether `expectation` exists; otherwise a layer needs a gradient method (`gradients`).
    """

    name: ClassVar[str]
    differentiable: ClassVar[bool] = False

    @property
    def spec(self) -> str | None:
        """Text that makes an equal engine (`engine_of`), for configuration files; None if no text can."""
        return None

    @property
    def label(self) -> str:
        """What tables and messages call it: the text that makes it, or the name."""
        return self.spec or self.name

    @classmethod
    def from_settings(cls, settings: Sequence[str]) -> Self:
        """The engine of a text, from what follows its name there, colon by colon.

        Raises:
            UnknownNameError, InvalidInputError: settings it does not have (as here all), or cannot take.
        """
        if settings:
            raise UnknownNameError(f"unknown engine {':'.join([cls.name, *settings])!r}; {cls.name!r} has no settings")
        return cls()

    @abstractmethod
    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        """Evaluate B rows of parameters.

        Args:
            compiled: the circuit with its M observables.
            parameters: [B, P] radians, the inputs in their order, then the weights in theirs.

        Returns:
            Values and standard errors [B, M], on the device of `parameters` and in their dtype (float32 for shorter
            floats and integers), without gradient.

        Raises:
            InvalidInputError: parameters of another shape, or not finite.
        """

    def estimate_many(self, experiments: Sequence[Experiment]) -> list[Estimate]:
        """Evaluate several circuits; engines on primitives and devices send them together, as one job."""
        return [self.estimate(compiled, parameters) for compiled, parameters in experiments]

    def expectation(
        self, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record = lambda usage: None
    ) -> Tensor:
        """[B, inputs], [weights] → [B, M], differentiable in both; `record` is told what it cost.

        Raises:
            InvalidInputError: this engine has no gradient of its own.
        """
        raise InvalidInputError(
            f"engine {self.name!r} gives no gradient; choose a gradient method, for example "
            "QuantumLayer(compiled, engine, gradient=ParameterShift())"
        )

    def circuits_of(self, compiled: CompiledCircuit, rows: int) -> int:
        """Circuits that an evaluation at so many rows executes, for an exact engine those that "shots" would."""
        return circuits_with_shots(compiled, rows)

    def check(self, compiled: CompiledCircuit) -> None:  # noqa: B027 (most engines take every circuit)
        """Raise if this engine cannot evaluate the circuit at all; called once, when a layer is made."""


def circuits_with_shots(compiled: CompiledCircuit, rows: int) -> int:
    """Circuits that so many rows take: one for each row and each group of observables measured together."""
    terms = tuple(reduced_terms(o, compiled.physical_qubits) for o in compiled.observables)
    return rows * len(measurement_groups(terms))


def check_parameters(compiled: CompiledCircuit, parameters: Tensor) -> Tensor:
    """`parameters` as a dense tensor of float32 or float64 (shorter floats and integers become float32).

    Raises:
        InvalidInputError: no real, finite tensor [B ≥ 1, inputs + weights], or one inside torch.func.
    """
    wanted = compiled.n_inputs + compiled.n_weights
    if not isinstance(parameters, Tensor) or parameters.ndim != 2 or parameters.shape[1] != wanted:
        given = tuple(parameters.shape) if isinstance(parameters, Tensor) else type(parameters).__name__
        raise InvalidInputError(
            f"parameters must be a tensor of shape [rows, {wanted}] ({compiled.n_inputs} inputs, then "
            f"{compiled.n_weights} weights), given {given}"
        )
    if len(parameters) == 0:
        raise InvalidInputError("parameters has no rows; give at least one")
    refuse_transforms("an estimate", parameters)
    parameters = real_dense(parameters, "parameters")
    if parameters.dtype not in (torch.float32, torch.float64):
        parameters = parameters.float()
    if not bool(torch.isfinite(parameters).all()):
        raise InvalidInputError("parameters contain NaN or infinity; check what produced them")
    return parameters


def real_dense(tensor: Tensor, name: str) -> Tensor:
    """A sparse tensor made dense; `name` is what the error calls it.

    Raises:
        InvalidInputError: complex or quantised numbers, which are no angles.
    """
    if tensor.is_complex() or tensor.is_quantized:
        raise InvalidInputError(f"{name} are of dtype {tensor.dtype}; angles are real: give floating-point numbers")
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def rows_of(inputs: Tensor, weights: Tensor) -> Tensor:
    """[B, inputs], [weights] → [B, inputs + weights], the same weights in every row, on the device of the inputs."""
    return torch.cat([inputs, weights.to(inputs.device).expand(len(inputs), -1)], dim=1)
