"""Ansätze of the guidance policy: the paper's (angle encoding, rotations and CNOTs, ⟨Z⟩ on every qubit), and own ones.

An own ansatz is any function that returns a circuit with inputs and weights; see `policy_ansatz`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.circuits.ansatz import (
    chain_pairs,
    check_integer,
    named_parameters,
    not_unitary,
    rotate_all,
    z_observables,
)
from qhw_diffusion.circuits.observables import AdaptiveObservables
from qhw_diffusion.errors import InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.extensions import is_extension, load_extension, raised_text

ENTANGLEMENTS = ("ring", "chain", "none")
MIN_QUBITS, MAX_QUBITS = 2, 8
PAPER_ANSATZ = "paper"
_NUMBERED = re.compile(r"([xw])\[?(\d+)\]?")


@dataclass(frozen=True, eq=False)
class PolicyCircuit:
    """A parameterised circuit with its parameters in two groups and its observables.

    Attributes:
        circuit: the logical circuit, without measurements.
        inputs: one parameter per feature (radians), in the features' order.
        weights: trainable angles (radians), ordered by layer, then qubit, then RX, RZ, RY.
        observables: ⟨Z_q⟩ for q = 0 … n_qubits−1, an own ansatz's, or adaptive ones.
        n_qubits: number of qubits.
        depth: number of layers; None where the ansatz has no such setting.
        n_features: number of inputs.
        entanglement: ``"ring"``, ``"chain"`` or ``"none"``; None where the ansatz has no such setting.
        reuploading: whether the encoding comes before every layer; None where the ansatz has no such setting.
        ansatz: name of the function it was built with, ``"paper"`` for `policy_circuit`.
    """

    circuit: QuantumCircuit
    inputs: tuple[Parameter, ...]
    weights: tuple[Parameter, ...]
    observables: tuple[SparsePauliOp, ...] | AdaptiveObservables
    n_qubits: int
    depth: int | None
    n_features: int
    entanglement: str | None
    reuploading: bool | None
    ansatz: str = PAPER_ANSATZ


def policy_circuit(
    n_qubits: int = 4,
    depth: int = 2,
    n_features: int = 6,
    entanglement: str = "ring",
    reuploading: bool = False,
) -> PolicyCircuit:
    """The circuit of the guidance policy (arXiv 2509.14163, with all features encoded).

    Encoding: RY(x_q) on qubit q for the first `n_qubits` features, then RZ(x_{n+q}) on qubit q for those beyond; of two
    qubits, which would take no more than four features so, RY and RZ once more for the fifth to the eighth. Then
    `depth` layers of RX, RZ, RY on every qubit followed by CNOTs: q → q+1 (``"chain"``), closed by n−1 → 0 (``"ring"``;
    on two qubits a ring is the chain, since a second CNOT would only undo part of the first), or no CNOT
    (``"none"``). With `reuploading` the encoding comes before every layer.

    RY is the last rotation on purpose: a closing RZ commutes with everything measured after the last layer of CNOTs, so
    `n_qubits` of the weights would have no effect at all. Input scaling is not part of the circuit, since a product of
    two parameters is not affine; whoever feeds the circuit scales.

    Args:
        n_qubits: 2 to 8.
        depth: number of layers, ≥ 1.
        n_features: 1 to 2·n_qubits, to 8 of two qubits.
        entanglement: ``"ring"``, ``"chain"`` or ``"none"``.
        reuploading: repeat the encoding before every layer.

    Returns:
        The circuit with `n_features` inputs, 3·n_qubits·depth weights and `n_qubits` observables.

    Raises:
        InvalidInputError: a number outside its range.
        UnknownNameError: another entanglement.
    """
    check_integer("n_qubits", n_qubits, MIN_QUBITS, MAX_QUBITS)
    check_integer("depth", depth, 1, None)
    angles = 4 if n_qubits == 2 else 2
    check_integer(
        "n_features", n_features, 1, angles * n_qubits, because=f" for {n_qubits} qubits ({angles} angles each)"
    )
    if entanglement not in ENTANGLEMENTS:
        raise UnknownNameError.of("entanglement", str(entanglement), ENTANGLEMENTS)
    if not isinstance(reuploading, bool):
        raise InvalidInputError(f"reuploading is {reuploading!r}; allowed: True, False")

    inputs = named_parameters("policy", "x", n_features)
    weights = named_parameters("policy", "w", 3 * n_qubits * depth)
    pairs = _pairs(n_qubits, entanglement)
    kind = f"{entanglement}_reuploading" if reuploading else entanglement
    circuit = QuantumCircuit(n_qubits, name=f"policy_{n_qubits}q_{depth}l_{kind}")
    for layer in range(depth):
        if layer == 0 or reuploading:
            _encode(circuit, inputs)
        rotate_all(circuit, weights[3 * n_qubits * layer : 3 * n_qubits * (layer + 1)])
        for control, goal in pairs:
            circuit.cx(control, goal)
    observables = z_observables(n_qubits)
    return PolicyCircuit(circuit, inputs, weights, observables, n_qubits, depth, n_features, entanglement, reuploading)


def check_policy_ansatz(text: str) -> None:
    """Refuse a text that names no ansatz of the policy.

    Raises:
        UnknownNameError: neither a built-in ansatz nor ``module:name`` or ``file.py:name``.
    """
    if text not in POLICY_ANSATZES and not is_extension(text):
        raise UnknownNameError.of("ansatz", text, POLICY_ANSATZES, own=True)


def policy_ansatz(
    ansatz: str | Callable[..., Any] = PAPER_ANSATZ,
    *,
    n_features: int = 6,
    n_qubits: int = 4,
    depth: int = 2,
    entanglement: str = "ring",
    reuploading: bool = False,
) -> PolicyCircuit:
    """The policy circuit of an ansatz, built in or a user's own.

    An own ansatz is a function that is called with those of the settings below that it has parameters for, by keyword.
    It returns one of

    - a `QuantumCircuit` (without measurements) whose inputs are the parameters ``x0, x1, …`` or ``x[0], x[1], …`` (a
      ``ParameterVector("x", n)``) and whose weights are ``w0, w1, …`` or ``w[0], w[1], …``, ordered by their numbers,
    - ``(circuit, inputs, weights)`` or ``(circuit, inputs, weights, observables)`` with parameters of any names;
      `AdaptiveObservables` too,
    - a `PolicyCircuit`.

    Where no observables are given they are ⟨Z⟩ of every qubit.

    Args:
        ansatz: a function, or the name of one: ``"paper"``, ``module:name`` or ``file.py:name``.
        n_features: number of inputs the circuit must have.
        n_qubits: number of qubits.
        depth: number of layers.
        entanglement: ``"ring"``, ``"chain"`` or ``"none"``.
        reuploading: repeat the encoding before every layer.

    Returns:
        The circuit with its inputs, weights and observables.

    Raises:
        UnknownNameError: no ansatz of this name.
        InvalidInputError: an ansatz that raises, returns something else or a circuit with measurements, has no inputs,
            no weights, another number of inputs than `n_features` or further parameters, or a setting that it has no
            parameter for.
    """
    settings = {
        "n_features": n_features,
        "n_qubits": n_qubits,
        "depth": depth,
        "entanglement": entanglement,
        "reuploading": reuploading,
    }
    if isinstance(ansatz, str):
        check_policy_ansatz(ansatz)
        name, function = ansatz, POLICY_ANSATZES.get(ansatz) or load_extension(ansatz, what="ansatz")
    else:
        name, function = getattr(ansatz, "__name__", type(ansatz).__name__), ansatz
    if not callable(function):
        raise InvalidInputError(f"ansatz {name!r} is a {type(function).__name__}; wanted: a function")
    taken = _taken(name, function, settings)
    try:
        result = function(**taken)
    except QhwError:
        raise
    except Exception as error:
        raise InvalidInputError(f"ansatz {name!r} raises {raised_text(error)}") from error
    circuit, inputs, weights, observables = _parts_of(name, result)
    if reason := not_unitary(circuit):
        raise InvalidInputError(f"ansatz {name!r} returned a circuit with {reason}; wanted: a unitary circuit")
    for what, found in (
        ("inputs (x0, x1, … or a ParameterVector x)", inputs),
        ("weights (w0, w1, … or w[0], …)", weights),
    ):
        if not found:
            raise InvalidInputError(f"ansatz {name!r}: the circuit has no {what}")
    both = [*inputs, *weights]
    if len(set(both)) != len(both) or set(both) != set(circuit.parameters):
        names = ", ".join(sorted(p.name for p in set(circuit.parameters) ^ set(both))) or "one of them twice"
        raise InvalidInputError(
            f"ansatz {name!r}: inputs and weights together must be the parameters of the circuit, each once; "
            f"wrong: {names}"
        )
    if len(inputs) != n_features:
        raise InvalidInputError(
            f"ansatz {name!r}: the circuit has {len(inputs)} inputs, wanted: {n_features}, one for every entry of the "
            "state"
        )
    return PolicyCircuit(
        circuit=circuit,
        inputs=inputs,
        weights=weights,
        observables=observables,
        n_qubits=circuit.num_qubits,
        depth=taken.get("depth"),
        n_features=n_features,
        entanglement=taken.get("entanglement"),
        reuploading=taken.get("reuploading"),
        ansatz=name,
    )


def _taken(name: str, function: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings a function has parameters for; those that it lacks must have their default values."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return settings
    defaults = {p.name: p.default for p in inspect.signature(policy_circuit).parameters.values()}
    for key, value in settings.items():
        if key != "n_features" and key not in parameters and value != defaults[key]:
            raise InvalidInputError(
                f"ansatz {name!r} has no parameter {key}, so {key} = {value!r} has no effect; leave it at "
                f"{defaults[key]!r}"
            )
    return {key: value for key, value in settings.items() if key in parameters}


def _parts_of(
    name: str, result: Any
) -> tuple[
    QuantumCircuit, tuple[Parameter, ...], tuple[Parameter, ...], tuple[SparsePauliOp, ...] | AdaptiveObservables
]:
    """Circuit, inputs, weights and observables of what an own ansatz returned."""
    if isinstance(result, PolicyCircuit):
        return result.circuit, result.inputs, result.weights, result.observables
    if isinstance(result, QuantumCircuit):
        numbered: dict[str, dict[int, Parameter]] = {"x": {}, "w": {}}
        for parameter in result.parameters:
            match = _NUMBERED.fullmatch(parameter.name)
            if match is None:
                raise InvalidInputError(
                    f"ansatz {name!r}: parameter {parameter.name!r} is neither an input (x0, x1, … or x[0], …) nor a "
                    "weight (w0, w1, … or w[0], …); rename it, or return (circuit, inputs, weights)"
                )
            numbered[match[1]][int(match[2])] = parameter
        inputs, weights = (tuple(found[k] for k in sorted(found)) for found in numbered.values())
        return result, inputs, weights, z_observables(result.num_qubits)
    if isinstance(result, tuple) and len(result) in (3, 4) and isinstance(result[0], QuantumCircuit):
        circuit, inputs, weights = result[0], tuple(result[1]), tuple(result[2])
        given = result[3] if len(result) == 4 else z_observables(circuit.num_qubits)
        observables = given if isinstance(given, AdaptiveObservables) else tuple(given)
        return circuit, inputs, weights, observables
    raise InvalidInputError(
        f"ansatz {name!r} returned a {type(result).__name__}; wanted: a QuantumCircuit with inputs x0, x1, … and "
        "weights w0, w1, …, or (circuit, inputs, weights)"
    )


POLICY_ANSATZES: dict[str, Callable[..., Any]] = {PAPER_ANSATZ: policy_circuit}
"""The built-in ansätze of the policy by name: functions as `policy_ansatz` takes a user's own."""


def _encode(circuit: QuantumCircuit, inputs: tuple[Parameter, ...]) -> None:
    for index, parameter in enumerate(inputs):
        turn, qubit = divmod(index, circuit.num_qubits)
        (circuit.rz if turn % 2 else circuit.ry)(parameter, qubit)


def _pairs(n_qubits: int, entanglement: str) -> list[tuple[int, int]]:
    if entanglement == "none":
        return []
    chain = chain_pairs(n_qubits)
    return [*chain, (n_qubits - 1, 0)] if entanglement == "ring" and n_qubits > 2 else chain
