# SPDX-License-Identifier: GPL-2.0-only
"""`testbed bisect`: the search of analysis/bisect.py, with real commits, kernels and guests.

Everything that is found is in the ledger as soon as it is: trials as ever (arm: the commit, seed: the
sample's number), builds as notes. What comes next is worked out from that alone, so that who is killed at
any moment goes on by the same command, and nothing that was finished is done again.
"""

from __future__ import annotations

import functools
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from testbed.analysis.bisect import (
    Commit,
    History,
    Measured,
    Rules,
    Sample,
    Standing,
    State,
    Wanted,
    assess,
)
from testbed.analysis.metrics import METRICS
from testbed.analysis.parse import parse
from testbed.experiment import ArmSpec, Experiment, GitSource, KernelSpec, is_path
from testbed.host.errors import BuildError, GuestLost, HostError, SpecError
from testbed.kernel import build, series, source
from testbed.kernel import commits as history
from testbed.kernel.build import Kernel, Plan
from testbed.ledger.ledger import Ledger
from testbed.ledger.plan import (
    BisectionPlan,
    BisectionQuestion,
    BuildNote,
    Candidate,
    GuestFacts,
    SearchRules,
)
from testbed.ledger.record import LOST, MEASURED, Record
from testbed.report import bisection
from testbed.report.bisection import BisectionReport
from testbed.trials import pool, prepare
from testbed.trials import trial as trials
from testbed.trials.prepare import Guests
from testbed.verbs import reports

Result = TypeVar("Result")
Note = Callable[[str], None]
# Of a record and its log: the value of the sample, None for none.
Measure = Callable[[Record, bytes], float | None]
OUTCOME = "outcome:"
# How a workload can fail, as `outcome:` has it, and what is said of a commit where it does.
FAILURES = {
    "panic": "panics",
    "hang": "hangs",
    "oom": "runs out of memory",
    "flood": "floods the console",
    "failed": "the workload fails",
}


# --- what is measured ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """What is bisected: a metric of the registry, or `outcome:panic`, which is 1 where a trial ends so."""

    name: str
    title: str
    unit: str
    measured: Measured
    value: Measure


def metric(name: str | None, experiment: Experiment) -> Metric:
    """The metric of that name; without one the experiment's first primary. Raises SpecError."""
    if name is None:
        name = next(iter(experiment.primary), None)
        if name is None:
            raise SpecError("--metric: the experiment has no primary metric", "`testbed metrics` lists all")
    if name.startswith(OUTCOME):
        ending = name.removeprefix(OUTCOME)
        if ending not in FAILURES:
            raise SpecError(f"--metric: {name}: there are {', '.join(OUTCOME + known for known in FAILURES)}")

        def ended(record: Record, _log: bytes) -> float | None:
            # What ends in yet another way says nothing.
            return {ending: 1.0, MEASURED: 0.0}.get(record.outcome)

        return Metric(name, f"trials that end with {ending}", "share", Measured("outcome", "lower"), ended)
    known = next((metric for metric in METRICS if metric.name == name), None)
    if known is None:
        raise SpecError(f"--metric: there is no metric `{name}`; `testbed metrics` lists them")
    margin = experiment.primary[name].margin if name in experiment.primary else 0.0

    def value(record: Record, log: bytes) -> float | None:
        if record.outcome != MEASURED and not known.of_failures:
            return None
        found = known.value(parse(log))
        return float(found > 0) if known.kind == "outcome" and found is not None else found

    measured = Measured(known.kind, known.better, margin)
    return Metric(name, known.title_of(experiment.workload.name), known.unit, measured, value)


# --- what is known ---------------------------------------------------------------------------------


