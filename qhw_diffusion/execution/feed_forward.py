"""Feed-forward: operations that depend on bits read before, on real rows [D, B], forwards and backwards.

Where an outcome is read that a condition asks for later, the density matrix splits into one part per outcome *read*,
not normalised: its trace is the probability. With readout errors the part of an outcome read holds both true ones. The
classical record of a part is the bits read so far; a bit that no condition asks for any more is forgotten, and parts
that now have the same record are added up. The parts stand side by side as further columns, so that what does not
depend on the record is done on all of them at once, by the same compiled loops. Everything is linear: an outcome is
enumerated and never drawn, and derivatives are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.errors import UnsupportedCircuitError
from qhw_diffusion.execution.fusion import Basis, Precision
from qhw_diffusion.execution.gate_sequence import Built, GateSequence, Trace
from qhw_diffusion.execution.program import Conditional, FixedMap, Measurement, Operation, Program, Rotation

# Parts of one density matrix; 4,096 of three qubits are as large as one of nine
MOST_PARTS = 2**12


@dataclass(frozen=True, eq=False)
class Run:
    """Operations on some of the parts, given by their places; the same for all of them."""

    places: tuple[int, ...]
    sequence: GateSequence


@dataclass(frozen=True, eq=False)
class Transfer:
    """New parts from old ones: part `target` is the sum over its terms of weights[D] · part `source`.

    Attributes:
        n_parts: before and after.
        terms: (source, target, weights of the rows, or None for 1).
    """

    n_parts: tuple[int, int]
    terms: tuple[tuple[int, int, np.ndarray | None], ...]


@dataclass(frozen=True, eq=False)
class BranchedTrace:
    """What a forward pass leaves for the backward pass: the trace of every `Run`, and the angles."""

    traces: list[Trace | None]


class BranchedSequence:
    """Operations with conditions, as `GateSequence` is one without: one density matrix goes in and comes out.

    Args:
        operations: in time order.
        program: says which rotations depend on an input.
        noisy: take the maps with the device's noise, and read with readout errors.
        dtype: np.float32 or np.float64.

    Raises:
        UnsupportedCircuitError: too many outcomes that conditions ask for at a time.
    """

    def __init__(self, operations: Sequence[Operation], program: Program, *, noisy: bool, dtype: Precision) -> None:
        self.basis: Basis = "density"
        self.orthogonal = False
        self.dtype, self.noisy, self.program = dtype, noisy, program
        self.nodes: list[Run | Transfer] = []
        self._records = [0]  # of the parts, in the order of their columns; bit k is that of self._bits[k]
        last_read = {c: at for at, o in enumerate(operations) if isinstance(o, Conditional) for c in o.reads}
        self._bits = {clbit: k for k, clbit in enumerate(sorted(last_read))}
        waiting: list[Rotation | FixedMap] = []
        most = 1
        for at, operation in enumerate(operations):
            asked = isinstance(operation, Measurement) and last_read.get(operation.clbit, -1) > at
            if isinstance(operation, Conditional) or asked:
                self._run(waiting, self._records)
                waiting = []
            if isinstance(operation, Conditional):
                self._branch(operation, self._records)
                self._forget({c for c in operation.reads if last_read[c] == at})
            elif asked:
                assert isinstance(operation, Measurement)
                self._read(operation)
            else:
                waiting.append(operation)
            most = max(most, len(self._records))
        self._run(waiting, self._records)
        runs = [node for node in self.nodes if isinstance(node, Run)]
        single = runs[0].sequence if runs else self._sequence([])
        self.n_rows, self.row_bytes = single.n_rows, single.row_bytes * most
        self.n_kept = sum(run.sequence.n_kept for run in runs)
        self.n_steps = sum(run.sequence.n_steps * len(run.places) for run in runs)
        self.own = np.unique(np.concatenate([single.own, *(run.sequence.own for run in runs)]))

    def shared(self, angles: np.ndarray) -> list[Built]:
        """The matrices of every `Run` as in `GateSequence.shared`, of angles [R, B or 1]."""
        return [node.sequence.shared(angles) for node in self.nodes if isinstance(node, Run)]

    def forward(
        self, x: np.ndarray, angles: np.ndarray, keep: bool, shared: list[Built] | None = None
    ) -> tuple[np.ndarray, BranchedTrace | None]:
        """Rows [D, B] (overwritten) and angles [R, B] → rows [D, B], and what `backward` needs (if `keep`).

        `shared`: from the method of this name, where the angles it is made of have not changed.
        """
        columns = x.shape[1]
        traces: list[Trace | None] = []
        for node in self.nodes:
            if isinstance(node, Transfer):
                x = _transfer(node, x, columns, back=False)
                continue
            chosen = _chosen(node, x, columns)
            tiled = angles if len(node.places) == 1 else np.tile(angles, (1, len(node.places)))
            built = None if shared is None else shared[len(traces)]
            out, trace = node.sequence.forward(chosen, tiled, keep, built)
            traces.append(trace)
            x = _put(node, x, out, columns)
        return x, BranchedTrace(traces) if keep else None

    def backward(self, adjoint: np.ndarray, trace: BranchedTrace, shared: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Derivatives [D, B] by the result (overwritten) → by the start; those by angles as in `GateSequence`."""
        columns, traces = adjoint.shape[1], list(trace.traces)
        for node in reversed(self.nodes):
            if isinstance(node, Transfer):
                adjoint = _transfer(node, adjoint, columns, back=True)
                continue
            parts = len(node.places)
            each = np.zeros((len(slopes), parts * columns), self.dtype)
            kept = traces.pop()
            assert kept is not None
            out = node.sequence.backward(_chosen(node, adjoint, columns), kept, shared, each)
            slopes += each.reshape(len(slopes), parts, columns).sum(1)
            adjoint = _put(node, adjoint, out, columns)
        return adjoint

    # -- the plan ------------------------------------------------------------------------------------------------------

    def _sequence(self, operations: Sequence[Rotation | FixedMap]) -> GateSequence:
        return GateSequence(operations, self.program, self.basis, noisy=self.noisy, dtype=self.dtype)

    def _run(self, operations: Sequence[Rotation | FixedMap], records: Sequence[int]) -> None:
        if operations and records:
            places = tuple(self._records.index(record) for record in records)
            self.nodes.append(Run(places, self._sequence(operations)))

    def _branch(self, conditional: Conditional, records: Sequence[int]) -> None:
        """Every branch on the parts whose record chooses it."""
        chosen: dict[int, list[int]] = {}
        for record in records:
            value = sum((record >> self._bits[clbit] & 1) << k for k, clbit in enumerate(conditional.clbits))
            chosen.setdefault(conditional.choice[value], []).append(record)
        for at, branch in enumerate(conditional.branches):
            waiting: list[Rotation | FixedMap] = []
            for operation in branch:
                if isinstance(operation, Conditional):
                    self._run(waiting, chosen.get(at, []))
                    waiting = []
                    self._branch(operation, chosen.get(at, []))
                else:
                    waiting.append(operation)
            self._run(waiting, chosen.get(at, []))

    def _read(self, measurement: Measurement) -> None:
        """Parts by the outcome read; what was in the bit before is overwritten."""
        bit = 1 << self._bits[measurement.clbit]
        outcomes = (0, 1) if measurement.keep is None else (measurement.keep,)
        moves = [(r, r & ~bit | bit * read, read) for r in self._records for read in outcomes]
        digits = np.arange(4**self.program.n_qubits) // 4 ** measurement.qubits[0] % 4
        weights = []
        for read in (0, 1):
            zero, one = measurement.populations(read, self.noisy)
            weights.append(np.array([zero, 0, one, 0], self.dtype)[digits])  # the coordinates 1 and 3 are coherences
        self._move([(source, target, weights[read]) for source, target, read in moves])

    def _forget(self, clbits: set[int]) -> None:
        kept = ~sum(1 << self._bits[clbit] for clbit in clbits)
        if any(record & kept != record for record in self._records):
            self._move([(record, record & kept, None) for record in self._records])

    def _move(self, moves: Sequence[tuple[int, int, np.ndarray | None]]) -> None:
        after = sorted({target for _, target, _ in moves})
        if len(after) > MOST_PARTS:
            raise UnsupportedCircuitError(
                f"conditions ask for more than {MOST_PARTS.bit_length() - 1} outcomes at a time, and each one doubles "
                "what is simulated; measure them later, or let fewer conditions depend on them"
            )
        terms = tuple((self._records.index(s), after.index(t), weights) for s, t, weights in moves)
        self.nodes.append(Transfer((len(self._records), len(after)), terms))
        self._records = after


