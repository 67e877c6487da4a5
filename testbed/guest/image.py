# SPDX-License-Identifier: GPL-2.0-only
"""The initramfs: busybox, init, the workloads and files of the user: the same bytes from the same sources."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from testbed.host import process
from testbed.host.errors import HostError, SpecError
from testbed.host.files import once
from testbed.host.paths import data_directory

IMAGES = data_directory() / "images"
DIRECTORIES = ("bin", "dev", "mnt", "proc", "run", "sys")
CFLAGS = ("-static", "-s", "-O2", "-Wall", "-Wextra", "-Wl,--build-id=none")
BUSYBOX = ("/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/busybox-static")
COMPILE_SECONDS = 60.0
LDD_SECONDS = 20.0
# What init mounts: a file there would be hidden.
MOUNTED = ("dev", "mnt", "proc", "run", "sys")
# Where a loader looks for libraries, whatever is configured here.
SYSTEM_LIBRARIES = ("/lib", "/usr/lib")
ELF = b"\x7fELF"


@dataclass(frozen=True)
class Image:
    """An initramfs in the cache."""

    path: Path
    sha256: str


def build(cache: Path, more: Sequence[Path] = (), files: Mapping[str, Path] | None = None) -> Image:
    """The initramfs of testbed's images/ and of `more` C sources, from the cache if it is there.

    `files` are brought along as they are: path in the guest, without the first slash, -> file here.

    Raises HostError when busybox or a static C library is missing, BuildError when a source does not
    compile.
    """
    compiler = process.run(["gcc", "--version"], timeout=10, error=HostError).stdout.splitlines()[0]
    busybox = find_busybox()
    sources = [*_sources(), *more]
    brought = {name: (_mode(path), path.read_bytes()) for name, path in sorted((files or {}).items())}
    common = sorted((IMAGES / "lib").iterdir())
    ingredients = [compiler, " ".join(CFLAGS).encode(), busybox.read_bytes()]
    ingredients += [
        path.name.encode() + b"\0" + path.read_bytes() for path in (*sources, *common, IMAGES / "init")
    ]
    ingredients += [f"{mode:o} {name}\0".encode() + data for name, (mode, data) in brought.items()]
    ingredients.append(Path(__file__).read_bytes())
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in ingredients)).hexdigest()
    path = cache / "images" / f"{key[:32]}.cpio"

    def make(draft: Path) -> None:
        programs = {"init": (IMAGES / "init").read_bytes(), "bin/busybox": busybox.read_bytes()}
        programs |= {f"bin/{source.stem}": _compile(source, draft.parent) for source in sources}
        links = dict.fromkeys(_applets(busybox), "busybox")
        contents = {name: (0o755, data) for name, data in programs.items()}
        draft.write_bytes(archive(contents | brought, links))

    once(path, make)
    return Image(path, hashlib.sha256(path.read_bytes()).hexdigest())


def _sources() -> list[Path]:
    return sorted((IMAGES / "src").glob("*.c"))


def _mode(path: Path) -> int:
    # Whether it can be run is all that counts; the rest is this machine's umask.
    return 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644


def archive(files: Mapping[str, tuple[int, bytes]], links: Mapping[str, str]) -> bytes:
    """A cpio archive of files (mode and content), symbolic links in /bin and the console's device node.

    The format is `newc` (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). Entries
    are sorted and belong to root; all times are zero. A file goes before a link of the same name. Written
    here because GNU cpio needs root to archive a device node.
    """
    entries = {f"bin/{name}": (stat.S_IFLNK | 0o777, to.encode(), (0, 0)) for name, to in links.items()}
    entries |= {name: (stat.S_IFREG | mode, data, (0, 0)) for name, (mode, data) in files.items()}
    entries["dev/console"] = (stat.S_IFCHR | 0o600, b"", (5, 1))
    # The kernel makes no parent by itself. Sorted, a directory comes before what is in it.
    parents = {str(parent) for name in entries for parent in PurePosixPath(name).parents} - {"."}
    entries |= dict.fromkeys({*DIRECTORIES, *parents}, (stat.S_IFDIR | 0o755, b"", (0, 0)))
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
    common = IMAGES / "lib"
    words = ["gcc", *CFLAGS, f"-I{os.path.relpath(common, source.parent)}", "-o", str(binary), source.name]
    words += [os.path.relpath(path, source.parent) for path in sorted(common.glob("*.c"))]
    process.run(words, cwd=source.parent, timeout=COMPILE_SECONDS)
    return binary.read_bytes()


def gather(program: str, files: Sequence[str]) -> dict[str, Path]:
    """What a user's command needs: path in the guest, without the first slash, -> file here.

    `files` are PATH, which becomes bin/NAME, or PATH:GUESTPATH. `program` is one of them, or one of the
    image's own, or a program of this machine, which is then brought along. So are the loaders and libraries
    of all that is dynamically linked. Raises SpecError that names the key and says what to do.
    """
    gathered = dict(_given(text) for text in files)
    name = program.lstrip("/") if program.startswith("/") else f"bin/{program}"
    own = {"init", "bin/busybox", *(f"bin/{source.stem}" for source in _sources())}
    for taken in sorted(own & set(gathered)):
        raise SpecError(f"workload.files: /{taken} is the guest's own", "give the file another name there")
    if name not in gathered and name not in own | {f"bin/{applet}" for applet in _applets(find_busybox())}:
        # A relative path would mean something else in the guest.
        here = None if "/" in program and not program.startswith("/") else shutil.which(program)
        if here is None:
            raise SpecError(
                f"workload.command: there is no program `{program}`",
                "install it here, or bring it along: `files: [PATH]`, then `command: [NAME, ...]`",
            )
        gathered[name] = Path(here)
    if name in gathered:
        _check_program(program, gathered[name], gathered)
    for path in list(gathered.values()):
        for needed, library in _libraries(path, {PurePosixPath(there).name for there in gathered}):
            gathered.setdefault(needed, library)
    return gathered


def _given(text: str) -> tuple[str, Path]:
    """An entry of `files`: path in the guest and file here."""
    here, _, there = text.partition(":")
    path = Path(here)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise SpecError(
            f"workload.files: {here} is not a file that can be read", "name the files of a directory"
        )
    name = PurePosixPath(there.lstrip("/") or f"bin/{path.name}")
    if ".." in name.parts or name.parts[0] in MOUNTED:
        raise SpecError(
            f"workload.files: {text}: a file cannot be at /{name} in the guest",
            f"not beneath {', '.join(f'/{mounted}' for mounted in MOUNTED)}; /bin and /data can be",
        )
    return str(name), path


def _check_program(program: str, path: Path, gathered: Mapping[str, Path]) -> None:
    """Raise SpecError when a program could not be started in the guest."""
    if not _mode(path) & stat.S_IXUSR:
        raise SpecError(f"workload.command: {path} is not executable", f"chmod +x {path}")
    head = path.read_bytes()[:256]
    if not head.startswith(b"#!"):
        return
    interpreter = head[2:].split(b"\n")[0].decode(errors="replace").split()[0]
    known = {*gathered, *(f"bin/{applet}" for applet in _applets(find_busybox()))}
    if interpreter.lstrip("/") not in known:
        raise SpecError(
            f"workload.command: {program} is a script for {interpreter}, which the guest has not",
            f"write it for /bin/sh, or bring the interpreter along: `files: [{interpreter}:{interpreter}]`",
        )


def _libraries(path: Path, brought: set[str]) -> Iterator[tuple[str, Path]]:
    """The loader and the libraries of a program, as paths in the guest and files here.

    `brought`: names of files that come along anyway.
    """
    with path.open("rb") as file:
        if file.read(len(ELF)) != ELF:
            return
    # It fails for what is statically linked, and says so.
    listing = process.run(["ldd", path], timeout=LDD_SECONDS, error=HostError, check=False).stdout.decode()
    missing = [name for name in re.findall(r"^\s+(\S+) => not found", listing, re.M) if name not in brought]
    if missing:
        raise SpecError(
            f"workload.command: {path} needs {', '.join(missing)}, which this machine has not",
            f"install it, or bring it along: `files: [PATH:/lib/{missing[0]}]`",
        )
    # `NAME => PATH (ADDRESS)`, and `PATH (ADDRESS)` for the loader.
    for name, library in re.findall(r"^\s+(?:(\S+) => )?(/\S+) \(0x", listing, re.M):
        there = os.path.normpath(library)
        if name and not there.startswith(SYSTEM_LIBRARIES):
            # Found by configuration or environment, of which the guest has none.
            there = f"/lib/{PurePosixPath(name).name}"
        yield there.lstrip("/"), Path(library)


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
