"""The engine ``trajectories:N``: noise by sampling pure states, 2^n numbers each where a density matrix has 4^n.

Twirled noise (`pauli_frames`) has values and pathwise derivatives without bias; untwirled noise (`kraus`) has values
only: which Kraus operator acts depends on the state and so on the weights, and a derivative at fixed draws would miss
that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.draws import Draws
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.cores import InOrder, in_blocks
from qhw_diffusion.execution.engine import Engine, Estimate, Record, check_parameters
from qhw_diffusion.execution.fusion import Precision
from qhw_diffusion.execution.gate_sequence import GateSequence, Trace
from qhw_diffusion.execution.kraus import kraus_values
from qhw_diffusion.execution.measurement import StateObservables
from qhw_diffusion.execution.pauli_frames import FrameProgram, Frames, check_frames, in_frame
from qhw_diffusion.execution.program import Program, angles_of
from qhw_diffusion.execution.simulator import NUMPY, chunks_of, refuse_if_too_large
from qhw_diffusion.execution.tape import first_order_only, refuse_transforms

# Bytes of rows, and trajectories, worked on at a time; what a backward pass may find instead of making it again; and
# the most that a copy of the rows may take
CHUNK_BYTES, CHUNK_COLUMNS, KEEP_BYTES, COPIES_BYTES = 2**18, (16, 128), 2**28, 2**28


@dataclass(frozen=True)
class NoiseTrajectories(Engine):
    """Expectation values under the device's noise, averaged over sampled trajectories of pure states.

    ``twirled`` (the default): every channel is replaced by its Pauli twirl. Values and derivatives are those of the
    twirled channels without bias, whatever N; standard errors come from the trajectories. Readout errors are exact.
    ``kraus``: the device's channels as they are, each Kraus operator with the probability it has in the state
    (Dalibard et al., doi:10.1103/PhysRevLett.68.580); without gradient.

    Args:
        trajectories: N for each row of parameters, ≥ 1.
        seed: of the draws. One engine object draws on from call to call; a new one with this seed repeats them.
            Worker processes that inherit the object draw on their own (`Draws`).
        kraus: the untwirled noise.

    Raises:
        InvalidInputError: N below 1.
    """

    trajectories: int = 100
    seed: int = 0
    kraus: bool = False
    draws: Draws = field(init=False, repr=False, compare=False)
    name: ClassVar[str] = "trajectories"

    def __post_init__(self) -> None:
        n = self.trajectories
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InvalidInputError(f"trajectories is {n!r}; allowed: whole numbers from 1")
        object.__setattr__(self, "draws", Draws(self.seed))

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether it has a gradient: with twirled noise."""
        return not self.kraus

    @property
    def spec(self) -> str | None:
        """``trajectories:N[:seed=S][:kraus]``; None for a seed that no text holds."""
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)) or self.seed < 0:
            return None
        seed = f":seed={self.seed}" if self.seed else ""
        return f"{self.name}:{self.trajectories}{seed}{':kraus' if self.kraus else ''}"

    @classmethod
    def from_settings(cls, settings: Sequence[str]) -> Self:
        """``[N][:seed=S][:kraus]``, in any order, each at most once."""
        values: dict[str, int] = {}
        for text in settings:
            name, equals, number = text.partition("=")
            if text == "kraus":
                key, value = "kraus", 1
            elif not equals:
                key, value = "trajectories", _whole("trajectories", text, 1)
            elif name == "seed":
                key, value = "seed", _whole("seed", number, 0)
            else:
                raise UnknownNameError.of("setting of engine 'trajectories'", text, ["seed=0", "kraus"])
            if key in values:
                raise InvalidInputError(f"engine 'trajectories:{':'.join(settings)}' states its {key} twice")
            values[key] = value
        kraus = bool(values.pop("kraus", 0))
        return cls(**values, kraus=kraus)

    def check(self, compiled: CompiledCircuit) -> None:
        """Raise for a device without noise, conditions or post-selection, or where no state fits into memory."""
        if not compiled.device.has_noise:
            raise InvalidInputError(
                f"device {compiled.device.name!r} has no noise: use engine='ideal', or compile for a fake device"
            )
        check_frames(compiled.program)
        refuse_if_too_large(frames_of(compiled).n_qubits, "state")

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        """Mean values [B, M] of rows [B, P] and their standard errors; see `Engine.estimate`.

        Standard errors are infinite, which is not known, for a single trajectory.
        """
        parameters = check_parameters(compiled, parameters)
        self.check(compiled)
        dtype = NUMPY[parameters.dtype]
        rows = parameters.detach().cpu().numpy()
        program, n = compiled.program.by_rows(), self.trajectories
        angles = angles_of(program, rows, rows[0, :0], limited=True)
        with self.draws.alone() as generator:
            if self.kraus:
                values = kraus_values(compiled.program, angles, n, generator, dtype)
            else:
                values = _Batch(frames_of(compiled), angles, n, dtype).values(generator, keep=False)
        values = values.reshape(len(rows), n, -1)
        errors = values.std(1, ddof=1) / n**0.5 if n > 1 else np.full_like(values[:, 0], np.inf)
        constant = [not any(label.strip("I") for _, label in terms) for terms in program.observables]
        errors[:, constant] = 0
        return Estimate(torch.from_numpy(values.mean(1)).to(parameters), torch.from_numpy(errors).to(parameters))

    def expectation(
        self, compiled: CompiledCircuit, inputs: Tensor, weights: Tensor, record: Record = lambda usage: None
    ) -> Tensor:
        """Mean values [B, M] of twirled noise with the pathwise gradient; see `Engine.expectation`."""
        if self.kraus:
            return super().expectation(compiled, inputs, weights, record)
        refuse_transforms(f"engine {self.name!r}", inputs, weights)
        values: Tensor = _Average.apply(inputs, weights, compiled, self)
        return values


