"""IBM's service, stood in for on this machine: the unmodified client talks to it; faults can be injected."""

from __future__ import annotations

from qhw_diffusion.hardware.standin.faults import (
    ENDPOINTS,
    Body,
    CancelJob,
    Delay,
    Drop,
    ExpireSession,
    FailJob,
    Fault,
    LostReply,
    RandomFaults,
    Stall,
    Status,
    Truncate,
    UsageLimit,
)
from qhw_diffusion.hardware.standin.records import JobRecord, SessionRecord
from qhw_diffusion.hardware.standin.service import INSTANCE, TOKEN, StandIn, serve_forever

__all__ = [
    "ENDPOINTS",
    "INSTANCE",
    "TOKEN",
    "Body",
    "CancelJob",
    "Delay",
    "Drop",
    "ExpireSession",
    "FailJob",
    "Fault",
    "JobRecord",
    "LostReply",
    "RandomFaults",
    "SessionRecord",
    "Stall",
    "StandIn",
    "Status",
    "Truncate",
    "UsageLimit",
    "serve_forever",
]
