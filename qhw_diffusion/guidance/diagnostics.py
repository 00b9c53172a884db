"""Diagnostics of a trained policy from its log and rollouts, in sentences and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from qhw_diffusion.diffusion import check_labels
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.episode import SATURATION, STATE_NAMES
from qhw_diffusion.guidance.ppo import action_reversals
from qhw_diffusion.guidance.rollout import Rollout

COLLAPSE = 0.05
"""Mean |ΔCFG| below this is no control."""
OSCILLATION = 0.5
"""Share of step-to-step changes of ΔCFG that reverse the one before, above which actions count as oscillating."""
VANISHING = 1e-6
"""A circuit gradient below this is zero for all practical purposes."""
OVERCONFIDENCE = 0.05
"""How much more often the reward classifier may approve than the evaluation classifier before it counts as reward
hacking."""


@dataclass(frozen=True)
class Finding:
    """Outcome of one check.

    Attributes:
        name: what was looked for.
        severity: "ok", "note" or "warning".
        sentence: the outcome in words.
        numbers: what it was concluded from.
    """

    name: str
    severity: str
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def diagnose(
    history: Sequence[Mapping[str, float]] = (),
    rollouts: Sequence[Rollout] = (),
    *,
    trains_circuit: bool = False,
    evaluation_classifier: Any = None,
    reward_classifier: Any = None,
    baseline: Sequence[Rollout] = (),
) -> list[Finding]:
    """All checks that the given evidence allows.

    Args:
        history: log of `train_ppo`.
        rollouts: rollouts of the trained policy.
        trains_circuit: whether there are circuit weights that should have had a gradient.
        evaluation_classifier: classifier that no training sees, for reward hacking.
        reward_classifier: classifier the reward looked through, for reward hacking.
        baseline: rollouts at the base scale, whose gap between the two classifiers is taken off.

    Returns:
        One finding for each thing looked for.

    Raises:
        InvalidInputError: another classifier in the place of the evaluation classifier.
    """
    if evaluation_classifier is not None and getattr(evaluation_classifier, "role", "") == "reward":
        raise InvalidInputError("the evaluation classifier must be one that no training sees, got role 'reward'")
    found: list[Finding] = []
    if history:
        found.append(_learning(history))
        if trains_circuit:
            found.append(_circuit_gradient(history))
        found += _saturation_in_log(history)
        if not rollouts:
            found += [_collapse_in_log(history[-1]), _oscillation(history[-1]["charts/action_reversals"])]
    if rollouts:
        actions = torch.cat([r.actions for r in rollouts], dim=1)
        nothing_done = torch.zeros(actions.shape)
        found += [_collapse(actions), _oscillation(action_reversals(actions[..., None], nothing_done))]
        if not history and any(r.states.numel() for r in rollouts):
            found += _saturation(torch.cat([r.states.flatten(0, 1) for r in rollouts]))
        if evaluation_classifier is not None and reward_classifier is not None:
            found.append(_reward_hacking(rollouts, baseline, evaluation_classifier, reward_classifier))
    return found


def _learning(history: Sequence[Mapping[str, float]]) -> Finding:
    rewards = [row["charts/episodic_return"] for row in history]
    window = max(1, len(rewards) // 10)
    first, last = sum(rewards[:window]) / window, sum(rewards[-window:]) / window
    numbers = {"first": first, "last": last}
    if not math.isfinite(first) or not math.isfinite(last):
        return Finding("reward", "warning", "No episode ended during training, so no reward was ever seen.", numbers)
    if last > first:
        return Finding("reward", "ok", f"The reward rose during training, from {first:.3f} to {last:.3f}.", numbers)
    return Finding("reward", "warning", f"The reward did not rise: {first:.3f} at first, {last:.3f} at last.", numbers)


def _circuit_gradient(history: Sequence[Mapping[str, float]]) -> Finding:
    norms = [row["gradients/circuit"] for row in history]
    heads = [row["gradients/head"] for row in history]
    lowest, mean, head = min(norms), sum(norms) / len(norms), sum(heads) / len(heads)
    numbers = {"lowest": lowest, "mean": mean, "head_mean": head}
    if lowest < VANISHING:
        zero = sum(norm < VANISHING for norm in norms)
        sentence = f"The circuit's gradient was zero in {zero} of {len(norms)} updates: it did not learn there."
        return Finding("circuit gradient", "warning", sentence, numbers)
    if mean < 0.01 * head:
        sentence = f"The circuit's gradient is small: {mean:.1e} on average against {head:.1e} of the head."
        return Finding("circuit gradient", "note", sentence, numbers)
    sentence = f"The circuit's gradient never vanished: {mean:.3f} on average, {lowest:.3f} at the lowest."
    return Finding("circuit gradient", "ok", sentence, numbers)


def _collapse(actions: torch.Tensor) -> Finding:
    size, spread = float(actions.abs().mean()), float(actions.std(correction=0))
    numbers = {"mean_abs": size, "spread": spread}
    if size < COLLAPSE:
        sentence = f"The policy collapsed: |ΔCFG| is {size:.3f} on average, so it samples at the base scale."
        return Finding("collapse", "warning", sentence, numbers)
    if spread < COLLAPSE:
        sentence = f"The policy acts as a constant: ΔCFG {float(actions.mean()):+.2f}, spread {spread:.3f}."
        return Finding("collapse", "warning", sentence, numbers)
    over_samples = float(actions.std(dim=1, correction=0).mean())
    numbers["spread_between_samples"] = over_samples
    if over_samples < COLLAPSE:
        sentence = (
            f"The policy acts as an open-loop schedule: at a given step ΔCFG differs by only {over_samples:.3f} "
            f"between samples, though it moves over the steps ({spread:.2f})."
        )
        return Finding("collapse", "note", sentence, numbers)
    sentence = f"|ΔCFG| is {size:.2f} on average and differs by {over_samples:.2f} between samples at the same step."
    return Finding("collapse", "ok", sentence, numbers)


def _oscillation(share: float) -> Finding:
    numbers = {"reversals": share}
    if share > OSCILLATION:
        sentence = f"The actions oscillate: {share:.0%} of the changes of ΔCFG reverse the one before."
        return Finding("oscillation", "warning", sentence, numbers)
    return Finding("oscillation", "ok", f"{share:.0%} of the changes of ΔCFG reverse the one before.", numbers)


def _collapse_in_log(row: Mapping[str, float]) -> Finding:
    size, spread = row["charts/delta_g_abs"], row["charts/mean_action_spread"]
    numbers = {"mean_abs": size, "spread": spread}
    if size < COLLAPSE:
        sentence = f"The policy collapsed: |ΔCFG| is {size:.3f} on average, so it samples at the base scale."
        return Finding("collapse", "warning", sentence, numbers)
    if spread < COLLAPSE:
        sentence = f"The policy acts as a constant: |ΔCFG| is {size:.2f} with a spread of {spread:.3f}."
        return Finding("collapse", "warning", sentence, numbers)
    return Finding("collapse", "ok", f"|ΔCFG| is {size:.2f} on average, with a spread of {spread:.2f}.", numbers)


def _saturation_in_log(history: Sequence[Mapping[str, float]]) -> list[Finding]:
    last = history[-1]
    share = {n: last[f"state/{n}_saturated"] for n in STATE_NAMES if f"state/{n}_saturated" in last}
    spread = {n: last[f"state/{n}_std"] for n in share}
    return _state_finding(share, spread) if share else []


def _saturation(states: torch.Tensor) -> list[Finding]:
    # with pooled features behind the entries it is not told whether the seventh column is one of them
    names = STATE_NAMES[: states.shape[1] if states.shape[1] <= len(STATE_NAMES) else 6]
    share = {n: float((states[:, j].abs() > SATURATION).float().mean()) for j, n in enumerate(names)}
    return _state_finding(share, {n: float(states[:, j].std(correction=0)) for j, n in enumerate(names)})


def _state_finding(share: dict[str, float], spread: dict[str, float]) -> list[Finding]:
    numbers = {f"{n} saturated": v for n, v in share.items()} | {f"{n} spread": v for n, v in spread.items()}
    bad = [f"{n} lies outside its range in {v:.0%} of the states" for n, v in share.items() if v > 0.2]
    bad += [f"{n} hardly moves (spread {v:.3f})" for n, v in spread.items() if v < 0.02]
    if bad:
        return [Finding("state", "warning", f"The state is partly useless: {'; '.join(bad)}.", numbers)]
    worst = max(share, key=lambda n: share[n])
    sentence = f"No state entry is saturated or constant (most often outside its range: {worst}, {share[worst]:.1%})."
    return [Finding("state", "ok", sentence, numbers)]


@torch.no_grad()
def _approval(rollouts: Sequence[Rollout], classifier: Any) -> tuple[float, float]:
    """(mean confidence in the wanted label, accuracy) of a classifier."""
    images, labels = torch.cat([r.images for r in rollouts]), torch.cat([r.labels for r in rollouts])
    check_labels(labels, classifier.n_classes, len(images))
    probability = classifier.logits(images).softmax(1)
    wanted = probability.gather(1, labels[:, None])
    return float(wanted.mean()), float((probability.argmax(1) == labels).float().mean())


def _reward_hacking(rollouts: Sequence[Rollout], baseline: Sequence[Rollout], evaluation: Any, reward: Any) -> Finding:
    by_reward, by_evaluation = _approval(rollouts, reward), _approval(rollouts, evaluation)
    numbers = dict(zip(("reward_confidence", "reward_accuracy"), by_reward, strict=True))
    numbers |= dict(zip(("evaluation_confidence", "evaluation_accuracy"), by_evaluation, strict=True))
    gap = [r - e for r, e in zip(by_reward, by_evaluation, strict=True)]
    facts = (
        f"the reward classifier accepts {by_reward[1]:.1%} of the images (confidence {by_reward[0]:.3f}), "
        f"the evaluation classifier {by_evaluation[1]:.1%} ({by_evaluation[0]:.3f})"
    )
    if baseline:
        before = [r - e for r, e in zip(_approval(baseline, reward), _approval(baseline, evaluation), strict=True)]
        gap = [now - then for now, then in zip(gap, before, strict=True)]
        facts += f"; at the base scale the two differ by {before[1]:+.1%}"
    numbers["excess"] = max(gap)
    if max(gap) > OVERCONFIDENCE:
        return Finding("reward hacking", "warning", f"The policy may fool its reward: {facts}.", numbers)
    return Finding("reward hacking", "ok", f"No sign of reward hacking: {facts}.", numbers)
