# SPDX-License-Identifier: GPL-2.0-only
"""Every miss of a trial, read from outside the guest: is its class right? `make misses`, or
`python -m tests.misses [EXPERIMENT] [--arm unpatched] [--seed 1] [--line 6.1]`.

The trial runs under the stub of `testbed replay --gdb` and stands still wherever the kernel counts a miss.
There this reads the free pages, the watermark and the per-CPU lists, and finds the class by itself. It knows
the kernel's own watermark check: not an arm whose patches change that. Prints the first misses and a summary.
Ends with status 1 if the kernel says otherwise once, if there is no miss, or if the log is not that of the
manifest which is beside the experiment.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from testbed.analysis.parse import parse
from testbed.host.paths import cache_directory
from testbed.kernel import build
from testbed.ledger import document
from testbed.ledger.manifest import Manifest
from testbed.trials import debug, prepare
from testbed.trials.debug import MISS, GdbStub
from testbed.trials.trial import Trial
from testbed.verbs.request import ExperimentRequest
from tests.bench import EXPERIMENT
from tests.debugger import RDI, RIP, RSI, Debugger

SOURCE = Path(__file__).with_suffix(".c")
# The attempt before the drain, and the one after it.
PLACES = (MISS, f"{MISS}_drained")
CLASSES = ("pcp", "watermark", "empty")
SHOWN = 10
# Of memory that is read at once: all of it is mapped, or nothing.
BLOCK = 4096
# Pages on a list. One that is longer goes round in circles.
MOST_PAGES = 1 << 20
Numbers = Mapping[str, int]
Read = Callable[[int, int], bytes]


# --- what the kernel decides, by numbers alone ----------------------------------------------------------


@dataclass(frozen=True)
class Zone:
    """A zone that a request may use, in pages: `mark` is the watermark with the boost, `own_list` the list
    that serves the request, `own_cpu` and `all_cpus` all per-CPU lists of the one CPU and of all."""

    free: int
    mark: int
    boost: int
    lowmem_reserve: int
    highatomic: int
    own_list: int
    own_cpu: int
    all_cpus: int

    @property
    def least(self) -> int:
        """What a request without any privilege has to find more than."""
        return self.mark + self.lowmem_reserve + self.highatomic


def passes(zone: Zone, alloc_flags: int, numbers: Numbers, more: int = 0) -> bool:
    """Whether a request of order 0 passes the watermark check, with so many more free pages.

    As in zone_watermark_fast(). Its first check is only quicker than __zone_watermark_ok(): what passes it,
    passes both.
    """

    def may(name: str) -> bool:
        return bool(alloc_flags & numbers[f"ALLOC_{name}"])

    def more_than(mark: int) -> bool:
        if may("MIN_RESERVE"):
            mark -= mark // 2
            if may("NON_BLOCK"):
                mark -= mark // 4
        if may("OOM"):
            mark -= mark // 2
        usable = zone.free + more - (0 if may("RESERVES") else zone.highatomic)
        return usable > mark + zone.lowmem_reserve

    if may("NO_WATERMARKS") or more_than(zone.mark):
        return True
    at_min = alloc_flags & numbers["ALLOC_WMARK_MASK"] == numbers["ALLOC_WMARK_MIN"]
    return may("BOOST_IGNORED") and at_min and more_than(zone.mark - zone.boost)


def classify(zones: Sequence[Zone], alloc_flags: int, numbers: Numbers) -> str:
    """One of CLASSES: what an attempt failed at that found no page in these zones."""
    if any(passes(zone, alloc_flags, numbers) for zone in zones):
        return "empty"
    return "pcp" if any(zone.own_list for zone in zones) else "watermark"


# --- the guest's memory ---------------------------------------------------------------------------------


class Memory:
    """The memory of a guest that stands still; `read` gives so many bytes of an address."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._blocks: dict[int, bytes] = {}

    def number(self, address: int, size: int = 8) -> int:
        """A signed number."""
        start = address - address % BLOCK
        if start not in self._blocks:
            self._blocks[start] = self._read(start, BLOCK)
        at = address - start
        return int.from_bytes(self._blocks[start][at : at + size], "little", signed=True)

    def pointer(self, address: int) -> int:
        return self.number(address) % 2**64

    def length(self, head: int) -> int:
        """How many entries a list has, of which the head is none."""
        entry = head
        for count in range(MOST_PAGES):
            entry = self.pointer(entry)
            if entry == head:
                return count
        raise ValueError(f"the list at {head:#x} has no end")


