"""Our sampling loop over the parts of a Stable Diffusion pipeline: the pipeline's own images, and what goes beyond."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import diffusers
import pipelines
from PIL import Image

from qhw_diffusion import guidance
from qhw_diffusion.cli import main
from qhw_diffusion.diffusion import (
    LatentDenoiser,
    PipelineDenoiser,
    SchedulerSampler,
    load_pipeline,
    read_prompts,
    sampler_of,
)
from qhw_diffusion.errors import InvalidInputError, MissingDataError, MissingDependencyError, QhwError
from qhw_diffusion.guidance.evaluation import NoImages
from qhw_diffusion.guidance.scorers import as_scorer

KINDS = ("ddim", "pndm", "euler", "dpm")
PROMPTS = ["a cat", "two dogs"]
STEPS = 4


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("tokenizer"))


def with_scheduler(pipeline: Any, kind: str, **settings: Any) -> Any:
    """The pipeline, its networks shared, with another scheduler."""
    other = copy.copy(pipeline)
    other.scheduler = pipelines.scheduler(kind, **settings)
    return other


def own_images(pipeline: Any, g: float, prompts: list[str], seed: int = 3, output: str = "pt", **settings: Any) -> Any:
    """What the pipeline's own call gives."""
    return pipeline(
        prompts,
        guidance_scale=g,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(seed),
        output_type=output,
        **settings,
    ).images


def ours(pipeline: Any, g: Any, prompts: list[str], seed: int = 3, **settings: Any) -> Tensor:
    images = guidance.sample(pipeline, g, prompts, seed=seed, steps=STEPS, **settings).images
    return images * 0.5 + 0.5


# -- the pipeline's own images ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("g", [1.5, 7.5])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ddim", {}),
        ("ddim", {"timestep_spacing": "leading", "prediction_type": "v_prediction"}),
        ("ddim", {"timestep_spacing": "linspace"}),
        ("pndm", {"timestep_spacing": "leading"}),  # as Stable Diffusion 1.5 comes
        ("euler", {}),
        ("euler", {"timestep_spacing": "linspace", "prediction_type": "v_prediction"}),
        ("dpm", {}),
        ("dpm", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    ],
)
def test_at_a_constant_scale_the_images_are_the_pipelines_own(
    pipeline: Any, kind: str, settings: dict[str, Any], g: float
) -> None:
    driven = with_scheduler(pipeline, kind, **settings)
    assert torch.equal(ours(driven, g, PROMPTS), own_images(driven, g, PROMPTS))


def test_so_are_the_pictures_of_a_saved_pipeline_and_a_negative_prompt(pipeline: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = load_pipeline(tmp_path / "saved")
    sampled = guidance.sample(
        tmp_path / "saved", 3.0, PROMPTS[0], seed=5, steps=STEPS, negative_prompt="grey"
    ).pictures()
    wanted = own_images(loaded, 3.0, PROMPTS[:1], seed=5, output="pil", negative_prompt=["grey"])
    assert np.array_equal(np.asarray(sampled[0]), np.asarray(wanted[0]))
    assert not any(p.requires_grad for p in loaded.unet.parameters())


def test_the_pipelines_scheduler_stays_as_it_is(pipeline: Any) -> None:
    driven = with_scheduler(pipeline, "dpm")
    first = ours(driven, 2.0, PROMPTS)
    assert driven.scheduler.num_inference_steps is None
    assert torch.equal(ours(driven, 2.0, PROMPTS), first)  # nothing is left of an earlier run


# -- what goes beyond ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_image_has_a_scale_of_its_own(pipeline: Any, kind: str) -> None:
    driven = with_scheduler(pipeline, kind)
    mixed = ours(driven, torch.tensor([[0.5, 7.5]]), PROMPTS)
    assert torch.equal(mixed[0], ours(driven, 0.5, PROMPTS)[0])
    assert torch.equal(mixed[1], own_images(driven, 7.5, PROMPTS)[1])
    assert not torch.allclose(mixed[0], ours(driven, 7.5, PROMPTS)[0], atol=1e-3)


def test_one_is_conditional_and_zero_unconditional(pipeline: Any) -> None:
    # at guidance_scale 1 the pipeline leaves the unconditional half out, so the batch is another one
    torch.testing.assert_close(ours(pipeline, 1.0, PROMPTS), own_images(pipeline, 1.0, PROMPTS), atol=1e-5, rtol=0)
    blank = own_images(pipeline, 1.0, ["", ""])
    torch.testing.assert_close(ours(pipeline, 0.0, PROMPTS), blank, atol=1e-5, rtol=0)


def test_batches_give_the_same_images(pipeline: Any) -> None:
    texts = [*PROMPTS, "x"]
    whole, parts = ours(pipeline, 2.0, texts), ours(pipeline, 2.0, texts, batch=2)
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)


