"""Variances of gradients in closed form."""

from __future__ import annotations


def two_design(n_qubits: int, cost: str) -> float:
    """Variance of a gradient where what stands before and after the rotation are 2-designs, d = 2ⁿ.

    With a Pauli rotation and an observable O it is d/(2(d + 1)) · (tr O² − (tr O)²/d)/(d² − 1): for a Pauli
    d²/(2(d² − 1)(d + 1)), for a projector onto one state 1/(2(d + 1)²).

    Args:
        n_qubits: n.
        cost: "pauli", or "overlap" or "start" for a projector.
    """
    d = 2.0**n_qubits
    square = d if cost == "pauli" else 1 - 1 / d
    return d / (2 * (d + 1)) * square / (d**2 - 1)
