"""One controller on a set of starts: images, and what the reward side and the evaluation classifier say about them."""

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
from qhw_diffusion.guidance import GuidanceConfig, PolicyOrSchedule, Reward, RewardConfig, Rollout, mean_return, rollout
from qhw_diffusion.guidance.config import BUILT_IN_SCORER
from qhw_diffusion.guidance.rewards import Distribution
from qhw_diffusion.guidance.scorers import Scorer, scorer_of
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
    controller: PolicyOrSchedule,
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
    "kd", "accuracy"; with a calibrated `reward` also "return", the mean episode reward, and "return/NAME", the share
    of every term in it (`guidance.mean_return`).
    reference: images of the base scale from the same starts; with them the distribution term is the gain over those
    images instead of over a stored mean. Judged: see `images.evaluate_samples`.
    """
    scorer = _scorer(models, config.scorer)
    calibrated = not reward.distribution or reward.distribution_scale is not None
    function = _reward_function(models, reward, config.scorer) if calibrated else None
    played = rollout(models.backbone, config, labels, noise, controller, scorer=scorer, reward=function, batch=batch)
    features = image_features(models.reward, played.images)
    side = {
        "distance": _distribution(models, reward).distance(played.images[:_WITNESS_IMAGES], labels[:_WITNESS_IMAGES]),
        "fd": frechet_distance(features, models.train_features),
        "kd": kernel_distance(features[:_WITNESS_IMAGES], models.train_features[:_WITNESS_IMAGES]),
        "accuracy": accuracy(models.reward, played.images, labels),
    }
    if function is not None:
        shares = mean_return(function, played, reference, images=_WITNESS_IMAGES)
        side |= {"return": sum(shares.values()), **{f"return/{name}": share for name, share in shares.items()}}
    judgement = None
    if judged:
        judgement = evaluate_samples(
            played.images, labels, models.evaluation_classifier, models.heldout, real_features=models.heldout_features
        )
    return Sampled(played, side, judgement)


@lru_cache(maxsize=2)
def _scorer(models: Models, text: str) -> Scorer:
    return models.reward if text == BUILT_IN_SCORER else scorer_of(text, models.reward.name)


@lru_cache(maxsize=2)
def _distribution(models: Models, reward: RewardConfig) -> Distribution:
    by_class, kernel = reward.distribution_by_class, reward.distribution_kernel
    return Distribution(models.reward, models.train, by_class=by_class, kernel=kernel)


@lru_cache(maxsize=2)
def _reward_function(models: Models, reward: RewardConfig, scorer: str) -> Reward:
    # making it embeds thousands of training images
    return Reward.from_config(reward, _scorer(models, scorer), models.train)


def trajectory(played: Rollout) -> dict[str, Any]:
    """Mean and standard deviation of g over samples, per step, as JSON."""
    return {"g_mean": played.g.mean(1).tolist(), "g_std": played.g.std(1, correction=0).tolist()}
