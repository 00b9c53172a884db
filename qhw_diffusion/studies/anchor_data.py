"""The published results that `qhw study anchors` reproduces: data, settings, numbers, and what is assumed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.models import ForwardConfig
from qhw_diffusion.denoising.states import as_density
from qhw_diffusion.denoising.training import TrainConfig
from qhw_diffusion.errors import InvalidInputError

METRICS = ("fidelity", "mmd", "wasserstein")
POOL = 1000  # training states, and samples that enter a step


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
    """(1 − q)|ψ⟩⟨ψ| + q I/d with q uniform in [0, largest) for every state: [N, d] → [N, d, d]."""
    if not 0 <= largest <= 1:
        raise InvalidInputError(f"a share of noise lies in [0, 1], not {largest}")
    share = largest * torch.rand(len(states), 1, 1, generator=generator)
    dim = states.shape[-1]
    return (1 - share) * as_density(states) + share * torch.eye(dim) / dim


@dataclass(frozen=True)
class Published:
    """A number of the source: `value`, its own uncertainty, and the same for the source's data (or its floor)."""

    value: float
    error: float = 0.0
    data: float | None = None


@dataclass(frozen=True)
class Anchor:
    """One published experiment.

    Attributes:
        title, source: for the table.
        shape: ``"cluster"`` or ``"circle"``.
        scale: of the cluster.
        mixed: largest share of noise in a datum; 0: the data are pure.
        n_train: N of the source: states a training step compares, and size of the sets whose Wasserstein distance is
            taken.
        reverse, forward, train: the model and its training.
        similarity: F of the distances.
        published: by metric.
        assumed: what the source leaves open and what is done here, a sentence each.
    """

    title: str
    source: str
    shape: str
    scale: float
    mixed: float
    n_train: int
    reverse: ReverseConfig
    forward: ForwardConfig
    train: TrainConfig
    similarity: str
    published: dict[str, Published]
    assumed: tuple[str, ...]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` new data states, pure [N, d] or mixed [N, d, d]."""
        if self.shape == "circle":
            states = circle_states(count, generator)
        else:
            states = cluster_states(count, self.reverse.n_qubits, self.scale, generator)
        return slightly_mixed(states, self.mixed, generator) if self.mixed else states

    def settings(self) -> dict[str, Any]:
        """JSON-ready; two runs with equal settings and seed give the same numbers."""
        data = {"shape": self.shape, "scale": self.scale, "mixed": self.mixed, "n_train": self.n_train}
        return data | {
            "reverse": self.reverse.to_dict(),
            "forward": _listed(asdict(self.forward)),
            "train": _listed(asdict(self.train)),
        }


def _listed(settings: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as JSON gives them back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


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


MS_SOURCE = "MSQuDDPM, arXiv 2411.17608v2, Table I"
QU_SOURCE = "QuDDPM, arXiv 2310.05866, public code"
ASSUMED_BY_ALL = (
    "Learning rate, updates, batch and loss are ours, tried on some of the same seeds (public codes: Adam at a "
    "constant rate, 2,001 updates a step). "
    "The loss weighs every measurement outcome of the step trained by its probability instead of drawing one, so "
    "probabilities are trained too.",
    "N is the number of states compared at a time, as in the public codes; the training set has 1,000, and 1,000 "
    "samples enter a step.",
    "Tested on 1,000 samples against 1,000 new data; Wasserstein distances are means over parts of N.",
    "CZ on all neighbouring pairs in every layer, as in the public codes.",
)
MS_ASSUMED = (
    "Schedule offset 0.001 and q uniform below its bound are taken from the public code; the paper names neither.",
    "Ancillas start in |00⟩.",
    "The paper does not say how many states are tested.",
)
QU_ASSUMED = (
    "Angles of the scrambling circuits and the scale of the data are those of the public code.",
    "The published values are what the authors' trained angles give at 1,000 samples, 20 times.",
    "The source's sampling floor depends on how many states are compared; ours is at 1,000 against 1,000.",
)

ANCHORS: dict[str, Anchor] = {
    "msquddpm-cluster": Anchor(
        title="MSQuDDPM cluster",
        source=MS_SOURCE,
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
        published={"fidelity": Published(0.9873, 1e-5, 0.9853)},
        assumed=(
            "The number is the paper's with one Haar-random ancilla; with |00⟩, as here, it has .9888 (data .9852).",
            *MS_ASSUMED,
        ),
    ),
    "msquddpm-circle": Anchor(
        title="MSQuDDPM circle",
        source=MS_SOURCE,
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
        published={"wasserstein": Published(0.0151, 0.0, 0.0063)},
        assumed=(
            "Trained on the MMD with Gaussian kernels of the superfidelity (widths 1, .3, .1, .03), not on the "
            "Wasserstein distance: it sees the whole ensemble too, and needs no transport problem.",
            *MS_ASSUMED,
        ),
    ),
    "quddpm-1": Anchor(
        title="QuDDPM cluster, 1 qubit",
        source=QU_SOURCE,
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
        published={"fidelity": Published(0.9888, 0.0007, 0.9876), "mmd": Published(1.3e-4, 0.6e-4, 1.3e-4)},
        assumed=QU_ASSUMED,
    ),
    "quddpm-2": Anchor(
        title="QuDDPM cluster, 2 qubits",
        source=QU_SOURCE,
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
        published={"fidelity": Published(0.948, 0.002, 0.979), "mmd": Published(1.9e-3, 0.2e-3)},
        assumed=("1 ancilla, L = 6, scale .06: from the public code.", *QU_ASSUMED),
    ),
}  # fmt: skip
