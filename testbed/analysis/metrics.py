# SPDX-License-Identifier: GPL-2.0-only
"""The registry of metrics: name, unit, which direction is better, and how one trial's value is had."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, Unpack, cast

from testbed.analysis import costs, episodes
from testbed.analysis.costs import EXCEEDANCES
from testbed.analysis.histogram import bucket, quantile
from testbed.analysis.parse import Measurement
from testbed.analysis.requests import Fate
from testbed.analysis.views import (
    Counted,
    Counts,
    Expression,
    Latency,
    Sampled,
    Series,
    Shared,
    Slowest,
    Speed,
    View,
    Whole,
    beyond,
    counter,
    every,
    ratio,
    totals,
)

Better = Literal["lower", "higher", "neither"]
Kind = Literal["rate", "count", "tail", "fairness", "outcome"]
"""How values are to be compared: as ratios of rates or counts, as quantiles of a distribution, as an index of
which 1 is the best, or as whether a trial ended badly (above 0)."""
Level = Literal["main", "more"]


# --- what they say --------------------------------------------------------------------------------


def quantile_us(histogram: Mapping[int, int], q: float) -> float | None:
    """A quantile in microseconds; None unless EXCEEDANCES operations took longer."""
    count = sum(histogram.values())
    ns = quantile(histogram, q) if count - math.ceil(q * count) >= EXCEEDANCES else None
    return None if ns is None else ns / 1e3


def _quantile(q: float) -> Callable[[Mapping[int, int]], float | None]:
    return lambda histogram: quantile_us(histogram, q)


def _over(ns: int) -> Callable[[Mapping[int, int]], float | None]:
    """The share of operations that took longer, to the accuracy of a bucket."""
    limit = bucket(ns)

    def share(histogram: Mapping[int, int]) -> float | None:
        count = sum(histogram.values())
        return sum(n for index, n in histogram.items() if index > limit) / count if count else None

    return share


def jain(shares: Sequence[int]) -> float | None:
    """Jain's fairness index: (sum x)^2 / (n sum x^2), from 1/n (one has all) to 1 (all have the same).

    Jain, Chiu, Hawe: DEC Research Report TR-301, 1984. None when nobody has anything.
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


def worst(shares: Sequence[int]) -> float | None:
    """What the one with the least has, as a share of the mean: from 0 to 1 (all have the same)."""
    return min(shares) * len(shares) / sum(shares) if any(shares) else None


def _tallied(name: str, per: str = "") -> Whole:
    """What tracepoints tell, unless some of their events were lost: what is missing changes any number."""

    def value(m: Measurement) -> float | None:
        if m.tally is None or m.tally.get("lost") != 0:
            return None
        if not per:
            return m.tally.get(name)
        return m.tally[name] / m.tally[per] if name in m.tally and m.tally.get(per) else None

    return Whole(value)


def _episodes(of: Callable[[Measurement], float | None]) -> Whole:
    """Something of `Measurement.episodes`, if they are all."""
    whole = _tallied("lost")
    return Whole(lambda m: of(m) if m.episodes and whole.value(m) == 0 else None)


def _episode_quantile(q: float) -> Whole:
    return _episodes(lambda m: quantile_us(m.episodes.duration, q) if m.episodes else None)


def _oom_kills(m: Measurement) -> int | None:
    # Since the guest's start, as there may be kills while memory is filled, before the workload's clock.
    return m.vmstat.after.get("oom_kill") if m.vmstat else None


def _sampling_cost(m: Measurement) -> float | None:
    took = totals(m).get("ns")
    return m.sampling["cpu_ns"] / took if took and m.sampling and "cpu_ns" in m.sampling else None


def _booted(m: Measurement) -> float | None:
    return m.booted_ns / 1e9 if m.booted_ns is not None else None


def _filled(m: Measurement) -> float | None:
    booted = _booted(m)
    return m.samples["ns"][0] / 1e9 - booted if m.samples and booted is not None else None


def _zram_compression(m: Measurement) -> float | None:
    if m.zram is None:
        return None
    # A workload that ends leaves hardly anything in swap, and not the most compressible.
    fuller = max(m.zram.before, m.zram.after, key=lambda said: said["orig_data_size"])
    return fuller["orig_data_size"] / fuller["compr_data_size"] if fuller["compr_data_size"] else None


def _latest_target(m: Measurement) -> float | None:
    late = [target.late for target in m.targets if target.late is not None]
    return max(late) / 1e3 if late else None


