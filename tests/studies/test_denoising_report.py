"""What the report says, from made-up numbers whose verdict is known, and from a tiny study."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.experiment import plots as denoising_figures
from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies import denoising_verdict as says
from qhw_diffusion.studies.denoising_commands import finish
from qhw_diffusion.studies.denoising_report import render_markdown
from qhw_diffusion.studies.denoising_settings import DenoisingStudyConfig, row_label
from qhw_diffusion.studies.denoising_study import DenoisingResults, load_denoising_results

JITTER = np.random.default_rng(7).normal(0, 0.15, (20, 5))


def made_up(fd: dict[str, float], accuracy: dict[str, float], seeds: int = 5) -> DenoisingResults:
    """Results with these means, FD 20 and accuracy .5 elsewhere; every row jitters on its own."""
    config = DenoisingStudyConfig(seeds=seeds)
    rows = {}
    for number, row in enumerate(config.rows()):
        jitter = (JITTER[number] - JITTER[number].mean())[:seeds]
        rows[row] = [
            {"fd": fd.get(row, 20.0) + j, "accuracy": accuracy.get(row, 0.5) + j / 100, "diversity": 1.0,
             "infidelity": 0.1, "visible": 0.1, "success": 0.04 if row.startswith("postselected") else None,
             "kept_shots": 160.0,
             "lost_images": 1, "parameters": 10, "seed": seed}
            for seed, j in enumerate(jitter)
        ]  # fmt: skip
    floor = {kind: [{"fd": 2.0, "accuracy": 1.0, "diversity": 1.0}] * seeds for kind in ("real", "encoded")}
    return DenoisingResults(Path("nowhere"), config, rows, floor, {})


CLEAR = (
    {"frozen": 50.0, "bypass": 60.0, "linear": 10.0, "contraction": 3.0, "feedforward": 6.0},
    {"frozen": 0.1, "bypass": 0.1},
)


def test_a_clear_success_is_called_one_and_the_ceiling_is_judged_both_ways() -> None:
    sentences, tone = says.verdict(made_up(*CLEAR))
    assert tone == "good"
    assert sentences[0].startswith("The trained circuit does the work")
    assert "chain is behind the linear map in closed form and is behind the trained one" in sentences[0]
    assert "with feed-forward beats the linear map in closed form and is behind the trained one" in sentences[0]
    random = next(s for s in sentences if "random one?" in s)
    assert re.search(r"FD -30\.00 \[-30.*better; accuracy \+40\.0 .*better\.$", random)
    ceiling = next(s for s in sentences if "pass the linear map in closed form" in s)
    assert re.search(r"FD -4\.00 .*: better", ceiling)
    assert "p = 0.0625" in sentences[-1]


def test_no_difference_is_called_none() -> None:
    sentences, tone = says.verdict(made_up({}, {}))
    assert tone == "caution"
    assert "**not** shown" in sentences[0]
    assert "is not told apart from the linear map in closed form" in sentences[0]
    assert all("no difference beyond chance" in s for s in sentences[1:-1] if "by chance?" not in s)


def test_worse_than_the_controls_is_no_success() -> None:
    sentences, tone = says.verdict(made_up({"frozen": 5.0, "bypass": 5.0}, {"frozen": 0.9, "bypass": 0.9}))
    assert tone == "caution"
    assert "worse; accuracy" in next(s for s in sentences if "random one?" in s)


def test_at_chance_level_nothing_is_recognised() -> None:
    fd, accuracy = CLEAR
    at_chance = dict.fromkeys(DenoisingStudyConfig().rows(), 0.1)
    sentences, tone = says.verdict(made_up(fd, {**accuracy, **at_chance}))
    assert tone == "caution"
    assert "no difference beyond chance" in next(s for s in sentences if "than by chance?" in s)


def test_one_seed_claims_nothing() -> None:
    results = made_up(*CLEAR, seeds=1)
    sentences, tone = says.verdict(results)
    assert tone == "caution"
    assert "nothing can be said" in sentences[0]
    assert says.tests_table(results, "fd")[1] == []


def test_questions_are_one_holm_family() -> None:
    results = made_up(*CLEAR)
    tests = says.question_tests(results, "fd")
    assert len(tests) == len(says.asked(results)) - 1  # chance has no Fréchet distance
    raw = [stats.ttest_rel(results.values(q.row, "fd"), results.values(q.against, "fd")).pvalue for q in tests]
    order, running = np.argsort(raw), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, raw[index] * (len(raw) - rank)))
        assert list(tests.values())[index].p_holm == pytest.approx(running)
    chance = next(q for q in says.QUESTIONS if q.against == says.CHANCE)
    test = says.question_tests(results, "accuracy")[chance]
    assert test.t_p == pytest.approx(stats.ttest_1samp(results.values("postselected", "accuracy"), 0.1).pvalue)


def test_shots_of_the_table_keep_a_thousand() -> None:
    columns, rows = says.success_table(made_up({}, {}))
    row = next(r for r in rows if r[0] == row_label("postselected@shots"))
    sent = int(row[columns.index("shots to keep 1,000")].replace(",", ""))
    success = made_up({}, {}).values("postselected", "success")[0]
    assert stats.binom.sf(999, sent, success) >= 0.95 > stats.binom.sf(999, sent - 1, success)
    assert row[-1] == "5 of 3,000"
    assert row_label("classical") not in [r[0] for r in rows]


def test_reverse_paths_put_every_step_in_its_place() -> None:
    path = np.full((3, 2, 1, 4, 4), -1.0)
    path[2, 1] = 1.0  # t = 0 of the second label
    picture = denoising_figures.reverse_paths({"a": path}, [4, 9]).axes[0].images[0].get_array()
    assert picture.shape == (2 * 5, 3 * 5)
    assert np.all(picture[5:9, 10:14] == 1)
    assert np.all(picture[:4, :14][:, :4] == 0)
    with pytest.raises(InvalidInputError, match="shape"):
        denoising_figures.reverse_paths({"a": path}, [4])
    with pytest.raises(InvalidInputError, match="at least one"):
        denoising_figures.reverse_paths({}, [])


def test_steps_run_from_noise_to_data() -> None:
    axis = denoising_figures.by_step({"a": [[0.5, 0.4, 0.1], [0.5, 0.2, 0.1]]}, ylabel="y").axes[0]
    mean = axis.lines[-1]
    assert list(mean.get_xdata()) == [2, 1, 0]
    assert np.allclose(mean.get_ydata(), [0.5, 0.3, 0.1])
    left, right = axis.get_xlim()
    assert left > right


@pytest.mark.slow
def test_the_report_of_a_study_has_every_row_figure_and_section(tiny_denoising: RunFolder, tmp_path: Path) -> None:
    told = finish(tiny_denoising, title="Tiny", command="qhw study denoising --seeds 2")
    results = load_denoising_results(tiny_denoising)
    html = (tiny_denoising.path / "report.html").read_text().replace("&#39;", "'")
    assert "report.html" in told
    for heading in ("What came out", "What was trained", "Samples", "Paired tests", "The reverse process, step by step",
                    "Success probability and shots", "Training", "The circuit on the device",
                    "What a device can give", "How to reproduce"):  # fmt: skip
        assert f">{heading}</h2>" in html
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 7
    assert all(re.search(r'alt="[^"]{30,}"', image) for image in images)
    for row in results.rows:
        assert row_label(row) in html
        assert row_label(row) in told
        interval = results.interval(row, "fd")
        assert interval is not None
        assert f"{interval.mean:.2f}" in html
    sentences, _ = says.verdict(results)
    assert re.sub(r"\*\*", "", sentences[0])[:60] in re.sub(r"</?strong>", "", html)
    assert "not</strong> Inception FID" in html
    assert "qhw study denoising --seeds 2" in html
    assert not math.isnan(results.floor_interval("encoded", "fd").mean)
    assert "fake_manila" in html
    page = render_markdown(results, title="Tiny", command="qhw …", path=tmp_path / "page.md").read_text()
    assert page.count("| --- |") >= 5
    assert all(row_label(row) in page for row in results.rows)
