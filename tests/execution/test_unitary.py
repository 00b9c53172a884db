"""Unitary circuits in compiled calls alone; the usual way and finite differences are the witnesses."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

import qhw_diffusion as qhw
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import simulator, unitary
from qhw_diffusion.execution.engines import simulator_of


def layer_of(reuploading: bool = False, dtype: torch.dtype = torch.float64) -> qhw.QuantumLayer:
    made = qhw.circuits.policy_circuit(n_qubits=3, depth=2, n_features=4, reuploading=reuploading)
    compiled = qhw.compile_circuit(
        made.circuit, qhw.Device.load("ideal"), inputs=made.inputs, weights=made.weights, observables=made.observables
    )
    return qhw.QuantumLayer(compiled, dtype=dtype, seed=3)


def step(layer: qhw.QuantumLayer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, and the gradient of a sum of them with weights of their own."""
    x = x.clone().requires_grad_()
    values = layer(x)
    factors = torch.arange(1.0, values.numel() + 1, dtype=values.dtype).reshape(values.shape)
    by_inputs, by_weights = torch.autograd.grad((values * factors).sum(), (x, layer.weight))
    return values.detach(), by_inputs, by_weights


def is_unitary(layer: qhw.QuantumLayer) -> bool:
    return simulator_of(layer.compiled, False, layer.weight.dtype).unitary is not None


def in_blocks_of(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"UNITARY_BYTES": 1, "UNITARY_COLUMNS": columns, "WORK": 2**40}.items():
        monkeypatch.setattr(simulator, name, value)


