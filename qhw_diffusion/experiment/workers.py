"""Independent pieces of work in one process or many, on one machine or a cluster, through joblib.

A backend is named as joblib names it: "loky" (processes of this machine), "ray[:address]", "dask[:address]". Without an
address a local cluster is started for the study and stopped after it. Workers on other machines need the same
installation and the same folder: results travel as files.

Ctrl-C, an error in one piece of work, or a request from anywhere (a file ``.stop`` in the folder) lets running pieces
save what they can; those that have not started are left for the next time.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qhw_diffusion.errors import (
    InvalidInputError,
    MissingDependencyError,
    QhwError,
    StudyError,
    UnknownNameError,
    WorkerError,
)
from qhw_diffusion.runs import interruptible, progress, progress_enabled, stop_file

BACKENDS = ("loky", "ray", "dask")
STOP = ".stop"
DONE, STOPPED, FAILED = "done", "stopped", "failed"
_KEPT_BY_A_WORKER = 4_000_000_000  # bytes


@dataclass(frozen=True)
class Work:
    """One piece of work: `function(*arguments)` in some process, which leaves its result in a file.

    Attributes:
        name: name in messages.
        function: a function that other processes can import.
        arguments: its arguments.
        result: the file it leaves.
        seconds: about how long it takes, for the time left.
        share_done: in this process: share of it that is done while it runs elsewhere, 0 to 1.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    result: Path
    seconds: float
    share_done: Callable[[], float] | None = None


def check_backend(text: str) -> str:
    """The text, if it names a backend.

    Raises:
        UnknownNameError: it does not.
    """
    name = text.partition(":")[0]
    if name not in BACKENDS or (name == "loky" and text != name):
        raise UnknownNameError.of("backend", text, [*BACKENDS, "ray:ADDRESS", "dask:ADDRESS"])
    return text


@contextmanager
def open_workers(workers: int, backend: str, *, folder: Path, title: str) -> Iterator[Callable[[Sequence[Work]], None]]:
    """Workers for a study; gives a function that runs pieces of work and returns when all are done.

    Args:
        workers: processes side by side; with 1 and "loky" everything runs in this process, in the order given.
        backend: see the top of this file.
        folder: folder that all workers see.
        title: name of the progress bar.

    Raises:
        InvalidInputError: less than one worker. UnknownNameError: no such backend. MissingDependencyError: it is not
            installed.

    The function raises WorkerError when a worker process was killed, KeyboardInterrupt after Ctrl-C, and the first
    error of any piece of work.
    """
    check_backend(backend)
    if workers < 1:
        raise InvalidInputError(f"workers must be at least 1, got {workers}")
    if workers == 1 and backend == "loky":
        yield lambda works: _run_here(works, folder, title)
        return
    with _joblib_backend(backend, workers):
        yield lambda works: _run_side_by_side(works, backend, folder, title)


def _run_here(works: Sequence[Work], folder: Path, title: str) -> None:
    with _stopping(folder) as stop, stop_file(stop), _bar(works, title) as bar:
        for work in works:
            if stop.exists():
                raise KeyboardInterrupt
            started = time.perf_counter()
            work.function(*work.arguments)
            bar.update(round(work.seconds))
            _tell(f"{title}: {work.name} ({time.perf_counter() - started:.0f} s)")


def _run_side_by_side(works: Sequence[Work], backend: str, folder: Path, title: str) -> None:
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if not works:
        return
    order = sorted(works, key=lambda work: -work.seconds)  # no long one starts last and runs alone
    with _stopping(folder) as stop, interruptible() as interrupt, _bar(works, title) as bar:
        jobs = (joblib.delayed(_guarded)(w.name, w.function, w.arguments, str(stop)) for w in order)
        try:
            with _Watcher(bar, order, interrupt, stop, title):
                ended = joblib.Parallel(batch_size=1)(jobs)
        except (TerminatedWorkerError, *_killed_errors(backend)) as error:
            names = [work.name for work in order if not work.result.exists()]
            raise WorkerError(
                "a worker process was killed, perhaps since memory ran out; at work or waiting were "
                f"{', '.join(names[:4])}{' and others' if len(names) > 4 else ''}. What is finished is in the folder: "
                "the same command with --resume goes on; --workers 1 takes less memory"
            ) from error
    for _, found in ended:
        if found is not None:
            raise found
    if interrupt.requested or any(state == STOPPED for state, _ in ended):
        raise KeyboardInterrupt


