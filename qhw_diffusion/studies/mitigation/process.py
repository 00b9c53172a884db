"""The mitigation study's part on whole reverse processes: every step of a denoiser as one circuit, at equal shots.

    process-models  the trained denoisers of a seed, one for every number of steps
    process         what each strategy makes of their images on a device: distance to the ideal, bias and scatter apart
    gates           qubits, two-qubit gates, depth and duration of the circuits on a device

A strategy corrects ⟨P Z^s⟩; the distribution of the shots that pass is a quotient of these (`denoising.quotient`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.circuits import deferred_circuit, reverse_circuit
from qhw_diffusion.circuits.deferred import MOST_STRINGS
from qhw_diffusion.config import Config, check_whole, require
from qhw_diffusion.denoising import LatentQDM, ReverseConfig
from qhw_diffusion.denoising.deferred import compile_deferred, deferred_inputs, deferred_weights, plain_shots
from qhw_diffusion.denoising.quotient import Quotient, quotient_of
from qhw_diffusion.denoising.readout import project_simplex
from qhw_diffusion.diffusion import evaluate_samples
from qhw_diffusion.execution import CompiledCircuit, Engine, Estimate, Ideal, Shots, compile_circuit
from qhw_diffusion.execution.engine import rows_of
from qhw_diffusion.execution.measurement import Member
from qhw_diffusion.mitigation import Mitigated, strategies_of
from qhw_diffusion.mitigation.rewriting import folded
from qhw_diffusion.mitigation.zne import ZNE, extrapolate
from qhw_diffusion.studies import reference_models
from qhw_diffusion.studies.mitigation.words import NONE, READOUT, READOUT_ZNE, SCHEDULED, is_scheduled, strategies_in
from qhw_diffusion.studies.reference_models import ReferenceModelsConfig, rms

PROCESS_SEED = 9_000_000
STRATEGIES = (
    NONE,
    READOUT,
    "readout:measured+twirling:4",
    READOUT_ZNE,
    "readout:measured+zne:linear:1,3:global",
    "readout:measured+twirling:4+zne:linear:1,3",
    SCHEDULED,
    "decoupling:xx",
)
IDEAL, PLAIN, UNIFORM, OF_QUOTIENT = "ideal", "shots", "uniform", "zne of the quotient"
"""Rows that are no strategy: without noise, exact and with shots; the uniform distribution; `of_quotient`."""
# So many shots have no scatter left that a table shows: 10⁻⁶
EXACT = 10**12
JUDGED = ("energy", "fd", "accuracy")


@dataclass(frozen=True)
class ProcessConfig(Config):
    """Whole reverse processes under mitigation."""

    steps: tuple[int, ...] = (2, 4)
    """Reverse steps T of the denoisers."""
    strategies: tuple[str, ...] = STRATEGIES
    """Strategies, `none` among them."""
    shots: tuple[int, ...] = (1024, 4096, 16384)
    """Shots for an image, in all."""
    images: int = 200
    """Images of each denoiser."""
    repeats: int = 4
    """Repetitions with shots, each with a calibration of its own."""
    judged: int = 2
    """Repetitions whose images are judged by the evaluation classifier."""
    seeds: int = 5
    """Seeds: a seed is one training of every denoiser and one set of starts."""
    gate_steps: tuple[int, ...] = (2, 4, 8)
    """Reverse steps in the table of gates."""
    gate_qubits: tuple[int, ...] = (3, 4, 6)
    """Data qubits in the table of gates."""

    def __post_init__(self) -> None:
        check_whole(self, "judged", "seeds")
        check_whole(self, "repeats", least=2)
        check_whole(self, "images", least=20)
        require(NONE in self.strategies, "process.strategies must hold 'none', with which the others are compared")
        require(
            self.judged <= self.repeats, f"process.judged is {self.judged}; at most process.repeats, {self.repeats}"
        )
        require(bool(self.steps and self.shots), "give process.steps and process.shots at least one number each")
        counts = (*self.steps, *self.gate_steps, *self.gate_qubits)
        require(min(counts) >= 1 and min(self.shots) >= 64, "steps and qubits are from 1, process.shots from 64")


@dataclass(frozen=True)
class Redrawn(Shots):
    """`Shots` whose exact distributions are computed once for a circuit, so that repetitions cost the drawing alone.

    Attributes:
        known: circuit → (rows, distributions); engines that share it share the distributions.
    """

    known: WeakKeyDictionary[CompiledCircuit, tuple[Tensor, list[tuple[slice, Sequence[Member], np.ndarray]]]] = field(
        default_factory=WeakKeyDictionary, repr=False, compare=False
    )

    def distributions(
        self, compiled: CompiledCircuit, parameters: Tensor
    ) -> Iterable[tuple[slice, Sequence[Member], np.ndarray]]:
        """As `Shots.distributions`."""
        found = self.known.get(compiled)
        if found is None or not torch.equal(found[0], parameters):
            found = self.known[compiled] = (parameters.clone(), list(super().distributions(compiled, parameters)))
        return found[1]


def model_of(models: ReferenceModelsConfig, folder: Path, seed: int, steps: int) -> LatentQDM:
    """The trained denoiser of so many steps of a seed, trained if it is not there yet."""
    return reference_models.denoiser(folder, models, seed, steps=steps, name=f"denoiser-T{steps}")


@dataclass(frozen=True)
class Circuits:
    """A denoiser's circuits on a device, and what is asked of them.

    Attributes:
        model: the denoiser.
        labels: int64 [B].
        compiled: by whether it is scheduled.
        rows: [B, P] angles.
        known: of `Redrawn`.
    """

    model: LatentQDM
    labels: Tensor
    compiled: Mapping[bool, CompiledCircuit]
    rows: Tensor
    known: WeakKeyDictionary[Any, Any] = field(default_factory=WeakKeyDictionary)

    @classmethod
    def of(cls, model: LatentQDM, device: str, images: int, seed: int, *, scheduled: bool = True) -> Circuits:
        """Labels in turn, starts drawn from the prior."""
        labels = reference_models.denoiser_labels(images) % model.reverse.config.n_labels
        generator = torch.Generator().manual_seed(PROCESS_SEED + seed)
        starts = model.forward_process.prior(images, model.dim, generator)
        rows = rows_of(deferred_inputs(model, starts, labels), deferred_weights(model).double())
        where = reference_models.device_of(device)
        ways = (False, True) if scheduled else (False,)
        return cls(model, labels, {way: compile_deferred(model, where, scheduled=way) for way in ways}, rows)

    def engine(self, name: str, shots: int, seed: int, *, noisy: bool = True) -> Engine:
        """A new engine behind this strategy, which calibrates anew."""
        base = Redrawn(shots, seed, noisy, known=self.known if noisy else WeakKeyDictionary())
        strategies = strategies_in(name)
        return Mitigated(base, strategies) if strategies else base

    def estimate(self, name: str, shots: int, seed: int, *, noisy: bool = True) -> tuple[Engine, Estimate]:
        """⟨P Z^s⟩ [B, 2ⁿ] of all images under a strategy; calibration is in the usage."""
        engine = self.engine(name, shots, seed, noisy=noisy)
        return engine, engine.estimate(self.compiled[is_scheduled(name)], self.rows)

    def read(self, name: str, shots: int, seed: int, *, noisy: bool = True) -> Quotient:
        """The quotient of `estimate`."""
        engine, estimate = self.estimate(name, shots, seed, noisy=noisy)
        return quotient_of(estimate.values, estimate.std_errors, plain_shots(engine, estimate), estimate.covariance)

    def circuits(self, name: str) -> float:
        """Circuits for an image, with its share of the calibration."""
        return self.estimate(name, 4096, 0)[1].usage.circuits / len(self.rows)


def of_quotient(circuits: Circuits, name: str, shots: int, seed: int) -> tuple[Tensor, Tensor]:
    """ZNE the other way round: divided at every noise scale, the quotients extrapolated.

    Args:
        circuits: as given.
        name: strategies, the last of which is ZNE.
        shots: of each circuit.
        seed: of the outcomes.

    Returns:
        p [B, d], which may leave [0, 1]; bool [B], whether the success probability is told from 0 at every scale.
    """
    *inner, zne = strategies_of(name)
    assert isinstance(zne, ZNE)
    compiled = circuits.compiled[False]
    base = Redrawn(shots, seed, known=circuits.known)
    engine: Engine = Mitigated(base, inner) if inner else base
    scaled = [folded(compiled, factor, zne.folding)[0] for factor in zne.scale_factors]
    estimates = engine.estimate_many([(each, circuits.rows) for each in scaled])
    reads = [quotient_of(e.values, e.std_errors, plain_shots(engine, e), e.covariance) for e in estimates]
    p = torch.stack([read.probabilities.nan_to_num(1 / read.probabilities.shape[1]) for read in reads])
    found, _ = extrapolate(p, torch.zeros_like(p), zne.reached(compiled), zne.degree, zne.extrapolation)
    return found, torch.stack([read.resolved for read in reads]).all(0)


def distance(p: Tensor, q: Tensor) -> Tensor:
    """Total variation distance ½ Σ |p − q| of distributions [..., d]."""
    return 0.5 * (p - q).abs().sum(-1)


def clipped(p: Tensor) -> Tensor:
    """The other way to make a distribution of p [..., d]: negative entries set to 0, the rest divided by its sum."""
    positive = p.clamp_min(0)
    return positive / positive.sum(-1, keepdim=True)


def measure(config: ProcessConfig, circuits: Circuits, seed: int) -> list[dict[str, Any]]:
    """Per strategy: distance to the ideal distribution, bias and scatter apart, success probability, images.

    exact: with infinitely many shots: distance (the bias), success (its mean), bias_success (root mean square over
    images). total: so many shots an image in all, means over repetitions: distance, scatter (distance to the exact
    distribution of the same strategy), clipped (the distance, negative entries clipped in place of projected), negative
    (their sum), rms_success, sd_success, told_success (stated error), lost (share of images whose success is not told
    from 0; they count as uniform).
    """
    ideal = Ideal().estimate(circuits.compiled[False], circuits.rows)
    wanted = quotient_of(ideal.values, ideal.std_errors)
    p_ideal, s_ideal = wanted.distribution, wanted.success
    found: list[dict[str, Any]] = [
        {"strategy": IDEAL, "how": "exact", "shots": None, "success": float(s_ideal.mean()),
         **_judged(circuits, p_ideal)},
        {"strategy": UNIFORM, "how": "exact", "shots": None,
         "distance": float(distance(p_ideal, torch.full_like(p_ideal, 1 / p_ideal.shape[1])).mean())},
    ]  # fmt: skip
    for number in config.shots:
        reads = [circuits.read(NONE, number, _draw(seed, r), noisy=False) for r in range(config.repeats)]
        found.append({"strategy": PLAIN, "how": "total", "shots": number, "circuits": 1.0, "total_shots": number,
                      **_sampled(config, circuits, reads, p_ideal, s_ideal, p_ideal)})  # fmt: skip
    for name in config.strategies:
        factor, exact = circuits.circuits(name), circuits.read(name, EXACT, 0)
        p_exact = exact.distribution
        row = {"strategy": name, "how": "exact", "shots": None, "circuits": factor}
        found.append(
            {
                **row,
                "distance": float(distance(p_exact, p_ideal).mean()),
                "success": float(exact.success.mean()),
                "bias_success": rms(exact.success - s_ideal),
                **_judged(circuits, p_exact),
            }
        )
        for number in config.shots:
            per_circuit = max(2, round(number / factor))
            reads = [circuits.read(name, per_circuit, _draw(seed, r)) for r in range(config.repeats)]
            row = {"strategy": name, "how": "total", "shots": number, "total_shots": factor * per_circuit}
            found.append({**row, **_sampled(config, circuits, reads, p_ideal, s_ideal, p_exact)})
        if name == READOUT_ZNE:
            found += _other_way(config, circuits, name, factor, seed, p_ideal)
    return found


def _draw(seed: int, repeat: int) -> int:
    return PROCESS_SEED + 1000 * seed + repeat


def _sampled(
    config: ProcessConfig,
    circuits: Circuits,
    reads: Sequence[Quotient],
    p_ideal: Tensor,
    s_ideal: Tensor,
    exact: Tensor,
) -> dict[str, float]:
    p = torch.stack([read.distribution for read in reads])
    raw = torch.stack([torch.where(read.resolved[:, None], read.probabilities, 1 / p.shape[2]) for read in reads])
    success = torch.stack([read.success for read in reads])
    judged = [_judged(circuits, each) for each in p[: config.judged]]
    return {
        "distance": float(distance(p, p_ideal).mean()),
        "scatter": float(distance(p, exact).mean()),
        "clipped": float(distance(clipped(raw), p_ideal).mean()),
        "negative": float(-raw.clamp_max(0).sum(2).mean()),
        "rms_success": rms(success - s_ideal),
        "sd_success": rms(success.std(0)),
        "told_success": rms(torch.stack([read.success_errors for read in reads])),
        "lost": float(torch.stack([~read.resolved for read in reads]).double().mean()),
        **{key: float(np.mean([each[key] for each in judged])) for key in JUDGED},
    }


def _other_way(
    config: ProcessConfig, circuits: Circuits, name: str, factor: float, seed: int, p_ideal: Tensor
) -> list[dict[str, Any]]:
    exact = project_simplex(of_quotient(circuits, name, EXACT, 0)[0])
    found: list[dict[str, Any]] = [{"strategy": OF_QUOTIENT, "how": "exact", "shots": None, "circuits": factor,
                                    "distance": float(distance(exact, p_ideal).mean())}]  # fmt: skip
    for number in config.shots:
        every = [
            of_quotient(circuits, name, max(2, round(number / factor)), _draw(seed, r)) for r in range(config.repeats)
        ]
        p = torch.stack([project_simplex(p) for p, _ in every])
        found.append({"strategy": OF_QUOTIENT, "how": "total", "shots": number,
                      "distance": float(distance(p, p_ideal).mean()), "scatter": float(distance(p, exact).mean()),
                      "lost": float(torch.stack([~told for _, told in every]).double().mean())})  # fmt: skip
    return found


def _judged(circuits: Circuits, distributions: Tensor) -> dict[str, float]:
    images = circuits.model.decode(distributions.float().sqrt()).detach()
    here = reference_models.models()
    told = evaluate_samples(images, circuits.labels, here.evaluation_classifier, here.heldout)
    return {key: float(told[key]) for key in JUDGED}


def process(
    config: ProcessConfig, models: ReferenceModelsConfig, folder: Path, device: str, seed: int, steps: int
) -> dict[str, Any]:
    """The cell of a device, a seed and a number of steps (`measure`)."""
    scheduled = any(map(is_scheduled, config.strategies))
    model = model_of(models, folder, seed, steps)
    circuits = Circuits.of(model, device, config.images, seed, scheduled=scheduled)
    return {
        "rows": measure(config, circuits, seed),
        "circuit": circuits.compiled[False].summary(),
        "n_images": config.images,
    }


@lru_cache(maxsize=32)
def compiled_process(device: str, reverse: ReverseConfig) -> CompiledCircuit:
    """The deferred circuit of such a reverse process on a device, its preparation included.

    Where P would be more Pauli strings than an Estimator is given (`MOST_STRINGS`), the observables are those of the
    data alone: it is a Sampler's circuit then.
    """
    step = reverse_circuit(
        reverse.n_qubits,
        reverse.ancillas,
        reverse.depth,
        outer=reverse.outer,
        ansatz=reverse.ansatz,
        label_qubits=reverse.label_qubits,
        conditioning_angles=reverse.conditioning_angles,
    )
    width = reverse.n_qubits + reverse.n_steps * reverse.ancillas
    made = deferred_circuit(step, reverse.n_steps, select=2**width <= MOST_STRINGS)
    return compile_circuit(
        made.circuit,
        reference_models.device_of(device),
        inputs=made.inputs,
        weights=made.weights,
        observables=made.observables,
        seed=reverse.seed,
    )


def gates(config: ProcessConfig, models: ReferenceModelsConfig, device: str) -> dict[str, Any]:
    """Rows of the table of gates on a device."""
    found = []
    for n in config.gate_qubits:
        for steps in config.gate_steps:
            reverse = models.denoiser(steps).reverse.replace(n_qubits=n)
            compiled = compiled_process(device, reverse)
            found.append(
                {
                    "data_qubits": n,
                    "steps": steps,
                    "qubits": len(compiled.physical_qubits),
                    "two_qubit_gates": compiled.two_qubit_gates,
                    "depth": compiled.depth,
                    "duration_seconds": compiled.duration,
                }
            )
    return {"rows": found}
