"""The mitigation study: a folder, the pieces of work that are left in it, and what they found."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qhw_diffusion.errors import RunFolderError
from qhw_diffusion.execution import Noisy
from qhw_diffusion.experiment.statistics import PairedTest, paired_test, with_holm
from qhw_diffusion.runs import RunFolder, read_json
from qhw_diffusion.studies import mitigation_work as work
from qhw_diffusion.studies import reference_models as subjects
from qhw_diffusion.studies.mitigation_settings import MitigationStudyConfig, is_scheduled, mitigated
from qhw_diffusion.studies.pool import Task, make_executor, run_tasks
from qhw_diffusion.studies.study_folder import at_work, open_study_folder

# Seconds on one quiet core with the default settings, for the progress bar.
SECONDS = {"policy": 40, "denoiser": 60, "images": 30}


def open_mitigation_study(
    path: str | os.PathLike[str],
    config: MitigationStudyConfig,
    *,
    command: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> RunFolder:
    """A new study folder, or with `resume` the existing one, whose settings must be the ones given.

    Raises what `open_study_folder` does; and what loading a device or building the trained models raises, before there
    is a folder. MissingDependencyError for a strategy of Mitiq without Mitiq.
    """
    return open_study_folder(
        path,
        kind=work.KIND,
        config=config.to_dict(),
        read=lambda stored: MitigationStudyConfig.from_dict(stored).to_dict(),
        check=lambda: _check(config),
        command=command,
        resume=resume,
        overwrite=overwrite,
    )


def _check(config: MitigationStudyConfig) -> None:
    for device in config.devices:
        subjects.device_of(device)
    subjects.check(config.subjects)
    for device in config.devices:
        for name in dict.fromkeys((*config.strategies, *config.steering)):
            mitigated(Noisy(), name).check(work.compiled_policy(device, is_scheduled(name)))


def run_mitigation_study(run: RunFolder, *, workers: int = 1) -> None:
    """Do all that is not done yet; a study that was stopped goes on with the piece it was in."""
    config, root = MitigationStudyConfig.from_dict(run.config), run.path
    with at_work(run):
        executor = make_executor(workers)
        try:
            subjects.calibrated(root, config.subjects)
            subjects.autoencoder(root, config.subjects)
            seeds = range(config.subjects.seeds)
            made = [
                Task(f"policy and denoiser, seed {seed}", work.make_subjects, {"root": str(root), "seed": seed}, 30)
                for seed in seeds
                if not all((root / f"{name}-seed{seed}").is_dir() for name in ("policy", "denoiser"))
            ]
            pieces = []
            for seed in seeds:
                for device in config.devices:
                    for piece in work.PIECES:
                        if not work.piece_file(root, piece, device, seed).exists():
                            arguments = {"root": str(root), "piece": piece, "device": device, "seed": seed}
                            pieces.append(
                                Task(f"{piece}, {device}, seed {seed}", work.do_piece, arguments, SECONDS[piece])
                            )
            run_tasks(made, workers=workers, desc="trained models", executor=executor)
            run_tasks(pieces, workers=workers, desc="mitigation", executor=executor)
        finally:
            if executor is not None:
                executor.shutdown(wait=True, cancel_futures=True)
            for cached in (work.settings, work.ideal_images, work.step_of, work.compiled_step):
                cached.cache_clear()


@dataclass(frozen=True)
class MitigationResults:
    """Everything a mitigation study measured: (piece, device) → the results of its seeds in order."""

    root: Path
    config: MitigationStudyConfig
    pieces: dict[tuple[str, str], list[dict[str, Any]]]
    manifest: dict[str, Any]

    def values(
        self, piece: str, device: str, strategy: str, key: str, *, how: str | None = None, shots: int | None = None
    ) -> list[float]:
        """One number of one row, per seed; empty where the study has no such row."""
        found = []
        for result in self.pieces[piece, device]:
            for row in result["rows"]:
                if row["strategy"] == strategy and row["shots"] == shots and how in (None, row.get("how")):
                    if row.get(key) is not None:
                        found.append(float(row[key]))
                    break
        return found

    def mean(
        self, piece: str, device: str, strategy: str, key: str, *, how: str | None = None, shots: int | None = None
    ) -> float:
        """Its mean over seeds; NaN where there is none."""
        found = self.values(piece, device, strategy, key, how=how, shots=shots)
        return float(np.mean(found)) if found else float("nan")

    def tests(
        self,
        piece: str,
        device: str,
        key: str,
        reference: str,
        *,
        how: str | None = None,
        shots: int | None = None,
    ) -> dict[str, PairedTest]:
        """Paired tests of each strategy against `reference`, Holm-corrected for all of them; needs two seeds."""
        if self.config.subjects.seeds < 2:
            return {}
        own = None if reference == "ideal" else shots
        base = self.values(piece, device, reference, key, how=None if reference == "ideal" else how, shots=own)
        names = self.config.steering if piece == "images" else self.config.strategies
        tests = {}
        for name in names:
            values = self.values(piece, device, name, key, how=how, shots=shots)
            if name != reference and len(values) == len(base):
                tests[name] = paired_test(values, base)
        return with_holm(tests)


def load_mitigation_results(run: RunFolder) -> MitigationResults:
    """Results of a finished study.

    Raises RunFolderError when a piece of it is missing: start it again to go on.
    """
    config = MitigationStudyConfig.from_dict(run.config)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    try:
        for device in config.devices:
            for piece in work.PIECES:
                files = [work.piece_file(run.path, piece, device, seed) for seed in range(config.subjects.seeds)]
                found[piece, device] = [read_json(file) for file in files]
    except FileNotFoundError as error:
        raise RunFolderError(f"{error.filename} is missing: start the study again to go on") from error
    measured = {row["strategy"] for device in config.devices for row in found["policy", device][0]["rows"]}
    if unknown := [name for name in config.strategies if name not in measured]:
        raise RunFolderError(
            f"{run.path} holds no results of {', '.join(unknown)}: it was made by a version that called strategies "
            "otherwise; make the study again"
        )
    return MitigationResults(run.path, config, found, run.manifest)
