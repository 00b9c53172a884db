"""The page of the ablation study, made from its results alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qhw_diffusion.experiment import Page, PairedTest, Results, Section, mean_interval, paired_test, plots, with_holm
from qhw_diffusion.experiment.statistics import difference_cells, interval_cell
from qhw_diffusion.guidance.headroom import share_of_headroom
from qhw_diffusion.studies.guidance.words import label_of as schedule_label
from qhw_diffusion.studies.guidance.words import schedule_text

if TYPE_CHECKING:
    from qhw_diffusion.studies.ablation.experiment import AblationConfig

    AblationResults = Results[AblationConfig]

DEVICE, WITHOUT_NOISE = "device", "ideal"
"""How a trained policy was played: under the device's noise, or without noise."""
IDEAL = "@ideal"
"""Ending of the names of variants that were trained without noise."""
FACTORS: dict[str, Callable[[Any], str]] = {
    "n_qubits": lambda n: f"{n} qubits",
    "depth": lambda n: f"{n} layer{'s' * (n != 1)}",
    "entanglement": lambda kind: "no entanglement" if kind == "none" else str(kind),
    "reuploading": lambda again: "re-uploading" if again else "encoding once",
    "observables": lambda kind: "fixed observables" if kind == "fixed" else f"trained observables {kind}",
}
"""Settings of a circuit that are varied, and what a level of each is called."""
UNENTANGLED = "no-entanglement"
PARTS = ("frozen", "frozen_head", "linear_head", "linear_head_frozen", "linear", "matched_linear", "matched", "mlp")
"""Names of the policies that lack a part; so does the circuit without entanglement."""
PRIMARY = "energy"
_METRICS = (("energy", 3, 1.0), ("fd", 2, 1.0), ("accuracy", 1, 100.0))


def values(results: AblationResults, policy: str, metric: str = PRIMARY, played: str = DEVICE) -> list[float]:
    """One number of a variant, per seed."""
    return results.values(metric, part="variant", policy=policy, played=played)


def single(results: AblationResults, policy: str, key: str) -> int | None:
    """A number that is the same for all seeds of a variant: parameters, gates."""
    found = results.values(key, part="variant", policy=policy)
    return int(found[0]) if found else None


def schedule_values(results: AblationResults, name: str, metric: str = PRIMARY) -> list[float]:
    """One number of the best constant or the free schedule, per seed."""
    return results.values(metric, part="evaluation", policy=name)


def paired(a: Sequence[float], b: Sequence[float]) -> PairedTest | None:
    """The test of two series on the seeds that both have: the first ones."""
    n = min(len(a), len(b))
    return paired_test(a[:n], b[:n]) if n > 1 else None


def family(pairs: dict[str, tuple[Sequence[float], Sequence[float]]]) -> dict[str, PairedTest]:
    """Paired tests that stand in one table, Holm-corrected together."""
    tests = {name: test for name, (a, b) in pairs.items() if (test := paired(a, b)) is not None}
    return with_holm(tests)


def label_of(results: AblationResults, policy: str) -> str:
    """What a variant is called in tables."""
    reference = results.config.study.policy
    shape = f"{reference.n_qubits} qubits, {FACTORS['depth'](reference.depth)}, {reference.entanglement}"
    return results.config.variants()[policy].changed or f"reference: {shape}"


def trained(results: AblationResults) -> list[str]:
    """The variants of which there are results, in the order of the study."""
    return [name for name in results.config.variants() if values(results, name)]


def circuits(results: AblationResults) -> list[str]:
    """The circuits trained under noise; the reference first."""
    return [name for name in trained(results) if name not in PARTS and not name.endswith(IDEAL)]


def share(results: AblationResults, found: Sequence[float]) -> float:
    """The share of the headroom that a series' mean gets, on the seeds that it has."""
    n = len(found)
    oracle = min(
        np.mean(results.values(PRIMARY, part="headroom", oracle=what)[:n]) for what in ("schedule", "feedback")
    )
    constant = np.mean(results.values(PRIMARY, part="headroom", oracle="constant")[:n])
    return share_of_headroom(float(np.mean(found)), float(constant), float(oracle))


