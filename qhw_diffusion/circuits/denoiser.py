"""The denoiser circuit: layers of three-angle rotations and a CNOT chain that alternates with its inverse."""

from __future__ import annotations

from dataclasses import dataclass

from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.circuits.ansatz import append_layer, chain_layer, check_integer, named_parameters, z_observables

MIN_QUBITS, MAX_QUBITS = 1, 12


@dataclass(frozen=True, eq=False)
class DenoiserCircuit:
    """A parameterised circuit with its parameters in two groups and its observables.

    Attributes:
        circuit: the logical circuit, without measurements and without state preparation.
        inputs: one parameter per feature (radians), in the features' order; empty when a state is handed over.
        weights: trainable angles (radians), ordered by layer, then qubit, then RX, RZ, RY.
        observables: ⟨Z_q⟩ for q = 0 … n_qubits−1.
        n_qubits, depth, n_features: what it was built with.
    """

    circuit: QuantumCircuit
    inputs: tuple[Parameter, ...]
    weights: tuple[Parameter, ...]
    observables: tuple[SparsePauliOp, ...]
    n_qubits: int
    depth: int
    n_features: int


def denoiser_circuit(n_qubits: int, depth: int, n_features: int = 0) -> DenoiserCircuit:
    """One block of an amplitude denoiser (arXiv 2311.15444): a unitary that maps a noisy state to a cleaner one.

    `depth` layers. Each is RX, RZ, RY on every qubit, then the CNOT chain 0→1, 1→2, …, n−2→n−1; every second layer
    has the chain's inverse (the same CNOTs in the opposite order) in its place.

    RX, RZ, RY reach every single-qubit rotation, as RZ, RY, RZ do, but here no weight is dead: an RZ that comes first
    does nothing to a qubit in |0⟩ (an ancilla, or a circuit without encoding), and an RZ that comes last commutes with
    every Z measured after the chain.

    Args:
        n_qubits: 1 to 12.
        depth: number of layers, ≥ 1.
        n_features: 0 to n_qubits. 0 (the default): the circuit acts on a state handed to it and `inputs` is empty.
            Otherwise RY(x_q) on qubit q comes first, for q < n_features.

    Returns:
        The circuit with `n_features` inputs, 3·n_qubits·depth weights and `n_qubits` observables.

    Raises:
        InvalidInputError: a number outside its range.
    """
    check_integer("n_qubits", n_qubits, MIN_QUBITS, MAX_QUBITS)
    check_integer("depth", depth, 1, None)
    check_integer("n_features", n_features, 0, n_qubits, because=f" for {n_qubits} qubits (one angle each)")

    inputs = named_parameters("denoiser", "x", n_features)
    weights = named_parameters("denoiser", "w", 3 * n_qubits * depth)
    circuit = QuantumCircuit(n_qubits, name=f"denoiser_{n_qubits}q_{depth}l")
    for qubit, parameter in enumerate(inputs):
        circuit.ry(parameter, qubit)
    for layer in range(depth):
        own = weights[3 * n_qubits * layer : 3 * n_qubits * (layer + 1)]
        append_layer(circuit, chain_layer(n_qubits, layer), range(n_qubits), own)
    return DenoiserCircuit(circuit, inputs, weights, z_observables(n_qubits), n_qubits, depth, n_features)
