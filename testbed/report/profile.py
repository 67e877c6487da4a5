# SPDX-License-Identifier: GPL-2.0-only
"""Profiles as tables for a terminal, and in the forms of other people's programs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType

from testbed.analysis import parts, profile
from testbed.analysis.parts import Change, Parts, Sample
from testbed.analysis.profile import By, Profiled
from testbed.report.table import Table, plain
from testbed.report.words import counted, number, signed

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
    for arm in others:
        before, after = ([_sample(each) for each in shown if each.arm == name] for name in (first, arm))
        found = parts.parts(before, after)
        seeds = counted(len(before), "seed")
        unit = "an operation" if before[0].operations > 1 else "a trial"
        lines += [
            plain(""),
            plain(f"{arm} against {first}, {seeds}: instructions for {unit}"),
            difference(found, first, arm, most).terminal(),
        ]
    return Group(*lines)


def _sample(shown: Profiled) -> Sample:
    return Sample(shown.functions(), shown.profile.operations or 1)


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
        for f in shown.functions().values()
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


def difference(found: Parts, first: str, arm: str, most: int) -> Table:
    """The functions that the difference is made of, what is left of it, and the whole: it adds up."""
    shown, rest = found.functions[:most], found.functions[most:]
    other = Change(
        f"{counted(len(rest), 'other function')}",
        sum(change.before for change in rest),
        sum(change.after for change in rest),
        None,
        None,
        0,
        0,
    )
    rows = [_row(change, found.whole) for change in (*shown, *([other] if rest else []), found.whole)]
    headings = [
        "function",
        first,
        arm,
        "difference",
        "95 % interval",
        "of the whole",
        "calls before",
        "after",
    ]
    return Table(headings, rows)


def _row(change: Change, whole: Change) -> list[str]:
    interval = "-"
    if change.low is not None and change.high is not None:
        interval = f"[{signed(change.low)}, {signed(change.high)}]"
    called = change.calls_before or change.calls_after
    return [
        change.name,
        number(change.before),
        number(change.after),
        signed(change.difference),
        interval,
        # Of what an operation takes, so that the column adds up to the change in percent.
        f"{change.difference / whole.before:+.2%}" if whole.before else "-",
        number(change.calls_before) if called else "-",
        number(change.calls_after) if called else "-",
    ]


def folded(shown: Sequence[Profiled]) -> str:
    """All stacks, a line each, for flame graph programs; those of several trials below their names."""
    lines = []
    for each in shown:
        above = f"{each.title};" if len(shown) > 1 else ""
        for line in profile.folded(profile.calls(each.profile, each.names)):
            lines.append(f"{above}{line}\n")
    return "".join(lines)


def speedscope(shown: Sequence[Profiled]) -> dict[str, object]:
    """A file for speedscope.app: a profile for each trial, in which an instruction weighs one."""
    frames: dict[str, int] = {}
    profiles = []
    for each in shown:
        samples, weights = [], []
        for line in profile.folded(profile.calls(each.profile, each.names)):
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
