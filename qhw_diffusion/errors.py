"""The error hierarchy: everything the package raises on purpose derives from `QhwError`.

Each class also derives from the built-in it is, so `except ValueError` keeps working. A message says what was given,
what is allowed, and what to do. It may quote an error of IBM's client, a command or a file, so credentials in it are
masked when the error is made.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar

from qhw_diffusion.masking import without_tokens


class QhwError(Exception):
    """Base class of every error the package raises on purpose; `exit_code` is what the `qhw` command returns for it."""

    exit_code: ClassVar[int] = 2

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*(without_tokens(a) if isinstance(a, str) else a for a in arguments))


class InvalidInputError(QhwError, ValueError):
    """A value, shape or setting that is not allowed."""


class UnknownNameError(QhwError, ValueError):
    """A name (device, engine, data set, schedule…) that does not exist."""

    @classmethod
    def of(cls, kind: str, given: str, allowed: Iterable[str], *, own: bool = False) -> UnknownNameError:
        """Message listing near matches first, or all names if none is near; `own`: a user's own is taken as well."""
        names = sorted(allowed)
        near = difflib.get_close_matches(given, names, n=5, cutoff=0.5)
        if near:
            hint = f"did you mean {', '.join(near)}?" + " One of your own is module:name or file.py:name" * own
        else:
            hint = f"allowed: {', '.join(names)}" + ", or one of your own as module:name or file.py:name" * own
        return cls(f"unknown {kind} {given!r}; {hint}")


class UnsupportedCircuitError(QhwError, ValueError):
    """A circuit with an operation or a parameter expression the package cannot evaluate (the message names it)."""


class EngineError(QhwError, RuntimeError):
    """An engine that failed to evaluate a circuit, or answered with something that is no result."""


class StudyError(QhwError, RuntimeError):
    """A function of a study that fails, or answers with something that is no result."""


class WorkerError(QhwError, RuntimeError):
    """A worker process that ended without a result, killed by somebody or for lack of memory."""


class MemoryBudgetError(QhwError, MemoryError):
    """A computation that would not fit in memory; raised before anything is allocated."""


class RunFolderError(QhwError, RuntimeError):
    """A run folder that is missing, damaged, already in use, or of another version."""


class DamagedFileError(QhwError, RuntimeError):
    """A file that cannot be read as what it should be (truncated, edited, of another format)."""


class DamagedRunError(RunFolderError, DamagedFileError):
    """A run folder in which a file is missing or cannot be read as what it should be."""


class MissingDataError(QhwError, FileNotFoundError):
    """A data set that is neither on disk nor downloadable from here."""

    def __str__(self) -> str:  # FileNotFoundError formats errno; here the message is the whole story
        return str(self.args[0]) if self.args else ""


class MissingDependencyError(QhwError, ImportError):
    """An optional dependency that is not installed; the message gives the pip command."""


class BudgetError(QhwError, RuntimeError):
    """QPU time that would pass a cap, or no cap for a paid device; raised before anything is sent. Exit code 3."""

    exit_code = 3


class AccountError(QhwError, RuntimeError):
    """No IBM Quantum account, wrong or expired credentials, or a device the account cannot use. Exit code 4."""

    exit_code = 4


class JobError(QhwError, RuntimeError):
    """A job that the service refused, failed or cancelled (the message has its id and the reason). Exit code 5."""

    exit_code = 5


class LedgerError(QhwError, RuntimeError):
    """A ledger of another version, damaged, or contradicting what is asked. Exit code 6."""

    exit_code = 6


class ServiceError(QhwError, RuntimeError):
    """The service does not answer, or not in time. Exit code 7.

    What was sent is in the ledger: the same command goes on with it.
    """

    exit_code = 7


def reason_of(error: BaseException) -> str:
    """An error as part of another one's message: its text on one line; of a missing key, that it is missing."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        return f"{text} is missing"
    return text or type(error).__name__
