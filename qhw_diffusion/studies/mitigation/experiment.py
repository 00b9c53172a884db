"""The mitigation study: configuration, cells, and what each of them measures.

    preparation     state normalisation and reward scale; the denoiser's latent space
    models          the trained policy and the trained one-step denoiser of a seed
    policy          ⟨Z⟩ and the guidance scale at the ideal policy's states
    images          images steered by the policy under some strategies, with finite shots
    denoiser        the one-step denoiser's distribution of outcomes and its images
    process         the same of whole reverse processes, and what their circuits take (`process`)

What everything is compared with is the same circuit without noise: the policy and the denoiser were trained without.
Devices are simulated from their calibration data; so what calibration data do not know (drift, crosstalk, coherent
errors) is not in any of these numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from qhw_diffusion.circuits import policy_circuit
from qhw_diffusion.config import Config, require
from qhw_diffusion.denoising.device_step import DenoiserStep, classical_fidelity
from qhw_diffusion.diffusion import evaluate_samples
from qhw_diffusion.execution import CompiledCircuit, Engine, Estimate, Ideal, Noisy, Shots
from qhw_diffusion.experiment import Cell, Study
from qhw_diffusion.guidance import GuidanceConfig, PPOConfig, QuantumPolicy, compile_policy
from qhw_diffusion.guidance.evaluation import Sampled
from qhw_diffusion.mitigation import Mitigated
from qhw_diffusion.studies import reference_models
from qhw_diffusion.studies.mitigation.page import page
from qhw_diffusion.studies.mitigation.process import ProcessConfig, gates, model_of, process
from qhw_diffusion.studies.mitigation.words import (
    DEVICES,
    NONE,
    READOUT,
    READOUT_ZNE,
    SCHEDULED,
    is_scheduled,
    strategies_in,
)
from qhw_diffusion.studies.reference_models import ReferenceModelsConfig, rms, scale, states_met

DRAW_SEED = 8_000_000
JUDGED = ("energy", "fd", "accuracy")  # of images, by the evaluation classifier
# An evaluation with so many circuits for a value is repeated less often: simulating it takes long
MANY_CIRCUITS = 8
STRATEGIES = (
    NONE,
    "readout",
    READOUT,
    "zne:linear:1,3",
    READOUT_ZNE,
    "readout:measured+zne:linear:1,3,5",
    "readout:measured+zne:exponential:1,3",
    "readout:measured+zne:richardson:1,3,5",
    "readout:measured+twirling:8",
    SCHEDULED,
    "decoupling:xx",
    "readout:measured+mitiq-zne:linear:1,3:global:0",
    "readout:measured+mitiq-lre:1:4:1",
    "mitiq-cdr:24:0.5:shared:0",
    "readout:measured+mitiq-pec:24:0",
)
PARTS = ("policy", "images", "denoiser", "process")
STEERING = (NONE, READOUT, READOUT_ZNE, "mitiq-cdr:24:0.5:shared:0")


@dataclass(frozen=True)
class MitigationConfig(Config):
    """Mitigation strategies on devices and shots, for the policy circuit and denoisers."""

    parts: tuple[str, ...] = PARTS
    """What is measured: policy, images, denoiser (a step of its own), process (whole reverse processes)."""
    models: ReferenceModelsConfig = field(default_factory=lambda: ReferenceModelsConfig(eval_images=300, seeds=3))
    """Trained policy and denoiser."""
    devices: tuple[str, ...] = tuple(DEVICES)
    """Fake devices or snapshots."""
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    """Strategies as texts such as readout+zne:linear:1,3 or file.py:name, `none` among them."""
    steering: tuple[str, ...] = STEERING
    """Strategies under which the policy steers images."""
    shots: tuple[int, ...] = (1024, 4096, 16384)
    """Shots: for a value in all, and again per circuit."""
    steering_shots: tuple[int, ...] = (4096,)
    """Shots for a value in all, while images are steered."""
    states: int = 48
    """States of the policy at which it is evaluated."""
    repeats: int = 8
    """Repetitions of these, each with a calibration of its own; a quarter for strategies of many circuits."""
    denoiser_rows: int = 200
    """Images of the denoiser."""
    process: ProcessConfig = field(default_factory=ProcessConfig)
    """Whole reverse processes."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `Config.from_dict`; folders of before there was the part `process` go on without it."""
        return super().from_dict(values if "parts" in values else {**values, "parts": PARTS[:-1]})

    def __post_init__(self) -> None:
        require(
            bool(self.parts) and set(self.parts) <= set(PARTS) and len(set(self.parts)) == len(self.parts),
            f"parts are {self.parts}; allowed: some of {', '.join(PARTS)}, each once",
        )
        spelled = _spelled(self.process.strategies)
        if spelled != self.process.strategies:
            object.__setattr__(self, "process", self.process.replace(strategies=spelled))
        for field_name in ("strategies", "steering"):
            object.__setattr__(self, field_name, _spelled(getattr(self, field_name)))
        compared = NONE in self.strategies and NONE in self.steering
        require(compared, "strategies and steering must hold 'none', with which the others are compared")
        require(
            bool(self.devices and self.shots) and min(*self.shots, *self.steering_shots) >= 64,
            f"give at least one device, and shots from 64; given {self.devices}, {self.shots}, {self.steering_shots}",
        )
        enough = self.states >= 2 and self.repeats >= 2 and self.denoiser_rows >= 20
        require(enough, "states and repeats must be at least 2, denoiser_rows at least 20")


