from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import squeezenet1_1

from qhw_diffusion import diffusion
from qhw_diffusion.diffusion import Classifier, ImageDataset, Lpips
from qhw_diffusion.errors import InvalidInputError, MissingDependencyError
from qhw_diffusion.guidance import Reward, RewardConfig
from qhw_diffusion.guidance.rewards import (
    REWARD_TERMS,
    ActionPenalty,
    Confidence,
    Distribution,
    StepView,
    StepwiseImprovement,
    TotalVariation,
    class_means,
    ssim,
    term_values,
)


def view(
    reward_classifier: Classifier, real: ImageDataset, *, last: bool = True, reference: Tensor | None = None
) -> StepView:
    x0, before = real.images[:8].clone(), real.images[20:28].clone()
    return StepView(
        last=last,
        x0=x0,
        x0_previous=before,
        labels=real.labels[:8],
        action=torch.linspace(-2, 2, 8),
        scorer=reward_classifier,
        reference=reference,
    )


def test_every_built_in_term_has_its_weight_under_its_name() -> None:
    assert set(REWARD_TERMS) == set(RewardConfig.weights())
    for name in REWARD_TERMS:
        with pytest.raises(InvalidInputError, match=f"weight {name} must not be negative"):
            RewardConfig(**{name: -1.0})


@torch.no_grad()
def test_confidence_is_the_log_probability_at_the_last_step_only(
    reward_classifier: Classifier, real: ImageDataset
) -> None:
    step = view(reward_classifier, real)
    expected = torch.distributions.Categorical(logits=reward_classifier.logits(step.x0)).log_prob(step.labels)
    reward = Reward([(1.0, Confidence())], reward_classifier)
    torch.testing.assert_close(reward(step)[0], expected)
    assert not reward(view(reward_classifier, real, last=False))[0].any()


@torch.no_grad()
def test_stepwise_confidence(reward_classifier: Classifier, real: ImageDataset) -> None:
    step = view(reward_classifier, real, last=False)
    now, then = reward_classifier.logits(step.x0).softmax(1), reward_classifier.logits(step.x0_previous).softmax(1)
    expected = torch.stack([now[i, y] - then[i, y] for i, y in enumerate(step.labels)])
    got = StepwiseImprovement()(step)
    torch.testing.assert_close(got, expected)
    assert got.abs().max() > 0.5


@torch.no_grad()
def test_stepwise_ssim_and_lpips_read_against_the_class_mean(reward_classifier: Classifier, real: ImageDataset) -> None:
    step, means = view(reward_classifier, real), class_means(real)
    assert torch.equal(means[3], real.images[real.labels == 3].mean(0))
    got = StepwiseImprovement("ssim", references=means)(step)
    for i in range(8):
        reference = means[step.labels[i]][None]
        expected = ssim(step.x0[i : i + 1], reference) - ssim(step.x0_previous[i : i + 1], reference)
        assert got[i] == pytest.approx(float(expected), abs=1e-5)
    assert float(ssim(step.x0, step.x0).min()) == pytest.approx(1.0)

    def distance(a: Tensor, b: Tensor) -> Tensor:  # stands for a trained LPIPS network
        return (a - b).abs().mean((1, 2, 3))

    lpips = StepwiseImprovement("lpips", references=means, distance=distance)(step)
    torch.testing.assert_close(
        lpips, distance(step.x0_previous, means[step.labels]) - distance(step.x0, means[step.labels])
    )
    with pytest.raises(MissingDependencyError, match="weights"):
        StepwiseImprovement("lpips", references=means)
    with pytest.raises(InvalidInputError, match="references"):
        StepwiseImprovement("ssim")


def test_an_image_with_nothing_to_compare_it_with_is_told(reward_classifier: Classifier, real: ImageDataset) -> None:
    images, labels = real.images[:5], torch.tensor([3, 3, 7, 7, 8])
    by_label = Distribution(reward_classifier, real)
    with pytest.raises(InvalidInputError, match=r"same label, and of 5 images one alone has label 8: take at least 20"):
        by_label.distance(images, labels)
    assert by_label.distance(images[:4], labels[:4]) > 0
    together = Distribution(reward_classifier, real, by_class=False)
    with pytest.raises(InvalidInputError, match=r"with each other, and there is one: take at least 2 environments"):
        together.distance(images[:1], labels[:1])
    together.distance(images, labels)


def test_penalties_by_hand(reward_classifier: Classifier) -> None:
    x0 = torch.tensor([[[[0.0, 1.0], [0.0, 0.5]]]])
    step = StepView(True, x0, x0, torch.zeros(1).long(), torch.tensor([1.5]), reward_classifier)
    assert float(ActionPenalty()(step)) == -2.25
    assert float(TotalVariation()(step)) == pytest.approx(-((0.0 + 0.5) / 2 + (1.0 + 0.5) / 2))


