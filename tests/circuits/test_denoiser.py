"""The denoiser circuit, against matrices written out with numpy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Operator, Statevector

from qhw_diffusion.circuits import DenoiserCircuit, denoiser_circuit, load_circuit, policy_circuit, save_circuit
from qhw_diffusion.errors import InvalidInputError

PAULI = {"x": np.array([[0, 1], [1, 0]]), "y": np.array([[0, -1j], [1j, 0]]), "z": np.diag([1, -1])}


def rotated(state: np.ndarray, axis: str, angle: float, qubit: int) -> np.ndarray:
    """`state` has one axis per qubit, qubit 0 first."""
    matrix = np.cos(angle / 2) * np.eye(2) - 1j * np.sin(angle / 2) * PAULI[axis]
    return np.moveaxis(np.tensordot(matrix, state, axes=(1, qubit)), 0, qubit)


def cnot(state: np.ndarray, control: int, goal: int) -> np.ndarray:
    out = state.copy()
    here = [slice(None)] * state.ndim
    here[control] = 1  # type: ignore[call-overload]
    out[tuple(here)] = np.flip(state, axis=goal)[tuple(here)]
    return out


def by_hand(state: np.ndarray, n: int, depth: int, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Amplitudes in Qiskit's order (qubit 0 fastest) in and out."""
    state = np.transpose(state.reshape((2,) * n))
    for qubit, angle in enumerate(x):
        state = rotated(state, "y", angle, qubit)
    for layer, angles in enumerate(w.reshape(depth, n, 3)):
        for qubit in range(n):
            for axis, angle in zip("xzy", angles[qubit], strict=True):
                state = rotated(state, axis, angle, qubit)
        order = range(n - 1) if layer % 2 == 0 else range(n - 2, -1, -1)
        for q in order:
            state = cnot(state, q, q + 1)
    return np.transpose(state).reshape(-1)


def bind(dc: DenoiserCircuit, x: np.ndarray, w: np.ndarray) -> QuantumCircuit:
    return dc.circuit.assign_parameters(
        {**dict(zip(dc.inputs, x, strict=True)), **dict(zip(dc.weights, w, strict=True))}
    )


@pytest.mark.parametrize(("n", "depth", "features"), [(1, 2, 0), (2, 1, 2), (3, 3, 0), (4, 2, 3), (5, 4, 0)])
def test_it_does_to_a_state_what_numpy_does(n: int, depth: int, features: int) -> None:
    rng = np.random.default_rng(11)
    dc = denoiser_circuit(n, depth, features)
    x, w = rng.uniform(-np.pi, np.pi, features), rng.uniform(-np.pi, np.pi, 3 * n * depth)
    columns = [by_hand(column, n, depth, x, w) for column in np.eye(2**n, dtype=complex)]
    np.testing.assert_allclose(Operator(bind(dc, x, w)).data, np.transpose(columns), atol=1e-12)


@pytest.mark.parametrize(("n", "depth", "features"), [(1, 1, 0), (4, 3, 0), (8, 9, 8), (12, 2, 5)])
def test_parameters_and_their_order(n: int, depth: int, features: int) -> None:
    dc = denoiser_circuit(n, depth, features)
    assert (len(dc.inputs), len(dc.weights), len(dc.observables)) == (features, 3 * n * depth, n)
    assert set(dc.circuit.parameters) == {*dc.inputs, *dc.weights}
    assert sorted(p.name for p in dc.weights) == [p.name for p in dc.weights]
    assert dc.circuit.num_qubits == n
    assert dc.circuit.count_ops().get("cx", 0) == (n - 1) * depth
    assert dc.circuit.name == f"denoiser_{n}q_{depth}l"


def test_the_chain_alternates_with_its_inverse() -> None:
    circuit = denoiser_circuit(4, 3).circuit
    pairs = [tuple(circuit.find_bit(q).index for q in i.qubits) for i in circuit.data if i.operation.name == "cx"]
    forward = [(0, 1), (1, 2), (2, 3)]
    assert pairs == [*forward, *forward[::-1], *forward]
    chains = [QuantumCircuit(4), QuantumCircuit(4)]
    for chain, part in zip(chains, (pairs[:3], pairs[3:6]), strict=True):
        for pair in part:
            chain.cx(*pair)
    assert Operator(chains[0].compose(chains[1])) == Operator(np.eye(16))


@pytest.mark.parametrize("features", [0, 4])
def test_no_weight_is_dead_even_from_zero_and_in_the_z_outputs(features: int) -> None:
    rng = np.random.default_rng(3)
    dc = denoiser_circuit(4, 2, features)
    x, w = rng.uniform(0.3, 1.2, features), rng.uniform(0.3, 1.2, 24)

    def outputs(weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        state = Statevector(bind(dc, inputs, weights))
        return np.array([state.expectation_value(o).real for o in dc.observables])

    here = outputs(w, x)
    for i in range(24):
        assert np.abs(outputs(w + 0.4 * np.eye(24)[i], x) - here).max() > 1e-6, f"weight {i} is dead"
    for i in range(features):
        assert np.abs(outputs(w, x + 0.4 * np.eye(4)[i]) - here).max() > 1e-6, f"feature {i} is dead"


def test_two_builds_are_one_circuit_and_share_no_parameter_with_the_policy(tmp_path: Path) -> None:
    first, second = denoiser_circuit(4, 2, 4), denoiser_circuit(4, 2, 4)
    assert first.circuit == second.circuit
    assert (first.weights, first.inputs) == (second.weights, second.inputs)
    assert load_circuit(save_circuit(first.circuit, tmp_path)[0]) == second.circuit
    assert not set(first.weights) & set(policy_circuit(4, 2, 4).weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_qubits": 0, "depth": 1}, "n_qubits is 0; allowed: whole numbers from 1 to 12"),
        ({"n_qubits": 13, "depth": 1}, "1 to 12"),
        ({"n_qubits": 4.0, "depth": 1}, "1 to 12"),
        ({"n_qubits": 4, "depth": 0}, "1 or more"),
        ({"n_qubits": 4, "depth": True}, "1 or more"),
        ({"n_qubits": 4, "depth": 1, "n_features": 5}, "0 to 4 for 4 qubits"),
        ({"n_qubits": 4, "depth": 1, "n_features": -1}, "0 to 4"),
    ],
)
def test_bad_sizes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        denoiser_circuit(**arguments)
