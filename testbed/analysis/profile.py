# SPDX-License-Identifier: GPL-2.0-only
"""What a guest executed while its workload was measured, by function, task, vCPU and phase. Pure.

The lines are those of guest/profiler.c: what was counted is exact, and adds up to the guest's time.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

By = Literal["task", "cpu", "phase"]
_KERNEL = 1 << 63
_ROOT = -1
# As gcc names them: of fewer arguments, of known ones, unlikely.
_CLONE = re.compile(r"(\.(isra|constprop)\.\d+|\.cold)+$")


@dataclass(frozen=True)
class Context:
    """A task on a vCPU in a phase of the workload; `comm` is what the kernel calls the task."""

    vcpu: int
    phase: int
    pid: int
    comm: str


@dataclass(frozen=True)
class Node:
    """Something that was executed in a context, below another node or _ROOT: a function, as called by the one
    above it, by its address.

    A node that is a context's own has that context's number in the place of an address, and counts nothing.
    """

    parent: int
    place: int
    instructions: int
    calls: int


@dataclass(frozen=True)
class Block:
    """The code that begins at an address, in a context."""

    place: int
    context: int
    instructions: int
    runs: int


@dataclass(frozen=True)
class Profile:
    """What was counted from `began_ns` to `ended_ns` of the guest's time.

    It has `nodes`, of which each comes after the one above it, or else `blocks`; and the operations of the
    workload, if that counts some.
    """

    began_ns: int
    ended_ns: int
    instructions: int
    contexts: Sequence[Context]
    nodes: Sequence[Node]
    blocks: Sequence[Block]
    operations: int | None

    @property
    def is_exact(self) -> bool:
        """Whether all that was counted is what the guest's time has moved by, an instruction a nanosecond."""
        counted = sum(node.instructions for node in self.nodes) + sum(b.instructions for b in self.blocks)
        return counted == self.instructions == self.ended_ns - self.began_ns


def parse(text: str) -> Profile:
    """A profile from the plugin's lines and, as one more, `operations N`.

    Raises ValueError when they are not that.
    """
    window: list[int] = []
    operations = None
    contexts, nodes, blocks = list[Context](), list[Node](), list[Block]()
    for line in text.splitlines():
        what, *words = line.split(" ")
        if what == "node":
            nodes.append(Node(int(words[0]), int(words[1], 16), int(words[2]), int(words[3])))
        elif what == "block":
            blocks.append(Block(int(words[0], 16), int(words[1]), int(words[2]), int(words[3])))
        elif what == "context":
            vcpu, phase, pid, *comm = words
            contexts.append(Context(int(vcpu), int(phase), int(pid), " ".join(comm)))
        elif what == "window":
            window = [int(word) for word in words]
        elif what == "operations":
            operations = int(words[0])
        else:
            raise ValueError(f"not of a profile: {line!r}")
    began, ended, instructions = window
    return Profile(began, ended, instructions, contexts, nodes, blocks, operations)


@dataclass(frozen=True)
class Names:
    """The functions of a kernel, where each starts, ascending, and of programs, by the name of the task."""

    starts: Sequence[int]
    names: Sequence[str]
    programs: Mapping[str, Mapping[int, str]]

    def name(self, comm: str, place: int) -> str:
        """What a place is called in a task.

        What the compiler has made of a function, and the part that it has put elsewhere, are the function.
        """
        return _CLONE.sub("", self._function(comm, place)[1])

    def start(self, comm: str, place: int) -> int:
        """Where the function begins that a place is in; 0 if nothing is known of it."""
        return self._function(comm, place)[0]

    @cached_property
    def _of_programs(self) -> dict[str, tuple[Sequence[int], Sequence[str]]]:
        return {comm: (list(known), list(known.values())) for comm, known in self.programs.items()}

    def _function(self, comm: str, place: int) -> tuple[int, str]:
        starts, names = self.starts, self.names
        if not place & _KERNEL:
            starts, names = self._of_programs.get(comm, ((), ()))
        index = bisect.bisect_right(starts, place) - 1
        return (starts[index], names[index]) if index >= 0 else (0, f"[{comm}]")


@dataclass
class Frame:
    """A function as called by the one above it: what it executed itself, how often it was called."""

    name: str
    instructions: int = 0
    calls: int = 0
    callees: dict[str, Frame] = field(default_factory=dict)

    @property
    def inclusive(self) -> int:
        """What it executed with all that it called."""
        return self.instructions + sum(frame.inclusive for frame in self.callees.values())

    def below(self, name: str) -> Frame:
        """What it called by that name."""
        if name not in self.callees:
            self.callees[name] = Frame(name)
        return self.callees[name]


