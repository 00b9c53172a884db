"""The estimate of QPU seconds: arithmetic by hand, the client's own count of executions, correction by history."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager
from scripted import FAST, Job, ScriptedService, pub

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import BudgetError, InvalidInputError
from qhw_diffusion.hardware.cost import (
    added_by,
    default_repetition_delay,
    estimate_cost,
    expected_cost,
    history_of,
    in_all,
    job_estimator,
    readout_seconds,
)
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import Runner
from qhw_diffusion.hardware.service import Pub
from qhw_diffusion.hardware.split import JobLimits, cut, split

MARRAKESH = Device.load("fake_marrakesh")


@dataclass
class Row:
    device: str = "ibm_x"
    state: str = "done"
    estimate_seconds: float = 10.0
    qpu_seconds: float | None = 14.0
    summary: dict[str, Any] = field(default_factory=dict)


def test_the_formula_by_hand() -> None:
    """fake_marrakesh: readout 2584 ns, delay 250 µs. 10 jobs × 200 circuits × 4096 shots × (1.416 + 2.584 + 250) µs."""
    cost = estimate_cost(1.416e-6, 200, 4096, MARRAKESH, jobs=10)
    assert cost.executions == 8_192_000
    assert cost.execution_seconds == pytest.approx(254e-6)
    assert cost.seconds == pytest.approx(20 + 2080.768)
    assert cost.rule_of_thumb == pytest.approx(20 + 2867.2)
    expected = [
        "10 jobs × 200 circuits × 4,096 shots = 8,192,000",
        "1.4 µs gates + 2.6 µs readout + 250.0 µs",
        "10 jobs × 2 s = 20 s",
        "QPU seconds     2,100.8",
        "2,887.2 s by IBM's",
        "history         none",
    ]
    for words in expected:
        assert words in cost.text


def test_one_shot_of_one_circuit_costs_the_overhead_of_a_job() -> None:
    cost = estimate_cost(0.0, 1, 1, MARRAKESH)
    assert cost.seconds == pytest.approx(2.0 + 252.584e-6)
    assert "1 job × 1 circuit × 1 shots = 1" in cost.text


@pytest.mark.parametrize(("name", "delay", "readout"), [
    ("fake_miami", 4e-3, 2.4e-6),  # a Nighthawk that waits sixteen times as long as most devices
    ("fake_washington", 150e-6, 864e-9),
    ("fake_almaden", None, None),  # states neither
])  # fmt: skip
def test_delay_and_readout_are_the_device_s_own(name: str, delay: float | None, readout: float | None) -> None:
    device = Device.load(name)
    assert default_repetition_delay(device) == (None if delay is None else pytest.approx(delay))
    assert readout_seconds(device) == (None if readout is None else pytest.approx(readout))
    cost = estimate_cost(1e-6, 1, 1000, device)
    assert cost.execution_seconds == pytest.approx(1e-6 + (readout or 0.0) + (delay or 250e-6))
    assert ("device states none" in cost.text) == (delay is None)
    assert ("readout length not stated" in cost.text) == (readout is None)


def test_readout_of_the_qubits_in_use() -> None:
    configuration = json.loads(MARRAKESH.snapshot.configuration)
    assert configuration["n_qubits"] == 156
    assert readout_seconds(MARRAKESH, [0, 3]) == pytest.approx(2584e-9)
    with pytest.raises(InvalidInputError, match=r"qubits 0 to 155, not \[156\]"):
        readout_seconds(MARRAKESH, [156])


def test_a_shorter_repetition_delay_within_the_range_of_the_device() -> None:
    assert estimate_cost(1e-6, 1, 1000, MARRAKESH, repetition_delay=50e-6).execution_seconds == pytest.approx(53.584e-6)
    with pytest.raises(InvalidInputError, match="0 to 500 µs, not 501 µs"):
        estimate_cost(1e-6, 1, 1000, MARRAKESH, repetition_delay=501e-6)
    with pytest.raises(InvalidInputError, match="no repetition delay of your own"):
        estimate_cost(1e-6, 1, 1000, Device.load("fake_almaden"), repetition_delay=100e-6)


def test_a_repetition_delay_among_the_options_counts() -> None:
    """400 µs instead of the device's 250 µs: 150 µs more for each execution."""
    wide = QuantumCircuit(MARRAKESH.n_qubits or 0)
    one = Pub(wide, (SparsePauliOp("Z" * wide.num_qubits),), (), np.zeros((1, 0)), 0.1)
    estimate = job_estimator(MARRAKESH, list)
    usual, longer = (estimate([one], {"resilience_level": 0, "execution": more}) for more in ({}, {"rep_delay": 4e-4}))
    assert (usual.repetition_delay, longer.repetition_delay) == (2.5e-4, 4e-4)
    assert longer.seconds - usual.seconds == pytest.approx(longer.executions * (4e-4 - usual.repetition_delay))


