"""Counts of static and dynamic circuits: every Sampler against closed forms, and through the ledger bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, QuantumRegister
from qiskit.circuit.classical import expr
from qiskit.primitives import BackendSamplerV2, BaseSamplerV2, BitArray, StatevectorSampler
from qiskit.quantum_info import Statevector
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import SamplerV2
from records_by_hand import A, B, assert_drawn_from, dynamic, noisy_by_hand

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import EngineError, InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution import SamplerEngine, Samples, compile_sampled
from qhw_diffusion.hardware import Ledger, LocalService, SamplerPub, open_runner
from qhw_diffusion.hardware.durations import duration_of, longest_way
from qhw_diffusion.hardware.split import JobLimits, row_cost

VALUES = np.array([[0.7, 1.1], [2.0, 0.3], [1.5, 2.5]])  # columns: b, a
SHOTS = 2500


def static() -> QuantumCircuit:
    circuit = QuantumCircuit(3, 3)
    circuit.ry(A, 0)
    circuit.cx(0, 1)
    circuit.rx(B, 2)
    circuit.cx(1, 2)
    circuit.measure([0, 1, 2], [0, 1, 2])
    return circuit


def by_hand(row: np.ndarray) -> np.ndarray:
    """[8] probabilities of the records of `dynamic`: m is the lowest bit, then x."""
    b, a = row
    p = np.zeros(8)
    for m, first in enumerate((np.cos(a / 2) ** 2, np.sin(a / 2) ** 2)):
        angle = b if m else b / 2
        for q2, second in enumerate((np.cos(angle / 2) ** 2, np.sin(angle / 2) ** 2)):
            p[m + 2 * (m * q2) + 4 * q2] += first * second
    return p


def of_static(row: np.ndarray) -> np.ndarray:
    bare = static().remove_final_measurements(inplace=False)
    return np.asarray(Statevector(bare.assign_parameters({B: row[0], A: row[1]})).probabilities())


SAMPLERS: dict[str, Any] = {
    "Aer's": lambda: SamplerV2(seed=3),
    "of a backend": lambda: BackendSamplerV2(backend=AerSimulator(seed_simulator=4)),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_samplers_of_this_process(sampler: Any, kind: str) -> None:
    engine = SamplerEngine(sampler(), shots=SHOTS)
    circuit, exact = (static(), of_static) if kind == "static" else (dynamic(), by_hand)
    samples = engine.sample(circuit, torch.from_numpy(VALUES), parameters=[B, A])
    assert (samples.shots, samples.job_ids, samples.qpu_seconds) == (SHOTS, (), 0.0)
    counts = samples.counts(every=True)
    assert counts.counts.shape == (3, 8)
    assert_drawn_from(counts.counts, np.stack([exact(row) for row in VALUES]))


def test_the_clients_sampler_on_a_fake_backend() -> None:
    from qiskit_ibm_runtime.executor_sampler import Sampler
    from qiskit_ibm_runtime.fake_provider import FakeManilaV2

    isa = compile_sampled(dynamic(), Device.load("fake_manila"), optimization_level=1)
    samples = SamplerEngine(Sampler(mode=FakeManilaV2()), shots=300).sample(isa, VALUES[1:2], parameters=[B, A])
    assert samples.registers == (("m", 1), ("x", 2))
    assert np.abs(samples.counts(every=True).frequencies - by_hand(VALUES[1])).sum() / 2 < 0.3


def test_a_sampler_of_state_vectors_takes_no_dynamic_circuit() -> None:
    engine = SamplerEngine(StatevectorSampler(seed=1), shots=2000)
    assert_drawn_from(engine.sample(static(), VALUES[:, ::-1]).counts(every=True).counts,
                      np.stack([of_static(row) for row in VALUES]))  # fmt: skip
    with pytest.raises(EngineError, match=r"StatevectorSampler failed on .*ControlFlowOp"):
        engine.sample(dynamic(), VALUES, parameters=[B, A])


def test_records() -> None:
    """Bits by hand, registers longer than a byte among them."""
    shots = np.zeros((2, 3, 10), dtype=bool)
    shots[0, 0, [0, 9]] = shots[0, 1, [0, 9]] = shots[1, 2, 8] = True
    one = np.array([[[1], [1], [0]], [[0], [0], [1]]], dtype=bool)
    samples = Samples({"long": BitArray.from_bool_array(shots, order="little"), "one": BitArray.from_bool_array(one)})
    np.testing.assert_array_equal(samples.outcomes(), [[513 + 1024, 513 + 1024, 0], [0, 0, 256 + 1024]])
    np.testing.assert_array_equal(samples.outcomes("one", "long"), [[1027, 1027, 0], [0, 0, 513]])
    counts = samples.counts()
    np.testing.assert_array_equal(counts.counts, [[1, 0, 2], [2, 1, 0]])
    assert counts.registers == (("long", 10), ("one", 1))
    np.testing.assert_array_equal(np.nonzero(counts.records[1])[0], [8, 10])
    np.testing.assert_array_equal(counts.where("one")[:, 0], [False, True, True])
    np.testing.assert_array_equal(samples.counts("one", every=True).counts, [[1, 2], [2, 1]])
    np.testing.assert_allclose(counts.frequencies.sum(1), 1)
    with pytest.raises(InvalidInputError, match="no register 'x'"):
        counts.where("x")
    with pytest.raises(InvalidInputError, match="no register 'x'"):
        samples.counts("x")
    with pytest.raises(InvalidInputError, match="each of them once"):
        samples.outcomes("one", "one")


# -- through the ledger ------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger") as opened:
        yield opened


def flipped_by_readout(p: np.ndarray, errors: list[tuple[float, float]]) -> np.ndarray:
    """Distribution [2ⁿ] read through (p10, p01) of each bit, the lowest first."""
    n = len(errors)
    tensor = p.reshape([2] * n)
    for bit, (p10, p01) in enumerate(errors):
        assignment = np.array([[1 - p10, p01], [p10, 1 - p01]])
        tensor = np.moveaxis(np.tensordot(assignment, tensor, axes=(1, n - 1 - bit)), 0, n - 1 - bit)
    return tensor.reshape(-1)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_fake_device_through_the_ledger(ledger: Ledger, kind: str) -> None:
    """Against the device's own maps, record by record, inside of branches too; the second time for nothing."""
    device = Device.load("fake_manila")
    isa = compile_sampled(static() if kind == "static" else dynamic(), device)
    with open_runner(device, ledger=ledger, run="r") as runner:
        engine = SamplerEngine(runner, shots=SHOTS)
        samples = engine.sample(isa, VALUES, parameters=[B, A])
        exact = np.stack([noisy_by_hand(isa, device, row) for row in VALUES])
        np.testing.assert_allclose(exact.sum(1), 1, atol=1e-9)
        assert_drawn_from(samples.counts(every=True).counts, exact)
        ideal = np.stack([(of_static if kind == "static" else by_hand)(row) for row in VALUES])
        assert np.abs(exact - ideal).sum(1).min() > 0.05, "noise makes a difference that the test sees"
        again = engine.sample(isa, VALUES, parameters=[B, A])
        assert (again.bits, again.reused, again.job_ids) == (samples.bits, 1, samples.job_ids)
        if kind == "static":
            other = SamplerEngine(runner, shots=SHOTS, purpose="once more").sample(isa, VALUES, parameters=[B, A])
            assert other.bits != samples.bits
    row = ledger.rows()[0]
    assert (row.circuits, row.shots, row.state) == (3, SHOTS, "done")
    assert row.summary["sent"]["primitive"] == "sampler"


