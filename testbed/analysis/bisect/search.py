# SPDX-License-Identifier: GPL-2.0-only
"""What comes next in a bisection: builds and trials, or the answer. Pure.

`assess` says it of a state (a graph of commits, the samples so far, what is built, what cannot be tested). A
state is data, so that who is stopped at any moment goes on from the samples that were kept; and an old state
can be asked again under other rules.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from testbed.analysis.bisect.posterior import (
    Flags,
    View,
    ancestry,
    believe,
    indistinct,
    scaled,
)
from testbed.analysis.decision import Decision
from testbed.analysis.metrics import Better, Kind
from testbed.analysis.statistics import LEAST_PAIRS
from testbed.analysis.verdict import decide

# A commit of which that many trials give no value, and not a third of them does, cannot be tested.
FAILURES = 2
# A trial's seed is its phase times this, plus its number: phases are search, confirmation, search, ...
PHASE = 10_000


@dataclass(frozen=True)
class Commit:
    """A candidate. `links` are its parents among the candidates (with path limits, those that git gives),
    `parents` all its parents; `weight` is relative to other commits; `kind` says what the weight is for.
    """

    id: str
    links: tuple[str, ...]
    parents: tuple[str, ...]
    weight: float = 1.0
    kind: str = ""
    subject: str = ""


@dataclass(frozen=True)
class CommitGraph:
    """`git rev-list bad ^good`, parents first. The bad end need not be among them, if paths are limited."""

    good: str
    bad: str
    commits: tuple[Commit, ...]


@dataclass(frozen=True)
class Sample:
    """What one trial of a commit gave. Without a value, `outcome` says what happened instead."""

    commit: str
    seed: int
    value: float | None
    outcome: str = "measured"

    @property
    def phase(self) -> int:
        """0 is the first search, 1 its confirmation, 2 the search that goes on if that failed, and so on."""
        return self.seed // PHASE


@dataclass(frozen=True)
class State:
    """All that is known. `kernels`: commit -> a hash of its kernel, of those that are built; equal hashes
    share samples. `broken`: commit -> why there is no kernel.
    """

    graph: CommitGraph
    samples: tuple[Sample, ...] = ()
    kernels: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What is measured: how its values are compared, and the relative change of it that nobody minds."""

    kind: Kind
    better: Better = "neither"
    margin: float = 0.0


@dataclass(frozen=True)
class Rules:
    """How sure to be, and what it may cost. Pairs are those of one comparison, trials those of all.

    `rho` is what a build costs, in trials. After `rounds` confirmations that failed, nobody is confirmed;
    `confirm_alpha` is the error of each.
    """

    confidence: float = 0.95
    gate_alpha: float = 0.01
    gate_pairs: int = 150
    confirm_alpha: float = 0.025
    confirm_pairs: int = 100
    rounds: int = 2
    trials: int = 1000
    rho: float = 5.0


@dataclass(frozen=True, order=True)
class Wanted:
    """A trial that is to be run."""

    commit: str
    seed: int


@dataclass(frozen=True)
class Contrast:
    """One commit against another on the seeds that both have: of the gate, or of a confirmation."""

    before: str
    after: str
    pairs: int
    decision: Decision | None


@dataclass(frozen=True)
class Answer:
    """How it ended. `commits` are one culprit, or several that cannot be told apart, or none; `posterior` is
    how probable they are together, and `confirmed` that fresh seeds said so of each contrast. `reason` is for
    people.
    """

    commits: tuple[str, ...]
    posterior: float
    confirmed: bool
    reason: str


@dataclass(frozen=True)
class Standing:
    """Where a bisection is, and what comes next: `trials` to be run and `builds` to be made, both in order of
    their worth (a trial may need a build that is among them), or an `answer`.

    `posterior` and `bad` (how probable it is that the commit is bad) are by candidate, in the history's
    order; there are none before the gate is passed. `untestable` says why a commit cannot be tested.
    """

    step: Literal["gate", "search", "confirm", "done"]
    trials: tuple[Wanted, ...] = ()
    builds: tuple[str, ...] = ()
    answer: Answer | None = None
    posterior: tuple[float, ...] = ()
    bad: tuple[float, ...] = ()
    gate: Contrast | None = None
    contrasts: tuple[Contrast, ...] = ()
    untestable: Mapping[str, str] = field(default_factory=dict)
    d: float = 0.0
    coarse: bool = False


