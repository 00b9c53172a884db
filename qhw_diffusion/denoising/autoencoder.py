"""A small classical autoencoder whose latent is what a quantum device can give back: magnitudes of amplitudes.

The encoder turns an image into 2^k numbers that are ≥ 0 and of unit norm, the amplitudes of k qubits. The decoder sees
magnitudes only, √probability or √(counts/N): signs and phases, which no measurement in the computational basis shows,
can not matter to it. It is trained on sampled counts, so that finite shots at its input are nothing new to it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qhw_diffusion.checkpoints import load_module_state, put_state, save_module
from qhw_diffusion.config import Config, check_finite
from qhw_diffusion.denoising.readout import sample_counts
from qhw_diffusion.diffusion import ImageDataset
from qhw_diffusion.errors import DamagedFileError, InvalidInputError
from qhw_diffusion.runs import RunFolder, progress

_KIND = "latent autoencoder"
_FORMAT = 1
_LOG_EVERY = 100
_WEIGHT_DECAY = 0.01
_WARMUP = 50
_SMOOTHING = 0.01  # below it |h| is rounded off


@dataclass(frozen=True)
class AutoencoderConfig(Config):
    """Shape and training recipe of a `LatentAutoencoder`. The defaults are for 8×8 digits: about 10 s on one core."""

    image_shape: tuple[int, int, int] = (1, 8, 8)
    """Shape (C, H, W) of the images; any number of channels, also not square."""
    latent_qubits: int = 3
    """Qubits k of the latent space, which has 2^k entries."""
    width: int = 128
    """Units of the two hidden layers, in encoder and decoder each."""
    steps: int = 1500
    """Updates of AdamW."""
    batch_size: int = 64
    """Images per update."""
    learning_rate: float = 5e-3
    """Learning rate of AdamW, with linear warm-up and cosine decay."""
    latent_shots: int | None = 1000
    """Shots of which the decoder sees the counts in training; none trains it on exact magnitudes."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the shots."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_finite(self)
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise InvalidInputError(f"image_shape is {self.image_shape}; need (C, H, W), all positive")
        if not 1 <= self.latent_qubits <= 12:
            raise InvalidInputError(f"latent_qubits is {self.latent_qubits}; allowed: 1 to 12")
        if 2**self.latent_qubits > math.prod(self.image_shape):
            raise InvalidInputError(
                f"latent_qubits={self.latent_qubits} are {2**self.latent_qubits} numbers for an image of "
                f"{math.prod(self.image_shape)} pixels: a latent space is smaller; or use no autoencoder"
            )
        if min(self.width, self.steps, self.batch_size) < 1 or not 0 < self.learning_rate < math.inf:
            raise InvalidInputError("width, steps, batch_size and learning_rate are positive")
        if self.latent_shots is not None and self.latent_shots < 1:
            raise InvalidInputError(f"latent_shots is {self.latent_shots}; allowed: whole numbers from 1, or None")


