"""Policies over a few values of ΔCFG: their distribution, what PPO learns with them, saving, and what refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch.distributions import Categorical

from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import Backbone, Classifier
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance import (
    Critic,
    GuidanceConfig,
    MLPPolicy,
    PathwiseConfig,
    PolicyConfig,
    PPOConfig,
    QuantumPolicy,
    RewardConfig,
    build_policy,
    draw_episode,
    fit_network,
    load_policy_model,
    quantum_parameters,
    rollout,
    save_policy_model,
    tabulate,
    train_guidance,
    train_ppo,
)

CHOICES = (-1.0, -0.5, 0.0, 0.5, 1.0)
STATES = 0.5 * torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["quantum", "frozen", "matched", "mlp"])
def test_the_distribution_is_torchs(kind: str, manila: Device) -> None:
    policy = build_policy(PolicyConfig(kind=kind, discrete_actions=CHOICES), device=manila, seed=1)
    reference = Categorical(logits=policy._outputs(STATES))
    values = torch.tensor(CHOICES)
    action, log_std = policy(STATES)
    assert torch.equal(action[:, 0], values[reference.probs.argmax(1)])
    variance = (reference.probs * values.square()).sum(1) - (reference.probs @ values).square()
    torch.testing.assert_close(log_std[:, 0].exp(), variance.sqrt(), rtol=1e-4, atol=1e-5)
    drawn, log_prob, again = policy.sample(STATES, torch.Generator().manual_seed(2))
    assert set(drawn[:, 0].tolist()) <= set(CHOICES)
    assert torch.equal(again, action)
    row = (drawn == values).float().argmax(1)
    torch.testing.assert_close(log_prob, reference.log_prob(row))
    evaluated, entropy = policy.evaluate(STATES, drawn)
    torch.testing.assert_close(evaluated, log_prob)
    torch.testing.assert_close(entropy, reference.entropy())
    many = policy.sample(STATES[:1].expand(4000, -1), torch.Generator().manual_seed(3))[0]
    share = torch.stack([(many == value).float().mean() for value in values])
    torch.testing.assert_close(share, reference.probs[0], rtol=0.0, atol=0.04)


def test_it_starts_near_the_base_scale_with_the_deviation_asked_for() -> None:
    fine = tuple(np.linspace(-3, 3, 61).tolist())
    policy = MLPPolicy(choices=fine, gain=1e-3, initial_std=0.7)
    action, log_std = policy(STATES)
    assert float(action.abs().max()) < 0.06
    torch.testing.assert_close(log_std.exp(), torch.full((64, 1), 0.7), rtol=0.01, atol=0.0)


def test_counts_follow_the_choices() -> None:
    settings = PolicyConfig(device="ideal", engine="ideal", discrete_actions=CHOICES)
    real = build_policy(settings).parameter_counts()["total"]
    assert quantum_parameters(settings, 6) == real
    assert abs(build_policy(settings.replace(kind="matched")).parameter_counts()["total"] - real) <= 0.002 * real


def test_a_saved_policy_and_its_table_choose_the_same(tmp_path: Path, manila: Device) -> None:
    policy = build_policy(PolicyConfig(discrete_actions=CHOICES), device=manila, seed=1)
    assert isinstance(policy, QuantumPolicy)
    loaded = load_policy_model(save_policy_model(policy, tmp_path / "model"))
    assert loaded.choices == CHOICES
    for other in (loaded, policy.on(engine="noisy"), tabulate(policy)):
        torch.testing.assert_close(other._outputs(STATES), policy._outputs(STATES), rtol=1e-4, atol=1e-5)
        assert torch.equal(other(STATES)[0], policy(STATES)[0])
    table = load_policy_model(save_policy_model(tabulate(policy), tmp_path / "table"))
    assert torch.equal(table(STATES)[0], policy(STATES)[0])
    with pytest.raises(InvalidInputError, match="distil it into a table"):
        fit_network(policy, STATES)


class Nearest(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """One-step episodes with the reward −(action − observation)²: the best choice is the one nearest to the state."""

    n_steps = 1

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.rng = np.random.default_rng(seed)
        self.obs = self.rng.uniform(-1, 1, (self.num_envs, 1)).astype(np.float32)
        return self.obs, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        reward = -((actions - self.obs)[:, 0] ** 2)
        final, self.obs = self.obs, self.rng.uniform(-1, 1, (self.num_envs, 1)).astype(np.float32)
        over = np.ones(self.num_envs, dtype=bool)
        return self.obs, reward, over, ~over, {"final_obs": final, "_final_obs": over}


@pytest.mark.slow
def test_ppo_learns_to_choose() -> None:
    policy = MLPPolicy((32, 32), n_features=1, choices=CHOICES, gain=0.1, initial_std=2.0)
    settings = PPOConfig.short(num_iterations=40, num_envs=128, num_minibatches=4, learning_rate_head=1e-2)
    train_ppo(Nearest(128), policy, Critic(1), settings)
    states = torch.linspace(-0.95, 0.95, 77)[:, None]
    nearest = torch.tensor(CHOICES)[(states - torch.tensor(CHOICES)).abs().argmin(1)]
    assert float((policy(states)[0][:, 0] == nearest).float().mean()) > 0.85


def test_a_run_trains_and_plays_with_choices(tmp_path: Path, backbone: Backbone, reward_classifier: Classifier) -> None:
    guidance = GuidanceConfig(n_steps=3, spacing="trailing", g0=1.2, g_max=3.2, noise_pool=40)
    settings = PolicyConfig("matched", discrete_actions=CHOICES)
    ppo = PPOConfig(num_iterations=1, num_envs=20)
    trained = train_guidance(guidance, ppo, RewardConfig(), settings, path=tmp_path / "run")
    labels, noise = draw_episode(backbone, 8, torch.Generator().manual_seed(0))
    played = rollout(backbone, trained.config, labels, noise, trained.policy, scorer=reward_classifier)
    assert set(played.actions.flatten().tolist()) <= set(CHOICES)
    with pytest.raises(InvalidInputError, match=r"no gradient through its choice.*--method ppo"):
        train_guidance(guidance, PathwiseConfig(num_images=20), RewardConfig(), settings)
    with pytest.raises(InvalidInputError, match=r"discrete_actions 3: allowed is up to ± action_limit = 2"):
        train_guidance(guidance, ppo, RewardConfig(), settings.replace(discrete_actions=(0.0, 3.0)))


@pytest.mark.parametrize("choices", [(1.0,), (1.0, 1.0)])
def test_choices_that_are_none_are_refused(choices: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInputError, match="two or more different"):
        PolicyConfig(discrete_actions=choices)
    with pytest.raises(InvalidInputError, match="two or more different"):
        MLPPolicy(choices=choices)
