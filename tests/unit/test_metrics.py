# SPDX-License-Identifier: GPL-2.0-only
"""Numbers: histograms, fairness, the registry, and what may stand side by side."""

from __future__ import annotations

import gzip
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil
from types import MappingProxyType
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from testbed.analysis.compare import Comparison, Observation, compare, lost_attempts, median
from testbed.analysis.costs import gini
from testbed.analysis.histogram import BUCKETS, SUB_BUCKETS, bucket, highest, merged, quantile
from testbed.analysis.metrics import GROUPS, METRICS, Better, Kind, Level, jain, quantile_us, table
from testbed.analysis.parse import Measurement, Reading, Target, parse
from testbed.analysis.requests import FATES
from testbed.ledger.record import LOST, Record, final
from tests.unit import test_hostile as hostile
from tests.unit.recorded import DATA, PATCHED, REPOSITORY, UNPATCHED, record

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
    source = (DATA.parents[1] / "images" / "lib" / "load.h").read_text()
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
    assert {metric.unit for metric in METRICS} == {"count", "pages", "ratio", "us", "s", "1/s", "index"}
    assert {metric.better for metric in METRICS} == set(get_args(Better))
    assert {metric.kind for metric in METRICS} == set(get_args(Kind))
    assert all(metric.source and metric.level in get_args(Level) for metric in METRICS)


def test_the_documentation_has_the_registry() -> None:
    """In two tables, since one would be too wide; GROUP stands for each group's name."""
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    documented: dict[str, list[str]] = {}
    for table_of_page in re.findall(r"^\| name \|[^\n]*\n\| :-- [^\n]*\n((?:\|[^\n]*\n)+)", page, re.M)[1:]:
        for row in table_of_page.splitlines():
            for group in GROUPS if "GROUP" in row else ("",):
                name, *cells = [cell.strip() for cell in row.replace("GROUP", group).split("|")[1:-1]]
                documented.setdefault(name.strip("`"), []).extend(cells)
    printed = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table().splitlines()[2:]]
    assert documented == {name.strip("`"): cells for name, *cells in printed}
    assert len(documented) == len(METRICS)


def test_the_title_of_operations_is_the_workloads() -> None:
    (metric,) = (metric for metric in METRICS if metric.name == "pages_per_second")
    assert metric.title_of("mmap_test") == "pages touched"
    assert metric.title_of("file_read") == metric.title == "operations"


@pytest.mark.parametrize("name", VALUE)
def test_of_a_log_that_tells_nothing_no_number_is_made(name: str) -> None:
    assert VALUE[name](NOTHING) is None


def ends(trace: str) -> Iterator[tuple[str, int, int, dict[str, str]]]:
    """Fate, pid, wait in ns and last record of each request: in these logs all get a page in the end."""
    since: dict[int, int] = {}
    for line in trace.splitlines():
        said = dict(word.split("=") for word in line.split(": ", 2)[2].split())
        pid = int(line.split("-")[1].split()[0])
        since.setdefault(pid, int(said["slow_ns"]) - int(said["wait_ns"]))
        if said["allocated"] == "1":
            at_once = {"none": "captured"}.get(said["first"], said["first"])
            fate = at_once if said["round"] == "1" else "repeat"
            yield fate, pid, int(said["slow_ns"]) - since.pop(pid), said
    assert not since


