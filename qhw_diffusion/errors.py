"""The error hierarchy: everything the package raises on purpose derives from `QhwError`.

Each class also derives from the built-in it is, so `except ValueError` keeps working. A message says what was given,
what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QhwError(Exception):
    """Base class of every error the package raises on purpose."""


class InvalidInputError(QhwError, ValueError):
    """A value, shape or setting that is not allowed."""


class UnknownNameError(QhwError, ValueError):
    """A name (device, engine, data set, schedule…) that does not exist."""

    @classmethod
    def of(cls, kind: str, given: str, allowed: Iterable[str]) -> UnknownNameError:
        """Message listing near matches first, or all names if none is near."""
        names = sorted(allowed)
        near = difflib.get_close_matches(given, names, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"allowed: {', '.join(names)}"
        return cls(f"unknown {kind} {given!r}; {hint}")


class UnsupportedCircuitError(QhwError, ValueError):
    """A circuit with an operation or a parameter expression the package cannot evaluate (the message names it)."""


class EngineError(QhwError, RuntimeError):
    """An engine that failed to evaluate a circuit, or answered with something that is no result."""


class MemoryBudgetError(QhwError, MemoryError):
    """A computation that would not fit in memory; raised before anything is allocated."""


class RunFolderError(QhwError, RuntimeError):
    """A run folder that is missing, damaged, already in use, or of another version."""


class DamagedFileError(QhwError, RuntimeError):
    """A file that cannot be read as what it should be (truncated, edited, of another format)."""


class MissingDataError(QhwError, FileNotFoundError):
    """A data set that is neither on disk nor downloadable from here."""

    def __str__(self) -> str:  # FileNotFoundError formats errno; here the message is the whole story
        return str(self.args[0]) if self.args else ""


class MissingDependencyError(QhwError, ImportError):
    """An optional dependency that is not installed; the message gives the pip command."""
