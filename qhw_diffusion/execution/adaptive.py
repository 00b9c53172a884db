"""Values of adaptive observables from those of their Pauli strings: a linear map whose coefficients are trained."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from qhw_diffusion.circuits.observables import AdaptiveObservables


def combined(adaptive: AdaptiveObservables, values: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_P c_jP ⟨P⟩ of each observable j; differentiable in both.

    Args:
        adaptive: the observables.
        values: [B, M] of `adaptive.strings`.
        coefficients: [C] in the order of `adaptive.terms`, or [B, C].

    Returns:
        [B, observables], on the device of the values.
    """
    observable, string = (index.to(values.device) for index in _places(adaptive))
    products = values[:, string] * coefficients.to(values.device)
    return products.new_zeros(len(values), len(adaptive)).index_add(1, observable, products)


def bound(adaptive: AdaptiveObservables, std_errors: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_P |c_jP| σ_P [B, observables] of standard errors [B, M], where c = 0 counts nothing even if σ is infinite."""
    finite = std_errors.isfinite()
    known = combined(adaptive, std_errors.where(finite, 0.0), coefficients.abs())
    unknown = combined(adaptive, (~finite).to(std_errors), (coefficients != 0).to(std_errors))
    return known.masked_fill(unknown > 0, torch.inf)


def combination(adaptive: AdaptiveObservables, coefficients: Tensor) -> Tensor:
    """[M, observables]: the linear map itself, for given coefficients [C]."""
    unit = torch.eye(len(adaptive.strings), dtype=coefficients.dtype, device=coefficients.device)
    return combined(adaptive, unit, coefficients)


@lru_cache(maxsize=64)
def _places(adaptive: AdaptiveObservables) -> tuple[Tensor, Tensor]:
    observable, string = torch.tensor(adaptive.terms).T.contiguous()
    return observable, string
