# SPDX-License-Identifier: GPL-2.0-only
"""A bisection as one JSON document, as text, Markdown and HTML. Pure; slow to import (scipy, matplotlib).

    commits = [{"id", "subject", "kind", "posterior", "bad", "built", "untestable", "remarks",
                "values": {SEED: value}, "outcomes": {OUTCOME: trials}}]

in the order of the history, parents first; `posterior` is how probable it is that this commit is the
culprit and `bad` that it is bad, both null before good and bad are known to differ. `good` and `bad` are the
ends, and `others` what was measured beside the candidates; samples of equal kernels are with one of them
(`same_as`).
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

from testbed.analysis.bisect import PHASE, Answer, Contrast, History, Rules, Standing, State
from testbed.ledger.plan import BisectionPlan
from testbed.report import html, text, words
from testbed.report.plots import Suspect
from testbed.report.text import escaped, markdown_line, number, visible

SCHEMA = 1
# Commits that are at least so probable are listed though nothing was measured of them.
WORTH_A_LINE = 0.01
SHORT = 12


def document(
    plan: BisectionPlan,
    remarks: Mapping[str, Sequence[str]],
    state: State,
    standing: Standing,
    rules: Rules,
) -> dict[str, Any]:
    """The document of a bisection as it stands.

    `plan` is the ledger's; `remarks` says of commits what their kernels had to do without.
    """
    question = plan.bisect
    history = state.history
    first: dict[str, str] = {}
    same = {commit: first.setdefault(kernel, commit) for commit, kernel in state.kernels.items()}

    def facts(commit: str) -> dict[str, Any]:
        samples = [s for s in state.samples if s.commit == commit]
        return {
            "id": commit,
            "built": commit in state.kernels,
            "same_as": same.get(commit) if same.get(commit) != commit else None,
            "untestable": standing.untestable.get(commit),
            "remarks": list(remarks.get(commit, [])),
            "values": {str(s.seed): s.value for s in samples if s.value is not None},
            "outcomes": dict(Counter(s.outcome for s in samples)),
        }

    inside = [commit.id for commit in history.commits]
    beside = dict.fromkeys(s.commit for s in state.samples if s.commit not in (history.good, *inside))
    return {
        "schema": SCHEMA,
        "name": plan.experiment.name,
        "experiment": plan.experiment.model_dump(mode="json"),
        "metric": question.metric,
        "kind": question.kind,
        "title": question.title,
        "unit": question.unit,
        "repository": question.repository,
        "paths": list(question.paths),
        "rules": asdict(rules),
        "step": standing.step,
        "answer": asdict(standing.answer) if standing.answer else None,
        "gate": _contrast(standing.gate),
        "contrasts": [_contrast(contrast) for contrast in standing.contrasts],
        "next": {"trials": [asdict(w) for w in standing.trials], "builds": list(standing.builds)},
        "effect": standing.d,
        "coarse": standing.coarse,
        "good": facts(history.good),
        "bad": facts(history.bad),
        "commits": [
            {
                **facts(commit.id),
                "subject": commit.subject,
                "kind": commit.kind,
                "posterior": standing.posterior[n] if standing.posterior else None,
                "bad": standing.bad[n] if standing.bad else None,
            }
            for n, commit in enumerate(history.commits)
        ],
        "others": [facts(commit) for commit in beside],
        "trials": len(state.samples),
        "builds": len(state.kernels),
        "provenance": plan.provenance and plan.provenance.model_dump(mode="json"),
    }


def _contrast(contrast: Contrast | None) -> dict[str, Any] | None:
    return asdict(contrast) if contrast else None


# --- in words --------------------------------------------------------------------------------------


def headline(answer: Answer | None, history: History) -> str:
    """What came of it, in a line."""
    if answer is None:
        return "not finished"
    if not answer.commits:
        return f"nobody is named: {answer.reason}"
    subjects = {commit.id: commit.subject for commit in history.commits}
    sure = f"{100 * answer.posterior:.1f} %"
    if len(answer.commits) == 1:
        (culprit,) = answer.commits
        return f"{sure} it is {culprit[:SHORT]} ({subjects[culprit]}), {answer.reason}"
    those = ", ".join(commit[:SHORT] for commit in answer.commits)
    return f"{sure} it is one of {those}, which no commit that can be tested tells apart, {answer.reason}"


def standing_in_words(standing: Standing, history: History) -> str:
    """Where it is, in a few words."""
    if standing.answer:
        return headline(standing.answer, history)
    if standing.step == "gate":
        pairs = standing.gate.pairs if standing.gate else 0
        return f"do good and bad differ? {pairs} pairs"
    best = max(range(len(standing.posterior)), key=standing.posterior.__getitem__)
    likely = f"{100 * standing.posterior[best]:.0f} % {history.commits[best].id[:SHORT]}"
    if standing.step == "confirm":
        return f"confirming, {min(c.pairs for c in standing.contrasts)} pairs: {likely}"
    return f"searching: {likely}"


def _contrasts(document: Mapping[str, Any]) -> Iterator[str]:
    for contrast in [document["gate"], *document["contrasts"]]:
        if contrast is None:
            continue
        sides = f"{contrast['after'][:SHORT]} against {contrast['before'][:SHORT]}"
        if contrast["decision"]:
            said = words.sentence(document["title"], contrast["decision"])
        else:
            said = f"undecided after {contrast['pairs']} pairs"
        yield f"{sides}: {said}"


def _rows(document: Mapping[str, Any]) -> Iterator[list[str]]:
    known = [document["good"]] if document["good"]["id"] not in _ids(document) else []
    for commit in [*known, *document["commits"], *document["others"]]:
        told = commit["untestable"] or commit["outcomes"] or commit["built"]
        if told or (commit.get("posterior") or 0) >= WORTH_A_LINE:
            yield _row(commit, document)


def _ids(document: Mapping[str, Any]) -> set[str]:
    return {commit["id"] for commit in document["commits"]}


def _row(commit: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    values = list(commit["values"].values())
    ends = {document["good"]["id"]: "good end", document["bad"]["id"]: "bad end"}
    failed = {name: n for name, n in commit["outcomes"].items() if name != "measured"}
    notes = [
        ends.get(commit["id"], ""),
        commit["untestable"] or ", ".join(f"{n} x {name}" for name, n in failed.items()),
        f"the kernel of {commit['same_as'][:SHORT]}" if commit["same_as"] else "",
        *commit["remarks"],
    ]
    return [
        commit["id"][:SHORT],
        _percent(commit.get("posterior")),
        _percent(commit.get("bad")),
        str(len(values)) if values else "",
        number(statistics.median(values)) if values else "",
        "; ".join(filter(None, notes)),
        commit.get("subject", ""),
    ]


def _percent(p: float | None) -> str:
    if p is None:
        return ""
    return f"{100 * p:.1f} %" if p >= 0.0005 else "0"


HEADINGS = ["commit", "culprit", "bad", "n", "median", "", "subject"]


def _facts(document: Mapping[str, Any]) -> Iterator[str]:
    commits = len(document["commits"])
    yield f"{document['title']} ({document['unit']}), {commits} commits in {document['repository']}"
    line = f"{document['trials']} trials, {document['builds']} kernels"
    if document["effect"]:
        line += f"; good and bad lie {document['effect']:.1f} standard deviations of a trial apart"
    yield line
    if document["coarse"] and document["kind"] != "outcome":
        yield "values count as above or below the middle of the ends, since these are far from normal"
    if document["next"]["trials"]:
        yield "next: a trial of " + ", ".join(w["commit"][:SHORT] for w in document["next"]["trials"])


def _setting(document: Mapping[str, Any]) -> Iterator[str]:
    """What ran."""
    (arm, said), *_ = document["experiment"]["arms"].items()
    patches = ", ".join(said.get("patches", [])) or "no patches"
    yield "every commit: " + "; ".join([patches, *text.settings(document, arm)])
    yield from text.guest_and_workload(document["experiment"])
    yield from text.acceleration(document)


def render(document: Mapping[str, Any], said: str) -> RenderableType:
    """The report for a terminal; `said` is its headline."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in HEADINGS[1:5] else "left")
    for row in _rows(document):
        table.add_row(*(Text(visible(cell)) for cell in row))
    told = (*text.fallback(document), *_facts(document), *_contrasts(document))
    facts = [Text(visible(line)) for line in told]
    return Group(Text(visible(said), style="bold"), *facts, table)


