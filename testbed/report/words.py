# SPDX-License-Identifier: GPL-2.0-only
"""Verdicts in words. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from testbed.analysis.decision import Decision
from testbed.report.document import ComparisonReport


def duration(seconds: float) -> str:
    """As in `48 s` or `3 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def age(seconds: float) -> str:
    """As in `48 s`, `5 min`, `3 h` or `12 days`."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def change(decision: Decision, value: float) -> str:
    """A change as the metric has it: in percent, or in its own unit where there is no ratio."""
    return f"{value * 100:+.3g} %" if decision.relative else f"{value:+.3g}"


def size(decision: Decision, value: float) -> str:
    """The same without its sign."""
    return change(decision, abs(value)).removeprefix("+")


def interval(decision: Decision) -> str:
    """As in ` [+12 %, +26 %]`; empty if there is none."""
    if decision.interval is None:
        return ""
    low, high = (change(decision, end) for end in decision.interval)
    return f" [{low}, {high}]"


def estimate(decision: Decision) -> str:
    """The change that was seen; empty if there is none."""
    return "" if decision.estimate is None else change(decision, decision.estimate)


def sentence(title: str, decision: Decision) -> str:
    """What is known of one metric."""
    bound = decision.bound
    limit = f"no change larger than {size(decision, bound)}" if bound is not None else ""
    match decision.verdict:
        case "improved" | "regressed" | "changed" as verdict:
            return f"{title}: {verdict} by {estimate(decision)}{interval(decision)}"
        case "different but small":
            return f"{title}: {decision.direction}, but little: {estimate(decision)}{interval(decision)}"
        case "equivalent":
            return f"{title}: {limit}"
        case "inconclusive":
            needed = decision.seeds_needed
            more = (
                f"{needed - decision.pairs} more seeds needed, about"
                if needed
                else "no number of seeds in sight"
            )
            return f"{title}: not decided ({more})" + (f"; {limit}" if limit else "")
        case _:
            return f"{title}: no verdict: {decision.reason}"


def verdicts(report: ComparisonReport) -> Iterator[tuple[str, str]]:
    """Arm and sentence, for every primary metric of every arm but the first."""
    for one in report.decisions("primary"):
        yield one.arm, sentence(one.title, one.decision)


def headline(report: ComparisonReport) -> str:
    """The comparison in one sentence."""
    by_arm = itertools.groupby(verdicts(report), lambda verdict: verdict[0])
    parts = [f"{arm}: {'; '.join(said for _, said in group)}" for arm, group in by_arm]
    return ". ".join(parts) or "No verdict: the experiment declares no primary metric."


def how(report: ComparisonReport) -> str:
    """What the statements above rest on."""
    first = next(iter(report.arms), "")
    rule = (
        "looked at while seeds were added, always valid (e-process)"
        if report.sequential
        else "looked at once, after all seeds"
    )
    return (
        f"against {first}; n = {len(report.seeds)} pairs of seeds, {rule}; false alarms at most "
        f"{report.alpha:.0%} for all primary metrics of all arms together"
    )


def detectable(report: ComparisonReport) -> Iterator[str]:
    """The smallest change of each primary metric that so many seeds find, if they are enough to know."""
    for one in report.decisions("primary"):
        if one.decision.mde is not None:
            smallest = size(one.decision, one.decision.mde)
            found = f"a change of {smallest} is found nine times in ten"
            yield f"{one.arm}: {one.title}: with so many seeds, {found}"


def disagreements(report: ComparisonReport) -> Iterator[str]:
    """Primary metrics of which a second method says something else."""
    for one in report.decisions("primary"):
        check = one.decision.cross_check
        if one.decision.disagreement and check:
            yield f"{one.arm}: {one.title}: the cross-check ({check.name}) does not agree"
