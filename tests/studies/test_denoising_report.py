"""What the report says, from made-up numbers whose verdict is known, and from a tiny study."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from qhw_diffusion.denoising.command import REVERSE, TRAIN
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.experiment import Results, load_study, plots
from qhw_diffusion.experiment.command import study_command
from qhw_diffusion.studies.denoising import page as says
from qhw_diffusion.studies.denoising.experiment import DenoisingConfig
from qhw_diffusion.studies.denoising.page import row_label

JITTER = np.random.default_rng(7).normal(0, 0.15, (20, 5))
STUDY = load_study("denoising")


def made_up(
    fd: dict[str, float],
    accuracy: dict[str, float],
    seeds: int = 5,
    *,
    energy: dict[str, float] | None = None,
    **settings: Any,
) -> Results[DenoisingConfig]:
    """Results with these means, FD 20 and accuracy .5 elsewhere; every row jitters on its own.

    With `energy`, energy distances too, 2 elsewhere; without it as an earlier version kept them.
    """
    config = DenoisingConfig(seeds=seeds, **settings)
    cells: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(config.rows()):
        jitter = (JITTER[number] - JITTER[number].mean())[:seeds]
        for seed, j in enumerate(jitter):
            cells[f"{row}-{seed}"] = {
                "parameters": {"row": row, "seed": seed}, "fd": fd.get(row, 20.0) + j, "diversity": 1.0,
                "accuracy": accuracy.get(row, 0.5) + j / 100, "infidelity": 0.1, "visible": 0.1, "kept_shots": 160.0,
                "lost_images": 1, "n_parameters": 10, **({"success": 0.04} if row.startswith("postselected") else {}),
                **({} if energy is None else {"energy": energy.get(row, 2.0) + j / 10}),
            }  # fmt: skip
    floor = {"fd": 2.0, "accuracy": 1.0, "diversity": 1.0, **({} if energy is None else {"energy": 0.1})}
    rows = [{"kind": kind, "seed": seed, **floor} for seed in range(seeds) for kind in ("real", "encoded")]
    cells["real"] = {"parameters": {}, "rows": rows}
    return Results(STUDY, Path("nowhere"), config, {}, cells)


CLEAR = (
    {"frozen": 50.0, "bypass": 60.0, "linear": 10.0, "contraction": 3.0, "feedforward": 6.0},
    {"frozen": 0.1, "bypass": 0.1},
)


def test_a_clear_success_is_called_one_and_the_ceiling_is_judged_both_ways() -> None:
    sentences, tone = says.findings(made_up(*CLEAR))
    assert tone == "good"
    assert sentences[0].startswith("The trained circuit does the work")
    assert "model is behind the linear map in closed form and is behind the trained one" in sentences[0]
    assert "with feed-forward beats the linear map in closed form and is behind the trained one" in sentences[0]
    random = next(s for s in sentences if "random one?" in s)
    assert re.search(r"FD -30\.00 \[-30.*better; accuracy \+40\.0 .*better\.$", random)
    ceiling = next(s for s in sentences if "pass the linear map in closed form" in s)
    assert re.search(r"FD -4\.00 .*: better", ceiling)
    assert "p = 0.0625" in sentences[-1]


def test_energy_distance_leads_and_frechet_distance_stands_beside() -> None:
    """What the energy says decides, whatever FD says: here FD calls the random circuit better."""
    results = made_up({"frozen": 5.0, "bypass": 5.0}, CLEAR[1], energy={"frozen": 6.0, "bypass": 6.0, "linear": 1.0})
    sentences, tone = says.findings(results)
    assert tone == "good"
    assert "the bypassed one in energy distance and in accuracy" in sentences[0]
    random = next(s for s in sentences if "random one?" in s)
    assert re.search(r"energy -4\.000 \[.*better; FD \+15\.00 .*worse; accuracy .*better\.$", random)
    columns, rows = says.results_table(results)
    assert [column.split(" ")[0] for column in columns[1:4]] == ["energy", "FD", "accuracy"]
    assert next(row for row in rows if row[0] == row_label("frozen"))[1].startswith("6.000 [")
    assert says.results_table(made_up(*CLEAR))[0][1] == "FD [95 %]"


def test_what_training_under_noise_takes_back_is_a_share_of_what_the_device_adds() -> None:
    energy = {"postselected": 1.0, "postselected@noisy": 3.0, "noise@noisy": 1.5, "othernoise@noisy": 2.5,
              "longer@noisy": 3.0, "postselected@sampler": 5.0, "noise@sampler": 3.0}  # fmt: skip
    variants = ("postselected", "noise", "othernoise", "longer")
    results = made_up({}, {}, energy=energy, variants=variants, primitives=("sampler",))
    assert np.mean(says.returned_share(results, "energy", "noise", "noisy")) == pytest.approx(0.75, abs=0.03)
    told = [s for s in says.findings(results)[0] if "takes back" in s]
    assert len(told) == 2
    nothing = made_up({}, {}, energy={}, variants=variants)  # no cost, no share of it
    assert not any("takes back" in s for s in says.findings(nothing)[0])
    assert re.search(
        r"with the device's noise.* 7[3-7] \[.*trained under noise\), 2[3-7] \[.*another device's", told[0]
    )
    assert re.search(r"by a Sampler.* (49|50|51) \[", told[1])
    rows = results.config.rows()
    assert {f"{v}@sampler" for v in variants} < set(rows)
    assert not any(row.endswith("@estimator") for row in rows)
    asked = {q.text for q in says.asked(results.config)}
    assert {"Does the right calibration matter?", "By a Sampler, too?"} < asked
    assert "Does readout inversion help?" not in asked


def test_no_difference_is_called_none() -> None:
    sentences, tone = says.findings(made_up({}, {}))
    assert tone == "caution"
    assert "**not** shown" in sentences[0]
    assert "is not told apart from the linear map in closed form" in sentences[0]
    assert all("no difference beyond chance" in s for s in sentences[1:-1] if "by chance?" not in s)


def test_worse_than_the_controls_is_no_success() -> None:
    sentences, tone = says.findings(made_up({"frozen": 5.0, "bypass": 5.0}, {"frozen": 0.9, "bypass": 0.9}))
    assert tone == "caution"
    assert "worse; accuracy" in next(s for s in sentences if "random one?" in s)


def test_at_chance_level_nothing_is_recognised() -> None:
    fd, accuracy = CLEAR
    at_chance = dict.fromkeys(DenoisingConfig().rows(), 0.1)
    sentences, tone = says.findings(made_up(fd, {**accuracy, **at_chance}))
    assert tone == "caution"
    assert "no difference beyond chance" in next(s for s in sentences if "than by chance?" in s)


def test_one_seed_claims_nothing() -> None:
    results = made_up(*CLEAR, seeds=1)
    sentences, tone = says.findings(results)
    assert tone == "caution"
    assert "nothing can be said" in sentences[0]
    assert says.tests_table(results, "fd")[1] == []


def test_questions_are_one_holm_family() -> None:
    results = made_up(*CLEAR)
    tests = says.question_tests(results, "fd")
    assert len(tests) == len(says.asked(results.config)) - 1  # chance has no Fréchet distance
    raw = [stats.ttest_rel(results.values("fd", row=q.row), results.values("fd", row=q.against)).pvalue for q in tests]
    order, running = np.argsort(raw), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, raw[index] * (len(raw) - rank)))
        assert list(tests.values())[index].p_holm == pytest.approx(running)
    chance = next(q for q in says.QUESTIONS if q.against == says.CHANCE)
    test = says.question_tests(results, "accuracy")[chance]
    assert test.t_p == pytest.approx(stats.ttest_1samp(results.values("accuracy", row="postselected"), 0.1).pvalue)


def test_shots_of_the_table_keep_a_thousand() -> None:
    columns, rows = says.success_table(made_up({}, {}))
    row = next(r for r in rows if r[0] == row_label("postselected@shots"))
    sent = int(row[columns.index("shots to keep 1,000")].replace(",", ""))
    success = made_up({}, {}).values("success", row="postselected")[0]
    assert stats.binom.sf(999, sent, success) >= 0.95 > stats.binom.sf(999, sent - 1, success)
    assert row[-1] == "5 of 3,000"
    assert row_label("classical") not in [r[0] for r in rows]


def test_reverse_paths_put_every_step_in_its_place() -> None:
    path = np.full((3, 2, 1, 4, 4), -1.0)
    path[2, 1] = 1.0  # t = 0 of the second label
    picture = plots.reverse_paths({"a": path}, [4, 9]).axes[0].images[0].get_array()
    assert picture.shape == (2 * 5, 3 * 5)
    assert np.all(picture[5:9, 10:14] == 1)
    assert np.all(picture[:4, :14][:, :4] == 0)
    with pytest.raises(InvalidInputError, match="shape"):
        plots.reverse_paths({"a": path}, [4])
    with pytest.raises(InvalidInputError, match="at least one"):
        plots.reverse_paths({}, [])


def test_steps_run_from_noise_to_data() -> None:
    axis = plots.by_step({"a": [[0.5, 0.4, 0.1], [0.5, 0.2, 0.1]]}, ylabel="y").axes[0]
    mean = axis.lines[-1]
    assert list(mean.get_xdata()) == [2, 1, 0]
    assert np.allclose(mean.get_ydata(), [0.5, 0.3, 0.1])
    left, right = axis.get_xlim()
    assert left > right


@pytest.mark.slow
def test_one_seed_of_pixels_has_a_page_too(tmp_path: Path) -> None:
    config = DenoisingConfig(
        classes=(0, 1),
        variants=("postselected",),
        model="amplitude",
        reverse=REVERSE.replace(n_steps=1, depth=1),
        train=TRAIN.replace(iterations=2, batch_size=4, targets=8, similarity="fidelity"),
        device="fake_lagosv2",
        eval_images=20,
        seeds=1,
    )
    told = study_command(STUDY, config, tmp_path / "run", markdown=tmp_path / "page.md")
    assert "One seed only" in told
    text = (tmp_path / "page.md").read_text()
    assert "images are magnitudes of amplitudes, pixel by pixel" in text
    assert "in the amplitudes of pixels" in text
    assert "Paired tests need at least two seeds" in text
    assert "autoencoder (" not in text