def paid(trace: str, tasks: Sequence[Any]) -> dict[str, object]:
    """What the records come to."""
    found = list(ends(trace))
    took, n = sum(task["ns"] for task in tasks), len(found)
    values = {"wait": sorted(wait for _, _, wait, _ in found)}
    values["slow"] = sorted(int(said["slow_ns"]) for *_, said in found)
    mine = [sum(wait for _, pid, wait, _ in found if pid == task["pid"]) for task in tasks]
    known: dict[str, Any] = {"records_lost": 0, "wait_max": values["wait"][-1] / 1e3}
    known |= {f"{kind}_share": sum(each) / took for kind, each in values.items()}
    known["waiting_share"] = known["wait_share"]
    known["wait_mean"] = sum(values["wait"]) / n / 1e3
    known["wait_share_worst"] = max(wait / task["ns"] for wait, task in zip(mine, tasks, strict=True))
    known |= {"wait_fairness": jain(mine), "wait_gini": gini(mine)}
    for name, permille in {"p50": 500, "p90": 900, "p99": 990}.items():
        at = -(-n * permille // 1000)
        known |= {f"{kind}_{name}": v[at - 1] / 1e3 if n - at >= 100 else None for kind, v in values.items()}
    for fate in FATES:
        of_fate = [wait for this, _, wait, _ in found if this == fate]
        known[f"wait_share_{fate}"] = sum(of_fate) / took
        known[f"wait_mean_{fate}"] = sum(of_fate) / len(of_fate) / 1e3 if of_fate else None
        known[f"wait_median_{fate}"] = statistics.median(of_fate) / 1e3 if of_fate else None
    freed = {task["pid"]: 0 for task in tasks}
    for _, pid, _, said in found:
        freed[pid] += int(said["freed"])
    all_freed, all_got = sum(freed.values()), sum(task["ops"] for task in tasks)
    known["freed_per_request"] = all_freed / n
    parts = [freed[task["pid"]] / all_freed - task["ops"] / all_got for task in tasks]
    known["freed_beyond"] = sum(part for part in parts if part > 0)
    known["all_stolen"] = sum(said["stolen"] == said["freed"] for *_, said in found) / n
    ages = [int(said["age_ns"]) for *_, said in found if said["captured"] == "1"]
    known["capture_age"] = sum(ages) / len(ages) / 1e3 if ages else None
    return {name: value if value is None else pytest.approx(value) for name, value in known.items()}


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
    tasks = json.loads(body("tasks"))["tasks"]
    pages = [task["ops"] for task in tasks]
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

    def rank(permille: int) -> float | None:
        at = -(-len(tops) * permille // 1000)
        return tops[at - 1] / 1e3 if len(tops) - at >= 100 else None

    def over(ns: int) -> object:
        """Of a bucket that the limit is in, nothing."""
        limit = next(top for top in range(ns, 2 * ns) if bucket(top) < bucket(top + 1))
        return sum(top > limit for top in tops) / len(tops)

    expected: dict[str, object] = dict.fromkeys(VALUE) | {
        "direct_reclaims": sum(delta[f"allocstall_{zone}"] for zone in ("dma32", "normal", "movable")),
        "tries": delta["direct_reclaim_try"],
        "misses": delta["direct_reclaim_miss"],
        "misses_drained": delta["direct_reclaim_miss_drained"],
        "misses_per_try": delta["direct_reclaim_miss"] / delta["direct_reclaim_try"],
        "captures": delta.get("reclaim_capture"),
        "captures_used": delta.get("reclaim_capture_used"),
        "captures_unused": delta.get("reclaim_capture_unused"),
        "captures_rejected": delta.get("reclaim_capture_reject"),
        "pages_per_second": pytest.approx(sum(t["ops"] / (t["ns"] / 1e9) for t in tasks)),
        "fault_p50": rank(500),
        "fault_p90": rank(900),
        "fault_p99": rank(990),
        "fault_p999": rank(999),
        "fault_max": max(t["max_ns"] for t in tasks) / 1e3,
        "fault_over_1ms": over(10**6),
        "fault_over_10ms": over(10**7),
        "fairness": pytest.approx(sum(pages) ** 2 / len(pages) / sum(p * p for p in pages)),
        "worst_share": pytest.approx(min(pages) / (sum(pages) / len(pages))),
        "oom_kills": 0,
        "pgscan_direct": delta["pgscan_direct"],
        "pgscan_kswapd": delta["pgscan_kswapd"],
        "pgsteal_direct": delta["pgsteal_direct"],
        "pgsteal_kswapd": delta["pgsteal_kswapd"],
        "efficiency_direct": delta["pgsteal_direct"] / delta["pgscan_direct"],
        "efficiency_kswapd": delta["pgsteal_kswapd"] / delta["pgscan_kswapd"],
        "direct_share": delta["pgscan_direct"] / (delta["pgscan_direct"] + delta["pgscan_kswapd"]),
        "refaults_anon": 0,
        "refaults_file": 0,
        "refault_activations_anon": 0,
        "refault_activations_file": 0,
        "activations": delta["pgactivate"],
        "swap_ins": 0,
        "swap_outs": delta["pswpout"],
        "major_faults": 0,
    }
    for how in ("pcp", "watermark", "empty"):
        expected[f"misses_{how}"] = delta[f"direct_reclaim_miss_{how}"]
        expected[f"misses_drained_{how}"] = delta[f"direct_reclaim_miss_drained_{how}"]
    expected |= {"repeats": delta["direct_reclaim_repeat"], "drains": delta["direct_reclaim_drain"]}
    expected |= {"drains_busy": delta["direct_reclaim_drain_busy"], "freed": delta["direct_reclaim_freed"]}
    expected["stolen"] = delta["direct_reclaim_stolen"]
    expected["stolen_share"] = delta["direct_reclaim_stolen"] / delta["direct_reclaim_freed"]
    expected["handed_over"] = {"unpatched": 0, "patched": 1}[arm]
    came = delta["direct_reclaim_drain"] + delta["direct_reclaim_drain_busy"]
    tries = delta["direct_reclaim_try"]
    expected["spared_drain"] = {"unpatched": 0, "patched": (tries - came) / tries}[arm]
    expected |= paid(body("trace"), tasks)
    # Nothing was sampled, and no events tallied.
    assert {name: value(WHOLE[arm]) for name, value in VALUE.items()} == expected


def counted(**counters: int) -> Measurement:
    return replace(NOTHING, vmstat=Reading(dict.fromkeys(counters, 0), counters))


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
    dead = workload.tasks[0].model_copy(update={"ops": 0, "ns": 0, "histogram": {}})
    whole = VALUE["pages_per_second"](WHOLE["patched"])
    rest = workload.model_copy(update={"tasks": (dead, *workload.tasks[1:])})
    speed = workload.tasks[0].ops / workload.tasks[0].ns * 1e9
    assert whole and VALUE["pages_per_second"](replace(NOTHING, workload=rest)) == pytest.approx(
        whole - speed
    )


# --- phases, time, groups ---------------------------------------------------------------------------

# The known numbers of tests/unit/test_hostile.py: two phases of a second each, rows at 0, 0.5, 1 and 2 s.
SAMPLED = parse(hostile.LOG)
METRIC = {metric.name: metric for metric in METRICS}


@pytest.mark.parametrize(
    ("name", "value", "phases", "series"),
    [
        # What vmstat said before and after is not what was sampled, in this log.
        ("pgscan_direct", 1120, {"0": 865, "1": 255}, [(0.5, 1000), (1, 730), (2, 255)]),
        ("psi_some", 350e-6 / 2, {"0": 150e-6, "1": 200e-6}, [(0.5, 1e-4), (1, 2e-4), (2, 2e-4)]),
        ("psi_full", 40e-6 / 2, {"0": 30e-6, "1": 10e-6}, [(0.5, 2e-5), (1, 4e-5), (2, 1e-5)]),
        ("kswapd_cpu", 2500 / 2e9, {"0": 1500 / 1e9, "1": 1000 / 1e9}, [(0.5, 1e-6), (1, 2e-6), (2, 1e-6)]),
        ("free_pages", 425, {"0": 350, "1": 500}, [(0, 400), (0.5, 300), (1, 500), (2, 450)]),
        ("below_low", 0.5, {"0": 1, "1": 0}, [(0, 1), (0.5, 1), (1, 0), (2, 0)]),
        ("below_min", 0.25, {"0": 0.5, "1": 0}, [(0, 0), (0.5, 1), (1, 0), (2, 0)]),
        ("pages_per_second", 300 / 1.9 + 301 / 1.900000001, {"0": 300, "1": 301}, []),
        ("probe_per_second", 302 / 1.900000002, {"0": 150, "1": 152}, []),
        ("fairness", 601**2 / 2 / (300**2 + 301**2), {"0": 1, "1": 301**2 / 2 / (150**2 + 151**2)}, []),
        ("worst_share", 300 / 300.5, {"0": 1, "1": 150 / 150.5}, []),
        ("fault_p50", highest(820) / 1e3, {"0": highest(820) / 1e3, "1": highest(2000) / 1e3}, []),
        ("fault_p90", None, {}, []),
        ("fault_max", 40_000.001, {"0": highest(820) / 1e3, "1": highest(2000) / 1e3}, []),
        ("probe_max", 40_000.002, {"0": highest(820) / 1e3, "1": highest(2000) / 1e3}, []),
        ("bystander_max", None, {}, []),
        ("episodes", 262, {}, []),
        ("episode_p50", highest(900) / 1e3, {}, []),
        ("episode_p99", None, {}, []),
        ("pages_per_episode", 8320 / 262, {}, []),
        ("freed_for_others", 6400 / 8320 - 300 / 903, {}, []),
        ("stock_theft_share", 123 / 800, {}, []),
        ("zram_compression", 900 / 901, {}, []),
        ("boot_seconds", 1.5, {}, []),
        ("filling_seconds", 3.5, {}, []),
        ("workload_seconds", 2, {}, []),
        ("sampling_cpu", 12_345 / 2e9, {}, []),
        ("oom_kills", 2000 + 31 * 10, {}, []),
    ],
)
def test_values_of_the_whole_of_phases_and_over_time(
    name: str, value: float | None, phases: dict[str, float], series: list[tuple[float, float]]
) -> None:
    assert METRIC[name].value(SAMPLED) == (None if value is None else pytest.approx(value))
    assert METRIC[name].per_phase(SAMPLED) == pytest.approx(phases)
    assert [point for pair in METRIC[name].series(SAMPLED) for point in pair] == pytest.approx(
        [point for pair in series for point in pair]
    )


def test_how_memory_followed_its_schedule() -> None:
    names = ("memory_held", "memory_missed", "memory_late")
    assert SAMPLED.samples
    rows = tuple((*row, held) for row, held in zip(SAMPLED.samples.rows, (0, 6, 10, 10), strict=True))
    samples = replace(SAMPLED.samples, columns=(*SAMPLED.samples.columns, "held"), rows=rows)
    told = (Target(10**8, 6, 3_000_000), Target(5 * 10**8, 10, 7_000_000), Target(10**9, 12, None))
    followed = replace(SAMPLED, samples=samples, targets=told)
    # For half a second 0, for another 6, for a second 10.
    assert [METRIC[name].value(followed) for name in names] == [6.5, pytest.approx(1 / 3), 7000]
    assert METRIC["memory_held"].series(followed) == [(0, 0), (0.5, 6), (1, 10), (2, 10)]
    # Without a schedule there is nothing to tell, though the guest writes the column.
    assert [METRIC[name].value(replace(followed, targets=())) for name in names] == [None] * 3


def test_counts_are_per_second_over_time() -> None:
    assert METRIC["pgscan_direct"].series_unit == "pages/s"
    assert METRIC["free_pages"].series_unit == "pages" and METRIC["psi_some"].series_unit == "ratio"


def test_where_rows_were_lost_nothing_is_told_of_the_time_that_it_took() -> None:
    assert SAMPLED.samples
    lost = replace(SAMPLED, samples=replace(SAMPLED.samples, lost=1))
    for name in ("psi_some", "kswapd_cpu", "below_low", "workload_seconds", "sampling_cpu"):
        assert METRIC[name].value(lost) is None and METRIC[name].per_phase(lost) == {}
    assert METRIC["pgscan_direct"].series(lost) == METRIC["pgscan_direct"].series(SAMPLED)
    assert METRIC["pgscan_direct"].value(lost) == 1120


def test_what_the_kernel_does_not_tell_is_0_in_a_row_and_not_known() -> None:
    silent = replace(SAMPLED, pressure=None, kswapd=Reading({}, {}))
    for name in ("psi_some", "psi_full", "kswapd_cpu"):
        metric = METRIC[name]
        assert (metric.value(silent), metric.per_phase(silent), metric.series(silent)) == (None, {}, [])


def test_rows_at_borders_alone_are_no_samples() -> None:
    assert SAMPLED.sampling
    plain = replace(SAMPLED, sampling={**SAMPLED.sampling, "period_ns": 0})
    assert METRIC["below_low"].value(plain) is None and METRIC["pgscan_direct"].per_phase(plain)


def test_a_stall_is_the_share_of_a_tasks_time_in_direct_reclaim() -> None:
    assert SAMPLED.workload and SAMPLED.episodes
    shares = []
    for task in SAMPLED.workload.tasks:
        spent = sum(row.ns for row in SAMPLED.episodes.tasks if row.pid == task.pid)
        shares.append(spent / task.ns)
    assert max(shares) > min(shares) >= 0
    assert VALUE["stall_worst"](SAMPLED) == pytest.approx(max(shares))
    assert VALUE["stall"](SAMPLED) == pytest.approx(sum(shares) / len(shares))


def test_lost_events_make_nothing_of_episodes_known() -> None:
    assert SAMPLED.tally
    lost = replace(SAMPLED, tally={**SAMPLED.tally, "lost": 1})
    names = ("episodes", "episode_p50", "pages_per_episode", "freed_for_others", "stock_theft_share")
    assert [VALUE[name](lost) for name in names] == [None] * len(names)


def test_a_counter_that_fell_is_not_known() -> None:
    fell = replace(NOTHING, vmstat=Reading({"pgscan_direct": 5, "pgscan_kswapd": 1}, {"pgscan_direct": 4}))
    assert VALUE["pgscan_direct"](fell) is None and VALUE["direct_share"](fell) is None


@given(
    st.lists(st.integers(0, 10**8), min_size=1, max_size=40), st.integers(1, 30), st.sampled_from([50, 90])
)
def test_a_quantile_of_operations_is_that_of_the_raw_ones_or_none(
    values: list[int], times: int, percent: int
) -> None:
    samples = sorted(values * times)
    at = -(-len(samples) * percent // 100)
    found = quantile_us(Counter(map(bucket, samples)), percent / 100)
    assert (found is None) == (len(samples) - at < 100)
    if found is not None:
        exact = samples[at - 1]
        assert exact <= found * 1e3 * (1 + 1e-12) and found * 1e3 <= (exact + exact / SUB_BUCKETS) * (
            1 + 1e-12
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
        (["oom", "measured"], 2),
        (["lost", "hang", "measured"], 3),
        (["hang", "lost", "lost"], 1),
    ],
)
def test_the_attempt_that_counts_is_the_last_that_was_not_lost(outcomes: list[str], counts: int) -> None:
    (chosen,) = final(attempts(*outcomes)).values()
    assert chosen.attempt == counts


def test_lost_attempts_are_counted() -> None:
    assert lost_attempts(attempts(LOST, LOST, "oom", "measured")) == 2
