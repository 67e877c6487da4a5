# SPDX-License-Identifier: GPL-2.0-only
"""How often comparisons that have nothing to find found something. Pure; slow to import (scipy)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from testbed.analysis.compare import Comparison
from testbed.analysis.decision import Decision, Judgement
from testbed.analysis.judge import question
from testbed.analysis.verdict import decide

# Of the test whether there are more false alarms than there may be, and of the bound of their rate.
LEVEL = 0.05


@dataclass(frozen=True)
class Outcome:
    """What one comparison said.

    `p_values` are those of the exploratory metrics, each by itself, at a number of pairs that was fixed
    before anything was measured.
    """

    name: str
    kind: str
    pairs: int
    primaries: Mapping[str, Decision]
    p_values: Mapping[str, float]

    @property
    def judged(self) -> bool:
        """Whether it could have raised an alarm: no primary metric is without a verdict."""
        return all(decision.verdict != "none" for decision in self.primaries.values())

    @property
    def alarms(self) -> list[str]:
        """The primary metrics of which it says that they changed, however little."""
        return [name for name, decision in self.primaries.items() if decision.direction is not None]


def outcome(
    name: str, kind: str, comparison: Comparison, judgement: Judgement, seeds: Collection[int]
) -> Outcome:
    """The outcome of a comparison of two arms; the p-values are of these seeds, if it has them all."""
    return Outcome(
        name=name,
        kind=kind,
        pairs=len(comparison.seeds),
        primaries=judgement.primaries,
        p_values=_p_values(comparison, judgement, seeds) if set(seeds) <= set(comparison.seeds) else {},
    )


def _p_values(comparison: Comparison, judgement: Judgement, seeds: Collection[int]) -> dict[str, float]:
    """Of the metrics that nobody declared, but for those that are the same in every pair."""
    first, other = comparison.arms.values()
    p_values = {}
    for metric in comparison.metrics:
        pairs = question(metric, first, other, comparison, {})
        if metric.name in judgement.primaries or pairs is None:
            continue
        before, after = (
            {seed: value for seed, value in arm.items() if seed in seeds}
            for arm in (pairs.before, pairs.after)
        )
        decision = decide(
            before,
            after,
            kind=pairs.kind,
            better=pairs.better,
            alpha=LEVEL,
            margin=0.0,
            sequential=False,
            full=False,
        )
        if before != after and decision.primary and decision.primary.p is not None:
            p_values[metric.name] = decision.primary.p
    return p_values


@dataclass(frozen=True)
class Rate:
    """False alarms of a number of comparisons that were judged.

    `bound`: the one-sided 95 % upper bound of their rate (Clopper and Pearson, Biometrika 26, 1934). `p`: how
    probable so many or more would be at the rate that is declared.
    """

    comparisons: int
    alarms: int
    bound: float
    p: float

    @property
    def share(self) -> float:
        """The rate that was seen; 0 of no comparison."""
        return self.alarms / self.comparisons if self.comparisons else 0.0


def rate(outcomes: Sequence[Outcome], alpha: float) -> Rate:
    """Of those outcomes that were judged, at the declared rate of false alarms."""
    judged = [o for o in outcomes if o.judged]
    alarms = sum(bool(o.alarms) for o in judged)
    if not judged:
        return Rate(0, 0, 1.0, 1.0)
    bound = stats.binomtest(alarms, len(judged), alternative="less").proportion_ci(1 - LEVEL).high
    p = stats.binomtest(alarms, len(judged), alpha, alternative="greater").pvalue
    return Rate(len(judged), alarms, float(bound), float(p))


def too_many(comparisons: int, alpha: float) -> int | None:
    """The least number of false alarms that is too many for the declared rate; None if no number is."""
    counts = range(1, comparisons + 1)
    return next((k for k in counts if stats.binom.sf(k - 1, comparisons, alpha) < LEVEL), None)


@dataclass(frozen=True)
class Check:
    """The false alarms of each kind of comparison and of all; `alarm`: there are too many."""

    kinds: Mapping[str, Rate]
    total: Rate
    alpha: float

    @property
    def alarm(self) -> bool:
        """Whether the declared rate has been refuted."""
        return self.total.p < LEVEL


def check(outcomes: Sequence[Outcome], alpha: float) -> Check:
    """Count the false alarms of comparisons that have nothing to find."""
    kinds = dict.fromkeys(o.kind for o in outcomes)
    return Check(
        {kind: rate([o for o in outcomes if o.kind == kind], alpha) for kind in kinds},
        rate(outcomes, alpha),
        alpha,
    )
