"""The page of the denoising study, made from its folder alone: what the numbers say, tables, figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from qhw_diffusion.checkpoints import read_tensors
from qhw_diffusion.circuits.reverse import reverse_circuit
from qhw_diffusion.denoising import ReverseProcess
from qhw_diffusion.denoising.readout import shots_needed
from qhw_diffusion.experiment import (
    Interval,
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

if TYPE_CHECKING:
    from qhw_diffusion.studies.denoising.experiment import DenoisingConfig

# What is trained, and what it is called.
VARIANTS = {
    "postselected": "ancillas post-selected",
    "measured": "ancillas measured, outcomes kept",
    "feedforward": "measured, outcomes fed forward",
    "noise": "post-selected, trained under noise",
    "othernoise": "post-selected, trained under another device's noise",
    "longer": "post-selected, trained as much longer without noise",
    "reconstruction": "1,110-parameter reconstruction",
    "contraction": "trained linear map (any contraction)",
    "classical": "classical network of equal size",
}
# What is drawn without a training of its own.
CONTROLS = {
    "frozen": "random circuit, not trained",
    "bypass": "circuit bypassed",
    "linear": "linear map in closed form",
    "linear1": "linear map of rank 1 (mean image)",
}
HOW = {
    "": "ideal",
    "noisy": "with the device's noise",
    "shots": "ideal, finite shots",
    "noisy-shots": "with noise and finite shots",
    "estimator": "on the device by an Estimator",
    "estimator-readout": "on the device by an Estimator, readout inverted",
    "sampler": "on the device by a Sampler",
}
# How rows on the device measure the whole reverse process as one circuit.
PRIMITIVES = ("estimator", "estimator-readout", "sampler")
EVALUATION_SEED, TUNING_SEED = 3_000_000, 4_000_000
CHANCE = "chance"
# Metric → heading, factor, digits
COLUMNS = {
    "energy": ("energy [95 %]", 1.0, 3),
    "fd": ("FD [95 %]", 1.0, 2),
    "accuracy": ("accuracy % [95 %]", 100.0, 1),
    "diversity": ("diversity [95 %]", 1.0, 2),
    "infidelity": ("infidelity [95 %]", 1.0, 3),
    "visible": ("visible infidelity [95 %]", 1.0, 3),
    "success": ("success % [95 %]", 100.0, 1),
}
_IN_WORDS = {"energy": "energy distance", "fd": "Fréchet distance"}
SHARES = ("accuracy", "infidelity", "visible", "success", "history")

_METRICS = (
    "Energy is the energy distance within each label, FD the Fréchet distance, both in the features of the "
    "**evaluation classifier**, a small network that no training and no tuning ever used, against held-out images. FD "
    "is **not** Inception FID, and values compare only with one "
    "another. Accuracy: share of images in which that classifier sees the label asked for. Diversity: mean distance "
    "between two images of one label. Infidelity: 1 − F between the average state that was made and that of the "
    "training data, mean over labels; it counts signs and phases, which images do not have. Visible infidelity: the "
    "same of the average outcome probabilities. Success: mean probability that a run passes every post-selection. "
    "Parameters: trained numbers. Numbers are means over seeds with a 95 % t-interval (cut where a share would leave 0 "
    "to 1); a seed is one training and one evaluation."
)
_CONTROLS = (
    "Random circuit: the same circuit with random angles. Circuit bypassed: pure noise straight into the decoder. "
    "Linear maps: a sequence of post-selected steps whose states stay coherent is one contraction a label, whatever "
    "its depth. In closed form: the one that reproduces the data's second moments, rank and power tuned with the "
    "reward classifier. Rank 1 prints one image a label: recognisable, without diversity. Trained: any contraction, by "
    "the same loop on the same loss: the ceiling of all sequences of post-selected steps. Classical network: at most "
    "as many parameters, trained likewise."
)
_COMPARED = {
    "measured": "the magnitudes of the amplitudes",
    "fidelity": "fidelity, which counts signs and phases",
    "superfidelity": "superfidelity, which counts signs and phases",
}
_LAYERS = {
    "chain": "layers (RX, RZ, RY on every qubit, then a CNOT chain)",
    "cz": "layers (RX, RY on every qubit, then CZ on neighbouring pairs)",
}
_DECODER = ", and the decoder of the latent space was trained on √(counts/N) of sampled outcomes"
_DEVICE = (
    "A device gives counts of measured bit strings: estimates of probabilities, and as their square roots the "
    "**magnitudes** of the amplitudes. Signs and phases of amplitudes leave no trace in these counts.",
    "So nothing here reads a sign or a phase: images are magnitudes{decoder}. "
    "States stay coherent between the steps; data qubits are measured once, at the end.",
    "Rows with noise are simulated with the device's calibration data: gate errors, relaxation and readout errors of "
    "data qubits and ancillas. A post-selected ancilla that is misread lets a wrong state pass. Rows with finite shots "
    "measure every image {shots:,} times, of which those count that pass post-selection, or repeat the image's "
    "history of outcomes. Rows on the device run the whole reverse process with x_T's preparation as one circuit.",
    "In the other rows starting states are drawn Haar-random and given. On a device they are the output of a circuit, "
    "whose cost is not counted there, and every image needs its own state to be prepared again for each of its shots.",
)


@dataclass(frozen=True)
class Question:
    """A comparison that was planned before the numbers were seen.

    Attributes:
        text: what is asked.
        row, against: rows of the table; `against` may be "chance", for accuracy alone.
    """

    text: str
    row: str
    against: str


QUESTIONS = (
    Question("Is the trained circuit better than a random one?", "postselected", "frozen"),
    Question("Is it better than no circuit at all (noise straight into the decoder)?", "postselected", "bypass"),
    Question("Are its images recognised more often than by chance?", "postselected", CHANCE),
    Question("How does it compare with the linear map in closed form?", "postselected", "linear"),
    Question("And with the linear map of rank 1, which prints one image a label?", "postselected", "linear1"),
    Question("How far is it from a trained linear map, the ceiling of its kind?", "postselected", "contraction"),
    Question("How does it compare with a classical network of equal size?", "postselected", "classical"),
    Question("What changes when outcomes are kept instead of post-selected?", "measured", "postselected"),
    Question("Do kept outcomes pass the trained linear map?", "measured", "contraction"),
    Question("What does feeding outcomes forward add?", "feedforward", "measured"),
    Question("Does the model with feed-forward pass the linear map in closed form?", "feedforward", "linear"),
    Question("Does it pass the trained linear map?", "feedforward", "contraction"),
    Question("How does the reconstruction compare with the linear map in closed form?", "reconstruction", "linear"),
    Question("What does the device's noise cost?", "postselected@noisy", "postselected"),
    Question("What does it cost the model with feed-forward?", "feedforward@noisy", "feedforward"),
    Question("What do finite shots cost?", "postselected@shots", "postselected"),
    Question("What do they cost the model with feed-forward?", "feedforward@shots", "feedforward"),
    Question("What do noise and finite shots cost together?", "postselected@noisy-shots", "postselected"),
    Question("Does training under noise help on the noisy device?", "noise@noisy", "postselected@noisy"),
    Question("And with finite shots as well?", "noise@noisy-shots", "postselected@noisy-shots"),
    Question("Is that more than as many updates without noise give?", "noise@noisy", "longer@noisy"),
    Question("Does training under another device's noise help on this one?", "othernoise@noisy", "postselected@noisy"),
    Question("Does the right calibration matter?", "noise@noisy", "othernoise@noisy"),
    Question("What does the whole circuit on the device cost?", "postselected@estimator", "postselected"),
    Question("Does training under noise help there?", "noise@estimator", "postselected@estimator"),
    Question("By a Sampler, too?", "noise@sampler", "postselected@sampler"),
    Question("Does the right calibration matter there?", "noise@estimator", "othernoise@estimator"),
    Question("Do Sampler and Estimator differ?", "noise@sampler", "noise@estimator"),
    Question("Does readout inversion help?", "postselected@estimator-readout", "postselected@estimator"),
    Question("And after training under noise?", "noise@estimator-readout", "noise@estimator"),
)


def row_label(row: str) -> str:
    """What a table calls a row."""
    variant, _, how = row.partition("@")
    name = VARIANTS.get(variant) or CONTROLS[variant]
    circuit = variant in VARIANTS and variant not in ("contraction", "classical")
    return f"{name}: {HOW[how]}" if circuit else name


def sample_file(folder: Path, row: str, seed: int) -> Path:
    """Kept images of one row on one seed."""
    return folder / "samples" / f"{row}-seed{seed}.safetensors"


def read_samples(folder: Path, row: str, seed: int) -> dict[str, Tensor]:
    """What was kept of a row, or of "real": "images" [≤ 40, C, H, W] in [−1, 1] and what else there is.

    Returns:
        "labels" int64 [≤ 40] and, of a process, "path" [T + 1, labels, C, H, W]; of "real", "encoded", the same images
        through encoder and decoder.
    """
    tensors, _ = read_tensors(sample_file(folder, row, seed), kind="samples")
    return {name: value if name == "labels" else value.float() / 127.5 - 1 for name, value in tensors.items()}


def page(results: Results[DenoisingConfig]) -> Page:
    """What came out, what was trained, samples, tables and tests, the process, costs, training, the circuit."""
    c = results.config
    latent = c.model == "latent"
    where = f"in a latent space of {c.reverse.n_qubits} qubits" if latent else "in the amplitudes of pixels"
    sentences, tone = findings(results)
    shown = Page(
        subtitle=(
            f"A diffusion model whose denoiser is a quantum circuit, conditioned on {len(c.labels)} labels of "
            f"{c.data}, {where}: {c.reverse.n_steps} reverse steps, ideal, with the noise of {c.device}, and with "
            f"finite shots, against controls. {c.seeds} seeds, {c.eval_images} images a row and seed."
        ),
        findings=sentences,
    )
    section = shown.section("What came out").note(sentences[0], "good" if tone == "good" else "caution")
    section.numbers(_cards(results)).bullets(sentences[1:])
    _trained(shown.section("What was trained"), results)
    _samples(shown.section("Samples"), results)
    _table(shown.section("All models and controls on the same seeds"), results)
    _tests(shown.section("Paired tests"), results)
    _process(shown.section("The reverse process, step by step"), results)
    _success(shown.section("Success probability and shots"), results)
    _curves(shown.section("Training"), results)
    _circuit(shown.section("The circuit on the device"), results)
    told = {"shots": c.shots, "decoder": _DECODER if latent else " of amplitudes, pixel by pixel"}
    shown.section("What a device can give").text(*(text.format(**told) for text in _DEVICE))
    return shown


def findings(results: Results[DenoisingConfig]) -> tuple[list[str], str]:
    """(sentences, tone): the headline first, then an answer to every question; "good" or "caution"."""
    config = results.config
    conditions = f"{config.seeds} seed{'s' * (config.seeds > 1)}, {config.eval_images} images each"
    if config.seeds < 2:
        return [f"One seed only ({conditions}): nothing can be said about what is better."], "caution"
    metrics = [*distances(results), "accuracy"]
    tests = {metric: question_tests(results, metric) for metric in metrics}
    first, accuracy = tests[metrics[0]], tests["accuracy"]
    sentences = [_headline(first, accuracy, conditions, _IN_WORDS[metrics[0]])]
    for question in asked(config):
        parts = [p for p in (_answer(tests[metric].get(question), metric) for metric in metrics) if p]
        sentences.append(f"**{question.text}** {'; '.join(parts)}.")
    taken = [_returned(results, how) for how in ("noisy", *PRIMITIVES) if f"noise@{how}" in config.rows()]
    sentences += [sentence for sentence in taken if sentence]
    if config.seeds <= 5:
        sentences.append(
            f"With {config.seeds} seeds the exact sign-flip test cannot go below p = {2 / 2**config.seeds:.3g}, and "
            "only large differences can show; ten seeds or more are needed for a claim about small ones."
        )
    return sentences, "good" if _adds(first, accuracy) else "caution"


def distances(results: Results[DenoisingConfig]) -> list[str]:
    """The distances to held-out images, the leading one first; studies of earlier versions have FD alone."""
    return [m for m in ("energy", "fd") if results.values(m, row="postselected")]


def returned_share(results: Results[DenoisingConfig], metric: str, variant: str, how: str) -> list[float]:
    """By seed, the share of what the device adds to a distance that training a variant takes back."""
    ideal, before, after = (
        results.values(metric, row=row) for row in ("postselected", f"postselected@{how}", f"{variant}@{how}")
    )
    return [(b - a) / (b - i) for i, b, a in zip(ideal, before, after, strict=True)]


def _returned(results: Results[DenoisingConfig], how: str) -> str:
    """Empty where it is not certain that the device adds anything."""
    metric = distances(results)[0]
    ideal, before = (results.values(metric, row=row) for row in ("postselected", f"postselected@{how}"))
    if paired_test(before, ideal).difference.low <= 0:
        return ""
    parts = []
    for variant in ("noise", "othernoise", "longer"):
        if f"{variant}@{how}" in results.config.rows():
            values = returned_share(results, metric, variant, how)
            parts.append(f"{_scaled(mean_interval(values), 100.0).format(0)} % ({VARIANTS[variant]})")
    return (
        f"**Of the {_IN_WORDS[metric]} added {HOW[how]}, further training takes back** {', '.join(parts)} (share by "
        "seed, mean and interval)."
    )


def asked(config: DenoisingConfig) -> list[Question]:
    """The questions this study has rows for."""
    rows = config.rows()
    return [q for q in QUESTIONS if q.row in rows and (q.against in rows or q.against == CHANCE)]


def question_tests(results: Results[DenoisingConfig], metric: str) -> dict[Question, PairedTest]:
    """Paired tests (row − against) over seeds, Holm-corrected over all questions; empty with fewer than two seeds."""
    c = results.config
    if c.seeds < 2:
        return {}
    tests: dict[Question, PairedTest] = {}
    for question in asked(c):
        if question.against != CHANCE:
            against = results.values(metric, row=question.against)
        elif metric == "accuracy":
            against = [1 / len(c.labels)] * c.seeds
        else:
            continue
        tests[question] = paired_test(results.values(metric, row=question.row), against)
    return with_holm(tests)


def results_table(results: Results[DenoisingConfig]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): every row of the study, then real images as they are and through encoder and decoder."""
    metrics = [m for m in COLUMNS if m != "energy" or m in distances(results)]
    columns = ["model", *(COLUMNS[metric][0] for metric in metrics), "parameters"]
    rows = []
    for row in results.config.rows():
        count = results.values("n_parameters", row=row)
        cells = [_cell(results, metric, row=row) for metric in metrics]
        rows.append([row_label(row), *cells, f"{count[0]:,.0f}" if count else "–"])
    for kind, name in (("real", "real training images (floor)"), ("encoded", "real images, encoded and decoded")):
        rows.append([name, *(_cell(results, metric, kind=kind) for metric in metrics), "–"])
    return columns, rows


