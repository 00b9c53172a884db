"""The study of the state: is what a policy sees its bottleneck, and does a learned embedding of the latent widen it?

    constant        one constant guidance scale, on the reward side
    calibration     state normalisation of every state, and the reward's scale, the same for all
    reference       the best constant on the images of one seed
    training        one variant trained pathwise on one seed, and its evaluation on that seed's images
    floor           real training images in the place of generated ones

A variant is a kind of policy with a state: quantum-6, quantum-7, quantum-7+1 (seven entries and an embedding of one).
The kind "oracle" is the MLP trained on what the evaluation measures itself: what it wins more with a richer state is
what the poorer one kept from every policy, as far as its training exhausts the state. Everything else is chosen and
trained on the reward side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from qhw_diffusion.config import Config, check_whole, require
from qhw_diffusion.errors import UnknownNameError
from qhw_diffusion.experiment import Cell, Study, cell_result
from qhw_diffusion.guidance import (
    GuidanceConfig,
    PathwiseConfig,
    Policy,
    PolicyConfig,
    PolicyOrSchedule,
    Reward,
    RewardConfig,
    build_policy,
    calibrate,
    check_training,
    save_policy_model,
    train_pathwise,
)
from qhw_diffusion.guidance.config import ModelConfig
from qhw_diffusion.guidance.evaluation import EVALUATION_SEED, draw_initial_noise, sample_and_measure, trajectory
from qhw_diffusion.guidance.headroom import oracle_reward, train_oracle
from qhw_diffusion.studies.guidance.experiment import (
    BACKWARD,
    COLOURED_DIGITS,
    DEMO,
    GuidanceStudyConfig,
    Schedule,
    best_constant,
    device_of,
    measure_floor,
    measure_schedule,
    models_of,
    oracle_constant,
    passed_scorer,
    reward_of,
    sampling_config,
    scorer_for,
    seconds_of,
)
from qhw_diffusion.studies.state.page import page

ORACLE = "oracle"
KINDS = ("quantum", "frozen", "unentangled", "matched", "mlp", ORACLE)


class Variant(NamedTuple):
    """A kind of policy, the entries of its state, and the entries of its embedding (0: none)."""

    kind: str
    entries: int
    embedding: int

    @property
    def state(self) -> str:
        """What is calibrated: the entries, and + where pooled features stand behind them."""
        return f"{self.entries}{'+' if self.embedding else ''}"


def variant_of(text: str) -> Variant:
    """The variant that a text names: KIND-6, KIND-7, KIND-6+K or KIND-7+K.

    Raises:
        UnknownNameError: it names none.
    """
    found = re.fullmatch(r"(\w+)-([67])(?:\+([1-9]\d*))?", text)
    if found is None or found[1] not in KINDS:
        raise UnknownNameError(
            f"unknown variant {text!r}; a variant is written KIND-6, KIND-7, KIND-6+K or KIND-7+K, K entries of an "
            f"embedding; KIND is one of {', '.join(KINDS)}"
        )
    return Variant(found[1], int(found[2]), int(found[3] or 0))


@dataclass(frozen=True)
class StateStudyConfig(Config):
    """Variants, the training that all of them have, and the evaluation."""

    models: ModelConfig = COLOURED_DIGITS
    """Data set, backbone and classifiers; or a pipeline, with images of its prompts and an evaluation classifier."""
    scorer: str = DEMO.scorer
    """What the reward looks through: "classifier", or an own scorer as module:name or file.py:name."""
    variants: tuple[str, ...] = (
        "quantum-7",
        "quantum-7+1",
        "oracle-7",
        "oracle-7+8",
        "quantum-6",
        "matched-7",
        "matched-7+1",
        "quantum-6+2",
        "matched-6",
        "mlp-7",
        "mlp-7+8",
    )
    """What is trained: KIND-ENTRIES or KIND-ENTRIES+K, with KIND quantum, frozen, unentangled, matched, mlp or oracle
    (an MLP trained on what the evaluation measures), ENTRIES 6 or 7, and an embedding of K entries."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Circuit, device and engine of the quantum policies."""
    reward: RewardConfig = DEMO.reward
    """Reward."""
    pathwise: PathwiseConfig = DEMO.pathwise
    """Training of every variant."""
    n_steps: int = DEMO.n_steps
    """Sampling steps."""
    spacing: str = DEMO.spacing
    """Spacing of the timesteps: "leading", "trailing", "linspace", or "scheduler" (a pipeline's own)."""
    confidence_entry: bool = DEMO.confidence_entry
    """The scorer's confidence as sixth state entry. Without it the entry is held at its centre."""
    seeds: int = 5
    """Seeds: seed k is one training of every variant and one evaluation of all."""
    constants: tuple[float, ...] = DEMO.constants
    """Constant guidance scales to sweep; the best is the base scale of all."""
    action_limit: float = 2.0
    """Largest |ΔCFG|; the guidance range is the base scale ± this, not below 0."""
    sweep_images: int = 200
    """Images per constant."""
    eval_images: int = 300
    """Images per evaluation."""
    batch: int = 256
    """Images sampled at a time in sweep and evaluation (a matter of speed only)."""

    def __post_init__(self) -> None:
        require(len(self.variants) >= 2, f"variants must be two or more, got {self.variants}")
        require(len(set(self.variants)) == len(self.variants), f"variants named twice: {', '.join(self.variants)}")
        for text in self.variants:
            self.policy_config(text)
        check_whole(self, "seeds")
        _ = self.base

    @property
    def base(self) -> GuidanceStudyConfig:
        """The guidance study whose sweep, models and seeds this one has."""
        return GuidanceStudyConfig(
            models=self.models,
            scorer=self.scorer,
            reward=self.reward,
            policies=(),
            schedules=(),
            n_steps=self.n_steps,
            spacing=self.spacing,
            confidence_entry=self.confidence_entry,
            seeds=self.seeds,
            constants=self.constants,
            action_limit=self.action_limit,
            sweep_images=self.sweep_images,
            eval_images=self.eval_images,
            batch=self.batch,
        )

    def policy_config(self, text: str) -> PolicyConfig:
        """Settings of a variant's policy; an oracle's is an MLP."""
        variant = variant_of(text)
        return self.policy.replace(kind="mlp" if variant.kind == ORACLE else variant.kind, embedding=variant.embedding)

    def states(self) -> dict[str, Variant]:
        """One variant for each state there is to calibrate."""
        return {variant.state: variant for variant in map(variant_of, self.variants)}


