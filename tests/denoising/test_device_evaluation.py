"""`qhw evaluate denoising RUN --device … --shots …`: one job, paid once, resumed; refused before anything is paid."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import logs
import pytest
import torch
from denoisers import folder_of
from forked import Command
from soon import short_pauses  # noqa: F401 - for every test here
from undrawn import figures_undrawn

from qhw_diffusion import cli
from qhw_diffusion.denoising import AmplitudeQDM, ReverseConfig, shots_needed
from qhw_diffusion.denoising.deferred import deferred_inputs, deferred_weights, denoised, plain_shots
from qhw_diffusion.denoising.on_device.evaluation import (
    EvaluationConfig,
    Measured,
    Prepared,
    check_images,
    compiled_for,
    load_denoiser,
    measure,
    predictions_of,
    prepare,
)
from qhw_diffusion.denoising.on_device.report import comparison_figure, probability_figure
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import BudgetError, InvalidInputError, RunFolderError
from qhw_diffusion.execution import Engine, Estimate, Noisy, Shots
from qhw_diffusion.execution.engine import rows_of as rows_of_parameters
from qhw_diffusion.execution.primitive import Hardware
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import Runner, open_runner
from qhw_diffusion.hardware.standin import StandIn
from qhw_diffusion.on_device.access import AccessConfig, open_access
from qhw_diffusion.on_device.receipt import Receipt

IMAGES = 5


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QHW_LEDGER", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("denoisers") / "run")


def command(run: Path, here: Path, *more: str, device: str = "fake_manila", shots: int = 2000) -> list[str]:
    return ["evaluate", "denoising", str(run), "--device", device, "--shots", str(shots), "--images", str(IMAGES),
            "--out", str(here / "out"), "--ledger", str(here / "ledger"), *more]  # fmt: skip


def rows_of(here: Path) -> list[Any]:
    with Ledger.open(here / "ledger", create=False) as ledger:
        return list(ledger.rows())


@pytest.mark.slow
def test_measured_success_probabilities_scatter_about_the_predicted_ones(run: Path, tmp_path: Path) -> None:
    """Aer's shots against the noisy engine: z of 20 images, 6 times each, with the standard errors as stated."""
    model = load_denoiser(run)
    compiled = compiled_for(model, Device.load("fake_manila"))
    labels = torch.arange(20) % 10
    starts = model.forward_process.prior(20, model.dim, torch.Generator().manual_seed(1))
    rows = rows_of_parameters(deferred_inputs(model, starts, labels), deferred_weights(model).double())
    predicted = Noisy().estimate(compiled, rows).values[:, 0]
    with (
        Ledger.open(tmp_path / "ledger") as ledger,
        open_runner("fake_manila", ledger=ledger, run="r", seed=1) as runner,
    ):
        engine = Hardware(runner, shots=1000, purpose="images")
        estimate = engine.estimate(compiled, rows.repeat(6, 1))
        read = denoised(model, estimate, plain_shots(engine, estimate)).read
    z = ((read.success - predicted.repeat(6)) / read.success_errors).reshape(6, 20)
    # bounds of probability 10⁻⁴: of a mean over 120, of the sums over a repetition's images, and of χ² with 120
    assert abs(float(z.mean())) < 3.9 / 120**0.5
    assert float(z.sum(1).square().sum() / 20) < 27.9
    assert 69 < float(z.square().sum()) < 187


