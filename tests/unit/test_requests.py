# SPDX-License-Identifier: GPL-2.0-only
"""Records of direct reclaims, the requests that they are of, what these cost, and what is no verdict."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.analysis.compare import Observation, by_construction, compare
from testbed.analysis.costs import EXCEEDANCES, gini
from testbed.analysis.judge import judgements
from testbed.analysis.metrics import METRICS, jain
from testbed.analysis.parse import Measurement, Reading, Task, Workload, parse
from testbed.analysis.requests import FATES, Chain, Request, chains, requests
from testbed.report import gate, html, interchange, words
from testbed.report.document import ComparisonReport, document
from testbed.report.remarks import remarks
from tests.unit import recorded
from tests.unit.recorded import PATCHED, RECORD, REPOSITORY, UNPATCHED, traced

METRIC = {metric.name: metric for metric in METRICS}


def request(comm: str = "mmap_test", pid: int = 91, **changes: int | str) -> Request:
    said: dict[str, Any] = RECORD | changes
    return Request(comm=comm, pid=pid, **said)


# --- a line ---------------------------------------------------------------------------------------

FAILED: dict[str, Any] = {"first": "pcp", "second": "page", "drained": 1, "wait_ns": 90_000}


@pytest.mark.parametrize(
    ("line", "record"),
    [
        (traced(), request()),
        (traced(**FAILED), request(**FAILED)),
        (traced("a b-c d", 7), request("a b-c d", 7)),
        (traced("x-1", 2, order=2), request("x-1", 2, order=2)),
        # In another order, and with fields that nobody knows.
        (re.sub(r"(order=0) (.*) (gfp_flags=X)", r"\3 new=7 \2 \1", traced()), request()),
        (traced().replace("wait_ns=2000 ", ""), None),
        (traced().replace("first=page ", ""), None),
        (traced(first="luck"), None),
        (traced(progress="many"), None),
        (traced(progress="-1"), None),
        (traced(progress="1_000"), None),
        (traced(progress="9" * 5000), None),
        (traced().replace("reclaim_alloc", "reclaim_end"), None),
        ("CPU:3 [LOST 17 EVENTS]\n", None),
        ("", None),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_records_are_read_by_the_names_of_their_fields(line: str, record: Request | None) -> None:
    assert requests(f"# tracer: nop\n{line}") == ((record,) if record else ())


def test_a_record_reads_as_the_line_of_the_mail() -> None:
    assert str(request(pid=809, progress=147)) == "progress 147, order 0, pid 809, comm mmap_test"


# --- requests -------------------------------------------------------------------------------------


def test_rounds_of_a_request_are_put_together() -> None:
    one = request(pid=1, allocated=0, first="pcp", second="empty", wait_ns=40, slow_ns=100)
    other = request(pid=2)
    # The second made no progress, and has no record.
    two = request(pid=1, round=3, wait_ns=7, slow_ns=1000)
    later = request(pid=1, slow_ns=50)
    found = chains([one, other, two, later])
    assert [chain.rounds for chain in found] == [(other,), (one, two), (later,)]
    # From the end of the first reclaim on: 40 to its record, and 900 more to the page.
    assert [chain.wait_ns for chain in found] == [2_000, 940, 2_000]
    assert [chain.fate for chain in found] == ["page", "repeat", "page"]


@pytest.mark.parametrize("next_", [{"round": 1, "slow_ns": 200}, {"round": 2, "slow_ns": 99}])
def test_a_request_that_got_no_page_ends_with_its_last_record(next_: dict[str, Any]) -> None:
    gave_up = request(allocated=0, first="empty", second="empty", wait_ns=40, slow_ns=100)
    found = chains([gave_up, request(**next_)])
    assert [chain.fate for chain in found] == ["unserved", "repeat" if next_["round"] > 1 else "page"]
    assert found[0].wait_ns == 40


@pytest.mark.parametrize(
    ("record", "fate"),
    [
        ({}, "page"),
        ({"first": "none", "captured": 1}, "captured"),
        # In mode fallback: it failed, and was then given the captured page.
        ({"first": "watermark", "captured": 1}, "watermark"),
        ({"first": "empty", "second": "page"}, "empty"),
        ({"first": "pcp", "second": "page"}, "pcp"),
        ({"round": 2}, "repeat"),
        ({"first": "pcp", "second": "pcp", "allocated": 0}, "unserved"),
    ],
)
def test_what_became_of_a_request(record: dict[str, Any], fate: str) -> None:
    assert Chain((request(**record),)).fate == fate


# --- costs ----------------------------------------------------------------------------------------


def task(pid: int, ns: int = 10**9, group: str = "main") -> Task:
    zero: dict[str, Any] = dict.fromkeys(("signal", "status", "max_ns", "minor_faults", "major_faults"), 0)
    said = {"group": group, "pid": pid, "ops": 10 * pid, "ns": ns, "histogram": []}
    return Task.model_validate(zero | said)


def measured(
    records: Sequence[Request],
    tries: int | None = None,
    tasks: Sequence[Task] = (task(1), task(2)),
    **more: int,
) -> Measurement:
    counted = {"direct_reclaim_try": len(records) if tries is None else tries, **more}
    reading = Reading(dict.fromkeys(counted, 0), counted)
    told = {"workload": "mmap_test", "seed": 1, "clock_ns": 1, "facts": {}, "tasks": tuple(tasks)}
    workload = Workload.model_validate(told)
    return Measurement(workload=workload, vmstat=reading, requests=tuple(records), traced=True)


RECORDS = [
    request(pid=1, wait_ns=10_000, slow_ns=500_000, freed=30, stolen=30),
    request(
        pid=2, first="pcp", second="page", drained=1, wait_ns=200_000, slow_ns=900_000, freed=50, stolen=49
    ),
    request(pid=1, first="none", captured=1, wait_ns=1_000, slow_ns=300_000, age_ns=4_000, freed=20),
    request(pid=2, first="empty", second="empty", allocated=0, wait_ns=50_000, slow_ns=400_000, freed=10),
    request(pid=2, round=2, first="none", captured=1, wait_ns=3_000, slow_ns=700_000, age_ns=2_000, freed=0),
    # Not one of the workload's: its time is nobody's share.
    request("kthread", 7, wait_ns=77_000, slow_ns=78_000, freed=0),
]
COSTS = {
    "wait_share": (10 + 200 + 1 + 350) * 1_000 / 2e9,
    "wait_share_worst": 550_000 / 1e9,
    "wait_share_page": 10_000 / 2e9,
    "wait_share_captured": 1_000 / 2e9,
    "wait_share_pcp": 200_000 / 2e9,
    "wait_share_watermark": 0,
    "wait_share_empty": 0,
    "wait_share_repeat": 350_000 / 2e9,
    "wait_share_unserved": 0,
    "wait_mean": (10 + 200 + 1 + 350 + 77) / 5,
    "wait_mean_page": (10 + 77) / 2,
    "wait_mean_pcp": 200,
    "wait_median_page": (10 + 77) / 2,
    "wait_median_pcp": 200,
    "wait_median_empty": None,
    "wait_mean_repeat": 350,
    "wait_mean_watermark": None,
    "wait_max": 350,
    "wait_p50": None,
    "slow_share": (500 + 900 + 300 + 700) * 1_000 / 2e9,
    "wait_fairness": jain([11, 550]),
    "wait_gini": (550 - 11) / (2 * 561),
    "all_stolen": 1 / 3,
    "freed_per_request": (30 + 50 + 20 + 0 + 0) / 5,
    # Of 100 pages that tasks freed, 50 each; of their operations one third is the first task's.
    "freed_beyond": 50 / 100 - 10 / 30,
    "capture_age": 3,
    "records_lost": 0,
}


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_those_of_the_records(name: str) -> None:
    assert METRIC[name].value(measured(RECORDS)) == pytest.approx(COSTS[name])


def test_time_in_line_is_of_what_the_kernel_counts() -> None:
    assert METRIC["queue_share"].value(measured(RECORDS, direct_reclaim_wait_ns=10**8)) == pytest.approx(0.05)
    assert METRIC["queue_share"].value(measured(RECORDS)) is None


def test_who_waits_in_line_does_not_wait_less() -> None:
    both, without = METRIC["waiting_share"].value, (10 + 200 + 1 + 350) * 1_000 / 2e9
    assert both(measured(RECORDS)) == pytest.approx(without)
    assert both(measured(RECORDS, direct_reclaim_wait_ns=10**8)) == pytest.approx(without + 0.05)
    # Of some of the records alone nothing follows.
    assert both(measured(RECORDS, tries=99, direct_reclaim_wait_ns=10**8)) is None


def test_parts_of_the_cost_add_up_to_it() -> None:
    whole = parse(UNPATCHED)
    value = {name: metric.value(whole) for name, metric in METRIC.items()}
    parts = [value[f"wait_share_{fate}"] for fate in FATES]
    assert value["wait_share"] and value["wait_share"] == pytest.approx(sum(part or 0 for part in parts))
    assert value["misses"] == sum(value[f"misses_{how}"] or 0 for how in ("pcp", "watermark", "empty"))


@pytest.mark.parametrize("n", [2 * EXCEEDANCES - 1, 2 * EXCEEDANCES])
def test_a_quantile_takes_enough_requests_beyond_it(n: int) -> None:
    records = [request(pid=1, wait_ns=1_000 * k) for k in range(1, n + 1)]
    assert METRIC["wait_p50"].value(measured(records)) == (None if n % 2 else n / 2)


def test_of_some_records_no_cost_follows() -> None:
    found = measured(RECORDS, tries=len(RECORDS) + 3)
    assert found.unrecorded == 3 and found.chains is None
    known = {name for name in COSTS if METRIC[name].value(found) is not None}
    assert known == {"records_lost"} and METRIC["records_lost"].value(found) == 3
    assert found.misses and METRIC["tries"].value(found) == 9


def test_lost_records_are_remarked() -> None:
    seen = [
        Observation(recorded.record("a", seed), measured(RECORDS, tries))
        for seed, tries in ((1, 6), (2, 1009))
    ]
    arms = compare(["a"], seen).arms
    said = [remark for remark in remarks(recorded.plan(["a"]), arms) if remark.kind == "records lost"]
    assert [remark.text for remark in said] == [
        "direct reclaims without a record: 1 of 2 trials of a lost up to 1,003, and have no costs"
    ]
    assert gate.condition("records lost").of == "records lost"


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12).filter(any))
def test_gini_is_half_the_mean_difference_over_the_mean(values: list[int]) -> None:
    n, mean = len(values), sum(values) / len(values)
    differences = sum(abs(a - b) for a in values for b in values) / n**2
    assert gini(values) == pytest.approx(differences / (2 * mean), abs=1e-12)
    assert 0 <= (gini(values) or 0) <= 1 - 1 / n + 1e-12 and gini([0, 0]) is None


# --- what is decided by construction --------------------------------------------------------------


def counts(tries: int, misses: int, used: int, drained: int = 0, drains: int = 0) -> Measurement:
    counted = {"direct_reclaim_try": tries, "direct_reclaim_miss": misses, "reclaim_capture_used": used}
    counted |= {"direct_reclaim_miss_drained": drained}
    counted |= {"direct_reclaim_drain": drains, "direct_reclaim_drain_busy": 0}
    return Measurement(vmstat=Reading(dict.fromkeys(counted, 0), counted))


def arms(before: Measurement, after: Measurement, seeds: int = 8) -> Any:
    seen = [
        Observation(recorded.record(arm, seed), replace(m))
        for arm, m in (("unpatched", before), ("patched", after))
        for seed in range(1, seeds + 1)
    ]
    return compare(["unpatched", "patched"], seen)


STOCK, EARLY = counts(1000, 150, 0, drained=2, drains=150), counts(1010, 0, 1010)


@pytest.mark.parametrize(
    ("before", "after", "metric", "settled"),
    [
        (STOCK, EARLY, "misses", True),
        (STOCK, EARLY, "misses_per_try", True),
        (STOCK, EARLY, "misses_drained", True),
        (EARLY, STOCK, "misses", True),
        # Of 10 % of the tries the lists are asked: fewer than 15 % fail, whatever they have.
        (STOCK, counts(1000, 3, 903), "misses", True),
        (STOCK, counts(1000, 3, 803), "misses", False),
        # After the drain there are few, and that many are possible.
        (STOCK, counts(1000, 3, 903, drains=3), "misses_drained", False),
        # In mode fallback every captured page that is used comes after a failure, and before the drain.
        (STOCK, counts(1000, 50, 50), "misses", False),
        (STOCK, counts(1000, 50, 50), "misses_drained", True),
        (STOCK, counts(1000, 50, 47, drains=3), "misses_drained", False),
        (STOCK, counts(1000, 90, 0, drains=90), "misses", False),
        # Who fails seldom for another reason does what it claims.
        (STOCK, counts(1000, 1, 0, drains=1), "misses_drained", False),
        # There are as many tries, whoever hands over what.
        (STOCK, EARLY, "tries", False),
        # Nothing failed there either.
        (counts(1000, 0, 0), EARLY, "misses", False),
    ],
)
def test_what_is_not_asked_cannot_fail(
    before: Measurement, after: Measurement, metric: str, settled: bool
) -> None:
    made = arms(before, after)
    reason = by_construction(METRIC[metric], *made.arms.values())
    assert bool(reason) == settled
    judged = judgements(made, {metric: 0.05}, alpha=0.05, sequential=False)["patched"].primaries[metric]
    assert (judged.verdict == "by construction") == settled
    if settled:
        assert judged.decided and judged.direction is None and judged.reason == reason
        assert ("before the free lists are asked" in reason) != metric.startswith("misses_drained")


def test_a_settled_metric_makes_no_other_easier_to_find() -> None:
    """It takes part in the correction for many as one that has not changed."""
    made = arms(STOCK, EARLY)
    found = judgements(made, {"tries": 0.0}, alpha=0.05, sequential=False)["patched"].exploratory
    assert found["misses"].verdict == "by construction" and found["misses"].estimate is None


def report_of_it() -> ComparisonReport:
    seen = [
        Observation(recorded.record(arm, seed), parse(log))
        for arm, log in (("unpatched", UNPATCHED), ("patched", PATCHED))
        for seed in range(1, 7)
    ]
    made = compare(["unpatched", "patched"], seen)
    verdicts = judgements(made, {"misses": 0.05}, alpha=0.05, sequential=False)
    return document(recorded.plan(), made, seen, [o.record for o in seen], verdicts)


SENTENCE = (
    "failed at first after reclaim: decided by construction: patched gives a page to 100% of its tries "
    "before the free lists are asked, from 269 to 0"
)


def test_no_form_of_the_report_calls_it_a_verdict() -> None:
    made = report_of_it()
    assert list(words.verdicts(made)) == [("patched", SENTENCE)]
    page = html.page(made, [])
    assert SENTENCE in page and "verdict by-construction" in page
    (primary,) = json.loads(made.text())["verdicts"]["patched"]["primary"].values()
    assert primary["verdict"] == "by construction"
    assert [case.result for case in interchange.cases(made)] == ["skipped"]
    assert "ok 1 misses # SKIP no verdict" in interchange.ktap(made)
    for verdict in ("improved", "regressed", "changed", "undecided", "none"):
        assert list(gate.failures(made, [gate.condition(f"misses {verdict}")])) == []
    assert len(list(gate.failures(made, [gate.condition("misses construction")]))) == 1


# --- the guest ------------------------------------------------------------------------------------


def compiled(directory: Path) -> Path:
    source = directory / "turns.c"
    source.write_text(
        '#define main observe\n#include "observe.c"\n#undef main\n'
        "int main(int argc, char **argv)\n{\n"
        '\tsetenv("HOLD", argv[1], 1);\n\tread_times();\n'
        "\tfor (int i = 1; i < targets; i++)\n\t\tputchar('0' + turns(i));\n\treturn 0;\n}\n"
    )
    program = directory / "turns"
    lib = REPOSITORY / "images" / "lib"
    include = [f"-I{REPOSITORY / 'images' / name}" for name in ("src", "lib")]
    subprocess.run(
        ["gcc", "-Wall", "-Wno-unused", *include, "-o", program, source, lib / "load.c", "-lm"],
        check=True,
        timeout=60,
    )
    return program


def test_a_target_that_is_the_same_again_is_no_turn(tmp_path: Path) -> None:
    program = compiled(tmp_path)

    def turns(*pages: int) -> str:
        hold = ",".join(f"{10 * n}={count}" for n, count in enumerate(pages, start=1))
        return subprocess.run([program, hold], check=True, capture_output=True, text=True, timeout=10).stdout

    assert turns(10, 20, 30) == "00"
    assert turns(10, 20, 15, 30) == "011"
    # Neither when it comes again, nor on the way on; but on the way back.
    assert turns(10, 10, 20) == "00"
    assert turns(20, 20, 10) == "01"
    assert turns(20, 10, 10, 5) == "100"
    assert turns(20, 10, 10, 30) == "101"
    assert turns(0, 0, 10) == "00"
