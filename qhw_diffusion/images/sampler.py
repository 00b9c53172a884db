"""DDIM with classifier-free guidance, without the clipping trap; every coefficient computed once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InvalidInputError
from .backbone import Backbone

Guidance = float | Tensor | Callable[[int, Tensor, Tensor, Tensor], Tensor]


class GuidedDDIM:
    """Deterministic DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 with η = 0) over `n_steps` "leading" timesteps.

    The estimate x̂₀ is clipped to [−1, 1] and **the noise is recomputed from the clipped x̂₀** (what diffusers calls
    `use_clipped_model_output=True`). Clipping x̂₀ alone, which is diffusers' default, leaves x̂₀ and ε̂ inconsistent;
    at g ≥ 2 the error piles up from step to step and the images are destroyed.

    Attributes: `backbone`, `n_steps`, `timesteps` (list of int, descending, one per step), `init_noise_sigma` (1.0),
    `clip` (whether x̂₀ is clipped).
    """

    init_noise_sigma = 1.0

    def __init__(self, backbone: Backbone, n_steps: int = 10, *, clip: bool = True) -> None:
        """Raises InvalidInputError when `n_steps` is not in 1 … the backbone's number of training timesteps."""
        total = backbone.config.n_train_timesteps
        if not 1 <= n_steps <= total:
            raise InvalidInputError(f"n_steps is {n_steps}, must be in 1 … {total}")
        self.backbone = backbone
        self.n_steps = n_steps
        self.clip = clip
        stride = total // n_steps
        self.timesteps: list[int] = [i * stride for i in reversed(range(n_steps))]
        # ᾱ beyond the last step is 1: the last step returns x̂₀ itself
        alphas = backbone.alphas_cumprod.double().cpu()
        alpha = alphas[self.timesteps]
        alpha_prev = torch.cat([alphas[self.timesteps[1:]], torch.ones(1, dtype=torch.float64)])
        self._inv_signal: list[float] = alpha.rsqrt().tolist()
        self._noise_over_signal: list[float] = ((1 - alpha) / alpha).sqrt().tolist()
        # x_prev = √ᾱ' x̂₀ + √(1−ᾱ') ε', ε' = (x_t − √ᾱ x̂₀)/√(1−ᾱ)  ⇒  x_prev = a x̂₀ + b x_t
        ratio = ((1 - alpha_prev) / (1 - alpha)).sqrt()
        self._from_x0: list[float] = (alpha_prev.sqrt() - ratio * alpha.sqrt()).tolist()
        self._from_xt: list[float] = ratio.tolist()

    @torch.no_grad()
    def step(self, x_t: Tensor, i: int, eps_hat: Tensor) -> tuple[Tensor, Tensor]:
        """One step: (x at the next lower timestep, the estimate x̂₀), both [B, C, H, W].

        Args:
            x_t: [B, C, H, W] at timestep `timesteps[i]`.
            i: index of the step, 0 … n_steps − 1.
            eps_hat: the guided noise prediction, [B, C, H, W].
        """
        if not 0 <= i < self.n_steps:
            raise InvalidInputError(f"step {i} is outside 0 … {self.n_steps - 1}")
        if eps_hat.shape != x_t.shape:
            raise InvalidInputError(f"eps_hat {tuple(eps_hat.shape)} and x_t {tuple(x_t.shape)} differ in shape")
        x0_hat = (x_t * self._inv_signal[i]).sub_(eps_hat, alpha=self._noise_over_signal[i])
        if self.clip:
            x0_hat.clamp_(-1.0, 1.0)
        x_prev = (x_t * self._from_xt[i]).add_(x0_hat, alpha=self._from_x0[i])
        return x_prev, x0_hat

    @torch.no_grad()
    def sample(self, labels: Tensor, g: Guidance, noise: Tensor) -> Tensor:
        """Images [B, C, H, W] in [−1, 1] from starting noise, ε̂ = ε_∅ + g (ε_c − ε_∅).

        Args:
            labels: int64 [B].
            g: guidance scale: a number; a tensor [n_steps] or [n_steps, B]; or a function
                (i, x_t, ε_c, ε_∅) → [B]. g = 1 is plain conditional sampling, g = 0 unconditional.
            noise: [B, C, H, W], standard normal.

        Raises:
            InvalidInputError: shapes that do not fit, or a guidance scale that is not finite.
        """
        scales = self._scales(g, len(noise))
        x = noise
        for i, t in enumerate(self.timesteps):
            eps_cond, eps_null = self.backbone.predict(x, t, labels)
            scale = g(i, x, eps_cond, eps_null) if callable(g) else scales[i]
            x, _ = self.step(x, i, guided(eps_cond, eps_null, scale))
        return x

    def _scales(self, g: Guidance, batch: int) -> list[float | Tensor]:
        if callable(g):
            return []
        scales = torch.as_tensor(g, dtype=torch.float32)
        if not torch.isfinite(scales).all():
            raise InvalidInputError("the guidance scale must be finite")
        if scales.ndim == 0:
            return [float(scales)] * self.n_steps
        if scales.shape == (self.n_steps,):
            return list(scales.tolist())
        if scales.shape == (self.n_steps, batch):
            return list(scales)
        raise InvalidInputError(
            f"guidance scale of shape {tuple(scales.shape)}: "
            f"need a number, [{self.n_steps}] or [{self.n_steps}, {batch}]"
        )


def guided(eps_cond: Tensor, eps_null: Tensor, g: float | Tensor) -> Tensor:
    """ε̂ = ε_∅ + g (ε_c − ε_∅) (Ho & Salimans 2022, arXiv 2207.12598, with g = 1 + w); g a number or [B]."""
    if isinstance(g, Tensor):
        if g.shape != eps_cond.shape[:1]:
            raise InvalidInputError(f"guidance scale of shape {tuple(g.shape)}: need [{eps_cond.shape[0]}]")
        g = g.view(-1, *([1] * (eps_cond.ndim - 1)))
    return torch.lerp(eps_null, eps_cond, g)
