"""Independent pieces of work, one after the other or in several processes, with progress and a clean Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from qhw_diffusion.errors import InvalidInputError, WorkerError
from qhw_diffusion.runs import interruptible, progress, progress_enabled


@dataclass(frozen=True)
class Task:
    """One piece of work: `work(**arguments)` in some process. It leaves its result in a file and returns nothing.

    work must be a module-level function (it is sent to another process by name); cost: in U-Net evaluations, for the
    progress bar and the prediction of time.
    """

    name: str
    work: Callable[..., None]
    arguments: dict[str, Any]
    cost: float
    done_share: Callable[[], float] | None = field(default=None, compare=False)
    """Tells, in the parent process, how much of a running task is done (0 to 1)."""


def run_tasks(tasks: Sequence[Task], *, workers: int, desc: str, executor: ProcessPoolExecutor | None = None) -> None:
    """Run all tasks; returns when all are done, raises the first error of any.

    With one worker they run in this process. With more, `executor` (see `make_executor`) runs them. Ctrl-C lets
    running trainings save their checkpoint, drops what has not started, and raises KeyboardInterrupt.

    Raises:
        WorkerError: a worker process was killed.
    """
    if not tasks:
        return
    bar = progress(total=round(sum(task.cost for task in tasks)), desc=desc, unit="eval")
    bar.unit_scale = True
    with bar:
        if workers == 1 or executor is None:
            for task in tasks:
                started = time.perf_counter()
                task.work(**task.arguments)
                bar.update(round(task.cost))
                _tell(f"{desc}: {task.name} ({time.perf_counter() - started:.0f} s)")
        else:
            _run_parallel(tasks, executor, bar, desc)


def _run_parallel(tasks: Sequence[Task], executor: ProcessPoolExecutor, bar: Any, desc: str) -> None:
    # submitted longest first, so that no long training starts last and runs alone
    order = sorted(tasks, key=lambda task: -task.cost)
    with interruptible() as stop:
        futures: dict[Future[None], Task] = {executor.submit(task.work, **task.arguments): task for task in order}
        open_futures = set(futures)
        finished_cost = 0.0
        forwarded = False
        while open_futures:
            done, open_futures = wait(open_futures, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                if future.cancelled():
                    continue
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    names = [futures[other].name for other in (future, *open_futures) if not other.cancelled()]
                    raise WorkerError(
                        f"a worker process was killed, perhaps since memory ran out; at work or waiting were "
                        f"{', '.join(names[:4])}{' and others' if len(names) > 4 else ''}. What is finished is in "
                        "the folder: the same command with --resume goes on; --workers 1 takes less memory"
                    ) from error
                if error is not None and not (stop.requested and isinstance(error, KeyboardInterrupt)):
                    for other in open_futures:
                        other.cancel()
                    raise error
                finished_cost += futures[future].cost
                _tell(f"{desc}: {futures[future].name}")
            running = [futures[f] for f in open_futures if f.running()]
            partial = sum(task.cost * task.done_share() for task in running if task.done_share is not None)
            bar.update(round(finished_cost + partial) - bar.n)
            if stop.requested and not forwarded:
                forwarded = True
                for future in open_futures:
                    future.cancel()
                interrupt_workers()
        if stop.requested:
            raise KeyboardInterrupt


def make_executor(workers: int) -> ProcessPoolExecutor | None:
    """Processes with one thread each, or None when everything is to run in this one.

    Raises InvalidInputError for less than one.
    """
    if workers < 1:
        raise InvalidInputError(f"workers must be at least 1, got {workers}")
    if workers == 1:
        return None
    # read by BLAS when a worker starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def interrupt_workers() -> None:
    """Pass one Ctrl-C on to every worker process; those that train save and stop, the others ignore it."""
    for child in multiprocessing.active_children():
        if child.pid is not None and child.is_alive():
            os.kill(child.pid, signal.SIGINT)


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["QHW_PROGRESS"] = "0"
    # the terminal's Ctrl-C goes to the parent alone, which passes on exactly one: a second one would abort a save
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _tell(line: str) -> None:
    # where no bar is drawn (a log file, CI), a line per finished piece says that work goes on
    if not progress_enabled() and os.environ.get("QHW_PROGRESS") != "0":
        print(line, file=sys.stderr, flush=True)
