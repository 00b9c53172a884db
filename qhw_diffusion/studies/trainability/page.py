"""The page of the trainability study, made from its results alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from qhw_diffusion.experiment import Interval, Page, Results, mean_interval, plots
from qhw_diffusion.studies.trainability.closed_forms import two_design

if TYPE_CHECKING:
    from qhw_diffusion.studies.trainability.experiment import TrainabilityConfig

    TrainabilityResults = Results[TrainabilityConfig]

NEAR = 1.25
"""A circuit has come to its plateau where the variance is at most so many times that of a 2-design."""
CURVES = (
    ("policy", "pauli", "policy, ⟨Z⟩"),
    ("denoiser", "pauli", "denoiser, ancilla's ⟨Z⟩"),
    ("denoiser", "overlap", "denoiser, fidelity"),
    ("denoiser", "start", "denoiser, fidelity at initial weights"),
)


def sizes(results: TrainabilityResults, circuit: str) -> list[int]:
    """Numbers of qubits that were measured of a circuit."""
    rows = [row for row in results.rows if row.get("part") == "size" and row["circuit"] == circuit]
    return sorted({int(row["qubits"]) for row in rows})


def variances(results: TrainabilityResults, circuit: str, cost: str, n: int, depth: int) -> list[float]:
    """The variance of a circuit's gradients, per seed."""
    return results.values("variance", part="size", circuit=circuit, cost=cost, qubits=n, depth=depth)


def slope(x: Sequence[float], lines: ArrayLike) -> Interval:
    """Slope of straight lines through (x, lines[k]), one a seed [S, N]: mean and 95 % t-interval over seeds."""
    return mean_interval([float(np.polyfit(x, line, 1)[0]) for line in np.asarray(lines)])


def by_qubits(results: TrainabilityResults, circuit: str, cost: str, depth: int) -> Interval:
    """Slope of log₂ variance per qubit at one depth."""
    n = sizes(results, circuit)
    table = np.log2([variances(results, circuit, cost, k, depth) for k in n])  # [N, S]
    return slope(n, table.T.tolist())


def closed_slope(n: Sequence[int], cost: str) -> float:
    """Slope of log₂ of the 2-design's variance through the same numbers of qubits."""
    return float(np.polyfit(n, np.log2([two_design(k, cost) for k in n]), 1)[0])


def onset(results: TrainabilityResults, circuit: str, cost: str, n: int) -> int | None:
    """The first depth from which on all variances are within `NEAR` of a 2-design's; None if it is not reached."""
    near = [float(np.mean(variances(results, circuit, cost, n, depth))) <= NEAR * two_design(n, cost)
            for depth in results.config.depths]  # fmt: skip
    reached = [depth for k, depth in enumerate(results.config.depths) if all(near[k:])]
    return reached[0] if reached else None


def contraction(results: TrainabilityResults, engine: str) -> tuple[Interval, float]:
    """Slope per layer of ½ ln(variance under noise / variance without), with its interval, and the predicted one."""
    depths = results.config.depths
    logs = []
    for depth in depths:
        where: dict[str, Any] = {"part": "noise", "depth": depth}
        noisy = np.array(results.values("variance", engine=engine, **where))
        logs.append(0.5 * np.log(noisy / np.array(results.values("variance", engine="ideal", **where))))
    told = [results.mean("predicted", part="noise", engine="ideal", depth=depth) for depth in depths]
    return slope(depths, np.array(logs).T.tolist()), float(np.polyfit(depths, told, 1)[0])


def page(results: TrainabilityResults) -> Page:
    """Answers, then a section each for size, noise and shots."""
    c = results.config
    deepest = c.depths[-1]
    sentences = []
    for circuit, cost, name in CURVES:
        n = sizes(results, circuit)
        found = by_qubits(results, circuit, cost, deepest)
        starts = {k: onset(results, circuit, cost, k) for k in n}
        told = ", ".join(f"{k} qubits {'none' if d is None else d}" for k, d in starts.items())
        sentences.append(
            f"**{name}**: at {deepest} layers log₂ of the variance changes by {found.format(2, sign=True)} per qubit "
            f"(2-design {closed_slope(n, cost):+.2f}); plateau from layer: {told}."
        )
    for engine in c.engines:
        found, told_slope = contraction(results, engine)
        mean, low, high = (100 * (1 - math.exp(v)) for v in (found.mean, found.high, found.low))
        percent = Interval(mean, low, high, found.n)
        sentences.append(
            f"**Noise** of {c.device} ({engine}, {c.noise_qubits} qubits) takes {percent.format(2)} % of a gradient a "
            f"layer; gate errors predict {100 * (1 - math.exp(told_slope)):.2f} %."
        )
    needed = {d: results.interval("needed", part="shots", shots=c.shots[0], depth=d) for d in c.shots_depths()}
    sentences.append(
        f"**Shots**: {c.noise_qubits} qubits need "
        + ", ".join(f"{v.mean:.0f} at depth {d}" for d, v in needed.items())
        + " shots per circuit until what they add is no more than the variance itself."
    )
    shown = Page(
        subtitle=f"Gradients at random angles: {c.points} points each on {c.seeds} seeds, mean over the weights.",
        findings=sentences,
    )
    shown.section("Answers").bullets(sentences)
    _size(shown, results)
    _noise(shown, results)
    _shots(shown, results)
    return shown


