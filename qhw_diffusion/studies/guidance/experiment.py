"""The guidance study: constants are swept, schedules tuned, policies trained, and all evaluated on the same seeds.

    sweep           one constant guidance scale, on the reward side
    tuning          one candidate of a schedule, on the reward side
    calibration     state normalisation and reward scale, the same for all policies
    choice          per schedule the candidate that is nearest on the reward side
    free            a free schedule, trained pathwise on the reward side: of all images, and of every class
    training        one training by PPO or pathwise, a run folder trainings/<policy>-seed<k>
    evaluation      one policy or schedule on the images of one seed
    oracle          a free schedule and a policy trained on what the evaluation measures
    headroom        best constant, schedule and policy of an oracle on the images of one seed
    floor           real training images in the place of generated ones

Everything that is chosen is chosen on the reward side (reward classifier, training images); the evaluation classifier
only measures. Evaluation and sweep seeds are far apart, so nothing is chosen on the images it is judged by. The one
exception are the oracles, which say what there is to win; only cells of the part headroom read them.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.checkpoints import write_tensors
from qhw_diffusion.config import Config, check_whole, require
from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import real_floor
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.experiment import Cell, Study, cell_result
from qhw_diffusion.guidance import (
    FreeSchedule,
    GuidanceConfig,
    PathwiseConfig,
    Policy,
    PolicyConfig,
    PolicyOrSchedule,
    PPOConfig,
    Reward,
    RewardConfig,
    Rollout,
    Sweep,
    SweepRow,
    build_policy,
    calibrate,
    check_training,
    diagnose,
    load_policy,
    load_policy_model,
    rollout,
    save_policy_model,
    train_guidance,
    train_pathwise,
)
from qhw_diffusion.guidance.config import BUILT_IN_SCORER, ModelConfig, check_apart, check_scorer_text
from qhw_diffusion.guidance.evaluation import (
    EVALUATION_SEED,
    Models,
    NoImages,
    compares,
    draw_initial_noise,
    load_models,
    sample_and_measure,
    trajectory,
)
from qhw_diffusion.guidance.headroom import ORACLES, oracle_reward, train_oracle
from qhw_diffusion.guidance.schedules import SCHEDULES, schedule
from qhw_diffusion.guidance.scorers import Scorer, scorer_name
from qhw_diffusion.guidance.search import greedy_search
from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies.guidance.numbers import samples_file
from qhw_diffusion.studies.guidance.page import page
from qhw_diffusion.studies.guidance.words import PATHWISE, PRIMARY, SCHEDULE_LABELS, kind_of, label_of

SWEEP_SEED, FREE_SEED = 2_000_000, 3_000_000
FREE_SCHEDULES = ("free_schedule", "class_schedule")
SEARCH = "greedy_search"
COMPETITORS = (*(name for name in SCHEDULES if name != "constant"), *FREE_SCHEDULES, SEARCH)
KEPT_IMAGES, KEPT_TRAJECTORIES = 40, 128
CURVES = ("charts/episodic_return", "gradients/circuit", "charts/delta_g_abs", "losses/entropy")
# network evaluations (an image through the network once), for the time left: of the digits' U-Net, of a pipeline's
EVALUATIONS_A_SECOND, OF_A_PIPELINE = 2500, 600
BACKWARD = 3  # a gradient costs so many evaluations
BASES = ("best", "middle")

# The standard line-up: name → what differs from the study's policy; their labels are in words.py. Each of them also
# exists as NAME_pathwise, trained by the exact gradient instead of PPO.
KINDS: dict[str, dict[str, Any]] = {
    "quantum": {"kind": "quantum", "engine": "noisy"},
    "quantum_ideal": {"kind": "quantum", "engine": "ideal"},
    "chain": {"kind": "quantum", "engine": "noisy", "entanglement": "chain"},
    "reuploading": {"kind": "quantum", "engine": "noisy", "reuploading": True},
    "unentangled": {"kind": "unentangled", "engine": "noisy"},
    "frozen": {"kind": "frozen", "engine": "noisy"},
    "matched": {"kind": "matched"},
    "mlp": {"kind": "mlp"},
    "annealing": {"kind": "annealing"},
}
POLICIES: tuple[str, ...] = (*KINDS, *(f"{name}{PATHWISE}" for name in KINDS))


@dataclass(frozen=True)
class GuidanceStudyConfig(Config):
    """Sweep, trainings and evaluations, everything on the same seeds."""

    models: ModelConfig = field(default_factory=ModelConfig)
    """Data set, backbone and classifiers; or a pipeline, with images of its prompts and an evaluation classifier."""
    scorer: str = BUILT_IN_SCORER
    """What the state's confidence and the reward look through, and everything is chosen by: "classifier" (the reward
    classifier), or an own scorer with logits and features as module:name or file.py:name (needed for a pipeline)."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Circuit of the quantum policies."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Reward."""
    ppo: PPOConfig = field(default_factory=PPOConfig.short)
    """Training by PPO."""
    pathwise: PathwiseConfig = field(default_factory=PathwiseConfig)
    """Pathwise training, of policies named NAME_pathwise, of the free schedules and of the oracles."""
    oracle_iterations: int | None = None
    """Updates of an oracle's training; without it as many as a pathwise training has."""
    policies: tuple[str, ...] = ("quantum", "matched", "frozen")
    """Policies to train, from the line-up: quantum, quantum_ideal, chain, reuploading, unentangled, frozen, matched,
    mlp, annealing, trained by PPO; each with _pathwise at its end trained by the exact gradient."""
    schedules: tuple[str, ...] = COMPETITORS
    """What the policies are compared with, besides the best constant: linear_up, linear_down, cosine_up,
    limited_interval, clamped_linear and exponential (tuned), free_schedule and class_schedule (trained pathwise), and
    greedy_search."""
    n_steps: int = 6
    """Sampling steps; report them with every claim."""
    spacing: str = "leading"
    """Spacing of the timesteps: "leading", "trailing", "linspace", or "scheduler" (a pipeline's own)."""
    confidence_entry: bool = True
    """The scorer's confidence as sixth state entry. Without it the policies decode no image before the last step, and
    need no scorer where they are used."""
    extra_state: bool = False
    """Seventh state entry, ‖ε_c − ε_∅‖/√d (the annealing policy always has it)."""
    seeds: int = 5
    """Seeds: seed k is one training of every policy and one evaluation of all."""
    constants: tuple[float, ...] = (0.8, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0, 5.0)
    """Constant guidance scales to sweep."""
    sweep_images: int = 600
    """Images per constant in the sweep."""
    tune_images: int = 300
    """Images per candidate when a schedule's parameters are tuned."""
    tune_means: tuple[float, ...] = (1.0, 1.25)
    """Mean scales tried for every schedule, in units of the best constant."""
    search_factors: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 2.0)
    """Scales that the greedy search tries at every step, in units of the best constant."""
    eval_images: int = 597
    """Images per evaluation."""
    base: str = "best"
    """Base scale g0 of the policies: "best" is the best constant of the sweep; "middle" is the middle of the constants
    whose distance is within three times the best one's, so that there is something to learn before the best constant
    is even reached; the name of a tuned schedule that takes part: that schedule is what the policies correct, and where
    a free schedule starts. The schedules are tuned in any case."""
    action_limit: float = 2.0
    """Largest |ΔCFG|; the guidance range is the base scale ± this, not below 0."""
    noise_pool: int = 1000
    """Initial noise and labels a training draws its episodes from."""
    batch: int = 256
    """Images sampled at a time in sweep and evaluation (a matter of speed only)."""

    def __post_init__(self) -> None:
        for name in self.policies:
            if name not in POLICIES:
                raise UnknownNameError.of("policy", name, POLICIES)
        require(len(set(self.policies)) == len(self.policies), f"policies named twice: {', '.join(self.policies)}")
        for name in self.schedules:
            if name not in COMPETITORS:
                raise UnknownNameError.of("schedule", name, COMPETITORS)
        require(len(set(self.schedules)) == len(self.schedules), f"schedules named twice: {', '.join(self.schedules)}")
        check_scorer_text(self.scorer)
        check_apart(self.models, self.reward)
        require(self.seeds >= 1, f"seeds must be at least 1, got {self.seeds}")
        GuidanceConfig(n_steps=self.n_steps, spacing=self.spacing)  # refuses what no sampler takes
        self.ppo.check_minibatches(self.ppo.num_steps or self.n_steps)
        require(
            len(self.search_factors) >= 1 and all(math.isfinite(f) and f >= 0 for f in self.search_factors),
            f"search_factors must be one or more finite numbers ≥ 0, got {self.search_factors}",
        )
        require(self.batch >= 1, f"batch must be at least 1, got {self.batch}")
        if self.oracle_iterations is not None:
            check_whole(self, "oracle_iterations")
        for name in ("sweep_images", "tune_images", "eval_images"):
            require(getattr(self, name) >= 20, f"{name} must be at least 20, got {getattr(self, name)}")
        require(
            len(self.constants) >= 2 and all(math.isfinite(g) and g >= 0 for g in self.constants),
            f"constants must be two or more finite scales ≥ 0, got {self.constants}",
        )
        if self.base not in (*BASES, *self.shapes):
            raise UnknownNameError.of("base", self.base, (*BASES, *self.shapes))
        require(
            len(self.tune_means) >= 1 and all(math.isfinite(m) and m > 0 for m in self.tune_means),
            f"tune_means must be positive, got {self.tune_means}",
        )
        object.__setattr__(self, "constants", tuple(sorted(set(self.constants))))

    @property
    def shapes(self) -> dict[str, list[dict[str, float]]]:
        """The shapes to try of each tuned schedule that takes part."""
        return {name: shapes for name, shapes in SHAPES.items() if name in self.schedules}

    def policy_config(self, name: str) -> PolicyConfig:
        """Settings of one policy of the line-up."""
        return self.policy.replace(**KINDS[kind_of(name)])

    def method_config(self, name: str) -> PPOConfig | PathwiseConfig:
        """Settings of the training of one policy of the line-up."""
        return self.pathwise if name.endswith(PATHWISE) else self.ppo

    @property
    def main(self) -> str | None:
        """The quantum policy that the page is about: trained by PPO, else pathwise; None where neither takes part."""
        return next((name for name in ("quantum", f"quantum{PATHWISE}") if name in self.policies), None)

    def evaluated(self) -> tuple[str, ...]:
        """Everything that is evaluated on every seed: schedules, policies, and the quantum policy's other variants.

        `quantum@ideal` is the policy trained under noise, run without; `quantum@untrained` the same policy before
        training.
        """
        variants = (f"{self.main}@ideal", f"{self.main}@untrained") if self.main else ()
        return ("constant", *self.schedules, *self.policies, *variants)


