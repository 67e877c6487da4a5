# SPDX-License-Identifier: GPL-2.0-only
"""`testbed compare` and `testbed report`: arms side by side, and whether a condition of a gate is met."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from testbed.analysis.own import with_own
from testbed.analysis.parse import Measurement
from testbed.experiment import Experiment
from testbed.host.errors import HostError, SpecError
from testbed.kernel import series
from testbed.ledger import matrix
from testbed.ledger.ledger import LEDGER
from testbed.report import gate
from testbed.report.document import ComparisonReport
from testbed.report.gate import Condition
from testbed.report.matrix import MatrixReport
from testbed.trials.lab import Lab, Watch
from testbed.verbs import reports, results
from testbed.verbs.request import RunRequest
from testbed.verbs.results import Result
from testbed.verbs.run import execute, worst


@dataclass(frozen=True)
class CompareRequest:
    """An experiment to be run and compared; a comparison fails if one of the conditions is met."""

    run: RunRequest
    fail_on: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class StoredRequest:
    """One arm of each of two stored results, RESULT or RESULT:ARM, to be compared."""

    before: Path
    after: Path
    fail_on: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class ReportRequest:
    """A stored result to be reported on."""

    result: Path
    fail_on: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Compared:
    """A comparison: its report, and a line for every condition of the gate that is met.

    `directory` is None for what is stored nowhere.
    """

    result: Result
    report: ComparisonReport
    met: tuple[str, ...]
    directory: Path | None = None

    def write(self, warn: Callable[[str], None]) -> None:
        """Write the report in all its forms into its directory. It takes seconds to draw the pictures."""
        assert self.directory
        reports.write(self.directory, self.result, self.report, warn)


@dataclass(frozen=True)
class ComparedMatrix:
    """A comparison per cell of a matrix; `worst` is the worst exit status with which a cell could not run."""

    directory: Path
    report: MatrixReport
    cells: Mapping[str, Compared]
    worst: int

    def write(self, warn: Callable[[str], None]) -> None:
        """Write the table and its heat maps into the matrix's directory."""
        reports.write_matrix(self.directory, self.report, warn)

    @property
    def met(self) -> tuple[str, ...]:
        """A line for every condition of the gate that is met in a cell."""
        return tuple(f"{name}: {line}" for name, cell in self.cells.items() for line in cell.met)


@dataclass(frozen=True)
class LeftOut:
    """A kernel line that cannot be had here, and why."""

    line: str
    reason: str


def condition(text: str) -> Condition:
    """Read a condition of --fail-on. Raises SpecError."""
    with _of_gate():
        return gate.condition(text)


def refuse_unknown(fail_on: Sequence[Condition], experiment: Experiment) -> None:
    """Raise SpecError for a condition on what is no metric of the experiment."""
    with _of_gate():
        gate.require(fail_on, [metric.name for metric in with_own(experiment.metrics)])


@contextlib.contextmanager
def _of_gate() -> Iterator[None]:
    try:
        yield
    except ValueError as bad:
        raise SpecError(f"--fail-on: {bad}") from bad


def compare(request: CompareRequest, lab: Lab, watch: Watch) -> Compared | ComparedMatrix:
    """Run what is missing of an experiment and put its arms side by side; raises as run() does."""
    cells = request.run.experiment.cells()
    first = cells[0].experiment
    refuse_unknown(request.fail_on, first)
    _refuse_idle_gate(request.fail_on, judged=bool(first.primary) and len(first.arms) > 1)
    done = execute(request.run, cells, lab, watch)
    return report(ReportRequest(done.directory, request.fail_on), done.measurements)


def compare_lines(
    request: CompareRequest, lab: Lab, watch: Watch
) -> Iterator[Compared | ComparedMatrix | LeftOut]:
    """Compare on every kernel line of patches/, one after the other, but those that cannot be had here."""
    if request.run.results:
        raise SpecError("--results is one directory; with --line all there is one a line, results/NAME-LINE")
    for line in series.lines():
        experiment = replace(request.run.experiment, line=line.directory)
        try:
            yield compare(replace(request, run=replace(request.run, experiment=experiment)), lab, watch)
        except HostError as lacking:
            yield LeftOut(line.directory, lacking.message)


def are_stored(words: Sequence[str]) -> bool:
    """Whether these words are stored results, RESULT or RESULT:ARM. Raises SpecError if they are not two."""
    if not any(results.is_result(word) for word in words):
        return False
    if len(words) != 2:
        raise SpecError(f"compare {' '.join(words)}: takes two results", "`testbed report` shows one")
    return True


def compare_stored(request: StoredRequest) -> Compared:
    """Compare an arm of one stored result with an arm of another. Raises SpecError, StoreError."""
    return _compared(results.joined([request.before, request.after]), request.fail_on)


def report(
    request: ReportRequest, measurements: Mapping[str, Measurement] = MappingProxyType({})
) -> Compared | ComparedMatrix:
    """Report on a stored result, or on a matrix of them. Raises SpecError, StoreError.

    Logs are parsed of trials that are not among `measurements`.
    """

    def reported(directory: Path) -> Compared:
        compared = _compared(results.load(directory, measurements), request.fail_on)
        return replace(compared, directory=directory)

    if not results.is_matrix(request.result):
        return reported(request.result)
    _, ran = matrix.load(request.result)
    cells = {cell.name: reported(cell.result) for cell in ran if (cell.result / LEDGER).exists()}
    document = results.matrix_report(request.result, {name: cell.report for name, cell in cells.items()})
    return ComparedMatrix(request.result, document, cells, worst(request.result))


def _compared(result: Result, fail_on: Sequence[Condition]) -> Compared:
    refuse_unknown(fail_on, result.plan.experiment)
    document = results.report(result)
    if document.seeds:
        _refuse_idle_gate(fail_on, judged=bool(document.verdicts))
    return Compared(result, document, tuple(gate.failures(document, fail_on)))


def _refuse_idle_gate(fail_on: Sequence[Condition], judged: bool) -> None:
    if fail_on and not judged:
        raise SpecError("--fail-on: nothing is judged here: it takes a primary metric and a second arm")
