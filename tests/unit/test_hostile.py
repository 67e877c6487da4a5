# SPDX-License-Identifier: GPL-2.0-only
"""Logs that nobody meant to send: whatever is in one, nothing raises, and no number is wrong.

A log is built of known numbers, and spoilt. Every number that is then read is the one that was sent, at its
place, or it is not read at all.
"""

from __future__ import annotations

import functools
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from testbed.analysis.metrics import METRICS
from testbed.analysis.parse import TOLD, Measurement, parse
from tests.unit.recorded import RECORD, frame, traced, with_frame

# --- what is sent -----------------------------------------------------------------------------------

VMSTAT = [
    *("nr_free_pages", "workingset_refault_anon", "workingset_refault_file", "pswpout", "allocstall_movable"),
    *("pgscan_direct", "pgscan_kswapd", "pgsteal_direct", "pgsteal_kswapd", "pgmajfault", "oom_kill"),
    *("direct_reclaim_try", "direct_reclaim_miss"),
]
BEFORE = {name: 1000 + 7 * number for number, name in enumerate(VMSTAT)}
AFTER = {name: 2000 + 31 * number for number, name in enumerate(VMSTAT)}
TASKS: dict[str, Any] = {
    "workload": "mmap_test",
    "seed": 3,
    "clock_ns": 5_000_000_000,
    "facts": {"pages_per_task": 3072},
    "tasks": [
        {
            "group": group,
            "pid": 90 + number,
            "signal": 0,
            "status": 0,
            "ops": 300 + number,
            "ns": 1_900_000_000 + number,
            "max_ns": 40_000_000 + number,
            "minor_faults": 310 + number,
            "major_faults": 4,
            "histogram": [[820, 200], [2000, 100 + number]],
            "phases": [[[820, 150]], [[820, 50], [2000, 100 + number]]],
        }
        for number, group in enumerate(["main", "main", "probe"])
    ],
}
COLUMNS = [
    "ns",
    "phase",
    "psi_some_us",
    "psi_full_us",
    "kswapd_ns",
    "min",
    "low",
    "nr_free_pages",
    "pgscan_direct",
]
ROWS = [
    [5_000_000_000, 0, 100, 50, 7000, 337, 421, 400, 1035],
    [5_500_000_000, 0, 150, 60, 7500, 337, 421, 300, 1535],
    [6_000_000_000, 1, 250, 80, 8500, 337, 421, 500, 1900],
    [7_000_000_000, 1, 450, 90, 9500, 337, 421, 450, 2155],
]
SAMPLING = {"samples": 4, "cpu_ns": 12_345, "period_ns": 500_000_000, "lost": 0, "booted_ns": 1_500_000_000}
TALLY = {"lost": 0, "tries": 90, "misses": 30, "freed": 800, "thefts": 123}
EPISODES: dict[str, Any] = {
    "duration": [[900, 250], [3000, 12]],
    "pages": [[0, 2], [32, 260]],
    "tasks": [[90, 200, 6400, 999_000], [91, 62, 1920, 77_000]],
}
ZRAM = ["orig_data_size", "compr_data_size", "mem_used_total", "mem_limit", "mem_used_max", "same_pages"]
ZRAM += ["pages_compacted"]
RECORDED = traced(first="pcp", second="page", drained=1)
# What a program prints is content, whatever it looks like.
OUTPUT = b"said 17 things\n" + frame("vmstat.after", b"pgscan_direct 666\n") + b"#tb:end ns=1 status=0\n"
KERNEL = b"[   12.345678] Out of memory: Killed process 91 (mmap_test) total-vm:14372kB, anon-rss:0kB\n"


def lines(counters: Mapping[str, int]) -> bytes:
    return "".join(f"{name} {value}\n" for name, value in counters.items()).encode()


def pressure(some: int, full: int) -> bytes:
    averages = "avg10=62.96 avg60=15.80 avg300=3.50"
    return f"some {averages} total={some}\nfull {averages} total={full}\n".encode()


def table(rows: list[list[int]]) -> bytes:
    cells = [COLUMNS, *([str(value) for value in row] for row in rows)]
    return "".join(" ".join(row) + "\n" for row in cells).encode()


