# SPDX-License-Identifier: GPL-2.0-only
"""The loop of a bisection over a bench that stands in for compilers and guests, killed wherever it can be."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from testbed import cli
from testbed.analysis.bisect.search import PHASE, Answer, Rules, Wanted
from testbed.analysis.parse import parse
from testbed.experiment import ArmSpec, expand
from testbed.host.errors import BuildError, GuestLost, HostError, SpecError, StoreError
from testbed.kernel import build, commits
from testbed.ledger.document import parsed
from testbed.ledger.ledger import Ledger
from testbed.ledger.plan import Accelerator, GuestFacts
from testbed.ledger.record import LOST, MEASURED
from testbed.report.bisection import BisectionReport
from testbed.report.schema import schema
from testbed.trials import pool
from testbed.trials.commits import Broken, Built, CommitTester
from testbed.trials.pool import TrialJob
from testbed.trials.trial import Attempt
from testbed.verbs import bisect
from testbed.verbs.bisect import Question
from testbed.verbs.quantity import quantity
from tests.unit.recorded import EXPERIMENT, REPOSITORY, UNPATCHED, guest_facts, plan, record, span, with_frame

RULES = Rules()
MAKEFILE = "VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 1\n"


def git(top: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, "-C", top, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(top: Path, subject: str, path: str) -> str:
    file = top / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text((file.read_text() if file.exists() else "") + f"/* {subject} */\n")
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "-m", subject)
    return git(top, "rev-parse", "HEAD")


def started(top: Path) -> str:
    """A repository with a single commit; its hash."""
    top.mkdir(exist_ok=True)
    git(top, "init", "--quiet", "-b", "main")
    (top / "Makefile").write_text(MAKEFILE)
    return commit(top, "start", "mm/vmscan.c")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """good, 1 to 12, of which every third changes mm/."""
    top = tmp_path_factory.mktemp("repository")
    started(top)
    git(top, "tag", "good")
    for n in range(1, 13):
        commit(top, f"change {n}", "mm/vmscan.c" if n % 3 == 0 else f"lib/{n % 2}.c")
    return top


def subjects(repository: Path) -> dict[str, str]:
    lines = git(repository, "log", "--format=%H %s").splitlines()
    return {commit: subject for commit, _, subject in (line.partition(" ") for line in lines)}


def log_of(scanned: int) -> bytes:
    """A console log of a guest that has scanned so many pages."""
    begin, end = span(UNPATCHED, "vmstat.after")
    body = UNPATCHED[begin:end].split(b"\n", 2)[2].rsplit(b"\n#tb:close", 1)[0]
    before = int(re.search(rb"pgscan_direct (\d+)", UNPATCHED)[1])  # type: ignore[index]
    changed = re.sub(rb"pgscan_direct \d+", b"pgscan_direct %d" % (before + scanned), body)
    return with_frame(UNPATCHED, "vmstat.after", changed)


class Killed(BaseException):
    """As kill -9 is: nobody has a chance to do anything."""


@dataclass
class Stand:
    """A Tester. `bad` says which commits are; what a trial gives depends on commit and seed alone."""

    names: dict[str, str]
    bad: Callable[[str], bool]
    broken: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, str] = field(default_factory=dict)
    outcome: Callable[[str, int], str] = lambda _name, _seed: MEASURED
    stages: dict[str, float] = field(default_factory=lambda: {"boot": 1.0, "workload": 9.0})
    mute: bool = False
    deterministic: bool = True
    workers: int = 1
    built: Counter[str] = field(default_factory=Counter)
    ran: Counter[Wanted] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    together: set[str] = field(default_factory=set)
    interrupt: Callable[[str], None] = lambda _: None

    def know(self, kernels: Mapping[str, str]) -> None:
        pass

    def build(self, commit: str) -> Built:
        self.interrupt("build")
        self.busy["build"] += 1
        self.together.add("+".join(sorted(+self.busy)))
        self.built[commit] += 1
        name = self.names[commit]
        self.busy["build"] -= 1
        if name in self.broken:
            raise Broken(self.broken[name], "error: expected `;'")
        return Built(self.kernels.get(name, name), 50.0)

    def job(self, wanted: Wanted, then: Callable[[Attempt], None]) -> TrialJob:
        def run(attempt: int, _cancel: threading.Event) -> Attempt:
            return self.run(wanted, attempt)

        return TrialJob(f"{wanted.commit[:8]}-{wanted.seed}", wanted.commit, wanted.seed, run, then)

    def run(self, wanted: Wanted, attempt: int) -> Attempt:
        self.interrupt("run")
        self.busy["run"] += 1
        self.together.add("+".join(sorted(+self.busy)))
        self.ran[wanted] += 1
        name = self.names[wanted.commit]
        outcome = self.outcome(name, wanted.seed)
        rng = np.random.default_rng([wanted.seed, *map(ord, name)])
        value = int(10_000 * np.exp(0.1 * (4 * self.bad(name) + rng.normal())))
        made = record(wanted.commit, wanted.seed, outcome, "as it was told")
        made = replace(made, trial=f"{wanted.commit[:8]}-{wanted.seed}", attempt=attempt, stages=self.stages)
        self.busy["run"] -= 1
        log = log_of(value) if outcome == MEASURED and not self.mute else b""
        return Attempt(made, log, parse(log))

    def compiled(self, _commit: str) -> frozenset[str]:
        return frozenset({"mm/vmscan.c", "lib/0.c"})

    def facts(self) -> GuestFacts:
        return guest_facts(["unpatched"], accelerator=Accelerator(name="icount", reason="the default"))


@pytest.fixture
def stand(repository: Path) -> Stand:
    """Bad from change 8 on."""
    names = subjects(repository)
    return Stand(names, lambda name: name != "start" and int(name.split()[1]) >= 8)


def question_of(repository: Path, name: str = "pgscan_direct", paths: tuple[str, ...] = ()) -> Question:
    experiment = expand(EXPERIMENT, {}, [])[0].experiment
    return bisect.question(repository, ("good", "main"), paths, experiment, name)


def search(
    question: Question, stand: Stand, directory: Path, rules: Rules = RULES, notes: list[str] | None = None
) -> Answer:
    with Ledger.create(directory) as ledger:
        standing = bisect.bisect(question, rules, stand, ledger, (notes if notes is not None else []).append)
    assert standing.answer
    return standing.answer


def named(answer: Answer, stand: Stand) -> list[str]:
    return [stand.names[commit] for commit in answer.commits]


def kept(directory: Path) -> list[tuple[str, int, str]]:
    with Ledger.open(directory) as ledger:
        return [(r.arm, r.seed, r.outcome) for r in ledger.records()]


def test_the_culprit_is_found_and_confirmed(repository: Path, stand: Stand, tmp_path: Path) -> None:
    notes: list[str] = []
    answer = search(question_of(repository), stand, tmp_path / "r", notes=notes)
    assert named(answer, stand) == ["change 8"] and answer.confirmed
    assert max(stand.built.values()) == 1 and max(stand.ran.values()) == 1
    assert "confirmed on fresh seeds" in notes[-1] and any("seed 1:" in note for note in notes)
    assert not any((repository / name).exists() for name in (".git/worktrees", ".git/index.lock"))
    assert git(repository, "status", "--porcelain") == ""


def test_weights_are_of_what_is_compiled(repository: Path, stand: Stand, tmp_path: Path) -> None:
    search(question_of(repository), stand, tmp_path / "r")
    made, _ = bisect.status(tmp_path / "r")
    kinds = {commit.subject: commit.kind for commit in made.commits}
    assert (kinds["change 3"], kinds["change 4"], kinds["change 5"]) == ("mm", "compiled", "not compiled")


@pytest.mark.parametrize("place", ["build", "run", "note", "noted", "add", "added", "plan"])
def test_killed_at_any_moment_it_goes_on(
    repository: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at every third of such moments, again and again: it comes to what it had come to."""
    question, stand = question_of(repository, "outcome:panic"), mute_stand(repository)
    undisturbed = search(question, mute_stand(repository), tmp_path / "whole")
    passed = Counter[str]()

    def moment(name: str) -> None:
        passed[name] += 1
        if name == place and passed[name] % 3 == 0:
            raise Killed

    def around(before: str, after: str, real: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*words: Any) -> None:
            moment(before)
            real(*words)
            moment(after)

        return wrapped

    monkeypatch.setattr(Ledger, "note", around("note", "noted", Ledger.note))
    monkeypatch.setattr(Ledger, "add", around("add", "added", Ledger.add))
    monkeypatch.setattr(Ledger, "set_plan", around("plan", "planned", Ledger.set_plan))
    stand.interrupt = moment
    lives = 0
    while True:
        lives += 1
        try:
            answer = search(question, stand, tmp_path / "r")
            break
        except Killed:
            assert lives < 200
    assert lives >= (1 if place == "plan" else 3)
    assert answer == undisturbed
    assert kept(tmp_path / "r") == kept(tmp_path / "whole")
    # At most what was under way is done again.
    assert max(stand.ran.values()) <= 2 and sum(stand.ran.values()) <= len(kept(tmp_path / "r")) + lives
    assert sum(stand.built.values()) <= len(stand.built) + lives


