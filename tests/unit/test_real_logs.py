# SPDX-License-Identifier: GPL-2.0-only
"""Every number of logs of real guests, of the whole and of each phase, read once more without testbed.

Linux 6.1.192 with the instrumentation, deterministic, 0.5 s, 8 vCPUs and 128 MiB, with `tracepoints`:
- mixed: mmap_test, mode mixed, 6 tasks and 2 bystanders; phases from 0 and 0.2 s on.
- memcg: memcg, 2 tasks in each group; phases from 0, 0.1 and 0.3 s on.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence

import pytest

from testbed.analysis.metrics import METRICS
from testbed.analysis.parse import parse
from tests.unit.recorded import DATA, REPOSITORY

LOGS = {name: gzip.decompress((DATA / f"{name}.log.gz").read_bytes()) for name in ("mixed", "memcg")}
METRIC = {metric.name: metric for metric in METRICS}
PARSED = {name: parse(log) for name, log in LOGS.items()}
every_log = pytest.mark.parametrize("name", LOGS)


# --- another reading of the same bytes --------------------------------------------------------------


def bodies(log: bytes) -> dict[str, str]:
    found = {}
    for head in re.finditer(rb"\n#tb:frame (\S+) (\d+) ([0-9a-f]{8})\n", log):
        body = log[head.end() : head.end() + int(head[2])]
        assert zlib.crc32(body) == int(head[3], 16)
        found[head[1].decode()] = re.sub(rb"(?m)^##", b"#", body).decode()
    return found


def by_name(text: str) -> dict[str, int]:
    return {line.split()[0]: int(line.split()[1]) for line in text.splitlines()}


def expanded(histogram: Sequence[Sequence[int]]) -> list[int]:
    """Each operation's latency, as the highest value of its bucket, in ns."""
    found = []
    for index, count in histogram:
        low, width = index, 1
        while low >= 2 * 128:
            low, width = low - 128, width * 2
        found += [low * width + width - 1] * count
    return sorted(found)


