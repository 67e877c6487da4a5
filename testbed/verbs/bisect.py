# SPDX-License-Identifier: GPL-2.0-only
"""`testbed bisect`: the search of analysis/bisect/, with real commits, kernels and guests.

Everything that is found is in the ledger as soon as it is: trials as ever (arm: the commit, seed: the
sample's number), builds as notes. What comes next is worked out from that alone, so that who is killed at
any moment goes on by the same command, and nothing that was finished is done again.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from testbed.analysis.bisect.search import (
    Commit,
    CommitGraph,
    Rules,
    Sample,
    Standing,
    State,
    Wanted,
    assess,
)
from testbed.analysis.parse import Measurement, parse
from testbed.experiment import DeadlineSpec, Experiment
from testbed.host.errors import GuestLost, SpecError, StoreError
from testbed.kernel import commits
from testbed.kernel.commits import Change
from testbed.ledger.ledger import LEDGER, Ledger
from testbed.ledger.plan import (
    BisectionPlan,
    BisectionQuestion,
    BuildNote,
    Candidate,
    GuestFacts,
    SearchRules,
)
from testbed.ledger.record import FAILURES, LOST, MEASURED, Record, final
from testbed.report import bisection
from testbed.report.bisection import BisectionReport
from testbed.trials import pool
from testbed.trials.commits import Broken, Built, Tester
from testbed.trials.pool import BuildJob, Job, TrialJob
from testbed.trials.trial import Attempt
from testbed.verbs import reports
from testbed.verbs.quantity import Quantity, Value, quantity

Note = Callable[[str], None]


# --- what was found ---------------------------------------------------------------------------------


@dataclass
class Findings:
    """What a ledger has of a bisection: builds, samples, and what they cost."""

    graph: CommitGraph
    value: Value
    kernels: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    build_seconds: list[float] = field(default_factory=list)
    samples: dict[tuple[str, int], Sample] = field(default_factory=dict)
    trial_seconds: list[float] = field(default_factory=list)

    def noted(self, note: BuildNote) -> None:
        """Take in what became of a build, or that a commit does not boot."""
        if note.kernel:
            self.kernels[note.commit] = note.kernel
            self.build_seconds.append(note.seconds)
        else:
            self.broken[note.commit] = note.reason
        self.remarks.setdefault(note.commit, []).extend(note.remarks)

    def ended(self, record: Record, measurement: Callable[[], Measurement]) -> None:
        """Take in an attempt at a trial; of those that were lost there is nothing to take."""
        if record.outcome == LOST or (record.arm, record.seed) in self.samples:
            return
        value = self.value(record, measurement)
        outcome = MEASURED if value is not None else FAILURES.get(record.outcome, "gives no value")
        self.samples[record.arm, record.seed] = Sample(record.arm, record.seed, value, outcome)
        self.trial_seconds.append(sum(s for stage, s in record.stages.items() if stage != "snapshot"))

    def came_to(self, record: Record) -> str:
        """What an attempt that was taken in has given, in a word."""
        sample = self.samples.get((record.arm, record.seed))
        if sample is None:
            return LOST
        return sample.outcome if sample.value is None else f"{sample.value:.6g}"

    @property
    def state(self) -> State:
        """What the search goes by."""
        return State(self.graph, tuple(self.samples.values()), dict(self.kernels), dict(self.broken))

    def costs(self, rules: Rules) -> Rules:
        """The rules with what a build costs here, of which only the first compiles everything."""
        builds = self.build_seconds[1:] or self.build_seconds
        if not builds or not self.trial_seconds:
            return rules
        a_trial = max(statistics.median(self.trial_seconds), 0.1)
        return replace(rules, rho=min(statistics.median(builds) / a_trial, 1000.0))


def graph_of(plan: BisectionPlan) -> CommitGraph:
    """The commits of a plan."""
    candidates = (Commit(**dict(candidate)) for candidate in plan.bisect.commits)
    return CommitGraph(plan.bisect.good, plan.bisect.bad, tuple(candidates))


def events(ledger: Ledger) -> Iterator[BuildNote | Record]:
    """Notes and records, as they came. A trial that was run again, its log being gone, comes once."""
    records, notes = ledger.records(), deque(ledger.notes())
    counting = final(records)
    for kept, record in enumerate(records):
        while notes and notes[0][0] <= kept:
            yield notes.popleft()[1]
        if record.outcome == LOST or record is counting[record.trial]:
            yield record
    yield from (note for _, note in notes)


def planned(ledger: Ledger) -> tuple[BisectionPlan, Quantity]:
    """A bisection's plan, and what is bisected. Raises StoreError for a plan of what there is not."""
    plan = ledger.bisection()
    try:
        return plan, quantity(plan.bisect.metric, plan.experiment)
    except SpecError as unknown:
        where = ledger.directory / LEDGER
        raise StoreError(f"{where}: its plan cannot be used: {unknown.message}") from unknown


