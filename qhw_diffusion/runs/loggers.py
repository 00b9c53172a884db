"""Where a run's numbers and pictures go besides its folder: TensorBoard, Weights & Biases, MLflow, or one's own logger.

A logger is made when a run logs for the first time and closed with it. One that fails is told once and left out from
then on: a training is not lost for its log, and the folder has every number.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import re
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
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
    One that also has ``picture(step: int, name: str, png: bytes)`` is given what is drawn, as the content of a PNG.
    """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one step, all finite, by names such as ``losses/policy`` and ``charts/reward``."""

    def close(self) -> None:
        """Write out what is left: the run ends (`run.outcome` says how), or pauses between two stages."""


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
            self._value(step, tag=name, simple_value=value)

    def picture(self, step: int, name: str, png: bytes) -> None:
        """As `Logger` says."""
        width, height = struct.unpack(">II", png[16:24])
        channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[png[25]]  # by colour type, as the PNG's header has it
        image = self._summary.Image(width=width, height=height, colorspace=channels, encoded_image_string=png)
        self._value(step, tag=name, image=image)

    def close(self) -> None:
        """As `Logger.close`."""
        self._writer.close()

    def _value(self, step: int, **fields: Any) -> None:
        self._add(step=step, summary=self._summary(value=[self._summary.Value(**fields)]))

    def _add(self, **fields: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), **fields))


class WeightsAndBiases:
    """A run of Weights & Biases with id and name of the run folder; its own files are in `wandb/` there.

    Key, project, entity and mode (WANDB_MODE=offline) are those of its environment variables. What it would collect by
    itself (the command line, the code, the output) is left out.
    """

    def __init__(self, run: RunFolder) -> None:
        import wandb

        self._folder, self._image = run, wandb.Image
        quiet = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_meta=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(run.path),
            id=run.id or run.name,
            name=run.name,
            job_type=run.kind,
            config={"kind": run.kind, **_versions(run), **run.config},
            resume="allow",
            settings=quiet,
        )
        # steps of its own would have to rise, and a run that is resumed goes back to its last checkpoint
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """As `Logger.log`."""
        self._run.log({"step": step, **values})

    def picture(self, step: int, name: str, png: bytes) -> None:
        """As `Logger` says."""
        self._run.log({"step": step, name: self._image(_opened(png))})

    def close(self) -> None:
        """As `Logger.close`."""
        # its exit codes of an error and of Ctrl-C
        self._run.finish(exit_code={"finished": 0, "failed": 1, "stopped": 255}[self._folder.outcome])


class MLflow:
    """A run of MLflow, found again by a tag with the id of the run folder.

    Where it is kept, and the key to it, is said by MLFLOW_TRACKING_URI and MLflow's other environment variables.
    """

    TAG = "qhw.run"
    AT_ONCE = 100
    """Settings that MLflow takes in one call."""

    def __init__(self, run: RunFolder) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client, self._folder = MlflowClient(), run
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        mark = run.id or run.name
        known = self._client.search_runs([experiment], f"tags.`{self.TAG}` = '{mark}'", max_results=1)
        # what comes later without going on with the run, as an evaluation, leaves its status as it is
        self._later = bool(known) and run.logged_again_from is None
        if known:
            self._id = known[0].info.run_id
            if not self._later:
                self._client.update_run(self._id, status="RUNNING")
        else:
            versions = {f"qhw.{name}": value for name, value in _versions(run).items()}
            tags = {self.TAG: mark, "qhw.kind": run.kind, **versions}
            self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
            settings = [Param(self._key(name), value) for name, value in _flat(run.config)]
            for first in range(0, len(settings), self.AT_ONCE):
                self._client.log_batch(self._id, params=settings[first : first + self.AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """As `Logger.log`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(self._key(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def picture(self, step: int, name: str, png: bytes) -> None:
        """As `Logger` says."""
        self._client.log_image(self._id, _opened(png), key=self._key(name), step=step)

    def close(self) -> None:
        """As `Logger.close`."""
        status = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[self._folder.outcome]
        if status != "FINISHED" or not self._later:
            self._client.set_terminated(self._id, status)

    @staticmethod
    def _key(name: str) -> str:
        """A name in the characters that MLflow takes in all of its stores and for pictures."""
        return re.sub(r"[^A-Za-z0-9_\-./ ]", "_", name)


def _versions(run: RunFolder) -> dict[str, str]:
    """What made the run, as far as it is known."""
    known = {"version": run.manifest.get("qhw_diffusion"), "commit": run.manifest.get("commit")}
    return {name: str(value) for name, value in known.items() if value is not None}


def _opened(png: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(png))


def evaluation_metrics(values: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What was measured of each (before, after, …) as metrics ``evaluation/before/fd``: numbers, or means of lists."""
    found: dict[str, float] = {}
    for name, measured in values.items():
        for key, value in measured.items():
            found[f"evaluation/{name}/{key}"] = float(fmean(value) if isinstance(value, Sequence) else value)
    return found


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


def are_chosen() -> bool:
    """Whether this is within a block of `logging_to`."""
    return bool(_chosen)


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

    def __bool__(self) -> bool:
        return bool(self._made)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell every logger what is finite of `values`."""
        values = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        for name, logger in list(self._made.items()) if values else ():
            if name in DEFAULT:
                logger.log(step, values)
            else:
                self._try(name, partial(logger.log, step, dict(values)))

    def picture(self, step: int, pictures: Mapping[str, Callable[[], bytes]]) -> None:
        """Give every logger that takes pictures these PNGs; without such a one nothing is drawn."""
        takers = [name for name, logger in self._made.items() if callable(getattr(logger, "picture", None))]
        for picture, draw in pictures.items() if takers else ():
            try:
                png = draw()
            except Exception as error:  # of what was trained there may be none, and the work is done by now
                print(f"qhw: no picture {picture} ({_line(error)})", file=sys.stderr, flush=True)
                continue
            for name in takers:
                take = getattr(self._made.get(name), "picture", None)
                if name in DEFAULT and take is not None:
                    take(step, picture, png)
                elif take is not None:  # None: it has failed at an earlier picture
                    self._try(name, partial(take, step, picture, png))

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
            print(
                f"qhw: logger {name} fails ({_line(error)}): from here on this run is not logged there; every number "
                f"is in {self._run.path}",
                file=sys.stderr,
                flush=True,
            )


def _line(error: Exception) -> str:
    return " ".join(without_tokens(f"{type(error).__name__}: {error}").split())[:300]
