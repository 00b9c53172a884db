"""How long an ISA circuit runs on a device, dynamic ones by the longest of their ways."""

from __future__ import annotations

from typing import Any

from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction, ClassicalRegister, Clbit, ControlFlowOp, IfElseOp, Qubit
from qiskit.circuit.classical.expr import Expr

from qhw_diffusion.devices import Device
from qhw_diffusion.devices.instructions import MEASUREMENTS
from qhw_diffusion.errors import UnsupportedCircuitError


def duration_of(circuit: QuantumCircuit, device: Device) -> float:
    """Seconds from the first gate of an ISA circuit to its last, on the longest way through it.

    Measurements at its end are left out: the readout is counted by itself (`cost.readout_seconds`). Parameters may be
    unbound. 0 for a device that states no durations.
    """
    if not device.has_durations:  # a device of the user's own, simulated here
        return 0.0
    bound = circuit.assign_parameters(dict.fromkeys(circuit.parameters, 0.0))
    if {*MEASUREMENTS, "if_else"} & set(bound.count_ops()):
        bound = longest_way(bound, device).remove_final_measurements(inplace=False)
    return float(bound.estimate_duration(device.target, unit="s"))


def longest_way(circuit: QuantumCircuit, device: Device) -> QuantumCircuit:
    """A compiled circuit with what is run of every `if_else` in its place, on the longest way through the circuit.

    Branches that ask for different values of one bit or register exclude each other, until it is measured again: of
    its values the one that takes longest counts.

    Args:
        circuit: the ISA circuit.
        device: that it was compiled for, whose durations count; without any the way with the most gates is taken.

    Raises:
        UnsupportedCircuitError: other control flow, or a condition that is an expression.
    """
    taken = _slowest_values(circuit, device)
    flat = circuit.copy_empty_like()
    measured: dict[Clbit, Qubit] = {}
    for number, instruction in enumerate(circuit.data):
        operation = instruction.operation
        if operation.name in MEASUREMENTS:
            measured[instruction.clbits[0]] = instruction.qubits[0]
        if not isinstance(operation, ControlFlowOp):
            flat.append(instruction)
            continue
        branch = _branch(circuit, instruction, taken[number], device)
        if branch is None:
            continue
        # it begins when the outcome is there, and what follows waits for all of it
        bits = _bits(operation.condition[0])
        flat.barrier(*{*instruction.qubits, *(measured[bit] for bit in bits if bit in measured)})
        for inner in branch.data:
            flat.append(inner)
        flat.barrier(instruction.qubits)
    return flat


def _slowest_values(circuit: QuantumCircuit, device: Device) -> dict[int, int]:
    """{number of an `if_else` in the circuit: value of its bit or register on the longest way}."""
    since: dict[Clbit, int] = {}
    asking: dict[tuple[Any, ...], list[int]] = {}
    for number, instruction in enumerate(circuit.data):
        operation = instruction.operation
        if operation.name in MEASUREMENTS:
            since[instruction.clbits[0]] = number
        if not isinstance(operation, ControlFlowOp):
            continue
        if not isinstance(operation, IfElseOp) or isinstance(operation.condition, Expr):
            raise UnsupportedCircuitError(
                f"how long {operation.name!r} takes is not known; allowed: if_else on the value of a bit or register"
            )
        bits = _bits(operation.condition[0])
        asking.setdefault((*bits, *(since.get(bit) for bit in bits)), []).append(number)
    slowest: dict[int, int] = {}
    for numbers in asking.values():
        asked = {int(circuit.data[number].operation.condition[1]) for number in numbers}

        def length(value: int, numbers: list[int] = numbers) -> float:
            branches = (_branch(circuit, circuit.data[number], value, device) for number in numbers)
            return sum(_length(branch, device) for branch in branches if branch is not None)

        # a value that nothing asks for, if there is one, goes through every else
        most = 2 ** len(_bits(circuit.data[numbers[0]].operation.condition[0]))
        other = [value for value in range(min(most, len(asked) + 1)) if value not in asked][:1]
        value = max((*sorted(asked), *other), key=length)
        slowest |= dict.fromkeys(numbers, value)
    return slowest


def _bits(where: Clbit | ClassicalRegister) -> list[Clbit]:
    """The bits of a condition's left side."""
    return [where] if isinstance(where, Clbit) else list(where)


def _branch(
    circuit: QuantumCircuit, instruction: CircuitInstruction, value: int, device: Device
) -> QuantumCircuit | None:
    """What an `if_else` runs where its bit or register has this value, on the qubits of the whole circuit."""
    operation = instruction.operation
    blocks = operation.blocks
    block = blocks[0] if value == int(operation.condition[1]) else (*blocks[1:], None)[0]
    if block is None:
        return None
    branch = circuit.copy_empty_like()
    for inner in longest_way(block, device).data:
        qubits = [instruction.qubits[block.find_bit(qubit).index] for qubit in inner.qubits]
        clbits = [instruction.clbits[block.find_bit(clbit).index] for clbit in inner.clbits]
        branch.append(inner.operation, qubits, clbits)
    return branch


def _length(circuit: QuantumCircuit, device: Device) -> float:
    if not device.has_durations:
        return float(circuit.size())
    return float(circuit.estimate_duration(device.target, unit="s"))
