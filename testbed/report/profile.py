# SPDX-License-Identifier: GPL-2.0-only
"""Profiles as tables for a terminal, and in the forms of other people's programs. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType

from testbed.analysis import parts, profile
from testbed.analysis.parts import Change, Flame, Sample
from testbed.analysis.profile import By, Profiled
from testbed.report import why
from testbed.report.document import Call, Part, Why
from testbed.report.table import Table, plain
from testbed.report.words import counted

# Functions that a report keeps.
KEPT = 25
# Of all instructions, what has a place in the picture.
LEAST = 0.002
# As the project of that name has it: https://www.speedscope.app/file-format-schema.json
SPEEDSCOPE = "https://www.speedscope.app/file-format-schema.json"


def render(shown: Sequence[Profiled], by: By | None, most: int) -> RenderableType:
    """A trial's functions or blocks of code; of several trials what every arm differs in from the first."""
    if len(shown) == 1:
        return Group(*_of_one(shown[0], by, most))
    first, *others = dict.fromkeys(each.arm for each in shown)
    lines: list[RenderableType] = [
        plain(
            f"{counted(len(shown), 'trial')}, each as it was measured, byte for byte; every instruction of "
            "the measured time is counted"
        )
    ]
    samples = {arm: [sample(each) for each in shown if each.arm == arm] for arm in (first, *others)}
    for arm in others:
        of = differing(samples[first], samples[arm], most)
        lines += [plain(line) for line in why.sentences({arm: of})]
        lines.append(why.table(of, first, arm).terminal())
    return Group(*lines)


def sample(shown: Profiled) -> Sample:
    """A trial as the parts of a difference are made of."""
    return Sample(shown.calls(), shown.profile.operations or 1)


def _of_one(shown: Profiled, by: By | None, most: int) -> Iterator[RenderableType]:
    of = shown.profile
    yield plain(
        f"{shown.title}: {of.instructions:,} instructions in {(of.ended_ns - of.began_ns) / 1e9:.3f} s of "
        "the guest's time, every one of them counted"
    )
    yield plain("its console log is that of the result, byte for byte")
    if of.operations:
        yield plain(f"{of.operations:,} operations, {of.instructions / of.operations:,.0f} instructions each")
    if by:
        rows = [
            [label, f"{count:,}", f"{count / of.instructions:.2%}"]
            for label, count in profile.shares(of, by).items()
        ]
        yield Table([by, "instructions", "share"], rows[:most]).terminal()
    yield (blocks(shown, most) if of.blocks else functions(shown, most)).terminal()


def functions(shown: Profiled, most: int) -> Table:
    """Its functions: their own instructions, those with all that they called, and their calls."""
    of = shown.profile
    rows = [
        [
            f.name,
            f"{f.instructions:,}",
            f"{f.instructions / of.instructions:.2%}",
            f"{f.inclusive / of.instructions:.2%}",
            f"{f.calls:,}",
            f"{f.instructions / f.calls:,.0f}" if f.calls else "-",
        ]
        for f in profile.functions(shown.calls()).values()
    ]
    headings = ["function", "instructions", "self", "with callees", "calls", "a call"]
    return Table(headings, rows[:most])


def blocks(shown: Profiled, most: int) -> Table:
    """Its blocks of code, by the function they are in."""
    of = shown.profile
    rows = [
        [
            f"{code.function}+{code.offset:#x}",
            f"{code.instructions:,}",
            f"{code.instructions / of.instructions:.2%}",
            f"{code.runs:,}",
        ]
        for code in profile.code(of, shown.names)[:most]
    ]
    return Table(["code", "instructions", "share", "runs"], rows)


def folded(shown: Sequence[Profiled]) -> str:
    """All stacks, a line each, for flame graph programs; those of several trials below their names."""
    lines = []
    for each in shown:
        above = f"{each.title};" if len(shown) > 1 else ""
        for line in profile.folded(each.calls()):
            lines.append(f"{above}{line}\n")
    return "".join(lines)


def speedscope(shown: Sequence[Profiled]) -> dict[str, object]:
    """A file for speedscope.app: a profile for each trial, in which an instruction weighs one."""
    frames: dict[str, int] = {}
    profiles = []
    for each in shown:
        samples, weights = [], []
        for line in profile.folded(each.calls()):
            path, _, count = line.rpartition(" ")
            samples.append([frames.setdefault(name, len(frames)) for name in path.split(";")])
            weights.append(int(count))
        profiles.append(
            {
                "type": "sampled",
                "name": each.title,
                "unit": "none",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        )
    return {
        "$schema": SPEEDSCOPE,
        "shared": {"frames": [{"name": name} for name in frames]},
        "profiles": profiles,
    }


# --- what arms differ in ------------------------------------------------------------------------------


def differing(before: Sequence[Sample], after: Sequence[Sample], most: int = KEPT) -> Why:
    """What an arm's trials and the first one's, pairs of seeds, differ in.

    It has the functions that are certain, and so many of the largest.
    """
    found = parts.parts(before, after)
    largest, smaller = found.functions[:most], found.functions[most:]
    kept = [*largest, *(change for change in smaller if change.certain)]
    rest = [change for change in smaller if not change.certain]
    return Why(
        pairs=len(before),
        unit="operation" if all(sample.operations > 1 for sample in before) else "trial",
        whole=_part(found.whole),
        functions=tuple(map(_part, kept)),
        others=_together(rest) if rest else None,
        calls=_call(parts.flame(before, after, LEAST)),
    )


def _part(change: Change) -> Part:
    return Part(**dataclasses.asdict(change))


def _together(changes: Sequence[Change]) -> Part:
    return Part(
        name=counted(len(changes), "other function"),
        before=sum(change.before for change in changes),
        after=sum(change.after for change in changes),
        low=None,
        high=None,
        p=None,
        calls_before=0,
        calls_after=0,
        certain=False,
    )


def _call(flame: Flame) -> Call:
    callees = tuple(map(_call, flame.callees))
    return Call(name=flame.name, before=flame.before, after=flame.after, callees=callees)
