# SPDX-License-Identifier: GPL-2.0-only
"""The framing alone decides what is believed, whatever has happened to it, and in no more time than it takes.

The content is written down here, as plain numbers, and read back by nothing of testbed's: whatever is done to
a log, a part of the measurement is what was written down, or it is absent.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed import wire
from testbed.analysis.metrics import METRICS
from testbed.analysis.parse import Measurement, Reading, parse
from testbed.analysis.views import Series
from tests.unit.recorded import frame, traced

Json = dict[str, Any]


def lines(values: Mapping[str, int]) -> bytes:
    return "".join(f"{name} {value}\n" for name, value in values.items()).encode()


# --- what the guests have to tell -------------------------------------------------------------------

BEFORE = {"nr_free_pages": 5000, "pgscan_direct": 10, "pgsteal_direct": 7, "pgscan_kswapd": 40}
BEFORE |= {"pgsteal_kswapd": 30, "allocstall_normal": 2, "allocstall_movable": 1, "oom_kill": 0}
AFTER = {"nr_free_pages": 900, "pgscan_direct": 1010, "pgsteal_direct": 807, "pgscan_kswapd": 4040}
AFTER |= {"pgsteal_kswapd": 2030, "allocstall_normal": 20, "allocstall_movable": 9, "oom_kill": 0}
TALLY = {"lost": 0, "tries": 19, "misses": 4, "misses_drained": 2, "episodes": 25, "episode_pages": 801}
EPISODES = {
    "duration": [[900, 20], [1024, 5]],
    "pages": [[0, 3], [32, 20], [161, 1], [1024, 1]],
    "tasks": [[91, 15, 500, 123456], [92, 10, 301, 98765]],
}
COLUMNS = (
    *("ns", "phase", "psi_some_us", "psi_full_us", "kswapd_ns", "held", "min", "low", "high"),
    "nr_free_pages",
)
ROWS = tuple((10**9 + i * 10**7, i // 3, 7 * i, 3 * i, 99 * i, i, 50, 60, 70, 5000 - i) for i in range(6))


def task(pid: int, group: str, phases: bool) -> Json:
    told: Json = {"group": group, "pid": pid, "signal": 0, "status": 0, "ops": 400 + pid, "ns": 10**8 + pid}
    told |= {"max_ns": 10**6 + pid, "minor_faults": 401, "major_faults": pid}
    told["histogram"] = [[500, 400], [700 + pid, pid]]
    return told | ({"phases": [[[500, 300]], [[500, 100], [700 + pid, pid]]]} if phases else {})


def workload(phases: bool) -> Json:
    tasks = [task(91, "main", phases), task(92, "main", phases), task(93, "probe", phases)]
    return {"workload": "stutter", "seed": 7, "clock_ns": 10**9, "facts": {"pages": 64}, "tasks": tasks}


# What a program prints may look like what a guest says: a log of testbed's, with other numbers.
LIE = b"".join(
    frame(name, body)
    for name, body in {
        "vmstat.before": lines(dict.fromkeys(BEFORE, 0)),
        "vmstat.after": lines(dict.fromkeys(AFTER, 666)),
        "tasks": json.dumps(workload(False) | {"seed": 666}).encode(),
        "tally": lines(dict.fromkeys(TALLY, 0) | {"misses": 666}),
        "samples": b"ns phase\n1 0\n666 0\n",
        "sampling": b"samples 2\nlost 0\n",
        "trace": b"# nop\n" + traced("x", 6, first="pcp", progress=666).encode(),
    }.items()
)
# What init draws before a program of the user's starts.
NONCE = b"3a7429f1-34a8-45cf-87c7-00c423425c19"
TRACE = traced(pid=92, first="empty", second="page", drained=1).encode()
KERNEL = b"[    9.876543] mmap_test invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE), order=0\n"


@dataclass(frozen=True)
class Guest:
    """Frames, and what they come to. `user`: somebody's own program ran, which tells nothing of tasks."""

    frames: Mapping[str, bytes]
    user: bool = False

    @property
    def log(self) -> bytes:
        said = b"\n#tb:user ns=1 nonce=%s\n" % NONCE if self.user else b""
        mark = self.prefix
        body = (KERNEL + b"\n").join(frame(name, self.frames[name], mark) for name in sorted(self.frames))
        begin, end = b"\n%sstart ns=1\n" % mark, b"\n%send status=0\n" % mark
        return b"SeaBIOS\r\n\n#tb:ready cpus=8\n" + said + begin + body + end

    @property
    def prefix(self) -> bytes:
        """What its marks begin with."""
        return b"#tb-%s:" % NONCE if self.user else b"#tb:"


