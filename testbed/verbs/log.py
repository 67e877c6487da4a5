# SPDX-License-Identifier: GPL-2.0-only
"""`testbed log`: what a trial's program printed, or its whole console log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from testbed.analysis.parse import has_begun, parse
from testbed.host.errors import SpecError
from testbed.ledger.ledger import Ledger
from testbed.ledger.record import Record, final


@dataclass(frozen=True)
class LogRequest:
    """A trial of a stored result, an id or ARM:SEED; the whole `console` rather than the program's output."""

    result: Path
    trial: str
    console: bool = False


def log(request: LogRequest) -> str:
    """The text. Raises SpecError when there is no such trial or no output in its log, StoreError."""
    with Ledger.open(request.result) as ledger:
        planned = ledger.plan().trials
        record = _chosen([r for r in final(ledger.records()).values() if r.trial in planned], request)
        raw = ledger.log(record)
    if request.console:
        return raw.decode("utf-8", "replace")
    output = parse(raw).output
    if not output and not has_begun(raw, "output"):
        raise SpecError(
            f"{request.result}: {request.trial} ended with `{record.outcome}` before its output was sent",
            "`--console` prints all that came",
        )
    return output


def _chosen(records: list[Record], request: LogRequest) -> Record:
    for record in records:
        if request.trial in (record.trial, f"{record.arm}:{record.seed}"):
            return record
    known = ", ".join(f"{record.arm}:{record.seed}" for record in records[:6])
    more = " ..." if len(records) > 6 else ""
    raise SpecError(f"{request.result}: there is no trial `{request.trial}`: {known or 'none has run'}{more}")
