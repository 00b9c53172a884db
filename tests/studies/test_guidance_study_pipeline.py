"""The guidance study on the embedded text-to-image pipeline, as small as it can be, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from qhw_diffusion.diffusion.text_to_image import DIGITS, HELD_OUT, PROMPTS, TEN, PromptClassifier, attributes_of
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.experiment import Results, load_study, open_study, run_study, write_page
from qhw_diffusion.guidance import PathwiseConfig, load_policy
from qhw_diffusion.guidance.config import ModelConfig
from qhw_diffusion.guidance.evaluation import table_of_prompts
from qhw_diffusion.studies.guidance import experiment
from qhw_diffusion.studies.guidance.experiment import DEMO, DEMO_QUICK, GuidanceStudyConfig
from qhw_diffusion.studies.guidance.numbers import read_samples, values

STUDY = load_study("guidance")
CONFIG = DEMO_QUICK.replace(
    policies=("matched_pathwise",),
    schedules=("class_schedule",),
    n_steps=2,
    seeds=1,
    constants=(1.0, 1.5),
    sweep_images=20,
    tune_images=20,
    eval_images=20,
    pathwise=PathwiseConfig(num_iterations=1, num_images=20),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results[GuidanceStudyConfig]]:
    """With 200 real images of the prompts in place of 1,200, and 20 in place of 200 for the scale of the reward."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qhw_diffusion.diffusion.text_to_image.images._AT_LEAST", 200)
        patch.setattr("qhw_diffusion.guidance.training._CALIBRATION_IMAGES", 20)
        experiment.models_of.cache_clear()
        yield run_study(STUDY, open_study(STUDY, tmp_path_factory.mktemp("study") / "run", CONFIG))
    experiment.models_of.cache_clear()


@pytest.mark.slow
def test_everything_is_measured_by_classifiers_of_the_prompts(results: Results[GuidanceStudyConfig]) -> None:
    assert CONFIG.evaluated() == ("constant", "class_schedule", "matched_pathwise")
    for name in CONFIG.evaluated():
        for metric in ("energy", "fd", "accuracy", "return", "reward_distance"):
            assert len(values(results, name, metric)) == 1, (name, metric)
    assert results.cells["calibration"]["captions"] == list(TEN)
    # looked at again by the classifier itself: every kept image was made for its prompt
    judge = PromptClassifier.load("coloured-digits", "evaluation").for_prompts(TEN)
    kept = read_samples(results.folder, "constant", 0)
    right = (judge.logits(kept["images"]).argmax(1) == kept["labels"]).double().mean()
    assert values(results, "constant", "accuracy")[0] == pytest.approx(float(right), abs=0.051)  # of 20, 8-bit pixels
    assert kept["g_labels"].tolist() == kept["labels"].tolist()


@pytest.mark.slow
def test_the_page_shows_prompts_and_images_first(results: Results[GuidanceStudyConfig]) -> None:
    html = write_page(results)[1].read_text()
    assert html.index(">Prompts and images</h2>") < html.index(">Headroom</h2>") < html.index(">What came out</h2>")
    assert "text-to-image pipeline coloured-digits, 10 prompts" in html


@pytest.mark.slow
def test_its_policies_are_for_the_pipeline(results: Results[GuidanceStudyConfig]) -> None:
    trained = load_policy(experiment.training_folder(results.folder, "matched_pathwise", 0))
    assert trained.config.dataset == "coloured-digits"
    assert trained.config.scorer == "qhw_diffusion.diffusion.text_to_image.scorers:reward"
    assert not trained.config.confidence_entry
    assert trained.config.extra_state


def test_a_study_needs_what_compares_images() -> None:
    for changed, message in (
        ({"models": DEMO.models.replace(data="digits")}, rf"is --data {DEMO.models.data}$"),
        ({"models": DEMO.models.replace(data="digits")}, "no real images of the prompts"),
        ({"scorer": "classifier"}, rf"has no reward classifier.*is --scorer {DEMO.scorer}$"),
        (
            {"models": DEMO.models.replace(evaluation_classifier=None)},
            rf"has no evaluation classifier.*is --evaluation-classifier {DEMO.models.evaluation_classifier}$",
        ),
        ({"scorer": f"{__name__}:likes_everything"}, "scorer 'likes_everything' cannot compare images"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            STUDY.check(CONFIG.replace(**changed))
    with pytest.raises(UnknownNameError, match="free_schedule"):
        GuidanceStudyConfig(schedules=("free",))
    with pytest.raises(InvalidInputError, match="named twice"):
        GuidanceStudyConfig(schedules=("free_schedule", "free_schedule"))


def likes_everything(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).mean(1).sigmoid()


WRONG = "a table"
ONE = ("a red zero on a white ground",)


def test_a_table_of_prompts_may_be_an_own_one(tmp_path: Path) -> None:
    assert table_of_prompts(DEMO.models) == TEN
    assert set(TEN) <= set(PROMPTS)
    assert attributes_of(TEN)[:, 0].tolist() == list(range(len(DIGITS)))
    assert set(attributes_of(TEN)[:, 1].tolist()) == set(attributes_of(TEN)[:, 2].tolist()) == set(range(6))
    held = {PROMPTS[label] for label in HELD_OUT.tolist()}
    assert [text.split()[2] for text in TEN if text in held] == ["one", "two", "seven", "eight"]
    for name, message in (("WRONG", "is no list of texts"), ("ONE", "holds one prompt")):
        with pytest.raises(InvalidInputError, match=message):
            table_of_prompts(ModelConfig(pipeline="coloured-digits", prompts=f"{__name__}:{name}"))
