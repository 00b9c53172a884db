"""A diffusion model of your own: any object with four attributes and `predict`, here one that needs no training.

Each class of digits is taken for a Gaussian around its mean image, of which the noise prediction is known exactly:
ε = √(1−ᾱ) (x_t − √ᾱ·mean) / (ᾱ·variance + 1 − ᾱ). A network of yours, or a diffusers pipeline, is wrapped the same way.

Python:        GuidedDDIM(model), rollout(model, …), train_guidance(…, backbone=model)
Command line:  none; a backbone trained by `qhw train backbone` is named by its folder, any other model is an object.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qhw_diffusion import diffusion
from qhw_diffusion.guidance import GuidanceConfig, PolicyConfig, PPOConfig, RewardConfig, train_guidance


class Gaussians:
    """One Gaussian a class, and one of all images for no label."""

    name = "digits"
    image_shape = (1, 8, 8)
    n_classes = 10
    alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)  # the schedule of DDPM

    def __init__(self) -> None:
        real = diffusion.load_dataset("digits", "train")
        groups = [real.images[real.labels == k] for k in range(real.n_classes)] + [real.images]
        self.means = torch.stack([group.mean(0) for group in groups])
        self.variances = torch.stack([group.var(0) for group in groups])

    def predict(self, x_t: Tensor, t: int, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Noise predictions with the labels and without any, each [B, C, H, W]."""
        return self._noise(x_t, t, labels), self._noise(x_t, t, torch.full_like(labels, self.n_classes))

    def _noise(self, x_t: Tensor, t: int, row: Tensor) -> Tensor:
        alpha = self.alphas_cumprod[t]
        deviation = x_t - alpha.sqrt() * self.means[row]
        return (1 - alpha).sqrt() * deviation / (alpha * self.variances[row] + 1 - alpha)


def main() -> None:
    """Sample it, then train a policy on it for two updates."""
    torch.set_num_threads(1)
    model = Gaussians()
    diffusion.check_denoiser(model)
    labels = torch.arange(200) % 10
    noise = torch.randn(200, *model.image_shape, generator=torch.Generator().manual_seed(0))
    images = diffusion.GuidedDDIM(model, n_steps=10).sample(labels, 1.5, noise)
    classifier = diffusion.Classifier.load("digits", "evaluation")
    found = diffusion.evaluate_samples(images, labels, classifier, diffusion.load_dataset("digits", "heldout"))
    print(f"samples: {found['accuracy']:.0%} as asked for, FD {found['fd']:.1f}")
    trained = train_guidance(
        GuidanceConfig(n_steps=6, noise_pool=40),
        PPOConfig.short(num_iterations=2, num_envs=20, num_minibatches=2, update_epochs=1),
        RewardConfig(),
        PolicyConfig(kind="mlp"),
        backbone=model,
    )
    print(f"trained on it: return {trained.history[-1]['charts/episodic_return']:.3f}")


if __name__ == "__main__":
    main()
