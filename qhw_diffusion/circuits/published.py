"""The circuits the package trains, by the names under which `circuits/` publishes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.circuits.denoiser import DenoiserCircuit, denoiser_circuit
from qhw_diffusion.circuits.policy import ENTANGLEMENTS, PolicyCircuit, policy_circuit
from qhw_diffusion.circuits.reverse import ReverseCircuit, reverse_circuit
from qhw_diffusion.errors import UnknownNameError

POLICY_DEPTH = 2
POLICY_QUBITS = (2, 4, 6, 8)
STATE_ENTRIES = 6  # entries of the guidance state; two qubits take four angles at most
# (qubits, layers) with about 200 weights each
DENOISER_BLOCKS = ((4, 16), (6, 11), (8, 8), (10, 7))
# Reverse steps: the demo's, and those of the reproductions of published results (docs/results-reproductions.md).
REVERSE_STEPS: tuple[dict[str, Any], ...] = (
    {"n_qubits": 3, "n_ancillas": 1, "depth": 6, "conditioning_angles": True},
    {"n_qubits": 1, "n_ancillas": 1, "depth": 4, "ansatz": "cz"},
    {"n_qubits": 1, "n_ancillas": 2, "depth": 4, "ansatz": "cz"},
    {"n_qubits": 1, "n_ancillas": 2, "depth": 8, "ansatz": "cz"},
)


@dataclass(frozen=True, eq=False)
class PublishedCircuit:
    """One circuit with its parameters in two groups and its observables.

    Attributes:
        name: the circuit's name and its files' without ending, e.g. ``policy_4q_2l_ring``.
        circuit, inputs, weights, observables: as `PolicyCircuit`, `DenoiserCircuit` and `ReverseCircuit` have them.
        drawn: what the drawing shows: the circuit itself, or, of a denoiser, its first layers (the others repeat them
            with other weights).
    """

    name: str
    circuit: QuantumCircuit
    inputs: tuple[Parameter, ...]
    weights: tuple[Parameter, ...]
    observables: tuple[SparsePauliOp, ...]
    drawn: QuantumCircuit


def published_circuits() -> dict[str, PublishedCircuit]:
    """Every published circuit by its name, in the order of the table.

    The guidance policy at depth 2: ring, chain and no entanglement on 2, 4, 6 and 8 qubits (on two
    qubits the ring is the chain, and four state entries are encoded instead of six), and the 4-qubit ring with data
    re-uploading. Denoiser blocks of 4, 6, 8 and 10 qubits with about 200 weights, which act on a state handed to them.
    Steps of the reverse processes that the demo and the reproductions use.
    """
    circuits = []
    for n in POLICY_QUBITS:
        for entanglement in ENTANGLEMENTS:
            if n > 2 or entanglement != "ring":
                policy = policy_circuit(n, POLICY_DEPTH, min(STATE_ENTRIES, 2 * n), entanglement)
                circuits.append(_published(policy, policy.circuit))
    policy = policy_circuit(4, POLICY_DEPTH, STATE_ENTRIES, "ring", reuploading=True)
    circuits.append(_published(policy, policy.circuit))
    for n, depth in DENOISER_BLOCKS:
        block = denoiser_circuit(n, depth)
        circuits.append(_published(block, _beginning(block, layers=2)))
    for settings in REVERSE_STEPS:
        short = reverse_circuit(**{**settings, "depth": 2})
        circuits.append(_published(reverse_circuit(**settings), short.circuit))
    return {circuit.name: circuit for circuit in circuits}


def published_circuit(name: str) -> PublishedCircuit:
    """One of `published_circuits`.

    Raises:
        UnknownNameError: another name; the message lists near matches.
    """
    circuits = published_circuits()
    if name not in circuits:
        raise UnknownNameError.of("published circuit", str(name), circuits)
    return circuits[name]


def _published(built: PolicyCircuit | DenoiserCircuit | ReverseCircuit, drawn: QuantumCircuit) -> PublishedCircuit:
    observables = tuple(built.observables)  # type: ignore[arg-type]  # published circuits have no adaptive ones
    return PublishedCircuit(built.circuit.name, built.circuit, built.inputs, built.weights, observables, drawn)


def _beginning(block: DenoiserCircuit, layers: int) -> QuantumCircuit:
    gates = 4 * block.n_qubits - 1  # of one layer: three rotations a qubit, n − 1 CNOTs
    circuit = QuantumCircuit(block.n_qubits, name=block.circuit.name)
    for instruction in block.circuit.data[: layers * gates]:
        circuit.append(instruction)
    return circuit
