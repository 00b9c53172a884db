"""Ranked placements: the score by brute force, the order against density-matrix simulation."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import ParameterVector
from qiskit.quantum_info import Operator, average_gate_fidelity
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime.fake_provider import FakeLagosV2
from scipy.stats import spearmanr

from qhw_diffusion.devices import Device, layouts, layouts_text, predicted_error, rank_layouts
from qhw_diffusion.errors import InvalidInputError

READOUT = ("prob_meas1_prep0", "prob_meas0_prep1")


def chain(n_qubits: int) -> QuantumCircuit:
    """Free angles between all gates, so that no transpiler finds anything to shorten."""
    angles = iter(ParameterVector("a", 8 * n_qubits))
    circuit = QuantumCircuit(n_qubits)
    for layer in range(2):
        for qubit in range(n_qubits):
            circuit.rz(next(angles), qubit)
            circuit.sx(qubit)
            circuit.rz(next(angles), qubit)
        for qubit in range(n_qubits - 1):
            circuit.cx(qubit, qubit + 1)
        if layer:
            for qubit in range(n_qubits):
                circuit.sx(qubit)
    return circuit


def test_every_placement_and_its_score_by_brute_force() -> None:
    """fake_lagos has seven qubits in the shape of an H; all 210 triples are tried, with the backend's own numbers."""
    backend = FakeLagosV2()
    properties = backend.properties()
    edges = {tuple(edge) for edge in backend.coupling_map.get_edges()}
    expected = {}
    for triple in permutations(range(7), 3):
        a, b, c = triple
        if (a, b) in edges and (b, c) in edges:
            success = np.prod([(1 - properties.gate_error("sx", q)) ** 3 for q in triple])
            success *= np.prod([(1 - properties.gate_error("cx", pair)) ** 2 for pair in ((a, b), (b, c))])
            for q in triple:
                success *= 1 - np.mean([properties.qubit_property(q, name)[0] for name in READOUT])
            expected[triple] = 1 - success
    ranked = rank_layouts(Device.load("fake_lagos"), chain(3), top=1000, seeds=2)
    assert {layout.qubits: layout.error for layout in ranked.layouts} == pytest.approx(expected, abs=1e-12)
    assert [layout.qubits for layout in ranked.layouts[:3]] == sorted(expected, key=expected.__getitem__)[:3]
    assert not ranked.stopped
    assert ranked.n_examined == 2 * len(expected)
    assert {layout.n_two_qubit for layout in ranked.layouts} == {4}


@pytest.mark.slow
def test_predicted_order_is_that_of_the_simulated_error() -> None:
    """A circuit and its inverse: without noise all qubits read 0. Aer's density matrix under the device's noise, with
    the readout errors, gives the probability that one does not.
    """
    device = Device.load("fake_lagos")
    rng = np.random.default_rng(7)
    half = chain(3)
    half = half.assign_parameters(rng.uniform(-np.pi, np.pi, half.num_parameters))
    mirror = half.copy()
    mirror.barrier()
    mirror = mirror.compose(half.inverse())
    ranked = rank_layouts(device, mirror, top=1000, seeds=1)
    assert len(ranked.layouts) == 14  # directed paths of three qubits in the H
    predicted, simulated = [], []
    for layout in ranked.layouts:
        isa = transpile(
            mirror, target=device.target, initial_layout=list(layout.qubits), optimization_level=1, seed_transpiler=0
        )
        small = QuantumCircuit(3)
        for instruction in isa.data:
            places = [
                layout.qubits.index(q)
                for q in (isa.find_bit(b).index for b in instruction.qubits)
                if q in layout.qubits
            ]
            if instruction.operation.name == "barrier":
                small.barrier(places)
            else:
                small.append(instruction.operation, places)
        small.save_density_matrix()
        simulator = AerSimulator(method="density_matrix", noise_model=device.noise_model(list(layout.qubits)))
        state = simulator.run(small).result().data()["density_matrix"]
        outcomes = np.real(np.diag(np.asarray(state))).reshape(2, 2, 2)  # axes: qubits 2, 1, 0
        for axis, qubit in zip((2, 1, 0), layout.qubits, strict=True):
            p10, p01 = device.readout_error(qubit)
            read_zero = np.array([1 - p10, p01])
            outcomes = np.expand_dims(np.tensordot(outcomes, read_zero, axes=([axis], [0])), axis)
        predicted.append(layout.error)
        simulated.append(1 - float(outcomes.item()))
    assert predicted == sorted(predicted)
    assert spearmanr(predicted, simulated).statistic > 0.85
    assert simulated[0] < np.median(simulated)