def rules_of(plan: BisectionPlan) -> Rules:
    """The rules of a plan."""
    return Rules(**dict(plan.rules))


def read(
    ledger: Ledger, graph: CommitGraph, value: Value, without_log: list[Wanted] | None = None
) -> Findings:
    """Everything that a ledger has. Trials without their log are put into `without_log`; else StoreError."""
    findings = Findings(graph, value)
    for event in events(ledger):
        try:
            take(findings, event, ledger)
        except StoreError:
            if without_log is None or not isinstance(event, Record):
                raise
            without_log.append(Wanted(event.arm, event.seed))
    return findings


def take(findings: Findings, event: BuildNote | Record, ledger: Ledger) -> None:
    """Take in what the ledger has. Raises StoreError for a trial without its log."""
    if not isinstance(event, Record):
        findings.noted(event)
        return
    try:
        findings.ended(event, lambda: parse(ledger.log(event)))
    except StoreError as damaged:
        damaged.hint = "the same `testbed bisect --repo`, given once more, runs that trial again"
        raise


# --- the search --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What is to be bisected. Hashes and names; what a person typed is in the repository by now."""

    repository: Path
    range: commits.Range
    paths: tuple[str, ...]
    experiment: Experiment
    quantity: Quantity

    def planned(self, candidates: Iterable[Candidate]) -> BisectionQuestion:
        """What has to be the same, but for the commits, for a bisection to go on."""
        return BisectionQuestion(
            repository=str(self.repository),
            good=self.range.good,
            bad=self.range.bad,
            paths=self.paths,
            metric=self.quantity.name,
            kind=self.quantity.measured.kind,
            title=self.quantity.title,
            unit=self.quantity.unit,
            commits=tuple(candidates),
        )


def question(
    repository: Path, ends: tuple[str, str], paths: Sequence[str], experiment: Experiment, name: str | None
) -> Question:
    """What a person asks for, looked up; `ends` are good and bad. Raises SpecError for what is not there."""
    between = commits.between(repository, *ends, paths)
    only = experiment.only()
    return Question(repository.resolve(), between, tuple(paths), only, quantity(name, experiment))


def rules(confidence: float | None) -> Rules:
    """The rules, at a confidence if one is given."""
    return Rules() if confidence is None else Rules(confidence=confidence)


def bisect(question: Question, rules: Rules, tester: Tester, ledger: Ledger, note: Note) -> Standing:
    """Search until there is an answer. Raises SpecError if the ledger is of another bisection; GuestLost for
    a trial that is lost again and again, HostError, StoreError, Interrupted."""
    return _Search(question, rules, tester, ledger, note).run()


def _candidate(change: Change, kind: str) -> Candidate:
    """A commit as the plan has it."""
    return Candidate(
        id=change.id,
        links=change.links,
        parents=change.parents,
        weight=commits.WEIGHTS[kind],
        kind=kind,
        subject=change.subject,
    )