class Simulated:
    """Access to a simulated engine in a device's place."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def engine(self, purpose: str) -> Engine:
        return self._engine

    def receipt(self, purpose: str) -> Receipt:
        return Receipt((purpose,), 1.5)


@pytest.fixture(scope="module")
def prepared(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    asked = EvaluationConfig(run=str(run), device="fake_manila", shots=2000, images=40)
    return prepare(asked, tmp_path_factory.mktemp("prepared") / "out", resume=False)


# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exact_values_are_the_prediction(prepared: Prepared) -> None:
    """The whole circuit under noise first, then the model step by step without."""
    names = [each.name for each in prepared.predictions]
    assert names == ["simulated, noise of fake_manila", "simulated, no noise"]
    exact = measure(prepared, Simulated(Noisy()))
    assert exact.receipt == Receipt(("out images",), 1.5)
    checks = check_images(prepared, exact)
    assert max(check.distances[0] for check in checks) < 1e-6
    assert min(check.distances[1] for check in checks) > 0.005
    assert exact.denoised.images is not None
    torch.testing.assert_close(exact.denoised.images.images, prepared.predictions[0].images, rtol=0, atol=1e-4)
    with torch.no_grad():
        chain = prepared.model.reverse.run(prepared.starts, prepared.labels)
    torch.testing.assert_close(prepared.predictions[1].success, chain.probability.double(), rtol=0, atol=1e-5)


def test_shots_agree_with_the_prediction_within_their_error_bars(prepared: Prepared) -> None:
    """Mean distances are those of the error bars alone; another noise is found out."""
    right = check_images(prepared, measure(prepared, Simulated(Shots(2000, seed=5))))
    mean = sum(check.distances[0] for check in right) / len(right)
    alone = sum(check.expected_distance for check in right) / len(right)
    assert mean == pytest.approx(alone, rel=0.12)
    wrong = check_images(prepared, measure(prepared, Simulated(Shots(20_000, seed=5, noisy=False))))
    assert sum(check.distances[0] for check in wrong) > 2 * sum(check.expected_distance for check in wrong)
    squares = [(check.success - float(p)) ** 2 / check.success_error**2
               for check, p in zip(right, prepared.predictions[0].success, strict=True)]  # fmt: skip
    assert 0.5 < sum(squares) / len(squares) < 1.6


def test_images_without_a_success_that_is_told_from_zero_are_left_out(prepared: Prepared) -> None:
    """Of the report's figures as well: one row of noise, one with a standard error that is not known."""
    exact = measure(prepared, Simulated(Noisy())).denoised.estimate
    values, errors = exact.values.clone(), torch.full_like(exact.values, 0.01)
    values[0] = torch.tensor([0.01, 0.0, 0.0, 0.0])
    errors[1] = torch.inf
    found = Measured(denoised(prepared.model, Estimate(values, errors)))
    checks = check_images(prepared, found)
    assert checks[0].distances[0] != checks[0].distances[0]
    assert checks[1].distances[0] < 1e-6
    assert found.denoised.images is not None
    assert found.denoised.images.images[0].isnan().all()
    assert found.denoised.images.std_errors[1].isinf().all()
    for figure in (comparison_figure(prepared, found), probability_figure(prepared, found)):
        figure.canvas.draw()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_one_command_from_the_run_folder_to_the_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One job of a circuit an image; cost and ledger count the same; the folder holds what the report says."""
    logger = logs.file_of(tmp_path)
    assert cli.main(command(run, tmp_path, "--mitigation", "readout", "--logger", logger)) == 0
    steps = logs.told(tmp_path)
    numbers = {name for _, values, what in steps if what == "numbers" for name in values}
    assert {"evaluation/on fake_manila/accuracy", "charts/qpu_seconds"} <= numbers
    pictures = [name for _, values, what in steps if what == "picture" for name in values]
    assert pictures[:2] == ["evaluation/images", "evaluation/predicted-and-measured-probabilities"]
    assert logs.outcomes(tmp_path) == ["finished"]
    told = capsys.readouterr().out
    assert "5 circuits a call alone, 5 with mitigation" in told
    assert "total variation distance an image to simulated, noise of fake_manila" in told
    (row,) = rows_of(tmp_path)
    assert (row.state, row.purpose) == ("done", "out images")
    assert (row.circuits, row.shots) == (IMAGES, 2000)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["job_ids"] == [row.job_id]
    assert len(results["measured"]["pixel_errors"]) == IMAGES
    assert results["predictions"][0]["name"] == "simulated, noise of fake_manila"
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("of the shots pass; predicted", "standard error of every pixel", "TV to: simulated, no noise",
                  "4 qubits", row.job_id, "--mitigation readout"):  # fmt: skip
        assert words in page
    assert len(json.loads((tmp_path / "out" / "jobs.json").read_text())) == 1
    cli.main(["cost", str(run), "--device", "fake_manila", "--images", str(IMAGES), "--shots", "2000", "--json",
              "--mitigation", "readout", "--ledger", str(tmp_path / "ledger")])  # fmt: skip
    shown = json.loads(capsys.readouterr().out)
    assert shown["executions"] == row.circuits * row.shots
    device = json.loads((tmp_path / "out" / "circuit" / "device.json").read_text())
    assert shown["two_qubit_gates"] == device["two_qubit_gates"]


@pytest.mark.slow
@pytest.mark.parametrize(("strategies", "circuits"), [
    ("readout+zne:linear:1,3", 2 * IMAGES), ("twirling:2", 2 * IMAGES), ("decoupling", IMAGES),
])  # fmt: skip
def test_strategies_are_applied_to_both_numbers_of_the_quotient(
    run: Path, tmp_path: Path, strategies: str, circuits: int
) -> None:
    """Extrapolation and twirling in one job, with errors of the quotient; decoupling has the circuit scheduled."""
    access_config = AccessConfig("fake_manila", 2000, mitigation=strategies, ledger=str(tmp_path / "ledger"))
    asked = EvaluationConfig(str(run), "fake_manila", 2000, IMAGES, mitigation=strategies)
    ready = prepare(asked, tmp_path / "out", resume=False)
    assert ready.compiled.scheduled == (strategies == "decoupling")
    with open_access(access_config, "out") as access:
        read = measure(ready, access).denoised.read
    (row,) = rows_of(tmp_path)
    assert row.circuits == circuits
    assert read.resolved.all()
    ideal = ready.predictions[1]
    pulls = (read.success - ideal.success) / read.success_errors
    assert read.success_errors.min() > 0
    assert pulls.abs().max() < 12  # nowhere near another number


# -- paid once ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@figures_undrawn()
def test_left_between_the_job_and_the_report_it_goes_on_without_another_job(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = Runner.run

    def interrupted(*arguments: Any, **options: Any) -> Any:
        ran(*arguments, **options)
        raise KeyboardInterrupt

    words = command(run, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", interrupted)
        assert cli.main(words) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()
    assert cli.main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*words, "--shots", "3000", "--resume"]) == RunFolderError.exit_code
    assert "other settings" in capsys.readouterr().err
    assert cli.main([*words, "--resume"]) == 0
    assert "(from the ledger)" in capsys.readouterr().out
    (row,) = rows_of(tmp_path)
    assert row.attempt == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("primitive", ["estimator", "sampler"])
@figures_undrawn()
def test_killed_in_the_queue_it_goes_on_and_the_charge_is_the_predicted_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], primitive: str
) -> None:
    """The real client against the stand-in, which charges by IBM's rule of thumb: one job, counted on its side."""
    with StandIn("fake_manila", seed=7, queue_seconds=2.0) as standin, standin.as_account():
        words = command(run, tmp_path, "--max-qpu-seconds", "60", "--primitive", primitive, device=standin.name)
        cost = ["cost", str(run), "--device", standin.name, "--images", str(IMAGES), "--shots", "2000", "--json",
                "--primitive", primitive]  # fmt: skip
        assert cli.main(cost) == 0
        shown = json.loads(capsys.readouterr().out)
        process = Command(words)
        try:
            process.wait_until(lambda: standin.jobs)
        finally:
            code = process.end()
        assert code == -signal.SIGKILL
        assert cli.main([*words, "--resume"]) == 0
        (job,) = standin.jobs
        (row,) = rows_of(tmp_path)
        assert row.job_id == job.id
        assert row.estimate_seconds == pytest.approx(shown["seconds"])
        assert standin.charged_seconds == pytest.approx(row.qpu_seconds)
        assert row.qpu_seconds == pytest.approx(shown["rule_of_thumb"])
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert results["qpu_seconds"] == pytest.approx(row.qpu_seconds)


