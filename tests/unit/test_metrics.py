# SPDX-License-Identifier: GPL-2.0-only
"""Numbers: histograms, fairness, the registry, and what may stand side by side."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from math import ceil
from types import MappingProxyType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from testbed.analysis.compare import Comparison, Observation, compare, lost_attempts, median
from testbed.analysis.histogram import BUCKETS, SUB_BUCKETS, bucket, highest, merged, quantile
from testbed.analysis.metrics import METRICS, jain
from testbed.analysis.parse import Measurement, parse
from testbed.record import LOST, Record, final
from tests.unit.recorded import DATA, PATCHED, UNPATCHED, record

VALUE = {metric.name: metric.value for metric in METRICS}
WHOLE = {"unpatched": parse(UNPATCHED), "patched": parse(PATCHED)}
NOTHING = parse(b"")

latencies = st.integers(0, highest(BUCKETS - 2))

# --- histograms -----------------------------------------------------------------------------------


def test_buckets_lie_side_by_side() -> None:
    for index in range(BUCKETS - 1):
        assert bucket(highest(index)) == index
        assert bucket(highest(index) + 1) == index + 1


@given(latencies)
@example(255)
@example(256)
def test_a_bucket_is_no_wider_than_a_128th_of_its_value(value: int) -> None:
    top = highest(bucket(value))
    assert value <= top <= value + value / SUB_BUCKETS


@pytest.mark.parametrize("value", [2**42, 2**63, 2**64 - 1])
def test_what_is_beyond_the_last_bucket_goes_there(value: int) -> None:
    assert bucket(value) == BUCKETS - 1


def test_the_guest_counts_in_as_many_buckets() -> None:
    source = (DATA.parents[1] / "images" / "src" / "mmap_test.c").read_text()
    sub = re.search(r"#define SUB (\d+)", source)
    buckets = re.search(r"#define BUCKETS \((\d+) \* SUB \+ SUB\)", source)
    assert sub and buckets
    assert (int(sub[1]), (int(buckets[1]) + 1) * int(sub[1])) == (SUB_BUCKETS, BUCKETS)


@given(
    st.lists(st.one_of(latencies, st.integers(0, 600)), min_size=1, max_size=300),
    st.sampled_from([Fraction(1, 1000), Fraction(1, 2), Fraction(99, 100), Fraction(999, 1000), Fraction(1)]),
)
def test_a_quantile_is_that_of_the_samples_within_a_bucket(samples: list[int], q: Fraction) -> None:
    exact = sorted(samples)[ceil(q * len(samples)) - 1]
    found = quantile(Counter(map(bucket, samples)), float(q))
    assert found is not None and bucket(found) == bucket(exact)
    assert exact <= found <= exact + exact / SUB_BUCKETS


@given(st.lists(st.lists(latencies, max_size=20), max_size=5))
def test_merged_histograms_are_the_histogram_of_all(tasks: list[list[int]]) -> None:
    together = merged(Counter(map(bucket, samples)) for samples in tasks)
    assert together == Counter(bucket(sample) for samples in tasks for sample in samples)


def test_an_empty_histogram_has_no_quantile() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({3: 0}, 0.5) is None


# --- fairness -------------------------------------------------------------------------------------

shares = st.lists(st.integers(0, 10**9), min_size=1, max_size=32).filter(any)


@given(shares)
def test_jains_index_lies_between_one_nth_and_one(values: list[int]) -> None:
    index = jain(values)
    assert index is not None
    assert 1 / len(values) - 1e-12 <= index <= 1 + 1e-12


@given(shares, st.integers(1, 1000))
def test_jains_index_knows_neither_scale_nor_order(values: list[int], factor: int) -> None:
    assert jain([value * factor for value in values]) == pytest.approx(jain(values))
    assert jain(sorted(values)) == jain(values)


@given(st.integers(1, 10**9), st.integers(1, 512))
def test_jains_index_at_its_ends(value: int, tasks: int) -> None:
    assert jain([value] * tasks) == 1.0
    assert jain([value] + [0] * (tasks - 1)) == pytest.approx(1 / tasks)


def test_jains_index_of_nothing() -> None:
    assert jain([0, 0]) is None
    assert jain([]) is None


def test_jains_own_example() -> None:
    # TR-301, section 2: of 100 users, 20 get everything, in equal parts.
    assert jain([5] * 20 + [0] * 80) == pytest.approx(0.2)


# --- the registry ---------------------------------------------------------------------------------


def test_names_and_titles_are_unique() -> None:
    assert (
        len({metric.name for metric in METRICS}) == len({metric.title for metric in METRICS}) == len(METRICS)
    )
    assert {metric.unit for metric in METRICS} == {"count", "ratio", "us", "pages/s", "index"}
    assert {metric.better for metric in METRICS} == {"lower", "higher", "neither"}


@pytest.mark.parametrize("name", VALUE)
def test_of_a_log_that_tells_nothing_no_number_is_made(name: str) -> None:
    assert VALUE[name](NOTHING) is None


@pytest.mark.parametrize("arm", ["unpatched", "patched"])
def test_metrics_are_those_of_the_raw_counters(arm: str) -> None:
    """Read once more, from the file, without anything of testbed's."""
    text = gzip.decompress((DATA / f"{arm}.log.gz").read_bytes()).decode()

    def body(name: str) -> str:
        return text.split(f"\n#tb:frame {name} ")[1].split("\n", 1)[1].split(f"\n#tb:close {name}\n")[0]

    after, before = (
        {line.split()[0]: int(line.split()[1]) for line in body(name).splitlines()}
        for name in ("vmstat.after", "vmstat.before")
    )
    delta = {name: after[name] - before[name] for name in after}
    tasks = json.loads(body("mmap_test"))["tasks"]
    pages = [task["pages"] for task in tasks]
    # The highest value of each counted bucket, as often as it was counted, in order.
    tops = []
    for task in tasks:
        for index, count in task["histogram"]:
            low, width = index, 1
            while low >= 2 * 128:
                low, width = low - 128, width * 2
            tops += [low * width + width - 1] * count
    tops.sort()
    assert len(tops) == sum(pages)

    expected = {
        "direct_reclaims": sum(delta[f"allocstall_{zone}"] for zone in ("dma32", "normal", "movable")),
        "tries": delta["direct_reclaim_try"],
        "misses": delta["direct_reclaim_miss"],
        "misses_drained": delta["direct_reclaim_miss_drained"],
        "misses_per_try": delta["direct_reclaim_miss"] / delta["direct_reclaim_try"],
        # The recorded guests were not asked to tally events.
        **dict.fromkeys(name for name in VALUE if name.startswith("stock_")),
        "captures": delta.get("reclaim_capture"),
        "captures_used": delta.get("reclaim_capture_used"),
        "captures_unused": delta.get("reclaim_capture_unused"),
        "captures_rejected": delta.get("reclaim_capture_reject"),
        "pages_per_second": pytest.approx(sum(t["pages"] / (t["ns"] / 1e9) for t in tasks)),
        "fault_p50": tops[(len(tops) + 1) // 2 - 1] / 1e3,
        "fault_p99": tops[-(-len(tops) * 99 // 100) - 1] / 1e3,
        "fault_p999": tops[-(-len(tops) * 999 // 1000) - 1] / 1e3,
        "fault_max": max(t["max_ns"] for t in tasks) / 1e3,
        "fairness": pytest.approx(sum(pages) ** 2 / len(pages) / sum(p * p for p in pages)),
        "oom_kills": 0,
    }
    assert {name: value(WHOLE[arm]) for name, value in VALUE.items()} == expected


def counted(**counters: int) -> Measurement:
    return replace(NOTHING, counters=counters)


@pytest.mark.parametrize(
    ("counters", "name", "value"),
    [
        # Without the instrumentation nothing is known of misses, which is not that there were none.
        ({"allocstall_normal": 3, "allocstall_movable": 4}, "direct_reclaims", 7),
        ({"allocstall_normal": 3}, "misses", None),
        ({"allocstall_normal": 3}, "misses_per_try", None),
        ({"allocstall": 3}, "direct_reclaims", None),
        ({"direct_reclaim_try": 0, "direct_reclaim_miss": 0}, "misses", 0),
        ({"direct_reclaim_try": 0, "direct_reclaim_miss": 0}, "misses_per_try", None),
        ({"direct_reclaim_try": 4, "direct_reclaim_miss": 1}, "misses_per_try", 0.25),
        ({"direct_reclaim_try": 4}, "misses_per_try", None),
    ],
)
def test_a_counter_that_is_not_there_is_not_zero(counters: dict[str, int], name: str, value: object) -> None:
    assert VALUE[name](counted(**counters)) == value


TALLY = {"lost": 0, "tries": 9, "misses": 4, "misses_drained": 2, "repeats": 1, "thefts": 7}


@pytest.mark.parametrize(
    ("tally", "values"),
    [
        (None, {}),
        (TALLY, {"stock_lost": 0, "stock_tries": 9, "stock_misses_estimated": 4, "stock_misses_drained": 2}),
        # Of some events alone nothing follows, but that they were not all.
        ({**TALLY, "lost": 1}, {"stock_lost": 1}),
        ({"tries": 9}, {}),
        # Before Linux 6.0.
        ({"lost": 0, "tries": 9}, {"stock_lost": 0, "stock_tries": 9}),
    ],
)
def test_a_tally_tells_only_if_it_is_whole(tally: dict[str, int] | None, values: dict[str, float]) -> None:
    found = {name: VALUE[name](replace(NOTHING, tally=tally)) for name in VALUE if name.startswith("stock_")}
    known = {name: value for name, value in found.items() if value is not None}
    assert {name: known[name] for name in values} == values
    assert (len(known) > len(values)) == (tally == TALLY)


def test_a_task_that_was_killed_before_it_began_has_no_speed() -> None:
    workload = WHOLE["patched"].workload
    assert workload
    dead = workload.tasks[0].model_copy(update={"pages": 0, "ns": 0, "histogram": ()})
    whole = VALUE["pages_per_second"](WHOLE["patched"])
    rest = workload.model_copy(update={"tasks": (dead, *workload.tasks[1:])})
    speed = workload.tasks[0].pages / workload.tasks[0].ns * 1e9
    assert whole and VALUE["pages_per_second"](replace(NOTHING, workload=rest)) == pytest.approx(
        whole - speed
    )


# --- side by side ---------------------------------------------------------------------------------


def seen(
    arm: str,
    seed: int,
    outcome: str = "measured",
    detail: str = "",
    memory: Mapping[str, int] = MappingProxyType({}),
) -> Observation:
    """An observation whose `tries` is its seed, and whose memory may differ."""
    row = record(arm, seed, outcome, detail)
    row = replace(row, memory={**row.memory, **memory})
    return Observation(row, counted(direct_reclaim_try=seed) if outcome == "measured" else NOTHING)


def tries(comparison: Comparison) -> dict[str, dict[int, float]]:
    return {name: dict(arm.values["tries"]) for name, arm in comparison.arms.items()}


def test_a_seed_takes_part_when_every_arm_has_measured_it() -> None:
    comparison = compare(
        ["a", "b"],
        [
            seen("b", 10),
            seen("a", 10),
            seen("a", 2),
            seen("b", 2),
            seen("a", 3),
            seen("b", 4, "lost", "gone"),
        ],
    )
    assert comparison.seeds == (2, 10)
    assert tries(comparison) == {"a": {2: 2, 3: 3, 10: 10}, "b": {2: 2, 10: 10}}
    told = {(e.arm, e.seed): (e.outcome, e.reason) for e in comparison.excluded}
    assert told == {
        ("b", 4): ("lost", "gone"),
        ("a", 3): ("refused", "no measurement of arm b for this seed"),
    }


@pytest.mark.parametrize("outcome", ["oom", "panic", "hang", "flood", "failed", "lost"])
def test_a_seed_that_one_arm_failed_is_not_compared(outcome: str) -> None:
    comparison = compare(["a", "b"], [seen("a", 1), seen("b", 1, outcome, "why\nand more")])
    assert comparison.seeds == ()
    # What the other arm measured is kept; it is not paired.
    assert tries(comparison) == {"a": {1: 1}, "b": {}}
    assert {(e.arm, e.outcome, e.reason) for e in comparison.excluded} == {
        ("b", outcome, "why"),
        ("a", "refused", "no measurement of arm b for this seed"),
    }


TOTAL = 111378432


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, None),
        ({"total": TOTAL - 4096}, None),
        ({"total": TOTAL - TOTAL // 500 + 4096}, None),
        ({"total": TOTAL - TOTAL // 500 - 4096}, "a 108768 KiB, b 108546 KiB"),
        ({"total": TOTAL * 2}, "a 108768 KiB, b 217536 KiB"),
        ({"balloon": 127 << 20}, "a 131072 KiB, b 130048 KiB"),
        ({"free": 1 << 20}, None),
    ],
)
def test_arms_with_unlike_memory_are_not_compared(changes: dict[str, int], sizes: str | None) -> None:
    comparison = compare(["a", "b"], [seen("a", 1), seen("b", 1, memory=changes), seen("a", 2), seen("b", 2)])
    assert comparison.seeds == ((2,) if sizes else (1, 2))
    if sizes:
        reason = f"the arms differ in effective memory: {sizes}"
        assert [(e.arm, e.seed, e.outcome, e.reason) for e in comparison.excluded] == [
            ("a", 1, "refused", reason),
            ("b", 1, "refused", reason),
        ]


def test_three_arms_need_all_three() -> None:
    comparison = compare(
        ["c", "a", "b"],
        [*(seen(arm, 1) for arm in "abc"), seen("a", 2), seen("b", 2), seen("c", 2, "oom", "killed")],
    )
    assert comparison.seeds == (1,)
    assert list(comparison.arms) == ["c", "a", "b"]
    assert [(e.arm, e.seed) for e in comparison.excluded] == [("c", 2), ("a", 2), ("b", 2)]


def test_a_single_arm_is_compared_with_nothing() -> None:
    comparison = compare(["a"], [seen("a", 1), seen("a", 2)])
    assert comparison.seeds == (1, 2) and comparison.excluded == ()


def test_every_outcome_is_counted() -> None:
    seen_ = [seen("a", 1), seen("a", 2, "oom"), seen("a", 3, "oom"), seen("a", 4, "lost"), seen("b", 1)]
    comparison = compare(["a", "b"], seen_)
    assert comparison.arms["a"].outcomes == {"measured": 1, "oom": 2, "lost": 1}
    assert comparison.arms["b"].outcomes == {"measured": 1}


def test_misses_are_those_of_the_seeds_that_take_part() -> None:
    both = [Observation(record(arm, 1), WHOLE["unpatched"]) for arm in ("a", "b")]
    alone = Observation(record("a", 2), WHOLE["unpatched"])
    comparison = compare(["a", "b"], [*both, alone])
    assert comparison.arms["a"].misses == WHOLE["unpatched"].misses
    assert comparison.arms["a"].memory == {1: TOTAL}


def test_without_trials_there_is_nothing() -> None:
    comparison = compare(["a", "b"], [])
    assert (comparison.seeds, comparison.excluded, list(comparison.arms)) == ((), (), ["a", "b"])


def test_medians() -> None:
    assert median({}) is None
    assert median({1: 5, 2: 1, 3: 3}) == 3
    assert median({1: 5, 2: 1}) == 3


# --- attempts -------------------------------------------------------------------------------------


def attempts(*outcomes: str) -> list[Record]:
    return [record("a", 1, outcome, attempt=number) for number, outcome in enumerate(outcomes, start=1)]


@pytest.mark.parametrize(
    ("outcomes", "counts"),
    [
        (["measured"], 1),
        (["lost", "measured"], 2),
        (["lost", "lost"], 2),
        (["oom", "measured"], 1),
        (["lost", "hang", "measured"], 2),
    ],
)
def test_the_attempt_that_counts_is_the_first_that_was_not_lost(outcomes: list[str], counts: int) -> None:
    (chosen,) = final(attempts(*outcomes)).values()
    assert chosen.attempt == counts


def test_lost_attempts_are_counted() -> None:
    assert lost_attempts(attempts(LOST, LOST, "oom", "measured")) == 2
