"""Every fault does what it says, seen from the wire, and the books are right afterwards."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.hardware.standin import (
    TOKEN,
    CancelJob,
    Delay,
    Drop,
    ExpireSession,
    FailJob,
    LostReply,
    RandomFaults,
    Stall,
    StandIn,
    Status,
    Truncate,
    UsageLimit,
)
from qhw_diffusion.hardware.standin import service as service_file

BELL = {"program_id": "estimator", "backend": "ibm_standin", "params": {}, "tags": ["run", "key"]}


@pytest.fixture(autouse=True)
def no_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are not what is tested here."""
    monkeypatch.setattr(service_file, "run_program", lambda *arguments: ('{"answer": "forty-two"}', 10_000))


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn("fake_manila", seconds_per_job=2.0) as running:
        yield running


def ask(standin: StandIn, method: str, path: str, body: Any = None) -> requests.Response:
    return requests.request(method, standin.url + path, json=body, headers={"Authorization": "Bearer x"}, timeout=5)


def post(standin: StandIn, **changes: Any) -> requests.Response:
    return ask(standin, "POST", "/jobs", {**BELL, **changes})


def ended(standin: StandIn, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        answer = ask(standin, "GET", f"/jobs/{job_id}").json()
        if answer["status"] not in ("Queued", "Running"):
            return answer
        time.sleep(0.01)
    raise AssertionError(answer)


def test_a_job_without_faults(standin: StandIn) -> None:
    job_id = post(standin).json()["id"]
    assert ended(standin, job_id)["status"] == "Completed"
    assert ask(standin, "GET", f"/jobs/{job_id}/results").json() == {"answer": "forty-two"}
    usage = ask(standin, "GET", f"/jobs/{job_id}/metrics").json()["usage"]
    assert (usage["status"], usage["quantum_seconds"], standin.charged_seconds) == ("final", 2.0, 2.0)
    assert ask(standin, "GET", "/instances/usage").json()["usage_consumed_seconds"] == 2.0


def test_status_with_and_without_retry_after(standin: StandIn) -> None:
    standin.inject("jobs_post", Status(429, retry_after=1.5))
    standin.inject("jobs_post", Status(503))
    first, second = post(standin), post(standin)
    assert (first.status_code, first.headers["Retry-After"]) == (429, "1.5")
    assert second.status_code == 503
    assert "Retry-After" not in second.headers
    assert standin.jobs == []
    assert post(standin).status_code == 200
    assert (standin.requests["jobs_post"], standin.hits["jobs_post"]) == (3, 2)


def test_a_dropped_request_is_not_carried_out_and_one_with_a_lost_reply_is(standin: StandIn) -> None:
    for fault, jobs in ((Drop(), 0), (LostReply(), 1)):
        standin.inject("jobs_post", fault)
        with pytest.raises(requests.ConnectionError):
            post(standin)
        assert len(standin.jobs) == jobs
    found = ask(standin, "GET", "/jobs?tags=key&limit=10").json()["jobs"]
    assert [job["id"] for job in found] == [standin.jobs[0].id]


def test_a_stall_is_longer_than_the_clients_patience(standin: StandIn) -> None:
    standin.inject("usage", Stall(0.5))
    with pytest.raises(requests.Timeout):
        requests.get(standin.url + "/instances/usage", headers={"Authorization": "Bearer x"}, timeout=0.1)
    started = time.monotonic()
    standin.inject("usage", Stall(0.2))
    assert ask(standin, "GET", "/instances/usage").status_code == 200
    assert time.monotonic() - started >= 0.2


def test_truncated_results(standin: StandIn) -> None:
    job_id = post(standin).json()["id"]
    ended(standin, job_id)
    standin.inject("results", Truncate())
    standin.inject("results", Truncate(abrupt=True))
    whole = '{"answer": "forty-two"}'
    assert ask(standin, "GET", f"/jobs/{job_id}/results").text == whole[: len(whole) // 2]
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        ask(standin, "GET", f"/jobs/{job_id}/results")
    assert ask(standin, "GET", f"/jobs/{job_id}/results").text == whole


def test_failed_cancelled_and_delayed_jobs(standin: StandIn) -> None:
    standin.inject("jobs_post", FailJob("the fridge is warm", code=1234, seconds=1.0))
    standin.inject("jobs_post", CancelJob())
    standin.inject("jobs_post", Delay(0.3))
    started = time.monotonic()
    failed, cancelled, delayed = (post(standin).json()["id"] for _ in range(3))
    answer = ended(standin, failed)
    assert (answer["status"], answer["state"]["reason"], answer["state"]["reason_code"]) == (
        "Failed", "the fridge is warm", 1234)  # fmt: skip
    assert ended(standin, cancelled)["status"] == "Cancelled"
    assert ended(standin, delayed)["status"] == "Completed"
    assert time.monotonic() - started >= 0.3
    assert [job.seconds for job in standin.jobs] == [1.0, 0.0, 2.0]
    assert standin.charged_seconds == 3.0
    assert ask(standin, "GET", f"/jobs/{failed}/results").text == "", "there is none"


def test_a_user_cancels_a_queued_job_and_pays_nothing(standin: StandIn) -> None:
    standin.inject("jobs_post", Delay(60))
    job_id = post(standin).json()["id"]
    assert ask(standin, "POST", f"/jobs/{job_id}/cancel").status_code == 204
    assert ended(standin, job_id)["status"] == "Cancelled"
    assert ask(standin, "POST", f"/jobs/{job_id}/cancel").status_code == 409
    assert standin.charged_seconds == 0


def test_an_expired_session_takes_no_job(standin: StandIn) -> None:
    session = ask(standin, "POST", "/sessions", {"mode": "batch", "backend": "ibm_standin"}).json()["id"]
    standin.inject("jobs_post", ExpireSession())
    refusal = post(standin, session_id=session)
    assert (refusal.status_code, refusal.json()["errors"][0]["code"]) == (400, 1217)
    assert post(standin, session_id=session).status_code == 400, "it stays closed"
    assert ask(standin, "GET", f"/sessions/{session}").json()["accepting_jobs"] is False
    assert standin.jobs == []


def test_a_session_ends_with_its_time_and_is_charged_by_the_clock(standin: StandIn) -> None:
    asked = {"mode": "dedicated", "backend": "ibm_standin", "max_ttl": 1}
    session = ask(standin, "POST", "/sessions", asked).json()["id"]
    ended(standin, post(standin, session_id=session).json()["id"])
    assert 0 < standin.charged_seconds < 1, "by the clock, not by the job's 2 s"
    time.sleep(1.1)
    assert post(standin, session_id=session).status_code == 400
    charged = standin.charged_seconds
    assert 0 < charged < 1.5
    time.sleep(0.1)
    assert standin.charged_seconds == charged, "a closed session costs no more"


def test_the_usage_limit(standin: StandIn) -> None:
    standin.inject("jobs_post", UsageLimit())
    assert post(standin).status_code == 403
    assert standin.jobs == []


def test_times_and_after_and_the_order_of_faults(standin: StandIn) -> None:
    standin.inject("usage", Status(500), times=2, after=1)
    standin.inject("usage", Status(504), after=1)
    codes = [ask(standin, "GET", "/instances/usage").status_code for _ in range(6)]
    assert codes == [200, 500, 500, 200, 504, 200]


def test_faults_that_cannot_happen_are_refused(standin: StandIn) -> None:
    with pytest.raises(UnknownNameError, match="did you mean results"):
        standin.inject("result", Drop())
    with pytest.raises(InvalidInputError, match="FailJob happens on 'jobs_post' only"):
        standin.inject("results", FailJob())
    with pytest.raises(InvalidInputError, match="UsageLimit happens on"):
        RandomFaults(kinds={"usage": [UsageLimit()]})
    with pytest.raises(InvalidInputError, match="rate is 2"):
        RandomFaults(rate=2)


def test_random_faults_come_as_often_as_they_should_and_again_with_their_seed() -> None:
    kinds = {"usage": [Status(500), Status(503)], "results": [Drop()]}

    def draws(seed: int) -> list[Any]:
        faults = RandomFaults(seed, 0.2, kinds)
        return [faults.draw("usage") for _ in range(2000)]

    drawn = draws(1)
    counts = Counter(drawn)
    assert set(counts) == {None, Status(500), Status(503)}
    assert 340 < 2000 - counts[None] < 460  # 400 expected, 18 their standard deviation
    assert 130 < counts[Status(500)] < 270
    assert draws(1) == drawn
    assert draws(2) != drawn
    assert RandomFaults(1, 1.0, kinds).draw("jobs_post") is None


def test_wrong_keys_expired_tokens_and_unknown_paths(standin: StandIn) -> None:
    address = standin.environment()["IAM_URL"] + "/identity/token"
    assert requests.post(address, data={"apikey": "wrong"}, timeout=5).status_code == 400
    assert requests.post(address, data={"apikey": TOKEN}, timeout=5).json()["token_type"] == "Bearer"
    assert requests.get(standin.url + "/backends", timeout=5).status_code == 401
    standin.expired_tokens = True
    assert ask(standin, "GET", "/backends").status_code == 401
    standin.expired_tokens = False
    assert ask(standin, "GET", "/nowhere").status_code == 404
    assert ask(standin, "GET", "/backends/ibm_other/status").status_code == 404
    assert post(standin, backend="ibm_other").status_code == 404
    assert post(standin, session_id="none").status_code == 404
    assert ask(standin, "GET", "/jobs/none").status_code == 404


def test_reset_forgets_everything(standin: StandIn) -> None:
    ended(standin, post(standin).json()["id"])
    standin.inject("jobs_post", Drop(), times=5)
    standin.inject_random(RandomFaults(rate=1.0))
    standin.reset()
    assert (standin.jobs, standin.charged_seconds, sum(standin.requests.values())) == ([], 0.0, 0)
    assert ended(standin, post(standin).json()["id"])["status"] == "Completed"


def test_what_cannot_be_served() -> None:
    with pytest.raises(InvalidInputError, match="begins with ibm_"):
        StandIn("fake_manila", name="manila")
    with pytest.raises(InvalidInputError, match="ideal device"):
        StandIn("ideal")
    with pytest.raises(UnknownNameError):
        StandIn("fake_manilla")
    with StandIn("fake_manila") as running, pytest.raises(InvalidInputError, match="cannot be used"):
        StandIn("fake_manila", port=running.port).start()


def test_the_environment_is_put_back(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("QISKIT_IBM_TOKEN", "mine")
    monkeypatch.delenv("IAM_URL", raising=False)
    with standin.as_account():
        assert {name: os.environ[name] for name in standin.environment()} == standin.environment()
    assert os.environ["QISKIT_IBM_TOKEN"] == "mine"
    assert "IAM_URL" not in os.environ
    assert json.dumps(standin.environment()), "plain text, to be exported"
