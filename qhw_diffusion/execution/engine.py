"""What every engine answers: expectation values and standard errors of one compiled circuit for rows of parameters.

An engine of a user's own derives from `Engine` and has an `estimate`; whatever class outside of this package does is
checked, so that a wrong answer is an error with the engine's name in it. Observables that are constants (multiples of
the identity) are known without any evaluation: `evaluate_varying` leaves them out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.circuits.observables import AdaptiveObservables
from qhw_diffusion.errors import EngineError, InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.execution.adaptive import bound, combined
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.recording import refuse_without_numbers
from qhw_diffusion.execution.tape import is_transformed, refuse_transforms
from qhw_diffusion.extensions import raised_text


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
class Plan:
    """What evaluations of a circuit send, before anything is evaluated.

    Attributes:
        circuits: (circuit, rows of parameters) of every evaluation.
        calibrations: the same, of the first evaluation alone.
    """

    circuits: tuple[tuple[CompiledCircuit, int], ...]
    calibrations: tuple[tuple[CompiledCircuit, int], ...] = ()


@dataclass(frozen=True)
class Cost:
    """Circuits that evaluations of one circuit at so many rows execute, counted on a `Plan`.

    Attributes:
        circuits: executed in every evaluation: rows of parameters times groups of observables measured together, of
            all circuits of the plan. Each gets the engine's full number of shots.
        calibration_circuits: executed besides in the first evaluation on these qubits.
    """

    circuits: int
    calibration_circuits: int = 0

    def usage(self, shots: int, *, first: bool = True) -> Usage:
        """Usage of one evaluation at so many shots of each circuit; `first`: with the calibration."""
        circuits = self.circuits + (self.calibration_circuits if first else 0)
        return Usage(circuits, circuits * shots)


@dataclass(frozen=True)
class Estimate:
    """Result of one evaluation.

    Attributes:
        values: [B, M] expectation values.
        std_errors: [B, M] their standard errors; zeros from an exact engine, infinity where the service knows none.
        usage: what it cost.
        covariance: [B, M, M] of the values of a row, where it is known; None elsewhere.
    """

    values: Tensor
    std_errors: Tensor
    usage: Usage = field(default_factory=Usage)
    covariance: Tensor | None = None


class Engine(ABC):
    """Evaluates a compiled circuit. Engines are configuration: they hold no circuit and no weights.

    Attributes:
        name: what tables, folders and configuration files call it; the class's name unless it says another.
        differentiable: whether `expectation` exists; otherwise a layer needs a gradient method (`gradients`).
        mitigated: whether it evaluates other circuits than those it is given, to lessen errors.
        tried: whether an engine of a user's own is evaluated once, at one row of zeros, when a layer is made, so that
            what is wrong with it is told before a training starts; False where an evaluation costs something.
    """

    name: ClassVar[str]
    differentiable: ClassVar[bool] = False
    tried: ClassVar[bool] = True
    mitigated: ClassVar[bool] = False
    _text: str | None = None  # ``module:name``, for an engine that was loaded by it

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if not hasattr(cls, "name"):
            cls.name = cls.__name__
        if _is_own(cls):
            for name, check in (("estimate", _one), ("estimate_many", _many), ("expectation", _values)):
                if name in vars(cls):
                    setattr(cls, name, _checked(vars(cls)[name], check))

    @property
    def spec(self) -> str | None:
        """Text that makes an equal engine (`engine_of`), for configuration files; None if no text can."""
        return self._text

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

    def estimate_combined(self, compiled: CompiledCircuit, parameters: Tensor, coefficients: Tensor) -> Estimate:
        """Evaluate adaptive observables for given coefficients.

        Engines know the standard error of each Pauli string and not their covariances. So what is stated here is
        Σ |c| σ, which holds whatever these are, and is what Qiskit's estimators state for a Pauli sum; an engine that
        draws the outcomes itself states the error that they have.

        Args:
            compiled: the circuit, compiled with adaptive observables.
            parameters: [B, P] radians, see `estimate`.
            coefficients: [C] in the order of `AdaptiveObservables.terms`.

        Returns:
            Values and standard errors [B, observables], without gradient.

        Raises:
            InvalidInputError: the circuit has no adaptive observables.
        """
        adaptive, estimate = adaptive_of(compiled), self.estimate(compiled, parameters)
        coefficients = coefficients.detach().to(estimate.values)
        return replace(
            estimate,
            values=combined(adaptive, estimate.values, coefficients),
            std_errors=bound(adaptive, estimate.std_errors, coefficients),
            covariance=None,
        )

    def labelled(self, labels: Sequence[str], packages: Sequence[str] = ()) -> Engine:
        """The engine for one call of `estimate_many`, told what its circuits are; engines whose jobs are kept note it.

        Args:
            labels: of each circuit, in a few words.
            packages: distributions that the circuits were made with.
        """
        return self

    def values(
        self, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record = lambda usage: None
    ) -> Tensor:
        """The values [B, M] of `estimate`, without gradient.

        Args:
            compiled: the circuit with its M observables.
            inputs: [B, inputs] radians.
            weights: [weights] radians.
            record: is told what the evaluation cost.

        Raises:
            InvalidInputError: NaN or infinity among inputs or weights.
        """
        check_finite_inputs(inputs)
        with torch.no_grad():
            estimate = self.estimate(compiled, rows_of(inputs, weights))
        record(estimate.usage)
        return estimate.values

    def expectation(
        self, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record = lambda usage: None
    ) -> Tensor:
        """Expectation values with the engine's own gradient.

        Args:
            compiled: the circuit with its M observables.
            inputs: [B, inputs] radians.
            weights: [weights] radians.
            record: is told what the evaluation cost.

        Returns:
            [B, M], differentiable in inputs and weights.

        Raises:
            InvalidInputError: this engine has no gradient of its own.
        """
        raise InvalidInputError(
            f"engine {self.name!r} gives no gradient; choose a gradient method, for example "
            "QuantumLayer(compiled, engine, gradient=ParameterShift())"
        )

    def plan(self, compiled: CompiledCircuit, rows: int) -> Plan:
        """What an evaluation at so many rows sends; observables that are constants send nothing.

        Raises:
            InvalidInputError: rows below 1.
        """
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise InvalidInputError(f"rows is {rows!r}; allowed: whole numbers from 1")
        varying = parts_of(compiled).varying
        return Plan(() if varying is None else ((varying, rows),))

    def cost(self, compiled: CompiledCircuit, rows: int = 1) -> Cost:
        """Circuits that an evaluation at so many rows executes, counted on its plan; nothing is evaluated.

        Raises:
            InvalidInputError: rows below 1; what mitigation strategies raise for a circuit they cannot treat.
        """
        plan = self.plan(compiled, rows)
        each, once = (sum(self.circuits_of(*sent) for sent in made) for made in (plan.circuits, plan.calibrations))
        return Cost(each, once)

    def circuits_of(self, compiled: CompiledCircuit, rows: int) -> int:
        """Circuits that one compiled circuit at so many rows takes, for an exact engine those that "shots" would."""
        return circuits_with_shots(compiled, rows)

    def check(self, compiled: CompiledCircuit) -> None:  # noqa: B027 (most engines take every circuit)
        """Raise if this engine cannot evaluate the circuit at all; called once, when a layer is made."""


def adaptive_of(compiled: CompiledCircuit) -> AdaptiveObservables:
    """The circuit's adaptive observables.

    Raises:
        InvalidInputError: it has none.
    """
    if compiled.adaptive is None:
        raise InvalidInputError("the circuit has no adaptive observables: compile_circuit(…, observables='adaptive:2')")
    return compiled.adaptive


def circuits_with_shots(compiled: CompiledCircuit, rows: int) -> int:
    """Circuits that so many rows take: one for each row and each group of observables measured together."""
    return rows * len(compiled.measurement_groups)


# -- engines of a user's own -------------------------------------------------------------------------------------------


def try_out(engine: Engine, compiled: CompiledCircuit) -> None:
    """Evaluate an engine of a user's own once, at one row of zeros; engines of this package are known to work.

    Raises:
        EngineError: what it does wrong.
    """
    if _is_own(type(engine)) and engine.tried:
        engine.estimate(compiled, torch.zeros(1, compiled.n_inputs + compiled.n_weights))


def _is_own(cls: type) -> bool:
    return cls.__module__.split(".")[0] != __name__.split(".")[0]


def _checked(method: Callable[..., Any], check: Callable[..., Any]) -> Callable[..., Any]:
    """The method, whose failures become an EngineError with the engine's name, and whose answer is checked."""

    @wraps(method)
    def checked(self: Engine, *arguments: Any, **named: Any) -> Any:
        who = f"engine {self.label!r} ({type(self).__module__}.{type(self).__qualname__})"
        try:
            answer = method(self, *arguments, **named)
        except QhwError:
            raise
        except Exception as error:
            raise EngineError(f"{who} fails: {raised_text(error)}") from error
        return check(who, answer, *arguments)

    return checked


