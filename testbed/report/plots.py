# SPDX-License-Identifier: GPL-2.0-only
"""Pictures. Data in, the bytes of an SVG or a PNG out; the same bytes from the same data.

Colours are safe for the colour-blind (matplotlib's `PuOr`, and those of Okabe and Ito for lines), and no
picture says by colour alone what it says. Every picture says how many seeds are in it and what a band means.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from testbed.analysis.histogram import highest, merged
from testbed.report.matrix import Grid

if TYPE_CHECKING:
    # Slow: with it comes scipy.
    from testbed.analysis.decision import Verdict

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "svg.fonttype": "none",
    # Names in the file are made of this, instead of a random number.
    "svg.hashsalt": "testbed",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "legend.frameon": False,
}
# Okabe and Ito: Color Universal Design, 2008. Black is for the arm that the others are compared with.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
WIDTH = 7.2
# The least distance of two numbers on an axis of quantiles, in decades of 1 - q.
_LABEL_DECADES = 0.1
# A factor beyond which all is the same colour.
_STRONGEST = math.log(2)

Histogram = Mapping[int, int]


@dataclass(frozen=True)
class Row:
    """A metric in a forest plot: relative changes, and the margin of a primary metric."""

    title: str
    estimate: float
    low: float
    high: float
    # Empty where there is none.
    verdict: str
    margin: float | None = None


@dataclass(frozen=True)
class Track:
    """One quantity over time: arm -> a series of (seconds, value) per seed; `limits` are lines.

    `wanted` is what it was to be, from each of these seconds on.
    """

    title: str
    arms: Mapping[str, Sequence[Sequence[tuple[float, float]]]]
    limits: Mapping[str, float]
    wanted: Sequence[tuple[float, float]] = ()


def rendered(figure: Figure, form: str) -> bytes:
    """The picture as `svg` or `png`."""
    out = io.BytesIO()
    with mpl.rc_context(STYLE):
        # Without the date, or no two of them would be the same.
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(out, format=form, dpi=150, bbox_inches="tight", metadata=metadata)
    return out.getvalue()


def colour(index: int) -> str:
    """Of an arm, by its place in the experiment."""
    return COLOURS[index % len(COLOURS)]


def percent(ratio: float) -> str:
    """A factor as a change, as in +5 %."""
    change = (ratio - 1) * 100
    if abs(change) >= 10:
        return f"{change:+,.0f} %"
    # What is smaller would have an exponent.
    return f"{change:+.2g} %" if abs(change) >= 0.001 else "+0 %"


# --- what is decided -----------------------------------------------------------------------------


def forest(rows: Sequence[Row]) -> Figure:
    """The change of every metric with its interval, primaries on top."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.27 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        reach = _reach(rows)
        for y, row in enumerate(rows):
            _interval(axes, y, row, reach)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [row.title for row in rows])
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if row.margin is not None else "normal")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: percent(math.exp(x))))
        axes.set_xlabel("change; bold: primary, shaded: its margin")
        return figure


def _log(change: float) -> float:
    return math.log1p(change) if change > -1 else -math.inf


def _reach(rows: Sequence[Row]) -> float:
    """How far the axis goes: to see what is small, what is enormous ends in an arrow."""
    sizes = sorted(min(abs(_log(value)), 1.0) for row in rows for value in (row.low, row.high))
    return max(0.02, 1.1 * sizes[int(0.9 * (len(sizes) - 1))]) if sizes else 0.02


def _interval(axes: Axes, y: int, row: Row, reach: float) -> None:
    if row.margin is not None:
        axes.barh(y, 2 * math.log1p(row.margin), left=-math.log1p(row.margin), height=0.9, color="0.9")
    low, high, centre = (_log(value) for value in (row.low, row.high, row.estimate))
    shade = {"improved": COLOURS[1], "regressed": COLOURS[2]}.get(row.verdict, "0.35")
    axes.plot([max(low, -reach), min(high, reach)], [y, y], color=shade, linewidth=2, solid_capstyle="butt")
    for end, beyond, marker in ((-reach, low < -reach, "<"), (reach, high > reach, ">")):
        if beyond:
            axes.plot(end, y, marker=marker, color=shade, markersize=5, clip_on=False)
    if abs(centre) <= reach:
        axes.plot(centre, y, marker="o", color=shade, markersize=4)
    axes.annotate(
        f"{row.verdict} {percent(1 + row.estimate)}".strip(),
        (1.01, y),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
        color=shade,
    )