USUAL = {"vmstat.before": lines(BEFORE), "vmstat.after": lines(AFTER), "output": b"said\n"}
USUAL["tasks"] = json.dumps(workload(False)).encode()
FULL = USUAL | {
    "tasks": json.dumps(workload(True)).encode(),
    "tally": lines(TALLY),
    "episodes": json.dumps(EPISODES).encode(),
    "samples": "\n".join(" ".join(map(str, row)) for row in (COLUMNS, *ROWS)).encode() + b"\n",
    "sampling": b"samples 6\ncpu_ns 12345\nperiod_ns 10000000\nlost 0\n",
    "kswapd.before": b"kswapd0 100\n",
    "kswapd.after": b"kswapd0 5100\n",
    "pressure.before": b"some avg10=0.00 avg60=0.00 avg300=0.00 total=100\n"
    b"full avg10=0.00 avg60=0.00 avg300=0.00 total=50\n",
    "pressure.after": b"some avg10=9.00 avg60=1.00 avg300=0.10 total=9100\n"
    b"full avg10=8.00 avg60=1.00 avg300=0.10 total=8050\n",
    "meminfo.before": b"MemTotal:         108768 kB\nHugePages_Total:       0\n",
    "meminfo.after": b"MemTotal:         108768 kB\nHugePages_Total:       0\n",
    "zram.before": b"    4096       74    12288        0    12288        0        0        0        0\n",
    "zram.after": b" 8192000  2048000  2100000        0  2100000       12        0        3        4\n",
    "held": b"10000000 4 500000\n30000000 9 -1\n",
    "trace": TRACE,
}
GUESTS = {
    "usual": Guest(USUAL | {"trace": b""}),
    "everything": Guest(FULL),
    "a liar": Guest(USUAL | {"output": LIE, "trace": TRACE}),
    "a program": Guest({name: FULL[name] for name in FULL if name not in ("tasks", "output")}, user=True),
    "a lying program": Guest(
        {"vmstat.before": lines(BEFORE), "vmstat.after": lines(AFTER), "output": LIE, "trace": b""}, user=True
    ),
}
LOGS = {name: guest.log for name, guest in GUESTS.items()}


def reading(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Mapping[str, int]]:
    return {"before": before, "after": after}


def truth(guest: Guest) -> dict[str, object]:
    """The parts of the measurement, by hand."""
    has = guest.frames.__contains__
    names = ["orig_data_size", "compr_data_size", "mem_used_total", "mem_limit", "mem_used_max"]
    names += ["same_pages", "pages_compacted", "huge_pages", "huge_pages_since"]
    memory = {"MemTotal": 108768 * 1024, "HugePages_Total": 0}
    squeezed = reading(
        dict(zip(names, (4096, 74, 12288, 0, 12288, 0, 0, 0, 0), strict=True)),
        dict(zip(names, (8192000, 2048000, 2100000, 0, 2100000, 12, 0, 3, 4), strict=True)),
    )
    waited = reading({"some": 100, "full": 50}, {"some": 9100, "full": 8050})
    known = {
        "workload": has("tasks") and json.loads(guest.frames["tasks"]),
        "vmstat": has("vmstat.after") and reading(BEFORE, AFTER),
        "meminfo": has("meminfo.after") and reading(memory, memory),
        "pressure": has("pressure.after") and waited,
        "zram": has("zram.after") and squeezed,
        "kswapd": has("kswapd.after") and reading({"kswapd0": 100}, {"kswapd0": 5100}),
        "samples": has("samples") and [list(COLUMNS), *map(list, ROWS)],
        "sampling": has("sampling") and {"samples": 6, "cpu_ns": 12345, "period_ns": 10**7, "lost": 0},
        "targets": has("held") and [(10**7, 4, 500_000), (3 * 10**7, 9, None)],
        "tally": has("tally") and TALLY,
        "episodes": has("episodes") and EPISODES,
        "requests": has("trace") and guest.frames["trace"] and [(49, 0, 92, "mmap_test", "empty", 2000)],
        "output": has("output") and guest.frames["output"].decode(),
    }
    return {name: part for name, part in known.items() if part}


