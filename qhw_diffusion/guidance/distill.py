"""A trained policy as a small network, and how far the actions of any stand-in are from the original's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.actors import Actor, MLPActor
from qhw_diffusion.guidance.config import GuidanceConfig
from qhw_diffusion.guidance.episode import draw_episode
from qhw_diffusion.guidance.rollout import rollout

if TYPE_CHECKING:
    from qhw_diffusion.diffusion import Backbone, Classifier

HIDDEN = (64, 64)
_BATCH = 512
_NOISE = 0.25


@dataclass(frozen=True)
class ActionError:
    """How far a stand-in's mean action is from the original's on N states.

    Attributes:
        states: N.
        action_mean, action_max: of |Δa|, the ΔCFG as applied (clipped to ± the limit).
        g_mean, g_max: of |Δg|, the guidance scale that follows.
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
def action_error(original: Actor, stand_in: Actor, states: Tensor, config: GuidanceConfig) -> ActionError:
    """Compare two policies on normalised states [N, n_state].

    Raises InvalidInputError for states of another shape.
    """
    if states.ndim != 2 or len(states) < 2:
        raise InvalidInputError(f"states must be [N ≥ 2, {config.n_state}], got {tuple(states.shape)}")
    (mean, log_std), (other_mean, other_log_std) = original(states), stand_in(states)
    limit = config.action_limit
    actions = [m[:, 0].clamp(-limit, limit) for m in (mean, other_mean)]
    scales = [(config.g0 + a).clamp(config.g_min, config.g_max) for a in actions]
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
    actor: Actor, config: GuidanceConfig, backbone: Backbone, proxy: Classifier, *, starts: int, seed: int
) -> Tensor:
    """Normalised states [starts · n_steps, n_state] the policy's mean actions lead through, from fresh starts."""
    generator = torch.Generator().manual_seed(seed)
    labels, noise = draw_episode(backbone, starts, generator, next(backbone.parameters()).device)
    return rollout(backbone, config, labels, noise, actor, proxy=proxy).states.flatten(0, 1)


@torch.no_grad()
def explored_states(
    actor: Actor, config: GuidanceConfig, backbone: Backbone, proxy: Classifier, *, starts: int, seed: int
) -> Tensor:
    """States to fit on, [4 · starts · n_steps, n_state]: with mean and with sampled actions, and both once more with
    Gaussian noise of .25 (an eighth of the calibrated range of ± 2 standard deviations), so that small errors of the
    stand-in do not lead it out of what it has seen.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(backbone.parameters()).device
    kept = []
    for sampled in (None, generator):
        labels, noise = draw_episode(backbone, starts, generator, device)
        played = rollout(backbone, config, labels, noise, actor, proxy=proxy, generator=sampled)
        kept.append(played.states.flatten(0, 1))
    states = torch.cat(kept)
    moved = states + _NOISE * torch.randn(states.shape, generator=generator).to(states)
    return torch.cat([states, moved])


def fit_network(
    original: Actor, states: Tensor, *, hidden: Sequence[int] = HIDDEN, iterations: int = 4000, seed: int = 0
) -> MLPActor:
    """An MLP actor fitted to the original's mean and log standard deviation on `states` [N, n_state].

    Mean squared error, Adam from .01 with a cosine decay to 0, batches of 512. The same seed gives the same weights.
    """
    if iterations < 1:
        raise InvalidInputError(f"iterations must be at least 1, got {iterations}")
    with torch.no_grad():
        wanted = torch.cat(original(states), dim=1)
    network = MLPActor(hidden, n_features=original.n_features, action_dim=original.action_dim, gain=1.0, seed=seed)
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
