"""Loggers besides TensorBoard: what they are told, what they cannot break, and that keys stay out of files.

Weights & Biases and MLflow are stood in for by modules that keep what they are called with.
"""

from __future__ import annotations

import importlib.machinery
import io
import json
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qhw_diffusion.cli import main
from qhw_diffusion.errors import InvalidInputError, MissingDependencyError, UnknownNameError
from qhw_diffusion.runs import RunFolder, evaluation_metrics, logging_to
from qhw_diffusion.runs import loggers as module

OWN = '''
class Kept:
    """Keeps what it is told."""

    def __init__(self, run):
        self.file = open({file!r}, "a")
        self.note("made", run.id, run.kind, run.config["seed"], run.logged_again_from)

    def note(self, *words):
        print(*words, file=self.file, flush=True)

    def log(self, step, values):
        self.note(step, sorted(values.items()))
        if step == {fails}:
            raise RuntimeError("the place is\\nfull")

    def close(self):
        self.note("closed")


class Short:
    """No close."""

    def __init__(self, run):
        pass

    def log(self, step, values):
        values.clear()


class Painter:
    """Pictures too, but for the thirteenth."""

    def __init__(self, run):
        self.folder = run.path.parent

    def log(self, step, values):
        pass

    def picture(self, step, name, png):
        if step == 13:
            raise OSError(f"step {{step}}")
        (self.folder / f"picture-{{step}}.png").write_bytes(png)


def unmade(run):
    raise OSError("no such host")


thing = 3
'''


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A file of a user's own loggers; what `Kept` is told goes to told.txt."""
    (tmp_path / "mine.py").write_text(OWN.format(file=str(tmp_path / "told.txt"), fails=5))
    return str(tmp_path / "mine.py")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    config = {"seed": 3, "ppo": {"rate": 0.1, "layers": [1, 2]}, "empty": {}}
    return RunFolder.create(tmp_path / "run", kind="guidance", config=config)


def told_of(tmp_path: Path) -> list[str]:
    return (tmp_path / "told.txt").read_text().splitlines()


def test_a_logger_of_a_user_s_own_is_told_finite_numbers_and_a_resumed_run_from_where(
    tmp_path: Path, own: str, run: RunFolder
) -> None:
    with logging_to([f"{own}:Kept", f"{own}:Short"]):
        with run:
            run.begin()
            run.log(1, {"losses/policy": 0.5, "charts/reward": float("nan")})
            run.log(2, {"losses/policy": 0.25})
        again = RunFolder.open(run.path, kind="guidance")
        again.truncate_metrics(2)
        with again:
            again.log(2, {"losses/policy": 0.2})
    assert told_of(tmp_path) == [
        f"made {run.id} guidance 3 None",
        "1 [('losses/policy', 0.5)]",
        "2 [('losses/policy', 0.25)]",
        "closed",
        f"made {run.id} guidance 3 2",
        "2 [('losses/policy', 0.2)]",
        "closed",
    ]
    assert not list(run.path.glob("events*")), "TensorBoard was not asked for"
    assert [row["losses/policy"] for row in run.metrics()] == [0.5, 0.2], "what a logger does to its numbers is its own"


