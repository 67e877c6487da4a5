# SPDX-License-Identifier: GPL-2.0-only
"""The result as one JSON document, from which every other form is made. Pure.

    arms.ARM.metrics.NAME = {
        "title", "unit", "better", "kind", "level", "of_failures", "values": {SEED: value}, "median",
        "phases": {PHASE: {SEED: value}}
    }
    verdicts.ARM.primary.NAME = the fields of analysis.verdict.Decision; so is verdicts.ARM.exploratory

`values` has every seed that the arm has measured; `median` is over `seeds`, those of all arms. With
`of_failures`, both are over all trials, those whose workload failed as well.

Names and units are those of the registry in analysis/metrics.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from testbed.analysis.compare import Arm, Comparison, Observation, compare, lost_attempts, median
from testbed.analysis.metrics import METRICS
from testbed.ledger.plan import Plan
from testbed.ledger.record import Record

if TYPE_CHECKING:
    # Slow: with it comes scipy.
    from testbed.analysis.verdict import Judgement

SCHEMA = 2
# A trial has up to some hundred misses; the report shows the first.
TRACE_LINES = 10


def document(
    plan: Plan,
    comparison: Comparison,
    observations: Sequence[Observation],
    attempts: Sequence[Record],
    verdicts: Mapping[str, Judgement],
) -> Any:
    """The document of a plan's trials that have ended; `attempts` has all records, lost ones too."""
    experiment = plan.experiment
    workload = experiment.workload.name
    return {
        "schema": SCHEMA,
        "name": experiment.name,
        "description": experiment.description,
        "experiment": experiment.model_dump(mode="json"),
        "seeds": list(comparison.seeds),
        "arms": {
            name: _arm(arm, comparison.seeds, workload, list(experiment.phases))
            for name, arm in comparison.arms.items()
        },
        "alpha": experiment.alpha,
        "sequential": experiment.looks,
        "verdicts": {arm: _judgement(judgement) for arm, judgement in verdicts.items()},
        "trials": {"planned": len(plan.trials), "ended": len(observations)},
        "lost_attempts": lost_attempts(attempts),
        "excluded": [asdict(exclusion) for exclusion in comparison.excluded],
        "wall_seconds": _stages(comparison, observations),
        "guest_seconds": _guest_seconds(observations),
        "provenance": {
            **plan.provenance.model_dump(mode="json"),
            "logs": {f"{o.record.arm} seed {o.record.seed}": o.record.log_sha256 for o in observations},
            "command_lines": {o.record.arm: o.record.command_line for o in observations},
            "started": min((o.record.started for o in observations), default=None),
        },
    }


def compared(plan: Plan, observations: Sequence[Observation]) -> Comparison:
    """The arms of a plan, side by side."""
    return compare(list(plan.experiment.arms), observations)


def _judgement(judgement: Judgement) -> dict[str, Any]:
    return {
        "decided": judgement.decided,
        "more_pairs": judgement.more_pairs,
        "primary": {name: asdict(decision) for name, decision in judgement.primaries.items()},
        "exploratory": {name: asdict(decision) for name, decision in judgement.exploratory.items()},
    }


def _arm(arm: Arm, seeds: Sequence[int], workload: str, phases: Sequence[str]) -> dict[str, Any]:
    return {
        "outcomes": dict(arm.outcomes),
        "memory_bytes": {str(seed): size for seed, size in arm.memory.items()},
        "metrics": {
            metric.name: {
                "title": metric.title_of(workload),
                "unit": metric.unit,
                "better": metric.better,
                "kind": metric.kind,
                "level": metric.level,
                "of_failures": metric.of_failures,
                "phases": {
                    phases[int(number)]: {str(seed): value for seed, value in values.items()}
                    for number, values in arm.phases.get(metric.name, {}).items()
                    if int(number) < len(phases)
                },
                "values": {str(seed): value for seed, value in arm.values[metric.name].items()},
                "median": median(
                    {s: v for s, v in arm.values[metric.name].items() if s in seeds or metric.of_failures}
                ),
            }
            for metric in METRICS
            if arm.values[metric.name]
        },
        "trace": {
            "count": len(arm.misses),
            "first": [str(miss) for miss in arm.misses[:TRACE_LINES]],
        },
    }


def _guest_seconds(observations: Sequence[Observation]) -> float | None:
    """Seconds that a workload took by the guest's clock, with the filling of memory, on average."""
    known = [o.measurement.guest_seconds for o in observations if o.measurement.guest_seconds is not None]
    return round(sum(known) / len(known), 3) if known else None


def _stages(comparison: Comparison, observations: Sequence[Observation]) -> dict[str, float]:
    """Seconds that each stage of a trial took, on average."""
    totals: dict[str, list[float]] = {}
    for o in observations:
        if o.record.seed in comparison.seeds:
            for stage, seconds in o.record.stages.items():
                totals.setdefault(stage, []).append(seconds)
    return {stage: round(sum(values) / len(values), 2) for stage, values in totals.items()}