def _spelled(names: Iterable[str]) -> tuple[str, ...]:
    """Each text as its strategies write it, so that one strategy has one name.

    Where a list was split at all of its commas, what begins with a digit goes on with the scale factors before it.
    """
    texts = re.split(r",(?=[^\d.])", ",".join(names))
    return tuple("+".join(strategy.spec or strategy.label for strategy in strategies_in(t)) or t for t in texts)


QUICK = MitigationConfig(
    models=ReferenceModelsConfig(
        guidance=GuidanceConfig(noise_pool=80, g0=2.0),
        ppo=PPOConfig.short(num_iterations=8, num_envs=40, update_epochs=1, num_minibatches=4),
        eval_images=60,
        denoiser_iterations=60,
        autoencoder_steps=300,
        seeds=2,
    ),
    devices=("fake_manila",),
    strategies=(NONE, READOUT, "zne:linear:1,3", READOUT_ZNE),
    steering=(NONE, READOUT_ZNE),
    shots=(4096,),
    states=12,
    repeats=4,
    denoiser_rows=60,
    process=ProcessConfig(
        steps=(2,),
        strategies=(NONE, READOUT, READOUT_ZNE),
        shots=(4096,),
        images=60,
        repeats=2,
        judged=1,
        seeds=2,
        gate_steps=(2,),
        gate_qubits=(3,),
    ),
)


def mitigated(engine: Engine, name: str) -> Engine:
    """A new engine behind this strategy of the study; `engine` itself for those without."""
    strategies = strategies_in(name)
    return Mitigated(engine, strategies) if strategies else engine


def check(config: MitigationConfig) -> None:
    """Raises what loading a device, training a model or making a strategy would, and MissingDependencyError."""
    for device in config.devices:
        reference_models.device_of(device)
    reference_models.check(config.models)
    for device in config.devices:
        for name in dict.fromkeys((*config.strategies, *config.steering, *config.process.strategies)):
            mitigated(Noisy(), name).check(compiled_policy(device, is_scheduled(name)))


