"""`qhw evaluate denoising … --primitive sampler`: one job, paid once; the records' exact distribution; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from denoisers import folder_of
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, Parameter
from scipy import stats
from soon import short_pauses  # noqa: F401 - for every test here

from qhw_diffusion import cli
from qhw_diffusion.denoising import AmplitudeQDM, ReverseConfig
from qhw_diffusion.denoising.on_device.evaluation import (
    EvaluationConfig,
    check_images,
    measure,
    prepare,
    with_predictions,
)
from qhw_diffusion.denoising.on_device.sampler import DenoiserSampler
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution import NoisySampler, SamplerEngine, compile_sampled, record_probabilities
from qhw_diffusion.hardware import Ledger
from qhw_diffusion.hardware.runner import Runner
from qhw_diffusion.hardware.sampling import sample_counts
from qhw_diffusion.hardware.standin import StandIn
from qhw_diffusion.on_device.receipt import Receipt

IMAGES = 4
FED: dict[str, Any] = {"kind": "measured", "feed_forward": True}


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QHW_LEDGER", raising=False)
    monkeypatch.chdir(tmp_path)


def command(run: Path, here: Path, *more: str, device: str, shots: int = 500) -> list[str]:
    return ["evaluate", "denoising", str(run), "--device", device, "--shots", str(shots), "--images", str(IMAGES),
            "--out", str(here / "out"), "--ledger", str(here / "ledger"), *more]  # fmt: skip


class Simulated:
    """Access to the exact noisy records in a device's place."""

    def __init__(self, device: str, shots: int) -> None:
        self._engine = SamplerEngine(NoisySampler(Device.load(device), seed=3), shots=shots)

    def sampler(self, purpose: str) -> SamplerEngine:
        return self._engine

    def receipt(self, purpose: str) -> Receipt:
        return Receipt((purpose,), 1.5)


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_records_have_the_probabilities_that_aer_samples_from() -> None:
    """Gate noise and asymmetric readout, bits in two registers and out of order."""
    theta = Parameter("θ")
    circuit = QuantumCircuit(3, name="three")
    circuit.add_register(ClassicalRegister(1, "a"), ClassicalRegister(2, "b"))
    circuit.ry(theta, 0)
    circuit.cx(0, 1)
    circuit.ry(0.7, 2)
    circuit.cx(1, 2)
    circuit.measure([2, 0, 1], [0, 1, 2])
    device = Device.load("fake_manila")
    isa = compile_sampled(circuit, device)
    values, shots = np.array([[0.4], [2.0]]), 40_000
    p = record_probabilities(isa, device, isa.parameters, values)
    bits = sample_counts(isa, values, shots, device, np.random.default_rng(1))
    records = bits["a"][..., 0] + 2 * bits["b"][..., 0] + 4 * bits["b"][..., 1]
    drawn = SamplerEngine(NoisySampler(device, seed=2), shots=shots).sample(isa, values).counts(every=True).counts
    for row in range(2):
        seen = np.bincount(records[row], minlength=8)
        assert stats.chisquare(seen, p[row] * shots).pvalue > 1e-5
        assert stats.chisquare(drawn[row], p[row] * shots).pvalue > 1e-5
    ideal = record_probabilities(isa, device, isa.parameters, values, noisy=False)
    assert stats.chisquare(np.bincount(records[0], minlength=8), ideal[0] * shots + 1e-9, sum_check=False).pvalue < 1e-9
    with circuit.if_test((0, 1)):
        circuit.x(0)
    with pytest.raises(UnsupportedCircuitError, match="sampled"):
        record_probabilities(circuit, device, circuit.parameters, values)


