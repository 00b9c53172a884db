"""PUBs → results, through the ledger: a row before a job is sent, its id before waiting, its answer before use.

The same key never runs twice. After an ambiguous reply, a restart or a crash the job is looked up by its tag and taken
over; it is sent again only when every look-up was answered and none found it. Nothing goes to a paid device without a
cap, and nothing that would pass the run's cap, the ledger's, or what the account has left.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import AccountError, BudgetError, DamagedFileError, InvalidInputError, LedgerError, QhwError
from qhw_diffusion.hardware.caps import LONGEST_JOB, share_budget
from qhw_diffusion.hardware.cost import DEFAULT_LEVEL, EXTRAPOLATED, Estimator, added_by, job_estimator
from qhw_diffusion.hardware.keys import job_key, ledger_tag
from qhw_diffusion.hardware.ledger import Ledger, Row
from qhw_diffusion.hardware.ledger_rows import DUPLICATES, INSTANCE, LIMIT, SENT, TAG, seconds_since, total_charge
from qhw_diffusion.hardware.local import LocalService
from qhw_diffusion.hardware.modes import check_mode, check_seconds
from qhw_diffusion.hardware.provenance import Calibrations, as_sent
from qhw_diffusion.hardware.record import Collector, check_answer, failed_before
from qhw_diffusion.hardware.service import AnyPub, Measured, Sampled, Service, primitive_of
from qhw_diffusion.hardware.split import JobLimits, cut, join, join_samples, split
from qhw_diffusion.hardware.submit import Job, Sender, distinct
from qhw_diffusion.hardware.wait import Times, Waiter, tell


@dataclass(frozen=True, eq=False)
class Answer:
    """Results of one call.

    Attributes:
        values: [M, B] expectation values, one array a PUB; empty for a Sampler's PUBs.
        std_errors: [M, B] their standard errors.
        shots: of each circuit, one number a PUB; 0 where the service does not say.
        job_ids: of all jobs, in order.
        qpu_seconds: charged for all jobs, those of earlier calls, failed attempts and duplicates included; None while
            the service has not stated one of them.
        reused: how many jobs were in the ledger already, and cost nothing now.
        bits: of a Sampler's PUBs: {classical register: `BitArray` of shape (B,)}, one a PUB.
    """

    values: list[np.ndarray]
    std_errors: list[np.ndarray]
    shots: list[int]
    job_ids: list[str]
    qpu_seconds: float | None
    reused: int
    bits: list[Sampled] = field(default_factory=list)


class Runner:
    """Runs PUBs on one service, with one ledger, under one cap.

    Args:
        service: `IBMService` or `LocalService`.
        ledger: an open `Ledger`.
        run: name of the run; its jobs carry it as a tag, and the cap counts for it.
        mode: ``"batch"``, ``"job"`` or ``"session"``.
        max_qpu_seconds: cap of the run, all its jobs ever together; needed on a paid device unless the ledger has one.
        max_session_seconds: wall-clock seconds of the session; never more than what is left of the cap.
        retry_failed: send jobs again that failed in an earlier call (those that never ran are in any case).
        estimate: cost of a job; None estimates from the device's data and the ledger (`job_estimator`).
        times: pauses, attempts, deadline.
        limits: of one job.
        sleep: waits for so many seconds; tests replace it.

    Raises:
        InvalidInputError: another mode, an empty name, a cap or a time that is not positive.
    """

    def __init__(
        self,
        service: Service,
        ledger: Ledger,
        *,
        run: str,
        mode: str = "batch",
        max_qpu_seconds: float | None = None,
        max_session_seconds: int | None = None,
        retry_failed: bool = False,
        estimate: Estimator | None = None,
        times: Times | None = None,
        limits: JobLimits | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        check_mode(mode)
        if not isinstance(run, str) or not run.strip():
            raise InvalidInputError("the run needs a name: jobs are tagged and counted by it")
        check_seconds(max_qpu_seconds=max_qpu_seconds, max_session_seconds=max_session_seconds)
        self.service = service
        self.ledger = ledger
        self.name = run
        self.max_qpu_seconds = max_qpu_seconds
        self.retry_failed = retry_failed
        self.times = times or Times()
        self._limits = limits or JobLimits()
        self._estimate = estimate
        self._own_estimate = estimate is not None
        self._estimated_with = ""
        self._warned = False
        self._sent: set[str] = set()
        self._taken: set[str] = set()  # keys whose results were taken from the ledger, which their rows say
        # ids of jobs whose results were in the ledger before this runner asked for them
        self.reused_jobs: set[str] = set()
        self._waiter = Waiter(self.times, sleep)
        self._sender = Sender(service, ledger, self._waiter, mode=mode, max_session_seconds=max_session_seconds)
        self._collector = Collector(service, ledger, self._waiter, self._sender)
        self._calibrations = Calibrations(service, ledger, run)

    def run(
        self,
        pubs: Sequence[AnyPub],
        *,
        options: Mapping[str, Any] | None = None,
        purpose: str = "evaluate",
        packages: Sequence[str] = (),
    ) -> Answer:
        """Evaluate PUBs: from the ledger what is there, by jobs what is not.

        Args:
            pubs: what to evaluate, all for an Estimator (`Pub`) or all for a Sampler (`SamplerPub`).
            options: of the client's primitive (resilience level, twirling and so on), plain JSON types.
            purpose: part of the key; the same PUBs for another purpose are another job.
            packages: distributions that the circuits were made with; their versions are kept with the jobs.

        Raises:
            InvalidInputError: circuits or options that the service would refuse.
            BudgetError: no cap on a paid device, or too little left; nothing was sent.
            AccountError: a job of these is, or may be, at another account or instance; nothing was sent.
            JobError: a job was refused, cancelled, or failed, now or in an earlier call.
            ServiceError, AccountError: no answer; what was sent is in the ledger, the same call goes on with it.
            KeyboardInterrupt: passed on, after cancellation of the unfinished jobs was asked for.
        """
        options, primitive = dict(options or {}), primitive_of(pubs)
        self.service.check(pubs, options)
        self._calibrations.expire()
        jobs = []
        added = added_by(options, primitive, default_level=DEFAULT_LEVEL if self.service.paid else 0)
        for pieces in split(pubs, self._limits, factor=len(added.scales)):
            mine = cut(pubs, pieces)
            key = self._key(mine, options, purpose)
            jobs.append(Job(key, pieces, mine, options, purpose, added, packages=tuple(packages)))
        different = distinct(jobs)
        with contextlib.ExitStack() as stack:
            for key in sorted(job.key for job in different):  # one order, so that processes never wait for each other
                self._take_turns(stack, key)
            new = [job for job in different if self._to_be_sent(job)]
            try:
                try:
                    self._share_budget(new)
                except BudgetError:
                    # what is out already is taken in all the same, and may leave more than was reserved for it
                    if not (out := [job for job in different if job.sent_before]):
                        raise
                    for job in out:
                        self._finish(job, "")
                    self._share_budget(new)
                if new and len(added.scales) > 1 and not self._warned:
                    tell(EXTRAPOLATED)
                    self._warned = True
                for job in different:
                    self._start(job)
                for number, job in enumerate(different, start=1):
                    self._finish(job, f", job {number} of {len(different)}" if len(different) > 1 else "")
            except KeyboardInterrupt:
                self._ask_to_cancel(different)
                raise
        rows = {job.key: self._row(job) for job in different}
        self._sent |= {job.key for job in different if not job.reused}
        self.reused_jobs |= {row.job_id or "" for job, row in zip(different, rows.values(), strict=True)
                             if job.reused and job.key not in self._sent}  # fmt: skip
        self._note_reuse([job.key for job in different if job.reused])
        answers = {key: self.service.decode(self.ledger.result(key)) for key in rows}
        cuts, parts = [job.pieces for job in jobs], [answers[job.key] for job in jobs]
        measured: list[Measured] = []
        bits: list[Sampled] = []
        if primitive == "sampler":
            bits = join_samples(pubs, cuts, cast(list[list[Sampled]], parts))
        else:
            measured = join(pubs, cuts, cast(list[list[Measured]], parts))
        return Answer(
            values=[m[0] for m in measured],
            std_errors=[m[1] for m in measured],
            shots=[m[2] for m in measured] or [next(iter(one.values())).num_shots for one in bits],
            job_ids=[rows[job.key].job_id or "" for job in different],
            qpu_seconds=total_charge(rows.values()),
            reused=sum(job.reused for job in different),
            bits=bits,
        )

    def close(self) -> None:
        """Close the batch or session; jobs in it go on."""
        self._collector.clock.close()

    def settle(self) -> None:
        """Close, and wait a little for charges not stated so far, so that the ledger says what the run has cost."""
        self.close()
        if self.service.paid:
            self._collector.read_again(self.times.settle, self.name)

    def read_charges(self, wait: float = 0.0) -> bool:
        """Ask for charges that the ledger does not know yet, for so many seconds if need be; whether one came."""
        return self.service.paid and self._collector.read_again(wait)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __deepcopy__(self, memo: object) -> Runner:
        """The same runner: copies of a layer share one connection and one ledger."""
        return self

    def __reduce__(self) -> Any:
        raise InvalidInputError(
            f"the runner of {self.name!r} holds a connection to {self.service.device} and an open ledger, which no "
            "file and no other process can hold: save layer.state_dict(), or the layer on a simulating engine "
            "(layer.with_engine('noisy')), and open a runner where it is used"
        )

    def _note_reuse(self, keys: Sequence[str]) -> None:
        """Say in the rows, once for this runner, that their results were taken instead of measured."""
        for key in keys:
            if key not in self._sent and key not in self._taken:
                with contextlib.suppress(LedgerError):  # a full disk: the results are there all the same
                    self.ledger.reused(key, self.name)
                self._taken.add(key)

    def _take_turns(self, stack: contextlib.ExitStack, key: str) -> None:
        """Hold the key's lock; the person at the terminal is told whom a long wait is for."""
        try:
            stack.enter_context(self.ledger.lock(key, self.times.turn))
        except LedgerError as busy:
            tell(f"{busy}. Waiting for it")
            stack.enter_context(self.ledger.lock(key))

    def _key(self, pubs: Sequence[AnyPub], options: Mapping[str, Any], purpose: str) -> str:
        work = {"options": options, "program": self.service.program}
        return job_key(list(pubs), work, self.service.device, purpose)  # type: ignore[arg-type]  # Pub is frozen

    def _row(self, job: Job) -> Row:
        row = self.ledger.get(job.key)
        if row is None:
            raise LedgerError(f"the row of key {job.key[:12]} has disappeared from the ledger while its job ran")
        return row

    def _to_be_sent(self, job: Job) -> bool:
        row = self.ledger.get(job.key)
        if row is None:
            if not self._sent_by_this_ledger(job):
                return True
            row = self._row(job)
        self._check_instance(row)
        if row.state == "done":
            row = self._whole(job, row)
        if row.state == "failed" and (other := self._sender.another_result(row, uncertain=False)):
            row = self.ledger.take_duplicate(row.key, other)  # it was paid for
        job.sent_before = job.uncertain = row.state == "submitted"
        job.reused = row.state == "done"
        if row.state == "failed" and not (self.retry_failed or row.sent_again):
            raise failed_before(row, row.reason)
        return row.state in ("planned", "failed")

    def _sent_by_this_ledger(self, job: Job) -> bool:
        """Whether the service has a job of a key that has no row.

        The row was lost, or is newer than a ledger that was put back. Then the job is taken over: nothing is sent for
        it, and what it and earlier attempts cost counts.
        """
        if not (self.service.paid or self.ledger.incomplete):
            return False
        last, earlier = self._sender.last_attempt(job.key)
        if not last:
            return False
        if self.service.paid:
            self._estimate_job(job)
            # of its limit nothing is known but that some cap allowed it
            most = math.ceil(max(self.max_qpu_seconds or 0.0, self.ledger.cap or 0.0, job.seconds))
            job.summary |= {LIMIT: min(most, LONGEST_JOB)}
        noted = {**self._noted(job, sent=True), **({DUPLICATES: earlier} if earlier else {})}
        row = self._plan(job, noted, last, sent=True)
        return self._sender.take_over(job, row)

    def _check_instance(self, row: Row) -> None:
        """Raise AccountError for a row whose job may be, or is, at another instance: nobody here can see it."""
        sent_to, here = row.summary.get(INSTANCE, ""), self.service.instance
        if row.state in ("planned", "submitted") and sent_to and here and sent_to != here:
            may = "may have been" if row.state == "planned" else "was"
            raise AccountError(
                f"the job of key {row.key[:12]} ({row.purpose}) {may} sent by another account or instance ({sent_to}, "
                f"this one is {here}). Use that one, so that nothing is paid twice, or another ledger (--ledger) to "
                "run it anew. Nothing was sent"
            )

    def _whole(self, job: Job, row: Row) -> Row:
        """The row; with a damaged result file it is "submitted" again, so that the answer is read again, for free.

        Raises:
            DamagedFileError, ServiceError: the file is whole but holds no result, and the service has none either.
        """
        try:
            raw = self.ledger.result(row.key)
        except DamagedFileError:
            return self.ledger.refetch(row.key)
        try:
            check_answer(self.service, raw, job.pubs)
        except DamagedFileError:
            if self.service.paid:  # what is there stays where it is until there is something better
                if self._waiter.answered(lambda: self.service.status(row.job_id or "")).name != "DONE":
                    raise
                self._collector.answer(job, row)
            return self.ledger.refetch(row.key, unreadable=True)
        return row

    def _share_budget(self, jobs: Sequence[Job]) -> None:
        """Estimates and limits of the jobs about to be sent; BudgetError if they do not fit."""
        if not jobs or not self.service.paid:
            return
        for job in jobs:
            self._estimate_job(job)

        def share() -> int:
            return share_budget(
                jobs,
                self.ledger,
                run=self.name,
                device=self.service.device,
                cap=self.max_qpu_seconds,
                remaining=self._waiter.answered(self.service.remaining_seconds),
                session_overhead=self._collector.clock.uncounted(),
            )

        self.read_charges()
        try:
            left = share()
        except BudgetError:
            # what ended a short time ago holds its limit until its charge is stated
            if not self.read_charges(self.times.settle):
                raise
            left = share()
        self._sender.limit_session(left)

    def _estimate_job(self, job: Job) -> None:
        if not self._own_estimate:
            device = self._calibrations.latest()
            if device.fingerprint != self._estimated_with:
                self._estimate = job_estimator(device, lambda: self.ledger.rows(state="done"))
                self._estimated_with = device.fingerprint
        assert self._estimate is not None
        cost = self._estimate(job.pubs, job.options)
        job.seconds, job.summary = cost.seconds, {"formula_seconds": cost.formula_seconds}

    def _start(self, job: Job) -> None:
        """Bring a job to "submitted", unless it is there or done."""
        row = self.ledger.get(job.key)
        if row is not None and row.state in ("submitted", "done"):
            return
        # A new key has no job, as far as one look-up tells, unless rows are lost; a row left planned may have one
        may_exist = self.ledger.incomplete if row is None else row.state == "planned"
        if row is None:
            row = self._plan(job, self._noted(job))
        elif row.state == "failed":
            row = self._retry(job)
            may_exist = self.service.paid and self._sender.is_there(row)
        if may_exist:
            if self._sender.take_over(job, row):
                return
            ago, limit = seconds_since(row.updated) if self.service.paid else 0.0, row.most_seconds
            # the tag stays: another job of this attempt may have it
            noted = {name: value for name, value in self._noted(job).items() if name != TAG}
            row = self.ledger.permit(job.key, run=self.name, cap=self.max_qpu_seconds, summary=noted)
            row = self._sender.not_found(job, row, ago, limit)
        self._sender.send(job, row)

    def _plan(self, job: Job, summary: dict[str, Any], attempt: int = 1, *, sent: bool = False) -> Row:
        circuits, shots = job.executed
        return self.ledger.plan(
            job.key,
            run=self.name,
            purpose=job.purpose,
            device=self.service.device,
            circuits=circuits,
            shots=shots,
            estimate_seconds=job.seconds,
            paid=self.service.paid,
            summary=summary,
            cap=self.max_qpu_seconds,
            attempt=attempt,
            sent=sent,
        )

    def _retry(self, job: Job) -> Row:
        return self.ledger.retry(job.key, run=self.name, cap=self.max_qpu_seconds, summary=self._noted(job))

    def _noted(self, job: Job, *, sent: bool = False) -> dict[str, Any]:
        """What the row of a new attempt says of how it is sent.

        Args:
            job: of the attempt.
            sent: it was sent by a process that left no row: under which calibration is not known.
        """
        facts = as_sent(
            self.service,
            job.pubs,
            job.options,
            mode=self._sender.mode,
            packages=job.packages,
            calibration=None if sent else self._calibrations.read(),
        )
        noted = {**job.summary, SENT: facts}
        if not self.service.paid:
            return noted
        return {**noted, INSTANCE: self.service.instance, TAG: ledger_tag(self.ledger.id, job.key)}

    def _finish(self, job: Job, note: str) -> None:
        """Wait for a job and store its answer; what else became of it is stored too, and raised."""
        row = self._row(job)
        while row.state != "done":
            state = self._waiter.wait(self.service, row.job_id or "", note=note)
            if state.name == "DONE":
                row = self._collector.store(job, row)
                continue
            if state.name != "UNKNOWN" and (other := self._sender.another_result(row, uncertain=job.uncertain)):
                row = self.ledger.take_duplicate(row.key, other, self._collector.charged(row))
                continue
            # A free job ended with its process; a paid one was cancelled since an earlier call sent it
            again = not self.service.paid if state.name == "UNKNOWN" else state.name == "CANCELLED" and job.sent_before
            if not again:
                self._collector.give_up(job, row, state)
            job.sent_before = False
            self._collector.lost_or_cancelled(job, row, state)
            self._calibrations.expire()  # it may have been in the queue for a day
            self._share_budget([job])
            self._sender.send(job, self._retry(job))
            row = self._row(job)

    def _ask_to_cancel(self, jobs: Sequence[Job]) -> None:
        """After Ctrl-C. Whether they were cancelled is for the next call to find out: their rows stay as they are."""
        asked = []
        for job in jobs:
            row = self.ledger.get(job.key)
            if row is not None and row.state == "submitted" and row.job_id:
                with contextlib.suppress(QhwError):
                    self.service.cancel(row.job_id)
                    asked.append(row.job_id)
        if asked and self.service.paid:
            tell(
                f"asked {self.service.device} to cancel {', '.join(asked)}; it may run all the same. The same command "
                "takes its result, or sends it again"
            )


