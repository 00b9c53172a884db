"""The run folder: configuration, manifest, metrics log and checkpoint of one run.

    config.json  manifest.json  metrics.jsonl  checkpoint.safetensors  events.out.tfevents…  model/

Everything that trains uses it. It knows no torch: the contents of the checkpoint are `qhw_diffusion.checkpoints`'.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from qhw_diffusion.errors import DamagedFileError, DamagedRunError, InvalidInputError, QhwError, RunFolderError
from qhw_diffusion.runs.files import atomic_write_json, atomic_write_text, check_writable, read_json
from qhw_diffusion.runs.loggers import Loggers, are_chosen
from qhw_diffusion.runs.manifest import FORMAT_VERSION, build_manifest
from qhw_diffusion.runs.progress import StopRequest, interruptible
from qhw_diffusion.terminal import naming, os_error_text, too_large_text

CONFIG, MANIFEST, METRICS, CHECKPOINT = "config.json", "manifest.json", "metrics.jsonl", "checkpoint.safetensors"


class RunFolder:
    """One run on disk. Make it with `create` or `open`; close it (or use `with`) when done logging.

    Attributes:
        path: the folder.
        config: what is needed to run again, of JSON types.
        manifest: versions, command and date (`build_manifest`).
        logged_again_from: the step from which on a run that is resumed logs once more; None until then.
        outcome: how the run has ended when its loggers are closed: "finished", "stopped" (Ctrl-C) or "failed".

    A folder that was made stays tentative until work begins (`begin`: at the first checkpoint at the latest). A `with`
    block that ends in an error before that takes it back, so that a refused run leaves nothing in the way of the next.
    """

    def __init__(self, path: Path, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.manifest = manifest
        self._loggers: Loggers | None = None
        self.logged_again_from: int | None = None
        self.outcome: Literal["finished", "stopped", "failed"] = "finished"
        self._place: _Place | None = None

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        kind: str,
        config: Mapping[str, Any],
        command: str | None = None,
        overwrite: bool = False,
    ) -> RunFolder:
        """Start a new run.

        Args:
            path: the folder, which must not exist or be empty.
            kind: what kind of run it is ("guidance"); `open` asks for it.
            config: what is needed to run again, of JSON types.
            command: what the user typed.
            overwrite: whether an earlier run of this kind gives way: deleted when work begins, put back if it never
                does.

        Raises:
            RunFolderError: something (else) is there already, or the folder cannot be made.
            InvalidInputError: a configuration that JSON cannot hold.
        """
        target = Path(path)
        check_place(target, kind=kind, overwrite=overwrite)
        place = _Place(target)
        try:
            place.take(
                config=dict(config),
                manifest=build_manifest(kind, command) | {"name": target.name, "id": uuid.uuid4().hex[:8]},
            )
            run = cls.open(target, kind=kind)
        except BaseException as error:
            place.give_back()
            if isinstance(error, OSError) and not isinstance(error, RunFolderError):
                raise RunFolderError(f"{target} cannot be made: {os_error_text(error)}") from error
            raise
        run._place = place
        return run

    @property
    def name(self) -> str:
        """The folder's name when it was made, whatever it is called now."""
        return str(self.manifest.get("name", self.path.name))

    @property
    def id(self) -> str | None:
        """8 hexadecimal digits that no other run has; None for a run of an earlier version."""
        return self.manifest.get("id")

    @property
    def kind(self) -> str:
        """What kind of run it is."""
        return str(self.manifest.get("kind"))

    @property
    def tentative(self) -> bool:
        """Whether this object made the folder and no work has begun in it."""
        return self._place is not None

    def begin(self) -> None:
        """Work begins: the folder stays from here on, whatever happens; what it replaces is deleted."""
        if self._place is not None:
            self._place.keep()
            self._place = None

    def discard(self) -> None:
        """Take a tentative folder back, as if it had never been made; one in which work has begun stays."""
        if self._place is not None:
            with contextlib.suppress(OSError):  # a full disk: what was not written out is to go anyway
                self.close()
            self._place.give_back()
            self._place = None

    def require_settings(
        self, given: Mapping[str, Any], read: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    ) -> None:
        """Check that the run was started with these settings.

        Args:
            given: the settings asked for.
            read: completes the settings of an older folder by the defaults of those that came later.

        Raises:
            RunFolderError: it was started with others (their names are in the message).
        """
        stored = self.config if read is None else json.loads(json.dumps(read(self.config)))
        names = [name for name, value in json.loads(json.dumps(given)).items() if stored.get(name) != value]
        if names:
            raise RunFolderError(
                f"{self.path} was started with other settings ({', '.join(names)}); resume it without changing them"
            )

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, kind: str) -> RunFolder:
        """Open an existing run of the given kind.

        Raises:
            RunFolderError: it is missing, damaged, of another kind or of another format version.
        """
        target = Path(path)
        if not target.is_dir():
            raise RunFolderError(f"{target} is not a run folder: no such folder")
        try:
            manifest = read_json(target / MANIFEST)
            config = read_json(target / CONFIG)
        except FileNotFoundError as error:
            raise RunFolderError(f"{target} is not a run folder: {Path(error.filename).name} is missing") from error
        except DamagedFileError as error:
            raise RunFolderError(f"{target} is a damaged run folder: {error}") from error
        version = manifest.get("format_version")
        if version != FORMAT_VERSION:
            raise RunFolderError(
                f"{target} has run-folder format {version!r}, this version of qhw-diffusion reads {FORMAT_VERSION}; "
                f"use the package version that wrote it ({manifest.get('qhw_diffusion', 'unknown')})"
            )
        if manifest.get("kind") != kind:
            raise RunFolderError(f"{target} is a run of kind {manifest.get('kind')!r}, but {kind!r} is needed here")
        return cls(target, config, manifest)

    # -- metrics ---------------------------------------------------------------------------------------------------

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one step's scalars to metrics.jsonl (flushed), and tell the loggers (`loggers.logging_to`).

        Raises:
            InvalidInputError: a metric called "step".
        """
        plain = {name: float(value) for name, value in values.items()}
        if "step" in plain:
            raise InvalidInputError("a metric cannot be called 'step'; that name is the step itself")
        line = json.dumps({"step": int(step), **plain})
        with naming(self.path):
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            self._open_loggers().log(int(step), plain)

    def tell(
        self,
        values: Mapping[str, float],
        pictures: Mapping[str, Callable[[], bytes]] | None = None,
        *,
        step: int | None = None,
    ) -> None:
        """Tell the loggers alone what a file of its own holds, as that of an evaluation; `metrics` does not have it.

        A run that has not logged, as one that is evaluated, has loggers only within a block of `logging_to`.

        Args:
            values: numbers by names such as ``evaluation/samples/fd``.
            pictures: name → what draws the content of a PNG; called only if a logger takes pictures.
            step: None for the last that was logged, 0 without any.
        """
        if self._loggers is None and not are_chosen():
            return
        with naming(self.path):
            loggers = self._open_loggers()
            if loggers:
                if step is None:
                    step = max((row["step"] for row in self.metrics()), default=0)
                loggers.log(step, values)
                loggers.picture(step, pictures or {})

    def _open_loggers(self) -> Loggers:
        if self._loggers is None:
            self._loggers = Loggers(self)
            self.logged_again_from = None
        return self._loggers

    def metrics(self) -> list[dict[str, Any]]:
        """All logged steps in order; a last line cut off by a crash is left out.

        Raises:
            DamagedFileError: other damage.
        """
        file = self.path / METRICS
        if not file.exists():
            return []
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise DamagedFileError(f"{file} is not text ({error})") from error
        rows = []
        # a complete line ends in a newline, so what follows the last one is empty or was cut off
        for number, line in enumerate(lines[:-1], start=1):
            try:
                row = json.loads(line)
                row["step"] = int(row["step"])
            except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
                raise DamagedFileError(f"{file}, line {number} is not a metrics record ({error})") from error
            rows.append(row)
        return rows

    def truncate_metrics(self, step: int) -> None:
        """Drop the records at or after `step` (on resume, so that no step stands in the log twice)."""
        kept = [row for row in self.metrics() if row["step"] < step]
        atomic_write_text(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        self.close()
        self.logged_again_from = step

    # -- checkpoint ------------------------------------------------------------------------------------------------

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint has been saved."""
        return (self.path / CHECKPOINT).is_file()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within the block, a file of this run that is damaged or missing makes it a damaged run (DamagedRunError)."""
        try:
            yield
        except DamagedFileError as error:
            raise DamagedRunError(f"{self.path} is a damaged run folder: {error}") from error

    # -- life ------------------------------------------------------------------------------------------------------

    @contextmanager
    def interruptible(self) -> Iterator[StopRequest]:
        """`with run.interruptible() as stop:` see `qhw_diffusion.runs.interruptible`; a stop is the run's outcome."""
        with interruptible() as stop:
            try:
                yield stop
            finally:
                self.outcome = "stopped" if stop.heeded else "finished"

    def close(self) -> None:
        """Close the loggers. Logging again reopens them."""
        if self._loggers is not None:
            self._loggers.close()
            self._loggers = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.outcome = "stopped" if issubclass(kind, KeyboardInterrupt) else "failed"
        if kind is None:
            self.begin()
        # other errors are defects: they leave their traces, unless an earlier run waits to be put back
        elif (
            issubclass(kind, QhwError | OSError | KeyboardInterrupt)
            or too_large_text(error)
            or (self._place and self._place.replaces)
        ):
            self.discard()
        self.close()


