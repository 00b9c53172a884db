"""What the service charges is counted, whatever it says and whenever: with the limit until known, once, and all of it.

The real client against the stand-in, whose own books are the truth; what takes many cases is on the scripted service.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted import FAST, Job, ScriptedService, estimate, pub
from test_faults import TIMES

from qhw_diffusion.errors import BudgetError, JobError, QhwError, ServiceError
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_files import FILE
from qhw_diffusion.hardware.ledger_rows import Row
from qhw_diffusion.hardware.recover import recover
from qhw_diffusion.hardware.report import export_rows, list_text, show_text
from qhw_diffusion.hardware.runner import Runner, open_runner
from qhw_diffusion.hardware.standin import CancelJob, Drop, FailJob, StandIn, Status
from qhw_diffusion.hardware.standin.records import JobRecord

RAW = {"resilience_level": 0}
QUICK = replace(TIMES, settle=0.05)


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn("fake_manila", seconds_per_job=20.0) as running, running.as_account():
        yield running


def live(ledger: Ledger, **settings: Any) -> Runner:
    given: dict[str, Any] = {"run": "test", "max_qpu_seconds": 60.0, "times": QUICK, "estimate": estimate}
    return open_runner("ibm_standin", ledger=ledger, **{**given, **settings})


def scripted(service: ScriptedService, ledger: Ledger, **settings: Any) -> Runner:
    given = {"run": "test", "max_qpu_seconds": 60.0, "times": FAST, "estimate": estimate}
    return Runner(service, ledger, **{**given, **settings})


class Usage:
    """Decides what the stand-in states as the usage of its jobs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.say: Any = lambda job, usage: usage
        true = JobRecord.metrics

        def metrics(job: JobRecord) -> dict[str, Any]:
            told = true(job)
            return {**told, "usage": self.say(job, told["usage"])}

        monkeypatch.setattr(JobRecord, "metrics", metrics)


@pytest.fixture
def usage(monkeypatch: pytest.MonkeyPatch) -> Usage:
    return Usage(monkeypatch)


# -- a charge that is not known yet ------------------------------------------------------------------------------------


def run_until_refused(ledger: Ledger, calls: int) -> int:
    """Every call of a new process; how many jobs were let through."""
    for number in range(calls):
        with live(ledger) as mine:
            try:
                mine.run([pub()], options=RAW, purpose=f"step {number}")
            except BudgetError:
                return number
    return calls


def test_charges_stated_late_do_not_pass_the_cap(standin: StandIn, ledger: Ledger, usage: Usage) -> None:
    usage.say = lambda job, told: {**told, "status": "pending"}
    assert run_until_refused(ledger, 20) == 1, "the first job may have used up all that it was let take"
    assert standin.charged_seconds <= ledger.spent() == 60
    told = rf"1 job ended without a charge so far \({standin.jobs[0].id}\)"
    with live(ledger) as mine, pytest.raises(BudgetError, match=told):
        mine.run([pub()], options=RAW, purpose="later")
    usage.say = lambda job, told: told
    assert run_until_refused(ledger, 20) == 3
    assert ledger.spent() == standin.charged_seconds == 60


def test_a_charge_that_is_stated_soon_is_waited_for(standin: StandIn, ledger: Ledger, usage: Usage) -> None:
    """Three seconds after `settle` in the user's case: the next budget check reads it again, and waits once more."""
    ended: dict[str, float] = {}

    def late(job: JobRecord, told: dict[str, Any]) -> dict[str, Any]:
        first = ended.setdefault(job.id, time.monotonic())
        return {**told, "status": "final" if time.monotonic() - first > 0.1 else "pending"}

    usage.say = late
    times = replace(TIMES, settle=0.08)
    for number in range(3):
        with live(ledger, times=times) as mine:
            mine.run([pub()], options=RAW, purpose=f"step {number}")
    with live(ledger, times=times) as mine, pytest.raises(BudgetError, match=r"0\.0 s are left"):
        mine.run([pub()], options=RAW, purpose="step 3")
    assert ledger.spent() == standin.charged_seconds == 60


