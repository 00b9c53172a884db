"""Finite shots: the joint distribution behind them, their means and standard errors, and the gradient."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit_aer import AerSimulator
from scipy import stats

import qhw_diffusion as qhw
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import Shots, all_z_strings, outcome_distribution, simulator
from qhw_diffusion.execution.engines import simulator_of
from qhw_diffusion.execution.measurement import outcome_probabilities, with_readout_errors

X, W = Parameter("x"), Parameter("w")
OBSERVABLES = [
    SparsePauliOp("IZ"),
    SparsePauliOp(["ZZ", "XI", "II"], [0.5, -1.2, 0.25]),
    SparsePauliOp(["YX", "IZ"], [0.7, 0.3]),
]


def circuit() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.ry(X, 0)
    qc.rx(W, 1)
    qc.cx(0, 1)
    qc.ry(0.4, 1)
    return qc


@functools.cache
def compiled(name: str = "fake_manila", observables: tuple[SparsePauliOp, ...] = ()) -> qhw.CompiledCircuit:
    return qhw.compile_circuit(
        circuit(), Device.load(name), inputs=[X], weights=[W], observables=observables or OBSERVABLES
    )


def layer(engine: object, name: str = "fake_manila") -> qhw.QuantumLayer:
    made = qhw.QuantumLayer(compiled(name), engine, dtype=torch.float64)
    with torch.no_grad():
        made.weight.fill_(0.9)
    return made


INPUTS = torch.tensor([[0.3], [1.4], [-2.0]], dtype=torch.float64)


@pytest.mark.parametrize(("name", "noisy"), [("ideal", False), ("fake_manila", True)])
def test_values_scatter_about_the_exact_ones_by_the_stated_standard_errors(name: str, noisy: bool) -> None:
    """400 repetitions of 9 values: each mean within 4.5 of its standard errors (false alarms: 9·7e-6), and the stated
    error within 15 % of the scatter (relative error of a standard deviation from 400: 3.5 %)."""
    sampler = layer(Shots(200, seed=3, noisy=noisy), name)
    exact = layer("noisy" if noisy else "ideal", name).estimate(INPUTS).values
    estimates = [sampler.estimate(INPUTS) for _ in range(400)]
    values = torch.stack([e.values for e in estimates])
    errors = torch.stack([e.std_errors for e in estimates])
    assert ((values.mean(0) - exact).abs() < 4.5 * values.std(0) / math.sqrt(len(values))).all()
    torch.testing.assert_close(errors.square().mean(0).sqrt(), values.std(0), rtol=0.15, atol=1e-3)
    assert sampler.usage.circuits == 400 * 3 * 3, "three groups: Z strings, X with Z, YX"
    assert sampler.usage.shots == sampler.usage.circuits * 200


def test_the_distribution_has_asymmetric_readout_errors_and_matches_aers_counts() -> None:
    """χ² of Aer's counts, with the device's noise model and asymmetric readout, against our distribution; p > 1e-4."""
    made, row = compiled(), np.array([[1.1]])
    qubits = list(made.physical_qubits)
    exact = simulator_of(made, True)
    distribution = exact.distribution(exact.final_rows(row, np.array([0.9])), "ZZ")[0]
    bound = made.isa.assign_parameters({X: 1.1, W: 0.9})
    small = QuantumCircuit(2)
    for instruction in bound.data:
        small.append(instruction.operation, [qubits.index(bound.find_bit(q).index) for q in instruction.qubits])
    small.measure_all()
    aer = AerSimulator(noise_model=made.device.noise_model(qubits), seed_simulator=7, max_parallel_threads=1)
    counts = aer.run(small, shots=200_000).result().get_counts()
    observed = np.array([counts.get(format(i, "02b"), 0) for i in range(4)])
    assert stats.chisquare(observed, distribution * observed.sum()).pvalue > 1e-4
    readout = [made.device.readout_error(q) for q in qubits]
    assert all(p10 != p01 for p10, p01 in readout)
    symmetric = [((p10 + p01) / 2,) * 2 for p10, p01 in readout]
    rows = exact.final_rows(row, np.array([0.9]))
    wrong = with_readout_errors(outcome_probabilities(rows, "ZZ", "density"), symmetric)[0]
    assert stats.chisquare(observed, wrong / wrong.sum() * observed.sum()).pvalue < 1e-6, "a mean of the two would show"


def test_the_gradient_is_that_of_the_exact_expectation() -> None:
    x = INPUTS.clone().requires_grad_()
    sampled, exact = layer(Shots(50, seed=1)), layer("noisy")
    values = sampled(x)
    gradients = torch.autograd.grad(values.sum(), (x, sampled.weight))
    wanted = torch.autograd.grad(exact(x).sum(), (x, exact.weight))
    for found, reference in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(found, reference)
    assert (values - exact(x)).abs().max() > 0.01, "but the values are sampled"


def test_a_seed_repeats_the_draws_and_calls_differ() -> None:
    first, second = layer(Shots(100, seed=9)), layer(Shots(100, seed=9))
    a, b = first.estimate(INPUTS).values, first.estimate(INPUTS).values
    assert torch.equal(a, second.estimate(INPUTS).values)
    assert not torch.equal(a, b)


def test_one_shot_gives_outcomes_and_an_honest_error() -> None:
    estimate = layer(Shots(1, seed=0)).estimate(INPUTS)
    assert set(estimate.values[:, 0].tolist()) <= {-1.0, 1.0}
    assert (estimate.std_errors[:, 0] >= 1).all()


@pytest.mark.parametrize("shots", [0, -5, 2.5, True])
def test_refused_numbers_of_shots(shots: object) -> None:
    with pytest.raises(InvalidInputError, match="whole numbers from 1"):
        Shots(shots)  # type: ignore[arg-type]


def test_noise_needs_a_device_that_has_some() -> None:
    with pytest.raises(InvalidInputError, match="noisy=False"):
        layer("shots", "ideal")


def test_all_z_strings_give_the_distribution_of_outcomes() -> None:
    made = qhw.compile_circuit(
        circuit(), Device.load("ideal"), inputs=[X], weights=[W], observables=list(all_z_strings(2))
    )
    z = qhw.QuantumLayer(made, "ideal", dtype=torch.float64)
    with torch.no_grad():
        z.weight.fill_(0.9)
    distribution = outcome_distribution(z.estimate(INPUTS).values.numpy())
    for row, x in zip(distribution, INPUTS[:, 0].tolist(), strict=True):
        exact = Statevector(circuit().assign_parameters({X: x, W: 0.9})).probabilities()
        np.testing.assert_allclose(row, exact, atol=1e-12)


def test_the_strings_are_ordered_by_the_bits_of_their_index() -> None:
    assert [o.paulis[0].to_label() for o in all_z_strings(3)][:5] == ["III", "IIZ", "IZI", "IZZ", "ZII"]
    uniform = outcome_distribution(np.array([[1.0, 0, 0, 0], [1.0, 1, 1, 1]]))
    np.testing.assert_allclose(uniform, [[0.25] * 4, [1, 0, 0, 0]])


@pytest.mark.parametrize("values", [np.ones(3), np.ones(1), np.array([0.5, 0.1]), np.float64(1)])
def test_refused_values_of_strings(values: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match=r"2\^n are needed|must be 1"):
        outcome_distribution(values)
    with pytest.raises(InvalidInputError, match="1 to 12"):
        all_z_strings(13)


def test_rows_are_drawn_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows of wide circuits fit into memory block by block; with one group the draws are the same."""
    many = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
    one_group = qhw.compile_circuit(
        circuit(), Device.load("fake_manila"), inputs=[X], weights=[W], observables=[SparsePauliOp("IZ")]
    )
    whole = qhw.QuantumLayer(one_group, Shots(100, seed=1), dtype=torch.float64).estimate(many).values
    monkeypatch.setattr(simulator, "DRAWN_COLUMNS", 7)
    monkeypatch.setattr(simulator, "DRAWN_BYTES", 1)
    blocks = qhw.QuantumLayer(one_group, Shots(100, seed=1), dtype=torch.float64).estimate(many).values
    assert torch.equal(whole, blocks)
