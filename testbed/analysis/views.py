# SPDX-License-Identifier: GPL-2.0-only
"""How a metric's number is had from a trial: of the whole workload, of each phase, and over time.

Most are an expression over a reading of counters, and are had from it in three ways: of the whole workload
(what was counted at its end less at its start), of each phase, and over time (from differences of rows of the
samples).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from testbed.analysis.histogram import highest, merged
from testbed.analysis.parse import Measurement, Samples, Task

Series = Sequence[tuple[float, float]]
Counts = Mapping[str, int]


# --- expressions over counters --------------------------------------------------------------------


@dataclass(frozen=True)
class Expression:
    """A number that follows from how far counters went; None where one of them is not there, or fell."""

    text: str
    of: Callable[[Counts], float | None]


def counter(*names: str) -> Expression:
    """The sum of counters."""

    def of(counts: Counts) -> float | None:
        parts = [counts.get(name, -1) for name in names]
        return sum(parts) if min(parts) >= 0 else None

    return Expression(" + ".join(names), of)


def every(prefix: str) -> Expression:
    """The sum of all counters whose names begin so; where there is none, it is not known, rather than 0."""

    def of(counts: Counts) -> float | None:
        parts = [n for name, n in counts.items() if name.startswith(prefix)]
        return sum(parts) if parts and min(parts) >= 0 else None

    return Expression(f"{prefix}*", of)


def beyond(more: Expression, less: Expression) -> Expression:
    """By how much one is more than the other; 0 if it is not."""

    def of(counts: Counts) -> float | None:
        top, bottom = more.of(counts), less.of(counts)
        return max(0.0, top - bottom) if top is not None and bottom is not None else None

    return Expression(f"{more.text} - {less.text}, or 0", of)


def ratio(top: Expression, bottom: Expression, scale: float = 1.0) -> Expression:
    """One by the other, times `scale`; None where that is 0."""

    def of(counts: Counts) -> float | None:
        over, under = top.of(counts), bottom.of(counts)
        return over / under * scale if over is not None and under else None

    sides = [f"({side.text})" if " " in side.text else side.text for side in (top, bottom)]
    times = f"{scale:g} x " if scale != 1 else ""
    return Expression(times + " / ".join(sides), of)


@dataclass(frozen=True)
class _Change(Mapping[str, int]):
    """How far the counters of a table went from one row to another."""

    columns: Mapping[str, int]
    before: Sequence[int]
    after: Sequence[int]

    def __getitem__(self, name: str) -> int:
        return self.after[self.columns[name]] - self.before[self.columns[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


def _columns(m: Measurement, samples: Samples) -> Mapping[str, int]:
    """Where each counter is in a row. The guest writes 0 for what its kernel does not tell."""
    absent = {"psi_some_us", "psi_full_us"} if m.pressure is None else set()
    if not m.kswapd or not m.kswapd.difference:
        absent.add("kswapd_ns")
    return {name: index for name, index in samples.place.items() if name not in absent}


def totals(m: Measurement) -> Counts:
    """What was counted of the whole workload, with the names that the samples have."""
    totals = dict(m.counters or {})
    if m.pressure:
        totals |= {f"psi_{name}_us": n for name, n in m.pressure.difference.items()}
    if m.kswapd and m.kswapd.difference:
        totals["kswapd_ns"] = sum(m.kswapd.difference.values())
    if m.samples and not m.samples.lost:
        totals["ns"] = m.samples["ns"][-1] - m.samples["ns"][0]
    return totals


# --- views ----------------------------------------------------------------------------------------


class View(Protocol):
    """A number of one trial, and of its phases and over time, as far as its source allows."""

    def value(self, m: Measurement) -> float | None:
        """Of the whole workload; None where the kernel or the log does not tell it."""

    def per_phase(self, m: Measurement) -> Mapping[str, float]:
        """Of each phase, by its number, from "0" on."""

    def series(self, m: Measurement) -> Series:
        """Over time, as (seconds from the start, value)."""


@dataclass(frozen=True)
class Whole:
    """Of the whole workload only."""

    value: Callable[[Measurement], float | None]

    def per_phase(self, m: Measurement) -> Mapping[str, float]:
        """Nothing."""
        return {}

    def series(self, m: Measurement) -> Series:
        """Nothing."""
        return ()


@dataclass(frozen=True)
class Counted:
    """An expression over counters. What is `extensive` is per second in a series."""

    expression: Expression
    extensive: bool

    def value(self, m: Measurement) -> float | None:
        """Of what was counted at the end, less at the start."""
        return self.expression.of(totals(m))

    def per_phase(self, m: Measurement) -> Mapping[str, float]:
        """From a phase's first row to the next one's."""
        if not m.samples:
            return {}
        columns, rows = _columns(m, m.samples), m.samples.rows
        return _known(
            (str(phase), self.expression.of(_Change(columns, rows[start], rows[end])))
            for phase, (start, end) in m.samples.phases.items()
        )

    def series(self, m: Measurement) -> Series:
        """From row to row, at the time of the later one."""
        if not m.samples:
            return ()
        columns, rows, seconds = _columns(m, m.samples), m.samples.rows, m.samples.seconds
        points = []
        for i in range(1, len(rows)):
            value = self.expression.of(_Change(columns, rows[i - 1], rows[i]))
            took = seconds[i] - seconds[i - 1]
            if value is not None and took > 0:
                points.append((seconds[i], value / took if self.extensive else value))
        return points


@dataclass(frozen=True)
class Sampled:
    """The mean over time of something that every row of the samples tells, had samples been asked for."""

    of: Callable[[Mapping[str, int]], float]
    columns: tuple[str, ...]

    def value(self, m: Measurement) -> float | None:
        """Weighted with how long each row was the last one."""
        series = self.series(m)
        return _mean(series) if not (m.samples and m.samples.lost) else None

    def per_phase(self, m: Measurement) -> Mapping[str, float]:
        """Of the rows of each phase."""
        series = self.series(m)
        phases = m.samples.phases.items() if m.samples and series else ()
        return _known((str(phase), _mean(series[start : end + 1])) for phase, (start, end) in phases)

    def series(self, m: Measurement) -> Series:
        """Row by row."""
        samples = m.samples
        asked = m.sampling and m.sampling.get("period_ns")
        if not samples or not asked or not all(name in samples for name in self.columns):
            return ()
        values = zip(*(samples[name] for name in self.columns), strict=True)
        rows = (dict(zip(self.columns, row, strict=True)) for row in values)
        return [(seconds, self.of(row)) for seconds, row in zip(samples.seconds, rows, strict=True)]


def _mean(series: Series) -> float | None:
    """Of a step function, whose last point is its end."""
    length = series[-1][0] - series[0][0] if series else 0
    if length <= 0:
        return None
    steps = pairwise(series)
    return sum(value * (until - since) for (since, value), (until, _) in steps) / length


def _known(pairs: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    return {name: value for name, value in pairs if value is not None}


def _tasks(m: Measurement, group: str) -> list[Task]:
    return [task for task in m.workload.tasks if task.group == group] if m.workload else []


def _by_phase(tasks: Sequence[Task]) -> Iterator[tuple[str, list[Mapping[int, int]]]]:
    """The histograms of all tasks, phase by phase; where a task has none, not of any."""
    for phase in range(min((len(task.phases) for task in tasks), default=0)):
        yield str(phase), [task.phases[phase] for task in tasks]


@dataclass(frozen=True)
class Latency:
    """Something of how long the operations of a group took, all its tasks taken together."""

    group: str
    of: Callable[[Mapping[int, int]], float | None]

    def value(self, m: Measurement) -> float | None:
        """Of all operations."""
        return self.of(merged(task.histogram for task in _tasks(m, self.group)))

    def per_phase(self, m: Measurement) -> Mapping[str, float]:
        """Of the operations that began in each phase."""
        phases = _by_phase(_tasks(m, self.group))
        return _known((phase, self.of(merged(histograms))) for phase, histograms in phases)

    def series(self, m: Measurement) -> Series:
        """Nothing."""
        return ()


@dataclass(frozen=True)
class Slowest(Latency):
    """The longest operation: exactly, where there are no phases."""

    of: Callable[[Mapping[int, int]], float | None] = lambda found: (
        highest(max(found)) / 1e3 if found else None
    )

    def value(self, m: Measurement) -> float | None:
        """Of all operations."""
        return max((task.max_ns / 1e3 for task in _tasks(m, self.group) if task.ops), default=None)


@dataclass(frozen=True)
class Shared:
    """Something of how the operations of a group are shared among its tasks."""

    group: str
    of: Callable[[Sequence[int]], float | None]

    def value(self, m: Measurement) -> float | None:
        """Of all operations."""
        return self.of([task.ops for task in _tasks(m, self.group)])

    def per_phase(self, m: Measurement) -> Mapping[str, float]:
        """Of the operations that began in each phase."""
        phases = _by_phase(_tasks(m, self.group))
        return _known((phase, self.of([sum(h.values()) for h in histograms])) for phase, histograms in phases)

    def series(self, m: Measurement) -> Series:
        """Nothing."""
        return ()


@dataclass(frozen=True)
class Speed:
    """Operations per second of all tasks of a group; a task's seconds end with its last operation."""

    group: str

    def value(self, m: Measurement) -> float | None:
        """Of all operations."""
        tasks = _tasks(m, self.group)
        return sum(task.ops / task.ns * 1e9 for task in tasks if task.ns) if tasks else None

    def per_phase(self, m: Measurement) -> Mapping[str, float]:
        """Of the operations that began in each phase, by its length."""
        took: dict[str, float] = {}
        if m.samples:
            seconds = m.samples.seconds
            took = {str(phase): seconds[b] - seconds[a] for phase, (a, b) in m.samples.phases.items()}
        return {
            phase: sum(sum(h.values()) for h in histograms) / took[phase]
            for phase, histograms in _by_phase(_tasks(m, self.group))
            if took.get(phase)
        }

    def series(self, m: Measurement) -> Series:
        """Nothing."""
        return ()
