"""The training recipe of a backbone: noise prediction with label dropout and averaged weights."""

from __future__ import annotations

import math
import platform
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints import load_checkpoint, restore_checkpoint, save_checkpoint
from ..errors import DamagedFileError, RunFolderError
from ..runs import RunFolder, StopRequest, progress
from .backbone import Backbone, BackboneConfig
from .checks import check_every_class, check_fit
from .datasets import ImageDataset, load_dataset
from .weights import half_precision

_CHECKPOINT_EVERY = 250


def train_backbone(
    config: BackboneConfig,
    run: RunFolder | None = None,
    *,
    dataset: ImageDataset | None = None,
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
    training = _Training(config, data)
    if resume:
        if run is None:
            raise RunFolderError("resume needs the run folder to resume from")
        training.restore(run)
    n_steps = config.steps if max_steps is None else min(max_steps, config.steps)
    guard = run.interruptible() if run is not None else nullcontext(StopRequest())
    with guard as stop, progress(total=n_steps, initial=training.step, desc=f"backbone {config.dataset}") as bar:
        while training.step < n_steps:
            training.one_step()
            bar.update()
            if training.step % config.log_every == 0 or training.step == n_steps:
                entry = training.close_interval()
                bar.set_postfix(loss=f"{entry['loss']:.4f}")
                if run is not None:
                    rate = training.optimizer.param_groups[0]["lr"]
                    run.log(training.step, {"losses/backbone": entry["loss"], "charts/learning_rate": rate})
            if run is not None and (stop.requested or training.step % _CHECKPOINT_EVERY == 0):
                training.save(run)
            if stop.requested:
                raise KeyboardInterrupt
    backbone = training.result()
    if run is not None:
        backbone.save(Path(run.path) / "model")
    return backbone


class _Training:
    """Everything that changes from step to step, so that it can be saved and put back."""

    def __init__(self, config: BackboneConfig, data: ImageDataset) -> None:
        self.config, self.data, self.step = config, data, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # diffusers' constructors draw from the global generator
            self.backbone = Backbone(config).train()
        self.generator = torch.Generator().manual_seed(config.seed + 1)
        self.weights = list(self.backbone.unet.parameters())
        self.average = {k: v.detach().clone() for k, v in self.backbone.unet.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.weights, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.recent: list[float] = []

    def one_step(self) -> None:
        config, alphas, generator = self.config, self.backbone.alphas_cumprod, self.generator
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate_factor(self.step, config)
        chosen = torch.randint(len(self.data), (config.batch_size,), generator=generator)
        images, labels = self.data.images[chosen], self.data.labels[chosen]
        dropped = torch.rand(len(labels), generator=generator) < config.label_dropout
        labels = labels.masked_fill(dropped, self.backbone.null_label)
        t = torch.randint(config.n_train_timesteps, (len(labels),), generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        signal = alphas[t].sqrt().view(-1, 1, 1, 1)
        spread = (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        target = signal * noise - spread * images if config.prediction_type == "v_prediction" else noise
        loss = nn.functional.mse_loss(self.backbone(signal * images + spread * noise, t, labels), target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self._update_average(min(config.ema_decay, (1 + self.step) / (10 + self.step)))
        self.recent.append(loss.item())
        self.step += 1

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        state = self.backbone.unet.state_dict()
        torch._foreach_lerp_([self.average[k] for k in state], list(state.values()), 1 - decay)

    def close_interval(self) -> dict[str, float]:
        """Append the mean loss since the last entry to the history."""
        entry = {"step": self.step, "loss": sum(self.recent) / len(self.recent)}
        self.recent.clear()
        self.backbone.history.append(entry)
        return entry

    def result(self) -> Backbone:
        """The averaged weights, rounded as they are saved, with their provenance."""
        import diffusers

        rounded = {k: v.float() for k, v in half_precision(self.average).items()}
        self.backbone.unet.load_state_dict(rounded)
        self.backbone.provenance = {
            "data_fingerprint": self.data.fingerprint,
            "n_images": len(self.data),
            "trained_steps": self.step,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "python": platform.python_version(),
        }
        return self.backbone.eval().requires_grad_(False)

    def save(self, run: RunFolder) -> None:
        meta = {"step": self.step, "recent": self.recent, "history": self.backbone.history, **self._identity()}
        save_checkpoint(run, self._parts(), meta)

    def restore(self, run: RunFolder) -> None:
        _, meta = load_checkpoint(run)
        for key, own in self._identity().items():
            given = meta.get(key)
            if given != own:
                raise RunFolderError(f"the checkpoint in {run.path} has {key} {given}, not {own}: not the same run")
        try:
            restore_checkpoint(run, self._parts())
            self.step, self.recent = int(meta["step"]), list(meta["recent"])
            self.backbone.history = list(meta["history"])
        except (KeyError, TypeError) as error:
            raise DamagedFileError(f"the checkpoint in {run.path} does not fit its configuration ({error})") from error
        run.truncate_metrics(self.step + 1)

    def _parts(self) -> dict[str, Any]:
        return {
            "average": self.average,
            "weights": self.backbone.unet,
            "optimizer": self.optimizer,
            "generator": self.generator,
        }

    def _identity(self) -> dict[str, Any]:
        return {"config": _as_json(self.config.to_dict()), "data": self.data.fingerprint}


def _as_json(config: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}


def _rate_factor(step: int, config: BackboneConfig) -> float:
    """Linear warm-up, then a half cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * share))
