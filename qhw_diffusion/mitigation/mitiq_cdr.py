"""Clifford data regression with Mitiq's training circuits (arXiv 2005.10189)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from qiskit.circuit import ParameterExpression, ParameterVector
from qiskit.circuit.library import RZGate
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment, Ideal
from qhw_diffusion.mitigation.mitiq_bridge import check_basis, require_mitiq, rz_angles, to_cirq
from qhw_diffusion.mitigation.mitiq_weighted import check_number
from qhw_diffusion.mitigation.strategy import Calibration, Cost, Strategy, kept, with_isa, without_delays

if TYPE_CHECKING:
    import cirq


@dataclass(frozen=True)
class MitiqCDR(Strategy):
    """Learn ideal = a·noisy + b, one line per observable, on circuits that differ from this one in their rz alone.

    Mitiq replaces most rz by the closest Clifford ones; the ideal values come from engine ``"ideal"``. All training
    circuits are rows of one circuit whose rz angles are its inputs: one broadcast, nothing is compiled.

    rz is virtual, so rows of parameters share the noise of their gates. By default one set of training circuits, around
    angles drawn at random, serves all rows and all weights: measured once, and a gradient goes through. With
    `each_row` every row has its own set around its own angles, as in the paper: more accurate, `training_circuits`
    times the cost, no gradient.

    Readout errors are learned along; list no `Readout` before it.

    Args:
        training_circuits: in one set, ≥ 3.
        fraction_non_clifford: share of the rz that are kept, > 0 and < 1. Mitiq's default, 0.1, leaves values that are
            all 0 or ±1, through which no line can be laid; circuits that fit an ideal simulator have no need of it.
        each_row: a set for every row.
        seed: of the angles and of Mitiq's choices.

    Raises:
        InvalidInputError: a number out of range; a circuit without rz to replace.
    """

    training_circuits: int = 24
    fraction_non_clifford: float = 0.5
    each_row: bool = False
    seed: int = 0
    name: ClassVar[str] = "mitiq-cdr"

    def __post_init__(self) -> None:
        check_number("training_circuits", self.training_circuits, 3)
        check_number("seed", self.seed, 0)
        if not 0 < self.fraction_non_clifford < 1:
            raise InvalidInputError(
                f"fraction_non_clifford is {self.fraction_non_clifford!r}; it must lie between 0 and 1, for example 0.5"
            )

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return not self.each_row

    @property
    def spec(self) -> str:
        scope = "rows" if self.each_row else "shared"
        return f"{self.name}:{self.training_circuits}:{self.fraction_non_clifford:g}:{scope}:{self.seed}"

    def check(self, compiled: CompiledCircuit) -> None:
        require_mitiq()
        isa = without_delays(compiled)
        check_basis(isa)
        if not rz_angles(isa):
            raise InvalidInputError("the circuit has no rz whose angle could be replaced by a Clifford one")

    def construct(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        self.check(compiled)
        if not self.each_row:
            return [(compiled, rows)]
        return [(compiled, rows), (by_angle(compiled), self._around_rows(compiled, rows))]

    def calibration(self, compiled: CompiledCircuit) -> Calibration | None:
        if self.each_row:
            return None
        self.check(compiled)
        return Calibration((compiled,), ((by_angle(compiled), self._around_random(compiled)),))

    def combine(
        self,
        estimates: Sequence[Estimate],
        compiled: CompiledCircuit,
        rows: Tensor,
        calibration: Sequence[Estimate] = (),
    ) -> Estimate:
        measured = estimates[0]
        if self.each_row:
            angles, noisy = self._around_rows(compiled, rows), estimates[1].values.detach()
            sets = len(rows)
        else:
            angles, noisy = self._around_random(compiled), calibration[0].values
            sets = 1
        ideal = Ideal().estimate(by_angle(compiled), angles).values
        shape = (sets, self.training_circuits, compiled.n_observables)
        return regress(ideal.double().reshape(shape), noisy.double().reshape(shape), measured)

    def cost(self, compiled: CompiledCircuit) -> Cost:
        if self.each_row:
            return Cost(1 + self.training_circuits, 1 + self.training_circuits)
        return Cost(calibration_circuits=self.training_circuits)

    def _around_random(self, compiled: CompiledCircuit) -> Tensor:
        """[N, rz gates] radians."""
        store, key = kept(compiled), (self, "training")
        if key not in store:
            expressions = rz_angles(without_delays(compiled))
            drawn = np.random.default_rng(self.seed).uniform(-np.pi, np.pi, len(expressions))
            fixed = [not (isinstance(e, ParameterExpression) and e.parameters) for e in expressions]
            angles = [float(e) if f else d for e, f, d in zip(expressions, fixed, drawn, strict=True)]
            store[key] = self._training(compiled, angles, self.seed)
        training: Tensor = store[key]
        return training

    def _around_rows(self, compiled: CompiledCircuit, rows: Tensor) -> Tensor:
        """[B · N, rz gates] radians, the sets one after the other."""
        expressions = rz_angles(without_delays(compiled))
        order = [*compiled.inputs, *compiled.weights]
        sets = []
        for row in rows.detach().double().cpu().tolist():
            values = dict(zip(order, row, strict=True))
            angles = [
                float(e.bind({p: values[p] for p in e.parameters})) if isinstance(e, ParameterExpression) else float(e)
                for e in expressions
            ]
            sets.append(self._training(compiled, angles, self.seed))
        return torch.cat(sets)

    def _training(self, compiled: CompiledCircuit, angles: Sequence[float], seed: int) -> Tensor:
        """[N, rz gates]: the angles of Mitiq's training circuits around a circuit with these angles."""
        from mitiq.cdr import generate_training_circuits

        circuits = generate_training_circuits(
            to_cirq(compiled, angles), self.training_circuits, self.fraction_non_clifford, random_state=seed
        )
        places = _rz_places(compiled)
        return torch.tensor([_angles_at(c, places) for c in circuits], dtype=torch.float64)


