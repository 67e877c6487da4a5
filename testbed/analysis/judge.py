# SPDX-License-Identifier: GPL-2.0-only
"""The verdicts of a comparison: every arm against the first, metric by metric. Pure.

Slow to import, since it needs scipy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from testbed.analysis.compare import Arm, Comparison, by_construction
from testbed.analysis.decision import Judgement
from testbed.analysis.drift import LEVEL, differences, drift
from testbed.analysis.metrics import Metric
from testbed.analysis.verdict import Question, judge


def judgements(
    comparison: Comparison,
    margins: Mapping[str, float],
    *,
    alpha: float,
    sequential: bool,
    full: bool = True,
) -> dict[str, Judgement]:
    """Arm -> its judgement, for all arms but the first, which each is compared with.

    `margins` has the primary metrics; all others are exploratory. alpha is shared evenly among the arms, so
    that it is the rate of false alarms of the whole comparison. Without a primary metric there is none.
    `full` is as in judge().
    """
    if not margins:
        return {}
    first, *others = comparison.arms.values()
    found = {}
    metrics = comparison.metrics
    for arm in others:
        primaries = [
            q for m in metrics if m.name in margins and (q := question(m, first, arm, comparison, margins))
        ]
        judged = judge(
            primaries,
            [q for m in metrics if m.name not in margins and (q := question(m, first, arm, comparison, {}))],
            alpha=alpha / len(others),
            sequential=sequential,
            full=full,
        )
        level = LEVEL / len(others) / len(primaries)
        found[arm.name] = _with_drift(judged, primaries, comparison.run_order, level) if full else judged
    return found


def _with_drift(
    judged: Judgement, primaries: Sequence[Question], order: Sequence[int], level: float
) -> Judgement:
    """The same, with what the order of the pairs says of each primary metric."""
    decisions = dict(judged.primaries)
    for q in primaries:
        seeds = [seed for seed in order if seed in q.before and seed in q.after]
        if decisions[q.name].interval and len(seeds) == decisions[q.name].pairs:
            before, after = (np.array([side[s] for s in seeds], dtype=float) for side in (q.before, q.after))
            found = drift(differences(before, after), level)
            decisions[q.name] = replace(decisions[q.name], drift=found)
    return replace(judged, primaries=decisions)


def question(
    metric: Metric, first: Arm, arm: Arm, comparison: Comparison, margins: Mapping[str, float]
) -> Question | None:
    """What is asked of a metric; None if it is exploratory and neither arm has it."""
    before, after = (
        {s: v for s, v in side.values[metric.name].items() if metric.of_failures or s in comparison.seeds}
        for side in (first, arm)
    )
    if metric.name not in margins and not (before and after):
        return None
    margin = margins.get(metric.name, 0.0)
    settled = by_construction(metric, first, arm)
    return Question(metric.name, before, after, metric.kind, metric.better, margin, settled)
