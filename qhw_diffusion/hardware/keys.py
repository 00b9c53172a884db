"""Content keys: the same work has the same key in every process, other work another one.

A key is SHA-256 over what the device executes, written out in one canonical way: operations on numbered qubits, angles
by their bits, observables, parameter values, options, device, purpose. QPY bytes would not do: they hold the circuit's
automatic name, the UUIDs of its parameters and the Qiskit version. Parameters count by their column in the values.
Names of circuits and parameters, metadata, layout and global phase do not reach the device and do not count. Names of
classical registers count for a Sampler, whose answer is told by them.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from qiskit.circuit import (
    Clbit,
    ControlFlowOp,
    ControlledGate,
    Delay,
    IfElseOp,
    Instruction,
    Parameter,
    ParameterExpression,
    QuantumCircuit,
)
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError

# Part of every key: a change of what follows must not be taken for the same work.
KEY_VERSION = 1
# Angles that are not affine in the parameters are compared by their values at this many fixed points.
_POINTS = 16
_KEY = re.compile(r"[0-9a-f]{64}")


@runtime_checkable
class PubLike(Protocol):
    """What an Estimator's PUB must have to be counted into a key (`service.Pub` does)."""

    circuit: QuantumCircuit
    observables: Sequence[SparsePauliOp]
    parameters: Sequence[Parameter]
    values: np.ndarray
    precision: float


class SamplerPubLike(Protocol):
    """What a Sampler's PUB must have to be counted into a key (`service.SamplerPub` does)."""

    circuit: QuantumCircuit
    parameters: Sequence[Parameter]
    values: np.ndarray
    shots: int


def content_key(
    circuit: QuantumCircuit,
    observables: Sequence[SparsePauliOp],
    values: np.ndarray,
    parameters_order: Sequence[Parameter | str],
    options: Mapping[str, Any],
    device: str,
    purpose: str,
) -> str:
    """The key of a job with one PUB: 64 hexadecimal digits.

    Args:
        circuit: the ISA circuit, with its parameters unbound.
        observables: M Pauli sums; their order counts, the order of the terms in one does not.
        values: [B, P] radians, counted as float64.
        parameters_order: the circuit's parameters (or their names) in the order of the columns of `values`.
        options: plain values: text, numbers, booleans, None, lists and dictionaries of them, NumPy numbers and
            arrays, dataclasses, enumerations. Shots or precision belong here. 4096 and 4096.0 are the same.
        device: name of the device.
        purpose: what the job is for; the same circuit for another purpose is other work.

    Returns:
        64 hexadecimal digits.

    Raises:
        InvalidInputError: another shape, NaN, parameters that are not the circuit's, an option of another type.
        UnsupportedCircuitError: an operation that has no name that says what it does.
    """
    return _key([_pub_content(circuit, observables, values, parameters_order)], options, device, purpose)


def job_key(pubs: Iterable[PubLike | SamplerPubLike], options: Mapping[str, Any], device: str, purpose: str) -> str:
    """The key of a job with several PUBs, in their order; their precision, or shots, counts. Otherwise `content_key`.

    Two jobs with the same PUBs, options, device and purpose have the same key. To run the same work again on purpose,
    say so in the purpose ("repeat 2").
    """
    contents = [_job_content(pub) for pub in pubs]
    if not contents:
        raise InvalidInputError("a job needs at least one PUB")
    return _key(contents, options, device, purpose)


def check_key(key: str) -> str:
    """`key` if it is one (64 hexadecimal digits); InvalidInputError otherwise."""
    if not isinstance(key, str) or _KEY.fullmatch(key) is None:
        raise InvalidInputError(f"key is {key!r}; allowed: the 64 hexadecimal digits that content_key returns")
    return key


def tag_of(run: str, key: str, own: str | None = None) -> list[str]:
    """Tags of a job: the package's, the run's, the job's own. The last one finds the job again at the service.

    Args:
        run: name of the run.
        key: content key.
        own: the job's own tag, `ledger_tag`, as its row says; None for jobs that no account pays for, and for rows of
            versions before ledgers had names.
    """
    slug = re.sub(r"[^A-Za-z0-9]+", "-", run).strip("-")[:24].strip("-") or "unnamed"
    return ["qhw", f"run-{slug}", own or f"qhw-{check_key(key)[:32]}"]


def ledger_tag(ledger: str, key: str) -> str:
    """The tag of a ledger's jobs with this key, of letters, digits and dashes.

    With the number of the attempt it has no more than 32 characters: the service states no limit, and what it cut off
    would tell attempts from each other.

    Args:
        ledger: the ledger's id, at least 8 hexadecimal digits.
        key: content key.
    """
    return f"q-{ledger[:8]}-{check_key(key)[:16]}"


