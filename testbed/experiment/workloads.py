# SPDX-License-Identifier: GPL-2.0-only
"""The workloads: what an experiment may say of each, and the words that its program is started with.

The programs are images/src/NAME.c; what each stresses and what its numbers mean: docs/workloads.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from testbed.experiment.values import PAGE, Model, Seconds, Size, Word, format_size, one_of
from testbed.host.files import MiB

# Windows are let go in chunks of this many pages; a window is a whole number of them.
CHUNK_PAGES = 64
HUGE_PAGES = 512

Words = Mapping[str, int | str]
Tasks = Annotated[int, Field(ge=1, le=512)]
Text = Annotated[str, Field(min_length=1)]
Footprint = Annotated[float, Field(gt=0, le=64)]


def share(memory: int, footprint: float, tasks: int, unit: int = CHUNK_PAGES) -> int:
    """Pages of one task, in whole units, so that all together have `footprint` x memory (bytes)."""
    return max(1, int(footprint * memory / tasks / PAGE) // unit) * unit


class Load(Model):
    """What the workloads of this project have in common."""

    # Whether it needs a file system for files.
    disk: ClassVar[bool] = False

    seconds: Seconds = 3.0
    """How long it runs, by the guest's clock, once memory has been filled."""

    def words(self, memory: int) -> Words:
        """What its program is told, but for time and seed. `memory` is the guest's, in bytes."""
        raise NotImplementedError

    @property
    def files_are_mapped(self) -> bool:
        return False


class MmapTest(Load):
    """Tasks that together map `footprint` x memory and touch it page by page, a page fault each."""

    mode: Literal["anon", "file", "mixed"] = "anon"
    """Anonymous memory, mapped sparse files, or one task this and the next task that."""
    tasks: Tasks = 16
    footprint: Footprint = 1.5
    """All windows together, as a multiple of the guest's memory."""
    bystanders: Annotated[int, Field(ge=0, le=64)] = 0
    """Further tasks that hardly allocate; their latencies are reported apart."""

    def words(self, memory: int) -> Words:
        pages = share(memory, self.footprint, self.tasks)
        return {"mode": self.mode, "tasks": self.tasks, "pages": pages, "bystanders": self.bystanders}

    @property
    def files_are_mapped(self) -> bool:
        return self.mode != "anon"


class FileRead(Load):
    """Readers of a page-cache set that is larger than memory: refaults."""

    disk: ClassVar[bool] = True

    order: Literal["sequential", "random"] = "random"
    tasks: Tasks = 8
    footprint: Footprint = 1.5
    """All files together, as a multiple of the guest's memory."""

    def words(self, memory: int) -> Words:
        return {"order": self.order, "tasks": self.tasks, "pages": share(memory, self.footprint, self.tasks)}


class FileWrite(Load):
    """Writers of dirty page cache, which reclaim has to have written back."""

    disk: ClassVar[bool] = True

    tasks: Tasks = 8
    footprint: Annotated[float, Field(gt=0, le=0.5)] = 0.4
    """All files together, as a multiple of the guest's memory, of which the RAM disk that keeps them takes so
    much: the rest is for the page cache."""

    def words(self, memory: int) -> Words:
        return {"tasks": self.tasks, "pages": share(memory, self.footprint, self.tasks)}


class Stutter(Load):
    """A probe that maps a little memory now and then, beside hogs that take all of it."""

    hogs: Tasks = 8
    footprint: Footprint = 1.5
    """What the hogs have together, as a multiple of the guest's memory."""
    period: Annotated[float, Field(ge=0.0001, le=10)] = 0.005
    """Seconds from one mapping of the probe to the next."""

    def words(self, memory: int) -> Words:
        pages = share(memory, self.footprint, self.hogs)
        return {"hogs": self.hogs, "pages": pages, "period_us": round(self.period * 1e6)}


class ForkStorm(Load):
    """Tasks that fork children, which touch some memory and exit, under pressure."""

    tasks: Tasks = 8
    pages: Annotated[int, Field(ge=1, le=65536)] = 64
    """Pages that every child writes to: half of them its parent's, half of them fresh."""
    footprint: Footprint = 1.2
    """What the parents touch in between, all together, as a multiple of the guest's memory."""

    def words(self, memory: int) -> Words:
        held = share(memory, self.footprint, self.tasks)
        return {"tasks": self.tasks, "pages": self.pages, "held": held}


class Memcg(Load):
    """A group of tasks over its own limit beside a group without one, in a machine that has memory left."""

    tasks: Tasks = 4
    """In each of the two groups."""
    footprint: Footprint = 2.0
    """What the limited group touches, as a multiple of its limit."""
    limit: Size = 32 * MiB
    """memory.max of the limited group."""

    def words(self, memory: int) -> Words:
        pages = share(self.limit, self.footprint, self.tasks)
        return {"tasks": self.tasks, "pages": pages, "limit": self.limit}


class HighOrder(Load):
    """Tasks that touch memory in areas of 2 MiB, for which the kernel may have huge pages."""

    tasks: Tasks = 8
    footprint: Footprint = 1.2

    def words(self, memory: int) -> Words:
        return {"tasks": self.tasks, "pages": share(memory, self.footprint, self.tasks, HUGE_PAGES)}


class SwapThrash(Load):
    """Random touches of a working set that is about as large as memory, or larger."""

    tasks: Tasks = 8
    footprint: Footprint = 1.2
    """The working set, as a multiple of the guest's memory."""

    def words(self, memory: int) -> Words:
        return {"tasks": self.tasks, "pages": share(memory, self.footprint, self.tasks)}


