# SPDX-License-Identifier: GPL-2.0-only
"""The result as one JSON document, from which every other form is made. Pure.

    arms.ARM.metrics.NAME = {"unit", "better", "of_failures", "values": {SEED: value}, "median"}

`values` has every seed that the arm has measured; `median` is over `seeds`, those of all arms. With
`of_failures`, both are over all trials, those whose workload failed as well.

Names and units are those of the registry in analysis/metrics.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from testbed.analysis.compare import Arm, Comparison, Observation, compare, lost_attempts, median
from testbed.analysis.metrics import METRICS
from testbed.record import Record

SCHEMA = 1
# A trial has up to some hundred misses; the report shows the first.
TRACE_LINES = 10


def document(plan: Mapping[str, Any], observations: Sequence[Observation], attempts: Sequence[Record]) -> Any:
    """The document of a plan's trials that have ended; `attempts` has all records, lost ones too."""
    experiment = plan["experiment"]
    comparison = compare(list(experiment["arms"]), observations)
    return {
        "schema": SCHEMA,
        "name": experiment["name"],
        "description": experiment["description"],
        "experiment": experiment,
        "seeds": list(comparison.seeds),
        "arms": {name: _arm(arm, comparison.seeds) for name, arm in comparison.arms.items()},
        "trials": {"planned": len(plan["trials"]), "ended": len(observations)},
        "lost_attempts": lost_attempts(attempts),
        "excluded": [asdict(exclusion) for exclusion in comparison.excluded],
        "wall_seconds": _stages(comparison, observations),
        "guest_seconds": _guest_seconds(observations),
        "provenance": {
            **plan["provenance"],
            "logs": {f"{o.record.arm} seed {o.record.seed}": o.record.log_sha256 for o in observations},
            "command_lines": {o.record.arm: o.record.command_line for o in observations},
            "started": min((o.record.started for o in observations), default=None),
        },
    }


def _arm(arm: Arm, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "outcomes": dict(arm.outcomes),
        "memory_bytes": {str(seed): size for seed, size in arm.memory.items()},
        "metrics": {
            metric.name: {
                "title": metric.title,
                "unit": metric.unit,
                "better": metric.better,
                "of_failures": metric.of_failures,
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
    """Seconds from a workload's start to its end by the guest's clock, on average."""
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
