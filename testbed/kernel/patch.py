# SPDX-License-Identifier: GPL-2.0-only
"""Patches as git reads them: which files they change, what they make of them, why one does not apply."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from testbed.experiment import RANGE
from testbed.host import owned
from testbed.host.errors import SpecError
from testbed.kernel import commits, hunks, source
from testbed.kernel.hunks import Hunk
from testbed.kernel.mail import NO_REPOSITORY, Mail

PATCH_SECONDS = 60.0
# Leading directories of a path that a diff may have: git's a/ is one.
LEVELS = range(6)

Read = Callable[[str], bytes | None]


class Misfit(SpecError):
    """A patch does not apply to this source."""


@dataclass(frozen=True)
class Change:
    """What a patch does to a file: `old` is None for a new one, `new` for one that goes."""

    old: str | None
    new: str | None
    added: int
    removed: int
    hunks: tuple[Hunk, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """It has two where a file is renamed or copied."""
        return tuple(dict.fromkeys(path for path in (self.old, self.new) if path is not None))

    @property
    def compiled(self) -> bool:
        """Whether a kernel may be made of it, as far as its name tells. Of its mode none is."""
        if self.old == self.new and not self.added + self.removed:
            return False
        return any(map(commits.may_be_compiled, self.paths))


@dataclass(frozen=True)
class Letter:
    """A patch that was found and is yet to be read.

    `name` is what a report calls it; `part` is which it is of the file, as ` 1/2`; `strip` the -p that was
    given with it.
    """

    name: str
    path: Path
    part: str
    mail: Mail
    strip: int | None = None


@dataclass(frozen=True)
class Patch:
    """One commit. `data`: as it was sent; `diff`: what git applies, with -p`strip`."""

    name: str
    path: Path
    where: str
    data: bytes
    subject: str
    diff: bytes
    strip: int
    changes: tuple[Change, ...]

    @property
    def label(self) -> str:
        """The file that it is in, in short."""
        return self.path.name.removesuffix(".patch")

    @property
    def files(self) -> tuple[str, ...]:
        """The paths that it touches."""
        return tuple(dict.fromkeys(path for change in self.changes for path in change.paths))

    @property
    def diffstat(self) -> Mapping[str, tuple[int, int]]:
        """Lines that it adds and removes, by path from the top of the source."""
        stat: dict[str, tuple[int, int]] = {}
        for change in self.changes:
            added, removed = stat.get(change.paths[-1], (0, 0))
            stat[change.paths[-1]] = (added + change.added, removed + change.removed)
        return stat

    @property
    def compiled(self) -> bool:
        """Whether it changes anything that a kernel is made of, as far as names tell."""
        return any(change.compiled for change in self.changes)


# --- reading -------------------------------------------------------------------------------------


def parse(letters: Iterable[Letter], pristine: Read | None = None) -> tuple[Patch, ...]:
    """Patches as git reads them, each on top of those before. As series.load()."""
    present: dict[str, bool] = {}

    def there(path: str) -> bool:
        if pristine is not None and path not in present:
            present[path] = pristine(path) is not None
        return present.get(path, False)

    patches = []
    for letter in letters:
        patch = _patch(letter, there if pristine else None)
        for change in patch.changes:
            present |= {path: path == change.new for path in change.paths}
        patches.append(patch)
    return tuple(patches)


def _patch(letter: Letter, there: Callable[[str], bool] | None) -> Patch:
    where = f"{letter.path}{letter.part}"
    diff = letter.mail.diff
    _refuse_binary(diff, where)
    strip, changes = _level(diff, letter.strip, where, there)
    for path in (path for change in changes for path in change.paths):
        inside = PurePosixPath(path)
        if inside.is_absolute() or ".." in inside.parts or not path.isprintable():
            raise SpecError(
                f"{where}: `{path}` is not inside the source",
                "make the diff at the top of the source: `git diff`, or `diff -ruN old new`",
            )
    data, subject = letter.mail.data, letter.mail.subject
    return Patch(letter.name, letter.path, where, data, subject, diff, strip, changes)


def _level(
    diff: bytes, given: int | None, where: str, there: Callable[[str], bool] | None
) -> tuple[int, tuple[Change, ...]]:
    """The -p of a diff, and the files that it changes with that.

    It is what was given, or what the headers say; where they leave it open, that with which the files are
    there.
    """
    said = given if given is not None else _said(diff)
    listed = {level: _numstat(diff, level) for level in ((1, *LEVELS) if said is None else (said,))}
    readable = {level: changes for level, changes in listed.items() if not isinstance(changes, str)}
    if not readable:
        complaint = next(text for text in listed.values() if isinstance(text, str))
        raise SpecError(f"{where}: not a patch that git can read: {complaint}", _remedy(complaint))
    if there is None or len(readable) == 1:
        return next(iter(readable.items()))

    def missing(level: int) -> int:
        old = [change.old for change in readable[level] if change.old is not None]
        return sum(not there(path) for path in old)

    lacks = {level: missing(level) for level in readable}
    level = min(lacks, key=lacks.__getitem__)
    fitting = [level for level, files in lacks.items() if not files]
    if len(fitting) > 1:
        either = " or ".join(f"{readable[fit][0].paths[-1]} (-p{fit})" for fit in fitting)
        raise SpecError(
            f"{where}: does it change {either}?",
            f"name its directory, with a file `series` in it that says `{Path(where).name} -p{fitting[0]}`",
        )
    return level, readable[level]


def _said(diff: bytes) -> int | None:
    """The -p that the headers of a diff speak of, which only a prefix such as a/ or the lack of it does."""
    if re.search(rb"^diff --git (\S.*) \1$", diff, re.MULTILINE):
        return 0
    sides = re.compile(
        rb'^(?:diff --git "?([^/\s]+)/.* "?([^/\s]+)/|--- "?([^/\s]+)/.*\n\+\+\+ "?([^/\s]+)/)', re.MULTILINE
    )
    for found in sides.finditer(diff):
        if (found[1] or found[3]) != (found[2] or found[4]):
            return 1
    return 1 if re.search(rb'^(?:--- "?a/|\+\+\+ "?b/)', diff, re.MULTILINE) else None


def _numstat(diff: bytes, level: int) -> tuple[Change, ...] | str:
    """The files that git sees a diff change, or what it says of one that it cannot read."""
    forward = _git_apply(diff, level, "--numstat", "-z", "--summary")
    if forward.returncode != 0:
        return _complaint(forward, diff)
    *rows, summary = forward.stdout.split(b"\0")
    # Only of a diff that is turned round git says what a file was called before.
    back = _git_apply(diff, level, "--numstat", "-z", "--reverse") if _moves(summary) else forward
    *before, _ = back.stdout.split(b"\0")
    if back is not forward:
        before.reverse()
    made, gone = (_listed(summary, kind) for kind in (b"create", b"delete"))
    parts = hunks.parse(diff)
    if len(parts) != len(rows):
        parts = [()] * len(rows)
    changes = []
    for row, old_row, its_hunks in zip(rows, before, parts, strict=False):
        added, removed, new = row.split(b"\t", 2)
        old = old_row.split(b"\t", 2)[2]
        changes.append(
            Change(
                old=None if new in made else os.fsdecode(old),
                new=None if new in gone else os.fsdecode(new),
                added=int(added),
                removed=int(removed),
                hunks=its_hunks,
            )
        )
    return tuple(changes)


def _moves(summary: bytes) -> bool:
    return re.search(rb"^ (?:rename|copy) ", summary, re.MULTILINE) is not None


def _listed(summary: bytes, kind: bytes) -> set[bytes]:
    return set(re.findall(rb"^ %s mode \d+ (.*)$" % kind, summary, re.MULTILINE))


def _refuse_binary(diff: bytes, where: str) -> None:
    """What no text file is, and no kernel is made of."""
    kinds = {
        rb"^(?:GIT binary patch|(?:Binary files|Files) .* differ)$": "is binary",
        rb"^(?:(?:new |old |new file |deleted file )mode|index \S+) 120000$": "is a symbolic link",
        rb"^(?:(?:new |old |new file |deleted file )mode|index \S+) 160000$": "is a submodule",
    }
    for pattern, what in kinds.items():
        if found := re.search(pattern, diff, re.MULTILINE):
            header = diff.rfind(b"diff --git ", 0, found.start())
            line = diff[header if header >= 0 else found.start() :].partition(b"\n")[0]
            file = os.fsdecode(line.rpartition(b" b/")[2])
            raise SpecError(
                f"{where}: {file} {what}, and only text files can be patched",
                f"make it without: git format-patch ... -- . ':!{file}'",
            )


# --- applying ------------------------------------------------------------------------------------


def apply(patches: Sequence[Patch], read: Read) -> dict[str, bytes | None]:
    """What the patches make of the files they touch: their new contents, None for one that is gone.

    `read` gives the pristine content of a file, None when there is none. Patches apply strictly: lines
    may have moved, but every line of context has to be there. Raises Misfit naming patch, source file and
    hunk for one that does not.
    """
    pristine: dict[str, bytes | None] = {}
    with owned.directory() as scratch:
        for patch in patches:
            for path in patch.files:
                if path not in pristine:
                    pristine[path] = read(path)
                    _write(scratch / path, pristine[path])
            done = _git_apply(patch.diff, patch.strip, cwd=scratch)
            if done.returncode != 0:
                whole = patch is patches[0] and _are_in_already(patches, read)
                raise _misfit(patch, scratch, done, in_already=whole)
        after = {path: _content(scratch / path) for path in pristine}
    return {path: data for path, data in after.items() if data != pristine[path]}


def _git_apply(
    data: bytes, level: int, *options: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Have git read a patch, strictly; it knows of no repository, or would leave out what is not in one."""
    words = ("apply", f"-p{level}", *options, "-")
    return source.git(NO_REPOSITORY, *words, cwd=cwd, stdin=data, timeout=PATCH_SECONDS, check=False)


