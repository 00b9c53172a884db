"""Mid-circuit measurements with sampled outcomes: one trajectory per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import Engine
from qhw_diffusion.execution.engines import Ideal, simulator_of
from qhw_diffusion.execution.gate_sequence import GateSequence
from qhw_diffusion.execution.measurement import outcome_probabilities
from qhw_diffusion.execution.program import Conditional, FixedMap, Measurement, Operation, Program, plain
from qhw_diffusion.execution.simulator import COPIES_BYTES, Simulator, check_kept, chunks_of


@dataclass(frozen=True)
class Trajectories:
    """What was drawn.

    Attributes:
        values: [B, M] expectation values given the outcomes.
        outcomes: [B, K] as read (readout errors included, if the engine has them), one column a measurement, in order.
        clbits: [K] the classical bit of each.
    """

    values: Tensor
    outcomes: Tensor
    clbits: tuple[int, ...]


def sample_trajectories(
    compiled: CompiledCircuit, engine: Engine, inputs: Tensor, weights: Tensor, generator: torch.Generator
) -> Trajectories:
    """Run every sample through the circuit with the outcomes of its mid-circuit measurements drawn.

    A measurement collapses the state by the true outcome; what is read may differ from it by the readout error.
    Outcomes are drawn given everything that is post-selected on, before and after them.

    Args:
        compiled: a circuit with measurements; those that it post-selects on are kept as such.
        engine: ``Ideal()`` or ``Noisy()``.
        inputs: [B, inputs] radians.
        weights: [weights] radians.
        generator: where the outcomes come from.

    Raises:
        InvalidInputError: another engine, a circuit without measurements that are not post-selected on, or outcomes
            post-selected on that (next to) never occur.
    """
    if not isinstance(engine, Ideal):
        raise InvalidInputError(f"engine {engine.name!r} cannot sample trajectories; use 'ideal' or 'noisy'")
    program = compiled.program
    segments: list[list[Operation]] = [[]]
    drawn: list[Measurement] = []
    for operation in program.operations:
        if isinstance(operation, Measurement) and operation.keep is None:
            drawn.append(operation)
            segments.append([])
        else:
            segments[-1].append(operation)
    if not drawn:
        raise InvalidInputError(
            "every measurement of the circuit is post-selected on: there is no outcome left to sample; call the layer "
            "itself for the values given these outcomes"
            if program.postselected
            else "the circuit measures nothing in mid-circuit: there is no outcome to sample"
        )
    if program.feeds_forward:
        _check_feed_forward(program)
    if program.postselected:
        exact = simulator_of(compiled, engine.noisy, torch.float64)
        with torch.no_grad():
            check_kept(exact.raw(inputs.double(), weights.double())[:, -1])
    ahead = any(isinstance(o, Measurement) for segment in segments[1:] for o in segment)  # post-selected on
    simulator = exact if ahead else simulator_of(compiled, engine.noisy, weights.dtype)
    # Between measurements a pure state stays pure, unless something else mixes it.
    coherent = tuple(operation for segment in segments for operation in plain(segment))
    pure = not engine.noisy and all(o.matrix is not None for o in coherent if isinstance(o, FixedMap))
    if pure and simulator.basis != "state" and not ahead:
        simulator = Simulator(replace(program, operations=coherent), noisy=False, dtype=weights.dtype)
    parts = [_parts(segment, simulator) for segment in segments]
    back = [simulator.transposed(segment) for segment in segments[1:]] if ahead else []
    outcomes = np.zeros((len(inputs), len(drawn)), dtype=np.int64)
    values = np.zeros((len(inputs), len(simulator.observables)), simulator.dtype)
    for chunk in _chunks(simulator, len(inputs), len(back)):
        angles = simulator.angles(inputs[chunk].detach().cpu().numpy(), weights.detach().cpu().numpy())
        effects = _effects(back, drawn, angles, simulator) if ahead else [None] * len(drawn)
        rows = simulator.start(chunk.stop - chunk.start)
        read: dict[int, np.ndarray] = {}
        for k, segment in enumerate(parts):
            rows = _through(segment, rows, angles, read)
            if k < len(drawn):
                read[drawn[k].clbit] = _measure(rows, drawn[k], effects[k], simulator, engine.noisy, generator)
                outcomes[chunk, k] = read[drawn[k].clbit]
        values[chunk] = simulator.observables.values(rows, simulator.observables.rows)
    given = values[:, :-1] / values[:, -1:] if program.postselected else values
    return Trajectories(
        torch.from_numpy(np.ascontiguousarray(given)).to(inputs),
        torch.from_numpy(outcomes).to(inputs.device),
        tuple(m.clbit for m in drawn),
    )


def _check_feed_forward(program: Program) -> None:
    if program.postselected:
        raise InvalidInputError(
            "outcomes of a circuit with conditions are not drawn given others that are post-selected on; call the "
            "layer itself for the values, or sample without postselect"
        )
    conditionals = [o for o in program.operations if isinstance(o, Conditional)]
    if any(isinstance(o, Measurement) for o in plain(conditionals)):
        raise InvalidInputError(
            "the circuit measures within a branch of a condition, where not every sample has an outcome; call the "
            "layer itself for the values"
        )


# Operations without conditions, or for every value of some bits read the parts of the branch taken
_Part = GateSequence | tuple[Conditional, tuple[list["_Part"], ...]]


def _parts(operations: Sequence[Operation], simulator: Simulator) -> list[_Part]:
    parts: list[_Part] = []
    for conditional, some in groupby(operations, key=lambda operation: isinstance(operation, Conditional)):
        if conditional:
            parts += [(c, tuple(_parts(b, simulator) for b in c.branches)) for c in some if isinstance(c, Conditional)]
        else:
            sequence = simulator.sequence(list(some))
            assert isinstance(sequence, GateSequence)
            parts.append(sequence)
    return parts


def _through(
    parts: Sequence[_Part], rows: np.ndarray, angles: np.ndarray, read: Mapping[int, np.ndarray]
) -> np.ndarray:
    """Rows [D, B] and angles [R, B] → rows [D, B], every column through the branches its bits `read` [B] choose."""
    for part in parts:
        if isinstance(part, GateSequence):
            rows, _ = part.forward(rows, angles, keep=False)
            continue
        conditional, branches = part
        value = np.zeros(rows.shape[1], dtype=np.int64)
        for k, clbit in enumerate(conditional.clbits):
            value += read.get(clbit, np.zeros_like(value)).astype(np.int64) << k
        taken = np.array(conditional.choice)[value]
        for at, branch in enumerate(branches):
            columns = np.flatnonzero(taken == at)
            if len(columns):
                within = {clbit: bits[columns] for clbit, bits in read.items()}
                chosen = np.ascontiguousarray(rows[:, columns])
                rows[:, columns] = _through(branch, chosen, np.ascontiguousarray(angles[:, columns]), within)
    return rows


def _chunks(simulator: Simulator, batch: int, effects: int) -> list[slice]:
    """Samples worked on at a time, so many that their effects stay within COPIES_BYTES."""
    columns = simulator.chunks(batch)[0].stop
    if effects:
        kept = effects * simulator.n_rows * np.dtype(simulator.dtype).itemsize
        columns = max(1, min(columns, COPIES_BYTES // kept))
    return chunks_of(batch, columns)


def _effects(
    back: list[GateSequence], drawn: list[Measurement], angles: np.ndarray, simulator: Simulator
) -> list[np.ndarray | None]:
    """For each outcome drawn, rows [D, B] of the effect of all that follows.

    Its product with the rows of a state right after the measurement is the probability of the outcomes post-selected on
    later. It is the identity at the end, taken backwards in time through the segments after the first measurement.
    """
    effects: list[np.ndarray | None] = []
    effect = np.repeat(simulator.observables.rows[:, -1:], angles.shape[1], axis=1)
    for sequence, measurement in zip(reversed(back), reversed(drawn), strict=True):
        effect, _ = sequence.forward(effect.copy(), angles, keep=False)
        effect *= (_digits(measurement.qubits[0], simulator) % 2 == 0)[:, None]  # the measurement leaves no coherences
        effects.append(effect)
    return effects[::-1]


def _measure(
    rows: np.ndarray,
    measurement: Measurement,
    effect: np.ndarray | None,
    simulator: Simulator,
    noisy: bool,
    generator: torch.Generator,
) -> np.ndarray:
    """Draw the outcome of every column, collapse the rows in place, and return what is read, [B].

    With an `effect` (`_effects`) the outcome is drawn given what is post-selected on later.
    """
    (q,), n = measurement.qubits, simulator.program.n_qubits
    if effect is None:
        probabilities = outcome_probabilities(rows, "Z" * n, simulator.basis)
        ones = probabilities[:, (np.arange(2**n) >> q) & 1 == 1].sum(1) / probabilities.sum(1)
    else:
        joint, digits = rows * effect, _digits(q, simulator)
        zero, one = (joint[digits == digit].sum(0).clip(0) for digit in (0, 2))
        ones = one / (zero + one)
    chance = torch.rand((2, rows.shape[1]), generator=generator, dtype=torch.float64).numpy()
    true = chance[0] < ones
    _collapse(rows, q, true, simulator)
    p10, p01 = measurement.readout if noisy else (0.0, 0.0)
    read: np.ndarray = true ^ (chance[1] < np.where(true, p01, p10))
    return read


def _digits(q: int, simulator: Simulator) -> np.ndarray:
    """[D] for density rows: 0 and 2 are the populations of qubit q, 1 and 3 its coherences."""
    digits: np.ndarray = np.arange(simulator.n_rows) // 4**q % 4
    return digits


def _collapse(rows: np.ndarray, q: int, ones: np.ndarray, simulator: Simulator) -> None:
    """Project qubit q of every column on its outcome and normalise, in place."""
    if simulator.basis == "state":
        digit = (np.arange(len(rows)) % (len(rows) // 2)) >> q & 1
        rows *= digit[:, None] == ones[None, :]
        rows /= np.linalg.norm(rows, axis=0)
        return
    rows *= _digits(q, simulator)[:, None] == 2 * ones[None, :]  # the coherences go as well
    trace = outcome_probabilities(rows, "Z" * simulator.program.n_qubits, "density").sum(1)
    rows /= trace.astype(rows.dtype)
