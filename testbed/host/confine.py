# SPDX-License-Identifier: GPL-2.0-only
"""A program that reads what we can, writes to a few places, and has no network. Standard library only.

    confine.py [PLACE...] -- PROGRAM [ARG...]

runs a program that can write beneath the places and to what it has open, and nowhere else. It is run as a
program of its own, since a thread of ours cannot be confined without us. `confine.py --layers` says what this
machine keeps a program from: network, files, TCP.

Files are Landlock's to refuse (Linux, Documentation/userspace-api/landlock.rst), the network is a namespace's
that is empty; where this machine does not allow one, Landlock refuses TCP. Without any of them, a program is
run all the same.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

# Numbers of system calls that are the same on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
# Remove directories and files; make devices, directories, files, sockets, FIFOs and links.
_CHANGES = sum(1 << bit for bit in range(4, 13))
_TCP = 1 << 0 | 1 << 1
_ABSTRACT_SOCKETS_AND_SIGNALS = 1 << 0 | 1 << 1
# By the version of Landlock: what the first has, and what came later.
_REFER_SINCE, _TRUNCATE_SINCE, _TCP_SINCE, _SCOPES_SINCE = 2, 3, 4, 6
_NO_NEW_PRIVILEGES = 38
_NEWUSER, _NEWIPC, _NEWNET = 0x10000000, 0x08000000, 0x40000000
# What emulators write to.
DEVICES = ("/dev/kvm", "/dev/null")

_libc = ctypes.CDLL(None, use_errno=True)


def words(argv: Sequence[str], writable: Sequence[Path]) -> list[str]:
    """A command that runs another one, which can write to these places only."""
    return itself(*map(str, writable), "--", *argv)


def itself(*arguments: str) -> list[str]:
    """The command that is this program."""
    return [sys.executable, "-I", "-S", __file__, *arguments]


def _with_landlock(writable: Sequence[str]) -> list[str]:
    version = _libc.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    if version < 1:
        return []
    files = _WRITE_FILE | (_TRUNCATE if version >= _TRUNCATE_SINCE else 0)
    trees = files | _CHANGES | (_REFER if version >= _REFER_SINCE else 0)
    tcp = _TCP if version >= _TCP_SINCE else 0
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPES_SINCE else 0
    # struct landlock_ruleset_attr, as long as the kernel knows it.
    known = 3 if scopes else 2 if tcp else 1
    attributes = struct.pack("=3Q", trees, tcp, scopes)[: 8 * known]
    rules = _libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if rules < 0:
        return []
    for place in (*writable, *DEVICES):
        try:
            fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        # struct landlock_path_beneath_attr, which is packed.
        beneath = struct.pack("=Qi", trees if Path(place).is_dir() else files, fd)
        _libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, beneath, 0)
        os.close(fd)
    if _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or _libc.syscall(_RESTRICT_SELF, rules, 0):
        return []
    return ["files", "TCP"] if tcp else ["files"]


def _without_network() -> str:
    """Into a namespace without a network; nothing where that is not allowed."""
    user, group = os.geteuid(), os.getegid()
    if _libc.unshare(_NEWNET | _NEWIPC) == 0:
        return "network"
    if _libc.unshare(_NEWUSER | _NEWNET | _NEWIPC):
        return ""
    # Who is nobody there cannot make files.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return "network"


def main(arguments: Sequence[str]) -> None:
    """Become the program that is named, confined."""
    if arguments == ["--layers"]:
        sys.stdout.write(" ".join(filter(None, [_without_network(), *_with_landlock([])])))
        return
    end = arguments.index("--")
    program = list(arguments[end + 1 :])
    _without_network()
    _with_landlock(arguments[:end])
    try:
        os.execvp(program[0], program)  # noqa: S606
    except OSError as failed:
        sys.exit(f"{program[0]}: {failed.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