def regress(ideal: Tensor, noisy: Tensor, measured: Estimate) -> Estimate:
    """Least-squares lines through [S, N, M] training values, S = 1 or B, applied to a measured estimate [B, M].

    Standard errors hold those of the measurement and those of the fit (from the scatter around the line).
    """
    count = noisy.shape[1]
    centre, target = noisy.mean(1), ideal.mean(1)
    spread = ((noisy - centre[:, None]) ** 2).sum(1)  # [S, M]
    covariance = ((noisy - centre[:, None]) * (ideal - target[:, None])).sum(1)
    # Where all training values are alike there is no line, only their mean: slope 1 keeps the measurement's own
    known = spread > 1e-12
    slope = torch.where(known, covariance / spread.clamp(min=1e-12), torch.ones_like(spread))
    residual = ((ideal - target[:, None] - slope[:, None] * (noisy - centre[:, None])) ** 2).sum(1) / (count - 2)
    values = measured.values
    away = values.detach().double() - centre
    variance = (slope * measured.std_errors.double()) ** 2
    variance = variance + residual * (1 / count + torch.where(known, away**2 / spread.clamp(min=1e-12), 0.0))
    corrected = target.to(values) + slope.to(values) * (values - centre.to(values))
    return Estimate(corrected, variance.sqrt().to(values))


def by_angle(compiled: CompiledCircuit) -> CompiledCircuit:
    """The same circuit with the angle of every rz as an input, in the circuit's order."""
    store = kept(compiled)
    if "by_angle" not in store:
        isa = without_delays(compiled)
        angles = ParameterVector("angle", len(rz_angles(isa)))
        left, bare = iter(angles), isa.copy_empty_like()
        for instruction in isa.data:
            rz = instruction.operation.name == "rz"
            bare.append(instruction.replace(operation=RZGate(next(left))) if rz else instruction, copy=False)
        store["by_angle"] = replace(with_isa(compiled, bare), inputs=tuple(angles), weights=())
    circuit: CompiledCircuit = store["by_angle"]
    return circuit


def _rz_places(compiled: CompiledCircuit) -> list[tuple[int, int]]:
    """(qubit, position among the operations on it) of each rz: what Mitiq keeps when it repacks a circuit."""
    place = {q: i for i, q in enumerate(compiled.physical_qubits)}
    isa, counts, places = without_delays(compiled), dict.fromkeys(range(len(place)), 0), []
    for instruction in isa.data:
        if instruction.operation.name == "barrier":
            continue
        qubits = [place[isa.find_bit(q).index] for q in instruction.qubits]
        if instruction.operation.name == "rz":
            places.append((qubits[0], counts[qubits[0]]))
        for qubit in qubits:
            counts[qubit] += 1
    return places


def _angles_at(circuit: cirq.Circuit, places: Sequence[tuple[int, int]]) -> list[float]:
    lines: dict[int, list] = {}
    for operation in circuit.all_operations():
        for qubit in operation.qubits:
            lines.setdefault(qubit.x, []).append(operation)  # type: ignore[attr-defined]
    return [float(lines[qubit][position].gate.exponent) * np.pi for qubit, position in places]
