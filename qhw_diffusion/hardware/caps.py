"""Caps on QPU seconds: what counts against them, and the refusal with its arithmetic."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator

from qhw_diffusion.errors import BudgetError, InvalidInputError, LedgerError
from qhw_diffusion.hardware.ledger_rows import UNANSWERED, Row, read_rows, store_note, stored_note

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
