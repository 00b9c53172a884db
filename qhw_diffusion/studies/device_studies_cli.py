"""`qhw study shots` and `qhw study mitigation`. Thin: heavy libraries load only when a sub-command needs them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qhw_diffusion.studies.common_flags import flags_out

Parser = argparse.ArgumentParser


def _flags_run(parser: Parser, name: str) -> None:
    flags_out(parser, f"runs/study-{name}", resume=True)
    workers = "processes side by side, one thread each [1]"
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=workers)
    parser.add_argument("--backend", default="loky", help="loky, ray[:address] or dask[:address] [loky]")
    parser.add_argument("--dry-run", action="store_true", help="print what it would cost, and stop")
    parser.add_argument("--quick", action="store_true", help="little of everything: to see it run, not to conclude")
    parser.add_argument("--report-only", action="store_true", help="render the report of a finished study again")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the page as Markdown")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="with --markdown: plots as PNGs in this folder")


def _flags(parser: Parser, name: str) -> None:
    from qhw_diffusion.experiment import load_study
    from qhw_diffusion.studies.flags import add_flags
    from qhw_diffusion.studies.reference_models import ReferenceModelsConfig

    _flags_run(parser, name)
    config = load_study(name).config
    add_flags(parser, config, title="study", skip=["models"])
    add_flags(parser, ReferenceModelsConfig, title="trained policy and denoiser", defaults=config().models)


def _study(name: str, arguments: argparse.Namespace) -> int:
    from qhw_diffusion.experiment import load_study, reopen_study
    from qhw_diffusion.experiment.command import study_command
    from qhw_diffusion.studies.flags import given_flags
    from qhw_diffusion.studies.single import one_thread

    one_thread()
    study: Any = load_study(name)
    base = study.quick if arguments.quick else study.config()
    if arguments.resume:
        base = study.config.from_dict(reopen_study(study, arguments.out).config)
    parts = [f.name for f in dataclasses.fields(base) if dataclasses.is_dataclass(getattr(base, f.name))]
    nested = {part: getattr(base, part) for part in parts}
    nested = {part: value.replace(**given_flags(arguments, type(value))) for part, value in nested.items()}
    config = base.replace(**nested, **given_flags(arguments, study.config))
    names = ("resume", "overwrite", "workers", "backend", "dry_run", "report_only", "markdown", "figures")
    how = {name: getattr(arguments, name) for name in names}
    print(study_command(study, config, arguments.out, command=arguments.command_line, **how))
    return 0


def _flags_guidance(parser: Parser) -> None:
    from qhw_diffusion.guidance import ActorConfig, PPOConfig, RewardConfig
    from qhw_diffusion.studies.flags import add_flags
    from qhw_diffusion.studies.guidance.experiment import GuidanceStudyConfig
    from qhw_diffusion.studies.settings import ModelConfig

    _flags_run(parser, "guidance")
    add_flags(parser, ModelConfig, title="data and models")
    add_flags(parser, GuidanceStudyConfig, title="study", skip=["models", "actor", "reward", "ppo"])
    add_flags(parser, ActorConfig, title="circuit of the quantum policies", skip=["kind", "engine"])
    add_flags(parser, RewardConfig, title="reward", prefix="reward_")
    add_flags(parser, PPOConfig, title="training", skip=["seed"], defaults=GuidanceStudyConfig().ppo)


COMMANDS: dict[tuple[str, ...], tuple[str, Callable[[Parser], None] | None, Callable[[argparse.Namespace], int]]] = {
    ("study", "guidance"): (
        "compare policies and schedules over seeds",
        _flags_guidance,
        lambda arguments: _study("guidance", arguments),
    ),
    ("study", "shots"): (
        "what finite shots do to values, gradients, images, the denoiser and PPO",
        lambda parser: _flags(parser, "shots"),
        lambda arguments: _study("shots", arguments),
    ),
    ("study", "mitigation"): (
        "compare mitigation strategies on devices and shots: bias, scatter, cost, guidance, images, the denoiser",
        lambda parser: _flags(parser, "mitigation"),
        lambda arguments: _study("mitigation", arguments),
    ),
}
