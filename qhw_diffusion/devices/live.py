"""Snapshots of live devices. Reads configuration and calibration through the user's account; never submits anything.

The account is IBM's client's business: saved once with `QiskitRuntimeService.save_account`, or given in its environment
variables. No token is read, kept or printed here.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

from qhw_diffusion.devices.fake import canonical_name, fake_snapshot
from qhw_diffusion.devices.snapshot import Snapshot
from qhw_diffusion.errors import InvalidInputError, MissingDataError, QhwError


def take_snapshot(name: str, path: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Save the calibration of a fake or live device.

    Args:
        name: of a fake device, or of a live one; those begin with ``ibm_``.
        path: ``*.json.gz`` or ``*.json``; ``<name>-<date>.json.gz`` in the current folder if None, with the
            calibration's date.
        overwrite: replace an existing file.

    Returns:
        The path written.

    Raises:
        InvalidInputError: the file exists; another file ending; impossible values.
        UnknownNameError, MissingDataError: no such device, or it cannot be reached.
    """
    if canonical_name(name) == "ideal":
        raise InvalidInputError("the ideal device has no calibration to take a snapshot of; name a fake or live device")
    snapshot = live_snapshot(name) if name.startswith("ibm_") else fake_snapshot(name)
    path = Path(f"{snapshot.name}-{snapshot.provenance['date'][:10]}.json.gz" if path is None else path)
    if path.exists() and not overwrite:
        raise InvalidInputError(f"{path} exists already; --overwrite replaces it, --out writes elsewhere")
    return snapshot.save(path)


def live_snapshot(name: str) -> Snapshot:
    """The calibration of a live device as it is now.

    Args:
        name: as IBM names it, e.g. ``"ibm_marrakesh"``.

    Raises:
        MissingDataError: no account, no connection, or no such device for this account.
        InvalidInputError: the service's data holds a missing or impossible value.
    """
    from qiskit_ibm_runtime import QiskitRuntimeService

    try:
        backend = QiskitRuntimeService().backend(name)
        return backend_snapshot(backend)
    except QhwError:
        raise
    except Exception as error:
        raise _unreachable(name, error) from error


def backend_snapshot(backend: Any) -> Snapshot:
    """Snapshot of a backend object of qiskit-ibm-runtime (anything with `configuration()` and `properties()`).

    Raises:
        MissingDataError: the backend has no calibration (a simulator).
        InvalidInputError: a missing or impossible value.
    """
    properties = backend.properties()
    if properties is None:
        raise MissingDataError(f"{backend.name} publishes no calibration, so there is nothing to take a snapshot of")
    source = f"{type(backend).__module__.split('.')[0]}.{type(backend).__name__}, read {date.today().isoformat()}"
    return Snapshot.from_provider(_plain(backend.configuration()), _plain(properties), source)


def _plain(document: Any) -> dict[str, Any]:
    """A model object of the client as the JSON it was made from: dates as ISO text, complex numbers as pairs."""
    return json.loads(json.dumps(document.to_dict(), default=_encode))


def _encode(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, complex):
        return [value.real, value.imag]
    raise TypeError(f"{type(value).__name__} has no place in a snapshot")


def _unreachable(name: str, error: Exception) -> MissingDataError:
    # The client's own text is not repeated: it may hold what the user typed as token.
    return MissingDataError(
        f"{name} cannot be read ({type(error).__name__}). Live devices need an IBM Quantum account: save one with "
        "QiskitRuntimeService.save_account(token=…) or set QISKIT_IBM_TOKEN, and check the device's name with "
        "QiskitRuntimeService().backends(). Fake devices work without (`qhw devices` lists them)"
    )
