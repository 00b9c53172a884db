from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qhw_diffusion.cli import main
from qhw_diffusion.diffusion import text_to_image as t2i
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.guidance.scorers import as_scorer, check_scorer, features, score


def brief(role: str = "reward", **changes: int) -> t2i.PromptClassifierConfig:
    return t2i.PromptClassifierConfig.for_role(role, **{"steps": 2, "batch_size": 4, "width": 4, **changes})


@pytest.fixture
def few_heldout_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """One held-out image of each prompt, not 16, for how good a classifier of two steps is."""
    monkeypatch.setattr("qhw_diffusion.diffusion.text_to_image.images._PER_PROMPT", 1)
    monkeypatch.setattr("qhw_diffusion.diffusion.text_to_image.images._AT_LEAST", 300)


def random_classifier(role: str = "reward") -> t2i.PromptClassifier:
    torch.manual_seed(0)
    return t2i.PromptClassifier(brief(role)).eval()


def test_probability_is_that_of_all_three_attributes() -> None:
    classifier = random_classifier()
    images = t2i.draw(t2i.ATTRIBUTE_TABLE[:40], torch.Generator().manual_seed(0))
    labels = torch.arange(40)
    parts = [logits.softmax(1) for logits in classifier.attribute_logits(images)]
    wanted = t2i.ATTRIBUTE_TABLE[:40]
    product = torch.stack([p.gather(1, wanted[:, i : i + 1]).squeeze(1) for i, p in enumerate(parts)]).prod(0)
    torch.testing.assert_close(classifier.probability(images, labels), product)
    # as guidance asks it, and over another table
    check_scorer(classifier, (3, 32, 32), 300, needs_features=True)
    torch.testing.assert_close(score(as_scorer(classifier), images, labels).probability, product)
    assert classifier.logits(images).shape == (40, 301)
    assert features(classifier, images).shape == (40, 64)


def test_a_table_of_ones_own_changes_the_labels_and_nothing_else() -> None:
    whole = random_classifier()
    table = [t2i.PROMPTS[200], t2i.PROMPTS[3]]
    few = whole.for_prompts(table)
    images = t2i.draw(t2i.attributes_of(table), torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        few.probability(images, torch.tensor([0, 1])), whole.probability(images, torch.tensor([200, 3]))
    )
    assert (few.n_classes, few.logits(images).shape, few.prompts) == (2, (2, 3), tuple(table))
    assert (whole.n_classes, whole.logits(images).shape, whole.prompts) == (300, (2, 301), t2i.PROMPTS)
    with pytest.raises(InvalidInputError, match="twice"):
        whole.for_prompts([table[0], table[0]])
    with pytest.raises(InvalidInputError, match="no prompt of the coloured digits"):
        whole.for_prompts(["a cat"])


@pytest.mark.slow
@pytest.mark.usefixtures("few_heldout_images")
def test_training_is_repeatable_and_the_roles_see_different_digits(tmp_path: Path) -> None:
    first, second = (t2i.train_prompt_classifier(brief()) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    judge = t2i.train_prompt_classifier(brief("evaluation"))
    assert (first.provenance["n_digits"], first.provenance["n_prompts"]) == (1200, 240)
    assert (judge.provenance["n_digits"], judge.provenance["n_prompts"]) == (397, 300)
    judge.save(tmp_path)
    loaded = t2i.PromptClassifier.load(tmp_path, "evaluation")
    images = t2i.draw(t2i.ATTRIBUTE_TABLE[:8], torch.Generator().manual_seed(0))
    assert torch.equal(loaded.logits(images), judge.logits(images))
    assert loaded.accuracy == judge.accuracy
    with pytest.raises(InvalidInputError, match="must never evaluate"):
        t2i.PromptClassifier.load(tmp_path, "reward")
    with pytest.raises(UnknownNameError, match="role"):
        t2i.PromptClassifier.load(tmp_path, "judge")


def test_gradients_reach_the_images() -> None:
    classifier = random_classifier()
    images = t2i.draw(t2i.ATTRIBUTE_TABLE[:2], torch.Generator().manual_seed(0)).requires_grad_()
    classifier.probability(images, torch.tensor([0, 1])).sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("few_heldout_images")
def test_the_command_trains_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--role", "evaluation", "--steps", "1", "--batch-size", "2", "--out", str(tmp_path / "run")]
    assert main(["train", "prompt-classifier", *arguments]) == 0
    assert "evaluation: right on held-out images: digit" in capsys.readouterr().out
    assert t2i.PromptClassifier.load(tmp_path / "run", "evaluation").config.architecture == "residual"
