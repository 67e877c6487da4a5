# SPDX-License-Identifier: GPL-2.0-only
"""Which pictures a comparison has, and what goes into each. Pure; slow to import (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from matplotlib.figure import Figure

from testbed.analysis import shift
from testbed.analysis.compare import Comparison, Observation, by_construction
from testbed.analysis.histogram import merged
from testbed.analysis.metrics import METRICS
from testbed.analysis.parse import Measurement
from testbed.analysis.verdict import decide
from testbed.ledger.record import MEASURED
from testbed.report import plots
from testbed.report.document import ComparisonReport
from testbed.report.html import Picture
from testbed.report.plots import Row, Track

# Metric -> the lines that it is to be compared with, columns of the samples.
TRACKS = {
    "free_pages": ("min", "low", "high"),
    "memory_held": (),
    "psi_some": (),
    "pgscan_direct": (),
    "pgscan_kswapd": (),
    "pgsteal_direct": (),
}


def pictures(
    report: ComparisonReport, comparison: Comparison, observations: Sequence[Observation]
) -> list[Picture]:
    """All that the trials give; seeds are those of the comparison."""
    measured: dict[str, dict[int, Measurement]] = {name: {} for name in comparison.arms}
    for o in observations:
        if o.record.outcome == MEASURED and o.record.seed in comparison.seeds:
            measured[o.record.arm][o.record.seed] = o.measurement
    if not comparison.seeds:
        return []
    return [
        *_forests(report, comparison),
        *_latencies(measured),
        *_slopes(report, comparison),
        *_strips(measured),
        *_over_time(measured, report),
    ]


def _picture(name: str, caption: str, figure: Figure, place: Literal["first", "later"] = "later") -> Picture:
    return Picture(name, caption, plots.rendered(figure, "svg"), plots.rendered(figure, "png"), place)


def _forests(report: ComparisonReport, comparison: Comparison) -> Iterator[Picture]:
    first = next(iter(comparison.arms), "")
    primary = report.experiment.primary
    for arm in report.verdicts:
        rows = [
            Row(one.title, d.estimate, *d.interval, d.verdict, primary[one.metric].margin)
            for one in report.decisions("primary")
            for d in [one.decision]
            if one.arm == arm and d.interval and d.relative and d.estimate is not None
        ]
        rows += _plain_rows(comparison, first, arm, set(primary))
        if rows:
            figure = plots.forest(rows)
            caption = (
                f"{arm} against {first}: the change of each metric, n = {len(comparison.seeds)} pairs. "
                "Bold: declared primary, with the interval of its verdict and its margin shaded; the others: "
                "95 % intervals of a t test, corrected for nothing, to see and not to conclude"
            )
            yield _picture(f"forest.{arm}", caption, figure, "first")


def _plain_rows(comparison: Comparison, first: str, arm: str, primary: set[str]) -> Iterator[Row]:
    """The metrics that nobody declared, each by itself."""
    for metric in comparison.metrics:
        arms = comparison.arms[first], comparison.arms[arm]
        if metric.level != "main" or metric.name in primary or by_construction(metric, *arms):
            continue
        before, after = (
            {s: v for s, v in side.values[metric.name].items() if s in comparison.seeds} for side in arms
        )
        found = decide(
            before,
            after,
            kind=metric.kind,
            better=metric.better,
            alpha=0.05,
            margin=0.0,
            sequential=False,
            full=False,
        )
        if found.interval and found.relative and found.estimate and max(map(abs, found.interval)) > 0:
            yield Row(metric.title, found.estimate, *found.interval, "")


def _latencies(measured: Mapping[str, Mapping[int, Measurement]]) -> Iterator[Picture]:
    groups = dict.fromkeys(
        task.group
        for seeds in measured.values()
        for m in seeds.values()
        if m.workload
        for task in m.workload.tasks
    )
    for group in groups:
        histograms = {
            arm: {s: _histogram(m, group) for s, m in seeds.items()} for arm, seeds in measured.items()
        }
        figure = plots.tail(
            {arm: list(seeds.values()) for arm, seeds in histograms.items()}, f"group {group}"
        )
        first, *others = histograms
        n = len(histograms[first])
        caption = f"Latencies of group {group}: the share of operations that took longer, n = {n} seeds"
        yield _picture(f"latency.{group}", caption, figure)
        bands = {arm: shift.shift(histograms[first], histograms[arm]) for arm in others}
        known = {arm: (b.middle, b.low, b.high) if b else None for arm, b in bands.items()}
        if any(known.values()):
            figure = plots.shift(shift.QUANTILES, known, n)
            caption = f"Latencies of group {group}: every quantile's change against {first}, n = {n} seeds"
            yield _picture(f"shift.{group}", caption, figure)


def _histogram(m: Measurement, group: str) -> Mapping[int, int]:
    return merged(
        dict(task.histogram) for task in (m.workload.tasks if m.workload else ()) if task.group == group
    )


def _slopes(report: ComparisonReport, comparison: Comparison) -> Iterator[Picture]:
    for name in report.experiment.primary:
        values = {
            seed: [arm.values[name][seed] for arm in comparison.arms.values()]
            for seed in comparison.seeds
            if all(seed in arm.values[name] for arm in comparison.arms.values())
        }
        if values:
            title = report.title(name)
            figure = plots.slopes(title, list(comparison.arms), values)
            yield _picture(f"slopes.{name}", f"{title}, seed by seed, n = {len(values)}", figure)


def _strips(measured: Mapping[str, Mapping[int, Measurement]]) -> Iterator[Picture]:
    tasks = {
        arm: [[t.ops for t in m.workload.tasks if t.group == "main"] for m in seeds.values() if m.workload]
        for arm, seeds in measured.items()
    }
    found = {arm: [values for values in seeds if values] for arm, seeds in tasks.items()}
    if any(found.values()):
        n = max(map(len, found.values()))
        yield _picture("tasks", f"What every task got done, n = {n} seeds", plots.strips(found))


def _over_time(
    measured: Mapping[str, Mapping[int, Measurement]], report: ComparisonReport
) -> Iterator[Picture]:
    workload = report.experiment.workload
    # When a workload of this project ends, its memory is free at once: no part of the picture.
    end = workload.length if workload.load else math.inf
    by_name = {metric.name: metric for metric in METRICS}
    tracks = []
    for name, limits in TRACKS.items():
        if name not in by_name:
            continue
        series: Callable[[Measurement], Sequence[tuple[float, float]]] = by_name[name].series
        arms = {
            arm: [[point for point in series(m) if point[0] <= end] for m in seeds.values()]
            for arm, seeds in measured.items()
        }
        if any(len(found) > 1 for seeds in arms.values() for found in seeds):
            one = next(iter(next(iter(measured.values())).values()))
            rows = one.samples
            lines = {of: rows.rows[0][rows.place[of]] for of in limits if rows and of in rows.place}
            title = f"{by_name[name].title} ({by_name[name].series_unit})"
            stair = wanted(one, end) if name == "memory_held" else ()
            tracks.append(Track(title, arms, lines, stair))
    if tracks:
        n = max(map(len, measured.values()))
        caption = f"Over time, from the workload's start: the median of {n} seeds and their quartiles"
        yield _picture("over-time", caption, plots.over_time(tracks))


def wanted(measurement: Measurement, end: float) -> list[tuple[float, float]]:
    """How much memory was to be taken away, as a stair."""
    stair = [(0.0, 0.0), *((target.ns / 1e9, float(target.pages)) for target in measurement.targets)]
    last = measurement.measured_seconds or stair[-1][0]
    return [*stair, (min(end, last), stair[-1][1])]
