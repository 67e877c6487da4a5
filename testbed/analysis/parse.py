# SPDX-License-Identifier: GPL-2.0-only
"""A console log becomes a measurement. Pure, and never raises, whatever the log holds.

Only frames that arrived whole are used; what could not be used is named in `Measurement.problems`. No
number that is compared is taken from outside of a frame: only frames have a checksum. What the console says
of OOM kills is shown, and no more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from testbed import wire
from testbed.analysis.histogram import BUCKETS
from testbed.analysis.oom import Kill, kills
from testbed.analysis.requests import Chain, Request, chains, requests

T = TypeVar("T")

_COUNTER = re.compile(r"([a-z0-9_]{1,64}) (-?[0-9]{1,20})")
_MEMINFO = re.compile(r"([A-Za-z0-9_()]{1,64}): +([0-9]{1,18})( kB)?")
_PRESSURE = re.compile(r"(some|full) avg10=[0-9.]+ avg60=[0-9.]+ avg300=[0-9.]+ total=([0-9]{1,20})")
_MM_STAT = re.compile(r" *[0-9]{1,20}(?: +[0-9]{1,20}){6,15}\n?")
_TARGET = re.compile(r"([0-9]{1,18}) ([0-9]{1,12}) (-1|[0-9]{1,18})")
_COLUMN = re.compile(r"[a-z0-9_]{1,64}")
_ROWS = re.compile(r"[-0-9 \n]*")
_USER = re.compile(rb"(?:^|\n)#tb:user(?: [^\r\n]*)?\r?\n")
# How many frames there were, in the mark at the end.
_SENT = re.compile(rb" frames=([0-9]{1,4})(?=[ \r\n])")

# A kernel with this counter has the tracepoint, too, and an event for each that it counts; on others there is
# no frame `trace` to miss.
INSTRUMENTED = "direct_reclaim_try"

# The columns of /sys/block/zram0/mm_stat, in bytes and pages: Documentation/admin-guide/blockdev/zram.rst.
ZRAM = (
    *("orig_data_size", "compr_data_size", "mem_used_total", "mem_limit", "mem_used_max"),
    *("same_pages", "pages_compacted", "huge_pages", "huge_pages_since"),
)
# Of more the first are told: a log may be nothing but damaged frames.
TOLD = 50

_LARGEST = 2**64
Count = Annotated[int, Field(ge=0, lt=_LARGEST)]


def _counts(highest: int) -> Any:
    """A JSON array of pairs of key and count becomes a mapping; keys are below `highest`, none twice.

    By hand: pydantic would take 500 tasks' histograms apart ten times as slowly.
    """

    def validate(value: object) -> Mapping[int, int]:
        counts: dict[int, int] = {}
        if not isinstance(value, list):
            raise ValueError("not an array")
        for position, pair in enumerate(value):
            # `type`, since True is an int, too.
            if type(pair) is not list or [type(number) for number in pair] != [int, int]:
                raise ValueError(f"entry {position} is not a pair of integers")
            key, count = pair
            if not 0 <= key < highest or not 0 <= count < _LARGEST or key in counts:
                raise ValueError(f"entry {position} is out of range or there twice")
            counts[key] = count
        return counts

    return PlainValidator(validate)


def _number(value: object) -> float:
    # pydantic would make a float of an integer that is too large, and lose digits.
    if not isinstance(value, int | float) or isinstance(value, bool) or not -_LARGEST < value < _LARGEST:
        raise ValueError("not a number, or too large")
    return value


# Bucket (analysis/histogram.py) -> how many operations took so long.
Histogram = Annotated[Mapping[int, int], _counts(BUCKETS)]
Many = {"strict": False, "fail_fast": True}


class Task(BaseModel):
    """One task of a workload; times in ns. `phases` has a histogram per phase, if there are some."""

    model_config = ConfigDict(strict=True, frozen=True)

    group: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    pid: Count
    signal: Count
    status: Count
    ops: Count
    ns: Count
    max_ns: Count
    minor_faults: Count
    major_faults: Count
    histogram: Histogram
    phases: Annotated[tuple[Histogram, ...], Field(**Many)] = ()


class Workload(BaseModel):
    """What a workload says of itself and its tasks: the frame `tasks`."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: Annotated[str, Field(alias="workload", pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    seed: Count
    clock_ns: Count
    facts: Mapping[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")],
        Annotated[float, PlainValidator(_number)],
    ]
    tasks: Annotated[tuple[Task, ...], Field(min_length=1, **Many)]


class Reclaimer(BaseModel):
    """What one task's direct reclaims came to."""

    model_config = ConfigDict(strict=True, frozen=True)

    pid: Count
    episodes: Count
    pages: Count
    ns: Count


