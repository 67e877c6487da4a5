# SPDX-License-Identifier: GPL-2.0-only
"""The counting in the guest (images/src/tally.c), on buffers made by hand."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from testbed.analysis.histogram import bucket
from testbed.analysis.parse import counters
from tests.unit.recorded import REPOSITORY

COMMON = "common_type:0:2 common_flags:2:1 common_pid:4:4"
# Of each event the fields that are of interest, among others, as NAME:OFFSET:SIZE.
EVENTS = {
    "begin": ("vmscan/mm_vmscan_direct_reclaim_begin", "gfp_flags:8:8 order:16:4"),
    "end": ("vmscan/mm_vmscan_direct_reclaim_end", "nr_reclaimed:8:8"),
    "retry": ("oom/reclaim_retry_zone", "node:8:4 order:12:4"),
    "drain": ("kmem/mm_page_pcpu_drain", "pfn:8:8 order:16:4"),
    "alloc": ("kmem/mm_page_alloc", "pfn:8:8 order:16:4"),
    "free": ("kmem/mm_page_free", "pfn:8:8 order:16:4"),
    "other": ("kmem/other", "pfn:8:8"),
}
IDS = {name: number for number, name in enumerate(EVENTS, start=300)}
HARDIRQ, SOFTIRQ = 0x08, 0x10
NOBODY = 2**64 - 1
CPUS = os.sysconf("SC_NPROCESSORS_CONF")
A, B = 101, 102

# Time in ns, CPU, pid, event, its fields in the order of EVENTS, and flags.
Event = tuple[int, int, int, str, Sequence[int], int]


def at(time: int, pid: int, name: str, *fields: int, cpu: int = 0, flags: int = 0) -> Event:
    return (time, cpu % CPUS, pid, name, fields, flags)


def encoded(event: Event) -> bytes:
    _, _, pid, name, values, flags = event
    layout = EVENTS[name][1].split()
    data = bytearray(24)
    struct.pack_into("<HBxi", data, 0, IDS[name], flags, pid)
    for field, value in zip(layout, values, strict=False):
        _, offset, size = field.split(":")
        data[int(offset) : int(offset) + int(size)] = value.to_bytes(int(size), "little")
    return bytes(data)


def page(events: Sequence[Event]) -> bytes:
    """As include/linux/ring_buffer.h has it; longer times and gaps go in as the kernel does it."""
    time, body = events[0][0], b""
    for number, event in enumerate(events):
        delta, time, data = event[0] - time, event[0], encoded(event)
        if delta >= 2**27:
            body += struct.pack("<II", 30 | (delta % 2**27) << 5, delta >> 27)
            delta = 0
        if number % 3 == 1:
            body += struct.pack("<III", 29 | 1 << 5, 8, 0xDEAD)
        if number % 2:
            body += struct.pack("<II", delta << 5, len(data) + 4) + data
        else:
            body += struct.pack("<I", len(data) // 4 | delta << 5) + data
    assert len(body) <= 4080
    return (struct.pack("<QQ", events[0][0], len(body)) + body).ljust(4096, b"\0")


Tally = Callable[..., dict[str, int]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with another root, and without what an ordinary user must not do."""
    root = tmp_path_factory.mktemp("tally")
    images = REPOSITORY / "images"
    source = (images / "src" / "tally.c").read_text()
    common = (images / "lib" / "load.c").read_text()
    assert '"/run/result/%s"' in common
    (root / "load.c").write_text(common.replace('"/run/result/%s"', f'"{root}/result.%s"'))
    for old, new in {
        '"/sys/kernel/tracing/instances/tally/"': f'"{root}/"',
        "mlockall(MCL_CURRENT | MCL_ONFAULT)": "0",
        "sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &param)": "!&param",
        "atoi(name.release) >= 6": "1",
    }.items():
        assert old in source
        source = source.replace(old, new)
    (root / "tally.c").write_text(source)
    gcc = shutil.which("gcc") or pytest.fail("no gcc: `testbed doctor`")
    subprocess.run([gcc, f"-I{images / 'lib'}", "-o", "tally", "tally.c", "load.c"], cwd=root, check=True)
    for name, (path, fields) in EVENTS.items():
        lines = [f"name: {name}", f"ID: {IDS[name]}", "format:"]
        for field in f"{COMMON} {fields}".split():
            what, offset, size = field.split(":")
            lines.append(f"\tfield:some type {what};\toffset:{offset};\tsize:{size};\tsigned:0;")
        (root / "events" / path).mkdir(parents=True)
        (root / "events" / path / "format").write_text("\n".join(lines) + "\n")
    return root / "tally"


