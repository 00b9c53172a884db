"""A ledger for people and other programs: what `qhw ledger list` and `show` print, and the export of all results.

The export is CSV with a line for each expectation value, or for each outcome that was counted, or JSON with everything.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qhw_diffusion.errors import DamagedFileError, InvalidInputError, LedgerError
from qhw_diffusion.hardware.keys import tag_of
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_files import durable_write
from qhw_diffusion.hardware.ledger_rows import COLUMNS, STATES, TAG, Row
from qhw_diffusion.hardware.local import decode_local
from qhw_diffusion.hardware.provenance import COSTS, NOTED, calibration_file, record
from qhw_diffusion.hardware.service import Measured, Sampled
from qhw_diffusion.masking import without_own_tokens

# -- list and show -----------------------------------------------------------------------------------------------------


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


def find_run(ledger: Ledger, name: str) -> str:
    """The one run of the ledger that is called so, or whose name begins so.

    On a paid device a run's name is its folder's with the run's id behind it: ``rollout-7-1f0c9a2e``.

    Raises:
        InvalidInputError: none, or several; the message lists them.
    """
    runs = list(dict.fromkeys(row.run for row in ledger.rows()))
    text = Path(name).name
    found = [run for run in runs if run in (name, text)] or [run for run in runs if text and run.startswith(text)]
    if len(found) == 1:
        return found[0]
    listed = found or runs
    names = ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
    if found:
        raise InvalidInputError(f"{name!r} is the beginning of {len(found)} runs: {names}; give more of it")
    raise InvalidInputError(f"{ledger.folder} has no run that begins with {name!r}; it has {names or 'none'}")


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
        *_known(ledger, row),
    ]
    if row.result_file is not None:
        lines.append(("result", f"{ledger.folder / row.result_file}"))
        lines.append(("SHA-256", f"{row.checksum} ({'whole' if _whole(ledger, row) else 'DAMAGED'})"))
    width = max(len(name) for name, _ in lines)
    return "\n".join([*(f"{name.ljust(width)}  {value}" for name, value in lines), "", next_text(ledger, row)])


# Columns of `provenance.record` that are shown as they are, and how many PUBs are listed
_SHOWN = (
    "primitive",
    "program",
    "mode",
    "instance",
    "plan",
    "created",
    "started",
    "finished",
    "executions",
    "backend_version",
)
_MOST_PUBS = 40


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


def _known(ledger: Ledger, row: Row) -> list[tuple[str, str]]:
    """What was noted of how the job was sent and what the service states of it, as far as there is something."""
    told = record(row)
    lines = [(name.replace("_", " "), str(told[name])) for name in _SHOWN if told[name] not in (None, "")]
    if told["snapshot"]:
        path = calibration_file(ledger.folder, told["snapshot"])
        kept = str(path) if path.exists() else "not kept"
        lines.append(("calibration", f"of {told['calibration_date'] or 'no date'}, SHA-256 {told['snapshot']}: {kept}"))
    if told["layout"]:
        places = dict.fromkeys("unknown" if q is None else ", ".join(map(str, q)) for q in told["layout"])
        lines.append(("physical qubits", "; ".join(places)))
    if told["rep_delay_seconds"] is not None:
        lines.append(("repetition delay", f"{told['rep_delay_seconds'] * 1e6:g} µs"))
    if told["options"]:
        lines.append(("options", json.dumps(told["options"], ensure_ascii=False)))
    lines += [(f"PUB {number}", label) for number, label in enumerate(told["pubs"] or ())][:_MOST_PUBS]
    if len(told["pubs"] or ()) > _MOST_PUBS:
        lines.append(("PUBs", f"{len(told['pubs'])} in all; qhw ledger export has every one"))
    if told["packages"]:
        lines.append(("packages", ", ".join(f"{name} {number}" for name, number in told["packages"].items())))
    lines += [("reused by", f"{one.get('run')}, {one.get('at')}") for one in told["reused_by"]]
    return lines + [(name, str(value)) for name, value in told["summary"].items()]


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


# -- export ------------------------------------------------------------------------------------------------------------


_OWN = tuple("planned" if name == "created" else name for name in COLUMNS)
# In CSV `layout` and `pubs` of the line's PUB stand beside its number
_OF_PUB = ("layout", "pubs")
_JOB = tuple(name for name in (*_OWN, *NOTED, *COSTS) if name not in ("earlier", *_OF_PUB))
_VALUE = ("pub", *_OF_PUB, "observable", "row", "value", "std_error", "value_shots", "outcome", "count", "trouble")


def export_rows(ledger: Ledger, rows: Sequence[Row], path: str | Path) -> Path:
    """Write `rows` with their results to `path`; its ending says how.

    What is known of a job is `provenance.record`. ``.csv``: a line for each PUB, observable and row of parameters (of a
    Sampler's: for each outcome, written as ``register=bits`` with the highest bit first, and its count), with layout
    and label of that PUB; one line without a value, with those of all PUBs, for a job that has no result; lists and
    dictionaries are JSON. ``.json``: a list of rows, each with the decoded values and the service's raw answer. A
    result that is damaged or cannot be decoded is named in the column or entry ``trouble``; the others are written all
    the same. What is not finite, such as a standard error that the client cannot tell, is ``inf`` or ``nan``, in JSON
    as a text.

    Raises:
        InvalidInputError: another ending. LedgerError: the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in (".csv", ".json"):
        raise InvalidInputError(f"export file {str(target)!r} must end in .csv or .json")
    text = _as_csv(ledger, rows) if target.suffix.lower() == ".csv" else _as_json(ledger, rows)
    text = without_own_tokens(text)  # a ledger may have rows of versions that masked less
    try:
        durable_write(target, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise LedgerError(f"{target} cannot be written ({error.strerror or error}); give another file") from error
    return target


def decode_answer(raw: str) -> list[Measured] | list[Sampled]:
    """What is said of each PUB in a raw answer, of IBM's programs or of a fake device.

    Raises:
        DamagedFileError: it is neither.
    """
    try:
        local = "pubs" in json.loads(raw)
    except (ValueError, TypeError) as error:
        raise DamagedFileError(f"the answer is no JSON ({error})") from error
    if local:
        return decode_local(raw)
    from qhw_diffusion.hardware.ibm import decode

    return decode(raw)


def _answers(ledger: Ledger, row: Row) -> tuple[str | None, list[Measured] | list[Sampled], str]:
    if row.state != "done":
        return None, [], ""
    raw = None
    try:
        raw = ledger.result(row.key)
        return raw, decode_answer(raw), ""
    except DamagedFileError as error:
        return raw, [], str(error)


def _as_csv(ledger: Ledger, rows: Sequence[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*_JOB, *_VALUE])
    for row in rows:
        job = record(row)
        front = [_cell(job[name]) for name in _JOB]
        _, measured, trouble = _answers(ledger, row)
        every = [_cell(job[name]) for name in _OF_PUB]
        for pub, *value in list(_values(measured)) or [("",) * 8]:
            one = every if pub == "" else [_cell(_of_pub(job[name], pub)) for name in _OF_PUB]
            writer.writerow([*front, pub, *one, *value, trouble])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value


def _of_pub(values: list[Any] | None, pub: int) -> Any:
    return values[pub] if values is not None and pub < len(values) else None


def _values(measured: Sequence[Measured | Sampled]) -> Iterator[tuple[Any, ...]]:
    for pub, answer in enumerate(measured):
        if isinstance(answer, dict):
            for number, (shots, counts) in enumerate(_counts(answer)):
                for outcome, count in counts.items():
                    yield pub, "", number, "", "", shots, outcome, count
            continue
        values, errors, shots = answer
        for (observable, number), value in np.ndenumerate(values):
            yield pub, observable, number, repr(float(value)), repr(float(errors[observable, number])), shots, "", ""


def _counts(bits: Sampled) -> list[tuple[int, dict[str, int]]]:
    """(shots, {outcome of all registers: count}) of each row, the most frequent outcome first."""
    names = list(bits)
    (rows,) = bits[names[0]].shape
    counted = []
    for row in range(rows):
        texts = zip(*(bits[name][row].get_bitstrings() for name in names), strict=True)
        counts = Counter(" ".join(f"{n}={t}" for n, t in zip(names, text, strict=True)) for text in texts)
        counted.append((bits[names[0]].num_shots, dict(counts.most_common())))
    return counted


def _plain(values: np.ndarray) -> list[list[float | str]]:
    """Numbers for JSON, which has no infinity: "inf" as a text, as in CSV."""
    return [[x if math.isfinite(x) else str(x) for x in row] for row in values.tolist()]


def _as_plain(answer: Measured | Sampled) -> dict[str, Any]:
    if isinstance(answer, dict):
        counted = _counts(answer)
        return {"counts": [counts for _, counts in counted], "shots": counted[0][0]}
    values, errors, shots = answer
    return {"values": _plain(values), "std_errors": _plain(errors), "shots": shots}


def _as_json(ledger: Ledger, rows: Sequence[Row]) -> str:
    entries = []
    for row in rows:
        raw, measured, trouble = _answers(ledger, row)
        pubs = [_as_plain(one) for one in measured]
        entries.append({**record(row), "results": pubs, "raw": raw, "trouble": trouble})
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
