"""The sub-commands of the ledger. Thin: heavy libraries load only when a sub-command needs them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

Parser = argparse.ArgumentParser


def _flags_ledger(parser: Parser) -> None:
    parser.add_argument("--ledger", metavar="DIR", help="folder of the ledger [$QHW_LEDGER, else runs/ledger]")


def _flags_choice(parser: Parser) -> None:
    _flags_ledger(parser)
    parser.add_argument("--run", metavar="NAME", dest="run_name", help="jobs of this run only [all]")
    states = ("planned", "submitted", "done", "failed")
    parser.add_argument("--state", choices=states, help="jobs in this state only [all]")


def list_jobs(arguments: argparse.Namespace) -> int:
    """`qhw ledger list`."""
    from qhw_diffusion.hardware import Ledger
    from qhw_diffusion.hardware.ledger_text import list_text
    from qhw_diffusion.masking import without_tokens

    with Ledger.open(arguments.ledger, create=False) as ledger:
        print(without_tokens(list_text(ledger, ledger.rows(arguments.run_name, arguments.state))))
    return 0


def _flags_show(parser: Parser) -> None:
    parser.add_argument("key", metavar="KEY", help="the beginning of a job's key, or its job id")
    _flags_ledger(parser)


def show_job(arguments: argparse.Namespace) -> int:
    """`qhw ledger show KEY`."""
    from qhw_diffusion.hardware import Ledger
    from qhw_diffusion.hardware.ledger_text import find_row, show_text
    from qhw_diffusion.masking import without_tokens

    with Ledger.open(arguments.ledger, create=False) as ledger:
        print(without_tokens(show_text(ledger, find_row(ledger, arguments.key))))
    return 0


def _flags_adopt(parser: Parser) -> None:
    parser.add_argument("key", metavar="KEY", help="the beginning of the key of a planned job")
    parser.add_argument("job_id", metavar="JOB_ID", help="id of the job at the service that was sent for it")
    _flags_ledger(parser)


def adopt_job(arguments: argparse.Namespace) -> int:
    """`qhw ledger adopt KEY JOB_ID`."""
    from qhw_diffusion.hardware import Ledger
    from qhw_diffusion.hardware.ledger_text import find_row, next_text

    with Ledger.open(arguments.ledger, create=False) as ledger:
        row = find_row(ledger, arguments.key)
        with ledger.lock(row.key, timeout=2.0):
            row = ledger.submitted(row.key, arguments.job_id)
        print(f"{row.key[:12]} ({row.purpose}) is job {row.job_id} now\n{next_text(ledger, row)}")
    return 0


def _flags_export(parser: Parser) -> None:
    text = "*.csv: a line for each expectation value; *.json: rows, values and the service's raw answers"
    parser.add_argument("file", metavar="FILE", help=text)
    _flags_choice(parser)


def export_jobs(arguments: argparse.Namespace) -> int:
    """`qhw ledger export FILE`."""
    from qhw_diffusion.hardware import Ledger
    from qhw_diffusion.hardware.export import export_rows

    with Ledger.open(arguments.ledger, create=False) as ledger:
        rows = ledger.rows(arguments.run_name, arguments.state)
        path = export_rows(ledger, rows, arguments.file)
    print(f"{len(rows)} job{'s' * (len(rows) != 1)} in {path}")
    return 0


def recover_ledger(arguments: argparse.Namespace) -> int:
    """`qhw ledger recover`."""
    from qhw_diffusion.hardware import ledger_folder, recover

    print(recover(ledger_folder(arguments.ledger)).text)
    return 0


def _flags_cap(parser: Parser) -> None:
    parser.add_argument("seconds", nargs="?", metavar="SECONDS", help="the new cap in QPU seconds, or none [show it]")
    _flags_ledger(parser)


def cap_ledger(arguments: argparse.Namespace) -> int:
    """`qhw ledger cap [SECONDS]`."""
    from qhw_diffusion.errors import InvalidInputError
    from qhw_diffusion.hardware import Ledger
    from qhw_diffusion.hardware.caps import as_seconds
    from qhw_diffusion.hardware.ledger_text import spent_text

    given = arguments.seconds
    try:
        seconds = None if given in (None, "none") else float(given)
    except ValueError:
        raise InvalidInputError(f"cap is {given!r}; allowed: QPU seconds from 0, or none") from None
    if seconds is not None:
        as_seconds("cap", seconds)  # before a ledger is made for it
    with Ledger.open(arguments.ledger, create=given not in (None, "none")) as ledger:
        if given is not None:
            ledger.set_cap(seconds)
        print(spent_text(ledger))
    return 0


COMMANDS: dict[tuple[str, ...], tuple[str, Callable[[Parser], None] | None, Callable[[argparse.Namespace], int]]] = {
    ("ledger", "list"): ("list the jobs and what they cost", _flags_choice, list_jobs),
    ("ledger", "show"): ("everything about one job, and what to do next", _flags_show, show_job),
    ("ledger", "adopt"): ("give a planned job the id of a job found by hand", _flags_adopt, adopt_job),
    ("ledger", "export"): ("write jobs and results to a CSV or JSON file", _flags_export, export_jobs),
    ("ledger", "cap"): ("show, set or remove the cap on the QPU seconds of all jobs", _flags_cap, cap_ledger),
    ("ledger", "recover"): (
        "check the ledger and its results, and mend what is damaged; the original is kept",
        _flags_ledger,
        recover_ledger,
    ),
}
