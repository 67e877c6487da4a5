# SPDX-License-Identifier: GPL-2.0-only
"""What the look at every miss is made of: packets, the watermark's rule, and lists in made-up memory."""

from __future__ import annotations

import dataclasses
import socket
import struct
import threading

import pytest

from testbed.kernel.build import numbers_of
from tests.debugger import RIP, Debugger, packed
from tests.misses import BLOCK, Kernel, Memory, Miss, Zone, classify, passes, rows, summary

# As in Linux 6.12, but for the offsets, which are made up.
FLAGS = {
    "ALLOC_WMARK_MASK": 3,
    "ALLOC_WMARK_MIN": 0,
    "ALLOC_NO_WATERMARKS": 4,
    "ALLOC_OOM": 8,
    "ALLOC_NON_BLOCK": 16,
    "ALLOC_MIN_RESERVE": 32,
    "ALLOC_RESERVES": 568,
    "ALLOC_BOOST_IGNORED": 32,
}
LOW, NO_WATERMARKS, OOM, NON_BLOCK, MIN_RESERVE = 1, 4, 8, 16, 32
ZONE = Zone(free=700, mark=700, boost=0, lowmem_reserve=0, highatomic=0, own_list=3, own_cpu=20, all_cpus=200)


def with_(**changes: int) -> Zone:
    return dataclasses.replace(ZONE, **changes)


@pytest.mark.parametrize(
    ("zone", "flags", "passed"),
    [
        (ZONE, 0, False),
        (with_(free=701), 0, True),
        (with_(free=701, lowmem_reserve=1), 0, False),
        (with_(free=701, highatomic=1), 0, False),
        (with_(free=0), NO_WATERMARKS, True),
        # Half of it, of that a fourth; half of what is left. The reserve is for them.
        (with_(free=350, highatomic=1), MIN_RESERVE, False),
        (with_(free=351, highatomic=1), MIN_RESERVE, True),
        (with_(free=263), MIN_RESERVE | NON_BLOCK, False),
        (with_(free=264), MIN_RESERVE | NON_BLOCK, True),
        (with_(free=351), NON_BLOCK, False),
        (with_(free=175), MIN_RESERVE | OOM, False),
        (with_(free=176), MIN_RESERVE | OOM, True),
        # The boost is not for those who may use the reserve, at the min watermark.
        (with_(free=301, mark=700, boost=100), MIN_RESERVE, True),
        (with_(free=301, mark=700, boost=100), MIN_RESERVE | LOW, False),
        (with_(free=601, mark=700, boost=100), 0, False),
    ],
)
def test_the_watermark_check_is_the_kernels(zone: Zone, flags: int, passed: bool) -> None:
    assert passes(zone, flags, FLAGS) is passed


def test_pages_that_were_to_count_are_added() -> None:
    assert not passes(ZONE, 0, FLAGS)
    assert passes(ZONE, 0, FLAGS, more=1)


@pytest.mark.parametrize(
    ("zones", "found"),
    [
        ((ZONE,), "pcp"),
        ((with_(own_list=0),), "watermark"),
        ((with_(own_list=0), ZONE), "pcp"),
        ((ZONE, with_(free=701)), "empty"),
    ],
)
def test_the_class_is_that_of_all_zones(zones: tuple[Zone, ...], found: str) -> None:
    assert classify(zones, 0, FLAGS) == found


def test_the_summary_tells_the_attempts_apart() -> None:
    few = with_(free=600, own_list=0)
    misses = [
        Miss(False, 6, "pcp", 0, (ZONE, few), "pcp"),
        Miss(False, 1, "watermark", 0, (few,), "watermark"),
        Miss(True, 1, "empty", 0, (with_(free=701),), "empty"),
    ]
    lines = list(summary(misses, FLAGS))
    assert lines[:5] == [
        "first attempt: 2 misses: 1 pcp, 1 watermark, 0 empty",
        "  medians in the preferred zone: free 650, min 700, own list 1.5, all CPUs' lists 200",
        "  would pass if the own list counted as free: 1 (50.0%)",
        "  would pass if the own CPU's lists counted as free: 1 (50.0%)",
        "  would pass if all CPUs' lists counted as free: 2 (100.0%)",
    ]
    assert lines[5] == "after the drain: 1 misses: 0 pcp, 0 watermark, 1 empty"
    # The first has a row for each of its zones.
    assert rows(misses).row_count == 4


# --- memory ---------------------------------------------------------------------------------------------


