# SPDX-License-Identifier: GPL-2.0-only
"""The history of a metric as a table. Pure; slow to import (scipy)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from testbed.analysis.decision import Decision
from testbed.analysis.history import Point
from testbed.report import words
from testbed.report.table import Table
from testbed.report.words import number


def table(title: str, unit: str, points: Sequence[Point], decisions: Sequence[Decision]) -> Table:
    """A row per kernel: its median and range, and what changed from the one before."""
    rows = []
    for point, decision in zip(points, [None, *decisions], strict=True):
        values = list(point.values.values())
        cells = [point.label, str(len(values)), "-", "-", ""]
        if values:
            cells[2:4] = [number(statistics.median(values)), f"{number(min(values))}-{number(max(values))}"]
        if decision:
            cells[4] = words.sentence("", decision).removeprefix(": ")
        rows.append(cells)
    headings = ["kernel", "seeds", "median", "range", "from the one before"]
    return Table(headings, rows, words=frozenset({0, 4}), title=f"{title} ({unit})")
