"""A command in a process of its own, to be killed or interrupted: a copy of this one, which has imported everything.

A new interpreter would spend some seconds on imports before it comes to what the test is about.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from qhw_diffusion import cli


class Command:
    """`qhw WORDS` in another process; what it writes to stderr goes to a file.

    Args:
        words: what follows `qhw`.
        stderr: the file.
    """

    def __init__(self, words: list[str], stderr: Path | str = os.devnull) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=_run, args=(words, str(stderr)))
        self._process.start()

    def wait_until(self, so_far: Callable[[], object], seconds: float = 600) -> None:
        """Return when it has come so far; an error if it ends before, or takes longer."""
        deadline = time.monotonic() + seconds
        while not so_far():
            assert self._process.is_alive(), f"it ended before, with exit code {self._process.exitcode}"
            assert time.monotonic() < deadline, "it did not come so far in time"
            time.sleep(0.02)

    def end(self, how: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal and wait; the exit code, as `subprocess` gives it."""
        if self._process.is_alive():
            assert self._process.pid is not None
            os.kill(self._process.pid, how)
        self._process.join(120)
        assert self._process.exitcode is not None, "it goes on"
        return self._process.exitcode


def _run(words: list[str], stderr: str) -> None:
    # Qiskit's threads are not copied; as in its own copies of a process, it is told to do without
    os.environ["QISKIT_IN_PARALLEL"] = "TRUE"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(stderr, "w") as sys.stderr, open(os.devnull, "w") as sys.stdout:
        code = cli.main(words)
    raise SystemExit(code)
