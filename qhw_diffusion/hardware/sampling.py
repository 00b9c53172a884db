"""Counts of a measured ISA circuit at the device's width, with the device's noise: connected qubits together.

The client's executor measures every qubit of the device for an estimator. Qubits that no operation joins, be it through
a classical bit, are independent, so each group of joined qubits is simulated by itself: by Aer, or, for a single qubit
that is measured at the end, as a 2×2 density matrix. That makes a device of 156 qubits as cheap as the qubits in use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import (
    CircuitInstruction,
    Clbit,
    ControlFlowOp,
    Delay,
    IfElseOp,
    Operation,
    Parameter,
    ParameterExpression,
    QuantumRegister,
)
from qiskit.circuit.classical.expr import Expr
from qiskit.circuit.library import CXGate, UnitaryGate
from qiskit.primitives import BitArray
from qiskit.transpiler import Target

from qhw_diffusion.devices import Device
from qhw_diffusion.devices.instructions import MEASUREMENTS, MID_CIRCUIT, RESETS
from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.hardware.service import Sampled, SamplerPub

if TYPE_CHECKING:
    from qiskit_aer import AerSimulator

Bits = dict[str, np.ndarray]
_WITHOUT_EFFECT = ("barrier", "delay")
# Qubits of a dynamic circuit up to which a density matrix is faster than a state of which noise is drawn (measured)
_DENSE = 4


# -- what a device takes -----------------------------------------------------------------------------------------------


def operations_of(circuit: QuantumCircuit) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, qubits) of every operation, those in branches included, in place of the `if_else` around them."""

    def walk(part: QuantumCircuit, places: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
        for instruction in part.data:
            mine = tuple(places[part.find_bit(qubit).index] for qubit in instruction.qubits)
            if isinstance(instruction.operation, ControlFlowOp):
                for block in instruction.operation.blocks:
                    yield from walk(block, mine)
            else:
                yield instruction.operation.name, mine

    return walk(circuit, range(circuit.num_qubits))


def check_conditions(circuit: QuantumCircuit, target: Target | None, device: str) -> None:
    """Raise InvalidInputError for control flow that a device does not have, or that is more than `if_else` on bits.

    Devices take no `if_else` within another one (IBM's guide "Execute dynamic circuits"); simulators do (no target).
    """
    for instruction in circuit.data:
        operation = instruction.operation
        if not isinstance(operation, ControlFlowOp):
            continue
        if not isinstance(operation, IfElseOp) or isinstance(operation.condition, Expr):
            raise InvalidInputError(
                f"the circuit has {operation.name!r}"
                + (" with an expression for a condition" if isinstance(operation, IfElseOp) else "")
                + "; allowed: if_else on the value of a classical bit or register. Unroll the rest"
            )
        if target is not None and operation.name not in target.operation_names:
            raise InvalidInputError(
                f"the circuit is dynamic ({operation.name}), and {device} has no control flow: choose another device, "
                "or measure at the end instead (deferred measurement)"
            )
        for block in operation.blocks:
            if target is not None and any(isinstance(inner.operation, ControlFlowOp) for inner in block.data):
                raise InvalidInputError(
                    f"the circuit has control flow within an {operation.name}, which {device} does not take: put the "
                    "conditions one after the other, each on the value of a register of all bits that it asks for"
                )
            check_conditions(block, target, device)


def check_most_shots(stated: Any, shots: int, device: str) -> None:
    """Raise InvalidInputError for more shots of a circuit than a device takes; None where it does not state that."""
    if isinstance(stated, int) and shots > stated:
        raise InvalidInputError(
            f"{shots:,} shots of a circuit are more than the {stated:,} that {device} takes: give fewer, in several "
            "calls with a purpose of their own"
        )


def flat_bits(bits: BitArray) -> BitArray:
    """The bits of a PUB's answer in the shape (B,)."""
    if not isinstance(bits, BitArray):
        raise TypeError(f"a {type(bits).__name__} in place of bits")
    return BitArray(bits.array.reshape(-1, *bits.array.shape[-2:]), bits.num_bits)


# -- samples -----------------------------------------------------------------------------------------------------------


def sample_bits(pub: SamplerPub, device: Device, generator: np.random.Generator) -> Sampled:
    """What a device answers to a Sampler's PUB: {register: bits of shape (B,)}. Otherwise as `sample_counts`."""
    columns = [pub.parameters.index(parameter) for parameter in pub.circuit.parameters]
    sampled = sample_counts(pub.circuit, pub.values[:, columns], pub.shots, device, generator)
    return {name: BitArray.from_bool_array(bits, order="little") for name, bits in sampled.items()}


def sample_counts(
    circuit: QuantumCircuit, values: np.ndarray, shots: int, device: Device, generator: np.random.Generator
) -> Bits:
    """Outcomes of every classical register.

    Args:
        circuit: ISA circuit at the device's width, measurements and resets anywhere, `if_else` on bits or registers.
        values: [..., P], parameters in the order of `circuit.parameters`.
        shots: of each row.
        device: whose noise and asymmetric readout apply.
        generator: of the outcomes.

    Returns:
        {register: bool [..., shots, bits]}.

    Raises:
        UnsupportedCircuitError: control flow other than `if_else`.
    """
    flat = values.reshape(int(np.prod(values.shape[:-1])), values.shape[-1])
    outcomes = np.zeros((len(flat), shots, circuit.num_clbits), dtype=bool)
    for group in joined_qubits(circuit):
        if not group.clbits:
            continue
        if len(group.qubits) == 1 and not group.dynamic:
            one = _probabilities_of_one(circuit, group.qubits[0], flat, device)
            outcomes[:, :, group.clbits[0]] = generator.random((len(flat), shots)) < one[:, None]
        else:
            outcomes[:, :, group.clbits] = _sample_group(circuit, group, flat, shots, device, generator)
    return {
        register.name: outcomes[..., [circuit.find_bit(bit).index for bit in register]].reshape(
            *values.shape[:-1], shots, len(register)
        )
        for register in circuit.cregs
    }


@dataclass
class Group:
    """Qubits joined by operations, with the classical bits that they write or ask for; both ascending.

    `dynamic`: something follows on a measurement, or a bit is written twice.
    """

    qubits: list[int]
    clbits: list[int]
    instructions: list[CircuitInstruction]
    dynamic: bool


def joined_qubits(circuit: QuantumCircuit) -> list[Group]:
    """Groups of qubits joined by operations on several qubits; qubits without operations are in none.

    Raises:
        UnsupportedCircuitError: control flow other than `if_else`.
    """
    joined: dict[Any, set[Any]] = {}
    reaching = []
    for instruction in circuit.data:
        operation, clbits = instruction.operation, set(instruction.clbits)
        qubits = list(instruction.qubits)
        if operation.name in _WITHOUT_EFFECT:
            reaching.append(set(qubits))
            continue
        if isinstance(operation, ControlFlowOp):
            kept, bits = _reached(operation)
            qubits = [qubits[index] for index in kept]
            clbits |= set(bits)
        merged = {*qubits, *clbits} if qubits else set()
        reaching.append(merged)
        for bit in list(merged):
            merged = merged | joined.get(bit, set())
        for bit in merged:
            joined[bit] = merged
    groups = []
    for members in {frozenset(members) for members in joined.values()}:
        mine = [one for one, reached in zip(circuit.data, reaching, strict=True) if reached & members]
        places = [circuit.find_bit(bit).index for bit in circuit.qubits if bit in members]
        clbits_here = [circuit.find_bit(bit).index for bit in circuit.clbits if bit in members]
        groups.append(Group(places, clbits_here, mine, _is_dynamic(mine)))
    return sorted(groups, key=lambda group: group.qubits)


def _is_dynamic(instructions: Sequence[CircuitInstruction]) -> bool:
    read: set[Any] = set()
    for instruction in instructions:
        name = instruction.operation.name
        if isinstance(instruction.operation, ControlFlowOp):
            return True
        if name not in _WITHOUT_EFFECT and read & {*instruction.qubits, *instruction.clbits}:
            return True
        if name in MEASUREMENTS:
            read |= {*instruction.qubits, *instruction.clbits}
    return False


def _reached(operation: ControlFlowOp) -> tuple[list[int], list[Clbit]]:
    """(positions of the qubits on which a branch does something, bits of the condition) of an `if_else`."""
    if not isinstance(operation, IfElseOp) or isinstance(operation.condition, Expr):
        raise UnsupportedCircuitError(
            f"nothing here simulates {operation.name!r}; allowed: if_else on the value of a bit or register"
        )
    where = operation.condition[0]
    return _touched(operation), [where] if isinstance(where, Clbit) else list(where)


def _touched(operation: ControlFlowOp) -> list[int]:
    found = set()
    for block in operation.blocks:
        for inner in block.data:
            places = [block.find_bit(qubit).index for qubit in inner.qubits]
            if isinstance(inner.operation, ControlFlowOp):
                found |= {places[index] for index in _touched(inner.operation)}
            elif inner.operation.name not in _WITHOUT_EFFECT:
                found |= set(places)
    return sorted(found)


def _narrowed(operation: IfElseOp, kept: Sequence[int]) -> IfElseOp:
    """An `if_else` on those of its qubits only on which it does something."""
    blocks = []
    for block in operation.blocks:
        qubits = [block.qubits[index] for index in kept]
        narrow = QuantumCircuit(qubits, block.clbits, *block.cregs, global_phase=block.global_phase)
        for inner in block.data:
            one: Operation = inner.operation
            mine = list(inner.qubits)
            if isinstance(one, ControlFlowOp):
                within = _reached(one)[0]
                if not within:
                    continue
                mine = [mine[index] for index in within]
                one = _narrowed(one, within)
            if one.name != "barrier" and set(mine) <= set(qubits):
                narrow.append(one, mine, inner.clbits)
        blocks.append(narrow)
    return IfElseOp(operation.condition, *blocks)


def _sample_group(
    circuit: QuantumCircuit,
    group: Group,
    values: np.ndarray,
    shots: int,
    device: Device,
    generator: np.random.Generator,
) -> np.ndarray:
    """Outcomes, bool [rows, shots, classical bits], from Aer, which chooses density matrices or trajectories."""
    reduced, reads = for_aer(on_group(circuit, group), device, group.qubits)
    simulator = aer_simulator(device, group.qubits, scheduled="delay" in reduced.count_ops(), reads=reads)
    if group.dynamic and reduced.num_qubits <= _DENSE:  # every shot from its start: noise that is not drawn is faster
        simulator.set_options(method="density_matrix")
    order = {parameter: index for index, parameter in enumerate(circuit.parameters)}
    columns = {parameter: order[parameter] for parameter in reduced.parameters}
    settings = {"shots": shots, "memory": True, "seed_simulator": int(generator.integers(2**31))}
    binds = [{p: values[:, column].tolist() for p, column in columns.items()}] if columns else None
    result = simulator.run(reduced, parameter_binds=binds, **settings).result()
    if not result.success:
        raise UnsupportedCircuitError(f"Aer does not run the circuit: {result.status}")
    bits = np.stack(
        [_bits(result.data(row)["memory"], len(group.clbits)) for row in range(len(values) if columns else 1)]
    )
    for row in bits:  # Aer lists equal outcomes together
        generator.shuffle(row)
    return bits if columns else np.repeat(bits, len(values), axis=0)


def on_group(circuit: QuantumCircuit, group: Group) -> QuantumCircuit:
    """The circuit on the qubits and classical bits of a group, in their order."""
    qubits = QuantumRegister(len(group.qubits))
    clbits = [circuit.clbits[index] for index in group.clbits]
    reduced = QuantumCircuit(qubits, clbits)
    for register in circuit.cregs:  # conditions name bits and registers, which must stay the same ones
        if set(register) <= set(clbits):
            reduced.add_register(register)
    where = dict(zip((circuit.qubits[index] for index in group.qubits), qubits, strict=True))
    for instruction in group.instructions:
        operation, mine = instruction.operation, list(instruction.qubits)
        if isinstance(operation, ControlFlowOp):
            kept = _reached(operation)[0]
            mine = [mine[index] for index in kept]
            operation = _narrowed(operation, kept)
        if operation.name != "barrier":
            reduced.append(operation, [where[qubit] for qubit in mine], instruction.clbits)
    return reduced


def for_aer(
    circuit: QuantumCircuit, device: Device, qubits: Sequence[int]
) -> tuple[QuantumCircuit, list[tuple[int, str]]]:
    """The circuit in instructions that Aer knows, each with the errors of the one it stands for.

    Aer knows one measurement, with one readout error a qubit. On a qubit that is read by `measure_2` it is that one's;
    where the same qubit is read by `measure` as well, with other errors, that outcome is copied by a perfect CNOT to a
    further qubit, which is read, and reset, in its place. The state after it, and what is read, are the same.

    Args:
        circuit: on `qubits`, labelled 0…k−1.
        device: whose errors apply.
        qubits: physical qubits.

    Returns:
        The circuit, with further qubits behind the others where needed, and for every qubit of it the (physical qubit,
        measurement) that decides how it is read (`aer_simulator`).
    """
    names: dict[int, set[str]] = {label: set() for label in range(len(qubits))}
    for name, labels in operations_of(circuit):
        for label in labels:
            names[label].add(name)
    _, special = MEASUREMENTS
    reads = [(qubit, special if special in names[label] else "measure") for label, qubit in enumerate(qubits)]
    if not any(found & {*MID_CIRCUIT.values()} for found in names.values()):
        return circuit, reads
    copies = {
        label: QuantumRegister(1, f"read_{label}")
        for label, (qubit, by) in enumerate(reads)
        if by == special
        and "measure" in names[label]
        and device.readout_error(qubit) != device.readout_error(*reads[label])
    }
    further = [register[0] for register in copies.values()]

    def known(part: QuantumCircuit, places: Sequence[int]) -> QuantumCircuit:
        made = QuantumCircuit([*part.qubits, *further], part.clbits, *part.cregs, global_phase=part.global_phase)
        for one in part.data:
            operation, mine = one.operation, list(one.qubits)
            labels = [places[part.find_bit(qubit).index] for qubit in mine]
            if isinstance(operation, ControlFlowOp):
                blocks = [known(block, labels) for block in operation.blocks]
                made.append(operation.replace_blocks(blocks), [*mine, *further], one.clbits)
            elif operation.name == "measure" and labels[0] in copies:
                (copy,) = copies[labels[0]]
                made.append(UnitaryGate(CXGate()), [mine[0], copy])
                made.measure(copy, one.clbits[0])
                made.reset(copy)
            elif operation.name in MEASUREMENTS:
                made.measure(mine[0], one.clbits[0])
            elif operation.name == RESETS[1]:
                made.reset(mine[0])  # both relax meanwhile and have no other error, which leaves |0⟩ as it is
            else:
                made.append(operation, mine, one.clbits)
        return made

    found = known(circuit, range(circuit.num_qubits))
    return found, [*reads, *((qubits[label], "measure") for label in copies)]


def _bits(memory: Sequence[str], width: int) -> np.ndarray:
    """Aer's outcomes, hexadecimal numbers, as bool [shots, width], the lowest bit first."""
    size = -(-width // 8)
    packed = b"".join(int(outcome, 16).to_bytes(size, "little") for outcome in memory)
    whole = np.frombuffer(packed, dtype=np.uint8).reshape(len(memory), size)
    return np.unpackbits(whole, axis=1, count=width, bitorder="little").astype(bool)


def aer_simulator(
    device: Device, qubits: Sequence[int], *, scheduled: bool, reads: Sequence[tuple[int, str]] | None = None
) -> AerSimulator:
    """Aer with the device's noise and asymmetric readout on `qubits`, for circuits from `on_qubits`.

    With the noise model of the whole device Aer would spend seconds a call.

    Args:
        device: whose calibration counts; the ideal device has no noise.
        qubits: physical qubits, in the order of their labels.
        scheduled: let waiting qubits relax (a circuit with delays).
        reads: how each qubit of the circuit is read, from `for_aer`; None: by `measure`.
    """
    from qiskit_aer import AerSimulator
    from qiskit_aer.noise import RelaxationNoisePass

    model = device.noise_model(qubits, reads=reads)
    if device.target is not None and scheduled:
        times = [device.relaxation_times(qubit) for qubit in qubits]
        t1s = [math.inf if t1 is None else t1 for t1, _ in times]
        t2s = [2 * t1 if t2 is None else min(t2, 2 * t1) for t1, (_, t2) in zip(t1s, times, strict=True)]
        # Where NoiseModel.from_backend puts it: a noise model has no public place for the errors of delays
        model._custom_noise_passes.append(RelaxationNoisePass(t1s, t2s, dt=device.target.dt, op_types=Delay))
    return AerSimulator(noise_model=model, max_parallel_threads=1)


def _probabilities_of_one(circuit: QuantumCircuit, qubit: int, values: np.ndarray, device: Device) -> np.ndarray:
    """[rows]: probability that a qubit which meets no other is read as 1."""
    order = {parameter: index for index, parameter in enumerate(circuit.parameters)}
    states = np.zeros((len(values), 4), dtype=complex)  # vec(ρ), column by column, as SuperOp has it
    states[:, 0] = 1
    scheduled, measurement = "delay" in circuit.count_ops(), "measure"
    for instruction in circuit.data:
        if [circuit.find_bit(q).index for q in instruction.qubits] != [qubit]:
            continue
        name = instruction.operation.name
        if name in MEASUREMENTS:
            measurement = name
        if name in ("barrier", *MEASUREMENTS):
            continue
        if name == "delay":
            error = device.relaxation(qubit, _seconds(instruction, device)) if scheduled else None
        elif name in RESETS:
            states[:] = np.array([1, 0, 0, 0]) * (states[:, :1] + states[:, 3:])
            error = device.gate_error(name, [qubit])
        else:
            gates = _unitaries(instruction, order, values)
            states = _apply(gates, states)
            error = None if name == "rz" else device.gate_error(name, [qubit])
        if error is not None:
            states = states @ np.asarray(error.data).T
    p10, p01 = device.readout_error(qubit, measurement)
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
