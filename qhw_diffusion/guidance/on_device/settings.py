"""What a fine-tuning of a policy on a device is: its configuration.

Light: the command line shows them without loading what runs circuits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qhw_diffusion.config import require
from qhw_diffusion.on_device.settings import TuningConfig

if TYPE_CHECKING:
    from qhw_diffusion.guidance import PPOConfig

# of one update: their parameters have to fit into memory to be sent
MOST_ENVS = 1_000_000


@dataclass(frozen=True)
class FineTuneConfig(TuningConfig):
    """What decides the numbers of a policy's fine-tuning; it goes on with exactly these."""

    num_envs: int = 40
    """Images sampled in an update: rows of every job of its rollout."""
    epochs: int = 1
    """Passes over each rollout. From the second gradient step on the states are measured anew."""
    minibatches: int = 1
    """Minibatches per pass, of sizes that differ by one at most."""
    lr_circuit: float = 2e-2
    """Learning rate of the circuit's weights and input scales."""
    lr_head: float = 3e-3
    """Learning rate of the head."""
    lr_critic: float = 3e-3
    """Learning rate of the critic."""
    clip: float = 0.2
    """Clipping range of the probability ratio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_envs <= MOST_ENVS, f"num_envs is {self.num_envs}; allowed: at most {MOST_ENVS:,}")
        for name in ("epochs", "minibatches"):  # which have other names in `PPOConfig`
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")

    def ppo(self, trained: PPOConfig) -> PPOConfig:
        """The trained settings with those of the fine-tuning; rates stay constant. Validated by `PPOConfig`."""
        return trained.replace(
            num_iterations=self.updates,
            num_envs=self.num_envs,
            update_epochs=self.epochs,
            num_minibatches=self.minibatches,
            num_steps=None,
            learning_rate_circuit=self.lr_circuit,
            learning_rate_head=self.lr_head,
            learning_rate_critic=self.lr_critic,
            learning_rate_final=1.0,
            clip_coef=self.clip,
            seed=self.seed,
            checkpoint_every=1,
        )
