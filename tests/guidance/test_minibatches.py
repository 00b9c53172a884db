"""Minibatches of PPO: as many as asked for, sizes that differ by one at most, averages over what was made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance import Critic, GuidanceConfig, MLPPolicy, PolicyConfig, PPOConfig, RewardConfig, train_ppo
from qhw_diffusion.guidance import training as guidance_training
from qhw_diffusion.guidance.ppo import explained_variance, normalised_advantages
from qhw_diffusion.guidance.tensor_env import TensorStep

EPOCHS = 3


class Steady(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Episodes of `length` steps in lockstep. Reward: a fixed number for every step and environment, or a constant.

    Speaks torch, and tells its reward as one term, "whole".
    """

    def __init__(self, num_envs: int, length: int, *, constant: float | None = None) -> None:
        self.num_envs, self.n_steps, self.constant = num_envs, length, constant
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = gymnasium.spaces.Box(-5, 5, (2,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-5, 5, (1,), np.float32)
        self.taken = 0

    def _observe(self) -> torch.Tensor:
        return torch.randn(self.num_envs, 2, generator=torch.Generator().manual_seed(self.taken))

    def reset_tensor(self, seed: int | None = None) -> torch.Tensor:
        return self._observe()

    def step_tensor(self, action: torch.Tensor) -> TensorStep:
        reward = torch.linspace(0.5, 1.5, self.num_envs) * (1 + self.taken % self.n_steps)
        if self.constant is not None:
            reward = torch.full((self.num_envs,), self.constant)
        self.taken += 1
        over = torch.full((self.num_envs,), self.taken % self.n_steps == 0)
        return TensorStep(self._observe(), reward, over, torch.zeros_like(over), terms={"whole": reward})


class Watched(MLPPolicy):
    """Keeps the entropies of every minibatch it is evaluated on."""

    def __init__(self) -> None:
        super().__init__((4, 4), n_features=2)
        self.seen: list[torch.Tensor] = []

    def evaluate(self, obs: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_prob, entropy = super().evaluate(obs, action)
        self.seen.append(entropy.detach())
        return log_prob, entropy


def settings(num_envs: int, minibatches: int, **changes: Any) -> PPOConfig:
    given = {
        "num_iterations": 1,
        "num_envs": num_envs,
        "num_minibatches": minibatches,
        "update_epochs": EPOCHS,
        **changes,
    }
    return PPOConfig(**given)


# the batches of 81, 27, 20 and 9 rows leave chunks of unequal size, the last two would leave one of a single row
@pytest.mark.parametrize(
    ("num_envs", "steps", "minibatches"),
    [(27, 3, 20), (27, 3, 16), (27, 1, 13), (5, 4, 3), (5, 4, 10), (3, 3, 4), (20, 4, 4), (7, 2, 1)],
)
def test_as_many_minibatches_as_asked_for_and_means_over_all_rows(num_envs: int, steps: int, minibatches: int) -> None:
    policy = Watched()
    config = settings(num_envs, minibatches)
    (metrics,) = train_ppo(Steady(num_envs, steps), policy, Critic(2), config)
    sizes = [len(entropy) for entropy in policy.seen]
    assert len(sizes) == minibatches * EPOCHS
    assert sum(sizes) == num_envs * steps * EPOCHS
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2
    assert metrics["losses/entropy"] == pytest.approx(float(torch.cat(policy.seen).mean()), rel=1e-5)
    assert all(math.isfinite(value) for name, value in metrics.items() if name.startswith(("losses", "gradients")))


def test_even_minibatches_are_the_ones_of_old() -> None:
    order = torch.randperm(1152, generator=torch.Generator().manual_seed(0))
    for count in (1, 2, 4, 8, 9):
        old, new = order.chunk(count), order.tensor_split(count)
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 3, 4, 6, 8])
def test_reward_shares_are_per_episode_however_long_a_rollout_is(num_steps: int) -> None:
    """The same 24 steps, six episodes of four, cut into rollouts of any length."""
    config = settings(
        10, 2, num_steps=num_steps, num_iterations=24 // num_steps, learning_rate_head=0.0, learning_rate_critic=0.0
    )
    history = train_ppo(Steady(10, 4), Watched(), Critic(2), config)
    shares = [row["reward/whole"] for row in history]
    assert sum(shares) / len(shares) == pytest.approx(1 + 2 + 3 + 4, rel=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7, 1e4])
def test_constant_advantages_push_nowhere(constant: float) -> None:
    """Rounding of the mean must not be blown up to advantages of size one."""
    assert torch.equal(normalised_advantages(torch.full((81,), constant)), torch.zeros(81))
    # differences above rounding are normalised as before
    other = torch.full((81,), constant)
    other[0] += 0.1 if abs(constant) < 100 else 10.0
    assert float(normalised_advantages(other).abs().max()) > 1


def test_advantages_are_normalised_as_ever() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 1e-3 + 2.0
    assert torch.equal(normalised_advantages(values), (values - values.mean()) / (values.std() + 1e-8))


def test_explained_variance_of_a_constant_return_is_not_a_number() -> None:
    generator = torch.Generator().manual_seed(0)
    returns, values = torch.randn(2, 60, generator=generator)
    expected = 1 - float(np.var((returns - values).numpy(), ddof=1) / np.var(returns.numpy(), ddof=1))
    assert explained_variance(values, returns) == pytest.approx(expected, rel=1e-5)
    assert explained_variance(values * 1e-8, returns * 1e-8) == pytest.approx(expected, rel=1e-5)
    for constant in (0.0, 0.1, 1e4):
        assert math.isnan(explained_variance(values, torch.full((60,), constant)))
    (metrics,) = train_ppo(Steady(10, 1, constant=0.3), Watched(), Critic(2), settings(10, 2))
    assert math.isnan(metrics["losses/explained_variance"])
    assert math.isfinite(metrics["losses/policy_loss"])


# -- refused before anything is done ---------------------------------------------------------------------------------


class Untouchable(Steady):
    def reset_tensor(self, seed: int | None = None) -> torch.Tensor:
        raise AssertionError("a step was taken")


def test_too_many_minibatches_are_refused_before_a_step() -> None:
    with pytest.raises(InvalidInputError, match=r"9 minibatches .* 17 rows.* at most 8"):
        train_ppo(Untouchable(17, 1), MLPPolicy(n_features=2), Critic(2), settings(17, 9))


def test_too_many_minibatches_are_refused_where_rows_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="at most 30"):
        PPOConfig(num_envs=20, num_steps=3, num_minibatches=31)
    assert PPOConfig(num_envs=20, num_steps=3, num_minibatches=30).num_minibatches == 30

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something was sampled")

    monkeypatch.setattr(guidance_training, "calibrate", never)
    train = guidance_training.train_guidance
    with pytest.raises(InvalidInputError, match="at most 60"):
        train(GuidanceConfig(), settings(20, 61), RewardConfig(), PolicyConfig(kind="matched"), path=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["num_iterations", "num_envs", "update_epochs", "num_minibatches", "checkpoint_every", "num_steps"]
)
@pytest.mark.parametrize("value", [2.5, True, "4", 0])
def test_counts_are_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=name):
        PPOConfig(**{name: value})
