"""Pauli noise as quantum trajectories: the circuit without noise, with signs on its angles and a Pauli at its end.

Twirled over the Pauli group, a channel is a Pauli drawn with probabilities that depend on nothing
(Wallman and Emerson, arXiv:1512.01098), so an error drawn now is the same whatever the weights are. Carried forwards
through a Clifford gate it stays a Pauli; past RZ(θ) it turns θ into −θ where it holds an X, since X RZ(θ) = RZ(−θ) X.
A circuit is made of RZ and Clifford gates here (`in_rotations`), so that a trajectory is the pure state of the circuit
without noise at angles ±θ, and in the end a Pauli, its *frame*. Its values and derivatives are exact, by the same loops
as without noise; their mean over trajectories is that of the twirled noise.

A forgotten outcome is a Z with probability 1/2. A qubit that is reset goes on as a fresh one, so that states stay pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from qiskit.circuit.library import CXGate
from qiskit.synthesis import OneQubitEulerDecomposer, TwoQubitBasisDecomposer

from qhw_diffusion.errors import UnsupportedCircuitError
from qhw_diffusion.execution import kernel
from qhw_diffusion.execution.fusion import Precision
from qhw_diffusion.execution.gate_sequence import GateSequence
from qhw_diffusion.execution.program import Conditional, FixedMap, Measurement, Operation, Program, Rotation

# A Pauli on k qubits is a number: bit 2j an X on qubit j, bit 2j + 1 a Z
_XZ = [np.eye(2), np.array([[0, 1], [1, 0]]), np.diag([1, -1]), np.array([[0, -1], [1, 0]])]
# Kinds of instructions for `kernel.carry_frames`
XOR, SIGN, NOISE = 0, 1, 2


def pauli(number: int, n_qubits: int) -> np.ndarray:
    """[2^k, 2^k], little-endian, up to a phase."""
    matrix = np.eye(1)
    for j in range(n_qubits):
        matrix = np.kron(_XZ[number >> 2 * j & 3], matrix)
    return matrix


def pauli_probabilities(channel: np.ndarray) -> np.ndarray:
    """[4^k, 4^k] acting on vec(ρ) by columns → [4^k] probabilities of the Paulis of the twirled channel."""
    dim = round(len(channel) ** 0.5)
    k = dim.bit_length() - 1
    paulis = (pauli(number, k) for number in range(4**k))
    chances = np.array([np.vdot(np.kron(p, p), channel).real for p in paulis]) / dim**2
    chances = np.where(chances < 1e-12, 0.0, chances)
    return chances / chances.sum()


def twirled_channel(channel: np.ndarray) -> np.ndarray:
    """The channel's Pauli twirl, [4^k, 4^k]."""
    k = (len(channel).bit_length() - 1) // 2
    chances = pauli_probabilities(channel)
    total: np.ndarray = sum(c * np.kron(pauli(n, k), pauli(n, k)) for n, c in enumerate(chances) if c)
    return total


def error_of(operation: FixedMap) -> np.ndarray | None:
    """[4^k, 4^k] what the device's noise does after the map; None if nothing."""
    if operation.noisy is None:
        return None
    if operation.matrix is None:  # a reset, after which a qubit is in |0⟩: any channel that gives the same will do
        fresh = operation.noisy[:, 0].reshape(2, 2)  # by columns: of a Hermitian matrix, transposed
        return pauli_mixture(float(fresh[1, 1].real))
    return operation.noisy @ np.kron(operation.matrix.conj(), operation.matrix).conj().T


def pauli_mixture(flip: float) -> np.ndarray:
    """An X with that probability, as a channel [4, 4]."""
    return (1 - flip) * np.eye(4) + flip * np.kron(_XZ[1], _XZ[1])


def twirled(program: Program) -> Program:
    """The same circuit with every channel of noise replaced by its Pauli twirl; readout errors as they are."""

    def one(operation: Operation) -> Operation:
        if isinstance(operation, (Rotation, Conditional, Measurement)):
            return operation
        error = error_of(operation)
        if error is None:
            return operation
        noisy = twirled_channel(error) @ replace(operation, noisy=None).channel(False)
        return replace(operation, noisy=noisy)

    return replace(program, operations=tuple(one(operation) for operation in program.operations))


def check_frames(program: Program) -> None:
    """Raise UnsupportedCircuitError for what no Pauli frame passes: conditions and post-selection."""
    if program.feeds_forward or program.postselected:
        what = "operations that depend on outcomes" if program.feeds_forward else "outcomes post-selected on"
        raise UnsupportedCircuitError(
            f"trajectories do not take circuits with {what}; use engine 'noisy' (post-selection: as observables on "
            "ancillas that are not measured)"
        )


@dataclass(frozen=True, eq=False)
class Frames:
    """Errors drawn for every column.

    Attributes:
        signs: [R, C] ±1 on every angle.
        flips: int64 [C]: bit q an X on qubit q at the end.
        phases: int64 [C]: bit q a Z.
    """

    signs: np.ndarray
    flips: np.ndarray
    phases: np.ndarray


