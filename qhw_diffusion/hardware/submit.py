"""Sending a job once: after an ambiguous reply it is looked up by its tag, and sent again only if certainly absent."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qhw_diffusion.errors import AccountError, BudgetError, InvalidInputError, QhwError, ServiceError
from qhw_diffusion.hardware.caps import LONGEST_JOB
from qhw_diffusion.hardware.cost import Added
from qhw_diffusion.hardware.keys import ledger_tag, tag_of
from qhw_diffusion.hardware.ledger import Ledger, Row
from qhw_diffusion.hardware.ledger_rows import DUPLICATES, INSTANCE, STATED, TAG, UNANSWERED, seconds_since
from qhw_diffusion.hardware.service import (
    AnyPub,
    Limits,
    NotSentError,
    RefusedError,
    Service,
    UncertainError,
    attempt_tag,
)
from qhw_diffusion.hardware.split import Piece, asked
from qhw_diffusion.hardware.wait import Waiter, tell


@dataclass(eq=False)
class Job:
    """What is sent, under which key, and what is known of it so far.

    Attributes:
        key: of the ledger.
        pieces: which rows of which PUBs of the call it holds.
        pubs: the PUBs to send.
        options: of the client's primitive.
        purpose: as the caller names it.
        added: what the client's own mitigation executes besides.
        seconds: estimate of its QPU time.
        summary: what the ledger's row should say besides.
        max_seconds: QPU seconds after which the service cancels it.
        sent_before: whether an earlier call has sent it.
        uncertain: whether a submission got no usable reply, or may have got none in an earlier call.
        reused: whether its answer was in the ledger already.
        packages: distributions that its circuits were made with (`provenance.as_sent`).
    """

    key: str
    pieces: list[Piece]
    pubs: list[AnyPub]
    options: Mapping[str, Any]
    purpose: str
    added: Added = field(default_factory=Added)
    seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)
    max_seconds: int | None = None
    sent_before: bool = False
    uncertain: bool = False
    reused: bool = False
    packages: tuple[str, ...] = ()

    @property
    def whole_seconds(self) -> int:
        """The estimate in whole seconds, as the service takes limits."""
        return math.ceil(self.seconds)

    @property
    def executed(self) -> tuple[int, int]:
        """(circuits, shots of each) that the service executes.

        Rows of parameters times settings of the measurement, with what the client's mitigation adds; the most shots,
        if they differ.
        """
        return self.added.executed(*asked(self.pubs))


def distinct(jobs: Sequence[Job]) -> list[Job]:
    """One job for each key, in order: equal work in one call is done once."""
    return list({job.key: job for job in jobs}.values())


# Attempts that are looked for after a ledger has lost rows; refused ones leave gaps in their numbers
_MOST_ATTEMPTS = 50
# Jobs that are asked for to see whether jobs are found by their tags
_ASKED = 3


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
        self._tags_checked = False

    def limit_session(self, left: int) -> None:
        """Limit a session before its first job: charged by the clock, it may be open only for what the caps leave.

        Args:
            left: whole QPU seconds that the caps leave.
        """
        if self.mode == "session" and not self._session_limited:
            self.max_session_seconds = max(1, min(self.max_session_seconds or LONGEST_JOB, left))
            self._session_limited = True

    def take_over(self, job: Job, row: Row) -> bool:
        """Whether the job of a row left "planned" by an interrupted call was found at the service, and taken over."""
        job_id = self.look_up(row, seconds_since(row.updated))
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
                if job_id is None:
                    row = self.not_found(job, row, self.waiter.times.until_absent, job.max_seconds or 0.0)
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

    def look_up(self, row: Row, ago: float = 0.0) -> str | None:
        """Look for the job with the row's tag, for as long as the list of the service may be behind.

        Args:
            row: the ledger's row.
            ago: seconds since the job was sent, if it was.

        Returns:
            The job's id; None if all look-ups were answered and none found it.

        Raises:
            ServiceError: a look-up stays without answer, or does not find jobs that there are.
        """
        times = self.waiter.times
        lookups = times.lookups if self.service.paid else 1  # a job in this process is there or not
        pause = max(times.grace / max(times.lookups - 1, 1), times.until_absent / 50)
        number = 0
        while True:
            number += 1
            if found := self._found(self.tag(row)):
                return self._oldest(row, found)
            waited = (number - 1) * pause
            if number >= lookups and (not self.service.paid or ago + waited >= times.until_absent):
                break
            if number == lookups:
                tell(
                    f"{self.service.device} does not list job {self.tag(row)} so far, and may be behind: looking for "
                    f"it for up to {times.until_absent - ago - waited:.0f} s more"
                )
            self.waiter.sleep(pause)
        self._check_tags(row)
        return None

    def not_found(self, job: Job, row: Row, ago: float, limit: float) -> Row:
        """Prepare a job to be sent again after a submission that no look-up shows.

        The earlier submission counts too, until it is found or was looked for in vain for `Times.remembered`: with its
        estimate if it is the ledger's only one, or else with all that its job may cost (`Ledger.send_again`). The next
        one may take an eighth of the job's share, and each further one a little less, so that the caps have room for
        them; but twice the estimate if there is so much.

        Args:
            job: to be sent again; its limit is lowered.
            row: its row, planned.
            ago: seconds since the earlier submission.
            limit: what the job of the earlier submission may cost, QPU seconds.

        Returns:
            The row, with the earlier submission noted.

        Raises:
            BudgetError: the caps do not leave enough for both.
        """
        if not self.service.paid or ago >= self.waiter.times.remembered:
            return row
        share = job.max_seconds or 0
        less = share * 3 // 4 if row.summary.get(UNANSWERED) else share // 8
        job.max_seconds = max(job.whole_seconds, min(2 * job.whole_seconds, share // 2), less, 1)
        kept = {"seconds": job.whole_seconds, "limit": limit, "next_limit": job.max_seconds}
        try:
            return self.ledger.send_again(row.key, tag=self.tag(row), **kept)
        except BudgetError as error:
            raise BudgetError(
                "it is not known whether a submission of this job was accepted; no look-up finds it, and it counts in "
                f"case it was: {error}"
            ) from None

    def look_again(self, row: Row) -> bool:
        """Look for submissions of a row that got no reply, and cancel what shows; whether the row counts otherwise now.

        Raises:
            ServiceError, AccountError: no answer.
        """
        changed = False
        for tag in dict.fromkeys(one["tag"] for one in row.summary.get(UNANSWERED, [])):
            found = self.service.find(tag)
            others = [job_id for job_id in found if job_id != row.job_id]
            self._cancel([job_id for job_id in others if job_id not in row.summary.get(DUPLICATES, {})])
            last = max(one["at"] for one in row.summary[UNANSWERED] if one["tag"] == tag)
            # where the row's own job is not in the list, others may be missing as well
            complete = row.job_id in found if tag == self.tag(row) and row.job_id else True
            over = seconds_since(last) >= self.waiter.times.remembered and complete
            after = self.ledger.settled(row.key, tag, others, given_up=over)
            changed, row = changed or after != row, after
        return changed

    def _check_tags(self, row: Row) -> None:
        """Raise ServiceError where jobs that are there are not found by their tags: then none can be said to be absent.

        Asked once, of the latest jobs of this ledger that the list must have by now.
        """
        if self._tags_checked or not self.service.paid:
            return
        times = self.waiter.times
        known = [
            other
            for other in self.ledger.rows()
            if other.job_id and TAG in other.summary and other.summary.get(INSTANCE) == self.service.instance
            and other.device == row.device and seconds_since(other.updated) >= times.until_absent
        ]  # fmt: skip
        for other in known[: -_ASKED - 1 : -1]:
            if other.job_id in self._found(self.tag(other)):
                break
            if self.waiter.answered(lambda: self.service.status(other.job_id or "")).name != "UNKNOWN":  # noqa: B023
                raise ServiceError(
                    f"{row.device} does not find job {other.job_id} by its tag {self.tag(other)}, so it cannot be said "
                    f"whether it has the job of key {row.key[:12]}. Nothing was sent; look for a job tagged "
                    f"{self.tag(row)} on the service's web page: qhw ledger adopt takes it over"
                )
        self._tags_checked = True

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
        """Cancel jobs of a row besides its own, after a submission without reply: one accepted twice shows by now.

        Args:
            row: the ledger's row, with the id of the job that counts.

        Returns:
            {job id: QPU seconds charged, None where the service does not say} of the others.
        """
        if TAG not in row.summary:
            return {}
        with contextlib.suppress(ServiceError):
            others = [job_id for job_id in self.service.find(self.tag(row)) if job_id != row.job_id]
            self._cancel(others)
            return self._charges(others)
        return {}

    def another_result(self, row: Row, *, uncertain: bool) -> str | None:
        """The id of a duplicate with a result, for a row whose own job gave none; None if there is none.

        Duplicates are asked to be cancelled when they are found; one that ran all the same was paid for, so its result
        counts. One that has not ended yet is waited for.

        Args:
            row: the ledger's row, whose job has failed or was cancelled.
            uncertain: whether there may be duplicates that the row does not know.

        Raises:
            ServiceError, AccountError: no answer.
        """
        if not self.service.paid or row.summary.get(INSTANCE) not in (None, self.service.instance):
            return None
        if self.look_again(row):
            row = self.ledger.get(row.key) or row
        others = dict.fromkeys(row.summary.get(DUPLICATES, {}))
        if uncertain and TAG in row.summary:
            found = self._found(self.tag(row))
            self._cancel([job_id for job_id in found if job_id != row.job_id and job_id not in others])
            others |= dict.fromkeys(found)
        past = {row.job_id, *(attempt["job_id"] for attempt in row.earlier)}
        for job_id in others:
            if job_id not in past and self.waiter.wait(self.service, job_id).name == "DONE":
                return job_id
        return None

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
        place: dict[str, Any] = {}
        with contextlib.suppress(ServiceError, AccountError):  # asked only of a job that another process has sent
            place = self.service.where(job_id)
        session = place.get("session_id", self.service.session_id())
        self.ledger.submitted(job.key, job_id, session, **({STATED: place} if place else {}))

    def _oldest(self, row: Row, found: Sequence[str]) -> str | None:
        """The oldest of several jobs with one tag, which counts; None if there is none.

        The others are asked to be cancelled, if the tag says that they are this ledger's.
        """
        self._cancel(found[1:] if TAG in row.summary else [])
        return found[0] if found else None

    def _cancel(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            with contextlib.suppress(QhwError):
                self.service.cancel(job_id)

    def _limits(self, job: Job) -> Limits:
        return Limits(job.max_seconds, self.mode, self.max_session_seconds)
