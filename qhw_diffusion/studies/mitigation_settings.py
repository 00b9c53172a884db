"""Settings of `qhw study mitigation`, and the strategies it compares."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from qhw_diffusion.config import Config as Settings
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import Engine
from qhw_diffusion.mitigation import NOISE_DATA, Mitigated, Need, Strategy, strategies_of
from qhw_diffusion.studies.reference_models import ReferenceModelsConfig

# Texts of strategies (`mitigation.strategies_of`), from the engine outwards; and two without any, the second one on a
# circuit that is compiled with a schedule
NONE, SCHEDULED = "none", "scheduled"
READOUT, READOUT_ZNE = "readout:measured", "readout:measured+zne:linear:1,3"
STRATEGIES = (
    NONE,
    "readout",
    READOUT,
    "zne:linear:1,3",
    READOUT_ZNE,
    "readout:measured+zne:linear:1,3,5",
    "readout:measured+zne:exponential:1,3",
    "readout:measured+zne:richardson:1,3,5",
    "readout:measured+twirling:8",
    SCHEDULED,
    "decoupling:xx",
    "readout:measured+mitiq-zne:linear:1,3:global:0",
    "readout:measured+mitiq-lre:1:4:1",
    "mitiq-cdr:24:0.5:shared:0",
    "readout:measured+mitiq-pec:24:0",
)
STEERING = (NONE, READOUT, READOUT_ZNE, "mitiq-cdr:24:0.5:shared:0")
DEVICES = {"fake_brisbane": "Eagle", "fake_marrakesh": "Heron", "fake_nighthawk": "Nighthawk"}


@dataclass(frozen=True)
class MitigationStudyConfig(Settings):
    """Mitigation strategies on devices and shots, for the policy circuit and a denoiser's step."""

    subjects: ReferenceModelsConfig = field(default_factory=lambda: ReferenceModelsConfig(eval_images=300, seeds=3))
    devices: tuple[str, ...] = tuple(DEVICES)
    """Fake devices or snapshots."""
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    """Strategies as texts such as readout+zne:linear:1,3 or file.py:name, `none` among them."""
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
        for field_name in ("strategies", "steering"):
            object.__setattr__(self, field_name, _spelled(getattr(self, field_name)))
        if NONE not in self.strategies or NONE not in self.steering:
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
    strategies = strategies_in(name)
    return Mitigated(engine, strategies) if strategies else engine


def strategies_in(name: str) -> list[Strategy]:
    """The strategies of a name, made anew; none of "none" and "scheduled"."""
    return [] if name in (NONE, SCHEDULED) else strategies_of(name)


def is_scheduled(name: str) -> bool:
    """Whether the circuit is compiled with a schedule for this strategy."""
    return name == SCHEDULED or any(Need.SCHEDULE in strategy.needs for strategy in strategies_in(name))


def knows_the_noise(name: str) -> bool:
    """Whether it is told the simulated noise exactly, as no calibration of a device knows the device."""
    return any(strategy.needs & NOISE_DATA for strategy in strategies_in(name))


def label_of(name: str) -> str:
    """What tables call a strategy."""
    label = " + ".join(strategy.label for strategy in strategies_in(name)) or NONE
    return f"{label}, scheduled" if is_scheduled(name) else label


def _spelled(names: Iterable[str]) -> tuple[str, ...]:
    """Each text as its strategies write it, so that one strategy has one name.

    Where a list was split at all of its commas, what begins with a digit goes on with the scale factors before it.
    """
    texts = re.split(r",(?=[^\d.])", ",".join(names))
    return tuple("+".join(strategy.spec or strategy.label for strategy in strategies_in(t)) or t for t in texts)


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
    strategies=(NONE, READOUT, "zne:linear:1,3", READOUT_ZNE),
    steering=(NONE, READOUT_ZNE),
    shots=(4096,),
    states=12,
    repeats=4,
    denoiser_rows=60,
)
