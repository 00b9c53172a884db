"""PUBs for the tests of the stand-in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, Parameter
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.hardware.service import Pub, SamplerPub, precision_of

THETA = Parameter("θ")


def pub(rows: Sequence[float] = (0.1, 0.9), shots: int = 100) -> Pub:
    """⟨Z⟩ = −cos θ and ⟨X⟩ = 0 of one qubit, in gates that every device of IBM takes."""
    circuit = QuantumCircuit(1)
    circuit.sx(0)
    circuit.rz(THETA, 0)
    circuit.sx(0)
    observables = (SparsePauliOp("Z"), SparsePauliOp("X"))
    return Pub(circuit, observables, (THETA,), np.array(rows)[:, None], precision_of(shots))


def sampler_pub(rows: Sequence[float] = (0.1, 0.9), shots: int = 100) -> SamplerPub:
    """The circuit of `pub`, measured into ``c``: it reads 1 with probability (1 + cos θ)/2."""
    circuit = pub().circuit
    circuit.add_register(ClassicalRegister(1, "c"))
    circuit.measure(0, 0)
    return SamplerPub(circuit, (THETA,), np.array(rows)[:, None], shots)
