"""Autoencoders, and backbones on their latents, on tiny synthetic photographs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from qhw_diffusion import diffusion
from qhw_diffusion.diffusion import (
    Autoencoder,
    AutoencoderConfig,
    Backbone,
    BackboneConfig,
    Classifier,
    ClassifierConfig,
    ImageDataset,
)
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError, RunFolderError, UnknownNameError
from qhw_diffusion.runs import RunFolder

SIDE = 8


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    """Smooth colour ramps: 64 images 3×8×8 of four classes, by direction of the ramp and colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 4
    ramp = torch.linspace(-0.9, 0.9, SIDE)
    images = torch.empty(64, 3, SIDE, SIDE)
    for row, label in enumerate(labels.tolist()):
        field = ramp.expand(SIDE, SIDE) if label % 2 else ramp.view(-1, 1).expand(SIDE, SIDE)
        images[row] = field * torch.tensor([1.0, -1.0, 0.3]).roll(label // 2).view(3, 1, 1)
    images = (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(-1, 1)
    return ImageDataset(images, labels, "ramps", "train", 4)


@pytest.fixture(scope="module")
def classifier(data: ImageDataset) -> Classifier:
    config = ClassifierConfig.for_dataset(data, steps=10, width=4, n_features=8, batch_size=16)
    return diffusion.train_classifier(config, dataset=data, heldout=data)


def autoencoder_config(data: ImageDataset, **changes: object) -> AutoencoderConfig:
    small = {
        "channels": (8, 8),
        "latent_channels": 4,
        "patch": 1,
        "steps": 6,
        "batch_size": 8,
        "warmup": 2,
        "log_every": 3,
    }
    return AutoencoderConfig.for_dataset(data, **{**small, **changes})


@pytest.fixture(scope="module")
def autoencoder(data: ImageDataset, classifier: Classifier) -> Autoencoder:
    return diffusion.train_autoencoder(autoencoder_config(data), dataset=data, classifier=classifier)


@pytest.fixture(scope="module")
def autoencoder_folder(autoencoder: Autoencoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    autoencoder.save(folder)
    return folder


def backbone_config(data: ImageDataset, folder: Path, **changes: object) -> BackboneConfig:
    small = {"channels": (8,), "attention": (True,), "attention_head_dim": 4, "layers_per_block": 1}
    small |= {"steps": 6, "batch_size": 8, "warmup": 2, "log_every": 2}
    return BackboneConfig.for_dataset(data, autoencoder=str(folder), **{**small, **changes})


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    others = other.state_dict()
    return all(torch.equal(value, others[key]) for key, value in one.state_dict().items())


@pytest.mark.slow
def test_training_learns_to_reconstruct(data: ImageDataset, classifier: Classifier) -> None:
    config = autoencoder_config(data, steps=40, batch_size=16, learning_rate=1e-2, precision="float32", ema_decay=0.9)
    trained = diffusion.train_autoencoder(config, dataset=data, classifier=classifier)
    untrained = Autoencoder(config).eval()
    before, after = (diffusion.psnr(a.reconstruct(data.images), data.images) for a in (untrained, trained))
    assert after > before + 6  # a quarter of the squared error
    latents = trained.encode(data.images)
    assert latents.shape == (64, *trained.latent_shape) == (64, 4, 4, 4)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)


def test_psnr_is_that_of_its_definition() -> None:
    images = torch.zeros(2, 1, 4, 4)
    others = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.02)])
    assert diffusion.psnr(images, others) == pytest.approx((20 + 40) / 2, abs=1e-4)  # peak to peak is 2
    with pytest.raises(InvalidInputError, match="differ in shape"):
        diffusion.psnr(images, others[:1])


def test_every_term_of_the_loss_counts(data: ImageDataset, classifier: Classifier) -> None:
    def trained(**changes: object) -> Autoencoder:
        config = autoencoder_config(data, steps=2, **changes)
        return diffusion.train_autoencoder(config, dataset=data, classifier=classifier)

    full = trained()
    for changes in ({"feature_weight": 0.0}, {"kl_weight": 0.0}, {"flip": False}, {"precision": "float32"}):
        assert not same_weights(full.vae, trained(**changes).vae), changes
    assert same_weights(full.vae, trained().vae)


