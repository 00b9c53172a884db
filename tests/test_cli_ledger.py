"""`qhw ledger …` as a user types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from qhw_diffusion.cli import main
from qhw_diffusion.hardware import Ledger

KEYS = [f"{number:x}" * 64 for number in range(10, 15)]
ANSWER = json.dumps({"format": "qhw-local-1", "pubs": [{"values": [[0.1, 0.3]], "std_errors": [[0.01, 0.02]],
                                                         "shots": 100}]})  # fmt: skip


def plan(ledger: Ledger, key: str, run: str = "first", seconds: float = 4.0) -> None:
    ledger.plan(key, run=run, purpose=f"step {key[0]}", device="ibm_standin", circuits=12, shots=1000,
                estimate_seconds=seconds, paid=True, summary={"rows": 2}, cap=1000.0)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger with a job in every state; `KEYS[4]` is not in it."""
    monkeypatch.setenv("QHW_LEDGER", str(tmp_path / "ledger"))
    with Ledger.open() as ledger:
        for key in KEYS[:4]:
            plan(ledger, key, run="second" if key == KEYS[3] else "first")
        ledger.submitted(KEYS[1], "job-b", "session-1")
        ledger.submitted(KEYS[2], "job-c")
        ledger.done(KEYS[2], ANSWER, 2.5)
        ledger.submitted(KEYS[3], "job-d")
        ledger.failed(KEYS[3], "internal error", 1.0)
        ledger.retry(KEYS[3])
        ledger.failed(KEYS[3], "refused: too wide")
    return tmp_path / "ledger"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["ledger", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    assert main(["ledger", *arguments]) == code
    return capsys.readouterr().err


def test_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "list")
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == [key[:12] for key in KEYS[:4]]
    assert "4 jobs: 1 planned, 1 submitted, 1 done, 1 failed" in text
    assert "11.50 QPU seconds measured or reserved, no cap of its own" in text  # 4 + 4 + 2.5 + 1, the refused one 0
    assert "aaaaaaaaaaaa" in told(capsys, "list", "--state", "planned", "--ledger", str(folder))
    assert "1 job: 1 failed" in told(capsys, "list", "--run", "second")
    assert "1 job: 1 failed" in told(capsys, "list", "--run", "sec")
    assert "1 job: 1 failed" in told(capsys, "list", "--run", "runs/second")
    assert "no run that begins with 'third'; it has first, second" in refused(capsys, 2, "list", "--run", "third")