def mute_stand(repository: Path) -> Stand:
    """One in which what is bad panics. Nothing is built ahead: which builds are ready would decide what is
    chosen."""
    names = subjects(repository)
    made = Stand(names, lambda name: name != "start" and int(name.split()[1]) >= 8)
    made.mute, made.deterministic = True, False
    made.outcome = lambda name, _: "panic" if made.bad(name) else MEASURED
    return made


def live(repository: Path, directory: Path) -> None:
    """A process of its own, that says each time when it is about to run a trial, and waits to be told to."""
    stand = mute_stand(repository)

    def ask(kind: str) -> None:
        print(kind, flush=True)
        sys.stdin.readline()

    stand.interrupt = ask
    print(search(question_of(repository, "outcome:panic"), stand, directory).commits)


def test_kill_9_and_the_same_command(repository: Path, tmp_path: Path) -> None:
    question, whole = question_of(repository, "outcome:panic"), mute_stand(repository)
    undisturbed = search(question, whole, tmp_path / "whole")
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_bisect_loop import live;"
        "live(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    words = [sys.executable, "-c", program, str(repository), str(tmp_path / "r")]
    done = []
    for steps in (6, 12, 1000):
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        ) as child:
            assert child.stdin and child.stdout
            said = ""
            for _ in range(steps):
                if said:
                    child.stdin.write("\n")
                    child.stdin.flush()
                said = child.stdout.readline().strip()
                if said not in ("build", "run"):
                    break
            child.kill()
            done.append(said)
    assert done[:2] == ["run", "run"] and done[2] == str(undisturbed.commits)
    assert kept(tmp_path / "r") == kept(tmp_path / "whole")


