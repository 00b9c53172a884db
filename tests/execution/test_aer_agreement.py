"""The engines against outside witnesses: Aer's density-matrix method, Qiskit's Statevector, finite differences.

Random circuits of 2 to 5 qubits are compiled for four devices. The noisy reference is Aer's density matrix of the ISA
circuit under the device's gate errors; readout errors are then applied with numpy to the distribution of outcomes of
each Pauli string, measured in its own basis. (Aer's EstimatorV2 at precision 0 leaves readout errors out, so it is no
reference here.) The ideal reference is the state vector of the circuit as written, before any compilation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import Pauli, SparsePauliOp, Statevector
from qiskit_aer import AerSimulator

from qhw_diffusion.devices import Device
from qhw_diffusion.execution import CompiledCircuit, QuantumLayer, compile_circuit

DEVICES = ("fake_manila", "fake_brisbane", "fake_torino", "fake_marrakesh")
BOUND = 1e-6
GRADIENT_BOUND = 1e-5
# float32 has 24 bits: 6e-8 a rounding, some tens of roundings deep, observables of norm up to about 3; seen: 5e-7.
BOUND_32 = 5e-6
ONE_QUBIT = ("h", "s", "sdg", "x", "y", "z", "sx", "t")
TWO_QUBIT = ("cx", "cz", "swap", "ecr", "cy")
# Qubit rotated so that measuring Z measures the Pauli.
TO_Z = {"Z": np.eye(2), "X": np.array([[1, 1], [1, -1]]) / np.sqrt(2), "Y": np.array([[1, -1j], [1, 1j]]) / np.sqrt(2)}

Evaluate = Callable[[np.ndarray, np.ndarray], np.ndarray]


class RandomProblem:
    """A random circuit with affine angles of 3 inputs and 4 weights, and 3 random Pauli sums."""

    def __init__(self, n: int, seed: int, operations: int = 22) -> None:
        rng = np.random.default_rng([n, seed])
        self.inputs = tuple(Parameter(f"x{i}") for i in range(3))
        self.weights = tuple(Parameter(f"w{i}") for i in range(4))
        parameters = [*self.inputs, *self.weights]
        circuit = QuantumCircuit(n)
        # The first angles name every parameter once, so that none is missing; the rest is drawn freely.
        forced = [int(i) for i in rng.permutation(len(parameters))]
        for step in range(operations):
            kind = rng.integers(4)
            if step % 3 == 0 or kind == 0:
                angle = float(rng.uniform(-3, 3))
                for k in {forced.pop()} if forced else set(rng.integers(len(parameters), size=rng.integers(0, 3))):
                    angle = angle + float(rng.choice([-2, -1, -0.5, 0.7, 1, 1.5])) * parameters[int(k)]
                getattr(circuit, str(rng.choice(["rx", "ry", "rz"])))(angle, int(rng.integers(n)))
            elif kind == 1:
                getattr(circuit, str(rng.choice(ONE_QUBIT)))(int(rng.integers(n)))
            else:
                first, second = (int(q) for q in rng.permutation(n)[:2])
                getattr(circuit, str(rng.choice(TWO_QUBIT)))(first, second)
        self.circuit = circuit
        sums = [
            SparsePauliOp(["".join(rng.choice(list("IXYZ"), size=n)) for _ in range(3)], rng.uniform(-1, 1, 3))
            for _ in range(2)
        ]
        self.observables = (*sums, SparsePauliOp.from_sparse_list([("Z", [n - 1], 1.0)], n))
        self.x = rng.uniform(-np.pi, np.pi, (3, 3))
        self.w = rng.uniform(-np.pi, np.pi, 4)

    def compiled(self, device: Device) -> CompiledCircuit:
        return compile_circuit(
            self.circuit,
            device,
            inputs=self.inputs,
            weights=self.weights,
            observables=self.observables,
            seed=11,
            optimization_level=1 if len(self.circuit.qubits) % 2 else 3,
        )

    def bound(self, circuit: QuantumCircuit, x: np.ndarray, w: np.ndarray) -> QuantumCircuit:
        values = {**dict(zip(self.inputs, x, strict=True)), **dict(zip(self.weights, w, strict=True))}
        return circuit.assign_parameters(values)


@functools.cache
def device(name: str) -> Device:
    return Device.load(name)


@functools.cache
def problem(n: int, seed: int = 0) -> RandomProblem:
    return RandomProblem(n, seed)


@functools.cache
def compiled(name: str, n: int) -> CompiledCircuit:
    return problem(n).compiled(device(name))


def statevector_values(p: RandomProblem) -> Evaluate:
    """[B, 3], [B, 4] → [B, M]: Qiskit's Statevector of the circuit as written."""

    def evaluate(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        states = [Statevector(p.bound(p.circuit, *row)) for row in zip(x, w, strict=True)]
        return np.array([[state.expectation_value(o).real for o in p.observables] for state in states])

    return evaluate


def aer_values(p: RandomProblem, c: CompiledCircuit, *, readout: bool = True) -> Evaluate:
    """[B, 3], [B, 4] → [B, M]: Aer's density matrices of the ISA circuit, read out with numpy."""
    qubits = list(c.physical_qubits)
    simulator = AerSimulator(method="density_matrix", noise_model=c.device.noise_model(qubits), max_parallel_threads=1)
    small = QuantumCircuit(len(qubits))
    for instruction in c.isa.data:
        if instruction.operation.name != "barrier":
            small.append(instruction.operation, [qubits.index(c.isa.find_bit(q).index) for q in instruction.qubits])
    small.save_density_matrix()
    errors = [c.device.readout_error(q) if readout else (0.0, 0.0) for q in qubits]
    confusion = [np.array([[1 - p10, p01], [p10, 1 - p01]]) for p10, p01 in errors]  # [read, prepared]

    def expectation(rho: np.ndarray, pauli: Pauli) -> float:
        letters = [pauli.to_label()[::-1][q] for q in qubits]
        change = functools.reduce(lambda low, high: np.kron(high, low), [TO_Z.get(s, np.eye(2)) for s in letters])
        distribution = np.diag(change @ rho @ change.conj().T).real
        distribution = functools.reduce(lambda low, high: np.kron(high, low), confusion) @ distribution
        parity = functools.reduce(
            lambda low, high: np.kron(high, low), [np.ones(2) if s == "I" else np.array([1, -1]) for s in letters]
        )
        return float(parity @ distribution)

    def evaluate(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        bound = [p.bound(small, *row) for row in zip(x, w, strict=True)]
        results = simulator.run(bound).result()
        values = []
        for i in range(len(bound)):
            rho = np.asarray(results.data(i)["density_matrix"])
            values.append(
                [
                    sum(k.real * expectation(rho, o) for o, k in zip(obs.paulis, obs.coeffs, strict=True))
                    for obs in c.observables
                ]
            )
        return np.array(values)

    return evaluate


def layer_values(p: RandomProblem, layer: QuantumLayer) -> np.ndarray:
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(p.w))
        return layer(torch.as_tensor(p.x).to(layer.weight.dtype)).double().numpy()


def repeated(p: RandomProblem) -> np.ndarray:
    return np.tile(p.w, (len(p.x), 1))


def layer_gradient(p: RandomProblem, layer: QuantumLayer, cotangent: np.ndarray) -> np.ndarray:
    """d(Σ cotangent · output)/d(inputs, weights), flat."""
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(p.w))
    x = torch.as_tensor(p.x).clone().requires_grad_()
    layer.weight.grad = None
    (layer(x) * torch.as_tensor(cotangent)).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    return np.concatenate([x.grad.numpy().ravel(), layer.weight.grad.numpy()])


