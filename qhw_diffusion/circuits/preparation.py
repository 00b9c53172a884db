"""Preparation of any state by rotations: multiplexed RY and RZ (Möttönen et al., quant-ph/0407010)."""

from __future__ import annotations

from collections.abc import Sequence

from qiskit.circuit import Parameter, QuantumCircuit


def preparation_size(n_qubits: int) -> int:
    """Angles of `prepare`: 2·(2ⁿ − 1), enough for every state of n qubits up to its global phase."""
    return 2 * (2**n_qubits - 1)


def prepare(circuit: QuantumCircuit, qubits: Sequence[int], angles: Sequence[Parameter]) -> None:
    """RY and RZ of every qubit, each multiplexed by the qubits after it, from the last qubit to the first.

    The angles are those of the plain rotations between the CNOTs (a Walsh transform of the multiplexed ones), so every
    gate has one parameter and the circuit is affine in them.
    """
    left = list(angles)
    for target in range(len(qubits) - 1, -1, -1):
        controls = qubits[target + 1 :]
        count = 2 ** len(controls)
        magnitude, phase, left = left[:count], left[count : 2 * count], left[2 * count :]
        # the phases' sequence runs backwards, so that the CNOTs where the two meet cancel and are left out
        for j in range(count):
            circuit.ry(magnitude[j], qubits[target])
            if j < count - 1:
                circuit.cx(_control(j, controls), qubits[target])
        for j in range(count - 1, -1, -1):
            circuit.rz(phase[j], qubits[target])
            if j:
                circuit.cx(_control(j - 1, controls), qubits[target])


def _control(j: int, controls: Sequence[int]) -> int:
    """The control of the CNOT after the j-th plain rotation: the bit in which the Gray codes of j and j + 1 differ."""
    changed = gray(j) ^ gray((j + 1) % 2 ** len(controls))
    return controls[changed.bit_length() - 1]


def gray(j: int) -> int:
    """The j-th Gray code."""
    return j ^ (j >> 1)
