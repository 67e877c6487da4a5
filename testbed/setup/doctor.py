# SPDX-License-Identifier: GPL-2.0-only
"""What the main job needs of this machine, whether it is there, and what to do if not.

Nothing but the standard library is used here: set-up asks before there is anything else.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.guest import image, qemu
from testbed.host import confine, debian, owned, process
from testbed.host.errors import TestbedError
from testbed.host.paths import is_installed

INSTALLERS = {
    "debian": ("apt-get", "install", "-y", "--no-install-recommends"),
    "fedora": ("dnf", "install", "-y"),
    "arch": ("pacman", "-S", "--needed", "--noconfirm"),
}
# Unpacked source, object tree, kernels: what two arms of one kernel line take, with some room.
DISK_BYTES = 6 << 30
MEMORY_BYTES = 1 << 30
OLDEST_PYTHON = (3, 11)
SOURCES = Path("/usr/src")


@dataclass(frozen=True)
class Need:
    """One thing that the main job cannot do without. `problem` is None when it is there.

    `packages` names what has it, per family of distributions; empty when no package helps.
    """

    name: str
    problem: str | None
    packages: Mapping[str, str]
    remedy: str = ""
    # Whether set-up can go on without: there is another way, or it may do all the same.
    optional: bool = False


def examine(cache: Path) -> list[Need]:
    """Check everything. Takes about a second."""
    with process.unguarded():
        return [*_programs(), *_libraries(), *_python(), _source(), _disk(cache), _memory()]


def family() -> str | None:
    """The family of distributions that this machine belongs to: a key of INSTALLERS; None if it has none."""
    try:
        facts = platform.freedesktop_os_release()
    except (OSError, AttributeError):
        # No such file; or a Python from before 3.10, of which set-up has to say that it is too old.
        return None
    names = [facts["ID"], *facts.get("ID_LIKE", "").split()]
    aliases = {"ubuntu": "debian", "rhel": "fedora", "centos": "fedora", "archlinux": "arch"}
    families = (aliases.get(name, name) for name in names)
    return next((name for name in families if name in INSTALLERS), None)


def install_command(needs: Sequence[Need], distribution: str) -> list[str]:
    """The command that installs what is missing, for root; empty when no package would help."""
    packages = [need.packages.get(distribution, "") for need in needs if need.problem]
    names = sorted({word for package in packages for word in package.split()})
    return [*INSTALLERS[distribution], *names] if names else []


def kvm() -> str:
    """One line on /dev/kvm. It is not needed, and only a booted guest tells whether it works."""
    if not Path("/dev/kvm").exists():
        return "there is no /dev/kvm: guests are emulated"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm may not be opened by this user: guests are emulated"
    return "/dev/kvm opens; `accel: auto` boots a probe to see whether it works"


def emulator() -> str:
    """One line on whether the QEMU that is here can run deterministic guests."""
    try:
        with process.unguarded():
            here = qemu.system()
    except TestbedError:
        return "there is no QEMU: deterministic guests run on a private one, fetched when first needed"
    if os.environ.get(qemu.OVERRIDE):
        return f"{qemu.OVERRIDE} names QEMU {here.family}: it is taken for deterministic guests, sound or not"
    if here.family in qemu.FAMILIES:
        return f"QEMU {here.family} runs deterministic guests"
    return (
        f"QEMU {here.family} is none for deterministic guests: a private {qemu.FAMILIES[0]} is fetched when "
        "first needed"
    )


def confinement() -> str:
    """One line on what keeps QEMU, should its guest get into it, from this machine."""
    with process.unguarded():
        layers = process.run(confine.itself("--layers"), timeout=20, check=False).stdout.decode().split()
    lacking = {
        "files you can write to (no Landlock: Linux 5.13 has it)": "files" not in layers,
        "the network (no namespace is allowed)": not {"network", "TCP"} & set(layers),
    }
    if reached := [what for what, lacks in lacking.items() if lacks]:
        return f"a guest that takes QEMU over would get at {' and '.join(reached)}"
    return "QEMU is confined: should its guest take it over, it can write nowhere and reach nobody"


# --- the checks ----------------------------------------------------------------------------------


def _packages(debian: str, fedora: str = "", arch: str = "") -> dict[str, str]:
    return {"debian": debian, "fedora": fedora or debian, "arch": arch or fedora or debian}


PROGRAMS = {
    "gcc": _packages("gcc"),
    "ccache": _packages("ccache"),
    "ld": _packages("binutils"),
    "make": _packages("make"),
    "flex": _packages("flex"),
    "bison": _packages("bison"),
    "bc": _packages("bc"),
    "perl": _packages("perl"),
    "git": _packages("git"),
    "tar": _packages("tar"),
    "xz": _packages("xz-utils", "xz"),
    "setpriv": _packages("util-linux"),
    "qemu-system-x86_64": _packages("qemu-system-x86", "qemu-system-x86-core", "qemu-system-x86"),
}


def _programs() -> Iterator[Need]:
    for program, packages in PROGRAMS.items():
        path = shutil.which(program)
        yield Need(program, None if path else "not found", packages)
    yield Need("busybox, static", _busybox(), _packages("busybox-static", "busybox"))


def _busybox() -> str | None:
    try:
        image.find_busybox()
    except TestbedError as missing:
        return missing.message
    return None


def _libraries() -> Iterator[Need]:
    yield Need(
        "static C library",
        _compiles("int main(void) { return 0; }", "-static"),
        _packages("libc6-dev", "glibc-static", "glibc"),
    )
    yield Need(
        "libelf headers",
        _compiles("#include <gelf.h>\nint main(void) { return elf_version(EV_CURRENT); }", "-lelf"),
        _packages("libelf-dev", "elfutils-libelf-devel", "libelf"),
    )


def _compiles(program: str, *flags: str) -> str | None:
    if shutil.which("gcc") is None:
        return "cannot be checked without gcc"
    with owned.directory() as scratch:
        source = scratch / "check.c"
        source.write_text(program)
        argv = ["gcc", str(source), "-o", f"{scratch}/check", *flags]
        done = process.run(argv, timeout=30, check=False)
    return "a program that needs it does not compile" if done.returncode else None


def _python() -> Iterator[Need]:
    """What set-up makes .venv with; who has installed the package has done without."""
    if is_installed():
        return
    old = sys.version_info < OLDEST_PYTHON
    wanted = ".".join(map(str, OLDEST_PYTHON))
    yield Need(
        f"Python {wanted} or newer",
        f"this is {sys.version.split()[0]}" if old else None,
        {},
        "name a newer one: make PYTHON=python3.12 compare",
    )
    yield Need("Python's venv", _importable("ensurepip"), _packages("python3-venv", "python3", "python"))


def _importable(module: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"module {module} is missing"


def _source() -> Need:
    found = sorted(SOURCES.glob("linux-source-6.1.tar.*")) or debian.mirror()
    return Need(
        "kernel source linux-source-6.1",
        None if found else "not in /usr/src, and apt knows no Debian mirror to fetch it from",
        {},
        "without it, give `kernel: {tarball: ...}`, `{git: ...}` or `{tree: ...}` in the experiment",
        optional=True,
    )


def _disk(cache: Path) -> Need:
    there = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(there).free
    problem = f"{free >> 20} MiB free, {DISK_BYTES >> 20} needed" if free < DISK_BYTES else None
    if not os.access(there, os.W_OK):
        problem = f"{there} is not writable"
    return Need(f"room in {cache}", problem, {}, "set XDG_CACHE_HOME to a directory with room", True)


def _memory() -> Need:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
            short = f"{free >> 20} MiB available, {MEMORY_BYTES >> 20} needed"
            problem = short if free < MEMORY_BYTES else None
            return Need("memory for a guest", problem, {}, "end other programs", True)
    return Need("memory for a guest", "/proc/meminfo does not tell", {}, "this runs on Linux only", True)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
