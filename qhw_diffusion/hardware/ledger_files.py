"""The files in a ledger's folder: the database, one result file a job, and locks.

Database: SQLite with a write-ahead log and synchronous=FULL; a transaction that has returned survives a killed process
and a power cut, and what goes wrong is said in plain words. Result files: the service's raw answer with the row it
belongs to, compressed, checked on reading; a file says all there is to know about its job, so that the rows of finished
jobs can be rebuilt from the files alone. Locks: freed by the operating system when their process dies; one worker to a
key, no recovery beside other work.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import sqlite3
import tempfile
import threading
import uuid
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qhw_diffusion.errors import DamagedFileError, LedgerError
from qhw_diffusion.hardware.ledger_rows import ID, SCHEMA, DamagedLedgerError, now, read_rows, store_note
from qhw_diffusion.terminal import naming

# -- the database ------------------------------------------------------------------------------------------------------


FILE = "ledger.sqlite"
LOCKS = "locks"
FORMAT = 1
# "qhwL": what tells the ledger's file from any other SQLite database
APPLICATION_ID = 0x7168774C
BUSY_SECONDS = 60.0
# Present while `recover` is at work; without it an interrupted recovery could be taken for an empty ledger.
RECOVERING = "recovering.json"
# SQLite's log needs memory shared between all processes that use the file, which these cannot give.
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs",
            "panfs", "orangefs", "fuse.sshfs", "fuse.ceph", "fuse.glusterfs", "fuse.davfs"}  # fmt: skip


class LedgerFile:
    """A connection to the database of a ledger's folder; threads of one process may share it.

    Args:
        folder: the ledger's folder, on a disk of this machine.
        create: make an empty ledger where there is none.

    Raises:
        LedgerError: no ledger there, another format version, damaged, a folder that cannot be written or lies on a
            network drive. The message says what to do.
    """

    def __init__(self, folder: Path, *, create: bool) -> None:
        self.folder = folder
        self.path = folder / FILE
        self._threads = threading.RLock()
        self._process = os.getpid()
        check_folder(folder, create=create)
        if not self.path.exists():
            check_there(folder, create=create)
            _make_database(folder)
        with plain_words(folder):
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with plain_words(folder):
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        connection = self._connection
        made = (self._pragma("application_id"), self._pragma("user_version"))
        if made[0] == APPLICATION_ID and made[1] != FORMAT:
            raise LedgerError(f"{self.path} has format {made[1]}, this package reads format {FORMAT}; use the version "
                              "of the package that wrote it, or another folder (--ledger)")  # fmt: skip
        if self.path.stat().st_size == 0:
            raise DamagedLedgerError(f"{self.path} is empty; put it back, or qhw ledger recover --ledger {self.folder} "
                                     "makes it anew from the results")  # fmt: skip
        if made[0] != APPLICATION_ID:
            raise LedgerError(f"{self.path} is an SQLite database, but no ledger; give another folder (--ledger)")
        if self._pragma("journal_mode") != "wal":
            raise DamagedLedgerError(f"{self.path} is not in write-ahead mode; qhw ledger recover "
                                     f"--ledger {self.folder} makes it anew")  # fmt: skip
        connection.execute("PRAGMA synchronous = FULL")
        # the database itself is up to date after every transaction, so that a lost log file loses nothing
        connection.execute("PRAGMA wal_autocheckpoint = 1")
        told = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if told != "ok":
            raise sqlite3.DatabaseError(told)
        for _ in read_rows(connection):
            pass

    def _pragma(self, name: str) -> Any:
        return self._connection.execute(f"PRAGMA {name}").fetchone()[0]

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for statements that change nothing."""
        with self._threads, plain_words(self.folder):
            self._check_process()
            yield self._connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that no other process writes in; on the disk when the block is left, undone on an error."""
        with self._threads, plain_words(self.folder):
            self._check_process()
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise LedgerError("a ledger opened before fork() cannot be used after it; open it again in the new process")

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._threads:
            self._connection.close()


def _make_database(folder: Path) -> None:
    """An empty ledger, moved into place whole: one that is empty or half made is never taken for a new one."""
    with exclusive_lock(folder / "create.lock", f"ledger {folder}", BUSY_SECONDS):
        if (folder / FILE).exists():  # another process was faster
            return
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch, plain_words(folder):
            path = Path(scratch) / FILE
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                connection.execute("PRAGMA synchronous = OFF")  # nothing waits for the disk but the whole, below
                mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                if mode != "wal":
                    raise LedgerError(f"{folder} does not allow SQLite's write-ahead log (mode {mode!r}); put the "
                                      "ledger on a local disk (--ledger or QHW_LEDGER)")  # fmt: skip
                connection.executescript(SCHEMA)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                store_note(connection, "created", now())
                store_note(connection, ID, uuid.uuid4().hex)
            finally:
                connection.close()
            durable_write(folder / FILE, path.read_bytes())


def check_folder(folder: Path, *, create: bool, recovering: bool = False) -> None:
    """Make the folder if asked, and refuse what cannot hold a ledger: a file, read-only, on a network drive."""
    if (folder / RECOVERING).exists() and not recovering:
        raise LedgerError(f"a recovery of {folder} was interrupted; qhw ledger recover --ledger {folder} ends it")
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"the ledger's folder {folder} cannot be made ({error.strerror}); give another") from error
    if not folder.is_dir():
        raise LedgerError(f"there is no ledger in {folder}; give its folder with --ledger or QHW_LEDGER")
    for name in (RESULTS, LOCKS):
        if (folder / name).exists() and not (folder / name).is_dir():
            raise LedgerError(f"{folder / name} is a file, and should be a folder of the ledger; move it away")
    if (folder / FILE).is_dir():
        raise LedgerError(f"{folder / FILE} is a folder, and should be a file of the ledger; move it away")
    kind = file_system(folder)
    if kind in _NETWORK:
        raise LedgerError(f"{folder} is on a network drive ({kind}), where SQLite's write-ahead log is not safe; put "
                          "the ledger on a local disk (--ledger or QHW_LEDGER)")  # fmt: skip
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LedgerError(f"{folder} cannot be written; a ledger needs that even for reading: copy the folder, or give "
                          "another (--ledger or QHW_LEDGER)")  # fmt: skip


def check_there(folder: Path, *, create: bool = False) -> None:
    """Whether the folder holds a ledger, or (`create`) may become one. Raises LedgerError."""
    if (folder / FILE).exists():
        return
    if any((folder / RESULTS).glob("*.json.gz")) and not (folder / FILE).exists():  # not made in the meantime
        raise DamagedLedgerError(f"{folder} has results but no {FILE}; put it back, or qhw ledger recover "
                                 f"--ledger {folder} makes it anew from them")  # fmt: skip
    if not create:
        raise LedgerError(f"there is no ledger in {folder}; give its folder with --ledger or QHW_LEDGER")


def file_system(folder: Path) -> str:
    """Type of the file system a folder is on, as Linux calls it; empty where that cannot be told."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    place, best, kind = f"{folder.resolve()}/", 0, ""
    for line in mounts:
        front, _, back = line.partition(" - ")
        fields = front.split()
        if len(fields) < 5 or not back:
            continue
        mounted = fields[4].encode().decode("unicode_escape").rstrip("/") + "/"
        # a later mount on the same point hides the earlier one
        if place.startswith(mounted) and len(mounted) >= best:
            best, kind = len(mounted), back.split()[0]
    return kind