def page(results: AblationResults) -> Page:
    """Headroom, circuits, training without noise, parts, and what each variant costs."""
    c, study = results.config, results.config.study
    of = f"the pipeline {study.models.pipeline}" if study.models.pipeline else study.models.data
    shown = Page(
        subtitle=(
            f"Policies of classifier-free guidance on {of}, {study.n_steps} sampling steps, {study.policy.device}: the "
            f"circuit varied and parts of the policy left out. {c.variant_seeds} seeds each, {study.seeds} for the "
            f"reference and its main controls, {study.eval_images} images per evaluation."
        )
    )
    findings: list[str] = []
    _headroom(shown.section("Headroom"), results)
    _circuits(shown.section("Circuits"), results, findings)
    _noise(shown.section("Noise"), results, findings)
    if c.parts:
        _parts(shown.section("Does the circuit matter?"), results, findings)
    _frontier(shown.section("What a variant costs, and what it brings"), results, findings)
    shown.findings = findings
    return shown


def _row(results: AblationResults, found: dict[str, list[float]]) -> list[str]:
    share_here = f"{100 * share(results, found[PRIMARY]):.0f} %" if found[PRIMARY] else "–"
    numbers = [interval_cell([scale * v for v in found[key]], digits) for key, digits, scale in _METRICS]
    return [numbers[0], share_here, *numbers[1:]]


def _schedules(results: AblationResults) -> dict[str, str]:
    """Schedules without a state, and what each is called; the best constant first."""
    chosen = results.cells["choice"]["schedules"]
    names = ("constant", *results.config.study.schedules)
    return {name: schedule_text(chosen[name]) if name in chosen else schedule_label(name) for name in names}


def _headroom(section: Section, results: AblationResults) -> None:
    rows = []
    titles = {"constant": "best constant by the evaluation (oracle)", "schedule": "best free schedule (oracle)",
              "feedback": "best state feedback, MLP (oracle)"}  # fmt: skip
    for what, title in titles.items():
        found = {key: results.values(key, part="headroom", oracle=what) for key, _, _ in _METRICS}
        rows.append([title, *_row(results, found)])
    for name, title in _schedules(results).items():
        found = {key: schedule_values(results, name, key) for key, _, _ in _METRICS}
        rows.append([title, *_row(results, found)])
    floor = {key: results.values(key, part="floor") for key, _, _ in _METRICS}
    rows.append(["real training images", *_row(results, floor)])
    section.table(
        ["", "energy ↓", "share of headroom", "FD ↓", "accuracy (%)"],
        rows,
        caption="Energy distance within each class and Fréchet distance to held-out images, in the features of the "
        "evaluation classifier, which no training and no choice saw. The oracles are trained on that distance and say "
        "what there is to win; the share is 0 at the oracle's constant and 1 at its best. Mean and 95 % t-interval "
        "over seeds.",
    )


def _circuits(section: Section, results: AblationResults, findings: list[str]) -> None:
    names = circuits(results)
    base = values(results, "reference")
    constant = schedule_values(results, "constant")
    against_base = family({name: (values(results, name), base) for name in names if name != "reference"})
    against_constant = family({name: (values(results, name), constant) for name in names})
    rows = []
    for name in names:
        found = {key: values(results, name, key) for key, _, _ in _METRICS}
        energy, part, fd, accuracy = _row(results, found)
        rows.append([label_of(results, name), str(len(base if name == "reference" else found[PRIMARY])), energy,
                     *difference_cells(against_base.get(name), 3), *difference_cells(against_constant.get(name), 3),
                     part, fd, accuracy])  # fmt: skip
    section.table(
        ["circuit", "seeds", "energy ↓", "minus reference", "p (Holm)", "minus best constant", "p (Holm)",
         "share of headroom", "FD ↓", "accuracy (%)"],
        rows,
        caption="Trained and judged under the device's noise. Differences are paired by seed; p by the paired t-test, "
        "Holm-corrected over the column.",
    )  # fmt: skip
    better = [name for name, test in against_base.items() if test.significant() and test.difference.mean < 0]
    worse = [name for name, test in against_base.items() if test.significant() and test.difference.mean > 0]
    beat = [name for name, test in against_constant.items() if test.significant() and test.difference.mean < 0]
    told = ", ".join(label_of(results, name) for name in better) or "none"
    lost = ", ".join(label_of(results, name) for name in worse) or "none"
    findings.append(
        f"Of {len(against_base)} circuits that differ from the reference, better than it beyond chance: {told}; worse: "
        f"{lost}. {len(beat)} of {len(against_constant)} circuits beat the best constant beyond chance."
    )
    section.bullets(findings[-1:])
    _bar(section, results, findings)
    section.figure(
        plots.comparison(
            {label_of(results, name): values(results, name) for name in names},
            xlabel="energy distance, held out",
            references={"best constant": float(np.mean(constant))},
        ),
        alt="Energy distance of every circuit, one dot a seed, with the mean and its interval.",
    )
    if results.config.design == "grid":
        _effects(section, results)


