"""A denoiser as a layer: the whole reverse process as one circuit, on every engine that gives expectation values.

The circuit, its observables and what is read out of them: `circuits.deferred`, `quotient`. As a `QuantumLayer` it has
what every layer has: engines, mitigation, gradient methods, cost estimates, and the ledger on a device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor, nn

from qhw_diffusion.circuits.deferred import DeferredCircuit, deferred_circuit, preparation_angles
from qhw_diffusion.denoising.quotient import Quotient, quotient_of
from qhw_diffusion.denoising.readout import ImageEstimate
from qhw_diffusion.denoising.reverse import ReverseProcess, check_labels
from qhw_diffusion.denoising.states import as_density, check_density, check_pure
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Engine, Estimate, GradientMethod, QuantumLayer, compile_circuit
from qhw_diffusion.execution.engines import Shots
from qhw_diffusion.execution.measurement import z_signs
from qhw_diffusion.execution.primitive import Hardware

if TYPE_CHECKING:
    from qhw_diffusion.denoising.models import QDM

# A magnitude of 0 has a derivative on one side only
_LEAST = 1e-6


@dataclass(frozen=True)
class Denoised:
    """What the circuits of B images gave.

    Attributes:
        estimate: ⟨P Z^s⟩ [B, 2ⁿ] as the engine gave them, with standard errors and what they cost.
        read: probabilities, success probabilities and their errors.
        images: images [B, C, H, W] with an error bar for every pixel, and magnitudes; NaN for an image whose success
            probability is not told from 0. None for models without images.
    """

    estimate: Estimate
    read: Quotient
    images: ImageEstimate | None


class DenoiserLayer(nn.Module):
    """The reverse process of a denoiser as one circuit (`QDM.as_layer`).

    Args:
        model: post-selected, unitary or reset (its outcomes are not kept).
        compiled: from `compile_deferred`; None compiles for the device of the model.
        engine: as for `QuantumLayer`.
        gradient: as for `QuantumLayer`.

    Attributes:
        layer: the `QuantumLayer`; its weights are a copy of the model's, those of step 1 first. Without weights where
            they depend on the label: they are inputs then.

    Raises:
        InvalidInputError: a model that keeps outcomes, or a compiled circuit of another one.
    """

    model: QDM

    def __init__(
        self,
        model: QDM,
        compiled: CompiledCircuit | None = None,
        engine: str | Engine = "ideal",
        *,
        gradient: GradientMethod | None = None,
    ) -> None:
        super().__init__()
        circuit = deferred_of(model)
        compiled = compile_deferred(model) if compiled is None else compiled
        found, wanted = (compiled.n_inputs, compiled.n_weights), (len(circuit.inputs), len(circuit.weights))
        if found != wanted or compiled.n_observables != len(circuit.observables):
            raise InvalidInputError(
                f"the compiled circuit has (inputs, weights) = {found}, the reverse process of this model {wanted}: "
                "compile it with compile_deferred"
            )
        # not a submodule: its parameters are not this module's
        object.__setattr__(self, "model", model)
        self.circuit = circuit
        dtype = model.reverse.weight.dtype
        self.layer = QuantumLayer(compiled, engine, gradient=gradient, dtype=dtype)
        with torch.no_grad():
            self.layer.weight.copy_(deferred_weights(model))
        self.layer.weight.requires_grad_(model.reverse.weight.requires_grad)

    @property
    def compiled(self) -> CompiledCircuit:
        """The circuit, compiled."""
        return self.layer.compiled

    def on(self, engine: str | Engine, *, gradient: GradientMethod | None = None) -> Self:
        """The same with its present weights on another engine."""
        other = type(self)(self.model, self.compiled, engine, gradient=gradient)
        other.layer.weight.data.copy_(self.layer.weight.data)
        return other

    def inputs(self, states: Tensor, labels: Tensor | None = None) -> Tensor:
        """[B, inputs] angles of starts x_T and labels, float64 (`deferred_inputs`)."""
        return deferred_inputs(self.model, states, labels)

    def forward(self, states: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probabilities [B, d] of the outcomes of the shots that pass, and the success probability [B]; differentiable.

        With noisy values probabilities may be negative, as they come out.

        Args:
            states: x_T, [B, d] or [B, d, d].
            labels: int64 [B]; needed if the process has labels.
        """
        values = self.layer(self.inputs(states, labels))
        success = values[:, 0]
        return shares_of(values) / success[:, None], success

    def estimate(self, states: Tensor, labels: Tensor | None = None) -> Denoised:
        """Probabilities, success probability and images with standard errors, without gradient.

        Args:
            states: x_T, [B, d] or [B, d, d].
            labels: int64 [B]; needed if the process has labels.
        """
        engine, estimate = self.layer.engine, self.layer.estimate(self.inputs(states, labels))
        return denoised(self.model, estimate, plain_shots(engine, estimate))


