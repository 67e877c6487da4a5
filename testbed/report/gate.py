# SPDX-License-Identifier: GPL-2.0-only
"""Conditions under which a comparison fails: `--fail-on "fault_p99 regressed"`. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.report import words

VERDICTS = ("improved", "regressed", "changed", "equivalent", "small", "inconclusive", "none", "undecided")
_CONDITION = re.compile(r"\s*(any primary|any|[a-z0-9_.-]+)\s+([a-z]+)\s*")


@dataclass(frozen=True)
class Condition:
    """`of` is a metric, `any primary` or `any`; `undecided` is inconclusive or none."""

    of: str
    verdict: str

    def __str__(self) -> str:
        return f"{self.of} {self.verdict}"


def condition(text: str, metrics: Collection[str]) -> Condition:
    """Read a condition. Raises ValueError that says what is wrong."""
    match = _CONDITION.fullmatch(text)
    if not match:
        raise ValueError(f"`{text}` is no condition: write a metric, `any primary` or `any`, and a verdict")
    of, verdict = match[1], match[2]
    if verdict not in VERDICTS:
        raise ValueError(f"`{verdict}` is no verdict: {', '.join(VERDICTS)}")
    if of not in ("any", "any primary") and of not in metrics:
        near = difflib.get_close_matches(of, metrics, n=1)
        raise ValueError(f"there is no metric `{of}`" + (f"; did you mean `{near[0]}`?" if near else ""))
    return Condition(of, verdict)


def failures(document: Mapping[str, Any], conditions: Sequence[Condition]) -> Iterator[str]:
    """A line for every metric of every arm that meets a condition."""
    titles = words.titles(document)
    for wanted in conditions:
        for arm, judgement in document["verdicts"].items():
            decisions: dict[str, Any] = dict(judgement["primary"])
            if wanted.of != "any primary":
                decisions |= judgement["exploratory"]
            for name, decision in decisions.items():
                if wanted.of in ("any", "any primary", name) and _meets(decision, wanted.verdict):
                    yield f"{wanted}: {arm}: {words.sentence(titles.get(name, name), decision)}"


def _meets(decision: Mapping[str, Any], verdict: str) -> bool:
    if verdict == "undecided":
        return decision["verdict"] in ("inconclusive", "none")
    if verdict == "small":
        return bool(decision["verdict"] == "different but small")
    return bool(decision["verdict"] == verdict)
