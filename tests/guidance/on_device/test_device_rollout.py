"""Rollouts on a device: equal to the simulation where values are exact, resumable at any step, paid for once."""

from __future__ import annotations

import io
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import logs
import pytest
import torch
from forked import Command
from undrawn import figures_undrawn

from qhw_diffusion import cli, guidance
from qhw_diffusion.checkpoints import load_checkpoint, save_checkpoint
from qhw_diffusion.devices import Device
from qhw_diffusion.devices.snapshot import canonical_json
from qhw_diffusion.errors import BudgetError, InvalidInputError, JobError, RunFolderError
from qhw_diffusion.execution import Engine, Noisy, Shots
from qhw_diffusion.guidance import load_policy, rollout
from qhw_diffusion.guidance.on_device import rollout_command
from qhw_diffusion.guidance.on_device.analysis import check_steps
from qhw_diffusion.guidance.on_device.report import expectation_figure
from qhw_diffusion.guidance.on_device.rollout import (
    KIND,
    Played,
    Prepared,
    RolloutConfig,
    play,
    prepare,
    purpose_of,
    starts_of,
    with_final_receipts,
)
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.report import export_rows
from qhw_diffusion.hardware.runner import Runner
from qhw_diffusion.hardware.standin import FailJob, StandIn
from qhw_diffusion.on_device.access import AccessConfig, open_access
from qhw_diffusion.on_device.receipt import Receipt, run_name
from qhw_diffusion.runs import RunFolder

STEPS = 3


class Exact:
    """An engine in place of a device; notes the purposes."""

    def __init__(self, engine: Engine | None = None) -> None:
        self.purposes: list[str] = []
        self._engine = engine or Noisy()

    def engine(self, purpose: str) -> Engine:
        self.purposes.append(purpose)
        return self._engine

    def receipt(self, purpose: str) -> Receipt:
        return Receipt((f"job of {purpose}",), 1.5)


def _asked(run: Path, **changes: object) -> RolloutConfig:
    return RolloutConfig(run=str(run), device="fake_manila", shots=500, images=6).replace(**changes)


@pytest.fixture(scope="module")
def prepared(small_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(_asked(small_policy, images=24), tmp_path_factory.mktemp("prepared") / "out", resume=False)


@pytest.fixture
def access_config(tmp_path: Path) -> AccessConfig:
    return AccessConfig(device="fake_manila", shots=500, ledger=str(tmp_path / "ledger"))


# -- without a device --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_with_exact_values_it_is_the_simulated_rollout(prepared: Prepared) -> None:
    """The step-by-step loop is the project's own `rollout`, bit for bit, when the values are the same."""
    access = Exact()
    played = play(prepared, access, resume=False)
    assert played is not None
    assert access.purposes == ["out step 1", "out step 2", "out step 3"]
    assert played.receipts[1] == Receipt(("job of out step 2",), 1.5)
    labels, noise = starts_of(prepared)
    models = prepared.models
    expected = rollout(models.backbone, prepared.guidance, labels, noise, prepared.policy, scorer=models.reward)
    assert torch.equal(played.images, expected.images)
    assert torch.equal(played.g, expected.g)
    assert torch.equal(played.states, expected.states)
    assert torch.equal(played.measured, played.predicted)
    assert float(played.g.std()) > 0.01


def test_the_policy_looks_through_the_scorer_it_was_trained_with(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "bright.py").write_text("def bright(images, labels):\n    return images.mean((1, 2, 3)).sigmoid()\n")
    own = replace(prepared, guidance=prepared.guidance.replace(scorer=f"{tmp_path}/bright.py:bright"))
    played = play(own, Exact(), resume=False)
    assert played is not None
    models, (labels, noise) = own.models, starts_of(own)
    scorer = models.scorer(own.guidance.scorer)
    expected = rollout(models.backbone, own.guidance, labels, noise, own.policy, scorer=scorer)
    other = rollout(models.backbone, own.guidance, labels, noise, own.policy, scorer=models.reward)
    assert torch.equal(played.states, expected.states)
    assert not torch.allclose(played.states, other.states, atol=1e-3)


def test_the_folder_keeps_policy_and_device(prepared: Prepared, small_policy: Path) -> None:
    device = json.loads((prepared.folder.path / "device.json").read_text())
    assert device["name"] == "fake_manila"
    assert device["physical_qubits"] == list(prepared.compiled.physical_qubits)
    weights = load_policy(small_policy).policy.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in prepared.policy.state_dict().items())


