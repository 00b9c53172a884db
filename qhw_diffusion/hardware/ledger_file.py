"""The ledger's database file: safe opening, transactions, rows with a seal, and plain words for what goes wrong.

SQLite with a write-ahead log and synchronous=FULL: a transaction that has returned survives a killed process and a
power cut. Every row carries a SHA-256 of its content, because SQLite does not notice a changed bit inside a value.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from qhw_diffusion.errors import LedgerError

FILE = "ledger.sqlite"
FORMAT = 1
# "qhwL": what tells the ledger's file from any other SQLite database
APPLICATION_ID = 0x7168774C
BUSY_SECONDS = 60.0
# Present while `recover` is at work; without it an interrupted recovery could be taken for an empty ledger.
RECOVERING = "recovering.json"
STATES = ("planned", "submitted", "done", "failed")
# SQLite's log needs memory shared between all processes that use the file, which these cannot give.
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs",
            "panfs", "orangefs", "fuse.sshfs", "fuse.ceph", "fuse.glusterfs", "fuse.davfs"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One job. Times are ISO 8601 in UTC, seconds are QPU seconds.

    Attributes:
        key: content key, 64 hexadecimal digits.
        run, purpose, device: what it is for and where it runs.
        state: ``"planned"`` (may have been sent), ``"submitted"`` (has a job id), ``"done"``, ``"failed"``.
        paid: whether it costs QPU time of an account.
        circuits, shots: circuits executed, shots of each.
        estimate_seconds: before it was sent.
        job_id, session_id: the service's, None until known.
        attempt: 1, and one more after every failure that was tried again.
        reason: why it failed.
        qpu_seconds: charged for this attempt, None until known.
        created, updated: when.
        result_file, checksum: relative to the ledger's folder, and its SHA-256; None until done.
        summary: what the runner noted.
        earlier: attempts before this one: attempt, job_id, session_id, reason, qpu_seconds, counted.
    """

    key: str
    run: str
    purpose: str
    device: str
    state: str
    paid: bool
    circuits: int
    shots: int
    estimate_seconds: float
    job_id: str | None = None
    session_id: str | None = None
    attempt: int = 1
    reason: str = ""
    qpu_seconds: float | None = None
    created: str = ""
    updated: str = ""
    result_file: str | None = None
    checksum: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    earlier: list[dict[str, Any]] = field(default_factory=list)

    @property
    def counted_now(self) -> float:
        """QPU seconds of this attempt that count against caps: measured, else estimated; 0 if nothing was ever sent."""
        if not self.paid or (self.state == "failed" and self.job_id is None and self.qpu_seconds is None):
            return 0.0
        return self.estimate_seconds if self.qpu_seconds is None else self.qpu_seconds

    @property
    def counted(self) -> float:
        """QPU seconds of all attempts that count against caps."""
        return self.counted_now + sum(float(attempt["counted"]) for attempt in self.earlier)


