"""Probabilistic error cancellation with Mitiq (arXiv 1612.02058, 1712.09271)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from qiskit.quantum_info import PTM, SuperOp, pauli_basis

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit
from qhw_diffusion.mitigation.mitiq_bridge import bridge
from qhw_diffusion.mitigation.mitiq_weighted import Family, Weighted, check_number
from qhw_diffusion.mitigation.rewriting import kept, without_delays
from qhw_diffusion.mitigation.strategy import MOST_CIRCUITS, Need, require_mitiq

if TYPE_CHECKING:
    from mitiq.pec import OperationRepresentation


@dataclass(frozen=True)
class MitiqPEC(Weighted):
    """Write the inverse of every gate's error as a quasi-probability over Paulis; average over circuits drawn from it.

    The errors are those of the device's calibration (`Device.gate_error`), reduced to their Pauli part: twirled, as if
    they had no coherent part and relaxation drove to the mixed state instead of |0⟩. Whatever the calibration does not
    know (crosstalk, drift) stays, and so do waiting and readout errors. The Paulis put in are taken to have no error.

    The price is γ² (`overhead`), γ the product of all gates' norms: that many times the shots for the same standard
    error. Mitiq builds every circuit it draws (90 ms each here), though most of them have no Pauli in them. Here the
    circuit without Paulis has its exact weight, only the others are drawn, from Mitiq's representations of the gates,
    and equal ones are evaluated once.

    Args:
        samples: circuits drawn among those with at least one Pauli, ≥ 2. The drawing leaves a standard error, also on
            an exact engine; it is part of `std_errors`.
        seed: of the drawing.

    Raises:
        InvalidInputError: samples below 2; an error too strong to be inverted.
    """

    samples: int = 100
    seed: int = 0
    name: ClassVar[str] = "mitiq-pec"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MITIQ, Need.GATE_DATA})

    def __post_init__(self) -> None:
        check_number("samples", self.samples, 2, MOST_CIRCUITS)
        check_number("seed", self.seed, 0)

    @property
    def label(self) -> str:
        """``"Mitiq PEC, 100 samples"``."""
        return f"Mitiq PEC, {self.samples} samples"

    def make(self, compiled: CompiledCircuit) -> Family:
        """The circuit without Paulis and those that are drawn, with their weights."""
        require_mitiq()
        import cirq

        source = bridge(compiled)
        known = {next(r.ideal.all_operations()): r for r in representations(compiled)}
        operations = list(source.circuit.all_operations())
        noisy = [index for index, operation in enumerate(operations) if operation in known]
        gates = [known[operations[index]] for index in noisy]
        norm = float(np.prod([g.norm for g in gates]))
        silent = float(np.prod([g.distribution[0] for g in gates]))
        circuits, weights, counts = [source.back(source.circuit)], [norm * silent], [0]
        picks = _draw(gates, self.samples, np.random.default_rng(self.seed)) if gates else np.empty((0, 0), dtype=int)
        for column, count in Counter(map(tuple, picks.T.tolist())).items():
            replaced: list[Any] = list(operations)
            for index, gate, pick in zip(noisy, gates, column, strict=True):
                replaced[index] = list(gate.noisy_operations[pick].circuit.all_operations())
            sign = np.prod([np.sign(gate.coeffs[pick]) for gate, pick in zip(gates, column, strict=True)])
            circuits.append(source.back(cirq.Circuit(replaced)))
            weights.append(norm * (1 - silent) * sign * count / self.samples)
            counts.append(count)
        return Family(tuple(circuits), torch.tensor(weights, dtype=torch.float64), tuple(counts))

    def overhead(self, compiled: CompiledCircuit) -> float:
        """γ²: what the number of shots is multiplied by for the same standard error."""
        norms = {(r.name, r.qubits): r.norm for r in _gates(compiled)}
        isa = without_delays(compiled)
        gamma = 1.0
        for instruction in isa.data:
            qubits = tuple(isa.find_bit(q).index for q in instruction.qubits)
            gamma *= norms.get((instruction.operation.name, qubits), 1.0)
        return gamma**2


def _draw(gates: Sequence[OperationRepresentation], samples: int, generator: np.random.Generator) -> np.ndarray:
    """[gates, samples]: which operation stands for each gate, given that not every one is the first (no Pauli)."""
    picks = np.stack([generator.choice(len(g.coeffs), size=samples, p=g.distribution) for g in gates])
    silent = np.array([g.distribution[0] for g in gates])
    # The first gate with a Pauli, then one of its Paulis; those before have none, those behind are free
    first = np.cumprod([1.0, *silent[:-1]]) * (1 - silent)
    for sample, place in enumerate(generator.choice(len(gates), size=samples, p=first / first.sum())):
        paulis = np.array(gates[place].distribution[1:])
        picks[:place, sample] = 0
        picks[place, sample] = 1 + generator.choice(len(paulis), p=paulis / paulis.sum())
    return picks


@dataclass(frozen=True)
class _Gate:
    """A noisy gate and the quasi-probabilities of the Paulis (Qiskit's labels) that undo its error."""

    name: str
    qubits: tuple[int, ...]
    coefficients: dict[str, float]

    @property
    def norm(self) -> float:
        return sum(abs(c) for c in self.coefficients.values())


def _gates(compiled: CompiledCircuit) -> list[_Gate]:
    store = kept(compiled)
    if "pec_gates" not in store:
        isa = without_delays(compiled)
        places = {
            (i.operation.name, tuple(isa.find_bit(q).index for q in i.qubits))
            for i in isa.data
            if i.operation.name not in ("rz", "barrier")
        }
        gates = []
        for name, qubits in sorted(places):
            error = compiled.device.gate_error(name, qubits)
            if error is not None:
                gates.append(_Gate(name, qubits, inverse_paulis(error)))
        store["pec_gates"] = gates
    made: list[_Gate] = store["pec_gates"]
    return made


def inverse_paulis(error: SuperOp) -> dict[str, float]:
    """Quasi-probabilities {Pauli label: coefficient} of the inverse of an error on n qubits, twirled.

    A Pauli channel multiplies Pauli P by f_P; its inverse is Σ_Q c_Q Q·Q with c_Q = 4^−n Σ_P ±1/f_P, + where P and Q
    commute. f_P is the diagonal of the Pauli transfer matrix.

    Raises:
        InvalidInputError: an f_P of 0 or less: nothing is left to amplify.
    """
    fidelities = np.real(np.diag(PTM(error).data))
    if fidelities.min() <= 0:
        raise InvalidInputError(f"an error with a Pauli fidelity of {fidelities.min():.3f} cannot be inverted")
    paulis = pauli_basis(int(np.log2(error.dim[0])))
    signs = np.array([np.where(paulis.commutes(p), 1.0, -1.0) for p in paulis])
    coefficients = signs @ (1 / fidelities) / len(paulis)
    return {label: float(c) for label, c in zip(paulis.to_labels(), coefficients, strict=True) if abs(c) > 1e-12}


def representations(compiled: CompiledCircuit) -> list[OperationRepresentation]:
    """Mitiq's representation of every noisy gate of the circuit, on ``LineQubit(place in physical_qubits)``."""
    import cirq
    from mitiq.pec import NoisyOperation, OperationRepresentation

    place = {q: i for i, q in enumerate(compiled.physical_qubits)}
    gates: dict[str, Any] = {
        "sx": cirq.X**0.5, "x": cirq.X, "id": cirq.I, "cz": cirq.CZ, "cx": cirq.CNOT, "ecr": cirq.CNOT
    }  # fmt: skip
    paulis = {"X": cirq.X, "Y": cirq.Y, "Z": cirq.Z}
    found = []
    for gate in _gates(compiled):
        lines = [cirq.LineQubit(place[q]) for q in gate.qubits]
        ideal = cirq.Circuit(gates[gate.name](*lines))
        noisy = [
            # Qiskit writes the gate's first qubit last
            NoisyOperation(
                ideal + cirq.Circuit(paulis[f](q) for f, q in zip(label[::-1], lines, strict=True) if f != "I")
            )
            for label in gate.coefficients
        ]
        found.append(OperationRepresentation(ideal, noisy, list(gate.coefficients.values())))
    return found