def test_shots_agree_with_the_prediction(prepared: Prepared) -> None:
    played = play(prepared, Exact(Shots(500, seed=3)), resume=False)
    assert played is not None
    assert all(0.5 < check.chi2 < 1.7 for check in check_steps(played, 500))
    wrong = play(prepared, Exact(Shots(1000, seed=3, noisy=False)), resume=False)
    assert wrong is not None
    assert max(check.chi2 for check in check_steps(wrong, 1000)) > 2.0


def _played(measured: torch.Tensor, predicted: torch.Tensor, errors: torch.Tensor) -> Played:
    nothing = torch.zeros(0)
    return Played(measured, errors, predicted, nothing, nothing, nothing, nothing, nothing, ())


def test_the_check_is_one_for_a_right_prediction_and_finds_a_wrong_one() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = 2 * torch.rand(2, 200, 4, generator=generator) - 1
    errors = torch.full((2, 200, 4), 0.02)
    measured = predicted + errors * torch.randn(2, 200, 4, generator=generator)
    measured[1] += 0.02  # one standard error of bias adds 1 to chi²
    right, wrong = check_steps(_played(measured, predicted, errors), 2500)
    assert abs(right.chi2 - 1.0) < 0.2
    assert right.p > 0.001
    assert right.expected_rms == pytest.approx(0.02)
    assert wrong.chi2 == pytest.approx(2.0, abs=0.3)
    assert wrong.p < 1e-6
    assert wrong.bias == pytest.approx(0.02, abs=3 * wrong.bias_error)
    assert wrong.bias_error == pytest.approx(0.02 / 800**0.5)


def test_infinite_standard_errors_take_no_part_in_the_check(recwarn: pytest.WarningsRecorder) -> None:
    """As the client's own extrapolation gives them; the other numbers are those of the other values."""
    generator = torch.Generator().manual_seed(0)
    predicted = 2 * torch.rand(2, 100, 4, generator=generator) - 1
    errors = torch.full((2, 100, 4), 0.02)
    measured = predicted + errors * torch.randn(2, 100, 4, generator=generator)
    usual = check_steps(_played(measured[:, :, 1:], predicted[:, :, 1:], errors[:, :, 1:]), 2500)
    errors[:, :, 0] = torch.inf
    measured[:, :, 0] += 0.5
    with_some = _played(measured, predicted, errors)
    for check, wanted in zip(check_steps(with_some, 2500), usual, strict=True):
        assert check.unknown == 100
        assert check.rms > 0.2
        assert replace(check, unknown=0, rms=wanted.rms) == wanted
    expectation_figure(with_some).savefig(io.BytesIO(), format="svg")
    none = check_steps(_played(measured, predicted, torch.full_like(errors, torch.inf)), 2500)[0]
    assert (none.unknown, math.isnan(none.chi2), math.isnan(none.p)) == (400, True, True)
    json.loads(json.dumps(none.to_dict()), parse_constant=pytest.fail)
    assert none.to_dict()["chi2"] is None
    assert not recwarn.list


def test_a_standard_error_of_zero_is_no_certainty() -> None:
    one = torch.ones(1, 1, 1)
    check = check_steps(_played(one, 0.999 * one, 0.0 * one), 1000)[0]
    assert check.chi2 == pytest.approx(1.0, rel=1e-4)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_other_settings_do_not_go_on(prepared: Prepared, small_policy: Path, tmp_path: Path) -> None:
    path = prepared.folder.path
    with pytest.raises(RunFolderError, match="other settings"):
        prepare(prepared.asked.replace(shots=600), path, resume=True)
    with pytest.raises(RunFolderError, match=r"other models \(evaluation_classifier\)"):
        prepare(prepared.asked, path, resume=True, changes={"evaluation_classifier": "elsewhere"})
    with pytest.raises(RunFolderError, match="not an empty folder"):
        prepare(prepared.asked, path, resume=False)
    with pytest.raises(RunFolderError, match="no such folder"):
        prepare(prepared.asked, tmp_path / "elsewhere", resume=True)
    with pytest.raises(InvalidInputError, match="shots is 0"):
        _asked(small_policy, shots=0)


