"""The pieces of work of the mitigation study; each leaves one file pieces/<what>-<device>-seed<k>.json.

    policy      ⟨Z⟩ and the guidance scale at the ideal policy's states
    images      images steered by the policy under some strategies, with finite shots
    denoiser    a one-step denoiser's distribution of outcomes and its images

What everything is compared with is the same circuit without noise: the policy and the denoiser were trained without.
Devices are simulated from their calibration data; so what calibration data do not know (drift, crosstalk, coherent
errors) is not in any of these numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.circuits import policy_circuit
from qhw_diffusion.diffusion import evaluate_samples
from qhw_diffusion.execution import CompiledCircuit, Engine, Estimate, Ideal, Noisy, Shots
from qhw_diffusion.guidance import GuidanceConfig, QuantumActor, compile_policy
from qhw_diffusion.runs import RunFolder, atomic_write_json
from qhw_diffusion.studies import reference_models as subjects
from qhw_diffusion.studies.denoiser_step import DenoiserStep, classical_fidelity
from qhw_diffusion.studies.measure import Sampled
from qhw_diffusion.studies.mitigation_settings import MitigationStudyConfig, is_scheduled, mitigated
from qhw_diffusion.studies.shots.experiment import scale

KIND = "mitigation-study"
DRAW_SEED = 8_000_000
# An evaluation with so many circuits for a value is repeated less often: simulating it takes long
MANY_CIRCUITS = 8
PIECES = ("policy", "denoiser", "images")


def piece_file(root: Path, piece: str, device: str, seed: int) -> Path:
    """Result of one piece of work on one device and seed."""
    return root / "pieces" / f"{piece}-{Path(device).name}-seed{seed}.json"


@lru_cache(maxsize=1)
def settings(root: str) -> MitigationStudyConfig:
    """The settings of the study in this folder."""
    return MitigationStudyConfig.from_dict(RunFolder.open(root, kind=KIND).config)


def make_subjects(root: str, seed: int) -> None:
    """The trained policy and the one-step denoiser of a seed."""
    config = settings(root).subjects
    subjects.policy(Path(root), config, seed)
    subjects.denoiser(Path(root), config, seed, steps=1)


def do_piece(root: str, piece: str, device: str, seed: int) -> None:
    """Do one piece and write its file."""
    work = {"policy": policy, "denoiser": denoiser, "images": images}[piece]
    result = {"piece": piece, "device": device, "seed": seed, **work(root, device, seed)}
    atomic_write_json(piece_file(Path(root), piece, device, seed), result)


@lru_cache(maxsize=8)
def compiled_policy(device: str, scheduled: bool) -> CompiledCircuit:
    """The policy's circuit on a device, once per process: strategies keep what they make of it."""
    return compile_policy(policy_circuit(), subjects.device_of(device), scheduled=scheduled)


