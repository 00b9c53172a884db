"""Gradients of engines that have none of their own: parameter-shift, simultaneous perturbation, a simulated surrogate.

A method evaluates a compiled circuit and connects the values to autograd. Backward passes ask the engine for all rows
they need in one call, so an engine on a primitive sends one PUB. Every evaluation is reported, in the order made.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterExpression, ParameterVector
from torch import Tensor

from qhw_diffusion.draws import Draws
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.conditions import FLOW
from qhw_diffusion.execution.engine import Engine, Record, rows_of
from qhw_diffusion.execution.engines import engine_of, spec_of
from qhw_diffusion.execution.tape import first_order_only, refuse_transforms


class GradientMethod(ABC):
    """How a layer gets gradients from an engine that gives values only."""

    @abstractmethod
    def __call__(
        self, engine: Engine, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record
    ) -> Tensor:
        """Values [B, M], connected to autograd in `inputs` and `weights`.

        Args:
            engine: evaluates the circuit.
            compiled: the circuit with its M observables.
            inputs: [B, inputs] radians.
            weights: [weights] radians.
            record: is told what each evaluation cost, in the forward pass and, if a gradient is asked, in the backward
                pass.

        Raises:
            InvalidInputError: a circuit or engine this method cannot differentiate, a second derivative, or a
                transform of torch.func.
        """

    def _connect(
        self, inputs: Tensor, weights: Tensor, engine: Engine, compiled: CompiledCircuit, record: Record, slope: _Slope
    ) -> Tensor:
        """Values of `engine`, whose backward pass is `slope`."""
        method = type(self).__name__
        refuse_transforms(method, inputs, weights)
        values: Tensor = _Evaluate.apply(inputs, weights, engine, compiled, record, slope, method)
        return values


# A step of a backward pass: (which gradients are asked, inputs, weights, cotangent) → gradients of inputs and weights.
_Slope = Callable[[tuple[bool, bool], Tensor, Tensor, Tensor], tuple[Tensor | None, ...]]


class _Evaluate(torch.autograd.Function):
    """Values from the engine; the backward pass is whatever `slope` makes of the cotangent."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        inputs: Tensor,
        weights: Tensor,
        engine: Engine,
        compiled: CompiledCircuit,
        record: Record,
        slope: _Slope,
        method: str,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weights)
        ctx.slope, ctx.method = slope, method
        estimate = engine.estimate(compiled, rows_of(inputs, weights))
        record(estimate.usage)
        return estimate.values

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs, weights = ctx.saved_tensors
        asked = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        with torch.no_grad():
            slopes = ctx.slope(asked, inputs, weights, cotangent)
        slopes = first_order_only(ctx.method, slopes, inputs, weights, cotangent)
        return *slopes, None, None, None, None, None


@dataclass(frozen=True)
class ParameterShift(GradientMethod):
    """Exact gradients by shifts of ±π/2: of expectation values without noise, with the device's noise, or sampled.

    Each rotation gate of the ISA circuit is shifted by itself, ∂f/∂θ = [f(θ + π/2) − f(θ − π/2)] / 2 (Mitarai et al.,
    arXiv:1803.00745; Schuld et al., arXiv:1811.11184), and the affine map from inputs and weights to the angles gives
    the rest by the chain rule. So a parameter may occur in any number of gates and with any coefficients. Noise does
    not harm the rule: channels that do not depend on the angles leave f a sinusoid in each of them.

    The equidistant rule for a parameter in K gates (Wierichs et al., arXiv:2107.12390) needs the same 2K circuits, but
    integer frequencies, and its variance is no lower; here N shots a circuit give at most 1/(2N) for each gate.

    Cost of a backward pass: 2·R·B rows in one call, with R the gates whose angle depends on something a gradient is
    asked of, and B samples. The forward pass costs B rows.
    """

    def __call__(
        self, engine: Engine, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record
    ) -> Tensor:
        """Values [B, M] of the engine, with gradients by shifted rotations; see `GradientMethod.__call__`."""
        if compiled.postselect:
            raise InvalidInputError(
                "parameter-shift does not hold for post-selected expectation values, which are ratios of sinusoids; "
                "use SPSA(), or the engine's own gradient ('ideal' and 'noisy' have one)"
            )
        if compiled.program.limits:
            raise InvalidInputError(
                f"parameter-shift moves angles by π/2, out of the range the device takes for "
                f"{compiled.program.limits[0][1]}; compile for the device without fractional gates, or use SPSA()"
            )

        def slope(asked: tuple[bool, bool], x: Tensor, w: Tensor, cotangent: Tensor) -> tuple[Tensor | None, ...]:
            free, weights_there = unrolled(compiled), w.to(x.device)
            by_input = torch.as_tensor(free.input_coefficients, device=x.device)
            by_weight = torch.as_tensor(free.weight_coefficients, device=x.device)
            used = np.zeros(len(free.offsets), dtype=bool)
            for wanted, coefficients in zip(asked, (free.input_coefficients, free.weight_coefficients), strict=True):
                used |= wanted & (coefficients != 0).any(axis=1)
            shifted = torch.as_tensor(np.flatnonzero(used), device=x.device)
            offsets = torch.as_tensor(free.offsets, device=x.device)
            angles = x.double() @ by_input.T + weights_there.double() @ by_weight.T + offsets  # [B, R]
            slopes = torch.zeros_like(angles)
            if len(shifted):
                slopes[:, shifted] = self._slopes(engine, free.compiled, angles, shifted, cotangent.double(), record)
            return (
                (slopes @ by_input).to(x) if asked[0] else None,
                (slopes @ by_weight).sum(0).to(w) if asked[1] else None,
            )

        return self._connect(inputs, weights, engine, compiled, record, slope)

    @staticmethod
    def _slopes(
        engine: Engine, free: CompiledCircuit, angles: Tensor, shifted: Tensor, cotangent: Tensor, record: Record
    ) -> Tensor:
        """[B, shifted]: derivatives of Σ cotangent · values by the shifted angles."""
        moves = torch.zeros(len(shifted), angles.shape[1], dtype=angles.dtype, device=angles.device)
        moves[torch.arange(len(shifted), device=angles.device), shifted] = math.pi / 2
        rows = angles[None, :, None, :] + torch.stack([moves, -moves])[:, None]  # [2, B, shifted, R]
        estimate = engine.estimate(free, rows.flatten(0, 2))
        record(estimate.usage)
        plus, minus = estimate.values.reshape(2, len(angles), len(shifted), -1)
        return torch.einsum("bm,brm->br", cotangent, (plus - minus) / 2)


