"""The sub-commands that take a trained controller to a device, and away from it. Thin: heavy libraries load lazily."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from qhw_diffusion.studies import guidance_cli
from qhw_diffusion.studies.common_flags import ENGINE_HELP

Parser = argparse.ArgumentParser


def flags_device(parser: argparse._ActionsContainer, *, shots: int | None = None) -> None:
    """Flags of `device_access.AccessConfig`, but --device; shots: the default number, None for none."""
    shown = "" if shots is None else f" [{shots}]"
    parser.add_argument("--shots", type=int, default=shots, metavar="N", help=f"shots of each circuit{shown}")
    text = "how jobs are sent: batch, job or session [batch]"
    parser.add_argument("--mode", choices=("batch", "job", "session"), default="batch", help=text)
    text = "cap on this run's QPU seconds, all its jobs together; needed on a paid device"
    parser.add_argument("--max-qpu-seconds", type=float, metavar="S", help=text)
    text = "wall-clock seconds after which a session is closed"
    parser.add_argument("--max-session-seconds", type=int, metavar="S", help=text)
    text = "folder of the ledger, where every job and its result is kept [$QHW_LEDGER, or runs/ledger]"
    parser.add_argument("--ledger", type=Path, metavar="DIR", help=text)
    text = "resilience level of the runtime client: 0, 1 or 2 (real devices only) [0]"
    parser.add_argument("--resilience-level", type=int, choices=(0, 1, 2), help=text)
    text = "mitigation of ours, next to the device first: readout, zne, twirling, …, such as readout+zne:linear:1,3"
    parser.add_argument("--mitigation", default="", metavar="TEXT", help=text)
    text = "send jobs again that failed in an earlier call (within the cap)"
    parser.add_argument("--retry-failed", action="store_true", help=text)


def _flags_distill(parser: Parser) -> None:
    parser.add_argument("folder", metavar="RUN", help="run folder of `qhw train guidance` with a quantum policy")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder to write [RUN-lookup or RUN-network]")
    text = "replace an earlier run of the same kind in the folder (nothing else), once the new one has begun"
    parser.add_argument("--overwrite", action="store_true", help=text)
    text = "lookup: the circuit evaluated once on a grid of angles, exact in between; network: an MLP fitted to it"
    parser.add_argument("--into", choices=("lookup", "network"), default="lookup", help=f"{text} [lookup]")
    parser.add_argument("--device", help="device the original is evaluated on [the one it was trained for]")
    parser.add_argument("--engine", help=ENGINE_HELP)
    parser.add_argument("--judge", help="folder of the judging classifier [the one shipped for the data set]")
    parser.add_argument("--data-root", help="folder of the data set [the one of the run]")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds of the comparison of images [5]")
    parser.add_argument("--images", type=int, default=500, metavar="N", help="images per seed [500]")
    group = parser.add_argument_group("a lookup measured on --device by one job (with --shots)")
    flags_device(group)
    group.add_argument("--resume", action="store_true", help="go on with the measured table in the folder")


def distill(arguments: argparse.Namespace) -> int:
    """`qhw distill RUN`."""
    from qhw_diffusion.studies.distillation import distill_from_arguments

    print(distill_from_arguments(arguments))
    return 0


def _flags_evaluate_guidance(parser: Parser) -> None:
    guidance_cli.COMMANDS["evaluate", "guidance"][1](parser)
    # what was given tells the simulated evaluation from the one on a device, whose numbers differ
    parser.set_defaults(images=None, seeds=None)
    group = parser.add_argument_group("on a device (with --shots): one job per DDIM step, resumable, with a report")
    flags_device(group)
    text = "folder of the rollout; its name stands for the run in the ledger [RUN-DEVICE]"
    group.add_argument("--out", "--run-folder", type=Path, metavar="DIR", help=text)
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of labels and starting noise [0]")
    group.add_argument("--resume", action="store_true", help="go on with the rollout in the folder, at any step")
    text = "replace an earlier rollout in the folder (nothing else), once the new one has begun"
    group.add_argument("--overwrite", action="store_true", help=text)


def evaluate_guidance(arguments: argparse.Namespace) -> int:
    """`qhw evaluate guidance RUN`, on a device if --shots is given."""
    if arguments.shots is None:
        arguments.seeds = 5 if arguments.seeds is None else arguments.seeds
        arguments.images = 500 if arguments.images is None else arguments.images
        return guidance_cli.evaluate_guidance(arguments)
    from qhw_diffusion.studies.rollout_command import rollout_from_arguments

    print(rollout_from_arguments(arguments))
    return 0


def _flags_fine_tune(parser: Parser) -> None:
    from qhw_diffusion.studies.fine_tune import FineTuneConfig
    from qhw_diffusion.studies.flags import add_flags

    parser.add_argument("folder", metavar="RUN", help="run folder of `qhw train guidance` with a quantum policy")
    parser.add_argument("--device", required=True, help="device to tune on: ibm_… or fake_…")
    text = "run folder to write; its name stands for the run in the ledger [RUN-tuned-DEVICE]"
    parser.add_argument("--out", "--run-folder", type=Path, metavar="DIR", help=text)
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, at any job")
    text = "replace an earlier run of the same kind in the folder (nothing else), once the new one has begun"
    parser.add_argument("--overwrite", action="store_true", help=text)
    flags_device(parser.add_argument_group("device"))
    shown = FineTuneConfig(run="", device="", shots=1)
    skip = ["run", "device", "shots", "resilience_level", "mitigation", "ledger"]
    add_flags(parser, FineTuneConfig, title="updates", skip=skip, defaults=shown)
    group = parser.add_argument_group("before and after, simulated with the device's noise")
    group.add_argument("--compare-seeds", type=int, default=5, metavar="N", help="seeds [5]")
    group.add_argument("--compare-images", type=int, default=500, metavar="N", help="images per seed [500]")


def fine_tune(arguments: argparse.Namespace) -> int:
    """`qhw fine-tune RUN`."""
    from qhw_diffusion.studies.fine_tune_command import fine_tune_from_arguments

    print(fine_tune_from_arguments(arguments))
    return 0


COMMANDS: dict[tuple[str, ...], tuple[str, Callable[[Parser], None], Callable[[argparse.Namespace], int]]] = {
    ("evaluate", "guidance"): (
        "evaluate a trained controller: simulated, on another device or engine, or on hardware (--shots)",
        _flags_evaluate_guidance,
        evaluate_guidance,
    ),
    ("fine-tune",): ("a few PPO updates of a trained policy on a device", _flags_fine_tune, fine_tune),
    ("distill",): ("a quantum policy as a table or a small network, with what is lost", _flags_distill, distill),
}