def test_a_logger_that_fails_is_told_once_and_stops_nothing(
    tmp_path: Path, own: str, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_to(["tensorboard", f"{own}:Kept", f"{own}:unmade"]), run:
        run.begin()
        for step in range(4, 8):
            run.log(step, {"losses/policy": 1.0})
        run.close()
        run.log(8, {"losses/policy": 1.0})
    assert len(run.metrics()) == 5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert "mine.py:unmade fails (OSError: no such host)" in lines[0]
    assert "mine.py:Kept fails (RuntimeError: the place is full): from here on" in lines[1]
    assert str(run.path) in lines[1]
    assert [line.split()[0] for line in told_of(tmp_path)] == ["made", "4", "5"]
    assert list(run.path.glob("events*"))


def test_without_a_choice_and_with_none(run: RunFolder, tmp_path: Path) -> None:
    with logging_to(["none"]), run:
        run.begin()
        run.log(1, {"losses/policy": 1.0})
    assert not list(run.path.glob("events*"))
    other = RunFolder.create(tmp_path / "other", kind="guidance", config={})
    with logging_to([]), other:
        other.begin()
        other.log(1, {"losses/policy": 1.0})
    assert list(other.path.glob("events*"))


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (["tensorbord"], UnknownNameError, r"did you mean tensorboard.*module:name"),
        (["none", "tensorboard"], InvalidInputError, "none together with tensorboard"),
        (["mine.py:Nothing"], InvalidInputError, "has no 'Nothing'"),
        (["mine.py:thing"], InvalidInputError, "is a int; wanted is a class or function"),
    ],
)
def test_what_is_no_logger_is_refused(
    names: list[str], error: type[Exception], words: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(own).parent)
    with pytest.raises(error, match=words), logging_to(names):
        pass


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_with_the_way_to_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for found in (None, importlib.machinery.ModuleSpec(name, None)):  # the second: a folder of this name
        monkeypatch.setattr("importlib.util.find_spec", lambda package, found=found: found)
        with pytest.raises(MissingDependencyError, match=rf"pip install 'qhw-diffusion\[{name}\]'"), logging_to([name]):
            pass


# -- Weights & Biases and MLflow ---------------------------------------------------------------------------------------


