"""Pathwise training: gradients against finite differences under device noise, its loop, and what it refuses."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrations import few_calibration_images  # noqa: F401 - for every test here
from torch import Tensor

from qhw_diffusion.checkpoints import load_checkpoint
from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import Backbone, Classifier, ImageDataset
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance import (
    FreeSchedule,
    GuidanceConfig,
    PathwiseConfig,
    Policy,
    PolicyConfig,
    PPOConfig,
    Reward,
    RewardConfig,
    StepView,
    build_policy,
    draw_episode,
    load_policy,
    rollout,
    train_guidance,
    train_pathwise,
)
from qhw_diffusion.guidance.pathwise import Recomputing, check_differentiable, clamp_inward, play
from qhw_diffusion.guidance.rewards import ActionPenalty, Confidence, Distribution, StepwiseImprovement, TotalVariation
from qhw_diffusion.runs import RunFolder

GUIDANCE = GuidanceConfig(n_steps=3, spacing="trailing", g0=1.2, g_max=3.2)
SMALL = PathwiseConfig(num_iterations=3, num_images=20, checkpoint_every=1)


@pytest.fixture(scope="module")
def double(
    backbone: Backbone, reward_classifier: Classifier, real: ImageDataset, config: GuidanceConfig
) -> tuple[Backbone, Reward, GuidanceConfig]:
    """Everything that is differentiable by itself, in double precision, with every built-in term."""
    scorer = copy.deepcopy(reward_classifier).double()
    few = real.subset(torch.arange(200))
    terms = [
        (1.0, Distribution(scorer, few)),
        (0.2, Confidence()),
        (0.1, StepwiseImprovement()),
        (0.1, TotalVariation()),
        (0.05, ActionPenalty()),
    ]
    model = copy.deepcopy(backbone).double()
    for module in model.modules():
        if hasattr(module, "upcast_softmax"):
            module.upcast_softmax = False  # it is a cast to float32, whatever the weights are
    return model, Reward(terms, scorer), config.replace(n_steps=3, spacing="trailing")


@pytest.fixture(scope="module")
def noisy() -> Policy:
    """The demo's policy under the noise of fake_marrakesh, in double precision."""
    return build_policy(PolicyConfig(), seed=3, device=Device.load("fake_marrakesh")).double()


def batch(backbone: Backbone, size: int = 20) -> tuple[Tensor, Tensor]:
    labels, noise = draw_episode(backbone, size, torch.Generator().manual_seed(5))
    return labels, noise.to(backbone.alphas_cumprod)


def finite_difference(value: Callable[[], float], parameters: list[Tensor], along: list[Tensor], h: float) -> float:
    values = []
    for sign in (1.0, -1.0):
        for parameter, direction in zip(parameters, along, strict=True):
            parameter.data.add_(direction, alpha=sign * h)
        values.append(value())
        for parameter, direction in zip(parameters, along, strict=True):
            parameter.data.sub_(direction, alpha=sign * h)
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["circuit", "head"])
def test_the_gradient_is_that_of_finite_differences_with_device_noise(
    double: tuple[Backbone, Reward, GuidanceConfig], noisy: Policy, group: str
) -> None:
    backbone, reward, config = double
    labels, noise = batch(backbone)
    parameters = noisy.parameter_groups()[group]
    gradient = torch.autograd.grad(play(backbone, config, reward, noisy, labels, noise).returns.mean(), parameters)
    generator = torch.Generator().manual_seed(1)

    def value() -> float:
        with torch.no_grad():
            return float(play(backbone, config, reward, noisy, labels, noise).returns.mean())

    for _ in range(2):
        along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        wanted = float(sum((g * d).sum() for g, d in zip(gradient, along, strict=True)))
        assert abs(wanted) > 1e-3
        assert finite_difference(value, parameters, along, 1e-6) == pytest.approx(wanted, rel=1e-5)


def test_the_truncated_gradient_is_that_of_the_last_steps_alone(
    double: tuple[Backbone, Reward, GuidanceConfig], noisy: Policy
) -> None:
    """Finite differences of a run whose first two steps are those of an unchanged policy."""
    backbone, reward, config = double
    labels, noise = batch(backbone)
    parameters = noisy.parameter_groups()["circuit"]
    fixed, moved = copy.deepcopy(noisy), noisy

    class TwoFirst(Policy):
        n_features, action_dim, steps = moved.n_features, 1, 0

        def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
            self.steps += 1
            found: tuple[Tensor, Tensor] = (fixed if self.steps <= 2 else moved)(obs)
            return found

    truncated = play(backbone, config, reward, moved, labels, noise, truncate_steps=1).returns.mean()
    full = play(backbone, config, reward, moved, labels, noise).returns.mean()
    assert torch.allclose(truncated, full, rtol=1e-12)
    gradient = torch.autograd.grad(truncated, parameters)
    along = [torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype) for p in parameters]

    def value() -> float:
        with torch.no_grad():
            return float(play(backbone, config, reward, TwoFirst(), labels, noise).returns.mean())

    wanted = float(sum((g * d).sum() for g, d in zip(gradient, along, strict=True)))
    whole = torch.autograd.grad(full, parameters)
    assert finite_difference(value, parameters, along, 1e-6) == pytest.approx(wanted, rel=1e-5)
    assert abs(float(sum((g * d).sum() for g, d in zip(whole, along, strict=True))) - wanted) > 1e-3 * abs(wanted)