FRAMES = {
    "episodes": json.dumps(EPISODES).encode(),
    "kswapd.after": lines({"kswapd0": 9500}),
    "kswapd.before": lines({"kswapd0": 7000}),
    "meminfo.after": b"MemTotal:         108768 kB\nHugePages_Total:       3\n",
    "meminfo.before": b"MemTotal:         108768 kB\nHugePages_Total:       2\n",
    "output": OUTPUT,
    "pressure.after": pressure(450, 90),
    "pressure.before": pressure(100, 50),
    "samples": table(ROWS),
    "sampling": lines(SAMPLING),
    "tally": lines(TALLY),
    "tasks": json.dumps(TASKS).encode(),
    "trace": RECORDED.encode(),
    "vmstat.after": lines(AFTER),
    "vmstat.before": lines(BEFORE),
    "zram.after": (" ".join(str(900 + n) for n in range(7)) + "\n").encode(),
    "zram.before": (" ".join(str(100 + n) for n in range(7)) + "\n").encode(),
}
LOG = b"".join(
    [
        b"Linux version 6.1.192\n#tb:ready release=6.1.192 cpus=8\n\n#tb:start ns=4000000000\n",
        KERNEL,
        *(frame(name, body) for name, body in FRAMES.items()),
        b"\n#tb:end ns=8000000000 status=0 frames=%d\n" % len(FRAMES),
    ]
)


# --- what may be read -------------------------------------------------------------------------------