class Calls(list[tuple[Any, ...]]):
    """What was called, in order."""

    def of(self, name: str) -> list[Any]:
        return [call[1:] for call in self if call[0] == name]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Modules in the place of both packages."""
    made = Calls()

    class Run:
        def define_metric(self, name: str, **settings: Any) -> None:
            made.append(("define", name, settings))

        def log(self, values: dict[str, float]) -> None:
            made.append(("log", values))

        def finish(self, exit_code: int) -> None:
            made.append(("finish", exit_code))

    def init(**settings: Any) -> Run:
        made.append(("init", settings))
        return Run()

    class Client:
        runs: dict[str, str] = {}  # noqa: RUF012 - of the store

        def get_experiment_by_name(self, name: str) -> Any:
            return None if not made.of("experiment") else SimpleNamespace(experiment_id="7")

        def create_experiment(self, name: str) -> str:
            made.append(("experiment", name))
            return "7"

        def search_runs(self, experiments: list[str], text: str, max_results: int) -> list[Any]:
            assert experiments == ["7"]
            found = [run for mark, run in self.runs.items() if text == f"tags.`qhw.run` = '{mark}'"]
            return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in found]

        def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
            made.append(("run", run_name, tags))
            self.runs[tags["qhw.run"]] = "r1"
            return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

        def update_run(self, run: str, status: str) -> None:
            made.append(("update", run, status))

        def log_batch(self, run: str, metrics: list[Any] = [], params: list[Any] = []) -> None:  # noqa: B006
            assert len(params) <= 100, "as MLflow refuses"
            made.extend(("param", *each) for each in params)
            if metrics:
                made.append(("log", run, [(m.key, m.value, m.step) for m in metrics]))

        def log_image(self, run: str, image: Any, *, key: str, step: int) -> None:
            assert re.match(r"^[a-zA-Z0-9_\-./ ]+$", key), "as MLflow refuses"
            made.append(("picture", run, key, step, image.size))

        def set_terminated(self, run: str, status: str) -> None:
            made.append(("finish", run, status))

    def metric(key: str, value: float, timestamp: int, step: int) -> Any:
        assert timestamp > 1e12, "milliseconds"
        return SimpleNamespace(key=key, value=value, step=step)

    wandb, mlflow, entities = ModuleType("wandb"), ModuleType("mlflow"), ModuleType("mlflow.entities")
    wandb.init, wandb.Settings = init, lambda **settings: settings  # type: ignore[attr-defined]
    wandb.Image = lambda image: ("image", image.size)  # type: ignore[attr-defined]
    mlflow.MlflowClient, entities.Metric = Client, metric  # type: ignore[attr-defined]
    entities.Param = lambda name, value: (name, value)  # type: ignore[attr-defined]
    for stand_in in (wandb, mlflow, entities):
        stand_in.__spec__ = importlib.machinery.ModuleSpec(stand_in.__name__, None, origin="here")
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    return made


def logged_and_resumed(run: RunFolder, name: str) -> None:
    with logging_to([name]):
        with run:
            run.begin()
            run.log(1, {"losses/policy": 0.5, "charts/reward": 2.0})
        again = RunFolder.open(run.path, kind="guidance")
        again.truncate_metrics(1)
        with again:
            again.log(1, {"losses/policy": 0.4})


def test_weights_and_biases_is_told_its_run_its_settings_and_every_step(
    run: RunFolder, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged_and_resumed(run, "wandb")
    first, second = (settings for (settings,) in calls.of("init"))
    assert first == second, "a resumed run is the same run"
    assert first["id"] == run.id
    assert (first["resume"], first["project"], first["dir"]) == ("allow", "qhw-diffusion", str(run.path))
    versions = {"version": run.manifest["qhw_diffusion"], "commit": run.manifest["commit"]}
    assert first["config"] == {"kind": "guidance", **{k: v for k, v in versions.items() if v}, **run.config}
    assert (first["name"], first["job_type"]) == ("run", "guidance")
    quiet = first["settings"]
    assert quiet["disable_git"] is quiet["x_disable_meta"] is True
    assert quiet["save_code"] is False
    assert calls.of("log") == [
        ({"step": 1, "losses/policy": 0.5, "charts/reward": 2.0},),
        ({"step": 1, "losses/policy": 0.4},),
    ]
    assert ("*", {"step_metric": "step"}) in calls.of("define"), "steps may go back"
    assert calls.of("finish") == [(0,), (0,)]
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run.log(3, {"losses/policy": 1.0})  # outside of the block: TensorBoard
    with logging_to(["wandb"]):
        run.close()
        run.log(4, {"losses/policy": 1.0})
    assert calls.of("init")[-1][0]["project"] == "mine"


def test_mlflow_is_told_its_run_its_settings_and_every_step(run: RunFolder, calls: Calls) -> None:
    logged_and_resumed(run, "mlflow")
    assert calls.of("experiment") == [("qhw-diffusion",)]
    (told,) = calls.of("run")  # a resumed run is the same run
    versions = {"qhw.version": run.manifest["qhw_diffusion"], "qhw.commit": run.manifest["commit"]}
    assert told[0] == "run"
    assert told[1] == {"qhw.run": run.id, "qhw.kind": "guidance", **{k: v for k, v in versions.items() if v}}
    assert calls.of("param") == [("seed", "3"), ("ppo.rate", "0.1"), ("ppo.layers", "[1, 2]"), ("empty", "{}")]
    assert calls.of("log") == [
        ("r1", [("losses/policy", 0.5, 1), ("charts/reward", 2.0, 1)]),
        ("r1", [("losses/policy", 0.4, 1)]),
    ]
    assert calls.of("update") == [("r1", "RUNNING")]
    assert calls.of("finish") == [("r1", "FINISHED"), ("r1", "FINISHED")]


def test_mlflow_takes_more_settings_than_one_call_and_names_of_any_characters(tmp_path: Path, calls: Calls) -> None:
    config = {f"Δ {index}": index for index in range(250)}
    run = RunFolder.create(tmp_path / "run", kind="guidance", config=config)
    with logging_to(["mlflow"]), run:
        run.begin()
        run.log(1, {"reward/mine.py:Own (Δ)": 2.0})
    assert calls.of("param") == [(f"_ {index}", str(index)) for index in range(250)]
    assert calls.of("log") == [("r1", [("reward/mine.py_Own ___", 2.0, 1)])]


# -- how a run ends ----------------------------------------------------------------------------------------------------


def loop(run: RunFolder, *, steps: int, interrupted_at: int) -> int:
    """A loop as the trainings have it; returns how many steps it made."""
    with run.interruptible() as stop:
        for step in range(steps):
            run.log(step, {"losses/policy": 1.0})
            if step == interrupted_at:
                signal.raise_signal(signal.SIGINT)
            if step + 1 < steps and stop.requested:
                return step + 1
    return steps


def raises(error: type[BaseException]) -> Callable[[RunFolder], int]:
    def work(run: RunFolder) -> int:
        run.log(0, {"losses/policy": 1.0})
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "outcome", "status", "code"),
    [
        (lambda run: loop(run, steps=3, interrupted_at=5), "finished", "FINISHED", 0),
        (lambda run: loop(run, steps=3, interrupted_at=1), "stopped", "KILLED", 255),
        (lambda run: loop(run, steps=3, interrupted_at=2), "finished", "FINISHED", 0),  # it was the last step anyway
        (raises(KeyboardInterrupt), "stopped", "KILLED", 255),
        (raises(InvalidInputError), "failed", "FAILED", 1),
        (raises(ZeroDivisionError), "failed", "FAILED", 1),
        (raises(SystemExit), "failed", "FAILED", 1),
    ],
)
def test_loggers_are_told_how_a_run_ends(
    run: RunFolder, calls: Calls, work: Callable[[RunFolder], int], outcome: str, status: str, code: int
) -> None:
    ends = suppress(KeyboardInterrupt, InvalidInputError, ZeroDivisionError, SystemExit)
    with logging_to(["wandb", "mlflow"]), ends, run:
        run.begin()
        work(run)
    assert run.outcome == outcome
    assert calls.of("finish") == [(code,), ("r1", status)]


def test_a_run_that_was_stopped_and_goes_on_to_its_end_is_finished(run: RunFolder, calls: Calls) -> None:
    with logging_to(["mlflow"]):
        with run:
            run.begin()
            assert loop(run, steps=3, interrupted_at=0) == 1
        again = RunFolder.open(run.path, kind="guidance")
        again.truncate_metrics(1)
        with again:
            assert loop(again, steps=3, interrupted_at=9) == 3
    assert calls.of("finish") == [("r1", "KILLED"), ("r1", "FINISHED")]
    assert calls.of("update") == [("r1", "RUNNING")]
    assert len(calls.of("run")) == 1


def test_an_evaluation_does_not_finish_what_was_stopped(run: RunFolder, calls: Calls) -> None:
    with logging_to(["mlflow"]):
        with run:
            run.begin()
            assert loop(run, steps=3, interrupted_at=0) == 1
        with RunFolder.open(run.path, kind="guidance") as evaluated:
            evaluated.tell({"evaluation/fd": 1.0})
    assert calls.of("log")[-1] == ("r1", [("evaluation/fd", 1.0, 0)])
    assert calls.of("finish") == [("r1", "KILLED")]
    assert not calls.of("update")


# -- pictures ----------------------------------------------------------------------------------------------------------


def png(width: int = 7, height: int = 5, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, format="png")
    return file.getvalue()


def test_pictures_go_to_every_logger_that_takes_them(
    run: RunFolder, calls: Calls, own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = []

    def draw() -> bytes:
        drawn.append(1)
        return png()

    names = ["tensorboard", "wandb", "mlflow", f"{own}:Kept", f"{own}:Painter", f"{own}:Short"]
    with logging_to(names), run:
        run.begin()
        run.log(3, {"losses/policy": 1.0})
        told = {"evaluation/on fake, noisy/fd": 2.0, "evaluation/nothing": float("nan")}
        run.tell(told, {"evaluation/samples, noisy": draw})
        run.tell({}, {"charts/samples": lambda: png(mode="L")}, step=9)
    assert len(drawn) == 1, "once for all of them"
    assert [row["step"] for row in run.metrics()] == [3], "what is told is in a file of its own"
    found = EventAccumulator(str(run.path)).Reload()
    assert found.Tags()["scalars"] == ["losses/policy", "evaluation/on fake, noisy/fd"]
    for name, step, content in (("evaluation/samples, noisy", 3, png()), ("charts/samples", 9, png(mode="L"))):
        (image,) = found.Images(name)
        assert (image.step, image.width, image.height, image.encoded_image_string) == (step, 7, 5, content)
    assert calls.of("log") == [
        ({"step": 3, "losses/policy": 1.0},),
        ("r1", [("losses/policy", 1.0, 3)]),
        ({"step": 3, "evaluation/on fake, noisy/fd": 2.0},),
        ("r1", [("evaluation/on fake_ noisy/fd", 2.0, 3)]),
        ({"step": 3, "evaluation/samples, noisy": ("image", (7, 5))},),
        ({"step": 9, "charts/samples": ("image", (7, 5))},),
    ]
    assert calls.of("picture") == [
        ("r1", "evaluation/samples_ noisy", 3, (7, 5)), ("r1", "charts/samples", 9, (7, 5)),
    ]  # fmt: skip
    assert (tmp_path / "picture-3.png").read_bytes() == png()
    assert [line.split()[0] for line in told_of(tmp_path)] == ["made", "3", "3", "closed"]
    assert capsys.readouterr().err == "", "a logger of numbers alone is a whole one"


def test_nothing_is_drawn_for_loggers_of_numbers_alone(run: RunFolder, own: str) -> None:
    drawn: list[bytes] = []

    def draw() -> bytes:
        drawn.append(png())
        return drawn[-1]

    pictures = {"charts/samples": draw}
    with logging_to([f"{own}:Kept"]), run:
        run.begin()
        run.tell({}, pictures)
    with logging_to(["none"]), run:
        run.tell({"evaluation/fd": 1.0}, pictures)
    run.tell({"evaluation/fd": 1.0}, pictures)  # nothing was chosen
    assert not drawn


def test_an_evaluated_run_has_loggers_only_where_they_are_chosen(run: RunFolder) -> None:
    run.tell({"evaluation/fd": 1.0}, {"charts/samples": png})
    assert not list(run.path.glob("events*"))
    with logging_to(["tensorboard"]), run:
        run.tell({"evaluation/fd": 1.0}, {"charts/samples": png})
    (scalar,) = EventAccumulator(str(run.path)).Reload().Scalars("evaluation/fd")
    assert (scalar.step, scalar.value) == (0, 1.0)


def test_a_picture_that_cannot_be_drawn_or_taken_stops_nothing(
    run: RunFolder, own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def undrawable() -> bytes:
        raise MemoryError("of\nfive channels")

    with logging_to(["tensorboard", f"{own}:Painter"]), run:
        run.begin()
        run.tell({}, {"charts/first": undrawable, "charts/second": png}, step=1)
        run.tell({}, {"charts/third": png}, step=13)
        run.tell({}, {"charts/fourth": png}, step=14)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "qhw: no picture charts/first (MemoryError: of five channels)"
    assert len(lines) == 2
    assert "mine.py:Painter fails (OSError: step 13)" in lines[1]
    assert [file.name for file in tmp_path.glob("*.png")] == ["picture-1.png"]
    assert EventAccumulator(str(run.path)).Reload().Tags()["images"] == [
        "charts/second", "charts/third", "charts/fourth",
    ]  # fmt: skip


def test_means_over_seeds_and_numbers_are_metrics_of_an_evaluation() -> None:
    values = {"before": {"fd": [1.0, 3.0]}, "after": {"fd": 1.5, "jobs": 2}}
    assert evaluation_metrics(values) == {
        "evaluation/before/fd": 2.0, "evaluation/after/fd": 1.5, "evaluation/after/jobs": 2.0,
    }  # fmt: skip


@pytest.mark.usefixtures("calls")
def test_a_key_in_an_error_is_not_printed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)

    def init(**settings: Any) -> None:
        raise RuntimeError(f"api_key={key} is refused")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with logging_to(["wandb"]), run:
        run.begin()
        run.log(1, {"losses/policy": 1.0})
    printed = capsys.readouterr().err
    assert "logger wandb fails" in printed
    assert key not in printed
    assert not [file for file in run.path.rglob("*") if file.is_file() and key.encode() in file.read_bytes()]


@pytest.mark.slow
def test_a_training_on_the_command_line(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "classifier", "--steps", "2", "--out", "out"]
    assert main([*words, "--logger", "wandbb"]) == 2
    assert "did you mean wandb" in capsys.readouterr().err
    assert not Path("out").exists()
    assert main([*words, "--logger", "mine.py:Kept", "--logger", "tensorboard"]) == 0
    assert told_of(tmp_path)[0].split()[2] == "classifier"
    rows = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert len(told_of(tmp_path)) == len(rows) + 2
    assert list(Path("out").glob("events*"))
    assert module._chosen == []
