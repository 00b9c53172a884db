"""All Z strings of n qubits at once, and the distribution of outcomes they determine (Walsh–Hadamard transform)."""

from __future__ import annotations

import numpy as np
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.errors import InvalidInputError

MAX_QUBITS = 12


def all_z_strings(n_qubits: int) -> tuple[SparsePauliOp, ...]:
    """The 2^n observables Z^s, s = 0 … 2^n−1: qubit q carries Z where bit q of s is 1 (s = 0 is the identity).

    They are measured together, in one circuit. `outcome_distribution` turns their values into probabilities.

    Raises:
        InvalidInputError: n_qubits outside 1–12.
    """
    if not isinstance(n_qubits, int) or not 1 <= n_qubits <= MAX_QUBITS:
        raise InvalidInputError(f"n_qubits is {n_qubits!r}; allowed: 1 to {MAX_QUBITS} (there are 2^n strings)")
    labels = ["".join("Z" if s >> q & 1 else "I" for q in reversed(range(n_qubits))) for s in range(2**n_qubits)]
    return tuple(SparsePauliOp(label) for label in labels)


def outcome_distribution(values: np.ndarray) -> np.ndarray:
    """⟨Z^s⟩ [..., 2^n] → probabilities [..., 2^n] of the outcomes: p(x) = 2^−n Σ_s (−1)^(s·x) ⟨Z^s⟩.

    Exact values give exact probabilities. Values with noise of their own may give small negative ones: they are left as
    they are, so that the estimate stays unbiased.

    Raises:
        InvalidInputError: the last axis is not a power of two, or the first value (of the identity) is not 1.
    """
    values = np.asarray(values, dtype=float)
    size = values.shape[-1] if values.ndim else 0
    if size < 2 or size & (size - 1):
        raise InvalidInputError(f"values have {size} entries along the last axis; 2^n are needed (all_z_strings(n))")
    if not np.allclose(values[..., 0], 1, atol=1e-3):
        raise InvalidInputError("the first value belongs to the identity and must be 1: give the values in order")
    result = values.reshape(-1, size)
    step = 1
    while step < size:  # fast Walsh–Hadamard transform, one bit at a time
        pairs = result.reshape(len(result), -1, 2, step)
        result = np.concatenate([pairs[:, :, :1] + pairs[:, :, 1:], pairs[:, :, :1] - pairs[:, :, 1:]], axis=2)
        result = result.reshape(-1, size)
        step *= 2
    return (result / size).reshape(values.shape)
