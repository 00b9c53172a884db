"""How qubits are misread: from the device's calibration or measured with prepared basis states, and its inverse.

In terms of Pauli strings: one qubit's factor P is read as s·P + d·I with s = 1 − p10 − p01 and d = p01 − p10. For k
qubits that disturb one another, ⟨Z^s⟩ as read is Σ_t M[s, t] ⟨Z^t⟩ over all 2^k strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from qiskit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Estimate
from qhw_diffusion.execution.shots import measurement_groups

# (observable, coefficient, Pauli label): a Pauli string of an observable, as `measurement_groups` gives it
Member = tuple[int, float, str]
# (weights [M, S] of the strings as read, constants [M])
Inverse = tuple[np.ndarray, np.ndarray]
# A qubit that reads 0 and 1 almost alike tells nothing
_SMALLEST_SCALE = 0.05


@dataclass(frozen=True, eq=False)
class Local:
    """Independent readout errors.

    Attributes:
        zero, one: [n] what each qubit's ⟨Z⟩ is read as when 0 and when 1 is prepared: 1 − 2 p10 and 2 p01 − 1.
        errors: [2, n] standard errors of these.
    """

    zero: np.ndarray
    one: np.ndarray
    errors: np.ndarray

    def inverse(self, strings: Sequence[str], members: Sequence[Member], n_observables: int) -> Inverse:
        """Π_q (P_q − d_q) / s_q, multiplied out."""
        scales, shifts = self._scales, (self.zero + self.one) / 2
        index = {label: at for at, label in enumerate(strings)}
        weights, constants = np.zeros((n_observables, len(strings))), np.zeros(n_observables)
        for observable, coefficient, label in members:
            for part in substrings(label):
                weight = coefficient
                for q, factor in enumerate(label):
                    if factor != "I":
                        weight *= (1 if part[q] != "I" else -shifts[q]) / scales[q]
                if part.strip("I"):
                    weights[observable, index[part]] += weight
                else:
                    constants[observable] += weight
        return weights, constants

    @property
    def numbers(self) -> np.ndarray:
        """All of them in one row, for comparison."""
        return np.concatenate([self.zero, self.one, self.errors.ravel()])

    @property
    def _scales(self) -> np.ndarray:
        return (self.zero - self.one) / 2

    def moved(self) -> list[Local]:
        """This calibration with one number after the other off by its standard error."""
        result = []
        for which, q in np.argwhere(self.errors > 0):
            ends = [self.zero.copy(), self.one.copy()]
            ends[which][q] += self.errors[which, q]
            result.append(replace(self, zero=ends[0], one=ends[1]))
        return result

    def check(self, qubits: Sequence[int]) -> None:
        for at in np.flatnonzero(self._scales < _SMALLEST_SCALE):
            raise InvalidInputError(
                f"qubit {qubits[at]} reads 0 and 1 almost alike (1 − p10 − p01 = {self._scales[at]:.3f}): its readout "
                "cannot be inverted; compile for other qubits"
            )


@dataclass(frozen=True, eq=False)
class Correlated:
    """Readout errors of k qubits together.

    Attributes:
        qubits: the k positions of the measured qubits in Pauli labels.
        read: [2^k, 2^k] ⟨Z^s⟩ as read (row s; bit j of s is the j-th measured qubit) with basis state x (column)
            prepared.
        errors: [2^k, 2^k] standard errors of these.
    """

    qubits: tuple[int, ...]
    read: np.ndarray
    errors: np.ndarray

    @property
    def numbers(self) -> np.ndarray:
        """All of them in one row, for comparison."""
        return np.concatenate([self.read.ravel(), self.errors.ravel()])

    @property
    def matrix(self) -> np.ndarray:
        """[2^k, 2^k] M: ⟨Z^s⟩ as read = Σ_t M[s, t] ⟨Z^t⟩."""
        result: np.ndarray = self.read @ signs(len(self.qubits)) / len(self.read)
        return result

    def inverse(self, strings: Sequence[str], members: Sequence[Member], n_observables: int) -> Inverse:
        """Rows of M⁻¹; `strings` are the 2^k − 1 strings of one basis in the order of their bits."""
        if np.linalg.cond(self.matrix) > 1 / _SMALLEST_SCALE**2:
            raise InvalidInputError("the measured readout matrix cannot be inverted: some outcomes read almost alike")
        inverse = np.linalg.inv(self.matrix)
        combination = np.zeros((n_observables, len(inverse)))
        for observable, coefficient, label in members:
            string = sum(1 << j for j, q in enumerate(self.qubits) if label[q] != "I")
            combination[observable] += coefficient * inverse[string]
        return combination[:, 1:], combination[:, 0]


def signs(k: int) -> np.ndarray:
    """[2^k, 2^k] (−1)^(s·x): ⟨Z^s⟩ of basis state x."""
    result: np.ndarray = np.ones((1, 1))
    for _ in range(k):
        result = np.kron([[1, 1], [1, -1]], result)
    return result


def substrings(label: str) -> list[str]:
    """All 2^w labels with some of the w factors replaced by I, the label itself first."""
    result = [""]
    for factor in label:
        result = [part + choice for part in result for choice in dict.fromkeys((factor, "I"))]
    return result


def terms_of(compiled: CompiledCircuit) -> list[tuple[str, list[Member]]]:
    """The observables' Pauli strings on the qubits in use, in groups measured together (`measurement_groups`)."""
    terms = tuple(
        tuple((float(c.real), "".join(label[::-1][q] for q in compiled.physical_qubits)) for label, c in o.to_list())
        for o in (observable.simplify() for observable in compiled.observables)
    )
    return measurement_groups(terms)


