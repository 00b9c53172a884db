"""Settings of `qhw study shots`."""

from __future__ import annotations

from dataclasses import dataclass, field

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.studies.settings import Settings
from qhw_diffusion.studies.subjects import SubjectsConfig

# A training: what the circuit's values and gradients come from, and what is trained.
ARMS = {
    "exact": "exact values and gradients",
    "shift": "parameter-shift",
    "spsa": "SPSA",
    "surrogate": "sampled values, simulated gradients",
    "frozen": "frozen random circuit",
}


@dataclass(frozen=True)
class ShotsStudyConfig(Settings):
    """What finite shots do to values, gradients, images, the denoiser and PPO."""

    subjects: SubjectsConfig = field(default_factory=SubjectsConfig)
    shots: tuple[int, ...] = (16, 64, 256, 1024, 4096, 16384)
    """Shots per circuit."""
    states: int = 64
    """States of the policy at which values are repeated."""
    repeats: int = 200
    """Repetitions of every value."""
    gradient_repeats: int = 100
    """Repetitions of every gradient."""
    spsa_size: float = 0.3
    """Size of SPSA's perturbation, radians."""
    learn_shots: tuple[int, ...] = (1, 4, 16, 64, 1024)
    """Shots per circuit in trainings by parameter-shift."""
    other_shots: tuple[int, ...] = (4, 64)
    """Shots per circuit in the other trainings: SPSA, simulated gradients, frozen circuit."""

    def __post_init__(self) -> None:
        for name in ("shots", "learn_shots", "other_shots"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given) or min(given) < 1:
                raise InvalidInputError(f"{name} must be different whole numbers from 1, given {given}")
            object.__setattr__(self, name, tuple(sorted(given)))
        if self.states < 1 or self.repeats < 2 or self.gradient_repeats < 2:
            raise InvalidInputError("states must be at least 1, repeats and gradient_repeats at least 2")
        if not self.spsa_size > 0:
            raise InvalidInputError(f"spsa_size must be positive, got {self.spsa_size}")

    def arms(self) -> list[str]:
        """Trainings of a seed, ``arm`` or ``arm:shots``; with the head trained ``…+head``."""
        circuit = ["exact", *(f"shift:{n}" for n in self.learn_shots)]
        circuit += [f"{arm}:{n}" for arm in ("spsa", "surrogate") for n in self.other_shots]
        return [*circuit, "exact+head", "frozen+head", *(f"frozen:{n}+head" for n in self.other_shots)]


def arm_label(arm: str) -> str:
    """What a table calls a training."""
    name, _, shots = arm.removesuffix("+head").partition(":")
    text = ARMS[name] + (f", {int(shots):,} shot{'s' * (int(shots) > 1)}" if shots else "")
    return text + (", head trained" if arm.endswith("+head") else "")


QUICK = ShotsStudyConfig(
    subjects=SubjectsConfig(
        updates=8,
        num_envs=40,
        epochs=1,
        starts=80,
        eval_images=100,
        denoiser_iterations=60,
        autoencoder_steps=300,
        seeds=2,
    ),
    shots=(64, 1024),
    states=16,
    repeats=40,
    gradient_repeats=20,
    learn_shots=(16, 256),
    other_shots=(64,),
)
