"""What the package's circuits have in common: named parameters, a layer of rotations, ⟨Z⟩ on every qubit."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.errors import InvalidInputError


def named_parameters(kind: str, letter: str, count: int) -> tuple[Parameter, ...]:
    """`count` parameters ``x0``, ``x1``, … of the circuits of one kind (``"policy"``, ``"denoiser"``).

    Parameters are told apart by uuid. Deriving it from kind and name makes two builds of one circuit equal, so that a
    circuit read back from a file can be compared with, and bound like, a fresh one.
    """
    width = len(str(count - 1))  # equal width, so that Qiskit's order by name is the order of the tuple
    names = [f"{letter}{index:0{width}d}" for index in range(count)]
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, f"qhw-diffusion/{kind}-circuit")
    return tuple(Parameter(name, uuid=uuid.uuid5(namespace, name)) for name in names)


def rotate_all(circuit: QuantumCircuit, weights: Sequence[Parameter]) -> None:
    """RX, RZ, RY on every qubit, with `weights` (3·n) ordered by qubit, then RX, RZ, RY."""
    for qubit in range(circuit.num_qubits):
        first = 3 * qubit
        circuit.rx(weights[first], qubit)
        circuit.rz(weights[first + 1], qubit)
        circuit.ry(weights[first + 2], qubit)


def chain_pairs(n_qubits: int) -> list[tuple[int, int]]:
    """(control, target) of the CNOT chain 0→1, 1→2, …, n−2→n−1."""
    return [(qubit, qubit + 1) for qubit in range(n_qubits - 1)]


def z_observables(n_qubits: int) -> tuple[SparsePauliOp, ...]:
    """⟨Z_q⟩ for q = 0 … n_qubits−1."""
    return tuple(SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], n_qubits) for q in range(n_qubits))


def check_integer(name: str, value: int, low: int, high: int | None, because: str = "") -> None:
    """Raises InvalidInputError unless `value` is a whole number from `low` to `high` (None: no upper limit)."""
    allowed = f"{low} to {high}" if high is not None else f"{low} or more"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise InvalidInputError(f"{name} is {value!r}; allowed: whole numbers from {allowed}{because}")
