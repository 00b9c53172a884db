"""One test for each defect found in the published code of the guidance policy (docs/models.md lists them)."""

from __future__ import annotations

import pytest
import torch

from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import Backbone, Classifier
from qhw_diffusion.guidance import (
    Critic,
    GuidanceConfig,
    GuidanceEnv,
    PolicyConfig,
    PPOConfig,
    QuantumPolicy,
    Reward,
    build_policy,
    draw_episode,
    rollout,
    schedules,
    train_ppo,
)
from qhw_diffusion.guidance import ppo as ppo_module
from qhw_diffusion.guidance.episode import SATURATION


@pytest.fixture
def env(backbone: Backbone, reward: Reward, config: GuidanceConfig) -> GuidanceEnv:
    return GuidanceEnv(backbone, reward, config, num_envs=20, seed=1)


ONE = PPOConfig(num_iterations=2, num_envs=20, learning_rate_circuit=1e-2, seed=1)


def test_the_quantum_weights_get_a_gradient(env: GuidanceEnv, quantum: QuantumPolicy) -> None:
    """Defect: the circuit's output was detached. Every weight and every input scale must move, by its own gradient."""
    weight, scale = quantum.layer.weight.detach().clone(), quantum.input_scale.detach().clone()
    history = train_ppo(env, quantum, Critic(), ONE.replace(learning_rate_head=0.0))
    assert all(row["gradients/circuit"] > 1e-4 for row in history)
    assert (quantum.layer.weight != weight).all()
    assert (quantum.input_scale != scale).all()


def test_the_policy_changes_through_the_circuit_alone(env: GuidanceEnv, quantum: QuantumPolicy) -> None:
    """With the head held fixed, training the circuit changes what the policy does."""
    obs = env.reset_tensor(seed=0)
    with torch.no_grad():
        before = quantum(obs)[0].clone()
        train = ONE.replace(learning_rate_head=0.0, learning_rate_circuit=0.05)
    train_ppo(env, quantum, Critic(), train)
    with torch.no_grad():
        assert (quantum(obs)[0] - before).abs().max() > 1e-3


def test_a_frozen_circuit_stays_frozen_and_is_seen_as_such(env: GuidanceEnv, manila: Device) -> None:
    frozen = build_policy(PolicyConfig(kind="frozen", gain=1.0), seed=3, device=manila)
    assert isinstance(frozen, QuantumPolicy)
    weight, scale = frozen.layer.weight.clone(), frozen.input_scale.clone()
    history = train_ppo(env, frozen, Critic(), ONE)
    assert all(row["gradients/circuit"] == 0.0 for row in history)
    assert torch.equal(frozen.layer.weight, weight)
    assert torch.equal(frozen.input_scale, scale)


