"""The reproductions: published experiments, trained from scratch as circuits, and what each cell measures.

training        one training of one experiment, in a run folder of its own in trainings/
evaluation      its samples, and three controls, against new data
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.checkpoints import load_module_state
from qhw_diffusion.config import Config, check_whole, require
from qhw_diffusion.denoising import (
    EnsembleQDM,
    ForwardConfig,
    ReverseConfig,
    TrainConfig,
    as_density,
    check_qdm_training,
    mean_fidelity,
    mmd,
    wasserstein,
)
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.experiment import Cell, Study
from qhw_diffusion.studies.denoising.experiment import train_in_folder, training_folder, updates_done
from qhw_diffusion.studies.reproductions.page import ROWS, page

POOL = 1000  # training states, and samples in the buffers of a step
EVALUATION_SEED = 1_000_000


@dataclass(frozen=True)
class Experiment:
    """Data, model and training of a published experiment; its numbers are in `page.PUBLISHED`.

    Attributes:
        shape: ``"cluster"`` or ``"circle"``.
        scale: of the cluster.
        mixed: largest share of noise in a datum; 0: the data are pure.
        n_train: N of the source: states a training step compares, and size of the sets whose Wasserstein distance is
            taken.
        reverse, forward, train: the model and its training.
        similarity: F of the distances.
    """

    shape: str
    scale: float
    mixed: float
    n_train: int
    reverse: ReverseConfig
    forward: ForwardConfig
    train: TrainConfig
    similarity: str

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` new data states, pure [N, d] or mixed [N, d, d]."""
        if self.shape == "circle":
            states = circle_states(count, generator)
        else:
            states = cluster_states(count, self.reverse.n_qubits, self.scale, generator)
        return slightly_mixed(states, self.mixed, generator) if self.mixed else states

    def model(self, seed: int) -> EnsembleQDM:
        """The untrained model."""
        return EnsembleQDM(self.reverse.replace(seed=seed), self.forward)


def _measured(n_qubits: int, n_steps: int, ancillas: int, depth: int) -> ReverseConfig:
    return ReverseConfig(
        n_qubits=n_qubits,
        n_steps=n_steps,
        kind="measured",
        ancillas=ancillas,
        depth=depth,
        ansatz="cz",
        init_scale=1.0,
    )


EXPERIMENTS: dict[str, Experiment] = {
    "msquddpm-cluster": Experiment(
        shape="cluster",
        scale=0.08,
        mixed=0.01,
        n_train=100,
        reverse=_measured(1, 6, 2, 4),
        forward=ForwardConfig("depolarizing", "msquddpm", {"k": 1.0}),
        train=TrainConfig(
            loss="mmd", similarity="superfidelity", iterations=300, batch_size=128, targets=128, buffer_size=POOL,
            learning_rate=0.2,
        ),
        similarity="superfidelity",
    ),
    "msquddpm-circle": Experiment(
        shape="circle",
        scale=0.0,
        mixed=0.04,
        n_train=200,
        reverse=_measured(1, 6, 2, 8),
        forward=ForwardConfig("depolarizing", "msquddpm", {"k": 2.0}),
        train=TrainConfig(
            loss="mmd", kernels=(1.0, 0.3, 0.1, 0.03), similarity="superfidelity", iterations=800, batch_size=200,
            targets=500, buffer_size=POOL, learning_rate=0.15,
        ),
        similarity="superfidelity",
    ),
    "quddpm-1": Experiment(
        shape="cluster",
        scale=0.08,
        mixed=0.0,
        n_train=100,
        reverse=_measured(1, 20, 1, 4),
        forward=ForwardConfig("scrambling", strength=(1.0, 4.0)),
        train=TrainConfig(
            loss="mmd", iterations=500, batch_size=200, targets=400, buffer_size=POOL, learning_rate=0.3
        ),
        similarity="fidelity",
    ),
    "quddpm-2": Experiment(
        shape="cluster",
        scale=0.06,
        mixed=0.0,
        n_train=100,
        reverse=_measured(2, 20, 1, 6),
        forward=ForwardConfig("scrambling", strength=(0.5, 4.0)),
        train=TrainConfig(
            loss="mmd", iterations=200, batch_size=200, targets=200, buffer_size=POOL, learning_rate=0.05
        ),
        similarity="fidelity",
    ),
}  # fmt: skip
# Seconds of an update with these settings, one core.
UPDATE_SECONDS = {"msquddpm-cluster": 0.02, "msquddpm-circle": 0.05, "quddpm-1": 0.02, "quddpm-2": 0.03}


