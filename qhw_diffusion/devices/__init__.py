"""Devices: a target, its noise and where both were taken from. Reads only; never submits anything."""

from __future__ import annotations

from qhw_diffusion.devices.device import Device
from qhw_diffusion.devices.fake import fake_backend_names
from qhw_diffusion.devices.snapshot import Snapshot

__all__ = ["Device", "Snapshot", "fake_backend_names"]
