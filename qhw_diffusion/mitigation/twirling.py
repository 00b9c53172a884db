"""Pauli twirling of two-qubit gates on the parameterised ISA circuit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction, Qubit
from qiskit.circuit.library import RZGate, XGate, get_standard_gate_name_mapping
from qiskit.quantum_info import Pauli
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment
from qhw_diffusion.mitigation.rewriting import kept, with_isa, without_delays
from qhw_diffusion.mitigation.strategy import MOST_CIRCUITS, Strategy, mixed_covariance, numbered

TWIRLED = frozenset(["cx", "cz", "ecr"])
Frame = tuple[int, int]  # a Pauli up to its sign, as exponents (x, z) of X^x Z^z


@dataclass(frozen=True)
class PauliTwirling(Strategy):
    """Pauli twirling (Wallman and Emerson, arXiv:1512.01098): random Paulis around every CX, CZ and ECR.

    Each randomisation is another circuit with the same action; the mean over them is the estimate. Coherent errors of
    the two-qubit gates become Pauli errors, which neither add up in step nor depend on the state. What a fixed set of
    randomisations gives is the mean over this set, with its own small deviation from the full twirl.

    The Paulis cost next to nothing: they are moved into the rotations around the gate, as signs of RZ angles and RZ(π),
    wherever there is a √X in between; an X gate is added only where there is none.

    The device models here have no coherent errors, so on "noisy" and "shots" twirling changes little; what it changes
    is relaxation, whose pull towards |0⟩ it averages out.

    Args:
        randomisations: number of circuits, ≥ 1.
        seed: of the Paulis; circuits with the same two-qubit gates get the same ones.

    Raises:
        InvalidInputError: a number outside its range.
    """

    randomisations: int = 8
    seed: int = 0
    name: ClassVar[str] = "twirling"
    text_least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name, value, low in (("randomisations", self.randomisations, 1), ("seed", self.seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InvalidInputError(f"{name} is {value!r}; allowed: whole numbers from {low}")
        if self.randomisations > MOST_CIRCUITS:
            raise InvalidInputError(f"randomisations is {self.randomisations}; allowed: up to {MOST_CIRCUITS:,}")

    @property
    def label(self) -> str:
        """``"twirling, 8 circuits"``."""
        return f"twirling, {self.randomisations} circuits"

    def check(self, compiled: CompiledCircuit) -> None:
        """Raise UnsupportedCircuitError for a two-qubit gate that cannot be twirled."""
        for instruction in compiled.isa.data:
            name = instruction.operation.name
            if len(instruction.qubits) == 2 and name not in {*TWIRLED, "barrier"}:
                raise UnsupportedCircuitError(
                    f"{name!r} cannot be twirled: only {', '.join(sorted(TWIRLED))} turn Paulis into Paulis here; "
                    "compile for the device without fractional gates"
                )

    def construct(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        """One circuit a randomisation."""
        made, key = kept(compiled), ("twirled", self.randomisations, self.seed)
        if key not in made:
            self.check(compiled)
            generator, bare = np.random.default_rng(self.seed), without_delays(compiled)
            made[key] = [with_isa(compiled, twirled(bare, generator)) for _ in range(self.randomisations)]
        return [(circuit, rows) for circuit in made[key]]

    def labels(self, compiled: CompiledCircuit, made: Sequence[Experiment]) -> list[str]:
        """``"twirled, 2 of 8"``."""
        return numbered("twirled", len(made))

    def combine(
        self,
        estimates: Sequence[Estimate],
        compiled: CompiledCircuit,
        rows: Tensor,
        calibration: Sequence[Estimate] = (),
    ) -> Estimate:
        """The mean over the circuits."""
        values = torch.stack([estimate.values for estimate in estimates])
        errors = torch.stack([estimate.std_errors for estimate in estimates])
        spread = errors.square().sum(0).sqrt() / len(estimates)
        covariance = mixed_covariance(estimates, torch.full_like(values.detach(), 1 / len(estimates)))
        return Estimate(values.mean(0), spread, covariance=covariance)


def twirled(circuit: QuantumCircuit, generator: np.random.Generator) -> QuantumCircuit:
    """`circuit` with a random Pauli before each qubit of every two-qubit gate, and what undoes it behind.

    A Pauli that is due on a qubit is carried along: past RZ it flips the angle's sign if it contains X, past √X it
    turns into another. It is paid before the next operation that does not let it pass.
    """
    result = _Writer(circuit)
    for instruction in circuit.data:
        name = instruction.operation.name
        if len(instruction.qubits) == 2 and name in TWIRLED:
            before = tuple((int(x), int(z)) for x, z in generator.integers(2, size=(2, 2)))
            for qubit, pauli in zip(instruction.qubits, before, strict=True):
                result.pay(qubit, pauli)
            result.append(instruction)
            for qubit, pauli in zip(instruction.qubits, _behind(name, before), strict=True):
                result.owed[qubit] = pauli
        elif name == "rz":
            result.rz(instruction)
        elif name in ("sx", "x", "id"):
            result.through(instruction)
        else:
            for qubit in instruction.qubits:
                result.pay(qubit)
            result.append(instruction)
    for qubit in circuit.qubits:
        result.pay(qubit)
    return result.circuit()


class _Writer:
    """The circuit written so far, with the Pauli owed on each qubit.

    Attributes:
        owed: per qubit the Pauli that has yet to act.
        last: per qubit the positions in `written` of its gates since its last two-qubit gate.
    """

    def __init__(self, circuit: QuantumCircuit) -> None:
        self.empty = circuit.copy_empty_like()
        self.written: list[list[CircuitInstruction]] = []  # several where a gate got a companion
        self.owed: dict[Qubit, Frame] = {}
        self.last: dict[Qubit, list[int]] = {}

    def append(self, instruction: CircuitInstruction) -> None:
        for qubit in instruction.qubits:
            self.last[qubit] = []
        self.written.append([instruction])

    def rz(self, instruction: CircuitInstruction) -> None:
        x, _ = self.owed.get(instruction.qubits[0], (0, 0))
        self._single(_negated(instruction) if x else instruction)

    def through(self, instruction: CircuitInstruction) -> None:
        """Past √X (Z becomes Y, Y becomes Z), X or the identity."""
        qubit = instruction.qubits[0]
        x, z = self.owed.get(qubit, (0, 0))
        if instruction.operation.name == "sx":
            self.owed[qubit] = (x ^ z, z)
        self._single(instruction)

    def _single(self, instruction: CircuitInstruction) -> None:
        self.last.setdefault(instruction.qubits[0], []).append(len(self.written))
        self.written.append([instruction])

    def pay(self, qubit: Qubit, more: Frame = (0, 0)) -> None:
        """Let the Pauli owed, times `more`, act now."""
        x, z = self.owed.pop(qubit, (0, 0))
        x, z = x ^ more[0], z ^ more[1]
        turn = CircuitInstruction(RZGate(math.pi), (qubit,))
        if x:
            places = self.last.get(qubit, [])
            roots = [at for at in places if self.written[at][0].operation.name == "sx"]
            if roots:  # Z before √X is Y behind it; that is carried to here past what follows
                self.written[roots[-1]].insert(0, turn)
                for at in places[places.index(roots[-1]) + 1 :]:
                    self.written[at] = [_negated(i) if i.operation.name == "rz" else i for i in self.written[at]]
                z ^= 1
            else:
                self._single(CircuitInstruction(XGate(), (qubit,)))
        if z:
            self._single(turn)

    def circuit(self) -> QuantumCircuit:
        for instructions in self.written:
            for instruction in instructions:
                self.empty.append(instruction, copy=False)
        return self.empty


def _negated(instruction: CircuitInstruction) -> CircuitInstruction:
    return instruction.replace(operation=RZGate(-instruction.operation.params[0]))


@cache
def _behind(gate: str, before: tuple[Frame, Frame]) -> tuple[Frame, Frame]:
    """Paulis (P0', P1') with G (P0 ⊗ P1) = ± (P0' ⊗ P1') G."""
    pauli = Pauli((np.array([z for _, z in before], dtype=bool), np.array([x for x, _ in before], dtype=bool)))
    after = pauli.evolve(get_standard_gate_name_mapping()[gate], frame="s")
    return (int(after.x[0]), int(after.z[0])), (int(after.x[1]), int(after.z[1]))
