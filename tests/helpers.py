# SPDX-License-Identifier: GPL-2.0-only
"""What several tests need."""

from __future__ import annotations

import os
from pathlib import Path


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
