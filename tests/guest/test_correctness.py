# SPDX-License-Identifier: GPL-2.0-only
"""The patch under fire: debug kernels, faults, low zones, nodes, reserves, CMA; and no page goes lost.

The series `reclaim-capture-test` makes requests inside the kernel and looks at every page. The series
`reclaim-capture-as-posted` brings back the two mistakes of the first posting (Shaohua Li, RFC to linux-mm,
September 2010): these tests have to notice them. With `reclaim-capture-mutants` single checks of the port
can be left out, and they have to notice that, too.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Literal

import pytest

from testbed.experiment import MiB
from testbed.guest.image import Image
from testbed.host.errors import Panic
from testbed.kernel.build import Kernel
from testbed.kernel.source import Source
from tests.guest import subject
from tests.guest.subject import (
    AS_POSTED,
    CMA,
    DEBUG,
    EARLY,
    FALLBACK,
    FAST,
    MUTANTS,
    OFF,
    PORT,
    SECONDS,
    Mutant,
    Subject,
    bad,
)

# Filling a KASAN kernel's memory takes minutes on a slow host.
pytestmark = [pytest.mark.fire, pytest.mark.timeout(2 * SECONDS)]
MODES = {"off": OFF, "early": EARLY, "fallback": FALLBACK}
# Pages that wait for RCU and what a stack depot grows by come and go: in idle guests, 15 at most.
NOISE = 64
# Lists so long that one pass over them is enough to free what a request wants. With a quarter of it, three.
PLENTY = 1024 * MiB
# Newer kernels keep no block for atomic requests that is more than a hundredth of a zone. Here two are not.
ROOMY = 1152 * MiB
# 128 MiB below 4 GiB, on node 0; above, 64 MiB more on node 0 and 128 MiB on node 1.
TWO_NODES = (
    *("-machine", "max-ram-below-4g=128M", "-smp", "4,sockets=2,cores=2"),
    *("-object", "memory-backend-ram,id=m0,size=192M", "-numa", "node,nodeid=0,memdev=m0,cpus=0-1"),
    *("-object", "memory-backend-ram,id=m1,size=128M", "-numa", "node,nodeid=1,memdev=m1,cpus=2-3"),
)
# MiB of page cache that fill both nodes.
FULL = 224
# ... and, in the guest with memory that can be taken away, ZONE_MOVABLE and a good part of ZONE_NORMAL.
CACHED = 256
# Three quarters of the CMA area, in pages.
MOST = 3072
# A block of memory that firmware says can be removed, all of it in ZONE_MOVABLE.
DIMM = (
    *("-m", "slots=1,maxmem=1G", "-object", "memory-backend-ram,id=dimm,size=128M"),
    *("-device", "pc-dimm,memdev=dimm,addr=0x100000000"),
)
BLOCK = f"/sys/devices/system/memory/memory{(1 << 32) // (128 * MiB)}/state"
# How often something is tried that need not come about the first time.
ROUNDS = 5
# What a debug kernel says of the mistakes that it can be told to make. The first of them that
# is about memory is lockdep's end.
MISTAKES = {
    "disorder": "possible circular locking dependency",
    "use_after_free": "KASAN: use-after-free",
    "free_in_use": "Bad page state",
}


@pytest.fixture(scope="module")
def image() -> Image:
    return subject.initramfs()


def kernel(pristine: Source, patches: tuple[str, ...], config: tuple[str, ...] = DEBUG) -> Kernel:
    # Minutes on an empty cache: say so, or it looks as if nothing happened.
    print(f"\nkernel: {pristine.label}, {', '.join(config)}, {', '.join(patches)}", file=sys.__stderr__)
    return subject.kernel(pristine, patches, config)


@pytest.fixture(scope="module")
def port(pristine: Source, image: Image) -> Iterator[Subject]:
    with subject.booted(kernel(pristine, PORT), image, cmdline="page_owner=on") as booted:
        yield booted


@pytest.fixture(scope="module")
def fast(pristine: Source, image: Image) -> Iterator[Subject]:
    """The port again, without what makes a debug kernel slow."""
    with subject.booted(kernel(pristine, PORT, FAST), image, memory=PLENTY) as booted:
        yield booted


@pytest.fixture(scope="module")
def as_posted(pristine: Source, image: Image) -> Iterator[Subject]:
    with subject.booted(kernel(pristine, AS_POSTED), image) as booted:
        yield booted


@pytest.fixture(scope="module")
def two_nodes(pristine: Source, image: Image) -> Iterator[Subject]:
    with with_two_nodes(kernel(pristine, PORT), image) as booted:
        yield booted


@pytest.fixture(scope="module")
def two_nodes_mutant(pristine: Source, image: Image) -> Iterator[Subject]:
    with with_two_nodes(kernel(pristine, MUTANTS), image) as booted:
        yield booted


def with_two_nodes(kernel: Kernel, image: Image) -> AbstractContextManager[Subject]:
    cmdline = "page_poison=1 cma=16M"
    return subject.booted(kernel, image, memory=320 * MiB, cmdline=cmdline, extra=TWO_NODES)


@pytest.fixture(scope="module")
def hotplug(pristine: Source, image: Image) -> Iterator[Subject]:
    """With memory that can be taken away."""
    with with_hotplug(kernel(pristine, PORT), image) as booted:
        yield booted


@pytest.fixture(scope="module")
def hotplug_mutant(pristine: Source, image: Image) -> Iterator[Subject]:
    with with_hotplug(kernel(pristine, MUTANTS), image) as booted:
        yield booted


def with_hotplug(kernel: Kernel, image: Image) -> AbstractContextManager[Subject]:
    cmdline = "page_owner=on memhp_default_state=online_movable"
    return subject.booted(kernel, image, memory=384 * MiB, cmdline=cmdline, extra=DIMM)


def test_a_debug_kernel_says_what_is_wrong(pristine: Source, image: Image) -> None:
    with subject.booted(kernel(pristine, PORT), image) as guest:
        guest.require_sound()
        for mistake, complaint in MISTAKES.items():
            assert complaint not in "\n".join(guest.splats())
            guest.set(f"{subject.HOOK}/mistake", mistake)
            assert complaint in "\n".join(guest.splats())
            with pytest.raises(AssertionError):
                guest.require_sound()


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
    assert (captures > 0) == (mode != "off")
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
    mib = guest.memory() // MiB
    done = 0
    while done < times:
        guest.fill_cache(mib)
        # Each frees 32 pages: three quarters of them all.
        result = guest.request(6 * mib, "direct", "movable")
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
    assert expected > 1_024
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


def test_without_the_flags_of_the_request_they_do_not_say_so(hotplug_mutant: Subject) -> None:
    hotplug_mutant.sysctl("reclaim_capture", EARLY)
    hotplug_mutant.fill_cache(CACHED)
    with hotplug_mutant.without(Mutant.FLAGS):
        result = hotplug_mutant.request(500, "direct", "highmem", "movable", "memalloc")
    assert result["captured"] > 400
    assert bad(result) == {"bad_reserve": result["captured"]}


def cut_off(guest: Subject) -> Mapping[str, int]:
    """Requests that have the block of the captured page isolated before they use it."""
    guest.sysctl("reclaim_capture", EARLY)
    guest.fill_cache(CACHED)
    result = guest.request(100, "direct", "highmem", "movable", "isolate")
    # Some blocks cannot be; on a slow machine, half of them.
    assert result["cut_off"] > 20
    return result


def test_a_page_whose_block_was_isolated_since_is_not_handed_out(hotplug: Subject) -> None:
    before = hotplug.counters()["reclaim_capture_unused"]
    free = hotplug.unaccounted()
    result = cut_off(hotplug)
    # They were given other pages.
    assert (result["given"], bad(result)) == (100, {})
    assert result["captured"] <= 100 - result["cut_off"]
    assert hotplug.counters()["reclaim_capture_unused"] - before >= result["cut_off"]
    assert abs(hotplug.unaccounted() - free) < NOISE
    hotplug.require_sound()


def test_without_the_check_at_use_it_is(hotplug_mutant: Subject) -> None:
    with hotplug_mutant.without(Mutant.USE):
        result = cut_off(hotplug_mutant)
    assert bad(result) == {"bad_cut_off": result["cut_off"]}


def test_a_page_of_the_latest_batch_is_kept(hotplug_mutant: Subject) -> None:
    hotplug_mutant.sysctl("reclaim_capture", EARLY)
    words = ("direct", "highmem", "movable")
    hotplug_mutant.fill_cache(CACHED)
    result = hotplug_mutant.request(500, *words)
    assert (result["captured"] > 400, bad(result)) == (True, {})
    hotplug_mutant.fill_cache(CACHED)
    with hotplug_mutant.without(Mutant.FIRST):
        assert hotplug_mutant.request(500, *words)["bad_age"] > 0


def kept_for_atomic_requests(guest: Subject) -> tuple[int, int]:
    """Pages of blocks that are kept for high-order atomic requests: before requests that the free lists give
    nothing to at first, and after them."""
    guest.sysctl("reclaim_capture", FALLBACK)
    guest.sysctl("drop_caches", 1)
    guest.fill_cache(64)
    before = guest.request(0, "reserve")["highatomic"]
    result = guest.request(100, "direct", "highmem", "movable", "miss")
    assert (result["captured"] > 50, bad(result)) == (True, {})
    return before, result["highatomic"]


def test_a_miss_gives_back_what_is_kept_for_atomic_requests(pristine: Source, image: Image) -> None:
    with subject.booted(kernel(pristine, PORT), image, memory=ROOMY) as guest:
        before, after = kept_for_atomic_requests(guest)
        # One block is left, unless two of them have become one page.
        assert after < before
        guest.require_sound()


def test_without_that_it_stays(pristine: Source, image: Image) -> None:
    with subject.booted(kernel(pristine, MUTANTS), image, memory=ROOMY) as guest:
        with guest.without(Mutant.RESERVED):
            before, after = kept_for_atomic_requests(guest)
        assert after == before > 0


def test_the_preferred_zone_may_go_meanwhile(hotplug: Subject) -> None:
    hotplug.sysctl("reclaim_capture", EARLY)
    hotplug.fill_cache(CACHED)
    result = hotplug.request(100, "direct", "highmem", "movable", "nozone")
    assert (result["captured"] > 50, bad(result)) == (True, {})
    hotplug.require_sound()


def test_without_a_fallback_for_it_the_kernel_falls_over(pristine: Source, image: Image) -> None:
    with subject.booted(kernel(pristine, MUTANTS), image) as guest:
        guest.sysctl("reclaim_capture", EARLY)
        guest.fill_cache(128)
        guest.set(f"{subject.HOOK}/mutant", int(Mutant.PREFERRED))
        guest.require_sound()
        with pytest.raises(Panic):
            guest.run("ask 100,direct,movable,nozone true")
        said = guest.guest.log.decode(errors="replace")
        assert re.search("null-ptr-deref|NULL pointer dereference", said)
        assert re.search(r"RIP: .*reclaim_capture_use", said)


# --- nodes and zones ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bind", "cpuset"])
@pytest.mark.parametrize("mode", ["early", "fallback"])
def test_no_page_is_on_a_forbidden_node(two_nodes: Subject, mode: str, kind: str) -> None:
    two_nodes.sysctl("reclaim_capture", MODES[mode])
    before = two_nodes.counters()["reclaim_capture"]
    # Memory is short from the first touch on, and stays so.
    two_nodes.fill_cache(FULL)
    # Requests from outside of the cpuset keep reclaim going on both nodes.
    words = f"ask 50,direct,movable place {kind} 6 {32 * MiB // 4096} 5"
    output = subject.numbers(two_nodes.run(words))
    assert bad(output) == {}
    assert output["seen"] > 1000
    assert output["wrong"] == 0
    assert two_nodes.counters()["reclaim_capture"] > before


@pytest.mark.parametrize("kind", ["bind", "cpuset"])
def test_what_others_free_is_captured_with_regard_to_nodes(two_nodes_mutant: Subject, kind: str) -> None:
    """The request's own reclaim keeps to its nodes, so that these checks hardly ever refuse a page."""
    two_nodes_mutant.sysctl("reclaim_capture", EARLY)
    wrong = {}
    for checks in (Mutant.OTHERS, Mutant.OTHERS | Mutant.NODE):
        before = two_nodes_mutant.counters()["reclaim_capture_reject_node"]
        two_nodes_mutant.fill_cache(FULL)
        with two_nodes_mutant.without(checks):
            words = f"ask 50,direct,movable,nodes=1 place {kind} 6 {32 * MiB // 4096} 5"
            output = subject.numbers(two_nodes_mutant.run(words))
        refused = two_nodes_mutant.counters()["reclaim_capture_reject_node"] - before
        assert (refused > 0) == (checks == Mutant.OTHERS)
        wrong[checks] = output["wrong"] + output["bad_node"]
    assert wrong[Mutant.OTHERS] == 0 < wrong[Mutant.OTHERS | Mutant.NODE]
    two_nodes_mutant.require_sound()


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
    ask_for_low_memory_over_the_soft_limit(two_nodes, FULL)


