"""Where a training's numbers go besides its folder: TensorBoard, Weights & Biases, MLflow, or a logger of a user's own.

A logger is made when a run logs for the first time and closed with it. One that fails is told once and left out from
then on: a training is not lost for its log, and `metrics.jsonl` has every number.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qhw_diffusion.errors import InvalidInputError, MissingDependencyError, UnknownNameError
from qhw_diffusion.extensions import is_extension, load_extension
from qhw_diffusion.masking import without_tokens

if TYPE_CHECKING:
    from qhw_diffusion.runs.folder import RunFolder

PROJECT = "qhw-diffusion"
"""Project of Weights & Biases or experiment of MLflow, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says another."""


class Logger(Protocol):
    """A place for numbers. It is made as ``name(run)``, with the `RunFolder` that logs: its path, name, id and config.

    A run that is resumed makes it again: `run.id` stays, and steps after the last checkpoint are told once more.
    """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one step, all finite, by names such as ``losses/policy`` and ``charts/reward``."""

    def close(self) -> None:
        """Write out what is left: the run ends, stops, or pauses between two stages."""


Make = Callable[["RunFolder"], Logger]


class TensorBoard:
    """TensorBoard's events in the run folder, by TensorBoard's own writer: torch's brings all of torch with it."""

    def __init__(self, run: RunFolder) -> None:
        # takes a moment to import: only runs that log pay for it
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run.path), flush_secs=30)
        step = run.logged_again_from
        if step is not None:  # hides what an interrupted run has logged from this step on
            self._add(step=step, file_version="brain.Event:2")
            self._add(step=step, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """As `Logger.log`."""
        for name, value in values.items():
            self._add(step=step, summary=self._summary(value=[self._summary.Value(tag=name, simple_value=value)]))

    def close(self) -> None:
        """As `Logger.close`."""
        self._writer.close()

    def _add(self, **fields: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), **fields))


class WeightsAndBiases:
    """A run of Weights & Biases with the id of the run folder; its own files are in `wandb/` there.

    Key, project, entity and mode (WANDB_MODE=offline) are those of its environment variables. What it would collect by
    itself (the command line, the code, the output) is left out.
    """

    def __init__(self, run: RunFolder) -> None:
        import wandb

        quiet = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_meta=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(run.path),
            id=run.id or run.name,
            name=run.name,
            config={"kind": run.kind, **run.config},
            resume="allow",
            settings=quiet,
        )
        # steps of its own would have to rise, and a run that is resumed goes back to its last checkpoint
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """As `Logger.log`."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """As `Logger.close`."""
        self._run.finish()


class MLflow:
    """A run of MLflow, found again by a tag with the id of the run folder.

    Where it is kept, and the key to it, is said by MLFLOW_TRACKING_URI and MLflow's other environment variables.
    """

    TAG = "qhw.run"

    def __init__(self, run: RunFolder) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        mark = run.id or run.name
        known = self._client.search_runs([experiment], f"tags.`{self.TAG}` = '{mark}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {self.TAG: mark, "qhw.kind": run.kind}
            self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
            for setting, value in _flat(run.config):
                self._client.log_param(self._id, setting, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """As `Logger.log`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """As `Logger.close`."""
        self._client.set_terminated(self._id)


def _flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Settings as ``ppo.seed`` and short text, which is what MLflow holds."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, str(value)[:500]


LOGGERS: dict[str, tuple[str, Make]] = {
    "tensorboard": ("", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
    "mlflow": ("mlflow", MLflow),
}
"""Name of a logger → (the package that it needs, the class)."""
DEFAULT = ("tensorboard",)
_chosen: list[dict[str, Make]] = []
_failed: set[tuple[Path, str]] = set()  # in this process: told once, and not tried again


@contextmanager
def logging_to(names: Sequence[str]) -> Iterator[None]:
    """Within the block, runs log to these places; without any, to TensorBoard.

    Args:
        names: tensorboard, wandb, mlflow, none, or ``module:name`` of a class with the methods of `Logger`.

    Raises:
        UnknownNameError: no such logger.
        MissingDependencyError: its package is not installed.
        InvalidInputError: "none" beside others, or a ``module:name`` that cannot be loaded or called.
    """
    makes = {name: _make_of(name) for name in names if name != "none"}
    if makes and "none" in names:
        raise InvalidInputError(f"--logger none together with {', '.join(makes)}: give none alone, or leave it out")
    _chosen.append(makes if names else {name: LOGGERS[name][1] for name in DEFAULT})
    try:
        yield
    finally:
        _chosen.pop()


def _make_of(name: str) -> Make:
    if name in LOGGERS:
        package, make = LOGGERS[name]
        specification = importlib.util.find_spec(package) if package else None
        if package and (specification is None or specification.origin is None):  # a folder of this name is no package
            raise MissingDependencyError(f"logger {name} needs {package}: pip install 'qhw-diffusion[{name}]'")
        return make
    if not is_extension(name):
        raise UnknownNameError.of("logger", name, [*LOGGERS, "none"], own=True)
    found = load_extension(name, what="logger")
    if not callable(found):
        raise InvalidInputError(
            f"logger {name!r} is a {type(found).__name__}; wanted is a class or function that takes a run folder and "
            "gives an object with log(step, values)"
        )
    return found  # type: ignore[no-any-return]


class Loggers:
    """The loggers of one run.

    Args:
        run: the folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        makes = _chosen[-1] if _chosen else {name: LOGGERS[name][1] for name in DEFAULT}
        self._made: dict[str, Logger] = {}
        for name, make in makes.items():
            if (run.path, name) in _failed:
                continue
            if name in DEFAULT:  # part of the folder: what fails here, fails there
                self._make(name, make)
            else:
                self._try(name, partial(self._make, name, make))

    def _make(self, name: str, make: Make) -> None:
        self._made[name] = make(self._run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell every logger; `values` are finite."""
        for name, logger in list(self._made.items()):
            if name in DEFAULT:
                logger.log(step, values)
            else:
                self._try(name, partial(logger.log, step, dict(values)))

    def close(self) -> None:
        """Close every logger."""
        for name, logger in list(self._made.items()):
            close = getattr(logger, "close", None)
            if name in DEFAULT:
                logger.close()
            elif close is not None:
                self._try(name, close)
        self._made.clear()

    def _try(self, name: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:
            self._made.pop(name, None)
            _failed.add((self._run.path, name))
            told = " ".join(without_tokens(f"{type(error).__name__}: {error}").split())[:300]
            print(
                f"qhw: logger {name} fails ({told}): from here on this run is not logged there; every number is in "
                f"{self._run.path / 'metrics.jsonl'}",
                file=sys.stderr,
                flush=True,
            )
