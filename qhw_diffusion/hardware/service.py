"""What the runner asks of a service that runs jobs: IBM's (`ibm`), or a fake device in this process (`local`)."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import ControlFlowOp, Parameter
from qiskit.primitives import BitArray
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.devices import Device
from qhw_diffusion.devices.instructions import MEASUREMENTS
from qhw_diffusion.errors import InvalidInputError, JobError, ServiceError

# An Estimator's answer to one PUB: values [M, B], standard errors [M, B], shots of each circuit
Measured = tuple[np.ndarray, np.ndarray, int]
# A Sampler's: {classical register: its bits in every shot, of shape (B,)}
Sampled = dict[str, BitArray]

# Shots beyond every service's limit; up to here counts of executions fit into 64 bits
MOST_SHOTS = 10**12
FINAL_STATES = ("DONE", "ERROR", "CANCELLED", "UNKNOWN")


@dataclass(frozen=True, eq=False)
class Pub:
    """One broadcast PUB: every observable at every row of parameters.

    Args:
        circuit: the ISA circuit, parameters unbound.
        observables: M Pauli sums at the circuit's width.
        parameters: the circuit's parameters, in the order of the columns of `values`.
        values: [B, P] radians.
        precision: target standard error, > 0 (`precision_of` a number of shots).
        label: what the circuit is, in a few words: as asked, a calibration, folded, twirled. Kept with the job, and no
            part of its key.
        layout: physical qubits in the order of the logical ones, where known. Kept as `label` is.

    Raises:
        InvalidInputError: another shape, NaN or infinity, a precision that is not positive, no observables.
    """

    circuit: QuantumCircuit
    observables: tuple[SparsePauliOp, ...]
    parameters: tuple[Parameter, ...]
    values: np.ndarray
    precision: float
    label: str = "circuit"
    layout: tuple[int, ...] | None = None
    primitive: ClassVar[str] = "estimator"

    def __post_init__(self) -> None:
        values = _checked_values(self.circuit, self.parameters, self.values)
        if not self.observables:
            raise InvalidInputError("observables is empty; give at least one SparsePauliOp")
        if not (math.isfinite(self.precision) and self.precision > 0):
            raise InvalidInputError(f"precision is {self.precision!r}; allowed: positive numbers")
        object.__setattr__(self, "values", values)

    @property
    def rows(self) -> int:
        """Circuits with bound parameters: B, or 1 for a circuit without parameters."""
        return len(self.values) if self.parameters else 1

    @property
    def shots(self) -> int:
        """Shots of each circuit that the precision asks for."""
        return shots_of(self.precision)

    def as_tuple(self) -> tuple[Any, ...]:
        """What an Estimator primitive takes: observables [M, 1] against rows [B]; values bound by parameter."""
        bindings = {self.parameters: self.values} if self.parameters else None
        return (self.circuit, [[o] for o in self.observables], bindings, self.precision)


@dataclass(frozen=True, eq=False)
class SamplerPub:
    """One broadcast PUB of a Sampler: a circuit with its measurements, sampled at every row of parameters.

    Args:
        circuit: the ISA circuit, parameters unbound; every measurement goes into a classical register.
        parameters: the circuit's parameters, in the order of the columns of `values`.
        values: [B, P] radians; [1, 0] for a circuit without parameters.
        shots: of each row.
        label: as for `Pub`.
        layout: as for `Pub`.

    Raises:
        InvalidInputError: another shape, NaN or infinity, parameters without a column, shots out of range, nothing
            measured, or a classical register that the client does not take.
    """

    circuit: QuantumCircuit
    parameters: tuple[Parameter, ...]
    values: np.ndarray
    shots: int
    label: str = "circuit"
    layout: tuple[int, ...] | None = None
    primitive: ClassVar[str] = "sampler"

    def __post_init__(self) -> None:
        values = _checked_values(self.circuit, self.parameters, self.values)
        if not self.parameters and len(values) != 1:
            raise InvalidInputError(
                f"values have {len(values)} rows and the circuit has no parameters: every row would be the same "
                "circuit. Give one row, and more shots"
            )
        check_shots(self.shots)
        check_registers(self.circuit)
        object.__setattr__(self, "values", values)

    @property
    def rows(self) -> int:
        """Circuits with bound parameters: B."""
        return len(self.values)

    @property
    def registers(self) -> tuple[tuple[str, int], ...]:
        """(name, bits) of every classical register, in the circuit's order."""
        return tuple((register.name, len(register)) for register in self.circuit.cregs)

    def as_tuple(self) -> tuple[Any, ...]:
        """What a Sampler primitive takes; values are bound by parameter."""
        return (self.circuit, {self.parameters: self.values} if self.parameters else None, self.shots)


