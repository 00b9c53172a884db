"""Atomic file writing: a reader sees the old file or the new one, never half of either."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qhw_diffusion.errors import DamagedFileError, InvalidInputError
from qhw_diffusion.masking import without_own_tokens
from qhw_diffusion.terminal import naming


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` through a temporary file in the same folder and `os.replace`.

    The folder is made if it does not exist. If anything fails, the previous file is untouched and the temporary one is
    removed. Returns the path.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with naming(target), os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            # without this a power cut can leave the new name pointing at an empty file
            os.fsync(file.fileno())
        # mkstemp makes files private; give the mode an ordinary open() would have given
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """`atomic_write_bytes` of UTF-8 text; the user's own credentials, should they stand in it, are masked."""
    return atomic_write_bytes(path, without_own_tokens(text).encode("utf-8"))


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """`atomic_write_bytes` of `value` as indented JSON. Raises InvalidInputError for what JSON cannot hold."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{Path(path).name}: cannot be written as JSON ({error}); use plain values") from error
    return atomic_write_text(path, text + "\n")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Whether something can be written at `path`, or at the first folder above it that is there. Raises OSError.

    For places that are written to after long work; nothing is changed.
    """
    target = Path(path).absolute()
    there = next(place for place in (target, *target.parents) if place.exists())
    if there == target and not there.is_dir():
        there = there.parent  # a file, which would be replaced
    elif not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"space?")
            file.flush()
    except OSError as error:  # with the folder's name in place of the temporary file's
        raise OSError(error.errno, error.strerror or str(error), str(there)) from error


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder that appears in one step: the block fills `aside`, which becomes the folder `path` at its end.

    So the folder is whole or not there; if the block fails, it is not there. Into a folder that is there already the
    new files are moved one by one, in the order in which they were written, and what else is in it stays.
    """
    target = Path(path)
    there = target.exists()
    if there and not target.is_dir():
        raise InvalidInputError(f"{target} is a file; give a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target if there else target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        # mkdtemp makes folders private; give the mode an ordinary mkdir() would have given
        aside.chmod(0o777 & ~_umask())
        yield aside
        if there:
            for file in sorted(aside.iterdir(), key=lambda file: file.stat().st_mtime_ns):
                os.replace(file, target / file.name)
            aside.rmdir()
        else:
            os.replace(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object. Raises DamagedFileError when the file is not one (a missing file is FileNotFoundError)."""
    file = Path(path)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bytes that are no text, no JSON, numbers or nesting without end
        raise DamagedFileError(f"{file} is not readable JSON ({error}); restore it or start a new run") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{file} holds {type(value).__name__}, not a JSON object; restore it or start a new run")
    return value


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
