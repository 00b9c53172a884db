"""Statistics of choices between two pictures: shares with intervals, abilities, agreement, correlations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.experiment import Interval

RESAMPLES = 2000
Floats = NDArray[np.float64]


def wilson(share: float, n: float, quantile: float) -> Interval:
    """Wilson's interval (J. Am. Stat. Assoc. 22, 209, 1927) of a share of `n` answers, at a quantile of z or t."""
    q = quantile**2
    centre = (share + q / (2 * n)) / (1 + q / n)
    half = quantile / (1 + q / n) * math.sqrt(share * (1 - share) / n + q / (4 * n**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), round(n))


def preference(choices: ArrayLike, *, pictures: bool, level: float = 0.95) -> Interval:
    """Share of ones in choices [R raters, P pairs], with an interval for other raters like these.

    Wilson's interval at the effective number of answers p(1 − p)/V, at most R·P, and at a quantile of t (Dean & Pavlou,
    Surv. Pract. 8, 2015). V is the variance of the mean in a table of raters by pairs, with s² = mean square of what
    remains after both: var(means of raters)/R, and with `pictures` + var(means of pairs)/P − s²/(R P), unbiased
    where raters and pairs are both drawn at random.

    Args:
        choices: 0 or 1.
        pictures: whether the interval is for other pictures as well, or for these alone.
        level: of the interval.

    Raises:
        InvalidInputError: less than two raters, or with `pictures` less than two pairs.
    """
    x = _table(choices)
    raters, pairs = x.shape
    if raters < 2 or (pictures and pairs < 2):
        raise InvalidInputError(f"an interval needs two raters and two pairs, not {raters} and {pairs}")
    share = float(x.mean())
    of_raters, of_pairs = x.mean(1), x.mean(0)
    variance, df = float(of_raters.var(ddof=1)) / raters, raters - 1
    if pictures:
        rest = x - of_raters[:, None] - of_pairs[None] + share
        noise = float((rest**2).sum()) / ((raters - 1) * (pairs - 1)) / x.size
        variance = max(variance, variance + float(of_pairs.var(ddof=1)) / pairs - noise)
        df = min(df, pairs - 1)
    alike = share * (1 - share)
    effective = x.size if variance * x.size <= alike else alike / variance
    found = wilson(share, effective, float(stats.t.ppf(0.5 + level / 2, df)))
    return Interval(found.mean, found.low, found.high, raters)


def pooled(choices: ArrayLike, level: float = 0.95) -> Interval:
    """Share of ones with Wilson's interval as if all answers were independent: too narrow where raters differ."""
    x = _table(choices)
    return wilson(float(x.mean()), x.size, float(stats.norm.ppf(0.5 + level / 2)))


def bradley_terry(wins: ArrayLike) -> Floats:
    """Abilities β [..., K] of the Bradley–Terry model, P(i beats j) = 1/(1 + e^(βⱼ − βᵢ)), with Σβ = 0.

    The most likely ones, by Newton's method, with half a win more to each side of every two that met, so that they are
    finite for one that has won or lost always.

    Args:
        wins: how often i was preferred to j, [..., K, K].
    """
    w = np.asarray(wins, dtype=np.float64)
    met = w + np.swapaxes(w, -1, -2) > 0
    w = w + 0.5 * met
    n = w + np.swapaxes(w, -1, -2)
    runs = w.shape[-1]
    beta = np.zeros(w.shape[:-1])
    for _ in range(100):
        p = 1 / (1 + np.exp(beta[..., None, :] - beta[..., :, None]))
        gradient = w.sum(-1) - (n * p).sum(-1)
        weight = n * p * (1 - p)
        # the curvature has the constant as its null space: 1/K everywhere takes Σβ = 0 for it
        curvature = np.eye(runs) * weight.sum(-1)[..., None] - weight + 1 / runs
        step = np.clip(np.linalg.solve(curvature, gradient[..., None])[..., 0], -2, 2)
        beta = beta + step
        if np.abs(step).max() < 1e-10:
            break
    found: Floats = beta - beta.mean(-1, keepdims=True)
    return found


