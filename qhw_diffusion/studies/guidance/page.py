"""The page of the guidance study, made from its results alone: tables, tests, findings and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.checkpoints import read_tensors
from qhw_diffusion.experiment import (
    Page,
    PairedTest,
    Results,
    Section,
    mean_interval,
    p_text,
    paired_test,
    plots,
    with_holm,
)
from qhw_diffusion.guidance import QuantumPolicy, load_policy

if TYPE_CHECKING:
    from qhw_diffusion.studies.guidance.experiment import GuidanceStudyConfig

    GuidanceResults = Results[GuidanceStudyConfig]

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
SCHEDULE_LABELS = {
    "constant": "best constant",
    "linear_up": "linear, rising",
    "linear_down": "linear, falling",
    "cosine_up": "cosine, rising",
    "limited_interval": "limited interval",
    "clamped_linear": "clamped linear",
    "exponential": "exponential",
}
POLICY_LABELS = {
    "quantum": "quantum, trained under noise",
    "quantum_ideal": "quantum, trained without noise",
    "chain": "quantum, chain instead of ring",
    "reuploading": "quantum, data re-uploading",
    "unentangled": "unentangled circuit",
    "frozen": "frozen random circuit",
    "matched": "MLP, matched size",
    "mlp": "MLP, 9,282 parameters",
    "annealing": "annealing MLP (2 inputs)",
}

_METRICS_TEXT = (
    "All metrics are measured by the **evaluation classifier**, which no training and no choice ever saw, against "
    "held-out images. FD: Fréchet distance in its features (not Inception FID). KD: unbiased kernel "
    "distance in the same features. Accuracy: share of images in which it sees the label asked for. "
    "Diversity: mean distance between two images of one class. Precision, recall: share of generated images near "
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


_PAIRING_TEXT = (
    "A pair is one seed: the same labels and initial noise for both sides, and for a trained policy also its own "
    "training. Intervals and p (t) come from the paired t-test; p (Holm) corrects it for all rows of a table together; "
    "Wilcoxon's signed-rank and the exact sign-flip test need no normal distribution."
)


def page(results: GuidanceResults) -> Page:
    """What came out, samples, tables, tests, the sweep, trajectories, learning, diagnostics, the circuit."""
    c = results.config
    sentences, tone = findings(results)
    shown = Page(
        subtitle=(
            f"Classifier-free guidance on {c.models.data}, {c.n_steps} DDIM steps: a {c.policy.n_qubits}-qubit circuit "
            f"compiled for {c.policy.device} and trained under that device's noise, against classical policies and "
            f"tuned schedules. {c.seeds} seeds, {c.eval_images} images per evaluation."
        ),
        findings=[*_told_table(results), *sentences],
    )
    _came_out(shown.section("What came out"), results, sentences, tone)
    _samples(shown.section("Samples"), results)
    _table(shown.section("All policies on the same seeds"), results)
    _tests(shown.section("Paired tests"), results)
    _sweep(shown.section("The sweep of constants"), results)
    _trajectories(shown.section("What the policies do"), results)
    _learning(shown.section("Learning"), results)
    _diagnostics(shown.section("Diagnostics"), results)
    if "quantum" in c.policies:
        _circuit(shown.section("The circuit"), results)
    _seeds(shown.section("Seeds and chosen settings"), results)
    return shown


def label_of(policy: str) -> str:
    """What a policy or a schedule is called in tables."""
    if policy in SCHEDULE_LABELS:
        return SCHEDULE_LABELS[policy]
    name, _, variant = policy.partition("@")
    if variant == "untrained":
        return "quantum, untrained"
    return f"{POLICY_LABELS[name]}, run without" if variant == "ideal" else POLICY_LABELS[name]


def schedule_text(schedule: dict[str, Any]) -> str:
    """`limited interval, mean 1.5, lo 0.2, hi 0.8`."""
    if schedule["name"] == "constant":
        return f"{SCHEDULE_LABELS['constant']}, g = {schedule['mean']:g}"
    shape = ", ".join(f"{name} {value:g}" for name, value in schedule["shape"].items())
    return f"{SCHEDULE_LABELS[schedule['name']]}, mean {schedule['mean']:.3g}, {shape}"


def samples_file(folder: Path, policy: str, seed: int) -> Path:
    """File of what an evaluation kept."""
    return folder / "samples" / f"{policy}-seed{seed}.safetensors"


def read_samples(folder: Path, policy: str, seed: int) -> dict[str, Tensor]:
    """What an evaluation kept: "images" float [≤ 40, C, H, W] in [−1, 1], "labels", "g" [T, ≤ 128]."""
    tensors, _ = read_tensors(samples_file(folder, policy, seed), kind="samples")
    return {**tensors, "images": tensors["images"].float() / 127.5 - 1}


# -- numbers -----------------------------------------------------------------------------------------------------------


def names(results: GuidanceResults) -> dict[str, str]:
    """Name in tables of all that is evaluated; schedules with their tuned parameters."""
    schedules = results.cells["choice"]["schedules"]
    return {
        name: schedule_text(schedules[name]) if name in schedules else label_of(name)
        for name in results.config.evaluated()
    }


def values(results: GuidanceResults, policy: str, metric: str) -> list[float]:
    """One number of a policy's evaluations, per seed."""
    return results.values(metric, part="evaluation", policy=policy)


