"""Headroom: how much better than the best constant anybody could do, told by an oracle.

The oracle trains on what the evaluation measures: the class-conditional energy distance to the *held-out* images in the
*evaluation* classifier's features. A free schedule and a policy trained so are no competitors. They say what there is
to win, with the same sampler and the same number of network evaluations: the best constant → the best free schedule →
the best state feedback. Policies are told as their share of it.

Nothing that trains or chooses may see an oracle: `Reward` refuses its term unless it is asked for one by name, and
nothing but this module asks.
"""

from __future__ import annotations

from qhw_diffusion.diffusion import Classifier, Denoiser, ImageDataset
from qhw_diffusion.guidance.config import GuidanceConfig, PathwiseConfig
from qhw_diffusion.guidance.pathwise import FreeSchedule, train_pathwise
from qhw_diffusion.guidance.policies import MLPPolicy
from qhw_diffusion.guidance.rewards import Distribution, Reward
from qhw_diffusion.guidance.scorers import Scorer
from qhw_diffusion.guidance.training import measured_scale

ORACLES = ("schedule", "feedback")


def oracle_reward(
    denoiser: Denoiser,
    guidance: GuidanceConfig,
    scorer: Scorer,
    evaluation_classifier: Classifier,
    heldout: ImageDataset,
) -> Reward:
    """The oracle's objective, which no other training takes.

    Args:
        denoiser: makes the images.
        guidance: calibrated configuration.
        scorer: what the state looks through, as for every policy.
        evaluation_classifier: whose features are compared.
        heldout: the images compared with.
    """
    device = denoiser.alphas_cumprod.device
    term = Distribution(evaluation_classifier, heldout, device=device, oracle=True)
    return Reward([(1.0, measured_scale(term, denoiser, guidance))], scorer, oracle=True)


def train_oracle(
    what: str,
    denoiser: Denoiser,
    guidance: GuidanceConfig,
    reward: Reward,
    config: PathwiseConfig,
    *,
    embedding: int = 0,
) -> FreeSchedule | MLPPolicy:
    """The oracle's free schedule ("schedule") or its policy ("feedback": an MLP that sees the state), trained pathwise.

    Args:
        what: one of `ORACLES`.
        denoiser: makes the images.
        guidance: calibrated configuration.
        reward: from `oracle_reward`.
        config: the training.
        embedding: learned entries of the policy, where the state carries pooled features.
    """
    policy: FreeSchedule | MLPPolicy
    if what == "schedule":
        policy = FreeSchedule(guidance.n_steps, guidance.base_scales(guidance.n_steps))
    else:
        n_state, n_pooled = guidance.n_state, guidance.n_pooled
        policy = MLPPolicy(n_features=n_state, n_pooled=n_pooled, embedding=embedding, gain=1.0, seed=config.seed)
    train_pathwise(denoiser, reward, guidance, policy, config)
    return policy.requires_grad_(False)


def share_of_headroom(value: float, constant: float, best: float) -> float:
    """The share of the headroom that a policy gets: 0 at the best constant, 1 at the oracle; NaN without headroom.

    Args:
        value: the policy's distance.
        constant: that of the best constant.
        best: that of the oracle.
    """
    return (constant - value) / (constant - best) if constant > best else float("nan")
