# SPDX-License-Identifier: GPL-2.0-only
"""One trial: one kernel, one seed, one guest, one record."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from testbed.analysis.parse import Measurement, parse
from testbed.experiment import DeadlineSpec
from testbed.experiment.script import Script
from testbed.guest import rendezvous, snapshot
from testbed.guest.machine import Guest
from testbed.guest.qemu import Qemu
from testbed.guest.shape import Shape, identity
from testbed.guest.snapshot import Start
from testbed.host.errors import GuestError, GuestFailed, GuestLost, OutOfMemory
from testbed.ledger.record import LOST, MEASURED, Record
from testbed.wire import END, Mark


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
    # The balloon's target in bytes.
    memory: int
    script: Script
    deadlines: DeadlineSpec
    # What else numbers depend on: QEMU's family or version and, in real time, the host.
    environment: tuple[str, ...]
    qemu: Qemu
    # Where snapshots and plugins are kept; a plugin that is there needs no compiler.
    cache: Path = field(default=Path())
    compiled_plugin: Path | None = field(default=None)
    # The version of the QEMU that took its snapshot, if not this one.
    booted_by: str = field(default="")

    @functools.cached_property
    def id(self) -> str:
        """A hash of everything that can change what comes of it; paths cannot."""
        parts = {
            "arm": self.arm,
            "seed": self.seed,
            "vmlinux": self.vmlinux_sha256,
            "initramfs": self.initramfs_sha256,
            "machine": identity(self.shape),
            "memory": self.memory,
            "script": asdict(self.script),
            "deadlines": self.deadlines.model_dump(mode="json"),
            "environment": self.environment,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def deterministic(self) -> bool:
        """Whether the same trial gives the same bytes every time."""
        return self.shape.accel == "icount"

    def plugin(self) -> Path:
        """The rendezvous plugin for its QEMU."""
        return self.compiled_plugin or rendezvous.plugin(self.qemu.program, self.qemu.version, self.cache)

    @property
    def start(self) -> Start:
        """Where it starts from, if it is deterministic."""
        return Start(
            self.shape,
            self.vmlinux,
            self.vmlinux_sha256,
            self.initramfs,
            self.initramfs_sha256,
            self.memory,
            self.script.set_up,
            self.qemu,
            self.booted_by or self.qemu.version,
        )


def run(trial: Trial, attempt: int, cancel: threading.Event) -> tuple[Record, bytes]:
    """Run a trial once; return what became of it and the raw console log, up to the workload's end.

    Never raises for what a guest does; raises Interrupted when `cancel` is set, HostError when QEMU
    cannot be started.
    """
    took = Stages()
    memory: dict[str, int] = {}
    outcome, detail, log, command_line = MEASURED, "", b"", ""
    started = datetime.datetime.now(datetime.UTC)
    try:
        machine = guest(trial, cancel, took)
        try:
            with machine, machine.explained():
                end = _drive(machine, trial, memory, took)
                _judge(parse(machine.log), end)
        finally:
            command_line, log = machine.command_line, machine.log
    except GuestFailed as failed:
        outcome, detail = failed.outcome, str(failed)
    except GuestError as lost:
        outcome, detail = LOST, str(lost)
    if last := END.search(log):
        # How much more comes before QEMU ends depends on the host.
        log = log[: last.end()]
    record = Record(
        trial=trial.id,
        arm=trial.arm,
        seed=trial.seed,
        attempt=attempt,
        outcome=outcome,
        detail=detail,
        memory=memory,
        stages=took.seconds,
        command_line=command_line,
        started=started.isoformat(timespec="seconds"),
    )
    return record, log


class Stages:
    """Seconds of wall time per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - began, 3)


def guest(trial: Trial, cancel: threading.Event, took: Stages | None = None) -> Guest:
    """The guest of a trial, not yet running; a snapshot to start from is taken if need be."""
    if not trial.deterministic:
        return Guest(trial.shape, trial.vmlinux, trial.initramfs, qemu=trial.qemu.program, cancel=cancel)
    with (took or Stages()).stage("snapshot"):
        path = snapshot.ensure(trial.start, trial.plugin, trial.cache, trial.deadlines.boot, cancel)
    return Guest(
        trial.shape,
        trial.vmlinux,
        trial.initramfs,
        qemu=trial.qemu.program,
        cancel=cancel,
        given=trial.start.given("memory", trial.script.run),
        plugin=trial.plugin(),
        snapshot=path,
    )


def _drive(guest: Guest, trial: Trial, memory: dict[str, int], took: Stages) -> Mark:
    """Take the guest through its stages; note memory in bytes on the way."""
    deadlines = trial.deadlines
    if trial.deterministic:
        with took.stage("boot"):
            guest.resume(deadlines.boot)
            mark = guest.answer("memory")
        memory["balloon"] = trial.memory
        _note_memory(mark, memory)
        with took.stage("workload"):
            return _work(guest, trial)
    with took.stage("boot"):
        ready = guest.boot(deadlines.boot)
    guest.require_all_cpus(ready)
    with took.stage("balloon"):
        memory["balloon"] = guest.balloon(trial.memory, deadlines.balloon)
    _note_memory(guest.command("memory", "memory"), memory)
    for line in trial.script.set_up:
        guest.command(line)
    with took.stage("workload"):
        guest.console.type(trial.script.run)
        return _work(guest, trial)


def _note_memory(mark: Mark, memory: dict[str, int]) -> None:
    memory["total"] = int(mark.fields["total_kb"]) * 1024
    memory["free"] = int(mark.fields["free_kb"]) * 1024
    if memory["total"] > memory["balloon"]:
        raise GuestFailed(
            f"the balloon was inflated to {memory['balloon'] >> 10} KiB, but the guest's MemTotal is "
            f"{memory['total'] >> 10} KiB"
        )


def _work(guest: Guest, trial: Trial) -> Mark:
    """Wait for the workload's end; change the guest's memory whenever it meets us."""
    sizes = iter([size for _, size in trial.script.meetings])

    def meet() -> None:
        if (size := next(sizes, None)) is None:
            raise GuestFailed("the workload met the host more often than it was told to")
        guest.change_memory(size, trial.deadlines.balloon)

    return guest.answer("end", trial.deadlines.workload, "the workload", meet)


def _judge(measurement: Measurement, end: Mark) -> None:
    """Raise unless the workload did its work and all its results arrived."""
    if measurement.oom_victims or (measurement.counters and measurement.counters.get("oom_kill")):
        victims = ", ".join(measurement.oom_victims) or "a task"
        raise OutOfMemory(f"the OOM killer took {victims}")
    if end.fields.get("status") != "0":
        raise GuestFailed(f"the workload failed: {end.text}", measurement.output.strip())
    if not measurement.complete:
        raise GuestLost("the results did not arrive whole: " + "; ".join(measurement.problems))
