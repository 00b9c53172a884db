"""Vectorised Gymnasium environments stepped with torch tensors, for the PPO loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError


@dataclass(frozen=True)
class TensorStep:
    """Outcome of one step of B environments that reset themselves in the same step (AutoresetMode.SAME_STEP).

    Attributes:
        obs: [B, F], of the *next* episode where one ended.
        reward: [B].
        terminated: bool [B].
        truncated: bool [B].
        final_obs: last observation of the ended episodes, [B, F] (rows of unfinished ones are meaningless), or None.
        terms: the reward's weighted terms, [B] each, where the environment tells them.
        g: guidance scale, [B], where there is one.
    """

    obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_obs: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)
    g: Tensor | None = None


@runtime_checkable
class TensorEnv(Protocol):
    """What the PPO loop needs. `GuidanceEnv` offers it natively, `NumpyBridge` for everything else."""

    num_envs: int
    single_observation_space: gymnasium.Space[Any]
    single_action_space: gymnasium.Space[Any]

    def reset_tensor(self, seed: int | None = None) -> Tensor:
        """First observations [B, F]."""
        ...

    def step_tensor(self, action: Tensor) -> TensorStep:
        """One step with actions [B, A]."""
        ...


class NumpyBridge:
    """Torch face of a numpy `gymnasium.vector.VectorEnv` with Box spaces. Actions are clipped to the action space."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space

    def reset_tensor(self, seed: int | None = None) -> Tensor:
        """First observations, [B, F]."""
        obs, _ = self.env.reset(seed=seed)
        return _float(obs)

    def step_tensor(self, action: Tensor) -> TensorStep:
        """One step with actions [B, A], clipped to the action space."""
        space = self.single_action_space
        assert isinstance(space, gymnasium.spaces.Box)
        clipped = np.clip(action.numpy().reshape(self.num_envs, *space.shape), space.low, space.high)
        obs, reward, terminated, truncated, info = self.env.step(clipped.astype(space.dtype))
        final = None
        if "final_obs" in info:
            final = _float(obs).clone()
            for i in np.flatnonzero(info["_final_obs"]):
                final[i] = _float(info["final_obs"][i])
        ended = torch.from_numpy(np.asarray(terminated)), torch.from_numpy(np.asarray(truncated))
        return TensorStep(_float(obs), _float(reward), *ended, final_obs=final)


def as_tensor_env(env: Any) -> TensorEnv:
    """The environment itself if it speaks torch, else a bridge.

    Raises:
        InvalidInputError: no VectorEnv with flat Box observations, Box actions and same-step autoreset.
    """
    if not isinstance(env, VectorEnv):
        raise InvalidInputError(f"PPO trains on a gymnasium.vector.VectorEnv, got {type(env).__name__}")
    for name in ("single_observation_space", "single_action_space"):
        space = getattr(env, name)
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise InvalidInputError(f"{name} must be a Box of one dimension, got {space}")
    mode = env.metadata.get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        raise InvalidInputError(
            f"the environment's autoreset mode is {mode}; PPO here needs same-step (no wasted steps): "
            f"gymnasium.make_vec(..., vector_kwargs={{'autoreset_mode': AutoresetMode.SAME_STEP}})"
        )
    if hasattr(env, "reset_tensor") and hasattr(env, "step_tensor"):
        return env  # type: ignore[return-value]
    return NumpyBridge(env)


def _float(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
