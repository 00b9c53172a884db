"""Conditions on measured bits, against branches enumerated here with qiskit.quantum_info, closed forms, and Aer."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import ClassicalRegister as Register
from qiskit.circuit import Parameter
from qiskit.circuit.classical import expr
from qiskit.quantum_info import DensityMatrix, Operator, SparsePauliOp

import qhw_diffusion as qhw
from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution import ParameterShift, Primitive, aer_estimator
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.primitive import on_used_qubits

X, W = Parameter("x"), Parameter("w")
Values = dict[int, int]
Unnormalised = list[tuple[Values, DensityMatrix]]


def paulis(*labels: str) -> list[SparsePauliOp]:
    """Qiskit's order: qubit 0 last."""
    return [SparsePauliOp(label) for label in labels]


# -- the reference: a list of (record, part of the density matrix), operation by operation -----------------------------


def reference(compiled: CompiledCircuit, angles: dict[Parameter, float], noisy: bool) -> list[float]:
    """Expectation values of the ISA circuit on the qubits in use; every outcome read is a branch of its own."""
    circuit, observables = on_used_qubits(compiled)
    circuit = circuit.assign_parameters({p: angles[p] for p in circuit.parameters})
    physical = compiled.physical_qubits
    device = compiled.device

    def run(block: QuantumCircuit, qubits: list[int], bits: list[int], parts: Unnormalised) -> Unnormalised:
        for instruction in block.data:
            gate = instruction.operation
            on = [qubits[block.find_bit(q).index] for q in instruction.qubits]
            at = [bits[block.find_bit(c).index] for c in instruction.clbits]
            if gate.name == "if_else":
                bit, wanted = gate.condition
                read = [bit] if not isinstance(bit, Register) else list(bit)
                places = [bits[block.find_bit(b).index] for b in read]
                taken = [p for p in parts if sum(p[0].get(c, 0) << k for k, c in enumerate(places)) == int(wanted)]
                others = [p for p in parts if not any(p is t for t in taken)]
                parts = run(gate.blocks[0], on, at, taken)
                parts += run(gate.blocks[1], on, at, others) if len(gate.blocks) > 1 else others
            elif gate.name == "measure":
                p10, p01 = device.readout_error(physical[on[0]]) if noisy else (0.0, 0.0)
                split: Unnormalised = []
                for record, rho in parts:
                    for read, (zero, one) in enumerate([(1 - p10, p01), (p10, 1 - p01)]):
                        part = zero * projected(rho, on[0], 0) + one * projected(rho, on[0], 1)
                        split.append(({**record, at[0]: read}, DensityMatrix(part)))
                parts = split
            elif gate.name != "barrier":
                error = device.gate_error(gate.name, tuple(physical[q] for q in on)) if noisy else None
                evolved = []
                for record, rho in parts:
                    rho = rho.evolve(gate if gate.name == "reset" else Operator(gate), on)
                    evolved.append((record, rho if error is None else rho.evolve(error, on)))
                parts = evolved
        return parts

    start = DensityMatrix.from_label("0" * circuit.num_qubits)
    parts = run(circuit, list(range(circuit.num_qubits)), list(range(circuit.num_clbits)), [({}, start)])
    total = DensityMatrix(sum(rho.data for _, rho in parts))
    assert math.isclose(total.trace().real, 1, abs_tol=1e-9)
    return [
        sum(
            coefficient.real * total.expectation_value(read_out(label, compiled, noisy)).real
            for label, coefficient in observable.to_list()
        )
        for observable in observables
    ]


def projected(rho: DensityMatrix, qubit: int, outcome: int) -> np.ndarray:
    projector = Operator(np.diag([1 - outcome, outcome]).astype(complex))
    return np.asarray(rho.evolve(projector, [qubit]).data)


def read_out(label: str, compiled: CompiledCircuit, noisy: bool) -> Operator:
    """A Pauli string with what readout errors make of its factors."""
    matrix = np.ones((1, 1))
    for factor, qubit in zip(label, reversed(compiled.physical_qubits), strict=True):
        p10, p01 = compiled.device.readout_error(qubit) if noisy and factor != "I" else (0.0, 0.0)
        one = Operator.from_label(factor).data
        matrix = np.kron(matrix, (1 - p10 - p01) * one + (p01 - p10) * np.eye(2))
    return Operator(matrix)


# -- circuits ----------------------------------------------------------------------------------------------------------


