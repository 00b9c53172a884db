"""The compiled simulation: blocks of samples, recomputation, rows with weights of their own, memory."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from qiskit.quantum_info import SparsePauliOp

import qhw_diffusion as qhw
from qhw_diffusion.circuits import denoiser_circuit, policy_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, MemoryBudgetError
from qhw_diffusion.execution import Ideal, Noisy, simulator
from qhw_diffusion.execution.fusion import REAL_LOCAL, is_monomial


@functools.cache
def compiled(name: str, n: int = 3, *, reuploading: bool = True) -> qhw.CompiledCircuit:
    policy = policy_circuit(n, 2, n + 1, reuploading=reuploading)
    return qhw.compile_circuit(
        policy.circuit,
        Device.load(name),
        inputs=policy.inputs,
        weights=policy.weights,
        observables=policy.observables,
    )


def values_and_gradients(made: qhw.CompiledCircuit, engine: str, batch: int = 37) -> list[torch.Tensor]:
    layer = qhw.QuantumLayer(made, engine, dtype=torch.float64, seed=2)
    x = torch.linspace(-3, 3, batch * made.n_inputs, dtype=torch.float64).reshape(batch, -1).sin().requires_grad_()
    values = layer(x)
    cotangent = torch.linspace(-1, 2, values.numel(), dtype=torch.float64).reshape(values.shape)
    return [values.detach(), *torch.autograd.grad((values * cotangent).sum(), (x, layer.weight))]


@pytest.mark.parametrize(("name", "engine"), [("ideal", "ideal"), ("fake_manila", "ideal"), ("fake_manila", "noisy")])
@pytest.mark.parametrize("reuploading", [True, False])
def test_chunks_and_recomputation_change_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, engine: str, reuploading: bool
) -> None:
    made = compiled(name, reuploading=reuploading)
    reference = values_and_gradients(made, engine)
    monkeypatch.setattr(simulator, "CHUNK_COLUMNS", 5)
    monkeypatch.setattr(simulator, "CHUNK_BYTES", 1)
    monkeypatch.setattr(simulator, "WORK", 1)
    monkeypatch.setattr(simulator, "PRODUCT_BYTES", 1)
    monkeypatch.setattr(simulator, "UNITARY_BYTES", 1)
    monkeypatch.setattr(simulator, "UNITARY_COLUMNS", 5)
    monkeypatch.setattr(simulator, "TAIL_COLUMNS", 2)
    plan = qhw.QuantumLayer(made, engine).memory_plan(37)
    assert plan.columns == 5
    for found, wanted in zip(values_and_gradients(made, engine), reference, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    monkeypatch.setattr(simulator, "KEEP_BYTES", 0)
    monkeypatch.setattr(simulator, "COPIES_BYTES", 1)
    plan = qhw.QuantumLayer(made, engine).memory_plan(37)
    assert plan.columns == (1 if engine == "ideal" or reuploading else 5)
    expected = engine == "noisy" and reuploading
    assert plan.recompute == expected, "an ideal circuit is run backwards instead, a product keeps next to nothing"
    for found, wanted in zip(values_and_gradients(made, engine), reference, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", [Ideal(), Noisy()], ids=["ideal", "noisy"])
def test_rows_may_have_weights_of_their_own(engine: Ideal) -> None:
    made = compiled("fake_manila")
    rows = torch.randn(4, made.n_inputs + made.n_weights, generator=torch.Generator().manual_seed(1)).double()
    together = engine.estimate(made, rows).values
    for row, found in zip(rows, together, strict=True):
        alone = engine.expectation(made, row[None, : made.n_inputs], row[made.n_inputs :])
        torch.testing.assert_close(found[None], alone, rtol=0, atol=1e-12)
    assert not engine.estimate(made, rows).std_errors.any()


def test_fewer_samples_than_observables_take_the_other_way_round() -> None:
    """One sample is carried through the whole circuit, many only up to the last input: the same numbers."""
    made = compiled("fake_manila", reuploading=False)
    layer = qhw.QuantumLayer(made, "noisy", dtype=torch.float64)
    x = torch.rand(6, made.n_inputs, generator=torch.Generator().manual_seed(0)).double()
    many = layer(x)
    one = torch.cat([layer(row[None]) for row in x])
    torch.testing.assert_close(one, many, rtol=0, atol=1e-12)
    (by_many,) = torch.autograd.grad(many.sum(), layer.weight)
    (by_one,) = torch.autograd.grad(one.sum(), layer.weight)
    torch.testing.assert_close(by_one, by_many, rtol=0, atol=1e-12)


def test_backward_may_run_twice() -> None:
    layer = qhw.QuantumLayer(compiled("ideal"), "ideal", dtype=torch.float64)
    values = layer(torch.ones(3, layer.compiled.n_inputs, dtype=torch.float64))
    first = torch.autograd.grad(values.sum(), layer.weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(values.sum(), layer.weight)[0])


def test_the_same_seed_gives_the_same_bits() -> None:
    for engine in ("ideal", "noisy"):
        first, second = (values_and_gradients(compiled("fake_manila"), engine) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_single_precision_is_single_precision() -> None:
    made = compiled("fake_manila")
    double, single = (qhw.QuantumLayer(made, "noisy", dtype=d, seed=4) for d in (torch.float64, torch.float32))
    x = torch.rand(5, made.n_inputs, generator=torch.Generator().manual_seed(0))
    assert single(x).dtype == torch.float32
    assert (single(x).double() - double(x.double())).abs().max() < 5e-6


@pytest.mark.slow
def test_deep_blocks_take_little_memory() -> None:
    """8 qubits, about 1,000 weights, batch 32, under noise: planned below 8 GiB, 200 weights below 4 GiB."""
    for depth, limit in ((8, 4), (42, 8)):
        block = denoiser_circuit(8, depth, n_features=8)
        made = qhw.compile_circuit(
            block.circuit,
            Device.load("fake_marrakesh"),
            inputs=block.inputs,
            weights=block.weights,
            observables=block.observables,
            optimization_level=1,
        )
        assert qhw.QuantumLayer(made, "noisy").memory_plan(32).bytes < limit * 2**30


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_made() -> None:
    layer = qhw.QuantumLayer(compiled("fake_manila"), "noisy")
    with pytest.raises(MemoryBudgetError, match=r"a batch of 1000000000.*smaller batch"):
        layer.memory_plan(10**9)
    with pytest.raises(InvalidInputError, match="plans no memory"):
        layer.with_engine("shots").memory_plan(1)


def test_observables_that_do_not_fit_are_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 63 Pauli strings of three qubits take 64 rows of 63 numbers; one sample takes a ninth of it."""
    policy = policy_circuit(3, 1, 3)
    strings = ["".join(letters) for letters in itertools.product("IXYZ", repeat=3)][1:]
    made = qhw.compile_circuit(
        policy.circuit,
        Device.load("fake_manila"),
        inputs=policy.inputs,
        weights=policy.weights,
        observables=[SparsePauliOp(string) for string in strings],
    )
    monkeypatch.setattr(simulator, "_memory", lambda: 10_000)
    with pytest.raises(
        MemoryBudgetError, match=r"63 observables would need .* Use fewer observables, or engine='ideal'"
    ):
        qhw.QuantumLayer(made, "noisy")
    monkeypatch.setattr(simulator, "_memory", lambda: 2**30)
    assert qhw.QuantumLayer(made, "noisy")(torch.zeros(1, 3)).shape == (1, 63)


def test_the_real_basis_of_a_qubit_is_orthonormal_and_hermitian() -> None:
    np.testing.assert_allclose(REAL_LOCAL @ REAL_LOCAL.conj().T, np.eye(4), atol=1e-15)
    for row in REAL_LOCAL.conj():  # coordinate = tr(B ρ), so B = Σ row[rc] |c⟩⟨r|
        basis = row.conj().reshape(2, 2).T
        np.testing.assert_allclose(basis, basis.conj().T, atol=1e-15)
    assert is_monomial(np.array([[0, -1], [1, 0]]))
    assert not is_monomial(np.array([[0, 0.5], [1, 0]]))
    assert not is_monomial(np.array([[1, 1], [1, 0]]))
