"""`qhw fine-tune` of denoisers: the gradients are those of the loss, paid once, within the cap; refused before that."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import denoisers
import logs
import pytest
import torch
from soon import short_pauses  # noqa: F401 - for every test here
from torch import Tensor

from qhw_diffusion import cli
from qhw_diffusion.denoising import AmplitudeQDM, LatentQDM, ReverseConfig, from_pretrained
from qhw_diffusion.denoising.command import TRAIN
from qhw_diffusion.denoising.on_device.evaluation import EvaluationConfig, compiled_for, prepare
from qhw_diffusion.denoising.on_device.fine_tune import (
    DeviceTask,
    device_loss,
    prepare_tuning,
    tune,
)
from qhw_diffusion.denoising.on_device.settings import DenoiserTuningConfig
from qhw_diffusion.denoising.training import TrainConfig, TrainingTask
from qhw_diffusion.devices import Device, drifted
from qhw_diffusion.errors import BudgetError, InvalidInputError, RunFolderError
from qhw_diffusion.execution import (
    SPSA,
    CompiledCircuit,
    Engine,
    Ideal,
    Noisy,
    ParameterShift,
    Shots,
    Surrogate,
)
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import Runner
from qhw_diffusion.hardware.standin import StandIn
from qhw_diffusion.on_device.receipt import Receipt
from qhw_diffusion.runs import RunFolder

LABELS, IMAGES = 10, 2
TINY = TRAIN.replace(batch_size=IMAGES, targets=3, iterations=1)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QHW_LEDGER", raising=False)
    monkeypatch.chdir(tmp_path)


# three qubits as one circuit
folder_of = partial(denoisers.folder_of, train=TINY, n_steps=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("denoisers") / "run")


def command(run: Path, here: Path, *more: str, device: str = "fake_manila", shots: int = 400) -> list[str]:
    return ["fine-tune", str(run), "--device", device, "--shots", str(shots), "--updates", "2", "--out",
            str(here / "out"), "--ledger", str(here / "ledger"), "--compare-seeds", "2", "--compare-images", "20",
            *more]  # fmt: skip


def rows_of(here: Path) -> list[Any]:
    with Ledger.open(here / "ledger", create=False) as ledger:
        return list(ledger.rows())


# -- gradients -----------------------------------------------------------------------------------------------------


class Tiny:
    """A denoiser of one label on fake_manila, its loss on exact values under noise, and a gradient method."""

    def __init__(self, probability_weight: float = 0.05) -> None:
        config = ReverseConfig(n_qubits=1, n_steps=2, depth=1, weight_sharing="time_embedding", init_scale=0.7, seed=4)
        self.model = AmplitudeQDM(config, image_shape=(1, 1, 2))
        self.compiled: CompiledCircuit = compiled_for(self.model, Device.load("fake_manila"))
        data = torch.rand(20, 1, 1, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
        settings = TrainConfig("mmd", "joint", batch_size=6, targets=8, kernels=(0.5,), similarity="measured",
                               probability_weight=probability_weight)  # fmt: skip
        self.task = DeviceTask(self.model, data, None, settings)
        self.model.reverse.double()

    def loss(self, values: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        exact = Noisy()
        self.task.values = values or (lambda x, w: exact.expectation(self.compiled, x, w))
        return self.task.loss(0, torch.Generator().manual_seed(1))[0]

    def gradient(self, values: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """Of all parameters in one row."""
        self.model.zero_grad()
        self.loss(values).backward()
        return torch.cat([p.grad.flatten() for p in self.model.reverse.parameters()])

    def by(self, method: Any, engine: Engine) -> Tensor:
        return self.gradient(lambda x, w: method(engine, self.compiled, x, w, lambda usage: None))


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny()


def test_the_gradient_is_that_of_the_loss(tiny: Tiny) -> None:
    """Central differences of the loss by every parameter, the table of conditioning angles included."""
    found, step = tiny.gradient(), 1e-3
    wanted = []
    for parameter in tiny.model.reverse.parameters():
        for index in range(parameter.numel()):
            with torch.no_grad():
                flat = parameter.view(-1)
                flat[index] += step
                up = tiny.loss()
                flat[index] -= 2 * step
                down = tiny.loss()
                flat[index] += step
            wanted.append(float(up - down) / (2 * step))
    assert tiny.model.reverse.step_angles is not None
    assert max(map(abs, wanted)) > 0.05
    assert found.tolist() == pytest.approx(wanted, abs=3e-4)


def test_surrogate_and_parameter_shift_of_exact_values_are_exact_and_spsa_is_on_average(tiny: Tiny) -> None:
    exact = tiny.gradient()
    for method in (Surrogate("noisy"), ParameterShift()):
        torch.testing.assert_close(tiny.by(method, Noisy()), exact, rtol=1e-3, atol=1e-4)
    spsa = torch.stack([tiny.by(SPSA(seed=seed, repetitions=20, size=0.01), Noisy()) for seed in range(12)])
    error = spsa.std(0) / len(spsa) ** 0.5
    pulls = (spsa.mean(0) - exact) / error
    assert error.max() < 0.3 * exact.abs().max()
    assert pulls.square().mean() < 2.5
    assert (spsa.mean(0) - exact).norm() < 0.25 * exact.norm()


def test_with_exact_values_it_is_the_loss_of_the_training() -> None:
    """Without noise the deferred circuit gives what the steps give: the same draws, loss and gradient."""
    ready = Tiny()
    ready.compiled = compiled_for(ready.model, Device.load("ideal"))
    engine = Ideal()
    found = ready.gradient(lambda x, w: engine.expectation(ready.compiled, x, w))
    ready.model.zero_grad()
    wanted, _ = TrainingTask.loss(ready.task, 0, torch.Generator().manual_seed(1))
    wanted.backward()
    gradient = torch.cat([p.grad.flatten() for p in ready.model.reverse.parameters()])
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5)
    assert gradient.abs().max() > 0.05


def test_images_whose_success_is_not_told_from_zero_are_left_out() -> None:
    ready = Tiny(probability_weight=0.0)
    exact = Noisy()

    def rare(x: Tensor, w: Tensor) -> Tensor:
        values = exact.expectation(ready.compiled, x, w)
        scale = torch.ones(len(values), 1, dtype=values.dtype)
        scale[0] = 1e-9
        return values * scale

    whole, counted = ready.loss().item(), ready.loss(rare).item()  # exact: the same distribution
    ready.task.shots = 1000
    assert counted == pytest.approx(whole, abs=1e-6)
    assert abs(ready.loss(rare).item() - whole) > 1e-5
    with pytest.raises(InvalidInputError, match="no image of label 0 has a success probability"):
        ready.loss(lambda x, w: 1e-9 * exact.expectation(ready.compiled, x, w))


# -- what a device can give ------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_training_or_the_difference_is_told() -> None:
    asked = DenoiserTuningConfig("run", "fake_manila", 100, updates=4, label_images=5, learning_rate=0.02)
    config, said = device_loss(TRAIN, asked)
    assert said == "loss: mmd of the outcomes at t = 0, the one it was trained by"
    assert config == TRAIN.replace(iterations=4, batch_size=5, learning_rate=0.02, checkpoint_every=1)
    _, said = device_loss(TRAIN.replace(similarity="fidelity", mode="greedy", loss="wasserstein"), asked)
    assert "wasserstein" in said
    assert "not by fidelity: a device gives no phases" in said
    assert "not one after the other" in said
    config, said = device_loss(TrainConfig("infidelity"), asked.replace(label_images=0))
    assert "in place of infidelity" in said
    assert (config.loss, config.kernels, config.batch_size) == ("mmd", TRAIN.kernels, TRAIN.batch_size)


class Cut(Exception):
    pass


class Sampled:
    """Access that samples by purpose, as a ledger gives the same result again; cut at one of its evaluations."""

    def __init__(self, cut_at: str = "never") -> None:
        self.cut_at = cut_at
        self.purposes: list[str] = []

    def engine(self, purpose: str) -> Engine:
        self.purposes.append(purpose)
        if purpose.endswith(self.cut_at):
            raise Cut
        return Shots(400, seed=sum(map(ord, purpose)))

    def receipt(self, purpose: str) -> Receipt:
        return Receipt()


def test_cut_within_an_update_it_ends_with_the_same_weights(run: Path, tmp_path: Path) -> None:
    """Between values and gradients of the second; SPSA's directions are repeated as well."""
    asked = DenoiserTuningConfig(str(run), "fake_manila", 400, gradient="spsa", updates=2)
    whole, _ = tune(prepare_tuning(asked, tmp_path / "a" / "out", resume=False), Sampled(), resume=False)
    with pytest.raises(Cut):
        tune(prepare_tuning(asked, tmp_path / "out", resume=False), Sampled("update 2 call 2"), resume=False)
    again, access = prepare_tuning(asked, tmp_path / "out", resume=True), Sampled()
    finished, history = tune(again, access, resume=True)
    assert len(history) == 2
    assert access.purposes[0] == "out update 2 call 1"
    for name, value in whole.state_dict().items():
        assert torch.equal(finished.state_dict()[name], value), name
    moved = (finished.reverse.weight - again.original.reverse.weight).detach().abs().max()
    assert 1e-3 < float(moved) < 0.1


