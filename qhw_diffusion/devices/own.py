"""Devices of one's own: from a Qiskit `Target` or a `BackendV2`, with the noise they state or an Aer `NoiseModel`.

A target is written down as the two documents of a snapshot, so that everything a device can do follows. An Aer noise
model has no place in them: it is kept beside, and the documents hold what follows from it (errors, readout, T1, T2), by
which circuits are placed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any

from qiskit.circuit import Gate, Parameter
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.transpiler import InstructionProperties, Target

from qhw_diffusion.devices.noise import GivenNoise
from qhw_diffusion.devices.providers import backend_snapshot, canonical_name
from qhw_diffusion.devices.snapshot import Snapshot, canonical_json
from qhw_diffusion.devices.validate import AS_PUBLISHED, check_snapshot, published_oddities
from qhw_diffusion.devices.working import OUT_OF_USE, RZZ_RANGE
from qhw_diffusion.errors import InvalidInputError, QhwError
from qhw_diffusion.extensions import load_extension, raised_text

# The documents need a date where a target states none
NO_DATE = "1970-01-01T00:00:00+00:00"
# Entry of the provenance: instructions of the target that no circuit is given
LEFT_OUT = "left_out"
# Entries of the provenance: the name by which a device was loaded, and the fingerprint of its own noise model
LOADED_BY, NOISE_MODEL = "loaded_by", "noise_model"
# Entry of the configuration: gates that take every angle, also those that IBM calibrates for some only
FREE_ANGLES = "free_angles"
# Gates that are done by turning the frame: without an error of their own they have none
_VIRTUAL = frozenset({"rz", "p", "u1", "z", "s", "sdg", "t", "tdg"})
_RESERVED = ("fake_", "ibm_")

Entries = dict[tuple[int, ...], InstructionProperties | None]


def own_source(text: str) -> Any:
    """The device, target or backend that ``module:name`` or ``file.py:name`` names, made where it names a function.

    Raises:
        InvalidInputError: it cannot be loaded, or making it fails; the message names it.
    """
    given = load_extension(text, what="device")
    if not callable(given):
        return given
    try:
        return given()
    except QhwError as error:
        raise InvalidInputError(f"device {text!r}: {error}") from error
    except Exception as error:
        raise InvalidInputError(
            f"device {text!r} cannot be made: {raised_text(error)}. A device by name is a Device, a Qiskit "
            "Target or BackendV2, or a function without arguments that makes one"
        ) from error


def own_device(source: Any, noise_model: Any, name: str | None) -> tuple[Snapshot, GivenNoise | None]:
    """Snapshot and noise of a target or backend; see `Device.of`."""
    target = source if isinstance(source, Target) else _target_of(source)
    if noise_model is None and name is None and has_documents(source):
        return backend_snapshot(source), None
    given = None if noise_model is None else GivenNoise.of(noise_model, target)
    stated = str(getattr(source, "name", None) or "own_target") if source is not target else "own_target"
    if name is None:
        name = f"own_{stated}" if stated.startswith(_RESERVED) or canonical_name(stated) == "ideal" else stated
    if not isinstance(name, str) or not name or name.startswith(_RESERVED) or canonical_name(name) == "ideal":
        raise InvalidInputError(
            f"name is {name!r}; give a text that is not empty, not 'ideal' and does not begin with "
            f"{' or '.join(_RESERVED)}, which Device.load means"
        )
    return _snapshot(target, given, name, f"{type(source).__module__.split('.')[0]}.{type(source).__name__}"), given


def _target_of(source: Any) -> Target:
    if type(source).__module__.startswith("qiskit_aer"):
        raise InvalidInputError(
            f"{type(source).__name__} is a simulator, which runs any gate on any qubits. Give a target and the noise "
            "model: Device.of(target, noise_model=model)"
        )
    target = getattr(source, "target", None)
    if isinstance(target, Target):
        return target
    if hasattr(source, "configuration"):
        raise InvalidInputError(
            f"{type(source).__name__} is a backend without a target (BackendV1), which Qiskit 2 has given up; give a "
            "BackendV2 or a Target"
        )
    raise InvalidInputError(f"give a qiskit Target or a BackendV2, not {type(source).__name__}")


def has_documents(backend: Any) -> bool:
    """Whether it is a backend of qiskit-ibm-runtime, which has the documents that a snapshot consists of."""
    return callable(getattr(backend, "configuration", None)) and callable(getattr(backend, "properties", None))


def check_unchanged(backend: Any, target: Target | None) -> None:
    """Refuse a backend whose target says something else than its own documents: it was changed by hand."""
    assert target is not None
    for name in set(target.operation_names) & set(backend.target.operation_names):
        stated, own = target[name] or {}, backend.target[name] or {}
        for place in stated.keys() & own.keys():
            if _numbers(stated[place]) != _numbers(own[place]):
                raise InvalidInputError(
                    f"the target of {backend.name} was changed by hand ({name} on {place}); give the target itself: "
                    "Device.of(backend.target, name=…)"
                )


def _numbers(entry: InstructionProperties | None) -> tuple[float | None, float | None]:
    return (None, None) if entry is None else (entry.error, entry.duration)


def _snapshot(target: Target, given: GivenNoise | None, name: str, source: str) -> Snapshot:
    if not target.num_qubits:
        raise InvalidInputError("the target states no number of qubits; give one whose gates are on certain qubits")
    gates, left_out = _gates(target)
    if not gates:
        raise InvalidInputError("the target has no gate of Qiskit's standard library on one or two qubits")
    kept, errors = _errors(target, gates, given)
    left_out += [gate for gate in gates if gate not in kept]
    if given is not None:
        given.check_used(set(kept) | {"measure", "reset"})
    durations = _durations(target, kept)
    readout = _readout(target, given, any(error for places in errors.values() for error in places.values()))
    resets = [] if durations is None else _resets(target)
    edges = sorted({place for entries in kept.values() for place in entries if len(place) == 2})
    configuration = {
        "backend_name": name,
        "backend_version": "",
        "online_date": NO_DATE,
        "n_qubits": target.num_qubits,
        "basis_gates": list(kept),
        "supported_instructions": [
            *kept,
            "delay",
            *(name for name in ("measure", "reset") if name in target.operation_names),
        ],
        "gates": [
            *(_gate_document(target, gate, list(entries)) for gate, entries in kept.items()),
            *([{"name": "reset", "parameters": None, "qasm_def": None}] if resets else []),
        ],
        "coupling_map": [list(edge) for edge in edges],
        "local": True,
        "simulator": False,
        "conditional": False,
        "open_pulse": False,
        "memory": True,
        "max_shots": 1_000_000,
        "timing_constraints": {
            "granularity": target.granularity,
            "min_length": target.min_length,
            "pulse_alignment": target.pulse_alignment,
            "acquire_alignment": target.acquire_alignment,
        },
        FREE_ANGLES: [gate for gate in kept if not target.gate_has_angle_bounds(gate)],
        **({} if target.dt is None else {"dt": target.dt * 1e9}),
    }
    properties = {
        "backend_name": name,
        "backend_version": "",
        "last_update_date": NO_DATE,
        "general": [],
        "qubits": [_qubit_document(target, given, q, readout[q]) for q in range(target.num_qubits)],
        "gates": [
            {
                "gate": gate,
                "name": "_".join([gate, *map(str, place)]),
                "qubits": list(place),
                "parameters": [
                    _record("gate_error", errors[gate][place]),
                    *([] if durations is None else [_record("gate_length", durations[gate][place], "s")]),
                ],
            }
            for gate, entries in kept.items()
            for place in entries
            if place in errors[gate]
        ]
        + resets,
    }
    provenance = {"source": source, **({LEFT_OUT: ", ".join(left_out)} if left_out else {})}
    check_snapshot(configuration, properties, provenance, taken=True)
    if oddities := published_oddities(properties):
        provenance[AS_PUBLISHED] = "; ".join(oddities)
    return Snapshot(name, canonical_json(configuration), canonical_json(properties), provenance)


def _record(name: str, value: float, unit: str = "") -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "date": NO_DATE}


def _gates(target: Target) -> tuple[dict[str, Entries], list[str]]:
    """Gates of Qiskit's library on one or two qubits, with all their places; and the names of what else there is."""
    known = get_standard_gate_name_mapping()
    found: dict[str, Entries] = {}
    left_out = []
    for name in target.operation_names:
        operation = target.operation_from_name(name)
        if name in ("measure", "delay", "reset"):
            continue
        usual = (
            isinstance(operation, Gate)
            and name in known
            and operation.base_class is known[name].base_class
            and operation.num_qubits <= 2
            and all(isinstance(parameter, Parameter) for parameter in operation.params)
        )
        if not usual:
            left_out.append(name)
            continue
        _check_bounds(target, name)
        found[name] = _places(target, name, operation.num_qubits)
    return found, left_out


