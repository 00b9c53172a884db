"""Expressibility and entangling capability, against closed forms and the values of Sim et al. (2019)."""

from __future__ import annotations

import numpy as np
import pytest
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import Statevector, random_statevector

from qhw_diffusion.circuits import denoiser_circuit, entangling_capability, expressibility, policy_circuit
from qhw_diffusion.circuits.measures import expressibility_of, meyer_wallach, state_vectors
from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError


def one_qubit(*gates: str) -> QuantumCircuit:
    circuit = QuantumCircuit(1)
    for index, gate in enumerate(gates):
        if gate == "h":
            circuit.h(0)
        else:
            getattr(circuit, gate)(Parameter(f"t{index}"), 0)
    return circuit


def haar(n: int, samples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(samples, 2**n)) + 1j * rng.normal(size=(samples, 2**n))
    return states / np.linalg.norm(states, axis=1, keepdims=True)


def test_states_are_qiskits() -> None:
    circuit = QuantumCircuit(4)
    for index, (gate, qubit) in enumerate([("rx", 0), ("rz", 0), ("ry", 1), ("ry", 2), ("rx", 3)]):
        getattr(circuit, gate)(Parameter(f"t{index}"), qubit)
    circuit.h(3)
    circuit.cx(2, 0)
    circuit.barrier()
    circuit.cz(0, 3)
    circuit.ccx(3, 1, 2)
    circuit.ecr(3, 1)
    circuit.ry(0.3, 1)
    circuit.rz(Parameter("a"), 2)
    circuit.iswap(1, 2)
    values = np.random.default_rng(0).uniform(-3, 3, (5, 6))
    states = state_vectors(circuit, values)
    for row, state in zip(values, states, strict=True):
        np.testing.assert_allclose(state, Statevector(circuit.assign_parameters(row)).data, atol=1e-12)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = policy_circuit(3, n_features=2).circuit
    values = np.random.default_rng(1).uniform(0, 6, (40, 20))
    whole = state_vectors(circuit, values)
    monkeypatch.setattr("qhw_diffusion.circuits.measures._CHUNK", 56)
    np.testing.assert_allclose(state_vectors(circuit, values), whole, atol=1e-14)


@pytest.mark.parametrize(
    ("gates", "published"),
    # circuits A, B, C of arXiv 1905.10876, 5,000 pairs and 75 bins; A is ln 75 exactly
    [(("rz",), 4.30), (("h", "rz"), 0.22), (("h", "rz", "rx"), 0.02)],
)
def test_single_qubit_circuits_of_the_paper(gates: tuple[str, ...], published: float) -> None:
    estimate = expressibility(one_qubit(*gates))
    # four standard errors, and the paper's own (it states two decimals, and its samples are as many as ours)
    assert abs(estimate.value - published) < 4 * np.sqrt(2) * estimate.standard_error + 0.02


def test_haar_random_states_score_the_bias_alone() -> None:
    """The paper's circuit D, an arbitrary unitary, has 0.007: that is the bias of 5,000 pairs, 74/10,000."""
    states = haar(1, 10_000, seed=2)
    fidelities = np.abs((states[:5000].conj() * states[5000:]).sum(axis=1)) ** 2
    estimate = expressibility_of(fidelities, 1)
    assert estimate.bias == pytest.approx(0.0074)
    assert abs(estimate.value - estimate.bias) < 4 * estimate.standard_error
    assert estimate.value == pytest.approx(0.007, abs=0.006)


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_an_idle_circuit_has_the_largest_value(n: int) -> None:
    estimate = expressibility(QuantumCircuit(n), pairs=10)
    assert estimate.value == pytest.approx((2**n - 1) * np.log(75), rel=1e-12)
    assert expressibility(QuantumCircuit(n), pairs=10, bins=20).value == pytest.approx((2**n - 1) * np.log(20))


def test_the_standard_error_is_the_spread_over_seeds() -> None:
    circuit = one_qubit("h", "rz")
    estimates = [expressibility(circuit, pairs=1000, seed=seed) for seed in range(60)]
    spread = np.std([e.value for e in estimates], ddof=1)
    assert 0.7 < np.mean([e.standard_error for e in estimates]) / spread < 1.4
    means = [entangling_capability(policy_circuit(2, n_features=1).circuit, samples=200, seed=s) for s in range(60)]
    spread = np.std([e.value for e in means], ddof=1)
    assert 0.7 < np.mean([e.standard_error for e in means]) / spread < 1.4


@pytest.mark.parametrize("n", [2, 3, 5])
def test_meyer_wallach_in_closed_form(n: int) -> None:
    ghz = np.zeros((1, 2**n), dtype=complex)
    ghz[0, 0] = ghz[0, -1] = 1 / np.sqrt(2)
    assert meyer_wallach(ghz)[0] == pytest.approx(1, abs=1e-12)
    w = np.zeros((1, 2**n), dtype=complex)
    w[0, [1 << q for q in range(n)]] = 1 / np.sqrt(n)
    assert meyer_wallach(w)[0] == pytest.approx(4 * (n - 1) / n**2)  # purity of one qubit: ((n−1)² + 1)/n²
    product = np.ones((1, 1))
    for q in range(n):
        product = np.kron(product, random_statevector(2, seed=q).data[None])
    assert meyer_wallach(product)[0] == pytest.approx(0, abs=1e-12)
    values = meyer_wallach(haar(n, 4000, seed=n))
    error = values.std() / np.sqrt(4000)
    assert abs(values.mean() - (2**n - 2) / (2**n + 1)) < 4 * error


def test_circuits_without_entanglement_have_none_and_deep_ones_are_haar() -> None:
    assert entangling_capability(policy_circuit(entanglement="none").circuit, samples=50).value == pytest.approx(0)
    deep = denoiser_circuit(4, 12).circuit
    q = entangling_capability(deep, samples=3000)
    assert abs(q.value - 14 / 17) < 4 * q.standard_error
    e = expressibility(deep, pairs=3000)
    assert abs(e.value - e.bias) < 4 * e.standard_error + 0.001


def test_same_seed_same_number() -> None:
    circuit = policy_circuit(3, n_features=2).circuit
    assert expressibility(circuit, pairs=50, seed=3) == expressibility(circuit, pairs=50, seed=3)
    assert expressibility(circuit, pairs=50, seed=3) != expressibility(circuit, pairs=50, seed=4)


def test_what_cannot_be_measured_is_refused() -> None:
    circuit = one_qubit("h", "rz")
    for arguments in ({"pairs": 1}, {"pairs": 2.5}, {"bins": 1}):
        with pytest.raises(InvalidInputError, match="whole numbers from 2"):
            expressibility(circuit, **arguments)
    with pytest.raises(InvalidInputError, match="samples is True"):
        entangling_capability(circuit, samples=True)
    with pytest.raises(InvalidInputError, match="15 qubits"):
        expressibility(QuantumCircuit(15))
    with pytest.raises(InvalidInputError, match=r"\[samples, 1\]"):
        state_vectors(circuit, np.zeros((3, 2)))
    with pytest.raises(InvalidInputError, match="QuantumCircuit"):
        state_vectors("x", np.zeros((3, 2)))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="2\\^n"):
        meyer_wallach(np.ones((2, 3), dtype=complex))
    measured = QuantumCircuit(1, 1)
    measured.measure(0, 0)
    scaled = QuantumCircuit(1)
    scaled.rx(2 * Parameter("t"), 0)
    for bad in (measured, scaled):
        with pytest.raises(UnsupportedCircuitError, match="not supported here"):
            expressibility(bad)
