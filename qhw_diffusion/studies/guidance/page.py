"""The page of the guidance study, made from its results alone: its sections, and the tables and texts in them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import torch

from qhw_diffusion.experiment import Page, PairedTest, Section, mean_interval, p_text, paired_test, plots
from qhw_diffusion.guidance import QuantumPolicy, load_policy
from qhw_diffusion.studies.guidance.numbers import (
    ORACLE_ROWS,
    base_scale,
    best_constant,
    captions,
    compared_with_all,
    control_tests,
    curves,
    findings,
    floor,
    learning_tests,
    mean_scales,
    names,
    oracle,
    read_samples,
    shares_of_headroom,
    sweep_rows,
    values,
)
from qhw_diffusion.studies.guidance.words import (
    METRIC_LABELS,
    PRIMARY,
    SCHEDULE_LABELS,
    SECOND,
    format_metric,
    kind_of,
    label_of,
    schedule_text,
)

if TYPE_CHECKING:
    from qhw_diffusion.studies.guidance.numbers import GuidanceResults

REFERENCES = ("constant", "free_schedule")
_MOST_COLUMNS, _MOST_LINES = 10, 16

_METRICS_TEXT = (
    "All metrics are measured by the **evaluation classifier**, which no training and no choice ever saw, against "
    "held-out images. Energy: energy distance within each class, in its features: the distance that the reward's "
    "distribution term lowers in the reward classifier's. FD: Fréchet distance in its features (not Inception FID). "
    "KD: unbiased kernel distance in the same features. Accuracy: share of images in which it sees the label asked "
    "for. Diversity: mean distance between two images of one class. Precision, recall: share of generated images near "
    "a real one, and of real images near a generated one. Reward: mean episode reward on the evaluation's initial "
    "noise by the **reward** classifier; zero is the base scale, one a standard deviation between policies that act at "
    "random. Numbers are means over seeds with a 95 % t-interval."
)

_BASE_TEXT = {
    "best": "The policies' base scale is this best constant, g₀ = {g0:g}: they can only win by departing from it.",
    "middle": "The policies' base scale is g₀ = {g0:g}, the middle of the constants whose distance is within three "
    "times the best one's: finding the right scale is part of what they learn, and the best constant is their "
    "baseline.",
}
_SCHEDULE_BASE_TEXT = (
    "The policies' base is a schedule, the tuned one called {name}: what they learn is a correction of it, and a free "
    "schedule starts there."
)
_PAIRING_TEXT = (
    "A pair is one seed: the same labels and initial noise for both sides, and for a trained policy also its own "
    "training. Intervals and p (t) come from the paired t-test; p (Holm) corrects it for all rows of a table together; "
    "Wilcoxon's signed-rank and the exact sign-flip test need no normal distribution."
)


def page(results: GuidanceResults) -> Page:
    """Images, headroom, what came out, tables, tests, the sweep, trajectories, learning, diagnostics, the circuit."""
    c = results.config
    sentences, tone = findings(results)
    of = (
        f"of the text-to-image pipeline {c.models.pipeline}, {len(captions(results))} prompts"
        if c.models.pipeline
        else f"on {c.models.data}"
    )
    shown = Page(
        subtitle=(
            f"Classifier-free guidance {of}, {c.n_steps} sampling steps: a {c.policy.n_qubits}-qubit circuit "
            f"compiled for {c.policy.device} and trained under that device's noise, against classical policies and "
            f"schedules. {c.seeds} seeds, {c.eval_images} images per evaluation."
        ),
        findings=[*_told_table(results), *sentences],
    )
    _steered(shown.section("Prompts and images" if c.models.pipeline else "Images"), results)
    _headroom(shown.section("Headroom"), results)
    _came_out(shown.section("What came out"), results, sentences, tone)
    _samples(shown.section("Samples"), results)
    _table(shown.section("All policies on the same seeds"), results)
    _tests(shown.section("Paired tests"), results)
    _sweep(shown.section("The sweep of constants"), results)
    _trajectories(shown.section("What the policies do"), results)
    _learning(shown.section("Learning"), results)
    _diagnostics(shown.section("Diagnostics"), results)
    if c.main:
        _circuit(shown.section("The circuit"), results)
        if c.models.pipeline:
            _use(shown.section("Use the policy"), results)
    _seeds(shown.section("Seeds and chosen settings"), results)
    return shown


def _steered(section: Section, results: GuidanceResults) -> None:
    main, labels = results.config.main, names(results)
    wanted = ("constant", f"{main}@untrained", main or results.config.policies[0])
    shown = [name for name in wanted if name in results.config.evaluated()]
    kept = {name: read_samples(results.folder, name, 0) for name in shown}
    asked = kept["constant"]["labels"].tolist()
    told = captions(results)
    # the first image of every label, of some of them where there are many
    first = {label: asked.index(label) for label in sorted(set(asked))}
    chosen = list(first)[:: -(-len(first) // _MOST_COLUMNS)]
    rows = [first[label] for label in chosen]
    section.figure(
        plots.steered_images(
            [told[label] if told else str(label) for label in chosen],
            {labels[name]: samples["images"][rows].numpy() for name, samples in kept.items()},
            {labels[name]: kept[name]["g"][:, rows].numpy() for name in shown if not name.endswith("@untrained")},
        ),
        alt=f"Images from the same noise, one column an image and one row each for: "
        f"{', '.join(labels[name] for name in shown)}; below them the guidance scale at each step.",
        caption="One column, one initial noise (seed 0, the first image of each kind). The top row is sampled at the "
        "best constant scale, the others are steered image by image and step by step; below, the scales.",
        wide=True,
    )


def _headroom(section: Section, results: GuidanceResults) -> None:
    section.text(
        "What there is to win, before anybody is compared. The oracle trains pathwise on what the evaluation measures "
        "itself, the energy distance to the held-out images in the evaluation classifier's features. Its rows are no "
        "competitors, nothing else is trained or chosen by them, and they cost as many network evaluations as "
        "everything below. A policy is told by its share: 0 at the best constant, 1 at the better of the two oracles; "
        "a share above 1 says that the oracle's own training, which is short, ended too early."
    )
    columns = ["oracle", *(METRIC_LABELS[key] for key in (PRIMARY, SECOND, "accuracy")), "energy minus best constant"]
    rows = []
    for what in ORACLE_ROWS:
        found = oracle(results, what, PRIMARY)
        base = oracle(results, "constant", PRIMARY)
        cells = [format_metric(key, oracle(results, what, key)) for key in (PRIMARY, SECOND, "accuracy")]
        paired = len(found) > 1 and what != "constant"
        difference = paired_test(found, base).difference.format(3, sign=True) if paired else "–"
        rows.append([label_of(f"oracle_{what}"), *cells, difference])
    section.table(columns, rows)
    labels = names(results)
    shares = shares_of_headroom(results)
    energies = {name: values(results, name, PRIMARY) for name in shares}
    section.table(
        ["policy", METRIC_LABELS[PRIMARY], "share of the headroom"],
        [
            [labels[name], format_metric(PRIMARY, energies[name]), _share(shares[name])]
            for name in sorted(shares, key=lambda name: float(np.mean(energies[name])))
        ],
    )


def _came_out(section: Section, results: GuidanceResults, sentences: list[str], tone: str) -> None:
    section.note(sentences[0], "good" if tone == "good" else "caution" if tone == "caution" else "neutral")
    section.bullets(sentences[1:])
    cards = [
        (f"g = {best_constant(results):g}", "best constant"),
        (SCHEDULE_LABELS.get(results.config.base, f"g₀ = {base_scale(results):g}"), "base of all policies"),
    ]
    main = results.config.main
    for name, label in (("constant", "the best constant"), (main, "the quantum policy")):
        if name is not None:
            cards.append((f"{np.mean(values(results, name, PRIMARY)):.3f}", f"energy distance of {label}"))
    cards.append((f"{np.mean(floor(results, PRIMARY)):.3f}", "energy distance of real training images (floor)"))
    gradients = curves(results, main, "gradients/circuit") if main else []
    if gradients:
        cards.append((f"{min(min(line) for line in gradients):.2g}", "smallest circuit gradient norm in any update"))
    section.numbers(cards)


def _samples(section: Section, results: GuidanceResults) -> None:
    main = results.config.main
    wanted = ("constant", "free_schedule", *results.config.policies[:3], f"{main}@untrained")
    shown = [name for name in wanted if name in results.config.evaluated()]
    labels = names(results)
    kept = {name: read_samples(results.folder, name, 0) for name in shown}
    grids = {labels[name]: samples["images"].numpy() for name, samples in kept.items()}
    section.figure(
        plots.sample_grids(grids, rows=4),
        alt=f"Grids of generated {results.config.models.data} images, one grid per policy: {', '.join(grids)}.",
        caption="Seed 0: the same place in every grid has the same label and the same initial noise.",
        wide=True,
    )


def _table(section: Section, results: GuidanceResults) -> None:
    section.text(_METRICS_TEXT)
    columns, rows, best = results_table(results)
    section.table(
        columns,
        rows,
        emphasised=best,
        caption="The highlighted row has the lowest mean energy distance; see the tests. Scorer calls: images that the "
        "reward classifier looks at for each image made, for the state or the search; the network is called equally "
        "often by all.",
    )
    if results.config.seeds < 2:
        return
    labels, base = names(results), np.array(values(results, "constant", PRIMARY))
    others = [name for name in results.config.evaluated() if name != "constant" and not name.endswith("@untrained")]
    section.figure(
        plots.comparison(
            {labels[name]: (np.array(values(results, name, PRIMARY)) - base).tolist() for name in others},
            xlabel="energy distance minus that of the best constant on the same seed (left is better)",
            mark=0.0,
        ),
        alt="Difference in energy distance to the best constant: a dot per seed, mean and 95 % interval; ordered as "
        "the table.",
    )


def _tests(section: Section, results: GuidanceResults) -> None:
    if results.config.seeds < 2:
        section.text("Paired tests need at least two seeds.")
        return
    section.text(_PAIRING_TEXT)
    labels = names(results)
    for reference in (name for name in REFERENCES if name in results.config.evaluated()):
        columns, rows = paired_table(compared_with_all(results, reference), labels)
        section.table(columns, rows, caption=f"Energy distance against: {labels[reference]} (negative is better).")
    columns, rows = paired_table(compared_with_all(results, "constant", SECOND), labels)
    section.table(columns, rows, caption=f"FD against: {labels['constant']} (negative is better).")
    controls = control_tests(results)
    if controls:
        columns, rows = paired_table(controls, labels)
        section.table(
            columns,
            rows,
            caption="Energy distance of the quantum policy minus that of each control (negative: it is better).",
        )
    learned = learning_tests(results)
    if learned:
        columns, rows = paired_table(learned, labels)
        section.table(
            columns, rows, caption="Reward of each trained policy minus that of the untrained quantum policy."
        )


def _sweep(section: Section, results: GuidanceResults) -> None:
    section.text(
        f"No scale is taken from a paper: {len(sweep_rows(results))} constants were sampled "
        f"({results.config.sweep_images} images each, noise of their own) and the one with the lowest "
        "distance to the **training** images in the **reward** classifier's features was taken: the unbiased kernel "
        "distance that the policies' reward lowers, so that all are tuned on one objective. Every schedule's "
        "parameters were tuned in the same way. The evaluation classifier's curve is drawn for the reader; it decided "
        "nothing.",
        _BASE_TEXT.get(results.config.base, _SCHEDULE_BASE_TEXT).format(
            g0=base_scale(results), name=SCHEDULE_LABELS.get(results.config.base)
        ),
    )
    columns = [row["g"] for row in sweep_rows(results)]
    section.figure(
        plots.sweep_curve(
            columns,
            [row["reward_distance"] for row in sweep_rows(results)],
            [row[SECOND] for row in sweep_rows(results)],
            chosen=best_constant(results),
        ),
        alt="Reward-side distance and judged Fréchet distance against the constant guidance scale; "
        f"the chosen one is {best_constant(results):g}.",
    )
    by_evaluation = min(sweep_rows(results), key=lambda row: row[PRIMARY])["g"]
    if by_evaluation != best_constant(results):
        section.text(
            f"On these images the evaluation classifier would have chosen g = {by_evaluation:g}. The constant that "
            "takes part is the one found without it, as the policies were trained without it."
        )
    section.table(*_sweep_table(results))


def _sweep_table(results: GuidanceResults) -> tuple[list[str], list[list[str]]]:
    rows = [
        [f"{row['g']:g}", f"{row['reward_fd']:.2f}", f"{row['reward_distance']:.4f}",
         f"{100 * row['reward_accuracy']:.1f}", f"{row['energy']:.4f}", f"{row['fd']:.2f}",
         f"{100 * row['accuracy']:.1f}"]
        for row in sweep_rows(results)
    ]  # fmt: skip
    return [
        "g",
        "FD, reward side",
        "distance, reward side",
        "accuracy %, reward side",
        "energy, evaluation",
        "FD, evaluation",
        "accuracy %, evaluation",
    ], rows


def _trajectories(section: Section, results: GuidanceResults) -> None:
    kinds = ("quantum", "quantum_ideal", "matched", "mlp", "frozen", "annealing")
    trained = [name for name in results.config.policies if kind_of(name) in kinds]
    shown: dict[str, np.ndarray] = {}
    for name in trained:
        parts = [read_samples(results.folder, name, seed)["g"] for seed in range(results.config.seeds)]
        shown[label_of(name)] = torch.cat(parts, dim=1).numpy()
    if shown:
        section.figure(
            plots.guidance_trajectories(shown, n_steps=results.config.n_steps, constant=best_constant(results)),
            alt="Guidance scale over the sampling steps for each trained policy: mean and spread over samples.",
            caption="Mean and standard deviation over samples of all seeds. A wide band means that the policy "
            "treats images differently; a thin one that it has become a schedule.",
        )
    _by_label(section, results)
    rows = [
        [names(results)[name], *[f"{g:.2f}" for g in mean_scales(results, name)]] for name in results.config.evaluated()
    ]  # fmt: skip
    steps = [f"step {i}" for i in range(1, results.config.n_steps + 1)]
    section.table(["mean guidance scale", *steps], rows)


def _by_label(section: Section, results: GuidanceResults) -> None:
    main, told = results.config.main, captions(results)
    kept = read_samples(results.folder, main, 0) if main else {}
    if not told or "g_labels" not in kept:
        return
    present = kept["g_labels"].unique().tolist()[:_MOST_LINES]
    lines = {told[label]: kept["g"][:, kept["g_labels"] == label].numpy() for label in present}
    what = "prompt" if results.config.models.pipeline else "label"
    section.figure(
        plots.labelled_trajectories(lines, constant=best_constant(results)),
        alt=f"Mean guidance scale of the quantum policy over the sampling steps, one line for each {what}.",
        caption=f"The quantum policy of seed 0: mean over the images of each {what}. It is not told the {what}; it "
        "sees the sampler's state.",
    )


def _learning(section: Section, results: GuidanceResults) -> None:
    rewards = {label_of(name): curves(results, name, "charts/episodic_return") for name in results.config.policies}
    section.figure(
        plots.learning_curves(rewards, baseline=0.0),
        alt="Mean episode reward over the updates for each policy; thin lines are seeds, thick lines their mean.",
        caption="Rewards during training, with exploration noise; zero (dotted) is the reward of the base scale. "
        " The paired tests above use no exploration noise.",
    )
    gradients = {
        label_of(name): curves(results, name, "gradients/circuit")
        for name in results.config.policies
        if any(max(line) > 0 for line in curves(results, name, "gradients/circuit"))
    }
    if gradients:
        section.figure(
            plots.log_curves(gradients, ylabel="gradient norm of the circuit"),
            alt="Norm of the gradient of the circuit's parameters over the updates, one line per seed.",
            caption="The circuit's own gradient in every update and seed: it must never be zero.",
        )


def _diagnostics(section: Section, results: GuidanceResults) -> None:
    section.text(
        "Looked for in every training and its evaluation; where a seed warns, the worst one's sentence is shown."
    )
    section.table(["policy", "looked for", "outcome", "in words (worst seed)"], finding_rows(results))


def _circuit(section: Section, results: GuidanceResults) -> None:
    policy = load_policy(results.folder / "trainings" / f"{results.config.main}-seed0").policy
    assert isinstance(policy, QuantumPolicy)
    compiled = policy.layer.compiled
    logical, device = policy.circuit.circuit, compiled.device
    section.figure(
        plots.circuit_drawing(logical),
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
        plots.circuit_drawing(compiled.isa, fold=40),
        alt=f"The circuit as compiled for {device.name}: native gates on the physical qubits in use.",
        caption=f"As compiled: native gates of {device.name}, idle qubits left out.",
        wide=True,
    )
    if device.target is not None:
        section.figure(
            plots.device_layout(device.target, compiled.physical_qubits, title=f"{device.name}: qubits in use"),
            alt=f"Coupling map of {device.name} with the physical qubits {list(compiled.physical_qubits)} marked.",
            wide=True,
        )
    provenance = "; ".join(f"{key}: {value}" for key, value in device.provenance.items())
    section.text(f"Noise from the device's calibration data, gate errors and asymmetric readout — {provenance}.")


def _use(section: Section, results: GuidanceResults) -> None:
    c, folder = results.config, results.folder / "trainings" / f"{results.config.main}-seed0"
    section.text("The trained policy steers the pipeline on any prompt that it and the scorer know:")
    section.code(
        f"qhw sample --pipeline {c.models.pipeline} --policy {os.path.relpath(folder)} "
        f'--prompt "{captions(results)[0]}" --out pictures'
    )


def _seeds(section: Section, results: GuidanceResults) -> None:
    c, guidance = results.config, results.cells["calibration"]["guidance"]
    section.text(
        f"Seed k (0 to {c.seeds - 1}) decides the k-th training of every policy (weights, action noise, minibatches, "
        "initial noise) and the labels and initial noise of the k-th evaluation. Sweep and tuning have a seed of their "
        "own. One thread per process."
    )
    section.table(
        ["setting", "value"],
        [
            ["guidance", f"g = clip({'base' if guidance.get('base_schedule') else format(guidance['g0'], 'g')} + a, "
                         f"{guidance['g_min']:g}, {guidance['g_max']:g}), "
                         f"a in ±{guidance['action_limit']:g}"],
            *[[f"tuned: {n}", schedule_text(s)] for n, s in results.cells["choice"]["schedules"].items()],
        ],
    )  # fmt: skip


def results_table(results: GuidanceResults) -> tuple[list[str], list[list[str]], list[int]]:
    """The main table: (columns, rows, indices of the rows with the lowest mean energy distance)."""
    columns = [
        "policy",
        *METRIC_LABELS.values(),
        "reward",
        "parameters",
        "circuits per image",
        "scorer calls per image",
    ]
    rows, means = [], []
    labels = names(results)
    for name in results.config.evaluated():
        cells = [labels[name]]
        cells += [format_metric(key, values(results, name, key)) for key in METRIC_LABELS]
        cells.append(mean_interval(values(results, name, "return")).format(2))
        parameters = int(values(results, name, "n_parameters")[0])
        cells += [f"{parameters:,}", f"{values(results, name, 'circuits_per_image')[0]:g}"]
        cells.append(f"{values(results, name, 'scorer_evaluations_per_image')[0]:g}")
        rows.append(cells)
        means.append(float("inf") if name.endswith("@untrained") else float(np.mean(values(results, name, PRIMARY))))
    real = [format_metric(key, floor(results, key)) for key in METRIC_LABELS]
    rows.append(["real training images (floor)", *real, "–", "–", "–", "–"])
    best = min(means)
    return columns, rows, [index for index, mean in enumerate(means) if mean == best]


def paired_table(tests: dict[str, PairedTest], labels: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """Table of paired tests: (columns, rows)."""
    columns = ["against it", "difference [95 %]", "p (Holm)", "p (t)", "p (Wilcoxon)", "p (sign flip)", "effect d_z"]
    rows = [
        [
            labels[name],
            test.difference.format(3, sign=True),
            _p(test.p_holm),
            _p(test.t_p),
            _p(test.wilcoxon_p),
            _p(test.sign_flip_p),
            f"{test.effect_size:+.2f}",
        ]
        for name, test in tests.items()
    ]
    return columns, rows


def finding_rows(results: GuidanceResults) -> list[list[str]]:
    """Diagnostics as table rows [policy, what was looked for, outcome over seeds, sentence of the worst seed]."""
    order = {"ok": 0, "note": 1, "warning": 2}
    rows = []
    for policy in results.config.policies:
        per_seed = [
            [*results.cells[f"training-{policy}-seed{k}"]["findings"],
             *results.cells[f"evaluation-{policy}-seed{k}"]["findings"]]
            for k in range(results.config.seeds)
        ]  # fmt: skip
        names = list(dict.fromkeys(f["name"] for findings in per_seed for f in findings))
        for name in names:
            same = [f for findings in per_seed for f in findings if f["name"] == name]
            worst = max(same, key=lambda f: order[f["severity"]])
            bad = sum(f["severity"] == "warning" for f in same)
            outcome = f"warning in {bad} of {len(same)}" if bad else worst["severity"]
            rows.append([label_of(policy), name, outcome, worst["sentence"]])
    return rows


def _told_table(results: GuidanceResults) -> list[str]:
    """Energy distance, FD and accuracy of all, as lines of text; the headroom first."""
    labels = names(results)

    def line(name: str, found: dict[str, list[float]]) -> str:
        energy, fd = (format_metric(key, found[key]) for key in (PRIMARY, SECOND))
        return f"{name:<52} energy {energy:>22} FD {fd:>20} accuracy {np.mean(found['accuracy']):>6.1%}"

    keys = (PRIMARY, SECOND, "accuracy")
    return [
        *(line(label_of(f"oracle_{what}"), {k: oracle(results, what, k) for k in keys}) for what in ORACLE_ROWS),
        *(line(labels[name], {k: values(results, name, k) for k in keys}) for name in results.config.evaluated()),
        line("real training images (floor)", {k: floor(results, k) for k in keys}),
    ]


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:+.0%}"


def _p(value: float) -> str:
    return p_text(value).removeprefix("p = ").removeprefix("p ")
