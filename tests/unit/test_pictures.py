# SPDX-License-Identifier: GPL-2.0-only
"""Pictures: which there are, what they say of themselves, and that no data makes them fail."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from testbed.analysis.compare import Comparison, Observation
from testbed.analysis.decision import Verdict
from testbed.analysis.histogram import bucket
from testbed.analysis.judge import judgements
from testbed.analysis.parse import Samples, Target, parse
from testbed.experiment.model import PrimarySpec
from testbed.ledger.record import Record
from testbed.report import html, pictures, plots
from testbed.report.document import compared, document
from testbed.report.html import Picture
from testbed.report.matrix import Grid
from testbed.report.plots import Row, Track
from tests.unit.recorded import PATCHED, UNPATCHED, counted, plan, record

COUNTS = {"unpatched": [1000, 1010, 990, 1005, 995, 1008], "patched": [800, 805, 797, 802, 798, 801]}
PARSED = {"unpatched": parse(UNPATCHED), "patched": parse(PATCHED)}


def trials(counts: dict[str, list[int]]) -> list[Observation]:
    return [
        Observation(record(arm, seed), parse(counted(allocstall_movable=count)))
        for arm, values in counts.items()
        for seed, count in enumerate(values, start=1)
    ]


def drawn(observations: list[Observation], arms: list[str], primary: bool = True) -> list[Picture]:
    """The pictures of trials, with verdicts if there is something primary."""
    margins = {"direct_reclaims": 0.05} if primary else {}
    declared = {name: PrimarySpec(margin=margin) for name, margin in margins.items()}
    said = plan(arms, 6, sequential=False, primary=declared)
    comparison: Comparison = compared(said, observations)
    verdicts = judgements(comparison, margins, alpha=0.05, sequential=False)
    records: list[Record] = [o.record for o in observations]
    made = document(said, comparison, observations, records, verdicts)
    return pictures.pictures(made, comparison, observations)


def words(svg: bytes) -> str:
    """All text in a picture."""
    return " ".join("".join(e.itertext()) for e in ET.fromstring(svg).iter() if e.tag.endswith("}text"))


@pytest.fixture(scope="module")
def judged() -> list[Picture]:
    return drawn(trials(COUNTS), list(COUNTS))


def test_a_judged_comparison_has_its_pictures(judged: list[Picture]) -> None:
    names = [picture.name for picture in judged]
    assert names == [
        "forest.patched",
        "latency.main",
        "shift.main",
        "slopes.direct_reclaims",
        "tasks",
    ]
    assert [picture.place for picture in judged] == ["first", *["later"] * 4]
    for picture in judged:
        assert picture.png.startswith(b"\x89PNG\r\n") and picture.svg.startswith(b"<?xml")


def test_the_forest_says_the_verdict(judged: list[Picture]) -> None:
    forest = judged[0]
    text = words(forest.svg)
    assert "improved -20 %" in text and "direct reclaims" in text
    assert "patched against unpatched" in forest.caption and "n = 6 pairs" in forest.caption


def test_every_caption_says_how_many_seeds(judged: list[Picture]) -> None:
    for picture in judged:
        assert "n = 6" in picture.caption, picture.name


def test_the_captions_stand_for_the_pictures_in_the_page(judged: list[Picture]) -> None:
    said = plan(list(COUNTS))
    observations = trials({arm: counts[:1] for arm, counts in COUNTS.items()})
    page = html.page(document(said, compared(said, observations), observations, [], {}), judged)
    for picture in judged:
        assert f'alt="{picture.caption.split(":")[0][:20]}' in page


def test_the_recorded_pair_has_pictures_though_nothing_can_be_judged() -> None:
    observations = [Observation(record(arm, 1), PARSED[arm]) for arm in PARSED]
    found = {picture.name: picture for picture in drawn(observations, list(PARSED))}
    # Of one seed there is no spread, hence neither an interval nor a band.
    assert list(found) == ["latency.main", "slopes.direct_reclaims", "tasks"]
    assert all("n = 1" in picture.caption for picture in found.values())
    assert "unpatched (n = 1)" in words(found["latency.main"].svg)


def test_without_a_primary_metric_there_is_no_verdict_in_pictures() -> None:
    names = {picture.name for picture in drawn(trials(COUNTS), list(COUNTS), primary=False)}
    assert names == {"latency.main", "shift.main", "tasks"}


def test_without_a_common_seed_there_is_no_picture() -> None:
    observations = [Observation(record("unpatched", 1), PARSED["unpatched"])]
    assert drawn(observations, list(PARSED)) == []


def test_a_trial_that_failed_is_in_no_picture() -> None:
    observations = trials(COUNTS)
    failed = replace(observations[-1].record, outcome="oom")
    found = drawn([*observations[:-1], Observation(failed, observations[-1].measurement)], list(COUNTS))
    assert found and all("n = 5" in picture.caption for picture in found)


def test_samples_make_a_picture_over_time() -> None:
    columns = ("ns", "nr_free_pages", "min", "low", "high", "phase")
    rows = tuple((second * 10**9, 3000 + second, 100, 200, 300, 0) for second in range(5))
    measurement = replace(PARSED["unpatched"], samples=Samples(columns, rows), sampling={"period_ns": 10**9})
    observations = [Observation(record(arm, 1), measurement) for arm in PARSED]
    (picture,) = (p for p in drawn(observations, list(PARSED)) if p.name == "over-time")
    text = words(picture.svg)
    assert "free pages" in text and all(limit in text.split() for limit in ("min", "low", "high"))
    assert "median of 1 seeds" in picture.caption


def test_memory_is_shown_beside_its_schedule() -> None:
    columns = ("ns", "held", "phase")
    rows = tuple((second * 10**9, 50 * second, 0) for second in range(5))
    told = (Target(10**9, 100, 10**9), Target(3 * 10**9, 150, 7))
    measurement = replace(
        PARSED["unpatched"], samples=Samples(columns, rows), sampling={"period_ns": 10**9}, targets=told
    )
    observations = [Observation(record(arm, 1), measurement) for arm in PARSED]
    (picture,) = (p for p in drawn(observations, list(PARSED)) if p.name == "over-time")
    assert "memory taken away" in words(picture.svg)
    assert pictures.wanted(measurement, 3.5) == [(0, 0), (1, 100), (3, 150), (3.5, 150)]


# --- plots by themselves --------------------------------------------------------------------------

NAN = math.nan
HISTOGRAM = Counter({bucket(value): 10 for value in (500, 5000, 50_000, 5_000_000)})
BAND = ((0.1, 0.2), (0.0, 0.1), (0.2, 0.3))
ROWS = [
    Row("a primary", 0.1, 0.05, 0.15, "regressed", 0.01),
    Row("enormous", 50.0, -0.99, 900.0, "inconclusive", 0.05),
    Row("gone", -1.0, -1.0, -1.0, "improved"),
]
FIGURES: dict[str, Callable[[], Figure]] = {
    "forest": lambda: plots.forest(ROWS),
    "forest of nothing": lambda: plots.forest([]),
    "forest of NaN": lambda: plots.forest([Row("x", NAN, NAN, NAN, "none", 0.01)]),
    "tail": lambda: plots.tail({"a": [HISTOGRAM, HISTOGRAM], "b": [HISTOGRAM]}, "main"),
    "tail of nothing": lambda: plots.tail({"a": [], "b": [Counter()]}, "main"),
    "tail of one value": lambda: plots.tail({"a": [Counter({7: 3})]}, "main"),
    "shift": lambda: plots.shift((0.5, 0.9), {"a": BAND, "b": None}, 5),
    "shift of NaN": lambda: plots.shift((0.5, 0.9), {"a": ((NAN, NAN),) * 3}, 5),
    "slopes": lambda: plots.slopes("x", ["a", "b"], {1: [1.0, 2.0], 2: [2.0, 1.0]}),
    "slopes of nothing": lambda: plots.slopes("x", ["a", "b"], {}),
    "slopes of NaN": lambda: plots.slopes("x", ["a"], {1: [NAN]}),
    "strips": lambda: plots.strips({"a": [[1, 2, 3], [4]], "b": [[5]]}),
    "strips of nothing": lambda: plots.strips({}),
    "strips of no tasks": lambda: plots.strips({"a": [[], [1]], "b": []}),
    "over time": lambda: plots.over_time(
        [Track("x", {"a": [[(0, 1), (1, 2)], [(0, 1), (1, 3)]]}, {"low": 0.5})]
    ),
    "over time as wanted": lambda: plots.over_time(
        [Track("x", {"a": [[(0, 1), (1, 2)]]}, {}, [(0, 0), (1, 2)])]
    ),
    "over no time": lambda: plots.over_time([Track("x", {"a": [[(0.0, 1.0)]], "b": []}, {})]),
    "over NaN": lambda: plots.over_time([Track("x", {"a": [[(0, NAN), (1, NAN)]]}, {})]),
    "heat map": lambda: plots.heat_map(
        Grid("m", "a", "x", ("1", "2"), ("3",), ((0.5, None),), (("", "+86"),))
    ),
    "heat map of ends": lambda: plots.heat_map(
        Grid("m", "a", "x", ("1", "2"), ("3",), ((0.0, math.inf),), (("", ""),))
    ),
    "history": lambda: plots.history("x", ["6.1", "6.2"], [[1.0, 2.0], [3.0]], ["regressed"]),
    "history of nothing": lambda: plots.history("x", ["6.1", "6.2"], [[], [NAN]], ["none"]),
    "diagonal": lambda: plots.diagonal({"one": [0.9, 0.1], "other": [0.5]}, "x", "a metric"),
    "history of one": lambda: plots.history("x", ["6.1"], [[1.0]], []),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_whatever_the_data_there_is_a_picture_and_the_same_twice(name: str) -> None:
    first, second = (plots.rendered(FIGURES[name](), "svg") for _ in range(2))
    assert first == second
    ET.fromstring(first)


def test_png_is_the_same_twice() -> None:
    first, second = (plots.rendered(FIGURES["history"](), "png") for _ in range(2))
    assert first == second and first.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tail", ["a (n = 2)", "b (n = 1)"]),
        ("shift", ["5 seeds"]),
        ("slopes", ["n = 2"]),
        ("strips", ["n = 2 seeds"]),
        ("over time", ["median of 2 seeds"]),
        ("history", ["6.1, n = 2", "6.2, n = 1", "triangle: one within the margin"]),
        ("diagonal", ["one, n = 2", "other, n = 1", "x", "p-value of a metric"]),
        ("forest", ["regressed +10 %", "improved -100 %"]),
    ],
)
def test_a_picture_says_what_is_in_it(name: str, said: list[str]) -> None:
    text = words(plots.rendered(FIGURES[name](), "svg"))
    assert all(part in text for part in said), text


def colours(figure: Figure) -> dict[Any, Any]:
    return {line.get_label(): line.get_color() for line in figure.axes[0].lines}


def test_quantiles_whose_numbers_would_overlap_have_a_tick_only() -> None:
    band = ([0.0] * 4, [-0.1] * 4, [0.1] * 4)
    axes = plots.shift((0.1, 0.25, 0.5, 0.9), {"a": band}, 5).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "", "0.5", "0.9"]


def test_an_arm_has_one_colour_in_all_pictures() -> None:
    tail = colours(plots.tail({"first": [HISTOGRAM], "a": [HISTOGRAM], "b": [HISTOGRAM]}, "main"))
    shifted = colours(plots.shift((0.5, 0.9), {"a": None, "b": BAND}, 5))
    assert tail["b (n = 1)"] == shifted["b"] == plots.colour(2)


def test_only_a_change_is_marked_in_a_history_and_a_small_one_apart() -> None:
    values = [[1.0, 1.1]] * 7
    verdicts: list[Verdict] = [
        "equivalent",
        "regressed",
        "inconclusive",
        "different but small",
        "none",
        "changed",
    ]
    figure = plots.history("x", list("abcdefg"), values, verdicts)

    def places(lines: list[Line2D]) -> list[float]:
        return [float(np.asarray(line.get_xdata())[0]) for line in lines]

    lines = figure.axes[0].lines
    assert places([line for line in lines if line.get_linestyle() == "--"]) == [1.5, 5.5]
    assert places([line for line in lines if line.get_marker() == "^"]) == [3.5]
