"""QuantumLayer: the one door through which torch code evaluates a compiled circuit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import Engine, Estimate, Usage, real_dense, rows_of
from qhw_diffusion.execution.engine_text import engine_of
from qhw_diffusion.execution.exact import Ideal, simulator_of
from qhw_diffusion.execution.gradients import GradientMethod
from qhw_diffusion.execution.initial import initial_weights
from qhw_diffusion.execution.simulator import NUMPY, MemoryPlan
from qhw_diffusion.execution.tape import is_transformed, refuse_transforms, without_autocast
from qhw_diffusion.execution.trajectories import Trajectories, sample_trajectories

if TYPE_CHECKING:
    from qiskit_machine_learning.neural_networks import NeuralNetwork


class QuantumLayer(nn.Module):
    """Expectation values of a compiled circuit as a torch module: [B, inputs] → [B, observables].

    The only parameter is `weight`, flat, in the order the circuit was compiled with. Simulation runs on the CPU,
    whatever device the tensors are on; values come back to the inputs' device.

    Args:
        compiled: result of `compile_circuit`.
        engine: ``"ideal"``, ``"noisy"`` (the device's noise, exact), ``"shots:4096"``, ``"noisy+readout"`` or any other
            text that `engine_of` understands, or any `Engine`.
        gradient: how gradients are had: None for the engine's own (exact) ones, or a method from `gradients`
            (`ParameterShift`, `SPSA`, `Surrogate`), needed where the engine has none.
        dtype: torch.float32 or torch.float64; `layer.double()` and `layer.to(...)` work as for any module.
        seed: seed of the initial weights, uniform in [-π, π); in angles of which the device takes only a range
            (fractional rzz), uniform among those within it.

    Attributes:
        usage: circuits and shots of all evaluations so far (zero for exact engines).

    Raises:
        UnknownNameError: no such engine.
        InvalidInputError: an engine that cannot evaluate this circuit (noise on the ideal device), another dtype, or
            angles that no weights keep within the device's range.
        MemoryBudgetError: one sample would not fit into memory (the message says what it would need).
    """

    def __init__(
        self,
        compiled: CompiledCircuit,
        engine: str | Engine = "ideal",
        *,
        gradient: GradientMethod | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(compiled, CompiledCircuit):
            raise InvalidInputError(f"compiled must come from compile_circuit, not be a {type(compiled).__name__}")
        if dtype not in NUMPY:
            raise InvalidInputError(f"dtype is {dtype}; allowed: torch.float32, torch.float64")
        self.compiled = compiled
        self.engine = engine_of(engine)
        if gradient is not None and not isinstance(gradient, GradientMethod):
            raise InvalidInputError(f"gradient is {gradient!r}; give ParameterShift(), SPSA(), Surrogate() or None")
        self.gradient = gradient
        self.usage = Usage()
        self.engine.check(compiled)
        self.weight = nn.Parameter(initial_weights(compiled, torch.Generator().manual_seed(seed)).to(dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, inputs] (radians) → [B, observables].

        Raises:
            InvalidInputError: another shape, NaN or infinity among the inputs, or a gradient asked of an engine that
                has none (outside `torch.no_grad()`, without a gradient method).
            MemoryBudgetError: the batch would not fit into memory.
        """
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            with without_autocast():
                return self._forward(inputs)
        return self._forward(inputs)

    def _forward(self, inputs: Tensor) -> Tensor:
        inputs = self._checked(inputs)
        transformed = is_transformed(inputs, self.weight)
        wanted = torch.is_grad_enabled() and (inputs.requires_grad or self.weight.requires_grad)
        if transformed and not self.engine.differentiable:
            refuse_transforms(f"engine {self.engine.name!r}", inputs, self.weight)
        if self.gradient is not None and (transformed or torch.is_grad_enabled()):
            return self.gradient(self.engine, self.compiled, inputs, self.weight, self._record)
        if wanted or transformed:  # an engine without gradients refuses, and says what to do
            return self.engine.expectation(self.compiled, inputs, self.weight, self._record)
        return self.estimate(inputs).values

    def estimate(self, inputs: Tensor) -> Estimate:
        """Values with standard errors and what they cost, without gradient."""
        inputs = self._checked(inputs)
        with torch.no_grad():
            estimate = self.engine.estimate(self.compiled, rows_of(inputs, self.weight))
        self._record(estimate.usage)
        return estimate

    def as_neural_network(self) -> NeuralNetwork:
        """This layer as qiskit-machine-learning's `NeuralNetwork`, which `TorchConnector` takes (`connector`).

        Raises:
            MissingDependencyError: qiskit-machine-learning is not installed.
        """
        from qhw_diffusion.execution.connector import as_neural_network

        return as_neural_network(self)

    def sample(self, inputs: Tensor, generator: torch.Generator) -> Trajectories:
        """Evaluate with the outcomes of mid-circuit measurements drawn, each sample its own (`sample_trajectories`)."""
        return sample_trajectories(self.compiled, self.engine, self._checked(inputs), self.weight, generator)

    def probability(self, inputs: Tensor) -> Tensor:
        """[B]: probability of the outcomes post-selected on (1 without post-selection); differentiable.

        Raises:
            InvalidInputError: the engine is not an exact one.
        """
        inputs = self._checked(inputs)
        if not isinstance(self.engine, Ideal):
            raise InvalidInputError(f"engine {self.engine.name!r} does not know probabilities; use 'ideal' or 'noisy'")
        if not self.compiled.postselect:
            return torch.ones(len(inputs), dtype=self.weight.dtype, device=inputs.device)
        return simulator_of(self.compiled, self.engine.noisy, self.weight.dtype).raw(inputs, self.weight)[:, -1]

    def memory_plan(self, batch: int, *, gradient: bool = True) -> MemoryPlan:
        """How an exact engine will work through a batch: samples at a time, recomputation, bytes.

        Raises:
            MemoryBudgetError: it would not fit.
            InvalidInputError: the engine is not an exact one.
        """
        if not isinstance(self.engine, Ideal):
            raise InvalidInputError(f"engine {self.engine.name!r} plans no memory; use 'ideal' or 'noisy'")
        return simulator_of(self.compiled, self.engine.noisy, self.weight.dtype).plan(batch, gradient)

    def save(self, folder: str | Path) -> Path:
        """Write weights, circuit, device, engine and gradient method into `folder` (`execution.save_layer`)."""
        from qhw_diffusion.execution.saving import save_layer  # here, since saving knows layers

        return save_layer(self, folder)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | Path | Device | None = None, engine: str | Engine | None = None
    ) -> QuantumLayer:
        """The layer that `save` wrote, on another device or engine if asked (`execution.load_layer`)."""
        from qhw_diffusion.execution.saving import load_layer

        return load_layer(folder, device=device, engine=engine)

    def with_engine(self, engine: str | Engine, *, gradient: GradientMethod | None = None) -> QuantumLayer:
        """A copy of this layer (weights copied) on another engine."""
        return self._copy(self.compiled, engine_of(engine), gradient)

    def with_compiled(self, compiled: CompiledCircuit, engine: str | Engine | None = None) -> QuantumLayer:
        """A copy of this layer (weights copied) for another compilation of the same logical circuit."""
        if (compiled.n_inputs, compiled.n_weights) != (self.compiled.n_inputs, self.compiled.n_weights):
            raise InvalidInputError(
                f"the other circuit has {compiled.n_inputs} inputs and {compiled.n_weights} weights, this one "
                f"{self.compiled.n_inputs} and {self.compiled.n_weights}"
            )
        return self._copy(compiled, self.engine if engine is None else engine_of(engine), self.gradient)

    def _copy(self, compiled: CompiledCircuit, engine: Engine, gradient: GradientMethod | None) -> QuantumLayer:
        copy = QuantumLayer(compiled, engine, gradient=gradient, dtype=self.weight.dtype).to(self.weight.device)
        copy.weight.data.copy_(self.weight.data)
        copy.weight.requires_grad_(self.weight.requires_grad)
        return copy

    def _checked(self, inputs: Tensor) -> Tensor:
        n = self.compiled.n_inputs
        if not isinstance(inputs, Tensor) or inputs.ndim != 2 or inputs.shape[1] != n:
            given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise InvalidInputError(f"inputs must be a tensor of shape [batch, {n}], given {given}")
        if inputs.shape[0] == 0:
            raise InvalidInputError("inputs has no rows; give at least one sample")
        if isinstance(self.engine, Ideal):
            self.memory_plan(len(inputs))  # before anything of the batch's size is made
        inputs = real_dense(inputs, "inputs").to(self.weight.dtype)
        # numpy is several times faster than torch on small tensors
        if not is_transformed(inputs) and not np.isfinite(inputs.detach().cpu().numpy()).all():
            raise InvalidInputError("inputs contain NaN or infinity; check what produced them")
        return inputs

    def _record(self, usage: Usage) -> None:
        self.usage = self.usage + usage

    def extra_repr(self) -> str:
        c = self.compiled
        return (
            f"{c.n_inputs} inputs, {c.n_weights} weights, {c.n_observables} observables, "
            f"engine={self.engine.name}, device={c.device.name}"
        )