def with_strings(compiled: CompiledCircuit, strings: Sequence[str]) -> CompiledCircuit:
    """The same circuit with Pauli strings on its qubits in use as observables."""
    width = compiled.isa.num_qubits
    observables = []
    for string in strings:
        label = ["I"] * width
        for q, factor in zip(compiled.physical_qubits, string, strict=True):
            label[width - 1 - q] = factor
        observables.append(SparsePauliOp("".join(label)))
    return replace(compiled, observables=tuple(observables))


def prepared(compiled: CompiledCircuit, ones: Sequence[int], strings: Sequence[str]) -> CompiledCircuit:
    """A circuit that prepares 1 on some of the qubits in use (positions `ones`), and measures strings of Z."""
    circuit = QuantumCircuit(compiled.isa.num_qubits)
    for at in ones:
        circuit.x(compiled.physical_qubits[at])
    bare = replace(compiled, isa=circuit, inputs=(), weights=(), scheduled=False, postselect=())
    return with_strings(bare, strings)


def measured_local(n: int, qubits: Sequence[int], calibration: Sequence[Estimate]) -> Local:
    """From the values of Z on each of `qubits` (positions among n) with all 0, and all 1, prepared."""
    ends, errors = np.stack([np.ones(n), -np.ones(n)]), np.zeros((2, n))
    for which, estimate in enumerate(calibration):
        ends[which, list(qubits)] = estimate.values[0].double().cpu().numpy()
        errors[which, list(qubits)] = estimate.std_errors[0].double().cpu().numpy()
    return Local(ends[0], ends[1], errors)


def measured_correlated(qubits: tuple[int, ...], calibration: Sequence[Estimate]) -> Correlated:
    """From the values of all strings but the identity with each of the 2^k basis states prepared."""
    read = np.ones((len(calibration), len(calibration)))
    errors = np.zeros_like(read)
    for state, estimate in enumerate(calibration):
        read[1:, state] = estimate.values[0].double().cpu().numpy()
        errors[1:, state] = estimate.std_errors[0].double().cpu().numpy()
    return Correlated(qubits, read, errors)
