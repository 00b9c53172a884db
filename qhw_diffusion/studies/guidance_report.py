"""The report of a guidance study, rendered from its result files alone: HTML for people, Markdown for the docs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qhw_diffusion.experiment import plots as figures
from qhw_diffusion.experiment.page import Page as Report
from qhw_diffusion.experiment.page import Section, markdown_table
from qhw_diffusion.guidance import QuantumActor
from qhw_diffusion.runs import atomic_write_text
from qhw_diffusion.studies import analysis
from qhw_diffusion.studies import study_work as work
from qhw_diffusion.studies.analysis import Results
from qhw_diffusion.studies.settings import label_of

_METRICS_TEXT = (
    "All metrics are measured by the **judge**, a classifier that no training and no choice ever saw, against "
    "held-out images. FD: Fréchet distance in the judge's features (not Inception FID). KD: unbiased kernel "
    "distance in the same features. Accuracy: share of images in which the judge sees the label asked for. "
    "Diversity: mean distance between two images of one class. Precision, recall: share of generated images near "
    "a real one, and of real images near a generated one. Reward: mean episode reward on the evaluation starts by "
    "the **reward** classifier; zero is the base scale, one a standard deviation between controllers that act at "
    "random. Numbers are means over seeds with a 95 % t-interval."
)

_BASE_TEXT = {
    "best": "The actors' base scale is this best constant, g₀ = {g0:g}: they can only win by departing from it.",
    "middle": "The actors' base scale is g₀ = {g0:g}, the middle of the constants whose distance is within three times "
    "the best one's: finding the right scale is part of what they learn, and the best constant is their rival.",
}


def render_report(results: Results, *, title: str, command: str, path: Path | None = None) -> Path:
    """Write report.html (into the study's folder unless `path` is given) and return its path."""
    report = Report(title, subtitle=_subtitle(results))
    _verdict(report.section("What came out"), results)
    _samples(report.section("Samples"), results)
    _table(report.section("All controllers on the same seeds"), results)
    _rivals(report.section("Paired tests"), results)
    _sweep(report.section("The sweep of constants"), results)
    _trajectories(report.section("What the controllers do"), results)
    _learning(report.section("Learning"), results)
    _diagnostics(report.section("Diagnostics"), results)
    if "quantum" in results.config.actors:
        _circuit(report.section("The circuit"), results)
    _reproduce(report.section("How to reproduce"), results, command)
    return report.save(path if path is not None else results.root / "report.html")


def render_markdown(results: Results, *, title: str, command: str, path: Path) -> Path:
    """The same results as a Markdown page (tables, tests, verdict, commands; no figures)."""
    config = results.config
    labels = results.labels()
    columns, rows, _ = analysis.results_table(results)
    parts = [f"# {title}\n", _subtitle(results) + "\n", "```\n" + command + "\n```\n"]
    parts += ["## What came out\n", "\n".join(f"- {line}" for line in analysis.verdict(results)[0]) + "\n"]
    parts += ["## All controllers on the same seeds\n", _METRICS_TEXT + "\n", markdown_table(columns, rows)]
    for reference in analysis.REFERENCES:
        tests = analysis.rival_tests(results, reference)
        if tests:
            parts += [f"## Against: {labels[reference]}\n", _pairing_text(results) + "\n"]
            parts.append(markdown_table(*analysis.paired_table(tests, labels)))
    controls = analysis.control_tests(results)
    if controls:
        parts += [
            "## The quantum controller against its controls\n",
            markdown_table(*analysis.paired_table(controls, labels)),
        ]
    learned = analysis.learning_tests(results)
    if learned:
        parts += [
            "## Reward: trained against the untrained policy\n",
            markdown_table(*analysis.paired_table(learned, labels)),
        ]
    parts += ["## Sweep of constants\n", markdown_table(*_sweep_table(results))]
    parts += [
        "## Diagnostics\n",
        markdown_table(["actor", "looked for", "outcome", "worst seed"], analysis.finding_rows(results)),
    ]
    parts += ["## Settings\n", markdown_table(["setting", "value"], _settings(results))]
    parts.append(f"Seeds 0 to {config.seeds - 1}; {_versions(results)}\n")
    return atomic_write_text(path, "\n".join(parts))


def _subtitle(results: Results) -> str:
    config = results.config
    return (
        f"Classifier-free guidance on {config.models.data}, {config.n_steps} DDIM steps: a "
        f"{config.actor.n_qubits}-qubit circuit compiled for {config.actor.device} and trained under "
        f"that device's noise, against classical "
        f"controllers and tuned schedules. {config.seeds} seeds, {config.eval_images} images per evaluation."
    )


def _verdict(section: Section, results: Results) -> None:
    sentences, tone = analysis.verdict(results)
    section.note(sentences[0], "good" if tone == "good" else "caution" if tone == "caution" else "neutral")
    section.bullets(sentences[1:])
    cards = [
        (f"g = {results.best_constant:g}", "best constant"),
        (f"g₀ = {results.base_scale:g}", "base of all actors"),
    ]
    for name, label in (("constant", "FD of the best constant"), ("quantum", "FD of the quantum controller")):
        if name in results.values:
            cards.append((f"{np.mean(results.values[name]['fd']):.2f}", label))
    cards.append((f"{np.mean(results.floor['fd']):.2f}", "FD of real training images (floor)"))
    gradients = results.curves.get("quantum", {}).get("gradients/circuit")
    if gradients:
        cards.append((f"{min(min(line) for line in gradients):.2g}", "smallest circuit gradient norm in any update"))
    section.numbers(cards)


def _samples(section: Section, results: Results) -> None:
    wanted = ("constant", "limited_interval", "quantum", "matched", "frozen", "quantum@untrained")
    shown = [name for name in wanted if name in results.values]
    labels = results.labels()
    kept = {name: work.read_samples(results.root, name, 0) for name in shown}
    grids = {labels[name]: samples["images"].numpy() for name, samples in kept.items()}
    section.figure(
        figures.sample_grids(grids, rows=4),
        alt=f"Grids of generated {results.config.models.data} images, one grid per controller: {', '.join(grids)}.",
        caption="Seed 0: the same place in every grid has the same label and the same starting noise.",
        wide=True,
    )


def _table(section: Section, results: Results) -> None:
    section.text(_METRICS_TEXT)
    columns, rows, best = analysis.results_table(results)
    section.table(columns, rows, emphasised=best, caption="The highlighted row has the lowest mean FD; see the tests.")
    if results.config.seeds < 2:
        return
    labels, base = results.labels(), np.array(results.values["constant"]["fd"])
    rivals = [name for name in results.values if name != "constant" and not name.endswith("@untrained")]
    section.figure(
        figures.comparison(
            {labels[name]: (np.array(results.values[name]["fd"]) - base).tolist() for name in rivals},
            xlabel="FD minus that of the best constant on the same seed (left is better)",
            mark=0.0,
        ),
        alt="Difference in FD to the best constant: a dot per seed, mean and 95 % interval; ordered as the table.",
    )


def _rivals(section: Section, results: Results) -> None:
    if results.config.seeds < 2:
        section.text("Paired tests need at least two seeds.")
        return
    section.text(_pairing_text(results))
    labels = results.labels()
    for reference in analysis.REFERENCES:
        columns, rows = analysis.paired_table(analysis.rival_tests(results, reference), labels)
        section.table(columns, rows, caption=f"FD against: {labels[reference]} (negative is better).")
    controls = analysis.control_tests(results)
    if controls:
        columns, rows = analysis.paired_table(controls, labels)
        section.table(
            columns, rows, caption="FD of the quantum controller minus that of each control (negative: it is better)."
        )
    learned = analysis.learning_tests(results)
    if learned:
        columns, rows = analysis.paired_table(learned, labels)
        section.table(columns, rows, caption="Reward of each trained actor minus that of the untrained quantum policy.")


def _pairing_text(results: Results) -> str:
    return (
        "A pair is one seed: the same labels and starting noise for both sides, and for a trained actor also its own "
        "training. Intervals and p (t) come from the paired t-test; p (Holm) corrects it for all rows of a table "
        "together; Wilcoxon's signed-rank and the exact sign-flip test need no normal distribution."
    )


def _sweep(section: Section, results: Results) -> None:
    section.text(
        f"No scale is taken from a paper: {len(results.sweep)} constants were sampled "
        f"({results.config.sweep_images} images each, starts of their own) and the one with the lowest "
        "distance to the **training** images in the **reward** classifier's features was taken: the unbiased kernel "
        "distance that the actors' reward lowers, so that all are tuned on one objective. Every schedule's parameters "
        "were tuned in the same way. The judge's curve is drawn for the reader; it decided nothing.",
        _BASE_TEXT[results.config.base].format(g0=results.base_scale),
    )
    columns = [row["g"] for row in results.sweep]
    section.figure(
        figures.sweep_curve(
            columns,
            [row["reward_distance"] for row in results.sweep],
            [row["judge_fd"] for row in results.sweep],
            chosen=results.best_constant,
        ),
        alt="Reward-side distance and judged Fréchet distance against the constant guidance scale; "
        f"the chosen one is {results.best_constant:g}.",
    )
    by_judge = min(results.sweep, key=lambda row: row["judge_fd"])["g"]
    if by_judge != results.best_constant:
        section.text(
            f"On these images the judge would have chosen g = {by_judge:g}. The constant that takes part is the "
            "one found without the judge, as the actors were trained without it."
        )
    section.table(*_sweep_table(results))


def _sweep_table(results: Results) -> tuple[list[str], list[list[str]]]:
    rows = [
        [f"{row['g']:g}", f"{row['reward_fd']:.2f}", f"{row['reward_distance']:.4f}",
         f"{100 * row['reward_accuracy']:.1f}", f"{row['judge_fd']:.2f}", f"{100 * row['judge_accuracy']:.1f}"]
        for row in results.sweep
    ]  # fmt: skip
    return [
        "g",
        "FD, reward side",
        "distance, reward side",
        "accuracy %, reward side",
        "FD, judge",
        "accuracy %, judge",
    ], rows


def _trajectories(section: Section, results: Results) -> None:
    names = [
        name for name in ("quantum", "quantum_ideal", "matched", "mlp", "frozen", "annealing") if name in results.values
    ]
    shown: dict[str, np.ndarray] = {}
    for name in names:
        parts = [work.read_samples(results.root, name, seed)["g"] for seed in range(results.config.seeds)]
        shown[label_of(name)] = torch.cat(parts, dim=1).numpy()
    if shown:
        section.figure(
            figures.guidance_trajectories(shown, n_steps=results.config.n_steps, constant=results.best_constant),
            alt="Guidance scale over the sampling steps for each trained actor: mean and spread over samples.",
            caption="Mean and standard deviation over samples of all seeds. A wide band means that the controller "
            "treats images differently; a thin one that it has become a schedule.",
        )
    rows = [
        [results.labels()[name], *[f"{g:.2f}" for g in results.details[name]["g_mean"]]] for name in results.values
    ]  # fmt: skip
    steps = [f"step {i}" for i in range(1, results.config.n_steps + 1)]
    section.table(["mean guidance scale", *steps], rows)


def _learning(section: Section, results: Results) -> None:
    curves = {label_of(name): results.curves[name]["charts/episodic_return"] for name in results.config.actors}
    section.figure(
        figures.learning_curves(curves, baseline=0.0),
        alt="Mean episode reward over the updates for each actor; thin lines are seeds, thick lines their mean.",
        caption="Rewards during training, with exploration noise; zero (dotted) is the reward of the base scale. "
        " The paired tests above use no exploration noise.",
    )
    gradients = {
        label_of(name): results.curves[name]["gradients/circuit"]
        for name in results.config.actors
        if any(max(line) > 0 for line in results.curves[name]["gradients/circuit"])
    }
    if gradients:
        section.figure(
            figures.log_curves(gradients, ylabel="gradient norm of the circuit"),
            alt="Norm of the gradient of the circuit's parameters over the updates, one line per seed.",
            caption="The circuit's own gradient in every update and seed: it must never be zero.",
        )


def _diagnostics(section: Section, results: Results) -> None:
    section.text(
        "Looked for in every training and its evaluation; where a seed warns, the worst one's sentence is shown."
    )
    section.table(["actor", "looked for", "outcome", "in words (worst seed)"], analysis.finding_rows(results))


def _circuit(section: Section, results: Results) -> None:
    actor = work.load_trained(str(results.root), "quantum", 0)
    assert isinstance(actor, QuantumActor)
    compiled = actor.layer.compiled
    logical, device = actor.circuit.circuit, compiled.device
    section.figure(
        figures.circuit_drawing(logical),
        alt=f"The policy circuit as drawn: {logical.num_qubits} qubits, angle encoding of the state, then layers of "
        "rotations and CNOTs.",
        caption=f"As drawn: {logical.num_qubits} qubits, {compiled.n_inputs} inputs x, {compiled.n_weights} weights w, "
        f"{logical.num_nonlocal_gates()} CNOTs. Each ⟨Z⟩ is one observable.",
        wide=True,
    )
    duration = f"{compiled.duration * 1e6:.2f} µs" if compiled.duration else "–"
    section.numbers(
        [
            (str(device.n_qubits or logical.num_qubits), f"qubits of {device.name}"),
            (", ".join(map(str, compiled.physical_qubits)), "physical qubits in use"),
            (str(compiled.depth), "depth, every gate counted"),
            (str(compiled.two_qubit_gates), "two-qubit gates"),
            (duration, "duration without measurement"),
        ]
    )
    section.figure(
        figures.circuit_drawing(compiled.isa, fold=40),
        alt=f"The circuit as compiled for {device.name}: native gates on the physical qubits in use.",
        caption=f"As compiled: native gates of {device.name}, idle qubits left out.",
        wide=True,
    )
    if device.target is not None:
        section.figure(
            figures.device_layout(device.target, compiled.physical_qubits, title=f"{device.name}: qubits in use"),
            alt=f"Coupling map of {device.name} with the physical qubits {list(compiled.physical_qubits)} marked.",
            wide=True,
        )
    provenance = "; ".join(f"{key}: {value}" for key, value in device.provenance.items())
    section.text(f"Noise from the device's calibration data, gate errors and asymmetric readout — {provenance}.")


def _reproduce(section: Section, results: Results, command: str) -> None:
    config = results.config
    section.code(command, caption="The same numbers on the same machine, bit for bit:")
    section.text(
        f"Seed k (0 to {config.seeds - 1}) decides the k-th training of every actor (weights, action noise, "
        f"minibatches, training starts) and, as {work.EVALUATION_SEED:,} + k, the labels and starting "
        f"noise of the k-th evaluation. "
        f"Sweep and tuning use seed {work.SWEEP_SEED:,}. One thread per process."
    )
    section.table(["setting", "value"], _settings(results))
    section.text(_versions(results))


def _settings(results: Results) -> list[list[str]]:
    config, guidance = results.config, results.guidance
    rows: list[list[Any]] = [
        ["data set, steps", f"{config.models.data}, {config.n_steps} DDIM steps (η = 0), {config.spacing} spacing"],
        ["guidance", f"g = clip({guidance['g0']:g} + a, {guidance['g_min']:g}, {guidance['g_max']:g}), "
                     f"a in ±{guidance['action_limit']:g}"],
        ["reward", ", ".join(f"{k} {v:g}" for k, v in config.reward.to_dict().items() if isinstance(v, float) and v)],
        ["PPO", ", ".join(f"{k} {v}" for k, v in config.ppo.to_dict().items() if k != "seed" and v is not None)],
        ["circuit", ", ".join(f"{k} {v}" for k, v in config.actor.to_dict().items() if k != "kind")],
        *[[f"tuned: {name}", results.schedules[name].describe()] for name in results.schedules],
        ["images", f"sweep {config.sweep_images}, tuning {config.tune_images}, evaluation {config.eval_images}"],
    ]  # fmt: skip
    return rows


def _versions(results: Results) -> str:
    m = results.manifest
    packages: Sequence[str] = [f"{name} {version}" for name, version in m["packages"].items()]
    return (
        f"Started {m['created']} with qhw-diffusion {m['qhw_diffusion']} (commit {m['commit'] or 'unknown'}), "
        f"Python {m['python']}, {', '.join(packages)}; {m['platform']}, {m['cpu_count']} CPUs."
    )