def floor(results: GuidanceResults, metric: str) -> list[float]:
    """The same of real training images."""
    return results.values(metric, part="floor")


def best_constant(results: GuidanceResults) -> float:
    """The best swept constant."""
    return float(results.cells["choice"]["schedules"]["constant"]["mean"])


def base_scale(results: GuidanceResults) -> float:
    """g0 of every policy."""
    return float(results.cells["calibration"]["guidance"]["g0"])


def sweep_rows(results: GuidanceResults) -> list[dict[str, Any]]:
    """One row a constant."""
    return [row for row in results.rows if row.get("part") == "sweep"]


def curves(results: GuidanceResults, policy: str, key: str) -> list[list[float]]:
    """A metric over the updates of each training."""
    return [results.cells[f"training-{policy}-seed{k}"]["curves"][key] for k in range(results.config.seeds)]


def mean_scales(results: GuidanceResults, policy: str) -> list[float]:
    """Mean guidance scale of every step, over seeds."""
    seeds = range(results.config.seeds)
    return [float(g) for g in np.mean([results.cells[f"evaluation-{policy}-seed{k}"]["g_mean"] for k in seeds], axis=0)]


def compared(results: GuidanceResults, reference: str, policies: Sequence[str], metric: str = PRIMARY,
                  *, swapped: bool = False) -> dict[str, PairedTest]:  # fmt: skip
    """Paired tests of policies against one, seed by seed, one Holm family; swapped: of the one against each."""
    base = values(results, reference, metric)
    if len(base) < 2:
        return {}
    pairs = {name: (values(results, name, metric), base) for name in policies}
    return with_holm({n: paired_test(b, a) if swapped else paired_test(a, b) for n, (a, b) in pairs.items()})


def compared_with_all(results: GuidanceResults, reference: str) -> dict[str, PairedTest]:
    """FD of all others against one. The untrained policy is left out: it is where training starts."""
    others = [n for n in results.config.evaluated() if n != reference and not n.endswith("@untrained")]
    return compared(results, reference, others)


def control_tests(results: GuidanceResults) -> dict[str, PairedTest]:
    """What the circuit contributes: FD of the quantum policy against each control."""
    if "quantum" not in results.config.policies:
        return {}
    controls = [name for name in (*results.config.policies, "quantum@ideal") if name != "quantum"]
    return compared(results, "quantum", controls, swapped=True)


def learning_tests(results: GuidanceResults) -> dict[str, PairedTest]:
    """Did training raise the reward: each policy's return against the untrained quantum policy's."""
    if "quantum" not in results.config.policies:
        return {}
    return compared(results, "quantum@untrained", results.config.policies, "return")


def findings(results: GuidanceResults) -> tuple[list[str], str]:
    """(sentences, tone): who beat the best constant, or that nobody did."""
    seeds = results.config.seeds
    labels = names(results)
    conditions = f"{results.config.n_steps} sampling steps, {seeds} seeds, {results.config.eval_images} images each"
    if seeds < 2:
        return [f"One seed only ({conditions}): nothing can be said about who is better."], "caution"
    tests = compared_with_all(results, "constant")
    winners = [n for n, t in tests.items() if t.significant() and t.difference.mean < 0]
    losers = [n for n, t in tests.items() if t.significant() and t.difference.mean > 0]
    sentences = []
    base = labels["constant"]
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
            f"The nearest other one on average is {labels[lowest]}: {abs(t.difference.mean):.2f} {where} than the "
            f"constant [{t.difference.low:+.2f}, {t.difference.high:+.2f}], {p_text(t.p_holm)}."
        )
    if losers:
        sentences.append(f"Worse than the constant beyond chance: {'; '.join(labels[n] for n in losers)}.")
    sentences += _quantum_sentences(results, tests, labels)
    if seeds <= 5:
        sentences.append(
            f"With {seeds} seeds the exact sign-flip test cannot go below p = {2 / 2**seeds:.3g}, and only large "
            "differences can show; ten seeds or more are needed for a claim."
        )
    return sentences, "good" if any(n in results.config.policies for n in winners) else "neutral"


