# SPDX-License-Identifier: GPL-2.0-only
"""What the difference between two arms is made of: instructions for an operation, function by function. Pure.

In deterministic guests time is the number of instructions. So where a workload runs for a given time, an
operation's instructions are what its rate is the inverse of, and the functions' parts add up to the change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy import stats

from testbed.analysis import profile
from testbed.analysis.profile import Frame, Function
from testbed.analysis.statistics import discoveries

CONFIDENCE = 0.95
# Seeds by functions.
Table = np.ndarray[tuple[int, int], np.dtype[np.float64]]


@dataclass(frozen=True)
class Sample:
    """A trial: its calls, and the operations of its workload; 1 where there are none to be counted."""

    calls: Frame
    operations: int

    @cached_property
    def functions(self) -> dict[str, Function]:
        """Its functions."""
        return profile.functions(self.calls)


@dataclass(frozen=True)
class Change:
    """What a function executes itself for an operation, in two arms.

    `before` and `after` are means over the seeds; so are the calls, of a trial. From `low` to `high` is the
    difference's 95 % interval, of Student's t over pairs of seeds, and `p` is that test's; None for a single
    pair. It is `certain` if it is among the discoveries of Benjamini and Hochberg in all functions.
    """

    name: str
    before: float
    after: float
    low: float | None
    high: float | None
    p: float | None
    calls_before: float
    calls_after: float
    certain: bool = False

    @property
    def difference(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Parts:
    """The difference as a whole, and the functions that it is made of, largest parts first: they add up."""

    whole: Change
    functions: tuple[Change, ...]


def parts(before: Sequence[Sample], after: Sequence[Sample]) -> Parts:
    """The parts of the difference between two arms; the samples are pairs, seed by seed."""
    names = list(dict.fromkeys(name for sample in (*before, *after) for name in sample.functions))
    nothing = Function("", 0, 0, 0)

    def table(samples: Sequence[Sample], what: Callable[[Sample, Function], float]) -> Table:
        return np.array(
            [[what(each, each.functions.get(name, nothing)) for name in names] for each in samples]
        )

    own = [
        table(samples, lambda trial, function: function.instructions / trial.operations)
        for samples in (before, after)
    ]
    called = [table(samples, lambda _, function: function.calls).mean(axis=0) for samples in (before, after)]
    wholes = [values.sum(axis=1, keepdims=True) for values in own]
    (whole,) = _changes(["all functions"], wholes, [np.zeros(1), np.zeros(1)])
    found = _discovered(_changes(names, own, called))
    return Parts(whole, tuple(sorted(found, key=lambda change: (-abs(change.difference), change.name))))


def _changes(
    names: Sequence[str], own: Sequence[Table], called: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]]
) -> list[Change]:
    before, after = own
    difference = after - before
    mean, n = difference.mean(axis=0), len(difference)
    tests: list[list[float | None]] = [[None] * len(names)] * 3
    if n > 1:
        error = difference.std(axis=0, ddof=1) / np.sqrt(n)
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * error
        # Of differences that are all the same, there is no doubt.
        t = np.divide(np.abs(mean), error, out=np.where(mean == 0, 0.0, np.inf), where=error > 0)
        tests = [(mean - reach).tolist(), (mean + reach).tolist(), (2 * stats.t.sf(t, n - 1)).tolist()]
    columns = [before.mean(axis=0), after.mean(axis=0), *called]
    return [
        Change(name, b, a, low, high, p, calls_before, calls_after)
        for name, b, a, calls_before, calls_after, low, high, p in zip(
            names, *(column.tolist() for column in columns), *tests, strict=True
        )
    ]


def _discovered(changes: Sequence[Change]) -> list[Change]:
    p_values = [change.p for change in changes if change.p is not None]
    count = discoveries(p_values, 1 - CONFIDENCE)
    limit = sorted(p_values)[count - 1] if count else -1.0
    return [replace(change, certain=change.p is not None and change.p <= limit) for change in changes]


@dataclass
class Flame:
    """Something that is called, and what it executes for an operation in two arms, with all that it calls."""

    name: str
    before: float = 0.0
    after: float = 0.0
    callees: list[Flame] = field(default_factory=list)

    @property
    def size(self) -> float:
        """Its mean over both arms."""
        return (self.before + self.after) / 2


def flame(before: Sequence[Sample], after: Sequence[Sample], least: float) -> Flame:
    """All calls of two arms in one tree, without those that are less than a share `least` of the whole."""
    whole = _merged(
        "all",
        [
            *((sample.calls, 1 / sample.operations / len(before), 0.0) for sample in before),
            *((sample.calls, 0.0, 1 / sample.operations / len(after)) for sample in after),
        ],
    )
    _prune(whole, least * whole.size)
    return whole


def _merged(name: str, frames: Sequence[tuple[Frame, float, float]]) -> Flame:
    """Frames of one place as one; each counts with its weights for the two arms."""
    made = Flame(name)
    beneath: dict[str, list[tuple[Frame, float, float]]] = {}
    for frame, of_before, of_after in frames:
        made.before += frame.instructions * of_before
        made.after += frame.instructions * of_after
        for callee in frame.callees.values():
            beneath.setdefault(callee.name, []).append((callee, of_before, of_after))
    made.callees = [_merged(callee, of_callee) for callee, of_callee in sorted(beneath.items())]
    made.before += sum(callee.before for callee in made.callees)
    made.after += sum(callee.after for callee in made.callees)
    return made


def _prune(flame: Flame, least: float) -> None:
    flame.callees = [callee for callee in flame.callees if callee.size >= least]
    for callee in flame.callees:
        _prune(callee, least)
