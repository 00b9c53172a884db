from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.experiment.statistics import (
    holm,
    mean_interval,
    paired_test,
    sign_flip_p,
    wilcoxon_p,
    with_holm,
)


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    return rng.normal(0.3, 1.0, 9), rng.normal(0.0, 1.0, 9)


def test_interval_agrees_with_scipy(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    values = pairs[0]
    expected = stats.t.interval(0.95, values.size - 1, values.mean(), stats.sem(values))
    got = mean_interval(values)
    assert (got.low, got.high) == pytest.approx(expected)
    assert got.mean == pytest.approx(values.mean())
    assert got.half_width == pytest.approx((expected[1] - expected[0]) / 2)


@pytest.mark.slow
def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = sum(i.low <= 0 <= i.high for i in (mean_interval(rng.normal(size=5)) for _ in range(2000)))
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_an_interval_of_shares_stays_within_their_range() -> None:
    interval = mean_interval([0.99, 0.90, 1.0])
    assert interval.low > 0
    assert interval.high > 1
    assert interval.within(0.0, 1.0) == replace(interval, high=1.0)
    assert mean_interval([0.5]).within(0.0, 1.0).n == 1


def test_one_value_has_no_interval() -> None:
    interval = mean_interval([0.5])
    assert math.isnan(interval.low)
    assert interval.format(1) == "0.5"
    assert mean_interval([1.0, 3.0]).format(1) == "2.0 [-10.7, 14.7]"  # t(1) = 12.706, s/√2 = 1


def test_paired_test_agrees_with_scipy(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pairs
    got = paired_test(a, b)
    reference = stats.ttest_rel(a, b)
    ci = reference.confidence_interval(0.95)
    assert got.t_p == pytest.approx(reference.pvalue)
    assert (got.difference.low, got.difference.high) == pytest.approx((ci.low, ci.high))
    assert got.wilcoxon_p == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)
    assert got.effect_size == pytest.approx(reference.statistic / math.sqrt(9))
    permutation = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert got.sign_flip_p == pytest.approx(permutation.pvalue)
    back = paired_test(b, a)
    assert back.difference.mean == pytest.approx(-got.difference.mean)
    assert back.t_p == pytest.approx(got.t_p)


def test_five_pairs_cannot_reach_a_sign_flip_p_below_one_sixteenth() -> None:
    assert sign_flip_p([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 32)


def test_random_sign_flips_approach_the_exact_answer() -> None:
    data = np.random.default_rng(1).normal(0.45, 1.0, 17)
    exact = stats.permutation_test(
        (data,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    ).pvalue
    assert sign_flip_p(data, resamples=40_000) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(data, seed=3) == sign_flip_p(data, seed=3)


def test_equal_series_and_constant_differences() -> None:
    same = paired_test([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.t_p, same.wilcoxon_p, same.sign_flip_p, same.effect_size) == (1.0, 1.0, 1.0, 0.0)
    shifted = paired_test([1.5, 2.5, 3.5], [1.0, 2.0, 3.0])
    assert shifted.t_p == 0.0
    assert shifted.effect_size == math.inf


def test_wilcoxon_with_ties_and_zeros_is_a_number() -> None:
    assert 0 < wilcoxon_p([0.0, 1.0, 1.0, -1.0, 2.0, 3.0]) <= 1


def test_holm_worked_example() -> None:
    # sorted .005 ×4, .01 ×3, .03 ×2, .04 ×1, then monotone
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_correcting_a_family_changes_only_the_corrected_p(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pairs
    tests = {"x": paired_test(a, b), "y": paired_test(a, b + 5)}
    corrected = with_holm(tests)
    assert [t.t_p for t in corrected.values()] == [t.t_p for t in tests.values()]
    assert [t.p_holm for t in corrected.values()] == pytest.approx(holm([t.t_p for t in tests.values()]))
    assert corrected["y"].significant()
    assert not corrected["x"].significant()


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidInputError, match="finite"):
        mean_interval([1.0, math.nan])
    with pytest.raises(InvalidInputError, match="finite"):
        mean_interval([])
    with pytest.raises(InvalidInputError, match="equally long"):
        paired_test([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(InvalidInputError, match="level"):
        mean_interval([1.0], level=95)
    with pytest.raises(InvalidInputError, match="p-values"):
        holm([0.5, 1.5])
