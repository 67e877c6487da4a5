# SPDX-License-Identifier: GPL-2.0-only
"""A running guest: QEMU, its QMP and its console as one context manager that leaves nothing behind."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from testbed.guest.console import Console
from testbed.guest.qemu import QEMU
from testbed.guest.qmp import Monitor
from testbed.guest.rendezvous import Rendezvous, wait_until_quiet
from testbed.guest.shape import Shape, Wiring, argv, by_hand
from testbed.host import process
from testbed.host.errors import GuestError, GuestFailed, GuestLost, Hang, Panic
from testbed.host.process import Deadline
from testbed.wire import Mark

# How long QEMU may take to end by itself after a panic, so that the panic's last lines are kept.
LAST_WORDS_SECONDS = 3.0
COMMAND_SECONDS = 60.0
# Between telling QEMU to stop and letting the vCPUs go on, so that they find themselves stopped.
STOP_SECONDS = 0.3
# What this is of a snapshot comes from the host's clock. No guest with icount can see it.
_HOST_TIME = re.compile(rb"\x05timer\0{4}\0{3}\x02(.{8})\0{8}(.{8})", re.DOTALL)


class Guest:
    """One boot of one kernel.

        with Guest(shape, vmlinux, initramfs) as guest:
            guest.boot(120)
            guest.balloon(128 * MiB, 60)
            guest.command("memory", "memory")

    Or, where every instruction is to be the same, with the commands in `given` and the balloon's target
    there from the first on:

        with Guest(shape, vmlinux, initramfs, given=given, plugin=plugin) as guest:
            guest.monitor.execute("balloon", value=128 * MiB)
            guest.boot(120)
            guest.save(path, 60)

        with Guest(shape, vmlinux, initramfs, given=given, snapshot=path) as guest:
            guest.resume(60)

    `given` has files of the same names and sizes both times: the guest has seen their directory.

    Methods raise GuestLost (infrastructure), GuestFailed (Panic, Hang, Flood: the kernel's doing) or
    Interrupted. Their messages tell the stage, the console's tail and the command to run it by hand.
    """

    def __init__(
        self,
        shape: Shape,
        vmlinux: Path,
        initramfs: Path,
        *,
        qemu: str = QEMU,
        cancel: threading.Event | None = None,
        given: Mapping[str, bytes] | None = None,
        plugin: Path | None = None,
        snapshot: Path | None = None,
    ) -> None:
        self.shape = shape
        self.command_line = ""
        self._files = (qemu, vmlinux, initramfs)
        self._given = given or {}
        self._plugin = plugin
        self._snapshot = snapshot
        self._cancel = cancel or threading.Event()
        self._log = b""

    def __enter__(self) -> Guest:
        with contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair()
            meeting, plugged = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(ours.close)
            stack.callback(meeting.close)
            self._stderr = stack.enter_context(tempfile.TemporaryFile())
            self._scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="testbed-")))
            with theirs, plugged:
                words = argv(self.shape, *self._files, self._wiring(theirs.fileno(), plugged.fileno()))
                self.command_line = process.pasteable(words)
                fds = [theirs.fileno(), plugged.fileno()]
                self._child = process.spawn(words, pass_fds=fds, stderr=self._stderr)
            stack.callback(self._end_child)
            assert self._child.stdin and self._child.stdout
            self.console = Console(self._child.stdout, self._child.stdin, self._cancel)
            self.rendezvous = Rendezvous(meeting, self.console.check_cancelled)
            stack.callback(self._keep_log)
            with self.explained():
                self.monitor = Monitor(ours)
            stack.callback(self.monitor.close)
            # From here on __exit__ ends it.
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            # Nobody comes to a rendezvous any more.
            self.rendezvous.close()
            with contextlib.suppress(GuestLost):
                if self._child.poll() is None:
                    self.monitor.quit()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(process.GRACE_SECONDS)

    def _wiring(self, qmp_fd: int, plugin_fd: int) -> Wiring:
        paths = {name: self._scratch / name for name in self._given}
        for name, path in paths.items():
            path.write_bytes(self._given[name])
        plugin = f"{self._plugin},fd={plugin_fd}" if self._plugin else ""
        return Wiring(qmp_fd, paths, plugin, self._snapshot is not None)

    @property
    def log(self) -> bytes:
        """All that came over the console up to now; whole once the guest has been left."""
        console = getattr(self, "console", None)
        return self._log or (bytes(console.log) if console else b"")

    def boot(self, seconds: float) -> Mark:
        """Let it run, wait for init's `ready`: fields `release`, `cpus`."""
        with self.explained():
            self._go(seconds)
        return self.answer("ready", seconds, "boot")

    def require_all_cpus(self, ready: Mark) -> None:
        """Raise GuestFailed if fewer CPUs came up than the machine has."""
        if (cpus := ready.fields.get("cpus")) != str(self.shape.vcpus):
            raise GuestFailed(f"the guest brought up {cpus} of {self.shape.vcpus} CPUs")

    def balloon(self, size: int, seconds: float) -> int:
        """Shrink the guest's memory to `size` bytes; return what QEMU says it has then."""
        deadline = Deadline(seconds)
        with self.explained():
            self.monitor.execute("balloon", value=size)
            while (actual := int(self.monitor.execute("query-balloon")["actual"])) != size:
                self.console.check_cancelled()
                if deadline.expired:
                    raise Hang(
                        f"balloon: {actual >> 20} MiB of the {size >> 20} MiB asked for after {seconds:.0f} s"
                    )
                # BALLOON_CHANGE comes at most once a second: it may shorten the wait.
                self.monitor.events(timeout=0.1)
            return actual

    def save(self, path: Path, seconds: float) -> None:
        """Stop the guest at the rendezvous of init's `meet` and write it to a file.

        The same guest gives the same content. That it got away raises GuestLost.
        """
        with self.explained():
            self.rendezvous.wait(seconds)
            with self.rendezvous.release_after(STOP_SECONDS):
                self.monitor.execute("stop", timeout=STOP_SECONDS + seconds)
            if self.rendezvous.here():
                raise GuestLost("the guest was too quick to be stopped at the rendezvous")
            self.monitor.execute("migrate", uri=f"file:{path}")
            self._migrated(seconds)
        path.write_bytes(_HOST_TIME.sub(_without_host_time, path.read_bytes(), count=1))

    def resume(self, seconds: float, before: Callable[[], None] | None = None) -> None:
        """Let the guest of the snapshot go on; `before` is called while it still stands there."""
        with self.explained():
            # After a migration QEMU tells the network, five times, by the host's clock. Whenever its main
            # loop runs, it may run the guest's timers, and then vCPUs are interrupted elsewhere.
            self.monitor.execute("migrate-set-parameters", **{"announce-rounds": 0})
            self.monitor.execute("migrate-incoming", uri=f"file:{self._snapshot}")
            self._migrated(seconds)
            self._go(seconds, before)
            if self._plugin:
                # The second no-op of init's `meet`, in front of which it was stopped for the snapshot.
                self.rendezvous.wait(seconds)
                self.release(seconds)

    def change_memory(self, size: int, seconds: float) -> None:
        """At a rendezvous: set the balloon's target to `size` bytes and let the guest go on."""
        with self.explained():
            if self._plugin:
                self.rendezvous.wait(seconds)
            self.monitor.execute("balloon", value=size)
            if self._plugin:
                self.release(seconds)

    def _go(self, seconds: float, before: Callable[[], None] | None = None) -> None:
        self.monitor.execute("cont")
        if self._plugin:
            self.rendezvous.wait(seconds)
            if before:
                before()
            self.release(seconds)

    def release(self, seconds: float = COMMAND_SECONDS) -> None:
        """Let the guest go on from a rendezvous, once QEMU has done all that was asked of it."""
        wait_until_quiet(self._child.pid, seconds)
        self.rendezvous.release()

    def _migrated(self, seconds: float) -> None:
        deadline = Deadline(seconds)
        while (status := self.monitor.execute("query-migrate").get("status")) != "completed":
            self.console.check_cancelled()
            if status == "failed" or deadline.expired:
                raise GuestLost(f"the snapshot was not moved: {status}")
            self.monitor.events(timeout=0.02)

    def answer(
        self,
        name: str,
        seconds: float = COMMAND_SECONDS,
        stage: str = "a command",
        on_meet: Callable[[], None] | None = None,
    ) -> Mark:
        """Wait for init's answer. Raises GuestFailed when it is `error`.

        `on_meet` is called whenever a workload announces that it meets the host.
        """
        deadline = Deadline(seconds)
        with self.explained():
            while True:
                mark = self._expect(name, deadline, stage, *(["meet"] if on_meet else []))
                if mark.name == "error":
                    raise GuestFailed(f"the guest refused {stage}: {mark.text}")
                if mark.name != "meet" or on_meet is None:
                    return mark
                on_meet()

    def command(self, line: str, answer: str = "ok", seconds: float = COMMAND_SECONDS) -> Mark:
        """Give init a command, wait for its answer. Raises GuestFailed when init says `error`."""
        with self.explained():
            self.console.type(line)
        return self.answer(answer, seconds, f"`{line}`")

    def _expect(self, answer: str, deadline: Deadline, stage: str, *more: str) -> Mark:
        return self.console.expect_mark((answer, "error", *more), deadline, stage, self._watch)

    def _watch(self) -> None:
        """Notice when QEMU has stopped the machine, as it does when KVM cannot go on."""
        if any(event["event"] == "STOP" for event in self.monitor.events()):
            status = self.monitor.execute("query-status")["status"]
            raise GuestLost(f"QEMU stopped the machine: {status}")

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Give every error of a guest the console's tail and the command to run it by hand, once."""
        try:
            yield
        except GuestError as error:
            if error.explained:
                raise
            cause = self._cause(error)
            cause.hint = "\n  ".join(
                filter(
                    None,
                    [
                        error.hint,
                        self._said(),
                        "the console's last lines:\n" + process.tail(self.log.decode(errors="replace")),
                        "to run it by hand: " + process.pasteable(by_hand(self.shape, *self._files)),
                    ],
                )
            )
            cause.explained = True
            raise cause from error

    def _cause(self, error: GuestError) -> GuestError:
        """What is behind an error once QEMU has had time to end."""
        if isinstance(error, (Panic, GuestLost)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(LAST_WORDS_SECONDS)
            if self._child.poll() is not None:
                self.console.finish(LAST_WORDS_SECONDS)
            if isinstance(error, GuestLost) and self._guest_ended_itself():
                return Panic(error.message + ": the guest reset itself")
        return error

    def _guest_ended_itself(self) -> bool:
        monitor = getattr(self, "monitor", None)
        events = monitor.events(timeout=0.5) if monitor else []
        return any(event["event"] == "SHUTDOWN" and event["data"]["guest"] for event in events)

    def _said(self) -> str:
        """The first of what QEMU wrote to its standard error, less warnings."""
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip() and ": warning: " not in line]
        return "QEMU says:\n" + process.tail("\n".join(lines[:4])) if lines else ""

    def _end_child(self) -> None:
        process.end(self._child)

    def _keep_log(self) -> None:
        # Pushed after the console was made and before the monitor: QEMU may still be running here if
        # leaving failed half-way, so make sure of its end before the log is called whole.
        process.end(self._child)
        self._log = self.console.finish(LAST_WORDS_SECONDS)
        assert self._child.stdin and self._child.stdout
        self._child.stdin.close()
        self._child.stdout.close()


def _without_host_time(match: re.Match[bytes]) -> bytes:
    return match[0][: match.start(1) - match.start()] + bytes(24)
