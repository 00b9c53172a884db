"""Fine-tuning on a device: the same updates as a simulation where values are exact, no row paid twice, resumable."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import logs
import pytest
import torch

from qhw_diffusion import cli, guidance
from qhw_diffusion.errors import InvalidInputError, RunFolderError, UnknownNameError
from qhw_diffusion.execution import CompiledCircuit, Engine, Estimate, Noisy, Usage
from qhw_diffusion.guidance import GuidanceEnv, QuantumPolicy, Reward, load_policy, train_ppo
from qhw_diffusion.guidance.config import ModelConfig
from qhw_diffusion.guidance.evaluation import Models, load_models
from qhw_diffusion.guidance.on_device.fine_tune import (
    FiledEngine,
    FineTuneConfig,
    critic_of,
    fine_tune,
    prepare_fine_tune,
    work_of,
)
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.on_device.access import AccessConfig, open_access
from qhw_diffusion.on_device.filed import spent_so_far
from qhw_diffusion.on_device.receipt import Receipt
from qhw_diffusion.runs import read_json

STEPS, ENVS, UPDATES = 3, 20, 2


class Counting(Engine):
    """Exact values under the device's noise; counts the rows asked for."""

    name = "counting"

    def __init__(self) -> None:
        self.rows: list[int] = []

    def estimate(self, compiled: CompiledCircuit, parameters: torch.Tensor) -> Estimate:
        self.rows.append(len(parameters))
        exact = Noisy().estimate(compiled, parameters)
        return Estimate(exact.values, exact.std_errors, Usage(len(parameters), 0))


class Exact:
    def __init__(self) -> None:
        self.base, self.purposes = Counting(), list[str]()

    def engine(self, purpose: str) -> Engine:
        self.purposes.append(purpose)
        return self.base

    def receipt(self, purpose: str) -> Receipt:
        return Receipt()


@pytest.fixture(scope="module")
def models() -> Models:
    return load_models(ModelConfig())


def _asked(run: Path, **changes: Any) -> FineTuneConfig:
    base = FineTuneConfig(run=str(run), device="fake_manila", shots=100, updates=UPDATES, num_envs=ENVS)
    return base.replace(**changes)


def _weights(actor: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in actor.state_dict().items()}


# -- the engine of one update ------------------------------------------------------------------------------------------


def test_a_row_is_measured_once_and_calls_are_numbered(small_policy: Path) -> None:
    actor = load_policy(small_policy).policy
    assert isinstance(actor, QuantumPolicy)
    compiled, access = actor.layer.compiled, Exact()
    engine = FiledEngine(access, "run update 1")
    rows = torch.randn(4, compiled.n_inputs + compiled.n_weights, generator=torch.Generator().manual_seed(0))
    first = engine.estimate(compiled, rows)
    again = engine.estimate(compiled, rows[[3, 1, 1]])
    assert torch.equal(again.values, first.values[[3, 1, 1]])
    assert again.usage == Usage()
    other = torch.cat([rows[:1], rows[:1] + 0.1, rows[:1] + 0.1])
    mixed = engine.estimate(compiled, other)
    assert torch.allclose(mixed.values, Noisy().estimate(compiled, other).values, atol=1e-6)
    assert access.base.rows == [4, 1]
    assert access.purposes == ["run update 1 call 1", "run update 1 call 2"]


@pytest.mark.parametrize("seconds", [None, 2.5])
def test_what_was_spent_counts_every_job_and_is_unknown_until_all_are_stated(seconds: float | None) -> None:
    receipt, asked = Receipt(("a", "b"), seconds, ({"job_id": "c", "qpu_seconds": 1.0, "why": "failed"},)), []
    runner = SimpleNamespace(read_charges=lambda: asked.append(1))
    spent = spent_so_far(SimpleNamespace(runner=runner, all_receipts=lambda: receipt))  # type: ignore[arg-type]
    assert asked == [1], "charges come late"
    assert spent["charts/jobs"] == 3
    assert spent["charts/qpu_seconds"] == pytest.approx(math.nan if seconds is None else seconds, nan_ok=True)


