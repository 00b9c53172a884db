"""Where a run goes, as a user gives it: the folder, and whether a run that is there is replaced or gone on with.

Light: the command line shows its options without loading what writes a run folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qhw_diffusion.errors import InvalidInputError

if TYPE_CHECKING:
    from qhw_diffusion.runs.folder import RunFolder


@dataclass(frozen=True)
class Place:
    """Run folder to write."""

    out: Path
    """Run folder to write."""
    overwrite: bool = False
    """Replace an earlier run of the same kind in the folder (nothing else), once the new one has begun."""
    resume: bool = False
    """Go on with the run in the folder, bit for bit."""
    command: str = ""
    """Command line that the run folder records."""

    def check(self, kind: str) -> None:
        """Check that a new run of this kind may go there, or with `resume` go on there; nothing is changed.

        Every command asks this before its work: what the folder holds is told at once, and `overwrite` deletes nothing
        until all settings have been checked and work begins (`RunFolder.create`).

        Raises:
            InvalidInputError: overwrite together with resume.
            RunFolderError: as `check_place` and `RunFolder.open`.
        """
        from qhw_diffusion.runs.folder import RunFolder, check_place

        if not self.resume:
            check_place(self.out, kind=kind, overwrite=self.overwrite)
            return
        if self.overwrite:
            raise InvalidInputError("--overwrite and --resume contradict each other: give one of them")
        RunFolder.open(self.out, kind=kind)

    def saved(self, kind: str) -> dict[str, Any] | None:
        """Settings of the run that goes on; None where a new one begins."""
        from qhw_diffusion.runs.folder import RunFolder

        self.check(kind)
        return RunFolder.open(self.out, kind=kind).config if self.resume else None

    def open(
        self,
        kind: str,
        config: Mapping[str, Any],
        read: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    ) -> RunFolder:
        """The run folder, made anew, or with `resume` opened after its settings were compared with `config`.

        Args:
            kind: kind of run.
            config: its settings, JSON types.
            read: turns settings that an earlier version saved into those of today.

        Raises:
            RunFolderError: as `check`, or the run was started with other settings.
        """
        from qhw_diffusion.runs.folder import RunFolder

        self.check(kind)
        if not self.resume:
            return RunFolder.create(
                self.out, kind=kind, config=config, command=self.command or None, overwrite=self.overwrite
            )
        run = RunFolder.open(self.out, kind=kind)
        run.require_settings(config, read)
        return run

    def goes_on(self, run: RunFolder) -> bool:
        """Whether the run goes on from a checkpoint: with `resume`, if there is one.

        Without one (killed before the first) it starts from the beginning, which is told on stderr.
        """
        if self.resume and not run.has_checkpoint:
            print(f"qhw: {run.path} has no checkpoint yet: starting from the beginning", file=sys.stderr)
            run.truncate_metrics(0)
        return self.resume and run.has_checkpoint


def beside(run: Path, ending: str) -> Path:
    """The folder next to `run` with its name and this ending, also where `run` is given as ``.`` or ``..``.

    Raises:
        InvalidInputError: it has no name: the root.
    """
    named = Path(os.path.realpath(run)) if run.name in ("", "..") else run
    if not named.name:
        raise InvalidInputError(f"{named} is no run folder; give the folder that `qhw train guidance` wrote")
    return named.with_name(f"{named.name}{ending}")
