"""The usable part of a device: gates without calibration and faulty ones are left out.

A provider marks a faulty qubit or gate by ``operational: 0`` in its properties, or leaves its calibration out: neither
is part of the device's target. A gate with an error of 1 is in the target, as published, and has the noise Aer's model
gives it; but no circuit is placed on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from qiskit import QuantumCircuit
from qiskit.circuit import Gate
from qiskit.transpiler import InstructionProperties, Target, TranspilerError

from qhw_diffusion.devices.instructions import MEASUREMENTS, MID_CIRCUIT
from qhw_diffusion.errors import InvalidInputError, QhwError

# A gate's error from which on nothing of it is left
OUT_OF_USE = 1.0
# Instructions on one qubit that it can do without
_DISPENSABLE = ("id", "rx", *MID_CIRCUIT.values())
# The angles that IBM calibrates rzz for
RZZ_RANGE = (0.0, math.pi / 2)

Place = tuple[int, ...]
# (name, qubits, what the target says of it) → whether it must go
Refused = Callable[[str, Place, InstructionProperties | None], bool]


def faulty(properties: Mapping[str, Any]) -> tuple[set[int], set[tuple[str, Place]]]:
    """Qubits and gates that their provider marks as not operational."""
    qubits = {q for q, records in enumerate(properties["qubits"]) if not _operational(records)}
    gates = {(g["gate"], tuple(g["qubits"])) for g in properties["gates"] if not _operational(g["parameters"])}
    return qubits, gates


def _operational(records: list[dict[str, Any]]) -> bool:
    return all(record["value"] for record in records if record["name"] == "operational")


def calibrated_part(target: Target, properties: Mapping[str, Any], *, bounded: bool = True) -> Target:
    """`target` without what is faulty or has no calibration; and without bounds on angles unless `bounded`.

    Of measurements in mid-circuit too: a qubit without their error is read by `measure`.
    """
    qubits, gates = faulty(properties)

    def refused(name: str, place: Place, entry: InstructionProperties | None) -> bool:
        if qubits & set(place) or (name, place) in gates:
            return True
        unknown = entry is None or entry.error is None or math.isnan(entry.error)
        needed = isinstance(target.operation_from_name(name), Gate) or name in MEASUREMENTS[1:]
        return unknown and needed

    return without(target, refused, bounded=bounded)


def part_in_use(target: Target) -> Target:
    """`target` without gates of error 1."""
    return without(target, lambda name, place, entry: _out_of_use(target, name, entry))


def out_of_use(target: Target, isa: QuantumCircuit) -> list[tuple[str, Place]]:
    """Gates of an ISA circuit that are out of use, each once."""
    found: dict[tuple[str, Place], None] = {}
    for instruction in isa.data:
        name, place = instruction.operation.name, tuple(isa.find_bit(q).index for q in instruction.qubits)
        if name in target.operation_names and _out_of_use(target, name, (target[name] or {}).get(place)):
            found[name, place] = None
    return list(found)


def _out_of_use(target: Target, name: str, entry: InstructionProperties | None) -> bool:
    gate = isinstance(target.operation_from_name(name), Gate)
    return gate and entry is not None and entry.error is not None and entry.error >= OUT_OF_USE


def without(target: Target, refused: Refused, *, bounded: bool = True) -> Target:
    """The target without what is refused, and without qubits that have lost a gate they need; itself if all is well.

    Unless it is `bounded`, angles are free.
    """
    kept: dict[str, dict[Place, InstructionProperties | None]] = {}
    unusable: set[int] = set()
    complete = True
    for name in target.operation_names:
        entries = target[name]
        if entries is None or None in entries:
            continue  # of no particular qubits: control flow
        kept[name] = {place: entry for place, entry in entries.items() if not refused(name, place, entry)}
        gone = entries.keys() - kept[name].keys()
        complete = complete and not gone
        if name not in _DISPENSABLE:
            unusable.update(place[0] for place in gone if len(place) == 1)
    if complete and bounded:
        return target
    smaller = Target(
        num_qubits=target.num_qubits,
        qubit_properties=target.qubit_properties,
        concurrent_measurements=target.concurrent_measurements,
        dt=target.dt,
        granularity=target.granularity,
        min_length=target.min_length,
        pulse_alignment=target.pulse_alignment,
        acquire_alignment=target.acquire_alignment,
    )
    for name in target.operation_names:
        operation = target.operation_from_name(name)
        if name not in kept:
            smaller.add_instruction(operation, name=name)
            continue
        places = {place: entry for place, entry in kept[name].items() if not unusable & set(place)}
        bounds = [RZZ_RANGE] if bounded and target.gate_has_angle_bounds(name) else None
        if places:
            smaller.add_instruction(operation, places, name=name, angle_bounds=bounds)
    return smaller


def usable_qubits(target: Target) -> tuple[int, ...]:
    """Physical qubits that have gates of their own, ascending."""
    return tuple(sorted({place[0] for place in target.qargs or () if place is not None and len(place) == 1}))


def couplings(target: Target) -> tuple[tuple[int, int], ...]:
    """Pairs (ascending) of physical qubits with a two-qubit gate, sorted."""
    return tuple(sorted({(min(p), max(p)) for p in target.qargs or () if p is not None and len(p) == 2}))


def trivial_layout(target: Target, n_qubits: int, level: int) -> list[int] | None:
    """Qubits to put a circuit's qubits on, in order, where the transpiler would take 0, 1, 2, … whatever they are.

    It does so at level 0, and at level 1 where nothing speaks against it, even on qubits without gates. The first ones
    of the largest connected part; None where these are 0, 1, 2, …, and where the transpiler looks for good ones itself.
    """
    import rustworkx

    usable = usable_qubits(target)
    if level > 1 or (level == 1 and len(usable) == target.num_qubits):
        return None
    graph = rustworkx.PyGraph(multigraph=False)
    node = {qubit: graph.add_node(qubit) for qubit in usable}
    graph.add_edges_from_no_data([(node[a], node[b]) for a, b in couplings(target)])
    parts = [sorted(graph[n] for n in part) for part in rustworkx.connected_components(graph)]
    largest = max(parts, key=len, default=[])
    first = largest[:n_qubits]
    return None if len(first) < n_qubits or first == list(range(n_qubits)) else first


def on_gates_in_use(
    name: str, target: Target, in_use: Callable[[], Target], run: Callable[[Target], QuantumCircuit]
) -> QuantumCircuit:
    """`run(target)`; where that has put something on a gate out of use, `run(in_use())`.

    The target as published comes first, so that gates that nothing is put on change no layout.

    Args:
        name: of the device.
        target: with all its gates.
        in_use: gives the target without those out of use.
        run: transpiles for a target.

    Raises:
        InvalidInputError: the circuit cannot do without gates that are out of use; the message names them.
    """
    isa = run(target)
    broken = out_of_use(target, isa)
    if not broken:
        return isa
    try:
        return run(in_use())
    except (TranspilerError, QhwError) as error:
        named = ", ".join(f"{gate} on {'-'.join(map(str, place))}" for gate, place in broken[:5])
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise InvalidInputError(
            f"the circuit does not fit on the gates of {name} that are in use; it would need {named}{more}, which are "
            "out of use (error 1). Use another device, or fewer qubits"
        ) from error
