# SPDX-License-Identifier: GPL-2.0-only
"""Files that several processes share: put in place in one step, made once, locked. Standard library only.

What is being made is in NAME.*.tmp beside it, which goes when its owner is dead: see owned.py.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import io
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from testbed.host import owned
from testbed.host.errors import HostError
from testbed.host.process import Deadline

WAIT_SECONDS = 7200.0  # for another process, which may build a kernel
# What it may take to start a program, on a busy machine.
START_SECONDS = 1.0
Progress = Callable[[str], None]
MiB = 1024 * 1024


def read(path: Path, most: int) -> bytes:
    """The content of a regular file, or of a link to one.

    Raises OSError, also for a pipe or a device, which might never end, and for more than `most` bytes.
    """
    # Who opens a pipe would wait for a writer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        known = os.fstat(file.fileno())
        if not stat.S_ISREG(known.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        try:
            return at_most(file, most, path)
        except OSError as failed:
            # What the kernel makes up, as /proc/self/mem, has no size.
            if known.st_size or failed.errno == errno.EFBIG:
                raise
            raise OSError(errno.EINVAL, "is not a regular file", str(path)) from failed


def unpacked(data: bytes, most: int, path: Path) -> bytes:
    """What gzip packed, from the file `path`.

    Raises OSError, also for more than `most` bytes, EOFError, zlib.error.
    """
    with gzip.open(io.BytesIO(data)) as file:
        return at_most(file, most, path)


def reason(failed: Exception) -> str:
    """Why a file could not be read or unpacked, without its name."""
    return (isinstance(failed, OSError) and failed.strerror) or str(failed)


class Readable(Protocol):
    """Something that is open."""

    def read(self, size: int, /) -> bytes: ...


def at_most(file: Readable, most: int, path: Path) -> bytes:
    """What is left in an open file. Raises OSError for more than `most` bytes."""
    whole = bytearray()
    while chunk := file.read(MiB):
        whole += chunk
        if len(whole) > most:
            raise OSError(errno.EFBIG, f"is larger than {most // MiB} MiB", str(path))
    return bytes(whole)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, however many: Path.mkdir() calls itself for each."""
    for directory in () if path.is_dir() else (*reversed(path.parents), path):
        directory.mkdir(exist_ok=True)


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Where to make a file or a directory that is to be `path`: it gets there in one step, after the body.

    If that raises, there is nothing. A file that was there is replaced. Of a directory that somebody else has
    put there meanwhile, theirs stays. Raises NoSpace when there is no space left.
    """
    with owned.directory(path.parent, f"{path.name}.") as scratch:
        draft = scratch / path.name
        yield draft
        try:
            draft.replace(path)
        except OSError:
            if not (draft.is_dir() and path.is_dir()):
                raise


def write(path: Path, content: str | bytes, *, mode: int | None = None, durable: bool = False) -> None:
    """Give a file its content in one step: who reads it finds what was there or all of this.

    `durable`: it is on the disk when this returns.
    """
    with staged(path) as draft:
        with draft.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if mode is not None:
            draft.chmod(mode)


def once(
    path: Path,
    make: Callable[[Path], None],
    *,
    lock: Path | None = None,
    progress: Progress = lambda _: None,
) -> Path:
    """A file or directory, made by `make`, where it is told to, unless it is there.

    By one process at a time: others wait for the `lock`, NAME.lock beside it unless it is another. This
    process uses it from then on.
    """
    while not owned.use(path):
        with locked(lock or path.with_name(f"{path.name}.lock"), progress):
            if not path.exists():
                make_directory(path.parent)
                owned.remove_left(path.parent)
                with staged(path) as draft:
                    make(draft)
    return path


@contextmanager
def locked(
    path: Path, progress: Progress = lambda _: None, check: Callable[[], None] = lambda: None
) -> Iterator[IO[bytes]]:
    """Hold the lock `path`, an open file, against other processes. Raises HostError after two hours.

    `check` is called while it waits, and may raise to give up.

    The lock is that of the open file. It is let go when this process and every child that has the file
    as its standard output are gone.
    """
    make_directory(path.parent)
    deadline = Deadline(WAIT_SECONDS)
    waiting = False
    with path.open("ab") as file:
        while not _lock(file):
            if deadline.expired:
                raise HostError(f"{path}: another process has held this lock for hours")
            if not waiting:
                progress(f"waiting for another process that works in {path.parent}")
                waiting = True
            check()
            time.sleep(0.1)
        yield file


@contextmanager
def locked_at_once(path: Path) -> Iterator[None]:
    """Hold a lock as locked() does. Raises BlockingIOError if another process has it.

    A child that was just being started when its parent was killed has the lock until it runs a program of its
    own: that is waited for.
    """
    deadline = Deadline(START_SECONDS)
    with path.open("ab") as file:
        while not _lock(file):
            if deadline.expired:
                raise BlockingIOError(f"{path}: another process has this lock")
            time.sleep(0.02)
        yield


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