def test_a_classical_policy_needs_no_device(tmp_path: Path) -> None:
    guidance.train_guidance(
        guidance.GuidanceConfig(n_steps=2, spacing="trailing", noise_pool=20),
        guidance.PPOConfig.short(num_iterations=1, num_envs=20, update_epochs=1, num_minibatches=1),
        guidance.RewardConfig(),
        guidance.PolicyConfig(kind="matched"),
        path=tmp_path / "mlp",
    )
    with pytest.raises(InvalidInputError, match="and needs no device; without --shots"):
        prepare(_asked(tmp_path / "mlp"), tmp_path / "out", resume=False)
    assert not (tmp_path / "out").exists()


def test_a_paid_device_needs_a_cap(access_config: AccessConfig) -> None:
    with open_access(access_config, "out") as access:
        access.require_cap()
        access.runner.service.paid = True
        with pytest.raises(BudgetError, match="--max-qpu-seconds"):
            access.require_cap()
        access.ledger.set_cap(10.0)
        access.require_cap()


def test_an_error_on_the_way_says_how_to_go_on(
    small_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise JobError("job x on fake_manila failed: broken")

    monkeypatch.setattr(Runner, "run", fail)
    out = tmp_path / "out"
    assert cli.main(_command(small_policy, out, tmp_path / "ledger", "fake_manila")) == JobError.exit_code
    text = capsys.readouterr().err
    assert "broken" in text
    assert f"kept in {out}; the same command with --resume goes on" in text


@pytest.mark.parametrize("jobs", [0, 1])
def test_where_settings_are_wrong_no_resume_is_advised(
    small_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jobs: int
) -> None:
    """Refused before the first job nothing is left; after one, the folder stays, with the snapshot for its circuits."""
    run, left = Runner.run, [jobs]

    def refuse(*arguments: Any, **options: Any) -> Any:
        if not left[0]:
            raise InvalidInputError("not with these options")
        left[0] -= 1
        return run(*arguments, **options)

    monkeypatch.setattr(Runner, "run", refuse)
    out = tmp_path / "out"
    assert cli.main(_command(small_policy, out, tmp_path / "ledger", "fake_manila")) == InvalidInputError.exit_code
    text = capsys.readouterr().err
    assert out.exists() == bool(jobs)
    assert ("--overwrite" in text) == bool(jobs)
    assert "--resume" not in text


@pytest.mark.slow
@figures_undrawn()
def test_interrupted_after_a_job_was_sent_the_folder_stays(
    small_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second Ctrl-C, between the answer and the checkpoint: what was paid for is found again by --resume."""
    run = Runner.run

    def interrupted(*arguments: Any, **options: Any) -> Any:
        run(*arguments, **options)
        raise KeyboardInterrupt

    command = _command(small_policy, tmp_path / "out", tmp_path / "ledger", "fake_manila")
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", interrupted)
        assert cli.main(command) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0
    with Ledger.open(tmp_path / "ledger") as ledger:
        assert len(ledger.rows()) == STEPS


@pytest.mark.parametrize(("flags", "words"), [
    (["--resilience-level", "1"], "takes level 0 only. Give --mitigation"),
    (["--shots", "0"], "shots is 0; allowed: whole numbers from 1"),
])  # fmt: skip
def test_what_cannot_run_is_told_before_a_folder_is_made(
    small_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    out = tmp_path / "out"
    command = [*_command(small_policy, out, tmp_path / "ledger", "fake_manila"), *flags]
    assert cli.main(command) == InvalidInputError.exit_code
    assert words in capsys.readouterr().err
    assert not out.exists()


# -- resuming ----------------------------------------------------------------------------------------------------------


class Cut(Exception):
    pass


def _cut(*_: object) -> None:
    raise Cut


@pytest.mark.slow
def test_it_goes_on_where_it_was_cut(
    small_policy: Path, tmp_path: Path, access_config: AccessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut after the first step's checkpoint, then between the second step's job and its checkpoint: equal to an
    uninterrupted run, no job twice.
    """
    asked, out = _asked(small_policy, ledger=access_config.ledger), tmp_path / "out"
    with open_access(access_config, "out") as access:
        before = prepare(asked, out, resume=False)
        with pytest.raises(Cut):
            play(before, access, resume=False, on_step=_cut)
        with monkeypatch.context() as patch, pytest.raises(Cut):  # noqa: PT012
            patch.setattr("qhw_diffusion.guidance.on_device.rollout.save_checkpoint", _cut)
            play(before, access, resume=True)
        jobs = [row.job_id for row in access.ledger.rows()]
        assert len(jobs) == 2
    with open_access(access_config, "out") as access:
        finished = play(prepare(asked, out, resume=True), access, resume=True)
        rows = access.ledger.rows()
    assert [row.job_id for row in rows][:2] == jobs
    assert [row.purpose for row in rows] == [purpose_of(before, step) for step in range(STEPS)]
    assert {row.attempt for row in rows} == {1}
    assert finished is not None
    assert [receipt.job_ids for receipt in finished.receipts] == [(row.job_id,) for row in rows]
    assert [receipt.reused_jobs for receipt in finished.receipts] == [(), tuple(jobs[1:]), ()], "step 2 had ended"
    # outcomes of a fake device depend on the jobs' tags, so the run is another folder of the same name
    with open_access(replace(access_config, ledger=str(tmp_path / "other")), "out") as access:
        whole = play(prepare(asked, tmp_path / "b" / "out", resume=False), access, resume=False)
    assert whole is not None
    for name in ("measured", "std_errors", "predicted", "g", "actions", "states", "images", "labels"):
        assert torch.equal(getattr(finished, name), getattr(whole, name)), name


def _command(run: Path, out: Path, ledger: Path, device: str, *more: str) -> list[str]:
    words = ["evaluate", "guidance", str(run), "--device", device, "--shots", "200", "--images", "6"]
    return [*words, "--out", str(out), "--ledger", str(ledger), *more]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_rollout_goes_on_without_a_second_charge(small_policy: Path, tmp_path: Path) -> None:
    """The real client against the stand-in: SIGKILL while the second step's job is in the queue."""
    results = []
    for folder, killed in (("a", True), ("b", False)):
        out, ledger = tmp_path / folder / "out", tmp_path / folder / "ledger"
        with StandIn("fake_manila", seed=7, queue_seconds=1.0, seconds_per_job=2.5) as standin, standin.as_account():
            asked = _asked(small_policy, device=standin.name, shots=200, ledger=str(ledger))
            if killed:
                _kill_in_second_step(
                    _command(small_policy, out, ledger, standin.name, "--max-qpu-seconds", "60"), standin
                )
                assert load_checkpoint(RunFolder.open(out, kind=KIND))[0]["measured"].shape == (1, 6, 3)
            config = AccessConfig(device=standin.name, shots=200, max_qpu_seconds=60.0, ledger=str(ledger))
            ready = prepare(asked, out, resume=killed)
            with open_access(config, run_name(ready.folder, standin.name)) as access:
                played = play(ready, access, resume=killed)
                rows = access.ledger.rows()
            # counted on the server's side
            assert [job.id for job in standin.jobs] == [row.job_id for row in rows]
            assert standin.charged_seconds == pytest.approx(2.5 * STEPS)
        assert [(row.state, row.attempt, row.qpu_seconds) for row in rows] == [("done", 1, 2.5)] * STEPS
        assert played is not None
        assert [receipt.qpu_seconds for receipt in played.receipts] == [2.5] * STEPS
        results.append(load_checkpoint(RunFolder.open(out, kind=KIND))[0])
    assert all(torch.equal(results[0][name], value) for name, value in results[1].items())


def _kill_in_second_step(words: list[str], standin: StandIn) -> None:
    process = Command(words)
    try:
        process.wait_until(lambda: len(standin.jobs) >= 2)
    finally:
        code = process.end()
    assert code == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_a_renamed_folder_goes_on_with_its_jobs(
    small_policy: Path, tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut between the second step's job and its checkpoint, renamed: the job is taken from the ledger, under its cap.

    A folder of an earlier version has no id: it goes on as long as it keeps its name.
    """
    out, ledger = tmp_path / "out", tmp_path / "ledger"
    with StandIn("fake_manila", seconds_per_job=2.5) as standin, standin.as_account():
        asked = _asked(small_policy, device=standin.name, shots=200, ledger=str(ledger))
        config = AccessConfig(device=standin.name, shots=200, max_qpu_seconds=60.0, ledger=str(ledger))
        ready = prepare(asked, out, resume=False)
        if not known:
            for name in ("id", "name"):
                del ready.folder.manifest[name]
            (out / "manifest.json").write_text(json.dumps(ready.folder.manifest))
        with open_access(config, run_name(ready.folder, asked.device)) as access:
            with pytest.raises(Cut):
                play(ready, access, resume=False, on_step=_cut)
            with monkeypatch.context() as patch:
                patch.setattr("qhw_diffusion.guidance.on_device.rollout.save_checkpoint", _cut)
                with pytest.raises(Cut):
                    play(ready, access, resume=True)
        if known:
            out = out.rename(tmp_path / "elsewhere")
        ready = prepare(asked, out, resume=True)
        name = run_name(ready.folder, asked.device)
        assert name == (f"out-{ready.folder.id}" if known else "out")
        with open_access(config, name) as access:
            played = play(ready, access, resume=True)
            assert access.ledger.spent(name) == access.ledger.spent() == standin.charged_seconds == 2.5 * STEPS
        assert played is not None
        assert [len(receipt.reused_jobs) for receipt in played.receipts] == [0, 1, 0]
        assert "(from the ledger)" in played.receipts[1].jobs_text


@pytest.mark.slow
def test_folders_with_one_name_measure_each_for_itself(small_policy: Path, tmp_path: Path) -> None:
    """Two folders called "out", and one that replaces another: jobs and a cap of their own, where they are paid."""
    ledger, said = tmp_path / "ledger", []
    with StandIn("fake_manila", seconds_per_job=2.5) as standin, standin.as_account():
        asked = _asked(small_policy, device=standin.name, shots=200, ledger=str(ledger))
        config = AccessConfig(device=standin.name, shots=200, max_qpu_seconds=10.0, ledger=str(ledger))
        for out, overwrite in ((tmp_path / "a" / "out", False), (tmp_path / "b" / "out", False),
                               (tmp_path / "b" / "out", True)):  # fmt: skip
            ready = prepare(asked, out, resume=False, overwrite=overwrite)
            with ready.folder, open_access(config, run_name(ready.folder, asked.device)) as access:
                played = play(ready, access, resume=False)
            assert played is not None
            said.append([receipt.job_ids for receipt in played.receipts])
            assert not any(receipt.reused_jobs for receipt in played.receipts)
        assert len(standin.jobs) == len({job for ids in said for (job,) in ids}) == 3 * STEPS
    free = AccessConfig(device="fake_manila", shots=200, ledger=str(ledger))
    reused = []
    for out in (tmp_path / "c" / "out", tmp_path / "d" / "out"):
        ready = prepare(_asked(small_policy, shots=200, ledger=str(ledger)), out, resume=False)
        with ready.folder, open_access(free, run_name(ready.folder, "fake_manila")) as access:
            played = play(ready, access, resume=False)
        assert played is not None
        reused.append([len(receipt.reused_jobs) for receipt in played.receipts])
    assert reused == [[0] * STEPS, [1] * STEPS], "the same numbers, and it is said where they are from"


# -- what is kept of its jobs ------------------------------------------------------------------------------------------


def _on_another_day(device: Device, date: str) -> Device:
    properties = json.loads(device.snapshot.properties)
    properties["last_update_date"] = date
    properties["qubits"][0][0]["value"] *= 0.9
    provenance = {**device.snapshot.provenance, "date": date}
    return Device(replace(device.snapshot, properties=canonical_json(properties), provenance=provenance))


@pytest.mark.slow
@figures_undrawn()
def test_a_calibration_under_way_is_told_and_in_the_report(
    small_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The device is calibrated after the first step, the run stopped after the second and resumed."""
    out, ledger = tmp_path / "out", tmp_path / "ledger"
    days = ["2026-11-20T08:00:00Z", "2026-11-21T08:00:00Z"]
    with StandIn("fake_manila", seed=7, seconds_per_job=2.5) as standin, standin.as_account():
        standin.recalibrate(_on_another_day(standin.device, days[0]))
        step = rollout_command._say

        def after(done: int, *more: Any) -> None:
            step(done, *more)
            if done == 1:
                standin.recalibrate(_on_another_day(standin.device, days[1]))
            if done == 2:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(rollout_command, "_say", after)
        words = _command(
            small_policy, out, ledger, standin.name, "--max-qpu-seconds", "60", "--mitigation", "readout:measured"
        )
        assert cli.main(words) == 130
        said = capsys.readouterr().err
        assert f"{standin.name} has been calibrated since the last job of" in said
        assert all(day[:10] in said for day in days)
        stopped = json.loads((out / "jobs.json").read_text())
        assert [job["job_id"] for job in stopped] == [job.id for job in standin.jobs]
        monkeypatch.setattr(rollout_command, "_say", step)
        assert cli.main([*words, "--resume"]) == 0
        assert "calibrated since" not in capsys.readouterr().err, "not once more"
        jobs = json.loads((out / "jobs.json").read_text())
        assert [job["job_id"] for job in jobs] == [job.id for job in standin.jobs]
        assert [job["finished"] for job in jobs] == [job.finished for job in standin.jobs]
    assert [job["calibration_date"][:10] for job in jobs] == ["2026-11-20", "2026-11-21", "2026-11-21"]
    assert jobs[0]["pubs"][-1] == "readout calibration, 111 prepared"
    results = json.loads((out / "results.json").read_text())
    under = [[one["date"][:10] for one in step["calibrations"]] for step in results["steps"]]
    assert under == [["2026-11-20"], ["2026-11-21"], ["2026-11-21"]]
    assert results["predicted_with"] == results["steps"][0]["calibrations"][0]
    assert results["calibration_changed"] == [2]
    report = (out / "report.html").read_text()
    assert "The device was calibrated under way (step 2: 2026-11-21" in report
    assert "the predictions stay those of the calibration of 2026-11-20" in report
    with Ledger.open(ledger) as opened:
        export_rows(opened, opened.rows(), tmp_path / "all.json")
    exported = json.loads((tmp_path / "all.json").read_text())
    assert [{name: entry[name] for name in job} for entry, job in zip(exported, jobs, strict=True)] == jobs


@pytest.mark.slow
def test_jobs_are_kept_where_a_run_ends_in_an_error(small_policy: Path, tmp_path: Path) -> None:
    out, ledger = tmp_path / "out", tmp_path / "ledger"
    with StandIn("fake_manila", seed=7, seconds_per_job=2.5) as standin, standin.as_account():
        standin.inject("jobs_post", FailJob(seconds=1.0), after=1)
        assert cli.main(_command(small_policy, out, ledger, standin.name, "--max-qpu-seconds", "60")) == 5
        jobs = json.loads((out / "jobs.json").read_text())
        assert [job["state"] for job in jobs] == ["done", "failed"]
        assert [job["finished"] for job in jobs] == [job.finished for job in standin.jobs]


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["batch", "session"])
@figures_undrawn()
def test_what_failed_attempts_and_sessions_were_charged_is_in_the_results(
    small_policy: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, ledger = tmp_path / "out", tmp_path / "ledger"
    with StandIn("fake_manila", seed=7, seconds_per_job=0.1 if mode == "session" else 2.5) as standin:
        words = _command(small_policy, out, ledger, standin.name, "--max-qpu-seconds", "60", "--mode", mode)
        words += ["--max-session-seconds", "30"] if mode == "session" else []
        with standin.as_account():
            standin.inject("jobs_post", FailJob(seconds=7.0), after=1)
            assert cli.main(words) == 5
            assert cli.main([*words, "--resume", "--retry-failed"]) == 0
        charged, failed = standin.charged_seconds, standin.jobs[1].id
        sent = [job.id for job in standin.jobs]
    results = json.loads((out / "results.json").read_text())
    with Ledger.open(ledger) as opened:
        assert results["qpu_seconds"] == pytest.approx(
            opened.spent(run_name(RunFolder.open(out, kind=KIND), standin.name))
        )
    if mode == "batch":
        assert results["qpu_seconds"] == charged == 7.0 + 2.5 * STEPS
    assert [job["job_id"] for step in results["steps"] for job in step["unused_jobs"]] == [failed]
    assert results["steps"][1]["unused_jobs"][0]["qpu_seconds"] >= 7.0
    assert sorted(sent) == sorted([failed, *(job for step in results["steps"] for job in step["job_ids"])])
    assert f"before that {failed} (" in capsys.readouterr().out
    assert failed in (out / "report.html").read_text()


def test_a_charge_stated_later_is_in_the_final_receipts(prepared: Prepared, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", kind=KIND, config={})
    here = replace(prepared, folder=run)
    played = play(here, Exact(), resume=False)
    assert played is not None

    class Late(Exact):
        def receipt(self, purpose: str) -> Receipt:
            return Receipt(("job",), 2.5) if purpose.endswith("step 1") else Receipt()

    assert with_final_receipts(here, played, Late()).receipts == (Receipt(("job",), 2.5), *played.receipts[1:])
    tensors, _ = load_checkpoint(run)  # as an earlier version wrote it
    save_checkpoint(run, tensors, {"receipts": [{"job_ids": ["job"], "qpu_seconds": None}] * STEPS})
    again = play(here, Exact(), resume=True)
    assert again is not None
    assert again.receipts == (Receipt(("job",)),) * STEPS


def test_receipts_have_every_job_that_was_charged(access_config: AccessConfig) -> None:
    with open_access(access_config, "out") as access:
        ledger = access.ledger
        for key, purpose in (("a" * 64, "step 1"), ("b" * 64, "step 1"), ("c" * 64, "step 2")):
            ledger.plan(key, run="out", purpose=purpose, device="ibm_x", circuits=1, shots=1, estimate_seconds=2.0,
                        paid=True, summary={"limit_seconds": 9}, cap=100.0)  # fmt: skip
            ledger.submitted(key, f"job-{key[0]}")
        ledger.done("a" * 64, "{}", 3.0, duplicates={"twin": None})
        ledger.failed("b" * 64, "broken", None)
        ledger.failed("c" * 64, "broken", 4.0)
        ledger.retry("c" * 64)
        ledger.failed("c" * 64, "refused: too wide")
        twin = {"job_id": "twin", "qpu_seconds": None, "why": "sent twice"}
        broken = {"job_id": "job-b", "qpu_seconds": None, "why": "broken"}
        assert access.receipt("step 1") == Receipt(("job-a",), None, (twin, broken))
        assert access.left_of(50.0) == 50 - (3 + 9) - 9 - 4
        ledger.measured("a" * 64, 1.0, "twin")
        ledger.measured("b" * 64, 5.0)
        assert access.receipt("step 1").qpu_seconds == 3.0 + 1.0 + 5.0
        late = {"job_id": "job-c", "qpu_seconds": 4.0, "why": "broken"}
        assert access.receipt("step 2") == Receipt((), 4.0, (late,))
        everything = access.all_receipts()
        assert (everything.job_ids, everything.qpu_seconds) == (("job-a",), 13.0)
        assert [job["job_id"] for job in everything.unused_jobs] == ["twin", "job-b", "job-c"]


@pytest.mark.slow
def test_the_command_writes_a_report(small_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mitigated; then the same command again."""
    out, ledger = tmp_path / "out", tmp_path / "ledger"
    words = _command(small_policy, out, ledger, "fake_manila", "--mitigation", "readout:measured+zne:linear:1,3")
    assert cli.main([*words, "--logger", logs.file_of(tmp_path)]) == 0
    steps = logs.told(tmp_path)
    numbers = {name for _, values, what in steps if what == "numbers" for name in values}
    assert {"evaluation/on fake_manila/accuracy", "charts/jobs", "charts/qpu_seconds"} <= numbers
    pictures = [name for _, values, what in steps if what == "picture" for name in values]
    assert {"evaluation/guidance", "evaluation/images"} <= set(pictures)
    assert logs.outcomes(tmp_path) == ["finished"]
    text = capsys.readouterr().out
    assert "step 3 of 3: local-" in text
    with Ledger.open(ledger) as opened:
        rows = opened.rows()
    ids = [row.job_id or "" for row in rows]
    assert len(ids) == STEPS  # scaled and calibration circuits are in the step's own job
    assert rows[0].circuits > 2 * 6
    page = (out / "report.html").read_text()
    assert all(job in page for job in ids)
    assert "fake_manila" in page
    results = json.loads((out / "results.json").read_text())
    assert [step["job_ids"] for step in results["steps"]] == [[job] for job in ids]
    assert "fd" not in results["controllers"]["on fake_manila"]  # six images make no distance
    assert cli.main(words) == 2  # the folder is in use
    assert cli.main([*words, "--resume", "--seeds", "2"]) == 2
    assert "--seeds is for the simulated evaluation" in capsys.readouterr().err


@pytest.mark.slow
def test_without_shots_the_simulated_evaluation_is_as_it_was(
    small_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "guidance", str(small_policy), "--seeds", "2", "--images", "20", "--schedule-iterations", "0"]
    assert cli.main([*words, "--logger", logs.file_of(tmp_path)]) == 0
    assert "2 seeds, 20 images each" in capsys.readouterr().out
    ((step, values, _),) = logs.told(tmp_path)
    assert step == 0, "beside the last update"
    kept = json.loads((small_policy / "evaluations" / "home-home.json").read_text())["values"]
    for name, measured in kept.items():
        assert values[f"evaluation/{name}/fd"] == pytest.approx(sum(measured["fd"]) / 2)
