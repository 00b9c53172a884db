"""Settings of `qhw study mitigation`, and the strategies it compares."""

from __future__ import annotations

from dataclasses import dataclass, field

from qhw_diffusion.config import Config as Settings
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Engine
from qhw_diffusion.mitigation import Mitigated, strategy_of
from qhw_diffusion.studies.reference_models import ReferenceModelsConfig

# key → (what tables call it, strategies from the engine outwards, whether the circuit is compiled with a schedule)
STRATEGIES: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "none": ("none", (), False),
    "readout-snapshot": ("readout, from the calibration data", ("readout",), False),
    "readout": ("readout, measured", ("readout:measured",), False),
    "zne": ("ZNE linear 1, 3", ("zne:linear:1,3",), False),
    "readout+zne": ("readout + ZNE linear 1, 3", ("readout:measured", "zne:linear:1,3"), False),
    "readout+zne5": ("readout + ZNE linear 1, 3, 5", ("readout:measured", "zne:linear:1,3,5"), False),
    "readout+exponential": ("readout + ZNE exponential 1, 3", ("readout:measured", "zne:exponential:1,3"), False),
    "readout+richardson": ("readout + ZNE Richardson 1, 3, 5", ("readout:measured", "zne:richardson:1,3,5"), False),
    "readout+twirling": ("readout + twirling, 8 circuits", ("readout:measured", "twirling:8"), False),
    "scheduled": ("none, scheduled", (), True),
    "decoupling": ("decoupling X-X, scheduled", ("decoupling:xx",), True),
    "readout+mitiq-zne": ("readout + Mitiq ZNE, global, 1, 3", ("readout:measured", "mitiq-zne:linear:1,3"), False),
    "readout+mitiq-lre": ("readout + Mitiq LRE, 4 chunks", ("readout:measured", "mitiq-lre"), False),
    "mitiq-cdr": ("Mitiq CDR, 24 circuits", ("mitiq-cdr",), False),
    "readout+mitiq-pec": ("readout + Mitiq PEC, 24 samples", ("readout:measured", "mitiq-pec:24"), False),
}
# What an evaluation is repeated less often for: with more than 8 circuits for one, simulating it takes long.
HEAVY = ("readout+twirling", "readout+mitiq-pec")
STEERING = ("none", "readout", "readout+zne", "mitiq-cdr")
DEVICES = {"fake_brisbane": "Eagle", "fake_marrakesh": "Heron", "fake_nighthawk": "Nighthawk"}


@dataclass(frozen=True)
class MitigationStudyConfig(Settings):
    """Mitigation strategies on devices and shots, for the policy circuit and a denoiser's step."""

    subjects: ReferenceModelsConfig = field(default_factory=lambda: ReferenceModelsConfig(eval_images=300, seeds=3))
    devices: tuple[str, ...] = tuple(DEVICES)
    """Fake devices or snapshots."""
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    """Strategies, `none` among them."""
    steering: tuple[str, ...] = STEERING
    """Strategies under which the policy steers images."""
    shots: tuple[int, ...] = (1024, 4096, 16384)
    """Shots: for a value in all, and again per circuit."""
    steering_shots: tuple[int, ...] = (4096,)
    """Shots for a value in all, while images are steered."""
    states: int = 48
    """States of the policy at which it is evaluated."""
    repeats: int = 8
    """Repetitions of these, each with a calibration of its own; a quarter for strategies of many circuits."""
    denoiser_rows: int = 200
    """Images of the denoiser."""

    def __post_init__(self) -> None:
        for name in (*self.strategies, *self.steering):
            if name not in STRATEGIES:
                raise UnknownNameError.of("mitigation strategy of the study", name, STRATEGIES)
        if "none" not in self.strategies or "none" not in self.steering:
            raise InvalidInputError("strategies and steering must hold 'none', with which the others are compared")
        if not self.devices or not self.shots or min(*self.shots, *self.steering_shots) < 64:
            raise InvalidInputError(
                f"give at least one device, and shots from 64; given {self.devices}, {self.shots}, "
                f"{self.steering_shots}"
            )
        if self.states < 2 or self.repeats < 2 or self.denoiser_rows < 20:
            raise InvalidInputError("states and repeats must be at least 2, denoiser_rows at least 20")


def mitigated(engine: Engine, name: str) -> Engine:
    """A new engine behind this strategy of the study; `engine` itself for those without."""
    texts = STRATEGIES[name][1]
    return Mitigated(engine, [strategy_of(text) for text in texts]) if texts else engine


def is_scheduled(name: str) -> bool:
    """Whether the circuit is compiled with a schedule for this strategy."""
    return STRATEGIES[name][2]


def label_of(name: str) -> str:
    """What tables call a strategy."""
    return STRATEGIES[name][0]


QUICK = MitigationStudyConfig(
    subjects=ReferenceModelsConfig(
        updates=8,
        num_envs=40,
        epochs=1,
        starts=80,
        eval_images=60,
        denoiser_iterations=60,
        autoencoder_steps=300,
        seeds=2,
    ),
    devices=("fake_manila",),
    strategies=("none", "readout", "zne", "readout+zne"),
    steering=("none", "readout+zne"),
    shots=(4096,),
    states=12,
    repeats=4,
    denoiser_rows=60,
)