def _quantum_sentences(results: GuidanceResults, tests: dict[str, PairedTest], labels: dict[str, str]) -> list[str]:
    sentences = []
    if "quantum" in tests:
        t = tests["quantum"]
        sentences.append(
            f"The quantum policy trained under noise differs from the best constant by "
            f"{t.difference.format(sign=True)} in FD (negative is better; {p_text(t.p_holm)})."
        )
    learned = learning_tests(results).get("quantum")
    if learned is not None:
        how = "raised" if learned.difference.mean > 0 else "lowered"
        sure = "" if learned.significant() else ", within chance"
        sentences.append(
            f"Training {how} its reward by {learned.difference.format(sign=True)} against the untrained policy (in "
            f"standard deviations between random policies; {p_text(learned.p_holm)}{sure})."
        )
    for name, test in control_tests(results).items():
        if name == "quantum@ideal":
            what = "The same weights run without noise change FD by"
            shown = f"{-test.difference.mean:+.3f} [{-test.difference.high:+.3f}, {-test.difference.low:+.3f}]"
            sentences.append(f"{what} {shown}.")
        elif name in ("frozen", "matched", "unentangled", "mlp"):
            shown = test.difference.format(sign=True)
            if not test.significant():
                sentences.append(f"No difference beyond chance to the control: {labels[name]} ({shown}).")
            else:
                better = "better" if test.difference.mean < 0 else "worse"
                sentences.append(f"It is {better} than the control: {labels[name]} ({shown}).")
    return sentences


def results_table(results: GuidanceResults) -> tuple[list[str], list[list[str]], list[int]]:
    """The main table: (columns, rows, indices of the rows with the lowest mean FD)."""
    columns = ["policy", *METRIC_LABELS.values(), "reward", "parameters", "circuits per image"]
    rows, means = [], []
    labels = names(results)
    for name in results.config.evaluated():
        cells = [labels[name]]
        cells += [format_metric(key, values(results, name, key)) for key in METRIC_LABELS]
        cells.append(mean_interval(values(results, name, "return")).format(2))
        parameters = int(values(results, name, "n_parameters")[0])
        cells += [f"{parameters:,}", f"{values(results, name, 'circuits_per_image')[0]:g}"]
        rows.append(cells)
        means.append(float("inf") if name.endswith("@untrained") else float(np.mean(values(results, name, PRIMARY))))
    real = [format_metric(key, floor(results, key)) for key in METRIC_LABELS]
    rows.append(["real training images (floor)", *real, "–", "–", "–"])
    best = min(means)
    return columns, rows, [index for index, mean in enumerate(means) if mean == best]