@dataclass(frozen=True)
class ReproductionsConfig(Config):
    """Published results of quantum diffusion models beside ours."""

    experiments: tuple[str, ...] = tuple(EXPERIMENTS)
    """Published experiments: msquddpm-cluster, msquddpm-circle, quddpm-1, quddpm-2."""
    seeds: int = 5
    """Trainings of each experiment; data, weights, noise and outcomes differ."""
    n_test: int = 1000
    """Samples, and new data they are compared with."""
    updates: float = 1.0
    """Share of each training's updates: below 1 to see it run, not to compare."""

    def __post_init__(self) -> None:
        require(
            len(self.experiments) > 0 and len(set(self.experiments)) == len(self.experiments),
            f"experiments are {self.experiments}; give one or more, each once",
        )
        for name in self.experiments:
            if name not in EXPERIMENTS:
                raise UnknownNameError.of("published experiment", name, EXPERIMENTS)
        check_whole(self, "seeds", "n_test")
        require(0 < self.updates <= 1, f"updates is a share in (0, 1], not {self.updates}")

    def training_of(self, experiment: str, seed: int) -> TrainConfig:
        """Training of an experiment with its share of the updates, two at least."""
        full = EXPERIMENTS[experiment].train
        return full.replace(iterations=max(2, round(full.iterations * self.updates)), seed=seed)

    def updates_of(self, experiment: str) -> int:
        """Updates of a training, all steps together."""
        return self.training_of(experiment, 0).iterations * EXPERIMENTS[experiment].reverse.n_steps


def cells(config: ReproductionsConfig) -> list[Cell]:
    """A training and its evaluation of each experiment and seed."""
    found = []
    for name in config.experiments:
        for seed in range(config.seeds):
            parameters = {"part": "training", "experiment": name, "seed": seed}
            training, seconds = f"training-{name}-seed{seed}", UPDATE_SECONDS[name] * config.updates_of(name)
            found.append(Cell(training, parameters, (), seconds, f"training {name}, seed {seed}"))
            parameters = {**parameters, "part": "evaluation"}
            found.append(Cell(f"evaluation-{name}-seed{seed}", parameters, (training,), 2, f"{name}, seed {seed}"))
    return found


