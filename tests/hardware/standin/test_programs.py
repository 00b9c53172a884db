"""The real client against the stand-in, all programs: values against our own noisy engine and closed forms."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, QuantumRegister
from qiskit.quantum_info import SparsePauliOp
from small_jobs import pub, sampler_pub

from qhw_diffusion.circuits import policy_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.execution import QuantumLayer, compile_circuit
from qhw_diffusion.hardware.cost import added_by
from qhw_diffusion.hardware.service import Pub, precision_of
from qhw_diffusion.hardware.standin import INSTANCE, RandomFaults, StandIn

PROGRAMS = ("estimator", "executor")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client warns of its own deprecations, and reads the whole stack at every request unless told not to."""
    monkeypatch.setenv("USAGE_DATA_OPT_OUT", "True")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.fixture(scope="module")
def manila() -> Iterator[StandIn]:
    with StandIn("fake_manila", seed=11) as running:
        yield running


@pytest.fixture
def standin(manila: StandIn) -> Iterator[StandIn]:
    manila.reset()
    with manila.as_account():
        yield manila


def service() -> Any:
    from qiskit_ibm_runtime import QiskitRuntimeService

    return QiskitRuntimeService()


def backend() -> Any:
    return service().backend("ibm_standin")


def estimator(program: str, mode: Any, **options: Any) -> Any:
    if program == "estimator":
        from qiskit_ibm_runtime import EstimatorV2

        return EstimatorV2(mode=mode, options=options)
    from qiskit_ibm_runtime.executor_estimator import Estimator

    return Estimator(mode=mode, options={"resilience_level": 0, **options})


def policy_job(device: Device, shots: int) -> tuple[Pub, np.ndarray]:
    """A PUB of the 4-qubit policy at three inputs, and [M, B] expectation values by the noisy engine."""
    policy = policy_circuit(n_qubits=4, depth=2, n_features=6, entanglement="chain")
    compiled = compile_circuit(policy.circuit, device, inputs=policy.inputs, weights=policy.weights,
                               observables=policy.observables)  # fmt: skip
    layer = QuantumLayer(compiled, "noisy", seed=4)
    inputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = layer(inputs).numpy().T
        rows = torch.cat([inputs, layer.weight.expand(3, -1)], dim=1).double().numpy()
    parameters = (*compiled.inputs, *compiled.weights)
    return Pub(compiled.isa, tuple(compiled.observables), parameters, rows, precision_of(shots)), values


def assert_agrees(result: Any, wanted: np.ndarray, shots: int) -> None:
    measured = result[0].data.evs
    errors = np.sqrt((1 - wanted**2) / shots)  # of a mean of ±1
    assert measured.shape == wanted.shape
    assert (np.abs(measured - wanted) < 4.5 * errors).all(), (measured - wanted) / errors
    assert np.abs(measured - wanted).max() > 0, "sampled, not computed"
    np.testing.assert_allclose(result[0].data.stds, errors, rtol=0.25, atol=1e-3)


