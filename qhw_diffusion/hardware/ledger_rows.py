"""Rows of the ledger: what is known of a job, as the database holds it, each with a seal.

The seal is a SHA-256 of the row's content, because SQLite does not notice a changed bit inside a value.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from qhw_diffusion.errors import LedgerError

STATES = ("planned", "submitted", "done", "failed")
# Of the notes about a whole ledger: its name (`Ledger.id`)
ID = "id"
# In a row's summary: QPU seconds after which the service ends its job, so that this is what it may still cost
LIMIT = "limit_seconds"
# In a row's summary: {job id: QPU seconds, None until known} of jobs sent twice for this row
DUPLICATES = "duplicates"
# In a row's summary: seconds of its session's clock that count with it, noted while its own charge was not known
CLOCK = "session_seconds"
# In a row's summary: submissions without a reply whose jobs no look-up has shown, and which may show yet: a list of
# {"at": when, "tag": of the attempt, "seconds": that it counts with, "limit": what its job may cost}
UNANSWERED = "unanswered"
# In a failed row's summary: the job never ran or was cancelled, so that the next call sends it again by itself
AGAIN = "sent_again"
# In a paid row's summary: a hash of the account's instance that its jobs are sent to
INSTANCE = "instance"
# In a paid row's summary: the tag that its jobs are found by, without the attempt's number (`keys.ledger_tag`)
TAG = "tag"
# In a row's summary, of this attempt: how its job was sent (`provenance.as_sent`), and what the service states of it
SENT, STATED = "sent", "stated"
# In a row's summary: runs that took the result from here instead of measuring: a list of {"run": name, "at": when}
REUSED = "reused_by"


@dataclass(frozen=True)
class Row:
    """One job. Times are ISO 8601 in UTC, seconds are QPU seconds.

    Attributes:
        key: content key, 64 hexadecimal digits.
        run, purpose, device: what it is for and where it runs.
        state: ``"planned"`` (may have been sent), ``"submitted"`` (has a job id), ``"done"``, ``"failed"``.
        paid: whether it costs QPU time of an account.
        circuits, shots: circuits executed, shots of each, those that the client's own mitigation adds included.
        estimate_seconds: before it was sent.
        job_id, session_id: the service's, None until known.
        attempt: 1, and one more after every failure that was tried again.
        reason: why it failed.
        qpu_seconds: charged for this attempt, with its duplicates as far as known; None until known.
        created, updated: when.
        result_file, checksum: relative to the ledger's folder, and its SHA-256; None until done.
        summary: what the runner noted.
        earlier: attempts before this one: attempt, job_id, session_id, reason, qpu_seconds, counted, duplicates if
            there were any; while a charge is not known also the limit.
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
        """QPU seconds of this attempt that count against caps.

        Measured, or else what the service lets it take; 0 if nothing was ever sent; and what is kept for submissions
        without reply.
        """
        if not self.paid:
            return 0.0
        if self.state == "failed" and self.job_id is None and self.qpu_seconds is None:
            return self.unanswered_seconds
        return what_counts(self.qpu_seconds, self.most_seconds, self.summary) + self.unanswered_seconds

    @property
    def unanswered_seconds(self) -> float:
        """The part of `counted_now` that is kept for submissions without reply."""
        return sum(float(one["seconds"]) for one in self.summary.get(UNANSWERED, []))

    @property
    def most_seconds(self) -> float:
        """What one job of this attempt may cost: its limit at the service (the estimate in rows that have none)."""
        return max(self.estimate_seconds, float(self.summary.get(LIMIT, 0.0)))

    @property
    def sent_again(self) -> bool:
        """Of a failed row: whether the next call sends its job again without being asked to.

        What the service says as the reason decides nothing; rows of earlier versions, which have no flag, are sent
        again if nothing ever ran.
        """
        return self.summary.get(AGAIN, self.job_id is None) is True

    @property
    def counted(self) -> float:
        """QPU seconds of all attempts that count against caps."""
        return self.counted_now + sum(float(attempt["counted"]) for attempt in self.earlier)

    @property
    def reserved(self) -> float:
        """The part of `counted` that the service has not stated: limits of jobs whose charge is not known."""
        now = self.counted_now
        known = 0.0 if now == 0.0 else what_counts(self.qpu_seconds, 0.0, self.summary)
        past = sum(float(a["counted"]) - what_counts(a["qpu_seconds"], 0.0, a) for a in self.earlier if LIMIT in a)
        return now - known + past

    @property
    def unknown(self) -> list[str]:
        """Ids of jobs that have ended, and whose charge the service has not stated so far."""
        if not self.paid:
            return []
        ended = self.state in ("done", "failed")
        own = [(self.job_id, self.qpu_seconds)] if ended else []
        jobs = own + [(past["job_id"], past["qpu_seconds"]) for past in self.earlier]
        for notes in (self.summary, *self.earlier):
            jobs += notes.get(DUPLICATES, {}).items()
        return [job_id for job_id, seconds in jobs if job_id is not None and seconds is None]

    @property
    def charge(self) -> float | None:
        """QPU seconds charged for all attempts and duplicates; None while one of them is not known."""
        if not self.paid:
            return 0.0
        known = self.counted - self.unanswered_seconds
        return None if self.state in ("planned", "submitted") or self.unknown else known

    @property
    def unused_jobs(self) -> list[dict[str, Any]]:
        """Failed attempts and duplicates, which gave no result and may have been charged: job_id, qpu_seconds, why."""
        attempts = [(past["job_id"], past["qpu_seconds"], past["reason"]) for past in self.earlier]
        if self.state == "failed":
            attempts.append((self.job_id, self.qpu_seconds, self.reason))
        for notes in (*self.earlier, self.summary):
            attempts += [(job_id, seconds, "sent twice") for job_id, seconds in notes.get(DUPLICATES, {}).items()]
        names = ("job_id", "qpu_seconds", "why")
        return [dict(zip(names, one, strict=True)) for one in attempts if one[0] is not None]


