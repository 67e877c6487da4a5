# SPDX-License-Identifier: GPL-2.0-only
"""Whether the differences of pairs drift while pairs are run, and what that does to intervals. Pure.

A host that gets slower from hour to hour does no harm to a comparison: both arms of a pair run in it. What
does is a host that changes so that one arm feels it more than the other, and slowly enough that neighbours
feel the same. Tests that take pairs for independent then find changes that are not there.
"""

from __future__ import annotations

import math

import numpy as np

from testbed.analysis.decision import Drift
from testbed.analysis.statistics import ROUNDING, Array

# How often a report warns of a drift that is not there, all its primary metrics together.
LEVEL = 0.01
PERMUTATIONS = 9_999


def differences(before: Array, after: Array) -> Array:
    """What each pair says, on the scale of its test: of logarithms where nothing is 0."""
    if (before > 0).all() and (after > 0).all():
        return np.asarray(np.log(after) - np.log(before))
    return after - before


def drift(d: Array, level: float = LEVEL) -> Drift | None:
    """The drift of differences in the order in which their pairs were run; None if chance explains it.

    The test is one-sided and exact for pairs in any order: how many orders of the same differences have
    neighbours that are as much alike (Wald, Wolfowitz: An exact test for randomness in the non-parametric
    case based on serial correlation, Annals of Mathematical Statistics 14(4), 1943), of PERMUTATIONS drawn
    with a fixed seed.
    """
    n = len(d)
    # Of fewer than 6 pairs, no order is rarer than 1 %.
    if n < 6 or np.ptp(d) <= ROUNDING * float(np.abs(d).max()):
        return None
    centred = d - d.mean()
    orders = np.random.default_rng(0).permuted(np.tile(centred, (PERMUTATIONS, 1)), axis=1)
    seen = _neighbours(centred)
    # Sums in another order round otherwise; the same order has to count as one.
    as_much = int((_neighbours(orders) >= seen - ROUNDING * float(centred @ centred)).sum())
    p = (1 + as_much) / (1 + PERMUTATIONS)
    if p > level:
        return None
    correlation = unbiased(float(seen) / float(centred @ centred), n)
    return Drift(correlation, p, math.sqrt((1 + correlation) / (1 - correlation)))


def _neighbours(centred: Array) -> Array:
    return np.asarray((centred[..., :-1] * centred[..., 1:]).sum(axis=-1))


def unbiased(r: float, n: int) -> float:
    """The autocorrelation of a series of which n values have one of r, on average.

    r is too small by (1 + 4 rho) / n: Kendall: Note on bias in the estimation of autocorrelation, Biometrika
    41(3-4), 1954. A mean of n values has a variance that is (1 + rho) / (1 - rho) times that of independent
    ones (Bayley, Hammersley: The effective number of independent observations in an autocorrelated time
    series, Supplement to the Journal of the Royal Statistical Society 8(2), 1946). rho is no larger than
    makes that n, as n pairs are worth no less than one.
    """
    return min(max((n * r + 1) / (n - 4), 0.0), (n - 1) / (n + 1))
