# SPDX-License-Identifier: GPL-2.0-only
"""Reports: the stored ones to the letter, and nothing that a guest says is obeyed by who shows them.

After an intended change: TESTBED_UPDATE_GOLDEN=1 pytest tests/unit/test_report.py, then read the diff.
"""

from __future__ import annotations

import copy
import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console

from testbed import wire
from testbed.analysis.compare import Exclusion, Observation
from testbed.analysis.metrics import METRICS, Better
from testbed.analysis.parse import Reading, parse
from testbed.ledger.document import parsed
from testbed.report import text, words
from testbed.report.document import TRACE_LINES, ComparisonReport, Metric
from testbed.report.escape import visible
from testbed.report.table import Table
from tests.unit.recorded import DATA, PATCHED, UNPATCHED, documented, edited, plan, record, with_frame

GOLDEN = DATA / "golden"
STORED = parsed(ComparisonReport, (GOLDEN / "document.json").read_bytes())


def stored(change: Callable[[Any], object] = lambda _: None) -> ComparisonReport:
    """A result of three seeds in two arms, had its JSON been changed so."""
    return edited(STORED, change)


def one_arm() -> ComparisonReport:
    def change(data: Any) -> None:
        of_arms = (data["arms"], data["provenance"]["kernels"], data["experiment"]["arms"], data["verdicts"])
        for where in of_arms:
            del where["patched"]

    return stored(change)


def three_arms() -> ComparisonReport:
    """The third is bit for bit the second, has not measured everything, and something went wrong."""

    def change(data: Any) -> None:
        for where in (data["arms"], data["provenance"]["kernels"], data["experiment"]["arms"]):
            where["again"] = copy.deepcopy(where["patched"])
        del data["arms"]["again"]["metrics"]["misses_per_try"]
        data["trials"] = {"planned": 12, "ended": 10}
        data["lost_attempts"] = 2
        data["arms"]["again"]["memory_bytes"]["3"] -= 4096
        data["arms"]["again"]["outcomes"] = {"oom": 1, "measured": 3}
        unpaired = "no measurement of arm again for this seed"
        data["excluded"] = [
            {"arm": "again", "seed": 4, "outcome": "oom", "reason": "the OOM killer took mmap_test"},
            {"arm": "patched", "seed": 4, "outcome": "refused", "reason": unpaired},
        ]
        same = "patched and again are the same kernel, bit for bit, with the same settings"
        differ = "oom: none of 3 trials of unpatched, none of 3 trials of patched, 1 of 4 trials of again"
        data["remarks"] = [
            {"kind": "same kernel", "text": same},
            {"kind": "outcomes differ", "text": differ},
        ]

    return stored(change)


def no_seeds() -> ComparisonReport:
    def change(data: Any) -> None:
        data["seeds"], data["verdicts"] = [], {}
        for arm in data["arms"].values():
            arm |= {"metrics": {}, "memory_bytes": {}, "trace": {"count": 0, "first": []}}
        data["excluded"] = [
            {"arm": "patched", "seed": 1, "outcome": "panic", "reason": "boot: kernel panic: VFS"}
        ]

    return stored(change)


CASES: dict[str, Callable[[], ComparisonReport]] = {
    "two-arms": stored,
    "one-arm": one_arm,
    "three-arms": three_arms,
    "no-seeds": no_seeds,
}


def shown(report: ComparisonReport, width: int = 110, terminal: bool = False) -> str:
    """The report as a terminal gets it."""
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, force_terminal=terminal).print(text.render(report))
    return out.getvalue()