def tests_table(results: Results[DenoisingConfig], metric: str) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the planned comparisons in one metric."""
    label, scale, digits = COLUMNS[metric]
    columns = ["compared", f"difference in {label.removesuffix(' [95 %]')} [95 %]", "p (Holm)", "p (t)",
               "p (Wilcoxon)", "p (sign flip)"]  # fmt: skip
    rows = []
    for question, test in question_tests(results, metric).items():
        against = "chance" if question.against == CHANCE else row_label(question.against)
        ps = [p_text(p).removeprefix("p = ").removeprefix("p ")
              for p in (test.p_holm, test.t_p, test.wilcoxon_p, test.sign_flip_p)]  # fmt: skip
        rows.append([f"{row_label(question.row)} − {against}", _signed(test, scale, digits + 1), *ps])
    return columns, rows


def success_table(results: Results[DenoisingConfig]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): the share of the shots that counts, the shots it means, and what was left of those sent."""
    shots, images = results.config.shots, results.config.eval_images * results.config.seeds
    columns = ["model", "share that counts % [95 %]", "shots to keep 1,000", f"kept of {shots:,} shots",
               "images without a shot"]  # fmt: skip
    rows = []
    for row in results.config.rows():
        metric = next((m for m in ("success", "history") if results.values(m, row=row)), None)
        if metric is None:
            continue
        sent = f"{shots_needed(results.mean(metric, row=row), 1000):,}"
        kept, lost = results.values("kept_shots", row=row), results.values("lost_images", row=row)
        left = [f"{results.mean('kept_shots', row=row):,.0f}", f"{sum(lost):.0f} of {images:,}"] if kept else ["–", "–"]
        rows.append([row_label(row), _cell(results, metric, row=row), sent, *left])
    return columns, rows