def cells(config: StateStudyConfig) -> list[Cell]:
    """All cells, variant by variant."""
    seconds = seconds_of(config.base, 1)  # an image
    found = [Cell("floor", {"part": "floor"}, seconds=2, label="real training images")]
    sweep = tuple(f"constant-{g:g}" for g in config.base.constants)
    for name, g in zip(sweep, config.base.constants, strict=True):
        found.append(Cell(name, {"part": "constant", "g": g}, (), seconds * config.sweep_images, f"constant g = {g:g}"))
    found.append(Cell("calibration", {"part": "calibration"}, sweep, 20))
    training = BACKWARD * config.pathwise.num_iterations * config.pathwise.num_images + config.eval_images
    for seed in range(config.seeds):
        parameters: dict[str, Any] = {"part": "reference", "variant": "constant", "seed": seed}
        label, cost = f"best constant, seed {seed}", seconds * config.eval_images
        found.append(Cell(f"reference-seed{seed}", parameters, ("calibration",), cost, label))
    for text in config.variants:
        for seed in range(config.seeds):
            parameters = {"part": "training", "variant": text, "seed": seed}
            label = f"training {text}, seed {seed}"
            found.append(Cell(f"{text}-seed{seed}", parameters, ("calibration",), seconds * training, label))
    return found


