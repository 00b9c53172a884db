"""Ansätze of the denoiser: the layers that its circuits repeat, the package's and a user's own.

An ansatz is a function that returns one layer:

    def ansatz(n_qubits: int, layer: int) -> QuantumCircuit

`n_qubits` is the number of qubits the layer acts on, in the order data, labels, ancillas. `layer` counts the layers of
one reverse step from 0. A step (`reverse_circuit`) is made of `outer` layers on data and labels, `depth` layers on
data, labels and ancillas, and `outer` layers on data and labels again; with ``depth=1, outer=0`` the function returns
the whole step. All parameters of the returned circuit are trainable weights, in the order of its
``circuit.parameters``; names do not matter, every layer gets weights of its own. The circuit is unitary: no
measurement, reset or classical bit. Its gates may be any that Qiskit compiles, with angles that are affine in the
weights. Called twice with the same numbers, it returns the same circuit.

What else a step needs is put around the layers by the package: RX on the label qubits at the beginning and the end,
RY and RZ by the conditioning angles on every ancilla before each of the `depth` layers, and the measurement of the
ancillas after the step.

An ansatz is named in `ReverseConfig.ansatz`: ``"chain"``, ``"cz"``, ``"module:name"`` or ``"file.py:name"``; from
Python the function itself can be given. Every number of parameters is counted in the circuit.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qiskit.circuit import ControlFlowOp, Gate, Measure, Parameter, ParameterVector, QuantumCircuit, Reset
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.extensions import extension_text, is_extension, load_extension, raised_text

Ansatz = Callable[[int, int], QuantumCircuit]
if TYPE_CHECKING:
    AnsatzLike = str | Ansatz
else:
    AnsatzLike = str  # what a command line that is generated from the annotations can read


def chain_layer(n_qubits: int, layer: int) -> QuantumCircuit:
    """RX, RZ, RY on every qubit, then the CNOT chain 0→1→…→n−1, in every second layer its inverse (2311.15444).

    Args:
        n_qubits: qubits the layer acts on.
        layer: its number in the step, from 0.

    Returns:
        A circuit with 3·n_qubits parameters, ordered by qubit, then RX, RZ, RY.
    """
    weights = ParameterVector("w", 3 * n_qubits)
    circuit = QuantumCircuit(n_qubits)
    rotate_all(circuit, weights)
    pairs = chain_pairs(n_qubits)
    for control, goal in pairs if layer % 2 == 0 else reversed(pairs):
        circuit.cx(control, goal)
    return circuit


def cz_layer(n_qubits: int, layer: int) -> QuantumCircuit:
    """RX, RY on every qubit, then CZ on all neighbouring pairs (QuDDPM, arXiv 2310.05866); all layers are equal.

    Args:
        n_qubits: qubits the layer acts on.
        layer: its number in the step, from 0.

    Returns:
        A circuit with 2·n_qubits parameters, ordered by qubit, then RX, RY.
    """
    weights = ParameterVector("w", 2 * n_qubits)
    circuit = QuantumCircuit(n_qubits)
    for qubit in range(n_qubits):
        circuit.rx(weights[2 * qubit], qubit)
        circuit.ry(weights[2 * qubit + 1], qubit)
    for first, second in chain_pairs(n_qubits):
        circuit.cz(first, second)
    return circuit


LAYERS: dict[str, Ansatz] = {"chain": chain_layer, "cz": cz_layer}
ANSATZES = tuple(LAYERS)


def check_ansatz(ansatz: AnsatzLike) -> None:
    """Check that this is a built-in name, has the form of a user's own, or is a function. Nothing is imported.

    Raises:
        UnknownNameError: it is not.
    """
    if not (callable(ansatz) or ansatz in ANSATZES or is_extension(ansatz)):
        raise UnknownNameError.of("ansatz", str(ansatz), ANSATZES, own=True)


def is_own_ansatz(ansatz: AnsatzLike) -> bool:
    """Whether this is an ansatz of a user's own."""
    return callable(ansatz) or ansatz not in ANSATZES


def ansatz_of(ansatz: AnsatzLike) -> Ansatz:
    """The function of an ansatz.

    Args:
        ansatz: a built-in name, ``module:name``, ``file.py:name``, or the function itself.

    Raises:
        UnknownNameError: no such name.
        InvalidInputError: no such module, file or function.
    """
    check_ansatz(ansatz)
    if callable(ansatz):
        return ansatz
    if ansatz in LAYERS:
        return LAYERS[ansatz]
    found = load_extension(ansatz, what="ansatz")
    if not callable(found):
        raise InvalidInputError(
            f"ansatz {ansatz!r} is a {type(found).__name__}; wanted: a function of (n_qubits, layer) that returns a "
            "QuantumCircuit"
        )
    function: Ansatz = found
    return function


def ansatz_label(ansatz: AnsatzLike) -> str:
    """What messages and circuit names call an ansatz."""
    if isinstance(ansatz, str):
        return ansatz
    return f"{getattr(ansatz, '__module__', '?')}:{getattr(ansatz, '__qualname__', type(ansatz).__name__)}"