def test_a_request_for_low_memory_is_served_there_with_real_high_memory(
    pristine: Source, image: Image
) -> None:
    """On a machine as they are, 2 GiB below 4 GiB and 3 above, and not only with an unusual split. The page
    cache is above, at some 20 MiB a second, so that to fill 5 GiB takes minutes."""
    with subject.booted(kernel(pristine, PORT), image, memory=5 * 1024 * MiB) as guest:
        guest.sysctl("reclaim_capture", EARLY)
        ask_for_low_memory_over_the_soft_limit(guest, FULL)


def test_without_a_pointer_of_its_own_and_checks_it_is_not(two_nodes_mutant: Subject) -> None:
    two_nodes_mutant.sysctl("reclaim_capture", EARLY)
    if not limit_softly(two_nodes_mutant, FULL):
        pytest.skip("soft limits have no effect")
    # Soft-limit reclaim is what comes first, and a page of a later batch would take the place of its one.
    others = Mutant.OTHERS | Mutant.FIRST
    for checks in (others, others | Mutant.NODE | Mutant.ZONE):
        two_nodes_mutant.fill_cache(FULL)
        with two_nodes_mutant.without(checks):
            result = two_nodes_mutant.request(200, "direct", "movable", "dma32")
        assert (result["bad_zone"] > 0) == (Mutant.ZONE in checks)


