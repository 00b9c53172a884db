"""The shots study: configuration, cells, and what each of them measures.

    preparation     state normalisation and reward scale; the denoiser's latent space
    models          the trained policy and the trained denoiser of a seed
    values          ⟨Z⟩ and the guidance scale at the policy's states, repeated
    gradients       parameter-shift and SPSA gradients at one of these states, repeated
    images          images steered by the policy from N shots a circuit
    denoiser        the denoiser's images from N shots an image
    learning        one PPO training (`page.TRAININGS`)

Shots are drawn from the ideal circuit's outcomes, so that what is measured is shot noise and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.config import Config, require
from qhw_diffusion.denoising import sample_counts
from qhw_diffusion.denoising.readout import kept_shots
from qhw_diffusion.diffusion import evaluate_samples
from qhw_diffusion.execution import SPSA, CompiledCircuit, ParameterShift, QuantumLayer, Shots
from qhw_diffusion.execution.gradients import GradientMethod
from qhw_diffusion.experiment import Cell, Study
from qhw_diffusion.guidance import GuidanceConfig, PPOConfig
from qhw_diffusion.studies import reference_models
from qhw_diffusion.studies.reference_models import ReferenceModelsConfig, rms, scale, states_met
from qhw_diffusion.studies.shots.page import page, training_label

DRAW_SEED = 7_000_000


@dataclass(frozen=True)
class ShotsConfig(Config):
    """What finite shots do to values, gradients, images, the denoiser and PPO."""

    models: ReferenceModelsConfig = field(default_factory=ReferenceModelsConfig)
    """Trained policy and denoiser."""
    shots: tuple[int, ...] = (16, 64, 256, 1024, 4096, 16384)
    """Shots per circuit."""
    states: int = 64
    """States of the policy at which values are repeated."""
    repeats: int = 200
    """Repetitions of every value."""
    gradient_repeats: int = 100
    """Repetitions of every gradient."""
    spsa_size: float = 0.3
    """Size of SPSA's perturbation, radians."""
    learn_shots: tuple[int, ...] = (1, 4, 16, 64, 1024)
    """Shots per circuit in trainings by parameter-shift."""
    other_shots: tuple[int, ...] = (4, 64)
    """Shots per circuit in the other trainings: SPSA, simulated gradients, frozen circuit."""

    def __post_init__(self) -> None:
        for name in ("shots", "learn_shots", "other_shots"):
            given = getattr(self, name)
            distinct = len(given) > 0 and len(set(given)) == len(given) and min(given) >= 1
            require(distinct, f"{name} must be different whole numbers from 1, given {given}")
            object.__setattr__(self, name, tuple(sorted(given)))
        enough = self.states >= 1 and self.repeats >= 2 and self.gradient_repeats >= 2
        require(enough, "states must be at least 1, repeats and gradient_repeats at least 2")
        require(self.spsa_size > 0, f"spsa_size must be positive, got {self.spsa_size}")

    def trainings(self) -> list[str]:
        """Names of a seed's trainings: ``kind`` or ``kind:shots``; ``…+head`` where the head is trained too."""
        circuit = ["exact", *(f"shift:{n}" for n in self.learn_shots)]
        circuit += [f"{kind}:{n}" for kind in ("spsa", "surrogate") for n in self.other_shots]
        return [*circuit, "exact+head", "frozen+head", *(f"frozen:{n}+head" for n in self.other_shots)]


QUICK = ShotsConfig(
    models=ReferenceModelsConfig(
        guidance=GuidanceConfig(noise_pool=80, g0=2.0),
        ppo=PPOConfig.short(num_iterations=8, num_envs=40, update_epochs=1, num_minibatches=4),
        eval_images=100,
        denoiser_iterations=60,
        autoencoder_steps=300,
        seeds=2,
    ),
    shots=(64, 1024),
    states=16,
    repeats=40,
    gradient_repeats=20,
    learn_shots=(16, 256),
    other_shots=(64,),
)