@contextlib.contextmanager
def plain_words(folder: Path) -> Iterator[None]:
    """SQLite's errors as LedgerErrors that say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        told = str(error)
        if "locked" in told or "busy" in told:
            todo = f"another process has been writing to it for {BUSY_SECONDS:.0f} s; end it, or try again"
        elif "readonly" in told or "unable to open" in told:
            todo = "its files cannot be written or opened; check their owner and mode, or copy the folder"
        elif "full" in told:
            todo = "the disk is full; make room and run the same command again, what was written before is kept"
        elif isinstance(error, sqlite3.ProgrammingError) and "closed" in told:
            todo = "it has been closed; open it again"
        else:
            raise DamagedLedgerError(f"ledger {folder} is damaged ({told}); qhw ledger recover --ledger {folder} saves "
                                     "what can be read and keeps the original") from error  # fmt: skip
        raise LedgerError(f"ledger {folder}: {told}: {todo}") from error


# -- result files ------------------------------------------------------------------------------------------------------


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


# -- locks -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def exclusive_lock(path: Path, what: str, timeout: float | None) -> Iterator[None]:
    """Hold the lock file `path`, which is there only as long as somebody holds it or waits for it.

    Args:
        path: of the lock file; its folder is made.
        what: what is locked, as the error calls it.
        timeout: seconds to wait; None for as long as it takes.

    Raises:
        LedgerError: another thread or process still holds it after that time.
    """
    path.parent.mkdir(exist_ok=True)
    lock = FileLock(path, -1 if timeout is None else timeout, mode=0o644, fallback_to_soft=False, on_acquired=_sign)
    try:
        lock.acquire()
    except Timeout:
        with contextlib.suppress(OSError):
            what += f" is in use by process {path.read_text(encoding='utf-8').strip() or 'unknown'}"
        raise LedgerError(f"{what}; wait for it, or end it") from None
    try:
        yield
    finally:
        # removed while it is held: whoever waits for it sees that and makes a new one
        path.unlink(missing_ok=True)
        lock.release()


def _sign(handle: int) -> None:
    os.truncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)


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