def pairs(counts: Mapping[int, int]) -> list[list[int]]:
    return [[key, count] for key, count in counts.items()]


def told(found: Measurement) -> dict[str, object]:
    """The parts that a measurement has, in the form of truth()."""
    parts: dict[str, object] = {}
    for name in ("vmstat", "meminfo", "pressure", "zram", "kswapd"):
        if isinstance(part := getattr(found, name), Reading):
            parts[name] = reading(dict(part.before), dict(part.after))
    if found.workload:
        tasks = []
        for one in found.workload.tasks:
            said = one.model_dump() | {"histogram": pairs(one.histogram)}
            del said["phases"]
            tasks.append(said | ({"phases": [pairs(h) for h in one.phases]} if one.phases else {}))
        whole = {"workload": found.workload.name, "seed": found.workload.seed}
        whole |= {"clock_ns": found.workload.clock_ns, "facts": dict(found.workload.facts), "tasks": tasks}
        parts["workload"] = whole
    if found.samples:
        parts["samples"] = [list(found.samples.columns), *map(list, found.samples.rows)]
    if found.targets:
        parts["targets"] = [(target.ns, target.pages, target.late) for target in found.targets]
    if found.episodes:
        of_tasks = [[t.pid, t.episodes, t.pages, t.ns] for t in found.episodes.tasks]
        durations, pages = pairs(found.episodes.duration), pairs(found.episodes.pages)
        parts["episodes"] = {"duration": durations, "pages": pages, "tasks": of_tasks}
    if found.requests:
        records = [(r.progress, r.order, r.pid, r.comm, r.first, r.wait_ns) for r in found.requests]
        parts["requests"] = records
    for name in ("tally", "sampling", "output"):
        if part := getattr(found, name):
            parts[name] = dict(part) if isinstance(part, Mapping) else part
    return parts


TRUTH = {name: truth(guest) for name, guest in GUESTS.items()}


Views = tuple[float | None, Mapping[str, float], Series]


def views(found: Measurement) -> dict[str, Views]:
    return {m.name: (m.value(found), m.per_phase(found), m.series(found)) for m in METRICS}


WHOLE = {name: views(parse(log)) for name, log in LOGS.items()}
# What the parts of a measurement are alone decides what its metrics are.
CHECKED: set[tuple[str, frozenset[str]]] = set()


def check(name: str, log: bytes) -> Measurement:
    """No exception, no wrong number, and what is missing is said."""
    found = parse(log)
    parts = told(found)
    for part, content in parts.items():
        assert content == TRUTH[name].get(part), part
    absent = TRUTH[name].keys() - parts.keys()
    # A frame that not every guest sends may get lost unnoticed, if nothing at all is left of its marks.
    assert found.problems or not absent & {"vmstat", "workload"}
    begin = b"\n" + GUESTS[name].prefix
    marks = [begin + f"{kind} {part}".encode() for part in absent for kind in ("frame", "close")]
    assert found.problems or not any(mark in log for mark in marks)
    assert not any("\n" in problem for problem in found.problems) and 0 <= found.damaged <= 1
    assert bool(found.damaged) == any("damaged frames" in problem for problem in found.problems)
    if found.complete:
        assert "vmstat" in parts and ("workload" in parts or GUESTS[name].user)
    if (key := (name, frozenset(parts))) not in CHECKED:
        CHECKED.add(key)
        for metric, (value, phases, series) in views(found).items():
            known = WHOLE[name][metric]
            assert value in (None, known[0]) and phases in ({}, known[1]), metric
            assert series in ((), [], known[2]), metric
    return found


