"""The training recipe of a backbone: noise prediction with label dropout and averaged weights."""

from __future__ import annotations

import math
import platform
from pathlib import Path

import diffusers
import torch
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..runs import RunFolder, progress
from .backbone import Backbone, BackboneConfig
from .datasets import ImageDataset, load_dataset


def train_backbone(
    config: BackboneConfig,
    run: RunFolder | None = None,
    *,
    dataset: ImageDataset | None = None,
    data_root: str | Path | None = None,
    max_steps: int | None = None,
) -> Backbone:
    """Train a backbone on the training split; returns the averaged weights, frozen, in evaluation mode.

    Loss: mean squared error of the network's target (v = √ᾱ ε − √(1−ᾱ) x₀, or ε) at a uniform timestep (Ho et al.
    2020, arXiv 2006.11239; Salimans & Ho 2022, arXiv 2202.00512). The same configuration gives the same weights bit
    for bit on one machine with the same number of torch threads.

    Args:
        config: architecture and recipe.
        run: where to log "losses/backbone" and the learning rate every `log_every` steps and to write `model/`.
        dataset: what to train on; default: the training split of `config.dataset`.
        data_root: see `load_dataset`.
        max_steps: stop after so many steps of the recipe (its learning-rate schedule unchanged): a brief re-training.

    Raises:
        InvalidInputError: the data set does not fit `config.image_shape` or `config.n_classes`.
        MissingDataError: see `load_dataset`.
    """
    data = dataset if dataset is not None else load_dataset(config.dataset, "train", data_root)
    if data.image_shape != config.image_shape or data.n_classes != config.n_classes:
        raise InvalidInputError(
            f"data set {data.name!r} has images {data.image_shape} and {data.n_classes} classes; "
            f"the configuration says {config.image_shape} and {config.n_classes}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # diffusers' constructors draw from the global generator
        backbone = Backbone(config)
    generator = torch.Generator().manual_seed(config.seed + 1)
    average = {k: v.detach().clone() for k, v in backbone.unet.state_dict().items()}
    weights = list(backbone.unet.parameters())
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    n_steps = config.steps if max_steps is None else min(max_steps, config.steps)
    alphas = backbone.alphas_cumprod
    recent: list[float] = []
    backbone.train()
    with progress(total=n_steps, desc=f"backbone {config.dataset}") as bar:
        for step in range(n_steps):
            rate = config.learning_rate * _rate_factor(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images, labels = _batch(data, config.batch_size, generator)
            dropped = torch.rand(len(labels), generator=generator) < config.label_dropout
            labels = labels.masked_fill(dropped, backbone.null_label)
            t = torch.randint(config.n_train_timesteps, (len(labels),), generator=generator)
            noise = torch.randn(images.shape, generator=generator)
            signal = alphas[t].sqrt().view(-1, 1, 1, 1)
            spread = (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
            target = signal * noise - spread * images if config.prediction_type == "v_prediction" else noise
            loss = nn.functional.mse_loss(backbone(signal * images + spread * noise, t, labels), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            _update_average(average, backbone.unet, min(config.ema_decay, (1 + step) / (10 + step)))
            recent.append(loss.item())
            bar.update()
            if (step + 1) % config.log_every == 0 or step + 1 == n_steps:
                mean = sum(recent) / len(recent)
                recent.clear()
                backbone.history.append({"step": step + 1, "loss": mean})
                bar.set_postfix(loss=f"{mean:.4f}")
                if run is not None:
                    run.log(step + 1, {"losses/backbone": mean, "charts/learning_rate": rate})
    backbone.unet.load_state_dict(average)
    backbone.provenance = {
        "data_fingerprint": data.fingerprint,
        "n_images": len(data),
        "trained_steps": n_steps,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
    backbone.eval().requires_grad_(False)
    if run is not None:
        backbone.save(Path(run.path) / "model")
    return backbone


def _rate_factor(step: int, config: BackboneConfig) -> float:
    """Linear warm-up, then a half cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * share))


def _batch(data: ImageDataset, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(len(data), (size,), generator=generator)
    return data.images[chosen], data.labels[chosen]


@torch.no_grad()
def _update_average(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    state = module.state_dict()
    torch._foreach_lerp_([average[k] for k in state], list(state.values()), 1 - decay)
