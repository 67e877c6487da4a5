# SPDX-License-Identifier: GPL-2.0-only
"""Patches that are given as words on the command line: what an experiment calls them, and a result."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.experiment import RANGE, matches
from testbed.host import files
from testbed.host.errors import SpecError
from testbed.host.paths import absolute
from testbed.kernel import mail, series, source

STANDARD_INPUT = "-"
MOST_LETTERS = 60
_HASH_LETTERS = 8


@dataclass(frozen=True)
class Given:
    """What a word, or a file that it stands for, comes to.

    `word` is as it was typed, `entry` as an experiment has it from anywhere, `name` a part of its result's.
    `origin` is the file, directory or repository that it is from, if it stays there.
    """

    word: str
    entry: str
    name: str
    origin: Path | None = None


def slug(text: str) -> str:
    """A text as the name of an arm or experiment. What is too long for one ends in a hash of all of it."""
    whole = re.sub(r"[^a-z0-9.-]+", "-", text.lower().replace("_", "-")).strip("-.") or "x"
    if len(whole) <= MOST_LETTERS:
        return whole
    return f"{whole[: MOST_LETTERS - _HASH_LETTERS - 1].rstrip('-.')}-{short_hash(text)}"


def short_hash(text: str | bytes) -> str:
    """What tells one text from another in a name."""
    data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    return hashlib.sha256(data).hexdigest()[:_HASH_LETTERS]


def patches(word: str, cache: Path, repository: Path | None) -> list[Given]:
    """What a word stands for: more than one thing if it is a pattern. Raises SpecError if that is no patch.

    A range is one of `repository`, or of the one that we are in.
    """
    if word == STANDARD_INPUT:
        return [_standard_input(cache)]
    if word.startswith(RANGE):
        return [_range(word, repository)]
    path = Path(word).expanduser()
    try:
        found = [] if path.exists() else matches(word, Path())
    except (OSError, ValueError) as none:
        raise SpecError(f"{word}: {files.reason(none)}") from none
    if found:
        return [_file(each, Path(each)) for each in found]
    if re.fullmatch(r"[a-z0-9-]+", word) and not path.exists():
        series.check(word)
        return [Given(word, word, word)]
    return [_file(word, path)]


def name(given: Sequence[Given]) -> list[str]:
    """The parts of a result's name that tell which patches it is of."""
    first, rest = given[:1], given[1:]
    more = [f"and-{len(rest)}-more", short_hash("\n".join(each.name for each in rest))] if rest else []
    return [each.name for each in first] + more


def _file(word: str, path: Path) -> Given:
    # As it was typed, for what is said of it; but a name without a slash would be that of a series.
    series.check(str(path) if path.is_absolute() else f"./{path}")
    whole = absolute(path)
    return Given(word, str(path.absolute()), whole.stem or "root", whole)


def _standard_input(cache: Path) -> Given:
    """Kept, since it cannot be read again, in a file that is called as its first patch is."""
    try:
        data = files.at_most(sys.stdin.buffer, mail.MOST_BYTES, Path(STANDARD_INPUT))
    except OSError as unreadable:
        raise SpecError(f"-: {unreadable.strerror}") from unreadable
    if not data.strip():
        raise SpecError("-: there is nothing on standard input")
    sent = series.read(STANDARD_INPUT, data)
    subject = next((patch.subject for patch in sent if patch.subject), "")
    called = slug(subject) if subject else short_hash(data)
    kept = cache / "patches" / hashlib.sha256(data).hexdigest()[:16] / f"{called}.patch"
    kept.parent.mkdir(parents=True, exist_ok=True)
    files.write(kept, data)
    return Given(STANDARD_INPUT, str(kept), called)


def _range(word: str, repository: Path | None) -> Given:
    where, _, which = word.removeprefix(RANGE).rpartition(":")
    if where:
        top = Path(where).expanduser().absolute()
    elif repository is not None:
        top = repository.resolve()
    elif (here := _repository_here()) is not None:
        top = here
    else:
        raise SpecError(
            f"{word}: in which repository? there is none here", f"{RANGE}DIR:{which}, or --tree DIR beside it"
        )
    entry = f"{RANGE}{top}:{which}"
    series.check(entry)
    return Given(word, entry, which, top)


def _repository_here() -> Path | None:
    """The top of the work tree that we are in, or a bare repository."""
    for directory in (here := Path.cwd(), *here.parents):
        if (directory / ".git").exists():
            return directory
    try:
        source.local(here)
    except SpecError:
        return None
    return here
