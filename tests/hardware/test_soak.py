"""Many jobs of both primitives under random faults: none lost, none run twice; stand-in's and ledger's books agree.

40 jobs in `make test`; `QHW_SOAK=500 pytest tests/hardware/test_soak.py -s` for the full run, with its figures.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scripted import exact, expectations, pub, sampler_pub

from qhw_diffusion.errors import AccountError, JobError, ServiceError
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import Answer, Runner, open_runner
from qhw_diffusion.hardware.service import AnyPub
from qhw_diffusion.hardware.split import JobLimits
from qhw_diffusion.hardware.standin import (
    CancelJob,
    Delay,
    Drop,
    ExpireSession,
    FailJob,
    Fault,
    LostReply,
    RandomFaults,
    StandIn,
    Status,
    Truncate,
)
from qhw_diffusion.hardware.wait import Times

JOBS = int(os.environ.get("QHW_SOAK", "40"))
PER_CALL = 4
SHOTS = 128
CHARGE = 1.0
FAILURE = 0.25
TIMES = Times(connect=5, read=5, attempts=3, backoff=0.005, backoff_most=0.02, poll=0.01, poll_most=0.03, patience=20,
              grace=0.02, lookups=2, submissions=2, settle=20)  # fmt: skip

TROUBLE = [Status(500), Status(503), Status(504), Status(429), Status(429, retry_after=0.01), Drop(), LostReply()]
LOST = [LostReply(), Truncate(), Truncate(abrupt=True)]  # accepted, and the client does not hear of it
FAULTS = {
    "jobs_post": [*TROUBLE, *LOST, *LOST, FailJob(seconds=FAILURE), CancelJob(), Delay(0.05), ExpireSession()],
    "jobs_get": [*TROUBLE, Truncate()],
    "job_get": TROUBLE,
    "results": [*TROUBLE, Truncate(), Truncate(abrupt=True)],
    "metrics": TROUBLE,
    "usage": TROUBLE,
    "sessions_post": TROUBLE,
    "session_patch": TROUBLE,
    "cancel": TROUBLE,
}


class Counted(RandomFaults):
    """Counts what it draws."""

    drawn: Counter[tuple[str, Fault]]

    def draw(self, endpoint: str) -> Fault | None:
        fault = super().draw(endpoint)
        if fault is not None:
            self.drawn[endpoint, fault] += 1
        return fault


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * JOBS)
def test_many_jobs_under_random_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.linspace(0.0, np.pi, JOBS)  # a different answer for every job
    raised: Counter[str] = Counter()
    started = time.monotonic()
    with (
        StandIn("fake_manila", seconds_per_job=CHARGE, usage_limit_seconds=1e6, seed=1) as standin,
        standin.as_account(),
        Ledger.open(tmp_path / "ledger") as ledger,
    ):
        answers: list[Answer] = []
        runners = [connected(ledger, program) for program in ("executor", "estimator", "sampler")]
        faults = Counted(seed=24, rate=0.2, kinds=FAULTS)  # of the first jobs, each kind of fault hits one
        faults.drawn = Counter()
        standin.inject_random(faults)
        for number, first in enumerate(range(0, JOBS, PER_CALL)):
            runner, part = work(runners, number, rows[first : first + PER_CALL])
            for _ in range(20):  # each is what a user does who repeats the command
                try:
                    answers.append(runner.run([part]))
                    break
                except (ServiceError, JobError, AccountError) as error:
                    raised[type(error).__name__] += 1
            else:
                pytest.fail(f"call {number} did not end in 20 attempts; raised so far: {dict(raised)}")
        standin.inject_random(None)
        time.sleep(TIMES.remembered)  # what got no reply is looked for, and counts, for so long
        for runner in runners:
            runner.settle()
        states = Counter(job.state for job in standin.jobs)
        completed = Counter(tag for job in standin.jobs if job.state == "Completed" for tag in job.tags[2:3])
        unheard = sum(faults.drawn["jobs_post", fault] for fault in set(LOST))
        ledger_rows = ledger.rows()
        again = []
        for number, first in enumerate(range(0, JOBS, PER_CALL)):
            runner, part = work(runners, number, rows[first : first + PER_CALL])
            again.append(runner.run([part]))
        with capsys.disabled():
            print(
                f"\nsoak: {JOBS} jobs, {sum(standin.requests.values())} requests, {sum(standin.hits.values())} faults, "
                f"{unheard} jobs accepted without a reply, {sum(raised.values())} errors raised {dict(raised)}, "
                f"jobs at the service {dict(states)}, charged {standin.charged_seconds:g} s, "
                f"{JOBS - len(completed)} lost, {sum(completed.values()) - len(completed)} duplicated, "
                f"{time.monotonic() - started:.0f} s"
            )
        assert unheard >= JOBS / 20, "too few for a test"
        assert [row.state for row in ledger_rows] == ["done"] * JOBS
        assert len(completed) == JOBS, "lost"
        assert set(completed.values()) == {1}, "duplicated"
        assert {row.job_id for row in ledger_rows} == {job.id for job in standin.jobs if job.state == "Completed"}
        assert ledger.spent() == pytest.approx(standin.charged_seconds)
        assert standin.charged_seconds == JOBS * CHARGE + states["Failed"] * FAILURE
        assert sum(answer.reused for answer in again) == JOBS
        assert len(standin.jobs) == sum(states.values()), "results that are there cost nothing"
    along_z = np.concatenate([answer.values[0][:1] if answer.values else expectations(answer) for answer in answers], 1)
    wanted = exact(pub(rows, SHOTS))
    assert np.abs(along_z - wanted[:1]).max() < 0.15 + 5 / np.sqrt(SHOTS), "each answer is its own job's"
    for number, answer in enumerate(answers):
        if answer.values:
            mine = wanted[1:, PER_CALL * number : PER_CALL * (number + 1)]
            assert np.abs(answer.values[0][1:] - mine).max() < 0.15 + 5 / np.sqrt(SHOTS)


def work(runners: list[Runner], number: int, rows: np.ndarray) -> tuple[Runner, AnyPub]:
    """What call `number` is, and who runs it: Estimator and Sampler in turn, of the executor and of the service's own.

    As many executions a row for both, so that a call of each is as many jobs.
    """
    executor, estimator, sampler = runners
    if number % 2:
        return (executor, estimator)[number // 2 % 2], pub(rows, SHOTS)
    return (executor, sampler)[number // 2 % 2], sampler_pub(rows, 2 * SHOTS)


def connected(ledger: Ledger, program: str) -> Runner:
    return open_runner("ibm_standin", ledger=ledger, run=program, program=program, max_qpu_seconds=1e4, times=TIMES,
                       retry_failed=True, limits=JobLimits(executions=2 * SHOTS))  # fmt: skip
