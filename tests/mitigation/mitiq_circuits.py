"""A small circuit for the tests of Mitiq's strategies, and an engine that writes down what it is asked."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.devices import Device
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment, Noisy, compile_circuit


@functools.cache
def pair_on(device: str) -> CompiledCircuit:
    """Two qubits, one input, two weights, three two-qubit gates."""
    x, v, w = Parameter("x"), Parameter("v"), Parameter("w")
    circuit = QuantumCircuit(2)
    circuit.ry(x, 0)
    circuit.rx(v, 1)
    circuit.cz(0, 1)
    circuit.ry(w, 0)
    circuit.rx(x, 1)
    circuit.cz(0, 1)
    circuit.ry(v, 1)
    circuit.rx(w, 0)
    circuit.cz(0, 1)
    circuit.ry(0.4, 0)
    circuit.ry(w, 1)
    observables = [SparsePauliOp("IZ"), SparsePauliOp("ZI"), SparsePauliOp("ZZ")]
    return compile_circuit(circuit, Device.load(device), inputs=[x], weights=[v, w], observables=observables, seed=1)


ROWS = torch.tensor([[0.4, 0.9, -0.7], [1.1, 0.9, -0.7], [-0.6, 0.9, -0.7]], dtype=torch.float64)


class Counting(Noisy):
    """Writes down every call."""

    calls: list[list[Experiment]] = []  # noqa: RUF012

    def estimate_many(self, experiments: Sequence[Experiment]) -> list[Estimate]:
        self.calls.append(list(experiments))
        return super().estimate_many(experiments)
