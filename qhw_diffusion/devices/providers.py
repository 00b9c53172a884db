"""Snapshots of the devices that others provide: fake backends of qiskit-ibm-runtime, and live devices of an account.

Fake backends are real calibrations of IBM devices, stored in that package. `FakeProviderForBackendV2()` builds all of
them at once; here the classes are only listed, and the two JSON files of the one asked for are read. Live devices are
read through the user's account; nothing is submitted.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

from qhw_diffusion.devices.account import ask, live_backend
from qhw_diffusion.devices.snapshot import Snapshot
from qhw_diffusion.errors import MissingDataError, UnknownNameError
from qhw_diffusion.masking import without_own_tokens


@functools.cache
def _classes() -> dict[str, Any]:
    from qiskit_ibm_runtime.fake_provider import backends
    from qiskit_ibm_runtime.fake_provider.fake_backend import FakeBackendV2

    return {
        cls.backend_name: cls
        for cls in vars(backends).values()
        if inspect.isclass(cls) and issubclass(cls, FakeBackendV2) and hasattr(cls, "backend_name")
    }


def fake_backend_names() -> list[str]:
    """Names of all fake backends, sorted, e.g. ``["fake_aachen", …, "fake_yorktown"]``."""
    return sorted(_classes())


def canonical_name(name: str) -> str:
    """``"FakeMarrakesh"``, ``"FakeManilaV2"``, ``"fake-marrakesh"`` → the provider's ``"fake_marrakesh"`` spelling."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip()).lower()
    snake = re.sub(r"[\s\-]+", "_", snake)
    return re.sub(r"(_?v2|_backend)$", "", snake)


def fake_snapshot(name: str) -> Snapshot:
    """The snapshot of one fake backend.

    Args:
        name: the backend's name or its class's (see `canonical_name`).

    Raises:
        UnknownNameError: no such fake backend; the message lists near matches.
    """
    classes = _classes()
    cls = classes.get(canonical_name(name))
    if cls is None:
        raise UnknownNameError.of("device", canonical_name(name), ["ideal", *classes], own=True)
    snapshot = _read(cls)
    return replace(snapshot, provenance=dict(snapshot.provenance))


@functools.lru_cache(maxsize=8)
def _read(cls: Any) -> Snapshot:
    """The snapshot of a fake backend's files, which do not change."""
    folder = Path(cls.dirname)
    configuration = json.loads((folder / cls.conf_filename).read_text(encoding="utf-8"))
    # The file carries the real device's name; the fake provider renames it, and so do we.
    configuration["backend_name"] = cls.backend_name
    properties = json.loads((folder / cls.props_filename).read_text(encoding="utf-8"))
    source = f"qiskit_ibm_runtime.fake_provider.{cls.__name__}"
    return Snapshot.from_provider(configuration, properties, source)


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
