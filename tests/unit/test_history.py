# SPDX-License-Identifier: GPL-2.0-only
"""A metric over kernels: a step is marked where it is, and nowhere else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from testbed.analysis.history import Point, changes
from testbed.analysis.metrics import METRICS
from testbed.host.errors import SpecError
from testbed.report import timeline
from testbed.verbs import results
from tests.unit.recorded import measured

LOW = [1000, 1010, 990, 1005, 995, 1008]
# The same kernel again, with other noise; and another one.
AGAIN = [1002, 1005, 994, 1001, 999, 1003]
HIGH = [count * 13 // 10 for count in LOW]
METRIC = next(metric for metric in METRICS if metric.name == "direct_reclaims")


def point(label: str, counts: list[int]) -> Point:
    return Point(label, dict(enumerate(counts, start=1)))


@pytest.mark.parametrize(
    ("counts", "directions"),
    [
        ([LOW, AGAIN, HIGH, HIGH], [None, "regressed", None]),
        ([LOW, HIGH, AGAIN], ["regressed", "improved"]),
        ([LOW, AGAIN, LOW], [None, None]),
        ([LOW], []),
    ],
    ids=["step", "there and back", "none", "one point"],
)
def test_a_step_is_where_it_is(counts: list[list[int]], directions: list[str | None]) -> None:
    points = [point(str(index), values) for index, values in enumerate(counts)]
    found = changes(points, METRIC, alpha=0.05, margin=0.05)
    assert [decision.direction for decision in found] == directions


@pytest.mark.parametrize(("count", "alpha"), [(2, 0.06), (3, 0.03), (4, 0.02)])
def test_the_steps_share_the_rate_of_false_alarms(count: int, alpha: float) -> None:
    found = changes([point(str(n), LOW) for n in range(count)], METRIC, alpha=0.06, margin=0.01)
    assert [decision.alpha for decision in found] == pytest.approx([alpha] * (count - 1))


def test_a_kernel_without_the_metric_gives_no_verdict() -> None:
    first, second = changes(
        [point("a", LOW), Point("b", {}), point("c", HIGH)], METRIC, alpha=0.05, margin=0.01
    )
    assert (first.verdict, second.verdict) == ("none", "none")


def test_a_history_reads_results_in_the_order_given(tmp_path: Path) -> None:
    a, b, c = (
        measured(tmp_path / name, arms)
        for name, arms in (("a", {"x": LOW}), ("b", {"y": HIGH, "stock": AGAIN}), ("c", {"zz": HIGH}))
    )
    found = results.history([a, Path(f"{b}:stock"), c], "direct_reclaims", 0.05, 0.05)
    assert [p.label for p in found.points] == ["6.1.1 x", "6.1.5 stock", "6.1.2 zz"]
    assert [list(p.values.values()) for p in found.points] == [LOW, AGAIN, HIGH]
    assert [decision.direction for decision in found.decisions] == [None, "regressed"]
    assert (found.title, found.unit) == (METRIC.title, METRIC.unit)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("direct_reclaim", "there is no metric `direct_reclaim`; `testbed metrics` lists them"),
        ("zram_compression", "none of these results has the metric `zram_compression`"),
    ],
)
def test_a_metric_that_is_not_there_is_named(tmp_path: Path, metric: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        results.history([measured(tmp_path / "a", {"x": LOW[:1]})], metric, 0.05, 0.01)
    assert str(caught.value) == said


def test_the_third_result_is_looked_at_as_well(tmp_path: Path) -> None:
    def more_swap(said: dict[str, Any]) -> None:
        said["experiment"]["guest"]["swap"] *= 2

    paths = [measured(tmp_path / name, {"x": [1]}) for name in "ab"]
    paths.append(measured(tmp_path / "c", {"x": [1]}, more_swap))
    with pytest.raises(SpecError) as caught:
        results.history(paths, "direct_reclaims", 0.05, 0.01)
    said = f"{paths[0]} and {paths[2]} were not measured alike: guest.swap: 268435456 and 536870912"
    assert str(caught.value) == said


def test_the_table_has_a_row_per_kernel() -> None:
    points = [point("6.1 a", LOW), point("6.6 \x1b[2J", HIGH), Point("6.12 c", {})]
    found = changes(points, METRIC, alpha=0.05, margin=0.05)
    out = io.StringIO()
    Console(file=out, width=150).print(timeline.table("direct reclaims", "count", points, found).terminal())
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["direct", "reclaims", "(count)"] in lines
    one, two, three = (line for line in lines if line and line[0].startswith("6."))
    assert one == ["6.1", "a", "6", "1,002", "990-1,010"]
    assert two[:7] == ["6.6", "\\x1b[2J", "6", "1,303", "1,287-1,313", "regressed", "by"]
    assert three[:5] == ["6.12", "c", "0", "-", "-"] and "no verdict" in " ".join(three)
