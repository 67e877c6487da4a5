# SPDX-License-Identifier: GPL-2.0-only
"""Locks on what several processes share in the cache."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from testbed.host.errors import HostError
from testbed.host.process import Deadline

WAIT_SECONDS = 7200.0  # for another process, which may build a kernel


@contextmanager
def locked(
    path: Path, progress: Callable[[str], None] = lambda _: None, check: Callable[[], None] = lambda: None
) -> Iterator[IO[bytes]]:
    """Hold the lock `path`, an open file, against other processes. Raises HostError after two hours.

    `check` is called while it waits, and may raise to give up.

    The lock is that of the open file. It is let go when this process and every child that has the file
    as its standard output are gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = Deadline(WAIT_SECONDS)
    waiting = False
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as busy:
                if deadline.expired:
                    raise HostError(f"{path}: another process has held this lock for hours") from busy
            if not waiting:
                progress(f"waiting for another process that works in {path.parent}")
                waiting = True
            check()
            time.sleep(0.1)
        yield file
