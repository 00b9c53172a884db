"""Engines on a device for the commands that run there: the runner, the ledger, mitigation, costs, receipts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import BudgetError, InvalidInputError, QhwError
from qhw_diffusion.execution import CompiledCircuit, Engine, SamplerEngine
from qhw_diffusion.execution.cost import qpu_cost
from qhw_diffusion.execution.primitive import Hardware
from qhw_diffusion.experiment.study import REFUSALS
from qhw_diffusion.hardware.cost import Cost
from qhw_diffusion.hardware.ledger import Ledger, Row
from qhw_diffusion.hardware.ledger_rows import total_charge
from qhw_diffusion.hardware.provenance import record
from qhw_diffusion.hardware.runner import Runner, open_runner
from qhw_diffusion.hardware.service import SamplerPub
from qhw_diffusion.masking import without_own_tokens
from qhw_diffusion.mitigation import Mitigated
from qhw_diffusion.on_device.receipt import Receipt
from qhw_diffusion.on_device.settings import AccessConfig
from qhw_diffusion.runs import RunFolder, atomic_write_text

# In the run folder: what the ledger knows of the run's jobs
JOBS_FILE = "jobs.json"


class DeviceAccess:
    """Engines of one run on one device (`receipt.Access`). Open it with `open_access`.

    Every evaluation has a purpose and its own mitigation object, so that calibration circuits are part of its job and
    an evaluation that is asked for again is the same job, whatever the process has done before.
    """

    def __init__(self, config: AccessConfig, runner: Runner, ledger: Ledger, run: str) -> None:
        self.config, self.runner, self.ledger, self.run = config, runner, ledger, run

    @property
    def paid(self) -> bool:
        """Whether jobs cost QPU time of an account."""
        return self.runner.service.paid

    def engine(self, purpose: str) -> Engine:
        """An engine whose jobs are filed under `purpose`."""
        level = self.config.resilience_level
        options = {} if level is None else {"resilience_level": level}
        engine = Hardware(self.runner, shots=self.config.shots, options=options, purpose=purpose)
        strategies = self.config.strategies()
        return Mitigated(engine, strategies) if strategies else engine

    def sampler(self, purpose: str) -> SamplerEngine:
        """A Sampler whose jobs are filed under `purpose`; its counts are not mitigated."""
        return SamplerEngine(self.runner, shots=self.config.shots, purpose=purpose)

    def receipt(self, purpose: str) -> Receipt:
        """Jobs of `purpose` and what they were charged, failed attempts and duplicates included.

        The QPU seconds are None while the service has not stated those of one job.
        """
        return self._receipt([row for row in self.ledger.rows(run=self.run) if row.purpose == purpose])

    def all_receipts(self) -> Receipt:
        """As `receipt`, of all jobs of the run."""
        return self._receipt(self.ledger.rows(run=self.run))

    def _receipt(self, rows: list[Row]) -> Receipt:
        ended = [row for row in rows if row.state in ("done", "failed")]
        jobs = tuple(row.job_id or "" for row in ended if row.state == "done")
        unused = tuple(job for row in ended for job in row.unused_jobs)
        reused = tuple(job for job in jobs if job in self.runner.reused_jobs)
        calibrations = {
            told["snapshot"]: {"date": told["calibration_date"], "snapshot": told["snapshot"]}
            for told in map(record, ended)
            if told["state"] == "done" and told["snapshot"]
        }
        return Receipt(jobs, total_charge(ended), unused, reused, tuple(calibrations.values()))

    def settle(self) -> None:
        """After the last job: close the batch or session and read what is charged, so that receipts are final."""
        self.runner.settle()

    def cost(self, compiled: CompiledCircuit, rows: int, *, calls: int = 1) -> Cost:
        """What `calls` evaluations of so many rows are expected to take, mitigation and its calibration included."""
        return qpu_cost(
            self.engine("estimate"),
            compiled,
            rows,
            shots=self.config.shots,
            calls=calls,
            resilience_level=self.config.resilience_level or 0,
            history=self.ledger.rows(state="done"),
        )

    def sampling_cost(self, pubs: Sequence[SamplerPub], device: Device) -> Cost:
        """What one call of the Sampler is expected to take; `device` is the one the PUBs are compiled for."""
        return self.sampler("estimate").cost(pubs, device, history=self.ledger.rows(state="done"))

    def ledger_grew(self, before: int) -> bool:
        """Whether the ledger has more jobs of this run than `before`; also where it cannot be read any more."""
        try:
            return len(self.ledger.rows(run=self.run)) > before
        except QhwError:
            return True

    def require_cap(self) -> None:
        """Raises BudgetError on a paid device without any cap, before anything is made."""
        if self.paid and self.config.max_qpu_seconds is None and self.ledger.cap is None:
            raise BudgetError(
                f"{self.config.device} is paid by the second and there is no cap: give --max-qpu-seconds. `qhw cost` "
                "says what to expect. Nothing was sent"
            )

    def left_of(self, cap: float) -> float:
        """What a cap of this run leaves, QPU seconds, after charges not stated so far have been asked for."""
        self.runner.read_charges()
        return cap - self.ledger.spent(self.run)

    def cap_text(self, needed: float) -> str:
        """What the cap of this run leaves, and whether so many QPU seconds fit; the run's own jobs count in it."""
        cap = self.config.max_qpu_seconds
        if cap is None:
            return ""
        left = self.left_of(cap)
        found = f"cap             {cap:g} s for this run, {left:.1f} s left"
        if needed <= left:
            return found
        if self.ledger.rows(run=self.run):
            return (
                f"{found}; jobs of this run that are there already count in it and are not paid again. If the rest "
                "does not fit, it will stop there, and can go on with more"
            )
        return f"{found}; that is not enough: it will stop there, and can go on with more"

    def cost_text(self, cost: Cost) -> str:
        """The arithmetic, and what it means under the cap."""
        if not self.paid:
            return f"{self.config.device} is simulated here and costs nothing; on the device itself:\n{cost.text}"
        return "\n".join(line for line in (cost.text, self.cap_text(cost.least_cap)) if line)


