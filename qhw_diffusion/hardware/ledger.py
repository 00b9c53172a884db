"""The ledger: a write-ahead journal of jobs, one row to a content key. What was paid for is never lost or paid twice.

planned → submitted (job id) → done (result file) | failed (reason) → planned again, if asked. A row is planned before
its job is sent, has the job's id before anybody waits for it, and is done only when the raw answer is on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from qhw_diffusion.errors import DamagedFileError, InvalidInputError, LedgerError
from qhw_diffusion.hardware.caps import as_seconds, check_caps, rows_to_ask, seconds_spent, store_cap, stored_cap
from qhw_diffusion.hardware.keys import check_key
from qhw_diffusion.hardware.ledger_files import (
    LOCKS,
    FolderLock,
    LedgerFile,
    check_folder,
    check_there,
    exclusive_lock,
    keep_beside,
    read_result,
    write_result,
)
from qhw_diffusion.hardware.ledger_rows import (
    AGAIN,
    CLOCK,
    DUPLICATES,
    ID,
    LIMIT,
    REUSED,
    SENT,
    STATED,
    STATES,
    UNANSWERED,
    Row,
    now,
    read_rows,
    store_note,
    stored_note,
    with_charge,
    write_row,
)
from qhw_diffusion.masking import without_own_tokens, without_tokens

DEFAULT_FOLDER = "runs/ledger"


def ledger_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder given, else $QHW_LEDGER, else ``runs/ledger``."""
    return Path(given or os.environ.get("QHW_LEDGER") or DEFAULT_FOLDER)


