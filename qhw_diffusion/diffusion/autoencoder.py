"""The autoencoder of latent diffusion (diffusers' `AutoencoderKL`, small) and its training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from qhw_diffusion.config import Config, check_finite, check_whole, require
from qhw_diffusion.diffusion.checks import check_fit, check_pixels, check_shape_and_classes
from qhw_diffusion.diffusion.classifiers import Classifier
from qhw_diffusion.diffusion.datasets import (
    ImageDataset,
    check_dataset_name,
    image_shape_of,
    load_dataset,
    n_classes_of,
)
from qhw_diffusion.diffusion.loop import Training
from qhw_diffusion.diffusion.weights import (
    PRECISIONS,
    SHIPPED,
    half_arithmetic,
    half_precision,
    load_model,
    model_folder,
    save_model,
)
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.runs import RunFolder

_BATCH = 256  # images encoded or decoded at a time
_MEASURED = 2048  # images whose latents give the standardisation, at most


@dataclass(frozen=True)
class AutoencoderConfig(Config):
    """Architecture and training recipe of one autoencoder. The defaults are those for CIFAR-10.

    `for_dataset` gives the recipe of a data set.
    """

    dataset: str = "cifar10"
    """Data set: a built-in name, module:name or file.py:name."""
    image_shape: tuple[int, int, int] = (3, 32, 32)
    """Channels, height and width of the images."""
    n_classes: int = 10
    """Classes of the data set; only the classifier knows them."""
    latent_channels: int = 8
    """Channels of the latents."""
    channels: tuple[int, ...] = (64, 96)
    """Channels of each resolution level, the finest first; each level after the first halves the image."""
    layers_per_block: int = 1
    """Residual blocks per level of the encoder (the decoder has one more)."""
    patch: int = 2
    """Side of the patches of pixels that become channels (pixel unshuffle). The latents are smaller than the images by
    patch · 2^(levels − 1)."""
    norm_groups: int = 8
    """Groups of the group norms; divides every entry of `channels`."""
    classifier: str = "cifar10"
    """Reward classifier in whose features reconstructions are compared with their originals: name of a shipped one, or
    a run folder. Empty: by pixels alone."""
    feature_weight: float = 0.1
    """Weight of the squared difference of features in the loss, beside that of pixels (weight 1)."""
    kl_weight: float = 1e-4
    """Weight of the divergence of the latents' distribution from the standard normal one, averaged over their
    entries. It keeps the latents smooth: near latents are near images."""
    start: str = ""
    """Autoencoder whose weights the training starts from: name of a shipped one, or a run folder. Empty: random."""
    decoder_only: bool = False
    """Leave the encoder of `start` as it is and train the decoder alone: latents, and a backbone trained on them, stay
    valid."""
    steps: int = 6000
    """Training steps of AdamW."""
    batch_size: int = 32
    """Images per training step."""
    learning_rate: float = 1e-3
    """Learning rate after the warm-up; a cosine decay takes it to zero."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    warmup: int = 100
    """Steps of linear warm-up."""
    flip: bool = True
    """Augmentation: half of the images mirrored left to right."""
    ema_decay: float = 0.995
    """Decay of the exponential moving average of the weights, which is what is kept; ramped up as
    min(ema_decay, (1 + step) / (10 + step))."""
    precision: str = "bfloat16"
    """Number format of the convolutions in training: "float32", or "bfloat16" (torch's autocast), faster on CPUs that
    have it."""
    log_every: int = 50
    """Steps between two entries of the loss history, each the mean over the steps since the last."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the latents' noise."""

    def __post_init__(self) -> None:
        check_shape_and_classes(self.image_shape, self.n_classes)
        check_finite(self)
        check_whole(self, "latent_channels", "layers_per_block", "patch", "norm_groups")
        check_whole(self, "steps", "batch_size", "log_every")
        check_whole(self, "warmup", "seed", least=0)
        whole = all(isinstance(c, int) and not isinstance(c, bool) and c >= 1 for c in self.channels)
        require(bool(self.channels) and whole, f"channels names one whole number from 1 per level, got {self.channels}")
        require(
            not any(c % self.norm_groups for c in self.channels),
            f"norm_groups {self.norm_groups} does not divide all of {self.channels}",
        )
        _, height, width = self.image_shape
        require(
            not (height % self.factor or width % self.factor),
            f"images of {height}×{width} pixels do not divide by {self.factor} (patch · 2^(levels - 1)): take other "
            "levels or another patch, or scale the images",
        )
        require(self.learning_rate > 0, f"learning_rate must be positive, got {self.learning_rate}")
        require(self.feature_weight >= 0 and self.kl_weight >= 0, "feature_weight and kl_weight must not be negative")
        require(0 <= self.ema_decay < 1, "ema_decay is in [0, 1)")
        require(
            not self.decoder_only or bool(self.start), "decoder_only needs the autoencoder to start from: give start"
        )
        if self.precision not in PRECISIONS:
            raise UnknownNameError.of("precision", self.precision, PRECISIONS)

    @property
    def factor(self) -> int:
        """How many times smaller the latents are in height and in width: patch · 2^(levels − 1)."""
        return int(self.patch * 2 ** (len(self.channels) - 1))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents."""
        _, height, width = self.image_shape
        return self.latent_channels, height // self.factor, width // self.factor

    @classmethod
    def for_dataset(cls, data: str | ImageDataset, *, data_root: str | Path | None = None, **changes: Any) -> Self:
        """The recipe of a data set, with `changes`: CIFAR-10's, for images of this data set's shape.

        Args:
            data: name of a data set, or the data set itself.
            data_root: see `load_dataset`; used for a data set of a user's own.
            changes: fields that differ from the recipe.

        Raises:
            UnknownNameError: no such data set.
            InvalidInputError: a data set of a user's own that is not as `load_dataset` says, or changes that do not
                fit.
        """
        if isinstance(data, ImageDataset):
            name, shape, n_classes = data.name, data.image_shape, data.n_classes
        else:
            check_dataset_name(data)
            name, shape, n_classes = data, image_shape_of(data, data_root), n_classes_of(data, data_root)
        return cls(**{"dataset": name, "image_shape": shape, "n_classes": n_classes, "classifier": name, **changes})


class Autoencoder(nn.Module):
    """A trained autoencoder: images to standardised latents and back. Frozen and in evaluation mode when loaded.

    Attributes: `config`, `name` (of the data set), `image_shape` (C, H, W), `latent_shape` (c, h, w), `n_classes`,
    `history` (list of {"step", "loss"}), `provenance`.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        from diffusers import AutoencoderKL  # here, since importing it takes seconds

        self.config = config
        self.name = config.dataset
        self.image_shape = config.image_shape
        self.latent_shape = config.latent_shape
        self.n_classes = config.n_classes
        self.history: list[dict[str, float]] = []
        self.provenance: dict[str, Any] = {}
        levels = len(config.channels)
        self.vae = AutoencoderKL(
            in_channels=config.image_shape[0] * config.patch**2,
            out_channels=config.image_shape[0] * config.patch**2,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
            sample_size=config.image_shape[1] // config.patch,
            mid_block_add_attention=False,
        )
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(config.latent_channels, 1, 1))

    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, c, h, w] of images [B, C, H, W] in [−1, 1]: mean 0 and variance 1 per channel on real images."""
        check_pixels(images, self.image_shape, self.latent_mean.dtype)
        mean = self.distribution(images).mean
        return (mean - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, C, H, W] in [−1, 1] of standardised latents [B, c, h, w]; differentiable."""
        check_pixels(latents, self.latent_shape, self.latent_mean.dtype, "latents")
        return self.pixels(latents * self.latent_std + self.latent_mean).clamp(-1, 1)

    def distribution(self, images: Tensor) -> Any:
        """Diffusers' `DiagonalGaussianDistribution` of the latents of images, not standardised."""
        return self.vae.encode(nn.functional.pixel_unshuffle(images, self.config.patch)).latent_dist

    def pixels(self, latents: Tensor) -> Tensor:
        """Images of latents that are not standardised, not limited to [−1, 1]."""
        output: Tensor = nn.functional.pixel_shuffle(self.vae.decode(latents, return_dict=False)[0], self.config.patch)
        return output

    @property
    def encoder_fingerprint(self) -> str:
        """SHA-256 of all that latents depend on: the encoder's weights and the standardisation."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            if name.startswith(("vae.encoder.", "vae.quant_conv.", "latent_")):
                digest.update(name.encode())
                digest.update(value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def encode_all(self, images: Tensor) -> Tensor:
        """As `encode`, of any number of images, without autograd."""
        return torch.cat([self.encode(batch) for batch in images.split(_BATCH)])

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W], encoded and decoded; without autograd."""
        return torch.cat([self.decode(self.encode(batch)) for batch in images.split(_BATCH)])

    @property
    def n_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.vae.parameters())

    def save(self, path: str | Path) -> None:
        """Write half-precision weights, configuration, recipe and loss history into the folder `path`."""
        description = {
            "config": self.config.to_dict(),
            "n_parameters": self.n_parameters,
            "history": self.history,
            "provenance": self.provenance,
        }
        save_model(path, self.state_dict(), "autoencoder", description)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Autoencoder:
        """A trained autoencoder, frozen and in evaluation mode.

        Args:
            name_or_path: data set of a shipped autoencoder, or a run folder or model folder.

        Raises:
            MissingDataError: no such shipped model or folder.
            DamagedFileError: the folder's files cannot be read as an autoencoder.
        """
        shipped = SHIPPED / f"{name_or_path}-backbone" / "autoencoder"
        folder = shipped if shipped.is_dir() else model_folder(name_or_path, "autoencoder")
        state, saved = load_model(folder, "autoencoder")
        try:
            autoencoder = cls(AutoencoderConfig.from_dict(saved["config"]))
            autoencoder.load_state_dict(state)
            autoencoder.history = list(saved["history"])
            autoencoder.provenance = dict(saved["provenance"])
        except (KeyError, TypeError, RuntimeError, QhwError) as error:
            raise DamagedFileError(f"weights and configuration in {folder} do not fit ({error})") from error
        return autoencoder.eval().requires_grad_(False)


