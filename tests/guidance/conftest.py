"""The real parts on digits, loaded once; small batches and few steps keep the tests quick."""

from __future__ import annotations

import pytest
import torch

from qhw_diffusion import diffusion, guidance
from qhw_diffusion.devices import Device
from qhw_diffusion.guidance.rewards import ActionPenalty, Confidence, Distribution, Reward, StepwiseImprovement


@pytest.fixture(scope="session")
def backbone() -> diffusion.Backbone:
    return diffusion.Backbone.load("digits")


@pytest.fixture(scope="session")
def reward_classifier() -> diffusion.Classifier:
    return diffusion.Classifier.load("digits", role="reward")


@pytest.fixture(scope="session")
def evaluation_classifier() -> diffusion.Classifier:
    return diffusion.Classifier.load("digits", role="evaluation")


@pytest.fixture(scope="session")
def real() -> diffusion.ImageDataset:
    return diffusion.load_dataset("digits", split="train")


@pytest.fixture(scope="session")
def config(backbone: diffusion.Backbone, reward_classifier: diffusion.Classifier) -> guidance.GuidanceConfig:
    """Four steps, calibrated."""
    raw = guidance.GuidanceConfig(n_steps=4, g0=1.5, g_min=0.0, g_max=3.5, noise_pool=32)
    return guidance.calibrate_state(raw, backbone, reward_classifier, batch=64)


@pytest.fixture(scope="session")
def reward(reward_classifier: diffusion.Classifier, real: diffusion.ImageDataset) -> Reward:
    """Every kind of term that needs no outside weights."""
    terms = [
        (1.0, Confidence()),
        (0.2, StepwiseImprovement()),
        (0.005, ActionPenalty()),
        (1.0, Distribution(reward_classifier, real.subset(torch.arange(300)))),
    ]
    return Reward(terms, reward_classifier)


@pytest.fixture(scope="session")
def manila() -> Device:
    """A small device with noise: five qubits in a row."""
    return Device.load("fake_manila")


@pytest.fixture
def quantum(manila: Device) -> guidance.QuantumPolicy:
    """An untrained quantum policy under noise."""
    policy = guidance.build_policy(guidance.PolicyConfig(gain=1.0), seed=3, device=manila)
    assert isinstance(policy, guidance.QuantumPolicy)
    return policy