def test_a_call_is_split_and_put_together(tmp_path: Path) -> None:
    """Two circuits of five and one rows, two rows to a job; each answer is that of its own row."""
    turn = QuantumCircuit(5, 2)
    turn.rz(A, 0)
    turn.sx(0)
    turn.sx(0)  # X, whatever the angle
    turn.measure([0, 1], [0, 1])
    plain = QuantumCircuit(5, 2)
    plain.x(1)
    plain.measure([0, 1], [0, 1])
    values = np.linspace(0, 1, 5)[:, None]
    with Ledger.open(tmp_path / "a") as ledger:
        runner = open_runner("fake_manila", ledger=ledger, run="r", limits=JobLimits(executions=1000))
        engine = SamplerEngine(runner, shots=500)
        one, two = engine.sample_many([engine.pub(turn, values), engine.pub(plain)])
        assert len(one.job_ids) == len(ledger.rows()) == 3
    assert one.bits["c"].array.shape == (5, 500, 1)
    assert (one.counts(every=True).counts.argmax(1) == 1).all()
    assert two.counts(every=True).counts.argmax(1).tolist() == [2]


def test_a_sampler_of_ones_own_in_a_devices_place(ledger: Ledger) -> None:
    runner = open_runner("fake_manila", ledger=ledger, run="r", sampler=SamplerV2(seed=1))
    isa = compile_sampled(static(), Device.load("fake_manila"), optimization_level=1)
    samples = SamplerEngine(runner, shots=3000).sample(isa, VALUES, parameters=[B, A])
    assert_drawn_from(samples.counts(every=True).counts, np.stack([of_static(row) for row in VALUES]))
    assert runner.service.program == "local by SamplerV2"
    with pytest.raises(InvalidInputError, match="sampler is a AerSimulator"):
        LocalService(Device.load("fake_manila"), sampler=AerSimulator())  # type: ignore[arg-type]


