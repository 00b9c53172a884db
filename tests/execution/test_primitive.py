"""Any Estimator primitive as an engine; and the agreement of all engines on one circuit."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import BaseEstimatorV2, StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from scipy import stats

import qhw_diffusion as qhw
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import EngineError, InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution import (
    Engine,
    Estimate,
    Ideal,
    Noisy,
    ParameterShift,
    Primitive,
    Shots,
    aer_estimator,
    runtime_estimator,
)
from qhw_diffusion.execution.simulator import Simulator

# Names that sort against the order in which they are given: binding by position would mix them up.
X, W = [Parameter("z"), Parameter("b")], [Parameter("y"), Parameter("a"), Parameter("k")]


def circuit() -> QuantumCircuit:
    qc = QuantumCircuit(3)
    qc.ry(X[0], 0)
    qc.ry(X[1], 1)
    qc.cx(0, 1)
    qc.rx(W[0], 1)
    qc.cx(1, 2)
    qc.ry(W[1], 2)
    qc.rz(W[2], 2)
    qc.rx(0.7, 2)
    return qc


@functools.cache
def compiled(name: str = "fake_manila") -> qhw.CompiledCircuit:
    observables = [SparsePauliOp("IIZ"), SparsePauliOp("IZI"), SparsePauliOp(["ZII", "XXI"], [0.6, 0.8])]
    return qhw.compile_circuit(circuit(), Device.load(name), inputs=X, weights=W, observables=observables)


ROWS = torch.from_numpy(np.random.default_rng(5).uniform(-3, 3, (6, 5)))


class Spy(BaseEstimatorV2):
    """Passes PUBs on and remembers them; may spoil the answer."""

    def __init__(self, spoil: str = "") -> None:
        self.inner, self.pubs, self.spoil = StatevectorEstimator(seed=1), [], spoil

    def run(self, pubs: Iterable[Any], *, precision: float | None = None) -> Any:
        pubs = list(pubs)
        self.pubs.append(pubs)
        if self.spoil == "raise":
            raise ValueError("the service is closed")
        job = self.inner.run(pubs, precision=precision)
        if self.spoil == "nan":
            result = job.result()
            result[0].data.evs[0, 0] = np.nan
            return type("Job", (), {"result": lambda self: result})()
        return job


# False alarms: every comparison below is a χ² over 18 values against the stated standard errors at 1e-5.
ALARM = 1e-5


def assert_agree(engine: Engine, reference: Engine, name: str = "fake_manila") -> None:
    estimate = engine.estimate(compiled(name), ROWS)
    wanted = reference.estimate(compiled(name), ROWS)
    errors = (estimate.std_errors**2 + wanted.std_errors**2).sqrt()
    assert (errors > 0).all()
    chi2 = float((((estimate.values - wanted.values) / errors) ** 2).sum())
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], ROWS.shape[0] * 3)
    # stated errors that are too large would hide a disagreement: the sum must not be too small either
    assert low < chi2 < high, f"χ² = {chi2:.1f}, expected {low:.1f} to {high:.1f}"


@pytest.mark.parametrize("device", ["ideal", "fake_manila"])
def test_engines_without_noise_agree(device: str) -> None:
    ideal = Ideal()
    assert_agree(Shots(20_000, seed=1, noisy=False), ideal, device)
    assert_agree(Primitive(StatevectorEstimator(seed=2), precision=0.005, reduced=True), ideal, device)


def test_engines_with_noise_agree() -> None:
    """Exact, finite shots, and Aer's sampler with asymmetric readout."""
    noisy = Noisy()
    assert_agree(Shots(20_000, seed=3), noisy)
    assert_agree(Primitive(aer_estimator(compiled(), seed=4), precision=0.005, reduced=True), noisy)


def chi_squared(estimate: Estimate, wanted: torch.Tensor) -> float:
    return float((((estimate.values - wanted) / estimate.std_errors) ** 2).sum())


def test_a_fake_backends_primitive_agrees() -> None:
    """The client's deprecated estimator in local mode runs the fake backend, whose readout errors are asymmetric."""
    estimator = runtime_estimator(FakeManilaV2(), options={"simulator": {"seed_simulator": 11}}, legacy=True)
    assert_agree(Primitive(estimator, precision=0.01), Noisy())


