"""The report of a rollout on a device: what was sent, what came back, whether it was what was predicted, the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from qhw_diffusion.experiment import plots as figures
from qhw_diffusion.experiment.page import Page as Report
from qhw_diffusion.experiment.page import Section
from qhw_diffusion.guidance.on_device.analysis import MIN_FD_IMAGES, Compared, StepCheck, changed_steps, check_steps
from qhw_diffusion.guidance.on_device.rollout import Played, Prepared
from qhw_diffusion.on_device.report import add_device, add_reproduction
from qhw_diffusion.runs import evaluation_metrics


def render_rollout(
    prepared: Prepared, played: Played, compared: Sequence[Compared], *, mode: str, paid: bool, command: str
) -> Path:
    """Write report.html into the rollout's folder, and tell its loggers; returns its path."""
    asked, compiled = prepared.asked, prepared.compiled
    checks = check_steps(played, asked.shots)
    report = Report(
        f"A trained policy on {compiled.device.name}",
        subtitle=f"{asked.images} images steered by {asked.run} in {prepared.guidance.n_steps} DDIM steps, one job a "
        f"step, {asked.shots:,} shots a circuit.",
    )
    _outcome(report.section("What came out"), played, compared, checks, paid)
    _agreement(report.section("Predicted and measured expectation values"), played, checks)
    _guidance(report.section("Guidance"), prepared, compared)
    _images(report.section("Images"), asked.images, compared)
    add_device(
        report.section("Device and circuit"),
        compiled,
        caption="Compiled once, before the first job; a rollout that goes on later keeps layout and snapshot, which "
        "also predicts.",
        snapshot="model/device.snapshot.json.gz (summary in device.json)",
    )
    _jobs(report.section("Jobs"), prepared, played, mode, paid)
    add_reproduction(report.section("How to reproduce"), prepared.folder, asked.ledger, command)
    prepared.folder.tell(evaluation_metrics({one.name: one.judged for one in compared}), report.pictures())
    return report.save(prepared.folder.path / "report.html")


def _outcome(
    section: Section, played: Played, compared: Sequence[Compared], checks: Sequence[StepCheck], paid: bool
) -> None:
    counts = [played.measured[0].numel() - c.unknown for c in checks]
    counted = sum(counts)
    mean = sum(n * c.chi2 for n, c in zip(counts, checks, strict=True) if n) / max(counted, 1)
    spread = (2.0 / max(counted, 1)) ** 0.5
    if not counted:
        section.note(
            "The service knows no standard error of any ⟨Z⟩, so nothing can be said about the agreement.", "caution"
        )
    elif abs(mean - 1.0) <= 3.0 * spread:
        section.note(
            f"The measured ⟨Z⟩ agree with the noise predicted from the calibration: mean squared deviation {mean:.2f} "
            f"standard errors squared, 1 ± {spread:.2f} expected.", "good",
        )  # fmt: skip
    else:
        section.note(
            f"The measured ⟨Z⟩ are not what the calibration predicts: mean squared deviation {mean:.2f} standard "
            f"errors squared, 1 ± {spread:.2f} expected. The table below says by how much.", "caution",
        )  # fmt: skip
    seconds = [r.qpu_seconds for r in played.receipts]
    used = "not stated yet" if any(s is None for s in seconds) else f"{sum(s or 0.0 for s in seconds):.1f}"
    rms = float(np.sqrt(np.mean([c.rms**2 for c in checks])))
    section.numbers(
        [
            (used if paid else "0", "QPU seconds charged" if paid else "QPU seconds (simulated device)"),
            (str(sum(len(r.job_ids) + len(r.unused_jobs) for r in played.receipts)), "jobs"),
            (f"{rms:.4f}", "root mean square of measured − predicted ⟨Z⟩"),
            (f"{compared[0].judged['accuracy']:.1%}", "images the evaluation classifier sees as asked for"),
        ]
    )


def _agreement(section: Section, played: Played, checks: Sequence[StepCheck]) -> None:
    section.text(
        "Predicted: the exact values of the same circuits at the same angles under the noise of the device's snapshot "
        "(`noisy` engine). Each ⟨Z⟩ counts with the standard error the device's answer states. χ² is the mean of "
        "((measured − predicted) / standard error)²: 1 where the prediction holds, larger where the device has drifted "
        "or has errors the calibration does not know. The ⟨Z⟩ of one circuit share their shots, so p is approximate."
    )
    rows = [
        [c.step, f"{c.rms:.4f}", f"{c.expected_rms:.4f}", f"{c.bias:+.4f} ± {c.bias_error:.4f}", f"{c.chi2:.2f}",
         "< 0.001" if c.p < 0.001 else f"{c.p:.3f}", f"{c.worst:.1f}"]
        for c in checks
    ]  # fmt: skip
    columns = ["step", "rms", "rms of shots alone", "bias ± standard error", "χ²", "p", "worst, in standard errors"]
    section.table(columns, rows, caption="Measured minus predicted ⟨Z⟩, over samples and qubits.")
    if unknown := sum(c.unknown for c in checks):
        section.text(
            f"{unknown} of {played.measured.numel()} ⟨Z⟩ came with an infinite standard error, as the client's "
            "zero-noise extrapolation gives for single values. They steer and count in rms; the other numbers are of "
            "the rest. They have no error bar."
        )
    section.figure(
        expectation_figure(played),
        alt="Measured minus predicted expectation values against the prediction, with error bars, a panel per step.",
        caption="Every point is ⟨Z⟩ of one qubit for one image; error bars are one standard error.",
        wide=True,
    )