def open_runner(
    device: str | Device,
    *,
    ledger: Ledger,
    run: str,
    program: str = "executor",
    estimator: BaseEstimatorV2 | None = None,
    sampler: BaseSamplerV2 | None = None,
    seed: int = 0,
    client: Any = None,
    times: Times | None = None,
    **settings: Any,
) -> Runner:
    """A runner for a device, mostly by its name.

    Args:
        device: a live one (``"ibm_…"``, through the user's account), or a fake one, a snapshot's path or a `Device`,
            which run in this process and cost nothing.
        ledger: an open `Ledger`.
        run: name of the run.
        program: of a live device, ``"executor"``, or ``"estimator"`` or ``"sampler"``, the service's own.
        estimator: of a fake device, instead of Aer with its noise.
        sampler: of a fake device, the same.
        seed: of a fake device's outcomes.
        client: of a live device, a connected `QiskitRuntimeService`; None connects.
        times: pauses, attempts, deadline.
        settings: what else `Runner` takes: mode, max_qpu_seconds, max_session_seconds, retry_failed, …

    Raises:
        UnknownNameError, MissingDataError: no such fake device or snapshot.
        AccountError, ServiceError: no account, no such device for it, or no answer.
        InvalidInputError: as `Runner`.
    """
    service: Service
    if isinstance(device, str) and device.startswith("ibm_"):
        from qhw_diffusion.hardware.ibm import IBMService  # the client takes a second to import

        service = IBMService(device, client=client, program=program, times=times)
    else:
        loaded = device if isinstance(device, Device) else Device.load(device)
        service = LocalService(loaded, estimator=estimator, sampler=sampler, seed=seed)
    return Runner(service, ledger, run=run, times=times, **settings)
