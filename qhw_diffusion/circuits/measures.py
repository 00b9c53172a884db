"""How much of state space a circuit reaches, and how entangled its states are, at random parameters.

Both are the measures of Sim, Johnson and Aspuru-Guzik (arXiv 1905.10876, Adv. Quantum Technol. 2, 1900070, 2019). They
need the states of one circuit at many parameter values at once, which `state_vectors` computes with numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Parameter, QuantumCircuit

from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError

BINS = 75
_REPLICATES = 400
Array = NDArray[np.complex128]
# Amplitudes held at once: this many fit a processor's cache, which is what makes large batches fast.
_CHUNK = 2**17
MAX_QUBITS = 14


@dataclass(frozen=True)
class Estimate:
    """A number measured on random samples.

    Attributes:
        value: the estimate.
        standard_error: its standard deviation over repetitions with other samples.
        samples: number of independent samples it rests on.
        bias: how far `value` lies above the true number on average because the samples are finite.
    """

    value: float
    standard_error: float
    samples: int
    bias: float = 0.0


def expressibility(circuit: QuantumCircuit, *, pairs: int = 5000, seed: int = 0, bins: int = BINS) -> Estimate:
    """KL divergence (nats) of the circuit's fidelity distribution from that of Haar-random states. Small is expressive.

    Pairs of states at independent random parameters give fidelities F = |⟨ψ|φ⟩|², counted in `bins` equal bins of
    [0, 1]. Haar-random states of dimension N have P(F) = (N−1)(1−F)^(N−2), so a bin [a, b] holds
    (1−a)^(N−1) − (1−b)^(N−1). A circuit without parameters has the largest value, (N−1) ln bins.

    The standard error is a bootstrap over the counts (multinomial, 400 replicates). `bias` is the first-order excess
    of a plug-in estimate, (occupied bins − 1)/(2·pairs): about what Haar-random states themselves would score.

    Args:
        circuit: as `state_vectors` takes it; all parameters are drawn uniformly from [0, 2π).
        pairs: number of pairs (2·pairs states), ≥ 2.
        seed: of the random parameters.
        bins: the published values use 75.

    Raises:
        InvalidInputError: numbers outside their range.
        UnsupportedCircuitError: see `state_vectors`.
    """
    _check_counts(pairs=pairs, bins=bins)
    states = random_states(circuit, 2 * pairs, seed)
    fidelities = np.abs(np.einsum("si,si->s", states[:pairs].conj(), states[pairs:])) ** 2
    return expressibility_of(fidelities, circuit.num_qubits, seed=seed, bins=bins)


def expressibility_of(fidelities: NDArray[np.float64], n_qubits: int, *, seed: int = 0, bins: int = BINS) -> Estimate:
    """`expressibility` from fidelities [S] that are already there; seed: of the bootstrap."""
    _check_counts(bins=bins)
    # rounding can leave a fidelity just outside [0, 1]
    counts, edges = np.histogram(np.clip(fidelities, 0, 1), bins=bins, range=(0, 1))
    log_haar = _log_haar_probabilities(edges, 2**n_qubits)
    rng = np.random.default_rng([seed, 1])
    replicates = rng.multinomial(counts.sum(), counts / counts.sum(), size=_REPLICATES)
    return Estimate(
        value=float(_divergence(counts[None], log_haar)[0]),
        standard_error=float(_divergence(replicates, log_haar).std(ddof=1)),
        samples=len(fidelities),
        bias=float((np.count_nonzero(counts) - 1) / (2 * len(fidelities))),
    )


def entangling_capability(circuit: QuantumCircuit, *, samples: int = 5000, seed: int = 0) -> Estimate:
    """Mean Meyer–Wallach entanglement Q of the circuit's states at random parameters, from 0 to 1.

    Args:
        circuit: as `state_vectors` takes it; all parameters are drawn uniformly from [0, 2π).
        samples: number of states, ≥ 2.
        seed: of the random parameters.

    Raises:
        InvalidInputError: numbers outside their range.
        UnsupportedCircuitError: see `state_vectors`.
    """
    _check_counts(samples=samples)
    values = meyer_wallach(random_states(circuit, samples, seed))
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(samples)), samples)


def meyer_wallach(states: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Q = 2(1 − mean over qubits of tr ρ_q²) of pure states [S, 2ⁿ]; ρ_q is the state of qubit q alone.

    0 for product states (and for a single qubit), 1 where every qubit alone is fully mixed, as in a GHZ state. The form
    with purities is Brennen's (quant-ph/0305094). Haar-random states have a mean of (N−2)/(N+1), N = 2ⁿ.

    Raises:
        InvalidInputError: not [S, 2ⁿ] with n ≥ 1.
    """
    n = int(states.shape[-1]).bit_length() - 1
    if states.ndim != 2 or n < 1 or states.shape[1] != 2**n:
        raise InvalidInputError(f"states has shape {states.shape}; allowed: [samples, 2^n]")
    purity = np.zeros(len(states))
    for qubit in range(n):
        view = states.reshape(len(states), -1, 2, 2**qubit)
        zero, one = view[:, :, 0], view[:, :, 1]
        p0, p1 = ((np.abs(part) ** 2).sum(axis=(1, 2)) for part in (zero, one))
        purity += p0**2 + p1**2 + 2 * np.abs((zero.conj() * one).sum(axis=(1, 2))) ** 2
    result: NDArray[np.float64] = 2 * (1 - purity / n)
    return result


