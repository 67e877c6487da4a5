# SPDX-License-Identifier: GPL-2.0-only
"""The initramfs: busybox, init and the workloads, the same bytes from the same sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed import process
from testbed.errors import HostError
from testbed.paths import REPOSITORY

IMAGES = REPOSITORY / "images"
DIRECTORIES = ("bin", "dev", "mnt", "proc", "run", "sys")
CFLAGS = ("-static", "-s", "-O2", "-Wall", "-Wextra", "-Wl,--build-id=none")
BUSYBOX = ("/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/busybox-static")
COMPILE_SECONDS = 60.0


@dataclass(frozen=True)
class Image:
    """An initramfs in the cache."""

    path: Path
    sha256: str


def build(cache: Path, more: Sequence[Path] = ()) -> Image:
    """The initramfs of this checkout's images/ and of `more` C sources, from the cache if it is there.

    Raises HostError when busybox or a static C library is missing, BuildError when a source does not
    compile.
    """
    compiler = process.run(["gcc", "--version"], timeout=10, error=HostError).stdout.splitlines()[0]
    busybox = find_busybox()
    sources = [*sorted((IMAGES / "src").glob("*.c")), *more]
    headers = sorted((IMAGES / "src").glob("*.h"))
    ingredients = [compiler, " ".join(CFLAGS).encode(), busybox.read_bytes()]
    ingredients += [
        path.name.encode() + b"\0" + path.read_bytes() for path in (*sources, *headers, IMAGES / "init")
    ]
    ingredients.append(Path(__file__).read_bytes())
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in ingredients)).hexdigest()
    path = cache / "images" / f"{key[:32]}.cpio"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            files = {"init": (IMAGES / "init").read_bytes(), "bin/busybox": busybox.read_bytes()}
            files |= {f"bin/{source.stem}": _compile(source, Path(scratch)) for source in sources}
            links = dict.fromkeys(_applets(busybox), "busybox")
            draft = Path(scratch) / "initramfs"
            draft.write_bytes(archive(files, links))
            draft.rename(path)
    return Image(path, hashlib.sha256(path.read_bytes()).hexdigest())


def archive(files: Mapping[str, bytes], links: Mapping[str, str]) -> bytes:
    """A cpio archive of executable files, symbolic links in /bin and the console's device node.

    The format is `newc` (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). Entries
    are sorted and belong to root; all times are zero. Written here because GNU cpio needs root to
    archive a device node.
    """
    directory = (stat.S_IFDIR | 0o755, b"", (0, 0))
    entries: dict[str, tuple[int, bytes, tuple[int, int]]] = dict.fromkeys(DIRECTORIES, directory)
    entries["dev/console"] = (stat.S_IFCHR | 0o600, b"", (5, 1))
    entries |= {name: (stat.S_IFREG | 0o755, data, (0, 0)) for name, data in files.items()}
    entries |= {f"bin/{name}": (stat.S_IFLNK | 0o777, to.encode(), (0, 0)) for name, to in links.items()}
    out = bytearray()
    for inode, (name, (mode, data, device)) in enumerate(sorted(entries.items()), start=1):
        out += _entry(inode, name, mode, data, device)
    return bytes(out + _entry(0, "TRAILER!!!", 0, b"", (0, 0)))


def _entry(inode: int, name: str, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _compile(source: Path, scratch: Path) -> bytes:
    binary = scratch / source.stem
    # Run in the source's directory: a path would end up in __FILE__ and in messages.
    process.run(["gcc", *CFLAGS, "-o", binary, source.name], cwd=source.parent, timeout=COMPILE_SECONDS)
    return binary.read_bytes()


def find_busybox() -> Path:
    """A statically linked busybox of this machine."""
    candidates = [*BUSYBOX, *filter(None, [shutil.which("busybox")])]
    for candidate in map(Path, candidates):
        if candidate.exists() and _is_static(candidate):
            return candidate
    raise HostError("no statically linked busybox is installed", "apt-get install busybox-static")


def _is_static(binary: Path) -> bool:
    # A dynamically linked program names its loader.
    return b"/ld-linux" not in binary.read_bytes() and b"/ld-musl" not in binary.read_bytes()


def _applets(busybox: Path) -> list[str]:
    listing = process.run([busybox, "--list"], timeout=10, error=HostError)
    return [name for name in listing.stdout.decode().split() if name != "busybox" and os.sep not in name]
