"""The page of the study of the state, made from its results alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qhw_diffusion.experiment import Page, PairedTest, Results, difference_cells, interval_cell, paired_test, with_holm

if TYPE_CHECKING:
    from qhw_diffusion.studies.state.experiment import StateStudyConfig

    StateResults = Results[StateStudyConfig]

METRICS = (("energy", "energy ↓", 3), ("fd", "FD ↓", 2), ("accuracy", "accuracy (%)", 1))
CONSTANT = "constant"


def label_of(variant: str) -> str:
    """How a variant is called in tables."""
    kind, _, state = variant.partition("-")
    kinds = {"matched": "MLP, matched size", "mlp": "MLP, 9,282 parameters and embedding", "oracle": "oracle (MLP)"}
    entries, _, embedding = state.partition("+")
    return f"{kinds.get(kind, kind)}: {entries} entries{f' + {embedding} learned' if embedding else ''}"


def values(results: StateResults, variant: str, metric: str) -> list[float]:
    """One number of a variant (or the constant) per seed; shares as percent."""
    found = results.values(metric, variant=variant)
    return [100 * value for value in found] if metric == "accuracy" else found


def comparisons(variants: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each variant with the one of its kind whose state is poorer: without the seventh entry, or without embedding."""
    found = []
    for variant in variants:
        plain, _, embedding = variant.partition("+")
        poorer = plain if embedding else plain.removesuffix("7") + "6"
        if poorer != variant and poorer in variants:
            found.append((variant, poorer))
    return found


def paired(results: StateResults) -> dict[tuple[str, str], PairedTest]:
    """Energy distance with the richer state minus that with the poorer one, Holm over all; none with one seed."""
    if results.config.seeds < 2:
        return {}
    found = {
        pair: paired_test(*(values(results, variant, "energy") for variant in pair))
        for pair in comparisons(results.config.variants)
    }
    return with_holm(found)


def _short_of_a_bound(results: StateResults) -> list[str]:
    """A sentence where a policy comes nearer to the held-out images than the oracles, which then bound nothing."""
    energy = {name: float(np.mean(values(results, name, "energy"))) for name in results.config.variants}
    oracles = {name: value for name, value in energy.items() if name.startswith("oracle")}
    others = {name: value for name, value in energy.items() if name not in oracles}
    if not oracles or not others or min(others.values()) >= min(oracles.values()):
        return []
    oracle, best = min(oracles, key=oracles.__getitem__), min(others, key=others.__getitem__)
    return [
        f"{label_of(best)}: {others[best]:.3f}, nearer than the {label_of(oracle)}: {oracles[oracle]:.3f}. So many "
        "updates do not exhaust what the state allows: the oracles bound nothing here."
    ]


def page(results: StateResults) -> Page:
    """What a richer state is worth, and everybody's numbers."""
    c = results.config
    found = paired(results)
    sentences = []
    for (richer, poorer), test in found.items():
        difference, p = difference_cells(test, 3)
        sentences.append(f"{label_of(richer)}, minus {poorer.partition('-')[2]} entries: {difference}, p (Holm) {p}.")
    sentences += _short_of_a_bound(results)
    shown = Page(
        subtitle=f"{c.models.pipeline or c.models.data}, {c.n_steps} sampling steps; every variant trained pathwise, "
        f"{c.pathwise.num_iterations} updates of {c.pathwise.num_images} images, quantum ones on {c.policy.device} "
        f"({c.policy.engine}). {c.seeds} seeds, {c.eval_images} images each.",
        findings=sentences,
    )
    section = shown.section("What a richer state is worth")
    section.text(
        "Energy distance within each class to held-out images, in the evaluation classifier's features, with the "
        "richer state minus that with the poorer one, paired by seed. The oracle is trained on that very distance: "
        "what it wins more with a richer state is what the poorer one keeps from everybody, as far as its training "
        "exhausts the state."
    )
    section.bullets(sentences)
    against = results.tests("energy", {name: {"variant": name} for name in c.variants}, {"variant": CONSTANT})
    g0 = results.cells["calibration"]["g0"]
    columns = ["policy and state", "parameters", *(title for _, title, _ in METRICS), "energy − constant", "p (Holm)"]
    rows = []
    for name in (CONSTANT, *sorted(c.variants)):
        size = results.values("n_parameters", variant=name)
        row = [label_of(name) if size else f"best constant, g = {g0:g}", f"{size[0]:,.0f}" if size else "–"]
        row += [interval_cell(values(results, name, metric), digits) for metric, _, digits in METRICS]
        rows.append([*row, *difference_cells(against.get(name), 3)])
    floor = [interval_cell([100 * v if metric == "accuracy" else v for v in results.values(metric, part="floor")], d)
             for metric, _, d in METRICS]  # fmt: skip
    rows.append(["real training images (floor)", "–", *floor, "–", "–"])
    shown.section("Everybody").table(
        columns, rows, caption="Mean and 95 % interval over seeds; paired t-tests, Holm over the column."
    )
    return shown
