"""What is particular to a Sampler's jobs: keys, checks before anything is sent, wrong answers, cost, export."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, QuantumRegister
from qiskit.primitives import BitArray
from scripted import THETA, ScriptedService, estimate, pub, runner, sampler_pub
from test_faults import TIMES

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import BudgetError, DamagedFileError, InvalidInputError, ServiceError
from qhw_diffusion.execution import SamplerEngine, compile_sampled
from qhw_diffusion.hardware.cost import expected_cost
from qhw_diffusion.hardware.keys import job_key
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.local import decode_local
from qhw_diffusion.hardware.record import check_answer
from qhw_diffusion.hardware.report import export_rows, show_text
from qhw_diffusion.hardware.runner import open_runner
from qhw_diffusion.hardware.service import SamplerPub, primitive_of
from qhw_diffusion.hardware.standin import StandIn


def key(one: Any, **options: Any) -> str:
    return job_key([one], options, "d", "p")


def conditional(value: int = 1, angle: float = 0.3, names: tuple[str, str] = ("m", "c")) -> SamplerPub:
    """What is run depends on what was read."""
    m, c = (ClassicalRegister(1, name) for name in names)
    circuit = QuantumCircuit(QuantumRegister(2), m, c)
    circuit.rz(THETA, 0)
    circuit.measure(0, m[0])
    with circuit.if_test((m, value)):
        circuit.rz(angle, 1)
    circuit.measure(1, c[0])
    return SamplerPub(circuit, (THETA,), np.array([[0.1]]), 100)


def test_keys() -> None:
    """All that is executed, and what the answer is told by, counts; labels and names of circuits do not."""
    base = conditional()
    renamed = conditional()
    renamed.circuit.name = "another"
    assert key(base) == key(replace(renamed, label="l", layout=(0, 1)))
    others = [
        conditional(value=0),
        conditional(angle=0.4),
        conditional(names=("m", "d")),
        replace(base, shots=101),
        replace(base, values=np.array([[0.2]])),
        sampler_pub((0.1,), 100),
        pub((0.1,), 100),
    ]
    assert len({key(base), key(base, twirling={"enable_gates": True}), *map(key, others)}) == len(others) + 2
    # of one measured qubit, whose answer is in another register
    swapped = sampler_pub((0.1,), 100)
    swapped.circuit.data[-1] = swapped.circuit.data[-1].replace(clbits=[swapped.circuit.clbits[0]])
    assert key(swapped) != key(sampler_pub((0.1,), 100))


def test_one_call_is_for_one_primitive(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="different jobs"):
        primitive_of([pub(), sampler_pub()])
    with Ledger.open(tmp_path) as ledger, pytest.raises(InvalidInputError, match="different jobs"):
        runner(ScriptedService(), ledger).run([pub(), sampler_pub()])


def test_answers_that_are_none() -> None:
    """Another register, width, number of rows or shots, and an Estimator's answer."""
    asked = sampler_pub((0.1, 0.9), 8)

    def bits(rows: int = 2, shots: int = 8, width: int = 1) -> BitArray:
        return BitArray.from_bool_array(np.zeros((rows, shots, width), dtype=bool))

    class Service:
        def __init__(self, *answers: Any) -> None:
            self.decode = lambda raw: list(answers)

    check_answer(Service({"m": bits(), "c": bits()}), "", [asked])  # type: ignore[arg-type]
    check_answer(Service({"m": bits(shots=9), "c": bits(shots=9)}), "", [asked])  # type: ignore[arg-type]  # twirled
    wrong: dict[str, Any] = {
        "in its registers": {"m": bits()},
        r"\(rows, bits\)": {"m": bits(), "c": bits(rows=1)},
        "in its registers; sent": {"m": bits(), "c": bits(width=2)},
        "7 shots|shots in its registers": {"m": bits(shots=7), "c": bits(shots=7)},
        "shots in its registers": {"m": bits(), "c": bits(shots=9)},
        "not that of the client's Sampler": (np.zeros((2, 2)), np.ones((2, 2)), 8),
    }
    for message, answer in wrong.items():
        with pytest.raises(DamagedFileError, match=message):
            check_answer(Service(answer), "", [asked])  # type: ignore[arg-type]
    with pytest.raises(DamagedFileError, match="not that of the client's Estimator"):
        check_answer(Service({"c": bits()}), "", [pub()])  # type: ignore[arg-type]
    with pytest.raises(DamagedFileError):
        decode_local('{"format": "qhw-local-1", "pubs": [{"bits": {"c": [1, [1, 1, 1], "!"]}}]}')


def test_a_wrong_answer_is_asked_for_again(tmp_path: Path) -> None:
    """What the service gives as the result of another job is not taken."""
    service = ScriptedService()
    other = json.dumps([{"c": [[0] * 100] * 2}])
    with Ledger.open(tmp_path) as ledger:
        service.new_job = lambda job: setattr(job, "answer", other)
        with pytest.raises(ServiceError, match="is no result of its circuits"):
            runner(service, ledger).run([sampler_pub()])
        assert ledger.rows()[0].state == "submitted"


