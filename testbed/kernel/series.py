# SPDX-License-Identifier: GPL-2.0-only
"""Patch series: which patches a name stands for in which kernel, and what they make of its files."""

from __future__ import annotations

import difflib
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml
from pydantic import Field, ValidationError

from testbed.experiment import Model, is_path
from testbed.host.errors import SpecError
from testbed.host.paths import data_directory
from testbed.kernel import source

PATCHES = data_directory() / "patches"
NO_REPOSITORY = Path("/dev/null")
PATCH_SECONDS = 60.0


class Line(Model):
    """A row of lines.yaml: the kernels from version `from`, before version `before`.

    `source` is the Debian package that has one of them.
    """

    directory: str
    source: str
    first: str = Field(alias="from")
    before: str

    def __contains__(self, version: str) -> bool:
        return ordinal(self.first) <= ordinal(version) < ordinal(self.before)

    def __str__(self) -> str:
        return f"{self.directory} (from {self.first}, before {self.before})"


class Table(Model):
    """The file lines.yaml."""

    lines: list[Line]


@dataclass(frozen=True)
class Patch:
    """One patch file. `diffstat`: lines that it adds and removes, by path from the top of the source."""

    name: str
    path: Path
    data: bytes
    diffstat: Mapping[str, tuple[int, int]]

    @property
    def files(self) -> tuple[str, ...]:
        """The paths that it touches."""
        return tuple(self.diffstat)


def ordinal(version: str) -> tuple[int, ...]:
    """A version as something that can be compared: 6.10 comes after 6.9."""
    return tuple(int(part) for part in version.split("."))


def lines(patches: Path = PATCHES) -> list[Line]:
    """The kernel lines that there are patches for. Raises SpecError when lines.yaml cannot be used."""
    path = patches / "lines.yaml"
    try:
        return Table.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))).lines
    except (OSError, yaml.YAMLError, ValidationError) as bad:
        raise SpecError(f"{path}: {bad}") from bad


def line(name: str, patches: Path = PATCHES) -> Line:
    """The line with its patches in a directory. Raises SpecError when there is none."""
    by_name = {line.directory: line for line in lines(patches)}
    if name not in by_name:
        raise SpecError(f"there is no kernel line `{name}`: {', '.join(by_name)}")
    return by_name[name]


def load(names: Sequence[str], version: str, patches: Path = PATCHES) -> tuple[Patch, ...]:
    """The patches that an arm names, in order, for a kernel of this version.

    A name stands for the files NNNN-name.patch of the line that the version is in, a path for itself.
    Raises SpecError when there is none, or when one cannot be used.
    """
    return tuple(
        _read(name, path)
        for name in names
        for path in ([Path(name)] if is_path(name) else _find(name, version, patches))
    )


def names(version: str, patches: Path = PATCHES) -> tuple[str, ...]:
    """All the series that there are for a kernel of this version, in the order in which they apply."""
    return tuple(_series(version, patches))


def apply(series: Sequence[Patch], read: Callable[[str], bytes | None]) -> dict[str, bytes | None]:
    """What the series makes of the files it touches: their new contents, None for one that is gone.

    `read` gives the pristine content of a file, None when there is none. Patches apply strictly: lines
    may have moved, but every line of context has to be there. Raises SpecError naming patch, source file
    and line for one that does not.
    """
    pristine: dict[str, bytes | None] = {}
    with tempfile.TemporaryDirectory(prefix="testbed-series-") as name:
        scratch = Path(name)
        for patch in series:
            for path in patch.files:
                if path not in pristine:
                    pristine[path] = read(path)
                    _write(scratch / path, pristine[path])
            _apply_one(patch, scratch)
        after = {path: _content(scratch / path) for path in pristine}
    return {path: data for path, data in after.items() if data != pristine[path]}


def _apply_one(patch: Patch, scratch: Path) -> None:
    done = _git_apply(patch.data, cwd=scratch)
    if done.returncode != 0:
        raise SpecError(f"{patch.path}: does not apply: {_complaint(done)}")


def _git_apply(data: bytes, *options: str, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Have git read a patch, strictly; it knows of no repository, or would leave out what is not in one."""
    words = ("apply", "-p1", *options, "-")
    return source.git(NO_REPOSITORY, *words, cwd=cwd, stdin=data, timeout=PATCH_SECONDS, check=False)


def _complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    """What is wrong in the words of git, with the place in front where there is one."""
    said = done.stderr.decode(errors="replace")
    if rejected := re.search(r"^error: patch failed: (.*):(\d+)$", said, re.MULTILINE):
        return f"{rejected[1]}: the hunk at line {rejected[2]}"
    error = re.search("^error: (.*)", said, re.MULTILINE)
    # Which option of git's would help is of no use to ours.
    return error[1].partition(" (")[0] if error else said.strip()


def _write(file: Path, data: bytes | None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if data is not None:
        file.write_bytes(data)


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


# --- finding -------------------------------------------------------------------------------------


def _find(name: str, version: str, patches: Path) -> list[Path]:
    table = lines(patches)
    if not any(version in line for line in table):
        raise SpecError(
            f"series `{name}`: there are no patches for Linux {version}",
            f"there are for {', '.join(map(str, table))}; a patch can also be given as a path",
        )
    found = _series(version, patches)
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        raise SpecError(
            f"series `{name}`: there is none for Linux {version}",
            f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(sorted(found)) or 'none'}",
        )
    return found[name]


def _series(version: str, patches: Path) -> dict[str, list[Path]]:
    """The files of every series for a version, by the numbers of their first patches."""
    found: dict[str, list[Path]] = {}
    for line in (line for line in lines(patches) if version in line):
        for path in sorted((patches / line.directory).glob("[0-9][0-9][0-9][0-9]-*.patch")):
            found.setdefault(path.stem[5:], []).append(path)
    return found


# --- reading -------------------------------------------------------------------------------------


def _read(name: str, path: Path) -> Patch:
    try:
        data = path.read_bytes()
    except OSError as unreadable:
        raise SpecError(f"{path}: {unreadable.strerror}", "arms.*.patches names it") from unreadable
    return Patch(name, path, data, _diffstat(data, path))


def _diffstat(data: bytes, path: Path) -> dict[str, tuple[int, int]]:
    """Lines that a patch adds to and removes from each file, as git reads it."""
    done = _git_apply(data, "--numstat", "--summary")
    if done.returncode != 0:
        raise SpecError(f"{path}: not a patch that git can read: {_complaint(done)}")
    changes: dict[str, tuple[int, int]] = {}
    for line in done.stdout.decode(errors="replace").splitlines():
        if line.startswith(" "):
            # Of the summary.
            if re.match(r" (rename|copy) | create mode 12| mode change .* => 12", line):
                raise _unsupported(path, line.strip())
            continue
        added, removed, file = line.split("\t", 2)
        if added == "-":
            raise _unsupported(path, f"{file} is binary")
        _check_inside(file, path)
        before = changes.get(file, (0, 0))
        changes[file] = (before[0] + int(added), before[1] + int(removed))
    return changes


def _unsupported(path: Path, what: str) -> SpecError:
    return SpecError(
        f"{path}: {what}: renames, links and binary files are not supported",
        "for renames: git format-patch --no-renames",
    )


def _check_inside(file: str, path: Path) -> None:
    # In quotes, git has what else a line could not show.
    inside = PurePosixPath(file)
    if inside.is_absolute() or ".." in inside.parts or file.startswith('"'):
        raise SpecError(f"{path}: `{file}` is not inside the source")