class Episodes(BaseModel):
    """Direct reclaims from begin to end. `pages`: how many have freed so many pages (1024: or more)."""

    model_config = ConfigDict(strict=True, frozen=True)

    duration: Histogram
    pages: Annotated[Mapping[int, int], _counts(1025)]
    tasks: Annotated[tuple[Reclaimer, ...], Field(**Many)]


@dataclass(frozen=True)
class Reading:
    """Counters at the start of the workload's clock, and when it had ended."""

    before: Mapping[str, int]
    after: Mapping[str, int]

    @cached_property
    def difference(self) -> Mapping[str, int]:
        """After less before, of what was there at both times."""
        return {name: n - self.before[name] for name, n in self.after.items() if name in self.before}


@dataclass(frozen=True)
class Samples:
    """Counters over time. `rows` are one value per column; `ns` and `phase` never fall.

    A phase has a row at its start; the last row is the workload's end, unless rows were `lost`.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    lost: int = 0

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Name -> where in a row it is."""
        return {name: index for index, name in enumerate(self.columns)}

    def __contains__(self, name: str) -> bool:
        return name in self.place

    def __getitem__(self, name: str) -> tuple[int, ...]:
        """A column from top to bottom. Raises KeyError."""
        at = self.place[name]
        return tuple(row[at] for row in self.rows)

    @cached_property
    def seconds(self) -> tuple[float, ...]:
        """When each row was taken, from the first on."""
        ns = self["ns"]
        return tuple((at - ns[0]) / 1e9 for at in ns)

    @cached_property
    def phases(self) -> Mapping[int, tuple[int, int]]:
        """Phase -> its first row, and the next one's or else the last of all; nothing if rows were lost."""
        if self.lost:
            return {}
        starts: dict[int, int] = {}
        for index, phase in enumerate(self["phase"]):
            starts.setdefault(phase, index)
        ends = [*list(starts.values())[1:], len(self.rows) - 1]
        return {phase: (start, end) for (phase, start), end in zip(starts.items(), ends, strict=True)}


@dataclass(frozen=True)
class Target:
    """A change of memory: `ns` after the workload's start, `pages` were to be kept from it.

    `late` is after how many ns more they were; None if they never were, or not before the next change.
    """

    ns: int
    pages: int
    late: int | None


@dataclass(frozen=True)
class Measurement:
    """What one trial's log says. A part that did not arrive is None (or empty).

    `problems` has a line for each part that is missing or damaged, `damaged` the share of the log that is in
    damaged frames, from where one begins to where it, or the next one, ends or begins.
    """

    workload: Workload | None = None
    # Whether it was somebody's own program, which leaves no frame `tasks`.
    user: bool = False
    vmstat: Reading | None = None
    # In bytes, where the kernel says kB.
    meminfo: Reading | None = None
    # `some` and `full`: microseconds in which tasks have waited for memory.
    pressure: Reading | None = None
    zram: Reading | None = None
    # Per kswapd, ns of CPU time.
    kswapd: Reading | None = None
    samples: Samples | None = None
    # What taking samples has cost: samples, lost, cpu_ns, period_ns.
    sampling: Mapping[str, int] | None = None
    # What the guest counted of tracepoints: images/src/tally.c. None if it was not asked to.
    tally: Mapping[str, int] | None = None
    episodes: Episodes | None = None
    # Of an instrumented kernel, direct reclaims one by one; `traced` if their frame came whole.
    requests: tuple[Request, ...] = ()
    traced: bool = False
    # How memory was to change, and whether it did.
    targets: tuple[Target, ...] = ()
    kills: tuple[Kill, ...] = ()
    output: str = ""
    # Those of the program's that were to be kept, by name.
    files: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    damaged: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether everything that a workload leaves has arrived, and whole."""
        return self.vmstat is not None and (self.workload is not None or self.user) and not self.problems

    @property
    def oom_victims(self) -> tuple[str, ...]:
        """The names of the tasks that the OOM killer took."""
        return tuple(kill.victim for kill in self.kills)

    @property
    def counters(self) -> Mapping[str, int] | None:
        """What /proc/vmstat counted while the workload ran; of its gauges, by how much they rose."""
        return self.vmstat.difference if self.vmstat else None

    @property
    def misses(self) -> tuple[Request, ...]:
        """Those that found no page at first after their direct reclaim, as far as there are records."""
        return tuple(request for request in self.requests if request.failed)

    @property
    def unrecorded(self) -> int | None:
        """How many direct reclaims were counted and left no record; None where that is not known."""
        tries = (self.counters or {}).get(INSTRUMENTED)
        return max(0, tries - len(self.requests)) if self.traced and tries is not None else None

    @cached_property
    def chains(self) -> tuple[Chain, ...] | None:
        """The requests that reclaimed directly; None unless every one has its records."""
        return chains(self.requests) if self.unrecorded == 0 else None

    @property
    def measured_seconds(self) -> float | None:
        """Seconds from the start of the workload's clock to its end, by the guest's clock."""
        return self.samples.seconds[-1] if self.samples and not self.samples.lost else None

    @property
    def booted_ns(self) -> int | None:
        """When the workload began to fill memory, from the kernel's start on."""
        return self.sampling.get("booted_ns") if self.sampling else None

    @property
    def guest_seconds(self) -> float | None:
        """Seconds that the workload took by the guest's clock, with the filling of memory."""
        if self.booted_ns is None or not self.samples or self.samples.lost:
            return None
        return (self.samples["ns"][-1] - self.booted_ns) / 1e9