@dataclass
class Book:
    """What a ledger has of a bisection, in the order in which it came about."""

    history: History
    value: Measure
    kernels: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    build_seconds: list[float] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
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

    def ended(self, record: Record, log: bytes) -> None:
        """Take in an attempt at a trial."""
        self.records.append(record)
        if record.outcome == LOST or (record.arm, record.seed) in self.samples:
            return
        value = self.value(record, log)
        said = "measured" if value is not None else FAILURES.get(record.outcome, "gives no value")
        self.samples[record.arm, record.seed] = Sample(record.arm, record.seed, value, said)
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
        return State(self.history, tuple(self.samples.values()), dict(self.kernels), dict(self.broken))

    def costs(self, rules: Rules) -> Rules:
        """The rules with what a build costs here, of which only the first compiles everything."""
        builds = self.build_seconds[1:] or self.build_seconds
        if not builds or not self.trial_seconds:
            return rules
        a_trial = max(statistics.median(self.trial_seconds), 0.1)
        return replace(rules, rho=min(statistics.median(builds) / a_trial, 1000.0))

    def attempts(self, wanted: Wanted) -> int:
        return sum((r.arm, r.seed) == (wanted.commit, wanted.seed) for r in self.records)


def history_of(plan: BisectionPlan) -> History:
    """The commits of a plan."""
    commits = (Commit(**dict(candidate)) for candidate in plan.bisect.commits)
    return History(plan.bisect.good, plan.bisect.bad, tuple(commits))


def events(ledger: Ledger) -> Iterator[BuildNote | Record]:
    """Notes and records, as they came."""
    records = iter(ledger.records())
    kept = 0
    for before, note in ledger.notes():
        while kept < before:
            yield next(records)
            kept += 1
        yield note
    yield from records


def metric_of(plan: BisectionPlan) -> Metric:
    """What is bisected by a plan."""
    return metric(plan.bisect.metric, plan.experiment)


def rules_of(plan: BisectionPlan) -> Rules:
    """The rules of a plan."""
    return Rules(**dict(plan.rules))


def read(ledger: Ledger, history: History, value: Measure) -> Book:
    """Everything that a ledger has."""
    book = Book(history, value)
    for event in events(ledger):
        take(book, event, ledger)
    return book


def take(book: Book, event: BuildNote | Record, ledger: Ledger) -> None:
    """Take in what the ledger has."""
    if isinstance(event, Record):
        book.ended(event, b"" if event.outcome == LOST else ledger.log(event))
    else:
        book.noted(event)


# --- builds and trials -----------------------------------------------------------------------------


class Broken(Exception):
    """There is no kernel of a commit, and why: in a few words, and at length."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Built:
    """A kernel: the hash of what it is, seconds that it took, and what it had to do without."""

    kernel: str
    seconds: float
    remarks: tuple[str, ...] = ()


class Bench(Protocol):
    """What kernels are built and measured on. Called from several threads."""

    def know(self, kernels: Mapping[str, str]) -> None:
        """Take up a bisection in which these kernels were built: commit -> what Built has of it."""

    def build(self, commit: str) -> Built:
        """Build a commit's kernel, or find it built. Raises Broken."""

    def run(self, wanted: Wanted, attempt: int, cancel: threading.Event) -> tuple[Record, bytes]:
        """Run a trial of a commit that is built."""

    def compiled(self, commit: str) -> frozenset[str]:
        """The files that a kernel is made of; empty if that is not known."""

    def facts(self) -> GuestFacts:
        """Where it all takes place, once something is built."""

    @property
    def workers(self) -> int:
        """Trials that may run side by side."""

    @property
    def deterministic(self) -> bool:
        """Whether what else the machine does changes no number, and is no reason why a boot fails."""


