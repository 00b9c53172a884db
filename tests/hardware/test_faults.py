"""What goes wrong between the client and the service, on the real client against the stand-in: one job, charged once.

Every row of the table of faults that the client does not survive by itself (docs/hardware.md) is here.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import estimate, exact, expectations, pub, sampler_pub

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import AccountError, BudgetError, InvalidInputError, JobError, ServiceError
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import Answer, Runner, open_runner
from qhw_diffusion.hardware.service import AnyPub, RefusedError
from qhw_diffusion.hardware.standin import (
    TOKEN,
    CancelJob,
    Delay,
    Drop,
    ExpireSession,
    FailJob,
    Fault,
    LostReply,
    Stall,
    StandIn,
    Status,
    Truncate,
    UsageLimit,
)
from qhw_diffusion.hardware.wait import Times

TIMES = Times(
    connect=5.0,
    read=10.0,
    accept=10.0,
    attempts=3,
    backoff=0.004,
    backoff_most=0.02,
    retry_after_most=1.0,
    poll=0.01,
    poll_most=0.03,
    patience=3.0,
    grace=0.02,
    lookups=3,
    submissions=4,
    settle=2.0,
)
SHOTS = 2000
WORK: AnyPub = pub(shots=SHOTS)


@pytest.fixture(params=["estimator", "sampler"], autouse=True)
def primitive(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here happens to jobs of an Estimator and of a Sampler."""
    work = {"estimator": pub(shots=SHOTS), "sampler": sampler_pub(shots=SHOTS)}
    monkeypatch.setattr(sys.modules[__name__], "WORK", work[request.param])
    return str(request.param)


def run(folder: Path, *, options: dict[str, Any] | None = None, purpose: str = "evaluate", **settings: Any) -> Answer:
    """One call of a new process: new connection, new ledger object."""
    given: dict[str, Any] = {"run": "test", "max_qpu_seconds": 100.0, "times": TIMES, "estimate": estimate}
    given.update(settings)
    with (
        Ledger.open(folder / "ledger") as ledger,
        open_runner("ibm_standin", ledger=ledger, **given) as runner,
    ):
        return runner.run([WORK], options={**plain(), **(options or {})}, purpose=purpose)


def plain() -> dict[str, Any]:
    """Options without mitigation; a Sampler has none by itself."""
    return {"resilience_level": 0} if WORK.primitive == "estimator" else {}


def live(ledger: Ledger, **settings: Any) -> Runner:
    """A new connection of the real client, with a cap of 50 s."""
    given: dict[str, Any] = {"run": "test", "max_qpu_seconds": 50.0, "times": TIMES, "estimate": estimate}
    return open_runner("ibm_standin", ledger=ledger, **{**given, **settings})


def rows(folder: Path) -> list[Any]:
    with Ledger.open(folder / "ledger") as ledger:
        return ledger.rows()


def assert_right(answer: Answer) -> None:
    """Against the closed form with the qubit's asymmetric readout: gates are good to a few parts in ten thousand."""
    p10, p01 = Device.load("fake_manila").readout_error(0)
    wanted = (p01 - p10) + exact(pub()) * (1 - p10 - p01)
    if answer.bits:
        assert answer.shots == [SHOTS]
        assert not answer.bits[0]["m"].to_bool_array().any(), "nothing is read into it"
        assert (np.abs(expectations(answer) - wanted[:1]) < 5 / np.sqrt(SHOTS) + 0.005).all()
        return
    assert (np.abs(answer.values[0] - wanted) < 5 * answer.std_errors[0] + 0.005).all(), (answer.values[0], wanted)


def assert_one_job(standin: StandIn, folder: Path, answer: Answer) -> None:
    """On the server's side: one job, paid once, and the ledger says the same."""
    assert [job.id for job in standin.jobs] == answer.job_ids
    assert standin.charged_seconds == answer.qpu_seconds == 3.0
    (row,) = rows(folder)
    assert (row.state, row.job_id, row.qpu_seconds) == ("done", standin.jobs[0].id, 3.0)
    assert_right(answer)


