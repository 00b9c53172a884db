"""From "submitted" to "done" or "failed": the answer stored as it came, what was charged, and who is told."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

from qhw_diffusion.errors import AccountError, DamagedFileError, JobError, ServiceError
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_rows import DUPLICATES, INSTANCE, STATED, UNANSWERED, Row
from qhw_diffusion.hardware.modes import Clock
from qhw_diffusion.hardware.service import AnyPub, JobState, Measured, Sampled, SamplerPub, Service
from qhw_diffusion.hardware.submit import Job, Sender
from qhw_diffusion.hardware.wait import Waiter

_NO_ANSWER = (ServiceError, AccountError)


class Collector:
    """Stores what became of jobs, with what they were charged; in a session its clock counts too (`modes.Clock`).

    Args:
        service, ledger, waiter, sender: of the runner.
    """

    def __init__(self, service: Service, ledger: Ledger, waiter: Waiter, sender: Sender) -> None:
        self.service = service
        self.ledger = ledger
        self.waiter = waiter
        self.sender = sender
        self.clock = Clock(service, ledger, waiter, session=sender.mode == "session")

    def store(self, job: Job, row: Row) -> Row:
        """The answer of a job that is done: on the disk first, with what it was charged.

        Raises:
            ServiceError: as `answer`; the row stays submitted.
        """
        raw = self.answer(job, row)
        before = row.summary.get(DUPLICATES, {})
        new = self._duplicates(job, row)
        if row.qpu_seconds is not None:  # only the answer is fetched again
            charged: float | None = row.qpu_seconds + sum(seconds or 0.0 for seconds in new.values())
        elif (charged := self.charged(row)) is not None:
            charged += sum(seconds or 0.0 for seconds in {**new, **before}.values())
        extra = {DUPLICATES: {**new, **before}} if new else {}
        row = self.ledger.done(job.key, raw, charged, **extra, **self._stated(row))
        if row.summary.get(UNANSWERED):
            with contextlib.suppress(*_NO_ANSWER):
                self.sender.look_again(row)
        return self.ledger.get(row.key) or row

    def answer(self, job: Job, row: Row) -> str:
        """The raw answer of a job that is done, asked for again while what comes is no answer to its PUBs.

        Raises:
            ServiceError: none came; what came instead is kept beside the results, and the next call asks again.
        """
        times = self.waiter.times
        for number in range(times.attempts):
            if number:
                self.waiter.pause(min(times.backoff * 2 ** (number - 1), times.backoff_most))
            raw = self.waiter.answered(lambda: self.service.raw(row.job_id or ""))
            try:
                check_answer(self.service, raw, job.pubs)
                return raw
            except DamagedFileError as error:
                trouble = error
        kept = self.ledger.keep_unreadable(row.key, raw)
        raise ServiceError(
            f"what {row.device} gives as the answer of job {row.job_id} is no result of its circuits, asked for "
            f"{times.attempts} times: {trouble}. It is kept in {kept}; the row stays submitted, and the same command "
            "asks for the answer again, without another job"
        )

    def _duplicates(self, job: Job, row: Row) -> dict[str, float | None]:
        """{job id: QPU seconds, None if not stated} of jobs accepted besides the row's own, new to the row."""
        found = self.sender.cancel_duplicates(row) if job.uncertain else {}
        return {job_id: seconds for job_id, seconds in found.items() if job_id not in row.summary.get(DUPLICATES, {})}

    def _failed(self, job: Job, row: Row, reason: str, charged: float | None, *, again: bool = False) -> None:
        """Fail the row; what was accepted besides is cancelled, and counts."""
        new, before = self._duplicates(job, row), row.summary.get(DUPLICATES, {})
        if charged is not None:
            charged += sum(seconds or 0.0 for seconds in {**new, **before}.values())
        extra = {DUPLICATES: {**new, **before}} if new else {}
        self.ledger.failed(row.key, reason, charged, again=again, **extra, **self._stated(row))

    def _stated(self, row: Row) -> dict[str, Any]:
        """For a row's summary: what the service has stated of its job; nobody is asked."""
        told = self.service.stated(row.job_id or "")
        return {STATED: {**row.summary.get(STATED, {}), **told}} if told else {}

    def lost_or_cancelled(self, job: Job, row: Row, state: JobState) -> None:
        """Fail the row of a job that is going to be sent again."""
        if state.name == "UNKNOWN":
            self._failed(job, row, f"lost: {state.reason}", 0.0, again=True)
        else:
            self._failed(job, row, f"cancelled: {state.reason}", self.charged(row), again=True)

    def give_up(self, job: Job, row: Row, state: JobState) -> None:
        """Fail the row of a job without answer and raise JobError; of an unknown job the row stays."""
        if state.name == "UNKNOWN":
            raise JobError(
                f"{row.device} does not know job {row.job_id} of this ledger: another account or instance? Its row "
                "stays as it is"
            )
        charged, reason = self.charged(row), state.reason or "no reason given"
        if state.name == "CANCELLED":
            self._failed(job, row, f"cancelled: {reason}", charged, again=True)
            raise JobError(f"job {row.job_id} on {row.device} was cancelled: {reason}. The same command sends it again")
        self._failed(job, row, reason, charged)
        raise failed_before(row, reason)

    def charged(self, row: Row) -> float | None:
        """QPU seconds of a job, waited for a little: the service states them some time after the job has ended."""
        times = self.waiter.times
        waited, pause = 0.0, max(times.backoff, times.settle / 64)
        seconds: float | None = None
        while seconds is None:
            with contextlib.suppress(*_NO_ANSWER):  # what was paid for is stored all the same
                seconds = self.service.qpu_seconds(row.job_id or "")
            if seconds is None:
                if waited >= times.settle:
                    break
                self.waiter.sleep(pause)
                waited, pause = waited + pause, pause * 2
        return self.clock.charge(row, seconds)

    def read_again(self, settle: float = 0.0, run: str | None = None) -> bool:
        """Ask for the charges that the ledger does not know yet, for `settle` seconds if need be; whether one came.

        run: whose charges are waited for; None for all.
        """
        came, waited, pause = False, 0.0, max(self.waiter.times.backoff, settle / 64)
        with contextlib.suppress(*_NO_ANSWER):
            for unheard in self.ledger.with_unanswered():
                if unheard.state != "planned" and self.here(unheard):
                    came = self.sender.look_again(unheard) or came
        while rows := self.ledger.with_unknown_charges():
            with contextlib.suppress(*_NO_ANSWER):  # nor for the others then; their limits go on counting
                for row, job_id in ((known, job_id) for known in rows if self.here(known) for job_id in known.unknown):
                    if (seconds := self.service.qpu_seconds(job_id)) is None:
                        continue
                    came = True
                    self.ledger.measured(row.key, seconds, job_id)
                    if job_id == row.job_id:
                        self.clock.count(row, seconds)
                        self.ledger.note(row.key, **self._stated(row))
            if waited >= settle or not any(run in (None, row.run) for row in self.ledger.with_unknown_charges()):
                break
            self.waiter.sleep(pause)
            waited, pause = waited + pause, pause * 2
        return came

    def here(self, row: Row) -> bool:
        """Whether this account and instance can say something of the row's jobs."""
        return row.summary.get(INSTANCE) in (None, self.service.instance)