def test_an_answer_is_given_again_without_doing_anything(
    repository: Path, stand: Stand, tmp_path: Path
) -> None:
    first = search(question_of(repository), stand, tmp_path / "r")
    before = stand.built.total(), stand.ran.total()
    assert search(question_of(repository), stand, tmp_path / "r") == first
    assert (stand.built.total(), stand.ran.total()) == before


def test_a_trial_without_its_log_is_run_again(repository: Path, stand: Stand, tmp_path: Path) -> None:
    first = search(question_of(repository), stand, tmp_path / "r")
    logs = sorted((tmp_path / "r" / "logs").glob("*.log.gz"))
    logs[0].unlink()
    logs[-1].write_bytes(b"damaged")
    with pytest.raises(StoreError, match=r"cannot be read: .*\n.*bisect --repo`, given once more, runs that"):
        bisect.status(tmp_path / "r")
    before = stand.ran.total()
    assert search(question_of(repository), stand, tmp_path / "r") == first
    assert stand.ran.total() == before + 2
    report, _ = bisect.status(tmp_path / "r")
    assert report.answer and report.answer.confirmed
    assert list(bisect.log(tmp_path / "r"))


@pytest.mark.parametrize("workers", [2, 5])
def test_side_by_side(repository: Path, stand: Stand, tmp_path: Path, workers: int) -> None:
    stand.workers = workers
    answer = search(question_of(repository), stand, tmp_path / "r")
    assert named(answer, stand) == ["change 8"] and answer.confirmed
    assert max(stand.built.values()) == 1 and max(stand.ran.values()) == 1


