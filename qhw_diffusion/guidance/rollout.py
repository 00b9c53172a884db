"""Evaluation rollouts: any controller — an actor or an open-loop schedule — on given labels and starting noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.actors import Actor
from qhw_diffusion.guidance.config import GuidanceConfig
from qhw_diffusion.guidance.episode import GuidedEpisode, check_starts

if TYPE_CHECKING:
    from qhw_diffusion.diffusion import Backbone, Classifier

Controller = Actor | Tensor | float


@dataclass(frozen=True)
class Rollout:
    """What came out of sampling B images in T steps.

    images: [B, C, H, W] in [−1, 1]; labels: int64 [B]; g: [T, B], the scales used; actions: [T, B], ΔCFG as applied
    (g − g0 for a schedule); states: [T, B, n_state], normalised (empty [T, 0, n_state] for an open-loop schedule);
    confidence: [B], p(y | image) of the reward classifier, or None for a schedule; circuits: circuits a device would
    have run (0 for everything classical).
    """

    images: Tensor
    labels: Tensor
    g: Tensor
    actions: Tensor
    states: Tensor
    confidence: Tensor | None
    circuits: int


@torch.no_grad()
def rollout(
    backbone: Backbone,
    config: GuidanceConfig,
    labels: Tensor,
    noise: Tensor,
    controller: Controller,
    *,
    proxy: Classifier | None = None,
    generator: torch.Generator | None = None,
    batch: int = 512,
) -> Rollout:
    """Sample one image per label with the controller at the wheel.

    labels: int64 [B]; noise: [B, C, H, W]; controller: an actor (its mean action; with a `generator`, sampled
    actions), a schedule [T] or [T, B], or one number; proxy: the reward classifier, needed by actors for the state;
    batch: images sampled at a time. The same labels and noise give every controller the same starting point.
    """
    if batch < 1:
        raise InvalidInputError(f"batch must be at least 1, got {batch}")
    check_starts(backbone, labels, noise)
    schedule: Tensor | None = None
    if isinstance(controller, Actor):
        if proxy is None:
            raise InvalidInputError("an actor sees the reward classifier's confidence: pass proxy=")
        if not config.calibrated:
            raise InvalidInputError("the configuration is not calibrated: use the one the actor was trained with")
    else:
        schedule = _schedule(controller, config.n_steps, labels.shape[0])
        proxy = None
    episode = GuidedEpisode(backbone, config, proxy)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, labels.shape[0], batch):
        rows = slice(start, start + batch)
        episode.begin(labels[rows], noise[rows])
        kept: dict[str, list[Tensor]] = {"g": [], "actions": [], "states": []}
        while not episode.done:
            if schedule is not None:
                g = schedule[episode.step_index, rows].to(noise)
                action = g - config.g0
                episode.advance(g)
            else:
                assert isinstance(controller, Actor)
                state = episode.state()
                wanted = controller(state)[0] if generator is None else controller.sample(state, generator)[0]
                action, g = episode.guidance(wanted[:, 0])
                episode.advance(g, action)
                kept["states"].append(state)
            kept["g"].append(g)
            kept["actions"].append(action)
        part = {name: torch.stack(values) for name, values in kept.items() if values}
        part["images"] = episode.x
        if proxy is not None:
            part["confidence"] = episode.logits.softmax(1).gather(1, labels[rows, None]).squeeze(1)
        parts.append(part)

    def joined(name: str, dim: int) -> Tensor:
        return torch.cat([part[name] for part in parts], dim=dim)

    is_actor = isinstance(controller, Actor)
    return Rollout(
        images=joined("images", 0),
        labels=labels,
        g=joined("g", 1),
        actions=joined("actions", 1),
        states=joined("states", 1) if is_actor else torch.zeros(config.n_steps, 0, config.n_state),
        confidence=joined("confidence", 0) if is_actor else None,
        circuits=controller.circuits_per_state * config.n_steps * labels.shape[0] if is_actor else 0,  # type: ignore[union-attr]
    )


def _schedule(controller: Tensor | float, n_steps: int, batch: int) -> Tensor:
    values = torch.as_tensor(controller, dtype=torch.float32)
    if values.ndim == 0:
        values = values.expand(n_steps)
    if values.ndim == 1 and values.shape[0] == n_steps:
        values = values[:, None].expand(n_steps, batch)
    if tuple(values.shape) != (n_steps, batch) or not bool(torch.isfinite(values).all()):
        raise InvalidInputError(
            f"a schedule is a number, [n_steps] or [n_steps, B] of finite scales, n_steps = {n_steps}, B = {batch}; "
            f"got {tuple(torch.as_tensor(controller).shape)}"
        )
    return values