def _cards(results: Results[DenoisingConfig]) -> list[tuple[str, str]]:
    first = distances(results)[0]
    digits = 2 if first == "energy" else 1
    name_of = {"energy": "energy", "fd": "FD"}[first]

    def told(**where: str) -> str:
        return f"{results.mean(first, **where):.{digits}f} · {results.mean('accuracy', **where):.0%}"

    names = {"postselected": "post-selected", "feedforward": "feed-forward", "linear": "linear map",
             "frozen": "random circuit"}  # fmt: skip
    cards = [(told(row=r), f"{name_of} · accuracy, {name}") for r, name in names.items() if r in results.config.rows()]
    return [*cards, (told(kind="encoded"), f"{name_of} · accuracy, real images through the decoder")]


def _trained(section: Section, results: Results[DenoisingConfig]) -> None:
    c = results.config
    reverse = c.reverse
    weights = int(results.values("weights_per_step", variant="postselected")[0])
    layers = _LAYERS.get(str(reverse.ansatz), f"layers of the ansatz {reverse.to_dict()['ansatz']}")
    section.text(
        f"Every step is a circuit of {reverse.depth} {layers} on {reverse.n_qubits} data qubits and {reverse.ancillas} "
        f"ancilla{'s' * (reverse.ancillas > 1)} ({c.measured_ancillas} where outcomes are kept), with weights of its "
        f"own; the label turns the ancillas. All {reverse.n_steps} steps were trained together on the images' states, "
        "by the maximum mean discrepancy of what comes out at t = 0 and the training data, in "
        f"{_COMPARED[c.train.similarity]}. {weights} weights a step."
    )
    counts = {v: results.values("n_parameters", variant=v)[0] for v in c.variants}
    section.table(["trained", "parameters"], [[VARIANTS[v], f"{count:,.0f}"] for v, count in counts.items()])
    if "noise" in c.variants:
        section.text(
            f"The model trained under noise starts from the post-selected one's weights and makes {c.noise_iterations} "
            f"more updates on density matrices, with the noise of {c.device}"
            + (f"; another one makes them with that of {c.other_device}" if "othernoise" in c.variants else "")
            + ("; another one without noise" if "longer" in c.variants else "")
            + "; the others end before."
        )
    if c.model == "latent":
        told = results.cells["autoencoder"]
        section.text(
            f"The classical autoencoder ({told['n_parameters']:,} parameters, the same for all rows) squeezes an image "
            f"into the {2**reverse.n_qubits} magnitudes of {reverse.n_qubits} qubits. Its mean squared error a pixel "
            f"on held-out images is {told['heldout_mse']:.3f}; printing the mean image has "
            f"{told['heldout_mse_mean_image']:.3f}. What it loses, no circuit can bring back: the second floor below. "
            "It also makes something like a digit of almost anything, so the control with the circuit bypassed matters."
        )
    section.text(
        f"Seed k (0 to {c.seeds - 1}) decides the k-th training of every model and, as {EVALUATION_SEED:,} + k, the "
        "starting states and measurement outcomes of the k-th evaluation. The linear map is tuned with seed "
        f"{TUNING_SEED:,}. One thread per process: the same numbers on the same machine, bit for bit."
    )