@pytest.mark.parametrize("end", ["done", "failed", "cancelled", "sent twice"])
def test_every_job_without_a_charge_holds_its_limit_under_every_cap(ledger: Ledger, end: str) -> None:
    def nothing_said(job: Job) -> None:
        job.charged = None
        job.state = {"failed": "ERROR", "cancelled": "CANCELLED"}.get(end, "DONE")
        job.reason = "broken"

    service = ScriptedService(new_job=nothing_said)
    if end == "sent twice":
        service.on_submit, service.on_find = ["lost reply", "lost reply"], ["not yet"] * (FAST.lookups + 1)
    mine = scripted(service, ledger, max_qpu_seconds=10)
    if end in ("failed", "cancelled"):
        with pytest.raises(JobError):
            mine.run([pub()])
    else:
        mine.run([pub()])
    jobs = 2 if end == "sent twice" else 1
    (row,) = ledger.rows()
    assert (len(row.unknown), row.charge, row.reserved, ledger.spent()) == (jobs, None, 10.0 * jobs, 10.0 * jobs)
    with pytest.raises(BudgetError, match="ended without a charge"):
        mine.run([pub()], purpose="the run's cap")
    ledger.set_cap(10 * jobs + 1)
    with pytest.raises(BudgetError, match=r"1\.0 s are left: the ledger's cap"):
        scripted(service, ledger, run="other").run([pub()], purpose="the ledger's")
    ledger.set_cap(None)
    service.remaining = 10 * jobs + 1
    with pytest.raises(BudgetError, match=r"1\.0 s are left: the account"):
        scripted(service, ledger, run="other").run([pub()], purpose="the account's")
    assert "≤ " in list_text(ledger, ledger.rows())
    assert "limits of jobs whose charge is not known" in show_text(ledger, row)
    for job in service.jobs.values():
        job.charged = 3.0
    mine.settle()
    (row,) = ledger.rows()
    assert (row.unknown, row.charge, row.reserved, ledger.spent()) == ([], 3.0 * jobs, 0.0, 3.0 * jobs)


def test_the_charge_of_an_earlier_attempt_is_read_later(ledger: Ledger, tmp_path: Path) -> None:
    def failing(job: Job) -> None:
        job.state, job.reason, job.charged = "ERROR", "calibration lost", None

    service = ScriptedService(new_job=failing)
    with pytest.raises(JobError):
        scripted(service, ledger, max_qpu_seconds=10).run([pub()])
    service.new_job = lambda job: None
    answer = scripted(service, ledger, max_qpu_seconds=20, retry_failed=True).run([pub()])
    (row,) = ledger.rows()
    assert (answer.qpu_seconds, row.charge, row.counted) == (None, None, 10 + 2.0)
    service.jobs["job-1"].charged = 7.0
    mine = scripted(service, ledger)
    mine.settle()
    assert mine.run([pub()]).qpu_seconds == ledger.spent() == 9.0
    (row,) = ledger.rows()
    assert row.unused_jobs == [{"job_id": "job-1", "qpu_seconds": 7.0, "why": "calibration lost"}]
    (entry,) = json.loads(export_rows(ledger, [row], tmp_path / "all.json").read_text())
    assert (entry["charged_seconds"], entry["unused_jobs"]) == (9.0, row.unused_jobs)


def test_a_service_that_does_not_answer_for_charges_stops_nothing(standin: StandIn, ledger: Ledger) -> None:
    standin.inject("metrics", Drop(), times=10**6)
    with live(ledger, times=replace(QUICK, attempts=1)) as mine:
        answer = mine.run([pub()], options=RAW)
    assert (answer.qpu_seconds, ledger.rows()[0].state, ledger.spent()) == (None, "done", 60.0)


def test_a_job_of_another_account_keeps_its_limit(standin: StandIn, ledger: Ledger) -> None:
    other = ScriptedService(new_job=lambda job: setattr(job, "charged", None))
    scripted(other, ledger, run="other", max_qpu_seconds=10).run([pub()])
    with live(ledger) as mine:
        assert mine.run([pub()], options=RAW).qpu_seconds == 20.0
    assert ledger.spent() == 10 + 20


def test_a_ledger_of_today_opens_and_counts_right(tmp_path: Path) -> None:
    """Rows as the version before wrote them: the column `counted` has the estimate of a job without a charge."""
    folder = tmp_path / "ledger"
    service = ScriptedService(new_job=lambda job: setattr(job, "charged", None))
    with Ledger.open(folder) as ledger:
        scripted(service, ledger, max_qpu_seconds=10).run([pub()])
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("UPDATE jobs SET counted = 2.0")
    connection.close()
    with Ledger.open(folder) as ledger:
        assert ledger.spent() == 10.0
        service.jobs["job-1"].charged = 4.0
        scripted(service, ledger, max_qpu_seconds=10).settle()
        assert ledger.spent() == ledger.spent("test") == 4.0


def test_charges_survive_a_recovery_and_a_lost_result(tmp_path: Path) -> None:
    folder, service = tmp_path / "ledger", ScriptedService(session=0.0)
    with Ledger.open(folder) as ledger:
        with scripted(service, ledger, mode="session", max_session_seconds=30) as mine:
            mine.run([pub()])
            service.session = 17.0
        (row,) = ledger.rows()
        assert row.qpu_seconds == 17.0
        (folder / str(row.result_file)).unlink()
        assert scripted(service, ledger).run([pub()]).qpu_seconds == 17.0, "the answer alone is fetched again"
    recover(folder)
    (folder / FILE).unlink()
    recover(folder)
    with Ledger.open(folder) as ledger:
        assert ledger.spent() == 17.0


