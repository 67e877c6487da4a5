# SPDX-License-Identifier: GPL-2.0-only
"""`testbed selfcheck`: comparisons that have nothing to find, and how often something is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.experiment.selfcheck import comparisons
from testbed.host.errors import SpecError
from testbed.trials.lab import Lab, Watch
from testbed.verbs import reports, results
from testbed.verbs.request import RunRequest
from testbed.verbs.run import execute, worst

if TYPE_CHECKING:
    # Slow: with it comes scipy.
    from testbed.report.selfcheck import SelfcheckReport


@dataclass(frozen=True)
class SelfcheckRequest:
    """So many comparisons, of an experiment's first arm with what only looks different."""

    run: RunRequest
    comparisons: int


@dataclass(frozen=True)
class Selfchecked:
    """What the comparisons said; `worst` is the worst exit status with which one could not run."""

    directory: Path
    report: SelfcheckReport
    worst: int

    def write(self, warn: Callable[[str], None]) -> None:
        """Write the report and its picture into the directory."""
        reports.write_selfcheck(self.directory, self.report, warn)


def selfcheck(request: SelfcheckRequest, lab: Lab, watch: Watch) -> Selfchecked:
    """Run what is missing of the comparisons and count the false alarms; raises as run() does."""
    experiment = request.run.experiment
    (cell, *_) = experiment.cells()
    if cell.at:
        raise SpecError(f"{experiment.file}: `matrix`: a check of the tool has none")
    with experiment.named():
        cells = comparisons(cell.experiment, request.comparisons)
    home = execute(request.run, cells, lab, watch).directory
    return Selfchecked(home, results.selfcheck(home), worst(home))
