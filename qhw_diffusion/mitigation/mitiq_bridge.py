"""Conversion of compiled circuits to Mitiq's circuits (Cirq) and back, gate by gate, parameters included.

Mitiq itself goes through OpenQASM 2: bound circuits only, angles rounded to ten digits, the layout dropped, every ECR
taken apart, so that folding to scale 3 gives more than three times as many. Here every gate of the ISA basis has one
counterpart in Cirq. What comes back is in the ISA basis without any transpilation, which would cancel what was
inserted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qiskit import QuantumCircuit
from qiskit.circuit import Gate, ParameterExpression
from qiskit.circuit.library import CXGate, CZGate, ECRGate, IGate, RZGate, SXGate, XGate

from qhw_diffusion.errors import EngineError, UnsupportedCircuitError
from qhw_diffusion.execution import CompiledCircuit
from qhw_diffusion.mitigation.rewriting import with_isa, without_delays
from qhw_diffusion.mitigation.strategy import require_mitiq

if TYPE_CHECKING:
    import cirq

_ONE_QUBIT = frozenset({"rz", "sx", "x", "id"})
_TWO_QUBIT: dict[str, type[Gate]] = {"cx": CXGate, "cz": CZGate, "ecr": ECRGate}
# The angles that stand for the symbols; below π, which is what a Z becomes
_LARGEST_MARK = 3.0


@dataclass(frozen=True)
class Bridge:
    """A compiled circuit as a Cirq circuit, and the way back.

    Every rz of the ISA circuit carries a mark of its own instead of its angle, so that one Cirq circuit stands for all
    rows of parameters: rz is virtual on IBM's devices, hence no method here looks at the angle (CDR gives its own).

    Attributes:
        compiled: the circuit with its device, layout and observables.
        circuit: the Cirq circuit on ``LineQubit(i)``, i the place of the qubit in `compiled.physical_qubits`.
        angles: angle of each rz in the order of the ISA circuit: number or expression in the parameters.
        two_qubit: name of the only two-qubit gate: ``"cx"``, ``"cz"`` or ``"ecr"``. ECR is written as a CNOT, which is
            as good wherever a gate is only repeated, kept or followed by Paulis: both are their own inverse.
    """

    compiled: CompiledCircuit
    circuit: cirq.Circuit
    angles: tuple[float | ParameterExpression, ...]
    two_qubit: str

    def back(self, circuit: cirq.Circuit, *, identities: bool = True, layers: bool = False) -> CompiledCircuit:
        """A circuit made by Mitiq from `circuit` on the same physical qubits; a scheduled one is scheduled again.

        Args:
            circuit: of X, √X, √X†, Y, Z, I, the marked rz and the two-qubit gate.
            identities: keep identities as id gates, which take time and have an error.
            layers: keep the layers (Cirq's moments) apart by barriers.

        Raises:
            EngineError: Mitiq returned an operation that has no place in the ISA basis.
        """
        isa = without_delays(self.compiled).copy_empty_like()
        qubits = self.compiled.physical_qubits
        for index, moment in enumerate(circuit):
            if layers and index:
                isa.barrier(list(qubits))
            for operation in moment:
                where = [qubits[q.x] for q in operation.qubits]  # type: ignore[attr-defined]
                for gate in self._isa_gates(operation):
                    if identities or gate.name != "id":
                        isa.append(gate, where, copy=False)
        return with_isa(self.compiled, isa)

    def _isa_gates(self, operation: cirq.Operation) -> Iterable[Gate]:
        """The same operation in the ISA basis, up to a global phase, at the cost of no gate more."""
        import cirq

        gate = operation.gate
        if isinstance(gate, cirq.IdentityGate):
            return [IGate()]
        exponent = float(gate.exponent) % 2 if isinstance(gate, cirq.EigenGate) else math.nan
        if isinstance(gate, cirq.ZPowGate):
            return [self._rz(math.pi * float(gate.exponent))]
        if isinstance(gate, (cirq.XPowGate, cirq.YPowGate, cirq.CZPowGate, cirq.CXPowGate)) and exponent == 0:
            return []
        if isinstance(gate, cirq.XPowGate) and exponent in (0.5, 1.0, 1.5):
            gates = {0.5: [SXGate()], 1.0: [XGate()], 1.5: [RZGate(math.pi), SXGate(), RZGate(math.pi)]}
            return gates[exponent]
        if isinstance(gate, cirq.YPowGate) and exponent == 1:
            return [RZGate(math.pi), XGate()]
        expected = cirq.CZPowGate if self.two_qubit == "cz" else cirq.CXPowGate
        if isinstance(gate, expected) and exponent == 1:
            return [_TWO_QUBIT[self.two_qubit]()]
        raise EngineError(f"Mitiq returned {operation}, which has no counterpart in the basis of this circuit")

    def _rz(self, angle: float) -> Gate:
        """The rz whose mark this is, inverted where the mark has a minus sign; a Z or S of Mitiq's own as it is."""
        step = _LARGEST_MARK / len(self.angles) if self.angles else math.inf
        index = round(abs(angle) / step) - 1
        if not 0 <= index < len(self.angles) or abs(abs(angle) - (index + 1) * step) > 1e-9:
            return RZGate(angle)
        return RZGate(self.angles[index] if angle > 0 else -self.angles[index])


def bridge(compiled: CompiledCircuit) -> Bridge:
    """`compiled` as a Cirq circuit with marked angles (see `Bridge`).

    Raises:
        MissingDependencyError: Mitiq is not installed; the message has the pip command.
        UnsupportedCircuitError: operations other than rz, sx, x, id and one of cx, cz, ecr.
    """
    require_mitiq()
    isa = without_delays(compiled)
    two_qubit = check_basis(isa)
    angles = rz_angles(isa)
    step = _LARGEST_MARK / len(angles) if angles else 0.0
    return Bridge(compiled, to_cirq(compiled, [step * (i + 1) for i in range(len(angles))]), angles, two_qubit)


def rz_angles(isa: QuantumCircuit) -> tuple[float | ParameterExpression, ...]:
    """Angles of the rz gates in the circuit's order."""
    return tuple(i.operation.params[0] for i in isa.data if i.operation.name == "rz")


def to_cirq(compiled: CompiledCircuit, angles: Sequence[float]) -> cirq.Circuit:
    """The circuit on ``LineQubit(0 … k−1)`` with these angles (radians) in its rz gates, packed to the left."""
    import cirq

    isa = without_delays(compiled)
    place = {q: i for i, q in enumerate(compiled.physical_qubits)}
    gates: dict[str, Any] = {
        "sx": cirq.X**0.5, "x": cirq.X, "id": cirq.I, "cz": cirq.CZ, "cx": cirq.CNOT, "ecr": cirq.CNOT
    }  # fmt: skip
    left, operations = iter(angles), []
    for instruction in isa.data:
        name = instruction.operation.name
        if name == "barrier":
            continue
        gate = cirq.rz(next(left)) if name == "rz" else gates[name]
        operations.append(gate(*(cirq.LineQubit(place[isa.find_bit(q).index]) for q in instruction.qubits)))
    return cirq.Circuit(operations)


def check_basis(isa: QuantumCircuit) -> str:
    """The name of the two-qubit gate (``"cx"`` if there is none); UnsupportedCircuitError for any other operation."""
    names = set(isa.count_ops()) - {"barrier"} - _ONE_QUBIT
    if len(names) > 1 or not names <= set(_TWO_QUBIT):
        raise UnsupportedCircuitError(
            f"Mitiq is given circuits of {', '.join(sorted(_ONE_QUBIT))} and one of {', '.join(sorted(_TWO_QUBIT))}; "
            f"this one has also {', '.join(sorted(names - set(_TWO_QUBIT)) or sorted(names))}. Compile for a device "
            "without fractional gates, and without mid-circuit measurements; the strategies that need no Mitiq may "
            "take it"
        )
    return next(iter(names), "cx")
