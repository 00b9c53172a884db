"""From settings to a trained controller: device → circuit → layer → actor → environment → PPO, in a run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qhw_diffusion.circuits import policy_circuit, save_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import Backbone, Classifier, ImageDataset, check_fit, load_dataset
from qhw_diffusion.errors import DamagedFileError, InvalidInputError
from qhw_diffusion.execution import Engine, QuantumLayer
from qhw_diffusion.guidance.actors import Actor, AnnealingActor, Critic, MLPActor, matched_mlp, mlp_parameters
from qhw_diffusion.guidance.config import ActorConfig, GuidanceConfig, PPOConfig, RewardConfig
from qhw_diffusion.guidance.diagnostics import Finding, diagnose
from qhw_diffusion.guidance.environment import GuidanceEnv, check_num_envs
from qhw_diffusion.guidance.episode import GuidedEpisode, calibrate_state, draw_episode
from qhw_diffusion.guidance.ppo import History, train_ppo
from qhw_diffusion.guidance.quantum_actor import QuantumActor, compile_policy
from qhw_diffusion.guidance.rewards import Distribution, Reward
from qhw_diffusion.guidance.rollout import rollout
from qhw_diffusion.guidance.saving import load_actor, save_actor
from qhw_diffusion.runs import RunFolder, atomic_write_bytes, atomic_write_json

KIND = "guidance"
_CALIBRATION_SEED, _CALIBRATION_IMAGES = 20_240_901, 200


@dataclass(frozen=True)
class TrainedController:
    """A trained actor with everything needed to use it: the configuration its states and actions refer to."""

    actor: Actor
    config: GuidanceConfig
    reward: RewardConfig
    ppo: PPOConfig
    actor_config: ActorConfig
    history: History
    findings: tuple[Finding, ...]


def quantum_parameters(config: ActorConfig, n_features: int) -> int:
    """Trainable parameters of the quantum actor these settings describe (weights, input scales, head)."""
    weights = 3 * config.n_qubits * config.depth + n_features + (config.n_qubits if config.output_scaling else 0)
    return weights + mlp_parameters([config.n_qubits, 64, 32, 2])


def build_actor(config: ActorConfig, *, n_features: int = 6, seed: int = 0, device: Device | None = None) -> Actor:
    """The untrained actor. seed: of every initial weight; device: instead of `config.device`, when already loaded."""
    common: dict[str, Any] = {"initial_std": config.initial_std, "gain": config.gain, "seed": seed}
    if config.kind == "mlp":
        return MLPActor(n_features=n_features, **common)
    if config.kind == "annealing":
        return AnnealingActor(n_features=n_features, **common)
    if config.kind == "matched":
        return matched_mlp(quantum_parameters(config, n_features), n_features=n_features, **common)
    circuit = policy_circuit(
        n_qubits=config.n_qubits,
        depth=config.depth,
        n_features=n_features,
        entanglement="none" if config.kind == "unentangled" else config.entanglement,
        reuploading=config.reuploading,
    )
    compiled = compile_policy(
        circuit,
        device if device is not None else Device.load(config.device),
        seed=config.transpile_seed,
        scheduled=config.scheduled,
        optimization_level=config.optimization_level,
    )
    return QuantumActor(
        QuantumLayer(compiled, config.engine, seed=seed),
        circuit,
        output_scaling=config.output_scaling,
        freeze_circuit=config.kind == "frozen",
        **common,
    )


def calibrate(
    guidance: GuidanceConfig, reward: RewardConfig, backbone: Backbone, classifier: Classifier, real: ImageDataset
) -> tuple[GuidanceConfig, RewardConfig]:
    """Both configurations with their measured numbers filled in (state centre and width, witness offset and scale)."""
    guidance = calibrate_state(guidance, backbone, classifier)
    if reward.distribution and reward.distribution_scale is None:
        generator = torch.Generator().manual_seed(_CALIBRATION_SEED)
        device = next(backbone.parameters()).device
        labels, noise = draw_episode(backbone, _CALIBRATION_IMAGES, generator, device)
        draws = torch.rand((guidance.n_steps, _CALIBRATION_IMAGES), generator=generator).to(device)
        actions = guidance.action_limit * (2.0 * draws - 1.0)
        random = (guidance.g0 + actions).clamp(guidance.g_min, guidance.g_max)
        base_images, random_images = (
            rollout(backbone, guidance, labels, noise, controller).images for controller in (guidance.g0, random)
        )
        term = Distribution(classifier, real, by_class=reward.distribution_by_class, kernel=reward.distribution_kernel)
        term = term.calibrated(base_images, random_images, labels)
        reward = reward.replace(distribution_offset=term.offset, distribution_scale=term.scale)
    return guidance, reward


def check_training(
    guidance: GuidanceConfig,
    ppo: PPOConfig,
    reward: RewardConfig,
    actor: ActorConfig,
    *,
    backbone: Backbone,
    classifier: Classifier,
    real: ImageDataset,
    device: Device | None = None,
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Raises what `train_guidance` would for settings that do not fit, before anything is sampled, trained or written.

    The arguments are those of `train_guidance`. Circuit, reward and environment are built.
    """
    _check_parts(guidance, ppo, actor, backbone, classifier, real)
    build_actor(actor, n_features=guidance.n_state, seed=ppo.seed, device=device)
    reward_function = Reward.from_config(reward, classifier, real, distance=distance)
    check_num_envs(ppo.num_envs, reward_function, guidance, backbone.n_classes)
    n = guidance.n_state
    bare = guidance.replace(starts=0, state_centre=(0.0,) * n, state_width=(1.0,) * n)  # nothing to be sampled
    GuidanceEnv(backbone, reward_function, bare, num_envs=ppo.num_envs)


