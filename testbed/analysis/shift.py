# SPDX-License-Identifier: GPL-2.0-only
"""How a whole distribution of latencies shifts between two arms. Pure; slow to import (scipy)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from testbed.analysis.histogram import quantile

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999)
# Of which a spread can be had.
LEAST_SEEDS = 5


@dataclass(frozen=True)
class Shift:
    """Log ratios of the quantiles in QUANTILES, after to before, and a band around them."""

    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def shift(
    before: Mapping[int, Mapping[int, int]],
    after: Mapping[int, Mapping[int, int]],
    *,
    level: float = 0.95,
) -> Shift | None:
    """The mean over seeds of the log ratio of each quantile, with a band for all quantiles at once.

    Histograms (bucket -> count) by seed. For shift functions see Rousselet, Pernet, Wilcox: European Journal
    of Neuroscience 46, 2017. The band has Student's intervals at Šidák's level, which hold together however
    the quantiles depend on each other (Šidák: Annals of Mathematical Statistics 42, 1971); a bootstrap's
    critical value would be smaller, but not hold with some five seeds. None with fewer than LEAST_SEEDS
    pairs, or when a quantile is not above zero.
    """
    seeds = sorted(before.keys() & after.keys())
    if len(seeds) < LEAST_SEEDS:
        return None
    tables = [np.array([_quantiles(side[s]) for s in seeds], dtype=float) for side in (before, after)]
    if not all((table > 0).all() for table in tables):
        return None
    ratios = np.log(tables[1]) - np.log(tables[0])
    middle = ratios.mean(axis=0)
    error = ratios.std(axis=0, ddof=1) / np.sqrt(len(seeds))
    outside = 1 - level ** (1 / len(QUANTILES))
    half = stats.t.isf(outside / 2, len(seeds) - 1) * error
    return Shift(*(tuple(map(float, values)) for values in (middle, middle - half, middle + half)))


def _quantiles(histogram: Mapping[int, int]) -> Sequence[float]:
    return [quantile(histogram, q) or 0 for q in QUANTILES]
