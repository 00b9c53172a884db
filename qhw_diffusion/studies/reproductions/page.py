"""The page of the reproductions: published numbers, ours beside them, and what is assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qhw_diffusion.experiment import Interval, Page, Results, mean_interval

if TYPE_CHECKING:
    from qhw_diffusion.studies.reproductions.experiment import ReproductionsConfig

ROWS = ("trained", "floor", "untrained", "bypassed")
# Metric → name, digits
METRICS = {"fidelity": ("mean fidelity", 4), "mmd": ("MMD", 5), "wasserstein": ("Wasserstein", 4)}
COLUMNS = ("experiment", "metric", "published", "ours [95 %]", "sampling floor", "untrained", "bypassed", "verdict")


@dataclass(frozen=True)
class Number:
    """A number of the source: `value`, its own uncertainty, and the same for the source's data (or its floor)."""

    value: float
    error: float = 0.0
    data: float | None = None


@dataclass(frozen=True)
class Published:
    """What a source published, and what it leaves open.

    Attributes:
        title, source: for the table.
        numbers: by metric.
        assumed: what the source leaves open and what is done here, a sentence each.
        left_out: metrics that say nothing of these data.
    """

    title: str
    source: str
    numbers: dict[str, Number]
    assumed: tuple[str, ...]
    left_out: tuple[str, ...] = ()


MS_SOURCE = "MSQuDDPM, arXiv 2411.17608v2, Table I"
QU_SOURCE = "QuDDPM, arXiv 2310.05866, public code"
ASSUMED_BY_ALL = (
    "Learning rate, updates, batch and loss are ours, tried on some of the same seeds (public codes: Adam at a "
    "constant rate, 2,001 updates a step). "
    "The loss weighs every measurement outcome of the step trained by its probability instead of drawing one, so "
    "probabilities are trained too.",
    "N is the number of states compared at a time, as in the public codes; the training set has 1,000, and 1,000 "
    "samples enter a step.",
    "Tested on {n_test:,} samples against {n_test:,} new data; Wasserstein distances are means over parts of N.",
    "CZ on all neighbouring pairs in every layer, as in the public codes.",
)
MS_ASSUMED = (
    "Schedule offset 0.001 and q uniform below its bound are taken from the public code; the paper names neither.",
    "Ancillas start in |00⟩.",
    "The paper does not say how many states are tested.",
)
QU_ASSUMED = (
    "Angles of the scrambling circuits and the scale of the data are those of the public code.",
    "The published values are what the authors' trained angles give at 1,000 samples, 20 times.",
    "The source's sampling floor depends on how many states are compared; ours is at 1,000 against 1,000.",
)
PUBLISHED = {
    "msquddpm-cluster": Published(
        "MSQuDDPM cluster",
        MS_SOURCE,
        {"fidelity": Number(0.9873, 1e-5, 0.9853)},
        (
            "The number is the paper's with one Haar-random ancilla; with |00⟩, as here, it has .9888 (data .9852).",
            *MS_ASSUMED,
        ),
    ),
    "msquddpm-circle": Published(
        "MSQuDDPM circle",
        MS_SOURCE,
        {"wasserstein": Number(0.0151, 0.0, 0.0063)},
        (
            "Trained on the MMD with Gaussian kernels of the superfidelity (widths 1, .3, .1, .03), not on the "
            "Wasserstein distance: it sees the whole ensemble too, and needs no transport problem.",
            *MS_ASSUMED,
        ),
        left_out=("fidelity",),  # ½ for a circle and for noise alike
    ),
    "quddpm-1": Published(
        "QuDDPM cluster, 1 qubit",
        QU_SOURCE,
        {"fidelity": Number(0.9888, 0.0007, 0.9876), "mmd": Number(1.3e-4, 0.6e-4, 1.3e-4)},
        QU_ASSUMED,
    ),
    "quddpm-2": Published(
        "QuDDPM cluster, 2 qubits",
        QU_SOURCE,
        {"fidelity": Number(0.948, 0.002, 0.979), "mmd": Number(1.9e-3, 0.2e-3)},
        ("1 ancilla, L = 6, scale .06: from the public code.", *QU_ASSUMED),
    ),
}
_EXPLAINED = (
    "Means over seeds with a 95 % t-interval. Mean fidelity is to the centre of the cluster: nearer to the floor (a "
    "second draw of the data) is better; the published one in brackets is of the source's own data. MMD: squared, "
    "biased as published; it compares average states. Wasserstein: cost 1 − F, sets of N. Untrained: the same circuit "
    "with its first weights. Bypassed: the states sampling starts from. Verdict on the distance to the data: beaten, "
    "the whole interval is below the published value less its error; matched, the mean is not above the published "
    "value and its error; else missed."
)


