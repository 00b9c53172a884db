"""Progress on the terminal, and Ctrl-C that stops between two steps instead of in the middle of one."""

from __future__ import annotations

import importlib.util
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

DELAY = 1.0
"""Seconds of work before a bar is shown."""
EVERY = 60.0
"""Seconds between two lines where no bar can be drawn: a log file, CI."""


def progress(
    iterable: Any = None, *, total: int | None = None, desc: str = "", unit: str = "it", initial: int = 0
) -> Any:
    """What tells how far work has come (`update`, `set_postfix`, iteration, `with`), after a second of it.

    On a terminal it is tqdm's bar on stderr, in a notebook tqdm's widget (without ipywidgets a bar of text), elsewhere
    lines on stderr, a minute at least between two. Bars within bars are shown below one another, and only the outermost
    stays. QHW_PROGRESS=0 is silence, QHW_PROGRESS=1 a terminal's bar wherever stderr goes, at once.
    """
    settings = {"total": total, "desc": desc, "unit": unit, "initial": initial, "dynamic_ncols": True, "leave": None}
    setting = os.environ.get("QHW_PROGRESS", "")
    if setting == "0" or sys.stderr is None:
        return tqdm(iterable, disable=True, **settings)
    if setting == "1" or sys.stderr.isatty():
        return tqdm(iterable, delay=0 if setting == "1" else DELAY, **settings)
    if in_notebook():
        if importlib.util.find_spec("ipywidgets") is None:  # stderr is a red box there
            return tqdm(iterable, delay=DELAY, file=sys.stdout, **{**settings, "ncols": 80, "dynamic_ncols": False})
        from tqdm.notebook import tqdm as widget

        return widget(iterable, delay=DELAY, **settings)
    return _Lines(iterable, **settings)


def progress_enabled() -> bool:
    """Whether a line on stderr can be written over: a terminal, or QHW_PROGRESS=1 (see `progress`)."""
    setting = os.environ.get("QHW_PROGRESS", "")
    return setting != "0" and (setting == "1" or (sys.stderr is not None and sys.stderr.isatty()))


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return "ipykernel" in sys.modules and ipython is not None and ipython.get_ipython() is not None


class _Lines(tqdm):
    """Progress in plain lines, `EVERY` seconds apart, and a last one where there was a first."""

    disable: bool

    def __init__(self, iterable: Any, **settings: Any) -> None:
        self._told_at: float | None = None
        # a delay that never ends: tqdm draws nothing itself, and asks for a line at every update
        super().__init__(iterable, delay=EVERY, mininterval=0, miniters=1, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """A line, if it is time for one."""
        now = self._time()
        if now - (self.start_t if self._told_at is None else self._told_at) >= EVERY:
            self._told_at = now
            self._tell()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Nothing is there to be cleared."""

    def close(self) -> None:
        """The last line."""
        if self.disable:
            return
        self.disable = True
        if self._told_at is not None:
            self._tell()
        self._decr_instances(self)

    def _tell(self) -> None:
        share = "{percentage:3.0f}% {n_fmt}/{total_fmt}" if self.total else "{n_fmt}{unit}"
        left = "<{remaining}" if self.total else ""
        self.bar_format = "{desc}: " + share + " [{elapsed}" + left + ", {rate_fmt}{postfix}]"
        print(self.format_meter(**self.format_dict), file=sys.stderr, flush=True)


class StopRequest:
    """Whether a loop is asked to stop: it looks between two steps, while more are to come, saves and leaves.

    Attributes:
        interrupted: Ctrl-C came.
        heeded: a loop has looked since, and so leaves before its end.
    """

    def __init__(self) -> None:
        self.interrupted = self.heeded = False

    @property
    def requested(self) -> bool:
        """True after the first Ctrl-C, or once a `stop_file` is there."""
        self.heeded = self.heeded or self.interrupted or any(file.exists() for file in _stop_files)
        return self.heeded


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