def test_gates_are_turned_where_a_device_has_one_direction_only() -> None:
    """Every placement on an Eagle is made of gates it has, and is still the same unitary."""
    device = Device.load("fake_brisbane")
    assert device.target is not None
    circuit = chain(3)
    values = np.random.default_rng(3).uniform(-np.pi, np.pi, circuit.num_parameters)
    ideal = Operator(circuit.assign_parameters(values))
    ranked = rank_layouts(device, circuit, top=12, seeds=1)
    for layout in ranked.layouts:
        bound = layout.circuit.assign_parameters(dict(zip(circuit.parameters, values, strict=True)))
        small = QuantumCircuit(3)
        for instruction in bound.data:
            place = tuple(bound.find_bit(bit).index for bit in instruction.qubits)
            assert device.target.instruction_supported(instruction.operation.name, place)
            small.append(instruction.operation, [layout.qubits.index(q) for q in place])
        assert Operator(small).equiv(ideal, atol=1e-7)
        assert predicted_error(device, layout.circuit, list(layout.qubits)) == layout.error
    assert [layout.error for layout in ranked.layouts] == sorted(layout.error for layout in ranked.layouts)


def test_couplings_out_of_use_are_not_recommended() -> None:
    device = Device.load("fake_marrakesh")
    broken = QuantumCircuit(156)
    broken.cz(23, 24)
    assert predicted_error(device, broken, []) == 1.0
    ranked = rank_layouts(device, chain(4), top=40, seeds=1)
    assert ranked.layouts[-1].error < 0.1


def test_what_is_read_counts_and_waiting_counts() -> None:
    device = Device.load("fake_manila")
    circuit = QuantumCircuit(2, 1)
    circuit.x(0)
    circuit.cx(0, 1)
    circuit.measure(1, 0)
    best = rank_layouts(device, circuit, top=1, seeds=1).layouts[0]
    (read,) = (best.circuit.find_bit(i.qubits[0]).index for i in best.circuit.data if i.operation.name == "measure")
    assert read == best.qubits[1]
    assert best.error == predicted_error(device, best.circuit, [read])
    waiting = QuantumCircuit(5)
    waiting.delay(1000, 2, unit="ns")
    channel = device.relaxation(2, 1e-6)
    assert channel is not None
    assert predicted_error(device, waiting, []) == pytest.approx(1 - average_gate_fidelity(channel), rel=1e-9)


def test_a_circuit_that_needs_routing_and_one_that_needs_nothing() -> None:
    ring = QuantumCircuit(4)
    for layer in range(2):
        for qubit in range(4):
            ring.ry(0.3 + layer, qubit)
            ring.cx(qubit, (qubit + 1) % 4)
    ranked = rank_layouts(Device.load("fake_manila"), ring, top=3, seeds=2)
    assert ranked.layouts[0].n_two_qubit > 8
    single = QuantumCircuit(1)
    single.sx(0)
    device = Device.load("fake_manila")
    best = rank_layouts(device, single, top=1, seeds=1).layouts[0]
    assert best.qubits == (min(range(5), key=lambda q: sum(device.readout_error(q))),)
    assert "placements examined" in layouts_text(ranked)


def test_too_many_placements_are_said_and_good_qubits_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five unconnected qubits have 6·10⁷ placements on fake_torino; the first thousand already hold the good ones."""
    monkeypatch.setattr(layouts, "MAX_PLACEMENTS", 1000)
    device = Device.load("fake_torino")
    circuit = QuantumCircuit(5)
    circuit.sx(range(5))
    ranked = rank_layouts(device, circuit, top=3, seeds=1)
    assert ranked.stopped
    assert ranked.n_examined <= 1002
    assert "the best one may not be among them" in layouts_text(ranked)
    readout = [sum(device.readout_error(q)) / 2 for q in range(133)]
    assert all(1 - layout.error > (1 - sorted(readout)[12]) ** 5 * 0.99 for layout in ranked.layouts)


@pytest.mark.parametrize(
    ("device", "circuit", "given", "message"),
    [
        ("ideal", QuantumCircuit(2), {}, "ideal device"),
        ("fake_manila", QuantumCircuit(6), {}, "has 6 qubits, fake_manila has 5"),
        ("fake_manila", QuantumCircuit(0), {}, "has 0 qubits"),
        ("fake_manila", "circuit", {}, "QuantumCircuit, not str"),
        ("fake_manila", QuantumCircuit(2), {"top": 0}, "at least 1"),
        ("fake_manila", QuantumCircuit(2), {"seeds": 0}, "at least 1"),
    ],
)
def test_bad_requests(device: str, circuit: QuantumCircuit, given: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        rank_layouts(Device.load(device), circuit, **given)


def test_a_compiled_circuit_is_refused() -> None:
    device = Device.load("fake_manila")
    with pytest.raises(InvalidInputError, match="compiled for a device already"):
        rank_layouts(device, transpile(chain(3), target=device.target))
