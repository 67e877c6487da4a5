# SPDX-License-Identifier: GPL-2.0-only
"""What bisect and check go by: a metric of the registry, or how trials end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from testbed.analysis.bisect.search import Measured
from testbed.analysis.metrics import METRICS
from testbed.analysis.parse import Measurement
from testbed.experiment import Experiment
from testbed.host.errors import SpecError
from testbed.ledger.record import FAILURES, MEASURED, Record

OUTCOME = "outcome:"
# Of a trial's record and what makes its measurement of its log: its value, None for none.
Value = Callable[[Record, Callable[[], Measurement]], float | None]


@dataclass(frozen=True)
class Quantity:
    """A metric of the registry, or `outcome:panic`, which is 1 where a trial ends so."""

    name: str
    title: str
    unit: str
    measured: Measured
    value: Value


def quantity(name: str | None, experiment: Experiment) -> Quantity:
    """The quantity of that name; without one the experiment's first primary metric. Raises SpecError."""
    if name is None:
        name = next(iter(experiment.primary), None)
        if name is None:
            raise SpecError("--metric: the experiment has no primary metric", "`testbed metrics` lists all")
    if name.startswith(OUTCOME):
        return _ending(name)
    metric = next((metric for metric in METRICS if metric.name == name), None)
    if metric is None:
        raise SpecError(f"--metric: there is no metric `{name}`; `testbed metrics` lists them")
    margin = experiment.primary[name].margin if name in experiment.primary else 0.0

    def value(record: Record, measurement: Callable[[], Measurement]) -> float | None:
        if record.outcome != MEASURED and not metric.of_failures:
            return None
        number = metric.value(measurement())
        return float(number > 0) if metric.kind == "outcome" and number is not None else number

    measured = Measured(metric.kind, metric.better, margin)
    return Quantity(name, metric.title_of(experiment.workload.name), metric.unit, measured, value)


def _ending(name: str) -> Quantity:
    ending = name.removeprefix(OUTCOME)
    if ending not in FAILURES:
        raise SpecError(f"--metric: {name}: there are {', '.join(OUTCOME + failure for failure in FAILURES)}")

    def value(record: Record, _measurement: Callable[[], Measurement]) -> float | None:
        # What ends in yet another way says nothing.
        return {ending: 1.0, MEASURED: 0.0}.get(record.outcome)

    return Quantity(name, f"trials that end with {ending}", "share", Measured("outcome", "lower"), value)