def above_the_request(guest: Subject) -> tuple[Mapping[str, int], int]:
    """Requests for ZONE_NORMAL that have reclaim free pages of ZONE_MOVABLE: what came of them, and how many
    pages were not captured since their zone is too high."""
    guest.sysctl("reclaim_capture", EARLY)
    guest.fill_cache(CACHED)
    before = guest.counters()["reclaim_capture_reject_zone"]
    result = guest.request(200, "direct", "movable", "buffers")
    return result, guest.counters()["reclaim_capture_reject_zone"] - before


def test_a_request_is_served_from_its_zones_while_there_are_too_many_buffers(hotplug: Subject) -> None:
    result, refused = above_the_request(hotplug)
    assert bad(result) == {}
    assert refused > 0
    hotplug.require_sound()


def test_without_the_check_of_the_zone_it_is_not(hotplug_mutant: Subject) -> None:
    with hotplug_mutant.without(Mutant.ZONE):
        result, _ = above_the_request(hotplug_mutant)
    assert set(bad(result)) == {"bad_zone"}


def limit_softly(guest: Subject, mib: int) -> bool:
    """Have so much page cache over the soft limit of a memory cgroup; whether soft limits have an effect."""
    guest.run("mkdir /run/memory")
    # Swap slots that the unified hierarchy has charged make mem_cgroup_swapout() of v1 stumble, patch or not.
    guest.run("swapoff /dev/zram0")
    guest.run("mount -t cgroup -o memory memory /run/memory")
    guest.run("swapon /dev/zram0")
    guest.run("mkdir /run/memory/it")
    guest.set("/run/memory/it/memory.soft_limit_in_bytes", "1M")
    limited = guest.run("cat /run/memory/it/memory.soft_limit_in_bytes").strip() == str(MiB)
    # Newer kernels have the file and no soft limits any more.
    assert limited == ("Writing any value to this file has no effect" not in guest.run("dmesg"))
    guest.set("/run/memory/it/tasks", 1)
    # What is read again is charged to it.
    guest.sysctl("drop_caches", 1)
    guest.fill_cache(mib)
    return limited


