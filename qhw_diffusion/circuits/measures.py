"""How much of state space a circuit reaches, and how entangled its states are, at random parameters.

Both are the measures of Sim, Johnson and Aspuru-Guzik (arXiv 1905.10876, Adv. Quantum Technol. 2, 1900070, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit

from qhw_diffusion.circuits.states import state_vectors
from qhw_diffusion.errors import InvalidInputError

BINS = 75
_REPLICATES = 400


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