@pytest.mark.parametrize("name", GUESTS)
def test_a_whole_log_is_told_in_full(name: str) -> None:
    found = check(name, LOGS[name])
    assert found.complete and found.problems == () and found.damaged == 0
    assert told(found) == TRUTH[name]
    assert found.user == GUESTS[name].user


def test_the_numbers_of_the_liar_would_be_believed_if_they_were_frames() -> None:
    found = parse(LIE)
    assert found.vmstat and found.vmstat.after["oom_kill"] == 666 and found.workload and found.misses
    assert found.tally and found.tally["misses"] == 666 and found.workload.seed == 666


@settings(max_examples=100)
@given(st.sampled_from(["a program", "a lying program"]), st.data())
def test_who_does_not_know_the_nonce_says_nothing(name: str, data: st.DataObject) -> None:
    log, mark = LOGS[name], GUESTS[name].prefix
    between = [m.start() for m in re.finditer(rb"\n%s(?!close)" % mark, log)]
    lies = (LIE, b"\n#tb:end status=1 frames=0\n", b"\n#tb:user nonce=%s\n" % NONCE[::-1])
    said = data.draw(st.sampled_from(lies))
    at = data.draw(st.sampled_from(between))
    found = check(name, log[:at] + said + log[at:])
    assert found.complete and told(found) == TRUTH[name]


def test_a_nonce_that_arrived_damaged_makes_nothing_believed() -> None:
    log = LOGS["a program"].replace(NONCE, NONCE[:-1] + b"?", 1)
    found = parse(log)
    assert told(found) == {} and not found.complete


# --- damage -----------------------------------------------------------------------------------------

Change = Callable[[bytes, int, int, bytes], bytes]


def at_line_ends(log: bytes, every: int, words: bytes) -> bytes:
    counted = iter(range(log.count(b"\n") + 1))
    return re.sub(rb"\n", lambda m: m[0] + (b"" if next(counted) % every else words), log)


# Of a log, two places in it and some bytes.
CHANGES: dict[str, Change] = {
    "the beginning is missing": lambda log, a, b, _: log[a:],
    "the end is missing": lambda log, a, b, _: log[:a],
    "a piece is missing": lambda log, a, b, _: log[:a] + log[b:],
    "a piece is there twice": lambda log, a, b, _: log[:b] + log[a:],
    "a piece is somewhere else": lambda log, a, b, _: log[b:] + log[a:b] + log[:a],
    "a piece is backwards": lambda log, a, b, _: log[:a] + log[a:b][::-1] + log[b:],
    "a piece is overwritten": lambda log, a, b, words: log[:a] + words + log[a + len(words) :],
    "zeros instead of a piece": lambda log, a, b, _: log[:a] + bytes(b - a) + log[b:],
    "a bit is another": lambda log, a, b, _: (
        log[:a] + bytes(c ^ 1 << b % 8 for c in log[a : a + 1]) + log[a + 1 :]
    ),
    "something in between": lambda log, a, b, words: log[:a] + words + log[a:],
    "something at line ends": lambda log, a, b, words: at_line_ends(log, 1 + a % 7, words),
    "line ends of a terminal": lambda log, a, b, _: log[:a] + log[a:b].replace(b"\n", b"\r\n") + log[b:],
    "lines are joined": lambda log, a, b, _: log[:a] + log[a:b].replace(b"\n", b"") + log[b:],
    "digits are others": lambda log, a, b, _: log[:a] + log[a:b].replace(b"1", b"2") + log[b:],
    "very much in between": lambda log, a, b, words: log[:a] + (words or b"\0") * (b % 2000) + log[a:],
    "every line end is a mark": lambda log, a, b, _: (
        log[:a] + log[a:b].replace(b"\n", b"\n#tb:close ") + log[b:]
    ),
}
WORDS = st.sampled_from(
    [
        *(KERNEL, b"\n", b"\r\n", b"#", b"7", b"\0", b"\xff\xfe", b"\n#tb:meet\n"),
        *(b"\n#tb:frame ", b"\n#tb:frame vmstat.after 9 00000000\n"),
        *(b"\n#tb:frame output 999999999 ffffffff\n", b"\n#tb:close tasks\n", b"\n#tb:close "),
    ]
)
# In parts of a million of its length.
places = st.integers(0, 999_999)
damages = st.lists(
    st.tuples(st.sampled_from(list(CHANGES)), places, places, st.one_of(WORDS, st.binary(max_size=6))),
    min_size=1,
    max_size=3,
)
HOSTILE = 1_000