def test_a_schedule_has_a_scale_for_each_prediction(pipeline: Any) -> None:
    driven = with_scheduler(pipeline, "pndm")
    told: list[tuple[int, int]] = []
    sampled = guidance.sample(
        driven, torch.full((STEPS + 1,), 7.5), PROMPTS, seed=3, steps=STEPS, on_step=lambda *n: told.append(n)
    )
    assert torch.equal(sampled.images * 0.5 + 0.5, own_images(driven, 7.5, PROMPTS))
    assert sampled.g.shape == (STEPS + 1, 2)
    assert len(sampled.timesteps) == STEPS + 1
    assert told == [(k, STEPS + 1) for k in range(1, STEPS + 2)]
    with pytest.raises(InvalidInputError, match=f"n_steps = {STEPS + 1}"):
        guidance.sample(driven, torch.ones(STEPS), PROMPTS, seed=3, steps=STEPS)


def test_a_safety_checker_has_its_say(pipeline: Any) -> None:
    strict = copy.copy(pipeline)
    strict.safety_checker = lambda images, clip_input: (images, [False, True])
    strict.feature_extractor = lambda pictures, return_tensors: SimpleNamespace(
        to=lambda device: SimpleNamespace(pixel_values=torch.zeros(2, 3, 4, 4))
    )
    sampled = guidance.sample(strict, 2.0, PROMPTS, seed=3, steps=STEPS)
    assert sampled.blanked == (False, True)
    assert torch.equal(sampled.images[1], torch.full((3, 16, 16), -1.0))
    assert torch.equal(sampled.images[0] * 0.5 + 0.5, own_images(pipeline, 2.0, PROMPTS)[0])


# -- the sampler -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["ddim", "euler"])
def test_estimates_are_the_schedulers(pipeline: Any, kind: str, prediction: str) -> None:
    """x̂₀ against what the scheduler says, and ε̂ against the definition of both."""
    denoiser = PipelineDenoiser(with_scheduler(pipeline, kind, prediction_type=prediction), PROMPTS)
    sampler = sampler_of(denoiser, STEPS, spacing="trailing")
    assert isinstance(sampler, SchedulerSampler)
    generator = torch.Generator().manual_seed(0)
    x = sampler.begin(torch.randn(2, *denoiser.latent_shape, generator=generator))
    for i in range(STEPS):
        output = torch.randn(x.shape, generator=generator)
        told = copy.deepcopy(sampler.scheduler)
        told.scale_model_input(x, told.timesteps[i])
        wanted = told.step(output, told.timesteps[i], x).pred_original_sample
        x0_hat, eps, seen = sampler.estimate(x, i, output), sampler.noise(x, i, output), sampler.seen(x, i)
        torch.testing.assert_close(x0_hat, wanted, rtol=1e-5, atol=1e-5)
        signal = denoiser.alphas_cumprod[int(sampler.timesteps[i])].sqrt()
        remade = signal * x0_hat + (1 - signal**2).sqrt() * eps
        torch.testing.assert_close(remade, seen, rtol=1e-4, atol=1e-4)
        x, _ = sampler.step(x, i, output)
    assert torch.equal(sampler.seen(x, STEPS), x)


