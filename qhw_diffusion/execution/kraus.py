"""Untwirled noise as quantum trajectories: every Kraus operator with the probability it has in the state."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from qiskit.quantum_info import Kraus, SuperOp

from qhw_diffusion.execution.fusion import Precision
from qhw_diffusion.execution.gate_sequence import GateSequence
from qhw_diffusion.execution.measurement import StateObservables
from qhw_diffusion.execution.program import Conditional, FixedMap, Program, Rotation
from qhw_diffusion.execution.simulator import chunks_of

CHUNK_BYTES, CHUNK_COLUMNS = 2**20, 16


@dataclass(frozen=True, eq=False)
class Channel:
    """Kraus operators [K, d, d] on some qubits, the most probable first, and their effects K†K."""

    qubits: tuple[int, ...]
    operators: np.ndarray
    effects: np.ndarray


def kraus_values(
    program: Program, angles: np.ndarray, n: int, generator: np.random.Generator, dtype: Precision
) -> np.ndarray:
    """[B·N, M]: expectation values of N trajectories for each column of angles [R, B]; readout errors are exact."""
    own = replace(program, input_coefficients=np.ones((len(program.offsets), 1)))
    parts: list[GateSequence | Channel] = []
    waiting: list[Rotation | FixedMap] = []

    def flush() -> None:
        if waiting:
            parts.append(GateSequence(list(waiting), own, "state", noisy=False, dtype=dtype))
            waiting.clear()

    for operation in program.operations:
        assert not isinstance(operation, Conditional)  # `check_frames`
        if isinstance(operation, Rotation):
            waiting.append(operation)
            continue
        if operation.matrix is not None:
            waiting.append(FixedMap(operation.qubits, operation.matrix))
            if operation.noisy is None:
                continue
            unitary = np.kron(operation.matrix.conj(), operation.matrix)
            channel = operation.noisy @ unitary.conj().T
        else:  # a reset, or a forgotten outcome
            channel = operation.channel(True)
        flush()
        parts.append(_channel(operation.qubits, channel))
    flush()
    observables = StateObservables(program.observables, program.n_qubits, dtype, program.readout)
    size = 2**program.n_qubits
    columns = max(CHUNK_COLUMNS, CHUNK_BYTES // (8 * size))
    values = np.empty((angles.shape[1] * n, len(observables)), dtype)
    for chunk in chunks_of(len(values), columns):
        within = np.ascontiguousarray(angles[:, np.arange(chunk.start, chunk.stop) // n], dtype)
        rows = np.zeros((2 * size, chunk.stop - chunk.start), dtype)
        rows[0] = 1
        for part in parts:
            if isinstance(part, GateSequence):
                rows, _ = part.forward(rows, within, keep=False)
            else:
                _act(part, rows, generator)
        values[chunk] = observables.values(rows, rows)
    return values


def _channel(qubits: tuple[int, ...], superoperator: np.ndarray) -> Channel:
    operators = np.array(Kraus(SuperOp(superoperator)).data)
    effects = np.einsum("kba,kbc->kac", operators.conj(), operators)
    order = np.argsort(-np.trace(effects, axis1=1, axis2=2).real)
    return Channel(qubits, operators[order], effects[order])


def _act(channel: Channel, rows: np.ndarray, generator: np.random.Generator) -> None:
    """Draw an operator for every column, apply it and normalise, in place."""
    k, columns = len(channel.qubits), rows.shape[1]
    n = (len(rows) // 2).bit_length() - 1
    axes = [1 + n - 1 - q for q in reversed(channel.qubits)]  # of the channel, the most significant first
    parts = np.moveaxis(rows.reshape(2, *[2] * n, columns), axes, range(1, 1 + k)).reshape(2, 2**k, -1, columns)
    psi = parts[0] + 1j * parts[1]  # [d, rest, columns]
    reduced = np.einsum("irc,jrc->cij", psi, psi.conj())
    chances = np.einsum("kij,cji->ck", channel.effects, reduced).real.clip(0)
    cumulated = np.cumsum(chances, axis=1)
    drawn = generator.random(columns) * cumulated[:, -1]
    which = (drawn[:, None] >= cumulated[:, :-1]).sum(1)
    for at in np.unique(which):
        chosen = np.flatnonzero(which == at)
        psi[:, :, chosen] = np.einsum("ij,jrc->irc", channel.operators[at], psi[:, :, chosen]) / np.sqrt(
            chances[chosen, at]
        )
    result = np.stack([psi.real, psi.imag]).reshape(2, *[2] * n, columns)
    rows[:] = np.moveaxis(result, range(1, 1 + k), axes).reshape(rows.shape)
