# SPDX-License-Identifier: GPL-2.0-only
"""The report of a comparison: a model, which is its JSON, and from which every other form is made. Pure.

Names and units of metrics are those of the registry in analysis/metrics.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from testbed.analysis import decision
from testbed.analysis.compare import Arm as ComparedArm
from testbed.analysis.compare import Comparison, Exclusion, Observation, compare, lost_attempts, median
from testbed.analysis.decision import Decision
from testbed.analysis.lacking import lacking
from testbed.analysis.metrics import Better, Kind, Level
from testbed.analysis.oom import Kill
from testbed.analysis.own import with_own
from testbed.experiment import Experiment, Model
from testbed.ledger import plan as ledger
from testbed.ledger.document import Document, Number
from testbed.ledger.plan import Plan
from testbed.ledger.record import Record
from testbed.report.remarks import Remark, remarks

# A trial has up to some hundred that failed at first; the report shows the first.
TRACE_LINES = 10

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# JSON has text for keys.
Seed = Annotated[str, Field(pattern="^[0-9]+$")]
PerSeed = Annotated[
    dict[Seed, Number],
    # pydantic leaves open what other keys there may be.
    Field(json_schema_extra={"additionalProperties": False}),
]


class Metric(Model):
    """A metric of an arm."""

    title: str
    unit: str
    better: Better
    kind: Kind
    level: Level
    of_failures: bool
    """Whether trials whose workload failed have a value, too."""
    phases: dict[str, PerSeed]
    values: PerSeed
    """Of every seed that the arm has measured."""
    median: Number | None
    """Over the seeds of the comparison; over all trials, with `of_failures`."""


class Trace(Model):
    """Requests that failed at first after their direct reclaim, as lines of the 2010 mail's trace."""

    count: Count
    first: tuple[str, ...]


class Arm(Model):
    """What was measured of one arm."""

    outcomes: dict[str, Count]
    kills: dict[Seed, tuple[Kill, ...]]
    """What the OOM killer took, of every trial that was not lost and in which it took something."""
    memory_bytes: PerSeed
    metrics: dict[str, Metric]
    trace: Trace


class Judgement(Model):
    """The verdicts on an arm, against the first one."""

    decided: bool
    more_pairs: Count | None
    primary: dict[str, Decision]
    exploratory: dict[str, Decision]


class Part(Model):
    """What a function executes itself: the fields are those of analysis.parts.Change."""

    name: str
    before: Number
    after: Number
    low: Number | None
    high: Number | None
    p: Number | None
    calls_before: Number
    calls_after: Number
    certain: bool

    @property
    def difference(self) -> float:
        return self.after - self.before


class Call(Model):
    """Something that is called, with all that it calls, in instructions for an operation."""

    name: str
    before: Number
    after: Number
    callees: tuple[Call, ...]


class Why(Model):
    """An arm against the first one: `functions`, certain and largest ones, and `others` add up to `whole`."""

    pairs: int
    """Of seeds."""
    unit: Literal["operation", "trial"]
    """What instructions are counted for."""
    whole: Part
    functions: tuple[Part, ...]
    others: Part | None
    calls: Call


class Trials(Model):
    """How many there are."""

    planned: Count
    ended: Count


class Provenance(ledger.Provenance):
    """Where the numbers come from."""

    logs: dict[str, str]
    command_lines: dict[str, str]
    started: str | None


@dataclass(frozen=True)
class MetricDecision:
    """What was decided on one metric of one arm; `before` and `after` are the medians, if there are some."""

    arm: str
    metric: str
    title: str
    decision: Decision
    unit: str = ""
    before: float | None = None
    after: float | None = None


class ComparisonReport(Document):
    """`report.json` of a comparison."""

    version: Literal[2] = Field(alias="schema")
    name: str
    description: str
    experiment: Experiment
    """As in the file, with all defaults; sizes are in bytes."""
    seeds: tuple[int, ...]
    """Those that every arm has measured."""
    arms: dict[str, Arm]
    """In the order of the experiment: the first is what the others are compared with."""
    remarks: tuple[Remark, ...]
    """What a reader has to know before any verdict."""
    alpha: Share
    sequential: bool
    """Whether seeds were added until all was decided."""
    verdicts: dict[str, Judgement]
    trials: Trials
    lost_attempts: Count
    excluded: tuple[Exclusion, ...]
    lacking: tuple[str, ...]
    """What programs said that their guests have not got, and what brings it."""
    wall_seconds: dict[str, float]
    """Seconds that each stage of a trial took, on average."""
    guest_seconds: float | None
    """Seconds that a workload took by the guest's clock, with the filling of memory, on average."""
    provenance: Provenance
    why: dict[str, Why] = Field(default_factory=dict, exclude_if=lambda whys: not whys)
    """What an arm differs in from the first, if that was asked for."""

    def title(self, metric: str) -> str:
        """The title of a metric, if any arm has it; else its name."""
        titles = (arm.metrics[metric].title for arm in self.arms.values() if metric in arm.metrics)
        return next(titles, metric)

    def decisions(self, *kinds: Literal["primary", "exploratory"]) -> Iterator[MetricDecision]:
        """What was decided on metrics of these kinds: by arm, of each the kinds in that order."""
        for arm, judgement in self.verdicts.items():
            for kind in kinds:
                named = judgement.primary if kind == "primary" else judgement.exploratory
                for metric, decided in named.items():
                    yield self._decision(arm, metric, decided)

    def _decision(self, arm: str, metric: str, decided: Decision) -> MetricDecision:
        before, after = (self.arms[name].metrics.get(metric) for name in (next(iter(self.arms)), arm))
        return MetricDecision(
            arm,
            metric,
            self.title(metric),
            decided,
            unit=after.unit if after else "",
            before=before.median if before else None,
            after=after.median if after else None,
        )


