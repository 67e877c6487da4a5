# SPDX-License-Identifier: GPL-2.0-only
"""What tracepoints tell of direct reclaims, task by task. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.analysis.parse import Measurement

# Workloads of which each operation takes one page.
PAGEWISE = {"mmap_test", "swap_thrash", "memcg", "stutter"}


def pages_per_episode(m: Measurement) -> float | None:
    """Pages that a direct reclaim frees, on average."""
    # Not from the histogram, whose last bucket is `or more`.
    tasks = m.episodes.tasks if m.episodes else ()
    count = sum(task.episodes for task in tasks)
    return sum(task.pages for task in tasks) / count if count else None


def freed_for_others(m: Measurement) -> float | None:
    """Of the pages that tasks freed in direct reclaim, the share that was freed beyond each one's part.

    A task's part of all freed pages is its part of all pages touched. 0: everybody freed as much as came of
    its own touches; near 1: some freed what others got. It is the Hoover index (E. M. Hoover, Review of
    Economic Statistics 18(4), 1936) of reclaim over touches.
    """
    if m.episodes is None:
        return None
    return beyond_own_part(m, {task.pid: task.pages for task in m.episodes.tasks})


def beyond_own_part(m: Measurement, freed: Mapping[int, int]) -> float | None:
    """The same of pages that tasks freed, by pid."""
    if m.workload is None or m.workload.name not in PAGEWISE:
        return None
    pairs = [(freed.get(task.pid, 0), task.ops) for task in m.workload.tasks]
    all_freed, all_got = sum(mine for mine, _ in pairs), sum(got for _, got in pairs)
    if not all_freed or not all_got:
        return None
    beyond = (max(0.0, mine / all_freed - got / all_got) for mine, got in pairs)
    return sum(beyond)


def _stalls(m: Measurement) -> list[float] | None:
    """The share of its time that each task of the workload spent in direct reclaim."""
    if m.workload is None or m.episodes is None:
        return None
    stalled = {task.pid: task.ns for task in m.episodes.tasks}
    return [stalled.get(task.pid, 0) / task.ns for task in m.workload.tasks if task.ns] or None


def mean_stall(m: Measurement) -> float | None:
    """The share of a task's time in direct reclaim, on average."""
    shares = _stalls(m)
    return sum(shares) / len(shares) if shares else None


def worst_stall(m: Measurement) -> float | None:
    """The largest share of its time that a task spent in direct reclaim."""
    shares = _stalls(m)
    return max(shares) if shares else None
