"""The evaluation of a text-to-image pipeline as a table, a file and pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.config import require
from qhw_diffusion.diffusion.pipeline import load_pipeline
from qhw_diffusion.diffusion.text_to_image.classifiers import PromptClassifier
from qhw_diffusion.diffusion.text_to_image.evaluation import (
    PromptJudge,
    PromptMeasures,
    sample_prompts,
    sweep_constants,
)
from qhw_diffusion.diffusion.text_to_image.images import draw
from qhw_diffusion.diffusion.text_to_image.prompts import ATTRIBUTE_TABLE, HELD_OUT, PROMPTS, TRAINED
from qhw_diffusion.runs import RunFolder, evaluation_metrics
from qhw_diffusion.runs.files import atomic_write_bytes, atomic_write_json, check_writable

_COLUMNS = (
    "steps",
    "g",
    "digit",
    "colour",
    "ground",
    "all",
    "all, trained",
    "all, held out",
    "FD",
    "energy",
    "diversity",
)
_PICTURED = 10  # prompts in a picture: one of each digit, by turns trained and held out


def evaluate(
    pipeline: str | Path,
    evaluation_classifier: str | Path,
    scales: Sequence[float],
    steps: Sequence[int],
    per_prompt: int,
    seed: int,
    out: str | Path,
    run: RunFolder | None = None,
) -> str:
    """Measure a pipeline at constant scales and write results.json and a picture per number of steps.

    Args:
        pipeline: see `load_pipeline`.
        evaluation_classifier: see `PromptClassifier.load`.
        scales: constant guidance scales.
        steps: numbers of sampling steps.
        per_prompt: images of each prompt, two or more.
        seed: of the latents.
        out: folder to write.
        run: the pipeline's, whose loggers are told what was measured and get the pictures.

    Returns:
        The table, in Markdown; its last row is that of real images.

    Raises:
        InvalidInputError: no scales or steps, steps or images of a prompt too few.
    """
    require(bool(scales) and min(scales) >= 0, f"scales are numbers from 0, at least one, got {tuple(scales)}")
    require(bool(steps) and min(steps) >= 1, f"steps are whole numbers from 1, at least one, got {tuple(steps)}")
    require(per_prompt >= 2, f"at least two images of a prompt are compared with each other, got {per_prompt}")
    check_writable(out)
    loaded, judge = load_pipeline(pipeline), PromptJudge(PromptClassifier.load(evaluation_classifier, "evaluation"))
    results: list[dict[str, Any]] = []
    measured: dict[str, dict[str, float]] = {}
    lines = [_row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
    sweep = sweep_constants(loaded, judge, scales=scales, steps=steps, per_prompt=per_prompt, seed=seed)
    for count, scale, found in sweep:
        results.append({"steps": count, "scale": scale, **found.summary()})
        lines.append(_line(str(count), f"{scale:g}", found))
        measured[f"{count}-steps-seed{seed}/g = {scale:g}"] = _numbers(found)
    # as many real images of the digits that the model was trained on
    labels = torch.arange(len(PROMPTS)).repeat(per_prompt)
    floor = judge(draw(ATTRIBUTE_TABLE[labels], torch.Generator().manual_seed(seed)), labels)
    lines.append(_line("real", "", floor))
    pictures = {count: picture(loaded, scales, count, seed) for count in steps}
    for count, png in pictures.items():
        atomic_write_bytes(Path(out) / f"samples-{count}-steps.png", png)
    atomic_write_json(Path(out) / "results.json", {"constants": results, "real": floor.summary()})
    if run is not None:
        told = evaluation_metrics({**measured, f"real-seed{seed}": _numbers(floor)})
        drawn = {f"evaluation/{count}-steps-seed{seed}": partial(bytes, png) for count, png in pictures.items()}
        with run:
            run.tell(told, drawn)
    return "\n".join(lines)


def _numbers(found: PromptMeasures) -> dict[str, float]:
    """The columns of the table, as metrics of a logger."""
    trained, held_out = (found.accuracy(of)["all"] for of in (~found.held_out, found.held_out))
    shares = {**found.accuracy(), "trained": trained, "held_out": held_out}
    distances = {"fd": found.fd, "energy": found.energy, "diversity": found.diversity}
    return {**{f"accuracy_{name}": share for name, share in shares.items()}, **distances}


def _line(steps: str, scale: str, found: PromptMeasures) -> str:
    shares = found.accuracy()
    parts = (found.accuracy(~found.held_out)["all"], found.accuracy(found.held_out)["all"])
    return _row(
        [
            steps,
            scale,
            *(f"{100 * share:.1f}" for share in (*shares.values(), *parts)),
            f"{found.fd:.2f}",
            f"{found.energy:.3f}",
            f"{found.diversity:.2f}",
        ]
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def picture(pipeline: Any, scales: Sequence[float], steps: int, seed: int) -> bytes:
    """A PNG: a column for each of ten prompts, a row for each scale, the same starting noise down a column."""
    from matplotlib.figure import Figure

    pick = torch.Generator().manual_seed(seed)
    labels = [_one_of((HELD_OUT, TRAINED)[digit % 2], digit, pick) for digit in range(_PICTURED)]
    texts = [PROMPTS[label] for label in labels]
    figure = Figure(figsize=(1.1 * len(texts), 1.1 * len(scales) + 0.8), layout="constrained")
    axes = figure.subplots(len(scales), len(texts), squeeze=False)
    for row, scale in zip(axes, scales, strict=True):
        images = sample_prompts(pipeline, texts, scale=scale, steps=steps, seed=seed)
        for axis, image in zip(row, images, strict=True):
            axis.imshow(((image + 1) / 2).permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"g = {scale:g}")
    for axis, text, label in zip(axes[0], texts, labels, strict=True):
        title = text.replace(" on ", "\non ").replace(" ground", "\nground")
        axis.set_title(title, fontsize=7, style="italic" if label in HELD_OUT.tolist() else "normal")
    figure.supxlabel(f"{steps} steps; in italics: combinations that no image was trained on", fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _one_of(labels: Tensor, digit: int, generator: torch.Generator) -> int:
    of_digit = labels[ATTRIBUTE_TABLE[labels, 0] == digit]
    return int(of_digit[torch.randint(len(of_digit), (1,), generator=generator)])
