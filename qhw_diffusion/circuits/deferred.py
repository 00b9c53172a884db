"""The whole reverse process as one circuit without measurements on the way, and the preparation of its start.

By the principle of deferred measurement every step takes fresh ancillas (and label qubits) instead of measuring and
resetting those it has; all are read at the end. With P = Π (1 + Z_a)/2 over everything that is post-selected and Z^s
the 2ⁿ strings of Z on the data qubits,

    p(x | all kept) = 2⁻ⁿ Σ_s (−1)^(s·x) ⟨P Z^s⟩ / ⟨P⟩,    success probability = ⟨P⟩:

all that is read is diagonal, so one measurement basis and one circuit an image are enough for any Estimator.

A start is prepared by multiplexed RY and RZ (Möttönen et al., quant-ph/0407010): 2·(2ᵏ − 1) angles for k qubits, exact
up to a global phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import PauliList, SparsePauliOp

from qhw_diffusion.circuits.ansatz import check_integer, named_parameters
from qhw_diffusion.circuits.preparation import gray, preparation_size, prepare
from qhw_diffusion.circuits.reverse import ReverseCircuit
from qhw_diffusion.errors import InvalidInputError

# of Pauli strings in all observables together: 2^(data qubits + post-selected qubits)
MOST_STRINGS = 2**13


@dataclass(frozen=True, eq=False)
class DeferredCircuit:
    """A reverse process of T steps as one circuit.

    Qubits: the data, then labels and ancillas of step T, of step T − 1, …, of step 1, then those that purify the start.

    Attributes:
        circuit: the logical circuit, without measurements.
        inputs: angles of the preparation (`preparation_angles`), then of the label qubits (π for a bit that is 1; the
            same in every step), then the conditioning angles of step 1, 2, …, T, then, with `weights_as_inputs`, the
            weights.
        weights: trainable angles of step 1, 2, …, T, or of the one step they share; empty with `weights_as_inputs`.
        observables: P·Z^s, s = 0 … 2ⁿ − 1: qubit q of the data carries Z where bit q of s is 1.
        data: qubits of the data.
        selected: qubits that are post-selected on 0.
        purifying: qubits that are traced out with the start.
    """

    circuit: QuantumCircuit
    inputs: tuple[Parameter, ...]
    weights: tuple[Parameter, ...]
    observables: tuple[SparsePauliOp, ...]
    data: tuple[int, ...]
    selected: tuple[int, ...]
    purifying: tuple[int, ...]


def deferred_circuit(
    step: ReverseCircuit,
    n_steps: int,
    *,
    select: bool = True,
    shared_weights: bool = False,
    weights_as_inputs: bool = False,
    purified: bool = False,
) -> DeferredCircuit:
    """The whole reverse process t = T … 1, its start included, as one circuit for an Estimator.

    Args:
        step: from `reverse_circuit`.
        n_steps: T.
        select: post-select labels and ancillas of all steps on 0; False: they are traced out (P = 1).
        shared_weights: one set of weights for all steps.
        weights_as_inputs: the weights are inputs, so that every row has its own.
        purified: the start is a mixed state of the data, purified by as many further qubits.

    Raises:
        InvalidInputError: `n_steps` below 1, or so many post-selected qubits that the observables have more than
            `MOST_STRINGS` Pauli strings.
    """
    check_integer("n_steps", n_steps, 1, None)
    n, others = len(step.data), len(step.measured)
    steps_wide = n + n_steps * others
    if select and n + n_steps * others > MOST_STRINGS.bit_length() - 1:
        raise InvalidInputError(
            f"{n_steps} steps with {others} label qubits and ancillas each post-select on {n_steps * others} qubits, "
            f"so that the observables have 2^{n + n_steps * others} Pauli strings; an Estimator is given at most "
            f"{MOST_STRINGS:,}. Use fewer steps or ancillas, or conditioning='angles' in place of label qubits; "
            "or a Sampler, which reads counts and has no such limit (--primitive sampler)"
        )
    purifying = tuple(range(steps_wide, steps_wide + n)) if purified else ()
    prepared = (*step.data, *purifying)
    preparation = named_parameters("deferred", "p", 2 * (2 ** len(prepared) - 1))
    labels = named_parameters("deferred", "l", len(step.labels)) if step.labels else ()
    conditioning = _of_steps("c", step.n_conditioning, n_steps)
    weights = _of_steps("w", len(step.weights), 1 if shared_weights else n_steps)
    circuit = QuantumCircuit(steps_wide + len(purifying), name=f"{step.circuit.name}_deferred_x{n_steps}")
    prepare(circuit, prepared, preparation)
    for t in range(n_steps, 0, -1):
        first = n + (n_steps - t) * others
        angles = [*labels, *conditioning[t - 1], *weights[0 if shared_weights else t - 1]]
        bound = step.circuit.assign_parameters(dict(zip([*step.inputs, *step.weights], angles, strict=True)))
        circuit.compose(bound, [*step.data, *range(first, first + others)], inplace=True)
    selected = tuple(range(n, steps_wide)) if select else ()
    inputs = (*preparation, *labels, *_flat(conditioning))
    trained = _flat(weights)
    return DeferredCircuit(
        circuit=circuit,
        inputs=(*inputs, *trained) if weights_as_inputs else inputs,
        weights=() if weights_as_inputs else trained,
        observables=projected_strings(circuit.num_qubits, step.data, selected),
        data=step.data,
        selected=selected,
        purifying=purifying,
    )


def projected_strings(width: int, data: Sequence[int], selected: Sequence[int]) -> tuple[SparsePauliOp, ...]:
    """The 2ⁿ observables P·Z^s on `width` qubits: P = Π (1 + Z)/2 over `selected`, Z^s the strings on `data`."""
    subsets = np.arange(2 ** len(selected))
    z = np.zeros((len(subsets), width), dtype=bool)
    for bit, qubit in enumerate(selected):
        z[:, qubit] = subsets >> bit & 1
    observables = []
    for s in range(2 ** len(data)):
        string = z.copy()
        for bit, qubit in enumerate(data):
            string[:, qubit] = s >> bit & 1
        paulis = PauliList.from_symplectic(string, np.zeros_like(string))
        observables.append(SparsePauliOp(paulis, np.full(len(string), 1 / len(string))))
    return tuple(observables)


def preparation_circuit(n_qubits: int) -> tuple[QuantumCircuit, tuple[Parameter, ...]]:
    """A circuit that prepares every state of so many qubits, and its angles, those of `preparation_angles`."""
    angles = named_parameters("start", "p", preparation_size(n_qubits))
    circuit = QuantumCircuit(n_qubits, name="preparation")
    prepare(circuit, range(n_qubits), angles)
    return circuit, angles


def preparation_angles(states: np.ndarray) -> np.ndarray:
    """Angles with which the preparation of a `DeferredCircuit` makes these states, up to a global phase.

    Args:
        states: [B, 2ᵏ] complex amplitudes, normalised; qubit 0 is the least significant bit.

    Returns:
        [B, 2·(2ᵏ − 1)] radians, float64.
    """
    states = np.asarray(states, dtype=np.complex128)
    batch, k = len(states), states.shape[1].bit_length() - 1
    sizes, phases, angles = np.abs(states), np.angle(states), []
    for target in range(k - 1, -1, -1):
        shape = (batch, 2 ** (k - 1 - target), 2, 2**target)
        halves = np.sqrt((sizes.reshape(shape) ** 2).sum(-1))  # [B, controls, 2]
        means = phases.reshape(shape).mean(-1)
        turned = np.stack([2 * np.arctan2(halves[..., 1], halves[..., 0]), means[..., 1] - means[..., 0]])
        angles += [each @ _plain(shape[1]).T for each in turned]
    return np.concatenate(angles, axis=1)


def _plain(count: int) -> np.ndarray:
    """[count, count]: angles of the plain rotations from those of the multiplexed one, by value of the controls."""
    signs = [[(-1) ** (h & gray(j)).bit_count() for h in range(count)] for j in range(count)]
    return np.array(signs) / count


def _of_steps(letter: str, each: int, n_steps: int) -> list[tuple[Parameter, ...]]:
    """`each` parameters for every step."""
    if not each:
        return [()] * n_steps
    made = named_parameters("deferred", letter, each * n_steps)
    return [made[t * each : (t + 1) * each] for t in range(n_steps)]


def _flat(of_steps: Sequence[tuple[Parameter, ...]]) -> tuple[Parameter, ...]:
    return tuple(parameter for step in of_steps for parameter in step)