@dataclass(frozen=True)
class Function:
    """A function's instructions: its own, and those of all that it called, itself counted once."""

    name: str
    instructions: int
    inclusive: int
    calls: int


LABELS: Mapping[By, Callable[[Context], str]] = {
    # Where there are very many, further tasks of a name are one without a pid.
    "task": lambda context: f"{context.comm}/{context.pid}" if context.pid else context.comm,
    "cpu": lambda context: f"CPU {context.vcpu}",
    "phase": lambda context: f"phase {context.phase}",
}


def calls(profile: Profile, names: Names, of: Callable[[Context], bool] = lambda _: True) -> Frame:
    """The calls of all contexts, or of some, in one tree; below its root are tasks by their name."""
    root = Frame("all")
    label = _labeller(names)
    # Of every node its frame, and the name of the task that it is in; None where it is not wanted.
    frames: list[tuple[Frame, str] | None] = []
    for node in profile.nodes:
        if node.parent == _ROOT:
            context = profile.contexts[node.place]
            frames.append((root.below(context.comm), context.comm) if of(context) else None)
            continue
        above = frames[node.parent]
        if above is None:
            frames.append(None)
            continue
        parent, comm = above
        name = label(comm, node.place)
        # A part of itself that is elsewhere, or a jump from one into the other and back.
        frame = parent if parent.name == name and not node.calls else parent.below(name)
        frame.instructions += node.instructions
        frame.calls += node.calls
        frames.append((frame, comm))
    return root


def _labeller(names: Names) -> Callable[[str, int], str]:
    known: dict[tuple[str, int], str] = {}

    def label(comm: str, place: int) -> str:
        key = ("" if place & _KERNEL else comm, place)
        if key not in known:
            known[key] = names.name(comm, place)
        return known[key]

    return label


def functions(root: Frame) -> dict[str, Function]:
    """Every function of a tree, most instructions first. The tasks at its top are none."""
    own, inclusive, called = Counter[str](), Counter[str](), Counter[str]()

    def visit(frame: Frame, above: frozenset[str]) -> int:
        total = frame.instructions
        own[frame.name] += frame.instructions
        called[frame.name] += frame.calls
        beneath = above | {frame.name}
        total += sum(visit(callee, beneath) for callee in frame.callees.values())
        if frame.name not in above:
            inclusive[frame.name] += total
        return total

    for task in root.callees.values():
        for frame in task.callees.values():
            visit(frame, frozenset())
    return {
        name: Function(name, own[name], inclusive[name], called[name])
        for name in sorted(own, key=lambda name: (-own[name], -inclusive[name], name))
        if inclusive[name] or called[name]
    }


def shares(profile: Profile, by: By) -> dict[str, int]:
    """How many instructions each task, vCPU or phase has executed, most first."""
    of: list[int] = []
    found = Counter[str]()
    for node in profile.nodes:
        of.append(node.place if node.parent == _ROOT else of[node.parent])
        found[LABELS[by](profile.contexts[of[-1]])] += node.instructions
    for block in profile.blocks:
        found[LABELS[by](profile.contexts[block.context])] += block.instructions
    return {label: count for label, count in found.most_common() if count}


@dataclass(frozen=True)
class Code:
    """The code that begins at an offset in a function: how often it ran, and its instructions in all."""

    function: str
    offset: int
    instructions: int
    runs: int


def code(profile: Profile, names: Names) -> list[Code]:
    """Every block of code, most instructions first."""
    found: dict[tuple[str, int], list[int]] = {}
    for block in profile.blocks:
        comm = profile.contexts[block.context].comm
        name = names.name(comm, block.place)
        counts = found.setdefault((name, block.place - names.start(comm, block.place)), [0, 0])
        counts[0] += block.instructions
        counts[1] += block.runs
    made = [Code(name, offset, *counts) for (name, offset), counts in found.items()]
    return sorted(made, key=lambda code: (-code.instructions, code.function, code.offset))


def folded(root: Frame) -> Iterator[str]:
    """Stacks as flame graph programs take them: frames with semicolons between them, and instructions."""

    def visit(frame: Frame, above: str) -> Iterator[str]:
        path = f"{above};{frame.name}" if above else frame.name
        if frame.instructions:
            yield f"{path} {frame.instructions}"
        for callee in frame.callees.values():
            yield from visit(callee, path)

    for task in root.callees.values():
        yield from visit(task, "")


@dataclass(frozen=True)
class Profiled:
    """A trial, what it executed, and what that is called."""

    arm: str
    seed: int
    profile: Profile
    names: Names

    @property
    def title(self) -> str:
        return f"{self.arm} seed {self.seed}"

    def calls(self) -> Frame:
        """Its calls, in one tree."""
        return calls(self.profile, self.names)