class FrameProgram:
    """A program without noise, and the instructions that carry errors drawn through it.

    Args:
        program: the circuit with its noise.

    Attributes:
        program: without noise, of RZ and Clifford gates; further rotations have constant angles. Where qubits are
            reset, there are further qubits; `latest` says which of them each of the circuit's ends as.

    Raises:
        UnsupportedCircuitError: as `check_frames`.
    """

    def __init__(self, program: Program) -> None:
        check_frames(program)
        self._offsets: list[float] = []
        self._start = len(program.offsets)
        self._code: list[tuple[int, int, int]] = []
        self._chances: list[np.ndarray] = []
        self._made: dict[bytes, tuple[bool, np.ndarray]] = {}
        resets = sum(isinstance(o, FixedMap) and o.matrix is None and not isinstance(o, Measurement)
                     for o in program.operations)  # fmt: skip
        self.n_qubits = program.n_qubits + resets
        self.latest = list(range(program.n_qubits))
        operations: list[Operation] = []
        fresh = program.n_qubits
        for operation in program.operations:
            assert not isinstance(operation, Conditional)
            if isinstance(operation, FixedMap) and operation.matrix is None:
                (q,) = operation.qubits
                if isinstance(operation, Measurement):
                    self._noise((self.latest[q],), np.array([0.5, 0, 0.5, 0]))
                    continue
                self.latest[q], fresh = fresh, fresh + 1
                operations += self._add(FixedMap((self.latest[q],), np.eye(2)), error_of(operation))
            elif isinstance(operation, Rotation):
                operations += self._add(Rotation(self.latest[operation.qubit], operation.index), None)
            else:
                moved = tuple(self.latest[q] for q in operation.qubits)
                operations += self._add(FixedMap(moved, operation.matrix), error_of(operation))
        zeros = [np.zeros((len(self._offsets), c.shape[1])) for c in (program.input_coefficients,
                                                                       program.weight_coefficients)]  # fmt: skip
        self.program = replace(
            program,
            n_qubits=self.n_qubits,
            operations=tuple(operations),
            input_coefficients=np.concatenate([program.input_coefficients, zeros[0]]),
            weight_coefficients=np.concatenate([program.weight_coefficients, zeros[1]]),
            offsets=np.concatenate([program.offsets, self._offsets]),
            observables=tuple(
                tuple((c, self._moved(label, "I")) for c, label in terms) for terms in program.observables
            ),
            readout=tuple(self._moved(list(program.readout), (0.0, 0.0))),
        )
        self.code = np.array(self._code, dtype=np.int64).reshape(-1, 3)
        self._sequences: dict[Precision, GateSequence] = {}

    def sequence(self, dtype: Precision) -> GateSequence:
        """The circuit without noise on state rows, every angle its own in every column."""
        if dtype not in self._sequences:
            own = replace(self.program, input_coefficients=np.ones((len(self.program.offsets), 1)))
            plain: list[Rotation | FixedMap] = [o for o in self.program.operations if not isinstance(o, Conditional)]
            self._sequences[dtype] = GateSequence(plain, own, "state", noisy=False, dtype=dtype)
        return self._sequences[dtype]

    def draw(self, columns: int, generator: np.random.Generator, dtype: Precision) -> Frames:
        """Errors of so many trajectories."""
        at, column, number = self._errors(columns, generator)
        first = np.searchsorted(at, np.arange(len(self._chances) + 1))
        bits = np.zeros((2 * self.n_qubits, columns), np.uint8)
        signs = np.ones((len(self.program.offsets), columns), dtype)
        kernel.carry_frames(bits, self.code, first, column, number, signs)
        powers = 1 << np.arange(self.n_qubits, dtype=np.int64)
        flips, phases = (powers @ part.astype(np.int64) for part in (bits[: self.n_qubits], bits[self.n_qubits :]))
        return Frames(signs, flips, phases)

    @cached_property
    def _classes(self) -> list[tuple[float, np.ndarray, np.ndarray, np.ndarray]]:
        """Places of noise by their chance of an error, within a factor of two: highest chance, places, chances, cdf."""
        errors = np.array([1 - chances[0] for chances in self._chances])
        classes = []
        bins = np.floor(np.log2(errors)).astype(int) if len(errors) else errors.astype(int)
        for which in np.unique(bins):
            places = np.flatnonzero(bins == which)
            cumulated = np.ones((len(places), 15))
            for row, place in enumerate(places):
                chances = self._chances[place][1:]
                cumulated[row, : len(chances)] = np.cumsum(chances) / errors[place]
            classes.append((float(errors[places].max()), places, errors[places], cumulated))
        return classes

    def _errors(self, columns: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(place of noise, column, Pauli) of every error, in the order of the places.

        Errors are rare: the distances between candidates are drawn (geometric), and candidates kept with the ratio of
        their chance to the highest of their class.
        """
        found = []
        for most, places, errors, cumulated in self._classes:
            candidates = _hits(len(places) * columns, most, generator)
            row, column = np.divmod(candidates, columns)
            keep = generator.random(len(row)) * most < errors[row]
            row, column = row[keep], column[keep]
            which = (generator.random(len(row))[:, None] >= cumulated[row, :-1]).sum(1) + 1
            found.append((places[row], column, which))
        if not found:
            return (np.zeros(0, np.int64),) * 3
        at, column, number = (np.concatenate(part).astype(np.int64) for part in zip(*found, strict=True))
        order = np.argsort(at, kind="stable")
        return at[order], column[order], number[order]

    # -- building ------------------------------------------------------------------------------------------------------

    def _add(self, operation: Rotation | FixedMap, error: np.ndarray | None) -> Iterator[Rotation | FixedMap]:
        for part in [operation] if isinstance(operation, Rotation) else self._in_rotations(operation):
            if isinstance(part, Rotation):
                self._code.append((SIGN, part.qubit, part.index))
            else:
                bits = [bit for q in part.qubits for bit in (q, self.n_qubits + q)]
                assert part.matrix is not None
                for a, b in _xors(self._symplectic(part.matrix)[1]):
                    self._code.append((XOR, bits[a], bits[b]))
            yield part
        if error is not None:
            self._noise(operation.qubits, pauli_probabilities(error))

    def _noise(self, qubits: Sequence[int], chances: np.ndarray) -> None:
        if chances[0] < 1:
            self._code.append((NOISE, qubits[0], qubits[1] if len(qubits) > 1 else -1))
            self._chances.append(chances)

    def _in_rotations(self, operation: FixedMap) -> Iterator[Rotation | FixedMap]:
        """A unitary as Clifford gates and rotations by constant angles."""
        matrix, qubits = operation.matrix, operation.qubits
        assert matrix is not None
        if self._symplectic(matrix)[0]:
            yield operation
            return
        if len(qubits) == 2:
            made = TwoQubitBasisDecomposer(CXGate())(matrix)
            for instruction in made.data:
                which = tuple(qubits[made.find_bit(q).index] for q in instruction.qubits)
                yield from self._in_rotations(FixedMap(which, np.asarray(instruction.operation.to_matrix())))
            return
        for gate in OneQubitEulerDecomposer("ZSX")(matrix).data:
            if gate.operation.name == "rz":
                self._offsets.append(float(gate.operation.params[0]))
                yield Rotation(qubits[0], self._start + len(self._offsets) - 1)
            else:
                yield FixedMap(qubits, np.asarray(gate.operation.to_matrix()))

    def _symplectic(self, unitary: np.ndarray) -> tuple[bool, np.ndarray]:
        """Whether it is a Clifford gate, and its matrix on the bits (x, z) of its qubits, modulo 2."""
        key = np.asarray(unitary, complex).round(9).tobytes()
        if key not in self._made:
            self._made[key] = _symplectic(unitary)
        return self._made[key]

    def _moved(self, given: str | list, empty: object) -> Any:
        """What belongs to the circuit's qubits, to what they end as."""
        at = dict(zip(self.latest, given, strict=True))
        moved = [at.get(q, empty) for q in range(self.n_qubits)]
        return "".join(moved) if isinstance(given, str) else moved


def _hits(count: int, chance: float, generator: np.random.Generator) -> np.ndarray:
    """Which of `count` independent events of that chance happen, ascending."""
    mean = count * chance
    parts, reached = [], -1
    while reached < count:
        gaps = generator.geometric(chance, int(mean + 6 * mean**0.5 + 16))
        parts.append(reached + np.cumsum(gaps))
        reached = int(parts[-1][-1])
    hits = np.concatenate(parts)
    return hits[hits < count]


def _symplectic(unitary: np.ndarray) -> tuple[bool, np.ndarray]:
    dim = len(unitary)
    k = dim.bit_length() - 1
    columns = []
    for bit in range(2 * k):
        image = unitary @ pauli(1 << bit, k) @ unitary.conj().T
        overlaps = [abs(np.vdot(pauli(number, k), image)) / dim for number in range(4**k)]
        largest = int(np.argmax(overlaps))
        if overlaps[largest] < 1 - 1e-9:
            return False, np.zeros((2 * k, 2 * k), bool)
        columns.append([largest >> j & 1 for j in range(2 * k)])
    return True, np.array(columns, bool).T


def _xors(matrix: np.ndarray) -> list[tuple[int, int]]:
    """Steps bits[a] ^= bits[b] that amount to bits ← matrix · bits modulo 2 (Gaussian elimination)."""
    left, steps = matrix.copy(), []
    for at in range(len(left)):
        if not left[at, at]:
            below = at + 1 + int(np.argmax(left[at + 1 :, at]))
            left[at] ^= left[below]
            steps.append((at, below))
        for row in range(len(left)):
            if row != at and left[row, at]:
                left[row] ^= left[at]
                steps.append((row, at))
    return steps[::-1]


def in_frame(rows: np.ndarray, frames: Frames, *, back: bool = False) -> np.ndarray:
    """State rows [2·2^n, C] with every column's Pauli applied, up to a phase; `back` undoes it."""
    result = np.empty_like(rows)
    kernel.apply_frames(rows, result, frames.flips, frames.phases, back)
    return result