def test_the_rollout_is_filled_and_used(
    env: GuidanceEnv, quantum: QuantumPolicy, config: GuidanceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defect: the rollout buffer was never filled. Every slot [T, B] holds what the environment gave."""
    given: list[torch.Tensor] = []
    original = GuidanceEnv.step_tensor

    def recording(self: GuidanceEnv, action: torch.Tensor) -> object:
        step = original(self, action)
        given.append(step.reward)
        return step

    used: list[torch.Tensor] = []
    estimate = ppo_module.generalised_advantages

    def watching(rewards: torch.Tensor, *rest: object) -> object:
        used.append(rewards)
        return estimate(rewards, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(GuidanceEnv, "step_tensor", recording)
    monkeypatch.setattr(ppo_module, "generalised_advantages", watching)
    train_ppo(env, quantum, Critic(), ONE)
    assert len(used) == 2
    assert len(given) == 2 * config.n_steps
    for update, rewards in enumerate(used):
        expected = torch.stack(given[update * config.n_steps : (update + 1) * config.n_steps])
        assert torch.equal(rewards, expected)
        assert (rewards.abs().sum(1) > 0).all()
        assert rewards.unique().numel() > 0.9 * rewards.numel()


def test_the_horizon_is_the_whole_episode(env: GuidanceEnv, quantum: QuantumPolicy, config: GuidanceConfig) -> None:
    """Defect: rollouts stopped at 4–10 of 50 steps, so the terminal reward never came."""
    history = train_ppo(env, quantum, Critic(), ONE)
    for row in history:
        assert row["reward/confidence"] < 0
        assert row["reward/distribution"] != 0
        assert row["charts/episodic_return"] == pytest.approx(
            sum(v for k, v in row.items() if k.startswith("reward/")), abs=1e-4
        )
    # and what ended is an image: no noise is left
    assert env.last_images is not None
    assert env.last_labels is not None
    accuracy = env.reward_function.scorer.logits(env.last_images).argmax(1) == env.last_labels
    assert accuracy.float().mean() > 0.7


def test_the_stepwise_term_is_alive(env: GuidanceEnv, config: GuidanceConfig) -> None:
    """Defect: it was always 0. It varies over samples at every step and adds up to last minus first confidence."""
    env.reset_tensor(seed=0)
    labels = env.episode.labels[:, None]
    start = env.reward_function.scorer.logits(env.episode.x0).softmax(1).gather(1, labels).squeeze(1)
    total = torch.zeros(20)
    for i in range(config.n_steps):
        step = env.step_tensor(torch.linspace(-1.5, 0.5, 20)[:, None])
        if i < config.n_steps - 1:
            assert step.terms["stepwise"].std() > 1e-5
        total += step.terms["stepwise"]
    assert env.last_images is not None
    end = env.reward_function.scorer.logits(env.last_images).softmax(1).gather(1, labels).squeeze(1)
    torch.testing.assert_close(total, 0.2 * (end - start), atol=1e-4, rtol=1e-3)
    assert total.abs().max() > 0.02


def test_state_norms_are_measured(env: GuidanceEnv, config: GuidanceConfig) -> None:
    """Defect: norms were faked and clipped to constants. They are those of the tensors in the sampler."""
    obs = env.reset_tensor(seed=0)
    centre, width = torch.tensor(config.state_centre), torch.tensor(config.state_width)
    for _ in range(config.n_steps - 1):
        obs = env.step_tensor(torch.linspace(-2, 2, 20)[:, None]).obs
        raw = obs * width + centre
        x, eps = env.episode.x.flatten(1), env.episode.eps_last.flatten(1)
        torch.testing.assert_close(raw[:, 1], x.norm(dim=1) / 8, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(raw[:, 2], eps.norm(dim=1) / 8, atol=1e-4, rtol=1e-4)
        assert obs[:, 1].std() > 0.05
        assert obs[:, 2].std() > 0.05
        assert (obs[:, 1:3].abs() > SATURATION).float().mean() < 0.3


def test_every_result_row_is_measured(
    backbone: Backbone,
    reward_classifier: Classifier,
    config: GuidanceConfig,
    manila: Device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Defect: two of four result rows were simulated. Each policy steers its own sampling run; images differ."""
    labels, noise = draw_episode(backbone, 6, torch.Generator().manual_seed(0))
    calls = []
    original = Backbone.predict
    monkeypatch.setattr(Backbone, "predict", lambda self, *a: (calls.append(1), original(self, *a))[1])
    policies = {
        k: build_policy(PolicyConfig(kind=k, gain=1.0), seed=5, device=manila) for k in ("quantum", "matched", "mlp")
    }
    policies = {**policies, "constant": 1.2, "linear_up": schedules.linear_up(1.2, 4)}
    images = {}
    for name, policy in policies.items():
        calls.clear()
        images[name] = rollout(backbone, config, labels, noise, policy, scorer=reward_classifier).images
        assert len(calls) == config.n_steps, name
    names = list(images)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert (images[a] - images[b]).abs().max() > 1e-3, (a, b)
