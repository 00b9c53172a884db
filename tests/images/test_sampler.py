from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from qhw_diffusion import images
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.images import Backbone, GuidedDDIM, guided


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.load("digits")


def noise_and_labels(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    noise = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return noise, torch.arange(n) % 10


def diffusers_scheduler(backbone: Backbone, n_steps: int, **changes: object) -> DDIMScheduler:
    settings = {"beta_schedule": backbone.config.beta_schedule, **changes}
    scheduler = DDIMScheduler(backbone.config.n_train_timesteps, **settings)
    scheduler.set_timesteps(n_steps)
    return scheduler


@pytest.mark.parametrize("n_steps", [1, 7, 10, 50])
@pytest.mark.parametrize("clip", [True, False])
def test_every_step_agrees_with_diffusers(backbone: Backbone, n_steps: int, clip: bool) -> None:
    sampler = GuidedDDIM(backbone, n_steps, clip=clip)
    scheduler = diffusers_scheduler(backbone, n_steps, clip_sample=clip)
    assert sampler.timesteps == scheduler.timesteps.tolist()
    assert sampler.init_noise_sigma == scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(1)
    for i, t in enumerate(sampler.timesteps):
        x, eps = torch.randn(2, 5, 1, 8, 8, generator=generator)
        x_prev, x0_hat = sampler.step(x, i, eps)
        wanted = scheduler.step(eps, t, x, eta=0.0, use_clipped_model_output=clip)
        torch.testing.assert_close(x_prev, wanted.prev_sample, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(x0_hat, wanted.pred_original_sample, rtol=2e-5, atol=2e-5)


def test_a_whole_trajectory_agrees_with_diffusers(backbone: Backbone) -> None:
    noise, labels = noise_and_labels(20)
    scheduler = diffusers_scheduler(backbone, 10, prediction_type="v_prediction")
    x, null = noise, torch.full_like(labels, backbone.null_label)
    with torch.no_grad():
        for t in scheduler.timesteps:
            # guidance is linear, so guiding v is guiding ε: diffusers never sees our conversion
            v_cond, v_null = backbone(x, t, labels), backbone(x, t, null)
            v = v_null + 2.0 * (v_cond - v_null)
            x = scheduler.step(v, t, x, eta=0.0, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(GuidedDDIM(backbone, 10).sample(labels, 2.0, noise), x, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_guidance_survives_fifty_steps_where_the_defaults_of_diffusers_fail(backbone: Backbone) -> None:
    judge = images.Classifier.load("digits", "judge")
    noise, labels = noise_and_labels(200)
    ours = GuidedDDIM(backbone, 50).sample(labels, 3.0, noise)
    assert images.accuracy(judge, ours, labels) > 0.95
    scheduler = diffusers_scheduler(backbone, 50)  # clip_sample=True, use_clipped_model_output=False
    x = noise
    for t in scheduler.timesteps:
        eps = guided(*backbone.predict(x, int(t), labels), 3.0)
        x = scheduler.step(eps, t, x).prev_sample
    assert images.accuracy(judge, x, labels) < 0.6


def test_all_forms_of_guidance_agree(backbone: Backbone) -> None:
    noise, labels = noise_and_labels(6)
    sampler = GuidedDDIM(backbone, 4)
    reference = sampler.sample(labels, 1.7, noise)
    seen: list[int] = []

    def controller(i: int, x: Tensor, eps_cond: Tensor, eps_null: Tensor) -> Tensor:
        assert x.shape == eps_cond.shape == eps_null.shape
        seen.append(i)
        return torch.full((len(x),), 1.7)

    for g in (torch.tensor(1.7), torch.full((4,), 1.7), torch.full((4, 6), 1.7), controller):
        torch.testing.assert_close(sampler.sample(labels, g, noise), reference)
    assert seen == [0, 1, 2, 3]
    # a schedule acts per step and per image: only image 2 and only what follows step 3 may differ
    schedule = torch.full((4, 6), 1.7)
    schedule[2, 2] = 4.0
    other = sampler.sample(labels, schedule, noise)
    changed = (other - reference).abs().flatten(1).amax(1) > 1e-4
    assert changed.tolist() == [False, False, True, False, False, False]


def test_one_is_conditional_and_zero_unconditional(backbone: Backbone) -> None:
    noise, labels = noise_and_labels(4)
    sampler = GuidedDDIM(backbone, 3)
    for g, own in ((1.0, labels), (0.0, torch.full_like(labels, backbone.null_label))):
        x = noise
        for i, t in enumerate(sampler.timesteps):
            x, _ = sampler.step(x, i, backbone.predict(x, t, own)[0])
        torch.testing.assert_close(sampler.sample(labels, g, noise), x, rtol=1e-4, atol=1e-4)


def test_same_noise_same_images_and_other_noise_other_images(backbone: Backbone) -> None:
    sampler = GuidedDDIM(backbone, 5)
    noise, labels = noise_and_labels(3)
    assert torch.equal(sampler.sample(labels, 1.2, noise), sampler.sample(labels, 1.2, noise))
    assert not torch.allclose(
        sampler.sample(labels, 1.2, noise_and_labels(3, 1)[0]), sampler.sample(labels, 1.2, noise)
    )


def test_bad_input(backbone: Backbone) -> None:
    noise, labels = noise_and_labels(3)
    for n_steps in (0, 1001):
        with pytest.raises(InvalidInputError, match="n_steps"):
            GuidedDDIM(backbone, n_steps)
    sampler = GuidedDDIM(backbone, 5)
    for g in (torch.ones(4), torch.ones(5, 2), torch.ones(1, 5, 3)):
        with pytest.raises(InvalidInputError, match="guidance scale of shape"):
            sampler.sample(labels, g, noise)
    for g in (float("nan"), torch.full((5,), float("inf"))):
        with pytest.raises(InvalidInputError, match="finite"):
            sampler.sample(labels, g, noise)
    with pytest.raises(InvalidInputError, match=r"need \[3\]"):
        sampler.sample(labels, lambda i, x, c, n: torch.ones(2), noise)
    with pytest.raises(InvalidInputError, match="outside"):
        sampler.step(noise, 5, noise)
    with pytest.raises(InvalidInputError, match="differ in shape"):
        sampler.step(noise, 0, noise[:2])
