"""Flags that several sub-commands share. Light: nothing heavy is imported."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

Parser = argparse.ArgumentParser
ENGINE_HELP = (
    "ideal, noisy or shots[:N][:seed=S][:ideal] (ideal: shots without noise), mitigated: "
    "shots:4096+readout+zne:linear:1,3 [the one it was trained on]"
)


def flags_out(parser: Parser, default: str | None, *, resume: bool = False) -> None:
    """default None: the command chooses (the demos)."""
    shown, path = (default, Path(default)) if default else ("runs/demo, or runs/demo-denoising", None)
    parser.add_argument("--out", type=Path, default=path, metavar="DIR", help=f"run folder [{shown}]")
    text = "replace an earlier run of the same kind in the folder (nothing else), once the new one has begun"
    parser.add_argument("--overwrite", action="store_true", help=text)
    if resume:
        parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, bit for bit")


def flags_study(parser: Parser, out: str, title: str) -> None:
    flags_out(parser, out, resume=True)
    flags_workers(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what it would cost, and stop")
    parser.add_argument("--report-only", action="store_true", help="render the report of a finished study again")
    parser.add_argument("--markdown", metavar="FILE", help="also write the tables as a Markdown page")
    parser.add_argument("--title", default=title, help="title of report and page")


def flags_data(parser: Parser, default: str | None = "digits") -> None:
    parser.add_argument("--data", default=default, help="digits, mnist16, mnist28, fashion16 or fashion28 [digits]")
    parser.add_argument("--data-root", metavar="DIR", help="folder that holds MNIST/ or FashionMNIST/ (as torchvision)")


def flags_workers(parser: Parser) -> None:
    workers = max(1, min(2, os.cpu_count() or 1))
    parser.add_argument("--workers", type=int, default=workers, metavar="N",
                        help=f"processes side by side, one thread each [{workers}]")  # fmt: skip
