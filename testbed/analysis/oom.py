# SPDX-License-Identifier: GPL-2.0-only
"""What the OOM killer says of itself on the console. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Of a page, in a row of the list of tasks.
_PAGE = 4096
_KILLED = re.compile(
    rb"(?:Out of memory|Memory cgroup out of memory)(?: \([a-z_]+\))?: "
    # A name has 15 characters at most; without any limit, a log of nothing but beginnings would take minutes.
    rb"Killed process ([0-9]{1,10}) \(([^)\r\n]{0,64})\)([^\r\n]{0,256})"
)
_CLOCK = re.compile(rb"\[ {0,12}([0-9]{1,9}\.[0-9]{1,9})\]")
_RESIDENT = re.compile(rb"(?:anon|file|shmem)-rss:([0-9]{1,15})kB")
_SWAP = re.compile(rb"(Free|Total) swap {1,4}= ([0-9]{1,15})kB")
# A row of the list of tasks: pid, columns (the last two are swapents and oom_score_adj), name.
_ROW = re.compile(rb"\[ {0,10}([0-9]{1,10})\]((?: {1,16}-?[0-9]{1,20}){5,12}) ")


@dataclass(frozen=True)
class Kill:
    """One task that the OOM killer took; what the kernel did not tell is None.

    `seconds` are by the guest's clock, from its boot on: from the console, if the kernel has the time in its
    messages, else when a sample first had it counted. `had_bytes` is what the victim had in memory and,
    where the kernel lists its tasks, in swap. Of swap it is what there was when the victim was chosen; a
    kill within a memory cgroup does not tell it.
    """

    victim: str
    pid: int
    seconds: float | None
    had_bytes: int | None
    swap_bytes: int | None
    swap_free_bytes: int | None


def kills(log: bytes) -> tuple[Kill, ...]:
    """The kills in a console log, in their order; one that is told twice is one."""
    told: dict[tuple[int, str], Kill] = {}
    for kill in _kills(log):
        told.setdefault((kill.pid, kill.victim), kill)
    return tuple(told.values())


def _kills(log: bytes) -> Iterator[Kill]:
    end = 0
    for match in _KILLED.finditer(log):
        # What is said of a kill stands between the one before and its own last line.
        told, end = log[end : match.start()], match.end()
        clock = _CLOCK.search(told[-64:].rpartition(b"\n")[2])
        swap = {name: int(kib) << 10 for name, kib in _SWAP.findall(told)}
        yield Kill(
            victim=match[2].decode("utf-8", "replace"),
            pid=int(match[1]),
            seconds=float(clock[1]) if clock else None,
            had_bytes=_had(match[3], int(match[1]), told),
            swap_bytes=swap.get(b"Total"),
            swap_free_bytes=swap.get(b"Free"),
        )


def _had(last_line: bytes, pid: int, told: bytes) -> int | None:
    resident = [int(kib) << 10 for kib in _RESIDENT.findall(last_line)]
    swapped = [int(row[2].split()[-2]) * _PAGE for row in _ROW.finditer(told) if int(row[1]) == pid]
    return sum(resident) + sum(swapped[-1:]) if resident else None