def test_a_pixel_model_is_sampled_like_our_ddim() -> None:
    """A clipping DDIMScheduler on a model of pixels recomputes the noise, as `GuidedDDIM` does."""
    from qhw_diffusion.diffusion import Backbone, GuidedDDIM

    backbone = Backbone.load("digits")
    scheduler = diffusers.DDIMScheduler(beta_schedule=backbone.config.beta_schedule, clip_sample=True)
    with_one = SimpleNamespace(
        name="digits", image_shape=(1, 8, 8), n_classes=10, alphas_cumprod=backbone.alphas_cumprod, scheduler=scheduler,
        predict=lambda x, t, labels: backbone.predict(x, int(t), labels), decode=lambda x: x, latent_shape=(1, 8, 8),
    )  # fmt: skip
    assert isinstance(with_one, LatentDenoiser)
    noise, labels = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10
    wanted = GuidedDDIM(backbone, 10).sample(labels, 3.0, noise)
    torch.testing.assert_close(sampler_of(with_one, 10).sample(labels, 3.0, noise), wanted, atol=1e-4, rtol=0)
    with pytest.raises(InvalidInputError, match="brings a DDIMScheduler"):
        GuidedDDIM(with_one, 10)
    with pytest.raises(InvalidInputError, match="brings no scheduler"):
        sampler_of(backbone, 10, spacing="scheduler")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_goes_on_in_mid_course(pipeline: Any, kind: str) -> None:
    denoiser = PipelineDenoiser(with_scheduler(pipeline, kind, prediction_type="v_prediction"), PROMPTS)
    config = guidance.GuidanceConfig(n_steps=STEPS, spacing="scheduler", extra_state=True)
    labels, noise = guidance.draw_episode(denoiser, 3, torch.Generator().manual_seed(0))
    scales = torch.linspace(0.5, 4.0, (STEPS + 1) * 3).view(STEPS + 1, 3)

    def finish(episode: guidance.GuidedEpisode) -> None:
        while not episode.done:
            episode.advance(scales[episode.step_index])

    with torch.no_grad():
        whole, begun = (guidance.GuidedEpisode(denoiser, config, as_scorer(shade)) for _ in range(2))
        whole.begin(labels, noise)
        finish(whole)
        for taken in (1, 3):
            begun.begin(labels, noise)
            for i in range(taken):
                begun.advance(scales[i])
            other = guidance.GuidedEpisode(denoiser, config, as_scorer(shade))
            other.load_state_dict(begun.state_dict())
            assert torch.equal(other.raw_state(), begun.raw_state())
            finish(other)
            assert torch.equal(other.images, whole.images)
    assert other.images.shape == (3, 3, 16, 16)
    assert other.x.shape == (3, 4, 8, 8)


def test_images_depend_smoothly_on_the_scale(pipeline: Any) -> None:
    """The gradient of a free schedule through scheduler, U-Net and VAE, by central differences."""
    precise = copy.deepcopy(pipeline).to(torch.float64)
    denoiser = PipelineDenoiser(precise, PROMPTS)
    config = guidance.GuidanceConfig(n_steps=3, spacing="scheduler")
    labels, noise = guidance.draw_episode(denoiser, 2, torch.Generator().manual_seed(0))
    assert noise.dtype == torch.float64
    weight = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    episode = guidance.GuidedEpisode(denoiser, config, None)

    def mean(schedule: Tensor) -> Tensor:
        episode.begin(labels, noise)
        for g in schedule:
            episode.advance(g.expand(2))
        return (episode.images * weight).mean()

    start = torch.tensor([1.5, 0.7, 2.0], dtype=torch.float64)
    free = start.clone().requires_grad_()
    mean(free).backward()
    assert free.grad is not None
    for i in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[i] = 1e-5
        with torch.no_grad():
            slope = float(mean(start + shift) - mean(start - shift)) / 2e-5
        assert float(free.grad[i]) == pytest.approx(slope, rel=1e-5)


# -- a policy --------------------------------------------------------------------------------------------------------


def shade(images: Tensor, labels: Tensor) -> Tensor:
    """A scorer: prompt 0 wants dark images, the others light ones."""
    light = (4.0 * images.mean((1, 2, 3))).sigmoid()
    return torch.where(labels == 0, 1 - light, light)


class Wanted:
    """A scorer of any table of prompts: those with a cat want dark images."""

    name = "wanted"

    def __init__(self, prompts: tuple[str, ...] = ()) -> None:
        self.dark = torch.tensor(["cat" in text for text in prompts])

    def for_prompts(self, prompts: tuple[str, ...]) -> Wanted:
        return Wanted(prompts)

    def probability(self, images: Tensor, labels: Tensor) -> Tensor:
        return shade(images, (~self.dark[labels]).long())


