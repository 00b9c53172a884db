"""Settings of trainings and studies: frozen dataclasses, each field documented, saved as JSON with every result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from qhw_diffusion.config import Config, require
from qhw_diffusion.guidance import GuidanceConfig, PolicyConfig, PPOConfig, RewardConfig

_RENAMED = {"judge": "evaluation_classifier"}  # former names of fields of ModelConfig, in saved folders


@dataclass(frozen=True)
class ModelConfig(Config):
    """Data set, backbone and the two classifiers. A shipped one is named by its data set, others by their folder."""

    data: str = "digits"
    """Data set: digits, mnist16, mnist28, fashion16, fashion28, module:name or file.py:name."""
    data_root: str | None = None
    """Folder that holds MNIST or FashionMNIST (torchvision's layout); digits need none."""
    backbone: str | None = None
    """Folder of a trained backbone; without it the one shipped for the data set."""
    reward_classifier: str | None = None
    """Folder of the reward classifier; without it the shipped one."""
    evaluation_classifier: str | None = None
    """Folder of the evaluation (held-out) classifier; without it the shipped one."""
    reference_images: int = 5000
    """Training images (at most) that the reward side compares with, a fixed random choice."""

    def __post_init__(self) -> None:
        require(self.reference_images >= 10, f"reference_images must be at least 10, got {self.reference_images}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `Config.from_dict`; settings of folders saved under former names are read as now."""
        if isinstance(values, Mapping):
            values = {_RENAMED.get(name, name): value for name, value in values.items()}
        return super().from_dict(values)


@dataclass(frozen=True)
class GuidanceTraining(Config):
    """Everything that decides one training of a guidance policy."""

    models: ModelConfig = field(default_factory=ModelConfig)
    """Data set, backbone and classifiers."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Sampler and state; its data set is that of `models`."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Reward terms."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Training."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Policy, device and engine."""
    sweep_images: int = 512
    """Images per constant in the sweep that finds g0 and the range; 0 for no sweep, as where g0 is given."""

    def __post_init__(self) -> None:
        extra = self.policy.kind == "annealing" or self.guidance.extra_state
        guidance = self.guidance.replace(dataset=self.models.data, extra_state=extra)
        object.__setattr__(self, "guidance", guidance)
        require(self.sweep_images >= 0, f"sweep_images must not be negative, got {self.sweep_images}")
        # told now, not after the sweep
        self.ppo.check_minibatches(self.ppo.num_steps or guidance.n_steps)