def random_states(circuit: QuantumCircuit, samples: int, seed: int) -> NDArray[np.complex128]:
    """States [samples, 2ⁿ] of the circuit at parameters drawn uniformly from [0, 2π)."""
    angles = np.random.default_rng([seed, 0]).uniform(0, 2 * np.pi, (samples, len(circuit.parameters)))
    return state_vectors(circuit, angles)


def state_vectors(circuit: QuantumCircuit, values: NDArray[np.float64]) -> Array:
    """The states a circuit prepares from |0…0⟩.

    Args:
        circuit: gates only, at most 14 qubits. RX, RY and RZ may have a parameter as their angle; every other gate must
            be fixed.
        values: angles [S, P] in radians, columns in the order of `circuit.parameters`.

    Returns:
        Amplitudes [S, 2ⁿ], qubit 0 the fastest index (Qiskit's order).

    Raises:
        InvalidInputError: values of another shape, or a circuit that is too wide.
        UnsupportedCircuitError: a measurement or other non-gate, or a parameter that is not a rotation's whole angle.
    """
    if not isinstance(circuit, QuantumCircuit):
        raise InvalidInputError(f"circuit must be a qiskit QuantumCircuit, not {type(circuit).__name__}")
    values = np.asarray(values, dtype=np.float64)
    n, parameters = circuit.num_qubits, list(circuit.parameters)
    if not 1 <= n <= MAX_QUBITS:
        raise InvalidInputError(f"the circuit has {n} qubits; state vectors are kept for 1 to {MAX_QUBITS}")
    if values.ndim != 2 or values.shape[1] != len(parameters) or not np.isfinite(values).all():
        raise InvalidInputError(
            f"values has shape {values.shape}; allowed: finite angles [samples, {len(parameters)}], one column for "
            "each of circuit.parameters"
        )
    column = {parameter: index for index, parameter in enumerate(parameters)}
    steps = list(_steps(circuit, column))
    rows = max(1, _CHUNK >> n)
    states = np.empty((len(values), 2**n), dtype=np.complex128)
    for first in range(0, len(values), rows):
        states[first : first + rows] = _run(steps, values[first : first + rows], n).T
    return states


def _log_haar_probabilities(edges: NDArray[np.float64], dimension: int) -> NDArray[np.float64]:
    # In logarithms: for ten qubits the upper bins' probabilities are below the smallest float. N ≥ 2.
    low, high = edges[:-1], edges[1:]
    ratio = np.clip((1 - high) / (1 - low), 0, 1)
    logs: NDArray[np.float64] = (dimension - 1) * np.log1p(-low) + np.log1p(-(ratio ** (dimension - 1)))
    return logs


def _divergence(counts: NDArray[np.int64], log_haar: NDArray[np.float64]) -> NDArray[np.float64]:
    p = counts / counts.sum(axis=1, keepdims=True)
    # an empty bin contributes 0 (p ln p → 0)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    divergence: NDArray[np.float64] = (p * (logs - log_haar)).sum(axis=1)
    return divergence


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            raise InvalidInputError(f"{name} is {value!r}; allowed: whole numbers from 2")


