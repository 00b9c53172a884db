"""SIGKILL at every step of every write, and processes that race: on a key, on a cap, on making the ledger."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qhw_diffusion.errors import BudgetError
from qhw_diffusion.hardware import Ledger, Row

A = "a" * 64
RAW = "the answer " * 1000


def plan(ledger: Ledger, key: str = A, seconds: float = 1.0, cap: float = 20.0, run: str = "r") -> Row:
    return ledger.plan(key, run=run, purpose="p", device="d", circuits=1, shots=10, estimate_seconds=seconds, paid=True,
                       summary={}, cap=cap)  # fmt: skip


def child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked process; returns its pid. Exit status 0 if it ends, 1 if it raises."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """Exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def bring_to(folder: Path, state: str) -> None:
    with Ledger.open(folder) as ledger:
        if state == "nothing":
            return
        plan(ledger)
        if state in ("submitted", "done", "failed"):
            ledger.submitted(A, "job-1")
        if state == "failed":
            ledger.failed(A, "no", 0.5)


# name of the write → state before, the write, what the row may be after it (job id, state)
WRITES: dict[str, tuple[str, Callable[[Ledger], Any], tuple[Any, ...]]] = {
    "plan": ("nothing", plan, ("planned", None, 1)),
    "submitted": ("planned", lambda ledger: ledger.submitted(A, "job-1"), ("submitted", "job-1", 1)),
    "done": ("submitted", lambda ledger: ledger.done(A, RAW, 0.75), ("done", "job-1", 1)),
    "failed": ("submitted", lambda ledger: ledger.failed(A, "no", 0.5), ("failed", "job-1", 1)),
    "retry": ("failed", lambda ledger: ledger.retry(A, cap=20.0), ("planned", None, 2)),
}


def killed_at(folder: Path, write: Callable[[Ledger], Any], step: int) -> int:
    """Do `write` in a process that kills itself before its `step`-th statement, fsync or rename."""

    def work() -> None:
        left = [step]

        def count(*_: object) -> None:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

        with Ledger.open(folder) as ledger:
            ledger._file._connection.set_trace_callback(count)
            for name in ("fsync", "replace", "chmod"):
                real = getattr(os, name)
                setattr(os, name, lambda *a, real=real, **k: (count(), real(*a, **k))[1])
            write(ledger)

    return ended(child(work))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WRITES))
def test_killed_in_the_middle_of_a_write(tmp_path: Path, name: str) -> None:
    state, write, after = WRITES[name]
    seen = set()
    for step in range(0, 100, 1 if name == "done" else 2):
        folder = tmp_path / str(step)
        bring_to(folder, state)
        with Ledger.open(folder) as ledger:
            before = ledger.get(A)
        status = killed_at(folder, write, step)
        with Ledger.open(folder) as ledger:  # checks the database and every row
            row = ledger.get(A)
            assert row == before or (row and (row.state, row.job_id, row.attempt) == after)
            seen.add(row == before)
            if row is not None and row.state == "done":
                assert ledger.result(A) == RAW
            if row == before:
                write(ledger)  # the same command again
            repeated = ledger.get(A)
            assert repeated is not None
            assert (repeated.state, repeated.job_id, repeated.attempt) == after
            with ledger.lock(A, timeout=0.0):
                pass
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0
    assert step >= 3
    assert seen == {True, False}


def test_the_answer_is_on_the_disk_before_the_row_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring_to(tmp_path, "submitted")
    events: list[str] = []
    with Ledger.open(tmp_path) as ledger:
        for name in ("fsync", "replace"):
            real = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *a, n=name, f=real: (events.append(n), f(*a))[1])
        ledger._file._connection.set_trace_callback(lambda sql: events.append(sql.split()[0]))
        ledger.done(A, RAW, 1.0)
    assert [e for e in events if e in ("fsync", "replace", "COMMIT")] == ["fsync", "replace", "fsync", "COMMIT"]


