"""A trained policy steers a batch of images with its circuit on a device: one broadcast job per DDIM step.

    config.json  manifest.json  model/ (policy, circuit, device snapshot)  device.json  models.json
    checkpoint.safetensors      after every step: the episode, and what was measured so far
    jobs.json                   whenever the run stops: what is known of its jobs (`hardware.provenance.record`)
    results.json  report.html   at the end

The folder holds its own copy of the policy and of the device's snapshot, so that a rollout that goes on tomorrow asks
for the same circuits as today, and finds those that have run in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.checkpoints import load_checkpoint, save_checkpoint
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, QhwError, RunFolderError, reason_of
from qhw_diffusion.execution import CompiledCircuit, Engine, Noisy
from qhw_diffusion.guidance import (
    GuidanceConfig,
    GuidedEpisode,
    QuantumPolicy,
    RewardConfig,
    TrainedPolicy,
    load_policy,
    load_policy_model,
    save_policy_model,
)
from qhw_diffusion.guidance.command import MODELS_FILE, models_of
from qhw_diffusion.guidance.config import ModelConfig
from qhw_diffusion.guidance.evaluation import EVALUATION_SEED, Models, draw_initial_noise, load_models
from qhw_diffusion.mitigation import check_strategies, strategies_of
from qhw_diffusion.on_device.receipt import Access, Receipt, run_name
from qhw_diffusion.on_device.settings import OnDeviceConfig, check_drawn
from qhw_diffusion.runs import RunFolder, atomic_write_json, check_place, read_json

KIND, DEVICE_FILE = "device-rollout", "device.json"
# More would not fit into memory, as images or as parameters
MOST_IMAGES = 1_000_000
_KEPT = ("measured", "std_errors", "predicted", "g", "actions", "states")


@dataclass(frozen=True)
class RolloutConfig(OnDeviceConfig):
    """What decides the numbers of a rollout; a rollout goes on with exactly these."""

    images: int = 32
    """Images steered together: rows of every job."""
    seed: int = 0
    """Seed of labels and starting noise; the same as in the simulated evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_drawn(self.images, self.seed, MOST_IMAGES)


@dataclass(frozen=True)
class Played:
    """A finished rollout of B images in T steps.

    measured, std_errors, predicted: ⟨Z⟩ [T, B, M] as the device gave them, their standard errors, and the exact values
    under the noise of the snapshot at the same angles; g, actions: [T, B]; states: [T, B, n_state]; images
    [B, C, H, W]; labels int64 [B]; receipts: one a step.
    """

    measured: Tensor
    std_errors: Tensor
    predicted: Tensor
    g: Tensor
    actions: Tensor
    states: Tensor
    images: Tensor
    labels: Tensor
    receipts: tuple[Receipt, ...]


@dataclass(frozen=True)
class Prepared:
    """A rollout's folder, opened: everything it needs that does not change any more."""

    folder: RunFolder
    asked: RolloutConfig
    policy: QuantumPolicy
    guidance: GuidanceConfig
    reward: RewardConfig
    models: Models

    @property
    def compiled(self) -> CompiledCircuit:
        """The circuit, compiled for the device."""
        return self.policy.layer.compiled


