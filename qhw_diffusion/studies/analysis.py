"""From the result files of a guidance study to tables, tests, findings and a verdict in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qhw_diffusion.errors import DamagedFileError
from qhw_diffusion.experiment.statistics import PairedTest, mean_interval, paired_test, with_holm
from qhw_diffusion.runs import RunFolder, atomic_write_json
from qhw_diffusion.studies import study_work as work
from qhw_diffusion.studies.rivals import Schedule
from qhw_diffusion.studies.settings import StudyConfig, label_of

PRIMARY = "fd"
REFERENCES = ("constant", "limited_interval")
METRIC_LABELS = {
    "fd": "FD ↓",
    "kd": "KD ↓",
    "accuracy": "accuracy ↑ (%)",
    "diversity": "diversity",
    "precision": "precision ↑",
    "recall": "recall ↑",
}
_SCALE = {"accuracy": 100.0}
_DIGITS = {"fd": 2, "kd": 3, "accuracy": 1}


@dataclass(frozen=True)
class Results:
    """Everything a finished study found.

    values: {controller: {metric: [one per seed]}}, metrics as judged plus "return" (reward side, see `measure`);
    sweep: one row per constant; floor: real-against-real value of each judged metric, one per seed; curves:
    {actor: {metric: [one list per seed]}} over updates; findings: {actor: [findings of each seed]}.
    """

    root: Path
    config: StudyConfig
    manifest: dict[str, Any]
    schedules: dict[str, Schedule]
    guidance: dict[str, Any]
    sweep: list[dict[str, float]]
    values: dict[str, dict[str, list[float]]]
    details: dict[str, dict[str, Any]]
    floor: dict[str, list[float]]
    curves: dict[str, dict[str, list[list[float]]]]
    findings: dict[str, list[list[dict[str, Any]]]]

    @property
    def best_constant(self) -> float:
        """The best swept constant."""
        return self.schedules["constant"].mean

    @property
    def base_scale(self) -> float:
        """g0 of every actor."""
        return float(self.guidance["g0"])

    def trained(self) -> tuple[str, ...]:
        """Actors, without the quantum policy's other guises."""
        return self.config.actors

    def labels(self) -> dict[str, str]:
        """Name in tables of every controller; schedules with their tuned parameters."""
        return {
            name: self.schedules[name].describe() if name in self.schedules else label_of(name) for name in self.values
        }


def load_results(run: RunFolder) -> Results:
    """Read a finished study.

    Raises RunFolderError when a piece of work is missing, DamagedFileError when one is not what this version writes.
    """
    try:
        return _read(run)
    except (KeyError, TypeError, IndexError) as error:
        raise DamagedFileError(
            f"a result in {run.path} is damaged or of another version of the package ({error!r} is missing there); "
            "delete that file and resume the study, or use the version that wrote it"
        ) from error


def _read(run: RunFolder) -> Results:
    config, root = StudyConfig.from_dict(run.config), run.path
    choices = work.read_result(root / "choices.json")
    sweep = []
    for g in config.constants:
        row = work.read_result(work.sweep_file(root, f"constant-{g:g}"))
        judged = {f"judge_{key}": value for key, value in row["judged"].items()}
        side = {f"reward_{key}": row["reward_side"][key] for key in ("distance", "fd", "kd", "accuracy")}
        sweep.append({"g": g, **side, **judged})
    values: dict[str, dict[str, list[float]]] = {}
    details: dict[str, dict[str, Any]] = {}
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for name in config.evaluated():
        rows = [work.read_result(work.evaluation_file(root, name, seed)) for seed in range(config.seeds)]
        metrics = {key: [float(row["judged"][key]) for row in rows] for key in rows[0]["judged"]}
        metrics["return"] = [float(row["reward_side"]["return"]) for row in rows]
        metrics["reward_accuracy"] = [float(row["reward_side"]["accuracy"]) for row in rows]
        values[name] = metrics
        details[name] = {
            "parameters": int(rows[0]["parameters"]["total"]),
            "circuit_parameters": int(rows[0]["parameters"].get("circuit", 0)),
            "circuits": int(rows[0]["circuits"]),
            "circuits_per_image": rows[0]["circuits"] / rows[0]["n_images"],
            "g_mean": np.mean([row["g_mean"] for row in rows], axis=0).tolist(),
        }
        if name in config.actors:
            found[name] = [row.get("findings", []) for row in rows]
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for actor in config.actors:
        curves[actor] = {}
        for seed in range(config.seeds):
            trained = RunFolder.open(work.training_folder(root, actor, seed), kind="guidance")
            log = trained.metrics()
            for key in ("charts/episodic_return", "gradients/circuit", "charts/delta_g_abs", "losses/entropy"):
                curves[actor].setdefault(key, []).append([float(row[key]) for row in log])
            of_training = work.read_findings(trained.path / "findings.json")
            found[actor][seed] = [*of_training, *found[actor][seed]]
    floor = work.read_result(root / "floor.json")
    return Results(
        root=root,
        config=config,
        manifest=run.manifest,
        schedules={name: Schedule(**s) for name, s in choices["schedules"].items()},
        guidance=work.read_result(root / "calibration.json")["guidance"],
        sweep=sweep,
        values=values,
        details=details,
        floor={key: [row[key] for row in floor["rows"]] for key in floor["rows"][0]},
        curves=curves,
        findings=found,
    )


