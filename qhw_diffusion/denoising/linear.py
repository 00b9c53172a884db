"""What a quantum denoiser must beat: the best linear map, and a classical denoiser with as many parameters.

A chain of circuits with post-selected ancillas, kept coherent between the steps, is one contraction M per label:
x₀ ∝ M x_T, whatever its depth. The M fitted to the data in closed form stands for all of them: a model that claims to
be more than linear has to pass it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ..diffusion import check_labels
from ..errors import InvalidInputError
from .states import check_pure, haar_states, normalised


@dataclass(frozen=True)
class LinearMap:
    """One contraction per label, x₀ ∝ M_y x_T with x_T Haar random.

    Attributes:
        maps: complex [C, d, d], each of spectral norm 1: the Kraus operator a post-selected chain can apply at best
            (larger is not physical, smaller only lowers the success probability).
        norms: real [C], what each map was divided by: the fitted matrix is norms[y] · maps[y].
    """

    maps: Tensor
    norms: Tensor

    @classmethod
    def fit(cls, states: Tensor, labels: Tensor, rank: int | None = None, power: float = 1.0) -> Self:
        """M_y = V diag(λ^(power/2)) V† from the uncentred second moment S_y = mean |a⟩⟨a| = V diag(λ) V† of a class.

        With power 1, M_y z of a complex Gaussian z (E zz† = I) has exactly the second moment S_y: the zero-mean
        Gaussian of maximum likelihood for the amplitudes. A normalised state keeps its direction, that of M_y x_T, and
        for directions alone the fit is a closed-form choice, not the likeliest: try other powers and ranks as well.
        Power 0 is the projector on the class's subspace (the most successful map of its rank), larger powers favour the
        principal component; rank r keeps the r largest eigenvalues, and rank 1 prints one state whatever x_T.

        Args:
            states: data, pure [N, d].
            labels: int64 [N], 0 … C − 1, each present; zeros for an unconditional map.
            rank: 1 … d; None keeps all.
            power: ≥ 0.

        Raises:
            InvalidInputError: states that are not normalised, labels that do not fit or leave a class empty, or a rank
                or power out of range.
        """
        check_pure(states)
        count, dim = states.shape
        check_labels(labels, None, count)
        if rank is not None and not 1 <= rank <= dim:
            raise InvalidInputError(f"rank is {rank}; states of dimension {dim} allow 1 to {dim}")
        if not (power >= 0 and math.isfinite(power)):
            raise InvalidInputError(f"power is {power}; pass a finite number ≥ 0")
        sizes = torch.bincount(labels)
        if not bool((sizes > 0).all()):
            missing = (sizes == 0).nonzero().flatten().tolist()
            raise InvalidInputError(f"no state has the label(s) {missing}; number the labels 0, 1, … without gaps")
        moments = []
        for label in range(len(sizes)):
            members = states[labels == label]
            moments.append(members.T @ members.conj() / len(members))
        values, vectors = torch.linalg.eigh(torch.stack(moments))
        # rounded zeros are outside the subspace: power 0 would make ones of them
        noise = values[:, -1:] * dim * torch.finfo(values.dtype).eps
        kept = values > noise
        if rank is not None:
            kept &= torch.arange(dim, device=kept.device) >= dim - rank
        gains = torch.where(kept, values.clamp_min(0) ** (power / 2), 0)
        norms = gains.amax(1)
        maps = (vectors * (gains / norms[:, None])[:, None, :]) @ vectors.mH
        return cls(maps, norms)

    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """States M_y x_T / |M_y x_T|, [B, d], with x_T Haar random: each start is repeated until it passes.

        That is how a chain is read out with many shots. Redrawing the start after every failure instead would weight
        it by its success probability |M_y x_T|², and for power 1 the average output would be S_y exactly.

        Args:
            labels: int64 [B], 0 … C − 1.

        Raises:
            InvalidInputError: labels that do not fit.
        """
        check_labels(labels, len(self.maps))
        inputs = haar_states(len(labels), self.maps.shape[-1], generator, self.maps.dtype)
        return normalised(torch.einsum("bij,bj->bi", self.maps[labels], inputs))

    def success_probability(self, label: int) -> float:
        """tr(M†M) / (d ‖M‖²), the mean probability of passing every post-selection from a Haar-random start.

        Raises:
            InvalidInputError: a label that does not exist.
        """
        if not 0 <= label < len(self.maps):
            raise InvalidInputError(f"label is {label}; this map has the labels 0 to {len(self.maps) - 1}")
        matrix = self.maps[label]
        largest = torch.linalg.matrix_norm(matrix, ord=2)
        return float(torch.linalg.matrix_norm(matrix).square() / (matrix.shape[-1] * largest.square()))


class ClassicalDenoiser(nn.Module):
    """A real network with one hidden layer on (Re, Im) of the amplitudes: the control of equal parameter count.

    x_{t−1} ∝ x_t + W₂ silu(W₁ x_t + b + label row + t/T · time row) + b₂: a reverse step like a circuit's, but free
    to be non-linear. The hidden width is the largest whose parameters stay within `max_parameters`.

    Args:
        dim: d, amplitudes of a state.
        n_classes: labels 0 … C − 1.
        n_steps: T.
        max_parameters: what the circuit it is compared with has.
        generator: draws the initial weights.

    Raises:
        InvalidInputError: too few parameters for a single hidden unit, or counts below one.
    """

    def __init__(self, dim: int, n_classes: int, n_steps: int, max_parameters: int, generator: torch.Generator) -> None:
        super().__init__()
        if min(dim, n_classes, n_steps) < 1:
            raise InvalidInputError(f"dim {dim}, n_classes {n_classes} and n_steps {n_steps} must be at least 1")
        per_unit, fixed = 4 * dim + n_classes + 2, 2 * dim
        self.hidden_width = (max_parameters - fixed) // per_unit
        if self.hidden_width < 1:
            raise InvalidInputError(
                f"{max_parameters} parameters are too few for dimension {dim} and {n_classes} classes: "
                f"one hidden unit takes {per_unit + fixed}"
            )
        self.dim, self.n_classes, self.n_steps = dim, n_classes, n_steps
        self.inner = nn.Linear(2 * dim, self.hidden_width)
        self.label = nn.Embedding(n_classes, self.hidden_width)
        self.time = nn.Parameter(torch.empty(self.hidden_width))
        self.outer = nn.Linear(self.hidden_width, 2 * dim)
        for weights, fan_in in ((self.inner.weight, 2 * dim), (self.outer.weight, self.hidden_width)):
            nn.init.normal_(weights, std=fan_in**-0.5, generator=generator)
        nn.init.normal_(self.label.weight, generator=generator)
        nn.init.normal_(self.time, generator=generator)
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.outer.bias)

    def forward(self, states: Tensor, t: int | Tensor, labels: Tensor) -> Tensor:
        """One reverse step from t to t − 1.

        Args:
            states: pure [B, d].
            t: 1 … T, one for all or [B] integers.
            labels: int64 [B], 0 … C − 1.

        Returns:
            [B, d] of unit norm, in the dtype given; arithmetic in the dtype of the weights.

        Raises:
            InvalidInputError: states, steps or labels that do not fit.
        """
        check_pure(states)
        count = len(states)
        if states.shape[1] != self.dim:
            raise InvalidInputError(f"states have dimension {states.shape[1]}; this denoiser was built for {self.dim}")
        check_labels(labels, self.n_classes, count)
        steps = torch.as_tensor(t, device=states.device)
        if steps.shape not in ((), (count,)) or not bool(((steps >= 1) & (steps <= self.n_steps)).all()):
            raise InvalidInputError(
                f"t is {t}; pass a step from 1 to {self.n_steps}, or one for each of {count} states"
            )
        amplitudes = torch.view_as_real(states.resolve_conj()).flatten(1).to(self.time.dtype)
        share = (steps.to(self.time.dtype) / self.n_steps).expand(count)
        hidden = self.inner(amplitudes) + self.label(labels) + share[:, None] * self.time
        moved = amplitudes + self.outer(nn.functional.silu(hidden))
        return normalised(torch.view_as_complex(moved.view(count, self.dim, 2)).to(states.dtype))
