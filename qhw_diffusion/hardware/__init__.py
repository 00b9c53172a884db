"""Jobs on real devices: what they cost, the ledger, and the only code that submits anything."""

from __future__ import annotations

from qhw_diffusion.hardware.keys import content_key, job_key, tag_of
from qhw_diffusion.hardware.ledger import Ledger, ledger_folder
from qhw_diffusion.hardware.ledger_rows import Row
from qhw_diffusion.hardware.local import LocalService
from qhw_diffusion.hardware.recover import Recovery, recover
from qhw_diffusion.hardware.runner import Answer, Runner, open_runner
from qhw_diffusion.hardware.service import Pub, Service
from qhw_diffusion.hardware.split import JobLimits
from qhw_diffusion.hardware.times import Times

__all__ = [
    "Answer",
    "JobLimits",
    "Ledger",
    "LocalService",
    "Pub",
    "Recovery",
    "Row",
    "Runner",
    "Service",
    "Times",
    "content_key",
    "job_key",
    "ledger_folder",
    "open_runner",
    "recover",
    "tag_of",
]
