# SPDX-License-Identifier: GPL-2.0-only
"""The registry of metrics: name, unit, which direction is better, and how one trial's value is had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from testbed.analysis.histogram import merged, quantile
from testbed.analysis.parse import Measurement

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Metric:
    """A number of one trial. `value` gives None where the kernel or the log does not tell it."""

    name: str
    title: str
    unit: str
    better: Better
    value: Callable[[Measurement], float | None]
    # Whether trials whose workload failed have it, too, and would be missed if they were left out.
    of_failures: bool = False


def _counter(name: str) -> Callable[[Measurement], float | None]:
    return lambda m: m.counters.get(name) if m.counters is not None else None


def _tallied(name: str) -> Callable[[Measurement], float | None]:
    """What tracepoints tell, unless some of their events were lost: what is missing changes any number."""
    return lambda m: m.tally.get(name) if m.tally is not None and m.tally.get("lost") == 0 else None


def _sum_of_counters(prefix: str) -> Callable[[Measurement], float | None]:
    """All counters whose names begin so; where there is none, this is not known, rather than none."""

    def value(m: Measurement) -> float | None:
        parts = [n for name, n in (m.counters or {}).items() if name.startswith(prefix)]
        return sum(parts) if parts else None

    return value


def _misses_per_try(m: Measurement) -> float | None:
    tries, misses = (_counter(f"direct_reclaim_{name}")(m) for name in ("try", "miss"))
    return misses / tries if tries and misses is not None else None


def _pages_per_second(m: Measurement) -> float | None:
    if m.workload is None:
        return None
    return sum(task.pages / task.ns * 1e9 for task in m.workload.tasks if task.ns)


def _latency(q: float) -> Callable[[Measurement], float | None]:
    """A quantile of all tasks' faults taken together, in microseconds."""

    def value(m: Measurement) -> float | None:
        if m.workload is None:
            return None
        ns = quantile(merged(dict(task.histogram) for task in m.workload.tasks), q)
        return None if ns is None else ns / 1e3

    return value


def _slowest(m: Measurement) -> float | None:
    return max(task.max_ns for task in m.workload.tasks) / 1e3 if m.workload else None


def jain(shares: list[int]) -> float | None:
    """Jain's fairness index: (sum x)^2 / (n sum x^2), from 1/n (one has all) to 1 (all have the same).

    Jain, Chiu, Hawe: DEC Research Report TR-301, 1984. None when nobody has anything.
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


def _fairness(m: Measurement) -> float | None:
    return jain([task.pages for task in m.workload.tasks]) if m.workload else None


def _oom_kills(m: Measurement) -> float | None:
    # The counter knows nothing of kills while the windows are filled; the console may have lost lines.
    counted = m.counters.get("oom_kill") if m.counters is not None else None
    return counted if not m.oom_victims else max(counted or 0, len(m.oom_victims))


METRICS: tuple[Metric, ...] = (
    # One counter a zone since 4.10.
    Metric("direct_reclaims", "direct reclaims", "count", "lower", _sum_of_counters("allocstall_")),
    Metric("tries", "order-0 tries", "count", "neither", _counter("direct_reclaim_try")),
    Metric("misses", "misses before the drain", "count", "lower", _counter("direct_reclaim_miss")),
    Metric(
        "misses_drained", "misses after the drain", "count", "lower", _counter("direct_reclaim_miss_drained")
    ),
    Metric("misses_per_try", "misses per try", "ratio", "lower", _misses_per_try),
    Metric("stock_tries", "order-0 tries (events)", "count", "neither", _tallied("tries")),
    Metric("stock_misses_estimated", "misses before (events)", "count", "lower", _tallied("misses")),
    Metric("stock_misses_drained", "misses after (events)", "count", "lower", _tallied("misses_drained")),
    Metric("stock_repeats", "repeated reclaims (events)", "count", "lower", _tallied("repeats")),
    Metric("stock_thefts", "pages stolen (events)", "count", "neither", _tallied("thefts")),
    Metric(
        "stock_thefts_waiting", "pages stolen while waiting", "count", "lower", _tallied("thefts_waiting")
    ),
    Metric("stock_lost", "lost events", "count", "lower", lambda m: m.tally.get("lost") if m.tally else None),
    Metric("captures", "pages captured", "count", "neither", _counter("reclaim_capture")),
    Metric("captures_used", "captured pages used", "count", "neither", _counter("reclaim_capture_used")),
    Metric(
        "captures_unused", "captured pages unused", "count", "neither", _counter("reclaim_capture_unused")
    ),
    Metric(
        "captures_rejected",
        "pages not captured",
        "count",
        "neither",
        _sum_of_counters("reclaim_capture_reject"),
    ),
    Metric("pages_per_second", "pages touched", "pages/s", "higher", _pages_per_second),
    Metric("fault_p50", "fault p50", "us", "lower", _latency(0.5)),
    Metric("fault_p99", "fault p99", "us", "lower", _latency(0.99)),
    Metric("fault_p999", "fault p99.9", "us", "lower", _latency(0.999)),
    Metric("fault_max", "fault max", "us", "lower", _slowest),
    Metric("fairness", "Jain's fairness", "index", "higher", _fairness),
    Metric("oom_kills", "OOM kills", "count", "lower", _oom_kills, of_failures=True),
)
