"""The schedules study: one table of policies and schedules at several numbers of sampling steps.

Policies, free schedules and oracles are trained at one number of steps, `train_steps`, by the cells of the guidance
study (sweep, tuning, calibration, choice, free, training, oracle; see there), and played at every number in `steps`:

    sweep, tuning, choice   constants and schedules at the other numbers of steps named in `tuned`, on the reward side
    inception               held-out images in Inception's features, where its weights are given
    floor                   real training images in the place of generated ones
    evaluation              one row of the table on the images of one seed, at one number of steps

The numbers of steps are done one after the other, `train_steps` first, and within one row after row: a study that is
cut short has whole rows, and its page says what is missing. Evaluations never choose; what an oracle's rows do is said
in `guidance.headroom`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.checkpoints import read_tensors, write_tensors
from qhw_diffusion.config import Config, check_whole, require
from qhw_diffusion.diffusion import (
    Inception,
    Lpips,
    frechet_distance,
    kernel_distance,
    paired_similarity,
    sampler_of,
)
from qhw_diffusion.experiment import Cell, Study, cell_result
from qhw_diffusion.guidance import (
    GuidanceConfig,
    PathwiseConfig,
    Policy,
    PolicyOrSchedule,
    PPOConfig,
    load_policy_model,
)
from qhw_diffusion.guidance.evaluation import EVALUATION_SEED, draw_initial_noise, sample_and_measure, trajectory
from qhw_diffusion.guidance.headroom import ORACLES
from qhw_diffusion.guidance.schedules import SCHEDULES, resampled
from qhw_diffusion.guidance.search import greedy_search
from qhw_diffusion.studies.guidance import experiment as guidance_study
from qhw_diffusion.studies.guidance.experiment import (
    FREE_SCHEDULES,
    SEARCH,
    GuidanceStudyConfig,
    Schedule,
    best_constant,
    calibrated,
    choose_schedules,
    free_scales,
    load_trained,
    measure_floor,
    measure_schedule,
    models_of,
    oracle_constant,
    scorer_for,
    seconds_of,
    sweep_cells,
    try_candidate,
    tuning_cells,
)
from qhw_diffusion.studies.schedules.page import CONDITIONAL, FIXED, ORACLE_ROWS, PAIRED_WITH, page, row_label

CHOOSING, MAKING = ("sweep", "tuning", "calibration", "choice"), ("free", "training", "oracle")
"""Parts of the guidance study that choose, and those that make what is played."""


@dataclass(frozen=True)
class SchedulesStudyConfig(Config):
    """What is trained and tuned, at which numbers of steps it is played, and on how many images and seeds."""

    study: GuidanceStudyConfig = field(
        default_factory=lambda: GuidanceStudyConfig(
            policies=("quantum", "quantum_pathwise", "matched_pathwise", "frozen_pathwise", "annealing_pathwise"),
            schedules=("linear_up", "cosine_up", "limited_interval", "free_schedule", "greedy_search"),
            tune_means=(1.0,),
        )
    )
    """Models, line-up, reward and trainings: those of the guidance study."""
    train_steps: int = 10
    """Sampling steps of all trainings."""
    steps: tuple[int, ...] = (10, 50, 100, 250)
    """Sampling steps at which everything is played; `train_steps` is one of them, and comes first."""
    tuned: tuple[int, ...] = (10, 50)
    """Those at which constants are swept and schedules tuned; the others take over what was found at the next lower
    one of these."""
    images: tuple[int, ...] = (300, 200, 100, 100)
    """Images of an evaluation at each of `steps`; one number for all of them."""
    seeds: tuple[int, ...] = (5, 3, 3, 3)
    """Seeds at each of `steps`, or one number for all: seed k is the k-th training of every policy and the k-th draw of
    labels and noise."""
    fixed: float = 7.5
    """Constant guidance scale that takes part beside the best one, as pipelines have it by default."""
    search_steps: int = 50
    """Most sampling steps at which the greedy search is played: it decodes one image for every scale, step and
    image."""
    lpips_weights: str | None = None
    """Weights of the LPIPS network, a safetensors file of SqueezeNet 1.1 with trained weights; without it no LPIPS."""
    inception_weights: str | None = None
    """Weights of the published FID's network, pt_inception-2015-12-05-6726825d.pth; without it no Inception FID."""

    def __post_init__(self) -> None:
        check_whole(self, "train_steps", "search_steps")
        require(self.study.models.pipeline is None, "this study plays a backbone's own sampler, not a pipeline's: "
                "leave --pipeline out, or use qhw study guidance")  # fmt: skip
        require(
            len(self.steps) >= 1 and len(set(self.steps)) == len(self.steps) and min(self.steps) >= 1,
            f"steps must be different numbers from 1, got {self.steps}",
        )
        for name in ("train_steps", "tuned"):
            given = getattr(self, name)
            missing = [t for t in (given if name == "tuned" else (given,)) if t not in self.steps]
            require(not missing, f"{name} holds {missing}, which are not in steps {self.steps}: add them there")
        require(self.train_steps in self.tuned, f"tuned is {self.tuned}, must hold train_steps, {self.train_steps}")
        for name, least in (("images", 20), ("seeds", 1)):
            given = getattr(self, name)
            require(
                len(given) in (1, len(self.steps)) and min(given) >= least,
                f"{name} must be one number or {len(self.steps)}, one for each of steps {self.steps}, from {least} on; "
                f"got {given}",
            )
        require(math.isfinite(self.fixed) and self.fixed >= 0, f"fixed must be a finite scale ≥ 0, got {self.fixed}")
        for steps in self.steps:
            GuidanceConfig(n_steps=steps, spacing=self.study.spacing)
        study = self.study.replace(
            n_steps=self.train_steps, seeds=max(self.seeds), eval_images=max(self.images)
        )  # what the study says of its own
        object.__setattr__(self, "study", study)

    @property
    def ordered(self) -> tuple[int, ...]:
        """The numbers of steps in the order they are played in: what one takes over from a lower one is then there."""
        return (self.train_steps, *sorted(set(self.steps) - {self.train_steps}))

    def at(self, steps: int) -> GuidanceStudyConfig:
        """The guidance study's settings at a number of steps: its images and seeds."""
        place = self.steps.index(steps)
        images, seeds = (v[0] if len(v) == 1 else v[place] for v in (self.images, self.seeds))
        return self.study.replace(n_steps=steps, eval_images=images, seeds=seeds)

    def tuned_at(self, steps: int) -> int:
        """Where the constants and schedules that are played at a number of steps were found."""
        return max((t for t in self.tuned if t <= steps), default=self.train_steps)

    def ending(self, steps: int) -> str:
        """Ending of the names of sweep, tuning and choice at a number of steps."""
        return "" if steps == self.train_steps else f"-steps{steps}"

    def rows(self, steps: int) -> tuple[str, ...]:
        """Names of all that is played at a number of steps, the two that pairs are made with first."""
        schedules = [name for name in self.study.schedules if name != SEARCH or steps <= self.search_steps]
        return (*PAIRED_WITH, FIXED, *schedules, *self.study.policies, *ORACLE_ROWS)

    def work_order(self, steps: int) -> tuple[str, ...]:
        """The same in the order of the work, what says most first: a study that is cut short has these rows."""
        first = (*PAIRED_WITH, FIXED, *(name for name in self.study.schedules if name != SEARCH))
        rows = dict.fromkeys((*first, *self.study.policies[:2], *ORACLE_ROWS, *self.rows(steps)))
        return tuple(name for name in rows if name in self.rows(steps))