def shares_of(values: Tensor) -> Tensor:
    """q(x) [B, 2ⁿ], the share of all shots that pass with outcome x, from ⟨P Z^s⟩ [B, 2ⁿ]; differentiable."""
    return values @ torch.from_numpy(z_signs(values.shape[1].bit_length() - 1)).to(values) / values.shape[1]


def deferred_of(model: QDM) -> DeferredCircuit:
    """The deferred circuit of a model; a mixed prior is purified.

    Raises:
        InvalidInputError: a model without a circuit, that keeps outcomes, or with too many post-selected qubits.
    """
    reverse = model.reverse
    if not isinstance(reverse, ReverseProcess):
        raise InvalidInputError(f"a {type(reverse).__name__} has no circuit: only circuits run on a device")
    config = reverse.config
    if config.kind == "measured":
        how = "choose the next step's angles" if config.feed_forward else "belong to the image"
        raise InvalidInputError(
            f"the outcomes of this model {how}: kept outcomes need counts, of every outcome record, and an Estimator "
            "gives none: a Sampler does (--primitive sampler). Post-selected and reset models run by an Estimator"
        )
    return deferred_circuit(
        reverse.circuit,
        config.n_steps,
        select=config.kind == "postselected",
        shared_weights=config.weight_sharing == "time_embedding",
        weights_as_inputs=config.conditioning == "weights",
        purified=model.forward_process.density,
    )


def compile_deferred(model: QDM, device: str | Device | None = None, *, scheduled: bool = False) -> CompiledCircuit:
    """The deferred circuit compiled for a device.

    Args:
        model: as for `DenoiserLayer`.
        device: name, path of a snapshot, or Device; None: the model's.
        scheduled: with a delay wherever a qubit waits (`compile_circuit`).

    Raises:
        InvalidInputError: as `deferred_of`, or the circuit is wider than the device.
        UnknownNameError: no such device.
    """
    circuit = deferred_of(model)
    target = model.reverse.compiled.device if device is None else device
    target = target if isinstance(target, Device) else Device.load(target)
    usable = circuit.circuit.num_qubits if target.target is None else len(target.usable_qubits)
    if circuit.circuit.num_qubits > usable:
        config, others = model.reverse.config, len(model.reverse.circuit.measured)
        more = f", and {len(circuit.purifying)} that purify the start" if circuit.purifying else ""
        raise InvalidInputError(
            f"the denoiser as one circuit has {circuit.circuit.num_qubits} qubits: {config.n_qubits} of the data, "
            f"{others} more for each of {config.n_steps} steps{more}; {target.name} has {usable} that can be used. "
            "Take a larger device, or a model of fewer steps"
        )
    return compile_circuit(
        circuit.circuit,
        target,
        inputs=circuit.inputs,
        weights=circuit.weights,
        observables=circuit.observables,
        seed=model.reverse.config.seed,
        scheduled=scheduled,
    )


@torch.no_grad()
def deferred_weights(model: QDM) -> Tensor:
    """[W] weights of the deferred circuit, those of step 1 first; empty where they are inputs."""
    return _weights(model)


@torch.no_grad()
def deferred_inputs(model: QDM, states: Tensor, labels: Tensor | None = None) -> Tensor:
    """[B, inputs] angles of the deferred circuit, float64.

    Args:
        model: as for `DenoiserLayer`.
        states: x_T, [B, d] or [B, d, d]; mixed ones only where the model's prior is mixed.
        labels: int64 [B]; needed if the process has labels.

    Raises:
        InvalidInputError: no states of this dimension, mixed ones for a pure prior, or labels out of range.
    """
    return _inputs(model, states, labels)