@pytest.mark.parametrize("program", PROGRAMS)
def test_values_agree_with_the_noisy_engine(standin: StandIn, program: str) -> None:
    job, wanted = policy_job(standin.device, 10_000)
    assert_agrees(estimator(program, backend()).run([job.as_tuple()]).result(), wanted, 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_device_of_156_qubits(program: str) -> None:
    with StandIn("fake_marrakesh", name="ibm_marrakesh", seed=3) as running, running.as_account():
        live = service().backend("ibm_marrakesh")
        assert (live.num_qubits, live.name) == (156, "ibm_marrakesh")
        job, wanted = policy_job(running.device, 4000)
        assert_agrees(estimator(program, live).run([job.as_tuple()]).result(), wanted, 4000)


@pytest.mark.parametrize("program", PROGRAMS)
def test_readout_error_is_asymmetric(standin: StandIn, program: str) -> None:
    p10, p01 = standin.device.readout_error(2)
    assert abs(p10 - p01) > 0.04, "the device was chosen for it"
    shots, observable = 40_000, SparsePauliOp.from_sparse_list([("Z", [2], 1.0)], 5)
    zero, one = QuantumCircuit(5), QuantumCircuit(5)
    one.x(2)
    answer = estimator(program, backend()).run([(c, observable, None, precision_of(shots)) for c in (zero, one)])
    measured = [float(entry.data.evs) for entry in answer.result()]
    assert measured[0] == pytest.approx(1 - 2 * p10, abs=0.015)
    assert measured[1] == pytest.approx(2 * p01 - 1, abs=0.015)


def test_the_executors_mitigation_of_readout_error(standin: StandIn) -> None:
    """Level 1 (TREX, made by the client from circuits it adds to the job) takes most of the readout error away."""
    ideal = 1.0
    circuit, observable = QuantumCircuit(5), SparsePauliOp.from_sparse_list([("Z", [2], 1.0)], 5)
    raw, mitigated = (
        float(estimator("executor", backend(), resilience_level=level)
              .run([(circuit, observable, None, 0.01)]).result()[0].data.evs)
        for level in (0, 1)
    )  # fmt: skip
    assert ideal - raw > 0.1
    assert abs(ideal - mitigated) < 0.05


@pytest.mark.parametrize("program", PROGRAMS)
def test_waiting_qubits_relax_in_a_scheduled_circuit(standin: StandIn, program: str) -> None:
    seconds, qubit = 30e-6, 1
    t1, _ = standin.device.relaxation_times(qubit)
    p10, p01 = standin.device.readout_error(qubit)
    circuit = QuantumCircuit(5)
    circuit.x(qubit)
    circuit.delay(16 * round(seconds / 16 / (standin.device.target.dt or 0)), qubit, "dt")
    observable = SparsePauliOp.from_sparse_list([("Z", [qubit], 1.0)], 5)
    measured = float(estimator(program, backend()).run([(circuit, observable, None, 0.01)]).result()[0].data.evs)
    excited = np.exp(-seconds / (t1 or 0))
    read_one = excited * (1 - p01) + (1 - excited) * p10
    assert measured == pytest.approx(1 - 2 * read_one, abs=0.05)
    assert abs(1 - 2 * read_one - (2 * p01 - 1)) > 0.1, "it makes a difference"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_same_seed_gives_the_same_answers(program: str) -> None:
    def answers(seed: int) -> np.ndarray:
        with StandIn("fake_manila", seed=seed) as running, running.as_account():
            ran = estimator(program, backend())
            return np.stack([ran.run([pub().as_tuple()]).result()[0].data.evs for _ in range(2)])

    first = answers(5)
    np.testing.assert_array_equal(answers(5), first)
    assert (answers(6) != first).any()
    assert (first[0] != first[1]).any(), "a second job has outcomes of its own"


@pytest.mark.parametrize("program", PROGRAMS)
def test_jobs_of_a_batch_by_tag_and_after_a_restart(standin: StandIn, program: str) -> None:
    from qiskit_ibm_runtime import Batch

    live = backend()
    with Batch(live, max_time=300) as batch:
        mine = estimator(program, batch, environment={"job_tags": ["run", "key"]})
        jobs = [mine.run([pub().as_tuple()]) for _ in range(2)]
        results = [job.result() for job in jobs]
        assert batch.details()["mode"] == "batch"
    assert batch.status() == "Closed"
    assert [(record.id, record.tags, record.state) for record in standin.jobs] == [
        (job.job_id(), ("run", "key"), "Completed") for job in jobs
    ]
    again = service()  # another client, which knows nothing
    assert [job.job_id() for job in again.jobs(job_tags=["key"])] == [job.job_id() for job in reversed(jobs)]
    assert [job.job_id() for job in again.jobs(job_tags=["run", "key"], limit=1)] == [jobs[1].job_id()]
    assert again.jobs(job_tags=["key", "other"]) == []
    assert {job.job_id() for job in again.jobs(session_id=batch.session_id)} == {job.job_id() for job in jobs}
    assert again.jobs(session_id="another") == []
    found = again.job(jobs[0].job_id())
    np.testing.assert_array_equal(found.result()[0].data.evs, results[0][0].data.evs)
    found.update_tags(["new"])
    assert standin.jobs[0].tags == ("new",)


def test_what_is_charged(standin: StandIn) -> None:
    """By IBM's rule of thumb for jobs and batches, by the clock for sessions."""
    from qiskit_ibm_runtime import Session

    live = backend()
    job = estimator("estimator", live).run([pub(shots=1000).as_tuple()])
    job.result()
    executions = 2 * 2 * 1000  # two rows, measured along Z and along X
    assert job.metrics()["executions"] == executions
    assert job.usage() == pytest.approx(2 + 0.00035 * executions)
    assert job.metrics()["usage"]["quantum_seconds"] == job.usage()
    assert standin.charged_seconds == job.usage()
    usage = service().usage()
    assert usage["usage_consumed_seconds"] == standin.charged_seconds
    assert usage["usage_remaining_seconds"] == pytest.approx(600 - standin.charged_seconds)
    before = standin.charged_seconds
    with Session(live, max_time=100) as session:
        estimator("estimator", session).run([pub().as_tuple()]).result()
    assert standin.charged_seconds - before == pytest.approx(session.usage(), abs=1e-6)
    assert 0 < session.usage() < 2, "less than the job's own 2 s: the clock counts"


def test_a_job_waits_in_the_queue_and_can_be_cancelled_there() -> None:
    with StandIn("fake_manila", queue_seconds=60.0) as running, running.as_account():
        job = estimator("estimator", backend()).run([pub().as_tuple()])
        assert job.status() == "QUEUED"
        job.cancel()
        assert service().job(job.job_id()).status() == "CANCELLED"
        assert running.charged_seconds == 0


def test_what_the_stand_in_cannot_run_is_a_failed_job_with_its_reason(standin: StandIn) -> None:
    circuit = QuantumCircuit(5, 1)
    with circuit.for_loop(range(2)):
        circuit.x(0)
    circuit.measure(0, 0)
    job = sampler("executor", backend()).run([(circuit, None, 10)])
    job.wait_for_final_state(timeout=20)
    assert job.status() == "ERROR"
    assert "nothing here simulates 'for_loop'" in (job.error_message() or "")
    assert standin.charged_seconds == 0


# -- samplers ----------------------------------------------------------------------------------------------------------


SAMPLERS = ("sampler", "executor")


def sampler(program: str, mode: Any, **options: Any) -> Any:
    if program == "sampler":
        from qiskit_ibm_runtime import SamplerV2

        return SamplerV2(mode=mode, options=options)
    from qiskit_ibm_runtime.executor_sampler import Sampler

    return Sampler(mode=mode, options=options)


@pytest.mark.parametrize("program", SAMPLERS)
def test_bits_of_a_sampler(standin: StandIn, program: str) -> None:
    """Registers of several bits, each bit in its place; a condition goes by what was read, wrong or right."""
    first, last = ClassicalRegister(2, "first"), ClassicalRegister(2, "last")
    circuit = QuantumCircuit(QuantumRegister(5), first, last)
    circuit.x(2)
    circuit.measure([2, 0], first)
    with circuit.if_test((first, 1)):
        circuit.x(3)
    circuit.measure([3, 4], last)
    shots = 3000
    answer = sampler(program, backend()).run([(circuit, None, shots)]).result()[0]
    assert (answer.data.first.num_bits, answer.data.last.num_bits, answer.data.first.num_shots) == (2, 2, shots)
    read = np.concatenate([answer.data[name].to_bool_array(order="little") for name in ("first", "last")], 1)
    errors = {qubit: standin.device.readout_error(qubit) for qubit in (0, 2, 3, 4)}
    assert errors[2][1] > 0.03, "the device was chosen for it"
    right = (1 - errors[2][1]) * (1 - errors[0][0])
    wanted = [1 - errors[2][1], errors[0][0], right * (1 - errors[3][1]) + (1 - right) * errors[3][0], errors[4][0]]
    assert np.abs(read.mean(0) - wanted).max() < 4.5 * 0.5 / np.sqrt(shots)
    asked = ~read[:, 1] & read[:, 0]
    assert read[asked, 2].mean() > 0.9
    assert read[~asked, 2].mean() < 0.1
    assert standin.jobs[0].executions == shots
    assert standin.jobs[0].program == program


@pytest.mark.parametrize("program", SAMPLERS)
def test_rows_of_a_sampler(standin: StandIn, program: str) -> None:
    given = sampler_pub((0.2, 1.4, 2.9), 2000)
    (answer,) = sampler(program, backend()).run([given.as_tuple()]).result()
    p10, p01 = standin.device.readout_error(0)
    one = (1 + np.cos([0.2, 1.4, 2.9])) / 2
    assert answer.data.c.shape == (3,)
    np.testing.assert_allclose(
        answer.data.c.to_bool_array().mean((1, 2)), one * (1 - p01) + (1 - one) * p10, atol=4.5 * 0.5 / np.sqrt(2000)
    )
    assert standin.jobs[0].executions == 3 * 2000


def test_a_twirled_sampler(standin: StandIn) -> None:
    """Flips before the measurement are taken back by the client: symmetric readout, and shots are rounded up."""
    p10, p01 = standin.device.readout_error(2)
    assert abs(p10 - p01) > 0.04, "the device was chosen for it"
    circuit = QuantumCircuit(5, 1)
    circuit.measure(2, 0)
    options = {"twirling": {"enable_measure": True, "num_randomizations": 60}}
    (answer,) = sampler("executor", backend(), **options).run([(circuit, None, 11_999)]).result()
    assert answer.data.c.num_shots == standin.jobs[0].executions == 12_000
    assert added_by(options, "sampler").executed(1, 11_999) == (1, 12_000)
    assert answer.data.c.to_bool_array().mean() == pytest.approx((p10 + p01) / 2, abs=0.01)


def test_the_account_and_the_device(standin: StandIn) -> None:
    client = service()
    assert client.active_account()["instance"] == INSTANCE
    (live,) = client.backends(simulator=False)
    assert (live.name, live.num_qubits, live.status().operational) == ("ibm_standin", 5, True)
    assert Device.load("ibm_standin").readout_error(2) == standin.device.readout_error(2)
    standin.inject_random(RandomFaults(rate=0.0))
    assert Device.load("ibm_standin").coupling_map == standin.device.coupling_map
    assert sum(standin.hits.values()) == 0
