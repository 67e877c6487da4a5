# SPDX-License-Identifier: GPL-2.0-only
"""A kernel under test in a guest: pressure, requests from inside the kernel, splats, pages that are lost."""

from __future__ import annotations

import contextlib
import enum
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from testbed.experiment import ArmSpec, KernelSpec, MiB, MmapTest, WorkloadSpec
from testbed.guest import image
from testbed.guest.image import Image
from testbed.guest.live import LiveGuest
from testbed.guest.shape import Shape
from testbed.host.paths import cache_directory
from testbed.kernel import build, series, source
from testbed.kernel.build import Kernel
from testbed.kernel.series import Line
from testbed.kernel.source import Source
from testbed.wire import frames

DEBUG = ("guest", "reclaim", "debug")
FAST = ("guest", "reclaim")
PORT = ("instrumentation", "reclaim-capture", "reclaim-capture-test")
AS_POSTED = (*PORT, "reclaim-capture-as-posted")
# The port with checks that can be left out: Mutant.
MUTANTS = (*PORT, "reclaim-capture-mutants")
# Each is to be compared with the port, and applies to the counters alone: experiments/alternatives.yaml.
ALTERNATIVES = ("drain-local", "count-own-pcp", "limit-reclaimers", "rfc-literal")
# Without it a KASAN kernel does not boot through PVH; kernels that do have no series of that name.
BOOTS = "pvh-kasan"
# As in the sysctl.
OFF, EARLY, FALLBACK = 0, 1, 2

PROGRAMS = Path(__file__).parent / "src"
# What runs a KASAN kernel on a busy host's emulator has time.
SECONDS = 900.0
# Of memory that is touched: so that it is short, and not much more, since filling it is what takes a KASAN
# kernel its minutes.
FOOTPRINT = 1.2
# The emulator copies and clears byte by byte where a kernel uses string instructions: captures, with what it
# takes to fill the page cache again, take 1.6 times as long.
CPU = ("-cpu", "max,-erms,-fsrm")
# No more than the host has: a CPU that waits for another one's answer spins, and the other has to be running.
VCPUS = max(2, min(4, os.cpu_count() or 1))
# RCU's patience, and that of the check whether timer interrupts come, are in the host's seconds.
CMDLINE = "rcupdate.rcu_cpu_stall_suppress=1 no_timer_check"

SPLAT = re.compile(
    r".*(BUG:|WARNING:|INFO: (?:possible|trying|task)|Bad page|KASAN|Oops|general protection|corruption).*"
)
# The area that `cma=` reserves.
CMA = "/sys/kernel/debug/cma/reserved"
HOOK = "/sys/kernel/debug/reclaim_capture"
# Pages that have a user or are free, in /proc/zoneinfo: what is in none of them is lost, or the
# kernel's own for good.
_USED = (
    *("nr_free_pages", "nr_anon_pages", "nr_file_pages", "nr_slab_reclaimable", "nr_slab_unreclaimable"),
    *("nr_page_table_pages", "nr_zspages"),
)


class Mutant(enum.IntFlag):
    """Checks that MUTANTS can leave out, as in the patch."""

    FLAGS = 1
    ZONE = 2
    NODE = 4
    TYPE = 8
    USE = 16
    PREFERRED = 32
    FIRST = 64
    # No check: captures out of what any other reclaim frees, too.
    OTHERS = 128
    RESERVED = 256


def tree(line: Line) -> Source:
    """The Debian source of a kernel line. Raises HostError if it is not to be had here."""
    return source.resolve(KernelSpec(debian=line.source), cache_directory())


def stacks(version: str) -> list[tuple[str, ...]]:
    """All the series of a version, each in the stack that it applies in: the port's first, mutants last."""
    names = series.names(version)
    apart = (*ALTERNATIVES, MUTANTS[-1])
    port = tuple(name for name in names if name not in apart)
    return [port, *((PORT[0], name) for name in names if name in ALTERNATIVES), MUTANTS]


def kernel(pristine: Source, patches: Sequence[str], config: Sequence[str] = DEBUG) -> Kernel:
    """A source with these series, and what it needs to boot: built or from the cache."""
    boots = [name for name in series.names(pristine.version) if name == BOOTS]
    arm = ArmSpec(patches=(*patches, *boots))
    return build.build(build.plan(pristine, config, arm, cache_directory()))


def initramfs() -> Image:
    """The guests' image with the programs of these tests."""
    return image.build(cache_directory(), sorted(PROGRAMS.glob("*.c")))


