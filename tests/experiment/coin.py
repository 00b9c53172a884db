"""A study of a user's own: is a coin fair? Cells can be told to fail, to wait for an interrupt, to be killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qhw_diffusion.config import Config, check_whole
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.experiment import Cell, Page, Results, Study
from qhw_diffusion.runs import interruptible


@dataclass(frozen=True)
class CoinConfig(Config):
    """How often a coin is thrown."""

    flips: int = 100
    """Throws of a seed."""
    seeds: int = 4
    """Seeds."""
    accident: str = ""
    """What happens in seed 1 the first time: fail, wait, kill or nothing."""

    def __post_init__(self) -> None:
        check_whole(self, "flips", "seeds")


def cells(config: CoinConfig) -> list[Cell]:
    """Per coin and seed one, after the mint has made the coins."""
    thrown = [
        Cell(f"{coin}-seed{k}", {"coin": coin, "seed": k}, ("mint",), seconds=2)
        for coin in ("fair", "bent")
        for k in range(config.seeds)
    ]
    return [Cell("mint", {"part": "mint"}), *thrown]


def run_cell(config: CoinConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Throw the coin; rows after half of the throws and after all."""
    if cell.name == "mint":
        (folder / "coins.txt").write_text("0.5 0.7")
        return {}
    chances = dict(zip(("fair", "bent"), map(float, (folder / "coins.txt").read_text().split()), strict=True))
    if config.accident and cell["seed"] == 1 and not (folder / "accident").exists():
        (folder / "accident").touch()
        accident(config.accident, folder)
    rng = random.Random(cell["seed"])
    heads = [rng.random() < chances[cell["coin"]] for _ in range(config.flips)]
    half = config.flips // 2
    rows = [{"throws": n, "share": sum(heads[:n]) / n} for n in (half, config.flips)]
    return {
        "rows": rows,
        "chance": chances[cell["coin"]],
        "first": "heads" if heads[0] else "tails",
        "pid": os.getpid(),
    }


def accident(kind: str, folder: Path) -> None:
    """What a real cell may meet."""
    if kind == "fail":
        raise ZeroDivisionError("the coin rolled away")
    if kind == "refuse":
        raise InvalidInputError("the coin has one side")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "wait":
        with interruptible() as stop:
            (folder / "waiting").touch()
            while not stop.requested:
                time.sleep(0.02)
        (folder / "saved").touch()
        raise KeyboardInterrupt


def page(results: Results[CoinConfig]) -> Page:
    """One table."""
    n = results.config.flips
    shown = Page(findings=[f"Heads: {results.interval('share', coin='bent', throws=n).format()}."])
    rows = [[coin, results.interval("share", coin=coin, throws=n).format()] for coin in ("fair", "bent")]
    shown.section("Shares").text("Of heads.").table(["coin", "share"], rows)
    return shown


STUDY = Study(
    name="coin",
    title="Is the coin fair?",
    config=CoinConfig,
    cells=cells,
    run=run_cell,
    page=page,
    row_parameters=("throws",),
)
NOT_A_STUDY = 3
