"""The oracle that tells the headroom, what keeps it apart from trainings and choices, and the greedy search."""

from __future__ import annotations

import pytest
import torch
from calibrations import few_calibration_images  # noqa: F401 - for every test here

from qhw_diffusion.diffusion import Backbone, Classifier, ImageDataset, load_dataset
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance import GuidanceConfig, PathwiseConfig, Reward, RewardConfig, draw_episode, rollout
from qhw_diffusion.guidance.headroom import oracle_reward, share_of_headroom, train_oracle
from qhw_diffusion.guidance.rewards import Distribution
from qhw_diffusion.guidance.search import greedy_search


@pytest.fixture(scope="module")
def heldout() -> ImageDataset:
    return load_dataset("digits", "heldout")


@pytest.mark.slow
def test_the_oracle_lowers_what_the_evaluation_measures(
    backbone: Backbone,
    config: GuidanceConfig,
    reward_classifier: Classifier,
    evaluation_classifier: Classifier,
    heldout: ImageDataset,
) -> None:
    reward = oracle_reward(backbone, config, reward_classifier, evaluation_classifier, heldout)
    ((_, term),) = reward.terms
    assert isinstance(term, Distribution)
    labels, noise = draw_episode(backbone, 200, torch.Generator().manual_seed(9))
    constant = term.distance(rollout(backbone, config, labels, noise, config.g0).images, labels)
    settings = PathwiseConfig(num_iterations=8, num_images=60, learning_rate_head=0.01, learning_rate_schedule=0.05)
    schedule = train_oracle("schedule", backbone, config, reward, settings)
    played = rollout(backbone, config, labels, noise, schedule.scales(labels))  # type: ignore[union-attr]
    assert term.distance(played.images, labels) < constant
    feedback = train_oracle("feedback", backbone, config, reward, settings)
    played = rollout(backbone, config, labels, noise, feedback, scorer=reward_classifier)  # type: ignore[arg-type]
    assert term.distance(played.images, labels) < constant
    assert not any(p.requires_grad for p in feedback.parameters())


def test_no_reward_takes_what_only_an_oracle_sees(
    reward_classifier: Classifier, evaluation_classifier: Classifier, real: ImageDataset, heldout: ImageDataset
) -> None:
    for scorer, images in ((evaluation_classifier, real), (reward_classifier, heldout)):
        with pytest.raises(InvalidInputError, match="must stay unseen"):
            Distribution(scorer, images)
        with pytest.raises(InvalidInputError, match="must stay unseen"):
            Reward.from_config(RewardConfig(), scorer, images)
        term = Distribution(scorer, images, oracle=True)
        with pytest.raises(InvalidInputError, match="does not take the term of an oracle"):
            Reward([(1.0, term)], reward_classifier)
        Reward([(1.0, term)], reward_classifier, oracle=True)


def test_shares_of_the_headroom() -> None:
    assert share_of_headroom(3.0, 3.0, 2.0) == 0
    assert share_of_headroom(2.0, 3.0, 2.0) == 1
    assert share_of_headroom(3.5, 3.0, 2.0) == -0.5
    assert torch.tensor(share_of_headroom(3.0, 2.0, 2.0)).isnan()


def test_the_search_takes_the_scale_that_the_scorer_likes_best(
    backbone: Backbone, config: GuidanceConfig, reward_classifier: Classifier
) -> None:
    """Each image by hand, step by step, with the images that each scale would lead to at once."""
    labels, noise = draw_episode(backbone, 6, torch.Generator().manual_seed(1))
    scales = (0.5, 1.5, 3.0)
    found = greedy_search(backbone, config, labels, noise, reward_classifier, scales, batch=4)
    assert found.g.shape == (config.n_steps, 6)
    assert found.scorer_evaluations == 3 * config.n_steps
    # the last step's estimate is the image: the scale chosen there must give the highest probability of all
    probabilities = []
    for g in scales:
        tried = found.g.clone()
        tried[-1] = g
        images = rollout(backbone, config, labels, noise, tried).images
        probabilities.append(reward_classifier.logits(images).log_softmax(1).gather(1, labels[:, None])[:, 0])
    best = torch.stack(probabilities).argmax(0)
    assert torch.equal(found.g[-1], torch.tensor(scales)[best])
    assert len(set(found.g.flatten().tolist())) > 1
    plain = rollout(backbone, config, labels, noise, config.g0, scorer=reward_classifier).images
    searched = rollout(backbone, config, labels, noise, found.g).images
    log_p = [
        reward_classifier.logits(x).log_softmax(1).gather(1, labels[:, None]).mean().item() for x in (plain, searched)
    ]
    assert log_p[1] > log_p[0]
    one = greedy_search(backbone, config, labels, noise, reward_classifier, (1.5,))
    assert torch.equal(rollout(backbone, config, labels, noise, one.g).images, plain)
    with pytest.raises(InvalidInputError, match="at least one scale"):
        greedy_search(backbone, config, labels, noise, reward_classifier, ())
