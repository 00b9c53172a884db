from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrations import few_calibration_images  # noqa: F401 - for every test here

from qhw_diffusion.checkpoints import read_tensors, write_tensors
from qhw_diffusion.circuits import load_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import Backbone, Classifier
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, RunFolderError
from qhw_diffusion.guidance import (
    GuidanceConfig,
    PolicyConfig,
    PPOConfig,
    QuantumPolicy,
    RewardConfig,
    TrainedPolicy,
    draw_episode,
    load_policy,
    rollout,
    train_guidance,
)
from qhw_diffusion.guidance.config import RENAMED

GUIDANCE = GuidanceConfig(n_steps=3, spacing="trailing", g0=1.2, g_max=3.2, noise_pool=40)
PPO = PPOConfig(num_iterations=3, num_envs=20, checkpoint_every=1, learning_rate_circuit=0.02)
POLICY = PolicyConfig(device="fake_manila")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainedPolicy]:
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, train_guidance(GUIDANCE, PPO, RewardConfig(), POLICY, path=path, command="test")


@pytest.mark.slow
def test_the_run_folder_says_what_was_run(trained: tuple[Path, TrainedPolicy]) -> None:
    path, policy = trained
    names = {p.name for p in path.iterdir()}
    assert {
        "config.json", "manifest.json", "metrics.jsonl", "checkpoint.safetensors", "model", "findings.json",
        "circuit.qpy", "circuit.qasm", "device.json",
    } <= names  # fmt: skip
    assert isinstance(policy.policy, QuantumPolicy)
    assert load_circuit(path / "circuit.qpy") == policy.policy.circuit.circuit
    device = json.loads((path / "device.json").read_text())
    assert device["name"] == "fake_manila"
    assert device["two_qubit_gates"] > 0
    assert (path / "model" / device["snapshot"]).is_file()
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 3
    findings = json.loads((path / "findings.json").read_text())
    assert {f["name"] for f in findings} == {"reward", "circuit gradient", "state", "collapse", "oscillation"}
    # the numbers that give states and rewards their meaning are part of the configuration
    stored = json.loads((path / "config.json").read_text())
    stored = stored.get("config", stored)
    assert len(stored["guidance"]["state_centre"]) == 6
    assert stored["reward"]["distribution_scale"] > 0


def test_the_trained_policy_loads_unchanged_and_moves(
    trained: tuple[Path, TrainedPolicy], backbone: Backbone, reward_classifier: Classifier
) -> None:
    path, policy = trained
    labels, noise = draw_episode(backbone, 8, torch.Generator().manual_seed(0))
    assert policy.config.calibrated

    def images(c: TrainedPolicy) -> torch.Tensor:
        return rollout(backbone, c.config, labels, noise, c.policy, scorer=reward_classifier).images

    again = load_policy(path)
    assert (again.config, again.reward, again.ppo, again.policy_config) == (
        policy.config, policy.reward, policy.ppo, policy.policy_config,
    )  # fmt: skip
    assert torch.equal(images(again), images(policy))
    assert again.history == policy.history
    assert [f.sentence for f in again.findings] == [f.sentence for f in policy.findings]
    ideal = load_policy(path, engine="ideal")
    assert not torch.equal(images(ideal), images(policy))
    assert load_policy(path, device="fake_quito").policy.layer.compiled.device.name == "fake_quito"  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_policy_and_resume_goes_on(
    trained: tuple[Path, TrainedPolicy], tmp_path: Path, manila: Device
) -> None:
    _, policy = trained

    class Crash(Exception):
        pass

    def crash(update: int, _: dict[str, float]) -> None:
        if update == 1:
            raise Crash

    with pytest.raises(Crash):
        train_guidance(GUIDANCE, PPO, RewardConfig(), POLICY, path=tmp_path / "r", device=manila, on_update=crash)
    with pytest.raises(InvalidInputError, match=r"ppo\.clip"):
        train_guidance(GUIDANCE, PPO.replace(clip_coef=0.3), RewardConfig(), POLICY, path=tmp_path / "r", resume=True)
    resumed = train_guidance(GUIDANCE, PPO, RewardConfig(), POLICY, path=tmp_path / "r", device=manila, resume=True)
    for name, value in policy.policy.state_dict().items():
        assert torch.equal(resumed.policy.state_dict()[name], value), name
    assert len(resumed.history) == 3


