"""A command that is refused says so in one line and leaves nothing behind, whatever is wrong, wherever it is found."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from qhw_diffusion.checkpoints import write_tensors
from qhw_diffusion.cli import main
from qhw_diffusion.errors import EngineError, InvalidInputError
from qhw_diffusion.guidance import GuidanceConfig, PolicyConfig, PPOConfig, RewardConfig, train_guidance
from qhw_diffusion.studies.guidance import experiment

TRAIN = ["train", "guidance", "--g0", "1.2", "--n-steps", "2", "--spacing", "trailing",
         "--noise-pool", "24", "--num-envs", "24", "--num-iterations", "1",
         "--num-minibatches", "1", "--device", "fake_manila"]  # fmt: skip
DENOISE = ["train", "denoising", "--n-steps", "2", "--depth", "2", "--iterations", "2", "--autoencoder-steps", "2"]
STUDY = ["study", "guidance", "--seeds", "1", "--n-steps", "2", "--spacing", "trailing",
         "--noise-pool", "24", "--num-envs", "24", "--num-iterations", "1",
         "--num-minibatches", "1", "--device", "fake_manila", "--policies", "quantum,matched",
         "--workers", "1"]  # fmt: skip
DENOISING_STUDY = ["study", "denoising", "--seeds", "1", "--iterations", "2", "--n-steps", "2", "--depth", "2",
                   "--device", "fake_manila", "--variants", "postselected", "--workers", "1"]  # fmt: skip
SHOTS = ["study", "shots", "--quick", "--device", "fake_manila"]
MITIGATION = ["study", "mitigation", "--quick"]
ROLLOUT = ["evaluate", "guidance", "{run}", "--device", "fake_manila", "--shots", "20", "--images", "4"]
TUNE = ["fine-tune", "{run}", "--device", "fake_manila", "--shots", "20", "--num-envs", "20", "--updates", "1"]
DISTILL = ["distill", "{run}", "--seeds", "1", "--images", "20"]
MEASURED = [*DISTILL, "--device", "fake_manila", "--shots", "20"]

# command, what is wrong with it, words of the message
REFUSED = [
    # as many samples as environments and steps make; the distribution term's pairs; the pool of starting points
    (TRAIN, ["--num-minibatches", "40"], "minibatches"),
    (TRAIN, ["--num-envs", "5"], "at least 20"),
    (TRAIN, ["--noise-pool", "23"], "initial-noise pool"),
    (TRAIN, ["--engine", "noisyy"], "noisy"),
    (TRAIN, ["--n-qubits", "6"], "6"),
    (TRAIN, ["--device", "fake_manla"], "fake_manila"),
    (TRAIN, ["--entanglement", "star"], "star"),
    (TRAIN, ["--data", "digit"], "digits"),
    (TRAIN, ["--data", "mnist16"], "data set 'mnist16'"),
    (TRAIN, ["--backbone", "/nowhere"], "/nowhere"),
    (TRAIN, ["--reward-classifier", "/nowhere"], "/nowhere"),
    (TRAIN, ["--reward-stepwise", "1", "--reward-stepwise-kind", "lpips"], "--reward-lpips-weights"),
    (TRAIN, ["--reward-stepwise", "1", "--reward-stepwise-kind", "lpips", "--reward-lpips-weights", "/nowhere"],
     "/nowhere"),
    (TRAIN, ["--reward-lpips-weights", "weights.safetensors"], "stepwise"),
    (TRAIN, ["--optimization-level", "7"], "optimization"),
    (["train", "backbone"], ["--steps", "0"], "steps"),
    (["train", "backbone"], ["--data", "digit"], "digits"),
    (["train", "classifier"], ["--role", "evaluatio"], "evaluation"),
    (["train", "classifier"], ["--steps", "0"], "steps"),
    (DENOISE, ["--mode", "greedy", "--weight-sharing", "all"], "weight_sharing"),
    (DENOISE, ["--loss", "infidelity", "--feed-forward", "--kind", "measured"], "feed"),
    (DENOISE, ["--buffer-size", "5", "--mode", "joint"], "buffer_size"),
    (DENOISE, ["--autoencoder-steps", "0"], "positive"),
    (DENOISE, ["--engine", "noisy", "--device", "fake_manla"], "fake_manila"),
    (STUDY, ["--num-minibatches", "40"], "minibatches"),
    (STUDY, ["--num-envs", "5"], "at least 20"),
    (STUDY, ["--noise-pool", "23"], "initial-noise pool"),
    (STUDY, ["--device", "fake_manla"], "fake_manila"),
    (STUDY, ["--n-qubits", "6"], "6"),
    (STUDY, ["--evaluation-classifier", "/nowhere"], "/nowhere"),
    (STUDY, ["--reward-stepwise", "1", "--reward-stepwise-kind", "lpips"], "--reward-lpips-weights"),
    (STUDY, ["--workers", "0"], "workers"),
    (STUDY, ["--markdown", "{file}/page.md"], "a file is where a folder should be"),
    (DENOISING_STUDY, ["--workers", "0"], "workers"),
    (DENOISING_STUDY, ["--similarity", "alike"], "similarity"),
    (DENOISING_STUDY, ["--batch-size", "1"], "batch_size"),
    (DENOISING_STUDY, ["--ancillas", "9"], "qubits"),
    (DENOISING_STUDY, ["--markdown", "{file}/page.md"], "a file is where a folder should be"),
    (SHOTS, ["--num-minibatches", "1000"], "minibatches"),
    (SHOTS, ["--noise-pool", "30"], "initial-noise pool"),
    (SHOTS, ["--device", "fake_manla"], "fake_manila"),
    (SHOTS, ["--device", "fake_armonk"], "fake_armonk"),
    (SHOTS, ["--workers", "0"], "workers"),
    (SHOTS, ["--markdown", "{file}/page.md"], "a file is where a folder should be"),
    (MITIGATION, ["--num-minibatches", "1000"], "minibatches"),
    (MITIGATION, ["--devices", "fake_manila,fake_armonk"], "fake_armonk"),
    (MITIGATION, ["--workers", "0"], "workers"),
    (["study", "reproductions"], ["--workers", "0"], "workers"),
    (["demo", "--quick"], ["--workers", "0"], "workers"),
    (["demo", "denoising", "--quick"], ["--workers", "0"], "workers"),
    (ROLLOUT, ["--images", "0"], "images"),
    (ROLLOUT, ["--device", "fake_armonk"], "fake_armonk"),
    (ROLLOUT, ["--device", "fake_manla"], "fake_manila"),
    (ROLLOUT, ["--mitigation", "redout"], "readout"),
    (ROLLOUT, ["--evaluation-classifier", "/nowhere"], "/nowhere"),
    (ROLLOUT, ["--resilience-level", "1"], "level 0"),
    (ROLLOUT, ["--ledger", "{file}"], "ledger"),
    (TUNE, ["--minibatches", "1000"], "minibatches"),
    (TUNE, ["--num-envs", "5"], "at least 20"),
    (TUNE, ["--num-envs", "25"], "initial-noise pool"),
    (TUNE, ["--lr-head", "-1"], "learning_rate_head"),
    (TUNE, ["--device", "fake_armonk"], "fake_armonk"),
    (TUNE, ["--mitigation", "redout"], "readout"),
    (TUNE, ["--resilience-level", "1"], "level 0"),
    (DISTILL, ["--device", "fake_armonk"], "fake_armonk"),
    (DISTILL, ["--engine", "nosy"], "noisy"),
    (DISTILL, ["--evaluation-classifier", "/nowhere"], "/nowhere"),
    (MEASURED, ["--device", "fake_armonk"], "fake_armonk"),
    (MEASURED, ["--evaluation-classifier", "/nowhere"], "/nowhere"),
    (MEASURED, ["--into", "network"], "--into"),
    (MEASURED, ["--mitigation", "redout"], "readout"),
]  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of four qubits for fake_manila, trained for one update from 24 starting points."""
    path = tmp_path_factory.mktemp("policy") / "run"
    train_guidance(
        GuidanceConfig(n_steps=2, spacing="trailing", noise_pool=24),
        PPOConfig.short(num_iterations=1, num_envs=24, update_epochs=1, num_minibatches=1),
        RewardConfig(),
        PolicyConfig(device="fake_manila", depth=1),
        path=path,
    )
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with a file beside it; the ledger is elsewhere."""
    (tmp_path / "a file").write_text("irreplaceable")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("QHW_LEDGER", str(tmp_path / "ledger"))
    return tmp_path / "here"


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    capsys.readouterr()
    assert main(arguments) not in (0, 130)
    err = capsys.readouterr().err
    assert err.startswith("qhw: error: "), err
    assert err.count("\n") == 1, err
    assert message in err


def test_the_commands_without_their_mistake_are_not_refused(here: Path) -> None:
    """So that a test below fails for its mistake and for nothing else: the cheapest of them is run."""
    assert main([*TRAIN, "--out", "runs/x"]) == 0
    assert (here / "runs" / "x" / "model").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "mistake", "message"),
    [pytest.param(*case, id=f"{'-'.join(case[0][:2])}{'-'.join(case[1])}") for case in REFUSED],
)
def test_a_refused_command_leaves_nothing(
    here: Path, policy: Path, capsys: pytest.CaptureFixture[str], command: list[str], mistake: list[str], message: str
) -> None:
    where = {"run": str(policy), "file": str(here.parent / "a file")}
    before = sorted(policy.parent.rglob("*"))
    out = [] if command[0] == "distill" and "--out" in mistake else ["--out", "runs/x"]
    refused(capsys, [word.format(**where) for word in (*command, *out, *mistake)], message)
    assert list(here.rglob("*")) == []
    assert sorted(policy.parent.rglob("*")) == before


PLACES = {
    "a file": ("a file", "is a file"),
    "below a file": ("a file/x", "a file is where a folder should be"),
    "no permission": ("locked/x", "choose a place that you may use"),
    "a name that is too long": ("n" * 300, "File name too long"),
    "somebody's folder": ("full", "not an empty folder"),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize(
    "command",
    [TRAIN, ["train", "backbone"], ["train", "classifier"], DENOISE, STUDY, DENOISING_STUDY, SHOTS, MITIGATION,
     ["demo", "--quick"], ["demo", "denoising", "--quick"], ROLLOUT, TUNE, DISTILL, MEASURED],
    ids=lambda command: "-".join(command[:2]),
)  # fmt: skip
def test_a_place_that_cannot_be_written_to_is_told_first(
    here: Path,
    policy: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    place: str,
) -> None:
    (here.parent / "full").mkdir()
    (here.parent / "full" / "thesis.txt").write_text("irreplaceable")
    deny(monkeypatch, here.parent / "locked")
    before = sorted(here.parent.rglob("*"))
    out, message = PLACES[place]
    refused(capsys, [*(w.format(run=policy) for w in command), "--out", str(here.parent / out)], message)
    assert sorted(here.parent.rglob("*")) == before


def deny(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A folder that nothing can be written into, also by root, whom modes do not stop."""
    import tempfile

    folder.mkdir()
    for name in ("TemporaryFile", "mkdtemp", "mkstemp"):
        original: Callable[..., object] = getattr(tempfile, name)

        def guarded(*arguments: object, original: Callable[..., object] = original, **options: object) -> object:
            if Path(str(options.get("dir"))).is_relative_to(folder):
                raise PermissionError(13, "Permission denied", str(options["dir"]))
            return original(*arguments, **options)

        monkeypatch.setattr(tempfile, name, guarded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibration", "snapshot", "fake_manila", "--out", "{file}/x.json"], "cannot be written"),
        (["calibration", "show", "fake_manila", "--picture", "{file}/x.png"], "cannot be written"),
        (["study", "reproductions", "--out", "{file}"], "is a file, not an empty folder"),
        (["ledger", "list", "--ledger", "."], "no ledger"),
        (["ledger", "show", "a", "--ledger", "."], "no ledger"),
        (["ledger", "adopt", "a", "job", "--ledger", "."], "no ledger"),
        (["ledger", "export", "x.csv", "--ledger", "."], "no ledger"),
        (["ledger", "recover", "--ledger", "."], "no ledger"),
        (["ledger", "cap", "--ledger", "."], "no ledger"),
        (["ledger", "cap", "-5", "--ledger", "x"], "cap"),
        (["ledger", "cap", "five", "--ledger", "x"], "cap"),
        (["ledger", "cap", "5", "--ledger", "{file}"], "cannot be made"),
        (["cost", "{run}", "--ledger", "."], "no ledger"),
        (["evaluate", "guidance", "{run}", "--engine", "nosy"], "noisy"),
        (["evaluate", "guidance", "{run}", "--images", "3"], "20 images"),
        (["evaluate", "denoising", "{run}"], "guidance"),
    ],
)  # fmt: skip
def test_commands_without_a_run_folder(
    here: Path, policy: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = sorted(policy.parent.rglob("*"))
    where = {"run": policy, "file": here.parent / "a file"}
    refused(capsys, [word.format(**where) for word in arguments], message)
    assert list(here.rglob("*")) == []
    assert (here.parent / "a file").read_text() == "irreplaceable"
    assert sorted(policy.parent.rglob("*")) == before


# -- what is found late, and what was there before ---------------------------------------------------------------------


def late(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_refusal_in_the_first_update_takes_the_folder_back_and_the_corrected_command_runs(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TRAIN, "--out", "runs/x"]
    with monkeypatch.context() as patch:
        patch.setattr("qhw_diffusion.guidance.ppo.generalised_advantages", late(EngineError("not with this engine")))
        refused(capsys, command, "not with this engine")
        assert list(here.rglob("*")) == []
    assert main(command) == 0


def test_overwrite_deletes_nothing_until_work_begins(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TRAIN, "--out", "x"]
    assert main(command) == 0
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    for mistake, message in ((["--num-minibatches", "40"], "minibatches"), (["--device", "fake_manla"], "fake_manila")):
        refused(capsys, [*command, "--overwrite", *mistake], message)
    for error, code in ((EngineError("broken"), 2), (KeyboardInterrupt(), 130), (OSError(28, "No space left"), 2)):
        with monkeypatch.context() as patch:
            patch.setattr("qhw_diffusion.guidance.ppo.generalised_advantages", late(error))
            assert main([*command, "--overwrite"]) == code
            assert "--resume" not in capsys.readouterr().err  # it would go on with the earlier run
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    assert main([*command, "--overwrite", "--seed", "3"]) == 0
    assert (here / "x" / "model" / "model.safetensors").read_bytes() != before[here / "x/model/model.safetensors"]
    assert [path.name for path in here.iterdir()] == ["x"]


def test_a_study_keeps_finished_work_when_interrupted_but_not_when_refused(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*STUDY, "--constants", "1,1.5", "--sweep-images", "20", "--out", "x"]
    monkeypatch.setattr(experiment, "candidate", late(InvalidInputError("no such schedule")))
    assert main(command) == 2
    assert "qhw: error: no such schedule" in capsys.readouterr().err
    assert list(here.iterdir()) == []
    monkeypatch.setattr(experiment, "candidate", late(KeyboardInterrupt()))
    assert main(command) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert {"constant-1.json", "constant-1.5.json"} <= {file.name for file in (here / "x" / "cells").iterdir()}


def test_interrupted_before_anything_was_saved_no_resume_is_promised(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qhw_diffusion.guidance.ppo.generalised_advantages", late(KeyboardInterrupt()))
    assert main([*TRAIN, "--out", "x"]) == 130
    err = capsys.readouterr().err
    assert "nothing was saved yet: the same command starts from the beginning" in err
    assert "--resume" not in err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("whole", [0, 1])
@pytest.mark.parametrize("command", [[*TRAIN, "--checkpoint-every", "1", "--num-iterations", "3"],
                                     [*DENOISE, "--model", "amplitude", "--checkpoint-every", "1"]])  # fmt: skip
def test_a_full_disk_is_one_line_and_says_what_is_left(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str], whole: int
) -> None:
    """Full at the first checkpoint: nothing is left. At the second: the first is there to go on from."""
    written: list[object] = []

    def full(path: Path, *arguments: object, **options: object) -> Path:
        written.append(path)
        if len(written) > whole:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_tensors(path, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("qhw_diffusion.checkpoints.training.write_tensors", full)
        refused(capsys, [*command, "--out", "x"], "checkpoint.safetensors: No space left on device; make room there")
    assert (here / "x").exists() == bool(whole)
    if whole:
        assert main([*command, "--out", "x", "--resume"]) == 0
    else:
        assert list(here.iterdir()) == []
        assert main([*command, "--out", "x"]) == 0
    assert (here / "x" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("full", [True, False])
def test_a_model_that_could_not_be_written_is_not_there(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """A study takes a training for finished by its model/: half of one must not be there."""

    def write(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    if full:
        monkeypatch.setattr("qhw_diffusion.checkpoints.tensorfile.write_tensors", write)
    assert main([*TRAIN, "--out", "x"]) == (2 if full else 0)
    assert (here / "x" / "model").exists() != full
    assert ("--resume goes on" in capsys.readouterr().err) == full


@pytest.mark.parametrize("command", [TRAIN, [*DENOISE, "--model", "amplitude"]], ids=["guidance", "denoising"])
def test_a_folder_left_by_a_killed_process_without_a_checkpoint_starts_from_the_beginning(
    here: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main([*command, "--out", "x"]) == 0
    weights = (here / "x" / "model" / "model.safetensors").read_bytes()
    (here / "x" / "checkpoint.safetensors").unlink()
    capsys.readouterr()
    assert main([*command, "--out", "x", "--resume"]) == 0
    assert "no checkpoint yet: starting from the beginning" in capsys.readouterr().err
    assert (here / "x" / "model" / "model.safetensors").read_bytes() == weights
