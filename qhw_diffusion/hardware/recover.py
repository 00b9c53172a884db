"""Recovery of a ledger: what can be read goes into a new database, the original is kept, nothing is sent or paid.

Rows are read past damaged pages; the rows of finished jobs also come back from their result files, which say all there
is to know. A job that is done but whose file is lost becomes "submitted" again: its answer can be fetched anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from qhw_diffusion.errors import DamagedFileError, InvalidInputError, LedgerError
from qhw_diffusion.hardware.caps import as_seconds
from qhw_diffusion.hardware.keys import check_key
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_files import (
    FILE,
    RECOVERING,
    RESULTS,
    FolderLock,
    LedgerFile,
    check_folder,
    durable_write,
    read_result,
    result_name,
    sync_folder,
)
from qhw_diffusion.hardware.ledger_rows import (
    COLUMNS,
    ID,
    STATES,
    TAG,
    DamagedLedgerError,
    Row,
    row_of,
    store_note,
    write_row,
)

_FILES = (FILE, f"{FILE}-wal", f"{FILE}-shm")
# The ledger's name in a tag of `keys.ledger_tag`
_TAG = re.compile(r"q-([0-9a-f]{8})-")


@dataclass
class Recovery:
    """What a recovery found.

    Attributes:
        kept: folder with the original files; None if the database was whole and stays as it is.
        rows: jobs in the ledger now.
        from_results: keys of rows that came back from their result files alone.
        refetch: keys of jobs that are done but whose results are lost; the next run fetches them, without a new job.
        suspect: texts of rows that could be read but do not fit their checksums; not taken over.
        complete: whether no row can be missing.
        cap: the cap of the whole ledger, None if it has none or it was lost.
    """

    kept: Path | None = None
    rows: int = 0
    from_results: list[str] = field(default_factory=list)
    refetch: list[str] = field(default_factory=list)
    suspect: list[str] = field(default_factory=list)
    complete: bool = True
    cap: float | None = None

    @property
    def text(self) -> str:
        """For a person: what was found, and what to do."""
        if self.kept is None:
            lines = [f"the database is whole, jobs in it: {self.rows}"]
        else:
            lines = [f"new database, jobs in it: {self.rows}; the original is in {self.kept}"]
        if self.from_results:
            lines.append(f"rebuilt from their result files: {len(self.from_results)}")
        if self.refetch:
            lines.append(
                f"{len(self.refetch)} results are lost here; the command that made them fetches them again, free"
            )
        if self.suspect:
            lines.append(f"rows that do not fit their checksums and were left out: {len(self.suspect)}, in "
                         f"{self.kept}/suspect.json")  # fmt: skip
        if not self.complete:
            lines.append("rows may be missing, and caps do not count them: check the account's usage. From now on "
                         "every job is looked up at the service before it is sent")  # fmt: skip
        if self.kept is not None:
            cap = "no cap: set it again with qhw ledger cap SECONDS" if self.cap is None else f"cap {self.cap:g} s"
            lines.append(cap)
        return "\n".join(lines)


def recover(folder: str | os.PathLike[str]) -> Recovery:
    """Check the ledger in `folder`; rebuild its database if it is damaged; find lost results.

    Interrupted at any point, it is repeated from the kept original. A second recovery finds nothing to do.

    Raises:
        LedgerError: no ledger there, another version, in use, or the folder cannot be written.
    """
    place = Path(folder)
    if not place.is_dir() or not any((place / name).exists() for name in (FILE, RECOVERING, RESULTS)):
        raise LedgerError(f"there is no ledger in {place}; give its folder with --ledger or QHW_LEDGER")
    check_folder(place, create=False, recovering=True)
    lock = FolderLock(place, exclusive=True)
    try:
        for left in place.glob(".recover-*"):  # of a recovery that was killed
            shutil.rmtree(left, ignore_errors=True)
        found = Recovery()
        if (place / RECOVERING).exists() or not _whole(place):
            _rebuild(place, found)
        _check_results(place, found)
        return found
    finally:
        lock.close()


def _whole(folder: Path) -> bool:
    """Whether the database opens and every row fits its seal; LedgerError for what is no damage."""
    if not (folder / FILE).exists():
        return False
    # a copy: opening the original would already write its log into it
    with _copies(folder, folder) as scratch:
        try:
            LedgerFile(scratch, create=False).close()
        except DamagedLedgerError:
            return False
    return True


@contextlib.contextmanager
def _copies(of: Path, beside: Path) -> Iterator[Path]:
    """A folder with copies of a database and its log, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=beside, prefix=".recover-") as scratch:
        for name in _FILES[:2]:  # the shared-memory file is made anew from the other two
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(of / name, Path(scratch) / name)
        yield Path(scratch)


# -- a new database ----------------------------------------------------------------------------------------------------


def _rebuild(folder: Path, found: Recovery) -> None:
    found.kept = _keep_original(folder)
    rows: dict[str, Row] = {}
    with _copies(found.kept, folder) as scratch:
        notes = _salvage(scratch / FILE, rows, found)
    for key, row in _rows_of_results(folder):
        there = rows.get(key)
        if there is None:
            found.from_results.append(key)
            rows[key] = row
        elif there.state != "done" and row.attempt >= there.attempt:
            rows[key] = row  # killed between the file and the row
    if found.suspect:
        durable_write(found.kept / "suspect.json", json.dumps(found.suspect, indent=1).encode())
    # jobs without a file, and their order, are known from the database alone
    found.complete = found.complete and not found.suspect
    with contextlib.suppress(KeyError, ValueError, InvalidInputError):
        found.cap = as_seconds("cap", float(notes["cap"]))
    if ID not in notes:  # its jobs go on being found by it
        tags = [match[1] for row in rows.values() if (match := _TAG.match(str(row.summary.get(TAG))))]
        notes |= {ID: tags[-1]} if tags else {}
    _replace_database(folder, sorted(rows.values(), key=lambda row: row.created), notes, found)


