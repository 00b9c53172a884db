"""Submissions without a reply, at a service whose list of jobs is late, cut, unfiltered, or hides them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted import FAST, Job, ScriptedService, estimate, pub
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


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger") as opened:
        yield opened


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("USAGE_DATA_OPT_OUT", "True")
    with StandIn("fake_manila", seconds_per_job=3.0) as running, running.as_account():
        yield running


def live(ledger: Ledger, **settings: Any) -> Runner:
    given: dict[str, Any] = {"run": "test", "max_qpu_seconds": 50.0, "times": LATE, "estimate": estimate}
    return open_runner("ibm_standin", ledger=ledger, **{**given, **settings})


def scripted(service: ScriptedService, ledger: Ledger, **settings: Any) -> Runner:
    given = {"run": "test", "max_qpu_seconds": 100.0, "times": FAST, "estimate": estimate}
    return Runner(service, ledger, **{**given, **settings})


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
        assert counted == [50.0, 2.0 + 24], "both are kept room for before it is sent again: estimate, half of the rest"
        assert [job.limit_seconds for job in standin.jobs] == [50, 24]
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
    scripted(service, ledger).run([pub()])
    service = ScriptedService(prefix="later", on_submit=["dropped"])
    assert scripted(service, ledger).run([pub()], purpose="another").job_ids


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
        scripted(service, ledger, times=times).run([pub()])
    assert len(service.jobs) == 2
    assert ledger.rows()[0].unanswered_seconds == 2.0
    service.on_find.clear()
    answer = scripted(service, ledger, times=times).run([pub()])
    assert (answer.job_ids, ledger.spent(), answer.qpu_seconds) == (["job-2"], 4.0, 4.0)
    assert "unanswered" not in ledger.rows()[0].summary
    assert [job["job_id"] for job in ledger.rows()[0].unused_jobs] == ["job-1"]


def test_a_retry_goes_on_counting_what_got_no_reply(ledger: Ledger) -> None:
    times = replace(FAST, late=0.02)

    def fail(job: Job) -> None:
        job.state, job.charged = "ERROR", 3.0

    service = ScriptedService(on_submit=["lost reply"], on_find=["not yet"] * 100, new_job=fail)
    with pytest.raises(JobError):
        scripted(service, ledger, times=times).run([pub()])
    assert ledger.spent() == 3.0 + 2.0
    service.new_job = lambda job: None
    scripted(service, ledger, times=times, retry_failed=True).run([pub()])
    assert ledger.spent() == 3.0 + 2.0 + 2.0
    service.on_find.clear()
    scripted(service, ledger, times=times).run([pub()], purpose="another")
    assert ledger.spent() == sum(job.charged or 0 for job in service.jobs.values()) == 3.0 + 3.0 + 2.0 + 2.0


def test_a_job_that_fails_has_its_duplicate_counted_too(ledger: Ledger) -> None:
    """Both were accepted, and both failed."""

    def fail(job: Job) -> None:
        job.state, job.charged = "ERROR", 3.0

    service = ScriptedService(
        on_submit=["lost reply", "lost reply"], on_find=["not yet"] * (FAST.lookups + 1), new_job=fail
    )
    with pytest.raises(JobError):
        scripted(service, ledger).run([pub()])
    (row,) = ledger.rows()
    assert {job["job_id"] for job in row.unused_jobs} == set(service.jobs) == {"job-1", "job-2"}
    assert ledger.spent() == 6.0
