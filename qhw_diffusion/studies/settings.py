"""Settings of trainings and studies: frozen dataclasses, each field documented, saved as JSON with every result."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from qhw_diffusion.config import Config, require
from qhw_diffusion.errors import UnknownNameError
from qhw_diffusion.guidance import ActorConfig, GuidanceConfig, PPOConfig, RewardConfig
from qhw_diffusion.guidance.schedules import SCHEDULES
from qhw_diffusion.studies.rivals import LABELS


@dataclass(frozen=True)
class ModelConfig(Config):
    """Data set, backbone and the two classifiers. A shipped one is named by its data set, others by their folder."""

    data: str = "digits"
    """Data set: digits, mnist16, mnist28, fashion16 or fashion28."""
    data_root: str | None = None
    """Folder that holds MNIST or FashionMNIST (torchvision's layout); digits need none."""
    backbone: str | None = None
    """Folder of a trained backbone; without it the one shipped for the data set."""
    reward_classifier: str | None = None
    """Folder of the reward classifier; without it the shipped one."""
    judge: str | None = None
    """Folder of the judging classifier; without it the shipped one."""
    reference_images: int = 5000
    """Training images (at most) that the reward side compares with, a fixed random choice."""

    def __post_init__(self) -> None:
        require(self.reference_images >= 10, f"reference_images must be at least 10, got {self.reference_images}")


BASES = ("best", "middle")

# the standard line-up: name → (label in tables, what differs from the study's base actor)
ACTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "quantum": ("quantum, trained under noise", {"kind": "quantum", "engine": "noisy"}),
    "quantum_ideal": ("quantum, trained without noise", {"kind": "quantum", "engine": "ideal"}),
    "chain": ("quantum, chain instead of ring", {"kind": "quantum", "engine": "noisy", "entanglement": "chain"}),
    "reuploading": ("quantum, data re-uploading", {"kind": "quantum", "engine": "noisy", "reuploading": True}),
    "unentangled": ("unentangled circuit", {"kind": "unentangled", "engine": "noisy"}),
    "frozen": ("frozen random circuit", {"kind": "frozen", "engine": "noisy"}),
    "matched": ("MLP, matched size", {"kind": "matched"}),
    "mlp": ("MLP, 9,282 parameters", {"kind": "mlp"}),
    "annealing": ("annealing MLP (2 inputs)", {"kind": "annealing"}),
}


@dataclass(frozen=True)
class StudyConfig(Config):
    """A guidance study: sweep, training, evaluation, everything on the same seeds."""

    models: ModelConfig = field(default_factory=ModelConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig.short)
    actors: tuple[str, ...] = ("quantum", "matched", "frozen")
    """Actors to train."""
    n_steps: int = 6
    """DDIM steps; report them with every claim."""
    spacing: str = "leading"
    """How the timesteps are spread: "leading", "trailing" or "linspace"; see GuidanceConfig."""
    seeds: int = 5
    """Seeds: seed k is one training of every actor and one evaluation of every controller."""
    constants: tuple[float, ...] = (0.8, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0, 5.0)
    """Constant guidance scales to sweep."""
    sweep_images: int = 600
    """Images per constant in the sweep."""
    tune_images: int = 300
    """Images per candidate when a schedule's parameters are tuned."""
    tune_means: tuple[float, ...] = (1.0, 1.25)
    """Mean scales tried for every schedule, in units of the best constant."""
    eval_images: int = 597
    """Images per evaluation."""
    base: str = "best"
    """Base scale g0 of the actors: "best" is the best constant of the sweep; "middle" is the middle of the constants
    whose distance is within three times the best one's, so that there is something to learn before the best constant
    is even reached. The rivals are tuned in either case."""
    action_limit: float = 2.0
    """Largest |ΔCFG|; the guidance range is the base scale ± this, not below 0."""
    starts: int = 1000
    """Starting points (label and noise) a training draws its episodes from; see GuidanceConfig."""
    batch: int = 256
    """Images sampled at a time in sweep and evaluation (a matter of speed only)."""

    def __post_init__(self) -> None:
        for name in self.actors:
            if name not in ACTORS:
                raise UnknownNameError.of("actor", name, ACTORS)
        require(len(set(self.actors)) == len(self.actors), f"actors named twice: {', '.join(self.actors)}")
        require(self.seeds >= 1, f"seeds must be at least 1, got {self.seeds}")
        GuidanceConfig(n_steps=self.n_steps, spacing=self.spacing)  # refuses what no sampler takes
        self.ppo.check_minibatches(self.ppo.rollout_steps or self.n_steps)
        require(self.batch >= 1, f"batch must be at least 1, got {self.batch}")
        for name in ("sweep_images", "tune_images", "eval_images"):
            require(getattr(self, name) >= 20, f"{name} must be at least 20, got {getattr(self, name)}")
        require(
            len(self.constants) >= 2 and all(math.isfinite(g) and g >= 0 for g in self.constants),
            f"constants must be two or more finite scales ≥ 0, got {self.constants}",
        )
        if self.base not in BASES:
            raise UnknownNameError.of("base", self.base, BASES)
        require(
            len(self.tune_means) >= 1 and all(math.isfinite(m) and m > 0 for m in self.tune_means),
            f"tune_means must be positive, got {self.tune_means}",
        )
        object.__setattr__(self, "constants", tuple(sorted(set(self.constants))))

    def actor_config(self, name: str) -> ActorConfig:
        """Settings of one actor of the line-up."""
        return self.actor.replace(**ACTORS[name][1])

    def evaluated(self) -> tuple[str, ...]:
        """Everything that is evaluated on every seed: schedules, actors, and the quantum policy's other guises.

        `quantum@ideal` is the policy trained under noise, run without; `quantum@untrained` the same policy before
        training.
        """
        guises = ("quantum@ideal", "quantum@untrained") if "quantum" in self.actors else ()
        return (*SCHEDULES, *self.actors, *guises)


def label_of(controller: str) -> str:
    """What a controller is called in tables."""
    if controller in LABELS:
        return LABELS[controller]
    name, _, guise = controller.partition("@")
    if guise == "untrained":
        return "quantum, untrained"
    return f"{ACTORS[name][0]}, run without" if guise == "ideal" else ACTORS[name][0]
