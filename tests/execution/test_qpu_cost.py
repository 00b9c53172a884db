"""One estimate of what evaluations take, against what the ledger then says and the service executed and charged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import BudgetError, InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Cost, Hardware, Plan, compile_circuit, engine_of
from qhw_diffusion.execution.cost import qpu_cost
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import open_runner
from qhw_diffusion.hardware.split import JobLimits
from qhw_diffusion.hardware.standin import StandIn
from qhw_diffusion.hardware.wait import Times
from qhw_diffusion.mitigation import Mitigated, strategies_of

ROWS, SHOTS, CALLS = 5, 64, 2
TIMES = Times(poll=0.02, poll_most=0.05, backoff=0.02, grace=0.1, settle=2.0)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("USAGE_DATA_OPT_OUT", "True")
    with StandIn("fake_manila", seed=5) as running, running.as_account():
        yield running


def compiled_for(device: str) -> CompiledCircuit:
    """Two qubits, observables in two bases, one of them a constant as well."""
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(2)
    circuit.ry(x, 0)
    circuit.cx(0, 1)
    circuit.rx(w, 1)
    observables = [SparsePauliOp("ZZ"), SparsePauliOp("IX"), SparsePauliOp("II", [0.5])]
    return compile_circuit(circuit, Device.load(device), inputs=[x], weights=[w], observables=observables)


def rows() -> torch.Tensor:
    return torch.stack([torch.linspace(-1, 1, ROWS), torch.full((ROWS,), 0.3)], dim=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mitigation", "level", "most", "jobs"),
    [
        ("", 0, 10_000_000, 1),
        ("", 0, 700, 2),  # ten circuits of 64 shots: several jobs a call
        ("", 1, 10_000_000, 1),
        ("", 2, 10_000_000, 1),
        ("readout:measured+zne:linear:1,3", 0, 10_000_000, 1),
        ("readout:correlated+twirling:2", 1, 10_000_000, 1),
    ],
)
def test_the_estimate_is_what_is_checked_recorded_and_executed(
    standin: StandIn, tmp_path: Path, mitigation: str, level: int, most: int, jobs: int
) -> None:
    compiled, limits = compiled_for(standin.name), JobLimits(executions=most if most > 700 else 640)
    with Ledger.open(tmp_path / "ledger") as ledger:
        cost = qpu_cost(
            engine_of("+".join(text for text in ("ideal", mitigation) if text)), compiled, ROWS,
            shots=SHOTS, calls=CALLS, resilience_level=level, limits=limits, history=ledger.rows(state="done"),
        )  # fmt: skip
        with open_runner(
            standin.name, ledger=ledger, run="r", max_qpu_seconds=1e4, times=TIMES, limits=limits
        ) as runner:
            for call in range(CALLS):
                engine = Hardware(runner, shots=SHOTS, options={"resilience_level": level}, purpose=f"call {call}")
                whole = Mitigated(engine, strategies_of(mitigation)) if mitigation else engine
                asked = whole.cost(compiled, ROWS)
                assert whole.estimate(compiled, rows()).usage.circuits == asked.circuits + asked.calibration_circuits
            runner.settle()
        recorded = ledger.rows()
    # the estimate, the ledger, and the service count the same jobs, circuits and shots
    assert cost.jobs == len(recorded) == len(standin.jobs)
    assert cost.all_circuits == sum(row.circuits for row in recorded)
    assert {row.shots for row in recorded} == {cost.shots}
    assert cost.executions == sum(job.executions for job in standin.jobs)
    # the first call was held against the cap with the same seconds; later ones are corrected by what it took
    first = [row for row in recorded if row.purpose == "call 0"]
    assert CALLS * sum(row.estimate_seconds for row in first) == pytest.approx(cost.seconds)
    assert CALLS * sum(row.summary["formula_seconds"] for row in recorded) == pytest.approx(CALLS * cost.seconds)
    # charged is IBM's rule of thumb here, which the estimate shows beside its own formula
    assert sum(row.qpu_seconds or 0.0 for row in recorded) == pytest.approx(cost.rule_of_thumb)


def test_a_call_that_would_pass_the_cap_by_the_estimate_is_not_sent(standin: StandIn, tmp_path: Path) -> None:
    compiled = compiled_for(standin.name)
    cost = qpu_cost(engine_of("ideal"), compiled, ROWS, shots=SHOTS)
    for cap, sent in ((np.ceil(cost.least_cap) - 1, 0), (np.ceil(cost.least_cap), 1)):
        with (
            Ledger.open(tmp_path / f"{cap}") as ledger,
            open_runner(standin.name, ledger=ledger, run="r", max_qpu_seconds=float(cap), times=TIMES) as runner,
        ):
            engine = Hardware(runner, shots=SHOTS)
            if sent:
                engine.estimate(compiled, rows())
            else:
                with pytest.raises(BudgetError, match="are left"):
                    engine.estimate(compiled, rows())
        assert len(standin.jobs) == sent


@pytest.mark.parametrize("text", ["ideal", "noisy", "shots:10"])
def test_every_engine_has_a_plan(text: str) -> None:
    compiled = compiled_for("fake_manila")
    engine = engine_of(text)
    plan = engine.plan(compiled, 3)
    ((sent, number),) = plan.circuits
    assert (number, sent.n_observables, plan.calibrations) == (3, 2, ())
    assert engine.cost(compiled, 3) == Cost(6)
    mitigated = engine_of(f"{text}+readout:measured+zne:linear:1,3")
    assert mitigated.cost(compiled, 3) == Cost(12, 2)
    assert len(mitigated.plan(compiled, 3).circuits) == 4  # two scales in two bases
    for wrong in (0, True, 1.5):
        with pytest.raises(InvalidInputError, match="whole numbers from 1"):
            engine.plan(compiled, wrong)  # type: ignore[arg-type]


def test_what_costs_nothing() -> None:
    compiled = compiled_for("fake_manila")
    constant = dataclasses.replace(compiled, observables=compiled.observables[2:])
    assert engine_of("noisy+zne").plan(constant, 4) == Plan((), ())
    with pytest.raises(InvalidInputError, match="nothing is sent"):
        qpu_cost(engine_of("noisy"), constant, 4, shots=10)
    with pytest.raises(InvalidInputError, match="simulated and costs nothing"):
        qpu_cost(engine_of("ideal"), compiled_for("ideal"), 4, shots=10)
