"""`qhw study guidance`: a study from flags, a prediction of its cost, or its report once more."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qhw_diffusion.guidance import ActorConfig, GuidanceConfig, PPOConfig, RewardConfig, train_guidance
from qhw_diffusion.runs import RunFolder, check_writable
from qhw_diffusion.studies import analysis
from qhw_diffusion.studies.demo import finish
from qhw_diffusion.studies.flags import given_flags
from qhw_diffusion.studies.guidance_report import render_markdown
from qhw_diffusion.studies.guidance_study import Stage, open_study, plan, run_study
from qhw_diffusion.studies.measure import sample_and_measure
from qhw_diffusion.studies.models import draw_starts, load_models
from qhw_diffusion.studies.settings import ModelConfig, StudyConfig
from qhw_diffusion.studies.single import check_out, one_thread
from qhw_diffusion.studies.study_work import KIND


def study_from_arguments(arguments: argparse.Namespace) -> str:
    """`qhw study guidance`: dry run, report only, or the whole study; returns the text to print."""
    one_thread()
    if arguments.markdown:
        check_writable(arguments.markdown)  # before hours of work
    if arguments.report_only:
        run = RunFolder.open(arguments.out, kind=KIND)
    else:
        config = _study_config(arguments)
        if arguments.dry_run:
            return predict(config, arguments.workers)
        check_out(arguments, KIND)
        how = {"resume": arguments.resume, "overwrite": arguments.overwrite}
        run = open_study(arguments.out, config, command=arguments.command_line, **how)
        run_study(run, workers=arguments.workers)
    command = run.manifest["command"] or arguments.command_line
    text = finish(run, title=arguments.title, command=command)
    if arguments.markdown:
        results = analysis.load_results(run)
        page = render_markdown(results, title=arguments.title, command=command, path=Path(arguments.markdown))
        text += f"\ntables: {page}"
    return text


def predict(config: StudyConfig, workers: int) -> str:
    """What a study will cost: U-Net evaluations of each part, and minutes from a short measurement on this machine."""
    models = load_models(config.models)
    labels, noise = draw_starts(models.backbone, models.train, config.batch, 0)
    guidance = GuidanceConfig(dataset=config.models.data, n_steps=config.n_steps, spacing=config.spacing)
    stages = plan(config)
    per_evaluation = _seconds(
        lambda: sample_and_measure(models, guidance, 1.0, labels, noise, reward=config.reward, judged=False)
    ) / (2 * config.n_steps * config.batch)
    updates = 2
    actor = config.actor_config(config.actors[0]) if config.actors else config.actor
    short = config.ppo.replace(updates=updates)
    if actor.kind == "annealing":
        guidance = guidance.replace(extra_state=True)
    marks: list[float] = []
    train_guidance(
        guidance,
        short,
        config.reward,
        actor,
        backbone=models.backbone,
        classifier=models.reward,
        real=models.train,
        on_update=lambda update, metrics: marks.append(time.perf_counter()),
    )
    per_update = marks[-1] - marks[-2]

    def seconds(stage: Stage) -> float:
        if stage.name == "trainings":
            return stage.pieces * config.ppo.updates * per_update
        return stage.evaluations * per_evaluation

    lines = [f"{'part':<22}{'pieces':>8}{'U-Net evaluations':>20}{'minutes':>10}"]
    for stage in stages:
        minutes = seconds(stage) / 60 / workers
        lines.append(f"{stage.name:<22}{stage.pieces:>8}{stage.evaluations:>20,}{minutes:>10.1f}")
    total = sum(seconds(stage) for stage in stages) / 60 / workers
    lines.append(f"{'all':<22}{'':>8}{sum(s.evaluations for s in stages):>20,}{total:>10.1f}")
    lines.append(
        f"measured now: {1 / per_evaluation:,.0f} evaluations a second and process, "
        f"{per_update:.2f} s an update of {actor.kind}; {workers} processes, "
        "which take about half a minute to start"
    )
    return "\n".join(lines)


def _seconds(action: Callable[[], Any]) -> float:
    action()  # the first call builds caches
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _study_config(arguments: argparse.Namespace) -> StudyConfig:
    base = StudyConfig()
    if arguments.resume:
        base = StudyConfig.from_dict(RunFolder.open(arguments.out, kind=KIND).config)
    return base.replace(
        models=base.models.replace(**given_flags(arguments, ModelConfig)),
        actor=base.actor.replace(**given_flags(arguments, ActorConfig)),
        reward=base.reward.replace(**given_flags(arguments, RewardConfig)),
        ppo=base.ppo.replace(**given_flags(arguments, PPOConfig)),
        **given_flags(arguments, StudyConfig),
    )