def test_a_paid_device_needs_a_cap_and_one_that_is_large_enough(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with StandIn("fake_manila", seed=7) as standin, standin.as_account():
        words = command(run, tmp_path, device=standin.name)
        assert cli.main(words) == BudgetError.exit_code
        assert "--max-qpu-seconds" in capsys.readouterr().err
        assert cli.main([*words, "--max-qpu-seconds", "1"]) == BudgetError.exit_code
        assert not standin.jobs
    assert not (tmp_path / "out").exists()


# -- refused before anything is paid -----------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], words: list[str], here: Path) -> str:
    assert cli.main(words) == InvalidInputError.exit_code
    assert not (here / "out").exists()
    assert not (here / "ledger").exists()
    return capsys.readouterr().err


def test_a_success_probability_that_the_shots_do_not_resolve(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says how many shots it takes, for the rarest success under noise, and with so many it runs."""
    error = refused(capsys, command(run, tmp_path, shots=4), tmp_path)
    needed = int(error.rpartition("Use ")[2].split()[0])
    asked = EvaluationConfig(run=str(run), device="fake_manila", shots=needed, images=IMAGES)
    lowest = float(prepare(asked, tmp_path / "enough", resume=False).predictions[0].success.min())
    assert f"do not resolve a success probability of {lowest:.3g}" in error
    assert needed == shots_needed(lowest, 4)
    with pytest.raises(InvalidInputError, match="do not resolve"):
        prepare(asked.replace(shots=needed - 1), tmp_path / "less", resume=False)


def test_what_does_not_run_by_an_estimator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = folder_of(tmp_path / "kept", kind="measured", feed_forward=True)
    words = command(kept, tmp_path, "--primitive", "estimator")
    assert "a Sampler does (--primitive sampler)" in refused(capsys, words, tmp_path)
    wide = folder_of(tmp_path / "wide", n_steps=4)
    assert "fake_manila has 5 that can be used" in refused(capsys, command(wide, tmp_path), tmp_path)
    labelled = folder_of(tmp_path / "labelled", conditioning="qubits", n_steps=3, ancillas=1)
    words = command(labelled, tmp_path, device="fake_marrakesh")
    assert "2^17 Pauli strings; an Estimator is given at most 8,192" in refused(capsys, words, tmp_path)


@pytest.mark.parametrize(("more", "words"), [
    (["--engine", "noisy", "--max-qpu-seconds", "3"], "--max-qpu-seconds is for a run on a device"),
    (["--engine", "noisy", "--resume"], "--out is for a run on a device"),
    (["--primitive", "sampler", "--mitigation", "readout"], "a Sampler reads single shots: leave it out"),
    (["--mitigation", "zoe"], "did you mean zne"),
    (["--resilience-level", "1"], "takes level 0 only"),
    (["--images", "0"], "images is 0"),
    (["--overwrite", "--resume"], "contradict"),
    (["--device", "fake_manilla"], "did you mean fake_manila"),
])  # fmt: skip
def test_flags_that_do_not_go_together(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    given = command(run, tmp_path, *more)
    if "--engine" in more and "--max-qpu-seconds" in more:
        given = [w for w in given if w not in ("--out", "--ledger", str(tmp_path / "out"), str(tmp_path / "ledger"))]
    elif "--engine" in more:
        given = [w for w in given if w not in ("--ledger", str(tmp_path / "ledger"))]
    assert words in refused(capsys, given, tmp_path)


@pytest.mark.slow
def test_with_an_engine_or_without_a_device_it_is_simulated(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["evaluate", "denoising", str(run), "--images", "20", "--shots", "4000"]
    for more in ([], ["--device", "fake_manila", "--engine", "noisy"], ["--device", "ideal"]):
        assert cli.main([*base, *more]) == 0
        assert "4000 shots an image; 20 images" in capsys.readouterr().out


def test_a_wider_circuit_is_predicted_step_by_step(tmp_path: Path) -> None:
    model = AmplitudeQDM(ReverseConfig(n_qubits=2, n_steps=7, depth=1, init_scale=0.3), image_shape=(1, 2, 2))
    compiled = compiled_for(model, Device.load("fake_marrakesh"))
    starts = model.forward_process.prior(2, 4, torch.Generator().manual_seed(0))
    noisy, ideal = predictions_of(model, compiled, starts, None, torch.zeros(2, 1))
    assert noisy.name == "simulated step by step, noise of fake_marrakesh"
    with torch.no_grad():
        chain = model.on(device="fake_marrakesh", engine="noisy").reverse.run(starts)
    torch.testing.assert_close(noisy.success, chain.probability.double())
    assert not torch.allclose(noisy.success, ideal.success, atol=1e-4)
