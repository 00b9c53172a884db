"""The trainability study: configuration, cells, and what each of them measures.

    size    gradients of one circuit of n qubits at random angles, for every depth, without noise
    noise   the same of the policy circuit compiled for a device, on noisy engines and without noise, at the same angles
    shots   the same by parameter-shift from finite shots

Angles are uniform on the circle, so that every gradient has mean 0 (a shift by π turns its sign): its variance is the
mean of its square. A circuit's number is the mean over its weights, and of the policy over its observables as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.circuits import policy_circuit, reverse_circuit
from qhw_diffusion.config import Config, check_whole, require
from qhw_diffusion.denoising import ReverseConfig
from qhw_diffusion.devices import Device
from qhw_diffusion.execution import (
    CompiledCircuit,
    ParameterShift,
    QuantumLayer,
    Shots,
    check_engine_text,
    compile_circuit,
)
from qhw_diffusion.execution.evolution import Evolution
from qhw_diffusion.experiment import Cell, Study
from qhw_diffusion.studies.trainability.page import page

CIRCUITS = {"policy": 8, "denoiser": 12}
"""Circuits and the most qubits each is built with."""


@dataclass(frozen=True)
class TrainabilityConfig(Config):
    """Gradients at random angles."""

    qubits: tuple[int, ...] = (2, 4, 6, 8, 10)
    """Qubits of the circuits, the denoiser's ancilla among them; the policy has up to 8."""
    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Layers."""
    device: str = "fake_marrakesh"
    """Device whose noise is measured."""
    engines: tuple[str, ...] = ("noisy",)
    """Engines with noise."""
    noise_qubits: int = 4
    """Qubits of the policy circuit under noise and with finite shots."""
    shots: tuple[int, ...] = (64, 1024)
    """Shots per circuit of parameter-shift."""
    shots_depth: int = 8
    """Largest depth with finite shots."""
    points: int = 100
    """Random points per seed at which gradients are taken."""
    seeds: int = 5
    """Seeds."""

    def __post_init__(self) -> None:
        check_whole(self, "noise_qubits", "shots_depth", "seeds")
        check_whole(self, "points", least=10)
        for name in ("qubits", "depths", "shots"):
            values = getattr(self, name)
            require(len(set(values)) == len(values) and list(values) == sorted(values),
                    f"{name} must rise, each once, got {values}")  # fmt: skip
        require(len(self.qubits) >= 2 and self.qubits[0] >= 2, f"qubits must be two or more, from 2, got {self.qubits}")
        require(self.qubits[-1] <= CIRCUITS["denoiser"], f"qubits go up to {CIRCUITS['denoiser']}, got {self.qubits}")
        require(len(self.depths) >= 2 and self.depths[0] >= 1, f"depths must be two or more, got {self.depths}")
        require(2 <= self.noise_qubits <= CIRCUITS["policy"], f"noise_qubits is {self.noise_qubits}, need 2 to 8")
        require(all(n >= 1 for n in self.shots), f"shots must be positive, got {self.shots}")
        require(len(self.engines) >= 1, "engines must name at least one")
        for engine in self.engines:
            check_engine_text(engine)

    def shots_depths(self) -> tuple[int, ...]:
        """Depths with finite shots."""
        return tuple(depth for depth in self.depths if depth <= self.shots_depth)


QUICK = TrainabilityConfig(
    qubits=(2, 3, 4, 5),
    depths=(1, 4, 16),
    noise_qubits=3,
    shots=(256,),
    shots_depth=4,
    points=40,
    seeds=3,
)


def cells(config: TrainabilityConfig) -> list[Cell]:
    """One a circuit, number of qubits and seed; under noise and with shots one a seed."""
    found = []
    work = config.points * sum(config.depths)
    for seed in range(config.seeds):
        for circuit, most in CIRCUITS.items():
            for n in (n for n in config.qubits if n <= most):
                parameters = {"part": "size", "circuit": circuit, "qubits": n, "seed": seed}
                label = f"{circuit}, {n} qubits, seed {seed}"
                seconds = 1 + 2e-7 * work * n * 2**n
                found.append(Cell(f"{circuit}-{n}q-seed{seed}", parameters, (), seconds, label))
        for part, seconds in (("noise", 5 + 2e-5 * work * len(config.engines)), ("shots", 5 + 1e-3 * config.points)):
            parameters = {"part": part, "circuit": "policy", "qubits": config.noise_qubits, "seed": seed}
            found.append(Cell(f"{part}-seed{seed}", parameters, (), seconds, f"{part}, seed {seed}"))
    return found


def run_cell(config: TrainabilityConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Do one cell (see the top of this file)."""
    part, n, seed = cell["part"], cell["qubits"], cell["seed"]
    if part == "noise":
        return {"rows": [row for depth in config.depths for row in noise(config, n, depth, seed)]}
    if part == "shots":
        return {"rows": [row for depth in config.shots_depths() for row in finite_shots(config, n, depth, seed)]}
    measure = policy_gradients if cell["circuit"] == "policy" else denoiser_gradients
    rows = []
    for depth in config.depths:
        for cost, gradients in measure(config, n, depth, seed).items():
            square = gradients.square().mean(0)
            rows.append({"depth": depth, "cost": cost, "variance": float(square.mean())})
    return {"rows": rows}