def _samples(section: Section, results: Results[DenoisingConfig]) -> None:
    real = read_samples(results.folder, "real", 0)
    grids = {"real images, held out": real["images"].numpy(), "the same, encoded and decoded": real["encoded"].numpy()}
    for row in results.config.rows():
        if row not in ("postselected@shots", "noise@noisy-shots"):
            grids[row_label(row)] = read_samples(results.folder, row, 0)["images"].numpy()
    section.figure(
        plots.sample_grids(grids, rows=4),
        alt=f"Grids of {results.config.data} images, one grid a model: {', '.join(grids)}.",
        caption=f"Seed 0. Labels asked for: {', '.join(map(str, results.config.labels))}, over and over. Images are "
        "not chosen.",
        wide=True,
    )


def _table(section: Section, results: Results[DenoisingConfig]) -> None:
    section.text(_METRICS, _CONTROLS)
    columns, rows = results_table(results)
    section.table(
        columns, rows, caption="Low energy, FD and infidelity, high accuracy are good; diversity near real images'."
    )
    if results.config.seeds < 2:
        return
    first = distances(results)[0]
    name = _IN_WORDS[first].capitalize().replace("fréchet", "Fréchet")
    section.figure(
        plots.comparison({row_label(row): results.values(first, row=row) for row in results.config.rows()},
                         xlabel=f"{name}, evaluation classifier's features (left is better)",
                         mark=results.mean(first, kind="encoded")),
        alt=f"{name} of every row: a dot per seed, mean and 95 % interval.",
        caption="Dashed: real images, encoded and decoded.",
    )  # fmt: skip
    chosen = zip(results.values("rank", row="linear"), results.values("power", row="linear"), strict=True)
    told = "; ".join(f"seed {seed}: rank {rank:.0f}, power {power:g}" for seed, (rank, power) in enumerate(chosen))
    section.text(f"Chosen for the linear map in closed form: {told}.")