def rival_tests(results: Results, reference: str, *, metric: str = PRIMARY) -> dict[str, PairedTest]:
    """Paired tests of every other controller against one, seed by seed; Holm-corrected as one family.

    Empty with fewer than two seeds. The untrained policy is left out: it is a starting point, not a rival.
    """
    if results.config.seeds < 2:
        return {}
    base = results.values[reference][metric]
    rivals = [name for name in results.values if name != reference and not name.endswith("@untrained")]
    return with_holm({name: paired_test(results.values[name][metric], base) for name in rivals})


def control_tests(results: Results) -> dict[str, PairedTest]:
    """What the circuit contributes: the quantum policy against each control, FD, seed by seed, one Holm family."""
    if "quantum" not in results.values or results.config.seeds < 2:
        return {}
    own = results.values["quantum"][PRIMARY]
    names = [name for name in (*results.config.actors, "quantum@ideal") if name != "quantum"]
    return with_holm({name: paired_test(own, results.values[name][PRIMARY]) for name in names})


def learning_tests(results: Results) -> dict[str, PairedTest]:
    """Did training raise the reward: each quantum policy's return against its untrained self, seed by seed."""
    if "quantum@untrained" not in results.values or results.config.seeds < 2:
        return {}
    before = results.values["quantum@untrained"]["return"]
    return with_holm({name: paired_test(results.values[name]["return"], before) for name in results.config.actors})


def results_table(results: Results) -> tuple[list[str], list[list[str]], list[int]]:
    """The main table: (columns, rows, indices of the rows with the lowest mean FD)."""
    columns = ["controller", *METRIC_LABELS.values(), "reward", "parameters", "circuits per image"]
    rows, means = [], []
    labels = results.labels()
    for name, metrics in results.values.items():
        cells = [labels[name]]
        cells += [format_metric(key, metrics[key]) for key in METRIC_LABELS]
        cells.append(mean_interval(metrics["return"]).format(2))
        detail = results.details[name]
        cells += [f"{detail['parameters']:,}", f"{detail['circuits_per_image']:g}"]
        rows.append(cells)
        means.append(float("inf") if name.endswith("@untrained") else float(np.mean(metrics[PRIMARY])))
    floor = [format_metric(key, results.floor[key]) for key in METRIC_LABELS]
    rows.append(["real training images (floor)", *floor, "–", "–", "–"])
    best = min(means)
    return columns, rows, [index for index, mean in enumerate(means) if mean == best]


def paired_table(
    tests: dict[str, PairedTest], labels: dict[str, str], *, digits: int = 2
) -> tuple[list[str], list[list[str]]]:
    """Table of paired tests: (columns, rows)."""
    columns = ["against it", "difference [95 %]", "p (Holm)", "p (t)", "p (Wilcoxon)", "p (sign flip)", "effect d_z"]
    rows = [
        [
            labels[name],
            _signed(test, digits),
            _p(test.p_holm),
            _p(test.t_p),
            _p(test.wilcoxon_p),
            _p(test.sign_flip_p),
            f"{test.effect_size:+.2f}",
        ]
        for name, test in tests.items()
    ]
    return columns, rows


