"""The three ways of steering a pipeline agree: the callback is our loop from the second step on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch

from qhw_diffusion.diffusion import PipelineDenoiser
from qhw_diffusion.guidance import (
    GuidanceConfig,
    GuidedEpisode,
    MLPPolicy,
    PolicyConfig,
    PPOConfig,
    RewardConfig,
    TrainedPolicy,
    policy_callback,
    sample,
    scorer_confidence,
)

STEPS = 4
CONFIG = GuidanceConfig(
    n_steps=STEPS,
    spacing="trailing",
    g0=3.0,
    g_max=8.0,
    action_limit=4.0,
    state_centre=(0.6, 1.0, 1.0, 0.0, 0.0, 0.5),
    state_width=(0.4, 0.2, 0.4, 0.5, 0.5, 0.1),
)


class Red:
    """How red an image is."""

    def probability(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return images[:, 0].mean((1, 2)).sigmoid()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "prediction_type", "base"),
    [
        ("ddim", "epsilon", ()),
        ("ddim", "epsilon", (4.0, 2.5, 6.0, 3.0)),
        ("euler", "epsilon", ()),
        ("dpm", "v_prediction", ()),
        ("pndm", "v_prediction", ()),
        ("ddim", "sample", ()),
    ],
)
def test_the_callback_is_our_loop_from_the_second_step_on(
    tmp_path: Path, kind: str, prediction_type: str, base: tuple[float, ...]
) -> None:
    config = CONFIG.replace(base_schedule=base)
    first = base[0] if base else CONFIG.g0
    pipeline: Any = pipelines.stable_diffusion(tmp_path, kind, prediction_type=prediction_type)
    policy = MLPPolicy((16, 8), gain=2.0, seed=4).eval()
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    looked = scorer_confidence(pipeline, Red(), [0])
    with policy_callback(pipeline, policy, guidance=config, confidence=looked) as callback:
        latents = pipeline(
            "a red seven",
            latents=noise,
            num_inference_steps=STEPS,
            guidance_scale=callback.guidance_scale,
            callback_on_step_end=callback,
            output_type="latent",
        ).images
    episode = GuidedEpisode(PipelineDenoiser(pipeline, ["a red seven"]), config, Red())
    with torch.no_grad():
        episode.begin(torch.zeros(1, dtype=torch.int64), noise)
        episode.advance(torch.tensor([first]), torch.zeros(1))
        scales = [first]
        while not episode.done:
            action, g = episode.guidance(policy(episode.state())[0][:, 0])
            assert float(g) > 1.0
            scales.append(float(g))
            episode.advance(g, action)
    assert callback.g[:, 0].tolist() == pytest.approx(scales, rel=1e-4, abs=1e-4)
    torch.testing.assert_close(latents, episode.x, rtol=1e-3, atol=1e-3)
    assert torch.tensor(scales[1:]).std() > 0.02


def test_without_the_confidence_entry_our_loop_needs_no_scorer(tmp_path: Path) -> None:
    """For prompts that no scorer knows; the policy comes from its folder."""
    pipeline: Any = pipelines.stable_diffusion(tmp_path / "tokenizer")
    config = CONFIG.replace(confidence_entry=False)
    policy = MLPPolicy((16, 8), gain=2.0, seed=4).eval()
    trained = TrainedPolicy(policy, config, RewardConfig(), PPOConfig(), PolicyConfig(kind="mlp"), [], ())
    folder = trained.save_pretrained(tmp_path / "policy")
    played = sample(pipeline, folder, ["never seen", "nor this"], seed=3)
    assert played.confidence is None
    assert torch.equal(sample(pipeline, trained, ["never seen", "nor this"], seed=3).images, played.images)
    held = TrainedPolicy(
        policy, CONFIG, *[getattr(trained, name) for name in ("reward", "ppo")], trained.policy_config, [], ()
    )
    seen = sample(pipeline, held, ["never seen", "nor this"], seed=3, scorer=OfPrompts())
    assert not torch.allclose(seen.g, played.g, atol=1e-3)
    assert float(played.g.std()) > 0.05


class OfPrompts(Red):
    def for_prompts(self, prompts: Any) -> Red:
        return Red()
