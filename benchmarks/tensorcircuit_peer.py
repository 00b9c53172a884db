"""TensorCircuit-NG on JAX: jit over vmap, complex64; the circuit's gates enter as constant tensors.

Noisy, `DMCircuit2` (density matrix with one superoperator node per channel), on the same ISA circuit and device noise
as ours. Three things are done for it that a plain script would not have: the superoperators are made once outside the
traced function (`general_kraus` would recompute them from Kraus operators in every call, which costs a factor of 3),
RZ is one superoperator node instead of two gates, and fixed one-qubit operations in a row are one node. (Merging those
into the two-qubit nodes as well made it slower.)

The *rewritten* variant goes further and is not what the library does with a circuit: everything after the last input is
evolved backwards on the four observables, as our engine does. It shows how much of the difference is that idea.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorcircuit as tc

from benchmarks.denoiser import DenoiserProblem
from benchmarks.measure import Contender, Step
from benchmarks.problem import AffineRZ, DeviceCircuit, FixedGate, Posed, Problem

Gates = Sequence[AffineRZ | FixedGate]


def contenders() -> list[Contender]:
    return [
        Contender("TensorCircuit-NG, JAX jit", "ideal", _ideal, note="Circuit, vmap, state contracted once"),
        Contender(
            "TensorCircuit-NG, JAX jit",
            "noisy",
            lambda p: noisy(p.isa, p),
            note="DMCircuit2, ISA circuit, device noise, vmap",
        ),
        Contender(
            "TensorCircuit-NG, JAX jit, rewritten backwards",
            "noisy",
            _backwards,
            note="DMCircuit2; tail of the circuit evolved on the observables by hand",
        ),
    ]


def step_of(problem: Posed, evaluate: Callable[[Any, Any], Any]) -> Step:
    """evaluate: [inputs], [weights] → [M] for one sample."""

    def total(x: Any, w: Any) -> tuple[Any, Any]:
        values = jax.vmap(evaluate, in_axes=(0, None))(x, w)
        return values.sum(), values

    compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    x, w = jnp.asarray(problem.inputs), jnp.asarray(problem.weights)

    def step() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (_, values), (by_inputs, by_weights) = jax.block_until_ready(compiled(x, w))
        return np.asarray(values), np.asarray(by_inputs), np.asarray(by_weights)

    return step


def prepare() -> None:
    tc.set_backend("jax")
    tc.set_dtype("complex64")
    tc.set_contractor("greedy")


def signs(n: int, measured: Sequence[int]) -> np.ndarray:
    """[M, 2^n]: eigenvalue of each Z in the computational basis, qubit 0 first (TensorCircuit's order)."""
    return np.array([[1 - 2 * (s >> (n - 1 - q) & 1) for s in range(2**n)] for q in measured], dtype=np.float32)


def _ideal(problem: Problem) -> Step:
    prepare()
    z = signs(4, range(4))

    def evaluate(x: Any, w: Any) -> Any:
        circuit = tc.Circuit(4)
        for layer in range(2):
            if layer == 0 or problem.policy.reuploading:
                for j in range(6):
                    (circuit.ry if j < 4 else circuit.rz)(j % 4, theta=x[j])
            for q in range(4):
                first = 3 * (4 * layer + q)
                circuit.rx(q, theta=w[first])
                circuit.rz(q, theta=w[first + 1])
                circuit.ry(q, theta=w[first + 2])
            for q in range(4):
                circuit.cnot(q, (q + 1) % 4)
        return z @ jnp.abs(circuit.state()) ** 2

    return step_of(problem, evaluate)


def denoiser(problem: DenoiserProblem) -> Step:
    """`denoiser_circuit`, two layers (chain, inverse chain) a step of `lax.scan`; an odd layer stands after it."""
    prepare()
    n, depth = problem.block.n_qubits, problem.block.depth
    z = signs(n, range(n))

    def layer(state: Any, w: Any, inverse: bool) -> Any:
        circuit = tc.Circuit(n, inputs=state)
        for q in range(n):
            circuit.rx(q, theta=w[q, 0])
            circuit.rz(q, theta=w[q, 1])
            circuit.ry(q, theta=w[q, 2])
        for q in reversed(range(n - 1)) if inverse else range(n - 1):
            circuit.cnot(q, q + 1)
        return circuit.state()

    def evaluate(x: Any, w: Any) -> Any:
        circuit = tc.Circuit(n)
        for q in range(n):
            circuit.ry(q, theta=x[q])
        w = w.reshape(depth, n, 3)
        pairs = w[: depth // 2 * 2].reshape(depth // 2, 2, n, 3)

        def two_layers(state: Any, w: Any) -> tuple[Any, None]:
            return layer(layer(state, w[0], False), w[1], True), None

        state, _ = jax.lax.scan(two_layers, circuit.state(), pairs)
        if depth % 2:
            state = layer(state, w[-1], False)
        return z @ jnp.abs(state) ** 2

    return step_of(problem, evaluate)


def noisy(circuit: DeviceCircuit, problem: Posed) -> Step:
    prepare()
    (scale, shift), z = _readout(circuit)
    angles, nodes, n = _angles(circuit.gates), _nodes(circuit.gates), circuit.n_qubits

    def evaluate(x: Any, w: Any) -> Any:
        state = _run(tc.DMCircuit2(n), nodes, angles(x, w)).densitymatrix()
        return scale * (z @ jnp.real(jnp.diag(state))) + shift

    return step_of(problem, evaluate)


def _backwards(problem: Problem) -> Step:
    prepare()
    (scale, shift), z = _readout(problem.isa)
    head, tail = _split(problem.isa.gates)
    head_angles, head_nodes = _angles(head), _nodes(head)
    tail_angles, tail_nodes = _angles(tail), _nodes(tail, backwards=True)
    as_read = scale[:, None] * z + shift[:, None]
    observables = jnp.asarray([np.diag(row) for row in as_read], jnp.complex64)

    def evaluate(x: Any, w: Any) -> Any:
        turned = tail_angles(x, w)
        evolved = jax.vmap(lambda o: _run(tc.DMCircuit2(4, dminputs=o), tail_nodes, turned).densitymatrix())(
            observables
        )
        state = _run(tc.DMCircuit2(4), head_nodes, head_angles(x, w)).densitymatrix()
        return jnp.real(jnp.einsum("mij,ij->m", evolved, state))

    return step_of(problem, evaluate)


def _readout(circuit: DeviceCircuit) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """⟨Z⟩ as read: (1 − p10 − p01)·⟨Z⟩ + (p01 − p10)."""
    scale = np.array([1 - p10 - p01 for p10, p01 in circuit.readout], dtype=np.float32)
    shift = np.array([p01 - p10 for p10, p01 in circuit.readout], dtype=np.float32)
    return (scale, shift), signs(circuit.n_qubits, circuit.measured)


def _angles(gates: Gates) -> Callable[[Any, Any], Any]:
    turns = [gate for gate in gates if isinstance(gate, AffineRZ) and not gate.fixed]
    by_inputs = np.array([t.inputs for t in turns], dtype=np.float32)
    by_weights = np.array([t.weights for t in turns], dtype=np.float32)
    offsets = np.array([t.offset for t in turns], dtype=np.float32)
    if not by_inputs.any():
        return lambda x, w: by_weights @ w + offsets
    return lambda x, w: by_inputs @ x + by_weights @ w + offsets


def _nodes(gates: Gates, backwards: bool = False) -> list[tuple[tuple[int, ...], Any]]:
    """(qubits, constant tensor or the number of an angle) in the order of application."""
    nodes: list[tuple[tuple[int, ...], Any]] = []
    turns = 0
    for gate in gates:
        if isinstance(gate, AffineRZ) and not gate.fixed:
            nodes.append(((gate.qubit,), turns))
            turns += 1
            continue
        if isinstance(gate, AffineRZ):
            phase = np.exp(1j * gate.offset / 2)
            unitary = np.diag([1 / phase, phase])
            qubits, superop = (gate.qubit,), np.kron(unitary.conj(), unitary)
        else:
            qubits, superop = gate.qubits[::-1], gate.superop
        k = len(qubits)
        # stacked by columns: legs (columns, rows) of output, then of input → (rows, columns)
        order = [*range(k, 2 * k), *range(k)]
        tensor = superop.reshape([2] * (4 * k)).transpose([*order, *(2 * k + a for a in order)])
        nodes.append((tuple(qubits), tensor))
    nodes = _merge(nodes)
    if not backwards:
        return nodes
    return [
        (
            qubits,
            content
            if isinstance(content, int)
            else np.moveaxis(content, range(-2 * len(qubits), 0), range(2 * len(qubits))),
        )
        for qubits, content in reversed(nodes)
    ]


def _merge(nodes: list[tuple[tuple[int, ...], Any]]) -> list[tuple[tuple[int, ...], Any]]:
    """Fixed one-qubit nodes that follow each other on a qubit become one."""
    merged: list[tuple[tuple[int, ...], Any]] = []
    last: dict[int, int] = {}
    for qubits, content in nodes:
        before = last.get(qubits[0])
        if len(qubits) == 1 and not isinstance(content, int) and before is not None:
            earlier, constant = merged[before]
            if earlier == qubits and not isinstance(constant, int):
                merged[before] = qubits, np.tensordot(content, constant, axes=2)
                continue
        for q in qubits:
            last[q] = len(merged)
        merged.append((qubits, content))
    return merged


def _run(circuit: Any, nodes: list[tuple[tuple[int, ...], Any]], angles: Any) -> Any:
    for qubits, content in nodes:
        tensor = _rz(angles[content]) if isinstance(content, int) else jnp.asarray(content, jnp.complex64)
        _attach(circuit, tensor, qubits)
    return circuit


def _rz(angle: Any) -> Any:
    phase = jnp.exp(-1j * angle.astype(jnp.complex64))
    tensor = jnp.zeros((2, 2, 2, 2), jnp.complex64).at[0, 0, 0, 0].set(1).at[1, 1, 1, 1].set(1)
    return tensor.at[0, 1, 0, 1].set(phase).at[1, 0, 1, 0].set(jnp.conj(phase))


def _attach(circuit: Any, tensor: Any, qubits: tuple[int, ...]) -> None:
    """`DMCircuit2.apply_general_kraus` from the superoperator on (it starts from Kraus operators)."""
    k, n, node = len(qubits), circuit._nqubits, tc.gates.Gate(tensor)
    for i, q in enumerate(qubits):
        node.get_edge(i + 3 * k) ^ circuit._front[q + n]
        circuit._front[q + n] = node.get_edge(i + k)
        node.get_edge(i + 2 * k) ^ circuit._front[q]
        circuit._front[q] = node.get_edge(i)
    circuit._nodes.append(node)
    circuit.state_tensor = None


def _split(gates: Gates) -> tuple[Gates, Gates]:
    """What the inputs' rotations need before them, and the rest."""
    needed: set[int] = set()
    head: list[AffineRZ | FixedGate] = []
    tail: list[AffineRZ | FixedGate] = []
    for gate in reversed(gates):
        qubits = {gate.qubit} if isinstance(gate, AffineRZ) else set(gate.qubits)
        reads = isinstance(gate, AffineRZ) and bool(gate.inputs.any())
        if reads or needed & qubits:
            needed |= qubits
            head.append(gate)
        else:
            tail.append(gate)
    return head[::-1], tail[::-1]
