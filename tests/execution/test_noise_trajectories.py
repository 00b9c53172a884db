"""Noise by trajectories: against the exact simulation of the twirled, and of the untwirled, noise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp, SuperOp
from qiskit_aer.noise import NoiseModel, ReadoutError, amplitude_damping_error, pauli_error
from qiskit_ibm_runtime.fake_provider import FakeManilaV2

import qhw_diffusion as qhw
from qhw_diffusion.circuits import reverse_circuit
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.reverse import ReverseProcess
from qhw_diffusion.errors import InvalidInputError, UnknownNameError, UnsupportedCircuitError
from qhw_diffusion.execution import NoiseTrajectories, engine_of
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.evolution import Evolution
from qhw_diffusion.execution.noise_trajectories import misread
from qhw_diffusion.execution.pauli_frames import pauli_probabilities, twirled
from qhw_diffusion.execution.simulator import Simulator

X, V, W = Parameter("x"), Parameter("v"), Parameter("w")
ROWS = torch.tensor([[0.4], [-1.3]], dtype=torch.float64)


def circuit(*, fractional: bool = False) -> QuantumCircuit:
    """Rotations of every kind, gates that are no Clifford gates, a reset and a forgotten outcome."""
    made = QuantumCircuit(3, 1)
    made.ry(X, 0)
    made.rx(V, 1)
    made.cx(0, 1)
    made.t(1)
    made.u(0.3, 1.1, -0.7, 2)
    if fractional:
        made.rzz(0.3, 0, 1)
    made.cx(1, 2)
    if not fractional:
        made.measure(0, 0)
        made.reset(0)
    made.ry(W, 0)
    made.rz(X - V, 2)
    made.cx(2, 0)
    made.rx(0.4, 1)
    return made


def compiled_of(made: QuantumCircuit, device: qhw.Device) -> CompiledCircuit:
    labels = ("ZII", "IXI", "YIZ", "ZZZ", "III")
    return qhw.compile_circuit(
        made, device, inputs=[X], weights=[V, W], observables=[SparsePauliOp(label) for label in labels]
    )


@pytest.fixture(scope="module")
def manila() -> CompiledCircuit:
    return compiled_of(circuit(), qhw.Device.load("fake_manila"))


def exact_twirled(compiled: CompiledCircuit) -> Simulator:
    return Simulator(twirled(compiled.program), noisy=True, dtype=torch.float64)


def layer_of(compiled: CompiledCircuit, engine: str) -> qhw.QuantumLayer:
    return qhw.QuantumLayer(compiled, engine, dtype=torch.float64)


def agrees(values: torch.Tensor, errors: torch.Tensor, expected: torch.Tensor, most: float = 4.5) -> None:
    assert bool(((values - expected).abs() <= most * errors + 1e-12).all()), (values - expected) / errors


# -- twirling ----------------------------------------------------------------------------------------------------------


def test_twirled_amplitude_damping_has_its_published_probabilities() -> None:
    """Geller and Zhou (arXiv:1305.2021), eq. 14: px = py = γ/4, pz = (2 − γ − 2√(1 − γ))/4."""
    damping = 0.3
    chances = pauli_probabilities(np.asarray(SuperOp(amplitude_damping_error(damping)).data))
    z = (2 - damping - 2 * math.sqrt(1 - damping)) / 4
    # identity, X, Z, XZ ~ Y
    np.testing.assert_allclose(chances, [1 - damping / 2 - z, damping / 4, z, damping / 4], atol=1e-12)


def test_a_pauli_channel_keeps_its_probabilities() -> None:
    error = pauli_error([("XZ", 0.1), ("IY", 0.05), ("II", 0.85)])  # qubit 0 last
    chances = pauli_probabilities(np.asarray(SuperOp(error).data))
    expected = np.zeros(16)
    expected[[0b0000, 0b0110, 0b0011]] = 0.85, 0.1, 0.05  # Z on qubit 0 and X on qubit 1; Y on qubit 0
    np.testing.assert_allclose(chances, expected, atol=1e-12)


# -- values and derivatives --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_converges_to_the_exact_twirled_noise(manila: CompiledCircuit) -> None:
    layer = layer_of(manila, "trajectories:20000:seed=1")
    inputs = ROWS.clone().requires_grad_()
    expected = exact_twirled(manila).expectation(inputs, layer.weight)
    estimate = layer.estimate(ROWS)
    agrees(estimate.values, estimate.std_errors, expected.detach())
    untwirled = layer_of(manila, "noisy")(ROWS)
    assert bool(((untwirled - expected).abs() > 5 * estimate.std_errors).any())  # the test sees the difference
    cotangent = torch.tensor([1.0, -0.7, 0.4, 2.0, 1.0], dtype=torch.float64)
    exact = torch.autograd.grad((expected * cotangent).sum(), [inputs, layer.weight])
    drawn = torch.autograd.grad((layer(inputs) * cotangent).sum(), [inputs, layer.weight])
    for one, other in zip(exact, drawn, strict=True):
        assert float(one.abs().max()) > 0.1
        torch.testing.assert_close(one, other, atol=0.04, rtol=0)  # some 5 standard errors


@pytest.mark.slow
def test_fractional_gates() -> None:
    """Among them one with a constant angle, which is no Clifford gate."""
    device = qhw.Device.load("fake_marrakesh").with_fractional_gates()
    compiled = compiled_of(circuit(fractional=True), device)
    assert "rzz" in compiled.isa.count_ops()
    twirl = replace(compiled)
    twirl.__dict__["program"] = twirled(compiled.program)
    estimate = layer_of(compiled, "trajectories:8000").estimate(ROWS)
    agrees(estimate.values, estimate.std_errors, layer_of(twirl, "noisy")(ROWS).detach())


def test_pauli_noise_is_left_as_it_is() -> None:
    """Twirling does nothing to it: the trajectories converge to the engine "noisy"."""
    model = NoiseModel()
    model.add_all_qubit_quantum_error(pauli_error([("X", 0.02), ("Y", 0.01), ("I", 0.97)]), ["sx", "x"])
    model.add_all_qubit_quantum_error(pauli_error([("XZ", 0.05), ("IY", 0.03), ("II", 0.92)]), ["cx"])
    model.add_all_qubit_readout_error(ReadoutError([[0.97, 0.03], [0.08, 0.92]]))
    compiled = compiled_of(circuit(), qhw.Device.of(FakeManilaV2(), noise_model=model))
    estimate = layer_of(compiled, "trajectories:6000").estimate(ROWS)
    expected = layer_of(compiled, "noisy")(ROWS).detach()
    agrees(estimate.values, estimate.std_errors, expected)
    assert float((layer_of(compiled, "ideal")(ROWS).detach() - expected).abs().max()) > 0.1


def test_pathwise_gradient_is_that_of_the_values_drawn(
    manila: CompiledCircuit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the draws repeated the value is a smooth function; so it is if errors are drawn again going backwards."""

    def values(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return NoiseTrajectories(7, seed=3).expectation(manila, x, w)

    given = ROWS.clone().requires_grad_(), torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(values, given)
    monkeypatch.setattr("qhw_diffusion.execution.noise_trajectories.KEEP_BYTES", 0)
    monkeypatch.setattr("qhw_diffusion.execution.noise_trajectories.CHUNK_COLUMNS", (3, 3))
    again = values(*given)
    slopes = torch.autograd.grad(again.sum(), given)
    monkeypatch.undo()
    monkeypatch.setattr("qhw_diffusion.execution.noise_trajectories.CHUNK_COLUMNS", (3, 3))
    kept = values(*given)
    assert torch.equal(kept, again)
    for one, other in zip(torch.autograd.grad(kept.sum(), given), slopes, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_untwirled_noise_converges_to_the_exact_noise(manila: CompiledCircuit) -> None:
    layer = layer_of(manila, "trajectories:3000:kraus")
    estimate = layer.estimate(ROWS)
    agrees(estimate.values, estimate.std_errors, layer_of(manila, "noisy")(ROWS).detach())
    few = layer_of(manila, "trajectories:300:kraus").estimate(ROWS).std_errors
    ratio = (few / estimate.std_errors)[:, :4].mean()
    assert abs(ratio - math.sqrt(10)) < 0.4
    with pytest.raises(InvalidInputError, match="gives no gradient"):
        layer(ROWS)


def test_seeds_rows_and_single_trajectories(manila: CompiledCircuit) -> None:
    layer = layer_of(manila, "trajectories:50:seed=4")
    first, second = layer.estimate(ROWS).values, layer.estimate(ROWS).values
    assert not torch.equal(first, second)  # calls draw on
    assert torch.equal(first, layer_of(manila, "trajectories:50:seed=4").estimate(ROWS).values)
    one = layer_of(manila, "trajectories:1").estimate(ROWS)
    assert bool(one.std_errors[:, :4].isinf().all())
    assert bool((one.std_errors[:, 4] == 0).all())  # the identity is known
    # rows with weights of their own
    rows = torch.cat([ROWS, torch.tensor([[0.1, 0.2], [2.0, -1.0]], dtype=torch.float64)], 1)
    estimate = engine_of("trajectories:4000").estimate(manila, rows)
    expected = torch.cat([exact_twirled(manila).expectation(row[None, :1], row[1:]) for row in rows])
    agrees(estimate.values, estimate.std_errors, expected)


@pytest.mark.parametrize("text", ["trajectories:100", "trajectories:64:seed=3", "trajectories:9:kraus"])
def test_text(text: str) -> None:
    assert engine_of(text).spec == text
    assert engine_of(text) == engine_of(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trajectories:0", "trajectories is '0'"),
        ("trajectories:1.5", "whole numbers from 1"),
        ("trajectories:9:9", "states its trajectories twice"),
        ("trajectories:9:sede=1", "unknown setting of engine 'trajectories' 'sede=1'"),
    ],
)
def test_wrong_text(text: str, message: str) -> None:
    with pytest.raises((InvalidInputError, UnknownNameError), match=message):
        engine_of(text)


def test_refused(manila: CompiledCircuit) -> None:
    with pytest.raises(InvalidInputError, match="has no noise"):
        layer_of(compiled_of(circuit(), qhw.Device.load("ideal")), "trajectories:9")
    made = QuantumCircuit(2, 1)
    made.rx(X, 0)
    made.rx(V + W, 1)
    made.measure(0, 0)
    given = {"inputs": [X], "weights": [V, W], "observables": [SparsePauliOp("ZI")]}
    device = qhw.Device.load("fake_manila")
    with pytest.raises(UnsupportedCircuitError, match="trajectories do not take circuits with outcomes post-selected"):
        layer_of(qhw.compile_circuit(made, device, postselect={0: 0}, **given), "trajectories:9")
    with made.if_test((0, 1)):
        made.x(1)
    with pytest.raises(UnsupportedCircuitError, match="operations that depend on outcomes"):
        layer_of(qhw.compile_circuit(made, device, **given), "trajectories:9")
    layer = layer_of(manila, "trajectories:9")
    slope = torch.autograd.grad(layer(ROWS)[:, 0].sum(), layer.weight, create_graph=True)[0]
    with pytest.raises(InvalidInputError, match="first ones only"):
        slope.sum().backward()


@pytest.mark.slow
def test_sixteen_qubits() -> None:
    """A density matrix of these would take 16 GiB."""
    n = 16
    made = QuantumCircuit(n)
    for q in range(n):
        made.ry(X + 0.1 * q, q)
    for q in range(n - 1):
        made.cx(q, q + 1)
    compiled = qhw.compile_circuit(
        made, qhw.Device.load("fake_torino"), inputs=[X], weights=[], observables=[SparsePauliOp("Z" + "I" * (n - 1))]
    )
    layer = qhw.QuantumLayer(compiled, "trajectories:8")
    x = torch.tensor([[0.2]], requires_grad=True)
    value = layer(x)
    value.backward()
    ideal = float(np.prod(np.cos(0.2 + 0.1 * np.arange(n))))  # of the chain's end: the parity
    assert abs(float(value.detach()) - ideal) < 0.25
    assert bool(x.grad.isfinite())


# -- states ------------------------------------------------------------------------------------------------------------


def test_misread_outcomes_have_the_right_mean() -> None:
    """Σ over draws of weight · [true outcome] is P(read | true), for two qubits with asymmetric errors."""
    readout = [(0.1, 0.3), (0.02, 0.2)]
    true, weights = misread(readout, 200_000, np.random.default_rng(0))
    for read in range(4):
        for outcome in range(4):
            expected = math.prod(
                (p10 if (read >> j) & 1 else 1 - p10)
                if not (outcome >> j) & 1
                else (1 - p01 if (read >> j) & 1 else p01)
                for j, (p10, p01) in enumerate(readout)
            )
            found = weights[read] * (true[read] == outcome)
            assert abs(found.mean() - expected) < 5 * found.std() / math.sqrt(200_000)


@pytest.mark.parametrize("measured", [True, False])
def test_evolution_averages_to_the_exact_twirled_noise(measured: bool) -> None:
    step = reverse_circuit(2, 1, 2)
    compiled = qhw.compile_circuit(
        step.circuit,
        qhw.Device.load("fake_manila"),
        inputs=step.inputs,
        weights=step.weights,
        observables=step.observables,
    )
    twirl = replace(compiled)
    twirl.__dict__["program"] = twirled(compiled.program)
    read = step.measured if measured else ()
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 4, dtype=torch.complex128, generator=generator)
    states = (states / states.norm(dim=1, keepdim=True)).requires_grad_()
    weights = torch.randn(compiled.n_weights, dtype=torch.float64, generator=generator).requires_grad_()
    found = []
    for circuit_, engine in ((twirl, "noisy"), (compiled, "trajectories:8000")):
        branches = Evolution(circuit_, data=step.data, measured=read, engine=engine)(states, weights)
        kept = branches.states * branches.probabilities[..., None, None]
        loss = (
            kept[0].real * torch.arange(16).reshape(4, 4) + kept[0].imag * torch.arange(16).flip(0).view(4, 4)
        ).sum()
        found.append((kept.detach(), *torch.autograd.grad(loss, [states, weights])))
    for exact, drawn, tolerance in zip(*found, (0.006, 0.2, 0.2), strict=True):
        assert float(exact.abs().max()) > 30 * tolerance
        torch.testing.assert_close(drawn, exact, atol=tolerance, rtol=0)


