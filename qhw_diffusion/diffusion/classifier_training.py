"""The training recipe of a proxy classifier."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ..runs import RunFolder, progress
from .checks import check_every_class, check_fit
from .classifiers import Classifier, ClassifierConfig, accuracy
from .datasets import ImageDataset, load_dataset
from .weights import half_precision

_LOG_EVERY = 50
_WARMUP = 50
_HALVES_SEED = 0


def train_classifier(
    config: ClassifierConfig,
    run: RunFolder | None = None,
    *,
    dataset: ImageDataset | None = None,
    heldout: ImageDataset | None = None,
    data_root: str | Path | None = None,
) -> Classifier:
    """Train a classifier on its half of the training split; returns it frozen, in evaluation mode.

    Cross-entropy, AdamW, images shifted and noised (`config.shift`, `config.noise`); the held-out accuracy is kept in
    `.accuracy`. The same configuration gives the same weights bit for bit on one machine.

    Args:
        config: architecture and recipe.
        run: where to log "losses/classifier" and "charts/accuracy", and to write `model/`.
        dataset, heldout: what to train and to measure on; default: the splits of `config.dataset`.
        data_root: see `load_dataset`.

    Raises:
        InvalidInputError: a data set does not fit the configuration, or lacks a class.
        MissingDataError: see `load_dataset`.
    """
    data = dataset if dataset is not None else load_dataset(config.dataset, "train", data_root)
    held = heldout if heldout is not None else load_dataset(config.dataset, "heldout", data_root)
    check_fit(configuration=config, data_set=data, heldout=held)
    if config.half != "all":
        data = half_of(data, config.half)
    check_every_class(data.labels, data.n_classes, data.name, f"training on {config.half} of its images")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        classifier = Classifier(config)
    generator = torch.Generator().manual_seed(config.seed + 1)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    recent: list[float] = []
    classifier.train()
    label = f"{config.role} classifier {config.dataset}"
    with progress(total=config.steps, desc=label) as bar:
        for step in range(config.steps):
            rate = config.learning_rate * _rate_factor(step, config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            chosen = torch.randint(len(data), (config.batch_size,), generator=generator)
            images = _augment(data.images[chosen], config, generator)
            loss = nn.functional.cross_entropy(classifier.logits(images), data.labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            recent.append(loss.item())
            bar.update()
            if (step + 1) % _LOG_EVERY == 0 or step + 1 == config.steps:
                mean = sum(recent) / len(recent)
                recent.clear()
                bar.set_postfix(loss=f"{mean:.4f}")
                if run is not None:
                    run.log(step + 1, {"losses/classifier": mean, "charts/learning_rate": rate})
    classifier.load_state_dict({k: v.float() for k, v in half_precision(classifier.state_dict()).items()})
    classifier.eval().requires_grad_(False)
    classifier.accuracy = accuracy(classifier, held.images, held.labels)
    classifier.provenance = {
        "data_fingerprint": data.fingerprint,
        "n_images": len(data),
        "heldout_fingerprint": held.fingerprint,
        "torch": torch.__version__,
    }
    if run is not None:
        run.log(config.steps, {"charts/accuracy": classifier.accuracy})
        classifier.save(Path(run.path) / "model")
    return classifier


def half_of(data: ImageDataset, half: str) -> ImageDataset:
    """The "first" or "second" half of a data set under a fixed shuffle; the two are disjoint and make up the whole."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(_HALVES_SEED))
    middle = (len(data) + 1) // 2
    return data.subset((order[:middle] if half == "first" else order[middle:]).sort().values)


def _rate_factor(step: int, total: int) -> float:
    warmup = min(_WARMUP, max(1, total // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _augment(images: Tensor, config: ClassifierConfig, generator: torch.Generator) -> Tensor:
    """Each image moved by its own number of pixels (background −1 enters), then noised."""
    if config.shift:
        s = config.shift
        _, _, height, width = images.shape
        padded = nn.functional.pad(images, (s, s, s, s), value=-1.0)
        offset = torch.randint(2 * s + 1, (2, len(images)), generator=generator)
        rows = offset[0].view(-1, 1, 1) + torch.arange(height).view(1, -1, 1)
        columns = offset[1].view(-1, 1, 1) + torch.arange(width).view(1, 1, -1)
        images = padded[torch.arange(len(images)).view(-1, 1, 1), :, rows, columns].permute(0, 3, 1, 2)
    if config.noise:
        sigma = torch.rand(len(images), 1, 1, 1, generator=generator) * config.noise
        images = images + sigma * torch.randn(images.shape, generator=generator)
    return images
