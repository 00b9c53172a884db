"""The sub-commands that take a trained controller to a device, and away from it. Thin: heavy libraries load lazily."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

Parser = argparse.ArgumentParser


def _flags_distill(parser: Parser) -> None:
    parser.add_argument("folder", metavar="RUN", help="run folder of `qhw train guidance` with a quantum policy")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder to write [RUN-lookup or RUN-network]")
    text = "delete the folder first if it holds an earlier run of the same kind (nothing else)"
    parser.add_argument("--overwrite", action="store_true", help=text)
    text = "lookup: the circuit evaluated once on a grid of angles, exact in between; network: an MLP fitted to it"
    parser.add_argument("--into", choices=("lookup", "network"), default="lookup", help=f"{text} [lookup]")
    parser.add_argument("--device", help="device the original is evaluated on [the one it was trained for]")
    parser.add_argument("--engine", help="ideal, noisy, shots or shots:N [the one it was trained on]")
    parser.add_argument("--judge", help="folder of the judging classifier [the one shipped for the data set]")
    parser.add_argument("--data-root", help="folder of the data set [the one of the run]")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds of the comparison of images [5]")
    parser.add_argument("--images", type=int, default=500, metavar="N", help="images per seed [500]")


def distill(arguments: argparse.Namespace) -> int:
    """`qhw distill RUN`."""
    from qhw_diffusion.studies.distillation import distill_from_arguments

    print(distill_from_arguments(arguments))
    return 0


COMMANDS: dict[tuple[str, ...], tuple[str, Callable[[Parser], None], Callable[[argparse.Namespace], int]]] = {
    ("distill",): ("a quantum policy as a table or a small network, with what is lost", _flags_distill, distill),
}