def evaluation_name(name: str, steps: int, seed: int) -> str:
    """Name of the cell of one row, number of steps and seed."""
    return f"evaluation-{name}-steps{steps}-seed{seed}"


def cells(config: SchedulesStudyConfig) -> list[Cell]:
    """All cells: one number of steps after the other, and within one, row after row (see `work_order`)."""
    found: list[Cell] = []
    before: tuple[str, ...] = ()  # all evaluations of the row before
    if config.inception_weights is not None:
        found.append(Cell("inception", {"part": "inception"}, seconds=1000, label="held-out images in Inception"))
        before = ("inception",)

    def add(cell: Cell, *needs: str) -> None:
        label = f"{cell.label or cell.name}, {steps} steps"
        needs = (*cell.needs, *before, *needs)
        found.append(replace(cell, parameters={**cell.parameters, "steps": steps}, needs=needs, label=label))

    for steps in config.ordered:
        at, ending = config.at(steps), config.ending(steps)
        add(Cell(f"floor-steps{steps}", {"part": "floor"}, seconds=2.0, label="real images"))
        made: dict[str, list[Cell]] = {}  # row → cells that make what it plays
        if steps == config.train_steps:
            for cell in guidance_study.cells(at):
                if cell["part"] in CHOOSING:
                    add(cell)
                elif cell["part"] in MAKING:
                    made.setdefault(_row_of(cell), []).append(cell)
        elif steps in config.tuned:
            searched = [*sweep_cells(at, ending), *tuning_cells(at, ending)]
            for cell in searched:
                add(cell)
            add(Cell(f"choice{ending}", {"part": "choice"}, tuple(cell.name for cell in searched), 0.1))
        chosen = f"choice{config.ending(config.tuned_at(steps))}"
        for name in config.work_order(steps):
            for cell in made.get(name, []):
                add(cell)
            evaluations = _evaluations(config, name, steps)
            for cell in evaluations:
                add(cell, chosen, "calibration")
            before = tuple(cell.name for cell in evaluations)
    return found


