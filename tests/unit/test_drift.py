# SPDX-License-Identifier: GPL-2.0-only
"""Drift of the differences of pairs: when it is said, how large, and how often for nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from testbed.analysis.compare import Observation
from testbed.analysis.drift import LEVEL, differences, drift, unbiased
from testbed.analysis.judge import judgements
from testbed.analysis.parse import parse
from testbed.analysis.statistics import Array
from testbed.report.document import compared
from tests.unit.recorded import counted, plan, record

Rng = np.random.Generator


def autoregressive(rng: Rng, n: int, rho: float) -> Array:
    """Values of which each is rho times the one before and something new; the variance is 1."""
    values = [float(rng.normal())]
    for new in rng.normal(size=n - 1):
        values.append(rho * values[-1] + math.sqrt(1 - rho**2) * float(new))
    return np.array(values)


# Differences of pairs that do not depend on each other, whatever they are like.
NULL: dict[str, Callable[[Rng, int], Array]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "t with 3 degrees": lambda rng, n: rng.standard_t(3, size=n),
    "skewed": lambda rng, n: np.asarray(rng.exponential(size=n)),
    "two values": lambda rng, n: np.asarray(rng.choice([-1.0, 1.0], size=n), dtype=np.float64),
    "counts, mostly 0": lambda rng, n: np.asarray(
        rng.poisson(0.3, size=n) - rng.poisson(0.3, size=n), dtype=np.float64
    ),
}


@pytest.mark.parametrize("world", NULL)
def test_a_warning_for_nothing_is_rare(world: str) -> None:
    rng, experiments = np.random.default_rng(1), 250
    warned = sum(drift(NULL[world](rng, 12)) is not None for _ in range(experiments))
    # Three standard errors above the level, at most.
    assert warned / experiments <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / experiments)


def test_what_drifts_is_said_and_by_how_much() -> None:
    """With an autocorrelation of 0.8, intervals are 3 times too narrow."""
    rng, experiments = np.random.default_rng(2), 60
    found = [drift(autoregressive(rng, 40, 0.8)) for _ in range(experiments)]
    said = [one for one in found if one]
    assert len(said) / experiments > 0.85
    assert 0.6 < float(np.median([one.correlation for one in said])) < 0.95
    assert 2 < float(np.median([one.narrow for one in said])) < 5


def test_more_pairs_say_it_more_often() -> None:
    shares = []
    for n in (8, 20):
        rng = np.random.default_rng(3)
        shares.append(np.mean([drift(autoregressive(rng, n, 0.8)) is not None for _ in range(60)]))
    assert shares[0] < 0.3 < shares[1]


def test_the_p_value_is_the_share_of_orders() -> None:
    """All 720 orders of 6 values, counted: 2 of them have neighbours as much alike as the sorted one."""
    d = np.array([-9.0, -3.0, -1.0, 1.0, 4.0, 8.0])
    centred = d - d.mean()

    def alike(order: tuple[float, ...]) -> float:
        return sum(a * b for a, b in itertools.pairwise(order))

    seen = alike(tuple(centred))
    exact = np.mean([alike(order) >= seen - 1e-9 for order in itertools.permutations(centred)])
    found = drift(d, level=0.05)
    assert found and found.p == pytest.approx(exact, abs=0.002)


@pytest.mark.parametrize("d", [[], [1.0], [1.0] * 20, [0.0] * 20, [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_too_few_or_all_the_same_say_nothing(d: list[float]) -> None:
    assert drift(np.array(d)) is None


def test_n_pairs_are_worth_no_less_than_one() -> None:
    found = drift(np.arange(12.0))
    assert found and found.narrow <= math.sqrt(12) + 1e-9
    assert unbiased(1.0, 12) == 11 / 13
    # Of independent values r is -1/n on average, which stands for 0.
    assert unbiased(-1 / 12, 12) == pytest.approx(0.0)


def test_differences_are_of_logarithms_where_they_can_be() -> None:
    ones, twos = np.ones(2), np.array([2.0, 0.5])
    assert differences(ones, twos) == pytest.approx([math.log(2), -math.log(2)])
    assert differences(ones, np.array([0.0, 3.0])) == pytest.approx([-1, 2])


def test_what_counts_is_the_order_in_which_pairs_were_run() -> None:
    """Sorted by seed these differences are a ramp; they were run in another order, which has none."""
    ramp = [800 + 20 * n for n in range(12)]

    def judged(order: list[int]) -> float | None:
        rows = [
            Observation(
                record(arm, seed, started=f"2026-11-24T05:{order.index(seed):02}:00+00:00"),
                parse(counted(allocstall_movable=1000 if arm == "unpatched" else ramp[seed - 1])),
            )
            for arm in ("unpatched", "patched")
            for seed in range(1, 13)
        ]
        comparison = compared(plan(seeds=12), rows)
        found = judgements(comparison, {"direct_reclaims": 0.01}, alpha=0.05, sequential=False)
        drifted = found["patched"].primaries["direct_reclaims"].drift
        return drifted.narrow if drifted else None

    in_order = judged(list(range(1, 13)))
    assert in_order and in_order > 2
    assert judged([1, 12, 2, 11, 3, 10, 4, 9, 5, 8, 6, 7]) is None
