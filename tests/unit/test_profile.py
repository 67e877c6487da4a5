# SPDX-License-Identifier: GPL-2.0-only
"""Profiles: from the plugin's lines to functions, stacks and what two arms differ in."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from testbed import cli
from testbed.analysis import parts, profile
from testbed.analysis.parts import Sample
from testbed.analysis.profile import Frame, Function, Names, Profiled
from testbed.guest import image, profiler
from testbed.guest.profiler import Target
from testbed.host.errors import SpecError
from testbed.kernel import symbols
from testbed.ledger.document import parsed
from testbed.report import html, text
from testbed.report import profile as report
from testbed.report.document import ComparisonReport
from testbed.report.escape import escaped
from testbed.terminal.show import show_profile
from testbed.verbs import results
from tests.unit.recorded import measured

KERNEL = 0xFFFFFFFF81000000
# reclaim() calls scan(), which calls itself once, and jumps to its own cold part.
LINES = f"""\
window 1000 1110 110
context 0 0 41 mmap test
context 3 1 7 kswapd0
context 1 1 41 mmap test
node -1 0 0 0
node 0 {0x401010:x} 40 0
node 1 {KERNEL:x} 10 1
node 2 {KERNEL + 0x100:x} 20 2
node 3 {KERNEL + 0x100:x} 5 1
node 2 {KERNEL + 0x300:x} 3 0
node -1 1 0 0
node 6 {KERNEL:x} 25 1
node -1 2 0 0
node 8 {0x401FFF:x} 7 0
operations 10
"""
BLOCKS = f"""\
window 0 30 30
context 0 0 41 a
block {KERNEL + 0x110:x} 0 20 5
block {KERNEL + 0x100:x} 0 4 2
block {0x401010:x} 0 6 1
"""
NAMES = Names(
    [KERNEL, KERNEL + 0x100, KERNEL + 0x300],
    ["reclaim.isra.0", "scan", "reclaim.constprop.1.cold"],
    {"mmap test": {0x401000: "be_task", 0x402000: "fill"}},
)


def test_a_profile_is_exact_if_all_sums_are_the_guests_time() -> None:
    found = profile.parse(LINES)
    assert found.is_exact and found.operations == 10
    assert found.contexts[0] == profile.Context(0, 0, 41, "mmap test")
    for wrong in (
        LINES.replace("1110", "1111"),
        LINES.replace(" 25 1", " 24 1"),
        LINES.replace(" 110\n", " 9\n"),
    ):
        assert not profile.parse(wrong).is_exact
    assert profile.parse(BLOCKS).is_exact and profile.parse(BLOCKS).operations is None
    with pytest.raises(ValueError, match="not of a profile: 'nonsense'"):
        profile.parse(LINES + "nonsense\n")


def test_functions_have_their_own_instructions_and_those_of_what_they_call() -> None:
    found = profile.parse(LINES)
    root = profile.calls(found, NAMES)
    assert root.inclusive == found.instructions
    assert list(profile.functions(root).values()) == [
        Function("be_task", 47, 85, 0),
        Function("reclaim", 38, 63, 2),
        # Of a function that calls itself the inner is a part of the outer.
        Function("scan", 25, 25, 3),
    ]
    alone = profile.calls(found, NAMES, lambda context: context.comm == "kswapd0")
    assert alone.inclusive == 25 and set(profile.functions(alone)) == {"reclaim"}


def test_who_executed_how_much() -> None:
    found = profile.parse(LINES)
    assert profile.shares(found, "task") == {"mmap test/41": 85, "kswapd0/7": 25}
    assert profile.shares(found, "cpu") == {"CPU 0": 78, "CPU 3": 25, "CPU 1": 7}
    assert profile.shares(found, "phase") == {"phase 0": 78, "phase 1": 32}
    assert profile.shares(profile.parse(BLOCKS), "cpu") == {"CPU 0": 30}


def test_blocks_of_code_are_told_by_their_function() -> None:
    code = profile.code(profile.parse(BLOCKS), NAMES)
    assert [(c.function, c.offset, c.instructions, c.runs) for c in code] == [
        ("scan", 0x10, 20, 5),
        # Nothing is known of this program.
        ("[a]", 0x401010, 6, 1),
        ("scan", 0, 4, 2),
    ]


def test_stacks_in_the_forms_of_other_programs() -> None:
    shown = Profiled("unpatched", 1, profile.parse(LINES), NAMES)
    assert report.folded([shown]).splitlines() == [
        "mmap test;be_task 47",
        "mmap test;be_task;reclaim 13",
        "mmap test;be_task;reclaim;scan 20",
        "mmap test;be_task;reclaim;scan;scan 5",
        "kswapd0;reclaim 25",
    ]
    assert report.folded([shown, shown]).startswith("unpatched seed 1;mmap test;be_task 47\n")
    made = json.loads(json.dumps(report.speedscope([shown])))
    (only,) = made["profiles"]
    assert only["endValue"] == sum(only["weights"]) == 110
    names = [frame["name"] for frame in made["shared"]["frames"]]
    assert [names[index] for index in only["samples"][3]] == [
        "mmap test",
        "be_task",
        "reclaim",
        "scan",
        "scan",
    ]


counts = st.dictionaries(st.sampled_from("abcdefg"), st.integers(0, 10**9), min_size=1)


def tree(of: dict[str, Any], name: str = "all") -> Frame:
    """Calls as nested dictionaries; under "" is what a function executed itself."""
    made = Frame(name)
    for callee, beneath in of.items():
        if callee:
            made.callees[callee] = tree(beneath, callee)
        else:
            made.instructions = beneath
    return made


def samples(of: Sequence[dict[str, int]], operations: int) -> list[Sample]:
    return [
        Sample(tree({"task": {name: {"": count} for name, count in each.items()}}), operations) for each in of
    ]


@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=5), st.integers(1, 1000))
def test_the_parts_of_a_difference_add_up(pairs: list[tuple[dict[str, int], dict[str, int]]], n: int) -> None:
    before, after = (samples([pair[side] for pair in pairs], n) for side in (0, 1))
    found = parts.parts(before, after)
    scale = max(found.whole.before, found.whole.after, 1)
    for what in ("before", "after", "difference"):
        together = sum(getattr(change, what) for change in found.functions)
        assert together == pytest.approx(getattr(found.whole, what), abs=1e-9 * scale)
    sizes = [abs(change.difference) for change in found.functions]
    assert sizes == sorted(sizes, reverse=True)
    assert (found.whole.low is None) == (len(pairs) == 1)


def test_the_interval_is_students() -> None:
    before = samples([{"f": 100}, {"f": 200}, {"f": 300}], 10)
    after = samples([{"f": 110}, {"f": 230}, {"f": 320, "g": 30}], 10)
    found = parts.parts(before, after)
    (f, g) = found.functions
    # Differences 1, 3 and 2: mean 2, standard deviation 1; t of 2 degrees of freedom is 4.303.
    assert (f.difference, f.low, f.high) == pytest.approx(
        (2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4
    )
    assert g.name == "g" and (g.before, g.difference) == pytest.approx((0, 1))
    # Student's t is 2 x sqrt(3): p = 0.074 of f; of g it is 1, and p = 0.423.
    assert (f.p, g.p) == pytest.approx((0.0742, 0.4226), abs=1e-4) and not f.certain
    (same,) = parts.parts(samples([{"f": 1}] * 3, 1), samples([{"f": 2}] * 3, 1)).functions
    assert same.certain and (same.low, same.high, same.p) == (1, 1, 0)


def test_what_is_certain_is_corrected_for_the_number_of_functions() -> None:
    rng = random.Random(1)
    noise = {f"f{n}": 1000 for n in range(400)}

    def noisy(**more: int) -> dict[str, int]:
        return {name: count + rng.randint(-50, 50) for name, count in noise.items()} | more

    before = samples([noisy(victim=1000 + seed) for seed in range(8)], 1)
    after = samples([noisy(victim=3000 + 2 * seed) for seed in range(8)], 1)
    found = parts.parts(before, after)
    assert [change.name for change in found.functions if change.certain] == ["victim"]
    assert sum(change.p is not None and change.p < 0.05 for change in found.functions) > 10


def test_calls_of_two_arms_in_one_tree() -> None:
    before = Sample(tree({"task": {"f": {"": 60, "g": {"": 30}, "tiny": {"": 1}}}}), 10)
    after = Sample(tree({"task": {"f": {"": 60}, "new": {"": 20}}}), 10)
    found = parts.flame([before], [after], 0.05)
    (task,) = found.callees
    (f, new) = task.callees
    assert [found.name, f.name, new.name] == ["all", "f", "new"]
    sizes = (found.before, found.after, f.before, f.after, new.before, new.after)
    assert sizes == pytest.approx((9.1, 8, 9.1, 6, 0, 2))
    assert [callee.name for callee in f.callees] == ["g"]


def rendered(*args: object) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(report.render(*args))  # type: ignore[arg-type]
    return console.export_text()


def test_arms_are_shown_side_by_side_with_what_is_left() -> None:
    slower = LINES.replace("20 2", "60 2").replace("window 1000 1110 110", "window 1000 1150 150")
    shown = [
        Profiled(arm, seed, profile.parse(lines), NAMES)
        for seed in (1, 2)
        for arm, lines in (("unpatched", LINES), ("patched", slower))
    ]
    text = rendered(shown, None, 1)
    assert "4 trials, each as it was measured" in text
    assert "patched: an operation takes 15 instructions, 11 before: +36.36 % [+36.36 %, +36.36 %]" in text
    assert "patched: certain parts of it: scan +36.36 %" in text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "scan 2.5 6.5 +4 [+4, +4] +36.36 % yes 3 3" in rows
    assert "2 other functions 8.5 8.5 +0 - +0.00 % - -" in rows
    assert "all functions 11 15 +4 [+4, +4] +36.36 % - -" in rows


# --- as a part of a report ------------------------------------------------------------------------------


def with_why(directory: Path) -> ComparisonReport:
    """The report of a measured result, with a profile that says `<scan>` for a function's name."""
    names = Names(NAMES.starts, ["reclaim", "<scan>", "reclaim"], NAMES.programs)
    before, after = (
        [
            report.sample(
                Profiled("x", seed, profile.parse(LINES.replace("20 2", f"{count + seed} 2")), names)
            )
            for seed in (1, 2, 3)
        ]
        for count in (20, 60)
    )
    made = results.report(results.load(measured(directory, {"a": [10, 11, 12], "b": [20, 21, 22]})))
    return made.model_copy(update={"why": {"b": report.differing(before, after)}})


