"""PUBs → jobs below the service's limits, always cut in the same places, so that the ledger's keys are stable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.hardware.service import Measured, Pub

# What the service counts for one instruction on a qubit, and for preparing and measuring it (IBM's guide "Job limits")
_INSTRUCTIONS = {"rz": 1, "delay": 1, "sx": 2, "x": 2, "cx": 5, "cz": 5, "ecr": 5, "measure": 10, "reset": 17}
_PREPARE_AND_MEASURE = 60


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


def split(pubs: Sequence[Pub], limits: JobLimits | None = None, *, factor: int = 1) -> list[list[Piece]]:
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


def row_cost(pub: Pub, factor: int = 1) -> np.ndarray:
    """[executions, instructions on the busiest qubit, values] of one row of parameters."""
    circuits = bases(pub) * factor
    busy: Counter[int] = Counter()
    for instruction in pub.circuit.data:
        for qubit in instruction.qubits:
            busy[pub.circuit.find_bit(qubit).index] += _INSTRUCTIONS.get(instruction.operation.name, 5)
    per_circuit = max(busy.values(), default=0) + _PREPARE_AND_MEASURE
    return np.array([circuits * pub.shots, circuits * per_circuit, max(len(pub.parameters), 1)], dtype=np.int64)


def bases(pub: Pub) -> int:
    """How many settings of the measurement a PUB needs."""
    return bases_of(pub.observables)


def asked(pubs: Sequence[Pub]) -> tuple[int, int]:
    """(circuits, shots of each) that PUBs ask for: rows times settings of the measurement; the most shots."""
    return sum(pub.rows * bases(pub) for pub in pubs), max(pub.shots for pub in pubs)


def bases_of(observables: Sequence[SparsePauliOp]) -> int:
    """How many settings of the measurement the observables need, grouped qubit by qubit as the estimators do."""
    paulis = observables[0].paulis
    for observable in observables[1:]:
        paulis = paulis + observable.paulis
    paulis = paulis[(paulis.x | paulis.z).any(axis=1)]
    return max(len(paulis.group_commuting(qubit_wise=True)), 1) if len(paulis) else 1


def cut(pubs: Sequence[Pub], pieces: Sequence[Piece]) -> list[Pub]:
    """The PUBs of one job."""
    cuts = []
    for piece in pieces:
        pub = pubs[piece.pub]
        values = pub.values[piece.start : piece.stop] if pub.parameters else pub.values
        cuts.append(replace(pub, values=values))
    return cuts


def join(pubs: Sequence[Pub], jobs: Sequence[Sequence[Piece]], answers: Sequence[Sequence[Measured]]) -> list[Measured]:
    """Put the answers of all jobs together again, one entry a PUB."""
    parts: list[list[Measured]] = [[] for _ in pubs]
    for pieces, measured in zip(jobs, answers, strict=True):
        for piece, one in zip(pieces, measured, strict=True):
            parts[piece.pub].append(one)
    return [
        (np.concatenate([p[0] for p in part], axis=1), np.concatenate([p[1] for p in part], axis=1), part[0][2])
        for part in parts
    ]