@dataclass(frozen=True)
class SPSA(GradientMethod):
    """Simultaneous perturbation (Spall 1992, doi:10.1109/9.119632): a cheap, noisy estimate of the gradient.

    Each sample and repetition draws directions δ of ±1, moves every input and weight by ± size · δ at once, and takes
    [f(+) − f(−)] / (2·size) · δ. Its mean is the gradient up to terms in size²; its variance grows with the number of
    parameters, and with finite shots as 1/size². Only what a gradient is asked of is moved.

    Cost of a backward pass: 2·repetitions·B rows in one call, whatever the number of parameters.

    Args:
        seed: of the directions. One object draws on from call to call; a new one with this seed repeats them.
            Worker processes that inherit the object draw directions of their own (`Draws`).
        repetitions: directions averaged over, ≥ 1.
        size: of the perturbation, radians, > 0.

    Raises:
        InvalidInputError: repetitions or size outside their range.
    """

    seed: int = 0
    repetitions: int = 1
    size: float = 0.1
    draws: Draws = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.repetitions, bool) or not isinstance(self.repetitions, int) or self.repetitions < 1:
            raise InvalidInputError(f"repetitions is {self.repetitions!r}; allowed: whole numbers from 1")
        if not (math.isfinite(self.size) and self.size > 0):
            raise InvalidInputError(f"size is {self.size!r}; allowed: positive numbers, for example 0.1")
        object.__setattr__(self, "draws", Draws(self.seed))

    def __call__(
        self, engine: Engine, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record
    ) -> Tensor:
        """Values [B, M] of the engine, with gradients by random directions; see `GradientMethod.__call__`."""

        def slope(asked: tuple[bool, bool], x: Tensor, w: Tensor, cotangent: Tensor) -> tuple[Tensor | None, ...]:
            shape = (self.repetitions, len(x), x.shape[1] + len(w))
            signs = torch.as_tensor(self.draws.generator.choice([-1.0, 1.0], shape)).to(x.device)
            moved = torch.tensor([asked[0]] * x.shape[1] + [asked[1]] * len(w)).to(x.device)
            directions = signs * moved
            base = rows_of(x, w).double()
            rows = torch.stack([base + self.size * directions, base - self.size * directions])
            estimate = engine.estimate(compiled, rows.flatten(0, 2))
            record(estimate.usage)
            plus, minus = estimate.values.reshape(2, *shape[:2], -1)
            along = torch.einsum("bm,kbm->kb", cotangent.double(), plus - minus) / (2 * self.size)
            slopes = (along[..., None] * directions).mean(0)  # 1/δ = δ
            return (
                slopes[:, : x.shape[1]].to(x) if asked[0] else None,
                slopes[:, x.shape[1] :].sum(0).to(w) if asked[1] else None,
            )

        return self._connect(inputs, weights, engine, compiled, record, slope)


