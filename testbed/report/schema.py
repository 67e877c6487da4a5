# SPDX-License-Identifier: GPL-2.0-only
"""The JSON Schema of the documents that testbed writes, for whoever reads them. Pure; slow to import (scipy).

Each has a version, `schema`: with it what is here may change, and without it nothing that is here goes away.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from testbed.analysis.compare import Exclusion
from testbed.analysis.metrics import Better, Kind, Level
from testbed.analysis.statistics import Test
from testbed.analysis.verdict import Decision, Verdict

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# JSON has text for keys.
PerSeed = Annotated[
    dict[Annotated[str, Field(pattern="^[0-9]+$")], float],
    # pydantic leaves open what other keys there may be.
    Field(json_schema_extra={"additionalProperties": False}),
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Metric(_Part):
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
    median: float | None
    """Over the seeds of the comparison."""


class Trace(_Part):
    """Lines of the trace."""

    count: Count
    first: list[str]


class Arm(_Part):
    """What was measured of one arm."""

    outcomes: dict[str, Count]
    memory_bytes: PerSeed
    metrics: dict[str, Metric]
    trace: Trace


class Judgement(_Part):
    """The verdicts on an arm, against the first one."""

    decided: bool
    more_pairs: Count | None
    primary: dict[str, Decision]
    exploratory: dict[str, Decision]


class Trials(_Part):
    """How many there are."""

    planned: Count
    ended: Count


class Provenance(BaseModel):
    """Where the numbers come from. Later versions may tell more."""

    model_config = ConfigDict(extra="allow")

    kernels: dict[str, dict[str, Any]]
    initramfs: dict[str, str]
    qemu: str
    accelerator: dict[str, str]
    host: dict[str, Any]
    logs: dict[str, str]
    command_lines: dict[str, str]
    started: str | None


class Comparison(_Part):
    """`report.json` of a comparison."""

    version: Literal[2] = Field(alias="schema")
    name: str
    description: str
    experiment: dict[str, Any]
    """As in the file, with all defaults; sizes are in bytes."""
    seeds: list[int]
    """Those that every arm has measured."""
    arms: dict[str, Arm]
    """In the order of the experiment: the first is what the others are compared with."""
    alpha: Share
    sequential: bool
    verdicts: dict[str, Judgement]
    trials: Trials
    lost_attempts: Count
    excluded: list[Exclusion]
    wall_seconds: dict[str, float]
    guest_seconds: float | None
    provenance: Provenance


class Value(_Part):
    """A metric of an arm in a cell."""

    shown: str
    change: str
    ratio: float | None


class MatrixCell(_Part):
    """A comparison of a matrix."""

    at: dict[str, Any]
    name: str
    failure: str
    values: dict[str, dict[str, Value]]


class Matrix(_Part):
    """`report.json` of a matrix."""

    version: Literal[1] = Field(alias="schema")
    name: str
    arms: list[str]
    metrics: list[str]
    titles: dict[str, str]
    cells: list[MatrixCell]


class NullComparison(_Part):
    """A comparison that has nothing to find."""

    name: str
    kind: str
    pairs: Count
    judged: bool
    verdicts: dict[str, Verdict]
    alarms: list[str]


class Rate(_Part):
    """False alarms of the comparisons that were judged."""

    comparisons: Count
    alarms: Count
    share: Share
    bound: Share
    p: Share


class PValues(_Part):
    """Of the metrics that nobody declared, at so many pairs: kind of comparison -> ascending p-values."""

    pairs: Count
    kinds: dict[str, list[Share]]


class Selfcheck(_Part):
    """`selfcheck.json`."""

    version: Literal[1] = Field(alias="schema")
    name: str
    alpha: Share
    titles: dict[str, str]
    comparisons: list[NullComparison]
    failures: dict[str, str]
    kinds: dict[str, Rate]
    total: Rate
    alarm: bool
    too_many: Count | None
    exploratory: PValues


def schema() -> dict[str, Any]:
    """The JSON Schema of all three."""
    made = TypeAdapter(Comparison | Matrix | Selfcheck).json_schema()
    # Of these, the documents have every field.
    for kind in (Decision, Test, Exclusion):
        said = made["$defs"][kind.__name__]
        said |= {"additionalProperties": False, "required": list(said["properties"])}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
