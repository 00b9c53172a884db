"""Locks that the operating system frees when their process dies: one worker to a key, no recovery beside other work."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from qhw_diffusion.errors import LedgerError

_POLL_SECONDS = 0.05


@contextlib.contextmanager
def exclusive_lock(path: Path, what: str, timeout: float | None) -> Iterator[None]:
    """Hold the lock file `path`, which is there only as long as somebody holds it or waits for it.

    Args:
        timeout: seconds to wait; None for as long as it takes.

    Raises:
        LedgerError: another thread or process still holds it after that time.
    """
    end = None if timeout is None else time.monotonic() + timeout
    handle = _acquire(path, what, end)
    try:
        yield
    finally:
        # removed while it is held: whoever waits for it sees that and makes a new one
        path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, what: str, end: float | None) -> int:
    path.parent.mkdir(exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(handle), os.stat(path)):
                        os.truncate(handle, 0)
                        os.write(handle, f"{os.getpid()}\n".encode())
                        held, handle = handle, -1
                        return held
                continue  # the file was removed between opening and locking it
            if end is not None and time.monotonic() > end:
                holder = os.pread(handle, 20, 0).decode(errors="replace").strip() or "unknown"
                raise LedgerError(f"{what} is in use by process {holder}; wait for it, or end it")
        finally:
            if handle >= 0:
                os.close(handle)
        time.sleep(_POLL_SECONDS)


class FolderLock:
    """A ledger's folder in use: shared by all who have it open, exclusive for recovery.

    Raises:
        LedgerError: it is in use the other way.
    """

    def __init__(self, folder: Path, *, exclusive: bool) -> None:
        self._handle = os.open(folder / "ledger.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._handle)
            self._handle = -1
            doing = "another process has it open" if exclusive else "it is being recovered"
            raise LedgerError(f"ledger {folder}: {doing}; wait for it, or end it") from None

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
