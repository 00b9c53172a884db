"""Printing that cannot fail (missing characters, a closed stream), and errors of the machine in one line.

Every command starts here, so nothing heavy is imported.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
import tempfile
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

# What stands for the signs of the tables where the terminal's encoding has no such character.
_PLAIN = {
    "⟨": "<", "⟩": ">", "±": "+-", "Δ": "d", "−": "-", "–": "-", "—": "-", "×": "x", "·": "*", "…": "...", "→": "->",
    "≤": "<=", "≥": ">=", "≈": "~", "√": "sqrt", "µ": "u", "∞": "inf", "∈": "in", "∅": "0", "⊗": "(x)", "“": '"',
    "”": '"', "„": '"', "’": "'", "‖": "|",
}  # fmt: skip
_HANDLER = "qhw.plain"

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_WRONG_KIND = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def plain(text: str) -> str:
    """The text in ASCII: known signs and Greek letters spelt out, accents dropped, "?" for the rest."""
    found = []
    for sign in text:
        spelt = _PLAIN.get(sign) or unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
        name = unicodedata.name(sign, "")
        if not spelt and name.startswith("GREEK "):
            letter = name.rsplit(" ", 1)[-1]
            spelt = letter.capitalize() if "CAPITAL" in name else letter.lower()
        found.append(spelt or "?")
    return "".join(found)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end


codecs.register_error(_HANDLER, _replace)


class _Stream:
    """A text stream that is written to quietly once its reader (`| head`) has gone; the rest is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except BrokenPipeError:
            self.abandon()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self.abandon()

    def abandon(self) -> None:
        """From here on everything goes nowhere, what is still in the buffer as well."""
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # a stream without a file, or closed
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def usable_streams() -> Iterator[None]:
    """Within the block, printing cannot fail for want of a character, of a reader, or of a stream at all.

    Characters that the encoding lacks are replaced (`plain`). When the reader has gone (`qhw … | head`), the command
    goes on and what it prints goes nowhere: a training is not lost because nobody reads its last line.
    """
    _open_standard_files()
    before, hook = (sys.stdout, sys.stderr), threading.excepthook
    handlers = [getattr(stream, "errors", None) for stream in before]
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)
    wrapped = tuple(_Stream(open(os.devnull, "w") if stream is None else stream) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = wrapped  # type: ignore[assignment]

    def in_thread(arguments: threading.ExceptHookArgs) -> None:
        # TensorBoard's writer raises what went wrong again in the thread that logs, where it becomes one line
        if not (isinstance(arguments.exc_value, OSError) and type(arguments.thread).__name__ == "_AsyncWriterThread"):
            hook(arguments)

    threading.excepthook = in_thread
    try:
        yield
    finally:
        for stream in wrapped:
            try:
                stream.flush()
            except (
                OSError,
                ValueError,
            ):  # has been told; Python's own flush at exit must not tell it again, with a traceback
                stream.abandon()
        threading.excepthook = hook
        sys.stdout, sys.stderr = before
        for stream, handler in zip(before, handlers, strict=True):
            if hasattr(stream, "reconfigure") and handler is not None:
                stream.reconfigure(errors=handler)


@contextmanager
def some_home() -> Iterator[None]:
    """Within the block there is a home folder; for a user without one an empty temporary folder, removed at the end.

    In containers there may be no HOME and no entry in the password file. Libraries keep their caches in the home
    folder; without it some fail and others make a folder named "~" in the present one.
    """
    if os.path.isabs(os.path.expanduser("~")):
        yield
        return
    before = os.environ.get("HOME")
    with tempfile.TemporaryDirectory(prefix="qhw-home-", ignore_cleanup_errors=True) as folder:
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = before


def _open_standard_files() -> None:
    """Put /dev/null in the place of standard files that are closed (`>&-`).

    The next file opened would get their number otherwise, and what a library prints would land in it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block an OSError that does not say which file it is about (a full disk never does) is about `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def too_large_text(error: BaseException | None) -> str:
    """What an error says that a number too large for the machine makes, in one line; empty for another error."""
    text = " ".join(str(error).split())
    signs = ("allocate memory", "size calculation overflowed", "unpacking long", "integer multiplication overflow",
             "Maximum allowed dimension", "array is too big", "is too large", "Integer value out of")  # fmt: skip
    if not isinstance(error, MemoryError | OverflowError) and not (
        isinstance(error, RuntimeError | TypeError | ValueError) and any(sign in text for sign in signs)
    ):
        return ""
    return f"a number is too large for this machine ({text[:200] or type(error).__name__}); give a smaller one"


def os_error_text(error: OSError) -> str:
    """An error of the operating system in one line: what, where, what to do."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    reason = error.strerror or str(error) or type(error).__name__
    told = f"{' → '.join(names)}: {reason}" if names else reason
    if error.errno in _DISK_FULL:
        advice = "make room there, or write to another place"
    elif error.errno in _FORBIDDEN:
        advice = "choose a place that you may use, or change its owner or mode"
    elif error.errno in _WRONG_KIND:
        advice = "a file is where a folder should be, or the other way round: choose another place"
    elif error.errno == errno.ENOENT:
        advice = "check the path"
    elif error.errno == errno.EMFILE:
        advice = "too many files are open: raise the limit (ulimit -n)"
    else:
        advice = "the same command with --debug in front (qhw --debug …) shows where"
    return f"{told}; {advice}".replace("\n", " ")