def generator_of(seed: int, n: int, depth: int) -> torch.Generator:
    """Random numbers of one circuit and seed: the same whatever else is measured."""
    return torch.Generator().manual_seed(1_000_003 * seed + 1_009 * n + depth)


def policy_compiled(n: int, depth: int, device: Device, level: int) -> CompiledCircuit:
    """The policy circuit with every angle as an input, so that each row has its own gradients; encoded angles first."""
    circuit = policy_circuit(n, depth, n)
    return compile_circuit(circuit.circuit, device, inputs=(*circuit.inputs, *circuit.weights), weights=(),
                           observables=circuit.observables, optimization_level=level)  # fmt: skip


def random_angles(points: int, width: int, generator: torch.Generator) -> Tensor:
    """Angles [points, width], uniform on the circle."""
    return 2 * math.pi * torch.rand(points, width, generator=generator, dtype=torch.float64)


def gradients_of(layer: QuantumLayer, angles: Tensor) -> Tensor:
    """∂⟨Z_q⟩ by all angles [B, I] with q going round the qubits from row to row."""
    x = angles.clone().requires_grad_(True)
    z = layer(x)
    rows = torch.arange(len(x))
    (found,) = torch.autograd.grad(z[rows, rows % z.shape[1]].sum(), x)
    return found


def policy_gradients(config: TrainabilityConfig, n: int, depth: int, seed: int) -> dict[str, Tensor]:
    """Gradients by the weights [points, W] of the policy circuit."""
    compiled = policy_compiled(n, depth, Device.load("ideal"), 0)
    angles = random_angles(config.points, len(compiled.inputs), generator_of(seed, n, depth))
    return {"pauli": gradients_of(QuantumLayer(compiled, "ideal", dtype=torch.float64), angles)[:, n:]}


def denoiser_gradients(config: TrainabilityConfig, n: int, depth: int, seed: int) -> dict[str, Tensor]:
    """Gradients by the weights [points, W] of one reverse step on n − 1 data qubits and an ancilla.

    "overlap": of |⟨target, 0|U|x, 0⟩|², the fidelity before it is divided by the probability of the outcome 0, for
    random states x and targets. "pauli": of the ancilla's ⟨Z⟩, twice the probability of the outcome 0, less one.
    "start": as "overlap", at weights that a training begins with, normal of standard deviation `init_scale`.
    """
    circuit = reverse_circuit(n - 1, 1, depth)
    compiled = compile_circuit(circuit.circuit, Device.load("ideal"), inputs=circuit.weights, weights=(),
                               observables=circuit.observables, optimization_level=0)  # fmt: skip
    evolution = Evolution(compiled, data=circuit.data, measured=circuit.ancillas)
    generator = generator_of(seed, n, depth)
    angles = random_angles(config.points, len(circuit.weights), generator).requires_grad_(True)
    states, targets = (haar_states(config.points, 2 ** (n - 1), generator) for _ in range(2))

    def kept(at: Tensor) -> tuple[Tensor, Tensor]:
        """Fidelity times the probability of the outcome 0, and that probability."""
        branches = evolution(states, torch.zeros(0, dtype=torch.float64), at)
        probability = branches.probabilities[0]
        return probability * (targets.conj() * branches.states[0]).sum(1).abs().square(), probability

    overlap, probability = kept(angles)
    (first,) = torch.autograd.grad(overlap.sum(), angles, retain_graph=True)
    (second,) = torch.autograd.grad((2 * probability - 1).sum(), angles)
    normal = torch.randn(angles.shape, generator=generator, dtype=torch.float64)
    start = (ReverseConfig().init_scale * normal).requires_grad_(True)
    (third,) = torch.autograd.grad(kept(start)[0].sum(), start)
    return {"overlap": first, "pauli": second, "start": third}


def haar_states(count: int, d: int, generator: torch.Generator) -> Tensor:
    """Random pure states [count, d]."""
    found = torch.view_as_complex(torch.randn(count, d, 2, generator=generator, dtype=torch.float64))
    return found / found.norm(dim=1, keepdim=True)