def _places(target: Target, name: str, n_qubits: int) -> Entries:
    entries = target[name]
    if entries is None or None in entries:  # on all qubits
        return {tuple(place): None for place in permutations(range(target.num_qubits), n_qubits)}
    return dict(entries)


def _check_bounds(target: Target, name: str) -> None:
    if not target.gate_has_angle_bounds(name):
        return
    low, high = RZZ_RANGE
    inside = [target.supported_angle_bound(name, [angle]) for angle in (low - 1e-6, low, high, high + 1e-6)]
    if name != "rzz" or inside != [False, True, True, False]:
        raise InvalidInputError(
            f"the target bounds the angles of {name}; of such gates only rzz from 0 to π/2 is supported"
        )


def _errors(
    target: Target, gates: Mapping[str, Entries], given: GivenNoise | None
) -> tuple[dict[str, Entries], dict[str, dict[tuple[int, ...], float]]]:
    """The gates to be kept, and their errors; a place without one is not calibrated, and will be no part of the device.

    Raises:
        InvalidInputError: some gates have errors and another has none at all.
    """
    stated = {
        name: {place: float(e.error) for place, e in entries.items() if e is not None and _is_number(e.error)}
        for name, entries in gates.items()
    }
    if given is not None:
        infidelities = {
            name: {
                # a gate that its target gives up stays given up
                place: OUT_OF_USE if stated[name].get(place, 0.0) >= OUT_OF_USE else given.infidelity(name, place)
                for place in entries
            }
            for name, entries in gates.items()
        }
        return dict(gates), infidelities
    if not any(stated.values()):
        return dict(gates), {name: dict.fromkeys(entries, 0.0) for name, entries in gates.items()}
    kept, errors = {}, {}
    for name, entries in gates.items():
        if not stated[name] and name == "id":
            continue  # nothing needs it
        if not stated[name] and name not in _VIRTUAL:
            with_errors = ", ".join(other for other in gates if stated[other])
            raise InvalidInputError(
                f"the target states errors of {with_errors} but none of {name}, and absent is not perfect; state "
                "error=0.0 where a gate has none"
            )
        kept[name] = entries
        errors[name] = stated[name] or dict.fromkeys(entries, 0.0)
    return kept, errors


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _durations(target: Target, gates: Mapping[str, Entries]) -> dict[str, dict[tuple[int, ...], float]] | None:
    """Seconds of every gate; None where the target states none. Raises InvalidInputError where it states some only."""
    stated = {
        name: {place: None if e is None else e.duration for place, e in entries.items()}
        for name, entries in gates.items()
    }
    physical = [d for name, places in stated.items() if name not in _VIRTUAL for d in places.values()]
    if not any(_is_number(d) for d in physical):
        return None
    found: dict[str, dict[tuple[int, ...], float]] = {}
    for name, places in stated.items():
        found[name] = {}
        for place, duration in places.items():
            entry = gates[name][place]
            if duration is None and name not in _VIRTUAL and entry is not None:
                raise InvalidInputError(f"the target states durations, but none of {name} on {place}; add it")
            found[name][place] = float(duration or 0.0)
    return found


