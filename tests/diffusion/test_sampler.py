from __future__ import annotations

import copy
import re
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from qhw_diffusion import diffusion
from qhw_diffusion.diffusion import Backbone, BackboneConfig, GuidedDDIM, guided
from qhw_diffusion.diffusion.sampler import SPACINGS, timesteps_of
from qhw_diffusion.errors import InvalidInputError, UnknownNameError


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


# diffusers' scheduler steps to t − 1000 // n_steps, which is the next timestep here
@pytest.mark.parametrize(
    ("spacing", "n_steps"),
    [("leading", 7), ("leading", 10), ("leading", 50), ("trailing", 1), ("trailing", 10), ("trailing", 50)],
)
@pytest.mark.parametrize("clip", [True, False])
def test_every_step_agrees_with_diffusers(backbone: Backbone, spacing: str, n_steps: int, clip: bool) -> None:
    sampler = GuidedDDIM(backbone, n_steps, spacing=spacing, clip=clip)
    scheduler = diffusers_scheduler(backbone, n_steps, clip_sample=clip, timestep_spacing=spacing)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    assert sampler.timesteps == scheduler.timesteps.tolist()
    assert sampler.init_noise_sigma == scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(1)
    for i, t in enumerate(sampler.timesteps):
        x, eps = torch.randn(2, 5, 1, 8, 8, generator=generator).double()  # √ᾱ is 5e-5 at timestep 999
        x_prev, x0_hat = sampler.step(x, i, eps)
        wanted = scheduler.step(eps, t, x, eta=0.0, use_clipped_model_output=clip)
        torch.testing.assert_close(x_prev, wanted.prev_sample, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(x0_hat, wanted.pred_original_sample, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("spacing", "n_steps"), [("leading", 7), ("leading", 10), ("trailing", 4), ("trailing", 10)])
def test_a_whole_trajectory_agrees_with_diffusers(backbone: Backbone, spacing: str, n_steps: int) -> None:
    noise, labels = noise_and_labels(20)
    scheduler = diffusers_scheduler(backbone, n_steps, prediction_type="v_prediction", timestep_spacing=spacing)
    x = played_by(scheduler, scheduler.timesteps.tolist(), backbone, noise, labels)
    ours = GuidedDDIM(double(backbone), n_steps, spacing=spacing).sample(labels, 2.0, noise.double())
    torch.testing.assert_close(ours, x, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("spacing", "n_steps"), [("linspace", 2), ("linspace", 10), ("trailing", 7)])
def test_a_trajectory_goes_from_timestep_to_timestep(backbone: Backbone, spacing: str, n_steps: int) -> None:
    """Where 1000 // n_steps is not the distance to the next timestep, diffusers' step leaves x at a noise level other
    than the one the network is told next. Its formula is checked on a scheduler that knows our timesteps only.
    """
    noise, labels = noise_and_labels(20)
    sampler = GuidedDDIM(double(backbone), n_steps, spacing=spacing)
    kept = backbone.alphas_cumprod.double()[sampler.timesteps[::-1]]
    scheduler = DDIMScheduler(n_steps, prediction_type="v_prediction")
    scheduler.alphas_cumprod = kept
    scheduler.set_timesteps(n_steps)
    x = played_by(scheduler, sampler.timesteps, backbone, noise, labels)
    torch.testing.assert_close(sampler.sample(labels, 2.0, noise.double()), x, rtol=1e-6, atol=1e-6)


def double(backbone: Backbone) -> Backbone:
    """In double precision: at the noisiest level x̂₀ is the network's rounding error magnified 20,000 times."""
    return copy.deepcopy(backbone).double()


def played_by(scheduler: DDIMScheduler, told: list[int], backbone: Backbone, noise: Tensor, labels: Tensor) -> Tensor:
    """Images at g = 2 by diffusers' steps; `told`: the timesteps that the network is told."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    precise, null = double(backbone), torch.full_like(labels, backbone.null_label)
    x = noise.double()
    with torch.no_grad():
        for t, own in zip(scheduler.timesteps.tolist(), told, strict=True):
            # guidance is linear, so guiding v is guiding ε: diffusers never sees our conversion
            v_cond, v_null = precise(x, own, labels), precise(x, own, null)
            v = v_null + 2.0 * (v_cond - v_null)
            x = scheduler.step(v, t, x, eta=0.0, use_clipped_model_output=True).prev_sample
    return x


# -- where sampling starts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_are_those_of_diffusers(backbone: Backbone, spacing: str) -> None:
    scheduler = DDIMScheduler(1000, timestep_spacing=spacing)
    compared = 0
    for n_steps in range(1, 1001):
        scheduler.set_timesteps(n_steps)
        wanted, made = scheduler.timesteps.tolist(), timesteps_of(spacing, n_steps, 1000)
        assert len(made) == n_steps
        assert all(a > b for a, b in pairwise(made))
        assert min(made) >= 0
        if len(wanted) == n_steps:  # numpy.arange's rounding gives diffusers one timestep more, −1, for some n_steps
            assert made == wanted
            compared += 1
    assert compared > 900


def test_published_step_counts_start_where_they_did(backbone: Backbone) -> None:
    starts = {n: GuidedDDIM(backbone, n).timesteps[0] for n in (4, 6, 7, 10, 20, 21, 25, 50, 100, 200, 500, 1000)}
    assert starts == {4: 750, 6: 830, 7: 852, 10: 900, 20: 950, 21: 940, 25: 960, 50: 980, 100: 990, 200: 995,
                      500: 998, 1000: 999}  # fmt: skip


@pytest.mark.parametrize(
    ("spacing", "n_steps", "start"),
    [("leading", 1, 0), ("leading", 2, 500), ("leading", 3, 666), ("leading", 334, 666), ("leading", 501, 500),
     ("leading", 600, 599), ("linspace", 1, 0)],
)  # fmt: skip
def test_a_start_where_much_signal_is_missing_is_refused(
    backbone: Backbone, spacing: str, n_steps: int, start: int
) -> None:
    with pytest.raises(InvalidInputError, match=rf"n_steps = {n_steps} .*timestep {start} of 999") as told:
        GuidedDDIM(backbone, n_steps, spacing=spacing)
    # every way out that the message names is one
    ways = re.findall(r"spacing='(\w+)' with n_steps = (\d+(?: or \d+)?)", str(told.value))
    named = {other: [int(n) for n in numbers.split(" or ")] for other, numbers in ways}
    assert set(named) >= {"trailing", "leading"}
    for other, numbers in named.items():
        for n in numbers:
            GuidedDDIM(backbone, n, spacing=other)
    assert n_steps in named["trailing"]


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_these_spacings_reach_the_noisiest_level(backbone: Backbone, spacing: str) -> None:
    for n_steps in (2, 3, 7, 10, 334, 501, 1000):
        assert GuidedDDIM(backbone, n_steps, spacing=spacing).timesteps[0] == 999


def test_a_schedule_that_keeps_signal_at_its_end_can_be_sampled_from_there() -> None:
    """Nothing is noisier than the last level, however much signal the schedule leaves there."""
    config = BackboneConfig(channels=(8,), n_train_timesteps=40, beta_schedule="linear")
    short = Backbone(config)
    assert float(short.alphas_cumprod[-1]) > 0.5
    assert GuidedDDIM(short, 5, spacing="trailing").timesteps[0] == 39
    with pytest.raises(InvalidInputError, match="trailing"):
        GuidedDDIM(short, 5)


@pytest.mark.slow
def test_the_limit_lies_where_images_suffer(backbone: Backbone) -> None:
    """From pure noise at the largest start that is allowed nearly all labels come out; at timestep 500 they do not."""
    evaluator = diffusion.Classifier.load("digits", "evaluation")
    noise, labels = noise_and_labels(120)
    shares = {}
    for start in (999, 750, 500):
        sampler = GuidedDDIM(backbone, 50, spacing="linspace")
        sampler._place([round(start * i / 49) for i in reversed(range(50))])
        shares[start] = diffusion.accuracy(evaluator, sampler.sample(labels, 1.2, noise), labels)
    assert shares[999] > 0.97
    assert shares[750] > 0.92
    assert shares[500] < 0.75


@pytest.mark.slow
def test_guidance_survives_fifty_steps_where_the_defaults_of_diffusers_fail(backbone: Backbone) -> None:
    evaluator = diffusion.Classifier.load("digits", "evaluation")
    noise, labels = noise_and_labels(200)
    ours = GuidedDDIM(backbone, 50).sample(labels, 3.0, noise)
    assert diffusion.accuracy(evaluator, ours, labels) > 0.95
    scheduler = diffusers_scheduler(backbone, 50)  # clip_sample=True, use_clipped_model_output=False
    x = noise
    for t in scheduler.timesteps:
        eps = guided(*backbone.predict(x, int(t), labels), 3.0)
        x = scheduler.step(eps, t, x).prev_sample
    assert diffusion.accuracy(evaluator, x, labels) < 0.6


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
    sampler = GuidedDDIM(backbone, 3, spacing="trailing")
    for g, which in ((1.0, 0), (0.0, 1)):
        x = noise
        for i, t in enumerate(sampler.timesteps):
            x, _ = sampler.step(x, i, backbone.predict(x, t, labels)[which])
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
    for n_steps in (0, -3, 1001, 10.0, 2.5, True, "10", None, torch.tensor(10)):
        for spacing in SPACINGS:
            with pytest.raises(InvalidInputError, match=r"n_steps is .* 1 … 1000"):
                GuidedDDIM(backbone, n_steps, spacing=spacing)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="trailing"):
        GuidedDDIM(backbone, 10, spacing="trailling")
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
