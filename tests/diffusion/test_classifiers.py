from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qhw_diffusion import diffusion
from qhw_diffusion.diffusion import Classifier, ClassifierConfig
from qhw_diffusion.diffusion.classifiers import _augment, half_of
from qhw_diffusion.diffusion.weights import SHIPPED, save_model
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError, UnknownNameError
from qhw_diffusion.runs import RunFolder


@pytest.fixture(scope="module")
def pair() -> tuple[Classifier, Classifier]:
    return Classifier.load("digits", role="reward"), Classifier.load("digits", role="evaluation")


def test_both_recognise_the_heldout_digits(pair: tuple[Classifier, Classifier]) -> None:
    data = diffusion.load_dataset("digits", "heldout")
    for classifier in pair:
        measured = diffusion.accuracy(classifier, data.images, data.labels)
        assert measured > 0.97
        assert measured == pytest.approx(classifier.accuracy, abs=0.002)
        assert not classifier.training
        assert not any(p.requires_grad for p in classifier.parameters())
        folder = SHIPPED / f"digits-{classifier.role}"
        assert sum(p.stat().st_size for p in folder.iterdir()) < 300_000


def test_they_are_independent(pair: tuple[Classifier, Classifier]) -> None:
    reward, evaluator = pair
    assert reward.config.architecture != evaluator.config.architecture
    assert reward.config.seed != evaluator.config.seed
    assert {reward.config.half, evaluator.config.half} == {"first", "second"}
    assert reward.provenance["data_fingerprint"] != evaluator.provenance["data_fingerprint"]
    # and they err on different images
    data = diffusion.load_dataset("digits", "heldout")
    wrong = [set((c.logits(data.images).argmax(1) != data.labels).nonzero().flatten().tolist()) for c in pair]
    assert wrong[0] != wrong[1]


def test_features_are_the_penultimate_layer_and_gradients_reach_the_image(pair: tuple[Classifier, Classifier]) -> None:
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for classifier in pair:
        features = classifier.features(x)
        assert features.shape == (5, classifier.n_features)
        torch.testing.assert_close(classifier.head(features), classifier.logits(x))
        (gradient,) = torch.autograd.grad(classifier(x).log_softmax(1)[:, 3].sum(), x)
        assert gradient.abs().sum() > 0


def test_roles_cannot_be_mixed_up(pair: tuple[Classifier, Classifier], tmp_path: Path) -> None:
    pair[0].save(tmp_path / "model")
    assert Classifier.load(tmp_path, role="reward").role == "reward"
    with pytest.raises(InvalidInputError, match="must never evaluate"):
        Classifier.load(tmp_path, role="evaluation")
    with pytest.raises(UnknownNameError, match="evaluation"):
        Classifier.load("digits", role="judge")


def test_a_folder_saved_under_the_former_role_is_read(tmp_path: Path, pair: tuple[Classifier, Classifier]) -> None:
    """The evaluation classifier's role was called "judge" before."""
    old = {"accuracy": 0.5, "provenance": {}, "config": {**pair[1].config.to_dict(), "role": "judge"}}
    save_model(tmp_path, pair[1].state_dict(), "classifier", old)
    loaded = Classifier.load(tmp_path, role="evaluation")
    assert (loaded.role, loaded.config) == ("evaluation", pair[1].config)
    with pytest.raises(InvalidInputError, match="holds the evaluation classifier, not the reward classifier"):
        Classifier.load(tmp_path, role="reward")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded.logits(x), pair[1].logits(x))


def test_damaged_and_missing(tmp_path: Path, pair: tuple[Classifier, Classifier]) -> None:
    with pytest.raises(MissingDataError):
        Classifier.load(tmp_path, role="evaluation")
    pair[1].save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DamagedFileError):
        Classifier.load(tmp_path, role="evaluation")


@pytest.mark.slow
def test_recipe_learns_reproducibly_and_saves(tmp_path: Path) -> None:
    config = ClassifierConfig.for_dataset("digits", "evaluation", steps=60, width=8)
    with RunFolder.create(tmp_path / "run", kind="classifier", config=config.to_dict()) as run:
        trained = diffusion.train_classifier(config, run)
        assert run.metrics()[-1]["charts/accuracy"] == trained.accuracy
    assert trained.accuracy is not None
    assert trained.accuracy > 0.6  # chance is .1
    again = diffusion.train_classifier(config)
    loaded = Classifier.load(tmp_path / "run", role="evaluation")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(trained.logits(x), again.logits(x))
    assert torch.equal(trained.logits(x), loaded.logits(x))
    assert (loaded.config, loaded.accuracy) == (config, trained.accuracy)


def test_halves_are_disjoint_and_alike() -> None:
    data = diffusion.load_dataset("digits")
    halves = [half_of(data, half) for half in ("first", "second")]
    assert [len(h) for h in halves] == [600, 600]
    together = torch.cat([h.images for h in halves]).flatten(1)
    assert torch.equal(torch.unique(together, dim=0), torch.unique(data.images.flatten(1), dim=0))
    assert float(together.sum()) == pytest.approx(float(data.images.sum()))
    for half, own in zip(("first", "second"), halves, strict=True):
        config = ClassifierConfig.for_dataset("digits", half=half, steps=1)
        assert diffusion.train_classifier(config).provenance["data_fingerprint"] == own.fingerprint
    # a data set that alternates between two sources, as MNIST does, is not divided along them
    sources = diffusion.ImageDataset(torch.zeros(1000, 1, 8, 8), torch.arange(1000) % 2, "own", "train", 2)
    assert 200 < int(half_of(sources, "first").labels.sum()) < 300


def test_shift_moves_the_image_and_fills_with_background() -> None:
    config = ClassifierConfig(noise=0.0, shift=1)
    image = torch.full((1, 1, 8, 8), -1.0)
    image[0, 0, 3, 4] = 1.0
    moved = _augment(image.expand(200, -1, -1, -1), config, torch.Generator().manual_seed(0))
    assert moved.shape == (200, 1, 8, 8)
    assert (moved.sum((1, 2, 3)) == -62).all()  # one bright pixel each, nothing lost
    places = {tuple(p) for p in (moved[:, 0] == 1).nonzero()[:, 1:].tolist()}
    assert places == {(r, c) for r in (2, 3, 4) for c in (3, 4, 5)}


@pytest.mark.parametrize("name", diffusion.DATASETS)
@pytest.mark.parametrize("role", ["reward", "evaluation"])
def test_every_recipe_makes_a_classifier_of_its_images(name: str, role: str) -> None:
    config = ClassifierConfig.for_dataset(name, role)
    classifier = Classifier(config).eval()
    assert classifier.logits(torch.zeros(2, *config.image_shape)).shape == (2, config.n_classes)
    assert ClassifierConfig.from_dict(config.to_dict()) == config


def test_bad_input(pair: tuple[Classifier, Classifier]) -> None:
    with pytest.raises(InvalidInputError, match=r"need \[B, 1, 8, 8\]"):
        pair[0].logits(torch.zeros(2, 1, 16, 16))
    with pytest.raises(UnknownNameError):
        ClassifierConfig(architecture="vit")
    with pytest.raises(InvalidInputError):
        ClassifierConfig(width=0)
    with pytest.raises(InvalidInputError):
        diffusion.accuracy(pair[0], torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.int64))
