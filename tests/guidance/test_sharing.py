"""Policies to share: a folder that is enough by itself, its model card, and the Hub (mocked: nothing is sent)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError

from qhw_diffusion.checkpoints import load_module_state
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError
from qhw_diffusion.guidance import (
    GuidanceConfig,
    MLPPolicy,
    PolicyConfig,
    PPOConfig,
    QuantumPolicy,
    RewardConfig,
    TrainedPolicy,
    build_policy,
    load_policy,
    load_policy_model,
    save_policy_model,
    train_guidance,
)
from qhw_diffusion.runs import atomic_write_json

CONFIG = GuidanceConfig(n_steps=4, state_centre=(0.5, 1, 1, 0, 0, 0.5), state_width=(0.5,) * 6, noise_pool=0)
CHANGED = CONFIG.replace(g0=1.75, confidence_entry=False)


def trained(manila: Device) -> TrainedPolicy:
    settings = PolicyConfig(device="fake_manila", gain=1.0)
    policy = build_policy(settings, seed=3, device=manila)
    record = {"command": "qhw train guidance --seed 3", "created": "2026-01-02", "packages": {"torch": "2.9"}}
    return TrainedPolicy(policy, CHANGED, RewardConfig(confidence=1.0), PPOConfig(seed=3), settings, [], (), record)


def states() -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def test_a_folder_is_enough(tmp_path: Path, manila: Device) -> None:
    one = trained(manila)
    again = TrainedPolicy.from_pretrained(one.save_pretrained(tmp_path / "mine"))
    assert isinstance(again.policy, QuantumPolicy)
    assert all(torch.equal(a, b) for a, b in zip(again.policy(states()), one.policy(states()), strict=True))
    assert (again.config, again.reward, again.ppo, again.policy_config) == (
        one.config,
        one.reward,
        one.ppo,
        one.policy_config,
    )
    assert again.record == one.record
    moved = TrainedPolicy.from_pretrained(tmp_path / "mine", device="fake_quito", engine="ideal")
    assert isinstance(moved.policy, QuantumPolicy)
    assert moved.policy.layer.compiled.device.name == "fake_quito"
    again.save_pretrained(tmp_path / "again")  # nothing is lost on the way
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "mine" / name).read_bytes()
    assert isinstance(load_policy_model(tmp_path / "mine"), QuantumPolicy)  # the one format of policies


def test_the_card_says_what_was_made_how(tmp_path: Path, manila: Device) -> None:
    one = trained(manila)
    assert isinstance(one.policy, QuantumPolicy)
    compiled = one.policy.layer.compiled
    card = (one.save_pretrained(tmp_path / "mine", name="me/policy", license="mit") / "README.md").read_text()
    data = huggingface_hub.ModelCard(card).data
    assert (data.license, data.library_name) == ("mit", "qhw-diffusion")
    assert {"quantum", "qiskit", "diffusers"} <= set(data.tags or [])
    for row in (
        'TrainedPolicy.from_pretrained("me/policy")',
        "| device | fake_manila |",
        "| engine (noise) | noisy |",
        "| circuit | paper, 4 qubits, 2 layers, ring |",
        f"| compiled | depth {compiled.depth}, {compiled.two_qubit_gates} two-qubit gates |",
        "| scale | g = clip(1.75 + ΔCFG, 0, 4) |",
        "| scorer of the confidence entry | none |",
        "| seed | 3 |",
        "| reward | confidence 1, action_penalty 0.005, distribution 1 |",
        "| command | `qhw train guidance --seed 3` |",
        "| commit | not recorded |",
        "None recorded: `qhw evaluate guidance RUN`",
    ):
        assert row in card, row


def test_a_run_brings_its_record_and_results(tmp_path: Path, manila: Device, backbone: Any, real: Any) -> None:
    run = tmp_path / "run"
    made = train_guidance(
        CONFIG,
        PPOConfig.short(num_iterations=1, num_envs=20, num_minibatches=2, update_epochs=1),
        RewardConfig(confidence=1.0, distribution=0.0),
        PolicyConfig(kind="mlp"),
        path=run,
        command="qhw train guidance --mine",
        backbone=backbone,
        real=real,
    )
    alone = TrainedPolicy.from_pretrained(run / "model")  # what a run saves is enough, too
    assert alone.config == made.config
    values = {
        "constant g = 1.2": {"fd": [3.0, 4.0], "accuracy": [0.9, 0.9]},
        "as trained": {"fd": [2.0, 2.5], "accuracy": [1, 1]},
    }
    atomic_write_json(run / "evaluations" / "home-home.json", {"seeds": 2, "images": 500, "values": values})
    atomic_write_json(run / "models.json", {"data": "digits", "backbone": None})
    loaded = TrainedPolicy.from_pretrained(run)
    assert loaded.history == load_policy(run).history != []
    card = (loaded.save_pretrained(tmp_path / "shared") / "README.md").read_text()
    for row in (
        "| command | `qhw train guidance --mine` |",
        "| models: data | digits |",
        "2 seeds of 500 images each",
        "| policy | FD ↓ | accuracy |",
        "| constant g = 1.2 | 3.500 [-2.853, 9.853] | 0.900 [0.900, 0.900] |",  # ± t(0.975, 1) · 0.5
        "# Guidance policy (mlp, 9,282 trainable parameters)",
    ):
        assert row in card, row
    assert TrainedPolicy.from_pretrained(tmp_path / "shared").record == loaded.record


def test_what_cannot_be_loaded_by_itself_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_policy_model(MLPPolicy(), tmp_path / "bare")
    with pytest.raises(DamagedFileError, match=r"without the settings of its training.*load_policy\(run\)"):
        TrainedPolicy.from_pretrained(tmp_path / "bare")
    save_policy_model(MLPPolicy(), tmp_path / "half", {"guidance": CONFIG.to_dict()})
    with pytest.raises(DamagedFileError, match=r"does not describe a guidance run \('reward' is missing\)"):
        TrainedPolicy.from_pretrained(tmp_path / "half")
    save_policy_model(MLPPolicy(), tmp_path / "more", {"guidance": {**CONFIG.to_dict(), "colour": 1}})
    with pytest.raises(DamagedFileError, match=r"does not describe a guidance run \(unknown .*'colour'"):
        TrainedPolicy.from_pretrained(tmp_path / "more")
    with pytest.raises(MissingDataError, match=r"no such folder, and no name on the Hugging Face Hub \(owner/name\)"):
        TrainedPolicy.from_pretrained(tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(MissingDataError, match="runs/nothing: no such folder, and no name"):
        TrainedPolicy.from_pretrained("runs/nothing")  # a mistyped folder asks no service


# -- the Hub ----------------------------------------------------------------------------------------------------------


class Hub:
    """Stands in for the service: keeps what is uploaded."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, list[tuple[str, Any]]()

    def create_repo(self, repo_id: str, **settings: Any) -> Any:
        self.calls.append(("create", {"repo_id": repo_id, **settings}))
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id: str, folder_path: Any, **settings: Any) -> str:
        self.calls.append(("upload", settings))
        for file in Path(folder_path).rglob("*"):
            if file.is_file():
                target = self.folder / repo_id / file.relative_to(folder_path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        return f"https://huggingface.co/{repo_id}/commit/1"

    def download(self, repo_id: str, **where: Any) -> str:
        self.calls.append(("download", where))
        if not (self.folder / repo_id).is_dir():
            response = SimpleNamespace(headers={}, request=None, status_code=404)
            raise RepositoryNotFoundError(f"404: {repo_id} not found", response=response)  # type: ignore[arg-type]
        return str(self.folder / repo_id)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    tokens: list[Any] = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: (tokens.append(token), made)[1])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.download)
    made.calls.append(("tokens", tokens))
    return made