@settings(max_examples=HOSTILE, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(list(GUESTS)), damages)
def test_whatever_happens_to_a_log_no_number_is_wrong(
    name: str, damage: list[tuple[str, int, int, bytes]]
) -> None:
    log = LOGS[name]
    for change, first, second, words in damage:
        a, b = sorted(place * len(log) // 1_000_000 for place in (first, second))
        log = CHANGES[change](log, a, b, words)[: 1 << 18]
    check(name, log)


@pytest.mark.parametrize("name", GUESTS)
def test_cut_off_at_every_byte(name: str) -> None:
    log = LOGS[name]
    for at in range(len(log)):
        check(name, log[:at])


@pytest.mark.parametrize("name", GUESTS)
def test_every_byte_is_lost_once(name: str) -> None:
    log = LOGS[name]
    for at in range(len(log)):
        check(name, log[:at] + log[at + 1 :])


@pytest.mark.parametrize("name", ["a liar", "a lying program"])
@pytest.mark.parametrize("word", [b"", b"\n", KERNEL, b"\r\n"], ids=repr)
def test_a_lie_in_a_damaged_frame_is_no_frame(name: str, word: bytes) -> None:
    """Even where nothing is left that would contradict it."""
    for end in range(len(LOGS[name]) - 1, 0, -37):
        check(name, LOGS[name].replace(b"\n##", b"\n" + word + b"#")[:end])


# --- how much could not be used ---------------------------------------------------------------------


def test_the_share_that_is_damaged_is_that_of_the_frames() -> None:
    log = LOGS["usual"]
    body = frame("tasks", GUESTS["usual"].frames["tasks"])
    spoiled = log.replace(b'"seed": 7', b'"seed": 8')
    # A frame's last line end belongs to what follows.
    assert parse(spoiled).damaged == (len(body) - 1) / len(log)
    assert parse(log[: log.index(body) + 100]).damaged == 100 / (log.index(body) + 100)


# --- how long it may take ---------------------------------------------------------------------------

SIZE = 2 << 20


def overlapping() -> bytes:
    """Headers of which each says that its content goes to the one mark at the end."""
    header = b"\n#tb:frame a %09d 00000000\n"
    each = len(header % 0)
    total = SIZE // each * each
    return b"".join(header % (total - at) for at in range(each, total + 1, each)) + b"\n#tb:close a\n"


def repeated(words: bytes) -> bytes:
    return words * (SIZE // len(words))


def numbered(words: bytes) -> bytes:
    return b"".join(words % n for n in range(SIZE // len(words)))


SLOW: dict[str, Callable[[], bytes]] = {
    "contents that overlap": overlapping,
    "beginnings": lambda: numbered(b"\n#tb:frame a%d 5 00000000\n"),
    "ends": lambda: numbered(b"\n#tb:close a%d\n"),
    "beginnings of one": lambda: repeated(b"\n#tb:frame a 5 00000000\n"),
    "victims": lambda: repeated(b"Out of memory: Killed process 1 ("),
    "digits": lambda: b"Out of memory: Killed process " + repeated(b"1"),
    "line ends": lambda: repeated(b"\n"),
    "sharps": lambda: frame("output", repeated(b"#\n")),
    "a trace of spaces": lambda: frame("trace", repeated(b" ")),
    "a trace of dashes": lambda: frame("trace", repeated(b"a-1 -1 :")),
    "a trace of events": lambda: frame("trace", repeated(b"a-1 : mm_vmscan_direct_reclaim_alloc: =")),
    "a line of meminfo": lambda: frame("meminfo.after", repeated(b" ")),
    "a line of pressure": lambda: frame("pressure.after", b"some avg10=" + repeated(b"1.")),
    "an mm_stat": lambda: frame("zram.after", repeated(b" 1")),
    "a wide table": lambda: frame("samples", numbered(b"a%d ") + b"ns phase\n1\n"),
    "a long table": lambda: frame("samples", b"ns phase\n" + repeated(b"1 0\n")),
    "arrays": lambda: frame("tasks", repeated(b"[")),
    "a number": lambda: frame("tasks", repeated(b"1")),
    "histograms": lambda: frame("episodes", b'{"duration": [' + repeated(b"[1,1],") + b"[1,1]]}"),
    "counters": lambda: frame("vmstat.after", numbered(b"a%d 1\n")),
}


@pytest.mark.parametrize("kind", SLOW)
def test_an_enormous_log_takes_no_longer_than_its_length(kind: str) -> None:
    """What is quadratic would take 14 s at least, or minutes."""
    log = SLOW[kind]()
    began = time.process_time()
    found = parse(log)
    assert time.process_time() - began < 7
    assert found.workload is None and found.counters is None and not found.complete


# --- content that is whole, and hostile -------------------------------------------------------------

names = st.sampled_from(
    [*AFTER, "ns", "phase", "min", "low", "psi_some_us", "kswapd_ns", "lost", "period_ns"]
)
numbers = st.one_of(st.integers(-5, 300), st.integers(-(2**63), 2**64 - 1), st.sampled_from([2**64 - 1, 0]))
tables = st.dictionaries(names, numbers, max_size=8)


def json_of(draw: st.DrawFn) -> Json:
    count = st.one_of(st.integers(0, 5), st.sampled_from([2**64 - 1, 10**9]))
    histogram = st.lists(st.tuples(st.integers(0, 4479), count), max_size=3, unique_by=lambda pair: pair[0])
    tasks = []
    for _ in range(draw(st.integers(1, 3))):
        group = draw(st.sampled_from(["main", "probe", "bystander"]))
        one: Json = dict.fromkeys(("pid", "signal", "status", "minor_faults", "major_faults"), 0) | {
            "group": group
        }
        one |= {key: draw(count) for key in ("ops", "ns", "max_ns", "pid")}
        one |= {"histogram": draw(histogram), "phases": draw(st.lists(histogram, max_size=2))}
        tasks.append(one)
    return {"workload": "mmap_test", "seed": 1, "clock_ns": draw(count), "facts": {}, "tasks": tasks}


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Frames that are whole and of the right form, with any numbers."""
    log = b"".join(
        frame(f"{name}.{when}", lines(draw(tables)))
        for name in ("vmstat", "kswapd")
        for when in ("before", "after")
    )
    rows = draw(
        st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 3, st.integers(0, 2)), min_size=1, max_size=5)
    )
    text = "".join(f"{ns} {phase} {a} {b} 9\n" for (a, b, ns, phase) in sorted(rows, key=lambda row: row[2:]))
    log += frame("samples", f"ns phase nr_free_pages low kswapd_ns\n{text}".encode())
    sampling = {"samples": len(rows), "lost": draw(st.integers(0, 1)), "period_ns": draw(st.integers(0, 1))}
    log += frame("sampling", lines(sampling | {"cpu_ns": draw(st.integers(0, 2**64 - 1))}))
    log += frame("tasks", json.dumps(json_of(draw)).encode())
    log += frame("tally", lines(draw(tables)))
    reclaimers = draw(st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4), max_size=3))
    episodes = {"duration": [], "pages": [], "tasks": reclaimers}
    return log + frame("episodes", json.dumps(episodes).encode())


@settings(max_examples=200, deadline=None)
@given(contents())
def test_metrics_of_any_numbers_are_finite_or_absent(log: bytes) -> None:
    for name, (value, phases, series) in views(parse(log)).items():
        found = [value, *phases.values(), *(at for point in series for at in point)]
        for number in found:
            assert number is None or abs(number) < float("inf"), name


def test_a_frame_of_no_bytes_and_one_of_marks() -> None:
    body = b"#tb:close output\n#tb:frame output 0 00000000\n##\n#"
    for content in (b"", b"#", b"\n", b"\n#", body):
        log = frame("output", content) + frame("tally", b"")
        assert wire.frames(log).contents == {"output": content, "tally": b""}