def _check_parts(
    guidance: GuidanceConfig,
    ppo: PPOConfig,
    actor: ActorConfig,
    backbone: Backbone,
    classifier: Classifier,
    real: ImageDataset,
) -> None:
    if classifier.role != "reward":
        raise InvalidInputError(f"training looks through the reward classifier, got role {classifier.role!r}")
    if actor.kind == "annealing" and not guidance.extra_state:
        raise InvalidInputError("the annealing actor needs the seventh state entry: GuidanceConfig(extra_state=True)")
    check_fit(backbone=backbone, reward_classifier=classifier, data_set=real)
    ppo.check_minibatches(ppo.rollout_steps or guidance.n_steps)
    GuidedEpisode(backbone, guidance, classifier)  # refuses a sampler that does not start in noise


def train_guidance(
    guidance: GuidanceConfig,
    ppo: PPOConfig,
    reward: RewardConfig,
    actor: ActorConfig,
    *,
    path: str | Path | None = None,
    command: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    backbone: Backbone | None = None,
    classifier: Classifier | None = None,
    real: ImageDataset | None = None,
    device: Device | None = None,
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    on_update: Callable[[int, dict[str, float]], None] | None = None,
) -> TrainedController:
    """Train one controller; with `path`, in a run folder that holds all that is needed to say what was run.

    backbone, classifier (the reward one), real (the training split), device: loaded by name from the configurations
    unless given; distance: an LPIPS network for that reward term, in place of `reward.lpips_weights`; resume: continue
    the run in `path` bit for bit (from the beginning where it has no checkpoint yet), with the settings stored there
    (those given must agree); overwrite: an earlier run in `path` gives way once the first checkpoint is written.
    `ppo.seed` seeds everything. A run that is refused or cut short before its first checkpoint leaves no folder.

    Folder: config.json, manifest.json, metrics.jsonl, TensorBoard events, checkpoint.safetensors, model/ (the actor),
    findings.json (the diagnostics, also while it runs) and, for a quantum actor, circuit.qpy, circuit.qasm and
    device.json. Ctrl-C stops after the present update with a checkpoint; the model written is then the one reached.
    """
    backbone = backbone if backbone is not None else Backbone.load(guidance.dataset)
    classifier = classifier if classifier is not None else Classifier.load(guidance.dataset, role="reward")
    real = real if real is not None else load_dataset(guidance.dataset, split="train")
    _check_parts(guidance, ppo, actor, backbone, classifier, real)
    if resume and path is None:
        raise InvalidInputError("resuming needs the path of the run folder")
    reward_function = Reward.from_config(reward, classifier, real, distance=distance)
    check_num_envs(ppo.num_envs, reward_function, guidance, backbone.n_classes)
    guidance, reward = calibrate(guidance, reward, backbone, classifier, real)
    settings = {
        "guidance": guidance.to_dict(),
        "reward": reward.to_dict(),
        "ppo": ppo.to_dict(),
        "actor": actor.to_dict(),
    }
    policy = build_actor(actor, n_features=guidance.n_state, seed=ppo.seed, device=device)
    reward_function = Reward.from_config(reward, classifier, real, distance=distance)
    env = GuidanceEnv(backbone, reward_function, guidance, num_envs=ppo.num_envs, seed=ppo.seed)
    critic = Critic(guidance.n_state, seed=ppo.seed)
    run = None
    if path is not None and resume:
        run = RunFolder.open(path, kind=KIND)
        _same_settings(with_later_settings(run.config), settings)
        if not run.has_checkpoint:
            run.truncate_metrics(0)
    elif path is not None:
        run = RunFolder.create(path, kind=KIND, config=settings, command=command, overwrite=overwrite)
    with run or contextlib.nullcontext():
        if run is not None and isinstance(policy, QuantumActor):
            save_circuit(policy.circuit.circuit, run.path, "circuit")
        trains_circuit = bool(policy.parameter_groups()["circuit"])

        def watch(update: int, metrics: dict[str, float]) -> None:
            if run is not None and (update + 1) % ppo.checkpoint_every == 0:
                _write_findings(run, diagnose(_plain(run.metrics()), trains_circuit=trains_circuit))
            if on_update is not None:
                on_update(update, metrics)

        going_on = run is not None and run.has_checkpoint
        history = train_ppo(env, policy, critic, ppo, run=run, resume=going_on, on_update=watch)
        findings = tuple(diagnose(history, trains_circuit=trains_circuit))
        if run is not None:
            save_actor(policy, run.path / "model")
            if isinstance(policy, QuantumActor):
                atomic_write_bytes(run.path / "device.json", (run.path / "model" / "device.json").read_bytes())
            _write_findings(run, findings)
    return TrainedController(policy, guidance, reward, ppo, actor, history, findings)


