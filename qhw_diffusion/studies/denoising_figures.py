"""Figures of a denoising study: the reverse process step by step, and quantities over its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.studies.figures import FAINT, INK, colour, smoothed


def reverse_paths(paths: Mapping[str, ArrayLike], labels: Sequence[int]) -> Figure:
    """The reverse process as image grids side by side: a row for every label, columns t = T … 0.

    Args:
        paths: {title: images [T + 1, labels, C, H, W] in [−1, 1]}, C = 1 or 3.
        labels: names of the rows.

    Raises:
        InvalidInputError: no grid, or images of another shape.
    """
    if not paths:
        raise InvalidInputError("reverse_paths needs at least one path")
    arrays = {title: np.asarray(path, dtype=np.float32) for title, path in paths.items()}
    for title, array in arrays.items():
        if array.ndim != 5 or array.shape[1] != len(labels) or array.shape[2] not in (1, 3):
            raise InvalidInputError(
                f"path {title!r} has shape {array.shape}; need [T + 1, {len(labels)}, 1 or 3, H, W]"
            )
    steps = max(len(array) for array in arrays.values())
    figure = Figure(figsize=((0.62 * steps + 0.5) * len(arrays), 0.62 * len(labels) + 0.7), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(arrays)))
    for axis, (title, array) in zip(axes, arrays.items(), strict=True):
        count, _, channels, height, width = array.shape
        pixels = np.clip((array + 1) / 2, 0, 1)
        pixels = np.pad(pixels, ((0, 0), (0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0.85)
        tiled = pixels.transpose(1, 3, 0, 4, 2).reshape(len(labels) * (height + 1), count * (width + 1), channels)
        picture = tiled[..., 0] if channels == 1 else tiled
        axis.imshow(picture, cmap="gray" if channels == 1 else None, vmin=0, vmax=1, interpolation="nearest")
        places = (np.arange(count) + 0.5) * (width + 1)
        axis.set_xticks(places, [f"t = {count - 1 - i}" if i in (0, count - 1) else str(count - 1 - i)
                                 for i in range(count)], fontsize=8)  # fmt: skip
        axis.set_yticks((np.arange(len(labels)) + 0.5) * (height + 1), [str(label) for label in labels], fontsize=8)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(title, fontsize=10, color=INK)
    return figure


def by_step(curves: Mapping[str, Sequence[Sequence[float]]], *, ylabel: str) -> Figure:
    """A quantity over the reverse process from t = T to 0: every seed thin, the mean thick.

    curves: {name: one [T + 1] per seed}.
    """
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for index, (name, seeds) in enumerate(curves.items()):
        lines = np.asarray(seeds, dtype=np.float64)
        t = np.arange(lines.shape[1])[::-1]
        axis.plot(t, lines.T, color=colour(index), lw=0.7, alpha=0.4)
        axis.plot(t, lines.mean(0), color=colour(index), lw=2.2, marker="o", ms=4, label=name)
    axis.invert_xaxis()
    _finish(axis, "t (the reverse process runs from left to right)", ylabel)
    return figure


def training_curves(panels: Mapping[str, Mapping[str, Sequence[ArrayLike]]], *, xlabel: str = "update") -> Figure:
    """Panels side by side, {y label: {name: one [updates] per seed}}: every seed thin, the mean thick; one legend."""
    figure = Figure(figsize=(4.9 * len(panels), 3.6), layout="constrained")
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (ylabel, curves) in zip(axes, panels.items(), strict=True):
        for name, seeds in curves.items():
            lines = [np.asarray(line, dtype=np.float64) for line in seeds]
            shade = colour(names.index(name))
            for line in lines:
                axis.plot(np.arange(1, len(line) + 1), smoothed(line, 15), color=shade, lw=0.6, alpha=0.35)
            mean = np.mean([line[: min(map(len, lines))] for line in lines], axis=0)
            axis.plot(np.arange(1, len(mean) + 1), smoothed(mean, 15), color=shade, lw=2.0, label=name)
        _finish(axis, xlabel, ylabel)
    return figure


def _finish(axis: Axes, xlabel: str, ylabel: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color=FAINT, lw=0.6)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.legend(frameon=False, fontsize=8)
