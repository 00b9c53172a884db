"""What comes with the package: the pipeline of the coloured digits and its two classifiers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import logs
import pytest
import torch

from qhw_diffusion.cli import main
from qhw_diffusion.diffusion import text_to_image as t2i
from qhw_diffusion.diffusion.weights import SHIPPED
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.extensions import load_extension
from qhw_diffusion.guidance.rewards import Distribution
from qhw_diffusion.guidance.scorers import as_scorer, check_scorer, score
from qhw_diffusion.runs import RunFolder

SCORERS = "qhw_diffusion.diffusion.text_to_image.scorers"


@pytest.fixture(scope="module")
def classifier() -> t2i.PromptClassifier:
    return t2i.PromptClassifier.load(t2i.NAME, "evaluation")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """Read by diffusers alone, as anybody reads a folder."""
    from diffusers import StableDiffusionPipeline

    plain = StableDiffusionPipeline.from_pretrained(SHIPPED / t2i.NAME, low_cpu_mem_usage=False)
    plain.set_progress_bar_config(disable=True)
    return plain


def test_it_is_small_and_described() -> None:
    folders = [SHIPPED / name for name in (t2i.NAME, f"{t2i.NAME}-reward", f"{t2i.NAME}-evaluation")]
    assert sum(file.stat().st_size for folder in folders for file in folder.rglob("*")) < 8_000_000
    recipe = json.loads((folders[0] / "recipe.json").read_text())
    assert t2i.TextToImageConfig.from_dict(recipe["config"]) == t2i.TextToImageConfig()
    assert recipe["history"]["unet"][-1]["step"] == t2i.TextToImageConfig().steps
    for role in ("reward", "evaluation"):
        assert t2i.PromptClassifier.load(t2i.NAME, role).config == t2i.PromptClassifierConfig.for_role(role)


def test_images_show_what_prompts_ask_for(pipeline: Any, classifier: t2i.PromptClassifier) -> None:
    labels = torch.cat([t2i.TRAINED[::8], t2i.HELD_OUT[::2]]).repeat(2)
    images = t2i.sample_prompts(pipeline, [t2i.PROMPTS[i] for i in labels], scale=3.0, steps=10)
    real = t2i.coloured_digits("heldout", prompts=t2i.PROMPTS)
    judge = t2i.PromptJudge(classifier, real.subset(torch.isin(real.labels, labels).nonzero().squeeze(1)))
    found = judge(images, labels)
    for shown in (found.accuracy(~found.held_out), found.accuracy(found.held_out)):
        # measured on all prompts: 98 % of the digits, every colour and ground (docs/text-to-image.md)
        assert shown["digit"] > 0.9
        assert min(shown["colour"], shown["ground"]) > 0.98
    # another prompt from the same noise is another image: nothing of this is chance
    wrong = judge(images, labels.roll(7))
    assert wrong.accuracy()["all"] < 0.1
    assert wrong.energy > 2 * found.energy


def test_guidance_matters_and_the_seed_decides(pipeline: Any) -> None:
    prompts = [t2i.PROMPTS[0], t2i.PROMPTS[-1]]
    images = [
        t2i.sample_prompts(pipeline, prompts, scale=g, steps=2, seed=s) for g, s in ((2, 0), (2, 0), (5, 0), (2, 1))
    ]
    assert torch.equal(images[0], images[1])
    for other in images[2:]:
        assert not torch.allclose(images[0], other, atol=0.05)


@pytest.mark.parametrize("role", ["reward", "evaluation"])
def test_classifiers_recognise_real_images_of_unseen_digits(role: str) -> None:
    classifier = t2i.PromptClassifier.load(t2i.NAME, role)
    labels = torch.arange(300)
    images = t2i.draw(t2i.ATTRIBUTE_TABLE[labels], torch.Generator().manual_seed(5), "heldout")
    found = t2i.attribute_accuracy(classifier, images, t2i.ATTRIBUTE_TABLE[labels])
    assert found["digit"] > 0.9
    assert min(found["colour"], found["ground"]) > 0.99
    assert found["all"] == pytest.approx(classifier.accuracy["all"], abs=0.04)
    assert not any(p.requires_grad for p in classifier.parameters())


def test_scorers_have_names_and_the_evaluation_classifier_gives_no_rewards() -> None:
    reward = as_scorer(load_extension(f"{SCORERS}:reward", what="scorer"))
    check_scorer(reward, (3, 32, 32), 300, needs_features=True)
    table = [t2i.PROMPTS[10], t2i.PROMPTS[250]]
    images = t2i.draw(t2i.attributes_of(table), torch.Generator().manual_seed(0), "heldout")
    right = score(reward.for_prompts(table), images, torch.tensor([0, 1])).probability
    swapped = score(reward.for_prompts(table), images, torch.tensor([1, 0])).probability
    assert right.min() > 0.5 > 0.01 > swapped.max()
    with pytest.raises(InvalidInputError, match="role 'evaluation'"):
        as_scorer(load_extension(f"{SCORERS}:evaluation", what="scorer"))
    with pytest.raises(InvalidInputError, match="has no 'judge'"):
        load_extension(f"{SCORERS}:judge", what="scorer")


def test_the_judge_agrees_with_the_rewards_distance_and_refuses_the_reward_classifier(
    classifier: t2i.PromptClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qhw_diffusion.diffusion.text_to_image.images._AT_LEAST", 0)  # real images: 16 of each prompt
    table = t2i.PROMPTS[:30]
    labels = torch.arange(len(table)).repeat(3)
    images = t2i.draw(t2i.ATTRIBUTE_TABLE[labels], torch.Generator().manual_seed(1))
    real = t2i.coloured_digits("heldout", prompts=table)
    other = Distribution(classifier.for_prompts(table), real, oracle=True).distance(images, labels)
    found = t2i.PromptJudge(classifier, real)(images, labels)
    assert found.energy == pytest.approx(other, rel=1e-4, abs=1e-5)
    with pytest.raises(InvalidInputError, match="role 'evaluation'"):
        t2i.PromptJudge(t2i.PromptClassifier.load(t2i.NAME, "reward"))


def test_the_command_writes_a_table_a_file_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run, which hears of it; compared with four real images of each prompt, not 16."""
    monkeypatch.setattr("qhw_diffusion.diffusion.text_to_image.images._PER_PROMPT", 4)
    with RunFolder.create(tmp_path / "run", kind="pipeline", config={}) as run:
        run.log(5, {"loss": 1.0})
    (run.path / "model").symlink_to(SHIPPED / t2i.NAME)
    measure = ["evaluate", "pipeline", "--scales", "2", "--steps", "1", "--out", str(tmp_path / "out")]
    logger = ["--logger", logs.file_of(tmp_path)]
    assert main([*measure, *logger]) == 2
    assert "is not of one: leave --logger out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*measure, str(run.path), *logger]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| steps | g | digit |")
    assert [row.split(" | ")[0] for row in table[2:]] == ["| 1", "| real"]
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(found["constants"][0]["accuracy_by_prompt"]) == 300
    assert found["real"]["fd"] < found["constants"][0]["fd"]
    picture = (tmp_path / "out" / "samples-1-steps.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    numbers, drawn = logs.told(tmp_path)
    assert numbers[0] == drawn[0] == 5, "beside the last update"
    (constant,), told = found["constants"], numbers[1]
    assert told["evaluation/1-steps-seed0/g = 2/fd"] == constant["fd"]
    assert told["evaluation/1-steps-seed0/g = 2/accuracy_held_out"] == constant["accuracy_held_out"]["all"]
    assert told["evaluation/real-seed0/fd"] == found["real"]["fd"]
    assert drawn[1] == {"evaluation/1-steps-seed0": len(picture)}
    assert logs.outcomes(tmp_path) == ["finished"]
    for wrong in (["--per-prompt", "1"], ["--steps", "0"], ["--scales", "-1"]):
        assert main(["evaluate", "pipeline", *wrong, "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
