# SPDX-License-Identifier: GPL-2.0-only
"""What a program says that its guest has not got, and what would bring it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.analysis.lacking import TOLD, lacking

# A program that looks for all of it, in a guest of Linux 6.1.192 with the fragments guest and reclaim.
ASKED = """\
shmget: Function not implemented
socketpair: Function not implemented
TCP socket: Function not implemented
inotify: Function not implemented
io_uring: Function not implemented
openpty: No such file or directory
drop_caches: Permission denied
"""


def test_each_missing_thing_is_named_with_what_brings_it() -> None:
    assert lacking(ASKED) == [
        "missing in the guest: System V IPC (kernel.config: a fragment with CONFIG_SYSVIPC=y)",
        "missing in the guest: sockets (kernel.config: a fragment with CONFIG_NET=y, CONFIG_UNIX=y, "
        "CONFIG_INET=y)",
        "missing in the guest: inotify (kernel.config: a fragment with CONFIG_INOTIFY_USER=y)",
        "missing in the guest: io_uring (kernel.config: a fragment with CONFIG_IO_URING=y)",
        "missing in the guest: terminals (kernel.config: a fragment with CONFIG_UNIX98_PTYS=y)",
        "missing in the guest: the right to do this: `drop_caches: Permission denied` (workload: `root: "
        "true`)",
    ]


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("socketpair: Address family not supported by protocol", "local sockets .*CONFIG_UNIX=y"),
        ("TCP socket: Address family not supported by protocol", "TCP/IP .*CONFIG_INET=y"),
        ("connect to 127.0.0.1: Address family not supported by protocol", "TCP/IP .*CONFIG_INET=y"),
        ("bind ::1: Address family not supported by protocol", "IPv6 .*CONFIG_IPV6=y"),
        (
            "socket(): Address family not supported by protocol",
            "family of sockets .*UNIX.*INET",
        ),
        (
            "OSError: [Errno 38] Function not implemented: semget",
            "System V IPC .*CONFIG_SYSVIPC=y",
        ),
        ("fio: io_setup: Function not implemented", "asynchronous I/O .*CONFIG_AIO=y"),
        (
            "./x: error while loading shared libraries: libfoo.so.1: cannot open shared object file: No such "
            "file or directory",
            "the library libfoo.so.1 .*PATH:/lib/libfoo.so.1",
        ),
        ("ModuleNotFoundError: No module named 'numpy'", "Python's module numpy .*PATH:/bin/numpy"),
        ("/bin/run.sh: line 3: fio: not found", "the program fio"),
        ("sh: fio: not found", "the program fio"),
        ("env: can't execute 'python3': No such file or directory", "the program python3"),
        ("env: 'python3': No such file or directory", "the program python3"),
        ("bash: ./x: /usr/bin/perl: bad interpreter: No such file or directory", "interpreter /usr/bin/perl"),
        (
            "testbed-start: prog: No such file or directory",
            "the program prog, or what interprets or loads it",
        ),
        ("pkey_alloc: Function not implemented", "a system call of its kernel: pkey_alloc"),
    ],
)
def test_kinds(said: str, named: str) -> None:
    (line,) = lacking(f"fine\n{said}\nfine\n")
    assert re.search(named, line), line


@pytest.mark.parametrize(
    "said",
    [
        "worker: 100 KB/s in 1.00 s",
        "cannot open /etc/fio.conf: No such file or directory",
        "open /mnt/tmp/x: No such file or directory",
        "key not found",
        "connect: Connection refused",
        "",
    ],
)
def test_what_is_none_of_the_guest_s_is_left_alone(said: str) -> None:
    assert lacking(said) == []


def test_one_story_is_told_once_and_many_are_cut() -> None:
    assert len(lacking("shmget: Function not implemented\n" * 1000)) == 1
    many = "".join(f"run.sh: line 1: program{n}: not found\n" for n in range(100))
    assert len(lacking(many)) == TOLD


@given(st.text())
def test_no_output_is_too_strange(said: str) -> None:
    lacking(said)
