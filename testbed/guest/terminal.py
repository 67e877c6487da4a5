# SPDX-License-Identifier: GPL-2.0-only
"""A person's terminal, connected to a guest's console."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator

from testbed.guest.console import Console
from testbed.wire import MARK

# Ctrl-], as in telnet: for when the guest does not answer any more.
ESCAPE = b"\x1d"


def interact(console: Console) -> None:
    """Pass keystrokes and output on until the guest's shell ends, QEMU ends or Ctrl-] is pressed."""
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    seen = b""
    with _raw(keyboard):
        while (chunk := console.raw_chunk(0.02)) != b"":
            if chunk:
                seen = seen[-256:] + chunk
                if (mark := MARK.search(seen)) and mark[1] == b"ok":
                    return
                os.write(screen, chunk)
            ready, _, _ = select.select([keyboard], [], [], 0)
            if ready:
                keys = os.read(keyboard, 4096)
                if ESCAPE in keys:
                    return
                # The end of a pipe at our standard input is the shell's, too.
                console.type_bytes(keys or b"\x04")
                if not keys:
                    keyboard = os.open(os.devnull, os.O_RDONLY | os.O_NONBLOCK)


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
