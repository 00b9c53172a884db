"""Credentials out of every text that leaves: messages, logs, tracebacks, the ledger, run folders, reports.

The package stores no credential, and looks at the user's only to mask it. Whoever writes text that may hold a part of
a client's error, of an answer or of a command line passes it through `without_tokens`; what must keep its data as they
are (raw answers, whole files) through `without_own_tokens`.
"""

from __future__ import annotations

import traceback

from qhw_diffusion.masking.logs import mask_logs
from qhw_diffusion.masking.own import remember, without_own
from qhw_diffusion.masking.shapes import MASK, without_shapes, without_web_tokens

__all__ = ["MASK", "mask_logs", "remember", "shown_cause", "traceback_of", "without_own_tokens", "without_tokens"]

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
    """What to chain to an error of ours (``raise … from shown_cause(error)``): `error` itself if its traceback shows no
    credential, else an exception that holds the masked traceback.
    """
    text = "".join(traceback.format_exception(error))
    masked = without_tokens(text)
    return error if masked == text else RuntimeError(masked)
