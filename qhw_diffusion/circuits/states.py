"""State vectors of one circuit at many parameter values at once, with numpy alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Parameter, QuantumCircuit

from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError

Array = NDArray[np.complex128]
# Amplitudes held at once: this many fit a processor's cache, which is what makes large batches fast.
_CHUNK = 2**17
MAX_QUBITS = 14


def state_vectors(circuit: QuantumCircuit, values: NDArray[np.float64]) -> Array:
    """The states a circuit prepares from |0…0⟩.

    Args:
        circuit: gates only, at most 14 qubits. RX, RY and RZ may have a parameter as their angle; every other gate must
            be fixed.
        values: angles [S, P] in radians, columns in the order of `circuit.parameters`.

    Returns:
        Amplitudes [S, 2ⁿ], qubit 0 the fastest index (Qiskit's order).

    Raises:
        InvalidInputError: values of another shape, or a circuit that is too wide.
        UnsupportedCircuitError: a measurement or other non-gate, or a parameter that is not a rotation's whole angle.
    """
    if not isinstance(circuit, QuantumCircuit):
        raise InvalidInputError(f"circuit must be a qiskit QuantumCircuit, not {type(circuit).__name__}")
    values = np.asarray(values, dtype=np.float64)
    n, parameters = circuit.num_qubits, list(circuit.parameters)
    if not 1 <= n <= MAX_QUBITS:
        raise InvalidInputError(f"the circuit has {n} qubits; state vectors are kept for 1 to {MAX_QUBITS}")
    if values.ndim != 2 or values.shape[1] != len(parameters) or not np.isfinite(values).all():
        raise InvalidInputError(
            f"values has shape {values.shape}; allowed: finite angles [samples, {len(parameters)}], one column for "
            "each of circuit.parameters"
        )
    column = {parameter: index for index, parameter in enumerate(parameters)}
    steps = list(_steps(circuit, column))
    rows = max(1, _CHUNK >> n)
    states = np.empty((len(values), 2**n), dtype=np.complex128)
    for first in range(0, len(values), rows):
        states[first : first + rows] = _run(steps, values[first : first + rows], n).T
    return states


# A step: the gate's name, its qubits, and the column of its angle or its matrix.
_Step = tuple[str, tuple[int, ...], int | Array]


def _steps(circuit: QuantumCircuit, column: dict[Parameter, int]) -> Iterator[_Step]:
    for instruction in circuit.data:
        gate = instruction.operation
        qubits = tuple(circuit.find_bit(q).index for q in instruction.qubits)
        if gate.name == "barrier":
            continue
        if gate.name in ("rx", "ry", "rz"):
            angle = gate.params[0]
            if isinstance(angle, Parameter):
                yield gate.name, qubits, column[angle]
                continue
        if not hasattr(gate, "to_matrix") or gate.is_parameterized():
            raise UnsupportedCircuitError(
                f"operation {gate.name!r} is not supported here: allowed are fixed gates, and RX, RY, RZ with a "
                "parameter as their angle"
            )
        yield ("cx" if gate.name == "cx" else "fixed"), qubits, np.asarray(gate.to_matrix(), dtype=np.complex128)


def _run(steps: list[_Step], values: NDArray[np.float64], n: int) -> Array:
    """Amplitudes [2ⁿ, S]: samples last, so that every inner loop runs over neighbours in memory."""
    states = np.zeros((2**n, len(values)), dtype=np.complex128)
    states[0] = 1
    # Rotations of one qubit are multiplied up ([2, 2, S]) and applied when that qubit meets another.
    pending: dict[int, Array] = {}
    for name, qubits, content in steps:
        if len(qubits) == 1:
            matrix = _rotation(name, values[:, content]) if isinstance(content, int) else np.asarray(content)[..., None]
            qubit = qubits[0]
            pending[qubit] = np.einsum("ijs,jks->iks", matrix, pending[qubit]) if qubit in pending else matrix
            continue
        for qubit in qubits:
            if qubit in pending:
                _apply_single(states, pending.pop(qubit), qubit)
        if name == "cx":
            _apply_cx(states, *qubits)
        else:
            states = _apply(states, np.asarray(content), qubits, n)
    for qubit, matrix in pending.items():
        _apply_single(states, matrix, qubit)
    return states


def _rotation(name: str, angles: NDArray[np.float64]) -> Array:
    cos, sin = np.cos(angles / 2), np.sin(angles / 2)
    matrix = np.zeros((2, 2, len(angles)), dtype=np.complex128)
    if name == "rz":
        matrix[0, 0], matrix[1, 1] = cos - 1j * sin, cos + 1j * sin
        return matrix
    matrix[0, 0] = matrix[1, 1] = cos
    matrix[0, 1], matrix[1, 0] = (-1j * sin, -1j * sin) if name == "rx" else (-sin, sin)
    return matrix


def _apply_single(states: Array, matrix: Array, qubit: int) -> None:
    view = states.reshape(-1, 2, 2**qubit, states.shape[1])
    zero, one = view[:, 0].copy(), view[:, 1].copy()
    view[:, 0] = matrix[0, 0] * zero + matrix[0, 1] * one
    view[:, 1] = matrix[1, 0] * zero + matrix[1, 1] * one


def _apply_cx(states: Array, control: int, goal: int) -> None:
    index = np.arange(len(states))
    low = index[(index >> control & 1 == 1) & (index >> goal & 1 == 0)]
    high = low | 1 << goal
    states[low], states[high] = states[high], states[low]


def _apply(states: Array, matrix: Array, qubits: tuple[int, ...], n: int) -> Array:
    # Axes of the reshaped state: qubits from the last to the first, then samples; the gate's first qubit is the
    # fastest index of its matrix.
    axes = [n - 1 - q for q in reversed(qubits)]
    front = np.moveaxis(states.reshape(*(2,) * n, -1), axes, range(len(axes)))
    moved = (matrix @ front.reshape(2 ** len(qubits), -1)).reshape(front.shape)
    return np.ascontiguousarray(np.moveaxis(moved, range(len(axes)), axes)).reshape(2**n, -1)
