"""Printing and failing on terminals and disks as they may be."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from qhw_diffusion import cli, terminal
from qhw_diffusion.cli import main

QHW = [sys.executable, "-m", "qhw_diffusion.cli"]
HELP = ["cost", "--help"]  # µ, … and frames, and no library is loaded for it


def run(*arguments: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with `shell` after it."""
    words = " ".join([*QHW, *arguments, shell])
    return subprocess.run(
        ["bash", "-c", words], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


# -- characters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
])  # fmt: skip
def test_what_the_terminal_cannot_show_is_spelt_out(environment: dict[str, str]) -> None:
    done = run(*HELP, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "ibm_..." in done.stdout  # ibm_…
    assert " us between two shots" in done.stdout  # µs
    wrong = run("devices", "--fäke", **{**environment, "QHW_PROGRESS": "1"})
    assert wrong.returncode == 2
    assert "did you mean --fake" in wrong.stderr


def test_a_table_is_spelt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["calibration", "show", "fake_manila"]) == 0
    assert "T1 us" in raw.getvalue().decode("ascii")


def test_the_signs_of_the_tables_have_a_plain_form() -> None:
    assert "?" not in terminal.plain("⟨Z⟩±Δ−–×·…→≤≥≈√²₀µχσλεα∞∈∅⊗“”’‖é½")
    assert terminal.plain("⟨Z⟩ ± 0.1 ΔCFG, χ² σ Σ") == "<Z> +- 0.1 dCFG, chi2 sigma Sigma"
    assert terminal.plain("\udcff") == "?"  # a byte of a file name that is no text


def test_the_encoding_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    written = {}
    for encoding in ("utf-8", "latin-1", "ascii"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        with terminal.usable_streams():
            print("⟨Z⟩ ± \udcff")
        written[encoding] = raw.getvalue().decode(encoding)
        assert sys.stdout.errors == "strict"
    assert written == {"utf-8": "⟨Z⟩ ± ?\n", "latin-1": "<Z> ± ?\n", "ascii": "<Z> +- ?\n"}


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["devices", "--fake"], HELP, ["version"]])
def test_a_reader_that_leaves_stops_nothing(arguments: list[str]) -> None:
    done = run(*arguments, shell="| head -c 1; echo ${PIPESTATUS[0]}", PYTHONUNBUFFERED="1")
    assert done.stdout[1:] == "0\n"
    assert done.stderr == ""


def test_a_command_goes_on_when_nobody_reads_any_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it does after the line that nobody read is done."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w", buffering=1))

    def command() -> int:
        print("first", flush=True)
        (tmp_path / "result").write_text("done")
        print("last")
        return 0

    monkeypatch.setitem(cli.COMMANDS, ("version",), ("text", command))
    assert main(["version"]) == 0
    assert (tmp_path / "result").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams(closed: str) -> None:
    done = run("version", shell=f"{closed}")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("at_once", ["", "1"], ids=["at the end", "at the first line"])
@pytest.mark.parametrize("arguments", [["version"], ["--version"], ["--help"], HELP])
def test_output_that_cannot_be_written_is_an_error(arguments: list[str], at_once: str) -> None:
    done = run(*arguments, shell="> /dev/full", PYTHONUNBUFFERED=at_once)
    assert done.returncode == 2
    assert done.stderr.startswith("qhw: error: No space left on device")
    assert done.stderr.count("\n") == 1


def test_a_broken_connection_is_not_a_reader_that_has_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, ("version",), ("text", failing(BrokenPipeError(errno.EPIPE, "Broken pipe"))))
    assert main(["version"]) == 2
    assert "qhw: error: Broken pipe" in capsys.readouterr().err


# -- errors of the operating system ------------------------------------------------------------------------------------


def failing(error: BaseException) -> Callable[[object], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: No space left on device; make room there"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded; make room there"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a"),
            "/a: Permission denied; choose a place that you may",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", b"/a"),
            "/a: Read-only file system; choose a place that you may",
        ),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a"), "/a: Not a directory; a file is where a folder"),
        (FileExistsError(errno.EEXIST, "File exists", "/a", None, "/b"), "/a → /b: File exists; a file is where"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"), "/a: No such file or directory; check"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files; too many files are open: raise the limit"),
        (OSError("of a library,\nin two lines"), "of a library, in two lines; the same command with --debug"),
        (ConnectionResetError(), "ConnectionResetError; the same command with --debug"),
    ],
)
def test_every_error_of_the_operating_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, message: str
) -> None:
    monkeypatch.setitem(cli.COMMANDS, ("version",), ("text", failing(error)))
    assert main(["version"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"qhw: error: {message}")
    assert err.count("\n") == 1
    with pytest.raises(type(error)):
        main(["--debug", "version"])


def test_a_thread_of_tensorboard_leaves_its_error_to_the_main_one(capsys: pytest.CaptureFixture[str]) -> None:
    class _AsyncWriterThread(threading.Thread):
        pass

    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    told: list[object] = []
    before, threading.excepthook = threading.excepthook, told.append
    try:
        with terminal.usable_streams():
            for kind in (_AsyncWriterThread, threading.Thread):
                thread = kind(target=fail)
                thread.start()
                thread.join()
    finally:
        threading.excepthook = before
    assert len(told) == 1


# -- no home -----------------------------------------------------------------------------------------------------------


def test_a_user_without_a_home_gets_one_for_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    known = os.path.expanduser

    def unknown_user(path: str) -> str:
        return known(path) if "HOME" in os.environ else path

    monkeypatch.setattr("os.path.expanduser", unknown_user)
    with terminal.some_home():
        home = Path.home()
        assert home.is_dir()
        assert list(home.iterdir()) == []
    assert not home.exists()
    assert "HOME" not in os.environ
    assert main(["devices"]) == 0  # which looks for an account
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with terminal.some_home():
        assert Path.home() == tmp_path
