"""Images, labels and models that do not fit are told where they are handed in, with what is wrong and what is right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qhw_diffusion import diffusion
from qhw_diffusion.diffusion import Backbone, BackboneConfig, Classifier, ClassifierConfig, GuidedDDIM, ImageDataset
from qhw_diffusion.diffusion.checks import check_fit, check_labels
from qhw_diffusion.errors import InvalidInputError

N, CLASSES = 12, 10


def pictures(n: int = N) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def good() -> Tensor:
    return torch.arange(N) % CLASSES


# what a user may have instead of int64 labels 0 … 9, and what the message must say of it
WRONG_LABELS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "the null label": (lambda y: y.where(y != 3, CLASSES), r"labels run from 0 to 10; allowed: 0 to 9 .*row 3"),
    "negative": (lambda y: y.where(y != 3, -1), r"labels run from -1 to 9; allowed: 0 to 9 .*row 3"),
    "from one": (lambda y: y + 1, "1 to 10; allowed: 0 to 9"),
    "float": (lambda y: y.float(), r"float32.*\.long\(\)"),
    "NaN": (lambda y: y.float().where(y != 3, float("nan")), "float32"),
    "uint8": (lambda y: y.to(torch.uint8), r"uint8.*\.long\(\)"),
    "int32": (lambda y: y.int(), r"int32.*\.long\(\)"),
    "bool": (lambda y: y > 3, r"bool.*int64"),
    "complex": (lambda y: y.to(torch.complex64), "complex64.*int64"),
    "one-hot": (lambda y: torch.nn.functional.one_hot(y, CLASSES), r"one-hot.*argmax\(1\)"),
    "one-hot float": (lambda y: torch.nn.functional.one_hot(y, CLASSES).float(), r"one-hot.*argmax\(1\)"),
    "a column": (lambda y: y[:, None], r"\[12, 1\].*flatten\(\)"),
    "NumPy": (lambda y: y.numpy(), r"numpy\.ndarray.*torch\.as_tensor"),
    "a list, as CIFAR's targets": (lambda y: y.tolist(), r"list.*torch\.as_tensor"),
    "one number": (lambda y: 3, r"int.*tensor"),
    "one too few": (lambda y: y[:-1], "11 labels for 12"),
    "one too many": (lambda y: torch.cat([y, y[:1]]), "13 labels for 12"),
}
WRONG_IMAGES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "uint8": (lambda x: ((x + 1) * 127.5).to(torch.uint8), r"uint8.*/ 127\.5 - 1"),
    "0 to 255": (lambda x: (x + 1) * 127.5, r"from .* to 25\d.*\[-1, 1\].*/ 127\.5 - 1"),
    "float64": (lambda x: x.double(), r"float64.*\.float\(\)"),
    "half": (lambda x: x.half(), r"float16.*\.float\(\)"),
    "NaN": (lambda x: x.where(torch.arange(N).view(-1, 1, 1, 1) != 5, float("nan")), "image 5 .*NaN or infinite"),
    "infinite": (lambda x: x.where(torch.arange(N).view(-1, 1, 1, 1) != 7, float("inf")), "image 7 .*NaN or infinite"),
    "standardised": (lambda x: (x - x.mean()) / x.std(), r"\[-1, 1\]"),
    "no channels": (lambda x: x[:, 0], r"\[12, 8, 8\].*\[:, None\]"),
    "flat": (lambda x: x.flatten(1), r"\[12, 64\].*\[N, C, H, W\]"),
    "NumPy": (lambda x: x.numpy(), r"numpy\.ndarray.*torch\.from_numpy"),
    "none": (lambda x: x[:0], "no images"),
    "no pixels": (lambda x: x[..., :0], r"\[12, 1, 8, 0\]"),
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.load("digits")


@pytest.fixture(scope="module")
def evaluator() -> Classifier:
    return Classifier.load("digits", role="evaluation")


@pytest.fixture(scope="module")
def heldout() -> ImageDataset:
    return diffusion.load_dataset("digits", "heldout")


# -- labels, wherever they are handed in -----------------------------------------------------------------------------

TAKES_LABELS: dict[str, Callable[[Any, Backbone, Classifier, ImageDataset], Any]] = {
    "a data set": lambda y, b, j, r: ImageDataset(pictures(), y, "own", "train"),
    "a prediction": lambda y, b, j, r: b.predict(pictures(), 500, y),
    "sampling": lambda y, b, j, r: GuidedDDIM(b, 4).sample(y, 1.2, pictures()),
    "accuracy": lambda y, b, j, r: diffusion.accuracy(j, pictures(), y),
    "evaluation": lambda y, b, j, r: diffusion.evaluate_samples(pictures(), y, j, r),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", TAKES_LABELS)
@pytest.mark.parametrize("wrong", WRONG_LABELS)
def test_labels(backbone: Backbone, evaluator: Classifier, heldout: ImageDataset, where: str, wrong: str) -> None:
    make, message = WRONG_LABELS[wrong]
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        TAKES_LABELS[where](make(good()), backbone, evaluator, heldout)
    TAKES_LABELS[where](good(), backbone, evaluator, heldout)


@pytest.mark.parametrize("wrong", [w for w in WRONG_LABELS if w not in ("the null label", "from one")])
def test_labels_of_diversity(wrong: str) -> None:
    """It is not told how many classes there are."""
    make, message = WRONG_LABELS[wrong]
    with pytest.raises(InvalidInputError, match=message.replace("allowed: 0 to 9 .*", "allowed: from 0 .*")):
        diffusion.diversity(torch.randn(N, 4), make(good()))


def test_the_null_label_is_for_training_only(backbone: Backbone) -> None:
    x, null = pictures(), torch.full((N,), backbone.null_label)
    with pytest.raises(InvalidInputError, match=r"10 is the null label.*without a label"):
        backbone.predict(x, 500, null)
    assert backbone(x, 500, null).shape == x.shape  # what training does
    for wrong in (null + 1, null - 11, null.float(), null[:3]):
        with pytest.raises(InvalidInputError):
            backbone(x, 500, wrong)


def test_no_classes_at_all() -> None:
    for n_classes in (0, -1, 2.0, True, None):
        with pytest.raises(InvalidInputError, match="n_classes"):
            ImageDataset(pictures(), good() * 0, "own", "train", n_classes)  # type: ignore[arg-type]
        for config in (BackboneConfig, ClassifierConfig):
            with pytest.raises(InvalidInputError, match="n_classes"):
                config(n_classes=n_classes)  # type: ignore[arg-type]
    for shape in ((8, 8), (1, 8, 8, 1), (0, 8, 8), (1, 8.0, 8), None):
        for config in (BackboneConfig, ClassifierConfig):
            with pytest.raises(InvalidInputError, match="image_shape"):
                config(image_shape=shape)  # type: ignore[arg-type]


def test_empty_labels_are_told() -> None:
    with pytest.raises(InvalidInputError, match="no labels"):
        check_labels(torch.zeros(0, dtype=torch.int64), 10)


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", WRONG_IMAGES)
def test_images_of_a_data_set(wrong: str) -> None:
    make, message = WRONG_IMAGES[wrong]
    given = make(pictures())
    labels = good()[: len(given)]
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        ImageDataset(given, labels, "own", "train")


@pytest.mark.parametrize("wrong", [w for w in WRONG_IMAGES if w != "none"])
def test_images_of_an_evaluation(evaluator: Classifier, heldout: ImageDataset, wrong: str) -> None:
    make, message = WRONG_IMAGES[wrong]
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        diffusion.evaluate_samples(make(pictures()), good(), evaluator, heldout)


@pytest.mark.parametrize("wrong", ["uint8", "float64", "no channels", "flat", "NumPy"])
def test_images_of_a_network(backbone: Backbone, evaluator: Classifier, wrong: str) -> None:
    given = WRONG_IMAGES[wrong][0](pictures())
    for network in (evaluator.features, evaluator.logits, lambda x: backbone.predict(x, 500, good())):
        with pytest.raises(InvalidInputError):
            network(given)


def test_unscaled_images_of_torchvision_are_pointed_at() -> None:
    """ToTensor gives [0, 1], which is within [-1, 1] and still wrong."""
    with pytest.warns(UserWarning, match=r"no pixel of data set 'own' is below 0.*x \* 2 - 1"):
        ImageDataset((pictures() + 1) / 2, good(), "own", "train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageDataset(pictures(), good(), "own", "train")


def test_what_torchvision_holds_can_be_made_a_data_set() -> None:
    data = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)  # CIFAR's layout and types
    targets = [i % CLASSES for i in range(N)]
    x = torch.from_numpy(data).permute(0, 3, 1, 2).float() / 127.5 - 1
    own = ImageDataset(x, torch.as_tensor(targets), "own", "train")
    assert own.image_shape == (3, 8, 8)
    assert float(own.images.max()) <= 1.0


def test_an_empty_selection_is_told(heldout: ImageDataset) -> None:
    with pytest.raises(InvalidInputError, match="no images"):
        heldout.subset(torch.nonzero(heldout.labels == 77)[:, 0])


# -- where data sets, backbones and classifiers meet ---------------------------------------------------------------


def of_classes(n: int, shape: tuple[int, int, int] = (1, 8, 8), count: int = 60) -> ImageDataset:
    generator = torch.Generator().manual_seed(1)
    return ImageDataset(
        torch.rand(count, *shape, generator=generator) * 2 - 1, torch.arange(count) % n, f"{n} classes", "train", n
    )


def test_an_evaluation_needs_one_number_of_classes_and_one_shape(evaluator: Classifier) -> None:
    with pytest.raises(
        InvalidInputError, match=r"evaluation classifier 'digits' .*10 classes.*'3 classes' .*3 classes"
    ):
        diffusion.evaluate_samples(pictures(), good(), evaluator, of_classes(3))
    with pytest.raises(InvalidInputError, match=r"1×8×8.*1×16×16"):
        diffusion.evaluate_samples(pictures(), good(), evaluator, of_classes(10, (1, 16, 16)))
    with pytest.raises(InvalidInputError, match="3 classes"):
        diffusion.real_floor(evaluator, of_classes(3), of_classes(10), 20)


def test_training_needs_data_of_the_configuration_and_images_of_every_class() -> None:
    config = BackboneConfig(channels=(8,), steps=1)
    wanted = ClassifierConfig(width=4, steps=1, half="all")
    full, three = of_classes(10), of_classes(3)
    missing = full.subset(torch.nonzero(full.labels != 4)[:, 0])
    for data, message in (
        (three, "configuration.*10 classes.*3 classes"),
        (of_classes(10, (3, 8, 8)), "configuration.*1×8×8.*3×8×8"),
        (missing, "no image of class 4"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            diffusion.train_backbone(config, dataset=data)
        with pytest.raises(InvalidInputError, match=message):
            diffusion.train_classifier(wanted, dataset=data, heldout=full)
    with pytest.raises(InvalidInputError, match=r"configuration.*3 classes"):
        diffusion.train_classifier(wanted, dataset=full, heldout=three)
    # what is absent from a half is absent from the training
    few = of_classes(10, count=10)
    with pytest.raises(InvalidInputError, match="no image of class"):
        diffusion.train_classifier(ClassifierConfig(width=4, steps=1, half="first"), dataset=few, heldout=full)


def test_parts_that_fit_are_let_through(backbone: Backbone, evaluator: Classifier, heldout: ImageDataset) -> None:
    check_fit(backbone=backbone, evaluator=evaluator, data_set=heldout)
    with pytest.raises(
        InvalidInputError, match=r"backbone 'digits' \(1×8×8 images, 10 classes\) .*data set '3 classes'"
    ):
        check_fit(backbone=backbone, evaluator=evaluator, data_set=of_classes(3))