def finite_differences(p: RandomProblem, evaluate: Evaluate, cotangent: np.ndarray, h: float = 0.02) -> np.ndarray:
    """Fourth-order central differences of an outside evaluation: error of order h⁴, far below the bound."""
    steps = np.array([-2, -1, 1, 2]) * h
    coefficients = np.array([1, -8, 8, -1]) / (12 * h)
    rows_x, rows_w = [], []
    batch, n_inputs, n_weights = len(p.x), len(p.inputs), len(p.weights)
    for b in range(batch):
        for j in range(n_inputs + n_weights):
            for step in steps:
                moved = np.concatenate([p.x[b], p.w])
                moved[j] += step
                rows_x.append(moved[:n_inputs])
                rows_w.append(moved[n_inputs:])
    values = evaluate(np.array(rows_x), np.array(rows_w)).reshape(batch, n_inputs + n_weights, 4, -1)
    slopes = np.einsum("bjsm,s,bm->bj", values, coefficients, cotangent)
    return np.concatenate([slopes[:, :n_inputs].ravel(), slopes[:, n_inputs:].sum(0)])


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("name", DEVICES)
def test_noisy_engine_agrees_with_aer(name: str, n: int) -> None:
    p, c = problem(n), compiled(name, n)
    reference = aer_values(p, c)(p.x, repeated(p))
    np.testing.assert_allclose(
        layer_values(p, QuantumLayer(c, "noisy", dtype=torch.float64)), reference, rtol=0, atol=BOUND
    )
    single = layer_values(p, QuantumLayer(c, "noisy", dtype=torch.float32))
    np.testing.assert_allclose(single, reference, rtol=0, atol=BOUND_32)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["ideal", *DEVICES])
