"""Mitiq's methods whose result is a weighted sum over circuits: what they have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment
from qhw_diffusion.mitigation.mitiq_bridge import check_basis, require_mitiq
from qhw_diffusion.mitigation.strategy import Strategy, kept, without_delays


@dataclass(frozen=True)
class Family:
    """The circuits a method makes of one circuit.

    Attributes:
        circuits: C circuits with the parameters of their parent.
        weights: [C] of their expectation values in the result.
        draws: how often each was drawn, 0 for one whose weight is exact; None where nothing is left to chance.
    """

    circuits: tuple[CompiledCircuit, ...]
    weights: Tensor
    draws: tuple[int, ...] | None = None


class Weighted(Strategy):
    """Σ w_c ⟨O⟩_c over the circuits of a `Family`, which is made once for each circuit.

    The standard errors are those of the engine, propagated, and those of the drawing where circuits are drawn.
    """

    @abstractmethod
    def make(self, compiled: CompiledCircuit) -> Family:
        """Circuits and weights for `compiled`."""

    def family(self, compiled: CompiledCircuit) -> Family:
        """As `make`, remembered."""
        store = kept(compiled)
        if self not in store:
            store[self] = self.make(compiled)
        family: Family = store[self]
        return family

    def check(self, compiled: CompiledCircuit) -> None:
        require_mitiq()
        check_basis(without_delays(compiled))

    def construct(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        return [(circuit, rows) for circuit in self.family(compiled).circuits]

    def combine(
        self,
        estimates: Sequence[Estimate],
        compiled: CompiledCircuit,
        rows: Tensor,
        calibration: Sequence[Estimate] = (),
    ) -> Estimate:
        family = self.family(compiled)
        values = torch.stack([e.values for e in estimates])  # [C, B, M]
        errors = torch.stack([e.std_errors for e in estimates])
        weights = family.weights.to(values)[:, None, None]
        variance = (weights**2 * errors**2).sum(0)
        if family.draws is not None:
            variance = variance + _drawing_variance(values.detach(), errors, weights, family.draws)
        return Estimate((weights * values).sum(0), variance.sqrt())


def _drawing_variance(values: Tensor, errors: Tensor, weights: Tensor, draws: tuple[int, ...]) -> Tensor:
    """[B, M] variance of the mean over N draws, less what the engine's own errors contribute to their scatter."""
    drawn = [c for c, count in enumerate(draws) if count]
    values, errors, weights = values[drawn], errors[drawn], weights[drawn]
    counts = torch.tensor([draws[c] for c in drawn]).to(values)[:, None, None]
    n = counts.sum()
    scale = weights * n / counts  # what one draw of this circuit stands for
    single, share = scale * values, counts / n
    scatter = (share * (single - (share * single).sum(0)) ** 2).sum(0) - (share * scale**2 * errors**2).sum(0)
    return scatter.clamp(min=0) / (n - 1).clamp(min=1)


def check_number(name: str, given: object, low: int, most: int | None = None) -> None:
    """Raise InvalidInputError unless `given` is an integer ≥ low, and ≤ most if there is such a limit."""
    if isinstance(given, bool) or not isinstance(given, int) or given < low or (most is not None and given > most):
        limit = "" if most is None else f" and ≤ {most:,}"
        raise InvalidInputError(f"{name} is {given!r}; it must be an integer ≥ {low}{limit}")