def ranked(values: Sequence[int], permille: int) -> float | None:
    at = -(-len(values) * permille // 1000)
    return values[at - 1] / 1e3 if len(values) - at >= 100 else None


def divided(top: float, bottom: float) -> float | None:
    return top / bottom if bottom else None


def of_counters(went: Mapping[str, int], seconds: float) -> dict[str, float | None]:
    """What follows from how far counters went."""
    scanned, stolen = went["pgscan_direct"], went["pgsteal_direct"]
    names = {"refaults_anon": "workingset_refault_anon", "refaults_file": "workingset_refault_file"}
    names |= {"refault_activations_anon": "workingset_activate_anon", "activations": "pgactivate"}
    names |= {"refault_activations_file": "workingset_activate_file", "major_faults": "pgmajfault"}
    names |= {"swap_ins": "pswpin", "swap_outs": "pswpout", "tries": "direct_reclaim_try"}
    names |= {"misses": "direct_reclaim_miss", "misses_drained": "direct_reclaim_miss_drained"}
    names |= {f"pg{did}_{who}": f"pg{did}_{who}" for did in ("scan", "steal") for who in ("direct", "kswapd")}
    return {metric: went[counter] for metric, counter in names.items()} | {
        "direct_reclaims": went["allocstall_normal"] + went["allocstall_movable"] + went["allocstall_dma32"],
        "efficiency_direct": divided(stolen, scanned),
        "efficiency_kswapd": divided(went["pgsteal_kswapd"], went["pgscan_kswapd"]),
        "direct_share": divided(scanned, scanned + went["pgscan_kswapd"]),
        "misses_per_try": divided(went["direct_reclaim_miss"], went["direct_reclaim_try"]),
        "psi_some": went["psi_some_us"] / 1e6 / seconds,
        "psi_full": went["psi_full_us"] / 1e6 / seconds,
        "kswapd_cpu": went["kswapd_ns"] / 1e9 / seconds,
    }


def of_latencies(prefix: str, values: Sequence[int], longest: int) -> dict[str, float | None]:
    told: dict[str, float | None] = {
        f"{prefix}_{name}": ranked(values, permille)
        for name, permille in {"p50": 500, "p90": 900, "p99": 990, "p999": 999}.items()
    }
    return told | {f"{prefix}_max": longest / 1e3}


def whole(log: bytes) -> dict[str, float | None]:
    frames = bodies(log)
    before, after = by_name(frames["vmstat.before"]), by_name(frames["vmstat.after"])
    went = {name: after[name] - before[name] for name in after}
    for kind in ("some", "full"):
        ends = [
            re.search(rf"{kind} .*total=(\d+)", frames[f"pressure.{when}"]) for when in ("before", "after")
        ]
        went[f"psi_{kind}_us"] = int(ends[1][1]) - int(ends[0][1]) if ends[0] and ends[1] else 0
    went["kswapd_ns"] = sum(
        sign * sum(by_name(frames[f"kswapd.{when}"]).values())
        for when, sign in {"after": 1, "before": -1}.items()
    )
    head, *rows = [line.split() for line in frames["samples"].splitlines()]
    column = {name: [int(row[at]) for row in rows] for at, name in enumerate(head)}
    times = column["ns"]
    seconds = (times[-1] - times[0]) / 1e9
    found = of_counters(went, seconds)

    def averaged(of: Callable[[int], float]) -> float:
        return sum(of(i) * (times[i + 1] - times[i]) for i in range(len(times) - 1)) / (times[-1] - times[0])

    free = column["nr_free_pages"]
    found["free_pages"] = averaged(lambda i: free[i])
    for mark in ("low", "min"):
        found[f"below_{mark}"] = averaged(lambda i, mark=mark: free[i] < column[mark][i])  # type: ignore[misc]
    found["workload_seconds"] = seconds
    found["sampling_cpu"] = by_name(frames["sampling"])["cpu_ns"] / 1e9 / seconds
    tasks = json.loads(frames["tasks"])["tasks"]
    for group in {task["group"] for task in tasks}:
        mine = [task for task in tasks if task["group"] == group]
        values = sorted(value for task in mine for value in expanded(task["histogram"]))
        prefix, speed = (group, f"{group}_per_second") if group != "main" else ("fault", "pages_per_second")
        found |= of_latencies(prefix, values, max(task["max_ns"] for task in mine))
        found[speed] = sum(task["ops"] / task["ns"] * 1e9 for task in mine)
        assert len(values) == sum(task["ops"] for task in mine)
    shares = [task["ops"] for task in tasks if task["group"] == "main"]
    if shares:
        found["fairness"] = sum(shares) ** 2 / len(shares) / sum(share * share for share in shares)
        found["worst_share"] = min(shares) / (sum(shares) / len(shares))
    tally, episodes = by_name(frames["tally"]), json.loads(frames["episodes"])
    assert tally["lost"] == 0
    durations = expanded(episodes["duration"])
    found["episodes"] = len(durations)
    found |= {"episode_p50": ranked(durations, 500), "episode_p99": ranked(durations, 990)}
    pages, count = (sum(task[at] for task in episodes["tasks"]) for at in (2, 1))
    found["pages_per_episode"] = divided(pages, count)
    found |= {"stock_lost": 0, "stock_tries": tally["tries"], "stock_thefts": tally["thefts"]}
    found["stock_misses_drained"], found["stock_repeats"] = tally["misses_drained"], tally["repeats"]
    found["stock_misses_estimated"] = tally["misses"]
    found["stock_theft_share"] = divided(tally["thefts"], tally["freed"])
    return found


def by_phase(log: bytes) -> list[dict[str, float | None]]:
    """Of each phase, what its rows and its histograms say."""
    frames = bodies(log)
    head, *lines = [line.split() for line in frames["samples"].splitlines()]
    rows = [dict(zip(head, map(int, line), strict=True)) for line in lines]
    tasks = json.loads(frames["tasks"])["tasks"]
    found = []
    for phase in range(rows[-1]["phase"] + 1):
        first = next(row for row in rows if row["phase"] == phase)
        last = next((row for row in rows if row["phase"] == phase + 1), rows[-1])
        seconds = (last["ns"] - first["ns"]) / 1e9
        told = of_counters({name: last[name] - first[name] for name in first}, seconds)
        for group in {task["group"] for task in tasks}:
            values = sorted(v for t in tasks if t["group"] == group for v in expanded(t["phases"][phase]))
            prefix, speed = (
                (group, f"{group}_per_second") if group != "main" else ("fault", "pages_per_second")
            )
            told |= of_latencies(prefix, values, values[-1])
            told[speed] = len(values) / seconds
        found.append(told)
    return found


# --- the numbers ------------------------------------------------------------------------------------


def close(found: float | None, expected: float | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return math.isclose(found, expected, rel_tol=1e-12, abs_tol=1e-15)


@every_log
def test_all_has_arrived(name: str) -> None:
    assert PARSED[name].complete and PARSED[name].damaged == 0 and PARSED[name].oom_victims == ()


@every_log
def test_totals_are_those_of_the_log(name: str) -> None:
    expected = whole(LOGS[name])
    unlike = {
        metric: (found, value)
        for metric, value in expected.items()
        if not close(found := METRIC[metric].value(PARSED[name]), value)
    }
    assert unlike == {} and len(expected) > 40


@every_log
def test_phases_are_those_of_the_log(name: str) -> None:
    expected = by_phase(LOGS[name])
    assert len(expected) == {"mixed": 2, "memcg": 3}[name]
    for phase, numbers in enumerate(expected):
        for metric, value in numbers.items():
            found = METRIC[metric].per_phase(PARSED[name]).get(str(phase))
            assert close(found, value), (phase, metric, found, value)


@every_log
def test_what_is_counted_over_time_comes_to_what_is_counted_in_all(name: str) -> None:
    """The first row is taken after the snapshot, the last one before: what is between is all but nothing."""
    frames = bodies(LOGS[name])
    head, *lines = [line.split() for line in frames["samples"].splitlines()]
    first, last = (dict(zip(head, map(int, line), strict=True)) for line in (lines[0], lines[-1]))
    for metric, counter in {"pgscan_direct": "pgscan_direct", "swap_outs": "pswpout"}.items():
        series = METRIC[metric].series(PARSED[name])
        begins = [0.0, *(at for at, _ in series)]
        came_to = sum(rate * (at - since) for since, (at, rate) in zip(begins, series, strict=False))
        assert len(series) == len(lines) - 1
        assert came_to == pytest.approx(last[counter] - first[counter], abs=1e-6)


def test_the_groups_of_a_workload_are_told_apart() -> None:
    values = {metric: METRIC[metric].value(PARSED["memcg"]) for metric in METRIC}
    # Its own reclaim is not the machine's: the global counters know nothing of it.
    assert values["pgscan_direct"] == values["direct_reclaims"] == 0 and values["swap_outs"]
    limited, unlimited = values["limited_per_second"], values["unlimited_per_second"]
    assert limited and unlimited and values["pages_per_second"] is None
    assert values["bystander_per_second"] is None
    assert METRIC["bystander_per_second"].value(PARSED["mixed"])


def test_every_group_of_every_workload_has_metrics() -> None:
    sources = (REPOSITORY / "images" / "src").glob("*.c")
    groups = {group for path in sources for group in re.findall(r'\bstart\("(\w+)"', path.read_text())}
    assert len(groups) > 5
    assert {group for group in groups - {"main"} if f"{group}_per_second" not in METRIC} == set()
