"""The folder of a study: made when all settings have been checked, kept once there is work in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from qhw_diffusion.checkpoints.tensorfile import WEIGHTS
from qhw_diffusion.errors import (
    InvalidInputError,
    MemoryBudgetError,
    MissingDataError,
    MissingDependencyError,
    UnknownNameError,
    UnsupportedCircuitError,
)
from qhw_diffusion.runs import RunFolder, check_place
from qhw_diffusion.runs.folder import CONFIG, MANIFEST

# What says that the settings cannot work, as opposed to an accident on the way.
REFUSALS = (InvalidInputError, UnknownNameError, UnsupportedCircuitError, MemoryBudgetError, MissingDataError,
            MissingDependencyError)  # fmt: skip


def open_study_folder(
    path: str | os.PathLike[str],
    *,
    kind: str,
    config: Mapping[str, Any],
    check: Callable[[], None],
    command: str | None,
    resume: bool,
    overwrite: bool,
    read: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
) -> RunFolder:
    """A new study folder, or with `resume` the existing one, whose settings must be the ones given.

    check: raises what the study's pieces would for settings that do not fit; called before there is a folder.
    overwrite: as in `RunFolder.create`. read: as in `RunFolder.require_settings`.

    Raises:
        RunFolderError: the folder is in use, missing, damaged, or holds a study with other settings.
    """
    if not resume:
        check_place(path, kind=kind, overwrite=overwrite)  # first: the checks take some seconds
        check()
        return RunFolder.create(path, kind=kind, config=config, command=command, overwrite=overwrite)
    run = RunFolder.open(path, kind=kind)
    run.require_settings(config, read)
    return run


@contextmanager
def at_work(run: RunFolder) -> Iterator[None]:
    """Around all work of a study. A folder with a finished piece of work, or a checkpoint, stays when it is cut short.

    Where settings turn out not to work, it stays only if something has been trained: with the settings corrected, the
    rest is of no use and would be in the way.
    """
    with run:
        try:
            yield
        except BaseException as error:
            pattern = f"**/{WEIGHTS}" if isinstance(error, REFUSALS) else "**/*"
            if any(file.is_file() and file.name not in (CONFIG, MANIFEST) for file in run.path.glob(pattern)):
                run.begin()
            raise
