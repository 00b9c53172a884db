from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from qhw_diffusion.checkpoints import save_module
from qhw_diffusion.denoising.autoencoder import (
    AutoencoderConfig,
    LatentAutoencoder,
    reconstruction_error,
    train_autoencoder,
)
from qhw_diffusion.denoising.readout import images_from_counts, probabilities_of, sample_counts
from qhw_diffusion.denoising.states import as_density, check_pure
from qhw_diffusion.diffusion import Classifier, accuracy, load_dataset
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, UnknownNameError
from qhw_diffusion.runs import RunFolder

SHORT = AutoencoderConfig(width=32, steps=30)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained() -> LatentAutoencoder:
    # a third of the default recipe's steps
    return train_autoencoder(AutoencoderConfig(steps=500), load_dataset("digits"), load_dataset("digits", "heldout"))


@pytest.mark.slow
def test_reconstruction_beats_the_mean_image_and_a_linear_code_of_as_many_numbers(trained: LatentAutoencoder) -> None:
    train, heldout = load_dataset("digits"), load_dataset("digits", "heldout")
    report = trained.report
    assert report["heldout_mse"] < 0.3 * report["heldout_mse_mean_image"]
    x, y = train.images.flatten(1).numpy(), heldout.images.flatten(1).numpy()
    pca = PCA(7).fit(x)  # eight magnitudes of unit norm are seven free numbers
    linear = float(np.square(pca.inverse_transform(pca.transform(y)) - y).mean())
    assert report["heldout_mse"] < linear
    again = float((trained(heldout.images) - heldout.images).square().mean())
    assert report["heldout_mse"] == pytest.approx(again, rel=1e-5)
    assert report["heldout_mse_mean_image"] == pytest.approx(float(np.square(y - x.mean(0)).mean()), rel=1e-5)
    # and the digits are still what they were to a classifier that never saw reconstructions
    judge = Classifier.load("digits", "evaluation")
    assert accuracy(judge, trained(heldout.images), heldout.labels) > 0.6


def test_latent_is_a_state_with_amplitudes_that_can_be_measured(trained: LatentAutoencoder) -> None:
    magnitudes = trained.encode(load_dataset("digits", "heldout").images)
    assert magnitudes.shape == (597, 8)
    assert magnitudes.dtype == torch.float32
    assert (magnitudes >= 0).all()
    check_pure(magnitudes.to(torch.complex64))


