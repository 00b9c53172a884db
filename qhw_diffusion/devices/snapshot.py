"""Snapshots: configuration and calibration of a device on one date, as plain JSON.

The two documents kept are the ones the IBM service itself hands out (the backend's *configuration* and its
*properties*), unchanged. A target and every noise model are functions of them, so a snapshot file is all that is needed
to rebuild both later, without the package version or the account they came from.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from qhw_diffusion.devices.validate import AS_PUBLISHED, check_snapshot, published_oddities
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError, reason_of
from qhw_diffusion.terminal import os_error_text

FORMAT = "qhw-device-snapshot"
# Version 1 did not list what providers publish against physics; all its files were taken from the fake provider.
FORMAT_VERSION = 2
_READABLE = (1, FORMAT_VERSION)
_FAKE_PROVIDER = "qiskit_ibm_runtime.fake_provider."
# rx(θ) and rzz(θ), which a device calibrates beside its usual basis
FRACTIONAL_GATES = ("rx", "rzz")
# The largest IBM devices come to about 2 MB; anything far above is not a snapshot.
_MAX_BYTES = 64 * 2**20
# Snapshots of files read last, by the hash of the file: every model that is loaded brings one, mostly of the same
# device, and reading and checking that of 150 qubits takes a third of a second.
_READ: dict[bytes, Snapshot] = {}
_REMEMBERED = 8


def canonical_json(document: Any) -> str:
    """One text per content: sorted keys, no spaces, floats by `repr` (so they survive bit for bit)."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Snapshot:
    """Immutable description of a device at one time.

    Attributes:
        name: the device's name, e.g. ``"fake_marrakesh"``.
        configuration: canonical JSON text of the backend configuration as the provider gives it.
        properties: canonical JSON text of the backend properties (T1, T2, gate and readout errors, each dated).
        provenance: where it comes from; not part of equality, since the same calibration may be had by two ways.
    """

    name: str
    configuration: str
    properties: str
    provenance: dict[str, str] = field(compare=False)

    @classmethod
    def from_provider(cls, configuration: Mapping[str, Any], properties: Mapping[str, Any], source: str) -> Snapshot:
        """Take a snapshot of what a provider says now; values that no device can have are refused.

        Oddities that providers publish all the same (see `qhw_diffusion.devices.validate`) are kept as they are and
        listed in the provenance.

        Args:
            configuration: the service's document of that name, as JSON content.
            properties: the service's document of that name, as JSON content.
            source: where they are from, e.g. ``"qiskit_ibm_runtime.fake_provider.FakeMarrakesh"``.

        Raises:
            InvalidInputError: a missing or impossible value; the message names the field.
        """
        name = str(configuration.get("backend_name"))
        provenance = {
            "source": source,
            "package": f"qiskit-ibm-runtime {metadata.version('qiskit-ibm-runtime')}",
            "backend_version": str(configuration.get("backend_version")),
            "date": str(properties.get("last_update_date")),
        }
        try:
            check_snapshot(configuration, properties, provenance, taken=True)
        except InvalidInputError as error:
            raise InvalidInputError(f"calibration of {name}: {error}") from None
        if oddities := published_oddities(properties):
            provenance[AS_PUBLISHED] = "; ".join(oddities)
        return cls(name, canonical_json(configuration), canonical_json(properties), provenance)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of name, configuration and properties."""
        return hashlib.sha256("\n".join((self.name, self.configuration, self.properties)).encode()).hexdigest()

    def to_json(self) -> str:
        """The file's text (see `save`)."""
        documents = {"configuration": self.configuration, "properties": self.properties}
        rest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "name": self.name,
            "provenance": self.provenance,
            "fingerprint": self.fingerprint,
        }
        # the two documents are canonical texts already, and long ones
        entries = documents | {key: canonical_json(value) for key, value in rest.items()}
        return f"{{{','.join(f'{canonical_json(key)}:{entries[key]}' for key in sorted(entries))}}}"

    def save(self, path: str | Path) -> Path:
        """Write to `path` atomically: gzip-compressed for ``*.json.gz``, plain for ``*.json``.

        Raises:
            InvalidInputError: another file ending, or a folder that cannot be written to.
        """
        path = Path(path)
        data = self.to_json().encode()
        if path.name.endswith(".json.gz"):
            data = gzip.compress(data, mtime=0)  # no time stamp: same content, same bytes
        elif path.suffix != ".json":
            raise InvalidInputError(f"device snapshot {str(path)!r}: the name must end in .json.gz or .json")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.chmod(temporary, 0o644)  # mkstemp makes it private; a published file is readable
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            told = os_error_text(error)
            raise InvalidInputError(f"device snapshot {str(path)!r} cannot be written: {told}") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Snapshot:
        """Read a file written by `save`.

        Raises:
            MissingDataError: no such file.
            DamagedFileError: truncated, edited, not a snapshot, of another format version, or with missing or
                impossible values (the message names the field).
        """
        path = Path(path)
        if path.is_dir():
            raise MissingDataError(f"device snapshot {str(path)!r} is a folder; name a .json or .json.gz file in it")
        if not path.is_file():
            raise MissingDataError(f"device snapshot {str(path)!r} does not exist")
        data = _read_file(path)
        key = hashlib.sha256(data).digest()
        if key not in _READ:
            while len(_READ) >= _REMEMBERED:
                del _READ[next(iter(_READ))]
            _READ[key] = cls._of_document(path, _document(path, data))
        # what others do to the provenance of theirs is nobody else's
        return replace(_READ[key], provenance=dict(_READ[key].provenance))

    @classmethod
    def _of_document(cls, path: Path, document: Any) -> Snapshot:
        """The snapshot in the content of a file, checked."""
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise DamagedFileError(
                f"{path} is not a device snapshot (no format {FORMAT!r}); write one with Device.save"
            )
        if document.get("version") not in _READABLE:
            raise DamagedFileError(
                f"{path} is a device snapshot of format version {document.get('version')!r}; this package reads "
                f"{' and '.join(map(str, _READABLE))}: save it again with the matching package"
            )
        try:
            snapshot = cls(
                name=str(document["name"]),
                configuration=canonical_json(document["configuration"]),
                properties=canonical_json(document["properties"]),
                provenance={str(key): str(value) for key, value in document["provenance"].items()},
            )
            fingerprint = document["fingerprint"]
        except (KeyError, AttributeError, ValueError) as error:
            raise DamagedFileError(f"{path} is a damaged device snapshot: {reason_of(error)}") from error
        if fingerprint != snapshot.fingerprint:
            raise DamagedFileError(f"{path} was changed after it was written (its fingerprint does not match)")
        try:
            old = document["version"] == 1 and snapshot.provenance.get("source", "").startswith(_FAKE_PROVIDER)
            check_snapshot(document["configuration"], document["properties"], snapshot.provenance, taken=old)
            if old and (oddities := published_oddities(document["properties"])):
                snapshot.provenance[AS_PUBLISHED] = "; ".join(oddities)
        except InvalidInputError as error:
            raise DamagedFileError(f"{path}: {error}") from error
        return snapshot


