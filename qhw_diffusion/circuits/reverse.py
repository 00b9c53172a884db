"""Circuits of one reverse diffusion step (data, labels, measured ancillas), and of all steps as a dynamic circuit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qiskit.circuit import ClassicalRegister, Parameter, QuantumCircuit, QuantumRegister
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.circuits.ansatz import (
    AnsatzLike,
    ansatz_label,
    append_layer,
    build_layer,
    check_ansatz,
    check_integer,
    is_own_ansatz,
    named_parameters,
    z_observables,
)
from qhw_diffusion.errors import InvalidInputError

MAX_QUBITS = 12


@dataclass(frozen=True, eq=False)
class ReverseCircuit:
    """One reverse step as a circuit, with its parameters in two groups.

    Qubits: the data first, then the labels, then the ancillas.

    Attributes:
        circuit: the logical circuit, without measurements and without state preparation.
        inputs: angles of the label qubits (π for a bit that is 1), then the conditioning angles, radians.
        weights: trainable angles (radians), layer by layer, within a layer in the ansatz's order.
        observables: ⟨Z_q⟩ of every qubit.
        data, labels, ancillas: the qubits of each kind.
        n_conditioning: number of conditioning angles: RY and RZ on every ancilla before every layer it is in, or 0.
    """

    circuit: QuantumCircuit
    inputs: tuple[Parameter, ...]
    weights: tuple[Parameter, ...]
    observables: tuple[SparsePauliOp, ...]
    data: tuple[int, ...]
    labels: tuple[int, ...]
    ancillas: tuple[int, ...]
    n_conditioning: int

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
    ansatz: AnsatzLike = "chain",
    label_qubits: int = 0,
    conditioning_angles: bool = False,
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
            (2311.15444); ``"cz"``: RX, RY on every qubit, then CZ on all neighbouring pairs (QuDDPM, 2310.05866); or a
            function of one's own, as ``module:name``, ``file.py:name`` or itself (see `circuits.ansatz`).
        label_qubits: qubits that start in the basis state of a label (given as inputs, π for a one). They are turned
            back at the end, so that a label that was left alone reads 0 and costs nothing to post-select on.
        conditioning_angles: give the ancillas two more angles, RY and RZ, before every layer they take part in, as
            inputs: this is how a step number or a label is told to the circuit without further qubits.

    Returns:
        The circuit; its number of weights is what the ansatz's layers have together.

    Raises:
        InvalidInputError: a number outside its range, more than 12 qubits together, conditioning angles without an
            ancilla, or an own ansatz that is not as `circuits.ansatz` says (the message names it).
        UnknownNameError: another ansatz.
    """
    check_integer("n_qubits", n_qubits, 1, MAX_QUBITS)
    check_integer("n_ancillas", n_ancillas, 0, MAX_QUBITS)
    check_integer("label_qubits", label_qubits, 0, MAX_QUBITS)
    check_integer("depth", depth, 1, None)
    check_integer("outer", outer, 0, None)
    check_ansatz(ansatz)
    width = n_qubits + label_qubits + n_ancillas
    if width > MAX_QUBITS:
        most = MAX_QUBITS - label_qubits - n_ancillas
        raise InvalidInputError(
            f"{width} qubits together (data, labels, ancillas); allowed: up to {MAX_QUBITS}, so with {label_qubits} "
            f"label qubits and {n_ancillas} ancillas n_qubits can be at most {most}"
        )
    if conditioning_angles and not n_ancillas:
        raise InvalidInputError(
            "conditioning angles turn ancillas: give n_ancillas=1 or more, or conditioning_angles=False"
        )
    body, everything = tuple(range(n_qubits + label_qubits)), tuple(range(width))
    ancillas = everything[len(body) :]
    places = [body] * outer + [everything] * depth + [body] * outer
    layers = [build_layer(ansatz, len(qubits), index) for index, qubits in enumerate(places)]
    layout = f"{outer}-{depth}-{outer}" if outer else f"{depth}l"
    kind = f"own_{ansatz_label(ansatz).rpartition(':')[2]}" if is_own_ansatz(ansatz) else ansatz
    name = f"reverse_{n_qubits}d{label_qubits}l{n_ancillas}a_{layout}_{kind}" + "_conditioned" * conditioning_angles
    n_weights = sum(layer.num_parameters for layer in layers)
    if not n_weights:
        raise InvalidInputError(
            f"ansatz {ansatz_label(ansatz)!r} has no weights: wanted are circuits with parameters, which are trained"
        )
    n_conditioning = 2 * n_ancillas * depth if conditioning_angles else 0
    n_inputs = label_qubits + n_conditioning
    inputs = named_parameters("reverse", "x", n_inputs) if n_inputs else ()
    weights = named_parameters("reverse", "w", n_weights)

    def assembled(layers: Sequence[QuantumCircuit]) -> QuantumCircuit:
        circuit, used, angles = QuantumCircuit(width, name=name), 0, iter(inputs[label_qubits:])
        for qubit, angle in zip(body[n_qubits:], inputs, strict=False):
            circuit.rx(angle, qubit)
        for qubits, layer in zip(places, layers, strict=True):
            if n_conditioning and qubits == everything:
                for qubit in ancillas:
                    circuit.ry(next(angles), qubit)
                    circuit.rz(next(angles), qubit)
            append_layer(circuit, layer, qubits, weights[used : used + layer.num_parameters])
            used += layer.num_parameters
        for qubit, angle in zip(body[n_qubits:], inputs, strict=False):
            circuit.rx(angle, qubit)  # a full turn: the bit is back, up to a sign
        return circuit

    circuit = assembled(layers)
    if is_own_ansatz(ansatz):
        again = [build_layer(ansatz, len(qubits), index) for index, qubits in enumerate(places)]
        if sum(layer.num_parameters for layer in again) != n_weights or assembled(again) != circuit:
            raise InvalidInputError(
                f"ansatz {ansatz_label(ansatz)!r} returns another circuit each time it is called, and trained weights "
                "would not fit it again: draw what is random in it from a fixed seed"
            )
    return step_of(circuit, inputs, weights, n_qubits, label_qubits)