@torch.no_grad()
def test_marginal_polynomial_witness_and_distance_are_those_of_the_metrics(
    reward_classifier: Classifier, real: ImageDataset
) -> None:
    generated, labels, others = real.images[:40] * 0.8, real.labels[:40], real.subset(torch.arange(40, 200))
    term = Distribution(reward_classifier, others, by_class=False, kernel="polynomial")
    own, reference = reward_classifier.features(generated), reward_classifier.features(others.images)
    torch.testing.assert_close(
        term.witness(generated, labels), diffusion.mmd_witness(own, reference), rtol=1e-4, atol=1e-3
    )
    expected = diffusion.kernel_distance(own, reference)
    assert term.distance(generated, labels) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["distance", "polynomial"])
@pytest.mark.parametrize("by_class", [False, True])
def test_witness_is_the_slope_of_the_kernel_distance(
    reward_classifier: Classifier, real: ImageDataset, kernel: str, by_class: bool
) -> None:
    """Exchanging image i changes MMD² by exactly −2/N times the change of its witness: that is why it is a reward."""
    n = 40
    generated, labels = real.images[:n] * 0.7, torch.arange(n) % 10
    term = Distribution(reward_classifier, real.subset(torch.arange(300, 500)), by_class=by_class, kernel=kernel)
    own = term.embed(generated)
    for i in (0, 5):
        changed = generated.clone()
        changed[i] = real.images[500 + i]
        gain = term.witness(changed, labels)[i] - term.witness_at(own, own, labels)[i]
        moved = term.distance(changed, labels) - term.distance(generated, labels)
        assert moved == pytest.approx(-2.0 / n * float(gain), rel=5e-3, abs=1e-5)
        assert abs(moved) > 1e-4


@torch.no_grad()
def test_the_distance_kernel_gives_the_energy_distance_of_each_class(
    reward_classifier: Classifier, real: ImageDataset
) -> None:
    generated, labels = real.images[:60] * 0.6, real.labels[:60]
    others = real.subset(torch.arange(100, 400))
    features = reward_classifier.features(others.images)
    width = features.std(0)
    width = torch.where(width < 0.1 * width.mean(), 0.1 * width.mean(), width)
    x = ((reward_classifier.features(generated) - features.mean(0)) / width).double()
    y = ((features - features.mean(0)) / width).double()

    def energy(x: Tensor, y: Tensor) -> float:
        cross = torch.stack([(a - b).norm() for a in x for b in y]).mean()
        return float(2 * cross - torch.pdist(x).mean() - torch.pdist(y).mean())

    marginal = Distribution(reward_classifier, others, by_class=False).distance(generated, labels)
    assert marginal == pytest.approx(energy(x, y), rel=1e-3)
    classes = [energy(x[labels == k], y[others.labels == k]) for k in range(10)]
    weights = labels.bincount(minlength=10) / 60.0
    expected = sum(float(w) * e for w, e in zip(weights, classes, strict=True))
    term = Distribution(reward_classifier, others)
    assert term.distance(generated, labels) == pytest.approx(expected, rel=1e-3)
    # dimmed digits are not digits; real ones are
    fresh = slice(600, 660)
    assert abs(term.distance(real.images[fresh], real.labels[fresh])) < 0.5 * expected


@torch.no_grad()
def test_distribution_rewards_what_is_missing_and_punishes_what_abounds(
    reward_classifier: Classifier, real: ImageDataset
) -> None:
    term = Distribution(reward_classifier, real.subset(torch.arange(400)))
    labels = real.labels[400:500]
    dimmed = real.images[400:500] * 0.5
    one_right = dimmed.clone()
    one_right[0] = real.images[400]
    assert float(term.witness(one_right, labels)[0]) > float(term.witness(dimmed, labels)[0]) + 1.0
    honest, copies = real.images[400:500], real.images[400:500].clone()
    copies[labels == labels[0]] = honest[0]
    assert float(term.witness(copies, labels)[0]) < float(term.witness(honest, labels)[0]) - 1.0
    # by class, the right images under the wrong labels are far from the data; the marginal distance cannot tell
    wrong = (labels + 1) % 10
    assert term.distance(honest, wrong) > 10 * abs(term.distance(honest, labels))
    marginal = Distribution(reward_classifier, real.subset(torch.arange(400)), by_class=False)
    assert marginal.distance(honest, wrong) == marginal.distance(honest, labels)


