"""A trained policy, as small as it can be, shared by several tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from soon import short_pauses  # noqa: F401 - for every test here

from qhw_diffusion import guidance


@pytest.fixture(scope="session")
def small_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a policy of three qubits for fake_manila, trained for one update: three steps an image."""
    path = tmp_path_factory.mktemp("policy") / "run"
    guidance.train_guidance(
        guidance.GuidanceConfig(n_steps=3, spacing="trailing", g0=2.0, g_max=4.0, noise_pool=24),
        guidance.PPOConfig.short(num_iterations=1, num_envs=24, update_epochs=1, num_minibatches=1),
        guidance.RewardConfig(),
        guidance.PolicyConfig(device="fake_manila", n_qubits=3, depth=1, gain=1.0),
        path=path,
    )
    return path
