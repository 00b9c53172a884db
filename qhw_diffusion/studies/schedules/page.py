"""The page of the schedules study, made from its results alone, finished or not: a table for each number of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qhw_diffusion.errors import RunFolderError
from qhw_diffusion.experiment import (
    Page,
    PairedTest,
    Results,
    Section,
    difference_cells,
    mean_interval,
    p_text,
    paired_test,
    plots,
    with_holm,
)
from qhw_diffusion.guidance.headroom import ORACLES, share_of_headroom
from qhw_diffusion.studies.guidance.words import (
    METRIC_LABELS,
    PRIMARY,
    format_metric,
    label_of,
    schedule_text,
)

if TYPE_CHECKING:
    from qhw_diffusion.studies.schedules.experiment import SchedulesStudyConfig

    SchedulesResults = Results[SchedulesStudyConfig]

CONDITIONAL, FIXED = "conditional", "fixed"
PAIRED_WITH = (CONDITIONAL, "constant")
"""Rows whose images all others are compared with, pair by pair: the same label and initial noise."""
ORACLE_ROWS = ("oracle_constant", *(f"oracle_{what}" for what in ORACLES))
BASES = ("constant", "limited_interval")
"""Rows that all competitors are tested against."""
SETS = ("energy", "fd", "kd", "accuracy", "precision", "recall")
LABELS = {**METRIC_LABELS, "kd": "KID ↓", "inception_fid": "Inception FID ↓", "inception_kid": "Inception KID ↓"}
PAIRS = {"psnr": ("PSNR (dB)", 1), "ssim": ("SSIM", 3), "lpips": ("LPIPS", 3)}
_SETS_TEXT = (
    "Measured by the evaluation classifier, which no training and no choice saw, against the held-out images; arrows "
    "say what is better. Energy: energy distance within each class in its features. FD: Fréchet distance, KID: "
    "unbiased polynomial-kernel distance, in the same features (not Inception's). Accuracy: share of images in which "
    "it sees the label asked for. Precision, recall: by balls of three neighbours. Headroom: share of the way from the "
    "evaluation's own best constant (0) to the better oracle (1); negative: worse than that constant; above 100 %: the "
    "oracles' own training, which is as short as the others', ended too early. Means over seeds with 95 % "
    "t-intervals. FD, precision and recall depend on the number of images: compare them within a table."
)
_PAIRS_TEXT = (
    "How much guidance changes an image: each image against the one that another row makes of **the same label and "
    "initial noise at the same number of steps**. The partner is the plain conditional model's (g = 1) or the best "
    "constant's; neither is a target, and less similar is not worse."
)


def row_label(name: str, fixed: float) -> str:
    """What a row is called."""
    if name == CONDITIONAL:
        return "plain conditional, g = 1"
    return f"constant g = {fixed:g}" if name == FIXED else label_of(name)


def page(results: SchedulesResults) -> Page:
    """What came out, a table for each number of steps, all steps side by side, what was chosen, what is missing."""
    c = results.config
    if not any(cell["parameters"]["part"] == "evaluation" for cell in results.cells.values()):
        raise RunFolderError(f"{results.folder} holds no evaluation yet: start the study again to go on")
    lacking = missing(results)
    shown = Page(
        subtitle=(
            f"Classifier-free guidance on {c.study.models.data}: trained at {c.train_steps} sampling steps, played at "
            f"{', '.join(map(str, c.steps))}. {_sizes(results)}"
        ),
        findings=[*([f"**Not finished**: {lacking}"] if lacking else []), *findings(results)],
    )
    shown.section("What came out").bullets(shown.findings)
    for steps in played_steps(results):
        _table(shown.section(f"{steps} sampling steps"), results, steps)
    _over_steps(shown.section("All numbers of steps"), results)
    _chosen(shown.section("What was chosen and trained"), results)
    return shown


# -- numbers -----------------------------------------------------------------------------------------------------------


def values(results: SchedulesResults, name: str, steps: int, metric: str) -> dict[int, float]:
    """One number of a row, by its seed, as far as it is there."""
    found = {}
    for seed in range(results.config.at(steps).seeds):
        cell = results.cells.get(f"evaluation-{name}-steps{steps}-seed{seed}", {})
        if metric in cell:
            found[seed] = float(cell[metric])
    return found


def played_steps(results: SchedulesResults) -> list[int]:
    """Numbers of steps at which anything was played, ascending."""
    return sorted(steps for steps in results.config.steps if rows_of(results, steps))


def rows_of(results: SchedulesResults, steps: int) -> list[str]:
    """Rows that have a result at a number of steps."""
    return [name for name in results.config.rows(steps) if values(results, name, steps, PRIMARY)]


def compared(results: SchedulesResults, steps: int, base: str) -> dict[str, PairedTest]:
    """Paired tests of all competitors against one row, over the seeds that both have; one Holm family."""
    reference = values(results, base, steps, PRIMARY)
    found = {}
    for name in rows_of(results, steps):
        ours = values(results, name, steps, PRIMARY)
        both = sorted(ours.keys() & reference.keys())
        if name != base and name not in (CONDITIONAL, *ORACLE_ROWS) and len(both) > 1:
            found[name] = paired_test([ours[k] for k in both], [reference[k] for k in both])
    return with_holm(found)


def shares(results: SchedulesResults, steps: int) -> dict[str, float]:
    """Share of the headroom of every row at a number of steps, of means over the seeds that all of these have."""
    rows = rows_of(results, steps)
    if not set(ORACLE_ROWS) <= set(rows):
        return {}
    found = {name: values(results, name, steps, PRIMARY) for name in rows}
    marks = set.intersection(*(set(found[name]) for name in ORACLE_ROWS))

    def mean(name: str, seeds: set[int]) -> float:
        return float(np.mean([found[name][k] for k in seeds]))

    told = {}
    for name in rows:
        seeds = marks & found[name].keys()
        if seeds:
            constant, *better = (mean(oracle, seeds) for oracle in ORACLE_ROWS)
            told[name] = share_of_headroom(mean(name, seeds), constant, min(better))
    return told


def choice_at(results: SchedulesResults, steps: int) -> dict[str, Any]:
    """The schedules that are played at a number of steps, by their names."""
    ending = results.config.ending(results.config.tuned_at(steps))
    return dict(results.cells.get(f"choice{ending}", {}).get("schedules", {}))


def name_in_table(results: SchedulesResults, name: str, steps: int) -> str:
    """A row's label; a tuned schedule with its parameters, an oracle's constant with its scale."""
    chosen = choice_at(results, steps)
    if name in chosen:
        return schedule_text(chosen[name])
    scale = values(results, name, steps, "g_all")
    label = row_label(name, results.config.fixed)
    return f"{label}, g = {next(iter(scale.values())):g}" if name == "oracle_constant" and scale else label


def missing(results: SchedulesResults) -> str:
    """What a study that was cut short lacks: "" where it is finished."""
    config = results.config
    cells = results.study.cells_of(config)
    if cells.keys() <= results.cells.keys():
        return ""
    by_steps: dict[int, list[int]] = {}
    for name, cell in cells.items():
        if cell.parameters["part"] == "evaluation":
            done = by_steps.setdefault(cell.parameters["steps"], [0, 0])
            done[0] += name in results.cells
            done[1] += 1
    parts = [f"{done} of {all_} evaluations at {steps} steps" for steps, (done, all_) in sorted(by_steps.items())]
    return f"{', '.join(parts)} are there."


def findings(results: SchedulesResults) -> list[str]:
    """At each number of steps: who beat the best constant and the limited interval beyond chance."""
    sentences = []
    for steps in played_steps(results):
        at = results.config.at(steps)
        label = {name: row_label(name, results.config.fixed) for name in rows_of(results, steps)}
        against = {base: compared(results, steps, base) for base in BASES if base in label}
        if not against.get("constant"):
            sentences.append(f"{steps} steps: less than two seeds, so nothing can be said about who is better.")
            continue
        told = []
        for base, found in against.items():
            better = [n for n, t in found.items() if t.significant() and t.difference.mean < 0]
            listed = "; ".join(
                f"**{label[n]}** by {-found[n].difference.mean:.3f} ({p_text(found[n].p_holm)})" for n in better
            )
            told.append(f"the {label[base]} was beaten by {listed or 'nobody'}")
        lowest = min(
            (n for n in label if n not in (CONDITIONAL, *ORACLE_ROWS)),
            key=lambda n: float(np.mean([*values(results, n, steps, PRIMARY).values()])),
        )
        energy = format_metric(PRIMARY, [*values(results, lowest, steps, PRIMARY).values()])
        sentences.append(
            f"{steps} steps, {at.seeds} seeds of {at.eval_images} images, energy distance: {', '.join(told)} (paired, "
            f"Holm). The lowest is {label[lowest]}, {energy}."
        )
    return sentences


# -- sections ----------------------------------------------------------------------------------------------------------


def _sizes(results: SchedulesResults) -> str:
    c = results.config
    parts = [f"{t} steps: {c.at(t).seeds} seeds of {c.at(t).eval_images} images" for t in c.steps]
    return f"{'; '.join(parts)}."


def _table(section: Section, results: SchedulesResults, steps: int) -> None:
    rows, share = rows_of(results, steps), shares(results, steps)
    inception = [key for key in ("inception_fid", "inception_kid") if values(results, rows[0], steps, key)]
    keys = (*SETS, *inception)
    columns = ["", *(LABELS[key] for key in keys), "headroom", "mean g", "seeds"]
    lines, means = [], []
    for name in rows:
        found = values(results, name, steps, PRIMARY)
        competes = name not in (CONDITIONAL, *ORACLE_ROWS)
        means.append(float(np.mean([*found.values()])) if competes else float("inf"))
        line = [name_in_table(results, name, steps)]
        line += [format_metric(key, [*values(results, name, steps, key).values()]) for key in keys]
        line.append(f"{share[name]:+.0%}" if name in share and not np.isnan(share[name]) else "–")
        line.append(f"{np.mean([*values(results, name, steps, 'g_all').values()]):.2f}")
        lines.append([*line, str(len(found))])
    floor = {key: results.values(key, part="floor", steps=steps) for key in SETS}
    if floor[PRIMARY]:
        dashes = ["–"] * len(inception)
        real = [format_metric(key, floor[key]) for key in SETS]
        lines.append(["real training images", *real, *dashes, "–", "–", str(len(floor[PRIMARY]))])
    at = results.config.at(steps)
    section.text(_SETS_TEXT)
    section.table(
        columns,
        lines,
        emphasised=[means.index(min(means))] if min(means) < float("inf") else [],
        caption=f"{steps} steps, {at.eval_images} images a seed. Rows of oracles know the evaluation and compete with "
        "nobody.",
    )
    _tests(section, results, steps)
    _pairs(section, results, steps)


def _tests(section: Section, results: SchedulesResults, steps: int) -> None:
    against = {base: compared(results, steps, base) for base in BASES if base in rows_of(results, steps)}
    if not any(against.values()):
        section.text("Paired tests need at least two seeds.")
        return
    columns = ["energy distance minus that of"]
    for base in against:
        columns += [row_label(base, results.config.fixed), "p (Holm)"]
    names = dict.fromkeys(name for found in against.values() for name in found)
    lines = [
        [row_label(name, results.config.fixed), *(cell for found in against.values()
                                                  for cell in difference_cells(found.get(name), 3))]
        for name in names
    ]  # fmt: skip
    section.table(
        columns,
        lines,
        caption=f"{steps} steps; negative is better. Paired by seed (labels, noise and training), t-test, Holm's "
        "correction over each column.",
    )


def _pairs(section: Section, results: SchedulesResults, steps: int) -> None:
    rows = rows_of(results, steps)
    keys = [key for key in PAIRS if any(values(results, n, steps, f"{key}_{CONDITIONAL}") for n in rows)]
    if not keys:
        return
    columns = [""]
    for other in PAIRED_WITH:
        columns += [f"{PAIRS[key][0]} to {'conditional' if other == CONDITIONAL else 'best constant'}" for key in keys]
    lines = []
    for name in rows:
        cells = []
        for other in PAIRED_WITH:
            for key in keys:
                found = [*values(results, name, steps, f"{key}_{other}").values()]
                cells.append(mean_interval(found).format(PAIRS[key][1]) if found else "–")
        lines.append([row_label(name, results.config.fixed), *cells])
    section.table(columns, lines, caption=_PAIRS_TEXT)


def _over_steps(section: Section, results: SchedulesResults) -> None:
    all_steps = played_steps(results)
    names = list(dict.fromkeys(name for steps in all_steps for name in rows_of(results, steps)))
    lines = []
    for name in names:
        line = [row_label(name, results.config.fixed)]
        for steps in all_steps:
            found = [*values(results, name, steps, PRIMARY).values()]
            line.append(format_metric(PRIMARY, found) if found else "–")
        lines.append(line)
    section.table(
        ["energy ↓", *(f"{steps} steps" for steps in all_steps)],
        lines,
        caption="Energy distance to the held-out images. It is unbiased at every number of images, so a row may be "
        "read across; intervals are wider where images and seeds are fewer.",
    )
    for steps in all_steps[:1]:
        base = values(results, "constant", steps, PRIMARY)
        shown = {}
        for name in rows_of(results, steps):
            ours = values(results, name, steps, PRIMARY)
            if name not in ("constant", CONDITIONAL):
                shown[row_label(name, results.config.fixed)] = [ours[k] - base[k] for k in ours if k in base]
        if len(base) > 1 and shown:
            section.figure(
                plots.comparison(
                    {name: found for name, found in shown.items() if found},
                    xlabel=f"energy distance minus that of the best constant, {steps} steps (left is better)",
                    mark=0.0,
                ),
                alt=f"Difference in energy distance to the best constant at {steps} steps: a dot per seed, mean and "
                "95 % interval.",
                name="schedules",
            )


def _chosen(section: Section, results: SchedulesResults) -> None:
    c = results.config
    section.text(
        f"Policies, free schedules and oracles: trained at {c.train_steps} steps, on the reward side (oracles: on the "
        "evaluation's), and played at the others as they are: t/T is an entry of the state, and a free schedule is "
        "interpolated in t/T. Constants and the other schedules: swept and tuned at "
        f"{', '.join(map(str, c.tuned))} steps on the reward side alone, taken over from the next lower one elsewhere. "
        f"Reward features: {c.study.reward.distribution_features}."
    )
    for steps in sorted(c.tuned):
        rows = [row for row in results.rows if row.get("part") == "sweep" and row["steps"] == steps]
        if rows:
            section.table(
                ["g", "distance, reward side", "energy, evaluation", "FD, evaluation", "accuracy %, evaluation"],
                [
                    [f"{r['g']:g}", f"{r['reward_distance']:.4f}", f"{r['energy']:.3f}", f"{r['fd']:.2f}",
                     f"{100 * r['accuracy']:.1f}"]
                    for r in rows
                ],
                caption=f"The sweep at {steps} steps, {c.study.sweep_images} images of noise of its own. The reward "
                "side's distance chose; the evaluation's columns chose the oracle's constant alone.",
            )  # fmt: skip
    lines = []
    for steps in played_steps(results):
        for name in rows_of(results, steps):
            found = [k for k in results.cells if k.startswith(f"evaluation-{name}-steps{steps}-seed")]
            cell = results.cells[found[0]]
            if steps == c.train_steps:
                scales = np.mean([results.cells[k]["g_mean"] for k in found], axis=0)
                cost = f"{cell['n_parameters']:,}", f"{cell['scorer_evaluations_per_image']:g}"
                lines.append([row_label(name, c.fixed), *cost, *(f"{g:.2f}" for g in scales)])
    if lines:
        section.table(
            ["", "parameters", "scorer calls per image", *(f"g, step {i + 1}" for i in range(c.train_steps))],
            lines,
            caption=f"Mean guidance scale of each step at {c.train_steps} steps. The network is called equally often "
            "by all.",
        )