@pytest.mark.parametrize("reuploading", [False, True])
@pytest.mark.parametrize(("batch", "columns"), [(1, 16), (2, 16), (7, 16), (8, 8), (33, 64), (33, 16), (33, 3), (7, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_values_and_gradients_are_those_of_the_usual_way(
    reuploading: bool, batch: int, columns: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks_of(columns, monkeypatch)
    x = torch.randn(batch, 4, generator=torch.Generator().manual_seed(batch), dtype=dtype)
    layer = layer_of(reuploading, dtype)
    mine = step(layer, x)
    assert is_unitary(layer)
    assert layer.memory_plan(batch).columns == min(batch, columns)
    monkeypatch.setattr(simulator, "fits", lambda *_: False)
    other = layer_of(reuploading, dtype)
    wanted = step(other, x)
    assert not is_unitary(other)
    for found, exact in zip(mine, wanted, strict=True):
        torch.testing.assert_close(found, exact, rtol=0, atol=tolerance * max(1.0, float(exact.abs().max())))


@pytest.mark.parametrize("columns", [16, 2])
def test_gradients_by_finite_differences(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks_of(columns, monkeypatch)
    layer = layer_of(True)
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert is_unitary(layer)

    def values(x: Tensor, w: Tensor) -> Tensor:
        return layer.engine.expectation(layer.compiled, x, w)

    assert torch.autograd.gradcheck(values, (x, layer.weight))


@pytest.mark.parametrize("columns", [16, 2])
@pytest.mark.parametrize("keep_from", [1, 1000])
def test_values_with_and_without_gradient_are_the_same_bits(
    columns: int, keep_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the weights have changed, where what is made of them is kept."""
    in_blocks_of(columns, monkeypatch)
    monkeypatch.setattr(unitary, "KEEP_FROM", keep_from)
    layer = layer_of(dtype=torch.float32)
    x = torch.randn(5, 4)
    for change in (0.0, 0.0, 0.3):
        with torch.no_grad():
            layer.weight += change
            without = layer(x)
        assert torch.equal(layer(x).detach(), without)


def test_a_sample_has_the_same_bits_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks_of(16, monkeypatch)
    layer, x = layer_of(dtype=torch.float32), torch.randn(37, 4)
    with torch.no_grad():
        together = layer(x)
        assert all(torch.equal(layer(x[k : k + 1])[0], together[k]) for k in range(37))


@pytest.mark.parametrize("columns", [16, 1])
def test_a_graph_is_taken_back_twice_and_one_of_two_graphs_first(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks_of(columns, monkeypatch)
    layer = layer_of()
    x, y = torch.randn(2, 2, 4, dtype=torch.float64).unbind()
    first, second = layer(x).sum(), layer(y).sum()
    (by_second,) = torch.autograd.grad(second, layer.weight)
    (once,) = torch.autograd.grad(first, layer.weight, retain_graph=True)
    (twice,) = torch.autograd.grad(first, layer.weight)
    assert torch.equal(once, twice)
    assert not torch.equal(once, by_second)


@pytest.mark.parametrize("columns", [16, 1])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(wrong: float, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks_of(columns, monkeypatch)
    layer = layer_of()
    x = torch.zeros(2, 4, dtype=torch.float64)
    x[1, 2] = wrong
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient), pytest.raises(InvalidInputError, match="1 of the 8 inputs are NaN"):
            layer(x)
    with torch.no_grad():
        layer.weight[0] = wrong
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient), pytest.raises(InvalidInputError, match="weights are NaN or infinity"):
            layer(torch.zeros(2, 4, dtype=torch.float64))


def test_inputs_that_are_not_contiguous_and_cotangents_that_are_spread() -> None:
    layer = layer_of()
    x = torch.randn(4, 3, dtype=torch.float64).T.detach()
    strided = step(layer, x)[1]
    torch.testing.assert_close(strided, step(layer, x.contiguous())[1], rtol=0, atol=1e-14)
    layer(x).sum().backward()  # the gradient of a sum is one number spread out
    assert layer.weight.grad is not None


def test_copies_in_memory_and_on_disk_give_the_same() -> None:
    layer = layer_of()
    x = torch.randn(2, 4, dtype=torch.float64)
    wanted = layer(x).detach()
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(x).detach(), wanted)


@pytest.mark.parametrize("shared", [True, False])
def test_rows_of_parameters(shared: bool) -> None:
    """Of the same weights, and each of weights of its own."""
    layer = layer_of()
    rows = torch.randn(5, 4 + layer.compiled.n_weights, dtype=torch.float64)
    rows[1:, 4:] = rows[0, 4:] if shared else rows[1:, 4:]
    found = layer.engine.estimate(layer.compiled, rows).values
    for row, values in zip(rows, found, strict=True):
        with torch.no_grad():
            layer.weight.copy_(row[4:])
            torch.testing.assert_close(values, layer(row[None, :4])[0], rtol=0, atol=1e-13)


def small_circuit(device: str, observables: list[SparsePauliOp] | None = None) -> qhw.CompiledCircuit:
    made = qhw.circuits.policy_circuit(n_qubits=2, depth=1, n_features=2)
    return qhw.compile_circuit(
        made.circuit,
        qhw.Device.load(device),
        inputs=made.inputs,
        weights=made.weights,
        observables=observables or made.observables,
    )


def test_noise_goes_the_usual_way() -> None:
    compiled = small_circuit("fake_manila")
    assert simulator_of(compiled, True).unitary is None
    assert simulator_of(compiled, False).unitary is not None


def test_observables_other_than_z_go_the_usual_way() -> None:
    compiled = small_circuit("ideal", [SparsePauliOp(["ZI"]), SparsePauliOp(["XX"])])
    assert simulator_of(compiled, False).unitary is None
    assert np.isfinite(qhw.QuantumLayer(compiled)(torch.zeros(1, 2)).detach().numpy()).all()


def test_without_gradient_nothing_of_a_block_stays() -> None:
    """Else a large batch would hold what its backward pass would need."""
    layer, x = layer_of(), torch.zeros(6, 4, dtype=torch.float64)
    circuit = simulator_of(layer.compiled, False, torch.float64).unitary
    assert circuit is not None
    for keep in (True, False):
        made = circuit.forward(x, layer.weight.detach(), 2, 1, keep)
        assert made is not None
        _, buffers, *_ = made[1]
        assert len(buffers) == keep * 3 * circuit.layout(2).lengths["of_block"]
