"""The four models: what goes in, what comes out, and on which device."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from qhw_diffusion.denoising.autoencoder import AutoencoderConfig, LatentAutoencoder, train_autoencoder
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.device_noise import DeviceNoise
from qhw_diffusion.denoising.forward import Depolarizing, GaussianAmplitudes, Scrambling
from qhw_diffusion.denoising.models import (
    MODELS,
    QDM,
    AmplitudeQDM,
    DensityMatrixQDM,
    EnsembleQDM,
    ForwardConfig,
    LatentQDM,
)
from qhw_diffusion.denoising.states import haar_states
from qhw_diffusion.denoising.training import TrainConfig, train_qdm
from qhw_diffusion.diffusion import ImageDataset
from qhw_diffusion.errors import InvalidInputError, UnknownNameError

SMALL: dict[str, Any] = {"n_qubits": 2, "n_steps": 2, "depth": 2, "init_scale": 0.5}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, side: int = 2) -> torch.Tensor:
    return 2 * torch.rand(count, 1, side, side, generator=generator()) - 1


def test_there_are_four() -> None:
    assert {
        "density": DensityMatrixQDM,
        "ensemble": EnsembleQDM,
        "amplitude": AmplitudeQDM,
        "latent": LatentQDM,
    } == MODELS


@pytest.mark.parametrize(
    ("kind", "cls", "density"),
    [
        ("gaussian", GaussianAmplitudes, False),
        ("depolarizing", Depolarizing, True),
        ("scrambling", Scrambling, False),
        ("device", DeviceNoise, True),
    ],
)
def test_any_forward_process(kind: str, cls: type, density: bool) -> None:
    reverse = ReverseConfig(**SMALL, device="fake_manila" if kind == "device" else "ideal", kind="measured")
    model = QDM(reverse, ForwardConfig(kind))
    assert isinstance(model.forward_process, cls)
    assert model.forward_process.n_steps == 2
    chain = model.sample(5, generator(), keep_path=True)
    assert [x.shape for x in chain.path] == [torch.Size([5, 4, 4] if density else [5, 4])] * 3
    assert not chain.states.requires_grad
    assert torch.equal(model.sample(5, generator()).states, chain.states), "the same seed, the same bits"


def test_default_forward_processes() -> None:
    reverse = ReverseConfig(**SMALL)
    assert isinstance(DensityMatrixQDM(reverse).forward_process, Depolarizing)
    assert isinstance(EnsembleQDM(reverse).forward_process, Scrambling)
    assert isinstance(AmplitudeQDM(reverse, image_shape=(1, 2, 2)).forward_process, GaussianAmplitudes)


@pytest.mark.parametrize("make", [DensityMatrixQDM, EnsembleQDM])
def test_models_of_states_take_states(make: type[QDM]) -> None:
    model = make(ReverseConfig(**SMALL))
    data = haar_states(3, 4, generator())
    assert model.encode(data) is data
    with pytest.raises(InvalidInputError, match="dimension 8; 2 qubits have 4"):
        model.encode(haar_states(3, 8, generator()))
    with pytest.raises(InvalidInputError, match="not normalised"):
        model.encode(2 * data)
    with pytest.raises(InvalidInputError, match="not positive"):
        model.encode(torch.diag(torch.tensor([1.5, -0.5, 0, 0], dtype=torch.complex64))[None])


def test_amplitude_model_from_images_to_images() -> None:
    model = AmplitudeQDM(ReverseConfig(**{**SMALL, "init_scale": 0.0}), image_shape=(1, 2, 2))
    data = images(4)
    states = model.encode(data)
    pixels = (data.flatten(1) + 1) / 2
    torch.testing.assert_close(states.abs(), pixels / pixels.norm(dim=1, keepdim=True))
    back = model.images(states)
    torch.testing.assert_close(back.flatten(1), 2 * pixels / pixels.amax(1, keepdim=True) - 1, atol=1e-5, rtol=0)
    # a step of zero weights is the identity: samples are the noise that went in
    chain = model.sample(3, generator(), keep_path=True)
    torch.testing.assert_close(chain.states.abs(), chain.path[0].abs(), atol=1e-5, rtol=0)
    torch.testing.assert_close(chain.probability, torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (images(2, 3), r"allowed: \[N, 1, 2, 2\]"),
        (images(2)[:, 0], r"allowed: \[N, 1, 2, 2\]"),
        (3 * torch.ones(2, 1, 2, 2), r"\[-1, 1\]"),
        (-torch.ones(2, 1, 2, 2), "black"),
    ],
)
def test_images_that_do_not_fit(data: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        AmplitudeQDM(ReverseConfig(**SMALL), image_shape=(1, 2, 2)).encode(data)


def test_images_larger_than_the_register_are_refused_at_once() -> None:
    with pytest.raises(InvalidInputError, match="n_qubits=6; or take images of at most 4 pixels"):
        AmplitudeQDM(ReverseConfig(**SMALL), image_shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("shape", "n_qubits", "settings"),
    [
        ((3, 2, 5), 5, {"conditioning": "angles", "n_labels": 7}),
        ((2, 4, 2), 4, {"conditioning": "qubits", "n_labels": 3}),
        ((1, 1, 3), 2, {"conditioning": "weights", "n_labels": 23}),
        ((4, 1, 1), 2, {}),
    ],
)
def test_colour_images_that_are_not_square_and_any_number_of_labels(
    shape: tuple[int, int, int], n_qubits: int, settings: dict[str, Any]
) -> None:
    reverse = ReverseConfig(n_qubits=n_qubits, n_steps=2, depth=2, init_scale=0.1, **settings)
    model = AmplitudeQDM(reverse, image_shape=shape)
    count = 2 * reverse.n_labels
    labels = torch.arange(count) % reverse.n_labels if reverse.n_labels > 1 else None
    data = 2 * torch.rand(count, *shape, generator=generator()) - 1
    decoded = model.images(model.encode(data))
    brightest = (data + 1).flatten(1).amax(1)[:, None, None, None]
    torch.testing.assert_close(decoded, 2 * (data + 1) / brightest - 1, atol=1e-4, rtol=0)
    before = model.reverse.weight.detach().clone()
    train = TrainConfig("mmd", "joint", iterations=2, batch_size=2, targets=2, probability_weight=0.1)
    history = train_qdm(model, data, train, labels=labels)
    assert len(history) == 2
    assert not torch.equal(model.reverse.weight, before)
    assert model.images(model.sample(count, generator(), labels).states).shape == data.shape


def test_an_autoencoder_takes_colour_images_that_are_not_square() -> None:
    pictures = 2 * torch.rand(6, 3, 2, 5, generator=generator()) - 1
    data = ImageDataset(pictures, torch.arange(6) % 3, "mine", "train", 3)
    settings = AutoencoderConfig(image_shape=(3, 2, 5), latent_qubits=2, width=4, steps=3)
    autoencoder = train_autoencoder(settings, data, data)
    model = LatentQDM(ReverseConfig(**SMALL, conditioning="angles", n_labels=3), autoencoder=autoencoder)
    made = model.sample(3, generator(), torch.arange(3))
    assert model.images(made.states).shape == (3, 3, 2, 5)
    assert model.encode(pictures).shape == (6, 4)


@pytest.mark.parametrize(
    ("shape", "n_qubits", "message"),
    [
        ((3, 4, 4), 5, r"images \(3, 4, 4\) have 48 pixels, and 5 qubits hold 32 amplitudes.*n_qubits=6.*LatentQDM"),
        ((3, 32, 32), 6, r"at most 11 data qubits beside its others; or take images of at most 64 pixels"),
    ],
)
def test_images_that_do_not_fit_say_what_does(shape: tuple[int, int, int], n_qubits: int, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        AmplitudeQDM(ReverseConfig(n_qubits=n_qubits, n_steps=1, depth=1), image_shape=shape)
    with pytest.raises(InvalidInputError, match="n_qubits can be at most 11"):
        AmplitudeQDM(ReverseConfig(n_qubits=12, n_steps=1, depth=1), image_shape=shape)


def test_measured_images_cost_shots_and_say_how_many() -> None:
    model = AmplitudeQDM(ReverseConfig(**SMALL), image_shape=(1, 2, 2))
    chain = model.sample(3, generator())
    many = model.measured_images(chain, 4_000_000, generator())
    torch.testing.assert_close(many, model.images(chain.states), atol=0.02, rtol=0)
    estimate = model.measured_magnitudes(chain, 1000, generator())
    expected = 1000 * chain.probability
    assert estimate.shots is not None
    assert bool(((estimate.shots - expected).abs() < 6 * expected.sqrt()).all()), "only what passes is counted"
    assert estimate.images.shape == (3, 1, 2, 2)
    with pytest.raises(InvalidInputError, match=r"Use \d+ shots or more"):
        model.measured_images(chain, 2, generator())
    drawn = AmplitudeQDM(ReverseConfig(**SMALL, kind="measured"), image_shape=(1, 2, 2))
    chain = drawn.sample(3, generator())
    estimate = drawn.measured_magnitudes(chain, 1000, generator())
    assert estimate.shots is not None
    expected = 1000 * chain.probability
    assert bool(((estimate.shots - expected).abs() < 6 * expected.sqrt()).all()), "an image is one record of outcomes"
    forgotten = AmplitudeQDM(ReverseConfig(**SMALL, kind="reset"), image_shape=(1, 2, 2))
    estimate = forgotten.measured_magnitudes(forgotten.sample(3, generator()), 50, generator())
    assert estimate.shots is not None
    assert bool((estimate.shots == 50).all()), "nothing is read, every run counts"


def test_latent_model_decodes_magnitudes() -> None:
    autoencoder = LatentAutoencoder(AutoencoderConfig(image_shape=(1, 4, 4), latent_qubits=2, width=16))
    model = LatentQDM(ReverseConfig(**SMALL), autoencoder=autoencoder)
    states = model.encode(images(5, 4))
    assert states.shape == (5, 4)
    torch.testing.assert_close(torch.linalg.vector_norm(states, dim=1), torch.ones(5))
    made = model.images(states)
    assert made.shape == (5, 1, 4, 4)
    torch.testing.assert_close(made, autoencoder.decode(autoencoder.encode(images(5, 4))).detach(), atol=1e-5, rtol=0)
    phases = torch.polar(torch.ones(5, 4), torch.rand(5, 4, generator=generator()))
    torch.testing.assert_close(model.images(states * phases), made, atol=1e-5, rtol=0)
    assert model.measured_images(model.sample(2, generator()), 100_000, generator()).shape == (2, 1, 4, 4)
    assert not any(p.requires_grad for p in model.autoencoder.parameters())
    with pytest.raises(InvalidInputError, match="latents are on 2 qubits, the reverse process on 3"):
        LatentQDM(ReverseConfig(**{**SMALL, "n_qubits": 3}), autoencoder=autoencoder)


def test_conditioned_sampling_needs_labels() -> None:
    model = AmplitudeQDM(ReverseConfig(**SMALL, conditioning="weights", n_labels=3), image_shape=(1, 2, 2))
    labels = torch.tensor([0, 1, 2, 0])
    assert model.sample(4, generator(), labels).states.shape == (4, 4)
    for given, message in (
        (None, "give labels"),
        (torch.tensor([0, 1, 2, 3]), "allowed: 0 to 2"),
        (labels[:2], "2 labels for 4"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            model.sample(4, generator(), given)


def test_on_another_engine_the_weights_are_the_same_and_the_first_model_stays() -> None:
    model = AmplitudeQDM(ReverseConfig(**SMALL, device="fake_manila"), image_shape=(1, 2, 2))
    noisy = model.on(engine="noisy")
    assert (model.reverse.config.engine, noisy.reverse.config.engine) == ("ideal", "noisy")
    assert noisy.forward_process is model.forward_process
    assert torch.equal(noisy.reverse.weight, model.reverse.weight)
    ideal, with_noise = model.sample(4, generator()), noisy.sample(4, generator())
    assert (ideal.states.ndim, with_noise.states.ndim) == (2, 3)
    assert 1e-3 < float((model.images(ideal.states) - noisy.images(with_noise.states)).abs().max()) < 1
    elsewhere = noisy.on(device="fake_quito", engine="ideal")
    assert elsewhere.reverse.compiled.device.name == "fake_quito"
    torch.testing.assert_close(
        elsewhere.images(elsewhere.sample(4, generator()).states), model.images(ideal.states), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", ["gaussian", "depolarizing", "scrambling", "device"])
@pytest.mark.parametrize(
    "given",
    [
        {"strength": (math.nan, 1.0)},
        {"strength": (0.5, math.inf)},
        {"strength": (2.0, 1.0)},
        {"seconds": math.nan},
        {"seconds": 0.0},
        {"schedule_settings": {"p": math.nan}},
    ],
)
def test_forward_settings_are_refused_whatever_kind_takes_them(kind: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(given))):
        ForwardConfig(kind, **given)


def test_forward_settings_round_trip_and_errors() -> None:
    model = DensityMatrixQDM(ReverseConfig(**SMALL), ForwardConfig("depolarizing", "constant", {"p": 0.3}))
    stored = json.loads(json.dumps(model.config()))
    assert ForwardConfig.from_dict(stored["forward"]) == model.forward_config
    assert stored["model"] == "density"
    with pytest.raises(UnknownNameError, match="gaussian"):
        ForwardConfig("gausian")
    with pytest.raises(UnknownNameError, match="cosine"):
        QDM(ReverseConfig(**SMALL), ForwardConfig("gaussian", "cosin"))
    with pytest.raises(InvalidInputError, match=r"\[0, 1\]"):
        QDM(ReverseConfig(**SMALL), ForwardConfig("gaussian", "constant", {"p": 1.5}))
    with pytest.raises(UnknownNameError, match="ForwardConfig setting 'kinds'; did you mean kind"):
        ForwardConfig.from_dict({"kinds": 1})
    with pytest.raises(InvalidInputError, match="read from a mapping, not from NoneType"):
        ForwardConfig.from_dict(None)  # type: ignore[arg-type]
