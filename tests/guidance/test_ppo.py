from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from qhw_diffusion.checkpoints import load_checkpoint
from qhw_diffusion.diffusion import Backbone
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, RunFolderError
from qhw_diffusion.guidance import (
    Critic,
    GuidanceConfig,
    GuidanceEnv,
    MLPPolicy,
    PPOConfig,
    QuantumPolicy,
    Reward,
    generalised_advantages,
    train_ppo,
)
from qhw_diffusion.runs import RunFolder


def test_advantages_against_the_definition() -> None:
    """A_t = Σ_l (γλ)^l δ_{t+l}, cut at episode ends, summed naively sample by sample."""
    steps, batch, gamma, lam = 9, 5, 0.9, 0.8
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, steps, batch))
    dones = (rng.random((steps, batch)) < 0.25).astype(float)
    last = rng.normal(size=batch)
    expected = np.zeros((steps, batch))
    for b in range(batch):
        for t in range(steps):
            factor = 1.0
            for k in range(t, steps):
                following = last[b] if k == steps - 1 else values[k + 1, b]
                delta = rewards[k, b] + gamma * following * (1 - dones[k, b]) - values[k, b]
                expected[t, b] += factor * delta
                if dones[k, b]:
                    break
                factor *= gamma * lam
    inputs = [torch.from_numpy(x) for x in (rewards, values, dones, last)]
    advantages, returns = generalised_advantages(*inputs, gamma, lam)
    np.testing.assert_allclose(advantages.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(returns.numpy(), expected + values, atol=1e-12)


class Target(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Two-step episodes; the reward is −(action − observation)², so the optimum is known: μ(s) = s.

    With `cut`, episodes never end but are cut off after two steps, worth a constant `bonus` a step for ever.
    """

    def __init__(self, num_envs: int = 64, *, cut: bool = False, bonus: float = 0.0) -> None:
        self.num_envs, self.cut, self.bonus, self.n_steps = num_envs, cut, bonus, 2
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def _draw(self) -> np.ndarray:
        self.obs = self._rng.uniform(-1, 1, (self.num_envs, 1)).astype(np.float32)
        return self.obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._rng, self.t = np.random.default_rng(seed), 0
        return self._draw(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        reward = -((actions - self.obs)[:, 0] ** 2) + self.bonus
        self.t += 1
        over = np.full(self.num_envs, self.t % 2 == 0)
        info = {"final_obs": self._draw().copy(), "_final_obs": over} if over[0] else {}
        nothing = np.zeros(self.num_envs, bool)
        return self._draw(), reward, nothing if self.cut else over, over if self.cut else nothing, info


def quick(**changes: Any) -> PPOConfig:
    settings = {"num_iterations": 30, "num_envs": 64, "learning_rate_head": 1e-2, "learning_rate_critic": 1e-2,
                "clip_coef": 0.2, "ent_coef": 0.0}  # fmt: skip
    return PPOConfig(**{**settings, **changes})


@pytest.mark.slow
def test_it_finds_a_known_optimum() -> None:
    policy, critic = MLPPolicy((32, 32), n_features=1), Critic(1)
    history = train_ppo(Target(), policy, critic, quick(num_iterations=30, num_minibatches=2, learning_rate_head=2e-2))
    s = torch.linspace(-0.9, 0.9, 7)[:, None]
    with torch.no_grad():
        torch.testing.assert_close(policy(s)[0], s, atol=0.15, rtol=0)
    assert history[0]["charts/episodic_return"] < -0.8
    assert history[-1]["charts/episodic_return"] > -0.15
    assert history[-1]["charts/action_std"] < 0.6 * history[0]["charts/action_std"]


def test_cut_off_episodes_are_worth_what_would_have_followed() -> None:
    """With γ = .9 and 2/3 a step for ever the value is 6.7; without the bootstrap it would be at most 1.3."""
    critic = Critic(1, (16,))
    config = quick(
        num_iterations=40,
        gamma=0.9,
        num_minibatches=1,
        learning_rate_critic=5e-2,
        max_grad_norm=10.0,
        learning_rate_head=0.0,
    )
    policy = MLPPolicy((4, 4), n_features=1, initial_std=1e-3)
    train_ppo(Target(cut=True, bonus=1.0), policy, critic, config)
    with torch.no_grad():
        values = critic(torch.linspace(-1, 1, 101)[:, None])
    # the action stays at 0, so a step earns 1 − s², on average 2/3: 6.7 in all
    assert float(values.mean()) == pytest.approx(2.0 / 3.0 / 0.1, rel=0.1)


def test_metrics_are_complete(
    backbone: Backbone, reward: Reward, config: GuidanceConfig, quantum: QuantumPolicy
) -> None:
    env = GuidanceEnv(backbone, reward, config, num_envs=20)
    seen: list[int] = []
    history = train_ppo(
        env, quantum, Critic(), PPOConfig(num_iterations=2, num_envs=20), on_update=lambda u, _: seen.append(u)
    )
    assert seen == [0, 1]
    wanted = {
        "charts/episodic_return",
        "charts/action_mean",
        "charts/action_std",
        "charts/delta_g_abs",
        "charts/g_mean",
    }
    wanted |= {"charts/action_reversals", "charts/mean_action_spread"}
    wanted |= {f"losses/{n}" for n in ("policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac")}
    wanted |= {f"gradients/{n}" for n in ("circuit", "head", "critic")}
    wanted |= {f"reward/{n}" for n in ("confidence", "stepwise", "action_penalty", "distribution")}
    wanted |= {f"state/{n}_{what}" for n in ("time", "confidence", "cosine") for what in ("std", "saturated")}
    wanted |= {f"charts/learning_rate_{n}" for n in ("circuit", "head", "critic")}
    assert wanted <= set(history[0])
    assert all(np.isfinite(v) for v in history[0].values())
    # the parts of the reward are the episode's return
    total = sum(v for k, v in history[0].items() if k.startswith("reward/"))
    assert total == pytest.approx(history[0]["charts/episodic_return"], rel=1e-4, abs=1e-4)


def test_separate_learning_rates(
    backbone: Backbone, reward: Reward, config: GuidanceConfig, quantum: QuantumPolicy
) -> None:
    """A rate of zero leaves exactly that part where it was."""
    env = GuidanceEnv(backbone, reward, config, num_envs=20)
    critic = Critic()
    both = torch.nn.ModuleDict({"policy": quantum, "critic": critic})
    before = {k: v.clone() for k, v in both.state_dict().items()}
    train_ppo(
        env,
        quantum,
        critic,
        PPOConfig(
            num_iterations=1, num_envs=20, learning_rate_circuit=0.01, learning_rate_head=0.0, learning_rate_critic=0.0
        ),
    )
    moved = {k for k, v in both.state_dict().items() if not torch.equal(before[k], v)}
    assert moved == {"policy.layer.weight", "policy.input_scale"}


def make(backbone: Backbone, reward: Reward, config: GuidanceConfig, quantum: QuantumPolicy) -> tuple[Any, Any, Any]:
    return GuidanceEnv(backbone, reward, config, num_envs=20, seed=2), quantum.on(), Critic(seed=2)


PPO = PPOConfig(
    num_iterations=4,
    num_envs=20,
    update_epochs=2,
    num_minibatches=2,
    learning_rate_circuit=0.02,
    checkpoint_every=2,
    seed=2,
)


@pytest.mark.slow
def test_resumed_training_is_the_same_bit_for_bit(
    backbone: Backbone, reward: Reward, config: GuidanceConfig, quantum: QuantumPolicy, tmp_path: Path
) -> None:
    with RunFolder.create(tmp_path / "whole", kind="guidance", config={}) as whole:
        parts = make(backbone, reward, config, quantum)
        expected = train_ppo(*parts, PPO, run=whole)

    class Crash(Exception):
        pass

    def crash(update: int, _: dict[str, float]) -> None:
        if update == 2:  # one update after the last checkpoint
            raise Crash

    with RunFolder.create(tmp_path / "cut", kind="guidance", config={}) as cut:
        with pytest.raises(Crash):
            train_ppo(*make(backbone, reward, config, quantum), PPO, run=cut, on_update=crash)
        assert len(cut.metrics()) == 3
    with RunFolder.open(tmp_path / "cut", kind="guidance") as cut:
        again = make(backbone, reward, config, quantum)
        history = train_ppo(*again, PPO, run=cut, resume=True)
        assert [row["step"] for row in cut.metrics()] == [0, 1, 2, 3]
    for module, reference in ((again[1], parts[1]), (again[2], parts[2])):
        for name, value in reference.state_dict().items():
            assert torch.equal(module.state_dict()[name], value), name
    strip = [{k: v for k, v in row.items() if k != "charts/SPS"} for row in expected]
    assert [{k: v for k, v in row.items() if k != "charts/SPS"} for row in history] == strip


def test_ctrl_c_saves_a_checkpoint(
    backbone: Backbone, reward: Reward, config: GuidanceConfig, quantum: QuantumPolicy, tmp_path: Path
) -> None:
    def interrupt(update: int, _: dict[str, float]) -> None:
        if update == 0:
            os.kill(os.getpid(), signal.SIGINT)

    with RunFolder.create(tmp_path / "run", kind="guidance", config={}) as run:
        history = train_ppo(*make(backbone, reward, config, quantum), PPO, run=run, on_update=interrupt)
        assert len(history) == 1
        assert load_checkpoint(run)[1]["updates"] == 1
        assert run.outcome == "stopped"


def test_impossible_resumes(
    backbone: Backbone, reward: Reward, config: GuidanceConfig, quantum: QuantumPolicy, tmp_path: Path
) -> None:
    env, policy, critic = make(backbone, reward, config, quantum)
    with pytest.raises(RunFolderError, match="run folder"):
        train_ppo(env, policy, critic, PPO, resume=True)
    with RunFolder.create(tmp_path / "run", kind="guidance", config={}) as run:
        with pytest.raises(RunFolderError, match="no checkpoint"):
            train_ppo(env, policy, critic, PPO, run=run, resume=True)
        train_ppo(env, policy, critic, PPO.replace(num_iterations=1), run=run)
        with pytest.raises(DamagedFileError, match="does not fit"):
            train_ppo(env, MLPPolicy(), critic, PPO, run=run, resume=True)
        with pytest.raises(RunFolderError, match="state_dict"):
            train_ppo(Target(20), MLPPolicy(n_features=1), Critic(1), quick(num_envs=20), run=run, resume=True)


def test_unfit_environments_are_refused() -> None:
    policy, critic = MLPPolicy(n_features=1), Critic(1)
    env = Target()
    with pytest.raises(InvalidInputError, match="VectorEnv"):
        train_ppo(gymnasium.make("Pendulum-v1"), policy, critic, quick())
    with pytest.raises(InvalidInputError, match="num_envs"):
        train_ppo(env, policy, critic, quick(num_envs=8))
    with pytest.raises(InvalidInputError, match="minibatches"):
        train_ppo(env, policy, critic, quick(num_minibatches=100))
    env.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    with pytest.raises(InvalidInputError, match="SAME_STEP"):
        train_ppo(env, policy, critic, quick())
    with pytest.raises(InvalidInputError, match="Box"):
        train_ppo(gymnasium.make_vec("CartPole-v1", num_envs=2), policy, critic, quick(num_envs=2))
