"""Jobs on real devices: what they cost, the ledger, and the only code that submits anything.

Read it in the order of a job's life, which `runner` puts together: `split` (PUBs to jobs), `keys` (the content key),
`ledger` (one row a key; `ledger_rows`, `ledger_files`), `cost` (the estimate), `caps` (may it be sent, and what may it
take), `submit` (sent once), `wait` (until it has ended), `record` (answer and charge stored). Who runs jobs is a
`service`: IBM's (`ibm`, over `transport`, with batches and sessions in `modes`) or a simulation in this process
(`local`). `provenance` collects what is kept of each job besides, `report` shows and exports a ledger, `recover`
repairs one, `standin` serves IBM's interface on this machine for tests.
"""

from __future__ import annotations

from qhw_diffusion.hardware.keys import content_key, job_key, tag_of
from qhw_diffusion.hardware.ledger import Ledger, ledger_folder
from qhw_diffusion.hardware.ledger_rows import Row
from qhw_diffusion.hardware.local import LocalService
from qhw_diffusion.hardware.recover import Recovery, recover
from qhw_diffusion.hardware.runner import Answer, Runner, open_runner
from qhw_diffusion.hardware.service import Pub, SamplerPub, Service
from qhw_diffusion.hardware.split import JobLimits
from qhw_diffusion.hardware.wait import Times

__all__ = [
    "Answer",
    "JobLimits",
    "Ledger",
    "LocalService",
    "Pub",
    "Recovery",
    "Row",
    "Runner",
    "SamplerPub",
    "Service",
    "Times",
    "content_key",
    "job_key",
    "ledger_folder",
    "open_runner",
    "recover",
    "tag_of",
]
