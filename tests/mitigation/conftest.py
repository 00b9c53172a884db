"""The policy circuit compiled for small and large devices, and Aer's density matrix of an ISA circuit as witness."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Delay, Parameter
from qiskit.quantum_info import DensityMatrix, Operator, SparsePauliOp
from qiskit_aer import AerSimulator
from qiskit_aer.noise import RelaxationNoisePass

from qhw_diffusion.circuits import policy_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.execution import CompiledCircuit, compile_circuit


@functools.cache
def _device(name: str) -> Device:
    return Device.load(name)


@functools.cache
def _policy(name: str, scheduled: bool = False, depth: int = 1) -> CompiledCircuit:
    policy = policy_circuit(depth=depth, entanglement="chain")
    return compile_circuit(
        policy.circuit,
        _device(name),
        inputs=policy.inputs,
        weights=policy.weights,
        observables=policy.observables,
        scheduled=scheduled,
    )


@functools.cache
def _products(name: str) -> CompiledCircuit:
    """Three qubits, one input, one weight; observables that are products and sums, in several bases."""
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(3)
    circuit.ry(x, 0)
    circuit.rx(0.4, 2)
    circuit.cx(0, 1)
    circuit.ry(w, 1)
    circuit.cx(1, 2)
    circuit.rz(x, 2)
    circuit.h(2)
    observables = [
        SparsePauliOp(["IIZ"]),
        SparsePauliOp(["ZZZ"]),
        SparsePauliOp(["IZZ", "ZII", "III"], [0.5, -1.2, 0.3]),
        SparsePauliOp(["XZY", "YII"], [1.0, 0.7]),
    ]
    return compile_circuit(circuit, _device(name), inputs=[x], weights=[w], observables=observables)


@pytest.fixture
def policy() -> Callable[..., CompiledCircuit]:
    return _policy


@pytest.fixture
def products() -> Callable[[str], CompiledCircuit]:
    return _products


@pytest.fixture
def device() -> Callable[[str], Device]:
    return _device


def rows_for(compiled: CompiledCircuit, rows: int = 3, seed: int = 3) -> torch.Tensor:
    """[rows, P] with the same weights in every row."""
    generator = torch.Generator().manual_seed(seed)
    result = (torch.rand(rows, compiled.n_inputs + compiled.n_weights, generator=generator).double() - 0.5) * 4
    result[1:, compiled.n_inputs :] = result[0, compiled.n_inputs :]
    return result


@pytest.fixture
def rows() -> Callable[..., torch.Tensor]:
    return rows_for


def reduced(compiled: CompiledCircuit, row: np.ndarray) -> QuantumCircuit:
    """The ISA circuit with bound parameters on the qubits in use."""
    order = [*compiled.inputs, *compiled.weights]
    bound = compiled.isa.assign_parameters(dict(zip(order, row, strict=True)))
    qubits = list(compiled.physical_qubits)
    circuit = QuantumCircuit(len(qubits))
    for instruction in bound.data:
        where = [bound.find_bit(q).index for q in instruction.qubits]
        if instruction.operation.name != "barrier" and set(where) <= set(qubits):
            circuit.append(instruction.operation, [qubits.index(q) for q in where])
    return circuit


@pytest.fixture
def unitary() -> Callable[..., Operator]:
    def of(compiled: CompiledCircuit, row: torch.Tensor) -> Operator:
        return Operator(reduced(compiled, row.numpy()))

    return of


@pytest.fixture
def aer() -> Callable[..., np.ndarray]:
    """(compiled, rows) → [B, M] from Aer's density matrices with the device's noise, then readout errors by hand."""

    def values(compiled: CompiledCircuit, rows: torch.Tensor, *, readout: bool = True) -> np.ndarray:
        qubits = list(compiled.physical_qubits)
        model = compiled.device.noise_model(qubits)
        times = [compiled.device.relaxation_times(q) for q in qubits]
        t1s, t2s = [t1 for t1, _ in times], [min(t2, 2 * t1) for t1, t2 in times]
        relax = RelaxationNoisePass(t1s, t2s, dt=compiled.device.target.dt, op_types=Delay)
        simulator = AerSimulator(method="density_matrix", noise_model=model, max_parallel_threads=1)
        errors = [compiled.device.readout_error(q) if readout else (0.0, 0.0) for q in qubits]
        result = []
        for row in rows.numpy():
            circuit = reduced(compiled, row)
            if "delay" in circuit.count_ops():
                circuit = relax(circuit)
            circuit.save_density_matrix()
            rho = DensityMatrix(np.asarray(simulator.run(circuit).result().data(0)["density_matrix"]))
            result.append([read(rho, o, qubits, errors) for o in compiled.observables])
        return np.array(result)

    return values


def read(rho: DensityMatrix, observable: SparsePauliOp, qubits: list[int], errors: list[tuple[float, float]]) -> float:
    """⟨O⟩ with each qubit's ±1 outcome flipped by its readout error."""
    total = 0.0
    for label, coefficient in observable.to_list():
        factors = [label[::-1][q] for q in qubits]
        operator = np.ones((1, 1))
        for factor, (p10, p01) in zip(factors, errors, strict=True):
            pauli = Operator.from_label(factor).data
            if factor != "I":
                up, down = (np.eye(2) + pauli) / 2, (np.eye(2) - pauli) / 2
                pauli = up * (1 - 2 * p10) + down * (2 * p01 - 1)
            operator = np.kron(pauli, operator)
        total += float((coefficient * np.trace(operator @ rho.data)).real)
    return total
