# SPDX-License-Identifier: GPL-2.0-only
"""What the tests under fire rest on, since they are in no `make test` and would not be missed.

On one kernel line, and without what makes a debug kernel slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from testbed.experiment import MiB
from testbed.kernel import series
from tests.guest import subject
from tests.guest.subject import EARLY, FAST, OFF, PORT, Subject, bad
from tests.guest.test_correctness import NOISE, capture

LINE = series.line("6.1")


@pytest.fixture(scope="module")
def port(tell: Callable[[str], None]) -> Iterator[Subject]:
    tell(f"the kernel for tests of correctness on {LINE.directory}: from the cache, or built in a minute")
    kernel = subject.kernel(subject.tree(LINE), PORT, FAST)
    with subject.booted(kernel, subject.initramfs(), memory=256 * MiB) as booted:
        yield booted


@pytest.mark.parametrize(
    "line",
    [
        "BUG: KASAN: use-after-free in prep_new_page+0x1f/0x30",
        "BUG: Bad page state in process mmap_test  pfn:01234",
        "WARNING: CPU: 1 PID: 91 at mm/page_alloc.c:4711 get_page_from_freelist+0x1/0x2",
        "WARNING: possible circular locking dependency detected",
        "INFO: task mmap_test:91 blocked for more than 120 seconds.",
        "Oops: 0000 [#1] SMP KASAN",
    ],
)
def test_a_splat_is_known_for_one(line: str) -> None:
    assert subject.SPLAT.match(f"[    1.234567] {line}")
    assert not subject.SPLAT.match("[    1.234567] kasan: KernelAddressSanitizer initialized")


def test_what_they_ask_a_guest(port: Subject) -> None:
    assert [port.run(f"echo {words}") for words in ("one", "another")] == ["one\n", "another\n"]
    port.load("anon", 0.2)
    assert port.counters()["pgfault"] > 0
    port.require_sound()


@pytest.mark.parametrize("mode", [OFF, EARLY], ids=["off", "early"])
def test_requests_inside_the_kernel_get_good_pages(port: Subject, mode: int) -> None:
    port.sysctl("reclaim_capture", mode)
    before = port.counters()["reclaim_capture"]
    asked = subject.numbers(port.load("file", 0.5, prefix="ask 50,direct,movable,zero"))
    assert bad(asked) == {}
    captures = port.counters()["reclaim_capture"] - before
    assert (captures > 0) == (mode != OFF)
    assert asked["captured"] <= captures


def test_after_a_thousand_captures_all_pages_are_there(port: Subject) -> None:
    expected, lost = capture(port, 1_000)
    assert expected == 0
    assert abs(lost) < NOISE
    port.require_sound()


def test_only_requests_from_the_reserves_give_pages_that_say_so(port: Subject) -> None:
    port.sysctl("reclaim_capture", EARLY)
    port.fill_cache(128)
    reserves = port.request(500, "direct", "movable", "memalloc")
    assert bad(reserves) == {}
    assert reserves["reserve"] >= reserves["captured"] > 400
    ordinary = port.request(500, "direct", "movable")
    assert (bad(ordinary), ordinary["reserve"]) == ({}, 0)
