"""PUBs → jobs below the service's limits, always cut in the same places, so that the ledger's keys are stable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import ControlFlowOp
from qiskit.primitives import BitArray
from qiskit.quantum_info import PauliList, SparsePauliOp

from qhw_diffusion.devices.instructions import MID_CIRCUIT
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.hardware.service import AnyPub, Measured, Pub, Sampled

# What the service counts for one instruction on a qubit, and for preparing and measuring it (IBM's guide "Job limits")
_INSTRUCTIONS = {"rz": 1, "delay": 1, "sx": 2, "x": 2, "cx": 5, "cz": 5, "ecr": 5, "measure": 10, "reset": 17}
# Of instructions for mid-circuit the guide says nothing: they count as the usual ones
_INSTRUCTIONS |= {special: _INSTRUCTIONS[usual] for usual, special in MID_CIRCUIT.items()}
_PREPARE_AND_MEASURE = 60

T = TypeVar("T")


@dataclass(frozen=True)
class JobLimits:
    """The most that one job may hold.

    The first two are IBM's (quantum.cloud.ibm.com/docs/guides/job-limits, read 2026-11): 10 million executions
    (circuits × shots) and 26.8 million instructions a qubit; the third is the stated 64 MB of input, of which the
    values may fill half.

    Args:
        executions: circuits × shots.
        instructions: control instructions on any one qubit, of all circuits together.
        values: numbers bound to parameters.
    """

    executions: int = 10_000_000
    instructions: int = 26_800_000
    values: int = 32_000_000 // 8


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of PUB number `pub`."""

    pub: int
    start: int
    stop: int


def split(pubs: Sequence[AnyPub], limits: JobLimits | None = None, *, factor: int = 1) -> list[list[Piece]]:
    """The pieces of each job: PUBs in their order, as many rows to a job as fit.

    Args:
        pubs: what is to be evaluated.
        limits: of one job.
        factor: what the service's own mitigation multiplies the circuits by.

    Raises:
        InvalidInputError: no PUBs, or a single row that is beyond the limits.
    """
    if not pubs:
        raise InvalidInputError("there are no PUBs to run; give at least one")
    limits = limits or JobLimits()
    most = np.array([limits.executions, limits.instructions, limits.values], dtype=np.int64)
    jobs: list[list[Piece]] = [[]]
    left = most.copy()
    for index, pub in enumerate(pubs):
        need = row_cost(pub, factor)
        if (need > most).any():
            raise InvalidInputError(
                f"one row of PUB {index} takes {need[0]:,} executions and {need[1]:,} instructions on a qubit; a job "
                f"may hold {most[0]:,} and {most[1]:,}: use fewer shots or a shorter circuit"
            )
        start = 0
        while start < pub.rows:
            fit = min(pub.rows - start, int((left // np.maximum(need, 1)).min()))
            if fit == 0:
                jobs.append([])
                left = most.copy()
                continue
            jobs[-1].append(Piece(index, start, start + fit))
            left = left - fit * need
            start += fit
    return jobs


def row_cost(pub: AnyPub, factor: int = 1) -> np.ndarray:
    """[executions, instructions on the busiest qubit, values] of one row of parameters."""
    circuits = bases(pub) * factor
    per_circuit = max(_instructions(pub.circuit).values(), default=0) + _PREPARE_AND_MEASURE
    return np.array([circuits * pub.shots, circuits * per_circuit, max(len(pub.parameters), 1)], dtype=np.int64)


def _instructions(circuit: QuantumCircuit) -> Counter[int]:
    """{qubit: control instructions}; all branches of a conditional operation are loaded, whichever is run."""
    busy: Counter[int] = Counter()
    for instruction in circuit.data:
        places = [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        if isinstance(instruction.operation, ControlFlowOp):
            for block in instruction.operation.blocks:
                for inner, count in _instructions(block).items():
                    busy[places[inner]] += count
            continue
        for place in places:
            busy[place] += _INSTRUCTIONS.get(instruction.operation.name, 5)
    return busy


def bases(pub: AnyPub) -> int:
    """How many settings of the measurement a PUB needs; a Sampler's circuit measures by itself."""
    return bases_of(pub.observables) if isinstance(pub, Pub) else 1


def asked(pubs: Sequence[AnyPub]) -> tuple[int, int]:
    """(circuits, shots of each) that PUBs ask for: rows times settings of the measurement; the most shots."""
    return sum(pub.rows * bases(pub) for pub in pubs), max(pub.shots for pub in pubs)


def bases_of(observables: Sequence[SparsePauliOp]) -> int:
    """How many settings of the measurement the observables need, grouped qubit by qubit as the estimators do."""
    paulis = observables[0].paulis
    for observable in observables[1:]:
        paulis = paulis + observable.paulis
    paulis = paulis[(paulis.x | paulis.z).any(axis=1)]
    if not len(paulis):
        return 1
    different = PauliList(sorted(set(paulis.to_labels())))  # as they do: the order decides among equal colourings
    return len(different.group_commuting(qubit_wise=True))


def cut(pubs: Sequence[AnyPub], pieces: Sequence[Piece]) -> list[AnyPub]:
    """The PUBs of one job."""
    cuts: list[AnyPub] = []
    for piece in pieces:
        pub = pubs[piece.pub]
        values = pub.values[piece.start : piece.stop] if pub.parameters else pub.values
        cuts.append(replace(pub, values=values))
    return cuts


def join(
    pubs: Sequence[AnyPub], jobs: Sequence[Sequence[Piece]], answers: Sequence[Sequence[Measured]]
) -> list[Measured]:
    """Put an Estimator's answers to all jobs together again, one entry a PUB."""
    return [
        (np.concatenate([p[0] for p in part], axis=1), np.concatenate([p[1] for p in part], axis=1), part[0][2])
        for part in _parts(pubs, jobs, answers)
    ]


def join_samples(
    pubs: Sequence[AnyPub], jobs: Sequence[Sequence[Piece]], answers: Sequence[Sequence[Sampled]]
) -> list[Sampled]:
    """Put a Sampler's answers to all jobs together again, one entry a PUB."""
    return [
        {name: BitArray.concatenate([piece[name] for piece in part]) for name in part[0]}
        for part in _parts(pubs, jobs, answers)
    ]


def _parts(pubs: Sequence[AnyPub], jobs: Sequence[Sequence[Piece]], answers: Sequence[Sequence[T]]) -> list[list[T]]:
    """The pieces of each PUB's answer, in the order of its rows."""
    parts: list[list[T]] = [[] for _ in pubs]
    for pieces, measured in zip(jobs, answers, strict=True):
        for piece, one in zip(pieces, measured, strict=True):
            parts[piece.pub].append(one)
    return parts