def load_controller(
    path: str | Path, *, device: str | Path | Device | None = None, engine: str | Engine | None = None
) -> TrainedController:
    """A trained controller from its run folder, a quantum one on another device or engine if asked (`load_actor`).

    Raises RunFolderError or DamagedFileError (DamagedRunError is both) for a folder that is missing, damaged or of
    another kind.
    """
    run = RunFolder.open(path, kind=KIND)
    try:
        parts = (
            GuidanceConfig.from_dict(run.config["guidance"]),
            RewardConfig.from_dict(run.config["reward"]),
            PPOConfig.from_dict(run.config["ppo"]),
            ActorConfig.from_dict(run.config["actor"]),
        )
    except (KeyError, TypeError, InvalidInputError) as error:
        raise DamagedFileError(f"{run.path / 'config.json'} does not describe a guidance run ({error})") from error
    with run.whole():
        actor = load_actor(run.path / "model", device=device, engine=engine)
    history = _plain(run.metrics())
    findings = tuple(diagnose(history, trains_circuit=bool(actor.parameter_groups()["circuit"])))
    return TrainedController(actor, *parts, history, findings)


def with_later_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a guidance run as saved, with the defaults of those that came after its folder was made."""
    parts: dict[str, Any] = {"guidance": GuidanceConfig, "reward": RewardConfig, "ppo": PPOConfig, "actor": ActorConfig}
    return {name: parts[name].from_dict(value).to_dict() if name in parts else value for name, value in config.items()}


def _plain(rows: list[dict[str, Any]]) -> History:
    return [{name: value for name, value in row.items() if name != "step"} for row in rows]


def _write_findings(run: RunFolder, findings: Iterable[Finding]) -> None:
    atomic_write_json(run.path / "findings.json", [finding.to_dict() for finding in findings])


def _same_settings(stored: dict[str, Any], given: dict[str, Any]) -> None:
    for part, values in given.items():
        for name, value in values.items():
            before = stored.get(part, {}).get(name)
            if before != value:
                raise InvalidInputError(
                    f"the run was started with {part}.{name} = {before!r}, now {value!r} is given; "
                    f"resume with the settings of the run's config.json"
                )
