"""The schedules study, as small as it can be: a whole run, its pairs, its tables, and what it is without some cells."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from qhw_diffusion.cli.app import main
from qhw_diffusion.diffusion import GuidedDDIM, evaluate_samples
from qhw_diffusion.errors import InvalidInputError, RunFolderError
from qhw_diffusion.experiment import Results, load_study, open_study, run_study, write_page
from qhw_diffusion.experiment.study import cell_file, load_results
from qhw_diffusion.guidance import PathwiseConfig
from qhw_diffusion.guidance.config import ModelConfig, RewardConfig
from qhw_diffusion.guidance.evaluation import EVALUATION_SEED, draw_initial_noise
from qhw_diffusion.guidance.headroom import share_of_headroom
from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies.guidance.experiment import GuidanceStudyConfig, models_of
from qhw_diffusion.studies.schedules.experiment import SchedulesStudyConfig
from qhw_diffusion.studies.schedules.page import choice_at, compared, missing, rows_of, shares, values

STUDY = load_study("schedules")
CONFIG = SchedulesStudyConfig(
    study=GuidanceStudyConfig(
        policies=("matched_pathwise",),
        schedules=("limited_interval", "free_schedule", "greedy_search"),
        spacing="trailing",
        constants=(1.0, 1.5),
        sweep_images=24,
        tune_images=24,
        tune_means=(1.0,),
        search_factors=(0.5, 1.0),
        noise_pool=20,
        pathwise=PathwiseConfig(num_iterations=1, num_images=20, learning_rate_schedule=0.2),
    ),
    train_steps=3,
    steps=(7, 3, 4),
    tuned=(3, 4),
    images=(20, 24, 20),
    seeds=(1, 2, 1),
    search_steps=3,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = open_study(STUDY, tmp_path_factory.mktemp("schedules") / "run", CONFIG, command="qhw study schedules …")
    run_study(STUDY, run)
    return run


@pytest.fixture(scope="module")
def results(finished: RunFolder) -> Results[SchedulesStudyConfig]:
    return load_results(STUDY, finished)


def test_every_row_is_played_at_every_number_of_steps(results: Results[SchedulesStudyConfig]) -> None:
    assert CONFIG.ordered == (3, 4, 7)
    for steps, images, seeds in ((3, 24, 2), (4, 20, 1), (7, 20, 1)):
        searched = {"greedy_search"} if steps == 3 else set()
        assert set(rows_of(results, steps)) == {
            "conditional", "constant", "fixed", "limited_interval", "free_schedule", "matched_pathwise",
            "oracle_constant", "oracle_schedule", "oracle_feedback", *searched,
        }  # fmt: skip
        for name in rows_of(results, steps):
            assert len(values(results, name, steps, "energy")) == seeds
            cell = results.cells[f"evaluation-{name}-steps{steps}-seed0"]
            assert len(cell["g_mean"]) == steps
        assert results.cells[f"floor-steps{steps}"]["images"] == images
        assert values(results, "fixed", steps, "g_all")[0] == 7.5
    assert missing(results) == ""


def test_choices_are_made_where_the_settings_say(results: Results[SchedulesStudyConfig]) -> None:
    for steps, ending in ((3, ""), (4, "-steps4")):
        swept = {g: results.cells[f"constant-{g:g}{ending}"]["reward_distance"] for g in CONFIG.study.constants}
        assert choice_at(results, steps)["constant"]["mean"] == min(swept, key=swept.__getitem__)
    assert choice_at(results, 7) == choice_at(results, 4)  # taken over from the next lower one
    assert "energy" not in results.cells["limited_interval-1-0-steps4"]  # the evaluation never saw a candidate


def test_pairs_and_metrics_can_be_computed_again(results: Results[SchedulesStudyConfig]) -> None:
    """By the backbone's own sampler: the plain conditional model, the best constant and g = 7.5 from one noise."""
    models = models_of(CONFIG.study.models)
    labels, noise = draw_initial_noise(models.backbone, models.heldout, 20, EVALUATION_SEED)
    best = choice_at(results, 4)["constant"]["mean"]
    sampler = GuidedDDIM(models.backbone, 4, spacing="trailing")
    made = {
        name: sampler.sample(labels, g, noise) for name, g in (("conditional", 1), ("constant", best), ("own", 7.5))
    }
    for other in ("conditional", "constant"):
        errors = (made["own"] - made[other]).square().flatten(1).mean(1)
        psnr = float((10 * (4 / errors).log10()).mean())
        assert values(results, "fixed", 4, f"psnr_{other}")[0] == pytest.approx(psnr, abs=1e-3)
        assert 0 < values(results, "fixed", 4, f"ssim_{other}")[0] < 1
        assert not values(results, other, 4, f"psnr_{other}")  # none with itself
    judged = evaluate_samples(made["own"], labels, models.evaluation_classifier, models.heldout)
    for key in ("energy", "fd", "kd", "precision", "recall"):
        assert values(results, "fixed", 4, key)[0] == pytest.approx(judged[key], rel=1e-3, abs=1e-5)


