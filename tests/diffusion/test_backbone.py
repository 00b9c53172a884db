from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from qhw_diffusion import diffusion
from qhw_diffusion.diffusion import Backbone, BackboneConfig, loop
from qhw_diffusion.diffusion.weights import SHIPPED
from qhw_diffusion.errors import (
    DamagedFileError,
    InvalidInputError,
    MissingDataError,
    RunFolderError,
    UnknownNameError,
)
from qhw_diffusion.runs import RunFolder


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.load("digits")


def tiny_config(**changes: object) -> BackboneConfig:
    return BackboneConfig.for_dataset("digits", **{"channels": (8,), "log_every": 2, **changes})


def test_shipped_backbone_is_small_frozen_and_described(backbone: Backbone) -> None:
    folder = SHIPPED / "digits-backbone"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 1_000_000
    assert (backbone.image_shape, backbone.n_classes, backbone.null_label, backbone.name) == (
        (1, 8, 8),
        10,
        10,
        "digits",
    )
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())
    described = json.loads((folder / "config.json").read_text())
    assert BackboneConfig.from_dict(described["config"]) == backbone.config == BackboneConfig.for_dataset("digits")
    assert described["n_parameters"] == backbone.n_parameters
    assert described["history"][-1]["step"] == backbone.config.steps


def test_prediction_is_epsilon_for_both_labels_at_once(backbone: Backbone) -> None:
    x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7)
    scheduler = DDIMScheduler(beta_schedule=backbone.config.beta_schedule, prediction_type="v_prediction")
    scheduler.set_timesteps(1000)
    for t in (0, 17, 500, 998):
        eps_cond, eps_null = backbone.predict(x, t, labels)
        for eps, own in ((eps_cond, labels), (eps_null, torch.full_like(labels, 10))):
            v = backbone(x, t, own)
            alpha = scheduler.alphas_cumprod[t]
            # diffusers' x̂₀ from v, and the ε that belongs to it: x_t = √ᾱ x̂₀ + √(1−ᾱ) ε
            x0 = alpha.sqrt() * x - (1 - alpha).sqrt() * v
            torch.testing.assert_close(alpha.sqrt() * x0 + (1 - alpha).sqrt() * eps, x, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(eps_cond, eps_null, atol=1e-3)
    assert not eps_cond.requires_grad


def test_epsilon_parametrisation_is_passed_through() -> None:
    config = tiny_config(prediction_type="epsilon")
    torch.manual_seed(0)
    backbone = Backbone(config).eval()
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    with torch.no_grad():
        torch.testing.assert_close(backbone.predict(x, 300, labels)[0], backbone(x, 300, labels), rtol=1e-4, atol=1e-5)


def test_denoising_error_depends_on_the_label(backbone: Backbone) -> None:
    """On held-out images at a high noise level the right label predicts the noise better than a wrong one or none."""
    data = diffusion.load_dataset("digits", "heldout")
    noise = torch.randn(data.images.shape, generator=torch.Generator().manual_seed(0))
    t = 700
    alpha = backbone.alphas_cumprod[t]
    x_t = alpha.sqrt() * data.images + (1 - alpha).sqrt() * noise
    right, none = backbone.predict(x_t, t, data.labels)
    wrong, _ = backbone.predict(x_t, t, (data.labels + 3) % 10)
    errors = [float((eps - noise).square().mean()) for eps in (right, none, wrong)]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.slow
def test_training_again_falls_as_recorded(backbone: Backbone) -> None:
    recorded = [entry for entry in backbone.history if entry["step"] <= 60]
    again = diffusion.train_backbone(backbone.config, max_steps=60).history
    assert [e["step"] for e in again] == [e["step"] for e in recorded]
    assert len(again) >= 3
    for mine, theirs in zip(again, recorded, strict=True):
        # another machine sums in another order; the course is the same
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=0.05)
    assert again[-1]["loss"] < 0.75 * again[0]["loss"]
    assert backbone.history[-1]["loss"] < 0.6 * again[-1]["loss"]