FORMS: dict[str, Callable[[ComparisonReport], str]] = {"txt": shown, "md": text.markdown}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_the_report_is_the_stored_one(case: str, form: str) -> None:
    found = FORMS[form](CASES[case]())
    path = GOLDEN / f"{case}.{form}"
    if os.environ.get("TESTBED_UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


# --- what has to be in it --------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_arms_stand_in_the_order_of_the_experiment(form: str) -> None:
    arms = dict.fromkeys(("zulu", "mike", "alpha"), STORED.arms["patched"])
    found = FORMS[form](STORED.model_copy(update={"arms": arms, "verdicts": {}}))
    assert re.search(r"metric\W+zulu\W+mike\W+alpha", found)


@pytest.mark.parametrize("form", FORMS)
def test_what_went_wrong_is_shown(form: str) -> None:
    found = re.sub(r"\s+", " ", FORMS[form](three_arms()).replace("\\", ""))
    for line in (
        "oom: none of 3 trials of unpatched, none of 3 trials of patched, 1 of 4 trials of again",
        "10 of 12 trials have run so far",
        "attempts lost to the infrastructure and tried again: 2",
        "not in the numbers: again seed 4: oom: the OOM killer took mmap_test",
        "not in the numbers: patched seed 4: refused: no measurement of arm again for this seed",
        "patched and again are the same kernel, bit for bit, with the same settings",
        "(MemTotal 108,764 … 108,768 KiB)",
    ):
        assert line in found


@pytest.mark.parametrize("form", FORMS)
def test_without_seeds_there_is_a_sentence_and_no_table(form: str) -> None:
    found = FORMS[form](no_seeds())
    assert text.NO_SEEDS in found and "metric" not in found
    assert "panic: boot: kernel panic: VFS" in found


@pytest.mark.parametrize("width", [70, 80, 110, 250])
def test_a_narrow_terminal_loses_no_digit(width: int) -> None:
    made = stored()
    found = shown(made, width)
    assert "…" not in found
    # Each column, read from top to bottom without what stands around it.
    rows = [line for line in found.splitlines() if re.match(r" \S|  {8}", line)]
    for cells in text.table(made).rows:
        for piece in " ".join(cells[1:]).replace("-", " ").replace("[", " ").replace("]", " ").split():
            assert any(piece in row for row in rows), piece


def test_a_change_is_shown_for_two_arms_only() -> None:
    assert "change" in text.table(stored()).headings
    assert "change" not in [*text.table(one_arm()).headings, *text.table(three_arms()).headings]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (0.0, "0"),
        (7, "7"),
        (1234567, "1,234,567"),
        (1.0, "1"),
        (0.6709, "0.671"),
        (12.345, "12.3"),
        (99.95, "100"),
        (123.4, "123"),
        (8437.2, "8,437"),
        (2e9, "2,000,000,000"),
        (-3, "-3"),
        (0.0000123, "0.0000123"),
        (-1062.5, "-1,062"),
        (99.96, "100"),
        (0.00999, "0.00999"),
    ],
)
def test_numbers(value: float, said: str) -> None:
    assert words.number(value) == said


@given(st.floats(-1e15, 1e15, allow_nan=False))
def test_no_number_has_an_exponent(value: float) -> None:
    said = words.number(value)
    assert re.fullmatch(r"-?[0-9,]+(\.[0-9]+)?", said)
    # Three digits are exact to half a percent, and nobody asks for more than 12 places.
    assert float(said.replace(",", "")) == pytest.approx(value, rel=0.005, abs=1e-12)


def cell(*values: float, better: Better = "lower") -> Metric:
    return Metric(
        title="x",
        unit="count",
        better=better,
        kind="count",
        level="main",
        of_failures=False,
        phases={},
        values={str(seed): value for seed, value in enumerate(values, start=1)},
        median=sorted(values)[len(values) // 2],
    )


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (cell(3, 1, 2), "2 [1-3]"),
        (cell(4), "4"),
        (cell(4, 4), "4"),
        # Alike when rounded: a range from a number to itself would only puzzle.
        (cell(1.00001, 1.00002, 1.00003), "1"),
        (None, "-"),
    ],
)
def test_spreads(metric: Metric | None, words: str) -> None:
    assert text.spread(metric, [1, 2, 3]) == words


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (cell(2), cell(1), "-50.0%"),
        (cell(2), cell(3), "+50.0%"),
        (cell(2), cell(2), "="),
        (cell(0), cell(0), "="),
        # There is no percentage of nothing, but there is a change.
        (cell(0), cell(86), "+86"),
        (cell(3), cell(0), "-100.0%"),
        (cell(1), cell(12345), "+1,234,400.0%"),
        (cell(2, better="neither"), cell(3, better="neither"), ""),
        (None, cell(3), ""),
        (cell(3), None, ""),
    ],
)
def test_changes(before: Metric | None, after: Metric | None, words: str) -> None:
    assert text.change(before, after) == words