def test_history_corrects_by_the_ratio_of_sums() -> None:
    """(14 + 3) measured / (10 + 2.5) estimated = 1.36; the formula's estimate counts, not the one corrected already."""
    rows = [
        Row(),
        Row(estimate_seconds=3.5, qpu_seconds=3.0, summary={"formula_seconds": 2.5}),
        Row(device="ibm_y", qpu_seconds=99.0),
        Row(state="failed", qpu_seconds=99.0),
        Row(qpu_seconds=None),
    ]
    history = history_of(rows, "ibm_x")
    assert history == [(10.0, 14.0), (2.5, 3.0)]
    plain, corrected = (estimate_cost(1e-6, 5, 1000, MARRAKESH, history=given) for given in ((), history))
    assert corrected.seconds == pytest.approx(1.36 * plain.seconds)
    assert corrected.formula_seconds == plain.formula_seconds
    assert "× 1.36: measured / estimated over 2 jobs" in corrected.text


def test_a_known_ratio_is_found_again_and_does_not_drift() -> None:
    """Every job takes 1.4 times the formula; estimates corrected on the way must not be corrected twice."""
    rows: list[Row] = []
    for circuits in (3, 40, 7, 150):
        cost = estimate_cost(1e-6, circuits, 1000, MARRAKESH, history=history_of(rows, "ibm_x"))
        measured = 1.4 * cost.formula_seconds
        assert cost.seconds == pytest.approx(measured if rows else cost.formula_seconds)
        rows.append(Row(estimate_seconds=cost.seconds, qpu_seconds=measured, summary=cost.to_dict()))


@pytest.mark.parametrize("shots", [100, 1000, 4096, 5000])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_executions_are_those_the_client_prepares(level: int, shots: int) -> None:
    """The client's own quantum program of one broadcast PUB: its items' sizes times their shots."""
    from qiskit_ibm_runtime.executor_estimator.prepare import prepare
    from qiskit_ibm_runtime.options_models import EstimatorOptions

    device, n_rows = Device.load("fake_manila"), 7
    circuit, angle = QuantumCircuit(2), Parameter("a")
    circuit.rx(angle, 0)
    circuit.cx(0, 1)
    isa = generate_preset_pass_manager(optimization_level=1, target=device.target, seed_transpiler=0).run(circuit)
    observables = [SparsePauliOp(f).apply_layout(isa.layout) for f in ("IZ", "ZI")]
    values = np.linspace(0, 1, n_rows)[:, None]
    options = EstimatorOptions(resilience_level=level, default_shots=shots)
    program, _ = prepare([(isa, [[o] for o in observables], values)], options)
    executed = sum(int(np.prod(item.shape)) for item in program.items) * program.shots
    added = added_by({"resilience_level": level})
    assert estimate_cost(1e-6, n_rows, shots, device, added=added).executions == executed


