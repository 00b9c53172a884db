"""`qhw demo denoising` and `qhw study denoising`: a study from flags, a prediction of its cost, or its report again."""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from qhw_diffusion.denoising import AutoencoderConfig, LatentAutoencoder, TrainConfig, train_qdm
from qhw_diffusion.runs import Place, RunFolder, check_writable
from qhw_diffusion.studies import denoising_verdict as says
from qhw_diffusion.studies.denoising_report import render_markdown, render_report
from qhw_diffusion.studies.denoising_settings import DenoisingStudyConfig
from qhw_diffusion.studies.denoising_study import (
    load_denoising_results,
    open_denoising_study,
    run_denoising_study,
    write_denoising_summary,
)
from qhw_diffusion.studies.denoising_work import KIND, Context
from qhw_diffusion.studies.flags import given_flags
from qhw_diffusion.studies.single import one_thread

DEMO_TITLE = "A quantum circuit as the denoiser of a diffusion model"


def demo_config(*, quick: bool = False) -> DenoisingStudyConfig:
    """Settings of the demo: the study's own without one arm and shorter; `quick`: two seeds and less of everything."""
    arms = ("postselected", "feedforward", "noise", "contraction", "classical")
    demo = DenoisingStudyConfig(arms=arms, iterations=500, eval_images=400)
    if quick:
        return replace(demo, seeds=2, iterations=150, noise_iterations=20, autoencoder_steps=800, eval_images=200)
    return demo


def run_denoising_demo(place: Place, *, workers: int, quick: bool = False) -> str:
    """Do what is left of the demo of the quantum denoiser; returns the text to print."""
    one_thread()
    place.check(KIND)
    run = open_denoising_study(
        place.out, demo_config(quick=quick), command=place.command, resume=place.resume, overwrite=place.overwrite
    )
    run_denoising_study(run, workers=workers)
    return finish(run, title=DEMO_TITLE, command=run.manifest["command"] or place.command)


def study_from_arguments(arguments: argparse.Namespace) -> str:
    """`qhw study denoising`: dry run, report only, or the whole study; returns the text to print."""
    one_thread()
    if arguments.markdown:
        check_writable(arguments.markdown)  # before hours of work
    if arguments.report_only:
        run = RunFolder.open(arguments.out, kind=KIND)
    else:
        base = DenoisingStudyConfig()
        if arguments.resume:
            base = DenoisingStudyConfig.from_dict(RunFolder.open(arguments.out, kind=KIND).config)
        config = replace(base, **given_flags(arguments, DenoisingStudyConfig))
        if arguments.dry_run:
            return predict(config, arguments.workers)
        Place(arguments.out, arguments.overwrite, arguments.resume).check(KIND)
        how = {"resume": arguments.resume, "overwrite": arguments.overwrite}
        run = open_denoising_study(arguments.out, config, command=arguments.command_line, **how)
        run_denoising_study(run, workers=arguments.workers)
    command = run.manifest["command"] or arguments.command_line
    text = finish(run, title=arguments.title, command=command)
    if arguments.markdown:
        results = load_denoising_results(run)
        page = render_markdown(results, title=arguments.title, command=command, path=Path(arguments.markdown))
        text += f"\ntables: {page}"
    return text


def finish(run: RunFolder, *, title: str, command: str) -> str:
    """results.json and report.html of a finished study; returns the summary to print."""
    results = load_denoising_results(run)
    write_denoising_summary(results)
    page = render_report(results, title=title, command=command)
    columns, rows = says.results_table(results)
    shown = [columns.index(says.COLUMNS[metric][0]) for metric in ("fd", "accuracy", "success")]
    lines = [""]
    lines += [f"{row[0]:<64}" + "".join(f" {row[i]:>21}" for i in shown) for row in ([*columns], *rows)]
    lines += ["", *(f"· {sentence.replace('**', '')}" for sentence in says.verdict(results)[0])]
    return "\n".join([*lines, "", f"report: {page}"])


def predict(config: DenoisingStudyConfig, workers: int) -> str:
    """What a study will cost: minutes of each part, from a few updates and samples measured on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        here = Context(open_denoising_study(Path(folder) / "study", config).path)
    if config.latent_qubits:
        shape = AutoencoderConfig(image_shape=here.train.image_shape, latent_qubits=config.latent_qubits)
        here.autoencoder = LatentAutoencoder(shape).eval()
    parts: list[tuple[str, int, float]] = []
    for arm in config.arms:
        settings = config.training(arm, 0)
        each = _update_seconds(here, arm, settings)
        parts.append((f"training: {arm}", config.seeds * settings.iterations, each))
    noisy = sum("noisy" in row for row in config.rows())
    for name, count, engine in (("ideal", len(config.rows()) - noisy, "ideal"), ("noisy", noisy, "noisy")):
        each = _sample_seconds(here, engine)
        parts.append((f"evaluation: {name}, images", count * config.seeds * config.eval_images, each))
    lines = [f"{'part':<32}{'pieces':>10}{'minutes':>10}"]
    lines += [f"{name:<32}{count:>10,}{count * each / 60 / workers:>10.1f}" for name, count, each in parts]
    total = sum(count * each for _, count, each in parts) / 60 / workers
    lines.append(f"{'all':<32}{'':>10}{total:>10.1f}")
    lines.append(f"measured now, {workers} processes; without the autoencoder and half a minute to start")
    return "\n".join(lines)


def _update_seconds(here: Context, arm: str, settings: TrainConfig) -> float:
    """Seconds of one update of an arm; the first, which builds caches, does not count."""
    model = here.model(arm, 0)
    if arm == "noise":
        model = model.on(device=here.config.device, engine="noisy")
    marks: list[float] = []
    train_qdm(
        model,
        here.train.images,
        replace(settings, iterations=3),
        labels=here.train.labels,
        on_update=lambda update, metrics: marks.append(time.perf_counter()),
    )
    return (marks[-1] - marks[0]) / 2


def _sample_seconds(here: Context, engine: str) -> float:
    """Seconds to sample one image."""
    model, count = here.model("postselected", 0), 40
    if engine == "noisy":
        model = model.on(device=here.config.device, engine="noisy")
    labels = torch.arange(count) % len(here.config.labels)
    seconds = 0.0
    for _ in range(2):  # the first time builds caches
        started = time.perf_counter()
        model.sample(count, torch.Generator().manual_seed(0), labels)
        seconds = time.perf_counter() - started
    return seconds / count
