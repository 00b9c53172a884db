"""What a study costs beyond the work in its cells: starting workers, and a cell that does nothing, on every backend.

    python -m benchmarks.studies                      # loky, and ray and dask where they are installed
    python -m benchmarks.studies --workers 8 --backend ray:auto

A cell's overhead is the difference between a study of many empty cells and one of few, divided by the difference of
their numbers; the start is what is left. Each pair is measured several times; the table has the median and the range.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qhw_diffusion.config import Config
from qhw_diffusion.experiment import Cell, Page, Results, Study, load_study, open_study, run_study

FEW, MANY = 20, 220


@dataclass(frozen=True)
class EmptyConfig(Config):
    """Cells that do nothing."""

    cells: int = FEW
    """Number of cells."""


def cells(config: EmptyConfig) -> list[Cell]:
    """As many as asked for."""
    return [Cell(f"cell-{k}", {"seed": k}) for k in range(config.cells)]


def run_cell(config: EmptyConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Nothing."""
    return {"value": float(cell["seed"])}


def page(results: Results[EmptyConfig]) -> Page:
    """Nothing."""
    return Page()


STUDY = Study("empty", "Empty cells", EmptyConfig, cells, run_cell, page)


def seconds(n: int, backend: str, workers: int) -> float:
    """Wall time of a study of n empty cells, workers started and stopped in it."""
    study = load_study(f"{Path(__file__).resolve()}:STUDY")
    with tempfile.TemporaryDirectory() as folder:
        run = open_study(study, Path(folder) / "study", study.config(cells=n))
        started = time.perf_counter()
        results = run_study(study, run, workers=workers, backend=backend)
        spent = time.perf_counter() - started
        assert sorted(results.values("value")) == [float(k) for k in range(n)]
    return spent


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes side by side")
    parser.add_argument("--backend", action="append", help="backend to measure; may be given several times")
    parser.add_argument("--repeat", type=int, default=3, help="pairs of studies for each row")
    given = parser.parse_args()
    installed = [name for name in ("ray", "dask") if importlib.util.find_spec(name) is not None]
    rows = [("loky", 1), *((backend, given.workers) for backend in given.backend or ["loky", *installed])]
    print("| backend | workers | start (s) | a cell (ms) |\n| --- | --- | --- | --- |")
    for backend, workers in rows:
        starts, overheads = [], []
        for _ in range(given.repeat):
            few, many = seconds(FEW, backend, workers), seconds(MANY, backend, workers)
            overheads.append(1000 * (many - few) / (MANY - FEW))
            starts.append(few - FEW * overheads[-1] / 1000)
        told = [f"{statistics.median(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in (starts, overheads)]
        print(f"| {backend}{' (this process)' if workers == 1 else ''} | {workers} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