def test_cost_predicted_is_cost_charged(ledger: Ledger) -> None:
    """By the runner's own count; an `if_else` takes what the slower of its branches takes."""
    device = Device.load("fake_manila")
    isa = compile_sampled(dynamic(), device)
    runner = open_runner(device, ledger=ledger, run="r")
    engine = SamplerEngine(runner, shots=500)
    cost = engine.cost([engine.pub(isa, VALUES, parameters=[B, A])], device)
    assert (cost.jobs, cost.circuits, cost.executions) == (1, 3, 1500)
    assert "if_else" in isa.count_ops()
    assert cost.duration == pytest.approx(duration_of(isa, device))
    assert cost.duration > float(device.target["measure"][0,].duration)  # type: ignore[union-attr, index]
    engine.sample(isa, VALUES, parameters=[B, A])
    (row,) = ledger.rows()
    assert row.circuits * row.shots == cost.executions


def test_the_longest_way_keeps_to_one_value_and_forgets_it_when_it_is_measured_again() -> None:
    device = Device.load("fake_manila")
    m = ClassicalRegister(1, "m")
    circuit = QuantumCircuit(QuantumRegister(5), m)
    for first, then in ((3, 1), (1, 5)):  # 3 + 1 gates for 1, then again 1 for 0 and 5 for 1
        circuit.measure(0, 0)
        for value, gates in ((1, first), (0, 2), (1, then)):
            with circuit.if_test((m[0], value)):
                for _ in range(gates):
                    circuit.sx(1)
    assert longest_way(circuit, device).count_ops()["sx"] == (3 + 1) + (1 + 5)
    loop = QuantumCircuit(1, 1)
    with loop.for_loop(range(2)):
        loop.x(0)
    with pytest.raises(UnsupportedCircuitError, match="for_loop"):
        longest_way(loop, device)


