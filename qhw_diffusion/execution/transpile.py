"""Logical circuit → ISA circuit: Qiskit's preset passes with a seed, parameters that cancel taken out."""

from __future__ import annotations

import functools
import math
import threading
from typing import Any

from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction, ControlFlowOp, ParameterExpression
from qiskit.converters import circuit_to_dag, dag_to_circuit
from qiskit.dagcircuit import DAGCircuit
from qiskit.transpiler import PassManager, StagedPassManager, Target, TransformationPass, generate_preset_pass_manager
from qiskit.transpiler.passes.utils.remove_final_measurements import calc_final_ops

from qhw_diffusion.devices import Device
from qhw_diffusion.devices.instructions import MID_CIRCUIT
from qhw_diffusion.devices.working import trivial_layout
from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution.admission import place
from qhw_diffusion.execution.conditions import instructions
from qhw_diffusion.execution.program import FIXED_GATES, ROTATIONS, affine_coefficients

# What an ideal device is taken to run: the fixed gates that `program.lower` knows, and its rotations, but one kind of
# rotation on pairs only. Where there are several, Qiskit chooses one of them anew in every call when it synthesises a
# block of two qubits, and one seed would give many circuits.
IDEAL_BASIS = [*sorted(ROTATIONS.keys() - {"rxx", "ryy", "rzx"}), *sorted(FIXED_GATES)]


def transpiled(
    circuit: QuantumCircuit,
    device: Device,
    *,
    optimization_level: int,
    seed: int,
    scheduled: bool,
    mid_circuit: bool = False,
) -> QuantumCircuit:
    """The ISA circuit; its parameters are those that its gates still have.

    A global phase with parameters is left out: expectation values do not see it, and the runtime client's estimator
    fails on it. With `mid_circuit`, measurements and resets in mid-circuit are by the device's own instructions for
    these, where it has them (`ToMidCircuit`).

    Raises:
        InvalidInputError: the circuit cannot do without gates that are out of use, or has instructions for mid-circuit
            that the device lacks.
        UnsupportedCircuitError: the transpiler fails on the circuit; the message names the operation where one alone
            makes it fail.
    """
    has = () if device.target is None else device.target.operation_names
    for name in sorted({each.operation.name for each in instructions(circuit)} & {*MID_CIRCUIT.values()} - {*has}):
        (usual,) = (each for each, special in MID_CIRCUIT.items() if special == name)
        raise InvalidInputError(
            f"circuit {circuit.name!r} has {name!r}, which {device.name} does not have: write {usual!r}, which is sent "
            f"as {name!r} to devices that have it"
        )

    def for_target(target: Target | None) -> QuantumCircuit:
        # a pass holds the properties of the circuit it is at: each thread has passes of its own
        manager = _manager(
            target, circuit.num_qubits, optimization_level, seed, scheduled, mid_circuit, threading.get_ident()
        )
        return _run(circuit, device, manager)

    isa = for_target(None) if device.target is None else device.transpiled(for_target)
    if isinstance(isa.global_phase, ParameterExpression) and isa.global_phase.parameters:
        isa.global_phase = 0
    return isa


@functools.lru_cache(maxsize=16)  # making one takes longer than running it on a small circuit
def _manager(
    target: Target | None,
    n_qubits: int,
    optimization_level: int,
    seed: int,
    scheduled: bool,
    mid_circuit: bool,
    thread: int,
) -> StagedPassManager:
    """The passes for circuits of so many qubits on a target, or on an ideal device."""
    if target is None:
        manager = generate_preset_pass_manager(
            optimization_level=optimization_level, basis_gates=IDEAL_BASIS, seed_transpiler=seed
        )
    else:
        manager = generate_preset_pass_manager(
            optimization_level=optimization_level,
            target=target,
            initial_layout=trivial_layout(target, n_qubits, optimization_level),
            seed_transpiler=seed,
            scheduling_method="alap" if scheduled else None,
        )
        if mid_circuit:
            manager.post_optimization = PassManager([ToMidCircuit(target)])
    manager.pre_optimization = PassManager([WithoutCancelled()])
    return manager


