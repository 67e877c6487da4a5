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

from testbed import wire
from testbed.analysis.lacking import lacking
from testbed.analysis.parse import Measurement, parse
from testbed.experiment import Deadlines
from testbed.experiment.script import Script
from testbed.guest import plugin, rendezvous, snapshot
from testbed.guest.deterministic import Onlooker, ResumedGuest
from testbed.guest.live import LiveGuest
from testbed.guest.qemu import Qemu
from testbed.guest.shape import Plugin, Shape, identity
from testbed.guest.snapshot import Start
from testbed.host.errors import GuestError, GuestFailed, GuestLost, OutOfMemory
from testbed.ledger.record import LOST, MEASURED, Record
from testbed.wire import Mark

# What an id has in the place of deadlines. They decide when one stops waiting for a guest, and nothing that
# it does: with others it is the same trial, and has the id that all had when these were everybody's.
_ANY_DEADLINES = {"boot": 120.0, "balloon": 60.0, "workload": 600.0}


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
    deadlines: Deadlines
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
            "deadlines": _ANY_DEADLINES,
            "environment": self.environment,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def deterministic(self) -> bool:
        """Whether the same trial gives the same bytes every time."""
        return self.shape.accel == "icount"

    def plugin(self) -> Path:
        """The rendezvous plugin for its QEMU."""
        return self.compiled_plugin or self.compiled(rendezvous.SOURCE)

    def compiled(self, source: Path) -> Path:
        """A plugin for its QEMU, of a source of ours."""
        return plugin.compiled(source, self.qemu.program, self.qemu.version, self.cache)

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


@dataclass(frozen=True)
class Attempt:
    """What came of one attempt at a trial: its record, its raw console log and what that says."""

    record: Record
    log: bytes
    measurement: Measurement


class Course:
    """How far a trial has come: seconds of wall time per stage, and the guest's memory in bytes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, int] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note how long something takes."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - began, 3)

    def note_memory(self, balloon: int, mark: Mark) -> None:
        """Note what init says it has. Raises GuestFailed if that is more than the balloon was to leave."""
        total, free = (int(mark.fields[name]) * 1024 for name in ("total_kb", "free_kb"))
        self.memory = {"balloon": balloon, "total": total, "free": free}
        if total > balloon:
            raise GuestFailed(
                f"the balloon was inflated to {balloon >> 10} KiB, but the guest's MemTotal is "
                f"{total >> 10} KiB"
            )


def run(trial: Trial, attempt: int, cancel: threading.Event) -> Attempt:
    """Run a trial once; the log of what became of it goes up to the workload's end.

    Never raises for what a guest does; raises Interrupted when `cancel` is set, HostError when QEMU
    cannot be started.
    """
    course = Course()
    outcome, detail, log, command_line = MEASURED, "", b"", ""
    measurement: Measurement | None = None
    started = datetime.datetime.now(datetime.UTC)
    try:
        running = guest(trial, cancel, course)
        try:
            with running, running.explained():
                end = drive(running, trial, course)
                measurement = parse(up_to_the_end(running.log))
                _judge(measurement, end)
        finally:
            command_line, log = running.command_line, up_to_the_end(running.log)
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
        memory=course.memory,
        stages=course.seconds,
        command_line=command_line,
        started=started.isoformat(timespec="seconds"),
    )
    return Attempt(record, log, measurement or parse(log))


def up_to_the_end(log: bytes) -> bytes:
    """A console log up to the workload's end. How much more comes before QEMU ends depends on the host."""
    end = wire.form(log).end.search(log)
    return log[: end.end()] if end else log


def guest(
    trial: Trial,
    cancel: threading.Event,
    course: Course,
    onlooker: Onlooker | None = None,
    beside: tuple[Plugin, ...] = (),
) -> LiveGuest | ResumedGuest:
    """The guest of a trial, not yet running; a snapshot to start from is taken if need be.

    An `onlooker` may look at a deterministic one on its way, and so may plugins `beside` the rendezvous.
    """
    if not trial.deterministic:
        return LiveGuest(trial.shape, trial.vmlinux, trial.initramfs, qemu=trial.qemu.program, cancel=cancel)
    with course.stage("snapshot"):
        path = snapshot.ensure(trial.start, trial.plugin, trial.cache, trial.deadlines.boot, cancel)
    return ResumedGuest(
        trial.shape,
        trial.vmlinux,
        trial.initramfs,
        given=trial.start.given("memory", trial.script.run),
        plugin=trial.plugin(),
        snapshot=path,
        onlooker=onlooker,
        beside=beside,
        qemu=trial.qemu.program,
        cancel=cancel,
    )


def drive(guest: LiveGuest | ResumedGuest, trial: Trial, course: Course) -> Mark:
    """Take a guest through its stages, up to the workload's end, which is returned."""
    if isinstance(guest, ResumedGuest):
        with course.stage("boot"):
            guest.resume(trial.deadlines.boot)
            course.note_memory(trial.memory, guest.answer("memory"))
    else:
        _set_up(guest, trial, course)
        guest.type(trial.script.run)
    with course.stage("workload"):
        return guest.answer("end", trial.deadlines.workload, "the workload")


def _set_up(guest: LiveGuest, trial: Trial, course: Course) -> None:
    """What a deterministic guest has behind it at its snapshot."""
    deadlines = trial.deadlines
    with course.stage("boot"):
        ready = guest.boot(deadlines.boot)
    guest.require_all_cpus(ready)
    guest.require_boot_settings(ready)
    with course.stage("balloon"):
        balloon = guest.balloon(trial.memory, deadlines.balloon)
    course.note_memory(balloon, guest.command("memory", "memory"))
    for line in trial.script.set_up:
        guest.command(line)


def _judge(measurement: Measurement, end: Mark) -> None:
    """Raise unless the workload did its work and all its results arrived."""
    if measurement.oom_victims or (measurement.counters and measurement.counters.get("oom_kill")):
        victims = ", ".join(measurement.oom_victims) or "a task"
        raise OutOfMemory(f"the OOM killer took {victims}")
    if end.fields.get("status") != "0":
        said = [*lacking(measurement.output), measurement.output.strip()]
        raise GuestFailed(f"the workload failed: {end.text}", "\n  ".join(said))
    if not measurement.complete:
        raise GuestLost("the results did not arrive whole: " + "; ".join(measurement.problems))
