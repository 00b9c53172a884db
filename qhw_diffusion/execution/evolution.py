"""A compiled circuit as a map on states: one goes in on the data qubits, and one comes out per outcome of the others.

What a denoiser's step needs: ancillas start in |0⟩, are measured at the end, and the state left on the data qubits
goes into the next step. The outcome is enumerated, not drawn: every branch comes with its probability, both
differentiable in the incoming state, the inputs and the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.devices.instructions import measurement_at
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.admission import final_measurements
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.cores import adding_to, in_blocks
from qhw_diffusion.execution.engine import Engine
from qhw_diffusion.execution.engines import Ideal, engine_of
from qhw_diffusion.execution.feed_forward import BranchedSequence, sequence_of
from qhw_diffusion.execution.fusion import REAL_LOCAL, Basis
from qhw_diffusion.execution.gate_sequence import GateSequence
from qhw_diffusion.execution.measurement import readout_matrix
from qhw_diffusion.execution.noise_trajectories import NoiseTrajectories, frames_of, misread, through
from qhw_diffusion.execution.program import angles_of
from qhw_diffusion.execution.recording import outside_torch, refuse_recomputation, refuse_without_numbers
from qhw_diffusion.execution.simulator import (
    NUMPY,
    chunks_of,
    columns_at_a_time,
    columns_of,
    refuse_if_too_large,
    refuse_tape,
)
from qhw_diffusion.execution.tape import (
    angles_in_torch,
    evolve_in_torch,
    gradients_in_torch,
    is_transformed,
    refuse_transforms,
    refuse_unchecked_angles,
    without_autocast,
)

REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
TINY = 1e-12  # a branch less probable than this is left unnormalised instead of divided by zero


@dataclass(frozen=True)
class Branches:
    """What a circuit leaves on the data qubits, for each outcome of the measured ones.

    Attributes:
        states: [K, B, d] normalised pure states, or [K, B, d, d] density matrices; outcome k has bit j of k on the
            j-th measured qubit.
        probabilities: [K, B] of the outcomes as read (readout errors included, if the engine has them).
    """

    states: Tensor
    probabilities: Tensor

    def select(self, outcomes: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, …] and probabilities [B] of the outcomes [B] (int64)."""
        outcomes = outcomes.to(self.states.device)
        index = torch.arange(len(outcomes), device=outcomes.device)
        return self.states[outcomes, index], self.probabilities[outcomes, index]

    def sample(self, generator: torch.Generator) -> Tensor:
        """[B] int64: an outcome drawn for every sample, on the device of the probabilities."""
        weights = self.probabilities.detach().clamp_min(0).T.to(generator.device)
        return torch.multinomial(weights, 1, generator=generator)[:, 0].to(self.probabilities.device)

    def average(self) -> Tensor:
        """[B, d, d]: the density matrix with the outcomes forgotten."""
        states = self.states
        if states.ndim == 3:
            states = states.unsqueeze(-1) * states.unsqueeze(-2).conj()
        return (states * self.probabilities[..., None, None]).sum(0)


def state_engine_of(engine: str | Engine) -> Ideal | NoiseTrajectories:
    """The engine of that text, if it is one that simulates states.

    Raises:
        UnknownNameError, InvalidInputError: as `engine_of`; InvalidInputError for an engine that simulates no states.
    """
    chosen = engine_of(engine)
    if isinstance(chosen, Ideal) or (isinstance(chosen, NoiseTrajectories) and not chosen.kraus):
        return chosen
    raise InvalidInputError(
        f"engine {chosen.label!r} holds no states with a gradient; use 'ideal', 'noisy' or 'trajectories:N'"
    )