def on_a_bit() -> QuantumCircuit:
    """Both branches have gates on pairs and parameters."""
    circuit = QuantumCircuit(3, 1)
    circuit.ry(X, 0)
    circuit.cx(0, 1)
    circuit.measure(0, 0)
    with circuit.if_test((0, 1)) as otherwise:
        circuit.rx(W, 2)
        circuit.cx(2, 1)
    with otherwise:
        circuit.ry(X - 2 * W, 2)
        circuit.cx(1, 2)
    circuit.ry(W, 1)
    return circuit


def on_a_register() -> QuantumCircuit:
    """One of two bits is measured again before it is read again; a reset, and a condition within a condition."""
    circuit = QuantumCircuit(QuantumRegister(3), ClassicalRegister(1, "other"), ClassicalRegister(2, "pair"))
    circuit.ry(X, 0)
    circuit.ry(W, 1)
    circuit.cx(0, 2)
    circuit.measure([0, 1], [1, 2])
    with circuit.if_test((circuit.cregs[1], 2)) as otherwise:
        circuit.ry(W + 0.3, 2)
        circuit.reset(0)
    with otherwise:
        circuit.rx(X, 1)
        with circuit.if_test((circuit.clbits[1], 1)):
            circuit.h(2)
    circuit.h(0)
    circuit.measure(0, 2)
    with circuit.if_test((circuit.cregs[1], 3)):
        circuit.ry(2 * W, 2)
        circuit.cx(2, 0)
    return circuit


