"""The report of a denoiser on a device: images predicted and measured side by side with error bars, jobs, device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from qhw_diffusion.denoising.on_device.evaluation import CIRCUIT, ImageCheck, Measured, Prepared, check_images
from qhw_diffusion.experiment import plots as figures
from qhw_diffusion.experiment.page import Page, Section
from qhw_diffusion.on_device.report import add_device, add_reproduction
from qhw_diffusion.runs import evaluation_metrics

# Images shown with their error bars, and rows of the table
_SHOWN, _ROWS = 10, 64


def render_evaluation(
    prepared: Prepared,
    measured: Measured,
    judged: Mapping[str, Mapping[str, float]],
    *,
    mode: str,
    paid: bool,
    command: str,
) -> Path:
    """Write report.html into the evaluation's folder, and tell its loggers; returns its path."""
    asked, compiled, config = prepared.asked, prepared.compiled, prepared.model.reverse.config
    checks = check_images(prepared, measured)
    dynamic = prepared.sampler is not None and prepared.sampler.way == "dynamic"
    page = Page(
        f"A quantum denoiser on {compiled.device.name}",
        subtitle=f"{asked.images} images of {asked.run}: {config.n_steps} reverse steps as one "
        f"{'dynamic ' * dynamic}circuit of {len(compiled.physical_qubits)} qubits, one circuit an image, "
        f"{asked.shots:,} shots each, read by {'an Estimator' if prepared.sampler is None else 'a Sampler'}.",
    )
    _outcome(page.section("What came out"), prepared, measured, checks, judged, paid)
    _images(page.section("Images"), prepared, measured)
    _agreement(page.section("Predicted and measured probabilities"), prepared, measured, checks)
    add_device(
        page.section("Device and circuit"),
        compiled,
        caption="Compiled once, before the job; an evaluation that goes on later keeps layout and snapshot, which also "
        "predicts. The preparation of x_T is part of the circuit.",
        snapshot=f"{CIRCUIT}/device.snapshot.json.gz (summary in {CIRCUIT}/device.json)",
    )
    _jobs(page.section("Jobs"), prepared, measured, mode, paid)
    add_reproduction(page.section("How to reproduce"), prepared.folder, asked.ledger, command)
    prepared.folder.tell(evaluation_metrics(judged), page.pictures())
    return page.save(prepared.folder.path / "report.html")


def _outcome(
    section: Section,
    prepared: Prepared,
    measured: Measured,
    checks: Sequence[ImageCheck],
    judged: Mapping[str, Mapping[str, float]],
    paid: bool,
) -> None:
    read, first = measured.denoised.read, prepared.predictions[0]
    resolved = int(read.resolved.sum())
    if resolved < len(checks):
        section.note(
            f"{len(checks) - resolved} of {len(checks)} images have a {share_name(prepared)} not told from 0: "
            "nothing is divided by it, and they are left out below.",
            "caution",
        )
    seconds = measured.receipt.qpu_seconds
    used = "not stated yet" if seconds is None else f"{seconds:.1f}"
    own = float(read.success.mean())
    section.numbers(
        [
            (used if paid else "0", "QPU seconds charged" if paid else "QPU seconds (simulated device)"),
            (f"{own:.2%}", f"of the shots {_count(prepared)}; predicted {float(first.success.mean()):.2%}"),
            (_mean([c.distances[0] for c in checks]), "total variation distance to the prediction, mean"),
            (_mean([c.expected_distance for c in checks]), "of it expected from the error bars alone"),
        ]
    )
    columns = [name for name in ("accuracy", "fd", "kd") if any(name in values for values in judged.values())]
    shown = {"accuracy": "accuracy", "fd": "FD", "kd": "KD"}
    if columns:
        formats = {"accuracy": "{:.1%}", "fd": "{:.2f}", "kd": "{:.4f}"}
        section.table(
            ["images", *(shown[name] for name in columns)],
            [
                [name, *(formats[c].format(values[c]) if c in values else "–" for c in columns)]
                for name, values in judged.items()
            ],
            caption="By the evaluation classifier, which no training saw. One batch, one seed.",
        )


def _images(section: Section, prepared: Prepared, measured: Measured) -> None:
    section.figure(
        comparison_figure(prepared, measured),
        alt="A column an image: measured on the device, the standard error of every pixel, and what was predicted.",
        caption="Measured, the standard error of every pixel (white: 1, half the range from black to white), and the "
        "same starts simulated. Pixels are taken through the decoder to first order.",
        wide=True,
    )


