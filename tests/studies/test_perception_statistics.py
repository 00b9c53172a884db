"""Statistics of people's choices against closed forms, published examples, other code, and known probabilities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.studies.perception.preference import (
    abilities,
    agreement,
    bradley_terry,
    krippendorff_alpha,
    pooled,
    preference,
    rank_correlation,
    wilson,
)


@pytest.mark.parametrize(("ones", "n"), [(0, 12), (3, 10), (7, 40), (40, 40)])
def test_wilson_is_scipys(ones: int, n: int) -> None:
    expected = stats.binomtest(ones, n).proportion_ci(method="wilson")
    found = pooled(np.arange(n)[None] < ones)
    assert (found.mean, found.low, found.high) == pytest.approx((ones / n, expected.low, expected.high))


def people(rng: np.random.Generator, raters: int, pairs: int, of_raters: float, of_pairs: float) -> np.ndarray:
    """Choices of raters and about pairs that differ: logits 0.5 + rater + pair."""
    logit = 0.5 + of_raters * rng.standard_normal((raters, 1)) + of_pairs * rng.standard_normal((1, pairs))
    return rng.random((raters, pairs)) < 1 / (1 + np.exp(-logit))


def truth(spread: float) -> float:
    """Mean preference of a population of logits 0.5 ± spread, by Gauss–Hermite quadrature."""
    x, w = np.polynomial.hermite_e.hermegauss(60)
    return float((w / (1 + np.exp(-(0.5 + spread * x)))).sum() / w.sum())


@pytest.mark.parametrize(("of_raters", "of_pairs"), [(0.0, 0.0), (0.7, 0.0), (0.7, 1.0), (0.0, 1.5)])
def test_the_interval_covers_a_known_preference(of_raters: float, of_pairs: float) -> None:
    rng = np.random.default_rng(1)
    known = truth(math.hypot(of_raters, of_pairs))
    trials, hits, narrow = 500, 0, 0
    for _ in range(trials):
        x = people(rng, 10, 24, of_raters, of_pairs)
        found, naive = preference(x, pictures=True), pooled(x)
        hits += found.low <= known <= found.high
        narrow += naive.low <= known <= naive.high
    assert 0.92 <= hits / trials <= 1.0  # conservative where neither raters nor pairs differ
    if of_raters or of_pairs:
        assert hits / trials < 0.99
        assert narrow / trials < 0.88  # what answers taken for independent would say


def test_for_these_pictures_alone_their_spread_does_not_count() -> None:
    rng = np.random.default_rng(2)
    hits, trials = 0, 400
    logit = 0.5 + 1.5 * np.random.default_rng(5).standard_normal((1, 24))  # always the same pictures
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    known = float((weights[:, None] / (1 + np.exp(-(logit + 0.5 * nodes[:, None])))).sum() / weights.sum() / 24)
    widths = []
    for _ in range(trials):
        x = rng.random((10, 24)) < 1 / (1 + np.exp(-(logit + 0.5 * rng.standard_normal((10, 1)))))
        found = preference(x, pictures=False)
        widths.append(found.half_width / preference(x, pictures=True).half_width)
        hits += found.low <= known <= found.high
    assert hits / trials >= 0.93
    assert np.mean(widths) < 0.7


def test_all_of_one_mind_is_no_certainty() -> None:
    found = preference(np.ones((5, 10)), pictures=True)
    expected = wilson(1.0, 50, float(stats.t.ppf(0.975, 4)))
    assert (found.low, found.high) == (expected.low, expected.high)
    assert 0.8 < found.low < 0.95 < found.high == 1.0
    with pytest.raises(InvalidInputError, match="two raters"):
        preference(np.ones((1, 10)), pictures=False)
    with pytest.raises(InvalidInputError, match="zeros and ones"):
        pooled([[0.5]])


def test_bradley_terry_of_two_is_the_empirical_logit() -> None:
    found = bradley_terry([[0, 30], [10, 0]])
    assert found == pytest.approx([math.log(30.5 / 10.5) / 2, -math.log(30.5 / 10.5) / 2])
    one_sided = bradley_terry([[0, 8], [0, 0]])
    assert one_sided[0] - one_sided[1] == pytest.approx(math.log(17))


def test_bradley_terry_is_logistic_regression() -> None:
    wins = np.array([[0, 30, 25, 40], [10, 0, 22, 31], [15, 18, 0, 26], [2, 11, 14, 0]], dtype=float)
    rows, y, weight = [], [], []
    for i, j in itertools.combinations(range(4), 2):
        for won, count in ((1, wins[i, j] + 0.5), (0, wins[j, i] + 0.5)):
            row = np.zeros(4)
            row[i], row[j] = 1, -1
            rows.append(row)
            y.append(won)
            weight.append(count)
    fit = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-10, max_iter=5000).fit(rows, y, sample_weight=weight)
    beta = fit.coef_[0] - fit.coef_[0].mean()
    assert bradley_terry(wins) == pytest.approx(beta, abs=1e-5)


def test_abilities_cover_known_ones() -> None:
    rng = np.random.default_rng(0)
    beta = np.array([0.6, 0.0, -0.6])
    hits = total = 0
    for trial in range(40):
        wins = np.zeros((20, 3, 3))
        for i, j in itertools.combinations(range(3), 2):
            won = rng.binomial(12, 1 / (1 + np.exp(beta[j] - beta[i])), size=20)
            wins[:, i, j], wins[:, j, i] = won, 12 - won
        for known, found in zip(beta, abilities(wins, seed=trial), strict=True):
            hits += found.low <= known <= found.high
            total += 1
    assert 0.88 <= hits / total <= 0.99
    assert math.isnan(abilities(wins[:1])[0].low)


def test_alpha_of_the_published_example() -> None:
    """Krippendorff 2011, example C: four observers, twelve units, nominal α = 0.743."""
    x = np.nan
    table = np.array([
        [1, 2, 3, 3, 2, 1, 4, 1, 2, x, x, x],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, x, 3],
        [x, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, x],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, x],
    ])  # fmt: skip
    counts = np.stack([(table == value).sum(0) for value in range(1, 6)], 1)
    assert krippendorff_alpha(counts) == pytest.approx(0.743, abs=5e-4)


def test_alpha_in_closed_form() -> None:
    """Raters who prefer the first in pair u with probability q_u: α → var(q)/(q̄(1 − q̄))."""
    assert krippendorff_alpha([[4, 0], [0, 4], [4, 0]]) == 1
    assert math.isnan(krippendorff_alpha([[4, 0], [4, 0]]))
    q = np.array([0.9, 0.8, 0.5, 0.2, 0.7])
    known = q.var() / (q.mean() * (1 - q.mean()))
    choices = np.random.default_rng(0).random((4000, 5)) < q
    found, same = agreement(choices)
    assert found.mean == pytest.approx(known, abs=0.01)
    assert same == pytest.approx((q**2 + (1 - q) ** 2).mean(), abs=0.01)
    rng, hits = np.random.default_rng(4), 0
    for trial in range(30):  # other pairs each time: q uniform on (0, 1) has var/(q̄(1 − q̄)) = 1/3
        drawn = rng.random((8, 60)) < rng.random(60)
        interval, _ = agreement(drawn, seed=trial)
        hits += interval.low <= 1 / 3 <= interval.high
    assert 0.85 <= hits / 30 <= 1


def test_rank_correlation() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(60)
    found, p = rank_correlation(x, np.exp(x))
    assert found.mean == found.low == found.high == pytest.approx(1)
    y = x + rng.standard_normal(60)
    found, p = rank_correlation(x, y)
    expected = stats.spearmanr(x, y)
    assert (found.mean, p) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert 0.4 < found.low < found.mean < found.high < 0.9
    inside = [rank_correlation(rng.standard_normal(40), rng.standard_normal(40), seed=k)[0] for k in range(40)]
    assert 0.8 <= np.mean([one.low <= 0 <= one.high for one in inside]) <= 1
    assert math.isnan(rank_correlation([1.0] * 9, range(9))[0].mean)
