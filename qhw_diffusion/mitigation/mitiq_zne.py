"""Zero-noise extrapolation with Mitiq's folding and Mitiq's extrapolation (arXiv 1612.02058, 2005.10921)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import CompiledCircuit
from qhw_diffusion.mitigation.mitiq_bridge import bridge, require_mitiq
from qhw_diffusion.mitigation.mitiq_weighted import Family, Weighted
from qhw_diffusion.mitigation.strategy import number_text

EXTRAPOLATIONS = ("linear", "polynomial2", "richardson")
FOLDINGS = ("global", "all", "random", "two_qubit")


@dataclass(frozen=True)
class MitiqZNE(Weighted):
    """Fold the circuit to larger noise with Mitiq, evaluate, extrapolate to none.

    The folded circuits keep the parameters: all rows go out in one broadcast per scale. The extrapolations are those of
    Mitiq that are linear in the values: their weights are asked of Mitiq once, so that a gradient goes through. Its
    exponential ones are left out: where noise makes a value grow or change its sign they return numbers near 0 without
    a word. `ZNE` has one that does not.

    Args:
        scale_factors: noise scale factors ≥ 1, ascending, at least two.
        extrapolation: ``"linear"``, ``"polynomial2"`` (least squares), ``"richardson"`` (through all points).
        folding: ``"global"`` (the whole circuit), ``"all"`` (every gate), ``"random"`` (gates drawn at random where the
            scale is no odd integer) or ``"two_qubit"`` (every two-qubit gate).
        seed: of the random folding.

    Raises:
        InvalidInputError: scale factors that are too few, below 1 or not ascending, or that ``"all"`` and
            ``"two_qubit"`` cannot reach (they fold to odd integers).
        UnknownNameError: another extrapolation or folding.
    """

    scale_factors: Sequence[float] = (1, 3, 5)
    extrapolation: str = "linear"
    folding: str = "global"
    seed: int = 0
    name: ClassVar[str] = "mitiq-zne"

    def __post_init__(self) -> None:
        if self.extrapolation not in EXTRAPOLATIONS:
            raise UnknownNameError.of("extrapolation", str(self.extrapolation), EXTRAPOLATIONS)
        if self.folding not in FOLDINGS:
            raise UnknownNameError.of("folding", str(self.folding), FOLDINGS)
        scales = tuple(float(s) for s in self.scale_factors)
        needed = 3 if self.extrapolation == "polynomial2" else 2
        if len(scales) < needed or scales != tuple(sorted(set(scales))) or not all(1 <= s < math.inf for s in scales):
            raise InvalidInputError(
                f"scale_factors are {self.scale_factors!r}; give at least {needed} ascending numbers ≥ 1, for example "
                "(1, 3, 5)"
            )
        if self.folding in ("all", "two_qubit") and any(s % 2 != 1 for s in scales):
            raise InvalidInputError(
                f"scale_factors are {self.scale_factors!r}; folding={self.folding!r} reaches odd integers only, use "
                "'global' or 'random'"
            )
        object.__setattr__(self, "scale_factors", scales)

    @property
    def spec(self) -> str:
        factors = ",".join(map(number_text, self.scale_factors))
        return f"{self.name}:{self.extrapolation}:{factors}:{self.folding}:{self.seed}"

    def make(self, compiled: CompiledCircuit) -> Family:
        require_mitiq()
        from mitiq.zne import construct_circuits

        source = bridge(compiled)
        circuits = construct_circuits(source.circuit, list(self.scale_factors), self._folding())
        weights = [self._extrapolate(unit) for unit in np.eye(len(self.scale_factors))]
        return Family(tuple(source.back(c) for c in circuits), torch.tensor(weights, dtype=torch.float64))

    def _folding(self) -> Callable[[Any, float], Any]:
        from mitiq.zne.scaling import fold_all, fold_gates_at_random, fold_global

        return {
            "global": fold_global,
            "all": fold_all,
            "random": lambda circuit, scale: fold_gates_at_random(circuit, scale, seed=self.seed),
            "two_qubit": lambda circuit, scale: fold_all(circuit, scale, exclude=frozenset({"single"})),
        }[self.folding]

    def _extrapolate(self, values: np.ndarray) -> float:
        """What Mitiq makes of one value per scale."""
        from mitiq.zne.inference import LinearFactory, PolyFactory, RichardsonFactory

        scales, points = list(self.scale_factors), values.tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a polynomial through all points has no covariance
            if self.extrapolation == "linear":
                return float(LinearFactory.extrapolate(scales, points))  # type: ignore[arg-type]
            if self.extrapolation == "polynomial2":
                return float(PolyFactory.extrapolate(scales, points, order=2))  # type: ignore[arg-type]
            return float(RichardsonFactory.extrapolate(scales, points))  # type: ignore[arg-type]