def test_pushed_and_loaded(hub: Hub, manila: Device) -> None:
    one = trained(manila)
    address = one.push_to_hub("me/policy", private=True, token="secret", commit_message="First")
    assert address == "https://huggingface.co/me/policy/commit/1"
    assert hub.calls[0] == ("tokens", ["secret"])
    assert hub.calls[1] == ("create", {"repo_id": "me/policy", "private": True, "exist_ok": True})
    assert hub.calls[2] == ("upload", {"revision": None, "commit_message": "First", "create_pr": False})
    again = TrainedPolicy.from_pretrained("me/policy", revision="main", token="secret")
    assert hub.calls[3] == ("download", {"revision": "main", "token": "secret"})
    assert torch.equal(again.policy(states())[0], one.policy(states())[0])
    card = (hub.folder / "me" / "policy" / "README.md").read_text()
    assert 'from_pretrained("me/policy")' in card
    assert "secret" not in "".join(str(file.read_bytes()) for file in (hub.folder / "me").rglob("*") if file.is_file())
    with pytest.raises(MissingDataError, match="me/other: no such folder, and the Hugging Face Hub gives none: 404"):
        TrainedPolicy.from_pretrained("me/other")


def test_what_cannot_be_saved_makes_no_repository(hub: Hub) -> None:
    class Own(MLPPolicy):
        pass

    one = TrainedPolicy(Own(), CONFIG, RewardConfig(), PPOConfig(), PolicyConfig(), [], ())
    with pytest.raises(InvalidInputError, match="none of the package's policies"):
        one.push_to_hub("me/own")
    assert [name for name, _ in hub.calls] == ["tokens"]


def test_a_guider_is_pushed_and_loaded(hub: Hub, manila: Device) -> None:
    pipelines = pytest.importorskip("pipelines")
    from qhw_diffusion.guidance import PolicyGuidance

    scheduler = pipelines.scheduler()
    one = trained(manila)
    one = TrainedPolicy(one.policy, CHANGED.replace(spacing="trailing"), *[getattr(one, n) for n in ("reward", "ppo")],
                        one.policy_config, [], (), one.record)  # fmt: skip
    guider = PolicyGuidance(one, scheduler)
    guider.push_to_hub("me/guider")
    again = PolicyGuidance.from_pretrained("me/guider", scheduler=scheduler)
    pair = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(4)
    found = []
    for each in (guider, again):
        each.set_state(0, 4, scheduler.timesteps[0])
        each._input = pair[0]
        found.append(each.forward(pair[0], pair[1]).pred)
    assert torch.equal(*found)
    assert "| command | `qhw train guidance --seed 3` |" in (hub.folder / "me" / "guider" / "README.md").read_text()
    assert again._steering.settings == one.settings()


def test_what_was_saved_before_says_its_format(tmp_path: Path) -> None:
    _, config = load_module_state(save_policy_model(MLPPolicy(), tmp_path))
    assert config["format"] == 3
    assert "settings" not in config