def diagonal(p_values: Mapping[str, Sequence[float]], title: str, unit: str) -> Figure:
    """P-values of what has no effect, sorted, against those of a uniform distribution: a line per kind.

    `unit` says what one of them is. Kinds are told apart by their lines' style, too.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.4))
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, label="no effect")
        for index, (kind, values) in enumerate(p_values.items(), start=1):
            n = len(values)
            expected = [(place + 0.5) / n for place in range(n)]
            style = ("-", "--", ":")[(index - 1) % 3]
            axes.plot(
                expected,
                sorted(values),
                color=colour(index),
                linestyle=style,
                linewidth=1.5,
                label=f"{kind}, n = {n:,}",
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        axes.set_xlabel("p-value, if nothing has an effect")
        axes.set_ylabel(f"p-value of {unit}")
        axes.set_title(title)
        axes.legend(loc="lower right")
        return figure


# --- latencies -----------------------------------------------------------------------------------


def tail(histograms: Mapping[str, Sequence[Histogram]], what: str) -> Figure:
    """The share of operations that took longer, per arm: thin lines are seeds, thick ones all together."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for index, (arm, seeds) in enumerate(histograms.items()):
            for histogram in seeds:
                axes.plot(*_exceedance(histogram), color=colour(index), linewidth=0.5, alpha=0.4)
            label = f"{arm} (n = {len(seeds)})"
            axes.plot(*_exceedance(merged(seeds)), color=colour(index), linewidth=1.8, label=label)
        # A logarithmic axis takes no empty picture, as of a group that did nothing or was always as fast.
        if any(
            highest(index) > 0 for seeds in histograms.values() for h in seeds for index in sorted(h)[:-1]
        ):
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel(f"latency of {what}; thin: a seed, thick: all seeds together")
        axes.set_ylabel("share that took longer")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: duration(x)))
        axes.legend()
        return figure


def _exceedance(histogram: Histogram) -> tuple[list[float], list[float]]:
    total, left = sum(histogram.values()), sum(histogram.values())
    xs: list[float] = []
    ys: list[float] = []
    for index in sorted(histogram):
        left -= histogram[index]
        if left:
            xs.append(highest(index))
            ys.append(left / total)
    return xs, ys


def duration(ns: float) -> str:
    """Nanoseconds with a unit that suits."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:g} {unit}"
    return f"{ns:g} ns"


def shift(
    quantiles: Sequence[float],
    bands: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]] | None],
    n: int,
) -> Figure:
    """How each quantile of the latency changes: arm -> (log ratio, its lower and its upper bound).

    An arm without a band is not drawn, and the others keep their colours.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        axes = figure.add_subplot()
        x = [-math.log10(1 - q) for q in quantiles]
        for index, (arm, band) in enumerate(bands.items(), start=1):
            if band is None:
                continue
            middle, low, high = band
            axes.plot(x, middle, color=colour(index), label=arm)
            axes.fill_between(x, low, high, color=colour(index), alpha=0.2, linewidth=0)
        axes.axhline(0, color="0.3", linewidth=0.8)
        # What would overlap has a tick and no number.
        told = [index == 0 or x[index] - x[index - 1] > _LABEL_DECADES for index in range(len(x))]
        labels = [f"{q:g}" if known else "" for q, known in zip(quantiles, told, strict=True)]
        axes.set_xticks(x, labels, rotation=45)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: percent(math.exp(y))))
        axes.set_xlabel(f"quantile of the latency; band: 95 %, for all quantiles at once, {n} seeds")
        axes.legend()
        return figure


# --- seeds, tasks, time --------------------------------------------------------------------------