COLUMNS = tuple(column.name for column in fields(Row))
_JSON = ("summary", "earlier")
_SCHEMA = f"""
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, run TEXT NOT NULL, purpose TEXT NOT NULL,
    device TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN {STATES}), paid INTEGER NOT NULL,
    circuits INTEGER NOT NULL, shots INTEGER NOT NULL, estimate_seconds REAL NOT NULL, job_id TEXT UNIQUE,
    session_id TEXT, attempt INTEGER NOT NULL, reason TEXT NOT NULL, qpu_seconds REAL, created TEXT NOT NULL,
    updated TEXT NOT NULL, result_file TEXT, checksum TEXT, summary TEXT NOT NULL, earlier TEXT NOT NULL,
    counted REAL NOT NULL, seal TEXT NOT NULL);
CREATE INDEX jobs_by_run ON jobs (run, state);
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


def now() -> str:
    """UTC, ISO 8601, milliseconds."""
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"


def write_row(connection: sqlite3.Connection, row: Row) -> None:
    """Insert the row, or replace the one with its key, inside the transaction that is open."""
    values = _values(row)
    values = [*values, row.counted, _seal(values)]
    names = [*COLUMNS, "counted", "seal"]
    changes = ", ".join(f"{name} = excluded.{name}" for name in names)
    marks = ", ".join("?" * len(names))
    sql = f"INSERT INTO jobs ({', '.join(names)}) VALUES ({marks}) ON CONFLICT (key) DO UPDATE SET {changes}"
    connection.execute(sql, values)


def read_rows(connection: sqlite3.Connection, where: str = "", values: tuple[Any, ...] = ()) -> Iterator[Row]:
    """Rows in the order they were planned, each checked against its seal (LedgerError if it does not fit)."""
    sql = f"SELECT {', '.join(COLUMNS)}, seal FROM jobs {where} ORDER BY number"
    for record in connection.execute(sql, values):
        yield row_of(record)


def row_of(record: tuple[Any, ...]) -> Row:
    """A row from its columns and seal. LedgerError if they do not fit each other."""
    *values, seal = record
    if _seal(values) != seal:
        raise LedgerError(f"the ledger's row {str(record[0])[:12]} is damaged (its content does not fit its checksum)")
    named = dict(zip(COLUMNS, values, strict=True))
    for name in _JSON:
        named[name] = json.loads(named[name])
    return Row(**{**named, "paid": bool(named["paid"])})


def _values(row: Row) -> list[Any]:
    values = {name: getattr(row, name) for name in COLUMNS}
    for name in _JSON:
        values[name] = json.dumps(values[name], sort_keys=True, ensure_ascii=False)
    # the types in which SQLite gives them back, so that the seal fits
    values["paid"] = int(row.paid)
    values["estimate_seconds"] = float(row.estimate_seconds)
    values["qpu_seconds"] = None if row.qpu_seconds is None else float(row.qpu_seconds)
    return list(values.values())


def _seal(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()


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
        if not create and not self.path.exists():
            raise LedgerError(f"there is no ledger in {folder}; give its folder with --ledger or QHW_LEDGER")
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
        if made != (APPLICATION_ID, FORMAT):
            if made != (0, 0) or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                self._foreign(made)
            self._write_ahead()
            connection.execute("BEGIN IMMEDIATE")
            if self._pragma("user_version") == 0:  # or another process was faster
                for statement in _SCHEMA.strip().split(";\n"):
                    connection.execute(statement)
                connection.execute("INSERT INTO notes VALUES ('created', ?)", (now(),))
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.execute("COMMIT")
        self._write_ahead()
        connection.execute("PRAGMA synchronous = FULL")
        told = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if told != "ok":
            raise sqlite3.DatabaseError(told)
        for _ in read_rows(connection):
            pass

    def _pragma(self, name: str) -> Any:
        return self._connection.execute(f"PRAGMA {name}").fetchone()[0]

    def _foreign(self, made: tuple[int, int]) -> None:
        if made[0] == APPLICATION_ID:
            raise LedgerError(f"{self.path} has format {made[1]}, this package reads format {FORMAT}; use the version "
                              "of the package that wrote it, or another folder (--ledger)")  # fmt: skip
        raise LedgerError(f"{self.path} is an SQLite database, but no ledger; give another folder (--ledger)")

    def _write_ahead(self) -> None:
        end = time.monotonic() + BUSY_SECONDS
        while True:  # the change of mode does not wait for other processes by itself
            try:
                mode = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.02)
        if mode != "wal":
            raise LedgerError(f"{self.folder} does not allow SQLite's write-ahead log (it stays in mode {mode!r}); put "
                              "the ledger on a local disk (--ledger or QHW_LEDGER)")  # fmt: skip

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


def check_folder(folder: Path, *, create: bool) -> None:
    """Make the folder if asked, and refuse what cannot hold a ledger: a file, read-only, on a network drive."""
    if (folder / RECOVERING).exists():
        raise LedgerError(f"a recovery of {folder} was interrupted; qhw ledger recover --ledger {folder} ends it")
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"the ledger's folder {folder} cannot be made ({error.strerror}); give another") from error
    if not folder.is_dir():
        raise LedgerError(f"there is no ledger in {folder}; give its folder with --ledger or QHW_LEDGER")
    kind = file_system(folder)
    if kind in _NETWORK:
        raise LedgerError(f"{folder} is on a network drive ({kind}), where SQLite's write-ahead log is not safe; put "
                          "the ledger on a local disk (--ledger or QHW_LEDGER)")  # fmt: skip
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LedgerError(f"{folder} cannot be written; a ledger needs that even for reading: copy the folder, or give "
                          "another (--ledger or QHW_LEDGER)")  # fmt: skip


def file_system(folder: Path) -> str:
    """Type of the file system a folder is on, as Linux calls it; empty where that cannot be told."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    place, best, kind = folder.resolve(), -1, ""
    for line in mounts:
        front, _, back = line.partition(" - ")
        if len(front.split()) < 5 or not back:
            continue
        mounted = Path(front.split()[4].encode().decode("unicode_escape"))
        # a later mount on the same point hides the earlier one
        if (place == mounted or mounted in place.parents) and len(mounted.parts) >= best:
            best, kind = len(mounted.parts), back.split()[0]
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
            todo = f"it is damaged; qhw ledger recover --ledger {folder} saves what can be read and keeps the original"
        raise LedgerError(f"ledger {folder}: {told}: {todo}") from error
