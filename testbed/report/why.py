# SPDX-License-Identifier: GPL-2.0-only
"""What the difference between two arms is made of, as a part of a report, as a table and as a picture. Pure.

The picture is a differential flame graph (Brendan Gregg, 2014, of that title), from the top down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from testbed.report.document import Call, ComparisonReport, Part, Why
from testbed.report.escape import visible
from testbed.report.table import Table
from testbed.report.words import number, signed

# Functions that a sentence names, with numbers and without.
NAMED, LISTED = 4, 8
# Units of the picture: its width, a row's height and the narrowest box.
WIDTH, ROW, NARROWEST = 1200, 18, 0.5


def sentences(whys: Mapping[str, Why]) -> Iterator[str]:
    """What is known of every arm: the whole, certain parts, what came and went, large parts."""
    for arm, of in whys.items():
        whole = of.whole
        interval = f" [{_share(whole.low, of)}, {_share(whole.high, of)}]" if whole.low is not None else ""
        yield (
            f"{arm}: {_a(of)} takes {number(whole.after)} "
            f"instructions, {number(whole.before)} before: {_share(whole.difference, of)}{interval}"
        )
        certain = [part for part in of.functions if part.certain]
        if certain:
            yield f"{arm}: certain parts of it: {_named(certain, of)}"
        for said, found in (
            ("called no longer", [part for part in certain if not part.calls_after]),
            ("called only now", [part for part in certain if not part.calls_before]),
        ):
            if found:
                more = ", ..." if len(found) > LISTED else ""
                yield f"{arm}: {said}: {', '.join(part.name for part in found[:LISTED])}{more}"
        unsure = [part for part in of.functions if not part.certain]
        if unsure:
            yield f"{arm}: larger, but not certain: {_named(unsure, of)}"


def _a(of: Why) -> str:
    return "an operation" if of.unit == "operation" else "a trial"


def _named(named: Sequence[Part], of: Why) -> str:
    said = ", ".join(f"{part.name} {_share(part.difference, of)}" for part in named[:NAMED])
    return said + (", ..." if len(named) > NAMED else "")


def _share(value: float | None, of: Why) -> str:
    """A difference in percent of what an operation took before, so that parts add up to the whole."""
    return f"{(value or 0) / of.whole.before:+.2%}".replace("%", " %") if of.whole.before else "-"


def tables(report: ComparisonReport) -> Iterator[Table]:
    """A table for every arm of a report that it is known of."""
    first = next(iter(report.arms), "")
    for arm, of in report.why.items():
        yield table(of, first, arm)


def table(of: Why, first: str, arm: str) -> Table:
    """The functions that the difference is made of, what is left of it, and the whole: it adds up."""
    headings = [
        *("function", first, arm, "difference", "95 % interval", "of the whole", "certain"),
        *("calls", "after"),
    ]
    shown = (*of.functions, *([of.others] if of.others else []), of.whole)
    title = f"why {arm} differs from {first}: instructions for {_a(of)}, calls in a trial"
    return Table(headings, [_row(part, of) for part in shown], frozenset({0, 6}), title)


def _row(part: Part, of: Why) -> list[str]:
    interval = "-"
    if part.low is not None and part.high is not None:
        interval = f"[{signed(part.low)}, {signed(part.high)}]"
    called = part.calls_before or part.calls_after
    return [
        part.name,
        number(part.before),
        number(part.after),
        signed(part.difference),
        interval,
        _share(part.difference, of),
        "yes" if part.certain else "",
        number(part.calls_before) if called else "-",
        number(part.calls_after) if called else "-",
    ]


# --- the picture ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A call in the picture: where it is, what is written in it, and what is said when it is pointed at.

    Its name is cut off where the box ends, so that the browser's search finds all of it.
    """

    x: float
    y: int
    width: float
    fill: str
    name: str
    said: str


@dataclass(frozen=True)
class Flames:
    """The picture: the calls from the top down, as wide as what is executed, red where it is more than before
    and blue where it is less."""

    title: str
    width: int
    height: int
    row: int
    boxes: Sequence[Box]


def flames(of: Why, first: str, arm: str) -> Flames:
    """The picture of what an arm differs in from the first."""
    whole = of.calls
    calls = list(_seen(whole, 0.0, 0, WIDTH / max(_size(whole), 1e-9)))
    largest = max((abs(call.after - call.before) for call, *_ in calls[1:]), default=0.0)
    boxes = [
        Box(
            round(x, 2),
            depth * ROW,
            round(max(width - 0.5, 0.3), 2),
            _colour((call.after - call.before) / largest if depth and largest else 0.0),
            visible(call.name),
            f"{visible(call.name)}: {number(call.before)} instructions before, {number(call.after)} after: "
            f"{_share(call.after - call.before, of)} of the whole",
        )
        for call, x, width, depth in calls
    ]
    height = max((box.y for box in boxes), default=0) + ROW
    return Flames(f"instructions for {_a(of)}: {arm} against {first}", WIDTH, height, ROW, boxes)


def _size(call: Call) -> float:
    return (call.before + call.after) / 2


def _seen(call: Call, x: float, depth: int, scale: float) -> Iterator[tuple[Call, float, float, int]]:
    """Every call that can be seen: where it begins, how wide it is, and in which row."""
    if (width := _size(call) * scale) >= NARROWEST:
        yield call, x, width, depth
        for callee in call.callees:
            yield from _seen(callee, x, depth + 1, scale)
            x += _size(callee) * scale


def _colour(difference: float) -> str:
    """From white to full colour for -1 to 1. By its root, since small differences are to be seen, too."""
    return f"hsl({12 if difference > 0 else 212} 80% {92 - 32 * abs(difference) ** 0.5:.0f}%)"