def test_a_fine_tuning_made_before_spacing_was_a_setting_goes_on(small_policy: Path, tmp_path: Path) -> None:
    asked = _asked(small_policy)
    run, trained, _ = prepare_fine_tune(asked, tmp_path / "out", resume=False)
    stored = json.loads((run.path / "config.json").read_text())
    assert stored["guidance"].pop("spacing") == trained.config.spacing == "trailing"
    (run.path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(RunFolderError, match=r"other settings \(guidance\)"):  # what it was made with is "leading"
        prepare_fine_tune(asked, tmp_path / "out", resume=True)
    policy = json.loads((small_policy / "config.json").read_text())
    policy["guidance"] |= {"n_steps": 6, "spacing": "leading"}
    shutil.copytree(small_policy, tmp_path / "older")
    (tmp_path / "older" / "config.json").write_text(json.dumps(policy))
    asked = _asked(tmp_path / "older")
    run, *_ = prepare_fine_tune(asked, tmp_path / "tuned", resume=False)
    for folder in (run.path, tmp_path / "older"):
        stored = json.loads((folder / "config.json").read_text())
        del stored["guidance"]["spacing"]
        (folder / "config.json").write_text(json.dumps(stored))
    _, trained, _ = prepare_fine_tune(asked, tmp_path / "tuned", resume=True)
    assert trained.config.spacing == "leading"


# -- the updates -------------------------------------------------------------------------------------------------------


def test_with_exact_values_it_is_the_simulated_training(small_policy: Path, models: Models, tmp_path: Path) -> None:
    """Surrogate gradients of exact values are the simulation's own: the same weights as PPO on the noisy engine."""
    asked = _asked(small_policy, minibatches=2)
    run, trained, original = prepare_fine_tune(asked, tmp_path / "out", resume=False)
    access = Exact()
    tuned, history = fine_tune(asked, run, trained, original, models, access, resume=False)
    simulated = original.on()
    ppo = asked.ppo(trained.ppo)
    reward = Reward.from_config(trained.reward, models.reward, models.train)
    env = GuidanceEnv(models.backbone, reward, trained.config, num_envs=ENVS, seed=ppo.seed)
    expected = train_ppo(env, simulated, critic_of(small_policy, trained), ppo)
    for name, value in _weights(simulated).items():
        assert torch.allclose(tuned.state_dict()[name], value, atol=2e-5), name
    assert history[-1]["charts/episodic_return"] == pytest.approx(expected[-1]["charts/episodic_return"], abs=1e-3)
    moved = (tuned.layer.weight - original.layer.weight).detach().abs().max()
    assert 1e-4 < float(moved) < 0.2
    work = work_of(asked, original.layer.compiled, STEPS)
    # the first minibatch of an update finds its values measured, as `work_of` does not promise for two
    assert sum(access.base.rows) <= work.rollout[0] * work.rollout[1] + work.values[0] * work.values[1]
    assert access.purposes[1].startswith("out update 1 call ")
    assert access.purposes[-1].startswith(f"out update {UPDATES} call ")


def test_minibatches_of_unequal_size_are_all_made_and_enough_was_announced(
    small_policy: Path, models: Models, tmp_path: Path
) -> None:
    asked = _asked(small_policy, minibatches=7, updates=1)  # 60 rows: 4 minibatches of 9, 3 of 8
    run, trained, original = prepare_fine_tune(asked, tmp_path / "out", resume=False)
    access = Exact()
    _, history = fine_tune(asked, run, trained, original, models, access, resume=False)
    assert access.base.rows == [20, 20, 20, 9, 9, 9, 8, 8, 8]  # the first minibatch finds its values measured
    work = work_of(asked, original.layer.compiled, STEPS)
    assert sum(access.base.rows) <= work.rollout[0] * work.rollout[1] + work.values[0] * work.values[1]
    assert all(math.isfinite(value) for name, value in history[0].items() if name.startswith("losses"))


def test_too_many_minibatches_are_refused_before_anything_is_made(small_policy: Path, tmp_path: Path) -> None:
    asked = _asked(small_policy, minibatches=31)
    with pytest.raises(InvalidInputError, match=r"60 rows.* at most 30"):
        prepare_fine_tune(asked, tmp_path / "out", resume=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("gradient", ["surrogate", "spsa", "parameter-shift"])
def test_the_announced_work_is_what_is_asked(small_policy: Path, models: Models, tmp_path: Path, gradient: str) -> None:
    asked = _asked(small_policy, gradient=gradient, updates=1)
    run, trained, original = prepare_fine_tune(asked, tmp_path / "out", resume=False)
    access = Exact()
    tuned, history = fine_tune(asked, run, trained, original, models, access, resume=False)
    work = work_of(asked, original.layer.compiled, STEPS)
    assert work.values[1] == 0
    assert access.base.rows == [ENVS] * STEPS + ([work.gradients[0]] if work.gradients[1] else [])
    assert history[0]["gradients/circuit"] > 0
    assert history[0]["losses/approx_kl"] == pytest.approx(0.0, abs=1e-6)  # the ratios of a first step are 1
    assert not torch.equal(tuned.layer.weight, original.layer.weight)


class Cut(Exception):
    pass


@pytest.mark.slow
def test_it_goes_on_within_an_update(small_policy: Path, models: Models, tmp_path: Path) -> None:
    """Cut before the first update's checkpoint, and again before the second's: the weights of an uninterrupted run
    (SPSA's directions included), and no job twice.
    """
    asked = _asked(small_policy, gradient="spsa", ledger=str(tmp_path / "ledger"))
    config = AccessConfig(device="fake_manila", shots=100, ledger=asked.ledger)

    def cut(*_: Any) -> None:
        raise Cut

    def tune(folder: Path, access: Any, *, resume: bool, on_update: Any = None) -> QuantumPolicy:
        run, trained, original = prepare_fine_tune(asked, folder, resume=resume)
        with run:
            return fine_tune(asked, run, trained, original, models, access, resume=resume, on_update=on_update)[0]

    out = tmp_path / "out"
    with open_access(config, "out") as access:
        with pytest.raises(Cut):
            tune(out, access, resume=False, on_update=cut)
        per_update = len(access.ledger.rows())
        assert per_update == STEPS + 1
        with pytest.raises(Cut):
            tune(out, access, resume=True, on_update=lambda update, metrics: cut() if update == 1 else None)
        jobs = [row.job_id for row in access.ledger.rows()]
        assert len(jobs) == UPDATES * per_update
        finished = tune(out, access, resume=True)
        assert [row.job_id for row in access.ledger.rows()] == jobs
        purposes = [row.purpose for row in access.ledger.rows()]
    assert purposes[0] == "out update 1 call 1"
    assert purposes[-1] == f"out update {UPDATES} call {per_update}"
    with open_access(replace(config, ledger=str(tmp_path / "other")), "out") as access:
        whole = tune(tmp_path / "b" / "out", access, resume=False)
    assert all(torch.equal(finished.state_dict()[name], value) for name, value in _weights(whole).items())


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input(small_policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="surrogate"):
        _asked(small_policy, gradient="surrogat")
    with pytest.raises(InvalidInputError, match="shots is 0"):
        _asked(small_policy, shots=0)
    with pytest.raises(InvalidInputError, match="epochs"):
        prepare_fine_tune(_asked(small_policy, epochs=0), tmp_path / "out", resume=False)
    shutil.copytree(small_policy, tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    config["reward"] |= {"distribution": 1.0, "distribution_offset": None, "distribution_scale": None}
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInputError, match="has no distribution_scale"):
        prepare_fine_tune(_asked(tmp_path / "bare"), tmp_path / "out", resume=False)
    prepare_fine_tune(_asked(small_policy), tmp_path / "out", resume=False)
    with pytest.raises(RunFolderError, match="other settings"):
        prepare_fine_tune(_asked(small_policy, updates=9), tmp_path / "out", resume=True)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_tunes_and_distil_takes_the_result(
    small_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, ledger = tmp_path / "out", tmp_path / "ledger"
    words = ["fine-tune", str(small_policy), "--device", "fake_manila", "--shots", "100", "--updates", "1"]
    words += ["--num-envs", "20", "--out", str(out), "--ledger", str(ledger)]
    words += ["--compare-seeds", "2", "--compare-images", "40"]
    assert cli.main([*words, "--logger", logs.file_of(tmp_path)]) == 0
    (update, compared) = logs.told(tmp_path)
    assert {"charts/episodic_return", "losses/policy_loss", "charts/jobs", "charts/qpu_seconds"} <= set(update[1])
    assert update[1]["charts/jobs"] == 3
    assert {"evaluation/before/fd", "evaluation/after/return", "charts/qpu_seconds"} <= set(compared[1])
    assert logs.outcomes(tmp_path) == ["finished"]
    text = capsys.readouterr().out
    assert "rollouts: 3 jobs × 20 circuits × 100 shots" in text
    assert "after minus before, FD" in text
    record = read_json(out / "fine_tuning.json")
    assert (record["jobs"], record["circuits"], record["qpu_seconds"]) == (3, 60, 0.0)
    tuned = load_policy(out)
    assert isinstance(tuned.policy, QuantumPolicy)
    assert tuned.policy.layer.compiled.device.name == "fake_manila"
    assert tuned.policy.layer.engine.spec == "noisy"
    assert tuned.ppo.num_iterations == 1
    with Ledger.open(ledger) as opened:
        rows = opened.rows(run="out", state="done")
        assert len(rows) == 3
    jobs = json.loads((out / "jobs.json").read_text())
    assert [job["job_id"] for job in jobs] == [row.job_id for row in rows]
    assert all(job["snapshot"] == jobs[0]["snapshot"] == record["calibrations"][0]["snapshot"] for job in jobs)

    lookup = tmp_path / "lookup"
    (tmp_path / "told.jsonl").unlink()
    distill = ["distill", str(out), "--out", str(lookup), "--seeds", "2", "--images", "40"]
    assert cli.main([*distill, "--logger", logs.file_of(tmp_path)]) == 0
    assert "729 circuits evaluated once" in capsys.readouterr().out
    distilled = json.loads((lookup / "distillation.json").read_text())
    ((_, told, _),) = logs.told(tmp_path)
    assert told["evaluation/distilled/fd"] == pytest.approx(sum(distilled["judged"]["distilled"]["fd"]) / 2)
    assert told["evaluation/between/g_max"] == distilled["action_error"]["g_max"]
    assert logs.outcomes(tmp_path) == ["finished"]
    assert distilled["action_error"]["action_max"] < 1e-4
    assert distilled["judged"]["distilled"]["fd"] == pytest.approx(distilled["judged"]["original"]["fd"], abs=1e-3)
    assert isinstance(load_policy(lookup).policy, guidance.LookupPolicy)
    evaluate = ["evaluate", "guidance", str(lookup), "--seeds", "2", "--images", "20", "--schedule-iterations", "0"]
    assert cli.main(evaluate) == 0
    assert "lookup, distilled from quantum" in capsys.readouterr().out
    assert cli.main(["fine-tune", str(lookup), "--device", "fake_manila", "--shots", "100"]) == 2
    assert "classical (lookup)" in capsys.readouterr().err
