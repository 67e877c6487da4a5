# SPDX-License-Identifier: GPL-2.0-only
"""What the difference between two arms is made of: instructions for an operation, function by function. Pure.

In deterministic guests time is the number of instructions. So where a workload runs for a given time, an
operation's instructions are what its rate is the inverse of, and the functions' parts add up to the change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from testbed.analysis.profile import Function

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Sample:
    """A trial: its functions, and the operations of its workload; 1 where there are none to be counted."""

    functions: Mapping[str, Function]
    operations: int


@dataclass(frozen=True)
class Change:
    """What a function executes itself for an operation, in two arms.

    `before` and `after` are means over the seeds, as are the calls. From `low` to `high` is the difference's
    95 % interval, of Student's t over pairs of seeds; None for a single pair.
    """

    name: str
    before: float
    after: float
    low: float | None
    high: float | None
    calls_before: float
    calls_after: float

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves out that there is none."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Parts:
    """The difference as a whole, and the functions that it is made of, largest parts first: they add up."""

    whole: Change
    functions: tuple[Change, ...]


def parts(before: Sequence[Sample], after: Sequence[Sample]) -> Parts:
    """The parts of the difference between two arms; the samples are pairs, seed by seed."""
    names = list(dict.fromkeys(name for sample in (*before, *after) for name in sample.functions))
    nothing = Function("", 0, 0, 0)

    def table(samples: Sequence[Sample], field: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """Seeds by functions."""
        return np.array(
            [
                [getattr(each.functions.get(name, nothing), field) / each.operations for name in names]
                for each in samples
            ]
        )

    own = [table(samples, "instructions") for samples in (before, after)]
    called = [table(samples, "calls").mean(axis=0) for samples in (before, after)]
    wholes = [values.sum(axis=1, keepdims=True) for values in own]
    (whole,) = _changes(["all functions"], wholes, [np.zeros(1), np.zeros(1)])
    found = _changes(names, own, called)
    return Parts(whole, tuple(sorted(found, key=lambda change: (-abs(change.difference), change.name))))


def _changes(
    names: Sequence[str],
    own: Sequence[np.ndarray[tuple[int, int], np.dtype[np.float64]]],
    called: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]],
) -> list[Change]:
    before, after = own
    difference = after - before
    mean, n = difference.mean(axis=0), len(difference)
    lows: Sequence[float | None] = [None] * len(names)
    highs: Sequence[float | None] = [None] * len(names)
    if n > 1:
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * difference.std(axis=0, ddof=1) / np.sqrt(n)
        lows, highs = (mean - reach).tolist(), (mean + reach).tolist()
    columns = (before.mean(axis=0), after.mean(axis=0), *called)
    return [
        Change(name, b, a, low, high, calls_before, calls_after)
        for name, b, a, calls_before, calls_after, low, high in zip(
            names, *(column.tolist() for column in columns), lows, highs, strict=True
        )
    ]
