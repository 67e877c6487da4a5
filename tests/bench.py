# SPDX-License-Identifier: GPL-2.0-only
"""The noise of every metric, deterministic and in real time, and what a trial costs: `make bench`.

Prints the coefficient of variation over seeds, deterministic and in real time, the latter on a host that has
nothing else to do and on one that has (where deterministic trials give the very same bytes); and what of a
trial's wall time is not its workload's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import statistics
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from testbed.analysis.metrics import METRICS
from testbed.analysis.parse import parse
from testbed.experiment import load
from testbed.host import process
from testbed.host.paths import REPOSITORY, cache_directory
from testbed.ledger.ledger import Ledger
from testbed.ledger.record import MEASURED, Record, final
from testbed.terminal.progress import Watcher
from testbed.trials import pool, prepare, profile
from testbed.trials import trial as trials
from testbed.trials.profile import Wanted

SEEDS = 8
# How often a trial runs alone, and beside the profiler.
WATCHED = 5
# Longer than the experiment's: what the seed does averages out, what the host does stays for a whole run.
SECONDS = 60.0
EXPERIMENT = REPOSITORY / "experiments" / "reclaim-capture.yaml"
Noise = Mapping[str, float]


@contextlib.contextmanager
def other_work() -> Iterator[None]:
    """A program for every core, as on a machine that others use, too."""
    words = [sys.executable, "-c", "while True: pass"]
    programs = [process.spawn(words) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for program in programs:
            process.end(program)


def measure(mode: str, directory: Path) -> tuple[list[Record], Noise]:
    """The trials of one arm in one mode, and the coefficient of variation of each metric over seeds."""
    loaded = load(EXPERIMENT)
    assert loaded.workload.load
    program = loaded.workload.load.model_copy(update={"seconds": SECONDS})
    update = {
        "mode": mode,
        "seeds": SEEDS,
        # What boots add is in docs/statistics.md.
        "boots": 1,
        "workload": loaded.workload.model_copy(update={loaded.workload.name: program}),
    }
    if mode == "realtime":
        update["accel"] = "tcg"
    with Watcher() as watcher, Ledger.create(directory) as ledger:
        ready = prepare.prepare(loaded.only().model_copy(update=update), cache_directory(), watcher.note)
        pool.run(ready.trials, ledger, None, watcher)
        ids = {trial.id for trial in ready.trials}
        records = [r for r in final(ledger.records()).values() if r.trial in ids and r.outcome == MEASURED]
        measurements = [parse(ledger.log(record)) for record in records]
    noise = {}
    for metric in METRICS:
        values = [value for m in measurements if (value := metric.value(m)) is not None]
        if len(values) > 2 and statistics.fmean(values):
            noise[metric.title_of("mmap_test")] = statistics.stdev(values) / statistics.fmean(values)
    return records, noise


def overhead(records: list[Record]) -> float:
    """A trial's wall time as a multiple of its workload's; median over those that found their snapshot."""
    settled = [r.stages for r in records if r.stages.get("snapshot", 0) < 1]
    return statistics.median(sum(stages.values()) / stages["workload"] for stages in settled)


def cpu_seconds(run: Callable[[], object]) -> float:
    """What the processes that it starts take of the CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def watched() -> dict[str, list[float]]:
    """CPU seconds of a published trial alone, and beside the profiler, in turns."""
    experiment = load(EXPERIMENT).only().model_copy(update={"seeds": 1})
    (trial,) = prepare.prepare(experiment, cache_directory(), print).trials
    (plan,) = prepare.plans(experiment, cache_directory(), print).values()
    log = trials.run(trial, 1, threading.Event()).log
    of = Wanted(trial, hashlib.sha256(log).hexdigest(), plan)
    target = profile.targets([of])[trial.vmlinux]
    ways: dict[str, Callable[[], object]] = {
        "alone": lambda: trials.run(trial, 1, threading.Event()),
        "counting blocks": lambda: profile.count(of, target, False, threading.Event()),
        "with chains of calls": lambda: profile.count(of, target, True, threading.Event()),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(WATCHED):
        for name, run in ways.items():
            taken[name].append(cpu_seconds(run))
    return taken


def main() -> int:
    taken = watched()
    alone = statistics.median(taken["alone"])
    for name, seconds in taken.items():
        ratios = [value / alone for value in seconds]
        print(
            f"a published trial, {name}: {statistics.median(ratios):.2f} x the CPU time of one alone "
            f"[{min(ratios):.2f}-{max(ratios):.2f}], n = {WATCHED}"
        )
    home = Path("results") / "bench"
    ours = measure("deterministic", home / "deterministic")
    idle = measure("realtime", home / "realtime-idle")
    with other_work():
        busy = measure("realtime", home / "realtime-busy")
    table = Table(
        title=f"coefficient of variation over {SEEDS} seeds of {SECONDS:g} s, unpatched", box=box.SIMPLE_HEAD
    )
    for heading in ("metric", "deterministic", "real time, idle host", "ratio", "busy host", "ratio"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, value in ours[1].items():
        cells = []
        for _, theirs in (idle, busy):
            known = theirs.get(name)
            cells.append("-" if known is None else f"{known:.2%}")
            cells.append(f"{known / value:.1f}" if known and value else "-")
        table.add_row(name, f"{value:.2%}", *cells)
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    for title, (records, _) in (("deterministic", ours), ("in real time, idle host", idle)):
        workload = statistics.median(r.stages["workload"] for r in records)
        console.print(
            f"{title}: a trial takes {overhead(records):.2f} x its workload's time ({workload:.1f} s)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