def check_place(path: str | os.PathLike[str], *, kind: str, overwrite: bool = False) -> None:
    """Check that `RunFolder.create` may make a run of this kind here; nothing is changed.

    Raises:
        RunFolderError: a file or a folder with something in it is there (with `overwrite`, unless that is an earlier
            run of the same kind), or the place cannot be written to.
    """
    target = Path(path)
    try:
        free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
        if free or overwrite:
            check_writable(target if free else target.parent)
    except OSError as error:
        raise RunFolderError(f"{target} cannot be made: {os_error_text(error)}") from error
    if free:
        return
    if not target.is_dir():
        raise RunFolderError(f"{target} is a file, not an empty folder; choose another place")
    if not overwrite:
        raise RunFolderError(
            f"{target} exists and is not an empty folder; choose another one, resume that run (--resume) or "
            "replace it (--overwrite)"
        )
    RunFolder.open(target, kind=kind)


class _Place:
    """Where a new run goes: taken in one step, given back as it was found, or kept."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self._before: Path | None = None  # the earlier run, aside
        self._was_empty = False
        self._made_parents: list[Path] = []
        self._taken = False

    @property
    def replaces(self) -> bool:
        """Whether an earlier run was moved aside."""
        return self._before is not None

    def take(self, *, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Put a folder with these two files at the place; the earlier run, if any, is moved aside."""
        target = self.target
        self._made_parents = [parent for parent in target.parents if not parent.exists()]
        self._was_empty = target.is_dir() and not any(target.iterdir())
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not self._was_empty:
            before = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".replaced"))
            try:
                os.replace(target, before)
            except BaseException:
                before.rmdir()
                raise
            self._before = before
        try:
            # built aside and moved in one step: a run folder either has both files or is not there
            aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
            try:
                aside.chmod(0o755)
                _fill(aside, config, manifest)
                os.replace(aside, target)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
        except OSError:
            # an empty folder that is there may be writable where the one around it is not, or be a mount point
            if not self._was_empty:
                raise
            self._taken = True
            _fill(target, config, manifest)
        self._taken = True

    def give_back(self) -> None:
        """The place as it was before `take`."""
        if self._taken:
            if self._was_empty:
                for entry in self.target.iterdir():
                    with contextlib.suppress(OSError):
                        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            else:
                shutil.rmtree(self.target, ignore_errors=True)
        if self._before is not None:
            os.replace(self._before, self.target)
        for parent in self._made_parents:
            with contextlib.suppress(OSError):  # not made after all, or somebody else uses it by now
                parent.rmdir()

    def keep(self) -> None:
        """The earlier run goes."""
        if self._before is not None:
            shutil.rmtree(self._before, ignore_errors=True)


def _fill(folder: Path, config: dict[str, Any], manifest: dict[str, Any]) -> None:
    atomic_write_json(folder / CONFIG, config)
    atomic_write_json(folder / MANIFEST, manifest)  # last: without it the folder is no run
