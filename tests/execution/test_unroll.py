"""One angle per rotation gate: the unrolled circuit, and parameter-shift on it against Aer alone."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import Operator, SparsePauliOp
from qiskit_aer.noise import NoiseModel
from qiskit_aer.primitives import EstimatorV2
from qiskit_ibm_runtime.fake_provider import FakeManilaV2

import qhw_diffusion as qhw
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import SPSA, Noisy, ParameterShift, Primitive
from qhw_diffusion.execution.gradients import unrolled

# Names that sort against the order in which they are given
INPUTS = [Parameter("z"), Parameter("c")]
WEIGHTS = [Parameter("y"), Parameter("a"), Parameter("m")]


def circuit() -> QuantumCircuit:
    """y three times, with 1, −2 and 0.5, once together with an input; more than ten rotations, so that names with
    numbers would sort wrongly as text."""
    qc = QuantumCircuit(3)
    qc.ry(INPUTS[0], 0)
    qc.rx(WEIGHTS[0] + 0.3 * INPUTS[1], 1)
    qc.cx(0, 1)
    qc.rx(-2 * WEIGHTS[0] + 0.4, 2)
    qc.ry(0.5 * WEIGHTS[0] - WEIGHTS[1], 0)
    qc.cx(1, 2)
    for q in range(3):
        qc.rx(WEIGHTS[2] * (q + 1), q)
        qc.p(INPUTS[1], q)  # leaves a parametrised global phase
        qc.ry(WEIGHTS[1], q)
    qc.cx(2, 1)
    return qc


@functools.cache
def compiled(name: str = "fake_manila") -> qhw.CompiledCircuit:
    observables = [SparsePauliOp("IIZ"), SparsePauliOp(["ZIX", "YYI"], [0.4, 0.7])]
    return qhw.compile_circuit(
        circuit(), Device.load(name), inputs=INPUTS, weights=WEIGHTS, observables=observables, seed=2
    )


X = np.random.default_rng(3).uniform(-2, 2, (2, 2))
W = np.array([0.7, -1.3, 2.1])


@pytest.mark.parametrize("name", ["ideal", "fake_manila"])
def test_the_angles_give_the_same_unitary(name: str) -> None:
    made, free = compiled(name), unrolled(compiled(name))
    assert free.compiled.weights == ()
    assert len(free.compiled.inputs) == len(free.offsets) == free.compiled.isa.num_parameters > 10
    angles = free.input_coefficients @ X[0] + free.weight_coefficients @ W + free.offsets
    bound = free.compiled.isa.assign_parameters(dict(zip(free.compiled.inputs, angles, strict=True)))
    values = dict(zip([*INPUTS, *WEIGHTS], [*X[0], *W], strict=True))
    assert Operator(bound).equiv(Operator(made.isa.assign_parameters(values)))
    assert bound.layout == made.isa.layout


def test_every_gate_stays_in_place_and_the_original_is_untouched() -> None:
    made, before = compiled(), compiled().isa.copy()
    free = unrolled(made).compiled.isa
    assert [(i.operation.name, i.qubits) for i in free.data] == [(i.operation.name, i.qubits) for i in made.isa.data]
    assert made.isa == before
    assert made.isa.num_parameters == 5


@pytest.mark.slow
def test_it_is_made_once_and_forgotten_with_the_circuit() -> None:
    assert unrolled(compiled()) is unrolled(compiled())
    passing = dataclasses.replace(compiled())
    gone = weakref.ref(unrolled(passing))
    del passing
    gc.collect()
    assert gone() is None


def test_parameter_shift_on_aer_alone_is_the_slope_of_aers_values() -> None:
    """Aer's density matrices with the device's gate errors, no simulator of ours. Precision 1e-10 adds nothing to see;
    fourth-order central differences at h = 0.01 are exact to about 1e-7."""
    model = NoiseModel.from_backend(FakeManilaV2(), readout_error=False)
    aer = EstimatorV2(options={"backend_options": {"noise_model": model, "method": "density_matrix"}})
    engine = Primitive(aer, precision=1e-10)
    layer = qhw.QuantumLayer(compiled(), engine, gradient=ParameterShift(), dtype=torch.float64)
    cotangent = torch.tensor([[0.9, -0.4], [0.3, 1.1]], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(W))
    x = torch.from_numpy(X).requires_grad_()
    (layer(x) * cotangent).sum().backward()

    base = np.concatenate([X, np.tile(W, (2, 1))], axis=1)  # [B, P]
    moved = base[:, None, None] + 0.01 * np.array([-2, -1, 1, 2])[:, None] * np.eye(5)[:, None]  # [B, P, 4, P]
    values = engine.estimate(compiled(), torch.from_numpy(moved.reshape(-1, 5))).values.reshape(2, 5, 4, 2).numpy()
    slopes = np.einsum("bpsm,s,bm->bp", values, np.array([1, -8, 8, -1]) / 0.12, cotangent.numpy())
    assert x.grad is not None
    assert layer.weight.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), slopes[:, :2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(layer.weight.grad.numpy(), slopes[:, 2:].sum(0), rtol=0, atol=1e-6)
    assert np.abs(slopes).max() > 0.1


def test_a_parameter_that_compiling_removed_has_no_gradient() -> None:
    qc = QuantumCircuit(1)
    qc.ry(INPUTS[0], 0)
    qc.rz(WEIGHTS[0], 0)
    qc.rz(WEIGHTS[1] - WEIGHTS[0], 0)
    qc.rx(WEIGHTS[1], 0)
    made = qhw.compile_circuit(
        qc, Device.load("fake_manila"), inputs=INPUTS[:1], weights=WEIGHTS[:2], observables=[SparsePauliOp("Z")]
    )
    x = torch.tensor([[0.8]], dtype=torch.float64)
    found, exact = (qhw.QuantumLayer(made, Noisy(), gradient=g, dtype=torch.float64) for g in (ParameterShift(), None))
    for layer in (found, exact):
        layer(x).sum().backward()
    torch.testing.assert_close(found.weight.grad, exact.weight.grad, rtol=0, atol=1e-12)
    assert abs(found.weight.grad[0]) < 1e-12
    assert abs(found.weight.grad[1]) > 1e-2


def test_a_post_selected_value_is_no_sinusoid() -> None:
    qc = QuantumCircuit(2, 1)
    qc.ry(WEIGHTS[0], 0)
    qc.cx(0, 1)
    qc.ry(WEIGHTS[1], 1)
    qc.measure(1, 0)
    made = qhw.compile_circuit(
        qc,
        Device.load("fake_manila"),
        inputs=[],
        weights=WEIGHTS[:2],
        observables=[SparsePauliOp("IZ")],
        postselect={0: 0},
    )
    none = torch.zeros(1, 0, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="ratios of sinusoids"):
        qhw.QuantumLayer(made, Noisy(), gradient=ParameterShift(), dtype=torch.float64)(none)
    # SPSA takes it: 500 directions, mean within 5 of its standard errors of the exact slope
    exact = qhw.QuantumLayer(made, Noisy(), dtype=torch.float64)
    exact(none).sum().backward()
    draws = []
    layer = qhw.QuantumLayer(made, Noisy(), gradient=SPSA(seed=1, size=1e-3), dtype=torch.float64)
    for _ in range(500):
        layer.weight.grad = None
        layer(none).sum().backward()
        draws.append(layer.weight.grad)
    drawn = torch.stack(draws)
    assert ((drawn.mean(0) - exact.weight.grad).abs() < 5 * drawn.std(0) / np.sqrt(500) + 1e-5).all()
