# SPDX-License-Identifier: GPL-2.0-only
"""How a distribution of latencies shifts: a known shift is found, none is not, and the band holds."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from testbed.analysis.histogram import bucket
from testbed.analysis.shift import LEAST_SEEDS, QUANTILES, shift

Histograms = dict[int, Counter[int]]
# A bucket is so wide, relative to its value.
WIDTH = 1 / 128


def trials(seed: int, count: int, factor: float = 1.0, spread: float = 0.02) -> Histograms:
    """Log-normal latencies of some µs; a trial is as a whole faster or slower by `spread`."""
    generator = np.random.default_rng(seed)
    found = {}
    for trial in range(1, count + 1):
        level = 20000 * factor * math.exp(generator.normal(0, spread))
        found[trial] = Counter(bucket(int(v)) for v in level * generator.lognormal(0, 0.8, 4000))
    return found


def test_nothing_is_found_where_nothing_is() -> None:
    found = shift(trials(8, 12), trials(9, 12))
    assert found
    assert all(low <= 0 <= high for low, high in zip(found.low, found.high, strict=True))
    assert all(
        low < middle < high for low, middle, high in zip(found.low, found.middle, found.high, strict=True)
    )


def test_symmetric_differences_are_centred_on_zero() -> None:
    faster, slower = trials(1, 6, factor=0.8), trials(2, 6, factor=1.25)
    turned = {seed: slower[seed] if seed % 2 else faster[seed] for seed in faster}
    other = {seed: faster[seed] if seed % 2 else slower[seed] for seed in faster}
    one, back = shift(turned, other), shift(other, turned)
    assert one and back
    assert one.middle == pytest.approx([-value for value in back.middle])
    assert one.low == pytest.approx([-value for value in back.high])
    assert all(low < 0 < high for low, high in zip(one.low, one.high, strict=True))


def test_a_shift_of_ten_percent_is_found() -> None:
    before, after = trials(3, 12), trials(4, 12, factor=1.1)
    found = shift(before, after)
    assert found and len(found.middle) == len(QUANTILES)
    # The outermost quantiles are of a handful of latencies each.
    assert found.middle[:6] == pytest.approx([math.log(1.1)] * 6, abs=0.03)
    assert all(low > 0 for low in found.low[:6])
    # A true statement about all quantiles at once.
    assert all(
        low - WIDTH <= math.log(1.1) <= high + WIDTH for low, high in zip(found.low, found.high, strict=True)
    )


def test_only_the_tail_shifts_when_only_the_tail_does() -> None:
    def tailed(histogram: Counter[int], value: int) -> Counter[int]:
        return Counter(
            {bucket(1000): 97 * sum(histogram.values()), bucket(value): 3 * sum(histogram.values())}
        )

    plain = trials(5, 6)
    before = {seed: tailed(h, 100_000 + 500 * seed) for seed, h in plain.items()}
    after = {seed: tailed(h, 200_000 + 500 * seed) for seed, h in plain.items()}
    found = shift(before, after)
    assert found
    for q, middle in zip(QUANTILES, found.middle, strict=True):
        assert middle == pytest.approx(math.log(2) if q > 0.97 else 0.0, abs=0.03)
    # Where no seed differs from another, the band is the line.
    assert found.low[0] == found.middle[0] == found.high[0] == 0


def test_a_band_of_less_certainty_is_narrower() -> None:
    wide, narrow = (shift(trials(6, 8), trials(7, 8), level=level) for level in (0.95, 0.5))
    assert wide and narrow and wide.middle == narrow.middle
    halves = [np.subtract(band.high, band.middle) for band in (wide, narrow)]
    assert (halves[0] > 1.2 * halves[1]).all() and (halves[1] > 0).all()


def drawn(generator: np.random.Generator, count: int) -> Histograms:
    """Three clusters, which every trial has somewhere else, so that quantiles hardly depend on each other."""
    found = {}
    for seed in range(count):
        body, tail, far = 1e6 * np.exp(generator.normal((0, 2, 4), 0.2))
        found[seed] = Counter({bucket(int(body)): 800, bucket(int(tail)): 185, bucket(int(far)): 15})
    return found


@pytest.mark.parametrize("count", [5, 12])
def test_the_band_covers_as_often_as_it_says(count: int) -> None:
    generator = np.random.default_rng(11)
    covered, runs = 0, 400
    for _ in range(runs):
        found = shift(drawn(generator, count), drawn(generator, count))
        assert found
        covered += all(low <= 0 <= high for low, high in zip(found.low, found.high, strict=True))
    # Three standard errors below.
    assert covered / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


@pytest.mark.parametrize("count", range(LEAST_SEEDS))
def test_of_few_seeds_there_is_no_band(count: int) -> None:
    assert shift(trials(1, count), trials(2, count)) is None
    assert LEAST_SEEDS == 5 and shift(trials(1, 5), trials(2, 5)) is not None


def test_seeds_of_one_arm_only_do_not_count() -> None:
    before, after = trials(1, 8), trials(2, 8)
    gone = {seed: h for seed, h in after.items() if seed > 4}
    assert shift(before, gone) is None
    both = {seed: h for seed, h in after.items() if seed > 3}
    assert shift(before, both) == shift({s: h for s, h in before.items() if s > 3}, both)


def test_an_empty_histogram_or_a_latency_of_zero_gives_none() -> None:
    before, after = trials(1, 6), trials(2, 6)
    assert shift(before, {**after, 3: Counter()}) is None
    assert shift({**before, 3: Counter({bucket(0): 10})}, after) is None


def test_the_same_data_give_the_same_band() -> None:
    before, after = trials(1, 6), trials(2, 6)
    assert shift(before, after) == shift(before, after)