def test_caps_hold_for_samplers(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        with pytest.raises(BudgetError, match="cap"):
            runner(ScriptedService(), ledger, max_qpu_seconds=None).run([sampler_pub()])
        with pytest.raises(BudgetError):
            runner(ScriptedService(), ledger, max_qpu_seconds=1.0).run([sampler_pub()])
        assert ledger.rows() == []


@pytest.fixture(scope="module")
def live() -> Any:
    with StandIn("fake_manila", seed=5, seconds_per_job=3.0) as standin, standin.as_account():
        yield standin


def test_what_a_live_device_does_not_take(live: StandIn, tmp_path: Path) -> None:
    """By the real client's target; nothing is sent, and no row is written."""
    with Ledger.open(tmp_path / "ledger") as ledger:

        def run(one: Any, program: str = "executor", **options: Any) -> Any:
            with open_runner("ibm_standin", ledger=ledger, run="r", program=program, max_qpu_seconds=50, times=TIMES,
                             estimate=estimate) as opened:  # fmt: skip
                return opened.run(one if isinstance(one, list) else [one], options=options)

        loop = QuantumCircuit(1, 1)
        with loop.for_loop(range(2)):
            loop.x(0)
        loop.measure(0, 0)
        with pytest.raises(InvalidInputError, match="has 'for_loop'; allowed: if_else"):
            run(SamplerPub(loop, (), np.zeros((1, 0)), 10))
        with pytest.raises(InvalidInputError, match="100,001 shots"):
            run(sampler_pub(shots=100_001))
        with pytest.raises(InvalidInputError, match=r"have \[100, 200\] shots"):
            run([sampler_pub(shots=100), sampler_pub(shots=200)])
        with pytest.raises(InvalidInputError, match=r"takes no PUBs of the client.s Sampler"):
            run(sampler_pub(), program="estimator")
        with pytest.raises(InvalidInputError, match=r"takes no PUBs of the client.s Estimator"):
            run(pub(), program="sampler")
        foreign = compile_sampled(conditional().circuit, Device.load("fake_torino"), optimization_level=0)
        with pytest.raises(InvalidInputError, match="compile it for this device"):
            run(SamplerPub(foreign, (THETA,), np.zeros((1, 1)), 10))
        inside = QuantumCircuit(2, 1)
        inside.measure(0, 0)
        with inside.if_test((0, 1)):
            inside.ry(0.1, 1)
        with pytest.raises(InvalidInputError, match="does not fit ibm_standin"):
            run(SamplerPub(inside, (), np.zeros((1, 0)), 10))
        assert (live.jobs, ledger.rows()) == ([], [])


def test_no_dynamic_circuits_on_a_live_device_without_them(tmp_path: Path) -> None:
    with StandIn("fake_miami") as standin, standin.as_account(), Ledger.open(tmp_path / "ledger") as ledger:
        opened = open_runner("ibm_standin", ledger=ledger, run="r", max_qpu_seconds=50, times=TIMES)
        with pytest.raises(InvalidInputError, match=r"dynamic .if_else., and ibm_standin has no control flow"):
            SamplerEngine(opened).sample(conditional().circuit, np.zeros((1, 1)))
        assert (standin.jobs, ledger.rows()) == ([], [])


def test_a_job_by_all_names(live: StandIn, tmp_path: Path) -> None:
    """What is noted of it, what it was expected to take, and every outcome in the export."""
    live.reset()
    device = live.device
    with Ledger.open(tmp_path / "ledger") as ledger:
        with open_runner("ibm_standin", ledger=ledger, run="r", max_qpu_seconds=50, times=TIMES) as opened:
            engine = SamplerEngine(opened, options={"twirling": {"enable_measure": True, "num_randomizations": 8}})
            given = engine.pub(sampler_pub().circuit, np.array([[0.1], [0.9]]), shots=500)
            (samples,) = engine.sample_many([given])
        (row,) = ledger.rows()
        assert (row.circuits, row.shots, samples.shots) == (2, 504, 504)
        assert live.jobs[0].executions == 2 * 504
        plain = expected_cost([given], device)
        assert row.summary["formula_seconds"] == pytest.approx(plain.formula_seconds * 1, rel=0.02)
        told = row.summary["sent"]
        assert (told["primitive"], told["program"], told["options"]["twirling"]["enable_measure"]) == (
            "sampler", "executor", True,
        )  # fmt: skip
        assert "primitive  " in show_text(ledger, row)
        export_rows(ledger, [row], tmp_path / "all.csv")
        export_rows(ledger, [row], tmp_path / "all.json")
    counts = samples.counts()
    with (tmp_path / "all.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["primitive"] for line in lines} == {"sampler"}
    read = {(int(line["row"]), line["outcome"]): int(line["count"]) for line in lines}
    wanted = {
        (number, f"m=0 c={int(record[1])}"): int(count)
        for number, counted in enumerate(counts.counts)
        for record, count in zip(counts.records, counted, strict=True)
        if count
    }
    assert read == wanted
    (entry,) = json.loads((tmp_path / "all.json").read_text())
    assert entry["results"][0]["shots"] == 504
    assert {(n, o): c for n, one in enumerate(entry["results"][0]["counts"]) for o, c in one.items()} == wanted
