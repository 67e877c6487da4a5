# SPDX-License-Identifier: GPL-2.0-only
"""Formulas against what they are derived from, against scipy, and against published tables."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from testbed.analysis import statistics
from testbed.analysis.statistics import (
    LEAST_PAIRS,
    MOST_PAIRS,
    detectable,
    discoveries,
    fieller,
    holm_levels,
    log_e_sign,
    log_e_t,
    pairs_for,
    radius,
    share_interval,
    unanimous,
)
from tests.error_rates import PAIRS_NEEDED

LEVELS = (0.05, 0.025, 0.05 / 3, 0.01, 0.001)

# --- the t e-process ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [6, 9, 30])
@pytest.mark.parametrize("t", [0.0, -1.3, 2.5, 4.0])
def test_the_t_e_process_is_a_bayes_factor(n: int, t: float) -> None:
    """The density of t, mixed over normal effect sizes of variance 1, over that without an effect."""

    def weighted(effect: float) -> float:
        return float(stats.nct.pdf(t, n - 1, math.sqrt(n) * effect) * stats.norm.pdf(effect))

    mixed, _ = integrate.quad(weighted, -8, 8, limit=200, points=[t / math.sqrt(n)])
    assert math.exp(log_e_t(n, t)) == pytest.approx(mixed / stats.t.pdf(t, n - 1), rel=1e-4)


@pytest.mark.parametrize("n", [6, 12, 50])
def test_the_t_e_process_is_one_on_average_without_an_effect(n: int) -> None:
    def weighted(t: float) -> float:
        return math.exp(log_e_t(n, t)) * float(stats.t.pdf(t, n - 1))

    half, _ = integrate.quad(weighted, 0, math.inf, limit=500)
    # The cap at 2^(n - 1) takes something away, the more the fewer pairs there are.
    assert 0.8 < 2 * half <= 1 + 1e-6


def test_no_number_of_pairs_claims_more_than_a_sign_test_can() -> None:
    assert math.exp(log_e_t(6, 1e200)) == pytest.approx(32)
    assert log_e_t(2000, 1e9) <= 1999 * math.log(2)


@pytest.mark.parametrize("alpha", LEVELS)
def test_the_sequential_interval_is_what_the_e_process_has_not_rejected(alpha: float) -> None:
    for n in (*range(2, 60), 1000):
        half = radius(n, alpha, True)
        if math.isinf(half):
            assert log_e_t(n, 1e9) < -math.log(alpha)
        else:
            assert log_e_t(n, half * math.sqrt(n)) == pytest.approx(-math.log(alpha))


def test_the_sequential_interval_begins_where_a_sign_test_could_reject() -> None:
    first = {
        alpha: next(n for n in range(2, 50) if math.isfinite(radius(n, alpha, True))) for alpha in LEVELS
    }
    assert first == {alpha: math.ceil(1 - math.log2(alpha)) for alpha in LEVELS}
    assert first[0.05] == LEAST_PAIRS[True]


def test_the_interval_at_fixed_n_is_scipys() -> None:
    d = np.random.default_rng(0).normal(1, 2, 11)
    interval = stats.ttest_1samp(d, 0).confidence_interval(0.9)
    half = radius(11, 0.1, False) * d.std(ddof=1)
    assert (d.mean() - half, d.mean() + half) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("sequential", [False, True])
def test_more_pairs_make_narrower_intervals(sequential: bool) -> None:
    radii = [radius(n, 0.05, sequential) for n in range(LEAST_PAIRS[sequential], 300)]
    assert radii == sorted(radii, reverse=True) and radii[-1] < radii[0] / 8


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("spread", [0.5, 1.0, 7.0])
def test_pairs_for_gives_the_fewest(sequential: bool, spread: float) -> None:
    n = pairs_for(spread, 0.4, 0.05, sequential)
    assert n and radius(n, 0.05, sequential) * spread < 0.4 <= radius(n - 1, 0.05, sequential) * spread


def test_pairs_for_knows_what_is_out_of_reach() -> None:
    assert pairs_for(1.0, 0.0, 0.05, True) is None
    assert pairs_for(1.0, radius(MOST_PAIRS, 0.05, True), 0.05, True) is None
    assert pairs_for(0.0, 1.0, 0.05, True) == LEAST_PAIRS[True]


# --- power ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("n", [6, 25, 356])
def test_what_is_detectable_is_found_nine_times_of_ten(n: int, sequential: bool) -> None:
    critical = radius(n, 0.05, sequential) * math.sqrt(n)
    found = stats.nct.sf(critical, n - 1, detectable(n, 0.05, sequential) * math.sqrt(n))
    assert found == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize(("spread", "change"), PAIRS_NEEDED)
def test_the_table_of_pairs(spread: float, change: float) -> None:
    """Arms are independent: a pair's log ratio has a standard deviation of sqrt(2) * spread."""
    size = math.log1p(change) / (math.sqrt(2) * spread)
    needed = next(n for n in itertools.count(3) if detectable(n, 0.05, False) <= size)
    assert needed == PAIRS_NEEDED[spread, change]


def test_nothing_is_detectable_before_anything_can_be_rejected() -> None:
    assert detectable(5, 0.05, True) == math.inf