def _keep_original(folder: Path) -> Path:
    marker = folder / RECOVERING
    if marker.exists():  # a recovery was interrupted: the copies are the original, the rest may be half done
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            kept = folder / str(json.loads(marker.read_text(encoding="utf-8"))["kept"])
            if kept.is_dir():
                return kept
        raise LedgerError(f"{marker} does not say where the original is; look for {folder}/damaged-*, copy its files "
                          "back and remove the marker")  # fmt: skip
    stem = time.strftime("damaged-%Y%m%d-%H%M%S", time.gmtime())
    kept = folder / stem
    number = 1
    while kept.exists():
        number += 1
        kept = folder / f"{stem}-{number}"
    kept.mkdir()
    for name in _FILES:
        if (folder / name).exists():
            durable_write(kept / name, (folder / name).read_bytes())
    sync_folder(folder)
    durable_write(marker, json.dumps({"kept": kept.name}).encode())
    return kept


def _replace_database(folder: Path, rows: list[Row], notes: dict[str, str], found: Recovery) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".recover-") as scratch:
        new = LedgerFile(Path(scratch), create=True)
        try:
            with new.writing() as connection:
                for row in rows:
                    write_row(connection, row)
                for name, value in notes.items():
                    store_note(connection, name, value)
                if not found.complete:
                    store_note(connection, "incomplete", found.kept.name if found.kept else "")
        finally:
            new.close()  # the last connection writes the log back into the database
        data = (Path(scratch) / FILE).read_bytes()
    for name in _FILES[1:]:  # an old log beside the new database would be written into it
        (folder / name).unlink(missing_ok=True)
    durable_write(folder / FILE, data)
    (folder / RECOVERING).unlink()
    sync_folder(folder)


# -- reading what is left ----------------------------------------------------------------------------------------------


def _salvage(path: Path, rows: dict[str, Row], found: Recovery) -> dict[str, str]:
    """Fill `rows` from a damaged database, and return its notes."""
    notes: dict[str, str] = {}
    if not path.exists() or path.stat().st_size == 0:
        found.complete = False
        return notes
    connection = sqlite3.connect(path, isolation_level=None)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    try:
        try:
            for name, value in connection.execute("SELECT name, value FROM notes"):
                notes[str(name)] = str(value)
        except sqlite3.Error:
            found.complete = False
        for record in _scan(connection, found):
            try:
                row = row_of(record)
            except (LedgerError, TypeError, ValueError):
                found.suspect.append(json.dumps(record, ensure_ascii=False, default=str))
                continue
            if row.key not in rows or rows[row.key].updated < row.updated:
                rows[row.key] = row
        told = [line for (line,) in _quietly(connection, "PRAGMA integrity_check(5)")]
        # a wrong index loses nothing: the table itself was read from both ends
        if not told or any("index" not in line and line != "ok" for line in told):
            found.complete = False
    finally:
        connection.close()
    return notes


def _scan(connection: sqlite3.Connection, found: Recovery) -> Iterator[tuple[Any, ...]]:
    """Every row of the table that can be read: from the front, from the back, then one by one over the gap."""
    sql = f"SELECT number, {', '.join(COLUMNS)}, seal FROM jobs NOT INDEXED"
    seen: set[int] = set()
    failed = False
    for order in ("ASC", "DESC"):
        try:
            for number, *record in connection.execute(f"{sql} ORDER BY number {order}"):
                if number not in seen:
                    seen.add(number)
                    yield tuple(record)
        except sqlite3.Error:
            failed = True
        if not failed:
            return
    found.complete = False
    # a row takes more than 256 bytes, so there can be no more of them than this
    pages = next(_quietly(connection, "PRAGMA page_count"), (0,))[0]
    for number in range(1, pages * 4096 // 256 + max(seen, default=0) + 1):
        if number not in seen:
            for found_number, *record in _quietly(connection, f"{sql} WHERE number = {number}"):
                seen.add(found_number)
                yield tuple(record)


def _quietly(connection: sqlite3.Connection, sql: str) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(sqlite3.Error):
        yield from connection.execute(sql)


def _rows_of_results(folder: Path) -> Iterator[tuple[str, Row]]:
    """The rows that whole result files tell of."""
    names = {column.name for column in fields(Row)}
    for path in sorted((folder / RESULTS).glob("*.json.gz")):
        try:
            told, _ = read_result(path, None)
            row = Row(**{name: value for name, value in told.items() if name in names})
            if result_name(check_key(row.key)) != f"{RESULTS}/{path.name}" or row.state not in STATES:
                continue
        except (DamagedFileError, InvalidInputError, TypeError):
            continue
        yield row.key, replace(row, state="done", result_file=result_name(row.key), checksum=_sha(path))


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- results -----------------------------------------------------------------------------------------------------------


def _check_results(folder: Path, found: Recovery) -> None:
    file = LedgerFile(folder, create=False)
    ledger = Ledger(file)
    try:
        rows = ledger.rows()
        found.rows, found.cap = len(rows), ledger.cap
        for row in rows:
            if row.state == "done":
                try:
                    ledger.result(row.key)
                except DamagedFileError:
                    ledger.refetch(row.key)
                    found.refetch.append(row.key)
    finally:
        file.close()
