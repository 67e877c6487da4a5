# SPDX-License-Identifier: GPL-2.0-only
"""The exit status of a verb, derived from its outcome: here and nowhere else.

    0     fine
    1     nothing could be compared; a condition of --fail-on was met; a trial gave other bytes; too many
          false alarms; no commit was confirmed as the culprit; the doctor found a problem
    2     bad input
    3     the machine or the infrastructure failed
    130   interrupted

`testbed check` answers `git bisect run`: 0 good, 1 bad, 125 cannot tell; to a failure it adds 128, at
which git stops.
"""

from __future__ import annotations

from collections.abc import Iterable

from testbed.host.errors import GuestLost, HostError, TestbedError
from testbed.ledger.record import LOST, MEASURED, Record
from testbed.verbs.bisection import Bisected, Checked
from testbed.verbs.compare import Compared, ComparedMatrix, LeftOut
from testbed.verbs.doctor import Examined
from testbed.verbs.replay import Debugged, Repeated
from testbed.verbs.run import Ran
from testbed.verbs.selfcheck import Selfchecked

FINE, NOT_FINE = 0, 1
# Added to a failure of `testbed check`: below 128, git would take it for a verdict.
NO_VERDICT = 128

Outcome = (
    Ran
    | Compared
    | ComparedMatrix
    | LeftOut
    | Selfchecked
    | Repeated
    | Debugged
    | Bisected
    | Checked
    | Examined
)


def exit_status(outcome: Outcome) -> int:  # noqa: PLR0911  (one for each outcome)
    """The exit status of a verb that came to its end."""
    match outcome:
        case Ran(worst=int(worst)):
            return worst
        case Ran(records=records):
            lost = any(record.outcome == LOST for record in records)
            return GuestLost.exit_status if lost else _of_records(records)
        case Compared(report=report, result=result, met=met):
            if report.seeds:
                return NOT_FINE if met else FINE
            return max(NOT_FINE, _of_records(o.record for o in result.observations))
        case ComparedMatrix(cells=cells, worst=worst):
            return max(worst, *map(exit_status, cells.values()), FINE)
        case LeftOut():
            return HostError.exit_status
        case Selfchecked(report=report, worst=worst):
            judged = report.total.comparisons
            return max(NOT_FINE if report.alarm or not judged else FINE, worst)
        case Repeated(lost=True):
            # That says nothing about the bytes.
            return GuestLost.exit_status
        case Repeated(differences=differences):
            return NOT_FINE if differences else FINE
        case Debugged(same=fine) | Bisected(confirmed=fine) | Examined(fit=fine):
            return FINE if fine else NOT_FINE
        case Checked(verdict=verdict):
            return verdict


def exit_status_of_lines(outcomes: Iterable[Outcome]) -> int:
    """The exit status of comparisons on several kernel lines: the worst of those that could be had."""
    statuses = [exit_status(outcome) for outcome in outcomes if not isinstance(outcome, LeftOut)]
    return max(statuses, default=HostError.exit_status)


def failure_status(failure: TestbedError | OSError, *, for_git: bool = False) -> int:
    """The exit status of a verb that failed; `for_git`, one at which `git bisect run` stops."""
    status = failure.exit_status if isinstance(failure, TestbedError) else HostError.exit_status
    return NO_VERDICT + status if for_git else status


def _of_records(records: Iterable[Record]) -> int:
    """The exit status for trials of which the report can say nothing more."""
    outcomes = {record.outcome for record in records}
    if outcomes == {LOST}:
        return GuestLost.exit_status
    return FINE if MEASURED in outcomes else NOT_FINE