def test_in_real_time_nothing_is_built_while_something_is_measured(
    repository: Path, stand: Stand, tmp_path: Path
) -> None:
    stand.deterministic, stand.workers = False, 3
    ahead = replace(stand, deterministic=True, built=Counter(), ran=Counter(), together=set())
    assert named(search(question_of(repository), stand, tmp_path / "r"), stand) == ["change 8"]
    assert "build+run" not in stand.together
    search(question_of(repository), ahead, tmp_path / "ahead")
    assert ahead.built.total() >= stand.built.total()


def test_what_does_not_build_is_told_and_not_good_or_bad(
    repository: Path, stand: Stand, tmp_path: Path
) -> None:
    stand.broken = {"change 7": "does not build", "change 8": "does not build"}
    answer = search(question_of(repository), stand, tmp_path / "r")
    assert named(answer, stand) == ["change 7", "change 8", "change 9"] and answer.confirmed
    made, said = bisect.status(tmp_path / "r")
    untestable = {c.subject: c.untestable for c in made.commits if c.untestable}
    assert untestable and set(untestable.values()) == {"does not build"}
    assert "which no commit that can be tested tells apart" in said


def test_what_does_not_boot_is_tried_once(repository: Path, stand: Stand, tmp_path: Path) -> None:
    stand.outcome = lambda name, _: "hang" if name == "change 6" else MEASURED
    stages = stand.stages
    run = stand.run

    def without_a_boot(wanted: Wanted, attempt: int) -> Attempt:
        ended = run(wanted, attempt)
        if ended.record.outcome != "hang":
            return ended
        return Attempt(replace(ended.record, stages={"snapshot": 120.0}), b"", parse(b""))

    stand.run = without_a_boot  # type: ignore[method-assign]
    answer = search(question_of(repository), stand, tmp_path / "r")
    assert named(answer, stand) == ["change 8"] and stages == stand.stages
    made, _ = bisect.status(tmp_path / "r")
    six = next(c for c in made.commits if c.subject == "change 6")
    assert six.untestable in (None, "does not boot (hang)") and sum(six.outcomes.values()) <= 1


def test_panics_are_counted_where_they_are_asked_for(repository: Path, stand: Stand, tmp_path: Path) -> None:
    bad = stand.bad
    stand.outcome = lambda name, seed: "panic" if bad(name) and seed % 3 else MEASURED
    question = question_of(repository, "outcome:panic")
    answer = search(question, stand, tmp_path / "r")
    assert named(answer, stand) == ["change 8"] and answer.confirmed
    stand.ran.clear()
    stand.built.clear()
    other = search(question_of(repository, "outcome:oom"), stand, tmp_path / "oom")
    assert other.reason == "the bad end cannot be tested: panics"


def test_a_bisection_of_what_happens_always_or_never_can_be_read(repository: Path, tmp_path: Path) -> None:
    search(question_of(repository, "outcome:panic"), mute_stand(repository), tmp_path / "r")
    made, headline = bisect.status(tmp_path / "r")
    assert made.answer and made.answer.confirmed and made.effect is None
    assert json.loads(made.text())["effect"] is None
    bisect.write(tmp_path / "r", made, headline, print)
    said = (tmp_path / "r" / "report.md").read_text()
    assert "all trials of good came to the same, and all of bad to something else" in said


def test_equal_kernels_take_no_trials(repository: Path, stand: Stand, tmp_path: Path) -> None:
    stand.kernels = {f"change {n}": "seven" for n in (4, 5, 6, 7)}
    notes: list[str] = []
    answer = search(question_of(repository), stand, tmp_path / "r", notes=notes)
    assert named(answer, stand) == ["change 8"]
    measured = {stand.names[wanted.commit] for wanted in stand.ran}
    assert len(measured & stand.kernels.keys()) == 1
    built = {stand.names[commit] for commit in stand.built}
    assert (len(built & stand.kernels.keys()) > 1) == any("no trials" in note for note in notes)


