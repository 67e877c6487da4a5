# SPDX-License-Identifier: GPL-2.0-only
"""What several tests need."""

from __future__ import annotations

from pathlib import Path


def children_of(pid: int) -> list[str]:
    """Command lines of the live children of a process, zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = stat.read_text().rpartition(")")
            state, parent = rest.split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(stat.with_name("cmdline").read_text().replace("\0", " ").strip())
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended meanwhile.
    return found
