"""Waiting for a job: polls with jitter, a deadline, patience with a silent service, a line of progress.

Every time scale of a hardware run is in `Times`, so that tests can shrink them together.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeVar

from qhw_diffusion.errors import InvalidInputError, ServiceError
from qhw_diffusion.hardware.service import JobState, Service
from qhw_diffusion.masking import without_tokens


@dataclass(frozen=True)
class Times:
    """Seconds, and numbers of attempts.

    Args:
        connect: to open a connection.
        read: without a byte from the service before a request counts as lost (the client itself waits forever).
        accept: without a byte in reply to a job; longer, since large jobs are slow to be taken, and what is given up
            too early has to be looked up.
        attempts: of a request that may be repeated safely.
        backoff: before the second attempt; doubled for each further one, up to `backoff_most`, with jitter.
        backoff_most: the longest pause between attempts.
        retry_after_most: the longest Retry-After that is waited for; the service's refusal is reported beyond it.
        poll: between two looks at a job's state; the pause grows to `poll_most` while nothing changes, with jitter.
        poll_most: the longest pause between two looks.
        patience: without any answer about a job before the wait is given up (the job goes on).
        grace: over which look-ups by tag are spread before a job counts as absent.
        lookups: how many of these must all be answered, and find nothing.
        late: after a submission without reply until its job counts as never accepted, if no look-up finds it: the
            service's list may be behind. None for four times `grace`.
        submissions: how often one job is sent at most, each time after it was certainly absent.
        settle: to wait for the service to state what a finished job used.
        turn: for another process that has the same work, before the person at the terminal is told of it.
        deadline: for one job, from being sent to its answer; None waits as long as the queue takes.
    """

    connect: float = 10.0
    read: float = 60.0
    accept: float = 300.0
    attempts: int = 6
    backoff: float = 0.5
    backoff_most: float = 30.0
    retry_after_most: float = 300.0
    poll: float = 1.0
    poll_most: float = 15.0
    patience: float = 900.0
    grace: float = 30.0
    lookups: int = 4
    late: float | None = None
    submissions: int = 4
    settle: float = 10.0
    turn: float = 10.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name in ("attempts", "lookups", "submissions") else 0
            if value is None and field.name in ("deadline", "late"):
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= least:
                raise InvalidInputError(f"Times.{field.name} is {value!r}; allowed: numbers from {least}")

    @property
    def until_absent(self) -> float:
        """`late`, or what stands for it."""
        return 4 * self.grace if self.late is None else self.late

    @property
    def remembered(self) -> float:
        """Seconds for which a submission without reply counts and is looked for again, after its job was sent anew."""
        return 10 * self.until_absent


T = TypeVar("T")


class Waiter:
    """Asks a service until it answers, and until a job has ended.

    Args:
        times: pauses, patience, deadline.
        sleep: waits for so many seconds; tests replace it.
        clock: seconds of a clock that never goes back.
    """

    def __init__(
        self, times: Times, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.times = times
        self.sleep = sleep
        self.clock = clock
        self._random = random.Random()  # jitter must differ between processes

    def pause(self, seconds: float) -> None:
        """Sleep for about that long: from half of it to half as much again."""
        self.sleep(seconds * self._random.uniform(0.5, 1.5))

    def answered(self, question: Callable[[], T]) -> T:
        """The answer, asked for again while the service gives none.

        Raises:
            ServiceError: none within `Times.patience`, or by a question that can never be answered otherwise.
        """
        asked, pause = self.clock(), self.times.backoff
        while True:
            try:
                return question()
            except ServiceError:
                if self.clock() - asked >= self.times.patience:
                    raise
            self.pause(pause)
            pause = min(pause * 2, self.times.backoff_most)

    def wait(self, service: Service, job_id: str, *, note: str = "") -> JobState:
        """The final state of a job.

        Args:
            service: that runs it.
            job_id: of the job.
            note: for the line of progress.

        Raises:
            ServiceError: the deadline is over, or no answer within the patience; the job goes on.
        """
        started, pause, before = self.clock(), self.times.poll, ""
        line = _Line()
        try:
            while True:
                state = self.answered(lambda: service.status(job_id))
                waited = self.clock() - started
                if state.final:
                    return state
                line.show(f"{service.device}: job {job_id} {state.name.lower()}, {waited:.0f} s{note}")
                if self.times.deadline is not None and waited >= self.times.deadline:
                    raise ServiceError(
                        f"job {job_id} on {service.device} is {state.name.lower()} after {waited:.0f} s, the deadline; "
                        "it goes on, and the same command takes its result"
                    )
                pause = self.times.poll if state.name != before else min(pause * 1.5, self.times.poll_most)
                before = state.name
                self.pause(pause)
        finally:
            line.clear()


class _Line:
    """One line on the terminal, written over; nothing where stderr is none (or QHW_PROGRESS=0)."""

    def __init__(self) -> None:
        self._width = 0

    def show(self, text: str) -> None:
        from qhw_diffusion.runs import progress_enabled

        if progress_enabled():
            print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)
            self._width = len(text)

    def clear(self) -> None:
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """A line for the person at the terminal, whatever its progress bars are set to."""
    print(without_tokens(text), file=sys.stderr, flush=True)
