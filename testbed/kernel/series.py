# SPDX-License-Identifier: GPL-2.0-only
"""Patch series: which patches a word stands for in which kernel, and what they make of its files."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from testbed.experiment import PATCH_SUFFIXES, RANGE, Model, is_path
from testbed.host import files
from testbed.host.errors import SpecError
from testbed.host.paths import data_directory
from testbed.kernel import mail, source
from testbed.kernel.patch import Letter, Misfit, Patch, Read, apply, parse

__all__ = ["Line", "Misfit", "Patch", "apply", "check", "line", "lines", "load", "names", "ordinal", "read"]

PATCHES = data_directory() / "patches"


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


def load(
    names: Sequence[str], version: str, patches: Path = PATCHES, pristine: Read | None = None
) -> tuple[Patch, ...]:
    """The patches that an arm names, in order, for a kernel of this version.

    A name stands for the files NNNN-name.patch of the line that the version is in; for other words see
    read(). `pristine` gives the content of a file of the source, None where there is none. Where the headers
    of a diff leave its -p open, the files that are there decide. Raises SpecError when there is no such
    patch, or when one cannot be used.
    """
    letters = [
        letter
        for name in names
        for letter in (_letters(name) if is_path(name) else _named(name, version, patches))
    ]
    if names and not letters:
        raise SpecError(f"{', '.join(names)}: a cover letter only", "the patches are in the mails after it")
    return parse(letters, pristine)


def read(word: str, data: bytes | None = None, pristine: Read | None = None) -> tuple[Patch, ...]:
    """The patches of a file, a directory (in its own order, or sorted) or `git:DIR:RANGE`, as load().

    With `data`, these are the bytes of a file, and the word is only what messages call it.
    """
    if data is not None:
        return parse(_split(word, Path(word), data), pristine)
    return load([word if is_path(word) else f"./{word}"], "", pristine=pristine)


def check(word: str, patches: Path = PATCHES) -> None:
    """Raise SpecError unless a word names patches that can be read, whichever source they are for."""
    if is_path(word):
        parse(_letters(word))
        return
    known = {name for line in lines(patches) for name in _series(line.first, patches)}
    if word not in known:
        near = difflib.get_close_matches(word, sorted(known), n=1)
        raise SpecError(
            f"{word}: no such file, and no series of patches/",
            f"did you mean `{near[0]}`?" if near else f"the series are {', '.join(sorted(known)) or 'none'}",
        )


def names(version: str, patches: Path = PATCHES) -> tuple[str, ...]:
    """All the series that there are for a kernel of this version, by number. They need not go together."""
    return tuple(_series(version, patches))


# --- finding -------------------------------------------------------------------------------------


def _named(name: str, version: str, patches: Path) -> list[Letter]:
    """The patches of a series in patches/."""
    table = lines(patches)
    if not any(version in line for line in table):
        raise Misfit(
            f"series `{name}`: there are no patches for Linux {version}",
            f"there are for {', '.join(map(str, table))}; a patch can also be given as a path",
        )
    found = _series(version, patches)
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        raise Misfit(
            f"series `{name}`: there is none for Linux {version}",
            f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(sorted(found)) or 'none'}",
        )
    return [letter for path in found[name] for letter in _file(path, name)]


def _series(version: str, patches: Path) -> dict[str, list[Path]]:
    """The files of every series for a version, by the numbers of their first patches."""
    found: dict[str, list[Path]] = {}
    for line in (line for line in lines(patches) if version in line):
        for path in sorted((patches / line.directory).glob("[0-9][0-9][0-9][0-9]-*.patch")):
            found.setdefault(path.stem[5:], []).append(path)
    return found


# --- what a word stands for ----------------------------------------------------------------------


def _letters(word: str) -> list[Letter]:
    if word.startswith(RANGE):
        return _range(word)
    path = Path(word)
    if path.name == "series" and path.is_file():
        path = path.parent
    if not path.is_dir():
        return _file(path, word)
    if (path / "series").is_file():
        found = [_file(file, str(file), strip) for file, strip in _quilt(path / "series")]
    else:
        named = sorted(file for file in path.glob("[!.]*") if file.name.endswith(PATCH_SUFFIXES))
        found = [_file(file, str(file)) for file in named]
    if not found:
        known = ", ".join(PATCH_SUFFIXES)
        raise SpecError(
            f"{path}: there are no patches in it", f"they end in {known}, or are in a file `series`"
        )
    return [letter for letters in found for letter in letters]


def _quilt(series: Path) -> Iterator[tuple[Path, int | None]]:
    """The files that quilt would apply, and the -p that is given for one."""
    lines = _content(series).decode("utf-8", "surrogateescape").splitlines()
    for number, line in enumerate(lines, start=1):
        words = f" {line}".partition(" #")[0].split()
        strip = None
        for option in words[1:]:
            if not (option[:2] == "-p" and option[2:] in ("ab", *"0123456789")):
                raise SpecError(
                    f"{series}:{number}: `{option}` is not understood", "only -p0 to -p9 are, after a file"
                )
            strip = 1 if option == "-pab" else int(option[2:])
        if words:
            yield series.parent / words[0], strip


def _file(path: Path, name: str, strip: int | None = None) -> list[Letter]:
    return _split(name, path, _content(path), strip)


def _content(path: Path) -> bytes:
    try:
        return files.read(path, mail.MOST_BYTES)
    except OSError as unreadable:
        raise SpecError(f"{path}: {unreadable.strerror}") from unreadable


def _split(name: str, path: Path, data: bytes, strip: int | None = None) -> list[Letter]:
    mails = mail.split(data, str(path))
    parts = [f" {n}/{len(mails)}" if len(mails) > 1 else "" for n in range(1, len(mails) + 1)]
    return [Letter(name + part, path, part, sent, strip) for part, sent in zip(parts, mails, strict=True)]


def _range(word: str) -> list[Letter]:
    """The commits of `git:DIR:RANGE`; of a revision alone, that one."""
    where, _, which = word.removeprefix(RANGE).rpartition(":")
    if not where:
        raise SpecError(
            f"{word}: in which repository?",
            f"{RANGE}DIR:{which}, or in an experiment with kernel.git.repository or kernel.tree",
        )
    try:
        git_dir = source.local(Path(where))
    except SpecError as none:
        raise SpecError(f"{word}: {none.message}", "a range is of commits that are here: clone it") from none
    for end in which.replace("...", "..").split(".."):
        if end and source.parse(git_dir, f"{end}^{{commit}}") is None:
            raise SpecError(f"{word}: {where} has no commit `{end}`")
    revisions = [which] if ".." in which else ["--max-count=1", which]
    merges = source.git(git_dir, "rev-list", "--merges", *revisions, "--").stdout.split()
    if merges:
        raise SpecError(
            f"{word}: has a merge, {merges[0].decode()[:12]}, which is no patch",
            "rebase it, or give the arm the revision as its kernel",
        )
    data = source.git(git_dir, "format-patch", *_FORMAT, *revisions, "--").stdout
    if not data:
        raise SpecError(f"{word}: there are no commits in it")
    return _split(word, Path(word), data, 1)


# Whatever the user's configuration makes of a patch.
_FORMAT = (
    *("--stdout", "--no-attach", "--no-cover-letter", "--no-signature", "--no-thread", "--no-stat"),
    *("--no-notes", "--no-base", "--no-ext-diff", "--no-textconv", "--no-color", "--full-index", "--binary"),
    *("--find-renames", "--src-prefix=a/", "--dst-prefix=b/", "-U3", "--keep-subject"),
)
