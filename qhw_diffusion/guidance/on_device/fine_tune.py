"""`qhw fine-tune`: a few PPO updates of a trained policy with its expectation values from a device.

    original/    the policy as it came, on the device's snapshot: what a run that goes on starts from
    the rest     a run folder as `qhw train guidance` writes it, with fine_tuning.json (before and after) and jobs.json

Values come from the device in the forward pass; gradients from a simulation of it (surrogate), or from the device as
well (SPSA, parameter-shift). Every job is filed in the ledger under its update, and the checkpoint is replaced after
every update, so a run that goes on repeats at most the update it was in, with the results that were paid for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qhw_diffusion.checkpoints import load_checkpoint, read_tensors
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Noisy
from qhw_diffusion.guidance import (
    Critic,
    GuidanceEnv,
    QuantumPolicy,
    Reward,
    TrainedPolicy,
    load_policy,
    load_policy_model,
    save_policy_model,
    train_ppo,
)
from qhw_diffusion.guidance.command import MODELS_FILE, models_of
from qhw_diffusion.guidance.evaluation import Models
from qhw_diffusion.guidance.on_device.settings import FineTuneConfig
from qhw_diffusion.guidance.ppo import History
from qhw_diffusion.guidance.training import KIND, with_later_settings
from qhw_diffusion.on_device.filed import FiledEngine, moved_rows
from qhw_diffusion.on_device.receipt import Access, run_name
from qhw_diffusion.runs import RunFolder, atomic_write_json, check_place, read_json
from qhw_diffusion.runs.folder import CHECKPOINT

ORIGINAL = "original"


@dataclass(frozen=True)
class Work:
    """Jobs of a whole fine-tuning: (circuits, how many such jobs), before mitigation."""

    rollout: tuple[int, int]
    values: tuple[int, int]
    gradients: tuple[int, int]


def work_of(asked: FineTuneConfig, compiled: CompiledCircuit, n_steps: int) -> Work:
    """What will be asked of the device.

    The first gradient step of an update finds its values measured already if it takes the whole rollout at once.
    Minibatches of unequal size are counted as large as the largest.
    """
    steps = asked.epochs * asked.minibatches
    rows = -(-asked.num_envs * n_steps // asked.minibatches)
    anew = steps - (asked.minibatches == 1)
    moved = moved_rows(asked.gradient, compiled)
    return Work(
        rollout=(asked.num_envs, n_steps * asked.updates),
        values=(rows, anew * asked.updates),
        gradients=(moved * rows, steps * asked.updates if moved else 0),
    )


def prepare_fine_tune(
    asked: FineTuneConfig,
    out: Path,
    *,
    resume: bool,
    overwrite: bool = False,
    command: str | None = None,
    device: Device | None = None,
) -> tuple[RunFolder, TrainedPolicy, QuantumPolicy]:
    """Make the run folder with a copy of the policy and of the device's snapshot, or open it to go on.

    Returns the folder, the policy as it was trained, and its policy on the device's noisy simulation.
    overwrite: as in `RunFolder.create`.
    Raises RunFolderError for a folder in use or started with other settings, InvalidInputError for a classical policy;
    and what loading policy and device raises. A folder that was made is taken back then.
    """
    if not resume:
        check_place(out, kind=KIND, overwrite=overwrite)
    trained = load_policy(asked.run)
    if not isinstance(trained.policy, QuantumPolicy):
        raise InvalidInputError(f"the policy in {asked.run} is classical ({trained.policy.kind}); no device tunes it")
    if trained.reward.distribution and trained.reward.distribution_scale is None:
        raise InvalidInputError(
            f"the reward in {asked.run} has no distribution_scale, which a training measures: before and after could "
            "not be compared; give the run folder of `qhw train guidance`"
        )
    ppo = asked.ppo(trained.ppo)
    ppo.check_minibatches(trained.config.n_steps)  # before anything is made, let alone paid for
    policy_config = trained.policy_config.replace(device=asked.device, engine="noisy")
    settings = {
        "guidance": trained.config.to_dict(),
        "reward": trained.reward.to_dict(),
        "ppo": ppo.to_dict(),
        "policy": policy_config.to_dict(),
        "fine_tune": asked.to_dict(),
    }
    if resume:
        run = RunFolder.open(out, kind=KIND)
        run.require_settings(settings, with_later_settings)
    ready = resume and (out / MODELS_FILE).exists()  # else a new folder, or one left before anything was sent
    policy = None
    if not ready:
        policy = trained.policy.on(device if device is not None else Device.load(asked.device), Noisy())
    if not resume:
        run = RunFolder.create(out, kind=KIND, config=settings, command=command, overwrite=overwrite)
    try:
        if policy is not None:
            save_policy_model(policy, out / ORIGINAL)
            atomic_write_json(out / MODELS_FILE, models_of(Path(asked.run)).to_dict())
        original = load_policy_model(out / ORIGINAL)
        assert isinstance(original, QuantumPolicy)
    except BaseException:
        run.discard()
        raise
    return run, trained, original


def fine_tune(
    asked: FineTuneConfig,
    run: RunFolder,
    trained: TrainedPolicy,
    original: QuantumPolicy,
    models: Models,
    access: Access,
    *,
    resume: bool,
    on_update: Any = None,
    also: Any = None,
) -> tuple[QuantumPolicy, History]:
    """The updates; returns the policy (on the device's noisy simulation) and the log.

    `on_update` and `also` as in `train_ppo`. After Ctrl-C fewer updates are in the log than asked for; the checkpoint
    has them.
    """
    ppo = asked.ppo(trained.ppo)
    first = int(load_checkpoint(run)[1]["updates"]) if resume and run.has_checkpoint else 0
    actor = original.on()

    def engine(update: int) -> FiledEngine:
        return FiledEngine(access, f"{run_name(run, asked.device)} update {update + 1}")

    reward = Reward.from_config(trained.reward, models.scorer(trained.config.scorer), models.train)
    env = GuidanceEnv(models.backbone, reward, trained.config, num_envs=ppo.num_envs, seed=ppo.seed)

    def after(update: int, metrics: dict[str, float]) -> None:
        actor.layer.engine, actor.layer.gradient = engine(update + 1), asked.method(update + 1)
        if on_update is not None:
            on_update(update, metrics)

    actor.layer = actor.layer.with_engine(engine(first), gradient=asked.method(first))
    if not run.has_checkpoint:
        run.truncate_metrics(0)  # of an update that was cut short
    critic = critic_of(Path(asked.run), trained)
    history = train_ppo(
        env, actor, critic, ppo, run=run, resume=resume and run.has_checkpoint, on_update=after, also=also
    )
    tuned = actor.on(engine=Noisy())
    tuned.layer.gradient = None  # the method was for the device
    return tuned, history


def critic_of(folder: Path, trained: TrainedPolicy) -> Critic:
    """The critic the policy was trained with; a new one where the run kept no checkpoint."""
    critic = Critic(trained.config.n_state, seed=trained.ppo.seed)
    if (folder / CHECKPOINT).is_file():
        tensors, _ = read_tensors(folder / CHECKPOINT, kind="checkpoint")
        kept = {k.removeprefix("critic."): v for k, v in tensors.items() if k.startswith("critic.")}
        if kept:  # pathwise training has no critic
            critic.load_state_dict(kept)
    return critic


def keep_result(run: RunFolder, actor: QuantumPolicy, record: dict[str, Any]) -> None:
    """Write the tuned policy and fine_tuning.json into the run folder."""
    save_policy_model(actor, run.path / "model")
    atomic_write_json(run.path / "device.json", read_json(run.path / "model" / "device.json"))
    atomic_write_json(run.path / "fine_tuning.json", record)
