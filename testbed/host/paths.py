# SPDX-License-Identifier: GPL-2.0-only
"""Where things are, and the hash that tells what is there. Standard library only: set-up needs it first."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from testbed.host.errors import HostError

PACKAGE = Path(__file__).resolve().parents[1]
# Of a checkout its top; of an installed package nothing in particular.
REPOSITORY = PACKAGE.parent
# Bytes of a directory's path. The kernel takes 4,095 of a file's; sources and object trees are deep.
LONGEST = 1000


def is_installed() -> bool:
    """Whether this runs from an installed package, which has all data within, and not from a checkout."""
    return (PACKAGE / "data").is_dir()


def data_directory() -> Path:
    """Where images/, kconfigs/, patches/ and experiments/ are."""
    return PACKAGE / "data" if is_installed() else REPOSITORY


def cache_directory() -> Path:
    """Kernels, sources and images: `testbed` in the user's cache directory (XDG Base Directory 0.8).

    Raises HostError for one that cannot be used.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path there is to be ignored, says the specification.
    home = checked(Path(base), "XDG_CACHE_HOME") if base.startswith("/") else Path.home() / ".cache"
    return home / "testbed"


def temporary_directory() -> Path:
    """Where temporary files go: TMPDIR, or else the first of the usual places that can be written to.

    Python's own way tries that out with a file, which stays if it is killed just then. Raises HostError.
    """
    for name in (os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp"):  # noqa: S108
        if name and os.path.isdir(name) and os.access(name, os.W_OK | os.X_OK):  # noqa: PTH112  (of any length)
            return checked(Path(name), "TMPDIR")
    raise HostError("there is no directory for temporary files", "name one in the environment: TMPDIR")


def checked(directory: Path, variable: str) -> Path:
    """A directory that the environment names. Raises HostError for a path that is long or is not UTF-8."""
    encoded = os.fsencode(directory)
    if len(encoded) > LONGEST:
        raise HostError(
            f"{variable}: the path {str(directory)[:40]}... has {len(encoded)} bytes: name a directory of at "
            f"most {LONGEST}"
        )
    try:
        encoded.decode()
    except UnicodeDecodeError as bad:
        raise HostError(f"{variable}: {encoded!r} is not UTF-8: name another directory") from bad
    return directory


def absolute(path: Path) -> Path:
    """A path from the root, as it is written: without `.` and `..`, and with its links."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def sha256(file: Path) -> str:
    """The hash of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def split_file(text: str) -> tuple[str, str | None]:
    """An entry of an experiment's `files`: the path here, and the one in the guest, if it says so."""
    here, *there = re.split(r"(?<!\\):", text, maxsplit=1)
    return here.replace("\\:", ":"), there[0] if there else None


def joined_file(here: str, there: str | None) -> str:
    """The entry that split_file() takes apart."""
    colon = "" if there is None else f":{there}"
    return here.replace(":", "\\:") + colon