class _Reader:
    """Takes frames apart, and notes what could not be."""

    def __init__(self, frames: wire.Frames) -> None:
        self.contents = frames.contents
        self.problems = list(frames.damaged)

    def read(self, name: str, reader: Callable[[str], T], needed: bool = False) -> T | None:
        """What the frame says, None if it is not there or of another form."""
        if name not in self.contents:
            if needed:
                self.problems.append(f"frame {name}: missing")
            return None
        try:
            return reader(self.contents[name].decode("utf-8"))
        except (ValueError, RecursionError) as bad:
            self.problems.append(f"frame {name}: {_first_line(bad)}")
            return None

    def pair(
        self, name: str, reader: Callable[[str], Mapping[str, int]], needed: bool = False
    ) -> Reading | None:
        """Two frames, of which one alone says nothing."""
        names = f"{name}.before", f"{name}.after"
        needed = needed or any(n in self.contents for n in names)
        before, after = (self.read(n, reader, needed) for n in names)
        return Reading(before, after) if before is not None and after is not None else None


def parse(log: bytes) -> Measurement:
    """Read a console log, whole or not."""
    frames = wire.frames(log)
    reader = _Reader(frames)
    user = _USER.search(frames.between) is not None
    vmstat = reader.pair("vmstat", _vmstat, needed=True)
    workload = reader.read("tasks", _workload, needed=not user)
    if "trace" not in frames.contents and (vmstat is None or INSTRUMENTED in vmstat.after):
        reader.problems.append("frame trace: missing")
    ended = frames.form.end.search(frames.between)
    sent = _SENT.search(ended[0]) if ended else None
    if sent and not frames.damaged and int(sent[1]) != len(frames.contents):
        # One that lost both its marks leaves no other trace.
        reader.problems.append(f"{len(frames.contents)} of {int(sent[1])} frames arrived")
    samples, sampling = _samples(reader)
    return Measurement(
        workload=workload,
        user=user,
        vmstat=vmstat,
        meminfo=reader.pair("meminfo", _meminfo),
        pressure=reader.pair("pressure", _pressure),
        zram=reader.pair("zram", _zram),
        kswapd=reader.pair("kswapd", counters),
        samples=samples,
        sampling=sampling,
        tally=reader.read("tally", counters),
        episodes=reader.read("episodes", _episodes),
        targets=reader.read("held", targets) or (),
        requests=requests(frames.contents.get("trace", b"").decode("utf-8", "replace")),
        traced="trace" in frames.contents,
        kills=_timed(kills(frames.between), samples),
        output=frames.contents.get("output", b"").decode("utf-8", "replace"),
        files={
            name: body.decode("utf-8", "replace")
            for name, body in frames.contents.items()
            if name.startswith("file.")
        },
        problems=_told(reader.problems, frames.lost, len(log)),
        damaged=frames.lost / len(log) if log else 0.0,
    )


def has_begun(log: bytes, name: str) -> bool:
    """Whether a frame was at least begun to be sent."""
    return b"\n%sframe %s " % (wire.form(log).prefix, name.encode()) in log


def _samples(reader: _Reader) -> tuple[Samples | None, Mapping[str, int] | None]:
    """Both or neither: whether rows were lost is what only `sampling` says."""
    needed = "samples" in reader.contents or "sampling" in reader.contents
    samples = reader.read("samples", table, needed)
    sampling = reader.read("sampling", counters, needed)
    if samples is None or sampling is None:
        return None, sampling
    if sampling.get("samples") != len(samples.rows) or "lost" not in sampling:
        reader.problems.append(f"frame samples: has {len(samples.rows)} rows, which is not what was sampled")
        return None, sampling
    return Samples(samples.columns, samples.rows, sampling["lost"]), sampling


