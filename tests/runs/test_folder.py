from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qhw_diffusion.errors import DamagedFileError, InvalidInputError, RunFolderError
from qhw_diffusion.runs import RunFolder, atomic_folder, interruptible


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", kind="guidance", config={"seed": 3, "g0": 1.2}, command="qhw train x")


def test_create_writes_config_and_manifest_and_open_reads_them(run: RunFolder) -> None:
    again = RunFolder.open(run.path, kind="guidance")
    assert again.config == {"seed": 3, "g0": 1.2}
    assert again.manifest["command"] == "qhw train x"
    assert again.manifest["packages"]["torch"] == torch.__version__.split("+")[0]
    assert again.manifest["created"].endswith("+00:00")


def test_an_occupied_folder_is_refused_and_an_empty_one_taken(tmp_path: Path, run: RunFolder) -> None:
    before = (run.path / "config.json").read_bytes()
    with pytest.raises(RunFolderError, match="not an empty folder"):
        RunFolder.create(run.path, kind="guidance", config={})
    assert (run.path / "config.json").read_bytes() == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError):
        RunFolder.create(tmp_path / "file", kind="guidance", config={})
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", kind="guidance", config={})


def test_a_config_json_cannot_hold_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"config\.json"):
        RunFolder.create(tmp_path / "run", kind="guidance", config={"x": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def test_a_crash_while_creating_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def fail_for_folders(source: object, target: object) -> None:
        if Path(str(source)).is_dir():
            raise KeyboardInterrupt
        real(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", fail_for_folders)
    with pytest.raises(KeyboardInterrupt):
        RunFolder.create(tmp_path / "run", kind="guidance", config={})
    assert list(tmp_path.iterdir()) == []


def test_missing_other_kind_other_version_and_damage(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such folder"):
        RunFolder.open(tmp_path / "nowhere", kind="guidance")
    (tmp_path / "plain").mkdir()
    with pytest.raises(RunFolderError, match=r"manifest\.json is missing"):
        RunFolder.open(tmp_path / "plain", kind="guidance")
    with pytest.raises(RunFolderError, match="'guidance', but 'backbone'"):
        RunFolder.open(run.path, kind="backbone")
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(RunFolderError, match="format 99"):
        RunFolder.open(run.path, kind="guidance")
    (run.path / "manifest.json").write_text(json.dumps(manifest)[:-20])
    with pytest.raises(RunFolderError, match="damaged"):
        RunFolder.open(run.path, kind="guidance")
    (run.path / "manifest.json").write_text("[1, 2]")
    with pytest.raises(RunFolderError, match="damaged"):
        RunFolder.open(run.path, kind="guidance")


def test_metrics_go_to_jsonl_and_tensorboard(run: RunFolder) -> None:
    with run:
        run.log(0, {"charts/reward": 0.1})
        run.log(1, {"charts/reward": torch.tensor(0.5), "losses/policy": -2})  # type: ignore[dict-item]
    assert run.metrics() == [
        {"step": 0, "charts/reward": 0.1},
        {"step": 1, "charts/reward": 0.5, "losses/policy": -2.0},
    ]
    events = EventAccumulator(str(run.path)).Reload()
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("charts/reward")] == [(0, 0.1), (1, 0.5)]


def test_truncating_drops_the_steps_a_resumed_run_does_again(run: RunFolder) -> None:
    for step in range(5):
        run.log(step, {"a": step})
    run.truncate_metrics(3)
    run.log(3, {"a": 30})
    run.close()
    assert [(row["step"], row["a"]) for row in run.metrics()] == [(0, 0), (1, 1), (2, 2), (3, 30)]
    events = EventAccumulator(str(run.path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a")] == [(0, 0), (1, 1), (2, 2), (3, 30)]


def test_a_torn_last_line_is_left_out_but_damage_in_the_middle_is_told(run: RunFolder) -> None:
    for step in range(3):
        run.log(step, {"a": step})
    run.close()
    file = run.path / "metrics.jsonl"
    file.write_text(file.read_text()[:-4])
    assert [row["step"] for row in run.metrics()] == [0, 1]
    file.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(DamagedFileError, match="line 2"):
        run.metrics()
    file.write_text("3\n")
    with pytest.raises(DamagedFileError, match="line 1"):
        run.metrics()


def test_step_is_not_a_metric(run: RunFolder) -> None:
    with pytest.raises(InvalidInputError, match="'step'"):
        run.log(0, {"step": 1.0})


def test_first_interrupt_asks_and_second_one_raises(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible() as stop:  # noqa: PT012 - two signals are the point
        assert not stop.requested
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping after this step" in capsys.readouterr().err


# -- made, begun, taken back -------------------------------------------------------------------------------------------


def make(path: Path, **options: bool) -> RunFolder:
    return RunFolder.create(path, kind="guidance", config={"seed": 4}, **options)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("error", [InvalidInputError("no"), OSError(28, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", ["nothing", "an empty folder", "an earlier run"])
def test_before_work_begins_an_error_takes_the_folder_back(tmp_path: Path, error: BaseException, there: str) -> None:
    path = tmp_path / "runs" / "mine" / "x"
    if there == "an earlier run":
        make(path).begin()
    elif there == "an empty folder":
        path.mkdir(parents=True)
    before = tree(tmp_path)
    with pytest.raises(type(error)), make(path, overwrite=True) as run:  # noqa: PT012
        (run.path / "model").mkdir()
        run.log(0, {"a": 1.0})
        raise error
    assert tree(tmp_path) == before


@pytest.mark.parametrize("begins", ["begin", "end"])
def test_once_work_has_begun_the_folder_stays(tmp_path: Path, run: RunFolder, begins: str) -> None:
    error = None if begins == "end" else InvalidInputError("no")
    with contextlib.suppress(InvalidInputError), make(run.path, overwrite=True) as new:
        assert new.tentative
        if begins == "begin":
            new.begin()
        if error:
            raise error
    assert RunFolder.open(run.path, kind="guidance").config == {"seed": 4}
    assert [p.name for p in tmp_path.iterdir()] == ["run"]  # the earlier run is gone
    new.discard()
    assert run.path.exists()


def test_a_defect_leaves_its_traces(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), make(tmp_path / "x") as run:  # noqa: PT012
        run.log(0, {"a": 1.0})
        raise ZeroDivisionError
    assert run.metrics() == [{"step": 0, "a": 1.0}]


def test_a_run_that_goes_on_is_never_taken_back(run: RunFolder) -> None:
    run.begin()
    before = tree(run.path)
    with pytest.raises(InvalidInputError), RunFolder.open(run.path, kind="guidance"):
        raise InvalidInputError("no")
    assert tree(run.path) == before


def test_only_a_run_of_the_same_kind_is_replaced(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="'guidance', but 'backbone'"):
        RunFolder.create(run.path, kind="backbone", config={}, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(RunFolderError, match="not a run folder"):
        make(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_an_empty_folder_that_cannot_be_moved_is_filled_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount point, or a writable folder in one that is not."""
    (tmp_path / "x").mkdir()

    def busy(*arguments: object, **options: object) -> str:
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr("tempfile.mkdtemp", busy)
    with pytest.raises(InvalidInputError), make(tmp_path / "x"):
        raise InvalidInputError("no")
    assert tree(tmp_path) == {"x": None}
    with make(tmp_path / "x"):
        pass
    assert RunFolder.open(tmp_path / "x", kind="guidance").config == {"seed": 4}


# -- folders that are whole or not there -------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_to_its_end_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), atomic_folder(tmp_path / "new" / "model") as aside:  # noqa: PT012
        (aside / "weights").write_text("half")
        raise OSError(28, "full")
    assert tree(tmp_path) == {"new": None}
    with atomic_folder(tmp_path / "new" / "model") as aside:
        (aside / "weights").write_text("whole")
        assert not (tmp_path / "new" / "model").exists()
    assert tree(tmp_path / "new") == {"model": None, "model/weights": b"whole"}


def test_into_a_folder_that_is_there_files_are_moved_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    (tmp_path / "weights").write_text("old")
    before = tree(tmp_path)
    with pytest.raises(OSError, match="full"), atomic_folder(tmp_path) as aside:  # noqa: PT012
        (aside / "weights").write_text("half")
        raise OSError(28, "full")
    assert tree(tmp_path) == before
    with atomic_folder(tmp_path) as aside:
        (aside / "weights").write_text("new")
    assert tree(tmp_path) == {"thesis.txt": b"irreplaceable", "weights": b"new"}
