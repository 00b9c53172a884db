"""Stand-ins for a trained policy without its circuit: a table of expectation values, or a small network.

Also how far the actions of a stand-in are from the original's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit
from qhw_diffusion.execution.gradients import unrolled
from qhw_diffusion.guidance.config import GuidanceConfig
from qhw_diffusion.guidance.episode import draw_episode
from qhw_diffusion.guidance.policies import MLPPolicy, Policy, QuantumPolicy, embedding_of, policy_head
from qhw_diffusion.guidance.rollout import rollout

if TYPE_CHECKING:
    from qhw_diffusion.diffusion import Denoiser
    from qhw_diffusion.guidance.scorers import Scorer

MAX_ROWS = 20_000
"""Largest table that is made; beyond it a network is the smaller substitute."""


class LookupPolicy(Policy):
    """A policy without a circuit: ⟨Z⟩ read from a table over the encoding angles, then the quantum policy's own head.

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
        choices: Sequence[float] = (),
        initial_std: float = 0.5,
        gain: float = 0.1,
        seed: int = 0,
        n_pooled: int = 0,
        embedding: int = 0,
    ) -> None:
        """Make an empty table (of zeros); see `tabulate`.

        Args:
            degrees: K of every input.
            n_outputs: expectation values.
            hidden: widths of the head.
            action_dim: A.
            choices: values of ΔCFG that the policy chooses among; none: a Gaussian.
            initial_std: standard deviation of the actions of a fresh head.
            gain: size of the last layer of a fresh head.
            seed: seed of a fresh head.
            n_pooled: pooled features at the end of the state.
            embedding: learned entries made of them, the table's last inputs.

        Raises:
            InvalidInputError: a table of no or too many rows, or without outputs.
        """
        super().__init__()
        rows = table_rows(degrees)
        if n_outputs < 1:
            raise InvalidInputError(f"n_outputs is {n_outputs}; a table holds at least one expectation value")
        self.degrees, self.n_outputs, self.hidden = tuple(int(k) for k in degrees), n_outputs, tuple(hidden)
        self.n_features, self.action_dim = len(self.degrees) - embedding + n_pooled, action_dim
        self.choices = tuple(choices)
        self.initial_std, self.gain, self.seed = initial_std, gain, seed
        self.register_buffer("table", torch.zeros(rows, n_outputs))
        self.register_buffer("input_scale", torch.ones(len(self.degrees)))
        generator = torch.Generator().manual_seed(seed)
        sizes = [n_outputs, *self.hidden]
        self.head = policy_head(sizes, action_dim, self.choices, generator, initial_std=initial_std, gain=gain)
        self.embedding = embedding_of(n_pooled, embedding, generator)

    def expectations(self, obs: Tensor) -> Tensor:
        """Interpolated ⟨Z⟩ (times the output scale of the policy tabulated), [B, n_features] → [B, n_outputs]."""
        angles = self.embedded(obs.to(self.table.dtype)) * self.input_scale
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
        """What the saved policy is built from again."""
        return {
            "kind": self.kind,
            "degrees": list(self.degrees),
            "n_outputs": self.n_outputs,
            "hidden": list(self.hidden),
            "action_dim": self.action_dim,
            "choices": list(self.choices),
            "initial_std": self.initial_std,
            "gain": self.gain,
            "seed": self.seed,
            **self._embedding_settings(),
        }