def paired_table(tests: dict[str, PairedTest], labels: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """Table of paired tests: (columns, rows)."""
    columns = ["against it", "difference [95 %]", "p (Holm)", "p (t)", "p (Wilcoxon)", "p (sign flip)", "effect d_z"]
    rows = [
        [
            labels[name],
            test.difference.format(sign=True),
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


def format_metric(key: str, values: Sequence[float]) -> str:
    """Mean and interval of a metric in the unit of `METRIC_LABELS`."""
    scale = _SCALE.get(key, 1.0)
    return mean_interval([scale * value for value in values]).format(_DIGITS.get(key, 3))


def _told_table(results: GuidanceResults) -> list[str]:
    """FD and accuracy of all, as lines of text."""
    labels = names(results)
    lines = []
    for name in results.config.evaluated():
        fd, accuracy = format_metric("fd", values(results, name, "fd")), np.mean(values(results, name, "accuracy"))
        lines.append(f"{labels[name]:<52} FD {fd:>22} accuracy {accuracy:>6.1%}")
    return [*lines, f"{'real training images (floor)':<52} FD {format_metric('fd', floor(results, 'fd')):>22}"]


def _p(value: float) -> str:
    return p_text(value).removeprefix("p = ").removeprefix("p ")


# -- sections ----------------------------------------------------------------------------------------------------------


def _came_out(section: Section, results: GuidanceResults, sentences: list[str], tone: str) -> None:
    section.note(sentences[0], "good" if tone == "good" else "caution" if tone == "caution" else "neutral")
    section.bullets(sentences[1:])
    cards = [
        (f"g = {best_constant(results):g}", "best constant"),
        (f"g₀ = {base_scale(results):g}", "base of all policies"),
    ]
    for name, label in (("constant", "FD of the best constant"), ("quantum", "FD of the quantum policy")):
        if name in results.config.evaluated():
            cards.append((f"{np.mean(values(results, name, 'fd')):.2f}", label))
    cards.append((f"{np.mean(floor(results, 'fd')):.2f}", "FD of real training images (floor)"))
    gradients = curves(results, "quantum", "gradients/circuit") if "quantum" in results.config.policies else []
    if gradients:
        cards.append((f"{min(min(line) for line in gradients):.2g}", "smallest circuit gradient norm in any update"))
    section.numbers(cards)


def _samples(section: Section, results: GuidanceResults) -> None:
    wanted = ("constant", "limited_interval", "quantum", "matched", "frozen", "quantum@untrained")
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
    section.table(columns, rows, emphasised=best, caption="The highlighted row has the lowest mean FD; see the tests.")
    if results.config.seeds < 2:
        return
    labels, base = names(results), np.array(values(results, "constant", "fd"))
    others = [name for name in results.config.evaluated() if name != "constant" and not name.endswith("@untrained")]
    section.figure(
        plots.comparison(
            {labels[name]: (np.array(values(results, name, "fd")) - base).tolist() for name in others},
            xlabel="FD minus that of the best constant on the same seed (left is better)",
            mark=0.0,
        ),
        alt="Difference in FD to the best constant: a dot per seed, mean and 95 % interval; ordered as the table.",
    )


def _tests(section: Section, results: GuidanceResults) -> None:
    if results.config.seeds < 2:
        section.text("Paired tests need at least two seeds.")
        return
    section.text(_PAIRING_TEXT)
    labels = names(results)
    for reference in REFERENCES:
        columns, rows = paired_table(compared_with_all(results, reference), labels)
        section.table(columns, rows, caption=f"FD against: {labels[reference]} (negative is better).")
    controls = control_tests(results)
    if controls:
        columns, rows = paired_table(controls, labels)
        section.table(
            columns, rows, caption="FD of the quantum policy minus that of each control (negative: it is better)."
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
        _BASE_TEXT[results.config.base].format(g0=base_scale(results)),
    )
    columns = [row["g"] for row in sweep_rows(results)]
    section.figure(
        plots.sweep_curve(
            columns,
            [row["reward_distance"] for row in sweep_rows(results)],
            [row["fd"] for row in sweep_rows(results)],
            chosen=best_constant(results),
        ),
        alt="Reward-side distance and judged Fréchet distance against the constant guidance scale; "
        f"the chosen one is {best_constant(results):g}.",
    )
    by_evaluation = min(sweep_rows(results), key=lambda row: row["fd"])["g"]
    if by_evaluation != best_constant(results):
        section.text(
            f"On these images the evaluation classifier would have chosen g = {by_evaluation:g}. The constant that "
            "takes part is the one found without it, as the policies were trained without it."
        )
    section.table(*_sweep_table(results))


def _sweep_table(results: GuidanceResults) -> tuple[list[str], list[list[str]]]:
    rows = [
        [f"{row['g']:g}", f"{row['reward_fd']:.2f}", f"{row['reward_distance']:.4f}",
         f"{100 * row['reward_accuracy']:.1f}", f"{row['fd']:.2f}", f"{100 * row['accuracy']:.1f}"]
        for row in sweep_rows(results)
    ]  # fmt: skip
    return [
        "g",
        "FD, reward side",
        "distance, reward side",
        "accuracy %, reward side",
        "FD, evaluation",
        "accuracy %, evaluation",
    ], rows


def _trajectories(section: Section, results: GuidanceResults) -> None:
    trained = [
        name
        for name in ("quantum", "quantum_ideal", "matched", "mlp", "frozen", "annealing")
        if name in results.config.evaluated()
    ]
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
    rows = [
        [names(results)[name], *[f"{g:.2f}" for g in mean_scales(results, name)]] for name in results.config.evaluated()
    ]  # fmt: skip
    steps = [f"step {i}" for i in range(1, results.config.n_steps + 1)]
    section.table(["mean guidance scale", *steps], rows)


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
    policy = load_policy(results.folder / "trainings" / "quantum-seed0").policy
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
            ["guidance", f"g = clip({guidance['g0']:g} + a, {guidance['g_min']:g}, {guidance['g_max']:g}), "
                         f"a in ±{guidance['action_limit']:g}"],
            *[[f"tuned: {n}", schedule_text(s)] for n, s in results.cells["choice"]["schedules"].items()],
        ],
    )  # fmt: skip