class Evolution:
    """A compiled circuit as a map from states on `data` to states on `data`.

    Pure states stay pure where the engine is ideal and every other qubit is measured; else density matrices come out.
    Simulation runs on the CPU, whatever device the tensors are on; the branches come back to the states' device.
    Logical qubits that are neither data nor measured start in |0⟩ and are traced out (an ancilla that is reset).

    Args:
        compiled: from `compile_circuit`, without measurements of its own on the data qubits.
        data: logical qubits the state is on; the first is the least significant bit of the amplitudes' index.
        measured: logical qubits read at the end, in the computational basis.
        mid_circuit: whether the device reads them as in the middle of a longer circuit, with the error of `measure_2`
            where it has that.
        engine: ``"ideal"``, ``"noisy"``, ``"trajectories:N"`` or such an `Engine`. With N trajectories every state
            goes N times through the twirled noise, and the branches are averages: density matrices, of which
            probabilities, and states times probabilities, have no bias. `paths` gives the trajectories themselves.

    Raises:
        InvalidInputError: qubits that are not the circuit's or listed twice, a measurement of data qubits at the end,
            or an engine that simulates no states.
        MemoryBudgetError: one sample would not fit into memory.
    """

    def __init__(
        self,
        compiled: CompiledCircuit,
        *,
        data: Sequence[int],
        measured: Sequence[int] = (),
        engine: str | Engine = "ideal",
        mid_circuit: bool = False,
    ) -> None:
        self.compiled, self.data, self.measured = compiled, tuple(data), tuple(measured)
        given, width = [*self.data, *self.measured], compiled.logical.num_qubits
        if not self.data or len(set(given)) != len(given) or not set(given) <= set(range(width)):
            raise InvalidInputError(
                f"data={list(self.data)}, measured={list(self.measured)}: give distinct qubits of 0 to {width - 1}, "
                "and at least one data qubit"
            )
        ended = [q for q, _ in final_measurements(compiled.logical, dict(compiled.postselect)) if q in self.data]
        if ended:
            raise InvalidInputError(
                f"the circuit ends with a measurement of the data qubits {ended}, and no state would be left there: "
                "leave it out of the circuit; what is read at the end is named by measured"
            )
        chosen = state_engine_of(engine)
        chosen.check(compiled)
        self.engine = chosen
        self.trajectories = chosen.trajectories if isinstance(chosen, NoiseTrajectories) else 0
        self.noisy = not isinstance(chosen, Ideal) or chosen.noisy
        self.dim, self.n_outcomes = 2 ** len(self.data), 2 ** len(self.measured)
        program = compiled.program
        self.pure = not self.noisy and program.pure and len(given) == width
        if not self.trajectories:  # which have been checked
            refuse_if_too_large(program.n_qubits, "state" if self.pure else "density")
        position = {physical: i for i, physical in enumerate(compiled.physical_qubits)}
        layout = compiled.isa.layout
        start = range(width) if layout is None else layout.initial_index_layout(filter_ancillas=True)
        end = range(width) if layout is None else layout.final_index_layout(filter_ancillas=True)
        unused = [q for q in given if start[q] not in position or end[q] not in position]
        if unused:
            raise InvalidInputError(
                f"qubits {unused} have no gate and no observable in the compiled circuit: drop them"
            )
        self._start = [position[start[q]] for q in self.data]
        self._end = [position[end[q]] for q in self.data]
        self._read = [position[end[q]] for q in self.measured]
        target = compiled.device.target if mid_circuit else None
        places = [compiled.physical_qubits[q] for q in self._read]
        self._read_errors = [
            compiled.device.readout_error(place, "measure" if target is None else measurement_at(target, place))
            for place in places
        ]
        self._traced = [q for q in range(program.n_qubits) if q not in {*self._end, *self._read}]
        self._sequences: dict[tuple[Basis, torch.dtype], GateSequence | BranchedSequence] = {}

    @outside_torch
    def __call__(self, states: Tensor, weights: Tensor, inputs: Tensor | None = None) -> Branches:
        """Run every state through the circuit.

        Args:
            states: [B, d] complex pure states or [B, d, d] density matrices.
            weights: [W] angles.
            inputs: [B, I] angles; may be left out if the circuit has none.

        Raises:
            InvalidInputError: shapes or types that do not fit.
        """
        inputs, where = self._check(states, weights, inputs), states.device
        if self.trajectories:
            return self._averaged(states, weights, inputs)
        states, weights, inputs = states.cpu(), weights.cpu(), inputs.cpu()
        with without_autocast():
            if states.ndim == 2 and self.pure:
                branches = self._pure(states, weights, inputs)
            else:
                if states.ndim == 2:
                    states = states.unsqueeze(-1) * states.unsqueeze(-2).conj()
                branches = self._density(states, weights, inputs)
        return Branches(branches.states.to(where), branches.probabilities.to(where))

    @outside_torch
    def paths(self, states: Tensor, weights: Tensor, inputs: Tensor | None = None) -> Branches:
        """One trajectory of every state through the twirled noise, on the engine ``"trajectories:N"``, whatever its N.

        Misread outcomes are drawn too: branch k holds the state of one true outcome. Its probability is weighted by how
        likely that is, so that the mean over trajectories is the probability of *reading* k; single ones may exceed 1.

        Args:
            states: [B, d] complex pure states.
            weights: [W] angles.
            inputs: [B, I] angles; may be left out if the circuit has none.

        Returns:
            Pure states [K, B, d] and probabilities [K, B], differentiable at the draws made.

        Raises:
            InvalidInputError: another engine, shapes or types that do not fit, states that are not pure, or qubits that
                are traced out, which leaves no pure state.
        """
        inputs = self._check(states, weights, inputs)
        if self._traced:
            raise InvalidInputError(
                "some qubits are neither data nor measured, and what is left where they are traced out is no pure "
                "state: measure them, or call the evolution itself for averages"
            )
        parts, scale = (part[:, 0].to(states.device) for part in self._drawn(states, weights, inputs))
        chances = parts.real.square().sum(-1) + parts.imag.square().sum(-1)
        return Branches(parts / chances.clamp_min(TINY).sqrt().unsqueeze(-1), chances * scale)

    def _averaged(self, states: Tensor, weights: Tensor, inputs: Tensor) -> Branches:
        n, where = self.trajectories, states.device
        parts, scale = self._drawn(states.repeat_interleave(n, 0), weights, inputs.repeat_interleave(n, 0))
        scaled = (parts * scale.sqrt().unsqueeze(-1)).unflatten(2, (len(states), n))
        matrices = torch.einsum("ktbnd,ktbne->kbde", scaled, scaled.conj()) / n
        total = torch.diagonal(matrices, dim1=-2, dim2=-1).real.sum(-1)
        return Branches((matrices / total.clamp_min(TINY)[..., None, None]).to(where), total.to(where))

    def _drawn(self, states: Tensor, weights: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """One trajectory a state → [K, traced, B, d], not normalised, and weights of their norms [K, 1, B]."""
        engine = self.engine
        if not isinstance(engine, NoiseTrajectories) or states.ndim != 2:
            raise InvalidInputError(
                f"states are {tuple(states.shape)} on engine {engine.label!r}; trajectories take pure states, "
                f"[B, {self.dim}], on 'trajectories:N'"
            )
        refuse_transforms(f"engine {engine.name!r}", states, weights, inputs)
        if torch.is_grad_enabled():
            refuse_recomputation(f"engine {engine.label!r}")
        frames, states = frames_of(self.compiled), states.cpu()
        n = frames.n_qubits
        ends = [frames.latest[q] for q in [*self._end, *self._read]]  # a qubit that is reset goes on as another one
        traced = [q for q in range(n) if q not in ends]
        with without_autocast():
            index = torch.from_numpy(_combine([(2, q) for q in self._start]))
            rows = torch.zeros(2 ** (n + 1), len(states), dtype=REAL[states.dtype])
            rows = rows.index_copy(0, torch.cat([index, index + 2**n]), torch.cat([states.real.T, states.imag.T]))
            rows = through(self.compiled, engine, rows, inputs.cpu(), weights.cpu())
            out = torch.from_numpy(_combine([(2, q) for q in [*ends, *traced]]))
            parts = torch.complex(rows[out], rows[out + 2**n])
            parts = parts.reshape(2 ** len(traced), self.n_outcomes, self.dim, -1).permute(1, 0, 3, 2)
            true, scale = misread(self._read_errors, len(states), engine.draws.generator)
            parts = parts.movedim(1, 0)[:, torch.from_numpy(true), torch.arange(len(states))].movedim(0, 1)
            return parts, torch.from_numpy(scale).to(rows)[:, None]

    @outside_torch
    def read_data(self, probabilities: Tensor) -> Tensor:
        """[B, d] of true outcomes of the data qubits → of outcomes read (readout errors, if the engine has them)."""
        if not self.noisy:
            return probabilities
        matrix = _readout_matrix([self.compiled.program.readout[q] for q in self._end]).to(probabilities.device)
        return (probabilities.double() @ matrix.T).to(probabilities.dtype)

    @outside_torch
    def kraus(self, weights: Tensor, inputs: Tensor | None = None) -> Tensor:
        """[K, d, d]: the operator of each outcome (Σ K†K = 1) for one row of inputs [1, I], where states stay pure.

        Raises:
            InvalidInputError: with noise, or where a qubit is traced out.
        """
        if not self.pure:
            raise InvalidInputError(
                "there is one operator per outcome only without noise and with all ancillas measured"
            )
        dtype = torch.complex64 if weights.dtype == torch.float32 else torch.complex128
        columns = torch.eye(self.dim, dtype=dtype)
        expanded = self._check(columns, weights, inputs if inputs is None else inputs.expand(self.dim, -1))
        with without_autocast():
            rows = self._pure_rows(columns, weights.cpu(), expanded.cpu())
        return rows.transpose(1, 2).to(weights.device)

    def _pure_rows(self, states: Tensor, weights: Tensor, inputs: Tensor) -> Tensor:
        """[B, d] → [K, B, d], not normalised."""
        n = self.compiled.program.n_qubits
        index = torch.from_numpy(_combine([(2, q) for q in self._start]))
        rows = torch.zeros(2 ** (n + 1), len(states), dtype=REAL[states.dtype])
        rows = rows.index_copy(0, torch.cat([index, index + 2**n]), torch.cat([states.real.T, states.imag.T]))
        rows = self._evolve("state", rows, weights, inputs)
        out = torch.from_numpy(_combine([(2, q) for q in [*self._end, *self._read]]))
        real, imaginary = rows[out], rows[out + 2**n]
        return torch.complex(real, imaginary).reshape(self.n_outcomes, self.dim, -1).transpose(1, 2)

    def _pure(self, states: Tensor, weights: Tensor, inputs: Tensor) -> Branches:
        branches = self._pure_rows(states, weights, inputs)
        probabilities = branches.real.square().sum(-1) + branches.imag.square().sum(-1)
        return Branches(branches / probabilities.clamp_min(TINY).sqrt().unsqueeze(-1), probabilities)

    def _density(self, states: Tensor, weights: Tensor, inputs: Tensor) -> Branches:
        program = self.compiled.program
        index = torch.from_numpy(_combine([(4, q) for q in self._start]))
        rows = torch.zeros(4**program.n_qubits, len(states), dtype=REAL[states.dtype])
        rows = rows.index_copy(0, index, real_rows(states))
        rows = self._evolve("density", rows, weights, inputs)
        kept = torch.from_numpy(_combine([(4, q) for q in self._end]))
        # populations of what is read (row 0 or 2 of its four), the trace over what is not
        read = torch.from_numpy(2 * _combine([(2, q, 4) for q in self._read]))
        traced = torch.from_numpy(2 * _combine([(2, q, 4) for q in self._traced]))
        parts = torch.zeros(self.n_outcomes, len(kept), rows.shape[1], dtype=rows.dtype)
        for offset in traced:
            parts = parts + rows[read[:, None] + kept[None, :] + offset]
        if self.noisy and self._read:
            parts = torch.einsum("kj,jdb->kdb", _readout_matrix(self._read_errors).to(parts), parts)
        matrices = torch.stack([density_matrices(part) for part in parts])
        probabilities = torch.diagonal(matrices, dim1=-2, dim2=-1).real.sum(-1)
        return Branches(matrices / probabilities.clamp_min(TINY)[..., None, None], probabilities)

    def _evolve(self, basis: Basis, rows: Tensor, weights: Tensor, inputs: Tensor) -> Tensor:
        key = (basis, rows.dtype)
        if key not in self._sequences:
            program = self.compiled.program
            self._sequences[key] = sequence_of(
                program.operations, program, basis, noisy=self.noisy, dtype=NUMPY[rows.dtype]
            )
        if is_transformed(rows, inputs, weights):
            return self._evolve_in_torch(self._sequences[key], rows, inputs, weights)
        result: Tensor = _Evolve.apply(rows, inputs, weights, self, self._sequences[key])
        return result

    def _evolve_in_torch(
        self, sequence: GateSequence | BranchedSequence, rows: Tensor, inputs: Tensor, weights: Tensor
    ) -> Tensor:
        program = self.compiled.program
        if self.noisy:
            refuse_unchecked_angles(program, inputs, weights)
        refuse_tape(sequence, program.n_qubits, rows.shape[1])
        return evolve_in_torch(sequence, rows, angles_in_torch(program, inputs, weights))

    def _check(self, states: Tensor, weights: Tensor, inputs: Tensor | None) -> Tensor:
        if states.dtype not in REAL or states.ndim not in (2, 3) or any(s != self.dim for s in states.shape[1:]):
            raise InvalidInputError(
                f"states are {states.dtype} {tuple(states.shape)}; allowed: complex64 or complex128, "
                f"[B, {self.dim}] or [B, {self.dim}, {self.dim}]"
            )
        if len(states) == 0:
            raise InvalidInputError("states has no rows; give at least one")
        c = self.compiled
        if weights.shape != (c.n_weights,):
            raise InvalidInputError(f"weights have shape {tuple(weights.shape)}; allowed: ({c.n_weights},)")
        if inputs is None:
            inputs = torch.zeros(len(states), 0, dtype=weights.dtype)
        if inputs.shape != (len(states), c.n_inputs):
            raise InvalidInputError(f"inputs have shape {tuple(inputs.shape)}; allowed: ({len(states)}, {c.n_inputs})")
        for what, tensor in (("states", states), ("weights", weights), ("inputs", inputs)):
            refuse_without_numbers(what, tensor)
        return inputs


class _Evolve(torch.autograd.Function):
    """Rows [D, B], inputs [B, I], weights [W] → rows [D, B] at the end of the circuit."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        inputs: Tensor,
        weights: Tensor,
        owner: Evolution,
        sequence: GateSequence | BranchedSequence,
    ) -> Tensor:
        ctx.save_for_backward(rows, inputs, weights)
        program = owner.compiled.program
        angles = angles_of(program, inputs.detach().numpy(), weights.detach().numpy(), limited=owner.noisy)
        angles = angles.astype(sequence.dtype)
        batch, gradient = rows.shape[1], any(ctx.needs_input_grad[:3])
        columns, recompute = columns_at_a_time(sequence, batch, gradient)
        start, result = rows.detach().numpy(), np.empty(rows.shape, sequence.dtype)
        shared = sequence.shared(angles)

        def through(chunk: slice) -> Any:
            keep = gradient and not recompute
            rows = start[:, chunk].copy()
            result[:, chunk], trace = sequence.forward(rows, columns_of(angles, chunk), keep, shared)  # type: ignore[arg-type]
            return trace

        ctx.chunks, ctx.shared = chunks_of(batch, columns), shared
        ctx.kept = in_blocks(through, ctx.chunks)
        ctx.start, ctx.angles, ctx.program, ctx.sequence = start if recompute else None, angles, program, sequence
        ctx.owner = owner
        return torch.from_numpy(result)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: what is returned here will be differentiated again
            sources = ctx.saved_tensors
            result = ctx.owner._evolve_in_torch(ctx.sequence, *sources)
            return *gradients_in_torch(result, grad, sources, ctx.needs_input_grad), None, None
        sequence, angles, program = ctx.sequence, ctx.angles, ctx.program
        adjoint = grad.detach().numpy().astype(sequence.dtype)
        by_rows = np.empty_like(adjoint)
        shared, per_column = np.zeros((len(angles), 1), sequence.dtype), np.zeros(angles.shape, sequence.dtype)
        to_shared = adding_to(shared)

        def back(block: tuple[int, slice, Any]) -> None:
            number, chunk, trace = block
            if trace is None:
                _, trace = sequence.forward(ctx.start[:, chunk].copy(), columns_of(angles, chunk), True, ctx.shared)
            part = np.zeros_like(shared)
            slopes = np.zeros((len(angles), chunk.stop - chunk.start), sequence.dtype)
            by_rows[:, chunk] = sequence.backward(adjoint[:, chunk].copy(), trace, part, slopes)
            per_column[:, chunk] = slopes
            to_shared(number, part)

        in_blocks(back, list(zip(range(len(ctx.chunks)), ctx.chunks, ctx.kept, strict=True)))
        by_inputs = by_weights = None
        if ctx.needs_input_grad[1]:
            by_inputs = torch.from_numpy(program.input_slopes(per_column).astype(sequence.dtype))
        if ctx.needs_input_grad[2]:
            total = shared[:, 0].astype(np.float64) + per_column.sum(1, dtype=np.float64)
            by_weights = torch.from_numpy(program.weight_slopes(total).astype(sequence.dtype))
        return torch.from_numpy(by_rows) if ctx.needs_input_grad[0] else None, by_inputs, by_weights, None, None


def _readout_matrix(errors: Sequence[tuple[float, float]]) -> Tensor:
    """[2^k, 2^k] float64: P(read | true outcomes) of qubits with these (p10, p01), the first least significant."""
    matrix = np.ones((1, 1))
    for p10, p01 in errors:
        matrix = np.kron(readout_matrix(p10, p01), matrix)
    return torch.from_numpy(matrix)


def _combine(places: Sequence[tuple[int, ...]]) -> np.ndarray:
    """All indices with free digits at `places`, the first of which varies fastest.

    A place is (size, position) in base `size`, or (size, position, base).
    """
    index = np.zeros(1, dtype=np.int64)
    for size, q, *base in places:
        stride = (base[0] if base else size) ** q
        index = (index[None, :] + stride * np.arange(size)[:, None]).reshape(-1)
    return index


@lru_cache
def _local(dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(REAL_LOCAL).to(dtype)


def real_rows(matrices: Tensor) -> Tensor:
    """Density matrices [B, d, d] → their coefficients [d², B] in the real product basis of `fusion`."""
    batch, dim = matrices.shape[:2]
    n = dim.bit_length() - 1
    order = [0, *(axis for q in range(n) for axis in (1 + q, 1 + n + q))]
    rows = matrices.reshape(batch, *[2] * (2 * n)).permute(order).reshape(batch, *[4] * n)
    for _ in range(n):
        rows = torch.tensordot(rows, _local(matrices.dtype), dims=([1], [1]))  # its result comes last: n turns restore
    return rows.real.reshape(batch, -1).T


def density_matrices(rows: Tensor) -> Tensor:
    """Coefficients [d², B] in the real product basis → density matrices [B, d, d]."""
    batch = rows.shape[1]
    n = (rows.shape[0].bit_length() - 1) // 2
    dtype = torch.complex64 if rows.dtype == torch.float32 else torch.complex128
    matrices = rows.T.to(dtype).reshape(batch, *[4] * n)
    for _ in range(n):
        matrices = torch.tensordot(matrices, _local(dtype).conj(), dims=([1], [0]))
    back = [0, *(1 + 2 * q for q in range(n)), *(2 + 2 * q for q in range(n))]
    return matrices.reshape(batch, *[2] * (2 * n)).permute(back).reshape(batch, 2**n, 2**n)
