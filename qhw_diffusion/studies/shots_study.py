"""The shots study: a folder, the pieces of work that are left in it, and what they found."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qhw_diffusion.errors import RunFolderError
from qhw_diffusion.runs import RunFolder, read_json
from qhw_diffusion.studies import shots_work as work
from qhw_diffusion.studies import subjects
from qhw_diffusion.studies.pool import Task, make_executor, run_tasks
from qhw_diffusion.studies.shots_settings import ShotsStudyConfig
from qhw_diffusion.studies.statistics import Interval, PairedTest, mean_interval, paired_test, with_holm
from qhw_diffusion.studies.study_folder import at_work, open_study_folder

# Seconds on one quiet core with the default settings, for the progress bar.
SECONDS = {"values": 6, "gradients": 20, "images": 15, "denoiser": 5}
REFERENCE = "exact"


def open_shots_study(
    path: str | os.PathLike[str],
    config: ShotsStudyConfig,
    *,
    command: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> RunFolder:
    """A new study folder, or with `resume` the existing one, whose settings must be the ones given.

    Raises what `open_study_folder` does; and what loading a device or building the trained models raises, before there
    is a folder.
    """
    return open_study_folder(
        path,
        kind=work.KIND,
        config=config.to_dict(),
        read=lambda stored: ShotsStudyConfig.from_dict(stored).to_dict(),
        check=lambda: subjects.check(config.subjects),
        command=command,
        resume=resume,
        overwrite=overwrite,
    )


def run_shots_study(run: RunFolder, *, workers: int = 1) -> None:
    """Do all that is not done yet; a study that was stopped goes on with the piece it was in."""
    config, root = ShotsStudyConfig.from_dict(run.config), run.path
    with at_work(run):
        executor = make_executor(workers)
        try:
            subjects.calibrated(root, config.subjects)
            subjects.autoencoder(root, config.subjects)
            made = [
                Task(f"policy and denoiser, seed {seed}", work.make_subjects, {"root": str(root), "seed": seed}, 30)
                for seed in range(config.subjects.seeds)
                if not all((root / f"{name}-seed{seed}").is_dir() for name in ("policy", "denoiser"))
            ]
            pieces = [
                Task(
                    f"{piece}, seed {seed}",
                    work.do_piece,
                    {"root": str(root), "piece": piece, "seed": seed},
                    _cost(piece),
                )
                for seed in range(config.subjects.seeds)
                for piece in pieces_of(config)
                if not work.piece_file(root, piece, seed).exists()
            ]
            run_tasks(made, workers=workers, desc="trained models", executor=executor)
            run_tasks(pieces, workers=workers, desc="shots", executor=executor)
        finally:
            if executor is not None:
                executor.shutdown(wait=True, cancel_futures=True)
            work.settings.cache_clear()


def pieces_of(config: ShotsStudyConfig) -> list[str]:
    """Names of the pieces of one seed."""
    return [*SECONDS, *(f"learning-{arm}" for arm in config.arms())]


def _cost(piece: str) -> float:
    return SECONDS.get(piece, 30 if "shift" in piece else 13)


@dataclass(frozen=True)
class ShotsResults:
    """Everything a shots study measured: its settings, and per piece the results of its seeds in order."""

    root: Path
    config: ShotsStudyConfig
    pieces: dict[str, list[dict[str, Any]]]
    manifest: dict[str, Any]

    def interval(self, piece: str, shots: int | None, key: str) -> Interval:
        """Mean and 95 % interval over seeds of one number of one row."""
        return mean_interval(self.values(piece, shots, key))

    def values(self, piece: str, shots: int | None, key: str) -> list[float]:
        """One number of one row, per seed."""
        return [next(float(r[key]) for r in found["rows"] if r["shots"] == shots) for found in self.pieces[piece]]

    def against_exact(self, piece: str, key: str) -> dict[int, PairedTest]:
        """Paired tests of each number of shots against exact values, Holm-corrected; needs two seeds."""
        if self.config.subjects.seeds < 2:
            return {}
        base = self.values(piece, None, key)
        tests = {str(n): paired_test(self.values(piece, n, key), base) for n in self.config.shots}
        return {int(n): test for n, test in with_holm(tests).items()}

    def learned(self, arm: str, key: Callable[[dict[str, Any]], float]) -> list[float]:
        """A number of a training, per seed."""
        return [float(key(found)) for found in self.pieces[f"learning-{arm}"]]

    def gains(self, arm: str) -> list[float]:
        """Reward after less reward before training, on exact values, per seed."""
        return self.learned(arm, lambda r: r["after"] - r["before"])

    def learning_tests(self) -> dict[str, PairedTest]:
        """Gains of trainings with shots against those on exact values, Holm-corrected; needs two seeds."""
        if self.config.subjects.seeds < 2:
            return {}
        tests = {}
        for arm in self.config.arms():
            reference = REFERENCE + "+head" * arm.endswith("+head")
            if arm != reference:
                tests[arm] = paired_test(self.gains(arm), self.gains(reference))
        return with_holm(tests)


def load_shots_results(run: RunFolder) -> ShotsResults:
    """Results of a finished study.

    Raises RunFolderError when a piece of it is missing: start it again to go on.
    """
    config = ShotsStudyConfig.from_dict(run.config)
    seeds = range(config.subjects.seeds)
    try:
        found = {p: [read_json(work.piece_file(run.path, p, seed)) for seed in seeds] for p in pieces_of(config)}
    except FileNotFoundError as error:
        raise RunFolderError(f"{error.filename} is missing: start the study again to go on") from error
    return ShotsResults(run.path, config, found, run.manifest)


def fewest(intervals: dict[int, Interval], holds: Callable[[Interval], bool]) -> int | None:
    """The fewest shots from which on `holds` is true for every larger number tried; None where there are none."""
    found = None
    for n in sorted(intervals, reverse=True):
        if not holds(intervals[n]):
            break
        found = n
    return found
