"""A denoising study, as small as it can be, shared by the tests of the study and of its report."""

from __future__ import annotations

import pytest

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
