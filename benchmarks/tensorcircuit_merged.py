"""TensorCircuit-NG on JAX with the layers merged by hand: the fastest form of these circuits found for the peer.

The rotations of a layer become two Kronecker products (`Circuit.any` on each half of the qubits; one for four qubits),
made once for the whole batch, and its CNOTs one permutation of the state. Tried beside it and slower: one merged matrix
per qubit, with and without the permutation; the two products with the CNOTs as gates; the permutation as a matrix.
Plain JAX matrix products instead of `Circuit.any` took the same time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorcircuit as tc

from benchmarks.denoiser import DenoiserProblem
from benchmarks.measure import Contender, Step
from benchmarks.problem import Problem
from benchmarks.tensorcircuit_peer import prepare, signs, step_of

NAME = "TensorCircuit-NG, JAX jit, layers merged"


def contenders() -> list[Contender]:
    return [Contender(NAME, "ideal", policy, note="Circuit.any on a layer's rotations, its CNOTs as one permutation")]


def policy(problem: Problem) -> Step:
    prepare()
    ring = _cnots(4, [(q, (q + 1) % 4) for q in range(4)])
    z = signs(4, range(4))

    def evaluate(x: Any, w: Any) -> Any:
        w = w.reshape(2, 4, 3)
        circuit = tc.Circuit(4)
        for layer in range(2):
            if layer == 0 or problem.policy.reuploading:
                for j in range(6):
                    (circuit.ry if j < 4 else circuit.rz)(j % 4, theta=x[j])
            circuit = tc.Circuit(4, inputs=circuit.state())  # the encoding is contracted by itself
            circuit.any(0, 1, 2, 3, unitary=_kronecker(_rotations(w[layer])))
            circuit = tc.Circuit(4, inputs=circuit.state()[ring])
        return z @ jnp.abs(circuit.state()) ** 2

    return step_of(problem, evaluate)


def denoiser(problem: DenoiserProblem) -> Step:
    """Two layers (chain, inverse chain) a step of `lax.scan`; an odd layer stands after it."""
    prepare()
    n, depth = problem.block.n_qubits, problem.block.depth
    half, z = n // 2, signs(n, range(n))
    pairs = [(q, q + 1) for q in range(n - 1)]
    chain, inverse = _cnots(n, pairs), _cnots(n, reversed(pairs))

    def layer(state: Any, w: Any, cnots: np.ndarray) -> Any:
        turns = _rotations(w)
        circuit = tc.Circuit(n, inputs=state)
        circuit.any(*range(half), unitary=_kronecker(turns[:half]))
        circuit.any(*range(half, n), unitary=_kronecker(turns[half:]))
        return circuit.state()[cnots]

    def evaluate(x: Any, w: Any) -> Any:
        circuit = tc.Circuit(n)
        for q in range(n):
            circuit.ry(q, theta=x[q])
        w = w.reshape(depth, n, 3)

        def two_layers(state: Any, w: Any) -> tuple[Any, None]:
            return layer(layer(state, w[0], chain), w[1], inverse), None

        state, _ = jax.lax.scan(two_layers, circuit.state(), w[: depth // 2 * 2].reshape(depth // 2, 2, n, 3))
        if depth % 2:
            state = layer(state, w[-1], chain)
        return z @ jnp.abs(state) ** 2

    return step_of(problem, evaluate)


def _rotations(angles: Any) -> Any:
    """[n, 3] → [n, 2, 2]: RY(c)·RZ(b)·RX(a)."""
    a, b, c = (angles[:, k] / 2 for k in range(3))
    rx = _stack(jnp.cos(a), -1j * jnp.sin(a), -1j * jnp.sin(a), jnp.cos(a))
    rz = _stack(jnp.exp(-1j * b), jnp.zeros_like(b), jnp.zeros_like(b), jnp.exp(1j * b))
    ry = _stack(jnp.cos(c), -jnp.sin(c), jnp.sin(c), jnp.cos(c))
    return ry @ rz @ rx


def _stack(*entries: Any) -> Any:
    return jnp.stack(entries, axis=-1).astype(jnp.complex64).reshape(-1, 2, 2)


def _kronecker(matrices: Any) -> Any:
    product = matrices[0]
    for matrix in matrices[1:]:
        product = jnp.kron(product, matrix)
    return product


def _cnots(n: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """[2^n]: state[_cnots(…)] is the state after CNOTs on (control, target), the first pair first."""
    index = np.arange(2**n)
    source = index.copy()
    for control, target in pairs:
        source = source[np.where(index >> (n - 1 - control) & 1, index ^ 1 << (n - 1 - target), index)]
    return source
