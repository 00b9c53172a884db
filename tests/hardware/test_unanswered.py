"""Submissions without a reply, at a service whose list of jobs is late, cut, unfiltered, or hides them."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import Any

import pytest
from scripted import FAST, Job, ScriptedService, estimate, pub, runner
from test_faults import TIMES

from qhw_diffusion.errors import BudgetError, JobError, ServiceError
from qhw_diffusion.hardware import ibm
from qhw_diffusion.hardware.ibm import IBMService
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.report import show_text
from qhw_diffusion.hardware.runner import Runner, open_runner
from qhw_diffusion.hardware.standin import Drop, FailJob, JobRecord, LostReply, StandIn

RAW = {"resilience_level": 0}
# the service's list is late by `LAG`, more than the look-ups before a job is sent again take
LAG = 0.5
LATE = replace(TIMES, grace=0.1, late=1.2, settle=0.5)


def live(ledger: Ledger, **settings: Any) -> Runner:
    given: dict[str, Any] = {"run": "test", "max_qpu_seconds": 50.0, "times": LATE, "estimate": estimate}
    return open_runner("ibm_standin", ledger=ledger, **{**given, **settings})


def test_a_list_that_is_behind_is_waited_for(
    standin: StandIn, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    standin.list_lag_seconds = LAG
    standin.inject("jobs_post", LostReply())
    with live(ledger) as mine:
        answer = mine.run([pub()], options=RAW)
    assert answer.job_ids == [job.id for job in standin.jobs]
    assert ledger.spent() == standin.charged_seconds == 3.0
    assert "does not list job q-" in capsys.readouterr().err


def test_after_a_kill_too(standin: StandIn, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.list_lag_seconds = LAG
    with live(ledger) as mine:
        monkeypatch.setattr(ledger, "submitted", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            mine.run([pub()], options=RAW)
        monkeypatch.undo()
    with live(ledger) as mine:
        assert mine.run([pub()], options=RAW).job_ids == [job.id for job in standin.jobs]


@pytest.mark.parametrize("stated", [True, False])
def test_one_that_shows_only_after_another_was_sent_is_cancelled_and_counted(
    standin: StandIn, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, stated: bool
) -> None:
    """The list is further behind than anybody waits; and the charge of the one too many is stated or not."""
    standin.list_lag_seconds = 2.0
    standin.inject("jobs_post", LostReply())
    metrics = JobRecord.metrics
    monkeypatch.setattr(JobRecord, "metrics", lambda job: metrics(job) if stated else {"usage": {"status": "pending"}})
    counted: list[float] = []
    with live(ledger, times=replace(LATE, late=0.3)) as mine:
        submit = mine.service.submit

        def noted(*arguments: Any) -> str:
            counted.append(ledger.spent())
            return submit(*arguments)

        mine.service.submit = noted  # type: ignore[method-assign,assignment]
        mine.run([pub()], options=RAW)
        assert len(standin.jobs) == 2
        assert counted == [50.0, 2.0 + 6], "both are kept room for before it is sent again"
        assert [job.limit_seconds for job in standin.jobs] == [50, 6]
        assert "got no reply" in show_text(ledger, ledger.rows()[0])
        time.sleep(2.0)
        with contextlib.suppress(BudgetError):  # of an unstated charge the limit counts
            mine.run([pub()], options=RAW, purpose="another")
    row = ledger.rows()[0]
    assert {row.job_id, *(job["job_id"] for job in row.unused_jobs)} == {job.id for job in standin.jobs[:2]}
    assert "unanswered" not in row.summary
    if stated:
        assert ledger.spent() == standin.charged_seconds == 9.0
        assert row.charge == 6.0
    else:
        assert (row.charge, row.counted) == (None, 100.0)


def test_one_that_never_shows_is_given_up(standin: StandIn, ledger: Ledger) -> None:
    standin.inject("jobs_post", Drop())
    with live(ledger, times=replace(LATE, late=0.2)) as mine:
        answer = mine.run([pub()], options=RAW)
        assert (answer.qpu_seconds, ledger.spent(), len(standin.jobs)) == (3.0, 5.0, 1)
        assert ledger.reserved() == 2.0
        time.sleep(2.0)
        mine.settle()
    assert ledger.spent() == standin.charged_seconds == 3.0


def test_without_room_for_both_it_is_not_sent_again(standin: StandIn, ledger: Ledger) -> None:
    standin.inject("jobs_post", Drop())
    times = replace(LATE, late=0.1)
    with live(ledger, max_qpu_seconds=3.0, times=times) as mine, pytest.raises(BudgetError, match="not known whether"):
        mine.run([pub()], options=RAW)
    assert (standin.jobs, [row.state for row in ledger.rows()]) == ([], ["planned"])
    time.sleep(1.0)
    with live(ledger, max_qpu_seconds=3.0, times=times) as mine:
        assert mine.run([pub()], options=RAW).job_ids == [standin.jobs[0].id]


@pytest.mark.parametrize("length", [32, 40])
def test_tags_that_are_cut(standin: StandIn, ledger: Ledger, length: int) -> None:
    """Two attempts, whose tags differ in their ends."""
    standin.tag_length = length
    standin.inject("jobs_post", FailJob(seconds=1.0))
    standin.inject("jobs_post", LostReply())
    with live(ledger) as mine, pytest.raises(JobError):
        mine.run([pub()], options=RAW)
    with live(ledger, retry_failed=True) as mine:
        assert mine.run([pub()], options=RAW).job_ids == [standin.jobs[1].id]
    assert len(standin.jobs) == 2


def test_tags_that_are_cut_too_short_are_noticed(standin: StandIn, ledger: Ledger) -> None:
    """No look-up finds anything: absence is not believed once a job is known that should have been found."""
    standin.tag_length = 16
    with live(ledger) as mine:
        mine.run([pub()], options=RAW)
        time.sleep(LATE.until_absent)
        standin.inject("jobs_post", LostReply())
        with pytest.raises(ServiceError, match=r"does not find job .* by its tag"):
            mine.run([pub()], options=RAW, purpose="another")
    assert (len(standin.jobs), ledger.rows()[1].state) == (2, "planned")
    ledger.submitted(ledger.rows()[1].key, standin.jobs[1].id)  # qhw ledger adopt
    with live(ledger) as mine:
        mine.run([pub()], options=RAW, purpose="another")
    assert len(standin.jobs) == 2


def test_jobs_that_were_deleted_prove_nothing(ledger: Ledger) -> None:
    service = ScriptedService()
    runner(service, ledger).run([pub()])
    service = ScriptedService(prefix="later", on_submit=["dropped"])
    assert runner(service, ledger).run([pub()], purpose="another").job_ids


@pytest.mark.parametrize("others", [49, 120])
def test_a_list_that_is_not_filtered_is_read_to_its_end(standin: StandIn, ledger: Ledger, others: int) -> None:
    standin.filters_tags = False
    standin.inject("jobs_post", LostReply())
    with live(ledger) as mine:
        service = mine.service
        find = service.find

        def late(tag: str) -> list[str]:
            with standin.records.lock:
                while standin.jobs and len(standin.jobs) < others + 1:  # newer ones of somebody else
                    job = standin.records.add_job(
                        {"program_id": "x", "backend": "ibm_other", "tags": ["qhw"]}, "{}", wait=99
                    )
                    job.state = "Completed"
            return find(tag)

        service.find = late  # type: ignore[method-assign]
        answer = mine.run([pub()], options=RAW)
        assert service.find("qhw") == [job.id for job in standin.jobs]
    assert answer.job_ids == [standin.jobs[0].id]
    assert [job.backend for job in standin.jobs].count("ibm_standin") == 1


def test_a_list_without_end_says_nothing(standin: StandIn, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ibm, "_MOST_LISTED", 50)
    service = IBMService("ibm_standin", times=LATE)
    for _ in range(51):
        standin.records.add_job({"program_id": "x", "backend": "ibm_standin", "tags": ["t"]}, "{}", wait=99)
    with pytest.raises(ServiceError, match="lists 50 jobs and more"):
        service.find("t")


def test_a_killed_process_leaves_what_it_knows(ledger: Ledger) -> None:
    """Sent twice, the first time without a trace; killed; the next process finds the first one, and counts it."""
    times = replace(FAST, late=0.02)
    service = ScriptedService(on_submit=["lost reply"], on_find=["not yet"] * 100)
    service.new_job = lambda job: service.on_status.append(KeyboardInterrupt()) if service.jobs else None
    with pytest.raises(KeyboardInterrupt):
        runner(service, ledger, times=times).run([pub()])
    assert len(service.jobs) == 2
    assert ledger.rows()[0].unanswered_seconds == 2.0
    service.on_find.clear()
    answer = runner(service, ledger, times=times).run([pub()])
    assert (answer.job_ids, ledger.spent(), answer.qpu_seconds) == (["job-2"], 4.0, 4.0)
    assert "unanswered" not in ledger.rows()[0].summary
    assert [job["job_id"] for job in ledger.rows()[0].unused_jobs] == ["job-1"]


def test_a_retry_goes_on_counting_what_got_no_reply(ledger: Ledger) -> None:
    times = replace(FAST, late=0.2)

    def fail(job: Job) -> None:
        job.state, job.charged = "ERROR", 3.0

    service = ScriptedService(on_submit=["lost reply"], on_find=["not yet"] * 100, new_job=fail)
    with pytest.raises(JobError):
        runner(service, ledger, times=times).run([pub()])
    assert ledger.spent() == 3.0 + 2.0
    service.new_job = lambda job: None
    runner(service, ledger, times=times, retry_failed=True).run([pub()])
    assert ledger.spent() == 3.0 + 2.0 + 2.0
    service.on_find.clear()
    runner(service, ledger, times=times).run([pub()], purpose="another")
    assert ledger.spent() == sum(job.charged or 0 for job in service.jobs.values()) == 3.0 + 3.0 + 2.0 + 2.0


def test_a_job_that_fails_has_its_duplicate_counted_too(ledger: Ledger) -> None:
    """Both were accepted, and both failed."""

    def fail(job: Job) -> None:
        job.state, job.charged = "ERROR", 3.0

    service = ScriptedService(
        on_submit=["lost reply", "lost reply"], on_find=["not yet"] * (FAST.lookups + 1), new_job=fail
    )
    with pytest.raises(JobError):
        runner(service, ledger).run([pub()])
    (row,) = ledger.rows()
    assert {job["job_id"] for job in row.unused_jobs} == set(service.jobs) == {"job-1", "job-2"}
    assert ledger.spent() == 6.0


def one_fails(*failing: int) -> ScriptedService:
    """Two jobs for one key, the first one found only after the second was sent; some fail, after three seconds."""
    service = ScriptedService(on_submit=["lost reply"], on_find=["not yet"] * (FAST.lookups + 1))

    def new(job: Job) -> None:
        job.charged = 2.0
        if len(service.jobs) in failing:
            job.state, job.reason, job.charged = "ERROR", "broken", 3.0

    service.new_job = new
    return service


def test_the_result_of_a_duplicate_counts_when_the_older_job_fails(ledger: Ledger) -> None:
    service = one_fails(0)
    answer = runner(service, ledger).run([pub()])
    (row,) = ledger.rows()
    assert (row.state, row.job_id, answer.job_ids) == ("done", "job-2", ["job-2"])
    assert row.unused_jobs == [{"job_id": "job-1", "qpu_seconds": 3.0, "why": "sent twice"}]
    assert ledger.spent() == answer.qpu_seconds == 5.0
    assert service.cancelled[0] == "job-2", "it ran all the same"
    assert runner(service, ledger).run([pub()]).reused == 1


def test_of_two_that_fail_none_is_asked_for_its_result(ledger: Ledger) -> None:
    service = one_fails(0, 1)
    with pytest.raises(JobError, match="broken"):
        runner(service, ledger).run([pub()])
    assert ("raw" in service.calls, ledger.rows()[0].charge) == (False, 6.0)


@pytest.mark.parametrize("retry", [True, False])
def test_a_duplicate_that_shows_after_the_failure_gives_the_result(ledger: Ledger, retry: bool) -> None:
    service = one_fails(1)
    service.on_find += ["not yet"] * 100
    with pytest.raises(JobError, match="broken"):
        runner(service, ledger, times=replace(FAST, late=0.02)).run([pub()])
    service.on_find.clear()
    answer = runner(service, ledger, retry_failed=retry).run([pub()])
    assert (answer.job_ids, len(service.jobs), ledger.spent()) == (["job-1"], 2, 5.0)
    assert ledger.rows()[0].charge == 5.0


@pytest.mark.parametrize("stated", [True, False])
def test_charges_of_both_are_known_later(ledger: Ledger, stated: bool) -> None:
    service = one_fails(0)
    mine = runner(service, ledger)
    late = [2.0, 3.0]
    real = service.qpu_seconds
    service.qpu_seconds = lambda job_id: real(job_id) if stated and job_id == "job-2" else None  # type: ignore[method-assign]
    mine.run([pub()])
    assert ledger.spent() > sum(late), "the limit of what is not known"
    service.qpu_seconds = real  # type: ignore[method-assign]
    assert mine.read_charges()
    assert ledger.spent() == ledger.rows()[0].charge == sum(late)


def test_of_several_without_reply_one_counts_with_its_estimate(ledger: Ledger) -> None:
    """The others with all that their jobs may cost, so that the cap is passed by one job's limit at most."""
    service = ScriptedService(on_submit=["lost reply", "accept"] * 2)
    find = service.find
    service.find = lambda tag: [name for name in find(tag) if name not in ("job-1", "job-3")]  # type: ignore[method-assign]
    for purpose in ("first", "second"):
        runner(service, ledger, times=replace(FAST, late=0.5)).run([pub()], purpose=purpose)
    limits = [job.limits.max_execution_seconds for job in service.jobs.values()]
    assert [row.unanswered_seconds for row in ledger.rows()] == [2.0, limits[2]]
    assert limits[0] == 100
    assert limits[2] == 2 + (96 - 2) // 8, "room for another one is left"
    assert limits[1] == 100 // 8
    assert limits[3] == 2 * 2, "twice the estimate"
    assert ledger.spent() + 98 >= 100 + 2 + (limits[2] or 0) + 2, "what all of them may cost, and do"
