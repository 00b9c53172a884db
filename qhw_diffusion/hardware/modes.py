"""Where a job runs: by itself, in a batch, or in a session; opened on first use, and again when the service closes it.

Usage of a job or batch is QPU time; usage of a session is wall-clock time while it is active. So a batch is the default
and a session, which is worth it only when the classical step between two jobs is short, always has a maximum time.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

from qhw_diffusion.errors import InvalidInputError

MODES = ("job", "batch", "session")


class Context:
    """The batch or session of one service object.

    Args:
        backend: the client's backend.
        mode: ``"job"``, ``"batch"`` or ``"session"``.
        max_seconds: wall-clock seconds until the service closes it; needed for a session.

    Raises:
        InvalidInputError: another mode; a session without maximum time.
    """

    def __init__(self, backend: Any, mode: str, max_seconds: int | None) -> None:
        check_mode(mode)
        if mode == "session" and not max_seconds:
            raise InvalidInputError("a session needs a maximum time: its usage is wall-clock time while it is active")
        self.backend = backend
        self.asked = (mode, max_seconds)
        self.mode = mode
        self.max_seconds = max_seconds
        self._open: Any = None
        self._seconds_before = 0.0
        self._reopened = False

    def target(self) -> Any:
        """What an estimator takes as its mode."""
        from qiskit_ibm_runtime import Batch, Session

        if self.mode == "job":
            return self.backend
        if self._open is None:
            if self.mode == "session":
                assert self.max_seconds is not None
                left = max(1, math.floor(self.max_seconds - self._seconds_before))
                self._open = Session(self.backend, max_time=left)
            else:
                self._open = Batch(self.backend, max_time=self.max_seconds)
        return self._open

    @property
    def session_id(self) -> str | None:
        return None if self._open is None else self._open.session_id

    def seconds(self) -> float:
        """Wall-clock seconds charged for sessions so far; asks the service."""
        now = self._open.usage() if self._open is not None and self.mode == "session" else None
        return self._seconds_before + float(now or 0.0)

    def forget(self) -> None:
        """The service has closed it: a session is opened again once while it has time left, then a batch takes over."""
        if self.mode == "session":
            try:
                self._seconds_before = self.seconds()
            except Exception:  # nobody says what it used: it counts as all of its time, so that caps hold
                self._seconds_before = float(self.max_seconds or 0)
            if self._reopened or (self.max_seconds or 0) - self._seconds_before < 1:
                self.mode = "batch"
            self._reopened = True
        self._open = None

    def close(self) -> None:
        """Take no more jobs; those sent go on. Whether the service heard it does not matter: it closes by itself."""
        if self._open is not None:
            with contextlib.suppress(Exception):
                self._seconds_before = self.seconds()
            with contextlib.suppress(Exception):
                self._open.close()
            self._open = None


def check_mode(mode: str) -> None:
    """Raise InvalidInputError for anything but ``"job"``, ``"batch"`` and ``"session"``."""
    if mode not in MODES:
        raise InvalidInputError(f"mode is {mode!r}; allowed: {', '.join(MODES)}")