def numbers(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a value, and where it is."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, int | float):
        yield path, value
    elif is_dataclass(value):
        for one in fields(value):
            # What the console says of OOM kills is shown, and never compared.
            if one.name != "kills":
                yield from numbers(getattr(value, one.name), f"{path}.{one.name}")
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from numbers(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers(inner, f"{path}.{key}")
    else:
        assert isinstance(value, tuple)
        for index, inner in enumerate(value):
            yield from numbers(inner, f"{path}.{index}")


def truth() -> dict[str, float]:
    """All numbers of the log, from what it was made of."""
    said: dict[str, Any] = {
        "workload": {**TASKS, "tasks": tuple(TASKS["tasks"])},
        "vmstat": {"before": BEFORE, "after": AFTER},
        "meminfo": {
            when: {"MemTotal": 108768 * 1024, "HugePages_Total": n}
            for when, n in (("before", 2), ("after", 3))
        },
        "pressure": {"before": {"some": 100, "full": 50}, "after": {"some": 450, "full": 90}},
        "zram": {
            when: {name: base + n for n, name in enumerate(ZRAM)}
            for when, base in (("before", 100), ("after", 900))
        },
        "kswapd": {"before": {"kswapd0": 7000}, "after": {"kswapd0": 9500}},
        "samples": {"rows": tuple(map(tuple, ROWS)), "lost": 0},
        "sampling": SAMPLING,
        "tally": TALLY,
        "requests": ({name: n for name, n in {**RECORD, "pid": 91, "drained": 1}.items() if type(n) is int},),
        "episodes": {
            "duration": dict(EPISODES["duration"]),
            "pages": dict(EPISODES["pages"]),
            "tasks": tuple(
                dict(zip(("pid", "episodes", "pages", "ns"), task, strict=True)) for task in EPISODES["tasks"]
            ),
        },
    }
    said["workload"]["tasks"] = tuple(
        {
            **task,
            "histogram": dict(task["histogram"]),
            "phases": tuple(dict(phase) for phase in task["phases"]),
        }
        for task in TASKS["tasks"]
    )
    return {f".{path}": value for path, value in ((p[1:], v) for p, v in numbers(said))}


TRUTH = truth()
WHOLE = parse(LOG)
METRICS_OF_WHOLE = {metric.name: metric.value(WHOLE) for metric in METRICS}


@functools.cache
def no_metric_is_wrong(present: frozenset[str]) -> None:
    """Of a measurement of which only these parts are there, every metric is that of the whole, or none."""
    parts = {one.name: getattr(WHOLE, one.name) for one in fields(WHOLE) if one.name in present}
    for metric in METRICS:
        assert metric.value(Measurement(**parts)) in (METRICS_OF_WHOLE[metric.name], None), metric.name


def no_number_is_wrong(log: bytes) -> Measurement:
    """Read a log that was made of LOG: a number that is read is the one that was sent."""
    found = parse(log)
    assert all(len(problem) < 1000 and "\n" not in problem for problem in found.problems)
    assert len(found.problems) <= TOLD + 2 and 0 <= found.damaged <= 1
    # What a program leaves may have any name and content, but for names of testbed's.
    assert set(found.files) <= {"other", "mine"}
    # Every number of WHOLE is right: test_of_the_whole_log_every_number_is_read.
    present = {name for name in PARTS if getattr(found, name) == getattr(WHOLE, name)}
    for name in PARTS - present:
        assert not getattr(found, name), name
    no_metric_is_wrong(frozenset(present))
    if found.complete:
        assert {"vmstat", "workload"} <= present
    return found


PARTS = {one.name for one in fields(Measurement)} - {"problems", "damaged", "kills", "user", "files"}


def test_of_the_whole_log_every_number_is_read() -> None:
    assert WHOLE.complete and WHOLE.damaged == 0
    assert dict(numbers(WHOLE)) == TRUTH | {".damaged": 0}
    assert WHOLE.oom_victims == ("mmap_test",) and WHOLE.output == OUTPUT.decode()
    known = {name for name, value in METRICS_OF_WHOLE.items() if value is not None}
    assert {"psi_some", "kswapd_cpu", "below_low", "episode_p50", "probe_max", "zram_compression"} <= known


# --- 10,000 logs ------------------------------------------------------------------------------------

Spoil = Callable[[bytes, int, int], bytes]

NOISE = [
    KERNEL,
    KERNEL.replace(b"\n", b"\r\n"),
    b"\n",
    b"\r",
    b"\0",
    b"7",
    b"9" * 10_000,
    b"-",
    b"#",
    b" ",
    b"\xff\xfe",
    b"\x1b[2J",
    b"\n#tb:frame vmstat.after 18 00000000\npgscan_direct 666\n\n#tb:close vmstat.after\n",
    b"\n#tb:frame tally 999999999 00000000\n",
    b"\n#tb:frame samples 0",
    b"\n#tb:close tasks\n",
    b"\n#tb:close vmstat.before\n\n#tb:frame vmstat.before",
    b"\n#tb:end status=0\n",
    b"\n#tb:start ns=99\n",
    frame("other", b"pgscan_direct 666\n"),
    frame("trace.", RECORDED.encode()),
]
ENORMOUS = [
    b"\0" * 1_000_000,
    b"9" * 1_000_000,
    b"\n#tb:frame tally 9 00000000" * 20_000,
    b"\n#tb:close tally\n" * 20_000,
    b"Out of memory: Killed process 1 (" * 20_000,
    frame("tally.", b"#" * 1_000_000),
    frame("mine", b"[" * 1_000_000),
]


def insert(log: bytes, at: int, which: int) -> bytes:
    return log[:at] + NOISE[which % len(NOISE)] + log[at:]


def overwrite(log: bytes, at: int, which: int) -> bytes:
    noise = NOISE[which % len(NOISE)]
    return log[:at] + noise + log[at + len(noise) :]


def cut_off(log: bytes, at: int, _: int) -> bytes:
    return log[:at]


def begin_late(log: bytes, at: int, _: int) -> bytes:
    return log[at:]


def lose(log: bytes, begin: int, end: int) -> bytes:
    return log[: min(begin, end)] + log[max(begin, end) :]


def repeat(log: bytes, begin: int, end: int) -> bytes:
    return log[: max(begin, end)] + log[min(begin, end) :]


def exchange(log: bytes, begin: int, end: int) -> bytes:
    return log[end:] + log[begin:end] + log[:begin]


def change_a_byte(log: bytes, at: int, byte: int) -> bytes:
    return log[:at] + bytes([byte % 256]) + log[at + 1 :]


def lose_a_byte(log: bytes, at: int, _: int) -> bytes:
    return log[:at] + log[at + 1 :]


def between_lines(log: bytes, every: int, which: int) -> bytes:
    """Kernel messages, or other noise, after every so many lines."""
    parts = log.splitlines(keepends=True)
    step = every % 40 + 1
    noise = NOISE[which % 2]
    return b"".join(part + (noise if number % step == 0 else b"") for number, part in enumerate(parts))


def with_other_line_ends(log: bytes, _: int, which: int) -> bytes:
    return log.replace(b"\n", (b"\r\n", b"\r", b"\n\n", b"")[which % 4])


def shuffle_frames(log: bytes, by: int, _: int) -> bytes:
    parts = log.split(b"\n#tb:frame ")
    middle = by % len(parts)
    return b"\n#tb:frame ".join([*parts[middle:], *parts[:middle]])


def make_enormous(log: bytes, at: int, which: int) -> bytes:
    return log[:at] + ENORMOUS[which % len(ENORMOUS)] + log[at:]


KEYS = [*TASKS, *TASKS["tasks"][0], *EPISODES]
SPOILS: list[Spoil] = [
    insert,
    overwrite,
    cut_off,
    begin_late,
    lose,
    repeat,
    exchange,
    change_a_byte,
    lose_a_byte,
]
SPOILS += [between_lines, with_other_line_ends, shuffle_frames]
places = st.integers(0, len(LOG))
spoilt = st.tuples(st.sampled_from(SPOILS), places, places)
# One to four times which way, and two places: drawn at one go, since drawing is what takes the time.
STEP = struct.Struct("<BHH")
assert len(LOG) < 1 << 16


@settings(max_examples=10_000)
@given(st.binary(min_size=STEP.size, max_size=4 * STEP.size))
def test_no_number_of_a_spoilt_log_is_wrong(how: bytes) -> None:
    log = LOG
    for way, here, there in STEP.iter_unpack(how[: len(how) // STEP.size * STEP.size]):
        log = SPOILS[way % len(SPOILS)](log, here % (len(LOG) + 1), there % (len(LOG) + 1))
    no_number_is_wrong(log)


@settings(max_examples=60)
@given(places, st.sampled_from(range(len(ENORMOUS))), spoilt)
def test_no_number_of_an_enormous_log_is_wrong(at: int, which: int, how: tuple[Spoil, int, int]) -> None:
    spoil, here, there = how
    no_number_is_wrong(spoil(make_enormous(LOG, at, which), here, there))


def test_cut_off_at_every_byte() -> None:
    for at in range(len(LOG)):
        no_number_is_wrong(LOG[:at])
        no_number_is_wrong(LOG[at:])


def test_every_byte_is_lost() -> None:
    for at in range(len(LOG)):
        no_number_is_wrong(LOG[:at] + LOG[at + 1 :])


# --- whole frames of hostile content ----------------------------------------------------------------

# What is no number of any frame.
STRANGE = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "true", "null", "[]", "{}", '"7"', "", "+1"]
STRANGE += [
    "0x10",
    "1_000",
    "9" * 21,
    "9" * 10_000,
    "\u0667",
    "\uff17",
    "7,7",
    "\0",
    "\x1b[2J",
    "[" * 100_000,
]
STRANGE += ["7]", '{"a": 1, "a": 2}']
# What is one in some.
ODD = ["-1", "1.5", "1e2", "01", "18446744073709551616"]
WITH_NUMBERS = pytest.mark.parametrize("name", [name for name in FRAMES if name not in ("output", "trace")])


def with_another_number(name: str, number: str) -> Iterator[Measurement]:
    """The log with something else for each number of a frame (of PSI's, those that are read)."""
    body = FRAMES[name]
    for match in re.finditer(rb"(?<![A-Za-z0-9_.=])[0-9]+(?![A-Za-z0-9_.])|(?<=total=)[0-9]+", body):
        yield parse(with_frame(LOG, name, body[: match.start()] + number.encode() + body[match.end() :]))


def otherwise(found: Measurement) -> dict[str, float]:
    """What is not as it is in LOG."""
    read = dict(numbers(found))
    del read[".damaged"]
    return {path: value for path, value in read.items() if TRUTH.get(path) != value}


@WITH_NUMBERS
def test_what_is_no_number_is_refused_with_its_frame(name: str) -> None:
    field = "workload" if name == "tasks" else name.partition(".")[0]
    for strange in STRANGE:
        count = 0
        for found in with_another_number(name, strange):
            assert getattr(found, field) is None and not otherwise(found), strange
            assert any(problem.startswith(f"frame {name}: ") for problem in found.problems), strange
            count += 1
        assert count >= 1


@WITH_NUMBERS
def test_an_odd_number_is_itself_or_refused(name: str) -> None:
    for odd in ODD:
        for found in with_another_number(name, odd):
            # In meminfo a number may be of KiB; how many rows were lost is known at two places.
            assert set(otherwise(found).values()) <= {float(odd), float(odd) * 1024}, odd
            assert len(otherwise(found)) <= 2, odd


@settings(max_examples=500)
@given(
    st.sampled_from(sorted(FRAMES)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=9),
        max_leaves=20,
    ),
)
def test_any_json_in_any_frame_raises_nothing(name: str, value: Any) -> None:
    found = parse(with_frame(LOG, name, json.dumps(value).encode()))
    for metric in METRICS:
        metric.value(found), metric.per_phase(found), metric.series(found)
