"""All rows and results of a ledger in one file: CSV with a line for each expectation value, or JSON with everything."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qhw_diffusion.errors import DamagedFileError, InvalidInputError, LedgerError
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_rows import COLUMNS, Row
from qhw_diffusion.hardware.results import durable_write
from qhw_diffusion.hardware.service import Measured
from qhw_diffusion.masking import without_own_tokens

_JOB = tuple(name for name in COLUMNS if name != "earlier")
# Of all attempts: what was charged (empty while not known), what counts against caps, and jobs without a result
_COSTS = ("charged_seconds", "counted_seconds", "unused_jobs")
_VALUE = ("pub", "observable", "row", "value", "std_error", "value_shots", "trouble")


def export_rows(ledger: Ledger, rows: Sequence[Row], path: str | Path) -> Path:
    """Write `rows` with their results to `path`; its ending says how.

    ``.csv``: a line for each PUB, observable and row of parameters; one line without a value for a job that has no
    result. ``.json``: a list of rows, each with the decoded values and the service's raw answer. A result that is
    damaged or cannot be decoded is named in the column or entry ``trouble``; the others are written all the same.
    What is not finite, such as a standard error that the client cannot tell, is ``inf`` or ``nan``, in JSON as a text.

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


def decode_answer(raw: str) -> list[Measured]:
    """Values, standard errors and shots of each PUB in a raw answer, of IBM's programs or of a fake device.

    Raises:
        DamagedFileError: it is neither.
    """
    try:
        document = json.loads(raw)
        if "pubs" in document:
            return [
                (np.asarray(pub["values"], float), np.asarray(pub["std_errors"], float), int(pub["shots"]))
                for pub in document["pubs"]
            ]
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedFileError(f"the answer is none of a fake device ({type(error).__name__}: {error})") from error
    from qhw_diffusion.hardware.ibm import decode

    return decode(raw)


def _answers(ledger: Ledger, row: Row) -> tuple[str | None, list[Measured], str]:
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
    writer.writerow([*_JOB, *_COSTS, *_VALUE])
    for row in rows:
        job = {**asdict(row), "summary": json.dumps(row.summary, ensure_ascii=False)}
        costs = _costs(row)
        job |= {**costs, "unused_jobs": json.dumps(costs["unused_jobs"], ensure_ascii=False)}
        front = ["" if job[name] is None else job[name] for name in (*_JOB, *_COSTS)]
        _, measured, trouble = _answers(ledger, row)
        for value in list(_values(measured)) or [("",) * 6]:
            writer.writerow([*front, *value, trouble])
    return buffer.getvalue()


def _costs(row: Row) -> dict[str, Any]:
    return dict(zip(_COSTS, (row.charge, row.counted, row.unused_jobs), strict=True))


def _values(measured: Sequence[Measured]) -> Iterator[tuple[Any, ...]]:
    for pub, (values, errors, shots) in enumerate(measured):
        for (observable, number), value in np.ndenumerate(values):
            yield pub, observable, number, repr(float(value)), repr(float(errors[observable, number])), shots


def _plain(values: np.ndarray) -> list[list[float | str]]:
    """Numbers for JSON, which has no infinity: "inf" as a text, as in CSV."""
    return [[x if math.isfinite(x) else str(x) for x in row] for row in values.tolist()]


def _as_json(ledger: Ledger, rows: Sequence[Row]) -> str:
    entries = []
    for row in rows:
        raw, measured, trouble = _answers(ledger, row)
        pubs = [{"values": _plain(v), "std_errors": _plain(e), "shots": s} for v, e, s in measured]
        entries.append({**asdict(row), **_costs(row), "results": pubs, "raw": raw, "trouble": trouble})
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
