"""One batch of guided sampling, step by step: the dynamics under the environment and under every evaluation rollout.

The two predictions at x_t are made before the guidance scale is chosen, and do not depend on it: one U-Net call per
step (conditional and unconditional in one batch), whoever steers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qhw_diffusion.diffusion import GuidedDDIM, check_fit, check_labels
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.config import GuidanceConfig
from qhw_diffusion.guidance.state import measured_normalisation, raw_state, softened_confidence

if TYPE_CHECKING:
    from qhw_diffusion.diffusion import Backbone, Classifier


class GuidedEpisode:
    """Holds x_t, the predictions at x_t, and what the last step left behind.

    proxy: the *reward* classifier whose confidence is a state entry; None when no state is wanted (open-loop
    schedules), which saves its evaluations.
    Raises InvalidInputError for a proxy of other images or classes than the backbone, and for steps it cannot start.
    """

    def __init__(self, backbone: Backbone, config: GuidanceConfig, proxy: Classifier | None) -> None:
        if proxy is not None:
            check_fit(backbone=backbone, reward_classifier=proxy)
        self.backbone, self.config, self.proxy = backbone, config, proxy
        self.sampler = GuidedDDIM(backbone, n_steps=config.n_steps, spacing=config.spacing)
        self.step_index = 0
        self.labels = torch.empty(0, dtype=torch.int64)

    @torch.no_grad()
    def begin(self, labels: Tensor, noise: Tensor) -> None:
        """Start at x_T. labels: int64 [B]; noise: standard normal [B, C, H, W]."""
        check_starts(self.backbone, labels, noise)
        if not bool(torch.isfinite(noise).all()):
            raise InvalidInputError("noise holds NaN or infinity")
        self.step_index, self.labels = 0, labels
        self.x = noise * self.sampler.init_noise_sigma
        self.action_last = torch.zeros(labels.shape[0], device=noise.device, dtype=noise.dtype)
        self._predict()
        self.eps_last = self.eps_null + self.config.g0 * (self.eps_cond - self.eps_null)
        if self.proxy is not None:
            self.x0 = self.sampler.step(self.x, 0, self.eps_last)[1]
            self.logits = self.proxy.logits(self.x0)

    @property
    def done(self) -> bool:
        """Whether all steps have been taken; then `x` holds the images."""
        return self.step_index == self.config.n_steps

    @torch.no_grad()
    def advance(self, g: Tensor, action: Tensor | None = None) -> None:
        """One DDIM step at guidance scale g [B]; `action` [B] (ΔCFG) is remembered for the next state."""
        if self.done:
            raise InvalidInputError("the episode is over: call begin(labels, noise) first")
        difference = self.eps_cond - self.eps_null
        self.eps_last = torch.addcmul(self.eps_null, g.view(-1, 1, 1, 1), difference)
        self.x, self.x0 = self.sampler.step(self.x, self.step_index, self.eps_last)
        self.step_index += 1
        if action is not None:
            self.action_last = action
        if self.done:
            self.x0 = self.x  # the image itself is what rewards and judges look at
        else:
            self._predict()
        if self.proxy is not None:
            self.logits = self.proxy.logits(self.x0)

    def _predict(self) -> None:
        timestep = self.sampler.timesteps[self.step_index]
        self.eps_cond, self.eps_null = self.backbone.predict(self.x, timestep, self.labels)

    @torch.no_grad()
    def raw_state(self) -> Tensor:
        """State entries before normalisation, [B, n_state]. Needs a proxy classifier.

        After the last step there is no further prediction; the seventh entry is then that of the last one made.
        """
        if self.proxy is None:
            raise InvalidInputError("the state needs the reward classifier: build the episode with a proxy")
        config = self.config
        return raw_state(
            remaining=(config.n_steps - self.step_index) / config.n_steps,
            x=self.x,
            eps_last=self.eps_last,
            action_last=self.action_last / config.action_limit,
            confidence=softened_confidence(self.logits, self.labels, config.confidence_temperature),
            eps_difference=self.eps_cond - self.eps_null if config.extra_state else None,
        )

    def state(self) -> Tensor:
        """Normalised state [B, n_state], what actors see. Needs a calibrated configuration."""
        if not self.config.calibrated:
            raise InvalidInputError("the state's centre and width are unknown: pass the config through calibrate_state")
        raw = self.raw_state()
        return (raw - raw.new_tensor(self.config.state_centre)) / raw.new_tensor(self.config.state_width)

    def guidance(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """ΔCFG [B] → (clipped action, g = clip(g0 + a, g_min, g_max))."""
        limit = self.config.action_limit
        clipped = action.clamp(-limit, limit)
        return clipped, (self.config.g0 + clipped).clamp(self.config.g_min, self.config.g_max)

    _STATE = ("x", "eps_cond", "eps_null", "eps_last", "action_last", "x0", "logits", "labels")

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on mid-episode, bit for bit."""
        tensors = {name: getattr(self, name).clone() for name in self._STATE if hasattr(self, name)}
        return {**tensors, "step_index": torch.tensor(self.step_index)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        for name in self._STATE:
            if name in tensors:
                setattr(self, name, tensors[name].clone())
        self.step_index = int(tensors["step_index"])


def check_starts(backbone: Backbone, labels: Tensor, noise: Tensor) -> None:
    """Raises InvalidInputError unless there is one label of the backbone's (the null label is none) for each image of
    starting noise [B, C, H, W], B ≥ 1.
    """
    if not isinstance(noise, Tensor) or tuple(noise.shape[1:]) != tuple(backbone.image_shape):
        given = list(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise InvalidInputError(f"noise is {given}, need a tensor [B, {', '.join(map(str, backbone.image_shape))}]")
    check_labels(labels, backbone.n_classes, len(noise), null_label=backbone.null_label)


def draw_episode(
    backbone: Backbone, batch: int, generator: torch.Generator, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Labels (int64 [batch], every class as often as the others, to within one, in random order) and standard normal
    noise [batch, C, H, W] from a CPU generator.
    """
    labels = torch.randperm(batch, generator=generator) % backbone.n_classes
    noise = torch.randn((batch, *backbone.image_shape), generator=generator)
    return labels.to(device), noise.to(device)


@torch.no_grad()
def calibrate_state(
    config: GuidanceConfig, backbone: Backbone, proxy: Classifier, *, seed: int = 0, batch: int = 128
) -> GuidanceConfig:
    """The configuration with centre and width of the state entries measured on one batch with random actions.

    Actions are uniform on [−limit, limit], one draw per step and sample, so the widths cover what a controller can
    reach. A configuration that is already calibrated is returned as it is.
    """
    if config.calibrated:
        return config
    generator = torch.Generator().manual_seed(seed)
    device = next(backbone.parameters()).device
    labels, noise = draw_episode(backbone, batch, generator, device)
    episode = GuidedEpisode(backbone, config, proxy)
    episode.begin(labels, noise)
    states = []
    while not episode.done:
        states.append(episode.raw_state())
        draw = (2.0 * torch.rand(batch, generator=generator) - 1.0).to(device) * config.action_limit
        action, g = episode.guidance(draw)
        episode.advance(g, action)
    centre, width = measured_normalisation(torch.cat(states))
    return config.replace(state_centre=centre, state_width=width)
