"""Checks of a calibration: no value is missing, and each is one that a device can have.

Two kinds of finding are kept apart. *Impossible* values (a negative T1, a probability above 1, a gate on a qubit that
does not exist…) are always refused. *Published* oddities are what providers themselves hand out: T2 > 2·T1, which no
qubit can have but an independent fit of both can give, and qubits without T1 and T2. They are accepted only where the
snapshot's provenance lists them, value for value, which is done when it is taken from the provider; the same value
typed into a file is refused. How often providers do this: docs/calibration.md.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from qhw_diffusion.errors import InvalidInputError

# Entry of the provenance that lists the oddities of the provider's own data.
AS_PUBLISHED = "as_published"

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_READOUT = ("readout_error", "prob_meas0_prep1", "prob_meas1_prep0")


def check_snapshot(configuration: Any, properties: Any, provenance: Mapping[str, str], *, taken: bool = False) -> None:
    """Refuse documents with missing or impossible values; see the module's text for what provenance excuses.

    Args:
        configuration: the provider's backend configuration, as parsed JSON; None together with
        properties: the backend properties; None (both): the ideal device, which has nothing to check.
        provenance: of the snapshot.
        taken: the documents come from their provider this moment, so published oddities pass.

    Raises:
        InvalidInputError: the message names the field, the value and what is allowed.
    """
    if configuration is None and properties is None:
        return
    for finding in _impossible(configuration, properties):
        raise InvalidInputError(finding)
    if taken:
        return
    excused = set(provenance.get(AS_PUBLISHED, "").split("; "))
    for finding in published_oddities(properties):
        if finding not in excused:
            raise InvalidInputError(
                f"{finding}: accepted only in a snapshot taken from its provider, whose provenance lists it under "
                f"{AS_PUBLISHED!r}"
            )


def published_oddities(properties: Any) -> list[str]:
    """``["qubit 12: T2 = 400.0 us is above 2·T1 = 300.0 us", …]``: what Aer's model works around without a word."""
    found = []
    for qubit, records in enumerate(properties["qubits"]):
        value = {record["name"]: record for record in records}
        found += [f"qubit {qubit}: {name} is missing" for name in ("T1", "T2") if name not in value]
        if "T1" in value and "T2" in value:
            t1, t2 = value["T1"], value["T2"]
            if in_seconds(t2) > 2 * in_seconds(t1):
                found.append(
                    f"qubit {qubit}: T2 = {t2['value']!r} {t2['unit']} is above 2·T1 = {2 * t1['value']!r} {t1['unit']}"
                )
    return found


def in_seconds(record: dict[str, Any]) -> float:
    """The time of one record of the properties, ``{"value": 85.2, "unit": "us", …}``, in seconds."""
    return float(record["value"]) * _SECONDS[record["unit"]]


def states_durations(properties: Any) -> bool:
    """Whether any gate has a duration; without them nothing can be scheduled."""
    records = (r for gate in properties["gates"] if isinstance(gate, dict) for r in gate.get("parameters") or [])
    return any(isinstance(record, dict) and record.get("name") == "gate_length" for record in records)


def _impossible(configuration: Any, properties: Any) -> Iterator[str]:
    for title, document in (("configuration", configuration), ("properties", properties)):
        if not isinstance(document, dict):
            yield f"{title} must be an object, not {type(document).__name__}"
    n_qubits = configuration.get("n_qubits")
    if not isinstance(n_qubits, int) or isinstance(n_qubits, bool) or n_qubits < 1:
        yield f"configuration.n_qubits must be a whole number ≥ 1, not {n_qubits!r}"
    for title, document, names in (
        ("configuration", configuration, ("basis_gates", "gates")),
        ("properties", properties, ("qubits", "gates")),
    ):
        for name in names:
            if not isinstance(document.get(name), list):
                yield f"{title}.{name} must be a list, not {type(document.get(name)).__name__}"
    yield from _impossible_date(properties.get("last_update_date"))
    yield from _impossible_topology(configuration, n_qubits)
    if len(properties["qubits"]) != n_qubits:
        yield f"properties.qubits: {n_qubits} qubits are configured but {len(properties['qubits'])} are calibrated"
    for qubit, records in enumerate(properties["qubits"]):
        yield from _impossible_qubit(f"qubit {qubit}", records)
    yield from _impossible_gates(configuration, properties, n_qubits)


def _impossible_date(date: Any) -> Iterator[str]:
    try:
        datetime.fromisoformat(date)
    except (TypeError, ValueError):
        yield f"properties.last_update_date must be an ISO date such as '2025-02-26T14:52:45-05:00', not {date!r}"