def _tests(section: Section, results: Results[DenoisingConfig]) -> None:
    if results.config.seeds < 2:
        section.text("Paired tests need at least two seeds.")
        return
    section.text(
        "A pair is one seed. The comparisons are fixed in the code, not chosen by their outcome; p (Holm) corrects the "
        "paired t-test for all of them together. Wilcoxon's signed-rank and the exact sign-flip test need no normal "
        "distribution."
    )
    for metric in distances(results):
        caption = f"{_IN_WORDS[metric]} (negative: the first is better)."
        section.table(*tests_table(results, metric), caption=caption[0].upper() + caption[1:])
    section.table(*tests_table(results, "accuracy"), caption="Accuracy (positive: the first is better).")


def _process(section: Section, results: Results[DenoisingConfig]) -> None:
    c = results.config
    shown = [r for r in ("postselected", "postselected@noisy", "feedforward", "measured") if r in c.rows()][:3]
    paths = {row_label(row): read_samples(results.folder, row, 0)["path"].numpy() for row in shown}
    section.figure(
        plots.reverse_paths(paths, c.labels),
        alt=f"Images decoded from the states at every step, t = {c.reverse.n_steps} (noise) to 0, a row a label, for: "
        f"{', '.join(paths)}.",
        caption="Seed 0, one sample a label. The states in between are decoded for the reader only: a device measures "
        "at t = 0 alone. The first column is the decoder's picture of pure noise.",
        wide=True,
    )
    visible = c.train.similarity == "measured"
    kind = "visible_by_step" if visible else "infidelity_by_step"
    curves: dict[str, list[list[float]]] = {}
    for found in results.rows:
        if kind in found:
            curves.setdefault(row_label(found["row"]), []).append(found[kind])
    section.figure(
        plots.by_step(curves, ylabel=f"{'visible ' * visible}infidelity of the averages"),
        alt="Infidelity between the averages of the model and of noised data, over the reverse process.",
        caption="At t, what the model has is compared with training data noised to t. Training looked at t = 0 alone: "
        "in between, the process is free to take a path of its own. At T both are pure noise: what is left there comes "
        "from the finite number of samples.",
    )