def test_a_report_says_why(tmp_path: Path) -> None:
    made = with_why(tmp_path / "r")
    said = "b: certain parts of it: <scan> "
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(text.render(made))
    terminal = console.export_text()
    assert (
        said in terminal
        and "why b differs from a: instructions for an operation, calls in a trial" in terminal
    )
    assert f"certain parts of it: {escaped('<scan>')}" in text.markdown(made)
    of = parsed(ComparisonReport, made.text(indent=2)).why["b"]
    assert of == made.why["b"] and of.pairs == 3 and of.unit == "operation"
    assert sum(part.difference for part in of.functions) == pytest.approx(of.whole.difference)


def test_the_picture_is_in_the_page_and_can_be_searched(tmp_path: Path) -> None:
    made = with_why(tmp_path / "r")
    page = html.page(made, [])
    assert "<scan>" not in page and "&lt;scan&gt;" in page
    whole = ElementTree.fromstring(page[page.index("<svg ") : page.rindex("</svg>") + len("</svg>")])
    boxes = [box for box in whole if box.tag.endswith("svg")]
    names = ["".join(text.text or "" for text in box if text.tag.endswith("text")) for box in boxes]
    assert names == ["all", "kswapd0", "reclaim", "mmap test", "be_task", "reclaim", "<scan>", "<scan>"]
    fills = {
        name: next(r.get("fill") or "" for r in box if r.tag.endswith("rect"))
        for name, box in zip(names, boxes, strict=True)
    }
    assert fills["<scan>"].startswith("hsl(12") or fills["mmap test"].startswith("hsl(12")
    # As wide as what it executes in both arms; what is called lies within its caller.
    width = {name: float(box.get("width", 0)) for name, box in zip(names, boxes, strict=True)}
    assert width["all"] == pytest.approx(1200, abs=1)
    assert width["kswapd0"] + width["mmap test"] == pytest.approx(1200, abs=2)
    edges = [(float(b.get("x", 0)), float(b.get("y", 0)), float(b.get("width", 0))) for b in boxes]
    for x, y, wide in edges[1:]:
        assert any(
            y - 18 == above and left - 0.1 <= x and x + wide <= left + w + 0.1 for left, above, w in edges
        )


