"""What is kept of each job, against the server's own record: in the row, in both exports, for people."""

from __future__ import annotations

import csv
import json
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from scripted import FAST, ScriptedService, pub
from scripted import estimate as scripted_estimate
from test_faults import TIMES

import qhw_diffusion as qhw
from qhw_diffusion.devices import Device
from qhw_diffusion.devices.snapshot import canonical_json
from qhw_diffusion.errors import JobError, ServiceError
from qhw_diffusion.hardware.keys import job_key
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_rows import SENT, STATED
from qhw_diffusion.hardware.provenance import COSTS, NOTED, calibration_file, record
from qhw_diffusion.hardware.report import export_rows, show_text
from qhw_diffusion.hardware.runner import Runner, open_runner
from qhw_diffusion.hardware.standin import INSTANCE, TOKEN, ExpireSession, FailJob, LostReply, StandIn, Status

RAW = {"resilience_level": 0}
KEY = "21ed10cba790bd730a583892d55113803980e935bb1764f41be8b5b2095fc26c"


@pytest.fixture(autouse=True)
def without_usage_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_DATA_OPT_OUT", "True")


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn("fake_manila", seed=2, seconds_per_job=1.0) as running, running.as_account():
        yield running


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger") as opened:
        yield opened


def live(ledger: Ledger, **settings: Any) -> Runner:
    given: dict[str, Any] = {"run": "test", "max_qpu_seconds": 50.0, "times": TIMES}
    return open_runner("ibm_standin", ledger=ledger, **{**given, **settings})


def scripted(service: ScriptedService, ledger: Ledger, **settings: Any) -> Runner:
    given = {"run": "test", "max_qpu_seconds": 100.0, "times": FAST, "estimate": scripted_estimate}
    return Runner(service, ledger, **{**given, **settings})


def on_another_day(device: Device, date: str) -> Device:
    """The device with another T1 and this date."""
    properties = json.loads(device.snapshot.properties)
    properties["last_update_date"] = date
    properties["qubits"][0][0]["value"] *= 0.9
    provenance = {**device.snapshot.provenance, "date": date}
    return Device(replace(device.snapshot, properties=canonical_json(properties), provenance=provenance))


def only(ledger: Ledger) -> dict[str, Any]:
    (row,) = ledger.rows()
    return record(row)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