def test_decoder_sees_magnitudes_only(trained: LatentAutoencoder) -> None:
    magnitudes = trained.encode(load_dataset("digits", "heldout").images[:20])
    expected = trained.decode(magnitudes)
    phases = torch.exp(2j * math.pi * torch.rand(20, 8, generator=generator()))
    states = magnitudes * phases
    torch.testing.assert_close(trained.decode(states), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(trained.decode(-3 * magnitudes), expected, atol=1e-5, rtol=0)
    measured = probabilities_of(as_density(states)).sqrt()
    torch.testing.assert_close(trained.decode(measured), expected, atol=1e-5, rtol=0)
    assert (trained.decode(magnitudes.flip(1)) - expected).abs().max() > 0.5  # what it does see, it uses


def test_decoder_takes_counts(trained: LatentAutoencoder) -> None:
    heldout = load_dataset("digits", "heldout").images
    counts = sample_counts(trained.encode(heldout).square(), 1000, generator(1))
    from_counts = trained.decode(images_from_counts(counts, (8,)).magnitudes)
    error = float((from_counts - heldout).square().mean())
    assert error == pytest.approx(trained.report["heldout_mse_counts"], rel=0.05)
    assert trained.report["heldout_mse"] < error < 1.2 * trained.report["heldout_mse"]
    few = reconstruction_error(trained, heldout, 30, generator())
    assert few > 1.5 * error  # shot noise is really there


@pytest.mark.slow
def test_training_on_counts_helps_with_counts() -> None:
    train, heldout = load_dataset("digits"), load_dataset("digits", "heldout")
    errors = {}
    for shots in (None, 20):
        model = train_autoencoder(AutoencoderConfig(width=64, steps=250, latent_shots=shots), train, heldout)
        errors[shots] = reconstruction_error(model, heldout.images, 20, generator())
        assert ("heldout_mse_counts" in model.report) == (shots is not None)
    assert errors[20] < 0.9 * errors[None]


def test_same_seed_same_bits() -> None:
    data = load_dataset("digits")
    first, second = (train_autoencoder(SHORT, data, data).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train_autoencoder(AutoencoderConfig(width=32, steps=30, seed=1), data, data).state_dict()
    assert not torch.equal(first["encoder.1.weight"], other["encoder.1.weight"])


def test_training_leaves_the_global_generator_alone() -> None:
    data = load_dataset("digits")
    before = torch.get_rng_state()
    train_autoencoder(SHORT, data, data)
    assert torch.equal(before, torch.get_rng_state())


def test_saved_model_comes_back(tmp_path: Path) -> None:
    data = load_dataset("digits")
    with RunFolder.create(tmp_path / "run", kind="autoencoder", config=SHORT.to_dict()) as run:
        model = train_autoencoder(SHORT, data, data, run)
    loaded = LatentAutoencoder.load(tmp_path / "run" / "model")
    assert loaded.config == SHORT
    assert loaded.report == model.report
    assert loaded.provenance["data_fingerprint"] == data.fingerprint
    assert torch.equal(loaded(data.images[:5]), model(data.images[:5]))
    assert not any(p.requires_grad for p in loaded.parameters())
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("losses/reconstruction" in json.dumps(line) for line in logged)


def test_folders_that_hold_no_autoencoder(tmp_path: Path) -> None:
    model = LatentAutoencoder(SHORT)
    with pytest.raises(DamagedFileError, match="missing"):
        LatentAutoencoder.load(tmp_path)
    save_module(tmp_path / "other", model, {"format": 1, "kind": "actor"})
    with pytest.raises(DamagedFileError, match="actor"):
        LatentAutoencoder.load(tmp_path / "other")
    wide = AutoencoderConfig(width=33).to_dict()
    description = {"format": 1, "kind": "latent autoencoder", "config": wide, "report": {}, "provenance": {}}
    save_module(tmp_path / "unfit", model, description)
    with pytest.raises(DamagedFileError, match="do not fit"):
        LatentAutoencoder.load(tmp_path / "unfit")


def test_other_shapes() -> None:
    config = AutoencoderConfig(image_shape=(3, 5, 4), latent_qubits=2, width=16)
    model = LatentAutoencoder(config)
    images = torch.rand(6, 3, 5, 4, generator=generator()) * 2 - 1
    assert model.encode(images).shape == (6, 4)
    assert model(images).shape == (6, 3, 5, 4)
    # 60→16→16→4 and 4→16→16→60, with offsets
    assert model.n_parameters == (61 * 16 + 17 * 16 + 17 * 4) + (5 * 16 + 17 * 16 + 17 * 60)


def test_bad_input() -> None:
    model = LatentAutoencoder(SHORT)
    with pytest.raises(InvalidInputError, match=r"\[B, 1, 8, 8\]"):
        model.encode(torch.zeros(2, 1, 16, 16))
    with pytest.raises(InvalidInputError, match="3 qubits"):
        model.decode(torch.ones(2, 16))
    for row in (0.0, math.nan):
        with pytest.raises(InvalidInputError, match="finite"):
            model.decode(torch.full((2, 8), row))
    with pytest.raises(InvalidInputError, match="generator"):
        reconstruction_error(model, torch.zeros(2, 1, 8, 8), 10)
    for changes in (
        {"image_shape": (8, 8)},
        {"latent_qubits": 0},
        {"width": 0},
        {"learning_rate": -1.0},
        {"latent_shots": 0},
    ):
        with pytest.raises(InvalidInputError):
            AutoencoderConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="unknown AutoencoderConfig setting 'colour'"):
        AutoencoderConfig.from_dict({"colour": 1})
    assert AutoencoderConfig.from_dict(json.loads(json.dumps(SHORT.to_dict()))) == SHORT
    digits = load_dataset("digits")
    with pytest.raises(InvalidInputError, match="digits"):
        train_autoencoder(AutoencoderConfig(image_shape=(1, 16, 16)), digits, digits)