def _success(section: Section, results: Results[DenoisingConfig]) -> None:
    section.text(
        f"A post-selected run counts only when all {results.config.reverse.n_steps} steps read 0 on their ancillas: "
        "the probabilities of the steps multiply, and what fails has been run for nothing. A model that keeps its "
        "outcomes loses no run, but every history of outcomes is an image of its own: shots of the same image are "
        "those in which its history comes up again. The third column is the number of shots that leave 1,000 in 95 % "
        "of all cases."
    )
    section.table(*success_table(results))


def _curves(section: Section, results: Results[DenoisingConfig]) -> None:
    loss, success = "loss (MMD, and −log success)", "success probability"
    panels: dict[str, dict[str, list[list[float]]]] = {loss: {}, success: {}}
    for found in results.rows:
        if found["part"] == "training":
            name = VARIANTS[found["variant"]]
            panels[loss].setdefault(name, []).append(found["losses"])
            if found["variant"] in ("postselected", "noise", "reconstruction"):
                panels[success].setdefault(name, []).append(found["successes"])
    alike = results.config.train.similarity == "measured"
    section.figure(
        plots.training_curves(panels),
        alt="Training loss of every model and success probability of the post-selected ones over the updates; thin "
        "lines are seeds, thick lines their mean.",
        caption="Running means over 15 updates. The training under noise starts from trained weights"
        + ("." if alike else " and compares by superfidelity, on another scale."),
        wide=True,
    )