def _guidance(section: Section, prepared: Prepared, compared: Sequence[Compared]) -> None:
    section.figure(
        figures.guidance_trajectories({one.name: one.g for one in compared}, n_steps=prepared.guidance.n_steps),
        alt="Guidance scale over the sampling steps: on the device, simulated with its noise, simulated without.",
        caption="Mean and standard deviation over the images, all from the same starts. The constant is the policy's "
        "zero action.",
    )


def _images(section: Section, count: int, compared: Sequence[Compared]) -> None:
    shown = min(count, 32)
    rows = min(4, shown)
    section.figure(
        figures.sample_grids({one.name: one.images[:shown].numpy() for one in compared}, rows=rows),
        alt="Generated images, one grid per policy; the same place has the same label and initial noise.",
        wide=True,
    )
    full = "fd" in compared[0].judged
    columns = ["policy", *(["energy", "FD", "KD"] if full else []), "accuracy", "pixel rms to the device's"]
    rows_ = []
    for one in compared:
        rms = f"{one.judged['pixel_rms']:.3f}" if "pixel_rms" in one.judged else "–"
        told = [f"{one.judged[key]:.{digits}f}" for key, digits in (("energy", 3), ("fd", 2), ("kd", 4)) if full]
        rows_.append([one.name, *told, f"{one.judged['accuracy']:.1%}", rms])
    section.table(
        columns,
        rows_,
        caption="By the evaluation classifier, a classifier that no training saw. One batch, one seed."
        + " Energy: energy distance within each class to held-out images." * full,
    )
    if not full:
        section.text(
            f"{count} images are too few for distances to held-out images (from {MIN_FD_IMAGES} on they are given). "
            "Distances between policies are measured by `qhw evaluate guidance` without a device, over seeds."
        )


def calibration_text(prepared: Prepared, played: Played) -> str:
    """One sentence: whether the device was calibrated under way, and what predicts; empty where none was noted."""
    if not any(receipt.calibrations for receipt in played.receipts):
        return ""
    steps, start = changed_steps(prepared, played), prepared.compiled.device.date or "no stated date"
    if not steps:
        return f"All steps ran under the calibration of {start}, which is also what predicts."
    under = "; ".join(f"step {step}: {played.receipts[step - 1].calibrations_text}" for step in steps)
    return (
        f"The device was calibrated under way ({under}), while the predictions stay those of the calibration of "
        f"{start}, with which the rollout began."
    )


def _jobs(section: Section, prepared: Prepared, played: Played, mode: str, paid: bool) -> None:
    asked = prepared.asked
    level = "–" if not paid else str(asked.resilience_level or 0)
    section.text(
        f"Mode `{mode}`, resilience level {level}, mitigation `{asked.mitigation or 'none'}`, {asked.shots:,} shots. "
        "All images of a step are one broadcast job; raw results are in the ledger, and what is known of each job is "
        "in jobs.json."
    )
    if text := calibration_text(prepared, played):
        section.note(text, "caution" if changed_steps(prepared, played) else "good")
    rows = [
        [index + 1, receipt.jobs_text or "–", receipt.calibrations_text or "not noted",
         "not stated yet" if receipt.qpu_seconds is None else f"{receipt.qpu_seconds:.2f}"]
        for index, receipt in enumerate(played.receipts)
    ]  # fmt: skip
    section.table(["step", "job", "calibration of", "QPU seconds"], rows)


def _drawn(errors: Tensor) -> Tensor:
    """Lengths of error bars: none where the standard error is infinite."""
    return errors.masked_fill(errors.isinf(), torch.nan)


def expectation_figure(played: Played) -> Figure:
    """Measured minus predicted ⟨Z⟩ with standard errors, against the prediction: a panel per step, at most twelve."""
    steps = len(played.measured)
    shown = sorted({round(float(s)) for s in np.linspace(0, steps - 1, min(12, steps))})
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(3.4 * across, 2.6 * down), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    for axis, step in zip(axes, shown, strict=False):
        axis.axhline(0.0, color=figures.INK, lw=0.8, ls="--")
        for qubit in range(played.measured.shape[2]):
            predicted = played.predicted[step, :, qubit].numpy()
            axis.errorbar(
                predicted,
                played.measured[step, :, qubit].numpy() - predicted,
                yerr=_drawn(played.std_errors[step, :, qubit]).numpy(),
                fmt="o", ms=2.0, lw=0.5, color=figures.colour(qubit), label=f"⟨Z⟩ of qubit {qubit}",
            )  # fmt: skip
        axis.set_title(f"step {step + 1}", fontsize=9, color=figures.INK)
        axis.grid(color=figures.FAINT, lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("predicted ⟨Z⟩", fontsize=9)
    figure.supylabel("measured − predicted", fontsize=9)
    axes[0].legend(frameon=False, fontsize=6, ncols=2)
    return figure