@pytest.mark.parametrize("settings", [{}, {"kind": "measured"}], ids=["post-selected", "kept"])
def test_a_perfect_prediction_is_missed_by_the_error_bars_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Post-selected and kept outcomes against the whole circuit; without noise by a model that steps through them."""
    run = folder_of(tmp_path / "run", **settings)
    device, shots = "fake_manila", 4000
    asked = EvaluationConfig(str(run), device, shots, 20, primitive="sampler")
    ready = prepare(asked, tmp_path / "out", resume=False)
    assert ready.sampler is not None
    assert ready.sampler.way == "deferred"
    found = measure(ready, Simulated(device, shots))
    ready = with_predictions(ready, found.outcomes)
    assert [each.name for each in ready.predictions] == [f"simulated, noise of {device}", "simulated, no noise"]
    checks = check_images(ready, found)
    mean = sum(check.distances[0] for check in checks) / len(checks)
    alone = sum(check.expected_distance for check in checks) / len(checks)
    assert mean == pytest.approx(alone, rel=0.25)
    read, noisy = found.denoised.read, ready.predictions[0]
    pulls = (read.success - noisy.success) / read.success_errors
    assert 0.3 < float(pulls.square().mean()) < 2.2
    assert abs(float(pulls.mean())) < 0.9  # the shot that chooses the record would shift it
    # without noise the records and the steps are the same numbers
    ((circuit, parameters),) = ready.sampler.compiled().values()
    left = [k for k, p in enumerate(parameters) if p in set(circuit.parameters)]
    exact = record_probabilities(
        circuit, ready.compiled.device, [parameters[k] for k in left], ready.rows.numpy()[:, left], noisy=False
    )
    steps = ready.predictions[1]
    outcomes = torch.zeros(20, 2, dtype=torch.long) if found.outcomes is None else found.outcomes
    for b in (0, 7):
        record = int(outcomes[b, 0]) + 2 * int(outcomes[b, 1])  # m2, m1, then x
        wanted = steps.probabilities[b] * steps.success[b]
        assert exact[b].reshape(4, 4)[:, record] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_left_after_the_job_it_goes_on_and_the_ledger_confirms_the_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fed forward, labels by their own circuits, through the real client: one job, charged once, as `qhw cost` says."""
    run = folder_of(tmp_path / "run", **FED)
    ran = Runner.run

    def interrupted(*arguments: Any, **options: Any) -> Any:
        ran(*arguments, **options)
        raise KeyboardInterrupt

    with StandIn("fake_manila", seed=7) as standin, standin.as_account():
        words = command(run, tmp_path, device=standin.name)
        assert cli.main(words) == 3, "no cap"
        assert not (tmp_path / "out").exists()
        words += ["--max-qpu-seconds", "60"]
        cost = ["cost", str(run), "--device", standin.name, "--images", str(IMAGES), "--shots", "500", "--json"]
        capsys.readouterr()
        assert cli.main([*cost, "--ledger", str(tmp_path / "ledger")]) == 0
        shown = json.loads(capsys.readouterr().out)
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "run", interrupted)
            assert cli.main(words) == 130
        assert cli.main([*words, "--resume", "--primitive", "estimator"]) == 2
        capsys.readouterr()
        assert cli.main([*words, "--resume"]) == 0
        told = capsys.readouterr().out
        assert "by a Sampler: this model keeps its outcomes" in told
        assert "probability of the record of outcomes" in told
        (job,) = standin.jobs
        with Ledger.open(tmp_path / "ledger", create=False) as ledger:
            (row,) = ledger.rows()
        assert row.job_id == job.id
        assert row.estimate_seconds == pytest.approx(shown["seconds"])
        assert (row.circuits * row.shots, shown["way"]) == (shown["executions"], "dynamic")
        assert standin.charged_seconds == pytest.approx(row.qpu_seconds) == pytest.approx(shown["rule_of_thumb"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["job_ids"] == [row.job_id]
    assert results["qpu_seconds"] == pytest.approx(row.qpu_seconds)
    assert np.array(results["outcomes"]).shape == (IMAGES, 2)
    page = (tmp_path / "out" / "report.html").read_text()
    for part in ("read by a Sampler", "one dynamic circuit", "record of outcomes", "standard error of every pixel"):
        assert part in page


# -- refused before anything is paid -----------------------------------------------------------------------------------


def test_what_no_device_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder_of(tmp_path / "run", **FED)
    for device, more, words in (
        ("fake_miami", [], "fake_miami has no control flow"),
        ("fake_manila", ["--mitigation", "readout"], "a Sampler reads single shots"),
        ("fake_manila", ["--shots", "3"], "shots leave about"),
    ):
        assert cli.main(command(run, tmp_path, *more, device=device)) == InvalidInputError.exit_code
        assert words in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "ledger").exists()
    assert cli.main(["evaluate", "denoising", str(run), "--primitive", "sampler"]) == 2
    assert "--primitive is for a run on a device" in capsys.readouterr().err
    assert cli.main(["cost", str(run), "--device", "fake_manila", "--primitive", "estimator"]) == 2
    assert "a Sampler does" in capsys.readouterr().err


def test_conditions_within_conditions_are_for_simulators_only() -> None:
    circuit = QuantumCircuit(2, 2)
    circuit.h(0)
    circuit.measure([0, 1], [0, 1])
    with circuit.if_test((0, 1)), circuit.if_test((1, 0)):
        circuit.x(1)
    circuit.measure(1, 1)
    with pytest.raises(InvalidInputError, match="control flow within an if_else, which fake_manila does not take"):
        compile_sampled(circuit, Device.load("fake_manila"))
    assert compile_sampled(circuit, Device.load("ideal")).count_ops()["if_else"] == 1


def test_circuits_compiled_before_are_the_ones_that_are_sent() -> None:
    config = ReverseConfig(n_qubits=2, n_steps=2, depth=1, kind="measured", conditioning="angles", n_labels=3)
    model = AmplitudeQDM(config, image_shape=(1, 2, 2))
    once = DenoiserSampler(model, "fake_manila")
    again = DenoiserSampler(model, "fake_manila", circuits=once.compiled())
    assert again.circuit(2) is once.circuit(1)
