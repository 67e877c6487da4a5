# SPDX-License-Identifier: GPL-2.0-only
"""Verdicts in all forms of the report: words, page, JUnit, KTAP, gate. Nothing hostile gets through."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from testbed.analysis.compare import Exclusion
from testbed.analysis.decision import Decision, Drift
from testbed.analysis.verdict import decide
from testbed.ledger.document import parsed
from testbed.report import gate, html, plots, words
from testbed.report import interchange as machine
from testbed.report.document import ComparisonReport, Judgement, Trace
from testbed.report.html import Picture
from tests.unit.recorded import DATA

SEEDS = range(1, 13)
HOSTILE = '</pre><script>alert(1)</script>\x1b[31m"&<img src=x onerror=y>'


def values(centre: float, spread: float = 0.0) -> dict[int, float]:
    """Seeds about a value; the noise is a fixed one."""
    return {seed: centre * (1 + spread * ((seed * 7) % 12 - 5.5) / 5.5) for seed in SEEDS}


def decision(before: dict[int, float], after: dict[int, float]) -> Decision:
    return decide(before, after, sequential=True, kind="count", better="lower", alpha=0.05, margin=0.01)


IMPROVED = decision(values(100, 0.02), {s: v * (0.8 + s / 1000) for s, v in values(100, 0.02).items()})
REGRESSED = decision(values(100, 0.02), {s: v * (1.3 + s / 1000) for s, v in values(100, 0.02).items()})
SAME = decision(values(100, 0.02), {s: v * (1 + (s % 3 - 1) / 5000) for s, v in values(100, 0.02).items()})
OPEN = decision(values(100), values(102, 0.2))
FEW = decision({1: 1.0}, {1: 2.0})
GONE = decision(values(700, 0.1), dict.fromkeys(SEEDS, 0.0))


STORED = parsed(ComparisonReport, (DATA / "golden" / "document.json").read_bytes())


def document(
    primary: dict[str, Decision], exploratory: dict[str, Decision] | None = None, **changes: Any
) -> ComparisonReport:
    judgement = Judgement(decided=True, more_pairs=0, primary=primary, exploratory=exploratory or {})
    judged = {"verdicts": {"patched": judgement}, "alpha": 0.05, "sequential": True}
    return STORED.model_copy(update=judged | changes)


@pytest.mark.parametrize(
    ("given", "verdict", "pattern"),
    [
        (IMPROVED, "improved", r"^M: improved by -19\.\d % \[-\d+\.?\d* %, -\d+\.?\d* %\]$"),
        (REGRESSED, "regressed", r"^M: regressed by \+30\.\d % \[\+\d+"),
        (SAME, "equivalent", r"^M: no change larger than 0\.\d+ %$"),
        (
            OPEN,
            "inconclusive",
            r"^M: not decided \((\d+ more seeds needed, about|no number of seeds in sight)\)",
        ),
        (FEW, "none", r"^M: no verdict: 1 of at least 6 pairs$"),
        (GONE, "improved", r"^M: improved by -100 %"),
    ],
)
def test_a_verdict_is_said_with_its_figures(given: Decision, verdict: str, pattern: str) -> None:
    assert given.verdict == verdict
    assert re.search(pattern, words.sentence("M", given)), words.sentence("M", given)


def test_a_verdict_says_from_where_to_where() -> None:
    made = document({"misses": IMPROVED, "fault_p99": REGRESSED, "pages_per_second": OPEN})
    said = [words.said(one) for one in made.decisions("primary")]
    assert said[0].startswith("failed at first after reclaim: improved by -19.") and said[0].endswith(
        ", from 269 to 0"
    )
    # In the unit of the table, the same for both.
    assert said[1].endswith(", from 48 to 46.7 ms")
    assert said[2].startswith("pages touched: not decided")


FROM_NOTHING = decision(dict.fromkeys(SEEDS, 0.0), values(86, 0.1))
HUGE = decision(values(1, 0.1), values(12, 0.1))
OUTCOME = decide(
    dict.fromkeys(SEEDS, 0.0),
    dict.fromkeys(SEEDS, 1.0),
    kind="outcome",
    better="lower",
    alpha=0.05,
    margin=0,
    sequential=False,
)


def test_a_change_has_a_unit_and_no_exponent() -> None:
    assert re.search(r"^M: regressed by \+8\d(\.\d)? a seed \[\+\d", words.sentence("M", FROM_NOTHING))
    assert re.search(r"^M: regressed by \+1,\d\d\d % \[", words.sentence("M", HUGE))
    assert words.sentence("M", OUTCOME).startswith("M: regressed by +100 % of the seeds [+")


def test_n_is_that_of_the_verdicts() -> None:
    """Of OOM kills there are pairs where no seed was measured in every arm."""
    alone = document({"oom_kills": OUTCOME}, seeds=())
    assert "n = 12 pairs of seeds, looked at" in words.how(alone)
    both = document({"misses": IMPROVED, "tries": REGRESSED, "oom_kills": FEW})
    assert "n = 12 pairs of seeds (OOM kills: 1), looked at" in words.how(both)


def test_drift_is_said_beside_the_verdict() -> None:
    drifting = replace(IMPROVED, drift=Drift(0.8, 0.0002, 3.0))
    made = document({"misses": drifting, "tries": REGRESSED})
    (line,) = words.drifts(made)
    assert "failed at first after reclaim: the differences of pairs drift from seed to seed" in line
    assert "too narrow, by a factor of about 3.0" in line and "p = 0.0002" in line
    assert line in Page(html.page(made, [])).text
    assert parsed(ComparisonReport, made.text()) == made


# --- gate ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("misses improved", 1),
        ("misses regressed", 0),
        ("any primary improved", 1),
        ("any primary regressed", 0),
        ("any regressed", 1),
        ("fault_p99 regressed", 1),
        ("any primary undecided", 1),
        ("any primary inconclusive", 1),
        ("any none", 0),
    ],
)
def test_a_condition_is_met_or_not(text: str, met: int) -> None:
    made = document({"misses": IMPROVED, "fairness": OPEN}, {"fault_p99": REGRESSED})
    wanted = gate.condition(text)
    gate.require([wanted], ["misses", "fault_p99", "fairness"])
    assert len(list(gate.failures(made, [wanted]))) == met


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("misses", "is no condition"),
        ("misses worse", "`worse` is no verdict"),
        ("mises regressed", "did you mean `misses`?"),
        ("", "is no condition"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        gate.require([gate.condition(text)], ["misses"])


# --- machines ------------------------------------------------------------------------------------


def test_junit_counts_what_it_lists() -> None:
    made = document({"misses": IMPROVED, "tries": REGRESSED, "fairness": OPEN, "fault_p50": FEW})
    root = ET.fromstring(machine.junit(made))
    (suite,) = root
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    kinds = {case.get("name"): [child.tag for child in case] for case in suite}
    assert kinds == {
        "misses": ["system-out"],
        "tries": ["failure"],
        "fairness": ["skipped"],
        "fault_p50": ["error"],
    }


def test_ktap_has_a_plan_and_a_line_for_each() -> None:
    made = document({"misses": IMPROVED, "tries": REGRESSED, "fairness": OPEN})
    lines = machine.ktap(made).splitlines()
    assert lines[:4] == ["KTAP version 1", "1..1", "  KTAP version 1", "  1..3"]
    results = [line for line in lines if re.match(r" *(not )?ok ", line)]
    assert results == [
        "  ok 1 misses",
        "  not ok 2 tries",
        "  ok 3 fairness # SKIP no verdict",
        "not ok 1 patched",
    ]


# --- the page ------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, text and where anything would be loaded from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def picture() -> Picture:
    figure = plots.strips({"a": [[1, 2, 3]], "b": [[4, 5, 6]]})
    return Picture("x", "a caption", plots.rendered(figure, "svg"), b"", "first")


def test_the_page_says_the_verdict_and_loads_nothing() -> None:
    made = document({"misses": IMPROVED}, {"tries": OPEN})
    found = Page(html.page(made, [picture()]))
    assert words.sentence("failed at first after reclaim", IMPROVED) in found.text
    assert "script" not in found.tags and "link" not in found.tags
    assert found.sources and all(source.startswith("data:image/svg+xml;base64,") for source in found.sources)
    assert made.arms["unpatched"].trace.first[0] in found.text


def test_nothing_that_a_guest_says_is_markup() -> None:
    patched = STORED.arms["patched"].model_copy(update={"trace": Trace(count=1, first=(HOSTILE,))})
    made = document(
        {"misses": IMPROVED},
        arms={**STORED.arms, "patched": patched},
        excluded=(Exclusion(HOSTILE, 1, "oom", HOSTILE),),
        description=HOSTILE,
    )
    page = html.page(made, [])
    found = Page(page)
    assert "script" not in found.tags and "img" not in found.tags
    assert "\x1b" not in page
    assert found.text.count("<script>alert(1)</script>\\x1b[31m") == 4


def test_without_a_primary_metric_the_page_says_so() -> None:
    made = document({}, verdicts={})
    assert "No verdict: the experiment declares no primary metric." in Page(html.page(made, [])).text


def test_the_same_document_makes_the_same_page() -> None:
    made = document({"misses": IMPROVED})
    assert html.page(made, [picture()]) == html.page(made, [picture()])