# Options that say otherwise than the resilience level
OPTIONS: list[dict[str, Any]] = [
    {},
    {"resilience_level": 0, "twirling": {"enable_gates": True}},
    {"resilience_level": 0, "resilience": {"measure_mitigation": True}},
    {"resilience_level": 1, "resilience": {"measure_mitigation": False}},
    {"resilience_level": 1, "resilience": {"measure_mitigation": False}, "twirling": {"enable_measure": False}},
    {"resilience_level": 2, "resilience": {"zne_mitigation": False}},
    {"resilience_level": 2, "resilience": {"zne": {"noise_factors": [1, 2, 3, 4, 5]}}},
    {"resilience_level": 0, "resilience": {"zne_mitigation": True, "zne": {"noise_factors": "auto"}}},
    {"resilience_level": 1, "twirling": {"num_randomizations": 7}},
    {"resilience_level": 1, "twirling": {"shots_per_randomization": 48}},
    {"resilience_level": 1, "twirling": {"num_randomizations": 5, "shots_per_randomization": 33}},
    {"resilience_level": 1, "resilience": {"measure_noise_learning": {"num_randomizations": 64}}},
    {"resilience_level": 0, "twirling": {"num_randomizations": 5}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_executions_with_options_of_the_client(options: dict[str, Any]) -> None:
    from qiskit_ibm_runtime.executor_estimator.prepare import prepare
    from qiskit_ibm_runtime.options_models import EstimatorOptions

    one = pub([0.1, 0.2, 0.3], shots=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program, _ = prepare([one.as_tuple()], EstimatorOptions(**options))
    shots = program.shots
    executions = sum(int(np.prod(item.shape)) for item in program.items) * shots
    circuits, each = added_by(options).executed(3 * 2, 1000)
    learning = options.get("resilience", {}).get("measure_noise_learning")
    assert circuits * each == executions if learning is None else executions <= circuits * each < executions + each


def test_the_ledger_says_what_the_client_adds(tmp_path: Path) -> None:
    service = ScriptedService()
    with Ledger.open(tmp_path) as ledger:
        Runner(service, ledger, run="r", max_qpu_seconds=500, times=FAST).run([pub(shots=1000)], options=OPTIONS[6])
        (row,) = ledger.rows()
    assert (row.circuits, row.shots) == (2 * 2 * 5 + 1, 1024)


@pytest.mark.parametrize("most", [10_000_000, 700, 400, 300])
@pytest.mark.parametrize("level", [0, 2])
def test_what_is_expected_is_what_the_runner_plans(tmp_path: Path, most: int, level: int) -> None:
    """Two PUBs of 3 and 4 rows in two bases at 50 shots: one job, or several that are not alike."""
    pubs, limits = [pub([0.1, 0.2, 0.3], shots=50), pub([0.4, 0.5, 0.6, 0.7], shots=50)], JobLimits(executions=most)
    service = ScriptedService()
    with Ledger.open(tmp_path) as ledger:
        runner = Runner(service, ledger, run="r", max_qpu_seconds=500, limits=limits, times=FAST)
        runner.run(pubs, options={"resilience_level": level})
        rows = ledger.rows()
    cost = expected_cost(pubs, service.snapshot(), resilience_level=level, limits=limits, calls=3)
    assert cost.jobs == 3 * len(rows)
    assert (len(rows) > 1) == (most < (700 if level == 0 else 2100))
    assert cost.seconds == pytest.approx(3 * sum(row.estimate_seconds for row in rows))
    assert cost.all_circuits == 3 * sum(row.circuits for row in rows)
    assert {row.shots for row in rows} == {cost.shots}
    assert cost.executions == cost.all_circuits * cost.shots
    assert cost.circuits == math.ceil(cost.all_circuits / cost.jobs)
    assert (f"{cost.all_circuits:,} circuits in {cost.jobs} jobs" in cost.text) == (cost.unlike is not None)
    assert (cost.unlike is None) == (len({row.circuits for row in rows}) == 1)


@pytest.mark.slow
@pytest.mark.parametrize("most", [10_000_000, 300])
def test_the_least_cap_is_enough_and_one_second_less_is_not(tmp_path: Path, most: int) -> None:
    """Three calls whose jobs are charged what is estimated."""
    pubs, limits, calls = [pub([0.1, 0.2, 0.3, 0.4], shots=50)], JobLimits(executions=most), 3
    cost = expected_cost(pubs, MARRAKESH, limits=limits, calls=calls)
    each = iter([row for _ in range(calls) for row in _seconds(pubs, limits)] * 2)

    def charge(job: Job) -> None:
        job.charged = next(each)

    for number, (cap, sent) in enumerate([(cost.least_cap, True), (cost.least_cap - 1.0, False)]):
        service = ScriptedService(new_job=charge)
        service.snapshot = lambda: MARRAKESH  # type: ignore[method-assign]
        with Ledger.open(tmp_path / str(number)) as ledger:
            runner = Runner(service, ledger, run="r", max_qpu_seconds=cap, limits=limits, times=FAST)
            for call in range(calls - 1):
                runner.run(pubs, options={"resilience_level": 0}, purpose=f"call {call}")
            if sent:
                runner.run(pubs, options={"resilience_level": 0}, purpose="last")
                assert len(service.jobs) == cost.jobs
                continue
            with pytest.raises(BudgetError, match="are left"):
                runner.run(pubs, options={"resilience_level": 0}, purpose="last")


def _seconds(pubs: list[Pub], limits: JobLimits) -> list[float]:
    """Of each job of one call."""
    estimate = job_estimator(MARRAKESH, list)
    return [estimate(cut(pubs, pieces), {"resilience_level": 0}).seconds for pieces in split(pubs, limits)]


def test_jobs_that_are_not_alike_add_up() -> None:
    long, short = estimate_cost(2e-6, 10, 100, MARRAKESH), estimate_cost(1e-6, 4, 100, MARRAKESH)
    both = in_all([long, short], times=5)
    assert (both.jobs, both.all_circuits, both.executions) == (10, 70, 7000)
    assert both.seconds == pytest.approx(5 * (long.seconds + short.seconds))
    assert both.to_dict()["all_circuits"] == 70
    with pytest.raises(InvalidInputError, match="at least one job"):
        in_all([])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_several_pubs_of_a_job_are_counted_as_the_client_prepares_them(level: int) -> None:
    """Those of mitigation of our own: one calibration of the client for all."""
    from qiskit_ibm_runtime.executor_estimator.prepare import prepare
    from qiskit_ibm_runtime.options_models import EstimatorOptions

    device = Device.load("fake_manila")
    circuit, angle = QuantumCircuit(2), Parameter("a")
    circuit.rx(angle, 0)
    circuit.cx(0, 1)
    isa = generate_preset_pass_manager(optimization_level=1, target=device.target, seed_transpiler=0).run(circuit)
    labels = [["IZ", "ZI"], ["XX", "IZ", "YI"], ["ZZ"]]
    pubs = [
        Pub(
            isa, tuple(SparsePauliOp(one).apply_layout(isa.layout) for one in each), (angle,), np.zeros((rows, 1)), 0.05
        )
        for rows, each in enumerate(labels, start=2)
    ]
    options = EstimatorOptions(resilience_level=level, default_shots=400)
    program, _ = prepare([one.as_tuple()[:3] for one in pubs], options)
    executed = sum(int(np.prod(item.shape)) for item in program.items) * program.shots
    assert expected_cost(pubs, device, resilience_level=level).executions == executed


def test_the_rule_of_thumb_is_for_the_usual_delay_only() -> None:
    assert "rule of thumb" in estimate_cost(1e-6, 1, 1000, MARRAKESH).text
    assert "rule of thumb" not in estimate_cost(1e-6, 1, 1000, Device.load("fake_miami")).text


@pytest.mark.parametrize(("change", "words"), [
    ({"shots": 0}, "shots must be a whole number ≥ 1, not 0"),
    ({"circuits": 2.5}, "circuits must be a whole number"),
    ({"jobs": 0}, "jobs must be"),
    ({"duration_seconds": None}, "duration on fake_marrakesh must be a number of seconds"),
    ({"duration_seconds": -1.0}, "duration"),
    ({"device": Device.load("ideal")}, "simulated and costs nothing"),
    ({"history": [(0.0, 1.0)]}, "pairs of positive"),
])  # fmt: skip
def test_what_cannot_be_estimated_is_refused(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"duration_seconds": 1e-6, "circuits": 1, "shots": 1, "device": MARRAKESH} | change
    with pytest.raises(InvalidInputError, match=words):
        estimate_cost(**given)


def test_a_resilience_level_that_there_is_not() -> None:
    with pytest.raises(InvalidInputError, match="allowed: 0, 1, 2"):
        added_by({"resilience_level": 3})


def test_json_types_only() -> None:
    content = json.loads(json.dumps(estimate_cost(1e-6, 1, 1000, MARRAKESH).to_dict()))
    assert math.isclose(content["seconds"], content["formula_seconds"])
