from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qhw_diffusion.circuits import load_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import Backbone, Classifier
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, RunFolderError
from qhw_diffusion.guidance import (
    ActorConfig,
    GuidanceConfig,
    PPOConfig,
    QuantumActor,
    RewardConfig,
    TrainedController,
    draw_episode,
    load_controller,
    rollout,
    train_guidance,
)

GUIDANCE = GuidanceConfig(n_steps=3, spacing="trailing", g0=1.2, g_max=3.2, starts=40)
PPO = PPOConfig(updates=3, num_envs=20, checkpoint_every=1, lr_circuit=0.02)
ACTOR = ActorConfig(device="fake_manila")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainedController]:
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, train_guidance(GUIDANCE, PPO, RewardConfig(), ACTOR, path=path, command="test")


def test_the_run_folder_says_what_was_run(trained: tuple[Path, TrainedController]) -> None:
    path, controller = trained
    names = {p.name for p in path.iterdir()}
    assert {
        "config.json", "manifest.json", "metrics.jsonl", "checkpoint.safetensors", "model", "findings.json",
        "circuit.qpy", "circuit.qasm", "device.json",
    } <= names  # fmt: skip
    assert isinstance(controller.actor, QuantumActor)
    assert load_circuit(path / "circuit.qpy") == controller.actor.circuit.circuit
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
    trained: tuple[Path, TrainedController], backbone: Backbone, proxy: Classifier
) -> None:
    path, controller = trained
    labels, noise = draw_episode(backbone, 8, torch.Generator().manual_seed(0))
    assert controller.config.calibrated

    def images(c: TrainedController) -> torch.Tensor:
        return rollout(backbone, c.config, labels, noise, c.actor, proxy=proxy).images

    again = load_controller(path)
    assert (again.config, again.reward, again.ppo, again.actor_config) == (
        controller.config, controller.reward, controller.ppo, controller.actor_config,
    )  # fmt: skip
    assert torch.equal(images(again), images(controller))
    assert again.history == controller.history
    assert [f.sentence for f in again.findings] == [f.sentence for f in controller.findings]
    ideal = load_controller(path, engine="ideal")
    assert not torch.equal(images(ideal), images(controller))
    assert load_controller(path, device="fake_quito").actor.layer.compiled.device.name == "fake_quito"  # type: ignore[attr-defined]


def test_the_same_seed_gives_the_same_policy_and_resume_goes_on(
    trained: tuple[Path, TrainedController], tmp_path: Path, manila: Device
) -> None:
    _, controller = trained

    class Crash(Exception):
        pass

    def crash(update: int, _: dict[str, float]) -> None:
        if update == 1:
            raise Crash

    with pytest.raises(Crash):
        train_guidance(GUIDANCE, PPO, RewardConfig(), ACTOR, path=tmp_path / "r", device=manila, on_update=crash)
    with pytest.raises(InvalidInputError, match=r"ppo\.clip"):
        train_guidance(GUIDANCE, PPO.replace(clip=0.3), RewardConfig(), ACTOR, path=tmp_path / "r", resume=True)
    resumed = train_guidance(GUIDANCE, PPO, RewardConfig(), ACTOR, path=tmp_path / "r", device=manila, resume=True)
    for name, value in controller.actor.state_dict().items():
        assert torch.equal(resumed.actor.state_dict()[name], value), name
    assert len(resumed.history) == 3


def test_an_older_run_without_spacing_goes_on(tmp_path: Path) -> None:
    guidance, ppo, actor = (
        GUIDANCE.replace(n_steps=4, spacing="leading"),
        PPO.replace(updates=2),
        ActorConfig("matched"),
    )

    class Stop(Exception):
        pass

    def stop(update: int, _: dict[str, float]) -> None:
        if update == 1:
            raise Stop

    with pytest.raises(Stop):
        train_guidance(guidance, ppo, RewardConfig(), actor, path=tmp_path / "run", on_update=stop)
    file = tmp_path / "run" / "config.json"
    stored = json.loads(file.read_text())
    assert stored["guidance"].pop("spacing") == "leading"
    file.write_text(json.dumps(stored))
    changed = guidance.replace(spacing="trailing")
    with pytest.raises(InvalidInputError, match=r"guidance\.spacing = 'leading', now 'trailing'"):
        train_guidance(changed, ppo, RewardConfig(), actor, path=tmp_path / "run", resume=True)
    again = train_guidance(guidance, ppo, RewardConfig(), actor, path=tmp_path / "run", resume=True)
    assert len(again.history) == 2
    assert load_controller(tmp_path / "run").config.spacing == "leading"


@pytest.mark.parametrize("changes", [{"spacing": "leading"}, {"n_steps": 1001}])
def test_a_sampler_that_cannot_be_is_refused_before_the_folder_is_made(tmp_path: Path, changes: dict[str, Any]) -> None:
    known = {"state_centre": (0.0,) * 6, "state_width": (1.0,) * 6}  # calibrated: nothing is sampled before the folder
    with pytest.raises(InvalidInputError, match="n_steps"):
        train_guidance(GUIDANCE.replace(**known, **changes), PPO, RewardConfig(), ACTOR, path=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_input(tmp_path: Path, judge: Classifier, trained: tuple[Path, TrainedController]) -> None:
    calls: list[tuple[type[Exception], str | None, dict[str, Any]]] = [
        (InvalidInputError, "reward classifier", {"classifier": judge}),
        (InvalidInputError, "path", {"resume": True}),
        (RunFolderError, None, {"path": trained[0]}),
        (RunFolderError, None, {"path": tmp_path / "none", "resume": True}),
    ]
    for error, words, settings in calls:
        with pytest.raises(error, match=words):
            train_guidance(GUIDANCE, PPO, RewardConfig(), ACTOR, **settings)
    with pytest.raises(InvalidInputError, match="extra_state"):
        train_guidance(GUIDANCE, PPO, RewardConfig(), ActorConfig(kind="annealing"))
    assert not (tmp_path / "none").exists()
    with pytest.raises(RunFolderError):
        load_controller(tmp_path)


def test_a_damaged_model_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "run"
    train_guidance(GUIDANCE, PPO.replace(updates=1), RewardConfig(), ActorConfig(kind="matched"), path=path)
    weights = path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(DamagedFileError):
        load_controller(path)


@pytest.mark.parametrize("name", ["circuit.qpy", "isa.qpy", "model.safetensors", "device.snapshot.json.gz"])
def test_a_damaged_file_of_the_policy_makes_it_a_damaged_run(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run"
    train_guidance(GUIDANCE, PPO.replace(updates=1), RewardConfig(), ACTOR, path=path)
    file = path / "model" / name
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(RunFolderError, match=f"run is a damaged run folder: .*{name}"):
        load_controller(path)
