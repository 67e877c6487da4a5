# SPDX-License-Identifier: GPL-2.0-only
"""Trials of commits: the kernels of a repository's commits, built and tried with one experiment."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from testbed.analysis.bisect.search import Wanted
from testbed.experiment import ArmSpec, Experiment, GitSource, SourceSpec, is_path
from testbed.host.errors import BuildError, HostError, SpecError
from testbed.kernel import build, commits, series, source
from testbed.kernel.build import Kernel, Plan
from testbed.ledger.plan import GuestFacts
from testbed.trials import pool, prepare
from testbed.trials import trial as trials
from testbed.trials.pool import TrialJob
from testbed.trials.prepare import Guests
from testbed.trials.trial import Attempt, Trial


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


class Tester(Protocol):
    """Who builds the kernels of commits and tries them."""

    def know(self, kernels: Mapping[str, str]) -> None:
        """Take up a bisection in which these kernels were built: commit -> what Built has of it."""

    def build(self, commit: str) -> Built:
        """Build a commit's kernel, or find it built. Raises Broken. May be called from any thread."""

    def job(self, wanted: Wanted, then: Callable[[Attempt], None]) -> TrialJob:
        """A trial of a commit that is built, to be run; its record has the commit for an arm."""

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
class CommitTester:
    """A Tester with real kernels and guests: an experiment's first arm, on the commits of a repository."""

    experiment: Experiment
    repository: Path
    cache: Path
    jobs: int | None
    note: Callable[[str], None]

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
        spec = SourceSpec(git=GitSource(repository=str(self.repository), revision=commit))
        tree = source.resolve(spec, self.cache)
        fragments = self.experiment.fragments(self.arm)
        symbols = commits.symbols(self.repository, commit)
        arm = self.experiment.arms[self.arm]
        fitting: list[str] = []
        for name in arm.patches:
            if not is_path(name) or _applies([*fitting, name], tree):
                fitting.append(name)
        wanted = build.plan(tree, fragments, ArmSpec(), self.cache)
        plan = build.plan(tree, fragments, ArmSpec(patches=tuple(fitting)), self.cache, symbols)
        remarks = [f"without {Path(name).name}" for name in arm.patches if name not in fitting]
        remarks += [f"without {name}" for name in wanted.config if name not in plan.config]
        return plan, tuple(remarks)

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
                initramfs = prepare.initramfs(self.experiment, self.cache)
                machine = prepare.machine(self.experiment, first, initramfs, self.cache, self.note)
                self._guests = Guests(initramfs, machine, self.cache)
            return self._guests

    def job(self, wanted: Wanted, then: Callable[[Attempt], None]) -> TrialJob:
        """A trial of a commit that is built, to be run; its record has the commit for an arm."""
        trial = prepare.trial(
            self.experiment,
            self.arm,
            wanted.seed,
            self.guests(),
            # What a trial is says the hash; the file may have to be found first, or made again.
            vmlinux=Path(),
            sha256=self._expected[wanted.commit],
        )
        trial = replace(trial, arm=wanted.commit)
        return TrialJob(trial.id, trial.arm, trial.seed, functools.partial(self._run, trial), then)

    def _run(self, trial: Trial, attempt: int, cancel: threading.Event) -> Attempt:
        return trials.run(replace(trial, vmlinux=self.kernel(trial.arm).vmlinux), attempt, cancel)

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
    loaded = series.load(patches, tree.version, pristine=tree.read)
    try:
        series.apply(loaded, tree.read)
    except SpecError:
        return False
    return True