def document(
    plan: Plan,
    comparison: Comparison,
    observations: Sequence[Observation],
    attempts: Sequence[Record],
    verdicts: Mapping[str, decision.Judgement],
) -> ComparisonReport:
    """The report of a plan's trials that have ended; `attempts` has all records, lost ones too."""
    experiment = plan.experiment
    workload, phases = experiment.workload.name, list(experiment.phases)
    return ComparisonReport(
        schema=2,
        name=experiment.name,
        description=experiment.description,
        experiment=experiment,
        seeds=comparison.seeds,
        arms={name: _arm(arm, comparison, workload, phases) for name, arm in comparison.arms.items()},
        remarks=tuple(remarks(plan, comparison.arms)),
        alpha=experiment.alpha,
        sequential=experiment.looks,
        verdicts={arm: _judgement(judgement) for arm, judgement in verdicts.items()},
        trials=Trials(planned=len(plan.trials), ended=len(observations)),
        lost_attempts=lost_attempts(attempts),
        excluded=comparison.excluded,
        lacking=tuple(dict.fromkeys(line for o in observations for line in lacking(o.measurement.output))),
        wall_seconds=_stages(comparison, observations),
        guest_seconds=_guest_seconds(observations),
        provenance=Provenance(
            **dict(plan.provenance),
            logs={f"{o.record.arm} seed {o.record.seed}": o.record.log_sha256 for o in observations},
            command_lines={o.record.arm: o.record.command_line for o in observations},
            started=min((o.record.started for o in observations), default=None),
        ),
    )


def compared(plan: Plan, observations: Sequence[Observation]) -> Comparison:
    """The arms of a plan, side by side."""
    return compare(list(plan.experiment.arms), observations, with_own(plan.experiment.metrics))


def _judgement(judgement: decision.Judgement) -> Judgement:
    return Judgement(
        decided=judgement.decided,
        more_pairs=judgement.more_pairs,
        primary=dict(judgement.primaries),
        exploratory=dict(judgement.exploratory),
    )


def _arm(arm: ComparedArm, comparison: Comparison, workload: str, phases: Sequence[str]) -> Arm:
    metrics = {
        metric.name: Metric(
            title=metric.title_of(workload),
            unit=metric.unit,
            better=metric.better,
            kind=metric.kind,
            level=metric.level,
            of_failures=metric.of_failures,
            phases={
                phases[int(number)]: by_seed(values)
                for number, values in arm.phases.get(metric.name, {}).items()
                if int(number) < len(phases)
            },
            values=by_seed(arm.values[metric.name]),
            median=median(
                {
                    seed: value
                    for seed, value in arm.values[metric.name].items()
                    if seed in comparison.seeds or metric.of_failures
                }
            ),
        )
        for metric in comparison.metrics
        if arm.values[metric.name]
    }
    return Arm(
        outcomes=dict(arm.outcomes),
        kills={str(seed): kills for seed, kills in arm.kills.items()},
        memory_bytes=by_seed(arm.memory),
        metrics=metrics,
        trace=Trace(count=len(arm.misses), first=tuple(str(miss) for miss in arm.misses[:TRACE_LINES])),
    )


def by_seed(values: Mapping[int, float]) -> dict[str, int | float]:
    """Values as JSON has them."""
    return {str(seed): value for seed, value in values.items()}


def _guest_seconds(observations: Sequence[Observation]) -> float | None:
    known = [o.measurement.guest_seconds for o in observations if o.measurement.guest_seconds is not None]
    return round(sum(known) / len(known), 3) if known else None


def _stages(comparison: Comparison, observations: Sequence[Observation]) -> dict[str, float]:
    totals: dict[str, list[float]] = {}
    for o in observations:
        if o.record.seed in comparison.seeds:
            for stage, seconds in o.record.stages.items():
                totals.setdefault(stage, []).append(seconds)
    return {stage: round(sum(values) / len(values), 2) for stage, values in totals.items()}
