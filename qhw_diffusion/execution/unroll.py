"""A compiled circuit with one parameter per rotation gate, and the affine map from the original parameters to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterExpression, ParameterVector

from qhw_diffusion.execution.compile import CompiledCircuit


@dataclass(frozen=True, eq=False)
class Unrolled:
    """Every rotation with an angle of its own: angles = input_coefficients·x + weight_coefficients·w + offsets.

    Attributes:
        compiled: the circuit whose inputs are the R angles, in the order of the ISA circuit's parametrised gates; it
            has no weights. Its `logical` circuit is the original one and does not belong to these inputs: the engines
            evaluate `isa`, and `compile_for` has no meaning here.
        input_coefficients: [R, inputs].
        weight_coefficients: [R, weights].
        offsets: [R] radians.
    """

    compiled: CompiledCircuit
    input_coefficients: np.ndarray
    weight_coefficients: np.ndarray
    offsets: np.ndarray


_made: WeakKeyDictionary[CompiledCircuit, Unrolled] = WeakKeyDictionary()


def unrolled(compiled: CompiledCircuit) -> Unrolled:
    """Give every parametrised gate of the ISA circuit an angle of its own; made once for each compiled circuit.

    Raises:
        UnsupportedCircuitError: an operation or an angle the package cannot evaluate.
    """
    if compiled not in _made:
        program = compiled.program
        isa, angles = _with_free_angles(compiled.isa, len(program.offsets))
        _made[compiled] = Unrolled(
            replace(compiled, isa=isa, inputs=tuple(angles), weights=()),
            program.input_coefficients,
            program.weight_coefficients,
            program.offsets,
        )
    return _made[compiled]


def _with_free_angles(isa: QuantumCircuit, n_rotations: int) -> tuple[QuantumCircuit, ParameterVector]:
    angles = ParameterVector("angle", n_rotations)
    free = isa.copy_empty_like()
    free.global_phase = 0  # may contain the old parameters; expectation values do not see it
    index = 0
    for instruction in isa.data:
        operation = instruction.operation
        if any(isinstance(p, ParameterExpression) and p.parameters for p in operation.params):
            operation = operation.to_mutable()
            operation.params = [angles[index]]  # `program.lower` has refused gates with more than one
            index += 1
        free.append(operation, instruction.qubits, instruction.clbits, copy=False)
    assert index == n_rotations
    return free, angles
