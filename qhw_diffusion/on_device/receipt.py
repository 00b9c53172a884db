"""What an evaluation on a device was: its jobs, their charges and calibrations; and what its run is called there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from qhw_diffusion.execution import Engine, SamplerEngine
from qhw_diffusion.runs import RunFolder


@dataclass(frozen=True)
class Receipt:
    """What one evaluation was on the device.

    job_ids: of the jobs whose results are used; qpu_seconds: charged for all of its jobs, None until stated;
    unused_jobs: failed attempts and duplicates, which may have been charged too: job_id, qpu_seconds, why;
    reused_jobs: those of `job_ids` whose results were in the ledger before this process asked for them;
    calibrations: of the device when these jobs were sent, each once: date (None if not stated) and snapshot (SHA-256).
    """

    job_ids: tuple[str, ...] = ()
    qpu_seconds: float | None = None
    unused_jobs: tuple[dict[str, Any], ...] = ()
    reused_jobs: tuple[str, ...] = ()
    calibrations: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Receipt:
        """From `to_dict`, also of earlier versions. Raises KeyError or TypeError for something else."""
        lists = {name: tuple(told.get(name, ())) for name in ("unused_jobs", "reused_jobs", "calibrations")}
        return cls(tuple(told["job_ids"]), told["qpu_seconds"], **lists)

    @property
    def calibrations_text(self) -> str:
        """Dates of the calibrations, for a table; empty where none was noted."""
        return ", then ".join(str(one["date"] or f"no date ({one['snapshot'][:8]})") for one in self.calibrations)

    @property
    def jobs_text(self) -> str:
        """Ids of the jobs, for a table."""
        used = [f"{job} (from the ledger)" if job in self.reused_jobs else job for job in self.job_ids]
        unused = [f"{job['job_id']} ({job['why']})" for job in self.unused_jobs]
        return "; before that ".join(", ".join(ids) for ids in (used, unused) if ids)


class Access(Protocol):
    """Where circuits are evaluated; `access.DeviceAccess` is the one for devices."""

    def engine(self, purpose: str) -> Engine:
        """An engine whose jobs are filed under `purpose`. A purpose that has run gives its stored results."""

    def sampler(self, purpose: str) -> SamplerEngine:
        """A Sampler whose jobs are filed likewise."""

    def receipt(self, purpose: str) -> Receipt:
        """What the evaluation filed under `purpose` was."""


def run_name(folder: RunFolder, device: str) -> str:
    """What a ledger files the jobs of this run on this device under.

    On a paid device no other run has that name, so that a run measures anew and has a cap of its own, even where
    another folder has the same name or was replaced. On a simulated one the outcomes depend on the name, and are to be
    the same again: there it is the folder's, as it was made. Renaming the folder changes neither.
    """
    return f"{folder.name}-{folder.id}" if folder.id and device.startswith("ibm_") else folder.name
