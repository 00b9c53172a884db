"""The client is killed (SIGKILL) at every moment of a job's life and started again: nothing lost, nothing paid twice.

What was accepted and charged is counted by the stand-in, which lives in this process and survives its clients.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed_client import MOMENTS, SHOTS
from scripted import exact, pub

from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.standin import Delay, LostReply, StandIn

CHARGE = 3.0
# What the ledger says after the kill; the job exists at the service from "accepted" on
STATES = {
    "before planned": None,
    "planned": "planned",
    "about to be sent": "planned",
    "batch opened": "planned",
    "accepted, reply not read": "planned",
    "accepted, id not noted": "planned",
    "submitted": "submitted",
    "answer fetched": "submitted",
    "answer on the disk, row not done": "submitted",
    "done": "done",
}


class Client:
    """The process of killed_client.py, which forks one client after the other."""

    def __init__(self, standin: StandIn, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed_client.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **standin.environment(), "HOME": str(home), "USAGE_DATA_OPT_OUT": "True"},
        )
        assert self._line() == "ready"

    def __call__(self, ledger: Path, stop: str | None = None, **settings: Any) -> dict[str, Any]:
        """One process: its answer if it was to end well, else None; killed where it was to be, and nowhere else."""
        (told,) = self.all(ledger, stop=stop, **settings)
        assert told["error"] is None, told["error"]
        assert told["signal"] == (0 if stop is None else 9)
        return told["answer"]

    def all(self, ledger: Path, **settings: Any) -> list[dict[str, Any]]:
        """What became of several processes at once."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"ledger": str(ledger), "stop": None, **settings}) + "\n")
        self.process.stdin.flush()
        told: list[dict[str, Any]] = json.loads(self._line())
        return told

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    with StandIn("fake_manila", seconds_per_job=CHARGE) as serving:
        yield serving


