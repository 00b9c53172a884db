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
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from qhw_diffusion.config import Config
from qhw_diffusion.denoising import (
    LatentAutoencoder,
    LatentQDM,
    from_pretrained,
    save_pretrained,
    train_autoencoder,
    train_qdm,
)
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
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
from qhw_diffusion.guidance.ppo import History
from qhw_diffusion.runs import atomic_write_json, read_json
from qhw_diffusion.studies.denoising.experiment import DenoisingConfig
from qhw_diffusion.studies.measure import Sampled, sample_and_measure
from qhw_diffusion.studies.models import Models, draw_starts, load_models
from qhw_diffusion.studies.settings import ModelConfig

EVALUATION_SEED, DENOISER_SEED = 5_000_000, 6_000_000
LATENT_QUBITS, LABELS = 3, 10
STEERED_TOGETHER = 256


@dataclass(frozen=True)
class ReferenceModelsConfig(Config):
    """The trained policy and the trained denoiser of a study, and how they are evaluated."""

    device: str = "fake_marrakesh"
    """Device the policy is compiled for; it is trained without noise."""
    n_steps: int = 6
    """DDIM steps of an image."""
    spacing: str = "leading"
    """How the timesteps are spread: "leading", "trailing" or "linspace"."""
    g0: float = 2.0
    """Base guidance scale; the middle of the sensible constants for digits, so that there is something to learn."""
    updates: int = 32
    """PPO updates of a training."""
    num_envs: int = 96
    """Images sampled in an update."""
    epochs: int = 2
    """Passes over them."""
    minibatches: int = 4
    """Minibatches of a pass."""
    starts: int = 400
    """Different starting points of a training."""
    denoiser_iterations: int = 500
    """Updates of a denoiser's training."""
    autoencoder_steps: int = 1500
    """Updates of the autoencoder."""
    eval_images: int = 600
    """Images of an evaluation."""
    seeds: int = 4
    """Seeds: a seed is one training of everything and one evaluation."""

    def __post_init__(self) -> None:
        for name in ("updates", "epochs", "minibatches", "seeds", "denoiser_iterations"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.eval_images < 20 or self.num_envs < 20:
            raise InvalidInputError(
                f"eval_images and num_envs must be at least 20, got {self.eval_images} and {self.num_envs}"
            )
        self.ppo(0).check_minibatches(self.guidance.n_steps)  # making both refuses what neither takes

    @property
    def guidance(self) -> GuidanceConfig:
        """Sampler and range of the guidance scale, not yet calibrated."""
        limit = GuidanceConfig().action_limit
        return GuidanceConfig(
            n_steps=self.n_steps,
            spacing=self.spacing,
            **GuidanceConfig.around(self.g0, limit),
            noise_pool=self.starts,
        )

    def ppo(self, seed: int) -> PPOConfig:
        """Settings of one training."""
        return PPOConfig.short(
            num_iterations=self.updates,
            num_envs=self.num_envs,
            update_epochs=self.epochs,
            num_minibatches=self.minibatches,
            seed=seed,
        )

    def actor(self, kind: str = "quantum") -> PolicyConfig:
        """The policy: 4 qubits, 2 layers, ring."""
        return PolicyConfig(kind=kind, device=self.device, engine="ideal")

    def denoiser(self, steps: int = 4) -> DenoisingConfig:
        """The denoising study whose latent space and post-selected model are trained here; steps: T."""
        base = DenoisingConfig()
        return base.replace(
            autoencoder=base.autoencoder.replace(latent_qubits=LATENT_QUBITS, steps=self.autoencoder_steps),
            reverse=base.reverse.replace(n_steps=steps),
            train=base.train.replace(iterations=self.denoiser_iterations),
        )


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
        config.ppo(0),
        RewardConfig(),
        config.actor(),
        backbone=here.backbone,
        scorer=here.reward,
        real=here.train,
        device=device_of(config.device),
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
    ppo, settings = config.ppo(seed), config.actor(kind)
    actor = build_policy(settings, n_features=guidance.n_state, seed=seed, device=device_of(config.device))
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
    loaded = load_policy_model(folder, device=device_of(device or config.device), engine=engine or "ideal")
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
    controller: QuantumPolicy,
    seed: int,
    *,
    images: int | None = None,
) -> Sampled:
    """The controller's mean actions on the evaluation starts of this seed, measured by both classifiers."""
    guidance, reward = calibrated(root, config)
    labels, noise = draw_starts(
        models().backbone, models().heldout, images or config.eval_images, EVALUATION_SEED + seed
    )
    base = _base_images(guidance, images or config.eval_images, seed)
    return sample_and_measure(
        models(), guidance, controller, labels, noise, reward=reward, reference=base.images, batch=STEERED_TOGETHER
    )


@lru_cache(maxsize=2)
def _base_images(guidance: GuidanceConfig, images: int, seed: int) -> Rollout:
    labels, noise = draw_starts(models().backbone, models().heldout, images, EVALUATION_SEED + seed)
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


def denoiser(root: Path, config: ReferenceModelsConfig, seed: int, *, steps: int = 4) -> LatentQDM:
    """The trained denoiser of this seed on the ideal engine, trained if it is not there yet; steps: T."""
    folder = root / f"denoiser-seed{seed}"
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