# --- the document ---------------------------------------------------------------------------------


def observed(arm: str, log: bytes, seed: int = 1) -> Observation:
    return Observation(record(arm, seed, log_sha256=f"hash of {arm} {seed}"), parse(log))


def test_the_document_has_every_value_under_its_registered_name() -> None:
    seen = [observed("unpatched", UNPATCHED), observed("patched", PATCHED)]
    made = documented(plan(), seen, [*(o.record for o in seen), record("patched", 1, "lost", attempt=2)])
    assert parsed(ComparisonReport, made.text()) == made
    assert made.seeds == (1,) and made.lost_attempts == 1
    for o in seen:
        metrics = made.arms[o.record.arm].metrics
        for metric in METRICS:
            value = metric.value(o.measurement)
            if value is None:
                assert metric.name not in metrics
                continue
            assert metrics[metric.name].model_dump() == {
                "title": metric.title_of("mmap_test"),
                "unit": metric.unit,
                "better": metric.better,
                "kind": metric.kind,
                "level": metric.level,
                "of_failures": metric.of_failures,
                "phases": {},
                "values": {"1": value},
                "median": value,
            }
    assert made.provenance.logs == {
        "unpatched seed 1": "hash of unpatched 1",
        "patched seed 1": "hash of patched 1",
    }


def test_what_a_kernel_does_not_count_is_not_in_the_document() -> None:
    vmstat = Reading({"allocstall_normal": 4}, {"allocstall_normal": 7})
    plain = replace(parse(UNPATCHED), vmstat=vmstat)
    made = documented(plan(["unpatched"]), [Observation(record("unpatched", 1), plain)], [])
    metrics = made.arms["unpatched"].metrics
    assert metrics["direct_reclaims"].values == {"1": 3}
    assert not {"tries", "misses", "misses_per_try", "captures", "oom_kills"} & set(metrics)
    assert "order-0 tries" not in shown(made)


def test_the_document_shows_the_first_misses_and_counts_all() -> None:
    made = documented(plan(["unpatched"]), [observed("unpatched", UNPATCHED)], [])
    trace = made.arms["unpatched"].trace
    assert trace.count == len(parse(UNPATCHED).misses) > len(trace.first) == TRACE_LINES
    assert trace.first[0] == "progress 49, order 0, pid 92, comm mmap_test"


def test_an_arm_is_what_its_kernel_is_told() -> None:
    def tell(data: dict[str, Any]) -> None:
        data["experiment"]["arms"]["told"] |= {"sysctl": {"vm.x": 1}, "command_line": ["quiet", "nosmt"]}
        for kernel in data["provenance"]["kernels"].values():
            kernel["vmlinux_sha256"] = "one"

    said = edited(plan(["plain", "told"]), tell)
    lines = text.setting(documented(said, [observed("plain", UNPATCHED), observed("told", UNPATCHED)]))
    assert "  plain: plain" in lines and "  told: told; vm.x=1; quiet; nosmt" in lines
    # The same kernel, told something else, is another arm.
    assert not [line for line in lines if "the same kernel" in line]


def test_medians_are_of_the_seeds_that_every_arm_measured() -> None:
    seen = [observed("unpatched", UNPATCHED, 1), observed("patched", PATCHED, 1)]
    seen += [observed("patched", UNPATCHED, 2), observed("patched", UNPATCHED, 3)]
    tries = documented(plan(seeds=3), seen, []).arms["patched"].metrics["tries"]
    assert set(tries.values) == {"1", "2", "3"}
    assert tries.median == tries.values["1"] != tries.values["2"]
    assert text.spread(tries, [1]) == words.number(tries.values["1"])


