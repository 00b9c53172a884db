"""A model of runner, ledgers, caps and a service, driven through random accidents by Hypothesis.

Rules: runs of a few keys (of an Estimator and a Sampler) from two ledgers of one account while replies are lost, lists
are behind, charges are late and processes die; time that passes; ledgers put back or recovered. Whatever the order:

1. what was paid for is never lost: a key whose job has a result is answered with it, and sends nothing;
2. a key is paid at most once, or what is more is known, asked to be cancelled, and counted;
3. when a job is sent, its limit and all that the ledger's other jobs cost fit into the cap, but for jobs without reply
   that the service hides for longer than anybody waits; with these it is at most one job's limit more (not across a
   ledger that is put back: it has forgotten what others had cost).

Hundreds of steps in `make test`; `QHW_MODEL=400 pytest tests/hardware/test_model.py` for that many times forty.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scripted import MEMORY, estimate, heard, pub, sampler_pub, told

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import BudgetError, JobError, ServiceError
from qhw_diffusion.hardware import ledger_rows
from qhw_diffusion.hardware.keys import job_key
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.ledger_files import FILE
from qhw_diffusion.hardware.recover import recover
from qhw_diffusion.hardware.runner import Runner
from qhw_diffusion.hardware.service import (
    AnyPub,
    JobState,
    Limits,
    Measured,
    NotSentError,
    Sampled,
    UncertainError,
)
from qhw_diffusion.hardware.wait import Times

EXAMPLES = int(os.environ.get("QHW_MODEL", "0"))
# Shrinking a failure takes minutes: QHW_MODEL_SHRINK=1 when there is one
PHASES = [Phase.generate, *([Phase.shrink] if os.environ.get("QHW_MODEL_SHRINK") else [])]
CAP = 30.0
DEVICE = Device.load("fake_manila")
KEYS = 3
# A look-up every ten seconds, thirty at least, two minutes if need be; counted for twenty
TIMES = Times(attempts=2, backoff=1, backoff_most=2, poll=5, poll_most=5, patience=30, grace=30, lookups=4,
              submissions=3, settle=5)  # fmt: skip
PUBS: list[AnyPub] = [pub((0.3,), 100), sampler_pub((1.3,), 100), sampler_pub((2.3,), 100)]
ANSWERS = [json.dumps([told(one)]) for one in PUBS]
WORK = {"options": {"resilience_level": 0}, "program": "executor"}
JOB_KEYS = [job_key([one], WORK, "ibm_model", "evaluate") for one in PUBS]  # type: ignore[list-item]  # PUBs are frozen
# Seconds until a job is in the list, has ended, and its charge is stated
QUEUE = (0, 0, 70)
BEHIND = ([], [], [45, 45], [100, 100], [1000], [1000, 1000])
STATED = ([], [20], [5000], [5000, 5000])
LATE = 1000  # the most that the list is behind
TAKES = (1, 2, 2, 5, 1000)  # seconds, cut at the limit
POSTS = ("accept", "accept", "accept", "lost", "lost", "dropped", "dropped", "429", "refused list")
FAILS = ([], [], [], [True], [False, True], [True, True])
STOPS = (None, None, None, "find", "submit", "submitted", "status", "raw", "charge")


class KilledError(BaseException):
    """The process dies here."""


@dataclass
class Truth:
    """One accepted job, as the service knows it. Times are seconds of the world's clock."""

    tags: list[str]
    answer: str
    limit: int
    listed: float
    ready: float
    stated: float
    takes: float
    fails: bool
    asked: bool = False  # to be cancelled
    cancelled: bool = False

    @property
    def charge(self) -> float:
        return 0.0 if self.cancelled else min(self.takes, self.limit)

    @property
    def has_result(self) -> bool:
        return not (self.cancelled or self.fails or self.takes > self.limit)


