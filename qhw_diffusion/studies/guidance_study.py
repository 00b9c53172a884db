"""The guidance study: sweep constants → tune schedules → train actors → evaluate all on the same seeds → results.

Everything chosen is chosen on the reward side (reward classifier, training images); the judge only measures. A study
that was stopped goes on where it was: finished pieces of work are files in its folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance import Sweep, SweepRow, check_training
from qhw_diffusion.runs import RunFolder, atomic_write_json
from qhw_diffusion.studies import study_work as work
from qhw_diffusion.studies.models import load_models
from qhw_diffusion.studies.pool import Task, make_executor, run_tasks
from qhw_diffusion.studies.rivals import Schedule, candidates
from qhw_diffusion.studies.settings import StudyConfig, label_of
from qhw_diffusion.studies.study_folder import at_work, open_study_folder


@dataclass(frozen=True)
class Stage:
    """Number of pieces and U-Net evaluations (one image through the network once) of one part of a study."""

    name: str
    pieces: int
    evaluations: int


def open_study(
    path: str | os.PathLike[str],
    config: StudyConfig,
    *,
    command: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> RunFolder:
    """A new study folder, or with `resume` the existing one, whose settings must be the ones given.

    Raises what `open_study_folder` does; and what loading the models or building a training raises, before there is a
    folder.
    """
    return open_study_folder(
        path,
        kind=work.KIND,
        config=config.to_dict(),
        read=lambda stored: StudyConfig.from_dict(stored).to_dict(),
        check=lambda: _check(config),
        command=command,
        resume=resume,
        overwrite=overwrite,
    )


def _check(config: StudyConfig) -> None:
    models = load_models(config.models)
    for name in config.actors:
        actor = config.actor_config(name)
        check_training(
            work.sampling_config(config, config.constants[0], extra_state=name == "annealing"),
            config.ppo,
            config.reward,
            actor,
            backbone=models.backbone,
            classifier=models.reward,
            real=models.train,
            device=work.device_of(actor.device) if actor.uses_circuit else None,
        )


def run_study(run: RunFolder, *, workers: int = 2) -> None:
    """Do all that is not done yet. Afterwards `analysis.load_results(run)` has everything.

    workers: processes, one thread each; 1 runs everything in this process. KeyboardInterrupt after Ctrl-C, with
    checkpoints saved.
    """
    config, root = StudyConfig.from_dict(run.config), run.path
    with at_work(run), _executor(workers) as executor:

        def stage(desc: str, tasks: Sequence[Task]) -> None:
            run_tasks(tasks, workers=workers, desc=desc, executor=executor)

        stage("sweep", _constant_tasks(root, config))
        best = best_constant(root, config)
        stage("schedules", _tuning_tasks(root, config, best.mean, base_scale(root, config)))
        choose_schedules(root, config, best)
        stage("training", _training_tasks(root, config))
        stage("evaluation", _evaluation_tasks(root, config))


def plan(config: StudyConfig) -> list[Stage]:
    """What the study will cost. Two U-Net evaluations per image and step: with the label and without."""
    per_image = 2 * config.n_steps
    # the grid's size does not depend on where the best constant lies, apart from combinations that cannot be made
    grid = candidates(1.2, config.tune_means, config.n_steps)
    tuning = sum(len(found) for found in grid.values())
    trainings = len(config.actors) * config.seeds
    evaluations = len(config.evaluated()) * config.seeds
    per_training = config.ppo.updates * config.ppo.num_envs * per_image
    return [
        Stage("sweep of constants", len(config.constants), len(config.constants) * config.sweep_images * per_image),
        Stage("tuning of schedules", tuning, tuning * config.tune_images * per_image),
        Stage("trainings", trainings, trainings * per_training),
        Stage("evaluations", evaluations, evaluations * config.eval_images * per_image),
    ]


def best_constant(root: Path, config: StudyConfig) -> Schedule:
    """The swept constant with the lowest distance on the reward side (the one the actors' reward lowers)."""
    results = [work.read_result(work.sweep_file(root, f"constant-{g:g}")) for g in config.constants]
    best = min(results, key=lambda result: result["reward_side"]["distance"])
    return Schedule(**best["schedule"])


def base_scale(root: Path, config: StudyConfig) -> float:
    """g0 of the actors (`StudyConfig.base`), from the sweep."""
    best = best_constant(root, config).mean
    if config.base == "best":
        return best
    rows = [
        SweepRow(g, side["distance"], side["fd"], side["accuracy"])
        for g in config.constants
        for side in [work.read_result(work.sweep_file(root, f"constant-{g:g}"))["reward_side"]]
    ]
    low, high = Sweep(tuple(rows), best, 0.0, 0.0, config.n_steps, config.sweep_images, config.spacing).sensible()
    return round((low + high) / 2, 3)


def choose_schedules(root: Path, config: StudyConfig, best: Schedule) -> None:
    """Per schedule the candidate with the lowest distance on the reward side → choices.json."""
    chosen = {"constant": best}
    for name, grid in candidates(best.mean, config.tune_means, config.n_steps).items():
        results = [(work.read_result(work.sweep_file(root, key_of(c)))["reward_side"]["distance"], c) for c in grid]
        chosen[name] = min(results, key=lambda pair: pair[0])[1]
    missing = [name for name in work.SCHEDULES if name not in chosen]
    if missing:
        raise InvalidInputError(
            f"with {config.n_steps} steps and a best constant of {best.mean:g} no schedule of kind "
            f"{', '.join(missing)} can be made; use more steps or other tune_means"
        )
    atomic_write_json(root / "choices.json", {"schedules": {name: s.to_dict() for name, s in chosen.items()}})


def key_of(candidate: Schedule) -> str:
    """File name of a candidate's result."""
    shape = "".join(f"-{name}{value:g}" for name, value in candidate.shape.items())
    return f"{candidate.name}-{candidate.mean:.4g}{shape}"


def _constant_tasks(root: Path, config: StudyConfig) -> list[Task]:
    tasks = []
    for g in config.constants:
        key = f"constant-{g:g}"
        if not work.sweep_file(root, key).exists():
            arguments = {
                "root": str(root), "key": key, "schedule": Schedule("constant", g).to_dict(),
                "n_images": config.sweep_images, "judged": True,
            }  # fmt: skip
            cost = 2 * config.n_steps * config.sweep_images
            tasks.append(Task(f"constant g = {g:g}", work.measure_candidate, arguments, cost))
    return tasks


def _tuning_tasks(root: Path, config: StudyConfig, best: float, base: float) -> list[Task]:
    tasks = []
    cost = 2 * config.n_steps * config.tune_images
    for grid in candidates(best, config.tune_means, config.n_steps).values():
        for candidate in grid:
            key = key_of(candidate)
            if not work.sweep_file(root, key).exists():
                arguments = {
                    "root": str(root), "key": key, "schedule": candidate.to_dict(),
                    "n_images": config.tune_images, "judged": False,
                }  # fmt: skip
                tasks.append(Task(candidate.describe(), work.measure_candidate, arguments, cost))
    if not (root / "calibration.json").exists():
        tasks.append(Task("calibration", work.calibrate_study, {"root": str(root), "g0": base}, cost))
    if not (root / "floor.json").exists():
        tasks.append(Task("real-against-real floor", work.measure_floor, {"root": str(root)}, cost))
    return tasks


def _training_tasks(root: Path, config: StudyConfig) -> list[Task]:
    tasks = []
    updates = config.ppo.updates
    for seed in range(config.seeds):
        for actor in config.actors:
            if work.training_done(root, actor, seed, updates):
                continue
            log = work.training_folder(root, actor, seed) / "metrics.jsonl"

            def done_share(log: Path = log) -> float:
                return min(1.0, log.read_bytes().count(b"\n") / updates) if log.exists() else 0.0

            cost = updates * config.ppo.num_envs * 2 * config.n_steps
            arguments = {"root": str(root), "actor": actor, "seed": seed}
            tasks.append(Task(f"{label_of(actor)}, seed {seed}", work.train_actor, arguments, cost, done_share))
    return tasks


def _evaluation_tasks(root: Path, config: StudyConfig) -> list[Task]:
    tasks = []
    # seed by seed: what the controllers of one seed share is then made once per process
    for seed in range(config.seeds):
        for controller in config.evaluated():
            if work.evaluation_file(root, controller, seed).exists():
                continue
            cost = config.eval_images * 2 * config.n_steps
            arguments = {"root": str(root), "controller": controller, "seed": seed}
            tasks.append(Task(f"{label_of(controller)}, seed {seed}", work.evaluate_controller, arguments, cost))
    return tasks


@contextmanager
def _executor(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    executor = make_executor(workers)
    try:
        yield executor
    finally:
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)
        work.context.cache_clear()
        work.base_scale_images.cache_clear()
