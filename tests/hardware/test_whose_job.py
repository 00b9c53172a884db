"""Whose job it is: of another account, of another ledger with the same work, of this ledger before it was put back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted import FAST, Job, ScriptedService, pub, runner
from test_faults import live

from qhw_diffusion.errors import AccountError, JobError, ServiceError
from qhw_diffusion.hardware.keys import tag_of
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.recover import recover
from qhw_diffusion.hardware.service import Limits, NotSentError
from qhw_diffusion.hardware.standin import INSTANCE, LostReply, StandIn

RAW = {"resilience_level": 0}


# -- another account ---------------------------------------------------------------------------------------------------


def interrupted(service: ScriptedService, ledger: Ledger, state: str) -> None:
    """Leave a row behind in this state."""
    if state == "planned":

        def die(job: Job) -> None:
            service.jobs["job-1"] = job
            raise KeyboardInterrupt

        service.new_job = die
    else:
        service.on_status = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        runner(service, ledger).run([pub()])
    service.new_job = lambda job: None
    assert [row.state for row in ledger.rows()] == [state]


@pytest.mark.parametrize("state", ["planned", "submitted"])
def test_a_row_of_another_account_is_refused_and_stays(ledger: Ledger, state: str) -> None:
    first, second = ScriptedService(instance="one"), ScriptedService(instance="two")
    interrupted(first, ledger, state)
    before = ledger.rows()
    with pytest.raises(AccountError, match=r"another account or instance \(one, this one is two\)"):
        runner(second, ledger).run([pub()])
    assert (second.jobs, ledger.rows()) == ({}, before)
    assert runner(first, ledger).run([pub()]).job_ids == ["job-1"]
    assert len(first.jobs) == 1


def test_the_same_with_the_real_client(standin: StandIn, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.inject("jobs_post", LostReply())
    with live(ledger) as mine:
        submitted = ledger.submitted
        monkeypatch.setattr(ledger, "submitted", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            mine.run([pub()], options=RAW)
        monkeypatch.setattr(ledger, "submitted", submitted)
    assert ([row.state for row in ledger.rows()], len(standin.jobs)) == (["planned"], 1)
    monkeypatch.setenv("QISKIT_IBM_INSTANCE", INSTANCE.replace("0000-0000", "1111-1111"))
    with live(ledger) as mine, pytest.raises(AccountError, match="another account or instance"):
        mine.run([pub()], options=RAW)
    assert len(standin.jobs) == 1
    assert INSTANCE not in str(ledger.rows()[0].summary), "a hash of it is enough"
    monkeypatch.setenv("QISKIT_IBM_INSTANCE", INSTANCE)
    with live(ledger) as mine:
        assert mine.run([pub()], options=RAW).job_ids == [standin.jobs[0].id]


def test_what_never_ran_or_is_done_belongs_to_no_account(ledger: Ledger) -> None:
    first, second = ScriptedService(instance="one"), ScriptedService(instance="two", prefix="two")
    first.on_submit = [NotSentError("429")] * FAST.submissions
    with pytest.raises(Exception, match="took no job"):
        runner(first, ledger).run([pub()])
    assert runner(second, ledger).run([pub()]).job_ids == ["two-1"]
    assert ledger.rows()[0].summary["instance"] == "two"
    assert runner(first, ledger).run([pub()]).reused == 1


def test_a_row_of_an_earlier_version_knows_no_account(ledger: Ledger) -> None:
    service = ScriptedService(instance="")
    interrupted(service, ledger, "submitted")
    service.instance = "one"
    assert runner(service, ledger).run([pub()]).job_ids == ["job-1"]


# -- another ledger of the same account --------------------------------------------------------------------------------


def test_a_job_of_another_ledger_is_no_duplicate(ledger: Ledger, tmp_path: Path) -> None:
    """A is interrupted, B runs the same work, A goes on: what B has sent is B's, and A takes what A has sent."""
    service = ScriptedService()
    interrupted(service, ledger, "submitted")
    with Ledger.open(tmp_path / "B") as other:
        service.on_status = [KeyboardInterrupt()]
        with pytest.raises(KeyboardInterrupt):
            runner(service, other).run([pub()])
        service.cancelled.clear()  # on Ctrl-C
        answer = runner(service, ledger).run([pub()])
        assert (answer.job_ids, service.cancelled) == (["job-1"], [])
        assert (ledger.spent(), ledger.rows()[0].unused_jobs) == (2.0, [])
        assert runner(service, other).run([pub()]).job_ids == ["job-2"]
        assert (service.cancelled, other.spent()) == ([], 2.0)


@pytest.mark.parametrize("state", ["planned", "submitted"])
def test_of_a_row_of_an_earlier_version_namesakes_are_left_alone(ledger: Ledger, state: str) -> None:
    """Its tag names no ledger: whose the other jobs with that tag are, nobody can say."""
    service = ScriptedService()
    interrupted(service, ledger, state)
    key = ledger.rows()[0].key
    for job in service.jobs.values():
        job.tags = [*tag_of("test", key), f"{tag_of('test', key)[-1]}-1"]
    forget_tag(ledger)
    service.jobs["job-2"] = Job([*service.jobs["job-1"].tags], service.jobs["job-1"].answer, Limits())
    service.cancelled.clear()
    answer = runner(service, ledger).run([pub()])
    assert (answer.job_ids, service.cancelled, ledger.spent()) == (["job-1"], [], 2.0)
    assert len(service.jobs) == 2


