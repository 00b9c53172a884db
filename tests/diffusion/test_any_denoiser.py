"""Any object with a denoiser's five attributes is sampled, guided and steered, whatever it derives from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from qhw_diffusion import diffusion, guidance
from qhw_diffusion.diffusion import Backbone, Classifier, ClassifierConfig, Denoiser, GuidedDDIM, check_denoiser
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.episode import GuidedEpisode

SPREAD = 0.3


@dataclass(frozen=True)
class Mixture:
    """The exact denoiser of images that are N(mean of their class, SPREAD²): no network, no training."""

    means: Tensor  # [K, C, H, W]
    alphas_cumprod: Tensor = field(default_factory=lambda: torch.linspace(0.9999, 0.001, 500).square())
    name: str = "mixture"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.means.shape
        return channels, height, width

    @property
    def n_classes(self) -> int:
        return len(self.means)

    def predict(self, x_t: Tensor, t: int, labels: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas_cumprod[t]
        variance = alpha * SPREAD**2 + 1 - alpha
        # ε of each class, E[ε | x_t, class] = √(1−ᾱ) (x_t − √ᾱ mean) / variance, [B, K, C, H, W]
        away = x_t[:, None] - alpha.sqrt() * self.means
        eps = (1 - alpha).sqrt() * away / variance
        posterior = (-away.square().sum((2, 3, 4)) / (2 * variance)).softmax(1)
        return eps[torch.arange(len(labels)), labels], torch.einsum("bk,bkchw->bchw", posterior, eps)


@pytest.fixture
def mixture() -> Mixture:
    return Mixture(0.6 * (torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(3)) * 2 - 1))


def started(mixture: Mixture, n: int) -> tuple[Tensor, Tensor]:
    noise = torch.randn(n, *mixture.image_shape, generator=torch.Generator().manual_seed(0))
    return torch.arange(n) % mixture.n_classes, noise


def test_backbone_and_mixture_are_denoisers(mixture: Mixture) -> None:
    assert isinstance(Backbone.load("digits"), Denoiser)
    assert isinstance(mixture, Denoiser)
    assert not isinstance(Classifier(ClassifierConfig()), Denoiser)


def test_sampling_reaches_the_closed_form(mixture: Mixture) -> None:
    """At g = 1 DDIM follows the probability flow of one Gaussian, which ends at mean + SPREAD · noise."""
    labels, noise = started(mixture, 60)
    off = []
    for n_steps in (50, 500):
        images = GuidedDDIM(mixture, n_steps, spacing="linspace", clip=False).sample(labels, 1.0, noise)
        away = images - mixture.means[labels]
        width = float((away * noise).sum() / noise.square().sum())
        torch.testing.assert_close(away, width * noise, atol=5e-3, rtol=0)
        off.append(abs(width - SPREAD))
    assert off[1] < 0.3 * off[0]  # the method is of first order: ten times the steps, about a tenth of the error
    assert off[1] < 0.03 * SPREAD
    # more guidance leads farther away from the other classes
    others = torch.stack([mixture.means[[k for k in range(3) if k != y]].mean(0) for y in range(3)])[labels]
    guided = GuidedDDIM(mixture, 50, spacing="trailing", clip=False).sample(labels, 3.0, noise)
    plain = GuidedDDIM(mixture, 50, spacing="trailing", clip=False).sample(labels, 1.0, noise)
    assert float((guided - others).square().mean()) > float((plain - others).square().mean())


def test_users_and_training_sample_by_one_loop(mixture: Mixture) -> None:
    """The same bits from `GuidedDDIM.sample` and from the rollout that training and evaluation run."""
    for denoiser in (mixture, Backbone.load("digits")):
        generator = torch.Generator().manual_seed(1)
        config = guidance.GuidanceConfig(n_steps=5, spacing="trailing")
        labels, noise = guidance.draw_episode(denoiser, 12, generator)
        schedule = 1.0 + torch.rand(5, 12, generator=generator)
        for g in (1.3, schedule[:, 0], schedule):
            played = guidance.rollout(denoiser, config, labels, noise, g)
            sampled = GuidedDDIM(denoiser, 5, spacing="trailing").sample(labels, g, noise)
            assert torch.equal(played.images, sampled)


def test_a_policy_is_trained_on_it(mixture: Mixture) -> None:
    torch.manual_seed(0)
    shape = {"image_shape": mixture.image_shape, "n_classes": 3, "width": 4, "dataset": "mixture"}
    classifier = Classifier(ClassifierConfig(role="reward", **shape)).eval().requires_grad_(False)
    labels, noise = started(mixture, 60)
    real = diffusion.ImageDataset((mixture.means[labels] + SPREAD * noise).clamp(-1, 1), labels, "mixture", "train", 3)
    config = guidance.GuidanceConfig(dataset="mixture", n_steps=3, spacing="trailing", noise_pool=24)
    trained = guidance.train_guidance(
        config, guidance.PPOConfig(num_iterations=1, num_envs=12, update_epochs=1), guidance.RewardConfig(),
        guidance.PolicyConfig(kind="mlp"), backbone=mixture, scorer=classifier, real=real,
    )  # fmt: skip
    played = guidance.rollout(mixture, trained.config, labels, noise, trained.policy, scorer=classifier)
    assert played.images.shape == noise.shape
    assert bool(played.images.isfinite().all())
    sweep = guidance.sweep_constants(mixture, classifier, real, n_steps=3, spacing="trailing", scales=(0.5, 1.0))
    assert len(sweep.rows) == 2


# -- what a denoiser of a user's own does wrong ----------------------------------------------------------------------


class Wrong:
    """A mixture with one thing changed."""

    def __init__(self, mixture: Mixture, **changes: Any) -> None:
        for name in ("name", "image_shape", "n_classes", "alphas_cumprod", "predict"):
            value = changes.get(name, getattr(mixture, name))
            if value is not None:
                setattr(self, name, value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphas_cumprod": None}, "denoiser Wrong lacks alphas_cumprod"),
        ({"predict": 3}, r"denoiser Wrong lacks predict\(x_t, t, labels\)"),
        ({"image_shape": (4, 5)}, r"denoiser Wrong: image_shape is \(4, 5\)"),
        ({"n_classes": 0}, "n_classes 0"),
        ({"alphas_cumprod": [0.5]}, r"alphas_cumprod is list, need a float tensor \[n_train_timesteps\]"),
        ({"alphas_cumprod": torch.linspace(0.1, 0.9, 10)}, "that falls and lies between 0 and 1"),
        ({"alphas_cumprod": torch.linspace(0.9, 0.0, 10)}, "both excluded"),
        ({"alphas_cumprod": torch.linspace(1.0, 0.1, 10)}, "both excluded"),
        ({"alphas_cumprod": torch.full((10,), float("nan"))}, "that falls and lies between 0 and 1"),
        ({"alphas_cumprod": torch.ones(10, 2)}, r"alphas_cumprod is torch.float32 \[10, 2\]"),
    ],
)
def test_attributes_are_checked_before_anything_is_sampled(
    mixture: Mixture, changes: dict[str, Any], message: str
) -> None:
    wrong = Wrong(mixture, **changes)
    for ask in (check_denoiser, lambda d: GuidedDDIM(d, 5)):
        with pytest.raises(InvalidInputError, match=message):
            ask(wrong)


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda x, t, y: x, "denoiser Wrong predicts a Tensor, need two tensors"),
        (lambda x, t, y: (x, x, x), "predicts a tuple, need two tensors"),
        (lambda x, t, y: (x, x[:, :1]), r"predicts torch.float32 \[6, 1, 4, 5\], need .* \[6, 2, 4, 5\]"),
        (lambda x, t, y: (x.double(), x), "predicts torch.float64"),
        (lambda x, t, y: (x, x / 0 * 0), "predicts NaN or infinity at timestep"),
    ],
)
def test_predictions_are_checked(mixture: Mixture, predict: Any, message: str) -> None:
    wrong: Any = Wrong(mixture, predict=predict)
    labels, noise = started(mixture, 6)
    with pytest.raises(InvalidInputError, match=message):
        GuidedDDIM(wrong, 5).sample(labels, 1.0, noise)
    with pytest.raises(InvalidInputError, match=message):
        GuidedEpisode(wrong, guidance.GuidanceConfig(n_steps=5), None).begin(labels, noise)


def test_large_finite_predictions_pass(mixture: Mixture) -> None:
    wrong: Any = Wrong(mixture, predict=lambda x, t, y: (torch.full_like(x, 3e38), x))
    labels, noise = started(mixture, 6)
    assert GuidedDDIM(wrong, 5).predict(noise, 0, labels)[0].shape == noise.shape
