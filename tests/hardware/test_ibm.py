"""The adapter to the real client, against the stand-in: both programs, tags, limits, modes, offline decoding."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
from scripted import pub
from test_faults import TIMES, assert_right, live

from qhw_diffusion.errors import BudgetError, DamagedFileError, InvalidInputError, JobError
from qhw_diffusion.hardware.ibm import IBMService, decode
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.service import Limits, Pub
from qhw_diffusion.hardware.standin import TOKEN, Delay, StandIn

RAW = {"resilience_level": 0}


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn("fake_manila", seed=2, seconds_per_job=1.0) as running, running.as_account():
        yield running


@pytest.mark.parametrize("program", ["executor", "estimator"])
def test_both_programs_give_their_shots_and_decode_offline(standin: StandIn, ledger: Ledger, program: str) -> None:
    pubs = [pub((0.1, 0.9), shots=1000), pub((0.4,), shots=1000)]
    with live(ledger, program=program) as mine:
        answer = mine.run(pubs, options=RAW)
    assert_right(answer)
    assert (answer.shots, [v.shape for v in answer.values]) == ([1000, 1000], [(2, 2), (2, 1)])
    (job,) = standin.jobs
    assert (job.program, job.limit_seconds) == (program, 50)
    (row,) = ledger.rows()
    before = dict(standin.requests)
    for (values, errors, shots), value, error in zip(
        decode(ledger.result(row.key)), answer.values, answer.std_errors, strict=True
    ):
        np.testing.assert_array_equal(values, value)
        np.testing.assert_array_equal(errors, error)
        assert shots == 1000
    assert dict(standin.requests) == before


def test_tags_limits_and_batch_reach_the_service(standin: StandIn, ledger: Ledger) -> None:
    with live(ledger) as mine:
        mine.run([pub()], options=RAW)
        mine.run([pub()], options=RAW, purpose="second")
        assert mine.service.find("qhw")[0] == standin.jobs[0].id, "oldest first"
    first, second = standin.jobs
    (row, _) = ledger.rows()
    own = f"q-{ledger.id[:8]}-{row.key[:16]}"
    assert list(first.tags) == ["qhw", "run-test", own, f"{own}-1"]
    assert (first.limit_seconds, second.limit_seconds) == (50, 49)
    assert first.session_id == second.session_id == row.session_id
    (batch,) = standin.records.sessions.values()
    assert (batch.mode, batch.accepting) == ("batch", False)


def test_job_mode_needs_no_batch(standin: StandIn, ledger: Ledger) -> None:
    with live(ledger, mode="job") as mine:
        mine.run([pub()], options=RAW)
    assert (standin.jobs[0].session_id, standin.records.sessions) == (None, {})


def test_a_session_has_a_maximum_time_and_the_ledger_counts_its_clock(ledger: Ledger) -> None:
    with (
        StandIn("fake_manila", seconds_per_job=0.01) as standin,
        standin.as_account(),
        live(ledger, mode="session", max_qpu_seconds=30) as mine,
    ):
        mine.run([pub()], options=RAW)
        time.sleep(0.3)
        mine.run([pub()], options=RAW, purpose="second")
        time.sleep(0.2)
        mine.close()
        (session,) = standin.records.sessions.values()
        assert (session.mode, session.max_seconds) == ("dedicated", 30)
        assert session.seconds > 0.5
        assert ledger.spent() == pytest.approx(session.seconds, abs=0.15)


def test_resilience_levels_are_passed_through(standin: StandIn, ledger: Ledger) -> None:
    """Level 1 of the executor mitigates readout on this side: the asymmetric bias goes away."""
    with live(ledger) as mine:
        raw = mine.run([pub(shots=4000)], options=RAW)
        mitigated = mine.run([pub(shots=4000)], options={"resilience_level": 1})
    theta = pub().values[:, 0]
    true = -np.cos(theta)
    assert np.abs(mitigated.values[0][0] - true).max() < 6 * mitigated.std_errors[0].max() + 0.01
    assert np.abs(raw.values[0][0] - true).max() > 0.05


def test_ctrl_c_asks_the_service_to_cancel(
    standin: StandIn, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    standin.inject("jobs_post", Delay(30.0))
    with live(ledger) as mine:
        status = mine.service.status
        seen: list[str] = []

        def interrupted(job_id: str) -> Any:
            if seen:
                raise KeyboardInterrupt
            seen.append(job_id)
            return status(job_id)

        mine.service.status = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            mine.run([pub()], options=RAW)
    assert [job.state for job in standin.jobs] == ["Cancelled"]
    assert ledger.rows()[0].state == "submitted", "cancelled is what the service says, later"
    assert "asked ibm_standin to cancel" in capsys.readouterr().err
    with live(ledger) as mine:
        assert_right(mine.run([pub()], options=RAW))
    assert [job.state for job in standin.jobs] == ["Cancelled", "Completed"]


def test_two_workers_with_one_ledger_run_a_job_once(standin: StandIn, tmp_path: Path) -> None:
    answers: list[Any] = []

    def work() -> None:
        with Ledger.open(tmp_path / "shared") as ledger, live(ledger) as mine:
            answers.append(mine.run([pub()], options=RAW))

    Ledger.open(tmp_path / "shared").close()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(standin.jobs) == 1
    np.testing.assert_array_equal(answers[0].values[0], answers[1].values[0])
    assert sorted(answer.reused for answer in answers) == [0, 1]


def test_estimates_and_the_default_cap_on_a_served_device(standin: StandIn, ledger: Ledger) -> None:
    with live(ledger, max_qpu_seconds=None) as mine, pytest.raises(BudgetError, match="there is no cap"):
        mine.run([pub()], options=RAW)
    with live(ledger, estimate=None) as mine:
        mine.run([pub(shots=1000)], options=RAW)
        first = ledger.rows()[0]
        assert 2 < first.estimate_seconds < 4
        mine.run([pub(shots=1000)], options=RAW, purpose="second")
    # the ledger's history: one second measured
    assert ledger.rows()[1].estimate_seconds == pytest.approx(1.0)


def test_circuits_that_do_not_fit_are_refused_before_anything_is_sent(standin: StandIn) -> None:
    service = IBMService("ibm_standin", times=TIMES)
    wide = QuantumCircuit(6)
    observable = (SparsePauliOp("Z" * 6),)
    with pytest.raises(InvalidInputError, match=r"the circuit has 6 qubits, ibm_standin has 5"):
        service.check([Pub(wide, observable, (), np.zeros((1, 0)), 0.1)], {})
    foreign = QuantumCircuit(5)
    foreign.ecr(0, 1)
    with pytest.raises(InvalidInputError, match=r"does not fit ibm_standin.*Compile it"):
        service.check([Pub(foreign, (SparsePauliOp("Z" * 5),), (), np.zeros((1, 0)), 0.1)], {})
    dynamic = QuantumCircuit(5, 1)
    dynamic.measure(0, 0)
    with dynamic.if_test((dynamic.clbits[0], 1)):
        dynamic.x(1)
    with pytest.raises(InvalidInputError, match=r"has if_else, and the client's Estimator takes no control flow"):
        service.check([Pub(dynamic, (SparsePauliOp("Z" * 5),), (), np.zeros((1, 0)), 0.1)], {})
    with pytest.raises(InvalidInputError, match=r"client refuses these options.*no_such_option"):
        service.check([pub()], {"no_such_option": 1})
    with pytest.raises(InvalidInputError, match="program is 'other'"):
        IBMService("ibm_standin", program="other")
    assert standin.jobs == []


def test_jobs_and_states_of_the_service(standin: StandIn) -> None:
    service = IBMService("ibm_standin", times=TIMES)
    assert service.status("nothing").name == "UNKNOWN"
    assert service.qpu_seconds("nothing") is None
    for ask in (service.raw, service.cancel):
        with pytest.raises(JobError, match=r"ibm_standin does not know the job, .*job nothing: another account"):
            ask("nothing")
    standin.inject("jobs_post", Delay(30.0))
    job_id = service.submit([pub()], RAW, ["tag-a"], Limits(mode="job"))
    assert service.status(job_id).name == "QUEUED"
    assert service.qpu_seconds(job_id) is None
    service.cancel(job_id)
    service.cancel(job_id)  # the service answers 409; that is no error
    state = service.status(job_id)
    assert (state.name, state.reason, state.final) == ("CANCELLED", "cancelled by the user", True)
    assert service.find("tag-a") == [job_id]
    assert service.find("tag-b") == []
    assert service.remaining_seconds() == 600.0


def test_no_key_in_a_message(standin: StandIn) -> None:
    service = IBMService("ibm_standin", times=TIMES)
    assert TOKEN not in service._clean(f"401 for apikey {TOKEN} and Bearer eyJhbGciOi.abc.def")
    assert "eyJ" not in service._clean("Authorization: Bearer eyJhbGciOi.abc.def")
    assert TOKEN not in repr(vars(service._transport))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": "v9"}', '{"a": 1}'])
def test_text_that_is_no_answer(text: str) -> None:
    with pytest.raises(DamagedFileError, match="no result of the client's primitives"):
        decode(text)