def sequence_of(
    operations: Sequence[Operation], program: Program, basis: Basis, *, noisy: bool, dtype: Precision
) -> GateSequence | BranchedSequence:
    """Operations as steps on rows, with conditions among them or without."""
    if any(isinstance(operation, Conditional) for operation in operations):
        assert basis == "density"  # `Program.pure` is False
        return BranchedSequence(operations, program, noisy=noisy, dtype=dtype)
    plain: list[Rotation | FixedMap] = [o for o in operations if not isinstance(o, Conditional)]
    return GateSequence(plain, program, basis, noisy=noisy, dtype=dtype)


def _columns(place: int, columns: int) -> slice:
    return slice(place * columns, (place + 1) * columns)


def _all(node: Run, x: np.ndarray | Tensor, columns: int) -> bool:
    return len(node.places) * columns == x.shape[1]


def _chosen(node: Run, x: np.ndarray, columns: int) -> np.ndarray:
    """The parts of a run side by side: x itself if these are all."""
    if _all(node, x, columns):
        return x
    return np.concatenate([x[:, _columns(place, columns)] for place in node.places], axis=1)


def _put(node: Run, x: np.ndarray, parts: np.ndarray, columns: int) -> np.ndarray:
    """`x` with the parts of a run in their places."""
    if _all(node, x, columns):
        return parts
    for k, place in enumerate(node.places):
        x[:, _columns(place, columns)] = parts[:, _columns(k, columns)]
    return x


def _transfer(node: Transfer, x: np.ndarray, columns: int, *, back: bool) -> np.ndarray:
    result = np.zeros((len(x), node.n_parts[0 if back else 1] * columns), x.dtype)
    for source, target, weights in node.terms:
        a, b = (target, source) if back else (source, target)
        moved = x[:, _columns(a, columns)]
        result[:, _columns(b, columns)] += moved if weights is None else weights[:, None] * moved
    return result


def in_parts(node: Transfer, parts: Sequence[Tensor]) -> list[Tensor]:
    """A transfer of parts [D, B] on torch's own tape."""
    result = [torch.zeros_like(parts[0]) for _ in range(node.n_parts[1])]
    for source, target, weights in node.terms:
        moved = parts[source] if weights is None else torch.from_numpy(weights)[:, None] * parts[source]
        result[target] = result[target] + moved
    return result