def cells(config: MitigationConfig) -> list[Cell]:
    """Per seed the two models, and on every device three measurements on them."""
    usual = MitigationConfig()
    models_take = reference_models.seconds_of(config.models, usual.models)
    tried = len(config.strategies) / len(usual.strategies)
    draws = len(config.shots) / len(usual.shots) * tried
    steered = len(config.steering) * len(config.steering_shots) / (len(usual.steering) * len(usual.steering_shots))
    measurements = {
        "policy": 1 + 39 * config.states * config.repeats / (usual.states * usual.repeats) * draws,
        "denoiser": 1 + 59 * config.denoiser_rows / usual.denoiser_rows * draws,
        "images": 1 + 29 * models_take["images"] * steered,
    }
    found = [Cell("preparation", {"part": "preparation"}, seconds=models_take["preparation"])]
    measurements = {part: seconds for part, seconds in measurements.items() if part in config.parts}
    for seed in range(config.models.seeds if measurements else 0):
        models, label = f"models-seed{seed}", f"policy and denoiser, seed {seed}"
        found.append(Cell(models, {"part": "models", "seed": seed}, ("preparation",), models_take["models"], label))
        for device in config.devices:
            for part, seconds in measurements.items():
                parameters = {"part": part, "device": device, "seed": seed}
                label = f"{part}, {device}, seed {seed}"
                found.append(Cell(f"{part}-{Path(device).name}-seed{seed}", parameters, (models,), seconds, label))
    return found + (_process_cells(config) if "process" in config.parts else [])


def _process_cells(config: MitigationConfig) -> list[Cell]:
    p, usual = config.process, ProcessConfig()
    trained = 15 * config.models.denoiser_iterations / ReferenceModelsConfig().denoiser_iterations
    share = p.images / usual.images * len(p.strategies) / len(usual.strategies)
    share *= 0.5 + 0.5 * len(p.shots) * p.repeats / (len(usual.shots) * usual.repeats)
    found = []
    for device in config.devices:
        seconds = 2.0 * len(p.gate_steps) * len(p.gate_qubits)
        found.append(Cell(f"gates-{Path(device).name}", {"part": "gates", "device": device}, (), seconds))
    for seed in range(p.seeds):
        models, label = f"process-models-seed{seed}", f"denoisers of {len(p.steps)} lengths, seed {seed}"
        parameters: dict[str, Any] = {"part": "process-models", "seed": seed}
        found.append(Cell(models, parameters, ("preparation",), trained * len(p.steps), label))
        for device in config.devices:
            for steps in p.steps:
                parameters = {"part": "process", "device": device, "seed": seed, "steps": steps}
                name, label = (
                    f"process-T{steps}-{Path(device).name}-seed{seed}",
                    f"{steps} steps, {device}, seed {seed}",
                )
                # the noise of one more qubit a step takes twice the time, and so does twice the circuit
                found.append(Cell(name, parameters, (models,), 1 + 4 * share * 2**steps, label))
    return found


