"""An outside witness for PPO: the same task, hyperparameters and number of steps as Stable-Baselines3's PPO."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from qhw_diffusion.guidance import Critic, Policy, PPOConfig, train_ppo
from qhw_diffusion.guidance.policies import mlp

ENVS, STEPS, UPDATES, SEEDS, LIMIT = 8, 32, 20, (0, 1), 200


class ContinuousCartPole(gymnasium.ActionWrapper[Any, Any, Any]):
    """CartPole-v1 of at most 200 steps with one continuous action: its sign is the push."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1", max_episode_steps=LIMIT))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def action(self, action: np.ndarray) -> int:
        return int(action[0] > 0)


class PlainActor(Policy):
    """Stable-Baselines3's policy: an MLP for the mean, one free number for log σ, the same starting values."""

    kind = "plain"
    n_features, action_dim = 4, 1

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.mean = mlp([4, 64, 64, 1], torch.Generator().manual_seed(seed), gain=0.01)
        self.log_std = torch.nn.Parameter(torch.zeros(1))

    def _outputs(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.mean(obs), self.log_std.expand(len(obs), 1)], dim=1)


def mean_return(act: Any, episodes: int = 8) -> float:
    env, total = ContinuousCartPole(), 0.0
    for episode in range(episodes):
        obs, over = env.reset(seed=1000 + episode)[0], False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total, over = total + float(reward), terminated or truncated
    return total / episodes


def ours(seed: int) -> float:
    env = SyncVectorEnv([ContinuousCartPole] * ENVS, autoreset_mode=AutoresetMode.SAME_STEP)
    policy = PlainActor(seed)
    config = PPOConfig(
        num_iterations=UPDATES, num_envs=ENVS, num_steps=STEPS, gamma=0.98, gae_lambda=0.9, clip_coef=0.2, ent_coef=0.0,
        update_epochs=8, num_minibatches=4, learning_rate_head=1e-3, learning_rate_critic=1e-3, learning_rate_final=1.0,
        seed=seed,
    )  # fmt: skip
    train_ppo(env, policy, Critic(4, seed=seed), config)
    with torch.no_grad():
        return mean_return(lambda obs: policy(torch.from_numpy(obs)[None])[0][0].numpy())


def theirs(seed: int) -> float:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env(ContinuousCartPole, n_envs=ENVS, seed=seed)
    model = PPO(
        "MlpPolicy", env, n_steps=STEPS, batch_size=ENVS * STEPS // 4, n_epochs=8, gamma=0.98, gae_lambda=0.9,
        clip_range=0.2, ent_coef=0.0, vf_coef=0.5, max_grad_norm=0.5, learning_rate=1e-3, seed=seed, device="cpu",
    )  # fmt: skip
    model.learn(ENVS * STEPS * UPDATES)
    return mean_return(lambda obs: model.predict(obs, deterministic=True)[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3")
def test_reaches_what_stable_baselines3_reaches() -> None:
    """Criterion: over the seeds, ours is at least theirs − 40 (of 200); both are 5 times a random policy's ≈ 20."""
    rng = np.random.default_rng(0)
    random = mean_return(lambda obs: rng.uniform(-1, 1, 1))
    own, other = np.mean([ours(s) for s in SEEDS]), np.mean([theirs(s) for s in SEEDS])
    print(f"mean return over seeds {SEEDS}: ours {own:.0f}, Stable-Baselines3 {other:.0f}, random {random:.0f}")
    assert random < 35
    assert other > 5 * random
    assert own > 5 * random
    assert own >= other - 40
