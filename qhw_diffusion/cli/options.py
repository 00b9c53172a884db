"""Options that several commands share, once each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qhw_diffusion.errors import InvalidInputError

if TYPE_CHECKING:
    from qhw_diffusion.on_device.settings import AccessConfig


# of one study, on a cluster too
MOST_WORKERS = 10_000


@dataclass(frozen=True)
class StudyOptions:
    """How a study is run, and what is written about it."""

    workers: int = max(1, min(2, os.cpu_count() or 1))
    """Processes side by side, one thread each."""
    quick: bool = False
    """Little of everything: to see it run, not to conclude."""
    dry_run: bool = False
    """Print the cells and about how many minutes they take, and stop."""
    report_only: bool = False
    """Render the report of a finished study again."""
    markdown: Path | None = None
    """Markdown page to write as well."""
    figures: Path | None = None
    """Folder of the plots as PNGs, with --markdown."""

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MOST_WORKERS:
            raise InvalidInputError(f"workers must be at least 1, at most {MOST_WORKERS:,}, got {self.workers}")


def access_given(given: Mapping[str, Any], device: str | None) -> AccessConfig | None:
    """Access to a device as the flags ask for it; None without --shots, where everything is simulated here.

    Raises:
        InvalidInputError: flags of a run on a device without --shots, or --shots without --device.
    """
    if "shots" not in given:
        if given:
            flag = next(iter(given)).replace("_", "-")
            raise InvalidInputError(f"--{flag} is for a run on a device, and so needs --shots and --device")
        return None
    if device is None:
        raise InvalidInputError("a run on a device needs its name and the shots: give --device and --shots")
    return required_access({**given, "device": device})


def required_access(given: Mapping[str, Any]) -> AccessConfig:
    """Access to a device; its ledger is absolute, so that a run that goes on from another folder finds its results.

    Raises:
        InvalidInputError: no device or no shots.
    """
    from qhw_diffusion.hardware.ledger import ledger_folder
    from qhw_diffusion.on_device.settings import AccessConfig

    if "device" not in given or "shots" not in given:
        raise InvalidInputError("a run on a device needs its name and the shots: give --device and --shots")
    return AccessConfig(**{**given, "ledger": os.path.realpath(ledger_folder(given.get("ledger")))})
