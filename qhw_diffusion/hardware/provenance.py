"""What is kept of each job besides its result: how it was sent, under which calibration, what the service states of it.

`Calibrations` reads the device's calibration before jobs go out, `as_sent` collects what is known then,
`Service.stated` what came with the charge; all of it is in the ledger's row. `record` makes of a row the columns of
`qhw ledger export` and of a run folder's jobs.json. Nothing here decides anything or is part of a key, and what cannot
be read is left out.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import qhw_diffusion
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import QhwError
from qhw_diffusion.hardware.cost import default_repetition_delay
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_rows import INSTANCE, REUSED, SENT, STATED, Row, now
from qhw_diffusion.hardware.service import AnyPub, Service, primitive_of
from qhw_diffusion.hardware.wait import tell

CALIBRATIONS = "calibrations"
# Of `record`, from the notes of a row; empty in rows of versions that did not keep them
NOTED = (
    "primitive", "program", "mode", "instance", "plan", "created", "started", "finished", "executions",
    "backend_version", "calibration_date", "snapshot", "rep_delay_seconds", "options", "layout", "pubs", "packages",
    "reused_by",
)  # fmt: skip
# Of all attempts: what was charged (None while not known), what counts against caps, and jobs without a result
COSTS = ("charged_seconds", "counted_seconds", "unused_jobs")


# -- a row's notes -----------------------------------------------------------------------------------------------------


def as_sent(
    service: Service,
    pubs: Sequence[AnyPub],
    options: Mapping[str, Any],
    *,
    mode: str,
    packages: Iterable[str] = (),
    calibration: Device | None = None,
) -> dict[str, Any]:
    """What is known of a job before it is sent, JSON types.

    Args:
        service: that it is sent to.
        pubs: of the job.
        options: as given; what they come to is noted.
        mode: asked for; what the job really runs in is stated later.
        packages: distributions that the circuits were made with, besides those that every job takes.
        calibration: of the device at this time; None where it is not known.
    """
    primitive = primitive_of(pubs)
    effective = service.effective(options, primitive)
    known: dict[str, Any] = {
        "at": now(),
        "primitive": primitive,
        "program": service.program,
        "options": effective,
        "layout": [None if pub.layout is None else list(pub.layout) for pub in pubs],
        "pubs": [pub.label for pub in pubs],
        "packages": versions(("qiskit", "qiskit-ibm-runtime", *(() if service.paid else ("qiskit-aer",)), *packages)),
    }
    if service.paid:
        asked = (effective.get("execution") or {}).get("rep_delay")
        usual = None if calibration is None else default_repetition_delay(calibration)
        known |= {"mode": mode, "plan": service.plan, "rep_delay_seconds": usual if asked is None else asked}
    if calibration is not None:
        known |= {
            "backend_version": _backend_version(calibration),
            "calibration_date": calibration.date,
            "snapshot": calibration.fingerprint,
        }
    return known


def _backend_version(calibration: Device) -> str | None:
    """As the calibration itself says, which is read anew each time, or else the device's configuration."""
    properties = json.loads(calibration.snapshot.properties) or {}
    return properties.get("backend_version") or calibration.provenance.get("backend_version")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of this package, of Python and of these distributions; those that are not installed are left out."""
    found = {"qhw-diffusion": qhw_diffusion.__version__, "python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = _version(name)
    return found


@lru_cache
def _version(name: str) -> str:
    return metadata.version(name)


def record(row: Row) -> dict[str, Any]:
    """Everything about a job but its values, as the export and jobs.json have it.

    The row's own columns, with ``planned`` for the time when it was planned here, since ``created``, ``started`` and
    ``finished`` are the service's; `NOTED` and `COSTS`.
    """
    notes = dict(row.summary)
    known = {**notes.pop(SENT, {}), **notes.pop(STATED, {}), INSTANCE: notes.pop(INSTANCE, None)}
    own = {("planned" if name == "created" else name): value for name, value in asdict(row).items()}
    own |= {name: known.get(name) for name in NOTED}
    own["session_id"] = known.get("session_id", row.session_id)
    own["executions"] = known.get("executions", row.circuits * row.shots)
    own["reused_by"] = notes.pop(REUSED, [])
    own["summary"] = notes
    return own | dict(zip(COSTS, (row.charge, row.counted, row.unused_jobs), strict=True))


# -- calibrations ------------------------------------------------------------------------------------------------------


class Calibrations:
    """The device's calibration at the time of each call that sends jobs; kept in the ledger's folder, a file for each.

    Args:
        service: whose device it is.
        ledger: that keeps them.
        run: that is told of a change since its last job.
    """

    def __init__(self, service: Service, ledger: Ledger, run: str) -> None:
        self.service, self.ledger, self.run = service, ledger, run
        self._asked = False
        self._now: Device | None = None
        self._known: Device | None = None
        self._trouble: QhwError | None = None

    def expire(self) -> None:
        """The next question is asked anew: time has passed."""
        self._asked = False

    def read(self) -> Device | None:
        """The calibration of now, asked for once until it expires; None where the service does not tell."""
        if not self._asked:
            self._asked, self._now = True, None
            try:
                self._now = self.service.snapshot()
            except QhwError as error:
                self._trouble = error
                if self._known is not None:
                    tell(f"the calibration of {self.service.device} cannot be read now, and is not noted: {error}")
            else:
                self._tell_changes(self._now)
                keep_calibration(self.ledger.folder, self._now)
                self._known = self._now
        return self._now

    def latest(self) -> Device:
        """The calibration of now, or the last one that was read, for estimates.

        Raises:
            QhwError: none has been read so far, and the service does not tell.
        """
        device = self.read() or self._known
        if device is None:
            assert self._trouble is not None
            raise self._trouble
        return device

    def _tell_changes(self, device: Device) -> None:
        before = self._known.fingerprint if self._known is not None else ""
        date = self._known.date if self._known is not None else None
        if not before:  # what an earlier process did
            sent = [row.summary[SENT] for row in self.ledger.rows(run=self.run)
                    if row.device == device.name and row.summary.get(SENT, {}).get("snapshot")]  # fmt: skip
            if not sent:
                return
            last = max(sent, key=lambda one: str(one.get("at")))
            before, date = last["snapshot"], last.get("calibration_date")
        if before != device.fingerprint:
            tell(
                f"{device.name} has been calibrated since the last job of {self.run}: of {date or 'no date'} "
                f"({before[:8]}) then, of {device.date or 'no date'} ({device.fingerprint[:8]}) now"
            )


def calibration_file(folder: Path, fingerprint: str) -> Path:
    """Where the calibration with this fingerprint lies, for `Device.load`."""
    return folder / CALIBRATIONS / f"{fingerprint}.json.gz"


def keep_calibration(folder: Path, device: Device) -> None:
    """Keep a calibration in the ledger's folder, each once; what cannot be kept is not."""
    path = calibration_file(folder, device.fingerprint)
    if not path.exists():
        with contextlib.suppress(QhwError):  # a full disk; a noise model of one's own without a name
            device.save(path)
