"""Policies of the classifier-free guidance scale: state, rewards, environment, PPO, schedules, evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qhw_diffusion.guidance import rewards, schedules
from qhw_diffusion.guidance.config import (
    POLICY_KINDS,
    QUANTUM_KINDS,
    GuidanceConfig,
    PathwiseConfig,
    PolicyConfig,
    PPOConfig,
    RewardConfig,
)
from qhw_diffusion.guidance.diagnostics import Finding, diagnose
from qhw_diffusion.guidance.distill import (
    ActionError,
    LookupPolicy,
    action_error,
    explored_states,
    fit_network,
    tabulate,
    visited_states,
)
from qhw_diffusion.guidance.environment import GuidanceEnv, SingleGuidanceEnv
from qhw_diffusion.guidance.episode import STATE_NAMES, GuidedEpisode, calibrate_state, draw_episode
from qhw_diffusion.guidance.pathwise import FreeSchedule, train_pathwise
from qhw_diffusion.guidance.policies import (
    AnnealingPolicy,
    Critic,
    MLPPolicy,
    Policy,
    QuantumPolicy,
    compile_policy,
    matched_mlp,
)
from qhw_diffusion.guidance.ppo import generalised_advantages, train_ppo
from qhw_diffusion.guidance.rewards import REWARD_TERMS, Reward, RewardTerm, StepView
from qhw_diffusion.guidance.rollout import PolicyOrSchedule, Rollout, mean_return, rollout
from qhw_diffusion.guidance.sampling import Samples, sample
from qhw_diffusion.guidance.saving import load_policy_model, save_policy_model
from qhw_diffusion.guidance.scorers import Scorer, scorer_of
from qhw_diffusion.guidance.sweep import Sweep, SweepRow, sweep_constants
from qhw_diffusion.guidance.tensor_env import TensorStep
from qhw_diffusion.guidance.training import (
    TrainedPolicy,
    build_policy,
    calibrate,
    check_training,
    load_policy,
    quantum_parameters,
    train_guidance,
)

if TYPE_CHECKING:
    from qhw_diffusion.guidance.diffusers_guider import (
        PolicyCallback,
        PolicyGuidance,
        policy_callback,
        scorer_confidence,
    )

__all__ = [
    "POLICY_KINDS",
    "QUANTUM_KINDS",
    "REWARD_TERMS",
    "STATE_NAMES",
    "ActionError",
    "AnnealingPolicy",
    "Critic",
    "Finding",
    "FreeSchedule",
    "GuidanceConfig",
    "GuidanceEnv",
    "GuidedEpisode",
    "LookupPolicy",
    "MLPPolicy",
    "PPOConfig",
    "PathwiseConfig",
    "Policy",
    "PolicyCallback",
    "PolicyConfig",
    "PolicyGuidance",
    "PolicyOrSchedule",
    "QuantumPolicy",
    "Reward",
    "RewardConfig",
    "RewardTerm",
    "Rollout",
    "Samples",
    "Scorer",
    "SingleGuidanceEnv",
    "StepView",
    "Sweep",
    "SweepRow",
    "TensorStep",
    "TrainedPolicy",
    "action_error",
    "build_policy",
    "calibrate",
    "calibrate_state",
    "check_training",
    "compile_policy",
    "diagnose",
    "draw_episode",
    "explored_states",
    "fit_network",
    "generalised_advantages",
    "load_policy",
    "load_policy_model",
    "matched_mlp",
    "mean_return",
    "policy_callback",
    "quantum_parameters",
    "rewards",
    "rollout",
    "sample",
    "save_policy_model",
    "schedules",
    "scorer_confidence",
    "scorer_of",
    "sweep_constants",
    "tabulate",
    "train_guidance",
    "train_pathwise",
    "train_ppo",
    "visited_states",
]

_OF_DIFFUSERS = ("PolicyCallback", "PolicyGuidance", "policy_callback", "scorer_confidence")


def __getattr__(name: str) -> Any:
    if name not in _OF_DIFFUSERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qhw_diffusion.guidance import diffusers_guider  # when used: diffusers' guiders take seconds to import

    return getattr(diffusers_guider, name)