SHAPES: dict[str, list[dict[str, float]]] = {
    "linear_up": [{"slope": 0.3}, {"slope": 0.7}],
    "linear_down": [{"slope": 0.3}, {"slope": 0.7}],
    "cosine_up": [{"slope": 0.3}, {"slope": 0.7}],
    "limited_interval": [{"lo": 0.0, "hi": 0.7}, {"lo": 0.2, "hi": 0.8}, {"lo": 0.3, "hi": 1.0}],
    "clamped_linear": [{"floor": 0.3}, {"floor": 0.7}],
    "exponential": [{"rate": -0.5}, {"rate": 0.5}, {"rate": 1.0}],
}


@dataclass(frozen=True)
class Schedule:
    """One schedule with its parameters: `mean` scale over the steps and the shape."""

    name: str
    mean: float
    shape: dict[str, float] = field(default_factory=dict)

    def scales(self, n_steps: int) -> Tensor:
        """Guidance scales g [n_steps], noisiest step first."""
        return schedule(self.name, self.mean, n_steps, **self.shape)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def candidate(name: str, best_constant: float, factor: float, shape: dict[str, float]) -> Schedule:
    """A schedule to try: its mean is `factor` times the best constant.

    A limited interval is plain conditional sampling (g = 1) outside, so its mean is taken above 1, in units of the
    best constant's distance from 1.
    """
    mean = 1.0 + (best_constant - 1.0) * factor if name == "limited_interval" else best_constant * factor
    return Schedule(name, mean, shape)