def check_answer(service: Service, raw: str, pubs: Sequence[AnyPub]) -> None:
    """Raise DamagedFileError unless `raw` is a result of each of these PUBs: every observable, or bit, at every row."""
    measured = service.decode(raw)
    if len(measured) != len(pubs):
        raise DamagedFileError(f"it has the results of {len(measured)} PUBs, {len(pubs)} were sent")
    for index, (pub, answer) in enumerate(zip(pubs, measured, strict=True)):
        if isinstance(answer, dict) != isinstance(pub, SamplerPub):
            raise DamagedFileError(f"the answer to PUB {index} is not that of the client's {pub.primitive.title()}")
        if isinstance(pub, SamplerPub):
            _check_bits(index, pub, cast(Sampled, answer))
            continue
        values, errors, _ = cast(Measured, answer)
        shape = (len(pub.observables), pub.rows)
        if values.shape != shape or errors.shape != shape:
            raise DamagedFileError(
                f"the values of PUB {index} have shape {values.shape}, their errors {errors.shape}; sent were "
                f"{shape[0]} observables × {shape[1]} rows"
            )


def _check_bits(index: int, pub: SamplerPub, bits: Sampled) -> None:
    """Raise DamagedFileError unless these are all registers of a PUB at every row, in as many shots as asked for."""
    found = {name: (array.shape, array.num_bits) for name, array in bits.items()}
    wanted = {name: ((pub.rows,), width) for name, width in pub.registers}
    if found != wanted:
        raise DamagedFileError(f"PUB {index} has the (rows, bits) {found} in its registers; sent were {wanted}")
    shots = {array.num_shots for array in bits.values()}
    if len(shots) != 1 or min(shots) < pub.shots:  # twirling rounds them up
        raise DamagedFileError(f"PUB {index} has {sorted(shots)} shots in its registers; asked for were {pub.shots}")


def failed_before(row: Row, reason: str) -> JobError:
    """What is said of a job that failed, now or in an earlier call."""
    return JobError(
        f"job {row.job_id} on {row.device} failed: {reason}. It is not sent again by itself; retry_failed "
        "(--retry-failed) does, within the cap"
    )
