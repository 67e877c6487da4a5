# SPDX-License-Identifier: GPL-2.0-only
"""What becomes of a trial: the row of the ledger, which the analysis reads. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from testbed.host.errors import BY_HAND, CONSOLE

MEASURED = "measured"
LOST = "lost"
FAILED = "failed"
# How a workload can fail, as `outcome:` has it, and what is said of a kernel where it does.
FAILURES = {
    "panic": "panics",
    "hang": "hangs",
    "oom": "runs out of memory",
    "flood": "floods the console",
    "failed": "the workload fails",
}
# Of what a failed trial said, a report has so much; `testbed log` has it all.
TOLD_LINES, TOLD_COLUMNS = 5, 200


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

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.trial):
            raise ValueError(f"trial: {self.trial!r:.80} is no name")
        if self.attempt < 1 or self.seed < 0:
            raise ValueError("attempt, seed: are not counted so")
        if self.outcome == MEASURED and not {"balloon", "total"} <= self.memory.keys():
            raise ValueError("memory: what was measured has a size")
        if not all(map(math.isfinite, self.stages.values())):
            raise ValueError("stages: are of some length")

    @property
    def reason(self) -> str:
        """Why it did not end well, in a line; empty if it did."""
        return self.detail.partition("\n")[0]

    @property
    def last_words(self) -> tuple[str, ...]:
        """The last lines of what else is known: of the program's output or, without any, the console."""
        more = "\n" + self.detail.partition("\n")[2]
        output, _, console = more.partition(f"\n  {BY_HAND}")[0].partition(f"\n  {CONSOLE}\n")
        lines = [line.strip() for line in (output if output.strip() else console).split("\n")]
        return tuple(line[:TOLD_COLUMNS] for line in lines if line)[-TOLD_LINES:]

    @property
    def log_name(self) -> str:
        return f"{self.trial}.{self.attempt}.log.gz"


def hopeless(records: Sequence[Record], arms: Collection[str], first_seed: int) -> bool:
    """Whether a program cannot work at all: the first seed has `failed` in every arm, and nothing measured.

    What the kernel did to it (`oom`, `panic`, `hang`, `flood`) is a finding, and may be another next time.
    """
    counting = final(records).values()
    failed = {record.arm for record in counting if record.seed == first_seed and record.outcome == FAILED}
    return set(arms) <= failed and all(record.outcome != MEASURED for record in counting)


def final(records: Sequence[Record]) -> dict[str, Record]:
    """Per trial, the attempt that counts: the last that was not lost, else the last."""
    chosen: dict[str, Record] = {}
    for record in records:
        if record.outcome != LOST or chosen.get(record.trial, record).outcome == LOST:
            chosen[record.trial] = record
    return chosen