def test_oom_kills_are_those_of_trials_that_failed_as_well() -> None:
    after = wire.frames(PATCHED).contents["vmstat.after"]
    killed = with_frame(PATCHED, "vmstat.after", after.replace(b"oom_kill 0", b"oom_kill 3"))
    seen = [observed("patched", PATCHED, 1)]
    seen += [Observation(record("patched", seed, "oom", "killed"), parse(killed)) for seed in (2, 3)]
    seen.append(Observation(record("patched", 4, "lost", "gone"), parse(killed)))
    made = documented(plan(["patched"], 4), seen, [])
    kills = made.arms["patched"].metrics["oom_kills"]
    assert (kills.values, kills.median) == ({"1": 0, "2": 3, "3": 3}, 3)
    # The range is over what the median is over.
    assert text.spread(kills, made.seeds) == "3 [0-3]"
    assert set(made.arms["patched"].metrics["tries"].values) == {"1"}


def test_a_metric_of_no_common_seed_is_a_dash() -> None:
    made = documented(plan(), [observed("unpatched", UNPATCHED), observed("patched", PATCHED)], [])
    made = edited(made, lambda data: data["arms"]["unpatched"]["metrics"]["misses"].update(median=None))
    row = next(row for row in text.table(made).rows if row[0] == "failed at first after reclaim")
    assert row[1:] == ["-", "0", ""]


def test_stages_are_averages_over_the_seeds_that_take_part() -> None:
    rows = [record("a", 1, stages={"boot": 1.0}), record("a", 2, stages={"boot": 2.0})]
    failed = record("a", 3, "hang", "boot", stages={"boot": 120.0})
    seen = [Observation(row, parse(PATCHED)) for row in [*rows, failed]]
    assert documented(plan(["a"], 3), seen, []).wall_seconds == {"boot": 1.5}


def test_before_anything_has_ended_there_is_a_document() -> None:
    made = documented(plan(seeds=2), [], [])
    assert (made.trials.planned, made.trials.ended, made.seeds) == (4, 0, ())
    assert "0 of 4 trials have run so far" in shown(made)


def test_what_looking_costs_is_said() -> None:
    assert not any("sampled" in line for line in text.setting(stored()))

    def sampled(data: Any, sample: float) -> None:
        data["experiment"]["sample"] = sample
        metrics = data["arms"]["patched"]["metrics"]
        metrics["sampling_cpu"] = metrics["misses"] | {"median": 0.00123}

    every_50_ms = stored(lambda data: sampled(data, 0.05))
    assert "sampled every 50 ms, for 0.12% of one vCPU's time" in text.setting(every_50_ms)
    assert not any("sampled" in line for line in text.setting(stored(lambda data: sampled(data, 0))))


@pytest.mark.parametrize(
    ("decided", "words"),
    [(True, "2 of at most 4 trials were enough to decide"), (False, "2 of 4 trials have run so far")],
)
def test_seeds_that_were_not_needed_are_not_missing(decided: bool, words: str) -> None:
    def change(data: Any) -> None:
        data["sequential"] = True
        data["verdicts"]["patched"]["decided"] = decided
        data["trials"] = {"planned": 4, "ended": 2}

    assert text.notes(stored(change)) == [words]


# --- hostile words --------------------------------------------------------------------------------

HOSTILE = [
    "[bold]x[/bold] [/nothing] [link=file:///etc/passwd]y[/link]",
    "a | b || c",
    "`code` ``` ~~~ ~~gone~~",
    "\x1b[2J\x1b]0;title\x07\x9b31m",
    "back\b\b\b\rover\x0b\x0c\x00",
    "<script>alert(1)</script> <!-- &lt; -->",
    "![image](http://h/x.png) [link](http://h) $x^2$",
    "*a* **b** _c_ __d__ # e \\ \\\\",
    "line\u2028paragraph\u2029next\x85end \u202egnp.exe\u200b \ufeff",
    ":smile: :warning:",
    "\ud800",
]
hostile_words = pytest.mark.parametrize("words", HOSTILE, ids=lambda words: ascii(words)[:24])