AnyPub = Pub | SamplerPub


def primitive_of(pubs: Sequence[AnyPub]) -> str:
    """``"estimator"`` or ``"sampler"``: the primitive that all PUBs of a call are for.

    Raises:
        InvalidInputError: no PUBs, or PUBs of both.
    """
    kinds = {pub.primitive for pub in pubs}
    if len(kinds) != 1:
        raise InvalidInputError(
            "PUBs for an Estimator and for a Sampler are different jobs: make a call for each"
            if kinds
            else "there are no PUBs to run; give at least one"
        )
    return kinds.pop()


def measures(circuit: QuantumCircuit) -> bool:
    """Whether a circuit measures anything, be it in a branch."""
    return any(
        instruction.operation.name in MEASUREMENTS
        or (isinstance(instruction.operation, ControlFlowOp) and any(map(measures, instruction.operation.blocks)))
        for instruction in circuit.data
    )


def check_registers(circuit: QuantumCircuit) -> None:
    """Raise InvalidInputError for a circuit that a Sampler would give nothing of, or refuse for its registers."""
    if not measures(circuit):
        raise InvalidInputError(
            f"circuit {circuit.name!r} measures nothing, so that a Sampler has nothing to return: add measurements "
            "(measure_all), or evaluate observables with an Estimator"
        )
    inside = {bit for register in circuit.cregs for bit in register}
    if outside := [index for index, bit in enumerate(circuit.clbits) if bit not in inside]:
        raise InvalidInputError(
            f"classical bits {outside} of circuit {circuit.name!r} are in no register, and Samplers return registers: "
            "use ClassicalRegister(n, name)"
        )
    for register in circuit.cregs:
        if not register.size or not register.name.isidentifier() or keyword.iskeyword(register.name):
            raise InvalidInputError(
                f"classical register {register.name!r} has {register.size} bits; allowed: 1 bit and more, and names of "
                "letters, digits and underscores that are no word of Python"
            )


