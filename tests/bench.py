# SPDX-License-Identifier: GPL-2.0-only
"""How noisy and how costly trials are, deterministic and in real time, side by side in one run: `make bench`.

Prints, per metric, the coefficient of variation over seeds in both modes and their ratio; and what of a
trial's wall time is not its workload's.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from testbed import campaign, runner, spec
from testbed.analysis.metrics import METRICS
from testbed.analysis.parse import parse
from testbed.paths import REPOSITORY, cache_directory
from testbed.progress import Watcher
from testbed.record import MEASURED, Record, final
from testbed.store import Ledger

SEEDS = 8
EXPERIMENT = REPOSITORY / "experiments" / "reclaim-capture.yaml"
Noise = Mapping[str, float]


def measure(mode: str, directory: Path) -> tuple[list[Record], Noise]:
    """The trials of one arm in one mode, and the coefficient of variation of each metric over seeds."""
    loaded = spec.load(EXPERIMENT)
    arm = next(iter(loaded.arms))
    update = {"mode": mode, "seeds": SEEDS, "arms": {arm: loaded.arms[arm]}}
    if mode == "realtime":
        update["accel"] = "tcg"
    with Watcher() as watcher, Ledger.create(directory / mode) as ledger:
        ready = campaign.prepare(loaded.model_copy(update=update), cache_directory(), watcher.note)
        runner.run(ready.trials, ledger, None, watcher)
        ids = {trial.id for trial in ready.trials}
        records = [r for r in final(ledger.records()).values() if r.trial in ids and r.outcome == MEASURED]
        measurements = [parse(ledger.log(record)) for record in records]
    noise = {}
    for metric in METRICS:
        values = [value for m in measurements if (value := metric.value(m)) is not None]
        if len(values) > 2 and statistics.fmean(values):
            noise[metric.title] = statistics.stdev(values) / statistics.fmean(values)
    return records, noise


def overhead(records: list[Record]) -> float:
    """A trial's wall time as a multiple of its workload's; median over those that found their snapshot."""
    settled = [r.stages for r in records if r.stages.get("snapshot", 0) < 1]
    return statistics.median(sum(stages.values()) / stages["workload"] for stages in settled)


def main() -> int:
    directory = Path("results") / "bench"
    results = {mode: measure(mode, directory) for mode in ("deterministic", "realtime")}
    table = Table(title=f"coefficient of variation over {SEEDS} seeds, unpatched")
    for heading in ("metric", "deterministic", "real time (TCG)", "ratio"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    (_, ours), (_, theirs) = results["deterministic"], results["realtime"]
    for name in ours:
        if name in theirs:
            ratio = f"{theirs[name] / ours[name]:.1f}" if ours[name] else "-"
            table.add_row(name, f"{ours[name]:.2%}", f"{theirs[name]:.2%}", ratio)
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    for mode, (records, _) in results.items():
        workload = statistics.median(r.stages["workload"] for r in records)
        console.print(
            f"{mode}: a trial takes {overhead(records):.2f} times its workload's wall time ({workload:.1f} s)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