def ask_for_low_memory_over_the_soft_limit(guest: Subject, mib: int) -> None:
    """Have so much page cache over the soft limit of a memory cgroup, and requests for ZONE_DMA32.

    Where soft limits have no effect, it is for others only that pages above 4 GiB may be freed.
    """
    limited = limit_softly(guest, mib)
    before = free_high_pages(guest)
    # That there was soft-limit reclaim shows above 4 GiB. How far a group is over its limit is known to it
    # only after a good many charges on each CPU.
    for _ in range(ROUNDS):
        assert bad(guest.request(200, "direct", "movable", "dma32")) == {}
        if limited and free_high_pages(guest) > before + 1000:
            break
    assert not limited or free_high_pages(guest) > before + 1000
    guest.require_sound()


def free_high_pages(guest: Subject) -> int:
    """Pages that are free in ZONE_NORMAL, on the free lists or on those of a CPU, which a drain empties."""
    text = guest.run("cat /proc/zoneinfo")
    zones = re.findall(r"^Node \d+, zone +Normal\n(.*?)(?=^Node|\Z)", text, re.MULTILINE | re.DOTALL)
    return sum(int(n) for n in re.findall(r"(?m)^ +(?:pages free|count:) +(\d+)", "".join(zones)))


def ask_for_the_kernel(guest: Subject) -> tuple[Counter[str], Counter[str]]:
    """The kernel's own requests, while reclaim frees pages of the CMA area and of movable blocks: what came
    of them, and what the counters of captures say of them."""
    guest.sysctl("reclaim_capture", EARLY)
    given, counts = Counter[str](), Counter[str]()
    # The page that is kept is one of the node that comes last. So many free all that there is: the pages of
    # the CMA area are the last that were filled.
    for node in (0, 1):
        guest.fill_cache(FULL)
        before = guest.counters()
        given += Counter(guest.request(8 * FULL, "direct", "hold", f"nid={node}"))
        after = guest.counters()
        guest.request(0)
        names = [name for name in after if name.startswith("reclaim_capture")]
        counts += Counter({name: after[name] - before[name] for name in names})
    return given, counts