class Subject:
    """A guest that has booted. Its commands raise GuestFailed, or what LiveGuest raises."""

    def __init__(self, guest: LiveGuest) -> None:
        self.guest = guest

    def set(self, path: str, value: object) -> None:
        self.guest.command(f"set {path} {value}", seconds=SECONDS)

    def sysctl(self, name: str, value: object) -> None:
        self.set(f"/proc/sys/vm/{name}", value)

    def run(self, words: str, seconds: float = SECONDS, status: str | None = "0") -> str:
        """What a program writes; its exit status has to be `status`, if that is given."""
        before = len(self.guest.log)
        end = self.guest.command(f"run {words}", "end", seconds)
        output = frames(self.guest.log[before:]).contents["output"].decode(errors="replace")
        assert status in (None, end.fields["status"]), f"{words}: {end.text}\n{output}"
        return output

    def memory(self) -> int:
        """MemTotal, in bytes."""
        return int(self.guest.command("memory", "memory", SECONDS).fields["total_kb"]) * 1024

    def counters(self) -> Mapping[str, int]:
        """/proc/vmstat."""
        return numbers(self.run("cat /proc/vmstat"))

    def unaccounted(self) -> int:
        """Pages that are neither free nor anybody's. What may move in between is dropped before."""
        self.sysctl("drop_caches", 3)
        # Reading stat_refresh makes the counters exact. All in one program: starting another one moves
        # hundreds of pages between the lists of a zone and those of a CPU, and back.
        zones = self.run("cat /proc/sys/vm/stat_refresh /proc/zoneinfo")
        pages: dict[str, int] = {}
        for name, count in re.findall(r"^ +(\w+):? +(\d+)$", zones, re.MULTILINE):
            pages[name] = pages.get(name, 0) + int(count)
        # `count` is of a CPU's lists; stacks are in KiB.
        known = pages["count"] + pages["nr_kernel_stack"] // 4 + sum(pages[name] for name in _USED)
        return pages["managed"] - known

    def load(
        self,
        mode: Literal["anon", "file"],
        seconds: float,
        *,
        tasks: int = 8,
        footprint: float = FOOTPRINT,
        seed: int = 1,
        prefix: str = "",
        status: str | None = "0",
    ) -> str:
        """mmap_test; `prefix` is a program that runs it."""
        workload = MmapTest(mode=mode, tasks=tasks, seconds=seconds, footprint=footprint)
        words = WorkloadSpec(mmap_test=workload).run(self.memory(), seed).removeprefix("run ")
        return self.run(f"{prefix} {words}", SECONDS + 4 * seconds, status)

    def fill_cache(self, mib: int) -> None:
        """Page cache that is clean and not mapped."""
        self.run(f"dd if=/mnt/cached of=/dev/null bs=1M count={mib}")

    def request(self, count: int, *words: str) -> Mapping[str, int]:
        """Make requests inside the kernel, one after the other; what came of them."""
        self.set(f"{HOOK}/request", ",".join([str(count), *words]))
        return numbers(self.run(f"cat {HOOK}/result"))

    @contextlib.contextmanager
    def without(self, checks: Mutant) -> Iterator[None]:
        """Leave these checks out."""
        self.set(f"{HOOK}/mutant", int(checks))
        yield
        self.set(f"{HOOK}/mutant", 0)

    @contextlib.contextmanager
    def faults(self, percent: int, times: int) -> Iterator[None]:
        """Let so many in a hundred page allocations of `failing` programs fail, so many times at most."""
        home = "/sys/kernel/debug/fail_page_alloc"
        settings = {
            "verbose": 0,
            "task-filter": "Y",
            "min-order": 0,
            "ignore-gfp-wait": "N",
            "ignore-gfp-highmem": "N",
        }
        # Not while processes are started.
        settings |= {"space": 5_000, "times": times, "probability": percent}
        for name, value in settings.items():
            self.set(f"{home}/{name}", value)
        try:
            yield
        finally:
            self.set(f"{home}/probability", 0)

    def faults_left(self) -> int:
        """How often an allocation may still fail."""
        return int(self.run("cat /sys/kernel/debug/fail_page_alloc/times"))

    @contextlib.contextmanager
    def no_cma(self) -> Iterator[None]:
        """Keep pages out of the CMA area. Some that a file system holds on to for good are movable by their
        flags alone: no allocation can have the part of the area where one of them is."""
        pages = self.run(f"cat {CMA}/count").strip()
        self.set(f"{CMA}/alloc", pages)
        yield
        self.set(f"{CMA}/free", pages)

    def splats(self) -> list[str]:
        """What the kernel has complained of since it booted."""
        said = self.run("dmesg") + self.guest.log.decode(errors="replace")
        return [match[0] for match in map(SPLAT.match, said.splitlines()) if match]

    def require_sound(self) -> None:
        """Fail if the kernel has complained of anything since it booted."""
        splats = self.splats()
        assert not splats, "\n".join(splats[:5])
        assert self.run("cat /proc/sys/kernel/tainted").strip() == "0"


def numbers(text: str) -> Mapping[str, int]:
    """Lines of a name and a number."""
    return {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE)}


def bad(result: Mapping[str, int]) -> Mapping[str, int]:
    """What of a request's result is against the rules."""
    return {name: count for name, count in result.items() if name.startswith("bad_") and count}


@contextlib.contextmanager
def booted(
    kernel: Kernel,
    image: Image,
    *,
    memory: int = 256 * MiB,
    vcpus: int = VCPUS,
    cmdline: str = "",
    extra: tuple[str, ...] = (),
) -> Iterator[Subject]:
    """A guest of that kernel with swap and a disk, under emulation in real time."""
    shape = Shape("tcg", vcpus, memory, f"{CMDLINE} {cmdline}".strip(), (*CPU, *extra))
    with LiveGuest(shape, kernel.vmlinux, image.path) as guest:
        guest.boot(SECONDS)
        subject = Subject(guest)
        # A trace would be sent again with every command. Lazily, since who runs the command has it open.
        subject.run("umount -l /sys/kernel/tracing")
        guest.command("swap 268435456", seconds=SECONDS)
        with subject.no_cma() if "cma=" in cmdline else contextlib.nullcontext():
            guest.command("disk", seconds=SECONDS)
            subject.run("truncate -s 1G /mnt/cached")
        yield subject
