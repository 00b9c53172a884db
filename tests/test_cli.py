from __future__ import annotations

import importlib
import json
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import logs
import pytest
from forked import Command
from tyro.conf import Positional

from qhw_diffusion.cli import COMMANDS, main
from qhw_diffusion.cli.app import GROUPS, _study_summary
from qhw_diffusion.cli.flags import FromFlags, UsageError, changed, flags_of, read_call
from qhw_diffusion.config import Config, require
from qhw_diffusion.errors import InvalidInputError, MissingDataError, QhwError
from qhw_diffusion.experiment import load_study, open_study
from qhw_diffusion.runs import Place

SMALL = ["--num-iterations", "3", "--num-envs", "24", "--n-steps", "3", "--spacing", "trailing", "--noise-pool", "32",
         "--g0", "1.2", "--policy", "matched", "--checkpoint-every", "1"]  # fmt: skip


RUNNER = [path for path, (text, _) in COMMANDS.items() if not text]  # the studies on the experiment runner
OWN = [path for path in COMMANDS if path not in RUNNER]


def function_of(path: tuple[str, ...]) -> Callable[..., int]:
    module, _, name = str(COMMANDS[path][1]).partition(":")
    found = getattr(importlib.import_module(module), name)
    return found.function() if path in RUNNER else found  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", list(COMMANDS), ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*path, "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.startswith("usage: qhw " + " ".join(path) + " ")


@pytest.mark.parametrize("path", [*OWN, *RUNNER], ids=" ".join)
def test_every_flag_says_what_it_is(path: tuple[str, ...]) -> None:
    flags = flags_of(function_of(path))
    assert len({flag.name for flag in flags}) == len(flags)
    for flag in flags:
        assert len(flag.help) > 4, flag
        assert not flag.help.lower().startswith(("of ", "see ")), flag
        assert "`qhw" in flag.help or not flag.help.startswith("`"), flag


def test_the_table_is_grouped_and_its_summaries_are_those_of_the_functions() -> None:
    assert {" ".join(path[:-1]) for path in COMMANDS if len(path) > 1} == set(GROUPS)
    for path in OWN:
        first = (function_of(path).__doc__ or "").split("\n")[0].rstrip(".")
        assert first[:1].lower() + first[1:] == COMMANDS[path][0]


@pytest.mark.parametrize(("words", "shown"), [(["--help"], "train guidance"), (["train", "--help"], "train denoising"),
                                              (["-h"], "--debug"), (["ledger", "-h"], "ledger cap"),
                                              (["study", "-h"], "study perception analyse"),
                                              (["study", "perception", "-h"], "study perception make")])  # fmt: skip
def test_help_of_qhw_and_of_its_groups(capsys: pytest.CaptureFixture[str], words: list[str], shown: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ('Study("own", "Own things", C, cells, run, page, summary="what they do")', "what they do"),
        ('Study("own", "Own things", C, cells, run, page)', "Own things"),
        ('Study(name="own", title="Own things", config=C, cells=cells, run=run, page=page)', "Own things"),
        ("Study(*parts)", ""),
        ("made()", ""),
    ],
)
def test_a_study_is_listed_by_its_summary_or_else_its_title(call: str, told: str) -> None:
    assert _study_summary(f"STUDY = {call}\n") == told


