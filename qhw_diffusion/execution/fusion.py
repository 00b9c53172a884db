"""Gate fusion: operations become fused blocks on single qubits and fixed real matrices on pairs, in moments.

Rows [D, B]. A *state* of n qubits: D = 2·2^n, row c·2^n + i holds the real (c = 0) or imaginary (c = 1) part of
amplitude i. A *density* matrix: D = 4^n coefficients in the product of (|0⟩⟨0|, X/√2, |1⟩⟨1|, −Y/√2) for each qubit,
qubit n−1 most significant: an orthonormal basis of the Hermitian matrices, in which every channel is a real matrix.

Everything that happens to one qubit between two maps on pairs is one *fused block*, a 4×4 matrix built from its angles.
A map on a pair is a fixed matrix; where it only permutes rows up to signs (CNOT, CZ, SWAP on states), neighbours are
done as one permutation of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from qhw_diffusion.execution.program import FixedMap, Rotation

Basis = Literal["state", "density"]
Precision = type[np.float32] | type[np.float64]

# One qubit's (ρ00, ρ01, ρ10, ρ11) → its four real coordinates (ρ00, √2 Re ρ01, ρ11, √2 Im ρ01); unitary.
REAL_LOCAL = np.array([[1, 0, 0, 0], [0, 0.5**0.5, 0.5**0.5, 0], [0, 0, 0, 1], [0, -1j * 0.5**0.5, 1j * 0.5**0.5, 0]])
# RZ(θ) turns a qubit's coordinates (0, 2) by sign[0]·rate·θ and (1, 3) by sign[1]·rate·θ. For a state the coordinates
# are (Re ψ0, Re ψ1, Im ψ0, Im ψ1).
RATE: dict[str, float] = {"state": 0.5, "density": 1.0}
SIGN: dict[str, np.ndarray] = {"state": np.array([1, -1]), "density": np.array([0, 1])}


def dimension(basis: Basis, n_qubits: int) -> int:
    """Number of real rows D."""
    return int(2 ** (n_qubits + 1) if basis == "state" else 4**n_qubits)


@dataclass(frozen=True, eq=False)
class FusedBlock:
    """Gates on one qubit fused into one matrix: fixed[0], RZ(rotations[0]), fixed[1], …, fixed[K] in time order.

    Attributes:
        qubits: the one qubit.
        rotations: [K] numbers of the rotations (rows of the angles).
        fixed: K + 1 real matrices [4, 4].
    """

    qubits: tuple[int, ...]
    rotations: tuple[int, ...]
    fixed: tuple[np.ndarray, ...]

    def transposed(self) -> FusedBlock:
        """The transposed matrices in reversed order."""
        return FusedBlock(self.qubits, self.rotations[::-1], tuple(f.T for f in reversed(self.fixed)))


@dataclass(frozen=True, eq=False)
class FusedMap:
    """A fixed real matrix [d, d] on one or two qubits."""

    qubits: tuple[int, ...]
    matrix: np.ndarray

    def transposed(self) -> FusedMap:
        """With the matrix transposed."""
        return FusedMap(self.qubits, self.matrix.T)


def real_matrix(operation: FixedMap, basis: Basis, noisy: bool) -> np.ndarray:
    """The map as a real matrix [d, d] on the rows of its qubits."""
    k = len(operation.qubits)
    if basis == "state":
        m = operation.matrix
        assert m is not None
        return np.block([[m.real, -m.imag], [m.imag, m.real]])
    superop = operation.channel(noisy)
    # vec(ρ) by columns: index bits (c_k-1 … c_0, r_k-1 … r_0)  →  (r_k-1 c_k-1 … r_0 c_0)
    order = [axis for j in range(k) for axis in (k + j, j)]
    tensor = superop.reshape([2] * (4 * k)).transpose(order + [2 * k + axis for axis in order])
    change = _to_coordinates(k)
    real: np.ndarray = (change @ tensor.reshape(4**k, 4**k) @ change.conj().T).real
    return real


@cache
def _to_coordinates(k: int) -> np.ndarray:
    """`REAL_LOCAL` of k qubits, [4^k, 4^k]."""
    change = np.eye(1)
    for _ in range(k):
        change = np.kron(change, REAL_LOCAL)
    return change


def fuse(operations: Sequence[Rotation | FixedMap], basis: Basis, noisy: bool) -> list[FusedBlock | FusedMap]:
    """Fuse what happens to single qubits into blocks, and multiply neighbouring maps on the same pair.

    Args:
        operations: rotations and fixed maps in time order.
        basis: of the rows.
        noisy: with the device's noise (density only).

    Returns:
        Blocks and maps in time order.
    """
    nodes: list[FusedBlock | FusedMap] = []
    latest: dict[int, int] = {}  # qubit → its last node
    fixed: dict[int, list[np.ndarray]] = {}
    turns: dict[int, list[int]] = {}

    def flush(q: int) -> None:
        if q not in fixed:
            return
        matrices, rotations = fixed.pop(q), turns.pop(q)
        if rotations:
            latest[q] = len(nodes)
            nodes.append(FusedBlock((q,), tuple(rotations), tuple(matrices)))
        elif not np.array_equal(matrices[0], np.eye(4)):
            latest[q] = len(nodes)
            nodes.append(FusedMap((q,), matrices[0]))

    for operation in operations:
        if len(operation.qubits) == 1:
            q = operation.qubits[0]
            matrices = fixed.setdefault(q, [np.eye(4)])
            if isinstance(operation, Rotation):
                turns.setdefault(q, []).append(operation.index)
                matrices.append(np.eye(4))
            else:
                turns.setdefault(q, [])
                matrices[-1] = real_matrix(operation, basis, noisy) @ matrices[-1]
            continue
        assert isinstance(operation, FixedMap)
        pair = operation.qubits
        matrix = real_matrix(operation, basis, noisy)
        for position, q in enumerate(pair):
            if (
                q in fixed and not turns[q] and not is_monomial(matrix)
            ):  # a dense map takes fixed neighbours in for free
                matrix = matrix @ _widen(fixed.pop(q)[0], position, basis)
                del turns[q]
            flush(q)
        before = {latest.get(q) for q in pair}
        at = before.pop()
        if not before and at is not None and nodes[at].qubits == pair and isinstance(nodes[at], FusedMap):
            nodes[at] = FusedMap(pair, matrix @ nodes[at].matrix)  # type: ignore[union-attr]
            continue
        for q in pair:
            latest[q] = len(nodes)
        nodes.append(FusedMap(pair, matrix))
    for q in sorted(fixed):
        flush(q)
    return [_without_rounding(node) for node in nodes]


def _without_rounding(node: FusedBlock | FusedMap) -> FusedBlock | FusedMap:
    """Entries of 1e-17 that should be 0 set to 0: products of them become denormal numbers, which take 4× the time."""

    def clean(matrix: np.ndarray) -> np.ndarray:
        return np.where(np.abs(matrix) < 1e-14, 0.0, matrix)

    if isinstance(node, FusedMap):
        return FusedMap(node.qubits, clean(node.matrix))
    return FusedBlock(node.qubits, node.rotations, tuple(clean(f) for f in node.fixed))


def _widen(matrix: np.ndarray, position: int, basis: Basis) -> np.ndarray:
    """A one-qubit matrix on the rows of a pair, at `position` in it."""
    if basis == "density":
        return np.kron(np.eye(4), matrix) if position == 0 else np.kron(matrix, np.eye(4))
    tensor = matrix.reshape(2, 2, 2, 2)  # [c', q', c, q] → [c', q1', q0', c, q1, q0]
    wide = np.einsum("aibj,kl->akiblj" if position == 0 else "aibj,kl->aikbjl", tensor, np.eye(2))
    return wide.reshape(8, 8)


def in_moments(nodes: Sequence[FusedBlock | FusedMap], n_qubits: int) -> list[list[FusedBlock | FusedMap]]:
    """Moments of nodes of one kind (blocks; maps that permute; other maps), as few as a greedy pass finds."""
    queues: list[list[int]] = [[] for _ in range(n_qubits)]
    for i, node in enumerate(nodes):
        for q in node.qubits:
            queues[q].append(i)
    heads = [0] * n_qubits
    kinds = [0 if isinstance(node, FusedBlock) else 1 if is_monomial(node.matrix) else 2 for node in nodes]
    moments: list[list[FusedBlock | FusedMap]] = []
    left = len(nodes)
    while left:
        for kind in (0, 1, 2):
            moment: list[FusedBlock | FusedMap] = []
            found = True
            while found:
                found = False
                for q in range(n_qubits):
                    if heads[q] == len(queues[q]):
                        continue
                    i = queues[q][heads[q]]
                    if kinds[i] != kind or any(
                        heads[p] == len(queues[p]) or queues[p][heads[p]] != i for p in nodes[i].qubits
                    ):
                        continue
                    if kind == 0 and any(node.qubits == nodes[i].qubits for node in moment):
                        continue
                    for p in nodes[i].qubits:
                        heads[p] += 1
                    moment.append(nodes[i])
                    found = True
            if moment:
                moments.append(moment)
                left -= len(moment)
                break
    return moments


def is_monomial(matrix: np.ndarray) -> bool:
    """One entry ±1 in every row and column, the rest zero."""
    large = np.abs(matrix) > 1e-12
    return bool((large.sum(0) == 1).all() and (large.sum(1) == 1).all() and np.allclose(np.abs(matrix[large]), 1))
