# SPDX-License-Identifier: GPL-2.0-only
"""`testbed bisect` and `testbed check`: what a person asks for, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.ledger.ledger import Ledger
from testbed.trials import prepare
from testbed.trials.lab import Lab, Watch
from testbed.verbs.request import ExperimentRequest
from testbed.verbs.run import make_room

if TYPE_CHECKING:
    # Slow: with it comes scipy.
    from testbed.report.bisection import BisectionReport


@dataclass(frozen=True)
class BisectRequest:
    """Which commit between two revisions changed a metric of an experiment's first arm.

    `paths` limits the commits as git does. Without a metric it is the experiment's first primary;
    `confidence` is a probability at which a commit is named.
    """

    repository: Path
    good: str
    bad: str
    experiment: ExperimentRequest
    paths: tuple[str, ...] = ()
    metric: str | None = None
    confidence: float | None = None
    results: Path | None = None
    fresh: bool = False
    jobs: int | None = None


@dataclass(frozen=True)
class Bisected:
    """How a bisection stands: its report, and a headline."""

    directory: Path
    report: BisectionReport
    headline: str

    @property
    def confirmed(self) -> bool:
        """Whether a commit is named, and was confirmed on fresh seeds."""
        answer = self.report.answer
        return bool(answer and answer.confirmed)

    def write(self, warn: Callable[[str], None]) -> None:
        """Write the report in its forms, and its picture, into the directory."""
        from testbed.verbs import bisect  # noqa: PLC0415  (slow, with scipy and matplotlib)

        bisect.write(self.directory, self.report, self.headline, warn)


def run(request: BisectRequest, lab: Lab, watch: Watch) -> Bisected:
    """Search until there is an answer; goes on from where it was. Raises as bisect.bisect() does."""
    from testbed.trials.commits import CommitTester  # noqa: PLC0415  (slow, with scipy)
    from testbed.verbs import bisect  # noqa: PLC0415  (slow, with scipy and matplotlib)

    experiment = request.experiment.first()
    # What cannot be brought into any guest is refused before commits are looked at.
    with request.experiment.named():
        prepare.brought(experiment)
    home = request.results or Path("results") / f"bisect-{experiment.name}"
    ends = request.good, request.bad
    question = bisect.question(request.repository, ends, request.paths, experiment, request.metric)
    watch.note(f"{len(question.range.changes)} commits between good and bad")
    if request.fresh:
        make_room(home, watch)
    tester = CommitTester(question.experiment, question.repository, lab.cache, request.jobs, watch.note)
    with Ledger.create(home) as ledger, request.experiment.named():
        bisect.bisect(question, bisect.rules(request.confidence), tester, ledger, watch.note)
    return status(home)


def status(directory: Path, confidence: float | None = None) -> Bisected:
    """How a bisection stands; under another confidence if one is given. Builds nothing, runs nothing."""
    from testbed.verbs import bisect  # noqa: PLC0415  (slow, with scipy and matplotlib)

    return Bisected(directory, *bisect.status(directory, confidence))


def log(directory: Path) -> Iterator[str]:
    """What happened, in order, and what was made of it at each moment."""
    from testbed.verbs import bisect  # noqa: PLC0415  (slow, with scipy and matplotlib)

    return bisect.log(directory)


@dataclass(frozen=True)
class CheckRequest:
    """Whether one kernel is as a good result is or as a bad one, RESULT or RESULT:ARM each."""

    experiment: ExperimentRequest
    good: Path
    bad: Path
    metric: str | None = None
    confidence: float = 0.95


@dataclass(frozen=True)
class Checked:
    """What `git bisect run` is told: 0 good, 1 bad, 125 cannot tell."""

    verdict: int


def check_tree(request: CheckRequest, lab: Lab, watch: Watch) -> Checked:
    """Measure the experiment's first arm until it is clear what it is like. Raises as check.check() does."""
    from testbed.verbs import check  # noqa: PLC0415  (slow, with scipy)
    from testbed.verbs.quantity import quantity  # noqa: PLC0415

    experiment = request.experiment.first()
    chosen = quantity(request.metric, experiment)
    sides = check.side(request.good, chosen), check.side(request.bad, chosen)
    with request.experiment.named():
        verdict = check.check(experiment, sides, chosen, confidence=request.confidence, lab=lab, watch=watch)
    return Checked(verdict)
