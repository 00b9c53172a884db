"""What the stand-in knows: jobs, sessions, and what they were charged. The truth that tests count with."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass
class JobRecord:
    """One accepted job. `state` is the service's word: Queued, Running, Completed, Failed, Cancelled."""

    id: str
    program: str
    backend: str
    params: str
    tags: tuple[str, ...]
    session_id: str | None
    limit_seconds: float | None
    created: str
    not_before: float = 0.0
    posted: float = field(default_factory=time.monotonic)
    started: str | None = None
    finished: str | None = None
    state: str = "Queued"
    reason: str | None = None
    reason_code: int | None = None
    result: str | None = None
    executions: int = 0
    seconds: float = 0.0
    fails: tuple[str, int, float] | None = None

    def cancel(self, reason: str) -> None:
        """End it; what it was charged so far stays."""
        self.state, self.reason, self.finished = "Cancelled", reason, moment()

    def to_json(self) -> dict[str, Any]:
        """As ``GET /jobs/{id}`` answers."""
        state: dict[str, Any] = {"status": self.state}
        if self.reason is not None:
            state |= {"reason": self.reason, "reason_code": self.reason_code}
        return {
            "id": self.id,
            "backend": self.backend,
            "program": {"id": self.program},
            "created": self.created,
            "status": self.state,
            "state": state,
            "tags": list(self.tags),
            "session_id": self.session_id,
            "cost": self.limit_seconds,
            "estimated_running_time_seconds": self.seconds,
            "private": False,
        }

    def metrics(self) -> dict[str, Any]:
        """As ``GET /jobs/{id}/metrics`` answers."""
        final = self.state in ("Completed", "Failed", "Cancelled")
        usage = {
            "status": "final" if final else "pending",
            "seconds": self.seconds,
            "quantum_seconds": self.seconds,
            "qpu_charge_time_seconds": self.seconds,
        }
        times = {"created": self.created, "running": self.started, "finished": self.finished}
        return {"usage": usage, "executions": self.executions, "timestamps": times}


@dataclass
class SessionRecord:
    """A session ("dedicated": charged by the clock while it is open) or a batch (its jobs are charged)."""

    id: str
    mode: str
    backend: str
    max_seconds: float | None
    opened: float = field(default_factory=time.monotonic)
    activated: float | None = None
    closed: float | None = None
    accepting: bool = True

    def close(self) -> None:
        """Take no more jobs, and charge no further."""
        self.accepting = False
        if self.closed is None:
            self.closed = time.monotonic()

    def expire(self) -> None:
        """Close it if its time is over."""
        if self.max_seconds is not None and time.monotonic() - self.opened >= self.max_seconds:
            self.close()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the first job started; 0 for a batch."""
        if self.mode == "batch" or self.activated is None:
            return 0.0
        return max(0.0, (time.monotonic() if self.closed is None else self.closed) - self.activated)

    def to_json(self) -> dict[str, Any]:
        """As ``GET /sessions/{id}`` answers."""
        return {
            "id": self.id,
            "backend_name": self.backend,
            "mode": self.mode,
            "max_ttl": self.max_seconds,
            "active_ttl": self.max_seconds,
            "interactive_ttl": 60,
            "state": "open" if self.accepting else "closed",
            "accepting_jobs": self.accepting,
            "elapsed_time": self.seconds,
        }


def moment() -> str:
    """The time as the service writes it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Records:
    """Jobs and sessions under one lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.jobs: dict[str, JobRecord] = {}
        self.sessions: dict[str, SessionRecord] = {}

    def add_job(self, posted: dict[str, Any], params: str, *, wait: float) -> JobRecord:
        """A new job, queued for `wait` seconds."""
        job = JobRecord(
            id=f"d{uuid.uuid4().hex[:19]}",
            program=posted["program_id"],
            backend=posted["backend"],
            params=params,
            tags=tuple(posted.get("tags") or ()),
            session_id=posted.get("session_id"),
            limit_seconds=posted.get("cost"),
            created=moment(),
            not_before=time.monotonic() + wait,
        )
        with self.lock:
            self.jobs[job.id] = job
        return job

    def add_session(self, posted: dict[str, Any]) -> SessionRecord:
        """A new session or batch."""
        session = SessionRecord(
            str(uuid.uuid4()), posted.get("mode") or "dedicated", posted.get("backend") or "", posted.get("max_ttl")
        )
        with self.lock:
            self.sessions[session.id] = session
        return session

    def next_job(self) -> JobRecord | None:
        """The oldest job whose time in the queue is over, now Running."""
        with self.lock:
            for job in self.jobs.values():
                if job.state == "Queued" and time.monotonic() >= job.not_before:
                    job.state, job.started = "Running", moment()
                    session = self.sessions.get(job.session_id or "")
                    if session is not None and session.activated is None:
                        session.activated = time.monotonic()
                    return job
        return None

    def tagged(self, tags: list[str], *, lag: float = 0.0) -> list[JobRecord]:
        """Jobs that have all these tags and were accepted at least `lag` seconds ago, newest first."""
        before = time.monotonic() - lag
        with self.lock:
            return [job for job in reversed(self.jobs.values()) if set(tags) <= set(job.tags) and job.posted <= before]

    @property
    def charged_seconds(self) -> float:
        """What the account pays: jobs outside of sessions, and the clock of the sessions."""
        with self.lock:
            dedicated = {s.id for s in self.sessions.values() if s.mode != "batch"}
            jobs = sum(job.seconds for job in self.jobs.values() if job.session_id not in dedicated)
            return jobs + sum(session.seconds for session in self.sessions.values())
