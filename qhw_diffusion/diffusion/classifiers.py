"""The two proxy classifiers of a data set: one gives rewards, the other one, which no training ever sees, judges.

They differ in architecture, in seed and in the half of the training split they were trained on.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DamagedFileError, InvalidInputError, UnknownNameError
from ..runs import settings_from_dict
from .checks import check_labels, check_pixels, check_shape_and_classes
from .datasets import image_shape_of
from .weights import SHIPPED, load_model, model_folder, save_model

ROLES = ("reward", "judge")
ARCHITECTURES = ("plain", "residual")
HALVES = ("first", "second", "all")


@dataclass(frozen=True)
class ClassifierConfig:
    """Architecture and training recipe of one classifier. `for_dataset` gives the recipe of a data set and role.

    Attributes:
        dataset: one of `DATASETS`.
        role: "reward" or "judge"; the saved file keeps it, so that the two cannot be mixed up.
        image_shape: (C, H, W).
        n_classes: classes of the data set.
        architecture: "plain" (convolutions, ReLU, max-pooling) or "residual" (pre-activation residual blocks,
            SiLU, average pooling).
        width: channels of the first stage; every stage, one per halving of the image, doubles them.
        n_features: width of the penultimate layer, whose activations are the features.
        half: which images of the training split: the "first" or the "second" half of a fixed shuffle, or "all". (Not by
            position: MNIST's even positions hold harder writers than its odd ones.)
        steps, batch_size, learning_rate, weight_decay: AdamW with linear warm-up and cosine decay.
        shift: augmentation, every image moved by up to so many pixels in each direction.
        noise: augmentation, standard deviation of Gaussian noise, drawn uniformly per image from [0, noise].
        seed: of the initial weights, the order of the images and the augmentation.
    """

    dataset: str = "digits"
    role: str = "reward"
    image_shape: tuple[int, int, int] = (1, 8, 8)
    n_classes: int = 10
    architecture: str = "plain"
    width: int = 16
    n_features: int = 64
    half: str = "first"
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    shift: int = 1
    noise: float = 0.3
    seed: int = 101

    def __post_init__(self) -> None:
        check_shape_and_classes(self.image_shape, self.n_classes)
        for kind, given, allowed in (
            ("role", self.role, ROLES),
            ("architecture", self.architecture, ARCHITECTURES),
            ("half", self.half, HALVES),
        ):
            if given not in allowed:
                raise UnknownNameError.of(kind, given, allowed)
        if min(self.width, self.n_features, self.steps, self.batch_size) < 1 or self.learning_rate <= 0:
            raise InvalidInputError("width, n_features, steps, batch_size and learning_rate are positive")
        if self.shift < 0 or self.noise < 0:
            raise InvalidInputError("shift and noise are not negative")

    @classmethod
    def for_dataset(cls, name: str, role: str = "reward", **changes: Any) -> ClassifierConfig:
        """The recipe of a data set and role, with `changes`. Fashion-MNIST has MNIST's, untuned."""
        shape = image_shape_of(name)
        of_role: dict[str, Any] = {}
        if role == "judge":
            # on MNIST's 30,000 images of a half the residual network needs longer than the plain one
            steps = 1000 if name == "digits" else 1500
            of_role = {"architecture": "residual", "half": "second", "seed": 202, "steps": steps}
        return cls(**{"dataset": name, "role": role, "image_shape": shape, **of_role, **changes})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ClassifierConfig:
        """Raises InvalidInputError on unknown entries and on values that do not fit."""
        return settings_from_dict(cls, data, "a classifier configuration")


class Classifier(nn.Module):
    """A small convolutional classifier of images in [−1, 1]; frozen and in evaluation mode when loaded.

    Attributes: `config`, `role`, `name`, `image_shape`, `n_classes`, `n_features`, `accuracy` (on the held-out split,
    None before training), `provenance`.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.role = config.role
        self.name = config.dataset
        self.image_shape = config.image_shape
        self.n_classes = config.n_classes
        self.n_features = config.n_features
        self.accuracy: float | None = None
        self.provenance: dict[str, Any] = {}
        body = _plain_body if config.architecture == "plain" else _residual_body
        self.body = body(config.image_shape, config.width, config.n_features)
        self.head = nn.Linear(config.n_features, config.n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Activations of the penultimate layer, [B, n_features], of images [B, C, H, W] in [−1, 1]; differentiable."""
        check_pixels(x, self.image_shape, self.head.weight.dtype)
        output: Tensor = self.body(x)
        return output

    def logits(self, x: Tensor) -> Tensor:
        """[B, n_classes], of images [B, C, H, W] in [−1, 1]; differentiable in the images."""
        output: Tensor = self.head(self.features(x))
        return output

    def forward(self, x: Tensor) -> Tensor:
        """`logits(x)`."""
        return self.logits(x)

    @property
    def n_parameters(self) -> int:
        """Trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    def save(self, path: str | Path) -> None:
        """Write half-precision weights, configuration and held-out accuracy into the folder `path`."""
        description = {
            "config": self.config.to_dict(),
            "n_parameters": self.n_parameters,
            "accuracy": self.accuracy,
            "provenance": self.provenance,
        }
        save_model(path, self.state_dict(), "classifier", description)

    @classmethod
    def load(cls, name_or_path: str | Path, role: str) -> Classifier:
        """A shipped classifier ("digits"), or the one in a run folder or model folder.

        Raises:
            UnknownNameError: a role that does not exist.
            MissingDataError: no such shipped model or folder.
            InvalidInputError: the folder holds the classifier of the other role.
            DamagedFileError: the folder's files cannot be read as a classifier.
        """
        if role not in ROLES:
            raise UnknownNameError.of("role", role, ROLES)
        shipped = SHIPPED / f"{name_or_path}-{role}"
        folder = shipped if shipped.is_dir() else model_folder(name_or_path)
        state, saved = load_model(folder, "classifier")
        try:
            classifier = cls(ClassifierConfig.from_dict(saved["config"]))
            classifier.load_state_dict(state)
            classifier.accuracy = saved["accuracy"]
            classifier.provenance = dict(saved["provenance"])
        except (KeyError, TypeError, RuntimeError, InvalidInputError) as error:
            raise DamagedFileError(f"weights and configuration in {folder} do not fit ({error})") from error
        if classifier.role != role:
            raise InvalidInputError(
                f"{folder} holds the {classifier.role} classifier, not the {role}: "
                "the classifier that gives rewards must never judge"
            )
        return classifier.eval().requires_grad_(False)


def _plain_body(shape: tuple[int, int, int], width: int, n_features: int) -> nn.Sequential:
    n_stages = max(1, math.ceil(math.log2(min(shape[1:]) / 4)))  # down to 3 or 4 pixels
    layers: list[nn.Module] = []
    channels, (height, wide) = shape[0], shape[1:]
    for stage in range(n_stages):
        out = width * 2**stage
        for c_in in (channels, out):
            layers += [nn.Conv2d(c_in, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels, height, wide = out, height // 2, wide // 2
    layers += [nn.Flatten(), nn.Linear(channels * height * wide, n_features), nn.ReLU()]
    return nn.Sequential(*layers)


def _residual_body(shape: tuple[int, int, int], width: int, n_features: int) -> nn.Sequential:
    n_stages = max(1, int(math.log2(min(shape[1:]) / 4)) + 1)  # down to 2 or 3 pixels
    layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, padding=1)]
    channels = width
    for stage in range(n_stages):
        out = width * 2**stage
        # averaging rather than striding: strided convolutions tie the features to the digit's exact position
        layers += [_ResidualBlock(channels, out), nn.AvgPool2d(2)]
        channels = out
    layers += [nn.BatchNorm2d(channels), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    layers += [nn.Linear(4 * channels, n_features), nn.SiLU()]
    return nn.Sequential(*layers)


class _ResidualBlock(nn.Module):
    """Pre-activation block (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = self.conv2(nn.functional.silu(self.norm2(h)))
        output: Tensor = h + self.skip(x)
        return output


@torch.no_grad()
def accuracy(classifier: Classifier, images: Tensor, labels: Tensor, batch_size: int = 512) -> float:
    """Share of images [N, C, H, W] that the classifier gives their label, int64 [N]; 0 … 1."""
    check_labels(labels, classifier.n_classes, len(images))
    hits = [
        (classifier.logits(x).argmax(1) == y).sum().item()
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    ]
    return sum(hits) / len(labels)
