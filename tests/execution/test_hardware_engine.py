"""The Hardware engine on a fake device in this process: right values, one job a call, gradients, the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp
from scipy import stats

import qhw_diffusion as qhw
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import EngineError, InvalidInputError, JobError, UnsupportedCircuitError
from qhw_diffusion.execution import SPSA, Engine, Estimate, Hardware, Noisy, ParameterShift, Surrogate
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import Runner, open_runner
from qhw_diffusion.hardware.split import JobLimits

X, W = [Parameter("z"), Parameter("b")], [Parameter("y"), Parameter("a")]
ROWS = torch.from_numpy(np.random.default_rng(5).uniform(-3, 3, (6, 4)))
ALARM = 1e-5


def circuit() -> QuantumCircuit:
    qc = QuantumCircuit(3)
    qc.ry(X[0], 0)
    qc.ry(X[1], 1)
    qc.cx(0, 1)
    qc.rx(W[0], 1)
    qc.cx(1, 2)
    qc.ry(W[1], 2)
    return qc


@pytest.fixture(scope="module")
def compiled() -> qhw.CompiledCircuit:
    observables = [SparsePauliOp("IIZ"), SparsePauliOp("IZI"), SparsePauliOp(["ZII", "XXI"], [0.6, 0.8])]
    return qhw.compile_circuit(circuit(), Device.load("fake_manila"), inputs=X, weights=W, observables=observables)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger") as opened:
        yield opened


def engine(ledger: Ledger, shots: int = 2000, **settings: Any) -> Hardware:
    return Hardware(open_runner("fake_manila", ledger=ledger, run="test", **settings), shots=shots)


def assert_agrees(estimate: Estimate, wanted: torch.Tensor) -> None:
    assert (estimate.std_errors > 0).all()
    chi2 = float((((estimate.values - wanted) / estimate.std_errors) ** 2).sum())
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], wanted.numel())
    assert low < chi2 < high, f"χ² = {chi2:.1f}, expected {low:.1f} to {high:.1f}"


def test_it_agrees_with_the_exact_noisy_engine(compiled: qhw.CompiledCircuit, ledger: Ledger) -> None:
    """Asymmetric readout included."""
    estimate = engine(ledger, shots=20_000).estimate(compiled, ROWS)
    assert_agrees(estimate, Noisy().estimate(compiled, ROWS).values)
    assert estimate.usage == qhw.execution.Usage(12, 12 * 20_000)  # Z and X: two settings for each of six rows


def test_several_circuits_are_one_job(compiled: qhw.CompiledCircuit, ledger: Ledger) -> None:
    fewer = replace(compiled, observables=compiled.observables[:1])
    estimates = engine(ledger).estimate_many([(compiled, ROWS), (fewer, ROWS[:2])])
    (row,) = ledger.rows()
    assert (row.circuits, row.shots, row.state) == (14, 2000, "done")
    assert_agrees(estimates[0], Noisy().estimate(compiled, ROWS).values)
    assert_agrees(estimates[1], Noisy().estimate(fewer, ROWS[:2]).values)
    assert engine(ledger).estimate_many([]) == []


def test_the_ledger_answers_the_second_time(compiled: qhw.CompiledCircuit, ledger: Ledger) -> None:
    first = engine(ledger).estimate(compiled, ROWS)
    second = engine(ledger)
    second.runner.service.submit = lambda *_: pytest.fail("it was run again")  # type: ignore[method-assign]
    again = second.estimate(compiled, ROWS)
    torch.testing.assert_close(again.values, first.values, rtol=0, atol=0)
    other = replace(engine(ledger), purpose="other").estimate(compiled, ROWS)
    assert not torch.equal(other.values, first.values), "fresh shots"
    assert len(ledger.rows()) == 2


@pytest.mark.slow
def test_an_interrupted_run_has_the_outcomes_it_would_have_had(compiled: qhw.CompiledCircuit, tmp_path: Path) -> None:
    steps = [ROWS[:2], ROWS[2:4], ROWS[4:]]
    with Ledger.open(tmp_path / "a") as ledger:
        whole = [engine(ledger).estimate(compiled, rows).values for rows in steps]
    with Ledger.open(tmp_path / "b") as ledger:
        engine(ledger).estimate(compiled, steps[0])
    with Ledger.open(tmp_path / "b") as ledger:
        resumed = [engine(ledger).estimate(compiled, rows).values for rows in steps]
    with Ledger.open(tmp_path / "c") as ledger:
        other = engine(ledger, seed=1).estimate(compiled, steps[0]).values
    for one, two in zip(whole, resumed, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert not torch.equal(other, whole[0])


def test_a_job_that_ended_with_its_process_runs_again(compiled: qhw.CompiledCircuit, ledger: Ledger) -> None:
    mine = engine(ledger)
    mine.runner.service.raw = lambda job_id: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        mine.estimate(compiled, ROWS)
    assert ledger.rows()[0].state == "submitted"
    again = engine(ledger).estimate(compiled, ROWS)
    assert_agrees(again, Noisy().estimate(compiled, ROWS).values)
    assert (ledger.rows()[0].attempt, ledger.rows()[0].earlier[0]["reason"][:4]) == (2, "lost")


def test_a_large_call_is_split_and_put_together(compiled: qhw.CompiledCircuit, ledger: Ledger) -> None:
    mine = engine(ledger, limits=JobLimits(executions=4 * 2 * 2000))
    assert_agrees(mine.estimate(compiled, ROWS), Noisy().estimate(compiled, ROWS).values)
    assert len(ledger.rows()) == 2


def test_gradients_by_parameter_shift_spsa_and_surrogate(compiled: qhw.CompiledCircuit, ledger: Ledger) -> None:
    inputs = ROWS[:4, :2].clone()
    exact = qhw.QuantumLayer(compiled, "noisy", dtype=torch.float64)
    exact(inputs)[:, 0].sum().backward()
    wanted = exact.weight.grad
    assert wanted is not None
    mine = engine(ledger, shots=2000)

    def gradient(on: Engine | str, method: Any) -> torch.Tensor:
        layer = qhw.QuantumLayer(compiled, on, gradient=method, dtype=torch.float64)
        layer(inputs)[:, 0].sum().backward()
        assert layer.weight.grad is not None
        return layer.weight.grad

    torch.testing.assert_close(gradient(mine, Surrogate()), wanted, rtol=1e-9, atol=1e-9)
    jobs = len(ledger.rows())
    shifted = gradient(mine, ParameterShift())
    assert len(ledger.rows()) == jobs + 1, "the values are in the ledger, all shifts are one job"
    # each of the 4 samples' slopes has a variance of at most 1 / (2 shots), and a weight is in a few gates
    torch.testing.assert_close(shifted, wanted, rtol=0, atol=6 * (4 * 4 / (2 * 2000)) ** 0.5)
    # the same directions without shot noise; a slope over 2·size has a variance of at most 2 / (shots (2·size)²)
    same = gradient("noisy", SPSA(seed=3, size=0.5))
    torch.testing.assert_close(gradient(mine, SPSA(seed=3, size=0.5)), same, rtol=0, atol=6 * (4 * 2 / 2000) ** 0.5)


def test_an_estimator_of_ones_own(compiled: qhw.CompiledCircuit, ledger: Ledger) -> None:
    ideal = engine(ledger, estimator=StatevectorEstimator(seed=3), shots=10_000).estimate(compiled, ROWS)
    assert_agrees(ideal, qhw.execution.Ideal().estimate(compiled, ROWS).values)


def test_a_circuit_without_parameters(ledger: Ledger) -> None:
    qc = QuantumCircuit(1)
    qc.h(0)
    device = Device.load("fake_manila")
    made = qhw.compile_circuit(qc, device, inputs=[], weights=[], observables=[SparsePauliOp("X")])
    estimate = engine(ledger).estimate(made, torch.zeros(3, 0))
    assert estimate.values.shape == (3, 1)
    assert estimate.usage.circuits == 1


def test_a_scheduled_circuit_relaxes_while_it_waits(ledger: Ledger) -> None:
    qc = QuantumCircuit(2)
    qc.x(0)
    qc.x(1)
    qc.delay(60, 0, unit="us")
    qc.cx(0, 1)
    device = Device.load("fake_manila")
    z = [SparsePauliOp("IZ")]
    made = qhw.compile_circuit(qc, device, inputs=[], weights=[], observables=z, scheduled=True)
    estimate = engine(ledger, shots=20_000).estimate(made, torch.zeros(1, 0))
    assert_agrees(estimate, Noisy().estimate(made, torch.zeros(1, 0)).values)
    assert estimate.values.item() > -0.7, "an excited qubit that has waited for half its T1"


def test_what_is_refused(compiled: qhw.CompiledCircuit, ledger: Ledger) -> None:
    mine = engine(ledger)
    with pytest.raises(InvalidInputError, match=r"compiled for fake_lima.*compile_for\(Device.load\('fake_manila'\)"):
        mine.estimate(compiled.compile_for(Device.load("fake_lima")), ROWS)
    with pytest.raises(InvalidInputError, match="parameters"):
        mine.estimate(compiled, ROWS[:, :3])
    with pytest.raises(InvalidInputError, match="resilience_level 0 only"):
        replace(mine, options={"resilience_level": 1}).estimate(compiled, ROWS)
    with pytest.raises(InvalidInputError, match="shots is 0"):
        Hardware(mine.runner, shots=0)
    with pytest.raises(InvalidInputError, match="open_runner"):
        Hardware("fake_manila")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="gives no gradient"):
        qhw.QuantumLayer(compiled, mine)(ROWS[:, :2].requires_grad_())
    qc = QuantumCircuit(1, 1)
    qc.h(0)
    qc.measure(0, 0)
    qc.h(0)
    made = qhw.compile_circuit(qc, compiled.device, inputs=[], weights=[], observables=[SparsePauliOp("Z")])
    with pytest.raises(UnsupportedCircuitError, match="measure in mid-circuit"):
        mine.check(made)
    assert ledger.rows() == []


def test_an_estimator_that_fails_or_answers_nonsense(compiled: qhw.CompiledCircuit, ledger: Ledger) -> None:
    class Broken(StatevectorEstimator):
        def run(self, pubs: Any, *, precision: float | None = None) -> Any:
            raise ValueError("out of order")

    with pytest.raises(JobError, match=r"fake_manila failed on the job: ValueError: out of order"):
        engine(ledger, estimator=Broken()).estimate(compiled, ROWS)

    mine = engine(ledger)
    decode = mine.runner.service.decode

    def spoiled(raw: str) -> Any:
        return [(values * np.nan, errors, shots) for values, errors, shots in decode(raw)]

    mine.runner.service.decode = spoiled  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"fake_manila \(job local-.*18 values that are NaN"):
        mine.estimate(compiled, ROWS)
    assert isinstance(mine.runner, Runner)