def assess(
    state: State,
    measured: Measured,
    rules: Rules = Rules(),
    workers: int = 1,
    pending: Iterable[Wanted] = (),
) -> Standing:
    """What comes next, for so many workers, of which some have `pending` trials.

    The same for the same samples in any order. Raises ValueError for a history without candidates.
    """
    return _Search(state, measured, rules, workers, frozenset(pending)).standing()


@functools.lru_cache(maxsize=2)
def _ancestry(graph: CommitGraph) -> Flags:
    columns = {commit.id: column for column, commit in enumerate(graph.commits)}
    return ancestry([[columns[link] for link in commit.links] for commit in graph.commits])


class _Search:
    """The working of `assess`, which keeps what its steps share."""

    def __init__(
        self, state: State, measured: Measured, rules: Rules, workers: int, pending: frozenset[Wanted]
    ) -> None:
        self.state, self.measured, self.rules = state, measured, rules
        self.workers, self.pending = workers, pending
        self.good, self.bad = state.graph.good, state.graph.bad
        self.candidates = [commit.id for commit in state.graph.commits]
        if not self.candidates:
            raise ValueError("there are no commits between good and bad")
        self.columns = {commit: column for column, commit in enumerate(self.candidates)}
        # The bad end is the last candidate as well, unless paths are limited.
        ends = {self.good: len(self.candidates), self.bad: len(self.candidates) + 1}
        self.rows = {**self.columns, **ends}
        self.r = _ancestry(state.graph)
        self.names = [*self.candidates, self.good, self.bad]
        # The first of those with the same kernel stands for all of them.
        first: dict[str, str] = {}
        self.same = {
            commit: first.setdefault(state.kernels[commit], commit)
            for commit in dict.fromkeys([self.good, self.bad, *self.candidates, *state.kernels])
            if commit in state.kernels
        }
        self.values: dict[str, dict[int, float]] = {}
        failed: dict[str, list[str]] = {}
        for sample in sorted(state.samples, key=lambda s: (s.seed, s.commit)):
            stands = self._stands(sample.commit)
            if sample.value is None:
                failed.setdefault(stands, []).append(sample.outcome)
            else:
                self.values.setdefault(stands, {}).setdefault(sample.seed, sample.value)
        self.failed = {
            stands: _most_common(outcomes)
            for stands, outcomes in failed.items()
            if len(outcomes) >= FAILURES and len(outcomes) > 2 * len(self.values.get(stands, ()))
        }
        self.tried = {(self._stands(s.commit), s.seed) for s in state.samples}
        self.untestable = {
            commit: reason
            for commit in dict.fromkeys([*self.names, *state.kernels, *state.broken])
            if (reason := state.broken.get(commit) or self.failed.get(self._stands(commit)))
        }

    def _stands(self, commit: str) -> str:
        return self.same.get(commit, commit)

    def standing(self) -> Standing:
        if refused := self._ends_are_of_use():
            return self._nobody(refused)
        gate = self._contrast(
            self.good,
            self.bad,
            0,
            alpha=self.rules.gate_alpha,
            most=self.rules.gate_pairs,
            margin=self.measured.margin,
        )
        if gate.decision is None or gate.decision.direction is None:
            if gate.decision is None and gate.pairs < self.rules.gate_pairs:
                trials = self._pairs([self.good, self.bad], 0, self.rules.gate_pairs)
                if trials or self.pending:
                    return self._next("gate", trials, gate=gate)
            return self._nobody(self._no_difference(gate), gate)
        if not self._possible().any():
            return self._nobody(
                "kernels go back and forth between good and bad: no single commit did it", gate
            )
        return self._rounds(gate)

    def _ends_are_of_use(self) -> str:
        for end, name in ((self.good, "good"), (self.bad, "bad")):
            if end in self.untestable:
                return f"the {name} end cannot be tested: {self.untestable[end]}"
        if self.good in self.same and self.same.get(self.good) == self.same.get(self.bad):
            return "good and bad are the same kernel, byte for byte"
        return ""

    @staticmethod
    def _no_difference(gate: Contrast) -> str:
        if gate.decision:
            return f"good and bad do not differ by more than the margin ({gate.pairs} pairs)"
        return f"{gate.pairs} pairs show no difference between good and bad"

    def _rounds(self, gate: Contrast) -> Standing:
        """Search and confirm, until one of it is not finished."""
        assert gate.decision and gate.decision.estimate is not None
        view = self._view(0)
        best: tuple[str, ...] = ()
        contrasts: tuple[Contrast, ...] = ()
        mass = 0.0
        for phase in range(0, 2 * self.rules.rounds, 2):
            view = self._view(phase)
            best, mass = view.best()
            if mass < self.rules.confidence:
                if len(self.tried) >= self.rules.trials:
                    few = view.credible(self.rules.confidence)
                    reason = f"{len(self.tried)} trials leave {len(few)} commits in question"
                    return self._nobody(reason, gate, view)
                return self._search(view, phase, gate)
            contrasts = self._confirmation(best, phase + 1, self._half(gate.decision))
            rise = gate.decision.estimate > 0
            if all(_confirms(contrast, rise) for contrast in contrasts):
                return self._answer(best, mass, gate, contrasts, view, confirmed=True)
            if not any(self._failed(contrast, rise) for contrast in contrasts):
                open_ = [c for c in contrasts if not _confirms(c, rise)]
                sides = [contrasts[0].after, *(c.before for c in open_)]
                trials = self._pairs(sides, phase + 1, self.rules.confirm_pairs)
                if trials or self.pending:
                    return self._next("confirm", trials, gate=gate, contrasts=contrasts, view=view)
        return self._answer(best, mass, gate, contrasts, view, confirmed=False)

    # --- searching ---

    def _view(self, phase: int) -> View:
        """What the samples until the end of a phase say."""
        found = [
            (self.rows[commit], value)
            for commit, values in self.values.items()
            if commit in self.rows
            for seed, value in values.items()
            if seed // PHASE <= phase
        ]
        rows = np.array([[row for row, _ in found]], dtype=np.intp)
        values = np.array([[value for _, value in found]], dtype=np.float64)
        weights = np.array([commit.weight for commit in self.state.graph.commits])
        with np.errstate(divide="ignore"):
            prior = np.log(np.where(self._possible(), weights, 0.0))
        values = scaled(values, self.measured.kind)
        testable = np.array([name not in self.untestable for name in self.names])
        belief = believe(self.r, rows, values, prior[None], self.measured.kind == "outcome")
        return View(self.candidates, self.r, belief, testable, indistinct(self.r, testable))

    def _possible(self) -> Flags:
        """Who can be the culprit, by what is the same kernel: between equal kernels nothing went bad."""
        possible = np.ones(len(self.candidates), dtype=np.bool_)
        kernels: dict[str, int] = {}
        for name in self.names:
            if kernel := self.state.kernels.get(name):
                row = self.rows[name]
                possible &= self.r[row] == self.r[kernels.setdefault(kernel, row)]
        return possible

    def _search(self, view: View, phase: int, gate: Contrast) -> Standing:
        built = np.array([name in self.state.kernels for name in self.names])
        number = max(seed for seed in self._seeds() if seed // PHASE <= phase) % PHASE
        wanted, builds = view.wanted(
            built, self.rules.rho, self.workers, lambda row: self.rows[self._stands(self.names[row])]
        )
        waiting = [w.commit for w in self.pending if w.seed // PHASE == phase]
        trials: list[Wanted] = []
        for commit in (self._stands(self.names[row]) for row in wanted):
            if commit in waiting:
                waiting.remove(commit)
            elif len(trials) < self.workers - len(self.pending):
                number += 1
                trials.append(Wanted(commit, phase * PHASE + number))
        ahead = tuple(self.names[row] for row in builds)
        return self._next("search", trials, ahead, gate=gate, view=view)

    def _seeds(self) -> Iterator[int]:
        yield 0
        yield from (sample.seed for sample in self.state.samples)
        yield from (wanted.seed for wanted in self.pending)

    # --- comparing ---

    def _half(self, decision: Decision) -> float:
        """Half of the difference of the ends, as a margin: who differs by less from its parent is not who
        made all of it, and to see that takes no more than to see the difference."""
        estimate = decision.estimate or 0.0
        if self.measured.kind == "outcome":
            return abs(estimate) / 2
        if not decision.relative:
            return 0.0
        return math.expm1(min(abs(math.log1p(estimate)), 2.0) / 2) if estimate > -1 else 1.0

    def _confirmation(self, found: Sequence[str], phase: int, margin: float) -> tuple[Contrast, ...]:
        """The culprit against each of its parents. Of several that cannot be told apart: the first commit
        that can be tested and has them all, against what comes before them all."""
        columns = [self.columns[commit] for commit in found]
        after = next(
            (
                commit
                for commit in self.candidates
                if commit not in self.untestable and self.r[self.rows[commit], columns].all()
            ),
            self.bad,
        )
        commits = {commit.id: commit for commit in self.state.graph.commits}
        before: dict[str, None] = {}
        waiting = [parent for commit in found for parent in commits[commit].parents]
        while waiting:
            parent = waiting.pop(0)
            if parent in found:
                continue
            if parent not in self.untestable:
                before[parent] = None
            elif parent in commits:
                waiting += commits[parent].parents
            else:
                before[self.good] = None
        return tuple(
            self._contrast(
                side,
                after,
                phase,
                alpha=self.rules.confirm_alpha,
                most=self.rules.confirm_pairs,
                margin=margin,
            )
            for side in before or {self.good: None}
        )

    def _contrast(
        self, before: str, after: str, phase: int, *, alpha: float, most: int, margin: float
    ) -> Contrast:
        """Compare two commits on the seeds of a phase, at every number of pairs, until that is decided."""
        both = [self.values.get(self._stands(commit), {}) for commit in (before, after)]
        seeds = [seed for seed in sorted(both[0].keys() & both[1].keys()) if seed // PHASE == phase][:most]
        for pairs in range(LEAST_PAIRS[True], len(seeds) + 1):
            decision = decide(
                *({seed: values[seed] for seed in seeds[:pairs]} for values in both),
                kind=self.measured.kind,
                better=self.measured.better,
                alpha=alpha,
                margin=margin,
                sequential=True,
                full=False,
            )
            if decision.decided:
                return Contrast(before, after, pairs, decision)
        return Contrast(before, after, len(seeds), None)

    def _pairs(self, commits: Sequence[str], phase: int, most: int) -> list[Wanted]:
        """The next trials of commits on the same seeds, seed by seed and in turns."""
        free = self.workers - len(self.pending)
        waiting = {(self._stands(wanted.commit), wanted.seed) for wanted in self.pending}
        return [
            Wanted(self._stands(commit), seed)
            for number in range(1, most + 1)
            for seed in [phase * PHASE + number]
            for commit in (commits if number % 2 else commits[::-1])
            if (self._stands(commit), seed) not in self.tried | waiting
        ][: max(free, 0)]

    def _failed(self, contrast: Contrast, rise: bool) -> bool:
        if contrast.decision:
            return not _confirms(contrast, rise)
        return contrast.pairs >= self.rules.confirm_pairs

    # --- what comes of it ---

    def _next(
        self,
        step: Literal["gate", "search", "confirm"],
        trials: Sequence[Wanted],
        ahead: Sequence[str] = (),
        *,
        gate: Contrast,
        contrasts: tuple[Contrast, ...] = (),
        view: View | None = None,
    ) -> Standing:
        needed = [w.commit for w in trials] + [c for contrast in contrasts for c in _sides(contrast)]
        builds = [c for c in dict.fromkeys([*needed, *ahead]) if c not in self.state.kernels]
        return Standing(
            step,
            tuple(trials),
            tuple(c for c in builds if c not in self.untestable),
            gate=gate,
            contrasts=contrasts,
            untestable=self.untestable,
            **(view.shown() if view else {}),
        )

    def _nobody(self, reason: str, gate: Contrast | None = None, view: View | None = None) -> Standing:
        return Standing(
            "done",
            answer=Answer((), 0.0, False, reason),
            gate=gate,
            untestable=self.untestable,
            **(view.shown() if view else {}),
        )

    def _answer(
        self,
        found: Sequence[str],
        mass: float,
        gate: Contrast,
        contrasts: tuple[Contrast, ...],
        view: View,
        *,
        confirmed: bool,
    ) -> Standing:
        reason = "confirmed on fresh seeds" if confirmed else "fresh seeds did not confirm it"
        return Standing(
            "done",
            answer=Answer(tuple(found), mass, confirmed, reason),
            gate=gate,
            contrasts=contrasts,
            untestable=self.untestable,
            **view.shown(),
        )


def _confirms(contrast: Contrast, rise: bool) -> bool:
    decision = contrast.decision
    if decision is None or decision.direction is None or decision.estimate is None:
        return False
    return (decision.estimate > 0) == rise


def _sides(contrast: Contrast) -> tuple[str, str]:
    return contrast.after, contrast.before


def _most_common(outcomes: Sequence[str]) -> str:
    return max(dict.fromkeys(outcomes), key=outcomes.count)
