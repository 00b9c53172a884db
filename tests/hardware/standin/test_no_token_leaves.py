"""A canary for a key: whole sessions against the stand-in, with faults that repeat the key, everything logged at its
lowest level; then every file that was written and everything that was said is searched for it, in all encodings.
"""

from __future__ import annotations

import base64
import gzip
import json
import logging
import os
import subprocess
import sys
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.cli import main
from qhw_diffusion.devices import Device, live_backend, take_snapshot
from qhw_diffusion.errors import AccountError, EngineError, InvalidInputError, JobError, LedgerError, QhwError
from qhw_diffusion.execution import Primitive, compile_circuit
from qhw_diffusion.execution.primitive import Hardware, runtime_estimator
from qhw_diffusion.experiment.page import Page as Report
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.report import export_rows
from qhw_diffusion.hardware.runner import open_runner
from qhw_diffusion.hardware.standin import CancelJob, FailJob, LostReply, StandIn, Status
from qhw_diffusion.hardware.standin.server import access_token
from qhw_diffusion.hardware.standin.service import INSTANCE
from qhw_diffusion.hardware.wait import Times
from qhw_diffusion.runs import RunFolder, atomic_write_json

CANARY = "Canary/0123456789+abcdefghij=klmnopqrstuvw"
FAST = Times(
    backoff=0.01, backoff_most=0.02, poll=0.01, poll_most=0.02, patience=0.2, grace=0.03, attempts=2, settle=0.1
)


def needles() -> set[bytes]:
    """Every form in which the canary, or an access token, could stand in a file."""
    header = access_token(1.0)["access_token"].split(".")[0]
    forms = {CANARY, urllib.parse.quote(CANARY, safe=""), urllib.parse.quote(CANARY), json.dumps(CANARY)[1:-1], header}
    data = {form.encode() for form in forms} | {CANARY.encode().hex().encode(), CANARY.encode("utf-16-le")}
    for before in range(3):  # what of base64 does not depend on the neighbours
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            data.add(encode(b"\0" * before + CANARY.encode())[4:-4])
    return data


def assert_clean(*shown: bytes | str, folder: Path | None = None) -> None:
    texts = {f"text {number}": s.encode() if isinstance(s, str) else s for number, s in enumerate(shown)}
    for path in () if folder is None else folder.rglob("*"):
        texts[f"{path} (name)"] = str(path).encode()
        if path.is_file():
            texts[str(path)] = path.read_bytes()
            if path.suffix == ".gz":
                texts[f"{path} unpacked"] = gzip.decompress(path.read_bytes())
    found = [(name, needle) for name, data in texts.items() for needle in needles() if needle in data]
    assert found == []


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A service that takes the canary for its key; an empty home and working folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    factory = logging.getLogRecordFactory()
    with StandIn("fake_manila", keys=(CANARY,), seconds_per_job=1.0) as served:
        for name, value in served.environment(CANARY).items():
            monkeypatch.setenv(name, value)
        yield served
    logging.setLogRecordFactory(factory)


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG)
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        for handler in logger.handlers:  # the client's own handler holds on to another test's stream
            if type(handler) is logging.StreamHandler:
                handler.stream = sys.stderr
    yield caplog
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def circuit_on(device: Device) -> Any:
    x = Parameter("x")
    circuit = QuantumCircuit(1)
    circuit.rx(x, 0)
    return compile_circuit(circuit, device, inputs=[x], weights=[], observables=[SparsePauliOp("Z")])


BASIC = base64.b64encode(b"apikey:" + CANARY.encode()).decode()
ECHO = f"the key {CANARY} of {BASIC} {urllib.parse.quote(CANARY, safe='')}"