def ghz_dynamic(n: int) -> QuantumCircuit:
    """As in MQT Bench (arXiv:2308.13065, figure 5), without its last measurements."""
    circuit = QuantumCircuit(n, n // 2)
    circuit.h(range(0, n, 2))
    for i in range(0, n, 2):
        if i > 0:
            circuit.cx(i, i - 1)
        if i + 1 < n - 1:
            circuit.cx(i, i + 1)
    for bit, qubit in enumerate(range(1, n, 2)):
        circuit.measure(qubit, bit)
        with circuit.if_test((bit, 1)):
            circuit.x(qubit)
    condition = expr.lift(circuit.clbits[0])
    for i in range(2, n, 2):
        with circuit.if_test(expr.equal(condition, True)):
            circuit.x(i)
        if i // 2 < n // 2:
            condition = expr.bit_xor(condition, circuit.clbits[i // 2])
    for i in range(0, n - 1, 2):
        circuit.cx(i, i + 1)
    return circuit


def dynamic_qft(n: int) -> QuantumCircuit:
    """As in MQT Bench: the semiclassical Fourier transform (Griffiths and Niu), of a product state."""
    circuit = QuantumCircuit(n, n)
    for q in range(n):
        circuit.ry(0.3 + 0.5 * q, q)
    for qubit in reversed(range(n)):
        for source in reversed(range(qubit + 1, n)):
            with circuit.if_test((n - source - 1, 1)):
                circuit.p(np.pi * 2.0 ** (qubit - source), qubit)
        circuit.h(qubit)
        if qubit:  # nothing reads the last one: the expectation values measure that qubit
            circuit.measure(qubit, n - qubit - 1)
    return circuit


def iqpe(bits: int, theta: int) -> QuantumCircuit:
    """As in MQT Bench: one qubit after the other of the phase theta/2^bits, exactly."""
    circuit, phase = QuantumCircuit(2, bits), Fraction(theta, 2**bits)
    circuit.x(1)
    for i in range(bits, 0, -1):
        circuit.h(0)
        circuit.cp(2 * np.pi * float(phase * 2 ** (i - 1) % 1), 1, 0)
        for read in range(i, bits):
            with circuit.if_test((read, 1)):
                circuit.rz(-2 * np.pi / 2 ** (read - i + 2), 0)
        circuit.h(0)
        circuit.measure(0, i - 1)
        with circuit.if_test((i - 1, 1)):
            circuit.x(0)
    return circuit


def compiled_of(circuit: QuantumCircuit, device: str, observables: list[SparsePauliOp]) -> CompiledCircuit:
    given = circuit.parameters
    return qhw.compile_circuit(
        circuit,
        qhw.Device.load(device),
        inputs=[p for p in (X,) if p in given],
        weights=[p for p in (W,) if p in given],
        observables=observables,
    )


# -- values and derivatives --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [on_a_bit, on_a_register])
@pytest.mark.parametrize(("device", "engine"), [("ideal", "ideal"), ("fake_manila", "ideal"), ("fake_manila", "noisy")])
def test_agrees_with_enumerated_branches(make: Callable[[], QuantumCircuit], device: str, engine: str) -> None:
    compiled = compiled_of(make(), device, paulis("ZII", "IXI", "XZX", "IIZ"))
    layer = qhw.QuantumLayer(compiled, engine, dtype=torch.float64)
    x = torch.tensor([[0.4], [2.1], [-1.3]], dtype=torch.float64)
    expected = [
        reference(compiled, {X: float(row), W: float(layer.weight.detach())}, engine == "noisy") for row in x[:, 0]
    ]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-9)
    # rows with weights of their own, and single precision
    np.testing.assert_allclose(layer.estimate(x).values.numpy(), expected, atol=1e-9)
    single = qhw.QuantumLayer(compiled, engine)
    np.testing.assert_allclose(single(x.float()).detach().numpy(), expected, atol=1e-5)


def test_readout_errors_choose_the_branch() -> None:
    """A qubit in |1⟩ that is misread with p01 takes the other branch so often, whatever else is exact."""
    circuit = QuantumCircuit(2, 1)
    circuit.x(0)
    circuit.measure(0, 0)
    with circuit.if_test((0, 1)):
        circuit.x(1)
    device = qhw.Device.load("fake_manila")
    compiled = compiled_of(circuit, "fake_manila", paulis("ZI"))
    value = float(qhw.QuantumLayer(compiled, "noisy", dtype=torch.float64)(torch.zeros(1, 0)).detach())
    measured, other = (compiled.isa.layout.initial_index_layout()[q] for q in (0, 1))
    (_, p01), last = device.readout_error(measured), device.readout_error(other)
    expected = (1 - sum(last)) * (2 * p01 - 1) + last[1] - last[0]
    assert p01 > 0.01
    assert abs(value - expected) < 0.004  # errors of the gates are smaller
    without = (1 - sum(last)) * -1 + last[1] - last[0]  # a record without errors
    assert abs(value - without) > p01


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
def test_derivatives(engine: str) -> None:
    compiled = compiled_of(on_a_register(), "fake_manila", paulis("ZII", "IXZ"))
    layer = qhw.QuantumLayer(compiled, engine, dtype=torch.float64)

    def values(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return layer.engine.expectation(compiled, x, w)

    x = torch.tensor([[0.4], [2.1]], dtype=torch.float64, requires_grad=True)
    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(values, (x, weight))
    assert torch.autograd.gradgradcheck(values, (x, weight))
    exact = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])
    shifted = qhw.QuantumLayer(compiled, engine, gradient=ParameterShift(), dtype=torch.float64)
    for one, other in zip(exact, torch.autograd.grad(shifted(x).square().sum(), [x, shifted.weight]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_chunks_and_recomputing_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compiled_of(on_a_bit(), "fake_manila", paulis("ZII", "IXI"))
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None].requires_grad_()

    def run() -> tuple[torch.Tensor, ...]:
        compiled.simulators.clear()
        layer = qhw.QuantumLayer(compiled, "noisy", dtype=torch.float64)
        values = layer(x)
        return values.detach(), *torch.autograd.grad(values.square().sum(), [x, layer.weight])

    whole = run()
    monkeypatch.setattr("qhw_diffusion.execution.simulator.CHUNK_COLUMNS", 2)
    monkeypatch.setattr("qhw_diffusion.execution.simulator.CHUNK_BYTES", 1)
    monkeypatch.setattr("qhw_diffusion.execution.simulator.WORK", 1)
    monkeypatch.setattr("qhw_diffusion.execution.simulator.KEEP_BYTES", 1)
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_sampled_outcomes_average_to_the_exact_value() -> None:
    """Drawn trajectories take the branch of their outcome as read: another code than the enumeration."""
    compiled = compiled_of(on_a_bit(), "fake_manila", paulis("ZII", "IXI", "XZI"))
    layer = qhw.QuantumLayer(compiled, "noisy", dtype=torch.float64)
    x = torch.full((20_000, 1), 0.7, dtype=torch.float64)
    drawn = layer.sample(x, torch.Generator().manual_seed(0)).values
    error = drawn.std(0) / math.sqrt(len(x))
    assert bool(((drawn.mean(0) - layer(x[:1])[0]).abs() < 4 * error + 1e-9).all())


@pytest.mark.slow
def test_agrees_with_aer() -> None:
    """Shots of Aer, which runs the branches itself, with the device's noise model."""
    compiled = compiled_of(on_a_register(), "fake_manila", paulis("ZII", "IIZ"))
    exact = qhw.QuantumLayer(compiled, "noisy", dtype=torch.float64)
    aer = exact.with_engine(Primitive(aer_estimator(compiled, seed=3), precision=0.02, reduced=True))
    x = torch.tensor([[0.4], [2.1]], dtype=torch.float64)
    estimate = aer.estimate(x)
    assert bool(((estimate.values - exact(x)).abs() < 4 * estimate.std_errors).all())


# -- circuits of MQT Bench ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 5])
def test_ghz_dynamic(n: int) -> None:
    """Its stabilisers: X…X and Z on neighbours are 1."""
    labels = ["X" * n, *("I" * k + "ZZ" + "I" * (n - k - 2) for k in range(n - 1)), "Z" + "I" * (n - 1)]
    compiled = compiled_of(ghz_dynamic(n), "ideal", paulis(*labels))
    values = qhw.QuantumLayer(compiled, dtype=torch.float64)(torch.zeros(1, 0))[0]
    np.testing.assert_allclose(values.detach().numpy(), [1] * n + [0], atol=1e-9)


@pytest.mark.parametrize(("device", "engine"), [("ideal", "ideal"), ("fake_manila", "noisy")])
def test_dynamic_qft(device: str, engine: str) -> None:
    """Without noise the distribution is that of the Fourier transform; with noise that of enumerated branches."""
    n = 4
    labels = ["".join("Z" if s >> q & 1 else "I" for q in reversed(range(n))) for s in range(2**n)]
    compiled = compiled_of(dynamic_qft(n), device, paulis(*labels[1:]))
    values = qhw.QuantumLayer(compiled, engine, dtype=torch.float64)(torch.zeros(1, 0))[0].detach().numpy()
    if engine == "noisy":
        np.testing.assert_allclose(values, reference(compiled, {}, True), atol=1e-9)
        return
    amplitudes = np.ones(1)
    for q in range(n):
        amplitudes = np.kron([np.cos(0.15 + 0.25 * q), np.sin(0.15 + 0.25 * q)], amplitudes)
    transformed = np.abs(np.fft.ifft(amplitudes, norm="ortho")) ** 2
    probabilities = qhw.execution.outcome_distribution(np.concatenate([[1.0], values]))
    reversed_bits = [int(f"{k:0{n}b}"[::-1], 2) for k in range(2**n)]  # qubit q holds bit n−1−q of the transform
    np.testing.assert_allclose(probabilities, transformed[reversed_bits], atol=1e-9)


def test_iqpe() -> None:
    """Every outcome is a bit of the phase, in every run."""
    compiled = compiled_of(iqpe(4, 0b1011), "ideal", paulis("ZI", "IZ"))
    layer = qhw.QuantumLayer(compiled, dtype=torch.float64)
    np.testing.assert_allclose(layer(torch.zeros(1, 0)).detach().numpy(), [[-1, 1]], atol=1e-9)
    drawn = layer.sample(torch.zeros(50, 0), torch.Generator().manual_seed(0))
    read = {clbit: set(drawn.outcomes[:, k].tolist()) for k, clbit in enumerate(drawn.clbits)}
    assert read == {0: {1}, 1: {0}, 2: {1}, 3: {1}}  # θ = 0.1011 in binary: bit 0 first
    noisy = compiled_of(iqpe(3, 0b101), "fake_manila", paulis("ZI", "IZ", "XX"))
    values = qhw.QuantumLayer(noisy, "noisy", dtype=torch.float64)(torch.zeros(1, 0))[0]
    np.testing.assert_allclose(values.detach().numpy(), reference(noisy, {}, True), atol=1e-9)


# -- conditions, and what is refused -----------------------------------------------------------------------------------


def test_switch_is_the_same_as_tests_one_after_the_other() -> None:
    def circuit(switch: bool) -> QuantumCircuit:
        circuit = QuantumCircuit(QuantumRegister(3), ClassicalRegister(2, "c"))
        circuit.ry(X, 0)
        circuit.ry(W, 1)
        circuit.measure([0, 1], [0, 1])
        register = circuit.cregs[0]
        if switch:
            with circuit.switch(register) as case:
                with case(1, 2):
                    circuit.ry(X, 2)
                with case(case.DEFAULT):
                    circuit.ry(2 * W, 2)
        else:
            for value in range(4):
                with circuit.if_test(expr.equal(register, value)):
                    circuit.ry(X if value in (1, 2) else 2 * W, 2)
        return circuit

    x = torch.tensor([[0.4], [2.1]], dtype=torch.float64)
    one, other = (
        qhw.QuantumLayer(compiled_of(circuit(switch), "fake_manila", paulis("ZII", "XII")), "noisy", dtype=x.dtype)(x)
        for switch in (True, False)
    )
    np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), atol=0.02)  # gates are placed elsewhere
    one, other = (
        qhw.QuantumLayer(compiled_of(circuit(switch), "ideal", paulis("ZII", "XII")), dtype=x.dtype)(x)
        for switch in (True, False)
    )
    np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (lambda a, b: expr.logic_and(expr.logic_not(a), b), lambda a, b: not a and b),
        (lambda a, b: expr.not_equal(a, b), lambda a, b: a != b),
        (lambda a, b: expr.bit_or(a, expr.bit_not(b)), lambda a, b: a or not b),
    ],
)
def test_expressions(condition: Callable, holds: Callable) -> None:
    for a in (0, 1):
        for b in (0, 1):
            circuit = QuantumCircuit(3, 2)
            for qubit, value in enumerate((a, b)):
                if value:
                    circuit.x(qubit)
                circuit.measure(qubit, qubit)
            with circuit.if_test(condition(*circuit.clbits)):
                circuit.x(2)
            compiled = compiled_of(circuit, "ideal", paulis("ZII"))
            value = float(qhw.QuantumLayer(compiled)(torch.zeros(1, 0)).detach())
            assert abs(value - (-1 if holds(a, b) else 1)) < 1e-6


