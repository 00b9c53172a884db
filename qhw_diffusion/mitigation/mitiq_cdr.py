"""Clifford data regression with Mitiq's training circuits (arXiv 2005.10189)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from qiskit.circuit import Parameter, ParameterExpression, ParameterVector
from qiskit.circuit.library import RZGate
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment, Ideal
from qhw_diffusion.mitigation.mitiq_bridge import check_basis, rz_angles, to_cirq
from qhw_diffusion.mitigation.mitiq_weighted import check_number
from qhw_diffusion.mitigation.rewriting import kept, with_isa, without_delays
from qhw_diffusion.mitigation.strategy import MOST_CIRCUITS, Need, Strategy, require_mitiq

if TYPE_CHECKING:
    import cirq

# Standard deviation of a set's ideal values: below the first a line means nothing, from the second on it stands up to
# a few thousand shots. A set between them is taken if none of the draws gives a better one.
_LEAST_SPREAD, _ENOUGH_SPREAD, _DRAWS = 0.01, 0.05, 8


@dataclass(frozen=True)
class MitiqCDR(Strategy):
    """Clifford data regression: ideal = a·noisy + b, learned on circuits that differ from this one in their rz alone.

    Mitiq replaces most rz by the closest Clifford ones; the ideal values come from engine ``"ideal"``. All training
    circuits are rows of one circuit whose rz angles are its inputs: one broadcast, nothing is compiled.

    rz is virtual, so rows of parameters share the noise of their gates. By default one set of training circuits, around
    angles drawn at random, serves all rows, and a gradient goes through. With `each_row` every row has its own set
    around its own angles, as in the paper: more accurate, `training_circuits` times the cost, no gradient.

    A set whose ideal values are too close together is drawn again, up to eight times; the one with the widest spread is
    taken. Training circuits are measured with every evaluation and go through the strategies listed before, as the
    circuit itself does. Readout errors are learned along: `Readout` is not needed.

    Args:
        training_circuits: in one set, ≥ 3.
        fraction_non_clifford: share of the rz that are kept, > 0 and < 1. Mitiq's default, 0.1, leaves values that are
            all 0 or ±1, through which no line can be laid; circuits that fit an ideal simulator have no need of it.
        each_row: a set for every row.
        seed: of the angles and of Mitiq's choices.

    Raises:
        InvalidInputError: a number out of range; a circuit without rz to replace; training circuits (when they are
            made) with nearly the same ideal value each, so that no line can be learned.
    """

    training_circuits: int = 24
    fraction_non_clifford: float = 0.5
    each_row: bool = False
    seed: int = 0
    name: ClassVar[str] = "mitiq-cdr"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MITIQ, Need.NOISELESS_SIMULATOR})
    text_least: ClassVar[int] = 9  # a text states them all
    text_words: ClassVar[Mapping[str, tuple[str, str]]] = {"each_row": ("shared", "rows")}

    def __post_init__(self) -> None:
        check_number("training_circuits", self.training_circuits, 3, MOST_CIRCUITS)
        check_number("seed", self.seed, 0)
        if not 0 < self.fraction_non_clifford < 1:
            raise InvalidInputError(
                f"fraction_non_clifford is {self.fraction_non_clifford!r}; it must lie between 0 and 1, for example 0.5"
            )

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether one training set serves all rows."""
        return not self.each_row

    @property
    def label(self) -> str:
        """``"Mitiq CDR, 24 circuits"``, and whether each row has its own."""
        return f"Mitiq CDR, {self.training_circuits} circuits" + (" a row" if self.each_row else "")

    def check(self, compiled: CompiledCircuit) -> None:
        """Raise for a circuit without rz, gates that Mitiq is not given, or without Mitiq."""
        require_mitiq()
        isa = without_delays(compiled)
        check_basis(isa)
        if not rz_angles(isa):
            raise InvalidInputError("the circuit has no rz whose angle could be replaced by a Clifford one")

    def construct(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        """The circuit itself, and the training circuits as rows of one circuit."""
        measured, (circuit, _) = self.plan(compiled, rows)
        angles, _ = self._training(compiled, rows)
        return [measured, (circuit, angles.to(rows))]

    def labels(self, compiled: CompiledCircuit, made: Sequence[Experiment]) -> list[str]:
        """The circuit itself, and the training circuits."""
        return ["", f"training circuits of {self.label}"]

    def combine(
        self,
        estimates: Sequence[Estimate],
        compiled: CompiledCircuit,
        rows: Tensor,
        calibration: Sequence[Estimate] = (),
    ) -> Estimate:
        """The lines through the training circuits, applied to the measured values."""
        measured, training = estimates
        _, ideal = self._training(compiled, rows)
        noisy, errors = (t.detach().reshape(ideal.shape) for t in (training.values, training.std_errors))
        return regress(ideal.to(rows), noisy, errors, measured)

    def plan(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        """As `construct`, with zeros for the angles: nothing is simulated to count."""
        self.check(compiled)
        circuit = by_angle(compiled)
        sets = len(rows) if self.each_row else 1
        return [(compiled, rows), (circuit, rows.new_zeros(sets * self.training_circuits, circuit.n_inputs))]

    def _training(self, compiled: CompiledCircuit, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Angles [S · N, rz gates] of the training circuits and their ideal values [S, N, M]; S = 1 or the rows."""
        store, rz = kept(compiled), rz_angles(without_delays(compiled))
        # The rows of the last evaluation are enough: `combine` follows `construct`
        key, seen = (self, "training"), rows.detach().cpu() if self.each_row else None
        if key in store and (seen is None or torch.equal(store[key][0], seen)):
            return store[key][1:]
        references = self._references(compiled, rz, rows)
        best: list[tuple[float, Tensor, Tensor]] = [(-1.0, rows, rows)] * len(references)
        for attempt in range(_DRAWS):
            poor = [i for i, (spread, _, _) in enumerate(best) if spread < _ENOUGH_SPREAD]
            if not poor:
                break
            drawn = [self._angles_around(compiled, references[i], self.seed + attempt) for i in poor]
            values = Ideal().estimate(by_angle(compiled), torch.cat(drawn)).values
            values = values.reshape(len(poor), self.training_circuits, compiled.n_observables)
            for i, angles, ideal in zip(poor, drawn, values, strict=True):
                best[i] = max(best[i], (float(ideal.std(0).min()), angles, ideal), key=lambda each: each[0])
        if min(spread for spread, _, _ in best) < _LEAST_SPREAD:
            worst = min(best, key=lambda each: each[0])[2].std(0)
            raise InvalidInputError(
                f"training circuits drawn {_DRAWS} times have nearly the same ideal value in observable "
                f"{int(worst.argmin())} (counted from 0; standard deviation {float(worst.min()):.1e}): no line can be "
                f"learned. Raise fraction_non_clifford (now {self.fraction_non_clifford:g}) or training_circuits"
                + (", or leave each_row out" if self.each_row else "")
            )
        store[key] = (seen, torch.cat([angles for _, angles, _ in best]), torch.stack([ideal for _, _, ideal in best]))
        return store[key][1:]

    def _references(self, compiled: CompiledCircuit, rz: Sequence[float | ParameterExpression], rows: Tensor) -> Any:
        """The angles around which training circuits are made: the rows' own, or drawn where parameters stand."""
        if not self.each_row:
            drawn = np.random.default_rng(self.seed).uniform(-np.pi, np.pi, len(rz))
            return [[float(d) if _symbols(e) else float(e) for e, d in zip(rz, drawn, strict=True)]]
        order = [*compiled.inputs, *compiled.weights]
        bindings = [dict(zip(order, row, strict=True)) for row in rows.detach().double().cpu().tolist()]
        return [[_bound(e, values) for e in rz] for values in bindings]

    def _angles_around(self, compiled: CompiledCircuit, angles: Sequence[float], seed: int) -> Tensor:
        """[N, rz gates]: the angles of Mitiq's training circuits around a circuit with these angles."""
        from mitiq.cdr import generate_training_circuits

        circuits = generate_training_circuits(
            to_cirq(compiled, angles), self.training_circuits, self.fraction_non_clifford, random_state=seed
        )
        places = _rz_places(compiled)
        return torch.tensor([_angles_at(c, places) for c in circuits], dtype=torch.float64)


def _symbols(angle: float | ParameterExpression) -> Any:
    return angle.parameters if isinstance(angle, ParameterExpression) else ()


def _bound(angle: float | ParameterExpression, values: dict[Parameter, float]) -> float:
    if isinstance(angle, ParameterExpression):
        return float(angle.bind({p: values[p] for p in angle.parameters}))
    return float(angle)


def regress(ideal: Tensor, noisy: Tensor, errors: Tensor, measured: Estimate) -> Estimate:
    """Least-squares lines through [S, N, M] training values, S = 1 or B, applied to a measured estimate [B, M].

    Standard errors hold those of the measurement, those of the fit (from the scatter around the line), and by how much
    the training values' own errors flatten the line: a share of var(errors) / var(noisy).
    """
    values, count = measured.values, noisy.shape[1]
    centre, target = noisy.mean(1), ideal.mean(1)  # [S, M]
    x, y = noisy - centre[:, None], ideal - target[:, None]
    slope = (x * y).sum(1) / (x**2).sum(1)
    residual = ((y - slope[:, None] * x) ** 2).sum(1) / (count - 2)
    flattened = ((errors**2).sum(1) / (x**2).sum(1)).clamp(max=0.9)
    away = values.detach() - centre
    variance = (slope * measured.std_errors) ** 2 + residual * (1 / count + away**2 / (x**2).sum(1))
    variance = variance + (slope * flattened / (1 - flattened) * away) ** 2
    return Estimate(target + slope * (values - centre), variance.sqrt())


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
