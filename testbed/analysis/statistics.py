# SPDX-License-Identifier: GPL-2.0-only
"""What paired values say: estimators, tests, intervals, power. Pure, and the same for the same values.

Conventions, for all functions:

- The unit is a pair: the values of one seed in both arms. Arrays `before` and `after` have the shape (pairs,)
  and the same seed at the same place; the order of the pairs never matters.
- Values are finite and not negative. What stands for "no change" is the ratio 1, that is a log ratio or a
  relative change of 0; a change is after / before - 1.
- `alpha` is the two-sided error of one statement. With `sequential` it holds for all looks together (the
  test is an e-process, the interval a confidence sequence), without for one look at a number of pairs that
  was fixed before.
- Resampling has a fixed seed: an analysis is a function of its values.

scipy.stats does what it can. By hand are, with their sources:

- the t e-process, `log_e_t` and `radius`: the Bayes factor with the right Haar prior on the scale and a
  normal prior of variance g on mean / scale. Perez-Ortiz, Lardy, de Heide, Gruenwald: E-statistics, group
  invariance and anytime-valid testing, Annals of Statistics 52(4), 2024; Wang, Ramdas: Anytime-valid t-tests
  and confidence sequences for Gaussian means with unknown variance, arXiv:2310.03722; with the closed form of
  the interval Lindon et al., arXiv:2210.08589 (the R package avlm, whose g is a precision, our 1/g).
- the sign e-process, `log_e_sign`: a mixture of likelihood ratios of a Bernoulli sequence. Robbins:
  Statistical methods related to the law of the iterated logarithm, Annals of Mathematical Statistics 41(5),
  1970; Howard, Ramdas, McAuliffe, Sekhon: Time-uniform, nonparametric, nonasymptotic confidence sequences,
  Annals of Statistics 49(2), 2021.
- the interval of a ratio of totals, `fieller`: Fieller: Some problems in interval estimation, Journal of the
  Royal Statistical Society B 16(2), 1954.
- Holm's levels, `holm_levels`: Holm: A simple sequentially rejective multiple test procedure, Scandinavian
  Journal of Statistics 6(2), 1979.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from testbed.analysis.decision import Test
from testbed.analysis.histogram import SUB_BUCKETS
from testbed.analysis.metrics import Kind

Array = NDArray[np.float64]

# Of fewer pairs nothing is said. A t test of two pairs has one degree of freedom: nobody could see that it is
# misled. No sequence of looks may end before a sign test could, at 5 %: 2 * 2**-6 is the first below.
LEAST_PAIRS = {False: 3, True: 6}
# Nobody runs more; what needs more is said to be out of reach.
MOST_PAIRS = 10_000
POWER = 0.9
# The variance of the prior of mean / scale: best for changes of about one standard deviation.
PRIOR = 1.0
# Spread of log ratios that is rounding of floats, not noise.
ROUNDING = 1e-12
RESAMPLES = 9_999


@dataclass(frozen=True)
class Finding:
    """What one test and its interval say of one metric.

    `estimate`, `low` and `high` are changes: relative ones (ratio - 1) or, if not `relative`, differences in
    the metric's unit; the ends may be infinite. `differs` is whether the test rejects "no change" at alpha;
    then the interval lies on one side of 0 (which it may touch), else it holds 0.

    `centre`, `spread` (standard deviation of a pair) and `floor` (half-width that no number of pairs goes
    below) are on the scale on which the interval is symmetric, and `to_scale` brings a margin there: they say
    how many pairs would be needed. `mde` is in the unit of `estimate`.
    """

    quantity: str
    relative: bool
    estimate: float
    low: float
    high: float
    differs: bool
    test: Test
    centre: float
    spread: float
    mde: float | None
    floor: float = 0.0
    least_pairs: int = 0
    to_scale: Callable[[float], float] = float


# --- the t test, at fixed n and sequential ---------------------------------------------------------


def log_e_t(n: int, t: float) -> float:
    """The logarithm of the t e-process after n >= 2 pairs, for the usual t statistic with n - 1 degrees.

    (1 + n g)^(-1/2) * [(1 + t^2/nu) / (1 + t^2/(nu (1 + n g)))]^(n/2) with nu = n - 1, and never above
    2^(n - 1): no test that holds for every symmetric distribution can claim more of n pairs. Normal
    differences could, those of few distinct values (counts, buckets) cannot. What is smaller than an
    e-process is one.

    It is a martingale only to who sees t and not the scale. That it ever reaches 1/alpha has a probability of
    at most alpha for every rule of stopping all the same, for that is a statement on all n together.
    """
    x = min(t * t / (n - 1), 1e300)
    shrunk = 1 + n * PRIOR
    value = -0.5 * math.log(shrunk) + n / 2 * (math.log1p(x) - math.log1p(x / shrunk))
    return min(value, (n - 1) * math.log(2))


@functools.lru_cache(maxsize=65536)
def radius(n: int, alpha: float, sequential: bool) -> float:
    """Half the width of the interval of a mean of n differences, in their standard deviations; may be inf.

    Sequential: all means that the t e-process has not rejected. With k = (sqrt(1 + n g) / alpha)^(2/n), t* is
    the root of nu (k - 1) / (1 - k / (1 + n g)), and the radius t* / sqrt(n).
    """
    if n < 2:
        return math.inf
    if not sequential:
        return float(special.stdtrit(n - 1, 1 - alpha / 2)) / math.sqrt(n)
    shrunk = 1 + n * PRIOR
    k = (math.sqrt(shrunk) / alpha) ** (2 / n)
    if k >= shrunk or (n - 1) * math.log(2) < -math.log(alpha):
        return math.inf
    return math.sqrt((n - 1) * (k - 1) / (1 - k / shrunk) / n)


def pairs_for(spread: float, distance: float, alpha: float, sequential: bool) -> int | None:
    """The fewest pairs whose interval has a half-width below `distance`; None for more than MOST_PAIRS.

    `spread` is the standard deviation of a pair's difference, in the unit of `distance`.
    """
    candidates = range(LEAST_PAIRS[sequential], MOST_PAIRS + 1)
    at = bisect.bisect_left(candidates, True, key=lambda n: radius(n, alpha, sequential) * spread < distance)
    return candidates[at] if at < len(candidates) else None


@functools.lru_cache(maxsize=65536)
def detectable(n: int, alpha: float, sequential: bool) -> float:
    """The mean, in standard deviations of a difference, that n pairs find with a probability of POWER.

    From the noncentral t distribution. Sequential: that the interval after the n-th pair excludes 0, which is
    less than the chance that one of the looks until then has.
    """
    critical = radius(n, alpha, sequential) * math.sqrt(n)
    if not math.isfinite(critical):
        return math.inf
    return float(special.nctdtrinc(n - 1, 1 - POWER, critical)) / math.sqrt(n)


# --- the sign test, at fixed n and sequential ------------------------------------------------------


def log_e_sign(ups: int, downs: int, p: float = 0.5) -> float:
    """The logarithm of an e-process against "a pair goes up with the probability p", 0 < p < 1.

    A mixture of likelihood ratios against p: half of it over Beta(1/2, 1/2), a quarter each for "always" and
    "never", without which six pairs of six could not be enough (14.4 instead of 23.2).
    """
    beta = special.betaln(ups + 0.5, downs + 0.5) - math.log(math.pi)
    mixture = math.log(0.5) + float(beta)
    for never in (ups, downs):
        if never == 0:
            mixture = float(np.logaddexp(mixture, math.log(0.25)))
    return mixture - ups * math.log(p) - downs * math.log1p(-p)


@functools.lru_cache(maxsize=1024)
def unanimous(alpha: float, sequential: bool) -> int:
    """How many pairs, all of one direction, a sign test needs to reject at alpha."""
    n = LEAST_PAIRS[sequential]
    while _log_unanimous(n, sequential) < -math.log(alpha):
        n += 1
    return n


def _log_unanimous(n: int, sequential: bool) -> float:
    return log_e_sign(n, 0) if sequential else (n - 1) * math.log(2)


def sign_test(ups: int, downs: int, sequential: bool) -> Test:
    """Whether pairs go up as often as down. Exact for exchangeable arms, whatever the values."""
    if sequential:
        return Test("sign e-process", log_e=log_e_sign(ups, downs))
    n = ups + downs
    p = float(stats.binomtest(ups, n).pvalue) if n else 1.0
    return Test("sign test", p=p, least=min(1.0, 2.0 ** (1 - n)))


def share_interval(k: int, n: int, alpha: float, sequential: bool) -> tuple[float, float]:
    """An interval of the probability of what came k times in n >= 1: Clopper-Pearson, or the e-process's."""
    if not sequential:
        interval = stats.binomtest(k, n).proportion_ci(1 - alpha, "exact")
        return float(interval.low), float(interval.high)

    def excess(p: float) -> float:
        return log_e_sign(k, n - k, p) + math.log(alpha)

    edge = 1e-12
    low = 0.0 if k == 0 else float(optimize.brentq(excess, edge, min(k / n, 1 - edge)))
    high = 1.0 if k == n else float(optimize.brentq(excess, max(k / n, edge), 1 - edge))
    return low, high


