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

from testbed import wire
from testbed.guest.console import Console
from testbed.host.errors import SpecError

# Ctrl-], as in telnet: for when the guest does not answer any more.
ESCAPE = b"\x1d"


def require_foreground() -> None:
    """Raise SpecError for a job in the background: it would be stopped as soon as it reads what is typed."""
    # A terminal may be another session's, which stops nobody.
    with contextlib.suppress(OSError):
        keyboard = sys.stdin.fileno()
        if os.isatty(keyboard) and os.tcgetpgrp(keyboard) != os.getpgrp():
            raise SpecError("boot: the guest's shell needs the terminal: run this in the foreground")


def size() -> tuple[int, int] | None:
    """Rows and columns of this terminal; None where there is none, or it does not know."""
    try:
        columns, rows = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return None
    return (rows, columns) if rows and columns else None


def interact(console: Console) -> None:
    """Pass keystrokes and output on until the guest's shell ends, QEMU ends or Ctrl-] is pressed."""
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    seen, marks = b"", wire.Form().mark
    with _raw(keyboard):
        while (chunk := console.raw_chunk(0.02)) != b"":
            if chunk:
                seen = seen[-256:] + chunk
                if (mark := marks.search(seen)) and mark[1] == b"ok":
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
