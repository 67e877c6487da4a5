# SPDX-License-Identifier: GPL-2.0-only
"""The patch under fire for a long time: `make soak`, or
`python -m tests.soak [MINUTES [CAPTURES]] [--line 6.1|all]`.

For so many minutes in each mode, anonymous and file pages by turns on a debug kernel, now with requests from
inside the kernel, now with allocations that fail. Then so many captures on a kernel that is fast. Ends with
an AssertionError at the first splat, at a page that is not as it should be, or when pages are lost.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from typing import Literal

from testbed.guest.image import Image
from testbed.kernel import series
from testbed.kernel.source import Source
from tests.guest import subject
from tests.guest.subject import EARLY, FALLBACK, FAST, OFF, PORT, Subject, bad
from tests.guest.test_correctness import NOISE, PLENTY, capture

ROUND_SECONDS = 15.0
# Captures after which pages are counted.
PART = 100_000


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def under_fire(guest: Subject, mode: int, seconds: float) -> None:
    """Keep it under pressure."""
    guest.sysctl("reclaim_capture", mode)
    end = time.monotonic() + seconds
    for seed in itertools.count(1):
        load: Literal["anon", "file"] = "anon" if seed % 2 else "file"
        asked = guest.load(load, ROUND_SECONDS, seed=seed, prefix="ask 50,direct,movable,zero")
        assert not (wrong := bad(subject.numbers(asked))), wrong
        with guest.faults(percent=2, times=10_000):
            guest.load("anon", ROUND_SECONDS, seed=seed, prefix="failing", status=None)
        guest.require_sound()
        if time.monotonic() > end:
            return


def in_each_mode(pristine: Source, image: Image, minutes: float) -> None:
    """On a debug kernel."""
    kernel = subject.kernel(pristine, PORT)
    for name, mode in {"off": OFF, "early": EARLY, "fallback": FALLBACK}.items():
        with subject.booted(kernel, image, cmdline="page_owner=on page_poison=1") as guest:
            under_fire(guest, mode, minutes * 60)
            counters = guest.counters()
        said = {key: value for key, value in counters.items() if key.startswith("reclaim_capture")}
        say(f"{pristine.label}, {name}: {minutes:g} min, no complaint; {said}")


def without_loss(pristine: Source, image: Image, captures: int) -> None:
    """On a kernel that is fast. Pages are counted on the way, so that a leak shows before the end."""
    with subject.booted(subject.kernel(pristine, PORT, FAST), image, memory=PLENTY) as guest:
        began, lost = time.monotonic(), 0
        for done in range(0, captures, PART):
            part = min(PART, captures - done)
            not_used, gone = capture(guest, part)
            lost += gone
            assert not_used == 0, not_used
            assert abs(lost) < NOISE, lost
            guest.require_sound()
            rate = (done + part) / (time.monotonic() - began)
            say(f"{pristine.label}: {done + part:,} captures, {rate:.0f}/s, {lost} pages lost")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("minutes", nargs="?", type=float, default=10.0, help="in each mode; 0 for none")
    parser.add_argument("captures", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--line", default="6.1", help="one of patches/lines.yaml, or all")
    wanted = parser.parse_args()
    image = subject.initramfs()
    for line in series.lines() if wanted.line == "all" else [series.line(wanted.line)]:
        pristine = subject.tree(line)
        if wanted.minutes:
            in_each_mode(pristine, image, wanted.minutes)
        if wanted.captures:
            without_loss(pristine, image, wanted.captures)


if __name__ == "__main__":
    main()