@pytest.fixture
def tally(program: Path) -> Tally:
    def run(events: Sequence[Event], *command: str, status: int = 0) -> dict[str, int]:
        for cpu in range(CPUS):
            directory = program.parent / "per_cpu" / f"cpu{cpu}"
            directory.mkdir(parents=True, exist_ok=True)
            mine = [event for event in events if event[1] == cpu]
            pages = [page(mine[n : n + 5]) for n in range(0, len(mine), 5)]
            (directory / "trace_pipe_raw").write_bytes(b"".join(pages))
            (directory / "stats").write_text("entries: 9\noverrun: 0\ncommit overrun: 0\ndropped events: 0\n")
        done = subprocess.run([program, *(command or ("true",))], check=False, timeout=60)
        assert done.returncode == status
        counted = counters((program.parent / "result.tally").read_text())
        return {name: value for name, value in counted.items() if value}

    return run


def test_episodes_are_direct_reclaims_of_any_order(tally: Tally, program: Path) -> None:
    tally(
        [
            *(at(100, A, "begin", 0, 0), at(300, A, "end", 32)),
            *(at(400, B, "begin", 0, 3), at(1400, B, "end", 5000)),
            *(at(1500, A, "begin", 0, 0), at(1700, A, "end", 0)),
            # Whose begin was not seen.
            at(1800, A, "end", 7),
        ]
    )
    found = json.loads((program.parent / "result.episodes").read_text())
    assert found == {
        "duration": [[bucket(200), 2], [bucket(1000), 1]],
        "pages": [[0, 1], [32, 1], [1024, 1]],
        "tasks": [[A, 2, 32, 400], [B, 1, 5000, 1000]],
    }


RECLAIM = [at(100, A, "begin", 0, 0), at(200, A, "end", 32)]

