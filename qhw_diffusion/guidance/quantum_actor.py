"""The quantum policy: scaled state → circuit → ⟨Z⟩ → small MLP → Gaussian ΔCFG (arXiv 2509.14163)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qhw_diffusion.checkpoints import frozen_parameters, put_state
from qhw_diffusion.circuits import PolicyCircuit
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Engine, QuantumLayer, compile_circuit
from qhw_diffusion.guidance.actors import Actor, GaussianHead


def compile_policy(
    circuit: PolicyCircuit, device: Device, *, seed: int = 0, optimization_level: int = 3, scheduled: bool = False
) -> CompiledCircuit:
    """The policy circuit compiled for a device (see `compile_circuit`)."""
    return compile_circuit(
        circuit.circuit,
        device,
        inputs=circuit.inputs,
        weights=circuit.weights,
        observables=circuit.observables,
        seed=seed,
        optimization_level=optimization_level,
        scheduled=scheduled,
    )


class QuantumActor(Actor):
    """Angle encoding with trainable scales, the policy circuit, and a head n→64→32→2 on the n expectation values.

    The angle of state entry j is input_scale_j · s_j; it starts at π/2 per unit, so that the calibrated range of
    ± two standard deviations covers ± π/2, and four standard deviations stay within the circle. The gradient runs
    through the circuit to its weights and to the input scales; nothing is detached. `freeze_circuit=True` leaves the
    whole quantum part (weights and scales) at its random start: the control that tells whether training the circuit
    mattered.
    """

    kind = "quantum"
    uses_circuit = True

    def __init__(
        self,
        layer: QuantumLayer,
        circuit: PolicyCircuit,
        *,
        hidden: Sequence[int] = (64, 32),
        action_dim: int = 1,
        output_scaling: bool = False,
        freeze_circuit: bool = False,
        initial_std: float = 0.5,
        gain: float = 0.1,
        seed: int = 0,
        initial_scale: float = math.pi / 2,
    ) -> None:
        """layer: the compiled `circuit` on some engine; seed: of the head (the layer has its own)."""
        super().__init__()
        compiled = layer.compiled
        wanted = len(circuit.inputs), len(circuit.weights), len(circuit.observables)
        given = compiled.n_inputs, compiled.n_weights, compiled.n_observables
        if wanted != given:
            raise InvalidInputError(
                f"the layer has (inputs, weights, observables) = {given}, the circuit {wanted}; "
                f"compile this circuit: compile_policy(circuit, device)"
            )
        self.layer, self.circuit = layer, circuit
        self.n_features, self.action_dim = len(circuit.inputs), action_dim
        self.hidden, self.output_scaling, self.freeze_circuit = tuple(hidden), output_scaling, freeze_circuit
        self.initial_std, self.gain, self.seed = initial_std, gain, seed
        self.input_scale = nn.Parameter(torch.full((self.n_features,), initial_scale))
        n_out = len(circuit.observables)
        self.output_scale = nn.Parameter(torch.ones(n_out)) if output_scaling else None
        generator = torch.Generator().manual_seed(seed)
        self.head = GaussianHead([n_out, *self.hidden], action_dim, generator, initial_std=initial_std, gain=gain)
        if freeze_circuit:
            for parameter in self._quantum():
                parameter.requires_grad_(False)

    def _quantum(self) -> list[nn.Parameter]:
        own = [self.layer.weight, self.input_scale]
        return own if self.output_scale is None else [*own, self.output_scale]

    def angles(self, obs: Tensor) -> Tensor:
        """Encoding angles [B, n_features] in radians."""
        return obs * self.input_scale

    def expectations(self, obs: Tensor) -> Tensor:
        """⟨Z⟩ of each qubit (times the output scale, if trained), [B, n_qubits]."""
        values: Tensor = self.layer(self.angles(obs))
        return values if self.output_scale is None else values * self.output_scale

    def _outputs(self, obs: Tensor) -> Tensor:
        out: Tensor = self.head(self.expectations(obs).to(obs.dtype))
        return out

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        circuit = [p for p in self._quantum() if p.requires_grad]
        return {"circuit": circuit, "head": list(self.head.parameters())}

    def on(self, device: Device | None = None, engine: str | Engine | None = None) -> QuantumActor:
        """The same policy, weights copied, on another device (compiled anew) or engine; None keeps the present one."""
        compiled = self.layer.compiled
        if device is not None:
            compiled = compiled.compile_for(device)
        other = QuantumActor(self.layer.with_compiled(compiled, engine), self.circuit, **self._settings())
        put_state(other, {name: value.clone() for name, value in self.state_dict().items()}, frozen_parameters(self))
        return other

    def _settings(self) -> dict[str, Any]:
        return {
            "hidden": list(self.hidden),
            "action_dim": self.action_dim,
            "output_scaling": self.output_scaling,
            "freeze_circuit": self.freeze_circuit,
            "initial_std": self.initial_std,
            "gain": self.gain,
            "seed": self.seed,
        }

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "n_features": self.n_features, "engine": self.layer.engine.label, **self._settings()}