def _one(who: str, answer: Any, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
    if not isinstance(answer, Estimate):
        raise EngineError(f"{who} answered with a {type(answer).__name__}; wanted is an Estimate(values, std_errors)")
    shape = (len(parameters), compiled.n_observables)
    for name in ("values", "std_errors"):
        given = getattr(answer, name)
        if not isinstance(given, Tensor) or given.shape != shape or not given.is_floating_point():
            said = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise EngineError(f"{who} answered with {name} {said}; wanted is a floating-point tensor {shape}")
    if not bool(answer.values.isfinite().all()):
        raise EngineError(f"{who} answered with values that are NaN or infinite")
    if not bool((answer.std_errors >= 0).all()):
        raise EngineError(f"{who} answered with standard errors that are NaN or negative; infinity means not known")
    if not isinstance(answer.usage, Usage):
        raise EngineError(f"{who} answered with usage {answer.usage!r}; wanted is a Usage(circuits, shots)")
    return answer


def _many(who: str, answer: Any, experiments: Sequence[Experiment]) -> list[Estimate]:
    if not isinstance(answer, list) or len(answer) != len(experiments):
        said = f"{len(answer)} entries" if isinstance(answer, list) else type(answer).__name__
        raise EngineError(f"{who} answered with {said} to {len(experiments)} circuits; wanted is a list of Estimates")
    return [_one(who, estimate, *experiment) for estimate, experiment in zip(answer, experiments, strict=True)]


def _values(who: str, answer: Any, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, *_: Any) -> Tensor:
    shape = (len(inputs), compiled.n_observables)
    if not isinstance(answer, Tensor) or answer.shape != shape:
        said = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise EngineError(f"{who} answered with values {said}; wanted is a tensor {shape}")
    if not is_transformed(answer) and not bool(answer.detach().isfinite().all()):
        raise EngineError(f"{who} answered with values that are NaN or infinite")
    return answer


# -- parameters --------------------------------------------------------------------------------------------------------


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
    refuse_without_numbers("parameters", parameters)
    parameters = real_dense(parameters, "parameters")
    if parameters.dtype not in (torch.float32, torch.float64):
        parameters = parameters.float()
    if not bool(torch.isfinite(parameters).all()):
        raise InvalidInputError("parameters contain NaN or infinity; check what produced them")
    return parameters


def check_finite_inputs(inputs: Tensor) -> None:
    """Raise InvalidInputError where inputs [B, inputs] are NaN or infinite."""
    if not np.isfinite(inputs.detach().cpu().numpy()).all():  # several times faster than torch on small tensors
        raise InvalidInputError("inputs contain NaN or infinity; check what produced them")


def real_dense(tensor: Tensor, name: str) -> Tensor:
    """A sparse tensor made dense; `name` is what the error calls it.

    Raises:
        InvalidInputError: complex or quantised numbers, which are no angles.
    """
    if tensor.is_complex() or tensor.is_quantized:
        raise InvalidInputError(f"{name} are of dtype {tensor.dtype}; angles are real: give floating-point numbers")
    tensor = tensor.resolve_neg()  # of the imaginary part of a conjugate, which NumPy does not take
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def rows_of(inputs: Tensor, weights: Tensor) -> Tensor:
    """[B, inputs], [weights] → [B, inputs + weights], the same weights in every row, on the device of the inputs."""
    return torch.cat([inputs, weights.to(inputs.device).expand(len(inputs), -1)], dim=1)


# -- observables that are constants ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Parts:
    """A compiled circuit taken apart into the observables that vary and those that are constants.

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
