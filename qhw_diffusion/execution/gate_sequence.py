"""A circuit's operations as a sequence of fused steps on real rows [D, B] (`fusion`), forwards and backwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qhw_diffusion.execution import kernel
from qhw_diffusion.execution.fusion import (
    RATE,
    SIGN,
    Basis,
    FusedBlock,
    FusedMap,
    Precision,
    dimension,
    fuse,
    in_moments,
    is_monomial,
)
from qhw_diffusion.execution.program import FixedMap, Program, Rotation


@dataclass(frozen=True, eq=False)
class Moment:
    """Fused blocks of one moment.

    Attributes:
        per_column: whether every column has angles of its own.
        select: entries of the sequence's table of such blocks.
        places: their qubits.
    """

    per_column: bool
    select: slice
    places: np.ndarray


@dataclass(frozen=True, eq=False)
class Product:
    """A fixed matrix [d, d] on `qubits`, little-endian: on the rows bases[k] + offsets[:] of every group k."""

    qubits: tuple[int, ...]
    bases: np.ndarray
    offsets: np.ndarray
    matrix: np.ndarray


@dataclass(frozen=True, eq=False)
class Permutation:
    """y[i] = sign[i] · x[source[i]], and the same backwards."""

    source: np.ndarray
    sign: np.ndarray
    source_back: np.ndarray
    sign_back: np.ndarray


class BlockTable:
    """Fused blocks with the same kind of angles (shared by all columns, or one a column), and their matrices.

    `rotation` counts among the angles in use, whose rows of all angles are `used`.
    """

    def __init__(self, blocks: Sequence[FusedBlock], dtype: Precision) -> None:
        self.first = np.cumsum([0, *(len(block.rotations) for block in blocks)]).astype(np.int64)
        rotations = np.array([r for block in blocks for r in block.rotations], dtype=np.int64)
        self.used, self.rotation = np.unique(rotations, return_inverse=True)
        self.fixed = np.array([f for block in blocks for f in block.fixed], dtype=dtype).reshape(-1, 4, 4)
        self.last = self.first[1:] + np.arange(1, len(blocks) + 1) - 1  # where the finished matrix of each block stands
        self.n_blocks = len(blocks)


@dataclass(frozen=True, eq=False)
class Built:
    """Matrices of a table's blocks, steps [·, 4, 4, B or 1] (`kernel.Table`), and the turns they are of."""

    cos: np.ndarray
    sin: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True, eq=False)
class Trace:
    """What a forward pass leaves for the backward pass.

    Attributes:
        copies: [moments, D, B] the rows before each moment of blocks; of an orthogonal sequence the result alone,
            [D, B], which is taken backwards.
        built: matrices of the blocks whose angles the columns share (False), or have one each (True).
    """

    copies: np.ndarray
    built: dict[bool, Built]