def _resets(target: Target) -> list[dict[str, Any]]:
    """Durations of reset, which relaxes meanwhile."""
    entries = (target["reset"] if "reset" in target.operation_names else None) or {}
    return [
        {
            "gate": "reset",
            "name": f"reset_{place[0]}",
            "qubits": list(place),
            "parameters": [_record("gate_length", float(entry.duration), "s")],
        }
        for place, entry in entries.items()
        if place is not None and entry is not None and _is_number(entry.duration)
    ]


def _readout(
    target: Target, given: GivenNoise | None, gates_have_errors: bool
) -> list[tuple[float, float, float | None] | None]:
    """(p10, p01, seconds) of every qubit; None for one that nothing is known of.

    Raises:
        InvalidInputError: gates have errors and no readout has any.
    """
    entries = (target["measure"] if "measure" in target.operation_names else None) or {}
    found: list[tuple[float, float, float | None] | None] = []
    for qubit in range(target.num_qubits):
        entry = entries.get((qubit,))
        duration = None if entry is None else entry.duration
        if given is not None:
            found.append((*given.readout(qubit), duration))
        elif entry is not None and _is_number(entry.error):
            found.append((float(entry.error), float(entry.error), duration))
        else:
            found.append(None)
    if any(found):
        return found
    if gates_have_errors:
        raise InvalidInputError(
            "the target states errors of gates but none of measure, and absent is not perfect; state error=0.0 for a "
            "readout without errors"
        )
    return [(0.0, 0.0, None)] * target.num_qubits


def _gate_document(target: Target, name: str, places: list[tuple[int, ...]]) -> dict[str, Any]:
    parameters = [str(parameter.name) for parameter in target.operation_from_name(name).params]
    return {
        "name": name, "parameters": parameters, "qasm_def": "", "coupling_map": [list(p) for p in sorted(places)]
    }  # fmt: skip


def _qubit_document(
    target: Target, given: GivenNoise | None, qubit: int, readout: tuple[float, float, float | None] | None
) -> list[dict[str, Any]]:
    return list(_qubit_records(target, given, qubit, readout))


def _qubit_records(
    target: Target, given: GivenNoise | None, qubit: int, readout: tuple[float, float, float | None] | None
) -> Iterator[dict[str, Any]]:
    properties = (target.qubit_properties or [None] * target.num_qubits)[qubit]
    times = given.relaxation_times(qubit) if given is not None else (
        getattr(properties, "t1", None), getattr(properties, "t2", None)
    )  # fmt: skip
    for name, value in zip(("T1", "T2"), times, strict=True):
        if value is not None and math.isfinite(value):
            yield _record(name, float(value), "s")
    if readout is None:
        yield _record("operational", 0)
        return
    p10, p01, duration = readout
    yield _record("readout_error", (p10 + p01) / 2)
    yield _record("prob_meas1_prep0", p10)
    yield _record("prob_meas0_prep1", p01)
    if _is_number(duration):
        assert duration is not None
        yield _record("readout_length", float(duration), "s")