class Ledger:
    """An open ledger; threads may share it, every process opens its own. Use `Ledger.open`, best in a `with` block."""

    def __init__(self, file: LedgerFile, lock: FolderLock | None = None) -> None:
        self.folder = file.folder
        self._file = file
        self._lock = lock

    @classmethod
    def open(cls, folder: str | os.PathLike[str] | None = None, *, create: bool = True) -> Ledger:
        """Open the ledger in `folder` (default: `ledger_folder`), after checking every row.

        Raises:
            LedgerError: none there and not `create`, damaged, of another version, being recovered, read-only, or on a
                network drive. The message says what to do.
        """
        place = ledger_folder(folder)
        check_folder(place, create=create)
        if not create:
            check_there(place)  # before a lock file is left in a folder that holds no ledger
        lock = FolderLock(place, exclusive=False)
        try:
            ledger = cls(LedgerFile(place, create=create), lock)
        except BaseException:
            lock.close()
            raise
        try:
            ledger._name()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """Close it; a second call does nothing."""
        self._file.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def lock(self, key: str, timeout: float | None = None) -> contextlib.AbstractContextManager[None]:
        """Nobody else, thread or process, works on this key inside the `with` block; freed if the process dies.

        Args:
            key: content key of the row.
            timeout: seconds to wait for the other one; None for as long as it takes.

        Returns:
            The lock as a context manager; entering it raises LedgerError after the timeout.
        """
        return exclusive_lock(self.folder / LOCKS / check_key(key), f"job {key[:12]}", timeout)

    # -- reading -------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Row | None:
        """The row of a key, or None."""
        with self._file.reading() as connection:
            return next(read_rows(connection, "WHERE key = ?", (check_key(key),)), None)

    def rows(self, run: str | None = None, state: str | None = None) -> list[Row]:
        """Rows in the order they were planned, of one run and in one state if given."""
        if state is not None and state not in STATES:
            raise InvalidInputError(f"state is {state!r}; allowed: {', '.join(STATES)}")
        wanted = {name: value for name, value in (("run", run), ("state", state)) if value is not None}
        where = "WHERE " + " AND ".join(f"{name} = ?" for name in wanted) if wanted else ""
        with self._file.reading() as connection:
            return list(read_rows(connection, where, tuple(wanted.values())))

    def result(self, key: str) -> str:
        """The service's raw answer to a job that is done, its checksum verified.

        Raises:
            DamagedFileError: the file is missing or was changed; `refetch` makes the runner fetch the answer again.
            LedgerError: no such row, or it is not done.
        """
        row = self._known(self.get(key), key)
        if row.state != "done" or row.result_file is None:
            raise LedgerError(f"job {key[:12]} is {row.state}; only a job that is done has a result")
        try:
            return read_result(self.folder / row.result_file, row.checksum)[1]
        except DamagedFileError as error:
            raise DamagedFileError(f"{error}; the service keeps the results of job {row.job_id}: qhw ledger "
                                   f"recover --ledger {self.folder} lets them be fetched again") from error  # fmt: skip

    def spent(self, run: str | None = None) -> float:
        """QPU seconds that count against caps, of all runs or one.

        Measured where known, else what the service lets the job take, with every earlier attempt; 0 for jobs that cost
        nothing.

        Args:
            run: name of the run; None for the whole ledger.
        """
        with self._file.reading() as connection:
            return sum(seconds_spent(connection, run))

    def reserved(self) -> float:
        """The part of `spent` that no charge has been stated for: jobs planned, out, or ended a short time ago."""
        with self._file.reading() as connection:
            return seconds_spent(connection, None)[1]

    @property
    def cap(self) -> float | None:
        """QPU seconds that all jobs of this ledger may cost together; None for no cap."""
        with self._file.reading() as connection:
            return stored_cap(connection)

    @property
    def id(self) -> str:
        """The ledger's name, at least 8 hexadecimal digits.

        It is in the tags of its jobs, so that they are told from those of another ledger with the same work. A copy
        has the same.
        """
        with self._file.reading() as connection:
            return stored_note(connection, ID) or ""

    @property
    def incomplete(self) -> bool:
        """Whether rows may be missing because a damaged ledger was recovered: then look up tags also for new keys."""
        with self._file.reading() as connection:
            return stored_note(connection, "incomplete") is not None

    # -- writing -------------------------------------------------------------------------------------------------------

    def set_cap(self, seconds: float | None) -> None:
        """Set the cap of the whole ledger, or remove it. One below what is spent only stops further jobs."""
        with self._file.writing() as connection:
            store_cap(connection, seconds)

    def plan(
        self,
        key: str,
        *,
        run: str,
        purpose: str,
        device: str,
        circuits: int,
        shots: int,
        estimate_seconds: float,
        paid: bool,
        summary: Mapping[str, Any],
        cap: float | None = None,
        attempt: int = 1,
        sent: bool = False,
    ) -> Row:
        """The row of a key, made if there is none; checking the caps and making it is one transaction.

        Args:
            key: content key of the job.
            run: name of the run that the job counts for.
            purpose: what the job is for.
            device: name of the device.
            circuits: circuits that the device executes, ≥ 1.
            shots: shots of each circuit, ≥ 1.
            estimate_seconds: QPU seconds the job is expected to cost; reserved until they are measured.
            paid: whether it costs QPU time of an account. If so, a cap is needed: `cap`, the ledger's own, or both.
            summary: JSON values to keep with the row.
            cap: QPU seconds that all jobs of `run` may cost together.
            attempt: more than 1 for a row that was lost after failures.
            sent: its job was found at the service, and nothing is sent for it: the caps are not checked, but count it.

        Returns:
            The new row, or the one that was there, whatever its state. Call `permit` before sending one that was there.

        Raises:
            BudgetError: the job would pass a cap, or there is none; the message has the arithmetic. Nothing is written.
            InvalidInputError: an argument that is not allowed.
        """
        for name, value in (("run", run), ("purpose", purpose), ("device", device)):
            if not isinstance(value, str) or not value:
                raise InvalidInputError(f"{name} is {value!r}; give a text that is not empty")
            if without_tokens(value) != value:  # kept in the ledger, and sent along as a tag
                raise InvalidInputError(f"{name} {value!r} looks as if it held a credential; give another text")
        for name, number in (("circuits", circuits), ("shots", shots)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise InvalidInputError(f"{name} is {number!r}; allowed: whole numbers from 1")
        moment = now()
        row = Row(check_key(key), run, purpose, device, "planned", bool(paid), circuits, shots,
                  as_seconds("estimate_seconds", estimate_seconds), attempt=attempt, created=moment,
                  updated=moment, summary=_json(summary))  # fmt: skip
        with self._file.writing() as connection:
            there = next(read_rows(connection, "WHERE key = ?", (key,)), None)
            if there is not None:
                return there
            if not sent:
                check_caps(connection, row, cap)
            store_cap(connection, cap, run)
            write_row(connection, row)
        return row

    def permit(self, key: str, *, run: str, cap: float | None = None, summary: Mapping[str, Any] | None = None) -> Row:
        """Check the caps again for a planned row, just before its job is sent by `run`, which it then counts for.

        Args:
            key: content key of the row.
            run: name of the run that the job counts for from now on.
            cap: QPU seconds that all jobs of `run` may cost together; None for the ledger's cap alone.
            summary: added to the row's.

        Raises:
            BudgetError: as `plan`.
            LedgerError: the row is not planned.
        """
        extra = _json(summary or {})

        def change(row: Row, connection: sqlite3.Connection) -> Row:
            _allow(row, ("planned",), "sent")
            after = replace(row, run=run, summary={**row.summary, **extra})
            check_caps(connection, after, cap)
            store_cap(connection, cap, run)
            return after

        return self._change(key, change)

    def submitted(self, key: str, job_id: str, session_id: str | None = None, **summary: Any) -> Row:
        """Note the job's id: planned → submitted. The same id once more changes nothing.

        Args:
            key: content key of the row.
            job_id: that the service returned.
            session_id: of the batch or session that the job is in; None without one.
            summary: added to the row's.

        Raises:
            LedgerError: another state, another id, or an id that belongs to another row.
        """
        if not isinstance(job_id, str) or not job_id.strip():
            raise InvalidInputError(f"job_id is {job_id!r}; give the id that the service returned")
        extra = _json(summary)

        def change(row: Row, connection: sqlite3.Connection) -> Row:
            if row.state == "submitted" and row.job_id == job_id:
                return row
            _allow(row, ("planned",), f"given the job id {job_id}")
            for other in read_rows(connection, "WHERE job_id = ?1 OR instr(earlier, ?1)", (job_id,)):
                if job_id not in (other.job_id, *(past["job_id"] for past in other.earlier)):
                    continue
                if other.key == row.key:
                    raise LedgerError(f"job {job_id} was an earlier attempt of {key[:12]} and failed; give another id")
                raise LedgerError(f"job {job_id} belongs to {other.key[:12]} ({other.purpose}) already")
            return replace(row, state="submitted", job_id=job_id, session_id=session_id,
                           summary={**row.summary, **extra})  # fmt: skip

        return self._change(key, change)

    def done(self, key: str, raw: str, qpu_seconds: float | None, **summary: Any) -> Row:
        """Store the answer: submitted → done. The raw answer is on the disk before the row says so.

        Args:
            key: content key of the row.
            raw: the service's answer as it came; should it repeat the user's credentials, they are masked.
            qpu_seconds: measured; None if the service does not say yet (the limit goes on counting; see `measured`).
            summary: added to the row's.

        Raises:
            LedgerError: another state, or done already with another answer.
        """
        if not isinstance(raw, str):
            raise InvalidInputError(f"raw must be the answer's text, not {type(raw).__name__}")
        seconds = None if qpu_seconds is None else as_seconds("qpu_seconds", qpu_seconds)
        extra, raw = _json(summary), without_own_tokens(raw)
        row = self._known(self.get(key), key)
        if row.state == "done" and self.result(key) == raw:
            return row
        _allow(row, ("submitted",), "done")
        kept = row.qpu_seconds if seconds is None else seconds
        after = replace(row, state="done", qpu_seconds=kept, reason="", updated=now(),
                        summary={**row.summary, **extra})  # fmt: skip
        name, checksum = write_result(self.folder, key, asdict(after), raw)

        def change(current: Row, connection: sqlite3.Connection) -> Row:
            if current != row:
                raise LedgerError(f"job {key[:12]} was changed by another process meanwhile; use lock(key)")
            return replace(after, result_file=name, checksum=checksum)

        return self._change(key, change)

    def measured(self, key: str, qpu_seconds: float, job_id: str | None = None) -> Row:
        """Note QPU seconds that became known after the job was done or had failed. What is known already stays.

        Args:
            key: content key of the row.
            qpu_seconds: QPU seconds charged, ≥ 0.
            job_id: of a duplicate or an earlier attempt; None for the row's own job.
        """
        seconds = as_seconds("qpu_seconds", qpu_seconds)

        def change(row: Row, connection: sqlite3.Connection) -> Row:
            if job_id is None:
                _allow(row, ("done", "failed"), "measured")
            return with_charge(row, row.job_id if job_id is None else job_id, seconds)

        return self._change(key, change)

    def add_clock(self, key: str, seconds: float) -> Row:
        """Count seconds of the clock of a job's session with the job, beyond what it counts already."""
        more = as_seconds("seconds", seconds)

        def change(row: Row, connection: sqlite3.Connection) -> Row:
            if row.qpu_seconds is not None:
                return replace(row, qpu_seconds=row.qpu_seconds + more)
            return replace(row, summary={**row.summary, CLOCK: row.summary.get(CLOCK, 0.0) + more})

        return self._change(key, change)

    def with_unknown_charges(self) -> list[Row]:
        """Rows with jobs that have ended and whose charge is not known (`Row.unknown`)."""
        with self._file.reading() as connection:
            return [row for row in rows_to_ask(connection) if row.unknown]

    def with_unanswered(self) -> list[Row]:
        """Rows with submissions without reply that may have been accepted."""
        with self._file.reading() as connection:
            return [row for row in rows_to_ask(connection) if row.summary.get(UNANSWERED)]

    def send_again(self, key: str, *, tag: str, seconds: float, limit: float, next_limit: float) -> Row:
        """Before a planned row's job is sent once more, after a submission without reply that no look-up has shown.

        Until it is known what became of it, it counts with its estimate, since most were never accepted. But where
        another one in this ledger counts with less than it may cost, it counts with all that it may cost itself: so
        such jobs pass the cap by one job's limit at most.

        Args:
            key: content key of the row.
            tag: of the attempt.
            seconds: the estimate.
            limit: what the job of the earlier submission may cost.
            next_limit: what the job that is sent now may cost.

        Raises:
            BudgetError: the caps do not leave enough for both.
            LedgerError: the row is not planned.
        """
        least, most = as_seconds("seconds", seconds), max(seconds, limit)

        def change(row: Row, connection: sqlite3.Connection) -> Row:
            _allow(row, ("planned",), "sent again")
            others = [one for other in rows_to_ask(connection) for one in other.summary.get(UNANSWERED, [])]
            kept = most if any(one["seconds"] < one["limit"] for one in others) else least
            one = {"at": now(), "tag": tag, "seconds": kept, "limit": float(limit)}
            after = replace(row, summary={**row.summary, LIMIT: next_limit,
                                          UNANSWERED: [*row.summary.get(UNANSWERED, []), one]})  # fmt: skip
            check_caps(connection, after, stored_cap(connection, row.run))
            return after

        return self._change(key, change)

    def settled(self, key: str, tag: str, found: Sequence[str], *, given_up: bool) -> Row:
        """Note what a later look-up showed of submissions without reply.

        Args:
            key: content key of the row.
            tag: of the attempt that was looked for.
            found: ids of the jobs with that tag, besides the row's own; they become its duplicates.
            given_up: whether those that are not among them are taken never to have been accepted.
        """

        def change(row: Row, connection: sqlite3.Connection) -> Row:
            mine = [one for one in row.summary.get(UNANSWERED, []) if one["tag"] == tag]
            others = [one for one in row.summary.get(UNANSWERED, []) if one["tag"] != tag]
            past = {attempt["job_id"] for attempt in row.earlier} | {row.job_id}
            new = [job_id for job_id in found if job_id not in past]
            known = row.summary.get(DUPLICATES, {})
            left = others if given_up else [*others, *mine[len(new) :]]
            summary = {name: value for name, value in row.summary.items() if name != UNANSWERED}
            summary |= {UNANSWERED: left} if left else {}
            if new:
                most = max([summary.get(LIMIT, 0.0), *(one["limit"] for one in mine)])
                summary |= {DUPLICATES: {**dict.fromkeys(new), **known}, LIMIT: most}
            return replace(row, summary=summary)

        return self._change(key, change)

    def take_duplicate(self, key: str, job_id: str, qpu_seconds: float | None = None) -> Row:
        """Let a duplicate be the row's job, whose own gave no result, and is the duplicate from now on: → submitted.

        Args:
            key: content key of the row, which is submitted or failed.
            job_id: of the duplicate.
            qpu_seconds: charged for the row's own job; None if not known.

        Raises:
            LedgerError: another state.
        """
        stated = None if qpu_seconds is None else as_seconds("qpu_seconds", qpu_seconds)

        def change(row: Row, connection: sqlite3.Connection) -> Row:
            _allow(row, ("submitted", "failed"), f"given the result of {job_id}")
            others = {other: seconds for other, seconds in row.summary.get(DUPLICATES, {}).items() if other != job_id}
            own = row.summary.get(DUPLICATES, {}).get(job_id)
            before = stated
            if row.qpu_seconds is not None:
                before = row.qpu_seconds - (own or 0.0) - sum(seconds or 0.0 for seconds in others.values())
            others[str(row.job_id)] = before
            total = None if own is None else own + sum(seconds or 0.0 for seconds in others.values())
            kept = {name: value for name, value in row.summary.items() if name != AGAIN}
            return replace(row, state="submitted", job_id=job_id, reason="", qpu_seconds=total,
                           summary={**kept, DUPLICATES: others})  # fmt: skip

        return self._change(key, change)

    def failed(
        self, key: str, reason: str, qpu_seconds: float | None = None, *, again: bool = False, **summary: Any
    ) -> Row:
        """Note a failure: planned or submitted → failed. A job that was sent counts with `qpu_seconds`, or its limit.

        Args:
            key: content key of the row.
            reason: for people to read; nothing is decided by it.
            qpu_seconds: charged, None if not known.
            again: whether it never ran or was cancelled, so that the next call sends it again by itself.
            summary: added to the row's.
        """
        seconds = None if qpu_seconds is None else as_seconds("qpu_seconds", qpu_seconds)
        extra = _json(summary)
        text = without_tokens(str(reason)).encode("utf-8", "replace").decode() or "no reason given"

        def change(row: Row, connection: sqlite3.Connection) -> Row:
            if row.state == "failed" and row.reason == text:
                return row
            _allow(row, ("planned", "submitted"), "failed")
            return replace(row, state="failed", reason=text, summary={**row.summary, **extra, AGAIN: bool(again)},
                           qpu_seconds=row.qpu_seconds if seconds is None else seconds)  # fmt: skip

        return self._change(key, change)

    def retry(
        self,
        key: str,
        *,
        run: str | None = None,
        cap: float | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> Row:
        """Plan another attempt: failed → planned; what the failed attempts cost goes on counting.

        Args:
            key: content key of the row.
            run: the run it counts for from now on; None for the one it has.
            cap: of that run, as in `plan`; None for the one it last stated. The caps are checked anew.
            summary: added to the row's.

        Raises:
            BudgetError: another attempt would pass a cap.
            LedgerError: the row has not failed.
        """
        extra = _json(summary or {})

        def change(row: Row, connection: sqlite3.Connection) -> Row:
            _allow(row, ("failed",), "tried again")
            names = ("attempt", "job_id", "session_id", "reason", "qpu_seconds")
            past = {**{name: getattr(row, name) for name in names}, "counted": row.counted_now - row.unanswered_seconds}
            own = {name: row.summary[name] for name in (LIMIT, DUPLICATES, CLOCK) if name in row.summary}
            past |= {name: value for name, value in own.items() if name != LIMIT}
            past |= {name: row.summary[name] for name in (SENT, STATED) if name in row.summary}
            if row.unknown:  # until the service states it, its limit counts
                past[LIMIT] = row.most_seconds
            of_attempt = (*own, AGAIN, SENT, STATED)  # of the one that failed
            kept = {name: value for name, value in row.summary.items() if name not in of_attempt}
            again = replace(row, state="planned", run=run or row.run, attempt=row.attempt + 1, job_id=None,
                            session_id=None, reason="", qpu_seconds=None, earlier=[*row.earlier, past],
                            summary={**kept, **extra})  # fmt: skip
            limit = stored_cap(connection, again.run) if cap is None else cap
            check_caps(connection, again, limit)
            store_cap(connection, limit, again.run)
            return again

        return self._change(key, change)

    def note(self, key: str, **summary: Any) -> Row:
        """Add to what is noted of a row; its state and the time of its last change stay."""
        extra = _json(summary)
        return self._change(key, lambda row, connection: replace(row, summary={**row.summary, **extra}), touched=False)

    def reused(self, key: str, run: str) -> Row:
        """Note that `run` took the result of this row instead of measuring; as `note`."""
        one = _json({"run": run, "at": now()})
        return self._change(
            key,
            lambda row, connection: replace(row, summary={**row.summary, REUSED: [*row.summary.get(REUSED, []), one]}),
            touched=False,
        )

    def keep_unreadable(self, key: str, raw: str) -> Path:
        """Keep what the service gave as an answer and nobody can read, beside the results; the row stays as it is."""
        return keep_beside(self.folder, check_key(key), without_own_tokens(raw))

    def refetch(self, key: str, *, unreadable: bool = False) -> Row:
        """Have an answer fetched again, without paying again: done → submitted.

        For a row whose result file is missing or damaged; a damaged file is kept beside the results.

        Args:
            key: content key of the row.
            unreadable: the file is whole, but what it holds is no result.

        Raises:
            LedgerError: the file is whole, and not `unreadable`.
        """
        row = self._known(self.get(key), key)
        _allow(row, ("done",), "fetched again")
        if not unreadable:
            try:
                self.result(key)
            except DamagedFileError:
                unreadable = True
        if not unreadable:
            raise LedgerError(f"the result of {key[:12]} is whole; nothing has to be fetched again")
        path = self.folder / str(row.result_file)
        if path.exists():
            os.replace(path, path.with_name(path.name + ".damaged"))
        return self._change(
            key, lambda row, connection: replace(row, state="submitted", result_file=None, checksum=None)
        )

    def _name(self) -> None:
        """Give a ledger of an earlier version its name, before anybody copies it."""
        if not self.id:
            with self._file.writing() as connection:
                if stored_note(connection, ID) is None:
                    store_note(connection, ID, uuid.uuid4().hex)

    def _change(self, key: str, change: Any, *, touched: bool = True) -> Row:
        with self._file.writing() as connection:
            row = self._known(next(read_rows(connection, "WHERE key = ?", (check_key(key),)), None), key)
            after: Row = change(row, connection)
            if after != row:
                if touched and after.updated == row.updated:
                    after = replace(after, updated=now())
                write_row(connection, after)
        return after

    def _known(self, row: Row | None, key: str) -> Row:
        if row is None:
            raise LedgerError(f"the ledger {self.folder} has no job {key[:12]}; qhw ledger list shows what it has")
        return row


def _allow(row: Row, states: tuple[str, ...], what: str) -> None:
    if row.state not in states:
        told = {"submitted": f" as {row.job_id}", "done": f" by {row.job_id}", "failed": f" ({row.reason})"}
        raise LedgerError(f"job {row.key[:12]} is {row.state}{told.get(row.state, '')} and cannot be {what}; that "
                          f"takes a row that is {' or '.join(states)}")  # fmt: skip


def _json(value: Mapping[str, Any]) -> dict[str, Any]:
    try:
        copy: dict[str, Any] = json.loads(without_own_tokens(json.dumps(dict(value), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"summary cannot be written as JSON ({error}); use plain values") from error
    return copy
