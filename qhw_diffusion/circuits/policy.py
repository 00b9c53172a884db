"""The policy circuit: angle encoding, layers of rotations and CNOTs, ⟨Z⟩ on every qubit."""

from __future__ import annotations

from dataclasses import dataclass

from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.circuits.ansatz import chain_pairs, check_integer, named_parameters, rotate_all, z_observables
from qhw_diffusion.errors import InvalidInputError, UnknownNameError

ENTANGLEMENTS = ("ring", "chain", "none")
MIN_QUBITS, MAX_QUBITS = 2, 8


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
    """The circuit of the guidance policy (arXiv 2509.14163, with all features encoded).

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
    check_integer("n_qubits", n_qubits, MIN_QUBITS, MAX_QUBITS)
    check_integer("depth", depth, 1, None)
    check_integer("n_features", n_features, 1, 2 * n_qubits, because=f" for {n_qubits} qubits (two angles each)")
    if entanglement not in ENTANGLEMENTS:
        raise UnknownNameError.of("entanglement", str(entanglement), ENTANGLEMENTS)
    if not isinstance(reuploading, bool):
        raise InvalidInputError(f"reuploading is {reuploading!r}; allowed: True, False")

    inputs = named_parameters("policy", "x", n_features)
    weights = named_parameters("policy", "w", 3 * n_qubits * depth)
    pairs = _pairs(n_qubits, entanglement)
    kind = f"{entanglement}_reuploading" if reuploading else entanglement
    circuit = QuantumCircuit(n_qubits, name=f"policy_{n_qubits}q_{depth}l_{kind}")
    for layer in range(depth):
        if layer == 0 or reuploading:
            _encode(circuit, inputs)
        rotate_all(circuit, weights[3 * n_qubits * layer : 3 * n_qubits * (layer + 1)])
        for control, goal in pairs:
            circuit.cx(control, goal)
    observables = z_observables(n_qubits)
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
    chain = chain_pairs(n_qubits)
    return [*chain, (n_qubits - 1, 0)] if entanglement == "ring" and n_qubits > 2 else chain
