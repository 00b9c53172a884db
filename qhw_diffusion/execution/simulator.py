"""Evaluate a Program exactly: expectation values with gradients, outcome distributions, sampled trajectories.

Without noise a pure state per sample is carried through the circuit; with noise, or where states do not stay pure, a
density matrix. There the part of the circuit after the last rotation by an input is the same for every sample, so the M
observables are taken backwards through it instead of B density matrices forwards.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError, MemoryBudgetError
from qhw_diffusion.execution.cores import InOrder, adding_to, in_blocks, number_of_threads
from qhw_diffusion.execution.feed_forward import BranchedSequence, BranchedTrace, sequence_of
from qhw_diffusion.execution.fusion import Basis, Precision, dimension
from qhw_diffusion.execution.gate_sequence import Built, GateSequence, Trace
from qhw_diffusion.execution.measurement import (
    DensityObservables,
    StateObservables,
    outcome_probabilities,
    with_readout_errors,
)
from qhw_diffusion.execution.product import ProductState
from qhw_diffusion.execution.program import (
    Conditional,
    Measurement,
    Operation,
    Program,
    Rotation,
    angles_by_weights,
    angles_of,
    plain,
)
from qhw_diffusion.execution.recording import is_plain
from qhw_diffusion.execution.tape import (
    angles_in_torch,
    bytes_in_torch,
    evolve_in_torch,
    gradients_in_torch,
    is_transformed,
    refuse_unchecked_angles,
    without_autocast,
)
from qhw_diffusion.execution.unitary import UnitaryCircuit, fits

NUMPY: dict[torch.dtype, Precision] = {torch.float32: np.float32, torch.float64: np.float64}
# Bytes of rows in a block of samples, which stay in a core's second-level cache, and the fewest samples: a vector.
CHUNK_BYTES, CHUNK_COLUMNS = 2**17, 8
# A batch is cut into so many blocks at least, for as many cores, unless a block would change fewer numbers than this:
# then it is larger, since what a block costs in Python would count.
PARTS, WORK = 4, 2**20
# Bytes of what is kept of the samples of a block, where the state is a product
PRODUCT_BYTES = 2**18
# Bytes of a block of samples of a unitary circuit, and how many samples it may have in any case; numbers that are
# changed on a thread at least
UNITARY_BYTES, UNITARY_COLUMNS, THREAD_WORK = 2**19, 16, 2**18
# Observables in a block where they are taken back, unless such a block would change fewer numbers than WORK
TAIL_COLUMNS = 4
# Bytes and the fewest samples of a block where outcomes are drawn on the way; also the most, for blocks of little work.
DRAWN_BYTES, DRAWN_COLUMNS = 2**19, 32
# Copies of the rows are kept from the forward pass up to this size; beyond, the backward pass makes them again.
KEEP_BYTES = 2**26
# What the backward pass may hold at a time before it takes fewer samples at once.
COPIES_BYTES = 2**30
# Post-selection probabilities below this are rounding errors in single precision.
RAREST = 1e-6


@dataclass(frozen=True)
class MemoryPlan:
    """How a batch will be worked through.

    Attributes:
        columns: samples in a block.
        threads: blocks at a time.
        recompute: whether the backward pass evolves the rows again instead of keeping copies from the forward pass.
        bytes: the most that rows and copies take up at a time.
    """

    columns: int
    threads: int
    recompute: bool
    bytes: int


@dataclass
class _Kept:
    """What was made of the weights alone.

    Attributes:
        weights: their bytes.
        angles: [R] their part of all angles.
        shared: the matrices of blocks that no input enters, of a sequence.
        measured: the observables taken back through the tail; None as long as nobody asked.
    """

    weights: bytes
    angles: np.ndarray
    shared: dict[GateSequence | BranchedSequence, Built | list[Built]]
    measured: np.ndarray | None


class Simulator:
    """Expectation values of a Program's observables, exact up to rounding.

    Args:
        program: what to evaluate.
        noisy: with the device's gate, idle and readout errors.
        dtype: torch.float32 or torch.float64.
    """

    def __init__(self, program: Program, *, noisy: bool, dtype: torch.dtype) -> None:
        self.program, self.noisy, self.dtype = program, noisy, NUMPY[dtype]
        self.basis: Basis = "density" if noisy or not program.pure else "state"
        self.n_rows = dimension(self.basis, program.n_qubits)
        observables = program.observables
        refuse_if_too_large(program.n_qubits, self.basis, self.dtype, len(observables))
        if program.postselected:  # the probability of what was kept: the norm of what is left
            observables = (*observables, ((1.0, "I" * program.n_qubits),))
        readout = program.readout if noisy else ((0.0, 0.0),) * program.n_qubits
        self.observables: StateObservables | DensityObservables
        if self.basis == "state":
            self.observables = StateObservables(observables, program.n_qubits, self.dtype)
        else:
            self.observables = DensityObservables(observables, readout, self.dtype)
        self._body, self._tail = _split(program)
        self._kept: _Kept | None = None
        self._plans: dict[tuple[int, ...], MemoryPlan] = {}
        self._ways: dict[GateSequence | BranchedSequence, _Rows | ProductState] = {}

    @cached_property
    def whole(self) -> GateSequence | BranchedSequence:
        """The whole circuit."""
        return self.sequence(self.program.operations)

    @cached_property
    def body(self) -> GateSequence | BranchedSequence:
        """The circuit up to the last rotation by an input and the last condition."""
        return self.sequence(self._body)

    @cached_property
    def tail(self) -> GateSequence:
        """The weights-only end of the circuit, transposed: it moves observables backwards in time."""
        return self.transposed(self._tail)

    def expectation(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """[B, inputs], [weights] → [B, M], differentiable; given the outcomes post-selected on, if any.

        Raises:
            InvalidInputError: these outcomes (next to) never occur.
        """
        values = self.raw(inputs, weights)
        if not self.program.postselected:
            return values
        probability = values[:, -1:]
        check_kept(probability)
        return values[:, :-1] / probability

    def raw(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """As `expectation`, before division by the probability of the outcomes kept, which comes last: [B, M (+ 1)]."""
        if is_transformed(inputs, weights):
            return self.in_torch(inputs, weights)
        if not (torch.is_grad_enabled() and (inputs.requires_grad or weights.requires_grad)):
            return self._values(inputs, weights)
        values: Tensor = _Evaluate.apply(inputs, weights, self)
        return values

    @cached_property
    def unitary(self) -> UnitaryCircuit | None:
        """What evaluates the circuit in compiled calls alone; None for one that has to go the usual way."""
        if self.basis == "density" or not fits(self.program, self.whole, self.observables):
            return None
        return UnitaryCircuit(self.program, self.whole, self.observables, self.dtype)  # type: ignore[arg-type]

    def _values(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """As `raw`, without gradient. What depends on the weights alone is made once for these weights."""
        if self.unitary is not None and is_plain(inputs) and is_plain(weights):
            plan = self.plan(inputs.shape[0], False)
            made = self.unitary.forward(inputs, weights, plan.columns, plan.threads, keep=False)
            if made is not None:  # else angles are not finite, which is told below
                return made[0]
        batch, by_weights = len(inputs), weights.detach().cpu().numpy()
        plan, main = self.plan(batch, False), self._main(batch)
        kept, known = self._kept, by_weights.tobytes()
        if kept is None or kept.weights != known:
            kept = self._kept = _Kept(known, angles_by_weights(self.program, by_weights), {}, None)
        angles = self.angles(inputs.detach().cpu().numpy(), by_weights, kept.angles)
        shared = kept.shared.get(main)
        if shared is None:
            shared = kept.shared[main] = main.shared(angles)
        measured = self.observables.rows
        if main is not self.whole:
            taken_back = kept.measured
            if taken_back is None:
                taken_back, _ = self._take_back(angles[:, :1], False)
                kept.measured = taken_back if taken_back.nbytes <= KEEP_BYTES else None
            measured = taken_back
        values, way = np.empty((batch, len(self.observables)), self.dtype), self._way(main)

        def through(chunk: slice) -> None:
            values[chunk], _ = way.forward(columns_of(angles, chunk), measured, False, shared)

        in_blocks(through, chunks_of(batch, plan.columns), plan.threads)
        return _tensor(values, self.dtype, inputs.device)

    def in_torch(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """As `raw`, on torch's own tape: slower, for second derivatives and transforms of torch.func.

        Raises:
            InvalidInputError: a transform where the device takes only a range of angles, which cannot be checked then.
            MemoryBudgetError: the tape would not fit into memory.
        """
        if self.noisy:
            refuse_unchecked_angles(self.program, inputs, weights)
        batch = len(inputs)
        refuse_tape(self.whole, self.program.n_qubits, batch)
        with without_autocast():
            start = torch.from_numpy(self.start(batch))
            rows = evolve_in_torch(self.whole, start, angles_in_torch(self.program, inputs, weights))
            return self.observables.values_in_torch(rows).to(inputs.device)

    def chunks(self, batch: int) -> list[slice]:
        """Samples to be worked on at a time where outcomes are drawn."""
        self.plan(batch, gradient=False)  # whether it fits
        return chunks_of(batch, max(DRAWN_COLUMNS, DRAWN_BYTES // self._main(batch).row_bytes))

    def final_rows(self, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """[B, inputs], [weights] → rows [D, B] at the end of the circuit."""
        rows, _ = self.whole.forward(self.start(len(inputs)), self.angles(inputs, weights), keep=False)
        return rows

    def distribution(self, rows: np.ndarray, basis: str) -> np.ndarray:
        """Rows [D, B] → [B, 2^n] probabilities of the outcomes with qubit q measured in basis[q] (I is read as Z).

        With noise, readout errors are in them. float64, normalised.
        """
        probabilities = outcome_probabilities(rows, basis, self.basis)
        if self.noisy:
            probabilities = with_readout_errors(probabilities, self.program.readout)
        return probabilities / probabilities.sum(1, keepdims=True)

    def angles(self, inputs: np.ndarray, weights: np.ndarray, by_weights: np.ndarray | None = None) -> np.ndarray:
        """[R, B]: angles of all rotations for every sample; column 0 alone serves those that no input enters.

        `by_weights`: the part of the weights, where it is known (`program.angles_by_weights`).
        """
        return angles_of(self.program, inputs, weights, limited=self.noisy, by_weights=by_weights, dtype=self.dtype)

    def plan(self, batch: int, gradient: bool) -> MemoryPlan:
        """How a batch of this size is worked through.

        Raises:
            MemoryBudgetError: not even one sample at a time would fit into this machine's memory.
        """
        plan = self._planned(batch, gradient, 1)
        return plan if plan.columns >= batch else self._planned(batch, gradient, number_of_threads())

    def _planned(self, batch: int, gradient: bool, most: int) -> MemoryPlan:
        """As `plan`, for so many threads at most."""
        settings = CHUNK_BYTES, CHUNK_COLUMNS, WORK, PRODUCT_BYTES, KEEP_BYTES, COPIES_BYTES
        key = (batch, gradient, most, *settings, UNITARY_BYTES, UNITARY_COLUMNS, THREAD_WORK)
        plan = self._plans.get(key)
        if plan is None:
            number_of_threads()  # where the variable is wrong, it is told even if one thread does
            made = self._plan_rows if self.unitary is None else self._plan_unitary
            plan = self._plans[key] = made(batch, gradient, most)
        return plan

    def _plan_rows(self, batch: int, gradient: bool, most: int) -> MemoryPlan:
        sequence = self._main(batch)
        row_bytes = sequence.row_bytes
        split = sequence is not self.whole
        tail_bytes = (3 + gradient * self.tail.n_kept) * len(self.observables) * row_bytes if split else 0
        angles = len(self.program.offsets) * batch * 24
        if isinstance(way := self._way(sequence), ProductState):
            copies, recompute = way.column_bytes(len(self.observables)), False
            # what is done a number is a multiplication, and fast: it takes more of them to be worth a block
            least = max(CHUNK_COLUMNS, 8 * WORK // (self.n_rows * len(self.observables)))
            columns = blocks_alike(batch, max(PRODUCT_BYTES // copies, least))
            block = 4 * copies * columns
        else:
            columns, recompute = columns_at_a_time(sequence, batch, gradient)
            copies = sequence.n_kept * row_bytes
            block = (4 * row_bytes + recompute * gradient * copies) * columns
        fixed = (0 if recompute else gradient * copies * batch) + tail_bytes + self.observables.bytes + angles
        _refuse(fixed + block, self.program.n_qubits, self.basis, f"a batch of {batch}, {columns} samples at a time,")
        threads = max(1, min(most, -(-batch // columns), (_memory() - fixed) // block))
        return MemoryPlan(columns, threads, recompute, fixed + threads * block)

    def _plan_unitary(self, batch: int, gradient: bool, most: int) -> MemoryPlan:
        circuit = self.unitary
        assert circuit is not None
        kept, scratch = circuit.column_bytes
        work = self.n_rows * self.whole.n_steps  # a sample
        fitting = max(UNITARY_COLUMNS, UNITARY_BYTES // (kept + scratch) // 8 * 8)
        columns = blocks_alike(batch, min(fitting, _whole_vectors(max(-(-batch // PARTS), -(-WORK // work)))))
        while columns > 1 and (kept + scratch) * columns > COPIES_BYTES:
            columns = (columns + 1) // 2
        blocks, block = -(-batch // columns), (kept + scratch) * columns
        fixed = circuit.fixed_bytes(blocks) + gradient * kept * batch
        _refuse(fixed + block, self.program.n_qubits, self.basis, f"a batch of {batch}, {columns} samples at a time,")
        threads = max(1, min(most, blocks, work * batch // THREAD_WORK, (_memory() - fixed) // block))
        return MemoryPlan(columns, threads, False, fixed + threads * block)

    def _main(self, batch: int) -> GateSequence | BranchedSequence:
        """What every sample goes through: all of the circuit, unless it pays to take the observables half-way."""
        split = self.basis == "density" and self._tail and len(self.observables) < batch
        return self.body if split else self.whole

    def _take_back(self, angles: np.ndarray, keep: bool) -> tuple[np.ndarray, list[Trace | None]]:
        """The observables [4^n, M] at the end of the body, of angles [R, 1]; what each block of them leaves."""
        rows, shared = self.observables.rows, self.tail.shared(angles)
        measured = np.empty_like(rows)

        def through(block: slice) -> Trace | None:
            measured[:, block], trace = self.tail.forward(rows[:, block].copy(), angles, keep, shared)
            return trace

        return measured, in_blocks(through, self._tail_blocks)

    def _back_through_tail(self, by_measured: np.ndarray, traces: list[Trace], number: int, take: InOrder) -> None:
        """Derivatives by the observables at the end of the body → by angles [R, 1], block by block from `number` on."""

        def back(block: tuple[int, slice, Trace]) -> None:
            at, columns, trace = block
            part = np.zeros((len(self.program.offsets), 1), self.dtype)
            self.tail.backward(by_measured[:, columns].copy(), trace, part, part)
            take(number + at, part)

        in_blocks(back, list(zip(range(len(traces)), self._tail_blocks, traces, strict=True)))

    @cached_property
    def _tail_blocks(self) -> list[slice]:
        """Observables to be taken back at a time: for several cores, where the tail is long."""
        count = len(self.observables)
        work = self.n_rows * self.tail.n_steps * TAIL_COLUMNS
        return chunks_of(count, TAIL_COLUMNS if work >= WORK else count)

    def _way(self, main: GateSequence | BranchedSequence) -> _Rows | ProductState:
        """How samples go through it, from |0…0⟩ to their values."""
        if main not in self._ways:
            product = main is not self.whole and ProductState.fits(main)
            self._ways[main] = ProductState(main) if product else _Rows(main, self.observables)  # type: ignore[arg-type]
        return self._ways[main]

    def start(self, columns: int) -> np.ndarray:
        """Every qubit in |0⟩."""
        rows = np.zeros((self.n_rows, columns), self.dtype)
        rows[0] = 1
        return rows

    def sequence(self, operations: Sequence[Operation]) -> GateSequence | BranchedSequence:
        """These operations of the circuit as steps on rows."""
        return sequence_of(operations, self.program, self.basis, noisy=self.noisy, dtype=self.dtype)

    def transposed(self, operations: Sequence[Operation]) -> GateSequence:
        """Operations without conditions as steps that move observables backwards in time."""
        return GateSequence(
            list(plain(operations)), self.program, self.basis, noisy=self.noisy, dtype=self.dtype, transposed=True
        )


class _Rows:
    """All rows of every sample through a sequence from |0…0⟩, measured. Arguments and results: as `ProductState`."""

    def __init__(
        self, sequence: GateSequence | BranchedSequence, observables: StateObservables | DensityObservables
    ) -> None:
        self.sequence, self.observables = sequence, observables

    def forward(
        self, angles: np.ndarray, measured: np.ndarray, keep: bool, shared: Built | list[Built]
    ) -> tuple[np.ndarray, tuple[np.ndarray, Trace | BranchedTrace] | None]:
        start = np.zeros((self.sequence.n_rows, angles.shape[1]), self.sequence.dtype)
        start[0] = 1
        rows, trace = self.sequence.forward(start, angles, keep, shared)  # type: ignore[arg-type]
        return self.observables.values(rows, measured), None if trace is None else (rows, trace)

    def backward(
        self, cotangent: np.ndarray, kept: tuple[np.ndarray, Trace | BranchedTrace], measured: np.ndarray,
        shared: np.ndarray, slopes: np.ndarray, by_measured: bool,
    ) -> np.ndarray | None:  # fmt: skip
        rows, trace = kept
        adjoint = self.observables.adjoint(rows, cotangent, measured)
        found = rows @ cotangent if by_measured else None
        self.sequence.backward(adjoint, trace, shared, slopes)  # type: ignore[arg-type]
        return found


def columns_at_a_time(sequence: GateSequence | BranchedSequence, batch: int, gradient: bool) -> tuple[int, bool]:
    """Samples in a block, and whether the backward pass evolves the rows again instead of keeping copies.

    Neither depends on the number of threads, so that results do not.
    """
    row_bytes, copies = sequence.row_bytes, sequence.n_kept if gradient else 0
    small = min(max(CHUNK_COLUMNS, CHUNK_BYTES // row_bytes), _whole_vectors(-(-batch // PARTS)))
    worth = min(-(-WORK // (sequence.n_rows * max(1, sequence.n_steps))), max(DRAWN_COLUMNS, DRAWN_BYTES // row_bytes))
    columns = min(batch, small if worth <= small else _whole_vectors(worth))
    columns = blocks_alike(batch, columns)
    while columns > 1 and copies * row_bytes * columns > COPIES_BYTES:
        columns = (columns + 1) // 2
    return columns, not sequence.orthogonal and copies * row_bytes * batch > KEEP_BYTES


def blocks_alike(batch: int, most: int) -> int:
    """Samples in a block, at most so many, where the blocks of a batch are of about one size."""
    most = min(batch, most)
    return min(most, _whole_vectors(-(-batch // -(-batch // most))))


def _whole_vectors(columns: int) -> int:
    return -(-columns // 8) * 8


def check_kept(probability: Tensor) -> None:
    """Raise InvalidInputError where the outcomes post-selected on (next to) never occur."""
    try:
        rare = int((probability < RAREST).sum())
    except RuntimeError as error:  # vmap lets no number out
        raise InvalidInputError(
            "post-selected expectation values cannot be evaluated inside torch.func.vmap, where their probability "
            "cannot be checked; give the samples as a batch"
        ) from error
    if rare:
        raise InvalidInputError(
            f"the outcomes post-selected on have a probability below {RAREST:g} for {rare} of {len(probability)} "
            "samples: nothing can be said of what follows them; keep other outcomes, or leave these samples out "
            "(QuantumLayer.probability tells which)"
        )


def refuse_if_too_large(n_qubits: int, basis: Basis, dtype: Precision = np.float32, observables: int = 0) -> None:
    """Raise MemoryBudgetError where not even one sample fits, or the observables do not; nothing is allocated."""
    rows, size = dimension(basis, n_qubits), np.dtype(dtype).itemsize
    _refuse(8 * rows * size, n_qubits, basis, "one sample")
    if basis == "density":
        kept = rows * (observables * size + 16)
        _refuse(kept, n_qubits, basis, f"a circuit's {observables} observables", fewer="observables")


def refuse_tape(sequence: GateSequence | BranchedSequence, n_qubits: int, batch: int) -> None:
    """Raise MemoryBudgetError where torch's tape of a batch would not fit."""
    _refuse(
        bytes_in_torch(sequence, batch),
        n_qubits,
        sequence.basis,
        f"a second derivative, or torch.func, of a batch of {batch}",
    )