def _guarded(
    name: str, function: Callable[..., Any], arguments: tuple[Any, ...], stop: str
) -> tuple[str, Exception | None]:
    """In a worker: how a piece of work ended ("done", "stopped", "failed"), and its error."""
    from joblib.externals.loky import process_executor

    # loky ends a worker that grew by 300 MB since its first cell, with a warning; here that is models and compiled
    # kernels, kept for the next cells, which would have to load them again
    process_executor._MAX_MEMORY_LEAK_SIZE = _KEPT_BY_A_WORKER
    # one thread each; read when torch starts, which takes seconds and is not done here for pieces that need none
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["QHW_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    os.environ["QHW_PROGRESS"] = "0"
    # the terminal's Ctrl-C reaches workers of this machine too: it means the same as the file
    with interruptible(quiet=True) as interrupt, stop_file(Path(stop)):
        if interrupt.requested:
            return STOPPED, None
        try:
            function(*arguments)
        except KeyboardInterrupt:
            return STOPPED, None
        except Exception as error:
            if not isinstance(error, QhwError) or isinstance(error, StudyError):
                error.add_note(f"in {name}, in a worker process:\n{traceback.format_exc()}")
            Path(stop).touch()  # the others save and end; what has not started stays for the next time
            return FAILED, error
    return DONE, None


class _Watcher(threading.Thread):
    """Moves the bar while work runs elsewhere, tells what is finished, and passes Ctrl-C on."""

    def __init__(self, bar: Any, works: Sequence[Work], interrupt: Any, stop: Path, title: str) -> None:
        super().__init__(daemon=True)
        self.bar, self.left, self.interrupt, self.stop, self.title = bar, list(works), interrupt, stop, title
        self.finished = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        """Look twice a second."""
        while not self._over.wait(0.5):
            if self.interrupt.requested and not self.stop.exists():
                self.stop.touch()
            self.look()

    def look(self) -> None:
        """What has been finished since the last look."""
        for work in [work for work in self.left if work.result.exists()]:
            self.left.remove(work)
            self.finished += work.seconds
            _tell(f"{self.title}: {work.name}")
        running = sum(work.seconds * work.share_done() for work in self.left if work.share_done is not None)
        self.bar.update(max(0, round(self.finished + running) - self.bar.n))

    def __enter__(self) -> _Watcher:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()
        self.look()


def _bar(works: Sequence[Work], title: str) -> Any:
    return progress(total=round(sum(work.seconds for work in works)), desc=title, unit="s")


@contextmanager
def _stopping(folder: Path) -> Iterator[Path]:
    stop = folder / STOP
    stop.unlink(missing_ok=True)
    try:
        yield stop
    finally:
        stop.unlink(missing_ok=True)


@contextmanager
def _joblib_backend(text: str, workers: int) -> Iterator[None]:
    import joblib

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by BLAS when a worker starts
    name, _, address = text.partition(":")
    if name == "loky":
        with joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
            yield
    elif name == "dask":
        try:
            from distributed import Client
        except ImportError as error:
            raise MissingDependencyError("dask is not installed: pip install 'qhw-diffusion[dask]'") from error
        local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        try:
            client = Client(address) if address else Client(**local)
        except (ValueError, OSError) as error:
            raise InvalidInputError(f"backend {text!r} cannot be reached or started: {error}") from error
        with (
            client,
            joblib.parallel_config("dask", wait_for_workers_timeout=60),
        ):
            yield
    else:
        try:
            import ray
            from ray.util.joblib import register_ray
        except ImportError as error:
            raise MissingDependencyError("ray is not installed: pip install 'qhw-diffusion[ray]'") from error
        where = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(**where, log_to_driver=False, configure_logging=False)
        except (ValueError, ConnectionError, RuntimeError, OSError) as error:
            reason = str(error).strip().split("\n")[0]
            raise InvalidInputError(f"backend {text!r} cannot be reached or started: {reason}") from error
        try:
            register_ray()
            with joblib.parallel_config("ray", n_jobs=workers):
                yield
        finally:
            ray.shutdown()


def _killed_errors(backend: str) -> tuple[type[Exception], ...]:
    """What a cluster raises for a worker that died more often than it starts the work again."""
    name = backend.partition(":")[0]
    if name == "dask":
        from distributed import KilledWorker

        return (KilledWorker,)
    if name == "ray":
        from ray.exceptions import RayActorError, WorkerCrashedError

        return (RayActorError, WorkerCrashedError)
    return ()


def _tell(line: str) -> None:
    # where no bar is drawn (a log file, CI), a line per finished piece says that work goes on
    if not progress_enabled() and os.environ.get("QHW_PROGRESS") != "0":
        print(line, file=sys.stderr, flush=True)
