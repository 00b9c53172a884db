"""The sweep of constants: which base scale g0 and which range, before anything is trained.

It looks at the **reward side only** (reward classifier, training images). The evaluation classifier and the held-out
images stay unseen, so a comparison with the best constant found here is fair to both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qhw_diffusion.diffusion import check_fit, frechet_distance, image_features, latent_shape_of
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.config import GuidanceConfig
from qhw_diffusion.guidance.rewards import EMBEDDED_TOGETHER, Distribution
from qhw_diffusion.guidance.rollout import rollout

if TYPE_CHECKING:
    from qhw_diffusion.diffusion import Classifier, Denoiser, ImageDataset

DEFAULT_SCALES = (0.0, 0.5, 0.8, 1.0, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5)


@dataclass(frozen=True)
class SweepRow:
    """One constant, measured against the training images in the reward classifier's features.

    Attributes:
        g: guidance scale.
        distance: MMD² with the reward's kernel.
        fd: Fréchet distance.
        accuracy: share of images the reward classifier takes for their label.
    """

    g: float
    distance: float
    fd: float
    accuracy: float


@dataclass(frozen=True)
class Sweep:
    """What a sweep of constants found.

    The range is g0 − 2 (not below 0) to g0 + 2, the reach of ΔCFG: a single step may well use a scale that would be
    ruinous as a constant.

    Attributes:
        rows: one per scale, ascending.
        g0: scale with the lowest distance.
        g_min: lowest scale to allow.
        g_max: highest scale to allow.
        n_steps: steps of the sampler it holds for.
        n_images: images per constant.
        spacing: spacing of the sampler's timesteps.
    """

    rows: tuple[SweepRow, ...]
    g0: float
    g_min: float
    g_max: float
    n_steps: int
    n_images: int
    spacing: str = "leading"

    def sensible(self, factor: float = 3.0) -> tuple[float, float]:
        """Lowest and highest constant of the sweep, connected to the best one, within `factor` times its distance.

        A policy may also start from the middle of this range, not knowing the best constant: then there is
        something to learn before the best constant is even reached.
        """
        best = next(i for i, row in enumerate(self.rows) if row.g == self.g0)
        bound = factor * max(self.rows[best].distance, 0.0)
        low = high = best
        while low > 0 and self.rows[low - 1].distance <= bound:
            low -= 1
        while high + 1 < len(self.rows) and self.rows[high + 1].distance <= bound:
            high += 1
        return self.rows[low].g, self.rows[high].g

    def configure(self, config: GuidanceConfig) -> GuidanceConfig:
        """The configuration with base scale and range from the sweep (its state calibration is dropped)."""
        changes: dict[str, Any] = {"g0": self.g0, "g_min": self.g_min, "g_max": self.g_max, "base_schedule": ()}
        sampler = {"n_steps": self.n_steps, "spacing": self.spacing}
        return config.replace(**changes, **sampler, state_centre=(), state_width=())


@torch.no_grad()
def sweep_constants(
    backbone: Denoiser,
    classifier: Classifier,
    real: ImageDataset,
    *,
    n_steps: int,
    spacing: str = "leading",
    scales: Sequence[float] = DEFAULT_SCALES,
    n_images: int = 512,
    by_class: bool = True,
    kernel: str = "distance",
    features: str = "classifier",
    seed: int = 0,
    on_scale: Callable[[SweepRow], None] | None = None,
) -> Sweep:
    """Sample `n_images` per constant from the same labels and noise and measure them with the reward classifier.

    Args:
        backbone: makes the images.
        classifier: reward classifier.
        real: training split; labels are drawn in its proportions.
        n_steps: steps of the sampler.
        spacing: spacing of the sampler's timesteps.
        scales: constants to try.
        n_images: images per constant.
        by_class: whether the distance that decides compares images of the same label only (`rewards.Distribution`).
        kernel: kernel of that distance.
        features: what it compares images in (`RewardConfig.distribution_features`).
        seed: seed of labels and noise.
        on_scale: called with the row of each constant.

    Returns:
        All rows, the best constant and the range around it.

    Raises:
        InvalidInputError: another classifier than the reward one, another split, or parts of other images or classes
            than each other.
    """
    if classifier.role != "reward":
        raise InvalidInputError(
            f"the sweep selects with the reward classifier, got role {classifier.role!r}; the "
            "evaluation classifier must stay unseen"
        )
    if real.split != "train":
        raise InvalidInputError(f"the sweep compares with the training split, got {real.split!r}")
    check_fit(backbone=backbone, reward_classifier=classifier, data_set=real)
    if not scales or n_images < 4:
        raise InvalidInputError("the sweep needs at least one scale and four images")
    generator = torch.Generator().manual_seed(seed)
    device = backbone.alphas_cumprod.device
    labels = real.labels[torch.randint(len(real.labels), (n_images,), generator=generator)].to(device)
    noise = torch.randn((n_images, *latent_shape_of(backbone)), generator=generator).to(device)
    few = [k for k, count in enumerate(labels.bincount(minlength=real.n_classes).tolist()) if count == 1]
    if by_class and few:
        raise InvalidInputError(
            f"the sweep compares images of the same label, and among its {n_images} there is one alone of label "
            f"{' and of label '.join(map(str, few))}: take more (n_images=, --sweep-images; for {real.n_classes} "
            f"labels some {10 * real.n_classes}), or compare over all labels (by_class=False, "
            "--no-reward-distribution-by-class)"
        )
    config = GuidanceConfig(
        dataset=backbone.name, n_steps=n_steps, spacing=spacing, g0=1.0, g_min=0.0, g_max=max(2.0, *scales)
    )
    term = Distribution(classifier, real, by_class=by_class, kernel=kernel, features=features)
    real_features = image_features(classifier, real.images.to(device), batch=EMBEDDED_TOGETHER)
    rows = []
    for g in sorted({float(scale) for scale in scales}):
        images = rollout(backbone, config, labels, noise, g).images
        correct = classifier.logits(images).argmax(1) == labels
        fd = frechet_distance(classifier.features(images), real_features)
        rows.append(SweepRow(g, term.distance(images, labels), float(fd), float(correct.float().mean())))
        if on_scale is not None:
            on_scale(rows[-1])
    best = min(rows, key=lambda row: row.distance)
    around = GuidanceConfig.around(best.g, config.action_limit)
    return Sweep(tuple(rows), **around, n_steps=n_steps, n_images=n_images, spacing=spacing)
