"""Models on disk: what comes back is what went in, bit for bit, or an error that says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from qhw_diffusion.checkpoints import save_module
from qhw_diffusion.circuits import load_circuit, save_circuit
from qhw_diffusion.denoising.autoencoder import AutoencoderConfig, LatentAutoencoder
from qhw_diffusion.denoising.baselines import with_classical
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.device_noise import DeviceNoise
from qhw_diffusion.denoising.forward import Depolarizing, noise_schedule
from qhw_diffusion.denoising.models import QDM, AmplitudeQDM, DensityMatrixQDM, EnsembleQDM, ForwardConfig, LatentQDM
from qhw_diffusion.denoising.reverse import ReverseProcess
from qhw_diffusion.denoising.saving import FORWARD_SNAPSHOT, SNAPSHOT, from_pretrained, save_pretrained
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, UnknownNameError
from qhw_diffusion.execution import compile_circuit

SMALL: dict[str, Any] = {"n_qubits": 2, "n_steps": 2, "depth": 2, "init_scale": 0.7}


def density() -> QDM:
    reverse = ReverseConfig(**SMALL, kind="reset", device="fake_manila", engine="noisy")
    return DensityMatrixQDM(reverse, ForwardConfig("depolarizing", "constant", {"p": 0.3}))


def ensemble() -> QDM:
    reverse = ReverseConfig(**SMALL, kind="measured", feed_forward=True, device="fake_manila")
    return EnsembleQDM(reverse, ForwardConfig("scrambling", strength=(0.3, 2.0)))


def amplitude() -> QDM:
    reverse = ReverseConfig(**SMALL, weight_sharing="hypernetwork", conditioning="weights", n_labels=2)
    return AmplitudeQDM(reverse, ForwardConfig("gaussian", complex=False), image_shape=(1, 2, 2))


def latent() -> QDM:
    torch.manual_seed(0)
    autoencoder = LatentAutoencoder(AutoencoderConfig(image_shape=(1, 4, 4), latent_qubits=2, width=16))
    return LatentQDM(
        ReverseConfig(**SMALL, weight_sharing="time_embedding", conditioning="qubits", n_labels=2),
        autoencoder=autoencoder,
    )


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
    with pytest.raises(DamagedFileError, match=r"circuit\.qpy is not the file that was saved with"):
        from_pretrained(folder)
    shutil.copy(folder / "model.safetensors", other / "model.safetensors")
    third = save_pretrained(amplitude(), tmp_path / "third")
    for name in ("circuit.qpy", "isa.qpy"):
        shutil.copy(third / name, other / name)
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


@pytest.mark.parametrize("kind", MAKERS)
def test_dtype_and_what_is_frozen_come_back(tmp_path: Path, kind: str) -> None:
    model = MAKERS[kind]()
    model.reverse = ReverseProcess(model.reverse.config, compiled=model.reverse.compiled, dtype=torch.float64)
    model.reverse.weight.requires_grad_(False)
    again = from_pretrained(save_pretrained(model, tmp_path))
    moved = model.on()
    for name, parameter in model.named_parameters():
        for other in (again, moved):
            found = other.get_parameter(name)
            assert (found.dtype, found.requires_grad) == (parameter.dtype, parameter.requires_grad)
            assert torch.equal(found, parameter)
    assert torch.equal(samples(again), samples(model))
    assert torch.equal(samples(moved), samples(model))


def test_the_compiled_circuit_comes_back_and_not_a_new_one(tmp_path: Path) -> None:
    """A process compiled by hand, here with a schedule, so that waiting qubits relax."""
    plain = density()
    made = plain.reverse
    scheduled = compile_circuit(
        made.circuit.circuit,
        made.compiled.device,
        inputs=made.circuit.inputs,
        weights=made.circuit.weights,
        observables=made.circuit.observables,
        scheduled=True,
        seed=7,
    )
    model = DensityMatrixQDM(ReverseProcess(made.config, compiled=scheduled), plain.forward_config)
    again = from_pretrained(save_pretrained(model, tmp_path))
    assert again.reverse.compiled.isa == scheduled.isa
    assert torch.equal(samples(again), samples(model))
    assert not torch.equal(samples(model), samples(plain))
    ideal = model.on(engine="ideal")
    assert ideal.reverse.compiled is model.reverse.compiled
    with pytest.raises(InvalidInputError, match="a step of this process"):
        ReverseProcess(replace(made.config, depth=3), compiled=scheduled)


@pytest.mark.parametrize("where", ["ideal", "fake_quito"])
def test_a_forward_process_stays_on_its_own_device(tmp_path: Path, where: str) -> None:
    reverse = ReverseConfig(**SMALL, kind="reset", device="fake_manila")
    model = DensityMatrixQDM(reverse, ForwardConfig("device", seconds=50e-6)).on(device=where)
    again = from_pretrained(save_pretrained(model, tmp_path / "a"))
    for each in (model, again):
        assert isinstance(each.forward_process, DeviceNoise)
        assert each.forward_process.device.name == "fake_manila"
        assert each.reverse.compiled.device.name == where
    assert torch.equal(samples(again), samples(model))
    other = DensityMatrixQDM(replace(reverse, device="fake_lima"), ForwardConfig("device", seconds=50e-6))
    shutil.copy(save_pretrained(other, tmp_path / "b") / FORWARD_SNAPSHOT, tmp_path / "a" / FORWARD_SNAPSHOT)
    with pytest.raises(DamagedFileError, match="forward"):
        from_pretrained(tmp_path / "a")
    (tmp_path / "a" / FORWARD_SNAPSHOT).unlink()
    with pytest.raises(DamagedFileError, match="forward"):
        from_pretrained(tmp_path / "a")


def test_what_an_autoencoder_was_trained_to_comes_back(tmp_path: Path) -> None:
    model = latent()
    assert isinstance(model, LatentQDM)
    model.autoencoder.report, model.autoencoder.provenance = {"heldout_mse": 0.25}, {"dataset": "digits"}
    again = from_pretrained(save_pretrained(model, tmp_path))
    assert isinstance(again, LatentQDM)
    assert again.autoencoder.report == {"heldout_mse": 0.25}
    assert again.autoencoder.provenance == {"dataset": "digits"}
    double = model.autoencoder.double()
    loaded = LatentAutoencoder.load(double.save(tmp_path / "autoencoder"))
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(loaded.encode(images), double.encode(images))


@pytest.mark.parametrize("make", [amplitude, latent])
def test_a_model_in_double_precision_samples_and_comes_back(make: Callable[[], QDM], tmp_path: Path) -> None:
    model = make().double()
    again = from_pretrained(save_pretrained(model, tmp_path / "model"))
    labels = torch.zeros(3, dtype=torch.int64) if model.reverse.config.n_labels > 1 else None
    made = []
    for each in (model, again):
        generator = torch.Generator().manual_seed(1)
        made.append(each.images(each.sample(3, generator, labels).states))
    assert made[0].isfinite().all()
    assert torch.equal(*made)
    shape = (3, *model.image_shape)
    assert model.encode(torch.rand(shape) * 2 - 1).shape == (3, model.dim)


class _OwnModel(AmplitudeQDM):
    """A model of somebody's own that has the name of one of the package's."""


class _OwnProcess(ReverseProcess):
    """A reverse process of somebody's own."""


