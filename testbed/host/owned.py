# SPDX-License-Identifier: GPL-2.0-only
"""What belongs to living processes, and how that of dead ones goes. Standard library only.

Whoever owns or uses a file or directory has a flock(2) on the thing itself. So the lock goes with the last
process that has it, however that ends, and nothing has to be written down. What is locked stays. The rest may
be removed, and whoever removes it has it alone meanwhile.

Between making a directory and locking it there is a moment in which another process may take it for a dead
one's. That one has the lock then, and removes the directory. So a lock counts only if what was locked still
has its name afterwards: the owner waits for the lock, finds its directory gone and makes another. It has put
nothing there yet. A removal that is killed itself leaves a directory without a lock, which the next removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from testbed.host import space
from testbed.host.paths import temporary_directory

# Long enough to be nobody else's: in TMPDIR and beside files of the user are other people's things.
SUFFIX = ".testbed.tmp"
_OURS = re.compile(rf".*[.-][a-z0-9_]{{8}}{re.escape(SUFFIX)}")
# What this process uses, until it ends.
_used: dict[Path, int] = {}
_one_thread = threading.Lock()


@contextlib.contextmanager
def directory(parent: Path | None = None, name: str = "testbed-") -> Iterator[Path]:
    """A directory that is there while the context lasts, in TMPDIR or in `parent`.

    The first of a process to be made somewhere removes what dead ones left there. Raises NoSpace when
    there is no space left.
    """
    home = parent or temporary_directory()
    with contextlib.ExitStack() as locks, space.told(home):
        _remove_left_once(home)
        while True:
            with tempfile.TemporaryDirectory(prefix=name, suffix=SUFFIX, dir=home) as made:
                lock = _shared(Path(made))
                if lock is not None:
                    # Let go after the directory is gone.
                    locks.callback(os.close, lock)
                    yield Path(made)
                    return


def use(path: Path) -> bool:
    """Keep a file or directory that several processes share from being removed until this process ends.

    False if it is not there, or not any more.
    """
    lock = _shared(path)
    if lock is None:
        return False
    with _one_thread:
        before, _used[path] = _used.get(path), lock
    if before is not None:
        os.close(before)
    return True


def make(path: Path) -> Path:
    """A directory that several processes share, made unless it is there, and used as use() does."""
    while not use(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def remove(path: Path) -> bool:
    """Remove a file or directory unless a living process has it; whether it is gone."""
    with contextlib.suppress(OSError), _exclusive(path):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    return not os.path.lexists(path)


def remove_left(home: Path) -> None:
    """Remove what directory() made there for processes that are dead."""
    with contextlib.suppress(FileNotFoundError), os.scandir(home) as entries:
        for entry in entries:
            if _OURS.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                remove(Path(entry.path))


@functools.cache
def _remove_left_once(home: Path) -> None:
    """Once in the life of a process: results have directories of many thousands of files."""
    remove_left(home)


def _shared(path: Path) -> int | None:
    """The lock of one of those who have a file or directory; None if there is no such thing any more."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    # Where a file system has no locks nobody can remove anything, either.
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_SH)
    if _is_named(lock, path):
        return lock
    os.close(lock)
    return None


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Have a file or directory alone. Raises OSError when another has it, or it is not there or not ours."""
    lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_named(lock, path):
            raise FileNotFoundError(path)
        yield
    finally:
        os.close(lock)


def _is_named(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
