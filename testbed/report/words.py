# SPDX-License-Identifier: GPL-2.0-only
"""Verdicts in words. Pure; decisions are as the JSON document has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Decision = Mapping[str, Any]
Document = Mapping[str, Any]


def duration(seconds: float) -> str:
    """As in `48 s` or `3 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def change(decision: Decision, value: float) -> str:
    """A change as the metric has it: in percent, or in its own unit where there is no ratio."""
    return f"{value * 100:+.3g} %" if decision["relative"] else f"{value:+.3g}"


def size(decision: Decision, value: float) -> str:
    """The same without its sign."""
    return change(decision, abs(value)).removeprefix("+")


def interval(decision: Decision) -> str:
    """As in ` [+12 %, +26 %]`; empty if there is none."""
    if not decision["interval"]:
        return ""
    low, high = (change(decision, end) for end in decision["interval"])
    return f" [{low}, {high}]"


def sentence(title: str, decision: Decision) -> str:
    """What is known of one metric."""
    bound = decision["bound"]
    limit = f"no change larger than {size(decision, bound)}" if bound is not None else ""
    match decision["verdict"]:
        case "improved" | "regressed" | "changed" as verdict:
            by = change(decision, decision["estimate"])
            return f"{title}: {verdict} by {by}{interval(decision)}"
        case "different but small":
            by = change(decision, decision["estimate"])
            return f"{title}: {decision['direction']}, but little: {by}{interval(decision)}"
        case "equivalent":
            return f"{title}: {limit}"
        case "inconclusive":
            needed = decision["seeds_needed"]
            more = (
                f"{needed - decision['pairs']} more seeds needed, about"
                if needed
                else "no number of seeds in sight"
            )
            return f"{title}: not decided ({more})" + (f"; {limit}" if limit else "")
        case _:
            return f"{title}: no verdict: {decision['reason']}"


def titles(document: Document) -> dict[str, str]:
    """Metric -> its title."""
    return {
        name: metric["title"] for arm in document["arms"].values() for name, metric in arm["metrics"].items()
    }


def verdicts(document: Document) -> Iterator[tuple[str, str]]:
    """Arm and sentence, for every primary metric of every arm but the first."""
    known = titles(document)
    for arm, judgement in document["verdicts"].items():
        for name, decision in judgement["primary"].items():
            yield arm, sentence(known.get(name, name), decision)


def headline(document: Document) -> str:
    """The comparison in one sentence."""
    parts = []
    for arm, judgement in document["verdicts"].items():
        known = titles(document)
        said = "; ".join(sentence(known.get(n, n), d) for n, d in judgement["primary"].items())
        parts.append(f"{arm}: {said}")
    return ". ".join(parts) or "No verdict: the experiment declares no primary metric."


def how(document: Document) -> str:
    """What the statements above rest on."""
    first = next(iter(document["arms"]), "")
    rule = (
        "looked at while seeds were added, always valid (e-process)"
        if document["sequential"]
        else "looked at once, after all seeds"
    )
    return (
        f"against {first}; n = {len(document['seeds'])} pairs of seeds, {rule}; false alarms at most "
        f"{document['alpha']:.0%} for all primary metrics of all arms together"
    )


def detectable(document: Document) -> Iterator[str]:
    """The smallest change of each primary metric that so many seeds find, if they are enough to know."""
    known = titles(document)
    for arm, judgement in document["verdicts"].items():
        for name, decision in judgement["primary"].items():
            if decision["mde"] is not None:
                smallest = size(decision, decision["mde"])
                title = known.get(name, name)
                yield f"{arm}: {title}: with so many seeds, a change of {smallest} is found nine times in ten"


def disagreements(document: Document) -> Iterator[str]:
    """Primary metrics of which a second method says something else."""
    known = titles(document)
    for arm, judgement in document["verdicts"].items():
        for name, decision in judgement["primary"].items():
            if decision["disagreement"]:
                check = decision["cross_check"]
                yield f"{arm}: {known.get(name, name)}: the cross-check ({check['name']}) does not agree"
