"""Observables that are constants: their value, no error, no gradient, nothing sent, on every engine and strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import BackendEstimatorV2, StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp

import qhw_diffusion as qhw
from qhw_diffusion.execution import (
    SPSA,
    GradientMethod,
    ParameterShift,
    Surrogate,
    aer_backend,
    aer_estimator,
    runtime_estimator,
)
from qhw_diffusion.execution.primitive import pub_of
from qhw_diffusion.hardware import content_key
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import open_runner
from qhw_diffusion.mitigation import engine_of

X, W = Parameter("x"), Parameter("w")
CONSTANTS = {
    "coefficient 0": (SparsePauliOp("ZZ", [0.0]), 0.0),
    "Z - Z": (SparsePauliOp(["ZI", "ZI"], [1.0, -1.0]), 0.0),
    "three that cancel but for rounding": (SparsePauliOp(["XX", "XX", "XX"], [0.1, 0.2, -0.3]), 0.0),
    "identity": (SparsePauliOp("II"), 1.0),
    "sum of identities": (SparsePauliOp(["II", "II", "ZZ"], [2.0, 0.5, 0.0]), 2.5),
    "negative": (SparsePauliOp(["II", "ZX", "ZX"], [-0.75, 2.0, -2.0]), -0.75),
}
ORDINARY = (SparsePauliOp("ZI"), SparsePauliOp(["XI", "IZ", "II"], [0.5, -1.0, 0.25]))


@cache
def compiled(*names: str, ordinary: bool = False, scheduled: bool = False) -> qhw.CompiledCircuit:
    circuit = QuantumCircuit(2)
    circuit.ry(X, 0)
    circuit.cx(0, 1)
    circuit.ry(W, 1)
    circuit.cx(0, 1)
    circuit.rx(0.3, 1)
    observables = [CONSTANTS[name][0] for name in names]
    if ordinary:
        observables = [ORDINARY[0], *observables, ORDINARY[1]]
    return qhw.compile_circuit(
        circuit,
        qhw.Device.load("fake_manila"),
        inputs=[X],
        weights=[W],
        observables=observables,
        optimization_level=1,
        scheduled=scheduled,
    )


class Spy(BackendEstimatorV2):
    """Counts the PUBs and observables that are sent to the device's simulation."""

    def __init__(self, inner: Any) -> None:
        super().__init__(backend=inner._backend)
        self.inner, self.sent = inner, []

    def run(self, pubs: Any, *, precision: float | None = None) -> Any:
        pubs = list(pubs)
        self.sent += [len(pub[1]) for pub in pubs]
        return self.inner.run(pubs, precision=precision)


def spied() -> qhw.Primitive:
    return qhw.Primitive(Spy(aer_estimator(compiled("identity"), seed=3)), precision=0.05, reduced=True)


