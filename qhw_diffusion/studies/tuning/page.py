"""The page of the fine-tuning study, made from its results alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qhw_diffusion.experiment import Page, Results
from qhw_diffusion.experiment.statistics import difference_cells

if TYPE_CHECKING:
    from qhw_diffusion.studies.tuning.experiment import TuningStudyConfig

    TuningResults = Results[TuningStudyConfig]

METRICS = (("energy", "energy distance", 3), ("fd", "FD", 2))


def variants(results: TuningResults) -> dict[str, str]:
    """Name in the results → name in the tables; no updates first."""
    c = results.config
    return {
        "none": "no updates",
        "simulated": f"{c.updates} simulated, old calibration",
        "surrogate": f"{c.updates} on the device, surrogate",
        "spsa": f"{c.updates} on the device, SPSA",
        "oracle": f"{c.updates} exact, new calibration (oracle)",
        "simulated many": f"{c.many} simulated, old calibration",
        "oracle many": f"{c.many} exact, new calibration (oracle)",
    }


def page(results: TuningResults) -> Page:
    """Answers, and a table a day."""
    c = results.config
    names, answers = variants(results), []
    shown = Page(
        subtitle=f"Latent denoisers of digits, {c.n_steps} steps, trained under the calibration of {c.device}, tuned "
        f"on the same device drifted; {c.seeds} seeds, each with a denoiser and a drift of its own.",
    )
    for worse in c.worse:
        where = {"part": "day", "worse": worse}
        tests = {}
        for metric, _, _ in METRICS:
            others = {name: {**where, "variant": name} for name in names if name != "none"}
            tests[metric] = results.tests(metric, others, {**where, "variant": "none"})
        for name in ("surrogate", "spsa", "oracle many"):
            if name in tests["energy"]:
                difference, p = difference_cells(tests["energy"][name], 3)
                answers.append(f"Errors × {worse:g}: {names[name]}: energy distance {difference}, p (Holm) {p}.")
        section = shown.section(f"Errors × {worse:g}")
        columns = ["updates", "success", "QPU s announced"]
        for _, title, _ in METRICS:
            columns += [title, f"{title} − no updates", "p (Holm)"]
        rows = []
        for name, title in names.items():
            here = {**where, "variant": name}
            seconds = results.values("qpu_seconds", **here)
            row = [title, results.interval("success", **here).format(3), f"{seconds[0]:,.0f}" if seconds else "–"]
            for metric, _, digits in METRICS:
                row += [results.interval(metric, **here).format(digits)]
                row += difference_cells(tests[metric].get(name), digits)
            rows.append(row)
        section.table(columns, rows, caption="Mean and 95 % interval over seeds; paired t-tests, Holm over the table.")
        section.text(_against_simulated(results, worse), *_by_aer(results, worse))
    trained = {metric: results.interval(metric, part="model").format(d) for metric, _, d in METRICS}
    best = {metric: results.interval(f"decoder_{metric}", part="model").format(d) for metric, _, d in METRICS}
    section = shown.section("What there is to gain")
    section.text(
        f"Under the calibration they were trained under, the denoisers have energy distance {trained['energy']}, FD "
        f"{trained['fd']}; training images through the autoencoder alone have {best['energy']} and {best['fd']}."
    )
    shown.findings = answers
    return shown


def _against_simulated(results: TuningResults, worse: float) -> str:
    """What the device adds to as many simulated updates, and to many."""
    where = {"part": "day", "worse": worse}
    told = []
    for base, others in (("simulated", ("surrogate", "spsa", "oracle")), ("simulated many", ("oracle many",))):
        tests = results.tests(
            "energy", {name: {**where, "variant": name} for name in others}, {**where, "variant": base}
        )
        for name, test in tests.items():
            difference, p = difference_cells(test, 3)
            told.append(f"{variants(results)[name]}: {difference}, p (Holm) {p}")
    return f"Energy distance minus that of as many simulated updates: {'; '.join(told) or 'one seed alone'}."


def _by_aer(results: TuningResults, worse: float) -> list[str]:
    """What runner, ledger and Aer make of the same updates, for the seeds that have them."""
    found = []
    for cell in results.cells.values():
        rows = {row["variant"]: row for row in cell.get("rows", ())}
        if cell["parameters"].get("worse") == worse and "surrogate by Aer" in rows:
            aer, sampled = rows["surrogate by Aer"], rows["surrogate"]
            found.append(
                f"Seed {cell['parameters']['seed']} by runner, ledger and Aer: energy distance {aer['energy']:.3f} "
                f"(sampled {sampled['energy']:.3f}, no updates {rows['none']['energy']:.3f}), FD {aer['fd']:.2f} "
                f"({sampled['fd']:.2f}, {rows['none']['fd']:.2f})."
            )
    return found
