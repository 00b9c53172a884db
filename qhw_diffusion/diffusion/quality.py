"""How good a backbone's images are at constant guidance scales, and its autoencoder's reconstructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from qhw_diffusion.config import require
from qhw_diffusion.diffusion.autoencoder import Autoencoder, psnr
from qhw_diffusion.diffusion.backbone import Backbone
from qhw_diffusion.diffusion.checks import check_fit
from qhw_diffusion.diffusion.classifiers import Classifier
from qhw_diffusion.diffusion.datasets import ImageDataset, load_dataset
from qhw_diffusion.diffusion.metrics import evaluate_samples, image_features
from qhw_diffusion.diffusion.sampler import GuidedDDIM
from qhw_diffusion.runs import RunFolder, evaluation_metrics, progress

_BATCH = 250  # images sampled at a time
_SHUFFLE_SEED = 0
COLUMNS = ("accuracy", "energy", "fd", "kd", "diversity", "precision", "recall")
"""Metrics in the order they are printed, as far as `evaluate_samples` has them."""


def measure_reconstructions(
    autoencoder: Autoencoder, evaluation_classifier: Classifier, heldout: ImageDataset, n_images: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of held-out images that were encoded and decoded ("psnr" too), and of the same images themselves.

    The images are a fixed random choice, at most `n_images`. Both are measured against the whole held-out split.

    Raises:
        InvalidInputError: parts that do not fit each other.
    """
    check_fit(autoencoder=autoencoder, evaluation_classifier=evaluation_classifier, data_set=heldout)
    chosen = torch.randperm(len(heldout), generator=torch.Generator().manual_seed(_SHUFFLE_SEED))[:n_images]
    some = heldout.subset(chosen)
    features = image_features(evaluation_classifier, heldout.images)
    decoded = autoencoder.reconstruct(some.images)
    found, own = (
        evaluate_samples(images, some.labels, evaluation_classifier, heldout, real_features=features)
        for images in (decoded, some.images)
    )
    return {"psnr": psnr(decoded, some.images), **found}, own


def measure_constants(
    backbone: Backbone,
    evaluation_classifier: Classifier,
    heldout: ImageDataset,
    constants: Sequence[float],
    *,
    n_images: int = 1000,
    n_steps: int = 50,
    seed: int = 0,
) -> Iterator[tuple[float, dict[str, float], Tensor, Tensor]]:
    """Sample at each constant guidance scale, from the same noise for the same labels, and measure the images.

    Args:
        backbone: the model; one of latents is decoded, and not clipped on the way.
        evaluation_classifier: the classifier of role "evaluation" (held-out).
        heldout: the held-out split.
        constants: guidance scales.
        n_images: images for each scale; labels go round the classes.
        n_steps: DDIM steps.
        seed: of the starting noise.

    Yields:
        (scale, metrics of `evaluate_samples`, images [N, C, H, W], labels [N]).

    Raises:
        InvalidInputError: parts that do not fit each other, or less than four images.
    """
    check_fit(backbone=backbone, evaluation_classifier=evaluation_classifier, data_set=heldout)
    require(len(constants) > 0, "there are no constants: give at least one guidance scale")
    sampler = GuidedDDIM(backbone, n_steps, spacing="trailing", clip=backbone.autoencoder is None)
    labels = torch.arange(n_images) % backbone.n_classes
    noise = torch.randn(n_images, *backbone.latent_shape, generator=torch.Generator().manual_seed(seed))
    features = image_features(evaluation_classifier, heldout.images)
    with progress(total=len(constants), desc="constants") as bar:
        for scale in constants:
            with torch.no_grad():
                batches = zip(labels.split(_BATCH), noise.split(_BATCH), strict=True)
                images = torch.cat([sampler.sample(y, scale, z) for y, z in batches])
            images = images.clamp(-1, 1)
            found = evaluate_samples(images, labels, evaluation_classifier, heldout, real_features=features)
            bar.update()
            yield scale, found, images, labels


