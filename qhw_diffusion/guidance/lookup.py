"""The quantum policy as a table: its circuit evaluated once on a grid of angles, and trigonometric interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit
from qhw_diffusion.execution.gradients import unrolled
from qhw_diffusion.guidance.actors import Actor, GaussianHead
from qhw_diffusion.guidance.quantum_actor import QuantumActor

MAX_ROWS = 20_000
"""Largest table that is made; beyond it a network is the smaller substitute."""


class LookupActor(Actor):
    """A policy without a circuit: ⟨Z⟩ read from a table over the encoding angles, then the quantum actor's own head.

    At fixed weights ⟨Z⟩ is a trigonometric polynomial in the encoding angles, of degree K in an angle that K rotations
    carry (arXiv:2008.08605), whatever noise the device adds that does not depend on the angles. Its values at 2K + 1
    equally spaced angles per input determine it everywhere ("classical surrogate", arXiv:2206.11740). The sum of the
    squared interpolation weights is 1 at every point, so a table of sampled values has everywhere the standard error
    of a single evaluation.
    """

    kind = "lookup"
    table: Tensor
    input_scale: Tensor

    def __init__(
        self,
        degrees: Sequence[int],
        n_outputs: int,
        *,
        hidden: Sequence[int] = (64, 32),
        action_dim: int = 1,
        initial_std: float = 0.5,
        gain: float = 0.1,
        seed: int = 0,
    ) -> None:
        """degrees: K of every input; n_outputs: expectation values. The table starts as zeros: see `tabulate`."""
        super().__init__()
        rows = table_rows(degrees)
        if n_outputs < 1:
            raise InvalidInputError(f"n_outputs is {n_outputs}; a table holds at least one expectation value")
        self.degrees, self.n_outputs, self.hidden = tuple(int(k) for k in degrees), n_outputs, tuple(hidden)
        self.n_features, self.action_dim = len(self.degrees), action_dim
        self.initial_std, self.gain, self.seed = initial_std, gain, seed
        self.register_buffer("table", torch.zeros(rows, n_outputs))
        self.register_buffer("input_scale", torch.ones(self.n_features))
        generator = torch.Generator().manual_seed(seed)
        self.head = GaussianHead([n_outputs, *self.hidden], action_dim, generator, initial_std=initial_std, gain=gain)

    def expectations(self, obs: Tensor) -> Tensor:
        """Interpolated ⟨Z⟩ (times the output scale of the policy tabulated), [B, n_features] → [B, n_outputs]."""
        angles = obs.to(self.table.dtype) * self.input_scale
        values = self.table.reshape(*(2 * k + 1 for k in self.degrees), self.n_outputs)
        # one input after the other: [B, rest of the grid] shrinks by 2K + 1 each time
        kept = torch.einsum("bi,i...->b...", _weights(angles[:, 0], self.degrees[0]), values)
        for j, degree in enumerate(self.degrees[1:], start=1):
            kept = torch.einsum("bi,bi...->b...", _weights(angles[:, j], degree), kept)
        return kept

    def _outputs(self, obs: Tensor) -> Tensor:
        out: Tensor = self.head(self.expectations(obs).to(obs.dtype))
        return out

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "degrees": list(self.degrees),
            "n_outputs": self.n_outputs,
            "hidden": list(self.hidden),
            "action_dim": self.action_dim,
            "initial_std": self.initial_std,
            "gain": self.gain,
            "seed": self.seed,
        }


def input_degrees(compiled: CompiledCircuit) -> tuple[int, ...]:
    """K of every input: the sum of |coefficient| over the rotations it occurs in.

    Raises InvalidInputError for a coefficient that is not whole (the circuit is then not periodic in that input), and
    for post-selection (its values are ratios of trigonometric polynomials).
    """
    if compiled.postselect:
        raise InvalidInputError("no finite table holds a post-selected circuit; distil into a network")
    coefficients = unrolled(compiled).input_coefficients
    if not np.allclose(coefficients, np.round(coefficients), atol=1e-9):
        raise InvalidInputError(
            "an input enters a rotation with a coefficient that is not a whole number, so that no finite table holds "
            "the circuit; distil into a network"
        )
    return tuple(round(float(k)) for k in np.abs(coefficients).sum(axis=0))


def table_rows(degrees: Sequence[int]) -> int:
    """Π (2K + 1): points of the grid. Raises InvalidInputError for no inputs or more points than `MAX_ROWS`."""
    if not degrees or any(k < 0 for k in degrees):
        raise InvalidInputError(f"degrees must be one number ≥ 0 per input, got {tuple(degrees)}")
    rows = math.prod(2 * int(k) + 1 for k in degrees)
    if rows > MAX_ROWS:
        raise InvalidInputError(
            f"the table of this circuit would have {rows:,} rows (inputs of degree {tuple(degrees)}), at most "
            f"{MAX_ROWS:,} are made; distil into a network"
        )
    return rows


def grid_angles(degrees: Sequence[int]) -> Tensor:
    """Encoding angles of the table's rows, float64 [rows, inputs], the last input running fastest."""
    axes = [2.0 * math.pi / (2 * k + 1) * torch.arange(2 * k + 1, dtype=torch.float64) for k in degrees]
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))


@torch.no_grad()
def tabulate(actor: QuantumActor) -> LookupActor:
    """The lookup of a quantum policy, its circuit evaluated on the grid by the actor's own engine, in one call.

    Exact on an exact engine. On a sampling engine or a device the table has the shots' standard errors.
    Raises InvalidInputError where no table of reasonable size holds the circuit (see `input_degrees`, `table_rows`).
    """
    if not isinstance(actor, QuantumActor):
        raise InvalidInputError(f"only a quantum policy can be tabulated, not a {type(actor).__name__}")
    degrees = input_degrees(actor.layer.compiled)
    rows = table_rows(degrees)
    values = actor.layer.estimate(grid_angles(degrees).to(actor.layer.weight)).values
    if actor.output_scale is not None:
        values = values * actor.output_scale
    lookup = LookupActor(
        degrees,
        values.shape[1],
        hidden=actor.hidden,
        action_dim=actor.action_dim,
        initial_std=actor.initial_std,
        gain=actor.gain,
        seed=actor.seed,
    )
    lookup.to(values.dtype)
    assert values.shape[0] == rows
    lookup.table.copy_(values)
    lookup.input_scale.copy_(actor.input_scale)
    lookup.head.load_state_dict(actor.head.state_dict())
    for parameter in lookup.parameters():
        parameter.requires_grad_(False)
    return lookup.eval()


def _weights(angle: Tensor, degree: int) -> Tensor:
    """Interpolation weights [B, 2K + 1]: (1 + 2 Σ_k cos k(θ − θ_i)) / (2K + 1) (Dirichlet's kernel)."""
    points = 2 * degree + 1
    grid = 2.0 * math.pi / points * torch.arange(points, dtype=angle.dtype, device=angle.device)
    gap = angle[:, None] - grid
    total = torch.ones_like(gap)
    for k in range(1, degree + 1):
        total = total + 2.0 * torch.cos(k * gap)
    return total / points
