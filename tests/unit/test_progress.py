# SPDX-License-Identifier: GPL-2.0-only
"""What a person sees while it runs."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from testbed.report.words import duration
from testbed.terminal import progress
from testbed.terminal.progress import Watcher
from tests.unit.recorded import record


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def lines(story: Callable[[Watcher], None], *, terminal: bool = False) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=80, highlight=False, force_terminal=terminal)
    with Watcher(console) as watcher:
        story(watcher)
    return out.getvalue().splitlines()


def test_a_line_to_be_pasted_is_not_wrapped_at_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = f"gdb {'/directory' * 30}/vmlinux -ex 'target remote localhost:1'"
    # As on a terminal that shows both: rich takes over standard output while it draws a bar.
    console = Console(file=sys.stdout, width=80, highlight=False, force_terminal=True)
    with Watcher(console) as watcher:
        watcher.note("stopped")
        watcher.result(line)
    assert line in capsys.readouterr().out


def test_what_was_said_of_a_source_is_not_said_again_before_trials_run(clock: Clock) -> None:
    def story(watcher: Watcher) -> None:
        for _ in range(2):
            watcher.note("the source is linux-source-6.1")
        watcher.started(4, 0, 2)
        for _ in range(2):
            watcher.note("decided after 4 seeds")
            watcher.started(4, 4, 2)

    told = lines(story)
    assert told.count("the source is linux-source-6.1") == 1
    # Of one cell after the other.
    assert told.count("decided after 4 seeds") == 2


def test_a_line_for_each_event(clock: Clock) -> None:
    def story(watcher: Watcher) -> None:
        watcher.note("unpatched: compiling Linux 6.1.192")
        watcher.started(4, 0, 2)
        for seconds, arm, seed in ((60.0, "unpatched", 1), (30.0, "patched", 1), (30.0, "patched", 2)):
            clock.now += seconds
            watcher.ended(record(arm, seed))
        clock.now += 30.0
        watcher.ended(record("unpatched", 2, stages={"boot": 1.0, "workload": 2.04}))

    assert lines(story) == [
        "unpatched: compiling Linux 6.1.192",
        "4 trials: 4 to run, 2 at a time",
        "[1/4] unpatched seed 1: measured in 18.4 s; 1.0 trials/min, 3 min 00 s left",
        "[2/4] patched seed 1: measured in 18.4 s; 1.3 trials/min, 1 min 30 s left",
        "[3/4] patched seed 2: measured in 18.4 s; 1.5 trials/min, 40 s left",
        "[4/4] unpatched seed 2: measured in 3.0 s",
    ]


def test_what_is_there_already_counts_but_not_towards_the_rate(clock: Clock) -> None:
    def story(watcher: Watcher) -> None:
        watcher.started(10, 7, 1)
        clock.now += 60.0
        watcher.ended(record("a", 8))

    assert lines(story) == [
        "10 trials: 7 already there, 3 to run",
        "[8/10] a seed 8: measured in 18.4 s; 1.0 trials/min, 2 min 00 s left",
    ]


def test_how_a_trial_failed_is_told_in_its_line(clock: Clock) -> None:
    def story(watcher: Watcher) -> None:
        watcher.started(3, 0, 1)
        clock.now += 10.0
        said = "\n".join(f"line {n}" for n in range(9))
        watcher.ended(record("a", 1, "panic", f"the kernel panicked\n  the console's last lines:\n{said}"))
        watcher.ended(record("a", 2, "panic", "the kernel panicked again\n  the console's last lines:\nx"))
        watcher.ended(record("a", 3, "oom", "the OOM killer took sh\n  the console's last lines:\nx"))

    # The first time with its last words, then in a line each; what was killed is in a table later.
    assert lines(story)[1:] == [
        "[1/3] a seed 1: panic in 18.4 s: the kernel panicked; 6.0 trials/min, 20 s left",
        *(f"    line {n}" for n in range(4, 9)),
        "    the rest: testbed log RESULT a:1 --console",
        "[2/3] a seed 2: panic in 18.4 s: the kernel panicked again; 12.0 trials/min, 5 s left",
        "[3/3] a seed 3: oom in 18.4 s: the OOM killer took sh",
    ]


def test_a_lost_trial_is_not_done(clock: Clock) -> None:
    def story(watcher: Watcher) -> None:
        watcher.started(1, 0, 1)
        clock.now += 10.0
        watcher.ended(record("a", 1, "lost", "QEMU ended unexpectedly"))
        watcher.ended(record("a", 1, attempt=2))

    assert lines(story)[1:] == [
        "[0/1] a seed 1: lost in 18.4 s: QEMU ended unexpectedly",
        "[1/1] a seed 1: measured in 18.4 s",
    ]


def test_a_long_line_is_not_broken() -> None:
    assert lines(lambda watcher: watcher.note("x" * 300)) == ["x" * 300]


HOSTILE = "[bold]x[/bold] [/nothing] :smile: \x1b[2J\x07\r\x9b1m"
SHOWN = "[bold]x[/bold] [/nothing] :smile: \\x1b[2J\\x07\\r\\x9b1m"


def hostile(watcher: Watcher) -> None:
    watcher.note(HOSTILE)
    watcher.started(1, 0, 1)
    watcher.ended(record("a", 1, "failed", HOSTILE))


def test_what_a_guest_says_is_shown_and_not_obeyed() -> None:
    said = lines(hostile)
    assert said[0] == SHOWN
    assert said[2] == f"[1/1] a seed 1: failed in 18.4 s: {SHOWN}"


def test_nor_at_a_terminal() -> None:
    said = "\n".join(lines(hostile, terminal=True))
    # The bar moves the cursor, hides it and colours itself.
    plain = re.sub(r"\x1b\[(?:[0-9;]*m|\?25[lh]|2K|1A)|\r", "", said)
    assert all(char.isprintable() or char == "\n" for char in plain)
    assert SHOWN in plain


def test_at_a_terminal_there_is_a_bar_that_goes_away() -> None:
    def story(watcher: Watcher) -> None:
        watcher.started(3, 1, 1)
        watcher.ended(record("a", 2))

    said = lines(story, terminal=True)
    assert any("2/3" in line for line in said)
    # The bar is wiped at last, and the cursor is there again.
    assert said[-1].endswith("\x1b[?25h") or "\x1b[2K" in said[-1]


def test_the_bar_goes_away_when_something_fails(clock: Clock) -> None:
    out = io.StringIO()
    with pytest.raises(RuntimeError), Watcher(Console(file=out, force_terminal=True)) as watcher:
        watcher.started(1, 0, 1)
        raise RuntimeError
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") > 0


def test_results_are_not_mixed_with_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with Watcher() as watcher:
        watcher.note("building")
    assert capsys.readouterr() == ("", "building\n")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7200, "120 min 00 s"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
