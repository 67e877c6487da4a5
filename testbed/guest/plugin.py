# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's plugins that are ours: compiled from C for the QEMU at hand, once."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from testbed.guest.shape import file_option
from testbed.host import files, process
from testbed.host.errors import HostError

CFLAGS = ("-shared", "-fPIC", "-O2", "-pthread", "-Wall", "-Wextra")
COMPILE_SECONDS = 60.0


def compiled(source: Path, qemu: str, version: str, cache: Path) -> Path:
    """A plugin for a QEMU (`version` is what it says of itself), compiled unless it is in the cache.

    Raises HostError when it has no plugins, BuildError when the source does not compile.
    """
    parts = [source.read_bytes(), version.encode(), " ".join(CFLAGS).encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    path = cache / "plugins" / f"{key}.so"
    return files.once(path, lambda draft: _compile(source, draft, _oldest_api(source, qemu, draft.parent)))


def _oldest_api(source: Path, qemu: str, scratch: Path) -> int:
    """The oldest version of the plugin interface that a QEMU takes; it says so when given an older one."""
    probe = scratch / "probe.so"
    _compile(source, probe, 0)
    words = [qemu, "-nodefaults", "-display", "none", "-machine", "none", "-plugin", file_option(probe)]
    done = process.run(words, timeout=20, error=HostError, check=False)
    output = (done.stderr + done.stdout).decode(errors="replace")
    match = re.search(r"minimum version of (\d+)", output)
    if match is None:
        raise HostError(f"{qemu}: takes no plugins: {output.strip() or 'it says nothing'}")
    return int(match[1])


def _compile(source: Path, target: Path, api: int) -> None:
    words = ["gcc", *CFLAGS, f"-DAPI={api}", "-o", str(target), source.name]
    process.run(words, cwd=source.parent, timeout=COMPILE_SECONDS)
