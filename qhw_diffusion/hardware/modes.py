"""Where a job runs: by itself, in a batch, or in a session; opened on first use, and again when the service closes it.

Usage of a job or batch is QPU time; usage of a session is wall-clock time while it is active. So a batch is the
default, and a session is worth it only when the classical step between two jobs is short. All rules of a session are
here, but for two: before its first job its maximum is cut to what the caps leave (`submit.Sender.limit_session`), and
what its clock says beyond its jobs counts when a budget is shared (`caps.share_budget`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qhw_diffusion.errors import AccountError, InvalidInputError, ServiceError

if TYPE_CHECKING:
    from qhw_diffusion.hardware.ledger import Ledger
    from qhw_diffusion.hardware.ledger_rows import Row
    from qhw_diffusion.hardware.service import Service
    from qhw_diffusion.hardware.wait import Waiter

MODES = ("job", "batch", "session")
# How often the service is asked to close a session or batch, if it does not hear
_CLOSINGS = 3


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
        self._ended: dict[str, float] = {}
        self._reopened = False

    def target(self) -> Any:
        """What an estimator takes as its mode."""
        from qiskit_ibm_runtime import Batch, Session

        if self.mode == "job":
            return self.backend
        if self._open is None:
            if self.mode == "session":
                assert self.max_seconds is not None
                self._open = Session(self.backend, max_time=self._left)
            else:
                self._open = Batch(self.backend, max_time=self.max_seconds)
        return self._open

    @property
    def session_id(self) -> str | None:
        """Id of the batch or session that is open; None without one."""
        return None if self._open is None else self._open.session_id

    @property
    def _left(self) -> int:
        """Wall-clock seconds that the session may be open."""
        return max(1, math.floor((self.max_seconds or 0) - sum(self._ended.values())))

    def seconds(self) -> dict[str, float]:
        """{session id: wall-clock seconds charged so far}; asks the service.

        Raises:
            ValueError: it does not say, or what it says is no number of seconds.
        """
        if self._open is None or self.mode != "session":
            return dict(self._ended)
        told = self._open.usage()
        now = 0.0 if told is None else seconds_stated(told)  # null before its first job has started
        if now is None:
            raise ValueError(f"the session's usage is {told!r}")
        return {**self._ended, str(self.session_id): now}

    def _end(self, final: bool = True) -> None:
        """Note what the open session used.

        If the service does not say, or it may still be open, it counts as all of its time, so that caps hold.
        """
        name, most = str(self.session_id), float(self._left)
        with contextlib.suppress(Exception):
            self._ended = self.seconds()
        if not final or name not in self._ended:
            self._ended[name] = max(most, self._ended.get(name, 0.0))

    def forget(self) -> None:
        """The service has closed it: a session is opened again once while it has time left, then a batch takes over."""
        if self.mode == "session":
            self._end()
            if self._reopened or (self.max_seconds or 0) - sum(self._ended.values()) < 1:
                self.mode = "batch"
            self._reopened = True
        self._open = None

    def close(self) -> None:
        """Take no more jobs; those sent go on. Whether the service heard it does not matter: it closes by itself."""
        if self._open is not None:
            heard = False
            for _ in range(_CLOSINGS):  # the client asks once
                with contextlib.suppress(Exception):
                    self._open.close()
                    heard = True
                    break
            if self.mode == "session":
                self._end(final=heard)
            self._open = None


class Clock:
    """Counts the clock of sessions with their jobs, in the ledger.

    A job in a session counts with the session's seconds since the job before it, if these are more than its own charge.
    What the session took after its last job is added to that one, once, when the session has ended. Jobs that went to a
    batch because their session was closed count with their own charge.

    Args:
        service, ledger, waiter: of the runner.
        session: whether its mode is ``"session"``; otherwise no clock counts.
    """

    def __init__(self, service: Service, ledger: Ledger, waiter: Waiter, *, session: bool) -> None:
        self.service = service
        self.ledger = ledger
        self.waiter = waiter
        self.session = session
        # by session id: seconds that rows count, and the key of the last job that was in it
        self._counted: dict[str, float] = {}
        self._last: dict[str, str] = {}

    def charge(self, row: Row, own: float | None) -> float | None:
        """A job's charge with the clock of its session since the job before, if it was in one and that is more."""
        name = row.session_id or ""
        with contextlib.suppress(ServiceError, AccountError):
            clocks = self._read()
            self._end(clocks)
            since = self._left(name, clocks.get(name, 0.0))
            if since > (own or 0.0):
                own = since
        self._last[name] = row.key
        self.count(row, own or 0.0)
        return own

    def count(self, row: Row, seconds: float) -> None:
        """Note that the row counts so many seconds of its session."""
        name = row.session_id or ""
        self._counted[name] = self._counted.get(name, 0.0) + seconds

    def uncounted(self) -> float:
        """Seconds of sessions that no row counts yet; what ended ones took is added to their last job."""
        clocks = self.waiter.answered(self._read)
        self._end(clocks)
        return sum(self._left(name, seconds) for name, seconds in clocks.items())

    def close(self) -> None:
        """Close the batch or session; its time after the last job counts with that job."""
        self.service.close()
        with contextlib.suppress(ServiceError, AccountError):
            for name, seconds in self._read().items():
                self._add(name, seconds)

    def _read(self) -> Mapping[str, float]:
        return self.service.session_seconds() if self.session else {}

    def _left(self, name: str, seconds: float) -> float:
        return max(0.0, seconds - self._counted.get(name, 0.0))

    def _end(self, clocks: Mapping[str, float]) -> None:
        for name, seconds in clocks.items():
            if name != self.service.session_id():
                self._add(name, seconds)

    def _add(self, name: str, seconds: float) -> None:
        more = self._left(name, seconds)
        if more <= 0:
            return
        if name not in self._last:  # none of its jobs has ended here: the clock waits for one with its row
            out = [row.key for row in self.ledger.rows(state="submitted") if row.session_id == name]
            if not out:
                return
            self._last[name] = out[-1]
        self.ledger.add_clock(self._last[name], more)
        self._counted[name] = self._counted.get(name, 0.0) + more


def check_seconds(**given: float | None) -> None:
    """Raise InvalidInputError for a limit, None for none, that is not a positive number of seconds."""
    for name, value in given.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InvalidInputError(f"{name} is {value!r}; allowed: seconds > 0")


def check_mode(mode: str) -> None:
    """Raise InvalidInputError for anything but ``"job"``, ``"batch"`` and ``"session"``."""
    if mode not in MODES:
        raise InvalidInputError(f"mode is {mode!r}; allowed: {', '.join(MODES)}")


def seconds_stated(value: object) -> float | None:
    """Seconds as the service states them; None for anything but a finite number from 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with contextlib.suppress(OverflowError):  # a whole number beyond every float
        return float(value) if math.isfinite(value) and value >= 0 else None
    return None