def test_path_limits(repository: Path, stand: Stand, tmp_path: Path) -> None:
    stand.bad = lambda name: name != "start" and int(name.split()[1]) >= 9
    answer = search(question_of(repository, paths=("mm",)), stand, tmp_path / "r")
    assert named(answer, stand) == ["change 9"] and answer.confirmed
    made, _ = bisect.status(tmp_path / "r")
    assert [commit.subject for commit in made.commits] == [f"change {n}" for n in (3, 6, 9, 12)]


def test_what_is_lost_is_tried_again_and_then_given_up(
    repository: Path, stand: Stand, tmp_path: Path
) -> None:
    lost = Counter[tuple[str, int]]()

    def outcome(name: str, seed: int) -> str:
        lost[name, seed] += 1
        return LOST if seed == 2 and lost[name, seed] < pool.ATTEMPTS else MEASURED

    stand.outcome = outcome
    assert named(search(question_of(repository), stand, tmp_path / "r"), stand) == ["change 8"]
    stand.outcome = lambda _name, seed: LOST if seed == 2 else MEASURED
    with pytest.raises(GuestLost, match="seed 2"):
        search(question_of(repository), stand, tmp_path / "lost")


def test_another_question_is_not_mixed_in(repository: Path, stand: Stand, tmp_path: Path) -> None:
    search(question_of(repository), stand, tmp_path / "r")
    with pytest.raises(SpecError, match="holds another bisection: its metric is not the same"):
        search(question_of(repository, "pgsteal_direct"), stand, tmp_path / "r")
    with pytest.raises(SpecError, match="its paths is not the same"):
        search(question_of(repository, paths=("mm",)), stand, tmp_path / "r")
    facts = stand.facts().model_copy(update={"qemu_family": "8.2"})
    stand.facts = lambda: facts  # type: ignore[method-assign]
    with pytest.raises(SpecError, match="measured with another qemu family"):
        search(question_of(repository), stand, tmp_path / "r")


def test_an_error_of_a_build_machine_ends_it(repository: Path, stand: Stand, tmp_path: Path) -> None:
    def full(kind: str) -> None:
        if kind == "build" and stand.ran:
            raise HostError("no space left")

    stand.interrupt = full
    with pytest.raises(HostError, match="no space"):
        search(question_of(repository), stand, tmp_path / "r")
    stand.interrupt = lambda _: None
    assert named(search(question_of(repository), stand, tmp_path / "r"), stand) == ["change 8"]


# --- what is asked ---------------------------------------------------------------------------------


def test_the_metric_is_the_first_primary() -> None:
    experiment = expand(EXPERIMENT, {}, [])[0].experiment
    chosen = quantity(None, experiment)
    assert (chosen.name, chosen.measured.margin) == ("wait_share", 0.25)
    with pytest.raises(SpecError, match="no primary"):
        quantity(None, experiment.model_copy(update={"primary": {}}))
    with pytest.raises(SpecError, match="no metric `misess`"):
        quantity("misess", experiment)
    with pytest.raises(SpecError, match="outcome:panic, outcome:hang"):
        quantity("outcome:crash", experiment)


def test_revisions_that_cannot_be(repository: Path, tmp_path: Path) -> None:
    for ends, said in (
        (("nope", "main"), "--good: .* has no commit `nope`"),
        (("main", "good"), "--good: `main` is not in the history of `good`"),
        (("main", "main"), "no commits between"),
    ):
        with pytest.raises(SpecError, match=said):
            commits.between(repository, *ends)
    with pytest.raises(SpecError, match="not a git repository"):
        commits.between(tmp_path, "a", "b")
    with pytest.raises(SpecError, match="no commits between"):
        commits.between(repository, "good", "main", ["drivers"])


