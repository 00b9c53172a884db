from __future__ import annotations

import pytest
import torch

from qhw_diffusion import diffusion
from qhw_diffusion.diffusion import Classifier, ImageDataset
from qhw_diffusion.errors import InvalidInputError


@pytest.fixture(scope="module")
def evaluator() -> Classifier:
    return Classifier.load("digits", role="evaluation")


@pytest.fixture(scope="module")
def splits() -> tuple[ImageDataset, ImageDataset]:
    return diffusion.load_dataset("digits", "train"), diffusion.load_dataset("digits", "heldout")


def test_every_key_is_its_metric(evaluator: Classifier, splits: tuple[ImageDataset, ImageDataset]) -> None:
    train, heldout = splits
    x, labels = train.images[:300], train.labels[:300]
    result = diffusion.evaluate_samples(x, labels, evaluator, heldout)
    assert tuple(result) == diffusion.METRICS
    with torch.no_grad():
        mine, theirs = evaluator.features(x), evaluator.features(heldout.images)
    assert result["fd"] == pytest.approx(diffusion.frechet_distance(mine, theirs), rel=1e-4)
    energy = diffusion.class_energy_distance(mine, labels, theirs, heldout.labels)
    assert result["energy"] == pytest.approx(energy, rel=1e-4)
    assert result["kd"] == pytest.approx(diffusion.kernel_distance(mine, theirs), rel=1e-3)
    assert result["accuracy"] == pytest.approx(diffusion.accuracy(evaluator, x, labels))
    assert result["diversity"] == pytest.approx(diffusion.diversity(mine, labels), rel=1e-4)
    assert (result["precision"], result["recall"]) == pytest.approx(diffusion.precision_recall(mine, theirs), abs=0.005)
    again = diffusion.evaluate_samples(x, labels, evaluator, heldout, real_features=theirs)
    assert again == pytest.approx(result, rel=1e-4)


def test_floor_is_that_of_real_images_and_shrinks_with_n(
    evaluator: Classifier, splits: tuple[ImageDataset, ImageDataset]
) -> None:
    train, heldout = splits
    few, many = (diffusion.real_floor(evaluator, train, heldout, n) for n in (100, 1000))
    assert many["fd"] < few["fd"]
    assert many["accuracy"] > 0.97
    assert min(many["precision"], many["recall"]) > 0.8
    assert diffusion.real_floor(evaluator, train, heldout, 100) == few
    assert diffusion.real_floor(evaluator, train, heldout, 100, seed=1) != few


def test_metrics_get_worse_as_images_get_worse(
    evaluator: Classifier, splits: tuple[ImageDataset, ImageDataset]
) -> None:
    train, heldout = splits
    x, labels = train.images[:600], train.labels[:600]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    results = [
        diffusion.evaluate_samples((x + s * noise).clamp(-1, 1), labels, evaluator, heldout) for s in (0, 0.5, 1.0)
    ]
    for key, sign in (("energy", 1), ("fd", 1), ("kd", 1), ("accuracy", -1), ("precision", -1)):
        values = [sign * r[key] for r in results]
        assert values[0] < values[1] < values[2], key
    collapsed = diffusion.evaluate_samples(x[:10].repeat(60, 1, 1, 1), labels[:10].repeat(60), evaluator, heldout)
    assert collapsed["diversity"] < 0.6 * results[0]["diversity"]
    assert collapsed["energy"] > 4 * results[0]["energy"]
    assert collapsed["recall"] < 0.3 * results[0]["recall"]


@pytest.mark.slow
def test_the_shipped_model_is_good_near_one_and_worse_far_from_it(
    evaluator: Classifier, splits: tuple[ImageDataset, ImageDataset]
) -> None:
    sampler = diffusion.GuidedDDIM(diffusion.Backbone.load("digits"), 10)
    labels = torch.arange(300) % 10
    noise = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made = {g: sampler.sample(labels, g, noise) for g in (1.3, 7.5)}
    results = {g: diffusion.evaluate_samples(x, labels, evaluator, splits[1]) for g, x in made.items()}
    assert results[1.3]["accuracy"] > 0.95
    assert results[1.3]["fd"] < 0.6 * results[7.5]["fd"]
    assert results[1.3]["recall"] > results[7.5]["recall"]


def test_bad_input(evaluator: Classifier, splits: tuple[ImageDataset, ImageDataset]) -> None:
    train, heldout = splits
    x, labels = train.images[:10], train.labels[:10]
    with pytest.raises(InvalidInputError, match="must not evaluate"):
        diffusion.evaluate_samples(x, labels, Classifier.load("digits", role="reward"), heldout)
    with pytest.raises(InvalidInputError, match="N ≥ 4"):
        diffusion.evaluate_samples(x[:3], labels[:3], evaluator, heldout)
    with pytest.raises(InvalidInputError, match="NaN"):
        diffusion.evaluate_samples(x / 0 * 0, labels, evaluator, heldout)
    with pytest.raises(InvalidInputError, match="1200"):
        diffusion.real_floor(evaluator, train, heldout, 1201)
