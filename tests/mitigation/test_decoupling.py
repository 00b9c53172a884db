"""Dynamical decoupling: refocuses what stays the same, and cannot help against relaxation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp, Statevector, state_fidelity

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Ideal, Noisy, compile_circuit
from qhw_diffusion.mitigation import ZNE, Cost, DynamicalDecoupling, Mitigated, PauliTwirling

SEQUENCES = ("xx", "xy4")


@pytest.fixture(scope="module")
def waiting():
    """Qubit 0 is in superposition and waits long while 1 and 2 are busy."""
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(3)
    circuit.ry(x, 0)
    circuit.cx(0, 1)
    for _ in range(8):
        circuit.cx(1, 2)
        circuit.rx(w, 2)
        circuit.ry(0.3, 1)
    circuit.cx(0, 1)
    circuit.h(0)
    return compile_circuit(
        circuit, Device.load("fake_marrakesh"), inputs=[x], weights=[w], scheduled=True,
        observables=[SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], 3) for q in range(3)],
    )  # fmt: skip


ROW = torch.tensor([[0.9, -0.7]], dtype=torch.float64)


def on_qubits_in_use(compiled, detuning: float) -> QuantumCircuit:
    """Bound, with every wait turned into RZ(detuning · time): a qubit frequency that is off and stays off."""
    bound = compiled.isa.assign_parameters(
        dict(zip([*compiled.inputs, *compiled.weights], ROW[0].tolist(), strict=True))
    )
    qubits = list(compiled.physical_qubits)
    circuit = QuantumCircuit(len(qubits))
    for instruction in bound.data:
        where = [bound.find_bit(q).index for q in instruction.qubits]
        if instruction.operation.name == "delay":
            if where[0] in qubits:
                circuit.rz(
                    detuning * instruction.operation.duration * compiled.device.target.dt, qubits.index(where[0])
                )
        elif set(where) <= set(qubits) and instruction.operation.name != "barrier":
            circuit.append(instruction.operation, [qubits.index(q) for q in where])
    return circuit


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_a_constant_detuning_is_refocused(sequence, waiting):
    ((decoupled, _),) = DynamicalDecoupling(sequence).construct(waiting, ROW)
    ideal = Statevector(on_qubits_in_use(waiting, 0.0))
    assert state_fidelity(Statevector(on_qubits_in_use(decoupled, 0.0)), ideal) == pytest.approx(1, abs=1e-10)
    detuning = 2 * np.pi * 200e3
    bare = 1 - state_fidelity(Statevector(on_qubits_in_use(waiting, detuning)), ideal)
    protected = 1 - state_fidelity(Statevector(on_qubits_in_use(decoupled, detuning)), ideal)
    assert bare > 0.1
    assert protected < 0.2 * bare


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_against_relaxation_it_does_not_help(sequence, waiting, aer):
    """The noise model has no memory: pulses bring their own errors and nothing else. Stated in the documentation."""
    engine = Mitigated("noisy", [DynamicalDecoupling(sequence)])
    ideal = Ideal().estimate(waiting, ROW).values
    with_pulses = engine.estimate(waiting, ROW).values
    without = Noisy().estimate(waiting, ROW).values
    ((decoupled, _),) = engine.strategies[0].construct(waiting, ROW)
    np.testing.assert_allclose(with_pulses.numpy(), aer(decoupled, ROW), atol=1e-6)
    assert (with_pulses - ideal).abs().sum() > 0.9 * (without - ideal).abs().sum()
    assert decoupled.duration == pytest.approx(waiting.duration)
    added = decoupled.isa.count_ops()["x"] - waiting.isa.count_ops().get("x", 0)
    assert added > 0
    assert added % {"xx": 2, "xy4": 4}[sequence] == 0
    assert engine.cost(waiting) == Cost(1)


def test_it_comes_after_the_strategies_that_change_the_circuit(waiting):
    for other in (ZNE((1, 3)), PauliTwirling(2)):
        engine = Mitigated("noisy", [DynamicalDecoupling(), other])
        leaves = [DynamicalDecoupling().construct(*each)[0][0] for each in other.construct(waiting, ROW)]
        assert all(leaf.isa.count_ops()["x"] > waiting.isa.count_ops().get("x", 0) for leaf in leaves)
        engine.estimate(waiting, ROW)
        with pytest.raises(InvalidInputError, match="list decoupling \\(DynamicalDecoupling\\) before"):
            Mitigated("noisy", [other, DynamicalDecoupling()]).estimate(waiting, ROW)


def test_it_needs_a_schedule(policy):
    with pytest.raises(InvalidInputError, match="scheduled=True"):
        Mitigated("noisy", [DynamicalDecoupling()]).check(policy("fake_manila"))
    with pytest.raises(UnknownNameError, match="xy4"):
        DynamicalDecoupling("xy8")