def test_a_reverse_process_on_trajectories() -> None:
    """All steps of a post-selected process, against density matrices through the twirled noise."""
    config = ReverseConfig(
        n_qubits=2, n_steps=3, depth=2, ancillas=1, device="fake_manila", engine="trajectories:4000", init_scale=0.6
    )
    drawn = ReverseProcess(config, dtype=torch.float64)
    exact = drawn.on(engine="noisy")
    exact.double()
    exact.compiled.__dict__["program"] = twirled(exact.compiled.program)
    exact.evolution._sequences.clear()
    states = torch.tensor([[0.6, 0.8j, 0, 0], [0.5, 0.5, 0.5j, -0.5]], dtype=torch.complex128)
    one, other = exact.run(states, keep_path=True), drawn.run(states, keep_path=True)
    torch.testing.assert_close(other.states, one.states, atol=0.015, rtol=0)
    torch.testing.assert_close(other.log_probability, one.log_probability, atol=0.02, rtol=0)
    assert [s.shape for s in other.path[1:]] == [s.shape for s in one.path[1:]]
    population = torch.diagonal(other.states, dim1=1, dim2=2).real[:, 0].sum()
    expected = torch.diagonal(one.states, dim1=1, dim2=2).real[:, 0].sum()
    for a, b in zip(
        torch.autograd.grad(population, drawn.weight), torch.autograd.grad(expected, exact.weight), strict=True
    ):
        torch.testing.assert_close(a, b, atol=0.03, rtol=0)
        assert float(b.abs().max()) > 0.15
    with pytest.raises(InvalidInputError, match="kind 'measured' does not run on trajectories"):
        ReverseProcess(config.replace(kind="measured")).run(states.to(torch.complex64))
