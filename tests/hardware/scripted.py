"""A paid service in memory that does what a test tells it to: the runner's rules without HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, Instruction, Measure, Parameter
from qiskit.primitives import BitArray
from qiskit.quantum_info import SparsePauliOp, Statevector

from qhw_diffusion.devices import Device
from qhw_diffusion.hardware.cost import Cost
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import Answer, Runner
from qhw_diffusion.hardware.service import (
    AnyPub,
    JobState,
    Limits,
    Measured,
    Pub,
    Sampled,
    SamplerPub,
    UncertainError,
    precision_of,
)
from qhw_diffusion.hardware.wait import Times

# Nothing here loses power: a file system in memory, if there is one, does not wait for a disk
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
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


def sampler_pub(
    rows: Sequence[float] = (0.1, 0.9), shots: int = 100, *, dynamic: bool = False, by: str = "measure"
) -> SamplerPub:
    """The circuit of `pub`, its qubit measured into the register ``c``.

    dynamic: measured before, into ``m``, and turned back to where it was if it read 1 and was reset. `by`: measured so.
    """
    part = pub().circuit
    circuit = QuantumCircuit(*part.qregs, ClassicalRegister(1, "m"), ClassicalRegister(1, "c"))
    circuit.compose(part, inplace=True)
    if dynamic:
        circuit.append(Measure() if by == "measure" else Instruction(by, 1, 1, []), [0], [0])
        circuit.reset(0)
        with circuit.if_test((circuit.cregs[0], 1)):
            circuit.x(0)
    circuit.measure(0, 1)
    return SamplerPub(circuit, (THETA,), np.array(rows)[:, None], shots)


def expectations(answer: Answer, register: str = "c") -> np.ndarray:
    """[1, B]: ⟨Z⟩ as a Sampler's shots have it, of the bit of a register."""
    (bits,) = answer.bits
    return 1 - 2 * bits[register].to_bool_array().mean(axis=(1, 2))[None]


def exact(pub: Pub) -> np.ndarray:
    """[M, B] expectation values."""
    states = [Statevector(pub.circuit.assign_parameters(dict(zip(pub.parameters, v, strict=True)))) for v in pub.values]
    return np.array([[s.expectation_value(o).real for s in states] for o in pub.observables])


def told(pub: AnyPub) -> Any:
    """The exact answer to a PUB, JSON types; of `sampler_pub` the nearest counts, the ones first."""
    if isinstance(pub, Pub):
        return [exact(pub).tolist(), (0.0 * exact(pub) + pub.precision).tolist(), pub.shots]
    ones = np.rint((1 - exact(_alone(pub))[0]) / 2 * pub.shots)
    read = np.arange(pub.shots) < ones[:, None]
    return {"m": (0 * read).tolist(), "c": read.astype(int).tolist()}


def _alone(given: SamplerPub) -> Pub:
    return pub(given.values[:, 0])


def heard(raw: str) -> list[Any]:
    """What `told` says."""
    answers = json.loads(raw)
    return [
        {name: BitArray.from_bool_array(np.array(bits, dtype=bool)[..., None]) for name, bits in one.items()}
        if isinstance(one, dict)
        else (np.array(one[0]), np.array(one[1]), one[2])
        for one in answers
    ]


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

    def check(self, pubs: Sequence[AnyPub], options: Mapping[str, Any]) -> None:
        self.calls.append("check")

    def submit(self, pubs: Sequence[AnyPub], options: Mapping[str, Any], tags: Sequence[str], limits: Limits) -> str:
        self.calls.append("submit")
        what = self.on_submit.pop(0) if self.on_submit else "accept"
        if isinstance(what, BaseException):
            raise what
        if what == "dropped":
            raise UncertainError("no reply")
        job = Job(list(tags), json.dumps([told(p) for p in pubs]), limits)
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

    def decode(self, raw: str) -> list[Measured] | list[Sampled]:
        return heard(raw)

    def qpu_seconds(self, job_id: str) -> float | None:
        return self.jobs[job_id].charged if job_id in self.jobs else None

    def effective(self, options: Mapping[str, Any], primitive: str = "estimator") -> dict[str, Any]:
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


def estimate(pubs: Sequence[AnyPub], options: Mapping[str, Any]) -> Cost:
    """Two seconds a job: only the overhead counts."""
    return Cost("ibm_scripted", 1, 1, 1, 0.0, 0.0, 0.0)


def runner(service: ScriptedService, ledger: Ledger, **settings: Any) -> Runner:
    """A runner with a cap of 100 s that waits for nothing."""
    given = {"run": "test", "max_qpu_seconds": 100.0, "times": FAST, "estimate": estimate}
    return Runner(service, ledger, **{**given, **settings})
