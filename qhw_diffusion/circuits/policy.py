"""The policy circuit: angle encoding, layers of rotations and CNOTs, ⟨Z⟩ on every qubit."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.errors import InvalidInputError, UnknownNameError

ENTANGLEMENTS = ("ring", "chain", "none")
MIN_QUBITS, MAX_QUBITS = 2, 8
# Parameters are told apart by uuid. Deriving it from the name makes two builds of one circuit equal, so that a circuit
# read back from a file can be compared with, and bound like, a fresh one.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "qhw-diffusion/policy-circuit")


@dataclass(frozen=True, eq=False)
class PolicyCircuit:
    """A parameterised circuit with its parameters in two groups and its observables.

    Attributes:
        circuit: the logical circuit, without measurements.
        inputs: one parameter per feature (radians), in the features' order.
        weights: trainable angles (radians), ordered by layer, then qubit, then RX, RZ, RY.
        observables: ⟨Z_q⟩ for q = 0 … n_qubits−1.
        n_qubits, depth, n_features, entanglement, reuploading: what it was built with.
    """

    circuit: QuantumCircuit
    inputs: tuple[Parameter, ...]
    weights: tuple[Parameter, ...]
    observables: tuple[SparsePauliOp, ...]
    n_qubits: int
    depth: int
    n_features: int
    entanglement: str
    reuploading: bool


def policy_circuit(
    n_qubits: int = 4,
    depth: int = 2,
    n_features: int = 6,
    entanglement: str = "ring",
    reuploading: bool = False,
) -> PolicyCircuit:
    """Policy circuit of the guidance controller (arXiv 2509.14163, with all features encoded).

    Encoding: RY(x_q) on qubit q for the first `n_qubits` features, then RZ(x_{n+q}) on qubit q for those beyond. Then
    `depth` layers of RX, RZ, RY on every qubit followed by CNOTs: q → q+1 (``"chain"``), closed by n−1 → 0 (``"ring"``;
    on two qubits a ring is the chain, since a second CNOT would only undo part of the first), or no CNOT
    (``"none"``). With `reuploading` the encoding comes before every layer.

    RY is the last rotation on purpose: a closing RZ commutes with everything measured after the last layer of CNOTs, so
    `n_qubits` of the weights would have no effect at all. Input scaling is not part of the circuit, since a product of
    two parameters is not affine; whoever feeds the circuit scales.

    Args:
        n_qubits: 2 to 8.
        depth: number of layers, ≥ 1.
        n_features: 1 to 2·n_qubits.
        entanglement: ``"ring"``, ``"chain"`` or ``"none"``.
        reuploading: repeat the encoding before every layer.

    Returns:
        The circuit with `n_features` inputs, 3·n_qubits·depth weights and `n_qubits` observables.

    Raises:
        InvalidInputError: a number outside its range.
        UnknownNameError: another entanglement.
    """
    _check_integer("n_qubits", n_qubits, MIN_QUBITS, MAX_QUBITS)
    _check_integer("depth", depth, 1, None)
    _check_integer("n_features", n_features, 1, 2 * n_qubits, because=f" for {n_qubits} qubits (two angles each)")
    if entanglement not in ENTANGLEMENTS:
        raise UnknownNameError.of("entanglement", str(entanglement), ENTANGLEMENTS)
    if not isinstance(reuploading, bool):
        raise InvalidInputError(f"reuploading is {reuploading!r}; allowed: True, False")

    inputs = _parameters("x", n_features)
    weights = _parameters("w", 3 * n_qubits * depth)
    pairs = _pairs(n_qubits, entanglement)
    circuit = QuantumCircuit(n_qubits, name=f"policy_{n_qubits}q_{depth}l_{entanglement}")
    for layer in range(depth):
        if layer == 0 or reuploading:
            _encode(circuit, inputs)
        for qubit in range(n_qubits):
            first = 3 * (layer * n_qubits + qubit)
            circuit.rx(weights[first], qubit)
            circuit.rz(weights[first + 1], qubit)
            circuit.ry(weights[first + 2], qubit)
        for control, goal in pairs:
            circuit.cx(control, goal)
    observables = tuple(SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], n_qubits) for q in range(n_qubits))
    return PolicyCircuit(circuit, inputs, weights, observables, n_qubits, depth, n_features, entanglement, reuploading)


def _encode(circuit: QuantumCircuit, inputs: tuple[Parameter, ...]) -> None:
    for index, parameter in enumerate(inputs):
        if index < circuit.num_qubits:
            circuit.ry(parameter, index)
        else:
            circuit.rz(parameter, index - circuit.num_qubits)


def _pairs(n_qubits: int, entanglement: str) -> list[tuple[int, int]]:
    if entanglement == "none":
        return []
    chain = [(q, q + 1) for q in range(n_qubits - 1)]
    return [*chain, (n_qubits - 1, 0)] if entanglement == "ring" and n_qubits > 2 else chain


def _parameters(letter: str, count: int) -> tuple[Parameter, ...]:
    width = len(str(count - 1))  # equal width, so that Qiskit's order by name is the order of the tuple
    names = [f"{letter}{index:0{width}d}" for index in range(count)]
    return tuple(Parameter(name, uuid=uuid.uuid5(_NAMESPACE, name)) for name in names)


def _check_integer(name: str, value: int, low: int, high: int | None, because: str = "") -> None:
    allowed = f"{low} to {high}" if high is not None else f"{low} or more"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise InvalidInputError(f"{name} is {value!r}; allowed: whole numbers from {allowed}{because}")