class ToMidCircuit(TransformationPass):
    """`measure` and `reset` in mid-circuit become `measure_2` and `reset_2` on the qubits that have these.

    In mid-circuit is what something follows on the same qubit, as in the runtime client's own pass
    (`ConvertToMidCircuitResetAndMeasure`), and also a measurement whose bit a condition asks for. What is in branches
    stays as it is, as it does there.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def run(self, dag: DAGCircuit) -> DAGCircuit:
        """Replace them, in place."""
        for usual, special in MID_CIRCUIT.items():
            if special not in self.target.operation_names:
                continue
            last = set(calc_final_ops(dag, {usual, "barrier"}))
            for node in dag.named_nodes(usual):
                asked = any(isinstance(getattr(after, "op", None), ControlFlowOp) for after in dag.successors(node))
                qubits = [dag.find_bit(qubit).index for qubit in node.qargs]
                if (asked or node not in last) and self.target.instruction_supported(special, qubits):
                    dag.substitute_node(node, self.target.operation_from_name(special), inplace=True)
        return dag


def _run(circuit: QuantumCircuit, device: Device, manager: StagedPassManager) -> QuantumCircuit:
    try:
        isa: QuantumCircuit = manager.run(circuit)
    except (MemoryError, Warning):
        raise
    except Exception as error:  # every kind comes out of it: of Qiskit, of Python, of its compiled core
        culprit = _culprit(circuit, manager)
        named = "the circuit" if culprit is None else place(circuit, culprit)
        raise UnsupportedCircuitError(
            f"Qiskit's transpiler fails on {named} for {device.name}: {type(error).__name__}: "
            f"{getattr(error, 'message', error)}{_on_delays(device, culprit)}"
        ) from error
    return isa


def _culprit(circuit: QuantumCircuit, manager: StagedPassManager) -> CircuitInstruction | None:
    """The first operation on which the transpiler fails even alone."""
    tried = set()
    for instruction in circuit.data:
        operation = instruction.operation
        kind = (operation.name, tuple(map(str, getattr(operation, "params", ()))))
        if kind in tried:
            continue
        tried.add(kind)
        alone = circuit.copy_empty_like()
        alone.append(instruction)
        try:
            manager.run(alone)
        except Exception:  # the same failure, whatever its type
            return instruction
    return None


def _on_delays(device: Device, culprit: CircuitInstruction | None) -> str:
    """What to do about a delay that the device's clock does not allow."""
    if culprit is None or culprit.operation.name != "delay" or device.target is None:
        return ""
    multiple = math.lcm(device.target.acquire_alignment, device.target.pulse_alignment)
    return (
        f". Without a schedule {device.name} takes delays of multiples of {multiple} dt only: change its length, or "
        "compile with scheduled=True"
    )


class WithoutCancelled(TransformationPass):
    """Takes parameters with coefficient 0 out of the angles: x − x, 0·x, and what translation makes of others.

    Qiskit keeps them in the expression, which can then neither be copied nor, without symbols, taken for a number:
    optimisation level 3 fails on it with a TypeError.
    """

    def run(self, dag: DAGCircuit) -> DAGCircuit:
        """Take them out of every gate, in place."""
        for node in dag.op_nodes():
            if isinstance(node.op, ControlFlowOp):
                blocks = [dag_to_circuit(self.run(circuit_to_dag(block))) for block in node.op.blocks]
                dag.substitute_node(node, node.op.replace_blocks(blocks), inplace=True)
            elif any(isinstance(value, ParameterExpression) and value.parameters for value in node.params):
                params = [_without_cancelled(value, node.name) for value in node.params]
                if any(new is not old for new, old in zip(params, node.params, strict=True)):
                    operation = node.op.to_mutable()
                    operation.params = params
                    dag.substitute_node(node, operation, inplace=True)
        return dag


def _without_cancelled(value: Any, gate: str) -> Any:
    if not isinstance(value, ParameterExpression) or not value.parameters:
        return value
    try:
        coefficients, offset = affine_coefficients(value, gate)
    except UnsupportedCircuitError:
        return value  # refused when the circuit is lowered
    if all(coefficients.values()):
        return value
    terms = [p if c == 1 else c * p for p, c in sorted(coefficients.items(), key=lambda item: item[0].name) if c]
    return sum(terms, start=offset)