def _write(file: Path, data: bytes | None) -> None:
    if data is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


# --- what is wrong -------------------------------------------------------------------------------


def _complaint(done: subprocess.CompletedProcess[bytes], diff: bytes) -> str:
    """What git says of a diff, with a line of it in place of its number, which is not that of the file."""
    said = done.stderr.decode(errors="replace")
    error = re.search("^error: (.*)", said, re.MULTILINE)
    # Which option of git's would help is of no use to ours.
    text = error[1].partition(" (")[0] if error else said.strip()
    if numbered := re.fullmatch(r"(.*) at (?:line |.*:)(\d+)", text):
        line = b"".join(diff.split(b"\n")[int(numbered[2]) - 1 :][:1]).decode(errors="replace")
        return f"{numbered[1]} at `{line.strip()}`"
    return text


def _remedy(complaint: str) -> str:
    if complaint.startswith(("corrupt", "patch fragment", "git apply: bad", "patch with only garbage")):
        return (
            "a hunk has other lines than its header counts: it was cut off, edited or wrapped by a mail "
            "program; get it anew, of a mail its raw text (`b4 am`)"
        )
    return "`git format-patch`, `git diff` and `diff -ruN old new` make what git can read"


def _misfit(
    patch: Patch, scratch: Path, done: subprocess.CompletedProcess[bytes], *, in_already: bool
) -> Misfit:
    """Which hunk does not fit, what is there instead, and what would help."""
    if in_already or _applies(patch, scratch, "--reverse"):
        return Misfit(f"{patch.where}: does not apply: it is in there already", _instead(patch))
    said = done.stderr.decode(errors="replace")
    failed = re.findall(r"^error: patch failed: (.*):(\d+)$", said, re.MULTILINE)
    if not failed:
        return Misfit(f"{patch.where}: does not apply: {_complaint(done, patch.diff)}", _absent(patch))
    file, line = failed[0][0], int(failed[0][1])
    content = _content(scratch / file) or b""
    own = [hunk for change in patch.changes if file in change.paths for hunk in change.hunks]
    place, hint = f"the hunk at line {line}", []
    for number, hunk in enumerate(own, start=1):
        if hunk.line == line:
            place = f"hunk {number} of {len(own)}, at line {line}"
            difference = hunks.first_difference(hunk, content)
            hint.append(str(difference or "its lines are there, but not at an end of the file, as it says"))
            break
    more = f"; and {len(failed) - 1} more files" if len(failed) > 1 else ""
    hint.append(_would_help(patch, scratch, content))
    return Misfit(f"{patch.where}: does not apply: {file}: {place}{more}", "\n  ".join(hint))


