"""The study of features: what a policy gains in some features may be lost in others; which ones validate best?

    validation      a classifier that no reward looks through, trained on the training split
    constant        one constant guidance scale, measured in the features of every candidate
    training        one policy trained pathwise on one candidate's distance, and its validation

Validation: the energy distance within each class, in the validation classifier's features, between images of fresh
noise and the half of the training images that neither it nor the reward classifier was trained on. The evaluation
classifier measures beside it and chooses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from qhw_diffusion.config import Config, check_whole, require
from qhw_diffusion.diffusion import (
    Classifier,
    ClassifierConfig,
    ImageDataset,
    accuracy,
    class_energy_distance,
    evaluate_samples,
    image_features,
    load_dataset,
    train_classifier,
)
from qhw_diffusion.diffusion.classifiers import half_of
from qhw_diffusion.experiment import Cell, Study, cell_result
from qhw_diffusion.guidance import (
    GuidanceConfig,
    PathwiseConfig,
    PolicyConfig,
    PolicyOrSchedule,
    Reward,
    RewardConfig,
    build_policy,
    calibrate,
    check_training,
    rollout,
    train_pathwise,
)
from qhw_diffusion.guidance.config import ModelConfig, check_features_text
from qhw_diffusion.guidance.evaluation import EVALUATION_SEED, Models, draw_initial_noise, load_models
from qhw_diffusion.guidance.rewards import Distribution
from qhw_diffusion.studies.features.page import page

SWEEP_SEED, VALIDATION_SEED, CLASSIFIER_SEED = 7_000_000, 8_000_000, 303


@dataclass(frozen=True)
class FeaturesStudyConfig(Config):
    """Candidates, the trainings they are tried in, and the validation."""

    models: ModelConfig = field(default_factory=ModelConfig)
    """Data set, backbone and classifiers."""
    candidates: tuple[str, ...] = ("classifier", "layers", "pixels", "classifier+pixels")
    """Features to try, each as in distribution_features of the reward."""
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(kind="matched"))
    """Policy that is trained on each of them."""
    pathwise: PathwiseConfig = field(default_factory=PathwiseConfig)
    """Its training."""
    n_steps: int = 6
    """Sampling steps."""
    spacing: str = "leading"
    """Spacing of the timesteps: "leading", "trailing" or "linspace"."""
    constants: tuple[float, ...] = (0.8, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0)
    """Constant guidance scales to sweep; the best in a candidate's features is its base scale."""
    action_limit: float = 2.0
    """Largest |ΔCFG|; the guidance range is the base scale ± this, not below 0."""
    validation_steps: int = 1000
    """Training steps of the validation classifier."""
    images: int = 600
    """Images per constant and per validation."""
    seeds: int = 3
    """Seeds: seed k is one training on every candidate and one validation."""

    def __post_init__(self) -> None:
        check_whole(self, "n_steps", "validation_steps", "seeds")
        check_whole(self, "images", least=20)
        require(len(self.candidates) >= 2, f"candidates must be two or more, got {self.candidates}")
        require(len(set(self.candidates)) == len(self.candidates), f"candidates named twice: {self.candidates}")
        for text in self.candidates:
            check_features_text(text)
        require(
            len(self.constants) >= 2 and all(math.isfinite(g) and g >= 0 for g in self.constants),
            f"constants must be two or more finite scales ≥ 0, got {self.constants}",
        )
        GuidanceConfig(n_steps=self.n_steps, spacing=self.spacing)  # refuses what no sampler takes

    def reward(self, features: str) -> RewardConfig:
        """The distribution term alone, in these features."""
        return RewardConfig(action_penalty=0.0, distribution_features=features)

    def guidance(self, g0: float) -> GuidanceConfig:
        """Sampler and guidance range around a base scale."""
        around = GuidanceConfig.around(g0, self.action_limit)
        return GuidanceConfig(dataset=self.models.data, n_steps=self.n_steps, spacing=self.spacing, **around)


def cells(config: FeaturesStudyConfig) -> list[Cell]:
    """All cells."""
    found = [Cell("validation", {"part": "validation"}, seconds=0.04 * config.validation_steps)]
    seconds = config.images * config.n_steps / 1000
    sweep = tuple(f"constant-{g:g}" for g in config.constants)
    for name, g in zip(sweep, config.constants, strict=True):
        found.append(Cell(name, {"part": "constant", "g": g}, ("validation",), seconds, f"constant g = {g:g}"))
    cost = 3 * config.pathwise.num_iterations * config.pathwise.num_images * config.n_steps / 1000
    for seed in range(config.seeds):
        for index, text in enumerate(config.candidates):
            parameters = {"part": "training", "features": text, "seed": seed}
            label = f"training in {text}, seed {seed}"
            found.append(Cell(f"training-{index}-seed{seed}", parameters, sweep, cost, label))
    return found


