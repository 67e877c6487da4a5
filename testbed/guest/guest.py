# SPDX-License-Identifier: GPL-2.0-only
"""A running guest: QEMU, its QMP and its console as one context manager that leaves nothing behind.

What kinds of guests there are is in live.py and deterministic.py.
"""

from __future__ import annotations

import abc
import contextlib
import re
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.guest.console import Console
from testbed.guest.qemu import QEMU
from testbed.guest.qmp import Monitor
from testbed.guest.shape import Shape, Wiring, argv, by_hand
from testbed.host import process
from testbed.host.errors import BY_HAND, CONSOLE, GuestError, GuestFailed, GuestLost, Panic
from testbed.host.paths import temporary_directory
from testbed.host.process import Deadline
from testbed.wire import Mark

# How long QEMU may take to end by itself after a panic, so that the panic's last lines are kept.
LAST_WORDS_SECONDS = 3.0
COMMAND_SECONDS = 60.0


# How the kernel says so: fs/proc/proc_sysctl.c, process_sysctl_arg().
_NOT_SET = re.compile(rb"to set sysctl parameter '([^'=\r\n]+)=([^'\r\n]*)'(?:: ([^\r\n]*))?")
# What the guest's shell says when it cannot write.
_CANNOT_WRITE = re.compile(rb"(?:write error|can't create [^:\r\n]+): ([^\r\n]+)")
_IN_WORDS = {
    "device or resource busy": "it cannot be changed while the device is in use",
    "invalid argument": "the kernel does not take this value",
    "nonexistent directory": "this kernel has no such setting; is its option in `kernel.config`?",
    "no such file or directory": "this kernel has no such setting; is its option in `kernel.config`?",
    "numerical result out of range": "the value is out of range",
    "operation not permitted": "the kernel does not allow it now",
    "permission denied": "it can be read only",
}


def refusal(stage: str, text: str, log: bytes) -> str:
    """What is to be said when init answers `error TEXT`: of a setting its key, and why in plain words."""
    # `tell` has put the guest's time before it.
    verb, _, setting = re.sub(r"^ns=\d+ ", "", text).partition(" ")
    path, _, value = setting.partition(" ")
    if verb != "set":
        return f"the guest refused {stage}: {text}"
    key = path.removeprefix("/sys/")
    if path.startswith("/proc/sys/"):
        key = path.removeprefix("/proc/sys/").replace("/", ".")
    kind = "sysctl" if path.startswith("/proc/sys/") else "sysfs"
    reasons = _CANNOT_WRITE.findall(log)
    said = reasons[-1].decode(errors="replace").strip() if reasons else "it does not say why"
    return f"the guest refused `{kind}: {{{key}: {value}}}`: {_IN_WORDS.get(said.lower(), said)}"


class Guest(abc.ABC):
    """One boot of one kernel.

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

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            self._stderr = stack.enter_context(tempfile.TemporaryFile(dir=temporary_directory()))
            with theirs, self._wired(theirs.fileno(), stack) as wiring:
                words = argv(self.shape, *self._files, wiring)
                self.command_line = process.pasteable(words)
                self._child = process.spawn(
                    words, pass_fds=wiring.fds, stderr=self._stderr, writable=wiring.writable
                )
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

    @contextlib.contextmanager
    def _wired(self, qmp_fd: int, stack: contextlib.ExitStack) -> Iterator[Wiring]:
        """What QEMU is connected to on our side. What is put on `stack` stays until the guest is left, the
        rest until QEMU has been started."""
        yield Wiring(qmp_fd)

    @property
    def log(self) -> bytes:
        """All that came over the console up to now; whole once the guest has been left."""
        console = getattr(self, "console", None)
        return self._log or (bytes(console.log) if console else b"")

    def check_cancelled(self) -> None:
        """Raise Interrupted when the run has been stopped."""
        self.console.check_cancelled()

    @abc.abstractmethod
    def deadline(self, seconds: float) -> Deadline:
        """By when the guest has to have done something, by the clock that counts for its kind."""

    def require_boot_settings(self, ready: Mark) -> None:
        """Raise GuestFailed if the kernel did not take a sysctl of its command line."""
        with self.explained():
            if match := _NOT_SET.search(self.log):
                name, value, reason = (part.decode(errors="replace") for part in match.groups(b""))
                raise GuestFailed(
                    f"the guest refused `sysctl.{name}: {value}`: {reason or 'the kernel failed'}"
                )
            release = re.match(r"(\d+)\.(\d+)", ready.fields.get("release", ""))
            if (
                " sysctl." in f" {self.shape.cmdline}"
                and release
                and tuple(map(int, release.groups())) < (5, 8)
            ):
                raise GuestFailed(
                    f"Linux {release[0]} takes no lists of sysctls when it boots; 5.8 and later do"
                )

    def require_all_cpus(self, ready: Mark) -> None:
        """Raise GuestFailed if fewer CPUs came up than the machine has."""
        if (cpus := ready.fields.get("cpus")) != str(self.shape.vcpus):
            raise GuestFailed(f"the guest brought up {cpus} of {self.shape.vcpus} CPUs")

    def answer(self, name: str, seconds: float = COMMAND_SECONDS, stage: str = "a command") -> Mark:
        """Wait for init's answer. Raises GuestFailed when it is `error`."""
        deadline = self.deadline(seconds)
        with self.explained():
            mark = self.console.expect_mark((name, "error"), deadline, stage, self._watch)
            if mark.name == "error":
                raise GuestFailed(refusal(stage, mark.text, self.log))
            return mark

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
                        f"{CONSOLE}\n" + process.tail(self.log.decode(errors="replace")),
                        f"{BY_HAND} {process.pasteable(by_hand(self.shape, *self._files))}",
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
