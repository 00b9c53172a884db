from __future__ import annotations

import json
from typing import Any

import pytest

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Shots
from qhw_diffusion.guidance import GuidanceConfig, PolicyConfig, PPOConfig, RewardConfig

CHANGED = [
    GuidanceConfig(
        n_steps=9,
        spacing="linspace",
        g0=2.0,
        extra_state=True,
        state_centre=tuple(range(7)),
        state_width=(0.1, 1, 1, 1, 1, 1, 2.0),
    ),
    RewardConfig(confidence=0.3, stepwise_kind="ssim", distribution_offset=0.1, distribution_scale=2.0),
    PPOConfig(num_iterations=3, num_steps=5, learning_rate_circuit=0.02),
    PolicyConfig(kind="frozen", n_qubits=6, reuploading=True),
]


@pytest.mark.parametrize("config", CHANGED, ids=lambda c: type(c).__name__)
def test_json_round_trip(config: GuidanceConfig) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "build",
    [
        lambda: GuidanceConfig(n_steps=0),
        lambda: GuidanceConfig(n_steps=2.5),
        lambda: GuidanceConfig(n_steps=True),
        lambda: GuidanceConfig(g0=5.0, g_max=4.0),
        lambda: GuidanceConfig(g0=float("nan")),
        lambda: GuidanceConfig(state_centre=(0.0,) * 6),
        lambda: GuidanceConfig(state_centre=(0.0,) * 7, state_width=(1.0,) * 7),
        lambda: GuidanceConfig(state_centre=(0.0,) * 6, state_width=(1.0,) * 5 + (0.0,)),
        lambda: RewardConfig(confidence=-1.0),
        lambda: RewardConfig(extra=("brightness",)),
        lambda: RewardConfig(extra=("-1*module:brightness",)),
        lambda: RewardConfig(extra=("much*module:brightness",)),
        lambda: RewardConfig(distribution_scale=1.0),
        lambda: PPOConfig(gamma=1.5),
        lambda: PPOConfig(num_iterations=0),
        lambda: PPOConfig(clip_coef=0.0),
        lambda: PolicyConfig(initial_std=0.0),
    ],
)
def test_impossible_settings_are_refused(build: object) -> None:
    with pytest.raises(InvalidInputError):
        build()  # type: ignore[operator]


def test_settings_of_an_older_run_have_the_spacing_it_was_made_with() -> None:
    older = {name: value for name, value in GuidanceConfig(n_steps=10).to_dict().items() if name != "spacing"}
    assert GuidanceConfig.from_dict(older).spacing == "leading"


def test_settings_of_earlier_versions_are_read_under_todays_names() -> None:
    older = {"updates": 3, "rollout_steps": 5, "clip": 0.3, "entropy": 0.1, "value": 0.4, "epochs": 2, "minibatches": 6,
             "lr_circuit": 0.2, "lr_head": 0.1, "lr_critic": 0.05, "lr_final": 0.5, "gamma": 0.9}  # fmt: skip
    assert PPOConfig.from_dict(older) == PPOConfig(
        num_iterations=3, num_steps=5, clip_coef=0.3, ent_coef=0.1, vf_coef=0.4, update_epochs=2, num_minibatches=6,
        learning_rate_circuit=0.2, learning_rate_head=0.1, learning_rate_critic=0.05, learning_rate_final=0.5,
        gamma=0.9,
    )  # fmt: skip
    assert GuidanceConfig.from_dict({"starts": 12}).noise_pool == 12


def test_unknown_names_list_near_matches() -> None:
    with pytest.raises(UnknownNameError, match="quantum"):
        PolicyConfig(kind="quantom")
    with pytest.raises(UnknownNameError, match="did you mean learning_rate_circuit"):
        PPOConfig.from_dict({"learning_rate_circit": 1.0})
    with pytest.raises(UnknownNameError, match="leading"):
        GuidanceConfig(spacing="leeding")
    with pytest.raises(UnknownNameError, match="distance"):
        RewardConfig(distribution_kernel="distanse")


@pytest.mark.parametrize(
    "text", ["noisy", "shots:64:seed=3:ideal", "noisy+readout", "shots:4096+readout+zne:linear:1,3"]
)
def test_engines_are_text_of_the_one_grammar(text: str) -> None:
    config = PolicyConfig(engine=text)
    assert PolicyConfig.from_dict(json.loads(json.dumps(config.to_dict()))).engine == text


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("bogus", "unknown engine"),
        ("noisy+bogus", "mitigation strategy"),
        ("shots:many", "whole numbers from 1"),
        (Shots(64), "holds text, here 'shots:64'"),
        (None, "holds text"),
    ],
)
def test_an_engine_that_is_none_is_refused_when_settings_are_made(engine: Any, message: str) -> None:
    with pytest.raises((UnknownNameError, InvalidInputError), match=message):
        PolicyConfig(engine=engine)
    with pytest.raises((UnknownNameError, InvalidInputError), match=message):
        PolicyConfig().replace(engine=engine)


def test_defaults_are_the_published_ones() -> None:
    ppo, published = PPOConfig(), RewardConfig.published()
    coefficients = (ppo.gamma, ppo.gae_lambda, ppo.clip_coef, ppo.ent_coef, ppo.vf_coef, ppo.max_grad_norm)
    assert coefficients == (0.995, 0.95, 0.1, 0.01, 0.5, 0.5)
    assert ppo.update_epochs == 4
    assert (published.confidence, published.stepwise, published.action_penalty) == (1.0, 0.2, 0.005)


def test_cosine_decay_ends_where_it_should() -> None:
    ppo = PPOConfig(num_iterations=11, learning_rate_final=0.1)
    assert ppo.learning_rate_factor(0) == 1.0
    assert ppo.learning_rate_factor(5) == pytest.approx(0.55)
    assert ppo.learning_rate_factor(10) == pytest.approx(0.1)
