# SPDX-License-Identifier: GPL-2.0-only
"""A guest in real time, which is told what to do as it goes."""

from __future__ import annotations

import time

from testbed.guest.guest import COMMAND_SECONDS, Guest
from testbed.host import process
from testbed.host.errors import GuestLost, Hang
from testbed.host.process import Deadline
from testbed.wire import Mark

# Of a QEMU that somebody has stopped.
STOOD_STILL_SECONDS = 120.0
# So much of the time since the last look counts: we may have been stopped ourselves.
_LOOK_SECONDS = 1.0
# By a signal, or by a debugger.
_STOPPED = ("T", "t")


class RunningClock:
    """The host's time, but for that in which a process was stopped, or nobody looked here."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._looked = time.monotonic()
        self._running = self._still = 0.0

    def seconds(self) -> float:
        """How long it has run. Raises GuestLost when it stays stopped."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, _LOOK_SECONDS), now
        if process.state(self._pid) not in _STOPPED:
            self._running, self._still = self._running + passed, 0.0
            return self._running
        self._still += passed
        if self._still > STOOD_STILL_SECONDS:
            raise GuestLost(f"QEMU was stopped by a signal, for {STOOD_STILL_SECONDS:.0f} s")
        return self._running


class LiveGuest(Guest):
    """A guest that runs by the host's clock, under KVM or emulated.

    with LiveGuest(shape, vmlinux, initramfs) as guest:
        guest.boot(120)
        guest.balloon(128 * MiB, 60)
        guest.command("memory", "memory")
    """

    def boot(self, seconds: float) -> Mark:
        """Let it run, wait for init's `ready`: fields `release`, `cpus`."""
        with self.explained():
            self.monitor.execute("cont")
        return self.answer("ready", seconds, "boot")

    def balloon(self, size: int, seconds: float) -> int:
        """Shrink the guest's memory to `size` bytes; return what QEMU says it has then."""
        deadline = self.deadline(seconds)
        with self.explained():
            self.monitor.execute("balloon", value=size)
            while (actual := int(self.monitor.execute("query-balloon")["actual"])) != size:
                self.check_cancelled()
                if deadline.expired:
                    raise Hang(
                        f"balloon: {actual >> 20} MiB of the {size >> 20} MiB asked for after {seconds:.0f} s"
                    )
                # BALLOON_CHANGE comes at most once a second: it may shorten the wait.
                self.monitor.events(timeout=0.1)
            return actual

    def deadline(self, seconds: float) -> Deadline:
        """By when the guest has to have done something: so many seconds in which QEMU runs."""
        return Deadline(seconds, RunningClock(self._child.pid).seconds)

    def command(self, line: str, answer: str = "ok", seconds: float = COMMAND_SECONDS) -> Mark:
        """Give init a command, wait for its answer. Raises GuestFailed when init says `error`."""
        self.type(line)
        return self.answer(answer, seconds, f"`{line}`")

    def type(self, line: str) -> None:
        """Give init a command."""
        with self.explained():
            self.console.type(line)
