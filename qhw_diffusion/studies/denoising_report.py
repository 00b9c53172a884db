"""The report of a denoising study, rendered from its folder alone: HTML for people, Markdown for the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qhw_diffusion.circuits.reverse import reverse_circuit
from qhw_diffusion.config import field_docs
from qhw_diffusion.denoising import AmplitudeQDM
from qhw_diffusion.experiment import plots as denoising_figures
from qhw_diffusion.experiment import plots as figures
from qhw_diffusion.experiment.page import Page as Report
from qhw_diffusion.experiment.page import Section, markdown_table
from qhw_diffusion.runs import RunFolder, atomic_write_text
from qhw_diffusion.studies import denoising_verdict as says
from qhw_diffusion.studies import denoising_work as work
from qhw_diffusion.studies.denoising_settings import ARMS, DenoisingStudyConfig, row_label
from qhw_diffusion.studies.denoising_study import DenoisingResults

_METRICS_TEXT = (
    "FD is the Fréchet distance in the features of the **judge**, a small classifier that no training and no tuning "
    "ever used, against held-out images. It is **not** Inception FID, and its values compare only with one another. "
    "Accuracy: share of images in which the judge sees the label asked for. Diversity: mean distance between two "
    "images of one label. Infidelity: 1 − F between the average state that was made and that of the training data, "
    "mean over labels; it counts signs and phases, which images do not have. Visible infidelity: the same of the "
    "average outcome probabilities. Success: mean probability that a run passes every post-selection. Parameters: "
    "trained numbers. Numbers are means over seeds with a 95 % t-interval (cut where a share would leave 0 to 1); a "
    "seed is one training and one evaluation."
)
_CONTROLS_TEXT = (
    "Random circuit: the same circuit with random angles. Circuit bypassed: pure noise straight into the decoder. "
    "Linear maps: a chain of post-selected steps whose states stay coherent is one contraction a label, whatever its "
    "depth. In closed form: the one that reproduces the data's second moments, rank and power tuned with the reward "
    "classifier. Rank 1 prints one image a label: recognisable, without diversity. Trained: any contraction, by the "
    "same loop on the same loss: the ceiling of all chains of post-selected steps. Classical network: at most as many "
    "parameters, trained likewise."
)
_COMPARED = {
    "measured": "the magnitudes of the amplitudes",
    "fidelity": "fidelity, which counts signs and phases",
    "superfidelity": "superfidelity, which counts signs and phases",
}
_DECODER_TEXT = ", and the decoder of the latent space was trained on √(counts/N) of sampled outcomes"
_DEVICE_TEXT = (
    "A device gives counts of measured bit strings: estimates of probabilities, and as their square roots the "
    "**magnitudes** of the amplitudes. Signs and phases of amplitudes leave no trace in these counts.",
    "So nothing here reads a sign or a phase: images are magnitudes{decoder}. "
    "States stay coherent between the steps; data qubits are measured once, at the end.",
    "Rows with noise are simulated with the device's calibration data: gate errors, relaxation and readout errors of "
    "data qubits and ancillas. A post-selected ancilla that is misread lets a wrong state pass. Rows with finite shots "
    "measure every image {shots:,} times, of which those count that pass post-selection, or repeat the image's record "
    "of outcomes.",
    "Starting states are drawn Haar-random. On a device they are the output of a random circuit, whose cost is not "
    "counted here, and every image needs its own state to be prepared again for each of its shots.",
)


def render_report(results: DenoisingResults, *, title: str, command: str, path: Path | None = None) -> Path:
    """Write report.html (into the study's folder unless `path` is given) and return its path."""
    report = Report(title, subtitle=_subtitle(results))
    here = work.Context(results.root)
    _verdict(report.section("What came out"), results)
    _trained(report.section("What was trained"), results, here)
    _samples(report.section("Samples"), results, here)
    _table(report.section("All models and controls on the same seeds"), results)
    _tests(report.section("Paired tests"), results)
    _process(report.section("The reverse process, step by step"), results)
    _success(report.section("Success probability and shots"), results)
    _curves(report.section("Training"), results)
    _circuit(report.section("The circuit on the device"), results, here)
    latent = results.config.latent_qubits > 0
    told = {"shots": results.config.shots, "decoder": _DECODER_TEXT if latent else " of amplitudes, pixel by pixel"}
    report.section("What a device can give").text(*(text.format(**told) for text in _DEVICE_TEXT))
    _reproduce(report.section("How to reproduce"), results, command)
    return report.save(path if path is not None else results.root / "report.html")


def render_markdown(results: DenoisingResults, *, title: str, command: str, path: Path) -> Path:
    """The same results as a Markdown page: verdict, tables, tests, settings; no figures."""
    parts = [f"# {title}\n", _subtitle(results) + "\n", f"```\n{command}\n```\n"]
    parts += ["## What came out\n", _lines(says.verdict(results)[0])]
    parts += ["## All models and controls on the same seeds\n", f"{_METRICS_TEXT}\n", f"{_CONTROLS_TEXT}\n"]
    parts.append(markdown_table(*says.results_table(results)))
    for metric, name in (("fd", "Fréchet distance"), ("accuracy", "accuracy")):
        columns, rows = says.tests_table(results, metric)
        if rows:
            parts += [f"## Planned comparisons: {name}\n", markdown_table(columns, rows)]
    parts += ["## Success probability and shots\n", markdown_table(*says.success_table(results))]
    parts += ["## Settings\n", markdown_table(["setting", "value", "meaning"], _settings(results.config))]
    parts.append(f"Seeds 0 to {results.config.seeds - 1}; {_versions(results.manifest)}\n")
    return atomic_write_text(path, "\n".join(parts))


def _subtitle(results: DenoisingResults) -> str:
    c = results.config
    where = f"in a latent space of {c.latent_qubits} qubits" if c.latent_qubits else "in the amplitudes of pixels"
    return (
        f"A diffusion model whose denoiser is a quantum circuit, conditioned on {len(c.labels)} labels of {c.data}, "
        f"{where}: {c.n_steps} reverse steps, ideal, with the noise of {c.device}, and with finite shots, against "
        f"controls. {c.seeds} seeds, {c.eval_images} images a row and seed."
    )


def _verdict(section: Section, results: DenoisingResults) -> None:
    sentences, tone = says.verdict(results)
    section.note(sentences[0], "good" if tone == "good" else "caution")
    cards = []
    for row, name in (("postselected", "post-selected"), ("feedforward", "feed-forward"), ("linear", "linear map"),
                      ("frozen", "random circuit")):  # fmt: skip
        fd, accuracy = (results.interval(row, m) if row in results.rows else None for m in ("fd", "accuracy"))
        if fd is not None and accuracy is not None:
            cards.append((f"{fd.mean:.1f} · {accuracy.mean:.0%}", f"FD · accuracy, {name}"))
    floor = (results.floor_interval("encoded", m).mean for m in ("fd", "accuracy"))
    cards.append(("{:.1f} · {:.0%}".format(*floor), "FD · accuracy, real images through the decoder"))
    section.numbers(cards)
    section.bullets(sentences[1:])


def _trained(section: Section, results: DenoisingResults, here: work.Context) -> None:
    c, model = results.config, here.model("postselected", 0)
    circuit = model.reverse.circuit
    section.text(
        f"Every step is a circuit of {c.depth} layers (RX, RZ, RY on every qubit, then a CNOT chain) on "
        f"{here.n_qubits} data qubits and {c.ancillas} ancilla{'s' * (c.ancillas > 1)} "
        f"({c.measured_ancillas} where outcomes are kept), with weights of its own; the label turns the ancillas. "
        f"All {c.n_steps} steps were trained together on the images' states, by the maximum mean discrepancy of what "
        f"comes out at t = 0 and the training data, in {_COMPARED[c.similarity]}. {len(circuit.weights)} weights a "
        "step."
    )
    rows = [[name, f"{count:,}"] for name, count in says.parameters_of(results).items()]
    section.table(["trained", "parameters"], rows)
    if "noise" in c.arms:
        section.text(
            f"The model trained under noise starts from the post-selected one's weights and makes {c.noise_iterations} "
            f"more updates on density matrices, with the noise of {c.device}; the others end before."
        )
    if here.autoencoder is not None:
        r = here.autoencoder.report
        section.text(
            f"The classical autoencoder ({here.autoencoder.n_parameters:,} parameters, the same for all rows) squeezes "
            f"an image into the {2**here.n_qubits} magnitudes of {here.n_qubits} qubits. Its mean squared error a "
            f"pixel on held-out images is {r['heldout_mse']:.3f}; printing the mean image has "
            f"{r['heldout_mse_mean_image']:.3f}. What it loses, no circuit can bring back: the second floor below. It "
            "also makes something like a digit of almost anything, so the control with the circuit bypassed matters."
        )


def _samples(section: Section, results: DenoisingResults, here: work.Context) -> None:
    wanted = [r for r in results.rows if r not in ("postselected@shots", "noise@noisy-shots")]
    grids = {row_label(row): work.read_samples(results.root, row, 0)["images"].numpy() for row in wanted}
    n = min(len(images) for images in grids.values())
    count = len(results.config.labels)
    picked = [torch.nonzero(here.heldout.labels == k % count)[k // count, 0] for k in range(n)]
    real = here.heldout.images[torch.stack(picked)]
    model = here.model("postselected", 0)
    grids = {"real images, held out": real.numpy(), "the same, encoded and decoded": _through(model, real), **grids}
    names = ", ".join(map(str, results.config.labels))
    section.figure(
        figures.sample_grids(grids, rows=4),
        alt=f"Grids of {results.config.data} images, one grid a model: {', '.join(grids)}.",
        caption=f"Seed 0. Labels asked for: {names}, over and over. Images are not chosen.",
        wide=True,
    )


def _through(model: AmplitudeQDM, images: torch.Tensor) -> Any:
    return model.decode(model.encode(images).abs()).numpy()


def _table(section: Section, results: DenoisingResults) -> None:
    section.text(_METRICS_TEXT, _CONTROLS_TEXT)
    columns, rows = says.results_table(results)
    section.table(columns, rows, caption="Low FD and infidelity, high accuracy are good; diversity near real images'.")
    if results.config.seeds < 2:
        return
    fd = {row_label(row): results.values(row, "fd") for row in results.rows}
    section.figure(
        figures.comparison(fd, xlabel="Fréchet distance in the judge's features (left is better)",
                           mark=results.floor_interval("encoded", "fd").mean),
        alt="Fréchet distance of every row: a dot per seed, mean and 95 % interval.",
        caption="Dashed: real images, encoded and decoded.",
    )  # fmt: skip
    linear = results.rows["linear"]
    chosen = "; ".join(f"seed {r['seed']}: rank {r['rank']}, power {r['power']:g}" for r in linear)
    section.text(f"Chosen for the linear map in closed form: {chosen}.")


def _tests(section: Section, results: DenoisingResults) -> None:
    if results.config.seeds < 2:
        section.text("Paired tests need at least two seeds.")
        return
    section.text(
        "A pair is one seed. The comparisons are fixed in the code, not chosen by their outcome; p (Holm) corrects the "
        "paired t-test for all of them together. Wilcoxon's signed-rank and the exact sign-flip test need no normal "
        "distribution."
    )
    for metric, caption in (("fd", "Fréchet distance (negative: the first is better)."),
                            ("accuracy", "Accuracy (positive: the first is better).")):  # fmt: skip
        columns, rows = says.tests_table(results, metric)
        section.table(columns, rows, caption=caption)


def _process(section: Section, results: DenoisingResults) -> None:
    shown = [r for r in ("postselected", "postselected@noisy", "feedforward", "measured") if r in results.rows][:3]
    paths = {row_label(row): work.read_samples(results.root, row, 0)["path"].numpy() for row in shown}
    section.figure(
        denoising_figures.reverse_paths(paths, results.config.labels),
        alt=f"Images decoded from the states at every step, t = {results.config.n_steps} (noise) to 0, a row a label, "
        f"for: {', '.join(paths)}.",
        caption="Seed 0, one sample a label. The states in between are decoded for the reader only: a device measures "
        "at t = 0 alone. The first column is the decoder's picture of pure noise.",
        wide=True,
    )
    visible = results.config.similarity == "measured"
    kind = "visible_by_step" if visible else "infidelity_by_step"
    found = {row_label(row): [entry[kind] for entry in entries] for row, entries in results.rows.items()
             if kind in entries[0]}  # fmt: skip
    section.figure(
        denoising_figures.by_step(found, ylabel=f"{'visible ' * visible}infidelity of the averages"),
        alt="Infidelity between the averages of the model and of noised data, over the reverse process.",
        caption="At t, what the model has is compared with training data noised to t. Training looked at t = 0 alone: "
        "in between, the chain is free to take a path of its own. At T both are pure noise: what is left there comes "
        "from the finite number of samples.",
    )


def _success(section: Section, results: DenoisingResults) -> None:
    section.text(
        f"A post-selected run counts only when all {results.config.n_steps} steps read 0 on their ancillas: the "
        "probabilities of the steps multiply, and what fails has been run for nothing. A model that keeps its outcomes "
        "loses no run, but every record of outcomes is an image of its own: shots of the same image are those in which "
        "its record comes up again. The third column is the number of shots that leave 1,000 in 95 % of all cases."
    )
    section.table(*says.success_table(results))


def _curves(section: Section, results: DenoisingResults) -> None:
    panels: dict[str, dict[str, list[list[float]]]] = {"loss (MMD, and −log success)": {}, "success probability": {}}
    for arm in results.config.arms:
        folders = [work.training_folder(results.root, arm, seed) for seed in range(results.config.seeds)]
        logs = [RunFolder.open(folder, kind=work.TRAINING).metrics() for folder in folders]
        panels["loss (MMD, and −log success)"][ARMS[arm]] = [[row["losses/train"] for row in log] for log in logs]
        if arm in ("postselected", "noise", "reconstruction"):
            panels["success probability"][ARMS[arm]] = [[row["charts/probability"] for row in log] for log in logs]
    section.figure(
        denoising_figures.training_curves(panels),
        alt="Training loss of every model and success probability of the post-selected ones over the updates; thin "
        "lines are seeds, thick lines their mean.",
        caption="Running means over 15 updates. The training under noise starts from trained weights"
        + ("." if results.config.similarity == "measured" else " and compares by superfidelity, on another scale."),
        wide=True,
    )


def _circuit(section: Section, results: DenoisingResults, here: work.Context) -> None:
    c = results.config
    steps = [("postselected", c.ancillas)]
    if "feedforward" in c.arms or "measured" in c.arms:
        steps.append(("feedforward" if "feedforward" in c.arms else "measured", c.measured_ancillas))
    drawn = reverse_circuit(here.n_qubits, c.ancillas, min(2, c.depth), conditioning_angles=True).circuit
    section.figure(
        figures.circuit_drawing(drawn, fold=40),
        alt=f"The first {min(2, c.depth)} layers of a step: rotations on {drawn.num_qubits} qubits and CNOT chains.",
        caption=f"The first {min(2, c.depth)} of {c.depth} layers of a step as drawn: data qubits above, then "
        "ancillas. w are weights, x the angles that carry the label.",
        wide=True,
    )
    rows, layout = [], None
    for arm, ancillas in steps:
        model = here.model(arm, 0).on(device=c.device, engine="noisy")
        compiled = model.reverse.compiled
        layout = layout or compiled
        gates = ", ".join(f"{name} {n}" for name, n in compiled.isa.count_ops().items())
        duration = f"{compiled.duration * 1e6:.2f} µs" if compiled.duration else "–"
        rows.append([ARMS[arm], f"{here.n_qubits} + {ancillas}", ", ".join(map(str, compiled.physical_qubits)),
                     str(compiled.depth), str(compiled.two_qubit_gates), duration,
                     str(c.n_steps * compiled.two_qubit_gates), gates])  # fmt: skip
    columns = ["one step of", "data + ancillas", "physical qubits", "depth", "two-qubit gates", "duration",
               f"two-qubit gates in {c.n_steps} steps", "gates of a step"]  # fmt: skip
    section.table(columns, rows, caption=f"As compiled for {c.device}; durations without measurement and reset.")
    assert layout is not None
    section.text(
        "A run on the device repeats the step with the next weights; ancillas are measured and reset in between, and "
        "with feed-forward the outcome chooses the weights of the next step (a dynamic circuit)."
    )
    if layout.device.target is not None:
        section.figure(
            figures.device_layout(layout.device.target, layout.physical_qubits, title=f"{c.device}: qubits in use"),
            alt=f"Coupling map of {c.device} with the physical qubits {list(layout.physical_qubits)} marked.",
        )
    provenance = "; ".join(f"{key}: {value}" for key, value in layout.device.provenance.items())
    section.text(f"Noise from the device's calibration data — {provenance}.")


def _reproduce(section: Section, results: DenoisingResults, command: str) -> None:
    section.code(command, caption="The same numbers on the same machine, bit for bit:")
    section.text(
        f"Seed k (0 to {results.config.seeds - 1}) decides the k-th training of every model and, as "
        f"{work.EVALUATION_SEED:,} + k, the starting states and measurement outcomes of the k-th evaluation. The "
        f"linear map is tuned with seed {work.TUNING_SEED:,}. One thread per process."
    )
    section.table(["setting", "value", "meaning"], _settings(results.config))
    section.text(_versions(results.manifest))


def _settings(config: DenoisingStudyConfig) -> list[list[str]]:
    docs = field_docs(DenoisingStudyConfig)
    told = {name: ", ".join(map(str, v)) if isinstance(v, list | tuple) else v for name, v in config.to_dict().items()}
    return [[name, "–" if value in (None, "") else str(value), docs.get(name, "")] for name, value in told.items()]


def _lines(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences) + "\n"


def _versions(m: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in m["packages"].items())
    return (
        f"Started {m['created']} with qhw-diffusion {m['qhw_diffusion']} (commit {m['commit'] or 'unknown'}), "
        f"Python {m['python']}, {packages}; {m['platform']}, {m['cpu_count']} CPUs."
    )
