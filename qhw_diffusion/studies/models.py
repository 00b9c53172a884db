"""What a study works with: backbone, the two classifiers, the two splits, loaded once per process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qhw_diffusion.diffusion import Backbone, Classifier, ImageDataset, check_fit, image_features, load_dataset
from qhw_diffusion.studies.settings import ModelConfig

_CHOICE_SEED = 31


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


def draw_starts(backbone: Backbone, data: ImageDataset, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labels int64 [n] in the proportions of `data`, and starting noise [n, C, H, W]; order and noise by the seed.

    The counts of the labels are the same for every seed: which labels a set happens to hold would otherwise show in
    every distance between sets.
    Raises InvalidInputError for a backbone of other images or classes than the data set.
    """
    check_fit(backbone=backbone, data_set=data)
    generator = torch.Generator().manual_seed(seed)
    places = ((torch.arange(n, dtype=torch.float64) + 0.5) * len(data) / n).long()
    labels = data.labels.sort().values[places][torch.randperm(n, generator=generator)]
    return labels, torch.randn((n, *backbone.image_shape), generator=generator)