def abilities(wins: ArrayLike, *, seed: int = 0) -> list[Interval]:
    """Bradley–Terry abilities of K runs from wins [R raters, K, K], with 95 % bootstrap intervals over raters.

    The percentiles of `RESAMPLES` draws of R raters with replacement; NaN with one rater.
    """
    w = np.asarray(wins, dtype=np.float64)
    centre, raters = bradley_terry(w.sum(0)), len(w)
    if raters < 2:
        return [Interval(float(b), math.nan, math.nan, 1) for b in centre]
    weights = np.random.default_rng(seed).multinomial(raters, np.full(raters, 1 / raters), size=RESAMPLES)
    drawn = bradley_terry(np.einsum("br,rij->bij", weights, w))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return [Interval(float(b), float(lo), float(hi), raters) for b, lo, hi in zip(centre, low, high, strict=True)]


def krippendorff_alpha(counts: ArrayLike) -> float:
    """Krippendorff's α for nominal values: 1 − disagreement observed / disagreement of values drawn from all.

    Source: K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011). NaN where all values are the same.

    Args:
        counts: how often each value was given to each unit, [..., U, C]; units with less than two values do not count.
    """
    return float(_alpha(np.asarray(counts, dtype=np.float64)))


def _alpha(counts: Floats) -> Floats:
    m = counts.sum(-1, keepdims=True)
    counts = np.where(m >= 2, counts, 0.0)
    m = counts.sum(-1)
    pairs_apart = (m**2 - (counts**2).sum(-1)) / np.maximum(m - 1, 1)
    total, values = m.sum(-1), counts.sum(-2)
    expected = (total**2 - (values**2).sum(-1)) / np.maximum(total - 1, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = 1 - pairs_apart.sum(-1) / np.where(expected > 0, expected, math.nan)
    return found


def agreement(choices: ArrayLike, *, seed: int = 0) -> tuple[Interval, float]:
    """Krippendorff's α of choices [R, P] with a 95 % bootstrap interval over pairs, and the share of equal answers.

    The share is that of two raters drawn at random, on the same pair.

    Raises:
        InvalidInputError: less than two raters.
    """
    x = _table(choices)
    raters, pairs = x.shape
    if raters < 2:
        raise InvalidInputError(f"agreement needs two raters, not {raters}")
    ones = x.sum(0)
    counts = np.stack([raters - ones, ones], 1)
    same = float(((counts * (counts - 1)).sum(1) / (raters * (raters - 1))).mean())
    rows = np.random.default_rng(seed).integers(pairs, size=(RESAMPLES, pairs))
    drawn = _alpha(counts[rows])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn.size else (math.nan, math.nan)
    return Interval(krippendorff_alpha(counts), float(low), float(high), raters), same


def rank_correlation(x: ArrayLike, y: ArrayLike, *, seed: int = 0) -> tuple[Interval, float]:
    """Spearman's ρ of two series [P] with a 95 % bootstrap interval over pairs, and its two-sided p.

    NaN where one of them is constant, or there are less than four.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.size < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Interval(math.nan, math.nan, math.nan, int(a.size)), math.nan
    found = stats.spearmanr(a, b)
    rows = np.random.default_rng(seed).integers(a.size, size=(RESAMPLES, a.size))
    rank: Callable[[Floats], Floats] = lambda values: stats.rankdata(values, axis=1) - (a.size + 1) / 2  # noqa: E731
    ra, rb = rank(a[rows]), rank(b[rows])
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (ra * rb).sum(1) / np.sqrt((ra**2).sum(1) * (rb**2).sum(1))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(float(found.statistic), float(low), float(high), int(a.size)), float(found.pvalue)


def _table(choices: ArrayLike) -> Floats:
    x = np.asarray(choices, dtype=np.float64)
    if x.ndim != 2 or x.size == 0 or not np.isin(x, (0, 1)).all():
        raise InvalidInputError(f"choices must be zeros and ones [raters, pairs], got {x.shape}")
    return x
