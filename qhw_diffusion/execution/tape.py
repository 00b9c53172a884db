"""A gate sequence in plain torch operations, for what the compiled kernels cannot do: higher derivatives, torch.func.

The kernels give values and first derivatives, many times faster. Where a second derivative is asked, or a transform of
`torch.func` (vmap, grad, jacrev, jacfwd, hessian, …) or forward-mode differentiation is at work, the same steps on the
same rows are taken here, and torch keeps its own tape of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.feed_forward import BranchedSequence, Run, in_parts
from qhw_diffusion.execution.gate_sequence import BlockTable, GateSequence, Moment, Permutation
from qhw_diffusion.execution.program import Program


@contextmanager
def without_autocast() -> Iterator[None]:
    """Within it no operation is shortened to bfloat16 or float16, whatever region the caller is in."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def is_transformed(*tensors: Tensor) -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is at work on one of these tensors."""
    if forward_ad._current_level < 0 and torch._C._functorch.maybe_current_level() is None:
        return False  # none is at work at all
    return any(
        torch._C._functorch.is_functorch_wrapped_tensor(tensor) or forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
    )


EXACT = "use engine 'ideal' or 'noisy', with its own gradient"


def refuse_transforms(what: str, *tensors: Tensor, instead: str = EXACT) -> None:
    """Raise InvalidInputError under torch.func or forward-mode differentiation: `what` needs numbers."""
    if is_transformed(*tensors):
        raise InvalidInputError(
            f"{what} cannot be evaluated inside torch.func (vmap, grad, hessian, …) or with forward-mode "
            f"differentiation; {instead}"
        )


def first_order_only(
    what: str, slopes: tuple[Tensor | None, ...], *sources: Tensor, instead: str = EXACT
) -> tuple[Tensor | None, ...]:
    """The same first derivatives, which raise InvalidInputError when they are differentiated by one of `sources`."""
    given = [slope for slope in slopes if slope is not None]
    if not torch.is_grad_enabled() or not given:
        return slopes
    message = f"{what}: a second derivative was asked, and there are first ones only; {instead}"
    guarded = iter(_FirstOrderOnly.apply(message, len(given), *given, *sources))
    return tuple(None if slope is None else next(guarded) for slope in slopes)