def test_postselected_bit_in_a_condition() -> None:
    """Given that the bit reads 1, only that branch counts; noise is in what it was misread from."""
    compiled = qhw.compile_circuit(
        on_a_bit(), qhw.Device.load("ideal"), inputs=[X], weights=[W], observables=paulis("ZII"), postselect={0: 1}
    )
    layer = qhw.QuantumLayer(compiled, dtype=torch.float64)
    # qubit 2 starts in |0⟩ and is turned by RX(w) in that branch
    value = float(layer(torch.tensor([[0.8]], dtype=torch.float64)).detach())
    assert abs(value - math.cos(float(layer.weight.detach()))) < 1e-9


def measured_in_a_branch() -> QuantumCircuit:
    circuit = QuantumCircuit(3, 2)
    circuit.h(0)
    circuit.measure(0, 0)
    with circuit.if_test((0, 1)):
        circuit.measure(1, 1)
    return circuit


def test_refused() -> None:
    circuit = measured_in_a_branch()
    compiled_of(circuit, "ideal", paulis("ZII"))  # nothing reads the bit: the outcome is forgotten
    with pytest.raises(UnsupportedCircuitError, match=r"classical bit 1 is measured within a branch.*post-selected"):
        qhw.compile_circuit(
            circuit, qhw.Device.load("ideal"), inputs=[], weights=[], observables=paulis("ZII"), postselect={1: 0}
        )
    with circuit.if_test((1, 1)):
        circuit.x(2)
    with pytest.raises(UnsupportedCircuitError, match=r"classical bit 1 is measured within a branch.*later condition"):
        compiled_of(circuit, "ideal", paulis("ZII"))
    wide = QuantumCircuit(QuantumRegister(1), ClassicalRegister(12))
    with wide.if_test((wide.cregs[0], 5)):
        wide.x(0)
    with pytest.raises(UnsupportedCircuitError, match="'if_else' on qubit 0 has a condition on 12 classical bits"):
        compiled_of(wide, "ideal", paulis("Z"))
    with pytest.raises(UnsupportedCircuitError, match="scheduled=True does not go with if_else"):
        qhw.compile_circuit(
            on_a_bit(),
            qhw.Device.load("fake_manila"),
            inputs=[X],
            weights=[W],
            observables=paulis("ZII"),
            scheduled=True,
        )
    compiled = compiled_of(on_a_bit(), "fake_manila", paulis("ZII"))
    assert compiled.duration is None
    assert compiled.two_qubit_gates >= 3
    with pytest.raises(UnsupportedCircuitError, match=r"mitigation strategy.*depend on outcomes"):
        qhw.QuantumLayer(compiled, "noisy+zne")
    layer = qhw.QuantumLayer(compiled_of(measured_in_a_branch(), "ideal", paulis("ZII")))
    with pytest.raises(InvalidInputError, match="within a branch"):
        layer.sample(torch.zeros(2, 0), torch.Generator())


def test_saved_and_loaded(tmp_path) -> None:
    layer = qhw.QuantumLayer(compiled_of(on_a_register(), "fake_manila", paulis("ZII", "IXI")), "noisy")
    layer.save(tmp_path / "layer")
    again = qhw.QuantumLayer.load(tmp_path / "layer")
    x = torch.tensor([[0.4], [2.1]])
    assert torch.equal(layer(x), again(x))
    assert layer.compiled.compile_for(qhw.Device.load("ideal")).two_qubit_gates > 0