def slopes(title: str, arms: Sequence[str], values: Mapping[int, Sequence[float]]) -> Figure:
    """A line per seed, from arm to arm."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for row in values.values():
            axes.plot(range(len(arms)), row, color="0.4", linewidth=0.8, marker="o", markersize=3)
        axes.set_xticks(range(len(arms)), arms)
        axes.set_xlim(-0.3, len(arms) - 0.7)
        axes.set_title(f"{title}; a line is a seed, n = {len(values)}")
        return figure


def strips(tasks: Mapping[str, Sequence[Sequence[int]]]) -> Figure:
    """What every task got done: a row per arm, a dot per task and seed, the worst of each seed as a cross."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.8 + 0.5 * len(tasks)), layout="constrained")
        axes = figure.add_subplot()
        for index, seeds in enumerate(tasks.values()):
            for number, values in enumerate(seeds):
                y = index + 0.5 * ((number + 0.5) / len(seeds) - 0.5)
                axes.plot(values, [y] * len(values), "o", color=colour(index), markersize=2.5, alpha=0.6)
                axes.plot(min(values, default=math.nan), y, "x", color=colour(index), markersize=6)
        axes.set_yticks(range(len(tasks)), list(tasks))
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        n = max((len(seeds) for seeds in tasks.values()), default=0)
        axes.set_xlabel(f"operations of a task; x: the worst of a seed, n = {n} seeds")
        return figure


def over_time(tracks: Sequence[Track]) -> Figure:
    """Quantities over time, one below the other: the median of the seeds, and their quartiles as a band."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.7 * len(tracks) + 0.4), layout="constrained")
        all_axes = figure.subplots(len(tracks), sharex=True, squeeze=False)[:, 0]
        for axes, track in zip(all_axes, tracks, strict=True):
            _draw_track(axes, track)
        all_axes[0].legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
        n = max((len(seeds) for track in tracks for seeds in track.arms.values()), default=0)
        all_axes[-1].set_xlabel(f"seconds; line: median of {n} seeds, band: their quartiles")
        return figure


def _draw_track(axes: Axes, track: Track) -> None:
    for index, (arm, seeds) in enumerate(track.arms.items()):
        grid, values = common_grid(seeds)
        if not len(grid):
            continue
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
        axes.plot(grid, middle, color=colour(index), linewidth=1.2, label=arm)
        axes.fill_between(grid, low, high, color=colour(index), alpha=0.2, linewidth=0)
    for name, value in track.limits.items():
        axes.axhline(value, color="0.5", linewidth=0.7, linestyle=":")
        axes.annotate(name, (1.0, value), xycoords=("axes fraction", "data"), fontsize=7, va="center")
    if track.wanted:
        axes.step(*zip(*track.wanted, strict=True), where="post", color="0.3", linewidth=0.8, linestyle="--")
    axes.set_title(track.title)
    axes.set_ylim(bottom=0)


def common_grid(seeds: Iterable[Sequence[tuple[float, float]]]) -> tuple[Any, Any]:
    """Series of (seconds, value) at the same times: the times, and an array of seeds x times."""
    known = [series for series in seeds if len(series) > 1]
    if not known:
        return np.array([]), np.array([])
    grid = np.linspace(
        max(series[0][0] for series in known),
        min(series[-1][0] for series in known),
        max(len(series) for series in known),
    )
    pairs = [np.array(series, dtype=float) for series in known]
    return grid, np.array([np.interp(grid, pair[:, 0], pair[:, 1]) for pair in pairs])


def _shade(ratio: float | None) -> float:
    """The logarithm of a ratio, no stronger than the strongest colour; NaN for none."""
    if ratio is None:
        return math.nan
    return max(-_STRONGEST, min(_STRONGEST, math.log(ratio))) if ratio > 0 else -_STRONGEST


# --- a matrix ------------------------------------------------------------------------------------


def heat_map(grid: Grid) -> Figure:
    """The change of one metric in one arm, over the cells of a matrix."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.8 + 0.9 * len(grid.across), 1.1 + 0.45 * len(grid.down)))
        axes = figure.add_subplot()
        logs = [[_shade(ratio) for ratio in row] for row in grid.ratios]
        colours = mpl.colormaps["PuOr"].with_extremes(bad="0.85")
        image = axes.imshow(logs, cmap=colours, vmin=-_STRONGEST, vmax=_STRONGEST, aspect="auto")
        axes.set_xticks(range(len(grid.across)), grid.across)
        axes.set_yticks(range(len(grid.down)), grid.down)
        axes.spines[:].set_visible(False)
        for y, row in enumerate(grid.ratios):
            for x, ratio in enumerate(row):
                strong = abs(_shade(ratio)) > 0.7 * _STRONGEST
                text = (grid.changes[y][x] or "none") if ratio is None else percent(ratio)
                axes.text(x, y, text, ha="center", va="center", color="white" if strong else "black")
        axes.set_title(grid.title)
        bar = figure.colorbar(image, ax=axes)
        bar.set_ticks([-_STRONGEST, 0, _STRONGEST], labels=["half", "same", "twice"])
        return figure