def _key(pubs: list[Any], options: Mapping[str, Any], device: str, purpose: str) -> str:
    for name, value in (("device", device), ("purpose", purpose)):
        if not isinstance(value, str) or not value:
            raise InvalidInputError(f"{name} is {value!r}; give a text that is not empty")
    if not isinstance(options, Mapping):
        raise InvalidInputError(f"options must be a dictionary, not {type(options).__name__}")
    content = {"version": KEY_VERSION, "pubs": pubs, "options": _plain(options, "options"), "device": device,
               "purpose": purpose}  # fmt: skip
    return _digest(content)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# -- PUBs --------------------------------------------------------------------------------------------------------------


def _job_content(pub: PubLike | SamplerPubLike) -> list[Any]:
    if isinstance(pub, PubLike):
        content = _pub_content(pub.circuit, pub.observables, pub.values, pub.parameters)
        return [content, _plain(pub.precision, "precision")]
    circuit, array = _bound_content(pub.circuit, pub.values, pub.parameters)
    places = {bit: number for number, bit in enumerate(pub.circuit.clbits)}
    registers = [[register.name, [places[bit] for bit in register]] for register in pub.circuit.cregs]
    return ["sampler", circuit, registers, array, _plain(pub.shots, "shots")]


def _pub_content(
    circuit: QuantumCircuit,
    observables: Sequence[SparsePauliOp],
    values: np.ndarray,
    parameters_order: Sequence[Parameter | str],
) -> list[Any]:
    content, array = _bound_content(circuit, values, parameters_order)
    if not isinstance(observables, Sequence) or not observables:
        raise InvalidInputError("observables must be a list of at least one SparsePauliOp")
    return [content, [_observable_content(observable, circuit.num_qubits) for observable in observables], array]


def _bound_content(
    circuit: QuantumCircuit, values: np.ndarray, parameters_order: Sequence[Parameter | str]
) -> tuple[list[Any], dict[str, Any]]:
    if not isinstance(circuit, QuantumCircuit):
        raise InvalidInputError(f"circuit must be a qiskit QuantumCircuit, not {type(circuit).__name__}")
    names = [p if isinstance(p, str) else p.name for p in parameters_order]
    if sorted(names) != sorted(p.name for p in circuit.parameters):
        raise InvalidInputError(
            f"parameters_order has {names}; the circuit's parameters are {sorted(p.name for p in circuit.parameters)}"
        )
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] != len(names):
        raise InvalidInputError(f"values have shape {array.shape}; allowed: [rows, {len(names)} parameters]")
    columns = {name: number for number, name in enumerate(names)}
    return _circuit_content(circuit, columns), _array_content(array, "values")


def _observable_content(observable: SparsePauliOp, width: int) -> list[Any]:
    if not isinstance(observable, SparsePauliOp) or observable.num_qubits != width:
        raise InvalidInputError(
            f"an observable must be a SparsePauliOp on the circuit's {width} qubits: {observable!r}"
        )
    labels = observable.paulis.to_labels()
    try:
        return sorted([label, *_complex(c)] for label, c in zip(labels, observable.coeffs, strict=True))
    except TypeError as error:
        raise InvalidInputError(f"an observable has a coefficient that is no number: {observable!r}") from error


def _circuit_content(circuit: QuantumCircuit, columns: Mapping[str, int], *, phase: bool = False) -> list[Any]:
    qubits = {bit: number for number, bit in enumerate(circuit.qubits)}
    clbits = {bit: number for number, bit in enumerate(circuit.clbits)}
    if circuit.num_vars or circuit.num_stretches:
        raise UnsupportedCircuitError("the circuit has classical variables; the ledger cannot name such work")
    operations = []
    for instruction in circuit.data:
        operation = instruction.operation
        where = [[qubits[bit] for bit in instruction.qubits], [clbits[bit] for bit in instruction.clbits]]
        operations.append([_operation_content(operation, columns, clbits), *where])
    # inside a gate that may be controlled the phase is seen; of a whole circuit it is not
    return [circuit.num_qubits, circuit.num_clbits, operations, _angle(circuit.global_phase, columns) if phase else 0]


def _operation_content(operation: Any, columns: Mapping[str, int], clbits: Mapping[Clbit, int]) -> list[Any]:
    if not isinstance(operation, Instruction):
        raise UnsupportedCircuitError(f"operation {operation.name!r} is no instruction; transpile the circuit first")
    if isinstance(operation, ControlFlowOp):
        inner = [_circuit_content(block, columns, phase=True) for block in operation.blocks]
        return ["flow", operation.name, [_condition_content(operation, clbits)], inner]
    standard = _standard().get(operation.name)
    if operation.name == "barrier" or (standard is not None and operation.base_class is standard):
        unit = operation.unit if isinstance(operation, Delay) else ""
        state = operation.ctrl_state if isinstance(operation, ControlledGate) else 0
        return ["gate", operation.name, [_angle(value, columns) for value in operation.params], unit, state]
    if operation.definition is not None:
        # the name of a gate made of a circuit holds a counter: what it consists of says more
        return ["made of", _circuit_content(operation.definition, columns, phase=True)]
    if all(isinstance(value, (np.ndarray, int, float, complex, ParameterExpression)) for value in operation.params):
        return ["opaque", operation.name, [_angle(value, columns) for value in operation.params]]
    raise UnsupportedCircuitError(f"operation {operation.name!r} has neither a definition nor plain parameters")


