# SPDX-License-Identifier: GPL-2.0-only
"""Many trials, and the builds that they need: side by side, kept as they end, tried again, stopped cleanly.

What is to be done says a plan, a callable that is asked for more whenever something has ended. That of a
comparison is in run().
"""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from testbed.analysis.parse import Measurement
from testbed.experiment import MiB
from testbed.guest.shape import Shape
from testbed.ledger.ledger import Ledger
from testbed.ledger.record import LOST, Record
from testbed.trials import trial as trials
from testbed.trials.trial import Attempt, Trial

Result = TypeVar("Result")
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


@dataclass(frozen=True)
class TrialJob:
    """A trial to be run: `id` is what the ledger calls it, `run` makes the n-th attempt at it until that is
    cancelled. `then` is told how it ended, of one that was lost again and again the last attempt.
    """

    id: str
    arm: str
    seed: int
    run: Callable[[int, threading.Event], Attempt]
    then: Callable[[Attempt], None]


@dataclass(frozen=True)
class BuildJob(Generic[Result]):
    """Something that trials need to be made. It cannot be cancelled: it ends with the process."""

    run: Callable[[], Result]
    then: Callable[[Result], None]


Job = TrialJob | BuildJob[Any]
# Of the jobs that are running: those to be started beside them. None ends it all; what is running then is not
# needed any more.
Plan = Callable[[Sequence[Job]], Sequence[Job] | None]


def trial_job(trial: Trial, then: Callable[[Attempt], None]) -> TrialJob:
    """The job of running a trial."""
    return TrialJob(trial.id, trial.arm, trial.seed, functools.partial(trials.run, trial), then)


def work(plan: Plan, ledger: Ledger, tell: Callable[[Record], None]) -> None:
    """Do what a plan asks for, side by side, asking it again whenever something has ended.

    Every attempt at a trial is in the ledger before `tell` is told of it. What the infrastructure lost is
    tried again, whatever it is a trial of; a job's `then` sees what came of it in the end, and raises if
    there is no going on without it. All of them are called from the caller's thread.

    However this ends, also with KeyboardInterrupt, the guests in flight are ended; what is finished stays.
    """
    _Pool(ledger, tell).work(plan)


class _Pool:
    def __init__(self, ledger: Ledger, tell: Callable[[Record], None]) -> None:
        self._ledger, self._tell = ledger, tell
        self._cancel = threading.Event()
        self._running: dict[futures.Future[Any], tuple[Job, threading.Thread]] = {}
        # How often each trial was tried, now and ever.
        self._tries = Counter[str]()
        self._attempts = {record.trial: record.attempt for record in ledger.records()}

    def work(self, plan: Plan) -> None:
        try:
            while (jobs := plan([job for job, _ in self._running.values()])) is not None:
                for job in jobs:
                    self._start(job)
                assert self._running, "a plan that asks for nothing says None"
                ended, _ = futures.wait(self._running, return_when=futures.FIRST_COMPLETED)
                for future in ended:
                    job, thread = self._running.pop(future)
                    thread.join()
                    self._end(job, future.result())
        finally:
            self._cancel.set()
            for job, thread in self._running.values():
                if isinstance(job, TrialJob):
                    thread.join()

    def _start(self, job: Job) -> None:
        work: Callable[[], Any]
        if isinstance(job, TrialJob):
            self._tries[job.id] += 1
            self._attempts[job.id] = self._attempts.get(job.id, 0) + 1
            work = functools.partial(job.run, self._attempts[job.id], self._cancel)
        else:
            work = job.run
        future: futures.Future[Any] = futures.Future()
        # A process that ends does not wait for a daemon; and what that has started ends with it.
        thread = threading.Thread(target=_settle, args=(future, work), daemon=True)
        thread.start()
        self._running[future] = job, thread

    def _end(self, job: Job, result: Any) -> None:
        if isinstance(job, TrialJob):
            self._ledger.add(result.record, result.log)
            self._tell(result.record)
            if result.record.outcome == LOST and self._tries[job.id] < ATTEMPTS:
                self._start(job)
                return
        job.then(result)


def _settle(future: futures.Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as failed:
        future.set_exception(failed)


def run(
    trials_: Sequence[Trial], ledger: Ledger, jobs: int | None, progress: Progress
) -> dict[str, Measurement]:
    """Run what the ledger does not hold yet of some trials, the arms taking turns.

    `jobs` trials run side by side, if not as many as fit. What is lost in the end stays so, and the rest goes
    on. Returns what was measured, by trial.
    """
    jobs = jobs or jobs_for(trials_[0].shape)
    settled = ledger.settled()
    waiting = deque(t for t in interleaved(trials_) if t.id not in settled)
    progress.started(len(trials_), len(trials_) - len(waiting), jobs)
    measurements: dict[str, Measurement] = {}

    def keep(attempt: Attempt) -> None:
        # Of one that was lost, an earlier attempt may count.
        if attempt.record.outcome != LOST:
            measurements[attempt.record.trial] = attempt.measurement

    def plan(running: Sequence[Job]) -> Sequence[Job] | None:
        free = min(jobs - len(running), len(waiting))
        return [trial_job(waiting.popleft(), keep) for _ in range(free)] if free or running else None

    work(plan, ledger, progress.ended)
    return measurements
