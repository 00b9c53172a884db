"""`qhw demo denoising`, `study denoising`, `train denoising`, `evaluate denoising`, `study reproductions`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import logs
import pytest
from undrawn import figures_undrawn

from qhw_diffusion.cli import main
from qhw_diffusion.cli.flags import UsageError
from qhw_diffusion.cli.study import StudyCommand
from qhw_diffusion.experiment import Study, load_study

SMALL = ["--iterations", "4", "--depth", "2", "--n-steps", "2", "--autoencoder-steps", "30", "--batch-size", "4",
         "--targets", "8", "--checkpoint-every", "1"]  # fmt: skip
STUDY = ["--iterations", "2", "--depth", "1", "--n-steps", "1", "--autoencoder-steps", "20", "--eval-images", "20",
         "--seeds", "1", "--variants", "postselected", "--classes", "0,1", "--device", "fake_manila",
         "--batch-size", "4", "--targets", "8"]  # fmt: skip


def test_settings_of_the_study_and_of_what_it_holds_are_flags() -> None:
    words = ["--classes", "0,1", "--kernels", "fidelity,0.3", "--probability-weight", "0.5",
             "--variants", "postselected,noise", "--seeds", "7", "--autoencoder-batch-size", "9", "--n-steps", "5",
             "--forward-schedule", "linear"]  # fmt: skip
    config = StudyCommand("denoising").call(words, "qhw study denoising", "", "").arguments["config"]
    assert config.classes == (0, 1)
    assert config.variants == ("postselected", "noise")
    assert config.seeds == 7
    assert config.train.kernels == ("fidelity", 0.3)
    assert config.train.probability_weight == 0.5
    assert config.train.batch_size == load_study("denoising").config().train.batch_size
    assert config.autoencoder.batch_size == 9
    assert config.reverse.n_steps == 5
    assert config.forward.schedule == "linear"
    for flag in ("--n-labels", "--feed-forward", "--mode", "--reverse-device"):
        with pytest.raises(UsageError):
            StudyCommand("denoising").call([flag, "1"], "qhw study denoising", "", "")


def test_the_demo_without_a_name_stays_the_guidance_demo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def named(study: Study[Any], config: Any, out: Path, *, workers: int, **how: Any) -> str:
        return f"{study.name} {out} {workers} {config == study.quick}"

    monkeypatch.setattr("qhw_diffusion.experiment.command.study_command", named)
    assert main(["demo", "--workers", "3"]) == 0
    assert capsys.readouterr().out == "guidance runs/demo 3 False\n"
    assert main(["demo", "denoising", "--quick", "--workers", "1"]) == 0
    assert capsys.readouterr().out == "denoising runs/demo-denoising 1 True\n"
    assert main(["demo", "denoising", "--workers", "1", "--out", "x"]) == 0
    assert capsys.readouterr().out == "denoising x 1 False\n"
    with pytest.raises(SystemExit) as stop:
        main(["demo", "denoise"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("study", ["--variants", "postselected,quantum"], "allowed: postselected"),
        ("study", ["--classes", "1"], "two or more"),
        ("study", ["--data", "digit"], "digits"),
        ("study", ["--seeds", "0"], "seeds"),
        ("study", ["--autoencoder-latent-qubits", "7"], "64 pixels"),
        ("study", ["--device", "fake_manilla"], "did you mean fake_manila"),
        ("study", ["--iterations", "0"], "iterations"),
        ("train", ["--model", "latnt"], "did you mean latent"),
        ("train", ["--model", "amplitude", "--n-qubits", "5"], "64 pixels"),
        ("train", ["--data", "digit"], "digits"),
        ("train", ["--kind", "unitary"], "ancillas"),
        ("train", ["--engine", "noisy"], "ideal"),
        ("train", ["--iterations", "0"], "iterations"),
        ("train", ["--kernels", "narrow"], "kernel"),
        ("train", ["--data", "mnist16", "--data-root", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_settings_are_one_line_and_leave_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, flags: list[str], message: str
) -> None:
    assert main([command, "denoising", "--out", str(tmp_path / "run"), *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("qhw: error: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [["--seeds", "many"], ["--shot", "3"]])
def test_what_is_no_value_of_a_flag_is_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["study", "denoising", *flags])
    assert stop.value.code == 2


def test_published_experiments_that_do_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "reproductions", "--experiments", "quddpm", "--out", str(tmp_path / "a")]) == 2
    assert "quddpm-1" in capsys.readouterr().err


@pytest.mark.slow
def test_train_resume_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    logger = ["--logger", logs.file_of(tmp_path)]
    train = ["train", "denoising", "--out", str(out), *SMALL]
    assert main([*train, *logger]) == 0
    assert [list(values) for _, values, what in logs.told(tmp_path) if what == "picture"] == [["charts/samples"]]
    assert "evaluate it with" in capsys.readouterr().out
    weights = (out / "model" / "model.safetensors").read_bytes()
    assert main(train) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["train", "denoising", "--out", str(out), "--resume", "--depth", "3"]) == 2
    assert "other settings (reverse)" in capsys.readouterr().err
    assert main(["train", "denoising", "--out", str(out), "--resume"]) == 0
    assert main([*train, "--overwrite"]) == 0
    assert (out / "model" / "model.safetensors").read_bytes() == weights  # same seed, same bits
    capsys.readouterr()

    evaluate = ["evaluate", "denoising", str(out), "--images", "40"]
    assert main([*evaluate, *logger]) == 0
    numbers, picture = logs.told(tmp_path)[-2:]
    assert numbers[0] == picture[0] == 3, "beside the last update"
    assert {"evaluation/ideal-ideal-seed0/samples/fd", "evaluation/ideal-ideal-seed0/share_of_shots"} <= set(numbers[1])
    assert picture[1] == {"evaluation/ideal-ideal-seed0": (out / "evaluations/ideal-ideal-seed0.png").stat().st_size}
    assert logs.outcomes(tmp_path) == ["finished", "finished"]
    told = capsys.readouterr().out
    assert "success probability" in told
    saved = json.loads((out / "evaluations" / "ideal-ideal-seed0.json").read_text())
    assert f"{saved['values']['samples']['fd']:.2f}" in told
    assert (out / "evaluations" / "ideal-ideal-seed0.png").read_bytes().startswith(b"\x89PNG")
    assert main([*evaluate, "--device", "fake_manila", "--engine", "noisy", "--shots", "100000"]) == 0
    assert "fake_manila, noisy" in capsys.readouterr().out
    assert main([*evaluate, "--shots", "1"]) == 2
    assert "shots or more" in capsys.readouterr().err
    assert main([*evaluate, "--engine", "shots"]) == 2
    assert "noisy" in capsys.readouterr().err
    assert main([*evaluate, "--images", "3"]) == 2
    kept = tmp_path / "kept"
    measured = ["--kind", "measured", "--ancillas", "2", "--feed-forward"]
    assert main(["train", "denoising", "--out", str(kept), *SMALL, *measured]) == 0
    assert main(["evaluate", "denoising", str(kept), "--images", "20"]) == 0
    assert "record of 2 outcomes" in capsys.readouterr().out
    assert main(["evaluate", "denoising", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_with_the_names_of_an_earlier_version_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "denoising", "--out", str(tmp_path / "run"), *SMALL, "--model", "amplitude"]
    assert main(train) == 0
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    config["reverse"]["labels_by"] = config["reverse"].pop("conditioning")
    file.write_text(json.dumps(config))
    assert main([*train[:4], "--resume"]) == 0
    capsys.readouterr()
    assert main([*train[:4], "--resume", "--depth", "3"]) == 2
    assert "other settings (reverse)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_of_pixels_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    kind = ["--model", "amplitude", "--conditioning", "none", "--kernels", "fidelity,0.5"]
    assert main(["train", "denoising", "--out", str(out), *SMALL, *kind]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["reverse"]["n_qubits"] == 6
    assert config["reverse"]["n_labels"] == 1
    assert config["train"]["similarity"] == "fidelity"
    assert config["train"]["kernels"] == ["fidelity", 0.5]
    assert main(["evaluate", "denoising", str(out), "--images", "20"]) == 0
    assert "accuracy" not in capsys.readouterr().out


@pytest.mark.slow
@figures_undrawn()
def test_study_and_demo_end_in_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, page = tmp_path / "study", tmp_path / "page.md"
    assert main(["study", "denoising", "--out", str(out), "--dry-run", *STUDY]) == 0
    told = capsys.readouterr().out
    assert "training" in told
    assert not out.exists()
    assert main(["study", "denoising", "--out", str(out), "--workers", "1", *STUDY]) == 0
    told = capsys.readouterr().out
    assert "One seed only" in told
    (out / "report.html").unlink()
    assert main(["study", "denoising", "--out", str(out), "--report-only", "--markdown", str(page)]) == 0
    assert (out / "report.html").is_file()
    assert "linear map in closed form" in page.read_text()
    assert main(["study", "denoising", "--out", str(out), "--resume", "--depth", "5"]) == 2
    assert "other settings (reverse)" in capsys.readouterr().err

    demo = ["demo", "denoising", "--out", str(out), "--workers", "1"]
    assert main(demo) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*demo, "--resume"]) == 0
    assert "report: " in capsys.readouterr().out


OWN = """
import torch

def bars(split, data_root):
    generator = torch.Generator().manual_seed(len(split))
    labels = torch.arange(48) % 3
    images = 0.3 * torch.rand(48, 3, 4, 8, generator=generator) - 0.9
    for image, label in zip(images, labels):
        image[label, 1:3] += 1.5
    return images, labels, 3
"""


@pytest.mark.slow
def test_a_data_set_of_ones_own_has_its_own_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three classes of colour images, 4 × 8: trained on, and sampled for the labels that there are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_bars.py").write_text(OWN)
    data = ["--data", "own_bars.py:bars"]
    classifier = ["train", "classifier", *data, "--role", "evaluation", "--out", "classifier", "--steps", "5"]
    assert main(classifier) == 0
    assert main(["train", "denoising", "--out", "run", *data, *SMALL]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["reverse"]["n_labels"] == 3
    capsys.readouterr()
    evaluate = ["evaluate", "denoising", "run", "--images", "21", "--evaluation-classifier", "classifier"]
    assert main(evaluate) == 0
    assert "accuracy" in capsys.readouterr().out