class Made:
    """Memory that is made up: numbers of 8 or 4 bytes at addresses, zero elsewhere."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytearray] = {}
        self.reads = 0

    def put(self, address: int, value: int, size: int = 8) -> None:
        block = self.blocks.setdefault(address - address % BLOCK, bytearray(BLOCK))
        at = address % BLOCK
        block[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")

    def list(self, head: int, entries: list[int]) -> None:
        for here, following in zip([head, *entries], [*entries, head], strict=True):
            self.put(here, following)

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        return bytes(self.blocks.get(address, bytearray(size)))


def test_lists_are_walked_and_blocks_read_once() -> None:
    made, head = Made(), 0xFFFF888000001000
    made.list(head, [0xFFFFEA0000000008, 0xFFFFEA0000000048, 0xFFFFEA0000002008])
    made.list(head + 16, [])
    memory = Memory(made.read)
    assert memory.length(head) == 3
    assert memory.length(head + 16) == 0
    assert made.reads == 3


def test_a_list_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.misses.MOST_PAGES", 10)
    made = Made()
    made.put(0x1000, 0x2000)
    made.put(0x2000, 0x2000)
    with pytest.raises(ValueError, match="0x1000 has no end"):
        Memory(made.read).length(0x1000)


def test_the_zones_of_a_request_are_read() -> None:
    names = ["request_ac", "request_alloc_flags", "ac_nodemask", "ac_preferred_zoneref", "ac_migratetype"]
    names += ["ac_highest_zoneidx", "zoneref_zone", "zoneref_idx", "zone_watermark", "zone_boost"]
    names += ["zone_lowmem_reserve", "zone_free", "zone_pcp", "zone_highatomic", "zone_node"]
    numbers = {**FLAGS, **{name: 64 * at for at, name in enumerate(names)}, "pcp_count": 4, "pcp_lists": 8}
    numbers["zoneref_size"] = 1024
    made, request, context, references = Made(), 0x10000, 0x20000, 0x30000
    made.put(request + numbers["request_ac"], context)
    made.put(request + numbers["request_alloc_flags"], LOW, 4)
    made.put(context + numbers["ac_nodemask"], 0x40000)
    made.put(0x40000, 0b01)
    made.put(context + numbers["ac_preferred_zoneref"], references)
    made.put(context + numbers["ac_migratetype"], 1, 4)
    made.put(context + numbers["ac_highest_zoneidx"], 2, 4)
    # The second is on another node, the third is above what the request may use.
    for at, (index, node) in enumerate([(2, 0), (2, 1), (3, 0), (1, 0)]):
        zone = 0x50000 + 0x1000 * at
        made.put(references + 1024 * at + numbers["zoneref_zone"], zone)
        made.put(references + 1024 * at + numbers["zoneref_idx"], index, 4)
        made.put(zone + numbers["zone_node"], node, 4)
        made.put(zone + numbers["zone_watermark"] + 8, 700 + at)
        made.put(zone + numbers["zone_boost"], 5)
        made.put(zone + numbers["zone_lowmem_reserve"] + 8 * 2, at)
        made.put(zone + numbers["zone_free"], -1 if at else 600)
        made.put(zone + numbers["zone_highatomic"], 512)
        # A pointer of each CPU's, as the kernel has it: so far from where the CPU's data is.
        made.put(zone + numbers["zone_pcp"], 0x100 * at)
        for cpu, base in enumerate((0x60000, 0x70000)):
            made.put(base + 0x100 * at + 4, 10 + cpu, 4)
            lists = base + 0x100 * at + 8
            made.list(lists + 16, [lists + 0x8000 + 16 * n for n in range(cpu + at)])
    kernel = Kernel(numbers, (0x60000, 0x70000))
    first, last = kernel.zones(Memory(made.read), request, cpu=1)
    assert first == Zone(600, 705, 5, 0, 512, own_list=1, own_cpu=11, all_cpus=21)
    assert last == Zone(0, 708, 5, 3, 512, own_list=4, own_cpu=11, all_cpus=21)
    assert first.least == 705 + 512


def test_the_compilers_numbers_are_found() -> None:
    line = '\t.ascii "->{} ${} offsetof(struct zone, x)"\n'
    assert numbers_of("\tret\n" + line.format("zone_x", 88) + line.format("below", -4)) == {
        "zone_x": 88,
        "below": -4,
    }


# --- packets --------------------------------------------------------------------------------------------


def test_packets_have_a_checksum_of_two_digits() -> None:
    assert packed("g") == b"$g#67"
    assert packed("m10,8") == b"$m10,8#32"
    assert packed("\x01") == b"$\x01#01"


def test_answers_come_in_pieces_and_end() -> None:
    values = struct.pack("<17Q", *range(17)) + bytes(28)
    answer = packed(values.hex())

    def stub(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100) == packed("g")
            for piece in (b"+" + answer[:50], answer[50:]):
                connection.sendall(piece)
            assert connection.recv(100) == packed("c")

    with socket.create_server(("localhost", 0)) as listener:
        serving = threading.Thread(target=stub, args=[listener])
        serving.start()
        with Debugger(listener.getsockname()[1]) as debugger:
            assert debugger.registers()[RIP] == 16
            assert debugger.ask("c") == ""
        serving.join()