def test_an_autoencoder_resumes_bit_for_bit(
    data: ImageDataset, classifier: Classifier, autoencoder: Autoencoder, tmp_path: Path
) -> None:
    from qhw_diffusion.diffusion import loop

    config = autoencoder_config(data)
    run = RunFolder.create(tmp_path / "run", kind="autoencoder", config=config.to_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_CHECKPOINT_EVERY", 3)
        diffusion.train_autoencoder(config, run, dataset=data, classifier=classifier, max_steps=3)
    resumed = diffusion.train_autoencoder(config, run, dataset=data, classifier=classifier, resume=True)
    assert same_weights(resumed, autoencoder)
    assert resumed.history == autoencoder.history
    loaded = Autoencoder.load(tmp_path / "run")
    assert torch.equal(loaded.reconstruct(data.images), autoencoder.reconstruct(data.images))
    assert not any(p.requires_grad for p in loaded.parameters())
    other = config.replace(kl_weight=0.5)
    with pytest.raises(RunFolderError, match="not the same run"):
        diffusion.train_autoencoder(other, run, dataset=data, classifier=classifier, resume=True)


def test_the_decoder_alone_is_trained_on(
    data: ImageDataset, classifier: Classifier, autoencoder: Autoencoder, autoencoder_folder: Path
) -> None:
    config = autoencoder_config(data, start=str(autoencoder_folder), decoder_only=True)
    better = diffusion.train_autoencoder(config, dataset=data, classifier=classifier)
    assert torch.equal(better.encode(data.images), autoencoder.encode(data.images))
    assert not same_weights(better.vae.decoder, autoencoder.vae.decoder)
    both = diffusion.train_autoencoder(config.replace(decoder_only=False), dataset=data, classifier=classifier)
    assert not same_weights(both.vae.encoder, autoencoder.vae.encoder)
    with pytest.raises(InvalidInputError, match="another architecture: its channels are"):
        diffusion.train_autoencoder(config.replace(channels=(8, 16)), dataset=data, classifier=classifier)
    with pytest.raises(InvalidInputError, match="give start"):
        autoencoder_config(data, decoder_only=True)


def test_decoding_is_differentiable_and_in_range(autoencoder: Autoencoder) -> None:
    latents = torch.randn(2, *autoencoder.latent_shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    images = autoencoder.decode(latents)
    assert images.shape == (2, 3, SIDE, SIDE)
    assert float(autoencoder.decode(latents.detach() * 1e3).abs().max()) <= 1
    images.sum().backward()
    assert latents.grad is not None
    assert float(latents.grad.abs().sum()) > 0


def test_a_latent_backbone_trains_saves_samples_and_decodes(
    data: ImageDataset, autoencoder: Autoencoder, autoencoder_folder: Path, tmp_path: Path
) -> None:
    config = backbone_config(data, autoencoder_folder)
    assert config.latent_shape == autoencoder.latent_shape
    trained = diffusion.train_backbone(config, dataset=data)
    assert (trained.image_shape, trained.latent_shape, trained.scheduler) == ((3, SIDE, SIDE), (4, 4, 4), None)
    trained.save(tmp_path / "saved")
    loaded = Backbone.load(tmp_path / "saved")  # the autoencoder is in the folder, not looked for where it was
    noise = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, 3])
    for t in (5, 900):
        for one, other in zip(trained.predict(noise, t, labels), loaded.predict(noise, t, labels), strict=True):
            assert one.shape == noise.shape
            assert torch.equal(one, other)
    images = loaded.decode(noise)
    assert torch.equal(images, autoencoder.decode(noise))
    assert images.shape == (3, 3, SIDE, SIDE)
    with pytest.raises(InvalidInputError, match=r"x_t is .* need \[B, 4, 4, 4\]"):
        loaded.predict(images, 5, labels)
    with pytest.raises(InvalidInputError, match=r"latents is .* need \[B, 4, 4, 4\]"):
        loaded.decode(images)


