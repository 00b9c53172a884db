"""The circuits the package trains, by the names under which `circuits/` publishes them."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
    circuits = [make() for make in _makers()]
    return {circuit.name: circuit for circuit in circuits}


def published_circuit(name: str) -> PublishedCircuit:
    """One of `published_circuits`.

    Raises:
        UnknownNameError: another name; the message lists near matches.
    """
    names = _names()
    if name not in names:
        raise UnknownNameError.of("published circuit", str(name), names)
    return _makers()[names.index(name)]()


@functools.cache
def _names() -> tuple[str, ...]:
    """The names in the order of the table; they are the circuits' own, so that these are made for it, once."""
    return tuple(published_circuits())


def _makers() -> list[Callable[[], PublishedCircuit]]:
    """What makes each of the circuits, in the order of the table."""
    makers: list[Callable[[], PublishedCircuit]] = []
    for n in POLICY_QUBITS:
        for entanglement in ENTANGLEMENTS:
            if n > 2 or entanglement != "ring":
                makers.append(functools.partial(_policy, n, entanglement))
    makers.append(functools.partial(_policy, 4, "ring", reuploading=True))
    makers += [functools.partial(_denoiser, n, depth) for n, depth in DENOISER_BLOCKS]
    makers += [functools.partial(_reverse, settings) for settings in REVERSE_STEPS]
    return makers


def _policy(n_qubits: int, entanglement: str, reuploading: bool = False) -> PublishedCircuit:
    features = min(STATE_ENTRIES, 2 * n_qubits)
    policy = policy_circuit(n_qubits, POLICY_DEPTH, features, entanglement, reuploading=reuploading)
    return _published(policy, policy.circuit)


def _denoiser(n_qubits: int, depth: int) -> PublishedCircuit:
    block = denoiser_circuit(n_qubits, depth)
    return _published(block, _beginning(block, layers=2))


def _reverse(settings: dict[str, Any]) -> PublishedCircuit:
    short = reverse_circuit(**{**settings, "depth": 2})
    return _published(reverse_circuit(**settings), short.circuit)


def _published(built: PolicyCircuit | DenoiserCircuit | ReverseCircuit, drawn: QuantumCircuit) -> PublishedCircuit:
    observables = tuple(built.observables)  # type: ignore[arg-type]  # published circuits have no adaptive ones
    return PublishedCircuit(built.circuit.name, built.circuit, built.inputs, built.weights, observables, drawn)


def _beginning(block: DenoiserCircuit, layers: int) -> QuantumCircuit:
    gates = 4 * block.n_qubits - 1  # of one layer: three rotations a qubit, n − 1 CNOTs
    circuit = QuantumCircuit(block.n_qubits, name=block.circuit.name)
    for instruction in block.circuit.data[: layers * gates]:
        circuit.append(instruction)
    return circuit
