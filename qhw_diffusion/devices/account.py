"""The user's IBM Quantum account: connections through it, and clear errors where they fail.

The account is the business of IBM's client: saved once with `QiskitRuntimeService.save_account`, or given in its
environment variables. This package stores no token. It looks at one only to mask it (`qhw_diffusion.masking`).
"""

from __future__ import annotations

import difflib
import os
import re
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from qhw_diffusion.errors import AccountError, QhwError, ServiceError
from qhw_diffusion.masking import mask_logs, remember, without_tokens
from qhw_diffusion.masking.own import account_file, saved_accounts

if TYPE_CHECKING:
    from qiskit_ibm_runtime import IBMBackend, QiskitRuntimeService

SETUP = (
    "Make an API key at https://quantum.cloud.ibm.com and save it once, in Python: "
    'QiskitRuntimeService.save_account(token="…", instance="…", set_as_default=True, overwrite=True) of '
    "qiskit_ibm_runtime; or set QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE"
)
WITHOUT = (
    "Without an account everything runs on fake devices (`qhw devices --fake` lists them), `qhw cost --device fake_…` "
    "estimates what a job takes, and `qhw standin` serves a fake device the way the real service would"
)
# Seconds for one thing asked of the service. The client itself has no read time-out and would wait for ever.
PATIENCE = 60.0

# Of the client's warning that it goes on without an access token, and of the error after its repeats of a request.
_NO_TOKEN = "Unable to retrieve IBM Cloud access token"
_REPEATED = re.compile(r"too many (\d{3}) error responses")

T = TypeVar("T")


def has_account() -> bool:
    """Whether there is an account to try: a token in the environment, or a file of saved accounts that is not empty.

    Asks nobody and starts no client.
    """
    return bool(os.environ.get("QISKIT_IBM_TOKEN")) or bool(saved_accounts())


def connect(*, patience: float = PATIENCE) -> QiskitRuntimeService:
    """A connected service, through the environment's account or the saved one; tried out with one request.

    Args:
        patience: seconds to wait in all before giving up.

    Raises:
        AccountError: no account, wrong or expired credentials, an instance the account cannot use.
        ServiceError: the service cannot be reached, or does not answer in time.
    """
    if not has_account():
        raise AccountError(f"no IBM Quantum account is set up. {SETUP}. {WITHOUT}")
    if not os.environ.get("QISKIT_IBM_TOKEN") and not isinstance(saved_accounts(), dict):
        raise AccountError(f"the file of saved accounts, {account_file()}, is damaged. Delete it. {SETUP}")

    def start() -> QiskitRuntimeService:
        from qiskit_ibm_runtime import QiskitRuntimeService

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            service = QiskitRuntimeService()
        said = [str(warning.message) for warning in caught]
        if any(_NO_TOKEN in text for text in said):
            # Without an access token every further request would first wait a minute.
            raise problem(RuntimeError(), what, warned=said)
        # The constructor takes any refusal for an account without devices: ask something that says so.
        service.usage()
        return service

    what = "the connection to IBM Quantum"
    return ask(what, start, patience=patience)


def live_backend(name: str, service: QiskitRuntimeService | None = None) -> IBMBackend:
    """The client's backend object of one live device.

    Args:
        name: as IBM names it, e.g. ``"ibm_marrakesh"``.
        service: of `connect`; None: connect now.

    Raises:
        AccountError: no account, refused credentials, or no such device for them; the message lists their devices.
        ServiceError: no answer.
    """
    from qiskit.providers.exceptions import QiskitBackendNotFoundError

    service = connect() if service is None else service
    remember_account(service)

    def find() -> IBMBackend | None:
        try:
            backend: IBMBackend = service.backend(name)
            return backend
        except QiskitBackendNotFoundError:
            return None

    backend = ask(f"device {name}", find)
    if backend is None:
        names = sorted({other.name for other in live_backends(service)} - {name})
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.75)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise AccountError(
            f"the account cannot use a device {name!r}: mistyped, retired, or of another instance. "
            f"It has: {', '.join(names) or 'no other device; check its instance'}{hint}"
        )
    return backend