class WorkloadSpec(Model):
    """What runs in the guest: one of the workloads, or any program of yours."""

    mmap_test: MmapTest | None = None
    file_read: FileRead | None = None
    file_write: FileWrite | None = None
    stutter: Stutter | None = None
    fork_storm: ForkStorm | None = None
    memcg: Memcg | None = None
    high_order: HighOrder | None = None
    swap_thrash: SwapThrash | None = None
    command: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] | None = None
    """A program and its arguments; `{seed}` in a word stands for the seed, `{pages}` for the guest's memory
    in pages of 4 KiB. The seed is in its environment, too (SEED), and decides how much later it starts, 10 ms
    at most. The program is one of `files`, one of busybox's, or one of this machine, which is then brought
    along with the libraries that it needs."""
    files: Annotated[tuple[Word, ...], Field(strict=False)] = ()
    r"""Files and directories to bring along, as PATH (a file becomes /bin/NAME, a directory /NAME) or
    PATH:PATH-IN-THE-GUEST. A colon in PATH is written `\:`."""
    disk: bool = False
    """Whether `command` needs a file system for files, at /mnt."""
    # Not in what was published before there was any choice.
    root: Annotated[bool, Field(exclude_if=lambda root: not root)] = False
    """Whether `command` is run by root, and not by a user of the guest. Root can make up what is measured."""
    seconds: Seconds | None = None
    """About how long `command` runs, by the guest's clock."""

    @model_validator(mode="before")
    @classmethod
    def _default(cls, given: object) -> object:
        return {"mmap_test": {}} if given == {} else given

    @model_validator(mode="after")
    def _one_workload(self) -> WorkloadSpec:
        name = one_of(self, (*LOADS, "command"))
        if name != "command":
            for key in OF_A_COMMAND:
                if key in self.model_fields_set and getattr(self, key):
                    raise ValueError(f"{key}: goes with `command` only")
        elif sum(map(len, self.command or ())) > LONGEST_COMMAND:
            raise ValueError(f"command: is over {LONGEST_COMMAND} characters; bring a script in `files`")
        return self

    @property
    def name(self) -> str:
        """Its key."""
        return one_of(self, (*LOADS, "command"))

    @property
    def load(self) -> Load | None:
        """The workload of this project, if it is one."""
        return None if self.command is not None else getattr(self, self.name)

    @property
    def length(self) -> float:
        """Seconds that it takes by the guest's clock, about."""
        return self.load.seconds if self.load else self.seconds or DEFAULT_SECONDS

    @property
    def needs_disk(self) -> bool:
        """Whether it needs a file system for files."""
        load = self.load
        return self.disk if load is None else load.disk or load.files_are_mapped

    def run(self, memory: int, seed: int | str, kept: Sequence[str] = ()) -> str:
        """Init's command that starts it in a guest with so many bytes of memory.

        Files in the guest that are to be `kept` are sent as well.
        """
        if self.command is not None:
            known = {"{seed}": str(seed), "{pages}": str(memory // PAGE)}
            words = [START, *(["-r"] if self.root else []), *self.command]
            for key, value in known.items():
                words = [word.replace(key, value) for word in words]
            if self.is_wrapped(kept):
                plain = all(map(_PLAIN.fullmatch, words))
                words = words if plain else list(map(_escaped, words))
                words = ["sh", f"/{WRAPPER}", *kept, "--" if plain else "--escaped", *words]
            return " ".join(["run-user", str(seed), *words])
        load = self.load
        assert load
        words_ = {**load.words(memory), "ms": max(1, round(load.seconds * 1000)), "seed": seed}
        return " ".join(["run", self.name, *(f"{key}={value}" for key, value in words_.items())])

    def is_wrapped(self, kept: Sequence[str]) -> bool:
        """Whether `command` needs a script around it, WRAPPER: for files to keep, or blanks in its words."""
        return self.command is not None and (bool(kept) or not all(map(_PLAIN.fullmatch, self.command)))

    def describe(self) -> str:
        """The workload in a few words."""
        if self.command is not None:
            return " ".join(word if _PLAIN.fullmatch(word) else f"'{word}'" for word in self.command)
        assert self.load
        shown = {
            key: format_size(value) if key == "limit" else f"{value:g}" if isinstance(value, float) else value
            for key, value in self.load.model_dump().items()
            if value and key != "seconds"
        }
        words = ", ".join(f"{key} {value}" for key, value in shown.items())
        return f"{self.name}, {words}, {self.load.seconds:g} s"


# What goes with `command` only.
OF_A_COMMAND = ("files", "disk", "root", "seconds")
LOADS = tuple(name for name in WorkloadSpec.model_fields if name not in ("command", *OF_A_COMMAND))
LONGEST_COMMAND = 3000
# What a terminal takes as a line, and a deterministic guest as a file, is little more.
LONGEST_RUN = 4000
# What becomes a user's program in the guest: guest/testbed-start.c.
START = "testbed-start"
# Where guest/wrapper.sh is in a guest that needs it.
WRAPPER = "bin/testbed-wrapper"
_PLAIN = re.compile("[!-~]+")


def _escaped(word: str) -> str:
    """A word without blanks of which the wrapper makes this one."""
    return "".join(
        chr(byte) if 32 < byte < 127 and byte != ord("\\") else f"\\0{byte:03o}" for byte in word.encode()
    )


# Of a command that does not say how long it takes.
DEFAULT_SECONDS = 5.0
