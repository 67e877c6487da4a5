# SPDX-License-Identifier: GPL-2.0-only
"""One metric over the results of many kernels, and where it changed. Pure; slow to import (scipy)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from testbed.analysis.decision import Decision
from testbed.analysis.metrics import Metric
from testbed.analysis.verdict import decide


@dataclass(frozen=True)
class Point:
    """A kernel and its values by seed."""

    label: str
    values: Mapping[int, float]


def changes(points: Sequence[Point], metric: Metric, *, alpha: float, margin: float) -> list[Decision]:
    """What changed from each point to the next: one decision less than points.

    The steps share alpha evenly, so that it is the rate of false alarms over the whole history.
    """
    steps = max(1, len(points) - 1)
    return [
        decide(
            before.values,
            after.values,
            kind=metric.kind,
            better=metric.better,
            alpha=alpha / steps,
            margin=margin,
            sequential=False,
        )
        for before, after in itertools.pairwise(points)
    ]