def can_be_made(schedule: Schedule, n_steps: int) -> bool:
    """Whether a schedule exists at this number of steps."""
    try:
        schedule.scales(n_steps)
    except InvalidInputError:
        return False
    return True


def seconds_of(config: GuidanceStudyConfig, images: int) -> float:
    """About how long so many images take: two network evaluations an image and step, with the label and without."""
    rate = EVALUATIONS_A_SECOND if config.models.pipeline is None else OF_A_PIPELINE
    return images * 2 * config.n_steps / rate


def sweep_cells(config: GuidanceStudyConfig, ending: str = "") -> list[Cell]:
    """One cell a constant; `ending` of their names, as in all that reads them."""
    seconds = seconds_of(config, config.sweep_images)
    return [
        Cell(
            f"constant-{g:g}{ending}",
            {"part": "sweep", "schedule": "constant", "g": g},
            (),
            seconds,
            f"constant g = {g:g}",
        )
        for g in config.constants
    ]


def tuning_cells(config: GuidanceStudyConfig, ending: str = "") -> list[Cell]:
    """One cell a candidate of a schedule."""
    sweep, seconds = tuple(cell.name for cell in sweep_cells(config, ending)), seconds_of(config, config.tune_images)
    found = []
    for name, shapes in config.shapes.items():
        for factor in config.tune_means:
            for index, shape in enumerate(shapes):
                parameters = {"part": "tuning", "schedule": name, "mean_factor": factor, "shape": index}
                told = ", ".join(f"{key} {value:g}" for key, value in shape.items())
                label = f"{SCHEDULE_LABELS[name]}, mean × {factor:g}, {told}"
                found.append(Cell(f"{name}-{factor:g}-{index}{ending}", parameters, sweep, seconds, label))
    return found


