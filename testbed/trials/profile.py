# SPDX-License-Identifier: GPL-2.0-only
"""Trials done again with a profiler beside them: what each executed, to the instruction.

What was counted is kept in the cache: the same trial gives the same every time.
"""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

from testbed.analysis import profile
from testbed.analysis.parse import parse
from testbed.analysis.profile import Names, Profile
from testbed.guest import image, profiler
from testbed.guest.profiler import WATCHER, Profiler, Program, Target
from testbed.host import files, owned
from testbed.host.errors import BuildError, GuestLost
from testbed.kernel import build
from testbed.kernel.build import Plan
from testbed.kernel.symbols import Symbols, symbols
from testbed.trials import pool
from testbed.trials import trial as trials
from testbed.trials.trial import Course, Trial

# Larger than any that was seen by far.
MOST_BYTES = 1 << 30
_TASK = """
#include <linux/kbuild.h>
#include <linux/sched.h>
void numbers(void);
void numbers(void)
{
	OFFSET(pid, task_struct, pid);
	OFFSET(comm, task_struct, comm);
}
"""


@dataclass(frozen=True)
class Wanted:
    """A trial to be profiled, the SHA-256 of its log, and what its kernel was built of."""

    trial: Trial
    log_sha256: str
    plan: Plan


def profiles(wanted: Sequence[Wanted], stacks: bool, ended: Callable[[Trial], None]) -> list[Profile]:
    """The profile of each trial, with chains of calls (`stacks`) or with blocks of code.

    `ended` is told of each that had to run, in the caller's thread. Raises GuestLost when a log is not the
    same, byte for byte; else as a trial does; BuildError when the kernel was not built here.
    """
    known = targets(wanted)
    cancel = threading.Event()
    with futures.ThreadPoolExecutor(pool.jobs_for(wanted[0].trial.shape)) as workers:
        running = {
            workers.submit(_kept, each, known[each.trial.vmlinux], stacks, cancel): index
            for index, each in enumerate(wanted)
        }
        found: dict[int, Profile] = {}
        try:
            for future in futures.as_completed(running):
                index = running[future]
                text, is_new = future.result()
                found[index] = _exact(profile.parse(text), wanted[index].trial)
                if is_new:
                    ended(wanted[index].trial)
        finally:
            cancel.set()
            for future in running:
                future.cancel()
    return [found[index] for index in range(len(wanted))]


def _exact(found: Profile, trial: Trial) -> Profile:
    if not found.is_exact:
        raise GuestLost(
            f"{trial.arm} seed {trial.seed}: {found.instructions} instructions were counted, and the guest's "
            f"time has moved by {found.ended_ns - found.began_ns}: this is a mistake of testbed's"
        )
    return found


def names(vmlinuxes: Sequence[Path], programs: Mapping[str, Path], found: Sequence[Profile]) -> list[Names]:
    """What the places of each profile are called, by its kernel; `programs` are files of the user's, by name
    in the guest."""
    kernels = {vmlinux: symbols(vmlinux) for vmlinux in set(vmlinuxes)}
    known: dict[str, Mapping[int, str]] = {}
    with owned.directory() as scratch:
        for comm in {context.comm for each in found for context in each.contexts}:
            binary = image.with_symbols(comm, scratch)
            if binary is None and comm in programs:
                binary = files.read(programs[comm], MOST_BYTES)
            if binary and (program := profiler.program(binary)):
                known[comm] = program.functions
    return [Names(kernels[vmlinux].starts, kernels[vmlinux].names, known) for vmlinux in vmlinuxes]


def targets(wanted: Sequence[Wanted]) -> dict[Path, Target]:
    """What the profiler has to know, by kernel."""
    with owned.directory() as scratch:
        watcher = profiler.program(image.with_symbols(WATCHER, scratch) or b"")
    if watcher is None:
        raise BuildError(f"{WATCHER}: the compiler gives it no place of its own, or no symbols")
    plans = {each.trial.vmlinux: each.plan for each in wanted}
    return {vmlinux: _target(symbols(vmlinux), plan, watcher) for vmlinux, plan in plans.items()}


def _target(found: Symbols, plan: Plan, watcher: Program) -> Target:
    offsets = build.numbers_of(build.assembly(plan, _TASK))
    entries = [(entry.start, entry.size, entry.kind) for entry in found.entries]
    switch_to = found.address("__switch_to")
    functions = [*found.starts, found.end]
    pid, comm = (offsets[name] for name in ("pid", "comm"))
    return Target(functions, entries, switch_to, pid, comm, watcher)


def _kept(wanted: Wanted, target: Target, stacks: bool, cancel: threading.Event) -> tuple[str, bool]:
    """The lines of a trial's profile, and whether it had to run."""
    trial = wanted.trial
    ran = []

    def run(draft: Path) -> None:
        ran.append(True)
        draft.write_bytes(gzip.compress(count(wanted, target, stacks, cancel).encode(), mtime=0))

    parts = [trial.id.encode(), wanted.log_sha256.encode(), profiler.SOURCE.read_bytes(), target.told(stacks)]
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    path = trial.cache / "profiles" / f"{key[:32]}.gz"
    files.once(path, run)
    return files.unpacked(path.read_bytes(), MOST_BYTES, path).decode(), bool(ran)


def count(wanted: Wanted, target: Target, stacks: bool, cancel: threading.Event) -> str:
    """Run a trial beside the profiler; the lines of its profile. Raises as profiles() does."""
    trial, course = wanted.trial, Course()
    with Profiler(trial.compiled(profiler.SOURCE), target, stacks=stacks) as beside:
        guest = trials.guest(trial, cancel, course, beside=(beside.plugin,))
        with guest, guest.explained():
            trials.drive(guest, trial, course)
        log = trials.up_to_the_end(guest.log)
        digest = hashlib.sha256(log).hexdigest()
        if digest != wanted.log_sha256:
            raise GuestLost(
                f"{trial.arm} seed {trial.seed}: its log is not that of the result: expected sha256 "
                f"{wanted.log_sha256}, got {digest}"
            )
        workload = parse(log).workload
        count = sum(task.ops for task in workload.tasks) if workload else 0
        return beside.counted() + (f"operations {count}\n" if count else "")
