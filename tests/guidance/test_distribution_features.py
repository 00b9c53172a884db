"""What the distribution term compares: pixels, layers, several networks; and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qhw_diffusion.diffusion import Classifier, ImageDataset, class_energy_distance
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.guidance import RewardConfig, rewards
from qhw_diffusion.guidance.rewards import Distribution
from qhw_diffusion.guidance.scorers import feature_maps, layer_features


def embedded(images: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Standardised by the real ones, by hand."""
    width = real.std(0)
    width = width.clamp_min(0.1 * float(width.mean()))
    return (images - real.mean(0)) / width, (real - real.mean(0)) / width


@pytest.mark.parametrize("text", ["pixels", "classifier", "layers", "classifier+pixels"])
def test_the_distance_is_the_mean_of_those_of_the_feature_sets(
    reward_classifier: Classifier, real: ImageDataset, text: str
) -> None:
    known, made = real.subset(torch.arange(400)), real.subset(torch.arange(600, 800))
    term = Distribution(reward_classifier, known, features=text)
    sets = [
        (mine, theirs)
        for mapped in feature_maps(text, reward_classifier)
        for mine, theirs in zip(mapped(made.images), mapped(known.images), strict=True)
    ]
    assert len(sets) == {"pixels": 1, "classifier": 1, "layers": 2, "classifier+pixels": 2}[text]
    parts = []
    for mine, theirs in sets:
        size = mine.shape[1] ** 0.5 if len(sets) > 1 else 1.0
        parts.append(class_energy_distance(mine, made.labels, theirs, known.labels) / size)
    # this one weights real images by the labels made, as the other does
    assert term.distance(made.images, made.labels) == pytest.approx(sum(parts) / len(parts), rel=2e-3)
    images = made.images.clone().requires_grad_()
    term.embedded_distance(term.embed(images), made.labels).backward()
    assert images.grad is not None
    assert bool((images.grad.abs().flatten(1).sum(1) > 0).all())


def test_real_images_are_embedded_some_at_a_time(
    monkeypatch: pytest.MonkeyPatch, reward_classifier: Classifier, real: ImageDataset
) -> None:
    """A whole data set would not fit into memory: no call sees more than the limit, and the term is the same."""
    known, made = real.subset(torch.arange(100)), real.subset(torch.arange(600, 800))
    wanted = Distribution(reward_classifier, known, features="classifier+pixels").distance(made.images, made.labels)
    seen: list[int] = []
    usual = reward_classifier.features
    monkeypatch.setattr(rewards, "EMBEDDED_TOGETHER", 33)
    monkeypatch.setattr(reward_classifier, "features", lambda images: seen.append(len(images)) or usual(images))
    term = Distribution(reward_classifier, known, features="classifier+pixels")
    assert seen == [33, 33, 33, 1]
    assert term.distance(made.images, made.labels) == pytest.approx(wanted, rel=1e-5)


def test_layers_end_with_the_features(reward_classifier: Classifier, real: ImageDataset) -> None:
    found = layer_features(reward_classifier, real.images[:5])
    assert torch.equal(found[-1], reward_classifier.features(real.images[:5]))
    assert len(found) >= 2


def test_an_ensemble_of_networks_and_own_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward_classifier: Classifier, real: ImageDataset
) -> None:
    reward_classifier.save(tmp_path / "other")
    few = real.subset(torch.arange(200))
    both = Distribution(reward_classifier, few, features=f"classifier+{tmp_path / 'other'}")
    alone = Distribution(reward_classifier, few)
    made = real.subset(torch.arange(300, 400))
    # the same network twice, saved in half precision
    size = reward_classifier.n_features**0.5
    assert both.distance(made.images, made.labels) * size == pytest.approx(
        alone.distance(made.images, made.labels), rel=1e-2
    )
    (tmp_path / "mine_features.py").write_text(
        "def mean(images):\n    return images.mean((1, 2))\n\ndef bad(images):\n    return images.mean()\n"
    )
    monkeypatch.chdir(tmp_path)
    own = Distribution(reward_classifier, few, features="mine_features.py:mean")
    assert own.embed(made.images).shape == (100, 8)
    with pytest.raises(InvalidInputError, match=r"features 'mine_features.py:bad' are .* wanted"):
        Distribution(reward_classifier, few, features="mine_features.py:bad")


def test_the_evaluation_classifier_is_no_feature_of_a_reward(
    tmp_path: Path, reward_classifier: Classifier, evaluation_classifier: Classifier, real: ImageDataset
) -> None:
    evaluation_classifier.save(tmp_path / "evaluation")
    with pytest.raises(InvalidInputError, match="evaluation"):
        Distribution(reward_classifier, real, features=str(tmp_path / "evaluation"))


def test_a_scorer_without_layers_says_what_to_do(real: ImageDataset) -> None:
    class Bare:
        def probability(self, images: Tensor, labels: Tensor) -> Tensor:
            return images.flatten(1).mean(1).sigmoid()

    with pytest.raises(InvalidInputError, match=r"layers\(images\).*'classifier' or 'pixels'"):
        Distribution(Bare(), real.subset(torch.arange(100)), features="layers")
    assert Distribution(Bare(), real.subset(torch.arange(100)), features="pixels").embed(real.images[:3]).shape == (
        3,
        64,
    )


@pytest.mark.parametrize("text", ["pixel", "", "classifier+", "classifier+nowhere"])
def test_features_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UnknownNameError, match="allowed: classifier, layers, pixels"):
        RewardConfig(distribution_features=text)
