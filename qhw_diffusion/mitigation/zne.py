"""Zero-noise extrapolation: the circuit at several noise scales, extrapolated to none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment
from qhw_diffusion.mitigation.rewriting import FOLDINGS, Folding, folded
from qhw_diffusion.mitigation.strategy import Strategy, mixed_covariance
from qhw_diffusion.mitigation.strategy_text import number_text

EXTRAPOLATIONS = ("linear", "polynomial2", "polynomial3", "exponential", "richardson")
# Of Richardson's growth of errors: what an exponential may have
_MOST = 2.0
# The largest scale factor: far beyond it nothing is left of any signal, and the folded circuit fills the memory
_MOST_FOLDED = 1000
_POLYNOMIAL = re.compile(r"polynomial([1-9])")


@dataclass(frozen=True)
class ZNE(Strategy):
    """Zero-noise extrapolation by folding (Temme et al., arXiv:1612.02058; Giurgica-Tiron et al., arXiv:2005.10921).

    The circuit is evaluated with its two-qubit gates multiplied by each scale factor (`folding.folded`), and a curve
    through the values is taken at scale 0:

    - ``"linear"``: least squares, a + b λ;
    - ``"polynomial2"``, ``"polynomial3"``, …: least squares of that degree;
    - ``"richardson"``: the polynomial through all points;
    - ``"exponential"``: least squares of log|y|, y = a e^(−bλ), which is the decay under depolarizing noise. Entries it
      does not suit are extrapolated linearly: those whose values change sign, and those so close to 0 at some scale
      that errors would grow more than twice as much as with ``"richardson"``.

    The scale factors reached take part in the fit, not those asked for. Standard errors are propagated to first order.
    Readout errors are not scaled and stay, unless `Readout` is listed before.

    Args:
        scale_factors: ascending, from 1, at least two; more than the degree.
        extrapolation: as above.
        folding: ``"local"`` (two-qubit gates) or ``"global"`` (the whole circuit).

    Raises:
        InvalidInputError: scale factors that are not ascending from 1 or too few.
        UnknownNameError: another extrapolation or folding.
    """

    scale_factors: Sequence[float] = (1, 3, 5)
    extrapolation: str = "linear"
    folding: Folding = "local"
    name: ClassVar[str] = "zne"
    text_order: ClassVar[tuple[str, ...]] = ("extrapolation", "scale_factors", "folding")
    text_least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        try:
            factors = tuple(float(factor) for factor in self.scale_factors)
        except (TypeError, ValueError):
            raise InvalidInputError(f"scale_factors is {self.scale_factors!r}; give numbers, e.g. (1, 3, 5)") from None
        if (
            len(factors) < 2
            or factors[0] < 1
            or list(factors) != sorted(set(factors))
            or not factors[-1] <= _MOST_FOLDED
        ):
            raise InvalidInputError(
                f"scale_factors are {self.scale_factors!r}; give at least two, ascending, from 1 to {_MOST_FOLDED}, "
                "e.g. (1, 3, 5)"
            )
        if self.extrapolation not in EXTRAPOLATIONS and not _POLYNOMIAL.fullmatch(str(self.extrapolation)):
            raise UnknownNameError.of("extrapolation", str(self.extrapolation), EXTRAPOLATIONS)
        if self.folding not in FOLDINGS:
            raise UnknownNameError.of("folding", str(self.folding), FOLDINGS)
        if self.extrapolation != "richardson" and len(factors) <= self.degree:
            raise InvalidInputError(
                f"{self.extrapolation} needs at least {self.degree + 1} scale factors, given {len(factors)}"
            )
        object.__setattr__(self, "scale_factors", factors)

    @property
    def degree(self) -> int:
        """Of the polynomial that is fitted (to the logarithms, if exponential)."""
        if self.extrapolation == "richardson":
            return len(self.scale_factors) - 1
        match = _POLYNOMIAL.fullmatch(self.extrapolation)
        return int(match.group(1)) if match else 1

    @property
    def label(self) -> str:
        """``"ZNE linear 1, 3, 5"``."""
        kind = self.extrapolation.capitalize() if self.extrapolation == "richardson" else self.extrapolation
        return f"ZNE {kind} {', '.join(map(number_text, self.scale_factors))}" + (
            "" if self.folding == "local" else f", {self.folding}"
        )

    def reached(self, compiled: CompiledCircuit) -> tuple[float, ...]:
        """The scale factors this circuit's number of two-qubit gates allows.

        Raises:
            InvalidInputError: two of them are the same, or there is nothing to fold.
        """
        factors = tuple(folded(compiled, factor, self.folding)[1] for factor in self.scale_factors)
        if len(set(factors)) < len(factors):
            raise InvalidInputError(
                f"scale factors {', '.join(f'{f:g}' for f in self.scale_factors)} come out as "
                f"{', '.join(f'{f:g}' for f in factors)} with {compiled.two_qubit_gates} two-qubit gates; take factors "
                "further apart, for example 1, 3, 5"
            )
        return factors

    def check(self, compiled: CompiledCircuit) -> None:
        """Raise where scale factors fall together, or there is nothing to fold (see `reached`)."""
        self.reached(compiled)

    def construct(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        """One folded circuit a scale factor."""
        self.reached(compiled)
        return [(folded(compiled, factor, self.folding)[0], rows) for factor in self.scale_factors]

    def labels(self, compiled: CompiledCircuit, made: Sequence[Experiment]) -> list[str]:
        """``"folded, scale 3"``, by the scale factor reached."""
        return [f"folded, scale {factor:g}" for factor in self.reached(compiled)]

    def combine(
        self,
        estimates: Sequence[Estimate],
        compiled: CompiledCircuit,
        rows: Tensor,
        calibration: Sequence[Estimate] = (),
    ) -> Estimate:
        """The curve's value at scale 0."""
        values = torch.stack([estimate.values for estimate in estimates])
        errors = torch.stack([estimate.std_errors for estimate in estimates])
        factors = self.reached(compiled)
        value, slopes = _extrapolated(values, factors, self.degree, self.extrapolation)
        spread = (slopes * errors).square().sum(0).sqrt()
        return Estimate(value, spread, covariance=mixed_covariance(estimates, slopes.detach()))


