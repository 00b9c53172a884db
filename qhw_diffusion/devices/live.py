"""Snapshots of live devices. Reads configuration and calibration through the user's account; never submits anything."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

from qhw_diffusion.devices.account import ask, live_backend
from qhw_diffusion.devices.fake import canonical_name, fake_snapshot
from qhw_diffusion.devices.snapshot import Snapshot
from qhw_diffusion.errors import InvalidInputError, MissingDataError
from qhw_diffusion.masking import without_own_tokens


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
        UnknownNameError: no such fake device.
        AccountError, ServiceError, MissingDataError: as `live_snapshot`.
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
        AccountError: no account, refused credentials, or no such device for this account.
        ServiceError: no answer from the service.
        MissingDataError: the device publishes no calibration (a simulator).
        InvalidInputError: the service's data holds a missing or impossible value.
    """
    backend = live_backend(name)
    return ask(f"calibration of {name}", lambda: backend_snapshot(backend))


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
    return json.loads(without_own_tokens(json.dumps(document.to_dict(), default=_encode)))


def _encode(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, complex):
        return [value.real, value.imag]
    raise TypeError(f"{type(value).__name__} has no place in a snapshot")
