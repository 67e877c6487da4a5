# SPDX-License-Identifier: GPL-2.0-only
"""A running guest: QEMU, its QMP and its console as one context manager that leaves nothing behind."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from testbed import process
from testbed.errors import GuestError, GuestFailed, GuestLost, Hang, HostError, Panic
from testbed.guest.console import Console
from testbed.guest.protocol import Mark
from testbed.guest.qmp import Monitor
from testbed.guest.shape import Shape, argv, by_hand
from testbed.process import Deadline

QEMU = "qemu-system-x86_64"
# How long QEMU may take to end by itself after a panic, so that the panic's last lines are kept.
LAST_WORDS_SECONDS = 3.0
COMMAND_SECONDS = 60.0


class Guest:
    """One boot of one kernel.

        with Guest(shape, vmlinux, initramfs) as guest:
            guest.boot(120)
            guest.balloon(128 * MiB, 60)
            guest.command("memory", "memory")

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
    ) -> None:
        self.shape = shape
        self.command_line = ""
        self._files = (qemu, vmlinux, initramfs)
        self._cancel = cancel or threading.Event()
        self._log = b""

    def __enter__(self) -> Guest:
        with contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            self._stderr = stack.enter_context(tempfile.TemporaryFile())
            with theirs:
                words = argv(self.shape, *self._files, theirs.fileno())
                self.command_line = process.pasteable(words)
                self._child = process.spawn(words, pass_fds=[theirs.fileno()], stderr=self._stderr)
            stack.callback(self._end_child)
            assert self._child.stdin and self._child.stdout
            self.console = Console(self._child.stdout, self._child.stdin, self._cancel)
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
            with contextlib.suppress(GuestLost):
                if self._child.poll() is None:
                    self.monitor.quit()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(process.GRACE_SECONDS)

    @property
    def log(self) -> bytes:
        """All that came over the console up to now; whole once the guest has been left."""
        return self._log or bytes(self.console.log)

    def boot(self, seconds: float) -> Mark:
        """Let it run, wait for init's `ready`: fields `release`, `cpus`."""
        with self.explained():
            self.monitor.execute("cont")
            return self._expect("ready", seconds, "boot")

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

    def command(self, line: str, answer: str = "ok", seconds: float = COMMAND_SECONDS) -> Mark:
        """Give init a command, wait for its answer. Raises GuestFailed when init says `error`."""
        with self.explained():
            self.console.type(line)
            mark = self._expect(answer, seconds, f"`{line}`")
            if mark.name == "error":
                raise GuestFailed(f"the guest refused `{line}`: {mark.text}")
            return mark

    def _expect(self, answer: str, seconds: float, stage: str) -> Mark:
        return self.console.expect_mark((answer, "error"), Deadline(seconds), stage, self._watch)

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


def qemu_version(qemu: str = QEMU) -> str:
    """The first line of `qemu --version`. Raises HostError when it is not installed."""
    done = process.run([qemu, "--version"], timeout=20, error=HostError)
    return done.stdout.decode(errors="replace").splitlines()[0]