def runs_of(factor: float, shots: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
    """(how, shots asked for, shots per circuit) of a strategy that runs `factor` circuits for a value.

    how: "total" counts the shots of all its circuits, "each" gives every circuit that many; left out where both are
    nearly the same, and for strategies of many circuits.
    """
    for number in shots:
        yield "total", number, max(1, round(number / factor))
        if 1.2 < factor < MANY_CIRCUITS:
            yield "each", number, number


def policy(root: str, device: str, seed: int) -> dict[str, Any]:
    """Per strategy: bias with infinitely many shots; scatter, error and cost with finite ones; of ⟨Z⟩ and of g.

    bias: root mean square of (exact value − ideal), over states and qubits; rms: of (sampled − ideal), over repeats
    too; sd: of the standard deviation over repeats; told: of the standard errors the estimates state; *_g: the same of
    the guidance scale. circuits: for one value, calibration and training circuits shared by the states of a batch.
    """
    config, here = settings(root), Path(root)
    guidance, _ = subjects.calibrated(here, config.subjects)
    actor = subjects.policy(here, config.subjects, seed)
    states = policy_states(root, seed)
    with torch.no_grad():
        angles, weights = actor.angles(states), actor.layer.weight
    rows = torch.cat([angles, weights.expand(len(states), -1)], 1).double()
    ideal = Ideal().estimate(compiled_policy(device, False), rows).values
    g_ideal = scale(actor, ideal, guidance)
    found = []
    for name in config.strategies:
        compiled = compiled_policy(device, is_scheduled(name))
        exact = mitigated(Noisy(), name).estimate(compiled, rows)
        factor = mitigated(Shots(4096), name).estimate(compiled, rows).usage.circuits / len(rows)
        found.append(
            {
                "strategy": name,
                "how": "exact",
                "shots": None,
                "circuits": factor,
                "bias": _rms(exact.values - ideal),
                "bias_g": _rms(scale(actor, exact.values, guidance) - g_ideal),
            }
        )
        for how, number, per_circuit in runs_of(factor, config.shots):
            estimates = repeated(config, compiled, rows, name, factor, per_circuit, seed)
            found.append(
                {
                    "strategy": name,
                    "how": how,
                    "shots": number,
                    "circuits": factor,
                    **_errors(estimates, ideal),
                    **_scale_errors(estimates, actor, guidance, g_ideal),
                }
            )
    summary = compiled_policy(device, False).summary()
    return {"rows": found, "circuit": summary, "rms_z": _rms(ideal), "rms_g": float(g_ideal.std())}


def policy_states(root: str, seed: int) -> Tensor:
    """States [n, 6] the ideal policy meets."""
    config = settings(root)
    actor = subjects.policy(Path(root), config.subjects, seed)
    count = max(20, -(-2 * config.states // config.subjects.n_steps))
    every = subjects.play(Path(root), config.subjects, actor, seed, images=count).rollout.states.flatten(0, 1)
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[: config.states]]


def repeated(
    config: MitigationStudyConfig,
    compiled: CompiledCircuit,
    rows: Tensor,
    name: str,
    factor: float,
    shots: int,
    seed: int,
) -> list[Estimate]:
    """Estimates with these shots per circuit, each from a new engine, so that calibrations are repeated too."""
    repeats = max(2, config.repeats // 4) if factor >= MANY_CIRCUITS else config.repeats
    engines = (Shots(shots, seed=DRAW_SEED + 1000 * seed + r) for r in range(repeats))
    return [mitigated(engine, name).estimate(compiled, rows) for engine in engines]


def _errors(estimates: list[Estimate], ideal: Tensor) -> dict[str, float]:
    values = torch.stack([e.values for e in estimates])
    return {
        "rms": _rms(values - ideal),
        "sd": _rms(values.std(0)),
        "told": _rms(torch.stack([e.std_errors for e in estimates])),
        "total_shots": estimates[0].usage.shots / len(ideal),
    }


def _scale_errors(
    estimates: list[Estimate], actor: QuantumActor, guidance: GuidanceConfig, g_ideal: Tensor
) -> dict[str, float]:
    g = torch.stack([scale(actor, e.values, guidance) for e in estimates])
    return {"rms_g": _rms(g - g_ideal), "sd_g": _rms(g.std(0))}


def images(root: str, device: str, seed: int) -> dict[str, Any]:
    """Images and g along the path: ideal, with shots but no noise, and under each strategy."""
    config, here = settings(root), Path(root)
    actor = subjects.policy(here, config.subjects, seed)
    reference = ideal_images(root, seed)
    assert reference.judged is not None
    fd, accuracy = reference.judged["fd"], reference.judged["accuracy"]
    found: list[dict[str, Any]] = [{"strategy": "ideal", "shots": None, "fd": fd, "accuracy": accuracy, "rms_g": 0.0}]
    draw = DRAW_SEED + 1000 * seed + 500
    # as many rows as are steered together share calibration and training circuits
    together = min(subjects.STEERED_TOGETHER, config.subjects.eval_images)
    rows = torch.cat([torch.zeros(together, 6), actor.layer.weight.detach().expand(together, -1)], 1)
    for number in config.steering_shots:
        players: list[tuple[str, CompiledCircuit, Engine]] = [
            ("shots", compiled_policy(device, False), Shots(number, seed=draw, noisy=False))
        ]
        for name in config.steering:
            compiled = compiled_policy(device, is_scheduled(name))
            factor = mitigated(Shots(4096), name).estimate(compiled, rows).usage.circuits / len(rows)
            players.append((name, compiled, mitigated(Shots(max(1, round(number / factor)), seed=draw), name)))
        for name, compiled, engine in players:
            player = subjects.policy(here, config.subjects, seed)
            player.layer = player.layer.with_compiled(compiled, engine)
            played = subjects.play(here, config.subjects, player, seed)
            assert played.judged is not None
            found.append(
                {
                    "strategy": name,
                    "shots": number,
                    "fd": played.judged["fd"],
                    "accuracy": played.judged["accuracy"],
                    "return": played.reward_side["return"],
                    "rms_g": _rms(played.rollout.g - reference.rollout.g),
                    "rms_pixel": _rms(played.rollout.images - reference.rollout.images),
                    "circuits": player.layer.usage.circuits,
                    "total_shots": player.layer.usage.shots,
                }
            )
    return {"rows": found, "n_images": config.subjects.eval_images}


@lru_cache(maxsize=1)
def ideal_images(root: str, seed: int) -> Sampled:
    """What the ideal policy makes of the evaluation starts: the same for every device."""
    config, here = settings(root).subjects, Path(root)
    return subjects.play(here, config, subjects.policy(here, config, seed), seed)


@lru_cache(maxsize=2)
def step_of(root: str, seed: int) -> DenoiserStep:
    """The trained one-step denoiser of a seed as a circuit."""
    return DenoiserStep.of(subjects.denoiser(Path(root), settings(root).subjects, seed, steps=1))


@lru_cache(maxsize=8)
def compiled_step(root: str, device: str, scheduled: bool) -> CompiledCircuit:
    """The denoiser's circuit on a device, once per process; all seeds have the same one."""
    return step_of(root, 0).compile(subjects.device_of(device), scheduled=scheduled)


def denoiser(root: str, device: str, seed: int) -> dict[str, Any]:
    """Per strategy: error of the strings, fidelity of the read-out distribution, and the judge's numbers of the images.

    fidelity: (Σ √(p q))² with the ideal read-out, mean over images; lost: images of which no ancilla 0 is left.
    """
    config = settings(root)
    step = step_of(root, seed)
    labels = subjects.denoiser_labels(config.denoiser_rows)
    rows = step.rows(labels, torch.Generator().manual_seed(subjects.DENOISER_SEED + seed))
    ideal = Ideal().estimate(compiled_step(root, device, False), rows).values
    wanted, success = step.read(ideal)

    def judged(values: Tensor) -> dict[str, float]:
        p, kept = step.read(values)
        told = evaluate_samples(step.images(p), labels, subjects.models().judge, subjects.models().heldout)
        fidelity = classical_fidelity(p, wanted)
        return {
            "fidelity": float(fidelity.mean()),
            "lost": int((kept == 0).sum()),
            "success": float(kept.mean()),
            "fd": told["fd"],
            "accuracy": told["accuracy"],
        }

    found: list[dict[str, Any]] = [{"strategy": "ideal", "how": "exact", "shots": None, **judged(ideal)}]
    for number in config.shots:
        sampled = Shots(number, seed=DRAW_SEED + 1000 * seed, noisy=False).estimate(
            compiled_step(root, device, False), rows
        )
        told = {"rms": _rms(sampled.values - ideal), "total_shots": float(number), "circuits": 1.0}
        found.append({"strategy": "shots", "how": "total", "shots": number, **told, **judged(sampled.values)})
    for name in config.strategies:
        compiled = compiled_step(root, device, is_scheduled(name))
        exact = mitigated(Noisy(), name).estimate(compiled, rows)
        factor = mitigated(Shots(4096), name).estimate(compiled, rows).usage.circuits / len(rows)
        bias = {"circuits": factor, "bias": _rms(exact.values - ideal)}
        found.append({"strategy": name, "how": "exact", "shots": None, **bias, **judged(exact.values)})
        for how, number, per_circuit in runs_of(factor, config.shots):
            engine = mitigated(Shots(per_circuit, seed=DRAW_SEED + 1000 * seed), name)
            sampled = engine.estimate(compiled, rows)
            numbers = {
                "rms": _rms(sampled.values - ideal),
                "sd": _rms(sampled.values - exact.values),
                "total_shots": sampled.usage.shots / len(rows),
                "circuits": factor,
            }
            found.append({"strategy": name, "how": how, "shots": number, **numbers, **judged(sampled.values)})
    summary = compiled_step(root, device, False).summary()
    return {"rows": found, "circuit": summary, "success": float(success.mean()), "n_images": len(labels)}


def _rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())
