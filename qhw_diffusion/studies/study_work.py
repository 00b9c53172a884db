"""The pieces of work of a guidance study; each reads the study's folder and leaves one result there.

    sweep/<key>.json            one constant or one schedule candidate, on the reward side
    calibration.json            state normalisation and reward offset, the same for all actors
    trainings/<actor>-seed<k>/  a guidance run folder
    evaluations/<controller>-seed<k>.json, .safetensors   numbers; some images and guidance scales

Evaluation seed k and sweep seeds are far apart, so what is chosen is never chosen on the images it is judged by.
"""

from __future__ import annotations

import json
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import real_floor
from qhw_diffusion.errors import DamagedFileError, RunFolderError
from qhw_diffusion.guidance import (
    Actor,
    Controller,
    GuidanceConfig,
    RewardConfig,
    Rollout,
    build_actor,
    calibrate,
    diagnose,
    load_controller,
    rollout,
    train_guidance,
)
from qhw_diffusion.guidance.schedules import SCHEDULES
from qhw_diffusion.runs import RunFolder, atomic_write_json, read_json, read_tensors, write_tensors
from qhw_diffusion.studies.measure import sample_and_measure, trajectory
from qhw_diffusion.studies.models import Models, draw_starts, load_models
from qhw_diffusion.studies.rivals import Schedule
from qhw_diffusion.studies.settings import StudyConfig

KIND = "guidance-study"
SWEEP_SEED, EVALUATION_SEED = 2_000_000, 1_000_000
KEPT_IMAGES, KEPT_TRAJECTORIES = 40, 128


def sweep_file(root: Path, key: str) -> Path:
    """Result of one constant or schedule candidate."""
    return root / "sweep" / f"{key}.json"


def training_folder(root: Path, actor: str, seed: int) -> Path:
    """Run folder of one training."""
    return root / "trainings" / f"{actor}-seed{seed}"


def evaluation_file(root: Path, controller: str, seed: int) -> Path:
    """Result of one evaluation; its samples have the same name with the ending .safetensors."""
    return root / "evaluations" / f"{controller}-seed{seed}.json"


@lru_cache(maxsize=1)
def context(root: str) -> tuple[StudyConfig, Models]:
    """Configuration and models of the study in this folder, loaded once per process."""
    config = StudyConfig.from_dict(RunFolder.open(root, kind=KIND).config)
    return config, load_models(config.models)


@lru_cache(maxsize=4)
def device_of(name: str) -> Device:
    """A device, loaded once per process."""
    return Device.load(name)


def sampling_config(config: StudyConfig, g0: float, *, extra_state: bool = False) -> GuidanceConfig:
    """Sampler and guidance range around the base scale g0."""
    limit = config.action_limit
    return GuidanceConfig(
        dataset=config.models.data,
        n_steps=config.n_steps,
        spacing=config.spacing,
        g0=g0,
        g_min=max(0.0, g0 - limit),
        g_max=g0 + limit,
        action_limit=limit,
        extra_state=extra_state,
        starts=config.starts,
    )


def measure_candidate(root: str, key: str, schedule: dict[str, Any], n_images: int, judged: bool) -> None:
    """Reward-side numbers of one schedule on the sweep's starts.

    With `judged` the judge's numbers are kept beside them: they are drawn in the report and choose nothing.
    """
    config, models = context(root)
    candidate = Schedule(**schedule)
    labels, noise = draw_starts(models.backbone, models.train, n_images, SWEEP_SEED)
    sampled = sample_and_measure(
        models,
        sampling_config(config, 1.0),
        candidate.scales(config.n_steps),
        labels,
        noise,
        reward=config.reward,
        judged=judged,
        batch=config.batch,
    )
    result = {"schedule": candidate.to_dict(), "reward_side": sampled.reward_side, "judged": sampled.judged}
    atomic_write_json(sweep_file(Path(root), key), result)


def calibrate_study(root: str, g0: float) -> None:
    """State normalisation (six entries, and seven for the annealing rival) and the reward's offset and scale."""
    config, models = context(root)
    six = sampling_config(config, g0)
    guidance, reward = calibrate(six, config.reward, models.backbone, models.reward, models.train)
    result = {"guidance": guidance.to_dict(), "reward": reward.to_dict()}
    if "annealing" in config.actors:
        seven = sampling_config(config, g0, extra_state=True)
        result["guidance_extra"] = calibrate(seven, reward, models.backbone, models.reward, models.train)[0].to_dict()
    atomic_write_json(Path(root) / "calibration.json", result)


def measure_floor(root: str) -> None:
    """Every judged metric for real training images instead of generated ones, one choice of images per seed."""
    config, models = context(root)
    n = min(config.eval_images, len(models.train))
    rows = [real_floor(models.judge, models.train, models.heldout, n, seed=seed) for seed in range(config.seeds)]
    atomic_write_json(Path(root) / "floor.json", {"n_images": n, "rows": rows})


def calibrated(root: str, actor: str = "") -> tuple[GuidanceConfig, RewardConfig]:
    """The study's calibrated configurations for one actor."""
    saved = read_json(Path(root) / "calibration.json")
    part = "guidance_extra" if actor == "annealing" else "guidance"
    return GuidanceConfig.from_dict(saved[part]), RewardConfig.from_dict(saved["reward"])