def step_of(
    circuit: QuantumCircuit,
    inputs: Sequence[Parameter],
    weights: Sequence[Parameter],
    n_qubits: int,
    label_qubits: int,
) -> ReverseCircuit:
    """A `ReverseCircuit` from its parts: the first `n_qubits` are data, the next `label_qubits` labels."""
    everything = tuple(range(circuit.num_qubits))
    body = n_qubits + label_qubits
    return ReverseCircuit(
        circuit=circuit,
        inputs=tuple(inputs),
        weights=tuple(weights),
        observables=z_observables(len(everything)),
        data=everything[:n_qubits],
        labels=everything[n_qubits:body],
        ancillas=everything[body:],
        n_conditioning=len(inputs) - label_qubits,
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
        prior: circuit on the data qubits that prepares x_T, for instance a random one; what it has beyond these are
            further qubits, with which a mixed x_T is purified. Its parameters stay those of the whole circuit.
        feed_forward: whether angles depend on the outcome.
        read: measure the data at the end, into the register ``x``.

    Raises:
        InvalidInputError: `n_steps` below 1, or a prior of another width.
    """
    check_integer("n_steps", n_steps, 1, None)
    n, others = len(step.data), step.measured
    further = 0 if prior is None else prior.num_qubits - n
    if further < 0:
        raise InvalidInputError(f"prior has {n + further} qubits; the step has {n} data qubits")
    registers = [QuantumRegister(n, "data")]
    if step.labels:
        registers.append(QuantumRegister(len(step.labels), "label"))
    if step.ancillas:
        registers.append(QuantumRegister(len(step.ancillas), "ancilla"))
    width = sum(map(len, registers))
    if further:
        registers.append(QuantumRegister(further, "purifying"))
    circuit = QuantumCircuit(*registers, name=f"{step.circuit.name}_x{n_steps}")
    if prior is not None:
        circuit.compose(prior, [*step.data, *range(width, width + further)], inplace=True)
    before: ClassicalRegister | None = None
    for t in range(n_steps, 0, -1):
        if feed_forward and before is not None:
            for outcome in range(2 ** len(others)):
                with circuit.if_test((before, outcome)):
                    circuit.compose(_bound(step, angles(t, outcome)), range(width), inplace=True)
        else:
            circuit.compose(_bound(step, angles(t, 0)), range(width), inplace=True)
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
