"""One controller on one set of starts: images, and what the reward side and the judge say about them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.diffusion import (
    accuracy,
    evaluate_samples,
    frechet_distance,
    image_features,
    kernel_distance,
)
from qhw_diffusion.guidance import Controller, GuidanceConfig, Reward, RewardConfig, Rollout, rollout
from qhw_diffusion.guidance.rewards import Distribution, StepView
from qhw_diffusion.studies.models import Models

_WITNESS_IMAGES = 2000
EVALUATION_SEED = 1_000_000  # seed k of an evaluation is this + k: far from those of trainings and choices


@dataclass(frozen=True)
class Sampled:
    """A rollout and the two sides' numbers: `reward_side` may choose, `judged` only reports (None when not asked)."""

    rollout: Rollout
    reward_side: dict[str, float]
    judged: dict[str, float] | None


@torch.no_grad()
def sample_and_measure(
    models: Models,
    config: GuidanceConfig,
    controller: Controller,
    labels: Tensor,
    noise: Tensor,
    *,
    reward: RewardConfig,
    reference: Tensor | None = None,
    judged: bool = True,
    batch: int = 128,
) -> Sampled:
    """Sample with `controller` from these starts (labels [N], noise [N, C, H, W]) and measure.

    Reward side, all by the reward classifier against the training images: "distance", the unbiased kernel distance
    that the reward's distribution term lowers (schedules are chosen by it: everybody is tuned on one objective), "fd",
    "kd", "accuracy"; with a calibrated `reward` also "return", the mean episode reward from its terminal terms and the
    action penalty (stepwise terms and total variation, which need every intermediate image, are left out).
    reference: images of the base scale from the same starts; with them the distribution term is the gain over those
    images instead of over a stored mean. Judged: see `images.evaluate_samples`.
    """
    played = rollout(models.backbone, config, labels, noise, controller, proxy=models.reward, batch=batch)
    features = image_features(models.reward, played.images)
    side = {
        "distance": _distribution(models, reward).distance(played.images[:_WITNESS_IMAGES], labels[:_WITNESS_IMAGES]),
        "fd": frechet_distance(features, models.train_features),
        "kd": kernel_distance(features[:_WITNESS_IMAGES], models.train_features[:_WITNESS_IMAGES]),
        "accuracy": accuracy(models.reward, played.images, labels),
    }
    if not reward.distribution or reward.distribution_scale is not None:
        side["return"] = terminal_return(models, reward, played, reference)
    judgement = None
    if judged:
        judgement = evaluate_samples(
            played.images, labels, models.judge, models.heldout, real_features=models.heldout_features
        )
    return Sampled(played, side, judgement)


@torch.no_grad()
def terminal_return(models: Models, reward: RewardConfig, played: Rollout, reference: Tensor | None = None) -> float:
    """Mean episode reward of a rollout from the terms that can be computed at its end (see `sample_and_measure`)."""
    images = played.images[:_WITNESS_IMAGES]
    logits = models.reward.logits(images)
    labels = played.labels[: len(images)]
    nothing = torch.zeros(len(images))
    base = None if reference is None else reference[: len(images)]
    end = StepView(True, images, images, logits, logits, labels, nothing, base)
    total = -reward.action_penalty * float(played.actions.square().sum(0).mean())
    for weight, term in _reward_function(models, reward).terms:
        if term.name in ("distribution", "confidence"):
            total += weight * float(term(end).mean())
    return total


@lru_cache(maxsize=2)
def _distribution(models: Models, reward: RewardConfig) -> Distribution:
    by_class, kernel = reward.distribution_by_class, reward.distribution_kernel
    return Distribution(models.reward, models.train, by_class=by_class, kernel=kernel)


@lru_cache(maxsize=2)
def _reward_function(models: Models, reward: RewardConfig) -> Reward:
    # making it embeds thousands of training images
    return Reward.from_config(reward, models.reward, models.train)


def trajectory(played: Rollout) -> dict[str, Any]:
    """Mean and standard deviation of g over samples, per step, as JSON."""
    return {"g_mean": played.g.mean(1).tolist(), "g_std": played.g.std(1, correction=0).tolist()}