def cells(config: GuidanceStudyConfig) -> list[Cell]:
    """All cells."""
    found = [Cell("floor", {"part": "floor"}, seconds=2, label="real training images"), *sweep_cells(config)]
    sweep = tuple(cell.name for cell in sweep_cells(config))
    tuned = [cell.name for cell in tuning_cells(config)]
    before = (*sweep, *tuned) if config.base in config.shapes else sweep
    found.append(Cell("calibration", {"part": "calibration"}, before, seconds_of(config, config.tune_images)))
    found += tuning_cells(config)
    found.append(Cell("choice", {"part": "choice"}, (*sweep, *tuned), 0.1))
    pathwise = BACKWARD * seconds_of(config, config.pathwise.num_iterations * config.pathwise.num_images)
    parameters: dict[str, Any]
    for name in (name for name in FREE_SCHEDULES if name in config.schedules):
        parameters = {"part": "free", "schedule": name}
        found.append(Cell(name, parameters, ("calibration",), pathwise, f"training {label_of(name)}"))
    for what in ORACLES:
        label = f"training {label_of(f'oracle_{what}')}"
        cost = pathwise * (config.oracle_iterations or config.pathwise.num_iterations) / config.pathwise.num_iterations
        found.append(Cell(f"oracle-{what}", {"part": "oracle", "oracle": what}, ("calibration",), cost, label))
    for seed in range(config.seeds):
        for policy in config.policies:
            parameters = {"part": "training", "policy": policy, "seed": seed}
            cost = seconds_of(config, config.ppo.num_iterations * config.ppo.num_envs)
            cost = pathwise if policy.endswith(PATHWISE) else cost
            label = f"training {label_of(policy)}, seed {seed}"
            found.append(Cell(f"training-{policy}-seed{seed}", parameters, ("calibration",), cost, label))
    for seed in range(config.seeds):  # seed by seed: what all share is then made once a process
        for name in config.evaluated():
            trained = name in config.policies or name.endswith("@ideal")
            needs = (f"training-{name.partition('@')[0]}-seed{seed}",) if trained else ()
            needs = (name,) if name in FREE_SCHEDULES else needs
            parameters = {"part": "evaluation", "policy": name, "seed": seed}
            label = f"evaluation {label_of(name)}, seed {seed}"
            needs = ("choice", "calibration", *needs)
            found.append(
                Cell(f"evaluation-{name}-seed{seed}", parameters, needs, seconds_of(config, config.eval_images), label)
            )
        for what in ("constant", *ORACLES):
            before = ("choice", "calibration", *([f"oracle-{what}"] if what in ORACLES else []))
            parameters = {"part": "headroom", "oracle": what, "seed": seed}
            label = f"evaluation {label_of(f'oracle_{what}')}, seed {seed}"
            found.append(
                Cell(f"headroom-{what}-seed{seed}", parameters, before, seconds_of(config, config.eval_images), label)
            )
    return found