def test_killed_at_any_moment_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    random.seed(0)
    acknowledged: list[str] = []
    for attempt in range(6):
        reading, writing = os.pipe()

        def work(attempt: int = attempt, writing: int = writing) -> None:
            with Ledger.open(tmp_path) as ledger:
                for number in range(1000):
                    key = f"{attempt:032x}{number:032x}"
                    plan(ledger, key, 0.001)
                    os.write(writing, f"planned {key}\n".encode())
                    ledger.submitted(key, f"job-{attempt}-{number}")
                    os.write(writing, f"submitted {key}\n".encode())
                    ledger.done(key, RAW, 0.001)
                    os.write(writing, f"done {key}\n".encode())

        pid = child(work)
        os.close(writing)
        time.sleep(random.uniform(0.05, 0.3))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        with os.fdopen(reading) as told:
            acknowledged += told.read().splitlines()
    last = {key: state for state, key in (line.split() for line in acknowledged)}
    order = ("planned", "submitted", "done")
    with Ledger.open(tmp_path) as ledger:
        for key, state in last.items():
            row = ledger.get(key)
            assert row is not None
            assert order.index(row.state) >= order.index(state)
            if row.state == "done":
                assert ledger.result(key) == RAW
        assert len(ledger.rows()) <= len(last) + 6  # at most one a kill that was not acknowledged
    assert sum(state == "done" for state in last.values()) >= 3


def test_a_lock_is_freed_when_its_process_is_killed(tmp_path: Path) -> None:
    reading, writing = os.pipe()

    def work() -> None:
        with Ledger.open(tmp_path) as ledger, ledger.lock(A):
            os.write(writing, b"x")
            time.sleep(60)

    pid = child(work)
    os.read(reading, 1)
    with Ledger.open(tmp_path) as ledger:
        with pytest.raises(Exception, match=f"in use by process {pid}"), ledger.lock(A, timeout=0.1):
            pass
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        with ledger.lock(A, timeout=1.0):
            pass


def race(work: Callable[[int], None], processes: int) -> None:
    """Start `work(0)`, `work(1)`… in processes that begin together; all must end well."""
    reading, writing = os.pipe()

    def begin(number: int) -> None:
        os.close(writing)
        os.read(reading, 1)  # returns when the parent closes its end
        work(number)

    pids = [child(lambda number=number: begin(number)) for number in range(processes)]  # type: ignore[misc]
    os.close(writing)
    os.close(reading)
    assert [ended(pid) for pid in pids] == [0] * processes


def test_processes_never_pass_a_cap_together(tmp_path: Path) -> None:
    folder = tmp_path / "new"  # made by whoever is first

    def work(number: int) -> None:
        with Ledger.open(folder) as ledger:
            for attempt in range(20):
                try:
                    plan(ledger, f"{number:032x}{attempt:032x}", 1.0, cap=20.0)
                except BudgetError:
                    return
                time.sleep(0.02)  # SQLite's lock is not fair: the first one would take it all

    race(work, 4)
    with Ledger.open(folder) as ledger:
        assert ledger.spent("r") == 20.0  # all of it was used, and not a second more
        assert len({row.key[:32] for row in ledger.rows()}) > 1


def test_processes_never_send_one_key_twice(tmp_path: Path) -> None:
    sent = tmp_path / "sent"

    def work(number: int) -> None:
        with Ledger.open(tmp_path / "new") as ledger:
            for job in range(5):
                key = f"{job:064x}"
                with ledger.lock(key):
                    if plan(ledger, key).state == "planned":
                        with sent.open("a") as file:
                            file.write(f"{job}\n")
                        ledger.submitted(key, f"job-{job}")
                        ledger.done(key, RAW, 1.0)
                    assert ledger.result(key) == RAW

    race(work, 3)
    assert sorted(sent.read_text().split()) == ["0", "1", "2", "3", "4"]


def test_a_ledger_is_not_taken_through_a_fork(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        assert ended(child(lambda: plan(ledger))) == 1
        assert ledger.rows() == []
