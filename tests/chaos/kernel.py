# SPDX-License-Identifier: GPL-2.0-only
"""What the campaign asks of this machine's kernel: small file systems, and system calls that fail."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_CLONE_NEWNS = 0x20000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 22, 38, 2
# Of x86_64, what writes durably.
CALLS = {"fsync": 74, "fdatasync": 75, "pwrite64": 18, "rename": 82}
_X86_64 = 0xC000003E
# struct sock_filter: code, jump if true, jump if false, k.
_FILTER = struct.Struct("<HBBI")
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4


def die_with_parent() -> None:
    """Kill this process when the one that forked it ends: a campaign that is stopped leaves nothing."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def no_mounts() -> str:
    """Why no file system can be mounted here; empty if one can."""
    return "" if os.geteuid() == 0 and _may_mount() else "mounting needs root"


def own_mounts() -> None:
    """Have what this process mounts be seen by it and its children only, and go with them."""
    if os.geteuid() == 0 and _LIBC.unshare(_CLONE_NEWNS) == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True)


def _may_mount() -> bool:
    status = Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0]
    return bool(int(status, 16) >> 21 & 1)  # CAP_SYS_ADMIN


@contextlib.contextmanager
def small(
    directory: Path, *, free_bytes: int | None = None, free_inodes: int | None = None
) -> Iterator[None]:
    """A directory, with what is in it, on a file system that has so much left. It has more afterwards."""
    aside = directory.with_name(f"{directory.name}.aside")
    directory.rename(aside)
    directory.mkdir()
    used = sum(-(-path.lstat().st_size // 4096) * 4096 for path in aside.rglob("*") if path.is_file())
    inodes = sum(1 for _ in aside.rglob("*")) + 1
    # A size of 0 would be no limit.
    size = max(4096, used + free_bytes) if free_bytes is not None else 1 << 30
    limit = inodes + free_inodes if free_inodes is not None else 1 << 20
    options = f"size={size},nr_inodes={limit}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "chaos", directory], check=True)
    shutil.copytree(aside, directory, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(aside)
    yield
    subprocess.run(["mount", "-o", "remount,rw,size=1g,nr_inodes=1000000", directory], check=True)


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """A directory on a file system that cannot be written to; afterwards it can."""
    with small(directory):
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        yield


def unmount(*directories: Path) -> None:
    """Let go of what small() and read_only() have mounted there, if anything."""
    for directory in filter(Path.is_mount, directories):
        subprocess.run(["umount", "--lazy", directory], check=False, capture_output=True)


def no_failing_calls() -> str:
    """Why system calls cannot be made to fail here; empty if they can."""
    return "" if platform.machine() == "x86_64" else "the filter of system calls is one for x86_64"


def fail(call: str, number: int = errno.EIO) -> None:
    """Have a system call of this process, and of all that it starts, fail from now on."""
    program = [
        _FILTER.pack(_LOAD, 0, 0, _ARCHITECTURE_AT),
        _FILTER.pack(_EQUAL, 0, 3, _X86_64),
        _FILTER.pack(_LOAD, 0, 0, _NUMBER_AT),
        _FILTER.pack(_EQUAL, 0, 1, CALLS[call]),
        _FILTER.pack(_RETURN, 0, 0, _ERRNO | number),
        _FILTER.pack(_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(program))
    # struct sock_fprog
    whole = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(whole), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no filter of system calls")
