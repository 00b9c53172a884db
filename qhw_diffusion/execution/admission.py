"""What `compile_circuit` takes: parameters, observables, operations, measurements. Checked before transpiling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from qiskit import QuantumCircuit
from qiskit.circuit import (
    Barrier,
    CircuitInstruction,
    Clbit,
    ControlledGate,
    Gate,
    Instruction,
    Parameter,
    ParameterExpression,
    ParameterVector,
)
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.devices.instructions import MEASUREMENTS, MID_CIRCUIT
from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution.conditions import FLOW, choice_of


def place(circuit: QuantumCircuit, instruction: CircuitInstruction) -> str:
    """The operation and its qubits, as errors name them: ``'rx' on qubit 2``."""
    qubits = [circuit.find_bit(q).index for q in instruction.qubits]
    where = f"qubit {qubits[0]}" if len(qubits) == 1 else f"qubits {qubits}" if qubits else "no qubit"
    return f"{instruction.operation.name!r} on {where}"


def listed_parameters(given: Iterable[Parameter], name: str) -> tuple[Parameter, ...]:
    """`given` as a tuple; InvalidInputError unless it is a list of Parameter objects."""
    if isinstance(given, (str, ParameterExpression)) or not isinstance(given, Iterable):
        raise InvalidInputError(f"{name} is {_said(given)}; give a list of Parameter objects, [] if there are none")
    parameters = tuple(given)
    for parameter in parameters:
        if not isinstance(parameter, Parameter):
            hint = f": list(…) of it, or {name}=vector" if isinstance(parameter, ParameterVector) else ""
            raise InvalidInputError(
                f"{name} holds {_said(parameter)}; give the circuit's Parameter objects (circuit.parameters){hint}"
            )
    return parameters


def listed_observables(given: Iterable[SparsePauliOp]) -> tuple[SparsePauliOp, ...]:
    """`given` as a tuple, coefficients as numbers; InvalidInputError unless it is a list of SparsePauliOp objects."""
    if isinstance(given, (str, SparsePauliOp)) or not isinstance(given, Iterable):
        raise InvalidInputError(f"observables is {_said(given)}; give a list of SparsePauliOp objects, or adaptive:K")
    observables = []
    for i, observable in enumerate(given):
        if not isinstance(observable, SparsePauliOp):
            raise InvalidInputError(f"observable {i} is a {type(observable).__name__}; give a SparsePauliOp")
        if observable.coeffs.dtype == object:  # a Parameter among them, or one that has been bound
            unbound = {p.name for c in observable.coeffs for p in getattr(c, "parameters", ())}
            if unbound:
                raise InvalidInputError(
                    f"observable {i} has coefficients with the parameters {', '.join(sorted(unbound))}; give numbers, "
                    "and multiply the values outside the circuit"
                )
            observable = SparsePauliOp(observable.paulis, observable.coeffs.astype(complex))
        observables.append(observable)
    return tuple(observables)


def _said(given: Any) -> str:
    """What was given, in short."""
    text = " ".join(repr(given).split())
    return f"a {type(given).__name__}, {text if len(text) < 60 else text[:60] + '…'}"


# -- operations --------------------------------------------------------------------------------------------------------


def check_operations(circuit: QuantumCircuit) -> None:
    """Raise UnsupportedCircuitError for an operation that is no channel on its qubits."""
    if circuit.num_vars or circuit.num_stretches:
        raise UnsupportedCircuitError(
            "the circuit has classical variables or stretches, which nothing here evaluates; leave them out"
        )
    for instruction in circuit.data:
        _check_operation(instruction.operation, place(circuit, instruction))


def _check_operation(operation: Any, where: str) -> None:
    name = operation.name
    if isinstance(operation, FLOW):
        choice_of(operation, where)
        for block in operation.blocks:
            for inner in block.data:
                _check_operation(inner.operation, f"{place(block, inner)} in {where}")
        return
    # Loops, boxes and state preparation; what cannot be told before translation is caught after it.
    if name in ("initialize", "store") or hasattr(operation, "blocks") or getattr(operation, "condition", None):
        raise UnsupportedCircuitError(
            f"operation {where} is not supported: only rotations, fixed gates, delays, resets, measurements, and "
            "if_else and switch_case on bits measured before are"
        )
    standard = _standard().get(name)
    if standard is not None and getattr(operation, "base_class", None) is not standard:
        raise UnsupportedCircuitError(
            f"{where} has the name of a standard operation but is another one, and the transpiler goes by names: give "
            "it a name of its own"
        )
    if name in MID_CIRCUIT.values() and (operation.num_qubits, operation.num_clbits) == (1, int(name in MEASUREMENTS)):
        return
    if name == "delay" and not isinstance(operation.params[0], (int, float)):
        raise UnsupportedCircuitError(f"{where} has the length {operation.params[0]}; give a number")
    if standard is not None or not isinstance(operation, Instruction):
        return
    if type(operation) not in (Gate, Instruction, ControlledGate) and isinstance(operation, Gate):
        return  # made by a class that knows how to define it
    if operation.definition is None:
        raise UnsupportedCircuitError(
            f"operation {where} has no definition in known gates, so that nothing here can evaluate it: give it one "
            "(QuantumCircuit.to_gate), or its matrix (UnitaryGate), or leave it out"
        )
    for inner in operation.definition.data:
        _check_operation(inner.operation, f"{inner.operation.name!r} in {where}")


@lru_cache(maxsize=1)
def _standard() -> dict[str, type]:
    return {"barrier": Barrier} | {name: gate.base_class for name, gate in get_standard_gate_name_mapping().items()}


# -- measurements ------------------------------------------------------------------------------------------------------


def flat(circuit: QuantumCircuit) -> list[tuple[str, list[int], list[int]]]:
    """(name, qubits, classical bits) of every operation, those in branches and instructions made of circuits included.

    `if_else` and `switch_case` come ahead of what is in their branches, with the bits they read and no qubits.
    """
    operations: list[tuple[str, list[int], list[int]]] = []
    for instruction in circuit.data:
        operation = instruction.operation
        qubits = [circuit.find_bit(q).index for q in instruction.qubits]
        clbits = [circuit.find_bit(c).index for c in instruction.clbits]
        if isinstance(operation, FLOW):
            read = choice_of(operation, place(circuit, instruction)).bits
            operations.append((operation.name, [], [circuit.find_bit(bit).index for bit in read]))
            for block in operation.blocks:
                operations += [
                    (name, [qubits[q] for q in inner], [clbits[c] for c in read]) for name, inner, read in flat(block)
                ]
        elif operation.name in _standard() or not instruction.clbits or operation.definition is None:
            operations.append((operation.name, qubits, clbits))
        else:
            operations += [
                (name, [qubits[q] for q in inner], [clbits[c] for c in read])
                for name, inner, read in flat(operation.definition)
            ]
    return operations


def final_measurements(circuit: QuantumCircuit, postselect: Mapping[int, int]) -> list[tuple[int, int]]:
    """(qubit, classical bit) of the measurements with nothing after them on their qubit.

    Not those that are post-selected on or read by a later condition.
    """
    found: list[tuple[int, int]] = []
    acted: set[int] = set()
    read: set[int] = set()
    for name, qubits, clbits in reversed(flat(circuit)):
        if name in ("if_else", "switch_case"):
            read.update(clbits)
        elif name in MEASUREMENTS and clbits[0] not in postselect and clbits[0] not in read:
            found += [] if qubits[0] in acted else [(qubits[0], clbits[0])]
        elif name != "barrier":
            acted.update(qubits)
    return found[::-1]


def check_feed_forward(circuit: QuantumCircuit, postselect: Mapping[int, int], scheduled: bool) -> None:
    """Raise UnsupportedCircuitError for measured bits that conditions cannot be evaluated on.

    A bit that is measured in one branch only has no value of its own in the others; `scheduled` would need the time
    that a condition takes, which targets do not state.
    """
    events = list(_classical(circuit, {bit: i for i, bit in enumerate(circuit.clbits)}, within=False))
    if scheduled and any(kind == "read" for kind, *_ in events):
        raise UnsupportedCircuitError(
            "scheduled=True does not go with if_else and switch_case, whose durations no device states; compile without"
        )
    for at, (kind, clbit, within) in enumerate(events):
        if kind != "measured" or not within:
            continue
        if clbit in postselect:
            raise UnsupportedCircuitError(
                f"classical bit {clbit} is measured within a branch of a condition and post-selected on; measure it "
                "outside, or keep every outcome"
            )
        if any(later == ("read", clbit, inner) for later in events[at + 1 :] for inner in (True, False)):
            raise UnsupportedCircuitError(
                f"classical bit {clbit} is measured within a branch of a condition, and a later condition reads it; "
                "measure it outside of the branch"
            )


def _classical(circuit: QuantumCircuit, clbits: Mapping[Clbit, int], within: bool) -> Iterator[tuple[str, int, bool]]:
    """("measured" or "read" by a condition, classical bit, whether within a branch), in time order."""
    for instruction in circuit.data:
        operation = instruction.operation
        there = [clbits[bit] for bit in instruction.clbits]
        if isinstance(operation, FLOW):
            for bit in choice_of(operation, place(circuit, instruction)).bits:
                yield "read", clbits[bit], within
            for block in operation.blocks:
                yield from _classical(block, dict(zip(block.clbits, there, strict=True)), True)
        elif not there or operation.name in _standard() or operation.definition is None:
            yield from (("measured", bit, within) for bit in there)
        else:
            inner = operation.definition
            yield from _classical(inner, dict(zip(inner.clbits, there, strict=True)), within)


def check_measurements(
    circuit: QuantumCircuit, observables: Sequence[SparsePauliOp], postselect: Mapping[int, int]
) -> None:
    """Raise InvalidInputError where a qubit is measured at the end and an observable acts on it.

    As a channel such a measurement would wipe out every X and Y, and primitives drop it or refuse it: it is the
    expectation value that measures. On qubits that no observable acts on it changes no value, and can be sampled.
    """
    measured = {
        int(q) for o in observables for q in (o.paulis.x | o.paulis.z).any(axis=0).nonzero()[0]
    }  # by an expectation value
    twice = [(qubit, clbit) for qubit, clbit in final_measurements(circuit, postselect) if qubit in measured]
    if not twice:
        return
    named = ", ".join(f"qubit {qubit} into classical bit {clbit}" for qubit, clbit in twice)
    bare = circuit.remove_final_measurements(inplace=False)
    advice = (
        "leave it out of the circuit"
        # a barrier stands behind it; or there are conditions, with whose measurements Qiskit does away as well
        if final_measurements(bare, {}) or any(isinstance(i.operation, FLOW) for i in circuit.data)
        else "take it out with circuit.remove_final_measurements(inplace=False)"
    )
    raise InvalidInputError(
        f"the circuit ends with a measurement of {named}, and observables act there: an expectation value brings its "
        f"own measurement, {advice}. Outcomes to be drawn (QuantumLayer.sample) are measured on qubits that no "
        "observable acts on; outcomes to be kept are named by postselect"
    )
