"""Layerwise Richardson extrapolation with Mitiq (arXiv 2402.04000)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit
from qhw_diffusion.mitigation.mitiq_bridge import bridge, require_mitiq
from qhw_diffusion.mitigation.mitiq_weighted import Family, Weighted, check_number
from qhw_diffusion.mitigation.strategy import MOST_CIRCUITS


@dataclass(frozen=True)
class MitiqLRE(Weighted):
    """Fold every chunk of the circuit by itself and extrapolate with a polynomial in as many variables as chunks.

    There are C(chunks + degree, degree) circuits. The weights alternate in sign and grow with the degree: the variance
    at equal shots per circuit is multiplied by Σ w² (`noise_amplification`).

    Args:
        degree: of the polynomial, ≥ 1.
        chunks: pieces of about equally many layers, ≥ 1; Mitiq's default, every layer by itself, would be thousands of
            circuits here.
        fold_multiplier: step between scale factors: 1 + 2·fold_multiplier is the first, ≥ 1.

    Raises:
        InvalidInputError: a number below 1; more chunks than the circuit has layers (when circuits are made).
    """

    degree: int = 1
    chunks: int = 4
    fold_multiplier: int = 1
    name: ClassVar[str] = "mitiq-lre"

    def __post_init__(self) -> None:
        for field in ("degree", "chunks", "fold_multiplier"):
            check_number(field, getattr(self, field), 1)

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.degree}:{self.chunks}:{self.fold_multiplier}"

    def make(self, compiled: CompiledCircuit) -> Family:
        require_mitiq()
        from mitiq.lre import construct_circuits
        from mitiq.lre.inference import multivariate_richardson_coefficients
        from mitiq.zne.scaling import fold_all

        source = bridge(compiled)
        if self.chunks > len(source.circuit):
            raise InvalidInputError(
                f"chunks is {self.chunks}, but the circuit has {len(source.circuit)} layers; use fewer chunks"
            )
        # The scales are odd integers: folding every gate reaches them, and leaves nothing to chance
        needed = math.comb(self.chunks + self.degree, self.degree)  # monomials of so many variables
        if needed > MOST_CIRCUITS:
            raise InvalidInputError(
                f"degree {self.degree} in {self.chunks} chunks takes {needed:,} circuits; at most {MOST_CIRCUITS:,} "
                "are made: lower one of them"
            )
        circuits = construct_circuits(source.circuit, self.degree, self.fold_multiplier, fold_all, self.chunks)
        try:
            with warnings.catch_warnings():  # of determinants that overflow: what comes of them is checked
                warnings.simplefilter("ignore")
                weights = np.asarray(
                    multivariate_richardson_coefficients(
                        source.circuit, self.degree, self.fold_multiplier, self.chunks
                    ),
                    float,
                )
        except ValueError:
            weights = np.array(np.nan)
        if not np.isfinite(weights).all():
            raise InvalidInputError(
                f"Mitiq finds no weights for degree {self.degree} in {self.chunks} chunks, its matrix is too large; "
                "lower one of them"
            )
        return Family(tuple(source.back(c) for c in circuits), torch.tensor(weights, dtype=torch.float64))

    def noise_amplification(self, compiled: CompiledCircuit) -> float:
        """What the variance is multiplied by at equal shots per circuit."""
        return float((self.family(compiled).weights ** 2).sum())
