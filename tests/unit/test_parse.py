# SPDX-License-Identifier: GPL-2.0-only
"""A console log, whole or damaged: its numbers are the guest's, or they are missing and it says so."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from testbed import wire
from testbed.analysis import parse as parsing
from testbed.analysis.parse import Measurement, parse
from testbed.analysis.requests import Request
from tests.unit.recorded import (
    HEADER,
    PATCHED,
    REPOSITORY,
    UNPATCHED,
    frame,
    span,
    traced,
    with_frame,
    without_frame,
)

LOGS = {"unpatched": UNPATCHED, "patched": PATCHED}
WHOLE = {name: parse(log) for name, log in LOGS.items()}
KERNEL = b"[   12.345678] watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [mmap_test:91]\n"

both_logs = pytest.mark.parametrize("name", LOGS)


def names_of(log: bytes) -> list[str]:
    return [match[1].decode() for match in HEADER.finditer(log)]


def honest(damaged: bytes, whole: Measurement) -> Measurement:
    """What is read from a damaged log: each part as it was, or absent and in the problems."""
    found = parse(damaged)
    problems = "\n".join(found.problems)
    assert found.workload in (whole.workload, None)
    assert found.counters in (whole.counters, None)
    assert found.requests in (whole.requests, ())
    if found.workload is None:
        assert "frame tasks: " in problems
    if found.counters is None:
        assert "frame vmstat." in problems
    if found.requests != whole.requests:
        assert "frame trace: " in problems
    return found


# --- whole logs -----------------------------------------------------------------------------------


@both_logs
def test_a_recorded_log_is_complete(name: str) -> None:
    whole = WHOLE[name]
    assert whole.complete and whole.problems == () and whole.oom_victims == ()
    assert whole.workload and len(whole.workload.tasks) == 16


def test_the_numbers_are_those_in_the_log() -> None:
    """Read once more, by splitting lines."""
    lines = UNPATCHED.decode().splitlines()

    def body(name: str) -> list[str]:
        begin = next(i for i, line in enumerate(lines) if line.startswith(f"#tb:frame {name} "))
        # A line end comes before every mark.
        return lines[begin + 1 : lines.index(f"#tb:close {name}", begin) - 1]

    before = dict(line.split() for line in body("vmstat.before"))
    after = dict(line.split() for line in body("vmstat.after"))
    measured = WHOLE["unpatched"]
    assert measured.counters == {key: int(after[key]) - int(before[key]) for key in after}
    assert measured.counters["direct_reclaim_miss"] == len(measured.misses) > 200
    assert measured.counters["direct_reclaim_try"] == len(measured.requests) == len(body("trace")) > 400
    assert measured.workload
    said = json.loads("\n".join(body("tasks")))
    for task, read in zip(said["tasks"], measured.workload.tasks, strict=True):
        assert read.model_dump() == task | {"histogram": dict(task["histogram"]), "phases": ()}
    assert measured.workload.model_dump(by_alias=True, exclude={"tasks"}) | {"tasks": said["tasks"]} == said
    first = body("trace")[0]
    assert (first.split()[0], "progress=49 " in first) == ("mmap_test-92", True)
    (said,) = re.findall(r"reclaim_ns=(\d+) wait_ns=(\d+) slow_ns=(\d+)", first)
    times: dict[str, Any] = dict(zip(("reclaim_ns", "wait_ns", "slow_ns"), map(int, said), strict=True))
    pages: dict[str, Any] = {"order": 0, "progress": 49, "freed": 49, "stolen": 49}
    met: dict[str, Any] = {"first": "pcp", "second": "page", "drained": 2, "captured": 0, "allocated": 1}
    expected = Request(comm="mmap_test", pid=92, round=1, age_ns=0, **pages, **met, **times)
    assert measured.requests[0] == measured.misses[0] == expected
    assert str(measured.misses[0]) == "progress 49, order 0, pid 92, comm mmap_test"


def test_with_the_patch_nothing_is_missed() -> None:
    counters = WHOLE["patched"].counters
    assert counters and counters["direct_reclaim_miss"] == 0 and counters["reclaim_capture_used"] > 0
    assert WHOLE["patched"].misses == () and len(WHOLE["patched"].requests) > 400


def test_a_kernel_without_the_tracepoint_has_no_trace_to_miss() -> None:
    log = without_frame(UNPATCHED, "trace")
    for name in ("vmstat.before", "vmstat.after"):
        plain = wire.frames(log).contents[name]
        log = with_frame(log, name, re.sub(rb"(?m)^direct_reclaim_.*\n", b"", plain))
    found = parse(log)
    assert found.complete and found.problems == () and found.requests == ()
    assert found.unrecorded is None and found.chains is None


# --- cut off --------------------------------------------------------------------------------------


@both_logs
def test_cut_off_at_every_boundary(name: str) -> None:
    log = LOGS[name]
    boundaries = [0, len(log)]
    for match in HEADER.finditer(log):
        body_end = match.end() + int(match[2])
        boundaries += [match.start(), match.start() + 5, match.end() - 1, match.end(), body_end, body_end + 5]
    for at in boundaries:
        honest(log[:at], WHOLE[name])
        honest(log[at:], WHOLE[name])


@settings(max_examples=60)
@given(st.data())
def test_cut_off_anywhere(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(PATCHED)))
    found = honest(PATCHED[:at], WHOLE["patched"])
    # The counters before the run are what is sent last.
    assert found.complete == (at >= span(PATCHED, "vmstat.before")[1] - 1)


def test_what_is_cut_off_says_how_much() -> None:
    log = PATCHED[: span(PATCHED, "tasks")[0] + 1000]
    assert any(
        re.fullmatch(r"frame tasks: cut off after \d{3} of \d{5} bytes", p) for p in parse(log).problems
    )


# --- disturbed ------------------------------------------------------------------------------------


def in_payload(log: bytes) -> list[int]:
    return [m.end() + int(m[2]) // 2 for m in HEADER.finditer(log) if int(m[2])]


def in_header(log: bytes) -> list[int]:
    return [at for m in HEADER.finditer(log) for at in (m.start() + 3, m.start(2) + 1, m.end() - 3)]


def in_close(log: bytes) -> list[int]:
    return [m.start() + 6 for m in re.finditer(rb"\n#tb:close ", log)]


def after_header(log: bytes) -> list[int]:
    return [m.end() for m in HEADER.finditer(log) if int(m[2])]


@both_logs
@pytest.mark.parametrize("where", [in_payload, in_header, in_close, after_header], ids=lambda f: f.__name__)
@pytest.mark.parametrize("noise", [KERNEL, b"\0", b"7"], ids=repr)
def test_something_lands_inside_a_frame(name: str, where: Callable[[bytes], list[int]], noise: bytes) -> None:
    log = LOGS[name]
    for at in where(log):
        honest(log[:at] + noise + log[at:], WHOLE[name])


@pytest.mark.parametrize("part", ["tasks", "vmstat.before", "vmstat.after"])
def test_a_kernel_message_in_a_payload_is_refused_and_said(part: str) -> None:
    at = span(PATCHED, part)[0] + 500
    found = honest(PATCHED[:at] + KERNEL + PATCHED[at:], WHOLE["patched"])
    assert not found.complete
    assert f"frame {part}: checksum or end does not match" in found.problems
    # The other half is as good as ever.
    assert (found.workload is None) != (found.counters is None)


@both_logs
def test_kernel_messages_between_frames_do_no_harm(name: str) -> None:
    log = re.sub(rb"\n#tb:(frame|start|end|ready)", lambda m: b"\n" + KERNEL + m[0], LOGS[name])
    log = re.sub(rb"(#tb:close \S+\n)", lambda m: m[0] + KERNEL, log)
    assert log.count(KERNEL) > 20
    assert parse(log) == WHOLE[name]


def test_a_kernel_message_inside_a_mark_hides_that_mark_only() -> None:
    at = PATCHED.index(b"#tb:end status=0") + 6
    log = PATCHED[:at] + KERNEL + PATCHED[at:]
    assert parse(log) == WHOLE["patched"]
    assert [m[1] for m in wire.Form().mark.finditer(log)][-1] == b"close"


@settings(max_examples=60)
@given(st.data())
def test_one_byte_changes_anywhere(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(PATCHED) - 1))
    byte = data.draw(st.binary(min_size=1, max_size=1))
    honest(PATCHED[:at] + byte + PATCHED[at + 1 :], WHOLE["patched"])


@settings(max_examples=60)
@given(st.data())
def test_a_piece_is_lost_anywhere(data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(PATCHED)))
    end = data.draw(
        st.integers(begin, min(len(PATCHED), begin + data.draw(st.sampled_from([1, 50, 5000, 90000]))))
    )
    honest(PATCHED[:begin] + PATCHED[end:], WHOLE["patched"])


@settings(max_examples=40)
@given(st.data())
def test_a_piece_arrives_twice(data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(PATCHED)))
    end = data.draw(st.integers(begin, len(PATCHED)))
    honest(PATCHED[:end] + PATCHED[begin:], WHOLE["patched"])


@pytest.mark.parametrize("lost", names_of(UNPATCHED))
def test_a_frame_that_never_came(lost: str) -> None:
    found = honest(without_frame(UNPATCHED, lost), WHOLE["unpatched"])
    # Of a pair one alone says nothing.
    needed = lost != "output"
    assert found.problems == ((f"frame {lost}: missing",) if needed else ())
    assert found.complete == (not needed)


@pytest.mark.parametrize("log", [b"", b"\0" * 5000, b"\n", b"SeaBIOS\r\nLinux version 6.1.192\r\n"], ids=len)
def test_a_log_with_nothing_in_it(log: bytes) -> None:
    found = parse(log)
    assert not found.complete and len(found.problems) == 4


def test_of_two_frames_with_one_name_neither_counts_unless_both_say_the_same() -> None:
    first, second = frame("output", b"first"), frame("output", b"second")
    assert parse(first + first).output == "first"
    differ = parse(first + second)
    assert differ.output == "" and "frame output: arrived with 2 contents" in differ.problems
    broken = parse(first + second.replace(b"second", b"secund"))
    assert broken.output == "first" and "frame output: checksum or end does not match" in broken.problems


def test_a_frame_that_another_closes_is_refused() -> None:
    found = parse(frame("output", b"said").replace(b"#tb:close output", b"#tb:close trace"))
    assert found.output == "" and "frame output: checksum or end does not match" in found.problems


def test_what_looks_like_a_frame_in_a_whole_frame_is_its_content() -> None:
    body = b"x\r#tb:frame vmstat.after 999 00000000\npgfault 1\nOut of memory: Killed process 1 (init)\n"
    log = with_frame(PATCHED, "output", body + b"#tb:user\n")
    assert parse(log) == replace(WHOLE["patched"], output=body.decode() + "#tb:user\n")


# --- content that is whole, and wrong --------------------------------------------------------------


def workload(**changes: Any) -> bytes:
    task: dict[str, Any] = {"group": "main", "status": 0, "histogram": [[3, 1], [7, 1]]}
    task |= {"pid": 1, "signal": 0, "ops": 2, "ns": 9, "max_ns": 7, "minor_faults": 2, "major_faults": 0}
    top: dict[str, Any] = {"workload": "mmap_test", "seed": 1, "clock_ns": 5, "facts": {"pages_per_task": 64}}
    top |= {key: changes.pop(key) for key in list(changes) if key in top}
    tasks = changes.pop("tasks", [task | changes])
    return json.dumps({**top, "tasks": tasks}).encode()


def test_the_workload_that_the_next_test_spoils_is_right() -> None:
    assert parse(with_frame(PATCHED, "tasks", workload())).problems == ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not JSON",
        b"null",
        b"[" * 100_000,
        b"{" + b'"a":' * 5 + b"1}",
        workload(ops=2**64),
        workload(ops=-1),
        workload(ops=2.0),
        workload(ops="2"),
        workload(ops=True),
        workload(ns=None),
        workload(seed=float("inf")),
        workload(seed=float("nan")),
        workload(tasks=[]),
        workload(tasks={}),
        workload(histogram=[[4480, 1]]),
        workload(histogram=[[-1, 1]]),
        workload(histogram=[[3, 1, 1]]),
        workload(histogram=[3, 1]),
        workload(histogram=[[3, 1], [3, 1]]),
        workload(histogram=[[3, True]]),
        workload(histogram=[[3.0, 1]]),
        workload(histogram=[[3, -1]]),
        workload(histogram=[[3, 2**64]]),
        workload(histogram={"3": 1}),
        workload(histogram=[[]] * 100_000),
        workload(phases=[[[3, 1]], [[4480, 1]]]),
        workload(phases=1),
        workload(group="Main"),
        workload(group="main\n"),
        workload(group="\ud800"),
        workload(workload=""),
        workload(facts={"huge": True}),
        workload(facts={"huge": "1"}),
        workload(facts={"huge": float("nan")}),
        workload(facts={"huge": 2**64}),
        workload(facts={"\x1b": 1}),
        workload(tasks=[1] * 100_000),
        workload().replace(b'"ops": 2', b'"ops": 2, "ops": 3'),
        workload().replace(b'"pages_per_task": 64', b'"a": 1e400'),
        workload().replace(b'"ops": 2', b'"ops": ' + b"9" * 5000),
        workload().replace(b'"ops": 2', b'"ops": 1e400'),
        workload().replace(b'"signal": 0, ', b""),
        workload().replace(b"main", b"ma\xffin"),
        workload()[:-1],
        workload() + b"{}",
    ],
    ids=lambda body: body.decode(errors="replace")[:40] + f" ({len(body)})",
)
def test_a_workload_of_another_form_is_refused_in_one_line(body: bytes) -> None:
    found = parse(with_frame(PATCHED, "tasks", body))
    assert found.workload is None and found.counters == WHOLE["patched"].counters
    (problem,) = found.problems
    assert problem.startswith("frame tasks: ") and "\n" not in problem


@pytest.mark.parametrize(
    "line",
    [
        "pgfault",
        "pgfault x",
        "pgfault 1 2",
        "pgfault " + "9" * 21,
        "pgfault 1.5",
        "PGFAULT 1",
        "pgfault \u0663",
        "pgfault NaN",
        "pgfault 1\r",
        "pgfault 1\x1cpgscan 2",
        " pgfault 1",
        "",
    ],
)
@pytest.mark.parametrize("part", ["vmstat.before", "vmstat.after"])
def test_a_counter_of_another_form_is_refused(part: str, line: str) -> None:
    body = wire.frames(PATCHED).contents[part]
    found = parse(with_frame(PATCHED, part, body + line.encode() + b"\n"))
    assert found.counters is None and found.workload == WHOLE["patched"].workload
    assert found.problems == (f"frame {part}: not a counter: {line!r}",)


def test_a_tally_is_read() -> None:
    assert WHOLE["patched"].tally is None
    found = parse(PATCHED + frame("tally", b"lost 0\nmisses 12\n"))
    assert found.tally == {"lost": 0, "misses": 12} and found.complete


@pytest.mark.parametrize("body", [b"lost", b"lost x\n", b"\xff\n", b"lost 1 2\n"])
def test_a_tally_of_another_form_is_refused(body: bytes) -> None:
    found = parse(PATCHED + frame("tally", body))
    assert found.tally is None and found.counters == WHOLE["patched"].counters
    assert len(found.problems) == 1 and found.problems[0].startswith("frame tally: ")


def test_the_victims_of_the_oom_killer_are_named() -> None:
    said = b"[ 9.1] Out of memory: Killed process 91 (mmap_test) total-vm:14372kB, anon-rss:0kB\r\n"
    assert parse(PATCHED + said + said.replace(b"mmap_test", b"sh")).oom_victims == ("mmap_test", "sh")


# --- what every workload leaves --------------------------------------------------------------------

SAMPLED = b"samples 4\ncpu_ns 900\nperiod_ns 500\nlost 0\nbooted_ns 40\n"
TABLE = b"ns phase pswpout\n100 0 7\n200 0 8\n300 1 9\n1000000500 1 19\n"
EPISODES = {"duration": [[3, 1], [300, 1]], "pages": [[0, 1], [32, 1]], "tasks": [[91, 2, 32, 400]]}
USUAL: dict[str, bytes] = {
    "samples": TABLE,
    "sampling": SAMPLED,
    "zram.before": b"    4096       74    12288        0    12288        0        0        0        0\n",
    "zram.after": b"    8192      148    24576        0    24576        1        0        0        0\n",
    "kswapd.before": b"kswapd0 100\n",
    "kswapd.after": b"kswapd0 350\n",
    "tally": b"lost 0\nepisodes 2\nepisode_pages 32\n",
    "episodes": json.dumps(EPISODES).encode(),
}


def usual(**changes: bytes | None) -> bytes:
    """A log with all that there may be, but for some frames; `_` is the dot in their names."""
    new = {name: changes.get(name.replace(".", "_"), body) for name, body in USUAL.items()}
    return PATCHED + b"".join(frame(name, body) for name, body in new.items() if body is not None)


def test_all_that_a_workload_leaves_is_read() -> None:
    found = parse(usual())
    assert found.complete
    assert found.samples and found.samples.columns == ("ns", "phase", "pswpout")
    assert found.samples.rows[3] == (1000000500, 1, 19)
    assert found.samples.seconds == (0, 1e-7, 2e-7, 1.0000004)
    assert found.samples.phases == {0: (0, 2), 1: (2, 3)}
    assert found.measured_seconds == 1.0000004 and found.guest_seconds == 1.00000046
    assert found.sampling == {"samples": 4, "cpu_ns": 900, "period_ns": 500, "lost": 0, "booted_ns": 40}
    assert found.zram and found.zram.after["orig_data_size"] == 8192 and found.zram.after["same_pages"] == 1
    assert found.kswapd and found.kswapd.difference == {"kswapd0": 250}
    # The recorded log has these.
    assert found.pressure and found.pressure.difference == {"some": 3595321, "full": 3326858}
    assert found.meminfo and found.meminfo.after["MemTotal"] == 108768 * 1024
    assert found.episodes and found.episodes.duration == {3: 1, 300: 1}
    assert found.episodes.tasks[0].model_dump() == {"pid": 91, "episodes": 2, "pages": 32, "ns": 400}


@pytest.mark.parametrize(("sent", "problems"), [(0, 0), (1, 1)])
def test_a_frame_that_lost_both_its_marks_is_missed(sent: int, problems: int) -> None:
    names = set(re.findall(rb"\n#tb:frame (\S+) ", PATCHED))
    end = b"\n#tb:end ns=1 status=0 frames=%d\n"
    log = re.sub(rb"\n#tb:end [^\n]*\n", end % (len(names) + sent), PATCHED)
    found = parse(log)
    assert len(found.problems) == problems and found.complete == (not sent)
    if sent:
        assert found.problems == (f"{len(names)} of {len(names) + 1} frames arrived",)


def test_phases_are_not_told_where_rows_were_lost() -> None:
    found = parse(usual(sampling=SAMPLED.replace(b"lost 0", b"lost 2")))
    assert found.complete and found.samples and found.samples.phases == {}
    assert found.measured_seconds is None and found.guest_seconds is None


def test_a_counter_that_was_not_there_before_has_no_difference() -> None:
    found = parse(usual(kswapd_after=b"kswapd0 350\nkswapd1 9\n"))
    assert found.kswapd and found.kswapd.difference == {"kswapd0": 250}


def test_a_users_own_program_leaves_no_tasks() -> None:
    log = without_frame(PATCHED, "tasks")
    assert parse(log).problems == ("frame tasks: missing",)
    for mark in (b"\n#tb:user\n", b"\n#tb:user ns=12\r\n"):
        found = parse(mark + log)
        assert found.complete and found.user and found.workload is None
    assert not parse(b"#tb:user" + log.lstrip(b"\n")).complete
    assert not parse(b"\n#tb:user\n" + without_frame(log, "vmstat.after")).complete


@pytest.mark.parametrize(
    ("part", "body"),
    [
        ("samples", b""),
        ("samples", b"ns phase\n"),
        ("samples", TABLE[:-1]),
        ("samples", TABLE[:-4]),
        ("samples", TABLE.replace(b"phase", b"pswpout")),
        ("samples", TABLE.replace(b"pswpout", b"PSI")),
        ("samples", TABLE.replace(b"ns ", b"time ")),
        ("samples", TABLE.replace(b"200 0", b"50 0")),
        ("samples", TABLE.replace(b"300 1", b"300 2")),
        ("samples", TABLE.replace(b" 8", b" 8 8")),
        ("samples", TABLE.replace(b" 8", b"")),
        ("samples", TABLE.replace(b" 8", b" --8")),
        ("samples", TABLE.replace(b" 8", b" 0x8")),
        ("samples", TABLE.replace(b" 8", b" 1_8")),
        ("samples", TABLE.replace(b" 8", b" nan")),
        ("samples", TABLE.replace(b" 8", b" " + b"9" * 21)),
        ("samples", TABLE.replace(b" 8", b" " + b"9" * 10_000)),
        ("samples", TABLE.replace(b"\n", b"\r\n")),
        ("samples", TABLE.replace(b"200 0 8\n", b"")),
        ("samples", TABLE.replace(b"200 0 8\n", b"\n200 0 8\n")),
        ("samples", None),
        ("sampling", None),
        ("sampling", b"samples 4\n"),
        ("sampling", b"samples 4\nsamples 4\nlost 0\n"),
        ("zram.before", None),
        ("zram.after", b"1 2 3\n"),
        ("zram.after", b"1 2 3 4 5 6 -7\n"),
        ("zram.after", b"1 2 3 4 5 6 " + b"7" * 21 + b"\n"),
        ("kswapd.after", None),
        ("kswapd.after", b"kswapd0\n"),
        ("episodes", b"{}"),
        ("episodes", json.dumps(EPISODES | {"tasks": [[91, 2, 32]]}).encode()),
        ("episodes", json.dumps(EPISODES | {"tasks": [[91, 2, 32, True]]}).encode()),
        ("episodes", json.dumps(EPISODES | {"tasks": 5}).encode()),
        ("episodes", json.dumps(EPISODES | {"pages": [[1025, 1]]}).encode()),
        ("episodes", b"[]"),
        ("tally", b"lost 0\nlost 1\n"),
    ],
    ids=str,
)
def test_what_is_of_another_form_is_refused_in_one_line(part: str, body: bytes | None) -> None:
    found = parse(usual(**{part.replace(".", "_"): body}))
    field = part.partition(".")[0]
    assert getattr(found, "samples" if field == "sampling" else field) is None
    (problem,) = found.problems
    assert "\n" not in problem and "frame " in problem and not found.complete
    whole = parse(usual())
    for other in {"zram", "kswapd", "episodes", "tally", "vmstat", "workload"} - {field}:
        assert getattr(found, other) == getattr(whole, other) is not None


def test_the_share_of_the_log_in_damaged_frames_is_said() -> None:
    assert WHOLE["patched"].damaged == 0
    begin, end = span(PATCHED, "tasks")
    found = parse(PATCHED[: begin + 500] + b"!" + PATCHED[begin + 501 :])
    # The line end after it is nobody's.
    assert found.damaged == (end - 1 - begin) / len(PATCHED)
    assert found.problems[-1] == f"{found.damaged:.1%} of the log is in damaged frames"
    cut = parse(PATCHED[: begin + 500])
    assert cut.damaged == 500 / (begin + 500)


@pytest.mark.parametrize(
    ("mark", "damaged", "problem"),
    [
        (b"#tb:frame tally ", b"#tb:f\nrame tally ", "frame tally: its beginning is missing"),
        (b"#tb:frame tally ", b"#tb:frame tally x", "frame tally: its header is damaged"),
        (b"#tb:frame tally ", b"#tb:frame\n", "frame ?: its header is damaged"),
        (b"#tb:close tally", b"#tb:close tally.x", "frame tally: checksum or end does not match"),
        (b"#tb:close tally", b"#tb:close", "frame tally: checksum or end does not match"),
    ],
)
def test_a_frame_that_nobody_needs_is_not_lost_silently(mark: bytes, damaged: bytes, problem: str) -> None:
    found = parse(usual().replace(mark, damaged))
    assert found.tally is None and not found.complete
    assert any(said.startswith(problem) for said in found.problems)


def test_of_very_many_problems_some_are_told() -> None:
    found = parse(b"\n#tb:frame a 00000000" * 100_000)
    assert len(found.problems) == parsing.TOLD + 2
    assert found.problems[-2:] == (
        f"and {100_000 + 4 - parsing.TOLD} problems more",
        "100.0% of the log is in damaged frames",
    )


@pytest.mark.parametrize(
    "line",
    [
        b"Memory cgroup out of memory: Killed process 91 (memcg) total-vm:14372kB",
        b"Out of memory (oom_kill_allocating_task): Killed process 91 (memcg) total-vm:14372kB",
    ],
)
def test_every_kind_of_oom_kill_has_a_victim(line: bytes) -> None:
    # The same line twice is the same kill.
    assert parse(PATCHED + line + b"\n" + line + b"\n").oom_victims == ("memcg",)


# --- hostile --------------------------------------------------------------------------------------

FRAGMENTS = [
    b"\n#tb:frame ",
    b"#tb:close ",
    b"vmstat.before",
    b"mmap_test",
    b" 0 00000000\n",
    b" 999999999 ",
    b"\r",
]
FRAGMENTS += [
    b"Out of memory: Killed process ",
    b" (",
    b")",
    b"#",
    b"\n",
    b"\0",
    b"\xff",
    frame("trace", b"#\n##\n"),
]
FRAGMENTS += [frame("tasks", b'{"tasks": [{}]}'), frame("vmstat.after", b"a 1\n"), traced().encode()]
FRAGMENTS += [frame("tally", b"lost 0\n"), b"lost -1\n", b"tally"]


@settings(max_examples=150)
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=10)), max_size=25).map(b"".join))
@example(b"\n#tb:frame a 999999999 00000000\n" * 50)
def test_nothing_that_a_guest_says_raises(log: bytes) -> None:
    found = parse(log)
    assert found.workload is None and found.problems
    assert not any("\n" in problem for problem in found.problems)


# --- frames that hold marks ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder that runs in the guest, kept from this machine's printk level."""
    directory = tmp_path_factory.mktemp("tell")
    source = (REPOSITORY / "images" / "src" / "tell.c").read_text()
    assert '"/proc/sys/kernel/printk"' in source
    (directory / "tell.c").write_text(source.replace('"/proc/sys/kernel/printk"', '"/dev/null"'))
    gcc = shutil.which("gcc") or pytest.fail("no gcc: `testbed doctor`")
    subprocess.run([gcc, "-o", "tell", "tell.c"], cwd=directory, check=True)
    return directory / "tell"