def test_runs_are_given_by_the_name_of_their_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a paid device the id of the folder stands behind its name."""
    with Ledger.open(folder) as ledger:
        for key, run in (
            ("1", "rollout-7-1f0c9a2e"),
            ("2", "rollout-7-77aa0011"),
            ("3", "tuned-5b5b5b5b"),
            ("4", "tuned"),
        ):
            plan(ledger, key * 64, run=run)
    assert "1 job: 1 planned" in told(capsys, "list", "--run", "rollout-7-1f")
    error = refused(capsys, 2, "list", "--run", "rollout-7")
    assert "the beginning of 2 runs: rollout-7-1f0c9a2e, rollout-7-77aa0011; give more of it" in error
    assert told(capsys, "list", "--run", "tuned").splitlines()[1].split()[2] == "tuned"  # a whole name is that run
    assert "1 job in" in told(capsys, "export", str(folder.parent / "x.csv"), "--run", "rollout-7-7")
    assert "begins with 'nothing'" in refused(capsys, 2, "export", str(folder.parent / "y.csv"), "--run", "nothing")
    assert not (folder.parent / "y.csv").exists()


def test_show_says_what_to_do_next(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "show", "aaa")
    assert KEYS[0] in text
    assert "run-first, qhw-" + "a" * 32 in text
    assert f"qhw ledger adopt --ledger {folder} aaaaaaaaaaaa JOB_ID" in text
    assert "no second job is sent" in told(capsys, "show", "job-b")
    done = told(capsys, "show", "ccc")
    assert "2.50 QPU seconds" in done
    assert "(whole)" in done
    assert "Next: nothing" in done
    failed = told(capsys, "show", "d")
    assert "job-d: internal error (counts as 1.00 QPU seconds)" in failed
    assert "--retry-failed" in failed
    (folder / "results" / f"{KEYS[2]}.json.gz").write_bytes(b"no")
    damaged = told(capsys, "show", "ccc")
    assert "DAMAGED" in damaged
    assert "qhw ledger recover" in damaged


def test_keys_are_given_by_their_beginnings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "starts with 'f'" in refused(capsys, 2, "show", "f")
    with Ledger.open(folder) as ledger:
        plan(ledger, "a" * 63 + "b")
    error = refused(capsys, 2, "show", "aa")
    assert "beginning of 2 keys" in error
    assert "a" * 63 + "b" in told(capsys, "show", "a" * 63 + "b")


def test_adopt_binds_a_planned_job_and_refuses_contradictions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "job-b belongs to bbbbbbbbbbbb" in refused(capsys, 6, "adopt", "aaa", "job-b")
    assert "is submitted as job-b" in refused(capsys, 6, "adopt", "bbb", "job-x")
    assert "is done by job-c" in refused(capsys, 6, "adopt", "ccc", "job-x")
    assert "is failed" in refused(capsys, 6, "adopt", "ddd", "job-x")
    assert "is job job-a now" in told(capsys, "adopt", "aaa", "job-a")
    assert "is job job-a now" in told(capsys, "adopt", "aaa", "job-a")  # once more: nothing to change
    with Ledger.open(folder) as ledger:
        row = ledger.get(KEYS[0])
        assert row is not None
        assert (row.state, row.job_id) == ("submitted", "job-a")
        with ledger.lock(KEYS[0]):
            assert "is in use by process" in refused(capsys, 6, "adopt", "aaa", "job-a")


def test_export(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "4 jobs in" in told(capsys, "export", str(tmp_path / "all.csv"))
    with (tmp_path / "all.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["key"][0] for line in lines] == ["a", "b", "c", "c", "d"]
    assert [line["value"] for line in lines] == ["", "", "0.1", "0.3", ""]
    assert lines[3]["std_error"] == "0.02"
    assert lines[3]["row"] == "1"
    assert lines[2]["qpu_seconds"] == "2.5"
    assert "1 job in" in told(capsys, "export", str(tmp_path / "done.json"), "--state", "done")
    (entry,) = json.loads((tmp_path / "done.json").read_text())
    assert entry["raw"] == ANSWER
    assert entry["results"] == [{"values": [[0.1, 0.3]], "std_errors": [[0.01, 0.02]], "shots": 100}]
    (folder / "results" / f"{KEYS[2]}.json.gz").write_bytes(b"no")
    told(capsys, "export", str(tmp_path / "all.json"))
    troubles = [entry["trouble"] for entry in json.loads((tmp_path / "all.json").read_text())]
    assert [bool(trouble) for trouble in troubles] == [False, False, True, False]
    assert "must end in .csv or .json" in refused(capsys, 2, "export", str(tmp_path / "all.xls"))


def test_cap(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no cap of its own" in told(capsys, "cap")
    assert "cap 20 s, 8.50 s left" in told(capsys, "cap", "20")
    assert "cap 20 s" in told(capsys, "cap")
    assert "no cap of its own" in told(capsys, "cap", "none")
    assert "allowed" in refused(capsys, 2, "cap", "much")
    assert "allowed" in refused(capsys, 2, "cap", "nan")
    assert "cap 60 s, 60.00 s left" in told(capsys, "cap", "60", "--ledger", str(tmp_path / "new"))


def test_recover(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the database is whole, jobs in it: 4" in told(capsys, "recover")
    (folder / "ledger.sqlite").write_bytes(b"\0" * 5000)
    assert "qhw ledger recover" in refused(capsys, 6, "list")
    text = told(capsys, "recover")
    assert "new database, jobs in it: 1" in text
    assert "rows may be missing" in text
    assert "rows may be missing since a recovery" in told(capsys, "list")


def test_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["list"], ["show", "a"], ["adopt", "a", "b"], ["export", "x.csv"], ["cap"], ["recover"]):
        assert "there is no ledger in" in refused(capsys, 6, *command, "--ledger", str(tmp_path / "none"))
        assert not (tmp_path / "none").exists()