def run_cell(config: StateStudyConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Do one cell (see the top of this file)."""
    part = cell["part"]
    if part == "floor":
        return measure_floor(config.base)
    if part == "constant":
        constant = Schedule("constant", cell["g"])
        return measure_schedule(config.base, constant, config.sweep_images, judged=True)
    if part == "calibration":
        return calibrate_states(config, folder)
    if part == "reference":
        guidance, _ = calibrated(folder, next(iter(config.states())))
        return evaluate(config, guidance, guidance.g0, cell["seed"])
    return train(config, folder, cell["variant"], cell["seed"], folder / "policies" / cell.name)


def check(config: StateStudyConfig) -> None:
    """Raises what a training would for settings that do not fit."""
    models = models_of(config.models)
    for text in config.variants:
        policy = config.policy_config(text)
        check_training(
            raw_guidance(config, variant_of(text), config.constants[0]),
            config.pathwise,
            config.reward,
            policy,
            backbone=models.backbone,
            scorer=passed_scorer(config.base),
            real=models.train,
            device=device_of(policy.device) if policy.uses_circuit else None,
        )


def raw_guidance(config: StateStudyConfig, variant: Variant, g0: float) -> GuidanceConfig:
    """Sampler and state of a variant, not calibrated."""
    return sampling_config(config.base, g0).replace(
        extra_state=variant.entries == 7, pooled_features=variant.embedding > 0
    )


def calibrate_states(config: StateStudyConfig, folder: Path) -> dict[str, Any]:
    """Centre and width of every state, and the reward's offset and scale."""
    models, reward = models_of(config.models), config.reward
    g0 = best_constant(config.base, folder)
    found = {}
    for state, variant in config.states().items():
        raw = raw_guidance(config, variant, g0)
        guidance, reward = calibrate(raw, reward, models.backbone, scorer_for(config.base), models.train)
        found[state] = guidance.to_dict()
    return {"g0": g0, "guidance": found, "reward": reward.to_dict()}


def calibrated(folder: Path, state: str) -> tuple[GuidanceConfig, RewardConfig]:
    """The study's calibrated configurations for one state."""
    saved = cell_result(folder, "calibration")
    return GuidanceConfig.from_dict(saved["guidance"][state]), RewardConfig.from_dict(saved["reward"])


@lru_cache(maxsize=1)
def oracle_of(config: StateStudyConfig, folder: Path) -> tuple[float, Reward]:
    """Base scale and objective of the oracles, the same whatever they see; made once per process."""
    models = models_of(config.models)
    g0 = oracle_constant(config.base, folder)
    guidance = sampling_config(config.base, g0)
    made = oracle_reward(
        models.backbone, guidance, scorer_for(config.base), models.evaluation_classifier, models.heldout
    )
    return g0, made


def train(config: StateStudyConfig, folder: Path, text: str, seed: int, where: Path) -> dict[str, Any]:
    """One variant trained pathwise and saved into the folder `where`, and its evaluation."""
    variant, models = variant_of(text), models_of(config.models)
    guidance, reward = calibrated(folder, variant.state)
    settings, pathwise = config.policy_config(text), config.pathwise.replace(seed=seed)
    policy: Policy
    if variant.kind == ORACLE:
        g0, function = oracle_of(config, folder)
        guidance = guidance.replace(g0=min(max(g0, guidance.g_min), guidance.g_max))
        oracle = train_oracle("feedback", models.backbone, guidance, function, pathwise, embedding=variant.embedding)
        assert isinstance(oracle, Policy)
        policy = oracle
    else:
        policy = build_policy(
            settings,
            n_features=guidance.n_state,
            n_pooled=guidance.n_pooled,
            seed=seed,
            device=device_of(settings.device) if settings.uses_circuit else None,
        )
        function = reward_of(config.models, config.scorer, reward)
        train_pathwise(models.backbone, function, guidance, policy, pathwise)
    save_policy_model(policy, where, {"guidance": guidance.to_dict()})
    counts = {"n_parameters": sum(p.numel() for p in policy.parameters()), "g0": guidance.g0}
    return {**evaluate(config, guidance, policy, seed), **counts}


def evaluate(config: StateStudyConfig, guidance: GuidanceConfig, player: PolicyOrSchedule, seed: int) -> dict[str, Any]:
    """Both sides' numbers of a policy or constant on one evaluation seed, and its scales."""
    models = models_of(config.models)
    labels, noise = draw_initial_noise(models.backbone, models.heldout, config.eval_images, EVALUATION_SEED + seed)
    sampled = sample_and_measure(models, guidance, player, labels, noise, reward=config.reward, batch=config.batch)
    assert sampled.judged is not None
    side = {f"reward_{key}": value for key, value in sampled.reward_side.items()}
    return {**sampled.judged, **side, **trajectory(sampled.rollout)}


QUICK = StateStudyConfig(
    variants=("quantum-7", "quantum-7+1", "oracle-7", "oracle-7+1"),
    pathwise=PathwiseConfig(num_iterations=4, num_images=20, learning_rate_head=5e-2),
    n_steps=4,
    seeds=2,
    constants=(1.0, 1.5),
    sweep_images=60,
    eval_images=60,
)

STUDY = Study(
    name="state",
    title="The state of a guidance policy: is it the bottleneck?",
    summary="six state entries, seven, and a learned embedding of the latent, over seeds, with an oracle of each",
    config=StateStudyConfig,
    cells=cells,
    run=run_cell,
    page=page,
    quick=QUICK,
    check=check,
    no_flags=("policy.kind", "policy.embedding", "pathwise.seed"),
    flag_prefixes={"reward": "reward", "pathwise": "pathwise"},
)
