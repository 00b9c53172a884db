from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from qhw_diffusion import guidance
from qhw_diffusion.diffusion import Backbone, Classifier, ImageDataset
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance import Finding, GuidanceConfig, MLPPolicy, Rollout, diagnose, rollout
from qhw_diffusion.guidance.ppo import action_reversals


def row(**changes: float) -> dict[str, float]:
    metrics = {"charts/episodic_return": 0.0, "gradients/circuit": 0.1, "gradients/head": 0.5}
    metrics |= {"charts/delta_g_abs": 0.3, "charts/mean_action_spread": 0.3, "charts/action_reversals": 0.1}
    for name in guidance.STATE_NAMES[:6]:
        metrics |= {f"state/{name}_std": 0.5, f"state/{name}_saturated": 0.01}
    return {**metrics, **{k.replace("__", "/"): v for k, v in changes.items()}}


def finding(found: list[Finding], name: str) -> Finding:
    (one,) = [f for f in found if f.name == name]
    assert one.sentence.endswith(".")
    assert one.sentence[0].isupper() or one.sentence[0] in "|0123456789"
    return one


def made(actions: torch.Tensor, **fields: Any) -> Rollout:
    batch = actions.shape[1]
    empty = {"images": torch.zeros(batch, 1, 8, 8), "labels": torch.zeros(batch).long(), "confidence": None}
    states = torch.randn(*actions.shape, 6, generator=torch.Generator().manual_seed(0))
    return Rollout(**{**empty, "g": actions + 1.5, "actions": actions, "states": states, "circuits": 0, **fields})


def test_learning_and_circuit_gradient() -> None:
    rising = [row(charts__episodic_return=x / 10) for x in range(20)]
    assert finding(diagnose(rising), "reward").severity == "ok"
    assert finding(diagnose(rising[::-1]), "reward").severity == "warning"
    assert finding(diagnose([row(charts__episodic_return=float("nan"))]), "reward").severity == "warning"
    assert finding(diagnose(rising, trains_circuit=True), "circuit gradient").severity == "ok"
    dead = [*rising, row(gradients__circuit=0.0)]
    found = finding(diagnose(dead, trains_circuit=True), "circuit gradient")
    assert (found.severity, "1 of 21" in found.sentence) == ("warning", True)
    small = [row(gradients__circuit=1e-3)]
    assert finding(diagnose(small, trains_circuit=True), "circuit gradient").severity == "note"
    assert "circuit gradient" not in [f.name for f in diagnose(rising)]


def test_saturated_and_constant_states() -> None:
    assert finding(diagnose([row()]), "state").severity == "ok"
    found = finding(diagnose([row(state__confidence_saturated=0.6)]), "state")
    assert found.severity == "warning"
    assert "confidence" in found.sentence
    found = finding(diagnose([row(state__x_norm_std=0.001)]), "state")
    assert "x_norm hardly moves" in found.sentence
    states = torch.randn(4, 50, 6, generator=torch.Generator().manual_seed(0)) * 0.5
    states[..., 2] = 0.7
    found = finding(diagnose(rollouts=[made(torch.zeros(4, 50), states=states)]), "state")
    assert "eps_norm hardly moves" in found.sentence


def test_collapse() -> None:
    g = torch.Generator().manual_seed(0)
    for actions, severity, words in (
        (torch.full((6, 40), 0.01), "warning", "collapsed"),
        (torch.full((6, 40), 0.8), "warning", "constant"),
        (torch.linspace(-1, 1, 6)[:, None].expand(6, 40), "note", "open-loop"),
        (torch.randn(6, 40, generator=g), "ok", "between samples"),
    ):
        found = finding(diagnose(rollouts=[made(actions)]), "collapse")
        assert (found.severity, words in found.sentence) == (severity, True), found.sentence


def test_collapse_and_oscillation_from_the_training_log() -> None:
    for changes, name, severity in (
        ({}, "collapse", "ok"),
        ({"charts__delta_g_abs": 0.01}, "collapse", "warning"),
        ({"charts__mean_action_spread": 0.01}, "collapse", "warning"),
        ({}, "oscillation", "ok"),
        ({"charts__action_reversals": 0.8}, "oscillation", "warning"),
    ):
        assert finding(diagnose([row(), row(**changes)]), name).severity == severity


def test_oscillation() -> None:
    across = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None, None]
    assert action_reversals(across, torch.zeros(4, 1)) == 1.0
    assert action_reversals(across, torch.tensor([[0.0], [1.0], [0.0], [1.0]])) == 0.0  # episodes of two steps
    sawtooth = torch.tensor([1.0, -1.0] * 3)[:, None].expand(6, 10)
    assert finding(diagnose(rollouts=[made(sawtooth)]), "oscillation").severity == "warning"
    jitter = 0.01 * sawtooth + torch.linspace(0, 1, 6)[:, None]
    assert finding(diagnose(rollouts=[made(jitter)]), "oscillation").severity == "ok"


def test_reward_hacking(evaluation_classifier: Classifier, reward_classifier: Classifier, real: ImageDataset) -> None:
    """Images made adversarially for the reward's classifier are caught; real ones are not."""
    images, labels = real.images[:60].clone(), real.labels[:60]
    honest = made(torch.zeros(4, 60), images=images, labels=labels)
    assert (
        finding(
            diagnose(
                rollouts=[honest], evaluation_classifier=evaluation_classifier, reward_classifier=reward_classifier
            ),
            "reward hacking",
        ).severity
        == "ok"
    )
    wrong = (labels + 1) % 10  # asked for another digit: small changes convince the reward classifier alone
    x = images.clone().requires_grad_()
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(reward_classifier.logits(x), wrong)
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x - 0.05 * gradient.sign()).clamp(-1, 1).detach().requires_grad_()
    fooled = replace(honest, images=x.detach(), labels=wrong)
    found = finding(
        diagnose(
            rollouts=[fooled],
            baseline=[honest],
            evaluation_classifier=evaluation_classifier,
            reward_classifier=reward_classifier,
        ),
        "reward hacking",
    )
    assert found.severity == "warning"
    assert found.numbers["reward_accuracy"] > found.numbers["evaluation_accuracy"] + 0.1
    with pytest.raises(InvalidInputError, match="no training sees"):
        diagnose(rollouts=[honest], evaluation_classifier=reward_classifier, reward_classifier=reward_classifier)


def test_on_a_real_rollout(
    backbone: Backbone, reward_classifier: Classifier, evaluation_classifier: Classifier, config: GuidanceConfig
) -> None:
    labels, noise = guidance.draw_episode(backbone, 20, torch.Generator().manual_seed(0))
    out = rollout(backbone, config, labels, noise, MLPPolicy(gain=1.5), scorer=reward_classifier)
    names = [
        f.name
        for f in diagnose(
            rollouts=[out], evaluation_classifier=evaluation_classifier, reward_classifier=reward_classifier
        )
    ]
    assert names == ["collapse", "oscillation", "state", "reward hacking"]
