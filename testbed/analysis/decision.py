# SPDX-License-Identifier: GPL-2.0-only
"""What a decision on a metric consists of. Pure; quick to import, as what comes to one is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Direction = Literal["improved", "regressed", "changed"]
Verdict = Literal[
    "improved",
    "regressed",
    "changed",
    "equivalent",
    "different but small",
    "by construction",
    "inconclusive",
    "none",
]
DECIDED: frozenset[Verdict] = frozenset(
    {"improved", "regressed", "changed", "equivalent", "different but small", "by construction"}
)


@dataclass(frozen=True)
class Test:
    """One test of "no change": its name, and a p-value or an e-value (`log_e`, a natural logarithm).

    An e-value of e is evidence against it; 1/e is a p-value that may be looked at after every pair.
    `least` is the smallest p-value that this test can have with so many pairs; `leans` has the sign of the
    change that a cross-check sees.
    """

    __test__ = False  # Not one of pytest's.

    name: str
    p: float | None = None
    log_e: float | None = None
    least: float = 0.0
    leans: float = 0.0

    @property
    def e(self) -> float | None:
        """The e-value; at most e^700, which floats still hold."""
        return None if self.log_e is None else math.exp(min(self.log_e, 700.0))

    @property
    def evidence(self) -> float:
        """The p-value, or what an e-value is worth as one."""
        return self.p if self.p is not None else min(1.0, 1 / (self.e or 1.0))


@dataclass(frozen=True)
class Drift:
    """That the differences of pairs are alike from each pair to the next, which no test here allows.

    `correlation` is that of neighbours, `p` how often chance alone gives as much, and `narrow` the factor by
    which intervals would have to be wider.
    """

    correlation: float
    p: float
    narrow: float


@dataclass(frozen=True)
class Decision:
    """What the pairs say of one metric, at level `alpha`.

    `estimate` and `interval` (1 - alpha) are changes of `quantity`: relative ones, after / before - 1, if
    `relative`; else differences in the metric's unit, of shares for outcomes. Of fairness it is the change of
    1/J - 1, which is 0 when all have the same: less is better. There is no interval if one of its ends is not
    known. `bound`: no change is larger than that.

    `direction` is which way the estimate points, once the change is established. `mde` is the smallest change
    that as many pairs find with a probability of 90 %; `seeds_needed` the number of pairs, all in all, that
    would settle an inconclusive metric if estimate and spread stayed what they are (None: not known, or out
    of reach). `unpaired` seeds have a value in one arm only and are not used.

    `disagreement`: the cross-check, which is always a test at a fixed number of pairs, comes to another
    answer, or to the other direction, although it has enough pairs to come to either. In a sequence of looks
    a change that it alone sees does not count: to see it later is the price of looking.

    Nothing is tested of a metric that is decided `by construction`: `reason` says of which.

    `drift`, if the pairs depend on each other in the order in which they were run.
    """

    verdict: Verdict
    alpha: float
    pairs: int
    unpaired: int
    direction: Direction | None = None
    quantity: str = ""
    relative: bool = True
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    bound: float | None = None
    correlation: float | None = None
    primary: Test | None = None
    cross_check: Test | None = None
    disagreement: bool = False
    mde: float | None = None
    seeds_needed: int | None = None
    reason: str = ""
    drift: Drift | None = None

    @property
    def decided(self) -> bool:
        """Whether more pairs are not needed."""
        return self.verdict in DECIDED


@dataclass(frozen=True)
class Judgement:
    """Decisions by name. Exploratory ones are hints: `decided` and `more_pairs` are of the primaries alone.

    `more_pairs` is an estimate of how many more pairs would settle all primaries; None if it is not known.
    """

    primaries: Mapping[str, Decision]
    exploratory: Mapping[str, Decision]
    alpha: float
    decided: bool
    more_pairs: int | None