def page(results: Results[ReproductionsConfig]) -> Page:
    """The table of all experiments, and what each of them assumes."""
    c = results.config
    rows: list[list[str]] = []
    told: dict[str, list[str]] = {}
    for name in c.experiments:
        published = PUBLISHED[name]
        for metric, (metric_name, _) in METRICS.items():
            if metric in published.left_out:
                continue
            values = {row: results.values(metric, experiment=name, states=row) for row in ROWS}
            cells = table_cells(name, metric, values)
            rows.append([f"{published.title} (`{name}`)", metric_name, *cells])
            if metric in published.numbers:
                told.setdefault(cells[-1], []).append(f"{published.title}, {metric_name}")
    findings = [f"**{verdict.capitalize()}**: {'; '.join(names)}." for verdict, names in told.items()]
    if c.updates < 1:
        findings.insert(0, f"**{c.updates:.0%} of the training: not a comparison.**")
    shown = Page(
        subtitle="Published quantum diffusion models, trained from scratch as circuits: the published value, ours, the "
        f"sampling floor and two controls. {c.seeds} seeds, {c.n_test:,} samples each.",
        findings=findings,
    )
    minutes = sum(cell["seconds"] for cell in results.cells.values()) / 60
    section = shown.section("What came out").bullets(findings).table(COLUMNS, rows)
    section.text(f"{c.seeds} seeds, {minutes:.1f} minutes on one core in all.", _EXPLAINED)
    for name in c.experiments:
        section = shown.section(PUBLISHED[name].title).text(f"{PUBLISHED[name].source}.")
        section.bullets(PUBLISHED[name].assumed)
    shown.section("All experiments").bullets([text.format(n_test=c.n_test) for text in ASSUMED_BY_ALL])
    return shown


def table_cells(name: str, metric: str, values: dict[str, list[float]]) -> list[str]:
    """Cells of a row of the table: published, ours, sampling floor, untrained, bypassed, verdict."""
    digits = METRICS[metric][1]
    controls = [f"{mean_interval(values[row]).mean:.{digits}f}" for row in ROWS[2:]]
    published = PUBLISHED[name].numbers.get(metric)
    told = "–"
    if published is not None:
        error = f" ± {published.error:.{digits}f}" if published.error >= 10**-digits else ""
        told = f"{published.value:.{digits}f}{error}"
        told += "" if published.data is None else f" ({published.data:.{digits}f})"
    ours, floor = (mean_interval(values[row]).format(digits) for row in ROWS[:2])
    return [told, ours, floor, *controls, verdict(published, metric, values)]


def verdict(published: Number | None, metric: str, values: dict[str, list[float]]) -> str:
    """Ours against the published value, as distance to the data: "beaten", "matched", "missed", or "–"."""
    if published is None:
        return "–"
    if metric == "fidelity":
        if published.data is None:
            return "–"
        target = mean_interval(values["floor"]).mean
        bar = abs(published.value - published.data)
        ours: Interval = mean_interval([abs(value - target) for value in values["trained"]])
    else:
        bar, ours = published.value, mean_interval(values["trained"])
    if ours.high <= bar - published.error:
        return "beaten"
    return "matched" if ours.mean <= bar + published.error else "missed"
