"""Conditions of `if_else` and `switch_case` as tables: which branch is taken for every value of the bits they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qiskit import QuantumCircuit
from qiskit.circuit import CASE_DEFAULT, CircuitInstruction, ClassicalRegister, Clbit, IfElseOp, SwitchCaseOp
from qiskit.circuit.classical import expr, types

from qhw_diffusion.errors import UnsupportedCircuitError

# A condition on more bits than this has a table of more than a thousand entries
MOST_BITS = 10
FLOW = (IfElseOp, SwitchCaseOp)
# fmt: off
_BINARY = {
    "BIT_AND": lambda a, b: a & b, "BIT_OR": lambda a, b: a | b, "BIT_XOR": lambda a, b: a ^ b,
    "LOGIC_AND": lambda a, b: bool(a and b), "LOGIC_OR": lambda a, b: bool(a or b),
    "EQUAL": lambda a, b: a == b, "NOT_EQUAL": lambda a, b: a != b,
    "LESS": lambda a, b: a < b, "LESS_EQUAL": lambda a, b: a <= b,
    "GREATER": lambda a, b: a > b, "GREATER_EQUAL": lambda a, b: a >= b,
}
# fmt: on


@dataclass(frozen=True, eq=False)
class Choice:
    """What a control-flow operation does.

    Attributes:
        bits: that its condition reads.
        blocks: its branches.
        table: [2^bits] the branch taken for every value of the bits (the first least significant); −1: none.
    """

    bits: tuple[Clbit, ...]
    blocks: tuple[QuantumCircuit, ...]
    table: tuple[int, ...]


def choice_of(operation: IfElseOp | SwitchCaseOp, where: str) -> Choice:
    """The branches of an operation and when each is taken; `where` is what errors call it.

    Raises:
        UnsupportedCircuitError: a condition on more than `MOST_BITS` bits, or on an expression that is not made of
            classical bits, registers, numbers, comparisons, and bitwise or logical operations.
    """
    switch = isinstance(operation, SwitchCaseOp)
    condition: Any = operation.target if switch else operation.condition
    wanted = True
    if isinstance(condition, tuple):
        condition, wanted = condition
    condition = expr.lift(condition)
    bits = tuple(dict.fromkeys(_bits(condition, where)))
    if len(bits) > MOST_BITS:
        raise UnsupportedCircuitError(
            f"{where} has a condition on {len(bits)} classical bits; allowed are up to {MOST_BITS}"
        )
    values = [
        int(_value(condition, {bit: v >> k & 1 for k, bit in enumerate(bits)}, where)) for v in range(2 ** len(bits))
    ]
    blocks: tuple[QuantumCircuit, ...] = operation.blocks
    if switch:
        cases = [(at, label) for at, (labels, _) in enumerate(operation.cases_specifier()) for label in labels]
        table = [next((at for at, label in cases if label is CASE_DEFAULT or label == v), -1) for v in values]
    else:
        table = [0 if v == int(wanted) else len(blocks) - 1 or -1 for v in values]
    return Choice(bits, blocks, tuple(table))


def _bits(node: expr.Expr, where: str) -> Iterator[Clbit]:
    if isinstance(node, expr.Var) and isinstance(node.var, Clbit):
        yield node.var
    elif isinstance(node, expr.Var) and isinstance(node.var, ClassicalRegister):
        yield from node.var
    elif isinstance(node, (expr.Cast, expr.Unary)):
        yield from _bits(node.operand, where)
    elif isinstance(node, expr.Binary):
        yield from _bits(node.left, where)
        yield from _bits(node.right, where)
    elif isinstance(node, expr.Index):
        yield from _bits(node.target, where)
        yield from _bits(node.index, where)
    elif not isinstance(node, expr.Value):
        raise _unknown(node, where)


def _value(node: expr.Expr, bits: Mapping[Clbit, int], where: str) -> int:
    if isinstance(node, expr.Var):
        read = [node.var] if isinstance(node.var, Clbit) else node.var
        return sum(bits[bit] << k for k, bit in enumerate(read))
    if isinstance(node, expr.Value):
        return int(node.value)
    if isinstance(node, expr.Index):
        return _value(node.target, bits, where) >> _value(node.index, bits, where) & 1
    if isinstance(node, expr.Cast):
        value = _value(node.operand, bits, where)
        return int(bool(value)) if isinstance(node.type, types.Bool) else value & _ones(node, where)
    if isinstance(node, expr.Unary):
        value = _value(node.operand, bits, where)
        return int(not value) if node.op.name == "LOGIC_NOT" else ~value & _ones(node, where)
    if isinstance(node, expr.Binary) and node.op.name in _BINARY:
        return int(_BINARY[node.op.name](_value(node.left, bits, where), _value(node.right, bits, where)))
    raise _unknown(node, where)


def _ones(node: expr.Expr, where: str) -> int:
    """All bits of an expression's type."""
    if isinstance(node.type, types.Bool):
        return 1
    if isinstance(node.type, types.Uint):
        return int(2**node.type.width - 1)
    raise _unknown(node, where)


def _unknown(node: expr.Expr, where: str) -> UnsupportedCircuitError:
    return UnsupportedCircuitError(
        f"{where} has the condition {node!r}, which nothing here evaluates; allowed are classical bits, registers and "
        "numbers, compared or joined by bitwise and logical operations"
    )


def refuse_conditions(circuit: QuantumCircuit, what: str) -> None:
    """Raise UnsupportedCircuitError for a circuit with conditions; `what` cannot deal with them."""
    if any(isinstance(instruction.operation, FLOW) for instruction in circuit.data):
        raise UnsupportedCircuitError(
            f"{what} does not go with circuits whose operations depend on outcomes (if_else, switch_case): use engine "
            "'ideal' or 'noisy'"
        )


def instructions(circuit: QuantumCircuit) -> Iterator[CircuitInstruction]:
    """Every instruction, those in the branches of `if_else` and `switch_case` included; these themselves are not."""
    for instruction in circuit.data:
        if isinstance(instruction.operation, FLOW):
            for block in instruction.operation.blocks:
                yield from instructions(block)
        else:
            yield instruction
