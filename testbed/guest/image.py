# SPDX-License-Identifier: GPL-2.0-only
"""The initramfs: busybox, init, the workloads and files of the user: the same bytes from the same sources."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from testbed.host import process
from testbed.host.errors import HostError, SpecError
from testbed.host.files import MiB, once, read
from testbed.host.paths import data_directory, split_file

IMAGES = data_directory() / "images"
WRAPPER_SCRIPT = Path(__file__).with_name("wrapper.sh")
# Becomes /bin/testbed-start in guests that run a program of the user's.
START_SOURCE = Path(__file__).with_name("testbed-start.c")
DIRECTORIES = ("bin", "dev", "mnt", "proc", "run", "sys")
CFLAGS = ("-static", "-s", "-O2", "-Wall", "-Wextra", "-Wl,--build-id=none")
BUSYBOX = ("/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/busybox-static")
COMPILE_SECONDS = 60.0
LDD_SECONDS = 20.0
# What may come along in all, and how deep a directory may be. Below `files: [/]`, above any toolchain.
MOST_BYTES, MOST_FILES, MOST_DEPTH = 1024 * MiB, 100_000, 100
# What init mounts: a file there would be hidden.
MOUNTED = ("dev", "mnt", "proc", "run", "sys")
# Where a loader looks for libraries, whatever is configured here.
SYSTEM_LIBRARIES = ("/lib", "/usr/lib")
ELF = b"\x7fELF"
# What everybody takes for directories: no file can be brought as one of these.
GUEST_DIRECTORIES = {
    *(
        "bin",
        "boot",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "opt",
        "root",
        "sbin",
        "srv",
        "tmp",
        "usr",
        "var",
    ),
    *(
        f"usr/{name}"
        for name in ("bin", "include", "lib", "lib32", "lib64", "libexec", "local", "sbin", "share")
    ),
    *("var/lib", "var/log", "var/tmp", "usr/local/bin", "usr/local/lib"),
}
# Interpreters with a library of modules.
_WITH_LIBRARY = re.compile(r"(python|perl|ruby|tclsh)[0-9.]*")
# Where Python has its library and what is compiled of it, and where a /bin/python3 finds it.
_PYTHON = """
import sys, sysconfig
print(sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED"), sep="\\n")
print(f"{sys.platlibdir}/python{sys.version_info[0]}.{sys.version_info[1]}")
"""
# Of the library, what no program in a guest is for, and other people's packages.
_LEFT_OUT = {
    *("__pycache__", "dist-packages", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "pydoc_data"),
    *("site-packages", "test", "tests", "tkinter", "turtle", "turtledemo", "_tkinter"),
}


@dataclass(frozen=True)
class Image:
    """An initramfs in the cache."""

    path: Path
    sha256: str


def build(cache: Path, more: Sequence[Path] = (), files: Mapping[str, Path] | None = None) -> Image:
    """The initramfs of testbed's images/ and of `more` C sources, from the cache if it is there.

    `files` are brought along as they are: path in the guest, without the first slash, -> file or empty
    directory here.

    Raises HostError when busybox or a static C library is missing, BuildError when a source does not
    compile.
    """
    compiler = process.run(["gcc", "--version"], timeout=10, error=HostError).stdout.splitlines()[0]
    busybox = find_busybox()
    sources = [*_sources(), *more]
    given = sorted((files or {}).items())
    brought = {name: (_mode(path), _content(path)) for name, path in given if path.is_file()}
    directories = [name for name, path in given if path.is_dir()]
    common = sorted((IMAGES / "lib").iterdir())
    ingredients = [compiler, " ".join(CFLAGS).encode(), busybox.read_bytes()]
    ingredients += [
        path.name.encode() + b"\0" + path.read_bytes() for path in (*sources, *common, IMAGES / "init")
    ]
    ingredients += [f"{mode:o} {name}\0".encode() + data for name, (mode, data) in brought.items()]
    ingredients += [f"{name}/\0".encode() for name in directories]
    ingredients.append(Path(__file__).read_bytes())
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in ingredients)).hexdigest()
    path = cache / "images" / f"{key[:32]}.cpio"

    def make(draft: Path) -> None:
        programs = {"init": (IMAGES / "init").read_bytes(), "bin/busybox": busybox.read_bytes()}
        programs |= {f"bin/{source.stem}": _compile(source, draft.parent) for source in sources}
        links = dict.fromkeys(_applets(busybox), "busybox")
        contents = {name: (0o755, data) for name, data in programs.items()}
        draft.write_bytes(archive(contents | brought, links, directories))

    once(path, make)
    return Image(path, hashlib.sha256(path.read_bytes()).hexdigest())


def _sources() -> list[Path]:
    return sorted((IMAGES / "src").glob("*.c"))


def _content(path: Path) -> bytes:
    try:
        return read(path, MOST_BYTES)
    except OSError as unreadable:
        raise SpecError(f"workload.files: {path}: {unreadable.strerror}") from unreadable


def _mode(path: Path) -> int:
    # Whether it can be run is all that counts; the rest is this machine's umask.
    return 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644


def archive(
    files: Mapping[str, tuple[int, bytes]], links: Mapping[str, str], directories: Sequence[str] = ()
) -> bytes:
    """A cpio archive of files (mode and content), symbolic links in /bin, directories and the console's node.

    The format is `newc` (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). Entries
    are sorted and belong to root; all times are zero. A file goes before a link of the same name. Written
    here because GNU cpio needs root to archive a device node.
    """
    entries = {f"bin/{name}": (stat.S_IFLNK | 0o777, to.encode(), (0, 0)) for name, to in links.items()}
    entries |= {name: (stat.S_IFREG | mode, data, (0, 0)) for name, (mode, data) in files.items()}
    entries["dev/console"] = (stat.S_IFCHR | 0o600, b"", (5, 1))
    # The kernel makes no parent by itself. Sorted, a directory comes before what is in it.
    parents = {str(parent) for name in entries for parent in PurePosixPath(name).parents} - {"."}
    entries |= dict.fromkeys({*DIRECTORIES, *directories, *parents}, (stat.S_IFDIR | 0o755, b"", (0, 0)))
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


def with_symbols(name: str, scratch: Path) -> bytes | None:
    """A program of the image's with its symbols, which an image has not; None if it has no such program.

    Its code is the same. Raises BuildError.
    """
    source = next((source for source in _sources() if source.stem == name), None)
    return _compile(source, scratch, tuple(flag for flag in CFLAGS if flag != "-s")) if source else None


def _compile(source: Path, scratch: Path, flags: Sequence[str] = CFLAGS) -> bytes:
    binary = scratch / source.stem
    # Run in the source's directory: a path would end up in __FILE__ and in messages.
    common = IMAGES / "lib"
    words = ["gcc", *flags, f"-I{os.path.relpath(common, source.parent)}", "-o", str(binary), source.name]
    words += [os.path.relpath(path, source.parent) for path in sorted(common.glob("*.c"))]
    process.run(words, cwd=source.parent, timeout=COMPILE_SECONDS)
    return binary.read_bytes()


def gather(program: str, files: Sequence[str]) -> dict[str, Path]:
    """What a user's command needs: path in the guest, without the first slash, -> what it is here.

    That is a file, or an empty directory. `files` are as experiment.WorkloadSpec has them. `program` is one
    of them, or one of the image's own, or a program of this machine, which is then brought along. So are the
    loaders and libraries of all that is dynamically linked, and the interpreters of scripts. Raises SpecError
    that names the key and says what to do, of `files` for all of them.
    """
    gathered = _all_given(files)
    name = program.lstrip("/") if program.startswith("/") else f"bin/{program}"
    own = {
        "init",
        "bin/busybox",
        f"bin/{START_SOURCE.stem}",
        *(f"bin/{source.stem}" for source in _sources()),
    }
    applets = {f"bin/{applet}" for applet in _applets(find_busybox())}
    for taken in sorted(own & set(gathered)):
        raise SpecError(f"workload.files: /{taken} is the guest's own", "give the file another name there")
    if name not in gathered and name not in own | applets:
        # A relative path would mean something else in the guest.
        here = None if "/" in program and not program.startswith("/") else _here(program)
        if here is None:
            raise SpecError(
                f"workload.command: there is no program `{program}`",
                "install it here, or bring it along: `files: [PATH]`, then `command: [NAME, ...]`",
            )
        gathered[name] = here
    if name in gathered and not _mode(gathered[name]) & stat.S_IXUSR:
        path = gathered[name]
        raise SpecError(f"workload.command: {path} is not executable", f"chmod +x {path}")
    programs = [there for there in gathered if there == name or str(PurePosixPath(there).parent) == "bin"]
    for there in programs:
        _bring_interpreter(gathered[there], gathered, own | applets)
    for there in list(gathered):
        _bring_library(there, gathered)
    for path in list(gathered.values()):
        for needed, library in _libraries(path, {PurePosixPath(there).name for there in gathered}):
            gathered.setdefault(needed, library)
    for there in gathered:
        for parent in map(str, PurePosixPath(there).parents):
            if parent in gathered:
                raise SpecError(f"workload.files: /{parent} cannot be a file, as /{there} is beneath it")
    return gathered


def _all_given(files: Sequence[str]) -> dict[str, Path]:
    gathered: dict[str, Path] = {}
    mistakes = []
    size = 0
    for text in files:
        try:
            for there, path in _given(text):
                size += path.stat().st_size
                if size > MOST_BYTES or len(gathered) >= MOST_FILES:
                    most = f"{MOST_BYTES // MiB} MiB or {MOST_FILES} files"
                    raise SpecError(f"workload.files: with {text} more than {most} would come along")
                if gathered.setdefault(there, path) != path:
                    raise SpecError(
                        f"workload.files: /{there} is brought twice: {gathered[there]} and {path}"
                    )
        except SpecError as bad:
            mistakes.append(str(bad))
    if mistakes:
        raise SpecError("\n".join(mistakes))
    return gathered


def _given(text: str) -> Iterator[tuple[str, Path]]:
    """What an entry of `files` is: paths in the guest, and files and empty directories here."""
    here, there = split_file(text)
    path = Path(here)
    if not path.exists() or not os.access(path, os.R_OK):
        raise SpecError(f"workload.files: {here} is not a file or directory that can be read")
    whole = path.is_dir()
    if there is None:
        there = f"/{path.name}" if whole else f"/bin/{path.name}"
    name = PurePosixPath(there.lstrip("/"))
    inside = not whole and (there.endswith("/") or str(name) in GUEST_DIRECTORIES)
    if inside or there in ("", ".") or there.endswith("/."):
        place = PurePosixPath("/", there or ".", path.name)
        raise SpecError(
            f"workload.files: {text}: {there or 'nothing'} is no name for a file in the guest",
            f"say what it is to be called there: `{here}:{place}`",
        )
    for beneath, found in _walk(path):
        inner = name / beneath
        if ".." in inner.parts or not inner.parts or inner.parts[0] in MOUNTED:
            raise SpecError(
                f"workload.files: {text}: a file cannot be at /{inner} in the guest",
                f"not beneath {', '.join(f'/{mounted}' for mounted in MOUNTED)}; /bin and /data can be",
            )
        yield str(inner), found


def _walk(path: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[PurePosixPath, Path]]:
    """A file, or all that is in a directory, links followed: path beneath it, and file or empty directory."""
    if path.is_file() and _can_be_read(path):
        yield PurePosixPath(), path
        return
    real = path.resolve()
    if not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
        raise SpecError(f"workload.files: {path} is neither a file nor a directory that can be read")
    if real in above:
        raise SpecError(f"workload.files: {path} is a link to a directory that it is in")
    if len(above) > MOST_DEPTH:
        raise SpecError(f"workload.files: {path} is more than {MOST_DEPTH} directories deep")
    entries = sorted(path.iterdir())
    if not entries:
        yield PurePosixPath(), path
    for entry in entries:
        for inner, found in _walk(entry, (*above, real)):
            yield PurePosixPath(entry.name) / inner, found


def _can_be_read(path: Path) -> bool:
    """Whether anything can, which of a file in /proc only an attempt shows."""
    try:
        with path.open("rb", buffering=0) as file:
            os.set_blocking(file.fileno(), False)
            file.read(1)
    except OSError:
        return False
    return True


def _bring_interpreter(script: Path, gathered: dict[str, Path], there: Collection[str]) -> None:
    """Bring what a script is for. Raises SpecError when there is no such thing."""
    head = b""
    if script.is_file():
        with script.open("rb") as file:
            head = file.read(256)
    if not head.startswith(b"#!"):
        return
    first, _, _ = head[2:].partition(b"\n")
    words = first.decode(errors="replace").split()
    if not words:
        raise SpecError(
            f"workload.command: the first line of {script} names no interpreter", "as in `#!/bin/sh`"
        )
    if first.endswith(b"\r"):
        raise SpecError(
            f"workload.command: lines of {script} end with CR LF; the kernel looks for `{words[0]}\\r`",
            f"sed -i 's/\\r$//' {script}",
        )
    wanted = [words[0]]
    if PurePosixPath(words[0]).name == "env":
        wanted += [word for word in words[1:] if not word.startswith("-") and "=" not in word][:1]
    for interpreter in wanted:
        name = interpreter.lstrip("/") if interpreter.startswith("/") else f"bin/{interpreter}"
        if name in there or name in gathered:
            continue
        here = _here(interpreter)
        if here is None:
            raise SpecError(
                f"workload.command: {script.name} is a script for {interpreter}, which the guest has not",
                f"write it for /bin/sh, or bring the interpreter along: `files: [PATH:/{name}]`",
            )
        gathered[name] = here


def _here(program: str) -> Path | None:
    """A program of this machine."""
    found = shutil.which(program)
    if found and PurePosixPath(program).name.startswith("python") and not _is_elf(Path(found)):
        # A script that chooses one of several, as pyenv has it.
        asked = process.run([found, "-ISc", "import sys; print(sys.executable)"], timeout=LDD_SECONDS)
        found = asked.stdout.decode().strip() or found
    return Path(found) if found else None


def _bring_library(there: str, gathered: dict[str, Path]) -> None:
    """Bring the standard library of an interpreter that is worth nothing without. Raises SpecError."""
    match = _WITH_LIBRARY.fullmatch(PurePosixPath(there).name)
    if not match or not gathered[there].is_file() or not _is_elf(gathered[there]):
        return
    if match[1] != "python":
        # Whoever brings it knows where it has to be.
        if not any(match[1].removesuffix("sh") in str(PurePosixPath(name).parent) for name in gathered):
            raise SpecError(
                f"workload.command: {match[0]} needs its library of modules, which does not come by itself",
                "write it for /bin/sh or Python, or bring the directories along, to the same paths: `files`",
            )
        return
    listing = process.run([gathered[there], "-IS", "-c", _PYTHON], timeout=LDD_SECONDS, error=HostError)
    library, extensions, place = listing.stdout.decode().splitlines()
    for source, target in ((Path(library), place), (Path(extensions), f"{place}/lib-dynload")):
        for path in sorted(source.rglob("*")) if source.is_dir() else ():
            inner = path.relative_to(source)
            wanted = path.suffix in (".py", ".so") and not path.name.startswith(("_test", "_ctypes_test"))
            if wanted and not _LEFT_OUT & {*inner.parts, path.name.partition(".")[0]}:
                gathered.setdefault(f"{target}/{inner}", path)


def _libraries(path: Path, brought: set[str]) -> Iterator[tuple[str, Path]]:
    """The loader and the libraries of a program, as paths in the guest and files here.

    `brought`: names of files that come along anyway.
    """
    if not path.is_file() or not _is_elf(path):
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


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(ELF)) == ELF


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