def _row_of(cell: Cell) -> str:
    """The row that plays what a cell makes."""
    if cell["part"] == "oracle":
        return f"oracle_{cell['oracle']}"
    return str(cell["schedule"] if cell["part"] == "free" else cell["policy"])


def _evaluations(config: SchedulesStudyConfig, name: str, steps: int) -> list[Cell]:
    """One row at one number of steps: a cell a seed."""
    at = config.at(steps)
    found = []
    for seed in range(at.seeds):
        needs: tuple[str, ...] = ()
        if name in config.study.policies:
            needs = (f"training-{name}-seed{seed}",)
        elif name in FREE_SCHEDULES:
            needs = (name,)
        elif name.removeprefix("oracle_") in ORACLES:
            needs = (name.replace("_", "-"),)
        parameters = {"part": "evaluation", "policy": name, "seed": seed}
        label = f"{row_label(name, config.fixed)}, seed {seed}"
        seconds = seconds_of(at, at.eval_images)
        found.append(Cell(evaluation_name(name, steps, seed), parameters, needs, seconds, label))
    return found


def run_cell(config: SchedulesStudyConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Do one cell (see the top of this file)."""
    part = cell["part"]
    if part == "inception":
        return embed_heldout(config, folder)
    if part == "floor":
        return measure_floor(config.at(cell["steps"]))
    if part == "evaluation":
        return evaluate(config, folder, cell["policy"], cell["steps"], cell["seed"])
    at, ending = config.at(cell["steps"]), config.ending(cell["steps"])
    if cell["steps"] == config.train_steps:
        return guidance_study.run_cell(config.study, cell, folder)
    if part == "sweep":
        return measure_schedule(at, Schedule("constant", cell["g"]), at.sweep_images, judged=True)
    if part == "tuning":
        return try_candidate(at, cell, best_constant(at, folder, ending))
    return {"schedules": {name: s.to_dict() for name, s in choose_schedules(at, folder, ending).items()}}


def check(config: SchedulesStudyConfig) -> None:
    """Raises what loading the models, a training or a sampler of so many steps raises."""
    guidance_study.check(config.study)
    for steps in config.steps:
        sampler_of(models_of(config.study.models).backbone, steps, spacing=config.study.spacing)
    if config.lpips_weights is not None:
        lpips(config.lpips_weights)
    if config.inception_weights is not None:
        inception(config.inception_weights)


def share_done(config: SchedulesStudyConfig, cell: Cell, folder: Path) -> float:
    """Updates of a running training that are done."""
    return guidance_study.share_done(config.study, cell, folder)


@lru_cache(maxsize=1)
def lpips(weights: str) -> Lpips:
    """The LPIPS network, loaded once per process."""
    return Lpips(weights)


@lru_cache(maxsize=1)
def inception(weights: str) -> Inception:
    """The published FID's network, loaded once per process."""
    return Inception(weights)


def embed_heldout(config: SchedulesStudyConfig, folder: Path) -> dict[str, Any]:
    """Writes the held-out images in Inception's features."""
    assert config.inception_weights is not None
    features = inception(config.inception_weights).features(models_of(config.study.models).heldout.images)
    write_tensors(folder / "inception.safetensors", {"features": features}, {}, kind="inception")
    return {"images": len(features)}


@lru_cache(maxsize=1)
def heldout_embedded(folder: Path) -> Tensor:
    """The held-out images in Inception's features, read once per process."""
    return read_tensors(folder / "inception.safetensors", kind="inception")[0]["features"]


def images_file(folder: Path, name: str, steps: int, seed: int) -> Path:
    """File of the images that others are paired with."""
    return folder / "paired" / f"{name}-steps{steps}-seed{seed}.safetensors"


@lru_cache(maxsize=4)
def images_of(folder: Path, name: str, steps: int, seed: int) -> Tensor:
    """Images of one of `PAIRED_WITH`, [N, C, H, W]: label and noise i are those of every row's image i."""
    return read_tensors(images_file(folder, name, steps, seed), kind="paired")[0]["images"]


def player_of(
    config: SchedulesStudyConfig, folder: Path, name: str, steps: int, seed: int, labels: Tensor, noise: Tensor
) -> tuple[GuidanceConfig, PolicyOrSchedule, int]:
    """Sampler, policy or schedule of a row, and how often the scorer looked at an image for each image made."""
    at, ending = config.at(steps), config.ending(config.tuned_at(steps))
    guidance = calibrated(folder, name if name in config.study.policies else "")[0].replace(n_steps=steps)
    if name == CONDITIONAL:
        return guidance, 1.0, 0
    if name == FIXED:
        return guidance, config.fixed, 0
    if name == "oracle_constant":
        return guidance, oracle_constant(at, folder, ending), 0
    if name in ORACLE_ROWS:
        made = cell_result(folder, name.replace("_", "-"))
        guidance = guidance.replace(g0=made["g0"])
        if "g" in made:
            return guidance, resampled(torch.tensor(made["g"]), steps), 0
        return guidance, load_policy_model(folder / "oracle"), steps * at.confidence_entry
    if name in SCHEDULES:
        chosen = cell_result(folder, f"choice{ending}")["schedules"][name]
        return guidance, Schedule(**chosen).scales(steps), 0
    if name in FREE_SCHEDULES:
        return guidance, resampled(free_scales(folder, name, labels), steps), 0
    if name == SEARCH:
        scales = [factor * best_constant(at, folder, ending) for factor in at.search_factors]
        backbone = models_of(at.models).backbone
        search = greedy_search(backbone, guidance, labels, noise, scorer_for(at), scales, batch=at.batch)
        return guidance, search.g, search.scorer_evaluations
    return guidance, load_trained(config.study, folder, name, seed), steps * at.confidence_entry


@torch.no_grad()
def evaluate(config: SchedulesStudyConfig, folder: Path, name: str, steps: int, seed: int) -> dict[str, Any]:
    """One row at one number of steps on the images of one seed: every metric, the pairs, guidance scales, cost."""
    at = config.at(steps)
    models = models_of(at.models)
    labels, noise = draw_initial_noise(models.backbone, models.heldout, at.eval_images, EVALUATION_SEED + seed)
    guidance, player, looked = player_of(config, folder, name, steps, seed, labels, noise)
    # the reward as it was given, not calibrated: its distance is told, and no return
    sampled = sample_and_measure(models, guidance, player, labels, noise, reward=at.reward, batch=at.batch)
    assert sampled.judged is not None
    images = sampled.rollout.images
    if name in PAIRED_WITH:
        write_tensors(images_file(folder, name, steps, seed), {"images": images}, {}, kind="paired")
    network = None if config.lpips_weights is None else lpips(config.lpips_weights)
    pairs: dict[str, float] = {}
    others = PAIRED_WITH[: PAIRED_WITH.index(name)] if name in PAIRED_WITH else PAIRED_WITH
    for other in others:
        similar = paired_similarity(images, images_of(folder, other, steps, seed), network)
        pairs |= {f"{key}_{other}": value for key, value in similar.items()}
    if config.inception_weights is not None:
        ours, real = inception(config.inception_weights).features(images), heldout_embedded(folder)
        pairs |= {"inception_fid": frechet_distance(ours, real), "inception_kid": kernel_distance(ours, real)}
    return {
        **sampled.judged,
        **{f"reward_{key}": value for key, value in sampled.reward_side.items()},
        **pairs,
        "g_all": float(sampled.rollout.g.mean()),
        "circuits_per_image": sampled.rollout.circuits / len(labels),
        "scorer_evaluations_per_image": looked,
        "n_parameters": player.parameter_counts()["total"] if isinstance(player, Policy) else 0,
        **trajectory(sampled.rollout),
    }


QUICK = SchedulesStudyConfig(
    study=GuidanceStudyConfig(
        policies=("quantum_pathwise", "matched_pathwise"),
        schedules=("limited_interval", "free_schedule"),
        constants=(1.0, 1.35, 2.0),
        sweep_images=120,
        tune_images=60,
        tune_means=(1.0,),
        noise_pool=100,
        ppo=PPOConfig.short(num_iterations=4, num_envs=48),
        pathwise=PathwiseConfig(num_iterations=8, num_images=60, learning_rate_head=3e-2, learning_rate_schedule=3e-2),
    ),
    train_steps=5,
    steps=(5, 15),
    tuned=(5,),
    images=(120,),
    seeds=(2,),
)

STUDY = Study(
    name="schedules",
    title="Policies and schedules of guidance, by sampling steps",
    summary="the whole table of policies and schedules at several numbers of sampling steps",
    config=SchedulesStudyConfig,
    cells=cells,
    run=run_cell,
    page=page,
    quick=QUICK,
    check=check,
    share_done=share_done,
    no_flags=(
        *(f"study.{name}" for name in ("n_steps", "seeds", "eval_images", "policy.kind", "policy.engine")),
        "study.ppo.seed",
        "study.pathwise.seed",
    ),
    flag_prefixes={"study.reward": "reward", "study.pathwise": "pathwise"},
    partial=True,
)
