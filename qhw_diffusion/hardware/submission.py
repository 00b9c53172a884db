"""Sending a job once: after an ambiguous reply it is looked up by its tag, and sent again only if certainly absent."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from qhw_diffusion.errors import AccountError, BudgetError, InvalidInputError, QhwError, ServiceError
from qhw_diffusion.hardware.budget import LONGEST_JOB
from qhw_diffusion.hardware.job import Job
from qhw_diffusion.hardware.keys import ledger_tag, tag_of
from qhw_diffusion.hardware.ledger import Ledger, Row
from qhw_diffusion.hardware.ledger_rows import TAG
from qhw_diffusion.hardware.service import Limits, NotSentError, RefusedError, Service, UncertainError, attempt_tag
from qhw_diffusion.hardware.waiting import Waiter

# Attempts that are looked for after a ledger has lost rows; refused ones leave gaps in their numbers
_MOST_ATTEMPTS = 50


class Sender:
    """Brings jobs from "planned" to "submitted".

    Args:
        service, ledger, waiter: of the runner.
        mode: ``"batch"``, ``"job"`` or ``"session"``.
        max_session_seconds: wall-clock seconds of the session.
    """

    def __init__(
        self, service: Service, ledger: Ledger, waiter: Waiter, *, mode: str, max_session_seconds: int | None
    ) -> None:
        self.service = service
        self.ledger = ledger
        self.waiter = waiter
        self.mode = mode
        self.max_session_seconds = max_session_seconds
        self._session_limited = False

    def limit_session(self, left: int) -> None:
        """Before the first job of a session: it is charged by the clock, so it may not be open for longer than what
        the caps leave.
        """
        if self.mode == "session" and not self._session_limited:
            self.max_session_seconds = max(1, min(self.max_session_seconds or LONGEST_JOB, left))
            self._session_limited = True

    def take_over(self, job: Job, row: Row) -> bool:
        """Whether the job of a row left "planned" by an interrupted call was found at the service, and taken over."""
        job_id = self.look_up(row)
        if job_id is not None:
            job.uncertain = True  # the call that was interrupted may have sent it twice
            self._submitted(job, job_id)
        return job_id is not None

    def send(self, job: Job, row: Row) -> None:
        """Send a job that the service certainly does not have; again only when it certainly still has not.

        Raises:
            RefusedError, AccountError, BudgetError, InvalidInputError: the service, or its client, does not take it.
                The row is failed as "refused"; the next call tries again.
            ServiceError: it was not sent (the row is failed as "not sent"), or nobody says whether it was (the row
                stays planned, and the next call looks it up).
        """
        tags = [*self._tags(row), self.tag(row)]
        times = self.waiter.times
        trouble: Exception | None = None
        for number in range(times.submissions):
            if number:
                self.waiter.pause(min(times.backoff * 2**number, times.backoff_most))
            job_id: str | None = None
            try:
                job_id = self.service.submit(job.pubs, job.options, tags, self._limits(job))
            except UncertainError as error:
                job.uncertain, trouble = True, error
                job_id = self.look_up(row)
            except NotSentError as error:
                trouble = error
            except (RefusedError, AccountError, BudgetError, InvalidInputError) as error:
                self.ledger.failed(job.key, f"refused: {error}", again=True)
                raise
            if job_id is not None:
                if job.uncertain:  # an earlier submission may show only now
                    with contextlib.suppress(ServiceError):
                        job_id = self._oldest(row, self.service.find(self.tag(row))) or job_id
                self._submitted(job, job_id)
                return
        self.ledger.failed(job.key, f"not sent: {trouble}", again=True)
        raise ServiceError(
            f"{self.service.device} took no job in {times.submissions} attempts and certainly has none: {trouble}. "
            "Nothing was charged; the same command tries again"
        )

    def look_up(self, row: Row) -> str | None:
        """The job with the row's tag; None if all look-ups, spread over the grace period, were answered and found none.

        Raises:
            ServiceError: a look-up stays without answer.
        """
        times = self.waiter.times
        for number in range(times.lookups):
            if number:
                self.waiter.sleep(times.grace / (times.lookups - 1))
            if found := self.waiter.answered(lambda: self.service.find(self.tag(row))):
                return self._oldest(row, found)
        return None

    def last_attempt(self, key: str) -> tuple[int, dict[str, float | None]]:
        """What the service has of a key without a row, which may be lost, or newer than a ledger that was put back.

        Returns:
            The last attempt that there is a job of, 0 if there is none; and what jobs of earlier attempts were charged.
        """
        tag = ledger_tag(self.ledger.id, key)
        found = left = self._found(tag)
        last = number = 0
        while left and number < _MOST_ATTEMPTS:
            number += 1
            if here := self._found(attempt_tag(tag, number)):
                last, of_last = number, here
                left = [job_id for job_id in left if job_id not in here]
        if found and not last:
            raise ServiceError(
                f"{self.service.device} has jobs tagged {tag} ({', '.join(found[:3])}), of none of the attempts 1 to "
                f"{_MOST_ATTEMPTS}; nothing was sent. qhw ledger adopt takes one of them over"
            )
        return last, self._charges([job_id for job_id in found if job_id not in of_last] if last else [])

    def is_there(self, row: Row) -> bool:
        """Whether the service has a job of a new attempt already, asked once."""
        return bool(self._found(self.tag(row)))

    def _found(self, tag: str) -> list[str]:
        return self.waiter.answered(lambda: self.service.find(tag))

    def cancel_duplicates(self, row: Row) -> dict[str, float | None]:
        """After a submission without reply: a job that was accepted twice shows by now. The row's own one counts; the
        others are cancelled, and what they were charged is told, None where the service does not say.
        """
        if TAG not in row.summary:
            return {}
        with contextlib.suppress(ServiceError):
            others = [job_id for job_id in self.service.find(self.tag(row)) if job_id != row.job_id]
            self._cancel(others)
            return self._charges(others)
        return {}

    def _charges(self, job_ids: Sequence[str]) -> dict[str, float | None]:
        charged: dict[str, float | None] = dict.fromkeys(job_ids)
        for job_id in job_ids:
            with contextlib.suppress(QhwError):
                charged[job_id] = self.service.qpu_seconds(job_id)
        return charged

    def tag(self, row: Row) -> str:
        """Of this attempt's jobs alone."""
        return attempt_tag(self._tags(row)[-1], row.attempt)

    def _tags(self, row: Row) -> list[str]:
        return tag_of(row.run, row.key, row.summary.get(TAG))

    def _submitted(self, job: Job, job_id: str) -> None:
        self.ledger.submitted(job.key, job_id, self.service.session_id())

    def _oldest(self, row: Row, found: Sequence[str]) -> str | None:
        """Of several jobs with one tag the oldest counts; the others are asked to be cancelled, if the tag says that
        they are this ledger's.
        """
        self._cancel(found[1:] if TAG in row.summary else [])
        return found[0] if found else None

    def _cancel(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            with contextlib.suppress(QhwError):
                self.service.cancel(job_id)

    def _limits(self, job: Job) -> Limits:
        return Limits(job.max_seconds, self.mode, self.max_session_seconds)
