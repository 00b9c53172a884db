"""A paid service in memory that does what a test tells it to: the runner's rules without HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp, Statevector

from qhw_diffusion.devices import Device
from qhw_diffusion.hardware.cost import Cost
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import Runner
from qhw_diffusion.hardware.service import JobState, Limits, Measured, Pub, UncertainError, precision_of
from qhw_diffusion.hardware.wait import Times

FAST = Times(
    connect=2.0,
    read=2.0,
    attempts=3,
    backoff=0.004,
    backoff_most=0.008,
    retry_after_most=1.0,
    poll=0.0,
    poll_most=0.0,
    patience=0.05,
    grace=0.0,
    settle=0.0,
)
THETA = Parameter("θ")


def pub(rows: Sequence[float] = (0.1, 0.9), shots: int = 100) -> Pub:
    """Two observables of one qubit, in gates that every device of IBM takes."""
    circuit = QuantumCircuit(1)
    circuit.sx(0)
    circuit.rz(THETA, 0)
    circuit.sx(0)
    observables = (SparsePauliOp("Z"), SparsePauliOp("X"))
    return Pub(circuit, observables, (THETA,), np.array(rows)[:, None], precision_of(shots))


def exact(pub: Pub) -> np.ndarray:
    """[M, B] expectation values."""
    states = [Statevector(pub.circuit.assign_parameters(dict(zip(pub.parameters, v, strict=True)))) for v in pub.values]
    return np.array([[s.expectation_value(o).real for s in states] for o in pub.observables])


@dataclass
class Job:
    """The service's side of a job."""

    tags: list[str]
    answer: str
    limits: Limits
    state: str = "DONE"
    reason: str = ""
    charged: float | None = 2.0


@dataclass
class ScriptedService:
    """Answers exactly and charges each job.

    `on_submit` holds what happens at the next submissions, "accept" once it is empty: ``"accept"``, ``"lost reply"``
    (accepted, but UncertainError), ``"dropped"`` (not accepted, UncertainError), or an exception to raise.
    """

    device: str = "ibm_scripted"
    paid: bool = True
    program: str = "executor"
    remaining: float | None = None
    on_submit: list[Any] = field(default_factory=list)
    on_find: list[Any] = field(default_factory=list)
    on_status: list[Any] = field(default_factory=list)
    new_job: Callable[[Job], None] = lambda job: None
    jobs: dict[str, Job] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    session: float = 0.0
    prefix: str = "job"
    instance: str = ""
    plan: str = ""

    def snapshot(self) -> Device:
        return Device.load("fake_manila")

    def check(self, pubs: Sequence[Pub], options: Mapping[str, Any]) -> None:
        self.calls.append("check")

    def submit(self, pubs: Sequence[Pub], options: Mapping[str, Any], tags: Sequence[str], limits: Limits) -> str:
        self.calls.append("submit")
        what = self.on_submit.pop(0) if self.on_submit else "accept"
        if isinstance(what, BaseException):
            raise what
        if what == "dropped":
            raise UncertainError("no reply")
        answers = [[exact(p).tolist(), (0.0 * exact(p) + p.precision).tolist(), p.shots] for p in pubs]
        job = Job(list(tags), json.dumps(answers), limits)
        self.new_job(job)
        job_id = f"{self.prefix}-{len(self.jobs) + 1}"
        self.jobs[job_id] = job
        if what == "lost reply":
            raise UncertainError("no reply")
        return job_id

    def find(self, tag: str) -> list[str]:
        self.calls.append("find")
        what = self.on_find.pop(0) if self.on_find else None
        if isinstance(what, BaseException):
            raise what
        return [] if what == "not yet" else [job_id for job_id, job in self.jobs.items() if tag in job.tags]

    def status(self, job_id: str) -> JobState:
        self.calls.append("status")
        what = self.on_status.pop(0) if self.on_status else None
        if isinstance(what, BaseException):
            raise what
        if what is not None:
            return JobState(what)
        job = self.jobs.get(job_id)
        return JobState("UNKNOWN", "no such job") if job is None else JobState(job.state, job.reason)

    def raw(self, job_id: str) -> str:
        self.calls.append("raw")
        return self.jobs[job_id].answer

    def decode(self, raw: str) -> list[Measured]:
        return [(np.array(values), np.array(errors), shots) for values, errors, shots in json.loads(raw)]

    def qpu_seconds(self, job_id: str) -> float | None:
        return self.jobs[job_id].charged if job_id in self.jobs else None

    def effective(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return dict(options)

    def where(self, job_id: str) -> dict[str, Any]:
        return {}

    def stated(self, job_id: str) -> dict[str, Any]:
        return {}

    def cancel(self, job_id: str) -> None:
        self.calls.append("cancel")
        self.cancelled.append(job_id)

    def remaining_seconds(self) -> float | None:
        return self.remaining

    def session_id(self) -> str | None:
        return "session-1"

    def session_seconds(self) -> Mapping[str, float]:
        return {"session-1": self.session}

    def close(self) -> None:
        self.calls.append("close")


def estimate(pubs: Sequence[Pub], options: Mapping[str, Any]) -> Cost:
    """Two seconds a job: only the overhead counts."""
    return Cost("ibm_scripted", 1, 1, 1, 0.0, 0.0, 0.0)


def runner(service: ScriptedService, ledger: Ledger, **settings: Any) -> Runner:
    """A runner with a cap of 100 s that waits for nothing."""
    given = {"run": "test", "max_qpu_seconds": 100.0, "times": FAST, "estimate": estimate}
    return Runner(service, ledger, **{**given, **settings})