def live_backends(service: QiskitRuntimeService) -> list[IBMBackend]:
    """All devices of the account, without simulators.

    Raises:
        AccountError, ServiceError: as `connect`.
    """
    remember_account(service)

    def find() -> list[IBMBackend]:
        found: list[IBMBackend] = service.backends(simulator=False)
        if not found:
            service.usage()  # the client shows refused credentials as an empty list; this says so
        return found

    return ask("the list of devices", find)


def remember_account(client: Any) -> None:
    """Mask the key of a client that was made elsewhere, from a token that this package has not seen, and its logs."""
    mask_logs()
    try:
        account = client.active_account() or {}
    except Exception:  # whatever was given has no account, and no key
        return
    remember(account.get("token"))


def ask(what: str, call: Callable[[], T], *, patience: float = PATIENCE) -> T:
    """The result of ``call()``, with a time limit and the client's failures turned into errors of this package.

    Args:
        what: is asked for, to begin a message with.
        call: asks the client.
        patience: seconds; a call that takes longer is left behind in its thread.

    Raises:
        AccountError, ServiceError: see `problem`; the client's own exception is not chained, it may show a token.
    """
    mask_logs()
    outcome: list[T] = []
    failure: list[Exception] = []
    said: list[str] = []

    def run() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                outcome.append(call())
            except Exception as error:
                failure.append(error)
            said.extend(str(warning.message) for warning in caught)

    thread = threading.Thread(target=run, daemon=True, name=f"qhw: {what}")
    thread.start()
    thread.join(patience)
    if thread.is_alive():
        raise ServiceError(f"{what}: no answer within {patience:g} s. Check the network, or try again later")
    if failure:
        raise problem(failure[0], what, warned=said) from None
    return outcome[0]


def problem(error: Exception, what: str, *, warned: list[str] | None = None) -> QhwError:
    """What the client's exception means, as an error that says what to do. Shows no token.

    Args:
        error: of qiskit-ibm-runtime or of what it stands on.
        what: was asked for, to begin the message with.
        warned: texts of the client's warnings on the way: it warns, and goes on, when the identity service fails.
    """
    if isinstance(error, QhwError):
        return error
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = _status(error)
    no_token = [text for text in warned or [] if _NO_TOKEN in text]
    if no_token and not any("Status code: 4" in text for text in no_token):
        return ServiceError(f"{what}: IBM's identity service cannot be reached. Check the network, or try again later")
    if "AccountNotFoundError" in kinds:
        return AccountError(f"{what}: no IBM Quantum account is set up. {SETUP}. {WITHOUT}")
    if "IBMNotAuthorizedError" in kinds or status == 401 or no_token:
        return AccountError(
            f"{what}: the credentials are refused. The API key is wrong, expired or disabled. {SETUP}. {WITHOUT}"
        )
    if status == 403:
        return AccountError(f"{what}: the account may not use this (403). Check its instance and plan. {SETUP}")
    if status == 404:
        return AccountError(f"{what}: not known to the service (404); it may be retired, or of another instance")
    if status == 429:
        return ServiceError(f"{what}: too many requests (429). Wait a minute and try again")
    if status is not None and status >= 500:
        return ServiceError(f"{what}: the service fails ({status}), or is under maintenance. Try again later")
    if kinds & {"RequestsApiError", "ConnectionError", "Timeout", "OSError"}:
        return ServiceError(f"{what}: the service cannot be reached. Check the network, or try again later")
    if kinds & {"InvalidAccountError", "AccountsError", "IBMInputValueError", "JSONDecodeError", "KeyError"}:
        shown = without_tokens(str(error))[:300]
        return AccountError(f"{what}: the account cannot be used as it is set up ({shown}). {SETUP}")
    return ServiceError(f"{what}: {type(error).__name__}: {without_tokens(str(error))[:300]}")


def _status(error: Exception) -> int | None:
    """HTTP status behind the client's exception, looking through what it wraps; None without an answer."""
    seen: BaseException | None = error
    while seen is not None:
        for holder in (seen, getattr(seen, "response", None)):
            status = getattr(holder, "status_code", None)
            if isinstance(status, int) and status > 0:
                return status
        if repeated := _REPEATED.search(str(seen)):
            return int(repeated[1])
        seen = seen.__cause__ or seen.__context__
    return None
