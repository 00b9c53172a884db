"""Damaged ledgers: what can be read is recovered, the original is kept, nothing is made up."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from qhw_diffusion.errors import LedgerError
from qhw_diffusion.hardware import Ledger, Row, recover

KEYS = [f"{number:064x}" for number in range(40)]
RAW = "the answer " * 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Row]]:
    """A ledger of several pages with jobs in all states; never written to again."""
    folder = tmp_path_factory.mktemp("whole")
    with Ledger.open(folder) as ledger:
        ledger.set_cap(500)
        for number, key in enumerate(KEYS):
            ledger.plan(key, run="r", purpose="p" * 200, device="d", circuits=1, shots=10, estimate_seconds=2.0,
                        paid=True, summary={"text": "x" * 300}, cap=400.0)  # fmt: skip
            if number % 4:
                ledger.submitted(key, f"job-{number}")
            if number % 4 == 2:
                ledger.done(key, RAW + key, 1.5)
            if number % 4 == 3:
                ledger.failed(key, "no", 0.5)
        return folder, {row.key: row for row in ledger.rows()}


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def opens(folder: Path) -> bool:
    try:
        Ledger.open(folder).close()
    except LedgerError:
        return False
    return True


def damage(data: bytes, how: str, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    if how == "cut":
        return data[:place]
    if how == "bit":
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    page = place // 4096 * 4096
    return data[:page] + (rng.randbytes(4096) if how == "page" else bytes(4096)) + data[page + 4096 :]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "bit", "page", "zeros"])
def test_damaged_databases(whole: tuple[Path, dict[str, Row]], tmp_path: Path, how: str) -> None:
    rng = random.Random(how)
    found_damaged = 0
    for number in range(6):
        folder = copy_of(whole[0], tmp_path / str(number))
        file = folder / "ledger.sqlite"
        damaged = damage(file.read_bytes(), how, rng)
        file.write_bytes(damaged)
        was_open = opens(folder)
        found_damaged += not was_open
        result = recover(folder)
        assert (result.kept is None) == was_open
        if result.kept is not None:
            assert (result.kept / "ledger.sqlite").read_bytes() == damaged
        with Ledger.open(folder) as ledger:
            rows = {row.key: row for row in ledger.rows()}
            assert ledger.incomplete == (not result.complete)
            assert result.rows == len(rows)
            for key, row in rows.items():
                assert row == whole[1][key]  # never a wrong one
            if result.complete:
                assert len(rows) == len(KEYS)
            for key, row in whole[1].items():
                if row.state == "done":  # paid for and stored: never lost
                    assert ledger.result(key) == RAW + key
        assert recover(folder).kept is None
    assert found_damaged >= (1 if how == "bit" else 6)


def test_one_damaged_page_costs_only_its_rows(whole: tuple[Path, dict[str, Row]], tmp_path: Path) -> None:
    folder = copy_of(whole[0], tmp_path / "ledger")
    connection = sqlite3.connect(folder / "ledger.sqlite")
    try:
        sql = "SELECT pageno FROM dbstat WHERE name = 'jobs' AND pagetype = 'leaf' ORDER BY path"
        page = connection.execute(sql).fetchall()[2][0]
    except sqlite3.OperationalError:
        pytest.skip("this SQLite has no dbstat table to find a page with")
    finally:
        connection.close()
    data = bytearray((folder / "ledger.sqlite").read_bytes())
    data[(page - 1) * 4096 : page * 4096] = bytes(4096)
    (folder / "ledger.sqlite").write_bytes(data)
    result = recover(folder)
    assert result.rows >= len(KEYS) - 5  # about four rows are on a page, and the done one of them comes back
    assert not result.complete
    assert result.cap == 500.0
    with Ledger.open(folder) as ledger:
        assert ledger.rows()[-1] == whole[1][KEYS[-1]]  # behind the damaged page


def test_a_wrong_index_is_noticed_and_costs_nothing(whole: tuple[Path, dict[str, Row]], tmp_path: Path) -> None:
    folder = copy_of(whole[0], tmp_path / "ledger")
    file, key = folder / "ledger.sqlite", KEYS[9].encode()
    data = file.read_bytes()
    # a row's key is followed by its run, the index's by the row's number
    places = [n for n in range(len(data)) if data.startswith(key, n) and data[n + 64 : n + 66] != b"rp"]
    assert places
    for place in places:
        data = data[:place] + b"1" + data[place + 1 :]
    file.write_bytes(data)
    with pytest.raises(LedgerError, match="qhw ledger recover"):
        Ledger.open(folder)
    result = recover(folder)
    assert (result.rows, result.complete, result.cap) == (40, True, 500.0)
    with Ledger.open(folder) as ledger:
        assert {row.key: row for row in ledger.rows()} == whole[1]
        assert ledger.get(KEYS[9]) == whole[1][KEYS[9]]


def test_an_old_log_is_not_written_into_the_new_database(whole: tuple[Path, dict[str, Row]], tmp_path: Path) -> None:
    folder = copy_of(whole[0], tmp_path / "ledger")
    pid = os.fork()
    if pid == 0:  # killed with the ledger open: its log stays
        opened = Ledger.open(folder)
        opened.failed(KEYS[0], "refused")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    log = folder / "ledger.sqlite-wal"
    assert log.stat().st_size > 0
    file = folder / "ledger.sqlite"
    file.write_bytes(file.read_bytes()[:20000])
    result = recover(folder)
    assert result.kept is not None
    assert (result.kept / log.name).stat().st_size > 0
    assert not log.exists()
    with Ledger.open(folder) as ledger:
        rows = ledger.rows()
        assert len(rows) == result.rows >= 10
        assert all(row == whole[1][row.key] for row in rows if row.key != KEYS[0])
    assert recover(folder).kept is None


def test_a_changed_value_is_noticed_and_left_out(whole: tuple[Path, dict[str, Row]], tmp_path: Path) -> None:
    folder = copy_of(whole[0], tmp_path / "ledger")
    connection = sqlite3.connect(folder / "ledger.sqlite")
    connection.execute("UPDATE jobs SET job_id = 'job-0x' WHERE key = ?", (KEYS[1],))
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match=r"row 000000000000.*does not fit its checksum.*qhw ledger recover"):
        Ledger.open(folder)
    result = recover(folder)
    assert (result.rows, len(result.suspect), result.complete) == (39, 1, False)
    assert result.kept is not None
    assert "job-0x" in json.loads((result.kept / "suspect.json").read_text())[0]
    assert "do not fit their checksums and were left out: 1, in" in result.text
    with Ledger.open(folder) as ledger:
        assert ledger.get(KEYS[1]) is None
        assert ledger.get(KEYS[5]) == whole[1][KEYS[5]]


@pytest.mark.parametrize("size", [None, 0])
def test_a_database_that_is_gone_is_never_taken_for_a_new_ledger(
    whole: tuple[Path, dict[str, Row]], tmp_path: Path, size: int | None
) -> None:
    folder = copy_of(whole[0], tmp_path / "ledger")
    if size is None:
        (folder / "ledger.sqlite").unlink()
    else:
        (folder / "ledger.sqlite").write_bytes(b"")
    with pytest.raises(LedgerError, match="qhw ledger recover"):
        Ledger.open(folder)
    result = recover(folder)
    assert result.rows == len(result.from_results) == 10
    assert not result.complete
    assert "no cap: set it again" in result.text
    with Ledger.open(folder) as ledger:
        assert ledger.rows() == [row for row in whole[1].values() if row.state == "done"]


def test_results_that_are_lost_are_fetched_again(whole: tuple[Path, dict[str, Row]], tmp_path: Path) -> None:
    folder = copy_of(whole[0], tmp_path / "ledger")
    lost, bent = KEYS[2], KEYS[6]
    (folder / "results" / f"{lost}.json.gz").unlink()
    path = folder / "results" / f"{bent}.json.gz"
    path.write_bytes(path.read_bytes()[:-20])
    result = recover(folder)
    assert (result.kept, result.refetch, result.rows, result.complete) == (None, [lost, bent], 40, True)
    assert path.with_name(path.name + ".damaged").exists()
    with Ledger.open(folder) as ledger:
        for key in (lost, bent):
            row = ledger.get(key)
            assert row is not None
            assert (row.state, row.job_id, row.qpu_seconds) == ("submitted", whole[1][key].job_id, 1.5)
        assert ledger.spent() == sum(row.counted for row in whole[1].values())
    assert recover(folder).refetch == []


def test_a_result_file_is_not_taken_for_another_job(whole: tuple[Path, dict[str, Row]], tmp_path: Path) -> None:
    folder = copy_of(whole[0], tmp_path / "ledger")
    results = folder / "results"
    (folder / "ledger.sqlite").unlink()
    (results / f"{KEYS[0]}.json.gz").write_bytes((results / f"{KEYS[2]}.json.gz").read_bytes())
    (results / "notes.json.gz").write_bytes(b"no gzip")
    assert recover(folder).rows == 10


def test_a_newer_version_is_left_alone(whole: tuple[Path, dict[str, Row]], tmp_path: Path) -> None:
    folder = copy_of(whole[0], tmp_path / "ledger")
    connection = sqlite3.connect(folder / "ledger.sqlite")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = (folder / "ledger.sqlite").read_bytes()
    with pytest.raises(LedgerError, match="format 2"):
        recover(folder)
    assert (folder / "ledger.sqlite").read_bytes() == before
    assert not list(folder.glob("damaged-*"))


def test_a_ledger_in_use_is_not_recovered(whole: tuple[Path, dict[str, Row]], tmp_path: Path) -> None:
    folder = copy_of(whole[0], tmp_path / "ledger")
    with Ledger.open(folder), pytest.raises(LedgerError, match="another process has it open"):
        recover(folder)
    with pytest.raises(LedgerError, match="there is no ledger"):
        recover(tmp_path / "none")


@pytest.mark.slow
def test_a_recovery_that_is_killed_is_repeated(whole: tuple[Path, dict[str, Row]], tmp_path: Path) -> None:
    data = (whole[0] / "ledger.sqlite").read_bytes()
    damaged = data[:8192] + bytes(4096) + data[12288:]

    def broken(name: str) -> Path:
        folder = copy_of(whole[0], tmp_path / name)
        (folder / "ledger.sqlite").write_bytes(damaged)
        return folder

    straight = broken("straight")
    recover(straight)
    with Ledger.open(straight) as ledger:
        expected = ledger.rows()
    refused = 0
    for step in range(0, 200, 3):
        folder = broken(str(step))
        pid = os.fork()
        if pid == 0:
            left = [step]

            def count(name: str, left: list[int] = left) -> None:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

            try:
                for name in ("fsync", "replace", "unlink", "mkdir"):
                    real = getattr(os, name)
                    setattr(os, name, lambda *a, n=name, f=real, **k: (count(n), f(*a, **k))[1])
                recover(folder)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if not opens(folder):
            refused += 1
        recover(folder)
        with Ledger.open(folder) as ledger:
            assert ledger.rows() == expected
        assert damaged in [kept.read_bytes() for kept in folder.glob("damaged-*/ledger.sqlite")]
        assert not list(folder.glob(".recover-*"))
        shutil.rmtree(folder)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0
    assert refused >= 3
