"""Jobs on real devices: what they cost, the ledger, and the only code that submits anything."""

from __future__ import annotations

from qhw_diffusion.hardware.keys import content_key, job_key, tag_of
from qhw_diffusion.hardware.ledger import Ledger, ledger_folder
from qhw_diffusion.hardware.ledger_rows import Row
from qhw_diffusion.hardware.recover import Recovery, recover

__all__ = ["Ledger", "Recovery", "Row", "content_key", "job_key", "ledger_folder", "recover", "tag_of"]