def psnr(images: Tensor, others: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB between images [N, C, H, W] in [−1, 1]: 10 log₁₀(4 / mean squared error).

    The mean is over the images; identical ones would be infinite.
    """
    if images.shape != others.shape:
        raise InvalidInputError(f"images {tuple(images.shape)} and {tuple(others.shape)} differ in shape")
    return float((10 * (4 / (images - others).square().flatten(1).mean(1)).log10()).mean())


def train_autoencoder(
    config: AutoencoderConfig,
    run: RunFolder | None = None,
    *,
    dataset: ImageDataset | None = None,
    classifier: Classifier | None = None,
    data_root: str | Path | None = None,
    max_steps: int | None = None,
    resume: bool = False,
) -> Autoencoder:
    """Train an autoencoder on the training split; returns the averaged weights, frozen, in evaluation mode.

    Loss: mean squared error of the pixels, plus `feature_weight` times that of the classifier's activations at the end
    of every stage, of length one at each place (as LPIPS, Zhang et al. 2018, arXiv 1801.03924), plus `kl_weight` times
    the divergence of the latents (Kingma & Welling 2013, arXiv 1312.6114; Rombach et al. 2022, arXiv 2112.10752).
    Squared error alone leaves images blurred, and a classifier recognises far fewer of them. The same configuration
    gives the same weights bit for bit on one machine with the same number of torch threads, resumed or not.

    Args:
        config: architecture and recipe.
        run: where to log "losses/autoencoder", to keep a checkpoint, and to write `model/`.
        dataset: what to train on; default: the training split of `config.dataset`.
        classifier: whose features are compared; default: the reward classifier `config.classifier`.
        data_root: see `load_dataset`.
        max_steps: stop after so many steps of the recipe.
        resume: continue from the run's checkpoint.

    Raises:
        InvalidInputError: the data set or the classifier does not fit the configuration.
        MissingDataError: no such data or classifier.
        RunFolderError: `resume` without a run, without a checkpoint in it, or with another configuration or data set.
    """
    data = dataset if dataset is not None else load_dataset(config.dataset, "train", data_root)
    check_fit(configuration=config, data_set=data)
    if classifier is None and config.classifier and config.feature_weight:
        classifier = Classifier.load(config.classifier, "reward")
    if classifier is not None:
        check_fit(configuration=config, classifier=classifier)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # diffusers' constructors draw from the global generator
        autoencoder = Autoencoder(config)
    if config.start:
        _start_from(autoencoder, Autoencoder.load(config.start))
    if config.decoder_only:
        autoencoder.vae.encoder.requires_grad_(False)
        autoencoder.vae.quant_conv.requires_grad_(False)

    def loss(training: Training) -> Tensor:
        chosen = torch.randint(len(data), (config.batch_size,), generator=training.generator)
        images = data.images[chosen]
        if config.flip:
            mirrored = torch.rand(len(images), generator=training.generator) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
        with half_arithmetic(config.precision):
            distribution = autoencoder.distribution(images)
            mean, spread = distribution.mean.float(), distribution.logvar.float().mul(0.5).exp()
            latents = mean + spread * torch.randn(mean.shape, generator=training.generator)
            pixels = autoencoder.pixels(latents).float()
        divergence = 0.5 * (mean.square() + spread.square() - 1 - 2 * spread.log()).mean()
        total = nn.functional.mse_loss(pixels, images) + config.kl_weight * divergence
        if classifier is not None:
            with half_arithmetic(config.precision):
                total = total + config.feature_weight * _feature_difference(classifier, pixels, images)
        return total

    training = Training(config, data, autoencoder.vae, loss)
    training.run("autoencoder", run, max_steps=max_steps, resume=resume)
    autoencoder.vae.load_state_dict(training.averaged())
    autoencoder.eval().requires_grad_(False)
    if not config.decoder_only:
        _standardise(autoencoder, data.images)
    autoencoder.history, autoencoder.provenance = training.history, training.provenance()
    if run is not None:
        autoencoder.save(Path(run.path) / "model")
    return autoencoder


def _start_from(autoencoder: Autoencoder, start: Autoencoder) -> None:
    """Take over the weights of another autoencoder of the same architecture, and its latents' standardisation."""
    try:
        autoencoder.load_state_dict(start.state_dict())
    except RuntimeError as error:
        raise InvalidInputError(
            f"the autoencoder to start from, {autoencoder.config.start}, has another architecture: its channels are "
            f"{start.config.channels}, latent channels {start.config.latent_channels}, patch {start.config.patch}"
        ) from error


def _feature_difference(classifier: Classifier, images: Tensor, originals: Tensor) -> Tensor:
    """Sum over the classifier's stages of the mean squared distance of activations of length one."""
    with torch.no_grad():
        wanted = list(_directions(classifier, originals))
    given = _directions(classifier, images)
    total = images.new_zeros(())
    for a, b in zip(given, wanted, strict=True):
        total = total + (a - b).square().sum(1).mean()
    return total


def _directions(classifier: Classifier, images: Tensor) -> Iterator[Tensor]:
    for activations in classifier.stages(images):
        yield nn.functional.normalize(activations.float(), dim=1)


@torch.no_grad()
def _standardise(autoencoder: Autoencoder, images: Tensor) -> None:
    """Measure the latents' mean and standard deviation on evenly spread images, rounded as they are saved."""
    some = images[:: max(1, len(images) // _MEASURED)]
    latents = torch.cat([autoencoder.distribution(batch).mean for batch in some.split(_BATCH)])
    mean = latents.mean((0, 2, 3)).view(-1, 1, 1)
    spread = latents.std((0, 2, 3)).view(-1, 1, 1).clamp(min=1e-3)
    rounded = half_precision({"mean": mean, "std": spread})
    autoencoder.latent_mean.copy_(rounded["mean"].float())
    autoencoder.latent_std.copy_(rounded["std"].float())
