"""How circuits get to a device, and what is asked for there: configurations that commands with jobs share.

Light: the command line shows them without loading what runs circuits.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Self

from qhw_diffusion.config import Config, require
from qhw_diffusion.errors import InvalidInputError, UnknownNameError

if TYPE_CHECKING:
    from qhw_diffusion.execution import GradientMethod
    from qhw_diffusion.mitigation.strategy import Strategy

GRADIENTS = ("surrogate", "spsa", "parameter-shift")
# of an evaluation, which holds all of them: a fine-tuning is paid for before it finds out
MOST_IMAGES = 100_000


def check_shots(shots: int) -> None:
    """Check that one circuit with so many shots fits into a job.

    Raises:
        InvalidInputError: it does not.
    """
    from qhw_diffusion.hardware.split import JobLimits

    most = JobLimits().executions
    require(shots <= most, f"shots is {shots}; allowed: at most {most:,}, as many executions as a job may hold")


def check_positive(**values: object) -> None:
    """Check that each of these is a whole number from 1.

    Raises:
        InvalidInputError: one is not.
    """
    for name, value in values.items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(whole, f"{name} is {value!r}; allowed: whole numbers from 1")


def check_drawn(images: int, seed: int, most: int) -> None:
    """Check how many images are drawn together, and from which seed.

    Raises:
        InvalidInputError: images are no whole number from 1 to `most`, or the seed is none of 64 bits.
    """
    check_positive(images=images)
    require(images <= most, f"images is {images}; allowed: up to {most:,}")
    whole = isinstance(seed, int) and not isinstance(seed, bool) and -(2**63) <= seed < 2**63
    require(whole, f"seed is {seed!r}; allowed: whole numbers of 64 bits")


@dataclass(frozen=True)
class AccessConfig(Config):
    """How circuits get to the device: shots, mode of the jobs, caps, mitigation, ledger."""

    device: str
    """Device the circuits run on: ibm_… or fake_…."""
    shots: int
    """Shots per circuit."""
    mode: Literal["batch", "job", "session"] = "batch"
    """Mode in which jobs are sent."""
    max_qpu_seconds: float | None = None
    """Cap on this run's QPU seconds, all its jobs together; needed on a paid device."""
    max_session_seconds: int | None = None
    """Wall-clock seconds after which a session is closed."""
    retry_failed: bool = False
    """Send jobs again that failed in an earlier call (within the cap)."""
    resilience_level: Literal[0, 1, 2] | None = None
    """Resilience level of the runtime client (real devices only); without it 0."""
    mitigation: str = ""
    """Mitigation strategies of this package, the one next to the device first, such as readout+zne:linear:1,3."""
    ledger: str = ""
    """Folder of the ledger, where every job and its result is kept; without it $QHW_LEDGER, else runs/ledger."""

    def __post_init__(self) -> None:
        from qhw_diffusion.hardware.modes import check_mode, check_seconds
        from qhw_diffusion.hardware.service import precision_of

        self.strategies()  # a mistyped strategy is told now, and so is what the runner refuses
        check_mode(self.mode)
        check_seconds(max_qpu_seconds=self.max_qpu_seconds, max_session_seconds=self.max_session_seconds)
        precision_of(self.shots)
        check_shots(self.shots)

    def strategies(self) -> list[Strategy]:
        """The mitigation strategies, made anew.

        Raises:
            UnknownNameError: no such strategy.
            InvalidInputError: settings that a strategy does not take.
        """
        from qhw_diffusion.mitigation import strategies_of

        return strategies_of(self.mitigation)


@dataclass(frozen=True)
class OnDeviceConfig(Config):
    """What decides the numbers of whatever runs on a device; it goes on with exactly these."""

    run: str
    """Run folder of what was trained."""
    device: str
    """Device the circuits run on."""
    shots: int
    """Shots per circuit."""
    _: KW_ONLY  # by position, what a subclass adds follows the shots
    resilience_level: int | None = None
    """Resilience level of the runtime client; None leaves it to the engine."""
    mitigation: str = ""
    """Strategies of `qhw_diffusion.mitigation`, such as "readout+zne"."""
    ledger: str = ""
    """Folder of the ledger that holds the jobs."""

    def __post_init__(self) -> None:
        from qhw_diffusion.mitigation import strategies_of

        strategies_of(self.mitigation)  # a mistyped strategy is told now
        check_positive(shots=self.shots)
        check_shots(self.shots)

    @classmethod
    def through(cls, access: AccessConfig, run: str | PathLike[str], **own: Any) -> Self:
        """What is asked for of a run folder, by this access to a device; `own`: the fields of a subclass."""
        names = [f.name for f in fields(OnDeviceConfig) if f.name != "run"]
        return cls(run=str(run), **{name: getattr(access, name) for name in names}, **own)


@dataclass(frozen=True)
class TuningConfig(OnDeviceConfig):
    """What every fine-tuning on a device has; it goes on with exactly these."""

    gradient: str = "surrogate"
    """Source of the gradients: "surrogate" (the simulated noise of the device's snapshot; costs no circuits),
    "spsa" (two circuits per state and gradient step) or "parameter-shift" (two circuits per rotation gate)."""
    updates: int = 3
    """Updates: of PPO, or of a denoiser's weights."""
    seed: int = 0
    """Seed of action noise, starting points, minibatches, data and SPSA's directions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient not in GRADIENTS:
            raise UnknownNameError.of("gradient", self.gradient, GRADIENTS)
        require(self.updates >= 1, f"updates must be at least 1, got {self.updates}")

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