def _size(shown: Page, results: TrainabilityResults) -> None:
    c = results.config
    section = shown.section("Qubits and depth")
    section.text(
        "Angles are uniform on the circle. The policy's cost is one ⟨Z⟩, the denoiser's the ancilla's ⟨Z⟩ and the "
        "fidelity with a random target before it is divided by the probability of the outcome kept. A 2-design on both "
        "sides of the rotation gives d²/(2(d² − 1)(d + 1)) for a Pauli and 1/(2(d + 1)²) for a fidelity, d = 2ⁿ; a "
        "circuit without noise does not fall below it by depth. Weights outside the light cone of an observable count "
        "with 0. A policy starts at uniform angles, a denoiser near 0: at its initial weights the numbers are mean "
        "squares of gradients."
    )
    for circuit, cost, name in CURVES:
        n = sizes(results, circuit)
        rows = []
        for depth in c.depths:
            found = [mean_interval(variances(results, circuit, cost, k, depth)) for k in n]
            cells = [f"{v.mean:.2e} ({v.mean / two_design(k, cost):.2f})" for k, v in zip(n, found, strict=True)]
            rows.append([str(depth), *cells, by_qubits(results, circuit, cost, depth).format(2, sign=True)])
        closed = [f"{two_design(k, cost):.2e}" for k in n]
        rows.append(["2-design", *closed, f"{closed_slope(n, cost):+.2f}"])
        section.table(
            ["layers", *(f"{k} qubits" for k in n), "slope of log₂ per qubit [95 %]"],
            rows,
            caption=f"{name}: variance, and in brackets its ratio to a 2-design's",
        )
    panels, closed_lines = {}, {}
    for circuit, cost, name in CURVES:
        n = sizes(results, circuit)
        panels[name] = {f"{d} layers": (n, [variances(results, circuit, cost, k, d) for k in n]) for d in c.depths[:6]}
        closed_lines[name] = {"2-design": (n, [two_design(k, cost) for k in n])}
    figure = plots.against(panels, xlabel="qubits", closed=closed_lines, log=list(panels))
    section.figure(figure, alt="Variance of a gradient against the number of qubits, by depth, for each cost.",
                   wide=True)  # fmt: skip


def _noise(shown: Page, results: TrainabilityResults) -> None:
    c = results.config
    section = shown.section("Noise")
    section.text(
        f"The policy circuit of {c.noise_qubits} qubits compiled for {c.device}, at the same angles with and without "
        "noise. The factor on a gradient is the root of the ratio of variances. Predicted: all gates' mean Pauli "
        "fidelities on a scrambled string, without the readout; in a shallow circuit gates outside the light cone cost "
        "nothing."
    )
    rows = []
    for depth in c.depths:
        where: dict[str, Any] = {"part": "noise", "depth": depth}
        ideal = np.array(results.values("variance", engine="ideal", **where))
        row = [str(depth), f"{ideal.mean():.2e}"]
        for engine in c.engines:
            noisy = np.array(results.values("variance", engine=engine, **where))
            row += [f"{noisy.mean():.2e}", mean_interval(np.sqrt(noisy / ideal)).format(3)]
        rows.append([*row, f"{math.exp(results.mean('predicted', engine='ideal', **where)):.3f}"])
    heads = [head for engine in c.engines for head in (f"variance, {engine}", f"factor, {engine} [95 %]")]
    section.table(["layers", "variance, ideal", *heads, "factor predicted"], rows)


def _shots(shown: Page, results: TrainabilityResults) -> None:
    c = results.config
    section = shown.section("Shots")
    section.text(
        f"Parameter-shift from N shots per circuit, {c.noise_qubits} qubits without noise: what shots add to the "
        "variance, beside the closed form, mean of [(1 − f₊²) + (1 − f₋²)]/(4N), and the bound 1/(2N)."
    )
    rows = []
    for depth in c.shots_depths():
        for shots in c.shots:
            where: dict[str, Any] = {"part": "shots", "depth": depth, "shots": shots}
            added = results.interval("added", **where)
            scale = results.mean("closed", **where)
            ratio = Interval(added.mean / scale, added.low / scale, added.high / scale, added.n)
            rows.append([str(depth), f"{shots:,}", f"{results.mean('exact', **where):.2e}", f"{added.mean:.2e}",
                         f"{scale:.2e}", ratio.format(3), f"{1 / (2 * shots):.2e}"])  # fmt: skip
    section.table(
        ["layers", "shots", "variance, exact", "added", "closed form", "added / closed form [95 %]", "bound"], rows
    )