@dataclass
class Machine:
    """A Bench of real kernels and guests."""

    experiment: Experiment
    repository: Path
    cache: Path
    jobs: int | None
    note: Note

    def __post_init__(self) -> None:
        self.arm = next(iter(self.experiment.arms))
        self._lock = threading.Lock()
        self._kernels: dict[str, Kernel] = {}
        self._expected: dict[str, str] = {}
        self._guests: Guests | None = None

    def know(self, kernels: Mapping[str, str]) -> None:
        """Take up a bisection in which these kernels were built: commit -> what Built has of it."""
        self._expected |= kernels

    def plan(self, commit: str) -> tuple[Plan, tuple[str, ...]]:
        """What a commit's kernel is made of, and what the experiment asks for that it has to do without.

        A patch that is given as a path is left out where it does not apply, as the fix of a build that only
        some commits need; a series of patches/ has to apply.
        """
        spec = KernelSpec(
            git=GitSource(repository=str(self.repository), revision=commit),
            config=self.experiment.kernel.config,
        )
        tree = source.resolve(spec, self.cache)
        known = history.symbols(self.repository, commit)
        arm = self.experiment.arms[self.arm]
        fitting: list[str] = []
        for name in arm.patches:
            if not is_path(name) or _applies([*fitting, name], tree):
                fitting.append(name)
        asked = build.plan(tree, spec.config, ArmSpec(), self.cache)
        made = build.plan(tree, spec.config, ArmSpec(patches=tuple(fitting)), self.cache, known)
        remarks = [f"without {Path(name).name}" for name in arm.patches if name not in fitting]
        remarks += [f"without {name}" for name in asked.config if name not in made.config]
        return made, tuple(remarks)

    def build(self, commit: str) -> Built:
        """Build a commit's kernel, or find it built. Raises Broken."""
        try:
            planned, remarks = self.plan(commit)
        except SpecError as bad:
            raise Broken("its patches or options do not fit", str(bad)) from bad
        try:
            kernel = build.build(planned, progress=self.note)
        except SpecError as bad:
            raise Broken("its options do not fit", str(bad)) from bad
        except BuildError as failed:
            if "No space left" in str(failed):
                raise
            raise Broken("does not build", str(failed)) from failed
        if self._expected.setdefault(commit, kernel.vmlinux_sha256) != kernel.vmlinux_sha256:
            raise HostError(
                f"the kernel of {commit} is not the one that was measured before",
                "another compiler? Start over with --fresh",
            )
        with self._lock:
            self._kernels[commit] = kernel
        return Built(kernel.vmlinux_sha256, kernel.seconds, remarks)

    def compiled(self, commit: str) -> frozenset[str]:
        """The files that a kernel is made of; empty if that is not known."""
        return build.compiled(self.plan(commit)[0])

    def kernel(self, commit: str) -> Kernel:
        """A commit's kernel, which is built by now."""
        if commit not in self._kernels:
            self.build(commit)
        return self._kernels[commit]

    def guests(self) -> Guests:
        """What all guests have in common; on a machine where the first kernel runs."""
        first = self.kernel(next(iter(self._expected)))
        with self._lock:
            if self._guests is None:
                made = prepare.initramfs(self.experiment, self.cache)
                here = prepare.machine(self.experiment, first, made, self.cache, self.note)
                self._guests = Guests(made, here, self.cache)
            return self._guests

    def run(self, wanted: Wanted, attempt: int, cancel: threading.Event) -> tuple[Record, bytes]:
        """Run a trial of a commit that is built."""
        kernel = self.kernel(wanted.commit)
        made = prepare.trial(
            self.experiment,
            self.arm,
            wanted.seed,
            self.guests(),
            vmlinux=kernel.vmlinux,
            sha256=kernel.vmlinux_sha256,
        )
        return trials.run(replace(made, arm=wanted.commit), attempt, cancel)

    def facts(self) -> GuestFacts:
        """Where it all takes place, once something is built."""
        guests = self.guests()
        return prepare.guest_facts(self.experiment, guests.machine, guests.initramfs)

    @property
    def workers(self) -> int:
        """Trials that may run side by side."""
        return self.jobs or pool.jobs_for(self.guests().machine.shape)

    @property
    def deterministic(self) -> bool:
        """Whether what else the machine does changes no number, and is no reason why a boot fails."""
        return self.guests().machine.shape.accel == "icount"


