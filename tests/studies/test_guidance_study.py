"""A whole study, as small as it can be: sweep, tuning, training, evaluation, results, report, resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from qhw_diffusion.cli import main
from qhw_diffusion.errors import DamagedFileError, RunFolderError
from qhw_diffusion.guidance import PPOConfig
from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies import analysis, study_work
from qhw_diffusion.studies.demo import finish
from qhw_diffusion.studies.guidance_report import render_markdown
from qhw_diffusion.studies.guidance_study import open_study, plan, run_study
from qhw_diffusion.studies.settings import StudyConfig

CONFIG = StudyConfig(
    n_steps=3,
    spacing="trailing",
    seeds=2,
    constants=(1.0, 1.5),
    sweep_images=40,
    tune_images=24,
    tune_means=(1.0,),
    eval_images=40,
    starts=32,
    actors=("quantum", "annealing"),
    ppo=PPOConfig(updates=2, num_envs=24, checkpoint_every=1),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = open_study(tmp_path_factory.mktemp("study") / "run", CONFIG, command="qhw study guidance …")
    run_study(run, workers=1)
    return run


@pytest.fixture(scope="module")
def results(finished: RunFolder) -> analysis.Results:
    return analysis.load_results(finished)


@pytest.mark.slow
def test_every_controller_has_every_seed(results: analysis.Results) -> None:
    assert set(results.values) == set(CONFIG.evaluated())
    for metrics in results.values.values():
        assert {"fd", "kd", "accuracy", "diversity", "precision", "recall", "return"} <= set(metrics)
        assert all(len(values) == 2 and np.all(np.isfinite(values)) for values in metrics.values())
    assert {"quantum@ideal", "quantum@untrained"} <= set(results.values)
    assert results.details["quantum"]["circuits"] == 40 * 3
    assert results.details["constant"]["parameters"] == 0
    assert all(min(line) > 0 for line in results.curves["quantum"]["gradients/circuit"])
    assert len(results.floor["fd"]) == 2


@pytest.mark.slow
def test_choices_are_made_on_the_reward_side(finished: RunFolder, results: analysis.Results) -> None:
    by_reward = min(results.sweep, key=lambda row: row["reward_distance"])["g"]
    assert results.best_constant == by_reward
    assert results.guidance["g0"] == by_reward
    tuned = [json.loads(file.read_text()) for file in (finished.path / "sweep").iterdir()]
    assert all(row["judged"] is None for row in tuned if row["schedule"]["name"] != "constant")


@pytest.mark.slow
def test_rivals_share_starts_and_the_constant_can_be_recomputed(finished: RunFolder, results: analysis.Results) -> None:
    from qhw_diffusion.diffusion import GuidedDDIM, evaluate_samples
    from qhw_diffusion.studies.models import draw_starts

    _, models = study_work.context(str(finished.path))
    labels, noise = draw_starts(models.backbone, models.heldout, 40, study_work.EVALUATION_SEED + 1)
    images = GuidedDDIM(models.backbone, 3, spacing="trailing").sample(labels, results.best_constant, noise)
    judged = evaluate_samples(images, labels, models.judge, models.heldout)
    assert results.values["constant"]["fd"][1] == pytest.approx(judged["fd"], rel=1e-4)
    for name in ("linear_up", "quantum"):
        kept = study_work.read_samples(finished.path, name, 1)
        assert kept["labels"].tolist() == labels[:40].tolist()
        assert kept["g"].shape == (3, 40)


@pytest.mark.slow
def test_paired_tests_are_those_of_scipy(results: analysis.Results) -> None:
    tests = analysis.rival_tests(results, "constant")
    assert set(tests) == set(results.values) - {"constant", "quantum@untrained"}
    expected = stats.ttest_rel(results.values["linear_up"]["fd"], results.values["constant"]["fd"]).pvalue
    assert tests["linear_up"].t_p == pytest.approx(expected)
    assert all(test.p_holm >= test.t_p for test in tests.values())


@pytest.mark.slow
def test_report_and_pages_say_what_the_numbers_say(
    finished: RunFolder, results: analysis.Results, tmp_path: Path
) -> None:
    told = finish(finished, title="Tiny", command="qhw study guidance --seeds 2")
    html = (finished.path / "report.html").read_text()
    sentences, _ = analysis.verdict(results)
    winners = [
        t for t in analysis.rival_tests(results, "constant").values() if t.significant() and t.difference.mean < 0
    ]
    assert ("Nobody beat" in sentences[0]) == (not winners)
    assert sentences[0].split("**")[-1].strip() in html.replace("&#39;", "'")
    assert "report.html" in told
    for heading in ("Samples", "Paired tests", "Learning", "Diagnostics", "The circuit", "How to reproduce"):
        assert f">{heading}</h2>" in html
    assert html.count("<img ") == 9
    assert "156" in html
    mean = np.mean(results.values["quantum"]["fd"])
    assert f'{mean:.2f}<span class="interval">[' in html
    saved = json.loads((finished.path / "results.json").read_text())
    assert saved["values"]["quantum"]["fd"] == results.values["quantum"]["fd"]
    page = render_markdown(results, title="Tiny", command="qhw …", path=tmp_path / "page.md").read_text()
    assert f"{mean:.2f} [" in page
    assert page.count("| --- |") >= 5


@pytest.mark.slow
def test_a_finished_study_does_nothing_again_and_a_missing_piece_alone_is_redone(finished: RunFolder) -> None:
    lost = study_work.evaluation_file(finished.path, "quantum", 1)
    before = {file: file.stat().st_mtime_ns for file in finished.path.rglob("*.json") if file != lost}
    content = json.loads(lost.read_text())
    lost.unlink()
    with pytest.raises(RunFolderError, match="missing"):
        analysis.load_results(finished)
    run = open_study(finished.path, CONFIG, resume=True)
    run_study(run, workers=1)
    again = json.loads(lost.read_text())
    assert again["judged"] == content["judged"]
    lost.write_text(json.dumps({"controller": "quantum"}))
    with pytest.raises(DamagedFileError, match="'judged'"):
        analysis.load_results(finished)
    lost.write_text(json.dumps(content)[:-30])
    with pytest.raises(DamagedFileError, match="readable JSON"):
        analysis.load_results(finished)
    lost.write_text(json.dumps(content))
    changed = [file for file, when in before.items() if file.stat().st_mtime_ns != when]
    assert [file.name for file in changed] in ([], ["choices.json"])


@pytest.mark.slow
def test_a_training_without_checkpoint_is_begun_again_and_one_with_goes_on(finished: RunFolder, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished.path, root)
    folder = study_work.training_folder(root, "annealing", 0)
    weights = (folder / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "model")
    study_work.train_actor(str(root), "annealing", 0)
    assert (folder / "model" / "model.safetensors").read_bytes() == weights
    shutil.rmtree(folder / "model")
    (folder / "checkpoint.safetensors").unlink()
    assert not study_work.training_done(root, "annealing", 0, 2)
    study_work.train_actor(str(root), "annealing", 0)
    assert (folder / "model" / "model.safetensors").read_bytes() == weights
    study_work.context.cache_clear()


@pytest.mark.slow
def test_other_settings_cannot_resume_a_study(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunFolderError, match="seeds"):
        open_study(finished.path, CONFIG.replace(seeds=3), resume=True)
    with pytest.raises(RunFolderError, match="not an empty folder"):
        open_study(finished.path, CONFIG)
    assert main(["study", "guidance", "--out", str(finished.path), "--resume", "--seeds", "4"]) == 2
    assert "seeds" in capsys.readouterr().err
    assert main(["study", "guidance", "--out", str(finished.path), "--report-only"]) == 0
    assert "report.html" in capsys.readouterr().out


def test_the_plan_counts_what_will_be_done() -> None:
    stages = {stage.name: stage for stage in plan(CONFIG)}
    assert stages["trainings"].pieces == 4
    assert stages["trainings"].evaluations == 4 * 2 * 24 * 2 * 3
    assert stages["evaluations"].pieces == 2 * len(CONFIG.evaluated())
    assert stages["sweep of constants"].evaluations == 2 * 40 * 6


@pytest.mark.slow
def test_one_seed_claims_nothing(finished: RunFolder) -> None:
    single = RunFolder(finished.path, CONFIG.replace(seeds=1).to_dict(), finished.manifest)
    sentences, tone = analysis.verdict(analysis.load_results(single))
    assert "nothing can be said" in sentences[0]
    assert tone == "caution"
