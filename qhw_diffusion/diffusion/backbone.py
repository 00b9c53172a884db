"""The diffusion backbone: a small class-conditional U-Net (diffusers) with a null label for guidance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DamagedFileError, InvalidInputError, UnknownNameError
from ..runs import settings_from_dict
from .checks import check_labels, check_pixels, check_shape_and_classes
from .datasets import DATASETS
from .weights import SHIPPED, load_model, model_folder, save_model


@dataclass(frozen=True)
class BackboneConfig:
    """Architecture, scheduler and training recipe of one backbone. The defaults are those for digits.

    Attributes:
        dataset: one of `DATASETS`.
        image_shape: (C, H, W).
        n_classes: classes of the data set; the null label is the index after the last.
        channels: channels of each resolution level, the finest first; each level halves the image.
        layers_per_block: residual blocks per level on the way down (one more on the way up).
        attention: one flag per level: self-attention after each residual block.
        attention_head_dim: channels per attention head.
        patch: the image is folded into patches of patch × patch pixels, which become channels (pixel unshuffle), and
            the network works at the coarser resolution: at 2, about a third of the work.
        mid_attention: self-attention at the coarsest level's middle block.
        norm_groups: groups of the group norms; divides every entry of `channels`.
        prediction_type: what the network predicts: "v_prediction" or "epsilon".
        beta_schedule: diffusers' name of the noise schedule.
        n_train_timesteps: noise levels the network is trained on.
        steps, batch_size, learning_rate: AdamW with linear warm-up over `warmup` steps, then cosine decay to zero.
        weight_decay: AdamW's.
        warmup: steps of linear warm-up.
        label_dropout: share of training labels replaced by the null label (Ho & Salimans 2022, arXiv 2207.12598).
        ema_decay: decay of the exponential moving average of the weights, which is what is kept; ramped up as
            min(ema_decay, (1 + step) / (10 + step)).
        log_every: steps between two entries of the loss history (each the mean over the steps since the last).
        seed: of the initial weights, the order of the images and the noise.
    """

    dataset: str = "digits"
    image_shape: tuple[int, int, int] = (1, 8, 8)
    n_classes: int = 10
    channels: tuple[int, ...] = (32,)
    layers_per_block: int = 1
    attention: tuple[bool, ...] = (False,)
    mid_attention: bool = True
    attention_head_dim: int = 8
    patch: int = 2
    norm_groups: int = 8
    prediction_type: str = "v_prediction"
    beta_schedule: str = "squaredcos_cap_v2"
    n_train_timesteps: int = 1000
    steps: int = 3600
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 50
    label_dropout: float = 0.15
    ema_decay: float = 0.998
    log_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        check_shape_and_classes(self.image_shape, self.n_classes)
        _, height, width = self.image_shape
        if self.patch < 1 or not self.channels:
            raise InvalidInputError("patch is at least 1, and channels names at least one level")
        factor = self.patch * 2 ** (len(self.channels) - 1)
        if len(self.attention) != len(self.channels):
            raise InvalidInputError(f"attention {self.attention} and channels {self.channels} differ in length")
        if height % factor or width % factor:
            raise InvalidInputError(
                f"{len(self.channels)} levels, patch {self.patch}: sides must divide by {factor}, got {height}×{width}"
            )
        if any(c % self.norm_groups for c in self.channels):
            raise InvalidInputError(f"norm_groups {self.norm_groups} does not divide all of {self.channels}")
        if self.prediction_type not in ("v_prediction", "epsilon"):
            raise UnknownNameError.of("prediction type", self.prediction_type, ("v_prediction", "epsilon"))
        if not 0 <= self.label_dropout < 1 or not 0 <= self.ema_decay < 1:
            raise InvalidInputError("label_dropout and ema_decay are in [0, 1)")
        if min(self.steps, self.batch_size, self.log_every, self.n_train_timesteps) < 1 or self.learning_rate <= 0:
            raise InvalidInputError("steps, batch_size, log_every, n_train_timesteps and learning_rate are positive")

    @classmethod
    def for_dataset(cls, name: str, **changes: Any) -> BackboneConfig:
        """The recipe that was found good for a data set, with `changes`."""
        if name not in DATASETS:
            raise UnknownNameError.of("data set", name, DATASETS)
        return cls(**{**_RECIPES[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BackboneConfig:
        """Raises InvalidInputError on unknown entries and on values that do not fit."""
        return settings_from_dict(cls, data, "a backbone configuration")


_RECIPES: dict[str, dict[str, Any]] = {
    "digits": {},
    "mnist16": {
        "dataset": "mnist16",
        "image_shape": (1, 16, 16),
        "channels": (32, 32),
        "attention": (False, False),
        "steps": 3000,
        "log_every": 50,
    },
    "mnist28": {
        "dataset": "mnist28",
        "image_shape": (1, 28, 28),
        "channels": (32, 48),
        "attention": (False, False),
        "steps": 4000,
        "log_every": 50,
    },
}
# MNIST's recipes, not tuned for Fashion-MNIST
_RECIPES |= {f"fashion{side}": {**_RECIPES[f"mnist{side}"], "dataset": f"fashion{side}"} for side in (16, 28)}


class Backbone(nn.Module):
    """A trained U-Net with its noise schedule; predicts the noise with and without the label in one call.

    Frozen and in evaluation mode when it comes from `load`. Attributes: `config`, `image_shape` (C, H, W), `n_classes`,
    `null_label`, `name`, `alphas_cumprod` float32 [n_train_timesteps], `history` (list of {"step", "loss"}),
    `provenance` (fingerprint of the training split, versions).
    """

    alphas_cumprod: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape = config.image_shape
        from diffusers import DDIMScheduler, UNet2DModel  # here, since importing it takes seconds
        from diffusers.models.attention_processor import Attention, AttnProcessor

        self.n_classes = config.n_classes
        self.null_label = config.n_classes
        self.name = config.dataset
        self.history: list[dict[str, float]] = []
        self.provenance: dict[str, Any] = {}
        channels, side = config.image_shape[0] * config.patch**2, config.image_shape[1] // config.patch
        self.unet = UNet2DModel(
            sample_size=side,
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
        for module in self.unet.modules():
            if isinstance(module, Attention):
                # on a few dozen pixels plain products beat the fused kernel, which is made for long sequences
                module.set_processor(AttnProcessor())
        scheduler = DDIMScheduler(config.n_train_timesteps, beta_schedule=config.beta_schedule)
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.float(), persistent=False)
        # Python floats for the hot path: no tensor indexing per step
        alphas = scheduler.alphas_cumprod.double()
        self._sqrt_alpha: list[float] = alphas.sqrt().tolist()
        self._sqrt_noise: list[float] = (1 - alphas).sqrt().tolist()

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
        patch = self.config.patch
        if patch > 1:
            x_t = nn.functional.pixel_unshuffle(x_t, patch)
        output: Tensor = self.unet(x_t, t, class_labels=labels, return_dict=False)[0]
        return nn.functional.pixel_shuffle(output, patch) if patch > 1 else output

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: int, labels: Tensor) -> tuple[Tensor, Tensor]:
        """ε-predictions (with the labels, with the null label), each [B, C, H, W]: ONE network call on 2B rows.

        Whatever the network's own parametrisation; for v: ε = √ᾱ v + √(1−ᾱ) x_t (Salimans & Ho 2022, arXiv
        2202.00512). Computed without autograd.

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
            output = output.mul_(self._sqrt_alpha[t]).add_(both, alpha=self._sqrt_noise[t])
        return output[:batch], output[batch:]

    def _check(self, x_t: Tensor, t: int, labels: Tensor) -> None:
        check_pixels(x_t, self.image_shape, self.alphas_cumprod.dtype, "x_t")
        check_labels(labels, self.n_classes, len(x_t), null_label=self.null_label)
        if not 0 <= t < self.config.n_train_timesteps:
            raise InvalidInputError(f"timestep {t} is outside 0 … {self.config.n_train_timesteps - 1}")

    @property
    def n_parameters(self) -> int:
        """Trainable parameters of the U-Net."""
        return sum(p.numel() for p in self.unet.parameters())

    def save(self, path: str | Path) -> None:
        """Write half-precision weights and the configuration, recipe and loss history into the folder `path`."""
        description = {
            "config": self.config.to_dict(),
            "n_parameters": self.n_parameters,
            "history": self.history,
            "provenance": self.provenance,
        }
        save_model(path, self.unet.state_dict(), "backbone", description)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Backbone:
        """A shipped backbone ("digits"), or the one in a run folder or model folder; frozen, evaluation mode.

        Raises:
            MissingDataError: no such shipped model or folder.
            DamagedFileError: the folder's files cannot be read as a backbone.
        """
        shipped = SHIPPED / f"{name_or_path}-backbone"
        folder = shipped if shipped.is_dir() else model_folder(name_or_path)
        state, saved = load_model(folder, "backbone")
        try:
            backbone = cls(BackboneConfig.from_dict(saved["config"]))
            backbone.unet.load_state_dict(state)
            backbone.history = list(saved["history"])
            backbone.provenance = dict(saved["provenance"])
        except (KeyError, TypeError, RuntimeError, InvalidInputError) as error:
            raise DamagedFileError(f"weights and configuration in {folder} do not fit ({error})") from error
        return backbone.eval().requires_grad_(False)
