# SPDX-License-Identifier: GPL-2.0-only
"""The report of a bisection: a model, and its other forms. Pure; slow to import (scipy, matplotlib)."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from matplotlib.figure import Figure
from pydantic import Field
from rich.console import Group, RenderableType

from testbed.analysis.bisect.search import (
    PHASE,
    Answer,
    CommitGraph,
    Contrast,
    Rules,
    Standing,
    State,
    Wanted,
)
from testbed.analysis.metrics import Kind
from testbed.experiment import Experiment, Model
from testbed.ledger.document import Document, Number
from testbed.ledger.plan import BisectionPlan, GuestFacts
from testbed.report import html, plots, text, words
from testbed.report.document import Count, PerSeed, by_seed
from testbed.report.escape import escaped
from testbed.report.plots import Suspect
from testbed.report.table import Table, plain
from testbed.report.words import number

# Commits that are at least so probable are listed though nothing was measured of them.
WORTH_A_LINE = 0.01
SHORT = 12


class CommitFacts(Model):
    """What is known of a commit."""

    id: str
    built: bool
    same_as: str | None
    """The commit that has the same kernel and was built before it; samples are with one of them."""
    untestable: str | None
    """Why it cannot be tested, if so."""
    remarks: tuple[str, ...]
    """What its kernel had to do without."""
    values: PerSeed
    outcomes: dict[str, Count]


class CandidateFacts(CommitFacts):
    """The same of a commit that may be the culprit."""

    subject: str
    kind: str
    posterior: float | None
    """How probable it is that it is the culprit; null before good and bad are known to differ."""
    bad: float | None
    """How probable it is that it is bad, likewise; a sum, which rounding may leave a little above 1."""


class Next(Model):
    """What is to be done next."""

    trials: tuple[Wanted, ...]
    builds: tuple[str, ...]


class BisectionReport(Document):
    """`report.json` of a bisection."""

    version: Literal[1] = Field(alias="schema")
    name: str
    experiment: Experiment
    """As in the file, with all defaults; sizes are in bytes."""
    metric: str
    kind: Kind
    title: str
    unit: str
    repository: str
    paths: tuple[str, ...]
    rules: Rules
    step: Literal["gate", "search", "confirm", "done"]
    answer: Answer | None
    gate: Contrast | None
    contrasts: tuple[Contrast, ...]
    next: Next
    effect: Number | None
    """How many standard deviations of a trial lie between good and bad; null where neither has any spread."""
    coarse: bool
    """Whether values count as above or below the middle of the ends, and no further."""
    good: CommitFacts
    bad: CommitFacts
    commits: tuple[CandidateFacts, ...]
    """In the order of the history, parents first."""
    others: tuple[CommitFacts, ...]
    """What was measured beside the candidates."""
    trials: Count
    builds: Count
    provenance: GuestFacts | None
    """Null where neither end could be built."""


def document(
    plan: BisectionPlan,
    remarks: Mapping[str, Sequence[str]],
    state: State,
    standing: Standing,
    rules: Rules,
) -> BisectionReport:
    """The report of a bisection as it stands; `remarks` has what the kernels of commits had to do without."""
    question, graph = plan.bisect, state.graph
    inside = [commit.id for commit in graph.commits]
    beside = dict.fromkeys(s.commit for s in state.samples if s.commit not in (graph.good, *inside))
    ids = dict.fromkeys([graph.good, graph.bad, *inside, *beside])
    facts = {commit: _facts_of(commit, remarks, state, standing) for commit in ids}
    return BisectionReport(
        schema=1,
        name=plan.experiment.name,
        experiment=plan.experiment,
        metric=question.metric,
        kind=question.kind,
        title=question.title,
        unit=question.unit,
        repository=question.repository,
        paths=question.paths,
        rules=rules,
        step=standing.step,
        answer=standing.answer,
        gate=standing.gate,
        contrasts=standing.contrasts,
        next=Next(trials=standing.trials, builds=standing.builds),
        effect=standing.d if math.isfinite(standing.d) else None,
        coarse=standing.coarse,
        good=facts[graph.good],
        bad=facts[graph.bad],
        commits=tuple(_candidates(graph, facts, standing)),
        others=tuple(facts[commit] for commit in beside),
        trials=len(state.samples),
        builds=len(state.kernels),
        provenance=plan.provenance,
    )


def _candidates(
    graph: CommitGraph, facts: Mapping[str, CommitFacts], standing: Standing
) -> Iterator[CandidateFacts]:
    for n, commit in enumerate(graph.commits):
        yield CandidateFacts(
            **dict(facts[commit.id]),
            subject=commit.subject,
            kind=commit.kind,
            posterior=standing.posterior[n] if standing.posterior else None,
            bad=standing.bad[n] if standing.bad else None,
        )


def _facts_of(
    commit: str, remarks: Mapping[str, Sequence[str]], state: State, standing: Standing
) -> CommitFacts:
    samples = [s for s in state.samples if s.commit == commit]
    kernel = state.kernels.get(commit)
    first = next((other for other, same in state.kernels.items() if same == kernel), commit)
    return CommitFacts(
        id=commit,
        built=kernel is not None,
        same_as=first if first != commit else None,
        untestable=standing.untestable.get(commit),
        remarks=tuple(remarks.get(commit, ())),
        values=by_seed({s.seed: s.value for s in samples if s.value is not None}),
        outcomes=dict(Counter(s.outcome for s in samples)),
    )


# --- in words --------------------------------------------------------------------------------------


def headline(answer: Answer | None, graph: CommitGraph) -> str:
    """What came of it, in a line."""
    if answer is None:
        return "not finished"
    if not answer.commits:
        return f"nobody is named: {answer.reason}"
    subjects = {commit.id: commit.subject for commit in graph.commits}
    sure = f"{100 * answer.posterior:.1f} %"
    if len(answer.commits) == 1:
        (culprit,) = answer.commits
        return f"{sure} it is {culprit[:SHORT]} ({subjects[culprit]}), {answer.reason}"
    those = ", ".join(commit[:SHORT] for commit in answer.commits)
    return f"{sure} it is one of {those}, which no commit that can be tested tells apart, {answer.reason}"


def standing_in_words(standing: Standing, graph: CommitGraph) -> str:
    """Where it is, in a few words."""
    if standing.answer:
        return headline(standing.answer, graph)
    if standing.step == "gate":
        pairs = standing.gate.pairs if standing.gate else 0
        return f"do good and bad differ? {pairs} pairs"
    best = max(range(len(standing.posterior)), key=standing.posterior.__getitem__)
    likely = f"{100 * standing.posterior[best]:.0f} % {graph.commits[best].id[:SHORT]}"
    if standing.step == "confirm":
        return f"confirming, {min(c.pairs for c in standing.contrasts)} pairs: {likely}"
    return f"searching: {likely}"


def _contrasts(report: BisectionReport) -> Iterator[str]:
    for contrast in filter(None, [report.gate, *report.contrasts]):
        sides = f"{contrast.after[:SHORT]} against {contrast.before[:SHORT]}"
        if contrast.decision:
            said = words.sentence(report.title, contrast.decision)
        else:
            said = f"undecided after {contrast.pairs} pairs"
        yield f"{sides}: {said}"


def table(report: BisectionReport) -> Table:
    """A row per commit of which there is something to say, the good end first."""
    inside = {commit.id for commit in report.commits}
    ends = [report.good] if report.good.id not in inside else []
    rows = []
    for commit in (*ends, *report.commits, *report.others):
        likely = commit.posterior or 0 if isinstance(commit, CandidateFacts) else 0
        if commit.untestable or commit.outcomes or commit.built or likely >= WORTH_A_LINE:
            rows.append(_row(commit, report))
    headings = ["commit", "culprit", "bad", "n", "median", "", "subject"]
    return Table(headings, rows, words=frozenset({0, 5, 6}))


def _row(commit: CommitFacts, report: BisectionReport) -> list[str]:
    values = list(commit.values.values())
    ends = {report.good.id: "good end", report.bad.id: "bad end"}
    failed = {name: n for name, n in commit.outcomes.items() if name != "measured"}
    notes = [
        ends.get(commit.id, ""),
        commit.untestable or ", ".join(f"{n} x {name}" for name, n in failed.items()),
        f"the kernel of {commit.same_as[:SHORT]}" if commit.same_as else "",
        *commit.remarks,
    ]
    posterior, bad, subject = None, None, ""
    if isinstance(commit, CandidateFacts):
        posterior, bad, subject = commit.posterior, commit.bad, commit.subject
    return [
        commit.id[:SHORT],
        _percent(posterior),
        _percent(bad),
        str(len(values)) if values else "",
        number(statistics.median(values)) if values else "",
        "; ".join(filter(None, notes)),
        subject,
    ]


def _percent(p: float | None) -> str:
    if p is None:
        return ""
    return f"{100 * p:.1f} %" if p >= 0.0005 else "0"


def _facts(report: BisectionReport) -> Iterator[str]:
    yield f"{report.title} ({report.unit}), {len(report.commits)} commits in {report.repository}"
    line = f"{report.trials} trials, {report.builds} kernels"
    if report.effect:
        line += f"; good and bad lie {report.effect:.1f} standard deviations of a trial apart"
    elif report.effect is None:
        line += "; all trials of good came to the same, and all of bad to something else"
    yield line
    if report.coarse and report.kind != "outcome":
        yield "values count as above or below the middle of the ends, since these are far from normal"
    if report.next.trials:
        yield "next: a trial of " + ", ".join(wanted.commit[:SHORT] for wanted in report.next.trials)


def _setting(report: BisectionReport, facts: GuestFacts) -> Iterator[str]:
    """What ran."""
    (name, arm), *_ = report.experiment.arms.items()
    patches = ", ".join(arm.patches) or "no patches"
    yield "every commit: " + "; ".join([patches, *text.settings(report.experiment, name)])
    yield from text.guest_and_workload(report.experiment)
    yield from text.acceleration(report.experiment, facts)


def _fallback(report: BisectionReport) -> list[str]:
    return text.fallback(report.provenance) if report.provenance else []


def render(report: BisectionReport, said: str) -> RenderableType:
    """The report for a terminal; `said` is its headline."""
    lines = (*_fallback(report), *_facts(report), *_contrasts(report))
    return Group(plain(said, "bold"), *map(plain, lines), table(report).terminal())


def markdown(report: BisectionReport, said: str) -> str:
    """The report as Markdown."""
    lines = [f"# Bisection: {escaped(report.name)}", "", f"**{escaped(said)}**", ""]
    lines += [f"- {escaped(line)}" for line in (*_fallback(report), *_facts(report), *_contrasts(report))]
    lines += ["", *table(report).markdown()]
    lines += ["", "![posterior and measurements](pictures/posterior.svg)", ""]
    return "\n".join(lines)


def page(report: BisectionReport, said: str, posterior: bytes) -> str:
    """The report as one HTML file; `posterior` is the picture of picture(), as SVG."""
    facts = report.provenance
    caption = "How probable it is of each commit that it did it, and what was measured of it"
    return html.rendered(
        "bisection.html.j2",
        name=f"Bisection: {report.name}",
        description=report.experiment.description,
        fallback=_fallback(report),
        said=said,
        confirmed=bool(report.answer and report.answer.confirmed),
        posterior=html.embedded(caption, posterior),
        facts=list(_facts(report)),
        contrasts=list(_contrasts(report)),
        commits=table(report),
        # Where no end could be built, there is no machine yet.
        setting=list(_setting(report, facts)) if facts else [],
        provenance=list(text.machine(facts)) if facts else [],
    )


def picture(report: BisectionReport) -> Figure:
    """How probable it is of each commit that it is the culprit, over what was measured of it."""
    suspects = [
        Suspect(c.posterior or 0.0, c.bad or 0.0, *_sides(c), testable=not c.untestable)
        for c in report.commits
    ]
    if report.bad.id not in {commit.id for commit in report.commits}:
        suspects.append(Suspect(0.0, 1.0, *_sides(report.bad), testable=not report.bad.untestable))
    named = report.answer.commits if report.answer else ()
    return plots.posterior(
        title=f"{report.title} ({report.unit})",
        good=[value for side in _sides(report.good) for value in side],
        suspects=suspects,
        named=[n for n, commit in enumerate(report.commits) if commit.id in named],
    )


def _sides(commit: CommitFacts) -> tuple[list[float], list[float]]:
    """A commit's values of the search, and those of confirmations."""
    sides: tuple[list[float], list[float]] = ([], [])
    for seed, value in commit.values.items():
        sides[int(seed) // PHASE % 2].append(value)
    return sides