def markdown(document: Mapping[str, Any], said: str) -> str:
    """The report as Markdown."""
    lines = [f"# Bisection: {escaped(document['name'])}", "", f"**{escaped(said)}**", ""]
    told = (*text.fallback(document), *_facts(document), *_contrasts(document))
    lines += [f"- {escaped(line)}" for line in told]
    lines += ["", markdown_line(HEADINGS), markdown_line(["---"] * len(HEADINGS))]
    lines += [markdown_line(escaped(cell) for cell in row) for row in _rows(document)]
    lines += ["", "![posterior and measurements](pictures/posterior.svg)", ""]
    return "\n".join(lines)


def page(document: Mapping[str, Any], said: str, posterior: bytes) -> str:
    """The report as one HTML file; `posterior` is the picture of picture(), as SVG."""
    provenance = document["provenance"]
    caption = "How probable it is of each commit that it did it, and what was measured of it"
    return html.rendered(
        "bisection.html.j2",
        name=f"Bisection: {document['name']}",
        description=document["experiment"]["description"],
        fallback=text.fallback(document),
        said=said,
        confirmed=bool(document["answer"] and document["answer"]["confirmed"]),
        posterior=html.embedded(caption, posterior),
        facts=list(_facts(document)),
        contrasts=list(_contrasts(document)),
        headings=HEADINGS,
        rows=list(_rows(document)),
        # Where no end could be built, there is no machine yet.
        setting=list(_setting(document)) if provenance else [],
        provenance=list(text.machine(provenance)) if provenance else [],
    )


def picture(document: Mapping[str, Any]) -> dict[str, Any]:
    """What report.plots.posterior() is to draw, as its arguments."""
    commits = document["commits"]
    answer = document["answer"] or {"commits": ()}

    def split(commit: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        """Values of the search, and of confirmations."""
        sides: tuple[list[float], list[float]] = ([], [])
        for seed, value in commit["values"].items():
            sides[int(seed) // PHASE % 2].append(value)
        return sides

    if document["bad"]["id"] not in _ids(document):
        commits = [*commits, {**document["bad"], "posterior": 0.0, "bad": 1.0}]
    return {
        "title": f"{document['title']} ({document['unit']})",
        "good": [value for side in split(document["good"]) for value in side],
        "suspects": [
            Suspect(c["posterior"] or 0.0, c["bad"] or 0.0, *split(c), testable=not c["untestable"])
            for c in commits
        ],
        "named": [n for n, commit in enumerate(commits) if commit["id"] in answer["commits"]],
    }
