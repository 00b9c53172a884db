"""DeepQuantum: circuits on torch, vmap over the rows of data; noisy as a density matrix, each gate with its noise.

The library has named one-qubit channels only. Its base class of channels takes any Kraus operators, though, also on two
qubits, so that the noisy contender runs the ISA circuit with the device's noise.
"""

from __future__ import annotations

from typing import Any

import deepquantum as dq
import numpy as np
import torch
from deepquantum.operation import Channel
from torch import nn

from benchmarks.measure import Contender, Step
from benchmarks.problem import AffineRZ, Problem

NAME = "DeepQuantum"


def contenders() -> list[Contender]:
    return [Contender(NAME, "ideal", ideal, note="QubitCircuit, vmap over data, backprop")]


def ideal(problem: Problem) -> Step:
    circuit = dq.QubitCircuit(4)
    for layer in range(2):
        if layer == 0 or problem.policy.reuploading:
            for j in range(6):
                (circuit.ry if j < 4 else circuit.rz)(j % 4, encode=True)
        for q in range(4):
            circuit.rx(q)
            circuit.rz(q)
            circuit.ry(q)
        for q in range(4):
            circuit.cnot(q, (q + 1) % 4)
    for q in range(4):
        circuit.observable(q)
    angles = [gate.theta for gate in circuit.operators if isinstance(getattr(gate, "theta", None), nn.Parameter)]
    with torch.no_grad():
        for angle, value in zip(angles, problem.weights, strict=True):
            angle.fill_(float(value))
    inputs = torch.tensor(problem.inputs, requires_grad=True)

    def step() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs.grad = None
        circuit.zero_grad()
        circuit(data=inputs.repeat(1, 2) if problem.policy.reuploading else inputs)
        values = circuit.expectation()
        values.sum().backward()
        assert inputs.grad is not None
        return values.detach().numpy(), inputs.grad.numpy(), torch.stack([a.grad for a in angles]).numpy()

    return step


class _Kraus(Channel):
    def __init__(self, kraus: list[np.ndarray], n_qubits: int, wires: list[int]) -> None:
        self._kraus = torch.tensor(np.array(kraus), dtype=torch.complex64)
        super().__init__(inputs=0.0, name="Kraus", nqubit=n_qubits, wires=wires)

    def get_matrix(self, theta: Any) -> torch.Tensor:
        return self._kraus


def noisy(problem: Problem, samples: int) -> Step:
    isa = problem.isa
    circuit = dq.QubitCircuit(isa.n_qubits, den_mat=True)
    turns = [gate for gate in isa.gates if isinstance(gate, AffineRZ)]
    for gate in isa.gates:
        if isinstance(gate, AffineRZ):
            circuit.rz(gate.qubit, encode=True)
        else:
            circuit.add(_Kraus(gate.kraus, isa.n_qubits, list(gate.qubits[::-1])))
    for q in isa.measured:
        circuit.observable(q)
    by_inputs = torch.tensor(np.array([t.inputs for t in turns]), dtype=torch.float32).T
    by_weights = torch.tensor(np.array([t.weights for t in turns]), dtype=torch.float32)
    offsets = torch.tensor([t.offset for t in turns], dtype=torch.float32)
    scale = torch.tensor([1 - p10 - p01 for p10, p01 in isa.readout])
    shift = torch.tensor([p01 - p10 for p10, p01 in isa.readout])
    inputs = torch.tensor(problem.inputs[:samples], requires_grad=True)
    weights = torch.tensor(problem.weights, requires_grad=True)

    def step() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs.grad = weights.grad = None
        circuit(data=inputs @ by_inputs + by_weights @ weights + offsets)
        values = circuit.expectation() * scale + shift
        values.sum().backward()
        assert inputs.grad is not None
        assert weights.grad is not None
        return values.detach().numpy(), inputs.grad.numpy(), weights.grad.numpy()

    return step
