"""Reward terms and scorers of a user's own: in the log and every reported return, refused by name when wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qhw_diffusion.diffusion import Backbone, Classifier, ImageDataset
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.guidance import (
    GuidanceConfig,
    GuidanceEnv,
    MLPPolicy,
    PolicyConfig,
    PPOConfig,
    Reward,
    RewardConfig,
    StepView,
    check_training,
    draw_episode,
    load_policy,
    mean_return,
    rollout,
    scorer_of,
    train_guidance,
)
from qhw_diffusion.guidance.rewards import ActionPenalty, Confidence, StepwiseImprovement
from qhw_diffusion.guidance.scorers import score

GUIDANCE = GuidanceConfig(n_steps=4, g0=1.5, g_max=3.5, noise_pool=20)
PPO = PPOConfig(num_iterations=2, num_envs=20, num_minibatches=2, update_epochs=1, checkpoint_every=1)
POLICY = PolicyConfig(kind="mlp")
OWN = """
def brightness(step):
    return step.x0.flatten(1).mean(1)

class Late:
    name, per_step = "late", True
    def __call__(self, step):
        return step.score.probability - step.action.abs()

class Halves:
    def probability(self, images, labels):
        return 0.5 + 0.5 * images.flatten(1).mean(1).tanh()
"""


def brightness(step: StepView) -> Tensor:
    return step.x0.flatten(1).mean(1)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_a_named_term_is_logged_saved_and_resumed(own: Path, tmp_path: Path) -> None:
    reward = RewardConfig(distribution=0.0, action_penalty=0.0, extra=(f"2*{own}:brightness", f"0.5*{own}:Late"))
    run = tmp_path / "run"
    trained = train_guidance(GUIDANCE, PPO, reward, POLICY, path=run)
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["reward/brightness"] + row["reward/late"] == pytest.approx(row["charts/episodic_return"], abs=1e-5)
    assert row["reward/late"] != 0
    assert json.loads((run / "config.json").read_text())["reward"]["extra"] == list(reward.extra)
    assert load_policy(run).reward.extra_terms() == [(2.0, f"{own}:brightness"), (0.5, f"{own}:Late")]
    again = train_guidance(GUIDANCE, PPO, reward, POLICY, path=run, resume=True)
    assert [r["reward/late"] for r in again.history] == [r["reward/late"] for r in trained.history]


class Brightness:
    name, per_step = "brightness", False

    def __call__(self, step: StepView) -> Tensor:
        return step.x0.flatten(1).mean(1)


def test_a_function_is_found_again_by_its_name(reward_classifier: Classifier, real: ImageDataset) -> None:
    trained = train_guidance(GUIDANCE, PPO, RewardConfig(distribution=0.0), POLICY, terms=[(2, brightness)])
    assert trained.reward.extra == (f"2.0*{__name__}:brightness",)
    found = Reward.from_config(trained.reward, reward_classifier, real)
    assert [(weight, term.name) for weight, term in found.terms] == [(0.005, "action_penalty"), (2.0, "brightness")]


def test_an_object_must_be_given_again(reward_classifier: Classifier, real: ImageDataset, tmp_path: Path) -> None:
    brightness = Brightness()
    run, settings = tmp_path / "run", (GUIDANCE, PPO, RewardConfig(distribution=0.0), POLICY)
    trained = train_guidance(*settings, path=run, terms=[(2, brightness)])
    assert trained.reward.extra == ("2.0*object:brightness",)
    saved = load_policy(run).reward
    with pytest.raises(InvalidInputError, match="'brightness' was passed as an object"):
        Reward.from_config(saved, reward_classifier, real)
    found = Reward.from_config(saved, reward_classifier, real, objects=[brightness])
    assert [(weight, term.name) for weight, term in found.terms] == [(0.005, "action_penalty"), (2.0, "brightness")]
    with pytest.raises(InvalidInputError, match="extra"):
        train_guidance(*settings, path=run, resume=True, terms=[(1, brightness)])
    again = train_guidance(*settings, path=run, resume=True, terms=[(2, brightness)])
    assert len(again.history) == 2


@torch.no_grad()
def test_the_reported_return_is_the_return_of_the_episodes(
    backbone: Backbone, reward_classifier: Classifier, config: GuidanceConfig
) -> None:
    """Per-step terms add up over the steps, terms of the final images count once, own terms are not left out."""

    def late(step: StepView) -> Tensor:
        return 0.1 * step.score.probability + step.x0_previous.flatten(1).mean(1)

    late.per_step = True  # type: ignore[attr-defined]
    terms = [(1.0, Confidence()), (0.2, StepwiseImprovement()), (0.5, ActionPenalty()), (2.0, brightness), (3.0, late)]
    reward = Reward(terms, reward_classifier)
    labels, noise = draw_episode(backbone, 12, torch.Generator().manual_seed(3))
    policy = MLPPolicy(gain=1.0)
    played = rollout(backbone, config, labels, noise, policy, scorer=reward_classifier, reward=reward, batch=5)
    shares = mean_return(reward, played)
    env = GuidanceEnv(backbone, reward, config.replace(noise_pool=0), num_envs=12)
    env.reset_tensor()
    env.episode.begin(labels, noise)
    total: dict[str, Tensor] = {}
    for _ in range(config.n_steps):
        step = env.step_tensor(policy(env.episode.state())[0])
        total = {name: total.get(name, torch.zeros(12)) + value for name, value in step.terms.items()}
    assert set(shares) == set(total) == {"confidence", "stepwise", "action_penalty", "brightness", "late"}
    for name, value in total.items():
        assert shares[name] == pytest.approx(float(value.mean()), rel=1e-4, abs=1e-6), name
    assert abs(shares["late"]) > 0.01
    # a schedule is measured with the same reward; without a reward nothing is made up
    constant = rollout(backbone, config, labels, noise, 1.5, reward=reward)
    assert mean_return(reward, constant)["action_penalty"] == pytest.approx(0.0)
    with pytest.raises(InvalidInputError, match="recorded no reward"):
        mean_return(reward, rollout(backbone, config, labels, noise, 1.5))


def wrong_shape(step: StepView) -> Tensor:
    return step.x0.mean()


def not_finite(step: StepView) -> Tensor:
    return step.action * float("nan")


def whole(step: StepView) -> Tensor:
    return step.labels


def raises(step: StepView) -> Tensor:
    return step.colour  # type: ignore[attr-defined,no-any-return]


def number(step: StepView) -> float:
    return 1.0


class Silent:
    name = "silent"

    def __call__(self, step: StepView) -> Tensor:
        return step.action


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (wrong_shape, r"'wrong_shape' returned torch.float32 \[\]; wanted: a tensor of finite floats \[20\]"),
        (not_finite, "'not_finite' returned NaN"),
        (whole, "'whole' returned torch.int64"),
        (raises, "'raises' raises AttributeError.*colour"),
        (number, "'number' returned float"),
        (Silent(), "'silent' does not say when it acts: per_step"),
        (3.0, "a float is no reward term"),
    ],
)
def test_a_wrong_term_is_refused_before_training(
    backbone: Backbone, reward_classifier: Classifier, real: ImageDataset, term: Any, words: str, tmp_path: Path
) -> None:
    parts = {"backbone": backbone, "scorer": reward_classifier, "real": real, "terms": [(1.0, term)]}
    with pytest.raises(InvalidInputError, match=words):
        check_training(GUIDANCE, PPO, RewardConfig(), POLICY, **parts)
    with pytest.raises(InvalidInputError, match=words):
        train_guidance(GUIDANCE, PPO, RewardConfig(), POLICY, path=tmp_path / "run", **parts)
    assert not (tmp_path / "run").exists()


def test_names_of_terms(own: Path, reward_classifier: Classifier, real: ImageDataset) -> None:
    def confidence(step: StepView) -> Tensor:
        return step.action

    with pytest.raises(InvalidInputError, match="name of a built-in one"):
        Reward([(1.0, confidence)], reward_classifier)
    with pytest.raises(InvalidInputError, match=r"reward term .*:glow.*brightness"):
        Reward.from_config(RewardConfig(extra=(f"{own}:glow",)), reward_classifier, real)
    with pytest.raises(InvalidInputError, match=r"variation is built in, its weight is --reward-total-variation$"):
        RewardConfig(extra=("0.5*total_variation",))
    with pytest.raises(InvalidInputError, match=r"got '0\.5\*glow'$"):
        RewardConfig(extra=("0.5*glow",))
    with pytest.raises(InvalidInputError, match="at least one term besides the action penalty"):
        Reward.from_config(RewardConfig(distribution=0.0), reward_classifier, real)
    with pytest.raises(InvalidInputError, match="does not name the term brightness"):
        Reward.from_config(RewardConfig(), reward_classifier, real, objects=[brightness])


class Halves:
    """As many halves as there are images, moved a little by the pixels."""

    name = "halves"

    def probability(self, images: Tensor, labels: Tensor) -> Tensor:
        return 0.5 + 0.5 * images.flatten(1).mean(1).tanh()


@pytest.mark.slow
def test_an_own_scorer_is_what_state_and_reward_look_through(
    own: Path, backbone: Backbone, real: ImageDataset, tmp_path: Path
) -> None:
    reward, run = RewardConfig(confidence=1.0, stepwise=0.2, distribution=0.0), tmp_path / "run"
    by_name = train_guidance(GUIDANCE.replace(scorer=f"{own}:Halves"), PPO, reward, POLICY, path=run)
    by_object = train_guidance(GUIDANCE, PPO, reward, POLICY, scorer=Halves())
    assert [r["charts/episodic_return"] for r in by_name.history] == [
        r["charts/episodic_return"] for r in by_object.history
    ]
    assert by_object.config.scorer == "object:halves"
    assert load_policy(run).config.scorer == f"{own}:Halves"
    with pytest.raises(InvalidInputError, match="'halves' was passed as an object"):
        scorer_of("object:halves", "digits")
    # resuming recomputes what the scorer says of the running episodes
    train_guidance(GUIDANCE.replace(scorer=f"{own}:Halves"), PPO, reward, POLICY, path=run, resume=True)
    with pytest.raises(InvalidInputError, match="has no features"):
        check_training(GUIDANCE, PPO, RewardConfig(), POLICY, backbone=backbone, scorer=Halves(), real=real)


def test_softened_confidence_of_a_probability_is_that_of_two_logits() -> None:
    logits, images, labels = torch.tensor([[2.0, -1.0], [0.3, 0.1]]), torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])

    class Two:
        def logits(self, x: Tensor) -> Tensor:
            return logits

    probability = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    expected, found = score(Two(), images, labels, 4.0), score(scorer_of("", "", given=lambda x, y: probability),
                                                               images, labels, 4.0)  # fmt: skip
    for name in ("probability", "log_probability", "confidence"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda images, labels: images.mean(), r"probability returned torch.float32 \[\], wanted: a tensor of \[8\]"),
        (lambda images, labels: 3.0 + images.flatten(1).mean(1), "within"),
        (lambda images, labels: images.flatten(1).mean(1) * float("nan"), "NaN"),
        (lambda images, labels: images.colour, "raises AttributeError"),
        (lambda images: images, "raises TypeError"),
    ],
)
def test_a_wrong_scorer_is_refused_before_training(
    backbone: Backbone, real: ImageDataset, function: Any, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"scorer '<lambda>'.*{words}"):
        check_training(
            GUIDANCE, PPO, RewardConfig(distribution=0.0, confidence=1.0), POLICY, backbone=backbone, scorer=function,
            real=real,
        )  # fmt: skip


def test_names_of_scorers() -> None:
    with pytest.raises(UnknownNameError, match="module:name"):
        GuidanceConfig(scorer="clasifier")
    with pytest.raises(InvalidInputError, match="no scorer"):
        scorer_of("", "", given=3)
    with pytest.raises(InvalidInputError, match="there is no module"):
        scorer_of("no_such_module_here:Scorer", "digits")
