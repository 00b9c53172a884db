"""Adaptive observables: Hermitian operators on few neighbouring qubits, whose coefficients are trained.

H_j = Σ_P c_jP P over the Pauli strings P of a window of k qubits, the identity left out: 4^k − 1 real coefficients,
with which H_j is any Hermitian operator on the window up to a multiple of the identity (arXiv 2504.13414, where the
matrix is trained entry by entry). That multiple would shift the value by a constant that no state changes, and every
layer behind has a bias for it. A circuit is measured in the Pauli strings alone; the coefficients combine the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.errors import InvalidInputError, UnknownNameError

ADAPTIVE = "adaptive"
MAX_LOCALITY = 6
"""Most qubits of a window: 4^6 − 1 = 4095 coefficients, in 3^6 bases."""
_SHAPES = ("ring", "chain")
_GRAMMAR = f"'{ADAPTIVE}:K' (windows of K neighbouring qubits on a ring) or '{ADAPTIVE}:K:chain' (on a chain)"


@dataclass(frozen=True)
class AdaptiveObservables:
    """Observables with trainable coefficients, one for each window of qubits.

    `len` is their number. `compile_circuit(observables=…)` takes it; the coefficients belong to the `QuantumLayer`.
    They start as ⟨Z⟩ of each window's first qubit: coefficient 1 there, 0 elsewhere.

    Args:
        n_qubits: qubits of the circuit.
        windows: the qubits of each observable, 1 to 6 different ones; windows may overlap and repeat.

    Raises:
        InvalidInputError: no windows, or one that is not as said.
    """

    n_qubits: int
    windows: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        try:
            windows = tuple(tuple(window) for window in self.windows)
        except TypeError:
            windows = ()
        good = all(
            1 <= len(w) <= MAX_LOCALITY
            and len(set(w)) == len(w)
            and all(isinstance(q, (int, np.integer)) and not isinstance(q, bool) and 0 <= q < self.n_qubits for q in w)
            for w in windows
        )
        if not windows or not good:
            raise InvalidInputError(
                f"windows are {self.windows!r}; give one or more, each of 1 to {MAX_LOCALITY} different qubits of 0 to "
                f"{self.n_qubits - 1}: ((0, 1), (1, 2))"
            )
        object.__setattr__(self, "windows", tuple(tuple(int(q) for q in w) for w in windows))

    @classmethod
    def of(cls, text: str, n_qubits: int) -> AdaptiveObservables:
        """The observables of a text on so many qubits.

        ``adaptive:K`` has `n_qubits` windows (q, q+1, …, q+K−1), round a ring: as many values as ⟨Z⟩ of every qubit.
        ``adaptive:K:chain`` has the n_qubits − K + 1 of them that do not go round.

        Raises:
            UnknownNameError: another text.
            InvalidInputError: K outside 1 to 6, or above `n_qubits`.
        """
        size, shape = _parsed(text)
        if size > n_qubits:
            raise InvalidInputError(f"observables {text!r} take {size} neighbouring qubits, the circuit has {n_qubits}")
        starts = range(n_qubits if shape == "ring" else n_qubits - size + 1)
        return cls(n_qubits, tuple(tuple((start + step) % n_qubits for step in range(size)) for start in starts))

    def __len__(self) -> int:
        return len(self.windows)

    @cached_property
    def terms(self) -> tuple[tuple[int, int], ...]:
        """(observable, place of the Pauli string among `strings`) of each coefficient, in the coefficients' order.

        Observables in the order of the windows; in each, the strings IX, IY, IZ, XI, … with a letter for every qubit of
        the window in its order.
        """
        place = {label: at for at, label in enumerate(self._labels)}
        return tuple((j, place[label]) for j, window in enumerate(self.windows) for label in self._in_window(window))

    @cached_property
    def strings(self) -> tuple[SparsePauliOp, ...]:
        """The Pauli strings to measure, each once, sorted by their labels."""
        return tuple(SparsePauliOp(label) for label in self._labels)

    @property
    def n_coefficients(self) -> int:
        """Number of coefficients: 4^k − 1 for a window of k qubits, all windows together."""
        return sum(4 ** len(window) - 1 for window in self.windows)

    def start(self) -> np.ndarray:
        """[n_coefficients] float64, before training: Z on each window's first qubit."""
        z = ["".join("Z" if q == w[0] else "I" for q in reversed(range(self.n_qubits))) for w in self.windows]
        return np.array([float(self._labels[at] == z[j]) for j, at in self.terms])

    def operators(self, coefficients: Sequence[float]) -> tuple[SparsePauliOp, ...]:
        """H_j as a Pauli sum on the circuit's qubits, for given coefficients.

        Raises:
            InvalidInputError: another number of coefficients than `n_coefficients`.
        """
        if len(coefficients) != self.n_coefficients:
            raise InvalidInputError(f"{len(coefficients)} coefficients given; there are {self.n_coefficients}")
        sums: list[list[tuple[str, float]]] = [[] for _ in self.windows]
        for (j, at), coefficient in zip(self.terms, coefficients, strict=True):
            sums[j].append((self._labels[at], float(coefficient)))
        return tuple(SparsePauliOp.from_list(terms) for terms in sums)

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        return tuple(sorted({label for window in self.windows for label in self._in_window(window)}))

    def _in_window(self, window: tuple[int, ...]) -> list[str]:
        """Qiskit's labels of a window's strings, in the coefficients' order; the last letter is qubit 0."""
        labels = []
        for letters in product("IXYZ", repeat=len(window)):
            label = ["I"] * self.n_qubits
            for qubit, letter in zip(window, letters, strict=True):
                label[self.n_qubits - 1 - qubit] = letter
            labels.append("".join(label))
        return labels[1:]  # without the identity


def check_observables_text(text: str) -> None:
    """Refuse a text that `AdaptiveObservables.of` would refuse on any number of qubits.

    Raises:
        UnknownNameError, InvalidInputError: see there.
    """
    _parsed(text)


def _parsed(text: str) -> tuple[int, str]:
    """(K, ring or chain) of a text."""
    name, _, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    number, colon, shape = rest.partition(":")
    if name != ADAPTIVE or (colon and shape not in _SHAPES):
        raise UnknownNameError(f"unknown observables {text!r}; allowed: {_GRAMMAR}")
    if not (number.isascii() and number.isdecimal() and len(number) < 3 and 1 <= int(number) <= MAX_LOCALITY):
        raise InvalidInputError(f"observables {text!r}: K is {number!r}; allowed: 1 to {MAX_LOCALITY}, in {_GRAMMAR}")
    return int(number), shape or "ring"
