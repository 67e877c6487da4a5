# SPDX-License-Identifier: GPL-2.0-only
"""Where deterministic trials start: a guest that has booted, been ballooned and set up, once for all.

The snapshot is taken at one exact instruction, so that whoever takes it gets the same machine.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed.experiment import PAGE
from testbed.guest.deterministic import BootingGuest
from testbed.guest.qemu import Qemu
from testbed.guest.shape import Shape, identity
from testbed.host import files, owned, space
from testbed.host.errors import HostError, Interrupted
from testbed.host.files import locked

# What a trial is told goes into a file of this size, whatever it is: the snapshot knows the size.
RUN_BYTES = 4096
# Of older snapshots, 37 MB each, there is no need: taking one again costs some seconds.
KEEP = 64
# What taking one needs for a moment, with its log.
ROOM_BYTES = 64 << 20


@dataclass(frozen=True)
class Start:
    """All that a snapshot depends on.

    `memory` is the balloon's target in bytes, `setup` are init's commands, and `booted_by` is the version of
    the QEMU that took it, or would.
    """

    shape: Shape
    vmlinux: Path
    vmlinux_sha256: str
    initramfs: Path
    initramfs_sha256: str
    memory: int
    setup: tuple[str, ...]
    qemu: Qemu
    booted_by: str

    @functools.cached_property
    def key(self) -> str:
        """A hash of everything that can change the snapshot; paths cannot."""
        parts = {
            "machine": identity(self.shape),
            "vmlinux": self.vmlinux_sha256,
            "initramfs": self.initramfs_sha256,
            "memory": self.memory,
            "setup": self.setup,
            "qemu": self.booted_by,
            "run": RUN_BYTES,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def given(self, *run: str) -> dict[str, bytes]:
        """The files of a guest that executes these commands after the snapshot."""
        commands = "".join(f"{line}\n" for line in run).encode()
        if len(commands) > RUN_BYTES:
            raise AssertionError(f"{len(commands)} bytes of commands for a trial, {RUN_BYTES} fit")
        return {
            "balloon": str((self.shape.boot_memory - self.memory) // PAGE).encode(),
            "setup": "".join(f"{line}\n" for line in self.setup).encode() or b"\n",
            "run": commands.ljust(RUN_BYTES, b"\n"),
        }


def ensure(
    start: Start,
    plugin: Callable[[], Path],
    cache: Path,
    seconds: float,
    cancel: threading.Event | None = None,
) -> Path:
    """The snapshot, taken with the rendezvous plugin unless it is in the cache.

    `seconds` is how long a boot may take.

    Its console log is beside it. Raises GuestError as a boot does, BuildError, HostError; Interrupted.
    """
    home = owned.make(cache / "snapshots")
    path = home / start.key

    def check() -> None:
        if cancel and cancel.is_set():
            raise Interrupted("stopped")

    with locked(home / f"{start.key}.lock", check=check):
        if path.exists():
            path.touch()
        elif start.booted_by != start.qemu.version:
            raise HostError(f"only {start.booted_by} can take this snapshot; here is {start.qemu.version}")
        else:
            space.require(home, ROOM_BYTES, "a snapshot")
            with files.staged(path) as draft:
                log = _take(start, plugin(), draft, seconds, cancel)
                files.write(path.with_suffix(".log.gz"), gzip.compress(log, mtime=0))
            _forget_old(home)
    return path


def _take(start: Start, plugin: Path, path: Path, seconds: float, cancel: threading.Event | None) -> bytes:
    """Boot a guest and write its snapshot; return its console log."""
    guest = BootingGuest(
        start.shape,
        start.vmlinux,
        start.initramfs,
        given=start.given(),
        plugin=plugin,
        qemu=start.qemu.program,
        cancel=cancel,
        writable=(path.parent,),
    )
    with guest:
        guest.boot(start.memory, seconds)
        guest.save(path, seconds)
    return guest.log


def adopt(start: Start, taken: Path, cache: Path) -> None:
    """Move a snapshot that was taken elsewhere into the cache, on the same file system."""
    home = owned.make(cache / "snapshots")
    with locked(home / f"{start.key}.lock"):
        taken.rename(home / start.key)


def _forget_old(home: Path) -> None:
    ages: dict[Path, float] = {}
    for path in home.iterdir():
        # Whoever else takes one at the same time forgets old ones, too.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.suffix:
                ages[path] = path.stat().st_mtime
    # Their locks stay: somebody may be waiting for one.
    for path in sorted(ages, key=lambda path: ages[path])[:-KEEP]:
        path.unlink(missing_ok=True)
        path.with_suffix(".log.gz").unlink(missing_ok=True)
