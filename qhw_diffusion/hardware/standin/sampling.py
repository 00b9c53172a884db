"""Counts of a measured ISA circuit at the device's width, with the device's noise: connected qubits together.

The client's executor measures every qubit of the device. Qubits that no two-qubit gate joins are independent, so each
group of joined qubits is simulated by itself: by Aer, or, for a single qubit, as a 2×2 density matrix. That makes a
device of 156 qubits as cheap as the qubits in use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction, Parameter, ParameterExpression

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import UnsupportedCircuitError
from qhw_diffusion.hardware.local import aer_simulator

Bits = dict[str, np.ndarray]


def sample_counts(
    circuit: QuantumCircuit, values: np.ndarray, shots: int, device: Device, generator: np.random.Generator
) -> Bits:
    """Outcomes of every classical register.

    Args:
        circuit: ISA circuit at the device's width; its measurements are its last operations.
        values: [..., P], parameters in the order of `circuit.parameters`.
        shots: of each row.
        device: whose noise and asymmetric readout apply.
        generator: of the outcomes.

    Returns:
        {register: bool [..., shots, bits]}.

    Raises:
        UnsupportedCircuitError: control flow, or a gate after a measurement.
    """
    flat = values.reshape(int(np.prod(values.shape[:-1])), values.shape[-1])
    places = _measured(circuit)
    outcomes = np.zeros((len(flat), shots, circuit.num_clbits), dtype=bool)
    for group in joined_qubits(circuit):
        clbits = [places[q] for q in group if q in places]
        if not clbits:
            continue
        if len(group) == 1:
            one = _probabilities_of_one(circuit, group[0], flat, device)
            outcomes[:, :, clbits[0]] = generator.random((len(flat), shots)) < one[:, None]
        else:
            measured = [q for q in group if q in places]
            outcomes[:, :, clbits] = _sample_group(circuit, group, measured, flat, shots, device, generator)
    return {
        register.name: outcomes[..., [circuit.find_bit(bit).index for bit in register]].reshape(
            *values.shape[:-1], shots, len(register)
        )
        for register in circuit.cregs
    }


def joined_qubits(circuit: QuantumCircuit) -> list[list[int]]:
    """Groups of qubits joined by gates on several qubits, each ascending; qubits without operations are in none."""
    group: dict[int, set[int]] = {}
    for instruction in circuit.data:
        if instruction.operation.name in ("barrier", "delay"):
            continue
        merged = {circuit.find_bit(q).index for q in instruction.qubits}
        for q in list(merged):
            merged |= group.get(q, set())
        for q in merged:
            group[q] = merged
    return sorted(sorted(members) for members in {frozenset(members) for members in group.values()})


def _measured(circuit: QuantumCircuit) -> dict[int, int]:
    """{qubit: classical bit} of the final measurements."""
    places: dict[int, int] = {}
    for instruction in circuit.data:
        name = instruction.operation.name
        qubits = [circuit.find_bit(q).index for q in instruction.qubits]
        if name == "measure":
            places[qubits[0]] = circuit.find_bit(instruction.clbits[0]).index
        elif name not in ("barrier", "delay") and any(q in places for q in qubits):
            raise UnsupportedCircuitError(f"the stand-in simulates no {name!r} after a measurement")
        elif getattr(instruction.operation, "blocks", None):
            raise UnsupportedCircuitError(f"the stand-in simulates no {name!r}")
    return places


def _sample_group(
    circuit: QuantumCircuit,
    group: Sequence[int],
    measured: Sequence[int],
    values: np.ndarray,
    shots: int,
    device: Device,
    generator: np.random.Generator,
) -> np.ndarray:
    """Outcomes, bool [rows, shots, measured qubits], from Aer, which chooses density matrices or trajectories."""
    where = {qubit: index for index, qubit in enumerate(group)}
    reduced = QuantumCircuit(len(group), len(measured))
    for instruction in circuit.data:
        qubits = [circuit.find_bit(q).index for q in instruction.qubits]
        if instruction.operation.name == "barrier" or not set(qubits) <= set(where):
            continue
        if instruction.operation.name == "measure":
            reduced.measure(where[qubits[0]], list(measured).index(qubits[0]))
        else:
            reduced.append(instruction.operation, [where[q] for q in qubits])
    order = {parameter: index for index, parameter in enumerate(circuit.parameters)}
    binds = {p: values[:, order[p]].tolist() for p in reduced.parameters}
    simulator = aer_simulator(device, group, scheduled="delay" in reduced.count_ops())
    job = simulator.run(
        reduced,
        parameter_binds=[binds] if binds else None,
        shots=shots,
        memory=True,
        seed_simulator=int(generator.integers(2**31)),
    )
    result = job.result()
    rows = [result.get_memory(index) for index in range(len(values) if binds else 1)]
    bits = np.array([[[c == "1" for c in reversed(outcome)] for outcome in row] for row in rows], dtype=bool)
    for row in bits:  # Aer lists equal outcomes together
        generator.shuffle(row)
    return bits if binds else np.repeat(bits, len(values), axis=0)


def _probabilities_of_one(circuit: QuantumCircuit, qubit: int, values: np.ndarray, device: Device) -> np.ndarray:
    """[rows]: probability that a qubit which meets no other is read as 1."""
    order = {parameter: index for index, parameter in enumerate(circuit.parameters)}
    states = np.zeros((len(values), 4), dtype=complex)  # vec(ρ), column by column, as SuperOp has it
    states[:, 0] = 1
    scheduled = "delay" in circuit.count_ops()
    for instruction in circuit.data:
        if [circuit.find_bit(q).index for q in instruction.qubits] != [qubit]:
            continue
        name = instruction.operation.name
        if name in ("barrier", "measure"):
            continue
        if name == "delay":
            error = device.relaxation(qubit, _seconds(instruction, device)) if scheduled else None
        elif name == "reset":
            states[:] = np.array([1, 0, 0, 0]) * (states[:, :1] + states[:, 3:])
            error = device.gate_error("reset", [qubit])
        else:
            gates = _unitaries(instruction, order, values)
            states = _apply(gates, states)
            error = None if name == "rz" else device.gate_error(name, [qubit])
        if error is not None:
            states = states @ np.asarray(error.data).T
    p10, p01 = device.readout_error(qubit)
    one = states[:, 3].real.clip(0, 1)
    return one * (1 - p01) + (1 - one) * p10


def _apply(gates: np.ndarray, states: np.ndarray) -> np.ndarray:
    """[rows, 2, 2] unitaries on [rows, 4] vectorised density matrices: vec(UρU†) = (U* ⊗ U) vec(ρ)."""
    maps = np.einsum("bij,bkl->bikjl", gates.conj(), gates).reshape(-1, 4, 4)
    return np.einsum("bij,bj->bi", maps, states)


def _unitaries(instruction: CircuitInstruction, order: dict[Parameter, int], values: np.ndarray) -> np.ndarray:
    """[rows, 2, 2] matrices of a one-qubit gate with its parameters bound."""
    operation = instruction.operation
    angles = [_angles(value, order, values) for value in operation.params]
    if operation.name == "rz":
        half = np.asarray(angles[0]) / 2
        result = np.zeros((len(values), 2, 2), dtype=complex)
        result[:, 0, 0], result[:, 1, 1] = np.exp(-1j * half), np.exp(1j * half)
        return result
    if not angles:
        return np.repeat(operation.to_matrix()[None], len(values), axis=0)
    kind = type(operation)
    return np.stack([kind(*[angle[row] for angle in angles]).to_matrix() for row in range(len(values))])


def _angles(value: float | ParameterExpression, order: dict[Parameter, int], values: np.ndarray) -> np.ndarray:
    if not isinstance(value, ParameterExpression):
        return np.full(len(values), float(value))
    if isinstance(value, Parameter):
        return values[:, order[value]]
    names = list(value.parameters)
    return np.array([float(value.bind({p: row[order[p]] for p in names})) for row in values])


def _seconds(instruction: CircuitInstruction, device: Device) -> float:
    length, unit = instruction.operation.duration, instruction.operation.unit
    if unit == "dt":
        assert device.target is not None
        return float(length) * float(device.target.dt or 0.0)
    return float(length) * {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[unit]