def _timed(found: tuple[Kill, ...], samples: Samples | None) -> tuple[Kill, ...]:
    """Kills with the time at which they had been counted, where the console does not tell when they were."""
    if samples is None or "oom_kill" not in samples:
        return found
    # The counter is from the guest's boot on, as the clock is.
    counted = list(zip(*(samples[column] for column in ("ns", "oom_kill")), strict=True))
    by_number = [next((ns / 1e9 for ns, n in counted if n >= k), None) for k in range(1, len(found) + 1)]
    return tuple(
        replace(kill, seconds=seconds) if kill.seconds is None else kill
        for kill, seconds in zip(found, by_number, strict=True)
    )


def _told(problems: Sequence[str], lost: int, length: int) -> tuple[str, ...]:
    """Problems, of which there may be very many, in a few lines."""
    told = list(problems[:TOLD])
    if len(problems) > TOLD:
        told.append(f"and {len(problems) - TOLD} problems more")
    if lost:
        told.append(f"{lost / length:.1%} of the log is in damaged frames")
    return tuple(told)


def _unique(pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """A mapping of pairs. Raises ValueError where a name is there twice."""
    mapping: dict[str, T] = {}
    for name, value in pairs:
        if name in mapping:
            raise ValueError(f"{name[:80]!r} is there twice")
        mapping[name] = value
    return mapping


def counters(text: str) -> Mapping[str, int]:
    """/proc/vmstat, and all of its form: name -> value. Raises ValueError on a line of another form."""
    return _unique((match[1], int(match[2])) for match in _lines(_COUNTER, text, "counter"))


def _vmstat(text: str) -> Mapping[str, int]:
    # Every kernel has some: an empty file is one that could not be read.
    if found := counters(text):
        return found
    raise ValueError("there is no counter in it")


def _meminfo(text: str) -> Mapping[str, int]:
    lines = _lines(_MEMINFO, text, "line of meminfo")
    return _unique((match[1], int(match[2]) << (10 if match[3] else 0)) for match in lines)


def _pressure(text: str) -> Mapping[str, int]:
    return _unique((match[1], int(match[2])) for match in _lines(_PRESSURE, text, "pressure"))


def _lines(pattern: re.Pattern[str], text: str, what: str) -> Iterable[re.Match[str]]:
    # Not splitlines(), which knows more line ends than a file in /proc has.
    for line in text.removesuffix("\n").split("\n") if text else ():
        match = pattern.fullmatch(line)
        if match is None:
            raise ValueError(f"not a {what}: {line[:80]!r}")
        yield match


def _zram(text: str) -> Mapping[str, int]:
    if not _MM_STAT.fullmatch(text):
        raise ValueError("not the mm_stat of zram")
    return dict(zip(ZRAM, map(int, text.split()), strict=False))


def table(text: str) -> Samples:
    """Rows of integers below the names of their columns. Raises ValueError when it is something else."""
    heading, _, body = text.partition("\n")
    columns = tuple(heading.split(" "))
    if not all(map(_COLUMN.fullmatch, columns)) or len(set(columns)) < len(columns):
        raise ValueError("the columns have no names, or the same")
    if not {"ns", "phase"} <= set(columns) or not body.endswith("\n") or not _ROWS.fullmatch(body):
        raise ValueError("not a table of integers with columns `ns` and `phase`")
    rows = tuple(tuple(map(int, line.split(" "))) for line in body[:-1].split("\n"))
    if any(len(row) != len(columns) or max(row) >= _LARGEST or min(row) <= -_LARGEST for row in rows):
        raise ValueError("a row has too few values, too many, or too large ones")
    for name in ("ns", "phase"):
        values = [row[columns.index(name)] for row in rows]
        if values[0] < 0 or any(later < earlier for earlier, later in pairwise(values)):
            raise ValueError(f"column {name} falls")
    return Samples(columns, rows)


def targets(text: str) -> tuple[Target, ...]:
    """A line for each target: ns, pages, ns late or -1. Raises ValueError on a line of another form."""
    numbers = [[int(n) for n in match.groups()] for match in _lines(_TARGET, text, "target")]
    return tuple(Target(ns, pages, None if late < 0 else late) for ns, pages, late in numbers)


def _json(text: str) -> Any:
    """JSON as RFC 8259 has it, in which no object has a key twice. Raises ValueError, RecursionError."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number")

    return json.loads(text, object_pairs_hook=_unique, parse_constant=refuse)


def _workload(text: str) -> Workload:
    return Workload.model_validate(_json(text))


def _episodes(text: str) -> Episodes:
    data = _json(text)
    if isinstance(data, dict) and isinstance(data.get("tasks"), list):
        data["tasks"] = [
            dict(zip(Reclaimer.model_fields, task, strict=True)) if isinstance(task, list) else task
            for task in data["tasks"]
        ]
    return Episodes.model_validate(data)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