# -- against the server's record ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["executor", "estimator"])
def test_every_column_is_what_the_server_has(standin: StandIn, ledger: Ledger, tmp_path: Path, program: str) -> None:
    pytest.importorskip("mitiq")  # whose version is among the columns
    standin.recalibrate(on_another_day(standin.device, "2026-11-20T08:00:00Z"))
    before = datetime.now(UTC)
    options: dict[str, Any] = (
        {"resilience_level": 1, "execution": {"rep_delay": 2e-4}} if program == "executor" else RAW
    )
    asked = [
        replace(pub(shots=400), label="folded, scale 3", layout=(0,)),
        replace(pub((0.3,), shots=400), layout=(0,)),
    ]
    with live(ledger, program=program) as mine:
        mine.run(asked, options=options, packages=["mitiq"])
    (job,), (session,) = standin.jobs, standin.records.sessions.values()
    told = only(ledger)
    assert (told["program"], told["mode"], told["session_id"]) == (job.program, "batch", session.id)
    assert (told["created"], told["started"], told["finished"]) == (job.created, job.started, job.finished)
    assert before.timestamp() - 1e-3 <= moment(told["created"]).timestamp() <= moment(told["started"]).timestamp()
    assert moment(told["started"]) <= moment(told["finished"]) <= datetime.now(UTC)
    assert told["executions"] == job.executions
    assert told["charged_seconds"] == job.seconds == 1.0
    assert told["pubs"] == ["folded, scale 3", "circuit"]
    assert told["layout"] == [[0], [0]]
    versions = {name: metadata.version(name) for name in ("qiskit", "qiskit-ibm-runtime", "mitiq")}
    assert told["packages"] == {"qhw-diffusion": qhw.__version__, "python": platform.python_version(), **versions}
    properties = json.loads(standin.device.snapshot.properties)
    assert told["backend_version"] == properties["backend_version"]
    assert moment(told["calibration_date"]) == moment(properties["last_update_date"])
    assert told["plan"] == "plan", "which is what the client calls it here"
    assert len(told["instance"]) == 16
    if program == "executor":
        assert told["executions"] == told["circuits"] * told["shots"] > 6 * 400, "the client's calibration is in both"
        assert told["rep_delay_seconds"] == 2e-4
        assert told["options"]["resilience"]["measure_mitigation"] is True, "resolved by the client"
        assert told["options"]["twirling"]["enable_measure"] is True
        assert told["options"]["dynamical_decoupling"]["enable"] is False
    else:
        usual = json.loads(standin.device.snapshot.configuration)["default_rep_delay"] * 1e-6
        assert told["rep_delay_seconds"] == pytest.approx(usual)
        assert told["options"]["resilience_level"] == 0
    text = json.dumps(told)
    assert not any(secret in text for secret in (TOKEN, INSTANCE, "job_tags"))
    kept = Device.load(calibration_file(ledger.folder, told["snapshot"]))
    assert kept.fingerprint == told["snapshot"]
    assert kept.relaxation_times(0) == standin.device.relaxation_times(0)
    for name in ("jobs.csv", "jobs.json"):
        export_rows(ledger, ledger.rows(), tmp_path / name)
    (entry,) = json.loads((tmp_path / "jobs.json").read_text())
    assert {name: entry[name] for name in told} == told
    lines = list(csv.DictReader((tmp_path / "jobs.csv").open()))
    assert len(lines) == 2 * 2 + 2 * 1
    assert [line["pubs"] for line in lines] == ["folded, scale 3"] * 4 + ["circuit"] * 2
    for line in lines:
        assert json.loads(line["layout"]) == [0]
        for name in NOTED:
            if name not in ("layout", "pubs", "options", "packages", "reused_by"):
                assert line[name] == ("" if told[name] is None else str(told[name])), name
        assert json.loads(line["options"]) == told["options"]
        assert json.loads(line["packages"]) == told["packages"]


def test_people_can_read_it(standin: StandIn, ledger: Ledger) -> None:
    with live(ledger, mode="job") as mine:
        mine.run([replace(pub(), label="twirled, 1 of 2", layout=(0,))], options=RAW)
    with live(ledger, run="later") as mine:
        mine.run([replace(pub(), label="twirled, 1 of 2", layout=(0,))], options=RAW)
    (row,) = ledger.rows()
    text = show_text(ledger, row)
    lines = {line[: len("circuits × shots")].strip(): line[len("circuits × shots") + 2 :] for line in text.splitlines()}
    assert lines["mode"] == "job"
    assert lines["finished"] == standin.jobs[0].finished
    assert lines["PUB 0"] == "twirled, 1 of 2"
    assert lines["physical qubits"] == "0"
    assert lines["repetition delay"].endswith(" µs")
    assert f"qiskit {metadata.version('qiskit')}" in lines["packages"]
    assert lines["reused by"].startswith("later, 20")
    assert str(calibration_file(ledger.folder, record(row)["snapshot"])) in lines["calibration"]
    assert SENT not in lines, "nothing is shown twice"


def test_a_session_that_became_a_batch_says_so(ledger: Ledger) -> None:
    """The session is closed twice; its jobs say that they were in a session, the last one in which batch it was."""
    with StandIn("fake_manila", seconds_per_job=0.01) as standin, standin.as_account():
        with live(ledger, mode="session", max_qpu_seconds=30) as mine:
            mine.run([pub()], options=RAW)
            standin.inject("jobs_post", ExpireSession(), times=2)
            mine.run([pub()], options=RAW, purpose="second")
        told = [record(row) for row in ledger.rows()]
        assert [one["mode"] for one in told] == ["session", "batch"]
        assert [one["session_id"] for one in told] == [job.session_id for job in standin.jobs]
        modes = [standin.records.sessions[str(job.session_id)].mode for job in standin.jobs]
        assert modes == ["dedicated", "batch"]