@dataclass(frozen=True)
class Kernel:
    """What has to be known of a kernel: its numbers, and where each CPU has its own data."""

    numbers: Numbers
    per_cpu: Sequence[int]

    def zones(self, memory: Memory, request: int, cpu: int) -> Iterator[Zone]:
        """The zones that a request may use, a struct direct_reclaim of a task on that CPU."""
        n = self.numbers
        context = memory.pointer(request + n["request_ac"])
        highest = memory.number(context + n["ac_highest_zoneidx"], 4)
        migratetype = memory.number(context + n["ac_migratetype"], 4)
        flags = memory.number(request + n["request_alloc_flags"], 4)
        mask = memory.pointer(context + n["ac_nodemask"])
        nodes = memory.pointer(mask) if mask else -1
        reference = memory.pointer(context + n["ac_preferred_zoneref"])
        while zone := memory.pointer(reference + n["zoneref_zone"]):
            node = memory.number(zone + n["zone_node"], 4) if "zone_node" in n else 0
            if memory.number(reference + n["zoneref_idx"], 4) <= highest and nodes >> node & 1:
                yield self._zone(memory, zone, cpu, highest, flags & n["ALLOC_WMARK_MASK"], migratetype)
            reference += n["zoneref_size"]

    def _zone(
        self, memory: Memory, zone: int, cpu: int, highest: int, watermark: int, migratetype: int
    ) -> Zone:
        n = self.numbers
        lists = memory.pointer(zone + n["zone_pcp"])
        places = [(lists + base) % 2**64 for base in self.per_cpu]
        counts = [memory.number(place + n["pcp_count"], 4) for place in places]
        boost = memory.number(zone + n["zone_boost"])
        # Of order 0 there is one list for each migrate type, and these come first. A list_head has 16 bytes.
        return Zone(
            free=max(0, memory.number(zone + n["zone_free"])),
            mark=memory.number(zone + n["zone_watermark"] + 8 * watermark) + boost,
            boost=boost,
            lowmem_reserve=memory.number(zone + n["zone_lowmem_reserve"] + 8 * highest),
            highatomic=memory.number(zone + n["zone_highatomic"]),
            own_list=memory.length(places[cpu] + n["pcp_lists"] + 16 * migratetype),
            own_cpu=counts[cpu],
            all_cpus=sum(counts),
        )


# --- a trial --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Miss:
    """A miss: what the kernel counts it as, and what was read there, zones in the order of the request's."""

    drained: bool
    cpu: int
    counted: str
    alloc_flags: int
    zones: tuple[Zone, ...]
    found: str


def stops(debugger: Debugger, trial: Trial, numbers: Numbers) -> Iterator[Miss]:
    """Each miss of a trial, from its first instruction up to its end."""
    places = [debug.symbol(trial, name) for name in PLACES]
    offsets = debug.symbol(trial, "__per_cpu_offset")
    kernel: Kernel | None = None
    by_number = {numbers[f"ATTEMPT_{name.upper()}"]: name for name in CLASSES}
    while True:
        # One that the guest has stood at is off.
        for place in places:
            debugger.ask(f"Z0,{place:x},1")
        stop = re.match(r"T05thread:([0-9a-f]+);", debugger.ask("c"))
        if stop is None:
            return
        memory, registers = Memory(debugger.memory), debugger.registers()
        cpu, request = int(stop[1], 16) - 1, registers[RSI]
        # Where they are does not change.
        kernel = kernel or Kernel(
            numbers, [memory.pointer(offsets + 8 * other) for other in range(trial.shape.vcpus)]
        )
        zones = tuple(kernel.zones(memory, request, cpu))
        flags = memory.number(request + numbers["request_alloc_flags"], 4)
        yield Miss(
            registers[RIP] == places[1],
            cpu,
            # An enum has 32 bits.
            by_number.get(registers[RDI] % 2**32, "none"),
            flags,
            zones,
            classify(zones, flags, numbers),
        )


def look(trial: Trial, numbers: Numbers, show: Callable[[int, Miss], None]) -> tuple[list[Miss], bytes]:
    """All misses of a trial, each shown as it comes, with its number, and the trial's console log."""
    misses = []
    with GdbStub(trial) as stub, futures.ThreadPoolExecutor(1) as pool:
        serving = pool.submit(stub.serve)
        with Debugger(stub.port) as debugger:
            for number, miss in enumerate(stops(debugger, trial, numbers), 1):
                misses.append(miss)
                show(number, miss)
        return misses, serving.result()


