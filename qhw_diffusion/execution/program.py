"""CompiledCircuit → Program: affine rotation angles and fixed maps on the qubits in use. Pure data (numpy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterExpression
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import UnsupportedCircuitError

_H = np.array([[1, 1], [1, -1]], dtype=complex) / np.sqrt(2)
_SX = np.array([[1 + 1j, 1 - 1j], [1 - 1j, 1 + 1j]]) / 2
_I = np.eye(2, dtype=complex)
# little-endian: qubit 0 of the pair is the least significant bit; the CX has its control on qubit 0, target on qubit 1
_CX = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]], dtype=complex)

# Each rotation is V† · RZ(θ on its last qubit) · V with a fixed V: one parametrised operation is all the engines see.
ROTATIONS: dict[str, np.ndarray] = {
    "rz": _I,
    "p": _I,  # RZ up to a global phase
    "rx": _H,
    "ry": _SX,  # SX† Z SX = Y
    "rzz": _CX,
    "rxx": _CX @ np.kron(_H, _H),
    "ryy": _CX @ np.kron(_SX, _SX),
    "rzx": _CX @ np.kron(_H, _I),
}
# fmt: off
FIXED_GATES = frozenset([
    "id", "x", "y", "z", "h", "s", "sdg", "t", "tdg", "sx", "sxdg",
    "cx", "cy", "cz", "ch", "swap", "iswap", "ecr", "dcx", "csx",
])
# fmt: on
_IGNORED = frozenset({"barrier"})


@dataclass(frozen=True)
class Rotation:
    """RZ(θ_index) on one qubit, θ = inputs·x + weights·w + offset (rows of the Program's arrays)."""

    qubit: int
    index: int

    @property
    def qubits(self) -> tuple[int, ...]:
        return (self.qubit,)


@dataclass(frozen=True, eq=False)
class FixedMap:
    """A parameter-free map on one or two qubits: a unitary, and the noise channel that follows it (or None).

    `unitary` is [2^k, 2^k]; `superop` is [4^k, 4^k] on vec(ρ) stacked by columns (Qiskit's convention), the unitary
    included. Both little-endian in `qubits`.
    """

    qubits: tuple[int, ...]
    unitary: np.ndarray
    superop: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled circuit as data: operations in time order on qubits 0…n-1 (the physical qubits in ascending order).

    Attributes:
        n_qubits: number of qubits in use.
        operations: `Rotation` and `FixedMap` objects in time order.
        input_coefficients: [R, inputs], weight_coefficients: [R, weights], offsets: [R]; radians.
        observables: one tuple of (coefficient, Pauli label) per observable, label[q] is qubit q's factor.
        readout: one (p10, p01) per qubit: P(read 1 | prepared 0), P(read 0 | prepared 1).
        noisy: whether the device has noise at all.
    """

    n_qubits: int
    operations: tuple[Rotation | FixedMap, ...]
    input_coefficients: np.ndarray
    weight_coefficients: np.ndarray
    offsets: np.ndarray
    observables: tuple[tuple[tuple[float, str], ...], ...]
    readout: tuple[tuple[float, float], ...]
    noisy: bool

    def depends_on_input(self, rotation: Rotation) -> bool:
        return bool(np.any(self.input_coefficients[rotation.index]))


def affine_coefficients(expression: ParameterExpression, gate: str) -> tuple[dict[Parameter, float], float]:
    """Coefficients and offset of an affine expression Σ c_k p_k + c₀.

    Raises:
        UnsupportedCircuitError: the expression is not affine; the message names the gate and the expression.
    """
    coefficients: dict[Parameter, float] = {}
    for parameter in expression.parameters:
        try:
            slope = expression.gradient(parameter)
            coefficients[parameter] = float(slope)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UnsupportedCircuitError(
                f"gate {gate!r} has the angle {expression}, which is not affine in {parameter.name!r}; "
                "allowed are sums of parameters times numbers (compute products outside the circuit)"
            ) from error
    bound = expression.bind(dict.fromkeys(expression.parameters, 0.0))
    offset = complex(bound).real
    return coefficients, float(offset)


def lower(
    isa: QuantumCircuit,
    device: Device,
    physical_qubits: Sequence[int],
    inputs: Sequence[Parameter],
    weights: Sequence[Parameter],
    observables: Sequence[SparsePauliOp],
) -> Program:
    """Translate an ISA circuit into a Program; gate noise comes from `device.gate_error`, readout from `readout_error`.

    Raises:
        UnsupportedCircuitError: an operation that is neither a rotation nor a fixed gate, or a non-affine angle.
    """
    position = {q: i for i, q in enumerate(physical_qubits)}
    column = {p: ("input", i) for i, p in enumerate(inputs)} | {p: ("weight", i) for i, p in enumerate(weights)}
    operations: list[Rotation | FixedMap] = []
    rows: list[tuple[np.ndarray, np.ndarray, float]] = []
    unitaries: dict[tuple, np.ndarray] = {}

    for instruction in isa.data:
        gate = instruction.operation
        if gate.name in _IGNORED:
            continue
        physical = tuple(isa.find_bit(q).index for q in instruction.qubits)
        qubits = tuple(position[q] for q in physical)
        angles = [p for p in gate.params if isinstance(p, ParameterExpression) and p.parameters]
        if angles:
            if gate.name not in ROTATIONS:
                raise UnsupportedCircuitError(
                    f"parametrised gate {gate.name!r} is not supported; allowed are {', '.join(sorted(ROTATIONS))}"
                )
            input_row, weight_row = np.zeros(len(inputs)), np.zeros(len(weights))
            coefficients, offset = affine_coefficients(angles[0], gate.name)
            for parameter, value in coefficients.items():
                kind, i = column[parameter]
                (input_row if kind == "input" else weight_row)[i] = value
            basis = ROTATIONS[gate.name]
            trivial = np.allclose(basis, np.eye(len(basis)))
            if not trivial:
                operations.append(FixedMap(qubits, basis))
            operations.append(Rotation(qubits[-1], len(rows)))
            if not trivial:
                operations.append(FixedMap(qubits, basis.conj().T))
            rows.append((input_row, weight_row, offset))
            unitary = None
        else:
            key = (gate.name, tuple(float(p) for p in gate.params))
            if key not in unitaries:
                unitaries[key] = _unitary(gate)
            unitary = unitaries[key]
        error = device.gate_error(gate.name, physical)
        if error is None:
            if unitary is not None:
                operations.append(FixedMap(qubits, unitary))
            continue
        ideal = np.eye(2 ** len(qubits), dtype=complex) if unitary is None else unitary
        operations.append(FixedMap(qubits, ideal, np.asarray(error.data) @ np.kron(ideal.conj(), ideal)))

    return Program(
        n_qubits=len(physical_qubits),
        operations=tuple(operations),
        input_coefficients=np.array([r[0] for r in rows]).reshape(len(rows), len(inputs)),
        weight_coefficients=np.array([r[1] for r in rows]).reshape(len(rows), len(weights)),
        offsets=np.array([r[2] for r in rows]),
        observables=tuple(_reduced_terms(o, physical_qubits) for o in observables),
        readout=tuple(device.readout_error(q) for q in physical_qubits),
        noisy=device.target is not None,
    )


def _unitary(gate: object) -> np.ndarray:
    known = set(get_standard_gate_name_mapping()) | {"unitary"}
    name = getattr(gate, "name", type(gate).__name__)
    if name not in known or name in ("measure", "reset", "delay") or not hasattr(gate, "to_matrix"):
        raise UnsupportedCircuitError(
            f"operation {name!r} is not supported: only rotations and fixed gates are (no measurement, reset or delay)"
        )
    return np.asarray(gate.to_matrix())


def _reduced_terms(observable: SparsePauliOp, physical_qubits: Sequence[int]) -> tuple[tuple[float, str], ...]:
    terms = []
    for label, coefficient in observable.simplify().to_list():
        factors = label[::-1]  # Qiskit writes qubit 0 last
        terms.append((float(np.real(coefficient)), "".join(factors[q] for q in physical_qubits)))
    return tuple(terms)