def _changed(what: str) -> QDM:
    model = amplitude() if what != "network" else latent()
    deeper = replace(model.reverse.config, ansatz="cz", depth=3, outer=0)
    if what == "model":
        return _OwnModel(model.reverse, image_shape=(1, 2, 2))
    if what == "process":
        model.reverse = _OwnProcess(model.reverse.config)
    elif what == "circuit":
        model.reverse.circuit = ReverseProcess(deeper).circuit
    elif what == "compiled circuit":
        made = ReverseProcess(deeper)
        model.reverse.compiled, model.reverse.evolution = made.compiled, made.evolution
    elif what == "engine":
        made = model.on(device="fake_manila").reverse
        model.reverse = made
        made.evolution = made.on(engine="noisy").evolution
    elif what == "forward process":
        model.forward_process = Depolarizing(noise_schedule("constant", 2, p=0.2))
    elif what == "noise schedule":
        model.forward_process = ForwardConfig("gaussian", "linear", complex=False).build(
            model.reverse.config, model.reverse.compiled.device
        )
    else:
        assert isinstance(model, LatentQDM)
        model.autoencoder.decoder[1] = torch.nn.ReLU()
    return model


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("model", "_OwnModel .* none of the package's models"),
        ("process", "_OwnProcess is none of the package's models"),
        ("circuit", "another circuit"),
        ("compiled circuit", "another (compiled circuit|network or circuit)"),
        ("engine", "another circuit"),
        ("forward process", "another forward process"),
        ("noise schedule", "another forward process"),
        ("network", "another network"),
    ],
)
def test_what_would_come_back_different_is_refused(tmp_path: Path, what: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        save_pretrained(_changed(what), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def first_format(model: QDM, folder: Path) -> Path:
    """A folder as this package wrote them before it read the compiled circuit back."""
    compiled = model.reverse.compiled
    save_circuit(model.reverse.circuit.circuit, folder, "circuit")
    save_circuit(compiled.isa, folder, "isa")
    compiled.device.save(folder / SNAPSHOT)
    return save_module(folder, model, model.config())


@pytest.mark.parametrize("kind", MAKERS)
def test_a_folder_of_format_1_still_loads(tmp_path: Path, kind: str) -> None:
    model = MAKERS[kind]()
    again = from_pretrained(first_format(model, tmp_path))
    assert again.config() == model.config()
    assert torch.equal(samples(again), samples(model))
    save_circuit(model.reverse.circuit.circuit.inverse(), tmp_path, "circuit")
    with pytest.raises(DamagedFileError, match=r"circuit\.qpy is not the circuit that"):
        from_pretrained(tmp_path)


def test_a_folder_of_a_later_format_is_refused(tmp_path: Path) -> None:
    model = amplitude()
    save_module(tmp_path, model, {**model.config(), "format": 4})
    with pytest.raises(DamagedFileError, match="format version 4, this package reads 1 and 2 and 3"):
        from_pretrained(tmp_path)
