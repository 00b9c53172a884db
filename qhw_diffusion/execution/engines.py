"""The simulating engines (`Ideal`, `Noisy`, `Shots`), and `engine_of`: every engine from one line of text.

The text of an engine is ``shots:4096:seed=3+readout+zne``: a name with its settings, then mitigation strategies.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.draws import Draws
from qhw_diffusion.errors import InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.execution.adaptive import combination
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import Engine, Estimate, Record, Usage, adaptive_of, check_parameters, rows_of
from qhw_diffusion.execution.fusion import Basis
from qhw_diffusion.execution.measurement import Member, check_shots, draw_counts, outcome_values
from qhw_diffusion.execution.noise_trajectories import NoiseTrajectories
from qhw_diffusion.execution.simulator import NUMPY, Simulator, refuse_if_too_large
from qhw_diffusion.extensions import is_extension, load_extension, raised_text


@dataclass(frozen=True)
class Ideal(Engine):
    """Expectation values of the compiled circuit without any noise, exact and differentiable."""

    name: ClassVar[str] = "ideal"
    differentiable: ClassVar[bool] = True
    noisy: ClassVar[bool] = False

    @property
    def spec(self) -> str:
        """The name: these engines have no settings."""
        return self.name

    def check(self, compiled: CompiledCircuit) -> None:
        """Raise MemoryBudgetError where not even one sample, or not the observables, would fit into memory."""
        basis: Basis = "density" if self.noisy else "state"
        refuse_if_too_large(len(compiled.physical_qubits), basis, observables=len(compiled.observables))

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        """Exact values [B, M] of rows [B, P], standard errors 0; see `Engine.estimate`."""
        parameters = check_parameters(compiled, parameters)
        with torch.no_grad():
            simulator, inputs, weights = split_rows(compiled, parameters, self.noisy)
            values = simulator.expectation(inputs, weights).to(parameters)
        return Estimate(values, torch.zeros_like(values))

    def values(
        self, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record = lambda usage: None
    ) -> Tensor:
        """Exact values [B, M] without gradient, by no detour over rows of parameters; see `Engine.values`."""
        if type(self).estimate is not Ideal.estimate:  # of an engine derived from this one: it has the say
            return super().values(compiled, inputs, weights, record)
        with torch.no_grad():
            return simulator_of(compiled, self.noisy, weights.dtype).expectation(inputs, weights)

    def expectation(
        self, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record = lambda usage: None
    ) -> Tensor:
        """Exact values [B, M], differentiable in inputs and weights; see `Engine.expectation`."""
        return simulator_of(compiled, self.noisy, weights.dtype).expectation(inputs, weights)


@dataclass(frozen=True)
class Noisy(Ideal):
    """As `Ideal`, with the noise of the device the circuit was compiled for.

    Gate errors as in Aer's device model, relaxation of waiting qubits where the circuit is scheduled
    (`compile_circuit(..., scheduled=True)`), and p(read 1 | 0), p(read 0 | 1) of every measured qubit.
    """

    name: ClassVar[str] = "noisy"
    noisy: ClassVar[bool] = True

    def check(self, compiled: CompiledCircuit) -> None:
        """Raise InvalidInputError for a device without noise, MemoryBudgetError as `Ideal`."""
        if not compiled.device.has_noise:
            raise InvalidInputError(
                f"device {compiled.device.name!r} has no noise: use engine='ideal', or compile for a fake device"
            )
        super().check(compiled)


def simulator_of(
    compiled: CompiledCircuit, noisy: bool, dtype: torch.dtype = torch.float64, *, by_rows: bool = False
) -> Simulator:
    """The simulator of a compiled circuit, made once; `by_rows`: every row has weights of its own (further inputs).

    Raises:
        InvalidInputError: a dtype other than torch.float32 and torch.float64.
    """
    if dtype not in NUMPY:
        raise InvalidInputError(f"dtype is {dtype}; allowed: torch.float32, torch.float64")
    key = (noisy, dtype, by_rows)
    if key not in compiled.simulators:
        program = compiled.program.by_rows() if by_rows else compiled.program
        compiled.simulators[key] = Simulator(program, noisy=noisy, dtype=dtype)
    simulator: Simulator = compiled.simulators[key]
    return simulator


def split_rows(compiled: CompiledCircuit, parameters: Tensor, noisy: bool) -> tuple[Simulator, Tensor, Tensor]:
    """Simulator, inputs [B, I] and weights [W] for rows of parameters; rows that share weights are much faster."""
    inputs, weights = parameters[:, : compiled.n_inputs], parameters[:, compiled.n_inputs :]
    if bool((weights == weights[:1]).all()):
        return simulator_of(compiled, noisy, parameters.dtype), inputs, weights[0]
    return simulator_of(compiled, noisy, parameters.dtype, by_rows=True), parameters, parameters[0, :0]


@dataclass(frozen=True)
class Shots(Engine):
    """Expectation values from a finite number of shots, as a device would give them.

    The observables' Pauli strings are measured in groups that agree qubit by qubit; for each row of parameters and each
    group, `shots` outcomes of all qubits are drawn from their exact joint distribution. Under autograd the value is the
    sampled one and the gradient that of the exact expectation value; with ``gradient=ParameterShift()`` the gradient
    carries shot noise too, as on a device.

    Args:
        shots: repetitions of each circuit, ≥ 1.
        seed: of the outcomes. One engine object draws on from call to call; a new one with this seed repeats them.
            Worker processes that inherit the object draw outcomes of their own (`Draws`).
        noisy: with the device's noise and readout errors (not available on the ideal device).

    Raises:
        InvalidInputError: shots below 1.
    """

    shots: int = 1024
    seed: int = 0
    noisy: bool = True
    draws: Draws = field(init=False, repr=False, compare=False)
    name: ClassVar[str] = "shots"
    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_shots(self.shots)
        object.__setattr__(self, "draws", Draws(self.seed))

    @property
    def spec(self) -> str | None:
        """``shots:N[:seed=S][:ideal]``; None for a seed that no text holds."""
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)) or self.seed < 0:
            return None  # numpy takes other seeds too, which no text holds
        seed = f":seed={self.seed}" if self.seed else ""
        return f"{self.name}:{self.shots}{seed}{'' if self.noisy else ':ideal'}"

    @classmethod
    def from_settings(cls, settings: Sequence[str]) -> Self:
        """``[N][:seed=S][:ideal]``, in any order, each at most once."""
        values: dict[str, int] = {}
        for text in settings:
            name, equals, number = text.partition("=")
            if text == "ideal":
                value = 1
            elif not equals:
                name, value = "shots", _whole("shots", text, 1)
            elif name == "seed":
                value = _whole("seed", number, 0)
            else:
                raise UnknownNameError.of("setting of engine 'shots'", text, ["seed=0", "ideal"])
            if name in values:
                raise InvalidInputError(f"engine 'shots:{':'.join(settings)}' states its {name} twice; state it once")
            values[name] = value
        noisy = not values.pop("ideal", 0)
        return cls(**values, noisy=noisy)

    def check(self, compiled: CompiledCircuit) -> None:
        """Raise InvalidInputError for a device without noise, or a circuit that post-selects."""
        if self.noisy and not compiled.device.has_noise:
            raise InvalidInputError(
                f"device {compiled.device.name!r} has no noise: use Shots(noisy=False), or compile for a fake device"
            )
        if compiled.postselect:
            raise InvalidInputError(
                "engine 'shots' does not post-select; use 'ideal' or 'noisy', whose values are given the outcomes kept"
            )

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        """Sampled values and standard errors [B, M] of rows [B, P]; see `Engine.estimate`."""
        return self._sampled(compiled, parameters, None)

    def estimate_combined(self, compiled: CompiledCircuit, parameters: Tensor, coefficients: Tensor) -> Estimate:
        """As `Engine.estimate_combined`, with the standard errors of the outcomes drawn, covariances included."""
        linear = combination(adaptive_of(compiled), coefficients.detach().double().cpu()).numpy()
        return self._sampled(compiled, parameters, linear)

    def _sampled(self, compiled: CompiledCircuit, parameters: Tensor, linear: np.ndarray | None) -> Estimate:
        """Values of the observables, or of linear combinations of them: `linear` [M, combinations]."""
        parameters = check_parameters(compiled, parameters)
        self.check(compiled)
        observables = compiled.program.observables
        constants = np.array([sum(c for c, label in terms if not label.strip("I")) for terms in observables])
        if linear is not None:
            constants = constants @ linear
        values = np.zeros((len(parameters), len(constants)))
        variances = np.zeros_like(values)
        groups = compiled.measurement_groups
        for chunk, members, distribution in self.distributions(compiled, parameters):
            counts = draw_counts(distribution, self.shots, self.draws.generator)
            outcome = outcome_values(observables, members, distribution.shape[1])  # [2^n, M]
            outcome = outcome if linear is None else outcome @ linear
            mean = counts @ outcome / self.shots
            square = counts @ (outcome * outcome) / self.shots
            values[chunk] += mean
            # A single shot says nothing of its spread: the bound by the largest outcome then
            spread = (square - mean**2).clip(0) / (self.shots - 1) if self.shots > 1 else (outcome**2).max(0)
            variances[chunk] += spread
        values += constants
        circuits = len(parameters) * len(groups)
        return Estimate(
            torch.from_numpy(values).to(parameters),
            torch.from_numpy(np.sqrt(variances)).to(parameters),
            Usage(circuits, circuits * self.shots),
        )

    def distributions(
        self, compiled: CompiledCircuit, parameters: Tensor
    ) -> Iterable[tuple[slice, Sequence[Member], np.ndarray]]:
        """What outcomes are drawn from: (rows, strings measured together, exact distributions [rows, 2^n])."""
        simulator, inputs, weights = split_rows(compiled, parameters.detach(), self.noisy)
        for chunk in simulator.chunks(len(parameters)):
            rows = simulator.final_rows(inputs[chunk].cpu().numpy(), weights.cpu().numpy())
            for basis, members in compiled.measurement_groups:
                yield chunk, members, simulator.distribution(rows, basis)

    def expectation(
        self, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record = lambda usage: None
    ) -> Tensor:
        """Sampled values [B, M] with the gradient of the exact ones; see `Engine.expectation`."""
        exact = simulator_of(compiled, self.noisy, weights.dtype).expectation(inputs, weights)
        estimate = self.estimate(compiled, rows_of(inputs.detach(), weights.detach()))
        record(estimate.usage)
        return exact + (estimate.values - exact).detach()


def _whole(name: str, text: str, low: int) -> int:
    # not longer than any number meant: Python itself refuses very long ones
    if not (text.isascii() and text.isdecimal() and len(text) < 40 and int(text) >= low):
        raise InvalidInputError(
            f"{name} is {text!r}; allowed: whole numbers from {low}. The text is shots[:N][:seed=S][:ideal]"
        )
    return int(text)


# -- engines from text -------------------------------------------------------------------------------------------------

ENGINES: dict[str, type[Engine]] = {"ideal": Ideal, "noisy": Noisy, "shots": Shots, "trajectories": NoiseTrajectories}
# (engine, texts of strategies) → engine. Mitigation is a layer above and gives its own when it is imported.
Wrap = Callable[[Engine, Sequence[str]], Engine]
_MITIGATION = "qhw_diffusion.mitigation"
_wraps: list[Wrap] = []


def wrap_with(wrap: Wrap) -> None:
    """Let `engine_of` understand what follows a ``+``; the latest one given is used."""
    _wraps.append(wrap)


def engine_of(engine: str | Engine) -> Engine:
    """The engine of a text, or the engine given.

    A text is ``ideal``, ``noisy``, ``shots[:N][:seed=S][:ideal]`` (N shots; seed of the outcomes; ``ideal`` without
    the device's noise), ``trajectories[:N][:seed=S][:kraus]`` (noise by N sampled pure states a row; ``kraus`` without
    Pauli twirling), or an engine of a user's own, ``module:name`` or ``file.py:name``; and behind it any number of
    mitigation strategies, each after a ``+``, the one next to the engine first (`qhw_diffusion.mitigation`).
    `Engine.spec` writes these texts.

    Args:
        engine: the text, or an engine. What ``module:name`` names is an `Engine`, or a class or function that makes
            one without arguments.

    Raises:
        UnknownNameError: no such engine or strategy, or no such name among its settings.
        InvalidInputError: a setting that is no number where one is needed, or too many of them; a ``module:name`` that
            cannot be loaded or is no engine.
    """
    if isinstance(engine, Engine):
        return engine
    head, *strategies = str(engine).split("+")
    head = head.strip()
    name, *settings = head.split(":")
    if name in ENGINES:
        base = ENGINES[name].from_settings(settings)
        if base.spec is None:  # a class that writes no text of its own is called what it was asked for by
            object.__setattr__(base, "_text", head)
    elif is_extension(head):
        base = _own_engine(head)
    else:
        raise UnknownNameError.of("engine", head, [*ENGINES, "shots:4096"], own=True)
    if not strategies:
        return base
    if not _wraps:
        importlib.import_module(_MITIGATION)  # by name, as an extension: it calls `wrap_with`
    return _wraps[-1](base, strategies)


def _own_engine(text: str) -> Engine:
    """The engine that ``module:name`` names or makes; its `spec` is that text."""
    made = load_extension(text, what="engine")
    if not isinstance(made, Engine) and callable(made):
        try:
            made = made()
        except QhwError:
            raise
        except Exception as error:
            raise InvalidInputError(f"engine {text!r}: making it fails: {raised_text(error)}") from error
    if not isinstance(made, Engine):
        raise InvalidInputError(
            f"engine {text!r} is a {type(made).__name__}; wanted is an engine (a class derived from "
            "qhw_diffusion.execution.Engine with an `estimate`), or a function without arguments that makes one"
        )
    object.__setattr__(made, "_text", text)  # also where its class is a frozen dataclass
    return made


def check_engine_text(engine: str) -> str:
    """`engine` if `engine_of` understands it: for configurations, which hold text and not engines.

    Raises:
        UnknownNameError, InvalidInputError: as `engine_of`; InvalidInputError for anything but text.
    """
    if not isinstance(engine, str):
        text = engine.spec if isinstance(engine, Engine) else None
        raise InvalidInputError(
            f"engine is {engine!r}; a configuration holds text, " + (f"here {text!r}" if text else "such as 'noisy'")
        )
    engine_of(engine)
    return engine


def spec_of(engine: Engine) -> str:
    """The text that makes an equal engine again.

    Raises:
        InvalidInputError: there is none: the engine holds something live (a primitive, a ledger's runner), or it or
            one of its strategies was made in Python and not loaded by ``module:name``.
    """
    spec = engine.spec
    try:
        if spec is not None and (spec == engine._text or engine_of(spec) == engine):
            return spec
    except QhwError:
        pass
    raise InvalidInputError(
        f"engine {engine.label!r} ({type(engine).__name__}) cannot be saved: no text makes it again. Move to one that "
        "can first, with layer.with_engine('noisy') or policy.on(engine='noisy'), and give this one again after loading"
    )
