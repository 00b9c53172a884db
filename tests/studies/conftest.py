"""A denoising study and a trained policy, as small as they can be, shared by several tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from qhw_diffusion import guidance
from qhw_diffusion.denoising import AutoencoderConfig
from qhw_diffusion.experiment import load_study, open_study, run_study
from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies.denoising.experiment import DenoisingConfig
from qhw_diffusion.studies.denoising_single import REVERSE, TRAIN

TINY = DenoisingConfig(
    classes=(1, 0, 7),
    variants=("postselected", "feedforward", "noise", "contraction", "classical"),
    autoencoder=AutoencoderConfig(steps=50),
    reverse=REVERSE.replace(n_steps=2, depth=2),
    train=TRAIN.replace(iterations=5, batch_size=4, targets=8),
    noise_iterations=2,
    device="fake_manila",
    eval_images=40,
    seeds=2,
)


@pytest.fixture(scope="session")
def tiny_denoising(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    study = load_study("denoising")
    run = open_study(study, tmp_path_factory.mktemp("denoising") / "run", TINY, command="qhw study denoising --seeds 2")
    run_study(study, run)
    return run


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
