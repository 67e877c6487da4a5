# SPDX-License-Identifier: GPL-2.0-only
"""A console log becomes a measurement. Pure, and never raises, whatever the log holds.

Only frames that arrived whole are used; what could not be used is named in `Measurement.problems`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from testbed.analysis.histogram import BUCKETS
from testbed.guest import protocol

T = TypeVar("T")

_COUNTER = re.compile(r"([a-z0-9_]{1,64}) (-?\d{1,20})")
_OOM = re.compile(rb"Out of memory: Killed process (\d+) \(([^)\r\n]*)\)")
_TIME = re.compile(rb"^#tb:(start|end) ns=(\d{1,18})\b", re.MULTILINE)
_TRACE = re.compile(
    r"^ *(?P<comm>.{1,16}?)-(?P<pid>\d+) .*: mm_vmscan_direct_reclaim_alloc: (?P<fields>.*)$", re.MULTILINE
)

# A kernel with this counter has the tracepoint, too; on others there is no frame `trace` to miss.
INSTRUMENTED = "direct_reclaim_try"

Count = Annotated[int, Field(ge=0, lt=2**64)]


class Task(BaseModel):
    """One task of the workload; times in ns, `histogram` as pairs of bucket and count."""

    model_config = ConfigDict(strict=True, frozen=True)

    pid: Count
    signal: Count
    pages: Count
    ns: Count
    max_ns: Count
    minor_faults: Count
    major_faults: Count
    histogram: Annotated[
        tuple[Annotated[tuple[Annotated[int, Field(ge=0, lt=BUCKETS)], Count], Field(strict=False)], ...],
        Field(strict=False),
    ]


class MmapTestResult(BaseModel):
    """What mmap_test leaves in its frame."""

    model_config = ConfigDict(strict=True, frozen=True)

    mode: str
    seed: Count
    pages_per_task: Count
    tasks: Annotated[tuple[Task, ...], Field(strict=False, min_length=1)]


@dataclass(frozen=True)
class Miss:
    """An allocation that found nothing after its own direct reclaim: one event of the tracepoint."""

    progress: int
    order: int
    pid: int
    comm: str

    def __str__(self) -> str:
        """The line of the 2010 mail."""
        return f"progress {self.progress}, order {self.order}, pid {self.pid}, comm {self.comm}"


@dataclass(frozen=True)
class Measurement:
    """What one trial's log says. Counters are the workload's: after less before.

    A part that did not arrive is None (or empty), with a line in `problems`.
    """

    workload: MmapTestResult | None
    counters: Mapping[str, int] | None
    misses: tuple[Miss, ...]
    oom_victims: tuple[str, ...]
    output: str
    problems: tuple[str, ...]
    # What the guest counted of tracepoints: images/src/tally.c. None if it was not asked to.
    tally: Mapping[str, int] | None = None
    # Seconds from the workload's start to its end by the guest's clock, if the log tells.
    guest_seconds: float | None = None

    @property
    def complete(self) -> bool:
        """Whether everything that a workload leaves has arrived, and whole."""
        return self.workload is not None and self.counters is not None and not self.problems


def parse(log: bytes) -> Measurement:
    """Read a console log, whole or not."""
    frames = protocol.frames(log)
    problems = list(frames.damaged)

    def read(name: str, reader: Callable[[str], T]) -> T | None:
        if name not in frames.contents:
            problems.append(f"frame {name}: missing")
            return None
        try:
            return reader(frames.contents[name].decode("utf-8"))
        except (ValueError, RecursionError) as bad:
            problems.append(f"frame {name}: {_first_line(bad)}")
            return None

    before, after = read("vmstat.before", counters), read("vmstat.after", counters)
    workload = read("mmap_test", _workload)
    tally = read("tally", counters) if "tally" in frames.contents else None
    difference = None
    if before is not None and after is not None:
        difference = {name: after[name] - before.get(name, 0) for name in after}
    if "trace" not in frames.contents and (difference is None or INSTRUMENTED in difference):
        problems.append("frame trace: missing")
    return Measurement(
        workload=workload,
        counters=difference,
        misses=misses(frames.contents.get("trace", b"").decode("utf-8", "replace")),
        oom_victims=tuple(match[2].decode("utf-8", "replace") for match in _OOM.finditer(log)),
        output=frames.contents.get("output", b"").decode("utf-8", "replace"),
        problems=tuple(problems),
        tally=tally,
        guest_seconds=_guest_seconds(log),
    )


def _guest_seconds(log: bytes) -> float | None:
    times = {match[1]: int(match[2]) for match in _TIME.finditer(log)}
    if not {b"start", b"end"} <= times.keys() or times[b"end"] < times[b"start"]:
        return None
    return (times[b"end"] - times[b"start"]) / 1e9


def counters(text: str) -> dict[str, int]:
    """/proc/vmstat, and all of its form: name -> value. Raises ValueError on a line of another form."""
    result = {}
    for line in text.splitlines():
        match = _COUNTER.fullmatch(line)
        if match is None:
            raise ValueError(f"not a counter: {line[:80]!r}")
        result[match[1]] = int(match[2])
    return result


def misses(text: str) -> tuple[Miss, ...]:
    """The misses in a trace; fields are found by name, lines of another form are passed over."""
    found = []
    for match in _TRACE.finditer(text):
        fields = dict(word.split("=", 1) for word in match["fields"].split() if "=" in word)
        try:
            if int(fields["missed"]):
                found.append(
                    Miss(int(fields["progress"]), int(fields["order"]), int(match["pid"]), match["comm"])
                )
        except (KeyError, ValueError):
            continue
    return tuple(found)


def _workload(text: str) -> MmapTestResult:
    return MmapTestResult.model_validate(json.loads(text))


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
