"""Progress on the terminal, and Ctrl-C that stops between two steps instead of in the middle of one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm


def progress(
    iterable: Any = None, *, total: int | None = None, desc: str = "", unit: str = "it", initial: int = 0
) -> Any:
    """A tqdm bar (`update`, `set_postfix`, iteration, `with`) on stderr.

    Silent when stderr is not a terminal or the environment has QHW_PROGRESS=0; QHW_PROGRESS=1 forces it on.
    """
    return tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        initial=initial,
        dynamic_ncols=True,
        leave=True,
        disable=not progress_enabled(),
    )


def progress_enabled() -> bool:
    """Whether progress bars are shown (see `progress`)."""
    setting = os.environ.get("QHW_PROGRESS", "")
    return setting != "0" and (setting == "1" or (sys.stderr is not None and sys.stderr.isatty()))


class StopRequest:
    """Whether a loop is asked to stop: it looks between two steps, saves and leaves."""

    def __init__(self) -> None:
        self.interrupted = False

    @property
    def requested(self) -> bool:
        """True after the first Ctrl-C, or once a `stop_file` is there."""
        return self.interrupted or any(file.exists() for file in _stop_files)


_stop_files: list[Path] = []


@contextmanager
def stop_file(path: Path) -> Iterator[None]:
    """Within the block, a file at this path stops loops as Ctrl-C does: how a study stops work on other machines."""
    _stop_files.append(path)
    try:
        yield
    finally:
        _stop_files.remove(path)


@contextmanager
def interruptible(*, quiet: bool = False) -> Iterator[StopRequest]:
    """Within the block the first SIGINT sets `stop.requested`; a second one raises KeyboardInterrupt as usual.

    Outside the main thread, where Python allows no signal handlers, the block runs unchanged. quiet: nothing is
    printed.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if stop.interrupted:
            raise KeyboardInterrupt
        stop.interrupted = True
        if not quiet:
            print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
