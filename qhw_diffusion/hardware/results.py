"""Result files of the ledger: the service's raw answer with the row it belongs to, compressed, checked on reading.

A file says all there is to know about its job, so that the rows of finished jobs can be rebuilt from the files alone.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qhw_diffusion.errors import DamagedFileError, LedgerError
from qhw_diffusion.terminal import naming

RESULTS = "results"
RESULT_FORMAT = 1


def result_name(key: str) -> str:
    """Where the result of a key lies, relative to the ledger's folder."""
    return f"{RESULTS}/{key}.json.gz"


def write_result(folder: Path, key: str, row: Mapping[str, Any], raw: str) -> tuple[str, str]:
    """Write the file and force it to the disk, folder entry included. Returns its relative name and SHA-256.

    Raises:
        LedgerError: the disk is full or the folder cannot be written.
    """
    document = {"format": RESULT_FORMAT, "row": dict(row), "raw": raw}
    data = gzip.compress(json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"), 6, mtime=0)
    name = result_name(key)
    try:
        durable_write(folder / name, data)
    except OSError as error:
        raise LedgerError(f"the result of {key[:12]} cannot be written to {folder / name} ({error}); the job's id is "
                          "in the ledger: make room and run the same command again") from error  # fmt: skip
    return name, hashlib.sha256(data).hexdigest()


def keep_beside(folder: Path, key: str, raw: str) -> Path:
    """Write what came instead of a result beside the results, each such text once. Returns the file.

    Raises:
        LedgerError: the disk is full or the folder cannot be written.
    """
    data = raw.encode("utf-8", "surrogatepass")
    path = folder / RESULTS / f"{key}.unreadable-{hashlib.sha256(data).hexdigest()[:12]}"
    try:
        durable_write(path, data)
    except OSError as error:
        raise LedgerError(
            f"the answer that came for {key[:12]} is no result, and cannot be written to {path} ({error}); the job's "
            "id is in the ledger: make room and run the same command again"
        ) from error
    return path


def read_result(path: Path, checksum: str | None) -> tuple[dict[str, Any], str]:
    """The row and the raw answer in a result file; `checksum` None to go by the file's own structure (recovery).

    Raises:
        DamagedFileError: missing, changed, or not a result file; the message says what.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedFileError(f"result file {path} cannot be read ({error.strerror or error})") from error
    if checksum is not None and hashlib.sha256(data).hexdigest() != checksum:
        raise DamagedFileError(f"result file {path} is damaged: its SHA-256 is not the one in the ledger")
    try:
        document = json.loads(gzip.decompress(data).decode("utf-8", "surrogatepass"))
        if document["format"] != RESULT_FORMAT:
            raise DamagedFileError(f"result file {path} has format {document['format']!r}; known: {RESULT_FORMAT}")
        row, raw = document["row"], document["raw"]
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise DamagedFileError(f"result file {path} is damaged or no result file ({error})") from error
    if not isinstance(row, dict) or not isinstance(raw, str):
        raise DamagedFileError(f"result file {path} is no result file")
    return row, raw


def durable_write(path: Path, data: bytes) -> None:
    """Write aside, force to the disk, move into place, force the folder entry: after a power cut old or new, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
