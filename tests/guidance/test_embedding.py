"""A learned embedding of the U-Net's pooled features: what the state carries, its gradient, files, and refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import Backbone, Classifier, ImageDataset, PipelineDenoiser
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance import (
    GuidanceConfig,
    GuidedEpisode,
    PathwiseConfig,
    PolicyConfig,
    PPOConfig,
    QuantumPolicy,
    Reward,
    RewardConfig,
    TrainedPolicy,
    build_policy,
    calibrate_state,
    draw_episode,
    load_policy,
    load_policy_model,
    rollout,
    sample,
    save_policy_model,
    train_guidance,
)
from qhw_diffusion.guidance.config import GuidanceTraining
from qhw_diffusion.guidance.distill import tabulate
from qhw_diffusion.guidance.episode import measured_normalisation
from qhw_diffusion.guidance.pathwise import Recomputing, play
from qhw_diffusion.guidance.rewards import ActionPenalty, Confidence
from qhw_diffusion.guidance.steering import Steering
from tests.pipelines import IMAGE_SIZE, scheduler, stable_diffusion

PROMPTS = ("a cat, grey", "two dogs")


@pytest.fixture(scope="module")
def pooled(backbone: Backbone, reward_classifier: Classifier) -> GuidanceConfig:
    """Six entries and the 32 channels of the digits' middle block, calibrated."""
    raw = GuidanceConfig(n_steps=3, spacing="trailing", g0=1.5, g_max=3.5, noise_pool=24, pooled_features=True)
    return calibrate_state(raw, backbone, reward_classifier, batch=32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> PipelineDenoiser:
    """A tiny pipeline in double precision; eight images go through it in three parts."""
    pipeline = stable_diffusion(tmp_path_factory.mktemp("tokenizer"))
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        network.double().requires_grad_(False)
    return PipelineDenoiser(pipeline, PROMPTS, batch=3)


class Smooth(nn.Module):
    """A scorer whose logits are smooth functions of all pixels."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.w = nn.Parameter(0.2 * torch.randn(3 * IMAGE_SIZE**2, len(PROMPTS), generator=generator))
        self.image_shape, self.n_classes = (3, IMAGE_SIZE, IMAGE_SIZE), len(PROMPTS)

    def logits(self, images: Tensor) -> Tensor:
        return 3.0 * (images.flatten(1) @ self.w).tanh()


def middle(network: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The middle block's output of one call of a U-Net, averaged over positions."""
    kept: list[Tensor] = []
    hook = network.mid_block.register_forward_hook(lambda m, a, out: kept.append(out.flatten(2).mean(2)))
    with torch.no_grad():
        network(*args, **kwargs)
    hook.remove()
    (found,) = kept
    return found


def test_the_state_of_a_backbone_carries_the_middle_block_and_costs_no_evaluation(
    backbone: Backbone, reward_classifier: Classifier, pooled: GuidanceConfig
) -> None:
    assert (pooled.n_entries, pooled.n_pooled, pooled.n_state) == (6, 32, 38)
    plain = pooled.replace(
        pooled_features=False, state_centre=pooled.state_centre[:6], state_width=pooled.state_width[:6]
    )
    labels, noise = draw_episode(backbone, 6, torch.Generator().manual_seed(5))
    episode, without = (GuidedEpisode(backbone, c, reward_classifier) for c in (pooled, plain))
    calls: list[int] = []
    hook = backbone.unet.register_forward_hook(lambda m, a, out: calls.append(1))
    for each in (episode, without):
        with torch.no_grad():
            each.begin(labels, noise)
            each.advance(torch.linspace(0.5, 2.5, 6), torch.linspace(-1.0, 1.0, 6))
    hook.remove()
    assert len(calls) == 4  # two predictions each
    assert torch.equal(episode.state()[:, :6], without.state())
    x = nn.functional.pixel_unshuffle(episode.x, backbone.config.patch)
    seen = middle(backbone.unet, x, episode.sampler.timesteps[1], class_labels=labels)
    centre, width = torch.tensor(pooled.state_centre[6:]), torch.tensor(pooled.state_width[6:])
    assert torch.allclose(episode.state()[:, 6:], (seen - centre) / width, atol=1e-4)
    null = middle(backbone.unet, x, episode.sampler.timesteps[1], class_labels=torch.full_like(labels, 10))
    assert not torch.allclose(episode.state()[:, 6:], (null - centre) / width, atol=1e-2)

    again = GuidedEpisode(backbone, pooled, reward_classifier)  # as a rollout on a device goes on
    again.load_state_dict(episode.state_dict())
    assert torch.equal(again.state(), episode.state())


def test_the_state_of_a_pipeline_is_that_of_the_prompts_in_every_part(tiny: PipelineDenoiser) -> None:
    config = GuidanceConfig(n_steps=2, spacing="scheduler", pooled_features=True, confidence_entry=False)
    episode = GuidedEpisode(tiny, config, None)
    labels, noise = draw_episode(tiny, 8, torch.Generator().manual_seed(5))
    with torch.no_grad():
        episode.begin(labels, noise)
    prompts = tiny.pipeline.encode_prompt([PROMPTS[i] for i in labels], tiny.device, 1, False)[0]
    seen = middle(tiny.pipeline.unet, episode.x, episode.sampler.timesteps[0], encoder_hidden_states=prompts)
    assert episode.pooled is not None
    assert torch.allclose(episode.pooled, seen, atol=1e-6)


def test_the_features_are_functions_of_what_was_done_before(tiny: PipelineDenoiser) -> None:
    """Their slope in the last step's scale, by autograd and by central differences, and with activations recomputed."""
    config = GuidanceConfig(n_steps=2, spacing="scheduler", pooled_features=True, confidence_entry=False)
    labels, noise = draw_episode(tiny, 4, torch.Generator().manual_seed(5))
    along = torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def features(g: Tensor, denoiser: Any = tiny) -> Tensor:
        episode = GuidedEpisode(denoiser, config, None)
        with torch.no_grad():
            episode.begin(labels, noise)
        episode.advance(g)
        assert episode.pooled is not None
        return episode.pooled @ along

    start, h = torch.linspace(1.0, 4.0, 4, dtype=torch.float64), 1e-4
    with torch.no_grad():
        wanted = (features(start + h) - features(start - h)) / (2 * h)
    assert wanted.abs().min() > 1e-5
    for denoiser in (tiny, Recomputing(tiny)):
        g = start.clone().requires_grad_()
        features(g, denoiser).sum().backward()
        assert g.grad is not None
        assert torch.allclose(g.grad, wanted, rtol=1e-5, atol=0.0)


def test_the_gradient_of_the_embedding_is_that_of_finite_differences(tiny: PipelineDenoiser, manila: Device) -> None:
    scorer = Smooth().double().requires_grad_(False)
    reward = Reward([(1.0, Confidence()), (0.05, ActionPenalty())], scorer)
    raw = GuidanceConfig(n_steps=3, spacing="scheduler", g0=3.0, g_min=0.0, g_max=6.0, pooled_features=True)
    config = calibrate_state(raw, tiny, scorer, batch=8)
    labels, noise = draw_episode(tiny, 3, torch.Generator().manual_seed(5))
    policy = build_policy(
        PolicyConfig(embedding=2), n_features=config.n_state, n_pooled=config.n_pooled, seed=3, device=manila
    ).double()
    assert policy.embedding is not None
    parameters = list(policy.embedding.parameters())
    assert all(any(p is q for q in policy.parameter_groups()["head"]) for p in parameters)
    gradient = torch.autograd.grad(play(tiny, config, reward, policy, labels, noise).returns.mean(), parameters)
    again = play(tiny, config, reward, policy, labels, noise, gradient_checkpointing=True).returns.mean()
    for once, recomputed in zip(gradient, torch.autograd.grad(again, parameters), strict=True):
        assert torch.allclose(once, recomputed, rtol=1e-9, atol=1e-12)
    generator = torch.Generator().manual_seed(1)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    wanted = float(sum((g * d).sum() for g, d in zip(gradient, along, strict=True)))
    assert abs(wanted) > 1e-4
    h, values = 1e-5, []
    with torch.no_grad():
        for sign in (1.0, -2.0):
            for parameter, direction in zip(parameters, along, strict=True):
                parameter.add_(direction, alpha=sign * h)
            values.append(float(play(tiny, config, reward, policy, labels, noise).returns.mean()))
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(wanted, rel=1e-5)


def test_a_policy_with_an_embedding_samples_from_a_pipeline(tiny: PipelineDenoiser) -> None:
    raw = GuidanceConfig(n_steps=2, spacing="scheduler", g0=3.0, g_max=6.0, pooled_features=True)
    seen = SimpleNamespace(image_shape=tiny.image_shape, n_classes=2, logits=lambda images: images.mean((2, 3))[:, :2])
    config = calibrate_state(raw, tiny, seen, batch=8).replace(confidence_entry=False)
    policy = build_policy(
        PolicyConfig(kind="mlp", embedding=3), n_features=config.n_state, n_pooled=config.n_pooled
    ).double()
    trained = TrainedPolicy(policy, config, RewardConfig(), PPOConfig(), PolicyConfig(kind="mlp"), [], ())
    sampled = sample(tiny.pipeline, trained, list(PROMPTS), seed=3)
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    played = rollout(PipelineDenoiser(tiny.pipeline, PROMPTS), config, torch.arange(2), noise, policy)
    assert torch.equal(sampled.g, played.g)
    assert sampled.g.std() > 0
    with pytest.raises(InvalidInputError, match=r"pooled features of the U-Net's middle block.*guidance\.sample"):
        Steering(trained, scheduler=scheduler())


@pytest.mark.parametrize("kind", ["quantum", "frozen", "matched", "mlp"])
def test_a_saved_policy_acts_the_same(kind: str, manila: Device, tmp_path: Path) -> None:
    policy = build_policy(PolicyConfig(kind=kind, embedding=2), n_features=38, n_pooled=32, seed=3, device=manila)
    states = torch.randn(5, 38, generator=torch.Generator().manual_seed(0))
    again = load_policy_model(save_policy_model(policy, tmp_path / "model"))
    with torch.no_grad():
        before, after = policy(states), again(states)
        moved = states.clone()
        moved[:, 20] += 1.0
        assert not torch.equal(policy(moved)[0], before[0])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    if isinstance(policy, QuantumPolicy):
        assert policy.angles(states).shape == (5, 8)
        matched = build_policy(PolicyConfig(kind="matched", embedding=2), n_features=38, n_pooled=32)
        total = sum(p.numel() for p in policy.parameters())
        assert matched.parameter_counts()["total"] == pytest.approx(total, rel=0.01)
        other = policy.on(engine="ideal")
        assert other.embedding is not None
        assert torch.equal(other.embedding.linear.weight, policy.embedding.linear.weight)  # type: ignore[union-attr]


def test_the_table_of_a_policy_with_an_embedding_acts_as_the_policy(manila: Device) -> None:
    policy = build_policy(PolicyConfig(embedding=1), n_features=38, n_pooled=32, seed=3, device=manila)
    assert isinstance(policy, QuantumPolicy)
    states = torch.randn(5, 38, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(tabulate(policy)(states)[0], policy(states)[0], atol=1e-5)


@pytest.mark.parametrize("method", ["ppo", "pathwise"])
def test_both_trainings_move_the_embedding_and_their_run_is_loaded(
    method: str, backbone: Backbone, reward_classifier: Classifier, real: ImageDataset, pooled: GuidanceConfig,
    tmp_path: Path,
) -> None:  # fmt: skip
    how: PPOConfig | PathwiseConfig = PathwiseConfig(num_iterations=1, num_images=8)
    if method == "ppo":
        how = PPOConfig(num_iterations=1, num_envs=8, num_minibatches=2, update_epochs=1)
    settings = PolicyConfig(kind="matched", embedding=2)
    parts: Any = {"backbone": backbone, "scorer": reward_classifier, "real": real.subset(torch.arange(100))}
    reward = RewardConfig(distribution=0.0, confidence=1.0)
    trained = train_guidance(pooled, how, reward, settings, path=tmp_path / "run", **parts)
    start = build_policy(settings, n_features=38, n_pooled=32)
    assert not torch.equal(trained.policy.embedding.linear.weight, start.embedding.linear.weight)  # type: ignore[union-attr]
    assert trained.history[-1]["state/pooled_std"] > 0.1
    assert not any("guidance_norm" in name for name in trained.history[-1])
    loaded = load_policy(tmp_path / "run")
    again = TrainedPolicy.from_pretrained(loaded.save_pretrained(tmp_path / "shared"))
    assert again.config == trained.config
    states = torch.randn(5, 38, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again.policy(states)[0], trained.policy(states)[0])
    assert "2 entries of 32 pooled features" in (tmp_path / "shared" / "README.md").read_text()


def test_without_an_embedding_a_policys_file_is_as_it_was(manila: Device) -> None:
    for kind in ("quantum", "mlp"):
        policy = build_policy(PolicyConfig(kind=kind), device=manila)
        assert not {"embedding", "n_pooled"} & set(policy.config())
        assert not [name for name in policy.state_dict() if "embedding" in name]
    assert GuidanceConfig.from_dict({}) == GuidanceConfig()  # a folder from before


def test_the_embedding_asks_for_the_features() -> None:
    assert GuidanceTraining(policy=PolicyConfig(embedding=2)).guidance.pooled_features
    assert not GuidanceTraining().guidance.pooled_features


def test_a_dead_channel_stays_at_zero() -> None:
    raw = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    raw[:, 7] = 3.0
    centre, width = measured_normalisation(raw, 6)
    assert (centre[7], width[7]) == (3.0, 1.0)


def test_what_does_not_fit_is_refused(
    backbone: Backbone, reward_classifier: Classifier, real: ImageDataset, pooled: GuidanceConfig
) -> None:
    parts: Any = {"backbone": backbone, "scorer": reward_classifier, "real": real}
    for guidance, embedding in ((pooled, 0), (GuidanceConfig(), 2)):
        policy = PolicyConfig(kind="mlp", embedding=embedding)
        with pytest.raises(InvalidInputError, match="give both or neither"):
            train_guidance(guidance, PathwiseConfig(), RewardConfig(), policy, **parts)
    with pytest.raises(InvalidInputError, match="both, or neither"):
        build_policy(PolicyConfig(kind="mlp", embedding=2))
    with pytest.raises(InvalidInputError, match="leave out embedding"):
        PolicyConfig(kind="annealing", embedding=1)
    with pytest.raises(InvalidInputError, match="embedding"):
        PolicyConfig(embedding=-1)
    with pytest.raises(InvalidInputError, match="n_features is 9"):
        build_policy(PolicyConfig(embedding=2), n_features=39, n_pooled=32)
    with pytest.raises(InvalidInputError, match="6 entries and one for each pooled feature"):
        GuidanceConfig(pooled_features=True, state_centre=(0.0,) * 6, state_width=(1.0,) * 6)
    fewer = pooled.replace(state_centre=(0.0,) * 10, state_width=(1.0,) * 10)
    with pytest.raises(InvalidInputError, match=r"calibrated with 4 pooled features.*has 32 channels"):
        GuidedEpisode(backbone, fewer, reward_classifier)
    names = ("name", "image_shape", "n_classes", "alphas_cumprod", "predict")
    other: Any = SimpleNamespace(**{name: getattr(backbone, name) for name in names})
    with pytest.raises(InvalidInputError, match="SimpleNamespace gives no pooled features"):
        GuidedEpisode(other, pooled, reward_classifier)
    without = copy.copy(backbone)
    without._modules = {**backbone._modules, "unet": nn.Identity()}
    with pytest.raises(InvalidInputError, match="Identity has no middle block"):
        GuidedEpisode(without, pooled, reward_classifier)