# -- numbers that are none ---------------------------------------------------------------------------------------------

BOTH = ("qpu_charge_time_seconds", "quantum_seconds")


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "n/a", -3, None, True, [], 10**400])
def test_a_charge_that_is_no_number_is_not_known(standin: StandIn, ledger: Ledger, usage: Usage, value: object) -> None:
    usage.say = lambda job, told: {**told, **dict.fromkeys(BOTH, value)}
    with live(ledger) as mine:
        answer = mine.run([pub()], options=RAW)
        assert (answer.qpu_seconds, ledger.rows()[0].state, ledger.spent()) == (None, "done", 60.0)
        for wrong, right in (BOTH, BOTH[::-1]):
            usage.say = lambda job, told, wrong=wrong, right=right: {**told, wrong: value, right: 5}
            assert mine.service.qpu_seconds(standin.jobs[0].id) == 5.0, "the other field is used"
        usage.say = lambda job, told: told
        mine.settle()
    assert ledger.spent() == standin.charged_seconds == 20.0


@pytest.mark.parametrize("told", [None, [], "soon", 3, {}])
def test_usage_of_another_form_is_not_known(standin: StandIn, ledger: Ledger, usage: Usage, told: object) -> None:
    usage.say = lambda job, _: told
    with live(ledger) as mine:
        assert mine.run([pub()], options=RAW).qpu_seconds is None
    assert (ledger.rows()[0].state, ledger.spent()) == ("done", 60.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "n/a", -3.0])
