from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from qhw_diffusion.errors import WorkerError
from qhw_diffusion.studies.pool import Task, make_executor, run_tasks


def leave_a_mark(file: str) -> None:
    Path(file).write_text(str(os.getpid()))


def fail(message: str) -> None:
    raise ValueError(message)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_interrupt(started: str, saved: str) -> None:
    """What a training does: note the interrupt, finish the step, save, stop."""
    from qhw_diffusion.runs import interruptible

    with interruptible() as stop:
        Path(started).write_text("")
        deadline = time.monotonic() + 60
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
    Path(saved).write_text("saved")
    raise KeyboardInterrupt


def test_tasks_run_in_this_process_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [Task(f"t{i}", leave_a_mark, {"file": str(tmp_path / str(i))}, cost=i) for i in range(3)]
    run_tasks(tasks, workers=1, desc="stage")
    assert {(tmp_path / str(i)).read_text() for i in range(3)} == {str(os.getpid())}
    assert "stage: t2" in capsys.readouterr().err
    run_tasks([], workers=1, desc="nothing")
    with pytest.raises(ValueError, match="boom"):
        run_tasks([Task("bad", fail, {"message": "boom"}, 1)], workers=1, desc="stage")


@pytest.mark.slow
def test_tasks_run_in_other_processes_and_errors_and_interrupts_come_back(tmp_path: Path) -> None:
    executor = make_executor(2)
    assert executor is not None
    with executor:
        tasks = [Task(f"t{i}", leave_a_mark, {"file": str(tmp_path / str(i))}, cost=i) for i in range(4)]
        run_tasks(tasks, workers=2, desc="stage", executor=executor)
        pids = {(tmp_path / str(i)).read_text() for i in range(4)}
        assert str(os.getpid()) not in pids
        with pytest.raises(ValueError, match="boom"):
            run_tasks([Task("bad", fail, {"message": "boom"}, 1)], workers=2, desc="stage", executor=executor)

        started, saved = tmp_path / "started", tmp_path / "saved"
        arguments = {"started": str(started), "saved": str(saved)}

        def interrupt_once_started() -> None:
            while not started.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt_once_started)
        thread.start()
        waiting = [Task("training", wait_for_interrupt, arguments, 9)]
        waiting += [Task(f"late{i}", leave_a_mark, {"file": str(tmp_path / f"late{i}")}, 1) for i in range(9)]
        with pytest.raises(KeyboardInterrupt):
            run_tasks(waiting, workers=2, desc="stage", executor=executor)
        thread.join()
        assert saved.read_text() == "saved"


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line_and_what_was_finished_stays(tmp_path: Path) -> None:
    executor = make_executor(2)
    assert executor is not None
    with executor:
        first = Task("first", leave_a_mark, {"file": str(tmp_path / "first")}, cost=1)
        run_tasks([first], workers=2, desc="stage", executor=executor)
        with pytest.raises(WorkerError, match=r"killed.*unlucky.*--resume"):
            run_tasks([Task("unlucky", be_killed, {}, 1)], workers=2, desc="stage", executor=executor)
    assert (tmp_path / "first").exists()
