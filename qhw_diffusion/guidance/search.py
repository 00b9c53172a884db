"""A greedy search of the guidance scale, image by image: what can be had without any training, at what price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qhw_diffusion.diffusion import decoded
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.episode import GuidedEpisode
from qhw_diffusion.guidance.scorers import Scorer, score

if TYPE_CHECKING:
    from qhw_diffusion.diffusion import Denoiser
    from qhw_diffusion.guidance.config import GuidanceConfig


@dataclass(frozen=True)
class GreedySearch:
    """What a search chose.

    Attributes:
        g: guidance scale of each step and image, [T, B]; `rollout` takes it as a schedule.
        scorer_evaluations: images the scorer looked at, for each image that was made. The network is not called more
            often than without a search: both its predictions are known before the scale is chosen.
    """

    g: Tensor
    scorer_evaluations: int


@torch.no_grad()
def greedy_search(
    denoiser: Denoiser,
    config: GuidanceConfig,
    labels: Tensor,
    noise: Tensor,
    scorer: Scorer,
    scales: Sequence[float],
    *,
    batch: int = 256,
) -> GreedySearch:
    """At each step, for each image, the scale whose estimate x̂₀ the scorer finds most probable to show the label.

    A one-step lookahead: x̂₀ is what this step's prediction says of the final image. It looks at one image at a time, so
    it raises confidence and knows nothing of variety.

    Args:
        denoiser: makes the predictions.
        config: sampler.
        labels: int64 [B].
        noise: standard normal, [B, *latent_shape].
        scorer: tells the probability of the label.
        scales: scales to try; of equally good ones the first is taken.
        batch: images sampled at a time.

    Raises:
        InvalidInputError: no scales.
    """
    if not scales:
        raise InvalidInputError("the search needs at least one scale")
    episode = GuidedEpisode(denoiser, config, None)
    sampler = episode.sampler
    tried = torch.tensor([float(g) for g in scales])
    parts = []
    for rows in torch.arange(len(labels)).split(batch):
        episode.begin(labels[rows], noise[rows])
        chosen = []
        while not episode.done:
            step = episode.step_index
            found = []
            for g in scales:
                output = sampler.guided(episode.cond, episode.null, float(g))
                x0 = sampler.estimate(episode.x, step, output)
                images = decoded(denoiser, x0, preview=step < episode.n_steps - 1)
                found.append(score(scorer, images, labels[rows]).log_probability)
            g_best = tried.to(noise.device)[torch.stack(found).argmax(0)]
            episode.advance(g_best.to(episode.action_last))
            chosen.append(g_best)
        parts.append(torch.stack(chosen))
    return GreedySearch(torch.cat(parts, 1), len(scales) * episode.n_steps)
