"""What images and labels must be, and that data sets, backbones and classifiers that meet fit each other.

Labels are indices into tables: one that is negative, or that happens to be a backbone's null label, would be looked up
without a complaint. So everything that takes labels checks them here.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError

_ROUNDING = 1e-5  # pixels may be outside [-1, 1] by this much


def check_labels(
    labels: Any, n_classes: int | None, count: int | None = None, *, null_label: int | None = None
) -> None:
    """Check that labels are int64 [N], N ≥ 1, each in 0 … n_classes − 1.

    Args:
        labels: what was given.
        n_classes: None where any label from 0 on will do.
        count: N, where it is known.
        null_label: a label that stands for none, and which the message explains when it is among them.

    Raises:
        InvalidInputError: they are not; the message says what they are, what is allowed and what to do.
    """
    wanted = f"int64 [{'N' if count is None else count}]"
    if not isinstance(labels, Tensor):
        raise InvalidInputError(
            f"labels are a {_kind(labels)}, need a tensor, {wanted}: torch.as_tensor(labels) of whole numbers"
        )
    given = f"labels have dtype {labels.dtype} and shape {list(labels.shape)}, need {wanted}"
    if labels.ndim == 2:
        advice = "labels.flatten()" if labels.shape[1] == 1 else "one-hot labels become numbers by labels.argmax(1)"
        raise InvalidInputError(f"{given}, one number for each image: {advice}")
    if labels.ndim != 1:
        raise InvalidInputError(f"{given}, one number for each image")
    if labels.dtype != torch.int64:
        raise InvalidInputError(f"{given}: labels.long(), if they are whole numbers")
    if count is not None and len(labels) != count:
        raise InvalidInputError(f"{len(labels)} labels for {count} images or states, need one for each")
    if len(labels) == 0:
        raise InvalidInputError(f"there are no labels, need {wanted}, N ≥ 1")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (n_classes is not None and high >= n_classes):
        allowed = "from 0" if n_classes is None else f"0 to {n_classes - 1}"
        wrong = (labels < 0) if n_classes is None else (labels < 0) | (labels >= n_classes)
        row = int(wrong.nonzero()[0])
        hint = ""
        if null_label is not None and bool((labels == null_label).any()):
            hint = f". {null_label} is the null label: it asks for no class, and g = 0 samples without a label"
        raise InvalidInputError(
            f"labels run from {low} to {high}; allowed: {allowed} (label {int(labels[row])} stands in row {row}){hint}"
        )


def check_images(images: Any) -> None:
    """Check that images are float32 [N, C, H, W], N ≥ 1, finite and in [−1, 1].

    Raises:
        InvalidInputError: they are not; the message says what they are, what is allowed and what to do.
    """
    if not isinstance(images, Tensor):
        raise InvalidInputError(
            f"images are a {_kind(images)}, need a float32 tensor [N, C, H, W]: torch.from_numpy(array) makes one"
        )
    given = f"images have dtype {images.dtype} and shape {list(images.shape)}, need float32 [N, C, H, W]"
    if images.ndim != 4:
        raise InvalidInputError(given + (": images[:, None] adds the channel" if images.ndim == 3 else ""))
    if images.dtype != torch.float32:
        bytes_ = images.dtype == torch.uint8
        raise InvalidInputError(f"{given} in [-1, 1]: {'images.float() / 127.5 - 1' if bytes_ else 'images.float()'}")
    if len(images) == 0:
        raise InvalidInputError("there are no images, need at least one")
    if images.numel() == 0:
        raise InvalidInputError(f"{given}, all sides at least 1")
    values = images.detach()
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
        raise InvalidInputError(f"image {row} (the first of them) holds NaN or infinite entries")
    low, high = float(values.min()), float(values.max())
    if low < -1 - _ROUNDING or high > 1 + _ROUNDING:
        advice = "images / 127.5 - 1" if low >= 0 and 1.5 < high <= 255 else "scale or clamp them"
        raise InvalidInputError(f"pixels go from {low:.4g} to {high:.4g}, need [-1, 1]: {advice}")


def check_pixels(x: Any, image_shape: tuple[int, int, int], dtype: torch.dtype, what: str = "images") -> None:
    """Check that a network of images of this shape and dtype can take `x`, [B, C, H, W]; values are not looked at.

    Raises:
        InvalidInputError: no tensor, or one of another shape or dtype.
    """
    need = f"need [B, {', '.join(map(str, image_shape))}] of {dtype}"
    if not isinstance(x, Tensor):
        raise InvalidInputError(f"{what} is a {_kind(x)}, {need}")
    if x.ndim != 4 or tuple(x.shape[1:]) != tuple(image_shape) or x.dtype != dtype:
        raise InvalidInputError(f"{what} is {x.dtype} {tuple(x.shape)}, {need}")


def check_shape_and_classes(image_shape: Any, n_classes: Any) -> None:
    """Check that a configuration's images are (C, H, W), all positive, and that it has a class.

    Raises:
        InvalidInputError: they are not, or it has none.
    """
    numbers = (*image_shape, n_classes) if isinstance(image_shape, (tuple, list)) else ()
    if len(numbers) != 4 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        raise InvalidInputError(
            f"image_shape is {image_shape!r} and n_classes {n_classes!r}; need (C, H, W) and a number of classes, all "
            "whole numbers from 1"
        )


class _Part(Protocol):
    """A data set, a backbone, a classifier, or the configuration of one."""

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def n_classes(self) -> int: ...


def check_fit(**parts: _Part) -> None:
    """Check that all parts have the same image shape and number of classes; the names are those of the message.

    Raises:
        InvalidInputError: two of them differ.
    """
    described = {
        name: (tuple(part.image_shape), int(part.n_classes), _described(name, part)) for name, part in parts.items()
    }
    first, *others = described.values()
    for other in others:
        if other[:2] != first[:2]:
            raise InvalidInputError(
                f"{first[2]} and {other[2]} do not fit each other: shape of the images and number of classes must be "
                "the same"
            )


def check_every_class(labels: Tensor, n_classes: int, name: str, purpose: str) -> None:
    """Check that every class has an image, for a `purpose` that takes each class by itself.

    Raises:
        InvalidInputError: some class of data set `name` has none.
    """
    missing = (labels.bincount(minlength=n_classes) == 0).nonzero().flatten().tolist()
    if missing:
        raise InvalidInputError(
            f"data set {name!r} has {n_classes} classes and no image of class {', '.join(map(str, missing))}; "
            f"{purpose} needs some of every class: add them, or number the classes without gaps and give their number "
            "as n_classes"
        )


def _described(name: str, part: Any) -> str:
    shape = "×".join(map(str, part.image_shape))
    whose = getattr(part, "name", None) or getattr(part, "dataset", "")
    return f"{name.replace('_', ' ')} {whose!r} ({shape} images, {part.n_classes} classes)"


def _kind(value: Any) -> str:
    cls = type(value)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"
