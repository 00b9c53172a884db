from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qhw_diffusion import diffusion, guidance
from qhw_diffusion.diffusion import Backbone, Classifier
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance import STATE_NAMES, GuidanceConfig, QuantumPolicy
from qhw_diffusion.guidance.episode import SATURATION, measured_normalisation, raw_state
from qhw_diffusion.guidance.scorers import score


def test_entries_against_numpy() -> None:
    g = torch.Generator().manual_seed(0)
    x, eps, difference = (torch.randn(5, 1, 8, 8, generator=g) for _ in range(3))
    action, logits = torch.rand(5, generator=g), torch.randn(5, 10, generator=g)
    labels = torch.arange(5)
    confidence = score(SimpleNamespace(logits=lambda images: logits), x, labels, 4.0).confidence
    state = raw_state(
        remaining=0.5, x=x, eps_last=eps, action_last=action, confidence=confidence, eps_difference=difference
    )
    for i in range(5):
        a, b, d = (v[i].numpy().ravel().astype(float) for v in (x, eps, difference))
        p = np.exp(logits[i].double().numpy() / 4.0)
        expected = [
            0.5,
            np.linalg.norm(a) / 8.0,
            np.linalg.norm(b) / 8.0,
            a @ b / np.linalg.norm(a) / np.linalg.norm(b),
            float(action[i]),
            p[i] / p.sum(),
            np.linalg.norm(d) / 8.0,
        ]
        np.testing.assert_allclose(state[i].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("extra", [False, True])
def test_on_real_rollouts_no_entry_is_constant_or_saturated(
    backbone: Backbone, reward_classifier: Classifier, extra: bool
) -> None:
    """Fresh noise, labels and random actions; the calibration saw other ones."""
    config = guidance.calibrate_state(
        GuidanceConfig(n_steps=6, g0=1.5, g_max=3.5, extra_state=extra), backbone, reward_classifier, seed=0, batch=64
    )
    labels, noise = guidance.draw_episode(backbone, 64, torch.Generator().manual_seed(99))
    policy = guidance.MLPPolicy(n_features=config.n_state, initial_std=0.5)
    out = guidance.rollout(
        backbone, config, labels, noise, policy, scorer=reward_classifier, generator=torch.Generator().manual_seed(1)
    )
    states = out.states.flatten(0, 1)
    assert states.shape == (6 * 64, 7 if extra else 6)
    for j, name in enumerate(STATE_NAMES[: states.shape[1]]):
        column = states[:, j]
        assert column.std() > 0.15, f"{name} hardly moves"
        assert (column.abs() > SATURATION).float().mean() < 0.1, f"{name} saturates"
        # no clipping: the extreme values are not shared by many states (time has only six values by nature)
        if name not in ("time", "last_action"):
            assert column.unique().numel() > 0.9 * column.numel(), f"{name} is clipped or quantised"
    # within one step, too, every entry but the time tells samples apart
    for t in range(1, 6):
        assert (out.states[t, :, 1:].std(0) > 0.02).all()


def test_every_entry_reaches_the_circuit(quantum: QuantumPolicy) -> None:
    """The circuit's output, and the action, depend on each of the six entries."""
    obs = (0.3 * torch.randn(8, 6, generator=torch.Generator().manual_seed(0))).requires_grad_()
    z = quantum.expectations(obs)
    (gradient,) = torch.autograd.grad(z.square().sum(), obs)
    assert (gradient.abs().mean(0) > 1e-4).all()
    for j in range(6):
        moved = obs.detach().clone()
        moved[:, j] += 0.5
        assert (quantum(moved)[0] - quantum(obs)[0]).abs().mean() > 1e-4, STATE_NAMES[j]


def test_a_constant_entry_is_refused() -> None:
    raw = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    raw[:, 2] = 1.0
    with pytest.raises(InvalidInputError, match="eps_norm"):
        measured_normalisation(raw)


def test_calibration_is_reproducible_and_kept(
    backbone: Backbone, reward_classifier: Classifier, config: GuidanceConfig
) -> None:
    again = guidance.calibrate_state(
        config.replace(state_centre=(), state_width=()), backbone, reward_classifier, batch=64
    )
    assert again == config
    assert guidance.calibrate_state(config, backbone, reward_classifier, seed=5) is config


def test_without_the_confidence_entry_it_stays_at_its_centre(
    backbone: Backbone, reward_classifier: Classifier, config: GuidanceConfig
) -> None:
    labels, noise = guidance.draw_episode(backbone, 8, torch.Generator().manual_seed(5))
    states = []
    for entry in (True, False):
        episode = guidance.GuidedEpisode(backbone, config.replace(confidence_entry=entry), reward_classifier)
        episode.begin(labels, noise)
        states.append(episode.state())
    j = STATE_NAMES.index("confidence")
    assert not states[1][:, j].any()
    assert states[0][:, j].abs().min() > 0
    others = [k for k in range(config.n_state) if k != j]
    assert torch.equal(states[0][:, others], states[1][:, others])


def test_an_episode_is_differentiable_and_its_users_are_not(
    backbone: diffusion.Backbone, reward_classifier: diffusion.Classifier, config: guidance.GuidanceConfig
) -> None:
    """The slope of the final confidence in a free schedule, by autograd and by central differences."""
    denoiser, scorer = copy.deepcopy(backbone).double(), copy.deepcopy(reward_classifier).double()
    for module in denoiser.modules():
        if hasattr(module, "upcast_softmax"):
            module.upcast_softmax = False  # diffusers' attention rounds to single precision, which differences see
    labels, noise = guidance.draw_episode(denoiser, 4, torch.Generator().manual_seed(5))
    episode = guidance.GuidedEpisode(denoiser, config, scorer)

    def confidence(schedule: torch.Tensor) -> torch.Tensor:
        episode.begin(labels, noise.double())
        for g in schedule:
            episode.advance(g.expand(4))
        assert episode.score is not None
        return episode.score.log_probability.sum() + episode.raw_state().sum()

    start = torch.tensor([1.5, 1.2, 2.0, 0.7], dtype=torch.float64)
    free = start.clone().requires_grad_()
    confidence(free).backward()
    step = 1e-6
    for i, slope in enumerate(free.grad.tolist()):
        shift = torch.zeros(4, dtype=torch.float64)
        shift[i] = step
        with torch.no_grad():
            expected = float(confidence(start + shift) - confidence(start - shift)) / (2 * step)
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-6)
    played = guidance.rollout(backbone, config, labels, noise, free.float(), scorer=reward_classifier)
    sampled = diffusion.GuidedDDIM(backbone, 4).sample(labels, free.float(), noise)
    assert not played.images.requires_grad
    assert not sampled.requires_grad