def _circuit(section: Section, results: Results[DenoisingConfig]) -> None:
    c = results.config
    layers = min(2, c.reverse.depth)
    drawn = reverse_circuit(
        c.reverse.n_qubits, c.reverse.ancillas, layers, ansatz=c.reverse.ansatz, conditioning_angles=True
    ).circuit
    section.figure(
        plots.circuit_drawing(drawn, fold=40),
        alt=f"The first {layers} layers of a step: rotations on {drawn.num_qubits} qubits and entangling gates.",
        caption=f"The first {layers} of {c.reverse.depth} layers of a step as drawn: data qubits above, then ancillas. "
        "w are weights, x the angles that carry the label.",
        wide=True,
    )
    kept = next((v for v in ("feedforward", "measured") if v in c.variants), None)
    rows, layout = [], None
    for variant in ("postselected", *([kept] if kept else [])):
        reverse = c.reverse_of(variant, 0).replace(device=c.device, engine="noisy")
        compiled = ReverseProcess(reverse).compiled
        layout = layout or compiled
        gates = ", ".join(f"{name} {n}" for name, n in compiled.isa.count_ops().items())
        duration = f"{compiled.duration * 1e6:.2f} µs" if compiled.duration else "–"
        rows.append([VARIANTS[variant], f"{reverse.n_qubits} + {reverse.ancillas}",
                     ", ".join(map(str, compiled.physical_qubits)), str(compiled.depth),
                     str(compiled.two_qubit_gates), duration, str(c.reverse.n_steps * compiled.two_qubit_gates),
                     gates])  # fmt: skip
    columns = ["one step of", "data + ancillas", "physical qubits", "depth", "two-qubit gates", "duration",
               f"two-qubit gates in {c.reverse.n_steps} steps", "gates of a step"]  # fmt: skip
    section.table(columns, rows, caption=f"As compiled for {c.device}; durations without measurement and reset.")
    section.text(
        "A run on the device repeats the step with the next weights; ancillas are measured and reset in between, and "
        "with feed-forward the outcome chooses the weights of the next step (a dynamic circuit)."
    )
    assert layout is not None
    if layout.device.target is not None:
        section.figure(
            plots.device_layout(layout.device.target, layout.physical_qubits, title=f"{c.device}: qubits in use"),
            alt=f"Coupling map of {c.device} with the physical qubits {list(layout.physical_qubits)} marked.",
        )
    provenance = "; ".join(f"{key}: {value}" for key, value in layout.device.provenance.items())
    section.text(f"Noise from the device's calibration data — {provenance}.")


