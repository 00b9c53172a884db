"""Intervals and paired tests over seeds: the numbers behind every "better" and "worse" in a report.

The unit is the seed: one training and one evaluation belong to it, and variants evaluated on the same seed share
initial noise and labels. So comparisons are paired, and what varies between pairs is training *and* sampling.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qhw_diffusion.errors import InvalidInputError

K = TypeVar("K", bound=Hashable)
EXACT_UP_TO = 16  # 2^16 sign patterns take little time; above, they are drawn at random


@dataclass(frozen=True)
class Interval:
    """Mean and two-sided confidence interval of `n` values; `low` and `high` are NaN when n = 1."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half the width of the interval, in the values' unit."""
        return (self.high - self.low) / 2

    def within(self, low: float, high: float) -> Interval:
        """Cut where it leaves the range that its values cannot leave, such as that of a share."""
        return self if math.isnan(self.low) else Interval(self.mean, max(self.low, low), min(self.high, high), self.n)

    def format(self, digits: int = 2, *, sign: bool = False) -> str:
        """`0.68 [0.61, 0.75]`, or the bare value when there is no interval; sign: `+0.68 [+0.61, +0.75]`."""
        form = f"{'+' * sign}.{digits}f"
        if math.isnan(self.low):
            return f"{self.mean:{form}}"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


@dataclass(frozen=True)
class PairedTest:
    """Comparison of a with b over n pairs; all p-values are two-sided.

    difference: mean and 95 % t-interval of a − b. t_p: paired t-test. wilcoxon_p: signed-rank test.
    sign_flip_p: permutation test that flips the signs of the differences; its smallest possible value is 2/2ⁿ.
    effect_size: Cohen's d_z = mean(a − b) / standard deviation(a − b). p_holm: t_p after Holm's correction for the
    family of comparisons it was made in (equal to t_p until `with_holm` is applied).
    """

    difference: Interval
    t_p: float
    wilcoxon_p: float
    sign_flip_p: float
    effect_size: float
    p_holm: float

    def significant(self, level: float = 0.05) -> bool:
        """Whether the corrected t-test stays under `level`."""
        return self.p_holm < level

    def as_dict(self) -> dict[str, object]:
        """JSON-able form."""
        return asdict(self)


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean and Student-t interval x̄ ± t_{n−1} s/√n of values [n], n ≥ 1."""
    from scipy import stats

    data = _finite(values, "values")
    if not 0 < level < 1:
        raise InvalidInputError(f"level must lie between 0 and 1, not {level}")
    mean = float(data.mean())
    if data.size == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf(0.5 + level / 2, data.size - 1) * stats.sem(data))
    return Interval(mean, mean - half, mean + half, int(data.size))


def paired_test(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> PairedTest:
    """Compare a [n] with b [n], n ≥ 2 pairs in the same order. `seed` matters only for n > 16 (random sign flips).

    Raises InvalidInputError for other shapes or values that are not finite.
    """
    from scipy import stats

    left, right = _finite(a, "a"), _finite(b, "b")
    if left.shape != right.shape or left.size < 2:
        raise InvalidInputError(
            f"a paired test needs two equally long series of at least 2, not {left.size}, {right.size}"
        )
    difference = left - right
    interval = mean_interval(difference)
    spread = float(difference.std(ddof=1))
    if spread <= 1e-12 * max(1.0, abs(interval.mean)):
        # constant difference: t is 0/0 or infinite; no pair disagrees, or all do in exactly the same way
        certain = 1.0 if abs(interval.mean) <= 1e-12 else 0.0
        effect = 0.0 if certain else math.copysign(math.inf, interval.mean)
        p = certain
    else:
        effect = interval.mean / spread
        p = float(stats.ttest_rel(left, right).pvalue)
    return PairedTest(interval, p, wilcoxon_p(difference), sign_flip_p(difference, seed=seed), effect, p)


def p_text(p: float) -> str:
    """`p = 0.020`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def interval_cell(values: Sequence[float], digits: int = 2, *, within: tuple[float, float] | None = None) -> str:
    """A cell of a table: mean and interval of values [n]; a dash where an earlier version kept none.

    `within`: the range that the values cannot leave, where the interval is cut.
    """
    if not len(values):
        return "–"
    found = mean_interval(values)
    return (found if within is None else found.within(*within)).format(digits)


def difference_cells(test: PairedTest | None, digits: int = 2) -> tuple[str, str]:
    """Two cells of a table: the difference with its interval, and p after Holm's correction; dashes without a test."""
    if test is None:
        return "–", "–"
    return test.difference.format(digits, sign=True), p_text(test.p_holm).removeprefix("p = ").removeprefix("p ")


def wilcoxon_p(difference: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of differences [n]; 1 when all are zero."""
    from scipy import stats

    data = _finite(difference, "difference")
    data = data[data != 0]
    if data.size == 0:
        return 1.0
    ties = np.unique(np.abs(data)).size < data.size
    return float(stats.wilcoxon(data, method="approx" if ties else "auto").pvalue)


def sign_flip_p(difference: ArrayLike, *, resamples: int = 20_000, seed: int = 0) -> float:
    """Two-sided p of the permutation test: under the null each difference may as well have the other sign.

    Exact (all 2ⁿ patterns) for n ≤ 16; above, `resamples` random patterns and (count + 1)/(resamples + 1).
    """
    from scipy import stats

    data = _finite(difference, "difference")
    exact = data.size <= EXACT_UP_TO
    found = stats.permutation_test(
        (data,),
        lambda x, axis: np.abs(x.sum(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=np.inf if exact else resamples,
        batch=4096,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand. J. Stat. 6, 65, 1979): adjusted p-values in the order given."""
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or np.any(~((p >= 0) & (p <= 1))):
        raise InvalidInputError(f"p-values must lie in [0, 1], not {list(p_values)}")
    adjusted = np.empty_like(p)
    highest = 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        highest = max(highest, min(1.0, float(p[index]) * (p.size - rank)))
        adjusted[index] = highest
    return [float(value) for value in adjusted]


def with_holm(tests: Mapping[K, PairedTest]) -> dict[K, PairedTest]:
    """The same tests with `p_holm` corrected for all of them as one family."""
    corrected = holm([test.t_p for test in tests.values()])
    return {
        name: PairedTest(t.difference, t.t_p, t.wilcoxon_p, t.sign_flip_p, t.effect_size, p)
        for (name, t), p in zip(tests.items(), corrected, strict=True)
    }


def _finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.all(np.isfinite(data)):
        raise InvalidInputError(f"{name} must be a non-empty list of finite numbers, not {values!r}")
    return data