def test_studies_are_found_by_their_folder_and_a_user_s_own_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert ("study", "shots") in RUNNER
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    assert "what finite shots do to values" in capsys.readouterr().out  # from the study, which is not imported
    own = f"{Path(__file__).parents[1] / 'examples' / 'own_study.py'}:STUDY"
    with pytest.raises(SystemExit) as stop:
        main(["study", own, "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert "--depths N,…" in told
    assert "--quick" not in told  # it has no quick configuration
    assert main(["study", own, "--depths", "1,2,3", "--seeds", "1", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].split()[:2] == ["all", "3"]
    assert main(["study", "nowhere.py:STUDY"]) == 2
    assert "there is no file nowhere.py" in capsys.readouterr().err


def test_a_study_takes_its_quick_or_its_saved_configuration_changed_by_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[Any] = []
    monkeypatch.setattr("qhw_diffusion.experiment.command.study_command", lambda *a, **k: found.append((a[1], k)) or "")
    study = load_study("shots")
    assert study.quick is not None
    words = ["study", "shots", "--out", str(tmp_path / "x"), "--repeats", "7", "--update-epochs", "3"]
    assert main(words) == 0
    assert main([*words, "--quick", "--workers", "1"]) == 0
    for place, base in enumerate((study.config(), study.quick)):
        models = base.models.replace(ppo=base.models.ppo.replace(update_epochs=3))
        assert found[place][0] == base.replace(models=models, repeats=7)
    assert found[1][1]["workers"] == 1
    open_study(study, tmp_path / "x", study.quick.replace(states=9)).begin()
    assert main([*words[:4], "--resume"]) == 0
    assert found[2][0] == study.quick.replace(states=9)
    assert found[2][1]["resume"] is True


# -- a command line made of a function ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner(Config):
    """The inner part."""

    size: int = 3
    """Size of the inner part."""
    seed: int = 0
    """Seed of the inner part."""
    names: tuple[str, ...] = ("a", "b")
    """Names."""
    kernels: tuple[str | float, ...] = ("fidelity", 0.3)
    """Kernels."""
    shape: tuple[int, int] = (2, 3)
    """Shape."""
    ratio: float | None = 0.5
    """Ratio."""

    def __post_init__(self) -> None:
        require(self.size > 0, f"size must be positive, got {self.size}")


@dataclass(frozen=True)
class Outer(Config):
    """The whole.

    Attributes:
        seed: seed of the whole.
        kind: of two kinds.
    """

    seed: int = 1
    kind: Literal["one", "two"] = "one"
    deep: bool = True
    """Depth."""
    inner: Inner = field(default_factory=Inner)
    """Inner part."""
    rule: str | Callable[[int], int] = "double"
    """Rule, by its name; in Python also a function."""
    table: dict[str, int] = field(default_factory=dict)
    """No word of a command line gives this."""


def called(words: list[str], **options: object) -> tuple[Outer, Place, Path, int]:
    """What a command with these words is called with."""
    found: list[tuple[Outer, Place, Path, int]] = []

    def make(given: Mapping[str, Any], place: Place) -> Outer:
        return changed(Outer(seed=8, inner=Inner(size=9)) if place.resume else Outer(), given)  # type: ignore[no-any-return]

    def command(
        target: Positional[Path],
        *,
        count: int = 2,
        place: Annotated[Place, FromFlags(skip=("command",))] = Place(Path("runs/x")),  # noqa: B008
        whole: Annotated[Outer, FromFlags(make, **options)] = Outer(),  # type: ignore[arg-type]
    ) -> int:
        """Do it.

        Args:
            target: place to look at.
            count: number of things.
            place: folder.
            whole: everything.
        """
        found.append((whole, place, target, count))
        return 0

    command.__annotations__ = {
        "target": Positional[Path],
        "count": int,
        "place": Annotated[Place, FromFlags(skip=("command",))],
        "whole": Annotated[Outer, FromFlags(make, **options)],  # type: ignore[arg-type]
        "return": int,
    }
    assert read_call(command, words, prog="qhw x", command_line="qhw x …").run() == 0
    return found[0]


def test_values_of_all_kinds_reach_the_function() -> None:
    words = ["t", "--kind", "two", "--no-deep", "--names", "x, y,", "--kernels=0.1,fidelity",
             "--shape", "4,5", "--ratio", "None", "--rule", "own.py:rule", "--inner-seed", "7", "--seed", "-3",
             "--size", "6", "--overwrite"]  # fmt: skip
    whole, place, target, count = called(words)
    inner = Inner(6, 7, ("x", "y"), (0.1, "fidelity"), (4, 5), None)
    assert whole == Outer(-3, "two", False, inner, "own.py:rule")
    assert place == Place(Path("runs/x"), overwrite=True, command="qhw x …")
    assert (target, count) == (Path("t"), 2)


def test_defaults_are_those_of_one_function_and_flags_change_them() -> None:
    assert called(["t"])[0] == Outer()
    assert called(["t", "--resume"])[0] == Outer(seed=8, inner=Inner(size=9))
    assert called(["t", "--resume", "--inner-seed", "4"])[0] == Outer(seed=8, inner=Inner(size=9, seed=4))


def test_flags_are_renamed_prefixed_and_left_out() -> None:
    options = {"rename": {"kind": "sort"}, "prefix": {"inner": "in"}, "skip": ("inner.names",)}
    assert called(["t", "--sort", "two", "--in-size", "5"], **options)[0] == Outer(kind="two", inner=Inner(size=5))
    with pytest.raises(UsageError, match="--names"):
        called(["t", "--names", "a"], **options)
    with pytest.raises(InvalidInputError, match="there is a flag --count already"):
        called(["t"], rename={"kind": "count"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "these are missing: TARGET"),
        (["t", "--size"], "--size needs a value"),
        (["t", "--size", "--seed", "1"], "--size needs a value"),
        (["t", "--size", "many"], "--size: 'many' is no whole number"),
        (["t", "--ratio", "half"], "--ratio: 'half' is no number"),
        (["t", "--shape", "1"], "--shape: '1' has 1 entries; 2 are needed"),
        (["t", "--shape", "1,b"], "--shape: 'b' is no whole number"),
        (["t", "--kind", "three"], "--kind: unknown value 'three'; allowed: one, two"),
        (["t", "u"], "unrecognized arguments: u"),
        (["t", "--siez", "3"], "unrecognized arguments: --siez 3; did you mean --size"),
        (["t", "--count", "1.5"], "--count: '1.5' is no whole number"),
    ],
)
def test_what_a_command_does_not_take_is_one_sentence(words: list[str], message: str) -> None:
    """Also a contract test of `tyro._errors`, which is private: each kind of refusal comes as it is read."""
    with pytest.raises(UsageError) as told:
        called(words)
    assert str(told.value).startswith(message)


def test_without_tyros_private_module_tyro_refuses_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("tyro._errors.on_parse_error")
    with pytest.raises(SystemExit) as told:
        called(["t", "--size", "many"])
    assert told.value.code == 2
    assert "--size" in capsys.readouterr().err
    assert called(["t", "--size", "3"])[0] == Outer(inner=Inner(size=3))


def test_values_that_do_not_fit_are_the_configuration_s_own_errors() -> None:
    with pytest.raises(InvalidInputError, match="size must be positive, got 0"):
        called(["t", "--size", "0"])


@dataclass(frozen=True)
class Plain:
    """A configuration that somebody else wrote."""

    number: int = 1
    part: Inner | None = None

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError("below one")


def test_changes_of_a_part_that_is_not_there_and_errors_of_others() -> None:
    assert changed(Plain(), {"part": {"size": 2}}) == Plain(part=Inner(size=2))
    assert changed(Plain(), {"part": {}}) == Plain()
    with pytest.raises(InvalidInputError, match="Plain does not take these values: below one"):
        changed(Plain(), {"number": 0})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "qhw: error: give a command: "),
        (["trian"], "qhw: error: unknown command 'trian'; did you mean train"),
        (["--verbose", "version"], "qhw: error: unrecognized arguments: --verbose"),
        (["train"], "qhw train: error: say what: guidance"),
        (["train", "guidence"], "qhw train: error: unknown command of qhw train 'guidence'; did you mean guidance"),
        (["distill"], "qhw distill: error: these are missing: RUN"),
        (["distill", "x", "--itno", "network"], "qhw distill: error: unrecognized arguments: --itno network; did you"),
        (["distill", "x", "--into", "n"], "qhw distill: error: --into: unknown value 'n'; allowed: lookup, network"),
        (["study", "shots", "--shot", "3"], "qhw study shots: error: "),
        (["devices", "--x", "QISKIT_IBM_TOKEN=abcDEF-1234567"], "qhw devices: error: unrecognized arguments: --x"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_two(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert "abcDEF" not in err


def test_a_file_without_the_name_of_its_study_is_told_the_form(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "spread.py"])
    assert capsys.readouterr().err.endswith("tuning, or one of your own as module:name or file.py:name\n")


# -- commands ----------------------------------------------------------------------------------------------------------


def test_python_m_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["qhw_diffusion", "--version"])
    monkeypatch.setattr("sys.excepthook", sys.excepthook)  # which it sets
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("qhw_diffusion", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("qhw-diffusion ")


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
        (["--device", "fake_marakesh", "--policy", "quantum"], "did you mean fake_marrakesh"),
        (["--data", "digit"], "digits"),
        (["--gamma", "nan"], "gamma"),
        (["--g-min", "3", "--g-max", "2"], "g_min"),
        (["--spacing", "trailling"], "did you mean trailing"),
        (["--spacing", "leading"], "timestep 666"),
        (["--n-steps", "1001"], "1 … 1000"),
        (["--num-minibatches", "37"], "at most 36"),
    ],
)
def test_bad_settings_leave_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    settings = [*SMALL, *flags] if "--policy" not in flags else [*SMALL[:-4], *SMALL[-2:], *flags]
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
    assert main(["train", "guidance", "--out", str(out), "--resume", "--num-iterations", "9"]) == 2
    assert "num_iterations" in capsys.readouterr().err
    assert main([*train, "--overwrite", "--resume"]) == 2
    assert "contradict" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    assert main(["train", "guidance", "--out", str(tmp_path / "mine"), *SMALL, "--overwrite"]) == 2
    assert (tmp_path / "mine" / "thesis.txt").exists()

    assert main([*train, "--overwrite"]) == 0
    assert (out / "model" / "model.safetensors").read_bytes() == weights  # same seed, same bits
    capsys.readouterr()

    evaluate = ["evaluate", "guidance", str(out), "--seeds", "2", "--images", "40", "--schedule-iterations"]
    assert main([*evaluate, "2"]) == 0
    told = capsys.readouterr().out
    assert "constant g = 1.2" in told
    assert "free schedule (pathwise) minus constant g = 1.2: energy" in told
    free = json.loads((out / "evaluations" / "free-schedule.json").read_text())
    assert (free["iterations"], len(free["g"])) == (2, 3)
    assert main([*evaluate, "0"]) == 0
    assert "free schedule" not in capsys.readouterr().out
    saved = json.loads((out / "evaluations" / "home-home.json").read_text())
    assert len(saved["values"]["as trained (matched)"]["fd"]) == 2
    assert main(["evaluate", "guidance", str(out), "--engine", "ideal"]) == 2
    assert "classical" in capsys.readouterr().err
    assert main(["evaluate", "guidance", str(out), "--seeds", "0"]) == 2


