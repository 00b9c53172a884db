"""A denoising study and a trained policy, as small as they can be, shared by several tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from qhw_diffusion import guidance
from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies.denoising_settings import DenoisingStudyConfig
from qhw_diffusion.studies.denoising_study import open_denoising_study, run_denoising_study

TINY = DenoisingStudyConfig(
    classes=(1, 0, 7),
    n_steps=2,
    depth=2,
    arms=("postselected", "feedforward", "noise", "contraction", "classical"),
    device="fake_manila",
    iterations=5,
    noise_iterations=2,
    batch_size=4,
    targets=8,
    autoencoder_steps=50,
    eval_images=40,
    seeds=2,
)


@pytest.fixture(scope="session")
def tiny_denoising(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = open_denoising_study(tmp_path_factory.mktemp("denoising") / "run", TINY, command="qhw study denoising …")
    run_denoising_study(run, workers=1)
    return run


@pytest.fixture(scope="session")
def small_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a policy of three qubits for fake_manila, trained for one update: three steps an image."""
    path = tmp_path_factory.mktemp("policy") / "run"
    guidance.train_guidance(
        guidance.GuidanceConfig(n_steps=3, spacing="trailing", g0=2.0, g_max=4.0, starts=24),
        guidance.PPOConfig.short(updates=1, num_envs=24, epochs=1, minibatches=1),
        guidance.RewardConfig(),
        guidance.ActorConfig(device="fake_manila", n_qubits=3, depth=1, gain=1.0),
        path=path,
    )
    return path