def _condition_content(operation: ControlFlowOp, clbits: Mapping[Clbit, int]) -> list[Any]:
    """The measured bits of an if_else and their value: what samplers send as a dynamic circuit. Loops are unrolled."""
    if not isinstance(operation, IfElseOp):
        raise UnsupportedCircuitError(f"{operation.name!r}: of control flow only if_else has a key; unroll the rest")
    if not isinstance(operation.condition, tuple):
        raise UnsupportedCircuitError(
            f"{operation.name!r} has a condition that is an expression: {operation.condition!r}"
        )
    where, value = operation.condition
    return [[clbits[bit] for bit in ([where] if isinstance(where, Clbit) else where)], int(value)]


@lru_cache(maxsize=1)
def _standard() -> dict[str, type]:
    return {name: gate.base_class for name, gate in get_standard_gate_name_mapping().items()}


# -- numbers -----------------------------------------------------------------------------------------------------------


def _angle(value: Any, columns: Mapping[str, int]) -> Any:
    """A gate's parameter: a number by its bits, an affine expression by its coefficients, another by its values."""
    if not isinstance(value, ParameterExpression):
        return _plain(value, "gate parameter")
    if not value.parameters:
        return _plain(value.numeric(), "gate parameter")
    parameters = sorted(value.parameters, key=lambda parameter: columns.get(parameter.name, -1))
    missing = [parameter.name for parameter in parameters if parameter.name not in columns]
    if missing:
        raise UnsupportedCircuitError(f"angle {value} has parameters that the circuit does not have: {missing}")
    try:
        slopes = [value.gradient(parameter) for parameter in parameters]
    except Exception:  # not every function has a derivative in Qiskit (abs)
        slopes = [value]
    if any(isinstance(slope, ParameterExpression) and slope.parameters for slope in slopes):
        return ["values", [columns[p.name] for p in parameters], [_at(value, columns, n) for n in range(_POINTS)]]
    constant = value.bind(dict.fromkeys(parameters, 0.0)).numeric()
    numbers = [s.numeric() if isinstance(s, ParameterExpression) else s for s in slopes]
    terms = [[columns[p.name], *_complex(n)] for p, n in zip(parameters, numbers, strict=True)]
    return ["affine", terms, _complex(constant)]


def _at(value: ParameterExpression, columns: Mapping[str, int], point: int) -> list[str]:
    at = {}
    for parameter in value.parameters:
        seed = hashlib.sha256(f"{columns[parameter.name]} {point}".encode()).digest()
        at[parameter] = 0.1 + int.from_bytes(seed[:6], "big") / 2**48
    return _complex(value.bind(at).numeric())


def _complex(value: Any) -> list[str]:
    number = complex(value)
    return [_float(number.real), _float(number.imag)]


def _float(value: float) -> str:
    if not math.isfinite(value):
        raise InvalidInputError(f"a number is {value}; NaN and infinity have no key")
    return (value + 0.0).hex()  # −0.0 + 0.0 is 0.0: the same rotation


def _array_content(array: np.ndarray, what: str) -> dict[str, Any]:
    kind = "<c16" if np.iscomplexobj(array) else "<f8"
    try:
        exact = np.ascontiguousarray(array, dtype=kind) + 0.0
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{what} is an array of {array.dtype}; allowed: numbers") from error
    if not np.isfinite(exact).all():
        raise InvalidInputError(f"{what} holds NaN or infinity; check what produced it")
    return {"array": hashlib.sha256(exact.tobytes()).hexdigest(), "shape": list(array.shape), "kind": kind}


def _plain(value: Any, what: str) -> Any:
    """`value` in types that JSON writes in one way only; whole numbers are integers, others the text of their bits."""
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    if isinstance(value, enum.Enum):
        return _plain(value.value, what)
    if isinstance(value, str):
        return {"text": str(value)}
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return int(value) if math.isfinite(value) and float(value).is_integer() else {"float": _float(float(value))}
    if isinstance(value, complex | np.complexfloating):
        return {"complex": _complex(value)} if value.imag else _plain(float(value.real), what)
    if isinstance(value, np.ndarray):
        return _array_content(value, what)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise InvalidInputError(f"{what} has a name that is no text: {list(value)}")
        return {"map": {name: _plain(inner, f"{what}.{name}") for name, inner in value.items()}}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{what}[{number}]") for number, inner in enumerate(value)]
    raise InvalidInputError(f"{what} is a {type(value).__name__}; allowed: text, numbers, lists and dictionaries")
