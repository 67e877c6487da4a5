# SPDX-License-Identifier: GPL-2.0-only
"""The patch under fire: debug kernels, faults, low zones, nodes, reserves, CMA; and no page goes lost.

The series `reclaim-capture-test` makes requests inside the kernel and looks at every page. The series
`reclaim-capture-as-posted` brings back the two mistakes of the first posting (Shaohua Li, RFC to linux-mm,
September 2010): these tests have to notice them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Literal

import pytest

from testbed.guest.image import Image
from testbed.kernel import series
from testbed.kernel.build import Kernel
from testbed.spec import MiB
from tests.guest import subject
from tests.guest.subject import AS_POSTED, DEBUG, EARLY, FALLBACK, FAST, OFF, PORT, Subject, bad

pytestmark = pytest.mark.fire
# Kernel lines that have all the series: the Debian source package of each.
LINES = {name: series.line(name).source for name in ("6.1",)}
MODES = {"off": OFF, "early": EARLY, "fallback": FALLBACK}
# Stacks, stackdepots and per-CPU caches come and go, in some tens of pages.
NOISE = 256
# 128 MiB below 4 GiB, on node 0; above, 64 MiB more on node 0 and 128 MiB on node 1.
TWO_NODES = (
    *("-machine", "max-ram-below-4g=128M", "-smp", "4,sockets=2,cores=2"),
    *("-object", "memory-backend-ram,id=m0,size=192M", "-numa", "node,nodeid=0,memdev=m0,cpus=0-1"),
    *("-object", "memory-backend-ram,id=m1,size=128M", "-numa", "node,nodeid=1,memdev=m1,cpus=2-3"),
)
# MiB of page cache that fill both nodes.
FULL = 224


@pytest.fixture(scope="module", params=LINES)
def package(request: pytest.FixtureRequest) -> str:
    return LINES[request.param]


@pytest.fixture(scope="module")
def image() -> Image:
    return subject.initramfs()


def kernel(package: str, patches: tuple[str, ...], config: tuple[str, ...] = DEBUG) -> Kernel:
    print(f"\nkernel: {package}, {', '.join(config)}, with {', '.join(patches)}", file=sys.__stderr__)
    return subject.kernel(package, patches, config)


@pytest.fixture(scope="module")
def port(package: str, image: Image) -> Iterator[Subject]:
    with subject.booted(kernel(package, PORT), image, cmdline="page_owner=on") as booted:
        yield booted


@pytest.fixture(scope="module")
def fast(package: str, image: Image) -> Iterator[Subject]:
    """The port again, without what makes a debug kernel slow."""
    with subject.booted(kernel(package, PORT, FAST), image) as booted:
        yield booted


@pytest.fixture(scope="module")
def as_posted(package: str, image: Image) -> Iterator[Subject]:
    with subject.booted(kernel(package, AS_POSTED), image) as booted:
        yield booted


@pytest.fixture(scope="module")
def two_nodes(package: str, image: Image) -> Iterator[Subject]:
    cmdline = "page_poison=1 cma=16M"
    with subject.booted(
        kernel(package, PORT), image, memory=320 * MiB, cmdline=cmdline, extra=TWO_NODES
    ) as booted:
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


# --- under pressure ----------------------------------------------------------------------------------


@pytest.mark.parametrize("load", ["anon", "file"])
@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_has_nothing_to_complain_of(
    port: Subject, mode: str, load: Literal["anon", "file"]
) -> None:
    port.sysctl("reclaim_capture", MODES[mode])
    before = port.counters()
    asked = subject.numbers(port.load(load, 2, prefix="ask 50,direct,movable,zero"))
    after = port.counters()
    captures = after["reclaim_capture"] - before["reclaim_capture"]
    assert bad(asked) == {}
    assert asked["captured"] <= captures
    assert (captures > 100) == (mode != "off")
    assert after["reclaim_capture"] == after["reclaim_capture_used"] + after["reclaim_capture_unused"]
    port.require_sound()


def test_allocations_may_fail_meanwhile(port: Subject) -> None:
    port.sysctl("reclaim_capture", FALLBACK)
    with port.faults(percent=5, times=3000):
        port.load("anon", 2, prefix="ask 50,direct,movable failing", status=None)
        assert port.faults_left() < 3000
    port.require_sound()


# --- no page is lost ---------------------------------------------------------------------------------


def capture(guest: Subject, times: int) -> tuple[int, int]:
    """Make direct requests until so many pages have been captured; how many pages were lost, by the
    counters and by what is not there any more."""
    guest.sysctl("reclaim_capture", EARLY)
    guest.fill_cache(64)
    free, before = guest.unaccounted(), guest.counters()
    done = 0
    while done < times:
        guest.fill_cache(160)
        result = guest.request(1000, "direct", "movable")
        assert result["captured"] > 0
        done += result["captured"]
    after = guest.counters()
    kept, used, unused = (
        after[name] - before[name]
        for name in ("reclaim_capture", "reclaim_capture_used", "reclaim_capture_unused")
    )
    assert kept >= times
    return kept - used - unused, guest.unaccounted() - free


def test_after_ten_thousand_captures_all_pages_are_there(fast: Subject) -> None:
    expected, lost = capture(fast, 10_000)
    assert expected == 0
    assert abs(lost) < NOISE


def test_the_first_posting_loses_a_page_with_every_further_batch(as_posted: Subject) -> None:
    expected, lost = capture(as_posted, 1_000)
    assert expected > 4 * NOISE
    assert abs(lost - expected) < NOISE


# --- pages that may not be used ----------------------------------------------------------------------


def test_a_page_that_may_not_be_freed_is_not_handed_out(port: Subject) -> None:
    port.sysctl("reclaim_capture", EARLY)
    port.fill_cache(64)
    before = port.counters()
    result = port.request(100, "direct", "movable", "poison")
    refused = port.counters()["reclaim_capture_reject_prepare"] - before["reclaim_capture_reject_prepare"]
    assert refused == 100
    # They were given other pages.
    assert (result["given"], result["captured"], bad(result)) == (100, 0, {})


def test_the_first_posting_hands_it_out(as_posted: Subject) -> None:
    as_posted.sysctl("reclaim_capture", EARLY)
    as_posted.fill_cache(64)
    result = as_posted.request(100, "direct", "movable", "poison")
    assert bad(result) == {"bad_state": 100}


def test_only_requests_from_the_reserves_give_pages_that_say_so(port: Subject) -> None:
    for mode in (EARLY, FALLBACK):
        port.sysctl("reclaim_capture", mode)
        port.fill_cache(128)
        result = port.request(500, "direct", "movable", "memalloc")
        assert bad(result) == {}
        assert result["reserve"] >= result["captured"]
        assert (result["captured"] > 400) == (mode == EARLY)
        result = port.request(500, "direct", "movable")
        assert (bad(result), result["reserve"]) == ({}, 0)


# --- nodes and zones ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bind", "cpuset"])
@pytest.mark.parametrize("mode", ["early", "fallback"])
def test_no_page_is_on_a_forbidden_node(two_nodes: Subject, mode: str, kind: str) -> None:
    two_nodes.sysctl("reclaim_capture", MODES[mode])
    before = two_nodes.counters()["reclaim_capture"]
    # Memory is short from the first touch on, and stays so.
    two_nodes.fill_cache(FULL)
    output = subject.numbers(two_nodes.run(f"place {kind} 6 {32 * MiB // 4096} 5"))
    assert output["seen"] > 1000
    assert output["wrong"] == 0
    assert two_nodes.counters()["reclaim_capture"] > before


@pytest.mark.parametrize("node", [0, 1])
def test_a_request_for_one_node_captures_there(two_nodes: Subject, node: int) -> None:
    two_nodes.sysctl("reclaim_capture", EARLY)
    for words in ((f"nid={node}", "thisnode"), (f"nid={1 - node}", f"nodes={1 << node}")):
        two_nodes.fill_cache(FULL)
        result = two_nodes.request(200, "direct", "movable", *words)
        assert result["captured"] > 100
        assert bad(result) == {}


def test_a_request_for_low_memory_captures_there(two_nodes: Subject) -> None:
    """Even if a memory cgroup is over its soft limit, so that pages of all zones are freed inside."""
    two_nodes.sysctl("reclaim_capture", EARLY)
    two_nodes.fill_cache(FULL)
    result = two_nodes.request(100, "direct", "movable", "dma32")
    assert bad(result) == {}
    assert result["captured"] > 50
    two_nodes.run("mkdir /run/memory")
    # Swap slots that the unified hierarchy has charged make mem_cgroup_swapout() of v1 stumble, patch or not.
    two_nodes.run("swapoff /dev/zram0")
    two_nodes.run("mount -t cgroup -o memory memory /run/memory")
    two_nodes.run("swapon /dev/zram0")
    two_nodes.run("mkdir /run/memory/it")
    two_nodes.set("/run/memory/it/memory.soft_limit_in_bytes", "1M")
    two_nodes.set("/run/memory/it/tasks", 1)
    # What is read again is charged to it.
    two_nodes.sysctl("drop_caches", 1)
    two_nodes.fill_cache(FULL)
    before = free_high_pages(two_nodes)
    assert bad(two_nodes.request(20, "direct", "movable", "dma32")) == {}
    # That there was soft-limit reclaim shows above 4 GiB.
    assert free_high_pages(two_nodes) > before + 1000
    two_nodes.require_sound()


def free_high_pages(guest: Subject) -> int:
    """Pages that are free in ZONE_NORMAL."""
    zones = guest.run("cat /proc/zoneinfo")
    pattern = r"zone +Normal\n(?:  per-node stats\n(?: {6}.*\n)+)?  pages free +(\d+)"
    return sum(int(n) for n in re.findall(pattern, zones))


def test_memory_that_has_to_stay_movable_does(two_nodes: Subject) -> None:
    """Reclaim frees pages of the CMA area and of movable blocks; the kernel's own requests get none."""
    two_nodes.sysctl("reclaim_capture", EARLY)
    two_nodes.fill_cache(FULL)
    before = two_nodes.counters()["reclaim_capture_reject_type"]
    assert bad(two_nodes.request(200, "direct", "hold")) == {}
    assert two_nodes.counters()["reclaim_capture_reject_type"] > before
    two_nodes.request(0)
    two_nodes.require_sound()
