"""Models on disk: what comes back is what went in, bit for bit, or an error that says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from qhw_diffusion.circuits import load_circuit
from qhw_diffusion.denoising.autoencoder import AutoencoderConfig, LatentAutoencoder
from qhw_diffusion.denoising.classical import with_classical
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.latent import LatentQDM
from qhw_diffusion.denoising.models import QDM, AmplitudeQDM, DensityMatrixQDM, EnsembleQDM, ForwardConfig
from qhw_diffusion.denoising.saving import SNAPSHOT, from_pretrained, save_pretrained
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, UnknownNameError
from qhw_diffusion.runs import save_module

SMALL: dict[str, Any] = {"n_qubits": 2, "n_steps": 2, "depth": 2, "init_scale": 0.7}


def density() -> QDM:
    reverse = ReverseConfig(**SMALL, kind="reset", device="fake_manila", engine="noisy")
    return DensityMatrixQDM(reverse, ForwardConfig("depolarizing", "constant", {"p": 0.3}))


def ensemble() -> QDM:
    reverse = ReverseConfig(**SMALL, kind="measured", feed_forward=True, device="fake_manila")
    return EnsembleQDM(reverse, ForwardConfig("scrambling", strength=(0.3, 2.0)))


def amplitude() -> QDM:
    reverse = ReverseConfig(**SMALL, sharing="map", labels_by="weights", n_labels=2)
    return AmplitudeQDM(reverse, ForwardConfig("gaussian", complex=False), image_shape=(1, 2, 2))


def latent() -> QDM:
    torch.manual_seed(0)
    autoencoder = LatentAutoencoder(AutoencoderConfig(image_shape=(1, 4, 4), latent_qubits=2, width=16))
    return LatentQDM(ReverseConfig(**SMALL, sharing="angle", labels_by="qubits", n_labels=2), autoencoder=autoencoder)


MAKERS = {"density": density, "ensemble": ensemble, "amplitude": amplitude, "latent": latent}


def samples(model: QDM) -> Tensor:
    labels = torch.tensor([0, 1, 1]) if model.reverse.config.n_labels > 1 else None
    chain = model.sample(3, torch.Generator().manual_seed(3), labels)
    return model.images(chain.states) if isinstance(model, AmplitudeQDM) else chain.states


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_pretrained(amplitude(), tmp_path / "model")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    model = MAKERS[kind]()
    with torch.no_grad():
        model.reverse.weight += 0.1  # not what the seed gives
    again = from_pretrained(save_pretrained(model, tmp_path / "a" / "model"))
    assert type(again) is type(model)
    assert again.config() == model.config()
    assert not again.training
    assert torch.equal(samples(again), samples(model))
    assert again.reverse.compiled.isa == model.reverse.compiled.isa
    second = from_pretrained(save_pretrained(again, tmp_path / "b"))
    assert torch.equal(samples(second), samples(model))


def test_the_folder_holds_circuits_device_and_readable_settings(tmp_path: Path) -> None:
    model = density()
    folder = save_pretrained(model, tmp_path)
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "model.safetensors", "config.json", "circuit.qpy", "circuit.qasm", "isa.qpy", "isa.qasm", "device.json",
        SNAPSHOT,
    }  # fmt: skip
    assert load_circuit(folder / "circuit.qpy") == model.reverse.circuit.circuit
    assert load_circuit(folder / "isa.qpy") == model.reverse.compiled.isa
    config = json.loads((folder / "config.json").read_text())
    assert (config["model"], config["reverse"]["device"]) == ("density", "fake_manila")
    device = json.loads((folder / "device.json").read_text())
    assert (device["name"], device["snapshot"]) == ("fake_manila", SNAPSHOT)
    assert Device.load(folder / SNAPSHOT) == model.reverse.compiled.device
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "reverse.weight" in set(file.keys())


def test_another_device_or_engine_on_loading(tmp_path: Path) -> None:
    model = ensemble()
    folder = save_pretrained(model, tmp_path)
    noisy = from_pretrained(folder, engine="noisy")
    assert noisy.reverse.config.engine == "noisy"
    assert noisy.reverse.compiled.device == model.reverse.compiled.device
    assert samples(noisy).ndim == 3
    assert torch.equal(samples(noisy), samples(model.on(engine="noisy")))
    moved = from_pretrained(folder, device="fake_quito")
    assert moved.reverse.compiled.device.name == "fake_quito"
    file = Device.load("fake_manila").save(tmp_path / "other.json.gz")
    assert from_pretrained(folder, device=file, engine="noisy").reverse.compiled.device.name == "fake_manila"
    with pytest.raises(UnknownNameError, match="fake_quito"):
        from_pretrained(folder, device="fake_qito")
    with pytest.raises(UnknownNameError, match="noisy"):
        from_pretrained(folder, engine="noisey")
    with pytest.raises(InvalidInputError, match="holds no states"):
        from_pretrained(folder, engine="shots")


def test_a_model_under_noise_can_be_loaded_for_the_ideal_device(tmp_path: Path) -> None:
    folder = save_pretrained(density(), tmp_path)
    ideal = from_pretrained(folder, device="ideal", engine="ideal")
    assert ideal.reverse.compiled.device.is_ideal
    with pytest.raises(InvalidInputError, match="has no noise"):
        from_pretrained(folder, device="ideal")


def test_a_model_on_a_device_from_a_file_comes_back(tmp_path: Path) -> None:
    device = Device.load(Device.load("fake_manila").save(tmp_path / "mine.json.gz"))
    model = AmplitudeQDM(ReverseConfig(**SMALL, device=device.name), image_shape=(1, 2, 2), device=device)
    again = from_pretrained(save_pretrained(model, tmp_path / "model"))
    assert torch.equal(samples(again), samples(model))


@pytest.mark.parametrize("name", ["model.safetensors", "circuit.qpy", SNAPSHOT])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_damaged_files_are_refused(folder: Path, name: str, damage: str, tmp_path: Path) -> None:
    file = folder / name
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.write_bytes(b"not what it was")
    with pytest.raises(DamagedFileError, match=name.split(".")[0]):
        from_pretrained(folder)


def test_parts_of_two_models_are_refused(folder: Path, tmp_path: Path) -> None:
    other = save_pretrained(latent(), tmp_path / "other")
    shutil.copy(other / "circuit.qpy", folder / "circuit.qpy")
    with pytest.raises(DamagedFileError, match=r"circuit\.qpy is not the circuit that"):
        from_pretrained(folder)
    shutil.copy(folder / "model.safetensors", other / "model.safetensors")
    shutil.copy(save_pretrained(amplitude(), tmp_path / "third") / "circuit.qpy", other / "circuit.qpy")
    assert type(from_pretrained(other)) is AmplitudeQDM, "the settings travel with the weights"


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="no saved model"):
        from_pretrained(tmp_path / "nothing")
    save_module(tmp_path / "foreign", torch.nn.Linear(2, 2), {"model": "controller"})
    with pytest.raises(DamagedFileError, match="quantum diffusion model"):
        from_pretrained(tmp_path / "foreign")


def test_weights_of_another_shape(tmp_path: Path) -> None:
    folder = save_pretrained(amplitude(), tmp_path)
    model = amplitude()
    model.reverse.weight = torch.nn.Parameter(model.reverse.weight.detach()[..., :-1].clone())
    save_module(folder, model, model.config())
    with pytest.raises(DamagedFileError, match="size mismatch"):
        from_pretrained(folder)


def test_a_model_without_its_circuit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="ClassicalProcess"):
        save_pretrained(with_classical(amplitude()), tmp_path / "model")
    assert not (tmp_path / "model").exists()