@pytest.fixture(scope="module")
def client(standin: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    started = Client(standin, tmp_path_factory.mktemp("home"))
    yield started
    started.close()


@pytest.fixture(autouse=True)
def anew(standin: StandIn) -> None:
    standin.reset()


def state_of(ledger: Path) -> str | None:
    with Ledger.open(ledger) as opened:
        rows = opened.rows()
    return rows[0].state if rows else None


def test_every_moment_has_an_expectation() -> None:
    assert set(STATES) == set(MOMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [False, True], ids=["estimator", "sampler"])
@pytest.mark.parametrize("moment", list(STATES))
def test_killed_and_started_again(standin: StandIn, client: Client, tmp_path: Path, moment: str, sampler: bool) -> None:
    ledger = tmp_path / "ledger"
    client(ledger, moment, sampler=sampler)
    assert state_of(ledger) == STATES[moment]
    accepted = len(standin.jobs)
    assert accepted == (0 if list(STATES).index(moment) < list(STATES).index("accepted, reply not read") else 1)
    answer = client(ledger, sampler=sampler)
    (job,) = standin.jobs
    assert (job.state, answer["jobs"]) == ("Completed", [job.id])
    assert answer["reused"] == (1 if moment == "done" else 0)
    assert (answer["seconds"], standin.charged_seconds) == (CHARGE, CHARGE)
    wanted = exact(pub((0.1,), SHOTS))[: 1 if sampler else 2]  # a Sampler's circuit is measured along Z
    np.testing.assert_allclose(answer["values"][0], wanted, atol=0.6)
    again = client(ledger, sampler=sampler)
    assert (again["values"], again["reused"], len(standin.jobs)) == (answer["values"], 1, 1)


def test_killed_with_a_measurement_for_mid_circuit(standin: StandIn, client: Client, tmp_path: Path) -> None:
    """Found again by the same key; a device without the instruction is sent nothing."""
    ledger = tmp_path / "ledger"
    (told,) = client.all(ledger, sampler=True, by="measure_2")
    assert "measure_2" in told["error"]
    assert "does not fit ibm_standin" in told["error"]
    before = standin.device
    standin.recalibrate("fake_kingston")
    try:
        client(ledger, "accepted, id not noted", sampler=True, by="measure_2")
        assert (state_of(ledger), len(standin.jobs)) == ("planned", 1)
        answer = client(ledger, sampler=True, by="measure_2")
    finally:
        standin.recalibrate(before)
    assert answer["jobs"] == [standin.jobs[0].id]
    assert (len(standin.jobs), standin.charged_seconds) == (1, CHARGE)
    np.testing.assert_allclose(answer["values"][0], exact(pub((0.1,), SHOTS))[:1], atol=0.6)


def test_killed_while_it_looks_for_a_job_whose_reply_was_lost(standin: StandIn, client: Client, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    standin.inject("jobs_post", LostReply())
    client(ledger, "accepted, id not noted")
    assert (state_of(ledger), len(standin.jobs)) == ("planned", 1)
    assert client(ledger)["jobs"] == [standin.jobs[0].id]
    assert (len(standin.jobs), standin.charged_seconds) == (1, CHARGE)


def test_killed_again_and_again(standin: StandIn, client: Client, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    for moment in STATES:
        client(ledger, moment)
    assert client(ledger)["reused"] == 1
    assert (len(standin.jobs), standin.charged_seconds) == (1, CHARGE)


@pytest.mark.parametrize("program", ["estimator", "sampler"])
@pytest.mark.parametrize(
    ("moment", "after"),
    [("accepted, reply not read", 1), ("submitted", 1), ("answer fetched", 1), ("answer on the disk, row not done", 2)],
)
def test_killed_among_several_jobs(
    standin: StandIn, client: Client, tmp_path: Path, moment: str, after: int, program: str
) -> None:
    ledger = tmp_path / "ledger"
    work = {"jobs": 3, "program": program, "sampler": program == "sampler"}
    client(ledger, moment, after=after, **work)
    answer = client(ledger, **work)
    assert answer["jobs"] == [job.id for job in standin.jobs]
    assert [job.state for job in standin.jobs] == ["Completed"] * 3
    assert (answer["seconds"], standin.charged_seconds) == (3 * CHARGE, 3 * CHARGE)
    assert answer["reused"] == after if "answer" in moment else answer["reused"] == 0


@pytest.mark.parametrize("sampler", [False, True], ids=["estimator", "sampler"])
def test_several_processes_with_the_same_work_run_it_once(
    standin: StandIn, client: Client, tmp_path: Path, sampler: bool
) -> None:
    told = client.all(tmp_path / "ledger", processes=3, jobs=2, sampler=sampler)
    assert [entry["error"] for entry in told] == [None] * 3
    assert len({json.dumps(entry["answer"]["values"]) for entry in told}) == 1
    assert sorted(entry["answer"]["reused"] for entry in told) == [0, 2, 2]
    assert (len(standin.jobs), standin.charged_seconds) == (2, 2 * CHARGE)


def test_ctrl_c_asks_for_cancellation_and_the_next_call_pays_once(
    standin: StandIn, client: Client, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    standin.inject("jobs_post", Delay(60))
    (told,) = client.all(ledger, stop="submitted", signal=int(signal.SIGINT))
    assert told["error"].startswith("KeyboardInterrupt")
    assert (state_of(ledger), [job.state for job in standin.jobs]) == ("submitted", ["Cancelled"])
    assert client(ledger)["jobs"] == [standin.jobs[1].id], "sent again, since it never ran"
    assert ([job.seconds for job in standin.jobs], standin.charged_seconds) == ([0.0, CHARGE], CHARGE)


@pytest.mark.slow
def test_ctrl_c_too_late_keeps_the_answer(standin: StandIn, client: Client, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    (told,) = client.all(ledger, stop="answer fetched", signal=int(signal.SIGINT))
    assert told["error"].startswith("KeyboardInterrupt")
    assert client(ledger)["jobs"] == [standin.jobs[0].id]
    assert (len(standin.jobs), standin.charged_seconds) == (1, CHARGE)