def _applies(patches: Sequence[str], tree: source.Source) -> bool:
    loaded = series.load(patches, tree.version)
    try:
        series.apply(loaded, tree.read)
    except SpecError:
        return False
    return True


# --- the loop --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What is to be bisected. Hashes and names; what a person typed is in the repository by now."""

    repository: Path
    range: history.Range
    paths: tuple[str, ...]
    experiment: Experiment
    metric: Metric

    def question(self, commits: Iterable[Candidate]) -> BisectionQuestion:
        """What has to be the same, but for the commits, for a bisection to go on."""
        return BisectionQuestion(
            repository=str(self.repository),
            good=self.range.good,
            bad=self.range.bad,
            paths=self.paths,
            metric=self.metric.name,
            kind=self.metric.measured.kind,
            title=self.metric.title,
            unit=self.metric.unit,
            commits=tuple(commits),
        )


def asked(
    repository: Path, ends: tuple[str, str], paths: Sequence[str], experiment: Experiment, name: str | None
) -> Asked:
    """What a person asks for, looked up; `ends` are good and bad. Raises SpecError for what is not there."""
    found = history.between(repository, *ends, paths)
    return Asked(repository.resolve(), found, tuple(paths), experiment.only(), metric(name, experiment))


def rules(confidence: float | None) -> Rules:
    """The rules, at a confidence if one is given."""
    return Rules() if confidence is None else Rules(confidence=confidence)


def bisect(asked: Asked, rules: Rules, bench: Bench, ledger: Ledger, note: Note) -> Standing:
    """Search until there is an answer. Raises SpecError if the ledger is of another bisection; GuestLost for
    a trial that is lost again and again, HostError, StoreError, Interrupted."""
    return _Loop(asked, rules, bench, ledger, note).run()


