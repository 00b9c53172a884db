"""The pieces of work of the shots study; each leaves one file pieces/<name>-seed<k>.json in the study's folder.

    values          ⟨Z⟩ and the guidance scale at the policy's states, repeated
    gradients       parameter-shift and SPSA gradients at one of these states, repeated
    images          images steered by the policy from N shots a circuit
    denoiser        the denoiser's images from N shots an image
    learning-<arm>  one PPO training (`shots_settings.ARMS`)

Shots are drawn from the ideal circuit's outcomes, so that what is measured is shot noise and nothing else.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.denoising import sample_counts
from qhw_diffusion.denoising.readout import kept_shots
from qhw_diffusion.diffusion import evaluate_samples
from qhw_diffusion.execution import SPSA, CompiledCircuit, ParameterShift, QuantumLayer, Shots
from qhw_diffusion.execution.gradients import GradientMethod
from qhw_diffusion.guidance import GuidanceConfig, QuantumActor
from qhw_diffusion.runs import RunFolder, atomic_write_json
from qhw_diffusion.studies import subjects
from qhw_diffusion.studies.shots_settings import ShotsStudyConfig

KIND = "shots-study"
DRAW_SEED = 7_000_000


def piece_file(root: Path, piece: str, seed: int) -> Path:
    """Result of one piece of work on one seed."""
    return root / "pieces" / f"{piece.replace(':', '-')}-seed{seed}.json"


@lru_cache(maxsize=1)
def settings(root: str) -> ShotsStudyConfig:
    """The settings of the study in this folder."""
    return ShotsStudyConfig.from_dict(RunFolder.open(root, kind=KIND).config)


def do_piece(root: str, piece: str, seed: int) -> None:
    """Do one piece and write its file."""
    name, _, arm = piece.partition("-")
    if name == "learning":
        result = learning(root, arm, seed)
    else:
        result = {"values": values, "gradients": gradients, "images": images, "denoiser": denoiser}[name](root, seed)
    atomic_write_json(piece_file(Path(root), piece, seed), {"piece": piece, "seed": seed, **result})


def make_subjects(root: str, seed: int) -> None:
    """The trained policy and denoiser of a seed."""
    config = settings(root).subjects
    subjects.policy(Path(root), config, seed)
    subjects.denoiser(Path(root), config, seed)


def values(root: str, seed: int) -> dict[str, Any]:
    """Per number of shots: scatter and bias of ⟨Z⟩ and of the guidance scale, measured and in closed form.

    se: root mean square of the standard deviations over repeats; se_closed: √mean((1 − ⟨Z⟩²)/N); se_told: what the
    estimates say of themselves; bias: root mean square of (mean over repeats − exact), which chance alone brings to
    about bias_chance = se/√repeats; mean_bias: with its sign, over states and qubits; *_g: the same of g.
    """
    config = settings(root)
    here = Path(root)
    guidance, _ = subjects.calibrated(here, config.subjects)
    actor = subjects.policy(here, config.subjects, seed)
    states = some_states(root, seed)
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
        se, se_g = _rms(z.std(1)), _rms(g.std(1))
        rows.append(
            {
                "shots": shots,
                "se": se,
                "se_closed": float(((1 - exact.double() ** 2) / shots).mean().sqrt()),
                "se_told": _rms(estimate.std_errors.double()),
                "bias": _rms(z.mean(1) - exact),
                "bias_chance": se / config.repeats**0.5,
                "mean_bias": float((z.mean(1) - exact).mean()),
                "rms_g": _rms(g - g_exact[:, None]),
                "se_g": se_g,
                "bias_g": _rms(g.mean(1) - g_exact),
                "bias_g_chance": se_g / config.repeats**0.5,
                "mean_bias_g": float((g.mean(1) - g_exact).mean()),
            }
        )
    return {"rows": rows, "mean_z": float(exact.mean()), "rms_z": _rms(exact), "g": float(g_exact.mean())}


def scale(actor: QuantumActor, z: Tensor, guidance: GuidanceConfig) -> Tensor:
    """⟨Z⟩ [B, qubits] → guidance scale [B] of the mean action."""
    with torch.no_grad():
        mean = actor.head(z.to(next(actor.head.parameters())))[:, 0]
    action = mean.clamp(-guidance.action_limit, guidance.action_limit)
    return (guidance.g0 + action).clamp(guidance.g_min, guidance.g_max)


@lru_cache(maxsize=2)
def some_states(root: str, seed: int) -> Tensor:
    """States [n, 6] the trained policy meets: a random choice of all steps of some rollouts."""
    config = settings(root)
    actor = subjects.policy(Path(root), config.subjects, seed)
    count = max(20, -(-2 * config.states // config.subjects.n_steps))
    played = subjects.play(Path(root), config.subjects, actor, seed, images=count).rollout
    every = played.states.flatten(0, 1)
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[: config.states]]


def gradients(root: str, seed: int) -> dict[str, Any]:
    """Per number of shots: variance of the gradient of one ⟨Z⟩ by one angle, mean over angles and qubits.

    shift: measured with `ParameterShift`; shift_closed: mean of [(1 − f₊²) + (1 − f₋²)]/(4N); shift_closed_largest: the
    largest of these, below the bound 1/(2N). spsa: measured with one direction; spsa_closed: (1 − ⟨Z⟩²)/(2N c²), the
    shots' part, plus the scatter of SPSA on exact values (spsa_exact); spsa_equal: with half as many directions as
    parameter-shift has evaluations, so that both cost the same.
    """
    config = settings(root)
    actor = subjects.policy(Path(root), config.subjects, seed)
    free = every_angle_an_input(actor.layer.compiled)
    with torch.no_grad():
        point = torch.cat([actor.angles(some_states(root, seed)[:1])[0], actor.layer.weight]).double()
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
                "shift_bias": _rms(found["shift"].mean(0) - exact),
                "bias_chance": float(variance["shift"].mean() / config.gradient_repeats) ** 0.5,
                "bound": 1 / (2 * shots),
                "spsa": float(variance["spsa"].mean()),
                "spsa_closed": float((1 - z**2).mean()) / (2 * shots * config.spsa_size**2) + spsa_exact,
                "spsa_bias": _rms(found["spsa_equal"].mean(0) - exact),
                "spsa_equal": float(variance["spsa_equal"].mean()),
            }
        )
    return {"rows": rows, "angles": n, "rms_gradient": _rms(exact), "spsa_exact": spsa_exact}


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


def images(root: str, seed: int) -> dict[str, Any]:
    """Exactly and per number of shots: the judge's numbers, and how far g and the images are from the exact ones.

    rms_g: of the scales along the whole path, which shot noise moves at every step; rms_pixel: of the final images.
    """
    config, here = settings(root).subjects, Path(root)
    actor = subjects.policy(here, config, seed)
    exact = subjects.play(here, config, actor, seed)
    rows = [{"shots": None, **_judged(exact.judged), "return": exact.reward_side["return"], "rms_g": 0.0}]
    for shots in settings(root).shots:
        sampled = actor.on(engine=Shots(shots, seed=DRAW_SEED + seed, noisy=False))
        played = subjects.play(here, config, sampled, seed)
        rows.append(
            {
                "shots": shots,
                **_judged(played.judged),
                "return": played.reward_side["return"],
                "rms_g": _rms(played.rollout.g - exact.rollout.g),
                "rms_pixel": _rms(played.rollout.images - exact.rollout.images),
                "circuits": played.rollout.circuits,
            }
        )
    return {"rows": rows, "n_images": config.eval_images}


def denoiser(root: str, seed: int) -> dict[str, Any]:
    """Exactly and per number of shots an image: fidelity of what is read, and the judge's numbers.

    infidelity: mean over images of 1 − (Σ √(p p̂))², p the exact outcome probabilities and p̂ the counts' shares;
    infidelity_closed: mean of (d − 1)/(4·kept), to lowest order, for the images with a kept shot. An image without a
    single kept shot (lost) is counted as one of a single shot.
    """
    config, here = settings(root).subjects, Path(root)
    model = subjects.denoiser(here, config, seed)
    generator = torch.Generator().manual_seed(subjects.DENOISER_SEED + seed)
    labels = subjects.denoiser_labels(config.eval_images)
    chain = model.sample(len(labels), generator, labels)
    p = model.reverse.outcome_probabilities(chain.states)
    rows = [{"shots": None, **_judge(model.decode(p.float().sqrt()), labels)}]
    success = chain.probability
    for shots in settings(root).shots:
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
                **_judge(model.decode(share.float().sqrt()), labels),
            }
        )
    return {"rows": rows, "success": float(success.mean()), "n_images": len(labels), "dimension": p.shape[1]}


def learning(root: str, arm: str, seed: int) -> dict[str, Any]:
    """One PPO training: reward before and after, on exact values and on the shots it was trained with, and its cost.

    Rewards are mean episode rewards of the mean action on the evaluation starts, in standard deviations between
    controllers that act at random, over the base scale's.
    """
    config, here = settings(root), Path(root)
    name, _, number = arm.removesuffix("+head").partition(":")
    engine = Shots(int(number), seed=DRAW_SEED + seed, noisy=False) if number else "ideal"
    gradient: GradientMethod | None = None
    if name == "shift":
        gradient = ParameterShift()
    elif name == "spsa":
        gradient = SPSA(seed, 1, config.spsa_size)
    started = time.perf_counter()
    untrained, actor, history = subjects.train_policy(
        here,
        config.subjects,
        seed,
        kind="frozen" if name == "frozen" else "quantum",
        head=arm.endswith("+head"),
        engine=engine,
        gradient=gradient,
    )
    seconds = time.perf_counter() - started
    usage = actor.layer.usage
    before = subjects.play(here, config.subjects, untrained, seed)
    after = subjects.play(here, config.subjects, actor.on(engine="ideal"), seed)
    noisy = after if engine == "ideal" else subjects.play(here, config.subjects, actor, seed)
    result = {
        "arm": arm,
        "before": before.reward_side["return"],
        "after": after.reward_side["return"],
        "after_shots": noisy.reward_side["return"],
        "fd_before": _judged(before.judged)["fd"],
        "fd_after": _judged(after.judged)["fd"],
        "fd_shots": _judged(noisy.judged)["fd"],
        "circuits": usage.circuits,
        "shots": usage.shots,
        "seconds": seconds,
        "curve": [metrics["charts/episodic_return"] for metrics in history],
        "gradient": float(np.mean([metrics["gradients/circuit"] for metrics in history])),
    }
    return result


def _judge(images: Tensor, labels: Tensor) -> dict[str, float]:
    return _judged(evaluate_samples(images, labels, subjects.models().judge, subjects.models().heldout))


def _judged(found: dict[str, float] | None) -> dict[str, float]:
    assert found is not None
    return {"fd": found["fd"], "accuracy": found["accuracy"]}


def _rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())