def test_recomputed_activations_give_the_same_gradient_and_are_not_kept(
    double: tuple[Backbone, Reward, GuidanceConfig], noisy: Policy
) -> None:
    backbone, reward, config = double
    labels, noise = batch(backbone)
    parameters = list(noisy.parameters())
    kept: list[list[int]] = []
    gradients = []
    for again in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            value = play(backbone, config, reward, noisy, labels, noise, gradient_checkpointing=again).returns.mean()
        kept.append(sizes)
        gradients.append(torch.autograd.grad(value, parameters, allow_unused=True))
    for plain, recomputed in zip(*gradients, strict=True):
        assert (plain is None) == (recomputed is None)
        if plain is not None:
            assert torch.allclose(plain, recomputed, rtol=1e-12, atol=1e-15)
    assert sum(kept[1]) < 0.3 * sum(kept[0])


def test_recomputing_is_the_denoiser_otherwise(backbone: Backbone) -> None:
    model = Recomputing(backbone)
    assert (model.name, model.image_shape, model.n_classes) == ("digits", backbone.image_shape, 10)
    x = torch.zeros(2, *backbone.image_shape)
    assert torch.equal(model.decode(x), x)
    assert not hasattr(Recomputing(object()), "decode")  # a model without it decodes by itself
    pairs = zip(*(one.predict(x, 500, torch.arange(2)) for one in (model, backbone)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_clipped_action_keeps_the_gradient_that_leads_back() -> None:
    x = torch.tensor([-2.0, -2.0, 0.5, 2.0, 2.0], requires_grad=True)
    y = clamp_inward(x, -1.0, 1.0)
    assert y.tolist() == [-1.0, -1.0, 0.5, 1.0, 1.0]
    slope = torch.tensor([-1.0, 1.0, 3.0, 1.0, -1.0])  # of a loss: x moves against it
    (gradient,) = torch.autograd.grad((y * slope).sum(), x)
    assert gradient.tolist() == [-1.0, 0.0, 3.0, 1.0, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("classes", [None, 10])
def test_a_free_schedule_plays_and_learns(
    backbone: Backbone, reward_classifier: Classifier, real: ImageDataset, classes: int | None
) -> None:
    """From a poor constant the distance falls, and rollouts take the schedule as it is."""
    config = GUIDANCE.replace(g0=2.5, g_max=4.5)
    schedule = FreeSchedule(3, config.g0, classes)
    term = Distribution(reward_classifier, real.subset(torch.arange(500)), scale=0.1)
    reward = Reward([(1.0, term)], reward_classifier)
    labels, noise = batch(backbone, 60)
    before = term.distance(rollout(backbone, config, labels, noise, schedule.scales(labels).detach()).images, labels)
    rate = PathwiseConfig(num_iterations=5, num_images=60, learning_rate_schedule=0.1)
    history = train_pathwise(backbone, reward, config, schedule, rate)
    scales = schedule.scales(labels).detach()
    played = rollout(backbone, config, labels, noise, scales)
    assert term.distance(played.images, labels) < before
    assert scales.shape == (3, 60)
    assert torch.equal(played.images, play(backbone, config, reward, schedule, labels, noise).images)
    assert history[0]["gradients/schedule"] > 0
    different = (scales != scales[:, :1]).any()
    assert bool(different) == (classes is not None)


@pytest.mark.slow
def test_a_run_says_what_was_run_resumes_bit_for_bit_and_loads(
    tmp_path: Path, manila: Device, backbone: Backbone, reward_classifier: Classifier
) -> None:
    policy = PolicyConfig(device="fake_manila")
    trained = train_guidance(GUIDANCE, SMALL, RewardConfig(), policy, path=tmp_path / "run", device=manila)
    assert isinstance(trained.pathwise, PathwiseConfig)
    assert len(trained.history) == 3
    assert all(row["gradients/circuit"] > 0 for row in trained.history)
    assert {f.name for f in trained.findings} == {"reward", "circuit gradient", "state", "collapse", "oscillation"}
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    stored = stored.get("config", stored)
    assert stored["pathwise"]["num_images"] == 20
    assert "ppo" not in stored

    class Crash(Exception):
        pass

    def crash(update: int, _: dict[str, float]) -> None:
        if update == 1:
            raise Crash

    with pytest.raises(Crash):
        train_guidance(GUIDANCE, SMALL, RewardConfig(), policy, path=tmp_path / "r", device=manila, on_update=crash)
    with pytest.raises(InvalidInputError, match=r"pathwise\.num_images = 20, now 40"):
        train_guidance(GUIDANCE, SMALL.replace(num_images=40), RewardConfig(), policy, path=tmp_path / "r", resume=True)
    with pytest.raises(InvalidInputError, match="started by pathwise"):
        train_guidance(GUIDANCE, PPOConfig(num_envs=20), RewardConfig(), policy, path=tmp_path / "r", resume=True)
    resumed = train_guidance(GUIDANCE, SMALL, RewardConfig(), policy, path=tmp_path / "r", device=manila, resume=True)
    for name, value in trained.policy.state_dict().items():
        assert torch.equal(resumed.policy.state_dict()[name], value), name
    whole, again = (load_checkpoint_of(tmp_path / name) for name in ("run", "r"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    loaded = load_policy(tmp_path / "r")
    assert (loaded.pathwise, loaded.config, loaded.num_iterations) == (SMALL, trained.config, 3)
    labels, noise = draw_episode(backbone, 8, torch.Generator().manual_seed(0))
    images = [
        rollout(backbone, c.config, labels, noise, c.policy, scorer=reward_classifier).images for c in (trained, loaded)
    ]
    assert torch.equal(*images)


@pytest.mark.parametrize(("stop_at", "outcome"), [(0, "stopped"), (2, "finished")])
def test_ctrl_c_saves_a_checkpoint(
    tmp_path: Path, backbone: Backbone, reward_classifier: Classifier, stop_at: int, outcome: str
) -> None:
    def interrupt(update: int, _: dict[str, float]) -> None:
        if update == stop_at:
            signal.raise_signal(signal.SIGINT)

    reward = Reward([(1.0, Bright())], reward_classifier)
    schedule = FreeSchedule(3, GUIDANCE.g0)
    with RunFolder.create(tmp_path / "run", kind="guidance", config={}) as run:
        history = train_pathwise(backbone, reward, GUIDANCE, schedule, SMALL, run=run, on_update=interrupt)
        assert len(history) == load_checkpoint(run)[1]["updates"] == stop_at + 1
        assert run.outcome == outcome


def load_checkpoint_of(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(RunFolder.open(path, kind="guidance"))[0]


class Detached:
    name, per_step = "detached", False

    def __call__(self, step: StepView) -> Tensor:
        return step.x0.detach().flatten(1).mean(1)


class Counted:
    name, per_step = "counted", False

    def __call__(self, step: StepView) -> Tensor:
        return torch.from_numpy(step.x0.numpy().reshape(len(step.x0), -1).mean(1))


class Bright:
    """A term with a gradient."""

    name, per_step = "bright", True

    def __call__(self, step: StepView) -> Tensor:
        return step.x0.flatten(1).mean(1)


@pytest.mark.parametrize("term", [Detached(), Counted()])
def test_a_term_without_gradient_is_refused(tmp_path: Path, term: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"reward term '{term.name}' has no gradient.*--method ppo"):
        train_guidance(
            GUIDANCE, SMALL, RewardConfig(), PolicyConfig("matched"), path=tmp_path / "run", terms=[(1.0, term)]
        )
    assert not (tmp_path / "run").exists()


def test_a_scorer_without_gradient_is_refused_and_one_with_it_serves(
    backbone: Backbone, reward_classifier: Classifier
) -> None:
    def scorer(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return reward_classifier.logits(images).softmax(1).gather(1, labels[:, None])[:, 0]

    with pytest.raises(InvalidInputError, match="scorer 'scorer' has no gradient"):
        train_guidance(
            GUIDANCE, SMALL, RewardConfig(distribution=0.0, confidence=1.0), PolicyConfig("matched"), scorer=scorer
        )
    check_differentiable(Reward([(1.0, Bright())], reward_classifier), backbone)


def test_engines_and_numbers_that_do_not_fit_are_refused(tmp_path: Path, manila: Device) -> None:
    from qhw_diffusion.guidance.pathwise import check_pathwise  # noqa: F401  (what train_guidance calls first)

    cases: list[tuple[PathwiseConfig, PolicyConfig, str]] = [
        (SMALL.replace(num_images=10), PolicyConfig("matched"), "num_images is 10, at least 20"),
        (SMALL.replace(truncate_steps=4), PolicyConfig("matched"), "more than the 3 sampling steps"),
    ]
    for settings, policy, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            train_guidance(GUIDANCE, settings, RewardConfig(), policy, path=tmp_path / "run", device=manila)
    with pytest.raises(InvalidInputError, match="truncate_steps"):
        PathwiseConfig(truncate_steps=0)