def test_memory_that_has_to_stay_movable_does(two_nodes: Subject) -> None:
    """The kernel's own requests get no such page, and do not look for any."""
    result, counts = ask_for_the_kernel(two_nodes)
    assert bad(result) == {}
    assert not any(counts.values())
    two_nodes.require_sound()


def test_without_the_check_of_the_migrate_type_it_does_not(two_nodes_mutant: Subject) -> None:
    with two_nodes_mutant.without(Mutant.TYPE):
        result, counts = ask_for_the_kernel(two_nodes_mutant)
    assert counts["reclaim_capture_used"] > 100
    assert set(bad(result)) == {"bad_block"}


@pytest.mark.parametrize("mode", MODES)
def test_contiguous_memory_can_be_had_where_page_cache_is(two_nodes: Subject, mode: str) -> None:
    two_nodes.sysctl("reclaim_capture", MODES[mode])
    two_nodes.fill_cache(FULL)
    before = two_nodes.counters()
    assert before["nr_free_cma"] < MOST
    words = f"ask 50,direct,movable toggle {CMA}/alloc={MOST} {CMA}/free={MOST}"
    said = two_nodes.load("file", 5, prefix=words)
    output, after = subject.numbers(said), two_nodes.counters()
    assert bad(output) == {}
    assert after["cma_alloc_success"] - before["cma_alloc_success"] == output["done"] > 0, said
    assert (after["reclaim_capture"] > before["reclaim_capture"]) == (mode != "off")
    two_nodes.require_sound()


@pytest.mark.parametrize("mode", ["early", "fallback"])
def test_memory_can_be_taken_offline(hotplug: Subject, mode: str) -> None:
    hotplug.sysctl("reclaim_capture", MODES[mode])
    hotplug.fill_cache(64)
    isolated, free, before = hotplug.request(0)["isolated"], hotplug.unaccounted(), hotplug.counters()
    # Requests that may have pages of ZONE_MOVABLE. Others have been seen to be given one from the free lists,
    # when zonelists were made anew while they reclaimed.
    prefix = f"ask 50,direct,highmem,movable,zero toggle {BLOCK}=offline {BLOCK}=online_movable"
    # On a busy host the block may not be offline before the load ends.
    for _ in range(ROUNDS):
        said = hotplug.load("file", 5, prefix=prefix)
        output = subject.numbers(said)
        assert bad(output) == {}, said
        if output["done"] > 0:
            break
    assert output["done"] > 0, said
    # The rest has little room for anonymous pages: with these it may take for ever, in mode `off` as well.
    # What is reclaimed meanwhile is on isolated blocks, or not: some loads meet none.
    for seed in range(1, ROUNDS + 1):
        assert bad(subject.numbers(hotplug.load("anon", 5, footprint=0.8, seed=seed, prefix=prefix))) == {}
        if hotplug.request(0)["isolated"] > isolated:
            break
    else:
        pytest.fail(f"no page of an isolated block was reclaimed in {ROUNDS} loads")
    after = hotplug.counters()
    assert after["reclaim_capture"] - before["reclaim_capture"] > 100
    assert after["reclaim_capture"] == after["reclaim_capture_used"] + after["reclaim_capture_unused"]
    assert abs(hotplug.unaccounted() - free) < NOISE
    hotplug.require_sound()