def training_done(root: Path, actor: str, seed: int, updates: int) -> bool:
    """Whether this training has run to its end."""
    folder = training_folder(root, actor, seed)
    if not (folder / "model").is_dir():
        return False
    return len(RunFolder.open(folder, kind="guidance").metrics()) >= updates


def train_actor(root: str, actor: str, seed: int) -> None:
    """One training in its run folder; an unfinished one goes on from its checkpoint. KeyboardInterrupt on Ctrl-C."""
    config, models = context(root)
    guidance, reward = calibrated(root, actor)
    folder = training_folder(Path(root), actor, seed)
    resume = folder.exists() and RunFolder.open(folder, kind="guidance").has_checkpoint
    if folder.exists() and not resume:
        shutil.rmtree(folder)  # stopped before its first checkpoint: nothing in it to keep
    settings = config.actor_config(actor)
    trained = train_guidance(
        guidance,
        config.ppo.replace(seed=seed),
        reward,
        settings,
        path=folder,
        command=f"study guidance: {actor}, seed {seed}",
        resume=resume,
        backbone=models.backbone,
        classifier=models.reward,
        real=models.train,
        device=device_of(settings.device) if settings.uses_circuit else None,
    )
    if len(trained.history) < config.ppo.updates:
        raise KeyboardInterrupt


def load_trained(root: str, actor: str, seed: int, *, engine: str | None = None) -> Actor:
    """A trained actor of the study, a quantum one on another engine if asked."""
    config, _ = context(root)
    settings = config.actor_config(actor)
    device = device_of(settings.device) if settings.uses_circuit else None
    return load_controller(training_folder(Path(root), actor, seed), device=device, engine=engine).actor


@lru_cache(maxsize=2)
def base_scale_images(root: str, seed: int) -> Rollout:
    """What the base scale makes of one evaluation seed's starts: rewards are gains over it."""
    config, models = context(root)
    guidance, _ = calibrated(root)
    labels, noise = draw_starts(models.backbone, models.heldout, config.eval_images, EVALUATION_SEED + seed)
    return rollout(models.backbone, guidance, labels, noise, guidance.g0, batch=config.batch)


def evaluate_controller(root: str, controller: str, seed: int) -> None:
    """One controller on one evaluation seed: the judge's numbers, the reward side's, guidance scales, some images."""
    config, models = context(root)
    name, _, guise = controller.partition("@")
    guidance, reward = calibrated(root, name)
    player: Controller
    if name in SCHEDULES:
        player = Schedule(**read_json(Path(root) / "choices.json")["schedules"][name]).scales(config.n_steps)
    elif guise == "untrained":
        settings = config.actor_config(name)
        player = build_actor(settings, n_features=guidance.n_state, seed=seed, device=device_of(settings.device))
    else:
        player = load_trained(root, name, seed, engine=guise or None)
    labels, noise = draw_starts(models.backbone, models.heldout, config.eval_images, EVALUATION_SEED + seed)
    started = time.perf_counter()
    base = base_scale_images(root, seed)
    sampled = sample_and_measure(
        models, guidance, player, labels, noise, reward=reward, reference=base.images, batch=config.batch
    )
    seconds = time.perf_counter() - started
    played = sampled.rollout
    result: dict[str, Any] = {
        "controller": controller,
        "seed": seed,
        "n_images": config.eval_images,
        "judged": sampled.judged,
        "reward_side": sampled.reward_side,
        "circuits": played.circuits,
        "parameters": player.parameter_counts() if isinstance(player, Actor) else {"total": 0},
        "seconds": seconds,
        **trajectory(played),
    }
    if isinstance(player, Actor) and guise != "untrained":
        found = diagnose((), [played], judge=models.judge, proxy=models.reward, baseline=[base])
        result["findings"] = [finding.to_dict() for finding in found]
    kept = {
        "images": ((played.images[:KEPT_IMAGES] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8),
        "labels": labels[:KEPT_IMAGES],
        "g": played.g[:, :KEPT_TRAJECTORIES].contiguous(),
    }
    target = evaluation_file(Path(root), controller, seed)
    write_tensors(target.with_suffix(".safetensors"), kept, {"controller": controller}, kind="samples")
    atomic_write_json(target, result)


def read_samples(root: Path, controller: str, seed: int) -> dict[str, torch.Tensor]:
    """What an evaluation kept: "images" float [≤ 40, C, H, W] in [−1, 1], "labels", "g" [T, ≤ 128]."""
    file = evaluation_file(root, controller, seed).with_suffix(".safetensors")
    tensors, _ = read_tensors(file, kind="samples")
    return {**tensors, "images": tensors["images"].float() / 127.5 - 1}


def read_result(file: Path) -> dict[str, Any]:
    """A result file. Raises RunFolderError when that piece of work has not been done."""
    try:
        return read_json(file)
    except FileNotFoundError as error:
        raise RunFolderError(f"{file} is missing: run the study to its end first (start it again to go on)") from error


def read_findings(file: Path) -> list[dict[str, Any]]:
    """The findings of one training."""
    try:
        return list(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise RunFolderError(f"{file} is missing: that training has not come to its end") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFileError(f"{file} is not readable JSON ({error})") from error
