"""The ablation study: which parts of the quantum policy matter, and what does each of them cost?

The guidance study prepares everything (sweep, calibration, schedules, headroom: the same cells under the same names),
then every variant of the policy is trained pathwise from the same base scale and judged on the same initial noise.

    variant         one variant of the policy with one seed: trained, then evaluated on the device's noise and without

Variants are the reference circuit with one thing changed (or all combinations of circuits), each trained under the
device's noise and without; and policies that lack a part: circuit frozen, head frozen, linear head, no circuit at all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qhw_diffusion.config import Config, check_whole, require
from qhw_diffusion.errors import UnknownNameError
from qhw_diffusion.execution import check_engine_text
from qhw_diffusion.experiment import Cell, Study
from qhw_diffusion.guidance import (
    PathwiseConfig,
    Policy,
    PolicyConfig,
    QuantumPolicy,
    build_policy,
    check_training,
    train_pathwise,
)
from qhw_diffusion.guidance.evaluation import EVALUATION_SEED, draw_initial_noise, sample_and_measure, trajectory
from qhw_diffusion.studies.ablation.page import DEVICE, FACTORS, WITHOUT_NOISE, page
from qhw_diffusion.studies.guidance import experiment as guidance_study
from qhw_diffusion.studies.guidance.experiment import GuidanceStudyConfig

DESIGNS = ("one", "grid")
CLAIMED = ("reference", "frozen", "matched")
"""Variants that all seeds are spent on."""


@dataclass(frozen=True)
class Variant:
    """One policy to train.

    Attributes:
        policy: its settings.
        changed: what differs from the reference, or what it is.
    """

    policy: PolicyConfig
    changed: str


@dataclass(frozen=True)
class AblationConfig(Config):
    """The circuits to try, and the trainings and evaluations they are tried in."""

    study: GuidanceStudyConfig = field(
        default_factory=lambda: guidance_study.DEMO.replace(policies=(), schedules=("free_schedule",), seeds=10)
    )
    """Models, reward, training and evaluation, as in the guidance study; its circuit is the reference."""
    qubits: tuple[int, ...] = (2, 4, 6, 8)
    """Numbers of qubits."""
    depths: tuple[int, ...] = (1, 2, 3)
    """Numbers of layers."""
    entanglements: tuple[str, ...] = ("ring", "chain", "none")
    """Entanglements."""
    reuploading: bool = True
    """Also try the encoding before every layer."""
    observables: tuple[str, ...] = ("fixed", "adaptive:2")
    """Observables: ⟨Z⟩ of every qubit, or trained Hermitian ones on so many neighbouring qubits."""
    design: str = "one"
    """Circuits to try: "one" (the reference with one thing changed at a time) or "grid" (all combinations)."""
    noise: str = "noisy"
    """Engine with the device's noise: circuits are trained and judged on it, and trained and judged without noise."""
    wide_from: int = 8
    """From so many qubits on the noise is that of `wide_noise`: a ring of eight takes twelve of a heavy-hex device,
    which no density matrix in training can hold."""
    wide_noise: str = "trajectories:16"
    """Engine with the device's noise for those."""
    trained_without: bool = True
    """Every circuit once more, trained without noise."""
    parts: bool = True
    """Policies that lack a part: circuit frozen, head frozen, linear head, no circuit."""
    variant_seeds: int = 5
    """Seeds of each variant; the reference, its frozen circuit and the MLP of its size have all seeds of the study."""

    def __post_init__(self) -> None:
        check_whole(self, "variant_seeds", "wide_from")
        check_engine_text(self.noise)
        check_engine_text(self.wide_noise)
        if self.design not in DESIGNS:
            raise UnknownNameError.of("design", self.design, DESIGNS)
        require(
            self.variant_seeds <= self.study.seeds,
            f"variant_seeds is {self.variant_seeds}, more than the study's {self.study.seeds} seeds",
        )
        require(not self.study.policies, f"policies are the guidance study's: {', '.join(self.study.policies)}")
        for name, levels in self.levels().items():
            require(len(levels) >= 1 and len(set(levels)) == len(levels), f"{name}: each once, got {levels}")
        self.variants()  # refuses settings that no circuit has

    def levels(self) -> dict[str, tuple[Any, ...]]:
        """The settings of a circuit that are varied, by their names in `PolicyConfig`."""
        return {
            "n_qubits": self.qubits,
            "depth": self.depths,
            "entanglement": self.entanglements,
            "reuploading": (False, True) if self.reuploading else (False,),
            "observables": self.observables,
        }

    def seeds_of(self, variant: str) -> int:
        """How many seeds a variant is trained with."""
        return self.study.seeds if variant in CLAIMED else self.variant_seeds

    def variants(self) -> dict[str, Variant]:
        """Name → every policy that is trained; the reference first."""
        reference = self.under_noise(self.study.policy.replace(kind="quantum"))
        found = {"reference": Variant(reference, "")}
        for levels in self._circuits():
            told = [FACTORS[name](value) for name, value in levels.items() if value != getattr(reference, name)]
            if told:
                found["+".join(told).replace(" ", "-")] = Variant(
                    self.under_noise(reference.replace(**levels)), ", ".join(told)
                )
        if self.trained_without:
            ideal = {f"{name}@ideal": v.policy.replace(engine="ideal") for name, v in found.items()}
            found |= {
                name: Variant(policy, found[name.removesuffix("@ideal")].changed) for name, policy in ideal.items()
            }
        if self.parts:
            linear = reference.replace(linear_head=True)
            found |= {
                "frozen": Variant(reference.replace(kind="frozen"), "circuit frozen at random values"),
                "frozen_head": Variant(reference.replace(kind="frozen_head"), "head frozen at random values"),
                "linear_head": Variant(linear, "linear head"),
                "linear_head_frozen": Variant(linear.replace(kind="frozen"), "linear head, circuit frozen"),
                "linear": Variant(linear.replace(kind="mlp"), "no circuit, linear policy"),
                "matched_linear": Variant(
                    linear.replace(kind="matched"), "no circuit, MLP as large as with linear head"
                ),
                "matched": Variant(reference.replace(kind="matched"), "no circuit, MLP of the reference's size"),
                "mlp": Variant(reference.replace(kind="mlp"), "no circuit, MLP of 9,282 parameters for six entries"),
            }
        return found

    def under_noise(self, policy: PolicyConfig) -> PolicyConfig:
        """A circuit's settings on the engine that has the device's noise."""
        return policy.replace(engine=self.wide_noise if policy.n_qubits >= self.wide_from else self.noise)

    def _circuits(self) -> list[dict[str, Any]]:
        """Settings of the circuits to try."""
        levels = self.levels()
        if self.design == "one":
            return [{name: value} for name, values in levels.items() for value in values]
        return [dict(zip(levels, values, strict=True)) for values in itertools.product(*levels.values())]


