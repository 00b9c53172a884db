"""Evaluation of policies and schedules: the models and images it needs, and what both sides measure on samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.diffusion import (
    Backbone,
    Classifier,
    ImageDataset,
    accuracy,
    check_fit,
    evaluate_samples,
    frechet_distance,
    image_features,
    kernel_distance,
    load_dataset,
)
from qhw_diffusion.guidance import GuidanceConfig, PolicyOrSchedule, Reward, RewardConfig, Rollout, mean_return, rollout
from qhw_diffusion.guidance.config import BUILT_IN_SCORER, ModelConfig
from qhw_diffusion.guidance.rewards import Distribution
from qhw_diffusion.guidance.scorers import Scorer, scorer_of

_CHOICE_SEED = 31
_WITNESS_IMAGES = 2000
EVALUATION_SEED = 1_000_000  # seed k of an evaluation is this + k: far from those of trainings and choices


@dataclass(frozen=True, eq=False)
class Models:
    """Backbone, classifiers and images.

    Attributes:
        config: what was asked for.
        backbone: the backbone.
        reward: the reward classifier.
        train: images of the reward side.
        heldout: images of the evaluation.
    """

    config: ModelConfig
    backbone: Backbone
    reward: Classifier
    train: ImageDataset
    heldout: ImageDataset

    @cached_property
    def evaluation_classifier(self) -> Classifier:
        """The evaluation (held-out) classifier, loaded when it is first asked for: a training needs none.

        Raises:
            MissingDataError: it is not there.
            InvalidInputError: it does not fit the data.
        """
        found = Classifier.load(self.config.evaluation_classifier or self.config.data, role="evaluation")
        check_fit(evaluation_classifier=found, heldout_images=self.heldout)
        return found

    @cached_property
    def train_features(self) -> Tensor:
        """Training images in the reward classifier's features."""
        return image_features(self.reward, self.train.images)

    @cached_property
    def heldout_features(self) -> Tensor:
        """Held-out images in the evaluation classifier's features."""
        return image_features(self.evaluation_classifier, self.heldout.images)


def load_models(config: ModelConfig, *, evaluates: bool = True) -> Models:
    """Load everything that `config` names.

    Args:
        config: names and folders.
        evaluates: whether the evaluation classifier is needed; a training does without.

    Raises:
        MissingDataError: something is not there.
        InvalidInputError: the parts do not fit each other.
    """
    backbone = Backbone.load(config.backbone or config.data)
    reward = Classifier.load(config.reward_classifier or config.data, role="reward")
    train = load_dataset(config.data, "train", config.data_root)
    heldout = load_dataset(config.data, "heldout", config.data_root)
    check_fit(data_set=train, backbone=backbone, reward_classifier=reward, heldout_images=heldout)
    if len(train) > config.reference_images:
        generator = torch.Generator().manual_seed(_CHOICE_SEED)
        train = train.subset(torch.randperm(len(train), generator=generator)[: config.reference_images])
    models = Models(config, backbone, reward, train, heldout)
    if evaluates:
        _ = models.evaluation_classifier  # now, not after the work
    return models


def draw_initial_noise(backbone: Backbone, data: ImageDataset, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labels int64 [n] in the proportions of `data`, and initial noise [n, C, H, W]; order and noise by the seed.

    The counts of the labels are the same for every seed: which labels a set happens to hold would otherwise show in
    every distance between sets.
    Raises InvalidInputError for a backbone of other images or classes than the data set.
    """
    check_fit(backbone=backbone, data_set=data)
    generator = torch.Generator().manual_seed(seed)
    places = ((torch.arange(n, dtype=torch.float64) + 0.5) * len(data) / n).long()
    labels = data.labels.sort().values[places][torch.randperm(n, generator=generator)]
    return labels, torch.randn((n, *backbone.image_shape), generator=generator)


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
    policy: PolicyOrSchedule,
    labels: Tensor,
    noise: Tensor,
    *,
    reward: RewardConfig,
    reference: Tensor | None = None,
    judged: bool = True,
    batch: int = 128,
) -> Sampled:
    """Sample with `policy` from labels [N] and initial noise [N, C, H, W], and measure.

    Reward side, all by the reward classifier against the training images: "distance", the unbiased kernel distance
    that the reward's distribution term lowers (schedules are chosen by it: everybody is tuned on one objective), "fd",
    "kd", "accuracy"; with a calibrated `reward` also "return", the mean episode reward, and "return/NAME", the share
    of every term in it (`guidance.mean_return`).
    reference: images of the base scale from the same initial noise; with them the distribution term is the gain over
    those images instead of over a stored mean. Judged: see `diffusion.evaluate_samples`.
    """
    scorer = _scorer(models, config.scorer)
    calibrated = not reward.distribution or reward.distribution_scale is not None
    function = _reward_function(models, reward, config.scorer) if calibrated else None
    played = rollout(models.backbone, config, labels, noise, policy, scorer=scorer, reward=function, batch=batch)
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
