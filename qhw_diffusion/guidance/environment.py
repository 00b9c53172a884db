"""Guided sampling as a vectorised Gymnasium environment, and a single-environment view of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from qhw_diffusion.checkpoints import pack_generator, unpack_generator
from qhw_diffusion.diffusion import latent_shape_of
from qhw_diffusion.errors import DamagedFileError, InvalidInputError
from qhw_diffusion.guidance.config import GuidanceConfig
from qhw_diffusion.guidance.episode import GuidedEpisode, calibrate_state, draw_episode, state_metrics
from qhw_diffusion.guidance.rewards import Reward, StepView
from qhw_diffusion.guidance.rollout import rollout
from qhw_diffusion.guidance.tensor_env import TensorStep

if TYPE_CHECKING:
    from qhw_diffusion.diffusion import Denoiser

OBSERVATION_BOUND = 100.0
"""Bound of the observation space. Observations are about ±1; the bound is far outside, nothing is clipped to it."""


class GuidanceEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Guided sampling of B images side by side. Observation: normalised state [B, 6 or 7]; action: ΔCFG [B, 1].

    An episode is one image: all sampling steps from fresh noise with a fresh label, all B in lockstep, then
    `terminated` is True for all (the horizon is part of the task and time is in the state, so it is no truncation).
    Autoreset mode is SAME_STEP: the step that ends an episode already returns the next one's first observation, and
    the last one is in `info["final_obs"]`, so no step is wasted. Labels and noise come from the environment's own
    generator: fresh for every episode, or (`config.noise_pool`) from the initial-noise pool, without replacement within
    a batch, for which the images of the base scale are known; the pool is drawn and sampled at the first reset. The
    torch path (`reset_tensor`, `step_tensor`) is the implementation; `reset` and `step` convert.
    """

    def __init__(
        self, backbone: Denoiser, reward: Reward, config: GuidanceConfig, *, num_envs: int, seed: int = 0
    ) -> None:
        """Make the environment.

        Args:
            backbone: makes the predictions.
            reward: the reward, with the scorer of the state.
            config: sampler, guidance range and state; one without state normalisation is calibrated here, the result
                is `self.config`.
            num_envs: B.
            seed: seed of labels and noise.

        Raises:
            InvalidInputError: too few environments for the reward, or more than the pool holds.
        """
        check_num_envs(num_envs, reward, config, backbone.n_classes)
        self.config = calibrate_state(config, backbone, reward.scorer, seed=0)
        self.num_envs, self.reward_function = num_envs, reward
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}
        bound, limit = OBSERVATION_BOUND, config.action_limit
        self.single_observation_space = Box(-bound, bound, (config.n_state,), np.float32)
        self.single_action_space = Box(-limit, limit, (1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.episode = GuidedEpisode(backbone, self.config, reward.scorer)
        self.n_steps = self.episode.n_steps
        self.last_images: Tensor | None = None
        """Images [B, C, H, W] of the last finished episodes, None before the first end."""
        self.last_labels: Tensor | None = None
        """Their labels, int64 [B]."""
        self._backbone = backbone
        self._device = backbone.alphas_cumprod.device
        self._generator = torch.Generator().manual_seed(seed)
        self._started = False
        self._pool: tuple[Tensor, Tensor, Tensor] | None = None  # labels, noise, images of the base scale
        self._rows = torch.zeros(num_envs, dtype=torch.int64)

    # -- torch -----------------------------------------------------------------------------------------------------

    def _fill_pool(self) -> None:
        if self.config.noise_pool and self._pool is None:
            labels, noise = draw_episode(self._backbone, self.config.noise_pool, self._generator, self._device)
            self._pool = labels, noise, rollout(self._backbone, self.config, labels, noise, None).images

    @torch.no_grad()
    def reset_tensor(self, seed: int | None = None) -> Tensor:
        """Start new episodes everywhere; `seed` restarts the generator. Returns observations [B, n_state]."""
        self._fill_pool()
        if seed is not None:
            self._generator.manual_seed(seed)
        if self._pool is None:
            labels, noise = draw_episode(self._backbone, self.num_envs, self._generator, self._device)
        else:
            self._rows = balanced_rows(self._pool[0].cpu(), self.num_envs, self._generator)
            labels, noise = self._pool[0][self._rows], self._pool[1][self._rows]
        self.episode.begin(labels, noise)
        self._started = True
        return self.episode.state()

    @torch.no_grad()
    def step_tensor(self, action: Tensor) -> TensorStep:
        """One sampling step with ΔCFG [B, 1] (clipped to ± the limit)."""
        if not self._started:
            raise InvalidInputError("call reset before the first step")
        if tuple(action.shape) != (self.num_envs, 1) or not bool(torch.isfinite(action).all()):
            raise InvalidInputError(
                f"actions must be finite and of shape {(self.num_envs, 1)}, got {tuple(action.shape)}"
            )
        episode = self.episode
        clipped, g = episode.guidance(action.detach().cpu()[:, 0])
        x0_previous, score_previous = episode.images, episode.score
        episode.advance(g, clipped)
        view = StepView(
            last=episode.done,
            x0=episode.images,
            x0_previous=x0_previous,
            labels=episode.labels,
            action=clipped.to(self._device),
            scorer=self.reward_function.scorer,
            known_scores=(score_previous, episode.score),
            reference=self._pool[2][self._rows] if self._pool is not None and episode.done else None,
        )
        reward, terms = self.reward_function(view)
        reward, terms = reward.cpu(), {name: share.cpu() for name, share in terms.items()}  # where policies are
        obs = episode.state()
        ended = torch.full((self.num_envs,), episode.done)
        final = None
        if episode.done:
            final, self.last_images, self.last_labels = obs, episode.images, episode.labels
            obs = self.reset_tensor()
        return TensorStep(obs, reward, ended, torch.zeros_like(ended), final, terms, g)

    def rollout_metrics(self, states: Tensor) -> dict[str, float]:
        """For the training log: spread and saturation of each entry of states [T, B, n_state]."""
        return state_metrics(states, self.config.n_entries)

    # -- gymnasium -------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes everywhere. `options` is not used."""
        return _numpy(self.reset_tensor(seed)), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step; info holds g [B], the reward's parts [B] and, at an end, final_obs and the images."""
        step = self.step_tensor(torch.from_numpy(np.array(actions, dtype=np.float32, copy=True)))
        info: dict[str, Any] = {"g": _numpy(step.g), **{f"reward/{k}": _numpy(v) for k, v in step.terms.items()}}
        if step.final_obs is not None:
            mask = np.ones(self.num_envs, dtype=bool)
            info.update(final_obs=_numpy(step.final_obs), _final_obs=mask, images=_numpy(self.last_images))
        reward = _numpy(step.reward).astype(np.float64)
        return _numpy(step.obs), reward, _numpy(step.terminated), _numpy(step.truncated), info

    # -- resume ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on bit for bit: the generator and the running episodes."""
        episode = self.episode.state_dict() if self._started else {}
        own = {"generator": pack_generator(self._generator), "rows": self._rows.clone()}
        return {**own, **{f"episode.{k}": v for k, v in episode.items()}}

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> Tensor:
        """Inverse of `state_dict`; returns the current observations [B, n_state]."""
        episode = {k.removeprefix("episode."): v for k, v in tensors.items() if k.startswith("episode.")}
        expected = (self.num_envs, *latent_shape_of(self._backbone))
        if not {"generator", "rows"} <= set(tensors) or tuple(episode.get("x", torch.empty(0)).shape) != expected:
            raise DamagedFileError(
                f"the saved environment does not hold {self.num_envs} running episodes of {expected[1:]}; "
                f"the checkpoint is damaged or belongs to another configuration"
            )
        self._fill_pool()  # from the generator's own seed, before it goes on where the run stopped
        unpack_generator(self._generator, tensors["generator"])
        self._rows = tensors["rows"].clone()
        self.episode.load_state_dict({k: v.to(self._device) for k, v in episode.items()})
        self._started = True
        return self.episode.state()


class SingleGuidanceEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One guided sampling run as a plain `gymnasium.Env`: a view of a `GuidanceEnv` with one environment.

    Fresh labels and noise in every episode (`config.noise_pool` is set to 0). The reward must not hold the distribution
    term: one image is no distribution.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(self, backbone: Denoiser, reward: Reward, config: GuidanceConfig, *, seed: int = 0) -> None:
        self.vector = GuidanceEnv(backbone, reward, config.replace(noise_pool=0), num_envs=1, seed=seed)
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space
        self.render_mode = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a new episode."""
        super().reset(seed=seed)
        obs, info = self.vector.reset(seed=seed)
        return obs[0], info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step; at the end the observation is the ended episode's last one, as plain environments do."""
        obs, reward, terminated, truncated, info = self.vector.step(np.asarray(action)[None])
        last = info.pop("final_obs", obs)
        info.pop("_final_obs", None)
        info = {name: value[0] for name, value in info.items()}
        return last[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info


def check_num_envs(num_envs: int, reward: Reward, config: GuidanceConfig, n_classes: int) -> None:
    """Check that so many environments fit the reward and the initial-noise pool.

    Raises:
        InvalidInputError: too few for the terms of the reward, or more than the pool holds.
    """
    smallest = reward.smallest_batch(n_classes)
    if num_envs < smallest:
        raise InvalidInputError(
            f"num_envs is {num_envs}, at least {smallest} are needed (a term of the reward compares the images of a "
            f"batch with each other)"
        )
    if 0 < config.noise_pool < num_envs:
        raise InvalidInputError(
            f"{num_envs} environments need an initial-noise pool of as many pairs of label and noise, noise_pool is "
            f"{config.noise_pool}; raise it, or set it to 0 for fresh ones in every episode"
        )


def balanced_rows(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random rows without replacement, every class as often as the others as far as `labels` [N] allows; [count]."""
    order = torch.randperm(len(labels), generator=generator)
    drawn = labels[order]
    one_hot = torch.nn.functional.one_hot(drawn)
    turn = one_hot.cumsum(0).gather(1, drawn[:, None]).squeeze(1)  # the how-manieth of its class
    return order[torch.argsort(turn, stable=True)[:count]]


def _numpy(values: Tensor | None) -> np.ndarray:
    assert values is not None
    array: np.ndarray = values.detach().cpu().numpy().copy()
    return array
