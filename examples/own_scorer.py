"""An own scorer: what the state's confidence and the reward look through, in place of the reward classifier.

This one is the nearest class mean: p(y | image) = softmax over classes of −‖image − class mean‖² / 20. Its features,
which the distribution term compares, are the pixels.

Python:        train_guidance(..., scorer=NearestMean())
Command line:  qhw train guidance --scorer examples/own_scorer.py:NearestMean
"""

from __future__ import annotations

import torch
from torch import Tensor

from qhw_diffusion.diffusion import load_dataset
from qhw_diffusion.guidance import GuidanceConfig, PolicyConfig, PPOConfig, RewardConfig, train_guidance


class NearestMean:
    """Scores an image by its distances to the mean training image of each class."""

    name = "nearest mean"

    def __init__(self) -> None:
        real = load_dataset("digits", split="train")
        self.means = torch.stack([real.images[real.labels == k].mean(0) for k in range(real.n_classes)]).flatten(1)

    def probability(self, images: Tensor, labels: Tensor) -> Tensor:
        """p(label | image), [B], of images [B, C, H, W] in [−1, 1]."""
        distances = torch.cdist(images.flatten(1), self.means.to(images)).square()
        return (-distances / 20.0).softmax(1).gather(1, labels[:, None]).squeeze(1)

    def features(self, images: Tensor) -> Tensor:
        """The pixels, [B, C·H·W]."""
        return images.flatten(1)


def main() -> None:
    """Two updates of a policy that sees, and is rewarded by, the own scorer."""
    trained = train_guidance(
        GuidanceConfig(n_steps=4, noise_pool=40),
        PPOConfig.short(num_iterations=2, num_envs=20, num_minibatches=2, update_epochs=1),
        RewardConfig(confidence=1.0),
        PolicyConfig(kind="mlp"),
        scorer=NearestMean(),
    )
    last = trained.history[-1]
    print(f"log p(y | image) by the own scorer: {last['reward/confidence']:.3f} on average")
    print(f"spread of the state's confidence entry: {last['state/confidence_std']:.2f}")


if __name__ == "__main__":
    main()