def deferred_angles(model: QDM, states: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Inputs [B, inputs] and weights [W] of the deferred circuit, float64, differentiable in the model's parameters.

    Args and errors as in `deferred_inputs`.
    """
    return _inputs(model, states, labels), _weights(model).double()


def _weights(model: QDM) -> Tensor:
    reverse = model.reverse
    config = reverse.config
    if config.conditioning == "weights":
        return torch.zeros(0, dtype=reverse.weight.dtype)
    steps = 1 if config.weight_sharing == "time_embedding" else config.n_steps
    return torch.cat([reverse.weights_of(t) for t in range(1, steps + 1)])


def _inputs(model: QDM, states: Tensor, labels: Tensor | None) -> Tensor:
    reverse, config = model.reverse, model.reverse.config
    labels = check_labels(labels, len(states), config.n_labels)
    parts = [torch.from_numpy(preparation_angles(amplitudes_of(model, states)))]
    steps = range(1, config.n_steps + 1)
    inputs = [reverse.inputs_of(t, labels).double() for t in steps]
    parts.append(inputs[0][:, : config.label_qubits])
    parts += [each[:, config.label_qubits :] for each in inputs]
    if config.conditioning == "weights":
        shared = config.weight_sharing == "time_embedding"
        for t in (1,) if shared else steps:
            table = torch.stack([reverse.weights_of(t, label) for label in range(config.n_labels)])
            parts.append(table[labels].double())
    return torch.cat(parts, 1)


def amplitudes_of(model: QDM, states: Tensor) -> np.ndarray:
    """[B, 2ᵏ] amplitudes of what is prepared: the states, or with a mixed prior their purifications."""
    if states.ndim == 3:
        check_density(states)
    else:
        check_pure(states)
    if states.shape[-1] != model.dim:
        raise InvalidInputError(f"states of dimension {states.shape[-1]}; this model's have {model.dim}")
    if not model.forward_process.density:
        if states.ndim == 3:
            raise InvalidInputError(
                "density matrices given to a model whose prior is pure: its circuit prepares pure states [B, d]"
            )
        return np.asarray(states.detach().cpu().to(torch.complex128))
    found = torch.linalg.eigh(as_density(states).detach().cpu().to(torch.complex128))
    roots = found.eigenvalues.clamp_min(0).sqrt()
    roots = roots / roots.norm(dim=1, keepdim=True)
    columns = found.eigenvectors * roots[:, None, :]  # [B, x, i]: Σ_i √λ_i |v_i⟩ |i⟩
    return columns.mT.reshape(len(states), -1).numpy()


def plain_shots(engine: Engine, estimate: Estimate) -> int | None:
    """Shots of each circuit, where the engine's values are means over plain shots; None where errors are its own.

    None for exact engines, mitigated ones, primitives and engines of a user's own, which may do more than count.
    """
    level = engine.options.get("resilience_level") if isinstance(engine, Hardware) else None
    counts = isinstance(engine, Shots) or (isinstance(engine, Hardware) and not level)
    return estimate.usage.shots // estimate.usage.circuits if counts and estimate.usage.circuits else None


def denoised(model: QDM, estimate: Estimate, shots: int | None = None) -> Denoised:
    """What ⟨P Z^s⟩ say of the images.

    Args:
        model: as for `DenoiserLayer`.
        estimate: of its deferred circuit.
        shots: as `plain_shots` has them.
    """
    read = quotient_of(estimate.values, estimate.std_errors, shots, estimate.covariance)
    decode = getattr(model, "decode", None)
    return Denoised(estimate, read, None if decode is None else _images(read, decode))


def _images(read: Quotient, decode: Callable[[Tensor], Tensor]) -> ImageEstimate:
    """Images, and their pixels' errors to first order: J Σ Jᵀ with the decoder's Jacobian J at the magnitudes."""
    magnitudes, errors = read.magnitudes
    images = decode(magnitudes.float()).detach()
    finite = torch.where(errors.isfinite(), errors, 0.0)
    jacobian = _jacobian(decode, magnitudes.float().clamp_min(_LEAST))
    slopes = jacobian.double() * finite[:, None, None, None, :]
    variances = torch.einsum("bchwx,bxy,bchwy->bchw", slopes, read.correlations, slopes).clamp_min(0)
    unknown, out = errors.isinf().any(1)[:, None, None, None], ~read.resolved[:, None, None, None]
    pixel_errors = variances.sqrt().masked_fill(unknown, torch.inf).masked_fill(out, torch.nan)
    kept = None if not bool(read.kept.isfinite().all()) else read.kept.round().long()
    missing = ~read.resolved[:, None]
    return ImageEstimate(
        images.masked_fill(out, torch.nan).float(),
        pixel_errors.float(),
        magnitudes.masked_fill(missing, torch.nan).float(),
        errors.masked_fill(missing, torch.nan).float(),
        kept,
    )


def _jacobian(decode: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """[B, C, H, W, d] of images by magnitudes [B, d]: a backward pass of the backward pass for every magnitude.

    (`torch.func.jvp` gives the same, and imports torch's compiler for it, which takes seconds.)
    """
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        images = decode(at)
        dual = torch.zeros_like(images, requires_grad=True)
        (pulled,) = torch.autograd.grad(images, at, dual, create_graph=True)
        columns = [torch.autograd.grad(pulled[:, x].sum(), dual, retain_graph=True)[0] for x in range(at.shape[1])]
    return torch.stack(columns, -1).detach()
