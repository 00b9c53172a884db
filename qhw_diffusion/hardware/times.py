"""Every time scale of a hardware run in one place, so that tests can shrink them together."""

from __future__ import annotations

from dataclasses import dataclass, fields

from qhw_diffusion.errors import InvalidInputError


@dataclass(frozen=True)
class Times:
    """Seconds, and numbers of attempts.

    Args:
        connect: to open a connection.
        read: without a byte from the service before a request counts as lost (the client itself waits forever).
        accept: without a byte in reply to a job; longer, since large jobs are slow to be taken, and what is given up
            too early has to be looked up.
        attempts: of a request that may be repeated safely.
        backoff: before the second attempt; doubled for each further one, up to `backoff_most`, with jitter.
        backoff_most: the longest pause between attempts.
        retry_after_most: the longest Retry-After that is waited for; the service's refusal is reported beyond it.
        poll: between two looks at a job's state; the pause grows to `poll_most` while nothing changes, with jitter.
        poll_most: the longest pause between two looks.
        patience: without any answer about a job before the wait is given up (the job goes on).
        grace: over which look-ups by tag are spread before a job counts as absent.
        lookups: how many of these must all be answered, and find nothing.
        late: after a submission without reply until its job counts as never accepted, if no look-up finds it: the
            service's list may be behind. None for four times `grace`.
        submissions: how often one job is sent at most, each time after it was certainly absent.
        settle: to wait for the service to state what a finished job used.
        turn: for another process that has the same work, before the person at the terminal is told of it.
        deadline: for one job, from being sent to its answer; None waits as long as the queue takes.
    """

    connect: float = 10.0
    read: float = 60.0
    accept: float = 300.0
    attempts: int = 6
    backoff: float = 0.5
    backoff_most: float = 30.0
    retry_after_most: float = 300.0
    poll: float = 1.0
    poll_most: float = 15.0
    patience: float = 900.0
    grace: float = 30.0
    lookups: int = 4
    late: float | None = None
    submissions: int = 4
    settle: float = 10.0
    turn: float = 10.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name in ("attempts", "lookups", "submissions") else 0
            if value is None and field.name in ("deadline", "late"):
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= least:
                raise InvalidInputError(f"Times.{field.name} is {value!r}; allowed: numbers from {least}")

    @property
    def until_absent(self) -> float:
        """`late`, or what stands for it."""
        return 4 * self.grace if self.late is None else self.late

    @property
    def remembered(self) -> float:
        """Seconds for which a submission without reply counts and is looked for again, after its job was sent anew."""
        return 10 * self.until_absent