# (endpoint, fault, how often, requests let through before)
SURVIVED: dict[str, tuple[str, Fault, int, int]] = {
    "the job answered 500 once": ("jobs_post", Status(500), 1, 0),
    "the job answered 503 three times": ("jobs_post", Status(503), 3, 0),
    "the job answered 429 with Retry-After": ("jobs_post", Status(429, retry_after=0.02), 1, 0),
    "the job answered 429 without Retry-After": ("jobs_post", Status(429), 1, 0),
    "the job answered 429 nine times": ("jobs_post", Status(429), 9, 0),
    "the job accepted, the reply lost": ("jobs_post", LostReply(), 1, 0),
    "the job accepted, the reply cut off": ("jobs_post", Truncate(), 1, 0),
    "the job accepted, the connection broken in the reply": ("jobs_post", Truncate(abrupt=True), 1, 0),
    "the job dropped": ("jobs_post", Drop(), 1, 0),
    "a poll answered 429 with Retry-After": ("job_get", Status(429, retry_after=0.02), 1, 0),
    "a poll answered 429 without Retry-After": ("job_get", Status(429), 2, 0),
    "polls answered 500 six times": ("job_get", Status(500), 6, 0),
    "polls dropped six times": ("job_get", Drop(), 6, 0),
    "a poll cut off": ("job_get", Truncate(), 1, 0),
    "results answered 429 without Retry-After": ("results", Status(429), 1, 0),
    "results answered 500 six times": ("results", Status(500), 6, 0),
    "results dropped six times": ("results", Drop(), 6, 0),
    "results cut off": ("results", Truncate(), 2, 0),
    "results broken off": ("results", Truncate(abrupt=True), 2, 0),
    "usage of the job answered 500": ("metrics", Status(500), 2, 0),
    "usage of the account answered 500": ("usage", Status(500), 4, 2),
    "status of the device answered 503": ("status", Status(503), 4, 0),
    "the batch answered 500": ("sessions_post", Status(500), 4, 0),
    "the batch's reply lost": ("sessions_post", LostReply(), 1, 0),
    "the batch closed under us": ("jobs_post", ExpireSession(), 1, 0),
    "closing the batch answered 500": ("session_patch", Status(500), 1, 0),
    "closing the batch answered 500 for good": ("session_patch", Status(500), 100, 0),
}


# The deprecated primitives go the same way; these are where their jobs and answers differ
BOTH = ("the job answered 500 once", "the job accepted, the reply lost", "results cut off")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "program"), [*((name, "executor") for name in SURVIVED), *((name, "own") for name in BOTH)]
)
def test_survived(standin: StandIn, tmp_path: Path, name: str, program: str, primitive: str) -> None:
    program = primitive if program == "own" else program
    endpoint, fault, times, after = SURVIVED[name]
    standin.inject(endpoint, fault, times=times, after=after)
    answer = run(tmp_path, program=program)
    assert_one_job(standin, tmp_path, answer)
    assert standin.jobs[0].program == program
    assert standin.requests[endpoint] > after, "the fault has happened"


@pytest.mark.slow
def test_a_job_answered_503_for_longer_than_we_try_is_not_lost(standin: StandIn, tmp_path: Path) -> None:
    standin.inject("jobs_post", Status(503), times=7)
    with pytest.raises(ServiceError, match=r"took no job in 4 attempts.*Nothing was charged"):
        run(tmp_path)
    assert (standin.jobs, standin.charged_seconds) == ([], 0)
    assert_one_job(standin, tmp_path, run(tmp_path))


def test_a_reply_that_stalls_is_not_waited_for(standin: StandIn, tmp_path: Path) -> None:
    standin.inject("jobs_post", Stall(1.0))
    standin.inject("results", Stall(1.0))
    standin.inject("job_get", Stall(1.0))
    assert_one_job(standin, tmp_path, run(tmp_path, times=replace(TIMES, read=0.4, accept=0.4)))


