# SPDX-License-Identifier: GPL-2.0-only
"""Conditions under which a comparison fails: `--fail-on "fault_p99 regressed"`. Pure.

Remarks of the report are conditions, too: `--fail-on "nothing reclaimed"`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from testbed.analysis.decision import Decision
from testbed.report import words
from testbed.report.document import ComparisonReport
from testbed.report.remarks import KINDS

# As conditions have them, where a verdict is of more words than one.
_LONGER = {"small": "different but small", "construction": "by construction"}
VERDICTS = ("improved", "regressed", "changed", "equivalent", *_LONGER, "inconclusive", "none", "undecided")
_CONDITION = re.compile(r"\s*(any primary|any|[a-z0-9_.-]+)\s+([a-z]+)\s*")


@dataclass(frozen=True)
class Condition:
    """`of` is a metric, `any primary` or `any`; `undecided` is inconclusive or none.
    `construction` says that a metric is decided by it.

    Or `of` is a kind of remark, without a verdict.
    """

    of: str
    verdict: str = ""

    def __str__(self) -> str:
        return f"{self.of} {self.verdict}".strip()


def condition(text: str) -> Condition:
    """Read a condition, of whatever metric. Raises ValueError that says what is wrong."""
    if (remark := " ".join(text.split())) in KINDS:
        return Condition(remark)
    match = _CONDITION.fullmatch(text)
    if not match:
        raise ValueError(
            f"`{text}` is no condition: write a metric, `any primary` or `any`, and a verdict; "
            f"or one of: {', '.join(KINDS)}"
        )
    of, verdict = match[1], match[2]
    if verdict not in VERDICTS:
        raise ValueError(f"`{verdict}` is no verdict: {', '.join(VERDICTS)}")
    return Condition(of, verdict)


def require(conditions: Sequence[Condition], metrics: Collection[str]) -> None:
    """Raise ValueError for a condition on a metric that is not among these."""
    for of in (wanted.of for wanted in conditions if wanted.of not in ("any", "any primary", *metrics)):
        near = difflib.get_close_matches(of, metrics, n=1)
        raise ValueError(f"there is no metric `{of}`" + (f"; did you mean `{near[0]}`?" if near else ""))


def failures(report: ComparisonReport, conditions: Sequence[Condition]) -> Iterator[str]:
    """A line for every remark, and every metric of every arm, that meets a condition."""
    for wanted in conditions:
        yield from (f"{wanted}: {remark.text}" for remark in report.remarks if remark.kind == wanted.of)
        primary_alone = report.decisions("primary")
        all_of_them = report.decisions("primary", "exploratory")
        for one in primary_alone if wanted.of == "any primary" else all_of_them:
            if wanted.of in ("any", "any primary", one.metric) and _meets(one.decision, wanted.verdict):
                yield f"{wanted}: {one.arm}: {words.said(one)}"


def _meets(decision: Decision, verdict: str) -> bool:
    if verdict == "undecided":
        return decision.verdict in ("inconclusive", "none")
    return decision.verdict == _LONGER.get(verdict, verdict)