@torch.no_grad()
def test_the_terms_mean_is_the_gain_and_its_differences_are_the_witness(
    reward_classifier: Classifier, real: ImageDataset
) -> None:
    base, random, labels = real.images[:100] * 0.9, real.images[:100] * 0.7, real.labels[:100]
    term = Distribution(reward_classifier, real.subset(torch.arange(100, 500))).calibrated(base, random, labels)
    step = StepView(True, random, random, labels, torch.zeros(100), reward_classifier, reference=base)
    value = term(step)
    assert float(value.std()) == pytest.approx(1.0, abs=1e-4)
    fall = term.distance(base, labels) - term.distance(random, labels)
    assert float(value.mean()) == pytest.approx(fall / 2 / term.scale, rel=1e-4)
    assert float(value.mean()) == pytest.approx(term.gain(random, base, labels), rel=1e-4)
    own = term.embed(random)
    shares = (term.witness_at(own, own, labels) - term.witness_at(term.embed(base), own, labels)) / term.scale
    torch.testing.assert_close(value - value.mean(), shares - shares.mean(), atol=1e-4, rtol=1e-4)
    assert term(replace(step, reference=random)).abs().max() < 1e-3
    # without the base scale's images its distance, measured before, is the zero
    assert float(term(replace(step, x0=base, reference=None)).mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(term(replace(step, reference=None)).mean()) == pytest.approx(float(value.mean()), rel=1e-4)
    assert not term_values(term, replace(step, last=False)).any()
    # the base line of sample i depends on the other images, not on its own: it cannot bias the policy gradient
    moved = random.clone()
    moved[0] = real.images[450]
    own = term.embed(base)
    before, after = (term.witness_at(own, term.embed(x), labels)[0] for x in (random, moved))
    assert float(before) == pytest.approx(float(after), abs=1e-5)


@torch.no_grad()
def test_an_image_without_a_companion_is_refused(reward_classifier: Classifier, real: ImageDataset) -> None:
    term = Distribution(reward_classifier, real)
    with pytest.raises(InvalidInputError, match="at least 20"):
        term.witness(real.images[:3], torch.tensor([0, 0, 1]))
    assert Reward([(1.0, term)], reward_classifier).smallest_batch(10) == 20


@torch.no_grad()
def test_weighted_sum_from_config(reward_classifier: Classifier, real: ImageDataset) -> None:
    config = RewardConfig(confidence=2.0, stepwise=0.2, action_penalty=0.5, total_variation=0.1, distribution=0.0)
    reward = Reward.from_config(config, reward_classifier, real)
    step = view(reward_classifier, real)
    total, shares = reward(step)
    assert set(shares) == {"confidence", "stepwise", "action_penalty", "total_variation"}
    torch.testing.assert_close(total, sum(shares.values(), torch.zeros(8)))
    torch.testing.assert_close(shares["confidence"], 2.0 * Confidence()(step))
    torch.testing.assert_close(shares["action_penalty"], -0.5 * step.action**2)
    assert reward.smallest_batch(10) == 1
    assert Reward.from_config(RewardConfig(), reward_classifier, real).smallest_batch(10) == 20
    with pytest.raises(InvalidInputError, match="different names"):
        Reward([(1.0, Confidence()), (2.0, Confidence())], reward_classifier)


def test_lpips_weights_are_named_in_the_settings(
    reward_classifier: Classifier, real: ImageDataset, tmp_path: Path
) -> None:
    """With a file of weights the term is the one that a network passed in Python gives."""
    pytest.importorskip("lpips")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = dict(squeezenet1_1(weights=None).state_dict())
    save_file(state, tmp_path / "weights.safetensors")
    config = RewardConfig(stepwise=0.5, stepwise_kind="lpips", distribution=0.0)
    named = config.replace(lpips_weights=str(tmp_path / "weights.safetensors"))
    assert RewardConfig.from_dict(named.to_dict()) == named
    before, after = torch.rand(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    step = StepView(False, after, before, torch.arange(4), torch.zeros(4), reward_classifier)
    given = Reward.from_config(config, reward_classifier, real, distance=Lpips(tmp_path / "weights.safetensors"))
    total, shares = Reward.from_config(named, reward_classifier, real)(step)
    assert float(shares["stepwise"].abs().min()) > 1e-5
    assert torch.equal(total, given(step)[0])


def test_lpips_without_weights_says_where_they_are_given(reward_classifier: Classifier, real: ImageDataset) -> None:
    config = RewardConfig(stepwise=0.5, stepwise_kind="lpips")
    with pytest.raises(MissingDependencyError, match="--reward-lpips-weights FILE"):
        Reward.from_config(config, reward_classifier, real)
    with pytest.raises(InvalidInputError, match="positive weight stepwise"):
        RewardConfig(stepwise_kind="lpips", lpips_weights="x")
    with pytest.raises(InvalidInputError, match="kind lpips"):
        RewardConfig(stepwise=0.5, lpips_weights="x")