@dataclass
class World:
    """A clock, an account's jobs, and what goes wrong next."""

    now: float = 0.0
    jobs: dict[str, Truth] = field(default_factory=dict)
    # what becomes of the next submissions, how long their jobs run, whether they fail, and how long it takes until they
    # are listed and their charges stated; the rest goes well
    posts: list[str] = field(default_factory=list)
    takes: list[float] = field(default_factory=list)
    fails: list[bool] = field(default_factory=list)
    stated: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)
    queue: float = 0.0
    stop: tuple[str, int] | None = None
    silent: int = 0
    submissions: int = 0
    # ids of the jobs that the process at work can know of; None where there is nothing to compare with
    known: set[str] | None = None

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def calm(self) -> None:
        """Nothing goes wrong from now on, and all that is late comes."""
        self.known = None
        self.posts, self.takes, self.fails, self.stated, self.behind, self.queue = [], [], [], [], [], 0.0
        self.stop, self.silent = None, 0

    def step(self, name: str) -> None:
        """Die, or stay silent, if it is time to."""
        if self.stop is not None and self.stop[0] == name:
            self.stop = (name, self.stop[1] - 1)
            if self.stop[1] < 0:
                self.stop = None
                raise KilledError(name)


@dataclass
class Service:
    """The account, for one process."""

    world: World
    device: str = "ibm_model"
    paid: bool = True
    program: str = "executor"
    instance: str = "one"
    plan: str = ""

    def snapshot(self) -> Device:
        return DEVICE

    def check(self, pubs: Sequence[AnyPub], options: Mapping[str, Any]) -> None:
        pass

    def submit(self, pubs: Sequence[AnyPub], options: Mapping[str, Any], tags: Sequence[str], limits: Limits) -> str:
        world = self.world
        world.step("submit")
        what = world.posts.pop(0) if world.posts else "accept"
        if what == "429":
            raise NotSentError("429")
        if what == "dropped":
            raise UncertainError("no reply")
        number = next(n for n, one in enumerate(PUBS) if np.array_equal(one.values, pubs[0].values))
        job_id = f"job-{len(world.jobs)}"
        now = world.now
        takes = world.takes.pop(0) if world.takes else 2.0
        fails = world.fails.pop(0) if world.fails else False
        stated = world.stated.pop(0) if world.stated else 0.0
        behind = world.behind.pop(0) if world.behind else 0.0
        world.jobs[job_id] = Truth(list(tags), ANSWERS[number], limits.max_execution_seconds or 0, now + behind,
                                   now + world.queue, now + world.queue + stated, takes, fails)  # fmt: skip
        world.submissions += 1
        if world.known is not None:
            cost = sum(world.jobs[name].charge for name in world.known)
            assert cost + world.jobs[job_id].limit <= CAP, "sent without room for it"
            world.known |= {job_id} if behind <= TIMES.until_absent else set()
        world.step("submitted")
        if what == "refused list":
            world.silent = 100
        if what in ("lost", "refused list"):
            raise UncertainError("no reply")
        if world.known is not None:
            world.known.add(job_id)
        return job_id

    def find(self, tag: str) -> list[str]:
        self.world.step("find")
        if self.world.silent:
            self.world.silent -= 1
            raise ServiceError("no answer")
        return [name for name, job in self.world.jobs.items() if tag in job.tags and job.listed <= self.world.now]

    def status(self, job_id: str) -> JobState:
        self.world.step("status")
        job = self.world.jobs[job_id]
        if job.cancelled:
            return JobState("CANCELLED")
        if self.world.now < job.ready:
            return JobState("QUEUED")
        return JobState("ERROR", "broken") if job.fails or job.takes > job.limit else JobState("DONE")

    def raw(self, job_id: str) -> str:
        self.world.step("raw")
        return self.world.jobs[job_id].answer

    def decode(self, raw: str) -> list[Measured] | list[Sampled]:
        return heard(raw)

    def qpu_seconds(self, job_id: str) -> float | None:
        self.world.step("charge")
        job = self.world.jobs[job_id]
        if job.cancelled:
            return 0.0
        return job.charge if self.world.now >= job.stated else None

    def effective(self, options: Mapping[str, Any], primitive: str = "estimator") -> dict[str, Any]:
        return dict(options)

    def where(self, job_id: str) -> dict[str, Any]:
        return {}

    def stated(self, job_id: str) -> dict[str, Any]:
        return {}

    def cancel(self, job_id: str) -> None:
        job = self.world.jobs[job_id]
        job.asked = True
        job.cancelled = job.cancelled or self.world.now < job.ready

    def remaining_seconds(self) -> float | None:
        return None

    def session_id(self) -> str | None:
        return None

    def session_seconds(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        pass


class Accidents(RuleBasedStateMachine):
    """See the top of this file."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.place = Path(tempfile.mkdtemp(prefix="qhw-model-", dir=MEMORY))
        self.put_back: set[str] = set()
        self.forgets = False  # whether ledgers are put back and recovered
        self.ids: dict[str, str] = {}
        world = self.world

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.datetime(2026, 1, 1, tzinfo=tz) + datetime.timedelta(seconds=world.now)

        self._datetime = ledger_rows.datetime
        ledger_rows.datetime = Clock  # type: ignore[assignment,misc]

    def teardown(self) -> None:
        try:
            self.in_the_end_everything_is_known()
        finally:
            ledger_rows.datetime = self._datetime  # type: ignore[assignment,misc]
            shutil.rmtree(self.place)

    @initialize(forgets=st.booleans())
    def ledgers(self, forgets: bool) -> None:
        self.forgets = forgets
        for name in "AB":
            with Ledger.open(self.place / name) as ledger:
                ledger.set_cap(CAP)
                self.ids[name] = ledger.id
            shutil.copytree(self.place / name, self.place / f"{name}.kept")

    # -- what happens ----------------------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from("AAAB"), key=st.integers(0, KEYS - 1), run=st.sampled_from(("one", "two")),
        retry=st.booleans(), posts=st.lists(st.sampled_from(POSTS), max_size=3), behind=st.sampled_from(BEHIND),
        queue=st.sampled_from(QUEUE), fails=st.sampled_from(FAILS),
        takes=st.lists(st.sampled_from(TAKES), max_size=3), stated=st.sampled_from(STATED),
        stop=st.sampled_from(STOPS), after=st.integers(0, 2),
    )  # fmt: skip
    def run_with_accidents(
        self, name: str, key: int, run: str, retry: bool, stop: str | None, after: int, **accidents: Any
    ) -> None:
        """A process runs one key, and more or less of this goes wrong."""
        for what, value in accidents.items():
            setattr(self.world, what, copy(value))
        self.world.stop = None if stop is None else (stop, after)
        self.world.known = self._known_to(name)
        row, before = self._row(name, key), self.world.submissions
        with contextlib.suppress(KilledError, JobError, ServiceError, BudgetError):
            self._run(name, key, run, retry)
        if row is not None and row.state == "failed" and not (retry or row.sent_again):
            assert self.world.submissions == before, "sent again without being asked to"
        self.world.calm()

    @rule(
        name=st.sampled_from("AAAB"), key=st.integers(0, KEYS - 1), fails=st.sampled_from(FAILS),
        takes=st.sampled_from(([], [5], [1000], [1000, 1000])), stated=st.sampled_from(STATED), shows=st.booleans(),
    )  # fmt: skip
    def a_job_without_reply_is_hidden(self, name: str, key: int, shows: bool, **accidents: Any) -> None:
        """For longer than anybody waits for it, so that another one is sent; the same command again, then or before."""
        self.run_with_accidents(name, key, "one", True, None, 0, posts=["lost"], behind=[LATE], queue=0, **accidents)
        self.world.now += LATE if shows else 0
        self.run_with_accidents(name, key, "one", not shows, None, 0)

    @rule(name=st.sampled_from("AAAB"), key=st.integers(0, KEYS - 1), takes=st.sampled_from(([], [5])))
    def a_job_fails_and_is_sent_again(self, name: str, key: int, takes: list[float]) -> None:
        """What the failed one cost goes on counting, whatever becomes of the ledger."""
        for fails in ([True], []):
            self.run_with_accidents(name, key, "one", True, None, 0, fails=fails, takes=takes)

    @rule(seconds=st.sampled_from((1, 60, 500, 2000)))
    def time_passes(self, seconds: int) -> None:
        self.world.now += seconds

    @precondition(lambda self: self.forgets)
    @rule(name=st.sampled_from("AB"))
    def keep_a_copy(self, name: str) -> None:
        shutil.rmtree(self.place / f"{name}.kept")
        shutil.copytree(self.place / name, self.place / f"{name}.kept")

    @precondition(lambda self: self.forgets)
    @rule(name=st.sampled_from("AB"))
    def put_the_copy_back(self, name: str) -> None:
        """Later than the service's list may be behind: of what it hides, and the ledger forgets, nobody knows."""
        self.world.now += LATE
        shutil.rmtree(self.place / name)
        shutil.copytree(self.place / f"{name}.kept", self.place / name)
        self.put_back.add(name)

    @precondition(lambda self: self.forgets)
    @rule(name=st.sampled_from("AB"))
    def the_database_is_damaged_and_recovered(self, name: str) -> None:
        """All rows are unreadable; the finished ones come back from their results."""
        self.world.now += LATE  # as above
        with contextlib.closing(sqlite3.connect(self.place / name / FILE)) as connection, connection:
            connection.execute("UPDATE jobs SET seal = ''")
        recover(self.place / name)
        with Ledger.open(self.place / name) as ledger:
            assert ledger.id == self.ids[name]
            assert ledger.cap == CAP
        self.put_back.add(name)

    # -- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def charged_at_most_the_cap_and_one_limit(self) -> None:
        for name in set(self.ids) - self.put_back:
            jobs = self._jobs(name).values()
            assert sum(job.charge for job in jobs) <= CAP + max((job.limit for job in jobs), default=0)

    def in_the_end_everything_is_known(self) -> None:
        """All lists and charges have come; every key that was begun is run again by somebody who has the money."""
        self.world.calm()
        self.world.now += 10_000
        for name in self.ids:
            begun = [key for key, row in enumerate(self._rows(name)) if self._jobs(name, key) or row]
            left = begun
            for _ in range(8):
                for key in left:
                    with Ledger.open(self.place / name) as ledger:
                        ledger.set_cap(10_000)
                    done = [job for job in self._jobs(name, key).values() if job.has_result]
                    before = self.world.submissions
                    with contextlib.suppress(JobError):
                        self._run(name, key, "one", retry=True)
                    if done:
                        assert self.world.submissions == before, "it was paid for already"
                self.world.now += 2000
                rows = self._rows(name) if left else []
                left = [key for key in left if rows[key].state != "done"]
            with Ledger.open(self.place / name) as ledger:
                Runner(Service(self.world), ledger, run="one", times=TIMES, sleep=self.world.sleep,
                       estimate=estimate).read_charges()  # fmt: skip
                rows = self._rows(name)
                for key in begun:
                    row = rows[key]
                    assert row.state == "done"
                    known = {row.job_id, *(job["job_id"] for job in row.unused_jobs)}
                    assert known == set(self._jobs(name, key)), (row, self._jobs(name, key))
                    assert not row.unknown
                    for tag in {job.tags[-1] for job in self._jobs(name, key).values()}:
                        alike = [job for job in self._jobs(name, key).values() if job.tags[-1] == tag]
                        assert sum(not (job.asked or job.fails or job.takes > job.limit) for job in alike) <= 1, alike
                    charged = sum(job.charge for job in self._jobs(name, key).values())
                    assert row.counted == charged, (row, self._jobs(name, key))
                assert ledger.spent() == sum(job.charge for job in self._jobs(name).values())

    # -- tools -----------------------------------------------------------------------------------------------------

    def _run(self, name: str, key: int, run: str, retry: bool) -> None:
        with Ledger.open(self.place / name) as ledger:
            service = Service(self.world)
            runner = Runner(service, ledger, run=run, retry_failed=retry, times=TIMES, sleep=self.world.sleep,
                            estimate=estimate)  # fmt: skip
            runner._waiter.clock = lambda: self.world.now
            runner._waiter._random.seed(0)  # so that a failure comes again
            answer = runner.run([PUBS[key]], options={"resilience_level": 0})
            (wanted,) = heard(ANSWERS[key])
            if isinstance(wanted, dict):
                assert answer.bits == [wanted]
            else:
                np.testing.assert_array_equal(answer.values[0], wanted[0])

    def _known_to(self, name: str) -> set[str] | None:
        """Ids of the jobs whose charges a process that opens the ledger now can know, and must leave room for.

        A planned row is its own sender's business, who may be at work.
        """
        if name in self.put_back:
            return None
        known = set()
        for key, row in enumerate(self._rows(name)):
            mine = self._jobs(name, key)
            known |= {row.job_id, *(job["job_id"] for job in row.unused_jobs)} & set(mine) if row else set()
            if row and row.state != "planned":
                known |= {job_id for job_id, job in mine.items() if job.listed <= self.world.now}
        return known

    def _row(self, name: str, key: int) -> Any:
        return self._rows(name)[key]

    def _rows(self, name: str) -> list[Any]:
        """Of each key; None where there is none."""
        with Ledger.open(self.place / name) as ledger:
            return [ledger.get(each) for each in JOB_KEYS]

    def _jobs(self, name: str, key: int | None = None) -> dict[str, Truth]:
        """The service's jobs that this ledger sent, for one key if given."""
        begin = f"q-{self.ids[name][:8]}-" + ("" if key is None else JOB_KEYS[key][:16])
        return {job_id: job for job_id, job in self.world.jobs.items() if job.tags[2].startswith(begin)}


Accidents.TestCase.settings = hypothesis.settings(
    max_examples=EXAMPLES or 40,
    stateful_step_count=40 if EXAMPLES else 15,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    phases=PHASES,
)
TestAccidents = pytest.mark.timeout(300 + 10 * EXAMPLES)(Accidents.TestCase)


# Sequences that random steps come to rarely
HIDDEN: dict[str, Any] = {"name": "A", "key": 0, "stated": [], "fails": [], "takes": [5]}
RARE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "the first job of each key is hidden, and takes all it may": [
        ("a_job_without_reply_is_hidden", {**HIDDEN, "key": key, "takes": [1000], "shows": False})
        for key in range(KEYS)
    ],
    "of two the hidden one has the result": [
        ("a_job_without_reply_is_hidden", {**HIDDEN, "fails": [False, True], "shows": True})
    ],
    "the one that is found has failed": [
        ("run_with_accidents", {"name": "A", "key": 0, "run": "one", "retry": False, "stop": None, "after": 0,
                                "posts": ["lost"], "behind": [120.5], "fails": [True], "takes": [5]}),
    ],
    "tried again before the hidden one shows": [
        ("a_job_without_reply_is_hidden", {**HIDDEN, "fails": [True, True], "shows": False})
    ],
    "the ledger is put back after a failure and a second attempt": [
        ("a_job_fails_and_is_sent_again", {"name": "A", "key": 0, "takes": [5]}),
        ("put_the_copy_back", {"name": "A"}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("steps", RARE.values(), ids=RARE)
def test_rare_sequences(steps: list[tuple[str, dict[str, Any]]]) -> None:
    machine = Accidents()
    try:
        machine.ledgers(forgets=True)
        for name, arguments in steps:
            getattr(machine, name)(**arguments)
            machine.charged_at_most_the_cap_and_one_limit()
    finally:
        machine.teardown()
