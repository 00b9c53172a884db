"""A device on another day, where nobody has measured one: a seeded function of its calibration."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from qhw_diffusion.devices.device import Device
from qhw_diffusion.devices.snapshot import Snapshot
from qhw_diffusion.errors import InvalidInputError

_READOUT = ("prob_meas0_prep1", "prob_meas1_prep0")
# A readout error or an infidelity above is no longer one of a qubit that anybody would use
_WORST = 0.45


def drifted(device: Device, *, seed: int, spread: float = 0.5, worse: float = 1.0) -> Device:
    """The device with every calibrated value times a random factor of its own.

    T1 and T2 become T·e^(spread·z)/worse, readout errors (both of a qubit by themselves) and gate errors
    p·e^(spread·z)·worse, with z standard normal, drawn in the order of the calibration's entries. T2 stays at most
    2·T1, probabilities at most 0.45; gates out of use (an error of 1) stay out of use, durations and coupling as they
    are. No physics of how devices drift is in it: it is a stand-in for a second calibration.

    Args:
        device: with a calibration as IBM publishes it, such as ``fake_marrakesh``.
        seed: of the factors.
        spread: standard deviation of the factors' logarithm, ≥ 0.
        worse: factor that all errors have in common, > 0; times are divided by it.

    Returns:
        A device of the same name, with a provenance that tells where it is from.

    Raises:
        InvalidInputError: a device without calibration or with a noise model of its own, or settings out of range.
    """
    if not (math.isfinite(spread) and spread >= 0 and math.isfinite(worse) and worse > 0):
        raise InvalidInputError(f"spread is {spread!r} and worse {worse!r}; allowed: a spread from 0, worse above 0")
    properties = json.loads(device.snapshot.properties)
    if properties is None or device.own_noise is not None:
        raise InvalidInputError(f"{device.name} has no calibration that could drift: give a fake, live or saved device")
    rng = np.random.default_rng(seed)

    def factor() -> float:
        return math.exp(spread * rng.standard_normal())

    for qubit in properties["qubits"]:
        entries = {entry["name"]: entry for entry in qubit}
        for name in ("T1", "T2"):
            if name in entries:
                entries[name]["value"] *= factor() / worse
        if "T1" in entries and "T2" in entries:
            _same_unit_cap(entries["T1"], entries["T2"])
        for name in _READOUT:
            if name in entries:
                entries[name]["value"] = _error(entries[name]["value"], factor() * worse)
        if "readout_error" in entries and all(name in entries for name in _READOUT):
            entries["readout_error"]["value"] = sum(entries[name]["value"] for name in _READOUT) / 2
    for gate in properties["gates"]:
        for entry in gate["parameters"]:
            if entry["name"] == "gate_error":
                entry["value"] = _error(entry["value"], factor() * worse)
    source = f"{device.provenance.get('source', device.name)}, drifted: seed {seed}, spread {spread:g}, worse {worse:g}"
    return Device(Snapshot.from_provider(json.loads(device.snapshot.configuration), properties, source))


def _same_unit_cap(t1: dict[str, Any], t2: dict[str, Any]) -> None:
    """T2 at most 2·T1, where both have one unit, as IBM's have."""
    if t1.get("unit") == t2.get("unit"):
        t2["value"] = min(t2["value"], 2 * t1["value"])


def _error(value: float, factor: float) -> float:
    """A probability times a factor; 0, and what is out of use, stays."""
    return value if value >= _WORST else min(value * factor, _WORST)