def test_a_free_schedule_is_interpolated_in_the_share_of_steps_to_do(results: Results[SchedulesStudyConfig]) -> None:
    for name, trained in (("free_schedule", "free_schedule"), ("oracle_schedule", "oracle-schedule")):
        g = results.cells[trained]["g"]
        assert len(g) == 3
        for steps in (3, 7):
            to_do = [(steps - i) / steps for i in range(steps)]
            wanted = np.interp(to_do, [1 / 3, 2 / 3, 1.0], g[::-1])
            played = results.cells[f"evaluation-{name}-steps{steps}-seed0"]["g_mean"]
            assert played == pytest.approx(wanted.tolist(), abs=1e-5)


def test_tests_and_shares_are_those_of_their_definition(results: Results[SchedulesStudyConfig]) -> None:
    tests = compared(results, 3, "limited_interval")
    assert set(tests) == {"constant", "fixed", "free_schedule", "greedy_search", "matched_pathwise"}
    pair = [list(values(results, name, 3, "energy").values()) for name in ("fixed", "limited_interval")]
    assert tests["fixed"].t_p == pytest.approx(stats.ttest_rel(*pair).pvalue)
    assert tests["fixed"].p_holm >= tests["fixed"].t_p
    assert compared(results, 7, "constant") == {}  # one seed
    mean = {name: float(np.mean([*values(results, name, 3, "energy").values()])) for name in rows_of(results, 3)}
    best = min(mean["oracle_schedule"], mean["oracle_feedback"])
    wanted = share_of_headroom(mean["fixed"], mean["oracle_constant"], best)
    assert shares(results, 3)["fixed"] == pytest.approx(wanted, nan_ok=True)


def test_the_page_of_a_part_says_what_is_missing(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, file = write_page(load_results(STUDY, finished))
    assert "Not finished" not in file.read_text()
    markdown = page.save_markdown(tmp_path / "page.md").read_text()
    assert "**the same label and initial noise at the same number of steps**" in markdown
    assert f"{values(load_results(STUDY, finished), 'fixed', 7, 'energy')[0]:.3f}" in markdown
    part = tmp_path / "part"
    shutil.copytree(finished.path, part, ignore=shutil.ignore_patterns("paired", "trainings", "oracle"))
    for name in ("evaluation-fixed-steps3-seed1", "evaluation-oracle_feedback-steps7-seed0", "floor-steps7"):
        cell_file(part, name).unlink()
    (part / "table.csv").unlink()
    assert main(["study", "schedules", "--out", str(part), "--report-only"]) == 0
    told = capsys.readouterr().out
    assert "Not finished: 19 of 20 evaluations at 3 steps, 9 of 9 evaluations at 4 steps, 8 of 9" in told
    assert "evaluation-fixed-steps3-seed1" not in (part / "table.csv").read_text()
    left = load_results(STUDY, RunFolder.open(part, kind=STUDY.kind))
    assert len(values(left, "fixed", 3, "energy")) == 1
    assert "fixed" not in compared(left, 3, "constant")
    for cell in (part / "cells").glob("evaluation-*"):
        cell.unlink()
    with pytest.raises(RunFolderError, match="no evaluation yet"):
        write_page(load_results(STUDY, RunFolder.open(part, kind=STUDY.kind)))


def test_settings_are_read_back_as_they_were_written() -> None:
    assert SchedulesStudyConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    assert CONFIG.at(7).n_steps == 7
    assert (CONFIG.at(3).eval_images, CONFIG.at(3).seeds) == (24, 2)
    assert CONFIG.study.n_steps == 3
    order = list(STUDY.cells_of(CONFIG))
    assert order.index("training-matched_pathwise-seed0") > order.index("evaluation-free_schedule-steps3-seed1")
    assert order.index("constant-1-steps4") > order.index("evaluation-greedy_search-steps3-seed1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_steps": 5}, r"train_steps holds \[5\], which are not in steps"),
        ({"tuned": (4,)}, "must hold train_steps, 3"),
        ({"tuned": (3, 9)}, r"tuned holds \[9\]"),
        ({"images": (20, 20)}, "images must be one number or 3"),
        ({"images": (10,)}, "from 20 on"),
        ({"seeds": (0,)}, "seeds must be one number or 3"),
        ({"steps": (3, 3)}, "different numbers"),
        ({"fixed": -1.0}, "fixed must be a finite scale"),
        ({"study": CONFIG.study.replace(models=ModelConfig(pipeline="coloured-digits"))}, "leave --pipeline out"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        CONFIG.replace(**changes)


def test_a_network_that_evaluates_is_no_reward(tmp_path: Path) -> None:
    for name in ("judge.th", "other.th"):
        (tmp_path / name).touch()
    judge, other = str(tmp_path / "judge.th"), str(tmp_path / "other.th")
    models = ModelConfig(data="cifar10", evaluation_classifier=judge)
    GuidanceStudyConfig(models=models, reward=RewardConfig(distribution_features=f"classifier+{other}"))
    for reward in (RewardConfig(distribution_features=judge), RewardConfig(distribution_features=f"{other}+{judge}")):
        with pytest.raises(InvalidInputError, match="must stay unseen"):
            GuidanceStudyConfig(models=models, reward=reward)
    with pytest.raises(InvalidInputError, match="must stay unseen"):
        GuidanceStudyConfig(models=models.replace(reward_classifier=judge))