def _missed_targets(m: Measurement) -> float | None:
    return sum(target.late is None for target in m.targets) / len(m.targets) if m.targets else None


class _Held(Sampled):
    """What is kept from the workload, where something was to be."""

    def series(self, m: Measurement) -> Series:
        return super().series(m) if m.targets else ()


def _below(mark: str) -> Callable[[Counts], float]:
    return lambda row: float(row["nr_free_pages"] < row[mark])


# --- the registry ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A number of one trial.

    `source` is the frame and what is read in it, `kernels` those that tell it, if not all do. `titles` are
    other titles for some workloads. With level "main" it is shown by default, with "more" on demand.
    """

    name: str
    title: str
    unit: str
    better: Better
    kind: Kind
    view: View
    source: str
    level: Level = "main"
    kernels: str = ""
    # Whether trials whose workload failed have it, too, and would be missed if they were left out.
    of_failures: bool = False
    titles: Mapping[str, str] = field(default_factory=dict)
    # The metric that says how many tries are handed a page before they come to what this one counts.
    spared: str = ""

    def value(self, m: Measurement) -> float | None:
        """Of the whole workload; None where the kernel or the log does not tell it."""
        return self.view.value(m)

    def per_phase(self, m: Measurement) -> Mapping[str, float]:
        """Of each phase, by its number ("0" is the first); empty where the source does not tell."""
        return self.view.per_phase(m)

    def series(self, m: Measurement) -> Series:
        """Over time, as (seconds from the start, value in `series_unit`); empty where it is not told."""
        return self.view.series(m)

    @property
    def series_unit(self) -> str:
        """Counts are per second in a series."""
        return f"{self.unit}/s" if isinstance(self.view, Counted) and self.view.extensive else self.unit

    def title_of(self, workload: str) -> str:
        """Its title where that workload ran."""
        return self.titles.get(workload, self.title)


def _count(
    name: str,
    title: str,
    better: Better,
    expression: Expression,
    *,
    unit: str = "count",
    level: Level = "more",
    kernels: str = "",
    spared: str = "",
) -> Metric:
    view, source = Counted(expression, extensive=True), f"vmstat: {expression.text}"
    return Metric(name, title, unit, better, "count", view, source, level, kernels, spared=spared)


def _share(
    name: str,
    title: str,
    better: Better,
    expression: Expression,
    *,
    source: str = "vmstat",
    level: Level = "more",
    kernels: str = "",
    spared: str = "",
) -> Metric:
    view, source = Counted(expression, extensive=False), f"{source}: {expression.text}"
    return Metric(name, title, "ratio", better, "rate", view, source, level, kernels, spared=spared)


class _Told(TypedDict, total=False):
    level: Level
    kernels: str


# Before, these were one a zone, or one for anonymous memory and files together.
_SINCE = {"allocstall": ">= 4.8", "pgscan": ">= 4.8", "pgsteal": ">= 4.8", "workingset": ">= 5.9"}


def _pages(name: str, title: str, better: Better, key: str, level: Level = "more") -> Metric:
    kernels = _SINCE.get(key.partition("_")[0], "")
    return _count(name, title, better, counter(key), unit="pages", level=level, kernels=kernels)


def _event(name: str, title: str, better: Better, key: str, kernels: str = "") -> Metric:
    return Metric(name, title, "count", better, "count", _tallied(key), f"tally: {key}", "main", kernels)


def _latencies(group: str, prefix: str, title: str, usual: tuple[str, ...]) -> Iterator[Metric]:
    """What is told of the latencies of a group: by default what is named in `usual`, all else on demand."""
    source = f"tasks: histogram, group {group}"
    for name, q in {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}.items():
        shown = f"{title} p{100 * q:g}"
        level: Level = "main" if name in usual else "more"
        view = Latency(group, _quantile(q))
        yield Metric(f"{prefix}_{name}", shown, "us", "lower", "tail", view, source, level)
    level = "main" if "max" in usual else "more"
    slowest, longest = Slowest(group), f"tasks: max_ns, group {group}"
    yield Metric(f"{prefix}_max", f"{title} max", "us", "lower", "tail", slowest, longest, level)
    for ms in (1, 10):
        view = Latency(group, _over(ms * 1_000_000))
        name, shown = f"over_{ms}ms", f"{title} over {ms} ms"
        level = "main" if name in usual else "more"
        yield Metric(f"{prefix}_{name}", shown, "ratio", "lower", "rate", view, source, level)


# The other groups that workloads of this project have, docs/workloads.md.
GROUPS = ("bystander", "probe", "hog", "limited", "unlimited", "writer", "reader", "parent")


def _of_the_patch() -> Iterator[Metric]:
    """What the instrumentation counts, and reclaim-capture, and what tracepoints tell instead."""
    yield _count(
        "direct_reclaims",
        "direct reclaims",
        "lower",
        every("allocstall_"),
        level="main",
        kernels=_SINCE["allocstall"],
    )
    yield from _of_attempts()
    yield from _of_costs()
    yield _event("stock_tries", "order-0 tries (events)", "neither", "tries")
    yield _event("stock_misses_estimated", "misses before (events)", "lower", "misses", ">= 6.0")
    yield _event("stock_misses_drained", "misses after (events)", "lower", "misses_drained")
    yield _event("stock_repeats", "repeated reclaims (events)", "lower", "repeats")
    yield _event("stock_thefts", "pages stolen (events)", "neither", "thefts")
    yield _event("stock_thefts_waiting", "pages stolen while waiting", "lower", "thefts_waiting")
    lost = Whole(lambda m: m.tally.get("lost") if m.tally else None)
    yield Metric("stock_lost", "lost events", "count", "lower", "count", lost, "tally: lost")
    yield Metric(
        "stock_theft_share",
        "pages stolen of those freed",
        "ratio",
        "lower",
        "rate",
        _tallied("thefts", per="freed"),
        "tally: thefts / freed",
        "more",
    )
    told: _Told = {"level": "main", "kernels": "with reclaim-capture"}
    for name, title in {
        "": "pages captured",
        "_used": "captured pages used",
        "_unused": "captured pages unused",
    }.items():
        yield _count(f"captures{name}", title, "neither", counter(f"reclaim_capture{name}"), **told)
    rejected = every("reclaim_capture_reject")
    yield _count("captures_rejected", "pages not captured", "neither", rejected, **told)
    used, failed, tries = map(counter, ("reclaim_capture_used", MISSES, TRIES))
    kernels, source = "with reclaim-capture", "vmstat: captured pages used beyond failures, of tries"
    handed = Counted(ratio(beyond(used, failed), tries), extensive=False)
    title = "page given before lists are asked"
    yield Metric("handed_over", title, "ratio", "neither", "rate", handed, source, "more", kernels)
    spared, source = Whole(_spared_drain), "vmstat: tries without a drain, if captured pages were used"
    title = "no drain, since pages are captured"
    yield Metric("spared_drain", title, "ratio", "neither", "rate", spared, source, "more", kernels)
    age, source = Whole(costs.captured_age), "trace: age_ns, of captured=1"
    title = "captured page's age when used"
    yield Metric("capture_age", title, "us", "neither", "rate", age, source, "more", kernels)


def _spared_drain(m: Measurement) -> float | None:
    """Of the tries, those that came to no drain; 0 where no captured page was used in place of one."""
    counts = m.counters or {}
    names = (TRIES, "direct_reclaim_drain", "direct_reclaim_drain_busy", "reclaim_capture_used")
    tries, ran, busy, used = (counts.get(name) for name in names)
    if not tries or ran is None or busy is None or used is None:
        return None
    return (tries - ran - busy) / tries if used else 0.0


# How the first attempt after reclaim failed, and that after the drain.
_FAILURES = {"pcp": "own list not empty", "watermark": "own list empty", "empty": "above the watermark"}
TRIES, MISSES, DRAINED = "direct_reclaim_try", "direct_reclaim_miss", "direct_reclaim_miss_drained"


def _of_attempts() -> Iterator[Metric]:
    """What the instrumentation counts: what a request met after its own direct reclaim."""
    told: _Told = {"kernels": "with the instrumentation"}
    main: _Told = {"level": "main", "kernels": "with the instrumentation"}
    tries, misses, repeats = counter(TRIES), counter(MISSES), counter("direct_reclaim_repeat")
    yield _count("tries", "order-0 tries", "neither", tries, **main)
    yield _count("repeats", "repeated reclaims", "lower", repeats, **main)
    for name, title, more, event, spared in (
        ("misses", "failed at first", " after reclaim", MISSES, "handed_over"),
        ("misses_drained", "failed after the drain", ", too", DRAINED, "spared_drain"),
    ):
        yield _count(name, title + more, "lower", counter(event), **main, spared=spared)
        for how, said in _FAILURES.items():
            count = counter(f"{event}_{how}")
            yield _count(f"{name}_{how}", f"{title}: {said}", "lower", count, **told, spared=spared)
    rate, title = ratio(misses, tries), "failed at first, of all tries"
    yield _share("misses_per_try", title, "lower", rate, **main, spared="handed_over")
    drains, busy = counter("direct_reclaim_drain"), counter("direct_reclaim_drain_busy")
    yield _count("drains", "drains that ran", "lower", drains, **told)
    yield _count("drains_busy", "drains that did not run", "lower", busy, **told)
    freed, stolen = counter("direct_reclaim_freed"), counter("direct_reclaim_stolen")
    yield _count("freed", "pages freed by these requests", "neither", freed, unit="pages", **told)
    yield _count("stolen", "pages stolen while the task waited", "lower", stolen, unit="pages", **main)
    yield _share("stolen_share", "pages stolen, of those freed", "lower", ratio(stolen, freed), **told)


class _More(TypedDict, total=False):
    better: Better
    kind: Kind
    level: Level


def _of_costs() -> Iterator[Metric]:
    """What requests that reclaim pay for their page, and who."""

    def told(name: str, title: str, unit: str, view: View, source: str, **more: Unpack[_More]) -> Metric:
        said: _More = {"better": "lower", "kind": "rate", "level": "more", **more}
        kernels = "with the instrumentation"
        return Metric(name, title, unit, view=view, source=f"trace: {source}", kernels=kernels, **said)

    of_tasks = "wait_ns, slow_ns; tasks: ns"
    of_all, source = "tasks' time from reclaim to page", "wait_ns, slow_ns"
    yield told("wait_share", of_all, "ratio", costs.share(costs.wait), of_tasks, level="main")
    view = costs.worst_share(costs.wait)
    yield told("wait_share_worst", "worst task's time from reclaim to page", "ratio", view, of_tasks)
    yield told("wait_mean", "from reclaim to page, mean", "us", costs.mean(costs.wait), source, level="main")
    for name, q in {"p50": 0.5, "p90": 0.9, "p99": 0.99}.items():
        level: Level = "main" if name == "p90" else "more"
        view, title = costs.quantile(costs.wait, q), f"from reclaim to page, {name}"
        yield told(f"wait_{name}", title, "us", view, source, kind="tail", level=level)
        view = costs.quantile(costs.slow, q)
        yield told(f"slow_{name}", f"slow path {name}", "us", view, "slow_ns", kind="tail")
    view = costs.longest(costs.wait)
    yield told("wait_max", "from reclaim to page, max", "us", view, source, kind="tail")
    for fate, said in _FATES.items():
        of_fate = f"fate {fate}"
        view, title = costs.mean(costs.wait, fate), f"from reclaim to page: {said}"
        yield told(f"wait_mean_{fate}", title, "us", view, f"{source}; {of_fate}")
        view, title = costs.median(costs.wait, fate), f"median wait: {said}"
        yield told(f"wait_median_{fate}", title, "us", view, f"{source}; {of_fate}")
        view, title = costs.share(costs.wait, fate), f"wait, of all time: {said}"
        yield told(f"wait_share_{fate}", title, "ratio", view, f"{of_tasks}; {of_fate}")
    yield told("slow_share", "time in the slow path", "ratio", costs.share(costs.slow), "slow_ns; tasks: ns")
    queue, source = Whole(costs.queue_share), "vmstat: direct_reclaim_wait_ns; tasks: ns"
    title, kernels = "time in line for direct reclaim", "with limit-reclaimers"
    yield Metric("queue_share", title, "ratio", "lower", "rate", queue, source, kernels=kernels)
    view, title = Whole(costs.waiting_share), "tasks' time in line, and from reclaim to page"
    source = "wait_ns, slow_ns; tasks: ns; direct_reclaim_wait_ns"
    yield told("waiting_share", title, "ratio", view, source)
    index, source = costs.shared(costs.wait, jain), "wait_ns, slow_ns; tasks: group main"
    fair: _More = {"better": "higher", "kind": "fairness", "level": "main"}
    yield told("wait_fairness", "Jain's fairness of the wait", "index", index, source, **fair)
    yield told("wait_gini", "Gini of the wait", "index", costs.shared(costs.wait, costs.gini), source)
    view, source = Whole(costs.all_stolen), "stolen >= freed, of requests that freed pages"
    yield told("all_stolen", "requests robbed of all they freed", "ratio", view, source)
    view, source = Whole(costs.freed_per_request), "freed / requests"
    yield told("freed_per_request", "freed until a task had its page", "pages", view, source)
    view, source = Whole(costs.freed_for_others), "freed; tasks: ops; as freed_for_others"
    yield told("freed_beyond", "freed beyond one's own part (records)", "ratio", view, source)
    lost, source = Whole(lambda m: m.unrecorded), "direct_reclaim_try of vmstat, less the records"
    yield told("records_lost", "lost records", "count", lost, source, kind="count")


_FATES: Mapping[Fate, str] = {
    "page": "a page at once",
    "captured": "given a captured page",
    **{cast(Fate, how): f"failed, {said}" for how, said in _FAILURES.items()},
    "repeat": "reclaimed again",
    "unserved": "no page in the records",
}


def _of_tasks() -> Iterator[Metric]:
    """What the tasks of group `main` did, and whether they lived."""
    yield Metric(
        "pages_per_second",
        "operations",
        "1/s",
        "higher",
        "rate",
        Speed("main"),
        "tasks: ops / ns, group main",
        titles={"mmap_test": "pages touched"},
    )
    yield from _latencies("main", "fault", "fault", ("p50", "p99", "p999", "max"))
    source, index, share = "tasks: ops, group main", Shared("main", jain), Shared("main", worst)
    yield Metric("fairness", "Jain's fairness", "index", "higher", "fairness", index, source)
    title = "worst task's share of the mean"
    yield Metric("worst_share", title, "ratio", "higher", "rate", share, source, "more")
    yield Metric(
        "oom_kills",
        "OOM kills",
        "count",
        "lower",
        "outcome",
        Whole(_oom_kills),
        "vmstat.after: oom_kill",
        kernels=">= 4.13",
        of_failures=True,
    )


def _of_reclaim() -> Iterator[Metric]:
    """Reclaim: how much, by whom, to what avail."""
    yield _pages("pgscan_direct", "pages scanned directly", "lower", "pgscan_direct")
    yield _pages("pgscan_kswapd", "pages scanned by kswapd", "lower", "pgscan_kswapd")
    yield _pages("pgsteal_direct", "pages freed directly", "lower", "pgsteal_direct")
    yield _pages("pgsteal_kswapd", "pages freed by kswapd", "neither", "pgsteal_kswapd")
    told: _Told = {"level": "main", "kernels": _SINCE["pgscan"]}
    scanned = {who: counter(f"pgscan_{who}") for who in ("direct", "kswapd")}
    freed = {who: counter(f"pgsteal_{who}") for who in scanned}
    for who, title in {"direct": "direct reclaim's efficiency", "kswapd": "kswapd's efficiency"}.items():
        yield _share(f"efficiency_{who}", title, "higher", ratio(freed[who], scanned[who]), **told)
    direct = ratio(scanned["direct"], counter("pgscan_direct", "pgscan_kswapd"))
    yield _share("direct_share", "scanned by direct reclaim", "lower", direct, **told)
    yield _pages("refaults_anon", "refaults, anon", "lower", "workingset_refault_anon", "main")
    yield _pages("refaults_file", "refaults, file", "lower", "workingset_refault_file", "main")
    for kind in ("anon", "file"):
        name, title = f"refault_activations_{kind}", f"refaults of the working set, {kind}"
        yield _pages(name, title, "lower", f"workingset_activate_{kind}")
    yield _pages("activations", "pages activated", "neither", "pgactivate")
    yield _pages("swap_ins", "pages swapped in", "lower", "pswpin")
    yield _pages("swap_outs", "pages swapped out", "lower", "pswpout")
    yield _count("major_faults", "major faults", "lower", counter("pgmajfault"))


_PAGEWISE = f"of {', '.join(sorted(episodes.PAGEWISE))}"


def _of_episodes() -> Iterator[Metric]:
    """Direct reclaims one by one."""
    source = "episodes: duration"
    count = _episodes(lambda m: sum(m.episodes.duration.values()) if m.episodes else None)
    yield Metric("episodes", "direct reclaims (events)", "count", "lower", "count", count, source, "more")
    for name, q in {"p50": 0.5, "p90": 0.9, "p99": 0.99}.items():
        view = _episode_quantile(q)
        yield Metric(f"episode_{name}", f"direct reclaim {name}", "us", "lower", "tail", view, source)
    view, title = _episodes(episodes.pages_per_episode), "pages freed per direct reclaim"
    yield Metric(
        "pages_per_episode", title, "pages", "neither", "rate", view, "episodes: pages / episodes", "more"
    )
    view, title = _episodes(episodes.freed_for_others), "freed beyond one's own part"
    source = f"episodes: pages, tasks: ops; {_PAGEWISE}"
    yield Metric("freed_for_others", title, "ratio", "lower", "rate", view, source)
    source = "episodes: tasks (ns), tasks: ns"
    view, title = _episodes(episodes.mean_stall), "a task's time in direct reclaim"
    yield Metric("stall", title, "ratio", "lower", "rate", view, source)
    view, title = _episodes(episodes.worst_stall), "worst task's time in direct reclaim"
    yield Metric("stall_worst", title, "ratio", "lower", "rate", view, source)


def _of_the_system() -> Iterator[Metric]:
    """Pressure, watermarks, and what watching costs."""
    took = counter("ns")
    for name, title in {"some": "time in which a task waits", "full": "time in which all wait"}.items():
        waited = ratio(counter(f"psi_{name}_us"), took, 1e3)
        level: Level = "main" if name == "some" else "more"
        yield _share(
            f"psi_{name}", title, "lower", waited, source="pressure, samples", level=level, kernels=">= 4.20"
        )
    busy = ratio(counter("kswapd_ns"), took)
    yield _share("kswapd_cpu", "kswapd's CPU time", "lower", busy, source="kswapd, samples")
    free = Sampled(lambda row: row["nr_free_pages"], ("nr_free_pages",))
    source = "samples: nr_free_pages, mean over time"
    yield Metric("free_pages", "free pages", "pages", "neither", "rate", free, source, "more")
    held, source = _Held(lambda row: row["held"], ("held",)), "samples: held, mean over time"
    yield Metric("memory_held", "memory taken away", "pages", "neither", "rate", held, source, "more")
    view, source = Whole(_missed_targets), "held: targets not reached before the next, of all"
    yield Metric("memory_missed", "changes of memory missed", "ratio", "lower", "rate", view, source)
    view, source = Whole(_latest_target), "held: the latest of the targets that were reached"
    yield Metric("memory_late", "latest change of memory", "us", "lower", "tail", view, source)
    for mark in ("low", "min"):
        title, source = f"time below the {mark} watermark", f"samples: nr_free_pages < {mark}"
        below = Sampled(_below(mark), ("nr_free_pages", mark))
        yield Metric(f"below_{mark}", title, "ratio", "lower", "rate", below, source, "more")
    view, source = (
        Whole(_zram_compression),
        "zram, when there was more in it: orig_data_size / compr_data_size",
    )
    title = "zram's compression"
    yield Metric("zram_compression", title, "ratio", "neither", "rate", view, source, "more")
    # In deterministic mode 10^9 instructions each, of all vCPUs together.
    view, source = Whole(_booted), "sampling: booted_ns, from the kernel's start on"
    yield Metric("boot_seconds", "boot and set-up", "s", "neither", "rate", view, source, "more")
    view, source = Whole(_filled), "samples: ns, less sampling: booted_ns"
    yield Metric("filling_seconds", "filling of memory", "s", "neither", "rate", view, source, "more")
    view = Whole(lambda m: m.measured_seconds)
    yield Metric("workload_seconds", "workload's time", "s", "neither", "rate", view, "samples: ns", "more")
    view, source = Whole(_sampling_cost), "sampling: cpu_ns, samples: ns"
    yield Metric("sampling_cpu", "sampling's CPU time", "ratio", "neither", "rate", view, source, "more")


def _of_group(group: str) -> Iterator[Metric]:
    """What the tasks of another group did."""
    title, source = f"{group}: operations", f"tasks: ops / ns, group {group}"
    yield Metric(f"{group}_per_second", title, "1/s", "higher", "rate", Speed(group), source)
    yield from _latencies(group, group, f"{group}:", ("p50", "p99", "max", "over_10ms"))


METRICS: tuple[Metric, ...] = (
    *_of_the_patch(),
    *_of_tasks(),
    *_of_reclaim(),
    *_of_episodes(),
    *_of_the_system(),
    *(metric for group in GROUPS for metric in _of_group(group)),
)


def table() -> str:
    """The registry as a Markdown table."""
    heads = ("name", "title", "unit", "better", "kind", "shown", "source", "kernels")
    lines: list[tuple[str, ...]] = [heads, (":--",) * len(heads)]
    for m in METRICS:
        shown = "by default" if m.level == "main" else "with --all"
        lines.append((f"`{m.name}`", m.title, m.unit, m.better, m.kind, shown, m.source, m.kernels))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
