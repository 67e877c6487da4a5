# SPDX-License-Identifier: GPL-2.0-only
"""`testbed clean`, and what `testbed doctor` says of the cache: what is kept where, and how much it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.host import owned

# What is in a directory of the cache, and whether who uses it has locked what is in it, one by one; else the
# directory as a whole.
ROOMS = {
    "kernels": ("kernels, built", True),
    "work": ("work trees and objects, for the next kernel", True),
    "ccache": ("what the compiler made", False),
    "sources": ("kernel sources, unpacked", True),
    "git": ("kernel sources, from git", True),
    "debian": ("kernel sources, packed", True),
    "apt": ("lists of packages", False),
    "snapshots": ("booted guests", False),
    "profiles": ("what trials executed", True),
    "images": ("initramfs images", True),
    "qemu": ("private QEMUs", True),
    "plugins": ("plugins of QEMU", True),
    "patches": ("patches from standard input", False),
    "matplotlib": ("fonts, for pictures", False),
    "accel": ("whether KVM works", False),
}
_BLOCK = 512  # of st_blocks


@dataclass(frozen=True)
class Kept:
    """What there is in a directory of the cache, in bytes on the disk."""

    directory: Path
    what: str
    size: int


@dataclass(frozen=True)
class Cleaned:
    """So many bytes that were freed, and what stays since another process uses it."""

    freed: int
    in_use: tuple[Path, ...]


def kept(cache: Path) -> list[Kept]:
    """What there is in the cache, the largest first. A file of several names counts once, in the first."""
    seen: set[tuple[int, int]] = set()
    found = [Kept(cache / name, what, _size(cache / name, seen)) for name, (what, _) in ROOMS.items()]
    return sorted((room for room in found if room.directory.is_dir()), key=lambda room: -room.size)


def clean(cache: Path) -> Cleaned:
    """Free the cache, but for what living processes use. All of it can be had again, which takes its time."""
    before = sum(room.size for room in kept(cache))
    used = [path for path in _things(cache) if not owned.remove(path)]
    return Cleaned(before - sum(room.size for room in kept(cache)), tuple(used))


def _things(cache: Path) -> Iterator[Path]:
    """What goes or stays as a whole."""
    for name, (_, one_by_one) in ROOMS.items():
        room = cache / name
        if not one_by_one:
            yield room
        elif room.is_dir():
            # Of a lock that is removed while somebody waits for it, there would be two.
            yield from (path for path in sorted(room.iterdir()) if not path.name.endswith("lock"))


def _size(directory: Path, seen: set[tuple[int, int]]) -> int:
    total, waiting = 0, [directory]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            # Gone meanwhile, or never there.
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * _BLOCK
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
    return total
