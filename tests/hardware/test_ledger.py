"""The ledger's rows, transitions, caps, results and refusals, in one process."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from qhw_diffusion.errors import BudgetError, DamagedFileError, InvalidInputError, LedgerError
from qhw_diffusion.hardware import Ledger, Row, ledger_files, ledger_folder

A, B, C, D = (letter * 64 for letter in "abcd")
RAW = '{"answer": "⟨Z⟩ = 0.25"}'


def plan(ledger: Ledger, key: str, seconds: float = 5.0, cap: float | None = 100.0, **change: Any) -> Row:
    settings: dict[str, Any] = {"run": "first", "purpose": "step 1", "device": "ibm_standin", "circuits": 3,
                                "shots": 9, "estimate_seconds": seconds, "paid": True, "summary": {"n": 1}}  # fmt: skip
    return ledger.plan(key, cap=cap, **{**settings, **change})


# -- a job's life ------------------------------------------------------------------------------------------------------


def test_from_planned_to_done(ledger: Ledger) -> None:
    row = plan(ledger, A)
    assert (row.state, row.attempt, row.job_id, row.qpu_seconds) == ("planned", 1, None, None)
    assert ledger.submitted(A, "job-1", "session-1").session_id == "session-1"
    done = ledger.done(A, RAW, 3.25, overhead=0.5)
    assert (done.state, done.job_id, done.qpu_seconds, done.summary) == (
        "done",
        "job-1",
        3.25,
        {"n": 1, "overhead": 0.5},
    )
    assert ledger.result(A) == RAW
    path = ledger.folder / str(done.result_file)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == done.checksum
    assert json.loads(gzip.decompress(path.read_bytes()))["raw"] == RAW
    ledger.close()
    with Ledger.open(ledger.folder) as again:  # nothing lives in memory only
        assert again.get(A) == done
        assert again.rows() == [done]
        assert plan(again, A, purpose="another", seconds=99) == done  # the key says it is the same work


def test_a_failed_job_is_tried_again_and_its_cost_is_kept(ledger: Ledger) -> None:
    plan(ledger, A)
    ledger.submitted(A, "job-1", "session-1")
    assert ledger.failed(A, "internal error", 2.0).reason == "internal error"
    again = ledger.retry(A)
    assert (again.state, again.attempt, again.job_id, again.reason, again.qpu_seconds) == ("planned", 2, None, "", None)
    assert again.earlier == [{"attempt": 1, "job_id": "job-1", "session_id": "session-1", "reason": "internal error",
                              "qpu_seconds": 2.0, "counted": 2.0}]  # fmt: skip
    assert ledger.spent() == 2.0 + 5.0
    with pytest.raises(LedgerError, match="earlier attempt"):
        ledger.submitted(A, "job-1")
    ledger.submitted(A, "job-2")
    ledger.done(A, RAW, 4.0)
    assert ledger.spent() == 6.0


@pytest.mark.parametrize("state", ["planned", "submitted", "done", "failed"])
def test_illegal_transitions(ledger: Ledger, state: str) -> None:
    plan(ledger, A)
    if state != "planned":
        ledger.submitted(A, "job-1")
    if state == "done":
        ledger.done(A, RAW, 1.0)
    if state == "failed":
        ledger.failed(A, "no")
    before = ledger.get(A)
    calls: dict[str, Any] = {
        "submitted": lambda: ledger.submitted(A, "job-9"),
        "done": lambda: ledger.done(A, "another answer", 1.0),
        "failed": lambda: ledger.failed(A, "another reason"),
        "retry": lambda: ledger.retry(A),
        "permit": lambda: ledger.permit(A, run="first", cap=50.0),
        "refetch": lambda: ledger.refetch(A),
        "measured": lambda: ledger.measured(A, 2.0),
    }
    allowed = {"planned": {"submitted", "failed", "permit"}, "submitted": {"done", "failed"}, "done": {"measured"},
               "failed": {"retry", "measured"}}[state]  # fmt: skip
    for name, call in calls.items():
        if name not in allowed:
            with pytest.raises(LedgerError):
                call()
            assert ledger.get(A) == before


def test_saying_the_same_twice_changes_nothing(ledger: Ledger) -> None:
    plan(ledger, A)
    assert ledger.submitted(A, "job-1") == ledger.submitted(A, "job-1")
    assert ledger.done(A, RAW, 1.0) == ledger.done(A, RAW, 1.0)
    plan(ledger, B)
    assert ledger.failed(B, "no") == ledger.failed(B, "no")


def test_one_job_id_belongs_to_one_row(ledger: Ledger) -> None:
    plan(ledger, A)
    plan(ledger, B)
    ledger.submitted(A, "job-1")
    with pytest.raises(LedgerError, match="job-1 belongs to aaaaaaaaaaaa"):
        ledger.submitted(B, "job-1")
    ledger.failed(A, "no")
    ledger.retry(A)
    with pytest.raises(LedgerError, match="belongs to aaaaaaaaaaaa"):
        ledger.submitted(B, "job-1")
    assert ledger.submitted(B, "job_1").job_id == "job_1"


def test_rows_by_run_and_state_in_the_order_of_planning(ledger: Ledger) -> None:
    for key, run in ((C, "first"), (A, "second"), (B, "first")):
        plan(ledger, key, run=run)
    ledger.failed(B, "no")
    assert [row.key for row in ledger.rows()] == [C, A, B]
    assert [row.key for row in ledger.rows(run="first")] == [C, B]
    assert [row.key for row in ledger.rows(run="first", state="failed")] == [B]
    assert ledger.get(D) is None
    with pytest.raises(InvalidInputError, match="allowed: planned"):
        ledger.rows(state="lost")


# -- caps --------------------------------------------------------------------------------------------------------------


def test_what_counts(ledger: Ledger) -> None:
    keys = [f"{number:064x}" for number in range(7)]
    for key in keys:
        plan(ledger, key, seconds=5.0, run="even" if int(key, 16) % 2 == 0 else "odd")
    for number, key in enumerate(keys[1:6], 1):
        ledger.submitted(key, f"job-{number}")
    ledger.done(keys[2], RAW, 1.5)
    ledger.done(keys[3], RAW, None)  # the service does not say yet
    ledger.failed(keys[4], "no", 0.25)
    ledger.failed(keys[5], "no")  # it was sent: it may have cost its estimate
    ledger.failed(keys[6], "refused")  # it was not sent
    counted = [5.0, 5.0, 1.5, 5.0, 0.25, 5.0, 0.0]
    assert [row.counted for row in ledger.rows()] == counted
    assert ledger.spent() == sum(counted)
    assert ledger.spent("even") == 5.0 + 1.5 + 0.25
    assert ledger.spent("other") == 0.0
    ledger.measured(keys[3], 2.0)
    assert ledger.spent() == sum(counted) - 3.0
    plan(ledger, A, paid=False, cap=None)
    assert ledger.spent() == sum(counted) - 3.0


def test_a_run_cannot_pass_its_cap(ledger: Ledger) -> None:
    plan(ledger, A, 5.0, cap=12.0)
    ledger.submitted(A, "job-1")
    ledger.done(A, RAW, 6.0)
    plan(ledger, B, 3.0, cap=12.0)
    told = r"run 'first'.*6.00 s measured \+ 3.00 s reserved.* \+ 4.00 s for this job = 13.00 s > 12.00 s"
    with pytest.raises(BudgetError, match=told):
        plan(ledger, C, 4.0, cap=12.0)
    assert ledger.get(C) is None
    assert plan(ledger, C, 3.0, cap=12.0).state == "planned"  # exactly the cap
    assert plan(ledger, D, 4.0, cap=12.0, run="second").state == "planned"


def test_the_ledger_has_a_cap_of_its_own(ledger: Ledger) -> None:
    assert ledger.cap is None
    ledger.set_cap(10)
    plan(ledger, A, 6.0, cap=None)
    with pytest.raises(BudgetError, match="the ledger would pass its cap"):
        plan(ledger, B, 6.0, cap=1000.0, run="second")
    ledger.set_cap(1.0)  # less than is spent
    with pytest.raises(BudgetError, match="qhw ledger cap"):
        plan(ledger, B, 0.5)
    ledger.set_cap(None)
    assert plan(ledger, B, 6.0).state == "planned"
    for seconds in (-1.0, math.nan, math.inf, True, "10"):
        with pytest.raises(InvalidInputError, match="seconds from 0"):
            ledger.set_cap(seconds)  # type: ignore[arg-type]


def test_without_a_cap_nothing_paid_is_planned(ledger: Ledger) -> None:
    with pytest.raises(BudgetError, match="no cap"):
        plan(ledger, A, cap=None)
    assert plan(ledger, A, cap=None, paid=False).state == "planned"


def test_a_row_planned_before_is_checked_again_before_it_is_sent(ledger: Ledger) -> None:
    plan(ledger, A, 5.0, cap=20.0)
    assert ledger.permit(A, run="first", cap=5.0).state == "planned"  # its own reservation is not in its way
    with pytest.raises(BudgetError):
        ledger.permit(A, run="first", cap=4.0)
    with pytest.raises(BudgetError, match="no cap"):
        ledger.permit(A, run="second")
    assert ledger.permit(A, run="second", cap=5.0).run == "second"
    assert (ledger.spent("first"), ledger.spent("second")) == (0.0, 5.0)


def test_another_attempt_needs_room_below_the_cap(ledger: Ledger) -> None:
    plan(ledger, A, 5.0, cap=8.0)
    ledger.submitted(A, "job-1")
    ledger.failed(A, "no", 4.0)
    with pytest.raises(BudgetError, match=r"4.00 s measured \+ 0.00 s reserved.* \+ 5.00 s for this job = 9.00 s"):
        ledger.retry(A)  # the run's cap is remembered
    row = ledger.get(A)
    assert row is not None
    assert (row.state, row.attempt) == ("failed", 1)
    assert ledger.retry(A, cap=9.0).attempt == 2


# -- results -----------------------------------------------------------------------------------------------------------


def test_a_changed_result_file_is_noticed_and_fetched_again(ledger: Ledger) -> None:
    plan(ledger, A)
    ledger.submitted(A, "job-1")
    path = ledger.folder / str(ledger.done(A, RAW, 1.0).result_file)
    whole = path.read_bytes()
    with pytest.raises(LedgerError, match="is whole"):
        ledger.refetch(A)
    damages = [whole[:-1], whole[:10], b"", whole[:4] + b"\x01" + whole[5:]]  # the last: a bit of the gzip header
    damages += [bytes([*whole[:n], whole[n] ^ 16, *whole[n + 1 :]]) for n in (20, len(whole) // 2, len(whole) - 2)]
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"job-1.*qhw ledger recover"):
            ledger.result(A)
    row = ledger.refetch(A)
    assert (row.state, row.job_id, row.qpu_seconds) == ("submitted", "job-1", 1.0)
    assert path.with_name(path.name + ".damaged").read_bytes() == damages[-1]
    assert ledger.spent() == 1.0
    assert ledger.done(A, RAW, None).qpu_seconds == 1.0
    path.unlink()
    with pytest.raises(DamagedFileError, match="cannot be read"):
        ledger.result(A)
    assert ledger.refetch(A).state == "submitted"
    with pytest.raises(LedgerError, match="only a job that is done"):
        ledger.result(A)


def test_any_text_is_kept_as_it_is(ledger: Ledger) -> None:
    for key, raw in ((A, ""), (B, "\x00\r\n\u2028 \udc80 🜁"), (C, "9" * 3_000_000)):
        plan(ledger, key)
        ledger.submitted(key, f"job-{key[0]}")
        ledger.done(key, raw, 0.0)
        assert ledger.result(key) == raw
    plan(ledger, D)
    assert ledger.failed(D, "bad \udc80 text").reason == "bad ? text"


# -- locks -------------------------------------------------------------------------------------------------------------


def test_one_worker_to_a_key(ledger: Ledger) -> None:
    with ledger.lock(A):
        with ledger.lock(B, timeout=0.0):
            pass
        with (
            pytest.raises(LedgerError, match=f"job aaaaaaaaaaaa is in use by process {os.getpid()}"),
            ledger.lock(A, 0.1),
        ):
            pass
    with ledger.lock(A, timeout=0.0):
        pass
    assert list((ledger.folder / "locks").iterdir()) == []


def test_a_lock_file_removed_by_its_last_holder_is_made_anew(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flock, removed = ledger.folder / "locks" / A, ledger_files.fcntl.flock, []

    def holder_leaves_just_before(handle: int, how: int) -> None:
        if not removed:
            path.unlink()
            removed.append(path)
        flock(handle, how)

    monkeypatch.setattr(ledger_files.fcntl, "flock", holder_leaves_just_before)
    with ledger.lock(A):
        assert removed
        with pytest.raises(LedgerError, match="in use"), ledger.lock(A, timeout=0.0):
            pass


def test_threads_take_turns(ledger: Ledger) -> None:
    inside, most = [0], [0]

    def work(number: int) -> None:
        plan(ledger, f"{number:064x}", 1.0)
        for _ in range(3):
            with ledger.lock(A):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                ledger.rows()
                inside[0] -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert len(ledger.rows()) == 4


# -- folders, versions, bad input --------------------------------------------------------------------------------------


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QHW_LEDGER", raising=False)
    assert ledger_folder() == Path("runs/ledger")
    monkeypatch.setenv("QHW_LEDGER", str(tmp_path / "mine"))
    assert ledger_folder() == tmp_path / "mine"
    assert ledger_folder("given") == Path("given")
    with Ledger.open() as ledger:
        assert ledger.folder == tmp_path / "mine"


def test_the_database_is_safe_against_power_cuts(ledger: Ledger) -> None:
    with ledger._file.reading() as connection:
        asked = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert asked == {"journal_mode": "wal", "synchronous": 2}  # 2 is FULL


def test_a_lost_log_file_loses_nothing(ledger: Ledger, tmp_path: Path) -> None:
    plan(ledger, A)
    ledger.submitted(A, "job-1")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "ledger.sqlite").write_bytes((ledger.folder / "ledger.sqlite").read_bytes())
    with Ledger.open(tmp_path / "copy") as copy:
        assert copy.rows() == ledger.rows()


def test_another_version_is_refused(ledger: Ledger) -> None:
    ledger.close()
    connection = sqlite3.connect(ledger.folder / "ledger.sqlite")
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(LedgerError, match="has format 7, this package reads format 1; use the version"):
        Ledger.open(ledger.folder)


def test_another_database_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()
    before = (tmp_path / "ledger.sqlite").read_bytes()
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger.open(tmp_path)
    assert (tmp_path / "ledger.sqlite").read_bytes() == before


def test_folders_that_cannot_hold_a_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LedgerError, match="there is no ledger in"):
        Ledger.open(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="cannot be made"):
        Ledger.open(tmp_path / "file")
    with monkeypatch.context() as patch:
        patch.setattr(ledger_files, "file_system", lambda folder: "nfs4")
        with pytest.raises(LedgerError, match=r"network drive \(nfs4\).*local disk"):
            Ledger.open(tmp_path / "remote")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # the tests may run as root, whom no mode stops
        with pytest.raises(LedgerError, match="cannot be written"):
            Ledger.open(tmp_path)


def test_the_file_system_is_the_innermost_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        f"2 1 0:2 / {tmp_path.parent} rw shared:1 - nfs4 host:/x rw\n"
        f"3 2 0:3 / {tmp_path}/local\\040disk rw - xfs /dev/b rw\n"
        f"4 2 0:4 / {tmp_path}/local rw - btrfs /dev/c rw\n"  # a name that another begins with
    )
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda p, *a, **k: table if str(p).startswith("/proc") else real(p, *a, **k))
    (tmp_path / "local disk").mkdir()
    assert ledger_files.file_system(Path("/")) == "ext4"
    assert ledger_files.file_system(tmp_path) == "nfs4"
    assert ledger_files.file_system(tmp_path / "local disk") == "xfs"


def test_a_full_disk_and_a_busy_ledger_are_said_plainly(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(ledger, A)
    with ledger._file.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerError, match="disk is full; make room"):
        plan(ledger, B, summary={"long": "x" * 100_000})
    assert [row.key for row in ledger.rows()] == [A]
    monkeypatch.setattr(ledger_files, "BUSY_SECONDS", 0.1)
    with (
        Ledger.open(ledger.folder) as other,
        ledger._file.writing(),
        pytest.raises(LedgerError, match="another process"),
    ):
        plan(other, C)


def test_a_closed_ledger_says_so(ledger: Ledger) -> None:
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.rows()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "abc"}, "64 hexadecimal digits"),
        ({"key": "../" + "a" * 61}, "64 hexadecimal digits"),
        ({"run": ""}, "run is ''"),
        ({"device": None}, "device is None"),
        ({"circuits": 0}, "whole numbers from 1"),
        ({"shots": 2.5}, "whole numbers from 1"),
        ({"seconds": -1.0}, "seconds from 0"),
        ({"seconds": math.nan}, "seconds from 0"),
        ({"cap": math.nan}, "seconds from 0"),
        ({"summary": {"x": {1, 2}}}, "JSON"),
        ({"summary": {"x": math.nan}}, "JSON"),
    ],
)
def test_bad_input(ledger: Ledger, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        plan(ledger, **{"key": A, **change})
    assert ledger.rows() == []


def test_bad_input_of_the_other_methods(ledger: Ledger) -> None:
    plan(ledger, A)
    with pytest.raises(InvalidInputError, match="job_id"):
        ledger.submitted(A, " ")
    ledger.submitted(A, "job-1")
    with pytest.raises(InvalidInputError, match="raw must be"):
        ledger.done(A, b"bytes", 1.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="qpu_seconds"):
        ledger.done(A, RAW, -1.0)
    with pytest.raises(LedgerError, match="has no job bbbbbbbbbbbb"):
        ledger.submitted(B, "job-2")
    with pytest.raises(InvalidInputError, match="64 hexadecimal"), ledger.lock("../../etc"):
        pass
    assert [row.state for row in ledger.rows()] == ["submitted"]
