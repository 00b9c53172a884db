"""Caps on QPU seconds: what counts against them, what each job may take, and the refusal with its arithmetic."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qhw_diffusion.errors import BudgetError, InvalidInputError, LedgerError
from qhw_diffusion.hardware.ledger_rows import LIMIT, UNANSWERED, Row, read_rows, store_note, stored_note

if TYPE_CHECKING:
    from qhw_diffusion.hardware.ledger import Ledger
    from qhw_diffusion.hardware.submit import Job

# -- what the ledger's rows count for ----------------------------------------------------------------------------------


# A charge that is not known is a null, of the row or in the JSON of its duplicates and earlier attempts
_MAY_BE_UNKNOWN = (
    f"qpu_seconds IS NULL OR instr(summary, 'null') OR instr(earlier, 'null') OR instr(summary, '\"{UNANSWERED}\"')"
)


def check_caps(connection: sqlite3.Connection, row: Row, cap: float | None) -> None:
    """BudgetError if the row as it is to be, instead of the one with its key, passes its run's cap or the ledger's."""
    limit = None if cap is None else as_seconds("cap", cap)
    ledger = stored_cap(connection)
    if not row.paid:
        return
    if limit is None and ledger is None:
        raise BudgetError(f"{row.device} is paid for and there is no cap; set one for the run (--max-qpu-seconds) or "
                          "for the ledger (qhw ledger cap SECONDS)")  # fmt: skip
    for name, most, run in ((f"run {row.run!r}", limit, row.run), ("the ledger", ledger, None)):
        if most is None:
            continue
        measured, reserved = seconds_spent(connection, run, without=row.key)
        past = row.counted - row.counted_now
        total = measured + reserved + past + row.counted_now
        if total > most + 1e-9:
            how = "--max-qpu-seconds" if run is not None else "qhw ledger cap"
            raise BudgetError(
                f"{name} would pass its cap: {measured + past:.2f} s measured + {reserved:.2f} s reserved by jobs not "
                f"yet measured + {row.counted_now:.2f} s for this job = {total:.2f} s > {most:.2f} s; not sent. "
                f"Use fewer shots or rows, or raise the cap ({how})"
            )


def seconds_spent(connection: sqlite3.Connection, run: str | None, without: str = "") -> tuple[float, float]:
    """Seconds measured, and seconds reserved for what is not measured; of one run, without one key, if given."""
    # The column is what counted when the row was written, which is right for rows that know all their charges; the
    # others are asked themselves, so that rows of earlier versions count right as well
    sql = f"SELECT TOTAL(counted) FROM jobs WHERE (?1 IS NULL OR run = ?1) AND key != ?2 AND NOT ({_MAY_BE_UNKNOWN})"
    measured = float(connection.execute(sql, (run, without)).fetchone()[0])
    rows = [row for row in rows_to_ask(connection) if row.key != without and run in (None, row.run)]
    reserved = sum(row.reserved for row in rows)
    return measured + sum(row.counted for row in rows) - reserved, reserved


def rows_to_ask(connection: sqlite3.Connection) -> Iterator[Row]:
    """The rows that may have a job whose charge is not known."""
    return read_rows(connection, f"WHERE {_MAY_BE_UNKNOWN}")


def stored_cap(connection: sqlite3.Connection, run: str | None = None) -> float | None:
    """The cap of the whole ledger, or the one a run last stated; None if there is none."""
    found = stored_note(connection, _name(run))
    try:
        return None if found is None else as_seconds("cap", float(found))
    except ValueError as error:  # InvalidInputError is one
        raise LedgerError(f"the ledger's cap is damaged ({found!r}); set it again with qhw ledger cap") from error


def store_cap(connection: sqlite3.Connection, seconds: float | None, run: str | None = None) -> None:
    """Keep the cap of the whole ledger or of a run; None removes it."""
    if seconds is None:
        connection.execute("DELETE FROM notes WHERE name = ?", (_name(run),))
    else:
        store_note(connection, _name(run), repr(as_seconds("cap", seconds)))


def as_seconds(name: str, value: float) -> float:
    """`value` as a float; InvalidInputError unless finite and not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InvalidInputError(f"{name} is {value!r}; allowed: seconds from 0")
    return float(value)


def _name(run: str | None) -> str:
    return "cap" if run is None else f"cap of run {run}"


# -- the share of each job, before any is sent -------------------------------------------------------------------------


