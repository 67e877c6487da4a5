# SPDX-License-Identifier: GPL-2.0-only
"""Verdicts in words. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from testbed.analysis.decision import Decision
from testbed.report.document import ComparisonReport, MetricDecision

# Of decisions on outcomes.
SHARES = "difference of shares"
# A unit of the registry, as it is shown: a divisor and a name, the largest that suits first.
_SHOWN = {
    "us": ((1000.0, "ms"), (1.0, "µs")),
    **dict.fromkeys(("1/s", "pages/s"), ((1.0, "1/s"),)),
    **dict.fromkeys(("count", "pages", "ratio", "index"), ((1.0, ""),)),
}


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


def counted(count: int, thing: str) -> str:
    """As in `1 arm` or `2 arms`."""
    return f"{count} {thing}{'s' * (count != 1)}"


def number(value: float) -> str:
    """Three significant digits, or all of an integer; never with an exponent."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    decimals = min(2 - math.floor(math.log10(abs(value))), 12)
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".")


def signed(value: float) -> str:
    """A number with its sign, as a change has it."""
    return ("-" if value < 0 else "+") + number(abs(value))


def scale(unit: str, largest: float) -> tuple[float, str]:
    """How a unit of the registry is shown: a divisor, and a name, which what is merely counted has not."""
    known = _SHOWN.get(unit, ((1.0, unit),))
    return next((u for u in known if largest >= u[0]), known[-1])


def per(unit: str) -> str:
    """A unit behind a number."""
    return unit.removeprefix("1") if unit.startswith("1/") else f" {unit}" if unit else ""


def change(decision: Decision, value: float) -> str:
    """A change as the metric has it: in percent, or in its own unit where there is no ratio."""
    in_percent = decision.relative or decision.quantity == SHARES
    return f"{signed(value * 100)} %" if in_percent else signed(value)


def size(decision: Decision, value: float) -> str:
    """The same without its sign, and of what it is."""
    return change(decision, abs(value)).removeprefix("+") + _of(decision)


def _of(decision: Decision) -> str:
    """What a change is of, if it is not relative."""
    if decision.relative:
        return ""
    return " of the seeds" if decision.quantity == SHARES else " a seed"


def interval(decision: Decision) -> str:
    """As in ` [+12 %, +26 %]`; empty if there is none."""
    if decision.interval is None:
        return ""
    low, high = (change(decision, end) for end in decision.interval)
    return f" [{low}, {high}]"


def estimate(decision: Decision) -> str:
    """The change that was seen; empty if there is none."""
    return "" if decision.estimate is None else change(decision, decision.estimate) + _of(decision)


def sentence(title: str, decision: Decision, ends: str = "") -> str:
    """What is known of one metric; `ends` says from where to where it went."""
    bound = decision.bound
    limit = f"no change larger than {size(decision, bound)}" if bound is not None else ""
    match decision.verdict:
        case "improved" | "regressed" | "changed" as verdict:
            return f"{title}: {verdict} by {estimate(decision)}{interval(decision)}{ends}"
        case "different but small":
            return (
                f"{title}: {decision.direction}, but little: {estimate(decision)}{interval(decision)}{ends}"
            )
        case "equivalent":
            return f"{title}: {limit}"
        case "inconclusive":
            more = "no number of seeds in sight"
            if decision.seeds_needed:
                left = decision.seeds_needed - decision.pairs
                more = f"{left} more seed{'s' if left != 1 else ''} needed, about"
            return f"{title}: not decided ({more})" + (f"; {limit}" if limit else "")
        case "by construction":
            return f"{title}: decided by construction: {decision.reason}{ends}"
        case _:
            return f"{title}: no verdict: {decision.reason}"


def said(one: MetricDecision) -> str:
    """The same of a metric of a report, with its medians."""
    if one.before is None or one.after is None:
        return sentence(one.title, one.decision)
    divisor, unit = scale(one.unit, max(one.before, one.after))
    before, after = (number(value / divisor) for value in (one.before, one.after))
    return sentence(one.title, one.decision, f", from {before} to {after}{per(unit)}")


def verdicts(report: ComparisonReport) -> Iterator[tuple[str, str]]:
    """Arm and sentence, for every primary metric of every arm but the first."""
    for one in report.decisions("primary"):
        yield one.arm, said(one)


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
        f"against {first}; n = {_pairs(report)}, {rule}; false alarms at most "
        f"{report.alpha:.0%} for all primary metrics of all arms together"
    )


def _pairs(report: ComparisonReport) -> str:
    """How many pairs the verdicts have: not all the same where failed trials count, or have no value."""
    counts: dict[int, list[str]] = {}
    for one in report.decisions("primary"):
        counts.setdefault(one.decision.pairs, []).append(one.title)
    most = max(counts, key=lambda n: len(counts[n]), default=len(report.seeds))
    of_others = [
        f"{title}: {n}" for n, titles in counts.items() if n != most for title in dict.fromkeys(titles)
    ]
    return f"{most} pairs of seeds" + (f" ({', '.join(of_others)})" if of_others else "")


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


def drifts(report: ComparisonReport) -> Iterator[str]:
    """Primary metrics of which the pairs are not independent, and what that does to their intervals."""
    for one in report.decisions("primary"):
        if drift := one.decision.drift:
            yield (
                f"{one.arm}: {one.title}: the differences of pairs drift from seed to seed "
                f"(autocorrelation {drift.correlation:.1f}, p = {number(drift.p)}): the interval is too "
                f"narrow, by a factor of about {drift.narrow:.1f}, and a change may be none"
            )
