"""Values without gradient: what depends on the weights alone is made once, and nothing else changes."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp

import qhw_diffusion as qhw
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Ideal
from tests.execution import test_layer
from tests.execution.test_layer import OBSERVABLES


@cache
def compiled(reuploading: bool = False) -> CompiledCircuit:
    return test_layer.compiled(reuploading=reuploading)


def inputs(batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, generator=torch.Generator().manual_seed(batch)).to(dtype)


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
@pytest.mark.parametrize("reuploading", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bit_for_bit_those_with_gradient(engine: str, reuploading: bool, dtype: torch.dtype) -> None:
    layer = qhw.QuantumLayer(compiled(reuploading=reuploading), engine, dtype=dtype)
    for step in range(3):  # other weights, in place, as an optimiser sets them; and the first ones again
        for batch in (1, len(OBSERVABLES), len(OBSERVABLES) + 1, 20, 3):  # the observables taken half-way, and not
            with torch.no_grad():
                found, again = layer(inputs(batch, dtype)), layer(inputs(batch, dtype))
            with_gradient = layer(inputs(batch, dtype))
            assert with_gradient.requires_grad
            assert not found.requires_grad
            assert torch.equal(found, with_gradient)
            assert torch.equal(found, again)
            assert torch.equal(found, layer.estimate(inputs(batch, dtype)).values)
        with torch.no_grad():
            layer.weight += (0.5, -0.5, 0.0)[step]
    fresh = qhw.QuantumLayer(compiled(reuploading=reuploading), engine, dtype=dtype)
    fresh.load_state_dict(layer.state_dict())
    with torch.no_grad():
        assert torch.equal(layer(inputs(20, dtype)), fresh(inputs(20, dtype)))


def test_layers_of_one_circuit_do_not_take_each_others_weights() -> None:
    made = compiled()
    first, second = (qhw.QuantumLayer(made, "noisy", seed=seed) for seed in (0, 1))
    with torch.no_grad():
        before = first(inputs(9))
        between = second(inputs(9))
        assert torch.equal(first(inputs(9)), before)
        assert torch.equal(second(inputs(9)), between)
        assert not torch.allclose(before, between)


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
def test_what_is_not_finite_is_refused(engine: str) -> None:
    layer = qhw.QuantumLayer(compiled(), engine)
    with torch.no_grad():
        layer(inputs(9))  # what is kept of these weights helps nobody
        for value in (float("nan"), float("inf")):
            given = inputs(9)
            given[4, 1] = value
            with pytest.raises(InvalidInputError, match="NaN or infinit"):
                layer(given)
        layer.weight[2] = float("nan")
        with pytest.raises(InvalidInputError, match="NaN or infinit"):
            layer(inputs(9))


def test_an_input_that_enters_no_angle_has_to_be_finite_too() -> None:
    circuit, used, idle = QuantumCircuit(1), Parameter("used"), Parameter("idle")
    circuit.rx(used + 0 * idle, 0)
    made = qhw.compile_circuit(
        circuit, qhw.Device.load("ideal"), inputs=[used, idle], weights=[], observables=[SparsePauliOp("Z")]
    )
    assert made.program.idle_inputs
    with torch.no_grad(), pytest.raises(InvalidInputError, match="NaN or infinit"):
        qhw.QuantumLayer(made)(torch.tensor([[0.1, float("nan")]]))


class Halved(Ideal):
    """Derived from an exact engine, with an estimate of its own."""

    def estimate(self, compiled: CompiledCircuit, parameters: torch.Tensor) -> Estimate:
        """Half the exact values."""
        exact = super().estimate(compiled, parameters)
        return Estimate(exact.values / 2, exact.std_errors)


def test_an_engine_derived_from_an_exact_one_has_the_say() -> None:
    with torch.no_grad():
        exact = qhw.QuantumLayer(compiled(), "ideal")(inputs(9))
        assert torch.equal(qhw.QuantumLayer(compiled(), Halved())(inputs(9)), exact / 2)