def noise(config: TrainabilityConfig, n: int, depth: int, seed: int) -> list[dict[str, Any]]:
    """Variances on the noisy engines and without noise, of one compiled circuit at the same angles."""
    compiled = policy_compiled(n, depth, Device.load(config.device), 3)
    angles = random_angles(config.points, len(compiled.inputs), generator_of(seed, n, depth))
    common = {"depth": depth, "cost": "pauli", "predicted": predicted_contraction(compiled)}
    rows = []
    for engine in ("ideal", *config.engines):
        layer = QuantumLayer(compiled, engine, dtype=torch.float64)
        square = gradients_of(layer, angles)[:, n:].square().mean(0)
        rows.append({**common, "engine": engine, "variance": float(square.mean())})
    return rows


def predicted_contraction(compiled: CompiledCircuit) -> float:
    """Natural logarithm of the factor by which the noise of all gates shrinks an expectation value.

    For a scrambling circuit: a Pauli string other than the identity, at random among those of n qubits, is not the
    identity on a gate's k qubits with probability 1 − (4ⁿ⁻ᵏ − 1)/(4ⁿ − 1), and is then multiplied by the mean f of the
    Pauli fidelities of the gate's error S, f = (tr S − 1)/(4ᵏ − 1). Exact where every error depolarizes all n qubits.
    """
    device, n, total = compiled.device, len(compiled.physical_qubits), 0.0
    for instruction in compiled.isa.data:
        qubits = tuple(compiled.isa.find_bit(qubit).index for qubit in instruction.qubits)
        error = device.gate_error(instruction.operation.name, qubits)
        if error is not None:
            k = len(qubits)
            fidelity = (float(np.trace(error.data).real) - 1) / (4**k - 1)
            total += math.log(1 - (1 - (4 ** (n - k) - 1) / (4**n - 1)) * (1 - fidelity))
    return total


def finite_shots(config: TrainabilityConfig, n: int, depth: int, seed: int) -> list[dict[str, Any]]:
    """Mean squares of gradients by parameter-shift per number of shots, without noise, and of the exact ones.

    added: what shots add to the variance, measured at the same angles; closed: mean of [(1 − f₊²) + (1 − f₋²)]/(4N).
    needed: shots at which what they add is as large as the variance of the exact gradients.
    """
    compiled = policy_compiled(n, depth, Device.load("ideal"), 0)
    angles = random_angles(config.points, len(compiled.inputs), generator_of(seed, n, depth))
    layer = QuantumLayer(compiled, "ideal", dtype=torch.float64)
    exact = gradients_of(layer, angles)[:, n:]
    closed = shot_variance(layer, angles)[:, n:]
    variance = float(exact.square().mean())
    common = {"depth": depth, "cost": "pauli", "exact": variance, "needed": float(closed.mean()) / variance}
    rows = []
    for shots in config.shots:
        sampled = layer.with_engine(Shots(shots, seed=7919 * seed + depth, noisy=False), gradient=ParameterShift())
        found = gradients_of(sampled, angles)[:, n:]
        rows.append({**common, "shots": shots, "variance": float(found.square().mean()),
                     "added": float((found - exact).square().mean()), "closed": float(closed.mean()) / shots,
                     "bound": 1 / (2 * shots)})  # fmt: skip
    return rows


@torch.no_grad()
def shot_variance(layer: QuantumLayer, angles: Tensor) -> Tensor:
    """[(1 − f₊²) + (1 − f₋²)]/4 for every gradient of `gradients_of`: its variance with one shot per circuit."""
    found = torch.zeros_like(angles)
    rows = torch.arange(len(angles))
    for k in range(angles.shape[1]):
        move = torch.zeros(angles.shape[1], dtype=angles.dtype)
        move[k] = math.pi / 2
        for moved in (angles + move, angles - move):
            z = layer(moved)
            found[:, k] += (1 - z[rows, rows % z.shape[1]] ** 2) / 4
    return found


def check(config: TrainabilityConfig) -> None:
    """Raises what a cell would for a device that is not there or engines that it has not."""
    compiled = policy_compiled(config.noise_qubits, 1, Device.load(config.device), 0)
    for engine in config.engines:
        QuantumLayer(compiled, engine)


STUDY = Study(
    name="trainability",
    title="Where gradients vanish",
    summary="variance of gradients of the policy's and the denoiser's circuits by qubits, depth, noise and shots",
    config=TrainabilityConfig,
    cells=cells,
    run=run_cell,
    page=page,
    row_parameters=("depth", "cost", "engine", "shots"),
    quick=QUICK,
    check=check,
)