def chosen(wanted: argparse.Namespace) -> tuple[Trial, Numbers]:
    """The trial, and the numbers of its kernel."""
    request = ExperimentRequest(wanted.experiment, mode="deterministic", line=wanted.line)
    with request.named():
        only = request.first().only(wanted.arm)
        experiment = only.model_copy(update={"first_seed": wanted.seed, "seeds": 1})

        def say(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        (trial,) = prepare.prepare(experiment, cache_directory(), say).trials
        plan = prepare.plans(experiment, cache_directory(), say)[wanted.arm]
    return trial, build.numbers_of(build.assembly(plan, SOURCE.read_text()))


def expected(experiment: Path, trial: Trial) -> str | None:
    """The hash that the manifest beside an experiment has of a trial's log; None if it has none."""
    path = experiment.with_suffix(".manifest.json")
    found = document.load(Manifest, path).expected.get(trial.id) if path.exists() else None
    return found.log_sha256 if found else None


# --- what is printed ------------------------------------------------------------------------------------


def rows(misses: Sequence[Miss]) -> Table:
    """The first misses, a row for each zone."""
    table = Table(title="the first misses, zone by zone, in pages", box=box.SIMPLE_HEAD)
    for heading in ("miss", "attempt", "CPU", "free", "min", "own list", "own CPU", "all CPUs"):
        table.add_column(heading, justify="right")
    table.add_column("counted")
    table.add_column("read")
    for number, miss in enumerate(misses[:SHOWN], 1):
        name = [str(number), "2nd" if miss.drained else "1st", str(miss.cpu)]
        for index, zone in enumerate(miss.zones):
            values = (zone.free, zone.least, zone.own_list, zone.own_cpu, zone.all_cpus)
            verdict = ("", "") if index else (miss.counted, miss.found)
            table.add_row(*(["", "", ""] if index else name), *map(str, values), *verdict)
    return table


def summary(misses: Sequence[Miss], numbers: Numbers) -> Iterator[str]:
    """Lines on all of them, those of the first attempt and those after the drain apart."""
    for title, drained in (("first attempt", False), ("after the drain", True)):
        of_these = [miss for miss in misses if miss.drained is drained]
        if not of_these:
            yield f"{title}: no misses"
            continue
        classes = Counter(miss.found for miss in of_these)
        counted = ", ".join(f"{classes[name]} {name}" for name in CLASSES)
        yield f"{title}: {len(of_these)} misses: {counted}"
        first = [miss.zones[0] for miss in of_these]
        columns = {"free": "free", "least": "min", "own_list": "own list", "all_cpus": "all CPUs' lists"}
        medians = (
            f"{name} {statistics.median(getattr(zone, key) for zone in first):g}"
            for key, name in columns.items()
        )
        yield f"  medians in the preferred zone: {', '.join(medians)}"
        for key, name in (
            ("own_list", "the own list"),
            ("own_cpu", "the own CPU's lists"),
            ("all_cpus", "all CPUs' lists"),
        ):
            count = sum(
                any(passes(zone, miss.alloc_flags, numbers, getattr(zone, key)) for zone in miss.zones)
                for miss in of_these
            )
            yield f"  would pass if {name} counted as free: {count} ({count / len(of_these):.1%})"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.misses")
    parser.add_argument("experiment", nargs="?", type=Path, default=EXPERIMENT)
    parser.add_argument("--arm", default="unpatched")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--line", help="a kernel line, in place of the experiment's source")
    wanted = parser.parse_args()
    trial, numbers = chosen(wanted)

    def show(number: int, miss: Miss) -> None:
        if miss.counted != miss.found:
            print(f"miss {number}: counted as {miss.counted}, read {miss.found}: {miss}", flush=True)
        elif number % 100 == 0:
            print(f"{number} misses", file=sys.stderr, flush=True)

    misses, log = look(trial, numbers, show)
    Console(width=None if sys.stdout.isatty() else 100).print(rows(misses))
    for line in summary(misses, numbers):
        print(line)
    agree = sum(miss.counted == miss.found for miss in misses)
    counters = parse(log).counters or {}
    of_clock = ", ".join(f"{counters.get(f'direct_reclaim_miss_{name}', 0)} {name}" for name in CLASSES)
    print(f"of the first attempts, the kernel's counters have in the workload's own time: {of_clock}")
    print(f"{trial.arm}:{trial.seed}: class as counted at {agree} of {len(misses)} misses")
    digest, published = hashlib.sha256(log).hexdigest(), expected(wanted.experiment, trial)
    manifest = "" if published is None else f", {'' if digest == published else 'NOT '}that of the manifest"
    print(f"sha256 of the log: {digest}{manifest}")
    return 0 if misses and agree == len(misses) and published in (None, digest) else 1


if __name__ == "__main__":
    sys.exit(main())
