"""Reference models of the studies of shots and of mitigation: a trained policy and a trained denoiser a seed.

    calibration.json            state normalisation and reward scale, the same for all policies
    policy-seed<k>/             a quantum policy, trained without noise: what mitigation tries to bring back
    autoencoder/                the denoiser's latent space
    denoiser-seed<k>/           a post-selected latent denoiser, trained without noise

Both are for the digits in the package, whose backbone and classifiers are shipped: nothing else is needed.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from qhw_diffusion.config import Config, check_whole, require
from qhw_diffusion.denoising import (
    LatentAutoencoder,
    LatentQDM,
    from_pretrained,
    save_pretrained,
    train_autoencoder,
    train_qdm,
)
from qhw_diffusion.devices import Device
from qhw_diffusion.execution import Engine, GradientMethod
from qhw_diffusion.guidance import (
    Critic,
    GuidanceConfig,
    GuidanceEnv,
    PolicyConfig,
    PPOConfig,
    QuantumPolicy,
    Reward,
    RewardConfig,
    Rollout,
    build_policy,
    calibrate,
    check_training,
    load_policy_model,
    rollout,
    save_policy_model,
    train_ppo,
)
from qhw_diffusion.guidance.config import ModelConfig
from qhw_diffusion.guidance.evaluation import Models, Sampled, draw_initial_noise, load_models, sample_and_measure
from qhw_diffusion.guidance.ppo import History
from qhw_diffusion.runs import atomic_write_json, read_json
from qhw_diffusion.studies.denoising.experiment import DenoisingConfig

EVALUATION_SEED, DENOISER_SEED = 5_000_000, 6_000_000
LATENT_QUBITS, LABELS = 3, 10
STEERED_TOGETHER = 256


@dataclass(frozen=True)
class ReferenceModelsConfig(Config):
    """The trained policy and the trained denoiser of a study, and how they are evaluated."""

    guidance: GuidanceConfig = field(default_factory=lambda: GuidanceConfig(g0=2.0, noise_pool=400))
    """Sampler; its base scale is the middle of the sensible constants for digits, so that there is something to learn,
    and its range follows from that."""
    ppo: PPOConfig = field(default_factory=lambda: PPOConfig.short(num_envs=96, update_epochs=2, num_minibatches=4))
    """Training of the policy."""
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(engine="ideal"))
    """Policy and its device; it is trained without noise."""
    denoiser_iterations: int = 500
    """Updates of a denoiser's training."""
    autoencoder_steps: int = 1500
    """Updates of the autoencoder."""
    eval_images: int = 600
    """Images of an evaluation."""
    seeds: int = 4
    """Seeds: a seed is one training of everything and one evaluation."""

    def __post_init__(self) -> None:
        check_whole(self, "seeds", "denoiser_iterations")
        check_whole(self, "eval_images", least=20)
        require(self.ppo.num_envs >= 20, f"num_envs must be at least 20, got {self.ppo.num_envs}")
        around = GuidanceConfig.around(self.guidance.g0, self.guidance.action_limit)
        object.__setattr__(self, "guidance", self.guidance.replace(**around))
        self.ppo.check_minibatches(self.ppo.num_steps or self.guidance.n_steps)

    def policy_of(self, kind: str) -> PolicyConfig:
        """The policy, of this kind."""
        return self.policy.replace(kind=kind)

    def denoiser(self, steps: int = 4) -> DenoisingConfig:
        """The denoising study whose latent space and post-selected model are trained here; steps: T."""
        base = DenoisingConfig()
        return base.replace(
            autoencoder=base.autoencoder.replace(latent_qubits=LATENT_QUBITS, steps=self.autoencoder_steps),
            reverse=base.reverse.replace(n_steps=steps),
            train=base.train.replace(iterations=self.denoiser_iterations),
        )


