# SPDX-License-Identifier: GPL-2.0-only
"""Which QEMU. For deterministic guests it has to be of a family that was found to be sound."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed.host import debian, files, process
from testbed.host.debian import Package
from testbed.host.errors import HostError, NoDeterminism

QEMU = "qemu-system-x86_64"
OVERRIDE = "TESTBED_QEMU"
# Versions that gave the same bytes every time. From one snapshot all of a family give the same as each other;
# the snapshot depends on the build, too. How that was found out, and what of others: docs/determinism.md.
FAMILIES = ("10.0",)
# For machines whose own QEMU is not of a family: those of Debian 12's backports and of Debian 13. The first
# runs with the libraries that Debian 12's own QEMU needs, the second with those of newer releases.
PRIVATE = (
    (
        Package(
            "qemu-system-x86",
            "1:10.0.2+ds-2+deb13u1~bpo12+1",
            "4a6b1856c8b0d7df4ff8e70249e12c473ccf8d516aadb4ae14d3d938faed0c65",
        ),
        Package(
            "qemu-system-data",
            "1:10.0.2+ds-2+deb13u1~bpo12+1",
            "2d831088187087013b3fcbd19bdfb955b182a2d5a08f6dafa0ad1c6d2007fb4e",
        ),
        Package(
            "seabios",
            "1.16.3-2~bpo12+1",
            "48390d0a534c66d11789e39518aa219773a9d3677b29fe1af8799dfb563ec713",
        ),
    ),
    (
        Package(
            "qemu-system-x86",
            "1:10.0.13+ds-0+deb13u1",
            "5e841d0723a657fd8bc2e9e1a085d24f47fcb3e4a0f94762e6c38b429f22fbb1",
        ),
        Package(
            "qemu-system-data",
            "1:10.0.13+ds-0+deb13u1",
            "a0e03c526cc09d4c2ab20aa19a8c12e916cdc49a170acb16a6563c28f70eafd3",
        ),
        Package(
            "seabios",
            "1.16.3-2",
            "2b590534250b940f43222eeab9a8f57f337a9d9a73fc412a43ab8cd07a7e56f6",
        ),
    ),
)


@dataclass(frozen=True)
class Qemu:
    """A QEMU that runs: what to execute, and the first line of its --version."""

    program: str
    version: str

    @property
    def family(self) -> str:
        """Major and minor version: what a deterministic guest's course from a snapshot depends on."""
        match = re.search(r"version (\d+\.\d+)", self.version)
        return match[1] if match else self.version


def qemu_version(qemu: str = QEMU) -> str:
    """The first line of `qemu --version`. Raises HostError when it is not installed."""
    done = process.run([qemu, "--version"], timeout=20, error=HostError)
    lines = done.stdout.decode(errors="replace").splitlines()
    if not lines:
        raise HostError(f"{qemu}: is it QEMU? `--version` prints nothing")
    return lines[0]


def system() -> Qemu:
    """The QEMU that TESTBED_QEMU names, else the machine's own. Raises HostError when there is none."""
    program = os.environ.get(OVERRIDE) or QEMU
    return Qemu(program, qemu_version(program))


def deterministic(cache: Path, progress: Callable[[str], None], family: str | None = None) -> Qemu:
    """A QEMU for deterministic guests, of a given family or any: the machine's own, or a private one.

    What TESTBED_QEMU names is taken as it is, if it is of the family. Raises NoDeterminism when there is
    none, HostError when that is of another.
    """
    if os.environ.get(OVERRIDE):
        named = system()
        if family not in (None, named.family):
            raise HostError(
                f"{OVERRIDE} is QEMU {named.family}, and these results are of QEMU {family}: "
                "other versions give other numbers",
                f"unset {OVERRIDE}, or let it name a QEMU {family}",
            )
        return named
    suits = [known for known in FAMILIES if family in (None, known)]
    why = "this machine has none"
    if shutil.which(QEMU):
        try:
            own = system()
        except HostError as broken:
            why = broken.message
        else:
            if own.family in suits:
                return own
            why = f"this machine has {own.family}"
    for packages in PRIVATE if suits else ():
        try:
            return _private(packages, cache, progress)
        except HostError as failed:
            why += f"; {packages[0].version}: {failed.message}"
    raise NoDeterminism(
        f"deterministic guests need QEMU {family or ' or '.join(FAMILIES)}: {why}",
        f"{OVERRIDE}=PROGRAM names another; `--mode realtime` gives other numbers, of this machine",
    )


def _private(packages: tuple[Package, ...], cache: Path, progress: Callable[[str], None]) -> Qemu:
    """A QEMU unpacked from the distribution's packages into the cache."""
    home = cache / "qemu" / packages[0].sha256[:32]
    program = home / QEMU

    def make(draft: Path) -> None:
        for deb in [debian.fetch_pinned(package, cache, progress) for package in packages]:
            debian.unpack(deb, draft / "root")
        wrapper = draft / QEMU
        wrapper.write_text(_WRAPPER.format(qemu=QEMU))
        wrapper.chmod(0o755)
        # It may lack a library: better known before it has a place in the cache.
        qemu_version(str(wrapper))

    # One lock for all packages, since they share apt's lists.
    files.once(home, make, lock=cache / "debian" / "lock", progress=progress)
    return Qemu(str(program), qemu_version(str(program)))


# Found from where the wrapper is. -L has to name every directory: QEMU looks in the system's, too.
_WRAPPER = """#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
exec "$root/usr/bin/{qemu}" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"""
