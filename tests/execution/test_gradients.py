"""Gradients without autograd: exactness, unbiasedness, variance and cost."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

import qhw_diffusion as qhw
from qhw_diffusion.circuits import policy_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import (
    SPSA,
    Engine,
    Estimate,
    GradientMethod,
    Ideal,
    Noisy,
    ParameterShift,
    Shots,
    Surrogate,
    Usage,
)
from qhw_diffusion.execution.gradients import unrolled
from qhw_diffusion.execution.program import angles_of

X = [Parameter("x0"), Parameter("x1")]
W = [Parameter("w0"), Parameter("w1"), Parameter("w2")]


@dataclass(frozen=True)
class ValuesOnly(Engine):
    """An exact engine that pretends to be a device: it gives values, no gradients, and counts circuits."""

    exact: Engine
    name: ClassVar[str] = "values only"

    def estimate(self, compiled: qhw.CompiledCircuit, parameters: Tensor) -> Estimate:
        estimate = self.exact.estimate(compiled, parameters)
        return Estimate(estimate.values, estimate.std_errors, Usage(len(parameters), 0))


def circuit() -> QuantumCircuit:
    """w0 occurs three times with factors 1, −2 and 0.5, once in an angle with an input; w2 in a two-qubit rotation."""
    qc = QuantumCircuit(2)
    qc.ry(X[0], 0)
    qc.rx(W[0] + 0.3 * X[1], 1)
    qc.cx(0, 1)
    qc.rz(-2 * W[0], 1)
    qc.ry(W[1], 1)
    qc.rzz(W[2], 0, 1)
    qc.rx(0.5 * W[0] - W[2], 0)
    qc.ry(X[0] + 0.2, 1)
    return qc


@functools.cache
def compiled(name: str = "fake_manila") -> qhw.CompiledCircuit:
    observables = [SparsePauliOp(["ZI", "XX"], [0.8, 0.5]), SparsePauliOp("IZ")]
    return qhw.compile_circuit(circuit(), Device.load(name), inputs=X, weights=W, observables=observables)


def gradients(layer: qhw.QuantumLayer, *, batch: int = 3, copies: int = 1) -> tuple[Tensor, Tensor]:
    """By the inputs of a batch and by the weights; of that many copies of the batch in one call, their mean."""
    x = torch.linspace(-1, 2, 2 * batch, dtype=torch.float64).reshape(batch, 2).requires_grad_()
    values = layer(x.repeat(copies, 1))
    cotangent = torch.linspace(-1, 1.5, values.numel() // copies, dtype=torch.float64).reshape(batch, -1) / copies
    by_inputs, by_weights = torch.autograd.grad((values * cotangent.repeat(copies, 1)).sum(), (x, layer.weight))
    return by_inputs, by_weights


def layer(engine: Engine | str, gradient: GradientMethod | None = None, name: str = "fake_manila") -> qhw.QuantumLayer:
    return qhw.QuantumLayer(compiled(name), engine, gradient=gradient, dtype=torch.float64, seed=1)


@pytest.mark.parametrize("exact", [Ideal(), Noisy()], ids=["ideal", "noisy"])
@pytest.mark.parametrize("name", ["fake_manila", "fake_marrakesh"])
def test_parameter_shift_is_exact(exact: Engine, name: str) -> None:
    shifted = gradients(layer(ValuesOnly(exact), ParameterShift(), name))
    wanted = gradients(layer(exact, None, name))
    assert max(w.abs().max() for w in wanted) > 0.1
    for found, reference in zip(shifted, wanted, strict=True):
        torch.testing.assert_close(found, reference, rtol=0, atol=1e-9)


def test_shifts_out_of_the_devices_range_are_refused() -> None:
    qc = QuantumCircuit(2)
    qc.rx(X[0], 0)
    qc.rzz(W[0], 0, 1)
    device = Device.load("fake_marrakesh").with_fractional_gates()
    made = qhw.compile_circuit(qc, device, inputs=X[:1], weights=W[:1], observables=[SparsePauliOp("ZZ")])
    shifted = qhw.QuantumLayer(made, ValuesOnly(Ideal()), gradient=ParameterShift(), dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="range the device takes for rzz"):
        shifted(torch.zeros(1, 1, dtype=torch.float64))


def test_costs_are_counted() -> None:
    """Forward B circuits; backward 2·B for each rotation that a wanted parameter enters, whatever the parameters."""
    rotations = len(compiled().program.offsets)
    made = layer(ValuesOnly(Ideal()), ParameterShift())
    gradients(made, batch=3)
    assert made.usage.circuits == 3 + 2 * 3 * rotations
    made = layer(ValuesOnly(Ideal()), ParameterShift())
    made(torch.zeros(3, 2, dtype=torch.float64)).sum().backward()  # weights only
    by_weight = int(compiled().program.weight_coefficients.any(1).sum())
    assert by_weight < rotations
    assert made.usage.circuits == 3 + 2 * 3 * by_weight
    made = layer(ValuesOnly(Ideal()), SPSA(repetitions=4))
    gradients(made, batch=3)
    assert made.usage.circuits == 3 + 2 * 4 * 3
    made = layer(ValuesOnly(Ideal()), Surrogate())
    gradients(made, batch=3)
    assert made.usage.circuits == 3


def test_nothing_is_evaluated_for_gradients_nobody_wants() -> None:
    made = layer(ValuesOnly(Ideal()), ParameterShift())
    with torch.no_grad():
        made(torch.zeros(3, 2, dtype=torch.float64))
    made.weight.requires_grad_(False)
    made(torch.zeros(3, 2, dtype=torch.float64))
    assert made.usage.circuits == 6


def test_parameter_shift_under_shots_is_unbiased_with_the_bounded_variance() -> None:
    """2,000 repetitions at N = 50 shots of one derivative of one Pauli observable, each rotation in one parameter.

    Mean within 4.5 standard errors of the exact derivative for every parameter (false alarms 14·7e-6); variance at most
    1/(2N) (plus 4.5 standard errors of a variance, relative √(2/2000)). All parameters are inputs here, so that the
    repetitions are the rows of one batch.
    """
    policy = policy_circuit(2, 2, 2)
    parameters = [*policy.inputs, *policy.weights]
    made = qhw.compile_circuit(
        policy.circuit,
        Device.load("fake_manila"),
        inputs=parameters,
        weights=[],
        observables=policy.observables[:1],
    )
    shots = 50
    sampled = qhw.QuantumLayer(made, Shots(shots, seed=4), gradient=ParameterShift(), dtype=torch.float64)
    exact = qhw.QuantumLayer(made, "noisy", dtype=torch.float64)
    x = torch.cat([torch.tensor([0.4, -0.9]), torch.linspace(-3, 3, len(policy.weights))]).double()[None]
    x.requires_grad_()
    (wanted,) = torch.autograd.grad(exact(x).sum(), x)
    rows = x.detach().repeat(2000, 1).requires_grad_()
    (draws,) = torch.autograd.grad(sampled(rows).sum(), rows)
    assert ((draws.mean(0) - wanted[0]).abs() < 4.5 * draws.std(0) / math.sqrt(len(draws)) + 1e-12).all()
    bound = 1 / (2 * shots)
    assert (draws.var(0) < bound * (1 + 4.5 * math.sqrt(2 / len(draws)))).all()
    assert draws.var(0).max() > 0.5 * bound, "shot noise reaches the training"


def test_spsa_is_unbiased_to_second_order_and_repeats_with_its_seed() -> None:
    """4,000 directions at a small step, in 100 batches that draw a direction for each row: every component within 4.5
    standard errors (false alarms of Student's t with 99 degrees of freedom, 11·2e-5).
    """
    wanted = gradients(layer("ideal"))
    method = layer(ValuesOnly(Ideal()), SPSA(seed=2, size=1e-3))
    draws = [gradients(method, copies=40) for _ in range(100)]
    for index, reference in enumerate(wanted):
        values = torch.stack([draw[index] for draw in draws])
        assert ((values.mean(0) - reference).abs() < 4.5 * values.std(0) / math.sqrt(len(values)) + 1e-5).all()
    first, again = (gradients(layer(ValuesOnly(Ideal()), SPSA(seed=7))) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], gradients(layer(ValuesOnly(Ideal()), SPSA(seed=8)))[1])


def test_more_repetitions_of_spsa_scatter_less() -> None:
    """By the inputs of 300 copies of a batch, each with directions of its own."""
    spread = []
    for repetitions in (1, 16):
        made = layer(ValuesOnly(Ideal()), SPSA(seed=0, repetitions=repetitions, size=0.01))
        x = torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(3, 2).repeat(300, 1).requires_grad_()
        (slopes,) = torch.autograd.grad((made(x) * torch.tensor([0.7, -1.0])).sum(), x)
        spread.append(slopes.reshape(300, 3, 2).std(0))
    assert (spread[1] < 0.4 * spread[0]).all(), "a quarter is expected, ± 4 % from 300 draws"


def test_the_surrogate_gives_the_devices_values_and_the_models_gradient() -> None:
    made = layer(Shots(100, seed=0), Surrogate(Noisy()))
    wanted = layer("noisy")
    for found, reference in zip(gradients(made), gradients(wanted), strict=True):
        torch.testing.assert_close(found, reference, rtol=0, atol=1e-12)
    x = torch.zeros(3, 2, dtype=torch.float64)
    assert (made(x) - wanted(x)).abs().max() > 1e-3


def test_the_unrolled_circuit_gives_the_same_values() -> None:
    for name in ("ideal", "fake_marrakesh"):
        made = compiled(name)
        x, w = np.array([[0.3, -0.4], [1.0, 2.0]]), np.array([0.5, -1.0, 0.2])
        angles, free = angles_of(made.program, x, w).T, unrolled(made).compiled
        assert free.n_inputs == angles.shape[1]
        assert free.n_weights == 0
        rows = torch.from_numpy(np.concatenate([x, np.tile(w, (2, 1))], axis=1))
        for engine in (Ideal(), Noisy()) if name != "ideal" else (Ideal(),):
            torch.testing.assert_close(
                engine.estimate(free, torch.from_numpy(angles.copy())).values,
                engine.estimate(made, rows).values,
                rtol=0,
                atol=1e-12,
            )


def test_an_engine_without_gradients_says_what_to_do() -> None:
    made = layer(ValuesOnly(Ideal()))
    with pytest.raises(InvalidInputError, match="choose a gradient method"):
        made(torch.zeros(1, 2, dtype=torch.float64))
    with torch.no_grad():
        assert made(torch.zeros(1, 2, dtype=torch.float64)).shape == (1, 2)
    with pytest.raises(InvalidInputError, match=r"gives no gradient and cannot be a surrogate"):
        Surrogate(ValuesOnly(Ideal()))
    with pytest.raises(InvalidInputError, match="ParameterShift"):
        layer("ideal", "parameter-shift")  # type: ignore[arg-type]
    for wrong in ({"size": 0}, {"size": float("nan")}, {"repetitions": 0}):
        with pytest.raises(InvalidInputError, match="allowed"):
            SPSA(**wrong)