@contextmanager
def open_access(config: AccessConfig, run: str, *, device: Device | None = None) -> Iterator[DeviceAccess]:
    """Connect: AccountError, LedgerError or UnknownNameError where that fails. `run` is the name jobs are counted by.

    Raises InvalidInputError for a resilience level on a device that is simulated here.
    device: the device, when it is loaded already.
    """
    if config.resilience_level and not config.device.startswith("ibm_"):  # before a ledger is made
        raise InvalidInputError(
            f"--resilience-level {config.resilience_level} is for IBM's service; {config.device} is simulated here "
            "and takes level 0 only. Give --mitigation instead (readout is level 1's), or a device of `qhw standin`"
        )
    with Ledger.open(config.ledger or None) as ledger:
        runner = open_runner(
            config.device,
            ledger=ledger,
            run=run,
            mode=config.mode,
            max_qpu_seconds=config.max_qpu_seconds,
            max_session_seconds=config.max_session_seconds,
            retry_failed=config.retry_failed,
        )
        with runner:
            yield DeviceAccess(config, runner, ledger, run)


def keep_jobs(folder: RunFolder, access: DeviceAccess) -> None:
    """Write what the ledger knows of the run's jobs into its folder, if there are any."""
    rows = access.ledger.rows(run=access.run)
    if rows:
        text = json.dumps([record(row) for row in rows], indent=1, ensure_ascii=False) + "\n"
        atomic_write_text(folder.path / JOBS_FILE, without_own_tokens(text))


@contextmanager
def at_device(folder: RunFolder, access: DeviceAccess) -> Iterator[None]:
    """A context around the jobs of a run, which keeps its folder once a job is in the ledger.

    The folder's snapshot gives the same circuits again, and an error is followed on stderr by how the run goes on.
    Before the first job the folder may be taken back. However it ends, what is known of the jobs is kept in the folder.
    """
    before = len(access.ledger.rows(run=access.run))
    try:
        yield
        access.settle()
        keep_jobs(folder, access)
    except BaseException as error:
        refused = isinstance(error, REFUSALS)
        accident = isinstance(error, QhwError) and not isinstance(error, (*REFUSALS, BudgetError))
        if accident or access.ledger_grew(before):
            folder.begin()
        if not folder.tentative and refused:
            # the folder keeps its settings, so with them no --resume can succeed
            out = folder.path
            print(f"qhw: {out} was begun with these settings; with others, replace it (--overwrite)", file=sys.stderr)
        elif not folder.tentative and isinstance(error, QhwError):
            print(f"qhw: what was done is kept in {folder.path}; the same command with --resume goes on",
                  file=sys.stderr)  # fmt: skip
        if not folder.tentative:
            with suppress(QhwError, OSError):  # the error that ended it is what counts
                keep_jobs(folder, access)
        raise
