"""The study of the state, as small as it can be, on digits."""

from __future__ import annotations

import pytest
from calibrations import few_calibration_images  # noqa: F401 - for every test here

from qhw_diffusion.diffusion import evaluate_samples
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.experiment import Results, load_study, mean_interval, open_study, run_study, write_page
from qhw_diffusion.experiment.study import load_results
from qhw_diffusion.guidance import PathwiseConfig, PolicyConfig, load_policy_model, rollout
from qhw_diffusion.guidance.config import ModelConfig
from qhw_diffusion.guidance.evaluation import EVALUATION_SEED, draw_initial_noise
from qhw_diffusion.studies.state.experiment import (
    StateStudyConfig,
    calibrated,
    cells,
    models_of,
    scorer_for,
    variant_of,
)
from qhw_diffusion.studies.state.page import comparisons, paired, values

STUDY = load_study("state")
CONFIG = StateStudyConfig(
    models=ModelConfig(),
    scorer="classifier",
    confidence_entry=True,
    variants=("quantum-6", "quantum-6+2", "oracle-6+2", "oracle-6"),
    policy=PolicyConfig(device="fake_manila"),
    pathwise=PathwiseConfig(num_iterations=1, num_images=20),
    n_steps=3,
    spacing="trailing",
    constants=(1.0, 1.5),
    sweep_images=20,
    eval_images=20,
    seeds=2,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results[StateStudyConfig]:
    run = open_study(STUDY, tmp_path_factory.mktemp("state") / "run", CONFIG, command="qhw study state …")
    run_study(STUDY, run)
    return load_results(STUDY, run)


def test_a_saved_policy_makes_the_images_that_were_measured(results: Results[StateStudyConfig]) -> None:
    models = models_of(CONFIG.models)
    guidance, _ = calibrated(results.folder, "6+")
    assert (guidance.n_entries, guidance.n_pooled) == (6, 32)
    policy = load_policy_model(results.folder / "policies" / "quantum-6+2-seed1")
    assert policy.embedding is not None
    labels, noise = draw_initial_noise(models.backbone, models.heldout, 20, EVALUATION_SEED + 1)
    images = rollout(models.backbone, guidance, labels, noise, policy, scorer=scorer_for(CONFIG.base)).images
    judged = evaluate_samples(images, labels, models.evaluation_classifier, models.heldout)
    assert judged["energy"] == pytest.approx(values(results, "quantum-6+2", "energy")[1], rel=1e-5)


def test_the_page_pairs_each_state_with_the_poorer_one(results: Results[StateStudyConfig]) -> None:
    assert comparisons(CONFIG.variants) == [("quantum-6+2", "quantum-6"), ("oracle-6+2", "oracle-6")]
    assert comparisons(("mlp-7", "mlp-6", "mlp-6+1", "frozen-7+2")) == [("mlp-7", "mlp-6"), ("mlp-6+1", "mlp-6")]
    rich, poor = (values(results, name, "energy") for name in ("quantum-6+2", "quantum-6"))
    wanted = mean_interval([a - b for a, b in zip(rich, poor, strict=True)])
    found = paired(results)["quantum-6+2", "quantum-6"]
    assert found.difference == wanted
    page, file = write_page(results)
    means = {name: sum(values(results, name, "energy")) for name in CONFIG.variants}
    beaten = min(means[name] for name in CONFIG.variants[:2]) < min(means[name] for name in CONFIG.variants[2:])
    assert len(page.findings) == 2 + beaten
    assert wanted.format(3, sign=True) in page.findings[0]
    assert f"{100 * sum(results.values('accuracy', part='floor')) / 2:.1f}" in file.read_text()


def test_cells_and_what_is_refused() -> None:
    found = [cell.name for cell in cells(CONFIG)]
    assert len(found) == 1 + 2 + 1 + 2 + 4 * 2
    assert variant_of("matched-7+12") == ("matched", 7, 12)
    assert CONFIG.policy_config("oracle-7+1") == CONFIG.policy.replace(kind="mlp", embedding=1)
    for text in ("quantum-8", "quantum-7+0", "annealing-7", "quantum"):
        with pytest.raises(UnknownNameError, match="KIND-7"):
            StateStudyConfig(variants=(text, "mlp-6"))
    for bad in (("mlp-6",), ("mlp-6", "mlp-6")):
        with pytest.raises(InvalidInputError, match="variants"):
            StateStudyConfig(variants=bad)
