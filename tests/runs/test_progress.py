"""Progress on terminals, in log files and in notebooks; what takes less than a second shows none."""

from __future__ import annotations

import importlib
import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from qhw_diffusion.runs import progress, progress_enabled

module = importlib.import_module("qhw_diffusion.runs.progress")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)

    def work(self, bar: Any, seconds: float, steps: int = 1) -> None:
        for _ in range(steps):
            self.now += seconds
            bar.update(1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.delenv("QHW_PROGRESS", raising=False)
    return Clock(monkeypatch)


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        """What has come since it was last asked."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


def test_a_log_file_gets_a_line_a_minute_at_most(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(total=100, desc="training", unit="update") as bar:
        for step in range(100):
            clock.work(bar, 2.0)
            bar.set_postfix(loss=step)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 + 1, lines  # 200 s, and the end
    assert lines[0] == "training:  30% 30/100 [01:00<02:20,  2.00s/update, loss=28]"
    assert lines[-1].startswith("training: 100% 100/100 [03:20<00:00")
    assert not set("\r\x1b") & set("".join(lines))


def test_a_log_file_gets_nothing_of_what_is_short(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(total=3, desc="outer") as outer:
        for _ in progress(range(3), desc="inner"):
            clock.work(outer, 10.0)
    assert capsys.readouterr().err == ""


def test_a_log_file_of_something_without_an_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(desc="sampling", unit="step", initial=5) as bar:
        clock.work(bar, 61.0)
        bar.set_postfix(loss=1)
    assert capsys.readouterr().err.splitlines()[0].startswith("sampling: 6step [01:01")


def test_a_terminal_gets_a_bar_after_a_second(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(total=4, desc="training") as bar:
        clock.work(bar, 0.2, 4)
    assert terminal.shown() == ""
    with progress(total=4, desc="training") as bar:
        clock.work(bar, 0.4, 4)
    shown = terminal.shown()
    assert shown.startswith("\rtraining:  75%")
    assert "\rtraining: 100%" in shown
    assert shown.endswith("\n"), "the bar stays"


def test_bars_within_bars_go_and_the_outermost_stays(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(total=2, desc="outer") as outer:
        clock.work(outer, 2.0)
        with progress(total=2, desc="inner") as inner:
            clock.work(inner, 2.0, 2)
            assert "\n\rinner: 100%" in terminal.shown(), "below the outer one"
        assert terminal.shown().endswith("\x1b[A"), "back to the outer one's line"
        clock.work(outer, 2.0)
    shown = terminal.shown()
    assert "outer: 100%" in shown
    assert shown.endswith("\n")


def test_a_notebook_without_widgets_gets_text_on_stdout(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ipywidgets" else find_spec(name))
    with progress(total=4, desc="training") as bar:
        clock.work(bar, 0.6, 4)
    told = capsys.readouterr()
    assert told.err == ""
    assert "training: 100%" in told.out
    assert not recwarn.list


def test_a_notebook_with_widgets_gets_one(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "in_notebook", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("tqdm.notebook.tqdm", lambda iterable, **settings: made.append(settings))
    progress(total=4, desc="training")
    assert (made[0]["total"], made[0]["desc"], made[0]["delay"]) == (4, "training", 1.0)


def test_this_process_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())  # imported, as by a debugger, and no kernel runs
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not module.in_notebook()


@pytest.mark.parametrize("setting", ["0", "1"])
def test_the_environment_decides(
    setting: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QHW_PROGRESS", setting)
    with progress(total=4, desc="training") as bar:
        clock.work(bar, 100.0, 4)
    assert ("training" in capsys.readouterr().err) is progress_enabled() is (setting == "1")


def test_without_a_stderr(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress(total=4, desc="training") as bar:
        clock.work(bar, 100.0, 4)
    assert list(progress([1, 2])) == [1, 2]
