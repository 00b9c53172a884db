"""The runner's rules: every job once, found again by its tag, its answer stored, nothing assumed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scripted import FAST, Job, ScriptedService, exact, pub, runner

from qhw_diffusion.errors import AccountError, InvalidInputError, JobError, ServiceError
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.service import NotSentError, RefusedError
from qhw_diffusion.hardware.split import JobLimits


def only_row(ledger: Ledger) -> Any:
    (row,) = ledger.rows()
    return row


def test_a_job_goes_through_all_states_and_is_never_run_again(ledger: Ledger) -> None:
    service = ScriptedService()
    states = []
    service.new_job = lambda job: states.append(only_row(ledger).state)
    answer = runner(service, ledger).run([pub()])
    assert states == ["planned"], "the row is there before the job is sent"
    np.testing.assert_allclose(answer.values[0], exact(pub()), atol=1e-12)
    assert (answer.shots, answer.job_ids, answer.qpu_seconds, answer.reused) == ([100], ["job-1"], 2.0, 0)
    row = only_row(ledger)
    assert (row.state, row.job_id, row.session_id, row.qpu_seconds) == ("done", "job-1", "session-1", 2.0)
    again = runner(ScriptedService(), ledger, max_qpu_seconds=None).run([pub()])  # another process, without a cap
    np.testing.assert_array_equal(again.values[0], answer.values[0])
    assert (again.job_ids, again.reused, len(service.jobs)) == (["job-1"], 1, 1)


def test_another_purpose_option_or_value_is_another_job(ledger: Ledger) -> None:
    service = ScriptedService()
    mine = runner(service, ledger)
    mine.run([pub()])
    mine.run([pub()], purpose="again")
    mine.run([pub()], options={"resilience_level": 1})
    mine.run([pub((0.1, 0.8))])
    mine.run([pub(shots=101)])
    assert len(service.jobs) == 5


def test_several_pubs_are_one_job_and_equal_work_in_one_call_is_done_once(ledger: Ledger) -> None:
    service = ScriptedService()
    answer = runner(service, ledger).run([pub((0.1,)), pub((0.2, 0.3))])
    assert [v.shape for v in answer.values] == [(2, 1), (2, 2)]
    assert len(service.jobs) == 1
    limits = JobLimits(executions=2 * 2 * 100)  # two rows, two settings of the measurement
    split = runner(service, ledger, limits=limits).run([pub((0.5, 0.6, 0.5, 0.6, 0.7))])
    np.testing.assert_allclose(split.values[0], exact(pub((0.5, 0.6, 0.5, 0.6, 0.7))), atol=1e-12)
    assert len(service.jobs) == 3
    assert split.job_ids == ["job-2", "job-3"]


def test_a_crash_after_the_job_was_sent_is_repaired_by_its_tag(ledger: Ledger) -> None:
    """The process dies between the service's acceptance and the ledger's note of it."""
    service = ScriptedService()

    class KilledError(BaseException):
        pass

    def die(job: Job) -> None:
        service.jobs["job-1"] = job
        raise KilledError

    service.new_job = die
    with pytest.raises(KilledError):
        runner(service, ledger).run([pub()])
    assert only_row(ledger).state == "planned"
    service.new_job = lambda job: pytest.fail("it was sent again")
    answer = runner(service, ledger).run([pub()])
    assert answer.job_ids == ["job-1"]
    assert only_row(ledger).state == "done"


def test_a_crash_before_the_job_was_sent_sends_it_after_looking(ledger: Ledger) -> None:
    service = ScriptedService(on_submit=[KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        runner(service, ledger).run([pub()])
    service.calls.clear()
    runner(service, ledger).run([pub()])
    assert service.calls.index("submit") == FAST.lookups + 1, "after the check and every look-up"


def test_a_lost_reply_is_found_and_not_sent_again(ledger: Ledger) -> None:
    service = ScriptedService(on_submit=["lost reply"], on_find=["not yet"] * 3)
    answer = runner(service, ledger).run([pub()])
    assert (answer.job_ids, list(service.jobs)) == (["job-1"], ["job-1"])


def test_a_dropped_request_is_sent_again_once_it_is_certainly_absent(ledger: Ledger) -> None:
    service = ScriptedService(on_submit=["dropped"])
    runner(service, ledger).run([pub()])
    assert service.calls.count("submit") == 2
    assert service.calls[1 : 3 + FAST.lookups] == ["find", "submit", *["find"] * FAST.lookups]


def test_no_answer_to_a_look_up_is_not_absence(ledger: Ledger) -> None:
    service = ScriptedService(on_submit=["lost reply"], on_find=["not yet", *[ServiceError("down")] * 10**4])
    with pytest.raises(ServiceError, match="down"):
        runner(service, ledger).run([pub()])
    assert (only_row(ledger).state, service.calls.count("submit")) == ("planned", 1)
    service.on_find.clear()
    assert runner(service, ledger).run([pub()]).job_ids == ["job-1"]


def test_of_duplicates_the_oldest_counts_and_the_others_are_cancelled(ledger: Ledger) -> None:
    service = ScriptedService(on_submit=["lost reply", "lost reply"], on_find=["not yet"] * (FAST.lookups + 1))
    answer = runner(service, ledger).run([pub()])
    assert (answer.job_ids, set(service.cancelled)) == (["job-1"], {"job-2"})
    assert service.calls.index("cancel") < service.calls.index("status"), "while it may still be in the queue"
    assert ledger.spent() == 4.0, "the service charged both"
    # one that shows only after another was sent and accepted
    late = ScriptedService(prefix="late", on_submit=["lost reply"], on_find=["not yet"] * (FAST.lookups + 1))
    answer = runner(late, ledger).run([pub()], purpose="late")
    assert (answer.job_ids, set(late.cancelled)) == (["late-1"], {"late-2"})
    # one that shows only when the other is done
    last = ScriptedService(prefix="last", on_submit=["lost reply"], on_find=["not yet"] * (FAST.lookups + 4))
    answer = runner(last, ledger).run([pub()], purpose="last")
    assert (answer.job_ids, set(last.cancelled)) == (["last-2"], {"last-1"})
    assert ledger.spent() == 12.0


def test_a_service_that_takes_nothing(ledger: Ledger) -> None:
    service = ScriptedService(on_submit=[NotSentError("429")] * FAST.submissions)
    with pytest.raises(ServiceError, match=r"took no job in 4 attempts.*429.*Nothing was charged"):
        runner(service, ledger).run([pub()])
    assert only_row(ledger).state == "failed"
    assert ledger.spent() == 0
    assert runner(service, ledger).run([pub()]).job_ids == ["job-1"], "the same call tries again"


@pytest.mark.parametrize("error", [RefusedError("circuit too long"), AccountError("no access"), InvalidInputError("x")])
def test_a_refusal_is_stored_and_tried_again_by_the_next_call(ledger: Ledger, error: Exception) -> None:
    service = ScriptedService(on_submit=[error])
    with pytest.raises(type(error), match=str(error)):
        runner(service, ledger).run([pub()])
    assert only_row(ledger).reason.startswith("refused")
    assert runner(service, ledger).run([pub()]).values


def test_a_failed_job_is_sent_again_only_on_request(ledger: Ledger) -> None:
    service = ScriptedService()

    def fail(job: Job) -> None:
        job.state, job.reason, job.charged = "ERROR", "calibration lost", 3.0

    service.new_job = fail
    with pytest.raises(JobError, match=r"job-1 on ibm_scripted failed: calibration lost"):
        runner(service, ledger).run([pub()])
    assert (only_row(ledger).state, ledger.spent()) == ("failed", 3.0)
    with pytest.raises(JobError, match="not sent again by itself"):
        runner(service, ledger).run([pub()])
    service.new_job = lambda job: None
    answer = runner(service, ledger, retry_failed=True).run([pub()])
    assert (answer.job_ids, ledger.spent()) == (["job-2"], 5.0)
    first, second = service.jobs.values()
    assert first.tags[:3] == second.tags[:3]
    assert first.tags[3] != second.tags[3], "an attempt is looked up by its own tag"


def test_ctrl_c_asks_for_cancellation_and_assumes_nothing(ledger: Ledger) -> None:
    service = ScriptedService(on_status=["QUEUED", KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        runner(service, ledger).run([pub()])
    assert (service.cancelled, only_row(ledger).state) == (["job-1"], "submitted")
    # the service had finished it all the same
    assert runner(service, ledger).run([pub()]).job_ids == ["job-1"]


def test_a_job_cancelled_on_ctrl_c_is_sent_again_by_the_next_call(ledger: Ledger) -> None:
    service = ScriptedService(on_status=["QUEUED", KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        runner(service, ledger).run([pub()])
    service.jobs["job-1"].state, service.jobs["job-1"].charged = "CANCELLED", 0.0
    assert runner(service, ledger).run([pub()]).job_ids == ["job-2"]
    assert ledger.spent() == 2.0


def test_a_job_cancelled_by_somebody_else_is_said(ledger: Ledger) -> None:
    service = ScriptedService(on_status=["QUEUED", "CANCELLED"])
    with pytest.raises(JobError, match=r"job-1 .* was cancelled: no reason given. The same command sends it again"):
        runner(service, ledger).run([pub()])
    assert runner(service, ledger).run([pub()]).job_ids == ["job-2"]


def test_a_job_of_another_account_is_not_replaced(ledger: Ledger) -> None:
    service = ScriptedService(on_status=[KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        runner(service, ledger).run([pub()])
    with pytest.raises(JobError, match=r"does not know job job-1.*another account"):
        runner(ScriptedService(), ledger).run([pub()])
    assert only_row(ledger).state == "submitted"


def test_a_silent_service_leaves_the_job_to_the_next_call(ledger: Ledger) -> None:
    service = ScriptedService(on_status=["RUNNING", *[ServiceError("gone")] * 10**4])
    with pytest.raises(ServiceError, match="gone"):
        runner(service, ledger).run([pub()])
    service.on_status.clear()
    assert runner(service, ledger).run([pub()]).job_ids == ["job-1"]


def test_the_deadline(ledger: Ledger) -> None:
    from dataclasses import replace

    service = ScriptedService(on_status=["QUEUED"] * 10**4)
    with pytest.raises(ServiceError, match=r"job-1 on ibm_scripted is queued after \d+ s, the deadline.*same command"):
        runner(service, ledger, times=replace(FAST, deadline=0.02)).run([pub()])
    assert only_row(ledger).state == "submitted"


def test_an_unknown_usage_counts_with_the_jobs_limit_until_it_is_known(ledger: Ledger) -> None:
    service = ScriptedService(new_job=lambda job: setattr(job, "charged", None))
    answer = runner(service, ledger).run([pub()])
    limit = service.jobs["job-1"].limits.max_execution_seconds
    assert (answer.qpu_seconds, only_row(ledger).qpu_seconds, ledger.spent()) == (None, None, limit)
    service.jobs["job-1"].charged = 3.0
    runner(service, ledger).run([pub()], purpose="another")
    assert (ledger.rows()[0].qpu_seconds, ledger.spent()) == (3.0, 3.0 + 97), "read again before the budget check"
    mine = runner(service, ledger)
    service.jobs["job-2"].charged = 4.0
    mine.settle()
    assert (mine.run([pub()], purpose="another").qpu_seconds, ledger.spent()) == (4.0, 7.0)


def test_a_damaged_result_is_read_again_from_the_service(ledger: Ledger) -> None:
    service = ScriptedService()
    runner(service, ledger).run([pub()])
    path = ledger.folder / only_row(ledger).result_file
    path.write_bytes(path.read_bytes()[:-4])
    answer = runner(service, ledger).run([pub()])
    np.testing.assert_allclose(answer.values[0], exact(pub()), atol=1e-12)
    assert (len(service.jobs), ledger.spent()) == (1, 2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "express"}, r"mode is 'express'; allowed: job, batch, session"),
        ({"run": " "}, "needs a name"),
        ({"max_qpu_seconds": 0}, "max_qpu_seconds is 0"),
        ({"max_session_seconds": -1}, "max_session_seconds is -1"),
    ],
)
def test_settings_that_are_refused(ledger: Ledger, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        runner(ScriptedService(), ledger, **settings)
