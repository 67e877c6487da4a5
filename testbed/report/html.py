# SPDX-License-Identifier: GPL-2.0-only
"""The report as one HTML file: no network, no scripts, dark and light. Pure.

Everything that a guest may have said is escaped by the template engine, after what would not show has been
made visible.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from testbed.report import text, why, words
from testbed.report.document import ComparisonReport
from testbed.report.escape import visible
from testbed.report.table import Table


@dataclass(frozen=True)
class Picture:
    """An SVG; `first` ones belong to the verdict, `name` is fit for a file."""

    name: str
    caption: str
    svg: bytes
    png: bytes
    place: Literal["first", "later"] = "later"


def page(report: ComparisonReport, pictures: Sequence[Picture]) -> str:
    """The file's content, of a comparison."""
    return rendered(
        "report.html.j2",
        name=report.name,
        description=report.description,
        fallback=text.warnings(report),
        verdicts=[
            {
                "arm": one.arm,
                "kind": one.decision.verdict.replace(" ", "-"),
                "text": words.said(one),
            }
            for one in report.decisions("primary")
        ],
        how=words.how(report),
        doubts=text.doubts(report),
        setting=[line.strip() for line in text.setting(report)],
        diffstat="\n".join(text.diffstat(report)),
        power=list(words.detectable(report)),
        numbers=text.table(report) if report.seeds else None,
        exploratory=_exploratory(report, ("inconclusive", "none"), among=False),
        open=_exploratory(report, ("inconclusive", "none"), among=True),
        kills=text.kills(report),
        notes=text.notes(report),
        failures=list(text.failures(report)),
        whys=[
            {"arm": arm, "table": made, "flames": why.flames(of, next(iter(report.arms)), arm)}
            for (arm, of), made in zip(report.why.items(), why.tables(report), strict=True)
        ],
        why=list(why.sentences(report.why)),
        traces=list(text.traces(report)),
        provenance=list(text.provenance(report)),
        pictures=[{"place": p.place, **embedded(p.caption, p.svg)} for p in pictures],
    )


def rendered(template: str, **values: object) -> str:
    """A template with these values in it."""
    environment = Environment(
        loader=PackageLoader("testbed.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    return environment.get_template(template).render(values)


def embedded(caption: str, svg: bytes) -> dict[str, str]:
    """A picture as templates take it."""
    return {"caption": caption, "data": base64.b64encode(svg).decode()}


def _exploratory(report: ComparisonReport, verdicts: Collection[str], *, among: bool) -> Table:
    """Metrics that nobody declared and that have a change, with a verdict among these or none of them."""
    rows = [
        (
            one.title,
            one.arm,
            words.estimate(one.decision),
            words.interval(one.decision).strip(),
            one.decision.verdict,
        )
        for one in report.decisions("exploratory")
        if one.decision.estimate is not None and (one.decision.verdict in verdicts) == among
    ]
    return Table(["metric", "arm", "change", "interval", "says"], rows)
