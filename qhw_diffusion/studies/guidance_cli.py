"""The sub-commands of the guidance controller and its models. Thin: heavy libraries load only when one needs them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from qhw_diffusion.studies.common_flags import ENGINE_HELP, flags_data, flags_out

Parser = argparse.ArgumentParser


def _flags_train_guidance(parser: Parser) -> None:
    from qhw_diffusion.guidance import ActorConfig, GuidanceConfig, PPOConfig, RewardConfig
    from qhw_diffusion.studies.flags import add_flags
    from qhw_diffusion.studies.settings import ModelConfig

    flags_out(parser, "runs/guidance", resume=True)
    text = "images per constant in the sweep that finds g0 and the range (skipped with --g0) [512]"
    parser.add_argument("--sweep-images", type=int, default=512, metavar="N", help=text)
    add_flags(parser, ModelConfig, title="data and models", skip=["judge"])
    add_flags(parser, ActorConfig, title="actor", rename={"kind": "actor"})
    add_flags(parser, GuidanceConfig, title="sampler and state", skip=["dataset", "state_centre", "state_width"])
    add_flags(parser, RewardConfig, title="reward", prefix="reward_")
    add_flags(parser, PPOConfig, title="training")


def train_guidance(arguments: argparse.Namespace) -> int:
    """`qhw train guidance`."""
    from qhw_diffusion.studies.single import SingleTraining

    return SingleTraining.from_arguments(arguments).run()


def _flags_train_backbone(parser: Parser) -> None:
    from qhw_diffusion.diffusion import BackboneConfig
    from qhw_diffusion.studies.flags import add_flags

    flags_out(parser, "runs/backbone", resume=True)
    flags_data(parser)
    add_flags(parser, BackboneConfig, title="architecture and recipe (defaults are those for digits)", skip=["dataset"])


def train_backbone(arguments: argparse.Namespace) -> int:
    """`qhw train backbone`."""
    from qhw_diffusion.diffusion import BackboneConfig, load_dataset
    from qhw_diffusion.diffusion import train_backbone as train
    from qhw_diffusion.studies.flags import given_flags
    from qhw_diffusion.studies.single import can_go_on, new_run, one_thread

    one_thread()
    config = BackboneConfig.for_dataset(arguments.data, **given_flags(arguments, BackboneConfig))
    data = load_dataset(config.dataset, "train", arguments.data_root)  # before the folder: without data, no run
    with new_run(arguments, kind="backbone", config=config.to_dict()) as run:
        backbone = train(config, run, dataset=data, resume=arguments.resume and can_go_on(run))
    loss = backbone.history[-1]["loss"]
    print(f"{backbone.n_parameters:,} parameters, loss {loss:.4f}; use it with --backbone {arguments.out}")
    return 0


def _flags_train_classifier(parser: Parser) -> None:
    from qhw_diffusion.diffusion import ClassifierConfig
    from qhw_diffusion.studies.flags import add_flags

    flags_out(parser, "runs/classifier")
    flags_data(parser)
    add_flags(parser, ClassifierConfig, title="architecture and recipe", skip=["dataset"])


def train_classifier(arguments: argparse.Namespace) -> int:
    """`qhw train classifier`."""
    from qhw_diffusion.diffusion import ClassifierConfig, load_dataset
    from qhw_diffusion.diffusion import train_classifier as train
    from qhw_diffusion.studies.flags import given_flags
    from qhw_diffusion.studies.single import new_run, one_thread

    one_thread()
    given = given_flags(arguments, ClassifierConfig)
    config = ClassifierConfig.for_dataset(arguments.data, given.pop("role", "reward"), **given)
    data, heldout = (load_dataset(config.dataset, split, arguments.data_root) for split in ("train", "heldout"))
    with new_run(arguments, kind="classifier", config=config.to_dict()) as run:
        classifier = train(config, run, dataset=data, heldout=heldout)
    print(f"{config.role}: {classifier.accuracy:.2%} of the held-out images right; saved in {arguments.out}")
    return 0


def _flags_evaluate_guidance(parser: Parser) -> None:
    parser.add_argument("folder", metavar="RUN", help="run folder of `qhw train guidance`")
    parser.add_argument("--device", help="device to run the policy on [the one it was trained for]")
    parser.add_argument("--engine", help=ENGINE_HELP)
    parser.add_argument("--judge", help="folder of the judging classifier [the one shipped for the data set]")
    parser.add_argument("--data-root", help="folder of the data set [the one of the run]")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="evaluation seeds [5]")
    parser.add_argument("--images", type=int, default=500, metavar="N", help="images per seed [500]")


def evaluate_guidance(arguments: argparse.Namespace) -> int:
    """`qhw evaluate guidance RUN`."""
    from qhw_diffusion.studies.single import evaluate_run, one_thread

    one_thread()
    print(
        evaluate_run(
            arguments.folder,
            device=arguments.device,
            engine=arguments.engine,
            judge=arguments.judge,
            data_root=arguments.data_root,
            seeds=arguments.seeds,
            images=arguments.images,
        )
    )
    return 0


COMMANDS: dict[tuple[str, ...], tuple[str, Callable[[Parser], None], Callable[[argparse.Namespace], int]]] = {
    ("train", "guidance"): ("train a guidance controller", _flags_train_guidance, train_guidance),
    ("train", "backbone"): ("train a diffusion backbone", _flags_train_backbone, train_backbone),
    ("train", "classifier"): ("train a reward or judging classifier", _flags_train_classifier, train_classifier),
    ("evaluate", "guidance"): (
        "evaluate a trained controller, on another device or engine if asked",
        _flags_evaluate_guidance,
        evaluate_guidance,
    ),
}
