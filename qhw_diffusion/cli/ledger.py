"""`qhw ledger …`: the jobs that were sent."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

State = Literal["planned", "submitted", "done", "failed"]


def list_jobs(*, run: str | None = None, state: State | None = None, ledger: Path | None = None) -> int:
    """List the jobs and what they cost.

    Args:
        run: run whose jobs are listed: its name in the list, or the beginning of it, such as the name of its folder;
            without it all.
        state: state of the jobs that are listed; without it all.
        ledger: folder of the ledger; without it $QHW_LEDGER, else runs/ledger.
    """
    from qhw_diffusion.hardware import Ledger
    from qhw_diffusion.hardware.report import find_run, list_text
    from qhw_diffusion.masking import without_tokens

    with Ledger.open(ledger, create=False) as opened:
        named = None if run is None else find_run(opened, run)
        print(without_tokens(list_text(opened, opened.rows(named, state))))
    return 0


def show_job(key: Positional[str], *, ledger: Path | None = None) -> int:
    """Print everything about one job, and what to do next.

    Args:
        key: beginning of a job's key, or its job id.
        ledger: folder of the ledger; without it $QHW_LEDGER, else runs/ledger.
    """
    from qhw_diffusion.hardware import Ledger
    from qhw_diffusion.hardware.report import find_row, show_text
    from qhw_diffusion.masking import without_tokens

    with Ledger.open(ledger, create=False) as opened:
        print(without_tokens(show_text(opened, find_row(opened, key))))
    return 0


def adopt_job(key: Positional[str], job_id: Positional[str], *, ledger: Path | None = None) -> int:
    """Give a planned job the id of a job found by hand.

    Args:
        key: beginning of the key of a planned job.
        job_id: id of the job at the service that was sent for it.
        ledger: folder of the ledger; without it $QHW_LEDGER, else runs/ledger.
    """
    from qhw_diffusion.errors import InvalidInputError
    from qhw_diffusion.hardware import Ledger
    from qhw_diffusion.hardware.report import find_row, next_text

    if not job_id.strip():
        raise InvalidInputError(f"JOB-ID is {job_id!r}; give the id that the service gave the job")

    with Ledger.open(ledger, create=False) as opened:
        row = find_row(opened, key)
        with opened.lock(row.key, timeout=2.0):
            row = opened.submitted(row.key, job_id)
        print(f"{row.key[:12]} ({row.purpose}) is job {row.job_id} now\n{next_text(opened, row)}")
    return 0


def export_jobs(
    file: Positional[Path], *, run: str | None = None, state: State | None = None, ledger: Path | None = None
) -> int:
    """Write jobs and results to a CSV or JSON file.

    Args:
        file: file to write: *.csv (a line for each expectation value) or *.json (rows, values and the service's raw
            answers).
        run: run whose jobs are written: its name in `qhw ledger list`, or the beginning of it; without it all.
        state: state of the jobs that are written; without it all.
        ledger: folder of the ledger; without it $QHW_LEDGER, else runs/ledger.
    """
    from qhw_diffusion.hardware import Ledger
    from qhw_diffusion.hardware.report import export_rows, find_run

    with Ledger.open(ledger, create=False) as opened:
        rows = opened.rows(None if run is None else find_run(opened, run), state)
        path = export_rows(opened, rows, file)
    print(f"{len(rows)} job{'s' * (len(rows) != 1)} in {path}")
    return 0


def recover_ledger(*, ledger: Path | None = None) -> int:
    """Check the ledger and its results, and mend what is damaged; the original is kept.

    Args:
        ledger: folder of the ledger; without it $QHW_LEDGER, else runs/ledger.
    """
    from qhw_diffusion.hardware import ledger_folder, recover

    print(recover(ledger_folder(ledger)).text)
    return 0


def cap_ledger(seconds: Positional[str] = "", *, ledger: Path | None = None) -> int:
    """Show, set or remove the cap on the QPU seconds of all jobs.

    Args:
        seconds: new cap in QPU seconds, or none to remove it; without it the cap is shown.
        ledger: folder of the ledger; without it $QHW_LEDGER, else runs/ledger.
    """
    from qhw_diffusion.errors import InvalidInputError
    from qhw_diffusion.hardware import Ledger
    from qhw_diffusion.hardware.caps import as_seconds
    from qhw_diffusion.hardware.report import spent_text

    changes = seconds not in ("", "none")
    try:
        cap = float(seconds) if changes else None
    except ValueError:
        raise InvalidInputError(f"cap is {seconds!r}; allowed: QPU seconds from 0, or none") from None
    if cap is not None:
        as_seconds("cap", cap)  # before a ledger is made for it
    with Ledger.open(ledger, create=changes) as opened:
        if seconds:
            opened.set_cap(cap)
        print(spent_text(opened))
    return 0
