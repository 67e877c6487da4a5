# SPDX-License-Identifier: GPL-2.0-only
"""A trial under gdb, without changing its course.

QEMU's own gdbstub stops vCPUs by ending a slice early: what follows is another run. Here the vCPUs' thread
stands still at the rendezvous instead, while registers and memory are read over QMP, and then goes on as if
nothing had been. So gdb can look and go step by step, and not touch: what would write is refused.

The protocol: GDB manual, appendix E, "Remote Serial Protocol".
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from testbed.guest.deterministic import ResumedGuest
from testbed.guest.rendezvous import EVERY_TIME
from testbed.host import owned
from testbed.host.errors import GuestError, HostError, SpecError
from testbed.trials import trial as trials
from testbed.trials.trial import Course, Trial

# What an instrumented kernel executes at every miss; see patches/.
MISS = "direct_reclaim_missed"
ATTACH_SECONDS = 3600.0
BREAKPOINT_SECONDS = 0.01
_BIGGEST_READ = 0x2000
# As QEMU prints them, in the order of gdb's amd64.
_GENERAL = ("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", *(f"R{n}" for n in range(8, 16)))
_SEGMENTS = ("CS", "SS", "DS", "ES", "FS", "GS")
_REGISTER = re.compile(r"\b(R[A-Z0-9]{1,2}) *=([0-9a-f]{16})")
_SEGMENT = re.compile(r"^([CSDEFG]S) *=([0-9a-f]{4}) ", re.MULTILINE)
_FLAGS = re.compile(r"RFL=([0-9a-f]{8})")
_REFUSED, _NO_MEMORY = "E01", "E14"


class GdbStub:
    """A trial's guest and a port for gdb; an Onlooker of the guest.

        with GdbStub(trial, miss=3) as stub:
            ...  # gdb attaches to localhost:stub.port
            log = stub.serve()

    Raises SpecError when the kernel has no place where a miss could be seen.
    """

    def __init__(self, trial: Trial, miss: int | None = None) -> None:
        self._trial = trial
        self._miss = (symbol(trial, MISS), miss) if miss else None
        self._cpu = self._running = self._stopped_at = 0
        self._course = Course()

    def __enter__(self) -> GdbStub:
        with contextlib.ExitStack() as stack:
            self._listener = stack.enter_context(socket.create_server(("localhost", 0)))
            self.scratch = stack.enter_context(owned.directory())
            guest = trials.guest(self._trial, threading.Event(), self._course, onlooker=self)
            if not isinstance(guest, ResumedGuest):
                raise SpecError("a guest in real time is another one while somebody looks at it")
            self._guest = stack.enter_context(guest)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def port(self) -> int:
        """Where gdb attaches."""
        return int(self._listener.getsockname()[1])

    def serve(self) -> bytes:
        """Do what gdb says until the trial has ended; return its console log, up to the end.

        Raises HostError when no gdb attaches, GuestError as a trial does.
        """
        self._listener.settimeout(ATTACH_SECONDS)
        try:
            connection, _ = self._listener.accept()
        except TimeoutError as nobody:
            raise HostError(f"no gdb attached within {ATTACH_SECONDS:.0f} s") from nobody
        with connection:
            self._gdb = _Packets(connection)
            # How soon it is seen that the guest stands at a breakpoint.
            self._guest.console.slice_seconds = BREAKPOINT_SECONDS
            trials.drive(self._guest, self._trial, self._course)
            self._gdb.send("W00")
        return trials.up_to_the_end(self._guest.log)

    def at_start(self) -> bool:
        """The guest has not run yet: set breakpoints, obey gdb."""
        if self._miss:
            self._guest.rendezvous.break_at(*self._miss)
        return self._obey()

    def at_breakpoint(self, address: int, vcpu: int) -> bool:
        """The guest stands at a breakpoint: tell gdb and obey it."""
        self._stopped_at = address
        self._cpu = self._running = vcpu
        self._gdb.send(self._stop_reply())
        return self._obey()

    # --- what gdb asks for ---------------------------------------------------------------------------

    def _obey(self) -> bool:
        """Answer gdb until it lets the guest go on, a step if this is True; without gdb it does at once."""
        while (packet := self._gdb.receive()) is not None:
            if packet[:1] in ("c", "s", "D", "k"):
                if packet[:1] == "D":
                    self._gdb.send("OK")
                return packet[:1] == "s"
            self._gdb.send(self._answer(packet))
        return False

    def _answer(self, packet: str) -> str:
        handlers: dict[str, Callable[[str], str]] = {
            "?": lambda _: self._stop_reply(),
            "g": lambda _: self._registers(self._cpu),
            "m": self._memory,
            "Z": self._breakpoint,
            "z": self._breakpoint,
            "H": self._select,
            **dict.fromkeys("GPMX", lambda _: _REFUSED),
            "T": lambda _: "OK",
        }
        return handlers.get(packet[:1], self._query)(packet)

    def _select(self, packet: str) -> str:
        # 0 is any thread, -1 all of them.
        if (thread := int(packet[2:] or "0", 16)) > 0:
            self._cpu = min(thread, self._trial.shape.vcpus) - 1
        return "OK"

    def _query(self, packet: str) -> str:
        if packet.startswith("qSupported"):
            return f"PacketSize={2 * _BIGGEST_READ:x};QStartNoAckMode+"
        if packet == "QStartNoAckMode":
            self._gdb.acknowledge = False
            return "OK"
        if packet == "qC":
            return f"QC{self._cpu + 1:x}"
        if packet == "qfThreadInfo":
            return "m" + ",".join(f"{cpu + 1:x}" for cpu in range(self._trial.shape.vcpus))
        if packet.startswith("qThreadExtraInfo,"):
            return f"CPU#{int(packet.partition(',')[2], 16) - 1}".encode().hex()
        return {"qsThreadInfo": "l", "qAttached": "1"}.get(packet, "")

    def _stop_reply(self) -> str:
        return f"T05thread:{self._cpu + 1:x};"

    def _breakpoint(self, packet: str) -> str:
        kind, address = packet[1:].split(",")[:2]
        where = int(address, 16)
        if kind not in "01":
            return ""
        self._guest.rendezvous.break_at(where, EVERY_TIME if packet[0] == "Z" else 0)
        return "OK"

    def _registers(self, cpu: int) -> str:
        dump = self._said_of_registers(cpu)
        values = dict(_REGISTER.findall(dump))
        if self._stopped_at and cpu == self._running:
            # In the midst of a block of code, QEMU has not written it back.
            values["RIP"] = f"{self._stopped_at:016x}"
        wide = [int(values[name], 16).to_bytes(8, "little") for name in (*_GENERAL, "RIP")]
        flags = _FLAGS.search(dump)
        segments = dict(_SEGMENT.findall(dump))
        narrow = [int(flags[1] if flags else "0", 16), *(int(segments[name], 16) for name in _SEGMENTS)]
        return b"".join([*wide, *(value.to_bytes(4, "little") for value in narrow)]).hex()

    def _said_of_registers(self, cpu: int) -> str:
        arguments: dict[str, Any] = {"command-line": "info registers", "cpu-index": cpu}
        return str(self._guest.monitor.execute("human-monitor-command", **arguments))

    def _memory(self, packet: str) -> str:
        address, length = (int(word, 16) for word in packet[1:].split(","))
        file = self.scratch / "memory"
        arguments: dict[str, Any] = {
            "val": address,
            "size": min(length, _BIGGEST_READ),
            "filename": str(file),
            "cpu-index": self._cpu,
        }
        try:
            self._guest.monitor.execute("memsave", **arguments)
        except GuestError:
            return _NO_MEMORY
        return file.read_bytes().hex()


class _Packets:
    """gdb's packets on a socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(ATTACH_SECONDS)
        self._connection = connection
        self._pending = b""
        self.acknowledge = True

    def receive(self) -> str | None:
        """The next packet's content; None when gdb is gone."""
        while not (match := re.search(rb"\$([^#]*)#..", self._pending, re.DOTALL)):
            try:
                data = self._connection.recv(4096)
            except OSError:
                data = b""
            if not data:
                return None
            self._pending += data
        self._pending = self._pending[match.end() :]
        if self.acknowledge:
            self._write(b"+")
        return match[1].decode("latin-1")

    def send(self, content: str) -> None:
        """Send a packet; whether gdb is still there is for receive() to see."""
        data = content.encode("latin-1")
        self._write(b"$%b#%02x" % (data, sum(data) % 256))

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._connection.sendall(data)


def symbol(trial: Trial, name: str) -> int:
    """The address of a symbol of a trial's kernel, from the System.map beside it. Raises SpecError."""
    path = trial.vmlinux.with_name(trial.vmlinux.name.replace("vmlinux", "System.map"))
    with contextlib.suppress(OSError):
        if found := re.search(rf"(?m)^([0-9a-f]{{16}}) \S {name}$".encode(), path.read_bytes()):
            return int(found[1], 16)
    raise SpecError(f"the kernel of {trial.arm} has no {name}(): is it instrumented?")
