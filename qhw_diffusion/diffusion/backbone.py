"""The diffusion backbone: a small class-conditional U-Net (diffusers) with a null label, and its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qhw_diffusion.checkpoints import read_tensors, write_tensors
from qhw_diffusion.config import Config, check_finite, check_whole, require
from qhw_diffusion.diffusion.autoencoder import Autoencoder
from qhw_diffusion.diffusion.checks import (
    check_every_class,
    check_fit,
    check_labels,
    check_pixels,
    check_shape_and_classes,
)
from qhw_diffusion.diffusion.datasets import (
    ImageDataset,
    check_dataset_name,
    image_shape_of,
    load_dataset,
    n_classes_of,
)
from qhw_diffusion.diffusion.loop import Training
from qhw_diffusion.diffusion.pooled import middle_channels, watching_middle
from qhw_diffusion.diffusion.weights import PRECISIONS, SHIPPED, half_arithmetic, load_model, model_folder, save_model
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.extensions import load_extension
from qhw_diffusion.runs import RunFolder

PREDICTION_TYPES = ("v_prediction", "epsilon")
"""What a backbone's network may predict."""
BETA_SCHEDULES = ("squaredcos_cap_v2", "linear", "scaled_linear")
"""Noise schedules, by diffusers' names."""
_LATENTS = "latents.safetensors"  # in the run folder
NETWORKS = {"unet": "", "hybrid": "qhw_diffusion.denoising.hybrid:HybridBackbone"}
"""Networks that a saved backbone may have. Those of higher layers are imported by their name, when one is read."""
_AUTOENCODER = "autoencoder"  # folder beside the weights of a latent model


