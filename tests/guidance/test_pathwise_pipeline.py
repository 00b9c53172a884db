"""Pathwise training through a Stable Diffusion pipeline: gradients against finite differences, under device noise."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import ImageDataset, PipelineDenoiser
from qhw_diffusion.guidance import (
    FreeSchedule,
    GuidanceConfig,
    Policy,
    PolicyConfig,
    Reward,
    build_policy,
    draw_episode,
)
from qhw_diffusion.guidance.episode import calibrate_state
from qhw_diffusion.guidance.pathwise import play
from qhw_diffusion.guidance.rewards import ActionPenalty, Confidence, Distribution, StepwiseImprovement
from tests.pipelines import IMAGE_SIZE, scheduler, stable_diffusion

PROMPTS = ("a cat, grey", "two dogs")
SHAPE = (3, IMAGE_SIZE, IMAGE_SIZE)


class Smooth(nn.Module):
    """A scorer whose features and logits are smooth functions of all pixels."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.w = nn.Parameter(0.2 * torch.randn(3 * IMAGE_SIZE**2, 6, generator=generator))
        self.v = nn.Parameter(torch.randn(6, len(PROMPTS), generator=generator))
        self.image_shape, self.n_classes = SHAPE, len(PROMPTS)

    def features(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.w).tanh()

    def logits(self, images: Tensor) -> Tensor:
        return self.features(images) @ self.v


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[PipelineDenoiser, Reward, GuidanceConfig]:
    """A tiny pipeline, its scorer and a reward of every kind of term, in double precision."""
    pipeline = stable_diffusion(tmp_path_factory.mktemp("tokenizer"))
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        network.double().requires_grad_(False)
    denoiser = PipelineDenoiser(pipeline, PROMPTS, batch=3)  # 4 images go through in two parts
    scorer = Smooth().double().requires_grad_(False)
    images = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    real = ImageDataset(images, torch.arange(20) % 2, "random", "train", 2)
    terms = [
        (1.0, Distribution(scorer, real)),
        (0.2, Confidence()),
        (0.1, StepwiseImprovement()),
        (0.05, ActionPenalty()),
    ]
    config = GuidanceConfig(n_steps=3, spacing="scheduler", g0=3.0, g_min=0.0, g_max=6.0, extra_state=True)
    return denoiser, Reward(terms, scorer), calibrate_state(config, denoiser, scorer, batch=8)


# DPM-Solver++ computes its steps in single precision, whatever it is given: wider differences, a wider tolerance
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "steering", "h", "tolerance", "base"),
    [
        ("ddim", "circuit", 1e-5, 1e-5, ()),
        ("ddim", "circuit", 1e-5, 1e-5, (2.0, 4.5, 3.0)),
        ("ddim", "schedule", 1e-5, 1e-5, ()),
        ("dpm", "schedule", 0.02, 2e-2, ()),
    ],
)
def test_the_gradient_through_a_pipeline_is_that_of_finite_differences(
    parts: tuple[PipelineDenoiser, Reward, GuidanceConfig],
    kind: str,
    steering: str,
    h: float,
    tolerance: float,
    base: tuple[float, ...],
) -> None:
    denoiser, reward, config = parts
    config = config.replace(base_schedule=base)
    denoiser = copy.copy(denoiser)
    denoiser.pipeline = copy.copy(denoiser.pipeline)
    denoiser.pipeline.register_modules(scheduler=scheduler(kind))
    labels, noise = draw_episode(denoiser, 4, torch.Generator().manual_seed(5))
    assert noise.dtype == torch.float64
    player: Policy | FreeSchedule
    if steering == "circuit":
        player = build_policy(PolicyConfig(), n_features=7, seed=3, device=Device.load("fake_marrakesh")).double()
    else:
        player = FreeSchedule(3, config.g0, len(PROMPTS)).double()
    parameters = player.parameter_groups()[steering]
    returns = play(denoiser, config, reward, player, labels, noise).returns.mean()
    gradient = torch.autograd.grad(returns, parameters)
    again = play(denoiser, config, reward, player, labels, noise, gradient_checkpointing=True).returns.mean()
    for once, recomputed in zip(gradient, torch.autograd.grad(again, parameters), strict=True):
        assert torch.allclose(once, recomputed, rtol=1e-9, atol=1e-12)
    generator = torch.Generator().manual_seed(1)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    wanted = float(sum((g * d).sum() for g, d in zip(gradient, along, strict=True)))
    assert abs(wanted) > 1e-4
    values = []
    with torch.no_grad():
        for sign in (1.0, -1.0):
            for parameter, direction in zip(parameters, along, strict=True):
                parameter.add_(direction, alpha=sign * h)
            values.append(float(play(denoiser, config, reward, player, labels, noise).returns.mean()))
            for parameter, direction in zip(parameters, along, strict=True):
                parameter.sub_(direction, alpha=sign * h)
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(wanted, rel=tolerance)