class _Search:
    def __init__(self, question: Question, rules: Rules, tester: Tester, ledger: Ledger, note: Note) -> None:
        self.question, self.rules, self.tester = question, rules, tester
        self.ledger, self.note = ledger, note
        self.told = ""
        # Trials whose log is gone.
        self.again: list[Wanted] = []
        self.findings = self._opened()
        # Without a kernel there is no machine, and nothing to be run on it.
        self.workers = tester.workers if self.findings.kernels else 1
        self.deterministic = bool(self.findings.kernels) and tester.deterministic
        self.standing: Standing | None = None

    def run(self) -> Standing:
        pool.work(self._without_log, self.ledger, self._tell_lost)
        pool.work(self._next, self.ledger, self._tell_lost)
        assert self.standing
        return self.standing

    def _without_log(self, running: Sequence[Job]) -> Sequence[Job] | None:
        """For the pool: the trials that have no log any more, one after the other."""
        if running:
            return ()
        return [self.tester.job(self.again.pop(), self._ended)] if self.again else None

    def _next(self, running: Sequence[Job]) -> Sequence[Job] | None:
        """What comes next, for the pool."""
        trials = [job for job in running if isinstance(job, TrialJob)]
        standing = self.standing = self._assess([Wanted(job.arm, job.seed) for job in trials])
        self._say(bisection.standing_in_words(standing, self.findings.graph))
        if standing.answer:
            return None
        needed = [wanted.commit for wanted in standing.trials]
        # In real time a compiler is noise: builds and trials take turns, and none is made ahead.
        builds = [commit for commit in standing.builds if self.deterministic or commit in needed]
        building = len(trials) < len(running)
        jobs: list[Job] = []
        if builds and not building and (self.deterministic or not trials):
            jobs.append(self._build_job(builds[0]))
            building = True
        if self.deterministic or not building:
            jobs += [
                self.tester.job(wanted, self._ended)
                for wanted in standing.trials
                if wanted.commit in self.findings.kernels
            ]
        return jobs

    def _assess(self, pending: Sequence[Wanted]) -> Standing:
        rules = self.findings.costs(self.rules)
        return assess(self.findings.state, self.question.quantity.measured, rules, self.workers, pending)

    def _build_job(self, commit: str) -> BuildJob[Built | Broken]:
        def build() -> Built | Broken:
            try:
                return self.tester.build(commit)
            except Broken as broken:
                return broken

        return BuildJob(build, lambda result: self._built(self.findings, commit, result))

    def _opened(self) -> Findings:
        """What the ledger has; of an empty one, after both ends are built, which say what is compiled."""
        if not self.ledger.is_planned():
            return self._begun()
        plan = self.ledger.bisection()
        self._check(plan)
        findings = read(self.ledger, graph_of(plan), self.question.quantity.value, self.again)
        self.tester.know(findings.kernels)
        if findings.kernels and plan.provenance:
            self._check_machine(plan.provenance, self.tester.facts())
        return findings

    def _begun(self) -> Findings:
        range_ = self.question.range
        findings = read(self.ledger, CommitGraph(range_.good, range_.bad, ()), self.question.quantity.value)
        self.tester.know(findings.kernels)
        for end in (range_.good, range_.bad):
            if end not in findings.kernels and end not in findings.broken:
                self._built(findings, end, self._build_end(end))
        compiled = self.tester.compiled(range_.bad) if range_.bad in findings.kernels else frozenset()
        candidates = [_candidate(change, change.kind(compiled)) for change in range_.changes]
        plan = BisectionPlan(
            schema=1,
            experiment=self.question.experiment,
            bisect=self.question.planned(candidates),
            rules=SearchRules(**asdict(self.rules)),
            provenance=self.tester.facts() if findings.kernels else None,
        )
        self.ledger.set_plan(plan)
        return replace(findings, graph=graph_of(plan))

    def _build_end(self, end: str) -> Built | Broken:
        """Build an end. What does not fit one is the experiment's mistake, and nothing to be kept."""
        try:
            return self.tester.build(end)
        except Broken as broken:
            if isinstance(broken.__cause__, SpecError):
                raise broken.__cause__ from broken
            return broken

    def _check_machine(self, theirs: GuestFacts, ours: GuestFacts) -> None:
        """Raise where trials of before and from now on would not be comparable."""
        names = ["qemu_family", "initramfs", "fallback"]
        if not self.tester.deterministic:
            names += ["qemu", "host"]
        for name in names:
            if getattr(theirs, name) != getattr(ours, name):
                raise SpecError(
                    f"{self.ledger.directory}: was measured with another {name.replace('_', ' ')}",
                    "give another directory with --results, or --fresh to move it aside",
                )

    def _check(self, plan: BisectionPlan) -> None:
        """Raise unless the ledger's plan is what is asked for; note the rules if they are others."""
        # With other deadlines it is the same experiment.
        ours, theirs = (
            {**dict(asked), "experiment": experiment.model_copy(update={"deadlines": DeadlineSpec()})}
            for asked, experiment in (
                (self.question.planned(plan.bisect.commits), self.question.experiment),
                (plan.bisect, plan.experiment),
            )
        )
        for name, value in ours.items():
            if theirs[name] != value:
                raise SpecError(
                    f"{self.ledger.directory}: holds another bisection: its {name} is not the same",
                    "give another directory with --results, or --fresh to move it aside",
                )
        self.ledger.set_plan(plan.model_copy(update={"rules": SearchRules(**asdict(self.rules))}))

    def _built(self, findings: Findings, commit: str, result: Built | Broken) -> None:
        """Keep what became of a build."""
        short = commit[: bisection.SHORT]
        if isinstance(result, Broken):
            self.note(f"{short} {result.reason}: {result.detail.splitlines()[0]}")
            self._keep(findings, commit, reason=result.reason, detail=result.detail)
            return
        if same := [c for c, kernel in findings.kernels.items() if kernel == result.kernel]:
            self.note(f"{short} is the kernel of {same[0][: bisection.SHORT]}: no trials")
        self._keep(findings, commit, kernel=result.kernel, seconds=result.seconds, remarks=result.remarks)

    def _ended(self, attempt: Attempt) -> None:
        """Take in how a trial ended. Raises GuestLost: the search cannot go on without."""
        record = attempt.record
        short, seconds = record.arm[: bisection.SHORT], sum(record.stages.values())
        if record.outcome == LOST:
            raise GuestLost(f"{short} seed {record.seed}: {record.detail}")
        self.findings.ended(record, lambda: attempt.measurement)
        self.note(f"{short} seed {record.seed}: {self.findings.came_to(record)} in {seconds:.1f} s")
        sample = self.findings.samples[record.arm, record.seed]
        if sample.value is None and self.deterministic and "workload" not in record.stages:
            # Another seed's boot hardly goes further, and costs its deadline. Nobody is innocent for that.
            reason = f"does not boot ({record.outcome})"
            self._keep(self.findings, record.arm, reason=reason, detail=record.detail)

    def _tell_lost(self, record: Record) -> None:
        if record.outcome == LOST:
            short, seconds = record.arm[: bisection.SHORT], sum(record.stages.values())
            self.note(f"{short} seed {record.seed}: {LOST} in {seconds:.1f} s")

    def _keep(
        self,
        findings: Findings,
        commit: str,
        *,
        kernel: str = "",
        seconds: float = 0.0,
        remarks: tuple[str, ...] = (),
        reason: str = "",
        detail: str = "",
    ) -> None:
        """Keep what became of a commit's kernel; of one that cannot be used, `reason` and `detail`."""
        note = BuildNote(
            commit=commit, kernel=kernel, reason=reason, remarks=remarks, seconds=seconds, detail=detail
        )
        self.ledger.note(note)
        findings.noted(note)

    def _say(self, text: str) -> None:
        if text != self.told:
            self.note(text)
        self.told = text


