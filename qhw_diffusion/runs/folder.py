"""The run folder: configuration, manifest, metrics log and checkpoint of one run, in one place and one way.

    config.json  manifest.json  metrics.jsonl  checkpoint.safetensors  events.out.tfevents…  model/

Everything that trains uses it; nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from qhw_diffusion.errors import DamagedFileError, DamagedRunError, InvalidInputError, RunFolderError
from qhw_diffusion.runs.files import atomic_write_json, atomic_write_text, read_json
from qhw_diffusion.runs.manifest import FORMAT_VERSION, build_manifest
from qhw_diffusion.runs.progress import StopRequest, interruptible
from qhw_diffusion.runs.tensorfile import read_tensors, write_tensors

CONFIG, MANIFEST, METRICS, CHECKPOINT = "config.json", "manifest.json", "metrics.jsonl", "checkpoint.safetensors"


class RunFolder:
    """One run on disk. Make it with `create` or `open`; close it (or use `with`) when done logging."""

    def __init__(self, path: Path, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.manifest = manifest
        self._writer: Any = None
        self._purge_step: int | None = None

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], *, kind: str, config: Mapping[str, Any], command: str | None = None
    ) -> RunFolder:
        """Start a new run at `path`, which must not exist or be an empty folder.

        `config` is JSON-able and holds all that is needed to run again; `command` is what the user typed.
        Raises RunFolderError when something is there already, InvalidInputError for a config JSON cannot hold.
        """
        target = Path(path)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise RunFolderError(
                f"{target} exists and is not an empty folder; choose another one, resume that run (--resume) or "
                "replace it (--overwrite)"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        # built aside and moved in one step: a run folder either has both files or is not there
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
        try:
            aside.chmod(0o755)
            atomic_write_json(aside / CONFIG, dict(config))
            atomic_write_json(aside / MANIFEST, build_manifest(kind, command))
            os.replace(aside, target)
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            if isinstance(error, OSError):
                raise RunFolderError(f"{target} cannot be made: {error}") from error
            raise
        return cls.open(target, kind=kind)

    def require_settings(
        self, given: Mapping[str, Any], read: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    ) -> None:
        """Raises RunFolderError, with their names, when the run was started with settings other than those given.

        read: completes the settings of an older folder by the defaults of those that came later.
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

        Raises RunFolderError when it is missing, damaged, of another kind or of another format version.
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
        """Append one step's scalars to metrics.jsonl (flushed) and to the TensorBoard events."""
        plain = {name: float(value) for name, value in values.items()}
        if "step" in plain:
            raise InvalidInputError("a metric cannot be called 'step'; that name is the step itself")
        line = json.dumps({"step": int(step), **plain})
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        writer = self._tensorboard()
        for name, value in plain.items():
            if math.isfinite(value):
                writer.add_scalar(name, value, int(step))

    def metrics(self) -> list[dict[str, Any]]:
        """All logged steps in order. A last line cut off by a crash is left out; other damage is DamagedFileError."""
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
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise DamagedFileError(f"{file}, line {number} is not a metrics record ({error})") from error
            rows.append(row)
        return rows

    def truncate_metrics(self, step: int) -> None:
        """Drop the records at or after `step` (on resume, so that no step stands in the log twice)."""
        kept = [row for row in self.metrics() if row["step"] < step]
        atomic_write_text(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        self.close()
        self._purge_step = step

    # -- checkpoint ------------------------------------------------------------------------------------------------

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint has been saved."""
        return (self.path / CHECKPOINT).is_file()

    def save_checkpoint(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
        """Replace the checkpoint by (tensors, JSON-able meta) in one atomic step; the old one stays until then."""
        return write_tensors(self.path / CHECKPOINT, tensors, meta, kind="checkpoint")

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The last checkpoint as (tensors on the CPU, meta).

        Raises RunFolderError when none was saved, DamagedFileError when the file is not what was written.
        """
        try:
            return read_tensors(self.path / CHECKPOINT, kind="checkpoint")
        except FileNotFoundError as error:
            raise RunFolderError(f"{self.path} has no checkpoint to resume from; start the run anew") from error

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
        """`with run.interruptible() as stop:` see `qhw_diffusion.runs.interruptible`."""
        with interruptible() as stop:
            yield stop

    def close(self) -> None:
        """Flush and close the TensorBoard events. Logging again reopens them."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tensorboard(self) -> Any:
        if self._writer is None:
            # takes half a second to import: only runs that log pay for it
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path), purge_step=self._purge_step, flush_secs=30)
            self._purge_step = None
        return self._writer