def picture(backbone: Backbone, *, scale: float = 2.0, n_steps: int = 10, seed: int = 0) -> bytes:
    """A PNG of 40 samples at a constant guidance scale, labels one after the other."""
    from qhw_diffusion.experiment.page import png
    from qhw_diffusion.experiment.plots import sample_grids

    sampler = GuidedDDIM(backbone, n_steps, spacing="trailing", clip=backbone.autoencoder is None)
    noise = torch.randn(40, *backbone.latent_shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        images = sampler.sample(torch.arange(40) % backbone.n_classes, scale, noise).clamp(-1, 1)
    return png(sample_grids({f"g = {scale:g}, {n_steps} steps": images.numpy()}))


def backbone_report(
    name_or_path: str | Path,
    evaluation_classifier: str,
    constants: Sequence[float],
    *,
    data: str | None = None,
    data_root: str | Path | None = None,
    n_images: int = 1000,
    n_steps: int = 50,
    seed: int = 0,
    device: str | None = None,
    engine: str | None = None,
    run: RunFolder | None = None,
) -> tuple[str, dict[str, Tensor]]:
    """What `qhw evaluate backbone` prints: a table with a line per constant, and under each one's name its images.

    For a latent model the first lines are real images and their reconstructions. Arguments as `measure_constants`;
    device, engine: where the circuit of a backbone with one runs, if not where it was trained (`Backbone.on`);
    run: the backbone's, whose loggers are told what was measured and get the images.

    Returns:
        (the table, {"g = 2": the first images, ten of each class [N, C, H, W], sorted by class}).
    """
    backbone = Backbone.load(name_or_path)
    if device is not None or engine is not None:
        backbone = backbone.on(device, engine)
    classifier = Classifier.load(evaluation_classifier or backbone.name, "evaluation")
    heldout = load_dataset(data or backbone.name, "heldout", data_root)
    measured: dict[str, dict[str, float]] = {}
    if backbone.autoencoder is not None:
        decoded, own = measure_reconstructions(backbone.autoencoder, classifier, heldout, n_images)
        measured |= {"real images": own, "reconstructed": decoded}
    pictures: dict[str, Tensor] = {}
    for scale, found, images, labels in measure_constants(
        backbone, classifier, heldout, constants, n_images=n_images, n_steps=n_steps, seed=seed
    ):
        measured[f"g = {scale:g}"] = found
        order = labels[: 10 * backbone.n_classes].argsort(stable=True)
        pictures[f"g = {scale:g}"] = images[order]
    if run is not None:
        where = "-".join([*(one for one in (device, engine) if one is not None), f"{n_steps}-steps-seed{seed}"])
        told = evaluation_metrics({f"{where}/{name}": found for name, found in measured.items()})
        with run:
            run.tell(told, {f"evaluation/{where}": lambda: side_by_side(pictures)})
    rows = [
        (f"{name} ({found['psnr']:.2f} dB)" if "psnr" in found else name, found) for name, found in measured.items()
    ]
    columns = [name for name in COLUMNS if name in rows[0][1]]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'':<{width}}  " + "".join(f"{name:>11}" for name in columns)]
    lines += [f"{name:<{width}}  " + "".join(f"{found[key]:>11.4g}" for key in columns) for name, found in rows]
    lines.append(f"{n_images} images a line, {n_steps} steps, features of {classifier.name!r}'s evaluation classifier")
    return "\n".join(lines), pictures


def side_by_side(pictures: Mapping[str, Tensor]) -> bytes:
    """A PNG of the images of `backbone_report`: for each constant ten of each class, or as many as there are."""
    from qhw_diffusion.experiment.page import png
    from qhw_diffusion.experiment.plots import sample_grids

    rows = min(10, min(len(grid) for grid in pictures.values()))
    return png(sample_grids({name: grid.numpy() for name, grid in pictures.items()}, rows=rows))