def seconds_of(config: ReferenceModelsConfig, usual: ReferenceModelsConfig) -> dict[str, float]:
    """About how many seconds each part takes, from what was measured with the usual settings.

    Returns:
        "preparation", "models" (of one seed), and in units of the usual settings' time "training" (of one policy) and
        "images" (of one evaluation).
    """
    policies = [c.ppo.num_iterations * c.ppo.num_envs * c.ppo.update_epochs for c in (config, usual)]
    training = policies[0] / policies[1]
    return {
        "preparation": 5 + 15 * config.autoencoder_steps / usual.autoencoder_steps,
        "models": 15 * training + 15 * config.denoiser_iterations / usual.denoiser_iterations,
        "training": training,
        "images": config.eval_images / usual.eval_images,
    }


@lru_cache(maxsize=1)
def models() -> Models:
    """Backbone, classifiers and images of the digits, loaded once per process."""
    return load_models(ModelConfig())


@lru_cache(maxsize=8)
def device_of(name: str) -> Device:
    """A device, loaded once per process."""
    return Device.load(name)


def check(config: ReferenceModelsConfig) -> None:
    """Raises what making these policies and denoisers would for settings that do not fit, before anything is made."""
    here = models()
    check_training(
        config.guidance,
        config.ppo,
        RewardConfig(),
        config.policy,
        backbone=here.backbone,
        scorer=here.reward,
        real=here.train,
        device=device_of(config.policy.device),
    )
    config.denoiser()


def calibrated(root: Path, config: ReferenceModelsConfig) -> tuple[GuidanceConfig, RewardConfig]:
    """Calibrated configurations of guidance and reward, measured once per folder."""
    file = root / "calibration.json"
    if not file.exists():
        here = models()
        guidance, reward = calibrate(config.guidance, RewardConfig(), here.backbone, here.reward, here.train)
        atomic_write_json(file, {"guidance": guidance.to_dict(), "reward": reward.to_dict()})
    saved = read_json(file)
    return GuidanceConfig.from_dict(saved["guidance"]), RewardConfig.from_dict(saved["reward"])


def train_policy(
    root: Path,
    config: ReferenceModelsConfig,
    seed: int,
    *,
    kind: str = "quantum",
    head: bool = True,
    engine: str | Engine = "ideal",
    gradient: GradientMethod | None = None,
) -> tuple[QuantumPolicy, QuantumPolicy, History]:
    """One PPO training; returns the untrained policy (on the ideal engine), the trained one, and the log.

    kind: "quantum", or "frozen" (the circuit stays random); head: False leaves the head random, so that all that is
    learned is learned by the circuit; engine, gradient: of the circuit while it is trained.
    """
    here = models()
    guidance, reward = calibrated(root, config)
    ppo, settings = config.ppo.replace(seed=seed), config.policy_of(kind)
    actor = build_policy(settings, n_features=guidance.n_state, seed=seed, device=device_of(config.policy.device))
    assert isinstance(actor, QuantumPolicy)
    untrained = actor.on(engine="ideal")
    actor.head.requires_grad_(head)
    actor.layer = actor.layer.with_engine(engine, gradient=gradient)
    env = GuidanceEnv(here.backbone, _reward(reward), guidance, num_envs=ppo.num_envs, seed=seed)
    history = train_ppo(env, actor, Critic(guidance.n_state, seed=seed), ppo)
    return untrained, actor, history


@lru_cache(maxsize=2)
def _reward(reward: RewardConfig) -> Reward:
    return Reward.from_config(reward, models().reward, models().train)  # it embeds all training images


def policy(
    root: Path, config: ReferenceModelsConfig, seed: int, *, device: str = "", engine: str | Engine = ""
) -> QuantumPolicy:
    """The trained policy of this seed, trained if it is not there yet; on another device or engine if asked."""
    folder = root / f"policy-seed{seed}"
    if not folder.is_dir():
        _, actor, _ = train_policy(root, config, seed)
        keep_policy(actor, folder)
    loaded = load_policy_model(folder, device=device_of(device or config.policy.device), engine=engine or "ideal")
    assert isinstance(loaded, QuantumPolicy)
    return loaded


