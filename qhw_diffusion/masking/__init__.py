"""Masks credentials in every text that leaves: messages, logs, tracebacks, the ledger, run folders, reports.

The package stores no credential, and looks at the user's only to mask it. Whoever writes text that may hold a part of
a client's error, of an answer or of a command line passes it through `without_tokens`; what must keep its data as they
are (raw answers, whole files) through `without_own_tokens`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

from qhw_diffusion.masking.own import remember, without_own
from qhw_diffusion.masking.shapes import MASK, without_shapes, without_web_tokens

__all__ = ["MASK", "mask_logs", "remember", "shown_cause", "traceback_of", "without_own_tokens", "without_tokens"]

# Loggers and all below them; captured warnings are the client's too
_ROOTS = frozenset(
    {
        "http",
        "ibm_cloud_sdk_core",
        "ibm_platform_services",
        "py.warnings",
        "qhw_diffusion",
        "qiskit_ibm_runtime",
        "requests",
        "requests_ntlm",
        "urllib3",
    }
)
_FORMATTER = logging.Formatter()
# Of a credential that is looked for in data: a shorter one may stand there by chance
_LEAST_IN_DATA = 16


def without_tokens(text: str) -> str:
    """`text` with the user's own credentials, however they are spelled, and whatever looks like one masked."""
    return without_shapes(without_own(text))


def without_own_tokens(text: str) -> str:
    """`text` without the user's own credentials and without web tokens; nothing else is touched."""
    return without_web_tokens(without_own(text, least=_LEAST_IN_DATA))


def traceback_of(error: BaseException) -> str:
    """The traceback as Python prints it, causes included, masked."""
    return without_tokens("".join(traceback.format_exception(error)))


def shown_cause(error: Exception) -> Exception:
    """The cause to chain to an error of ours: `error` itself if its traceback shows no credential, else a masked one.

    Use it as ``raise … from shown_cause(error)``.
    """
    text = "".join(traceback.format_exception(error))
    masked = without_tokens(text)
    return error if masked == text else RuntimeError(masked)


def mask_logs() -> None:
    """From now on, records of these loggers are made masked, whenever the logger itself is made.

    So is what logging prints where a handler fails (a closed stream, a full disk): the handler's error with the
    exception that was being logged as its context. Handlers with a way of their own to tell a failure keep it.

    A second call does nothing, unless somebody has replaced the way records are made.
    """
    before = logging.getLogRecordFactory()
    if not isinstance(before, _Masking):
        logging.setLogRecordFactory(_Masking(before))
    if logging.Handler.handleError is not _tell_failure:
        logging.Handler.handleError = _tell_failure  # type: ignore[method-assign]


class _Masking:
    """Makes records like `before`, masked where they are the client's."""

    def __init__(self, before: Callable[..., logging.LogRecord]) -> None:
        self.before = before

    def __call__(self, *arguments: Any, **named: Any) -> logging.LogRecord:
        record = self.before(*arguments, **named)
        if _is_of_client(record):
            _mask(record)
        return record


def _is_of_client(record: logging.LogRecord) -> bool:
    name = str(record.name)
    return name in _ROOTS or name.split(".")[0] in _ROOTS


def _mask(record: logging.LogRecord) -> None:
    try:
        text = record.getMessage()
    except Exception:  # arguments that do not fit the message: logging would say so, and show both
        text = f"{record.msg} {record.args}"
    record.msg, record.args = without_tokens(text), ()
    if record.exc_info:
        # a formatter would write the exception's own text; hand it the masked traceback instead
        if record.exc_info[0] is not None:
            record.exc_text = without_tokens(_FORMATTER.formatException(record.exc_info))
        record.exc_info = None
    if record.stack_info:
        record.stack_info = without_tokens(record.stack_info)


_tell_failure_as_it_is = logging.Handler.handleError


def _tell_failure(self: logging.Handler, record: logging.LogRecord) -> None:
    """What `logging.Handler.handleError` prints, masked where the record is the client's."""
    if not _is_of_client(record):
        return _tell_failure_as_it_is(self, record)
    if not logging.raiseExceptions or sys.stderr is None:
        return
    error = sys.exc_info()[1]
    told = "" if error is None else traceback_of(error)
    with contextlib.suppress(OSError, ValueError):  # standard error is gone or closed: nobody is left to be told
        sys.stderr.write(f"--- Logging error ---\n{told}Message: {without_tokens(str(record.msg))!r}\n")
