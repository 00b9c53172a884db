"""Accidents that take two things to go wrong: still nothing paid twice, no cap passed, no wrong value."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qiskit.primitives import StatevectorEstimator
from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError
from scripted import FAST, Job, ScriptedService, pub, runner
from test_faults import TIMES, live

from qhw_diffusion.devices import Device
from qhw_diffusion.devices.snapshot import Snapshot
from qhw_diffusion.errors import BudgetError, JobError, ServiceError
from qhw_diffusion.hardware.cost import Cost
from qhw_diffusion.hardware.ibm import IBMService
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_files import FILE
from qhw_diffusion.hardware.local import LocalService
from qhw_diffusion.hardware.recover import recover
from qhw_diffusion.hardware.runner import Runner
from qhw_diffusion.hardware.split import JobLimits
from qhw_diffusion.hardware.standin import Delay, ExpireSession, StandIn, Status, Truncate

RAW = {"resilience_level": 0}


def failing(job: Job) -> None:
    job.state, job.reason = "ERROR", "calibration lost"


def lose_all_rows(folder: Path) -> None:
    """The database is damaged beyond its rows, and recovered."""
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("UPDATE jobs SET seal = ''")
    connection.close()
    assert not recover(folder).complete


def test_a_later_attempt_is_found_after_its_row_was_lost(tmp_path: Path) -> None:
    service, folder = ScriptedService(new_job=failing), tmp_path / "ledger"
    with Ledger.open(folder) as ledger:
        with pytest.raises(JobError, match="calibration lost"):
            runner(service, ledger).run([pub()])
        service.new_job = lambda job: None
        service.on_status = [KeyboardInterrupt()]
        with pytest.raises(KeyboardInterrupt):
            runner(service, ledger, retry_failed=True).run([pub()])
    lose_all_rows(folder)
    with Ledger.open(folder) as ledger:
        assert ledger.incomplete
        assert ledger.rows() == []
        answer = runner(service, ledger).run([pub()])
        assert (answer.job_ids, list(service.jobs)) == (["job-2"], ["job-1", "job-2"])
        assert ledger.rows()[0].attempt == 2
        assert runner(service, ledger).run([pub()], purpose="never sent").job_ids == ["job-3"]


def test_after_rows_were_lost_the_next_attempt_is_a_new_one(tmp_path: Path) -> None:
    """Attempts 1 and 3 failed, attempt 2 was refused: the one after them is the fourth, not a second third."""
    service, folder = ScriptedService(new_job=failing), tmp_path / "ledger"
    with Ledger.open(folder) as ledger:
        for trouble in (None, JobError("refused"), None):
            if trouble is not None:
                key = ledger.rows()[0].key
                ledger.retry(key)
                ledger.failed(key, f"refused: {trouble}")
                continue
            with pytest.raises(JobError, match="calibration lost"):
                runner(service, ledger, retry_failed=True).run([pub()])
    lose_all_rows(folder)
    with Ledger.open(folder) as ledger:
        with pytest.raises(JobError, match=r"job-2 .* failed: calibration lost"):
            runner(service, ledger).run([pub()])
        service.new_job = lambda job: None
        assert runner(service, ledger, retry_failed=True).run([pub()]).job_ids == ["job-3"]
    assert [job.tags[-1].rsplit("-", 1)[1] for job in service.jobs.values()] == ["1", "3", "4"]


@pytest.mark.parametrize("killed", ["before the id was noted", "after the id was noted"])
def test_a_job_sent_twice_by_a_killed_process_is_cancelled_and_counted(ledger: Ledger, killed: str) -> None:
    """Two replies lost, the look-ups in between too early; then the process dies, and the next one knows of neither."""
    early = "not yet"
    service = ScriptedService(on_submit=["lost reply", "lost reply"], on_find=[early] * (FAST.lookups + 1))
    if killed == "before the id was noted":
        service.on_find.append(KeyboardInterrupt())
    else:
        service.on_submit[1] = "accept"
        service.on_find.append(early)  # the first job shows only after the second one's id was noted
        service.on_status = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        runner(service, ledger).run([pub()])
    assert len(service.jobs) == 2
    service.cancelled.clear()
    (job_id,) = runner(service, ledger).run([pub()]).job_ids
    assert set(service.cancelled) == set(service.jobs) - {job_id}
    assert ledger.spent() == 4.0, "the service charged both"


@pytest.mark.parametrize("again", [False, True])
def test_jobs_in_flight_count_with_their_limits(ledger: Ledger, again: bool) -> None:
    """Estimates that are too low: two jobs sent by two processes, or one sent again beside another one."""

    def use_it_up(job: Job) -> None:
        job.charged = float(job.limits.max_execution_seconds or 0)

    service = ScriptedService(new_job=use_it_up)
    cap: dict[str, Any] = {"max_qpu_seconds": 12.0}
    rows = pub((0.1, 0.2)) if again else pub()
    if again:
        service.on_status = ["CANCELLED"]
        with pytest.raises(JobError, match="was cancelled"):
            runner(service, ledger, limits=JobLimits(executions=200), **cap).run([rows])
        assert [job.limits.max_execution_seconds for job in service.jobs.values()] == [6, 6]
    else:
        service.on_status = [KeyboardInterrupt()]
        with pytest.raises(KeyboardInterrupt):
            runner(service, ledger, **cap).run([rows])
        with pytest.raises(BudgetError, match=r"0.0 s are left: .* 12 s, 12.0 s of it spent or in flight"):
            runner(service, ledger, **cap).run([rows], purpose="beside it")
        ledger.set_cap(15)
        runner(service, ledger, run="other", **cap).run([rows], purpose="another run, the same ledger")
        assert service.jobs["job-2"].limits.max_execution_seconds == 3
    with contextlib.suppress(BudgetError):
        runner(service, ledger, limits=JobLimits(executions=200), **cap).run([rows])
    assert sum(job.charged or 0 for job in service.jobs.values()) <= (12 if again else 15)
    assert ledger.spent("test") <= 12
    if again:
        assert [row.state for row in ledger.rows()] == ["failed", "done"], "what is out is taken in all the same"
        service.new_job = lambda job: None
        assert runner(service, ledger, max_qpu_seconds=14.0, limits=JobLimits(executions=200)).run([rows]).values


def test_a_job_longer_than_the_service_allows_is_not_sent(ledger: Ledger) -> None:
    """The service would end it after three hours and charge them."""

    def long(pubs: Any, options: Any) -> Cost:
        return Cost("ibm_scripted", 1, 1, 10_000_000, 0.0, 0.0, 4e-3)

    service = ScriptedService()
    with pytest.raises(BudgetError, match=r"40002 s; .* three hours.*fewer shots"):
        runner(service, ledger, max_qpu_seconds=1e6, estimate=long).run([pub()])
    assert service.jobs == {}


def test_a_state_that_nobody_has_heard_of_is_no_failure(standin: StandIn, ledger: Ledger) -> None:
    standin.inject("jobs_post", Delay(30.0))
    with live(ledger, times=replace(TIMES, patience=0.05)) as mine:
        submit = mine.service.submit

        def submit_and_pause(*arguments: Any) -> str:
            job_id = submit(*arguments)
            standin.jobs[0].state = "Paused"
            return job_id

        mine.service.submit = submit_and_pause  # type: ignore[method-assign]
        with pytest.raises(ServiceError, match=r"state 'PAUSED'"):
            mine.run([pub()], options=RAW)
    standin.jobs[0].state, standin.jobs[0].not_before = "Queued", 0.0
    with live(ledger) as mine:
        assert mine.run([pub()], options=RAW).job_ids == [standin.jobs[0].id]


@pytest.mark.parametrize(("endpoint", "after"), [("sessions_post", 0), ("usage", 2), ("status", 0)])
def test_a_reply_cut_off_before_the_job_is_sent_is_no_refusal(
    standin: StandIn, ledger: Ledger, endpoint: str, after: int
) -> None:
    standin.inject(endpoint, Truncate(), after=after)
    with live(ledger) as mine:
        mine.run([pub()], options=RAW)
    assert (standin.hits[endpoint], len(standin.jobs)) == (1, 1)


def test_refused_credentials_after_the_job_was_accepted_do_not_send_it_again(standin: StandIn, ledger: Ledger) -> None:
    with live(ledger) as mine:
        service = mine.service
        assert isinstance(service, IBMService)
        run, seen = service._client._run, []

        def refused_afterwards(*arguments: Any, **named: Any) -> Any:
            job = run(*arguments, **named)
            if not seen:
                seen.append(job)
                raise IBMNotAuthorizedError("401")
            return job

        service._client._run = refused_afterwards
        assert mine.run([pub()], options=RAW).job_ids == [job.id for job in standin.jobs]
    assert len(seen) == len(standin.jobs) == 1


def test_a_session_whose_clock_nobody_tells_counts_with_all_its_time(standin: StandIn, ledger: Ledger) -> None:
    """It closes while the service does not say what it took: what is opened next may not have its time again."""
    with live(ledger, mode="session", max_qpu_seconds=20) as mine:
        mine.run([pub()], options=RAW)
        standin.inject("jobs_post", ExpireSession())
        standin.inject("session_get", Status(500), times=TIMES.attempts, after=1)  # the budget asks first
        mine.run([pub()], options=RAW, purpose="second")
    assert standin.hits["session_get"] == TIMES.attempts
    assert [session.mode for session in standin.records.sessions.values()] == ["dedicated", "batch"]
    assert ledger.spent() == 20 + 3, "all of the session's time, and the batch's job"


def test_another_simulation_in_a_devices_place_is_other_work(ledger: Ledger) -> None:
    """Noisy values are not to come back for an exact estimator's, nor one calibration's or seed's for another's."""
    fake = Device.load("fake_manila")
    configuration, properties = json.loads(fake.snapshot.configuration), json.loads(fake.snapshot.properties)
    days = []
    for date in ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"):
        given = ({**configuration, "backend_name": "ibm_manila"}, {**properties, "last_update_date": date}, "a test")
        days.append(Device(Snapshot.from_provider(*given)))
    services = [LocalService(fake), LocalService(fake, seed=1), LocalService(fake, estimator=StatevectorEstimator())]
    services += [LocalService(day) for day in days]
    for _ in range(2):
        answers = [Runner(service, ledger, run="test").run([pub()]) for service in services]
    assert [answer.reused for answer in answers] == [1] * 5
    assert len(ledger.rows()) == 5


def test_folded_circuits_count_against_the_limits_of_a_job(ledger: Ledger) -> None:
    """Resilience level 2 runs every circuit at three scales: the service would refuse what fits without."""
    service = ScriptedService()
    mine = runner(service, ledger, limits=JobLimits(executions=3 * 2 * 100))  # three rows of two settings, 100 shots
    jobs = 0
    for level, more in ((0, 2), (1, 2), (2, 6)):
        mine.run([pub((0.1, 0.2, 0.3, 0.4, 0.5, 0.6))], options={"resilience_level": level})
        jobs += more
        assert len(service.jobs) == jobs


def test_waiting_for_another_process_says_for_whom(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    service = ScriptedService(on_submit=[KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        runner(service, ledger).run([pub()])
    (row,) = ledger.rows()
    waiting = threading.Thread(target=lambda: runner(service, ledger, times=replace(FAST, turn=0.05)).run([pub()]))
    with ledger.lock(row.key):
        waiting.start()
        waiting.join(0.5)
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err
        assert service.jobs == {}
    waiting.join(10)
    assert ledger.rows()[0].state == "done"
