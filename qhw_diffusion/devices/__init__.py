"""Devices: a target, its noise and where both were taken from. Reads only; never submits anything."""

from __future__ import annotations

from qhw_diffusion.devices.account import connect, has_account, live_backend, live_backends
from qhw_diffusion.devices.calibration import Calibration, Drift
from qhw_diffusion.devices.device import Device, take_snapshot
from qhw_diffusion.devices.drift import drifted
from qhw_diffusion.devices.layouts import predicted_error, rank_layouts
from qhw_diffusion.devices.pictures import draw_calibration
from qhw_diffusion.devices.providers import backend_snapshot, fake_backend_names, live_snapshot
from qhw_diffusion.devices.snapshot import Snapshot
from qhw_diffusion.devices.tables import calibration_text, drift_text, layouts_text, overview_markdown, parse_qubits

__all__ = [
    "Calibration",
    "Device",
    "Drift",
    "Snapshot",
    "backend_snapshot",
    "calibration_text",
    "connect",
    "draw_calibration",
    "drift_text",
    "drifted",
    "fake_backend_names",
    "has_account",
    "layouts_text",
    "live_backend",
    "live_backends",
    "live_snapshot",
    "overview_markdown",
    "parse_qubits",
    "predicted_error",
    "rank_layouts",
    "take_snapshot",
]
