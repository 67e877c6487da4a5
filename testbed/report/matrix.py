# SPDX-License-Identifier: GPL-2.0-only
"""A matrix of comparisons: its report, a table with a row per cell, and what its heat maps show. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from rich.console import Group, RenderableType

from testbed.experiment import Json, Model, describe
from testbed.ledger.document import Document
from testbed.report.document import ComparisonReport, Metric
from testbed.report.table import Table, plain
from testbed.report.text import change, spread
from testbed.report.words import per, scale

# Of an experiment that declares no primary metric.
DEFAULT_METRICS = ("direct_reclaims", "pages_per_second")


class Value(Model):
    """A metric of an arm in a cell."""

    shown: str
    change: str
    ratio: float | None
    """Of the arm's median to that of the first arm; null where it cannot be had."""
    said: str
    """The verdict on it, if there is one, and why there is none if it cannot be had."""


class MatrixCell(Model):
    """A comparison of a matrix."""

    at: dict[str, Json]
    """Axis -> value."""
    name: str
    failure: str
    values: dict[str, dict[str, Value]]
    """Metric -> arm -> value."""


class MatrixReport(Document):
    """`report.json` of a matrix."""

    version: Literal[1] = Field(alias="schema")
    name: str
    arms: tuple[str, ...]
    metrics: tuple[str, ...]
    titles: dict[str, str]
    cells: tuple[MatrixCell, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: the report of its comparison, or why there is none."""

    at: Mapping[str, Json]
    name: str
    report: ComparisonReport | None
    failure: str = ""


def document(name: str, outcomes: Sequence[Outcome]) -> MatrixReport:
    """The report of the cells that there are."""
    reports = [outcome.report for outcome in outcomes if outcome.report]
    arms = tuple(reports[0].arms) if reports else ()
    metrics = (tuple(reports[0].experiment.primary) if reports else ()) or DEFAULT_METRICS
    return MatrixReport(
        schema=1,
        name=name,
        arms=arms,
        metrics=metrics,
        titles={metric: _title(reports, metric) for metric in metrics},
        cells=tuple(_cell(outcome, arms, metrics) for outcome in outcomes),
    )


def _title(reports: Sequence[ComparisonReport], metric: str) -> str:
    titles = (report.title(metric) for report in reports)
    return next((title for title in titles if title != metric), metric)


def _cell(outcome: Outcome, arms: Sequence[str], metrics: Sequence[str]) -> MatrixCell:
    report = outcome.report
    failure = outcome.failure
    if report and not report.seeds:
        failure = failure or "no seed was measured in every arm"
    values = {metric: _values(report, arms, metric) for metric in metrics} if report else {}
    return MatrixCell(at=dict(outcome.at), name=outcome.name, failure=failure, values=values)


def _values(report: ComparisonReport, arms: Sequence[str], metric: str) -> dict[str, Value]:
    first, *_ = by_arm = [report.arms[arm].metrics.get(metric) for arm in arms]
    return {
        arm: Value(
            shown=_shown(value, report.seeds),
            change=change(first, value) if index else "",
            ratio=_ratio(first, value),
            said=_said(report, arm, metric),
        )
        for index, (arm, value) in enumerate(zip(arms, by_arm, strict=True))
    }


def _shown(metric: Metric | None, seeds: Sequence[int]) -> str:
    """Median and range, with their unit."""
    divisor, unit = scale(metric.unit, metric.median or 0) if metric else (1.0, "")
    return spread(metric, seeds, divisor) + per(unit)


def _said(report: ComparisonReport, arm: str, metric: str) -> str:
    decision = report.verdicts[arm].primary.get(metric) if arm in report.verdicts else None
    if decision is None:
        return ""
    if decision.verdict == "none":
        return f"no verdict: {decision.reason}"
    if decision.verdict == "by construction":
        return "decided by construction"
    return "not decided" if decision.verdict == "inconclusive" else decision.verdict


def _ratio(before: Metric | None, after: Metric | None) -> float | None:
    if not before or not after or not before.median or after.median is None:
        return None
    return float(after.median / before.median)


def table(matrix: MatrixReport) -> Table:
    """A row per cell: the first arm's value, and the change to each of the others."""
    first, *others = matrix.arms or ("",)
    headings = ["cell"]
    for metric in matrix.metrics:
        headings += [f"{matrix.titles[metric]}, {first}", *others]
    return Table(headings, list(_rows(matrix, len(headings) - 1)))


def _rows(matrix: MatrixReport, width: int) -> Iterator[list[str]]:
    for cell in matrix.cells:
        values = [
            value.shown if index == 0 else "; ".join(filter(None, [value.change or value.shown, value.said]))
            for metric in matrix.metrics
            for index, value in enumerate(cell.values.get(metric, {}).values())
        ]
        if not values:
            values = [cell.failure.split("\n")[0], *[""] * (width - 1)]
        yield [describe(cell.at), *values]


def render(matrix: MatrixReport) -> RenderableType:
    """The table for a terminal."""
    return Group(plain(matrix.name, "bold"), table(matrix).terminal())


def markdown(matrix: MatrixReport) -> str:
    """The table as GitHub-flavoured Markdown."""
    return "\n".join([f"# {matrix.name}", "", *table(matrix).markdown()]) + "\n"


@dataclass(frozen=True)
class Grid:
    """One heat map: the ratio of an arm to the first, NaN-free; None where a cell has none."""

    metric: str
    arm: str
    title: str
    across: tuple[str, ...]
    down: tuple[str, ...]
    ratios: tuple[tuple[float | None, ...], ...]
    changes: tuple[tuple[str, ...], ...]
    """What stands where there is no ratio: a change from 0, if any."""


def grids(matrix: MatrixReport) -> list[Grid]:
    """A heat map per metric and arm: the last axis across, all others down."""
    cells = matrix.cells
    axes = list(cells[0].at)

    def split(at: Mapping[str, Json]) -> tuple[str, str]:
        last = axes[-1]
        return describe({k: v for k, v in at.items() if k != last}), describe({last: at[last]})

    across = list(dict.fromkeys(split(cell.at)[1] for cell in cells))
    down = list(dict.fromkeys(split(cell.at)[0] for cell in cells))
    found = []
    for metric in matrix.metrics:
        for arm in matrix.arms[1:]:
            at = {split(cell.at): cell.values[metric][arm] for cell in cells if metric in cell.values}
            rows = [[at.get((row, column)) for column in across] for row in down]
            ratios = tuple(tuple(value.ratio if value else None for value in row) for row in rows)
            changes = tuple(tuple(value.change if value else "" for value in row) for row in rows)
            title = f"{matrix.titles[metric]}: {arm} against {matrix.arms[0]}"
            found.append(Grid(metric, arm, title, tuple(across), tuple(down), ratios, changes))
    return found