@pytest.mark.slow
def test_pathwise_training_has_settings_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    train = ["train", "guidance", "--out", str(out), "--g0", "1.2", "--policy", "matched", "--method", "pathwise"]
    assert main([*train, "--num-iterations", "2"]) == 2
    assert "--num-iterations: for --method ppo; the method is pathwise" in capsys.readouterr().err
    assert main([*train[:-2], "--pathwise-num-images", "20"]) == 2
    assert "--pathwise-num-images: for --method pathwise; the method is ppo" in capsys.readouterr().err
    assert main([*train[:-1], "reinforce"]) == 2
    assert "allowed: pathwise, ppo" in capsys.readouterr().err
    assert not out.exists()
    settings = ["--pathwise-num-iterations", "2", "--pathwise-num-images", "20"]
    assert main([*train, *settings]) == 0
    assert "evaluate it with" in capsys.readouterr().out
    assert main(["train", "guidance", "--out", str(out), "--resume", "--pathwise-num-images", "40"]) == 2
    assert "pathwise.num_images = 20, now 40" in capsys.readouterr().err
    assert main(["train", "guidance", "--out", str(out), "--resume"]) == 0


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_ends_where_an_uninterrupted_run_does(tmp_path: Path) -> None:
    settings = [*SMALL, "--num-iterations", "12"]
    out = tmp_path / "stopped"
    logger = ["--logger", logs.file_of(tmp_path)]
    child = Command(["train", "guidance", "--out", str(out), *settings, *logger], stderr=tmp_path / "stderr")
    log = out / "metrics.jsonl"
    try:
        child.wait_until(lambda: log.exists() and log.read_text().count("\n") >= 2)
    finally:
        code = child.end(signal.SIGINT)
    err = (tmp_path / "stderr").read_text()
    assert code == 130, err
    assert "--resume" in err
    assert "Traceback" not in err
    done = log.read_text().count("\n")
    assert 2 <= done < 12
    assert logs.outcomes(tmp_path) == ["stopped"]
    assert main(["train", "guidance", "--out", str(out), "--resume", *logger]) == 0
    assert logs.outcomes(tmp_path) == ["stopped", "finished"]
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


def test_a_wrong_number_of_threads_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QHW_NUM_THREADS", "0")
    assert main(["version"]) == 2
    assert "QHW_NUM_THREADS is '0'; allowed: whole numbers from 1 to 99999" in capsys.readouterr().err
    monkeypatch.setenv("QHW_NUM_THREADS", "3")
    assert main(["version"]) == 0
