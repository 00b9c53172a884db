"""Changing compiled circuits: what is kept with them, their schedules, and folding, G → G G† G, which scales the noise.

Folding is done on the circuit that is run, after all transpiling: a transpiler would cancel G† G again, at optimisation
level 1 already. Parameters stay, so a folded circuit takes the same rows of parameters.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction
from qiskit.circuit.library import RZGate, SXGate
from qiskit.transpiler import generate_preset_pass_manager

from qhw_diffusion.errors import InvalidInputError, UnknownNameError, UnsupportedCircuitError
from qhw_diffusion.execution import CompiledCircuit
from qhw_diffusion.execution.conditions import refuse_conditions

Folding = Literal["local", "global"]
FOLDINGS: tuple[str, ...] = get_args(Folding)
# Two-qubit gates that are their own inverse (ECR is one: ECR² = 1)
SELF_INVERSE = frozenset(["cx", "cz", "ecr", "cy", "ch", "swap"])
_ONE_QUBIT = frozenset(["id", "x", "y", "z", "h"])
_NEGATED = frozenset(["rz", "p", "rx", "ry"])
# Z √X Z = √X†; RZ costs nothing, and devices have no sxdg
_SX_INVERSE = (RZGate(math.pi), SXGate(), RZGate(math.pi))
_OTHERS = frozenset(["s", "sdg", "t", "tdg", "sxdg"])


_derived: WeakKeyDictionary[CompiledCircuit, dict[Any, Any]] = WeakKeyDictionary()


def kept(compiled: CompiledCircuit) -> dict[Any, Any]:
    """What strategies have made of a compiled circuit so far; forgotten with it.

    Simulators are kept with circuits, so a strategy must hand out the same circuit every time.
    """
    return _derived.setdefault(compiled, {})


# Entry of the metadata of circuits with a decoupling sequence
DECOUPLED = "qhw_decoupled"


def with_isa(compiled: CompiledCircuit, isa: QuantumCircuit) -> CompiledCircuit:
    """`compiled` with another ISA circuit (without delays); a scheduled one is scheduled again, since times change."""
    if compiled.scheduled:
        manager = generate_preset_pass_manager(
            optimization_level=0,
            target=compiled.device.target,
            seed_transpiler=compiled.seed,
            scheduling_method="alap",
        )
        isa = manager.scheduling.run(isa)
        isa._layout = compiled.isa.layout  # the qubits are where they were, which the manager has forgotten
    return replace(compiled, isa=isa)


def without_delays(compiled: CompiledCircuit) -> QuantumCircuit:
    """The ISA circuit without the delays of its schedule, to be changed and given to `with_isa`.

    Raises:
        InvalidInputError: delays that are no schedule's (written by hand, or a decoupling sequence's).
        UnsupportedCircuitError: operations that depend on outcomes.
    """
    isa = compiled.isa
    refuse_conditions(isa, "changing the circuit (folding, twirling, decoupling)")
    if "delay" not in isa.count_ops():
        return isa
    if DECOUPLED in (isa.metadata or {}):
        raise InvalidInputError(
            "a circuit with a decoupling sequence cannot be changed any more; list decoupling (DynamicalDecoupling) "
            "before the other strategies: the last listed expands first"
        )
    if not compiled.scheduled or "delay" in compiled.logical.count_ops():
        raise InvalidInputError(
            "the circuit has delays written by hand, whose meaning folding or twirling would change; remove them, or "
            "compile with scheduled=True instead"
        )
    bare = isa.copy_empty_like()
    for instruction in isa.data:
        if instruction.operation.name != "delay":
            bare.append(instruction, copy=False)
    return bare


def folded(compiled: CompiledCircuit, scale_factor: float, folding: Folding = "local") -> tuple[CompiledCircuit, float]:
    """The circuit with its two-qubit gates multiplied by about `scale_factor`, and the factor reached.

    With n two-qubit gates, F = round(n (λ − 1) / 2) pairs G† G are added, so the factor reached is 1 + 2F/n; odd whole
    factors are reached exactly. ``"local"``: every gate is followed by ⌊F/n⌋ pairs of its own, and F mod n gates,
    spread evenly over the circuit, by one more. ``"global"``: U → U (U† U)^⌊F/n⌋, then the end of the circuit that
    holds F mod n of the gates is undone and done again; the gates on one qubit are multiplied as well.

    Local folding follows Giurgica-Tiron et al. (arXiv:2005.10921, sec. II) with two-qubit gates only, which carry most
    of the error; global folding is theirs, with the partial fold taken by two-qubit gates.

    A scheduled circuit is scheduled again: qubits wait longer, so waiting is scaled along, about as the gates are.

    Args:
        compiled: any compiled circuit; kept with it, so the same object comes back every time.
        scale_factor: λ ≥ 1.
        folding: ``"local"`` or ``"global"``.

    Raises:
        InvalidInputError: a factor below 1, no two-qubit gate to fold, or delays written by hand.
        UnknownNameError: another folding.
        UnsupportedCircuitError: a two-qubit gate that is not its own inverse (rzz: −θ is outside what the device
            takes); with ``"global"`` also measurements, resets and gates on one qubit whose inverse is not known.
    """
    if not (isinstance(scale_factor, (int, float)) and math.isfinite(scale_factor) and scale_factor >= 1):
        raise InvalidInputError(f"scale factor {scale_factor!r}; allowed: numbers from 1, for example 3")
    if folding not in FOLDINGS:
        raise UnknownNameError.of("folding", str(folding), FOLDINGS)
    gates = sum(_is_two_qubit(instruction) for instruction in compiled.isa.data)
    if not gates:
        raise InvalidInputError(
            "the compiled circuit has no two-qubit gates, so there is no noise for folding to scale"
        )
    pairs = round(gates * (scale_factor - 1) / 2)
    if not pairs:
        return compiled, 1.0
    made = kept(compiled)
    key = ("folded", folding, pairs)
    if key not in made:
        fold = fold_local if folding == "local" else fold_global
        made[key] = with_isa(compiled, fold(without_delays(compiled), pairs))
    return made[key], 1 + 2 * pairs / gates


def fold_local(circuit: QuantumCircuit, pairs: int) -> QuantumCircuit:
    """`circuit` with `pairs` pairs G† G added after its two-qubit gates, evenly (see `folded`)."""
    gates = sum(_is_two_qubit(instruction) for instruction in circuit.data)
    ends = (np.arange(1, gates + 1) * (pairs % gates)) // gates
    counts = pairs // gates + np.diff(ends, prepend=0)
    result, index = circuit.copy_empty_like(), 0
    for instruction in circuit.data:
        result.append(instruction, copy=False)
        if _is_two_qubit(instruction):
            if instruction.operation.name not in SELF_INVERSE:
                raise _unfoldable(instruction)
            for _ in range(2 * int(counts[index])):
                result.append(instruction, copy=False)
            index += 1
    return result


def fold_global(circuit: QuantumCircuit, pairs: int) -> QuantumCircuit:
    """`circuit` with its whole, and then its end, undone and done again, so that `pairs` pairs are added."""
    operations = [i for i in circuit.data if i.operation.name != "barrier"]
    inverted = [_inverse(instruction) for instruction in operations]
    places = [at for at, instruction in enumerate(operations) if _is_two_qubit(instruction)]
    result = circuit.copy()

    def fold_from(start: int) -> None:
        for inverse in reversed(inverted[start:]):
            for instruction in inverse:
                result.append(instruction, copy=False)
        for instruction in operations[start:]:
            result.append(instruction, copy=False)

    for _ in range(pairs // len(places)):
        fold_from(0)
    if extra := pairs % len(places):
        fold_from(places[-extra])
    return result


def _is_two_qubit(instruction: CircuitInstruction) -> bool:
    return len(instruction.qubits) == 2 and instruction.operation.name != "barrier"


def _unfoldable(instruction: CircuitInstruction) -> UnsupportedCircuitError:
    name = instruction.operation.name
    hint = (
        "compile for the device without fractional gates"
        if name == "rzz"
        else "local folding leaves what acts on one qubit as it is"
        if len(instruction.qubits) == 1
        else f"of those on two qubits only {', '.join(sorted(SELF_INVERSE))} can"
    )
    return UnsupportedCircuitError(f"{name!r} cannot be folded: it has no inverse among the device's gates; {hint}")


def _inverse(instruction: CircuitInstruction) -> list[CircuitInstruction]:
    """The inverse in gates of the same basis, up to a global phase, in time order."""
    operation, name = instruction.operation, instruction.operation.name
    if name in SELF_INVERSE or name in _ONE_QUBIT:
        return [instruction]
    if name in _NEGATED:
        return [instruction.replace(operation=type(operation)(-operation.params[0]))]
    if name == "sx":
        return [instruction.replace(operation=gate) for gate in _SX_INVERSE]
    if name in _OTHERS:
        return [instruction.replace(operation=operation.inverse())]
    raise _unfoldable(instruction)
