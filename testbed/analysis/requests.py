# SPDX-License-Identifier: GPL-2.0-only
"""Direct reclaims one by one, as an instrumented kernel records them, and the requests they were for. Pure.

A record is one direct reclaim of one request: an event of the tracepoint mm_vmscan_direct_reclaim_alloc. The
guest keeps those of requests for one page (order 0) whose reclaim made progress.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

# What an attempt at the free lists met: a page; the watermark's check failed, with pages on the own CPU's
# list (`pcp`) or without (`watermark`); it passed and there was no page (`empty`). Or there was no attempt.
Met = Literal["page", "pcp", "watermark", "empty", "none"]
FAILED = ("pcp", "watermark", "empty")
# What became of a request. After a single direct reclaim it got a page at once, or one that was captured,
# before the free lists were asked, or else it failed in one of three ways at first. It reclaimed again. Or it
# is not known when it got a page, or whether.
Fate = Literal["page", "captured", "pcp", "watermark", "empty", "repeat", "unserved"]
FATES: tuple[Fate, ...] = get_args(Fate)

_EVENT = re.compile(
    r"^ *(?P<comm>.{1,16}?)-(?P<pid>[0-9]+) .*: mm_vmscan_direct_reclaim_alloc: (?P<fields>.*)$", re.MULTILINE
)
_NUMBER = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True)
class Request:
    """One direct reclaim of one request; times in ns, the rest in pages.

    `round` counts the direct reclaims of the request from 1 on. `first` is what the attempt after reclaim
    met, `second` that after the drain. `drained`: 1 if it ran, 2 if it was asked for and did not. `freed` and
    `stolen` are of all rounds so far. `wait_ns` is from the end of this reclaim to the record, `slow_ns` from
    the entry of the slow path to it, `age_ns` how long before it the page had been captured.
    """

    comm: str
    pid: int
    order: int
    progress: int
    round: int
    first: Met
    second: Met
    drained: int
    captured: int
    allocated: int
    freed: int
    stolen: int
    reclaim_ns: int
    wait_ns: int
    slow_ns: int
    age_ns: int

    @property
    def failed(self) -> bool:
        """Whether the attempt after reclaim found no page."""
        return self.first in FAILED

    def __str__(self) -> str:
        """The line of the 2010 mail."""
        return f"progress {self.progress}, order {self.order}, pid {self.pid}, comm {self.comm}"


_NUMBERS = tuple(f.name for f in fields(Request) if f.name not in ("comm", "pid", "first", "second"))


def requests(text: str) -> tuple[Request, ...]:
    """The records in a trace; fields are found by name, lines of another form are passed over."""
    return tuple(_read(text))


def _read(text: str) -> Iterator[Request]:
    for match in _EVENT.finditer(text):
        said = dict(word.split("=", 1) for word in match["fields"].split() if "=" in word)
        met = {name: _MET.get(said.get(name, "")) for name in ("first", "second")}
        numbers = {"pid": match["pid"]} | {name: said.get(name, "") for name in _NUMBERS}
        first, second = met.values()
        if first and second and all(map(_NUMBER.fullmatch, numbers.values())):
            counts = {name: int(number) for name, number in numbers.items()}
            yield Request(comm=match["comm"], first=first, second=second, **counts)


_MET: dict[str, Met] = {met: met for met in get_args(Met)}


@dataclass(frozen=True)
class Chain:
    """A request: its direct reclaims, from the first that made progress to the last."""

    rounds: tuple[Request, ...]

    @property
    def first(self) -> Request:
        """The first record of it."""
        return self.rounds[0]

    @property
    def last(self) -> Request:
        """The last record of it, which has the sums."""
        return self.rounds[-1]

    @property
    def wait_ns(self) -> int:
        """From the end of the first reclaim to the page, with all that was done again, or the last record."""
        return self.first.wait_ns + self.last.slow_ns - self.first.slow_ns

    @property
    def fate(self) -> Fate:
        """What became of it."""
        if not self.last.allocated:
            return "unserved"
        if len(self.rounds) > 1 or self.last.round > 1:
            return "repeat"
        return "captured" if self.first.first == "none" else self.first.first


def chains(records: Sequence[Request]) -> tuple[Chain, ...]:
    """The requests that records are of, in the order of their ends.

    A task has one at a time. The next round of a request is the task's next record if its round is a later
    one and more time has passed since the entry of the slow path. A round without progress has no record.
    """
    open_: dict[int, list[Request]] = {}
    ended: list[Chain] = []
    for record in records:
        before = open_.pop(record.pid, [])
        if before and not (record.round > before[-1].round and record.slow_ns >= before[-1].slow_ns):
            ended.append(Chain(tuple(before)))
            before = []
        if record.allocated:
            ended.append(Chain((*before, record)))
        else:
            open_[record.pid] = [*before, record]
    return (*ended, *(Chain(tuple(rounds)) for rounds in open_.values()))
