"""Rows of the ledger: what is known of a job, as the database holds it, each with a seal.

The seal is a SHA-256 of the row's content, because SQLite does not notice a changed bit inside a value.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from qhw_diffusion.errors import LedgerError

STATES = ("planned", "submitted", "done", "failed")
# In a row's summary: QPU seconds after which the service ends its job, so that this is what it may still cost
LIMIT = "limit_seconds"


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
        """QPU seconds of this attempt that count against caps: measured; what the service lets it take while it is
        planned or submitted; else estimated; 0 if nothing was ever sent.
        """
        if not self.paid or (self.state == "failed" and self.job_id is None and self.qpu_seconds is None):
            return 0.0
        if self.qpu_seconds is not None:
            return self.qpu_seconds
        limit = self.summary.get(LIMIT, 0.0) if self.state in ("planned", "submitted") else 0.0
        return max(self.estimate_seconds, float(limit))

    @property
    def counted(self) -> float:
        """QPU seconds of all attempts that count against caps."""
        return self.counted_now + sum(float(attempt["counted"]) for attempt in self.earlier)


class DamagedLedgerError(LedgerError):
    """A database that is damaged: what `recover` is for."""


COLUMNS = tuple(column.name for column in fields(Row))
_JSON = ("summary", "earlier")
SCHEMA = f"""
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
    """UTC, ISO 8601, microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


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
        raise DamagedLedgerError(f"row {str(record[0])[:12]} of the ledger is damaged: it does not fit its checksum; "
                                 "qhw ledger recover keeps what is whole")  # fmt: skip
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


def store_note(connection: sqlite3.Connection, name: str, value: str) -> None:
    """Keep one of the few facts about the whole ledger."""
    connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))
