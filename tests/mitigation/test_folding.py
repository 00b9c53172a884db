"""Folding: the same unitary, the gates counted, the parameters kept, what cannot be folded refused."""

from __future__ import annotations

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager

from qhw_diffusion.errors import InvalidInputError, UnknownNameError, UnsupportedCircuitError
from qhw_diffusion.execution import Noisy, compile_circuit
from qhw_diffusion.mitigation import folded

NATIVE = {"fake_manila": "cx", "fake_brisbane": "ecr", "fake_marrakesh": "cz"}


@pytest.mark.slow
@pytest.mark.parametrize("folding", ["local", "global"])
@pytest.mark.parametrize("name", NATIVE)
def test_a_folded_circuit_is_the_same_unitary_with_more_gates(name, folding, policy, rows, unitary):
    compiled = policy(name)
    row = rows(compiled)[0]
    gates = compiled.isa.count_ops()[NATIVE[name]]
    for asked in (1, 1.7, 3, 4.4, 5):
        circuit, reached = folded(compiled, asked, folding)
        assert circuit.isa.count_ops()[NATIVE[name]] == pytest.approx(reached * gates)
        assert abs(reached - asked) <= 1 / gates, "no number of pairs comes nearer"
        assert reached == asked or asked in (1.7, 4.4)
        assert circuit.isa.parameters == compiled.isa.parameters
        assert set(circuit.isa.count_ops()) <= {*compiled.isa.count_ops(), "rz", "sx", "x"}
        assert circuit.physical_qubits == compiled.physical_qubits
        assert unitary(circuit, row).equiv(unitary(compiled, row), atol=1e-10)


def test_pairs_are_spread_evenly_over_the_gates(policy):
    compiled = policy("fake_manila", depth=2)
    circuit, _ = folded(compiled, 1 + 2 * 3 / compiled.two_qubit_gates)
    places = [[circuit.isa.find_bit(q).index for q in i.qubits] for i in circuit.isa.data if len(i.qubits) == 2]
    tripled = [k for k in range(len(places) - 2) if places[k] == places[k + 1] == places[k + 2]]
    assert len(tripled) == 3
    assert np.diff(tripled).min() >= compiled.two_qubit_gates // 3


def test_global_folding_multiplies_the_gates_on_one_qubit_as_well(policy):
    compiled = policy("fake_marrakesh")
    roots = compiled.isa.count_ops()["sx"]
    assert folded(compiled, 3, "local")[0].isa.count_ops()["sx"] == roots
    assert folded(compiled, 3, "global")[0].isa.count_ops()["sx"] == 3 * roots


def test_the_same_object_comes_back(policy):
    compiled = policy("fake_manila")
    assert folded(compiled, 3)[0] is folded(compiled, 3)[0]
    assert folded(compiled, 1) == (compiled, 1.0)


def test_a_transpiler_cancels_the_folds(policy):
    """Why folding comes last, and why folded circuits must not be transpiled again."""
    compiled = policy("fake_marrakesh")
    circuit = folded(compiled, 5)[0].isa
    again = generate_preset_pass_manager(1, target=compiled.device.target, initial_layout=range(circuit.num_qubits))
    assert again.run(circuit).count_ops()["cz"] == compiled.two_qubit_gates
    none = generate_preset_pass_manager(0, target=compiled.device.target, initial_layout=range(circuit.num_qubits))
    assert none.run(circuit).count_ops()["cz"] == 5 * compiled.two_qubit_gates


def test_a_scheduled_circuit_is_scheduled_again(policy, rows, aer):
    compiled = policy("fake_brisbane", scheduled=True)
    circuit, _ = folded(compiled, 3)
    two_qubit = [compiled.device.target["ecr"][pair].duration for pair in compiled.device.target["ecr"]]
    assert circuit.duration > compiled.duration + 2 * min(two_qubit)
    waits = [sum(i.operation.duration for i in c.isa.data if i.operation.name == "delay") for c in (compiled, circuit)]
    assert waits[1] > waits[0]
    # no qubit does two things at a time: every qubit's gates and delays add up to the whole
    target = compiled.device.target
    at = dict.fromkeys(circuit.physical_qubits, 0.0)
    for instruction in circuit.isa.data:
        where = tuple(circuit.isa.find_bit(q).index for q in instruction.qubits)
        if where[0] in at:
            name = instruction.operation.name
            seconds = instruction.operation.duration * target.dt if name == "delay" else target[name][where].duration
            assert len({round(at[q] / target.dt) for q in where}) == 1
            for q in where:
                at[q] += seconds or 0.0
    values = rows(compiled)
    np.testing.assert_allclose(Noisy().estimate(circuit, values).values.numpy(), aer(circuit, values), atol=1e-6)


def test_factors_and_names_that_mean_nothing_are_refused(policy):
    compiled = policy("fake_manila")
    for factor in (0.5, float("nan"), "3"):
        with pytest.raises(InvalidInputError, match="numbers from 1"):
            folded(compiled, factor)
    with pytest.raises(UnknownNameError, match="local"):
        folded(compiled, 3, "locally")


def compiled_of(device, *gates):
    """Two qubits; gates as (method, arguments…)."""
    w, circuit = Parameter("w"), QuantumCircuit(2, 1)
    circuit.rx(w, 0)
    for name, *arguments in gates:
        getattr(circuit, name)(*[w if each == "w" else each for each in arguments])
    return compile_circuit(circuit, device, inputs=[], weights=[w], observables=[SparsePauliOp("IZ")])


def test_circuits_that_cannot_be_folded_are_refused(device):
    with pytest.raises(InvalidInputError, match="no two-qubit gates"):
        folded(compiled_of(device("fake_manila")), 3)
    fractional = device("fake_marrakesh").with_fractional_gates()
    with pytest.raises(UnsupportedCircuitError, match=r"rzz.*without fractional gates"):
        folded(compiled_of(fractional, ("h", 1), ("rzz", "w", 0, 1), ("h", 1)), 3)
    waits = compiled_of(device("fake_marrakesh"), ("cx", 0, 1), ("delay", 1, 0, "us"), ("cx", 0, 1))
    with pytest.raises(InvalidInputError, match="delays written by hand"):
        folded(waits, 3)


def test_a_measurement_in_mid_circuit_is_folded_around_only_locally(device):
    compiled = compiled_of(device("fake_manila"), ("cx", 0, 1), ("measure", 1, 0), ("cx", 0, 1))
    with pytest.raises(UnsupportedCircuitError, match="'measure' cannot be folded"):
        folded(compiled, 3, "global")
    circuit, reached = folded(compiled, 3, "local")
    assert (reached, circuit.isa.count_ops()["measure"]) == (3, 1)