def training(folder: Path) -> guidance.GuidanceConfig:
    """Settings with numbers in the place of a calibration, which takes seconds."""
    return guidance.GuidanceConfig(
        dataset=str(folder), n_steps=3, spacing="scheduler", g0=5.0, g_min=3.0, g_max=7.0, noise_pool=0,
        state_centre=(0.7, 1.0, 1.0, 0.9, 0.0, 0.5), state_width=(0.5, 0.1, 0.2, 0.2, 1.0, 0.1),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dpm", "pndm"])
def test_a_policy_is_trained_on_it_and_goes_on_bit_for_bit(pipeline: Any, tmp_path: Path, kind: str) -> None:
    denoiser = PipelineDenoiser(with_scheduler(pipeline, kind), PROMPTS)
    reward = guidance.RewardConfig(distribution=0.0, confidence=1.0, total_variation=0.1)

    def trained(iterations: int, **settings: Any) -> guidance.TrainedPolicy:
        # rollouts of two steps: at the first checkpoint the episodes are in mid-course
        ppo = guidance.PPOConfig(
            num_iterations=iterations, num_envs=6, num_steps=2, update_epochs=1, learning_rate_final=1.0,
            checkpoint_every=1,
        )  # fmt: skip
        return guidance.train_guidance(
            training(tmp_path), ppo, reward, guidance.PolicyConfig(kind="mlp"), backbone=denoiser,
            scorer=Wanted, real=NoImages(denoiser), **settings,  # type: ignore[arg-type]
        )  # fmt: skip

    whole = trained(3, path=tmp_path / "whole")
    assert whole.config.scorer.endswith(":Wanted")
    begun = tmp_path / "begun"

    def stop(update: int, metrics: dict[str, float]) -> None:
        if update == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(3, path=begun, on_update=stop)
    gone_on = trained(3, path=begun, resume=True)
    for one, other in zip(whole.policy.parameters(), gone_on.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    # steering: the images are those of the scales that it chose, and a new prompt has a scorer too
    sampled = guidance.sample(denoiser.pipeline, whole, ["a new cat", "x"], seed=1)
    assert sampled.confidence is not None
    assert sampled.g.std() > 0
    replayed = guidance.sample(denoiser.pipeline, sampled.g, ["a new cat", "x"], seed=1, steps=3)
    assert torch.equal(replayed.images, sampled.images)
    labels = torch.arange(2)
    assert torch.equal(sampled.confidence, Wanted(("a new cat", "x")).probability(sampled.images, labels))


def test_a_scorer_of_numbers_takes_prompts_of_the_training_only(pipeline: Any, tmp_path: Path) -> None:
    denoiser = PipelineDenoiser(pipeline, PROMPTS)
    trained = guidance.train_guidance(
        training(tmp_path), guidance.PPOConfig(num_iterations=1, num_envs=6, update_epochs=1),
        guidance.RewardConfig(distribution=0.0, confidence=1.0), guidance.PolicyConfig(kind="mlp"), backbone=denoiser,
        scorer=shade, real=NoImages(denoiser), path=tmp_path / "run",  # type: ignore[arg-type]
    )  # fmt: skip
    (tmp_path / "run" / "prompts.txt").write_text("\n".join(PROMPTS))
    sampled = guidance.sample(pipeline, tmp_path / "run", PROMPTS[1], seed=1, scorer=shade)
    assert sampled.confidence is not None
    assert torch.equal(sampled.confidence, shade(sampled.images, torch.tensor([1])))
    for policy, text in ((trained, PROMPTS[1]), (tmp_path / "run", "a fish")):
        with pytest.raises(InvalidInputError, match="knows the prompts by their number"):
            guidance.sample(pipeline, policy, text, seed=1, scorer=shade)

    with pytest.raises(InvalidInputError, match=r"no real images of the prompts.*--reward-distribution 0"):
        guidance.train_guidance(
            training(tmp_path), guidance.PPOConfig(num_envs=6), guidance.RewardConfig(),
            guidance.PolicyConfig(kind="mlp"), backbone=denoiser, scorer=Features(), real=NoImages(denoiser),  # type: ignore[arg-type]
        )  # fmt: skip


class Features(Wanted):
    """One that could be compared by, were there real images."""

    def for_prompts(self, prompts: tuple[str, ...]) -> Features:
        return Features(prompts)

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)


# -- the commands ----------------------------------------------------------------------------------------------------

SCORERS = """
import torch


class Wanted:
    def __init__(self, prompts=()):
        self.dark = torch.tensor(["cat" in text for text in prompts])

    def for_prompts(self, prompts):
        return type(self)(prompts)

    def probability(self, images, labels):
        light = (4 * images.mean((1, 2, 3))).sigmoid()
        return torch.where(self.dark[labels], 1 - light, light)


class Small:
    image_shape, n_classes = (3, 8, 8), 2

    def probability(self, images, labels):
        return torch.full((len(images),), 0.5)


def judged(images, labels):
    return images[:, 0].mean((1, 2)).sigmoid()
"""


LONG = "abcdefghijklmnopqrst"


@pytest.fixture(scope="module")
def place(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved pipeline, prompts and scorers."""
    folder = tmp_path_factory.mktemp("place")
    pipeline.save_pretrained(folder / "sd")
    (folder / "prompts.txt").write_text("a cat\ntwo dogs\n")
    (folder / "one.txt").write_text("a cat\n")
    (folder / "long.txt").write_text(f"a cat\n{LONG}\n")
    (folder / "scorers.py").write_text(SCORERS)
    return folder


def test_the_command_gives_the_pipelines_own_pictures(
    pipeline: Any, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    command = ["sample", "--pipeline", "sd", "--guidance", "7.5", "--steps", "4", "--seed", "3", "--out", "pictures"]
    assert main([*command, "--prompt", "a cat, grey", "--prompt", "two dogs"]) == 0
    wanted = own_images(pipeline, 7.5, ["a cat, grey", "two dogs"], output="pil")
    for k, picture in enumerate(wanted):
        assert np.array_equal(np.asarray(Image.open(f"pictures/00{k}.png")), np.asarray(picture))
    record = json.loads(Path("pictures/guidance.json").read_text())
    assert [one["prompt"] for one in record["images"]] == ["a cat, grey", "two dogs"]
    assert record["images"][0]["g"] == [7.5] * 4
    assert Path("pictures/guidance.png").stat().st_size > 1000
    assert main([*command, "--prompt", "x"]) == 2
    assert "pictures is no empty folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_policy_is_trained_sampled_and_evaluated_by_commands(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    train = ["train", "guidance", "--pipeline", "sd", "--n-steps", "3", "--policy", "mlp"]
    rewarded = ["--reward-distribution", "0", "--reward-confidence", "1", "--g0", "5"]
    scorer = ["--scorer", "scorers.py:Wanted", "--prompts", "prompts.txt"]
    brief = ["--num-iterations", "1", "--num-envs", "6", "--update-epochs", "1", "--out", "run"]
    assert main([*train, *rewarded, *scorer, *brief]) == 0
    config = json.loads(Path("run/config.json").read_text())["guidance"]
    assert (config["g_min"], config["g_max"], config["spacing"]) == (3.0, 7.0, "scheduler")
    assert Path("run/prompts.txt").read_text() == "a cat\ntwo dogs\n"
    assert main(["sample", "--pipeline", "sd", "--policy", "run", "--prompt", "a cat at sea", "--out", "steered"]) == 0
    (image,) = json.loads(Path("steered/guidance.json").read_text())["images"]
    assert len(set(image["g"])) == 3
    assert 0 < image["confidence"] < 1
    judge = ["evaluate", "guidance", "run", "--evaluation-classifier"]
    assert main([*judge, "scorers.py:judged", "--seeds", "2", "--images", "20"]) == 0
    assert "probability of the prompts by the evaluation scorer" in capsys.readouterr().out
    # what is refused, and leaves no folder
    sample_coloured = ["sample", "--pipeline", "coloured-digits", "--guidance", "2"]
    coloured = ["train", "guidance", "--pipeline", "coloured-digits"]
    for words, message in (
        ([*judge, "scorers.py:Wanted"], "name another evaluation scorer"),
        (judge[:-1], "has no evaluation classifier"),
        ([*train, *rewarded, "--prompts", "prompts.txt", "--out", "no"], "--reward-classifier FOLDER)\n"),
        ([*train, *rewarded, *scorer[:2], "--out", "no"], "brings no table of prompts"),
        ([*train, *rewarded, *scorer[:2], "--prompts", "one.txt", "--out", "no"], "holds one prompt, 'a cat'"),
        ([*train, *rewarded, *scorer[:2], "--prompts", "no.txt", "--out", "no"], "no file of prompts no.txt"),
        ([*train, *rewarded[:4], *scorer, "--out", "no"], "needs the base guidance scale"),
        ([*train, *rewarded[4:], *scorer, "--out", "no"], "no real images of the prompts"),
        ([*train, *rewarded, "--scorer", "scorers.py:Small", *scorer[2:], "--out", "no"], "3×8×8 images"),
        (["sample", "--pipeline", "sd", "--prompt", "x", "--out", "no"], "--policy RUN"),
        (["sample", "--pipeline", "sd", "--guidance", "2", "--out", "no"], "give prompts"),
        (["sample", "--pipeline", "no", "--guidance", "2", "--prompt", "x", "--out", "no"], "no pipeline in no"),
        # prompts that the tokenizer does not take whole
        (["sample", "--pipeline", "sd", "--guidance", "2", "--prompt", LONG, "--out", "no"], "cuts after 16: shorten"),
        ([*sample_coloured, "--prompt", "a crimson ten", "--out", "no"], "does not know 'crimson', 'ten'; it knows a,"),
        ([*sample_coloured, "--prompt", "a red two", "--negative-prompt", "ugly", "--out", "no"], "not know 'ugly'"),
        ([*train, *rewarded, *scorer[:2], "--prompts", "long.txt", "--out", "no"], "cuts after 16: shorten"),
        ([*coloured, *rewarded, *scorer[:2], "--prompts", "prompts.txt", "--out", "no"], "does not know 'cat', 'dogs'"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert not Path("no").exists()


# -- what is refused -------------------------------------------------------------------------------------------------


def test_schedulers_that_are_not_supported(pipeline: Any) -> None:
    config = pipeline.scheduler.config
    for scheduler, message in (
        (diffusers.EulerAncestralDiscreteScheduler.from_config(config), "draws noise at every step"),
        (diffusers.DDPMScheduler.from_config(config), "draws noise at every step"),
        (diffusers.HeunDiscreteScheduler.from_config(config), "predicts 2 times a step"),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "has no .*alphas_cumprod"),
        (pipelines.scheduler("ddim", timestep_spacing="leading", steps_offset=0), "starts at timestep 500 of 999"),
    ):
        driven = copy.copy(pipeline)
        driven.scheduler = scheduler
        with pytest.raises(InvalidInputError, match=message):
            guidance.sample(driven, 2.0, PROMPTS, seed=0, steps=2)
    sampler = sampler_of(PipelineDenoiser(pipeline, PROMPTS), STEPS)
    with pytest.raises(InvalidInputError, match="in order"):
        sampler.predict(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, dtype=torch.int64))


def test_pipelines_that_are_not_supported(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(part: str, **settings: Any) -> Any:
        other = copy.copy(pipeline)
        network = copy.copy(getattr(pipeline, part))
        network._internal_dict = type(network.config)({**network.config, **settings})
        setattr(other, part, network)
        return other

    textless = copy.copy(pipeline)
    textless.text_encoder = None
    flux = SimpleNamespace(transformer=SimpleNamespace(config=SimpleNamespace(guidance_embeds=True)))
    pixels = diffusers.DDPMPipeline(pipeline.unet, pipelines.scheduler())
    for wrong, message in (
        (textless, "has no text_encoder"),
        (flux, "distilled into the network .guidance_embeds"),
        (changed("unet", time_cond_proj_dim=8), "distilled into the network .time_cond_proj_dim"),
        (changed("unet", in_channels=9), "takes 9 channels and the latents have 4"),
        (pixels, "without unconditional embeddings that is not driven.*StableDiffusionPipeline"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            PipelineDenoiser(wrong, PROMPTS)
    with pytest.raises(MissingDataError, match=r"model_index.json.*hf download"):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(InvalidInputError, match="is a FluxPipeline; supported is StableDiffusionPipeline"):
        load_pipeline(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'qhw-diffusion\[pipelines\]'"):
        load_pipeline(tmp_path)


def test_prompts_that_do_not_do(pipeline: Any, tmp_path: Path) -> None:
    for wrong in ("a cat", [], [1]):
        with pytest.raises(InvalidInputError, match="need a list"):
            PipelineDenoiser(pipeline, wrong)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"takes 16 tokens and cuts the prompt 'abc.*' of 22: .* is not seen"):
        PipelineDenoiser(pipeline, ["abcdefghijklmnopqrst"])
    file = tmp_path / "prompts.txt"
    with pytest.raises(MissingDataError, match="no file of prompts"):
        read_prompts(file)
    file.write_text("\n \n")
    with pytest.raises(InvalidInputError, match="is empty"):
        read_prompts(file)
    file.write_text("a cat\n\n two dogs \n")
    assert read_prompts(file) == ("a cat", "two dogs")


def test_other_bad_input(pipeline: Any) -> None:
    for settings, message in (
        ({}, "seed"),
        ({"seed": 1, "generator": torch.Generator()}, "one of the two"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1, "batch": 0}, "batch"),
        ({"seed": 1, "steps": 0}, "n_steps"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            guidance.sample(pipeline, 2.0, PROMPTS, **settings)  # type: ignore[arg-type]
    for g, message in (
        ("runs/nothing", "no such folder"),
        (float("nan"), "finite"),
        ([[1.0, 2.0, 3.0]], "n_steps = 50"),
    ):
        with pytest.raises(QhwError, match=message):
            guidance.sample(pipeline, g, PROMPTS, seed=0)