def test_a_sessions_clock_that_is_no_number_counts_with_its_maximum(
    standin: StandIn, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    from qiskit_ibm_runtime import Session

    with live(ledger, mode="session", max_session_seconds=25) as mine:
        monkeypatch.setattr(Session, "usage", lambda self: None)
        mine._sender.limit_session(60)
        monkeypatch.setattr(mine._collector.clock, "uncounted", lambda: 0.0)
        monkeypatch.setattr(Session, "usage", lambda self: value)
        mine.run([pub()], options=RAW)
        assert ledger.rows()[0].state == "done", "what was paid for is stored"
    assert ledger.spent() == 25


@pytest.mark.parametrize("value", [float("nan"), "n/a", -3.0, None, 10**400])
def test_an_accounts_usage_that_is_no_number_stops_nothing(
    standin: StandIn, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    with live(ledger) as mine:
        api = mine.service._client._get_api_client(mine.service._instance)  # type: ignore[attr-defined]
        for told in ({"usage_limit_seconds": value}, {"usage_limit_seconds": 600, "usage_consumed_seconds": value}):
            monkeypatch.setattr(api, "cloud_usage", lambda told=told: told)
            left = mine.service.remaining_seconds()
            assert left == (600 if "usage_consumed_seconds" in told else None)


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_a_session_that_idles_out_is_counted_and_the_batch_after_it_too(
    monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    """The session's clock, once, and the charge of every job in the batch that follows it."""
    with StandIn("fake_manila", seconds_per_job=0.25) as standin, standin.as_account():
        with live(ledger, mode="session", max_session_seconds=2, max_qpu_seconds=14) as mine:
            mine.run([pub()], options=RAW, purpose="in the session")
            time.sleep(2.1)
            for number in range(3):
                mine.run([pub()], options=RAW, purpose=f"in the batch {number}")
        assert [session.mode for session in standin.records.sessions.values()] == ["dedicated", "batch"]
        assert ledger.spent() == pytest.approx(standin.charged_seconds, abs=0.1)
        assert [row.qpu_seconds for row in ledger.rows()[1:]] == [0.25] * 3, "no session's clock in a batch"


@pytest.mark.parametrize("own", [0.5, None])
def test_a_sessions_clock_is_counted_once(ledger: Ledger, own: float | None) -> None:
    service = ScriptedService(new_job=lambda job: setattr(job, "charged", own))
    with scripted(service, ledger, mode="session", max_session_seconds=30) as mine:
        for number, clock in enumerate((2.0, 5.0, 9.0)):
            service.session = clock
            mine.run([pub()], purpose=f"step {number}")
        service.session = 12.0
    mine.close()
    assert ledger.spent() == 12.0


@pytest.mark.parametrize("end", ["done", "failed"])
def test_a_sessions_clock_waits_for_a_job_that_has_not_ended(ledger: Ledger, end: str) -> None:
    """The deadline is over, the session is closed, another process takes the answer."""
    service = ScriptedService(on_status=[ServiceError("gone")] * 10**4)
    with scripted(service, ledger, mode="session", max_qpu_seconds=10) as mine:
        with pytest.raises(ServiceError):
            mine.run([pub()])
        service.session = 7.0
    assert ledger.spent() == 10 + 7
    service.on_status = []
    if end == "failed":
        service.jobs["job-1"].state = "ERROR"
        with pytest.raises(JobError):
            scripted(service, ledger, max_qpu_seconds=10).run([pub()])
        assert ledger.spent() == 2 + 7
        answer = scripted(service, ledger, max_qpu_seconds=20, retry_failed=True).run([pub()])
        assert answer.qpu_seconds == ledger.spent() == 2 + 7 + 2
    else:
        assert scripted(service, ledger, max_qpu_seconds=10).run([pub()]).qpu_seconds == ledger.spent() == 2 + 7


def test_at_the_end_of_a_run_others_are_not_waited_for(ledger: Ledger) -> None:
    silent = ScriptedService(new_job=lambda job: setattr(job, "charged", None))
    scripted(silent, ledger, run="other").run([pub()])
    pauses: list[float] = []
    times = replace(FAST, settle=10.0)
    mine = scripted(ScriptedService(prefix="mine"), ledger, times=times, sleep=pauses.append)
    mine.run([pub()], purpose="mine")
    mine.settle()
    assert pauses == []


def test_a_session_that_cannot_be_closed_counts_with_its_maximum(standin: StandIn, ledger: Ledger) -> None:
    standin.inject("session_patch", Status(500))
    with live(ledger, mode="session", max_session_seconds=25) as mine:
        mine.run([pub()], options=RAW, purpose="asked to close again")
    assert ledger.spent() == 20, "the stand-in's job states more seconds than the clock"
    assert not any(session.accepting for session in standin.records.sessions.values())
    standin.inject("session_patch", Status(500), times=10**3)
    with live(ledger, mode="session", max_session_seconds=25, run="second") as mine:
        mine.run([pub()], options=RAW, purpose="never heard")
    assert ledger.spent("second") == 25


# -- the invariant -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_said_and_when_the_cap_holds_and_nothing_is_lost(tmp_path: Path, seed: int) -> None:
    """Jobs cost anything up to their limits; the service states it at once or later; processes come and go."""
    draw = random.Random(seed)
    cap, truth = 40.0, {}

    def new_job(job: Job) -> None:
        limit = float(job.limits.max_execution_seconds or 0)
        truth[id(job)] = draw.choice([limit, draw.uniform(0, limit), min(1.0, limit)])
        job.state = draw.choice(["DONE"] * 4 + ["ERROR", "CANCELLED"])
        job.reason = "broken"
        job.charged = truth[id(job)] if draw.random() < 0.4 else None

    service = ScriptedService(new_job=new_job)
    with Ledger.open(tmp_path / "ledger") as ledger:
        for number in range(30):
            for job in service.jobs.values():
                if draw.random() < 0.2:
                    job.charged = truth[id(job)]
            service.on_submit = draw.choice([[], [], ["lost reply"], ["dropped"], ["dropped", "lost reply"]])
            mine = scripted(service, ledger, max_qpu_seconds=cap, retry_failed=True)
            with contextlib.suppress(QhwError):
                mine.run([pub()], purpose=f"step {draw.randrange(12)}")
            assert sum(truth.values()) <= ledger.spent() + 1e-9, f"call {number}: counted is less than charged"
            assert ledger.spent() <= cap + 1e-9
        for job in service.jobs.values():
            job.charged = truth[id(job)]
        scripted(service, ledger).settle()
        assert ledger.spent() == pytest.approx(sum(truth.values()))
        rows: list[Row] = ledger.rows()
        known = {row.job_id for row in rows} | {job["job_id"] for row in rows for job in row.unused_jobs}
        assert set(service.jobs) <= known


@pytest.mark.parametrize("fault", [FailJob(seconds=7.0), CancelJob()])
def test_what_failed_attempts_were_charged_belongs_to_the_answer(standin: StandIn, ledger: Ledger, fault: Any) -> None:
    standin.inject("jobs_post", fault)
    with live(ledger) as mine, pytest.raises(JobError):
        mine.run([pub()], options=RAW)
    with live(ledger, retry_failed=True) as mine:
        answer = mine.run([pub()], options=RAW)
    assert answer.qpu_seconds == ledger.spent() == standin.charged_seconds
    (row,) = ledger.rows()
    assert [job["job_id"] for job in row.unused_jobs] == [standin.jobs[0].id]
