"""Rivals in the place of the circuit, trained by the same loop on the same loss: a network, and one free matrix."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from qhw_diffusion.denoising.linear import ClassicalDenoiser
from qhw_diffusion.denoising.models import QDM
from qhw_diffusion.denoising.reverse import Chain, check_labels
from qhw_diffusion.execution.evolution import Branches


class ClassicalProcess(nn.Module):
    """`ClassicalDenoiser` with the methods of a `ReverseProcess`; nothing is post-selected, every run succeeds.

    Args:
        model: the quantum model it is compared with: same dimension, steps and labels, not more parameters.
        seed: of the initial weights.
    """

    def __init__(self, model: QDM, seed: int = 0) -> None:
        super().__init__()
        # in the training loop a process without outcomes is one whose only branch is certain
        self.config = replace(model.reverse.config, kind="postselected", feed_forward=False)
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
        labels = check_labels(labels, len(states), self.config.n_labels)
        return Branches(self.network(states, t, labels)[None], torch.ones(1, len(states)))

    def run(
        self,
        states: Tensor,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        stop: int = 0,
        keep_path: bool = False,
    ) -> Chain:
        """As `ReverseProcess.run`; `generator` is not used."""
        path = [states]
        for t in range(self.config.n_steps, stop, -1):
            states = self.step(states, t, labels).states[0]
            path.append(states)
        zeros = torch.zeros(len(states))
        outcomes = torch.zeros(len(states), self.config.n_steps - stop, dtype=torch.long)
        return Chain(states, zeros, outcomes, tuple(path) if keep_path else ())

    def outcome_probabilities(self, states: Tensor) -> Tensor:
        """[B, d]: squared magnitudes."""
        return states.detach().abs().square()


class LinearProcess(nn.Module):
    """One free contraction a label, x₀ ∝ M_y x_T, with the methods of a `ReverseProcess`.

    A chain of post-selected steps is a contraction whatever its circuits (`linear.LinearMap`), so this one, whose
    matrix can be any, is what all of them could reach with this loss, success probability included: M is used in the
    scale in which its spectral norm is 1.

    Args:
        model: the quantum model it is compared with: same dimension and labels.
        seed: of the initial matrices, near the identity.
    """

    def __init__(self, model: QDM, seed: int = 0) -> None:
        super().__init__()
        self.config = replace(model.reverse.config, kind="postselected", feed_forward=False)
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
    ) -> Chain:
        """As `ReverseProcess.run`, all steps at once: the path is (x_T, x₀); `generator` and `stop` are not used."""
        labels = check_labels(labels, len(states), self.config.n_labels)
        matrices = torch.view_as_complex(self.weight)
        scaled = matrices / torch.linalg.matrix_norm(matrices, ord=2)[:, None, None]
        made = torch.einsum("bij,bj->bi", scaled[labels], states)
        success = made.abs().square().sum(1)
        made = made / success.sqrt()[:, None]
        outcomes = torch.zeros(len(states), self.config.n_steps, dtype=torch.long)
        return Chain(made, success.log(), outcomes, (states, made) if keep_path else ())

    def outcome_probabilities(self, states: Tensor) -> Tensor:
        """[B, d]: squared magnitudes."""
        return states.detach().abs().square()


def with_classical(model: QDM, seed: int = 0) -> QDM:
    """A copy of the model in which a classical network of at most as many parameters stands for the circuit."""
    return model.with_reverse(ClassicalProcess(model, seed))
