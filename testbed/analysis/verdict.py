# SPDX-License-Identifier: GPL-2.0-only
"""From paired values to a decision on one metric, and from several metrics to a judgement. Pure.

`decide` says of one metric that it is improved, regressed or (where neither direction is better) changed;
equivalent; different but small; or inconclusive. What cannot be computed is `none`, with the reason. `judge`
shares one error rate among the primary metrics of an experiment and corrects the exploratory ones.

docs/statistics.md says what the words mean; the formulas are in analysis/statistics.py. This module is slow
to import (it needs scipy): import it where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from testbed.analysis import statistics
from testbed.analysis.decision import Decision, Direction, Judgement, Test, Verdict
from testbed.analysis.metrics import Better, Kind
from testbed.analysis.statistics import LEAST_PAIRS, Array, Finding

MOST_PRIMARIES = 3


@dataclass(frozen=True)
class Question:
    """What is asked of one metric: its values by seed in both arms, and the margin that nobody minds."""

    name: str
    before: Mapping[int, float]
    after: Mapping[int, float]
    kind: Kind
    better: Better
    margin: float = 0.0
    # Why there is nothing to ask: a side has less of it by construction.
    settled: str = ""


def decide(
    before: Mapping[int, float],
    after: Mapping[int, float],
    *,
    kind: Kind,
    better: Better,
    alpha: float,
    margin: float,
    sequential: bool,
    full: bool = True,
) -> Decision:
    """Decide one metric from its values by seed.

    `margin` is relative: equivalent means that neither arm has more than 1 + margin times the other's value,
    so that it does not matter which one is called `before`. For outcomes it is a difference of shares. With
    0, only what is the same in every pair is equivalent. Where no ratio can be had, nothing is equivalent.

    Without `full`, cross-check and correlation are left out, which take longer than all the rest: for a look
    whose result nobody sees. Raises ValueError unless 0 < alpha < 1 and margin >= 0; never for any values.
    """
    if not (0 < alpha < 1 and margin >= 0):
        raise ValueError(f"alpha {alpha}, margin {margin}")
    seeds = sorted(before.keys() & after.keys())
    unpaired = len(before.keys() ^ after.keys())
    a, b = (np.array([values[seed] for seed in seeds], dtype=np.float64) for values in (before, after))
    if reason := _unusable(a, b, kind):
        return Decision("none", alpha, len(seeds), unpaired, reason=reason)
    if len(seeds) < LEAST_PAIRS[sequential]:
        least = LEAST_PAIRS[sequential]
        reason = f"{len(seeds)} of at least {least} pairs"
        return Decision("none", alpha, len(seeds), unpaired, seeds_needed=least, reason=reason)
    if kind == "fairness":
        # 1 - 1e-17 is 1 in floats, and so may be a little more.
        a, b = (np.maximum(1 / j - 1, 0.0) for j in (a, b))
    with np.errstate(all="ignore"):
        finding = _finding(a, b, kind, alpha, sequential)
        if not math.isfinite(finding.estimate) or math.isnan(finding.low) or math.isnan(finding.high):
            return Decision(
                "none", alpha, len(seeds), unpaired, reason="values too far apart for floating point"
            )
        second = statistics.cross_check(a, b, kind) if full else None
        correlation = _correlation(a, b) if full else None
    finite = math.isfinite(finding.low) and math.isfinite(finding.high)
    small = _within(finding, margin, kind)
    verdict, direction = _verdict(finding, small, kind, better)
    return Decision(
        verdict=verdict,
        alpha=alpha,
        pairs=len(seeds),
        unpaired=unpaired,
        direction=direction,
        quantity=finding.quantity,
        relative=finding.relative,
        estimate=finding.estimate,
        interval=(finding.low, finding.high) if finite else None,
        bound=max(abs(finding.low), abs(finding.high)) if finite else None,
        correlation=correlation,
        primary=finding.test,
        cross_check=second,
        disagreement=second is not None and _disagree(finding, second, alpha, sequential),
        mde=finding.mde if finding.mde is not None and math.isfinite(finding.mde) else None,
        seeds_needed=_seeds_needed(finding, len(seeds), margin, alpha, sequential)
        if verdict == "inconclusive"
        else None,
    )


def _unusable(before: Array, after: Array, kind: Kind) -> str:
    """Why no statement can be made of these values; empty if one can."""
    for values in (before, after):
        if not np.isfinite(values).all():
            return "a value is not a finite number"
        if (values < 0).any():
            return "a value is below zero"
        if kind == "fairness" and not ((values > 0) & (values <= 1 + 1e-9)).all():
            return "an index of fairness is not above 0 and at most 1"
    return ""


def _finding(before: Array, after: Array, kind: Kind, alpha: float, sequential: bool) -> Finding:
    if kind == "outcome":
        return statistics.difference_of_shares(before, after, alpha, sequential)
    if (before > 0).all() and (after > 0).all():
        return statistics.ratio_of_means(before, after, kind, alpha, sequential)
    return statistics.ratio_of_totals(before, after, kind, alpha, sequential)


def _within(finding: Finding, margin: float, kind: Kind) -> bool:
    """Whether the whole interval lies inside the margin."""
    if kind == "outcome":
        return -margin <= finding.low and finding.high <= margin
    return finding.relative and -margin / (1 + margin) <= finding.low and finding.high <= margin


def _verdict(finding: Finding, small: bool, kind: Kind, better: Better) -> tuple[Verdict, Direction | None]:
    if not finding.differs:
        return ("equivalent" if small else "inconclusive"), None
    # What is computed of fairness falls when it rises.
    rises = (finding.estimate > 0) != (kind == "fairness")
    direction: Direction = "changed"
    if better != "neither":
        direction = "improved" if rises == (better == "higher") else "regressed"
    return ("different but small" if small else direction), direction


def _disagree(finding: Finding, second: Test, alpha: float, sequential: bool) -> bool:
    sees = second.evidence <= alpha
    if finding.differs and sees:
        return finding.estimate * second.leans < 0
    return finding.differs != sees and second.least <= alpha and (finding.differs or not sequential)


def _correlation(before: Array, after: Array) -> float | None:
    """Pearson's, of logarithms where there are no zeros; None if an arm does not vary."""
    if (before > 0).all() and (after > 0).all():
        before, after = np.log(before), np.log(after)
    if min(np.ptp(before), np.ptp(after)) == 0:
        return None
    r = float(np.corrcoef(before, after)[0, 1])
    return r if math.isfinite(r) else None