def verdict(results: Results) -> tuple[list[str], str]:
    """(sentences, tone): who beat the best constant, or that nobody did."""
    seeds = results.config.seeds
    labels = results.labels()
    conditions = f"{results.config.n_steps} sampling steps, {seeds} seeds, {results.config.eval_images} images each"
    if seeds < 2:
        return [f"One seed only ({conditions}): nothing can be said about who is better."], "caution"
    tests = rival_tests(results, "constant")
    winners = [n for n, t in tests.items() if t.significant() and t.difference.mean < 0]
    losers = [n for n, t in tests.items() if t.significant() and t.difference.mean > 0]
    sentences = []
    base = results.schedules["constant"].describe()
    if winners:
        listed = "; ".join(
            f"**{labels[n]}** by {-tests[n].difference.mean:.2f} ({p_text(tests[n].p_holm)})" for n in winners
        )
        sentences.append(f"The {base} was beaten in Fréchet distance by: {listed} ({conditions}).")
    else:
        sentences.append(f"**Nobody beat the {base}** in Fréchet distance ({conditions}; paired, Holm-corrected).")
    lowest = min(tests, key=lambda n: tests[n].difference.mean)
    if lowest not in winners:
        t = tests[lowest]
        where = "lower" if t.difference.mean < 0 else "higher"
        sentences.append(
            f"The nearest rival on average is {labels[lowest]}: {abs(t.difference.mean):.2f} {where} than the constant "
            f"[{t.difference.low:+.2f}, {t.difference.high:+.2f}], {p_text(t.p_holm)}."
        )
    if losers:
        sentences.append(f"Worse than the constant beyond chance: {'; '.join(labels[n] for n in losers)}.")
    sentences += _quantum_sentences(results, tests, labels)
    if seeds <= 5:
        sentences.append(
            f"With {seeds} seeds the exact sign-flip test cannot go below p = {2 / 2**seeds:.3g}, and only large "
            "differences can show; ten seeds or more are needed for a claim."
        )
    return sentences, "good" if any(n in results.config.actors for n in winners) else "neutral"


def finding_rows(results: Results) -> list[list[str]]:
    """Diagnostics as table rows [actor, what was looked for, outcome over seeds, sentence of the worst seed]."""
    order = {"ok": 0, "note": 1, "warning": 2}
    rows = []
    for actor, per_seed in results.findings.items():
        names = list(dict.fromkeys(f["name"] for findings in per_seed for f in findings))
        for name in names:
            same = [f for findings in per_seed for f in findings if f["name"] == name]
            worst = max(same, key=lambda f: order[f["severity"]])
            bad = sum(f["severity"] == "warning" for f in same)
            outcome = f"warning in {bad} of {len(same)}" if bad else worst["severity"]
            rows.append([label_of(actor), name, outcome, worst["sentence"]])
    return rows


def summary(results: Results) -> dict[str, Any]:
    """All numbers of a study as JSON, for results.json."""

    def tests(found: dict[str, PairedTest]) -> dict[str, Any]:
        return {name: test.as_dict() for name, test in found.items()}

    return {
        "config": results.config.to_dict(),
        "manifest": results.manifest,
        "schedules": {name: s.to_dict() for name, s in results.schedules.items()},
        "sweep": results.sweep,
        "floor": results.floor,
        "values": results.values,
        "details": results.details,
        "tests": {reference: tests(rival_tests(results, reference)) for reference in REFERENCES},
        "control_tests": tests(control_tests(results)),
        "learning_tests": tests(learning_tests(results)),
        "verdict": verdict(results)[0],
    }


def write_summary(results: Results) -> Path:
    """results.json in the study's folder."""
    return atomic_write_json(results.root / "results.json", summary(results))


def format_metric(key: str, values: Sequence[float]) -> str:
    """Mean and interval of a metric in the unit of `METRIC_LABELS`."""
    scale = _SCALE.get(key, 1.0)
    return mean_interval([scale * value for value in values]).format(_DIGITS.get(key, 3))


def _quantum_sentences(results: Results, tests: dict[str, PairedTest], labels: dict[str, str]) -> list[str]:
    sentences = []
    if "quantum" in tests:
        t = tests["quantum"]
        sentences.append(
            f"The quantum controller trained under noise differs from the best constant by {_signed(t, 2)} in FD "
            f"(negative is better; {p_text(t.p_holm)})."
        )
    learned = learning_tests(results).get("quantum")
    if learned is not None:
        how = "raised" if learned.difference.mean > 0 else "lowered"
        sure = "" if learned.significant() else ", within chance"
        sentences.append(
            f"Training {how} its reward by {_signed(learned, 2)} against the untrained policy (in standard deviations "
            f"between random controllers; {p_text(learned.p_holm)}{sure})."
        )
    for name, test in control_tests(results).items():
        if name == "quantum@ideal":
            what = "The same weights run without noise change FD by"
            shown = f"{-test.difference.mean:+.3f} [{-test.difference.high:+.3f}, {-test.difference.low:+.3f}]"
            sentences.append(f"{what} {shown}.")
        elif name in ("frozen", "matched", "unentangled", "mlp"):
            if not test.significant():
                sentences.append(f"No difference beyond chance to the control: {labels[name]} ({_signed(test, 2)}).")
            else:
                better = "better" if test.difference.mean < 0 else "worse"
                sentences.append(f"It is {better} than the control: {labels[name]} ({_signed(test, 2)}).")
    return sentences


def _signed(test: PairedTest, digits: int) -> str:
    d = test.difference
    return f"{d.mean:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]"


def p_text(value: float) -> str:
    """`p = 0.020` or `p < 0.001`."""
    return f"p {_p(value)}" if value < 0.001 else f"p = {_p(value)}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
