"""Coloured digits, drawn as they are needed from scikit-learn's 8×8 digits: nothing is downloaded.

Four sets of writers' images, disjoint: 1,200 for training generators and the reward classifier ("train", the training
split of the data set "digits"); its 597 held-out ones are split into 397 for training the evaluation classifier
("evaluation") and 200 that nothing is ever trained on ("heldout"), which generated images are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from qhw_diffusion.diffusion.datasets import SPLITS, ImageDataset, load_dataset
from qhw_diffusion.diffusion.text_to_image.prompts import (
    DIGITS,
    PROMPTS,
    TRAINED,
    attributes_of,
)
from qhw_diffusion.errors import UnknownNameError

NAME = "coloured-digits"
"""Name of the data set, of the pipeline and of its classifiers."""
WRITERS = ("train", "evaluation", "heldout")
"""Names of the sets of writers' images."""
SIDE = 32
"""Height and width of the images in pixels."""
_HELDOUT_PER_DIGIT = 20
_PER_PROMPT, _AT_LEAST = 16, 1200  # images of each prompt in the data set, and in all: more of each where there are few
# red, green and blue in [0, 1] of `COLOURS`
_RGB = torch.tensor(
    [(0.85, 0.12, 0.12), (0.95, 0.85, 0.15), (0.13, 0.62, 0.22), (0.13, 0.30, 0.85), (0.58, 0.20, 0.72), (0.93,) * 3]
)
_JITTER = 0.08  # of each channel of a colour, at most
_LARGEST, _SMALLEST = 30.0, 23.0  # pixels of the side that the 8×8 digit takes up
_SHIFT = 3.0  # pixels from the middle, at most


@cache
def writers(which: str) -> ImageDataset:
    """The 8×8 grey digits of one of `WRITERS`.

    Raises:
        UnknownNameError: no such set.
    """
    if which not in WRITERS:
        raise UnknownNameError.of("set of writers' images", which, WRITERS)
    if which == "train":
        return load_dataset("digits", "train")
    rest = load_dataset("digits", "heldout")
    last = torch.zeros(len(rest), dtype=torch.bool)
    for digit in range(len(DIGITS)):
        last[(rest.labels == digit).nonzero().squeeze(1)[-_HELDOUT_PER_DIGIT:]] = True
    return rest.subset((last if which == "heldout" else ~last).nonzero().squeeze(1))


def draw(wanted: Tensor, generator: torch.Generator, which: str = "train") -> Tensor:
    """Images [B, 3, 32, 32] in [−1, 1] of attributes: each of a random writer, size, place and shade.

    Args:
        wanted: int64 [B, 3], digit, colour and ground (`ATTRIBUTE_TABLE`).
        generator: of the random choices.
        which: whose digits, one of `WRITERS`.

    Raises:
        UnknownNameError: no such set of writers.
    """
    source, n = writers(which), len(wanted)
    # the k-th image of the wanted digit, k at random
    order = source.labels.argsort(stable=True)
    count = source.labels.bincount(minlength=len(DIGITS))
    first = count.cumsum(0) - count
    digit = wanted[:, 0]
    k = (torch.rand(n, generator=generator) * count[digit]).long().clamp(max=count[digit] - 1)
    grey = (source.images[order[first[digit] + k]] + 1) / 2
    side = _SMALLEST + (_LARGEST - _SMALLEST) * torch.rand(n, generator=generator)
    shift = _SHIFT * (2 * torch.rand(n, 2, generator=generator) - 1)
    shade = _JITTER * (2 * torch.rand(n, 2, 3, generator=generator) - 1)
    mask = _enlarged(grey, side, shift)
    rgb = (_RGB[wanted[:, 1:]] + shade).clamp(0, 1)
    colour, ground = rgb[:, 0, :, None, None], rgb[:, 1, :, None, None]
    return (ground + (colour - ground) * mask) * 2 - 1


def _enlarged(grey: Tensor, side: Tensor, shift: Tensor) -> Tensor:
    """Masks [B, 1, 32, 32] in [0, 1] of digits [B, 1, 8, 8]: enlarged smoothly, then given a soft edge."""
    scale = SIDE / side
    theta = torch.zeros(len(grey), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift * scale[:, None] * 2 / SIDE
    grid = torch.nn.functional.affine_grid(theta, [len(grey), 1, SIDE, SIDE], align_corners=False)
    smooth = torch.nn.functional.grid_sample(grey, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    step = ((smooth - 0.25) / 0.4).clamp(0, 1)
    return step * step * (3 - 2 * step)


def coloured_digits(
    split: str, data_root: str | Path | None = None, *, prompts: Sequence[str] = PROMPTS[: len(TRAINED)]
) -> ImageDataset:
    """A fixed set of coloured digits, 16 of each prompt; a data set of the form that `load_dataset` takes.

    Of a table of less than 75 prompts there are more of each, about 1,200 images in all.

    "train" is drawn from the digits that the models are trained on, "heldout" from the 200 that nothing is trained on.

    Args:
        split: "train" or "heldout".
        data_root: not used.
        prompts: the table, whose rows are the labels; default: the trained combinations.

    Raises:
        UnknownNameError: no such split.
        InvalidInputError: prompts that are none of the coloured digits.
    """
    if split not in SPLITS:
        raise UnknownNameError.of("split", split, SPLITS)
    table = attributes_of(prompts)
    labels = torch.arange(len(table)).repeat(max(_PER_PROMPT, _AT_LEAST // len(table)))
    images = draw(table[labels], torch.Generator().manual_seed(SPLITS.index(split)), split)
    return ImageDataset(images, labels, NAME, split, len(table))
