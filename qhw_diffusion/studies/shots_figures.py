"""Figures of the shots study: quantities against shots, with closed forms beside them, and the gains of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qhw_diffusion.studies.figures import FAINT, INK, colour
from qhw_diffusion.studies.statistics import mean_interval

MOST_BANDS = 4  # of more curves the intervals hide each other; tables have them
Curves = Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]]  # name → x [N], seeds [N][S]


def against_shots(
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


def gains(rows: Mapping[str, Sequence[float]], *, xlabel: str, references: Mapping[str, float]) -> Figure:
    """One row per training: every seed a dot, mean and 95 % interval as a bar; reference means as dashed lines."""
    figure = Figure(figsize=(7.6, 0.33 * len(rows) + 1.2), layout="constrained")
    axis = figure.subplots()
    for row, seeds in enumerate(rows.values()):
        interval = mean_interval(seeds)
        if interval.n > 1:
            axis.plot([interval.low, interval.high], [row, row], color=colour(0), lw=2.4, solid_capstyle="butt")
        axis.plot(seeds, [row] * len(seeds), ".", color="#7b8794", ms=5, zorder=3)
        axis.plot([interval.mean], [row], "o", color=colour(0), ms=6.5, zorder=4)
    for index, (name, value) in enumerate(references.items()):
        axis.axvline(value, color=colour(index + 1), lw=1.1, ls="--", label=name)
    axis.axvline(0, color=INK, lw=0.8)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axis.invert_yaxis()
    _finish(axis, xlabel, "")
    axis.grid(axis="y", visible=False)
    return figure


def _finish(axis: Axes, xlabel: str, ylabel: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color=FAINT, lw=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