def input_degrees(compiled: CompiledCircuit) -> tuple[int, ...]:
    """K of every input: the sum of |coefficient| over the rotations it occurs in.

    Raises:
        InvalidInputError: a coefficient that is not whole (the circuit is then not periodic in that input), or
            post-selection (its values are ratios of trigonometric polynomials).
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
    """Points of the grid, Π (2K + 1).

    Raises:
        InvalidInputError: no inputs, or more points than `MAX_ROWS`.
    """
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
def tabulate(policy: QuantumPolicy) -> LookupPolicy:
    """The lookup of a quantum policy, its circuit evaluated on the grid by the policy's own engine, in one call.

    Exact on an exact engine. On a sampling engine or a device the table has the shots' standard errors.

    Raises:
        InvalidInputError: no table of reasonable size holds the circuit (see `input_degrees`, `table_rows`).
    """
    if not isinstance(policy, QuantumPolicy):
        raise InvalidInputError(f"only a quantum policy can be tabulated, not a {type(policy).__name__}")
    degrees = input_degrees(policy.layer.compiled)
    rows = table_rows(degrees)
    values = policy.layer.estimate(grid_angles(degrees).to(policy.layer.weight)).values
    if policy.output_scale is not None:
        values = values * policy.output_scale
    lookup = LookupPolicy(
        degrees,
        values.shape[1],
        hidden=policy.hidden,
        action_dim=policy.action_dim,
        choices=policy.choices,
        initial_std=policy.initial_std,
        gain=policy.gain,
        seed=policy.seed,
        **policy._embedding_settings(),
    )
    lookup.to(values.dtype)
    assert values.shape[0] == rows
    lookup.table.copy_(values)
    lookup.input_scale.copy_(policy.input_scale)
    lookup.head.load_state_dict(policy.head.state_dict())
    if lookup.embedding is not None and policy.embedding is not None:
        lookup.embedding.load_state_dict(policy.embedding.state_dict())
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


HIDDEN = (64, 64)
_BATCH = 512
_NOISE = 0.25


@dataclass(frozen=True)
class ActionError:
    """How far a stand-in's mean action is from the original's on N states.

    Attributes:
        states: N.
        action_mean, action_max: of |Δa|, the ΔCFG as applied (clipped to ± the limit).
        g_mean, g_max: of |Δg|, the guidance scale that follows at the base scale g0.
        action_spread: standard deviation of the original's applied action over these states, the natural unit.
        log_std_max: largest |Δ log σ|.
    """

    states: int
    action_mean: float
    action_max: float
    g_mean: float
    g_max: float
    action_spread: float
    log_std_max: float

    def to_dict(self) -> dict[str, float]:
        """JSON types."""
        return asdict(self)


@torch.no_grad()
def action_error(original: Policy, stand_in: Policy, states: Tensor, config: GuidanceConfig) -> ActionError:
    """Compare two policies on normalised states [N, n_state].

    Raises:
        InvalidInputError: states of another shape.
    """
    if states.ndim != 2 or len(states) < 2:
        raise InvalidInputError(f"states must be [N ≥ 2, {config.n_state}], got {tuple(states.shape)}")
    (mean, log_std), (other_mean, other_log_std) = original(states), stand_in(states)
    actions = [config.applied(m[:, 0]) for m in (mean, other_mean)]
    scales = [config.scale(a, config.g0) for a in actions]
    action, g = (actions[1] - actions[0]).abs(), (scales[1] - scales[0]).abs()
    return ActionError(
        states=len(states),
        action_mean=float(action.mean()),
        action_max=float(action.max()),
        g_mean=float(g.mean()),
        g_max=float(g.max()),
        action_spread=float(actions[0].std()),
        log_std_max=float((other_log_std - log_std).abs().max()),
    )


@torch.no_grad()
def visited_states(
    policy: Policy, config: GuidanceConfig, backbone: Denoiser, scorer: Scorer, *, images: int, seed: int
) -> Tensor:
    """Normalised states that the policy's mean actions lead through, [images · n_steps, n_state].

    Args:
        policy: the policy.
        config: calibrated configuration it was trained with.
        backbone: makes the predictions.
        scorer: what its state looks through.
        images: images sampled, each with fresh label and noise.
        seed: seed of labels and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    labels, noise = draw_episode(backbone, images, generator, backbone.alphas_cumprod.device)
    return rollout(backbone, config, labels, noise, policy, scorer=scorer).states.flatten(0, 1)


@torch.no_grad()
def explored_states(
    policy: Policy, config: GuidanceConfig, backbone: Denoiser, scorer: Scorer, *, images: int, seed: int
) -> Tensor:
    """States to fit a stand-in on, [4 · images · n_steps, n_state].

    Those of mean and of sampled actions, and both once more with Gaussian noise of .25 (an eighth of the calibrated
    range of ± 2 standard deviations), so that small errors of the stand-in do not lead it out of what it has seen.

    Args:
        policy: the original.
        config: calibrated configuration it was trained with.
        backbone: makes the predictions.
        scorer: what its state looks through.
        images: images sampled, each with fresh label and noise.
        seed: seed of labels, noise and actions.
    """
    generator = torch.Generator().manual_seed(seed)
    device = backbone.alphas_cumprod.device
    kept = []
    for sampled in (None, generator):
        labels, noise = draw_episode(backbone, images, generator, device)
        played = rollout(backbone, config, labels, noise, policy, scorer=scorer, generator=sampled)
        kept.append(played.states.flatten(0, 1))
    states = torch.cat(kept)
    moved = states + _NOISE * torch.randn(states.shape, generator=generator).to(states)
    return torch.cat([states, moved])


def fit_network(
    original: Policy, states: Tensor, *, hidden: Sequence[int] = HIDDEN, iterations: int = 4000, seed: int = 0
) -> MLPPolicy:
    """An MLP policy fitted to the original's mean and log standard deviation on `states` [N, n_state].

    Mean squared error, Adam from .01 with a cosine decay to 0, batches of 512. The same seed gives the same weights.

    Raises:
        InvalidInputError: no iterations, or a policy that chooses among values, whose action jumps between them.
    """
    if original.choices:
        raise InvalidInputError(
            "a policy with discrete actions is not fitted by a network: its action jumps; distil it into a table "
            "(tabulate), which keeps its head"
        )
    if iterations < 1:
        raise InvalidInputError(f"iterations must be at least 1, got {iterations}")
    with torch.no_grad():
        wanted = torch.cat(original(states), dim=1)
    network = MLPPolicy(hidden, n_features=original.n_features, action_dim=original.action_dim, gain=1.0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        rows = torch.randint(len(states), (min(_BATCH, len(states)),), generator=generator).to(states.device)
        loss = (torch.cat(network(states[rows]), dim=1) - wanted[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network.eval()
