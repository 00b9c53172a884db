"""The sub-commands of quantum denoisers. Thin: heavy libraries load only when a sub-command needs them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from qhw_diffusion.studies.common_flags import flags_data, flags_out, flags_study, flags_workers

Parser = argparse.ArgumentParser


def _flags_train_denoising(parser: Parser) -> None:
    from qhw_diffusion.denoising import ForwardConfig, ReverseConfig, TrainConfig
    from qhw_diffusion.studies.denoising_single import REVERSE, STUDY, TRAIN, read_kernels
    from qhw_diffusion.studies.flags import add_flags

    flags_out(parser, "runs/denoising", resume=True)
    text = "latent: in the latent space of an autoencoder; amplitude: pixels as amplitudes, by fidelity [latent]"
    parser.add_argument("--model", metavar="MODEL", help=text)
    flags_data(parser, default=None)
    parser.add_argument("--autoencoder-steps", type=int, metavar="N", help=f"its updates [{STUDY.autoencoder_steps}]")
    add_flags(parser, ReverseConfig, title="reverse process (labels: all ten, or none)", skip=["n_labels"],
              defaults=REVERSE)  # fmt: skip
    add_flags(parser, ForwardConfig, title="forward process", prefix="forward_", skip=["schedule_settings"])
    add_flags(parser, TrainConfig, title="training", skip=["seed", "kernels"], defaults=TRAIN)
    shown = ",".join(map(str, TRAIN.kernels))
    parser.add_argument("--kernels", type=read_kernels, metavar="LIST", dest="TrainConfig.kernels",
                        default=argparse.SUPPRESS, help=f"of the MMD: fidelity, or widths [{shown}]")  # fmt: skip


def train_denoising(arguments: argparse.Namespace) -> int:
    """`qhw train denoising`."""
    from qhw_diffusion.studies.denoising_single import train_from_arguments

    print(train_from_arguments(arguments))
    return 0


def _flags_evaluate_denoising(parser: Parser) -> None:
    parser.add_argument("folder", metavar="RUN", help="run folder of `qhw train denoising`")
    parser.add_argument("--device", help="device to run the circuit on [the one it was trained for]")
    parser.add_argument("--engine", help="ideal or noisy [the one it was trained on]")
    parser.add_argument("--shots", type=int, metavar="N", help="shots an image [exact probabilities]")
    parser.add_argument("--images", type=int, default=500, metavar="N", help="images to sample [500]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of noise, outcomes and shots [0]")


def evaluate_denoising(arguments: argparse.Namespace) -> int:
    """`qhw evaluate denoising RUN`."""
    from qhw_diffusion.studies.denoising_single import evaluate_denoiser

    names = ("device", "engine", "shots", "images", "seed")
    print(evaluate_denoiser(arguments.folder, **{name: getattr(arguments, name) for name in names}))
    return 0


def _flags_study_denoising(parser: Parser) -> None:
    from qhw_diffusion.studies.denoising_settings import DenoisingStudyConfig
    from qhw_diffusion.studies.flags import add_flags

    flags_study(parser, "runs/study-denoising", "Denoising study")
    add_flags(parser, DenoisingStudyConfig, title="study")


def study_denoising(arguments: argparse.Namespace) -> int:
    """`qhw study denoising`."""
    from qhw_diffusion.studies.denoising_commands import study_from_arguments

    print(study_from_arguments(arguments))
    return 0


def _flags_study_anchors(parser: Parser) -> None:
    from qhw_diffusion.studies.anchor_data import ANCHORS

    parser.add_argument("which", nargs="*", metavar="ANCHOR", help=f"{', '.join(ANCHORS)} [all]")
    text = "folder of the results; what is there is not done again [runs/anchors]"
    parser.add_argument("--out", type=Path, default=Path("runs/anchors"), metavar="DIR", help=text)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="trainings of each [5]")
    parser.add_argument("--quick", action="store_true", help="a tenth of the updates: to see it run, not to compare")
    flags_workers(parser)


def study_anchors(arguments: argparse.Namespace) -> int:
    """`qhw study anchors [ANCHOR …]`."""
    from qhw_diffusion.studies.anchors import run_anchors

    a = arguments
    print(run_anchors(a.out, a.which, a.seeds, a.workers, quick=a.quick, command=a.command_line))
    return 0


COMMANDS: dict[tuple[str, ...], tuple[str, Callable[[Parser], None] | None, Callable[[argparse.Namespace], int]]] = {
    ("train", "denoising"): ("train a quantum denoiser", _flags_train_denoising, train_denoising),
    ("evaluate", "denoising"): (
        "sample a trained denoiser, on another device or engine or with finite shots if asked",
        _flags_evaluate_denoising,
        evaluate_denoising,
    ),
    ("study", "denoising"): (
        "train quantum denoisers and compare them with their controls, ideal, noisy and with finite shots",
        _flags_study_denoising,
        study_denoising,
    ),
    ("study", "anchors"): (
        "reproduce published results of quantum diffusion models",
        _flags_study_anchors,
        study_anchors,
    ),
}