def test_who_asks_why_of_what_cannot_say_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = measured(tmp_path / "one", {"a": [10, 11]})
    assert cli.main(["report", str(one), "--why"]) == 2
    assert "one: --why: there are no two arms that measured the same seed" in capsys.readouterr().err
    assert cli.main(["compare", str(one), str(one), "--why"]) == 2
    assert "--why: nothing runs where two stored results are compared" in capsys.readouterr().err


def test_one_trial_is_shown_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Profiled("unpatched", 1, profile.parse(LINES), NAMES)
    text = rendered([shown], "cpu", 25)
    assert "unpatched seed 1: 110 instructions in 0.000 s of the guest's time" in text
    assert "10 operations, 11 instructions each" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["CPU", "3", "25", "22.73%"] in rows
    assert ["reclaim", "38", "34.55%", "57.27%", "2", "19"] in rows
    of_blocks = Profiled("unpatched", 1, profile.parse(BLOCKS), NAMES)
    assert ["scan+0x10", "20", "66.67%", "5"] in [
        line.split() for line in rendered([of_blocks], None, 5).splitlines()
    ]
    show_profile([shown], "folded", None, 25)
    assert capsys.readouterr().out == report.folded([shown])
    show_profile([shown], "speedscope", None, 25)
    assert json.loads(capsys.readouterr().out) == report.speedscope([shown])