# --- signs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.5, 0.1, 0.93])
def test_the_sign_e_process_is_a_martingale(p: float) -> None:
    for ups, downs in itertools.product(range(8), repeat=2):
        after = p * math.exp(log_e_sign(ups + 1, downs, p)) + (1 - p) * math.exp(
            log_e_sign(ups, downs + 1, p)
        )
        assert math.exp(log_e_sign(ups, downs, p)) == pytest.approx(after)
    assert log_e_sign(0, 0, p) == pytest.approx(0)


def test_six_of_six_are_enough_at_five_percent() -> None:
    assert math.exp(log_e_sign(6, 0)) == pytest.approx(0.5 * math.comb(12, 6) / 4**6 * 2**6 + 2**6 / 4)
    assert [unanimous(alpha, True) for alpha in (0.05, 0.025, 0.05 / 3)] == [6, 7, 8]


@pytest.mark.parametrize("alpha", LEVELS)
def test_unanimous_pairs_at_fixed_n(alpha: float) -> None:
    n = unanimous(alpha, False)
    assert stats.binomtest(n, n).pvalue <= alpha < stats.binomtest(n - 1, n - 1).pvalue


@pytest.mark.parametrize("sequential", [False, True])
def test_intervals_of_a_share(sequential: bool) -> None:
    for n, k in ((1, 0), (1, 1), (7, 0), (7, 3), (7, 7), (400, 399)):
        low, high = share_interval(k, n, 0.05, sequential)
        assert 0 <= low <= k / n <= high <= 1
        assert share_interval(n - k, n, 0.05, sequential) == pytest.approx((1 - high, 1 - low))
        if sequential and 0 < k < n:
            ends = [log_e_sign(k, n - k, p) for p in (low, high)]
            assert ends == pytest.approx([math.log(20)] * 2)


def test_a_share_is_covered_at_all_looks_together() -> None:
    """Exact, over all 2^14 sequences: that any look excludes the truth has a probability below alpha."""
    p, n, alpha = 0.3, 14, 0.1
    alive = {0: 1.0}
    for tried in range(1, n + 1):
        step: dict[int, float] = {}
        for k, chance in alive.items():
            step[k] = step.get(k, 0.0) + chance * (1 - p)
            step[k + 1] = step.get(k + 1, 0.0) + chance * p
        alive = {k: c for k, c in step.items() if log_e_sign(k, tried - k, p) < -math.log(alpha)}
    assert 1 - alpha <= sum(alive.values()) < 1


# --- a ratio of totals ----------------------------------------------------------------------------


def test_fiellers_interval_is_where_the_t_test_does_not_reject() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.poisson(9, 12).astype(float), rng.poisson(5, 12).astype(float)
    half = radius(12, 0.05, False)
    ends = fieller(before, after, half)
    assert ends is not None and ends[0] < after.sum() / before.sum() < ends[1]
    for r in ends:
        assert stats.ttest_1samp(after - r * before, 0).pvalue == pytest.approx(0.05)
    assert fieller(after, before, half) == pytest.approx((1 / ends[1], 1 / ends[0]))


def test_there_is_no_ratio_to_what_may_be_nothing() -> None:
    before = np.array([0.0, 0, 0, 0, 0, 1])
    assert fieller(before, before + 40, radius(6, 0.05, False)) is None


# --- more than one metric -------------------------------------------------------------------------

# Benjamini, Hochberg: Journal of the Royal Statistical Society B 57(1), 1995, section 3.2.
THROMBOLYSIS = (
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
    *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0),
)


def test_the_published_example_of_false_discovery() -> None:
    assert discoveries(THROMBOLYSIS, 0.05) == 4
    assert discoveries([], 0.05) == 0


def test_holm_rejects_what_stepping_down_does() -> None:
    levels = holm_levels(THROMBOLYSIS, 0.05)
    assert [p <= level for p, level in zip(THROMBOLYSIS, levels, strict=True)] == [True] * 3 + [False] * 12
    assert holm_levels([0.04, 0.02, 0.001], 0.05) == pytest.approx([0.05, 0.025, 0.05 / 3])
    # After the first that is not rejected, no other is, however small its own share would make it.
    assert holm_levels([0.03, 0.001, 0.03], 0.05) == pytest.approx([0.025, 0.05 / 3, 0.025])


# --- cross-checks ---------------------------------------------------------------------------------


def test_the_cross_checks_are_scipys() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.lognormal(0, 0.2, 12), rng.lognormal(0.1, 0.2, 12)
    d = np.log(after) - np.log(before)
    rate = statistics.cross_check(before, after, "rate")
    fairness = statistics.cross_check(before, after, "fairness")
    assert rate and rate.p == pytest.approx(stats.wilcoxon(d).pvalue)
    flipped = [
        abs(np.dot(signs, d)) >= abs(d.sum()) - 1e-12 for signs in itertools.product((-1, 1), repeat=12)
    ]
    assert fairness and fairness.p == pytest.approx(np.mean(flipped))
    assert statistics.cross_check(before, after, "outcome") is None


def test_a_bootstrap_of_few_pairs_is_not_believed() -> None:
    found = statistics.cross_check(np.array([9.0, 8, 7]), np.array([1.0, 1, 0]), "count")
    assert found and found.p == found.least == 0.25
