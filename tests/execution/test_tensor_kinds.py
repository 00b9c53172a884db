"""Tensors a network hands over: on another device, in short floats, sparse, under autocast. Every engine takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from elsewhere import pretended_device
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

import qhw_diffusion as qhw
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import SPSA, Engine, GradientMethod, ParameterShift, Shots, Surrogate, aer_estimator
from qhw_diffusion.execution.evolution import Evolution
from qhw_diffusion.mitigation import (
    STRATEGIES,
    ZNE,
    DynamicalDecoupling,
    Mitigated,
    PauliTwirling,
    Readout,
    strategy_of,
)

X = [Parameter(f"x{i}") for i in range(2)]
W = [Parameter(f"w{i}") for i in range(2)]


def compiled(measured: bool = False, scheduled: bool = True) -> qhw.CompiledCircuit:
    qc = QuantumCircuit(2, 1)
    qc.ry(X[0], 0)
    qc.rx(X[1] + W[0], 1)
    qc.cx(0, 1)
    if measured:
        qc.measure(1, 0)
    qc.ry(W[1], 1)
    qc.rx(W[0], 0)
    observables = [SparsePauliOp("IZ"), SparsePauliOp(["XX", "ZI"], [0.5, 1])]
    return qhw.compile_circuit(
        qc, qhw.Device.load("fake_manila"), inputs=X, weights=W, observables=observables, scheduled=scheduled
    )


COMPILED = compiled()
ENGINES: dict[str, Callable[[], str | Engine]] = {
    "ideal": lambda: "ideal",
    "noisy": lambda: "noisy",
    "shots": lambda: Shots(256, seed=1),
    "primitive": lambda: qhw.Primitive(aer_estimator(COMPILED, seed=1), precision=0.05, reduced=True),
    "readout": lambda: Mitigated("noisy", [Readout()]),
    "readout, inverse": lambda: Mitigated(Shots(256, seed=1), [Readout("correlated")]),
    "zne": lambda: Mitigated("noisy", [ZNE()]),
    "twirling": lambda: Mitigated("noisy", [PauliTwirling(2)]),
    "decoupling": lambda: Mitigated("noisy", [DynamicalDecoupling()]),
}
GRADIENTS: dict[str, Callable[[], GradientMethod]] = {
    "shift": ParameterShift,
    "spsa": lambda: SPSA(seed=2),
    "surrogate": Surrogate,
}


# Where a GPU is at hand, everything runs there too.
@pytest.fixture(params=["pretended", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "cuda":
        yield torch.device("cuda")
    else:
        with pretended_device() as pretended:
            yield pretended


def inputs() -> Tensor:
    return torch.randn(3, 2, generator=torch.Generator().manual_seed(0))


def layer(engine: str, gradient: GradientMethod | None = None) -> qhw.QuantumLayer:
    return qhw.QuantumLayer(COMPILED, ENGINES[engine](), gradient=gradient)


def same(there: Tensor | None, here: Tensor | None) -> None:
    assert there is not None
    torch.testing.assert_close(there.detach().cpu(), here)


@pytest.mark.slow
@pytest.mark.parametrize("moved", [False, True], ids=["layer on the CPU", "layer moved"])
@pytest.mark.parametrize("engine", ENGINES)
def test_values_on_another_device(engine: str, moved: bool, device: torch.device) -> None:
    here, there = layer(engine), layer(engine)
    there = there.to(device) if moved else there
    with torch.no_grad():
        values = there(inputs().to(device))
        same(values, here(inputs()))
    assert values.device.type == device.type
    estimate, expected = there.estimate(inputs().to(device)), here.estimate(inputs())
    same(estimate.values, expected.values)
    same(estimate.std_errors, expected.std_errors)
    assert estimate.values.device.type == estimate.std_errors.device.type == device.type


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_mitigation_strategy_takes_tensors_of_another_device(strategy: str, device: torch.device) -> None:
    if strategy.startswith("mitiq-"):
        pytest.importorskip("mitiq")
    circuit = compiled(scheduled=strategy == "decoupling")
    rows = torch.cat([inputs(), inputs()], dim=1)[:2]
    here, there = (Mitigated("noisy", [strategy_of(strategy)]) for _ in range(2))
    same(there.estimate(circuit, rows.to(device)).values, here.estimate(circuit, rows).values)


@pytest.mark.slow
@pytest.mark.parametrize("moved", [False, True], ids=["layer on the CPU", "layer moved"])
@pytest.mark.parametrize(
    ("engine", "gradient"),
    [
        *(pytest.param(name, None, id=name) for name in ENGINES if name not in ("primitive", "readout, inverse")),
        *(pytest.param("shots", name, id=f"shots, {name}") for name in GRADIENTS),
        *(pytest.param("primitive", name, id=f"primitive, {name}") for name in GRADIENTS),
        *(pytest.param("readout, inverse", name, id=f"mitigated, {name}") for name in GRADIENTS),
    ],
)
def test_gradients_on_another_device(engine: str, gradient: str | None, moved: bool, device: torch.device) -> None:
    here, there = (layer(engine, None if gradient is None else GRADIENTS[gradient]()) for _ in range(2))
    there = there.to(device) if moved else there
    x_here, x_there = inputs().requires_grad_(), inputs().to(device).requires_grad_()
    here(x_here).square().sum().backward()
    there(x_there).square().sum().backward()
    same(x_there.grad, x_here.grad)
    same(there.weight.grad, here.weight.grad)
    assert there.weight.grad is not None
    assert there.weight.grad.device.type == (device.type if moved else "cpu")


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
def test_second_derivatives_on_another_device(engine: str, device: torch.device) -> None:
    here = there = layer(engine)
    slopes = []
    for each, x in ((here, inputs()), (there, inputs().to(device))):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(each(x).square().sum(), x, create_graph=True)
        slopes.append(torch.autograd.grad(slope.square().sum(), each.weight)[0])
    same(slopes[1], slopes[0])


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
@pytest.mark.parametrize("pure", [True, False])
def test_evolution_on_another_device(engine: str, pure: bool, device: torch.device) -> None:
    evolution = Evolution(COMPILED, data=[0], measured=[1], engine=engine)
    states = torch.tensor([[0.6, 0.8j], [1, 0], [0.8, -0.6]], dtype=torch.complex64)
    states = states if pure else states[:, :, None] * states[:, None, :].conj()
    weights = torch.tensor([0.3, -0.7])
    here = evolution(states, weights, inputs())
    there = evolution(states.to(device), weights, inputs())  # weights on the CPU, as a model's may be
    also = evolution(states.to(device), weights.to(device), inputs().to(device))
    for branches in (there, also):
        assert branches.states.device.type == branches.probabilities.device.type == device.type
        same(branches.states, here.states)
        same(branches.probabilities, here.probabilities)
    outcomes = there.sample(torch.Generator().manual_seed(1))
    assert outcomes.device.type == device.type
    same(outcomes, here.sample(torch.Generator().manual_seed(1)))
    same(there.select(outcomes)[1], here.select(outcomes.cpu())[1])
    same(evolution.read_data(there.probabilities.T), evolution.read_data(here.probabilities.T))
    if pure and engine == "ideal":
        same(evolution.kraus(weights.to(device), inputs()[:1].to(device)), evolution.kraus(weights, inputs()[:1]))


def test_sampled_trajectories_on_another_device(device: torch.device) -> None:
    measuring = qhw.QuantumLayer(compiled(measured=True), "noisy")
    there = measuring.sample(inputs().to(device), torch.Generator().manual_seed(1))
    here = measuring.sample(inputs(), torch.Generator().manual_seed(1))
    same(there.values, here.values)
    same(there.outcomes, here.outcomes)


# name → (given, what it means)
KINDS: dict[str, Callable[[], Tensor]] = {
    "bfloat16": lambda: inputs().bfloat16(),
    "float16": lambda: inputs().half(),
    "float64": lambda: inputs().double(),
    "whole numbers": lambda: torch.tensor([[1, 2], [0, -1], [3, 3]]),
    "sparse": lambda: inputs().relu().to_sparse(),
    "sparse rows": lambda: inputs().relu().to_sparse_csr(),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_kinds_of_numbers(engine: str, kind: str) -> None:
    given = KINDS[kind]()
    plain = given.to_dense().float()
    with torch.no_grad():
        values = layer(engine)(given)
        torch.testing.assert_close(values, layer(engine)(plain))
    assert values.dtype == torch.float32
    # the engines themselves
    rows = torch.cat([given.to_dense(), given.to_dense()[:, :2]], dim=1)
    chosen = layer(engine).engine, layer(engine).engine
    direct, expected = chosen[0].estimate(COMPILED, rows), chosen[1].estimate(COMPILED, rows.float())
    torch.testing.assert_close(direct.values.float(), expected.values)
    assert direct.values.dtype == (torch.float64 if kind == "float64" else torch.float32)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("gradient", [None, *GRADIENTS])
def test_gradients_come_back_in_the_inputs_own_type(kind: str, gradient: str | None) -> None:
    x = KINDS[kind]().requires_grad_()
    plain = x.detach().float().requires_grad_()
    for given in (x, plain):
        method = None if gradient is None else GRADIENTS[gradient]()
        layer("shots" if gradient else "noisy", method)(given).square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == x.dtype
    torch.testing.assert_close(x.grad.float(), plain.grad, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("train", [True, False])
def test_a_linear_layer_ahead_under_autocast(engine: str, train: bool) -> None:
    head = torch.nn.Linear(2, 2)
    with nullcontext() if train else torch.no_grad():
        gradient = GRADIENTS["shift"]() if engine in ("primitive", "readout, inverse") else None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            angles = head(inputs())
            assert angles.dtype == torch.bfloat16
            values = layer(engine, gradient)(angles)
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, layer(engine, gradient)(angles.detach().float()))
    if train:
        values.sum().backward()
        assert head.weight.grad is not None
        assert head.weight.grad.abs().sum() > 0


def test_autocast_does_not_shorten_an_evolution_or_what_torch_func_sees() -> None:
    evolution = Evolution(COMPILED, data=[0], measured=[1], engine="noisy")
    states = torch.tensor([[0.6, 0.8j]], dtype=torch.complex64)
    weights, exact = torch.tensor([0.3, -0.7]), layer("noisy")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short = evolution(states, weights, inputs()[:1])
        batched = torch.func.vmap(exact)(inputs()[None])
    torch.testing.assert_close(short.probabilities, evolution(states, weights, inputs()[:1]).probabilities)
    torch.testing.assert_close(batched, exact(inputs())[None])


@pytest.mark.parametrize("engine", ENGINES)
def test_complex_inputs_are_refused(engine: str) -> None:
    with pytest.raises(InvalidInputError, match="complex64"):
        layer(engine)(inputs().to(torch.complex64))
    with pytest.raises(InvalidInputError, match="complex64"):
        layer(engine).engine.estimate(COMPILED, torch.zeros(1, 4, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_made_short_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InvalidInputError, match=r"allowed: torch\.float32, torch\.float64"):
        layer("noisy").to(dtype)(inputs())