def run_cell(config: FeaturesStudyConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Do one cell (see the top of this file)."""
    if cell["part"] == "validation":
        return train_validation_classifier(config, folder)
    if cell["part"] == "constant":
        return measure_constant(config, folder, cell["g"])
    return train(config, folder, cell["features"], cell["seed"])


def check(config: FeaturesStudyConfig) -> None:
    """Raises what a training would for settings that do not fit."""
    models = models_of(config.models)
    for text in config.candidates:
        check_training(
            config.guidance(config.constants[0]),
            config.pathwise,
            config.reward(text),
            config.policy,
            backbone=models.backbone,
            scorer=models.reward,
            real=models.train,
        )


@lru_cache(maxsize=1)
def models_of(config: ModelConfig) -> Models:
    """Backbone, classifiers and images, loaded once per process."""
    return load_models(config)


@lru_cache(maxsize=2)
def half(config: ModelConfig, which: str) -> ImageDataset:
    """A half of the training split; the reward classifier and the validation classifier know the first one."""
    return half_of(load_dataset(config.data, "train", config.data_root), which)


def train_validation_classifier(config: FeaturesStudyConfig, folder: Path) -> dict[str, Any]:
    """A network of another architecture and seed than the reward classifier's, trained on the same images."""
    train_side = load_dataset(config.models.data, "train", config.models.data_root)
    recipe = ClassifierConfig.for_dataset(
        train_side, "reward", architecture="residual", seed=CLASSIFIER_SEED, steps=config.validation_steps
    )
    # its accuracy too is measured on the training side
    classifier = train_classifier(recipe, dataset=train_side, heldout=half(config.models, "second"))
    classifier.save(folder / "validation")
    assert classifier.accuracy is not None
    return {"accuracy": classifier.accuracy}


@lru_cache(maxsize=1)
def validator(folder: Path) -> Classifier:
    """The validation classifier, loaded once per process."""
    return Classifier.load(folder / "validation", role="reward")


@lru_cache(maxsize=2)
def validation_features(config: ModelConfig, folder: Path) -> torch.Tensor:
    """The images validated against, in the validation classifier's features."""
    return image_features(validator(folder), half(config, "second").images)


@lru_cache(maxsize=4)
def term(config: ModelConfig, reward: RewardConfig) -> Distribution:
    """A candidate's distance, which embeds all training images, made once per process."""
    return Distribution.from_config(reward, models_of(config).reward, models_of(config).train)


@torch.no_grad()
def measure(
    config: FeaturesStudyConfig, folder: Path, guidance: GuidanceConfig, player: PolicyOrSchedule, seed: int
) -> dict[str, Any]:
    """What validation says of a policy or schedule, and beside it what the evaluation says."""
    models = models_of(config.models)
    found: dict[str, Any] = {}
    # first the training side, which chooses; then, on other noise, the evaluation
    for side, data, start in (("", models.train, VALIDATION_SEED), ("heldout_", models.heldout, EVALUATION_SEED)):
        labels, noise = draw_initial_noise(models.backbone, data, config.images, start + seed)
        images = rollout(models.backbone, guidance, labels, noise, player, scorer=models.reward).images
        if side:
            judged = evaluate_samples(images, labels, models.evaluation_classifier, models.heldout)
            found |= {f"{side}{key}": judged[key] for key in ("energy", "fd", "accuracy")}
            continue
        network = validator(folder)
        features, real = image_features(network, images), half(config.models, "second")
        known = validation_features(config.models, folder)
        found["validation"] = class_energy_distance(features, labels, known, real.labels)
        found["accuracy"] = accuracy(network, images, labels)
    return found


def measure_constant(config: FeaturesStudyConfig, folder: Path, g: float) -> dict[str, Any]:
    """A constant in the features of every candidate, and validated."""
    models = models_of(config.models)
    guidance = config.guidance(g)
    labels, noise = draw_initial_noise(models.backbone, models.train, config.images, SWEEP_SEED)
    images = rollout(models.backbone, guidance, labels, noise, g).images
    distances = {text: term(config.models, config.reward(text)).distance(images, labels) for text in config.candidates}
    return {"distances": distances, **measure(config, folder, guidance, g, 0)}


def base_scale(config: FeaturesStudyConfig, folder: Path, features: str) -> float:
    """The constant that is nearest in these features."""
    return min(config.constants, key=lambda g: float(cell_result(folder, f"constant-{g:g}")["distances"][features]))


def train(config: FeaturesStudyConfig, folder: Path, features: str, seed: int) -> dict[str, Any]:
    """One policy trained pathwise in these features, and its validation."""
    models = models_of(config.models)
    raw = config.guidance(base_scale(config, folder, features))
    guidance, reward = calibrate(raw, config.reward(features), models.backbone, models.reward, models.train)
    policy = build_policy(config.policy, n_features=guidance.n_state, seed=seed)
    function = Reward.from_config(reward, models.reward, models.train)
    log = train_pathwise(models.backbone, function, guidance, policy, config.pathwise.replace(seed=seed))
    measured = measure(config, folder, guidance, policy, seed)
    return {"g0": guidance.g0, "return": log[-1]["charts/episodic_return"], **measured}


QUICK = FeaturesStudyConfig(
    candidates=("classifier", "pixels"),
    constants=(1.0, 1.2, 1.5),
    pathwise=PathwiseConfig(num_iterations=8, num_images=80, learning_rate_head=3e-2),
    validation_steps=200,
    images=240,
    seeds=2,
)

STUDY = Study(
    name="features",
    title="Features of the distribution term, chosen by validation",
    summary="choose what the distribution term compares images in, by validation on the training side",
    config=FeaturesStudyConfig,
    cells=cells,
    run=run_cell,
    page=page,
    quick=QUICK,
    check=check,
    no_flags=("pathwise.seed", "models.reference_images"),
    flag_prefixes={"pathwise": "pathwise", "policy": "policy"},
)
