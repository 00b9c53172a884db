"""The policy circuit, against matrices written out with numpy alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Operator, Statevector

from qhw_diffusion.circuits import ENTANGLEMENTS, PolicyCircuit, policy_circuit
from qhw_diffusion.errors import InvalidInputError, UnknownNameError

X, Y, Z = np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])


def rotation(pauli: np.ndarray, angle: float) -> np.ndarray:
    return np.cos(angle / 2) * np.eye(2) - 1j * np.sin(angle / 2) * pauli


def on_qubit(matrix: np.ndarray, qubit: int, n: int) -> np.ndarray:
    """Qiskit's order: qubit 0 is the last factor."""
    return np.kron(np.kron(np.eye(2 ** (n - 1 - qubit)), matrix), np.eye(2**qubit))


def cnot(control: int, goal: int, n: int) -> np.ndarray:
    matrix = np.zeros((2**n, 2**n))
    for state in range(2**n):
        matrix[state ^ (1 << goal) if state >> control & 1 else state, state] = 1
    return matrix


def by_hand(n: int, depth: int, x: np.ndarray, w: np.ndarray, entanglement: str, reuploading: bool) -> np.ndarray:
    unitary = np.eye(2**n, dtype=complex)
    w = w.reshape(depth, n, 3)
    for layer in range(depth):
        if layer == 0 or reuploading:
            for index, angle in enumerate(x):
                pauli = Y if index < n else Z
                unitary = on_qubit(rotation(pauli, angle), index % n, n) @ unitary
        for q in range(n):
            for pauli, angle in zip((X, Z, Y), w[layer, q], strict=True):
                unitary = on_qubit(rotation(pauli, angle), q, n) @ unitary
        if entanglement != "none":
            for q in range(n - 1):
                unitary = cnot(q, q + 1, n) @ unitary
            if entanglement == "ring" and n > 2:
                unitary = cnot(n - 1, 0, n) @ unitary
    return unitary


def bind(pc: PolicyCircuit, x: np.ndarray, w: np.ndarray) -> QuantumCircuit:
    return pc.circuit.assign_parameters(
        {**dict(zip(pc.inputs, x, strict=True)), **dict(zip(pc.weights, w, strict=True))}
    )


