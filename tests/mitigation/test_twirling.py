"""Pauli twirling: the same unitary, few pulses added, coherent errors turned into Pauli errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.circuit.library import RZXGate, UnitaryGate
from qiskit.quantum_info import PTM, Operator, SparsePauliOp, SuperOp

from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution import Noisy, Shots, compile_circuit
from qhw_diffusion.mitigation import Cost, Mitigated, PauliTwirling
from qhw_diffusion.mitigation.twirling import twirled

NATIVE = {"fake_manila": "cx", "fake_brisbane": "ecr", "fake_marrakesh": "cz"}


@pytest.mark.parametrize("name", NATIVE)
def test_every_randomisation_is_the_same_unitary(name, policy, rows, unitary):
    compiled = policy(name, depth=2)
    row = rows(compiled)[0]
    wanted = unitary(compiled, row)
    circuits = [circuit for circuit, _ in PauliTwirling(6, seed=1).construct(compiled, row[None])]
    texts = set()
    for circuit in circuits:
        assert unitary(circuit, row).equiv(wanted, atol=1e-10)
        assert circuit.isa.count_ops()[NATIVE[name]] == compiled.two_qubit_gates
        assert circuit.isa.parameters == compiled.isa.parameters
        texts.add(str([(i.operation.name, i.operation.params) for i in circuit.isa.data]))
    assert len(texts) == 6


@pytest.mark.parametrize("name", NATIVE)
def test_paulis_between_rotations_cost_no_pulse(name, policy, rows):
    """√X gates are as many as before; X gates come only where no √X is, between two CX and before the measurement."""
    compiled = policy(name, depth=2)
    before = compiled.isa.count_ops()
    added = []
    for circuit, _ in PauliTwirling(10).construct(compiled, rows(compiled)):
        after = circuit.isa.count_ops()
        assert after["sx"] == before["sx"]
        added.append(after.get("x", 0) - before.get("x", 0))
    assert np.mean(added) < compiled.two_qubit_gates  # written out, it would be 2 for each two-qubit gate


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["cx", "cz", "ecr"])
def test_a_coherent_error_becomes_a_pauli_error(gate):
    """The mean over randomisations of a gate with an over-rotation has a diagonal Pauli transfer matrix."""
    circuit = QuantumCircuit(2)
    getattr(circuit, gate)(0, 1)
    error = UnitaryGate(Operator(RZXGate(0.5)).data)
    undo = SuperOp(Operator(circuit).adjoint())

    def error_channel(source: QuantumCircuit) -> np.ndarray:
        noisy = QuantumCircuit(2)
        for instruction in source.data:
            noisy.append(instruction.operation, [source.find_bit(q).index for q in instruction.qubits])
            if len(instruction.qubits) == 2:
                noisy.append(error, [0, 1])
        return np.asarray(PTM(SuperOp(noisy).compose(undo)).data).real

    def off_diagonal(matrix: np.ndarray) -> float:
        return float(np.abs(matrix - np.diag(np.diag(matrix))).max())

    generator = np.random.default_rng(0)
    mean = np.mean([error_channel(twirled(circuit, generator)) for _ in range(400)], axis=0)
    assert off_diagonal(error_channel(circuit)) > 0.4
    assert off_diagonal(mean) < 0.08
    np.testing.assert_allclose(np.diag(mean), np.diag(error_channel(circuit)), atol=1e-9)


def test_the_noisy_mean_is_aers(policy, rows, aer):
    compiled = policy("fake_brisbane")
    values = rows(compiled, 2)
    strategy = PauliTwirling(3, seed=2)
    wanted = np.mean([aer(circuit, values) for circuit, _ in strategy.construct(compiled, values)], axis=0)
    estimate = Mitigated("noisy", [strategy]).estimate(compiled, values)
    np.testing.assert_allclose(estimate.values.numpy(), wanted, atol=1e-6)
    assert (estimate.values - Noisy().estimate(compiled, values).values).abs().max() > 1e-5


def test_a_seed_gives_the_same_circuits(policy, rows):
    compiled = policy("fake_manila")
    values = rows(compiled)
    estimates = [Mitigated("noisy", [PauliTwirling(2, seed)]).estimate(compiled, values).values for seed in (0, 0, 1)]
    assert torch.equal(estimates[0], estimates[1])
    assert not torch.equal(estimates[0], estimates[2])


def test_error_bars_shrink_and_cover(policy, rows):
    compiled = policy("fake_manila")
    values = rows(compiled, 2, seed=5)
    strategy = PauliTwirling(4)
    exact = Mitigated("noisy", [strategy]).estimate(compiled, values).values
    estimate = Mitigated(Shots(500, seed=3), [strategy]).estimate(compiled, values.repeat(200, 1))
    pulls = (estimate.values - exact.repeat(200, 1)) / estimate.std_errors
    assert pulls.std().item() == pytest.approx(1, abs=0.05)
    plain = Shots(500).estimate(compiled, values).std_errors
    torch.testing.assert_close(estimate.std_errors[:2], plain / 2, rtol=0.15, atol=0)
    assert strategy.cost(compiled) == Cost(4)
    assert estimate.usage.circuits == 4 * 400


def test_the_gradient_goes_through_flipped_angles(policy, rows):
    compiled = policy("fake_manila")
    values = rows(compiled, 1)
    x, w = values[:, : compiled.n_inputs].requires_grad_(), values[0, compiled.n_inputs :].clone().requires_grad_()
    engine = Mitigated("noisy", [PauliTwirling(2)])
    torch.autograd.gradcheck(lambda a, b: engine.expectation(compiled, a, b), (x, w), eps=1e-4, atol=1e-6)


def test_scheduled_circuits_are_scheduled_again(policy, rows, aer):
    compiled = policy("fake_marrakesh", scheduled=True)
    values = rows(compiled, 1)
    (circuit, _), *_ = PauliTwirling(1).construct(compiled, values)
    assert circuit.isa.count_ops()["delay"] > 0
    np.testing.assert_allclose(Noisy().estimate(circuit, values).values.numpy(), aer(circuit, values), atol=1e-6)


def test_bad_settings_are_refused(device):
    for count in (0, 1.5, True, "8"):
        with pytest.raises(InvalidInputError, match="randomisations"):
            PauliTwirling(count)
    with pytest.raises(InvalidInputError, match="seed"):
        PauliTwirling(2, -1)
    w, circuit = Parameter("w"), QuantumCircuit(2)
    circuit.h([0, 1])
    circuit.rzz(w, 0, 1)
    circuit.h(0)
    on = device("fake_marrakesh").with_fractional_gates()
    compiled = compile_circuit(circuit, on, inputs=[], weights=[w], observables=[SparsePauliOp("IZ")])
    with pytest.raises(UnsupportedCircuitError, match=r"rzz.*cannot be twirled"):
        Mitigated("noisy", [PauliTwirling()]).check(compiled)
