# SPDX-License-Identifier: GPL-2.0-only
"""Patch series: which patches a name stands for in which kernel, and what they make of its files."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml
from pydantic import Field, ValidationError

from testbed.experiment import Model, is_path
from testbed.host import process
from testbed.host.errors import SpecError
from testbed.host.paths import data_directory

PATCHES = data_directory() / "patches"
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
    """One patch file. `files` are the paths that it touches, relative to the top of the source."""

    name: str
    path: Path
    data: bytes
    files: tuple[str, ...]


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
    known = {line.directory: line for line in lines(patches)}
    if name not in known:
        raise SpecError(f"there is no kernel line `{name}`: {', '.join(known)}")
    return known[name]


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


def diffstat(patch: Patch) -> dict[str, tuple[int, int]]:
    """Lines that a patch adds to and removes from each file."""
    found = dict.fromkeys(patch.files, (0, 0))
    path = ""
    for line in patch.data.decode("utf-8", "replace").splitlines():
        if line.startswith("+++ "):
            path = line.split("\t")[0].removeprefix("+++ ").partition("/")[2]
        elif path in found and line.startswith(("+", "-")) and not line.startswith("--- "):
            added, removed = found[path]
            found[path] = (added + line.startswith("+"), removed + line.startswith("-"))
    return found


def names(version: str, patches: Path = PATCHES) -> tuple[str, ...]:
    """All the series that there are for a kernel of this version, in the order in which they apply."""
    return tuple(_series(version, patches))


def apply(series: Sequence[Patch], read: Callable[[str], bytes | None]) -> dict[str, bytes | None]:
    """What the series makes of the files it touches: their new contents, None for one that is gone.

    `read` gives the pristine content of a file, None when there is none. Patches apply strictly: lines
    may have moved, but every line of context has to be there. Raises SpecError naming patch, source file
    and hunk for one that does not.
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
    # --force: ask nothing, guess nothing; a patch that is there already is a reject like any other.
    argv = ["patch", "-p1", "-F0", "--force", "--no-backup-if-mismatch", "--reject-file=-"]
    done = process.run(
        argv, cwd=scratch, stdin=patch.data, timeout=PATCH_SECONDS, error=SpecError, check=False
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace")
        raise SpecError(f"{patch.path}: does not apply: {_reject(said)}")


def _reject(said: str) -> str:
    """What went wrong in the words of patch(1), which names a file first and then its hunks."""
    file = ""
    for line in said.splitlines():
        if match := re.match(r"(?:patching|checking) file '?([^']+?)'?$", line):
            file = match[1]
        elif match := re.match(r"Hunk #(\d+) FAILED at (\d+)", line):
            return f"{file}: hunk {match[1]}, at line {match[2]}"
    return process.tail(said).strip()


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
    files = tuple(dict.fromkeys(_touched(data.decode(errors="replace").split("\n"), path)))
    if not files:
        raise SpecError(f"{path}: not a patch: it has no `diff`, `---` and `+++` lines")
    return Patch(name, path, data, files)


def _touched(lines: Sequence[str], path: Path) -> Iterator[str]:
    """The files that a patch names, hunks aside: these may have lines that look like headers."""
    left = right = 0  # lines of the present hunk that are still to come, before and after the change
    header = False  # between `diff --git` and the first hunk
    for number, line in enumerate(lines, 1):
        if left > 0 or right > 0:
            left -= line[:1] not in ("+", "\\")
            right -= line[:1] not in ("-", "\\")
        elif hunk := re.match(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@", line):
            left, right = (int(count or 1) for count in hunk.groups())
            header = False
        elif line.startswith("diff --git "):
            header = True
            yield _same_name(line.removeprefix("diff --git ").split(), f"{path}:{number}")
        elif line.startswith("--- ") and (following := "".join(lines[number : number + 1]))[:4] == "+++ ":
            names = [text[4:].split("\t")[0].rstrip() for text in (line, following)]
            yield _same_name([name for name in names if name != "/dev/null"], f"{path}:{number}")
        elif header and re.match(r"(rename|copy) |GIT binary|Binary files|new file mode 12", line):
            raise SpecError(f"{path}:{number}: `{line}`: renames, links and binary files are not supported")


def _same_name(names: Sequence[str], place: str) -> str:
    """The path that `a/path` and `b/path` have in common, checked to be one inside the tree."""
    paths = {name.partition("/")[2] for name in names}
    path = PurePosixPath(min(paths, default=""))
    if len(paths) != 1 or any('"' in name for name in names):
        raise SpecError(
            f"{place}: `{' '.join(names)}`: expected one file, as a/path b/path",
            "for renames: git format-patch --no-renames",
        )
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise SpecError(f"{place}: `{path}` is not inside the source")
    return str(path)
