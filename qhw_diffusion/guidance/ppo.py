"""Proximal policy optimisation (arXiv 1707.06347) in one linear file, with CleanRL's names of settings and metrics.

Works with any `gymnasium.vector.VectorEnv` with flat Box observations and Box actions. `GuidanceEnv` speaks torch and
has episodes of one length, so a rollout [T, B] is exactly one episode per environment and no step is wasted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from qhw_diffusion.checkpoints import restore_checkpoint, save_checkpoint
from qhw_diffusion.errors import InvalidInputError, RunFolderError
from qhw_diffusion.guidance.config import PPOConfig
from qhw_diffusion.guidance.policies import Policy
from qhw_diffusion.guidance.tensor_env import TensorEnv, as_tensor_env
from qhw_diffusion.runs import RunFolder, StopRequest, progress

History = list[dict[str, float]]
POLICY = "actor"  # its name in checkpoints, which those of earlier versions have


def generalised_advantages(
    rewards: Tensor, values: Tensor, dones: Tensor, last_value: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (arXiv 1506.02438), each [T, B].

    δ_t = r_t + γ V_{t+1}(1 − done_t) − V_t; A_t = δ_t + γλ(1 − done_t) A_{t+1}.

    Args:
        rewards: r_t, [T, B].
        values: V_t, [T, B].
        dones: 1 where the episode ended *in* that step, [T, B].
        last_value: value of the state after the rollout, [B].
        gamma: γ.
        gae_lambda: λ.

    Returns:
        Advantages A_t and returns A_t + V_t.
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(last_value)
    next_value = last_value
    for t in reversed(range(rewards.shape[0])):
        alive = 1.0 - dones[t]
        delta = rewards[t] + gamma * next_value * alive - values[t]
        running = delta + gamma * gae_lambda * alive * running
        advantages[t], next_value = running, values[t]
    return advantages, advantages + values


def normalised_advantages(advantages: Tensor) -> Tensor:
    """Advantages [N], N ≥ 2, with mean 0 and standard deviation 1; zeros where they are all equal up to rounding.

    The mean of equal numbers is off by their rounding error, and so is then the standard deviation: divided by each
    other they would be advantages of size one, the same for every action.
    """
    spread = advantages.std()
    if spread <= 4 * torch.finfo(advantages.dtype).eps * advantages.abs().max():
        return torch.zeros_like(advantages)
    return (advantages - advantages.mean()) / (spread + 1e-8)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − Var(returns − values) / Var(returns), of [N] each; NaN where the returns are all equal up to rounding."""
    if returns.std() <= 4 * torch.finfo(returns.dtype).eps * returns.abs().max():
        return float("nan")
    return 1.0 - float((returns - values).var()) / float(returns.var())