def said_by_a_guest(words: str) -> ComparisonReport:
    """A result in which a guest says this wherever its words can come through."""
    first = (f"progress 1, order 0, pid 2, comm {words}",)
    arm = STORED.arms["unpatched"]
    traced = arm.model_copy(update={"trace": arm.trace.model_copy(update={"first": first})})
    accelerator = STORED.provenance.accelerator.model_copy(update={"reason": words})
    return STORED.model_copy(
        update={
            "excluded": (Exclusion("patched", 4, "failed", words, (" ".join(words.split("\n")),)),),
            "arms": {**STORED.arms, "unpatched": traced},
            "provenance": STORED.provenance.model_copy(update={"accelerator": accelerator}),
        }
    )


@hostile_words
@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_obeys_nothing_that_a_guest_says(words: str, terminal: bool) -> None:
    found = shown(said_by_a_guest(words), width=400, terminal=terminal)
    # Bold is what the report itself asks for.
    plain = re.sub(r"\x1b\[(?:0|1)m", "", found) if terminal else found
    assert all(char.isprintable() or char == "\n" for char in plain)
    assert plain.count(visible(words)) == 4


@given(st.text())
@example("\x1b")
def test_visible_text_is_printable_and_else_as_it_was(words: str) -> None:
    assert all(char.isprintable() or char in "\n\t" for char in visible(words))
    if all(char.isprintable() for char in words):
        assert visible(words) == words


def test_visible_text_shows_what_was_there() -> None:
    assert visible("a\x1b[1mb\r\x9b\u202e\ud800\tc\n") == "a\\x1b[1mb\\r\\x9b\\u202e\\ud800\tc\n"


MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def spoken(token: Token) -> str:
    """What a reader sees of a paragraph."""
    return "".join(child.content for child in token.children or [])


def kinds(tokens: list[Token]) -> list[str]:
    return [token.type for token in tokens] + [
        kind for t in tokens if t.children for kind in kinds(t.children)
    ]


def check_markdown(words: str) -> None:
    made = said_by_a_guest(words)
    tokens = MARKDOWN.parse(text.markdown(made))
    # No kind of element that a harmless report does not have, and as many of each.
    assert kinds(tokens) == kinds(MARKDOWN.parse(text.markdown(said_by_a_guest("words"))))
    lines = [spoken(token) for token in tokens if token.type == "inline"]
    assert f"not in the numbers: patched seed 4: failed: {visible(words)}" in lines
    assert f"acceleration: tcg ({visible(words)})" in lines
    fences = [token.content for token in tokens if token.type == "fence"]
    assert fences == [f"progress 1, order 0, pid 2, comm {visible(words)}\n"]


@hostile_words
def test_markdown_shows_what_a_guest_says_and_does_not_obey_it(words: str) -> None:
    check_markdown(words)


@settings(max_examples=100)
@given(st.text(st.sampled_from("ab1 \\`*_|<>[]()#~&$!-+.:;/\"'{}=^@\x1b\r\u2028"), min_size=1, max_size=20))
def test_markdown_shows_anything(words: str) -> None:
    check_markdown(words.strip() or "x")


def test_a_cell_with_a_bar_stays_one_cell() -> None:
    def change(data: Any) -> None:
        for arm in data["arms"].values():
            arm["metrics"]["tries"]["title"] = "a | b"

    made = stored(change)
    tokens = MARKDOWN.parse(text.markdown(made))
    assert kinds(tokens).count("td_open") == 4 * len(text.table(made).rows)
    assert "a | b" in [spoken(token) for token in tokens if token.type == "inline"]


def test_a_table_obeys_none_of_its_words_and_puts_numbers_to_the_right() -> None:
    table = Table(
        ["[red]a|b", "n", "`why`"], [["\x1b[2J*", "7", "x_y_"], ["", "1,234", ""]], frozenset({0, 2})
    )
    assert table.markdown() == [
        "| \\[red\\]a\\|b | n | \\`why\\` |",
        "| :-- | --: | :-- |",
        "| \\\\x1b\\[2J\\* | 7 | x\\_y\\_ |",
        "|  | 1,234 |  |",
    ]
    out = io.StringIO()
    Console(file=out, width=60, highlight=False).print(table.terminal())
    lines = [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]
    assert [lines[0], *lines[2:]] == [
        " [red]a|b       n   `why`",
        " \\x1b[2J*       7   x_y_",
        "            1,234",
    ]
