"""`qhw doctor`: every line on a sound machine, and what it says of an unsound one."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections import namedtuple
from pathlib import Path

import pytest

from qhw_diffusion.cli import doctor as module
from qhw_diffusion.cli import main
from qhw_diffusion.errors import ServiceError
from qhw_diffusion.hardware import Ledger

pytestmark = pytest.mark.slow
KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGH"
Lines = dict[str, dict[str, str]]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, no account, and nothing told by the environment."""
    for name in ("QISKIT_IBM_TOKEN", "QISKIT_IBM_URL", "QHW_LEDGER", "QHW_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Lines:
    """What it says of each thing; of several lines the last one that is not ok."""
    assert main(["doctor", "--json", *words]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = sorted(json.loads(captured.out), key=lambda line: line["state"] != "ok")
    return {line["what"]: line for line in lines}


def test_a_sound_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    lines = told(capsys)
    assert {"package", "Python", "libraries", "cores", "memory", "disk", "compiled loops", "account", "ledger"} <= set(
        lines
    )
    for name, line in lines.items():
        assert line["state"] in ("ok", "note"), line
        assert f"{line['state']:<7}  {name}" in text
        assert line["state"] == "ok" or line["do"], "what is worth a note says what to do"
    assert f"torch {importlib.metadata.version('torch')}" in lines["libraries"]["text"]
    assert "a circuit was simulated (gradient" in lines["compiled loops"]["text"]
    assert lines["account"]["state"] == "note"
    assert "save_account" in lines["account"]["do"]
    assert lines["ledger"]["text"].startswith("none in runs/ledger yet")
    assert not list(Path.cwd().iterdir()), "nothing is written"


def test_a_key_is_never_shown_and_not_tried_unless_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QISKIT_IBM_TOKEN", KEY)
    line = told(capsys)["account"]
    assert (line["state"], line["text"]) == ("ok", "in QISKIT_IBM_TOKEN; not tried")

    def connect() -> None:
        raise ServiceError(f"no answer to {KEY}")

    monkeypatch.setattr("qhw_diffusion.devices.account.connect", connect)
    assert main(["doctor", "--online"]) == 1
    shown = capsys.readouterr().out
    assert "problem  account" in shown
    assert KEY not in shown
    monkeypatch.setattr("qhw_diffusion.devices.account.connect", lambda: None)
    assert told(capsys, "--online")["account"]["text"].endswith("IBM Quantum answers")


def test_a_damaged_file_of_accounts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qhw_diffusion.devices.has_account", lambda: True)
    monkeypatch.setattr("qhw_diffusion.devices.account.saved_accounts", lambda: "{")
    line = told(capsys, code=1)["account"]
    assert line["state"] == "problem"
    assert line["do"].startswith("delete it.")


def test_ledgers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert told(capsys, "--ledger", "nowhere")["ledger"]["state"] == "note"
    Ledger.open(tmp_path / "book").close()
    monkeypatch.setenv("QHW_LEDGER", str(tmp_path / "book"))
    assert told(capsys)["ledger"]["text"] == f"0 jobs in {tmp_path / 'book'}"
    file = tmp_path / "book" / "ledger.sqlite"
    file.write_bytes(b"no database at all" * 99)
    line = told(capsys, code=1)["ledger"]
    assert line["state"] == "problem"
    assert f"qhw ledger recover --ledger {tmp_path / 'book'}" in line["do"]


def test_libraries_that_are_missing_or_too_old(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("scipy", "ply"):
            raise importlib.metadata.PackageNotFoundError(name)
        return {"qiskit": "1.0.0", "distributed": "1999.1"}.get(name) or real(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    lines = told(capsys, code=1)
    assert lines["scipy"]["text"].startswith("missing; needed: ")
    assert lines["scipy"]["do"] == "pip install 'scipy<2,>=1.15'"
    assert lines["qiskit"]["text"].startswith("1.0.0; needed: ")
    assert "distributed" in lines["extra dask"]["do"]
    assert "mitiq" in lines["extras"]["text"]
    assert "qhw-diffusion[" in lines["extras"]["do"]


def test_a_package_that_is_read_from_its_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", absent)
    monkeypatch.setattr("importlib.metadata.metadata", absent)
    assert told(capsys)["libraries"]["do"] == "pip install -e ."


@pytest.mark.parametrize("value", ["many", "0", "-1", "", "100000"])
@pytest.mark.parametrize("name", ["QHW_NUM_THREADS", "OMP_NUM_THREADS"])
def test_threads_that_are_no_number(
    name: str, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    line = told(capsys, code=1)["cores"]
    assert line["text"] == f"{name} is {value!r}; allowed: whole numbers from 1"


def test_little_room_and_little_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage(10**12, 10**12, 10**8))
    monkeypatch.setattr(module, "LITTLE_MEMORY", 2**60)
    lines = told(capsys)
    assert lines["disk"]["state"] == lines["memory"]["state"] == "note"
    assert lines["disk"]["text"].startswith("95.4 MiB free at ")


def test_places_that_cannot_be_written_to(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    lines = told(capsys)
    assert lines["disk"]["state"] == "note"
    assert "cannot be written to" in lines["disk"]["text"]


def test_a_check_that_fails_is_a_problem_and_the_others_are_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ImportError("libtorch.so:\n cannot open")

    monkeypatch.setattr(module, "_loops", broken)
    lines = told(capsys, code=1)
    assert lines["compiled loops"]["text"] == "could not be looked at (ImportError: libtorch.so: cannot open)"
    assert lines["ledger"]["state"] == "ok"
