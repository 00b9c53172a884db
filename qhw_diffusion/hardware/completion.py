"""From "submitted" to "done" or "failed": the answer stored as it came, what was charged, and who is told."""

from __future__ import annotations

import contextlib

from qhw_diffusion.errors import JobError, ServiceError
from qhw_diffusion.hardware.job import Job
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_rows import Row
from qhw_diffusion.hardware.service import JobState, Service
from qhw_diffusion.hardware.submission import Sender
from qhw_diffusion.hardware.waiting import Waiter

# Reasons of failed rows that never ran or were cancelled: the next call sends these again by itself
SENT_AGAIN = ("not sent", "refused", "cancelled", "lost")


class Collector:
    """Stores what became of jobs.

    A session is charged by the clock, so in session mode a job counts with the session's seconds since the job before
    it, if these are more than its own; what the session takes after its last job is added to that one when it closes.

    Args:
        service, ledger, waiter, sender: of the runner.
    """

    def __init__(self, service: Service, ledger: Ledger, waiter: Waiter, sender: Sender) -> None:
        self.service = service
        self.ledger = ledger
        self.waiter = waiter
        self.sender = sender
        self._session_counted = 0.0
        self._last: Row | None = None

    def store(self, job: Job, row: Row) -> Row:
        """The answer of a job that is done: on the disk first, with what it was charged."""
        raw = self.waiter.answered(lambda: self.service.raw(row.job_id or ""))
        charged = self.charged(row)
        duplicates = self.sender.cancel_duplicates(row) if job.uncertain else {}
        if duplicates and charged is not None:
            charged += sum(seconds or 0.0 for seconds in duplicates.values())
        extra = {"duplicates": duplicates} if duplicates else {}
        self._last = self.ledger.done(job.key, raw, charged, **extra)
        return self._last

    def lost_or_cancelled(self, row: Row, state: JobState) -> None:
        """Fail the row of a job that is going to be sent again."""
        if state.name == "UNKNOWN":
            self.ledger.failed(row.key, f"lost: {state.reason}", qpu_seconds=0.0)
        else:
            self.ledger.failed(row.key, f"cancelled: {state.reason}", qpu_seconds=self.charged(row))

    def give_up(self, row: Row, state: JobState) -> None:
        """Fail the row of a job without answer and raise JobError; of an unknown job the row stays."""
        if state.name == "UNKNOWN":
            raise JobError(
                f"{row.device} does not know job {row.job_id} of this ledger: another account or instance? Its row "
                "stays as it is"
            )
        charged, reason = self.charged(row), state.reason or "no reason given"
        if state.name == "CANCELLED":
            self.ledger.failed(row.key, f"cancelled: {reason}", qpu_seconds=charged)
            raise JobError(f"job {row.job_id} on {row.device} was cancelled: {reason}. The same command sends it again")
        self.ledger.failed(row.key, reason, qpu_seconds=charged)
        raise failed_before(row, reason)

    def charged(self, row: Row) -> float | None:
        """QPU seconds of a job, waited for a little: the service states them some time after the job has ended."""
        times = self.waiter.times
        waited, pause = 0.0, max(times.backoff, times.settle / 64)
        seconds: float | None = None
        while seconds is None:
            with contextlib.suppress(ServiceError):
                seconds = self.service.qpu_seconds(row.job_id or "")
            if seconds is None:
                if waited >= times.settle:
                    return None
                self.waiter.sleep(pause)
                waited, pause = waited + pause, pause * 2
        return max(seconds, self._session_seconds(seconds))

    def session_overhead(self) -> float:
        """Seconds charged for sessions that no row counts yet."""
        if self.sender.mode != "session":
            return 0.0
        return max(0.0, self.waiter.answered(self.service.session_seconds) - self._session_counted)

    def close(self) -> None:
        """Close the batch or session; its time after the last job counts with that job."""
        self.service.close()
        if self._last is None or self._last.qpu_seconds is None:
            return
        with contextlib.suppress(ServiceError):
            overhead = self.session_overhead()
            if overhead > 0:
                self._session_counted += overhead
                self._last = self.ledger.measured(self._last.key, self._last.qpu_seconds + overhead)

    def _session_seconds(self, own: float) -> float:
        if self.sender.mode != "session":
            return 0.0
        since = self.session_overhead()
        self._session_counted += max(own, since)
        return since


def failed_before(row: Row, reason: str) -> JobError:
    """What is said of a job that failed, now or in an earlier call."""
    return JobError(
        f"job {row.job_id} on {row.device} failed: {reason}. It is not sent again by itself; retry_failed "
        "(--retry-failed) does, within the cap"
    )