def test_merges_and_kinds(tmp_path: Path) -> None:
    top = tmp_path / "r"
    base = started(top)
    git(top, "checkout", "--quiet", "-b", "side")
    docs = commit(top, "docs", "Documentation/mm/x.rst")
    git(top, "checkout", "--quiet", "main")
    main = commit(top, "reclaim", "mm/vmscan.c")
    git(top, "merge", "--quiet", "--no-ff", "-m", "merge", "side")
    commit(top, "option", "lib/Kconfig")
    (top / "lib/Kconfig").write_text("config NEW_ONE\n\tbool\nmenuconfig A_MENU\n")
    git(top, "commit", "--quiet", "--all", "-m", "options")
    found = commits.between(top, base, "main")
    at = {change.subject: change for change in found.changes}
    assert set(at["merge"].links) == {docs, main} and set(at["merge"].parents) == {docs, main}
    assert at["docs"].links == () and at["docs"].parents == (base,)
    assert [change.subject for change in found.changes][-3:] == ["merge", "option", "options"]
    assert {subject: change.kind(()) for subject, change in at.items()} == {
        "merge": "merge",
        "docs": "not compiled",
        "reclaim": "mm",
        "option": "compiled",
        "options": "compiled",
    }
    assert at["reclaim"].kind({"mm/page_alloc.c"}) == "not compiled"
    assert commits.symbols(top, "main") == {"CONFIG_NEW_ONE", "CONFIG_A_MENU"}
    assert commits.symbols(top, base) == frozenset()


# --- a tester --------------------------------------------------------------------------------------

FIX = """\
--- a/lib/new.c
+++ b/lib/new.c
@@ -1 +1,2 @@
 /* a file */
+/* fixed */
"""


@dataclass
class Bare:
    """A tester for a repository of two commits, `before` and `after` there was an option and a file."""

    tester: CommitTester
    before: str
    after: str


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    top = tmp_path / "linux"
    before = started(top)
    (top / "Kconfig").write_text("config NEW\n\tbool\n")
    after = commit(top, "a file", "lib/new.c")
    (tmp_path / "fix.patch").write_text(FIX)
    (tmp_path / "extra.config").write_text("CONFIG_NEW=y\n# CONFIG_OLD is not set\n")
    return Bare(real_tester(tmp_path, str(tmp_path / "fix.patch")), before, after)


def real_tester(tmp_path: Path, *patches: str) -> CommitTester:
    experiment = expand(EXPERIMENT, {}, [])[0].experiment
    kernel = experiment.kernel.model_copy(update={"config": (str(tmp_path / "extra.config"),)})
    arms = {"a": ArmSpec(patches=patches)}
    experiment = experiment.model_copy(update={"arms": arms, "kernel": kernel})
    return CommitTester(experiment, tmp_path / "linux", tmp_path / "cache", None, lambda _: None)


def test_a_commit_does_without_what_it_does_not_know(bare: Bare) -> None:
    plan, remarks = bare.tester.plan(bare.before)
    assert remarks == ("without fix.patch", "without CONFIG_NEW")
    assert (plan.files, dict(plan.config)) == ({}, {"CONFIG_OLD": "# CONFIG_OLD is not set"})
    plan, remarks = bare.tester.plan(bare.after)
    assert remarks == () and plan.files == {"lib/new.c": b"/* a file */\n/* fixed */\n"}
    assert plan.config["CONFIG_NEW"] == "CONFIG_NEW=y"


def test_what_is_compiled_is_read_from_what_kbuild_left(bare: Bare) -> None:
    assert bare.tester.compiled(bare.after) == frozenset()
    words = build.command(bare.tester.plan(bare.after)[0])
    source = Path(words[words.index("-C") + 1])
    note = source.parent / "obj/mm/.vmscan.o.cmd"
    note.parent.mkdir(parents=True)
    note.write_text(f"source_mm/vmscan.o := {source}/mm/vmscan.c\n\n  {source}/include/a.h \\\n  other/b.h\n")
    assert bare.tester.compiled(bare.after) == {"mm/vmscan.c", "include/a.h"}


def test_a_series_has_to_apply(bare: Bare, tmp_path: Path) -> None:
    with pytest.raises(Broken, match="its patches or options do not fit"):
        real_tester(tmp_path, "instrumentation").build(bare.after)