# --- one finding for each kind of values -----------------------------------------------------------


def rejects(test: Test, alpha: float) -> bool:
    """Whether a test rejects at alpha."""
    if test.log_e is not None:
        return test.log_e >= -math.log(alpha)
    return test.p is not None and test.p <= alpha


def ratio_of_means(before: Array, after: Array, kind: Kind, alpha: float, sequential: bool) -> Finding:
    """The geometric-mean ratio of values above 0, by a t test on the differences of logarithms.

    A tail is a bucket of a histogram, 1/SUB_BUCKETS of its value wide: no interval is narrower.
    Differences that are all the same leave a t test nothing to divide by; see `_constant`.
    """
    d = np.log(after) - np.log(before)
    n = len(d)
    mean = math.fsum(d) / n
    spread = math.sqrt(math.fsum((d - mean) ** 2) / (n - 1))
    floor = math.log1p(1 / SUB_BUCKETS) if kind == "tail" else 0.0
    if spread <= ROUNDING * max(1.0, abs(mean)):
        return _constant(0.0 if abs(mean) <= ROUNDING else mean, n, floor, alpha, sequential)
    t = mean / spread * math.sqrt(n)
    if sequential:
        test = Test("t e-process on logarithms", log_e=log_e_t(n, t))
    else:
        p = float(stats.ttest_rel(np.log(after), np.log(before)).pvalue)
        test = Test("paired t test on logarithms", p=p)
    half = max(radius(n, alpha, sequential) * spread, floor)
    return Finding(
        quantity="geometric-mean ratio",
        relative=True,
        estimate=_change(mean),
        low=_change(mean - half),
        high=_change(mean + half),
        differs=abs(mean) > half,
        test=test,
        centre=mean,
        spread=spread,
        mde=_change(max(detectable(n, alpha, sequential) * spread, floor)),
        floor=floor,
        to_scale=math.log1p,
    )


