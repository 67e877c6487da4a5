# SPDX-License-Identifier: GPL-2.0-only
"""The guest's console: always drained, expected on with pexpect."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Callable
from typing import IO, Any

import pexpect
from pexpect.spawnbase import SpawnBase

from testbed import wire
from testbed.host.errors import GuestFailed, GuestLost, Hang, Interrupted, Panic
from testbed.host.process import Deadline

# A trial's console log is some 100 KB, with 512 tasks 3 MB; who writes this much will not stop by itself.
FLOOD_BYTES = 8 * 1024 * 1024
PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)[\r\n]")
_READ_BYTES = 1 << 16
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031


class Flood(GuestFailed):
    """The console was flooded."""

    outcome = "flood"


class Console(SpawnBase):  # type: ignore[type-arg]
    """pexpect over a pair of pipes that a thread of its own reads, whoever is waiting or not.

    `log` is all that was read so far, byte for byte; `slice_seconds` how long it takes at most until somebody
    who waits for a mark sees what else there is to be seen.
    """

    slice_seconds = 0.25

    def __init__(self, output: IO[bytes], input_: IO[bytes], cancel: threading.Event) -> None:
        # The window is larger than a read, so that no mark can fall between two windows.
        super().__init__(timeout=None, maxread=_READ_BYTES, searchwindowsize=2 * _READ_BYTES)
        self.log = bytearray()
        self._output, self._input, self._cancel = output, input_, cancel
        self._form = wire.Form()
        # What nobody has taken yet; a guest's UART writes byte by byte, and a byte is not worth a search.
        self._pending = bytearray()
        self._ended = False
        self._news = threading.Condition()
        _enlarge_pipe(output.fileno())
        self._drain = threading.Thread(target=self._read_all, name="console", daemon=True)
        self._drain.start()

    def type(self, line: str) -> None:
        """Type a line at the guest's console. Raises GuestLost when QEMU is gone."""
        try:
            self._input.write(line.encode("ascii") + b"\n")
        except OSError as gone:
            raise GuestLost("QEMU closed the console") from gone

    def expect_mark(
        self, names: tuple[str, ...], deadline: Deadline, stage: str, watch: Callable[[], None]
    ) -> wire.Mark:
        """Wait for the next of some marks; call `watch` while nothing comes.

        Raises Panic, Hang (deadline over), Flood, GuestLost (QEMU ended), Interrupted or what `watch` does.
        """
        while True:
            patterns: list[Any] = [self._form.mark, PANIC, pexpect.EOF, pexpect.TIMEOUT]
            index = self.expect(patterns, timeout=min(self.slice_seconds, deadline.remaining))
            self.check_cancelled()
            if index == 0:
                mark = wire.mark(_match(self.match))
                if mark.name == "user":
                    self._form = wire.form(_match(self.match)[0])
                if mark.name in names:
                    return mark
            elif index == 1:
                raise Panic(f"{stage}: kernel panic: {_match(self.match)[1].decode(errors='replace')}")
            elif index == 2:
                raise GuestLost(f"{stage}: QEMU ended unexpectedly")
            elif len(self.log) > FLOOD_BYTES:
                raise Flood(f"{stage}: the console was flooded with {len(self.log) >> 20} MiB")
            else:
                watch()
            if deadline.expired:
                raise Hang(f"{stage}: no {' or '.join(names)} within {deadline}")

    def check_cancelled(self) -> None:
        """Raise Interrupted when the run has been stopped."""
        if self._cancel.is_set():
            raise Interrupted("stopped")

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> bytes:
        """At most `size` bytes; for pexpect. Raises pexpect.EOF at the end."""
        data = self._take(size, timeout)
        if data is None:
            raise pexpect.TIMEOUT("nothing on the console")
        if not data:
            self.flag_eof = True
            raise pexpect.EOF("end of the console")
        return data

    def raw_chunk(self, timeout: float) -> bytes | None:
        """What came next, for a person's terminal; b"" at the end, None if nothing came in time."""
        return self._take(_READ_BYTES, timeout)

    def _take(self, size: int, timeout: float | None) -> bytes | None:
        with self._news:
            if not self._news.wait_for(lambda: self._pending or self._ended, timeout):
                return None
            data = bytes(self._pending[:size])
            del self._pending[:size]
            return data

    def type_bytes(self, data: bytes) -> None:
        """Pass on a person's keystrokes as they are."""
        self._input.write(data)

    def finish(self, timeout: float) -> bytes:
        """The whole log, once QEMU has ended and closed its side."""
        self._drain.join(timeout)
        return bytes(self.log)

    def _read_all(self) -> None:
        while chunk := _read(self._output.fileno()):
            # What comes after a flood is not evidence of anything.
            if len(self.log) <= FLOOD_BYTES:
                with self._news:
                    self.log += chunk
                    self._pending += chunk
                    self._news.notify()
        with self._news:
            self._ended = True
            self._news.notify()


def _enlarge_pipe(fd: int) -> None:
    # Room for a whole trial's console, so that the guest never waits for its reader. Where that is
    # over the user's limit for pipes, the default has to do.
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_BYTES)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""


def _match(match: Any) -> re.Match[bytes]:
    assert isinstance(match, re.Match)
    return match
