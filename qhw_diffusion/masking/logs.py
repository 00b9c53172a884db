"""Log records of IBM's client and of what it stands on, masked when they are made: before any handler or filter."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from qhw_diffusion.masking.own import without_own
from qhw_diffusion.masking.shapes import without_shapes

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


def mask_logs() -> None:
    """From now on, records of these loggers are made masked, whenever the logger itself is made.

    A second call does nothing, unless somebody has replaced the way records are made.
    """
    before = logging.getLogRecordFactory()
    if not isinstance(before, _Masking):
        logging.setLogRecordFactory(_Masking(before))


class _Masking:
    """Makes records like `before`, masked where they are the client's."""

    def __init__(self, before: Callable[..., logging.LogRecord]) -> None:
        self.before = before

    def __call__(self, *arguments: Any, **named: Any) -> logging.LogRecord:
        record = self.before(*arguments, **named)
        name = str(record.name)
        if name in _ROOTS or name.split(".")[0] in _ROOTS:
            _mask(record)
        return record


def _mask(record: logging.LogRecord) -> None:
    try:
        text = record.getMessage()
    except Exception:  # arguments that do not fit the message: logging would say so, and show both
        text = f"{record.msg} {record.args}"
    record.msg, record.args = _masked(text), ()
    if record.exc_info:
        # a formatter would write the exception's own text; hand it the masked traceback instead
        if record.exc_info[0] is not None:
            record.exc_text = _masked(_FORMATTER.formatException(record.exc_info))
        record.exc_info = None
    if record.stack_info:
        record.stack_info = _masked(record.stack_info)


def _masked(text: str) -> str:
    return without_shapes(without_own(text))
