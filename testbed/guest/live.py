# SPDX-License-Identifier: GPL-2.0-only
"""A guest in real time, which is told what to do as it goes."""

from __future__ import annotations

from testbed.guest.guest import COMMAND_SECONDS, Guest
from testbed.host.errors import Hang
from testbed.host.process import Deadline
from testbed.wire import Mark


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
        deadline = Deadline(seconds)
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

    def command(self, line: str, answer: str = "ok", seconds: float = COMMAND_SECONDS) -> Mark:
        """Give init a command, wait for its answer. Raises GuestFailed when init says `error`."""
        self.type(line)
        return self.answer(answer, seconds, f"`{line}`")

    def type(self, line: str) -> None:
        """Give init a command."""
        with self.explained():
            self.console.type(line)

    def change_memory(self, size: int, seconds: float) -> None:
        """Set the balloon's target to `size` bytes; the workload does not wait for it to be reached."""
        with self.explained():
            self.monitor.execute("balloon", value=size)