def run_cell(config: ReproductionsConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Do one cell (see the top of this file)."""
    name, seed = cell["experiment"], cell["seed"]
    path, experiment = training_folder(folder, name, seed), EXPERIMENTS[name]
    if cell["part"] == "training":
        return train(experiment, config.training_of(name, seed), seed, path, {"experiment": name, "seed": seed})
    return {"rows": evaluate(experiment, seed, config.n_test, path)}


def train(
    experiment: Experiment, settings: TrainConfig, seed: int, path: Path, about: Mapping[str, Any]
) -> dict[str, Any]:
    """One training in its run folder."""
    data = experiment.draw(settings.buffer_size, torch.Generator().manual_seed(seed))
    history = train_in_folder(path, experiment.model(seed), data, settings, {**about, "train": settings.to_dict()})
    return {"loss": history[-1]["losses/train"], "updates": len(history)}


def evaluate(experiment: Experiment, seed: int, n_test: int, path: Path) -> list[dict[str, Any]]:
    """Metrics of a trained model against new data, with new x_T and new outcomes, a row for each of `page.ROWS`.

    Row "floor" is a second draw of the data in place of samples, "untrained" the circuit with its first weights,
    "bypassed" x_T itself.
    """
    model = experiment.model(seed)
    generator = torch.Generator().manual_seed(EVALUATION_SEED + seed)
    real, again = experiment.draw(n_test, generator), experiment.draw(n_test, generator)
    untrained = model.sample(n_test, generator).states
    bypassed = model.forward_process.prior(n_test, model.dim, generator)
    state, _ = load_module_state(path / "model")
    model.load_state_dict(state)
    trained = model.sample(n_test, generator).states
    sets = zip(ROWS, (trained, again, untrained, bypassed), strict=True)
    return [{"states": row, **measure(experiment, states, real)} for row, states in sets]


def measure(experiment: Experiment, states: Tensor, real: Tensor) -> dict[str, float]:
    """The three metrics of states against equally many data; Wasserstein in parts of N states, averaged.

    In double precision: the MMD is a small difference of numbers near 1.
    """
    states, real = states.to(torch.complex128), real.to(torch.complex128)
    zero = torch.zeros(1, states.shape[-1], dtype=states.dtype)
    zero[0, 0] = 1
    size = min(experiment.n_train, len(states))
    parts = [slice(start, start + size) for start in range(0, len(states) - size + 1, size)]
    distance = partial(wasserstein, similarity=experiment.similarity)
    return {
        "fidelity": float(mean_fidelity(states, zero)),
        "mmd": float(mmd(states, real, similarity=experiment.similarity)),
        "wasserstein": sum(float(distance(states[part], real[part])) for part in parts) / len(parts),
    }


def check(config: ReproductionsConfig) -> None:
    """Raises what training an experiment would."""
    for name in config.experiments:
        settings = config.training_of(name, 0)
        data = EXPERIMENTS[name].draw(settings.buffer_size, torch.Generator().manual_seed(0))
        check_qdm_training(EXPERIMENTS[name].model(0), data, settings)


def share_done(config: ReproductionsConfig, cell: Cell, folder: Path) -> float:
    """Share of a training's updates that are done."""
    if cell["part"] != "training":
        return 0.0
    name = cell["experiment"]
    return updates_done(training_folder(folder, name, cell["seed"])) / config.updates_of(name)


def cluster_states(count: int, n_qubits: int, scale: float, generator: torch.Generator) -> Tensor:
    """Pure states around |0…0⟩: |0…0⟩ + scale · Σ_x c_x |x⟩, normalised, [count, 2^n] complex64.

    Real and imaginary part of every c_x are standard normal (QuDDPM's public code), so the mean fidelity to |0…0⟩ is
    close to 1 / (1 + 2 (2^n − 1) scale²).

    Raises:
        InvalidInputError: a count or number of qubits below 1, or a negative scale.
    """
    if count < 1 or n_qubits < 1 or scale < 0:
        raise InvalidInputError(f"count={count}, n_qubits={n_qubits}, scale={scale}: allowed are ≥ 1, ≥ 1, ≥ 0")
    parts = torch.randn(count, 2**n_qubits - 1, 2, generator=generator)
    states = torch.cat([torch.ones(count, 1, dtype=torch.complex64), scale * torch.view_as_complex(parts)], 1)
    return states / torch.linalg.vector_norm(states, dim=1, keepdim=True)


def circle_states(count: int, generator: torch.Generator) -> Tensor:
    """cos(θ/2)|0⟩ + sin(θ/2)|1⟩ with θ uniform in [0, 2π): the circle x–z on the Bloch sphere, [count, 2] complex64.

    Raises:
        InvalidInputError: a count below 1.
    """
    if count < 1:
        raise InvalidInputError(f"count={count}; allowed: 1 or more")
    half = torch.pi * torch.rand(count, generator=generator)
    return torch.stack([half.cos(), half.sin()], 1).to(torch.complex64)


def slightly_mixed(states: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """(1 − q)|ψ⟩⟨ψ| + q I/d with q uniform in [0, largest) for every state: [N, d] → [N, d, d].

    Raises:
        InvalidInputError: a largest share outside [0, 1].
    """
    if not 0 <= largest <= 1:
        raise InvalidInputError(f"a share of noise lies in [0, 1], not {largest}")
    share = largest * torch.rand(len(states), 1, 1, generator=generator)
    dim = states.shape[-1]
    return (1 - share) * as_density(states) + share * torch.eye(dim) / dim


STUDY = Study(
    name="reproductions",
    title="Published results beside ours",
    summary="reproduce published results of quantum diffusion models",
    config=ReproductionsConfig,
    cells=cells,
    run=run_cell,
    page=page,
    row_parameters=("states",),
    quick=ReproductionsConfig(n_test=200, updates=0.1),
    check=check,
    share_done=share_done,
)