def _adds(distance: dict[Question, PairedTest], accuracy: dict[Question, PairedTest]) -> bool:
    """Whether the circuit beats the random circuit and the bypass in both metrics, and chance in accuracy."""
    fewer = all(distance[q].significant() and distance[q].difference.mean < 0 for q in QUESTIONS[:2])
    return fewer and all(accuracy[q].significant() and accuracy[q].difference.mean > 0 for q in QUESTIONS[:3])


def _headline(
    distance: dict[Question, PairedTest], accuracy: dict[Question, PairedTest], conditions: str, name: str
) -> str:
    start = (
        f"The trained circuit does the work: it beats the random circuit and the bypassed one in {name} and "
        "in accuracy, and its images are recognised above chance."
        if _adds(distance, accuracy)
        else "It is **not** shown that the trained circuit beats the random circuit, the bypassed one and chance in "
        f"both {name} and accuracy; the answers below say in which it does."
    )
    clauses = []
    maps = {"linear": "the linear map in closed form", "contraction": "the trained one"}
    for row, who in (("postselected", "The post-selected model"), ("feedforward", "The model with feed-forward")):
        told = [f"{_how(test)} {maps[q.against]}" for q, test in distance.items() if q.row == row and q.against in maps]
        if told:
            clauses.append(f" {who} {' and '.join(told)} in {name}.")
    return f"{start}{''.join(clauses)} ({conditions}; paired tests over seeds, Holm-corrected.)"


def _how(test: PairedTest) -> str:
    if not test.significant():
        return "is not told apart from"
    return "beats" if test.difference.mean < 0 else "is behind"


def _answer(test: PairedTest | None, metric: str) -> str:
    if test is None:
        return ""
    name, unit = {"energy": ("energy", ""), "fd": ("FD", ""), "accuracy": ("accuracy", " points")}[metric]
    _, scale, digits = COLUMNS[metric]
    shown = f"{name} {_signed(test, scale, digits)}{unit}, {p_text(test.p_holm)}"
    if not test.significant():
        return f"{shown}: no difference beyond chance"
    lower = test.difference.mean < 0
    return f"{shown}: {'better' if lower == (metric != 'accuracy') else 'worse'}"


def _signed(test: PairedTest, scale: float, digits: int) -> str:
    return _scaled(test.difference, scale).format(digits, sign=True)


def _scaled(interval: Interval, scale: float) -> Interval:
    return Interval(scale * interval.mean, scale * interval.low, scale * interval.high, interval.n)


def _cell(results: Results[DenoisingConfig], metric: str, **where: str) -> str:
    """Mean and interval of a table's cell; a dash where there is no such number."""
    if not results.values(metric, **where):
        return "–"
    _, scale, digits = COLUMNS["success" if metric == "history" else metric]
    interval = results.interval(metric, **where)
    if metric in SHARES:
        interval = interval.within(0.0, 1.0)
    return _scaled(interval, scale).format(digits)