class _Loop:
    def __init__(self, asked: Asked, rules: Rules, bench: Bench, ledger: Ledger, note: Note) -> None:
        self.asked, self.rules, self.bench, self.ledger, self.note = asked, rules, bench, ledger, note
        self.cancel = threading.Event()
        self.building: dict[futures.Future[Built], str] = {}
        self.running: dict[futures.Future[tuple[Record, bytes]], Wanted] = {}
        self.lost: Counter[Wanted] = Counter()
        self.told = ""
        self.book = self._opened()
        # Without a kernel there is no machine, and nothing to be run on it.
        self.workers = bench.workers if self.book.kernels else 1
        self.deterministic = bool(self.book.kernels) and bench.deterministic

    def run(self) -> Standing:
        try:
            while True:
                standing = assess(
                    self.book.state,
                    self.asked.metric.measured,
                    self.book.costs(self.rules),
                    self.workers,
                    self.running.values(),
                )
                self._tell(bisection.standing_in_words(standing, self.book.history))
                if standing.answer:
                    return standing
                self._start(standing)
                self._wait()
        finally:
            # Of trials that nobody needs any more nothing is kept; a build is in the cache or goes with us.
            self.cancel.set()
            futures.wait(self.running)

    def _opened(self) -> Book:
        """What the ledger has; of an empty one, after both ends are built, which say what is compiled."""
        if self.ledger.is_planned():
            plan = self.ledger.bisection()
            self._check(plan)
            book = read(self.ledger, history_of(plan), self.asked.metric.value)
            self.bench.know(book.kernels)
            if book.kernels and plan.provenance:
                self._check_machine(plan.provenance, self.bench.facts())
            return book
        found = self.asked.range
        book = read(self.ledger, History(found.good, found.bad, ()), self.asked.metric.value)
        self.bench.know(book.kernels)
        for end in (found.good, found.bad):
            if end not in book.kernels and end not in book.broken:
                self._note_build(book, end, functools.partial(self._build_end, end))
        compiled = self.bench.compiled(found.bad) if found.bad in book.kernels else frozenset()
        kinds = {change.id: change.kind(compiled) for change in found.changes}
        candidates = (
            Candidate(
                id=change.id,
                links=tuple(change.links),
                parents=tuple(change.parents),
                weight=history.WEIGHTS[kinds[change.id]],
                kind=kinds[change.id],
                subject=change.subject,
            )
            for change in found.changes
        )
        plan = BisectionPlan(
            schema=1,
            experiment=self.asked.experiment,
            bisect=self.asked.question(candidates),
            rules=SearchRules(**asdict(self.rules)),
            provenance=self.bench.facts() if book.kernels else None,
        )
        self.ledger.set_plan(plan)
        return replace(book, history=history_of(plan))

    def _build_end(self, end: str) -> Built:
        """Build an end. What does not fit one is the experiment's mistake, and nothing to be kept."""
        try:
            return self.bench.build(end)
        except Broken as broken:
            if isinstance(broken.__cause__, SpecError):
                raise broken.__cause__ from broken
            raise

    def _check_machine(self, theirs: GuestFacts, ours: GuestFacts) -> None:
        """Raise where trials of before and from now on would not be comparable."""
        names = ["qemu_family", "initramfs", "fallback"]
        if not self.bench.deterministic:
            names += ["qemu", "host"]
        for name in names:
            if getattr(theirs, name) != getattr(ours, name):
                raise SpecError(
                    f"{self.ledger.directory}: was measured with another {name.replace('_', ' ')}",
                    "give another directory with --results, or --fresh to move it aside",
                )

    def _check(self, plan: BisectionPlan) -> None:
        """Raise unless the ledger's plan is what is asked for; note the rules if they are others."""
        ours = {**dict(self.asked.question(plan.bisect.commits)), "experiment": self.asked.experiment}
        theirs = {**dict(plan.bisect), "experiment": plan.experiment}
        for name, value in ours.items():
            if theirs[name] != value:
                raise SpecError(
                    f"{self.ledger.directory}: holds another bisection: its {name} is not the same",
                    "give another directory with --results, or --fresh to move it aside",
                )
        self.ledger.set_plan(plan.model_copy(update={"rules": SearchRules(**asdict(self.rules))}))

    def _start(self, standing: Standing) -> None:
        """Start what can be started now."""
        needed = [wanted.commit for wanted in standing.trials]
        # In real time a compiler is noise: builds and trials take turns, and none is made ahead.
        builds = [commit for commit in standing.builds if self.deterministic or commit in needed]
        if builds and not self.building and (self.deterministic or not self.running):
            self.building[_aside(functools.partial(self.bench.build, builds[0]))] = builds[0]
        if self.building and not self.deterministic:
            return
        for wanted in standing.trials:
            if wanted.commit in self.book.kernels:
                self._try(wanted)

    def _try(self, wanted: Wanted) -> None:
        attempt = self.book.attempts(wanted) + 1
        self.running[_aside(functools.partial(self.bench.run, wanted, attempt, self.cancel))] = wanted

    def _wait(self) -> None:
        """Wait for something to end, and keep what came of it."""
        started: list[futures.Future[Any]] = [*self.building, *self.running]
        ended, _ = futures.wait(started, return_when=futures.FIRST_COMPLETED)
        for future in ended:
            if future in self.building:
                commit = self.building.pop(future)
                self._note_build(self.book, commit, future.result)
            else:
                self._note_trial(self.running.pop(future), *future.result())

    def _note_build(self, book: Book, commit: str, result: Callable[[], Built]) -> None:
        short = commit[: bisection.SHORT]
        try:
            built = result()
        except Broken as broken:
            self.note(f"{short} {broken.reason}: {broken.detail.splitlines()[0]}")
            self._keep(book, commit, reason=broken.reason, detail=broken.detail)
            return
        if same := [c for c, kernel in book.kernels.items() if kernel == built.kernel]:
            self.note(f"{short} is the kernel of {same[0][: bisection.SHORT]}: no trials")
        self._keep(book, commit, kernel=built.kernel, seconds=built.seconds, remarks=built.remarks)

    def _note_trial(self, wanted: Wanted, record: Record, log: bytes) -> None:
        self.ledger.add(record, log)
        self.book.ended(record, log)
        short, seconds = record.arm[: bisection.SHORT], sum(record.stages.values())
        if record.outcome == LOST:
            self.lost[wanted] += 1
            if self.lost[wanted] >= pool.ATTEMPTS:
                raise GuestLost(f"{short} seed {wanted.seed}: {record.detail}")
        self.note(f"{short} seed {record.seed}: {self.book.came_to(record)} in {seconds:.1f} s")
        sample = self.book.samples.get((record.arm, record.seed))
        silent = sample is None or sample.value is None
        if silent and self.deterministic and record.outcome != LOST and "workload" not in record.stages:
            # Another seed's boot hardly goes further, and costs its deadline. Nobody is innocent for that.
            reason = f"does not boot ({record.outcome})"
            self._keep(self.book, record.arm, reason=reason, detail=record.detail)

    def _keep(
        self,
        book: Book,
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
        book.noted(note)

    def _tell(self, said: str) -> None:
        if said != self.told:
            self.note(said)
        self.told = said


def _aside(work: Callable[[], Result]) -> futures.Future[Result]:
    """Do something in a thread that no one waits for when the process ends; its children end with it."""
    future: futures.Future[Result] = futures.Future()

    def do() -> None:
        try:
            result = work()
        except BaseException as failed:
            future.set_exception(failed)
        else:
            future.set_result(result)

    threading.Thread(target=do, daemon=True).start()
    return future


# --- looking at it ---------------------------------------------------------------------------------


def status(directory: Path, confidence: float | None = None) -> tuple[BisectionReport, str]:
    """The report of a bisection and its headline; at another confidence if one is given."""
    with Ledger.open(directory) as ledger:
        plan = ledger.bisection()
        asked = metric_of(plan)
        book = read(ledger, history_of(plan), asked.value)
    rules = rules_of(plan)
    if confidence is not None:
        rules = replace(rules, confidence=confidence)
    rules = book.costs(rules)
    standing = assess(book.state, asked.measured, rules)
    said = bisection.standing_in_words(standing, book.history)
    return bisection.document(plan, book.remarks, book.state, standing, rules), said


def write(directory: Path, report: BisectionReport, said: str, warn: Note) -> None:
    """The report in its other forms, and its picture, into the result directory."""
    reports.put(directory / "report.json", report.text(indent=2) + "\n", warn)
    reports.put(directory / "report.md", bisection.markdown(report, said), warn)
    svg = reports.put_picture(directory, "posterior", bisection.picture(report), warn)
    reports.put(directory / "report.html", bisection.page(report, said, svg), warn)


def log(directory: Path) -> Iterator[str]:
    """What happened, in order, and what was made of it at each moment; nothing is built."""
    with Ledger.open(directory) as ledger:
        plan = ledger.bisection()
        asked = metric_of(plan)
        rules = rules_of(plan)
        book = Book(history_of(plan), asked.value)
        columns = {commit.id: n for n, commit in enumerate(book.history.commits)}
        before, bad = "", tuple[float, ...]()
        for event in events(ledger):
            take(book, event, ledger)
            if isinstance(event, Record):
                why = f" (bad: {100 * bad[columns[event.arm]]:.0f} %)" if bad and event.arm in columns else ""
                line = f"{event.arm[: bisection.SHORT]}{why} seed {event.seed}: {book.came_to(event)}"
            else:
                what = f"built in {event.seconds:.0f} s" if event.kernel else event.reason
                line = f"{event.commit[: bisection.SHORT]} {what}"
            standing = assess(book.state, asked.measured, book.costs(rules))
            now = bisection.standing_in_words(standing, book.history)
            yield f"{line}; {now}" if now != before else line
            before, bad = now, standing.bad