# -- the command: paid once, within the cap ----------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_resumed_on_the_stand_in_it_is_charged_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut after the job of update 1 has run and before its checkpoint; announced as `qhw cost` counts it."""
    ran = Runner.run

    def interrupted(*arguments: Any, **options: Any) -> Any:
        ran(*arguments, **options)
        raise KeyboardInterrupt

    with StandIn("fake_manila", seed=7) as standin, standin.as_account():
        words = command(run, tmp_path, device=standin.name)
        assert cli.main(words) == BudgetError.exit_code
        assert cli.main([*words, "--max-qpu-seconds", "1"]) == BudgetError.exit_code
        assert not standin.jobs
        assert not (tmp_path / "out").exists()
        words += ["--max-qpu-seconds", "60"]
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "run", interrupted)
            assert cli.main(words) == 130
        assert len(standin.jobs) == 1
        assert cli.main([*words, "--resume"]) == 0
        assert len(standin.jobs) == 2
        told = capsys.readouterr().out
        rows = rows_of(tmp_path)
        assert [row.purpose.rpartition("update")[2] for row in rows] == [" 1 call 1", " 2 call 1"]
        assert standin.charged_seconds == pytest.approx(sum(row.qpu_seconds for row in rows))
        record = json.loads((tmp_path / "out" / "fine_tuning.json").read_text())
        assert record["qpu_seconds"] == pytest.approx(standin.charged_seconds)
        assert len(record["reused_jobs"]) == 1
        log = RunFolder.open(tmp_path / "out", kind="denoiser").metrics()
        assert [row["charts/jobs"] for row in log] == [1.0, 2.0]
        assert [row["charts/qpu_seconds"] for row in log] == pytest.approx(
            [rows[0].qpu_seconds, standin.charged_seconds]
        )
        cost = ["cost", str(run), "--device", standin.name, "--images", str(LABELS * IMAGES), "--shots", "400"]
        assert cli.main([*cost, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
    assert f"values: 2 jobs × {LABELS * IMAGES} circuits × 400 shots, {2 * shown['seconds']:,.1f} s" in told
    assert rows[0].circuits == LABELS * IMAGES
    assert rows[0].estimate_seconds == pytest.approx(shown["seconds"])


@pytest.mark.slow
def test_the_result_is_a_run_folder_that_an_evaluation_reads(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logs.file_of(tmp_path)
    assert cli.main(command(run, tmp_path, "--gradient", "spsa", "--logger", logger)) == 0
    steps = logs.told(tmp_path)
    assert [step for step, *_ in steps] == [0, 1, 1]
    assert all({"losses/train", "charts/probability", "charts/jobs", "charts/qpu_seconds"} <= set(values)
               for _, values, _ in steps[:2])  # fmt: skip
    assert {"evaluation/before/fd", "evaluation/simulated updates/energy", "evaluation/after/success",
            "charts/qpu_seconds"} <= set(steps[2][1])  # fmt: skip
    assert logs.outcomes(tmp_path) == ["finished"]
    assert not list((tmp_path / "out").glob("events*"))
    told = capsys.readouterr().out
    assert "the one it was trained by" in told
    assert "after minus simulated updates, energy" in told
    assert [row.circuits for row in rows_of(tmp_path)] == [20, 40, 20, 40]
    record = json.loads((tmp_path / "out" / "fine_tuning.json").read_text())
    assert list(record["values"]) == ["before", "simulated updates", "after"]
    assert all(len(each) == 2 for metrics in record["values"].values() for each in metrics.values())
    assert record["values"]["after"]["success"] != record["values"]["before"]["success"]
    before, after = (from_pretrained(folder / "model") for folder in (run, tmp_path / "out"))
    assert not torch.equal(before.reverse.weight, after.reverse.weight)
    assert isinstance(before, LatentQDM)
    assert isinstance(after, LatentQDM)
    for one, other in zip(before.autoencoder.parameters(), after.autoencoder.parameters(), strict=True):
        assert torch.equal(one, other)
    evaluation = EvaluationConfig(str(tmp_path / "out"), "fake_manila", 400, images=4)
    read = prepare(evaluation, tmp_path / "evaluation", resume=False)
    assert torch.equal(read.model.reverse.weight, after.reverse.weight)
    words = command(run, tmp_path, "--gradient", "surrogate", "--resume")
    assert cli.main(words) == RunFolderError.exit_code
    assert "other settings" in capsys.readouterr().err


# -- refused before anything is paid -----------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], words: list[str], here: Path) -> str:
    assert cli.main(words) == InvalidInputError.exit_code
    assert not (here / "out").exists()
    return capsys.readouterr().err


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = folder_of(tmp_path / "kept", kind="measured", n_steps=2)
    assert "keeps the outcomes of its ancillas" in refused(capsys, command(kept, tmp_path), tmp_path)
    assert "--num-envs: for policies" in refused(capsys, command(run, tmp_path, "--num-envs", "20"), tmp_path)
    assert "Use " in refused(capsys, command(run, tmp_path, shots=2), tmp_path)
    assert "label_images is 1" in refused(capsys, command(run, tmp_path, "--label-images", "1"), tmp_path)
    assert "surrogate" in refused(capsys, command(run, tmp_path, "--gradient", "surogate"), tmp_path)
    tuned = folder_of(tmp_path / "tuned", n_steps=1)
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "fine_tune": {}}))
    assert cli.main(["train", "denoising", "--out", str(tuned), "--resume"]) != 0
    assert "qhw fine-tune … --resume" in capsys.readouterr().err
    with RunFolder.create(tmp_path / "other", kind="backbone", config={}):
        pass
    assert cli.main(command(tmp_path / "other", tmp_path)) == RunFolderError.exit_code
    assert "takes run folders of quantum policies" in capsys.readouterr().err


# -- the device on another day -----------------------------------------------------------------------------------------


def test_a_drifted_device_has_the_factors_that_are_asked_for(tmp_path: Path) -> None:
    device = Device.load("fake_manila")
    same = drifted(device, seed=0, spread=0.0)
    worse = drifted(device, seed=0, spread=0.0, worse=2.0)
    for qubit in range(5):
        t1, t2 = device.relaxation_times(qubit)
        assert t1 is not None
        assert t2 is not None
        assert same.relaxation_times(qubit) == pytest.approx((t1, min(t2, 2 * t1)))
        assert worse.relaxation_times(qubit) == pytest.approx((t1 / 2, min(t2 / 2, t1)))
        assert worse.readout_error(qubit) == pytest.approx([2 * p for p in device.readout_error(qubit)])
    one, again, other = (drifted(device, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.fingerprint != other.fingerprint
    assert Device.load(one.save(tmp_path / "day.json.gz")) == one
    with pytest.raises(InvalidInputError, match="spread is -1"):
        drifted(device, seed=0, spread=-1.0)
    with pytest.raises(InvalidInputError, match="no calibration"):
        drifted(Device.load("ideal"), seed=0)
