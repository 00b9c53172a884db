"""Answers that are none: a paid job's result is stored only once it can be read, and what came instead is kept beside.

And which failed jobs are sent again: the row says so, not the words of the service.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp
from scripted import Job, ScriptedService, estimate, pub, runner
from test_faults import TIMES

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import JobError, ServiceError
from qhw_diffusion.execution import CompiledCircuit, Hardware, compile_circuit
from qhw_diffusion.hardware.cost import expected_cost
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_rows import AGAIN, write_row
from qhw_diffusion.hardware.report import export_rows
from qhw_diffusion.hardware.runner import Answer, open_runner
from qhw_diffusion.hardware.standin import Body, FailJob, StandIn

RAW = {"resilience_level": 0}
PROGRAMS = ("executor", "estimator")


def live(ledger: Ledger, pubs: Any = None, *, purpose: str = "evaluate", **settings: Any) -> Answer:
    given: dict[str, Any] = {"run": "test", "max_qpu_seconds": 100.0, "times": TIMES, "estimate": estimate}
    with open_runner("ibm_standin", ledger=ledger, **{**given, **settings}) as runner:
        return runner.run(pubs or [pub()], options=RAW, purpose=purpose)


def answer_to(pubs: Any, standin: StandIn, ledger: Ledger, program: str) -> str:
    """A real answer of the service, to other PUBs."""
    live(ledger, pubs, purpose="another job", program=program)
    result = standin.jobs[-1].result
    assert result is not None
    return result


NO_RESULT = {
    "a JSON object": '{"detail": "upstream timed out"}',
    "an empty object": "{}",
    "null": "null",
    "a list": "[1, 2]",
    "a number": "3",
    "a text": '"busy"',
    "a half-known schema": '{"schema_version": "v2.0", "data": []}',
    "no JSON": "<html>502 Bad Gateway</html>",
    "nothing": "",
}
OTHER = {
    "a PUB too few": [],
    "a PUB too many": [pub(), pub((0.3, 0.4))],
    "a row too few": [pub((0.1,))],
    "a row too many": [pub((0.1, 0.2, 0.3))],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "program"),
    [  # what the words of an answer mean does not depend on the program that was asked, what they hold does
        *((kind, "executor") for kind in NO_RESULT),
        ("a JSON object", "estimator"),
        *((kind, program) for kind in OTHER for program in PROGRAMS),
    ],
)
def test_what_is_no_answer_is_asked_for_again(standin: StandIn, ledger: Ledger, program: str, kind: str) -> None:
    """Once, and as often as one call asks: the row stays submitted, and the next call takes the paid result."""
    if kind == "a PUB too few":
        body, asked = answer_to([pub()], standin, ledger, program), [pub(), pub((0.3, 0.4))]
    elif kind in OTHER:
        body, asked = answer_to(OTHER[kind], standin, ledger, program), [pub()]
    else:
        body, asked = NO_RESULT[kind], [pub()]
    before = len(standin.jobs)
    standin.inject("results", Body(body))
    once = live(ledger, asked, program=program)
    assert [job.id for job in standin.jobs[before:]] == once.job_ids

    standin.inject("results", Body(body), times=TIMES.attempts)
    with pytest.raises(ServiceError, match=r"is no result .*the same command"):
        live(ledger, asked, purpose="again", program=program)
    (row,) = [row for row in ledger.rows() if row.purpose == "again"]
    assert (row.state, row.job_id) == ("submitted", standin.jobs[-1].id)
    kept = [path.read_bytes() for path in (ledger.folder / "results").glob(f"{row.key}.unreadable-*")]
    assert kept == [body.encode()], "the bytes that came, once"
    again = live(ledger, asked, purpose="again", program=program)
    assert again.job_ids == [standin.jobs[-1].id]
    assert len(standin.jobs) == before + 2, "each paid once"
    assert ledger.spent() == standin.charged_seconds


def test_an_answer_stored_before_it_was_looked_at_is_fetched_again(standin: StandIn, ledger: Ledger) -> None:
    """A ledger of an earlier version of this package may say done and hold no result."""
    live(ledger)
    (row,) = ledger.rows()
    (ledger.folder / str(row.result_file)).unlink()
    ledger.refetch(row.key)
    ledger.done(row.key, '{"detail": "upstream timed out"}', row.qpu_seconds)
    assert live(ledger).job_ids == [standin.jobs[0].id]
    assert len(standin.jobs) == 1
    assert ledger.rows()[0].state == "done"
    assert list((ledger.folder / "results").glob("*.damaged")), "what was there is kept"


REASONS = ["lost contact with the control system", "cancelled readout of qubit 3", "not sent to the QPU in time",
           "refused by the controller", "lost: x", "cancelled: x", "not sent: x", "refused: x", ""]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("reason", REASONS)
def test_a_job_that_failed_is_not_sent_again_whatever_the_service_says(
    standin: StandIn, ledger: Ledger, reason: str
) -> None:
    standin.inject("jobs_post", FailJob(reason, code=0, seconds=7.0))
    for _ in range(2):  # sent once, and then told again
        with pytest.raises(JobError, match="--retry-failed"):
            live(ledger)
    assert (len(standin.jobs), standin.charged_seconds) == (1, 7.0)
    assert live(ledger, retry_failed=True).job_ids == [standin.jobs[1].id]
    assert ledger.rows()[0].attempt == 2


def test_what_an_attempt_allows_does_not_go_over_to_the_next(ledger: Ledger) -> None:
    """Cancelled, sent again by itself, then failed on the device: the row says of the last attempt alone."""
    service = ScriptedService(new_job=lambda job: setattr(job, "state", "CANCELLED"))
    with pytest.raises(JobError, match="was cancelled"):
        runner(service, ledger).run([pub()])

    def fail(job: Job) -> None:
        job.state, job.reason = "ERROR", "the control system failed"

    service.new_job = fail
    for _ in range(2):
        with pytest.raises(JobError, match="control system failed"):
            runner(service, ledger).run([pub()])
    assert len(service.jobs) == 2


@pytest.mark.parametrize(("job_id", "jobs"), [("job-0", 0), (None, 1)])
def test_rows_of_ledgers_without_the_flag(ledger: Ledger, job_id: str | None, jobs: int) -> None:
    """Without a job id nothing ever ran; with one the row's words are the service's, and prove nothing."""
    service = ScriptedService()
    service.on_submit = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        runner(service, ledger).run([pub()])
    (row,) = ledger.rows()
    if job_id is not None:
        ledger.submitted(row.key, job_id)
    failed = ledger.failed(row.key, "cancelled: by hand", qpu_seconds=2.0 if job_id else None)
    old = {name: value for name, value in failed.summary.items() if name != AGAIN}
    with ledger._file.writing() as connection:
        write_row(connection, replace(failed, summary=old))
    if jobs:
        runner(service, ledger).run([pub()])
    else:
        with pytest.raises(JobError, match="--retry-failed"):
            runner(service, ledger).run([pub()])
    assert len(service.jobs) == jobs


@pytest.mark.slow
@pytest.mark.parametrize("shots", [50, 1000, 4096])
@pytest.mark.parametrize("level", [None, 0, 1, 2])
def test_the_ledger_says_what_the_service_executed(
    standin: StandIn, ledger: Ledger, level: int | None, shots: int
) -> None:
    """Circuits and shots of the client's own mitigation included; without a level the client's own default is 1."""
    options = {} if level is None else {"resilience_level": level}
    asked = [pub(shots=shots), pub((0.3,), shots)]  # 3 rows in 2 bases
    with open_runner(
        "ibm_standin", ledger=ledger, run="test", max_qpu_seconds=1e4, times=TIMES, estimate=estimate
    ) as runner:
        runner.run(asked, options=options)
    (row,) = ledger.rows()
    assert row.circuits * row.shots == standin.jobs[0].executions
    cost = expected_cost(asked, Device.load("fake_manila"), resilience_level=1 if level is None else level)
    assert (cost.circuits, cost.shots) == (row.circuits, row.shots)
    circuits = {0: 6, 1: 7, 2: 19}[1 if level is None else level]
    assert (row.circuits, row.shots >= shots) == (circuits, True)


def compiled_for(standin: StandIn) -> CompiledCircuit:
    angle = Parameter("a")
    circuit = QuantumCircuit(2)
    circuit.rx(angle, 0)
    circuit.cx(0, 1)
    zs = [SparsePauliOp("IZ"), SparsePauliOp("ZI")]
    return compile_circuit(circuit, Device.load(standin.name), inputs=[angle], weights=[], observables=zs)


@pytest.mark.slow
def test_infinite_standard_errors_of_the_client_are_kept(
    standin: StandIn, ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its extrapolation gives some at few shots: said before a job is sent, and the paid values come back."""
    compiled, rows = compiled_for(standin), torch.linspace(0, math.pi, 24)[:, None]
    infinite = 0
    with open_runner("ibm_standin", ledger=ledger, run="test", max_qpu_seconds=1e4, times=TIMES) as runner:
        for attempt in range(2):
            told_before = len(standin.jobs)
            engine = Hardware(runner, shots=50, options={"resilience_level": 2}, purpose=str(attempt))
            first = engine.estimate(compiled, rows)
            said = capsys.readouterr().err
            assert ("infinite standard error" in said) == (told_before == 0), "once"
            again = engine.estimate(compiled, rows)
            assert torch.equal(again.values, first.values)
            assert torch.equal(again.std_errors, first.std_errors)
            assert bool(first.values.isfinite().all())
            assert not bool(first.std_errors.isnan().any())
            infinite += int(first.std_errors.isinf().sum())
    assert infinite > 0, "too few shots for none"
    assert len(standin.jobs) == 2
    for ending, count in ((".csv", lambda text: text.count(",inf,")), (".json", lambda text: text.count('"inf"'))):
        text = export_rows(ledger, ledger.rows(), tmp_path / f"all{ending}").read_text()
        assert count(text) == infinite
    json.loads(text, parse_constant=pytest.fail)  # strict: no Infinity


@pytest.mark.parametrize("error", [np.inf, np.nan])
def test_standard_errors_that_nobody_knows_are_infinite(standin: StandIn, ledger: Ledger, error: float) -> None:
    compiled = compiled_for(standin)
    with open_runner("ibm_standin", ledger=ledger, run="test", max_qpu_seconds=1e4, times=TIMES) as runner:
        decode = runner.service.decode

        def spoiled(raw: str) -> Any:
            measured = decode(raw)
            measured[0][1][0, 1] = error
            return measured

        runner.service.decode = spoiled  # type: ignore[method-assign]
        estimate = Hardware(runner, shots=100).estimate(compiled, torch.tensor([[0.1], [0.2]]))
    assert estimate.std_errors.isinf().tolist() == [[False, False], [True, False]]
    assert bool(estimate.values.isfinite().all())