def test_branches_count_among_the_instructions_of_a_job() -> None:
    circuit = QuantumCircuit(2, 2)
    circuit.measure(0, 0)
    with circuit.if_test((0, 1)) as otherwise:
        for _ in range(4):
            circuit.sx(1)
    with otherwise:
        for _ in range(3):
            circuit.sx(1)
    circuit.measure(1, 1)
    # both are loaded: 7 gates of two instructions, the measurement's ten, and what every circuit has
    executions, instructions, _ = row_cost(SamplerPub(circuit, (), np.zeros((1, 0)), 100))
    assert (executions, instructions) == (100, 7 * 2 + 10 + 60)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input_is_told_before_anything_is_sent(ledger: Ledger) -> None:
    runner = open_runner("fake_manila", ledger=ledger, run="r")
    engine = SamplerEngine(runner, shots=100)
    with pytest.raises(InvalidInputError, match=r"unbound parameters \(a, b\)"):
        engine.sample(static())
    with pytest.raises(InvalidInputError, match=r"without values: b"):
        engine.sample(static(), VALUES[:, :1], parameters=[A])
    with pytest.raises(InvalidInputError, match=r"\[rows, 2 parameters\]"):
        engine.sample(static(), VALUES[:, :1])
    with pytest.raises(InvalidInputError, match="NaN"):
        engine.sample(static(), np.full((1, 2), np.nan))
    with pytest.raises(InvalidInputError, match="no array of numbers"):
        engine.sample(static(), [["a", "b"]])  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="measures nothing"):
        engine.sample(QuantumCircuit(2, 2))
    loose = QuantumCircuit(1)
    loose.add_bits(QuantumCircuit(0, 1).clbits)
    loose.measure(0, 0)
    with pytest.raises(InvalidInputError, match="in no register"):
        engine.sample(loose)
    named = QuantumCircuit(QuantumRegister(1), ClassicalRegister(1, "class"))
    named.measure(0, 0)
    with pytest.raises(InvalidInputError, match="no word of Python"):
        engine.sample(named)
    for shots in (0, -1, 2.5, True, 10**13):
        with pytest.raises(InvalidInputError, match="shots is"):
            engine.sample(static(), VALUES, shots=shots)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="shots is"):
            SamplerEngine(runner, shots=shots)  # type: ignore[arg-type]
    isa = compile_sampled(static(), Device.load("fake_manila"))
    with pytest.raises(InvalidInputError, match="100,001 shots of a circuit are more than the 100,000"):
        engine.sample(isa, VALUES, shots=100_001)
    with pytest.raises(InvalidInputError, match="has no 'ry' on qubits"):
        engine.sample(dynamic(), VALUES)
    with pytest.raises(InvalidInputError, match="compile it for"):
        engine.sample(compile_sampled(static(), Device.load("fake_torino")), VALUES)
    with pytest.raises(InvalidInputError, match="are for IBM's service"):
        SamplerEngine(runner, options={"twirling": {"enable_gates": True}}).sample(isa, VALUES)
    no_parameters = static().assign_parameters({A: 0.1, B: 0.2})
    with pytest.raises(InvalidInputError, match="every row would be the same circuit"):
        engine.sample(no_parameters, np.zeros((3, 0)))
    assert ledger.rows() == []
    with pytest.raises(InvalidInputError, match="a Sampler primitive"):
        SamplerEngine(AerSimulator())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="give those of a Sampler to the Sampler itself"):
        SamplerEngine(SamplerV2(), options={"twirling": {}})
    assert engine.sample_many([]) == []


def test_control_flow_that_a_device_does_not_have() -> None:
    miami = Device.load("fake_miami")
    with pytest.raises(InvalidInputError, match=r"dynamic \(if_else\), and fake_miami has no control flow"):
        compile_sampled(dynamic(), miami)
    reset = QuantumCircuit(1, 1)
    reset.reset(0)
    reset.measure(0, 0)
    with pytest.raises(InvalidInputError, match="needs reset, which fake_miami does not have"):
        compile_sampled(reset, miami)
    manila = Device.load("fake_manila")
    loop = QuantumCircuit(1, 1)
    with loop.for_loop(range(2)):
        loop.measure(0, 0)
    with pytest.raises(InvalidInputError, match="has 'for_loop'; allowed: if_else"):
        compile_sampled(loop, manila)
    asking = QuantumCircuit(2, 2)
    asking.measure([0, 1], [0, 1])
    with asking.if_test(expr.bit_and(*asking.clbits)):
        asking.x(0)
    with pytest.raises(InvalidInputError, match="an expression for a condition"):
        compile_sampled(asking, manila)
    wide = QuantumCircuit(6)
    wide.measure_all()
    with pytest.raises(InvalidInputError, match="6 qubits, and fake_manila has 5"):
        compile_sampled(wide, manila)


def test_what_is_no_answer_is_said() -> None:
    class Wrong(BaseSamplerV2):
        def run(self, pubs: Any, *, shots: int | None = None) -> Any:
            return SamplerV2(seed=1).run([(circuit, values, 7) for circuit, values, _ in pubs])

    with pytest.raises(EngineError, match="asked for were 3 rows of 100 shots"):
        SamplerEngine(Wrong(), shots=100).sample(static(), VALUES)