def test_a_latent_backbone_resumes_bit_for_bit(data: ImageDataset, autoencoder_folder: Path, tmp_path: Path) -> None:
    from qhw_diffusion.diffusion import loop

    config = backbone_config(data, autoencoder_folder, precision="float32")
    whole = diffusion.train_backbone(config, dataset=data)
    run = RunFolder.create(tmp_path / "run", kind="backbone", config=config.to_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_CHECKPOINT_EVERY", 3)
        diffusion.train_backbone(config, run, dataset=data, max_steps=3)
    other = Autoencoder(autoencoder_config(data, seed=5)).eval()
    with pytest.raises(RunFolderError, match=r"has encoder .* not the same run"):
        diffusion.train_backbone(config, run, dataset=data, autoencoder=other, resume=True)
    assert same_weights(diffusion.train_backbone(config, run, dataset=data, resume=True), whole)


def test_a_backbone_may_start_from_another(data: ImageDataset, autoencoder_folder: Path, tmp_path: Path) -> None:
    config = backbone_config(data, autoencoder_folder, learning_rate=1e-12, weight_decay=0.0, steps=1)
    first = diffusion.train_backbone(config.replace(seed=3), dataset=data)
    first.save(tmp_path / "first")
    second = diffusion.train_backbone(config.replace(start=str(tmp_path / "first")), dataset=data)
    assert same_weights(second.unet, first.unet)
    with pytest.raises(InvalidInputError, match=r"another architecture: its channels are \(8,\)"):
        diffusion.train_backbone(config.replace(start=str(tmp_path / "first"), channels=(16,)), dataset=data)


def test_mirror_images_are_trained_on_and_latents_kept(
    data: ImageDataset, autoencoder: Autoencoder, autoencoder_folder: Path, tmp_path: Path
) -> None:
    from qhw_diffusion.diffusion.backbone import _inputs

    run = RunFolder.create(tmp_path / "run", kind="backbone", config={})
    both = Backbone(backbone_config(data, autoencoder_folder, flip=True))
    latents, labels = _inputs(both, data, run)
    for half, images in zip(latents.split(64), (data.images, data.images.flip(3)), strict=True):
        torch.testing.assert_close(half, autoencoder.encode_all(images), atol=2e-3, rtol=1e-3)  # half precision
    assert torch.equal(labels, data.labels.repeat(2))
    assert torch.equal(_inputs(both, data)[0], latents)  # with or without a folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Autoencoder, "encode_all", lambda *_: pytest.fail("encoded again"))
        assert torch.equal(_inputs(both, data, run)[0], latents)
    assert both.autoencoder is not None
    both.autoencoder.latent_mean += 0.5  # another encoder: what was kept is not taken for its latents
    torch.testing.assert_close(_inputs(both, data, run)[0], _inputs(both, data)[0])
    alone = Backbone(backbone_config(data, autoencoder_folder, flip=False))
    assert [len(part) for part in _inputs(alone, data, run)] == [64, 64]


def test_pixel_predictions_are_differentiable() -> None:
    backbone = Backbone.load("digits")
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    predicted, _ = backbone.predict(x, 300, torch.tensor([3, 5]))
    (slope,) = torch.autograd.grad(backbone.decode(predicted).square().sum(), x)
    with torch.no_grad():
        step = 1e-2 * slope / slope.norm()
        ends = [backbone.predict(x + s * step, 300, torch.tensor([3, 5]))[0].square().sum() for s in (1, -1)]
    assert float(ends[0] - ends[1]) == pytest.approx(float(2 * (slope * step).sum()), rel=1e-2)
    assert backbone.latent_shape == backbone.image_shape


def test_parts_that_do_not_fit(
    data: ImageDataset, classifier: Classifier, autoencoder: Autoencoder, autoencoder_folder: Path, tmp_path: Path
) -> None:
    larger = ImageDataset(torch.zeros(8, 3, 12, 12), torch.arange(8) % 4, "larger", "train", 4)
    with pytest.raises(InvalidInputError, match="takes images 3×8×8, those of 'larger' are 3×12×12"):
        backbone_config(larger, autoencoder_folder)
    with pytest.raises(InvalidInputError, match="do not fit each other"):
        diffusion.train_autoencoder(autoencoder_config(larger), dataset=larger, classifier=classifier)
    odd = ImageDataset(torch.zeros(8, 3, 9, 9), torch.arange(8) % 4, "odd", "train", 4)
    with pytest.raises(InvalidInputError, match="9×9 pixels do not divide by 2"):
        autoencoder_config(odd)
    with pytest.raises(InvalidInputError, match="needs both"):
        dataclasses.replace(backbone_config(data, autoencoder_folder), latent_shape=None)
    with pytest.raises(InvalidInputError, match=r"latents are \(4, 4, 4\), the configuration says \(8, 4, 4\)"):
        Backbone(dataclasses.replace(backbone_config(data, autoencoder_folder), latent_shape=(8, 4, 4)))
    with pytest.raises(UnknownNameError, match="bfloat16"):
        autoencoder_config(data, precision="half")
    with pytest.raises(MissingDataError, match="no autoencoder"):
        Autoencoder.load(tmp_path)
    with pytest.raises(DamagedFileError, match="is not a backbone"):
        Backbone.load(autoencoder_folder)
    with pytest.raises(MissingDataError, match="reward classifier"):
        diffusion.train_autoencoder(autoencoder_config(data, classifier=str(tmp_path)), dataset=data)
