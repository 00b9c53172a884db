"""Program → three parts of alternating rotations and fused fixed maps, in a basis where every RZ is one phase.

Three representations share this shape. *state*: 2^n amplitudes. *density*, up to `DENSE_QUBITS` qubits: the 4^n real
numbers of a Hermitian matrix, ordered so that they pair up into 4^n/2 complex ones on each of which a layer of RZ acts
as one phase (real arithmetic for the maps, one complex product for the rotations). *density*, more qubits: the 4^n
complex entries of ρ, to which maps on one or two qubits can be applied locally.

Why three parts: until qubits meet, the state is a product (*prefix*: one small vector a qubit); after the last rotation
that depends on an input nothing depends on the sample (*tail*: evolve the M observables, or the 2^n basis states,
instead of B samples); only what lies between needs the full batch of full states (*body*, empty for a policy that
encodes once).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qhw_diffusion.execution.program import FixedMap, Program, Rotation

Basis = Literal["state", "density"]

# Up to this many qubits the fixed maps between two layers of rotations are multiplied into one dense matrix.
DENSE_QUBITS: dict[str, int] = {"state": 6, "density": 4}
# Local dimension, and the coefficient k of the phase exp(iθk) that RZ(θ) gives each local basis element:
# |0⟩, |1⟩ for a state; |0⟩⟨0|, |0⟩⟨1|, |1⟩⟨0|, |1⟩⟨1| for a density matrix.
LOCAL_DIMENSION: dict[str, int] = {"state": 2, "density": 4}
# One qubit's (ρ00, ρ01, ρ10, ρ11) → the real (ρ00, ρ11, √2 Re ρ01, √2 Im ρ01); unitary.
REAL_LOCAL = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0.5**0.5, 0.5**0.5, 0], [0, -1j * 0.5**0.5, 1j * 0.5**0.5, 0]])
PHASE: dict[str, np.ndarray] = {"state": np.array([-0.5, 0.5]), "density": np.array([0.0, -1.0, 1.0, 0.0])}


@dataclass(frozen=True, eq=False)
class Block:
    """A fused fixed map on `qubits`, [b^k, b^k], little-endian in `qubits`, b the local dimension."""

    qubits: tuple[int, ...]
    matrix: np.ndarray


@dataclass(frozen=True, eq=False)
class Part:
    """blocks[0], rotations[0], blocks[1], rotations[1], …, blocks[S] in time order.

    `rotations[s, q]` is the row of the Program's angles that qubit q is turned by in stage s, or -1.
    """

    rotations: np.ndarray  # [S, n] int
    blocks: tuple[tuple[Block, ...], ...]  # S + 1
    empty: bool  # nothing in it but identities

    @property
    def n_stages(self) -> int:
        return len(self.rotations)


@dataclass(frozen=True, eq=False)
class Stages:
    """A Program arranged for one basis.

    Attributes:
        prefix_rotations: [S, n] like `Part.rotations`.
        prefix_maps: [S + 1, n, b, b], one map a qubit before, between and after; for densities in the real local basis
            of `REAL_LOCAL`.
        body, tail: see the module's text.
        paired: densities in the real paired basis (`paired_basis`), all blocks real and on all qubits.
    """

    basis: Basis
    n_qubits: int
    prefix_rotations: np.ndarray
    prefix_maps: np.ndarray
    body: Part
    tail: Part

    @property
    def dimension(self) -> int:
        return int(LOCAL_DIMENSION[self.basis] ** self.n_qubits)

    @property
    def dense(self) -> bool:
        """One matrix on all qubits a stage, instead of maps on one or two."""
        return self.n_qubits <= DENSE_QUBITS[self.basis]

    @property
    def paired(self) -> bool:
        return self.basis == "density" and self.dense


def arrange(program: Program, basis: Basis) -> Stages:
    """Split a Program into prefix, body and tail and fuse its fixed maps."""
    prefix, body, tail = _split(program)
    n, b = program.n_qubits, LOCAL_DIMENSION[basis]

    rotations, segments = _levels(prefix, n)
    maps = np.tile(np.eye(b, dtype=complex), (len(segments), n, 1, 1))
    for s, segment in enumerate(segments):
        for operation in segment:
            q = operation.qubits[0]
            maps[s, q] = _matrix(operation, basis) @ maps[s, q]
    if basis == "density":
        maps = (REAL_LOCAL @ maps @ REAL_LOCAL.conj().T).real
    parts = []
    for operations in (body, tail):
        turned, fixed = _levels(operations, n)
        blocks = tuple(tuple(_fuse(segment, n, basis)) for segment in fixed)
        parts.append(Part(turned, blocks, empty=not operations))
    stages = Stages(basis, n, rotations, maps, *parts)
    return _pair_up(stages) if stages.paired else stages


def full_phase(basis: Basis, n: int) -> np.ndarray:
    """[n, b^n]: the phase coefficient of qubit q in every element of the full basis (qubit n-1 most significant)."""
    local = PHASE[basis]
    digits = np.arange(len(local) ** n)
    return np.stack([local[(digits // len(local) ** q) % len(local)] for q in range(n)])


def paired_basis(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The unitary T [4^n, 4^n] from the entries of ρ to real coordinates, and the phase coefficients [n, 4^n/2].

    First come the 2^n diagonal entries, which no RZ changes, two to a pair with phase 0; then for every r < c the pair
    (√2 Re ρ_rc, √2 Im ρ_rc).
    """
    d = 2**n
    spread = np.array([sum(((r >> q) & 1) << (2 * q) for q in range(n)) for r in range(d)])
    entry = 2 * spread[:, None] + spread[None, :]  # position of ρ_rc when each qubit's digit is 2 r_q + c_q
    transform = np.zeros((d * d, d * d), dtype=complex)
    phases = np.zeros((n, d * d // 2))
    coefficients = full_phase("density", n)
    transform[np.arange(d), np.diag(entry)] = 1
    for k, (r, c) in enumerate(zip(*np.triu_indices(d, 1), strict=True)):
        row = d + 2 * k
        transform[row, [entry[r, c], entry[c, r]]] = 0.5**0.5
        transform[row + 1, [entry[r, c], entry[c, r]]] = -1j * 0.5**0.5, 1j * 0.5**0.5
        phases[:, d // 2 + k] = coefficients[:, entry[r, c]]
    return transform, phases


def _pair_up(stages: Stages) -> Stages:
    """Dense complex maps → real maps of the paired basis; the change from product basis goes into the first map."""
    n = stages.n_qubits
    transform, _ = paired_basis(n)
    everything = tuple(range(n))
    from_product = np.eye(1)
    for _ in range(n):
        from_product = np.kron(from_product, REAL_LOCAL.conj().T)

    def real(part: Part, enter: bool) -> Part:
        blocks: list[tuple[Block, ...]] = []
        for s, fused in enumerate(part.blocks):
            entering = from_product if s == 0 and enter else transform.conj().T
            blocks.append((Block(everything, (transform @ fused[0].matrix @ entering).real),))
        return Part(part.rotations, tuple(blocks), part.empty and not enter)

    in_body = not stages.body.empty
    return replace(stages, body=real(stages.body, in_body), tail=real(stages.tail, not in_body))


def _split(program: Program) -> tuple[list, list, list]:
    operations = program.operations
    # An operation belongs to prefix or body if a rotation by an input comes later on one of its qubits' light cones.
    feeds = [False] * len(operations)
    wanted: set[int] = set()
    for i in range(len(operations) - 1, -1, -1):
        operation = operations[i]
        reads = isinstance(operation, Rotation) and program.depends_on_input(operation)
        if reads or wanted & set(operation.qubits):
            feeds[i] = True
            wanted |= set(operation.qubits)
    prefix: list = []
    body: list = []
    tail: list = []
    met: set[int] = set()
    for i, operation in enumerate(operations):
        if len(operation.qubits) > 1:
            met |= set(operation.qubits)
        if not feeds[i]:
            tail.append(operation)
        elif met & set(operation.qubits):
            body.append(operation)
        else:
            prefix.append(operation)
    return prefix, body, tail


def _levels(operations: list, n: int) -> tuple[np.ndarray, list[list[FixedMap]]]:
    """Pack operations into as few stages as their order allows: fixed maps, rotations, fixed maps, rotations, …"""
    level = [0] * n
    segments: list[list[FixedMap]] = [[]]
    stages: list[list[int]] = []
    for operation in operations:
        at = max(level[q] for q in operation.qubits)
        if isinstance(operation, Rotation):
            if at == len(stages):
                stages.append([-1] * n)
                segments.append([])
            stages[at][operation.qubit] = operation.index
            level[operation.qubit] = at + 1
        else:
            segments[at].append(operation)
            for q in operation.qubits:
                level[q] = at
    return np.array(stages, dtype=np.int64).reshape(len(stages), n), segments


def _matrix(operation: FixedMap, basis: Basis) -> np.ndarray:
    """The map in the local basis: the unitary, or the channel on row-major |r⟩⟨c| of each qubit."""
    if basis == "state":
        return operation.unitary
    k = len(operation.qubits)
    superop = operation.superop
    if superop is None:
        superop = np.kron(operation.unitary.conj(), operation.unitary)
    # vec(ρ) by columns: index bits (c_k-1 … c_0, r_k-1 … r_0)  →  (r_k-1 c_k-1 … r_0 c_0)
    order = [axis for j in range(k) for axis in (k + j, j)]
    tensor = superop.reshape([2] * (4 * k)).transpose(order + [2 * k + axis for axis in order])
    return tensor.reshape(4**k, 4**k)


def embed(matrix: np.ndarray, qubits: tuple[int, ...], target: tuple[int, ...], b: int) -> np.ndarray:
    """The matrix on `qubits` as a matrix on `target`, a superset of them; little-endian in both."""
    places = tuple(target.index(q) for q in qubits)
    return _apply_local(matrix, places, np.eye(b ** len(target), dtype=complex), len(target), b)


def _fuse(segment: list[FixedMap], n: int, basis: Basis) -> list[Block]:
    """Multiply neighbouring maps together: everything into one matrix if small enough, else per pair of qubits."""
    b = LOCAL_DIMENSION[basis]
    if n <= DENSE_QUBITS[basis]:
        everything = tuple(range(n))
        product = np.eye(b**n, dtype=complex)
        for operation in segment:
            product = _apply_local(_matrix(operation, basis), operation.qubits, product, n, b)
        return [Block(everything, product)]
    blocks: list[Block] = []
    pending: dict[int, np.ndarray] = {}  # one-qubit maps waiting for the next pair on their qubit
    last: dict[int, int] = {}  # qubit -> index of the last block on it
    for operation in segment:
        matrix = _matrix(operation, basis)
        if len(operation.qubits) == 1:
            (q,) = operation.qubits
            if q in last:
                block = blocks[last[q]]
                blocks[last[q]] = Block(block.qubits, embed(matrix, (q,), block.qubits, b) @ block.matrix)
            else:
                pending[q] = matrix @ pending.get(q, np.eye(b))
            continue
        pair = operation.qubits
        before = {last.get(q) for q in pair}
        if len(before) == 1 and None not in before and set(blocks[last[pair[0]]].qubits) == set(pair):
            block = blocks[last[pair[0]]]
            blocks[last[pair[0]]] = Block(block.qubits, embed(matrix, pair, block.qubits, b) @ block.matrix)
            continue
        for q in pair:
            if q in pending:
                matrix = matrix @ embed(pending.pop(q), (q,), pair, b)
            last[q] = len(blocks)
        blocks.append(Block(pair, matrix))
    return [Block((q,), matrix) for q, matrix in sorted(pending.items())] + blocks


def _apply_local(matrix: np.ndarray, qubits: tuple[int, ...], columns: np.ndarray, n: int, b: int) -> np.ndarray:
    k = len(qubits)
    tensor = columns.reshape([b] * n + [columns.shape[1]])
    axes = [n - 1 - q for q in reversed(qubits)]
    moved = np.moveaxis(tensor, axes, range(k))
    shape = moved.shape
    moved = (matrix @ moved.reshape(b**k, -1)).reshape(shape)
    return np.moveaxis(moved, range(k), axes).reshape(columns.shape)
