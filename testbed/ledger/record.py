# SPDX-License-Identifier: GPL-2.0-only
"""What becomes of a trial: the row of the ledger, which the analysis reads. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MEASURED = "measured"
LOST = "lost"
# How a workload may fail.
FAILURES = ("failed", "flood", "hang", "oom", "panic")


@dataclass(frozen=True)
class Record:
    """What became of one attempt at one trial.

    `outcome` is `measured`, `lost` (infrastructure) or how the workload failed: `oom`, `panic`, `hang`,
    `flood`, `failed`. Memory is in bytes, stages in seconds of wall time; `started` is UTC, ISO 8601.
    """

    trial: str
    arm: str
    seed: int
    attempt: int
    outcome: str
    detail: str
    memory: Mapping[str, int]
    stages: Mapping[str, float]
    command_line: str
    started: str = field(default="")
    log_sha256: str = field(default="")

    @property
    def log_name(self) -> str:
        return f"{self.trial}.{self.attempt}.log.gz"


def final(records: Sequence[Record]) -> dict[str, Record]:
    """Per trial, the attempt that counts: the last that was not lost, else the last."""
    chosen: dict[str, Record] = {}
    for record in records:
        if record.outcome != LOST or chosen.get(record.trial, record).outcome == LOST:
            chosen[record.trial] = record
    return chosen
