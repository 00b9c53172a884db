"""Compiled circuits on disk. What comes back gives the same numbers bit for bit; the rest is refused.

    circuit.qpy  circuit.qasm       the circuit as written
    isa.qpy  isa.qasm               the same compiled, with its layout
    device.snapshot.json.gz         the device it was compiled for
    device.json                     layout, cost and provenance, for people

Nothing is compiled anew on loading, since another version of Qiskit could choose another layout. `layer` writes the
weights beside these files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.circuits import AdaptiveObservables, load_circuit, save_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, QhwError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.runs import atomic_write_json

SNAPSHOT = "device.snapshot.json.gz"


def write_compiled(compiled: CompiledCircuit, folder: Path) -> dict[str, Any]:
    """Write a compiled circuit with its device; returns what `read_compiled` needs besides, as JSON types.

    Raises:
        InvalidInputError: a device or a circuit that files cannot hold.
    """
    _write_device(compiled.device, folder / SNAPSHOT)
    save_circuit(compiled.logical, folder, "circuit")
    save_circuit(compiled.isa, folder, "isa")
    atomic_write_json(folder / "device.json", compiled.summary(SNAPSHOT))
    saved = {
        "device": compiled.device.name,
        "inputs": [p.name for p in compiled.inputs],
        "weights": [p.name for p in compiled.weights],
        "observables": [_described_observable(o) for o in compiled.observables],
        "logical_observables": [_described_observable(o) for o in compiled.logical_observables],
        "physical_qubits": list(compiled.physical_qubits),
        "transpile_seed": compiled.seed,
        "optimization_level": compiled.optimization_level,
        "scheduled": compiled.scheduled,
        "postselect": [list(pair) for pair in compiled.postselect],
        "adaptive": None if compiled.adaptive is None else [list(window) for window in compiled.adaptive.windows],
        "sha256": {name: _sha256(folder / name) for name in ("circuit.qpy", "isa.qpy", SNAPSHOT)},
    }
    try:
        lost = _differences(compiled, read_compiled(folder, json.loads(json.dumps(saved))))
    except (QhwError, KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"this compiled circuit cannot be saved: {error}") from error
    if lost:
        raise InvalidInputError(
            f"this compiled circuit cannot be saved: its {', '.join(lost)} would come back different. Compile the "
            "circuit with compile_circuit, for a device of Device.load"
        )
    return saved


def read_compiled(folder: Path, saved: Mapping[str, Any]) -> CompiledCircuit:
    """The compiled circuit that `write_compiled` wrote.

    Raises:
        DamagedFileError: a file is missing, damaged, or not the one that was saved with these weights.
        KeyError, TypeError, ValueError: `saved` is not what `write_compiled` returned.
    """
    for name in saved["sha256"]:
        if not (folder / name).is_file():
            raise DamagedFileError(f"{folder / name} is missing: the folder is not whole")
    logical, isa = load_circuit(folder / "circuit.qpy"), load_circuit(folder / "isa.qpy")
    device = Device.load(folder / SNAPSHOT)
    for name, digest in saved["sha256"].items():  # a whole file, but another one
        if _sha256(folder / name) != digest:
            raise DamagedFileError(f"{folder / name} is not the file that was saved with the weights beside it")
    windows = saved.get("adaptive")  # earlier versions had none
    parameters = {p.name: p for circuit in (logical, isa) for p in circuit.parameters}
    return CompiledCircuit(
        isa=isa,
        device=device,
        inputs=tuple(parameters[name] for name in saved["inputs"]),
        weights=tuple(parameters[name] for name in saved["weights"]),
        observables=tuple(map(_observable_of, saved["observables"])),
        physical_qubits=tuple(int(q) for q in saved["physical_qubits"]),
        seed=saved["transpile_seed"],
        optimization_level=saved["optimization_level"],
        scheduled=saved["scheduled"],
        postselect=tuple((int(bit), int(outcome)) for bit, outcome in saved["postselect"]),
        logical=logical,
        logical_observables=tuple(map(_observable_of, saved["logical_observables"])),
        adaptive=None if windows is None else AdaptiveObservables(logical.num_qubits, windows),
    )


def _write_device(device: Device, path: Path) -> None:
    why = f"it is a {type(device).__name__}" if type(device) is not Device else ""
    try:
        if not why and Device.load(device.save(path)) != device:
            why = "its snapshot would come back different"
    except (QhwError, ValueError) as error:
        why = str(error)
    if why:
        raise InvalidInputError(
            f"device {device.name!r} was made by hand and cannot be saved: {why}. Move to one of Device.load first, "
            "with layer.with_compiled(compiled.compile_for(device)) or policy.on(device)"
        )


def _differences(one: CompiledCircuit, other: CompiledCircuit) -> list[str]:
    """Names of what is not the same in two compiled circuits."""
    plain = ("device", "inputs", "weights", "physical_qubits", "seed", "optimization_level", "scheduled", "postselect",
             "adaptive")  # fmt: skip
    same = {name: getattr(one, name) == getattr(other, name) for name in plain}
    same["circuit"] = same_circuit(one.logical, other.logical)
    same["ISA circuit"] = same_circuit(one.isa, other.isa)
    same["observables"] = _same_observables(one.observables, other.observables) and _same_observables(
        one.logical_observables, other.logical_observables
    )
    return [name for name, equal in same.items() if not equal]


def same_circuit(one: QuantumCircuit, other: QuantumCircuit) -> bool:
    """Whether two circuits are equal, their layouts included."""
    layouts = [None if c.layout is None else (c.layout.initial_index_layout(), c.layout.final_index_layout())
               for c in (one, other)]  # fmt: skip
    return bool(one == other) and layouts[0] == layouts[1]


def _same_observables(one: Sequence[SparsePauliOp], other: Sequence[SparsePauliOp]) -> bool:
    return len(one) == len(other) and all(
        a.paulis == b.paulis and np.array_equal(a.coeffs, b.coeffs) for a, b in zip(one, other, strict=True)
    )


def _described_observable(observable: SparsePauliOp) -> dict[str, Any]:
    terms = [
        [paulis, [int(q) for q in qubits], float(np.real(coefficient)), float(np.imag(coefficient))]
        for paulis, qubits, coefficient in observable.to_sparse_list()
    ]
    return {"qubits": observable.num_qubits, "terms": terms}


def _observable_of(described: Mapping[str, Any]) -> SparsePauliOp:
    terms = [(paulis, qubits, complex(real, imaginary)) for paulis, qubits, real, imaginary in described["terms"]]
    return SparsePauliOp.from_sparse_list(terms, num_qubits=described["qubits"])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