def test_a_job_taken_over_says_what_it_really_ran_in(standin: StandIn, ledger: Ledger) -> None:
    """Its process died before it knew the job's id; the next one works in another mode."""

    class KilledError(BaseException):
        pass

    mine = live(ledger, mode="batch")
    submit = mine.service.submit

    def die(*arguments: Any) -> str:
        submit(*arguments)
        raise KilledError

    mine.service.submit = die  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        mine.run([pub()], options=RAW)
    with live(ledger, mode="job") as other:
        other.run([pub()], options=RAW)
    (job,) = standin.jobs
    told = only(ledger)
    assert (told["mode"], told["session_id"], told["finished"]) == ("batch", job.session_id, job.finished)


def test_a_failed_attempt_keeps_its_own_times(standin: StandIn, ledger: Ledger) -> None:
    standin.inject("jobs_post", FailJob(seconds=4.0))
    with live(ledger) as mine, pytest.raises(JobError):
        mine.run([pub()], options=RAW)
    assert only(ledger)["finished"] == standin.jobs[0].finished
    with live(ledger, retry_failed=True) as mine:
        mine.run([pub()], options=RAW)
    failed, done = standin.jobs
    told = only(ledger)
    assert told["finished"] == done.finished
    assert told["earlier"][0][STATED]["finished"] == failed.finished
    assert SENT in told["earlier"][0]


