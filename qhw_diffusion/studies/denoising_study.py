"""The denoising study: autoencoder → trainings → evaluations of every model and control on the same seeds → results.

A study that was stopped goes on where it was: finished pieces of work are files in its folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qhw_diffusion.denoising import AutoencoderConfig, LatentAutoencoder, ReverseProcess, check_qdm_training
from qhw_diffusion.denoising.states import qubits_for
from qhw_diffusion.diffusion.datasets import image_shape_of
from qhw_diffusion.errors import RunFolderError
from qhw_diffusion.experiment.statistics import Interval, PairedTest, mean_interval, paired_test, with_holm
from qhw_diffusion.runs import RunFolder, atomic_write_json, read_json
from qhw_diffusion.studies import denoising_work as work
from qhw_diffusion.studies.denoising_settings import DenoisingStudyConfig, row_label
from qhw_diffusion.studies.pool import Task, make_executor, run_tasks
from qhw_diffusion.studies.study_folder import at_work, open_study_folder

METRICS = ("fd", "accuracy", "diversity", "infidelity", "success")
REFERENCE = "postselected"


def open_denoising_study(
    path: str | os.PathLike[str],
    config: DenoisingStudyConfig,
    *,
    command: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> RunFolder:
    """A new study folder, or with `resume` the existing one, whose settings must be the ones given.

    Raises what `open_study_folder` does; and what loading the data, the device and every model raises, before there is
    a folder.
    """
    return open_study_folder(
        path,
        kind=work.KIND,
        config=config.to_dict(),
        check=lambda: _check(config),
        command=command,
        resume=resume,
        overwrite=overwrite,
    )


def _check(config: DenoisingStudyConfig) -> None:
    """Whatever does not fit is told before there is a folder."""
    shape = image_shape_of(config.data)
    n_qubits = config.latent_qubits or qubits_for(shape)
    autoencoder = None
    if config.latent_qubits:
        autoencoder = LatentAutoencoder(
            AutoencoderConfig(image_shape=shape, latent_qubits=n_qubits, steps=config.autoencoder_steps)
        ).eval()
    for arm in config.arms:
        config.training(arm, 0)
        ReverseProcess(replace(config.reverse(arm, 0, n_qubits), device=config.device, engine="noisy"))
    here = work.Context(Path(), config)
    here.autoencoder = autoencoder  # not trained, but of the right shape
    for arm in config.arms:
        model = here.model(arm, 0)
        if arm == "noise":
            model = model.on(device=config.device, engine="noisy")
        check_qdm_training(model, here.train.images, config.training(arm, 0), labels=here.train.labels)


def run_denoising_study(run: RunFolder, *, workers: int = 2) -> None:
    """Do all that is not done yet; afterwards `load_denoising_results(run)` has everything.

    workers: processes, one thread each; 1 runs everything in this process. KeyboardInterrupt after Ctrl-C, with
    checkpoints saved.
    """
    config, root = DenoisingStudyConfig.from_dict(run.config), run.path
    with at_work(run):
        executor = make_executor(workers)
        try:
            if config.latent_qubits and not (root / "autoencoder").is_dir():
                work.make_autoencoder(str(root))
            run_tasks(_trainings(root, config, first=True), workers=workers, desc="training", executor=executor)
            run_tasks(_trainings(root, config, first=False), workers=workers, desc="under noise", executor=executor)
            run_tasks(_evaluations(root, config), workers=workers, desc="evaluation", executor=executor)
        finally:
            if executor is not None:
                executor.shutdown(wait=True, cancel_futures=True)
            work.context.cache_clear()


def _trainings(root: Path, config: DenoisingStudyConfig, *, first: bool) -> list[Task]:
    """Trainings from scratch first; the one under noise starts from the weights of one of them."""
    tasks = []
    for seed in range(config.seeds):
        for arm in config.arms:
            if (arm != "noise") != first or work.training_done(root, arm, seed):
                continue
            updates = config.training(arm, seed).iterations
            log = work.training_folder(root, arm, seed) / "metrics.jsonl"

            def done_share(log: Path = log, updates: int = updates) -> float:
                return min(1.0, log.read_bytes().count(b"\n") / updates) if log.exists() else 0.0

            arguments = {"root": str(root), "arm": arm, "seed": seed}
            tasks.append(Task(f"{arm}, seed {seed}", work.train_arm, arguments, updates, done_share))
    return tasks


def _evaluations(root: Path, config: DenoisingStudyConfig) -> list[Task]:
    tasks = []
    for seed in range(config.seeds):
        for row in config.rows():
            if not work.evaluation_file(root, row, seed).exists():
                arguments = {"root": str(root), "row": row, "seed": seed}
                cost = config.eval_images * (8 if "noisy" in row else 1)
                tasks.append(Task(f"{row}, seed {seed}", work.evaluate_row, arguments, cost))
    if not (root / "floor.json").exists():
        tasks.append(Task("real images", work.measure_floor, {"root": str(root)}, config.eval_images))
    return tasks


@dataclass(frozen=True)
class DenoisingResults:
    """Everything a denoising study measured.

    Attributes:
        root: the study's folder.
        config: its settings.
        rows: per row of the table, the results of its seeds in order (see `denoising_work.evaluate_row`).
        floor: "real" and "encoded" → metrics of real images, one entry per seed.
        manifest: of the study's folder.
    """

    root: Path
    config: DenoisingStudyConfig
    rows: dict[str, list[dict[str, Any]]]
    floor: dict[str, list[dict[str, float]]]
    manifest: dict[str, Any]

    def values(self, row: str, metric: str) -> list[float]:
        """One metric over the seeds; empty where the row has none."""
        found = [result.get(metric) for result in self.rows[row]]
        return [] if any(value is None for value in found) else [float(v) for v in found if v is not None]

    def interval(self, row: str, metric: str) -> Interval | None:
        """Mean and 95 % interval over seeds; None where the row has no such metric."""
        values = self.values(row, metric)
        return mean_interval(values) if values else None

    def floor_interval(self, kind: str, metric: str) -> Interval:
        """The same for real images, "real" or "encoded" (through encoder and decoder)."""
        return mean_interval([float(entry[metric]) for entry in self.floor[kind]])

    def tests(self, metric: str, reference: str = REFERENCE) -> dict[str, PairedTest]:
        """Paired tests of every other row against the reference (row − reference), Holm-corrected; needs two seeds."""
        if self.config.seeds < 2:
            return {}
        base = self.values(reference, metric)
        others = {row: self.values(row, metric) for row in self.rows if row != reference}
        return with_holm({row: paired_test(values, base) for row, values in others.items() if values})


def load_denoising_results(run: RunFolder) -> DenoisingResults:
    """Results of a finished study.

    Raises RunFolderError when a piece of it is missing: start it again to go on.
    """
    config = DenoisingStudyConfig.from_dict(run.config)
    rows = {}
    try:
        for row in config.rows():
            rows[row] = [read_json(work.evaluation_file(run.path, row, seed)) for seed in range(config.seeds)]
        floor = read_json(run.path / "floor.json")
    except FileNotFoundError as error:
        raise RunFolderError(f"{error.filename} is missing: start the study again to go on") from error
    return DenoisingResults(run.path, config, rows, floor, run.manifest)


def write_denoising_summary(results: DenoisingResults) -> Path:
    """results.json: every row's metrics with intervals, and paired tests against the post-selected model."""
    table: dict[str, Any] = {}
    for row in results.rows:
        table[row] = {"label": row_label(row)}
        for metric in METRICS:
            interval = results.interval(row, metric)
            if interval is not None:
                table[row][metric] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    tests = {metric: {r: t.as_dict() for r, t in results.tests(metric).items()} for metric in ("fd", "accuracy")}
    summary = {"config": results.config.to_dict(), "rows": table, "tests": tests, "floor": results.floor}
    return atomic_write_json(results.root / "results.json", _no_nan(summary))


def _no_nan(value: Any) -> Any:
    """NaN (an interval of one seed) as null, which JSON has."""
    if isinstance(value, dict):
        return {key: _no_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value