def cells(config: ShotsConfig) -> list[Cell]:
    """Per seed the two models, four measurements on them and all trainings."""
    usual = ShotsConfig()
    models_take = reference_models.seconds_of(config.models, usual.models)
    draws, images = len(config.shots) / len(usual.shots), models_take["images"]
    repeats = config.states * config.repeats / (usual.states * usual.repeats)
    measurements = {
        "values": 1 + 5 * repeats * draws,
        "gradients": 1 + 19 * config.gradient_repeats / usual.gradient_repeats * draws,
        "images": 1 + 14 * images * draws,
        "denoiser": 1 + 4 * images * draws,
    }
    found = [Cell("preparation", {"part": "preparation"}, seconds=models_take["preparation"])]
    for seed in range(config.models.seeds):
        models, label = f"models-seed{seed}", f"policy and denoiser, seed {seed}"
        found.append(Cell(models, {"part": "models", "seed": seed}, ("preparation",), models_take["models"], label))
        for part, seconds in measurements.items():
            found.append(
                Cell(f"{part}-seed{seed}", {"part": part, "seed": seed}, (models,), seconds, f"{part}, seed {seed}")
            )
        for name in config.trainings():
            parameters = {"part": "learning", "training": name, "seed": seed}
            label = f"training {training_label(name)}, seed {seed}"
            seconds = 1 + 5 * images + (24 if "shift" in name else 7) * models_take["training"]
            found.append(Cell(f"learning-{name}-seed{seed}", parameters, ("preparation",), seconds, label))
    return found