def cells(config: AblationConfig) -> list[Cell]:
    """The guidance study's cells without policies, then a cell for each variant and seed."""
    study = config.study
    found = guidance_study.cells(study)
    images = guidance_study.BACKWARD * study.pathwise.num_iterations * study.pathwise.num_images
    for seed in range(study.seeds):
        for name, variant in config.variants().items():
            if seed >= config.seeds_of(name):
                continue
            played = 2 if variant.policy.uses_circuit else 1
            seconds = guidance_study.seconds_of(study, images + played * study.eval_images)
            parameters = {"part": "variant", "policy": name, "seed": seed}
            label = f"{variant.changed or 'reference'}{', no noise' * name.endswith('@ideal')}, seed {seed}"
            found.append(Cell(f"{name}-seed{seed}".replace(":", ""), parameters, ("calibration",), seconds, label))
    return found


def run_cell(config: AblationConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Do one cell (see the top of this file)."""
    if cell["part"] != "variant":
        return guidance_study.run_cell(config.study, cell, folder)
    return train_and_evaluate(config, config.variants()[cell["policy"]], folder, cell["seed"])


def train_and_evaluate(config: AblationConfig, variant: Variant, folder: Path, seed: int) -> dict[str, Any]:
    """A row of numbers for each way the trained policy is played: under the device's noise, and without."""
    study = config.study
    models = guidance_study.models_of(study.models)
    guidance, reward = guidance_study.calibrated(folder)
    policy = build_variant(variant.policy, guidance.n_state, seed)
    looks = guidance_study.reward_of(study.models, study.scorer, reward)
    started = time.perf_counter()
    log = train_pathwise(models.backbone, looks, guidance, policy, study.pathwise.replace(seed=seed))
    seconds = time.perf_counter() - started
    labels, noise = draw_initial_noise(models.backbone, models.heldout, study.eval_images, EVALUATION_SEED + seed)
    rows = []
    for played, player in _players(config, variant.policy, policy).items():
        sampled = sample_and_measure(models, guidance, player, labels, noise, reward=reward, batch=study.batch)
        assert sampled.judged is not None
        told = {**sampled.judged, "reward_distance": sampled.reward_side["distance"], **trajectory(sampled.rollout)}
        rows.append({"played": played, **told})
    counts = policy.parameter_counts()
    found = {
        "rows": rows,
        "n_parameters": counts["total"],
        "n_circuit_parameters": counts["circuit"],
        "return": log[-1]["charts/episodic_return"],
        "training_seconds": seconds,
    }
    if isinstance(policy, QuantumPolicy):
        compiled = policy.layer.compiled
        found |= {"two_qubit_gates": compiled.two_qubit_gates, "depth": compiled.depth}
        found["circuits"] = policy.circuits_per_state
    return found


def build_variant(settings: PolicyConfig, n_features: int, seed: int) -> Policy:
    """The untrained policy of a variant."""
    device = guidance_study.device_of(settings.device) if settings.uses_circuit else None
    return build_policy(settings, n_features=n_features, seed=seed, device=device)


def _players(config: AblationConfig, settings: PolicyConfig, policy: Policy) -> dict[str, Policy]:
    """The trained policy as it is judged; a classical one has no engine, and is judged once."""
    if not isinstance(policy, QuantumPolicy):
        return {DEVICE: policy}
    return {DEVICE: policy.on(engine=config.under_noise(settings).engine), WITHOUT_NOISE: policy.on(engine="ideal")}


def check(config: AblationConfig) -> None:
    """Raises what loading the models or building a training raises."""
    study = config.study
    guidance_study.check(study)
    models = guidance_study.models_of(study.models)
    for variant in config.variants().values():
        policy = variant.policy
        check_training(
            guidance_study.sampling_config(study, study.constants[0]),
            study.pathwise,
            study.reward,
            policy,
            backbone=models.backbone,
            scorer=guidance_study.passed_scorer(study),
            real=models.train,
            device=guidance_study.device_of(policy.device) if policy.uses_circuit else None,
        )


QUICK = AblationConfig(
    study=GuidanceStudyConfig(
        policies=(),
        schedules=("free_schedule",),
        constants=(1.0, 1.2, 1.5),
        sweep_images=120,
        tune_images=60,
        eval_images=120,
        noise_pool=200,
        seeds=2,
        pathwise=PathwiseConfig(num_iterations=6, num_images=60, learning_rate_head=3e-2, learning_rate_schedule=3e-2),
    ),
    qubits=(2, 4),
    depths=(1, 2),
    entanglements=("ring", "none"),
    variant_seeds=2,
)

STUDY = Study(
    name="ablation",
    title="What the parts of the quantum policy contribute",
    summary="vary the policy's circuit and leave out its parts, one at a time",
    config=AblationConfig,
    cells=cells,
    run=run_cell,
    page=page,
    row_parameters=("played",),
    quick=QUICK,
    check=check,
    no_flags=(
        "study.policies",
        "study.policy.kind",
        "study.policy.engine",
        "study.ppo",
        "study.pathwise.seed",
        "study.search_factors",
    ),
    flag_prefixes={"study.reward": "reward", "study.pathwise": "pathwise"},
)
