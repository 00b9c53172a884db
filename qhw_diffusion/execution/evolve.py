"""Chains of fixed maps and layers of RZ rotations: rows → rows @ maps[0] → turn → rows @ maps[1] → turn → … → maps[S].

A turn multiplies the C complex entries of the rows by exp(i · angles[s] @ phase); real rows are taken as C pairs (real
part, imaginary part). Small systems have one dense matrix a stage; larger ones a list of maps on one or two qubits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class DenseChain:
    """A chain with one matrix a stage, as one torch operation with an adjoint backward pass.

    Recorded step by step, autograd's bookkeeping would cost several times the arithmetic of such small products.

    Args:
        matrices: [S + 1, …, D, D], each multiplies rows from the right; real or complex.
        phase: [k, C] real.
    """

    def __init__(self, matrices: Tensor, phase: Tensor) -> None:
        self.matrices, self.phase = matrices, phase
        self.forward_maps = matrices.unbind(0)
        self.adjoint_maps = [m.mH for m in self.forward_maps]

    def transposed(self) -> DenseChain:
        """The chain that moves observables backwards; `angles` are to be given in reverse order too."""
        phase = self.phase if self.matrices.is_complex() else -self.phase  # on real pairs a transposed turn turns back
        return DenseChain(self.matrices.mT.flip(0).contiguous(), phase)

    def __call__(self, rows: Tensor, angles: Tensor) -> Tensor:
        """rows [..., N, D], angles [S, ..., N or 1, k] → [..., N, D]."""
        if len(angles) == 0:
            return rows @ self.forward_maps[0]
        result: Tensor = _DenseEvolve.apply(rows, angles, self)
        return result


class _DenseEvolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, angles: Tensor, chain: DenseChain) -> Tensor:
        phases = _unit(_spread(angles, chain.phase))  # [S, ..., N or 1, C]
        rows = rows @ chain.forward_maps[0]
        turned = rows.new_empty((len(angles), *rows.shape))
        for matrix, phase, row, pairs in zip(chain.forward_maps[1:], phases, turned, _as_complex(turned), strict=True):
            torch.mul(_as_complex(rows), phase, out=pairs)
            rows = row @ matrix
        ctx.save_for_backward(turned, phases)
        ctx.chain, ctx.shared = chain, angles.shape[-2] == 1
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        chain: DenseChain = ctx.chain
        turned, phases = ctx.saved_tensors
        grads = torch.empty_like(turned)
        back = phases.conj().resolve_conj()
        steps = list(zip(chain.adjoint_maps[1:], back, grads, _as_complex(grads), strict=True))
        for s in range(len(steps) - 1, -1, -1):
            matrix, phase, row, pairs = steps[s]
            torch.matmul(grad, matrix, out=row)
            if s or ctx.needs_input_grad[0]:
                grad = _as_real(pairs * phase, chain.matrices)
        # d/dθ of exp(iθk)·r is i·k times the turned entry, and the loss is real
        left, right = torch.view_as_real(_as_complex(turned)), torch.view_as_real(_as_complex(grads))
        slopes = left[..., 0] * right[..., 1] - left[..., 1] * right[..., 0]  # [S, ..., N, C]
        if ctx.shared:
            slopes = slopes.sum(-2, keepdim=True)
        row_grad = grad @ chain.adjoint_maps[0] if ctx.needs_input_grad[0] else None
        return row_grad, slopes @ chain.phase.mT, None


class LocalChain:
    """A chain whose stages are lists of maps on one or two qubits; complex rows, recorded by autograd.

    Args:
        maps: S + 1 lists of (axes of the tensor [N, q_n-1, …, q_0] that the map acts on, matrix from the right).
        phase: [k, D] real.
        n_qubits: number of qubits.
        dimension: local dimension b, D = b^n.
    """

    def __init__(
        self, maps: list[list[tuple[tuple[int, ...], Tensor]]], phase: Tensor, n_qubits: int, dimension: int
    ) -> None:
        self.maps, self.phase, self.n_qubits, self.dimension = maps, phase, n_qubits, dimension

    def transposed(self) -> LocalChain:
        """The chain that moves observables backwards; `angles` are to be given in reverse order too."""
        maps = [[(axes, matrix.mT.contiguous()) for axes, matrix in reversed(stage)] for stage in reversed(self.maps)]
        return LocalChain(maps, self.phase, self.n_qubits, self.dimension)

    def __call__(self, rows: Tensor, angles: Tensor) -> Tensor:
        """rows [N, D], angles [S, N or 1, k] → [N, D]."""
        for s, stage in enumerate(self.maps):
            if s:
                rows = rows * _unit(angles[s - 1] @ self.phase)
            for axes, matrix in stage:
                rows = self._apply(rows, axes, matrix)
        return rows

    def _apply(self, rows: Tensor, axes: tuple[int, ...], matrix: Tensor) -> Tensor:
        order = [axis for axis in range(self.n_qubits + 1) if axis not in axes] + list(axes)
        inverse = [order.index(axis) for axis in range(self.n_qubits + 1)]
        moved = rows.reshape([len(rows)] + [self.dimension] * self.n_qubits).permute(order)
        shape = moved.shape
        return (moved.reshape(-1, len(matrix)) @ matrix).reshape(shape).permute(inverse).reshape(rows.shape)


def _spread(angles: Tensor, phase: Tensor) -> Tensor:
    """angles @ phase; with one angle a plain product, which is cheaper."""
    return angles * phase if len(phase) == 1 else angles @ phase


def _as_complex(rows: Tensor) -> Tensor:
    return rows if rows.is_complex() else torch.view_as_complex(rows.unflatten(-1, (-1, 2)))


def _as_real(pairs: Tensor, like: Tensor) -> Tensor:
    return pairs if like.is_complex() else torch.view_as_real(pairs).flatten(-2)


def _unit(angle: Tensor) -> Tensor:
    """exp(i·angle)."""
    return torch.complex(angle.cos(), angle.sin())