def run_cell(config: MitigationConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Do one cell (see the top of this file)."""
    part = cell["part"]
    if part == "preparation":
        if set(config.parts) & {"policy", "images"}:
            reference_models.calibrated(folder, config.models)
        reference_models.autoencoder(folder, config.models)
        return {}
    if part == "models":
        if set(config.parts) & {"policy", "images"}:
            reference_models.policy(folder, config.models, cell["seed"])
        if "denoiser" in config.parts:
            reference_models.denoiser(folder, config.models, cell["seed"], steps=1)
        return {}
    if part == "process-models":
        for steps in config.process.steps:
            model_of(config.models, folder, cell["seed"], steps)
        return {}
    if part == "process":
        return process(config.process, config.models, folder, cell["device"], cell["seed"], cell["steps"])
    if part == "gates":
        return gates(config.process, config.models, cell["device"])
    measure = {"policy": policy, "denoiser": denoiser, "images": images}[part]
    return measure(config, folder, cell["device"], cell["seed"])


@lru_cache(maxsize=8)
def compiled_policy(device: str, scheduled: bool) -> CompiledCircuit:
    """The policy's circuit on a device, once per process: strategies keep what they make of it."""
    return compile_policy(policy_circuit(), reference_models.device_of(device), scheduled=scheduled)


def runs_of(factor: float, shots: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
    """(how, shots asked for, shots per circuit) of a strategy that runs `factor` circuits for a value.

    how: "total" counts the shots of all its circuits, "each" gives every circuit that many; left out where both are
    nearly the same, and for strategies of many circuits.
    """
    for number in shots:
        yield "total", number, max(1, round(number / factor))
        if 1.2 < factor < MANY_CIRCUITS:
            yield "each", number, number


def policy(config: MitigationConfig, folder: Path, device: str, seed: int) -> dict[str, Any]:
    """Per strategy: bias with infinitely many shots; scatter, error and cost with finite ones; of ⟨Z⟩ and of g.

    bias: root mean square of (exact value − ideal), over states and qubits; rms: of (sampled − ideal), over repeats
    too; sd: of the standard deviation over repeats; told: of the standard errors the estimates state; *_g: the same of
    the guidance scale. circuits: for one value, calibration and training circuits shared by the states of a batch.
    """
    guidance, _ = reference_models.calibrated(folder, config.models)
    actor = reference_models.policy(folder, config.models, seed)
    states = states_met(folder, config.models, seed, config.states)
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
                "bias": rms(exact.values - ideal),
                "bias_g": rms(scale(actor, exact.values, guidance) - g_ideal),
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
    return {"rows": found, "circuit": summary, "rms_z": rms(ideal), "rms_g": float(g_ideal.std())}


def repeated(
    config: MitigationConfig,
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
        "rms": rms(values - ideal),
        "sd": rms(values.std(0)),
        "told": rms(torch.stack([e.std_errors for e in estimates])),
        "total_shots": estimates[0].usage.shots / len(ideal),
    }


def _scale_errors(
    estimates: list[Estimate], actor: QuantumPolicy, guidance: GuidanceConfig, g_ideal: Tensor
) -> dict[str, float]:
    g = torch.stack([scale(actor, e.values, guidance) for e in estimates])
    return {"rms_g": rms(g - g_ideal), "sd_g": rms(g.std(0))}


def images(config: MitigationConfig, folder: Path, device: str, seed: int) -> dict[str, Any]:
    """Images and g along the path: ideal, with shots but no noise, and under each strategy."""
    actor = reference_models.policy(folder, config.models, seed)
    reference = ideal_images(config, folder, seed)
    assert reference.judged is not None
    told = {key: reference.judged[key] for key in JUDGED}
    found: list[dict[str, Any]] = [{"strategy": "ideal", "shots": None, **told, "rms_g": 0.0}]
    draw = DRAW_SEED + 1000 * seed + 500
    # as many rows as are steered together share calibration and training circuits
    together = min(reference_models.STEERED_TOGETHER, config.models.eval_images)
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
            player = reference_models.policy(folder, config.models, seed)
            player.layer = player.layer.with_compiled(compiled, engine)
            played = reference_models.play(folder, config.models, player, seed)
            assert played.judged is not None
            found.append(
                {
                    "strategy": name,
                    "shots": number,
                    **{key: played.judged[key] for key in JUDGED},
                    "return": played.reward_side["return"],
                    "rms_g": rms(played.rollout.g - reference.rollout.g),
                    "rms_pixel": rms(played.rollout.images - reference.rollout.images),
                    "circuits": player.layer.usage.circuits,
                    "total_shots": player.layer.usage.shots,
                }
            )
    return {"rows": found, "n_images": config.models.eval_images}


@lru_cache(maxsize=1)
def ideal_images(config: MitigationConfig, folder: Path, seed: int) -> Sampled:
    """What the ideal policy makes of the evaluation's initial noise: the same for every device."""
    models = config.models
    return reference_models.play(folder, models, reference_models.policy(folder, models, seed), seed)


@lru_cache(maxsize=2)
def step_of(config: MitigationConfig, folder: Path, seed: int) -> DenoiserStep:
    """The trained one-step denoiser of a seed as a circuit."""
    return DenoiserStep.of(reference_models.denoiser(folder, config.models, seed, steps=1))


@lru_cache(maxsize=8)
def compiled_step(config: MitigationConfig, folder: Path, device: str, scheduled: bool) -> CompiledCircuit:
    """The denoiser's circuit on a device, once per process; all seeds have the same one."""
    return step_of(config, folder, 0).compile(reference_models.device_of(device), scheduled=scheduled)


def denoiser(config: MitigationConfig, folder: Path, device: str, seed: int) -> dict[str, Any]:
    """Per strategy: error of the strings, fidelity of the read-out distribution, and metrics of the images.

    fidelity: (Σ √(p q))² with the ideal read-out, mean over images; lost: images of which no ancilla 0 is left.
    """
    step = step_of(config, folder, seed)
    labels = reference_models.denoiser_labels(config.denoiser_rows)
    rows = step.rows(labels, torch.Generator().manual_seed(reference_models.DENOISER_SEED + seed))
    ideal = Ideal().estimate(compiled_step(config, folder, device, False), rows).values
    wanted, success = step.read(ideal)

    def judged(values: Tensor) -> dict[str, float]:
        p, kept = step.read(values)
        told = evaluate_samples(
            step.images(p), labels, reference_models.models().evaluation_classifier, reference_models.models().heldout
        )
        fidelity = classical_fidelity(p, wanted)
        return {
            "fidelity": float(fidelity.mean()),
            "lost": int((kept == 0).sum()),
            "success": float(kept.mean()),
            **{key: told[key] for key in JUDGED},
        }

    found: list[dict[str, Any]] = [{"strategy": "ideal", "how": "exact", "shots": None, **judged(ideal)}]
    for number in config.shots:
        sampled = Shots(number, seed=DRAW_SEED + 1000 * seed, noisy=False).estimate(
            compiled_step(config, folder, device, False), rows
        )
        told = {"rms": rms(sampled.values - ideal), "total_shots": float(number), "circuits": 1.0}
        found.append({"strategy": "shots", "how": "total", "shots": number, **told, **judged(sampled.values)})
    for name in config.strategies:
        compiled = compiled_step(config, folder, device, is_scheduled(name))
        exact = mitigated(Noisy(), name).estimate(compiled, rows)
        factor = mitigated(Shots(4096), name).estimate(compiled, rows).usage.circuits / len(rows)
        bias = {"circuits": factor, "bias": rms(exact.values - ideal)}
        found.append({"strategy": name, "how": "exact", "shots": None, **bias, **judged(exact.values)})
        for how, number, per_circuit in runs_of(factor, config.shots):
            engine = mitigated(Shots(per_circuit, seed=DRAW_SEED + 1000 * seed), name)
            sampled = engine.estimate(compiled, rows)
            numbers = {
                "rms": rms(sampled.values - ideal),
                "sd": rms(sampled.values - exact.values),
                "total_shots": sampled.usage.shots / len(rows),
                "circuits": factor,
            }
            found.append({"strategy": name, "how": how, "shots": number, **numbers, **judged(sampled.values)})
    summary = compiled_step(config, folder, device, False).summary()
    return {"rows": found, "circuit": summary, "success": float(success.mean()), "n_images": len(labels)}


STUDY = Study(
    name="mitigation",
    title="What mitigation does",
    summary="compare mitigation strategies on devices and shots: bias, scatter, cost, guidance, images, the denoiser",
    config=MitigationConfig,
    cells=cells,
    run=run_cell,
    page=page,
    row_parameters=("strategy", "how", "shots"),
    quick=QUICK,
    no_flags=reference_models.NO_FLAGS,
    check=check,
)
