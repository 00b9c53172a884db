"""Expectation values and outcome distributions from the rows of a chain, and the adjoint of the former."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.execution.arrange import REAL_LOCAL, Basis, Precision

Terms = tuple[tuple[float, str], ...]
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
    """

    rows = np.zeros((0, 0))  # nothing is taken backwards

    def __init__(self, observables: Sequence[Terms], n_qubits: int, dtype: Precision) -> None:
        self.n_states, self.n_observables = 2**n_qubits, len(observables)
        index = np.arange(self.n_states)
        masks: dict[int, np.ndarray] = {}
        for m, terms in enumerate(observables):
            for coefficient, label in terms:
                mask, value = 0, np.full(self.n_states, coefficient, dtype=complex)
                for q, factor in enumerate(label):
                    bit = (index >> q) & 1
                    if factor in "XY":
                        mask |= 1 << q
                    if factor == "Z":
                        value = value * (1 - 2 * bit)
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
        """rows [2·2^n, B] → [B, M]; `measured` is not used."""
        real, imaginary = rows[: self.n_states], rows[self.n_states :]
        total = np.zeros((self.n_observables, rows.shape[1]), rows.dtype)
        if len(self.diagonal):
            total += self.diagonal @ (real * real + imaginary * imaginary)
        if self.flips:
            psi = real + 1j * imaginary
            for permutation, values in self.flips:
                total += (values @ (psi.conj() * psi[permutation])).real
        return total.T

    def values_in_torch(self, rows: Tensor) -> Tensor:
        """rows [2·2^n, B] → [B, M], on torch's own tape."""
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
        """rows [2·2^n, B] and cotangent [B, M] → derivative by the rows [2·2^n, B]: 2 (Σ_m v_m O_m) ψ."""
        real, imaginary = rows[: self.n_states], rows[self.n_states :]
        result = np.zeros_like(rows)
        if len(self.diagonal):
            weight = 2 * (self.diagonal.T @ cotangent.T)
            np.multiply(weight, real, out=result[: self.n_states])
            np.multiply(weight, imaginary, out=result[self.n_states :])
        if self.flips:
            psi = real + 1j * imaginary
            for permutation, values in self.flips:
                turned = 2 * (values.T @ cotangent.T) * psi[permutation]  # one of O and O† = O, which holds both terms
                result[: self.n_states] += turned.real
                result[self.n_states :] += turned.imag
        return result


class DensityObservables:
    """Pauli sums on density rows [4^n, B]; each measured qubit's factor P becomes (1−p10−p01)·P + (p01−p10)·I.

    That is what independent readout errors do to the ±1 outcomes of a Pauli string measured in its own basis.

    Args:
        observables: per observable the terms (coefficient, Pauli label), label[q] is qubit q's factor.
        readout: (p10, p01) of every qubit.
        dtype: np.float32 or np.float64.
    """

    def __init__(self, observables: Sequence[Terms], readout: Sequence[tuple[float, float]], dtype: Precision) -> None:
        columns = []
        for terms in observables:
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
            columns.append(column)
        self.rows = np.ascontiguousarray(np.array(columns).T, dtype=dtype)  # [4^n, M]
        self.bytes = self.rows.nbytes

    def __len__(self) -> int:
        return self.rows.shape[1]

    def values(self, rows: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """rows [4^n, B] and observables taken so far back, measured [4^n, M] → [B, M]."""
        result: np.ndarray = rows.T @ measured
        return result

    def values_in_torch(self, rows: Tensor) -> Tensor:
        """rows [4^n, B] at the end of the circuit → [B, M], on torch's own tape."""
        return rows.T @ torch.from_numpy(self.rows)

    def adjoint(self, rows: np.ndarray, cotangent: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """cotangent [B, M] → derivative by the rows [4^n, B]."""
        return np.ascontiguousarray(measured @ cotangent.T)


# What turns a measurement of Z into one of the Pauli: its eigenvectors, conjugated, as rows.
TO_Z = {"X": np.array([[1, 1], [1, -1]]) / np.sqrt(2), "Y": np.array([[1, -1j], [1, 1j]]) / np.sqrt(2)}


def outcome_probabilities(rows: np.ndarray, pauli: str, basis: Basis) -> np.ndarray:
    """rows [D, B] → [B, 2^n] float64: probabilities with qubit q measured in the basis pauli[q] (I as Z)."""
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


def confuse(probabilities: np.ndarray, readout: Sequence[tuple[float, float]]) -> np.ndarray:
    """[B, 2^n] of true outcomes → of outcomes read, every qubit with its own (p10, p01)."""
    result = probabilities.T
    for q, (p10, p01) in enumerate(readout):
        result = _on_qubit(result, np.array([[1 - p10, p01], [p10, 1 - p01]]), q, 2)
    return result.T


def measurement_groups(observables: tuple[Terms, ...]) -> list[tuple[str, list[tuple[int, float, str]]]]:
    """Pauli strings that can be measured together, qubit by qubit in one basis.

    Returns:
        (basis, members) a group: basis[q] is I, X, Y or Z; members are (observable, coefficient, Pauli label).
        Constant terms are in no group. Greedy, in the order given: strings of Z only always make one group.
    """
    groups: list[tuple[str, list[tuple[int, float, str]]]] = []
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
