"""Inputs in the first layer alone, under noise: batches as products, and each sample by itself through all rows."""

from __future__ import annotations

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.quantum_info import SparsePauliOp

import qhw_diffusion as qhw
from qhw_diffusion.circuits import denoiser_circuit, policy_circuit
from qhw_diffusion.execution.engines import simulator_of
from qhw_diffusion.execution.product import ProductState
from qhw_diffusion.execution.simulator import Simulator

TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}


def encoded(n: int, *, empty: int = 0) -> qhw.CompiledCircuit:
    """Inputs and weights in one first layer, none on the last `empty` qubits; then two entangled layers of weights."""
    x, w = ParameterVector("x", n + 1), ParameterVector("w", 3 * n)
    circuit = QuantumCircuit(n)
    for q in range(n - empty):
        circuit.ry(x[q] + 0.3 * w[q], q)
        circuit.rz(x[q + 1] * 0.7, q)
    for layer in (1, 2):
        for q in range(n - 1):
            circuit.cx(q, q + 1)
        for q in range(n):
            circuit.rx(w[layer * n + q], q)
    texts = ["Z" * n, "X" + "Z" * (n - 1), "I" * (n - 1) + "Y"]
    used = [p for p in x if p in circuit.parameters]
    return qhw.compile_circuit(
        circuit,
        qhw.Device.load("fake_manila"),
        inputs=used,
        weights=[p for p in w if p in circuit.parameters],
        observables=[SparsePauliOp(text) for text in texts],
    )


def results(layer: qhw.QuantumLayer, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Values [B, M], without gradient and with it, and gradients by inputs and weights."""
    x = x.clone().requires_grad_()
    values = layer(x)
    cotangent = torch.linspace(-1, 2, values.shape[1], dtype=values.dtype) * (1 + x.detach()[:, :1])
    plain = layer(x.detach()) if not layer.weight.requires_grad else layer.estimate(x.detach()).values
    return values.detach(), plain.detach(), *torch.autograd.grad((values * cotangent).sum(), (x, layer.weight))


def is_used(layer: qhw.QuantumLayer, batch: int) -> bool:
    simulator: Simulator = simulator_of(layer.compiled, True, layer.weight.dtype)
    return isinstance(simulator._way(simulator._main(batch)), ProductState)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "empty"), [(1, 0), (2, 0), (3, 0), (3, 1), (4, 2), (5, 0), (5, 3)])
def test_a_batch_is_its_samples_one_by_one(n: int, empty: int, dtype: torch.dtype) -> None:
    layer = qhw.QuantumLayer(encoded(n, empty=empty), "noisy", dtype=dtype, seed=3)
    x = torch.randn(11, layer.compiled.n_inputs, dtype=dtype, generator=torch.Generator().manual_seed(n))
    assert is_used(layer, 11)
    assert not is_used(layer, 1), "one sample goes through all rows, and is the independent source here"
    together = results(layer, x)
    alone = [results(layer, row) for row in x.split(1)]
    values, plain, by_inputs, by_weights = zip(*alone, strict=True)
    wanted = torch.cat(values), torch.cat(plain), torch.cat(by_inputs), torch.stack(by_weights).sum(0)
    assert float(wanted[0].std(0).min()) > 1e-3, "values that are all alike would tell nothing"
    for found, one in zip(together, wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_finite_differences(seed: int) -> None:
    layer = qhw.QuantumLayer(encoded(3, empty=seed % 2), "noisy", dtype=torch.float64, seed=seed)
    x = torch.randn(5, layer.compiled.n_inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert is_used(layer, 5)
    weight = layer.weight.detach().clone().requires_grad_()

    def values(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weights}, (inputs,))

    assert torch.autograd.gradcheck(values, (x.requires_grad_(), weight), eps=1e-6, atol=1e-8)


def test_the_circuits_of_the_package_are_worked_so() -> None:
    device = qhw.Device.load("fake_torino")
    for made in (policy_circuit(4, 2, 4), denoiser_circuit(4, 3, n_features=4)):
        compiled = qhw.compile_circuit(
            made.circuit, device, inputs=made.inputs, weights=made.weights, observables=made.observables
        )
        assert is_used(qhw.QuantumLayer(compiled, "noisy"), 64)
    again = policy_circuit(4, 2, 4, reuploading=True)
    compiled = qhw.compile_circuit(
        again.circuit, device, inputs=again.inputs, weights=again.weights, observables=again.observables
    )
    assert not is_used(qhw.QuantumLayer(compiled, "noisy"), 64), "inputs come in after entangling gates"


def test_not_after_a_condition() -> None:
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(2, 1)
    circuit.ry(x, 0)
    circuit.measure(0, 0)
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.rx(w, 1)
    circuit.ry(w, 1)
    compiled = qhw.compile_circuit(
        circuit, qhw.Device.load("fake_manila"), inputs=[x], weights=[w], observables=[SparsePauliOp("ZI")]
    )
    layer = qhw.QuantumLayer(compiled, "noisy", dtype=torch.float64)
    assert not is_used(layer, 8)
    rows = torch.linspace(-2, 2, 8, dtype=torch.float64)[:, None]
    torch.testing.assert_close(layer(rows), torch.cat([layer(row[None]) for row in rows]), rtol=0, atol=1e-12)