def _checked_values(circuit: QuantumCircuit, parameters: Sequence[Parameter], given: np.ndarray) -> np.ndarray:
    """Values [B, P] as float64; InvalidInputError unless they are finite and of the circuit's own parameters."""
    values = np.ascontiguousarray(given, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(parameters) or len(values) == 0:
        raise InvalidInputError(f"values have shape {values.shape}; allowed: [rows ≥ 1, {len(parameters)} parameters]")
    if not np.isfinite(values).all():
        raise InvalidInputError("values contain NaN or infinity; check what produced them")
    if set(parameters) != set(circuit.parameters) or len(set(parameters)) != len(parameters):
        raise InvalidInputError("parameters must be those of the circuit, each of them once")
    return values


def check_shots(shots: Any) -> int:
    """`shots` if it is a whole number from 1 to 10¹²; InvalidInputError otherwise."""
    if isinstance(shots, bool) or not isinstance(shots, int) or not 1 <= shots <= MOST_SHOTS:
        raise InvalidInputError(f"shots is {shots!r}; allowed: whole numbers from 1 to {MOST_SHOTS:,}")
    return shots


def shots_of(precision: float) -> int:
    """ceil(1/precision²), as every Estimator primitive counts."""
    return math.ceil(1.0 / precision**2)


def precision_of(shots: int) -> float:
    """The precision for which primitives take exactly `shots` shots.

    Raises:
        InvalidInputError: not a whole number from 1 to 10¹².
    """
    precision = 1.0 / math.sqrt(check_shots(shots))
    while shots_of(precision) > shots:  # 1/√1000 would mean 1001
        precision = math.nextafter(precision, math.inf)
    return precision


def attempt_tag(key_tag: str, attempt: int) -> str:
    """The tag that only the jobs of one attempt have: what an ambiguous submission is looked up by."""
    return f"{key_tag}-{attempt}"


def without_attempts(tags: Sequence[str]) -> list[str]:
    """The tags that every attempt of a job has."""
    return [tag for tag in tags if not re.fullmatch(r"qhw-[0-9a-f]+-\d+", tag)]


@dataclass(frozen=True)
class Limits:
    """What a job may cost at most and where it runs.

    Args:
        max_execution_seconds: QPU seconds after which the service cancels the job; None for the service's own limit.
        mode: ``"job"``, ``"batch"`` or ``"session"``.
        max_session_seconds: wall-clock seconds after which the service closes the session or batch.
    """

    max_execution_seconds: int | None = None
    mode: str = "batch"
    max_session_seconds: int | None = None


@dataclass(frozen=True)
class JobState:
    """Where a job is: QUEUED, RUNNING, DONE, ERROR, CANCELLED, or UNKNOWN to the service; and its reason."""

    name: str
    reason: str = ""

    @property
    def final(self) -> bool:
        """Whether the job has ended, or is unknown to the service."""
        return self.name in FINAL_STATES


class NotSentError(ServiceError):
    """The job was certainly not accepted, and may be sent again (too many requests, no connection)."""


class UncertainError(ServiceError):
    """The job may or may not have been accepted: the reply is missing or says nothing."""


class RefusedError(JobError):
    """The service refused the job and says why; there is no job."""


class Service(Protocol):
    """Runs jobs. Every method may raise ServiceError (no answer) and AccountError; what else is said below.

    Attributes:
        paid: whether a job costs QPU time of an account.
        device: name of the device.
        program: what evaluates the PUBs; part of the ledger's key.
        instance: a hash of the account's instance that jobs are sent to; empty where there is none.
        plan: of that instance, as the client states it; empty where it does not. Raises nothing.
    """

    paid: bool
    device: str
    program: str
    instance: str

    @property
    def plan(self) -> str:
        """See above."""

    def snapshot(self) -> Device:
        """The device as it is calibrated now."""

    def effective(self, options: Mapping[str, Any], primitive: str = "estimator") -> dict[str, Any]:
        """The options that a job really runs with, defaults resolved, as far as they are known here. Raises nothing."""

    def check(self, pubs: Sequence[AnyPub], options: Mapping[str, Any]) -> None:
        """Raise InvalidInputError for what the service would refuse, before anything is sent."""

    def submit(self, pubs: Sequence[AnyPub], options: Mapping[str, Any], tags: Sequence[str], limits: Limits) -> str:
        """Send one job, once, and return its id. NotSentError, UncertainError or RefusedError otherwise."""

    def find(self, tag: str) -> list[str]:
        """Ids of the jobs with this tag, oldest first."""

    def status(self, job_id: str) -> JobState:
        """Where the job is now; UNKNOWN where the service does not know it."""

    def raw(self, job_id: str) -> str:
        """The service's answer as text, before any post-processing."""

    def decode(self, raw: str) -> list[Measured] | list[Sampled]:
        """What the text says, one entry a PUB; asks nobody, so it works later as well."""

    def qpu_seconds(self, job_id: str) -> float | None:
        """QPU seconds charged, finite and not negative; None as long as the service states no such number."""

    def where(self, job_id: str) -> dict[str, Any]:
        """What the job really runs in, mode and session_id, if known; asks only if another object has sent it."""

    def stated(self, job_id: str) -> dict[str, Any]:
        """What came with the charge: created, started, finished (text), executions. Asks nobody and raises nothing."""

    def cancel(self, job_id: str) -> None:
        """Ask for the job to be cancelled. Whether it was is for `status` to say."""

    def remaining_seconds(self) -> float | None:
        """QPU seconds the account has left; None where it has no limit."""

    def session_id(self) -> str | None:
        """The batch or session that jobs are sent to now."""

    def session_seconds(self) -> Mapping[str, float]:
        """{session id: wall-clock seconds charged so far} of the sessions of this object, those that ended included."""

    def close(self) -> None:
        """Close the batch or session; jobs in it go on."""
