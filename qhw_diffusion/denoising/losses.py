"""Distances between pairs of states, [B]: pure [B, d] and density [B, d, d] in any mix, one value per pair.

Differentiable with finite gradients everywhere, also at pure, rank-deficient and equal states. Shapes are checked here;
norm and positivity are the business of `states.check_states`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.denoising.states import as_density
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.tape import first_order_only, refuse_transforms


def fidelity(a: Tensor, b: Tensor) -> Tensor:
    """Uhlmann fidelity F = (tr √(√ρ σ √ρ))² of each pair, [B], real (Uhlmann 1976; the squared convention).

    |⟨ψ|φ⟩|² for two pure states, ⟨ψ|ρ|ψ⟩ for a pure and a density one. Between two densities the gradient is the closed
    form dF = √F tr(G dσ), G = √ρ (√ρ σ √ρ)^(-1/2) √ρ with the inverse taken on the support: no division by gaps
    between eigenvalues. Where the true slope is infinite (a state leaving the set of its rank), the finite part is
    returned, which is the exact gradient for changes that keep the rank. At F = 0, where F has a kink, the gradient is
    the supergradient rank(ρ) ρ (the exact gradient σ ↦ ⟨ψ|σ|ψ⟩ if ρ is pure). Rounding can exceed [0, 1] by ~1e-15.

    Args:
        a: complex states, pure [B, d] or density [B, d, d]; a batch of size 1 is shared.
        b: as `a`.

    Raises:
        InvalidInputError: real tensors, other shapes, or dimensions or batches that do not fit.
    """
    check_pair(a, b)
    if a.ndim == 2 and b.ndim == 2:
        return _squared_modulus((a.conj() * b).sum(-1))
    if a.ndim == 2:
        return torch.einsum("...i,...ij,...j->...", a.conj(), b, a).real
    if b.ndim == 2:
        return torch.einsum("...i,...ij,...j->...", b.conj(), a, b).real
    return density_fidelity(a, b)


def infidelity(a: Tensor, b: Tensor) -> Tensor:
    """1 − F of each pair, [B] (arguments and errors as in `fidelity`)."""
    return 1 - fidelity(a, b)


def trace_distance(a: Tensor, b: Tensor) -> Tensor:
    """½‖ρ − σ‖₁ of each pair, [B]: the largest difference in probability any measurement can see.

    The gradient is ½ sign(ρ − σ), with 0 on the kernel (the subgradient of least norm; 0 for equal states). Two pure
    states take the equal √(1 − F) in a form without cancellation; it assumes unit norm.

    Args and errors as in `fidelity`.
    """
    check_pair(a, b)
    if a.ndim == 2 and b.ndim == 2:
        return torch.linalg.vector_norm(_orthogonal_part(a, b), dim=-1)
    values = torch.linalg.eigvalsh(_hermitian(as_density(a) - as_density(b)))
    kernel = values.detach().abs() <= _tolerance(values)
    return 0.5 * values.masked_fill(kernel, 0).abs().sum(-1)


def hilbert_schmidt(a: Tensor, b: Tensor) -> Tensor:
    """Squared Hilbert–Schmidt distance tr (ρ − σ)² of each pair, [B]; 2 (1 − F) for two pure states of unit norm.

    Args and errors as in `fidelity`.
    """
    check_pair(a, b)
    if a.ndim == 2 and b.ndim == 2:
        return 2 * _squared_modulus(_orthogonal_part(a, b)).sum(-1)
    return _squared_modulus(as_density(a) - as_density(b)).sum((-2, -1))


_DENSITIES = "the fidelity of two density matrices"
_INSTEAD = "use superfidelity, or a pure state as one of the two"


def density_fidelity(rho: Tensor, sigma: Tensor) -> Tensor:
    """`fidelity` of density matrices [..., d, d] whose leading axes broadcast; used pairwise and all-against-all."""
    refuse_transforms(_DENSITIES, rho, sigma, instead=_INSTEAD)
    value: Tensor = _DensityFidelity.apply(_hermitian(rho), _hermitian(sigma))
    return value


def check_pair(a: Tensor, b: Tensor, same_batch: bool = True) -> None:
    """Raise `InvalidInputError` unless both are complex states of one dtype and dimension (and of batches that fit)."""
    for name, states in (("first", a), ("second", b)):
        if not states.is_complex():
            raise InvalidInputError(f"the {name} states have dtype {states.dtype}; states are complex tensors")
        square = states.ndim == 3 and states.shape[-1] == states.shape[-2]
        if not (states.ndim == 2 or square) or 0 in states.shape:
            raise InvalidInputError(
                f"the {name} states have shape {tuple(states.shape)}; pass pure states [B, d] or densities [B, d, d]"
            )
    if a.dtype != b.dtype:
        raise InvalidInputError(
            f"states of dtype {a.dtype} and {b.dtype} cannot be compared; convert one with .to(dtype)"
        )
    if a.shape[-1] != b.shape[-1]:
        raise InvalidInputError(f"states of dimension {a.shape[-1]} and {b.shape[-1]} cannot be compared")
    if same_batch and len(a) != len(b) and 1 not in (len(a), len(b)):
        raise InvalidInputError(f"{len(a)} states against {len(b)}: pass equally many, or one to compare all with")


class _DensityFidelity(torch.autograd.Function):
    """F = ‖A†B‖₁² with ρ = AA†, σ = BB†; leading axes broadcast, arithmetic in complex128.

    The nuclear norm needs no root of a nearly singular product, and its gradient needs the singular vectors only:
    with A†B = W S V†, dF = (Σ S) tr(A W S⁻¹ W† A† dσ), and the same with B, V for dρ.
    """

    @staticmethod
    def forward(ctx: Any, rho: Tensor, sigma: Tensor) -> Tensor:
        factor_a, factor_b = _factor(rho), _factor(sigma)
        left, values, right = torch.linalg.svd(factor_a.mH @ factor_b)
        # the inputs' own rounding, seen through the product of two factors of norm ≤ 1
        support = values > 4 * values.shape[-1] * torch.finfo(rho.dtype).eps
        ctx.save_for_backward(factor_a, factor_b, left, values * support, right, rho, sigma)
        ctx.shapes = rho.shape, sigma.shape
        ctx.dtype = rho.dtype
        return (values * support).sum(-1).square().to(rho.real.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        factor_a, factor_b, left, values, right, rho, sigma = ctx.saved_tensors
        root = values.sum(-1, keepdim=True)
        weights = torch.where(values > 0, root / values.where(values > 0, torch.ones_like(values)), 0)
        grads: list[Tensor | None] = [None, None]
        sides = ((0, factor_b, right.mH), (1, factor_a, left))
        for which, factor, vectors in sides:
            if not ctx.needs_input_grad[which]:
                continue
            rank = (factor.abs().sum(-2) > 0).sum(-1, keepdim=True)
            scale = torch.where(root > 0, weights, rank.to(weights.dtype))
            turned = factor @ vectors
            slope = (turned * scale[..., None, :]) @ turned.mH
            grads[which] = (grad[..., None, None] * slope).sum_to_size(ctx.shapes[which]).to(ctx.dtype)
        by_rho, by_sigma = first_order_only(_DENSITIES, tuple(grads), rho, sigma, grad, instead=_INSTEAD)
        return by_rho, by_sigma


def _factor(rho: Tensor) -> Tensor:
    """A [..., d, d] in complex128 with ρ = AA†; eigenvalues at the rounding level of ρ's dtype count as zero."""
    values, vectors = torch.linalg.eigh(rho.to(torch.complex128))
    noise = _tolerance(values.to(rho.real.dtype)).to(values.dtype)
    return vectors * torch.where(values > noise, values, 0).sqrt()[..., None, :]


def _tolerance(values: Tensor) -> Tensor:
    """Size [..., 1] below which an eigenvalue of `values` [..., d] cannot be told from zero (as in matrix_rank)."""
    largest = values.detach().abs().amax(-1, keepdim=True)
    return largest * values.shape[-1] * torch.finfo(values.dtype).eps


def _hermitian(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mH) / 2


def _squared_modulus(z: Tensor) -> Tensor:
    return z.real.square() + z.imag.square()


def _orthogonal_part(a: Tensor, b: Tensor) -> Tensor:
    """The part of |b⟩ orthogonal to |a⟩, [B, d]; its squared norm is 1 − F for unit vectors."""
    return b - (a.conj() * b).sum(-1, keepdim=True) * a
