"""QuantumLayer: the one door through which torch code evaluates a compiled circuit."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from qhw_diffusion.errors import InvalidInputError, MemoryBudgetError, UnknownNameError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.simulator import COMPLEX, Simulator
from qhw_diffusion.execution.stages import LOCAL_DIMENSION, Basis

ENGINES: dict[str, Basis] = {"ideal": "state", "noisy": "density"}


class QuantumLayer(nn.Module):
    """Expectation values of a compiled circuit as a torch module: [B, inputs] → [B, observables].

    Exact (no shots) and differentiable in inputs and weights. Fixed gates, noise and observables are constants; the
    only parameter is `weight`, flat, in the order the circuit was compiled with.

    Args:
        compiled: result of `compile_circuit`.
        engine: ``"ideal"`` (no noise) or ``"noisy"`` (the device's gate noise and asymmetric readout error).
        dtype: torch.float32 or torch.float64; `layer.double()` and `layer.to(...)` work as for any module.
        seed: seed of the initial weights, uniform in [-π, π).

    Raises:
        UnknownNameError: no such engine.
        InvalidInputError: the noisy engine on a device without noise, or another dtype.
        MemoryBudgetError: one sample would not fit into memory (the message says what it would need).
    """

    def __init__(
        self, compiled: CompiledCircuit, engine: str = "ideal", *, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> None:
        super().__init__()
        if not isinstance(compiled, CompiledCircuit):
            raise InvalidInputError(f"compiled must come from compile_circuit, not be a {type(compiled).__name__}")
        if engine not in ENGINES:
            raise UnknownNameError.of("engine", str(engine), ENGINES)
        if dtype not in COMPLEX:
            raise InvalidInputError(f"dtype is {dtype}; allowed: torch.float32, torch.float64")
        if engine == "noisy" and compiled.device.target is None:
            raise InvalidInputError(
                f"device {compiled.device.name!r} has no noise: use engine='ideal', or compile for a fake device"
            )
        self.compiled = compiled
        self.engine = engine
        self._simulators: dict[tuple[torch.dtype, torch.device], Simulator] = {}
        _check_memory(len(compiled.physical_qubits), 1, 3, engine, dtype)
        generator = torch.Generator().manual_seed(seed)
        initial = (torch.rand(compiled.n_weights, generator=generator, dtype=torch.float64) * 2 - 1) * torch.pi
        self.weight = nn.Parameter(initial.to(dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, inputs] (radians) → [B, observables].

        Raises:
            InvalidInputError: another shape, or NaN or infinity among the inputs.
            MemoryBudgetError: the batch would not fit into memory.
        """
        n = self.compiled.n_inputs
        if not isinstance(inputs, Tensor) or inputs.ndim != 2 or inputs.shape[1] != n:
            given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise InvalidInputError(f"inputs must be a tensor of shape [batch, {n}], given {given}")
        if inputs.shape[0] == 0:
            raise InvalidInputError("inputs has no rows; give at least one sample")
        simulator = self._simulator(inputs.shape[0])
        if not bool(torch.isfinite(inputs).all()):
            raise InvalidInputError("inputs contain NaN or infinity; check what produced them")
        return simulator(inputs.to(self.weight.dtype), self.weight)

    def with_engine(self, engine: str) -> QuantumLayer:
        """A copy of this layer (weights copied) on another engine."""
        return self._copy(self.compiled, engine)

    def with_compiled(self, compiled: CompiledCircuit, engine: str | None = None) -> QuantumLayer:
        """A copy of this layer (weights copied) for another compilation of the same logical circuit."""
        if (compiled.n_inputs, compiled.n_weights) != (self.compiled.n_inputs, self.compiled.n_weights):
            raise InvalidInputError(
                f"the other circuit has {compiled.n_inputs} inputs and {compiled.n_weights} weights, this one "
                f"{self.compiled.n_inputs} and {self.compiled.n_weights}"
            )
        return self._copy(compiled, engine or self.engine)

    def _copy(self, compiled: CompiledCircuit, engine: str) -> QuantumLayer:
        copy = QuantumLayer(compiled, engine, dtype=self.weight.dtype).to(self.weight.device)
        copy.weight.data.copy_(self.weight.data)
        copy.weight.requires_grad_(self.weight.requires_grad)
        return copy

    def _simulator(self, batch: int) -> Simulator:
        key = (self.weight.dtype, self.weight.device)
        if key[0] not in COMPLEX:
            raise InvalidInputError(f"the layer is in {key[0]}; allowed: torch.float32, torch.float64")
        if key not in self._simulators:
            # Constants are kept apart from the module's buffers: built in full precision for each dtype and device,
            # never rounded by a cast, never part of a checkpoint.
            self._simulators = {key: Simulator(self.compiled.program, ENGINES[self.engine], *key)}
        simulator = self._simulators[key]
        stored = 2
        if torch.is_grad_enabled():
            body = simulator.stages.body
            # per rotation layer the turned rows, phases, sines and cosines; per map its input, rearranged
            stored += 4 * body.n_stages + 2 * sum(len(blocks) for blocks in body.blocks)
        _check_memory(simulator.stages.n_qubits, batch, stored, self.engine, key[0])
        return simulator

    def extra_repr(self) -> str:
        c = self.compiled
        return (
            f"{c.n_inputs} inputs, {c.n_weights} weights, {c.n_observables} observables, "
            f"engine={self.engine}, device={c.device.name}"
        )

    def _apply(self, fn: Callable, recurse: bool = True) -> QuantumLayer:
        module = super()._apply(fn, recurse)
        self._simulators = {}
        return module


def _check_memory(n_qubits: int, batch: int, arrays: int, engine: str, dtype: torch.dtype) -> None:
    """Refuse before allocating what the machine cannot hold: `arrays` complex arrays of [batch, dimension]."""
    dimension = LOCAL_DIMENSION[ENGINES[engine]] ** n_qubits
    needed = arrays * batch * dimension * (16 if dtype == torch.float64 else 8)
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise MemoryBudgetError(
            f"engine {engine!r} with {n_qubits} active qubits and batch {batch} needs about {needed / 2**30:.1f} GiB; "
            f"this machine has {available / 2**30:.1f} GiB. Use fewer qubits, a smaller batch"
            + (", or engine='ideal'" if engine == "noisy" else "")
        )
