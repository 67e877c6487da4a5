# SPDX-License-Identifier: GPL-2.0-only
"""Where guest and host meet: all vCPUs stand still at one instruction until the host lets them go on.

The other half is a QEMU plugin, rendezvous.c, which says why.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from testbed.host import process
from testbed.host.errors import GuestLost, Hang
from testbed.host.process import Deadline

SOURCE = Path(__file__).with_suffix(".c")
# The plugin in a bundle. Raise the number when host and plugin come to say other things to each other.
BUNDLED = "rendezvous.3.so"
_SLICE_SECONDS = 0.25
# Of a QEMU that executes nothing for so long, though our own look goes on; one that is starved executes some.
STOOD_STILL_SECONDS = 120.0
# So much of the time since the last look counts: we may have been stopped ourselves, or asked nothing.
_LOOK_SECONDS = 1.0
# A zombie, or nothing any more.
_ENDED = ("Z", "X")


# struct note of rendezvous.c: what, address, count.
_NOTE = struct.Struct("<cQQ")
_TIME_BYTES = 8
# Of a breakpoint, in the place of a count.
EVERY_TIME = 2**64 - 1


class GuestClock:
    """The guest's time as the plugin tells it; a second in which all vCPUs wait counts for four.

    It is read at any moment, and the guest does not notice. `fd` is the memory that the plugin writes to.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._told = -1
        self._looked = self._still = 0.0
        os.ftruncate(fd, _TIME_BYTES)

    def seconds(self) -> float:
        """How long the guest has run. Raises GuestLost when QEMU does not get on for long."""
        told = int.from_bytes(os.pread(self._fd, _TIME_BYTES, 0), "little")
        now = time.monotonic()
        self._still = 0.0 if told != self._told else self._still + min(now - self._looked, _LOOK_SECONDS)
        self._told, self._looked = told, now
        if self._still > STOOD_STILL_SECONDS:
            raise GuestLost(f"the emulator stood still for {STOOD_STILL_SECONDS:.0f} s")
        return told / 1e9

    def deadline(self, seconds: float) -> Deadline:
        """A deadline by this clock."""
        return Deadline(seconds, self.seconds, "s of the guest's time")


class Rendezvous:
    """Our end of the plugin's socket.

    `address` is the breakpoint at which the guest stands, or 0, and `vcpu` the one that is there.
    """

    def __init__(
        self, connection: socket.socket, clock: GuestClock, check_cancelled: Callable[[], None]
    ) -> None:
        self.address = self.vcpu = 0
        self._clock = clock
        self._standing = False
        self._connection = connection
        self._connection.settimeout(_SLICE_SECONDS)
        self._check_cancelled = check_cancelled

    def wait(self, seconds: float) -> None:
        """Wait until the guest has come, for so long by its clock.

        Raises Hang, GuestLost (QEMU ended, or stood still) or Interrupted.
        """
        deadline = self._clock.deadline(seconds)
        while not self.here():
            self._check_cancelled()
            if deadline.expired:
                raise Hang(f"the guest did not come to the rendezvous within {deadline}")

    def here(self) -> bool:
        """Whether the guest stands here, after waiting a moment for it to come."""
        if self._standing:
            return True
        try:
            came = self._connection.recv(_NOTE.size)
        except TimeoutError:
            return False
        except OSError:
            came = b""
        if len(came) != _NOTE.size:
            raise GuestLost("QEMU ended before the rendezvous")
        _, self.address, self.vcpu = _NOTE.unpack(came)
        self._standing = True
        return True

    def break_at(self, address: int, count: int = EVERY_TIME) -> None:
        """Stop the guest when it executes an address for the count-th time from now; 0 is never.

        While it stands still only. Unless it can be stopped at any instruction, before it has executed that
        code at all.
        """
        self._send(b"b", address, count)

    def release(self, step: bool = False) -> None:
        """Let the guest go on, and QEMU's main loop stand still until they meet us again.

        So QMP is not answered until then, or until the guest has ended or we close. With `step` that is
        in front of this vCPU's next instruction; for guests that can be stopped at any.
        """
        self._standing = False
        self._send(b"s" if step else b"g")

    def _send(self, what: bytes, address: int = 0, count: int = 0) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(_NOTE.pack(what, address, count))

    def close(self) -> None:
        """Let the guest go on, now and whenever it comes again."""
        self._connection.close()

    @contextlib.contextmanager
    def release_after(self, seconds: float) -> Iterator[None]:
        """Let the guest go on, main loop and all, while the caller waits for what only then can happen."""
        self._standing = False
        timer = threading.Timer(seconds, self._send, [b"f"])
        timer.start()
        try:
            yield
        finally:
            timer.join()


def wait_until_quiet(pid: int, seconds: float) -> None:
    """Wait until a process's main thread sleeps: QEMU's main loop has done all that it was asked.

    It holds no lock then, and no timer of the guest's can run in it rather than in the vCPUs' thread.
    Raises GuestLost when it does not get quiet in time, or has ended.
    """
    deadline, asleep = Deadline(seconds), 0
    while asleep < 3:
        state = process.state(pid)
        if state in _ENDED:
            raise GuestLost("QEMU ended at the rendezvous")
        asleep = asleep + 1 if state == "S" else 0
        if deadline.expired:
            raise GuestLost(f"QEMU's main loop did not get quiet within {seconds:.0f} s")
        time.sleep(0.002)
