"""A one-step denoiser as one circuit that a device runs and reads: preparation of x_T, the step, all Z strings.

The state of the data qubits is read as a distribution: ⟨Z^s⟩ of every string of data and ancilla, the Walsh–Hadamard
transform of these, and of that the part in which the ancilla reads 0. So every strategy that works on expectation
values works on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from torch import Tensor

from qhw_diffusion.circuits.ansatz import chain_pairs, named_parameters
from qhw_diffusion.denoising import LatentQDM
from qhw_diffusion.denoising.readout import project_simplex
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, all_z_strings, compile_circuit, outcome_distribution

PREPARATION_LAYERS = 3


@dataclass(frozen=True, eq=False)
class DenoiserStep:
    """The circuit of a one-step post-selected denoiser, with a random preparation of x_T in front.

    Attributes:
        model: the denoiser.
        circuit: preparation (RY, RZ on every data qubit and a CNOT chain, three times without the last chain), then
            the step. Inputs: angles of the preparation, then those that carry the label; weights: the step's.
        preparation: the angles of the preparation.
    """

    model: LatentQDM
    circuit: QuantumCircuit
    preparation: tuple[Parameter, ...]

    @classmethod
    def of(cls, model: LatentQDM) -> DenoiserStep:
        """Raises InvalidInputError for a model of more than one step, or one that is not post-selected."""
        config = model.reverse.config
        if config.n_steps != 1 or config.kind != "postselected":
            raise InvalidInputError(
                f"the denoiser has {config.n_steps} {config.kind} steps; needed is one post-selected step"
            )
        step = model.reverse.circuit
        data = step.data
        angles = named_parameters("prepare", "p", 2 * len(data) * PREPARATION_LAYERS)
        circuit = QuantumCircuit(step.circuit.num_qubits, name="prepared_" + step.circuit.name)
        left = iter(angles)
        for layer in range(PREPARATION_LAYERS):
            for qubit in data:
                circuit.ry(next(left), qubit)
                circuit.rz(next(left), qubit)
            if layer < PREPARATION_LAYERS - 1:
                for control, target in chain_pairs(len(data)):
                    circuit.cx(data[control], data[target])
        circuit.compose(step.circuit, inplace=True)
        return cls(model, circuit, angles)

    def compile(self, device: Device, *, scheduled: bool = False) -> CompiledCircuit:
        """For a device, with every Z string but the identity as an observable."""
        step = self.model.reverse.circuit
        return compile_circuit(
            self.circuit,
            device,
            inputs=[*self.preparation, *step.inputs],
            weights=step.weights,
            observables=all_z_strings(self.circuit.num_qubits)[1:],
            scheduled=scheduled,
        )

    def rows(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Parameters [B, P] for these labels [B], each with a random x_T; float64."""
        shape = (len(labels), len(self.preparation) // 2)
        # the polar angle of a random point on the sphere, and its azimuth
        polar = torch.acos(1 - 2 * torch.rand(shape, generator=generator, dtype=torch.float64))
        azimuth = 2 * math.pi * torch.rand(shape, generator=generator, dtype=torch.float64)
        prepare = torch.stack([polar, azimuth], 2).flatten(1)
        reverse = self.model.reverse
        with torch.no_grad():
            told, weights = reverse.inputs_of(1, labels).double(), reverse.weights_of(1, int(labels[0]), 0).double()
        return torch.cat([prepare, told, weights.expand(len(labels), -1)], 1)

    def read(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """⟨Z^s⟩ [B, 2^n − 1] → distributions of the data [B, d] where the ancilla reads 0, and its probability [B].

        Values that are no distribution's are replaced by the nearest one's. Where nothing is left of the ancilla's 0,
        the distribution is uniform and the probability 0.
        """
        strings = torch.cat([torch.ones(len(values), 1, dtype=torch.float64), values.detach().double()], 1)
        whole = project_simplex(torch.from_numpy(outcome_distribution(np.asarray(strings))))
        kept = whole.reshape(len(values), -1, self.model.dim)[:, 0]  # data are the lowest bits
        success = kept.sum(1)
        d = self.model.dim
        share = torch.where(success[:, None] > 0, kept / success.clamp_min(1e-300)[:, None], 1 / d)
        return share, success

    def images(self, distributions: Tensor) -> Tensor:
        """Distributions [B, d] → images."""
        return self.model.decode(distributions.float().sqrt())


def classical_fidelity(p: Tensor, q: Tensor) -> Tensor:
    """(Σ √(p q))² of distributions [B, d] → [B]."""
    return (p.double() * q.double()).clamp_min(0).sqrt().sum(1).square()
