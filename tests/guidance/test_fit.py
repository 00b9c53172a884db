"""Labels, data sets, backbones and classifiers that do not fit are told before anything is sampled with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qhw_diffusion.diffusion import Backbone, BackboneConfig, Classifier, ClassifierConfig, ImageDataset
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance import (
    GuidanceConfig,
    GuidanceEnv,
    GuidedEpisode,
    PolicyConfig,
    PPOConfig,
    Reward,
    RewardConfig,
    SingleGuidanceEnv,
    calibrate_state,
    diagnose,
    draw_episode,
    rollout,
    sweep_constants,
    train_guidance,
)
from qhw_diffusion.guidance.rewards import ActionPenalty, Confidence, Distribution, StepwiseImprovement, class_means

WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "the null label": (lambda y: y.where(y != 3, 10), "10 is the null label"),
    "higher": (lambda y: y.where(y != 3, 11), "0 to 11; allowed: 0 to 9"),
    "negative": (lambda y: y.where(y != 3, -1), "-1 to 9; allowed: 0 to 9"),
    "float": (lambda y: y.float(), "float32"),
    "uint8": (lambda y: y.to(torch.uint8), "uint8"),
    "one-hot": (lambda y: torch.nn.functional.one_hot(y, 10), "one-hot"),
    "NumPy": (lambda y: y.numpy(), r"numpy\.ndarray"),
    "too few": (lambda y: y[:-1], "19 labels for 20"),
    "none": (lambda y: y[:0], "0 labels for 20"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_labels_of_a_rollout(backbone: Backbone, config: GuidanceConfig, wrong: str) -> None:
    labels, noise = draw_episode(backbone, 20, torch.Generator().manual_seed(0))
    make, message = WRONG[wrong]
    for batch in (512, 10):
        with pytest.raises(InvalidInputError, match=message):
            rollout(backbone, config, make(labels), noise, 1.0, batch=batch)
    with pytest.raises(InvalidInputError, match=message):
        GuidedEpisode(backbone, config, None).begin(make(labels), noise)


@pytest.mark.parametrize("wrong", [w for w in WRONG if w != "the null label"])
def test_labels_of_the_distribution_term(reward_classifier: Classifier, real: ImageDataset, wrong: str) -> None:
    term, labels = Distribution(reward_classifier, real), torch.arange(20) % 10
    make, message = WRONG[wrong]
    for measure in (term.witness, term.distance):
        with pytest.raises(InvalidInputError, match=message):
            measure(real.images[:20], make(labels))


@pytest.fixture(scope="module")
def three(real: ImageDataset) -> ImageDataset:
    """Three of the digits, as a data set of three classes."""
    kept = torch.nonzero(real.labels < 3)[:, 0]
    return ImageDataset(real.images[kept], real.labels[kept], "three", "train", 3)


@pytest.fixture(scope="module")
def of_three() -> Classifier:
    return Classifier(ClassifierConfig(n_classes=3, width=4, n_features=8)).eval().requires_grad_(False)


def test_three_classes_and_ten_do_not_meet(
    backbone: Backbone, reward_classifier: Classifier, real: ImageDataset, three: ImageDataset, of_three: Classifier
) -> None:
    raw = GuidanceConfig(n_steps=4, noise_pool=0)
    ppo, policy = PPOConfig(num_iterations=1, num_envs=20), PolicyConfig(kind="matched")
    reward = Reward([(1.0, Confidence())], of_three)
    labels, noise = draw_episode(backbone, 20, torch.Generator().manual_seed(0))

    def train(**parts: Any) -> Any:
        return train_guidance(
            raw, ppo, RewardConfig(), policy, **{"backbone": backbone, "scorer": reward_classifier, **parts}
        )

    for way in (
        lambda: Distribution(reward_classifier, three),
        lambda: Reward.from_config(RewardConfig(), reward_classifier, three),
        lambda: Reward.from_config(
            RewardConfig(distribution=0.0, stepwise=1.0, stepwise_kind="ssim"), reward_classifier, three
        ),
        lambda: Reward([(1.0, Distribution(of_three, three))], reward_classifier),
        lambda: GuidanceEnv(backbone, reward, raw, num_envs=20),
        lambda: SingleGuidanceEnv(backbone, reward, raw),
        lambda: calibrate_state(raw, backbone, of_three),
        lambda: GuidedEpisode(backbone, raw, of_three),
        lambda: sweep_constants(backbone, reward_classifier, three, n_steps=4),
        lambda: sweep_constants(backbone, of_three, real, n_steps=4),
        lambda: train(real=three),
        lambda: train(real=real, scorer=of_three),
        lambda: train(real=real, backbone=Backbone(BackboneConfig(channels=(8,), n_classes=3))),
    ):
        with pytest.raises(InvalidInputError, match=r"10 classes\).*3 classes\)|3 classes\).*10 classes\)"):
            way()
    played = rollout(backbone, raw, labels, noise, 1.0)
    evaluation_classifier = Classifier(ClassifierConfig(role="evaluation", n_classes=3, width=4)).eval()
    with pytest.raises(InvalidInputError, match="allowed: 0 to 2"):
        diagnose((), [played], evaluation_classifier=evaluation_classifier, reward_classifier=reward_classifier)


def test_other_images_do_not_meet(backbone: Backbone) -> None:
    larger = Classifier(ClassifierConfig(image_shape=(1, 16, 16), width=4)).eval()
    with pytest.raises(InvalidInputError, match=r"1×8×8 images.*1×16×16 images"):
        GuidanceEnv(backbone, Reward([(1.0, ActionPenalty())], larger), GuidanceConfig(), num_envs=4)


def test_a_mean_over_a_class_needs_the_class(reward_classifier: Classifier, real: ImageDataset) -> None:
    missing = real.subset(torch.nonzero(real.labels != 7)[:, 0])
    with pytest.raises(InvalidInputError, match=r"'digits' has 10 classes and no image of class 7; a mean image"):
        class_means(missing)
    with pytest.raises(InvalidInputError, match=r"two real images of every class; .*fewer of class 7"):
        Distribution(reward_classifier, missing)
    assert Distribution(reward_classifier, missing, by_class=False).distance(real.images[:20], real.labels[:20]) > -1
    term = StepwiseImprovement("ssim", references=class_means(real))
    assert term.references is not None
    assert bool(term.references.isfinite().all())