def test_the_new_local_estimator_agrees_up_to_its_symmetrised_readout() -> None:
    """Its successor builds Aer's noise model, which has the mean of the two readout errors: so does the reference."""
    options = {"resilience_level": 0, "simulator": {"seed_simulator": 11}}
    estimate = Primitive(runtime_estimator(FakeManilaV2(), options=options), precision=0.01).estimate(compiled(), ROWS)
    program = compiled().program
    symmetric = replace(program, readout=tuple(((p10 + p01) / 2,) * 2 for p10, p01 in program.readout))
    simulator = Simulator(symmetric, noisy=True, dtype=torch.float64)
    wanted = torch.cat([simulator.expectation(row[None, :2], row[2:]) for row in ROWS])
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], wanted.numel())
    assert low < chi_squared(estimate, wanted) < high
    assert chi_squared(estimate, Noisy().estimate(compiled(), ROWS).values) > 2 * high, (
        "the asymmetric one is told apart"
    )


def test_one_broadcast_pub_with_its_precision() -> None:
    spy = Spy()
    layer = qhw.QuantumLayer(
        compiled("ideal"), Primitive(spy, precision=0.03), gradient=ParameterShift(), dtype=torch.float64
    )
    layer(torch.zeros(4, 2, dtype=torch.float64)).sum().backward()
    assert [len(pubs) for pubs in spy.pubs] == [1, 1], "one PUB forwards, one for all shifts"
    for pubs, rows in zip(spy.pubs, (4, 2 * 4 * len(compiled("ideal").program.offsets) - 2 * 4 * 2), strict=True):
        _, observables, bindings, precision = pubs[0]
        assert precision == 0.03
        assert np.shape(observables)[:2] == (3, 1)
        assert next(iter(bindings.values())).shape[0] == rows
    assert layer.usage.circuits == 2 * sum(len(next(iter(p[0][2].values()))) for p in spy.pubs)
    assert layer.usage.shots == layer.usage.circuits * 1112


def test_a_circuit_without_parameters() -> None:
    qc = QuantumCircuit(1)
    qc.h(0)
    made = qhw.compile_circuit(qc, Device.load("ideal"), inputs=[], weights=[], observables=[SparsePauliOp("X")])
    estimate = Primitive(StatevectorEstimator(seed=0), precision=1e-6).estimate(made, torch.zeros(3, 0))
    torch.testing.assert_close(estimate.values, torch.ones(3, 1), rtol=0, atol=1e-5)
    assert estimate.usage.circuits == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [("nan", r"Spy answered with 1 values that are NaN"), ("raise", r"Spy failed on 3 observables at 6 rows.*closed")],
)
def test_a_primitive_that_fails_or_answers_nonsense(spoil: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Primitive(Spy(spoil)).estimate(compiled("ideal"), ROWS)


def test_an_answer_of_the_wrong_shape() -> None:
    class Flat(Spy):
        def run(self, pubs: Iterable[Any], *, precision: float | None = None) -> Any:
            circuit, observables, bindings, precision = next(iter(pubs))
            return self.inner.run([(circuit, next(o[0] for o in observables), bindings, precision)])

    with pytest.raises(EngineError, match=r"answered with shape \(6,\).*\(3, 6\) was expected"):
        Primitive(Flat()).estimate(compiled("ideal"), ROWS)


@pytest.mark.parametrize("precision", [0, -0.1, float("nan"), float("inf"), "0.1"])
def test_refused_precisions(precision: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"must be positive.*readout errors"):
        Primitive(StatevectorEstimator(), precision=precision)


def test_refused_estimators_circuits_and_parameters() -> None:
    with pytest.raises(InvalidInputError, match="give an Estimator primitive"):
        Primitive(FakeManilaV2())
    engine = Primitive(StatevectorEstimator())
    for wrong in (ROWS[:, :4], ROWS[0], ROWS[:0], ROWS * float("nan")):
        with pytest.raises(InvalidInputError, match="parameters"):
            engine.estimate(compiled("ideal"), wrong)
    qc = QuantumCircuit(1, 1)
    qc.h(0)
    qc.measure(0, 0)
    qc.h(0)
    made = qhw.compile_circuit(qc, Device.load("ideal"), inputs=[], weights=[], observables=[SparsePauliOp("Z")])
    with pytest.raises(UnsupportedCircuitError, match="measure in mid-circuit"):
        qhw.QuantumLayer(made, engine)


def test_several_circuits_go_out_in_one_call() -> None:
    spy = Spy()
    fewer = replace(compiled("ideal"), observables=compiled("ideal").observables[:1])
    estimates = Primitive(spy, precision=0.01).estimate_many([(compiled("ideal"), ROWS), (fewer, ROWS[:2])])
    assert [len(pubs) for pubs in spy.pubs] == [2]
    assert [tuple(e.values.shape) for e in estimates] == [(6, 3), (2, 1)]
    for estimate, (made, rows) in zip(estimates, [(compiled("ideal"), ROWS), (fewer, ROWS[:2])], strict=True):
        difference = estimate.values - Ideal().estimate(made, rows).values
        assert difference.abs().max() < 0.05
    assert Primitive(spy).estimate_many([]) == []
