"""What is read out at the end of a circuit: expectation values and their adjoint, outcomes, readout errors, shots.

Everything here is NumPy on the rows of a simulation (`fusion` says what they are), or on probabilities of outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.fusion import REAL_LOCAL, Basis, Precision

# One observable: (coefficient, Pauli label) of each term, label[q] the factor of qubit q
Terms = tuple[tuple[float, str], ...]
# One Pauli string of an observable: (observable, coefficient, Pauli label)
Member = tuple[int, float, str]
PAULI = {
    "I": np.eye(2),
    "X": np.array([[0, 1], [1, 0]]),
    "Y": np.array([[0, -1j], [1j, 0]]),
    "Z": np.diag([1, -1]),
}


class StateObservables:
    """Pauli sums on state rows [2·2^n, B]: ⟨O⟩ = Σ_masks Σ_i conj(ψ_i) ψ_{i⊕mask} c_mask[i].

    Args:
        observables: per observable the terms (coefficient, Pauli label), label[q] is qubit q's factor.
        n_qubits: number of qubits.
        dtype: np.float32 or np.float64.
        readout: (p10, p01) of every qubit, as in `DensityObservables`; None: no errors.
    """

    rows = np.zeros((0, 0))  # nothing is taken backwards

    def __init__(
        self,
        observables: Sequence[Terms],
        n_qubits: int,
        dtype: Precision,
        readout: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        readout = readout or ((0.0, 0.0),) * n_qubits
        self.n_states, self.n_observables = 2**n_qubits, len(observables)
        index = np.arange(self.n_states)
        masks: dict[int, np.ndarray] = {}
        for m, terms in enumerate(observables):
            for coefficient, label in (one for term in terms for one in _read_with_errors(*term, readout)):
                mask, value = 0, np.full(self.n_states, coefficient, dtype=complex)
                for q, factor in enumerate(label):
                    bit = (index >> q) & 1
                    if factor in "XY":
                        mask |= 1 << q
                    if factor == "Z":
                        p10, p01 = readout[q]
                        value = value * ((1 - p10 - p01) * (1 - 2 * bit) + (p01 - p10))
                    elif factor == "Y":  # ⟨i|Y|i⊕1⟩: -i in row 0, +i in row 1
                        value = value * np.where(bit == 0, -1j, 1j)
                masks.setdefault(mask, np.zeros((self.n_observables, self.n_states), dtype=complex))[m] += value
        complex_type = np.complex64 if dtype is np.float32 else np.complex128
        self.diagonal = masks.pop(0, np.zeros((0, 0))).real.astype(dtype)  # [M, 2^n]
        self.flips = [(index ^ mask, values.astype(complex_type)) for mask, values in masks.items()]
        self.bytes = self.diagonal.nbytes + sum(values.nbytes for _, values in self.flips)

    def __len__(self) -> int:
        return self.n_observables

    def values(self, rows: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """Rows [2·2^n, B] → [B, M]; `measured` is not used."""
        real, imaginary = rows[: self.n_states], rows[self.n_states :]
        if len(self.diagonal):
            power = rows * rows
            total = self.diagonal @ (power[: self.n_states] + power[self.n_states :])
        else:
            total = np.zeros((self.n_observables, rows.shape[1]), rows.dtype)
        if self.flips:
            psi = real + 1j * imaginary
            for permutation, values in self.flips:
                total += (values @ (psi.conj() * psi[permutation])).real
        return total.T

    def values_in_torch(self, rows: Tensor) -> Tensor:
        """Rows [2·2^n, B] → [B, M], on torch's own tape."""
        real, imaginary = rows[: self.n_states], rows[self.n_states :]
        total = real.new_zeros(self.n_observables, 1)
        if len(self.diagonal):
            total = total + torch.from_numpy(self.diagonal) @ (real.square() + imaginary.square())
        for permutation, values in self.flips:
            index = torch.from_numpy(permutation)
            turned_real, turned_imaginary = real[index], imaginary[index]
            by_real = torch.from_numpy(values.real.copy()) @ (real * turned_real + imaginary * turned_imaginary)
            by_imaginary = torch.from_numpy(values.imag.copy()) @ (real * turned_imaginary - imaginary * turned_real)
            total = total + by_real - by_imaginary
        return total.T

    def adjoint(self, rows: np.ndarray, cotangent: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """Rows [2·2^n, B] and cotangent [B, M] → derivative by the rows [2·2^n, B]: 2 (Σ_m v_m O_m) ψ."""
        if len(self.diagonal):
            weight = self.diagonal.T @ (2 * cotangent.T)
            result = (rows.reshape(2, self.n_states, -1) * weight).reshape(rows.shape)
        else:
            result = np.zeros_like(rows)
        if self.flips:
            psi = rows[: self.n_states] + 1j * rows[self.n_states :]
            for permutation, values in self.flips:
                turned = 2 * (values.T @ cotangent.T) * psi[permutation]  # one of O and O† = O, which holds both terms
                result[: self.n_states] += turned.real
                result[self.n_states :] += turned.imag
        return result


def _read_with_errors(
    coefficient: float, label: str, readout: Sequence[tuple[float, float]]
) -> list[tuple[float, str]]:
    """A Pauli string with (1−p10−p01)·P + (p01−p10)·I for every factor P = X or Y; Z is left as it is."""
    terms = [(coefficient, label)]
    for q, factor in enumerate(label):
        p10, p01 = readout[q]
        if factor in "XY" and (p10 or p01):
            without = [(c * (p01 - p10), text[:q] + "I" + text[q + 1 :]) for c, text in terms] if p01 != p10 else []
            terms = [(c * (1 - p10 - p01), text) for c, text in terms] + without
    return terms


class DensityObservables:
    """Pauli sums on density rows [4^n, B]; each measured qubit's factor P becomes (1−p10−p01)·P + (p01−p10)·I.

    That is what independent readout errors do to the ±1 outcomes of a Pauli string measured in its own basis.

    Args:
        observables: per observable the terms (coefficient, Pauli label), label[q] is qubit q's factor.
        readout: (p10, p01) of every qubit.
        dtype: np.float32 or np.float64.
    """

    def __init__(self, observables: Sequence[Terms], readout: Sequence[tuple[float, float]], dtype: Precision) -> None:
        self.rows = np.empty((4 ** len(readout), len(observables)), dtype)  # [4^n, M]
        for index, terms in enumerate(observables):
            column = np.zeros(4 ** len(readout))
            for coefficient, label in terms:
                vector = np.array([coefficient])
                for q in reversed(range(len(readout))):
                    factor = PAULI[label[q]]
                    if label[q] != "I":
                        p10, p01 = readout[q]
                        factor = (1 - p10 - p01) * factor + (p01 - p10) * np.eye(2)
                    vector = np.kron(
                        vector, (REAL_LOCAL.conj() @ factor.T.reshape(-1)).real
                    )  # tr(Pρ) = Σ P[c, r] ρ[r, c]
                column += vector
            self.rows[:, index] = column
        self.bytes = self.rows.nbytes

    def __len__(self) -> int:
        return self.rows.shape[1]

    def values(self, rows: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """Rows [4^n, B] and observables taken so far back, measured [4^n, M] → [B, M]."""
        result: np.ndarray = rows.T @ measured
        return result

    def values_in_torch(self, rows: Tensor) -> Tensor:
        """Rows [4^n, B] at the end of the circuit → [B, M], on torch's own tape."""
        return rows.T @ torch.from_numpy(self.rows)

    def adjoint(self, rows: np.ndarray, cotangent: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """Cotangent [B, M] → derivative by the rows [4^n, B]."""
        return np.ascontiguousarray(measured @ cotangent.T)


# What turns a measurement of Z into one of the Pauli: its eigenvectors, conjugated, as rows.
TO_Z = {"X": np.array([[1, 1], [1, -1]]) / np.sqrt(2), "Y": np.array([[1, -1j], [1, 1j]]) / np.sqrt(2)}


def outcome_probabilities(rows: np.ndarray, pauli: str, basis: Basis) -> np.ndarray:
    """Rows [D, B] → [B, 2^n] float64: probabilities with qubit q measured in the basis pauli[q] (I as Z)."""
    n, columns = len(pauli), rows.shape[1]
    if basis == "state":
        psi = rows[: 2**n].astype(np.float64) + 1j * rows[2**n :]
        for q, factor in enumerate(pauli):
            if factor in TO_Z:
                psi = _on_qubit(psi, TO_Z[factor], q, 2)
        return (np.abs(psi) ** 2).T
    rho = rows.astype(np.float64)
    for q, factor in enumerate(pauli):
        change = TO_Z.get(factor, np.eye(2))
        # populations after the change of basis, from the four real coordinates of the qubit
        effects = [np.outer(row.conj(), row) for row in change]
        read = np.array([(REAL_LOCAL.conj() @ effect.T.reshape(-1)).real for effect in effects])  # [2, 4]
        rho = _on_qubit(rho, read, q, 4, lower=2)
    return rho.reshape(2**n, columns).T.clip(0)


def _on_qubit(array: np.ndarray, matrix: np.ndarray, q: int, size: int, lower: int | None = None) -> np.ndarray:
    """Apply `matrix` to qubit q's axis; qubits below q have dimension `lower` (default: as q's)."""
    below = (lower or size) ** q
    shaped = array.reshape(-1, size, below, array.shape[-1])
    result: np.ndarray = np.einsum("ij,ajbc->aibc", matrix, shaped)
    return result.reshape(-1, array.shape[-1])


def readout_matrix(p10: float, p01: float) -> np.ndarray:
    """[2, 2] P(outcome read | true outcome) of one qubit, with p10 = P(read 1 | true 0), p01 = P(read 0 | true 1)."""
    return np.array([[1 - p10, p01], [p10, 1 - p01]])


def with_readout_errors(probabilities: np.ndarray, readout: Sequence[tuple[float, float]]) -> np.ndarray:
    """[B, 2^n] of true outcomes → of outcomes read, every qubit with its own (p10, p01)."""
    result = probabilities.T
    for q, (p10, p01) in enumerate(readout):
        result = _on_qubit(result, readout_matrix(p10, p01), q, 2)
    return result.T


def measurement_groups(observables: tuple[Terms, ...]) -> list[tuple[str, list[Member]]]:
    """Pauli strings that can be measured together, qubit by qubit in one basis.

    Returns:
        (basis, members) a group: basis[q] is I, X, Y or Z; members are (observable, coefficient, Pauli label).
        Constant terms are in no group. Greedy, in the order given: strings of Z only always make one group.
    """
    groups: list[tuple[str, list[Member]]] = []
    for index, terms in enumerate(observables):
        for coefficient, label in terms:
            if not label.strip("I"):
                continue
            for at, (basis, members) in enumerate(groups):
                if all("I" in pair or pair[0] == pair[1] for pair in zip(basis, label, strict=True)):
                    merged = "".join(b if p == "I" else p for b, p in zip(basis, label, strict=True))
                    groups[at] = (merged, [*members, (index, coefficient, label)])
                    break
            else:
                groups.append((label, [(index, coefficient, label)]))
    return groups


# -- finite shots ------------------------------------------------------------------------------------------------------


def check_shots(shots: int) -> None:
    """Raise InvalidInputError unless `shots` is a whole number from 1."""
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
        raise InvalidInputError(f"shots is {shots!r}; allowed: whole numbers from 1")


def draw_counts(probabilities: np.ndarray, shots: int | np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Counts of outcomes, int64 [B, d], drawn from multinomial distributions.

    Args:
        probabilities: [B, d] float64; each row sums to 1.
        shots: of every row, or int64 [B].
        generator: of the outcomes.
    """
    return generator.multinomial(shots, probabilities)


def outcome_values(observables: tuple[Terms, ...], members: Sequence[Member], n: int) -> np.ndarray:
    """[n outcomes, M]: what each joint outcome adds to each observable.

    Args:
        observables: M of them.
        members: the Pauli strings that are measured together.
        n: 2^qubits.
    """
    result = np.zeros((n, len(observables)))
    for observable, coefficient, label in members:
        result[:, observable] += coefficient * parity(label)
    return result


def parity(label: str) -> np.ndarray:
    """[2^n] the value ±1 of a Pauli string for each outcome of its factors; label[q] is qubit q's factor."""
    index = np.arange(2 ** len(label))
    sign = np.ones(len(index))
    for q, factor in enumerate(label):
        if factor != "I":
            sign *= 1 - 2 * ((index >> q) & 1)
    return sign


# -- all strings of Z --------------------------------------------------------------------------------------------------

MAX_QUBITS = 12


def z_signs(n_qubits: int) -> np.ndarray:
    """[2^n, 2^n] (−1)^(s·x): ⟨Z^s⟩ (row s) of basis state x (column); qubit q is bit q of both."""
    result: np.ndarray = np.ones((1, 1))
    for _ in range(n_qubits):
        result = np.kron([[1, 1], [1, -1]], result)
    return result


def all_z_strings(n_qubits: int) -> tuple[SparsePauliOp, ...]:
    """The 2^n observables Z^s, s = 0 … 2^n−1: qubit q carries Z where bit q of s is 1 (s = 0 is the identity).

    They are measured together, in one circuit. `outcome_distribution` turns their values into probabilities.

    Raises:
        InvalidInputError: n_qubits outside 1–12.
    """
    if not isinstance(n_qubits, int) or not 1 <= n_qubits <= MAX_QUBITS:
        raise InvalidInputError(f"n_qubits is {n_qubits!r}; allowed: 1 to {MAX_QUBITS} (there are 2^n strings)")
    labels = ["".join("Z" if s >> q & 1 else "I" for q in reversed(range(n_qubits))) for s in range(2**n_qubits)]
    return tuple(SparsePauliOp(label) for label in labels)


def outcome_distribution(values: np.ndarray) -> np.ndarray:
    """⟨Z^s⟩ [..., 2^n] → probabilities [..., 2^n] of the outcomes: p(x) = 2^−n Σ_s (−1)^(s·x) ⟨Z^s⟩.

    Exact values give exact probabilities. Values with noise of their own may give small negative ones: they are left as
    they are, so that the estimate stays unbiased.

    Raises:
        InvalidInputError: the last axis is not a power of two, or the first value (of the identity) is not 1.
    """
    values = np.asarray(values, dtype=float)
    size = values.shape[-1] if values.ndim else 0
    if size < 2 or size & (size - 1):
        raise InvalidInputError(f"values have {size} entries along the last axis; 2^n are needed (all_z_strings(n))")
    if not np.allclose(values[..., 0], 1, atol=1e-3):
        raise InvalidInputError("the first value belongs to the identity and must be 1: give the values in order")
    result = values.reshape(-1, size)
    step = 1
    while step < size:  # fast Walsh–Hadamard transform, one bit at a time
        pairs = result.reshape(len(result), -1, 2, step)
        result = np.concatenate([pairs[:, :, :1] + pairs[:, :, 1:], pairs[:, :, :1] - pairs[:, :, 1:]], axis=2)
        result = result.reshape(-1, size)
        step *= 2
    return (result / size).reshape(values.shape)
