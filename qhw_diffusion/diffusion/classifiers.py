"""The two classifiers of a data set and their training: one gives rewards, the other, unseen by training, evaluates.

They differ in architecture, in seed and in the half of the training split they were trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qhw_diffusion.config import Config, check_finite, check_whole, require
from qhw_diffusion.diffusion.checks import (
    check_every_class,
    check_fit,
    check_labels,
    check_pixels,
    check_shape_and_classes,
)
from qhw_diffusion.diffusion.datasets import (
    ImageDataset,
    check_dataset_name,
    image_shape_of,
    is_photographic,
    load_dataset,
    n_classes_of,
)
from qhw_diffusion.diffusion.resnet import ResNetBody, is_published, read_published
from qhw_diffusion.diffusion.weights import (
    PRECISIONS,
    SHIPPED,
    half_arithmetic,
    half_precision,
    load_model,
    model_folder,
    save_model,
)
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.runs import RunFolder, progress

ROLES = ("reward", "evaluation")
"""Roles of classifiers: "reward" gives rewards and chooses, "evaluation" (held-out) only measures."""
ARCHITECTURES = ("plain", "residual", "resnet")
"""Architectures of classifiers."""
HALVES = ("first", "second", "all")
"""Which images of the training split a classifier is trained on."""
_FORMER_ROLES = {"judge": "evaluation"}  # in folders that were saved before the role was renamed
_LOG_EVERY = 50
_WARMUP = 50
_HALVES_SEED = 0
_SMALLEST = 2  # pixels; every architecture halves the image at least once


@dataclass(frozen=True)
class ClassifierConfig(Config):
    """Architecture and training recipe of one classifier. `for_dataset` gives the recipe of a data set and role."""

    dataset: str = "digits"
    """Data set: a built-in name, module:name or file.py:name."""
    role: str = "reward"
    """Role: "reward" or "evaluation" (held-out); the saved file keeps it, so that the two cannot be mixed up."""
    image_shape: tuple[int, int, int] = (1, 8, 8)
    """Channels, height and width of the images."""
    n_classes: int = 10
    """Classes of the data set."""
    architecture: str = "plain"
    """Network: "plain" (convolutions, ReLU, max-pooling), "residual" (pre-activation residual blocks, SiLU, average
    pooling) or "resnet" (that of He et al. 2016 for CIFAR-10, arXiv 1512.03385)."""
    blocks: int = 3
    """Residual blocks n of each of the three stages of a "resnet", which has 6n + 2 layers; no other network has it."""
    width: int = 16
    """Channels of the first stage; every stage, one per halving of the image, doubles them."""
    n_features: int = 64
    """Width of the penultimate layer, whose activations are the features."""
    half: str = "first"
    """Images of the training split: the "first" or the "second" half of a fixed shuffle, or "all". (Not by position:
    MNIST's even positions hold harder writers than its odd ones.)"""
    steps: int = 1000
    """Training steps of AdamW."""
    batch_size: int = 64
    """Images per training step."""
    learning_rate: float = 3e-3
    """Learning rate after the warm-up; a cosine decay takes it to zero."""
    weight_decay: float = 0.02
    """AdamW's decoupled weight decay."""
    shift: int = 1
    """Augmentation: pixels an image is moved by at most in each direction; black enters."""
    flip: bool = False
    """Augmentation: half of the images mirrored left to right."""
    noise: float = 0.3
    """Augmentation: largest standard deviation of Gaussian noise, drawn uniformly per image from 0 on."""
    precision: str = "float32"
    """Number format of the convolutions in training: "float32", or "bfloat16" (torch's autocast), faster on CPUs that
    have it."""
    seed: int = 101
    """Seed of the initial weights, the order of the images and the augmentation."""

    def __post_init__(self) -> None:
        check_shape_and_classes(self.image_shape, self.n_classes)
        check_finite(self)
        for kind, given, allowed in (
            ("role", self.role, ROLES),
            ("architecture", self.architecture, ARCHITECTURES),
            ("half", self.half, HALVES),
            ("precision", self.precision, PRECISIONS),
        ):
            if given not in allowed:
                raise UnknownNameError.of(kind, given, allowed)
        check_whole(self, "width", "n_features", "blocks", "steps", "batch_size")
        check_whole(self, "shift", "seed", least=0)
        require(self.learning_rate > 0, f"learning_rate must be positive, got {self.learning_rate}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        require(self.noise >= 0, f"noise must not be negative, got {self.noise}")
        _, height, width = self.image_shape
        require(
            min(height, width) >= _SMALLEST,
            f"a classifier needs images of {_SMALLEST}×{_SMALLEST} pixels or more, got {height}×{width}",
        )

        if self.architecture == "resnet":
            require(
                self.image_shape[0] == 3 and self.n_features == 4 * self.width,
                f"a resnet takes images of 3 channels and has 4 · width features; image_shape is {self.image_shape}, "
                f"n_features {self.n_features}, width {self.width}",
            )

    @classmethod
    def for_dataset(
        cls, data: str | ImageDataset, role: str = "reward", *, data_root: str | Path | None = None, **changes: Any
    ) -> Self:
        """The recipe of a data set and role, with `changes`. Tuned on digits and MNIST alone.

        Args:
            data: name of a data set, or the data set itself.
            role: "reward" or "evaluation".
            data_root: see `load_dataset`; used for a data set of a user's own.
            changes: fields that differ from the recipe.

        Raises:
            UnknownNameError: no such data set or role.
            InvalidInputError: a data set of a user's own that is not as `load_dataset` says, or changes that do not
                fit.
        """
        if isinstance(data, ImageDataset):
            name, shape, n_classes = data.name, data.image_shape, data.n_classes
        else:
            check_dataset_name(data)
            name, shape, n_classes = data, image_shape_of(data, data_root), n_classes_of(data, data_root)
        of_role: dict[str, Any] = {}
        if role == "evaluation":
            # on MNIST's 30,000 images of a half the residual network needs longer than the plain one
            steps = 1000 if name == "digits" else 1500
            of_role = {"architecture": "residual", "half": "second", "seed": 202, "steps": steps}
        if is_photographic(shape):
            of_role |= _PHOTOGRAPHS
        return cls(
            **{"dataset": name, "role": role, "image_shape": shape, "n_classes": n_classes, **of_role, **changes}
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `Config.from_dict`; the role of a folder that was saved under the role's former name is read as now."""
        if isinstance(values, Mapping) and "role" in values:
            values = {**values, "role": _FORMER_ROLES.get(values["role"], values["role"])}
        return super().from_dict(values)


_PHOTOGRAPHS: dict[str, Any] = {
    # tuned as CIFAR-10's reward classifier; half of its images would cost accuracy, and its evaluation classifier is a
    # published network
    "half": "all",
    "architecture": "residual",
    "steps": 8000,
    "batch_size": 128,
    "shift": 4,
    "flip": True,
    "noise": 0.1,
    "precision": "bfloat16",
}


class SavedClassifier(nn.Module):
    """What the classifiers of images share: a size, a folder, and the role that is kept with them."""

    kind: ClassVar[str]
    config: Any
    role: str
    accuracy: Any
    provenance: dict[str, Any]

    @property
    def n_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    def save(self, path: str | Path) -> None:
        """Write half-precision weights, configuration and held-out accuracy into the folder `path`."""
        description = {
            "config": self.config.to_dict(),
            "n_parameters": self.n_parameters,
            "accuracy": self.accuracy,
            "provenance": self.provenance,
        }
        save_model(path, self.state_dict(), self.kind, description)

    def frozen_as(self, role: str, folder: Path) -> Self:
        """Itself, frozen and in evaluation mode.

        Raises:
            InvalidInputError: it has the other role; `folder` is where it was read from.
        """
        if self.role != role:
            raise InvalidInputError(
                f"{folder} holds the {self.role} classifier, not the {role} classifier: the one that gives "
                "rewards must never evaluate, nor the other way round"
            )
        return self.eval().requires_grad_(False)


class Classifier(SavedClassifier):
    """A small convolutional classifier of images in [−1, 1]; frozen and in evaluation mode when loaded.

    Attributes: `config`, `role`, `name`, `image_shape`, `n_classes`, `n_features`, `accuracy` (on the held-out split,
    None before training), `provenance`.
    """

    kind = "classifier"

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
        self.body: nn.Module
        if config.architecture == "resnet":
            self.body = ResNetBody(config.blocks, config.width)
        else:
            self.body = classifier_body(config.architecture, config.image_shape, config.width, config.n_features)
        self.head = nn.Linear(config.n_features, config.n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Activations of the penultimate layer, [B, n_features], of images [B, C, H, W] in [−1, 1]; differentiable."""
        check_pixels(x, self.image_shape, self.head.weight.dtype)
        output: Tensor = self.body(x)
        return output

    def stages(self, x: Tensor) -> list[Tensor]:
        """Activations at the end of each stage, [B, C, H, W] each, before the image is halved; and the features.

        Differentiable in the images `x` [B, C, H, W] in [−1, 1].
        """
        check_pixels(x, self.image_shape, self.head.weight.dtype)
        if isinstance(self.body, ResNetBody):
            return self.body.stages(x)
        found = []
        for layer in self.body.children():
            if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
                found.append(x)
            x = layer(x)
        return [*found, x]

    def logits(self, x: Tensor) -> Tensor:
        """Logits [B, n_classes] of images [B, C, H, W] in [−1, 1]; differentiable in the images."""
        output: Tensor = self.head(self.features(x))
        return output

    def forward(self, x: Tensor) -> Tensor:
        """As `logits`."""
        return self.logits(x)

    @classmethod
    def load(cls, name_or_path: str | Path, role: str) -> Classifier:
        """A trained classifier, frozen and in evaluation mode.

        Args:
            name_or_path: data set of a shipped classifier ("digits"), a run folder or model folder, or a file of
                published weights, as resnet56-4bfd9763.th of github.com/akamaster/pytorch_resnet_cifar10 (for 32×32
                images).
            role: "reward" or "evaluation".

        Raises:
            UnknownNameError: a role that does not exist.
            MissingDataError: no such shipped model or folder.
            InvalidInputError: the folder holds the classifier of the other role.
            DamagedFileError: the folder's files cannot be read as a classifier.
        """
        if role not in ROLES:
            raise UnknownNameError.of("role", role, ROLES)
        if is_published(name_or_path):
            return cls._published(Path(name_or_path), role)
        shipped = SHIPPED / f"{name_or_path}-{role}"
        folder = shipped if shipped.is_dir() else model_folder(name_or_path, f"{role} classifier")
        state, saved = load_model(folder, cls.kind)
        try:
            classifier = cls(ClassifierConfig.from_dict(saved["config"]))
            classifier.load_state_dict(state)
            classifier.accuracy = saved["accuracy"]
            classifier.provenance = dict(saved["provenance"])
        except (KeyError, TypeError, RuntimeError, QhwError) as error:
            raise DamagedFileError(f"weights and configuration in {folder} do not fit ({error})") from error
        return classifier.frozen_as(role, folder)

    @classmethod
    def _published(cls, path: Path, role: str) -> Classifier:
        """A network of `ResNetBody` from a file of weights."""
        shape, state, accuracy = read_published(path)
        width = shape["width"]
        try:
            config = ClassifierConfig(
                dataset="cifar10",
                image_shape=(3, 32, 32),
                role=role,
                architecture="resnet",
                n_features=4 * width,
                **shape,
            )
            classifier = cls(config)
            classifier.load_state_dict(state)
        except (RuntimeError, QhwError) as error:
            raise DamagedFileError(f"the weights in {path} are not those of a ResNet for CIFAR ({error})") from error
        classifier.accuracy = accuracy
        classifier.provenance = {"file": path.name, "source": "github.com/akamaster/pytorch_resnet_cifar10"}
        return classifier.eval().requires_grad_(False)


def classifier_body(architecture: str, image_shape: tuple[int, int, int], width: int, n_features: int) -> nn.Sequential:
    """The layers from images [B, C, H, W] to features [B, n_features] of one of `ARCHITECTURES`."""
    body = _plain_body if architecture == "plain" else _residual_body
    return body(image_shape, width, n_features)


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


def train_classifier(
    config: ClassifierConfig,
    run: RunFolder | None = None,
    *,
    dataset: ImageDataset | None = None,
    heldout: ImageDataset | None = None,
    data_root: str | Path | None = None,
) -> Classifier:
    """Train a classifier on its half of the training split; returns it frozen, in evaluation mode.

    Cross-entropy, AdamW, images shifted, mirrored and noised (`config.shift`, `flip`, `noise`); the held-out
    accuracy is kept in `.accuracy`. The same configuration gives the same weights bit for bit on one machine.

    Args:
        config: architecture and recipe.
        run: where to log "losses/classifier" and "charts/accuracy", and to write `model/`.
        dataset: what to train on; default: the training split of `config.dataset`.
        heldout: what to measure the accuracy on; default: the held-out split of `config.dataset`.
        data_root: see `load_dataset`.

    Raises:
        InvalidInputError: a data set does not fit the configuration, or lacks a class.
        MissingDataError: see `load_dataset`.
    """
    data = dataset if dataset is not None else load_dataset(config.dataset, "train", data_root)
    held = heldout if heldout is not None else load_dataset(config.dataset, "heldout", data_root)
    check_fit(configuration=config, data_set=data, heldout=held)
    if config.half != "all":
        data = half_of(data, config.half)
    check_every_class(data.labels, data.n_classes, data.name, f"training on {config.half} of its images")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        classifier = Classifier(config)
    generator = torch.Generator().manual_seed(config.seed + 1)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    recent: list[float] = []
    classifier.train()
    label = f"{config.role} classifier {config.dataset}"
    with progress(total=config.steps, desc=label) as bar:
        for step in range(config.steps):
            rate = config.learning_rate * _rate_factor(step, config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            chosen = torch.randint(len(data), (config.batch_size,), generator=generator)
            images = _augment(data.images[chosen], config, generator)
            with half_arithmetic(config.precision):
                logits = classifier.logits(images)
            loss = nn.functional.cross_entropy(logits.float(), data.labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            recent.append(loss.item())
            bar.update()
            if (step + 1) % _LOG_EVERY == 0 or step + 1 == config.steps:
                mean = sum(recent) / len(recent)
                recent.clear()
                bar.set_postfix(loss=f"{mean:.4f}")
                if run is not None:
                    run.log(step + 1, {"losses/classifier": mean, "charts/learning_rate": rate})
    classifier.load_state_dict({k: v.float() for k, v in half_precision(classifier.state_dict()).items()})
    classifier.eval().requires_grad_(False)
    classifier.accuracy = accuracy(classifier, held.images, held.labels)
    classifier.provenance = {
        "data_fingerprint": data.fingerprint,
        "n_images": len(data),
        "heldout_fingerprint": held.fingerprint,
        "torch": torch.__version__,
    }
    if run is not None:
        run.log(config.steps, {"charts/accuracy": classifier.accuracy})
        classifier.save(Path(run.path) / "model")
    return classifier


def half_of(data: ImageDataset, half: str) -> ImageDataset:
    """The "first" or "second" half of a data set under a fixed shuffle; the two are disjoint and make up the whole."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(_HALVES_SEED))
    middle = (len(data) + 1) // 2
    return data.subset((order[:middle] if half == "first" else order[middle:]).sort().values)


def _rate_factor(step: int, total: int) -> float:
    warmup = min(_WARMUP, max(1, total // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _augment(images: Tensor, config: ClassifierConfig, generator: torch.Generator) -> Tensor:
    """Each image moved by its own number of pixels (background −1 enters), mirrored by chance, then noised."""
    if config.shift:
        s = config.shift
        _, _, height, width = images.shape
        padded = nn.functional.pad(images, (s, s, s, s), value=-1.0)
        offset = torch.randint(2 * s + 1, (2, len(images)), generator=generator)
        rows = offset[0].view(-1, 1, 1) + torch.arange(height).view(1, -1, 1)
        columns = offset[1].view(-1, 1, 1) + torch.arange(width).view(1, 1, -1)
        images = padded[torch.arange(len(images)).view(-1, 1, 1), :, rows, columns].permute(0, 3, 1, 2)
    if config.flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if config.noise:
        sigma = torch.rand(len(images), 1, 1, 1, generator=generator) * config.noise
        images = images + sigma * torch.randn(images.shape, generator=generator)
    return images