def _bar(section: Section, results: AblationResults, findings: list[str]) -> None:
    """The reference against every schedule."""
    base = values(results, "reference")
    titles = _schedules(results)
    tests = family({name: (base, schedule_values(results, name)) for name in titles})
    rows = [[titles[name], str(test.difference.n), *difference_cells(test, 3)] for name, test in tests.items()]
    section.table(
        ["the reference against", "seeds", "difference of energy", "p (Holm)"],
        rows,
        caption="Negative: the quantum policy is nearer to the held-out images.",
    )
    beaten = [titles[name] for name, test in tests.items() if test.significant(0.01) and test.difference.mean < 0]
    findings.append(f"The reference beats at p < .01 (Holm, {len(base)} seeds): {'; '.join(beaten) or 'no schedule'}.")
    section.bullets(findings[-1:])


def _effects(section: Section, results: AblationResults) -> None:
    """Means over all circuits that share a level."""
    known, rows = results.config.variants(), []
    for factor, levels in results.config.levels().items():
        if len(levels) < 2:
            continue
        for level in levels:
            names = [n for n in circuits(results) if getattr(known[n].policy, factor) == level]
            seeds = np.array([values(results, name)[: results.config.variant_seeds] for name in names])
            rows.append([FACTORS[factor](level), str(len(names)), mean_interval(seeds.mean(0)).format(3)])
    section.table(
        ["level", "circuits", "energy ↓"],
        rows,
        caption="Mean over all circuits of a level, 95 % t-interval over seeds.",
    )


def _noise(section: Section, results: AblationResults, findings: list[str]) -> None:
    names = circuits(results)
    costs = family({n: (values(results, n), values(results, n, played=WITHOUT_NOISE)) for n in names})
    rows = [
        [
            label_of(results, name),
            interval_cell(values(results, name), 3),
            interval_cell(values(results, name, played=WITHOUT_NOISE), 3),
            *difference_cells(costs.get(name), 3),
        ]
        for name in names
    ]
    section.table(
        ["circuit", "under noise", "without noise", "what noise costs", "p (Holm)"],
        rows,
        caption="Energy distance, held out, of the same weights, trained under the device's noise.",
    )
    sure = [label_of(results, n) for n, t in costs.items() if t.significant()]
    told = mean_interval([test.difference.mean for test in costs.values()] or [0.0]).format(3, sign=True)
    findings.append(
        f"The device's noise changes what a trained circuit makes beyond chance for: {', '.join(sure) or 'no circuit'} "
        f"(mean over {len(names)} circuits {told})."
    )
    section.bullets(findings[-1:])
    ideal = [name for name in names if values(results, f"{name}{IDEAL}")]
    if not ideal:
        return
    taught = family({n: (values(results, n), values(results, f"{n}{IDEAL}")) for n in ideal})
    rows = [
        [
            label_of(results, name),
            interval_cell(values(results, name), 3),
            interval_cell(values(results, f"{name}{IDEAL}"), 3),
            *difference_cells(taught.get(name), 3),
        ]
        for name in ideal
    ]
    section.table(
        ["circuit", "trained under noise", "trained without", "difference", "p (Holm)"],
        rows,
        caption="Energy distance, held out, under the device's noise.",
    )
    sure = [label_of(results, n) for n, t in taught.items() if t.significant()]
    findings.append(
        "Training under the device's noise instead of without changes the distance on the device beyond chance for: "
        f"{', '.join(sure) or 'no circuit'}."
    )
    section.bullets(findings[-1:])


