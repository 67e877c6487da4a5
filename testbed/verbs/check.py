# SPDX-License-Identifier: GPL-2.0-only
"""`testbed check`: whether one kernel is as a good result is or as a bad one, for `git bisect run`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from testbed.analysis.bisect import suspicion
from testbed.analysis.likeness import unlike
from testbed.analysis.statistics import LEAST_PAIRS
from testbed.experiment import Experiment
from testbed.host.errors import BuildError, GuestLost, SpecError
from testbed.ledger.ledger import Ledger
from testbed.ledger.plan import Plan
from testbed.ledger.record import LOST, MEASURED, Record, final
from testbed.trials import pool, prepare
from testbed.trials.pool import Progress
from testbed.verbs import results
from testbed.verbs.bisect import FAILURES, Metric

# As `git bisect run` has them.
GOOD, BAD, CANNOT_TELL = 0, 1, 125
# Trials without a value, of a kernel that has given none.
ENOUGH_FAILURES = 2


class Watch(Progress, Protocol):
    """Who watches a check."""

    def note(self, text: str) -> None:
        """Something was found."""


@dataclass(frozen=True)
class Side:
    """One of the results that a kernel is held against: its plan and the values of one arm, by seed."""

    path: Path
    plan: Plan
    values: Sequence[float]


def side(path: Path, metric: Metric) -> Side:
    """The values of a metric in a RESULT or RESULT:ARM. Raises SpecError when there are too few of them."""
    with Ledger.open(results.result_and_arm(path)[0]) as ledger:
        plan = ledger.plan()
        arm = results.arm_of(path, plan)
        records = [r for r in ledger.records() if r.trial in plan.trials and r.arm == arm]
        values = list(_values(ledger, records, metric))
    least = LEAST_PAIRS[True]
    if len(values) < least:
        raise SpecError(f"{path}: {len(values)} values of {metric.name}; at least {least} are needed")
    return Side(path, plan, values)


def _values(ledger: Ledger, records: Sequence[Record], metric: Metric) -> Iterator[float]:
    for record in final(records).values():
        if record.outcome != LOST and (value := metric.value(record, ledger.log(record))) is not None:
            yield value


def check(
    experiment: Experiment,
    sides: tuple[Side, Side],
    metric: Metric,
    *,
    confidence: float,
    cache: Path,
    watch: Watch,
) -> int:
    """Measure the experiment's first arm, seed by seed, until it is clear what it is like.

    The result goes beside the good one. Raises SpecError for results that were not measured alike.
    """
    good, bad = sides
    try:
        ready = prepare.prepare(experiment.only(), cache, watch.note, threading.Event())
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
        for trial in ready.trials:
            pool.run([t for t in ready.trials if t.seed <= trial.seed], ledger, 1, watch)
            records = final(ledger.records())
            if records[trial.id].outcome == LOST:
                raise GuestLost(records[trial.id].detail)
            values = list(_values(ledger, list(records.values()), metric))
            failures = [r.outcome for r in records.values() if r.outcome not in (LOST, MEASURED)]
            if not values and len(failures) >= ENOUGH_FAILURES:
                watch.note(f"cannot tell: it {FAILURES[failures[0]]}")
                return CANNOT_TELL
            p = suspicion(good.values, bad.values, values, metric.measured.kind)
            said = f"{100 * p:.1f} % that it is bad, after {len(values)} seeds"
            if p >= confidence or p <= 1 - confidence:
                watch.note(f"{'bad' if p >= confidence else 'good'}: {said}")
                return BAD if p >= confidence else GOOD
            watch.note(f"{len(values)} {'is' if len(values) == 1 else 'are'} not enough: {said}")
    watch.note(f"cannot tell with {experiment.seeds} seeds; give more with --seeds")
    return CANNOT_TELL
