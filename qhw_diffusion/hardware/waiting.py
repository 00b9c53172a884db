"""Waiting for a job: polls with jitter, a deadline, patience with a silent service, a line of progress."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from qhw_diffusion.errors import ServiceError
from qhw_diffusion.hardware.service import JobState, Service
from qhw_diffusion.hardware.times import Times
from qhw_diffusion.masking import without_tokens

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