def _agreement(section: Section, prepared: Prepared, measured: Measured, checks: Sequence[ImageCheck]) -> None:
    names = [each.name for each in prepared.predictions]
    if prepared.keeps_outcomes:
        section.text(
            "Outcomes are kept: an image is that of its first shot's record of outcomes, and made of the other shots "
            "with the same record. Predictions are of these records."
        )
    section.text(
        "p(x | kept) is a quotient of two measured numbers that share their shots; its errors are propagated to first "
        "order with their covariance. Distances are total variation, ½ Σ |p − p′|, of the nearest distribution; beside "
        "them what the error bars alone would give if the prediction were exact."
    )
    section.figure(
        probability_figure(prepared, measured),
        alt="Measured probabilities and success probabilities against the prediction, with error bars.",
        caption=f"Against: {names[0]}. Error bars are one standard error.",
        wide=True,
    )
    labels = prepared.labels
    rows = [
        [
            index + 1,
            "–" if labels is None else int(labels[index]),
            f"{float(prepared.predictions[0].success[index]):.2%}",
            f"{check.success:.2%} ± {check.success_error:.2%}",
            "–" if not np.isfinite(check.kept) else f"{check.kept:,.0f}",
            *(f"{distance:.3f}" for distance in check.distances),
            f"{check.expected_distance:.3f}",
        ]
        for index, check in enumerate(checks[:_ROWS])
    ]
    distances = [f"TV to: {name}" for name in names]
    columns = [
        "image",
        "label",
        f"{share_name(prepared)} predicted",
        "measured",
        "shots kept",
        *distances,
        "TV of errors alone",
    ]
    more = f" The first {_ROWS} of {len(checks)}; all are in results.json." if len(checks) > _ROWS else ""
    section.table(columns, rows, caption=f"Every image.{more}")


def _jobs(section: Section, prepared: Prepared, measured: Measured, mode: str, paid: bool) -> None:
    asked, receipt = prepared.asked, measured.receipt
    level = "–" if not paid else str(asked.resilience_level or 0)
    section.text(
        f"Mode `{mode}`, resilience level {level}, mitigation `{asked.mitigation or 'none'}`, {asked.shots:,} shots, "
        f"primitive `{asked.primitive}`. All images are one broadcast job, or several below the service's "
        "limits; raw results are in the ledger, and "
        "what is known of each job is in jobs.json."
    )
    start = prepared.compiled.device
    if any(one["snapshot"] != start.fingerprint for one in receipt.calibrations):
        section.note(
            f"The device was calibrated since (jobs: {receipt.calibrations_text}); predicted is with the calibration "
            f"of {start.date or 'no stated date'}.",
            "caution",
        )
    seconds = "not stated yet" if receipt.qpu_seconds is None else f"{receipt.qpu_seconds:.2f}"
    section.table(
        ["jobs", "calibration of", "QPU seconds"],
        [[receipt.jobs_text or "–", receipt.calibrations_text or "not noted", seconds]],
    )


def comparison_figure(prepared: Prepared, measured: Measured) -> Figure:
    """Images in columns: measured, the pixels' standard errors, every prediction."""
    images = measured.denoised.images
    assert images is not None
    count = min(_SHOWN, len(images.images))
    device = prepared.compiled.device.name
    errors = (2 * images.std_errors.clamp_max(1) - 1).nan_to_num(-1)
    rows = {
        f"measured\non {device}": images.images.nan_to_num(-1),
        "standard\nerror": errors,
        **{each.name.replace(", ", ",\n"): each.images for each in prepared.predictions},
    }
    figure = Figure(figsize=(1.1 * count + 1.6, 1.25 * len(rows) + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (title, shown) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, shown[:count], strict=True):
            axis.imshow(_picture(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8, color=figures.INK)
    if prepared.labels is not None:
        for axis, label in zip(axes[0], prepared.labels[:count].tolist(), strict=True):
            axis.set_title(str(label), fontsize=9, color=figures.INK)
    return figure


def _picture(image: Tensor) -> np.ndarray:
    """[C, H, W] in [−1, 1] → what `imshow` draws; of images with another number of channels the first."""
    shown = ((image.double() + 1) / 2).clamp(0, 1).numpy()
    return np.moveaxis(shown, 0, -1) if len(shown) == 3 else np.asarray(shown[0])


def probability_figure(prepared: Prepared, measured: Measured) -> Figure:
    """Measured against predicted, with error bars: p(x | kept) of all images, and the success probabilities."""
    read, first = measured.denoised.read, prepared.predictions[0]
    ok = read.resolved
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    panels = (
        (left, first.probabilities[ok].flatten(), read.probabilities[ok].flatten(),
         read.probability_errors[ok].flatten(), "p(x | kept)"),
        (right, first.success, read.success, read.success_errors, share_name(prepared)),
    )  # fmt: skip
    for axis, predicted, found, errors, name in panels:
        if len(predicted):
            most = float(max(predicted.max(), found.max()))
            axis.plot([0, most], [0, most], color=figures.INK, lw=0.8, ls="--")
        axis.errorbar(
            predicted.numpy(), found.numpy(), yerr=errors.masked_fill(errors.isinf(), np.nan).numpy(),
            fmt="o", ms=2.0, lw=0.5, color=figures.colour(0),
        )  # fmt: skip
        axis.set_xlabel("predicted", fontsize=9)
        axis.set_ylabel("measured", fontsize=9)
        axis.set_title(name, fontsize=9, color=figures.INK)
        axis.grid(color=figures.FAINT, lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def share_name(prepared: Prepared) -> str:
    """What the share of the shots that count is called."""
    return "probability of the record of outcomes" if prepared.keeps_outcomes else "success probability"


def _count(prepared: Prepared) -> str:
    return "have their image's record of outcomes" if prepared.keeps_outcomes else "pass"


def _mean(values: Sequence[float]) -> str:
    known = [value for value in values if np.isfinite(value)]
    return f"{np.mean(known):.3f}" if known else "–"
