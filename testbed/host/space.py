# SPDX-License-Identifier: GPL-2.0-only
"""Space on disks: asked for before it is needed, and its lack told as what it is. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from testbed.host.errors import NoSpace

_LACK = (errno.ENOSPC, errno.EDQUOT)
# As every program says it that uses strerror(3); tar counts, of the file with which the disk got full.
_SAID = re.compile("|".join([*map(os.strerror, _LACK), r"Wrote only \d+ of \d+ bytes"]))
_WHERE = re.compile(r"(?:^|=)(/.*)", re.DOTALL)


def free(directory: Path) -> int:
    """Bytes that may still be written where a directory is, or is to be."""
    disk = os.statvfs(_there(directory))
    return disk.f_bavail * disk.f_frsize


def require(directory: Path, wanted: int, what: str) -> None:
    """Raise NoSpace if there is less room than something takes, by estimate."""
    if (have := free(directory)) < wanted:
        raise NoSpace(
            f"{directory}: {have >> 20} MiB free, and {what} takes about {wanted >> 20} MiB: {_REMEDY}"
        )


@contextlib.contextmanager
def told(directory: Path) -> Iterator[None]:
    """Raise NoSpace where the body finds no space left; it names what `directory` is in, or what failed."""
    try:
        yield
    except OSError as failed:
        if failed.errno not in _LACK:
            raise
        named = isinstance(failed.filename, str) and failed.filename.startswith("/")
        raise lack(Path(failed.filename).parent if named else directory) from failed


def said(output: str) -> bool:
    """Whether a program that failed says that there was no space left."""
    return bool(_SAID.search(output))


def lack(*directories: Path) -> NoSpace:
    """What is to be said when there is no space left in one of some directories: in the fullest."""
    fullest = min(directories, key=free)
    inodes = os.statvfs(_there(fullest))
    files = ", and no file can be added" if inodes.f_files and not inodes.f_favail else ""
    return NoSpace(f"{fullest}: no space left there ({free(fullest) >> 20} MiB free{files}): {_REMEDY}")


def named(words: Iterable[str]) -> list[Path]:
    """The directories that the words of a command may write to."""
    paths = [Path(match[1]) for word in words if (match := _WHERE.search(word))]
    return [path if os.path.isdir(path) else path.parent for path in paths]  # noqa: PTH112  (of any length)


_REMEDY = "make some (`testbed clean --cache`), or name other directories (XDG_CACHE_HOME, TMPDIR)"


def _there(directory: Path) -> Path:
    directory = directory.absolute()
    return next(path for path in (directory, *directory.parents) if os.path.exists(path))  # noqa: PTH110
