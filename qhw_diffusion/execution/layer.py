"""`QuantumLayer`: a compiled circuit on an engine as a torch module; its first weights, and the layer on disk.

A saved layer is a folder with the files of its compiled circuit (`saving`) and

    model.safetensors  config.json  the weights, and in the header of their file all that is JSON: the order of inputs
                                    and weights, observables, engine, gradient method, checksums of the other files
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor, nn

from qhw_diffusion.checkpoints import check_format, frozen_parameters, load_module_state, put_state, save_module
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, QhwError
from qhw_diffusion.execution.adaptive import combined
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.conditions import instructions
from qhw_diffusion.execution.engine import (
    Engine,
    Estimate,
    Usage,
    check_finite_inputs,
    real_dense,
    rows_of,
    try_out,
)
from qhw_diffusion.execution.engines import Ideal, engine_of, simulator_of, spec_of
from qhw_diffusion.execution.gradients import GradientMethod, method_from_dict, method_to_dict
from qhw_diffusion.execution.recording import is_plain, outside_torch, refuse_recomputation, refuse_without_numbers
from qhw_diffusion.execution.saving import read_compiled, write_compiled
from qhw_diffusion.execution.simulator import NUMPY, MemoryPlan
from qhw_diffusion.execution.tape import is_transformed, refuse_transforms, without_autocast
from qhw_diffusion.execution.trajectories import Trajectories, sample_trajectories
from qhw_diffusion.runs import atomic_folder

if TYPE_CHECKING:
    from qiskit_machine_learning.neural_networks import NeuralNetwork

_SWEEPS = 20
_counting = threading.Lock()  # threads may share a layer


def initial_weights(compiled: CompiledCircuit, generator: torch.Generator) -> Tensor:
    """[weights] float64, uniform in [−π, π).

    Where the device takes only a range of angles for a gate (fractional rzz), weights in such angles are uniform among
    those that keep all of them in range: drawn one after the other given the others (Gibbs sampling). Where inputs are
    in such an angle too, they are taken as 0, if that leaves any weights.

    Raises:
        InvalidInputError: no weights keep all angles in range.
    """
    weights = (torch.rand(compiled.n_weights, generator=generator, dtype=torch.float64) * 2 - 1) * torch.pi
    names = {instruction.operation.name for instruction in instructions(compiled.isa)}
    if not any(compiled.device.angle_limits(name) for name in names):
        return weights
    program = compiled.program
    limits = [limit for limit in program.limits if program.weight_coefficients[limit[0]].any()]
    strict = [limit for limit in limits if not program.input_coefficients[limit[0]].any()]
    start = None
    for kept in (limits, strict) if len(strict) < len(limits) else (limits,):
        rows = [index for index, *_ in kept]
        slopes = program.weight_coefficients[rows]
        lower = np.array([low for _, _, low, _ in kept]) - program.offsets[rows]
        upper = np.array([high for *_, high in kept]) - program.offsets[rows]
        start = next((s for box in (np.pi, np.inf) if (s := _centre(slopes, lower, upper, box)) is not None), None)
        if start is not None:
            break
    if start is None:
        raise InvalidInputError(
            f"no weights keep all angles of {limits[0][1]} in the range that {compiled.device.name} takes; change the "
            "angles, or compile for the device without fractional gates"
        )
    return _gibbs(weights, start, slopes, lower, upper, generator)


def _centre(slopes: np.ndarray, lower: np.ndarray, upper: np.ndarray, box: float) -> np.ndarray | None:
    """Weights in [−box, box] with lower ≤ slopes·w ≤ upper, far from all bounds; None if there are none."""
    from scipy.optimize import linprog

    n = slopes.shape[1]
    if not len(slopes):
        return np.zeros(n)
    margins = np.linalg.norm(slopes, axis=1)[:, None]
    found = linprog(
        np.array([0.0] * n + [-1.0]),
        A_ub=np.block([[slopes, margins], [-slopes, margins]]),
        b_ub=np.concatenate([upper, -lower]),
        bounds=[(-box, box)] * n + [(0, None)],
    )
    return np.asarray(found.x[:-1]) if found.success else None


def _gibbs(
    drawn: Tensor,
    start: np.ndarray,
    slopes: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    generator: torch.Generator,
) -> Tensor:
    """Uniform weights with lower ≤ slopes·w ≤ upper, from `start`, which has it; others than those as `drawn`."""
    weights, bound = drawn.numpy().copy(), np.flatnonzero(slopes.any(axis=0))
    weights[bound] = start[bound]
    for _ in range(_SWEEPS):
        for at, chance in zip(bound, torch.rand(len(bound), generator=generator, dtype=torch.float64), strict=True):
            slope = slopes[:, at]
            in_it = slope != 0
            rest = slopes[in_it] @ weights - slope[in_it] * weights[at]
            ends = np.sort([(lower[in_it] - rest) / slope[in_it], (upper[in_it] - rest) / slope[in_it]], axis=0)
            low, high = ends[0].max(), ends[1].min()
            if low < np.pi and high > -np.pi:
                low, high = max(low, -np.pi), min(high, np.pi)
            weights[at] = low + float(chance) * max(high - low, 0.0)
    return torch.from_numpy(weights)


KIND, FORMAT = "quantum layer", 1


class QuantumLayer(nn.Module):
    """Expectation values of a compiled circuit as a torch module: [B, inputs] → [B, observables].

    The parameter `weight` is flat, in the order the circuit was compiled with. A circuit that was compiled with
    adaptive observables brings a second one, `coefficients`, flat too, in the order of `AdaptiveObservables.terms`;
    without, it is None. Its gradient is exact whatever the engine and the gradient method: the values of the Pauli
    strings, which it combines. Simulation runs on the CPU, whatever device the tensors are on; values come back to the
    inputs' device.

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
        self._used = [Usage()]  # one for all replicas that nn.DataParallel makes
        self.engine.check(compiled)
        try_out(self.engine, compiled)
        self.weight = nn.Parameter(initial_weights(compiled, torch.Generator().manual_seed(seed)).to(dtype))
        start = None if compiled.adaptive is None else torch.from_numpy(compiled.adaptive.start())
        self.coefficients = None if start is None else nn.Parameter(start.to(dtype))

    @property
    def usage(self) -> Usage:
        """Circuits and shots of all evaluations so far."""
        return self._used[0]

    @outside_torch
    def forward(self, inputs: Tensor) -> Tensor:
        """Expectation values, differentiable in the inputs, in `weight` and in `coefficients`.

        Args:
            inputs: [B, inputs] radians.

        Returns:
            [B, observables], on the device of the inputs, in the layer's dtype.

        Raises:
            InvalidInputError: another shape, NaN or infinity among the inputs, a gradient asked of an engine that
                has none (outside `torch.no_grad()`, without a gradient method), or torch recording instead of
                calculating (`recording`).
            MemoryBudgetError: the batch would not fit into memory.
        """
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            with without_autocast():
                return self._combined(self._forward(inputs))
        return self._combined(self._forward(inputs))

    def _forward(self, inputs: Tensor) -> Tensor:
        weight = self.weight
        inputs = self._fitting(inputs, weight)
        transformed = is_transformed(inputs, weight)
        wanted = torch.is_grad_enabled() and (inputs.requires_grad or weight.requires_grad)
        by_method = self.gradient is not None and (transformed or torch.is_grad_enabled())
        if not (wanted or transformed or by_method):
            return self.engine.values(self.compiled, inputs, weight, self._record)
        if transformed and not self.engine.differentiable:
            refuse_transforms(f"engine {self.engine.name!r}", inputs, weight)
        exact = isinstance(self.engine, Ideal)
        if not exact:
            refuse_recomputation(f"engine {self.engine.label!r}")
        if not transformed and (by_method or not exact):  # exact engines look by themselves
            check_finite_inputs(inputs)
        if by_method:
            assert self.gradient is not None
            return self.gradient(self.engine, self.compiled, inputs, weight, self._record)
        return self.engine.expectation(self.compiled, inputs, weight, self._record)  # one without gradients refuses

    def _combined(self, values: Tensor) -> Tensor:
        """[B, observables] from the values of the compiled circuit's observables [B, M]."""
        adaptive = self.compiled.adaptive
        if adaptive is None or self.coefficients is None:
            return values
        return combined(adaptive, values, self.coefficients)

    @outside_torch
    def estimate(self, inputs: Tensor, engine: Engine | None = None) -> Estimate:
        """Values with standard errors and what they cost, without gradient; on another engine if one is given.

        Those of adaptive observables: see `Engine.estimate_combined`.
        """
        inputs, engine = self._checked(inputs), self.engine if engine is None else engine
        with torch.no_grad():
            rows = rows_of(inputs, self.weight)
            if self.coefficients is None:
                estimate = engine.estimate(self.compiled, rows)
            else:
                estimate = engine.estimate_combined(self.compiled, rows, self.coefficients)
        self._record(estimate.usage)
        return estimate

    def operators(self) -> tuple[SparsePauliOp, ...]:
        """The observables on the logical circuit's qubits, with the coefficients that they have now."""
        if self.compiled.adaptive is None or self.coefficients is None:
            return self.compiled.logical_observables
        return self.compiled.adaptive.operators(self.coefficients.tolist())

    def as_neural_network(self, *, input_gradients: bool = True) -> NeuralNetwork:
        """This layer as qiskit-machine-learning's `NeuralNetwork`, which `TorchConnector` takes (`connector`).

        The layer's `weight` is neither read nor changed; its `usage` grows.

        Args:
            input_gradients: whether `backward` gives the Jacobian by the inputs, which `TorchConnector` needs where
                something is trained ahead of the circuit; None otherwise.

        Raises:
            InvalidInputError: the layer has no gradients: an engine without, and no gradient method.
            MissingDependencyError: qiskit-machine-learning is not installed.
        """
        from qhw_diffusion.execution.connector import neural_network  # an optional dependency

        return neural_network(
            self.compiled,
            self.engine,
            self.gradient,
            dtype=self.weight.dtype,
            record=self._record,
            input_gradients=input_gradients,
        )

    @outside_torch
    def sample(self, inputs: Tensor, generator: torch.Generator) -> Trajectories:
        """Evaluate with the outcomes of mid-circuit measurements drawn, each sample its own (`sample_trajectories`)."""
        drawn = sample_trajectories(self.compiled, self.engine, self._checked(inputs), self.weight, generator)
        return replace(drawn, values=self._combined(drawn.values).detach())

    @outside_torch
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
        return save_layer(self, folder)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | Path | Device | None = None, engine: str | Engine | None = None
    ) -> QuantumLayer:
        """The layer that `save` wrote, on another device or engine if asked (`execution.load_layer`)."""
        return load_layer(folder, device=device, engine=engine)

    def with_engine(self, engine: str | Engine, *, gradient: GradientMethod | None = None) -> QuantumLayer:
        """A copy of this layer (weights copied) on another engine."""
        return self._copy(self.compiled, engine_of(engine), gradient)

    def with_compiled(self, compiled: CompiledCircuit, engine: str | Engine | None = None) -> QuantumLayer:
        """A copy of this layer (weights copied) for another compilation of the same logical circuit."""
        if compiled.adaptive != self.compiled.adaptive:
            raise InvalidInputError(
                "the other circuit was compiled with other adaptive observables, which these coefficients do not "
                "belong to; compile it with compiled.compile_for(device)"
            )
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
        if self.coefficients is not None and copy.coefficients is not None:
            copy.coefficients.data.copy_(self.coefficients.data)
            copy.coefficients.requires_grad_(self.coefficients.requires_grad)
        return copy

    def _checked(self, inputs: Tensor) -> Tensor:
        inputs = self._fitting(inputs, self.weight)
        if not is_transformed(inputs):
            check_finite_inputs(inputs)
        return inputs

    def _fitting(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """The inputs as the engines take them; most are so already, and nothing is lost on them."""
        n = self.compiled.n_inputs
        if isinstance(inputs, Tensor) and inputs.is_nested:
            raise InvalidInputError(f"inputs are a nested tensor; give one of shape [batch, {n}]")
        if not isinstance(inputs, Tensor) or inputs.ndim != 2 or inputs.shape[1] != n:
            given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise InvalidInputError(f"inputs must be a tensor of shape [batch, {n}], given {given}")
        if inputs.shape[0] == 0:
            raise InvalidInputError("inputs has no rows; give at least one sample")
        fitting = inputs.dtype == weight.dtype and inputs.layout == torch.strided and not inputs.is_neg()
        if fitting and is_plain(inputs) and is_plain(weight):
            return inputs
        refuse_without_numbers("inputs", inputs)
        refuse_without_numbers("weights", weight)
        if isinstance(self.engine, Ideal):  # before anything of the batch's size is made
            simulator_of(self.compiled, self.engine.noisy, weight.dtype).plan(len(inputs), True)
        return inputs if fitting else real_dense(inputs, "inputs").to(weight.dtype)

    def _record(self, usage: Usage) -> None:
        with _counting:
            self._used[0] = self._used[0] + usage

    def __prepare_scriptable__(self) -> QuantumLayer:
        raise InvalidInputError("torch.jit.script compiles torch operations, and a circuit is none: use torch.compile")

    def extra_repr(self) -> str:
        """Inputs, weights, observables, engine and device, for `print`."""
        c = self.compiled
        adaptive = "" if self.coefficients is None else f" of {len(self.coefficients)} coefficients"
        return (
            f"{c.n_inputs} inputs, {c.n_weights} weights, {c.n_values} observables{adaptive}, "
            f"engine={self.engine.name}, device={c.device.name}"
        )


# -- on disk -----------------------------------------------------------------------------------------------------------


def save_layer(layer: QuantumLayer, folder: str | Path) -> Path:
    """Write a layer into `folder`; returns it. `load_layer` reads it.

    A sampling engine or gradient method is saved with its seed and starts its draws anew.

    Raises:
        InvalidInputError: an engine, gradient method, device or circuit that could not be made again (the message says
            which); nothing is written then.
    """
    with atomic_folder(folder) as aside:
        config = {
            "kind": KIND,
            "format": FORMAT,
            "frozen": frozen_parameters(layer),
            "layer": write_layer(layer, aside),
        }
        save_module(aside, layer, config)
    return Path(folder)


def load_layer(
    folder: str | Path, *, device: str | Path | Device | None = None, engine: str | Engine | None = None
) -> QuantumLayer:
    """The layer that `save_layer` wrote, weights unchanged on another device (compiled anew) or engine if asked.

    Args:
        folder: what `save_layer` wrote.
        device: name, path of a snapshot or Device; None: the saved one.
        engine: text or Engine; None: the saved one. The gradient method stays (`with_engine` takes another).

    Raises:
        DamagedFileError: the folder does not hold a whole layer, or one of another format version.
        UnknownNameError, InvalidInputError: a device or engine that does not exist or does not fit.
    """
    state, config = load_module_state(folder)
    if config.get("kind") != KIND:
        raise DamagedFileError(f"{folder} does not hold a {KIND} but {config.get('kind')!r}")
    check_format(folder, config.get("format"), FORMAT)
    try:
        layer = read_layer(Path(folder), config["layer"], device=device, engine=engine)
        put_state(layer, state, config["frozen"])
    except QhwError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DamagedFileError(f"{folder} does not hold a whole {KIND} ({error!r})") from error
    return layer.eval()


def write_layer(layer: QuantumLayer, folder: Path) -> dict[str, Any]:
    """Write all of a layer but its weights; returns what `read_layer` needs besides, as JSON types.

    Raises:
        InvalidInputError: as `save_layer`.
    """
    described = {"engine": spec_of(layer.engine), "gradient": method_to_dict(layer.gradient)}
    return {**described, "compiled": write_compiled(layer.compiled, folder)}


def read_layer(
    folder: Path,
    saved: Mapping[str, Any],
    *,
    device: str | Path | Device | None = None,
    engine: str | Engine | None = None,
) -> QuantumLayer:
    """The layer that `write_layer` wrote, with initial weights; `device`, `engine` as in `load_layer`.

    Raises:
        DamagedFileError, UnknownNameError, InvalidInputError: as `load_layer`.
        KeyError, TypeError, ValueError: `saved` is not what `write_layer` returned.
    """
    compiled = read_compiled(folder, saved["compiled"])
    if device is not None:
        compiled = compiled.compile_for(device if isinstance(device, Device) else Device.load(device))
    return QuantumLayer(
        compiled, saved["engine"] if engine is None else engine, gradient=method_from_dict(saved["gradient"])
    )
