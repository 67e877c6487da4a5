# SPDX-License-Identifier: GPL-2.0-only
"""Guests of which every instruction is the same every time.

They are told everything beforehand, in files that they find in fw_cfg, and hear of the host at a rendezvous
only, at which all vCPUs stand still. A guest boots once, up to a snapshot, from which trials go on:

    with BootingGuest(shape, vmlinux, initramfs, given=given, plugin=plugin) as guest:
        guest.boot(128 * MiB, 20)
        guest.save(path, 5)

    with ResumedGuest(shape, vmlinux, initramfs, given=given, plugin=plugin, snapshot=path) as guest:
        guest.resume(5)

Seconds are the guest's: what a busy host does to QEMU's speed costs it none of them.
`given` has files of the same names and sizes both times: the guest has seen their directory.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from testbed.guest.guest import Guest
from testbed.guest.qemu import QEMU
from testbed.guest.rendezvous import GuestClock, Rendezvous, wait_until_quiet
from testbed.guest.shape import Plugin, Shape, Wiring
from testbed.host import owned, space
from testbed.host.errors import GuestLost
from testbed.host.process import Deadline

# Between telling QEMU to stop and letting the vCPUs go on, so that they find themselves stopped.
STOP_SECONDS = 0.3
# Of the host's time, for what QEMU itself has to do while the guest stands still. A busy host takes long.
QEMU_SECONDS = 300.0
# What this is of a snapshot comes from the host's clock. No guest with icount can see it.
_HOST_TIME = re.compile(rb"\x05timer\0{4}\0{3}\x02(.{8})\0{8}(.{8})", re.DOTALL)


class DeterministicGuest(Guest):
    """What they have in common: files that are given, and a rendezvous, which takes the plugin.

    QEMU can write beneath the `writable` directories only.
    """

    incoming = False
    # Whether it can be stopped at any instruction, which makes it slow.
    anywhere = False
    # Plugins of others'.
    beside: tuple[Plugin, ...] = ()

    def __init__(
        self,
        shape: Shape,
        vmlinux: Path,
        initramfs: Path,
        *,
        given: Mapping[str, bytes],
        plugin: Path,
        qemu: str = QEMU,
        cancel: threading.Event | None = None,
        writable: tuple[Path, ...] = (),
    ) -> None:
        super().__init__(shape, vmlinux, initramfs, qemu=qemu, cancel=cancel)
        self._given, self._plugin, self._writable = given, plugin, writable

    @contextlib.contextmanager
    def _wired(self, qmp_fd: int, stack: contextlib.ExitStack) -> Iterator[Wiring]:
        meeting, plugged = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.callback(meeting.close)
        scratch = stack.enter_context(owned.directory())
        paths = {name: scratch / name for name in self._given}
        for name, path in paths.items():
            path.write_bytes(self._given[name])
        clock_fd = os.memfd_create("guest-clock")
        stack.callback(os.close, clock_fd)
        self._clock = GuestClock(clock_fd)
        self.rendezvous = Rendezvous(meeting, self._clock, self.check_cancelled)
        with plugged:
            options = ("any=1",) if self.anywhere else ()
            rendezvous = Plugin(self._plugin, {"fd": plugged.fileno(), "clock": clock_fd}, options)
            yield Wiring(qmp_fd, paths, (rendezvous, *self.beside), self.incoming, self._writable)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nobody comes to a rendezvous any more.
        self.rendezvous.close()
        super().__exit__(kind, error, trace)

    def deadline(self, seconds: float) -> Deadline:
        """By when the guest has to have done something, by its own clock."""
        return self._clock.deadline(seconds)

    def release(self, step: bool = False) -> None:
        """Let the guest go on from a rendezvous, once QEMU has done all that was asked of it; or a step."""
        wait_until_quiet(self._child.pid, QEMU_SECONDS)
        self.rendezvous.release(step)

    def _meet(self, seconds: float) -> None:
        """Wait until the guest stands at a rendezvous."""
        self.rendezvous.wait(seconds)

    def _migrate(self, command: str, path: Path) -> None:
        """Have QEMU write its state to a file, or read it from there.

        Raises NoSpace when there is no space left for it.
        """
        # As `uri`, a comma in it could begin an option.
        address = {"transport": "file", "filename": str(path), "offset": 0}
        self.monitor.execute(command, channels=[{"channel-type": "main", "addr": address}])
        deadline = Deadline(QEMU_SECONDS)
        while (state := self.monitor.execute("query-migrate")).get("status") != "completed":
            self.check_cancelled()
            if state.get("status") == "failed" or deadline.expired:
                why = f"{state.get('status')}: {state.get('error-desc', 'QEMU does not say why')}"
                if space.said(why):
                    raise space.lack(path.parent)
                raise GuestLost(f"the snapshot was not moved: {why}")
            self.monitor.events(timeout=0.02)


class BootingGuest(DeterministicGuest):
    """A guest that boots, up to a snapshot."""

    def boot(self, memory: int, seconds: float) -> None:
        """Let it run up to init's `ready`, with the balloon's target at `memory` bytes from the first on.

        Raises GuestFailed if fewer CPUs came up than the machine has.
        """
        with self.explained():
            self.monitor.execute("balloon", value=memory)
            self.monitor.execute("cont")
            self._meet(seconds)
            self.release()
        ready = self.answer("ready", seconds, "boot")
        self.require_all_cpus(ready)
        self.require_boot_settings(ready)

    def save(self, path: Path, seconds: float) -> None:
        """Stop the guest at the rendezvous of init's `meet` and write it to a file.

        The same guest gives the same content. That it got away raises GuestLost.
        """
        with self.explained():
            self._meet(seconds)
            with self.rendezvous.release_after(STOP_SECONDS):
                self.monitor.execute("stop", timeout=QEMU_SECONDS)
            if self.rendezvous.here():
                raise GuestLost("the guest was too quick to be stopped at the rendezvous")
            self._migrate("migrate", path)
        path.write_bytes(_HOST_TIME.sub(_without_host_time, path.read_bytes(), count=1))


class Onlooker(Protocol):
    """Who looks at a guest while it stands still, and changes nothing. It goes on when they return: a step,
    if they return True.

    What QEMU is asked to write for them goes to their `scratch`, a directory.
    """

    @property
    def scratch(self) -> Path: ...

    def at_start(self) -> bool:
        """It has not run yet."""

    def at_breakpoint(self, address: int, vcpu: int) -> bool:
        """A vCPU is about to execute what is there."""


class ResumedGuest(DeterministicGuest):
    """A guest that goes on from a snapshot; an `onlooker` is told where it stands on its way.

    Plugins that are `beside` the rendezvous see every instruction, and must change nothing.
    """

    incoming = True

    def __init__(
        self,
        shape: Shape,
        vmlinux: Path,
        initramfs: Path,
        *,
        given: Mapping[str, bytes],
        plugin: Path,
        snapshot: Path,
        onlooker: Onlooker | None = None,
        beside: tuple[Plugin, ...] = (),
        qemu: str = QEMU,
        cancel: threading.Event | None = None,
    ) -> None:
        super().__init__(
            shape,
            vmlinux,
            initramfs,
            given=given,
            plugin=plugin,
            qemu=qemu,
            cancel=cancel,
            writable=(onlooker.scratch,) if onlooker else (),
        )
        self._snapshot, self._onlooker, self.beside = snapshot, onlooker, beside
        self.anywhere = onlooker is not None

    def resume(self, seconds: float) -> None:
        """Let the guest of the snapshot go on."""
        with self.explained():
            # After a migration QEMU tells the network, five times, by the host's clock. Whenever its main
            # loop runs, it may run the guest's timers, and then vCPUs are interrupted elsewhere.
            self.monitor.execute("migrate-set-parameters", **{"announce-rounds": 0})
            self._migrate("migrate-incoming", self._snapshot)
            self.monitor.execute("cont")
            self.rendezvous.wait(seconds)
            self.release(step=self._onlooker is not None and self._onlooker.at_start())
            # The second no-op of init's `meet`, in front of which it was stopped for the snapshot.
            self._meet(seconds)
            self.release()

    def _meet(self, seconds: float) -> None:
        super()._meet(seconds)
        while self.rendezvous.address:
            self._look()
            super()._meet(seconds)

    def _watch(self) -> None:
        super()._watch()
        # It may also stand at a meeting, of which the console has not told yet.
        if self._onlooker and self.rendezvous.here() and self.rendezvous.address:
            self._look()

    def _look(self) -> None:
        """Have it looked at where it stands at a breakpoint, and let it go on."""
        step = False
        if self._onlooker:
            step = self._onlooker.at_breakpoint(self.rendezvous.address, self.rendezvous.vcpu)
        self.release(step)


def _without_host_time(match: re.Match[bytes]) -> bytes:
    return match[0][: match.start(1) - match.start()] + bytes(24)