@pytest.mark.slow
def test_a_session_with_faults_leaves_no_trace_of_the_key(
    standin: StandIn,
    everything_logged: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Jobs that succeed, fail, are refused, cancelled and lost, each with a reason that repeats the key."""
    compiled = circuit_on(Device.load("ibm_standin"))
    rows = torch.zeros(2, 1, dtype=torch.float64)
    told: list[str] = []
    with Ledger.open(tmp_path / "ledger") as ledger:
        faults: list[Callable[[], None]] = [
            lambda: standin.inject("jobs_post", Status(400, message=ECHO)),
            lambda: standin.inject("jobs_post", Status(403, message=ECHO)),
            lambda: standin.inject("jobs_post", Status(429, message=ECHO), times=99),
            lambda: standin.inject("jobs_post", Status(500, message=ECHO)),
            lambda: standin.inject("jobs_post", LostReply()),
            lambda: standin.inject("jobs_post", FailJob(ECHO)),
            lambda: standin.inject("jobs_post", CancelJob()),
            lambda: standin.inject("job_get", Status(500, message=ECHO), times=99),
            lambda: standin.inject("results", Status(404, message=ECHO), times=99),
            lambda: None,
        ]
        for number, inject in enumerate(faults):
            standin.reset()
            inject()
            with open_runner(
                "ibm_standin", ledger=ledger, run="canary", times=FAST, max_qpu_seconds=500, retry_failed=True
            ) as runner:
                try:
                    Hardware(runner, shots=16, purpose=f"fault {number}").estimate(compiled, rows)
                except QhwError as error:
                    told.append("".join(traceback.format_exception(error)))
        assert len(told) >= 5
        assert any("(token hidden)" in text for text in told)
        assert any("(token hidden)" in row.reason for row in ledger.rows())
        assert {"done", "failed"} <= {row.state for row in ledger.rows()}
        export_rows(ledger, ledger.rows(), tmp_path / "rows.json")
        export_rows(ledger, ledger.rows(), tmp_path / "rows.csv")
    take_snapshot("ibm_standin", tmp_path / "today.json.gz")
    assert everything_logged.text.count("(token hidden)") > 1  # the client does log what it was answered
    captured = capfd.readouterr()
    assert_clean(*told, everything_logged.text, captured.out, captured.err, folder=tmp_path)
    assert_clean(*(repr(vars(job)) for job in standin.jobs), repr(standin.requests), repr(standin.hits))


def test_a_client_made_from_a_token_of_its_own(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch, everything_logged: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The key is in no variable and no file: it becomes known with the client."""
    from qiskit_ibm_runtime import QiskitRuntimeService

    environment = standin.environment(CANARY)
    monkeypatch.delenv("QISKIT_IBM_TOKEN")
    client = QiskitRuntimeService(
        channel="ibm_quantum_platform", token=CANARY, url=environment["QISKIT_IBM_URL"], instance=INSTANCE
    )
    everything_logged.clear()
    standin.inject("configuration", Status(404, message=ECHO), times=9)
    with pytest.raises(AccountError) as caught:
        live_backend("ibm_standin", client)
    standin.reset()
    with (
        Ledger.open(tmp_path / "ledger") as ledger,
        open_runner("ibm_standin", ledger=ledger, run="r", times=FAST, max_qpu_seconds=9, client=client) as runner,
    ):
        compiled = circuit_on(Device(runner.service.snapshot().snapshot))
        standin.inject("jobs_post", FailJob(ECHO))
        with pytest.raises(JobError, match="token hidden") as failed:
            Hardware(runner, shots=16).estimate(compiled, torch.zeros(1, 1, dtype=torch.float64))
    told = ["".join(traceback.format_exception(error.value)) for error in (caught, failed)]
    assert "(token hidden)" in everything_logged.text
    assert_clean(*told, everything_logged.text, folder=tmp_path)


def test_an_answer_that_repeats_the_key_is_stored_without_it(standin: StandIn, tmp_path: Path) -> None:
    """And is decoded to the same values: nothing else of it is touched."""
    compiled = circuit_on(Device.load("ibm_standin"))
    work = standin.records.jobs
    with (
        Ledger.open(tmp_path / "ledger") as ledger,
        open_runner("ibm_standin", ledger=ledger, run="r", times=FAST, max_qpu_seconds=50) as runner,
    ):
        engine = Hardware(runner, shots=16)
        raw = runner.service.raw

        def echoing(job_id: str) -> str:
            document = json.loads(raw(job_id))
            return json.dumps({**document, "note": f"for {ECHO}"}) if isinstance(document, dict) else raw(job_id)

        runner.service.raw = echoing  # type: ignore[method-assign]
        first = engine.estimate(compiled, torch.zeros(1, 1, dtype=torch.float64))
        again = engine.estimate(compiled, torch.zeros(1, 1, dtype=torch.float64))
        assert torch.equal(first.values, again.values)
        assert "(token hidden)" in ledger.result(ledger.rows()[0].key)
    assert len(work) == 1
    assert_clean(folder=tmp_path)


def test_the_command_line_and_usage_errors(standin: StandIn, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["cost", f"folder-{CANARY}", "--device", "ibm_standin"]) == 2
    with pytest.raises(SystemExit):
        main(["devices", "--token", "abcDEF-1234567", f"--api-key={CANARY}"])
    captured = capfd.readouterr()
    assert "unrecognized arguments" in captured.err
    assert "abcDEF-1234567" not in captured.err
    assert_clean(captured.out, captured.err)


def test_run_folders_and_reports_hold_a_masked_command(standin: StandIn, tmp_path: Path) -> None:
    command = f"QISKIT_IBM_TOKEN=abcDEF-1234567 qhw demo --out {CANARY} --token abcDEF-1234567"
    run = RunFolder.create(tmp_path / "run", kind="demo", config={"note": CANARY}, command=command)
    atomic_write_json(tmp_path / "run" / "more.json", {"note": f"x{CANARY}y"})
    report = Report("Title")
    report.section("How").code(command, caption=f"with {CANARY}").text(command).table(["a"], [[command]])
    report.save(tmp_path / "run" / "report.html")
    assert "qhw demo --out" in run.manifest["command"]
    assert_clean(folder=tmp_path)
    for path in (tmp_path / "run").iterdir():
        assert b"abcDEF-1234567" not in path.read_bytes(), path


def test_the_ledger_refuses_names_with_a_credential(standin: StandIn, tmp_path: Path) -> None:
    wanted: dict[str, Any] = {
        "run": "r",
        "purpose": "p",
        "device": "d",
        "circuits": 1,
        "shots": 1,
        "estimate_seconds": 1.0,
    }
    with Ledger.open(tmp_path / "ledger") as ledger:
        for name in ("run", "purpose"):
            with pytest.raises(InvalidInputError, match="looks as if it held a credential") as caught:
                ledger.plan("a" * 64, **{**wanted, name: f"of {CANARY}"}, paid=False, summary={})
            assert_clean(str(caught.value))
        ledger.plan("a" * 64, **wanted, paid=False, summary={"note": CANARY})
        ledger.failed("a" * 64, f"refused: {ECHO}")
        with pytest.raises(LedgerError) as told:
            ledger.submitted("a" * 64, "job-1")
        assert_clean(str(told.value))
    assert_clean(folder=tmp_path)


def test_a_primitive_of_the_client_that_fails(standin: StandIn) -> None:
    """The engine on any primitive chains its error: masked, where it shows the key."""
    from qiskit_ibm_runtime.fake_provider import FakeManilaV2

    estimator = runtime_estimator(FakeManilaV2())

    def fail(pubs: Any) -> None:
        try:
            raise ConnectionError(f"Authorization: apikey {CANARY}")
        except ConnectionError as error:
            raise RuntimeError(ECHO) from error

    estimator.run = fail  # type: ignore[method-assign,assignment]
    with pytest.raises(EngineError) as caught:
        Primitive(estimator).estimate(circuit_on(Device.load("fake_manila")), torch.zeros(1, 1))
    text = "".join(traceback.format_exception(caught.value))
    assert "ConnectionError" in text
    assert_clean(text)


def test_an_error_nobody_expected_ends_the_command_with_a_masked_traceback(tmp_path: Path) -> None:
    code = (
        "import sys, qhw_diffusion.cli as cli\n"
        f"def broken(): raise KeyError('Bearer abcDEF-1234567 ' + {CANARY!r})\n"
        "cli.COMMANDS[('version',)] = ('t', broken)\n"
        "sys.argv = ['qhw', 'version']\n"
        "sys.exit(cli.main())\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "QISKIT_IBM_TOKEN": CANARY}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "KeyError" in done.stderr
    assert "abcDEF-1234567" not in done.stderr
    assert_clean(done.stdout, done.stderr)


def test_the_search_itself_finds_what_is_there(tmp_path: Path) -> None:
    """A search that cannot fail would prove nothing."""
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(base64.b64encode(b"xy" + CANARY.encode() + b"z")))
    with pytest.raises(AssertionError):
        assert_clean(folder=tmp_path)
    for text in (CANARY, urllib.parse.quote_plus(CANARY), BASIC):
        with pytest.raises(AssertionError):
            assert_clean(text)