def test_results_that_never_come_stay_for_the_next_call(standin: StandIn, tmp_path: Path) -> None:
    standin.inject("results", Status(500), times=1000)
    with pytest.raises(ServiceError, match=r"did not answer, asked to read the answer of job"):
        run(tmp_path, times=replace(TIMES, patience=0.05))
    assert rows(tmp_path)[0].state == "submitted"
    standin._planned.clear()
    assert_one_job(standin, tmp_path, run(tmp_path))


def test_the_deadline_is_ours_and_the_job_goes_on(standin: StandIn, tmp_path: Path) -> None:
    standin.inject("jobs_post", Delay(1.0))
    with pytest.raises(ServiceError, match=r"is queued after 0 s, the deadline; it goes on"):
        run(tmp_path, times=replace(TIMES, deadline=0.1))
    assert_one_job(standin, tmp_path, run(tmp_path))


def test_no_answer_to_the_look_up_leaves_the_row_planned(standin: StandIn, tmp_path: Path) -> None:
    standin.inject("jobs_post", LostReply())
    standin.inject("jobs_get", Status(500), times=1000, after=1)  # a new key is looked up once
    with pytest.raises(ServiceError, match="did not answer, asked to find jobs"):
        run(tmp_path, times=replace(TIMES, patience=0.05))
    assert rows(tmp_path)[0].state == "planned"
    standin._planned.clear()
    assert_one_job(standin, tmp_path, run(tmp_path))


def test_a_result_is_kept_here_whatever_becomes_of_the_service(tmp_path: Path) -> None:
    """The client caches nothing: it would ask again, and results of private jobs can be read once only."""
    with StandIn("fake_manila", seconds_per_job=3.0) as first, first.as_account():
        answer = run(tmp_path)
    with StandIn("fake_manila") as second, second.as_account():
        again = run(tmp_path)
        assert second.requests["jobs_post"] == second.requests["results"] == second.requests["job_get"] == 0
    assert again.bits == answer.bits
    for one, other in zip([*again.values, *again.std_errors], [*answer.values, *answer.std_errors], strict=True):
        np.testing.assert_array_equal(one, other)


def test_private_jobs_and_settings_of_the_runner_are_refused(standin: StandIn, tmp_path: Path) -> None:
    for option in ({"environment": {"private": True}}, {"max_execution_time": 1000}):
        with pytest.raises(InvalidInputError, match="is set by the runner"):
            run(tmp_path, options=option)
    assert standin.jobs == []


def test_a_failed_job_is_told_and_sent_again_on_request_only(standin: StandIn, tmp_path: Path) -> None:
    standin.inject("jobs_post", FailJob(reason="the fridge is warm", seconds=1.5))
    with pytest.raises(JobError, match=r"failed: Error code 1517; the fridge is warm"):
        run(tmp_path)
    with pytest.raises(JobError, match="not sent again by itself"):
        run(tmp_path)
    answer = run(tmp_path, retry_failed=True)
    assert_right(answer)
    assert len(standin.jobs) == 2
    with Ledger.open(tmp_path / "ledger") as ledger:
        assert ledger.spent() == standin.charged_seconds == 4.5


def test_a_job_cancelled_by_the_service(standin: StandIn, tmp_path: Path) -> None:
    standin.inject("jobs_post", CancelJob())
    with pytest.raises(JobError, match=r"was cancelled: cancelled by the service. The same command"):
        run(tmp_path)
    assert_right(run(tmp_path))
    assert (len(standin.jobs), standin.charged_seconds) == (2, 3.0)