def test_same_seed_same_weights_and_global_generator_untouched(tmp_path: Path) -> None:
    config = tiny_config(steps=4)
    before = torch.get_rng_state()
    first = diffusion.train_backbone(config)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    with RunFolder.create(tmp_path / "run", kind="backbone", config=config.to_dict()) as run:
        second = diffusion.train_backbone(config, run)
        assert [row["step"] for row in run.metrics()] == [2, 4]
        assert run.metrics()[0]["losses/backbone"] == first.history[0]["loss"]
    other = diffusion.train_backbone(tiny_config(steps=4, seed=1))
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.unet.conv_in.weight, other.unet.conv_in.weight)
    loaded = Backbone.load(tmp_path / "run")
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 9])
    # what training returns is what was saved, rounding included
    assert torch.equal(loaded.predict(x, 400, labels)[0], second.predict(x, 400, labels)[0])
    assert loaded.config == config
    assert loaded.history == second.history


def test_resumed_training_is_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(steps=6, log_every=4)
    whole = diffusion.train_backbone(config)
    with RunFolder.create(tmp_path / "run", kind="backbone", config=config.to_dict()) as run:
        one_step = loop.Training.one_step

        def interrupted(training: loop.Training) -> None:
            one_step(training)
            if training.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(loop.Training, "one_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            diffusion.train_backbone(config, run)
        monkeypatch.undo()
        assert not (tmp_path / "run" / "model").exists()
        with pytest.raises(RunFolderError, match="not the same run"):
            diffusion.train_backbone(tiny_config(steps=7, log_every=4), run, resume=True)
        resumed = diffusion.train_backbone(config, run, resume=True)
        assert [row["step"] for row in run.metrics()] == [4, 6]
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert resumed.history == whole.history
    with pytest.raises(RunFolderError, match="resume needs"):
        diffusion.train_backbone(config, resume=True)


def test_a_damaged_or_foreign_model_is_refused(tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(MissingDataError, match=r"no backbone in .* for: cifar10, digits$"):
        Backbone.load(tmp_path / "nothing")
    backbone.save(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-50], whole[:-50] + bytes(50), b""):
        weights.write_bytes(damaged)
        with pytest.raises(DamagedFileError):
            Backbone.load(tmp_path)
    with pytest.raises(DamagedFileError, match="not a backbone"):
        Backbone.load(SHIPPED / "digits-evaluation")


def test_bad_input(backbone: Backbone) -> None:
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    for args, message in (
        ((x[0], 5, labels), "x_t is"),
        ((torch.randn(2, 1, 16, 16), 5, labels), "x_t is"),
        ((x, 5, labels[:1]), "1 labels for 2 images"),
        ((x, 5, labels.float()), "int64"),
        ((x, 1000, labels), "timestep"),
        ((x, -1, labels), "timestep"),
        ((x, 5, labels + 10), "null label"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            backbone.predict(*args)


def test_bad_configuration() -> None:
    for changes in (
        {"channels": (16, 32, 32, 32), "attention": (False,) * 4, "patch": 2},
        {"channels": (16, 20), "attention": (False, True)},
        {"attention": (True,) * 5},
        {"label_dropout": 1.0},
        {"steps": 0},
        {"patch": 9},
    ):
        with pytest.raises(InvalidInputError):
            BackboneConfig.for_dataset("digits", **changes)
    with pytest.raises(UnknownNameError, match="v_prediction"):
        BackboneConfig(prediction_type="v-prediction")
    with pytest.raises(UnknownNameError, match="mnist16"):
        BackboneConfig.for_dataset("mnist")
    with pytest.raises(UnknownNameError, match="unknown BackboneConfig setting 'colour'"):
        BackboneConfig.from_dict({"colour": 1})
    with pytest.raises(InvalidInputError, match="configuration 'mnist16'"):
        diffusion.train_backbone(BackboneConfig.for_dataset("mnist16"), dataset=diffusion.load_dataset("digits"))


@pytest.mark.parametrize("name", diffusion.DATASETS)
def test_every_recipe_makes_a_backbone_of_its_images(name: str) -> None:
    config = BackboneConfig.for_dataset(name)
    backbone = Backbone(config).eval()
    eps, _ = backbone.predict(torch.zeros(2, *config.image_shape), 10, torch.tensor([0, 9]))
    assert eps.shape == (2, *config.image_shape)
    assert BackboneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    # half precision: below a megabyte, of photographs below four
    assert backbone.n_parameters < (500_000 if config.image_shape[0] == 1 else 2_000_000)
