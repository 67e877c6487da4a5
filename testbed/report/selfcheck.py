# SPDX-License-Identifier: GPL-2.0-only
"""What comparisons without anything to find said: the report, and for a terminal. Pure; slow to import."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field
from rich.console import Group, RenderableType

from testbed.analysis import selfcheck as analysis
from testbed.analysis.decision import Verdict
from testbed.analysis.selfcheck import LEVEL, Check, Outcome, too_many
from testbed.experiment import Model
from testbed.ledger.document import Document
from testbed.report import words
from testbed.report.document import Count, Share
from testbed.report.table import Table, plain


class NullComparison(Model):
    """A comparison that has nothing to find."""

    name: str
    kind: str
    pairs: Count
    judged: bool
    verdicts: dict[str, Verdict]
    """By metric."""
    alarms: tuple[str, ...]
    """A sentence each."""


class Rate(Model):
    """False alarms of the comparisons that were judged."""

    comparisons: Count
    alarms: Count
    bound: Share
    """The one-sided 95 % upper bound of the rate."""
    p: Share
    """How probable so many alarms, or more, would be at the declared rate."""
    share: Share


class PValues(Model):
    """Of the metrics that nobody declared, at so many pairs: kind of comparison -> ascending p-values."""

    pairs: Count
    kinds: dict[str, tuple[Share, ...]]


class SelfcheckReport(Document):
    """`selfcheck.json`."""

    version: Literal[1] = Field(alias="schema")
    name: str
    alpha: Share
    titles: dict[str, str]
    comparisons: tuple[NullComparison, ...]
    failures: dict[str, str]
    kinds: dict[str, Rate]
    total: Rate
    alarm: bool
    too_many: Count | None
    """The least number of alarms that makes `alarm` true, if any does."""
    exploratory: PValues


def document(
    name: str,
    check: Check,
    outcomes: Sequence[Outcome],
    *,
    failures: Mapping[str, str],
    pairs: int,
    titles: Mapping[str, str],
) -> SelfcheckReport:
    """The report of a check; `pairs` is the number of them that p-values are of."""
    p_values = {
        kind: tuple(sorted(p for o in outcomes if o.kind == kind for p in o.p_values.values()))
        for kind in check.kinds
    }
    return SelfcheckReport(
        schema=1,
        name=name,
        alpha=check.alpha,
        titles=dict(titles),
        comparisons=tuple(_outcome(outcome, titles) for outcome in outcomes),
        failures=dict(failures),
        kinds={kind: _rate(rate) for kind, rate in check.kinds.items()},
        total=_rate(check.total),
        alarm=check.alarm,
        too_many=too_many(check.total.comparisons, check.alpha),
        exploratory=PValues(pairs=pairs, kinds=p_values),
    )


def _outcome(outcome: Outcome, titles: Mapping[str, str]) -> NullComparison:
    alarms = ((titles.get(name, name), outcome.primaries[name]) for name in outcome.alarms)
    return NullComparison(
        name=outcome.name,
        kind=outcome.kind,
        pairs=outcome.pairs,
        judged=outcome.judged,
        verdicts={name: decision.verdict for name, decision in outcome.primaries.items()},
        alarms=tuple(words.sentence(title, decision) for title, decision in alarms),
    )


def _rate(rate: analysis.Rate) -> Rate:
    return Rate(
        comparisons=rate.comparisons, alarms=rate.alarms, bound=rate.bound, p=rate.p, share=rate.share
    )


def render(report: SelfcheckReport) -> RenderableType:
    """The check for a terminal."""
    rows = []
    for kind, rate in {**report.kinds, "all": report.total}.items():
        figures = (f"{rate.share:.1%}", f"{rate.bound:.1%}") if rate.comparisons else ("-", "-")
        rows.append((kind, str(rate.comparisons), str(rate.alarms), *figures))
    table = Table(["nothing but a", "comparisons", "false alarms", "rate", "at most"], rows)
    return Group(
        plain(report.name, "bold"),
        table.terminal(),
        plain(_conclusion(report), "bold"),
        *map(plain, _lines(report)),
    )


def _conclusion(report: SelfcheckReport) -> str:
    declared = f"{report.alpha:.0%}"
    if not report.total.comparisons:
        return "nothing was judged"
    if report.alarm:
        p = f"{report.total.p:.2g}"
        return f"ALARM: so many would come up with a probability of {p} if {declared} were true"
    if report.too_many is None:
        return f"no alarm, and so few comparisons cannot raise one: declared are {declared}"
    return f"no alarm: {report.too_many} would be too many for the declared {declared}"


def _lines(report: SelfcheckReport) -> Iterator[str]:
    yield "at most: one-sided 95 % upper bound; that the rate is below what is declared, one run cannot show"
    judged = [c for c in report.comparisons if c.judged]
    if judged:
        pairs = [c.pairs for c in judged]
        yield f"pairs of seeds: {min(pairs)} to {max(pairs)}, median {statistics.median(pairs):g}"
        for metric in judged[0].verdicts:
            counted = Counter(c.verdicts[metric] for c in judged).most_common()
            shown = ", ".join(f"{count} {verdict}" for verdict, count in counted)
            yield f"{report.titles.get(metric, metric)}: {shown}"
    if values := [p for of_kind in report.exploratory.kinds.values() for p in of_kind]:
        share = sum(p <= LEVEL for p in values) / len(values)
        yield (
            f"metrics that nobody declared: {share:.1%} of {len(values):,} p-values are at most {LEVEL:g} "
            f"(one test each, after {report.exploratory.pairs} pairs)"
        )
    for comparison in report.comparisons:
        for sentence in comparison.alarms:
            yield f"false alarm in {comparison.name} ({comparison.kind}): {sentence}"
        if not comparison.judged:
            yield f"not judged: {comparison.name} ({comparison.kind})"
    for name, reason in report.failures.items():
        yield f"failed: {name}: {reason.splitlines()[0]}"