def _seeds_needed(finding: Finding, pairs: int, margin: float, alpha: float, sequential: bool) -> int | None:
    """Whichever would come first: that the interval excludes 0, or that it lies inside the margin."""
    size = abs(finding.centre)
    room = finding.to_scale(margin) - size if finding.relative else 0.0
    needed = [
        statistics.pairs_for(finding.spread, distance, alpha, sequential)
        for distance in (size, room)
        if distance > finding.floor
    ]
    counts = [n for n in needed if n is not None]
    return max(min(counts), finding.least_pairs, pairs + 1) if counts else None


def judge(
    primaries: Sequence[Question],
    exploratory: Sequence[Question],
    *,
    alpha: float,
    sequential: bool,
    full: bool = True,
) -> Judgement:
    """Decide all metrics of a comparison.

    The primaries (1 to 3, declared before the run) share alpha evenly, so that all their statements hold
    together with 1 - alpha. At a fixed number of pairs, a change that Holm's procedure establishes is one as
    well: such a decision's own `alpha` is larger than an even share.

    The exploratory ones are corrected by Benjamini and Hochberg's procedure, sequential by Wang and Ramdas'
    for e-values (Journal of the Royal Statistical Society B 84(3), 2022): of those that are called changed, a
    share of alpha is expected to be wrong. Their intervals are at the level of the correction,
    alpha * changed / all (Benjamini, Yekutieli: Journal of the American Statistical Association 100, 2005).

    What is settled by construction is not tested. It keeps its part of alpha, and counts as not changed.

    Raises ValueError for no primary or more than three, and for an alpha or a margin that `decide` refuses.
    """
    if not 1 <= len(primaries) <= MOST_PRIMARIES:
        raise ValueError(f"{len(primaries)} primary metrics")

    def at(question: Question, level: float, full: bool = full) -> Decision:
        if question.settled:
            pairs = len(question.before.keys() & question.after.keys())
            return Decision("by construction", level, pairs, unpaired=0, reason=question.settled)
        return decide(
            question.before,
            question.after,
            kind=question.kind,
            better=question.better,
            alpha=level,
            margin=question.margin,
            sequential=sequential,
            full=full,
        )

    first = [at(question, alpha / len(primaries)) for question in primaries]
    if not sequential:
        levels = statistics.holm_levels([_p_value(decision) for decision in first], alpha)
        for i, (question, level) in enumerate(zip(primaries, levels, strict=True)):
            if first[i].direction is None and _p_value(first[i]) <= level:
                changed_at = at(question, level)
                first[i] = changed_at if changed_at.direction else first[i]
    evidence = [_p_value(at(question, alpha, full=False)) for question in exploratory]
    changed = statistics.discoveries(evidence, alpha)
    second = [at(question, alpha * max(changed, 1) / len(exploratory)) for question in exploratory]
    missing = [0 if d.decided else d.seeds_needed and max(d.seeds_needed - d.pairs, 0) for d in first]
    known = [n for n in missing if n is not None]
    return Judgement(
        primaries={q.name: d for q, d in zip(primaries, first, strict=True)},
        exploratory={q.name: d for q, d in zip(exploratory, second, strict=True)},
        alpha=alpha,
        decided=all(decision.decided for decision in first),
        more_pairs=max(known) if len(known) == len(missing) else None,
    )


def _p_value(decision: Decision) -> float:
    return decision.primary.evidence if decision.primary else 1.0