# --- looking at it ---------------------------------------------------------------------------------


def status(directory: Path, confidence: float | None = None) -> tuple[BisectionReport, str]:
    """The report of a bisection and its headline; at another confidence if one is given."""
    with Ledger.open(directory) as ledger:
        plan, bisected = planned(ledger)
        findings = read(ledger, graph_of(plan), bisected.value)
    rules = rules_of(plan)
    if confidence is not None:
        rules = replace(rules, confidence=confidence)
    rules = findings.costs(rules)
    standing = assess(findings.state, bisected.measured, rules)
    headline = bisection.standing_in_words(standing, findings.graph)
    return bisection.document(plan, findings.remarks, findings.state, standing, rules), headline


def write(directory: Path, report: BisectionReport, headline: str, warn: Note) -> None:
    """The report in its other forms, and its picture, into the result directory."""
    reports.put(directory / "report.json", report.text(indent=2) + "\n", warn)
    reports.put(directory / "report.md", bisection.markdown(report, headline), warn)
    svg = reports.put_picture(directory, "posterior", bisection.picture(report), warn)
    reports.put(directory / "report.html", bisection.page(report, headline, svg), warn)


def log(directory: Path) -> Iterator[str]:
    """What happened, in order, and what was made of it at each moment; nothing is built."""
    with Ledger.open(directory) as ledger:
        plan, bisected = planned(ledger)
        rules = rules_of(plan)
        findings = Findings(graph_of(plan), bisected.value)
        columns = {commit.id: n for n, commit in enumerate(findings.graph.commits)}
        before, bad = "", tuple[float, ...]()
        for event in events(ledger):
            take(findings, event, ledger)
            if isinstance(event, Record):
                why = f" (bad: {100 * bad[columns[event.arm]]:.0f} %)" if bad and event.arm in columns else ""
                line = f"{event.arm[: bisection.SHORT]}{why} seed {event.seed}: {findings.came_to(event)}"
            else:
                what = f"built in {event.seconds:.0f} s" if event.kernel else event.reason
                line = f"{event.commit[: bisection.SHORT]} {what}"
            standing = assess(findings.state, bisected.measured, findings.costs(rules))
            now = bisection.standing_in_words(standing, findings.graph)
            yield f"{line}; {now}" if now != before else line
            before, bad = now, standing.bad