def test_a_later_attempt_of_an_earlier_versions_row_has_the_ledgers_tag(ledger: Ledger) -> None:
    service = ScriptedService(new_job=lambda job: setattr(job, "state", "ERROR"))
    with pytest.raises(JobError):
        runner(service, ledger).run([pub()])
    forget_tag(ledger)
    service.new_job = lambda job: None
    runner(service, ledger, retry_failed=True).run([pub()])
    assert service.jobs["job-2"].tags[-1] == f"q-{ledger.id[:8]}-{ledger.rows()[0].key[:16]}-2"


def test_tags_are_short_and_name_the_ledger(standin: StandIn, ledger: Ledger) -> None:
    with live(ledger) as mine:
        mine.run([pub()], options=RAW)
    (row,) = ledger.rows()
    base = f"q-{ledger.id[:8]}-{row.key[:16]}"
    assert list(standin.jobs[0].tags) == ["qhw", "run-test", base, f"{base}-1"]
    assert all(len(tag) <= 32 for tag in (*standin.jobs[0].tags, f"{base}-9999", *tag_of("x" * 99, row.key, base)))


def test_a_ledger_keeps_its_name(tmp_path: Path) -> None:
    """Open or closed, copied, from before ledgers had names, recovered, and rebuilt from results alone."""
    service, folder = ScriptedService(), tmp_path / "ledger"
    with Ledger.open(folder) as ledger:
        name = ledger.id
        runner(service, ledger).run([pub()])
        assert ledger.id == name
    shutil.copytree(folder, tmp_path / "copy")
    for place in (folder, tmp_path / "copy"):
        with Ledger.open(place) as ledger:
            assert ledger.id == name
    with Ledger.open(tmp_path / "other") as ledger:
        assert ledger.id != name
        with ledger._file.writing() as connection:
            connection.execute("DELETE FROM notes WHERE name = 'id'")
    names = []
    for _ in range(2):
        with Ledger.open(tmp_path / "other") as ledger:
            names.append(ledger.id)
    assert len(names[0]) == 32
    assert names[1] == names[0]
    (folder / "ledger.sqlite").unlink()
    recover(folder)
    with Ledger.open(folder) as ledger:
        assert ledger.id[:8] == name[:8]
        assert runner(service, ledger).run([pub()]).reused == 1


def forget_tag(ledger: Ledger) -> None:
    """As an earlier version left the row."""
    ledger._change(ledger.rows()[0].key, lambda row, _: replace(row, summary={
        name: value for name, value in row.summary.items() if name != "tag"}))  # fmt: skip


# -- this ledger, put back ---------------------------------------------------------------------------------------------


class PutBack:
    """A ledger that is copied, and the copy put back."""

    def __init__(self, place: Path) -> None:
        self.folder, self.kept = place / "ledger", place / "kept"

    def copy(self) -> None:
        with Ledger.open(self.folder):
            pass
        shutil.copytree(self.folder, self.kept)

    def restore(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.kept, self.folder)

    def run(self, service: ScriptedService, **settings: Any) -> tuple[list[str], float]:
        with Ledger.open(self.folder) as ledger:
            answer = runner(service, ledger, **settings).run([pub()])
            return answer.job_ids, ledger.spent()


@pytest.mark.parametrize("cap", [100.0, 2.0])
def test_work_done_since_a_copy_was_made_is_found_and_counted(tmp_path: Path, cap: float) -> None:
    service, place = ScriptedService(), PutBack(tmp_path)
    place.copy()
    assert place.run(service, max_qpu_seconds=cap) == (["job-1"], 2.0)
    place.restore()
    service.calls.clear()
    assert place.run(service, max_qpu_seconds=cap) == (["job-1"], 2.0)
    assert (len(service.jobs), service.calls.count("submit")) == (1, 0)


def test_of_a_new_key_the_service_is_asked_once(tmp_path: Path) -> None:
    service, place = ScriptedService(), PutBack(tmp_path)
    place.run(service)
    assert service.calls[:3] == ["check", "find", "submit"]
    free = ScriptedService(paid=False)
    with Ledger.open(tmp_path / "free") as ledger:
        runner(free, ledger).run([pub()])
    assert "find" not in free.calls


def test_attempts_since_a_copy_was_made_are_found_and_counted(tmp_path: Path) -> None:
    """The copy has none of them, or only the first one."""

    def fail(job: Job) -> None:
        job.state, job.reason, job.charged = "ERROR", "calibration lost", 3.0

    for copied in (0, 1):
        service, place = ScriptedService(new_job=fail), PutBack(tmp_path / str(copied))
        if copied == 0:
            place.copy()
        with pytest.raises(JobError):
            place.run(service)
        if copied == 1:
            place.copy()
        service.new_job = lambda job: None
        assert place.run(service, retry_failed=True) == (["job-2"], 5.0)
        place.restore()
        assert place.run(service, retry_failed=True) == (["job-2"], 5.0)
        assert len(service.jobs) == 2


def test_a_silent_service_is_sent_no_new_key(ledger: Ledger) -> None:
    service = ScriptedService(on_find=[ServiceError("down")] * 10**4)
    with pytest.raises(ServiceError, match="down"):
        runner(service, ledger).run([pub()])
    assert (service.jobs, ledger.rows()) == ({}, [])


def test_the_real_client_finds_what_a_put_back_ledger_has_forgotten(standin: StandIn, tmp_path: Path) -> None:
    place = PutBack(tmp_path)
    place.copy()
    for _ in range(2):
        with Ledger.open(place.folder) as ledger, live(ledger) as mine:
            assert mine.run([pub()], options=RAW).job_ids == [standin.jobs[0].id]
            assert ledger.spent() == standin.charged_seconds == 3.0
        place.restore()