@dataclass(frozen=True)
class BackboneConfig(Config):
    """Architecture, noise schedule and training recipe of one backbone. The defaults are those for digits.

    `for_dataset` gives the recipe of a data set. Images whose sides do not divide by `patch` · 2^(levels − 1) are
    padded inside the network to the next sides that do.
    """

    dataset: str = "digits"
    """Data set: a built-in name, module:name or file.py:name."""
    image_shape: tuple[int, int, int] = (1, 8, 8)
    """Channels, height and width of the images."""
    n_classes: int = 10
    """Classes of the data set; the null label is the index after the last."""
    autoencoder: str = ""
    """Autoencoder whose latents are denoised: name of a shipped one, or a run folder. Empty: the pixels are."""
    latent_shape: tuple[int, int, int] | None = None
    """Channels, height and width of the latents; none where the pixels are denoised."""
    channels: tuple[int, ...] = (32,)
    """Channels of each resolution level, the finest first; each level halves the image."""
    layers_per_block: int = 1
    """Residual blocks per level on the way down (one more on the way up)."""
    attention: tuple[bool, ...] = (False,)
    """One flag per level: self-attention after each residual block."""
    mid_attention: bool = True
    """Self-attention at the coarsest level's middle block."""
    attention_head_dim: int = 8
    """Channels per attention head."""
    patch: int = 2
    """Side of the patches of pixels that become channels (pixel unshuffle); the network works at the coarser
    resolution: at 2, about a third of the work."""
    norm_groups: int = 8
    """Groups of the group norms; divides every entry of `channels`."""
    prediction_type: str = "v_prediction"
    """Target of the network: "v_prediction" or "epsilon"."""
    beta_schedule: str = "squaredcos_cap_v2"
    """Noise schedule, by diffusers' names."""
    n_train_timesteps: int = 1000
    """Noise levels the network is trained on."""
    start: str = ""
    """Backbone whose weights the training starts from: name of a shipped one, or a run folder. Empty: random."""
    steps: int = 3600
    """Training steps of AdamW."""
    batch_size: int = 128
    """Images per training step."""
    learning_rate: float = 2e-3
    """Learning rate after the warm-up; a cosine decay takes it to zero."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    warmup: int = 50
    """Steps of linear warm-up."""
    label_dropout: float = 0.15
    """Share of training labels replaced by the null label (Ho & Salimans 2022, arXiv 2207.12598)."""
    ema_decay: float = 0.998
    """Decay of the exponential moving average of the weights, which is what is kept; ramped up as
    min(ema_decay, (1 + step) / (10 + step))."""
    log_every: int = 20
    """Steps between two entries of the loss history, each the mean over the steps since the last."""
    flip: bool = False
    """Augmentation of a latent model: the mirror images are trained on as well."""
    precision: str = "float32"
    """Number format of the matrix products in training: "float32", or "bfloat16" (torch's autocast), faster on CPUs
    that have it."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the noise."""

    def __post_init__(self) -> None:
        check_shape_and_classes(self.image_shape, self.n_classes)
        check_shape_and_classes(self.denoised_shape, self.n_classes)
        require(
            bool(self.autoencoder) == (self.latent_shape is not None),
            f"autoencoder is {self.autoencoder!r} and latent_shape {self.latent_shape}: a latent model needs both "
            "(--autoencoder, in Python for_dataset(data, autoencoder=...), finds the shape), a pixel model has neither",
        )
        require(not self.flip or bool(self.autoencoder), "flip is for latent models alone")
        check_finite(self)
        check_whole(self, "patch", "layers_per_block", "attention_head_dim", "norm_groups", "n_train_timesteps")
        check_whole(self, "steps", "batch_size", "log_every")
        check_whole(self, "warmup", "seed", least=0)
        whole = all(isinstance(c, int) and not isinstance(c, bool) and c >= 1 for c in self.channels)
        require(bool(self.channels) and whole, f"channels names one whole number from 1 per level, got {self.channels}")
        require(
            len(self.attention) == len(self.channels),
            f"attention {self.attention} and channels {self.channels} differ in length",
        )
        _, height, width = self.denoised_shape
        require(
            self.side_factor <= min(height, width),
            f"{len(self.channels)} levels after patches of {self.patch}×{self.patch} leave less than a pixel of "
            f"{height}×{width} images: patch · 2^(levels - 1) is {self.side_factor}, at most {min(height, width)} fits",
        )
        require(
            not any(c % self.norm_groups for c in self.channels),
            f"norm_groups {self.norm_groups} does not divide all of {self.channels}",
        )
        if self.prediction_type not in PREDICTION_TYPES:
            raise UnknownNameError.of("prediction type", self.prediction_type, PREDICTION_TYPES)
        if self.precision not in PRECISIONS:
            raise UnknownNameError.of("precision", self.precision, PRECISIONS)
        if self.beta_schedule not in BETA_SCHEDULES:
            raise UnknownNameError.of("noise schedule", self.beta_schedule, BETA_SCHEDULES)
        require(0 <= self.label_dropout < 1 and 0 <= self.ema_decay < 1, "label_dropout and ema_decay are in [0, 1)")
        require(self.learning_rate > 0, f"learning_rate must be positive, got {self.learning_rate}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")

    @property
    def denoised_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network denoises: latents or images."""
        return self.image_shape if self.latent_shape is None else self.latent_shape

    @property
    def side_factor(self) -> int:
        """Number the network's height and width divide by: patch · 2^(levels − 1)."""
        return int(self.patch * 2 ** (len(self.channels) - 1))

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns added to the image inside the network, at the bottom and at the right."""
        _, height, width = self.denoised_shape
        return -height % self.side_factor, -width % self.side_factor

    @classmethod
    def for_dataset(cls, data: str | ImageDataset, *, data_root: str | Path | None = None, **changes: Any) -> Self:
        """The recipe of a data set, with `changes`.

        Built-in data sets have recipes that were found good; any other takes one derived from the size of its images.
        With `autoencoder` among the changes the recipe is that of a latent model.

        Args:
            data: name of a data set, or the data set itself.
            data_root: see `load_dataset`; used for a data set of a user's own.
            changes: fields that differ from the recipe.

        Raises:
            UnknownNameError: no such data set.
            InvalidInputError: a data set of a user's own that is not as `load_dataset` says, changes that do not fit,
                or an autoencoder of other images.
            MissingDataError: no such autoencoder.
        """
        if isinstance(data, ImageDataset):
            name, shape, n_classes = data.name, data.image_shape, data.n_classes
        else:
            check_dataset_name(data)
            name, shape, n_classes = data, image_shape_of(data, data_root), n_classes_of(data, data_root)
        if changes.get("autoencoder"):
            autoencoder = Autoencoder.load(changes["autoencoder"])
            _check_images(autoencoder, shape, name)
            recipe = {**_LATENT_RECIPE, "latent_shape": autoencoder.latent_shape}
        else:
            tuned = name in _RECIPES and shape == image_shape_of(name)
            recipe = _RECIPES[name] if tuned else _derived_recipe(shape)
        return cls(**{**recipe, "dataset": name, "image_shape": shape, "n_classes": n_classes, **changes})


_RECIPES: dict[str, dict[str, Any]] = {
    "digits": {},
    "mnist16": {"channels": (32, 32), "attention": (False, False), "steps": 3000, "log_every": 50},
    "mnist28": {"channels": (32, 48), "attention": (False, False), "steps": 4000, "log_every": 50},
}
# MNIST's recipes, not tuned for Fashion-MNIST
_RECIPES |= {f"fashion{side}": _RECIPES[f"mnist{side}"] for side in (16, 28)}
_LATENT_RECIPE: dict[str, Any] = {
    # tuned as CIFAR-10's
    "channels": (64, 104),
    "layers_per_block": 1,
    "attention": (False, True),
    "attention_head_dim": 26,
    "patch": 1,
    "steps": 20000,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "warmup": 200,
    "label_dropout": 0.1,
    "ema_decay": 0.999,
    "log_every": 50,
    "flip": True,
    "precision": "bfloat16",
}
_COARSEST = 7  # pixels of the shorter side at the coarsest level, at most: self-attention there stays cheap
_PADDED = 1.25  # pixels of the padded image per pixel of the image, at most, as long as there are levels to save


def _derived_recipe(image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Recipe for images no recipe was tuned for: the built-in ones' levels and channels, by the images' size."""
    _, height, width = image_shape
    patch = 2 if min(height, width) >= 8 else 1
    levels = 1 + max(0, math.ceil(math.log2(min(height, width) / patch / _COARSEST)))

    def padded(levels: int) -> float:
        factor = patch * 2 ** (levels - 1)
        return (height + -height % factor) * (width + -width % factor) / (height * width)

    while levels > 1 and padded(levels) > _PADDED:
        levels -= 1
    channels = tuple(32 + 16 * level for level in range(levels))
    return {"channels": channels, "attention": (False,) * levels, "patch": patch, "steps": 4000, "log_every": 50}


def _check_images(autoencoder: Autoencoder, shape: tuple[int, int, int], name: str) -> None:
    if autoencoder.image_shape != tuple(shape):
        raise InvalidInputError(
            f"the autoencoder of {autoencoder.name!r} takes images {_times(autoencoder.image_shape)}, those of "
            f"{name!r} are {_times(shape)}: train an autoencoder on {name!r}"
        )


def _times(shape: tuple[int, int, int]) -> str:
    return "×".join(map(str, shape))


class Backbone(nn.Module):
    """A trained U-Net with its noise schedule: the built-in `Denoiser`.

    It predicts the noise with and without the label in one call, of pixels or of an autoencoder's latents. Frozen and
    in evaluation mode when it comes from `load`. Attributes: `config`, `image_shape` (C, H, W) of decoded images,
    `latent_shape` (c, h, w) of what is denoised (the same for pixels), `autoencoder` (None for pixels), `scheduler`
    (None), `n_classes`, `null_label`, `name` (of the data set), `alphas_cumprod` float32 [n_train_timesteps], `history`
    (list of {"step", "loss"}), `provenance` (fingerprint of the training split, versions).
    """

    alphas_cumprod: Tensor
    unet: Any
    network: ClassVar[str] = "unet"
    """Name among `NETWORKS`."""
    config_class: ClassVar[type[BackboneConfig]] = BackboneConfig

    def __init__(self, config: BackboneConfig, autoencoder: Autoencoder | None = None) -> None:
        """An untrained network.

        Args:
            config: architecture.
            autoencoder: that of a latent model; default: the one that `config.autoencoder` names.

        Raises:
            InvalidInputError: an autoencoder of other images or latents than the configuration's.
            MissingDataError: none is where `config.autoencoder` says.
        """
        super().__init__()
        self.config = config
        self.image_shape = config.image_shape
        self.latent_shape = config.denoised_shape
        self.scheduler = None
        if config.autoencoder and autoencoder is None:
            autoencoder = Autoencoder.load(config.autoencoder)
        if autoencoder is not None:
            _check_images(autoencoder, config.image_shape, config.dataset)
            require(
                autoencoder.latent_shape == config.latent_shape,
                f"the autoencoder's latents are {autoencoder.latent_shape}, the configuration says "
                f"{config.latent_shape}",
            )
        self.autoencoder = autoencoder
        from diffusers import DDIMScheduler  # here, since importing it takes seconds

        self.n_classes = config.n_classes
        self.null_label = config.n_classes
        self.name = config.dataset
        self.history: list[dict[str, float]] = []
        self.provenance: dict[str, Any] = {}
        channels = config.denoised_shape[0] * config.patch**2
        sides = [side + extra for side, extra in zip(config.denoised_shape[1:], config.padding, strict=True)]
        self.unet = self._make_network(channels, (sides[0] // config.patch, sides[1] // config.patch))
        scheduler = DDIMScheduler(config.n_train_timesteps, beta_schedule=config.beta_schedule)
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.float(), persistent=False)
        # Python floats for the hot path: no tensor indexing per step
        alphas = scheduler.alphas_cumprod.double()
        self._sqrt_alpha: list[float] = alphas.sqrt().tolist()
        self._sqrt_noise: list[float] = (1 - alphas).sqrt().tolist()

    def _make_network(self, channels: int, sides: tuple[int, int]) -> nn.Module:
        """The untrained network, for images of so many channels and sides."""
        from diffusers import UNet2DModel
        from diffusers.models.attention_processor import Attention, AttnProcessor

        config = self.config
        unet = UNet2DModel(
            sample_size=sides,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in config.attention],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)],
            norm_num_groups=config.norm_groups,
            attention_head_dim=config.attention_head_dim,
            num_class_embeds=config.n_classes + 1,
            add_attention=config.mid_attention,
        )
        for module in unet.modules():
            if isinstance(module, Attention):
                # on a few dozen pixels plain products beat the fused kernel, which is made for long sequences
                module.set_processor(AttnProcessor())
        return unet  # type: ignore[no-any-return]

    def forward(self, x_t: Tensor, t: Tensor | int, labels: Tensor) -> Tensor:
        """The network's raw output [B, C, H, W] (v or ε, see `config.prediction_type`); differentiable, for training.

        Args:
            x_t: [B, C, H, W].
            t: timestep, int or int64 [B], 0 … n_train_timesteps − 1.
            labels: int64 [B], 0 … n_classes − 1; `null_label` for none.

        Raises:
            InvalidInputError: labels that are not as said.
        """
        check_labels(labels, self.null_label + 1, len(x_t))
        patch, (rows, columns) = self.config.patch, self.config.padding
        height, width = x_t.shape[2:]
        if rows or columns:
            x_t = nn.functional.pad(x_t, (0, columns, 0, rows))
        if patch > 1:
            x_t = nn.functional.pixel_unshuffle(x_t, patch)
        output: Tensor = self.unet(x_t, t, class_labels=labels, return_dict=False)[0]
        if patch > 1:
            output = nn.functional.pixel_shuffle(output, patch)
        return output[..., :height, :width] if rows or columns else output

    def predict(self, x_t: Tensor, t: int, labels: Tensor) -> tuple[Tensor, Tensor]:
        """ε-predictions (with the labels, with the null label), each [B, C, H, W]: ONE network call on 2B rows.

        Whatever the network's own parametrisation; for v: ε = √ᾱ v + √(1−ᾱ) x_t (Salimans & Ho 2022, arXiv
        2202.00512). Differentiable; callers that need no gradient work under torch.no_grad().

        Args:
            x_t: [B, C, H, W].
            t: timestep, 0 … n_train_timesteps − 1.
            labels: int64 [B], 0 … n_classes − 1: what the images are to show. The null label is none of them.

        Raises:
            InvalidInputError: wrong shapes or types, a timestep or a label out of range.
        """
        t = int(t)
        self._check(x_t, t, labels)
        batch = x_t.shape[0]
        both = torch.cat([x_t, x_t])
        classes = torch.cat([labels, torch.full_like(labels, self.null_label)])
        output = self(both, t, classes)
        if self.config.prediction_type == "v_prediction":
            output = (output * self._sqrt_alpha[t]).add_(both, alpha=self._sqrt_noise[t])
        return output[:batch], output[batch:]

    @property
    def n_pooled(self) -> int:
        """Number F of pooled features; raises InvalidInputError for a network without a middle block."""
        return middle_channels(self.unet)

    def predict_pooled(self, x_t: Tensor, t: int, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `predict`, and the pooled features of the prediction with the labels, [B, F] (`diffusion.pooled`)."""
        with watching_middle(self.unet) as seen:
            cond, null = self.predict(x_t, t, labels)
        return cond, null, seen[0][: len(x_t)]

    def _check(self, x_t: Tensor, t: int, labels: Tensor) -> None:
        check_pixels(x_t, self.latent_shape, self.alphas_cumprod.dtype, "x_t")
        check_labels(labels, self.n_classes, len(x_t), null_label=self.null_label)
        if not 0 <= t < self.config.n_train_timesteps:
            raise InvalidInputError(f"timestep {t} is outside 0 … {self.config.n_train_timesteps - 1}")

    def decode(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] of what was denoised: x itself where pixels are; differentiable."""
        return x if self.autoencoder is None else self.autoencoder.decode(x)

    @property
    def n_parameters(self) -> int:
        """Number of trainable parameters of the U-Net."""
        return sum(p.numel() for p in self.unet.parameters())

    def save(self, path: str | Path) -> None:
        """Write half-precision weights and the configuration, recipe and loss history into the folder `path`.

        A latent model's autoencoder is written into the folder `autoencoder` in it.
        """
        description = {
            "config": self.config.to_dict(),
            "n_parameters": self.n_parameters,
            "history": self.history,
            "provenance": self.provenance,
            **({} if self.network == Backbone.network else {"network": self.network}),
            **self._write_parts(Path(path)),
        }
        save_model(path, self.unet.state_dict(), "backbone", description)
        if self.autoencoder is not None:
            self.autoencoder.save(Path(path) / _AUTOENCODER)

    def on(self, device: Any = None, engine: Any = None) -> Self:
        """A copy whose circuit runs on another device or engine, for a network that has one.

        Raises:
            InvalidInputError: this one has none.
        """
        raise InvalidInputError(
            f"the backbone of {self.name!r} has no circuit (it was trained without --bottleneck quantum), so that it "
            "runs on no device and no engine"
        )

    def _write_parts(self, folder: Path) -> dict[str, Any]:
        """Write what the network has besides weights; returns what `_read` needs, as JSON types."""
        return {}

    @classmethod
    def _read(cls, folder: Path, saved: Mapping[str, Any], autoencoder: Autoencoder | None) -> Self:
        """The backbone of a saved description, its weights not yet read."""
        return cls(cls.config_class.from_dict(saved["config"]), autoencoder)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Backbone:
        """A trained backbone, frozen and in evaluation mode.

        Args:
            name_or_path: data set of a shipped backbone ("digits"), or a run folder or model folder.

        Raises:
            MissingDataError: no such shipped model or folder.
            DamagedFileError: the folder's files cannot be read as a backbone.
        """
        folder = backbone_folder(name_or_path)
        state, saved = load_model(folder, "backbone")
        try:
            kind = NETWORKS[saved.get("network", Backbone.network)]
            made = load_extension(kind, what="network") if kind else Backbone
            autoencoder = Autoencoder.load(folder / _AUTOENCODER) if saved["config"].get("autoencoder") else None
            backbone: Backbone = made._read(folder, saved, autoencoder)
            backbone.unet.load_state_dict(state)
            backbone.history = list(saved["history"])
            backbone.provenance = dict(saved["provenance"])
        except (KeyError, TypeError, RuntimeError, QhwError) as error:
            raise DamagedFileError(f"weights and configuration in {folder} do not fit ({error})") from error
        return backbone.eval().requires_grad_(False)


def backbone_folder(name_or_path: str | Path) -> Path:
    """The folder that holds a backbone, as `Backbone.load` finds it: in a run folder its ``model``.

    Raises:
        MissingDataError: no such shipped model or folder.
    """
    shipped = SHIPPED / f"{name_or_path}-backbone"
    return shipped if shipped.is_dir() else model_folder(name_or_path, "backbone")


def train_backbone(
    config: BackboneConfig,
    run: RunFolder | None = None,
    *,
    dataset: ImageDataset | None = None,
    autoencoder: Autoencoder | None = None,
    make: Callable[[Any, Autoencoder | None], Backbone] = Backbone,
    data_root: str | Path | None = None,
    max_steps: int | None = None,
    resume: bool = False,
) -> Backbone:
    """Train a backbone on the training split; returns the averaged weights, frozen, in evaluation mode.

    Loss: mean squared error of the network's target (v = √ᾱ ε − √(1−ᾱ) x₀, or ε) at a uniform timestep (Ho et al.
    2020, arXiv 2006.11239; Salimans & Ho 2022, arXiv 2202.00512). The same configuration gives the same weights bit
    for bit on one machine with the same number of torch threads, resumed or not.

    With a run folder, Ctrl-C saves a checkpoint and then raises KeyboardInterrupt; a second one does not wait.

    Args:
        config: architecture and recipe.
        run: where to log "losses/backbone" and the learning rate every `log_every` steps, to keep a checkpoint, and to
            write `model/`.
        dataset: what to train on; default: the training split of `config.dataset`.
        autoencoder: that of a latent model; default: the one that `config.autoencoder` names.
        make: class of the backbone, which takes configuration and autoencoder.
        data_root: see `load_dataset`.
        max_steps: stop after so many steps of the recipe (its learning-rate schedule unchanged): a brief re-training.
        resume: continue from the run's checkpoint.

    Raises:
        InvalidInputError: the data set does not fit `config.image_shape` or `config.n_classes`, or lacks a class.
        MissingDataError: see `load_dataset`.
        RunFolderError: `resume` without a run, without a checkpoint in it, or with another configuration or data set.
    """
    data = dataset if dataset is not None else load_dataset(config.dataset, "train", data_root)
    check_fit(configuration=config, data_set=data)
    check_every_class(data.labels, data.n_classes, data.name, "training")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # diffusers' constructors draw from the global generator
        backbone = make(config, autoencoder).train()
    if config.start:
        _start_from(backbone, Backbone.load(config.start))
    inputs, labels = _inputs(backbone, data, run)
    alphas = backbone.alphas_cumprod

    def loss(training: Training) -> Tensor:
        generator = training.generator
        chosen = torch.randint(len(inputs), (config.batch_size,), generator=generator)
        x_0, asked = inputs[chosen], labels[chosen]
        dropped = torch.rand(len(asked), generator=generator) < config.label_dropout
        asked = asked.masked_fill(dropped, backbone.null_label)
        t = torch.randint(config.n_train_timesteps, (len(asked),), generator=generator)
        noise = torch.randn(x_0.shape, generator=generator)
        signal = alphas[t].sqrt().view(-1, 1, 1, 1)
        spread = (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        target = signal * noise - spread * x_0 if config.prediction_type == "v_prediction" else noise
        with half_arithmetic(config.precision):
            output = backbone(signal * x_0 + spread * noise, t, asked)
        return nn.functional.mse_loss(output.float(), target)

    encoder = {} if backbone.autoencoder is None else {"encoder": backbone.autoencoder.encoder_fingerprint}
    training = Training(config, data, backbone.unet, loss, encoder)
    training.run("backbone", run, max_steps=max_steps, resume=resume)
    backbone.unet.load_state_dict(training.averaged())
    backbone.history, backbone.provenance = training.history, training.provenance()
    if run is not None:
        backbone.save(Path(run.path) / "model")
    return backbone.eval().requires_grad_(False)


def _start_from(backbone: Backbone, start: Backbone) -> None:
    """Take over the weights of another backbone of the same architecture."""
    try:
        backbone.unet.load_state_dict(start.unet.state_dict())
    except RuntimeError as error:
        raise InvalidInputError(
            f"the backbone to start from, {backbone.config.start}, has another architecture: its channels are "
            f"{start.config.channels}, its latents or images {start.latent_shape}, classes {start.n_classes}"
        ) from error


def _inputs(backbone: Backbone, data: ImageDataset, run: RunFolder | None = None) -> tuple[Tensor, Tensor]:
    """What the network learns to denoise, with labels: the images, or the latents of images and mirror images.

    Latents are kept in the run folder, in half precision, so that a run that goes on need not encode again.
    """
    autoencoder, flip = backbone.autoencoder, backbone.config.flip
    if autoencoder is None:
        return data.images, data.labels
    labels = data.labels.repeat(2) if flip else data.labels
    source = {"data": data.fingerprint, "encoder": autoencoder.encoder_fingerprint, "flip": flip}
    file = None if run is None else run.path / _LATENTS
    if file is not None and file.is_file():
        saved, description = read_tensors(file, kind="latents")
        if description == source:
            return saved["latents"].float(), labels
    sides = (data.images, data.images.flip(3)) if flip else (data.images,)
    latents = torch.cat([autoencoder.encode_all(images) for images in sides]).half()
    if file is not None:
        write_tensors(file, {"latents": latents}, source, kind="latents")
    return latents.float(), labels
