"""Plots that studies share, each a function from plain arrays to a matplotlib Figure (no global pyplot state)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.experiment.statistics import mean_interval

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

# Okabe & Ito (2008): told apart by readers with any kind of colour vision; black is kept for "real images"
Curves = Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]]  # name → x [N], seeds [N][S]
MOST_BANDS = 4  # of more curves the intervals hide each other; tables have them
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8A8A8A")
INK, FAINT = "#222222", "#d5d9de"


def colour(index: int) -> str:
    """The palette's colour number `index`, starting over when it is used up."""
    return COLOURS[index % len(COLOURS)]


def sample_grids(grids: Mapping[str, ArrayLike], *, rows: int = 4) -> Figure:
    """Image grids side by side. grids: {title: images [N, C, H, W] in [−1, 1]}, drawn as `rows` rows each.

    Only one channel (grey) or three (colour) can be drawn. Raises InvalidInputError for other shapes.
    """
    if not grids:
        raise InvalidInputError("sample_grids needs at least one grid")
    arrays = {title: np.asarray(images, dtype=np.float32) for title, images in grids.items()}
    columns = 0
    for title, array in arrays.items():
        if array.ndim != 4 or array.shape[1] not in (1, 3) or len(array) < rows:
            raise InvalidInputError(f"grid {title!r} has shape {array.shape}; need [N ≥ {rows}, 1 or 3, H, W]")
        columns = max(columns, len(array) // rows)
    across = min(3, len(arrays))
    down = -(-len(arrays) // across)
    figure = Figure(figsize=(4.1 * across, (4.1 * rows / columns + 0.45) * down), layout="constrained")
    axes = np.atleast_1d(figure.subplots(down, across)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, array) in zip(axes, arrays.items(), strict=False):
        tiled = _tile(array, rows)
        axis.imshow(tiled, cmap="gray" if tiled.ndim == 2 else None, vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=10, color=INK)
    return figure


def steered_images(captions: Sequence[str], images: Mapping[str, ArrayLike], scales: Mapping[str, ArrayLike]) -> Figure:
    """One column an image: its caption, what each policy makes of it from the same noise, and its scales below.

    Args:
        captions: N texts.
        images: {policy: images [N, C, H, W] in [−1, 1]}, C = 1 or 3; one row each.
        scales: {policy: g [T, N]}, some or all of the same policies; drawn in one axis a column.

    Raises:
        InvalidInputError: nothing to show, or images or scales of another shape.
    """
    count = len(captions)
    arrays = {name: np.asarray(one, dtype=np.float32) for name, one in images.items()}
    lines = {name: np.asarray(one, dtype=np.float64) for name, one in scales.items()}
    for name, array in arrays.items():
        if array.ndim != 4 or len(array) != count or array.shape[1] not in (1, 3):
            raise InvalidInputError(f"images of {name!r} have shape {array.shape}; need [{count}, 1 or 3, H, W]")
    for name, g in lines.items():
        if g.ndim != 2 or g.shape[1] != count:
            raise InvalidInputError(f"scales of {name!r} have shape {g.shape}; need [T, {count}]")
    if not count or not arrays or not lines:
        raise InvalidInputError("steered_images needs captions, images and scales")
    rows = len(arrays)
    figure = Figure(figsize=(1.22 * count + 1.6, 1.22 * rows + 2.3), layout="constrained")
    axes = figure.subplots(rows + 1, count, squeeze=False, gridspec_kw={"height_ratios": [1.0] * rows + [1.05]})
    for row, (name, array) in enumerate(arrays.items()):
        pixels = np.clip((array + 1) / 2, 0, 1)
        for column in range(count):
            axis, one = axes[row, column], pixels[column]
            picture = one[0] if len(one) == 1 else one.transpose(1, 2, 0)
            axis.imshow(picture, cmap="gray" if len(one) == 1 else None, vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(textwrap.fill(captions[column], 13), fontsize=8, color=INK)
            if column == 0:
                label = textwrap.fill(name, 17)
                axis.set_ylabel(label, fontsize=8.5, rotation=0, ha="right", va="center", color=INK)
    low, high = min(g.min() for g in lines.values()), max(g.max() for g in lines.values())
    margin = 0.08 * (high - low) or 0.1
    for column in range(count):
        axis = axes[rows, column]
        for index, (name, g) in enumerate(lines.items()):
            steps = np.arange(1, len(g) + 1)
            first = index == 0
            axis.plot(steps, g[:, column], color=INK if first else colour(index - 1), ls="--" if first else "-",
                      lw=1.2 if first else 1.7, marker=None if first else ".", label=name)  # fmt: skip
        axis.set_ylim(low - margin, high + margin)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7, labelleft=column == 0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axis.grid(color=FAINT, lw=0.5)
    axes[rows, 0].set_ylabel("guidance\nscale g", fontsize=8.5, rotation=0, ha="right", va="center")
    handles, labels = axes[rows, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=9)
    return figure


def labelled_trajectories(trajectories: Mapping[str, ArrayLike], *, constant: float | None = None) -> Figure:
    """Mean g_t over the sampling steps, a line for each label. trajectories: {label: g [T, N]}, N images of it.

    constant: drawn as a dashed line.
    """
    figure, axis = _single(7.2, 4.2)
    steps = np.arange(1, max(len(np.asarray(g)) for g in trajectories.values()) + 1)
    for index, (name, values) in enumerate(trajectories.items()):
        style = ("-", "--", ":", "-.")[index // len(COLOURS) % 4]
        axis.plot(
            steps, np.asarray(values).mean(1), color=colour(index), ls=style, marker="o", ms=3, lw=1.5, label=name
        )
    if constant is not None:
        axis.axhline(constant, color=INK, lw=1.1, ls="--", label=f"best constant {constant:g}")
    axis.set_xlabel("sampling step (1 = noisiest)")
    axis.set_ylabel("mean guidance scale g")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def guidance_trajectories(
    trajectories: Mapping[str, ArrayLike], *, n_steps: int, constant: float | None = None
) -> Figure:
    """g_t over the sampling steps: mean (line) and standard deviation over samples (band) per policy.

    trajectories: {name: g [T, N]}, T = n_steps, N samples (all seeds together); constant: drawn as a dashed line.
    """
    figure, axis = _single(7.2, 4.2)
    steps = np.arange(1, n_steps + 1)
    for index, (name, values) in enumerate(trajectories.items()):
        g = np.asarray(values, dtype=np.float64)
        if g.ndim != 2 or g.shape[0] != n_steps:
            raise InvalidInputError(f"trajectory {name!r} has shape {g.shape}; need [{n_steps}, samples]")
        mean, spread = g.mean(1), g.std(1)
        axis.plot(steps, mean, color=colour(index), marker="o", ms=3.5, lw=1.8, label=name)
        axis.fill_between(steps, mean - spread, mean + spread, color=colour(index), alpha=0.13, lw=0)
    if constant is not None:
        axis.axhline(constant, color=INK, lw=1.1, ls="--", label=f"best constant {constant:g}")
    axis.set_xlabel("sampling step (1 = noisiest)")
    axis.set_ylabel("guidance scale g")
    axis.set_xticks(steps if n_steps <= 12 else steps[:: max(1, n_steps // 10)])
    _legend(axis)
    return figure


def learning_curves(
    curves: Mapping[str, Sequence[ArrayLike]], *, ylabel: str = "mean episode reward", baseline: float | None = None
) -> Figure:
    """Reward over updates: every seed thin, the mean over seeds thick. curves: {name: one [updates] per seed}."""
    figure, axis = _single(7.2, 4.2)
    for index, (name, seeds) in enumerate(curves.items()):
        lines = [np.asarray(line, dtype=np.float64) for line in seeds]
        for line in lines:
            axis.plot(np.arange(1, len(line) + 1), smoothed(line), color=colour(index), lw=0.7, alpha=0.4)
        length = min(len(line) for line in lines)
        mean = np.mean([line[:length] for line in lines], axis=0)
        label = f"{name} ({len(lines)} seeds)"
        axis.plot(np.arange(1, length + 1), smoothed(mean), color=colour(index), lw=2.2, label=label)
    if baseline is not None:
        axis.axhline(baseline, color=INK, lw=1.0, ls=":", label="base scale")
    axis.set_xlabel("update")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel(ylabel)
    _legend(axis)
    return figure


def log_curves(curves: Mapping[str, Sequence[ArrayLike]], *, ylabel: str) -> Figure:
    """Positive quantities over updates on a logarithmic axis (circuit gradient norms), every seed a line."""
    figure, axis = _single(7.2, 3.4)
    for index, (name, seeds) in enumerate(curves.items()):
        for number, line in enumerate(seeds):
            values = np.asarray(line, dtype=np.float64)
            label = name if number == 0 else None
            axis.plot(np.arange(1, len(values) + 1), values, color=colour(index), lw=0.9, alpha=0.75, label=label)
    axis.set_yscale("log")
    axis.set_xlabel("update")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel(ylabel)
    _legend(axis)
    return figure


def sweep_curve(
    scales: ArrayLike, reward_side: ArrayLike, evaluation_side: ArrayLike, *, chosen: float, floor: float | None = None
) -> Figure:
    """Reward-side distance (it chooses) and judged Fréchet distance (it only looks) against the constant scale."""
    figure, axis = _single(7.2, 4.0)
    x = np.asarray(scales, dtype=np.float64)
    axis.plot(x, np.asarray(reward_side), color=colour(0), marker="o", lw=1.9, label="reward classifier (chooses)")
    right = axis.twinx()
    right.plot(
        x,
        np.asarray(evaluation_side),
        color=colour(1),
        marker="s",
        lw=1.5,
        ls="--",
        label="evaluation classifier (only looks)",
    )
    right.spines["top"].set_visible(False)
    right.set_ylabel("FD, evaluation classifier's features", color=colour(1))
    if floor is not None:
        right.axhline(floor, color=colour(1), lw=0.9, ls=":", label="real against real, evaluation classifier")
    axis.axvline(chosen, color=INK, lw=1.0, ls="--")
    axis.annotate(f"g = {chosen:g}", (chosen, 0.97), xycoords=("data", "axes fraction"), fontsize=9, ha="left",
                  va="top", xytext=(4, 0), textcoords="offset points")  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks(x, [f"{value:g}" for value in x], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel("constant guidance scale g")
    axis.set_ylabel("distance, reward side", color=colour(0))
    handles, labels = axis.get_legend_handles_labels()
    more, names = right.get_legend_handles_labels()
    axis.legend(handles + more, labels + names, frameon=False, fontsize=9)
    return figure


def comparison(
    values: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    mark: float | None = None,
    references: Mapping[str, float] | None = None,
) -> Figure:
    """One row a variant: every seed a dot, mean and 95 % t-interval as a bar.

    Args:
        values: {name: one value a seed}.
        xlabel: label of the axis.
        mark: dashed line without a name.
        references: dashed lines with names in a legend, and a solid one at 0.
    """
    figure, axis = _single(7.6, 0.36 * len(values) + 1.1)
    for row, seeds in enumerate(values.values()):
        interval = mean_interval(seeds)
        if interval.n > 1:
            axis.plot([interval.low, interval.high], [row, row], color=colour(0), lw=2.4, solid_capstyle="butt")
        axis.plot(seeds, [row] * len(seeds), ".", color="#7b8794", ms=5, zorder=3)
        axis.plot([interval.mean], [row], "o", color=colour(0), ms=6.5, zorder=4)
    for index, (name, value) in enumerate((references or {}).items()):
        axis.axvline(value, color=colour(index + 1), lw=1.1, ls="--", label=name)
    axis.set_yticks(range(len(values)), list(values))
    axis.locator_params(axis="x", nbins=6)  # long names leave a narrow axis
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    if mark is not None:
        axis.axvline(mark, color=INK, lw=1.1, ls="--")
    if references:
        axis.axvline(0, color=INK, lw=0.8)
        axis.legend(frameon=False, fontsize=8)
    axis.set_xlabel(xlabel)
    return figure


def against(
    panels: Mapping[str, Curves],
    *,
    xlabel: str = "shots per circuit",
    closed: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] | None = None,
    marks: Mapping[str, tuple[float, str]] | None = None,
    log: Sequence[str] = (),
) -> Figure:
    """Panels side by side, {y label: {name: (x, values per seed)}}: mean and 95 % interval against shots.

    With more than four curves in every panel: no intervals, and one legend below.

    closed: {y label: {name: (x, y)}} drawn dashed; marks: {y label: (y, name)} as dotted lines; log: the y labels whose
    axis is logarithmic.
    """
    figure = Figure(figsize=(4.6 * len(panels), 3.7), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (ylabel, curves) in zip(axes, panels.items(), strict=True):
        for index, (name, (x, seeds)) in enumerate(curves.items()):
            found = [mean_interval(values) for values in seeds]
            axis.plot(x, [i.mean for i in found], color=colour(index), marker="o", ms=4, lw=1.8, label=name)
            if found[0].n > 1 and len(curves) <= MOST_BANDS:
                low, high = [i.low for i in found], [i.high for i in found]
                if ylabel in log:  # an interval that reaches 0 has no place on a logarithmic axis
                    low = [max(edge, i.mean / 10) for edge, i in zip(low, found, strict=True)]
                axis.fill_between(x, low, high, color=colour(index), alpha=0.15, lw=0)
        for name, (x, y) in (closed or {}).get(ylabel, {}).items():
            axis.plot(x, y, color=INK, lw=1.1, ls="--" if "bound" not in name else ":", label=name, zorder=1)
        if marks and ylabel in marks:
            axis.axhline(marks[ylabel][0], color=INK, lw=1.0, ls=":", label=marks[ylabel][1])
        axis.set_xscale("log", base=2 if len(x) < 8 else 10)
        axis.set_xticks(x, [f"{n:,}" for n in x], fontsize=7.5, rotation=30)
        axis.minorticks_off()
        if ylabel in log:
            axis.set_yscale("log")
        _finish(axis, xlabel, ylabel)
    if all(len(curves) > MOST_BANDS for curves in panels.values()):
        for axis in axes:
            axis.get_legend().remove()
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def cost_scatter(panels: Mapping[str, Mapping[str, tuple[float, Sequence[float]]]], *, ylabel: str) -> Figure:
    """Panels side by side, {cost: {name: (cost, values per seed)}}: mean and 95 % interval against cost.

    A line joins the points that no other beats in both; names in one legend below.
    """
    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    handles: dict[str, Any] = {}
    for axis, (xlabel, points) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        means: dict[float, float] = {}
        for name, (cost, seeds) in points.items():
            interval, index = mean_interval(seeds), names.index(name)
            style = {"color": colour(index), "marker": "osD^v"[index // len(COLOURS) % 5]}
            if interval.n > 1:
                axis.plot([cost, cost], [interval.low, interval.high], color=colour(index), lw=1.2, alpha=0.6)
            handles[name] = axis.plot([cost], [interval.mean], ls="", ms=6, **style)[0]
            means[cost] = min(interval.mean, means.get(cost, math.inf))
        front: list[tuple[float, float]] = []
        for cost in sorted(means):
            if not front or means[cost] < front[-1][1]:
                front.append((cost, means[cost]))
        axis.plot(*zip(*front, strict=True), color=INK, lw=1.0, ls=":", zorder=1)
        if min(means) > 0 and max(means) > 20 * min(means):
            axis.set_xscale("log")
        _finish(axis, xlabel, ylabel)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=3, frameon=False, fontsize=7.5
    )
    return figure


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
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
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
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _finish(axis, xlabel, ylabel)
    return figure


def circuit_drawing(circuit: QuantumCircuit, *, fold: int = 24) -> Figure:
    """The circuit in Qiskit's drawing style; idle qubits left out, wrapped after `fold` layers."""
    drawn = circuit.draw("mpl", idle_wires=False, fold=fold, style={"fontsize": 9, "subfontsize": 6}, scale=0.75)
    if not isinstance(drawn, Figure):
        raise InvalidInputError("the circuit cannot be drawn; it has no gates")
    return drawn


def device_layout(target: Any, physical_qubits: Sequence[int], *, title: str = "") -> Figure:
    """Coupling map of a device (a qiskit Target) with the qubits and couplers in use marked."""
    edges = sorted({(min(a, b), max(a, b)) for a, b in target.build_coupling_map().get_edges()})
    place = _coordinates(int(target.num_qubits), edges)
    xs, ys = zip(*place.values(), strict=True)
    width, height = max(xs) - min(xs) + 1, max(ys) - min(ys) + 1
    scale = min(0.55, 9.0 / width)
    figure = Figure(figsize=(max(3.0, scale * width), max(2.2, scale * height) + 0.4), layout="constrained")
    axis = figure.subplots()
    used = set(physical_qubits)
    for a, b in edges:
        both = a in used and b in used
        axis.plot(
            *zip(place[a], place[b], strict=True), color=colour(1) if both else FAINT, lw=3 if both else 1.4, zorder=1
        )
    for qubit, (x, y) in place.items():
        mark = qubit in used
        axis.plot(x, y, "o", color=colour(1) if mark else "#eef1f4", ms=13 if mark else 8, mec=FAINT, mew=0.8, zorder=2)
        if mark or len(place) <= 30:
            axis.annotate(str(qubit), (x, y), ha="center", va="center", fontsize=6.5, color="white" if mark else INK)
    axis.set_aspect("equal")
    axis.invert_yaxis()
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=10, color=INK)
    return figure


def smoothed(values: ArrayLike, window: int = 5) -> np.ndarray:
    """Centred running mean (shorter windows at the ends), so that the eye can follow noisy curves."""
    line = np.asarray(values, dtype=np.float64)
    half = min(window // 2, (len(line) - 1) // 2)
    return np.array([line[max(0, i - half) : i + half + 1].mean() for i in range(len(line))])


def _coordinates(n_qubits: int, edges: Sequence[tuple[int, int]]) -> dict[int, tuple[float, float]]:
    """Drawing positions: neighbours with consecutive numbers lie in a row, all others above and below each other.

    That is how IBM numbers its lattices. Where it puts two qubits on one spot, they go on a circle instead.
    """
    neighbours: dict[int, list[int]] = {qubit: [] for qubit in range(n_qubits)}
    for a, b in edges:
        neighbours[a].append(b)
        neighbours[b].append(a)
    place: dict[int, tuple[float, float]] = {0: (0.0, 0.0)}
    queue = [0]
    while queue:
        qubit = queue.pop(0)
        x, y = place[qubit]
        for other in neighbours[qubit]:
            if other in place:
                continue
            step = other - qubit
            place[other] = (x + step, y) if abs(step) == 1 else (x, y + (1 if step > 0 else -1))
            queue.append(other)
    if len(place) == n_qubits and len(set(place.values())) == n_qubits:
        return place
    turn = 2 * np.pi / n_qubits
    radius = n_qubits / 5
    return {q: (float(radius * np.cos(turn * q)), float(radius * np.sin(turn * q))) for q in range(n_qubits)}


def _tile(images: np.ndarray, rows: int) -> np.ndarray:
    """[N, C, H, W] in [−1, 1] → one picture in [0, 1] with a thin light line between the images."""
    columns = len(images) // rows
    pixels = np.clip((images[: rows * columns] + 1) / 2, 0, 1)
    pixels = np.pad(pixels, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0.85)
    _, channels, height, width = pixels.shape
    grid = pixels.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
    grid = grid.reshape(channels, rows * height, columns * width)
    return grid[0] if channels == 1 else grid.transpose(1, 2, 0)


def _single(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color=FAINT, lw=0.6)
    axis.set_axisbelow(True)
    return figure, axis


def _legend(axis: Axes) -> None:
    axis.legend(frameon=False, fontsize=9, ncols=2 if len(axis.get_legend_handles_labels()[0]) > 4 else 1)


def _finish(axis: Axes, xlabel: str, ylabel: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color=FAINT, lw=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