def _applies(patch: Patch, scratch: Path, *options: str) -> bool:
    return _git_apply(patch.diff, patch.strip, "--check", *options, cwd=scratch).returncode == 0


def _would_help(patch: Patch, scratch: Path, content: bytes) -> str:
    """The one thing that would, tried in the order of how harmless it is."""
    if _applies(patch, scratch, "--ignore-whitespace"):
        ends = (b"\r\n" in content) != (b"\r\n" in patch.diff)
        what = "ends of lines (CRLF)" if ends else "tabs and spaces, which a mail program changes"
        return f"all that differs are {what}: get the patch anew, of a mail its raw text (`b4 am`)"
    if _applies(patch, scratch, "--unidiff-zero"):
        return "it has too little context to find its place by: make it with -U3"
    for fuzz in (1, 2):
        if _applies(patch, scratch, f"-C{3 - fuzz}"):
            return (
                f"with fuzz {fuzz} it would (`git apply -C{3 - fuzz}`): see whether that is right, "
                "and make the patch anew from the result"
            )
    return "it would not with fuzz, either: rebase it, or name a source that it was made for"


def _absent(patch: Patch) -> str:
    """What to do where a file is not there, or should not be."""
    level = f" Its paths were taken to be of -p{patch.strip}." if patch.strip != 1 else ""
    return f"is it made for another source, or is a patch missing before it?{level}"


def _are_in_already(patches: Sequence[Patch], read: Read) -> bool:
    """Whether a whole series can be taken back: a later patch may have changed what an earlier one has."""
    with owned.directory() as scratch:
        for path in {path for patch in patches for path in patch.files}:
            _write(scratch / path, read(path))
        return all(
            _git_apply(patch.diff, patch.strip, "--reverse", cwd=scratch).returncode == 0
            for patch in reversed(patches)
        )


def _instead(patch: Patch) -> str:
    """What to do about what is in a source already."""
    word = str(patch.path)
    if not word.startswith(RANGE):
        return "leave it out"
    where, _, which = word.removeprefix(RANGE).rpartition(":")
    base, _, head = which.rpartition("..") if ".." in which else (f"{which}^", "", which)
    head = f" --head {head}" if head not in ("", "HEAD") else ""
    return f"`--tree {where} --base {base.rstrip('.') or 'HEAD'}{head}` compares it with what was before"
