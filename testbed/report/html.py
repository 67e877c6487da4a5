# SPDX-License-Identifier: GPL-2.0-only
"""The report as one HTML file: no network, no scripts, dark and light. Pure.

Everything that a guest may have said is escaped by the template engine, after what would not show has been
made visible.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from testbed.report import text, words
from testbed.report.text import visible


@dataclass(frozen=True)
class Picture:
    """An SVG; `first` ones belong to the verdict, `name` is fit for a file."""

    name: str
    caption: str
    svg: bytes
    png: bytes
    place: Literal["first", "later"] = "later"


def page(document: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The file's content, of a comparison."""
    return rendered(
        "report.html.j2",
        name=document["name"],
        description=document["description"],
        fallback=text.fallback(document),
        verdicts=list(_verdicts(document)),
        how=words.how(document),
        disagreements=list(words.disagreements(document)),
        setting=[line.strip() for line in text.setting(document)],
        diffstat="\n".join(text.diffstat(document)),
        power=list(_power(document)),
        headings=text.headings(document),
        rows=list(text.rows(document)) if document["seeds"] else [],
        exploratory=list(_exploratory(document)),
        notes=text.notes(document),
        traces=list(text.traces(document)),
        provenance=list(text.provenance(document)),
        pictures=[{"place": p.place, **embedded(p.caption, p.svg)} for p in pictures],
    )


def rendered(template: str, **values: Any) -> str:
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


def _verdicts(document: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    known = words.titles(document)
    for arm, judgement in document["verdicts"].items():
        for name, decision in judgement["primary"].items():
            kind = decision["verdict"].replace(" ", "-")
            yield {"arm": arm, "kind": kind, "text": words.sentence(known.get(name, name), decision)}


def _power(document: Mapping[str, Any]) -> Iterator[str]:
    known = words.titles(document)
    for arm, judgement in document["verdicts"].items():
        for name, decision in judgement["primary"].items():
            if decision["verdict"] in ("inconclusive", "none"):
                yield f"{arm}: {words.sentence(known.get(name, name), decision)}"
    yield from words.detectable(document)


def _exploratory(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    known = words.titles(document)
    for arm, judgement in document["verdicts"].items():
        for name, decision in judgement["exploratory"].items():
            if decision["estimate"] is not None:
                change = words.change(decision, decision["estimate"])
                interval = words.interval(decision).strip()
                yield known.get(name, name), arm, change, interval, decision["verdict"]