def test_ideal_engine_agrees_with_the_state_vector(name: str, n: int) -> None:
    p, c = problem(n), compiled(name, n)
    reference = statevector_values(p)(p.x, repeated(p))
    np.testing.assert_allclose(
        layer_values(p, QuantumLayer(c, "ideal", dtype=torch.float64)), reference, rtol=0, atol=1e-9
    )
    single = layer_values(p, QuantumLayer(c, "ideal", dtype=torch.float32))
    np.testing.assert_allclose(single, reference, rtol=0, atol=BOUND_32)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n"), [*zip(DEVICES, (2, 3, 4, 5), strict=True), ("fake_marrakesh", 3)])
def test_noisy_gradients_agree_with_finite_differences_of_aer(name: str, n: int) -> None:
    p, c = problem(n), compiled(name, n)
    cotangent = np.random.default_rng(n).normal(size=(len(p.x), len(p.observables)))
    reference = finite_differences(p, aer_values(p, c), cotangent)
    gradient = layer_gradient(p, QuantumLayer(c, "noisy", dtype=torch.float64), cotangent)
    assert np.abs(reference).max() > 1e-2
    np.testing.assert_allclose(gradient, reference, rtol=0, atol=GRADIENT_BOUND)


@pytest.mark.parametrize(("name", "n"), [("ideal", 2), ("ideal", 5), ("fake_brisbane", 3), ("fake_marrakesh", 4)])
def test_ideal_gradients_agree_with_finite_differences_of_the_state_vector(name: str, n: int) -> None:
    p, c = problem(n), compiled(name, n)
    cotangent = np.random.default_rng(n).normal(size=(len(p.x), len(p.observables)))
    reference = finite_differences(p, statevector_values(p), cotangent)
    gradient = layer_gradient(p, QuantumLayer(c, "ideal", dtype=torch.float64), cotangent)
    assert np.abs(reference).max() > 1e-2
    np.testing.assert_allclose(gradient, reference, rtol=0, atol=GRADIENT_BOUND)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
def test_the_bound_can_tell_readout_and_gate_noise_from_none(name: str) -> None:
    """The references differ from one another by far more than the bound: agreement is not for want of noise."""
    p, c = problem(3), compiled(name, 3)
    full = aer_values(p, c)(p.x, repeated(p))
    without_readout = aer_values(p, c, readout=False)(p.x, repeated(p))
    ideal = statevector_values(p)(p.x, repeated(p))
    assert np.abs(full - without_readout).max() > 1000 * BOUND
    assert np.abs(without_readout - ideal).max() > 1000 * BOUND


@pytest.mark.slow
def test_more_random_circuits_on_one_device() -> None:
    """Six further circuits on the ECR device, whose two-qubit gate is neither symmetric nor diagonal."""
    for seed in range(1, 7):
        p = RandomProblem(2 + seed % 3, seed, operations=24)
        c = p.compiled(device("fake_brisbane"))
        reference = aer_values(p, c)(p.x, repeated(p))
        ours = layer_values(p, QuantumLayer(c, "noisy", dtype=torch.float64))
        np.testing.assert_allclose(ours, reference, rtol=0, atol=BOUND, err_msg=f"seed {seed}")
