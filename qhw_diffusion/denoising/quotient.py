"""p(x | kept) from ⟨P Z^s⟩ and ⟨P⟩: a quotient of two noisy numbers that share their shots, with standard errors.

A shot either fails (every P Z^s is 0) or passes with an outcome x of the data (P Z^s is (−1)^(s·x)). So with
q(x) = 2⁻ⁿ Σ_s (−1)^(s·x) ⟨P Z^s⟩, the share of all shots that pass with x, all covariances of N plain shots are known
from the values themselves: Cov(P Z^s, P Z^t) = (⟨P Z^(s⊕t)⟩ − ⟨P Z^s⟩⟨P Z^t⟩)/N. Readout inversion, and twirling and
ZNE on top of it, state the covariance of their values. Of other mitigated values the standard errors are taken with the
correlations of plain shots. From there on it is the delta method:

    Cov p = (Cov q − p cᵀ − c pᵀ + p pᵀ Var S)/S²,  S = Σ q = ⟨P⟩,  c = Cov(q, S).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qhw_diffusion.denoising.readout import project_simplex
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.measurement import z_signs

# A success probability below so many of its standard errors is not told from 0, and nothing is divided by it
TOLD_APART = 2.0


@dataclass(frozen=True)
class Quotient:
    """What is read out of ⟨P Z^s⟩ of B circuits on n data qubits, d = 2ⁿ; float64.

    Attributes:
        probabilities: [B, d], p(x | kept), unbiased to first order: mitigated values may leave [0, 1]. NaN in rows that
            are not resolved.
        covariance: [B, d, d], of these; infinite where the engine knows no standard error.
        success: [B], ⟨P⟩.
        success_errors: [B], its standard errors.
        resolved: bool [B]: whether the success probability is told from 0 (`TOLD_APART`).
        kept: [B], the number of kept shots that would have such errors: of plain shots those that passed; infinite for
            exact values.
    """

    probabilities: Tensor
    covariance: Tensor
    success: Tensor
    success_errors: Tensor
    resolved: Tensor
    kept: Tensor

    @property
    def probability_errors(self) -> Tensor:
        """[B, d], standard errors of the probabilities."""
        return self.covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()

    @property
    def distribution(self) -> Tensor:
        """[B, d], the nearest distribution to the probabilities; uniform in rows that are not resolved."""
        d = self.probabilities.shape[1]
        return project_simplex(torch.where(self.resolved[:, None], self.probabilities, 1 / d))

    @property
    def magnitudes(self) -> tuple[Tensor, Tensor]:
        """[B, d] √p of the distribution, and its standard errors.

        The delta method's error of √p fails at p = 0, where nothing was counted. As in `readout` it is the longer arm
        of the Wilson interval at one sigma, which is the delta method for many counts, here with the variance of p.
        """
        p, n = self.distribution, self.kept[:, None]
        half = (self.probability_errors.square() + 0.25 / n**2).sqrt() / (1 + 1 / n)
        centre = (p + 0.5 / n) / (1 + 1 / n)
        lower, upper = (centre - half).clamp_min(0), (centre + half).clamp_max(1)
        root = p.sqrt()
        errors = torch.maximum(upper.sqrt() - root, root - lower.sqrt()).clamp_min(0)
        return root, torch.where(self.covariance.diagonal(dim1=1, dim2=2).isinf(), torch.inf, errors)

    @property
    def correlations(self) -> Tensor:
        """[B, d, d] of the probabilities; the identity where there is no error."""
        return _correlations(torch.where(self.covariance.isfinite(), self.covariance, 0.0))


def quotient_of(
    values: Tensor, std_errors: Tensor, shots: int | None = None, covariance: Tensor | None = None
) -> Quotient:
    """p(x | kept) and the success probability from ⟨P Z^s⟩.

    Args:
        values: [B, 2ⁿ], s in the order of `circuits.deferred.projected_strings`; the first is ⟨P⟩.
        std_errors: [B, 2ⁿ], of the values; infinite where none is known.
        shots: of each circuit, if the values are means over plain shots: the covariance is then exact, and `std_errors`
            are not used. None: as the module says.
        covariance: [B, 2ⁿ, 2ⁿ] of the values, where it is known; for plain shots it is not used.

    Raises:
        InvalidInputError: shapes that do not fit, values that are not finite, negative errors.
    """
    size = values.shape[-1] if values.ndim == 2 else 0
    if size < 2 or size & (size - 1) or std_errors.shape != values.shape:
        raise InvalidInputError(
            f"values {tuple(values.shape)} and errors {tuple(std_errors.shape)}: both are [B, 2^n], one for each string"
        )
    if covariance is not None and covariance.shape != (*values.shape, size):
        raise InvalidInputError(
            f"covariance is {tuple(covariance.shape)}; of values {tuple(values.shape)} it is {(*values.shape, size)}"
        )
    values, errors = (each.detach().cpu().double() for each in (values, std_errors))
    if not bool(values.isfinite().all()) or not bool((errors >= 0).all()):
        raise InvalidInputError("values must be finite and standard errors not negative")
    n = size.bit_length() - 1
    signs = torch.from_numpy(z_signs(n))
    back = signs / size
    success = values[:, 0]
    shares = values @ back  # q(x)
    unknown = errors.isinf() if shots is None else torch.zeros_like(errors, dtype=torch.bool)
    if shots is not None:
        covariance = _covariance_of_a_shot(_physical(shares, success), signs) / shots
    elif covariance is not None:
        covariance = covariance.detach().cpu().double()
    else:
        errors = errors.masked_fill(unknown, 0.0)
        per_shot = _covariance_of_a_shot(_physical(shares, success), signs)
        covariance = _correlations(per_shot) * errors[:, :, None] * errors[:, None, :]
    success_errors = covariance[:, 0, 0].sqrt().masked_fill(unknown[:, 0], torch.inf)
    resolved = (success > 0) & (success >= TOLD_APART * success_errors.masked_fill(unknown[:, 0], 0.0))
    divisor = torch.where(resolved, success, torch.nan)[:, None]
    p = shares / divisor
    of_shares = back.T @ covariance @ back
    with_success = covariance[:, 0] @ back
    mixed = p[:, :, None] * with_success[:, None, :]
    of_p = of_shares - mixed - mixed.mT + p[:, :, None] * p[:, None, :] * covariance[:, :1, :1]
    of_p = of_p / divisor[:, :, None] ** 2
    of_p = torch.where(unknown.any(1)[:, None, None], torch.inf, of_p)
    kept = shots * success if shots is not None else _kept(p, of_p)
    return Quotient(p, of_p, success, success_errors, resolved, torch.where(resolved, kept, torch.nan))


def _physical(shares: Tensor, success: Tensor) -> Tensor:
    """[B, d]: the nearest shares that are ≥ 0 and add up to a probability, to take a shot's covariance from."""
    total = success.clamp(1e-9, 1.0)[:, None]
    given = torch.where(success[:, None] > 0, shares / success[:, None].clamp_min(1e-9), 1 / shares.shape[1])
    return project_simplex(given) * total


def _covariance_of_a_shot(shares: Tensor, signs: Tensor) -> Tensor:
    """[B, d, d]: Cov(P Z^s, P Z^t) of one shot that passes with x with probability `shares` [B, d]."""
    means = shares @ signs.T
    index = torch.arange(len(signs))
    return means[:, index[:, None] ^ index[None, :]] - means[:, :, None] * means[:, None, :]


def _correlations(covariance: Tensor) -> Tensor:
    """[B, d, d]; what does not vary at all is correlated with nothing but itself."""
    spread = covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    product = spread[:, :, None] * spread[:, None, :]
    eye = torch.eye(covariance.shape[1], dtype=covariance.dtype).expand_as(covariance)
    return torch.where(product > 0, covariance / torch.where(product > 0, product, 1.0), eye)


def _kept(p: Tensor, covariance: Tensor) -> Tensor:
    """[B]: the N of which N kept shots would have these variances all together, Σ_x p(x)(1 − p(x))/N."""
    total = covariance.diagonal(dim1=1, dim2=2).sum(1)
    spread = (1 - p.square().sum(1)).clamp_min(1e-12)
    return torch.where(total > 0, spread / total, torch.inf)