def test_times_that_are_stated_later_are_noted_later(
    standin: StandIn, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qhw_diffusion.hardware.standin import JobRecord

    whole, stated = JobRecord.metrics, False
    monkeypatch.setattr(
        JobRecord, "metrics", lambda job: whole(job) if stated else {"usage": {"status": "pending"}, "timestamps": None}
    )
    with live(ledger, times=replace(TIMES, settle=0.0)) as mine:
        mine.run([pub()], options=RAW)
        told = only(ledger)
        assert (told["state"], told["finished"], told["charged_seconds"]) == ("done", None, None)
        stated = True
        assert mine.read_charges()
    assert only(ledger)["finished"] == standin.jobs[0].finished


def test_a_silent_service_costs_no_result(standin: StandIn, ledger: Ledger) -> None:
    """Metrics are never answered: the result is there, and what is known is noted."""
    standin.inject("metrics", Status(500), times=10**6)
    with live(ledger, times=replace(TIMES, settle=0.0)) as mine:
        answer = mine.run([pub()], options=RAW)
    told = only(ledger)
    assert (told["state"], told["mode"], told["finished"]) == ("done", "batch", None)
    assert told["executions"] == told["circuits"] * told["shots"]
    assert answer.values[0].shape == (2, 2)


@pytest.mark.parametrize(
    "metrics",
    [{"timestamps": 5}, {"timestamps": {"created": 1, "running": None, "finished": "x" * 500}}, {"executions": "many"}],
)
def test_nonsense_is_not_noted(
    standin: StandIn, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, metrics: Mapping[str, Any]
) -> None:
    from qhw_diffusion.hardware.standin import JobRecord

    whole = JobRecord.metrics
    monkeypatch.setattr(JobRecord, "metrics", lambda job: {"usage": whole(job)["usage"], **metrics})
    with live(ledger) as mine:
        mine.run([pub()], options=RAW)
    told = only(ledger)
    assert (told["state"], told["charged_seconds"]) == ("done", 1.0)
    assert [told[name] for name in ("created", "started", "finished")] == [None] * 3
    assert told["executions"] == told["circuits"] * told["shots"]


# -- calibrations ------------------------------------------------------------------------------------------------------


def test_the_calibration_is_read_for_every_call_and_a_change_is_told(
    standin: StandIn, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice under one, once under another in the same process, once under a third in the next process."""
    days = ["2026-11-20T08:00:00Z", "2026-11-21T08:00:00Z", "2026-11-22T08:00:00Z"]
    standin.recalibrate(on_another_day(standin.device, days[0]))
    with live(ledger) as mine:
        mine.run([pub()], options=RAW)
        asked = standin.requests["properties"]
        mine.run([pub()], options=RAW, purpose="second")
        assert standin.requests["properties"] == asked + 1, "one question a call"
        mine.run([pub()], options=RAW, purpose="second")
        assert standin.requests["properties"] == asked + 1, "none where nothing is sent"
        assert "calibrated" not in capsys.readouterr().err
        standin.recalibrate(on_another_day(standin.device, days[1]))
        mine.run([pub()], options=RAW, purpose="third")
        said = capsys.readouterr().err
        assert "ibm_standin has been calibrated since the last job of test" in said
        assert days[0][:10] in said
        assert days[1][:10] in said
    with live(ledger) as mine:
        mine.run([pub()], options=RAW, purpose="fourth")
        assert "calibrated" not in capsys.readouterr().err
    standin.recalibrate(on_another_day(standin.device, days[2]))
    with live(ledger) as mine:
        mine.run([pub()], options=RAW, purpose="fifth")
        said = capsys.readouterr().err
        assert days[1][:10] in said
        assert days[2][:10] in said
    told = [record(row) for row in ledger.rows()]
    assert [moment(one["calibration_date"]) for one in told] == [moment(days[at]) for at in (0, 0, 1, 1, 2)]
    files = sorted(path.name for path in (ledger.folder / "calibrations").iterdir())
    assert files == sorted({f"{one['snapshot']}.json.gz" for one in told})
    assert len(files) == 3


def test_the_estimate_is_made_with_the_calibration_of_now(standin: StandIn, ledger: Ledger) -> None:
    """Longer readout from one call to the next costs more."""
    with live(ledger) as mine:
        mine.run([pub()], options=RAW)
        properties = json.loads(standin.device.snapshot.properties)
        properties["backend_version"] = "9.9.9"
        for qubit in properties["qubits"]:
            for entry in qubit:
                if entry["name"] == "readout_length":
                    entry["value"] *= 1000
        snapshot = replace(standin.device.snapshot, properties=canonical_json(properties))
        standin.recalibrate(Device(snapshot))
        mine.run([pub()], options=RAW, purpose="second")
    first, second = (row.summary["formula_seconds"] for row in ledger.rows())
    assert second > first + 1
    assert [record(row)["backend_version"] for row in ledger.rows()][1] == "9.9.9"


def test_a_calibration_that_cannot_be_read_stops_nothing(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    service = ScriptedService()
    mine = Runner(service, ledger, run="test", max_qpu_seconds=100.0, times=FAST)
    mine.run([pub()])

    def silent() -> Device:
        raise ServiceError("no answer")

    service.snapshot = silent  # type: ignore[method-assign]
    mine.run([pub()], purpose="second")
    assert "cannot be read now, and is not noted: no answer" in capsys.readouterr().err
    first, second = (record(row) for row in ledger.rows())
    assert (first["calibration_date"], first["state"]) == (Device.load("fake_manila").date, "done")
    assert (second["calibration_date"], second["snapshot"], second["state"]) == (None, None, "done")
    with pytest.raises(ServiceError, match="no answer"):  # without any, nothing can be estimated
        Runner(service, ledger, run="test", max_qpu_seconds=100.0, times=FAST).run([pub()], purpose="third")
    assert len(ledger.rows()) == 2


def test_a_missing_calibration_file_is_no_damage(ledger: Ledger) -> None:
    scripted(ScriptedService(), ledger).run([pub()])
    (row,) = ledger.rows()
    calibration_file(ledger.folder, record(row)["snapshot"]).unlink()
    assert ": not kept" in show_text(ledger, row)
    assert scripted(ScriptedService(), ledger).run([pub()]).reused == 1


# -- keys, old rows, reuse, free jobs ----------------------------------------------------------------------------------


def test_labels_and_layouts_are_no_part_of_the_key() -> None:
    """And the key is the one that earlier versions made."""
    labelled = replace(pub(), label="folded, scale 3", layout=(4,))
    work = {"options": RAW, "program": "executor"}
    keys = {job_key([one], work, "ibm_scripted", "evaluate") for one in (pub(), labelled)}  # type: ignore[list-item]
    assert keys == {KEY}


def test_rows_without_notes_are_exported_with_empty_cells(ledger: Ledger, tmp_path: Path) -> None:
    """As earlier versions left them; what is noted later, that they are used again, fits their seals."""
    service = ScriptedService()
    mine = scripted(service, ledger)
    mine.run([pub()], options=RAW)
    (row,) = ledger.rows()
    old = {name: value for name, value in row.summary.items() if name not in (SENT, STATED)}
    ledger._change(row.key, lambda row, _: replace(row, summary=old))
    with Ledger.open(ledger.folder) as again:  # checks every seal
        (row,) = again.rows()
        told = record(row)
        empty = [name for name in NOTED if name not in ("instance", "executions", "reused_by")]
        assert [told[name] for name in empty] == [None] * len(empty)
        assert (told["executions"], told["planned"], told["reused_by"]) == (4 * 100, row.created, [])
        export_rows(again, [row], tmp_path / "old.csv")
        lines = list(csv.DictReader((tmp_path / "old.csv").open()))
        assert [[line[name] for name in empty] for line in lines] == [[""] * len(empty)], (
            "a scripted answer has no values"
        )
        assert set(lines[0]) >= {*NOTED, *COSTS}
        assert "program" not in show_text(again, row)
        scripted(service, again).run([pub()], options=RAW)
        (after,) = again.rows()
        assert (after.updated, after.state, after.checksum) == (row.updated, "done", row.checksum)
    with Ledger.open(ledger.folder) as again:
        assert len(record(again.rows()[0])["reused_by"]) == 1


def test_who_took_a_result_from_the_ledger_and_when(ledger: Ledger) -> None:
    service, began = ScriptedService(), time.time()
    first = scripted(service, ledger)
    first.run([pub()])
    first.run([pub()])  # its own
    assert only(ledger)["reused_by"] == []
    for run in ("second", "third"):
        other = scripted(service, ledger, run=run)
        other.run([pub()])
        other.run([pub()])  # once for each runner
    scripted(service, ledger, run="second").run([pub()])
    used = only(ledger)["reused_by"]
    assert [one["run"] for one in used] == ["second", "third", "second"]
    assert all(began - 1 <= moment(one["at"]).timestamp() <= time.time() for one in used)
    assert len(service.jobs) == 1


def test_free_jobs_have_what_has_a_meaning(ledger: Ledger) -> None:
    device = Device.load("fake_manila")
    with open_runner(device, ledger=ledger, run="test") as mine:
        mine.run([pub()])
    told = only(ledger)
    assert [told[name] for name in ("mode", "plan", "instance", "session_id", "rep_delay_seconds")] == ["" or None] * 5
    assert (told["program"], told["options"], told["executions"]) == ("local", RAW, 400)
    assert moment(told["planned"]) <= moment(told["started"]) <= moment(told["finished"])
    assert (told["calibration_date"], told["snapshot"]) == (device.date, device.fingerprint)
    assert told["backend_version"] == device.provenance["backend_version"]
    assert told["packages"]["qiskit-aer"] == metadata.version("qiskit-aer")


def test_a_lost_reply_says_the_same(standin: StandIn, ledger: Ledger) -> None:
    standin.inject("jobs_post", LostReply())
    with live(ledger) as mine:
        mine.run([pub()], options=RAW)
    (job,) = standin.jobs
    told = only(ledger)
    assert (told["mode"], told["session_id"], told["finished"]) == ("batch", job.session_id, job.finished)