def test_what_becomes_of_a_build(bare: Bare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[Exception | str] = [
        BuildError("make failed", "mm/x.c:1: error:"),
        SpecError("kernel.config: Linux 6.1.1 does not have it so"),
        HostError("/cache: no space left there"),
        "a hash",
        "another hash",
    ]

    def built(plan: build.Plan, progress: object) -> build.Kernel:
        found = said.pop(0)
        if isinstance(found, Exception):
            raise found
        return build.Kernel(plan.key, tmp_path, "", (), "6.1.1", "6.1.1", (), found, 61.0)

    monkeypatch.setattr(build, "build", built)
    with pytest.raises(Broken, match="does not build"):
        bare.tester.build(bare.after)
    with pytest.raises(Broken, match="its options do not fit"):
        bare.tester.build(bare.after)
    with pytest.raises(HostError, match="no space left"):
        bare.tester.build(bare.after)
    assert bare.tester.build(bare.after) == Built("a hash", 61.0)
    with pytest.raises(HostError, match="not the one that was measured before"):
        bare.tester.build(bare.after)


def test_what_does_not_fit_an_end_is_a_mistake(
    repository: Path, stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(_commit: str) -> Built:
        raise Broken("its patches or options do not fit", "x") from SpecError("x.patch: does not apply")

    monkeypatch.setattr(stand, "build", build)
    with pytest.raises(SpecError, match="does not apply"):
        search(question_of(repository), stand, tmp_path / "r")


# --- looking at it ---------------------------------------------------------------------------------


def test_status_log_and_replay(
    repository: Path, stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "r"
    stand.broken = {"change 5": "does not build"}
    answer = search(question_of(repository), stand, directory)
    assert answer.confirmed
    before = kept(directory), stand.built.total()
    assert cli.main(["bisect", "status", str(directory)]) == 0
    shown = capsys.readouterr().out
    assert "it is" in shown and "(change 8), confirmed on fresh seeds" in shown
    assert "good end" in shown and "bad end" in shown
    assert (directory / "pictures/posterior.svg").read_bytes().startswith(b"<?xml")
    assert "**" in (directory / "report.md").read_text()
    written = (directory / "report.json").read_text()
    read = parsed(BisectionReport, written)
    assert read.answer and read.answer.confirmed and read.text(indent=2) + "\n" == written
    Draft202012Validator(dict(schema())).validate(json.loads(written))
    page = (directory / "report.html").read_text()
    assert "(change 8), confirmed on fresh seeds" in page and "data:image/svg+xml;base64," in page
    assert "<script" not in page and "bad end" in page

    assert cli.main(["bisect", "log", str(directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(before[0]) + len(stand.built)
    assert "built in 50 s" in lines[0] and "confirmed on fresh seeds" in lines[-1]

    assert cli.main(["bisect", "--replay", str(directory), "--confidence", "0.999999"]) == 1
    assert "searching:" in capsys.readouterr().out
    assert (kept(directory), stand.built.total()) == before


def test_a_bisection_is_no_comparison_and_the_other_way_round(
    repository: Path, stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(question_of(repository), stand, tmp_path / "r")
    for words in (["report"], ["report", "--manifest"], ["parse"], ["verify"]):
        assert cli.main([words[0], str(tmp_path / "r"), *words[1:]]) == 2
        assert "not the result of a comparison" in capsys.readouterr().err
    with Ledger.create(tmp_path / "c") as ledger:
        ledger.set_plan(plan())
    assert cli.main(["bisect", "status", str(tmp_path / "c")]) == 2
    assert "not the result of a bisection" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [[], ["status"], ["lok", "r"], ["--repo", "."], ["status", "a", "b"], ["--confidence", "1"]],
)
def test_what_is_missing_is_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main(["bisect", *words])
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2 and "bisect" in capsys.readouterr().err


def test_seeds_of_a_confirmation_are_fresh(repository: Path, stand: Stand, tmp_path: Path) -> None:
    search(question_of(repository), stand, tmp_path / "r")
    fresh = {stand.names[wanted.commit] for wanted in stand.ran if wanted.seed >= PHASE}
    assert fresh == {"change 7", "change 8"}