def run_cell(config: GuidanceStudyConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Do one cell (see the top of this file)."""
    part = cell["part"]
    if part == "sweep":
        return measure_schedule(config, Schedule("constant", cell["g"]), config.sweep_images, judged=True)
    if part == "tuning":
        return try_candidate(config, cell, best_constant(config, folder))
    if part == "calibration":
        return calibrate_study(config, base_scale(config, folder), base_schedule(config, folder))
    if part == "choice":
        return {"schedules": {name: s.to_dict() for name, s in choose_schedules(config, folder).items()}}
    if part == "free":
        return train_free_schedule(config, folder, cell["schedule"])
    if part == "oracle":
        return train_an_oracle(config, folder, cell["oracle"])
    if part == "headroom":
        return evaluate_oracle(config, folder, cell["oracle"], cell["seed"])
    if part == "training":
        return train(config, folder, cell["policy"], cell["seed"])
    if part == "evaluation":
        return evaluate(config, folder, cell["policy"], cell["seed"])
    return measure_floor(config)


def check(config: GuidanceStudyConfig) -> None:
    """Raises what loading the models or building a training raises."""
    models = load_models(config.models)
    if isinstance(models.train, NoImages):
        _ = models.train.images  # refuses
    for role, looks in (("scorer", scorer_for(config)), ("evaluation classifier", models.evaluation_classifier)):
        require(
            compares(looks),
            f"{role} {scorer_name(looks)!r} cannot compare images, as the study does: it needs features(images) -> "
            "[B, F], logits(images) -> [B, K], image_shape and n_classes",
        )
    for name in config.policies:
        policy = config.policy_config(name)
        check_training(
            sampling_config(config, config.constants[0], annealing=kind_of(name) == "annealing"),
            config.method_config(name),
            config.reward,
            policy,
            backbone=models.backbone,
            scorer=passed_scorer(config),
            real=models.train,
            device=device_of(policy.device) if policy.uses_circuit else None,
        )


def share_done(config: GuidanceStudyConfig, cell: Cell, folder: Path) -> float:
    """Updates of a running training that are done."""
    if cell["part"] != "training":
        return 0.0
    log = training_folder(folder, cell["policy"], cell["seed"]) / "metrics.jsonl"
    iterations = config.method_config(cell["policy"]).num_iterations
    return min(1.0, log.read_bytes().count(b"\n") / iterations) if log.exists() else 0.0


@lru_cache(maxsize=1)
def models_of(config: ModelConfig) -> Models:
    """Backbone, classifiers and images, loaded once per process."""
    return load_models(config)


@lru_cache(maxsize=1)
def _scorer_for(models: ModelConfig, scorer: str) -> Scorer:
    return models_of(models).scorer(scorer)


def scorer_for(config: GuidanceStudyConfig) -> Scorer:
    """What rewards and choices look through, for the labels of the study's model; loaded once per process."""
    return _scorer_for(config.models, config.scorer)


def passed_scorer(config: GuidanceStudyConfig) -> Scorer | None:
    """The reward classifier, which trainings are handed; None where they load a scorer by its name."""
    return scorer_for(config) if config.scorer == BUILT_IN_SCORER else None


@lru_cache(maxsize=4)
def device_of(name: str) -> Device:
    """A device, loaded once per process."""
    return Device.load(name)


def sampling_config(
    config: GuidanceStudyConfig, g0: float, schedule: tuple[float, ...] = (), *, annealing: bool = False
) -> GuidanceConfig:
    """Sampler and guidance range around the base scale g0, or a schedule; annealing: with the seventh state entry."""
    limit = config.action_limit
    return GuidanceConfig(
        dataset=config.models.pipeline or config.models.data,
        n_steps=config.n_steps,
        spacing=config.spacing,
        **GuidanceConfig.around(g0, limit, schedule),
        base_schedule=schedule,
        extra_state=config.extra_state or annealing,
        confidence_entry=config.confidence_entry,
        scorer=config.scorer,
        noise_pool=config.noise_pool,
    )


def measure_schedule(config: GuidanceStudyConfig, tried: Schedule, n_images: int, *, judged: bool) -> dict[str, Any]:
    """Reward-side numbers of a schedule on the sweep's initial noise.

    With `judged` those of the evaluation classifier are kept beside them: they are drawn and choose nothing.
    """
    models = models_of(config.models)
    labels, noise = draw_initial_noise(models.backbone, models.train, n_images, SWEEP_SEED)
    sampled = sample_and_measure(
        models,
        sampling_config(config, 1.0),
        tried.scales(config.n_steps),
        labels,
        noise,
        reward=config.reward,
        judged=judged,
        batch=config.batch,
    )
    found = {f"reward_{key}": value for key, value in sampled.reward_side.items()}
    return {"tried": tried.to_dict(), **found, **(sampled.judged or {})}


def try_candidate(config: GuidanceStudyConfig, cell: Cell, best: float) -> dict[str, Any]:
    """Reward-side numbers of a tuning cell's schedule, where one can be made around the best constant."""
    tried = candidate(cell["schedule"], best, cell["mean_factor"], SHAPES[cell["schedule"]][cell["shape"]])
    if not can_be_made(tried, config.n_steps):
        return {"tried": None}
    return measure_schedule(config, tried, config.tune_images, judged=False)


def best_constant(config: GuidanceStudyConfig, folder: Path, ending: str = "") -> float:
    """The swept constant with the lowest distance on the reward side (the one the policies' reward lowers)."""
    return min(config.constants, key=lambda g: float(cell_result(folder, f"constant-{g:g}{ending}")["reward_distance"]))


def base_scale(config: GuidanceStudyConfig, folder: Path) -> float:
    """g0 of the policies (`GuidanceStudyConfig.base`), from the sweep."""
    best = best_constant(config, folder)
    if config.base != "middle":
        return best
    found = [(g, cell_result(folder, f"constant-{g:g}")) for g in config.constants]
    rows = tuple(SweepRow(g, r["reward_distance"], r["reward_fd"], r["reward_accuracy"]) for g, r in found)
    low, high = Sweep(rows, best, 0.0, 0.0, config.n_steps, config.sweep_images, config.spacing).sensible()
    return round((low + high) / 2, 3)


def base_schedule(config: GuidanceStudyConfig, folder: Path) -> tuple[float, ...]:
    """Scales of the tuned schedule that the policies correct; empty where their base is a constant."""
    if config.base not in config.shapes:
        return ()
    chosen = choose_schedules(config, folder)[config.base]
    return tuple(round(float(g), 6) for g in chosen.scales(config.n_steps))


def choose_schedules(config: GuidanceStudyConfig, folder: Path, ending: str = "") -> dict[str, Schedule]:
    """Per schedule the candidate with the lowest distance on the reward side.

    Raises:
        InvalidInputError: a schedule none of whose candidates can be made.
    """
    best = best_constant(config, folder, ending)
    chosen = {"constant": Schedule("constant", best)}
    for name, shapes in config.shapes.items():
        names = [f"{name}-{factor:g}-{i}{ending}" for factor in config.tune_means for i in range(len(shapes))]
        tried = [result for key in names if (result := cell_result(folder, key))["tried"] is not None]
        require(
            bool(tried),
            f"with {config.n_steps} steps and a best constant of {best:g} no schedule of kind {name} can be made; use "
            "more steps or other tune_means",
        )
        chosen[name] = Schedule(**min(tried, key=lambda result: float(result["reward_distance"]))["tried"])
    return chosen


def calibrate_study(config: GuidanceStudyConfig, g0: float, schedule: tuple[float, ...] = ()) -> dict[str, Any]:
    """State normalisation (six entries, and seven for the annealing baseline) and the reward's offset and scale."""
    models = models_of(config.models)
    six = sampling_config(config, g0, schedule)
    scorer = scorer_for(config)
    guidance, reward = calibrate(six, config.reward, models.backbone, scorer, models.train)
    result: dict[str, Any] = {"guidance": guidance.to_dict(), "reward": reward.to_dict()}
    result["captions"] = [str(c) for c in getattr(models.backbone, "prompts", range(models.backbone.n_classes))]
    if any(kind_of(name) == "annealing" for name in config.policies):
        seven = sampling_config(config, g0, schedule, annealing=True)
        result["guidance_extra"] = calibrate(seven, reward, models.backbone, scorer, models.train)[0].to_dict()
    return result


def measure_floor(config: GuidanceStudyConfig) -> dict[str, Any]:
    """Every judged metric for real training images instead of generated ones, one choice of images per seed."""
    models = models_of(config.models)
    n = min(config.eval_images, len(models.train))
    sides = models.evaluation_classifier, models.train, models.heldout
    rows = [
        {"seed": k, **real_floor(*sides, n, seed=k, heldout_features=models.heldout_features)}
        for k in range(config.seeds)
    ]
    return {"images": n, "rows": rows}


def calibrated(folder: Path, policy: str = "") -> tuple[GuidanceConfig, RewardConfig]:
    """The study's calibrated configurations for one policy."""
    saved = cell_result(folder, "calibration")
    part = "guidance_extra" if policy and kind_of(policy) == "annealing" else "guidance"
    return GuidanceConfig.from_dict(saved[part]), RewardConfig.from_dict(saved["reward"])


@lru_cache(maxsize=2)
def reward_of(models: ModelConfig, scorer: str, reward: RewardConfig) -> Reward:
    """The reward, which embeds all training images, made once per process."""
    return Reward.from_config(reward, _scorer_for(models, scorer), models_of(models).train)


def train_free_schedule(config: GuidanceStudyConfig, folder: Path, name: str) -> dict[str, Any]:
    """A free schedule trained pathwise from the best constant, or the base schedule, by the reward of the policies."""
    models = models_of(config.models)
    guidance, reward = calibrated(folder)
    classes = models.backbone.n_classes if name == "class_schedule" else None
    start = guidance.base_scales(guidance.n_steps) if guidance.base_schedule else best_constant(config, folder)
    free = FreeSchedule(guidance.n_steps, start, classes)
    settings = config.pathwise.replace(seed=FREE_SEED)
    log = train_pathwise(models.backbone, reward_of(config.models, config.scorer, reward), guidance, free, settings)
    return {"g": free.g.tolist(), "return": log[-1]["charts/episodic_return"]}


def free_scales(folder: Path, name: str, labels: Tensor) -> Tensor:
    """Scales [T, B] of a trained free schedule for labels int64 [B]."""
    g = torch.tensor(cell_result(folder, name)["g"])
    return g[labels].T if g.ndim == 2 else g


def train_an_oracle(config: GuidanceStudyConfig, folder: Path, what: str) -> dict[str, Any]:
    """The oracle's schedule or policy: trained on what the evaluation measures, to tell what there is to win."""
    models = models_of(config.models)
    guidance, _ = calibrated(folder)
    start = guidance.replace(g0=min(max(oracle_constant(config, folder), guidance.g_min), guidance.g_max))
    reward = oracle_reward(models.backbone, start, scorer_for(config), models.evaluation_classifier, models.heldout)
    iterations = config.oracle_iterations or config.pathwise.num_iterations
    settings = config.pathwise.replace(seed=FREE_SEED, num_iterations=iterations)
    oracle = train_oracle(what, models.backbone, start, reward, settings)
    if isinstance(oracle, FreeSchedule):
        return {"g0": start.g0, "g": oracle.g.tolist()}
    save_policy_model(oracle, folder / "oracle")
    return {"g0": start.g0}


def oracle_constant(config: GuidanceStudyConfig, folder: Path, ending: str = "") -> float:
    """The swept constant that the evaluation classifier finds nearest; no policy or schedule ever starts there."""
    return min(config.constants, key=lambda g: float(cell_result(folder, f"constant-{g:g}{ending}")[PRIMARY]))


def evaluate_oracle(config: GuidanceStudyConfig, folder: Path, what: str, seed: int) -> dict[str, Any]:
    """The best constant, the schedule or the policy of the oracle on one evaluation seed."""
    models = models_of(config.models)
    guidance, reward = calibrated(folder)
    player: PolicyOrSchedule = oracle_constant(config, folder)
    if what in ORACLES:
        made = cell_result(folder, f"oracle-{what}")
        guidance = guidance.replace(g0=made["g0"])
        player = torch.tensor(made["g"]) if "g" in made else load_policy_model(folder / "oracle")
    labels, noise = draw_initial_noise(models.backbone, models.heldout, config.eval_images, EVALUATION_SEED + seed)
    sampled = sample_and_measure(models, guidance, player, labels, noise, reward=reward, batch=config.batch)
    assert sampled.judged is not None
    return {**sampled.judged, **trajectory(sampled.rollout)}


def training_folder(folder: Path, policy: str, seed: int) -> Path:
    """Run folder of one training."""
    return folder / "trainings" / f"{policy}-seed{seed}"


def train(config: GuidanceStudyConfig, folder: Path, policy: str, seed: int) -> dict[str, Any]:
    """One training in its run folder; an unfinished one goes on from its checkpoint. KeyboardInterrupt on Ctrl-C."""
    method = config.method_config(policy).replace(seed=seed)
    models = models_of(config.models)
    guidance, reward = calibrated(folder, policy)
    path = training_folder(folder, policy, seed)
    resume = path.exists() and RunFolder.open(path, kind="guidance").has_checkpoint
    if path.exists() and not resume:
        shutil.rmtree(path)  # stopped before its first checkpoint: nothing in it to keep
    settings = config.policy_config(policy)
    trained = train_guidance(
        guidance,
        method,
        reward,
        settings,
        path=path,
        command=f"study guidance: {policy}, seed {seed}",
        resume=resume,
        backbone=models.backbone,
        scorer=passed_scorer(config),
        real=models.train,
        device=device_of(settings.device) if settings.uses_circuit else None,
    )
    if len(trained.history) < method.num_iterations:
        raise KeyboardInterrupt
    log = RunFolder.open(path, kind="guidance").metrics()
    curves = {key: [float(row[key]) for row in log] for key in CURVES if key in log[0]}
    findings = json.loads((path / "findings.json").read_text(encoding="utf-8"))
    return {"updates": len(log), "curves": curves, "findings": findings}


def load_trained(
    config: GuidanceStudyConfig, folder: Path, policy: str, seed: int, *, engine: str | None = None
) -> Policy:
    """A trained policy of the study, a quantum one on another engine if asked."""
    settings = config.policy_config(policy)
    device = device_of(settings.device) if settings.uses_circuit else None
    return load_policy(training_folder(folder, policy, seed), device=device, engine=engine).policy


@lru_cache(maxsize=2)
def base_scale_images(config: GuidanceStudyConfig, folder: Path, seed: int) -> Rollout:
    """What the base scale makes of one evaluation seed's initial noise: rewards are gains over it."""
    models = models_of(config.models)
    guidance, _ = calibrated(folder)
    labels, noise = draw_initial_noise(models.backbone, models.heldout, config.eval_images, EVALUATION_SEED + seed)
    return rollout(models.backbone, guidance, labels, noise, None, batch=config.batch)


def evaluate(config: GuidanceStudyConfig, folder: Path, policy: str, seed: int) -> dict[str, Any]:
    """One policy or schedule on one evaluation seed: both sides' numbers, guidance scales, some images."""
    models = models_of(config.models)
    name, _, variant = policy.partition("@")
    guidance, reward = calibrated(folder, name)
    labels, noise = draw_initial_noise(models.backbone, models.heldout, config.eval_images, EVALUATION_SEED + seed)
    started = time.perf_counter()
    player: PolicyOrSchedule
    looked = 0  # images that the scorer looked at, for each image made
    if name in SCHEDULES:
        player = Schedule(**cell_result(folder, "choice")["schedules"][name]).scales(config.n_steps)
    elif name in FREE_SCHEDULES:
        player = free_scales(folder, name, labels)
    elif name == SEARCH:
        scales = [factor * best_constant(config, folder) for factor in config.search_factors]
        looks = scorer_for(config)
        search = greedy_search(models.backbone, guidance, labels, noise, looks, scales, batch=config.batch)
        player, looked = search.g, search.scorer_evaluations
    elif variant == "untrained":
        settings = config.policy_config(name)
        player = build_policy(settings, n_features=guidance.n_state, seed=seed, device=device_of(settings.device))
    else:
        player = load_trained(config, folder, name, seed, engine=variant or None)
    if isinstance(player, Policy):
        looked = config.n_steps * config.confidence_entry  # the confidence in its state
    base = base_scale_images(config, folder, seed)
    sampled = sample_and_measure(
        models, guidance, player, labels, noise, reward=reward, reference=base.images, batch=config.batch
    )
    seconds = time.perf_counter() - started
    played = sampled.rollout
    free = torch.tensor(cell_result(folder, name)["g"]).numel() if name in FREE_SCHEDULES else 0
    parameters = player.parameter_counts() if isinstance(player, Policy) else {"total": free}
    findings = []
    if isinstance(player, Policy) and variant != "untrained":
        found = diagnose(
            (),
            [played],
            evaluation_classifier=models.evaluation_classifier,
            reward_classifier=scorer_for(config),
            baseline=[base],
        )
        findings = [finding.to_dict() for finding in found]
    kept = {
        "images": ((played.images[:KEPT_IMAGES] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8),
        "labels": labels[:KEPT_IMAGES],
        "g": played.g[:, :KEPT_TRAJECTORIES].contiguous(),
        "g_labels": labels[:KEPT_TRAJECTORIES],
    }
    write_tensors(samples_file(folder, policy, seed), kept, {"policy": policy}, kind="samples")
    assert sampled.judged is not None
    return {
        **sampled.judged,
        "return": sampled.reward_side["return"],
        **{f"reward_{key}": value for key, value in sampled.reward_side.items() if key != "return"},
        "circuits": played.circuits,
        "circuits_per_image": played.circuits / config.eval_images,
        "scorer_evaluations_per_image": looked,
        "n_parameters": parameters["total"],
        "n_circuit_parameters": parameters.get("circuit", 0),
        "seconds": seconds,
        "findings": findings,
        **trajectory(played),
    }


QUICK = GuidanceStudyConfig(
    seeds=2,
    constants=(0.8, 1.0, 1.2, 1.5, 2.0, 3.0),
    sweep_images=240,
    tune_images=120,
    tune_means=(1.0,),
    eval_images=240,
    noise_pool=300,
    base="middle",
    ppo=PPOConfig.short(num_iterations=12, num_envs=96),
    pathwise=PathwiseConfig(num_iterations=8, num_images=80, learning_rate_head=3e-2, learning_rate_schedule=3e-2),
)

_TEXT = "qhw_diffusion.diffusion.text_to_image"
COLOURED_DIGITS = ModelConfig(
    data=f"{_TEXT}:coloured_digits",
    pipeline="coloured-digits",
    prompts=f"{_TEXT}.prompts:TEN",
    pipeline_batch=32,
    evaluation_classifier=f"{_TEXT}.scorers:evaluation",
)

# The demo: the embedded text-to-image pipeline, everybody trained by the exact gradient. The policies look at the
# latents alone (no image is decoded before the last step), so that several seeds take minutes; the seventh entry, how
# much the prompt changes the prediction, tells them of the prompt.
DEMO = GuidanceStudyConfig(
    models=COLOURED_DIGITS,
    scorer=f"{_TEXT}.scorers:reward",
    reward=RewardConfig(action_penalty=0.0),
    pathwise=PathwiseConfig(num_iterations=25, num_images=32, learning_rate_schedule=5e-2),
    policies=("quantum_pathwise", "matched_pathwise", "frozen_pathwise"),
    schedules=("free_schedule",),
    n_steps=5,
    spacing="scheduler",
    confidence_entry=False,
    extra_state=True,
    seeds=3,
    constants=(1.0, 1.15, 1.3, 1.5, 2.0, 3.0),
    sweep_images=200,
    tune_images=200,
    eval_images=300,
)
DEMO_QUICK = DEMO.replace(
    pathwise=PathwiseConfig(num_iterations=5, num_images=20, learning_rate_head=5e-2, learning_rate_schedule=1e-1),
    schedules=("free_schedule",),
    n_steps=4,
    seeds=2,
    constants=(1.0, 1.5, 2.0),
    sweep_images=60,
    tune_images=60,
    eval_images=60,
)

STUDY = Study(
    name="guidance",
    title="Policies of classifier-free guidance",
    summary="compare policies and schedules over seeds",
    config=GuidanceStudyConfig,
    cells=cells,
    run=run_cell,
    page=page,
    quick=QUICK,
    demo=DEMO,
    demo_quick=DEMO_QUICK,
    check=check,
    share_done=share_done,
    no_flags=("policy.kind", "policy.engine", "ppo.seed", "pathwise.seed"),
    flag_prefixes={"reward": "reward", "pathwise": "pathwise"},
)
