# SPDX-License-Identifier: GPL-2.0-only
"""One trial: one kernel, one seed, one boot, one record."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.analysis.parse import Measurement, parse
from testbed.errors import GuestError, GuestFailed, GuestLost, OutOfMemory
from testbed.guest.machine import QEMU, Guest
from testbed.guest.protocol import Mark
from testbed.guest.shape import Shape
from testbed.record import LOST, MEASURED, Record
from testbed.spec import DeadlineSpec, GuestSpec, MmapTest, WorkloadSpec

PAGE = 4096
# mmap_test lets pages go in chunks of this many; a window is a whole number of them.
CHUNK_PAGES = 64


@dataclass(frozen=True)
class Trial:
    """All that a trial needs. Trials with equal ids would do the same."""

    arm: str
    seed: int
    vmlinux: Path
    vmlinux_sha256: str
    initramfs: Path
    initramfs_sha256: str
    shape: Shape
    guest: GuestSpec
    workload: WorkloadSpec
    deadlines: DeadlineSpec
    # What else numbers depend on: the version of QEMU, the host.
    environment: tuple[str, ...]
    qemu: str = field(default=QEMU)

    @functools.cached_property
    def id(self) -> str:
        """A hash of everything that can change what comes of it; paths cannot."""
        identity = {
            "arm": self.arm,
            "seed": self.seed,
            "vmlinux": self.vmlinux_sha256,
            "initramfs": self.initramfs_sha256,
            "shape": dataclasses.asdict(self.shape),
            "guest": self.guest.model_dump(mode="json"),
            "workload": self.workload.model_dump(mode="json"),
            "deadlines": self.deadlines.model_dump(mode="json"),
            "environment": self.environment,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def window_pages(workload: MmapTest, memory: int) -> int:
    """Pages of one task's window, so that all tasks together map `footprint` x memory (bytes)."""
    share = workload.footprint * memory / workload.tasks / PAGE
    return max(1, int(share) // CHUNK_PAGES) * CHUNK_PAGES


def run_command(workload: MmapTest, memory: int, seed: int) -> str:
    """The line that starts the workload."""
    milliseconds = max(1, round(workload.seconds * 1000))
    pages = window_pages(workload, memory)
    return f"run mmap_test {workload.mode} {workload.tasks} {milliseconds} {pages} {seed}"


def set_up_commands(guest: GuestSpec, workload: MmapTest) -> Iterator[str]:
    """The lines that make the guest ready for the workload."""
    yield f"set /proc/sys/vm/swappiness {guest.swappiness}"
    if guest.swap:
        yield f"swap {guest.swap}"
    if workload.mode == "file":
        yield "disk"
        # One page a fault, or a touch would map its neighbours and their touches be no faults.
        yield f"set /sys/kernel/debug/fault_around_bytes {PAGE}"


def run(trial: Trial, attempt: int, cancel: threading.Event) -> tuple[Record, bytes]:
    """Run a trial once; return what became of it and the raw console log.

    Never raises for what a guest does; raises Interrupted when `cancel` is set, HostError when QEMU
    cannot be started.
    """
    memory: dict[str, int] = {}
    stages: dict[str, float] = {}
    outcome, detail = MEASURED, ""
    guest = Guest(trial.shape, trial.vmlinux, trial.initramfs, qemu=trial.qemu, cancel=cancel)
    started = datetime.datetime.now(datetime.UTC)
    try:
        with guest, guest.explained():
            end = _drive(guest, trial, memory, stages)
            _judge(parse(guest.log), end)
    except GuestFailed as failed:
        outcome, detail = failed.outcome, str(failed)
    except GuestError as lost:
        outcome, detail = LOST, str(lost)
    record = Record(
        trial=trial.id,
        arm=trial.arm,
        seed=trial.seed,
        attempt=attempt,
        outcome=outcome,
        detail=detail,
        memory=memory,
        stages=stages,
        command_line=guest.command_line,
        started=started.isoformat(timespec="seconds"),
    )
    return record, guest.log


def _drive(guest: Guest, trial: Trial, memory: dict[str, int], stages: dict[str, float]) -> Mark:
    """Take the guest through its stages; note memory in bytes and times in seconds on the way."""

    def stage(name: str, action: Any) -> Any:
        began = time.monotonic()
        try:
            return action()
        finally:
            stages[name] = round(time.monotonic() - began, 3)

    deadlines, workload = trial.deadlines, trial.workload.mmap_test
    ready = stage("boot", lambda: guest.boot(deadlines.boot))
    if ready.fields.get("cpus") != str(trial.shape.vcpus):
        raise GuestFailed(f"the guest brought up {ready.fields.get('cpus')} of {trial.shape.vcpus} CPUs")
    memory["balloon"] = stage("balloon", lambda: guest.balloon(trial.guest.memory, deadlines.balloon))
    mark = guest.command("memory", "memory")
    memory["total"] = int(mark.fields["total_kb"]) * 1024
    memory["free"] = int(mark.fields["free_kb"]) * 1024
    if memory["total"] > memory["balloon"]:
        raise GuestFailed(
            f"the balloon was inflated to {memory['balloon'] >> 10} KiB, but the guest's MemTotal is "
            f"{memory['total'] >> 10} KiB"
        )
    for line in set_up_commands(trial.guest, workload):
        guest.command(line)
    line = run_command(workload, trial.guest.memory, trial.seed)
    end: Mark = stage("workload", lambda: guest.command(line, "end", deadlines.workload))
    return end


def _judge(measurement: Measurement, end: Mark) -> None:
    """Raise unless the workload did its work and all its results arrived."""
    if measurement.oom_victims or (measurement.counters and measurement.counters.get("oom_kill")):
        victims = ", ".join(measurement.oom_victims) or "a task"
        raise OutOfMemory(f"the OOM killer took {victims}")
    if end.fields.get("status") != "0":
        raise GuestFailed(f"the workload failed: {end.text}", measurement.output.strip())
    if not measurement.complete:
        raise GuestLost("the results did not arrive whole: " + "; ".join(measurement.problems))