def history(
    title: str, labels: Sequence[str], values: Sequence[Sequence[float]], verdicts: Sequence[Verdict]
) -> Figure:
    """A metric over kernels: a dot per seed, a line through the medians, a bar where it changed.

    `verdicts` are on the steps between them. A change within the margin gets a small triangle instead.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(4.0, 0.9 * len(labels) + 1.5), 2.8))
        axes = figure.add_subplot()
        for x, seeds in enumerate(values):
            axes.plot([x] * len(seeds), seeds, "o", color=COLOURS[1], markersize=3, alpha=0.6)
        medians = [np.median(seeds) if len(seeds) else math.nan for seeds in values]
        axes.plot(range(len(values)), medians, color="0.3", linewidth=1)
        for x, verdict in enumerate(verdicts):
            if verdict in ("improved", "regressed", "changed"):
                axes.axvline(x + 0.5, color=COLOURS[2], linewidth=1.2, linestyle="--")
            elif verdict == "different but small":
                foot = axes.get_xaxis_transform()
                axes.plot(x + 0.5, 0.03, marker="^", color=COLOURS[2], markersize=4, transform=foot)
        named = [f"{label}, n = {len(seeds)}" for label, seeds in zip(labels, values, strict=True)]
        axes.set_xticks(range(len(labels)), named, rotation=30, ha="right")
        axes.set_title(f"{title}; a dot is a seed, dashed: a change,\ntriangle: one within the margin")
        axes.set_ylim(bottom=0)
        return figure


@dataclass(frozen=True)
class Suspect:
    """A commit of a bisection: how probable it is that it is the culprit and that it is bad, its values in
    the search and on the fresh seeds of a confirmation, and whether it can be tested."""

    culprit: float
    bad: float
    values: Sequence[float]
    fresh: Sequence[float]
    testable: bool


def posterior(title: str, good: Sequence[float], suspects: Sequence[Suspect], named: Sequence[int]) -> Figure:
    """Who is the culprit, over the commits in order, and beneath it what was measured of each."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1, 1.3]})
        places = np.arange(1, len(suspects) + 1)
        culprit = [s.culprit for s in suspects]
        above.fill_between(places, culprit, step="mid", color=COLOURS[2], label="is the culprit")
        bad = [s.bad for s in suspects]
        above.step(places, bad, where="mid", color="0.4", linewidth=1, label="is bad")
        if missing := [n for n, s in enumerate(suspects, 1) if not s.testable]:
            above.plot(missing, [0.0] * len(missing), "x", color="black", label="cannot be tested")
        above.set_ylim(-0.05, 1.05)
        above.set_ylabel("probability")
        above.legend(loc="upper left")
        for n in named:
            for axes in (above, below):
                axes.axvline(n + 1, color=COLOURS[2], linewidth=0.8, linestyle=":")
        for n, (values, fresh) in enumerate([(good, ()), *((s.values, s.fresh) for s in suspects)]):
            below.plot([n] * len(values), values, "o", color=COLOURS[1], markersize=3, alpha=0.6)
            below.plot([n] * len(fresh), fresh, "+", color=COLOURS[3], markersize=5)
        count = len(good) + sum(len(s.values) + len(s.fresh) for s in suspects)
        below.set_xlim(-0.8, len(suspects) + 0.8)
        below.set_xlabel("commit; 0 is the good end")
        below.set_title(f"{title}; a dot is a trial, + one on a fresh seed, n = {count}")
        return figure