def extrapolate(
    values: Tensor, std_errors: Tensor, factors: Sequence[float], degree: int, extrapolation: str
) -> tuple[Tensor, Tensor]:
    """Values and standard errors [K, ...] at K scale factors → at scale 0 [...], differentiable in the values."""
    result, slopes = _extrapolated(values, factors, degree, extrapolation)
    return result, (slopes * std_errors).square().sum(0).sqrt()


def _extrapolated(values: Tensor, factors: Sequence[float], degree: int, extrapolation: str) -> tuple[Tensor, Tensor]:
    """Values [K, ...] → at scale 0 [...], and its derivatives by them [K, ...]."""
    weights = torch.from_numpy(at_zero(factors, degree)).to(values).reshape(-1, *[1] * (values.ndim - 1))
    result, slopes = (weights * values).sum(0), weights.expand_as(values)
    if extrapolation == "exponential":
        one_sign = (values > 0).all(0) | (values < 0).all(0)
        safe = torch.where(one_sign, values, torch.ones_like(values))  # keeps NaN out of the gradient of the others
        exponential = safe[0].sign() * (weights * safe.abs().log()).sum(0).exp()
        steep = weights * exponential / safe
        most = _MOST * float(np.linalg.norm(at_zero(factors, len(factors) - 1)))
        tame = one_sign & (steep.square().sum(0) <= most**2)
        result = torch.where(tame, exponential, result)
        slopes = torch.where(tame, steep, slopes)
    return result, slopes


def at_zero(factors: Sequence[float], degree: int) -> np.ndarray:
    """[K]: weights of the values at K scale factors in the least-squares polynomial's value at 0; they sum to 1."""
    powers = np.vander(np.asarray(factors, dtype=float), degree + 1, increasing=True)
    weights: np.ndarray = np.linalg.pinv(powers)[0]
    return weights
