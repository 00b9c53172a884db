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
    """backbone; reward: the reward classifier; judge; train: the reward side's images; heldout: the judge's images."""

    backbone: Backbone
    reward: Classifier
    judge: Classifier
    train: ImageDataset
    heldout: ImageDataset

    @cached_property
    def train_features(self) -> Tensor:
        """Training images in the reward classifier's features."""
        return image_features(self.reward, self.train.images)

    @cached_property
    def heldout_features(self) -> Tensor:
        """Held-out images in the judge's features."""
        return image_features(self.judge, self.heldout.images)


def load_models(config: ModelConfig) -> Models:
    """Load everything `config` names.

    Raises MissingDataError when something is not there, InvalidInputError when the parts do not fit each other.
    """
    backbone = Backbone.load(config.backbone or config.data)
    reward = Classifier.load(config.reward_classifier or config.data, role="reward")
    judge = Classifier.load(config.judge or config.data, role="judge")
    train = load_dataset(config.data, "train", config.data_root)
    heldout = load_dataset(config.data, "heldout", config.data_root)
    check_fit(data_set=train, backbone=backbone, reward_classifier=reward, judge=judge, heldout_images=heldout)
    if len(train) > config.reference_images:
        generator = torch.Generator().manual_seed(_CHOICE_SEED)
        train = train.subset(torch.randperm(len(train), generator=generator)[: config.reference_images])
    return Models(backbone, reward, judge, train, heldout)


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
