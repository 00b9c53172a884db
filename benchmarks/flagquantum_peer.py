"""FlagQuantum: circuits on torch with a batch of angles; noisy as a density matrix, each gate with its noise.

Its noise models go by the names of gates. So the noisy contender gives each gate of the ISA circuit a name of its own,
an identity, and the channel of gate and noise to that name.
"""

from __future__ import annotations

import flagquantum as fq
import numpy as np
import torch
from flagquantum.noise.channels import KrausChannel
from flagquantum.noise.model import NoiseModel
from flagquantum.runtime.noise_registry import noisy_density_matrix

from benchmarks.measure import Contender, Step
from benchmarks.problem import AffineRZ, Problem

NAME = "FlagQuantum"


def contenders() -> list[Contender]:
    return [Contender(NAME, "ideal", ideal, note="Circuit with a batch of angles, backprop")]


def ideal(problem: Problem) -> Step:
    inputs = torch.tensor(problem.inputs, requires_grad=True)
    weights = torch.tensor(problem.weights, requires_grad=True)

    def values() -> torch.Tensor:
        circuit = fq.Circuit(4, bsz=len(inputs))
        for layer in range(2):
            if layer == 0 or problem.policy.reuploading:
                for j in range(6):
                    (circuit.ry if j < 4 else circuit.rz)(j % 4, inputs[:, j])
            for q in range(4):
                first = 3 * (4 * layer + q)
                circuit.rx(q, weights[first])
                circuit.rz(q, weights[first + 1])
                circuit.ry(q, weights[first + 2])
            for q in range(4):
                circuit.cx(q, (q + 1) % 4)
        return circuit.expectation_z()

    return _step(inputs, weights, values)


def noisy(problem: Problem, samples: int) -> Step:
    isa = problem.isa
    model = NoiseModel()
    for i, gate in enumerate(isa.gates):
        if not isinstance(gate, AffineRZ):
            kraus = tuple(torch.tensor(k, dtype=torch.complex64) for k in gate.kraus)
            model.add(f"fixed{i}", KrausChannel(f"fixed{i}", kraus), qubits=gate.qubits[::-1])
    rows = {
        i: (torch.tensor(gate.inputs, dtype=torch.float32), torch.tensor(gate.weights, dtype=torch.float32))
        for i, gate in enumerate(isa.gates)
        if isinstance(gate, AffineRZ)
    }
    size = 2**isa.n_qubits
    signs = torch.tensor([[1.0 - 2 * (s >> (isa.n_qubits - 1 - q) & 1) for q in isa.measured] for s in range(size)])
    scale = torch.tensor([1 - p10 - p01 for p10, p01 in isa.readout])
    shift = torch.tensor([p01 - p10 for p10, p01 in isa.readout])
    inputs = torch.tensor(problem.inputs[:samples], requires_grad=True)
    weights = torch.tensor(problem.weights, requires_grad=True)

    def values() -> torch.Tensor:
        circuit = fq.Circuit(isa.n_qubits, bsz=samples)
        for i, gate in enumerate(isa.gates):
            if isinstance(gate, AffineRZ):
                angle = weights @ rows[i][1] + gate.offset  # batched only where an input enters
                circuit.rz(gate.qubit, inputs @ rows[i][0] + angle if gate.inputs.any() else angle)
            else:
                circuit.any(*gate.qubits[::-1], unitary=torch.eye(2 ** len(gate.qubits)), name=f"fixed{i}")
        # the circuit's own method of this name forgets the size of the batch
        density = noisy_density_matrix(circuit, model, bsz=samples, dtype=torch.complex64)
        populations = torch.diagonal(density.reshape(samples, size, size), dim1=1, dim2=2).real
        return populations @ signs * scale + shift

    return _step(inputs, weights, values)


def _step(inputs: torch.Tensor, weights: torch.Tensor, values: object) -> Step:
    def step() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs.grad = weights.grad = None
        found = values()  # type: ignore[operator]
        found.sum().backward()
        assert inputs.grad is not None
        assert weights.grad is not None
        return found.detach().numpy(), inputs.grad.numpy(), weights.grad.numpy()

    return step
