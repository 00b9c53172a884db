"""What a fine-tuning on a device is, and what it is compared with: configurations.

Light: the command line shows them without loading what runs circuits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qhw_diffusion.config import Config, require
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.on_device.settings import check_shots

if TYPE_CHECKING:
    from qhw_diffusion.execution import GradientMethod
    from qhw_diffusion.guidance import PPOConfig

GRADIENTS = ("surrogate", "spsa", "parameter-shift")


# of one update: their parameters have to fit into memory to be sent
MOST_ENVS = 1_000_000
# of an evaluation, which holds all of them: a fine-tuning is paid for before it finds out
MOST_IMAGES = 100_000


@dataclass(frozen=True)
class FineTuneConfig(Config):
    """What decides the numbers of a fine-tuning; it goes on with exactly these."""

    run: str
    """Run folder of the trained policy."""
    device: str
    """Device the circuits run on."""
    shots: int
    """Shots per circuit."""
    gradient: str = "surrogate"
    """Source of the gradients: "surrogate" (the simulated noise of the device's snapshot; costs no circuits),
    "spsa" (two circuits per state and gradient step) or "parameter-shift" (two circuits per rotation gate)."""
    updates: int = 3
    """PPO updates."""
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
    seed: int = 0
    """Seed of action noise, starting points, minibatches and SPSA's directions."""
    resilience_level: int | None = None
    """Resilience level of the runtime client."""
    mitigation: str = ""
    """Strategies of `qhw_diffusion.mitigation`."""
    ledger: str = ""
    """Folder of the ledger that holds the jobs."""

    def __post_init__(self) -> None:
        from qhw_diffusion.mitigation import strategies_of

        strategies_of(self.mitigation)  # a mistyped strategy is told now
        if self.gradient not in GRADIENTS:
            raise UnknownNameError.of("gradient", self.gradient, GRADIENTS)
        whole = isinstance(self.shots, int) and not isinstance(self.shots, bool)
        require(whole and self.shots >= 1, f"shots is {self.shots!r}; allowed: whole numbers from 1")
        check_shots(self.shots)
        require(self.num_envs <= MOST_ENVS, f"num_envs is {self.num_envs}; allowed: at most {MOST_ENVS:,}")
        for name in ("updates", "epochs", "minibatches"):  # which have other names in `PPOConfig`
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

    def method(self, update: int) -> GradientMethod:
        """The gradient method of one update.

        SPSA starts anew in every update, so that one that is repeated repeats its directions.
        """
        from qhw_diffusion.execution import SPSA, ParameterShift, Surrogate

        if self.gradient == "spsa":
            return SPSA(seed=1_000 * self.seed + update)
        return ParameterShift() if self.gradient == "parameter-shift" else Surrogate("noisy")


@dataclass(frozen=True)
class ComparisonConfig(Config):
    """Evaluation before and after a fine-tuning, simulated with the device's noise."""

    seeds: int = 5
    """Seeds of the comparison."""
    images: int = 500
    """Images per seed of the comparison."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.images < 20:
            raise InvalidInputError(f"at least 1 seed and 20 images are needed, not {self.seeds} and {self.images}")
        require(self.images <= MOST_IMAGES, f"images is {self.images}; allowed: at most {MOST_IMAGES:,} a seed")
