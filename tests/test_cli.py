from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qhw_diffusion.cli import COMMANDS, build_parser, main
from qhw_diffusion.errors import MissingDataError, QhwError

SMALL = ["--updates", "3", "--num-envs", "24", "--n-steps", "3", "--spacing", "trailing", "--starts", "32",
         "--g0", "1.2", "--actor", "matched", "--checkpoint-every", "1"]  # fmt: skip


@pytest.mark.parametrize("path", list(COMMANDS))
def test_every_command_has_help_with_all_flags_documented(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        build_parser(path).parse_args([*path, "--help"])
    assert stop.value.code == 0
    assert "usage: qhw " + " ".join(path) in capsys.readouterr().out
    parser = build_parser(path)
    for word in path:
        choices = next(a.choices for a in parser._actions if a.choices and word in a.choices)
        parser = choices[word]  # type: ignore[call-overload,index,assignment]
    undocumented = [action.dest for action in parser._actions if not action.help]
    assert undocumented == []


def test_settings_become_flags_of_the_right_type() -> None:
    arguments = ["study", "guidance", "--constants", "1, 1.5,2", "--actors", "quantum,mlp", "--no-reuploading",
                 "--updates", "7", "--data-root", "x", "--reward-confidence", "0.5"]  # fmt: skip
    given = vars(build_parser(arguments).parse_args(arguments))
    assert given["StudyConfig.constants"] == (1.0, 1.5, 2.0)
    assert given["StudyConfig.actors"] == ("quantum", "mlp")
    assert given["ActorConfig.reuploading"] is False
    assert given["PPOConfig.updates"] == 7
    assert given["ModelConfig.data_root"] == "x"
    assert given["RewardConfig.confidence"] == 0.5
    assert "PPOConfig.gamma" not in given


def test_devices_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    names = capsys.readouterr().out.split()
    assert {"ideal", "fake_marrakesh", "fake_manila"} <= set(names)
    assert main(["version"]) == 0
    assert "qiskit 2." in capsys.readouterr().out


def test_an_error_is_one_line_and_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "guidance", str(tmp_path / "nowhere")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("qhw: error: ")
    assert "no such folder" in err
    assert "Traceback" not in err
    with pytest.raises(QhwError):
        main(["--debug", "evaluate", "guidance", str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "fake_marakesh", "--actor", "quantum"], "did you mean fake_marrakesh"),
        (["--data", "digit"], "digits"),
        (["--gamma", "nan"], "gamma"),
        (["--g-min", "3", "--g-max", "2"], "g_min"),
        (["--spacing", "trailling"], "did you mean trailing"),
        (["--spacing", "leading"], "timestep 666"),
        (["--n-steps", "1001"], "1 … 1000"),
        (["--minibatches", "37"], "at most 36"),
    ],
)
def test_bad_settings_leave_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    settings = [*SMALL, *flags] if "--actor" not in flags else [*SMALL[:-4], *SMALL[-2:], *flags]
    assert main(["train", "guidance", "--out", str(tmp_path / "run"), *settings]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_train_resume_evaluate_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    train = ["train", "guidance", "--out", str(out), *SMALL]
    assert main(train) == 0
    assert "evaluate it with" in capsys.readouterr().out
    assert (out / "model" / "model.safetensors").is_file()
    weights = (out / "model" / "model.safetensors").read_bytes()

    assert main(train) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["train", "guidance", "--out", str(out), "--resume", "--updates", "9"]) == 2
    assert "updates" in capsys.readouterr().err
    assert main([*train, "--overwrite", "--resume"]) == 2
    assert "contradict" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    assert main(["train", "guidance", "--out", str(tmp_path / "mine"), *SMALL, "--overwrite"]) == 2
    assert (tmp_path / "mine" / "thesis.txt").exists()

    assert main([*train, "--overwrite"]) == 0
    assert (out / "model" / "model.safetensors").read_bytes() == weights  # same seed, same bits
    capsys.readouterr()

    assert main(["evaluate", "guidance", str(out), "--seeds", "2", "--images", "40"]) == 0
    told = capsys.readouterr().out
    assert "constant g = 1.2" in told
    saved = json.loads((out / "evaluations" / "home-home.json").read_text())
    assert len(saved["values"]["as trained (matched)"]["fd"]) == 2
    assert main(["evaluate", "guidance", str(out), "--engine", "ideal"]) == 2
    assert "classical" in capsys.readouterr().err
    assert main(["evaluate", "guidance", str(out), "--seeds", "0"]) == 2


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_ends_where_an_uninterrupted_run_does(tmp_path: Path) -> None:
    settings = [*SMALL, "--updates", "12"]
    command = [sys.executable, "-m", "qhw_diffusion.cli", "train", "guidance"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = tmp_path / "stopped"
    child = subprocess.Popen(
        [*command, "--out", str(out), *settings], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    log = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert b"--resume" in err
    assert b"Traceback" not in err
    done = log.read_text().count("\n")
    assert 2 <= done < 12
    assert main(["train", "guidance", "--out", str(out), "--resume"]) == 0
    straight = tmp_path / "straight"
    assert main(["train", "guidance", "--out", str(straight), *settings]) == 0
    for name in ("model/model.safetensors", "checkpoint.safetensors"):
        assert (out / name).read_bytes() == (straight / name).read_bytes(), name


def test_missing_data_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, *_: object, **__: object) -> None:
        raise MissingDataError(f"no MNIST under here ({name})")

    monkeypatch.setattr("qhw_diffusion.diffusion.load_dataset", missing)
    for command in ("backbone", "classifier"):
        out = tmp_path / command
        arguments = ["train", command, "--data", "mnist16", "--data-root", str(tmp_path / "none"), "--out", str(out)]
        assert main(arguments) == 2
        assert "no MNIST under" in capsys.readouterr().err
        assert not out.exists()


def test_a_mistyped_device_is_told_before_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "guidance", "--device", "fake_marakesh", "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr()
    assert "did you mean fake_marrakesh" in told.err
    assert "sweep" not in told.out
    assert not (tmp_path / "run").exists()
