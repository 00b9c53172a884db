"""How circuits get to a device: the configuration that every command with jobs shares.

Light: the command line shows it without loading what runs circuits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qhw_diffusion.config import Config, require

if TYPE_CHECKING:
    from qhw_diffusion.mitigation.strategy import Strategy


def check_shots(shots: int) -> None:
    """Check that one circuit with so many shots fits into a job.

    Raises:
        InvalidInputError: it does not.
    """
    from qhw_diffusion.hardware.split import JobLimits

    most = JobLimits().executions
    require(shots <= most, f"shots is {shots}; allowed: at most {most:,}, as many executions as a job may hold")


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