def prepare(
    asked: RolloutConfig,
    out: Path,
    *,
    resume: bool,
    overwrite: bool = False,
    command: str | None = None,
    device: Device | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Prepared:
    """Make the rollout's folder with its copies of policy and snapshot, or open it to go on.

    overwrite: as in `RunFolder.create`; device: `asked.device`, when it is loaded already; changes: to the models, such
    as another evaluation classifier.
    Raises RunFolderError for a folder in use or started with other settings, InvalidInputError for a classical policy;
    and what loading policy, device and models raises. A folder that was made is taken back then.
    """
    given = dict(changes or {})
    if resume:
        folder = RunFolder.open(out, kind=KIND)
        folder.require_settings({"rollout": asked.to_dict()})
        if not (out / DEVICE_FILE).exists():  # it was left before anything was sent
            _fill(asked, out, _policy_of(asked, load_policy(asked.run), device), given)
        return _opened(asked, folder, given)
    check_place(out, kind=KIND, overwrite=overwrite)
    trained = load_policy(asked.run)
    policy = _policy_of(asked, trained, device)
    check_strategies(strategies_of(asked.mitigation), policy.layer.compiled)  # told before anything is made
    load_models(models_of(Path(asked.run)).replace(**given))
    config = {
        "rollout": asked.to_dict(),
        "guidance": trained.config.to_dict(),
        "reward": trained.reward.to_dict(),
    }
    folder = RunFolder.create(out, kind=KIND, config=config, command=command, overwrite=overwrite)
    try:
        _fill(asked, out, policy, given)
        return _opened(asked, folder, given)
    except BaseException:
        folder.discard()
        raise


def _opened(asked: RolloutConfig, folder: RunFolder, changes: dict[str, Any]) -> Prepared:
    try:
        guidance = GuidanceConfig.from_dict(folder.config["guidance"])
        reward = RewardConfig.from_dict(folder.config["reward"])
    except (KeyError, TypeError, QhwError) as error:
        raise DamagedFileError(
            f"{folder.path / 'config.json'} does not describe a rollout ({reason_of(error)})"
        ) from error
    policy = load_policy_model(folder.path / "model", engine="noisy")
    assert isinstance(policy, QuantumPolicy)
    used = ModelConfig.from_dict(read_json(folder.path / MODELS_FILE))
    if used != used.replace(**changes):
        raise RunFolderError(f"{folder.path} was started with other models ({', '.join(changes)}); resume it without")
    return Prepared(folder, asked, policy, guidance, reward, load_models(used))


def _policy_of(asked: RolloutConfig, trained: TrainedPolicy, device: Device | None) -> QuantumPolicy:
    """The policy on its device's noisy simulation."""
    if not isinstance(trained.policy, QuantumPolicy):
        raise InvalidInputError(
            f"the policy in {asked.run} is classical ({trained.policy.kind}) and needs no device; without --shots it "
            "is evaluated here"
        )
    return trained.policy.on(device if device is not None else Device.load(asked.device), Noisy())


def _fill(asked: RolloutConfig, out: Path, policy: QuantumPolicy, changes: dict[str, Any]) -> None:
    """Copies of the policy and of the device's snapshot; device.json comes last and says that all is there."""
    atomic_write_json(out / MODELS_FILE, models_of(Path(asked.run)).replace(**changes).to_dict())
    save_policy_model(policy, out / "model")
    atomic_write_json(out / DEVICE_FILE, read_json(out / "model" / DEVICE_FILE))


def starts_of(prepared: Prepared) -> tuple[Tensor, Tensor]:
    """Labels int64 [B] and starting noise [B, C, H, W] of the rollout."""
    models, asked = prepared.models, prepared.asked
    return draw_initial_noise(models.backbone, models.heldout, asked.images, EVALUATION_SEED + asked.seed)


def purpose_of(prepared: Prepared, step: int) -> str:
    """What the ledger files step `step` (from 0) of the rollout under."""
    return f"{run_name(prepared.folder, prepared.asked.device)} step {step + 1}"


@torch.no_grad()
def play(
    prepared: Prepared,
    access: Access,
    *,
    resume: bool,
    on_step: Callable[[int, Played], None] | None = None,
) -> Played | None:
    """Steer the batch, from the last checkpoint if there is one; the checkpoint is replaced after every step.

    on_step(steps done, what there is so far). Ctrl-C ends after the present step; None is returned then.
    """
    guidance, models, folder = prepared.guidance, prepared.models, prepared.folder
    episode = GuidedEpisode(models.backbone, guidance, models.scorer(guidance.scorer))
    kept: dict[str, list[Tensor]] = {name: [] for name in _KEPT}
    receipts: list[Receipt] = []
    if resume and folder.has_checkpoint:
        kept, receipts = _restore(folder, episode)
    else:
        episode.begin(*starts_of(prepared))
    with folder.interruptible() as stop:
        while not episode.done:
            purpose = purpose_of(prepared, episode.step_index)
            step = _measure(prepared, episode.state(), access.engine(purpose))
            action, g = episode.guidance(_action(prepared.policy, step["measured"]))
            episode.advance(g, action)
            for name, value in {**step, "g": g, "actions": action}.items():
                kept[name].append(value)
            receipts.append(access.receipt(purpose))
            _save(folder, episode, kept, receipts)
            if on_step is not None:
                on_step(episode.step_index, _played(episode, kept, receipts))
            if not episode.done and stop.requested:
                return None
    return _played(episode, kept, receipts)


def with_final_receipts(prepared: Prepared, played: Played, access: Access) -> Played:
    """The rollout with what its steps were charged as the ledger knows it now.

    Some charges are stated later, and a session is counted when it has ended. A step that the ledger does not have
    keeps its receipt.
    """
    purposes = [purpose_of(prepared, step) for step in range(len(played.receipts))]
    now = [access.receipt(purpose) for purpose in purposes]
    pairs = zip(now, played.receipts, strict=True)
    return replace(
        played, receipts=tuple(replace(new, reused_jobs=old.reused_jobs) if new.job_ids else old for new, old in pairs)
    )


def _measure(prepared: Prepared, state: Tensor, engine: Engine) -> dict[str, Tensor]:
    policy, compiled = prepared.policy, prepared.compiled
    angles = policy.angles(state)
    engine.check(compiled)
    measured = policy.layer.estimate(angles, engine)
    predicted = policy.layer.estimate(angles, Noisy())
    return {
        "states": state,
        "measured": measured.values,
        "std_errors": measured.std_errors,
        "predicted": predicted.values,
    }


def _action(policy: QuantumPolicy, values: Tensor) -> Tensor:
    """Mean ΔCFG [B] for expectation values [B, M]."""
    if policy.output_scale is not None:
        values = values * policy.output_scale
    mean, _ = policy.action_of(policy.head(values.to(torch.float32)))
    return mean[:, 0]


def _played(episode: GuidedEpisode, kept: dict[str, list[Tensor]], receipts: list[Receipt]) -> Played:
    stacked = {name: torch.stack(values) for name, values in kept.items()}
    return Played(**stacked, images=episode.images, labels=episode.labels, receipts=tuple(receipts))


def _save(folder: RunFolder, episode: GuidedEpisode, kept: dict[str, list[Tensor]], receipts: list[Receipt]) -> None:
    parts = {"episode": episode, **{name: torch.stack(values) for name, values in kept.items()}}
    save_checkpoint(folder, parts, {"receipts": [receipt.to_dict() for receipt in receipts]})


def _restore(folder: RunFolder, episode: GuidedEpisode) -> tuple[dict[str, list[Tensor]], list[Receipt]]:
    tensors, meta = load_checkpoint(folder)
    try:
        episode.load_state_dict({k.removeprefix("episode."): v for k, v in tensors.items() if k.startswith("episode.")})
        kept = {name: list(tensors[name].unbind(0)) for name in _KEPT}
        receipts = [Receipt.from_dict(receipt) for receipt in meta["receipts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"the checkpoint in {folder.path} is not one of a rollout ({reason_of(error)})"
        ) from error
    return kept, receipts
