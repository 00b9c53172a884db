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
    """Matrices [blocks, 4, 4(, B)] of a table's blocks, and what the derivatives by their angles need."""

    matrices: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True, eq=False)
class Trace:
    """What a forward pass leaves for the backward pass.

    Attributes:
        copies: the rows before each moment of blocks; of an orthogonal sequence only the result, which is taken
            backwards.
        built: matrices of the blocks whose angles the columns share (False), or have one each (True).
    """

    copies: list[np.ndarray]
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
        self.moves = any(isinstance(step, Permutation) for step in self.steps)
        self.multiplies = any(isinstance(step, Product) for step in self.steps)
        self.tables = {kind: BlockTable(blocks, dtype) for kind, blocks in tables.items()}
        self.orthogonal = basis == "state" and all(
            np.allclose(m @ m.T, np.eye(len(m)), atol=1e-9)
            for node in nodes
            for m in (node.fixed if isinstance(node, FusedBlock) else (node.matrix,))
        )

    @cached_property
    def n_kept(self) -> int:
        """Copies of the rows that the backward pass needs: one a moment of blocks, one a block of that in work."""
        moments = [len(step.places) for step in self.steps if isinstance(step, Moment)]
        return 1 if self.orthogonal else len(moments) + max(moments, default=0)

    def shared(self, angles: np.ndarray) -> Built:
        """The matrices of the blocks whose angles all columns share, of angles [R, B or 1]."""
        return self._build(self.tables[False], angles, False)

    def forward(
        self, x: np.ndarray, angles: np.ndarray, keep: bool, shared: Built | None = None
    ) -> tuple[np.ndarray, Trace | None]:
        """Rows [D, B] (overwritten) and angles [R, B or 1] → rows [D, B], and what `backward` needs (if `keep`).

        `shared`: what `shared` gave for angles that were the same in what the columns share.
        """
        built = {False: self.shared(angles) if shared is None else shared}
        built[True] = self._build(self.tables[True], angles, True)
        copies: list[np.ndarray] = []
        spare = np.empty_like(x) if self.moves else x
        scratch = np.empty((16, x.shape[1] if self.multiplies else 0), self.dtype)
        for step in self.steps:
            if isinstance(step, Moment):
                if keep and not self.orthogonal:
                    copies.append(x.copy())
                apply = kernel.apply_rows if step.per_column else kernel.apply_shared
                apply(x, self.bases, self.offsets, step.places, built[step.per_column].matrices[step.select])
            elif isinstance(step, Permutation):
                kernel.move_rows(x, spare, step.source, step.sign)
                x, spare = spare, x
            else:
                kernel.apply_map(x, step.bases, step.offsets, step.matrix, scratch)
        if keep and self.orthogonal:
            copies.append(x)
        return x, Trace(copies, built) if keep else None

    def backward(self, adjoint: np.ndarray, trace: Trace, shared: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Derivatives [D, B] by the result (overwritten) → by the start.

        Derivatives by angles are added to `slopes` [R, B], or to `shared` [R, 1] (summed over the columns) where all
        columns share the angle.
        """
        built, copies = trace.built, list(trace.copies)
        back = {kind: np.ascontiguousarray(b.matrices.swapaxes(1, 2)) for kind, b in built.items()}
        outer = {kind: np.empty_like(b.matrices) for kind, b in built.items()}
        spare, scratch = np.empty_like(adjoint), np.empty((16, adjoint.shape[1]), self.dtype)
        x = copies.pop().copy() if self.orthogonal else adjoint
        for step in reversed(self.steps):
            if isinstance(step, Moment):
                kind = step.per_column
                before = x if self.orthogonal else copies.pop()
                self._pull(step, adjoint, before, built[kind].matrices, back[kind], outer[kind])
            elif isinstance(step, Permutation):
                kernel.move_rows(adjoint, spare, step.source_back, step.sign_back)
                adjoint, spare = spare, adjoint
                if self.orthogonal:
                    kernel.move_rows(x, spare, step.source_back, step.sign_back)
                    x, spare = spare, x
            else:
                turned = np.ascontiguousarray(step.matrix.T)
                kernel.apply_map(adjoint, step.bases, step.offsets, turned, scratch)
                if self.orthogonal:
                    kernel.apply_map(x, step.bases, step.offsets, turned, scratch)
        for kind, b in built.items():
            table, slope = self.tables[kind], slopes if kind else shared
            if len(table.rotation):
                by_turn = np.zeros((len(table.used), slope.shape[1]), self.dtype)
                s = outer[kind] if kind else outer[kind][..., None]
                kernel.block_slopes(
                    table.first, table.rotation, table.fixed, b.cos, b.sin, self.sign, b.steps, s, by_turn
                )
                slope[table.used] += self.rate * by_turn
        return adjoint

    def _pull(
        self, step: Moment, adjoint: np.ndarray, x: np.ndarray, g: np.ndarray, back: np.ndarray, outer: np.ndarray
    ) -> None:
        """Take the blocks of a moment back one by one: a derivative by a block's matrix needs the rows just before it.

        x is from after the moment if the sequence is orthogonal, and taken back too; else from before, and done again.
        """
        apply = kernel.apply_rows if step.per_column else kernel.apply_shared
        outer_product = kernel.outer_rows if step.per_column else kernel.outer_shared
        bases, offsets = self.bases, self.offsets
        g, back, outer = g[step.select], back[step.select], outer[step.select]
        blocks = [(step.places[r : r + 1], slice(r, r + 1)) for r in range(len(step.places))]
        befores = [x]
        if not self.orthogonal:
            for place, r in blocks[:-1]:
                befores.append(befores[-1].copy())
                apply(befores[-1], bases, offsets, place, g[r])
        for place, r in reversed(blocks):
            if self.orthogonal:
                apply(x, bases, offsets, place, back[r])
            else:
                x = befores.pop()
            outer_product(adjoint, x, bases, offsets, place, outer[r])
            apply(adjoint, bases, offsets, place, back[r])

    def _build(self, table: BlockTable, angles: np.ndarray, per_column: bool) -> Built:
        turns = self.rate * (angles if per_column else angles[:, :1])[table.used]
        cos, sin = np.cos(turns), np.sin(turns)
        steps = np.empty((*table.fixed.shape, cos.shape[1]), self.dtype)
        kernel.build_blocks(table.first, table.rotation, table.fixed, cos, sin, self.sign, steps)
        matrices = steps[table.last]
        return Built(matrices if per_column else matrices[..., 0], cos, sin, steps)

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