def _parts(section: Section, results: AblationResults, findings: list[str]) -> None:
    names = [name for name in (UNENTANGLED, *PARTS) if values(results, name)]
    base, constant = values(results, "reference"), schedule_values(results, "constant")
    tests = family({name: (values(results, name), base) for name in names})
    rows = []
    for name in ("reference", *names):
        found = {key: values(results, name, key) for key, _, _ in _METRICS}
        energy, part, fd, accuracy = _row(results, found)
        against = paired(found[PRIMARY], constant)
        rows.append([label_of(results, name), f"{single(results, name, 'n_parameters'):,}", str(len(found[PRIMARY])),
                     energy, *difference_cells(tests.get(name), 3), difference_cells(against, 3)[0], part, fd,
                     accuracy])  # fmt: skip
    section.table(
        ["policy", "trained parameters", "seeds", "energy ↓", "minus reference", "p (Holm)", "minus best constant",
         "share of headroom", "FD ↓", "accuracy (%)"],
        rows,
        caption="Every row has had the same training as the reference, and is judged under the device's noise.",
    )  # fmt: skip
    for name in ("frozen", "matched"):
        if name in tests:
            test = tests[name]
            sure = "beyond chance" if test.significant() else "within chance"
            findings.append(
                f"{label_of(results, name)[:1].upper()}{label_of(results, name)[1:]}: "
                f"{test.difference.format(3, sign=True)} against the reference, {sure} (Holm)."
            )
    worse = [label_of(results, n) for n, t in tests.items() if t.significant() and t.difference.mean > 0]
    better = [label_of(results, n) for n, t in tests.items() if t.significant() and t.difference.mean < 0]
    findings.append(
        f"Without a part, worse than the reference beyond chance: {'; '.join(worse) or 'nobody'}; better: "
        f"{'; '.join(better) or 'nobody'}."
    )
    section.bullets(findings[-3:])


def on_the_frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (cost, distance) whether no other point has less of one and no more of the other."""
    return [
        not any((a <= cost and d < distance) or (a < cost and d <= distance) for a, d in points)
        for cost, distance in points
    ]


def _frontier(section: Section, results: AblationResults, findings: list[str]) -> None:
    names = [name for name in trained(results) if not name.endswith(IDEAL)]
    costs = {"trained parameters": "n_parameters", "two-qubit gates on the device": "two_qubit_gates"}
    panels: dict[str, dict[str, tuple[float, Sequence[float]]]] = {}
    best: dict[str, list[str]] = {}
    for title, key in costs.items():
        here = {name: cost for name in names if (cost := single(results, name, key)) is not None}
        panels[title] = {label_of(results, name): (cost, values(results, name)) for name, cost in here.items()}
        points = [(float(cost), float(np.mean(values(results, name)))) for name, cost in here.items()]
        kept = on_the_frontier(points)
        order = sorted(zip(here, points, kept, strict=True), key=lambda entry: entry[1])
        best[key] = [name for name, _, on in order if on]
        told = "; ".join(f"{label_of(results, name)} ({here[name]:,})" for name in best[key])
        findings.append(f"On the frontier of distance and {title}: {told}.")
    section.figure(
        plots.cost_scatter(panels, ylabel="energy distance, held out"),
        alt="Energy distance of every variant against its trained parameters and its two-qubit gates.",
        caption="Means with 95 % t-intervals over seeds; the line joins the variants that none beats in both.",
        wide=True,
    )
    rows = []
    for name in names:
        gates, depth, bases = (single(results, name, key) for key in ("two_qubit_gates", "depth", "circuits"))
        rows.append([label_of(results, name), f"{single(results, name, 'n_parameters'):,}",
                     f"{single(results, name, 'n_circuit_parameters'):,}",
                     *("–" if n is None else f"{n:,}" for n in (gates, depth, bases)),
                     interval_cell(values(results, name), 3),
                     *("yes" if name in best[key] else "" for key in costs.values())])  # fmt: skip
    section.table(
        ["policy", "trained parameters", "of the circuit", "two-qubit gates", "depth", "circuits an action",
         "energy ↓", "frontier: parameters", "frontier: gates"],
        rows,
        caption="Gates and depth are those of the circuit compiled for the device. Frontiers are of means: where "
        "intervals overlap, chance decides who is on them.",
    )  # fmt: skip
    section.bullets(findings[-2:])