CASES: dict[str, tuple[list[Event], dict[str, int]]] = {
    "nothing": ([], {}),
    "others": ([at(1, A, "other", 5), at(2, A, "alloc", 5, 0), at(3, A, "free", 5, 0)], {}),
    "a page at once": ([*RECLAIM, at(300, A, "alloc", 7, 0)], {"tries": 1}),
    "a page after the drain": (
        [*RECLAIM, at(250, A, "drain", 7, 0), at(251, A, "drain", 8, 0), at(300, A, "alloc", 7, 0)],
        {"tries": 1, "misses": 1},
    ),
    "nothing after the drain, in either zone": (
        [
            *RECLAIM,
            at(250, A, "drain", 7, 0),
            at(260, A, "retry", 0, 0),
            at(261, A, "retry", 0, 0),
            at(300, A, "begin", 0, 0),
            at(400, A, "end", 1),
            at(500, A, "alloc", 7, 0),
        ],
        {"tries": 2, "misses": 1, "misses_drained": 1, "repeats": 1},
    ),
    "somebody else was draining": (
        [*RECLAIM, at(260, A, "retry", 0, 0), at(300, A, "alloc", 7, 0)],
        {"tries": 1, "misses": 1, "misses_drained": 1},
    ),
    "no second try": (
        [*RECLAIM, at(260, A, "alloc", NOBODY, 0), at(300, A, "drain", 7, 0)],
        {"tries": 1, "misses": 1, "misses_drained": 1},
    ),
    "no progress": (
        [at(1, A, "begin", 0, 0), at(2, A, "end", 0), at(3, A, "retry", 0, 0), *RECLAIM],
        {"tries": 1},
    ),
    "a higher order": (
        [at(1, A, "begin", 0, 2), at(2, A, "free", 7, 0), at(3, A, "end", 9), at(4, A, "retry", 0, 2)],
        {},
    ),
    "tasks are told apart": (
        [*RECLAIM, at(210, B, "drain", 7, 0), at(220, B, "alloc", 8, 0), at(230, A, "drain", 9, 0)],
        {"tries": 1, "misses": 1},
    ),
    "interrupts are nobody's": (
        [
            at(100, A, "begin", 0, 0),
            at(110, A, "free", 7, 0, flags=HARDIRQ),
            at(200, A, "end", 32),
            at(210, A, "drain", 7, 0, flags=SOFTIRQ),
            at(220, A, "alloc", 8, 0, flags=SOFTIRQ),
            at(230, A, "drain", 7, 0),
        ],
        {"tries": 1, "misses": 1},
    ),
    "reclaim itself allocates": (
        [
            at(100, A, "begin", 0, 0),
            at(110, A, "alloc", 7, 0),
            at(200, A, "end", 1),
            at(300, A, "drain", 8, 0),
        ],
        {"tries": 1, "misses": 1},
    ),
    "stolen while it waits": (
        [
            at(100, A, "begin", 0, 0),
            at(110, A, "free", 7, 0),
            at(120, A, "free", 8, 0),
            at(130, B, "alloc", 7, 0),
            at(200, A, "end", 2),
            at(300, A, "alloc", 8, 0),
        ],
        {"tries": 1, "freed": 2, "thefts": 1, "thefts_waiting": 1},
    ),
    "stolen when it has one, and in a later wait": (
        [
            at(100, A, "begin", 0, 0),
            at(110, A, "free", 8, 2),
            at(200, A, "end", 4),
            at(300, A, "alloc", 9, 0),
            at(310, B, "alloc", 8, 0),
            at(400, A, "begin", 0, 0),
            at(410, B, "alloc", 10, 1),
        ],
        {"tries": 1, "freed": 4, "thefts": 3},
    ),
    "an interrupt steals": (
        [at(1, A, "begin", 0, 0), at(2, A, "free", 7, 0), at(3, A, "alloc", 7, 0, flags=HARDIRQ)],
        {"freed": 1, "thefts": 1, "thefts_waiting": 1},
    ),
    "not freed by reclaim": (
        [*RECLAIM, at(210, A, "free", 7, 0), at(220, B, "alloc", 7, 0)],
        {"tries": 1},
    ),
    "who freed it last counts": (
        [at(1, A, "begin", 0, 0), at(2, A, "free", 7, 0), at(3, B, "free", 7, 0), at(4, B, "alloc", 7, 0)],
        {"freed": 1},
    ),
    "across CPUs": (
        [
            at(100, A, "begin", 0, 0, cpu=1),
            at(110, A, "free", 7, 0, cpu=1),
            at(120, A, "free", 8, 0),
            at(10**9, B, "alloc", 8, 0, cpu=1),
            at(10**9 + 1, A, "end", 2),
            at(10**11, A, "alloc", 7, 0, cpu=1),
        ],
        {"tries": 1, "freed": 2, "thefts": 1, "thefts_waiting": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_counted(tally: Tally, name: str) -> None:
    events, expected = CASES[name]
    assert tally(events) == expected


def test_many_pages_of_many_tasks(tally: Tally) -> None:
    events: list[Event] = []
    for number in range(500):
        start, pid, cpu = 1000 * number, 100 + number % 16, number // 3
        events += [
            at(start, pid, "begin", 0, 0, cpu=cpu),
            at(start + 1, pid, "free", number, 0, cpu=cpu),
            at(start + 2, pid, "end", 1, cpu=cpu),
            at(start + 3, pid + 1, "alloc", number, 0, cpu=cpu + 1),
            at(start + 4, pid, "drain", 9, 0, cpu=cpu),
            at(start + 5, pid, "alloc", 1000, 0, cpu=cpu),
        ]
    all_of_them = dict.fromkeys(("tries", "misses", "freed", "thefts", "thefts_waiting"), 500)
    assert tally(events) == all_of_them


def test_what_is_late_is_not_hidden(tally: Tally) -> None:
    """A CPU's events are in order; where they are not, the numbers are no good."""
    assert tally([at(200, A, "begin", 0, 0), at(100, A, "other", 1)][::-1]) == {}
    first, second = at(200, A, "begin", 0, 0), at(100, A, "end", 1)
    five = [first] + [at(200 + n, A, "other", 1) for n in range(4)]
    assert tally([*five, second])["lost"] == 1


@pytest.mark.parametrize("kind", ["overrun", "commit overrun", "dropped events"])
def test_what_the_kernel_lost_is_counted(tally: Tally, program: Path, kind: str) -> None:
    stats = program.parent / "per_cpu" / "cpu0" / "stats"
    lose = f"sed -i 's/^{kind}: 0/{kind}: 12/' {stats}"
    assert tally([], "sh", "-c", lose) == {"lost": 12}


def test_it_ends_as_its_program_does(tally: Tally) -> None:
    tally([], "false", status=1)
    tally([], "sh", "-c", "exit 7", status=7)
    tally([], "sh", "-c", "kill -9 $$", status=137)
    tally([], "/nonexistent", status=1)
