"""A dynamic circuit, and the probabilities of its records by hand, with a device's noise: a density matrix a record."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, Parameter, QuantumRegister, Reset
from qiskit.quantum_info import DensityMatrix, Operator
from scipy import stats

from qhw_diffusion.devices import Device

A, B = Parameter("a"), Parameter("b")
ALARM = 1e-5


def dynamic() -> QuantumCircuit:
    """A qubit is measured into ``m`` and reset; what it read chooses the angle of another one, and a CNOT."""
    m, x = ClassicalRegister(1, "m"), ClassicalRegister(2, "x")
    circuit = QuantumCircuit(QuantumRegister(3), m, x)
    circuit.ry(A, 0)
    circuit.measure(0, m[0])
    circuit.reset(0)
    with circuit.if_test((m, 1)) as otherwise:
        circuit.ry(B, 2)
        circuit.cx(2, 1)
    with otherwise:
        circuit.ry(B / 2, 2)
    circuit.cx(0, 1)
    circuit.measure([1, 2], x)
    return circuit


def assert_drawn_from(counts: np.ndarray, wanted: np.ndarray) -> None:
    """χ² of counts [B, R] against probabilities [B, R]; records of probability 0 do not occur."""
    assert not counts[wanted < 1e-12].any()
    for row, p in zip(counts, wanted, strict=True):
        seen = p > 1e-12
        assert stats.chisquare(row[seen], row.sum() * p[seen] / p[seen].sum()).pvalue > ALARM


def noisy_by_hand(isa: QuantumCircuit, device: Device, row: np.ndarray | None = None) -> np.ndarray:
    """[2ᶜ] probabilities of all classical bits: a density matrix for every record, gate by gate with the device's maps.

    A measurement is Aer's: the qubit collapses to what it was, and the bit that is read, and asked for by conditions,
    is wrong with the readout error of the instruction that reads it.
    """
    qubits = sorted({isa.find_bit(q).index for one in isa.data if one.operation.name not in ("barrier", "delay")
                     for q in one.qubits})  # fmt: skip
    bound = isa if row is None else isa.assign_parameters({p: {A: row[1], B: row[0]}[p] for p in isa.parameters})
    states = {0: DensityMatrix.from_int(0, 2 ** len(qubits)).data}

    def evolved(rho: np.ndarray, channel: Any, places: list[int]) -> np.ndarray:
        return np.asarray(DensityMatrix(rho).evolve(channel, places).data)

    def walk(part: QuantumCircuit, q_of: list[int], c_of: list[int], only: Any, states: dict[int, np.ndarray]) -> Any:
        for one in part.data:
            physical = [q_of[part.find_bit(q).index] for q in one.qubits]
            places = [qubits.index(q) for q in physical if q in qubits]
            clbits = [c_of[part.find_bit(c).index] for c in one.clbits]
            operation = one.operation
            after: dict[int, np.ndarray] = {}
            if operation.name == "if_else":
                register, value = operation.condition
                bits = [bound.find_bit(bit).index for bit in register]
                for record, rho in states.items():
                    held = sum((record >> bit & 1) << k for k, bit in enumerate(bits)) == value
                    block = operation.blocks[0 if held else 1] if held or len(operation.blocks) > 1 else None
                    inner = {record: rho}
                    after |= inner if block is None else walk(block, physical, clbits, None, inner)
                states = after
                continue
            if operation.name in ("barrier", "delay"):
                continue
            if operation.name in ("measure", "measure_2"):
                wrong = _read_wrongly(device, physical[0], operation.name)
                for record, rho in states.items():
                    for true in (0, 1):
                        kept = np.diag([1.0 - true, float(true)])
                        part_rho = _projected(rho, kept, places[0], len(qubits))
                        for read in (0, 1):
                            p = wrong[true] if read != true else 1 - wrong[true]
                            key = record & ~(1 << clbits[0]) | read << clbits[0]
                            after[key] = after.get(key, 0) + p * part_rho
                states = after
                continue
            error = None if operation.name == "rz" else device.gate_error(operation.name, physical)
            for record, rho in states.items():
                if operation.name in ("reset", "reset_2"):
                    rho = evolved(rho, Reset(), places)
                else:
                    rho = evolved(rho, Operator(operation), places)
                after[record] = rho if error is None else evolved(rho, error, places)
            states = after
        return states

    final = walk(bound, list(range(bound.num_qubits)), list(range(bound.num_clbits)), None, states)
    p = np.zeros(2**bound.num_clbits)
    for record, rho in final.items():
        p[record] = np.trace(rho).real
    return p


def _read_wrongly(device: Device, qubit: int, name: str) -> tuple[float, float]:
    """(P(read 1 | 0), P(read 0 | 1)), out of the provider's own documents where it is another one than `measure`'s."""
    if name == "measure":
        return device.readout_error(qubit)
    gates = json.loads(device.snapshot.properties)["gates"]
    (entry,) = [gate["parameters"] for gate in gates if (gate["gate"], gate["qubits"]) == (name, [qubit])]
    (error,) = [record["value"] for record in entry if record["name"] == "gate_error"]
    return error, error


def _projected(rho: np.ndarray, projector: np.ndarray, place: int, n: int) -> np.ndarray:
    whole = np.kron(np.kron(np.eye(2 ** (n - 1 - place)), projector), np.eye(2**place))
    return np.asarray(whole @ rho @ whole)