@dataclass(frozen=True)
class Surrogate(GradientMethod):
    """Values from the engine, gradients from an exact simulation: with ``"noisy"``, of the device's calibration.

    The gradient is that of the model of the device, not of the device: free of shot noise, biased by what the
    calibration does not know. The backward pass costs no circuit.

    Args:
        engine: name of an engine with a gradient of its own, or such an engine.

    Raises:
        UnknownNameError: no such engine.
        InvalidInputError: an engine without gradient.
    """

    engine: str | Engine = "noisy"

    def __post_init__(self) -> None:
        simulator = engine_of(self.engine)
        if not simulator.differentiable:
            raise InvalidInputError(
                f"engine {simulator.name!r} gives no gradient and cannot be a surrogate; use 'noisy' or 'ideal'"
            )
        object.__setattr__(self, "engine", simulator)

    def __call__(
        self, engine: Engine, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record
    ) -> Tensor:
        """Values [B, M] of the engine, with gradients of a simulation; see `GradientMethod.__call__`."""
        assert isinstance(self.engine, Engine)
        refuse_transforms(type(self).__name__, inputs, weights)
        self.engine.check(compiled)
        simulated = self.engine.expectation(compiled, inputs, weights)
        with torch.no_grad():
            estimate = engine.estimate(compiled, rows_of(inputs, weights))
        record(estimate.usage)
        values: Tensor = _Replace.apply(simulated, estimate.values)
        return values


class _Replace(torch.autograd.Function):
    """Other values in place of the simulated ones; the gradient passes to the simulation."""

    @staticmethod
    def forward(ctx: Any, simulated: Tensor, values: Tensor) -> Tensor:  # type: ignore[override]
        return values.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return cotangent, None


METHODS: dict[str, type[GradientMethod]] = {m.__name__: m for m in (ParameterShift, SPSA, Surrogate)}


def method_to_dict(method: GradientMethod | None) -> dict[str, Any] | None:
    """A gradient method as JSON types, for saved layers.

    Raises:
        InvalidInputError: `method_from_dict` would not make an equal one of them.
    """
    if method is None:
        return None
    name = type(method).__name__
    if METHODS.get(name) is type(method):
        settings = {f.name: getattr(method, f.name) for f in fields(method) if f.init}  # type: ignore[arg-type]
        described = {k: spec_of(v) if isinstance(v, Engine) else v for k, v in settings.items()}
        try:
            if method_from_dict(json.loads(json.dumps({"method": name, **described}))) == method:
                return {"method": name, **described}
        except TypeError:
            pass  # a setting that JSON does not hold
    raise InvalidInputError(
        f"gradient method {method!r} cannot be saved: {', '.join(METHODS)} with settings of plain numbers can. Give "
        "another one, or none, first: layer.gradient = None"
    )


def method_from_dict(described: Mapping[str, Any] | None) -> GradientMethod | None:
    """Inverse of `method_to_dict`."""
    if described is None:
        return None
    settings = dict(described)
    return METHODS[settings.pop("method")](**settings)


@dataclass(frozen=True, eq=False)
class Unrolled:
    """Every rotation with an angle of its own: angles = input_coefficients·x + weight_coefficients·w + offsets.

    Attributes:
        compiled: the circuit whose inputs are the R angles, in the order of the ISA circuit's parametrised gates; it
            has no weights. Its `logical` circuit is the original one and does not belong to these inputs: the engines
            evaluate `isa`, and `compile_for` has no meaning here.
        input_coefficients: [R, inputs].
        weight_coefficients: [R, weights].
        offsets: [R] radians.
    """

    compiled: CompiledCircuit
    input_coefficients: np.ndarray
    weight_coefficients: np.ndarray
    offsets: np.ndarray


_made: WeakKeyDictionary[CompiledCircuit, Unrolled] = WeakKeyDictionary()


def unrolled(compiled: CompiledCircuit) -> Unrolled:
    """Give every parametrised gate of the ISA circuit an angle of its own; made once for each compiled circuit.

    Raises:
        UnsupportedCircuitError: an operation or an angle the package cannot evaluate.
    """
    if compiled not in _made:
        program = compiled.program
        isa, angles = _with_free_angles(compiled.isa, len(program.offsets))
        _made[compiled] = Unrolled(
            replace(compiled, isa=isa, inputs=tuple(angles), weights=()),
            program.input_coefficients,
            program.weight_coefficients,
            program.offsets,
        )
    return _made[compiled]


def _with_free_angles(isa: QuantumCircuit, n_rotations: int) -> tuple[QuantumCircuit, ParameterVector]:
    angles = ParameterVector("angle", n_rotations)
    left = iter(angles)

    def freed(circuit: QuantumCircuit) -> QuantumCircuit:
        free = circuit.copy_empty_like()
        free.global_phase = 0  # may contain the old parameters; expectation values do not see it
        for instruction in circuit.data:
            operation = instruction.operation
            if isinstance(operation, FLOW):
                operation = operation.replace_blocks([freed(block) for block in operation.blocks])
            elif any(isinstance(p, ParameterExpression) and p.parameters for p in operation.params):
                operation = operation.to_mutable()
                operation.params = [next(left)]  # `program.lower` has refused gates with more than one
            free.append(operation, instruction.qubits, instruction.clbits, copy=False)
        return free

    free = freed(isa)  # in the order of `program.lower`
    assert next(left, None) is None
    return free, angles
