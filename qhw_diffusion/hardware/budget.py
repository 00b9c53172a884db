"""May these jobs be sent, by the run's cap, the ledger's, and what the account has left? And what may each take?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qhw_diffusion.errors import BudgetError
from qhw_diffusion.hardware.job import Job
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_rows import LIMIT, Row

# The service's own limit for one job, seconds
LONGEST_JOB = 3 * 3600


def share_budget(
    jobs: Sequence[Job],
    ledger: Ledger,
    *,
    run: str,
    device: str,
    cap: float | None,
    remaining: float | None,
    session_overhead: float = 0.0,
) -> int:
    """Give each job its limit, `Job.max_seconds`; together they fit into what is left, even if every job uses it up.

    So a job counts with its limit until its charge is known: for another process under the same cap, what it leaves is
    all there is. The service takes limits in whole seconds, so each job counts with its estimate rounded up.

    Args:
        jobs: about to be sent to a paid device, with their estimates.
        ledger: what was spent so far, and its own cap.
        run: whose cap it is.
        device: for the message.
        cap: of the run, QPU seconds.
        remaining: QPU seconds the account has left; None without limit.
        session_overhead: seconds charged for sessions of the run beyond their jobs.

    Returns:
        Whole seconds left before these jobs.

    Raises:
        BudgetError: neither a cap of the run nor of the ledger, less left than the jobs need, or a job that is longer
            than the service allows.
    """
    if cap is None and ledger.cap is None:
        raise BudgetError(
            f"{device} is paid by the second and there is no cap: give --max-qpu-seconds (max_qpu_seconds), or the "
            "ledger one (Ledger.set_cap). `qhw cost` says what to expect. Nothing was sent"
        )
    for job in jobs:
        if job.seconds > LONGEST_JOB:
            raise BudgetError(
                f"a job on {device} would take about {job.seconds:.0f} s; the service ends jobs after three hours "
                f"({LONGEST_JOB} s) and charges them. Nothing was sent; use fewer shots or rows"
            )
    # Rows that an interrupted call planned for these very jobs are in `spent` already
    planned = [row for job in jobs if (row := ledger.get(job.key)) is not None and row.state == "planned"]
    left: dict[str, float] = {}
    if cap is not None:
        spent = ledger.spent(run) - sum(_own(row) for row in planned if row.run == run) + session_overhead
        left[f"the run's cap is {cap:g} s, {spent:.1f} s of it spent or in flight"] = cap - spent
    if ledger.cap is not None:
        spent = ledger.spent() - sum(_own(row) for row in planned) + session_overhead
        left[f"the ledger's cap is {ledger.cap:g} s, {spent:.1f} s of it spent or in flight"] = ledger.cap - spent
    if remaining is not None:
        flying = ledger.reserved() - sum(_own(row) for row in planned)
        left[f"the account has {remaining:.0f} s, {flying:.1f} s of it in flight"] = remaining - flying
    why = min(left, key=lambda text: left[text])
    need = sum(job.whole_seconds for job in jobs)
    if need > left[why]:
        unstated = [job_id for row in ledger.with_unknown_charges() for job_id in row.unknown]
        later = (
            f" {_jobs(len(unstated))} ended without a charge so far ({', '.join(unstated[:3])}"
            f"{', …' if len(unstated) > 3 else ''}), and count with their limits until the service states it: the same "
            "command may fit later."
            if unstated
            else ""
        )
        if unheard := sum(row.unanswered_seconds for row in ledger.with_unanswered()):
            later += (
                f" {unheard:.1f} s are kept for submissions that got no reply, in case they were accepted after all; "
                "they are looked for again by every command, and given up after a while."
            )
        raise BudgetError(
            f"{_jobs(len(jobs))} on {device} would take about "
            f"{sum(job.seconds for job in jobs):.1f} s ({need} s in whole seconds), and {max(left[why], 0):.1f} s are "
            f"left: {why}.{later} Nothing was sent; use fewer shots or rows, or raise the cap"
        )
    spare = math.floor(left[why]) - need
    for job in jobs:
        share = spare * job.whole_seconds // need if need else spare
        job.max_seconds = max(1, min(job.whole_seconds + share, LONGEST_JOB))
        job.summary = {**job.summary, LIMIT: job.max_seconds}
    return math.floor(left[why])


def _own(row: Row) -> float:
    """What a planned row counts for the job that is to be sent, without earlier submissions of it."""
    return row.counted_now - row.unanswered_seconds


def _jobs(number: int) -> str:
    return f"{number} job{'s' if number != 1 else ''}"