def with_fractional_gates(snapshot: Snapshot) -> Snapshot:
    """The snapshot with rx and rzz in its basis, on the qubits for which its properties hold their errors.

    Providers leave these gates out of a configuration unless asked for them, but calibrate them all the same.

    Raises:
        InvalidInputError: the calibration does not have both.
    """
    configuration, properties = json.loads(snapshot.configuration), json.loads(snapshot.properties)
    calibrated: dict[str, list[list[int]]] = {name: [] for name in FRACTIONAL_GATES}
    for gate in (properties or {}).get("gates", []):
        if gate["gate"] in calibrated:
            calibrated[gate["gate"]].append(gate["qubits"])
    missing = [name for name, places in calibrated.items() if not places]
    if missing:
        raise InvalidInputError(
            f"{snapshot.name} has no calibration of {' and '.join(missing)}: fractional gates exist on Heron devices "
            "(for example fake_marrakesh)"
        )
    present = {gate["name"] for gate in configuration["gates"]}
    for name, places in calibrated.items():
        if name not in present:
            configuration["gates"].append(
                {"name": name, "parameters": ["theta"], "qasm_def": "", "coupling_map": sorted(places)}
            )
        for key in ("basis_gates", "supported_instructions"):
            if key in configuration and name not in configuration[key]:
                configuration[key].append(name)
    return replace(snapshot, configuration=canonical_json(configuration))


def _read_file(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return _not_too_large(path, file.read(_MAX_BYTES + 1))
    except OSError as error:
        raise DamagedFileError(f"{path} is not a readable device snapshot: {error}") from error


def _document(path: Path, data: bytes) -> Any:
    """The JSON content of a file, which may be compressed."""
    try:
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(data), "rb") as file:
                data = _not_too_large(path, file.read(_MAX_BYTES + 1))
        return json.loads(data)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not a readable device snapshot: {error}") from error


def _not_too_large(path: Path, data: bytes) -> bytes:
    if len(data) > _MAX_BYTES:
        raise DamagedFileError(f"{path} is too large for a device snapshot (over {_MAX_BYTES >> 20} MiB)")
    return data
