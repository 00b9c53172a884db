"""The guidance room: a controller of classifier-free guidance, its environment, its training and its rivals."""

from __future__ import annotations

from qhw_diffusion.guidance import rewards, schedules
from qhw_diffusion.guidance.actors import Actor, AnnealingActor, Critic, MLPActor, matched_mlp
from qhw_diffusion.guidance.config import (
    ACTOR_KINDS,
    QUANTUM_KINDS,
    ActorConfig,
    GuidanceConfig,
    PPOConfig,
    RewardConfig,
)
from qhw_diffusion.guidance.diagnostics import Finding, diagnose
from qhw_diffusion.guidance.distill import ActionError, action_error, explored_states, fit_network, visited_states
from qhw_diffusion.guidance.environment import GuidanceEnv, SingleGuidanceEnv
from qhw_diffusion.guidance.episode import GuidedEpisode, calibrate_state, draw_episode
from qhw_diffusion.guidance.lookup import LookupActor, tabulate
from qhw_diffusion.guidance.ppo import generalised_advantages, train_ppo
from qhw_diffusion.guidance.quantum_actor import QuantumActor, compile_policy
from qhw_diffusion.guidance.rewards import Reward
from qhw_diffusion.guidance.rollout import Controller, Rollout, rollout
from qhw_diffusion.guidance.saving import load_actor, save_actor
from qhw_diffusion.guidance.state import STATE_NAMES
from qhw_diffusion.guidance.sweep import Sweep, SweepRow, sweep_constants
from qhw_diffusion.guidance.tensor_env import TensorStep
from qhw_diffusion.guidance.training import (
    TrainedController,
    build_actor,
    calibrate,
    check_training,
    load_controller,
    quantum_parameters,
    train_guidance,
)

__all__ = [
    "ACTOR_KINDS",
    "QUANTUM_KINDS",
    "STATE_NAMES",
    "ActionError",
    "Actor",
    "ActorConfig",
    "AnnealingActor",
    "Controller",
    "Critic",
    "Finding",
    "GuidanceConfig",
    "GuidanceEnv",
    "GuidedEpisode",
    "LookupActor",
    "MLPActor",
    "PPOConfig",
    "QuantumActor",
    "Reward",
    "RewardConfig",
    "Rollout",
    "SingleGuidanceEnv",
    "Sweep",
    "SweepRow",
    "TensorStep",
    "TrainedController",
    "action_error",
    "build_actor",
    "calibrate",
    "calibrate_state",
    "check_training",
    "compile_policy",
    "diagnose",
    "draw_episode",
    "explored_states",
    "fit_network",
    "generalised_advantages",
    "load_actor",
    "load_controller",
    "matched_mlp",
    "quantum_parameters",
    "rewards",
    "rollout",
    "save_actor",
    "schedules",
    "sweep_constants",
    "tabulate",
    "train_guidance",
    "train_ppo",
    "visited_states",
]