class GateSequence:
    """Operations on rows [D, B] that depend on angles [R, B] (or [R, 1] where all columns share them).

    Args:
        operations: rotations and fixed maps in time order.
        program: says which rotations depend on an input.
        basis: of the rows.
        noisy: take the maps with the device's noise (density only).
        dtype: np.float32 or np.float64.
        transposed: the transposed sequence, which moves observables backwards in time.
    """

    def __init__(
        self,
        operations: Sequence[Rotation | FixedMap],
        program: Program,
        basis: Basis,
        *,
        noisy: bool,
        dtype: Precision,
        transposed: bool = False,
    ) -> None:
        self.basis, self.dtype, self.n_qubits = basis, dtype, program.n_qubits
        self.n_rows = dimension(basis, program.n_qubits)
        self.row_bytes = self.n_rows * np.dtype(dtype).itemsize  # of one column
        nodes: list[FusedBlock | FusedMap] = fuse(operations, basis, noisy)
        if transposed:
            nodes = [node.transposed() for node in reversed(nodes)]
        self.rate = RATE[basis]
        self.sign = (-SIGN[basis] if transposed else SIGN[basis]).astype(dtype)  # transposed, a turn turns back
        self._places: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
        singles = [self._place((q,)) for q in range(self.n_qubits)]
        self.bases = np.stack([bases for bases, _ in singles])
        self.offsets = np.stack([offsets for _, offsets in singles])
        depends = np.asarray(program.input_coefficients.any(axis=1))
        self.steps: list[Moment | Permutation | Product] = []
        tables: dict[bool, list[FusedBlock]] = {False: [], True: []}
        for moment in in_moments(nodes, self.n_qubits):
            blocks = [node for node in moment if isinstance(node, FusedBlock)]
            maps = [node for node in moment if isinstance(node, FusedMap)]
            for per_column, table in tables.items():
                chosen = [b for b in blocks if bool(depends[list(b.rotations)].any()) == per_column]
                if chosen:
                    select = slice(len(table), len(table) + len(chosen))
                    self.steps.append(Moment(per_column, select, np.array([b.qubits[0] for b in chosen])))
                    table.extend(chosen)
            if maps and is_monomial(maps[0].matrix):
                self.steps.append(self._move(maps))
            else:
                self.steps += [
                    Product(m.qubits, *self._place(m.qubits), np.ascontiguousarray(m.matrix, dtype)) for m in maps
                ]
        self.tables = {kind: BlockTable(blocks, dtype) for kind, blocks in tables.items()}
        self.orthogonal = basis == "state" and all(
            np.allclose(m @ m.T, np.eye(len(m)), atol=1e-9)
            for node in nodes
            for m in (node.fixed if isinstance(node, FusedBlock) else (node.matrix,))
        )
        sign = np.array([*self.sign, self.rate], dtype)
        self._tables = {
            kind: kernel.Table(table.first, table.rotation, table.fixed, sign, table.used[table.rotation])
            for kind, table in self.tables.items()
        }
        self._forth, self._back = self._encoded()

    @cached_property
    def _moments(self) -> list[int]:
        """Blocks of each moment of blocks."""
        return [len(step.places) for step in self.steps if isinstance(step, Moment)]

    @cached_property
    def n_kept(self) -> int:
        """Copies of the rows that the backward pass needs: one a moment of blocks, one a block of that in work."""
        return 1 if self.orthogonal else len(self._moments) + max(self._moments, default=0)

    @cached_property
    def n_steps(self) -> int:
        """Times that all rows are changed."""
        return sum(len(step.places) if isinstance(step, Moment) else 1 for step in self.steps)

    @property
    def constants(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What kernels are given of all steps, and of what undoes them: sizes and addresses (`kernel.Steps`)."""
        return tuple((*s.sizes, *s.constants.addresses) for s in (self._forth, self._back))  # type: ignore[return-value]

    @property
    def own(self) -> np.ndarray:
        """Rotations whose derivatives come column by column."""
        return self.tables[True].used

    def shared(self, angles: np.ndarray) -> Built:
        """The matrices of the blocks whose angles all columns share, of angles [R, B or 1]."""
        return self._build(self.tables[False], angles, False)

    def forward(
        self, x: np.ndarray, angles: np.ndarray, keep: bool, shared: Built | None = None
    ) -> tuple[np.ndarray, Trace | None]:
        """Rows [D, B] (overwritten) and angles [R, B or 1] → rows [D, B], and what `backward` needs (if `keep`).

        `shared`: what `shared` gave for angles that were the same in what the columns share.
        """
        built = self.build(angles, shared)
        x, spare = np.ascontiguousarray(x), np.empty(x.shape, self.dtype)
        copies = np.empty((len(self._moments) if keep and not self.orthogonal else 0, *x.shape), self.dtype)
        x = (x, spare)[self._forth.evolve(x, spare, built[False].steps, built[True].steps, copies)]
        return x, Trace(x if self.orthogonal else copies, built) if keep else None

    def backward(self, adjoint: np.ndarray, trace: Trace, shared: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Derivatives [D, B] by the result (overwritten) → by the start.

        Derivatives by angles are added to `slopes` [R, B], or to `shared` [R, 1] (summed over the columns) where all
        columns share the angle.
        """
        built, copies = trace.built, trace.copies
        outer = {k: np.empty((self.tables[k].n_blocks, *b.steps.shape[1:]), self.dtype) for k, b in built.items()}
        matrices = built[False].steps, built[True].steps, outer[False], outer[True]
        adjoint = np.ascontiguousarray(adjoint)
        spare = np.empty_like(adjoint)
        if self.orthogonal:
            x = copies.copy()
            adjoint = (adjoint, x, spare)[self._back.pull_unitary(adjoint, x, spare, *matrices)]
        else:
            befores = np.empty((max(self._moments, default=1) - 1, *adjoint.shape), self.dtype)
            adjoint = (adjoint, spare)[self._back.pull(adjoint, spare, copies, befores, *matrices)]
        self.slopes(built, outer, shared, slopes)
        return adjoint

    def build(self, angles: np.ndarray, shared: Built | None = None) -> dict[bool, Built]:
        """The matrices of all blocks, of angles [R, B]; `shared`: as in `forward`."""
        built = {False: self.shared(angles) if shared is None else shared}
        return built | {True: self._build(self.tables[True], angles, True)}

    def slopes(
        self, built: dict[bool, Built], outer: dict[bool, np.ndarray], shared: np.ndarray, slopes: np.ndarray
    ) -> None:
        """Add derivatives by angles, as `backward`, from those by the matrices, `outer` [blocks, 4, 4, B or 1]."""
        for kind, b in built.items():
            self._tables[kind].slopes(b.cos, b.sin, b.steps, outer[kind], slopes if kind else shared)

    def _encoded(self) -> tuple[kernel.Steps, kernel.Steps]:
        """The steps as the kernels take them, and what undoes them."""
        code: list[tuple[int, int, int]] = []
        moves: dict[bytes, tuple[int, Permutation]] = {}  # equal ones once
        maps: dict[tuple[tuple[int, ...], bytes], tuple[int, tuple[int, ...]]] = {}
        indices: list[np.ndarray] = []
        matrices: list[np.ndarray] = []
        n_indices = n_entries = 0
        for step in self.steps:
            if isinstance(step, Moment):
                kind = kernel.OWN if step.per_column else kernel.SHARED
                first = step.select.start
                code += [(kind + 4 * (k == 0), first + k, int(q)) for k, q in enumerate(step.places)]
            elif isinstance(step, Permutation):
                move = step.source.tobytes() + step.sign.tobytes()
                code.append((kernel.MOVE, moves.setdefault(move, (len(moves), step))[0], 0))
            else:
                name = (step.qubits, step.matrix.tobytes())
                if name not in maps:
                    b, o = len(step.bases), len(step.offsets)
                    run = int(np.diff(np.sort(step.offsets)[:2])[0])  # bases that follow one another
                    maps[name] = len(maps), (n_indices, b, n_indices + b, o, n_entries, run)
                    indices += [step.bases, step.offsets]
                    matrices.append(step.matrix)
                    n_indices, n_entries = n_indices + b + o, n_entries + o * o
                code.append((kernel.MAP, maps[name][0], 0))
        steps = np.array(code, dtype=np.int64).reshape(-1, 3)
        places = np.array([place for _, place in maps.values()], dtype=np.int64).reshape(-1, 6)
        index = np.concatenate([*indices, np.zeros(0, np.int64)])

        def of(sources: list[np.ndarray], signs: list[np.ndarray], entries: list[np.ndarray]) -> kernel.Steps:
            return kernel.Steps(
                steps,
                self.bases,
                self.offsets,
                np.array(sources, dtype=np.int64).reshape(-1, self.n_rows),
                np.array(signs, dtype=self.dtype).reshape(-1, self.n_rows),
                places,
                index,
                np.concatenate([*(e.reshape(-1) for e in entries), np.zeros(0, self.dtype)]),
                self.tables[False].last,
                self.tables[True].last,
            )

        permutations = [step for _, step in moves.values()]
        forth = of([p.source for p in permutations], [p.sign for p in permutations], matrices)
        undone = [p.source_back for p in permutations], [p.sign_back for p in permutations]
        return forth, of(*undone, [m.T for m in matrices])

    def _build(self, table: BlockTable, angles: np.ndarray, per_column: bool) -> Built:
        turns = self.rate * (angles if per_column else angles[:, :1])[table.used]
        built = Built(np.cos(turns), np.sin(turns), np.empty((*table.fixed.shape, turns.shape[1]), self.dtype))
        self._tables[per_column].build(built.cos, built.sin, built.steps)
        return built

    def _place(self, qubits: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Rows a map on `qubits` (little-endian) acts on: bases [groups] + offsets [d]."""
        if qubits not in self._places:
            n = self.n_qubits
            if self.basis == "state":
                axes = [(2, 2**q) for q in qubits] + [(2, 2**n)]
            else:
                axes = [(4, 4**q) for q in qubits]
            offsets = np.zeros(1, dtype=np.int64)
            for size, stride in axes:  # least significant first
                offsets = (offsets[None, :] + stride * np.arange(size)[:, None]).reshape(-1)
            index = np.arange(self.n_rows)
            free = np.ones(self.n_rows, dtype=bool)
            for size, stride in axes:
                free &= (index // stride) % size == 0
            self._places[qubits] = (index[free], offsets)
        return self._places[qubits]

    def _move(self, nodes: Sequence[FusedMap]) -> Permutation:
        source, sign = np.arange(self.n_rows), np.ones(self.n_rows)
        for node in nodes:
            bases, offsets = self._place(node.qubits)
            columns = np.abs(node.matrix).argmax(axis=1)
            signs = node.matrix[np.arange(len(columns)), columns]
            local, local_sign = np.arange(self.n_rows), np.ones(self.n_rows)
            for i, j in enumerate(columns):
                local[bases + offsets[i]] = bases + offsets[j]
                local_sign[bases + offsets[i]] = np.sign(signs[i])
            source, sign = source[local], local_sign * sign[local]
        back = np.argsort(source)
        return Permutation(source, sign.astype(self.dtype), back, sign[back].astype(self.dtype))
