"""Evaluation rollouts: a policy or an open-loop schedule on given labels and initial noise, and their mean return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qhw_diffusion.diffusion.sampler import scale_dtype
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.config import GuidanceConfig
from qhw_diffusion.guidance.episode import GuidedEpisode, check_initial_noise
from qhw_diffusion.guidance.policies import Policy
from qhw_diffusion.guidance.rewards import Reward, StepView, term_values
from qhw_diffusion.guidance.scorers import Score, Scorer

if TYPE_CHECKING:
    from qhw_diffusion.diffusion import Denoiser

PolicyOrSchedule = Policy | Tensor | float | None


@dataclass(frozen=True)
class Rollout:
    """What came out of sampling B images in T steps.

    Attributes:
        images: [B, C, H, W] in [−1, 1].
        labels: int64 [B].
        g: guidance scales used, [T, B].
        actions: ΔCFG as applied, [T, B] (g − g0 for a schedule).
        states: normalised states, [T, B, n_state] (empty, [T, 0, n_state], for an open-loop schedule).
        confidence: p(y | image) by the scorer, [B]; None without one, as for a schedule.
        circuits: circuits a device would have run (0 for everything classical).
        x0_previous: the estimate x̂₀ before the last step, [B, C, H, W]; only with a reward.
        step_values: value of every term that acts per step, by its name, [T, B] each, unweighted; only with a reward.
    """

    images: Tensor
    labels: Tensor
    g: Tensor
    actions: Tensor
    states: Tensor
    confidence: Tensor | None
    circuits: int
    x0_previous: Tensor | None = None
    step_values: dict[str, Tensor] | None = None


@torch.no_grad()
def rollout(
    backbone: Denoiser,
    config: GuidanceConfig,
    labels: Tensor,
    noise: Tensor,
    policy: PolicyOrSchedule,
    *,
    scorer: Scorer | None = None,
    reward: Reward | None = None,
    generator: torch.Generator | None = None,
    batch: int = 512,
    on_step: Callable[[GuidedEpisode], None] | None = None,
) -> Rollout:
    """Sample one image per label, steered by a policy or schedule.

    The same labels and noise give every policy and schedule the same start.

    Args:
        backbone: makes the predictions.
        config: sampler, guidance range and state.
        labels: int64 [B].
        noise: [B, *latent_shape], standard normal.
        policy: a policy (its mean action), an open-loop schedule of g, [T], [1, B] or [T, B], or one number; T is
            the number of steps of an episode (`GuidedEpisode.n_steps`); None: the base scales.
        scorer: what a policy's state looks through; not needed by schedules, nor without the confidence entry.
        reward: whose terms are recorded, for `mean_return`.
        generator: draws a policy's actions instead of taking their mean.
        batch: images sampled at a time.
        on_step: called after each step of each batch, with the episode.

    Returns:
        Images, scales, states and, with a reward, what its return is made of.

    Raises:
        InvalidInputError: labels, noise, schedule or configuration that do not fit, a policy without a scorer.
    """
    if batch < 1:
        raise InvalidInputError(f"batch must be at least 1, got {batch}")
    check_initial_noise(backbone, labels, noise)
    schedule: Tensor | None = None
    if isinstance(policy, Policy):
        if scorer is None and config.confidence_entry:
            raise InvalidInputError("a policy's state has the scorer's confidence: pass scorer=")
        if not config.calibrated:
            raise InvalidInputError("the configuration is not calibrated: use the one the policy was trained with")
    else:
        scorer = None
    episode = GuidedEpisode(backbone, config, scorer)
    if not isinstance(policy, Policy):
        given = config.base_scales(episode.n_steps).to(scale_dtype(noise)) if policy is None else policy
        schedule = _schedule(given, episode.n_steps, labels.shape[0])
    # images between the steps are decoded where a term looks at them, and before the last step
    looks = reward is not None and any(term.per_step for _, term in reward.terms)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, labels.shape[0], batch):
        rows = slice(start, start + batch)
        episode.begin(labels[rows], noise[rows])
        kept: dict[str, list[Tensor]] = {"g": [], "actions": [], "states": []}
        part: dict[str, Tensor] = {}
        while not episode.done:
            last = episode.step_index == episode.n_steps - 1
            before = episode.images if looks or (reward is not None and last) else None, episode.score
            if schedule is not None:
                g = schedule[episode.step_index, rows].to(scale_dtype(noise))
                action = g - episode.base
                episode.advance(g)
            else:
                assert isinstance(policy, Policy)
                state = episode.state()
                wanted = policy(state)[0] if generator is None else policy.sample(state, generator)[0]
                action, g = episode.guidance(wanted[:, 0])
                episode.advance(g, action)
                kept["states"].append(state)
            if on_step is not None:
                on_step(episode)
            kept["g"].append(g)
            kept["actions"].append(action)
            if reward is not None and before[0] is not None:
                part["x0_previous"] = before[0]
                for name, values in _step_values(reward, episode, before[0], before[1], action).items():
                    kept.setdefault(f"term.{name}", []).append(values)
        part |= {name: torch.stack(values) for name, values in kept.items() if values}
        part["images"] = episode.images
        if episode.score is not None:
            part["confidence"] = episode.score.probability
        parts.append(part)

    def joined(name: str, dim: int) -> Tensor:
        return torch.cat([part[name] for part in parts], dim=dim)

    is_actor = isinstance(policy, Policy)
    step_terms = [name for name in parts[0] if name.startswith("term.")]
    return Rollout(
        images=joined("images", 0),
        labels=labels,
        g=joined("g", 1),
        actions=joined("actions", 1),
        states=joined("states", 1) if is_actor else torch.zeros(episode.n_steps, 0, config.n_state),
        confidence=joined("confidence", 0) if "confidence" in parts[0] else None,
        circuits=policy.circuits_per_state * episode.n_steps * labels.shape[0] if is_actor else 0,  # type: ignore[union-attr]
        x0_previous=None if reward is None else joined("x0_previous", 0),
        step_values=None if reward is None else {name.removeprefix("term."): joined(name, 1) for name in step_terms},
    )


def _step_values(
    reward: Reward, episode: GuidedEpisode, x0_previous: Tensor, score_previous: Score | None, action: Tensor
) -> dict[str, Tensor]:
    known = (score_previous, episode.score) if episode.scorer is reward.scorer else (None, None)
    view = StepView(
        episode.done, episode.images, x0_previous, episode.labels, action, reward.scorer, known_scores=known
    )
    return {term.name: term_values(term, view) for _, term in reward.terms if term.per_step}


@torch.no_grad()
def mean_return(
    reward: Reward, played: Rollout, reference: Tensor | None = None, *, images: int = 2000
) -> dict[str, float]:
    """Mean episode return of a rollout, term by term: what reports and evaluations state.

    Args:
        reward: the reward that `played` was recorded with.
        played: rollout(..., reward=reward).
        reference: images of the base scale from the same labels and noise, [B, C, H, W], for the distribution term.
        images: how many of the images (the first ones) the terms of the final images look at, together.

    Returns:
        The weighted mean of every term, by its name; their sum is the mean return.

    Raises:
        InvalidInputError: `played` was not recorded with this reward.
    """
    if played.step_values is None or played.x0_previous is None:
        raise InvalidInputError("the rollout recorded no reward: rollout(..., reward=reward)")
    rows = slice(0, images)
    view = StepView(
        last=True,
        x0=played.images[rows],
        x0_previous=played.x0_previous[rows],
        labels=played.labels[rows],
        action=played.actions[-1, rows],
        scorer=reward.scorer,
        reference=None if reference is None else reference[rows],
    )
    found: dict[str, float] = {}
    for weight, term in reward.terms:
        if term.per_step:
            if term.name not in played.step_values:
                raise InvalidInputError(f"the rollout was recorded with another reward, without {term.name!r}")
            found[term.name] = weight * float(played.step_values[term.name].sum(0).mean())
        else:
            found[term.name] = weight * float(term_values(term, view).mean())
    return found


def _schedule(policy: Tensor | float, n_steps: int, batch: int) -> Tensor:
    values = torch.as_tensor(policy, dtype=torch.float32)
    if values.ndim == 0:
        values = values.expand(n_steps)
    if values.ndim == 1 and values.shape[0] == n_steps:
        values = values[:, None].expand(n_steps, batch)
    if tuple(values.shape) == (1, batch):
        values = values.expand(n_steps, batch)
    if tuple(values.shape) != (n_steps, batch) or not bool(torch.isfinite(values).all()):
        raise InvalidInputError(
            f"a schedule is a number, [n_steps], [1, B] or [n_steps, B] of finite scales, n_steps = {n_steps}, "
            f"B = {batch}; got {tuple(torch.as_tensor(policy).shape)}"
        )
    return values