# The service's own limit for one job, seconds
LONGEST_JOB = 3 * 3600


def share_budget(
    jobs: Sequence[Job],
    ledger: Ledger,
    *,
    run: str,
    device: str,
    cap: float | None,
    remaining: float | None,
    session_overhead: float = 0.0,
) -> int:
    """Give each job its limit, `Job.max_seconds`; together they fit into what is left, even if every job uses it up.

    So a job counts with its limit until its charge is known: for another process under the same cap, what it leaves is
    all there is. The service takes limits in whole seconds, so each job counts with its estimate rounded up.

    Args:
        jobs: about to be sent to a paid device, with their estimates.
        ledger: what was spent so far, and its own cap.
        run: whose cap it is.
        device: for the message.
        cap: of the run, QPU seconds.
        remaining: QPU seconds the account has left; None without limit.
        session_overhead: seconds charged for sessions of the run beyond their jobs.

    Returns:
        Whole seconds left before these jobs.

    Raises:
        BudgetError: neither a cap of the run nor of the ledger, less left than the jobs need, or a job that is longer
            than the service allows.
    """
    if cap is None and ledger.cap is None:
        raise BudgetError(
            f"{device} is paid by the second and there is no cap: give --max-qpu-seconds (max_qpu_seconds), or the "
            "ledger one (Ledger.set_cap). `qhw cost` says what to expect. Nothing was sent"
        )
    for job in jobs:
        if job.seconds > LONGEST_JOB:
            raise BudgetError(
                f"a job on {device} would take about {job.seconds:.0f} s; the service ends jobs after three hours "
                f"({LONGEST_JOB} s) and charges them. Nothing was sent; use fewer shots or rows"
            )
    # Rows that an interrupted call planned for these very jobs are in `spent` already
    planned = [row for job in jobs if (row := ledger.get(job.key)) is not None and row.state == "planned"]
    left: dict[str, float] = {}
    if cap is not None:
        spent = ledger.spent(run) - sum(_own(row) for row in planned if row.run == run) + session_overhead
        left[f"the run's cap is {cap:g} s, {spent:.1f} s of it spent or in flight"] = cap - spent
    if ledger.cap is not None:
        spent = ledger.spent() - sum(_own(row) for row in planned) + session_overhead
        left[f"the ledger's cap is {ledger.cap:g} s, {spent:.1f} s of it spent or in flight"] = ledger.cap - spent
    if remaining is not None:
        flying = ledger.reserved() - sum(_own(row) for row in planned)
        left[f"the account has {remaining:.0f} s, {flying:.1f} s of it in flight"] = remaining - flying
    why = min(left, key=lambda text: left[text])
    need = sum(job.whole_seconds for job in jobs)
    if need > left[why]:
        unstated = [job_id for row in ledger.with_unknown_charges() for job_id in row.unknown]
        later = (
            f" {_jobs(len(unstated))} ended without a charge so far ({', '.join(unstated[:3])}"
            f"{', …' if len(unstated) > 3 else ''}), and count with their limits until the service states it: the same "
            "command may fit later."
            if unstated
            else ""
        )
        if unheard := sum(row.unanswered_seconds for row in ledger.with_unanswered()):
            later += (
                f" {unheard:.1f} s are kept for submissions that got no reply, in case they were accepted after all; "
                "they are looked for again by every command, and given up after a while."
            )
        raise BudgetError(
            f"{_jobs(len(jobs))} on {device} would take about "
            f"{sum(job.seconds for job in jobs):.1f} s ({need} s in whole seconds), and {max(left[why], 0):.1f} s are "
            f"left: {why}.{later} Nothing was sent; use fewer shots or rows, or raise the cap"
        )
    spare = math.floor(left[why]) - need
    # Another submission without reply would count with all it may cost: leave room to send it again
    part = 8 if ledger.with_unanswered() else 1
    for job in jobs:
        share = spare * job.whole_seconds // need if need else spare
        job.max_seconds = max(1, min(job.whole_seconds + share // part, LONGEST_JOB))
        job.summary = {**job.summary, LIMIT: job.max_seconds}
    return math.floor(left[why])


def _own(row: Row) -> float:
    """What a planned row counts for the job that is to be sent, without earlier submissions of it."""
    return row.counted_now - row.unanswered_seconds


def _jobs(number: int) -> str:
    return f"{number} job{'s' if number != 1 else ''}"
