# SPDX-License-Identifier: GPL-2.0-only
"""What direct reclaim costs those that do it, from the records of an instrumented kernel. Pure.

Every number is None unless each direct reclaim that was counted has its record: of some alone nothing
follows.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from testbed.analysis.episodes import beyond_own_part
from testbed.analysis.parse import Measurement
from testbed.analysis.requests import Chain, Fate
from testbed.analysis.views import Whole

Cost = Callable[[Chain], int]
# A quantile is told if at least so many values are larger: of fewer it is a matter of luck.
EXCEEDANCES = 100


def wait(chain: Chain) -> int:
    """ns from the end of the first reclaim to the page."""
    return chain.wait_ns


def slow(chain: Chain) -> int:
    """ns from the entry of the slow path to the page."""
    return chain.last.slow_ns


def mean(cost: Cost, fate: Fate | None = None) -> Whole:
    """The mean of all requests, or of those with one fate, in microseconds."""

    def value(m: Measurement) -> float | None:
        costs = _costs(m, cost, fate)
        return sum(costs) / len(costs) / 1e3 if costs else None

    return Whole(value)


def median(cost: Cost, fate: Fate) -> Whole:
    """The median of the requests with one fate, in microseconds: what most of them pay.

    A mean has those that lost their CPU on the way, too, and a few of them outweigh all others.
    """

    def value(m: Measurement) -> float | None:
        costs = _costs(m, cost, fate)
        return statistics.median(costs) / 1e3 if costs else None

    return Whole(value)


def quantile(cost: Cost, q: float) -> Whole:
    """The nearest rank of all requests, in microseconds; None unless EXCEEDANCES took longer."""

    def value(m: Measurement) -> float | None:
        costs = sorted(_costs(m, cost))
        rank = math.ceil(q * len(costs))
        return costs[rank - 1] / 1e3 if len(costs) - rank >= EXCEEDANCES else None

    return Whole(value)


def longest(cost: Cost) -> Whole:
    """The most that a request paid, in microseconds."""
    return Whole(lambda m: max((ns / 1e3 for ns in _costs(m, cost)), default=None))


def share(cost: Cost, fate: Fate | None = None) -> Whole:
    """What the workload's tasks paid, of all their time."""

    def value(m: Measurement) -> float | None:
        paid, took = _paid(m, cost, fate), _time(m)
        return sum(paid.values()) / took if paid is not None and took else None

    return Whole(value)


def worst_share(cost: Cost) -> Whole:
    """What the task paid that paid the largest part of its time."""

    def value(m: Measurement) -> float | None:
        paid = _paid(m, cost)
        if paid is None or m.workload is None:
            return None
        return max((paid[task.pid] / task.ns for task in m.workload.tasks if task.ns), default=None)

    return Whole(value)


def shared(cost: Cost, index: Callable[[Sequence[int]], float | None]) -> Whole:
    """How what was paid is shared among the tasks of group `main`."""

    def value(m: Measurement) -> float | None:
        paid = _paid(m, cost)
        if paid is None or m.workload is None:
            return None
        return index([paid[task.pid] for task in m.workload.tasks if task.group == "main"])

    return Whole(value)


def _costs(m: Measurement, cost: Cost, fate: Fate | None = None) -> list[int]:
    """What each request paid, or each with one fate, in ns; nothing unless all have their records."""
    return [cost(chain) for chain in m.chains or () if fate in (None, chain.fate)]


def _time(m: Measurement) -> int:
    """All time of the workload's tasks, in ns."""
    return sum(task.ns for task in m.workload.tasks) if m.workload else 0


def _paid(m: Measurement, cost: Cost, fate: Fate | None = None) -> dict[int, int] | None:
    """What each task of the workload paid, in ns."""
    if m.workload is None or m.chains is None:
        return None
    paid = dict.fromkeys((task.pid for task in m.workload.tasks), 0)
    for chain in m.chains:
        if chain.first.pid in paid and fate in (None, chain.fate):
            paid[chain.first.pid] += cost(chain)
    return paid


def queue_share(m: Measurement) -> float | None:
    """What tasks waited until others had left direct reclaim, of the time of the workload's."""
    waited = (m.counters or {}).get("direct_reclaim_wait_ns")
    took = _time(m)
    return waited / took if waited is not None and took else None


def waiting_share(m: Measurement) -> float | None:
    """What tasks waited after their own reclaim, and in line before it, of all their time.

    A kernel without a line has nobody wait in one.
    """
    waited = share(wait).value(m)
    return None if waited is None else waited + (queue_share(m) or 0.0)


def gini(shares: Sequence[int]) -> float | None:
    """The Gini coefficient: from 0 (all have the same) to 1 - 1/n (one has all).

    The sum of (2i - n - 1) x_i over n times the sum of x, x ascending and i from 1 to n (Sen: On Economic
    Inequality, 1973). None when nobody has anything.
    """
    n, total = len(shares), sum(shares)
    weighted = sum((2 * i - n - 1) * x for i, x in enumerate(sorted(shares), start=1))
    return weighted / (n * total) if total else None


def all_stolen(m: Measurement) -> float | None:
    """Of the requests whose reclaim freed pages, the share that had all of them taken while it waited."""
    freeing = [chain.last for chain in m.chains or () if chain.last.freed]
    return sum(last.stolen >= last.freed for last in freeing) / len(freeing) if freeing else None


def freed_per_request(m: Measurement) -> float | None:
    """Pages that a request's reclaims freed until it had its own."""
    freed = [chain.last.freed for chain in m.chains or ()]
    return sum(freed) / len(freed) if freed else None


def freed_for_others(m: Measurement) -> float | None:
    """As episodes.freed_for_others, of the pages that tasks freed until they had their own."""
    freed: Counter[int] = Counter()
    for chain in m.chains or ():
        freed[chain.first.pid] += chain.last.freed
    return beyond_own_part(m, freed)


def captured_age(m: Measurement) -> float | None:
    """How long ago a page that was used had been captured, on average, in microseconds."""
    ages = [chain.last.age_ns for chain in m.chains or () if chain.last.captured]
    return sum(ages) / len(ages) / 1e3 if ages else None