class LatentAutoencoder(nn.Module):
    """Images [B, C, H, W] in [−1, 1] ↔ magnitudes [B, 2^k] of the amplitudes of k qubits.

    Args:
        config: shape and training recipe.

    Attributes:
        config: what it was made from.
        image_shape: (C, H, W).
        latent_dim: 2^k.
        report: mean squared errors per pixel on the held-out images: "heldout_mse" from exact magnitudes,
            "heldout_mse_counts" from `config.latent_shots` shots, "heldout_mse_mean_image" of the mean training image,
            the baseline; empty before training.
        provenance: fingerprints of the data and the version of torch; empty before training.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape = tuple(config.image_shape)
        self.latent_dim = 2**config.latent_qubits
        self.report: dict[str, float] = {}
        self.provenance: dict[str, Any] = {}
        pixels, width = math.prod(config.image_shape), config.width
        self.encoder = nn.Sequential(nn.Flatten(), *_hidden(pixels, width), nn.Linear(width, self.latent_dim))
        self.decoder = nn.Sequential(*_hidden(self.latent_dim, width), nn.Linear(width, pixels), nn.Tanh())

    @property
    def n_parameters(self) -> int:
        """Trainable parameters of encoder and decoder."""
        return sum(p.numel() for p in self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights, which images and magnitudes are turned into."""
        return next(self.parameters()).dtype

    def encode(self, images: Tensor) -> Tensor:
        """Magnitudes [B, 2^k] of images [B, C, H, W]: positive and of unit norm. Differentiable.

        They are a smooth |h| of the last layer's outputs h over its norm. (√softmax and softplus have no slope far
        down: in training, entries die at zero, in the worst case all but one.)

        As a quantum state: `encode(images).to(torch.complex64)`.

        Raises:
            InvalidInputError: images of another shape.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise InvalidInputError(
                f"images are {tuple(images.shape)}; this autoencoder takes [B, {', '.join(map(str, self.image_shape))}]"
            )
        outputs: Tensor = self.encoder(images.to(self.dtype))
        return nn.functional.normalize((outputs.square() + _SMOOTHING**2).sqrt(), dim=1)

    def decode(self, amplitudes: Tensor) -> Tensor:
        """Images [B, C, H, W] from amplitudes or magnitudes [B, 2^k], of which |·| over its norm is used.

        Of a density matrix or of counts give √probability (`readout.probabilities_of(states).sqrt()`,
        `ImageEstimate.magnitudes`). Differentiable.

        Raises:
            InvalidInputError: another shape, entries that are not finite, or a row of zeros.
        """
        if amplitudes.ndim != 2 or amplitudes.shape[1] != self.latent_dim:
            raise InvalidInputError(
                f"amplitudes are {tuple(amplitudes.shape)}; this autoencoder takes [B, {self.latent_dim}] "
                f"({self.config.latent_qubits} qubits)"
            )
        magnitudes = amplitudes.abs().to(self.dtype)
        norm = magnitudes.norm(dim=1, keepdim=True)
        if not bool(((norm > 0) & norm.isfinite()).all()):
            raise InvalidInputError("amplitudes must be finite, and no row all zeros")
        return self._pixels(magnitudes / norm)

    def _pixels(self, magnitudes: Tensor) -> Tensor:
        # entries of size about 1, as the layers' initial weights expect
        pixels: Tensor = self.decoder(magnitudes * math.sqrt(self.latent_dim))
        return pixels.reshape(-1, *self.image_shape)

    def forward(self, images: Tensor) -> Tensor:
        """`decode(encode(images))`."""
        return self.decode(self.encode(images))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write weights, configuration, report and provenance into `folder`; returns it."""
        description = {"format": _FORMAT, "kind": _KIND, "config": self.config.to_dict()}
        return save_module(folder, self, {**description, "report": self.report, "provenance": self.provenance})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> LatentAutoencoder:
        """The autoencoder that `save` wrote, frozen, in evaluation mode.

        Raises:
            DamagedFileError: no model there, of another kind, damaged, or weights that do not fit the configuration.
        """
        state, saved = load_module_state(folder)
        found = (saved.get("format"), saved.get("kind"))
        if found != (_FORMAT, _KIND):
            raise DamagedFileError(f"{folder} is not a {_KIND} of format {_FORMAT} (found format and kind {found})")
        try:
            model = cls(AutoencoderConfig.from_dict(saved["config"]))
            put_state(model, state)
            model.report, model.provenance = dict(saved["report"]), dict(saved["provenance"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DamagedFileError(f"weights and configuration in {folder} do not fit ({error})") from error
        return model.eval().requires_grad_(False)


def train_autoencoder(
    config: AutoencoderConfig, data: ImageDataset, heldout: ImageDataset, run: RunFolder | None = None
) -> LatentAutoencoder:
    """Train on `data`, measure on `heldout`; returns the model frozen, in evaluation mode.

    The loss is the mean squared error per pixel. The decoder's input is √(counts/N) of `config.latent_shots` sampled
    outcomes; the gradient passes to the encoder as if it were the exact magnitude (straight-through: counts have no
    derivative). The same configuration gives the same weights bit for bit on one machine.

    Args:
        config: shape and recipe.
        data: images of `config.image_shape` to train on.
        heldout: images of the same shape to measure on.
        run: where to log "losses/reconstruction" and to write `model/`.

    Raises:
        InvalidInputError: images of another shape, or no images.
    """
    for images in (data, heldout):
        if images.image_shape != tuple(config.image_shape) or not len(images):
            raise InvalidInputError(
                f"data set {images.name!r} has {len(images)} images {images.image_shape}; "
                f"the configuration says {config.image_shape}, and at least one is needed"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LatentAutoencoder(config)
    generator = torch.Generator().manual_seed(config.seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, config.steps))
    recent: list[float] = []
    with progress(total=config.steps, desc=f"autoencoder {data.name}") as bar:
        for step in range(1, config.steps + 1):
            x = data.images[torch.randint(len(data), (config.batch_size,), generator=generator)]
            exact = model.encode(x)
            seen = exact
            if config.latent_shots is not None:
                seen = exact + (_counted(exact, config.latent_shots, generator) - exact).detach()
            # not `decode`: its |·| has no slope where nothing was counted, and the encoder would learn nothing there
            loss = nn.functional.mse_loss(model._pixels(seen), x)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
            recent.append(loss.item())
            bar.update()
            if step % _LOG_EVERY == 0 or step == config.steps:
                mean = sum(recent) / len(recent)
                recent.clear()
                bar.set_postfix(loss=f"{mean:.4f}")
                if run is not None:
                    run.log(step, {"losses/reconstruction": mean})
    model.eval().requires_grad_(False)
    model.report = {
        "heldout_mse": reconstruction_error(model, heldout.images),
        "heldout_mse_mean_image": float((heldout.images - data.images.mean(0)).square().mean()),
    }
    if config.latent_shots is not None:
        shots_generator = torch.Generator().manual_seed(config.seed + 2)
        counted = reconstruction_error(model, heldout.images, config.latent_shots, shots_generator)
        model.report["heldout_mse_counts"] = counted
    model.provenance = {
        "data_fingerprint": data.fingerprint,
        "heldout_fingerprint": heldout.fingerprint,
        "torch": torch.__version__,
    }
    if run is not None:
        model.save(Path(run.path) / "model")
    return model


@torch.no_grad()
def reconstruction_error(
    model: LatentAutoencoder, images: Tensor, shots: int | None = None, generator: torch.Generator | None = None
) -> float:
    """Mean squared error per pixel of images [N, C, H, W] after encoding, measuring and decoding.

    Args:
        model: the autoencoder.
        images: in [−1, 1].
        shots: outcomes per image that the decoder sees the counts of; None gives it exact magnitudes.
        generator: of the outcomes; needed with shots.

    Raises:
        InvalidInputError: images of another shape, shots below 1 or without a generator.
    """
    magnitudes = model.encode(images)
    if shots is not None:
        if generator is None:
            raise InvalidInputError("reconstruction_error with shots needs a generator")
        magnitudes = _counted(magnitudes, shots, generator)
    return float(nn.functional.mse_loss(model.decode(magnitudes), images))


def _counted(magnitudes: Tensor, shots: int, generator: torch.Generator) -> Tensor:
    """√(counts/N) of `shots` outcomes drawn with the probabilities magnitudes²."""
    return (sample_counts(magnitudes.detach().square(), shots, generator) / shots).sqrt()


def _rate_factor(step: int, total: int) -> float:
    warmup = min(_WARMUP, max(1, total // 10))
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))


def _hidden(inputs: int, width: int) -> list[nn.Module]:
    return [nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