def ansatz_text(ansatz: AnsatzLike) -> str:
    """The text by which a saved configuration finds an ansatz again: a name stays, a function becomes ``module:name``.

    A function of the script that is running becomes ``file.py:name``, with the file's path from the current folder.

    Raises:
        InvalidInputError: a function that has no such name (a lambda, a nested function, one typed in a notebook).
    """
    if isinstance(ansatz, str):
        return ansatz
    if (text := extension_text(ansatz)) is not None:
        return text
    raise InvalidInputError(
        f"ansatz {ansatz_label(ansatz)} cannot be saved: it has no name by which it is found again. Define it at the "
        "top of a module or a file, and give it as module:name or file.py:name, or as that function"
    )


def build_layer(ansatz: AnsatzLike, n_qubits: int, layer: int) -> QuantumCircuit:
    """One layer of an ansatz, checked.

    Raises:
        InvalidInputError: the function raises, or returns something else than a unitary QuantumCircuit on `n_qubits`
            qubits. The message names the ansatz.
    """
    function, called = ansatz_of(ansatz), f"ansatz {ansatz_label(ansatz)!r} for n_qubits={n_qubits}, layer={layer}"
    wanted = f"wanted: a unitary QuantumCircuit on {n_qubits} qubits whose parameters are the weights"
    try:
        circuit = function(n_qubits, layer)
    except Exception as error:
        raise InvalidInputError(f"{called} fails: {raised_text(error)}; {wanted}") from error
    if not isinstance(circuit, QuantumCircuit):
        raise InvalidInputError(f"{called} returns a {type(circuit).__name__}; {wanted}")
    if circuit.num_qubits != n_qubits:
        raise InvalidInputError(f"{called} returns a circuit on {circuit.num_qubits} qubits; {wanted}")
    if found := not_unitary(circuit):
        raise InvalidInputError(
            f"{called} returns a circuit with {found}; {wanted} (the package measures the ancillas after the step)"
        )
    return circuit


def append_layer(circuit: QuantumCircuit, layer: QuantumCircuit, qubits: Sequence[int], weights: Sequence[Any]) -> None:
    """Append a layer on these qubits, its parameters replaced by `weights` (as many, in the order of `parameters`)."""
    named = layer.assign_parameters(dict(zip(layer.parameters, weights, strict=True)))
    circuit.compose(named, list(qubits), inplace=True)


def named_parameters(kind: str, letter: str, count: int) -> tuple[Parameter, ...]:
    """`count` parameters ``x0``, ``x1``, … of the circuits of one kind (``"policy"``, ``"denoiser"``).

    Parameters are told apart by uuid. Deriving it from kind and name makes two builds of one circuit equal, so that a
    circuit read back from a file can be compared with, and bound like, a fresh one.
    """
    width = len(str(count - 1))  # equal width, so that Qiskit's order by name is the order of the tuple
    names = [f"{letter}{index:0{width}d}" for index in range(count)]
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, f"qhw-diffusion/{kind}-circuit")
    return tuple(Parameter(name, uuid=uuid.uuid5(namespace, name)) for name in names)


def rotate_all(circuit: QuantumCircuit, weights: Sequence[Parameter]) -> None:
    """RX, RZ, RY on every qubit, with `weights` (3·n) ordered by qubit, then RX, RZ, RY."""
    for qubit in range(circuit.num_qubits):
        first = 3 * qubit
        circuit.rx(weights[first], qubit)
        circuit.rz(weights[first + 1], qubit)
        circuit.ry(weights[first + 2], qubit)


def chain_pairs(n_qubits: int) -> list[tuple[int, int]]:
    """(control, target) of the CNOT chain 0→1, 1→2, …, n−2→n−1."""
    return [(qubit, qubit + 1) for qubit in range(n_qubits - 1)]


def z_observables(n_qubits: int) -> tuple[SparsePauliOp, ...]:
    """⟨Z_q⟩ for q = 0 … n_qubits−1."""
    return tuple(SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], n_qubits) for q in range(n_qubits))


def check_integer(name: str, value: int, low: int, high: int | None, because: str = "") -> None:
    """Check that `value` is a whole number from `low` to `high` (None: no upper limit).

    Raises:
        InvalidInputError: it is not; the message names it and ends in `because`.
    """
    allowed = f"{low} to {high}" if high is not None else f"{low} or more"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise InvalidInputError(f"{name} is {value!r}; allowed: whole numbers from {allowed}{because}")


def not_unitary(circuit: QuantumCircuit) -> str:
    """What of a circuit is not unitary, in words; empty if nothing."""
    if circuit.num_clbits:
        return f"{circuit.num_clbits} classical bits"
    for instruction in circuit.data:
        operation = instruction.operation
        if isinstance(operation, (Measure, Reset, ControlFlowOp)) or operation.name == "initialize":
            return f"the operation {operation.name!r}"
        # a Gate is unitary by its kind; a circuit wrapped as an Instruction may hold anything
        inner = None if isinstance(operation, Gate) else getattr(operation, "definition", None)
        if inner is not None and (found := not_unitary(inner)):
            return f"{found} in {operation.name!r}"
    return ""
