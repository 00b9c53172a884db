"""CompiledCircuit → Program: affine rotation angles and fixed maps on the qubits in use. Pure data (numpy)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction, Clbit, Delay, Instruction, Parameter, ParameterExpression
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import SparsePauliOp
from qiskit.utils import apply_prefix

from qhw_diffusion.devices import Device
from qhw_diffusion.devices.instructions import MEASUREMENTS, RESETS
from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution.conditions import FLOW, choice_of

_H = np.array([[1, 1], [1, -1]], dtype=complex) / np.sqrt(2)
_SX = np.array([[1 + 1j, 1 - 1j], [1 - 1j, 1 + 1j]]) / 2
_I = np.eye(2, dtype=complex)
# little-endian: qubit 0 of the pair is the least significant bit; the CX has its control on qubit 0, target on qubit 1
_CX = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]], dtype=complex)

# Each rotation is V† · RZ(θ on its last qubit) · V with a fixed V: one parametrised operation is all the engines see.
ROTATIONS: dict[str, np.ndarray] = {
    "rz": _I,
    "p": _I,  # RZ up to a global phase
    "rx": _H,
    "ry": _SX,  # SX† Z SX = Y
    "rzz": _CX,
    "rxx": _CX @ np.kron(_H, _H),
    "ryy": _CX @ np.kron(_SX, _SX),
    "rzx": _CX @ np.kron(_H, _I),
}
# fmt: off
FIXED_GATES = frozenset([
    "id", "x", "y", "z", "h", "s", "sdg", "t", "tdg", "sx", "sxdg",
    "cx", "cy", "cz", "ch", "swap", "iswap", "ecr", "dcx", "csx",
])
# fmt: on
_IGNORED = frozenset({"barrier"})
_INCOHERENT = frozenset({*MEASUREMENTS, *RESETS, "delay"})
# Gates whose matrix is taken as it is where they have no parameter
_FIXED = frozenset(get_standard_gate_name_mapping())
# What rounding leaves of imaginary parts that cancel
_IMAGINARY = 1e-12
# Beyond its range an angle may be by this much, or by so many units in the last place of what it is made of
_SMALLEST_ROUNDING, _ROUNDINGS = 1e-9, 8
# How far inside of its range an angle is put that rounding put outside, and how often all gates are gone through
_INSIDE, _SWEEPS = 1e-12, 1000


@dataclass(frozen=True)
class Rotation:
    """RZ(θ_index) on one qubit, θ = inputs·x + weights·w + offset (rows of the Program's arrays)."""

    qubit: int
    index: int

    @property
    def qubits(self) -> tuple[int, ...]:
        """The one qubit, as for maps."""
        return (self.qubit,)


@dataclass(frozen=True, eq=False)
class FixedMap:
    """A parameter-free map on one or two qubits, without noise and with it; little-endian in `qubits`.

    Attributes:
        matrix: [2^k, 2^k], a unitary or a projector; None where states do not stay pure (reset, discarded outcome).
        noisy: [4^k, 4^k] the whole map with the device's noise; None if the device adds none.
        pure: [4^k, 4^k] the map without noise; only where `matrix` is None.

    Channels act on vec(ρ) stacked by columns (Qiskit's `SuperOp`).
    """

    qubits: tuple[int, ...]
    matrix: np.ndarray | None
    noisy: np.ndarray | None = None
    pure: np.ndarray | None = None

    def channel(self, noisy: bool) -> np.ndarray:
        """[4^k, 4^k], with the device's noise if asked."""
        if noisy and self.noisy is not None:
            return self.noisy
        if self.matrix is None:
            assert self.pure is not None
            return self.pure
        return _channel_of(self.matrix)


def _channel_of(matrix: np.ndarray) -> np.ndarray:
    """[4^k, 4^k]: ρ → MρM† on vec(ρ), the Kronecker product M̄ ⊗ M in a fifth of the time that `np.kron` takes."""
    d = len(matrix)
    return (matrix.conj()[:, None, :, None] * matrix[None, :, None, :]).reshape(d * d, d * d)


@dataclass(frozen=True, eq=False)
class Measurement(FixedMap):
    """A measurement in mid-circuit: as a map, either the outcome forgotten, or only the runs that read `keep`.

    Attributes:
        clbit: index of the classical bit.
        readout: (p10, p01) of the qubit, by the instruction that measures it.
        keep: the outcome post-selected on; None: forgotten, unless a condition reads it later.
    """

    clbit: int = 0
    readout: tuple[float, float] = (0.0, 0.0)
    keep: int | None = None

    def populations(self, read: int, noisy: bool) -> tuple[float, float]:
        """What is left of the populations of |0⟩ and |1⟩ in the runs that read `read`; coherences are lost."""
        p10, p01 = self.readout if noisy else (0.0, 0.0)
        return (1 - p10, p01) if read == 0 else (p10, 1 - p01)


@dataclass(frozen=True, eq=False)
class Conditional:
    """Operations that depend on bits read before (`if_else`, `switch_case`).

    Attributes:
        clbits: indices of the classical bits.
        choice: [2^bits] for every value of the bits (the first least significant) the branch taken; −1: none.
        branches: operations of each branch in time order.
    """

    clbits: tuple[int, ...]
    choice: tuple[int, ...]
    branches: tuple[tuple[Operation, ...], ...]

    @property
    def qubits(self) -> tuple[int, ...]:
        """Every qubit that some branch acts on."""
        return tuple({q for branch in self.branches for operation in branch for q in operation.qubits})

    @property
    def reads(self) -> frozenset[int]:
        """Classical bits that it, or a condition within it, reads."""
        within = [o.reads for branch in self.branches for o in branch if isinstance(o, Conditional)]
        return frozenset(self.clbits).union(*within)


Operation = Rotation | FixedMap | Conditional


def plain(operations: Iterable[Operation]) -> Iterator[Rotation | FixedMap]:
    """Every rotation and fixed map, those in branches included."""
    for operation in operations:
        if isinstance(operation, Conditional):
            for branch in operation.branches:
                yield from plain(branch)
        else:
            yield operation


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled circuit as data: operations in time order on qubits 0…n-1 (the physical qubits in ascending order).

    Attributes:
        n_qubits: number of qubits in use.
        operations: `Rotation`, `FixedMap` and `Conditional` objects in time order.
        input_coefficients: [R, inputs], weight_coefficients: [R, weights], offsets: [R]; radians.
        observables: one tuple of (coefficient, Pauli label) per observable, label[q] is qubit q's factor.
        readout: one (p10, p01) per qubit: P(read 1 | prepared 0), P(read 0 | prepared 1).
        limits: (index of a rotation, gate, lowest, highest angle) where the device takes only a range.
    """

    n_qubits: int
    operations: tuple[Operation, ...]
    input_coefficients: np.ndarray
    weight_coefficients: np.ndarray
    offsets: np.ndarray
    observables: tuple[tuple[tuple[float, str], ...], ...]
    readout: tuple[tuple[float, float], ...]
    limits: tuple[tuple[int, str, float, float], ...] = ()

    def depends_on_input(self, rotation: Rotation) -> bool:
        """Whether an input enters the rotation's angle."""
        return bool(np.any(self.input_coefficients[rotation.index]))

    @cached_property
    def pure(self) -> bool:
        """Whether a pure state stays one without noise."""
        return not self.feeds_forward and all(
            not isinstance(o, FixedMap) or o.matrix is not None for o in plain(self.operations)
        )

    @property
    def feeds_forward(self) -> bool:
        """Whether operations depend on bits read before."""
        return any(isinstance(o, Conditional) for o in self.operations)

    @cached_property
    def postselected(self) -> bool:
        """Whether outcomes of measurements are post-selected on."""
        return any(isinstance(o, Measurement) and o.keep is not None for o in plain(self.operations))

    @cached_property
    def idle_inputs(self) -> bool:
        """Whether there is an input that enters no angle."""
        return not bool(self.input_coefficients.any(axis=0).all())

    @cached_property
    def idle_weights(self) -> bool:
        """Whether there is a weight that enters no angle."""
        return not bool(self.weight_coefficients.any(axis=0).all())

    @cached_property
    def input_rows(self) -> np.ndarray:
        """Rotations whose angle an input enters."""
        return np.flatnonzero(self.input_coefficients.any(axis=1))

    @cached_property
    def _of_inputs(self) -> np.ndarray:
        """`input_coefficients` of these rotations alone."""
        return np.ascontiguousarray(self.input_coefficients[self.input_rows])

    @cached_property
    def weight_terms(self) -> tuple[np.ndarray, np.ndarray]:
        """`weight_coefficients` without zeros: weights [terms, R] and their coefficients."""
        return _terms(self.weight_coefficients)

    @cached_property
    def input_terms(self) -> tuple[np.ndarray, np.ndarray]:
        """`input_coefficients` without zeros: inputs [terms, R] and their coefficients."""
        return _terms(self.input_coefficients)

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """[weights] → [R] float64: weight_coefficients·w + offsets."""
        result, values = self.offsets.copy(), weights.astype(np.float64)
        for which, coefficients in zip(*self.weight_terms, strict=True):
            result += coefficients * values[which]
        return result

    def input_slopes(self, slopes: np.ndarray) -> np.ndarray:
        """Derivatives [R, B] by the angles → [B, inputs] by the inputs."""
        result: np.ndarray = slopes[self.input_rows].T @ self._of_inputs
        return result

    def weight_slopes(self, slopes: np.ndarray) -> np.ndarray:
        """Derivatives [R] by the angles → [weights] by the weights."""
        which, coefficients = self.weight_terms
        return np.bincount(which.ravel(), (coefficients * slopes).ravel(), self.weight_coefficients.shape[1])

    def by_rows(self) -> Program:
        """The same circuit with its weights as further inputs, so that every row may have weights of its own."""
        coefficients = np.concatenate([self.input_coefficients, self.weight_coefficients], axis=1)
        return replace(self, input_coefficients=coefficients, weight_coefficients=coefficients[:, :0])


def _terms(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    present = coefficients != 0
    order = np.argsort(~present, axis=1, kind="stable")[:, : present.sum(1).max(initial=0)]
    taken = np.take_along_axis(coefficients, order, axis=1)
    return np.ascontiguousarray(order.T), np.ascontiguousarray(taken.T)


def affine_coefficients(
    expression: ParameterExpression, gate: str, qubits: Sequence[int] = ()
) -> tuple[dict[Parameter, float], float]:
    """Coefficients and offset of an affine expression Σ c_k p_k + c₀.

    Args:
        expression: the angle.
        gate: what it is the angle of, for the message.
        qubits: the gate's.

    Raises:
        UnsupportedCircuitError: the expression is not affine, or a coefficient is complex, NaN or infinite; the message
            names the gate and the expression.
    """
    coefficients: dict[Parameter, complex] = {}
    for parameter in expression.parameters:
        try:
            coefficients[parameter] = complex(expression.gradient(parameter))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UnsupportedCircuitError(
                f"{_gate_at(gate, qubits)} has the angle {expression}, which is not affine in {parameter.name!r}; "
                "allowed are sums of parameters times numbers (compute products outside the circuit)"
            ) from error
    offset = complex(expression.bind(dict.fromkeys(expression.parameters, 0.0)))
    numbers = np.array([*coefficients.values(), offset])
    if not np.isfinite(numbers).all() or np.abs(numbers.imag).max() > _IMAGINARY:
        raise UnsupportedCircuitError(
            f"{_gate_at(gate, qubits)} has the angle {expression}, which is not real and finite; allowed are real "
            "multiples of parameters plus a real number"
        )
    return {parameter: value.real for parameter, value in coefficients.items()}, offset.real


def check_angles(circuit: QuantumCircuit) -> None:
    """Refuse parameters of gates, also inside composite gates, that are not affine, not real or not finite.

    Raises:
        UnsupportedCircuitError: the message names the gate and its qubits.
    """
    _check_angles(circuit, range(circuit.num_qubits))
    phase = circuit.global_phase
    if not isinstance(phase, ParameterExpression) and not np.isfinite(phase):
        raise UnsupportedCircuitError(f"the circuit's global phase is {phase}; give a finite number")


def _check_angles(circuit: QuantumCircuit, places: Sequence[int]) -> None:
    """`places` are the qubits that those of `circuit` stand for."""
    for instruction in circuit.data:
        operation = instruction.operation
        qubits = [places[circuit.find_bit(q).index] for q in instruction.qubits]
        for value in getattr(operation, "params", ()):  # a Clifford has none
            if isinstance(value, ParameterExpression):
                affine_coefficients(value, operation.name, qubits)
            elif isinstance(value, (int, float, complex, np.number, np.ndarray)) and not np.isfinite(value).all():
                raise UnsupportedCircuitError(
                    f"{_gate_at(operation.name, qubits)} has the parameter {value}; allowed are finite numbers"
                )
        if isinstance(operation, FLOW):
            for block in operation.blocks:
                _check_angles(block, qubits)
            continue
        # what a standard gate is made of follows from its parameters
        if operation.name not in (*_FIXED, "unitary"):
            try:
                definition = getattr(operation, "definition", None)
            except Exception:  # an evolution by an unbound time, say: the transpiler fails on it, and that is told
                continue
            if definition is not None:
                _check_angles(definition, qubits)


def _gate_at(gate: str, qubits: Sequence[int]) -> str:
    where = f" on qubit{'s' if len(qubits) > 1 else ''} {', '.join(map(str, qubits))}" if len(qubits) else ""
    return f"gate {gate!r}{where}"


def lower(
    isa: QuantumCircuit,
    device: Device,
    physical_qubits: Sequence[int],
    inputs: Sequence[Parameter],
    weights: Sequence[Parameter],
    observables: Sequence[SparsePauliOp],
    postselect: Mapping[int, int] | None = None,
) -> Program:
    """Translate an ISA circuit into a Program; noise comes from `device.gate_error`, `relaxation`, `readout_error`.

    `postselect` maps the index of a classical bit to the outcome kept; other outcomes are forgotten.

    Raises:
        UnsupportedCircuitError: an operation that is neither a rotation nor a fixed map, or a non-affine angle.
    """
    position = {q: i for i, q in enumerate(physical_qubits)}
    column = {p: ("input", i) for i, p in enumerate(inputs)} | {p: ("weight", i) for i, p in enumerate(weights)}
    rows: list[tuple[np.ndarray, np.ndarray, float]] = []
    limits: list[tuple[int, str, float, float]] = []
    unitaries: dict[tuple, np.ndarray] = {}

    def operations_of(
        circuit: QuantumCircuit, places: Sequence[int], clbits: Mapping[Clbit, int]
    ) -> tuple[Operation, ...]:
        """`places`: physical qubits of the circuit's; `clbits`: indices in `isa` of its classical bits."""
        operations: list[Operation] = []
        for instruction in circuit.data:
            gate = instruction.operation
            physical = tuple(places[circuit.find_bit(q).index] for q in instruction.qubits)
            if gate.name in _IGNORED or (gate.name == "delay" and physical[0] not in position):
                continue
            if isinstance(gate, FLOW):
                choice = choice_of(gate, f"{gate.name!r} on qubits {list(physical)}")
                branches = []
                for block in choice.blocks:
                    within = {b: clbits[c] for b, c in zip(block.clbits, instruction.clbits, strict=True)}
                    branches.append(operations_of(block, physical, within))
                operations.append(Conditional(tuple(clbits[b] for b in choice.bits), choice.table, tuple(branches)))
                continue
            _check_supported(circuit, instruction, places)
            qubits = tuple(position[q] for q in physical)
            if gate.name in _INCOHERENT:
                clbit = clbits[instruction.clbits[0]] if instruction.clbits else None
                operations.append(_incoherent(gate, clbit, device, qubits, physical[0], postselect or {}))
                continue
            angles = [p for p in gate.params if isinstance(p, ParameterExpression) and p.parameters]
            if angles:
                input_row, weight_row = np.zeros(len(inputs)), np.zeros(len(weights))
                coefficients, offset = affine_coefficients(angles[0], gate.name, physical)
                for parameter, value in coefficients.items():
                    kind, i = column[parameter]
                    (input_row if kind == "input" else weight_row)[i] = value
                basis = ROTATIONS[gate.name]
                trivial = np.allclose(basis, np.eye(len(basis)))
                if not trivial:
                    operations.append(FixedMap(qubits, basis))
                operations.append(Rotation(qubits[-1], len(rows)))
                if not trivial:
                    operations.append(FixedMap(qubits, basis.conj().T))
                limit = device.angle_limits(gate.name)
                if limit is not None:
                    limits.append((len(rows), gate.name, *limit))
                rows.append((input_row, weight_row, offset))
                unitary = None
            else:
                key = (gate.name, tuple(float(p) for p in gate.params))
                if key not in unitaries:
                    unitaries[key] = np.asarray(gate.to_matrix())
                unitary = unitaries[key]
            error = device.gate_error(gate.name, physical)
            if error is None:
                if unitary is not None:
                    operations.append(FixedMap(qubits, unitary))
                continue
            matrix = np.eye(2 ** len(qubits), dtype=complex) if unitary is None else unitary
            operations.append(FixedMap(qubits, matrix, np.asarray(error.data) @ _channel_of(matrix)))
        return tuple(operations)

    operations = operations_of(isa, range(isa.num_qubits), {bit: i for i, bit in enumerate(isa.clbits)})
    return Program(
        n_qubits=len(physical_qubits),
        operations=operations,
        input_coefficients=np.array([r[0] for r in rows]).reshape(len(rows), len(inputs)),
        weight_coefficients=np.array([r[1] for r in rows]).reshape(len(rows), len(weights)),
        offsets=np.array([r[2] for r in rows]),
        observables=tuple(reduced_terms(o, physical_qubits) for o in observables),
        readout=tuple(device.readout_error(q) for q in physical_qubits),
        limits=tuple(limits),
    )


def check_supported(isa: QuantumCircuit, places: Sequence[int] | None = None) -> None:
    """Raise UnsupportedCircuitError for an operation of an ISA circuit that `lower` knows no map for."""
    places = range(isa.num_qubits) if places is None else places
    for instruction in isa.data:
        if isinstance(instruction.operation, FLOW):
            within = [places[isa.find_bit(q).index] for q in instruction.qubits]
            for block in instruction.operation.blocks:
                check_supported(block, within)
            continue
        _check_supported(isa, instruction, places)
        for value in instruction.operation.params:
            if isinstance(value, ParameterExpression):
                affine_coefficients(value, instruction.operation.name)


def _check_supported(circuit: QuantumCircuit, instruction: CircuitInstruction, places: Sequence[int]) -> None:
    gate = instruction.operation
    if gate.name in _IGNORED or gate.name in _INCOHERENT:
        return
    qubits = [places[circuit.find_bit(q).index] for q in instruction.qubits]
    if any(isinstance(p, ParameterExpression) and p.parameters for p in gate.params):
        if gate.name not in ROTATIONS:
            raise UnsupportedCircuitError(
                f"parametrised gate {gate.name!r} on qubits {qubits} of the compiled circuit is not supported; allowed "
                f"are {', '.join(sorted(ROTATIONS))}"
            )
    elif gate.name not in _FIXED or not hasattr(gate, "to_matrix") or len(qubits) not in (1, 2):
        raise UnsupportedCircuitError(
            f"operation {gate.name!r} on qubits {qubits} of the compiled circuit is not supported: only rotations and "
            "fixed gates on one or two qubits are"
        )


_P0, _P1 = np.diag([1.0, 0.0]), np.diag([0.0, 1.0])


def _incoherent(
    operation: Instruction,
    clbit: int | None,
    device: Device,
    qubits: tuple[int, ...],
    physical: int,
    postselect: Mapping[int, int],
) -> FixedMap:
    """Delay, reset and measurement in mid-circuit as maps."""
    if operation.name == "delay":
        error = device.relaxation(physical, delay_seconds(operation, device)) if device.target is not None else None
        return FixedMap(qubits, np.eye(2), None if error is None else np.asarray(error.data))
    if operation.name in RESETS:
        to_zero = np.array([[0, 1], [0, 0]])
        pure = np.kron(_P0, _P0) + np.kron(to_zero, to_zero)
        error = device.gate_error(operation.name, (physical,))
        return FixedMap(qubits, None, None if error is None else np.asarray(error.data) @ pure, pure)
    assert clbit is not None
    readout, keep = device.readout_error(physical, operation.name), postselect.get(clbit)
    populations = np.kron(_P0, _P0), np.kron(_P1, _P1)
    if keep is None:
        return Measurement(qubits, None, None, populations[0] + populations[1], clbit, readout)
    measurement = Measurement(qubits, (_P0, _P1)[keep], None, None, clbit, readout, keep)
    zero, one = measurement.populations(keep, noisy=True)
    return replace(measurement, noisy=zero * populations[0] + one * populations[1])


def delay_seconds(delay: Delay, device: Device) -> float:
    """Length of a delay instruction."""
    if delay.unit == "dt":
        dt = None if device.target is None else device.target.dt
        if dt is None:
            raise UnsupportedCircuitError(
                f"a delay of {delay.duration} dt on {device.name}, which states no dt; give delays in seconds"
            )
        return float(delay.duration * dt)
    return float(delay.duration if delay.unit == "s" else apply_prefix(delay.duration, delay.unit))


def angles_of(
    program: Program,
    inputs: np.ndarray,
    weights: np.ndarray,
    *,
    limited: bool = False,
    by_weights: np.ndarray | None = None,
    dtype: type[np.floating] = np.float64,
) -> np.ndarray:
    """[B, inputs], [weights] → [R, B]: the angles of all rotations for every sample, computed in float64.

    Args:
        program: the circuit.
        inputs: [B, inputs] radians.
        weights: [weights] radians.
        limited: whether they are to be as the device takes them: what is outside its range by no more than rounding
            is clipped to it.
        by_weights: what `angles_by_weights` gave for these weights; None: computed here.
        dtype: of the result.

    Raises:
        InvalidInputError: an angle is NaN or infinite, since an input or a weight is; or it is outside of the device's
            range.
    """
    shared = angles_by_weights(program, weights) if by_weights is None else by_weights
    rows = program.input_rows
    own = shared[rows, None] + program._of_inputs.dot(inputs.astype(np.float64).T)
    idle = (inputs,) * program.idle_inputs + (weights,) * program.idle_weights
    if not all(map(_finite, (shared, own, *idle))):
        for name, given in (("weights", weights), ("inputs", inputs)):
            if not np.isfinite(given).all():
                raise InvalidInputError(
                    f"{int((~np.isfinite(given)).sum())} of the {given.size} {name} are NaN or infinity; check what "
                    "produced them"
                )
        raise InvalidInputError("inputs or weights are too large: angles made of them are infinite")
    result = np.empty((len(shared), len(inputs)), np.float64 if limited and program.limits else dtype)
    result[:] = shared[:, None]
    result[rows] = own
    if limited:
        for index, gate, low, high in program.limits:
            beyond = np.maximum(low - result[index], result[index] - high)
            if (beyond > _rounding(program, index, inputs, weights)).any():
                raise InvalidInputError(
                    f"{gate} number {index + 1} of the compiled circuit has angles from {result[index].min():.4f} to "
                    f"{result[index].max():.4f}, up to {beyond.max():.1e} too far; the device takes {low:.4f} to "
                    f"{high:.4f}. Keep the parameter in this range, or use the device without fractional gates"
                )
            np.clip(result[index], low, high, out=result[index])
    return result.astype(dtype, copy=False)


def _finite(array: np.ndarray) -> bool:
    """Whether there is neither NaN nor infinity; the sum of squares, which may overflow, is the quicker way to know."""
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def angles_by_weights(program: Program, weights: np.ndarray) -> np.ndarray:
    """[weights] → [R] float64: the part of all angles that no input enters."""
    with np.errstate(invalid="ignore", over="ignore"):  # `angles_of` refuses what comes of it
        return program.weighted(weights)


def _rounding(program: Program, index: int, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[B]: what rounding of inputs and weights, in the precision they are given in, does to a rotation's angle."""
    size = abs(program.offsets[index]) + np.abs(program.weight_coefficients[index]) @ np.abs(weights)
    size = size + np.abs(inputs) @ np.abs(program.input_coefficients[index])
    coarsest = max(np.finfo(np.result_type(g, np.float32)).eps for g in (inputs, weights) if g.size)
    result: np.ndarray = np.maximum(_SMALLEST_ROUNDING, _ROUNDINGS * coarsest * np.maximum(size, 1))
    return result


def rows_within_limits(program: Program, rows: np.ndarray) -> np.ndarray:
    """Rows of parameters [B, inputs + weights] → the same as float64, every angle within the range the device takes.

    A device checks the angles by itself, to the last bit. Where rounding has put one outside, the parameters in it are
    moved by as little as brings it back.

    Raises:
        InvalidInputError: an angle is outside by more than rounding, NaN or infinite.
    """
    result = rows.astype(np.float64)
    if not program.limits:
        return result
    program = program.by_rows()
    clipped, raw = (angles_of(program, rows, rows[0, :0], limited=limited) for limited in (True, False))
    moved = np.flatnonzero((clipped != raw).any(axis=0))
    for _ in range(_SWEEPS if len(moved) else 0):
        inside = True
        for index, _, low, high in program.limits:  # projections on one gate's range after the other
            slopes = program.input_coefficients[index]
            angles = program.offsets[index] + result[moved] @ slopes
            by = np.where(angles < low, low + _INSIDE - angles, np.where(angles > high, high - _INSIDE - angles, 0.0))
            inside = inside and not by.any()
            result[moved] += np.outer(by / (slopes @ slopes), slopes)
        if inside:
            return result
    if len(moved):
        raise InvalidInputError(
            "the angles of the gates of which the device takes only a range contradict one another: brought into range "
            "for one gate, parameters are out of it for another; use the device without fractional gates"
        )
    return result


def reduced_terms(observable: SparsePauliOp, physical_qubits: Sequence[int]) -> tuple[tuple[float, str], ...]:
    """(coefficient, Pauli label) of each term, label[q] the factor of physical_qubits[q]."""
    terms = []
    first = observable.coeffs[0]
    alone = len(observable) == 1 and isinstance(first, complex) and abs(first) > observable.atol  # nothing to simplify
    for label, coefficient in (observable if alone else observable.simplify()).to_list():
        factors = label[::-1]  # Qiskit writes qubit 0 last
        terms.append((float(np.real(coefficient)), "".join(factors[q] for q in physical_qubits)))
    return tuple(terms)
