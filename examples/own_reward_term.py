"""An own reward term for the guidance policy: images with as much ink as the training images of their class.

A term is a function of a `StepView` that gives one number per sample, larger is better. It is logged under its name and
is part of every return that is reported.

Python:        train_guidance(..., terms=[(0.5, ink)])
Command line:  qhw train guidance --reward-extra "0.5*examples/own_reward_term.py:ink"
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from qhw_diffusion.diffusion import load_dataset
from qhw_diffusion.guidance import GuidanceConfig, PolicyConfig, PPOConfig, RewardConfig, StepView, train_guidance


@cache
def _class_ink() -> Tensor:
    """Mean pixel of the training images of each class, [10]."""
    real = load_dataset("digits", split="train")
    return torch.stack([real.images[real.labels == k].mean() for k in range(real.n_classes)])


def ink(step: StepView) -> Tensor:
    """−|mean pixel − mean pixel of the class|, [B], of the final images."""
    return -(step.x0.flatten(1).mean(1) - _class_ink().to(step.x0)[step.labels]).abs()


# After every step instead of on the final images only: ink.per_step = True


def main() -> None:
    """Two updates with the built-in distribution term and the own one."""
    trained = train_guidance(
        GuidanceConfig(n_steps=4, noise_pool=40),
        PPOConfig.short(num_iterations=2, num_envs=20, num_minibatches=2, update_epochs=1),
        RewardConfig(distribution=1.0),
        PolicyConfig(kind="mlp"),
        terms=[(0.5, ink)],
    )
    last = trained.history[-1]
    print(f"logged: reward/ink = {last['reward/ink']:.4f}, reward/distribution = {last['reward/distribution']:.4f}")
    print(f"saved in config.json: extra = {list(trained.reward.extra)}")


if __name__ == "__main__":
    main()
