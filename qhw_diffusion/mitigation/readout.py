"""Readout inversion: the inverse of readout errors, applied to expectation values.

In terms of Pauli strings: one qubit's factor P is read as s·P + d·I with s = 1 − p10 − p01 and d = p01 − p10. For k
qubits that disturb one another, ⟨Z^s⟩ as read is Σ_t M[s, t] ⟨Z^t⟩ over all 2^k strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment
from qhw_diffusion.execution.measurement import Member, z_signs
from qhw_diffusion.mitigation.rewriting import kept
from qhw_diffusion.mitigation.strategy import Calibration, Need, Strategy

Source = Literal["snapshot", "measured", "correlated"]
SOURCES: tuple[str, ...] = get_args(Source)
# 2^k calibration circuits and strings, 2^w strings for a product of w factors
_MOST_TOGETHER, _MOST_FACTORS = 8, 12

# (weights [M, S] of the strings as read, constants [M])
Inverse = tuple[np.ndarray, np.ndarray]
# A qubit that reads 0 and 1 almost alike tells nothing
_SMALLEST_SCALE = 0.05
# Numbers held at once for the variances
_AT_ONCE = 2**23
# Observables of which the covariance is kept: those of a denoiser of six qubits
_MOST_TOLD = 64


@dataclass(frozen=True)
class Readout(Strategy):
    """Readout inversion (Bravyi et al., arXiv:2006.14044, sec. II), on expectation values.

    Each measured factor P is read as s·P + d·I with s = 1 − p10 − p01, d = p01 − p10. A product is therefore corrected
    with its sub-strings: ⟨ZZ⟩ needs ⟨ZI⟩ and ⟨IZ⟩ too, wherever d ≠ 0. They are measured in the same circuits; only
    the observables asked for become more.

    - ``"snapshot"``: independent errors as the device's calibration states them; no extra circuit. Exactly right where
      the noise is that of the snapshot, as wrong as the snapshot is old elsewhere.
    - ``"measured"``: independent errors, from two calibration circuits (all 0, all 1) on the same engine.
    - ``"correlated"``: all k measured qubits together, from 2^k calibration circuits; k ≤ 8.

    Measured calibrations include the error of the X gates that prepare the states. They are made once for each
    `Mitigated` and set of qubits. Values are unbiased and may leave [−1, 1].

    Standard errors grow by 1/s for each factor. The strings of one basis share their shots, so their correlations
    follow from their values where every product of two of them is one as well, as of an observable and its sub-strings;
    else the sum of the strings' errors is taken, a bound from above. The calibration's own error is in them, to first
    order; it is the same in all rows.

    Args:
        source: as above.

    Raises:
        UnknownNameError: another source.
    """

    source: Source = "snapshot"
    name: ClassVar[str] = "readout"
    new_observables: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UnknownNameError.of("source of the readout errors", str(self.source), SOURCES)

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]
        """The device's readout errors, unless they are measured."""
        return frozenset({Need.READOUT_DATA}) if self.source == "snapshot" else frozenset()

    @property
    def label(self) -> str:
        """``"readout from the calibration data"``, ``"readout measured"`` or ``"readout correlated"``."""
        return "readout from the calibration data" if self.source == "snapshot" else f"readout {self.source}"

    def check(self, compiled: CompiledCircuit) -> None:
        """Raise InvalidInputError for too many qubits or factors, or a qubit that reads 0 and 1 almost alike."""
        plan = _plan(compiled, self.source)
        if self.source == "snapshot":
            plan.snapshot.check(compiled.physical_qubits)

    def construct(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        """The circuit once for each basis, with the sub-strings of its observables to measure."""
        return [(circuit, rows) for circuit in _plan(compiled, self.source).circuits]

    def labels(self, compiled: CompiledCircuit, made: Sequence[Experiment]) -> list[str]:
        """``"basis 1 of 2"``; nothing where all is measured in one."""
        count = len(made)
        return [""] if count == 1 else [f"basis {number} of {count}" for number in range(1, count + 1)]

    def calibration(self, compiled: CompiledCircuit) -> Calibration | None:
        """Circuits that prepare basis states; None with ``"snapshot"``."""
        if self.source == "snapshot":
            return None
        plan = _plan(compiled, self.source)
        none = torch.zeros(1, 0, dtype=torch.float64)
        qubits = tuple(compiled.physical_qubits[q] for q in plan.measured)
        experiments = tuple((circuit, none) for circuit in plan.preparations)
        labels = tuple(f"readout calibration, {state} prepared" for state in plan.states)
        return Calibration((compiled.device, qubits), experiments, labels)

    def combine(
        self,
        estimates: Sequence[Estimate],
        compiled: CompiledCircuit,
        rows: Tensor,
        calibration: Sequence[Estimate] = (),
    ) -> Estimate:
        """The inverse of the readout errors, applied to the strings."""
        plan = _plan(compiled, self.source)
        assignment = self._assignment(compiled, plan, calibration)
        like = estimates[0].values if estimates else rows
        total = torch.from_numpy(plan.constants).to(like).expand(len(rows), -1)
        variances = torch.zeros_like(total)
        covariance: Tensor | None = None
        if total.shape[1] <= _MOST_TOLD and not isinstance(assignment, Correlated):
            covariance = torch.zeros(*total.shape, total.shape[1]).to(total)
        all_inverses = _inverses(compiled, self.source, plan, assignment)
        for estimate, strings, inverses in zip(estimates, plan.strings, all_inverses, strict=True):
            values = estimate.values
            (weights, constants), *moved = [(w.to(values), c.to(values)) for w, c in inverses]
            corrected = values @ weights.T + constants
            total = total + corrected
            with torch.no_grad():
                spread, together = _variances(
                    values, estimate.std_errors, weights, strings, covariance=covariance is not None
                )
                variances = variances + spread
                shifts = [values @ each.T + other - corrected for each, other in moved]
                for shift in shifts:
                    variances = variances + shift.square()
                covariance = None if covariance is None or together is None else covariance + together
                if covariance is not None and shifts:
                    each = torch.stack(shifts)
                    covariance = covariance + torch.einsum("kbm,kbn->bmn", each, each)
                if isinstance(assignment, Correlated) and assignment.errors.any():
                    variances = variances + _calibration_variances(assignment, values, weights)
        return Estimate(total, variances.sqrt(), covariance=covariance)

    def _assignment(
        self, compiled: CompiledCircuit, plan: _Plan, calibration: Sequence[Estimate]
    ) -> Local | Correlated:
        if self.source == "correlated":
            return measured_correlated(plan.measured, calibration)
        if self.source == "snapshot":
            return plan.snapshot
        local = measured_local(len(compiled.physical_qubits), plan.measured, calibration)
        local.check(compiled.physical_qubits)
        return local


def _inverses(
    compiled: CompiledCircuit, source: Source, plan: _Plan, assignment: Local | Correlated
) -> list[list[tuple[Tensor, Tensor]]]:
    """For each circuit of the plan weights [M, S] and constants [M], and the same for every shifted calibration.

    The calibration is shifted by each of its standard errors. Kept, since products of many factors take long.
    """
    made, key = kept(compiled), ("inverses", source)
    if key not in made or not np.array_equal(made[key][0], assignment.numbers):
        made[key] = (
            assignment.numbers,
            [
                [
                    (torch.from_numpy(weights), torch.from_numpy(constants))
                    for weights, constants in _all_inverses(assignment, plan, at)
                ]
                for at in range(len(plan.strings))
            ],
        )
    result: list[list[tuple[Tensor, Tensor]]] = made[key][1]
    return result


def _all_inverses(assignment: Local | Correlated, plan: _Plan, at: int) -> list[Inverse]:
    """Of circuit number `at`: by the calibration, then by every shifted one."""
    strings, members, n_observables = plan.strings[at], plan.members[at], len(plan.constants)
    if isinstance(assignment, Correlated):
        return [assignment.inverse(strings, members, n_observables)]
    terms = plan.terms[at]
    return [each.inverse(terms, len(strings), n_observables) for each in (assignment, *assignment.shifted())]


def _variances(
    values: Tensor, errors: Tensor, weights: Tensor, strings: Sequence[str], *, covariance: bool
) -> tuple[Tensor, Tensor | None]:
    """[B, M]: variances of the weighted sums of strings that were measured in the same shots; [B, M, M] covariances.

    The covariances are None where they are not asked for, or do not follow from the values.

    Where the strings are all products of some qubits' factors, their values are those of a distribution of outcomes,
    which has their correlations. A string that does not vary in it counts with its error by itself.

    Args:
        values: [B, S], of the strings.
        errors: [B, S], their standard errors.
        weights: [M, S].
        strings: S labels of one basis.
        covariance: ask for these.
    """
    factors = [q for q in range(len(strings[0])) if any(string[q] != "I" for string in strings)]
    if len(strings) != 2 ** len(factors) - 1:
        return (errors @ weights.abs().T).square(), None
    places = [sum(1 << bit for bit, q in enumerate(factors) if string[q] != "I") for string in strings]
    index = torch.tensor(places).to(values.device)
    outcomes, parts, told = 2 ** len(factors), [], []
    at_once = max(1, _AT_ONCE // (outcomes * len(weights)))
    for some, their in zip(values.double().split(at_once), errors.double().split(at_once), strict=True):
        read = some.new_ones(len(some), outcomes).index_copy(1, index, some)
        distribution = _walsh(read).clamp_min(0)
        distribution = distribution / distribution.sum(1, keepdim=True)
        spread = (1 - _walsh(distribution)[:, index].square()).clamp_min(0).sqrt()
        varies = spread > 0
        scaled = torch.where(varies, their / torch.where(varies, spread, 1.0), 0.0)
        sums = some.new_zeros(len(some), len(weights), outcomes)
        sums = _walsh(sums.index_copy(2, index, weights.double() * scaled[:, None, :]))
        chance = distribution[:, None, :]
        variance = (chance * sums.square()).sum(-1) - (chance * sums).sum(-1).square()
        alone = torch.where(varies, 0.0, their) @ weights.double().abs().T
        parts.append(variance.clamp_min(0) + alone.square())
        if covariance:
            means = (chance * sums).sum(-1)
            product = torch.einsum("bmx,bnx->bmn", chance * sums, sums) - means[:, :, None] * means[:, None, :]
            told.append(product + torch.diag_embed(alone.square()))
    return torch.cat(parts).to(values), torch.cat(told).to(values) if told else None


def _walsh(values: Tensor) -> Tensor:
    """[..., 2^k] → Σ_x (−1)^(s·x) values[..., x], one bit at a time."""
    shape, step = values.shape, 1
    while step < shape[-1]:
        pairs = values.reshape(-1, shape[-1] // (2 * step), 2, step)
        values = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2)
        step *= 2
    return values.reshape(shape)


def _calibration_variances(assignment: Correlated, values: Tensor, weights: Tensor) -> Tensor:
    """[B, M]: with basis state x of true probability p(x), Σ_x p(x)² (Σ_s |weight_s| σ[s, x])²."""
    k = len(assignment.qubits)
    read = np.concatenate([np.ones((len(values), 1)), values.double().cpu().numpy()], axis=1)
    probabilities = np.linalg.solve(assignment.matrix, read.T).T @ z_signs(k) / 2**k
    spread = weights.abs().double().cpu().numpy() @ assignment.errors[1:]  # [M, 2^k]
    return torch.from_numpy(probabilities**2 @ (spread**2).T).to(values)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What to measure for one compiled circuit; made once, since simulators are kept with circuits.

    Attributes:
        circuits, strings, members: one for each basis the observables are measured in.
        constants: [M] the observables' identity terms.
        measured: positions of the measured qubits.
        preparations: calibration circuits.
        states: which basis state each of them prepares, the first digit that of the first measured qubit.
        terms: for each circuit; nothing for correlated errors.
        snapshot: the device's own readout errors.
    """

    circuits: tuple[CompiledCircuit, ...]
    strings: tuple[tuple[str, ...], ...]
    members: tuple[list[Member], ...]
    constants: np.ndarray
    measured: tuple[int, ...]
    preparations: tuple[CompiledCircuit, ...]
    states: tuple[str, ...]
    terms: tuple[_Terms, ...]
    snapshot: Local


def _plan(compiled: CompiledCircuit, source: Source) -> _Plan:
    made = kept(compiled)
    key = ("readout", source)
    if key not in made:
        made[key] = _make_plan(compiled, source)
    plan: _Plan = made[key]
    return plan


def _make_plan(compiled: CompiledCircuit, source: Source) -> _Plan:
    groups = compiled.measurement_groups
    n = len(compiled.physical_qubits)
    measured = tuple(q for q in range(n) if any(basis[q] != "I" for basis, _ in groups))
    widest = max((n - label.count("I") for _, members in groups for _, _, label in members), default=0)
    if source == "correlated" and len(measured) > _MOST_TOGETHER:
        raise InvalidInputError(
            f"correlated readout inversion of {len(measured)} qubits takes {2 ** len(measured)} calibration circuits; "
            f"at most {_MOST_TOGETHER} qubits are done: use source='measured'"
        )
    if widest > _MOST_FACTORS:
        raise InvalidInputError(
            f"an observable is a product of {widest} factors, whose readout inversion takes {2**widest} strings; at "
            f"most {_MOST_FACTORS} factors are done"
        )
    together = _strings("".join("Z" if q in measured else "I" for q in range(n)), measured)
    if source == "correlated":
        # Qubits whose basis is free are measured all the same: the others' errors may depend on them
        full = ["".join("Z" if q in measured and f == "I" else f for q, f in enumerate(basis)) for basis, _ in groups]
        strings = tuple(_strings(basis, measured) for basis in full)
        ones: list[Sequence[int]] = [
            [q for j, q in enumerate(measured) if state >> j & 1] for state in range(2 ** len(measured))
        ]
        read = together
    else:
        strings = tuple(
            tuple(dict.fromkeys(part for _, _, label in members for part in substrings(label) if part.strip("I")))
            for _, members in groups
        )
        single = ["".join("Z" if q == at else "I" for q in range(n)) for at in measured]
        read, ones = tuple(single), [(), measured] if source == "measured" else []
    errors = [compiled.device.readout_error(q) for q in compiled.physical_qubits]
    identity = np.array(
        [float(o.coeffs[~(o.paulis.x | o.paulis.z).any(axis=1)].sum().real) for o in compiled.observables]
    )
    return _Plan(
        circuits=tuple(with_strings(compiled, each) for each in strings),
        strings=strings,
        members=tuple(members for _, members in groups),
        constants=identity,
        measured=measured,
        preparations=tuple(prepared(compiled, each, read) for each in ones),
        states=tuple("".join(str(int(q in each)) for q in measured) for each in ones),
        terms=()
        if source == "correlated"
        else tuple(_terms(each, members) for each, (_, members) in zip(strings, groups, strict=True)),
        snapshot=Local(
            np.array([1 - 2 * p10 for p10, _ in errors]), np.array([2 * p01 - 1 for _, p01 in errors]), np.zeros((2, n))
        ),
    )


def _strings(basis: str, measured: Sequence[int]) -> tuple[str, ...]:
    """The 2^k − 1 sub-strings of a basis other than the identity, in the order of their bits."""
    return tuple(
        "".join(f if any(q == m and s >> j & 1 for j, m in enumerate(measured)) else "I" for q, f in enumerate(basis))
        for s in range(1, 2 ** len(measured))
    )


@dataclass(frozen=True, eq=False)
class _Terms:
    """Products of corrected factors, multiplied out into K strings as read.

    Attributes:
        observables: int [K], the observable that each adds to.
        strings: int [K], the string that is left; their number where it is the identity.
        coefficients: [K], of the product.
        choices: int8 [n, K], for each qubit: 0 no factor, 1 its factor is kept, 2 it is replaced by its constant.
    """

    observables: np.ndarray
    strings: np.ndarray
    coefficients: np.ndarray
    choices: np.ndarray


def _terms(strings: Sequence[str], members: Sequence[Member]) -> _Terms:
    index = {label: at for at, label in enumerate(strings)}
    parts = [(member, part) for member in members for part in substrings(member[2])]
    width = len(strings[0]) if strings else 0
    whole, left = (
        np.array([list(label) for label in labels], dtype="U1").reshape(len(parts), width)
        for labels in ([label for (_, _, label), _ in parts], [part for _, part in parts])
    )
    choices = np.where(whole == "I", 0, np.where(left == "I", 2, 1)).astype(np.int8)
    return _Terms(
        np.array([observable for (observable, _, _), _ in parts], dtype=np.int64),
        np.array([index.get(part, len(strings)) for _, part in parts], dtype=np.int64),
        np.array([coefficient for (_, coefficient, _), _ in parts], dtype=float),
        choices.T.copy(),
    )


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

    def inverse(self, terms: _Terms, n_strings: int, n_observables: int) -> Inverse:
        """Π_q (P_q − d_q) / s_q, of products that are multiplied out."""
        scales, shifts = self._scales, (self.zero + self.one) / 2
        factors = np.stack([np.ones_like(scales), 1 / scales, -shifts / scales])  # absent, kept, replaced by d
        each = terms.coefficients.copy()
        for q, choices in enumerate(terms.choices):
            each *= factors[choices, q]
        # the last column collects what no string is left of
        sums = np.bincount(
            terms.observables * (n_strings + 1) + terms.strings, each, n_observables * (n_strings + 1)
        ).reshape(n_observables, n_strings + 1)
        return sums[:, :-1], sums[:, -1]

    @property
    def numbers(self) -> np.ndarray:
        """All of them in one row, for comparison."""
        return np.concatenate([self.zero, self.one, self.errors.ravel()])

    @property
    def _scales(self) -> np.ndarray:
        return (self.zero - self.one) / 2

    def shifted(self) -> list[Local]:
        """Copies of this calibration, each with one number shifted by its standard error."""
        result = []
        for which, q in np.argwhere(self.errors > 0):
            ends = [self.zero.copy(), self.one.copy()]
            ends[which][q] += self.errors[which, q]
            result.append(replace(self, zero=ends[0], one=ends[1]))
        return result

    def check(self, qubits: Sequence[int]) -> None:
        """Raise InvalidInputError if a qubit tells nothing; `qubits` are their physical numbers."""
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
        result: np.ndarray = self.read @ z_signs(len(self.qubits)) / len(self.read)
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


def substrings(label: str) -> list[str]:
    """All 2^w labels with some of the w factors replaced by I, the label itself first."""
    result = [""]
    for factor in label:
        result = [part + choice for part in result for choice in dict.fromkeys((factor, "I"))]
    return result


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
