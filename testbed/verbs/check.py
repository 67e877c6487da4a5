# SPDX-License-Identifier: GPL-2.0-only
"""`testbed check`: whether one kernel is as a good result is or as a bad one, for `git bisect run`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.analysis.bisect.posterior import suspicion
from testbed.analysis.likeness import unlike
from testbed.analysis.parse import parse
from testbed.analysis.statistics import LEAST_PAIRS
from testbed.experiment import Experiment
from testbed.host.errors import BuildError, GuestLost, SpecError
from testbed.ledger.ledger import Ledger
from testbed.ledger.plan import Plan
from testbed.ledger.record import FAILURES, LOST, MEASURED, Record, final
from testbed.trials import pool
from testbed.trials.lab import Lab, Watch
from testbed.trials.pool import Job
from testbed.trials.trial import Attempt, Trial
from testbed.verbs import results
from testbed.verbs.quantity import Quantity

# As `git bisect run` has them.
GOOD, BAD, CANNOT_TELL = 0, 1, 125
# Trials without a value, of a kernel that has given none.
ENOUGH_FAILURES = 2


@dataclass(frozen=True)
class Side:
    """One of the results that a kernel is held against: its plan and the values of one arm, by seed."""

    path: Path
    plan: Plan
    values: Sequence[float]


def side(path: Path, quantity: Quantity) -> Side:
    """The values of a quantity in a RESULT or RESULT:ARM. Raises SpecError when there are too few of them."""
    with Ledger.open(results.result_and_arm(path)[0]) as ledger:
        plan = ledger.plan()
        arm = results.arm_of(path, plan)
        records = [r for r in final(ledger.records()).values() if r.trial in plan.trials and r.arm == arm]
        told = (_value(quantity, ledger, record) for record in records if record.outcome != LOST)
        values = [value for value in told if value is not None]
    least = LEAST_PAIRS[True]
    if len(values) < least:
        raise SpecError(f"{path}: {len(values)} values of {quantity.name}; at least {least} are needed")
    return Side(path, plan, values)


def _value(quantity: Quantity, ledger: Ledger, record: Record) -> float | None:
    return quantity.value(record, lambda: parse(ledger.log(record)))


def check(
    experiment: Experiment,
    sides: tuple[Side, Side],
    quantity: Quantity,
    *,
    confidence: float,
    lab: Lab,
    watch: Watch,
) -> int:
    """Measure the experiment's first arm, seed by seed, until it is clear what it is like.

    The result goes beside the good one. Raises SpecError for results that were not measured alike, GuestLost
    for a trial that is lost again and again.
    """
    good, _ = sides
    try:
        ready = lab.prepare(experiment.only(), watch.note)
    except BuildError as failed:
        watch.note(f"cannot tell: it does not build: {failed}")
        return CANNOT_TELL
    except SpecError as bad_fit:
        watch.note(f"cannot tell: the experiment does not fit it: {bad_fit}")
        return CANNOT_TELL
    for other in sides:
        if differences := list(unlike(other.plan, ready.plan)):
            raise SpecError(f"{other.path} was not measured like this: {'; '.join(differences)}")
    home = (
        results.result_and_arm(good.path)[0].resolve().parent / f"check-{ready.trials[0].vmlinux_sha256[:12]}"
    )
    with Ledger.create(home) as ledger:
        ledger.set_plan(ready.plan)
        checked = _Check(ready.trials, sides, quantity, confidence=confidence, ledger=ledger, watch=watch)
        pool.work(checked.next_seed, ledger, watch.ended)
    if checked.verdict is None:
        watch.note(f"cannot tell with {experiment.seeds} seeds; give more with --seeds")
        return CANNOT_TELL
    return checked.verdict


class _Check:
    """Values of a kernel, seed by seed, until there is a `verdict`."""

    def __init__(
        self,
        trials: Sequence[Trial],
        sides: tuple[Side, Side],
        quantity: Quantity,
        *,
        confidence: float,
        ledger: Ledger,
        watch: Watch,
    ) -> None:
        self._good, self._bad = sides
        self._quantity, self._confidence, self._watch = quantity, confidence, watch
        self._values: list[float] = []
        self._failures: list[str] = []
        self.verdict: int | None = None
        kept = ledger.settled()
        self._waiting = deque(trial for trial in trials if trial.id not in kept)
        watch.started(len(trials), len(trials) - len(self._waiting), 1)
        for trial in trials:
            if trial.id in kept and self.verdict is None:
                self._take(kept[trial.id], _value(quantity, ledger, kept[trial.id]))

    def next_seed(self, running: Sequence[Job]) -> Sequence[Job] | None:
        """For the pool: one trial at a time, each of the next seed."""
        if running:
            return ()
        if self.verdict is not None or not self._waiting:
            return None
        return [pool.trial_job(self._waiting.popleft(), self._ended)]

    def _ended(self, attempt: Attempt) -> None:
        if attempt.record.outcome == LOST:
            raise GuestLost(attempt.record.detail)
        self._take(attempt.record, self._quantity.value(attempt.record, lambda: attempt.measurement))

    def _take(self, record: Record, value: float | None) -> None:
        """Take in what a seed gave: is it enough?"""
        if value is not None:
            self._values.append(value)
        if record.outcome != MEASURED:
            self._failures.append(record.outcome)
        if not self._values and len(self._failures) >= ENOUGH_FAILURES:
            self._watch.note(f"cannot tell: it {FAILURES[self._failures[0]]}")
            self.verdict = CANNOT_TELL
            return
        count, kind = len(self._values), self._quantity.measured.kind
        p = suspicion(self._good.values, self._bad.values, self._values, kind)
        so_far = f"{100 * p:.1f} % that it is bad, after {count} seeds"
        if p >= self._confidence:
            self._watch.note(f"bad: {so_far}")
            self.verdict = BAD
        elif p <= 1 - self._confidence:
            self._watch.note(f"good: {so_far}")
            self.verdict = GOOD
        else:
            self._watch.note(f"{count} {'is' if count == 1 else 'are'} not enough: {so_far}")