def outputs(pc: PolicyCircuit, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    state = Statevector(bind(pc, x, w))
    return np.array([state.expectation_value(o).real for o in pc.observables])


@pytest.mark.parametrize(
    ("n", "depth", "features", "entanglement", "reuploading"),
    [
        (4, 2, 6, "ring", False),
        (4, 2, 6, "ring", True),
        (3, 1, 2, "chain", False),
        (2, 3, 4, "ring", False),
        (3, 2, 6, "none", True),
        (5, 1, 7, "ring", False),
    ],
)
def test_unitary_is_the_one_written_by_hand(
    n: int, depth: int, features: int, entanglement: str, reuploading: bool
) -> None:
    rng = np.random.default_rng(7)
    pc = policy_circuit(n, depth, features, entanglement, reuploading)
    x, w = rng.uniform(-np.pi, np.pi, features), rng.uniform(-np.pi, np.pi, 3 * n * depth)
    reference = by_hand(n, depth, x, w, entanglement, reuploading)
    np.testing.assert_allclose(Operator(bind(pc, x, w)).data, reference, atol=1e-12)
    amplitudes = reference[:, 0]
    z = [sum(abs(a) ** 2 * (1 - 2 * (s >> q & 1)) for s, a in enumerate(amplitudes)) for q in range(n)]
    np.testing.assert_allclose(outputs(pc, x, w), z, atol=1e-12)


@pytest.mark.parametrize(("n", "depth", "features"), [(2, 1, 1), (4, 2, 6), (4, 3, 8), (8, 2, 16)])
@pytest.mark.parametrize("reuploading", [False, True])
def test_parameter_counts_and_order(n: int, depth: int, features: int, reuploading: bool) -> None:
    pc = policy_circuit(n, depth, features, reuploading=reuploading)
    assert (len(pc.inputs), len(pc.weights), len(pc.observables)) == (features, 3 * n * depth, n)
    assert set(pc.circuit.parameters) == {*pc.inputs, *pc.weights}
    assert sorted(p.name for p in pc.weights) == [p.name for p in pc.weights]
    assert sorted(p.name for p in pc.inputs) == [p.name for p in pc.inputs]
    assert pc.circuit.num_qubits == n
    assert pc.circuit.num_clbits == 0


@pytest.mark.parametrize(
    ("n", "entanglement", "cnots"), [(4, "ring", 8), (4, "chain", 6), (4, "none", 0), (2, "ring", 2), (2, "chain", 2)]
)
def test_number_of_cnots(n: int, entanglement: str, cnots: int) -> None:
    assert policy_circuit(n, 2, 2, entanglement).circuit.count_ops().get("cx", 0) == cnots


def test_a_ring_of_two_is_one_cnot_not_two() -> None:
    ring, chain = policy_circuit(2, 2, 3, "ring").circuit, policy_circuit(2, 2, 3, "chain").circuit
    assert ring == chain
    controls = [tuple(ring.find_bit(q).index for q in i.qubits) for i in ring.data if i.operation.name == "cx"]
    assert controls == [(0, 1), (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "features", "entanglement", "reuploading"),
    [
        (n, f, e, r)
        for (n, f), e, r in itertools.product([(4, 6), (2, 4), (4, 8), (3, 2)], ENTANGLEMENTS, [False, True])
    ],
)
def test_every_feature_and_every_weight_reaches_the_outputs(
    n: int, features: int, entanglement: str, reuploading: bool
) -> None:
    """No dead parameter: each moves at least one ⟨Z⟩ at a random point."""
    rng = np.random.default_rng(3)
    pc = policy_circuit(n, 2, features, entanglement, reuploading)
    x, w = rng.uniform(0.3, 1.2, features), rng.uniform(0.3, 1.2, 6 * n)
    here = outputs(pc, x, w)
    for i in range(features):
        assert np.abs(outputs(pc, x + 0.4 * np.eye(features)[i], w) - here).max() > 1e-6, f"feature {i} is dead"
    for i in range(6 * n):
        assert np.abs(outputs(pc, x, w + 0.4 * np.eye(6 * n)[i]) - here).max() > 1e-6, f"weight {i} is dead"


def test_without_entanglement_outputs_do_not_mix() -> None:
    rng = np.random.default_rng(5)
    x, w = rng.uniform(-1, 1, 4), rng.uniform(-1, 1, 24)
    moved = x + np.array([0.5, 0, 0, 0])
    alone, ring = policy_circuit(4, 2, 4, "none"), policy_circuit(4, 2, 4, "ring")
    np.testing.assert_allclose(outputs(alone, moved, w)[1:], outputs(alone, x, w)[1:], atol=1e-12)
    assert np.abs(outputs(ring, moved, w)[1:] - outputs(ring, x, w)[1:]).max() > 1e-3


def test_two_builds_are_the_same_circuit() -> None:
    first, second = policy_circuit(), policy_circuit()
    assert first.circuit == second.circuit
    assert first.weights == second.weights
    assert first.inputs == second.inputs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_qubits": 1}, "2 to 8"),
        ({"n_qubits": 9}, "2 to 8"),
        ({"n_qubits": 4.0}, "2 to 8"),
        ({"depth": 0}, "1 or more"),
        ({"depth": True}, "1 or more"),
        ({"n_features": 0}, "1 to 8"),
        ({"n_features": 9}, "1 to 8 for 4 qubits"),
        ({"n_qubits": 2, "n_features": 9}, "1 to 8 for 2 qubits"),
        ({"n_qubits": 3, "n_features": 7}, "1 to 6"),
        ({"reuploading": 1}, "reuploading"),
    ],
)
def test_bad_sizes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        policy_circuit(**arguments)


def test_unknown_entanglement_names_the_near_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean ring"):
        policy_circuit(entanglement="rings")
