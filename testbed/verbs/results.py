# SPDX-License-Identifier: GPL-2.0-only
"""Results on disk: read, judged, put beside each other. Runs nothing and writes nothing."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from testbed.analysis.compare import Comparison, Observation
from testbed.analysis.likeness import unlike
from testbed.analysis.own import with_own
from testbed.analysis.parse import Measurement, parse
from testbed.experiment import ALPHA, LEAST_SEEDS
from testbed.host.errors import SpecError, StoreError
from testbed.ledger import matrix as index
from testbed.ledger.ledger import LEDGER, MATRIX, Ledger
from testbed.ledger.plan import Plan, PlannedTrial
from testbed.ledger.record import Record, final
from testbed.report import matrix
from testbed.report.document import ComparisonReport, compared, document
from testbed.report.matrix import MatrixReport

if TYPE_CHECKING:
    # What needs scipy or matplotlib takes long to import: where it is used, and no earlier.

    from testbed.analysis.decision import Decision, Judgement
    from testbed.analysis.history import Point
    from testbed.report.selfcheck import SelfcheckReport


@dataclass(frozen=True)
class Result:
    """A plan, the trials of it that have ended, and the records of all their attempts."""

    plan: Plan
    observations: tuple[Observation, ...]
    records: tuple[Record, ...]

    @functools.cached_property
    def comparison(self) -> Comparison:
        """Its arms, side by side."""
        return compared(self.plan, self.observations)


def load(directory: Path, measurements: Mapping[str, Measurement] = MappingProxyType({})) -> Result:
    """The result in a directory. Raises SpecError when there is none, StoreError when it is damaged.

    Logs are parsed of trials that are not among `measurements`.
    """
    with Ledger.open(directory) as ledger:
        return read(ledger, measurements)


def read(ledger: Ledger, measurements: Mapping[str, Measurement] = MappingProxyType({})) -> Result:
    """What a ledger has of its last plan; logs are parsed of trials that are not among `measurements`."""
    plan = ledger.plan()
    known = {metric.name for metric in with_own(plan.experiment.metrics)}
    if strange := plan.experiment.primary.keys() - known:
        raise StoreError(
            f"{ledger.directory / LEDGER}: its plan cannot be used: there is no metric {min(strange)}"
        )
    records = [record for record in ledger.records() if record.trial in plan.trials]
    for record in records:
        if PlannedTrial(arm=record.arm, seed=record.seed) != plan.trials[record.trial]:
            raise StoreError(
                f"{ledger.directory / LEDGER}: the record of trial {record.trial} is not what was planned"
            )
    return Result(plan, tuple(_observed(ledger, records, measurements)), tuple(records))


def _observed(
    ledger: Ledger, records: Sequence[Record], measurements: Mapping[str, Measurement]
) -> list[Observation]:
    """What the logs say of the attempts that count. Raises StoreError that names those without their log."""
    observations, failures = [], dict[str, StoreError]()
    for record in final(records).values():
        try:
            measurement = measurements.get(record.trial) or parse(ledger.log(record))
            observations.append(Observation(record, measurement))
        except StoreError as bad:
            failures[f"{record.arm}:{record.seed}"] = bad
    if failures:
        first, count = next(iter(failures.values())), len(failures)
        trials = f"{', '.join(list(failures)[:6])}{' ...' if count > 6 else ''}"
        raise StoreError(
            first.message + (f"; and {count - 1} more logs" if count > 1 else ""),
            f"without a log of {trials} there is no report; the command that made this result, given once "
            "more, runs what has none again",
        ) from first
    return observations


def without_log(ledger: Ledger, trials: Collection[str]) -> set[str]:
    """Those of some trials whose log is gone, or is not what was recorded."""
    damaged = set()
    for record in ledger.settled().values():
        if record.trial in trials:
            try:
                ledger.log(record)
            except StoreError:
                damaged.add(record.trial)
    return damaged


def is_result(word: str) -> bool:
    """Whether a word names a stored result, RESULT or RESULT:ARM."""
    directories = [Path(path) for path in (word, word.rpartition(":")[0]) if path]
    return any((directory / name).exists() for directory in directories for name in (LEDGER, MATRIX))


def is_matrix(directory: Path) -> bool:
    """Whether a directory has a result per cell."""
    return (directory / MATRIX).exists()


# --- verdicts ------------------------------------------------------------------------------------


def judgements(result: Result, full: bool = True) -> dict[str, Judgement]:
    """Arm -> the verdicts on it; none without a primary metric. `full` is as in analysis.verdict.judge()."""
    experiment = result.plan.experiment
    if not experiment.primary:
        return {}
    from testbed.analysis import judge  # noqa: PLC0415

    return judge.judgements(
        result.comparison,
        {name: primary.margin for name, primary in experiment.primary.items()},
        alpha=experiment.alpha,
        sequential=experiment.looks,
        full=full,
    )


def decided(result: Result) -> bool:
    """Whether every primary metric of every arm is decided."""
    return all(judgement.decided for judgement in judgements(result, full=False).values())


def metrics_without_values(result: Result) -> list[str]:
    """The primary metrics of which no trial has a value."""
    arms = result.comparison.arms.values()
    return [name for name in result.plan.experiment.primary if not any(arm.values[name] for arm in arms)]


def report(result: Result, full: bool = True) -> ComparisonReport:
    """The report of a result. `full` is as in analysis.verdict.judge()."""
    verdicts = judgements(result, full)
    return document(result.plan, result.comparison, result.observations, result.records, verdicts)


# --- two results, and many -----------------------------------------------------------------------


def result_and_arm(path: Path) -> tuple[Path, str | None]:
    """RESULT or RESULT:ARM, taken apart."""
    if not path.exists() and ":" in path.name:
        name, _, arm = path.name.rpartition(":")
        return path.parent / name, arm
    return path, None


def arm_of(path: Path, plan: Plan) -> str:
    """Which arm RESULT or RESULT:ARM means in its plan: the first, if none is named. Raises SpecError."""
    directory, wanted = result_and_arm(path)
    arms = list(plan.experiment.arms)
    if wanted is not None and wanted not in arms:
        raise SpecError(f"{directory}: there is no arm `{wanted}`: {', '.join(arms)}")
    return arms[0] if wanted is None else wanted


def _one_arm(path: Path) -> tuple[str, Result]:
    result = load(result_and_arm(path)[0])
    return arm_of(path, result.plan), result


def joined(paths: Sequence[Path]) -> Result:
    """One arm of each of two results as the arms of one comparison.

    Raises SpecError, naming what differs, unless they were measured alike; and for an arm with itself.
    """
    (arm, first), (other_arm, second) = (_one_arm(path) for path in paths)
    directories = {result_and_arm(path)[0].resolve() for path in paths}
    if len(directories) == 1 and arm == other_arm:
        raise SpecError(f"{paths[0]} and {paths[1]} are the same arm of the same result")
    if differences := list(unlike(first.plan, second.plan)):
        raise SpecError(f"{paths[0]} and {paths[1]} were not measured alike: {'; '.join(differences)}")
    # Names of files need not be UTF-8; documents are.
    names = [str(path).encode(errors="backslashreplace").decode() for path in paths]
    sides = list(zip(names, (first.plan, second.plan), (arm, other_arm), strict=True))
    experiment = first.plan.experiment.model_copy(
        update={
            "name": " and ".join(names),
            "arms": {name: plan.experiment.arms[own] for name, plan, own in sides},
            # Nobody looked while they ran.
            "sequential": False,
        }
    )
    kernels = {name: plan.provenance.kernels[own] for name, plan, own in sides}
    provenance = first.plan.provenance.model_copy(update={"kernels": kernels})
    observations = tuple(
        replace(o, record=replace(o.record, arm=name))
        for name, result, own in zip(names, (first, second), (arm, other_arm), strict=True)
        for o in result.observations
        if o.record.arm == own
    )
    records = tuple(o.record for o in observations)
    trials = {record.trial: PlannedTrial(arm=record.arm, seed=record.seed) for record in records}
    plan = first.plan.model_copy(
        update={"experiment": experiment, "trials": trials, "provenance": provenance}
    )
    return Result(plan, observations, records)


@dataclass(frozen=True)
class History:
    """One metric over results: what each kernel has, and what changed from each to the next."""

    metric: str
    title: str
    unit: str
    points: Sequence[Point]
    decisions: Sequence[Decision]


def history(paths: Sequence[Path], metric: str, alpha: float, margin: float) -> History:
    """The history of a metric, in the order of the results. Raises SpecError for unlike ones."""
    from testbed.analysis.history import Point, changes  # noqa: PLC0415

    found = [_one_arm(path) for path in paths]
    for path, (_, result) in zip(paths[1:], found[1:], strict=True):
        if differences := list(unlike(found[0][1].plan, result.plan)):
            raise SpecError(f"{paths[0]} and {path} were not measured alike: {'; '.join(differences)}")
    known = next((m for m in found[0][1].comparison.metrics if m.name == metric), None)
    if known is None:
        raise SpecError(f"there is no metric `{metric}`; `testbed metrics` lists them")
    for path, (_, result) in zip(paths, found, strict=True):
        if result.plan.experiment.metrics.get(metric) != found[0][1].plan.experiment.metrics.get(metric):
            raise SpecError(f"{paths[0]} and {path} do not declare the same metric `{metric}`")
    points = [
        Point(
            f"{result.plan.provenance.kernels[arm].release} {arm}",
            result.comparison.arms[arm].values[metric],
        )
        for arm, result in found
    ]
    if not any(point.values for point in points):
        raise SpecError(f"none of these results has the metric `{metric}`")
    return History(
        metric, known.title, known.unit, points, changes(points, known, alpha=alpha, margin=margin)
    )


# --- comparisons without anything to find --------------------------------------------------------


def selfcheck(home: Path) -> SelfcheckReport:
    """The report of how often the comparisons beneath a directory found what is not there."""
    from testbed.analysis.selfcheck import check, outcome  # noqa: PLC0415
    from testbed.report.selfcheck import document as selfcheck_report  # noqa: PLC0415

    name, ran = index.load(home)
    outcomes, alpha, pairs, titles = [], ALPHA, 0, {}
    for cell in ran:
        if not (cell.result / LEDGER).exists():
            continue
        result = load(cell.result)
        experiment = result.plan.experiment
        alpha = experiment.alpha
        titles = {
            m.name: m.title_of(experiment.workload.name)
            for m in result.comparison.metrics
            if m.name in experiment.primary
        }
        # Whatever is decided, and when: so many seeds there are.
        pairs = LEAST_SEEDS if experiment.looks else experiment.seeds
        seeds = range(experiment.first_seed, experiment.first_seed + pairs)
        for judgement in judgements(result, full=False).values():
            kind = str(cell.at.get("kind"))
            outcomes.append(outcome(cell.name, kind, result.comparison, judgement, seeds))
    failures = {cell.name: cell.failure for cell in ran if cell.failure}
    return selfcheck_report(
        name, check(outcomes, alpha), outcomes, failures=failures, pairs=pairs, titles=titles
    )


# --- a matrix ------------------------------------------------------------------------------------


def matrix_report(home: Path, reports: Mapping[str, ComparisonReport]) -> MatrixReport:
    """The report of a matrix, made of those of its cells that have a result, by name."""
    name, ran = index.load(home)
    outcomes = [matrix.Outcome(cell.at, cell.name, reports.get(cell.name), cell.failure) for cell in ran]
    return matrix.document(name, outcomes)
