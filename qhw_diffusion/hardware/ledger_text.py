"""What `qhw ledger list` and `show` print."""

from __future__ import annotations

from collections.abc import Sequence

from qhw_diffusion.errors import DamagedFileError, InvalidInputError, LedgerError
from qhw_diffusion.hardware.keys import tag_of
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_rows import STATES, TAG, Row

SHORT = 12


def find_row(ledger: Ledger, prefix: str) -> Row:
    """The one row whose key or job id starts with `prefix`.

    Raises:
        InvalidInputError: none, or several; the message lists them.
    """
    text = prefix.strip().lower()
    rows = ledger.rows()
    found = [row for row in rows if row.job_id == prefix.strip()] or [row for row in rows if row.key.startswith(text)]
    if not text or not found:
        raise InvalidInputError(f"no job of {ledger.folder} has a key that starts with {prefix!r}, or that job id; "
                                "qhw ledger list shows them")  # fmt: skip
    if len(found) > 1:
        names = ", ".join(row.key[: max(SHORT, len(text) + 4)] for row in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise InvalidInputError(f"{prefix!r} is the beginning of {len(found)} keys: {names}{more}; give more of it")
    return found[0]


def list_text(ledger: Ledger, rows: Sequence[Row]) -> str:
    """A table of these rows, and what the whole ledger has spent."""
    heads = ("key", "state", "run", "device", "job", "circuits × shots", "QPU s", "updated", "purpose")
    lines = [heads, *(_line(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    told = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    body = table if rows else ["no jobs"]
    return "\n".join(
        [*body, "", f"{len(rows)} job{'s' * (len(rows) != 1)}{': ' * bool(told)}{told}", spent_text(ledger)]
    )


def spent_text(ledger: Ledger) -> str:
    """QPU seconds that count against the cap, and the cap."""
    spent, cap = ledger.spent(), ledger.cap
    limit = "no cap of its own" if cap is None else f"cap {cap:g} s, {max(0.0, cap - spent):.2f} s left"
    text = f"ledger {ledger.folder}: {spent:.2f} QPU seconds measured or reserved, {limit}"
    return text + ("\nrows may be missing since a recovery; caps do not count them" if ledger.incomplete else "")


def show_text(ledger: Ledger, row: Row) -> str:
    """Everything about one row, and what to do next."""
    kind = "paid" if row.paid else "free"
    lines = [
        ("key", row.key),
        ("run", row.run),
        ("purpose", row.purpose),
        ("device", f"{row.device} ({kind})"),
        ("state", row.state + (f": {row.reason}" if row.reason else "")),
        ("job id", row.job_id or "none known"),
        ("session or batch", row.session_id or "none known"),
        ("tags", ", ".join(tag_of(row.run, row.key, row.summary.get(TAG)))),
        ("circuits × shots", f"{row.circuits:,} × {row.shots:,}"),
        ("estimated", f"{row.estimate_seconds:.2f} QPU seconds"),
        ("measured", "not known" if row.qpu_seconds is None else f"{row.qpu_seconds:.2f} QPU seconds"),
        ("counts as", f"{row.counted:.2f} QPU seconds against caps" + _reserved(row)),
        ("planned", row.created),
        ("last change", row.updated),
        ("attempt", str(row.attempt)),
        *((f"attempt {past['attempt']}", _past(past)) for past in row.earlier),
        *((name, str(value)) for name, value in row.summary.items()),
    ]
    if row.result_file is not None:
        lines.append(("result", f"{ledger.folder / row.result_file}"))
        lines.append(("SHA-256", f"{row.checksum} ({'whole' if _whole(ledger, row) else 'DAMAGED'})"))
    width = max(len(name) for name, _ in lines)
    return "\n".join([*(f"{name.ljust(width)}  {value}" for name, value in lines), "", next_text(ledger, row)])


def next_text(ledger: Ledger, row: Row) -> str:
    """What to do with a row in its state."""
    if row.state == "planned":
        return (
            "Next: run the same command again. Its job may have been sent: it is looked up by its tag, taken over if\n"
            "it is there, and sent only if it is not. If you know its id (from the service's web page, say):\n"
            f"qhw ledger adopt --ledger {ledger.folder} {row.key[:SHORT]} JOB_ID"
        )
    if row.state == "submitted":
        return "Next: run the same command again. It waits for this job and takes its result; no second job is sent."
    if row.state == "failed":
        if row.sent_again:
            return (
                "Next: run the same command again. The job never ran or was cancelled: it goes out once more, within\n"
                "the caps."
            )
        return (
            "Next: run the same command with --retry-failed. The job failed on the device: another attempt costs\n"
            "again, within the caps."
        )
    if not _whole(ledger, row):
        return (
            "Next: run the same command again: it fetches the result from the service, without a new job.\n"
            f"qhw ledger recover --ledger {ledger.folder} checks all results."
        )
    return "Next: nothing. Every command that needs this result takes it from here, for nothing."


def _line(row: Row) -> tuple[str, ...]:
    seconds = f"{'≤ ' if row.reserved else ''}{row.counted:.2f}"
    state = row.state + (f" (attempt {row.attempt})" if row.attempt > 1 else "")
    return (row.key[:SHORT], state, row.run, row.device, row.job_id or "-", f"{row.circuits:,} × {row.shots:,}",
            seconds if row.paid else "free", row.updated[:19].replace("T", " "), row.purpose)  # fmt: skip


def _reserved(row: Row) -> str:
    unheard = row.unanswered_seconds
    parts = [
        f", {row.reserved - unheard:.2f} of them limits of jobs whose charge is not known" * (row.reserved > unheard),
        f", {unheard:.2f} of them for submissions that got no reply" * (unheard > 0),
    ]
    return "".join(parts)


def _past(past: dict[str, object]) -> str:
    return f"{past['job_id'] or 'no job'}: {past['reason']} (counts as {float(str(past['counted'])):.2f} QPU seconds)"


def _whole(ledger: Ledger, row: Row) -> bool:
    try:
        ledger.result(row.key)
    except (DamagedFileError, LedgerError):
        return False
    return True