ENGINES: dict[str, Callable[[], Any]] = {
    "ideal": lambda: "ideal",
    "noisy": lambda: "noisy",
    "shots": lambda: "shots:100",
    "spied primitive": spied,
    "statevector": lambda: qhw.Primitive(StatevectorEstimator(), precision=0.05, reduced=True),
}
METHODS: dict[str, Callable[[], GradientMethod]] = {
    "shift": ParameterShift, "spsa": SPSA, "surrogate": lambda: Surrogate("noisy")
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_constant_alone_costs_nothing_on_every_engine(engine: str, name: str) -> None:
    chosen = ENGINES[engine]()
    layer = qhw.QuantumLayer(compiled(name), chosen)
    estimate = layer.estimate(torch.tensor([[0.3], [1.2]]))
    assert estimate.values.shape == (2, 1)
    torch.testing.assert_close(estimate.values, torch.full((2, 1), CONSTANTS[name][1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(estimate.std_errors, torch.zeros(2, 1))
    assert (estimate.usage.circuits, estimate.usage.shots) == (0, 0)
    if engine == "spied primitive":
        assert chosen.estimator.sent == []


@pytest.mark.parametrize("engine", ENGINES)
def test_constants_among_others_leave_the_others_as_they_are(engine: str) -> None:
    """Seeds give the numbers they give without the constants."""
    mixed, plain = compiled(*CONSTANTS, ordinary=True), compiled(ordinary=True)
    chosen = ENGINES[engine]()
    x = torch.tensor([[0.3], [1.2]])
    if engine == "statevector":
        chosen = qhw.Primitive(StatevectorEstimator(seed=5), precision=0.05, reduced=True)
    estimate = qhw.QuantumLayer(mixed, chosen).estimate(x)
    fresh = chosen if engine in ("ideal", "noisy", "shots", "statevector") else spied()
    wanted = qhw.QuantumLayer(plain, fresh).estimate(x)
    constants = torch.tensor([value for _, value in CONSTANTS.values()]).expand(2, -1)
    torch.testing.assert_close(estimate.values[:, 1:-1], constants, atol=1e-6, rtol=0)
    assert not estimate.std_errors[:, 1:-1].any()
    for found, expected in ((estimate.values, wanted.values), (estimate.std_errors, wanted.std_errors)):
        torch.testing.assert_close(found[:, [0, -1]], expected, atol=1e-6, rtol=0)
    assert estimate.usage == wanted.usage
    if engine == "spied primitive":
        assert chosen.estimator.sent == [2]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["own", *METHODS])
def test_gradients_of_constants_are_zero(engine: str, method: str, name: str) -> None:
    if method == "own" and engine in ("spied primitive", "statevector"):
        method = "shift"
    gradient = None if method == "own" else METHODS[method]()
    layer = qhw.QuantumLayer(compiled(name), ENGINES[engine](), gradient=gradient)
    x = torch.tensor([[0.3], [1.2]], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert x.grad.abs().max() < 1e-6
    assert layer.weight.grad.abs().max() < 1e-6


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger") as opened:
        yield opened


def test_a_device_is_sent_what_is_not_constant_only(ledger: Ledger) -> None:
    engine = qhw.Hardware(open_runner("fake_manila", ledger=ledger, run="test"), shots=100)
    x = torch.tensor([[0.3], [1.2]])
    alone = qhw.QuantumLayer(compiled(*CONSTANTS), engine).estimate(x)
    assert len(ledger.rows()) == 0
    torch.testing.assert_close(alone.values[0].double(), torch.tensor([v for _, v in CONSTANTS.values()]).double())
    mixed = qhw.QuantumLayer(compiled(*CONSTANTS, ordinary=True), engine).estimate(x)
    plain = qhw.QuantumLayer(compiled(ordinary=True), engine).estimate(x)
    assert len(ledger.rows()) == 1  # the same work has the same key
    torch.testing.assert_close(mixed.values[:, [0, -1]], plain.values)
    many = engine.estimate_many(
        [(compiled("identity"), x.new_zeros(3, 2)), (compiled(ordinary=True), x.new_zeros(1, 2))]
    )
    assert [e.values.shape for e in many] == [(3, 1), (1, 2)]


def test_keys_of_ordinary_jobs_are_those_of_the_observables_as_given() -> None:
    made = compiled(ordinary=True)
    pub = pub_of(made, torch.zeros(1, 2), 0.1)
    given = [o.apply_layout(made.isa.layout) for o in ORDINARY]
    for one, other in zip(pub.observables, given, strict=True):
        assert one.to_list() == other.to_list()
    keys = {
        content_key(made.isa, observables, pub.values, pub.parameters, {}, "d", "p")
        for observables in (list(pub.observables), given)
    }
    assert len(keys) == 1


STRATEGIES = [
    "readout", "readout:measured", "readout:correlated", "zne", "zne:exponential:1,3,5", "zne:richardson:1,3,5:global",
    "twirling:3", "decoupling", "readout+zne", "mitiq-zne", "mitiq-cdr", "mitiq-cdr:12:0.5:rows:0", "mitiq-pec:10",
    "mitiq-twirling:3", "mitiq-ddd", "mitiq-lre:1:2",
]  # fmt: skip


def strategy_engine(base: str, strategies: str) -> Any:
    if strategies.startswith("mitiq"):
        pytest.importorskip("mitiq")
    return engine_of(f"{base}+{strategies}")


@pytest.mark.slow
@pytest.mark.parametrize("strategies", STRATEGIES)
@pytest.mark.parametrize("base", ["noisy", "shots:50"])
def test_constants_under_every_strategy(base: str, strategies: str) -> None:
    constants = torch.tensor([value for _, value in CONSTANTS.values()])
    x = torch.tensor([[0.3], [1.2]], requires_grad=True)
    scheduled = strategies == "decoupling"
    for ordinary in (False, True):
        made = compiled(*CONSTANTS, ordinary=ordinary, scheduled=scheduled)
        layer = qhw.QuantumLayer(made, strategy_engine(base, strategies))
        estimate = layer.estimate(x.detach())
        inner = slice(1, -1) if ordinary else slice(None)
        torch.testing.assert_close(estimate.values[:, inner], constants.expand(2, -1), atol=1e-6, rtol=0)
        assert not estimate.std_errors[:, inner].any()
        if not ordinary:
            assert estimate.usage.circuits == 0
        if layer.engine.differentiable:
            layer(x)[:, inner].sum().backward()
            assert x.grad is not None
            assert not x.grad.any()
            assert not layer.weight.grad.any()
            x.grad = None


def test_readout_inversion_of_a_primitive_sends_nothing_for_constants() -> None:
    engine = qhw.Mitigated(spied(), engine_of("noisy+readout:measured").strategies)  # type: ignore[attr-defined]
    layer = qhw.QuantumLayer(compiled(*CONSTANTS), engine, gradient=ParameterShift())
    layer(torch.zeros(1, 1)).sum().backward()
    assert engine.base.estimator.sent == []  # type: ignore[attr-defined]
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()


def test_the_clients_estimator_takes_constants_among_others() -> None:
    made = compiled("Z - Z", "identity", ordinary=True)
    engine = qhw.Primitive(runtime_estimator(aer_backend(made)), precision=0.1, reduced=True)
    estimate = qhw.QuantumLayer(made, engine).estimate(torch.zeros(1, 1))
    assert estimate.values[0, 1:3].tolist() == [0.0, 1.0]
