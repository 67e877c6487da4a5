# SPDX-License-Identifier: GPL-2.0-only
"""Latency histograms: log-linear, 128 sub-buckets an octave, as images/src/mmap_test.c counts them.

A value v (ns) below 256 has a bucket of its own; above, bucket `shift * 128 + (v >> shift)` with
`shift = floor(log2 v) - 7`, so that a bucket is at most 1/128 of its value wide (the form of Gil Tene's
HdrHistogram).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

SUB_BUCKETS = 128
BUCKETS = 35 * SUB_BUCKETS


def bucket(value: int) -> int:
    """The bucket of a latency in ns; what is beyond the last bucket goes there."""
    shift = max(0, value.bit_length() - 8)
    return min(shift * SUB_BUCKETS + (value >> shift), BUCKETS - 1)


def highest(index: int) -> int:
    """The highest latency, in ns, that falls into a bucket."""
    shift = max(0, index // SUB_BUCKETS - 1)
    return ((index - shift * SUB_BUCKETS + 1) << shift) - 1


def merged(histograms: Iterable[Mapping[int, int]]) -> Counter[int]:
    """The sum of histograms (bucket -> count)."""
    total: Counter[int] = Counter()
    for histogram in histograms:
        total.update(histogram)
    return total


def quantile(histogram: Mapping[int, int], q: float) -> int | None:
    """The smallest bucket's highest value, in ns, with at least a share q of all counts at or below it.

    0 < q <= 1; None for an empty histogram.
    """
    rank = math.ceil(q * sum(histogram.values()))
    seen = 0
    for index in sorted(histogram):
        seen += histogram[index]
        if seen >= rank > 0:
            return highest(index)
    return None
