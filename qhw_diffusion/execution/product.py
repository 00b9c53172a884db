"""Single-qubit blocks on |0…0⟩, as one vector a qubit: the density matrix they make is never multiplied out.

Where inputs enter a circuit in its first layer alone, all that a sample goes through by itself is one block a qubit
(`fusion`). With noise that would be 4^n rows a sample. Here it is 4 rows a qubit, multiplied to two halves of √(4^n)
rows each, and the M observables, taken back through the rest of the circuit, are bilinear forms of these halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qhw_diffusion.execution.gate_sequence import Built, GateSequence, Moment


@dataclass(frozen=True, eq=False)
class ProductTrace:
    """What a forward pass leaves for the backward pass.

    Attributes:
        built: matrices of the blocks whose angles the columns share (False), or have one each (True).
        vectors: [4, B or 1] of each qubit.
        low: products [1, B], [4, B], [16, B], … of those of the lower half of the qubits.
        high: the same of the upper half.
        partly: [4^low, M, B] the observables multiplied by the upper half.
    """

    built: dict[bool, Built]
    vectors: list[np.ndarray]
    low: list[np.ndarray]
    high: list[np.ndarray]
    partly: np.ndarray


class ProductState:
    """What a sequence of single-qubit blocks makes of |0…0⟩, measured.

    Args:
        sequence: one that `fits`.
    """

    def __init__(self, sequence: GateSequence) -> None:
        self.sequence, self.half = sequence, sequence.n_qubits // 2
        self._blocks: dict[int, tuple[bool, int]] = {}  # of a qubit: which table, and the number in it
        for step in sequence.steps:
            assert isinstance(step, Moment)
            for k, q in enumerate(step.places):
                self._blocks[int(q)] = step.per_column, step.select.start + k
        self._zero = np.eye(4, 1, dtype=sequence.dtype)

    @staticmethod
    def fits(sequence: object) -> bool:
        """Whether it is a sequence on density matrices of single-qubit blocks alone, at most one a qubit."""
        if not isinstance(sequence, GateSequence) or sequence.basis != "density":
            return False
        moments = [step for step in sequence.steps if isinstance(step, Moment)]
        places = [q for moment in moments for q in moment.places]
        return len(moments) == len(sequence.steps) and len(set(places)) == len(places)

    def forward(
        self, angles: np.ndarray, measured: np.ndarray, keep: bool, shared: Any
    ) -> tuple[np.ndarray, ProductTrace | None]:
        """Angles [R, B] and observables [4^n, M] → values [B, M], and what `backward` needs (if `keep`).

        `shared`: what the sequence's `shared` gives for these angles.
        """
        built, batch = self.sequence.build(angles, shared), angles.shape[1]
        vectors = [self._vector(q, built) for q in range(self.sequence.n_qubits)]
        one = np.ones((1, batch), self.sequence.dtype)
        low, high = _products(one, vectors[: self.half]), _products(one, vectors[self.half :])
        partly = (self._by_high(measured).T @ high[-1]).reshape(len(low[-1]), -1, batch)
        values = np.einsum("lmb,lb->bm", partly, low[-1])
        return values, ProductTrace(built, vectors, low, high, partly) if keep else None

    def backward(
        self, cotangent: np.ndarray, kept: ProductTrace, measured: np.ndarray, shared: np.ndarray, slopes: np.ndarray,
        by_measured: bool,
    ) -> np.ndarray | None:  # fmt: skip
        """Derivatives [B, M] by the values → [4^n, M] by the observables (if `by_measured`).

        Those by angles are added to `shared` [R, 1] and `slopes` [R, B], as in `GateSequence.backward`.
        """
        low, high = kept.low[-1], kept.high[-1]
        weighted = (low[:, None, :] * cotangent.T).reshape(-1, low.shape[1])  # [4^low · M, B]
        by_low = np.einsum("lmb,bm->lb", kept.partly, cotangent)
        by_high = self._by_high(measured) @ weighted
        below, above = kept.vectors[: self.half], kept.vectors[self.half :]
        by_vectors = _back(by_low, kept.low, below) + _back(by_high, kept.high, above)
        outer = {
            kind: np.zeros((table.n_blocks, 4, 4, low.shape[1]), low.dtype)
            for kind, table in self.sequence.tables.items()
        }
        for q, (kind, number) in self._blocks.items():
            outer[kind][number, :, 0] = by_vectors[q]
        outer[False] = outer[False].sum(3, keepdims=True)
        self.sequence.slopes(kept.built, outer, shared, slopes)
        return (high @ weighted.T).reshape(measured.shape) if by_measured else None

    def column_bytes(self, observables: int) -> int:
        """Bytes that are kept of a sample."""
        low, high = 4**self.half, 4 ** (self.sequence.n_qubits - self.half)
        return (observables * low + 2 * (low + high)) * np.dtype(self.sequence.dtype).itemsize

    def _vector(self, q: int, built: dict[bool, Built]) -> np.ndarray:
        if q not in self._blocks:
            return self._zero
        kind, number = self._blocks[q]
        return built[kind].steps[self.sequence.tables[kind].last[number], :, 0]

    def _by_high(self, measured: np.ndarray) -> np.ndarray:
        return measured.reshape(4 ** (self.sequence.n_qubits - self.half), -1)


def _products(one: np.ndarray, vectors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Vectors [4, B or 1] → the product of none of them, `one` [1, B], of the first, of two, …, [16, B].

    The index of the first varies fastest.
    """
    made = [one]
    for vector in vectors:
        made.append((vector[:, None] * made[-1]).reshape(-1, one.shape[1]))
    return made


def _back(by_product: np.ndarray, products: list[np.ndarray], vectors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The derivative by the last product → those by the vectors, [4, B]."""
    found = []
    for made, vector in zip(products[-2::-1], reversed(vectors), strict=True):
        by = by_product.reshape(4, *made.shape)
        found.append((by * made).sum(1))
        by_product = (by * vector[:, None]).sum(0)
    return found[::-1]