def _impossible_topology(configuration: Any, n_qubits: int) -> Iterator[str]:
    for name in configuration["basis_gates"]:
        if name not in _known_gates():
            yield f"configuration.basis_gates: {name!r} is not a gate Qiskit knows"
    edges = configuration.get("coupling_map")
    if edges is None and n_qubits > 1:
        yield "configuration.coupling_map is missing"
    for edge in edges or []:
        if not _places(edge, n_qubits) or len(edge) != 2:
            yield f"configuration.coupling_map: {edge!r} must be two different qubits from 0 to {n_qubits - 1}"


def _impossible_qubit(where: str, records: Any) -> Iterator[str]:
    value = yield from _values(where, records)
    for name in ("T1", "T2", "readout_length"):
        if name not in value:
            continue
        if value[name]["unit"] not in _SECONDS:
            yield f"{where}: {name} has unit {value[name]['unit']!r}; allowed: {', '.join(_SECONDS)}"
        if value[name]["value"] < 0 or (value[name]["value"] == 0 and name != "readout_length"):
            yield f"{where}: {name} must be positive, not {value[name]['value']!r}"
    for name in _READOUT:
        if name in value and not 0 <= value[name]["value"] <= 1:
            yield f"{where}: {name} must lie in [0, 1], not {value[name]['value']!r}"
    working = "operational" not in value or value["operational"]["value"]
    if working and "readout_error" not in value and not {"prob_meas0_prep1", "prob_meas1_prep0"} <= value.keys():
        yield f"{where}: readout_error is missing"


def _impossible_gates(configuration: Any, properties: Any, n_qubits: int) -> Iterator[str]:
    calibrated = set()
    configured = {gate.get("name") for gate in configuration["gates"] if isinstance(gate, dict)}
    edges = {tuple(edge) for edge in configuration.get("coupling_map") or []}
    timed = states_durations(properties)
    for index, gate in enumerate(properties["gates"]):
        if not isinstance(gate, dict) or not isinstance(gate.get("gate"), str):
            yield f"properties.gates[{index}].gate is missing"
        name, qubits = gate["gate"], gate.get("qubits")
        where = f"gate {name} on {qubits}"
        if name not in configured and name not in _known_gates():
            yield f"{where}: gate {name!r} is neither configured nor one Qiskit knows"
        if not _places(qubits, n_qubits):
            yield f"{where}: qubits must be different numbers from 0 to {n_qubits - 1}"
        if len(qubits) == 2 and edges.isdisjoint({tuple(qubits), tuple(qubits[::-1])}):
            yield f"{where}: qubits are not connected in configuration.coupling_map"
        calibrated.add(name)
        value = yield from _values(where, gate.get("parameters"))
        for field in ("gate_error", "gate_length"):
            if field not in value:
                # A device may state no durations at all, but not of some gates only. Reset and its like are no gates
                # and may come without an error, even where the basis lists them.
                needs_error = name in configuration["basis_gates"] and name != "reset"
                if timed if field == "gate_length" else needs_error:
                    yield f"{where}: {field} is missing"
                continue
            given = value[field]["value"]
            if field == "gate_error" and not 0 <= given <= 1:
                yield f"{where}: gate_error must lie in [0, 1], not {given!r}"
            if field == "gate_length" and given < 0:
                yield f"{where}: gate_length must not be negative, not {given!r}"
            if field == "gate_length" and value[field]["unit"] not in _SECONDS:
                yield f"{where}: gate_length has unit {value[field]['unit']!r}; allowed: {', '.join(_SECONDS)}"
    for name in configuration["basis_gates"]:
        if name not in calibrated:
            yield f"configuration.basis_gates: {name!r} is missing from properties.gates"


def _values(where: str, records: Any) -> Generator[str, None, dict[str, dict[str, Any]]]:
    """Yields findings; returns the records by name."""
    if not isinstance(records, list):
        yield f"{where}: values must be a list, not {type(records).__name__}"
    value: dict[str, dict[str, Any]] = {}
    for record in records:
        if not isinstance(record, dict) or not isinstance(record.get("name"), str) or "unit" not in record:
            yield f"{where}: {record!r} must have a name, a value and a unit"
        number = record.get("value")
        if isinstance(number, bool) and record["name"] == "operational":
            value[record["name"]] = record
            continue
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not math.isfinite(number):
            yield f"{where}: {record['name']} must be a finite number, not {number!r}"
        value[record["name"]] = record
    return value


def _places(qubits: Any, n_qubits: int) -> bool:
    return (
        isinstance(qubits, list)
        and len(qubits) > 0
        and all(isinstance(q, int) and not isinstance(q, bool) and 0 <= q < n_qubits for q in qubits)
        and len(set(qubits)) == len(qubits)
    )


@cache
def _known_gates() -> frozenset[str]:
    from qiskit.circuit.library.standard_gates import get_standard_gate_name_mapping

    return frozenset(get_standard_gate_name_mapping())