@pytest.mark.slow
def test_an_older_run_without_spacing_goes_on(tmp_path: Path) -> None:
    guidance, ppo, policy = (
        GUIDANCE.replace(n_steps=4, spacing="leading"),
        PPO.replace(num_iterations=2),
        PolicyConfig("matched"),
    )

    class Stop(Exception):
        pass

    def stop(update: int, _: dict[str, float]) -> None:
        if update == 1:
            raise Stop

    with pytest.raises(Stop):
        train_guidance(guidance, ppo, RewardConfig(), policy, path=tmp_path / "run", on_update=stop)
    file = tmp_path / "run" / "config.json"
    stored = json.loads(file.read_text())
    assert stored["guidance"].pop("spacing") == "leading"
    file.write_text(json.dumps(stored))
    changed = guidance.replace(spacing="trailing")
    with pytest.raises(InvalidInputError, match=r"guidance\.spacing = 'leading', now 'trailing'"):
        train_guidance(changed, ppo, RewardConfig(), policy, path=tmp_path / "run", resume=True)
    again = train_guidance(guidance, ppo, RewardConfig(), policy, path=tmp_path / "run", resume=True)
    assert len(again.history) == 2
    assert load_policy(tmp_path / "run").config.spacing == "leading"


@pytest.mark.parametrize("changes", [{"spacing": "leading"}, {"n_steps": 1001}])
def test_a_sampler_that_cannot_be_is_refused_before_the_folder_is_made(tmp_path: Path, changes: dict[str, Any]) -> None:
    known = {"state_centre": (0.0,) * 6, "state_width": (1.0,) * 6}  # calibrated: nothing is sampled before the folder
    with pytest.raises(InvalidInputError, match="n_steps"):
        train_guidance(GUIDANCE.replace(**known, **changes), PPO, RewardConfig(), POLICY, path=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_read_and_resumed(
    trained: tuple[Path, TrainedPolicy], tmp_path: Path, manila: Device
) -> None:
    """Other names of settings, of a part of config.json and of the policy's tensors in the checkpoint."""
    settings = (GUIDANCE, PPO, RewardConfig(), POLICY)

    def stop(iteration: int, metrics: dict[str, float]) -> None:
        if iteration == 1:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train_guidance(*settings, path=tmp_path / "run", device=manila, on_update=stop)
    older = tmp_path / "run"
    saved = json.loads((older / "config.json").read_text())
    config = saved.get("config", saved)
    places = {"run": config, "GuidanceConfig": config["guidance"], "PPOConfig": config["ppo"]}
    for part, values in places.items():
        names = RENAMED[part]
        for before, now in names.items():
            values[before] = values.pop(now)
    assert {"actor", "guidance"} <= set(config)
    assert {"lr_head", "updates"} <= set(config["ppo"])
    (older / "config.json").write_text(json.dumps(saved))
    tensors, meta = read_tensors(older / "checkpoint.safetensors", kind="checkpoint")
    tensors = {re.sub(r"^policy\.", "actor.", name): tensor for name, tensor in tensors.items()}
    assert any(name.startswith("actor.") for name in tensors)
    write_tensors(older / "checkpoint.safetensors", tensors, meta, kind="checkpoint")
    resumed = train_guidance(*settings, path=older, device=manila, resume=True)
    for name, value in trained[1].policy.state_dict().items():
        assert torch.equal(resumed.policy.state_dict()[name], value), name
    assert load_policy(older).ppo == PPO


@pytest.mark.slow
def test_bad_input(tmp_path: Path, evaluation_classifier: Classifier, trained: tuple[Path, TrainedPolicy]) -> None:
    calls: list[tuple[type[Exception], str | None, dict[str, Any]]] = [
        (InvalidInputError, "reward classifier", {"scorer": evaluation_classifier}),
        (InvalidInputError, "path", {"resume": True}),
        (RunFolderError, None, {"path": trained[0]}),
        (RunFolderError, None, {"path": tmp_path / "none", "resume": True}),
    ]
    for error, words, settings in calls:
        with pytest.raises(error, match=words):
            train_guidance(GUIDANCE, PPO, RewardConfig(), POLICY, **settings)
    with pytest.raises(InvalidInputError, match="extra_state"):
        train_guidance(GUIDANCE, PPO, RewardConfig(), PolicyConfig(kind="annealing"))
    assert not (tmp_path / "none").exists()
    with pytest.raises(RunFolderError):
        load_policy(tmp_path)


def test_a_damaged_model_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "run"
    train_guidance(GUIDANCE, PPO.replace(num_iterations=1), RewardConfig(), PolicyConfig(kind="matched"), path=path)
    weights = path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(DamagedFileError):
        load_policy(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["circuit.qpy", "isa.qpy", "model.safetensors", "device.snapshot.json.gz"])
def test_a_damaged_file_of_the_policy_makes_it_a_damaged_run(
    trained: tuple[Path, TrainedPolicy], tmp_path: Path, name: str
) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained[0], path)
    file = path / "model" / name
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(RunFolderError, match=f"run is a damaged run folder: .*{name}"):
        load_policy(path)
