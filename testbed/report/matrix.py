# SPDX-License-Identifier: GPL-2.0-only
"""A matrix of comparisons as one document, a table with a row per cell, and what its heat maps show. Pure.

    cells = [{"at": {AXIS: VALUE}, "name", "failure",
              "values": {METRIC: {ARM: {"shown", "change", "ratio"}}}}]

`ratio` is of the arm's median to that of the first arm, null where it cannot be had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from testbed.experiment.file import describe
from testbed.report.text import change, escaped, markdown_line, spread, visible

SCHEMA = 1
# Of an experiment that declares no primary metric.
DEFAULT_METRICS = ("direct_reclaims", "pages_per_second")


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: the document of its comparison, or why there is none."""

    at: Mapping[str, Any]
    name: str
    document: Mapping[str, Any] | None
    failure: str = ""


def document(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The matrix as JSON has it."""
    known = [outcome.document for outcome in outcomes if outcome.document]
    arms = list(known[0]["arms"]) if known else []
    primary = list(known[0]["experiment"].get("primary", {})) if known else []
    metrics = primary or list(DEFAULT_METRICS)
    return {
        "schema": SCHEMA,
        "name": name,
        "arms": arms,
        "metrics": metrics,
        "titles": {metric: _title(known, metric) for metric in metrics},
        "cells": [_cell(outcome, arms, metrics) for outcome in outcomes],
    }


def _title(documents: Sequence[Mapping[str, Any]], metric: str) -> str:
    for found in documents:
        for arm in found["arms"].values():
            if metric in arm["metrics"]:
                return str(arm["metrics"][metric]["title"])
    return metric


def _cell(outcome: Outcome, arms: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "at": dict(outcome.at),
        "name": outcome.name,
        "failure": outcome.failure,
        "values": {},
    }
    if outcome.document is None:
        return cell
    seeds, compared = outcome.document["seeds"], outcome.document["arms"]
    if not seeds:
        cell["failure"] = cell["failure"] or "no seed was measured in every arm"
    for metric in metrics:
        found = [compared[arm]["metrics"].get(metric) for arm in arms]
        cell["values"][metric] = {
            arm: {
                "shown": spread(value, seeds),
                "change": change(found[0], value) if index else "",
                "ratio": _ratio(found[0], value),
            }
            for index, (arm, value) in enumerate(zip(arms, found, strict=True))
        }
    return cell


def _ratio(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> float | None:
    if not before or not after or not before["median"] or after["median"] is None:
        return None
    return float(after["median"] / before["median"])


def headings(matrix: Mapping[str, Any]) -> list[str]:
    """The first line of the table."""
    first, *others = matrix["arms"] or [""]
    columns = []
    for metric in matrix["metrics"]:
        title = matrix["titles"][metric]
        columns += [f"{title}, {first}", *(f"{arm}" for arm in others)]
    return ["cell", *columns]


def rows(matrix: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row per cell: the first arm's value, and the change to each of the others."""
    width = len(headings(matrix)) - 1
    for cell in matrix["cells"]:
        values = [
            value["shown"] if index == 0 else value["change"] or value["shown"]
            for metric in matrix["metrics"]
            for index, value in enumerate(cell["values"].get(metric, {}).values())
        ]
        if not values:
            values = [cell["failure"].split("\n")[0], *[""] * (width - 1)]
        yield [describe(cell["at"]), *values]


def render(matrix: Mapping[str, Any]) -> RenderableType:
    """The table for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings(matrix)):
        table.add_column(Text(visible(heading)), justify="right" if index else "left", overflow="fold")
    for row in rows(matrix):
        table.add_row(*(Text(visible(cell)) for cell in row))
    return Group(Text(visible(matrix["name"]), "bold"), table)


def markdown(matrix: Mapping[str, Any]) -> str:
    """The table as GitHub-flavoured Markdown."""
    heads = headings(matrix)
    lines = [f"# {matrix['name']}", "", markdown_line(map(escaped, heads))]
    lines.append(markdown_line([":--", *["--:"] * (len(heads) - 1)]))
    lines += [markdown_line(map(escaped, row)) for row in rows(matrix)]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Grid:
    """One heat map: the ratio of an arm to the first, NaN-free; None where a cell has none."""

    metric: str
    arm: str
    title: str
    across: tuple[str, ...]
    down: tuple[str, ...]
    ratios: tuple[tuple[float | None, ...], ...]


def grids(matrix: Mapping[str, Any]) -> list[Grid]:
    """A heat map per metric and arm: the last axis across, all others down."""
    cells = matrix["cells"]
    axes = list(cells[0]["at"])

    def split(at: Mapping[str, Any]) -> tuple[str, str]:
        last = axes[-1]
        return describe({k: v for k, v in at.items() if k != last}), describe({last: at[last]})

    across = list(dict.fromkeys(split(cell["at"])[1] for cell in cells))
    down = list(dict.fromkeys(split(cell["at"])[0] for cell in cells))
    found = []
    for metric in matrix["metrics"]:
        for arm in matrix["arms"][1:]:
            at = {
                split(cell["at"]): cell["values"].get(metric, {}).get(arm, {}).get("ratio") for cell in cells
            }
            ratios = tuple(tuple(at.get((row, column)) for column in across) for row in down)
            title = f"{matrix['titles'][metric]}: {arm} against {matrix['arms'][0]}"
            found.append(Grid(metric, arm, title, tuple(across), tuple(down), ratios))
    return found
