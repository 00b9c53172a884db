"""Backbones measured at constant guidance scales, by function and by command."""

from __future__ import annotations

import textwrap
from pathlib import Path

import logs
import pytest
import torch

from qhw_diffusion import diffusion
from qhw_diffusion.cli.app import main
from qhw_diffusion.diffusion import Autoencoder, AutoencoderConfig, Backbone, BackboneConfig, Classifier, quality
from qhw_diffusion.diffusion.classifiers import ClassifierConfig
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.runs import RunFolder

DATA = """
    import torch

    def squares(split, data_root):
        labels = torch.arange(40) % 2
        generator = torch.Generator().manual_seed(len(split))
        images = (labels.view(-1, 1, 1, 1) - 0.5) + 0.2 * torch.rand(40, 3, 8, 8, generator=generator)
        return images, labels, 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a user's own, its evaluation classifier, and an untrained latent backbone."""
    folder = tmp_path_factory.mktemp("quality")
    (folder / "own.py").write_text(textwrap.dedent(DATA))
    name = f"{folder}/own.py:squares"
    config = ClassifierConfig.for_dataset(name, "evaluation", steps=20, width=4, n_features=8, batch_size=16)
    diffusion.train_classifier(config).save(folder / "judge")
    small = AutoencoderConfig.for_dataset(name, channels=(8, 8), patch=1, latent_channels=2)
    Autoencoder(small).eval().save(folder / "autoencoder")
    latent = {"channels": (8,), "attention": (False,), "attention_head_dim": 4, "mid_attention": False}
    backbone = Backbone(BackboneConfig.for_dataset(name, autoencoder=str(folder / "autoencoder"), **latent))
    backbone.eval().requires_grad_(False).save(folder / "backbone")
    return folder


def test_reconstructions_are_measured_like_the_images_themselves(folder: Path) -> None:
    heldout = diffusion.load_dataset(f"{folder}/own.py:squares", "heldout")
    judge = Classifier.load(folder / "judge", "evaluation")
    autoencoder = Autoencoder.load(folder / "autoencoder")
    decoded, own = quality.measure_reconstructions(autoencoder, judge, heldout, 40)
    assert own["accuracy"] == diffusion.accuracy(judge, heldout.images, heldout.labels) == 1.0
    assert own["fd"] < 1e-6  # all of them, against themselves
    assert decoded["fd"] > own["fd"]
    assert decoded["psnr"] == pytest.approx(
        diffusion.psnr(autoencoder.reconstruct(heldout.images), heldout.images), rel=1e-5
    )
    with pytest.raises(InvalidInputError, match="do not fit each other"):
        quality.measure_reconstructions(autoencoder, judge, diffusion.load_dataset("digits"), 40)


def test_every_constant_starts_from_the_same_noise(folder: Path) -> None:
    heldout = diffusion.load_dataset(f"{folder}/own.py:squares", "heldout")
    judge, backbone = Classifier.load(folder / "judge", "evaluation"), Backbone.load(folder / "backbone")
    how = {"n_images": 6, "n_steps": 2, "seed": 3}
    (one, two) = quality.measure_constants(backbone, judge, heldout, (0.0, 2.0), **how)
    assert (one[0], two[0]) == (0.0, 2.0)
    assert not torch.equal(one[2], two[2])
    assert torch.equal(two[3], torch.arange(6) % 2)
    again = next(quality.measure_constants(backbone, judge, heldout, (2.0,), **how))
    assert torch.equal(again[2], two[2])
    noise = torch.randn(6, *backbone.latent_shape, generator=torch.Generator().manual_seed(3))
    sampler = diffusion.GuidedDDIM(backbone, 2, spacing="trailing", clip=False)
    assert torch.equal(sampler.sample(two[3], 2.0, noise).clamp(-1, 1), two[2])
    with pytest.raises(InvalidInputError, match="no constants"):
        list(quality.measure_constants(backbone, judge, heldout, ()))


def test_the_command_tells_the_backbones_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the last update, where the backbone is a run's; nothing is told, nor measured, where it is not."""
    with RunFolder.create(tmp_path / "run", kind="backbone", config={}) as run:
        run.log(7, {"loss": 1.0})
    Backbone.load(folder / "backbone").save(run.path / "model")
    words = ["--evaluation-classifier", str(folder / "judge"), "--constants", "1,2.5", "--images", "8", "--steps", "2"]
    logger = ["--logger", logs.file_of(tmp_path)]
    assert main(["evaluate", "backbone", str(run.path), *words, *logger]) == 0
    table = capsys.readouterr().out.splitlines()
    numbers, picture = logs.told(tmp_path)
    assert numbers[0] == picture[0] == 7
    where = "evaluation/2-steps-seed0"
    columns = table[0].split()
    rows = {"real images": "real images", "reconstructed": "reconstructed (", "g = 1": "g = 1 ", "g = 2.5": "g = 2.5 "}
    for name, start in rows.items():
        (line,) = (line for line in table if line.startswith(start))
        printed = dict(zip(columns, line.split()[-len(columns) :], strict=True))
        assert float(printed["fd"]) == pytest.approx(numbers[1][f"{where}/{name}/fd"], rel=1e-3), name
    assert numbers[1][f"{where}/reconstructed/psnr"] > 0
    assert list(picture[1]) == [where]
    assert logs.outcomes(tmp_path) == ["finished"]
    assert main(["evaluate", "backbone", str(run.path), *words]) == 0
    assert len(logs.told(tmp_path)) == 2
    for elsewhere in (str(folder / "backbone"), "digits"):
        capsys.readouterr()
        assert main(["evaluate", "backbone", elsewhere, *words, *logger]) == 2
        refused = capsys.readouterr()
        assert "is not of one: leave --logger out" in refused.err
        assert not refused.out


def test_the_command_prints_a_table_and_draws_the_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "backbone", str(folder / "backbone"), "--evaluation-classifier", str(folder / "judge")]
    words += ["--constants", "1,2.5", "--images", "8", "--steps", "2", "--picture", str(folder / "grid.png")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    for name in ("real images", "reconstructed (", "g = 1 ", "g = 2.5 ", "accuracy", "fd"):
        assert name in printed
    assert (folder / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words[:3], "--images", "2"]) == 2
    assert "no evaluation classifier comes with the package" in capsys.readouterr().err
