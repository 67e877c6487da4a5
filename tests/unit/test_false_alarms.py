# SPDX-License-Identifier: GPL-2.0-only
"""Error rates of the whole of analysis/verdict.py: tests/error_rates.py with fewer experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from testbed.analysis.verdict import Question, judge
from tests.error_rates import (
    ALPHA,
    PAIRS_NEEDED,
    WORLDS,
    by_seed,
    decisions,
    fixed_alarms,
    fixed_coverage,
    naive_alarms,
    pairs_taken,
    power,
    sequential_alarms,
    uniform_coverage,
)

# 10,000 experiments without an effect, looked at after every pair.
EXPERIMENTS = {
    "normal": 2500,
    "lognormal, 20 %": 2000,
    "t with 3 degrees, on logarithms": 2000,
    "counts of 700, overdispersed": 2000,
    "counts of 3, overdispersed": 1500,
}
CAP = 20


def errors(share: float, experiments: int, count: float = 3) -> float:
    """So many standard errors of a share."""
    return count * math.sqrt(share * (1 - share) / experiments)


@pytest.mark.parametrize("world", EXPERIMENTS)
def test_looking_after_every_pair_raises_few_false_alarms(world: str) -> None:
    assert 0 < sequential_alarms(WORLDS[world], EXPERIMENTS[world], CAP) <= ALPHA


def test_ten_thousand_experiments() -> None:
    assert sum(EXPERIMENTS.values()) == 10_000


@pytest.mark.parametrize("world", sorted(WORLDS.keys() - EXPERIMENTS.keys()))
def test_nor_do_other_kinds_of_values(world: str) -> None:
    assert sequential_alarms(WORLDS[world], 200, CAP) <= ALPHA + errors(ALPHA, 200)


def test_nor_do_three_primaries_together() -> None:
    assert sequential_alarms(WORLDS["normal"], 200, CAP, primaries=3) <= ALPHA + errors(ALPHA, 200)
    assert fixed_alarms(WORLDS["normal"], 500, primaries=3) <= ALPHA + errors(ALPHA, 500)


def test_looking_at_a_test_for_fixed_n_would_raise_many() -> None:
    """What the e-process is there for; and the simulation sees it."""
    assert naive_alarms(WORLDS["normal"], 300, CAP) > 0.12


@pytest.mark.parametrize("world", WORLDS)
def test_one_look_raises_no_more_than_it_may(world: str) -> None:
    n = 300 if WORLDS[world].kind in ("count", "outcome") else 1000
    assert fixed_alarms(WORLDS[world], n) <= ALPHA + errors(ALPHA, n)


def test_exploratory_metrics_raise_no_more_together() -> None:
    world, rng, alarms = WORLDS["normal"], np.random.default_rng(10), 0
    for _ in range(100):
        many = [
            Question(str(i), by_seed(before), by_seed(after), world.kind, world.better)
            for i in range(11)
            for before, after in [world.pairs(rng, 12)]
        ]
        judged = judge(many[:1], many[1:], alpha=ALPHA, sequential=False, full=False)
        alarms += any(decision.direction for decision in judged.exploratory.values())
    assert alarms / 100 <= ALPHA + errors(ALPHA, 100)


@pytest.mark.parametrize(("spread", "change"), PAIRS_NEEDED)
def test_known_effects_are_found_as_often_as_the_table_says(spread: float, change: float) -> None:
    """Within three points of the 90 % and a few, which the smallest whole number of pairs gives."""
    n = PAIRS_NEEDED[spread, change]
    critical = stats.t.ppf(1 - ALPHA / 2, n - 1)
    exact = stats.nct.sf(critical, n - 1, math.log1p(change) / spread * math.sqrt(n / 2))
    assert 0.9 <= exact < 0.93
    assert power(spread, change, n, 1000) == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("ratio", [0.5, 0.95])
@pytest.mark.parametrize("world", WORLDS)
def test_intervals_hold_the_truth(world: str, ratio: float) -> None:
    assert uniform_coverage(WORLDS[world], ratio, 80, CAP) >= 1 - ALPHA - errors(ALPHA, 80)
    assert fixed_coverage(WORLDS[world], ratio, 200) >= 1 - ALPHA - errors(ALPHA, 200)


@pytest.mark.parametrize("sequential", [False, True])
def test_what_is_as_large_as_the_margin_is_rarely_called_equivalent(sequential: bool) -> None:
    found = list(decisions(WORLDS["normal"], 1.1, 25, 500, sequential, margin=0.1))
    assert sum(d.verdict == "equivalent" for d in found) / 500 <= ALPHA / 2 + errors(ALPHA / 2, 500)
    assert any(
        d.verdict == "equivalent" for d in decisions(WORLDS["normal"], 1.0, 25, 50, sequential, margin=0.1)
    )


def test_large_effects_end_an_experiment_early() -> None:
    assert np.quantile(pairs_taken(3.0, 100), 0.9) <= 7
    assert np.median(pairs_taken(1.0, 100)) <= 14