# A step: the gate's name, its qubits, and the column of its angle or its matrix.
_Step = tuple[str, tuple[int, ...], int | Array]


def _steps(circuit: QuantumCircuit, column: dict[Parameter, int]) -> Iterator[_Step]:
    for instruction in circuit.data:
        gate = instruction.operation
        qubits = tuple(circuit.find_bit(q).index for q in instruction.qubits)
        if gate.name == "barrier":
            continue
        if gate.name in ("rx", "ry", "rz"):
            angle = gate.params[0]
            if isinstance(angle, Parameter):
                yield gate.name, qubits, column[angle]
                continue
        if not hasattr(gate, "to_matrix") or gate.is_parameterized():
            raise UnsupportedCircuitError(
                f"operation {gate.name!r} is not supported here: allowed are fixed gates, and RX, RY, RZ with a "
                "parameter as their angle"
            )
        yield ("cx" if gate.name == "cx" else "fixed"), qubits, np.asarray(gate.to_matrix(), dtype=np.complex128)


def _run(steps: list[_Step], values: NDArray[np.float64], n: int) -> Array:
    """Amplitudes [2ⁿ, S]: samples last, so that every inner loop runs over neighbours in memory."""
    states = np.zeros((2**n, len(values)), dtype=np.complex128)
    states[0] = 1
    # Rotations of one qubit are multiplied up ([2, 2, S]) and applied when that qubit meets another.
    pending: dict[int, Array] = {}
    for name, qubits, content in steps:
        if len(qubits) == 1:
            matrix = _rotation(name, values[:, content]) if isinstance(content, int) else np.asarray(content)[..., None]
            qubit = qubits[0]
            pending[qubit] = np.einsum("ijs,jks->iks", matrix, pending[qubit]) if qubit in pending else matrix
            continue
        for qubit in qubits:
            if qubit in pending:
                _apply_single(states, pending.pop(qubit), qubit)
        if name == "cx":
            _apply_cx(states, *qubits)
        else:
            states = _apply(states, np.asarray(content), qubits, n)
    for qubit, matrix in pending.items():
        _apply_single(states, matrix, qubit)
    return states


def _rotation(name: str, angles: NDArray[np.float64]) -> Array:
    cos, sin = np.cos(angles / 2), np.sin(angles / 2)
    matrix = np.zeros((2, 2, len(angles)), dtype=np.complex128)
    if name == "rz":
        matrix[0, 0], matrix[1, 1] = cos - 1j * sin, cos + 1j * sin
        return matrix
    matrix[0, 0] = matrix[1, 1] = cos
    matrix[0, 1], matrix[1, 0] = (-1j * sin, -1j * sin) if name == "rx" else (-sin, sin)
    return matrix


def _apply_single(states: Array, matrix: Array, qubit: int) -> None:
    view = states.reshape(-1, 2, 2**qubit, states.shape[1])
    zero, one = view[:, 0].copy(), view[:, 1].copy()
    view[:, 0] = matrix[0, 0] * zero + matrix[0, 1] * one
    view[:, 1] = matrix[1, 0] * zero + matrix[1, 1] * one


def _apply_cx(states: Array, control: int, goal: int) -> None:
    index = np.arange(len(states))
    low = index[(index >> control & 1 == 1) & (index >> goal & 1 == 0)]
    high = low | 1 << goal
    states[low], states[high] = states[high], states[low]


def _apply(states: Array, matrix: Array, qubits: tuple[int, ...], n: int) -> Array:
    # Axes of the reshaped state: qubits from the last to the first, then samples; the gate's first qubit is the
    # fastest index of its matrix.
    axes = [n - 1 - q for q in reversed(qubits)]
    front = np.moveaxis(states.reshape(*(2,) * n, -1), axes, range(len(axes)))
    moved = (matrix @ front.reshape(2 ** len(qubits), -1)).reshape(front.shape)
    return np.ascontiguousarray(np.moveaxis(moved, range(len(axes)), axes)).reshape(2**n, -1)