def test_a_job_over_its_limit_is_ended_by_the_service(tmp_path: Path) -> None:
    with StandIn("fake_manila", seconds_per_job=60.0) as standin, standin.as_account():
        with pytest.raises(JobError, match=r"1305.*maximum execution time"):
            run(tmp_path, max_qpu_seconds=10.0)
        with Ledger.open(tmp_path / "ledger") as ledger:
            assert ledger.spent() == standin.charged_seconds == 10.0
        with pytest.raises(BudgetError, match=r"0.0 s are left"):
            run(tmp_path, max_qpu_seconds=10.0, retry_failed=True)


def test_the_accounts_limit(standin: StandIn, tmp_path: Path) -> None:
    standin.inject("jobs_post", UsageLimit())
    with pytest.raises(BudgetError, match=r"has met its usage limit"):
        run(tmp_path)
    standin.usage_limit_seconds = 1.0
    with pytest.raises(BudgetError, match=r"1.0 s are left: the account has 1 s"):
        run(tmp_path)
    assert standin.jobs == []
    standin.usage_limit_seconds = 600.0
    assert_one_job(standin, tmp_path, run(tmp_path))


def test_a_session_closed_under_us_is_opened_again_then_a_batch_takes_over(standin: StandIn, tmp_path: Path) -> None:
    standin.inject("jobs_post", ExpireSession(), times=1)
    answer = run(tmp_path, mode="session", max_session_seconds=30)
    assert_right(answer)
    modes = [session.mode for session in standin.records.sessions.values()]
    assert modes == ["dedicated", "dedicated"]
    assert [s.max_seconds for s in standin.records.sessions.values()] == [30, 30]
    standin.inject("jobs_post", ExpireSession(), times=2)
    run(tmp_path, purpose="second", mode="session", max_session_seconds=30)
    assert [session.mode for session in standin.records.sessions.values()][2:] == ["dedicated", "dedicated", "batch"]
    assert len(standin.jobs) == 2
    assert not any(session.accepting for session in standin.records.sessions.values()), "all of them are closed"


def test_a_batch_that_stays_closed(standin: StandIn, tmp_path: Path) -> None:
    standin.inject("jobs_post", ExpireSession(), times=100)
    with pytest.raises(RefusedError, match="1217"):
        run(tmp_path)
    assert standin.jobs == []


def test_wrong_and_expired_credentials_show_no_key(standin: StandIn, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger") as ledger:
        runner = open_runner(
            "ibm_standin", ledger=ledger, run="test", max_qpu_seconds=100, times=TIMES, estimate=estimate
        )
        standin.expired_tokens = True
        with pytest.raises(AccountError, match=r"does not take the account's credentials") as caught:
            runner.run([WORK], options=plain())
        assert TOKEN not in str(caught.value)
        assert caught.value.__cause__ is None
        standin.expired_tokens = False
        assert_right(runner.run([WORK], options=plain()))
    for path in (tmp_path / "ledger").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()


def test_an_unknown_device(standin: StandIn, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger") as ledger, pytest.raises(AccountError, match="ibm_retired"):
        open_runner("ibm_retired", ledger=ledger, run="test", times=TIMES)


def test_options_and_circuits_that_the_service_would_refuse(standin: StandIn, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="resilience_level"):
        run(tmp_path, options={"resilience_level": 7})
    if WORK.primitive == "estimator":
        with pytest.raises(InvalidInputError, match="PEC mitigation and ZNE"):
            run(tmp_path, options={"resilience": {"pec_mitigation": True, "zne_mitigation": True}})
    else:
        with pytest.raises(InvalidInputError, match="meas_type is 'kerneled'"):
            run(tmp_path, options={"execution": {"meas_type": "kerneled"}})
    standin.inject("jobs_post", Status(400, code=1234, message="the circuit is too long"))
    with pytest.raises(RefusedError, match="the circuit is too long"):
        run(tmp_path)
    assert standin.jobs == []
    tried = 2 if WORK.primitive == "estimator" else 1  # the client sees PEC with ZNE only when it is about to send
    assert [row.state for row in rows(tmp_path)] == ["failed"] * tried
    assert_right(run(tmp_path))
