"""The fake backends of qiskit-ibm-runtime: real calibrations of IBM devices, stored in that package.

`FakeProviderForBackendV2()` builds all of its backends at once; here the classes are only listed, and the two JSON
files of the one asked for are read.
"""

from __future__ import annotations

import inspect
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from qhw_diffusion.devices.snapshot import Snapshot
from qhw_diffusion.errors import UnknownNameError


@cache
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
        raise UnknownNameError.of("device", canonical_name(name), ["ideal", *classes])
    folder = Path(cls.dirname)
    configuration = json.loads((folder / cls.conf_filename).read_text(encoding="utf-8"))
    # The file carries the real device's name; the fake provider renames it, and so do we.
    configuration["backend_name"] = cls.backend_name
    properties = json.loads((folder / cls.props_filename).read_text(encoding="utf-8"))
    source = f"qiskit_ibm_runtime.fake_provider.{cls.__name__}"
    return Snapshot.from_provider(configuration, properties, source)
