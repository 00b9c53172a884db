from __future__ import annotations

import pytest
import torch

from qhw_diffusion import diffusion, guidance
from qhw_diffusion.diffusion import Backbone, Classifier
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance import GuidanceConfig, MLPPolicy, QuantumPolicy, rollout, schedules


@pytest.fixture(scope="module")
def start(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    return guidance.draw_episode(backbone, 12, torch.Generator().manual_seed(0))


def test_a_schedule_is_what_the_sampler_does(
    backbone: Backbone, config: GuidanceConfig, start: tuple[torch.Tensor, torch.Tensor]
) -> None:
    g = schedules.linear_up(1.5, 4)
    out = rollout(backbone, config, *start, g)
    expected = diffusion.GuidedDDIM(backbone, n_steps=4).sample(start[0], g, start[1])
    torch.testing.assert_close(out.images, expected, atol=1e-5, rtol=0)
    assert torch.equal(out.g, g[:, None].expand(4, 12))
    torch.testing.assert_close(out.actions, out.g - config.g0)
    assert out.circuits == 0
    assert out.confidence is None


def test_an_actor_acts_on_what_it_sees(
    backbone: Backbone,
    reward_classifier: Classifier,
    config: GuidanceConfig,
    quantum: QuantumPolicy,
    start: tuple[torch.Tensor, torch.Tensor],
) -> None:
    out = rollout(backbone, config, *start, quantum, scorer=reward_classifier)
    assert out.states.shape == (4, 12, 6)
    with torch.no_grad():
        for t in range(4):
            mean = quantum(out.states[t])[0][:, 0]
            torch.testing.assert_close(out.actions[t], mean.clamp(-2, 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.g, (config.g0 + out.actions).clamp(config.g_min, config.g_max))
    # replayed as a schedule, the same images: the policy steers through g and nothing else
    replay = rollout(backbone, config, *start, out.g)
    torch.testing.assert_close(replay.images, out.images, atol=1e-5, rtol=0)
    assert out.circuits == 4 * 12
    assert out.confidence is not None
    expected = reward_classifier.logits(out.images).softmax(1)[torch.arange(12), start[0]]
    torch.testing.assert_close(out.confidence, expected)


def test_batches_do_not_matter_and_seeds_do(
    backbone: Backbone, reward_classifier: Classifier, config: GuidanceConfig, start: tuple[torch.Tensor, torch.Tensor]
) -> None:
    policy = MLPPolicy(gain=1.0)
    whole, parts = (rollout(backbone, config, *start, policy, scorer=reward_classifier, batch=b) for b in (512, 5))
    torch.testing.assert_close(whole.images, parts.images, atol=1e-4, rtol=0)

    def stochastic(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return rollout(backbone, config, *start, policy, scorer=reward_classifier, generator=generator).images

    assert torch.equal(stochastic(1), stochastic(1))
    assert not torch.equal(stochastic(1), stochastic(2))
    assert torch.equal(whole.images, rollout(backbone, config, *start, policy, scorer=reward_classifier).images)


def test_bad_input(
    backbone: Backbone, reward_classifier: Classifier, config: GuidanceConfig, start: tuple[torch.Tensor, torch.Tensor]
) -> None:
    labels, noise = start
    with pytest.raises(InvalidInputError, match="scorer"):
        rollout(backbone, config, labels, noise, MLPPolicy())
    with pytest.raises(InvalidInputError, match="calibrated"):
        rollout(backbone, GuidanceConfig(), labels, noise, MLPPolicy(), scorer=reward_classifier)
    with pytest.raises(InvalidInputError, match="n_steps = 4"):
        rollout(backbone, config, labels, noise, torch.ones(5))
    with pytest.raises(InvalidInputError, match="labels for 3 images"):
        rollout(backbone, config, labels, noise[:3], 1.0)
    with pytest.raises(InvalidInputError, match=f"{len(labels) - 1} labels for {len(noise)} images"):
        rollout(backbone, config, labels[:-1], noise, 1.0, batch=2)  # not the rest of the noise left over
    with pytest.raises(InvalidInputError, match="noise"):
        rollout(backbone, config, labels, noise[..., :4], 1.0)
    with pytest.raises(InvalidInputError, match="labels"):
        rollout(backbone, config, labels + 5, noise, 1.0)
    with pytest.raises(InvalidInputError, match="NaN"):
        rollout(backbone, config, labels, noise * float("nan"), 1.0)