def _whole(name: str, text: str, low: int) -> int:
    # not longer than any number meant: Python itself refuses very long ones
    if not (text.isascii() and text.isdecimal() and len(text) < 40 and int(text) >= low):
        raise InvalidInputError(
            f"{name} is {text!r}; allowed: whole numbers from {low}. The text is trajectories[:N][:seed=S][:kraus]"
        )
    return int(text)


def frames_of(compiled: CompiledCircuit) -> FrameProgram:
    """The circuit as a `FrameProgram`, made once."""
    if "frames" not in compiled.simulators:
        compiled.simulators["frames"] = FrameProgram(compiled.program)
    made: FrameProgram = compiled.simulators["frames"]
    return made


def observables_of(frames: FrameProgram, dtype: Precision) -> StateObservables:
    """The circuit's observables with its readout errors, on pure states."""
    program = frames.program
    return StateObservables(program.observables, program.n_qubits, dtype, program.readout)


class Paths:
    """Trajectories of B samples, N each, through a circuit: columns b·N … b·N + N − 1 are those of sample b.

    Args:
        frames: the circuit.
        angles: [R, B] of its program's own rotations.
        n: trajectories of each sample.
        dtype: of the rows.
    """

    def __init__(self, frames: FrameProgram, angles: np.ndarray, n: int, dtype: Precision) -> None:
        self.frames, self.n, self.dtype = frames, n, dtype
        self.sequence: GateSequence = frames.sequence(dtype)
        own = frames.program.offsets[len(angles) :]
        self.angles = np.concatenate([angles, np.repeat(own[:, None], angles.shape[1], axis=1)]).astype(dtype)
        self.slopes = np.zeros_like(self.angles)
        low, high = CHUNK_COLUMNS
        columns = max(low, min(high, CHUNK_BYTES // self.sequence.row_bytes))
        columns = min(columns, max(1, COPIES_BYTES // self.sequence.row_bytes))
        self.kept: list[Any] = []  # of every chunk: errors and trace, or the state of the generator
        self.columns = angles.shape[1] * n
        self.chunks = chunks_of(self.columns, columns)
        table = self.sequence.tables[True]
        each = (len(table.fixed) + table.n_blocks) * 16 * np.dtype(dtype).itemsize + 2 * self.sequence.row_bytes
        self.keeps = each * self.columns <= KEEP_BYTES

    def forward(self, start: np.ndarray, chunk: slice, drawn: Frames, keep: bool) -> tuple[np.ndarray, Trace | None]:
        """Rows [2·2^n, columns of the chunk] (overwritten) through the circuit and into their frames."""
        signed = self.angles[:, np.arange(chunk.start, chunk.stop) // self.n] * drawn.signs
        rows, trace = self.sequence.forward(start, signed, keep)
        return in_frame(rows, drawn), trace

    def backward(self, adjoint: np.ndarray, number: int, drawn: Frames, trace: Trace, to_slopes: InOrder) -> np.ndarray:
        """Derivatives by the result of chunk `number` → by the start; those by angles are given to `to_slopes`."""
        chunk = self.chunks[number]
        slopes = np.zeros((len(self.angles), chunk.stop - chunk.start), self.dtype)
        shared = np.zeros((len(self.angles), 1), self.dtype)
        start = self.sequence.backward(in_frame(adjoint, drawn, back=True), trace, shared, slopes)
        sample = np.arange(chunk.start, chunk.stop) // self.n
        first = np.flatnonzero(np.diff(sample, prepend=-1))
        to_slopes(number, (sample[first], np.add.reduceat(slopes * drawn.signs, first, axis=1)))
        return start

    def _to_slopes(self) -> InOrder:
        """Takes derivatives (samples, [R, samples]) of chunk after chunk; `slopes` start at 0."""
        self.slopes[:] = 0

        def take(part: tuple[np.ndarray, np.ndarray]) -> None:
            self.slopes[:, part[0]] += part[1]

        return InOrder(take)

    def _draw(self, generator: np.random.Generator) -> Iterator[tuple[slice, Any, Frames]]:
        """Chunk after chunk, the state of the generator before, and the errors drawn."""
        for chunk in self.chunks:
            state = generator.bit_generator.state
            yield chunk, state, self.frames.draw(chunk.stop - chunk.start, generator, self.dtype)

    def run(self, start: np.ndarray, generator: np.random.Generator, *, keep: bool) -> np.ndarray:
        """Rows [2·2^n, B·N] → rows at the end."""
        result = np.empty_like(start)

        def through(block: tuple[slice, Any, Frames]) -> Any:
            chunk, state, drawn = block
            result[:, chunk], trace = self.forward(start[:, chunk].copy(), chunk, drawn, keep and self.keeps)
            if not keep:
                return None
            return (drawn, trace) if self.keeps else state

        self.kept = in_blocks(through, self._draw(generator))
        return result

    def pull(self, start: np.ndarray, adjoint: np.ndarray) -> np.ndarray:
        """Derivatives [2·2^n, B·N] by the end of `run` → by its start; those by angles into `slopes`."""
        result, to_slopes = np.empty_like(start), self._to_slopes()

        def back(block: tuple[int, Any]) -> None:
            number, kept = block
            chunk = self.chunks[number]
            drawn, trace = kept if self.keeps else self._again(start[:, chunk].copy(), chunk, kept)[:2]
            rows = np.ascontiguousarray(adjoint[:, chunk])
            result[:, chunk] = self.backward(rows, number, drawn, trace, to_slopes)

        in_blocks(back, list(enumerate(self.kept)))
        return result

    def _again(self, start: np.ndarray, chunk: slice, state: Any) -> tuple[Frames, Trace, np.ndarray]:
        """What a chunk left behind that was not kept, from the state the generator had."""
        generator = np.random.default_rng()
        generator.bit_generator.state = state
        drawn = self.frames.draw(chunk.stop - chunk.start, generator, self.dtype)
        rows, trace = self.forward(start, chunk, drawn, True)
        assert trace is not None
        return drawn, trace, rows

    def gradients(self, program: Program, rotations: int) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives [B, inputs] and [weights] from the slopes."""
        slopes = self.slopes[:rotations].astype(np.float64)
        return program.input_slopes(slopes), program.weight_slopes(slopes.sum(1))


class _Batch(Paths):
    """Expectation values of every trajectory, from |0…0⟩."""

    def __init__(self, frames: FrameProgram, angles: np.ndarray, n: int, dtype: Precision) -> None:
        super().__init__(frames, angles, n, dtype)
        key = ("observables", dtype)
        made = frames.__dict__.setdefault("_observables", {})
        self.observables: StateObservables = made.setdefault(key, None) or observables_of(frames, dtype)
        made[key] = self.observables

    def values(self, generator: np.random.Generator, *, keep: bool) -> np.ndarray:
        """[B·N, M]."""
        values = np.empty((self.columns, len(self.observables)), self.dtype)

        def through(block: tuple[slice, Any, Frames]) -> Any:
            chunk, state, drawn = block
            rows, trace = self.forward(self._start(chunk), chunk, drawn, keep and self.keeps)
            values[chunk] = self.observables.values(rows, rows)
            if not keep:
                return None
            return (drawn, trace, rows) if self.keeps else state

        self.kept = in_blocks(through, self._draw(generator))
        return values

    def pull_values(self, cotangent: np.ndarray) -> None:
        """Cotangent [B, M] of the means → `slopes`."""
        to_slopes = self._to_slopes()

        def back(block: tuple[int, Any]) -> None:
            number, kept = block
            chunk = self.chunks[number]
            drawn, trace, rows = kept if self.keeps else self._again(self._start(chunk), chunk, kept)
            by_column = cotangent[np.arange(chunk.start, chunk.stop) // self.n] / self.n
            adjoint = self.observables.adjoint(rows, by_column.astype(self.dtype), rows)
            self.backward(adjoint, number, drawn, trace, to_slopes)

        in_blocks(back, list(enumerate(self.kept)))

    def _start(self, chunk: slice) -> np.ndarray:
        rows = np.zeros((self.sequence.n_rows, chunk.stop - chunk.start), self.dtype)
        rows[0] = 1
        return rows


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, rows: Tensor, inputs: Tensor, weights: Tensor, compiled: CompiledCircuit, engine: NoiseTrajectories
    ) -> Tensor:
        ctx.save_for_backward(rows, inputs, weights)
        program = compiled.program
        angles = angles_of(program, inputs.detach().numpy(), weights.detach().numpy(), limited=True)
        paths = Paths(frames_of(compiled), angles, 1, NUMPY[rows.dtype])
        keep = any(ctx.needs_input_grad[:3])
        ctx.paths, ctx.rotations, ctx.program = paths, len(angles), program
        with engine.draws.alone() as generator:  # the backward pass draws again from the states it had
            return torch.from_numpy(paths.run(rows.detach().numpy(), generator, keep=keep))

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, inputs, weights = ctx.saved_tensors
        by_rows = torch.from_numpy(ctx.paths.pull(rows.detach().numpy(), cotangent.detach().numpy()))
        by_angles = (torch.from_numpy(g).to(rows) for g in ctx.paths.gradients(ctx.program, ctx.rotations))
        slopes = tuple(
            slope if needed else None
            for slope, needed in zip((by_rows, *by_angles), ctx.needs_input_grad[:3], strict=True)
        )
        return *first_order_only("engine 'trajectories'", slopes, rows, inputs, weights, cotangent), None, None


def through(
    compiled: CompiledCircuit, engine: NoiseTrajectories, rows: Tensor, inputs: Tensor, weights: Tensor
) -> Tensor:
    """State rows [D, B], inputs [B, I], weights [W] → rows at the end, one trajectory a column; differentiable."""
    result: Tensor = _Through.apply(rows, inputs, weights, compiled, engine)
    return result


def misread(
    readout: Sequence[tuple[float, float]], columns: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """True outcomes drawn behind outcomes read: int64 [K, C], and weights [K, C] that make up for how they are drawn.

    Which bits are misread is drawn with the mean of (p10, p01), which depends on nothing; the weight of an outcome read
    is its chance given the true one, over that.
    """
    read = np.arange(2 ** len(readout))[:, None]
    flips, weights = np.zeros(columns, np.int64), np.ones((len(read), columns))
    for j, (p10, p01) in enumerate(readout):
        mean = (p10 + p01) / 2
        wrong = generator.random(columns) < mean
        flips |= wrong.astype(np.int64) << j
        zero = (read >> j & 1) == 0
        given = np.where(wrong, np.where(zero, p01, p10), np.where(zero, 1 - p10, 1 - p01))
        weights *= given / np.where(wrong, mean, 1 - mean)
    return read ^ flips, weights


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, inputs: Tensor, weights: Tensor, compiled: CompiledCircuit, engine: NoiseTrajectories
    ) -> Tensor:
        ctx.save_for_backward(inputs, weights)
        dtype = NUMPY[weights.dtype]
        program = compiled.program
        angles = angles_of(program, inputs.detach().cpu().numpy(), weights.detach().cpu().numpy(), limited=True)
        batch = _Batch(frames_of(compiled), angles, engine.trajectories, dtype)
        with engine.draws.alone() as generator:  # the backward pass draws again from the states it had
            values = batch.values(generator, keep=any(ctx.needs_input_grad[:2]))
        ctx.batch, ctx.program, ctx.rotations = batch, program, len(angles)
        mean = values.reshape(len(inputs), engine.trajectories, -1).mean(1)
        return torch.from_numpy(mean).to(inputs.device)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs, weights = ctx.saved_tensors
        ctx.batch.pull_values(cotangent.detach().cpu().numpy())
        by_inputs, by_weights = (torch.from_numpy(g) for g in ctx.batch.gradients(ctx.program, ctx.rotations))
        slopes = (
            by_inputs.to(inputs) if ctx.needs_input_grad[0] else None,
            by_weights.to(weights) if ctx.needs_input_grad[1] else None,
        )
        return *first_order_only("engine 'trajectories'", slopes, inputs, weights, cotangent), None, None