def total_charge(rows: Iterable[Row]) -> float | None:
    """QPU seconds charged for these rows, with failed attempts and duplicates; None while one of them is not known."""
    charges = [row.charge for row in rows]
    return None if None in charges else float(sum(charge or 0.0 for charge in charges))


def what_counts(seconds: float | None, most: float, notes: dict[str, Any]) -> float:
    """QPU seconds that an attempt counts: a charge that is known, and for each job without one the most it may cost.

    Args:
        seconds: charged for the attempt, with its duplicates as far as known; None until its own charge is known.
        most: one job's limit.
        notes: where `DUPLICATES` and `CLOCK` are, if there are such.
    """
    others = list(notes.get(DUPLICATES, {}).values())
    more = most * sum(other is None for other in others) + float(notes.get(CLOCK, 0.0))
    if seconds is not None:
        return seconds + more
    return most + more + sum(other or 0.0 for other in others)


def with_charge(row: Row, job_id: str | None, seconds: float) -> Row:
    """The row with the charge of one of its jobs; as it is where that was known, or the job is none of its."""
    own = job_id == row.job_id
    now, summary = _charged(row.qpu_seconds, row.summary, job_id, own, seconds)
    earlier = []
    for past in row.earlier:
        known, notes = _charged(past["qpu_seconds"], past, job_id, job_id == past["job_id"], seconds)
        changed = {**notes, "qpu_seconds": known}
        if changed != past:
            changed["counted"] = what_counts(known, float(past.get(LIMIT, past["counted"])), notes)
        earlier.append(changed)
    return replace(row, qpu_seconds=now, summary=summary, earlier=earlier)


def _charged(
    before: float | None, notes: dict[str, Any], job_id: str | None, own: bool, seconds: float
) -> tuple[float | None, dict[str, Any]]:
    others = notes.get(DUPLICATES, {})
    if own and before is None:
        return seconds + sum(other or 0.0 for other in others.values()), notes
    if job_id in others and others[job_id] is None:
        notes = {**notes, DUPLICATES: {**others, job_id: seconds}}
        before = None if before is None else before + seconds
    return before, notes


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


def seconds_since(moment: str) -> float:
    """Seconds since a time of `now`; 0 if it lies ahead, because the clock was set back."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


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


def stored_note(connection: sqlite3.Connection, name: str) -> str | None:
    """One of these facts; None if it was never stored."""
    found = connection.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
    return None if found is None else str(found[0])
