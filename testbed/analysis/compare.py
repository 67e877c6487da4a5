# SPDX-License-Identifier: GPL-2.0-only
"""From parsed trials to a comparison: the values of every seed, per arm and metric. Pure.

This is the seam for statistics: `Comparison.arms[arm].values[metric][seed]`, of which the seeds in
`Comparison.seeds` are paired.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from testbed.analysis.metrics import METRICS, Metric
from testbed.analysis.oom import Kill
from testbed.analysis.parse import Measurement
from testbed.analysis.requests import Request
from testbed.ledger.record import LOST, MEASURED, Record

# The arms' kernels may differ by some pages in size; more would be another experiment.
MEMORY_TOLERANCE = 0.002


@dataclass(frozen=True)
class Observation:
    """The attempt of a trial that counts, and what its log says."""

    record: Record
    measurement: Measurement


@dataclass(frozen=True)
class Arm:
    """One arm. `values`: metric -> seed -> value, of every seed that this arm has measured.

    `phases`: metric -> number of a phase, as "0" -> seed -> value, where there is more than one phase.

    Of the comparison's seeds only: `memory`, seed -> the guest's MemTotal in bytes, and `misses`.

    `kills`: seed -> what the OOM killer took, of every trial that was not lost and had a kill.
    """

    name: str
    values: Mapping[str, Mapping[int, float]]
    phases: Mapping[str, Mapping[str, Mapping[int, float]]]
    memory: Mapping[int, int]
    misses: tuple[Request, ...]
    outcomes: Mapping[str, int]
    kills: Mapping[int, tuple[Kill, ...]]


@dataclass(frozen=True)
class Exclusion:
    """A trial that does not take part in the numbers, and why; `said` are the last lines of what it said."""

    arm: str
    seed: int
    outcome: str
    reason: str
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Arms in the order of the experiment; `seeds` are those that every arm has measured.

    `metrics` are those that the arms' values are of.
    """

    arms: Mapping[str, Arm]
    seeds: tuple[int, ...]
    excluded: tuple[Exclusion, ...]
    run_order: tuple[int, ...]
    """The same seeds as they were run."""
    metrics: tuple[Metric, ...] = METRICS


def compare(
    arm_names: Sequence[str], observations: Sequence[Observation], metrics: tuple[Metric, ...] = METRICS
) -> Comparison:
    """Put the arms side by side.

    A seed takes part when each arm has measured it and their effective memory is the same within
    MEMORY_TOLERANCE; the others are excluded and say so.
    """
    excluded = [
        Exclusion(o.record.arm, o.record.seed, o.record.outcome, o.record.reason, o.record.last_words)
        for o in observations
        if o.record.outcome != MEASURED
    ]
    by_seed: dict[int, dict[str, Observation]] = {}
    for o in observations:
        if o.record.outcome == MEASURED:
            by_seed.setdefault(o.record.seed, {})[o.record.arm] = o
    seeds = []
    for seed, arms in sorted(by_seed.items()):
        if reason := _unpaired(arm_names, arms):
            excluded += [Exclusion(name, seed, "refused", reason) for name in arms]
        else:
            seeds.append(seed)
    began = {seed: min(o.record.started for o in by_seed[seed].values()) for seed in seeds}
    return Comparison(
        arms={
            name: _arm(name, seeds, [o for o in observations if o.record.arm == name], metrics)
            for name in arm_names
        },
        seeds=tuple(seeds),
        excluded=tuple(excluded),
        run_order=tuple(sorted(seeds, key=began.__getitem__)),
        metrics=metrics,
    )


def _unpaired(arm_names: Sequence[str], arms: Mapping[str, Observation]) -> str | None:
    """Why the trials of one seed cannot be compared; None when they can."""
    missing = [name for name in arm_names if name not in arms]
    if missing:
        return f"no measurement of arm {', '.join(missing)} for this seed"
    balloons = {name: o.record.memory["balloon"] for name, o in arms.items()}
    totals = {name: o.record.memory["total"] for name, o in arms.items()}
    unlike = balloons if len(set(balloons.values())) > 1 else totals if _differ(totals) else None
    if unlike:
        sizes = ", ".join(f"{name} {size >> 10} KiB" for name, size in unlike.items())
        return f"the arms differ in effective memory: {sizes}"
    return None


def _differ(totals: Mapping[str, int]) -> bool:
    return max(totals.values()) - min(totals.values()) > MEMORY_TOLERANCE * max(totals.values())


def _arm(
    name: str, seeds: Sequence[int], observations: Sequence[Observation], metrics: Sequence[Metric]
) -> Arm:
    measured = [o for o in observations if o.record.outcome == MEASURED]
    values: dict[str, dict[int, float]] = {}
    for metric in metrics:
        telling = observations if metric.of_failures else measured
        by_seed = {o.record.seed: metric.value(o.measurement) for o in telling if o.record.outcome != LOST}
        values[metric.name] = {seed: value for seed, value in sorted(by_seed.items()) if value is not None}
    return Arm(
        name=name,
        values=values,
        phases=_phases([o for o in measured if o.record.seed in seeds], metrics),
        memory={o.record.seed: o.record.memory["total"] for o in measured if o.record.seed in seeds},
        misses=tuple(miss for o in measured if o.record.seed in seeds for miss in o.measurement.misses),
        outcomes=Counter(o.record.outcome for o in observations),
        kills={
            o.record.seed: o.measurement.kills
            for o in observations
            if o.measurement.kills and o.record.outcome != LOST
        },
    )


def _phases(
    observations: Sequence[Observation], metrics: Sequence[Metric]
) -> dict[str, dict[str, dict[int, float]]]:
    by_metric: dict[str, dict[str, dict[int, float]]] = {}
    for metric in metrics:
        for o in observations:
            values = metric.per_phase(o.measurement)
            for phase, value in values.items() if len(values) > 1 else ():
                by_metric.setdefault(metric.name, {}).setdefault(phase, {})[o.record.seed] = value
    return by_metric


# What nobody comes to who was given a page already, by the metric that says of how many that is so.
_BEFORE = {"handed_over": "the free lists are asked", "spared_drain": "lists are drained"}


def by_construction(metric: Metric, first: Arm, arm: Arm) -> str:
    """Why one of the arms has fewer of what the metric counts, whatever else it does; empty if it need not.

    Where a page is given before the free lists are asked, or before the drain, nothing can fail there. So it
    is decided if even failures of all attempts that are left would be fewer, per try, than the other arm has.
    """
    for one, other in ((first, arm), (arm, first)) if metric.spared else ():
        given, tries = one.values.get(metric.spared, {}), other.values.get("tries", {})
        failed = {
            seed: value / (tries[seed] if metric.kind == "count" else 1)
            for seed, value in other.values[metric.name].items()
            if tries.get(seed)
        }
        seeds = given.keys() & failed.keys()
        if seeds and sum(1 - given[seed] for seed in seeds) < sum(failed[seed] for seed in seeds):
            share = sum(given[seed] for seed in seeds) / len(seeds)
            return f"{one.name} gives a page to {share:.0%} of its tries before {_BEFORE[metric.spared]}"
    return ""


def median(values: Mapping[int, float]) -> float | None:
    """The median over seeds; None without any."""
    return statistics.median(values.values()) if values else None


def lost_attempts(records: Sequence[Record]) -> int:
    """How many attempts the infrastructure lost."""
    return sum(record.outcome == LOST for record in records)