def _constant(mean: float, n: int, floor: float, alpha: float, sequential: bool) -> Finding:
    """Log ratios that are the same in every pair: a statement on their median, by the sign test.

    Every other median has all pairs on one side and is rejected, as soon as there are enough of them. Before
    that, there is no interval: that some pairs agree says nothing of the next.
    """
    test = sign_test(n if mean > 0 else 0, n if mean < 0 else 0, sequential)
    half = floor if n >= unanimous(alpha, sequential) else math.inf
    return Finding(
        quantity="median ratio",
        relative=True,
        estimate=_change(mean),
        low=_change(mean - half),
        high=_change(mean + half),
        differs=abs(mean) > half,
        test=test,
        centre=mean,
        spread=0.0,
        mde=None,
        floor=floor,
        least_pairs=unanimous(alpha, sequential),
        to_scale=math.log1p,
    )


def _change(log_ratio: float) -> float:
    return math.expm1(log_ratio) if log_ratio < 700 else math.inf


def ratio_of_totals(before: Array, after: Array, kind: Kind, alpha: float, sequential: bool) -> Finding:
    """The ratio of totals of values of which some are 0.

    The test is of exchangeable arms and exact: flipping the signs of differences, or the sign e-process. The
    interval is Fieller's, with the radius of the t test or of its confidence sequence: ratios r for which the
    mean of after - r before may be 0. Where it reaches across what the test has rejected it is cut there, and
    where the test has not rejected "no change" it is widened to hold it.

    If `after` has never counted anything, after - r before has one sign for every r > 0. The ratio's interval
    then begins at 0 and ends, for counts, where independent events would have left no trace with a
    probability of alpha/2: at a total of ln(2/alpha) (the "rule of three"). exp(total) is the likelihood
    ratio of "none" against that total, hence this bound may be looked at after every pair, too.

    If there is no such interval (`before` has nothing to divide by), the difference per pair is given.
    """
    n = len(before)
    d = after - before
    if sequential:
        test = sign_test(int((d > 0).sum()), int((d < 0).sum()), sequential)
    else:
        test = _flipped(before, after)
    if not d.any():
        return _identical(before, kind, test, alpha, sequential)
    # Many pairs may go one way, and one outlier more than all of them the other way.
    leans = float(np.sign(d).sum()) if sequential else float(d.sum())
    differs = rejects(test, alpha) and leans * float(d.sum()) > 0
    unit = float(max(before.max(), after.max()))
    a, b = before / unit, after / unit
    ends = fieller(a, b, radius(n, alpha, sequential))
    mean = float(d.sum()) / unit / n
    spread = float(np.std(d / unit, ddof=1))
    least = unanimous(alpha, sequential)
    if ends is None:
        half = radius(n, alpha, sequential) * spread
        if spread <= ROUNDING * abs(mean):
            half = 0.0 if n >= least else math.inf
        low, high = _agree(mean - half, mean + half, mean, differs)
        return Finding(
            quantity="difference per seed",
            relative=False,
            estimate=float(d.sum()) / n,
            low=low * unit,
            high=high * unit,
            differs=differs,
            test=test,
            centre=mean * unit,
            spread=spread * unit,
            mde=detectable(n, alpha, sequential) * spread * unit,
            least_pairs=least,
        )
    ratio = float(b.sum()) / float(a.sum())
    low, high = ends
    if ratio == 0 and kind == "count" and np.array_equal(before, np.floor(before)):
        high = max(high, math.log(2 / alpha) / float(before.sum()))
    low, high = _agree(low - 1, high - 1, ratio - 1, differs)
    spread /= float(a.sum()) / n
    return Finding(
        quantity="ratio of totals",
        relative=True,
        estimate=ratio - 1,
        low=low,
        high=high,
        differs=differs,
        test=test,
        centre=ratio - 1,
        spread=spread,
        mde=detectable(n, alpha, sequential) * spread,
        least_pairs=least,
    )