class _FirstOrderOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.message = message
        return tuple(slope.clone() for slope in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> None:  # type: ignore[override]
        raise InvalidInputError(ctx.message)


def angles_in_torch(program: Program, inputs: Tensor, weights: Tensor) -> Tensor:
    """[B, inputs], [weights] → [R, B] float64 on the CPU: `program.angles_of`, differentiable."""
    by_input, by_weight = torch.from_numpy(program.input_coefficients), torch.from_numpy(program.weight_coefficients)
    shared = torch.from_numpy(program.offsets) + by_weight @ weights.cpu().double()
    return shared[:, None] + by_input @ inputs.cpu().double().T


def evolve_in_torch(sequence: GateSequence | BranchedSequence, rows: Tensor, angles: Tensor) -> Tensor:
    """`GateSequence.forward`: rows [D, B] and angles [R, B] → rows [D, B], in new memory."""
    if isinstance(sequence, BranchedSequence):
        parts = [rows]
        for node in sequence.nodes:
            if isinstance(node, Run):
                for place in node.places:
                    parts[place] = evolve_in_torch(node.sequence, parts[place], angles)
            else:
                parts = in_parts(node, parts)
        (rows,) = parts
        return rows
    angles = angles.to(rows.dtype)
    columns = {True: angles, False: angles[:, :1]}
    matrices = {kind: _matrices(sequence, table, columns[kind]) for kind, table in sequence.tables.items()}
    for step in sequence.steps:
        if isinstance(step, Moment):
            for qubit, matrix in zip(step.places, matrices[step.per_column][step.select], strict=True):
                rows = _on_qubits(sequence, rows, (int(qubit),), matrix)
        elif isinstance(step, Permutation):
            rows = _constant(step.sign)[:, None] * rows.index_select(0, _constant(step.source))
        else:
            rows = _on_qubits(sequence, rows, step.qubits, _constant(step.matrix)[None])
    return rows


def gradients_in_torch(
    result: Tensor, cotangent: Tensor, sources: Sequence[Tensor], needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Derivatives of Σ cotangent · result by the sources needed (None for the others), differentiable again."""
    asked = [source for source, wanted in zip(sources, needed, strict=False) if wanted]
    slopes = iter(torch.autograd.grad(result, asked, cotangent, create_graph=True, materialize_grads=True))
    return tuple(next(slopes) if wanted else None for wanted in needed[: len(sources)])


def refuse_unchecked_angles(program: Program, inputs: Tensor, weights: Tensor) -> None:
    """Raise InvalidInputError under a transform where the device takes only a range of angles: no number is seen."""
    if program.limits and is_transformed(inputs, weights):
        raise InvalidInputError(
            f"the device takes only a range of angles for {program.limits[0][1]}, which cannot be checked inside "
            "torch.func; compile for the device without fractional gates"
        )


def bytes_in_torch(sequence: GateSequence | BranchedSequence, batch: int) -> int:
    """About what torch's tape of `evolve_in_torch` takes, and its derivatives' as much again."""
    if isinstance(sequence, BranchedSequence):
        runs = [node for node in sequence.nodes if isinstance(node, Run)]
        return sum(len(run.places) * bytes_in_torch(run.sequence, batch) for run in runs)
    blocks = sum(len(step.places) if isinstance(step, Moment) else 1 for step in sequence.steps)
    return 2 * 3 * (blocks + 1) * sequence.n_rows * batch * np.dtype(sequence.dtype).itemsize


def _matrices(sequence: GateSequence, table: BlockTable, angles: Tensor) -> list[Tensor]:
    """The matrix of each block, [B or 1, 4, 4]: F_K · R(θ_K) · … · R(θ_1) · F_0 (`kernel.build_blocks`)."""
    g, h = (float(s) for s in sequence.sign)
    still = torch.diag(torch.tensor([1 - g * g, 1 - h * h] * 2, dtype=angles.dtype))
    turning = torch.diag(torch.tensor([g * g, h * h] * 2, dtype=angles.dtype))
    crossed = torch.zeros(4, 4, dtype=angles.dtype)
    crossed[0, 2], crossed[2, 0], crossed[1, 3], crossed[3, 1] = g, -g, h, -h
    turns = (sequence.rate * angles)[..., None, None]
    rotations = still + turns.cos() * turning + turns.sin() * crossed  # [R, B or 1, 4, 4]
    fixed = _constant(table.fixed)
    result = []
    for block in range(table.n_blocks):
        first, last = int(table.first[block]), int(table.first[block + 1])
        matrix = fixed[first + block][None]
        for t in range(first, last):
            matrix = fixed[t + block + 1] @ (rotations[int(table.used[table.rotation[t]])] @ matrix)
        result.append(matrix)
    return result


def _on_qubits(sequence: GateSequence, rows: Tensor, qubits: tuple[int, ...], matrix: Tensor) -> Tensor:
    """Matrix [B or 1, d, d] on some qubits of every column."""
    n, state = sequence.n_qubits, sequence.basis == "state"
    # One axis a qubit, the last one first; for a state real and imaginary parts are an axis ahead of them
    shape = [2] * (n + 1) if state else [4] * n
    axes = [0] * state + [state + n - 1 - q for q in reversed(qubits)]  # of the matrix, most significant first
    order = [*axes, *(axis for axis in range(len(shape)) if axis not in axes), len(shape)]
    moved = rows.reshape(*shape, -1).permute(order)
    groups = moved.reshape(matrix.shape[-1], -1, rows.shape[1])  # [d, groups, B]
    if len(matrix) == 1:
        turned = (matrix[0] @ groups.flatten(1)).reshape(groups.shape)
    else:
        turned = (matrix @ groups.permute(2, 0, 1).contiguous()).permute(1, 2, 0).contiguous()
    back = [order.index(axis) for axis in range(len(order))]
    return turned.reshape(moved.shape).permute(back).reshape(rows.shape)


def _constant(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