@cache
def _memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _refuse(
    needed: int, n_qubits: int, basis: Basis, what: str, *, fewer: str = "qubits or layers, or a smaller batch"
) -> None:
    available = _memory()
    if needed > available:
        raise MemoryBudgetError(
            f"{n_qubits} active qubits as a {basis}{' matrix' if basis == 'density' else ''}: {what} would need about "
            f"{needed / 2**30:.1f} GiB; this machine has {available / 2**30:.1f} GiB. Use fewer {fewer}"
            + (", or engine='ideal'" if basis == "density" else "")
        )


class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weights: Tensor, simulator: Simulator) -> Tensor:
        ctx.save_for_backward(inputs, weights)
        ctx.simulator, ctx.unitary, batch = simulator, None, inputs.shape[0]
        plan, unitary = simulator.plan(batch, True), simulator.unitary
        if unitary is not None and is_plain(inputs) and is_plain(weights):
            made = unitary.forward(inputs, weights, plan.columns, plan.threads)
            if made is not None:  # else angles are not finite, which is told below
                ctx.unitary, (found, ctx.kept) = unitary, made
                return found
        main, observables = simulator._main(batch), simulator.observables
        angles = simulator.angles(inputs.detach().cpu().numpy(), weights.detach().cpu().numpy())
        measured, tail_trace = observables.rows, None
        if main is not simulator.whole:
            measured, tail_trace = simulator._take_back(angles[:, :1], True)
        values = np.empty((batch, len(observables)), simulator.dtype)
        shared, way = main.shared(angles), simulator._way(main)

        def through(chunk: slice) -> Any:
            values[chunk], kept = way.forward(columns_of(angles, chunk), measured, not plan.recompute, shared)
            return kept

        ctx.kept = in_blocks(through, chunks_of(batch, plan.columns), plan.threads)
        ctx.way, ctx.shared, ctx.plan, ctx.angles, ctx.measured = way, shared, plan, angles, measured
        ctx.tail_trace, ctx.devices = tail_trace, (inputs.device, weights.device)
        return _tensor(values, simulator.dtype, inputs.device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        simulator: Simulator = ctx.simulator
        if torch.is_grad_enabled():  # create_graph=True: what is returned here will be differentiated again
            inputs, weights = ctx.saved_tensors
            values = simulator.in_torch(inputs, weights)
            return *gradients_in_torch(values, grad, (inputs, weights), ctx.needs_input_grad), None
        if ctx.unitary is not None:
            return *ctx.unitary.backward(grad, ctx.kept), None
        program, angles, way = simulator.program, ctx.angles, ctx.way
        cotangent = grad.detach().cpu().numpy().astype(simulator.dtype, copy=False)
        per_column = np.zeros(angles.shape, simulator.dtype)

        shared, into_tail = np.zeros((len(angles), 1), simulator.dtype), np.zeros_like(ctx.measured)
        to_shared, to_tail = adding_to(shared), adding_to(into_tail)  # blocks of the tail follow those of samples

        def back(block: tuple[int, slice, Any]) -> None:
            number, chunk, kept = block
            if kept is None:
                _, kept = way.forward(columns_of(angles, chunk), ctx.measured, True, ctx.shared)
            part = np.zeros_like(shared)
            slopes = (
                per_column if len(ctx.kept) == 1 else np.zeros((len(angles), len(cotangent[chunk])), simulator.dtype)
            )
            by_measured = way.backward(cotangent[chunk], kept, ctx.measured, part, slopes, ctx.tail_trace is not None)
            if ctx.tail_trace is not None:
                to_tail(number, by_measured)
            if slopes is not per_column:
                per_column[:, chunk] = slopes
            to_shared(number, part)

        chunks = chunks_of(angles.shape[1], ctx.plan.columns)
        in_blocks(back, list(zip(range(len(chunks)), chunks, ctx.kept, strict=True)), ctx.plan.threads)
        if ctx.tail_trace is not None:
            simulator._back_through_tail(into_tail, ctx.tail_trace, len(chunks), to_shared)
        by_inputs = by_weights = None
        if ctx.needs_input_grad[0]:
            by_inputs = _tensor(program.input_slopes(per_column), simulator.dtype, ctx.devices[0])
        if ctx.needs_input_grad[1]:
            total, own = shared[:, 0].astype(np.float64), way.sequence.own
            total[own] += per_column[own].sum(1, dtype=np.float64)
            by_weights = _tensor(program.weight_slopes(total), simulator.dtype, ctx.devices[1])
        return by_inputs, by_weights, None


def _tensor(array: np.ndarray, dtype: Precision, device: torch.device) -> Tensor:
    made = torch.from_numpy(array.astype(dtype, copy=False))
    return made if device.type == "cpu" else made.to(device)


def chunks_of(batch: int, columns: int) -> list[slice]:
    """A batch in slices of at most so many columns."""
    return [slice(start, min(start + columns, batch)) for start in range(0, batch, columns)]


def columns_of(angles: np.ndarray, chunk: slice) -> np.ndarray:
    """Angles [R, B] of some samples, contiguous."""
    return np.ascontiguousarray(angles[:, chunk])


def _split(program: Program) -> tuple[list[Operation], list[Operation]]:
    """Operations up to the last rotation by an input, or condition, on their light cone, and the rest.

    The rest depends on weights only. A measurement that a condition reads is in the light cone of that condition.
    """
    body: list[Operation] = []
    tail: list[Operation] = []
    wanted: set[int] = set()
    read: set[int] = set()
    for operation in reversed(program.operations):
        split = isinstance(operation, Conditional)
        split = split or (isinstance(operation, Rotation) and program.depends_on_input(operation))
        split = split or (isinstance(operation, Measurement) and operation.clbit in read)
        if split or wanted & set(operation.qubits):
            wanted |= set(operation.qubits)
            read |= operation.reads if isinstance(operation, Conditional) else set()
            body.append(operation)
        else:
            tail.append(operation)
    return body[::-1], tail[::-1]
