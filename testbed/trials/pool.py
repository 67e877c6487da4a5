# SPDX-License-Identifier: GPL-2.0-only
"""Ensembles of trials: interleaved arms, side by side, resumed, retried, stopped cleanly."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import Protocol

from testbed.experiment import MiB
from testbed.guest.shape import Shape
from testbed.ledger.ledger import Ledger
from testbed.ledger.record import LOST, Record, final
from testbed.trials import trial as trials
from testbed.trials.trial import Attempt, Trial

# A trial that the infrastructure lost is tried again, this often in all.
ATTEMPTS = 3
# What QEMU takes beside the guest's memory.
QEMU_BYTES = 256 * MiB


class Progress(Protocol):
    """Who watches. Called from the thread that called run()."""

    def started(self, total: int, done: int, jobs: int) -> None: ...

    def ended(self, record: Record) -> None: ...


def interleaved(trials_: Sequence[Trial]) -> list[Trial]:
    """Seed by seed, the arms in turns forwards and backwards, so that drift of the host hits all alike."""
    arms = list(dict.fromkeys(t.arm for t in trials_))

    def position(t: Trial) -> tuple[int, int]:
        index = arms.index(t.arm)
        return t.seed, index if t.seed % 2 else -index

    return sorted(trials_, key=position)


def jobs_for(shape: Shape) -> int:
    """Trials that may run side by side: their threads have a core each, and their memory is free. At least 1.

    With icount one thread runs all vCPUs, and whether it has to wait for a core changes nothing.
    """
    threads = 1 if shape.accel == "icount" else shape.vcpus
    by_cores = len(os.sched_getaffinity(0)) // threads
    by_memory = available_memory() // (shape.boot_memory + QEMU_BYTES)
    return max(1, min(by_cores, by_memory))


def available_memory() -> int:
    """Bytes that the host can give without swapping: MemAvailable."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no MemAvailable in /proc/meminfo, which every Linux since 3.14 has")


def run(plan: Sequence[Trial], ledger: Ledger, jobs: int | None, progress: Progress) -> None:
    """Run what the ledger does not hold yet of a plan, in its order; every result is kept as it comes.

    `jobs` trials run side by side, if not as many as fit.

    On KeyboardInterrupt the guests in flight are ended and the exception goes on; what is finished stays.
    """
    jobs = jobs or jobs_for(plan[0].shape)
    records = ledger.records()
    done = final(records)
    attempts = {record.trial: record.attempt for record in records}
    waiting = [t for t in interleaved(plan) if t.id not in done or done[t.id].outcome == LOST]
    progress.started(len(plan), len(plan) - len(waiting), jobs)
    tries = dict.fromkeys((t.id for t in waiting), 0)
    cancel = threading.Event()
    with futures.ThreadPoolExecutor(jobs, thread_name_prefix="trial") as pool:
        running: dict[futures.Future[Attempt], Trial] = {}
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    trial = waiting.pop(0)
                    tries[trial.id] += 1
                    attempts[trial.id] = attempts.get(trial.id, 0) + 1
                    running[pool.submit(trials.run, trial, attempts[trial.id], cancel)] = trial
                ended, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
                for future in ended:
                    trial = running.pop(future)
                    attempt = future.result()
                    ledger.add(attempt.record, attempt.log)
                    progress.ended(attempt.record)
                    if attempt.record.outcome == LOST and tries[trial.id] < ATTEMPTS:
                        waiting.insert(0, trial)
        except BaseException:
            cancel.set()
            raise