def train_ppo(
    env: Any,
    policy: Policy,
    critic: nn.Module,
    config: PPOConfig,
    *,
    run: RunFolder | None = None,
    resume: bool = False,
    on_update: Callable[[int, dict[str, float]], None] | None = None,
    also: Callable[[], Mapping[str, float]] | None = None,
) -> History:
    """Train policy and critic in place; returns one dict of metrics per iteration.

    Ctrl-C ends after the present iteration, with a checkpoint. A pass over the rollout takes `config.num_minibatches`
    minibatches whose sizes differ by one at most.

    Metrics: charts/ (episodic_return, action_mean, action_std, delta_g_abs, action_reversals, g_mean, learning_rate_*,
    SPS), losses/ (policy_loss, value_loss, entropy, approx_kl, clipfrac, means over the rows of all minibatches;
    explained_variance, NaN where all returns are equal), gradients/ (norms of circuit, head and critic before clipping,
    means over the minibatches), reward/ (each term's share per episode), and what the environment's `rollout_metrics`
    tells: state/ (spread and saturation of each entry).

    Args:
        env: vector environment with same-step autoreset.
        policy: trained in place.
        critic: states [B, F] → values [B], trained in place.
        config: settings.
        run: where metrics and checkpoints go; None: nowhere.
        resume: continue from the run's checkpoint, bit for bit (the environment must offer `state_dict`).
        on_update: called with (iteration, metrics) after each iteration.
        also: further metrics, asked for at the end of each iteration.

    Returns:
        The metrics of every iteration.

    Raises:
        InvalidInputError: settings that do not fit the environment.
        RunFolderError: an impossible resume.
    """
    tensor_env = as_tensor_env(env)
    steps = config.num_steps or getattr(env, "n_steps", None)
    if steps is None:
        raise InvalidInputError(f"{type(env).__name__} has no n_steps: give PPOConfig(num_steps=…)")
    if config.num_envs != tensor_env.num_envs:
        raise InvalidInputError(f"PPOConfig.num_envs is {config.num_envs}, the environment has {tensor_env.num_envs}")
    config.check_minibatches(steps)
    batch_size = steps * config.num_envs

    groups = {**policy.parameter_groups(), "critic": list(critic.parameters())}
    rates = {name: getattr(config, f"learning_rate_{name}") for name in groups}
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rates[name], "name": name} for name, parameters in groups.items() if parameters],
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )
    trainable = [parameter for parameters in groups.values() for parameter in parameters]
    generator = torch.Generator().manual_seed(config.seed)
    running_return = torch.zeros(config.num_envs)
    history: History = []
    first = 0
    if resume:
        first, obs = _restore(run, env, policy, critic, optimizer, generator, running_return)
        assert run is not None
        run.truncate_metrics(first)
        history = [{k: v for k, v in row.items() if k != "step"} for row in run.metrics()]
    else:
        obs = tensor_env.reset_tensor(seed=config.seed)

    started = time.perf_counter()
    stop_context = run.interruptible() if run is not None else nullcontext(StopRequest())
    bar = progress(total=config.num_iterations, initial=first, desc="PPO", unit="update")
    with bar, stop_context as stop:
        for update in range(first, config.num_iterations):
            for group in optimizer.param_groups:
                group["lr"] = rates[group["name"]] * config.learning_rate_factor(update)

            # -- rollout: [T, B] ---------------------------------------------------------------------------------
            stored: dict[str, list[Tensor]] = {name: [] for name in ("obs", "action", "log_prob", "reward", "done")}
            seen: dict[str, list[Tensor]] = {name: [] for name in ("mean", "g", "return")}
            terms: dict[str, Tensor] = {}
            with torch.no_grad():
                for _ in range(steps):
                    action, log_prob, mean = policy.sample(obs, generator)
                    step = tensor_env.step_tensor(action)
                    reward = step.reward
                    running_return += reward.cpu()
                    done = (step.terminated | step.truncated).cpu()
                    seen["return"].append(running_return[done].clone())
                    running_return[done] = 0.0
                    if step.final_obs is not None and bool(step.truncated.any()):
                        # cut off by a time limit, not ended: what would have followed is worth V of the last state
                        reward = reward + config.gamma * critic(step.final_obs) * step.truncated
                    for name, value in (("obs", obs), ("action", action), ("log_prob", log_prob), ("reward", reward)):
                        stored[name].append(value)
                    stored["done"].append((step.terminated | step.truncated).to(reward.dtype))
                    seen["mean"].append(mean)
                    if step.g is not None:
                        seen["g"].append(step.g)
                    for name, value in step.terms.items():
                        terms[name] = terms.get(name, torch.zeros(())) + value.mean().cpu()
                    obs = step.obs
                rollout = {name: torch.stack(values) for name, values in stored.items()}
                values = critic(rollout["obs"].flatten(0, 1)).view(steps, config.num_envs)
                advantages, returns = generalised_advantages(
                    rollout["reward"], values, rollout["done"], critic(obs), config.gamma, config.gae_lambda
                )

            # -- update ------------------------------------------------------------------------------------------
            flat = {name: rollout[name].flatten(0, 1) for name in ("obs", "action", "log_prob")}
            flat_advantages, flat_returns, flat_values = advantages.flatten(), returns.flatten(), values.flatten()
            sums: dict[str, float] = {}
            for _ in range(config.update_epochs):
                order = torch.randperm(batch_size, generator=generator).to(flat_advantages.device)
                for rows in order.tensor_split(config.num_minibatches):
                    new_log_prob, entropy = policy.evaluate(flat["obs"][rows], flat["action"][rows])
                    log_ratio = new_log_prob - flat["log_prob"][rows]
                    ratio = log_ratio.exp()
                    advantage = normalised_advantages(flat_advantages[rows])
                    clipped_ratio = ratio.clamp(1.0 - config.clip_coef, 1.0 + config.clip_coef)
                    policy_loss = -torch.minimum(advantage * ratio, advantage * clipped_ratio).mean()
                    value_loss = 0.5 * (critic(flat["obs"][rows]) - flat_returns[rows]).square().mean()
                    entropy_loss = entropy.mean()
                    loss = policy_loss - config.ent_coef * entropy_loss + config.vf_coef * value_loss

                    optimizer.zero_grad()
                    loss.backward()
                    norms = {f"gradients/{name}": gradient_norm(p) for name, p in groups.items()}
                    nn.utils.clip_grad_norm_(trainable, config.max_grad_norm, error_if_nonfinite=True)
                    optimizer.step()

                    with torch.no_grad():
                        measured = {
                            "losses/policy_loss": float(policy_loss),
                            "losses/value_loss": float(value_loss),
                            "losses/entropy": float(entropy_loss),
                            "losses/old_approx_kl": float(-log_ratio.mean()),
                            "losses/approx_kl": float((ratio - 1.0 - log_ratio).mean()),
                            "losses/clipfrac": float(((ratio - 1.0).abs() > config.clip_coef).float().mean()),
                        }
                    for name, number in measured.items():  # means over rows: a larger minibatch counts for more
                        sums[name] = sums.get(name, 0.0) + number / (config.update_epochs * batch_size / len(rows))
                    for name, number in norms.items():
                        sums[name] = sums.get(name, 0.0) + number / (config.update_epochs * config.num_minibatches)

            # -- log ---------------------------------------------------------------------------------------------
            finished = torch.cat(seen["return"])
            metrics = {
                "charts/episodic_return": float(finished.mean()) if finished.numel() else float("nan"),
                "charts/episodic_return_std": float(finished.std()) if finished.numel() > 1 else float("nan"),
                "charts/step_reward": float(rollout["reward"].mean()),
                "charts/action_mean": float(rollout["action"].mean()),
                "charts/action_std": float((rollout["action"] - torch.stack(seen["mean"])).std()),
                "charts/delta_g_abs": float(torch.stack(seen["mean"]).abs().mean()),
                "charts/mean_action_spread": float(torch.stack(seen["mean"]).std(correction=0)),
                "charts/action_reversals": action_reversals(torch.stack(seen["mean"]), rollout["done"]),
                "charts/SPS": (update + 1 - first) * batch_size / (time.perf_counter() - started),
                "losses/explained_variance": explained_variance(flat_values, flat_returns),
                **{f"charts/learning_rate_{g['name']}": g["lr"] for g in optimizer.param_groups},
                **sums,
            }
            if seen["g"]:
                g = torch.stack(seen["g"])
                metrics |= {"charts/g_mean": float(g.mean()), "charts/g_std": float(g.std())}
            # a rollout may hold a part of an episode, or one and a half
            length = getattr(env, "n_steps", None)
            episodes = steps / length if length else max(1.0, float(rollout["done"].sum()) / config.num_envs)
            metrics |= {f"reward/{name}": float(value) / episodes for name, value in terms.items()}
            if hasattr(env, "rollout_metrics"):
                metrics |= env.rollout_metrics(rollout["obs"])
            if also is not None:
                metrics |= also()
            history.append(metrics)
            bar.update(1)
            bar.set_postfix(
                reward=f"{metrics['charts/episodic_return']:.3f}", dCFG=f"{metrics['charts/delta_g_abs']:.2f}"
            )
            if run is not None:
                run.log(update, metrics)
            if on_update is not None:
                on_update(update, metrics)
            last = update + 1 == config.num_iterations
            stopping = not last and stop.requested  # read once: what stops the loop has been saved
            due = stopping or last or (update + 1) % config.checkpoint_every == 0
            if run is not None and due:
                _save(run, update + 1, env, policy, critic, optimizer, generator, running_return)
            if stopping:
                break
    return history


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    """Euclidean norm of the gradients of these parameters together; 0 where there are none."""
    squares = [p.grad.square().sum() for p in parameters if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def action_reversals(means: Tensor, dones: Tensor) -> float:
    """Share of the changes of the mean action within an episode that reverse the one before; [T, B, A], [T, B].

    Only changes above .1 count as reversals: a jitter of a hundredth is no oscillation.
    """
    if means.shape[0] < 3:
        return 0.0
    change = means.diff(dim=0)
    reversal = (change[1:] * change[:-1] < 0) & (change[1:].abs() > 0.1) & (change[:-1].abs() > 0.1)
    within = (dones[:-2] == 0) & (dones[1:-1] == 0)
    return float(reversal[within].float().mean()) if bool(within.any()) else 0.0


def _save(
    run: RunFolder,
    done_updates: int,
    env: TensorEnv | Any,
    policy: Policy,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    running_return: Tensor,
) -> None:
    parts = {POLICY: policy, "critic": critic, "optimizer": optimizer, "generator": generator}
    parts["running_return"] = running_return
    if hasattr(env, "state_dict"):
        parts["env"] = env
    save_checkpoint(run, parts, {"updates": done_updates})


def _restore(
    run: RunFolder | None,
    env: Any,
    policy: Policy,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    running_return: Tensor,
) -> tuple[int, Tensor]:
    """Put the checkpoint back; returns (updates done, current observations)."""
    if run is None:
        raise RunFolderError("resuming needs the run folder that holds the checkpoint")
    if not hasattr(env, "load_state_dict"):
        raise RunFolderError(f"{type(env).__name__} cannot be resumed: it offers no state_dict / load_state_dict")
    parts = {POLICY: policy, "critic": critic, "optimizer": optimizer, "generator": generator}
    meta, returned = restore_checkpoint(run, {**parts, "running_return": running_return, "env": env})
    return int(meta["updates"]), returned["env"]
