"""The study of features, as small as it can be: it chooses on the training side, never by the evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from calibrations import few_calibration_images  # noqa: F401 - for every test here

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.experiment import Results, load_study, open_study, run_study, write_page
from qhw_diffusion.experiment.study import load_results
from qhw_diffusion.guidance import PathwiseConfig
from qhw_diffusion.studies.features import experiment
from qhw_diffusion.studies.features.experiment import FeaturesStudyConfig
from qhw_diffusion.studies.features.page import best_constant, chosen, values

STUDY = load_study("features")
CONFIG = FeaturesStudyConfig(
    candidates=("classifier", "pixels"),
    constants=(1.0, 1.5),
    pathwise=PathwiseConfig(num_iterations=2, num_images=24),
    n_steps=3,
    spacing="trailing",
    validation_steps=30,
    images=60,
    seeds=2,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results[FeaturesStudyConfig]:
    run = open_study(STUDY, tmp_path_factory.mktemp("features") / "run", CONFIG, command="qhw study features …")
    run_study(STUDY, run)
    return load_results(STUDY, run)


@pytest.mark.slow
def test_the_lowest_validation_distance_is_chosen_and_told(results: Results[FeaturesStudyConfig]) -> None:
    means = {text: np.mean(values(results, text, "validation")) for text in CONFIG.candidates}
    assert chosen(results) == min(means, key=means.__getitem__)
    page, file = write_page(results)
    assert f"--reward-distribution-features {chosen(results)}" in page.findings[0]
    assert f"{means[chosen(results)]:.3f}" in page.findings[0]
    assert f"{best_constant(results)['heldout_fd']:.2f}" in file.read_text()
    assert len(values(results, "pixels", "heldout_energy")) == 2


def test_the_validation_network_is_none_of_the_others_and_sees_no_held_out_image(
    results: Results[FeaturesStudyConfig],
) -> None:
    network = experiment.validator(results.folder)
    models = experiment.models_of(CONFIG.models)
    assert network.role == "reward"
    assert network.config.architecture != models.reward.config.architecture
    assert network.config.half == models.reward.config.half == "first"
    assert network.provenance["heldout_fingerprint"] == experiment.half(CONFIG.models, "second").fingerprint
    assert network.provenance["heldout_fingerprint"] != models.heldout.fingerprint


def test_candidates_that_are_none_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown features 'pixel'"):
        FeaturesStudyConfig(candidates=("classifier", "pixel"))
    for bad in (("pixels",), ("pixels", "pixels"), ("pixels+pixels", "layers")):
        with pytest.raises(InvalidInputError):
            FeaturesStudyConfig(candidates=bad)
    assert Path(experiment.__file__).parent.name == "features"
