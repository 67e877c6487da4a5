# SPDX-License-Identifier: GPL-2.0-only
"""What several tests need."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# Of a Disk.
DISK_BYTES = 4 << 20


def cpu_seconds() -> float:
    """What this process and its children that have ended took of the CPUs: other tests beside it do not
    count."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def children_of(pid: int) -> dict[int, str]:
    """Command lines of the live children of a process, by their process ids; zombies left out."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = stat.read_text().rpartition(")")
            state, parent = rest.split()[:2]
            if int(parent) == pid and state != "Z":
                children[int(stat.parent.name)] = (
                    stat.with_name("cmdline").read_text().replace("\0", " ").strip()
                )
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended meanwhile.
    return children


class Disk:
    """A small file system that can be filled, up to some bytes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._filling = directory / "filling"

    def fill(self, left: int = 0) -> None:
        with self._filling.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as full:
                assert full.errno == errno.ENOSPC
            file.truncate(max(0, file.tell() - left))

    def free(self) -> None:
        self._filling.unlink()


def told(disk: Disk) -> str:
    """What is said of it, with no directory but that and one line."""
    full = r"no space left there \(\d MiB free\)|0 MiB free, and [a-z ]+ takes about 1 MiB"
    return rf"^{disk.directory}[^ :\n]*: ({full}): make some [^\n]*$"
