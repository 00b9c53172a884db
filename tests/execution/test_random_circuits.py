"""Circuits, observables and angles drawn by Hypothesis: engines against Qiskit's states and density matrices."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import DensityMatrix, Operator, Pauli, SparsePauliOp, Statevector

from qhw_diffusion.devices import Device
from qhw_diffusion.execution import CompiledCircuit, QuantumLayer, compile_circuit

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)
ONE_QUBIT, TWO_QUBIT = ("h", "s", "sdg", "x", "y", "z", "sx", "t"), ("cx", "cz", "swap", "cy", "ecr")
ANGLES = st.floats(-7, 7, allow_nan=False, width=32)
COEFFICIENTS = st.sampled_from((-2.0, -1.0, 0.0, 0.5, 1.0))


@functools.cache
def device(name: str) -> Device:
    return Device.load(name)


@st.composite
def problems(draw: st.DrawFn) -> tuple[QuantumCircuit, list[Parameter], list[SparsePauliOp], np.ndarray]:
    """A circuit of one to three qubits, its input and weight, Pauli sums, and three rows of angles."""
    n = draw(st.integers(1, 3))
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(n)
    for _ in range(draw(st.integers(0, 9))):
        kind = draw(st.sampled_from(("rotation", "one", "two") if n > 1 else ("rotation", "one")))
        places = draw(st.permutations(range(n)))
        if kind == "rotation":
            angle = draw(ANGLES) + draw(COEFFICIENTS) * x + draw(COEFFICIENTS) * w
            getattr(circuit, draw(st.sampled_from(("rx", "ry", "rz"))))(angle, places[0])
        elif kind == "one":
            getattr(circuit, draw(st.sampled_from(ONE_QUBIT)))(places[0])
        else:
            getattr(circuit, draw(st.sampled_from(TWO_QUBIT)))(*places[:2])
    circuit.ry(x, 0)  # both are in it, wherever they are drawn
    circuit.rz(w, n - 1)
    labels = st.text("IXYZ", min_size=n, max_size=n)
    sums = st.lists(st.tuples(labels, st.floats(-2, 2, width=32)), min_size=1, max_size=3)
    observables = [SparsePauliOp.from_list(each) for each in draw(st.lists(sums, min_size=1, max_size=2))]
    rows = np.array(draw(st.lists(st.tuples(ANGLES, ANGLES), min_size=1, max_size=2)))
    return circuit, [x, w], observables, rows


def evaluated(compiled: CompiledCircuit, rows: np.ndarray, engine: Any) -> np.ndarray:
    """[B, M]; each row has weights of its own."""
    with torch.no_grad():
        values = []
        for x, w in rows:
            layer = QuantumLayer(compiled, engine, dtype=torch.float64)
            layer.weight.copy_(torch.tensor([w]))
            values.append(layer(torch.tensor([[x]], dtype=torch.float64))[0].numpy())
    return np.array(values)


def misread(label: str, errors: list[tuple[float, float]]) -> np.ndarray:
    """A Pauli string as it is read out: each outcome ±1 flipped by the qubit's readout errors."""
    total = np.ones((1, 1))
    for letter, (p10, p01) in zip(reversed(label), errors, strict=True):
        pauli = Pauli(letter).to_matrix()
        read = pauli if letter == "I" else (1 - p10 - p01) * pauli + (p01 - p10) * np.eye(2)
        total = np.kron(read, total)
    return total


@FEW
@given(problem=problems(), level=st.sampled_from((0, 1, 3)), seed=st.integers(0, 99))
def test_without_noise_it_is_the_state_of_the_circuit_as_written(problem: Any, level: int, seed: int) -> None:
    circuit, (x, w), observables, rows = problem
    compiled = compile_circuit(
        circuit, device("fake_manila"), inputs=[x], weights=[w], observables=observables, seed=seed,
        optimization_level=level,
    )  # fmt: skip
    states = [Statevector(circuit.assign_parameters({x: a, w: b})) for a, b in rows]
    wanted = [[state.expectation_value(o).real for o in observables] for state in states]
    np.testing.assert_allclose(evaluated(compiled, rows, "ideal"), wanted, atol=1e-9)


def test_with_noise_it_is_every_gate_followed_by_its_error() -> None:
    """Density matrices by Qiskit alone, on the circuit and the layout that were transpiled, then readout errors."""
    moved: list[float] = []

    @settings(FEW, max_examples=8)
    @given(problem=problems(), seed=st.integers(0, 99))
    def compare(problem: Any, seed: int) -> None:
        made, rows, found, wanted = noisy_both_ways(problem, seed)
        np.testing.assert_allclose(found, wanted, atol=1e-7)
        moved.append(float(np.abs(found - evaluated(made, rows, "ideal")).max()))

    compare()
    assert max(moved) > 1e-2, "noise does nothing to any of them: they show nothing"


def noisy_both_ways(problem: Any, seed: int) -> tuple[CompiledCircuit, np.ndarray, np.ndarray, np.ndarray]:
    """The compiled circuit, its rows, the engine's values and those of Qiskit's density matrices."""
    circuit, (x, w), observables, rows = problem
    made = compile_circuit(
        circuit, device("fake_manila"), inputs=[x], weights=[w], observables=observables, seed=seed,
        optimization_level=1,
    )  # fmt: skip
    qubits = list(made.physical_qubits)
    errors = [made.device.readout_error(q) for q in qubits]
    wanted = []
    for a, b in rows:
        isa = made.isa.assign_parameters({x: a, w: b})
        rho = DensityMatrix.from_int(0, 2 ** len(qubits))
        for instruction in isa.data:
            places = [isa.find_bit(q).index for q in instruction.qubits]
            if instruction.operation.name == "barrier" or not set(places) <= set(qubits):
                continue
            here = [qubits.index(q) for q in places]
            rho = rho.evolve(Operator(instruction.operation), here)
            error = made.device.gate_error(instruction.operation.name, places)
            rho = rho if error is None else rho.evolve(error, here)
        values = []
        for observable in made.observables:
            value = 0.0
            for label, coefficient in observable.to_list():
                kept = "".join(reversed([label[::-1][q] for q in qubits]))
                value += (coefficient * np.trace(misread(kept, errors) @ rho.data)).real
            values.append(value)
        wanted.append(values)
    return made, rows, evaluated(made, rows, "noisy"), np.array(wanted)