def keep_policy(actor: QuantumPolicy, folder: Path) -> None:
    """Save a policy in one step: the folder is either whole or not there."""
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    save_policy_model(actor, aside)
    os.replace(aside, folder)


def play(
    root: Path,
    config: ReferenceModelsConfig,
    policy: QuantumPolicy,
    seed: int,
    *,
    images: int | None = None,
) -> Sampled:
    """The policy's mean actions on the evaluation's initial noise of this seed, measured by both classifiers."""
    guidance, reward = calibrated(root, config)
    labels, noise = draw_initial_noise(
        models().backbone, models().heldout, images or config.eval_images, EVALUATION_SEED + seed
    )
    base = _base_images(guidance, images or config.eval_images, seed)
    return sample_and_measure(
        models(), guidance, policy, labels, noise, reward=reward, reference=base.images, batch=STEERED_TOGETHER
    )


@lru_cache(maxsize=2)
def _base_images(guidance: GuidanceConfig, images: int, seed: int) -> Rollout:
    labels, noise = draw_initial_noise(models().backbone, models().heldout, images, EVALUATION_SEED + seed)
    return rollout(models().backbone, guidance, labels, noise, guidance.g0, batch=STEERED_TOGETHER)


def autoencoder(root: Path, config: ReferenceModelsConfig) -> LatentAutoencoder:
    """The latent space, trained if it is not there yet."""
    folder = root / "autoencoder"
    if not folder.is_dir():
        settings = config.denoiser().autoencoder
        aside = root / ".autoencoder.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        train_autoencoder(settings, models().train, models().heldout).save(aside)
        os.replace(aside, folder)
    return LatentAutoencoder.load(folder)


def denoiser(
    root: Path, config: ReferenceModelsConfig, seed: int, *, steps: int = 4, name: str = "denoiser"
) -> LatentQDM:
    """The trained denoiser of this seed on the ideal engine, trained if it is not there yet; steps: T."""
    folder = root / f"{name}-seed{seed}"
    if not folder.is_dir():
        study, train = config.denoiser(steps), models().train
        model = LatentQDM(study.reverse_of("postselected", seed), study.forward, autoencoder=autoencoder(root, config))
        train_qdm(model, train.images, study.training_of("postselected", seed), labels=train.labels)
        aside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        save_pretrained(model, aside)
        os.replace(aside, folder)
    loaded = from_pretrained(folder)
    assert isinstance(loaded, LatentQDM)
    return loaded


def denoiser_labels(images: int) -> torch.Tensor:
    """The labels asked for, int64 [images]: all ten in turn."""
    return torch.arange(images) % LABELS


def scale(policy: QuantumPolicy, z: torch.Tensor, guidance: GuidanceConfig) -> torch.Tensor:
    """⟨Z⟩ [B, qubits] → guidance scale [B] of the mean action."""
    with torch.no_grad():
        action, _ = policy.action_of(policy.head(z.to(next(policy.head.parameters()))))
    return guidance.scale(action[:, 0], guidance.g0)


@lru_cache(maxsize=2)
def states_met(folder: Path, config: ReferenceModelsConfig, seed: int, n: int) -> torch.Tensor:
    """States [n, 6] the trained policy meets: a random choice of all steps of some rollouts."""
    count = max(20, -(-2 * n // config.guidance.n_steps))
    played = play(folder, config, policy(folder, config, seed), seed, images=count).rollout
    every = played.states.flatten(0, 1)
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:n]]


def rms(difference: torch.Tensor) -> float:
    """Root mean square of all entries."""
    return float(difference.double().square().mean().sqrt())


# Settings of a study's reference models that the study decides itself.
NO_FLAGS = (
    "models.policy.kind",
    "models.ppo.seed",
    *(
        f"models.guidance.{n}"
        for n in ("dataset", "g_min", "g_max", "base_schedule", "state_centre", "state_width", "extra_state")
    ),
)
