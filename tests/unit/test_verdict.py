# SPDX-License-Identifier: GPL-2.0-only
"""What is said of paired values: the table of kinds, degenerate data, and what must hold for all values."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy import stats

from testbed.analysis.decision import DECIDED, Decision, Verdict
from testbed.analysis.metrics import Better, Kind
from testbed.analysis.statistics import radius
from testbed.analysis.verdict import Question, decide, judge
from tests.error_rates import Values, by_seed
from tests.unit.recorded import REPOSITORY

KINDS: tuple[Kind, ...] = get_args(Kind)
both = pytest.mark.parametrize("sequential", [False, True])
MISSES = [715, 616, 792, 700, 731, 688, 702, 745]
HIGH = [4812, 4741, 4932, 4800, 4790, 4833, 4851, 4777]


def said(
    before: ArrayLike,
    after: ArrayLike,
    kind: Kind = "rate",
    better: Better = "lower",
    alpha: float = 0.05,
    margin: float = 0.01,
    sequential: bool = False,
    full: bool = True,
) -> Decision:
    return decide(
        by_seed(np.asarray(before, float)),
        by_seed(np.asarray(after, float)),
        kind=kind,
        better=better,
        alpha=alpha,
        margin=margin,
        sequential=sequential,
        full=full,
    )


def noisy(change: float, n: int, spread: float = 0.02, seed: int = 0) -> tuple[Values, Values]:
    rng = np.random.default_rng(seed)
    return rng.lognormal(5, spread, n), (1 + change) * rng.lognormal(5, spread, n)


# --- four verdicts --------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("change", "better", "verdict"),
    [
        (0.2, "lower", "regressed"),
        (-0.2, "lower", "improved"),
        (0.2, "higher", "improved"),
        (-0.2, "higher", "regressed"),
        (0.2, "neither", "changed"),
    ],
)
def test_a_change_has_a_direction(change: float, better: Better, verdict: Verdict, sequential: bool) -> None:
    found = said(*noisy(change, 12), better=better, sequential=sequential)
    assert found.verdict == found.direction == verdict and found.decided
    assert found.interval and found.estimate and found.bound
    assert found.interval[0] < change < found.interval[1]
    assert found.interval[0] < found.estimate < found.interval[1]
    assert found.bound == max(map(abs, found.interval))
    assert found.primary and found.primary.evidence < 0.05 and not found.disagreement


@both
def test_equivalent_is_an_interval_inside_the_margin(sequential: bool) -> None:
    values = noisy(0.0, 40, spread=0.001)
    found = said(*values, sequential=sequential)
    assert (found.verdict, found.direction, found.decided) == ("equivalent", None, True)
    assert found.bound and found.bound < 0.01
    assert said(*values, margin=found.bound * 0.99, sequential=sequential).verdict == "inconclusive"


@both
def test_different_but_small_is_both(sequential: bool) -> None:
    found = said(*noisy(0.005, 40, spread=0.002), sequential=sequential)
    assert (found.verdict, found.direction) == ("different but small", "regressed")


@both
def test_a_change_that_reaches_out_of_the_margin_is_not_small(sequential: bool) -> None:
    found = said(*noisy(0.01, 40, spread=0.002), sequential=sequential)
    assert found.verdict == "regressed" and found.interval and found.interval[0] < 0.01


@both
def test_inconclusive_says_what_would_settle_it(sequential: bool) -> None:
    before, after = noisy(0.02, 8, spread=0.05, seed=1)
    found = said(before, after, sequential=sequential)
    assert found.verdict == "inconclusive" and not found.decided
    assert found.seeds_needed and found.seeds_needed > 8
    d = np.log(after / before)
    assert radius(found.seeds_needed, 0.05, sequential) * d.std(ddof=1) < abs(d.mean())
    assert found.bound and found.bound > 0.02


def test_the_margin_does_not_depend_on_which_arm_is_called_before() -> None:
    low, high = np.ones(200), np.array([1.00995, 1.01005] * 100)
    assert [said(low, high).verdict, said(high, low).verdict] == ["regressed", "improved"]
    high -= 0.0001
    assert [said(low, high).verdict, said(high, low).verdict] == ["different but small"] * 2


def test_the_smallest_change_that_would_be_found() -> None:
    before, after = noisy(0.0, 20, spread=0.05)
    found = said(before, after)
    assert found.mde is not None
    t = stats.t.ppf(0.975, 19)
    size = math.log1p(found.mde) / np.log(after / before).std(ddof=1) * math.sqrt(20)
    assert stats.nct.sf(t, 19, size) == pytest.approx(0.9, abs=1e-4)
    later = said(before, after, sequential=True)
    assert later.mde and later.mde > found.mde


# --- each kind has its estimator ------------------------------------------------------------------


def test_a_rate_is_a_geometric_mean_by_t_and_wilcoxon() -> None:
    before, after = noisy(0.03, 15)
    found = said(before, after)
    d = stats.ttest_rel(np.log(after), np.log(before))
    interval = d.confidence_interval(0.95)
    assert found.primary and found.primary.p == pytest.approx(d.pvalue)
    assert found.estimate == pytest.approx(stats.gmean(after / before) - 1)
    assert found.interval == pytest.approx((math.expm1(interval.low), math.expm1(interval.high)))
    assert found.cross_check and found.cross_check.name == "Wilcoxon signed-rank"
    assert found.correlation == pytest.approx(np.corrcoef(np.log(before), np.log(after))[0, 1])


def test_counts_are_checked_by_a_bootstrap_of_totals() -> None:
    found = said(MISSES, [339, 336, 389, 340, 351, 337, 345, 360], kind="count")
    assert (found.verdict, found.quantity) == ("improved", "geometric-mean ratio")
    assert found.cross_check and found.cross_check.name == "paired bootstrap of totals"


@both
def test_counts_with_zeros_are_a_ratio_of_totals(sequential: bool) -> None:
    before, after = [9, 4, 0, 7, 8, 5, 9, 12, 6, 8], [2, 0, 0, 1, 3, 0, 1, 2, 0, 1]
    found = said(before, after, kind="count", sequential=sequential)
    assert (found.verdict, found.quantity) == ("improved", "ratio of totals")
    assert found.estimate == pytest.approx(sum(after) / sum(before) - 1)
    assert found.primary and found.primary.name == (
        "sign e-process" if sequential else "sign-flip permutation"
    )


def test_a_permutation_test_of_counts_is_exact() -> None:
    found = said([3, 2, 4, 1, 3, 2], [0, 1, 0, 0, 0, 0], kind="count")
    assert found.primary and found.primary.p == 2 * 2**-6


@both
def test_fairness_is_told_from_how_far_it_is_from_one(sequential: bool) -> None:
    before = [0.969, 0.968, 0.970, 0.967, 0.968, 0.971, 0.969, 0.970]
    after = [0.95, 0.951, 0.949, 0.952, 0.95, 0.947, 0.951, 0.949]
    found = said(before, after, kind="fairness", better="higher", sequential=sequential)
    assert found.verdict == "regressed" and found.estimate and found.estimate > 0.5
    assert found.cross_check and found.cross_check.name == "sign-flip permutation"
    assert said(after, before, kind="fairness", better="higher", sequential=sequential).verdict == "improved"


@both
def test_perfect_fairness_can_be_computed_with(sequential: bool) -> None:
    fair = [1.0] * 7 + [1 + 1e-12]
    unfair = [0.9, 0.91, 0.92, 0.9, 0.89, 0.9, 0.91, 0.92]
    found = said(fair, unfair, kind="fairness", better="higher", sequential=sequential)
    assert (found.verdict, found.relative) == ("regressed", False)
    assert said(fair, fair, kind="fairness", better="higher").verdict == "inconclusive"
    assert said([1 + 1e-12] * 8, [1.0] * 8, kind="fairness").estimate == 0


@both
def test_outcomes_are_discordant_pairs(sequential: bool) -> None:
    fine, bad = [0] * 9 + [1] * 2, [1, 3, 1, 1, 2, 1, 1, 1, 1, 1, 5]
    found = said(fine, bad, kind="outcome", sequential=sequential)
    assert (found.verdict, found.quantity, found.relative) == ("regressed", "difference of shares", False)
    assert found.estimate == pytest.approx(9 / 11)
    assert found.primary and (sequential or found.primary.p == pytest.approx(2 * 0.5**9))
    assert found.interval and 0 <= found.interval[0] < 9 / 11 < found.interval[1] <= 1
    if not sequential:
        more, fewer = (stats.binomtest(k, 11).proportion_ci(0.975) for k in (9, 0))
        assert found.interval == pytest.approx((more.low - fewer.high, more.high))
    mirrored = said(bad, fine, kind="outcome", sequential=sequential)
    assert mirrored.verdict == "improved"
    assert mirrored.interval == pytest.approx((-found.interval[1], -found.interval[0]))


@both
def test_outcomes_that_never_differ_bound_what_could_be(sequential: bool) -> None:
    found = said([0] * 10, [0] * 10, kind="outcome", margin=0.05, sequential=sequential)
    assert found.verdict == "inconclusive" and found.bound and 0.3 < found.bound < 0.4
    assert said([0] * 10, [0] * 10, kind="outcome", margin=0.5, sequential=sequential).verdict == "equivalent"


# --- degenerate data, of which deterministic guests have plenty -----------------------------------


@both
def test_all_misses_gone_is_an_improvement(sequential: bool) -> None:
    found = said(MISSES[:6], [0] * 6, kind="count", sequential=sequential)
    assert (found.verdict, found.estimate, found.quantity) == ("improved", -1, "ratio of totals")
    assert found.interval == pytest.approx((-1, math.log(40) / sum(MISSES[:6]) - 1))
    assert found.primary
    if sequential:
        assert found.primary.e == pytest.approx(23.2, abs=0.05)
    else:
        assert found.primary.p == 2**-5


def test_five_pairs_are_not_enough_for_it() -> None:
    found = said(MISSES[:5], [0] * 5, kind="count")
    assert (found.verdict, found.seeds_needed, found.interval) == ("inconclusive", 6, (-1, 0))
    assert not found.disagreement
    assert said(MISSES[:6], [0] * 6, kind="count", alpha=0.025, sequential=True).seeds_needed == 7


@both
def test_what_no_seed_had_before_is_a_difference(sequential: bool) -> None:
    found = said([0] * 8, HIGH, kind="count", better="neither", sequential=sequential)
    assert (found.verdict, found.quantity, found.relative) == ("changed", "difference per seed", False)
    assert found.estimate == pytest.approx(np.mean(HIGH)) and found.estimate and found.interval
    assert 4700 < found.interval[0] < found.estimate < found.interval[1] < 4950
    same = said([0] * 8, [5] * 8, kind="count", sequential=sequential)
    assert (same.verdict, same.interval) == ("regressed", (5, 5))
    few = said([0] * 5, [5] * 5, kind="count")
    assert (few.verdict, few.interval, few.seeds_needed) == ("inconclusive", None, 6)


@both
def test_nothing_in_either_arm_is_no_ratio(sequential: bool) -> None:
    found = said([0] * 10, [0] * 10, kind="count", margin=0.5, sequential=sequential)
    assert (found.verdict, found.estimate, found.relative) == ("inconclusive", 0, False)
    assert found.bound == pytest.approx(math.log(40) / 10)
    assert said([0] * 10, [0] * 10, kind="rate", sequential=sequential).interval is None


@both
@pytest.mark.parametrize("values", [[2.3] * 8, MISSES, [0, 3, 5, 0, 7, 1, 2, 6, 9, 0, 0]])
def test_the_same_in_every_pair_is_equivalent(values: list[float], sequential: bool) -> None:
    found = said(values, values, margin=0.0, sequential=sequential)
    assert (found.verdict, found.interval, found.bound) == ("equivalent", (0, 0), 0)


@both
def test_but_not_when_few_pairs_say_so(sequential: bool) -> None:
    assert said([7.0] * 5, [7.0] * 5).verdict == "inconclusive"
    assert said([7.0] * 5, [7.0] * 5).seeds_needed == 6
    found = said([0, 3, 5, 0, 7, 0, 0, 0], [0, 3, 5, 0, 7, 0, 0, 0], kind="count", sequential=sequential)
    assert (found.verdict, found.interval, found.seeds_needed) == ("inconclusive", None, 11)


@both
def test_a_tail_is_known_no_better_than_its_bucket(sequential: bool) -> None:
    found = said([2.3] * 20, [2.3] * 20, kind="tail", margin=0.005, sequential=sequential)
    assert found.verdict == "inconclusive" and found.bound == pytest.approx(1 / 128)
    assert found.seeds_needed is None
    quiet = said(*noisy(0.005, 40, spread=0.001), kind="tail", sequential=sequential)
    assert (quiet.direction, quiet.primary and quiet.primary.evidence < 0.001) == (None, True)
    assert quiet.interval and quiet.interval[1] - quiet.interval[0] > 2 / 129
    assert said([2.3] * 20, [2.3] * 20, kind="tail", sequential=sequential).verdict == "equivalent"
    one_bucket = said([256.0] * 20, [257.5] * 20, kind="tail", margin=0, sequential=sequential)
    assert one_bucket.direction is None


@both
def test_a_constant_change_is_found_by_its_sign(sequential: bool) -> None:
    found = said(MISSES[:6], np.array(MISSES[:6]) * 1.05, sequential=sequential)
    assert (found.verdict, found.quantity) == ("regressed", "median ratio")
    assert found.interval == pytest.approx((0.05, 0.05))
    assert found.primary and found.primary.evidence == pytest.approx(
        1 / 23.2 if sequential else 2**-5, abs=1e-4
    )
    # No share of an error rate that a sign test cannot reach with six pairs.
    assert (
        said(MISSES[:6], np.array(MISSES[:6]) * 1.05, alpha=0.01, sequential=sequential).verdict
        == "inconclusive"
    )


@pytest.mark.parametrize(("n", "sequential"), [(0, False), (1, False), (2, False), (0, True), (5, True)])
def test_too_few_pairs_are_no_verdict(n: int, sequential: bool) -> None:
    found = said(MISSES[:n], HIGH[:n], sequential=sequential)
    assert (found.verdict, found.interval, found.primary) == ("none", None, None)
    assert found.seeds_needed == (6 if sequential else 3)
    assert found.reason == f"{n} of at least {found.seeds_needed} pairs"


@both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0])
def test_what_is_no_measurement_is_no_verdict(bad: float, kind: Kind, sequential: bool) -> None:
    values = [0.5] * 8
    for arms in ((values, [*values[:-1], bad]), ([bad, *values[1:]], values)):
        found = said(*arms, kind=kind, sequential=sequential)
        assert (found.verdict, found.decided, found.estimate) == ("none", False, None)
        assert found.reason.startswith("a value is")


def test_an_index_of_fairness_is_checked() -> None:
    assert said([0.0] * 8, [0.5] * 8, kind="fairness").verdict == "none"
    assert said([1.1] * 8, [0.5] * 8, kind="fairness").verdict == "none"


@both
def test_outliers_are_kept(sequential: bool) -> None:
    before, after = noisy(0.1, 12, spread=0.01)
    clean = said(before, after, sequential=sequential)
    after[3] *= 5
    found = said(before, after, sequential=sequential)
    assert clean.verdict == "regressed" and found.verdict == "inconclusive"
    assert found.pairs == 12 and found.disagreement == (not sequential)


def test_a_cross_check_that_points_the_other_way_disagrees() -> None:
    rng = np.random.default_rng(0)
    before = np.array([10.0] * 16 + [1000.0] * 4)
    after = np.array([13.0] * 16 + [900.0] * 4) * rng.lognormal(0, 0.01, 20)
    found = said(before, after, kind="count")
    assert found.direction == "regressed" and found.disagreement
    assert found.cross_check and found.cross_check.evidence < 0.05 and found.cross_check.leans < 0


def test_a_cross_check_of_too_few_pairs_does_not_disagree() -> None:
    found = said(*noisy(0.5, 4))
    assert found.direction == "regressed" and not found.disagreement
    assert found.cross_check and found.cross_check.p == 0.125


@both
def test_many_small_changes_against_one_large_are_no_direction(sequential: bool) -> None:
    after = [1.0] * 15 + [0.0]
    found = said([0.0] * 15 + [1000.0], after, kind="count", sequential=sequential)
    assert (found.verdict, found.direction) == ("inconclusive", None)


def test_seeds_of_one_arm_only_are_counted_and_not_used() -> None:
    before, after = by_seed(np.array(MISSES, float)), by_seed(np.array(HIGH, float))
    whole = decide(before, after, kind="rate", better="lower", alpha=0.05, margin=0, sequential=False)
    more = {**before, 90: 1.0, 91: math.nan}, {**after, 92: 5.0}
    found = decide(*more, kind="rate", better="lower", alpha=0.05, margin=0, sequential=False)
    assert found.unpaired == 3 and dataclasses.replace(found, unpaired=0) == whole


@pytest.mark.parametrize(("alpha", "margin"), [(0.0, 0.1), (1.0, 0.1), (math.nan, 0.1), (0.05, -0.1)])
def test_no_error_rate_and_no_margin_are_mistakes(alpha: float, margin: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        said(MISSES, HIGH, alpha=alpha, margin=margin)


# --- what must hold for all values ----------------------------------------------------------------

anything = st.one_of(
    st.floats(), st.floats(0, 1), st.integers(0, 5).map(float), st.sampled_from([0.0, 5e-324, 1e308, 1.0])
)
positive = st.floats(1e-3, 1e6)
counts = st.integers(0, 20).map(float)


def pairs(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[tuple[float, float]]]:
    return st.lists(st.tuples(values, values), min_size=6, max_size=12)


def of(values: list[tuple[float, float]], **how: Any) -> Decision:
    before, after = np.array(values).T if values else ([], [])
    return said(before, after, **how)


kinds = st.sampled_from(KINDS)
looks = st.booleans()


@given(st.lists(st.tuples(anything, anything), max_size=10), kinds, looks, st.sampled_from([0.05, 1e-9, 0.9]))
@example([(1e308, 5e-324), (5e-324, 1e308)] * 4, "count", True, 0.05)
@example([(1e308, 0.0)] * 8, "count", True, 0.05)
@example([(0.0, 5e-324)] * 7 + [(1e308, 0.0)], "rate", False, 0.05)
@settings(max_examples=150, deadline=None)
def test_no_values_raise_or_give_what_is_no_number(
    values: list[tuple[float, float]], kind: Kind, sequential: bool, alpha: float
) -> None:
    found = of(values, kind=kind, sequential=sequential, alpha=alpha)
    assert found.verdict in get_args(Verdict)
    assert found.decided == (found.verdict in DECIDED)
    numbers = [found.estimate, found.bound, found.correlation, found.mde, *(found.interval or ())]
    assert all(number is None or math.isfinite(number) for number in numbers)
    assert (found.verdict == "none") == bool(found.reason)
    if found.interval and found.estimate is not None:
        slack = 1e-9 * max(map(abs, found.interval))
        assert found.interval[0] - slack <= found.estimate <= found.interval[1] + slack
    if found.interval and found.verdict != "inconclusive" and found.direction:
        assert found.interval[0] >= 0 or found.interval[1] <= 0
    if found.verdict == "equivalent":
        assert found.bound is not None and found.bound <= 0.01


def alike(a: Decision, b: Decision) -> bool:
    """The same but for rounding."""
    if (a.verdict, a.direction, a.quantity, a.pairs) != (b.verdict, b.direction, b.quantity, b.pairs):
        return False
    x, y = ([d.estimate, d.bound, d.mde, *(d.interval or ())] for d in (a, b))
    return all(
        p == q or (p is not None and q is not None and math.isclose(p, q, rel_tol=1e-6, abs_tol=1e-9))
        for p, q in zip(x, y, strict=True)
    )


@given(pairs(positive) | pairs(counts), kinds, looks, st.integers(-20, 20), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_units_and_the_order_of_seeds_change_nothing(
    values: list[tuple[float, float]], kind: Kind, sequential: bool, exponent: int, random: Any
) -> None:
    assume(kind != "fairness")
    found = of(values, kind=kind, sequential=sequential, full=False)
    shuffled = random.sample(values, len(values))
    assert alike(found, of(shuffled, kind=kind, sequential=sequential, full=False))
    # What counts is its own unit, where nothing is left of it.
    if kind != "count":
        scaled = [(a * 2.0**exponent, b * 2.0**exponent) for a, b in values]
        other = of(scaled, kind=kind, sequential=sequential, full=False)
        assert (found.verdict, found.direction, found.quantity) == (
            other.verdict,
            other.direction,
            other.quantity,
        )
        if found.relative:
            assert alike(found, other)


SWAPPED = {"improved": "regressed", "regressed": "improved"}


@given(pairs(positive) | pairs(counts), kinds, looks)
@settings(max_examples=100, deadline=None)
def test_swapping_the_arms_turns_the_answer_round(
    values: list[tuple[float, float]], kind: Kind, sequential: bool
) -> None:
    assume(kind != "fairness")
    found = of(values, kind=kind, sequential=sequential, full=False)
    other = of([(b, a) for a, b in values], kind=kind, sequential=sequential, full=False)
    # What has no ratio in one direction may have one in the other.
    if found.quantity == other.quantity:
        assert SWAPPED.get(found.verdict, found.verdict) == other.verdict
        assert SWAPPED.get(found.direction or "", found.direction) == other.direction
        assert found.primary and other.primary
        assert found.primary.evidence == pytest.approx(other.primary.evidence)
        if found.interval and other.interval and min(*found.interval, *other.interval) > -0.999:
            low, high = found.interval
            turned = (1 / (1 + high) - 1, 1 / (1 + low) - 1) if found.relative else (-high, -low)
            assert other.interval == pytest.approx(turned, rel=1e-6, abs=1e-9)


# --- several metrics ------------------------------------------------------------------------------


def asked(name: str, change: float, n: int = 12, seed: int = 0, spread: float = 0.05) -> Question:
    before, after = noisy(change, n, spread, seed)
    return Question(name, by_seed(before), by_seed(after), "rate", "lower", 0.01)


def test_primaries_share_the_error_rate() -> None:
    questions = [asked("a", 0.3, seed=1), asked("b", 0.3, seed=2), asked("c", 0.0, seed=3)]
    judged = judge(questions, [], alpha=0.06, sequential=True)
    assert {name: d.alpha for name, d in judged.primaries.items()} == pytest.approx(
        dict.fromkeys("abc", 0.02)
    )
    assert [d.decided for d in judged.primaries.values()] == [True, True, False]
    assert not judged.decided and judged.more_pairs == judged.primaries["c"].seeds_needed - 12  # type: ignore[operator]
    whole = judge(questions[:1], [], alpha=0.05, sequential=True)
    assert whole.decided and whole.more_pairs == 0 and whole.primaries["a"].alpha == 0.05


def test_at_fixed_n_holm_finds_more_than_an_even_share() -> None:
    strong = asked("strong", 0.5)
    weak = next(
        question
        for seed in range(1000)
        for question in [asked("weak", 0.05, seed=seed)]
        for p in [judge([question], [], alpha=0.05, sequential=False).primaries["weak"].primary]
        if p and 0.026 < p.evidence < 0.049
    )
    judged = judge([weak, strong], [], alpha=0.05, sequential=False)
    assert [d.direction for d in judged.primaries.values()] == ["regressed", "regressed"]
    assert (judged.primaries["weak"].alpha, judged.primaries["strong"].alpha) == (0.05, 0.025)
    alone = judge([weak, asked("null", 0.0, seed=5)], [], alpha=0.05, sequential=False)
    assert alone.primaries["weak"].direction is None and alone.primaries["weak"].alpha == 0.025


@both
def test_exploratory_metrics_are_corrected_and_decide_nothing(sequential: bool) -> None:
    primary = asked("primary", 0.3)
    many = [asked(f"null {i}", 0.0, seed=i + 10, n=20) for i in range(18)]
    many += [asked(f"real {i}", 0.3, seed=i + 50, n=20) for i in range(2)]
    judged = judge([primary], many, alpha=0.05, sequential=sequential)
    assert judged.decided
    found = {name for name, d in judged.exploratory.items() if d.direction}
    assert {"real 0", "real 1"} <= found
    assert {d.alpha for d in judged.exploratory.values()} == {0.05 * len(found) / 20}
    without = judge([primary], many[:18], alpha=0.05, sequential=sequential)
    assert {d.direction for d in without.exploratory.values()} == {None}
    assert {d.alpha for d in without.exploratory.values()} == {0.05 / 18}


def test_what_cannot_be_computed_is_not_decided() -> None:
    broken = Question("x", by_seed(np.full(8, math.nan)), by_seed(np.ones(8)), "rate", "lower")
    judged = judge([asked("a", 0.3), broken], [broken], alpha=0.05, sequential=False)
    assert not judged.decided and judged.more_pairs is None
    assert judged.primaries["a"].decided and judged.exploratory["x"].verdict == "none"
    few = judge([asked("a", 0.3, n=4)], [], alpha=0.05, sequential=True)
    assert not few.decided and few.more_pairs == 2


@pytest.mark.parametrize("count", [0, 4])
def test_one_to_three_primaries(count: int) -> None:
    with pytest.raises(ValueError, match="primary"):
        judge([asked(str(i), 0.0) for i in range(count)], [], alpha=0.05, sequential=True)


# --- what it costs those who do not use it --------------------------------------------------------


def test_the_command_line_starts_without_it() -> None:
    program = "import sys, testbed.cli; print([m for m in ('numpy', 'scipy') if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.strip() == "[]"
