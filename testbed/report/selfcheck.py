# SPDX-License-Identifier: GPL-2.0-only
"""What comparisons without anything to find said: as JSON has it, and for a terminal. Pure; slow to import.

    comparisons = [{"name", "kind", "pairs", "judged", "verdicts": {METRIC: VERDICT}, "alarms": [SENTENCE]}]
    kinds.KIND = total = {"comparisons", "alarms", "share", "bound", "p"}
    exploratory = {"pairs", "kinds": {KIND: [P-VALUE]}}

`comparisons` of a kind are those that were judged; `bound` is the one-sided 95 % upper bound of the rate, `p`
how probable so many alarms would be at `alpha`, `too_many` the least number that makes `alarm` true, or null.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from testbed.analysis.selfcheck import LEVEL, Check, Outcome, Rate, too_many
from testbed.report import words
from testbed.report.text import visible

SCHEMA = 1


def document(
    name: str,
    check: Check,
    outcomes: Sequence[Outcome],
    *,
    failures: Mapping[str, str],
    pairs: int,
    titles: Mapping[str, str],
) -> dict[str, Any]:
    """The check as JSON has it; `pairs` is the number of them that p-values are of."""
    return {
        "schema": SCHEMA,
        "name": name,
        "alpha": check.alpha,
        "titles": dict(titles),
        "comparisons": [_outcome(outcome, titles) for outcome in outcomes],
        "failures": dict(failures),
        "kinds": {kind: _rate(rate) for kind, rate in check.kinds.items()},
        "total": _rate(check.total),
        "alarm": check.alarm,
        "too_many": too_many(check.total.comparisons, check.alpha),
        "exploratory": {
            "pairs": pairs,
            "kinds": {
                kind: sorted(p for o in outcomes if o.kind == kind for p in o.p_values.values())
                for kind in check.kinds
            },
        },
    }


def _outcome(outcome: Outcome, titles: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "kind": outcome.kind,
        "pairs": outcome.pairs,
        "judged": outcome.judged,
        "verdicts": {name: decision.verdict for name, decision in outcome.primaries.items()},
        "alarms": [
            words.sentence(titles.get(name, name), asdict(outcome.primaries[name])) for name in outcome.alarms
        ],
    }


def _rate(rate: Rate) -> dict[str, Any]:
    return {**asdict(rate), "share": rate.share}


def render(made: Mapping[str, Any]) -> RenderableType:
    """The check for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(("nothing but a", "comparisons", "false alarms", "rate", "at most")):
        table.add_column(heading, justify="right" if index else "left")
    for kind, rate in {**made["kinds"], "all": made["total"]}.items():
        figures = (f"{rate['share']:.1%}", f"{rate['bound']:.1%}") if rate["comparisons"] else ("-", "-")
        table.add_row(kind, str(rate["comparisons"]), str(rate["alarms"]), *figures)
    lines = [Text(visible(line)) for line in _lines(made)]
    return Group(Text(visible(made["name"]), "bold"), table, Text(_conclusion(made), "bold"), *lines)


def _conclusion(made: Mapping[str, Any]) -> str:
    total, declared = made["total"], f"{made['alpha']:.0%}"
    if not total["comparisons"]:
        return "nothing was judged"
    if made["alarm"]:
        return f"ALARM: so many would come up with a probability of {total['p']:.2g} if {declared} were true"
    if made["too_many"] is None:
        return f"no alarm, and so few comparisons cannot raise one: declared are {declared}"
    return f"no alarm: {made['too_many']} would be too many for the declared {declared}"


def _lines(made: Mapping[str, Any]) -> Iterator[str]:
    yield "at most: one-sided 95 % upper bound; that the rate is below what is declared, one run cannot show"
    judged = [c for c in made["comparisons"] if c["judged"]]
    if judged:
        pairs = [c["pairs"] for c in judged]
        yield f"pairs of seeds: {min(pairs)} to {max(pairs)}, median {statistics.median(pairs):g}"
        for metric in judged[0]["verdicts"]:
            counted = Counter(c["verdicts"][metric] for c in judged).most_common()
            shown = ", ".join(f"{count} {verdict}" for verdict, count in counted)
            yield f"{made['titles'].get(metric, metric)}: {shown}"
    if values := [p for found in made["exploratory"]["kinds"].values() for p in found]:
        share = sum(p <= LEVEL for p in values) / len(values)
        yield (
            f"metrics that nobody declared: {share:.1%} of {len(values):,} p-values are at most {LEVEL:g} "
            f"(one test each, after {made['exploratory']['pairs']} pairs)"
        )
    for comparison in made["comparisons"]:
        for sentence in comparison["alarms"]:
            yield f"false alarm in {comparison['name']} ({comparison['kind']}): {sentence}"
        if not comparison["judged"]:
            yield f"not judged: {comparison['name']} ({comparison['kind']})"
    for name, reason in made["failures"].items():
        yield f"failed: {name}: {reason.splitlines()[0]}"