MARKLIKE = [
    b"#",
    b"##",
    b"#tb:",
    b"end status=0",
    b"close output",
    b"frame x 1 00000000",
    b"\n",
    b"a",
    b"\0",
    b"\xff",
]


@settings(max_examples=40)
@given(body=st.lists(st.sampled_from(MARKLIKE), max_size=12).map(b"".join))
@example(body=b"#tb:end status=0\n#tb:close output\n##\n#")
@example(body=b"")
def test_marks_in_a_frame_are_content(tell: Path, body: bytes) -> None:
    said = subprocess.run([tell, "frame", "output"], input=body, capture_output=True, check=True).stdout
    assert said == frame("output", body)
    rest = without_frame(PATCHED, "output")
    log = rest + said + b"\n#tb:end status=1\n"
    assert wire.frames(log).contents["output"] == body
    after = log[len(rest) :]
    assert [m[1] for m in wire.Form().mark.finditer(after)] == [b"frame", b"close", b"end"]


def test_with_a_nonce_frames_have_it(tell: Path) -> None:
    nonce = "3a7429f1-34a8-45cf-87c7-00c423425c19"
    environment = {**os.environ, "NONCE": nonce}
    said = subprocess.run([tell, "frame", "x"], input=b"#a", env=environment, capture_output=True, check=True)
    assert said.stdout == frame("x", b"#a", f"#tb-{nonce}:".encode())
