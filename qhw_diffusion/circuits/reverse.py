"""Circuits of a reverse diffusion step: data qubits, label qubits, ancillas that are measured, and a chain of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qiskit.circuit import ClassicalRegister, Parameter, QuantumCircuit, QuantumRegister
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.circuits.parts import chain_pairs, check_integer, named_parameters, z_observables
from qhw_diffusion.errors import InvalidInputError, UnknownNameError

ANSATZES = ("chain", "cz")
MAX_QUBITS = 12


@dataclass(frozen=True, eq=False)
class ReverseCircuit:
    """One reverse step as a circuit, with its parameters in two groups.

    Qubits: the data first, then the labels, then the ancillas.

    Attributes:
        circuit: the logical circuit, without measurements and without state preparation.
        inputs: angles of the label qubits (π for a bit that is 1), then the context angles.
        weights: trainable angles (radians), in the order of the gates.
        observables: ⟨Z_q⟩ of every qubit.
        data, labels, ancillas: the qubits of each kind.
        n_context: number of context angles: RY and RZ before every layer on every ancilla, or 0.
    """

    circuit: QuantumCircuit
    inputs: tuple[Parameter, ...]
    weights: tuple[Parameter, ...]
    observables: tuple[SparsePauliOp, ...]
    data: tuple[int, ...]
    labels: tuple[int, ...]
    ancillas: tuple[int, ...]
    n_context: int

    @property
    def measured(self) -> tuple[int, ...]:
        """Every qubit that is not data: what is read, or reset, at the end of the step."""
        return (*self.labels, *self.ancillas)


def reverse_circuit(
    n_qubits: int,
    n_ancillas: int = 1,
    depth: int = 8,
    *,
    outer: int = 0,
    ansatz: str = "chain",
    label_qubits: int = 0,
    context: bool = False,
) -> ReverseCircuit:
    """One step of the reverse process as a unitary on data and ancillas.

    With `outer` > 0 it is the reverse bottleneck n → n+1 → n of arXiv 2311.15444: `outer` layers on the data and label
    qubits, `depth` layers that also reach the ancillas, and `outer` layers without them again.

    Args:
        n_qubits: data qubits, 1 to 12.
        n_ancillas: qubits that start in |0⟩ and are measured; 0 gives a unitary step.
        depth: layers that reach the ancillas, ≥ 1.
        outer: layers before and after that do not, ≥ 0.
        ansatz: ``"chain"``: RX, RZ, RY on every qubit, then the CNOT chain that alternates with its inverse
            (2311.15444); ``"cz"``: RX, RY on every qubit, then CZ on all neighbouring pairs (QuDDPM, 2310.05866).
        label_qubits: qubits that start in the basis state of a label (given as inputs, π for a one). They are turned
            back at the end, so that a label that was left alone reads 0 and costs nothing to post-select on.
        context: give the ancillas two more angles, RY and RZ, before every layer they take part in, as inputs: this is
            how a step number or a label is told to the circuit without further qubits.

    Returns:
        The circuit with 3 (chain) or 2 (cz) weights for every qubit in every layer.

    Raises:
        InvalidInputError: a number outside its range, more than 12 qubits together, or context without an ancilla.
        UnknownNameError: another ansatz.
    """
    check_integer("n_qubits", n_qubits, 1, MAX_QUBITS)
    check_integer("n_ancillas", n_ancillas, 0, MAX_QUBITS)
    check_integer("label_qubits", label_qubits, 0, MAX_QUBITS)
    check_integer("depth", depth, 1, None)
    check_integer("outer", outer, 0, None)
    if ansatz not in ANSATZES:
        raise UnknownNameError.of("ansatz", str(ansatz), ANSATZES)
    width = n_qubits + label_qubits + n_ancillas
    if width > MAX_QUBITS:
        raise InvalidInputError(f"{width} qubits together (data, labels, ancillas); allowed: up to {MAX_QUBITS}")
    if context and not n_ancillas:
        raise InvalidInputError("context angles turn ancillas: give n_ancillas=1 or more, or context=False")

    body, everything = tuple(range(n_qubits + label_qubits)), tuple(range(width))
    labels, ancillas = everything[n_qubits : n_qubits + label_qubits], everything[n_qubits + label_qubits :]
    layers = [body] * outer + [everything] * depth + [body] * outer
    per_qubit = 3 if ansatz == "chain" else 2
    n_context = 2 * n_ancillas * depth if context else 0
    inputs = named_parameters("reverse", "x", label_qubits + n_context) if label_qubits + n_context else ()
    weights = named_parameters("reverse", "w", per_qubit * sum(map(len, layers)))
    left, angles = iter(weights), iter(inputs[label_qubits:])
    layout = f"{outer}-{depth}-{outer}" if outer else f"{depth}l"
    qubits_of_each = f"{n_qubits}d{label_qubits}l{n_ancillas}a"
    circuit = QuantumCircuit(width, name=f"reverse_{qubits_of_each}_{layout}_{ansatz}" + "_context" * context)
    for qubit, angle in zip(labels, inputs, strict=False):
        circuit.rx(angle, qubit)
    for index, qubits in enumerate(layers):
        if n_context and qubits == everything:
            for qubit in ancillas:
                circuit.ry(next(angles), qubit)
                circuit.rz(next(angles), qubit)
        pairs = chain_pairs(len(qubits))
        for qubit in qubits:
            circuit.rx(next(left), qubit)
            if ansatz == "chain":
                circuit.rz(next(left), qubit)
            circuit.ry(next(left), qubit)
        if ansatz == "cz":
            for first, second in pairs:
                circuit.cz(first, second)
        else:
            for control, goal in pairs if index % 2 == 0 else reversed(pairs):
                circuit.cx(control, goal)
    for qubit, angle in zip(labels, inputs, strict=False):
        circuit.rx(angle, qubit)  # a full turn: the bit is back, up to a sign
    return ReverseCircuit(
        circuit, inputs, weights, z_observables(width), tuple(range(n_qubits)), labels, ancillas, n_context
    )


def dynamic_circuit(
    step: ReverseCircuit,
    n_steps: int,
    angles: Callable[[int, int], Sequence[float]],
    *,
    prior: QuantumCircuit | None = None,
    feed_forward: bool = False,
    read: bool = True,
) -> QuantumCircuit:
    """The whole reverse process t = T … 1 as one dynamic circuit that hardware can run.

    After every step the ancillas are measured into a register of their own (``m{t}``) and reset. With feed-forward the
    outcome of a step chooses the next step's angles by `if_else`.

    Args:
        step: from `reverse_circuit`.
        n_steps: T.
        angles: (t, outcome of step t+1) → inputs and weights of step t, in this order; the outcome is 0 where there is
            none or without feed-forward.
        prior: circuit on the data qubits that prepares x_T, for instance a random one.
        feed_forward: whether angles depend on the outcome.
        read: measure the data at the end, into the register ``x``.

    Raises:
        InvalidInputError: `n_steps` below 1, or a prior of another width.
    """
    check_integer("n_steps", n_steps, 1, None)
    n, others = len(step.data), step.measured
    if prior is not None and prior.num_qubits != n:
        raise InvalidInputError(f"prior has {prior.num_qubits} qubits; the step has {n} data qubits")
    registers = [QuantumRegister(n, "data")]
    if step.labels:
        registers.append(QuantumRegister(len(step.labels), "label"))
    if step.ancillas:
        registers.append(QuantumRegister(len(step.ancillas), "ancilla"))
    circuit = QuantumCircuit(*registers, name=f"{step.circuit.name}_x{n_steps}")
    if prior is not None:
        circuit.compose(prior, list(step.data), inplace=True)
    before: ClassicalRegister | None = None
    for t in range(n_steps, 0, -1):
        if feed_forward and before is not None:
            for outcome in range(2 ** len(others)):
                with circuit.if_test((before, outcome)):
                    circuit.compose(_bound(step, angles(t, outcome)), range(circuit.num_qubits), inplace=True)
        else:
            circuit.compose(_bound(step, angles(t, 0)), range(circuit.num_qubits), inplace=True)
        if others:
            before = ClassicalRegister(len(others), f"m{t}")
            circuit.add_register(before)
            circuit.measure(list(others), list(before))
            for qubit in others:
                circuit.reset(qubit)
    if read:
        result = ClassicalRegister(n, "x")
        circuit.add_register(result)
        circuit.measure(list(step.data), list(result))
    return circuit


def _bound(step: ReverseCircuit, angles: Sequence[float]) -> QuantumCircuit:
    parameters = [*step.inputs, *step.weights]
    if len(angles) != len(parameters):
        raise InvalidInputError(f"{len(angles)} angles given; the step has {len(parameters)} inputs and weights")
    return step.circuit.assign_parameters(dict(zip(parameters, map(float, angles), strict=True)))
