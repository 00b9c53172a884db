"""DDD and twirling: the same unitaries, and what they are for."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from mitiq_circuits import pair_on
from qiskit import QuantumCircuit
from qiskit.circuit.library import RZGate
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import UnsupportedCircuitError
from qhw_diffusion.execution import CompiledCircuit, Ideal, compile_circuit
from qhw_diffusion.mitigation.mitiq_weighted import MitiqDDD, MitiqTwirling

cirq = pytest.importorskip("cirq")
pytest.importorskip("mitiq")


@pytest.fixture
def pair() -> CompiledCircuit:
    return pair_on("fake_marrakesh")


@pytest.mark.slow
def test_ddd_refocuses_what_waiting_qubits_collect(unitary):
    """Every delay is given a rotation by hand; the sequence undoes most of it."""
    circuit = QuantumCircuit(3)
    circuit.h(0)
    circuit.cx(0, 1)
    for angle in (0.3, 0.8, 0.5, 1.1, 0.2, 0.9):  # qubit 0 waits
        circuit.cx(1, 2)
        circuit.ry(angle, 2)
    circuit.cx(0, 1)
    circuit.h(0)
    compiled = compile_circuit(
        circuit,
        Device.load("fake_marrakesh"),
        inputs=[],
        weights=[],
        observables=[SparsePauliOp("IIZ")],
        scheduled=True,
        optimization_level=1,
    )
    filled = MitiqDDD("xx").family(compiled).circuits[0]
    none = torch.zeros(1, 0, dtype=torch.float64)
    assert filled.isa.count_ops()["x"] > compiled.isa.count_ops().get("x", 0)
    assert unitary(filled, none[0]).equiv(unitary(compiled, none[0]))
    ideal = Ideal().estimate(compiled, none).values

    def harm(scheduled: CompiledCircuit) -> float:
        isa = scheduled.isa.copy_empty_like()
        for instruction in scheduled.isa.data:
            if instruction.operation.name == "delay":
                if scheduled.isa.find_bit(instruction.qubits[0]).index in scheduled.physical_qubits:
                    isa.append(RZGate(3e-3 * instruction.operation.duration), instruction.qubits)
            elif instruction.operation.name != "barrier":
                isa.append(instruction)
        drifting = replace(scheduled, isa=isa, scheduled=False)
        return float((Ideal().estimate(drifting, none).values - ideal).abs().max())

    assert harm(compiled) > 0.1
    assert harm(filled) < harm(compiled) / 4


@pytest.mark.parametrize("name", ["fake_manila", "fake_marrakesh"])
def test_twirled_circuits_are_the_same_unitary_and_differ(name, policy, rows, unitary):
    compiled, row = policy(name), rows(policy(name))[0]
    state = random.getstate()
    family = MitiqTwirling(4, seed=7).family(compiled)
    assert random.getstate() == state
    assert [c.isa for c in MitiqTwirling(4, seed=8).family(compiled).circuits] != [c.isa for c in family.circuits]
    for circuit in family.circuits:
        assert unitary(circuit, row).equiv(unitary(compiled, row))
        assert circuit.two_qubit_gates == compiled.two_qubit_gates
    assert any(a.isa != b.isa for a, b in zip(family.circuits, family.circuits[1:], strict=False))


def test_twirling_refuses_ecr(policy, rows):
    compiled = policy("fake_brisbane")
    for call in (lambda s: s.check(compiled), lambda s: s.construct(compiled, rows(compiled))):
        with pytest.raises(UnsupportedCircuitError, match=r"twirling \(PauliTwirling\) takes them"):
            call(MitiqTwirling())