def run_cell(config: ShotsConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Do one cell (see the top of this file)."""
    part = cell["part"]
    if part == "preparation":
        reference_models.calibrated(folder, config.models)
        reference_models.autoencoder(folder, config.models)
        return {}
    seed = cell["seed"]
    if part == "models":
        reference_models.policy(folder, config.models, seed)
        reference_models.denoiser(folder, config.models, seed)
        return {}
    if part == "learning":
        return learning(config, folder, cell["training"], seed)
    return {"values": values, "gradients": gradients, "images": images, "denoiser": denoiser}[part](
        config, folder, seed
    )


def values(config: ShotsConfig, folder: Path, seed: int) -> dict[str, Any]:
    """Per number of shots: scatter and bias of ⟨Z⟩ and of the guidance scale, measured and in closed form.

    se: root mean square of the standard deviations over repeats; se_closed: √mean((1 − ⟨Z⟩²)/N); se_told: what the
    estimates say of themselves; bias: root mean square of (mean over repeats − exact), which chance alone brings to
    about bias_chance = se/√repeats; mean_bias: with its sign, over states and qubits; *_g: the same of g.
    """
    guidance, _ = reference_models.calibrated(folder, config.models)
    actor = reference_models.policy(folder, config.models, seed)
    states = states_met(folder, config.models, seed, config.states)
    with torch.no_grad():
        exact = actor.expectations(states)
        g_exact = scale(actor, exact, guidance)
    rows = []
    for shots in config.shots:
        sampled = actor.on(engine=Shots(shots, seed=DRAW_SEED + seed, noisy=False))
        angles = sampled.angles(states).detach().repeat_interleave(config.repeats, 0)
        estimate = sampled.layer.estimate(angles)
        z = estimate.values.double().reshape(len(states), config.repeats, -1)
        g = scale(sampled, estimate.values, guidance).double().reshape(len(states), config.repeats)
        se, se_g = rms(z.std(1)), rms(g.std(1))
        rows.append(
            {
                "shots": shots,
                "se": se,
                "se_closed": float(((1 - exact.double() ** 2) / shots).mean().sqrt()),
                "se_told": rms(estimate.std_errors.double()),
                "bias": rms(z.mean(1) - exact),
                "bias_chance": se / config.repeats**0.5,
                "mean_bias": float((z.mean(1) - exact).mean()),
                "rms_g": rms(g - g_exact[:, None]),
                "se_g": se_g,
                "bias_g": rms(g.mean(1) - g_exact),
                "bias_g_chance": se_g / config.repeats**0.5,
                "mean_bias_g": float((g.mean(1) - g_exact).mean()),
            }
        )
    return {"rows": rows, "mean_z": float(exact.mean()), "rms_z": rms(exact), "g": float(g_exact.mean())}


def gradients(config: ShotsConfig, folder: Path, seed: int) -> dict[str, Any]:
    """Per number of shots: variance of the gradient of one ⟨Z⟩ by one angle, mean over angles and qubits.

    shift: measured with `ParameterShift`; shift_closed: mean of [(1 − f₊²) + (1 − f₋²)]/(4N); shift_closed_largest: the
    largest of these, below the bound 1/(2N). spsa: measured with one direction; spsa_closed: (1 − ⟨Z⟩²)/(2N c²), the
    shots' part, plus the scatter of SPSA on exact values (spsa_exact); spsa_equal: with half as many directions as
    parameter-shift has evaluations, so that both cost the same.
    """
    actor = reference_models.policy(folder, config.models, seed)
    free = every_angle_an_input(actor.layer.compiled)
    with torch.no_grad():
        point = torch.cat(
            [actor.angles(states_met(folder, config.models, seed, config.states)[:1])[0], actor.layer.weight]
        ).double()
    layer = QuantumLayer(free, "ideal", dtype=torch.float64)
    exact = jacobian(layer, point[None])[0]  # [M, P]
    n = len(point)
    moves = torch.pi / 2 * torch.eye(n, dtype=torch.float64)
    with torch.no_grad():
        z = layer(point[None])[0]
        plus, minus = layer(point + moves), layer(point - moves)  # [P, M]
    closed = ((1 - plus**2) + (1 - minus**2)) / 4
    copies = point.expand(config.gradient_repeats, -1)
    directions = jacobian(layer.with_engine("ideal", gradient=SPSA(seed, 1, config.spsa_size)), copies)
    spsa_exact = float(directions.var(0).mean())
    rows = []
    for shots in config.shots:
        engine = Shots(shots, seed=DRAW_SEED + seed, noisy=False)
        method: GradientMethod
        found: dict[str, Tensor] = {}
        for name, method in (
            ("shift", ParameterShift()),
            ("spsa", SPSA(seed, 1, config.spsa_size)),
            ("spsa_equal", SPSA(seed, n, config.spsa_size)),
        ):
            found[name] = jacobian(layer.with_engine(engine, gradient=method), copies)  # [K, M, P]
        variance = {name: gradient.var(0) for name, gradient in found.items()}
        rows.append(
            {
                "shots": shots,
                "shift": float(variance["shift"].mean()),
                "shift_closed": float(closed.mean()) / shots,
                "shift_closed_largest": float(closed.max()) / shots,
                "shift_bias": rms(found["shift"].mean(0) - exact),
                "bias_chance": float(variance["shift"].mean() / config.gradient_repeats) ** 0.5,
                "bound": 1 / (2 * shots),
                "spsa": float(variance["spsa"].mean()),
                "spsa_closed": float((1 - z**2).mean()) / (2 * shots * config.spsa_size**2) + spsa_exact,
                "spsa_bias": rms(found["spsa_equal"].mean(0) - exact),
                "spsa_equal": float(variance["spsa_equal"].mean()),
            }
        )
    return {"rows": rows, "angles": n, "rms_gradient": rms(exact), "spsa_exact": spsa_exact}


def every_angle_an_input(compiled: CompiledCircuit) -> CompiledCircuit:
    """The same ISA circuit with its weights as further inputs: each row has gradients of its own."""
    return replace(compiled, inputs=(*compiled.inputs, *compiled.weights), weights=())


def jacobian(layer: QuantumLayer, rows: Tensor) -> Tensor:
    """[B, inputs] → gradients [B, M, inputs] by the layer's method."""
    parts = []
    for m in range(layer.compiled.n_observables):
        x = rows.clone().requires_grad_(True)
        parts.append(torch.autograd.grad(layer(x)[:, m].sum(), x)[0])
    return torch.stack(parts, 1)


def images(config: ShotsConfig, folder: Path, seed: int) -> dict[str, Any]:
    """Exactly and per number of shots: the evaluation's numbers, and how far g and the images are from the exact ones.

    rms_g: of the scales along the whole path, which shot noise moves at every step; rms_pixel: of the final images.
    """
    models = config.models
    actor = reference_models.policy(folder, models, seed)
    exact = reference_models.play(folder, models, actor, seed)
    rows = [{"shots": None, **_judged(exact.judged), "return": exact.reward_side["return"], "rms_g": 0.0}]
    for shots in config.shots:
        sampled = actor.on(engine=Shots(shots, seed=DRAW_SEED + seed, noisy=False))
        played = reference_models.play(folder, models, sampled, seed)
        rows.append(
            {
                "shots": shots,
                **_judged(played.judged),
                "return": played.reward_side["return"],
                "rms_g": rms(played.rollout.g - exact.rollout.g),
                "rms_pixel": rms(played.rollout.images - exact.rollout.images),
                "circuits": played.rollout.circuits,
            }
        )
    return {"rows": rows, "n_images": models.eval_images}


def denoiser(config: ShotsConfig, folder: Path, seed: int) -> dict[str, Any]:
    """Exactly and per number of shots an image: fidelity of what is read, and the evaluation's numbers.

    infidelity: mean over images of 1 − (Σ √(p p̂))², p the exact outcome probabilities and p̂ the counts' shares;
    infidelity_closed: mean of (d − 1)/(4·kept), to lowest order, for the images with a kept shot. An image without a
    single kept shot (lost) is counted as one of a single shot.
    """
    models = config.models
    model = reference_models.denoiser(folder, models, seed)
    generator = torch.Generator().manual_seed(reference_models.DENOISER_SEED + seed)
    labels = reference_models.denoiser_labels(models.eval_images)
    chain = model.sample(len(labels), generator, labels)
    p = model.reverse.outcome_probabilities(chain.states)
    rows = [{"shots": None, **_evaluated(model.decode(p.float().sqrt()), labels)}]
    success = chain.probability
    for shots in config.shots:
        kept = kept_shots(success, shots, generator)
        lost, kept = int((kept == 0).sum()), kept.clamp_min(1)
        share = sample_counts(p, kept, generator) / kept[:, None]
        overlap = (p.double() * share.double()).sqrt().sum(1)
        rows.append(
            {
                "shots": shots,
                "kept": float(kept.double().mean()),
                "lost": lost,
                "infidelity": float((1 - overlap.square()).mean()),
                "infidelity_closed": float(((p.shape[1] - 1) / (4 * kept.double())).mean()),
                **_evaluated(model.decode(share.float().sqrt()), labels),
            }
        )
    return {"rows": rows, "success": float(success.mean()), "n_images": len(labels), "dimension": p.shape[1]}


def learning(config: ShotsConfig, folder: Path, training: str, seed: int) -> dict[str, Any]:
    """One PPO training: reward before and after, on exact values and on the shots it was trained with, and its cost.

    Rewards are mean episode rewards of the mean action on the evaluation's initial noise, in standard deviations
    between policies that act at random, over the base scale's.
    """
    name, _, number = training.removesuffix("+head").partition(":")
    engine = Shots(int(number), seed=DRAW_SEED + seed, noisy=False) if number else "ideal"
    gradient: GradientMethod | None = None
    if name == "shift":
        gradient = ParameterShift()
    elif name == "spsa":
        gradient = SPSA(seed, 1, config.spsa_size)
    started = time.perf_counter()
    untrained, actor, history = reference_models.train_policy(
        folder,
        config.models,
        seed,
        kind="frozen" if name == "frozen" else "quantum",
        head=training.endswith("+head"),
        engine=engine,
        gradient=gradient,
    )
    seconds = time.perf_counter() - started
    usage = actor.layer.usage
    before = reference_models.play(folder, config.models, untrained, seed)
    after = reference_models.play(folder, config.models, actor.on(engine="ideal"), seed)
    noisy = after if engine == "ideal" else reference_models.play(folder, config.models, actor, seed)
    return {
        "gain": after.reward_side["return"] - before.reward_side["return"],
        "gain_on_shots": noisy.reward_side["return"] - before.reward_side["return"],
        "before": before.reward_side["return"],
        "after": after.reward_side["return"],
        "after_shots": noisy.reward_side["return"],
        "energy_before": _judged(before.judged)["energy"],
        "energy_after": _judged(after.judged)["energy"],
        "energy_shots": _judged(noisy.judged)["energy"],
        "fd_before": _judged(before.judged)["fd"],
        "fd_after": _judged(after.judged)["fd"],
        "fd_shots": _judged(noisy.judged)["fd"],
        "circuits": usage.circuits,
        "shots_run": usage.shots,
        "seconds": seconds,
        "curve": [metrics["charts/episodic_return"] for metrics in history],
        "gradient": float(np.mean([metrics["gradients/circuit"] for metrics in history])),
    }


def _evaluated(images: Tensor, labels: Tensor) -> dict[str, float]:
    models = reference_models.models()
    return _judged(evaluate_samples(images, labels, models.evaluation_classifier, models.heldout))


def _judged(found: dict[str, float] | None) -> dict[str, float]:
    assert found is not None
    return {key: found[key] for key in ("energy", "fd", "accuracy")}


STUDY = Study(
    name="shots",
    title="What finite shots do",
    summary="what finite shots do to values, gradients, images, the denoiser and PPO",
    config=ShotsConfig,
    cells=cells,
    run=run_cell,
    page=page,
    row_parameters=("shots",),
    quick=QUICK,
    no_flags=reference_models.NO_FLAGS,
    check=lambda config: reference_models.check(config.models),
)
