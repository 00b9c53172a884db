"""Placements of a compiled circuit on a device, ranked by predicted error.

The circuit is transpiled with a few seeds. Each result uses some couplings; every other place of the device with the
same couplings (a subgraph isomorphism, found by VF2++) can run the same gates. The predicted error is one minus the
product of 1 − error over its gates and its readouts (Nation & Treinish, PRX Quantum 4, 010327 (2023), "mapomatic").
That is the probability that anything goes wrong, not an infidelity; it ranks placements. Idle qubits count only where
the circuit holds explicit delays.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from qiskit import transpile
from qiskit.circuit import CircuitInstruction, QuantumCircuit
from qiskit.quantum_info import average_gate_fidelity
from qiskit.transpiler import Target, TranspilerError

from qhw_diffusion.devices.device import Device
from qhw_diffusion.devices.working import couplings, usable_qubits
from qhw_diffusion.errors import InvalidInputError

MAX_PLACEMENTS = 200_000
# Instructions that do nothing to the qubits, or are counted as readouts.
_FREE = ("barrier", "measure")


@dataclass(frozen=True)
class RankedLayout:
    """One placement of a circuit on a device.

    Attributes:
        qubits: physical qubits that the circuit's qubits start on, in the circuit's order: an `initial_layout`.
        error: predicted error, in [0, 1].
        n_two_qubit: two-qubit gates of the compiled circuit.
        seed: of the transpilation that found it.
        circuit: the ISA circuit at this place, on physical qubits (without Qiskit's record of the layout).
    """

    qubits: tuple[int, ...]
    error: float
    n_two_qubit: int
    seed: int
    circuit: QuantumCircuit


@dataclass(frozen=True)
class RankedLayouts:
    """The best placements, best first.

    Attributes:
        n_examined: how many placements were scored, over all seeds.
        stopped: there were more than `MAX_PLACEMENTS` for some seed.
    """

    layouts: tuple[RankedLayout, ...]
    n_examined: int
    stopped: bool


def rank_layouts(device: Device, circuit: QuantumCircuit, *, top: int = 5, seeds: int = 5) -> RankedLayouts:
    """The `top` placements of `circuit` with the smallest predicted error.

    Args:
        device: with a target.
        circuit: logical circuit; its parameters may be free. Without measurements every qubit counts as read once.
        top: how many to return, ≥ 1.
        seeds: transpilations tried (seeds 0, 1, …), ≥ 1.

    Raises:
        InvalidInputError: the ideal device; a circuit that is compiled already, empty, too wide, or without a place on
            what is in use; top or seeds < 1.
    """
    target = _check(device, circuit, top, seeds)
    best: dict[tuple[int, ...], RankedLayout] = {}
    n_examined, stopped = 0, False
    for seed in range(seeds):
        isa = _transpiled(device, circuit, seed)
        starts = isa.layout.initial_index_layout(filter_ancillas=True)
        ends = isa.layout.final_index_layout(filter_ancillas=True)
        reads = _reads(isa, ends)
        active = sorted({*starts, *ends, *(q for places in _gates(isa) for q in places[1])})
        places, more = _placements(device, target, isa, active)
        n_examined, stopped = n_examined + len(places), stopped or more
        order = np.argsort(_quick_scores(device, target, isa, active, reads, places), kind="stable")
        # A gate in the other direction costs a few more gates, which the quick score leaves out: look a little deeper.
        for place in places[order[: 4 * top]]:
            moved = dict(zip(active, map(int, place), strict=True))
            placed = _moved(isa, moved, target)
            qubits = tuple(moved[q] for q in starts)
            error = predicted_error(device, placed, [moved[q] for q in reads])
            if qubits not in best or error < best[qubits].error:
                n_two = sum(len(gate[1]) == 2 for gate in _gates(placed))
                best[qubits] = RankedLayout(qubits, error, n_two, seed, placed)
    layouts = sorted(best.values(), key=lambda layout: (layout.error, layout.n_two_qubit, layout.qubits))
    return RankedLayouts(tuple(layouts[:top]), n_examined, stopped)


def predicted_error(device: Device, isa: QuantumCircuit, reads: list[int]) -> float:
    """1 − ∏(1 − gate error) · ∏(1 − readout error) of an ISA circuit that reads the physical qubits `reads`.

    Gate errors are the calibrated average infidelities; the readout error is the mean of p10 and p01. A delay counts
    with the average infidelity of relaxation.

    Raises:
        InvalidInputError: a gate the device does not have there; the ideal device.
    """
    target = device.target
    if target is None:
        raise InvalidInputError("the ideal device has no errors to predict from")
    success = 1.0
    for name, place, instruction in _gates(isa):
        if name == "delay":
            channel = device.relaxation(place[0], _seconds(instruction, target))
            success *= 1.0 if channel is None else float(average_gate_fidelity(channel))
        elif not target.instruction_supported(name, place):
            raise InvalidInputError(f"{device.name} has no {name!r} on qubits {place}")
        else:
            success *= 1 - _error(target, name, place)
    for qubit in reads:
        success *= 1 - sum(device.readout_error(qubit)) / 2
    return 1 - success


def _check(device: Device, circuit: QuantumCircuit, top: int, seeds: int) -> Target:
    if device.target is None or device.n_qubits is None:
        raise InvalidInputError("the ideal device has no errors to rank layouts by; name a fake device or a snapshot")
    if top < 1 or seeds < 1:
        raise InvalidInputError(f"top and seeds must be at least 1, not {top} and {seeds}")
    if not isinstance(circuit, QuantumCircuit):
        raise InvalidInputError(f"circuit must be a qiskit QuantumCircuit, not {type(circuit).__name__}")
    if circuit.layout is not None:
        raise InvalidInputError("the circuit is compiled for a device already; give the logical circuit")
    usable = len(device.usable_qubits)
    if not 1 <= circuit.num_qubits <= usable:
        faulty = "" if usable == device.n_qubits else f" in use (and {device.n_qubits - usable} that are faulty)"
        raise InvalidInputError(f"the circuit has {circuit.num_qubits} qubits, {device.name} has {usable}{faulty}")
    assert device.target_in_use is not None
    return device.target_in_use


def _transpiled(device: Device, circuit: QuantumCircuit, seed: int) -> QuantumCircuit:
    try:
        return device.transpiled(
            lambda target: transpile(circuit, target=target, optimization_level=3, seed_transpiler=seed)
        )
    except TranspilerError as error:
        raise InvalidInputError(
            f"{device.name} has no place for this circuit on its qubits in use: {error.message}"
        ) from error


def _gates(circuit: QuantumCircuit) -> list[tuple[str, tuple[int, ...], CircuitInstruction]]:
    """Name, qubits and instruction of everything that acts and is not a readout."""
    index = {bit: number for number, bit in enumerate(circuit.qubits)}
    return [
        (instruction.operation.name, tuple(index[bit] for bit in instruction.qubits), instruction)
        for instruction in circuit.data
        if instruction.operation.name not in _FREE
    ]


def _reads(isa: QuantumCircuit, ends: list[int]) -> list[int]:
    measured = [isa.find_bit(i.qubits[0]).index for i in isa.data if i.operation.name == "measure"]
    return measured or list(ends)


def _error(target: Target, name: str, place: tuple[int, ...]) -> float:
    entry = target[name].get(place)
    return 0.0 if entry is None or entry.error is None else min(float(entry.error), 1.0)


def _seconds(instruction: CircuitInstruction, target: Target) -> float:
    operation = instruction.operation
    if operation.unit == "dt":
        return float(operation.duration) * float(target.dt)
    return float(operation.duration) * {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "ps": 1e-12}[operation.unit]


def _placements(
    device: Device, target: Target, isa: QuantumCircuit, active: list[int]
) -> tuple[NDArray[np.int64], bool]:
    """``[P, len(active)]``: where each active qubit may go, its own place first; and whether there are more."""
    import rustworkx

    # Good qubits first: VF2 tries them first, which matters where there are too many placements to try them all.
    best_first = sorted(usable_qubits(target), key=lambda q: sum(device.readout_error(q)))
    node = {qubit: index for index, qubit in enumerate(best_first)}
    device_graph = rustworkx.PyGraph(multigraph=False)
    device_graph.add_nodes_from(best_first)
    edges = {(min(node[a], node[b]), max(node[a], node[b])) for a, b in couplings(target)}
    device_graph.add_edges_from_no_data(sorted(edges))
    number = {qubit: index for index, qubit in enumerate(active)}
    wanted = rustworkx.PyGraph(multigraph=False)
    wanted.add_nodes_from(active)
    pairs = {(min(p), max(p)) for p in ([number[q] for q in place] for _, place, _ in _gates(isa)) if len(p) == 2}
    wanted.add_edges_from_no_data(sorted(pairs))
    found = rustworkx.vf2_mapping(device_graph, wanted, subgraph=True, induced=False, id_order=True)
    rows = [active]
    for mapping in islice(found, MAX_PLACEMENTS):
        row = [0] * len(active)
        for place, index in mapping.items():
            row[index] = best_first[place]
        rows.append(row)
    stopped = len(rows) > MAX_PLACEMENTS and next(found, None) is not None
    return np.unique(np.array(rows, dtype=np.int64), axis=0), stopped


def _quick_scores(
    device: Device,
    target: Target,
    isa: QuantumCircuit,
    active: list[int],
    reads: list[int],
    places: NDArray[np.int64],
) -> NDArray[np.float64]:
    """−log of the predicted success of each placement [P], with no price on gates against their direction."""
    column = {qubit: index for index, qubit in enumerate(active)}
    costs = np.zeros(len(places))
    counts = Counter((name, place) for name, place, _ in _gates(isa) if name != "delay")
    tables: dict[str, NDArray[np.float64]] = {}
    for (name, place), count in counts.items():
        if name not in tables:
            tables[name] = _costs(target, name, len(place))
        costs += count * tables[name][tuple(places[:, column[q]] for q in place)]
    readout = np.full(target.num_qubits, np.inf)
    with np.errstate(divide="ignore"):
        for qubit in usable_qubits(target):
            readout[qubit] = -np.log1p(-sum(device.readout_error(qubit)) / 2)
    for qubit in reads:
        costs += readout[places[:, column[qubit]]]
    return costs


def _costs(target: Target, name: str, n_qubits: int) -> NDArray[np.float64]:
    """−log(1 − error) of a gate by qubit [N] or by pair [N, N] in either direction; inf where it is not to be had."""
    costs = np.full((target.num_qubits,) * n_qubits, np.inf)
    for place in target[name] or {}:
        error = _error(target, name, place)
        cost = np.inf if error >= 1 else -np.log1p(-error)
        costs[place] = min(costs[place], cost)
        costs[place[::-1]] = min(costs[place[::-1]], cost)
    return costs


def _moved(isa: QuantumCircuit, moved: dict[int, int], target: Target) -> QuantumCircuit:
    """The ISA circuit on other qubits, with gates turned round where the device has only the other direction."""
    from qiskit.circuit.equivalence_library import SessionEquivalenceLibrary
    from qiskit.transpiler import PassManager
    from qiskit.transpiler.passes import BasisTranslator, GateDirection, Optimize1qGatesDecomposition

    placed = QuantumCircuit(*isa.qregs, *isa.cregs, global_phase=isa.global_phase)
    for instruction in isa.data:
        qubits = [isa.find_bit(bit).index for bit in instruction.qubits]
        # a barrier over the whole device says no more than one over the qubits in use
        kept = [placed.qubits[moved[q]] for q in qubits if q in moved]
        operation = instruction.operation
        if operation.name == "barrier":
            placed.barrier(kept)
        else:
            placed.append(operation, kept, instruction.clbits)
    if all(target.instruction_supported(name, place) for name, place, _ in _gates(placed) if name != "delay"):
        return placed
    turned = PassManager(
        [
            GateDirection(None, target=target),
            BasisTranslator(SessionEquivalenceLibrary, None, target=target),
            Optimize1qGatesDecomposition(target=target),
        ]
    )
    return turned.run(placed)
