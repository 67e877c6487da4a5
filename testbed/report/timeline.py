# SPDX-License-Identifier: GPL-2.0-only
"""The history of a metric as a table. Pure; slow to import (scipy)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from testbed.analysis.history import Point
from testbed.analysis.verdict import Decision
from testbed.report import words
from testbed.report.text import number, visible


def render(title: str, unit: str, points: Sequence[Point], decisions: Sequence[Decision]) -> RenderableType:
    """A row per kernel: its median and range, and what changed from the one before."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{title} ({unit})", title_justify="left")
    for heading in ("kernel", "seeds", "median", "range", "from the one before"):
        table.add_column(heading, justify="left" if heading in ("kernel", "from the one before") else "right")
    for point, decision in zip(points, [None, *decisions], strict=True):
        values = list(point.values.values())
        cells = [visible(point.label), str(len(values)), "-", "-", ""]
        if values:
            cells[2:4] = [number(statistics.median(values)), f"{number(min(values))}-{number(max(values))}"]
        if decision:
            cells[4] = words.sentence("", asdict(decision)).removeprefix(": ")
        table.add_row(*map(Text, cells))
    return table
