"""Baselines of a quantum denoiser: the best linear map in closed form, and what is trained in the circuit's place.

A trajectory through post-selected circuits that stays coherent between the steps is one contraction M per label,
x₀ ∝ M x_T, whatever its depth. `LinearMap` is the M fitted to the data in closed form, `LinearProcess` one trained by
the same loop on the same loss, and `ClassicalProcess` a network of at most as many parameters as the circuit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.models import QDM
from qhw_diffusion.denoising.reverse import Trajectory
from qhw_diffusion.denoising.reverse import check_labels as given_labels
from qhw_diffusion.denoising.states import check_pure, haar_states, normalised
from qhw_diffusion.diffusion import check_labels
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.evolution import Branches


@dataclass(frozen=True)
class LinearMap:
    """One contraction per label, x₀ ∝ M_y x_T with x_T Haar random.

    Attributes:
        maps: complex [C, d, d], each of spectral norm 1: the Kraus operator a post-selected process can apply at best
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

        That is how one image is read out with many shots. Redrawing the start after every failure instead would weight
        it by its success probability |M_y x_T|², and for power 1 the average output would be S_y exactly.

        Args:
            labels: int64 [B], 0 … C − 1.
            generator: of x_T.

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


class ClassicalProcess(nn.Module):
    """`ClassicalDenoiser` with the methods of a `ReverseProcess`; nothing is post-selected, every run succeeds.

    Args:
        model: the quantum model it is compared with: same dimension, steps and labels, not more parameters.
        seed: of the initial weights.
    """

    def __init__(self, model: QDM, seed: int = 0) -> None:
        super().__init__()
        self.config = _without_outcomes(model.reverse.config)
        self.network = ClassicalDenoiser(
            model.dim,
            self.config.n_labels,
            self.config.n_steps,
            model.reverse.n_parameters,
            torch.Generator().manual_seed(seed),
        )

    @property
    def n_parameters(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.parameters())

    def step(self, states: Tensor, t: int, labels: Tensor | None = None, before: Tensor | None = None) -> Branches:
        """States [B, d] at t → at t−1, with probability one; `before` is not used."""
        labels = given_labels(labels, len(states), self.config.n_labels)
        return Branches(self.network(states, t, labels)[None], torch.ones(1, len(states)))

    def run(
        self,
        states: Tensor,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        stop: int = 0,
        keep_path: bool = False,
    ) -> Trajectory:
        """As `ReverseProcess.run`; `generator` is not used."""
        path = [states]
        for t in range(self.config.n_steps, stop, -1):
            states = self.step(states, t, labels).states[0]
            path.append(states)
        zeros = torch.zeros(len(states))
        outcomes = torch.zeros(len(states), self.config.n_steps - stop, dtype=torch.long)
        return Trajectory(states, zeros, outcomes, tuple(path) if keep_path else ())

    def outcome_probabilities(self, states: Tensor) -> Tensor:
        """[B, d]: squared magnitudes."""
        return states.detach().abs().square()


class LinearProcess(nn.Module):
    """One free contraction per label, x₀ ∝ M_y x_T, with the methods of a `ReverseProcess`.

    A post-selected process is a contraction whatever its circuits (see `LinearMap`), so this one, whose
    matrix can be any, is what all of them could reach with this loss, success probability included: M is used in the
    scale in which its spectral norm is 1.

    Args:
        model: the quantum model it is compared with: same dimension and labels.
        seed: of the initial matrices, near the identity.
    """

    def __init__(self, model: QDM, seed: int = 0) -> None:
        super().__init__()
        self.config = _without_outcomes(model.reverse.config)
        generator = torch.Generator().manual_seed(seed)
        noise = 0.1 * torch.randn(self.config.n_labels, model.dim, model.dim, 2, generator=generator)
        noise[..., 0] += torch.eye(model.dim)
        self.weight = nn.Parameter(noise)

    @property
    def n_parameters(self) -> int:
        """Trainable numbers: real and imaginary parts."""
        return self.weight.numel()

    def run(
        self,
        states: Tensor,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        stop: int = 0,
        keep_path: bool = False,
    ) -> Trajectory:
        """As `ReverseProcess.run`, all steps at once: the path is (x_T, x₀); `generator` and `stop` are not used."""
        labels = given_labels(labels, len(states), self.config.n_labels)
        matrices = torch.view_as_complex(self.weight)
        scaled = matrices / torch.linalg.matrix_norm(matrices, ord=2)[:, None, None]
        made = torch.einsum("bij,bj->bi", scaled[labels], states)
        success = made.abs().square().sum(1)
        made = made / success.sqrt()[:, None]
        outcomes = torch.zeros(len(states), self.config.n_steps, dtype=torch.long)
        return Trajectory(made, success.log(), outcomes, (states, made) if keep_path else ())

    def outcome_probabilities(self, states: Tensor) -> Tensor:
        """[B, d]: squared magnitudes."""
        return states.detach().abs().square()


def with_classical(model: QDM, seed: int = 0) -> QDM:
    """A copy of the model with a classical network of at most as many parameters in the circuit's place.

    Args:
        model: the quantum model it is compared with.
        seed: of the network's initial weights.

    Raises:
        InvalidInputError: a model with too few parameters for a network (see `ClassicalDenoiser`).
    """
    return model.with_reverse(ClassicalProcess(model, seed))


def _without_outcomes(config: ReverseConfig) -> ReverseConfig:
    """Settings with which the training loop treats the only branch as certain."""
    return config.replace(kind="postselected", feed_forward=False, ancillas=max(1, config.ancillas))