def _identical(values: Array, kind: Kind, test: Test, alpha: float, sequential: bool) -> Finding:
    """Pairs with zeros, and the same in both arms. Pairs of two zeros say nothing of a ratio."""
    n, nonzero = len(values), int(np.count_nonzero(values))
    if nonzero == 0:
        # The rule of three needs a unit, which counts have.
        bound = math.log(2 / alpha) / n if kind == "count" else math.inf
        return Finding("difference per seed", False, 0.0, -bound, bound, False, test, 0.0, 0.0, None)
    least = unanimous(alpha, sequential)
    half = 0.0 if nonzero >= least else math.inf
    return Finding(
        quantity="median ratio",
        relative=True,
        estimate=0.0,
        low=max(-half, -1.0),
        high=half,
        differs=False,
        test=test,
        centre=0.0,
        spread=0.0,
        mde=None,
        least_pairs=n + least - nonzero,
    )


def fieller(before: Array, after: Array, radius: float) -> tuple[float, float] | None:
    """Ratios r >= 0 with |mean(after - r before)| < radius * sd(after - r before); None if not an interval.

    It is one if the mean of `before` itself is told from 0.
    """
    if not math.isfinite(radius):
        return None
    n = len(before)
    a, b = float(before.sum()) / n, float(after.sum()) / n
    x, y = before - a, after - b
    s_aa, s_ab, s_bb = (float(product) / (n - 1) for product in (x @ x, x @ y, y @ y))
    q = radius**2
    square, linear, constant = a * a - q * s_aa, a * b - q * s_ab, b * b - q * s_bb
    if square <= ROUNDING * a * a:
        return None
    root = math.sqrt(max(linear * linear - square * constant, 0.0))
    ratio = b / a
    return max(0.0, min((linear - root) / square, ratio)), max((linear + root) / square, ratio)


def _agree(low: float, high: float, estimate: float, differs: bool) -> tuple[float, float]:
    """An interval that excludes 0 if, and only if, the exact test of "no change" does."""
    if not differs:
        return min(low, 0.0), max(high, 0.0)
    return (max(low, 0.0), high) if estimate > 0 else (low, min(high, 0.0))