# --- what has to be known of a kernel and of a program -------------------------------------------------

MAP = """\
0000000000000000 D __per_cpu_start
0000000000012000 T not_of_the_kernel
ffffffff81000000 T __memset
ffffffff81000000 W memset
ffffffff81000040 t scan
ffffffff81000100 T entry_SYSCALL_64
ffffffff81000200 T irq_entries_start
ffffffff81000300 T asm_exc_page_fault
ffffffff81000310 T asm_exc_divide_error
ffffffff81000320 T asm_sysvec_apic_timer_interrupt
ffffffff81000330 T asm_common_interrupt
ffffffff81000400 T __switch_to
ffffffff81001000 T _etext
ffffffff82000000 T after_the_end
"""


def test_functions_and_entries_of_a_kernel(tmp_path: Path) -> None:
    (tmp_path / "System.map").write_text(MAP)
    found = symbols.symbols(tmp_path / "vmlinux")
    assert found.names[:2] == ["memset", "scan"] and found.end == 0xFFFFFFFF81001000
    assert found.starts == sorted(found.starts) and found.starts[-1] == found.address("__switch_to")
    kinds = {entry.start & 0xFFF: (entry.size, entry.kind) for entry in found.entries}
    assert kinds == {
        0x100: (1, symbols.SYSTEM_CALL),
        0x200: (0x100, symbols.INTERRUPT),
        0x300: (1, symbols.FAULT_WITH_CODE),
        0x310: (1, symbols.FAULT),
        0x320: (1, symbols.INTERRUPT),
    }
    with pytest.raises(SpecError, match=r"the kernel has no function nobody\(\)"):
        found.address("nobody")
    (tmp_path / "System.map").write_text("0000000000012000 T f\n")
    with pytest.raises(SpecError, match=r"System\.map: not the map of a kernel's functions"):
        symbols.symbols(tmp_path / "vmlinux")
    with pytest.raises(SpecError, match=r"System.map.patched: the map of a kernel's functions is not there"):
        symbols.symbols(tmp_path / "vmlinux.patched")


def test_the_window_is_found_in_the_program_that_watches(tmp_path: Path) -> None:
    binary = image.with_symbols(profiler.WATCHER, tmp_path)
    assert binary is not None and image.with_symbols("busybox", tmp_path) is None
    watcher = profiler.program(binary)
    assert watcher is not None
    start, code = watcher.place("sample")
    assert watcher.functions[start] == "sample" and len(code) == 16 and code in binary
    with pytest.raises(SpecError, match=r"observe has no function nobody\(\)"):
        watcher.place("nobody")
    told = Target([1, 2, 3], [(7, 8, 9)], 4, 5, 6, watcher).told(stacks=True)
    assert struct.unpack("<6Q", told[:48]) == (1, 5, 6, 4, start, watcher.place("snapshot")[0])
    assert struct.unpack("<8Q", told[80:]) == (3, 1, 1, 2, 3, 7, 8, 9)
    # What an image has of it is the same code, without the symbols.
    packed = image.build(tmp_path).path.read_bytes()
    assert packed.count(watcher.text) == 1
    head = packed.rindex(b"\x7fELF", 0, packed.index(watcher.text))
    assert profiler.program(packed[head : head + len(binary)]) is None


def test_only_of_programs_that_stay_in_their_place_functions_are_known() -> None:
    assert profiler.program(b"#!/bin/sh\n") is None
    python = Path("/proc/self/exe").resolve().read_bytes()
    assert profiler.program(python) is None or python[16] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: neither a result directory"),
        (["x", "--blocks"], "--blocks needs --trial ARM:SEED"),
        (["x", "--trial", "a:1", "--seeds", "2"], "not allowed with argument"),
        (["x", "--folded", "--speedscope"], "not allowed with argument"),
    ],
)
def test_bad_words_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main(["profile", *words])
    except SystemExit as exit:
        status = int(exit.code or 0)
    assert status == 2 and said in capsys.readouterr().err