def difference_of_shares(before: Array, after: Array, alpha: float, sequential: bool) -> Finding:
    """Whether a trial ended badly (a value above 0), in how many more seeds after than before.

    McNemar's exact test: of b seeds that are bad only after and c only before, b is half of b + c. The
    interval of b/n - c/n has an interval at alpha/2 for each, which is wide and holds always.
    """
    n = len(before)
    d = (after > 0).astype(float) - (before > 0).astype(float)
    b, c = int((d > 0).sum()), int((d < 0).sum())
    test = sign_test(b, c, sequential)
    named = {True: "e-process of discordant pairs", False: "binomial test of discordant pairs"}
    test = Test(named[sequential], test.p, test.log_e, test.least)
    more, fewer = (share_interval(k, n, alpha / 2, sequential) for k in (b, c))
    estimate = (b - c) / n
    low, high = _agree(more[0] - fewer[1], more[1] - fewer[0], estimate, rejects(test, alpha))
    least = unanimous(alpha, sequential)
    return Finding(
        quantity="difference of shares",
        relative=False,
        estimate=estimate,
        low=low,
        high=high,
        differs=rejects(test, alpha),
        test=test,
        centre=estimate,
        spread=float(np.std(d, ddof=1)),
        # The share of seeds that are bad in one arm only which gives enough of them in n with this power.
        mde=float(special.betaincinv(least, n - least + 1, POWER)) if n >= least else None,
        least_pairs=least,
    )


# --- cross-checks ----------------------------------------------------------------------------------


def _flipped(before: Array, after: Array) -> Test:
    """The paired permutation test: signs of differences flipped, all 2^n of them or RESAMPLES at random."""

    def mean_difference(x: Array, y: Array, axis: int) -> Array:
        return np.asarray(np.mean(x - y, axis=axis))

    # Pairs without a difference have nothing to flip, and scipy wants two that have.
    changed = after != before
    if changed.sum() < 2:
        return Test("sign-flip permutation", p=1.0, least=1.0)
    found = stats.permutation_test(
        (after[changed], before[changed]),
        mean_difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    least = max(2.0 ** (1 - int(changed.sum())), 2 / (RESAMPLES + 1))
    leans = float((after - before).sum())
    return Test("sign-flip permutation", p=float(found.pvalue), least=min(least, 1.0), leans=leans)


def _wilcoxon(before: Array, after: Array) -> Test:
    d = np.log(after) - np.log(before) if (before > 0).all() and (after > 0).all() else after - before
    d = d[d != 0]
    least = min(2.0 ** (1 - len(d)), 1.0)
    p = float(stats.wilcoxon(d).pvalue) if len(d) else 1.0
    leans = float(np.sign(d) @ stats.rankdata(abs(d)))
    return Test("Wilcoxon signed-rank", p=p, least=least, leans=leans)


def _bootstrapped(before: Array, after: Array) -> Test:
    """Twice the share of resampled sets of pairs whose ratio of totals is on the other side of 1.

    Of few pairs that is too small a number: it is no smaller than an exact test's can be.
    """

    def mean_difference(x: Array, y: Array, axis: int) -> Array:
        return np.asarray(np.mean(x - y, axis=axis))

    unit = float(max(before.max(), after.max())) or 1.0
    found = stats.bootstrap(
        (after / unit, before / unit),
        mean_difference,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    resampled = found.bootstrap_distribution
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    least = min(2.0 ** (1 - int((before != after).sum())), 1.0)
    p = min(1.0, 2 * (tail + 1) / (RESAMPLES + 1))
    leans = float((after - before).sum())
    return Test("paired bootstrap of totals", p=max(p, least), least=least, leans=leans)


def cross_check(before: Array, after: Array, kind: Kind) -> Test | None:
    """The second opinion of a kind, always at fixed n; None where the primary test is exact already."""
    if kind == "outcome":
        return None
    if kind == "count":
        return _bootstrapped(before, after)
    if kind == "fairness":
        positive = (before > 0).all() and (after > 0).all()
        return _flipped(np.log(before), np.log(after)) if positive else _flipped(before, after)
    return _wilcoxon(before, after)


# --- more than one metric --------------------------------------------------------------------------


def holm_levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level at which Holm's procedure tests each p-value; it rejects those that are not above theirs."""
    levels = [0.0] * len(p_values)
    level = 0.0
    failed = False
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if not failed:
            level = alpha / (len(p_values) - rank)
            failed = p_values[index] > level
        levels[index] = level
    return levels


def discoveries(p_values: Sequence[float], alpha: float) -> int:
    """How many the procedure of Benjamini and Hochberg rejects; p = 1/e makes it that of Wang and Ramdas."""
    if not p_values:
        return 0
    return int((stats.false_discovery_control(np.asarray(p_values)) <= alpha).sum())
